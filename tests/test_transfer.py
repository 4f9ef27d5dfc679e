"""recipes/transfer.py: patches, folders of pictures, frozen layers, all of it."""

import csv
import json

import keras
import numpy as np
import pytest
from PIL import Image

import kit

TINY = {
    "labels": (3, 1),
    "num_patches": 64,
    "num_images": 64,
    "filters": (2, 3),
    "pretrain_epochs": 1,
    "epochs": 1,
    "fine_tuning_epochs": 1,
    "seeds": 2,
    "verbose": 0,
}


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("transfer")


@pytest.fixture
def folder(tmp_path):
    """Six pictures each of two classes, whose red channel has the picture's number."""
    for i in range(12):
        name = ("bird", "cat")[i % 2]
        (tmp_path / "pictures" / name).mkdir(parents=True, exist_ok=True)
        picture = np.full((40, 50, 3), (20 * i, 0, 0), "uint8")
        Image.fromarray(picture).save(tmp_path / "pictures" / name / f"{i:02}.png")
    return tmp_path / "pictures"


# --- Data -------------------------------------------------------------------------


@pytest.mark.once
def test_patches_are_means_of_squares_of_their_picture(recipe):
    height, width = 70, 100
    rows, columns = np.mgrid[:height, :width]
    picture = np.stack([rows, columns, np.full_like(rows, 9)], axis=-1).astype("uint8")
    other = np.full((32, 32, 3), 200, "uint8")
    x, y = recipe.cut_patches([picture, other], 40, seed=0)
    assert x.shape == (80, 32, 32, 3) and y.tolist() == [0] * 40 + [1] * 40
    np.testing.assert_allclose(x[40:], 200 / 255, rtol=1e-6)
    steps = np.diff(x[:40, :, :, 0] * 255, axis=1)  # between a patch's rows
    np.testing.assert_allclose(
        steps, steps[:, :1, :1] * np.ones((1, 31, 32)), atol=1e-3
    )
    assert set(steps[:, 0, 0].round(3)) == {1.0, 2.0}  # 96 pixels are too many
    assert x[:40, :, :, 1].max() * 255 <= width - 1


@pytest.mark.once
def test_labelled_and_test_patches_are_of_different_halves(recipe, monkeypatch):
    picture = np.zeros((64, 128, 3), "uint8")
    picture[:, 64:] = 255
    asked = []

    def pictures(part):
        asked.append(part)
        return {"a": picture, "b": picture}

    monkeypatch.setattr(recipe, "photographs", pictures)
    data, names = recipe.load_data(None, 5, False)
    assert names == ["a", "b"]
    assert data.x_train.max() == 0.0 and data.x_test.min() == 1.0
    assert data.y_test.tolist() == [0] * 5 + [1] * 5
    recipe.load_data(None, 5, True)
    recipe.load_pretraining(10, 0)
    assert asked == ["test", "validation", "train"]


@pytest.mark.once
def test_a_folder_gives_each_third_picture_to_the_test(recipe, folder):
    data, names = recipe.load_data(folder, 200, False)
    assert names == ["bird", "cat"]
    assert data.x_train.shape == (8, 32, 32, 3) and data.x_test.shape == (4, 32, 32, 3)
    reds = (data.x_train[:, 0, 0, 0] * 255 / 20).round().astype(int)
    assert sorted(reds) == [0, 1, 2, 3, 6, 7, 8, 9]
    np.testing.assert_array_equal(data.y_train, reds % 2)
    reds = (data.x_test[:, 0, 0, 0] * 255 / 20).round().astype(int)
    assert sorted(reds) == [4, 5, 10, 11]


@pytest.mark.once
@pytest.mark.parametrize("stray", [True, False])
def test_folders_without_classes_are_refused(recipe, folder, stray):
    if stray:
        (folder / "bird" / "00.png").rename(folder / "stray.png")
    else:
        for path in (folder / "cat").iterdir():
            path.unlink()
    with pytest.raises(ValueError, match="`images` must be a folder with one folder"):
        recipe.load_data(folder, 200, False)


def test_copies_are_changed_but_of_their_picture(recipe):
    x = np.zeros((3, 32, 32, 3), "float32") + np.array([0.2, 0.5, 0.8]).reshape(
        -1, 1, 1, 1
    ).astype("float32")
    copies, classes = recipe.changed_copies(x, np.arange(3), 30, seed=0)
    assert copies.shape == (30, 32, 32, 3) and classes.tolist() == [0, 1, 2] * 10
    shifts = copies.mean(axis=(1, 2, 3)) - np.tile([0.2, 0.5, 0.8], 10)
    assert np.abs(shifts).mean() > 0.02
    assert np.abs(shifts).max() < 0.101
    again, _ = recipe.changed_copies(x, np.arange(3), 30, seed=0)
    np.testing.assert_array_equal(again, copies)


# --- Networks ---------------------------------------------------------------------


def test_frozen_layers_stay_as_they_are(recipe):
    x = np.random.default_rng(0).random((16, 32, 32, 3), "float32")
    y = np.arange(16) % 2
    for frozen in (True, False):
        model = recipe.build_classifier(2, (2, 3), frozen)
        kit.initialize_weights(model, 0)
        recipe.compile_classifier(model, 0.01, 16, 1, 8)
        body, head = model.get_layer("body"), model.layers[-1]
        before = [[w.copy() for w in part.get_weights()] for part in (body, head)]
        model.fit(x, y, batch_size=8, verbose=0)
        after = [part.get_weights() for part in (body, head)]
        changed = [
            any(not np.array_equal(a, b) for a, b in zip(*pair, strict=True))
            for pair in zip(before, after, strict=True)
        ]
        # Also the moving averages of the batch normalization.
        assert changed == [not frozen, True]


@pytest.mark.once
def test_colours_are_counted_by_hand(recipe):
    x = np.zeros((1, 32, 32, 3), "float32")
    x[0, :8, :, 0] = 1.0
    expect = np.zeros((8, 3))
    expect[0] = [0.75, 1.0, 1.0]
    expect[7, 0] = 0.25
    np.testing.assert_allclose(recipe.colours(x)[0], expect.ravel())


@pytest.mark.once
def test_gains_are_of_the_same_labelled_pictures(recipe):
    scores = {
        "scratch": {2: [0.5, 0.7, 0.6], 5: [0.5, 0.7]},
        "frozen": {2: [0.6, 0.8, 0.7], 5: [0.5, 0.7]},
        "fine_tuned": {2: [0.7, 0.7, 0.7], 5: [0.5, 0.7]},
        "svc": {2: [0.4, 0.6, 0.5], 5: [0.5, 0.7]},
    }
    metrics, baselines = recipe.figures(scores, "test_accuracy")
    assert metrics["frozen_gain"] == pytest.approx(0.1)  # exactly, for both draws
    assert metrics["frozen_gain_low"] == pytest.approx(metrics["frozen_gain_high"])
    assert metrics["fine_tuned_gain"] == pytest.approx(0.1)
    assert metrics["fine_tuned_gain_low"] < 0
    assert "frozen_gain_5_low" not in metrics  # two draws have no interval
    assert metrics["fine_tuned_test_accuracy"] == pytest.approx(0.7)
    assert baselines["svc_test_accuracy"] == pytest.approx(0.5)


# --- The recipe -------------------------------------------------------------------


@pytest.mark.once  # test_exchange.py runs it under each backend
def test_recipe_leaves_what_it_promises(recipe, tmp_path, folder, capsys):
    out = tmp_path / "run"
    record = recipe.main(images=folder, output_dir=out, seed=1, **TINY)
    assert {path.name for path in out.iterdir()} == {
        "model.keras",
        "pretrained.keras",
        "classes.json",
        "history.csv",
        "metrics.json",
        "transfer.png",
    }
    assert json.loads((out / "metrics.json").read_text()) == record
    metrics, baselines = record["metrics"], record["baselines"]
    for end in ("", "_3"):  # one label is the fewest: without a number
        assert {f"frozen_gain{end}", f"fine_tuned_gain{end}"} <= set(metrics)
        assert f"scratch_test_accuracy{end}" in baselines
    assert recipe.COMPARISON["score"] in metrics
    with (out / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    # Pretraining; three ways at two numbers of labels with two seeds, scratch longer.
    assert len(rows) == 1 + (2 + 1 + 1) * 2 * 2
    assert rows[0]["training"] == "pretraining"
    assert capsys.readouterr().out == ""
    # Fine-tuning started from the pretrained body: it has moved away a little only.
    ends = [
        keras.saving.load_model(out / f"{name}.keras").get_layer("body").get_weights()
        for name in ("pretrained", "model")
    ]
    for a, b in zip(*ends, strict=True):
        assert 0 < np.abs(a - b).max() < 0.2


@pytest.mark.once
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, r"`epochs` must be an integer in \[1, .*received 0"),
        ({"labels": (5,)}, r"`labels` must be .*\[1, 4\].*received .*5"),
        ({"num_images": 100, "batch_size": 101}, r"`batch_size` must be .*\[1, 100\]"),
        ({"fine_tuning_rate": 0.0}, r"`fine_tuning_rate` must be .*received 0\.0"),
        ({"filters": ()}, r"`filters` must be"),
        ({"validation": True}, "`validation` takes other photographs.*leave it out"),
        ({"num_images": 3}, r"`num_images` must be .*\[64, .*received 3"),
    ],
)
def test_recipe_refuses_bad_input(recipe, tmp_path, folder, wrong, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(images=folder, output_dir=tmp_path / "run", **(TINY | wrong))
