"""Autoencoders: their losses by hand, their noise, what they learn, the recipe."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.autoencoder import (
    Autoencoder,
    DenoisingAutoencoder,
    VariationalAutoencoder,
    autoencoder,
    bernoulli_loss,
    decoder,
    draw_code,
    encoder,
    gaussian_loss,
    kl_divergence,
)

# What the JAX backend draws.
SAMPLED = [0.4807451, 0.51367646]
CORRUPTED = [[0.15953414, -0.15083432, -0.4564564]]

X = np.random.default_rng(0).uniform(size=(64, 6)).astype("float32")


def small(kind, latent_dim=2, units=(8,), **kwargs):
    """A model of 6 numbers, with weights that are the same on every backend."""
    variational = kind is VariationalAutoencoder
    model = kind(
        encoder((6,), latent_dim, units, "tanh", variational),
        decoder((6,), latent_dim, units, "tanh"),
        **kwargs,
    )
    kit.initialize_weights(model, 0)
    return model


def numpy(x):
    return ops.convert_to_numpy(x)


# --- Builders and shapes ------------------------------------------------------


def test_the_first_architecture_is_784_128_64_128_784():
    model = autoencoder()
    sizes = [w.shape for w in model.weights if len(w.shape) == 2]
    assert sizes == [(784, 128), (128, 64), (64, 128), (128, 784)]
    assert model.decoder.layers[-1].activation is keras.activations.sigmoid
    assert model.encoder.layers[-1].activation is keras.activations.linear


def test_units_are_mirrored_and_images_keep_their_shape():
    model = autoencoder((4, 3, 2), latent_dim=5, units=(9, 7))
    sizes = [w.shape for w in model.weights if len(w.shape) == 2]
    assert sizes == [(24, 9), (9, 7), (7, 5), (5, 7), (7, 9), (9, 24)]
    x = np.zeros((3, 4, 3, 2), "float32")
    assert tuple(model(x).shape) == x.shape
    assert tuple(model.encode(x).shape) == (3, 5)
    assert tuple(model.decode(np.zeros((2, 5))).shape) == (2, 4, 3, 2)
    assert model.reconstruction_error(x).shape == (3,)


# --- Losses by hand -------------------------------------------------------------


def test_kl_divergence_by_hand():
    # One half of (mu^2 + s^2 - 1 - log s^2), with s^2 = 1, 1 and 4.
    z_mean = np.array([[0.0, 0.0], [3.0, 0.0], [1.0, -2.0]], "float32")
    z_log_var = np.log([[1.0, 1.0], [1.0, 1.0], [4.0, 1.0]]).astype("float32")
    expected = [0.0, 4.5, (1 + 4 - 1 - np.log(4)) / 2 + 2]
    kl = kl_divergence(ops.convert_to_tensor(z_mean), ops.convert_to_tensor(z_log_var))
    np.testing.assert_allclose(numpy(kl), expected, rtol=1e-5, atol=1e-6)


def test_kl_divergence_is_the_mean_log_ratio_of_the_densities():
    mean, variance = 0.7, 0.3
    z = mean + np.sqrt(variance) * np.random.default_rng(0).normal(size=400_000)
    log_q = -((z - mean) ** 2) / (2 * variance) - np.log(variance) / 2
    log_p = -(z**2) / 2
    moments = np.array([[[mean]], [[np.log(variance)]]], "float32")
    kl = kl_divergence(*map(ops.convert_to_tensor, moments))
    np.testing.assert_allclose(numpy(kl)[0], np.mean(log_q - log_p), atol=0.01)


def test_reconstruction_losses_by_hand():
    x, x_pred = np.array([[1.0, 0.0], [0.5, 0.5]]), np.array([[0.8, 0.3], [0.5, 0.25]])
    x, x_pred = x.astype("float32"), x_pred.astype("float32")
    cross_entropy = [-np.log(0.8) - np.log(0.7)]
    cross_entropy += [-np.log(0.5) - (np.log(0.25) + np.log(0.75)) / 2]
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(x_pred)
    np.testing.assert_allclose(
        numpy(bernoulli_loss(*tensors)), cross_entropy, rtol=1e-5
    )
    squares = [(0.04 + 0.09) / 2, 0.0625 / 2]
    np.testing.assert_allclose(numpy(gaussian_loss(*tensors)), squares, rtol=1e-5)


def test_the_target_is_the_input_unless_there_is_one():
    model = small(Autoencoder)
    model.compile("adam", "mse", metrics=["mae"])
    y_pred = numpy(model(X))
    logs = model.evaluate(X, verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], np.mean((y_pred - X) ** 2), rtol=1e-5)
    np.testing.assert_allclose(logs["mae"], np.mean(abs(y_pred - X)), rtol=1e-5)
    np.testing.assert_allclose(
        model.reconstruction_error(X), np.mean((y_pred - X) ** 2, 1), rtol=1e-4
    )
    logs = model.evaluate(X, np.zeros_like(X), verbose=0, return_dict=True)
    np.testing.assert_allclose(logs["loss"], np.mean(y_pred**2), rtol=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_variational_loss_is_reconstruction_and_beta_divergence(likelihood):
    model = small(VariationalAutoencoder, beta=3.0, likelihood=likelihood)
    model.compile("adam")
    logs = model.evaluate(X, verbose=0, return_dict=True)

    z_mean, z_log_var = map(numpy, model.encode_distribution(X))
    np.testing.assert_array_equal(numpy(model.encode(X)), z_mean)
    y_pred = numpy(model.decode(z_mean))
    kl = np.mean(np.sum(z_mean**2 + np.exp(z_log_var) - 1 - z_log_var, 1)) / 2
    if likelihood == "bernoulli":
        losses = -X * np.log(y_pred) - (1 - X) * np.log(1 - y_pred)
    else:
        losses = (X - y_pred) ** 2 / 2
    reconstruction = np.mean(np.sum(losses, 1))
    np.testing.assert_allclose(logs["kl_loss"], kl, rtol=1e-4)
    np.testing.assert_allclose(logs["reconstruction_loss"], reconstruction, rtol=1e-4)
    np.testing.assert_allclose(logs["loss"], reconstruction + 3 * kl, rtol=1e-4)


def test_kl_loss_weighs_a_smaller_last_batch_by_its_size():
    model = small(VariationalAutoencoder)
    model.compile("adam")
    whole = model.evaluate(X, batch_size=64, verbose=0, return_dict=True)
    parts = model.evaluate(X, batch_size=60, verbose=0, return_dict=True)
    assert parts == pytest.approx(whole, rel=1e-5)


def test_negative_elbo_bounds_what_is_computed_by_integration():
    # One number of code: log p(x) = log of the integral of p(z) p(x|z) over z.
    model = small(VariationalAutoencoder, latent_dim=1, beta=7.0)
    grid = np.linspace(-8, 8, 2001).astype("float32")[:, None]
    y_pred = numpy(model.decode(grid))[:, None]  # (grid, 1, pixels)
    x = np.round(X[:5])
    log_p = np.sum(x * np.log(y_pred) + (1 - x) * np.log(1 - y_pred), -1)
    prior = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    exact = -np.log(np.sum(np.exp(log_p) * prior, 0) * (grid[1, 0] - grid[0, 0]))
    bound = numpy(model.negative_elbo(x, num_draws=20))
    assert np.all(bound > exact - 0.05)
    assert np.all(bound < exact + 3)


# --- Noise and draws ------------------------------------------------------------


def test_noise_is_fresh_in_training_and_absent_in_use():
    model = small(DenoisingAutoencoder, noise_stddev=0.5)
    train = kit.compiled(lambda x: model(x, training=True))
    first, second = numpy(train(X)), numpy(train(X))
    assert np.max(abs(first - second)) > 1e-3
    clean = numpy(model.decode(model.encode(X)))
    for training in (False, None):
        np.testing.assert_allclose(numpy(model(X, training=training)), clean, rtol=1e-5)
    assert np.max(abs(first - clean)) > 1e-3


def test_noise_has_its_standard_deviation():
    model = small(DenoisingAutoencoder, noise_stddev=0.3)
    noise = numpy(model.corrupt(np.ones((20_000, 6), "float32"))) - 1
    assert np.std(noise) == pytest.approx(0.3, rel=0.02)
    assert np.mean(noise) == pytest.approx(0, abs=0.005)


def test_codes_are_drawn_anew_in_training_and_means_in_use():
    model = small(VariationalAutoencoder)
    train = kit.compiled(lambda x: model(x, training=True))
    first, second = numpy(train(X)), numpy(train(X))
    assert np.max(abs(first - second)) > 1e-3
    clean = numpy(model.decode(model.encode(X)))
    np.testing.assert_allclose(numpy(model(X, training=False)), clean, rtol=1e-5)


def test_fit_draws_anew_in_each_step():
    model = small(DenoisingAutoencoder)
    before = int(numpy(model.random.state)[2])
    model.compile(keras.optimizers.SGD(0.0))
    model.fit(X, batch_size=16, epochs=2, verbose=0)
    assert int(numpy(model.random.state)[2]) - before == 8


def test_draws_are_the_same_on_every_backend():
    # Figures of the JAX backend; kit.random gives the same bits everywhere.
    zeros, ones = ops.zeros((1, 3)), ops.ones((1, 3))
    code = draw_code(kit.random.key(1), ones, zeros + np.log(4.0))
    noise = kit.random.normal(kit.random.key(1), (1, 3))
    np.testing.assert_allclose(numpy(code), 1 + 2 * numpy(noise), rtol=1e-5)
    model = small(VariationalAutoencoder)
    np.testing.assert_allclose(numpy(model.sample(2, seed=3))[:, 0], SAMPLED, rtol=1e-4)
    model = small(DenoisingAutoencoder)
    np.testing.assert_allclose(
        numpy(model.corrupt(np.zeros((1, 3)))), CORRUPTED, rtol=1e-4
    )


def test_sample_decodes_draws_from_the_prior():
    model = small(VariationalAutoencoder)
    z = kit.random.normal(kit.random.key(5), (4, 2))
    np.testing.assert_allclose(
        numpy(model.sample(4, seed=5)), numpy(model.decode(z)), rtol=1e-6
    )


def test_the_gradient_goes_through_the_draw():
    # z = m + s e: d sum(z) / d m = 1, d sum(z) / d log s^2 = s e / 2.
    m, log_var = np.zeros((1, 4), "float32"), np.full((1, 4), np.log(4), "float32")
    key = kit.random.key(2)
    noise = numpy(kit.random.normal(key, (1, 4)))
    grads = kit.gradient(lambda args: ops.sum(draw_code(key, *args)), (m, log_var))
    np.testing.assert_allclose(numpy(grads[0]), np.ones((1, 4)), rtol=1e-5)
    np.testing.assert_allclose(numpy(grads[1]), noise, rtol=1e-4)


# --- Saving -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (Autoencoder, {}),
        (DenoisingAutoencoder, {"noise_stddev": 0.25, "seed": 3}),
        (VariationalAutoencoder, {"beta": 2.0, "likelihood": "gaussian", "seed": 3}),
    ],
)
def test_saved_and_loaded_models_are_the_same(kind, options, tmp_path):
    model = small(kind, **options)
    model.compile(keras.optimizers.Adam(0.01))
    model.fit(X, epochs=1, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is kind
    assert {name: getattr(loaded, name) for name in options} == options
    np.testing.assert_allclose(numpy(loaded(X)), numpy(model(X)), rtol=1e-6)
    loaded.fit(X, epochs=1, verbose=0)  # goes on from there


# --- Errors -----------------------------------------------------------------------


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"latent_dim.*received 0"):
        encoder(latent_dim=0)
    with pytest.raises(TypeError, match=r"`encoder` must be a keras.Model.*str"):
        Autoencoder("encoder", decoder())
    unbuilt = keras.Sequential([keras.layers.Dense(64)])
    with pytest.raises(ValueError, match=r"`encoder` isn't built"):
        Autoencoder(unbuilt, decoder())
    with pytest.raises(ValueError, match=r"gives \(32,\), the decoder takes \(64,\)"):
        Autoencoder(encoder(latent_dim=32), decoder())
    with pytest.raises(ValueError, match=r"twice"):
        VariationalAutoencoder(encoder(), decoder())
    with pytest.raises(ValueError, match=r"noise_stddev.*-1"):
        DenoisingAutoencoder(encoder(), decoder(), noise_stddev=-1)
    parts = encoder(variational=True), decoder()
    with pytest.raises(
        ValueError, match=r"'bernoulli', 'gaussian', received 'poisson'"
    ):
        VariationalAutoencoder(*parts, likelihood="poisson")
    with pytest.raises(ValueError, match=r"`beta`.*-1"):
        VariationalAutoencoder(*parts, beta=-1)
    with pytest.raises(ValueError, match=r"has its own loss.*'mse'"):
        VariationalAutoencoder(*parts).compile("adam", "mse")


# --- Learning: a broken loss must fail --------------------------------------------


def plane(num=512):
    """Points near a plane in six dimensions, in [0, 1]: two numbers tell them."""
    rng = np.random.default_rng(1)
    axes = np.linalg.qr(rng.normal(size=(6, 2)))[0].T
    x = 0.5 + 0.12 * rng.normal(size=(num, 2)) @ axes
    return (x + 0.01 * rng.normal(size=x.shape)).clip(0, 1).astype("float32")


def test_autoencoder_finds_the_plane():
    model, x = small(Autoencoder, units=(16,)), plane()
    model.compile(keras.optimizers.Adam(0.01), "mse")
    model.fit(x, epochs=60, verbose=0)
    error = np.mean(model.reconstruction_error(x))
    assert error < 0.06 * np.var(x, 0).mean()


def test_variational_autoencoder_keeps_codes_near_the_prior():
    # With two independent directions of variance 0.12^2, seen with a noise of 0.02
    # (beta), the posterior has a variance of s / (s + 0.12^2) = 0.027, and codes on
    # the whole have mean 0 and variance 1: analytically, for linear networks.
    model = small(
        VariationalAutoencoder, units=(16,), likelihood="gaussian", beta=0.02**2
    )
    x = plane()
    model.compile(keras.optimizers.Adam(0.02))
    model.fit(x, batch_size=128, epochs=150, verbose=0)
    z_mean, z_log_var = map(numpy, model.encode_distribution(x))
    variance = np.exp(z_log_var)
    assert np.all(variance < 0.2)  # it is used ...
    total = np.var(z_mean, 0) + np.mean(variance, 0)
    np.testing.assert_allclose(total, 1, atol=0.35)  # ... and spread as the prior is
    np.testing.assert_allclose(np.mean(z_mean, 0), 0, atol=0.3)
    samples = numpy(model.sample(2000))
    np.testing.assert_allclose(np.std(samples, 0), np.std(x, 0), atol=0.03)


# --- The recipe -------------------------------------------------------------------

TINY = {
    "units": (8,),
    "latent_dim": 3,
    "anomaly_latent_dim": 2,
    "epochs": 1,
    "batch_size": 360,
    "verbose": 0,
}
PICTURES = {
    "reconstructions.png",
    "latent_map.png",
    "walk.png",
    "anomalies.png",
    "learning_curve.png",
}


@pytest.mark.variants
@pytest.mark.parametrize(
    ("variant", "metrics", "baselines"),
    [
        ("plain", set(), set()),
        (
            "denoising",
            {"denoised_psnr"},
            {"noisy_psnr", "pca_denoised_psnr", "wiener_denoised_psnr"},
        ),
        ("variational", {"negative_elbo"}, set()),
    ],
)
def test_recipe_leaves_what_it_promises(
    load_recipe, variant, metrics, baselines, tmp_path
):
    load_recipe("autoencoder").main(variant=variant, output_dir=tmp_path, **TINY)
    record = json.loads((tmp_path / "metrics.json").read_text())
    common = {"reconstruction_mse", "anomaly_auroc"}
    assert set(record["metrics"]) == metrics | common
    assert set(record["baselines"]) == baselines | {f"pca_{name}" for name in common}
    assert record["throughput"]["unit"] == "samples/s"
    pictures = PICTURES | ({"samples.png"} if variant == "variational" else set())
    files = {"model.keras", "history.csv", "metrics.json"} | pictures
    assert files == {path.name for path in tmp_path.iterdir()}
    model = keras.saving.load_model(tmp_path / "model.keras")
    assert tuple(model.encode(np.zeros((2, 784))).shape) == (2, 3)
    if variant == "denoising":  # noise of 0.5: -10 log10(0.25) decibels
        assert record["baselines"]["noisy_psnr"] == pytest.approx(6.02, abs=0.05)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("latent_dim", 785, r"`latent_dim` must be .*\[1, 784\], received 785"),
        ("anomaly_latent_dim", 0, "`anomaly_latent_dim` must be .*, received 0"),
        (
            "anomaly_class",
            10,
            r"`anomaly_class` must be one of \[0, .*9\], received 10",
        ),
        ("variant", "sparse", "`variant` must be one of 'plain', .*received 'sparse'"),
        ("epochs", 0, r"`epochs` must be .*\[1, .*received 0"),
    ],
)
def test_recipe_names_bad_arguments(load_recipe, argument, value, message, tmp_path):
    options = {**TINY, argument: value}
    with pytest.raises(ValueError, match=message):
        load_recipe("autoencoder").main(output_dir=tmp_path, **options)


@pytest.mark.learn
@pytest.mark.parametrize("latent_dim", [64, 2])
@pytest.mark.parametrize("seed", range(3))
def test_recipe_beats_pca(load_recipe, latent_dim, seed, tmp_path):
    record = load_recipe("autoencoder").main(
        latent_dim=latent_dim, seed=seed, output_dir=tmp_path, verbose=0
    )
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["reconstruction_mse"] < 0.9 * baselines["pca_reconstruction_mse"]
    assert metrics["anomaly_auroc"] > baselines["pca_anomaly_auroc"]


@pytest.mark.learn
def test_recipe_denoises_better_than_pca(load_recipe, tmp_path):
    record = load_recipe("autoencoder").main(
        variant="denoising", output_dir=tmp_path, verbose=0
    )
    baselines = record["baselines"]
    psnr = record["metrics"]["denoised_psnr"]
    assert psnr > baselines["wiener_denoised_psnr"] + 0.5
    assert baselines["wiener_denoised_psnr"] > baselines["pca_denoised_psnr"]
    assert baselines["pca_denoised_psnr"] > baselines["noisy_psnr"]
