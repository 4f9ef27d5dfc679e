"""The recipe that tells speakers apart while they are still speaking."""

import json
import re

import keras
import numpy as np
import pytest
from keras import ops

import kit

pytest.importorskip("sktime")

TINY = {"units": (8,), "copies": 1, "epochs": 2, "batch_size": 90, "verbose": 0}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("gru")


@pytest.fixture(scope="module")
def speech(recipe):
    return recipe.load_data()


def test_the_data_are_those_of_the_paper(speech):
    train, test = speech
    assert [len(part.utterances) for part in speech] == [270, 370]
    np.testing.assert_array_equal(np.bincount(train.speakers), [30] * 9)
    np.testing.assert_array_equal(
        np.bincount(test.speakers), [31, 35, 88, 44, 29, 24, 40, 50, 29]
    )
    lengths = [len(u) for part in speech for u in part.utterances]
    assert (min(lengths), max(lengths)) == (7, 29)
    assert {u.shape[1] for part in speech for u in part.utterances} == {12}
    # The first number of the file: coefficient 0 at time 0, not its transpose.
    assert train.utterances[0][:3, 0] == pytest.approx([1.860936, 1.891651, 1.939205])


def test_padding_marks_what_is_not_there(recipe):
    x = recipe.pad([np.ones((2, 3), "float32"), np.zeros((4, 3), "float32")])
    assert x.shape == (2, 4, 3) and x.dtype == "float32"
    assert (x[0, :2] == 1).all() and (x[0, 2:] == recipe.PADDING).all()
    assert (x[1] == 0).all()
    with pytest.raises(ValueError, match="choose another PADDING"):
        recipe.pad([np.full((2, 3), recipe.PADDING, "float32")])


def test_copies_are_altered_as_a_channel_and_faster_speech_would(recipe):
    frames = np.random.default_rng(0).normal(size=(500, 3)).astype("float32")
    frames[:, 1] *= 10
    speech = recipe.Speech([frames, frames[:9]], np.array([4, 7]))
    same = recipe.augment(speech, 2, 0.0, 0.0, seed=0)
    np.testing.assert_array_equal(same.speakers, [4, 7, 4, 7])
    for got, original in zip(same.utterances, [frames, frames[:9]] * 2, strict=True):
        np.testing.assert_array_equal(got, original)

    shifted = recipe.augment(speech, 200, 0.5, 0.0, seed=0).utterances
    shifts = np.array([u[0] - frames[0] for u in shifted])
    np.testing.assert_allclose(shifted[5] - frames[:9], [shifts[5]] * 9, atol=1e-5)
    np.testing.assert_allclose(shifts.std(0) / frames.std(0), 0.5, rtol=0.15)
    assert np.abs(np.corrcoef(shifts.T) - np.eye(3)).max() < 0.2

    (faster, short) = recipe.augment(speech, 1, 0.0, 0.4, seed=0).utterances
    assert 250 < len(faster) < 350 and 1 <= len(short) < 9
    times = [np.flatnonzero((frames == frame).all(1))[0] for frame in faster]
    assert (np.diff(times) > 0).all()
    assert all(map(len, recipe.augment(speech, 50, 0.0, 0.99, seed=0).utterances))


def test_statistics_of_an_utterance(recipe):
    (row,) = recipe.summarize([np.array([[1.0, 0.0], [2.0, 4.0], [6.0, 2.0]])])
    std = [np.sqrt(14 / 3), np.sqrt(8 / 3)]  # of -2, -1, 3 and of -2, 2, 0
    expected = [3, 2, *std, 1, 0, 6, 4, 1, 0, 6, 2, 3]
    np.testing.assert_allclose(row, expected)


def test_streaming_gives_the_answers_of_the_whole_sequence(recipe, speech):
    """Frame by frame, real speech of several lengths, also after each frame."""
    utterances = speech[1].utterances[::40]
    normalization = keras.layers.Normalization()
    normalization.adapt(np.concatenate(speech[0].utterances))
    model = kit.gru(
        (None, 12),
        9,
        (8, 8),
        "softmax",
        mask_value=recipe.PADDING,
        dropout=0.5,
        preprocessing=[normalization, keras.layers.GaussianNoise(0.5)],
    )
    kit.initialize_weights(model, 0)
    x = recipe.pad(utterances)
    heard, seconds = recipe.listen(model, x)
    assert heard.shape == (len(x), x.shape[1], 9) and seconds > 0
    read = kit.compiled(lambda x: model(x))
    for frames in (1, 5, x.shape[1]):
        so_far = np.where(np.arange(x.shape[1])[:, None] < frames, x, recipe.PADDING)
        whole = ops.convert_to_numpy(read(so_far.astype("float32")))
        np.testing.assert_allclose(heard[:, frames - 1], whole, atol=1e-5)
    # An utterance alone, without padding, gets the same answers.
    shortest = min(range(len(x)), key=lambda i: len(utterances[i]))
    alone = ops.convert_to_numpy(read(utterances[shortest][None]))
    np.testing.assert_allclose(heard[shortest, -1], alone[0], atol=1e-5)
    assert np.abs(heard[:, 0] - heard[:, -1]).max() > 0.01


def test_leaves_what_it_promises(recipe, speech, tmp_path, capsys):
    recipe.main(output_dir=tmp_path, seed=1, **TINY)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"model.keras", "history.csv", "result.png", "metrics.json"}
    record = json.loads((tmp_path / "metrics.json").read_text())
    metrics = record["metrics"]
    assert metrics["test_utterances"] == 370
    assert 0 <= metrics["test_accuracy"] == metrics["streamed_accuracy"] <= 1
    assert metrics["streamed_difference"] < 1e-5
    assert metrics["milliseconds_per_frame"] > 0
    assert record["baselines"]["linear_test_accuracy"] > 0.95
    assert record["throughput"]["unit"] == "samples/s"
    assert record["config"]["units"] == [8]
    assert record["compile_seconds"] > 0
    assert capsys.readouterr().out == ""
    header, *rows = (tmp_path / "history.csv").read_text().splitlines()
    assert header.startswith("epoch,") and "loss" in header and len(rows) == 2

    # The saved model takes raw frames, and is as good as was said.
    model = keras.saving.load_model(tmp_path / "model.keras")
    x = recipe.pad(speech[1].utterances)
    says = ops.convert_to_numpy(kit.compiled(lambda x: model(x))(x)).argmax(-1)
    accuracy = (says == speech[1].speakers).mean()
    assert accuracy == pytest.approx(metrics["test_accuracy"])


@pytest.mark.parametrize(
    "name, value, accepted",
    [
        ("units", (), "1 or more, each an integer in [1, 2**31), received []"),
        ("units", (8, 0), "an integer in [1, 2**31), received [8, 0]"),
        ("copies", 0, "an integer in [1, 1000], received 0"),
        ("offset", -1.0, "a number in [0, 10], received -1.0"),
        ("frame_dropout", 1.0, "a number in [0, 1), received 1.0"),
        ("noise", 1.5, "a number in [0, 1], received 1.5"),
        ("dropout", -0.1, "a number in [0, 1), received -0.1"),
        ("label_smoothing", 1.0, "a number in [0, 1), received 1.0"),
        ("learning_rate", 0.0, "a number in (0, 1], received 0.0"),
        ("batch_size", 271, "an integer in [1, 270], received 271"),
        ("epochs", 0, "an integer in [1, 2**31), received 0"),
    ],
)
def test_refuses_before_it_trains(
    recipe, speech, name, value, accepted, tmp_path, monkeypatch
):
    monkeypatch.setattr(recipe, "load_data", lambda: speech)  # a second each time
    with pytest.raises(
        ValueError, match=rf"gru: `{name}` must be .*{re.escape(accepted)}"
    ):
        recipe.main(output_dir=tmp_path, **TINY | {name: value})
    assert not list(tmp_path.iterdir())


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(3))
def test_learns_to_tell_speakers_apart(recipe, seed, tmp_path):
    record = recipe.main(seed=seed, output_dir=tmp_path, verbose=0)
    metrics = record["metrics"]
    # The goal, to beat the linear model's 0.989, isn't reached: up to four utterances
    # of 370 are missing.
    assert metrics["test_accuracy"] >= 0.975
    assert metrics["streamed_accuracy"] == metrics["test_accuracy"]
    assert metrics["streamed_difference"] < 1e-4
