"""recipes/ct.py: phantoms, scanner, classical methods, scores, and the whole recipe."""

import json

import keras
import numpy as np
import pytest
from interruptions import check_resumed_run

from kit.data import phantoms as data
from kit.data.phantoms import phantoms

pytest.importorskip("skimage")

pytestmark = pytest.mark.once  # the network's tests are in test_unet.py

TINY = {
    "size": 16,
    "views": 10,
    "train_phantoms": 20,
    "test_phantoms": 3,
    "filters": (2, 4),
    "segmentation_filters": (2, 3),
    "epochs": 2,
    "segmentation_epochs": 1,
    "batch_size": 5,
    "verbose": 0,
}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("ct")


# --- Phantoms ---------------------------------------------------------------------


def test_phantoms_are_bodies_with_lesions():
    from skimage.measure import label

    images, lesions = phantoms(40, 64, seed=3)
    assert images.shape == lesions.shape == (40, 64, 64, 1)
    assert (images.dtype, lesions.dtype) == ("float32", "uint8")
    assert images.min() == 0.0 and 0.8 < images.max() <= 1.0
    places = np.arange(64) - 32
    outside = np.hypot(*np.meshgrid(places, places)) >= 31
    assert (images[:, outside] == 0.0).all()
    counts = []
    for image, lesion in zip(images[..., 0], lesions[..., 0], strict=True):
        counts.append(label(lesion).max())
        # Around a lesion there is tissue, neither air nor bone, and less bright.
        values = image[lesion > 0]
        assert values.min() > 0.4 and values.max() < 0.68 + 0.2
    assert set(counts) == {1, 2, 3}
    areas = lesions.sum(axis=(1, 2, 3)) / counts
    assert areas.min() > 4 and areas.max() < np.pi * (0.14 * 32) ** 2


def test_a_lesion_is_brighter_by_its_contrast(monkeypatch):
    """Without lesions, nothing is drawn after the texture: the difference is theirs."""
    rng = np.random.default_rng
    with_lesions = phantoms(8, 64, seed=1)
    monkeypatch.setattr(data, "LESION_CONTRAST", (0.0, 1e-9))
    without = phantoms(8, 64, seed=1)
    np.testing.assert_array_equal(without.lesions, with_lesions.lesions)
    difference = with_lesions.images - without.images
    inside = difference[with_lesions.lesions > 0]
    assert inside.min() > 0.04 and inside.max() <= 0.2 + 1e-6
    # The rim's pixels are lesion by less than half.
    assert difference[with_lesions.lesions == 0].max() <= 0.1 + 1e-6
    assert rng is np.random.default_rng


def test_a_phantom_depends_on_seed_and_place_only():
    few, many = phantoms(2, 32, seed=5), phantoms(4, 32, seed=5)
    np.testing.assert_array_equal(few.images, many.images[:2])
    np.testing.assert_array_equal(few.lesions, many.lesions[:2])
    assert not np.array_equal(few.images, phantoms(2, 32, seed=6).images)
    assert not np.array_equal(few.images[0], few.images[1])


# --- The scanner ------------------------------------------------------------------


@pytest.mark.parametrize("size", [16, 17])
def test_the_matrix_is_radon(recipe, size):
    from skimage.transform import radon

    rng = np.random.default_rng(0)
    places = np.arange(size) - size // 2
    circle = np.hypot(*np.meshgrid(places, places)) < size // 2
    images = rng.random((3, size, size)) * circle
    angles = np.array([0.0, 17.0, 45.0, 90.0, 133.0])
    matrix = recipe.projection_matrix(size, angles)
    sinograms = recipe.scan(images[..., None], matrix, 0.0, 0)
    for image, sinogram in zip(images, sinograms, strict=True):
        np.testing.assert_allclose(sinogram, radon(image, angles), atol=2e-4)


def test_noise_is_that_of_photons(recipe):
    matrix = recipe.projection_matrix(16, np.arange(0.0, 180.0, 6.0))
    image = np.zeros((200, 16, 16, 1))
    image[:, 6:10, 6:10] = 0.5
    clean = recipe.scan(image[:1], matrix, 0.0, 0)[0]
    noisy = recipe.scan(image, matrix, 1000.0, 0)
    again = recipe.scan(image, matrix, 1000.0, 0)
    np.testing.assert_array_equal(noisy, again)
    assert not np.array_equal(noisy, recipe.scan(image, matrix, 1000.0, 1))
    # The logarithm of a count n deviates by 1 / sqrt(n), n = photons e^-attenuation.
    scale = recipe.ATTENUATION / 16
    expected = 1 / np.sqrt(1000 * np.exp(-scale * clean)) / scale
    np.testing.assert_allclose(noisy.std(axis=0), expected, rtol=0.2)
    np.testing.assert_allclose(noisy.mean(axis=0), clean, atol=0.02)
    # A ray that lets nothing through counts as one photon.
    dark = recipe.scan(np.full((1, 16, 16, 1), 9.0), matrix, 10.0, 0)
    assert np.isfinite(dark).all()


# --- Classical methods ------------------------------------------------------------


def disc(size=16):
    places = np.arange(size) - size // 2
    return (np.hypot(*np.meshgrid(places, places)) < size / 3)[None, ..., None] * 0.5


def test_classical_methods_come_close(recipe):
    angles = np.arange(0.0, 180.0, 180 / 16)
    matrix = recipe.projection_matrix(16, angles)
    sinograms = recipe.scan(disc(), matrix, 0.0, 0)
    found = {
        "fbp": recipe.back_projected(sinograms, angles, "ramp"),
        "sart": recipe.sart(sinograms, angles, 8),
        "tv": recipe.total_variation(matrix, 16)(sinograms, 0.03),
    }
    ratios = {name: recipe.psnr(x, disc())[0] for name, x in found.items()}
    assert {x.shape for x in found.values()} == {(1, 16, 16, 1)}
    assert 20 < ratios["fbp"] < ratios["sart"] < ratios["tv"], ratios
    assert ratios["tv"] > 35, ratios


def test_total_variation_minimizes_what_it_says(recipe):
    """No small change of the result lowers the objective."""
    angles = np.array([0.0, 50.0, 110.0])
    matrix = recipe.projection_matrix(16, angles)
    sinograms = recipe.scan(phantoms(2, 16).images, matrix, 1e4, 0)
    solve = recipe.total_variation(matrix, 16, iterations=400)
    for weight in (0.1, 2.0):
        images = solve(sinograms, weight)
        assert images.min() >= 0.0

        def objective(image, sinogram, weight=weight):
            misfit = matrix @ image.ravel() - sinogram.ravel()
            right = np.diff(image, axis=1, append=image[:, -1:])
            below = np.diff(image, axis=0, append=image[-1:])
            return 0.5 * misfit @ misfit + weight * np.hypot(right, below).sum()

        rng = np.random.default_rng(0)
        for image, sinogram in zip(images[..., 0], sinograms, strict=True):
            image = image.astype("float64")
            least = objective(image, sinogram)
            for stddev in (0.03, 0.1):
                for _ in range(20):
                    changed = image + rng.normal(0, stddev, image.shape)
                    assert objective(np.maximum(changed, 0), sinogram) > least
            assert objective(0.97 * image, sinogram) > least
            assert objective(1.03 * image, sinogram) > least


def test_the_best_setting_is_chosen(recipe):
    def method(sinograms, value):
        return np.full((2, 4, 4, 1), value)

    images = np.full((2, 4, 4, 1), 0.55)
    assert recipe.best_setting(method, (0.1, 0.5, 0.9), None, images) == 0.5


# --- Scores -----------------------------------------------------------------------


def test_image_scores_by_hand(recipe):
    images = np.zeros((2, 8, 8, 1), "float32")
    found = np.full((2, 8, 8, 1), 0.1, "float32")
    found[1] = -3.0  # cut to 0.05 below by the phantom, and to 0 here
    images[1] = 0.01
    # -10 log10(0.1^2) = 20, and 40.
    np.testing.assert_allclose(recipe.psnr(found, images), [20.0, 40.0], atol=1e-3)
    scores = recipe.image_scores(found, images, "test_")
    assert scores["test_psnr"] == pytest.approx(30.0, abs=1e-3)
    # Without variance, SSIM is (2 m n + c) / (m^2 + n^2 + c), c = 0.01^2.
    expected = (1e-4 / (0.1**2 + 1e-4) + 1e-4 / (0.01**2 + 1e-4)) / 2
    assert scores["test_ssim"] == pytest.approx(expected, abs=1e-4)


def test_lesion_scores_by_hand(recipe):
    lesions = np.zeros((2, 8, 8, 1), "uint8")
    lesions[0, 0:2, 0:2] = lesions[0, 5:7, 5:7] = 1
    lesions[1, 3:5, 3:5] = 1
    found = np.zeros((2, 8, 8, 1), bool)
    found[0, 0:2, 0:3] = True  # 4 of its 6 pixels are right
    found[1, 3:5, 3] = True  # 2 of 2
    found[1, 7, 7] = found[1, 0, 0:2] = True  # two false regions
    scores = recipe.lesion_scores(found, lesions, "x_")
    first, second = 2 * 4 / (6 + 8), 2 * 2 / (5 + 4)
    assert scores["x_dice"] == pytest.approx((first + second) / 2)
    assert scores["x_dice_low"] == pytest.approx(second)  # of two phantoms
    assert scores["x_dice_high"] == pytest.approx(first)
    assert scores["x_lesions_found"] == pytest.approx(2 / 3)
    assert scores["x_false_regions"] == 1.0
    empty = np.zeros((8, 8, 1), bool)
    assert recipe.dice(empty, empty) == 1.0
    assert recipe.dice(empty, ~empty) == 0.0


def test_segmentation_loss_by_hand(recipe):
    y_true = np.zeros((2, 4, 4, 1), "float32")
    y_true[0, 0, 0] = 1.0
    y_pred = np.full((2, 4, 4, 1), 0.1, "float32")
    crossentropy = -(np.log(0.1) + 31 * np.log(0.9)) / 32
    dice = 2 * 0.1 / (1.0 + 3.2)
    loss = float(recipe.segmentation_loss(y_true, y_pred))
    assert loss == pytest.approx(crossentropy + 1.0 - dice, abs=1e-4)


def test_intervals_cover_the_mean(recipe):
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(100):
        values = recipe.with_interval("a", rng.normal(size=50))
        covered.append(values["a_low"] < 0.0 < values["a_high"])
    assert 0.88 <= np.mean(covered) <= 1.0


def test_threshold_by_hand(recipe):
    image = np.full((1, 16, 16, 1), 0.3)
    image[0, :, 8:] = 0.6  # an organ
    image[0, 4:6, 2:4] = 0.5  # a lesion outside of it
    image[0, 10:12, 10:12] = 0.9  # a bone
    bright = recipe.threshold(image, 0, 0.45, 0.8)[0, ..., 0]
    assert bright[:, 8:].sum() == 8 * 16 - 4 and bright[:, :8].sum() == 4
    small = recipe.threshold(image, 4, 0.1, 0.8)[0, ..., 0]
    assert small[4:6, 2:4].all() and small.sum() == 4
    lesions = np.zeros((1, 16, 16, 1), "uint8")
    lesions[0, 4:6, 2:4] = 1
    limits = recipe.best_limits(image, lesions)
    assert limits[0] > 0  # brightness alone finds the organ, too
    np.testing.assert_array_equal(recipe.threshold(image, *limits), lesions > 0)


# --- The recipe -------------------------------------------------------------------


def test_recipe_leaves_what_it_promises(recipe, tmp_path):
    record = recipe.main(output_dir=tmp_path, seed=1, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "segmentation.keras",
        "history.csv",
        "metrics.json",
        "learning_curve.png",
        "lesions.png",
        "reconstructions.png",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    images = {"test_psnr", "test_ssim"}
    lesions = {"test_lesions_found", "test_false_regions", "test_dice"}
    lesions |= {"test_dice_low", "test_dice_high"}
    gain = {f"test_gain_over_fbp{end}" for end in ("", "_low", "_high")}
    assert set(record["metrics"]) == images | lesions | gain | {"parameters"}
    expected = {f"{k}_{x}" for k in ("fbp", "sart", "tv") for x in images}
    assert set(record["baselines"]) == expected | {f"threshold_{x}" for x in lesions}
    gains = record["metrics"]["test_psnr"] - record["baselines"]["fbp_test_psnr"]
    assert record["metrics"]["test_gain_over_fbp"] == pytest.approx(gains)
    assert set(json.loads(json.dumps(record))["config"]) >= set(TINY) - {"verbose"}


def test_test_phantoms_are_no_training_phantoms(recipe):
    train, test = recipe.load_data("phantoms", 16, 4, 3, False, 7)
    _, same = recipe.load_data("phantoms", 16, 4, 3, False, 8)
    _, others = recipe.load_data("phantoms", 16, 4, 3, True, 7)
    np.testing.assert_array_equal(test.images, same.images)
    assert not np.array_equal(test.images, others.images)
    assert not np.array_equal(test.images, train.images[:3])


def write_medmnist(path, colour=False):
    rng = np.random.default_rng(0)
    shape = (28, 28, 3) if colour else (28, 28)
    parts = {
        f"{name}_images": rng.integers(0, 256, (number, *shape)).astype("uint8")
        for name, number in (("train", 30), ("val", 5), ("test", 6))
    }
    np.savez(path, **parts)
    return parts


@pytest.mark.parametrize("colour", [False, True])
def test_pictures_of_medmnist(recipe, tmp_path, monkeypatch, colour):
    monkeypatch.setattr(recipe.Path, "home", lambda: tmp_path)
    (tmp_path / ".medmnist").mkdir()
    parts = write_medmnist(tmp_path / ".medmnist" / "some.npz", colour)
    by_name = recipe.load_data("medmnist:some", 28, 20, 4, False, 0)
    path = tmp_path / ".medmnist" / "some.npz"
    by_path = recipe.load_data(f"medmnist:{path}", 28, 20, 4, False, 0)
    for found, same, name in zip(by_name, by_path, ("train", "test"), strict=True):
        assert found.lesions is None and found.images.dtype == "float32"
        np.testing.assert_array_equal(found.images, same.images)
        assert len(found.images) == (20 if name == "train" else 4)
        pixel = parts[f"{name}_images"][2, 14, 9] / 255
        grey = pixel @ [0.2125, 0.7154, 0.0721] if colour else pixel
        assert found.images[2, 14, 9, 0] == pytest.approx(grey, abs=1e-5)
        assert (found.images[:, 0, 0] == 0.0).all()  # outside of the circle
    _, held_out = recipe.load_data("medmnist:some", 28, 20, 9, True, 0)
    assert len(held_out.images) == 5
    # A run without lesions has no second network.
    options = {**TINY, "dataset": "medmnist:some", "epochs": 1}
    record = recipe.main(output_dir=tmp_path / "run", **options)
    assert not any("dice" in name for name in record["metrics"] | record["baselines"])
    assert not (tmp_path / "run" / "segmentation.keras").exists()
    assert (tmp_path / "run" / "reconstructions.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_phantoms": 0}, r"`train_phantoms` must be .*\[1, .*received 0"),
        ({"views": 0}, r"`views` must be .*\[1, .*received 0"),
        ({"size": 8}, r"`size` must be .*\[16, .*received 8"),
        ({"size": 17}, r"multiples of 2.*\(17, 17, 1\)"),
        ({"photons": -1.0}, "`photons` must be .*received -1.0"),
        ({"segment": "tv"}, "`segment` must be one of 'unet', 'fbp', received 'tv'"),
        ({"dataset": "brains"}, "'brains' must be 'phantoms' or 'medmnist:NAME'"),
        ({"dataset": "medmnist:none"}, "medmnist:none.*the path of an .npz file"),
    ],
)
def test_refuses(recipe, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(**{**TINY, "output_dir": tmp_path, **arguments})


def test_refuses_other_files(recipe, tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, train_images=np.zeros((3, 28, 28), "uint8"))
    with pytest.raises(ValueError, match=r"has no \['test_images'\]"):
        recipe.load_data(f"medmnist:{path}", 16, 1, 1, False, 0)
    volumes = np.zeros((3, 28, 28, 28), "uint8")
    np.savez(path, train_images=volumes, test_images=volumes)
    with pytest.raises(ValueError, match=r"\(N, height, width\).*\(1, 28, 28, 28\)"):
        recipe.load_data(f"medmnist:{path}", 16, 1, 1, False, 0)


def test_a_resumed_run_has_the_same_figures(recipe, tmp_path, monkeypatch):
    for name in ("draw_learning_curve", "draw_reconstructions", "draw_lesions"):
        monkeypatch.setattr(recipe, name, lambda *_: None)  # they take most of the time
    # Two epochs in one call each; then the segmentation's training.
    check_resumed_run(recipe.main, tmp_path, monkeypatch, (1, 2), **TINY)


@pytest.mark.learn
def test_removes_streaks(recipe, tmp_path):
    record = recipe.main(output_dir=tmp_path, verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["test_gain_over_fbp"] > 6.0
    assert metrics["test_psnr"] > baselines["tv_test_psnr"]
    assert metrics["test_dice_low"] > baselines["threshold_test_dice_high"]
    keras.saving.load_model(tmp_path / "model.keras")
