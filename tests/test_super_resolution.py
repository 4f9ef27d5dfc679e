"""Super-resolution: layers and losses by hand, isolated steps, tiles, learning."""

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image
from test_unet import convolution

import kit
from kit import super_resolution as sr
from kit.gan import conv_discriminator

numpy = ops.convert_to_numpy


def images(number=8, size=16, seed=0):
    """Bright bars at all angles, and the same in half the size, which blurs edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] - size / 2
    large = np.zeros((number, size, size, 3), "uint8")
    for image in large:
        angle, place = rng.uniform(0, np.pi), rng.uniform(-4, 4)
        across = np.cos(angle) * x + np.sin(angle) * y - place
        image[abs(across) < 2.5] = rng.integers(100, 256, 3)
    pairs = [Image.fromarray(image) for image in large]
    half = (size // 2, size // 2)
    small = [np.asarray(x.resize(half, Image.Resampling.BICUBIC)) for x in pairs]
    return np.stack(small), large


# --- By hand ----------------------------------------------------------------------


def test_pixel_shuffle_by_hand():
    x = np.arange(2 * 1 * 2 * 8).reshape(2, 1, 2, 8).astype("float32")
    found = numpy(sr.PixelShuffle(2)(x))
    assert found.shape == (2, 2, 4, 2)
    # Channels 0 and 1 are the upper left pixel's, 2 and 3 the upper right one's.
    np.testing.assert_array_equal(found[0, :, :2, 0], [[0, 2], [4, 6]])
    np.testing.assert_array_equal(found[0, :, :2, 1], [[1, 3], [5, 7]])
    np.testing.assert_array_equal(found[1, :, 2:, 0], [[24, 26], [28, 30]])
    shape = sr.PixelShuffle(2).compute_output_shape((None, None, 3, 8))
    assert shape == (None, None, 6, 2)


def test_cubic_weights_by_hand():
    # Distances 1.75, 0.75, 0.25, 1.25 from the first of two new pixels.
    first = [-0.0234375, 0.2265625, 0.8671875, -0.0703125, 0.0]
    np.testing.assert_allclose(sr.cubic_weights(2), [first, first[::-1]])
    np.testing.assert_allclose(sr.cubic_weights(4).sum(axis=1), 1.0)
    # The middle one of three lies on the old pixel.
    np.testing.assert_allclose(sr.cubic_weights(3)[1], [0, 0, 1, 0, 0], atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_bicubic_upsampling_is_that_of_pillow(scale):
    image = np.random.default_rng(0).integers(0, 256, (11, 14)).astype("float32")
    size = (14 * scale, 11 * scale)
    expected = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC))
    channels = np.stack([image, 2 * image], axis=-1)[None]
    found = numpy(sr.BicubicUpsampling(scale)(channels))[0]
    inner = slice(2 * scale, -2 * scale)  # edges: Pillow doesn't repeat them
    np.testing.assert_allclose(
        found[inner, inner, 0], expected[inner, inner], atol=1e-3
    )
    np.testing.assert_allclose(found[..., 1], 2 * found[..., 0], rtol=1e-4)
    flat = numpy(sr.BicubicUpsampling(scale)(np.full((1, 3, 2, 1), 7.0)))
    np.testing.assert_allclose(flat, np.full((1, 3 * scale, 2 * scale, 1), 7.0), 1e-5)


def test_an_untrained_network_interpolates():
    model = kit.super_resolver(2, filters=4, num_blocks=2)
    kit.initialize_weights(model, 1)
    small, _ = images(2)
    expected = numpy(sr.BicubicUpsampling(2)(small))
    np.testing.assert_allclose(numpy(model(small)), expected, atol=1e-3)


def test_forward_by_hand():
    model = kit.super_resolver(2, channels=2, filters=3, num_blocks=2)
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.3, w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    x = rng.uniform(0, 255, (2, 5, 4, 2)).astype("float32")
    layers = iter(zip(weights[::2], weights[1::2], strict=True))
    first = y = convolution(x / 127.5 - 1, *next(layers))
    for _ in range(2):
        inner = np.maximum(convolution(y, *next(layers)), 0.0)
        y = y + convolution(inner, *next(layers))
    y = first + convolution(y, *next(layers))
    y = convolution(y, *next(layers)).reshape(2, 5, 4, 2, 2, 2)
    details = 127.5 * y.transpose(0, 1, 3, 2, 4, 5).reshape(2, 10, 8, 2)
    expected = numpy(sr.BicubicUpsampling(2)(x)) + details
    np.testing.assert_allclose(numpy(model(x)), expected, rtol=1e-3, atol=0.05)
    assert next(layers, None) is None


def test_perceptual_distance_by_hand():
    inputs = keras.Input((None, None, 2))
    features = keras.Model(inputs, [inputs, ops.mean(inputs, -1, keepdims=True)])
    x = np.zeros((3, 1, 2, 2), "float32")
    x[:, 0, 0] = [3.0, 0.0]
    x[:, 0, 1] = [1.0, 1.0]
    y = x.copy()
    y[1, 0, 0] = [5.0, 0.0]  # longer, in the same direction
    y[2, 0, 0] = [0.0, 4.0]  # at a right angle: 2; the means have the same direction
    found = numpy(sr.perceptual_distance(features, x, y))
    np.testing.assert_allclose(found, [0.0, 0.0, (2.0 + 0.0) / 2 / 2], atol=1e-4)


def test_relativistic_loss_by_hand():
    above, below = np.array([[1.0], [3.0]]), np.array([[0.0], [2.0]])
    softplus = np.log1p(np.exp([0.0, -2.0])).mean()  # 1 - above
    softplus += np.log1p(np.exp([-2.0, 0.0])).mean()  # below - 2
    assert float(sr.relativistic_loss(above, below)) == pytest.approx(softplus, 1e-5)


def test_features_are_all_convolutions():
    classifier = sr.patch_classifier(3, filters=(2, 4))
    features = sr.feature_maps(classifier)
    x = np.random.default_rng(0).uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    fine, coarse = (numpy(y) for y in features(x))
    assert fine.shape == (2, 8, 8, 2) and coarse.shape == (2, 4, 4, 4)
    kernel, bias = classifier.get_weights()[:2]
    grey = (x / 127.5 - 1).mean(axis=-1, keepdims=True)
    expected = np.maximum(convolution(grey, kernel, bias), 0.0)
    np.testing.assert_allclose(fine, expected, atol=1e-4)
    np.testing.assert_allclose(numpy(classifier(x)).sum(axis=1), 1.0, rtol=1e-5)


# --- Adversarial training -----------------------------------------------------------


def srgan(**weights):
    gan = kit.SRGAN(
        kit.super_resolver(2, filters=3, num_blocks=1),
        conv_discriminator((16, 16, 3), (4,), dropout=0.0),
        sr.feature_maps(sr.patch_classifier(2, (3, 4))),
        **weights,
    )
    for part in (gan.generator, gan.discriminator, gan.features):
        kit.initialize_weights(part, 0)
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
    return gan


def test_each_step_changes_one_network():
    gan = srgan()
    small, large = images()
    parts = (gan.generator, gan.discriminator, gan.features)
    steps = gan.train_generator, gan.train_discriminator
    for index, step in enumerate(steps):
        before = [np.concatenate([*map(np.ravel, x.get_weights())]) for x in parts]
        kit.compiled(step)(small, large.astype("float32"))
        after = [np.concatenate([*map(np.ravel, x.get_weights())]) for x in parts]
        changed = [(a != b).any() for a, b in zip(before, after, strict=True)]
        assert changed == [index == 0, index == 1, False]


@pytest.mark.parametrize("only", ["pixel", "feature", "adversarial"])
def test_each_loss_lowers_itself(only):
    """Each term, alone, comes down; D stays as it is."""
    weights = dict.fromkeys(("pixel_weight", "feature_weight", "adversarial_weight"), 0)
    gan = srgan(**{**weights, f"{only}_weight": 1.0})
    small, large = images()

    def mean_score():
        return numpy(gan.score(gan.generator(small))).mean()

    step = kit.compiled(gan.train_generator)
    before = mean_score()
    losses = [
        float(step(small, large.astype("float32"))[f"{only}_loss"]) for _ in range(30)
    ]
    assert losses[-1] < losses[0] - 1e-4
    if only == "adversarial":  # it looks more real to D
        assert mean_score() > before


def test_the_pixel_loss_is_training_by_the_mean_absolute_error():
    # Noise: where a difference is 0, its absolute value has no slope.
    rng = np.random.default_rng(0)
    small, large = (rng.integers(0, 256, (8, n, n, 3), "uint8") for n in (8, 16))
    gan = srgan(pixel_weight=1.0, feature_weight=0.0, adversarial_weight=0.0)
    gan.compile(keras.optimizers.SGD(1e-3), keras.optimizers.SGD(1e-3))
    plain = kit.super_resolver(2, filters=3, num_blocks=1)
    plain.set_weights(gan.generator.get_weights())
    plain.compile(keras.optimizers.SGD(1e-3 / 127.5), "mean_absolute_error")
    for model in (gan, plain):
        model.fit(small, large, batch_size=4, epochs=2, shuffle=False, verbose=0)
    for ours, other in zip(
        gan.generator.get_weights(), plain.get_weights(), strict=True
    ):
        np.testing.assert_allclose(ours, other, rtol=1e-3, atol=1e-6)


def test_the_discriminator_learns_and_the_model_is_saved(tmp_path):
    gan = srgan(pixel_weight=1.5)
    small, large = images(32)
    logs = gan.fit(small, large, batch_size=8, epochs=6, verbose=0).history
    assert logs["discriminator_loss"][-1] < logs["discriminator_loss"][0]
    assert logs["pixel_loss"][0] > 1.0  # pixel values, not shares
    gan.save(tmp_path / "gan.keras")
    loaded = keras.saving.load_model(tmp_path / "gan.keras")
    assert loaded.pixel_weight == 1.5 and loaded.adversarial_weight == 0.02
    for part in ("generator", "discriminator", "features"):
        x = large[:2] if part != "generator" else small[:2]
        pair = (getattr(model, part)(x.astype("float32")) for model in (gan, loaded))
        a, b = (numpy(keras.tree.flatten(y)[0]) for y in pair)
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)


# --- Learning, and whole images -----------------------------------------------------


def test_learns_to_beat_interpolation(tmp_path):
    model = kit.super_resolver(2, filters=8, num_blocks=1)
    kit.initialize_weights(model, 0)
    model.compile(keras.optimizers.Adam(5e-3), "mean_absolute_error")
    small, large = images(96)
    model.fit(small, large, batch_size=8, epochs=8, verbose=0)
    small, large = images(32, seed=1)
    smooth = numpy(sr.BicubicUpsampling(2)(small))
    found = numpy(model.predict_on_batch(small))
    error, before = (abs(x - large).mean() for x in (found, smooth))
    assert error < 0.9 * before
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(
        numpy(loaded.predict_on_batch(small)), found, rtol=1e-4, atol=1e-2
    )


@pytest.fixture(scope="module")
def trained():
    model = kit.super_resolver(2, filters=2, num_blocks=1)
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(0, 0.1, w.shape) for w in model.get_weights()])
    return model


def test_tiles_make_no_seams(trained):
    """The network sees 5 pixels around each; in the middle nothing else counts."""
    image = np.random.default_rng(1).integers(0, 256, (19, 23, 3)).astype("uint8")
    whole = np.clip(np.rint(numpy(trained(image[None]))[0]), 0, 255)
    found = sr.enlarge(trained, image, tile=8, overlap=5)
    assert found.shape == (38, 46, 3) and found.dtype == "uint8"
    inner = slice(10, -10)
    np.testing.assert_allclose(
        found[inner, inner].astype("float32"), whole[inner, inner], atol=1
    )
    narrow = sr.enlarge(trained, image, tile=8, overlap=0)
    assert abs(narrow[inner, inner] - whole[inner, inner]).max() > 2
    tiny = sr.enlarge(trained, image[:2, :3], tile=8, overlap=5)
    assert tiny.shape == (4, 6, 3)


def test_ensemble_is_the_mean_of_eight(trained):
    image = np.random.default_rng(2).integers(90, 160, (6, 9, 3)).astype("uint8")
    copies = []
    for turns in range(4):
        for mirror in (lambda x: x, np.fliplr):
            copy = np.rot90(mirror(image), turns)
            large = sr.enlarge(trained, copy, tile=9, overlap=2).astype("float32")
            copies.append(mirror(np.rot90(large, -turns)))
    found = sr.enlarge(trained, image, tile=9, overlap=2, ensemble=True)
    # Each copy is rounded and cut here, the mean there.
    difference = abs(found - np.mean(copies, axis=0))
    assert np.median(difference) <= 0.5
    assert abs(found - copies[0]).mean() > 5 * difference.mean()


# --- Errors -------------------------------------------------------------------------


def test_refuses():
    with pytest.raises(ValueError, match=r"`scale` must be .*\[2, 16\], received 1"):
        kit.super_resolver(1)
    with pytest.raises(ValueError, match=r"multiple of scale\^2 = 4.*\(1, 2, 2, 6\)"):
        sr.PixelShuffle(2)(np.zeros((1, 2, 2, 6)))
    model = kit.super_resolver(2, filters=2, num_blocks=1)
    features = sr.feature_maps(sr.patch_classifier(2, (2,)))
    for discriminator, message in (
        (conv_discriminator((8, 8, 1), (2,)), r"images of shape .*3\).*takes .*1\)"),
        (model, r"one score, shape \(B, 1\), received one that gives"),
    ):
        with pytest.raises(ValueError, match=message):
            kit.SRGAN(model, discriminator, features)
    with pytest.raises(ValueError, match="`generator` isn't built"):
        kit.SRGAN(keras.Sequential(), conv_discriminator((8, 8, 3), (2,)), features)
    flat = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="`generator` must be a model from images"):
        kit.SRGAN(flat, conv_discriminator((8, 8, 3), (2,)), features)
    gan = kit.SRGAN(model, conv_discriminator((8, 8, 3), (2,)), features)
    adam = keras.optimizers.Adam()
    with pytest.raises(ValueError, match="two optimizers, received the same"):
        gan.compile(adam, adam)
    gan.compile()
    with pytest.raises(ValueError, match="`y` the large ones"):
        gan.fit(np.zeros((2, 4, 4, 3)), verbose=0)
    with pytest.raises(ValueError, match=r"`image` must be .*\[0, 255\]"):
        sr.enlarge(model, np.full((4, 4, 3), 300.0))
