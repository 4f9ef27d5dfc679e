"""The convolutional network, its augmentation, and the recipe."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.cnn import RandomAffine

TINY = {
    "filters": (4,),
    "units": (),
    "epochs": 1,
    "batch_size": 400,
    "svc_examples": 100,
    "verbose": 0,
}


# --- The network ----------------------------------------------------------------


def test_default_is_the_architecture_of_the_tutorial():
    model = kit.cnn()
    kinds = [type(layer).__name__ for layer in model.layers]
    convolutions = ["Conv2D", "MaxPooling2D", "Conv2D", "MaxPooling2D", "Conv2D"]
    assert kinds == [*convolutions, "Flatten", "Dense", "Dense"]
    # 28 - 2 = 26, / 2 = 13, - 2 = 11, / 2 = 5, - 2 = 3: 9 places of 64 filters.
    sizes = [9 * 32 + 32, 9 * 32 * 64 + 64, 9 * 64 * 64 + 64, 576 * 64 + 64, 650]
    assert model.count_params() == sum(sizes)
    probabilities = ops.convert_to_numpy(model(np.ones((3, 28, 28, 1), "float32")))
    assert probabilities.shape == (3, 10)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1.0, atol=1e-5)


def test_options():
    model = kit.cnn(
        (8, 8, 3), 2, (4, 4), dropout=0.5, padding="same", batch_normalization=True
    )
    kinds = [type(layer).__name__ for layer in model.layers]
    normalized = ["Conv2D", "BatchNormalization", "ReLU"]
    dense = ["Dropout", "Dense", "Dropout", "Dense"]
    assert kinds == [*normalized, "MaxPooling2D", *normalized, "Flatten", *dense]
    assert model.layers[4].output.shape == (None, 4, 4, 4)  # halved by pooling only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (28, 28)}, r"input_shape.*\(28, 28\)"),
        ({"padding": "full"}, "padding.*'valid', 'same'.*'full'"),
        ({"input_shape": (12, 12, 1)}, r"\(12, 12, 1\).*convolution 3 of 3"),
        ({"filters": (1,) * 9, "padding": "same"}, "convolution 6 of 9"),
    ],
)
def test_refuses_what_it_cannot_build(arguments, message):
    with pytest.raises(ValueError, match=message):
        kit.cnn(**arguments)


# --- Augmentation ---------------------------------------------------------------

IMAGE = np.arange(1.0, 10.0, dtype="float32").reshape(1, 3, 3, 1)


def changed(monkeypatch, image=IMAGE, draw=1.0, **factors):
    """What the layer makes of an image where every draw is its largest."""
    monkeypatch.setattr(
        keras.random, "uniform", lambda shape, *_, **__: ops.full(shape, draw)
    )
    layer = RandomAffine(**factors)
    return ops.convert_to_numpy(layer(image, training=True))[0, :, :, 0]


@pytest.mark.parametrize(
    ("factors", "expected"),
    [
        ({}, [[1, 2, 3], [4, 5, 6], [7, 8, 9]]),
        # One pixel up and to the left: from below and from the right.
        ({"translation_factor": 1 / 3}, [[5, 6, 0], [8, 9, 0], [0, 0, 0]]),
        (
            {"translation_factor": 1 / 3, "fill_mode": "nearest"},
            [[5, 6, 6], [8, 9, 9], [8, 9, 9]],
        ),
        # A sixth is half a pixel: the mean of four, those outside being zero.
        (
            {"translation_factor": 1 / 6},
            [[3, 4, 2.25], [6, 7, 3.75], [3.75, 4.25, 2.25]],
        ),
        # A quarter turn: (y, x) from (x, -y).
        ({"rotation_factor": 0.25}, [[3, 6, 9], [2, 5, 8], [1, 4, 7]]),
        # The upper row from one pixel to the left, the lower one from the right.
        ({"shear_factor": 1.0 - 1e-7}, [[0, 1, 2], [4, 5, 6], [8, 9, 0]]),
        # Places 1.5 times as far from the centre: beyond the rim by half a pixel.
        (
            {"zoom_factor": 0.5},
            [[0.25, 1, 0.75], [2, 5, 3], [1.75, 4, 2.25]],
        ),
    ],
)
def test_affine_by_hand(monkeypatch, factors, expected):
    result = changed(monkeypatch, **factors)
    np.testing.assert_allclose(result, expected, atol=1e-4)


def test_each_image_and_each_channel_is_its_own():
    images = np.random.default_rng(0).random((4, 7, 5, 3)).astype("float32")
    unchanged = ops.convert_to_numpy(RandomAffine()(images, training=True))
    np.testing.assert_allclose(unchanged, images, atol=1e-6)
    layer = RandomAffine(translation_factor=0.4, elastic_stddev=0.5, seed=1)
    together = ops.convert_to_numpy(layer(images, training=True))
    layer = RandomAffine(translation_factor=0.4, elastic_stddev=0.5, seed=1)
    channel = ops.convert_to_numpy(layer(images[..., 1:2], training=True))
    np.testing.assert_allclose(together[..., 1:2], channel, atol=1e-6)
    same = ops.convert_to_numpy(layer(images[[0, 0, 0, 0]], training=True))
    assert len(np.unique(same[:, 3, 2, 0])) == 4


def test_elastic_warp_moves_smoothly():
    layer = RandomAffine(elastic_stddev=1.0, seed=0)
    y, x = (ops.convert_to_numpy(a) for a in layer._draw_sources(200, 28, 28))
    down, right = y - np.arange(28)[:, None], x - np.arange(28)
    assert 0.4 < down.std() < 1.0 and 0.4 < right.std() < 1.0
    assert abs(np.corrcoef(down.ravel(), right.ravel())[0, 1]) < 0.05
    assert np.abs(np.diff(down, axis=1)).max() < 0.7  # pixels, between neighbours


def test_nothing_changes_outside_of_training():
    images = np.arange(32, dtype="uint8").reshape(2, 4, 4, 1)
    layer = RandomAffine(rotation_factor=0.2, elastic_stddev=1.0)
    for result in (layer(images), layer(images, training=False)):
        np.testing.assert_array_equal(ops.convert_to_numpy(result), images)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rotation_factor": -0.1}, "rotation_factor.*-0.1"),
        ({"zoom_factor": 1.0}, r"zoom_factor.*\[0, 1\).*1.0"),
        ({"fill_mode": "reflect"}, "fill_mode.*'nearest'.*'reflect'"),
    ],
)
def test_affine_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        RandomAffine(**arguments)


def test_affine_wants_images():
    with pytest.raises(ValueError, match=r"RandomAffine.*\(2, 28, 28\)"):
        RandomAffine()(np.zeros((2, 28, 28)))


def test_affine_is_saved_with_its_model(tmp_path):
    layer = RandomAffine(0.1, 0.2, 0.3, 0.4, 0.5, fill_mode="nearest", seed=6, name="a")
    model = kit.Sequential([keras.Input((4, 4, 1)), layer])
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config() == layer.get_config()
    images = np.random.default_rng(0).random((2, 4, 4, 1)).astype("float32")
    np.testing.assert_allclose(
        ops.convert_to_numpy(loaded(images, training=True)),
        ops.convert_to_numpy(model(images, training=True)),
        atol=1e-6,
    )


class Probe(keras.layers.Layer):
    """Notes the weighted sum of its inputs, for each training step."""

    def build(self, input_shape):
        zeros = {"initializer": "zeros", "trainable": False}
        self.sums = self.add_weight(shape=(12,), **zeros)
        self.step = self.add_weight(shape=(), dtype="float32", **zeros)

    def call(self, inputs, training=None):
        if training:
            weights = np.cos(np.arange(np.prod(inputs.shape))).astype("float32")
            weights = ops.convert_to_tensor(weights.reshape(inputs.shape))
            total = ops.sum(inputs * weights)
            here = ops.cast(ops.equal(ops.arange(12.0), self.step.value), "float32")
            self.sums.assign_add(here * total)
            self.step.assign_add(1.0)
        return inputs


@pytest.mark.parametrize(
    "layer",
    [
        RandomAffine(rotation_factor=0.1),
        RandomAffine(elastic_stddev=1.0),
        keras.layers.RandomFlip(),
    ],
    ids=["affine", "elastic", "flip"],
)
@pytest.mark.parametrize("steps_per_execution", [1, 3])
def test_every_step_of_fit_draws_anew(layer, steps_per_execution):
    layer = type(layer).from_config({**layer.get_config(), "seed": 0})
    probe = Probe()
    model = kit.Sequential(
        [keras.Input((6, 6, 1)), layer, probe, keras.layers.GlobalAveragePooling2D()]
    )
    model.compile("sgd", "mse", steps_per_execution=steps_per_execution)
    image = np.random.default_rng(0).random((1, 6, 6, 1))
    x = np.repeat(image, 48, axis=0)  # the same batch in each step
    model.fit(x, np.zeros((48, 1)), batch_size=16, epochs=4, verbose=0)
    assert float(ops.convert_to_numpy(probe.step.value)) == 12
    assert len(np.unique(ops.convert_to_numpy(probe.sums.value))) == 12


# --- Training -------------------------------------------------------------------


def squares(number=96):
    """Bright and dark spots, at random places: two classes."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, number)
    x = np.full((number, 8, 8, 1), 128, "uint8")
    for image, label in zip(x, y, strict=True):
        row, column = rng.integers(1, 5, 2)
        image[row : row + 3, column : column + 3] = 255 * label
    return x, y


def fit_spots(sequential, *changes, epochs):
    network = kit.cnn((8, 8, 1), 2, (8, 8), units=(8,), batch_normalization=True)
    scale = keras.layers.Rescaling(1 / 255)
    model = sequential([keras.Input((8, 8, 1)), scale, *changes, network])
    kit.initialize_weights(model, 0)
    model.compile(
        keras.optimizers.Adam(1e-2),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    x, y = squares()
    # The rest of 96 - 2 * 40 makes a third program, of another batch size.
    return model.fit(x, y, batch_size=40, epochs=epochs, shuffle=False, verbose=0)


def test_learns_what_keras_own_fit_learns():
    own = fit_spots(kit.Sequential, epochs=3).history
    of_keras = fit_spots(keras.Sequential, epochs=3).history
    np.testing.assert_allclose(own["loss"], of_keras["loss"], rtol=2e-3)
    assert own["loss"][-1] < own["loss"][0]


@pytest.mark.variants
@pytest.mark.parametrize("sequential", [kit.Sequential, keras.Sequential])
def test_learns_from_changed_images(sequential):
    change = RandomAffine(translation_factor=0.1, elastic_stddev=0.2, seed=0)
    history = fit_spots(sequential, change, epochs=12).history
    assert history["accuracy"][-1] > 0.95


# --- The recipe -----------------------------------------------------------------


def test_recipe_leaves_what_it_promises(load_recipe, tmp_path, capsys, few_digits):
    recipe = load_recipe("cnn")
    recipe.main(output_dir=tmp_path, seed=1, validation=0.5, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "classes.json",
        "history.csv",
        "metrics.json",
        "confusion_matrix.png",
        "mistakes.png",
        "augmentation.png",
    }
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert set(record["metrics"]) == {"test_accuracy", "validation_accuracy"}
    assert set(record["baselines"]) == {"svc_test_accuracy"}
    assert record["baselines"]["svc_test_accuracy"] > 0.5
    assert record["throughput"]["unit"] == "samples/s"
    assert record["throughput"]["value"] > 0
    assert record["compile_seconds"] > 0
    assert record["config"]["filters"] == [4]
    assert capsys.readouterr().out == ""

    # Raw images are all that the saved model needs, and it leaves them as they are.
    model = keras.saving.load_model(tmp_path / "model.keras")
    y_pred = model.predict(few_digits.x_test, verbose=0).argmax(axis=1)
    assert json.loads((tmp_path / "classes.json").read_text()) == list("0123456789")
    assert np.mean(y_pred == few_digits.y_test) == record["metrics"]["test_accuracy"]


@pytest.mark.once
@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "x_test",
            lambda x: x / 255,
            "`x_test` must hold numbers from 0 to 255.* 1.0.*",
        ),
        ("x_train", lambda x: x - 1.0, "`x_train` must .* from -1.0 to 254.0"),
        ("x_train", lambda x: x * np.nan, "`x_train` must .* from nan"),
        ("x_test", lambda x: x[..., 0], r"`x_test` must be images .*\(40, 28, 28\)"),
        ("x_test", lambda x: x[:, 1:], r"`x_test` must be .*\(40, 27, 28, 1\)"),
        ("y_test", lambda y: y + 1, r"`y_test` must .* 0 to 9 .*classes \[1, 2.*10\]"),
        ("y_train", lambda y: y[:, None], r"`y_train` must .*shape \(200, 1\)"),
        ("y_train", lambda y: y[1:], r"`y_train` must .*200 images.*shape \(199,\)"),
        ("y_train", lambda y: y.astype(str), r"`y_train` must .*classes \['0', "),
    ],
)
def test_recipe_refuses_data(
    load_recipe, tmp_path, few_digits, monkeypatch, part, change, message
):
    recipe = load_recipe("cnn")
    data = few_digits._replace(**{part: change(getattr(few_digits, part))})
    monkeypatch.setattr(recipe, "images", lambda name: data)
    with pytest.raises(ValueError, match=f"load_data: {message}"):
        recipe.main(output_dir=tmp_path, **TINY)


def colour_images(monkeypatch):
    """CIFAR-10 as Keras gives it, but few images."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (40, 32, 32, 3), dtype="uint8")
    y = np.arange(40, dtype="uint8").reshape(-1, 1) % 10
    data = ((x, y), (x[:20], y[:20]))
    monkeypatch.setattr(keras.datasets.cifar10, "load_data", lambda: data)


def test_recipe_takes_colour_images(load_recipe, tmp_path, monkeypatch):
    colour_images(monkeypatch)
    options = {**TINY, "batch_size": 20}
    record = load_recipe("cnn").main(dataset="cifar10", output_dir=tmp_path, **options)
    assert 0.0 <= record["metrics"]["test_accuracy"] <= 1.0
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert model.input_shape == (None, 32, 32, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs=0 must be at least 1"),
        ({"batch_size": 0}, "batch_size=0 must be at least 1"),
        ({"validation": 1.0}, r"validation=1.0 must be in \[0, 1\)"),
        ({"svc_examples": 1}, "svc_examples=1 must be at least"),
        ({"dataset": "imagenet"}, "mnist_5k.*received 'imagenet'"),
    ],
)
def test_recipe_refuses(load_recipe, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("cnn").main(**{**TINY, "output_dir": tmp_path, **arguments})


def test_recipe_names_the_offline_choice(load_recipe, tmp_path, monkeypatch):
    def fail():
        raise Exception("URL fetch failure on https://example.org: None")

    monkeypatch.setattr(keras.datasets.fashion_mnist, "load_data", fail)
    with pytest.raises(OSError, match="fashion_mnist.*URL fetch failure.*'mnist_5k'"):
        load_recipe("cnn").main(dataset="fashion_mnist", output_dir=tmp_path, **TINY)


def test_mistakes_can_be_none(load_recipe, tmp_path):
    recipe = load_recipe("cnn")
    run = kit.lab.run.Run("cnn", output_dir=tmp_path)
    x, y = np.zeros((3, 4, 4, 1)), np.arange(3)
    recipe.draw_mistakes(run, x, y, np.eye(3), list("abc"))
    recipe.draw_confusion_matrix(run, y, y, list("abc"))
    assert (tmp_path / "mistakes.png").stat().st_size > 1000
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 1000


@pytest.mark.learn
def test_learns_digits(load_recipe, tmp_path):
    records = [
        load_recipe("cnn").main(seed=seed, output_dir=tmp_path, verbose=0)
        for seed in range(3)
    ]
    accuracies = [record["metrics"]["test_accuracy"] for record in records]
    assert np.mean(accuracies) >= 0.985, accuracies
    for record in records:  # the same in each run, and what the goal was set against
        assert record["baselines"]["svc_test_accuracy"] == pytest.approx(
            0.959, abs=5e-3
        )
