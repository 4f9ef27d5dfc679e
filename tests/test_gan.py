"""GAN: losses by hand, whose weights move, penalty, labels, measures, the recipe."""

import functools
import json

import keras
import numpy as np
import pytest
from keras import layers, ops

import kit
from kit.gan import (
    GAN,
    conv_discriminator,
    conv_generator,
    discriminator,
    generator,
)
from kit.lab.gan_metrics import classes_covered, frechet_distance, nearest_neighbours

X = np.random.default_rng(0).uniform(-1, 1, size=(32, 6)).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(x)


def small(num_classes=None, **kwargs):
    """A GAN of 6 numbers, with weights that are the same on every backend."""
    gan = GAN(
        generator((6,), 3, (8,), num_classes),
        discriminator((6,), (8,), num_classes),
        num_classes,
        **kwargs,
    )
    kit.initialize_weights(gan, 0)
    return gan


def linear(loss, **kwargs):
    """D(x) = 3 x_1 + 4 x_2 + 0.5, and G(z) = the constant tanh(1)."""
    z, x = keras.Input((2,)), keras.Input((2,))
    gan = GAN(
        keras.Model(z, layers.Dense(2, "tanh", name="g")(z)),
        keras.Model(x, layers.Dense(1, name="d")(x)),
        loss=loss,
        **kwargs,
    )
    gan.generator.set_weights([np.zeros((2, 2)), np.ones(2)])
    gan.discriminator.set_weights([np.array([[3.0], [4.0]]), np.array([0.5])])
    gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0))
    return gan


def sgd(gan, rate=0.1):
    gan.compile(keras.optimizers.SGD(rate), keras.optimizers.SGD(rate))
    return gan


# --- Losses -------------------------------------------------------------------


REAL = np.array([[1.0, 0.0], [0.0, -1.0]], "float32")
REAL_SCORES = np.array([3.5, -3.5])
FAKE_SCORE = 7 * np.tanh(1.0) + 0.5


def test_the_non_saturating_losses_by_hand():
    history = linear("non_saturating").fit(REAL, batch_size=2, verbose=0).history
    softplus = np.log1p(np.exp(-REAL_SCORES)).mean() + np.log1p(np.exp(FAKE_SCORE))
    assert history["discriminator_loss"][0] == pytest.approx(softplus, rel=1e-5)
    expected = np.log1p(np.exp(-FAKE_SCORE))
    assert history["generator_loss"][0] == pytest.approx(expected, rel=1e-3)
    assert history["real"][0] == pytest.approx(0.0, abs=1e-5)
    assert history["fake"][0] == pytest.approx(FAKE_SCORE, rel=1e-5)


@pytest.mark.parametrize("gradient_penalty", [0.0, 10.0, 2.0])
def test_the_wasserstein_losses_by_hand(gradient_penalty):
    gan = linear("wasserstein", gradient_penalty=gradient_penalty)
    history = gan.fit(REAL, batch_size=2, verbose=0).history
    # The slope of D is |(3, 4)| = 5 everywhere.
    expected = FAKE_SCORE - 0.0 + gradient_penalty * (5 - 1) ** 2
    assert history["discriminator_loss"][0] == pytest.approx(expected, rel=1e-5)
    assert history["generator_loss"][0] == pytest.approx(-FAKE_SCORE, rel=1e-5)


def test_the_penalty_brings_the_slope_to_one():
    gan = linear("wasserstein", gradient_penalty=10.0)
    gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.01))
    # Real is what the generator makes: nothing but the penalty is left.
    x = np.full((8, 2), np.tanh(1.0), "float32")
    gan.fit(x, batch_size=8, epochs=40, verbose=0)
    (slope, _) = gan.discriminator.get_weights()
    np.testing.assert_allclose(slope[:, 0], [0.6, 0.8], atol=0.01)


def test_the_penalty_is_taken_between_real_and_fake():
    # D(x) = |x|^2 has the slope 2 |x|; real lies at (2, 0), fake at (0, 0).
    z, x = keras.Input((2,)), keras.Input((2,))
    score = layers.Dense(1, use_bias=False)(ops.square(x))
    gan = GAN(
        keras.Model(z, layers.Dense(2)(z)), keras.Model(x, score), loss="wasserstein"
    )
    gan.generator.set_weights([np.zeros((2, 2)), np.zeros(2)])
    gan.discriminator.set_weights([np.ones((2, 1))])
    gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0))
    real = np.tile(np.array([2.0, 0.0], "float32"), (2000, 1))
    loss = gan.fit(real, batch_size=2000, verbose=0).history["discriminator_loss"][0]
    # Its mean over u in [0, 1] of (4 u - 1)^2 is 7 / 3; at the real ones alone it is 9.
    assert (loss - (0 - 4)) / 10 == pytest.approx(7 / 3, rel=0.1)


# --- Whose weights move -------------------------------------------------------


def with_statistics():
    """Both parts have running statistics, which a pass in training moves."""
    z, x = keras.Input((3,)), keras.Input((6,))
    hidden = layers.BatchNormalization(momentum=0.5)(layers.Dense(8)(z))
    made = layers.Dense(6)(layers.ReLU()(hidden))
    judged = layers.BatchNormalization(momentum=0.5)(layers.Dense(8)(x))
    score = layers.Dense(1)(layers.ReLU()(judged))
    gan = GAN(keras.Model(z, made), keras.Model(x, score))
    kit.initialize_weights(gan, 0)
    return gan


@pytest.mark.parametrize("loss", ["non_saturating", "wasserstein", "statistics"])
def test_each_step_moves_one_part_and_leaves_the_other(loss):
    gan = sgd(with_statistics() if loss == "statistics" else small(loss=loss))
    first = [gan.generator.get_weights(), gan.discriminator.get_weights()]
    kit.compiled(gan.train_discriminator)(X)
    second = [gan.generator.get_weights(), gan.discriminator.get_weights()]
    kit.compiled(lambda x: gan.train_generator(x.shape[0]))(X)
    third = [gan.generator.get_weights(), gan.discriminator.get_weights()]

    def moved(before, after):
        return [np.max(abs(a - b)) > 1e-6 for a, b in zip(before, after, strict=True)]

    assert not any(moved(first[0], second[0]))
    assert any(moved(first[1], second[1]))
    assert any(moved(second[0], third[0]))
    assert not any(moved(second[1], third[1]))
    if loss == "statistics":  # and their own statistics do move
        assert moved(first[1], second[1])[4:6] == [True, True]
        assert moved(second[0], third[0])[4:6] == [True, True]


@pytest.mark.once
def test_the_steps_are_as_many_as_asked_for():
    gan = sgd(small(discriminator_steps=3))
    gan.fit(X, batch_size=8, epochs=2, verbose=0)
    assert int(numpy(gan.generator_optimizer.iterations)) == 2 * 4
    assert int(numpy(gan.discriminator_optimizer.iterations)) == 2 * 4 * 3


def test_noise_is_fresh_in_each_step():
    gan = small()
    gan.compile(keras.optimizers.SGD(0.0), keras.optimizers.SGD(0.0))
    history = gan.fit(X[:8], batch_size=8, epochs=3, verbose=0).history
    assert len(set(history["fake"])) == 3


# --- Labels, samples, saving --------------------------------------------------


def test_a_conditional_gan_uses_the_labels():
    gan = sgd(small(num_classes=3))
    gan.fit(X, np.arange(32) % 3, batch_size=8, verbose=0)
    zero, one = gan.sample(4, [0] * 4), gan.sample(4, [1] * 4)
    assert np.max(abs(zero - one)) > 1e-3
    np.testing.assert_allclose(gan.sample(4), gan.sample(4, [0, 1, 2, 0]), rtol=1e-6)
    labels = np.eye(3, dtype="float32")
    x = np.repeat(X[:1], 3, axis=0)
    assert len(np.unique(numpy(gan.score(x, labels)).round(6))) == 3


def test_samples_belong_to_their_seed(monkeypatch):
    gan = small()
    sample = gan.sample(5, seed=3)
    assert sample.shape == (5, 6) and np.abs(sample).max() < 1
    np.testing.assert_array_equal(sample, gan.sample(5, seed=3))
    assert np.max(abs(sample - gan.sample(5, seed=4))) > 1e-3
    z = kit.random.normal(kit.random.key(3), (5, 3))
    np.testing.assert_allclose(sample, numpy(gan.generator(z)), rtol=1e-5)
    monkeypatch.setattr(kit.gan, "SAMPLES_AT_ONCE", 2)
    np.testing.assert_allclose(sample, gan.sample(5, seed=3), rtol=1e-5)


def test_fit_ends_on_the_average_of_the_weights():
    gan = small()
    gan.compile(
        keras.optimizers.SGD(0.1, use_ema=True, ema_momentum=1.0),
        keras.optimizers.SGD(0.1),
    )
    gan.fit(X, batch_size=8, verbose=0)
    # With a momentum of 1 the average stays where Keras begins it: at zero or start.
    averages = gan.generator_optimizer._model_variables_moving_average
    for weight, average in zip(
        gan.generator.trainable_variables, averages, strict=True
    ):
        np.testing.assert_allclose(numpy(weight), numpy(average))


def test_fit_without_a_step_leaves_the_weights():
    gan = small()
    gan.compile(keras.optimizers.Adam(use_ema=True), "adam")
    before = gan.get_weights()
    gan.fit(X, epochs=0, verbose=0)
    for a, b in zip(before, gan.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "options", [{}, {"num_classes": 3, "loss": "wasserstein", "discriminator_steps": 2}]
)
def test_a_saved_gan_goes_on_from_there(options, tmp_path):
    gan = small(**options)
    gan.compile(keras.optimizers.Adam(0.01, 0.5), keras.optimizers.Adam(0.02, 0.5))
    y = np.arange(32) % 3 if options else None
    gan.fit(X, y, batch_size=8, verbose=0)
    gan.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.sample(4), gan.sample(4), rtol=1e-5)
    assert loaded.get_config()["loss"] == options.get("loss", "non_saturating")
    assert loaded.discriminator_steps == options.get("discriminator_steps", 1)
    assert float(numpy(loaded.discriminator_optimizer.learning_rate)) == (
        pytest.approx(0.02)
    )
    # Moments, steps and the noise's generator came along.
    for model in (gan, loaded):
        keras.utils.set_random_seed(1)
        model.fit(X, y, batch_size=8, verbose=0)
    for a, b in zip(gan.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


# --- Builders -----------------------------------------------------------------


def test_the_first_architecture_is_100_128_784_and_784_128_1():
    sizes = [w.shape for w in generator().weights if len(w.shape) == 2]
    assert sizes == [(100, 128), (128, 784)]
    sizes = [w.shape for w in discriminator().weights if len(w.shape) == 2]
    assert sizes == [(784, 128), (128, 1)]
    assert generator().layers[-1].activation is keras.activations.tanh


@pytest.mark.parametrize("num_classes", [None, 3])
def test_convolutional_parts_fit_together_and_learn(num_classes):
    shape = (4, 8, 2)
    gan = GAN(
        conv_generator(shape, 5, (4, 3), num_classes),
        conv_discriminator(shape, (3,), num_classes),
        num_classes,
    )
    assert gan.generator.layers[-1].output.shape[1:] == shape
    sgd(gan)
    x = np.zeros((8, *shape), "float32")
    y = None if num_classes is None else np.arange(8) % 3
    history = gan.fit(x, y, batch_size=4, verbose=0).history
    assert all(np.isfinite(values).all() for values in history.values())
    assert gan.sample(3).shape == (3, *shape)


# --- Errors -------------------------------------------------------------------


def test_bad_arguments_are_named():
    parts = generator((6,), 3), discriminator((6,))
    with pytest.raises(TypeError, match=r"`generator` must be a keras.Model.*str"):
        GAN("generator", parts[1])
    with pytest.raises(ValueError, match=r"shape \(6,\), the discriminator.*\(5,\)"):
        GAN(parts[0], discriminator((5,)))
    with pytest.raises(ValueError, match=r"`discriminator` must give one score"):
        GAN(parts[0], keras.Model(*_two_scores()))
    with pytest.raises(ValueError, match=r"must be z, \(B, L\), received.*1, 3"):
        z = keras.Input((1, 3))
        GAN(keras.Model(z, layers.Dense(6)(layers.Flatten()(z))), parts[1])
    with pytest.raises(ValueError, match=r"num_classes=3, `generator`.*2 input"):
        GAN(*parts, num_classes=3)
    with pytest.raises(ValueError, match=r"`loss`.*'hinge'"):
        GAN(*parts, loss="hinge")
    with pytest.raises(ValueError, match=r"`gradient_penalty`.*-1"):
        GAN(*parts, gradient_penalty=-1)
    with pytest.raises(ValueError, match=r"`discriminator_steps`.*0"):
        GAN(*parts, discriminator_steps=0)
    with pytest.raises(ValueError, match=r"`latent_dim` must be .*\[1, .*received 0"):
        generator(latent_dim=0)
    with pytest.raises(ValueError, match=r"`filters` must be .*\[1, .*\(4, 0\)"):
        conv_discriminator(filters=(4, 0))
    with pytest.raises(ValueError, match=r"divisible by 4, received \(30, 28, 1\)"):
        conv_generator((30, 28, 1))
    with pytest.raises(
        ValueError, match=r"`input_shape` must be a sequence of 3.*\(784,\)"
    ):
        conv_discriminator((784,))
    adam = keras.optimizers.Adam()
    with pytest.raises(ValueError, match=r"the same one twice"):
        GAN(*parts).compile(adam, adam)


def _two_scores():
    x = keras.Input((6,))
    return x, layers.Dense(2)(x)


def test_bad_data_is_named():
    gan, conditional = sgd(small()), sgd(small(num_classes=3))
    y = np.arange(32) % 3
    with pytest.raises(ValueError, match=r"`x`.*\('N', 6\), received \(32, 5\)"):
        gan.fit(X[:, :5])
    with pytest.raises(ValueError, match=r"`x` must be finite"):
        gan.fit(np.where(X > 0.9, np.nan, X))
    with pytest.raises(ValueError, match=r"`x` must be finite"):
        gan.fit(ops.convert_to_tensor(np.full_like(X, np.nan)))
    with pytest.raises(ValueError, match=r"`x` must be in \[-1, 1\].*to 255"):
        gan.fit(np.full_like(X, 255.0))
    with pytest.raises(ValueError, match=r"`x`.*received \(0, 6\)"):
        gan.fit(X[:0])
    with pytest.raises(ValueError, match=r"`y`.*from 0 to 2.*received 1 to 3"):
        conditional.fit(X, ops.convert_to_tensor(y + 1))
    with pytest.raises(ValueError, match=r"`y` is given, but the model isn't cond"):
        gan.fit(X, y)
    with pytest.raises(ValueError, match=r"`y` must be 32 integers.*None"):
        conditional.fit(X)
    with pytest.raises(ValueError, match=r"`y`.*from 0 to 2.*received 1 to 3"):
        conditional.fit(X, y + 1)
    with pytest.raises(ValueError, match=r"`y`.*shape \(32, 3\)"):
        conditional.fit(X, np.eye(3)[y])
    with pytest.raises(ValueError, match=r"`labels`.*0 to 2, .*received 7 to 7"):
        conditional.sample(2, [7, 7])
    with pytest.raises(ValueError, match="`sample_weight` has no meaning"):
        gan.fit(X, sample_weight=np.ones(32), verbose=0)
    with pytest.raises(
        ValueError, match=r"`num` must be an integer in \[1, .*received 0"
    ):
        gan.sample(0)


# --- Measures -----------------------------------------------------------------


def test_a_collapsed_generator_is_told():
    varied = np.full((100, 10), 0.001) + 0.99 * np.eye(10)[np.arange(100) % 10]
    assert classes_covered(varied) == 10
    assert classes_covered(varied[np.arange(100) % 10 == 4]) == 1
    unsure = np.full((100, 10), 0.1)
    assert classes_covered(unsure) == 0
    # A single sample of a class does not cover it.
    few = np.concatenate([varied[np.arange(100) % 10 == 4]] * 20)[:199]
    assert classes_covered(np.concatenate([few, varied[:1]])) == 1
    with pytest.raises(ValueError, match="`probabilities`"):
        classes_covered(np.ones((4, 10)))


def test_frechet_distance_by_hand():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3))
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + [1.0, 2.0, 0.0]) == pytest.approx(5)
    # Independent numbers with variances 1 and 9: (1 - 3)^2.
    a = np.array([[-1.0], [1.0]]) / np.sqrt(2)
    assert frechet_distance(a, 3 * a + 1) == pytest.approx(4 + 1)
    scipy_linalg = pytest.importorskip("scipy.linalg")
    y = x @ rng.normal(size=(3, 3)) + 0.5
    a, b = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(
        a + b - 2 * np.real(scipy_linalg.sqrtm(a @ b))
    )
    assert frechet_distance(x, y) == pytest.approx(expected)
    with pytest.raises(
        ValueError, match=r"`other`.*\(M, F\).*F=3 as in `features`.*\(500, 2\)"
    ):
        frechet_distance(x, x[:, :2])
    with pytest.raises(ValueError, match=r"`other`.*\(-inf, inf\).*values from nan"):
        frechet_distance(x, np.full((5, 3), np.nan))


def test_nearest_neighbours_by_hand():
    references = np.array([[[0.0, 0.0]], [[3.0, 4.0]], [[10.0, 0.0]]])
    samples = np.array([[[0.0, 1.0]], [[3.0, 4.0]]])
    distances, indices = nearest_neighbours(samples, references)
    np.testing.assert_allclose(distances, [1.0, 0.0])
    assert indices.tolist() == [0, 1]
    with pytest.raises(
        ValueError, match=r"`references`.*\*E=\(1, 2\) as in `samples`.*\(3, 1\)"
    ):
        nearest_neighbours(samples, references[..., 0])


# --- Learning: a broken loss must fail ----------------------------------------


@pytest.mark.parametrize(
    ("learning_rate", "options"),
    [
        (5e-3, {}),
        (2e-3, dict(loss="wasserstein", gradient_penalty=1.0, discriminator_steps=3)),
    ],
)
def test_a_gan_finds_where_the_data_lies(learning_rate, options):
    rng = np.random.default_rng(0)
    x = (np.array([0.5, -0.3]) + 0.1 * rng.normal(size=(512, 2))).astype("float32")
    gan = GAN(
        generator((2,), 4, (16,), output_activation=None),
        discriminator((2,), (32,)),
        **options,
    )
    kit.initialize_weights(gan, 0)
    adam = keras.optimizers.Adam
    # The last weights circle around the data, their average lies in the middle.
    average = {"use_ema": True, "ema_momentum": 0.98}
    gan.compile(adam(learning_rate, 0.5, 0.9, **average), adam(1e-2, 0.5, 0.9))
    gan.fit(x, batch_size=64, epochs=50, verbose=0)
    samples = gan.sample(500)
    np.testing.assert_allclose(samples.mean(0), [0.5, -0.3], atol=0.08)
    assert (samples.std(0) < 0.25).all()


# --- The recipe ---------------------------------------------------------------

TINY = {
    "generator_filters": (2, 2, 2),
    "discriminator_filters": (2, 2),
    "latent_dim": 4,
    "units": (8,),
    "epochs": 1,
    "judge_epochs": 1,
    "vae_epochs": 1,
    "batch_size": 64,
    "num_samples": 100,
    "verbose": 0,
}


@pytest.fixture
def recipe(load_recipe, monkeypatch):
    module = load_recipe("gan")
    load = module.load_data

    def load_few(dataset):
        data = load(dataset)
        return type(data)(*(x[:: len(x) // 128] for x in data))

    monkeypatch.setattr(module, "load_data", load_few)
    small_cnn = functools.partial(kit.cnn, filters=(2, 2), units=(8,))
    monkeypatch.setattr(kit, "cnn", small_cnn)
    return module


@pytest.mark.once  # test_exchange.py runs it under each backend
def test_the_recipe_leaves_what_it_promises(recipe, tmp_path, capsys):
    recipe.main(conditional=True, output_dir=tmp_path, seed=1, **TINY)
    names = {"model.keras", "history.csv", "metrics.json"}
    names |= {"samples.png", "learning_curve.png", "nearest.png", "samples"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert (tmp_path / "samples" / "epoch_001.png").stat().st_size > 500
    record = json.loads((tmp_path / "metrics.json").read_text())
    metrics, baselines = record["metrics"], record["baselines"]
    assert {"digits_covered", "frechet_distance", "judge_test_accuracy"} <= set(metrics)
    assert {"asked_digit_accuracy", "nearest_distance", "copied_share"} <= set(metrics)
    assert {"real_frechet_distance", "vae_frechet_distance"} <= set(baselines)
    assert metrics["frechet_distance"] > baselines["real_frechet_distance"]
    assert record["throughput"]["unit"] == "samples/s"
    assert capsys.readouterr().out == ""
    gan = keras.saving.load_model(tmp_path / "model.keras")
    assert gan.sample(2).shape == (2, 28, 28, 1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", 0), ("num_samples", 2000), ("batch_size", 0), ("architecture", "x")],
)
def test_the_recipe_names_what_it_cannot_do(recipe, name, value, tmp_path):
    with pytest.raises(
        ValueError, match=rf"gan: `{name}` must be .*received '?{value}"
    ):
        recipe.main(**{**TINY, name: value}, output_dir=tmp_path)


@pytest.mark.learn
def test_the_recipe_covers_all_digits_and_beats_the_autoencoder(load_recipe, tmp_path):
    record = load_recipe("gan").main(output_dir=tmp_path, verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["digits_covered"] == 10
    assert metrics["frechet_distance"] < baselines["vae_frechet_distance"]
    assert metrics["copied_share"] < 0.05
    assert metrics["judge_test_accuracy"] > 0.97
