"""recipes/augment.py: labelled images, training sets, intervals, the whole recipe."""

import csv
import json

import keras
import numpy as np
import pytest
from scipy import stats

import kit
from kit.data.vision import Split
from kit.lab.few_labels import draw_labelled, mean_and_half_width, restarter

TINY = {
    "labels": (4, 2),
    "num_images": 80,
    "batch_size": 40,
    "filters": (2, 2),
    "units": (),
    "epochs": 2,
    "latent_dim": 3,
    "generator_filters": (3, 2),
    "discriminator_filters": (2, 3),
    "gan_epochs": 1,
    "seeds": 2,
    "verbose": 0,
}


@pytest.fixture
def recipe(few_digits, load_recipe):
    return load_recipe("augment")


def numbered(per_class=30, classes=3):
    """Images of 8x8 pixels, all of one value, and each value once."""
    number = per_class * classes
    values = (np.arange(number) + 1) / (number + 1)
    x = np.broadcast_to(values[:, None, None, None], (number, 8, 8, 1))
    y = np.arange(number, dtype="int32") % classes
    return Split(x.astype("float32"), y, x[:9].astype("float32"), y[:9])


# --- Data -------------------------------------------------------------------------


@pytest.mark.once
def test_shrinks_by_means(recipe):
    x = np.arange(2 * 4 * 8 * 3, dtype="float32").reshape(2, 4, 8, 3)
    shrunk = recipe.shrink_images(x, 2)
    assert shrunk.shape == (2, 2, 4, 3)
    np.testing.assert_allclose(shrunk[1, 0, 2], x[1, :2, 4:6].mean(axis=(0, 1)))
    np.testing.assert_array_equal(recipe.shrink_images(x, 1), x)
    with pytest.raises(ValueError, match="`shrink` must divide.*4 and 8, received 3"):
        recipe.shrink_images(x, 3)


@pytest.mark.once
def test_validation_images_are_no_training_images(recipe, few_digits):
    data = recipe.load_data("mnist_5k", 2, False)
    held_out = recipe.load_data("mnist_5k", 2, True)
    assert data.x_train.shape == (200, 14, 14, 1) and data.x_test.shape[0] == 40
    assert data.x_train.min() == 0.0 and 0.9 < data.x_train.max() <= 1.0
    np.testing.assert_array_equal(held_out.x_train, data.x_train[:150])
    np.testing.assert_array_equal(held_out.x_test, data.x_train[150:])
    np.testing.assert_array_equal(held_out.y_test, few_digits.y_train[150:])


@pytest.mark.once
def test_draws_as_many_of_each_class(recipe):
    data = numbered()
    x, y = draw_labelled(data.x_train, data.y_train, 4, seed=1)
    assert y.tolist() == [0, 1, 2] * 4  # they take turns
    assert len(np.unique(x[:, 0, 0, 0])) == 12
    by_value = dict(zip(data.x_train[:, 0, 0, 0], data.y_train, strict=True))
    assert [by_value[value] for value in x[:, 0, 0, 0]] == y.tolist()
    more, _ = draw_labelled(data.x_train, data.y_train, 9, seed=1)
    np.testing.assert_array_equal(more[:12], x)
    other, _ = draw_labelled(data.x_train, data.y_train, 4, seed=2)
    assert not np.array_equal(other, x)


def test_the_ways_make_as_many_images(recipe):
    data = numbered()
    x, y = draw_labelled(data.x_train, data.y_train, 4, seed=1)
    x = x * np.pad(np.ones((1, 4, 4, 1), "float32"), ((0, 0), (2, 2), (2, 2), (0, 0)))
    asked = np.array([2, 1, 0, 2, 1, 0, 2, 1, 0, 2], "int32")
    samples = np.zeros((10, 8, 8, 1), "float32")
    samples[:, 2:6, 2:6] = 2.0 + asked[:, None, None, None]
    sets = recipe.training_sets(x, y, samples, asked, 30, seed=0)
    assert list(sets) == ["none", "classical", "gan", "both"]
    for images, classes in sets.values():
        assert images.shape == (30, 8, 8, 1) and classes.shape == (30,)
    images, classes = sets["none"]
    np.testing.assert_array_equal(images, np.concatenate([x, x, x])[:30])
    np.testing.assert_array_equal(classes, np.concatenate([y, y, y])[:30])
    changed, classes = sets["classical"]
    np.testing.assert_array_equal(changed[:12], x)
    np.testing.assert_array_equal(classes, sets["none"][1])
    # The others are changed, but still of their image: no brighter, nothing added.
    copies = images[12:]
    assert (np.abs(changed[12:] - copies).max(axis=(1, 2, 3)) > 0.05).mean() > 0.8
    assert (changed.max(axis=(1, 2, 3)) <= images.max(axis=(1, 2, 3)) + 1e-5).all()
    half = images, classes = sets["gan"]
    np.testing.assert_array_equal(images[:20], sets["none"][0][:20])
    np.testing.assert_array_equal(images[20:], samples)
    np.testing.assert_array_equal(classes[20:], asked)
    both, classes = sets["both"]
    np.testing.assert_array_equal(classes, half[1])
    np.testing.assert_array_equal(both[:20], changed[:20])
    assert np.abs(both[20:] - samples).max() > 0.1
    found = both[20:].max(axis=(1, 2, 3))
    assert (np.abs(found - (2 + asked)) < 0.8).all()  # each of the sample it is of
    again = recipe.training_sets(x, y, samples, asked, 30, seed=0)["classical"][0]
    np.testing.assert_array_equal(again, changed)
    other = recipe.training_sets(x, y, samples, asked, 30, seed=1)["classical"][0]
    assert not np.array_equal(other, changed)


def test_a_restart_forgets_everything(recipe):
    x, y = np.random.default_rng(0).random((20, 8, 8, 1), "float32"), np.arange(20) % 2
    model = kit.cnn((8, 8, 1), 2, (2,), units=(), dropout=0.3, batch_normalization=True)
    schedule = keras.optimizers.schedules.CosineDecay(0.1, 6)
    model.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    restart = restarter(model, (model.optimizer,))
    losses = []
    for seed in (0, 1, 0):
        restart(seed)
        logs = model.fit(x, y, batch_size=10, epochs=3, verbose=0)
        losses.append(logs.history["loss"])
        assert int(model.optimizer.iterations) == 6
    assert losses[0] == losses[2] != losses[1]


# --- Scores -----------------------------------------------------------------------


@pytest.mark.once
def test_intervals_by_hand(recipe):
    mean, half = mean_and_half_width([0.8, 0.9, 1.0])
    # The standard error is 0.1 / sqrt(3); t at 97.5 % with two degrees is 4.303.
    assert mean == pytest.approx(0.9)
    assert half == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert mean_and_half_width([0.7]) == (0.7, 0.0)


@pytest.mark.once
def test_gains_are_of_the_same_labelled_images(recipe):
    scores = {
        "none": {20: [0.5, 0.7], 50: [0.8]},
        "classical": {20: [0.6, 0.9], 50: [0.85]},
        "gan": {20: [0.6, 0.8], 50: [0.7]},
        "both": {20: [0.7, 0.9], 50: [0.95]},
        "asked_digit": {20: [0.5, 0.6], 50: [1.0]},
        "copied": {20: [0.1, 0.3], 50: [0.0]},
    }
    metrics, baselines = recipe.figures(scores, "test_accuracy")
    assert metrics["gan_gain"] == pytest.approx(0.1)  # exactly, for both seeds
    assert metrics["gan_gain_low"] == pytest.approx(metrics["gan_gain_high"])
    assert metrics["both_gain"] == pytest.approx(0.05)
    half = stats.t.ppf(0.975, 1) * 0.05
    assert metrics["both_gain_low"] == pytest.approx(0.05 - half)
    assert metrics["both_gain_high"] == pytest.approx(0.05 + half)
    assert metrics["gan_gain_50"] == pytest.approx(-0.1)
    assert metrics["both_gain_50"] == pytest.approx(0.1)
    assert metrics["both_test_accuracy"] == pytest.approx(0.8)
    assert metrics["copied_share"] == pytest.approx(0.2)
    assert baselines["classical_test_accuracy"] == pytest.approx(0.75)
    assert baselines["none_test_accuracy_50"] == pytest.approx(0.8)
    assert "gan_gain_50_low" not in metrics  # one seed has no interval


@pytest.mark.once
def test_copies_are_found(recipe):
    rng = np.random.default_rng(0)
    x, unseen = rng.random((50, 8, 8, 1)), rng.random((100, 8, 8, 1))
    assert recipe.copied_share(x[:10] + 0.01, x, unseen) == 1.0
    assert recipe.copied_share(rng.random((100, 8, 8, 1)), x, unseen) < 0.1
    half = np.concatenate([x[:5], 1 - unseen[:5]])
    assert recipe.copied_share(half, x, unseen) == 0.5


# --- The recipe -------------------------------------------------------------------


def test_the_gan_sees_the_labelled_images_alone(recipe, tmp_path, monkeypatch):
    seen, fit = [], kit.GAN.fit

    def record(self, x, y, **options):
        seen.append((x, y))
        return fit(self, x, y, **options)

    monkeypatch.setattr(recipe.GAN, "fit", record)
    one = {**TINY, "labels": (2,), "seeds": 1, "epochs": 1}
    recipe.main(output_dir=tmp_path, seed=4, **one)
    [(x, y)] = seen
    data = recipe.load_data("mnist_5k", 2, False)
    labelled, classes = draw_labelled(data.x_train, data.y_train, 2, seed=4)
    assert len(labelled) == 20
    np.testing.assert_allclose(x, np.tile(2 * labelled - 1, (4, 1, 1, 1)), atol=1e-6)
    np.testing.assert_array_equal(y, np.tile(classes, 4))


@pytest.mark.once  # test_exchange.py runs it under each backend
def test_recipe_leaves_what_it_promises(recipe, tmp_path, capsys):
    record = recipe.main(output_dir=tmp_path, seed=1, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "gan.keras",
        "history.csv",
        "metrics.json",
        "augmentation.png",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    metrics, baselines = record["metrics"], record["baselines"]
    for end in ("", "_4"):  # two labels are the fewest: without a number
        assert {f"gan_gain{end}", f"both_gain{end}_low"} <= set(metrics)
        assert f"classical_test_accuracy{end}" in baselines
    assert recipe.COMPARISON["score"] in metrics
    assert 0 <= baselines["all_labels_test_accuracy"] <= 1
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    # All labels, and four ways at two numbers of labels with two seeds.
    assert len(rows) == 2 * (1 + 4 * 2 * 2)
    last = [x for x in rows if x["way"] == "both" and x["labels"] == "4"]
    scores = [float(x["test_accuracy"]) for x in last if x["test_accuracy"]]
    mean = pytest.approx(metrics["both_test_accuracy_4"])
    assert len(scores) == 2 and np.mean(scores) == mean
    # The saved classifier is that of both, with the most labels and the first seed.
    data = recipe.load_data("mnist_5k", 2, False)
    model = keras.saving.load_model(tmp_path / "model.keras")
    found = model.predict(data.x_test, verbose=0).argmax(axis=1)
    assert np.mean(found == data.y_test) == pytest.approx(scores[0])
    gan = keras.saving.load_model(tmp_path / "gan.keras")
    assert gan.sample(3).shape == (3, 14, 14, 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"labels": ()}, "`labels` must be"),
        ({"labels": (2, 500)}, r"`labels` must be .*received \[2, 500\]"),
        ({"labels": (1,)}, r"`labels` must be .*\[2, .*received \[1\]"),
        ({"num_images": 79}, r"`num_images` must be .*\[80, .*received 79"),
        ({"batch_size": 81}, r"`batch_size` must be .*80\], received 81"),
        ({"batch_size": 0}, "`batch_size` must be .*received 0"),
        ({"shrink": 3}, "`shrink` must divide.*28 and 28, received 3"),
        ({"shrink": 0}, "`shrink` must be .*received 0"),
        ({"sample_share": 1.0}, r"`sample_share` must be .*received 1\.0"),
        ({"seeds": 0}, "`seeds` must be .*received 0"),
        ({"gan_epochs": 0}, "`gan_epochs` must be .*received 0"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be .*received 0\.0"),
        ({"generator_filters": (3,)}, "`generator_filters` must be .*received"),
    ],
)
@pytest.mark.once
def test_recipe_refuses(recipe, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(**{**TINY, "output_dir": tmp_path, **arguments})
    assert not list(tmp_path.iterdir())
