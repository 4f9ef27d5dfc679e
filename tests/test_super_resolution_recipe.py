"""recipes/super_resolution.py: photographs, patches, scores, and the whole recipe."""

import csv
import json

import keras
import numpy as np
import pytest
from interruptions import check_resumed_run
from PIL import Image

from kit.data import photographs as data

pytest.importorskip("skimage")

pytestmark = pytest.mark.once  # the network's tests are in test_super_resolution.py

TINY = {
    "scale": 2,
    "filters": 2,
    "num_blocks": 1,
    "patch_size": 8,
    "patches": 16,
    "epochs": 2,
    "batch_size": 8,
    "feature_patches": 8,
    "adversarial_patches": 8,
    "verbose": 0,
}


def picture(seed, height=70, width=80):
    """Smooth waves: like a photograph, and easy to make small."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [
        np.sin(rng.uniform(0.05, 0.4) * x + rng.uniform(0.05, 0.4) * y + k)
        for k in range(3)
    ]
    return (127.5 + 127 * np.stack(waves, axis=-1)).astype("uint8")


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("super_resolution")


@pytest.fixture
def few(recipe, monkeypatch):
    """Small pictures in place of the photographs."""
    parts = {
        "train": {f"a{i}": picture(i) for i in range(3)},
        "validation": {"b": picture(8)},
        "test": {"c": picture(9), "d": picture(10)},
    }
    monkeypatch.setattr(recipe, "photographs", parts.get)
    return parts


# --- Photographs ------------------------------------------------------------------


def test_photographs_are_split_by_photograph():
    names = [name for part in data.PARTS.values() for name in part]
    assert len(names) == len(set(names)) == 21
    both = {name for name in names if name.startswith("motorcycle")}
    assert len(both) == 2 and both <= set(data.PARTS["train"])
    test = data.photographs("test")
    assert sorted(test) == ["brick", "camera", "chelsea", "coffee", "coins", "page"]
    assert test["coffee"].shape == (400, 600, 3)
    assert {x.dtype.name for x in test.values()} == {"uint8"}
    assert (test["camera"][..., 0] == test["camera"][..., 2]).all()  # grey
    assert list(data.photographs("validation")) == ["flower", "grass", "rocket"]


def write(folder, number, size=(20, 30)):
    (folder / "inner").mkdir(parents=True)
    for i in range(number):
        path = folder / ("inner" if i % 2 else ".") / f"{i:02}.png"
        Image.fromarray(picture(i, *size)).save(path)


def test_reads_a_folder(recipe, tmp_path):
    write(tmp_path / "a", 6)
    (tmp_path / "a" / "notes.txt").write_text("no picture")
    found = data.read_images(tmp_path / "a", least=20)
    assert sorted(found) == sorted(
        ["00.png", "02.png", "04.png", "inner/01.png", "inner/03.png", "inner/05.png"]
    )
    np.testing.assert_array_equal(found["inner/03.png"], picture(3, 20, 30))
    train, test = recipe.load_data(tmp_path / "a", False, 20)
    same, validation = recipe.load_data(tmp_path / "a", True, 20)
    assert list(train) == list(same) and len(train) == 4
    assert len(test) == len(validation) == 1
    assert not set(train) & (set(test) | set(validation))
    assert set(test) != set(validation)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="21 pixels or more.*20 x 30"):
        data.read_images(tmp_path / "a", least=21)
    with pytest.raises(ValueError, match=r"must hold files in \.jpeg, \.jpg, \.png"):
        data.read_images(tmp_path / "none")
    with pytest.raises(ValueError, match="must be a folder"):
        data.read_images(tmp_path / "missing")
    (tmp_path / "a" / "broken.png").write_text("no picture")
    with pytest.raises(ValueError, match=r"must be a picture.*broken\.png"):
        data.read_images(tmp_path / "a")


# --- Patches ----------------------------------------------------------------------


def test_small_and_large_patches_show_the_same(recipe):
    train = {"a": picture(0), "b": picture(1)}
    rng = np.random.default_rng(0)
    small, large, labels = recipe.draw_patches(train, 60, 8, 2, rng)
    assert small.shape == (60, 8, 8, 3) and large.shape == (60, 16, 16, 3)
    assert set(labels) == {0, 1}
    means = large.reshape(60, 8, 2, 8, 2, 3).mean(axis=(2, 4))
    assert abs(means - small).mean() < 2.0
    for moved in (np.roll(small, 1, axis=1), small[:, ::-1], small.swapaxes(1, 2)):
        assert abs(means - moved).mean() > 10.0
    again = recipe.draw_patches(train, 60, 8, 2, np.random.default_rng(0))
    np.testing.assert_array_equal(small, again[0])


def test_patches_are_of_their_photograph_and_rather_not_empty(recipe):
    bright = np.full((64, 64, 3), 200, "uint8")
    bright[:, 32:] = picture(3, 64, 32) // 4 + 180
    train = {"dark": np.zeros((64, 64, 3), "uint8"), "bright": bright}
    rng = np.random.default_rng(0)
    small, large, labels = recipe.draw_patches(train, 400, 8, 2, rng)
    assert (large.max(axis=(1, 2, 3)) > 100).tolist() == (labels == 1).tolist()
    flat = small[labels == 1].std(axis=(1, 2)).max(axis=1) == 0
    assert flat.mean() < 0.1  # of all places, about 0.16


def test_equalized_patches_by_hand(recipe):
    patches = np.zeros((1, 2, 2, 1), "uint8")
    patches[0, :, 0] = 20  # mean 10, standard deviation 10
    found = recipe.equalized(patches)
    expected = [[128 + 50 * 10 / 15, 128 - 50 * 10 / 15]] * 2
    np.testing.assert_allclose(found[0, ..., 0], expected, rtol=1e-5)


# --- Scores -----------------------------------------------------------------------


def test_psnr_and_ssim_by_hand(recipe):
    true = np.full((40, 40, 3), 100, "uint8")
    found = true.copy()
    found[4:-4, 4:-4] = 110  # Y has 219 steps for 255 grey values
    found[:4] = 0  # the border doesn't count
    error = 10 * 219 / 255
    assert recipe.psnr(found, true, 4) == pytest.approx(20 * np.log10(255 / error))
    a, b = (16 + 219 * x / 255 for x in (100, 110))
    c = (0.01 * 255) ** 2
    assert recipe.ssim(found, true, 4) == pytest.approx(
        (2 * a * b + c) / (a**2 + b**2 + c), abs=1e-6
    )
    # Green counts most, blue least.
    weights = []
    for channel in range(3):
        image = np.zeros((3, 3, 3), "uint8")
        image[..., channel] = 255
        weights.append(recipe.luma(image, 1)[0, 0] - 16)
    np.testing.assert_allclose(weights, [65.481, 128.553, 24.966])


def test_distance_is_the_mean_over_tiles(recipe):
    def judge(a, b):
        return abs(a - b).mean(axis=(1, 2, 3))

    rng = np.random.default_rng(0)
    true, found = (rng.integers(0, 256, (45, 51, 3), "uint8") for _ in "ab")
    inner = (slice(0, 40), slice(0, 50))
    expected = abs(true[inner].astype("float32") - found[inner]).mean()
    assert recipe.distance(found, true, judge, 10) == pytest.approx(expected, rel=1e-5)


def test_the_square_with_the_most_contrast(recipe):
    image = np.zeros((40, 60, 3), "uint8")
    image[20:30, 40:50] = 255
    rows, columns = recipe.most_contrast(image, 20)
    assert image[rows, columns].sum() == image.sum()


# --- The recipe -------------------------------------------------------------------


def test_recipe_leaves_what_it_promises(recipe, few, tmp_path):
    record = recipe.main(output_dir=tmp_path, seed=1, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "adversarial.keras",
        "history.csv",
        "metrics.json",
        "scores.csv",
        "learning_curve.png",
        "crops.png",
        "tradeoff.png",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    names = {"test_psnr", "test_ssim", "test_perceptual_distance"}
    gains = {"test_gain_over_bicubic", "test_least_gain_over_bicubic", "parameters"}
    more = {f"{k}_{x}" for k in ("ensemble", "adversarial") for x in names}
    assert set(record["metrics"]) == names | gains | more
    expected = {f"{k}_{x}" for k in ("bicubic", "lanczos") for x in names}
    assert set(record["baselines"]) == expected
    gain = record["metrics"]["test_psnr"] - record["baselines"]["bicubic_test_psnr"]
    assert record["metrics"]["test_gain_over_bicubic"] == pytest.approx(gain)
    with (tmp_path / "scores.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 8 * 2 and {row["photograph"] for row in rows} == {"c", "d"}
    # The mixture of all of the first network is the saved one.
    model = keras.saving.load_model(tmp_path / "model.keras")
    low, high = recipe.shrunk(few["test"]["d"], 2)
    again = recipe.psnr(recipe.enlarge(model, low), high, 2)
    (row,) = [x for x in rows if (x["method"], x["photograph"]) == ("l1", "d")]
    assert float(row["psnr"]) == pytest.approx(again, abs=1e-3)

    # Then it enlarges other pictures.
    path = tmp_path / "holiday.png"
    Image.fromarray(picture(5, 9, 13)).save(path)
    written = recipe.main(upscale=path, output_dir=tmp_path, verbose=0)
    assert set(written) == {"model", "adversarial"}
    for file in written.values():
        assert data.read_image(file).shape == (18, 26, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 1}, r"`scale` must be .*\[2, 8\], received 1"),
        ({"patches": 0}, r"`patches` must be .*received 0"),
        ({"batch_size": 0}, r"`batch_size` must be .*received 0"),
        ({"feature_weight": -1.0}, "`feature_weight` must be .*received -1.0"),
        ({"feature_patches": 17}, "feature_patches.*16.*received 17"),
        ({"adversarial_patches": 17}, "adversarial_patches.*16.*received 17"),
    ],
)
def test_refuses(recipe, few, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(**{**TINY, "output_dir": tmp_path / "run", **arguments})
    assert not list(tmp_path.glob("run/*"))


def test_refuses_files(recipe, tmp_path):
    path = tmp_path / "text.png"
    path.write_text("no picture")
    with pytest.raises(ValueError, match=r"must be a picture.*text\.png"):
        recipe.main(upscale=path, output_dir=tmp_path)
    Image.fromarray(picture(0)).save(path)
    with pytest.raises(ValueError, match=r"model\.keras is missing. Train"):
        recipe.main(upscale=path, output_dir=tmp_path)
    with pytest.raises(ValueError, match="4 pictures or more.*holds 1"):
        recipe.main(images=tmp_path, output_dir=tmp_path / "run", **TINY)
    Image.fromarray(picture(0, 65, 80)).save(path)  # no tile of 64 x 64 is left
    with pytest.raises(ValueError, match=r"66 pixels or more.*text\.png has 65 x 80"):
        recipe.main(images=tmp_path, output_dir=tmp_path / "run", **TINY)


@pytest.mark.thorough
def test_a_resumed_run_has_the_same_figures(recipe, few, tmp_path, monkeypatch):
    for name in ("draw_learning_curves", "draw_crops", "draw_tradeoff"):
        monkeypatch.setattr(recipe, name, lambda *_: None)  # they take most of the time
    # Within the first training; then within the networks for features.
    check_resumed_run(recipe.main, tmp_path, monkeypatch, (1, 3), **TINY)


@pytest.mark.learn
def test_beats_interpolation(recipe, tmp_path):
    record = recipe.main(output_dir=tmp_path, verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["test_psnr"] > baselines["lanczos_test_psnr"]
