"""The U-Net: its layers by hand, its gradients in compiled loops, learning, saving."""

import keras
import numpy as np
import pytest
from keras import ops

import kit

numpy = ops.convert_to_numpy


# --- By hand --------------------------------------------------------------------


def convolution(x, kernel, bias):
    """A convolution of (B, H, W, C) with zeros around the image."""
    size = kernel.shape[0]
    height, width = x.shape[1:3]
    rim = size // 2
    padded = np.pad(x, ((0, 0), (rim, rim), (rim, rim), (0, 0)))
    total = np.zeros((*x.shape[:3], kernel.shape[-1]))
    for i, j in np.ndindex(size, size):
        total += padded[:, i : i + height, j : j + width] @ kernel[i, j]
    return total + bias


def up_convolution(x, kernel, bias):
    """Each pixel becomes 2 x 2 pixels; Keras' kernel is (2, 2, outputs, inputs)."""
    batch, height, width, _ = x.shape
    y = np.zeros((batch, 2 * height, 2 * width, kernel.shape[2]))
    for i, j in np.ndindex(2, 2):
        y[:, i::2, j::2] = x @ kernel[i, j].T
    return y + bias


def pooled(x):
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))


def unet_by_hand(x, weights, levels, number, residual):
    """The network's output, from its weights in the order of its layers."""
    weights = iter(weights)

    def take(layer, x):
        return layer(x, next(weights), next(weights))

    def convolutions(x):
        for _ in range(number):
            x = np.maximum(take(convolution, x), 0.0)
        return x

    inputs, copies = x, []
    for _ in range(levels - 1):
        x = convolutions(x)
        copies.append(x)
        x = pooled(x)
    x = convolutions(x)
    for copy in reversed(copies):
        x = np.concatenate([copy, take(up_convolution, x)], axis=-1)
        x = convolutions(x)
    x = take(convolution, x)
    assert next(weights, None) is None
    return inputs + x if residual else x


@pytest.mark.parametrize(
    ("filters", "number", "residual"), [((3, 4, 5), 2, False), ((2, 3), 1, True)]
)
def test_forward_by_hand(filters, number, residual):
    model = kit.unet((8, 12, 2), 2, filters, number, residual=residual)
    rng = np.random.default_rng(0)
    weights = [rng.normal(0, 0.5, w.shape) for w in model.get_weights()]
    model.set_weights(weights)
    x = rng.normal(size=(2, 8, 12, 2))
    expected = unet_by_hand(x, weights, len(filters), number, residual)
    found = numpy(model(x.astype("float32")))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_sigmoid_and_softmax():
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1)).astype("float32")
    for activation, outputs in (("sigmoid", 1), ("softmax", 3)):
        plain = kit.unet((8, 8, 1), outputs, (2, 3))
        model = kit.unet((8, 8, 1), outputs, (2, 3), activation=activation)
        model.set_weights(plain.get_weights())
        expected = numpy(keras.activations.get(activation)(plain(x)))
        np.testing.assert_allclose(numpy(model(x)), expected, atol=1e-6)


def test_number_of_parameters():
    # Level 1 down: 1->4, 4->4; coarse: 4->6, 6->6; up 6->4 of 2 x 2; level 1 up: 8->4,
    # 4->4; output 4->2.
    down, coarse = (9 + 1) * 4 + (36 + 1) * 4, (36 + 1) * 6 + (54 + 1) * 6
    up = (4 * 6 + 1) * 4 + (72 + 1) * 4 + (36 + 1) * 4
    model = kit.unet((8, 8, 1), 2, (4, 6))
    assert model.count_params() == down + coarse + up + (4 + 1) * 2
    assert model.output_shape == (None, 8, 8, 2)


def test_an_untrained_residual_network_returns_its_input():
    model = kit.unet((8, 8, 3), 3, (4, 4), residual=True, batch_normalization=True)
    kit.initialize_weights(model, 1)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype("float32")
    np.testing.assert_array_equal(numpy(model(x)), x)


def test_options():
    model = kit.unet((8, 8, 1), 1, (2, 2, 2), 1, dropout=0.5, batch_normalization=True)
    kinds = [type(layer).__name__ for layer in model.layers]
    assert kinds.count("BatchNormalization") == kinds.count("ReLU") == 5
    assert kinds.count("Dropout") == 1
    # Dropout is at the end of the contracting path.
    assert kinds.index("Dropout") < kinds.index("Conv2DTranspose")
    assert kinds.index("Dropout") > max(
        i for i, kind in enumerate(kinds) if kind == "MaxPooling2D"
    )
    convolutions = [x for x in model.layers if type(x) is keras.layers.Conv2D]
    assert [x.use_bias for x in convolutions] == [False] * 5 + [True]


# --- Training ---------------------------------------------------------------------


def bars(number=64, seed=0):
    """Noisy images with bright bars, and the masks of those that are long.

    One pixel doesn't tell: a long bar looks like a short one, except at its ends.
    """
    rng = np.random.default_rng(seed)
    images = rng.normal(0.0, 0.1, (number, 16, 16, 1)).astype("float32")
    masks = np.zeros((number, 16, 16, 1), "float32")
    for i in range(number):
        for row in (2, 8):
            length = rng.choice([4, 10])
            y, x = row + rng.integers(0, 4), rng.integers(0, 17 - length)
            images[i, y : y + 2, x : x + length] += 1.0
            masks[i, y : y + 2, x : x + length] = length == 10
    return images, masks


@pytest.mark.parametrize("normalized", [False, True])
def test_compiled_steps_are_those_of_keras(normalized):
    """`fit` compiles many steps into a loop, with convolutions of its own on JAX."""
    images, masks = bars(12)
    weights = []
    for compiled in ("auto", False):
        model = kit.unet(
            (16, 16, 1), 1, (3, 4, 5), 1, "sigmoid", batch_normalization=normalized
        )
        kit.initialize_weights(model, 0)
        model.compile(
            keras.optimizers.SGD(0.1), "binary_crossentropy", jit_compile=compiled
        )
        model.fit(images, masks, batch_size=6, epochs=2, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for ours, keras_own in zip(*weights, strict=True):
        np.testing.assert_allclose(ours, keras_own, rtol=2e-3, atol=2e-5)


def test_learns_what_one_pixel_does_not_tell(tmp_path):
    model = kit.unet((16, 16, 1), activation="sigmoid", filters=(8, 12, 16))
    kit.initialize_weights(model, 0)
    model.compile(keras.optimizers.Adam(5e-3), "binary_crossentropy")
    images, masks = bars(128)
    model.fit(images, masks, batch_size=16, epochs=15, verbose=0)
    images, masks = bars(32, seed=1)
    found = model.predict(images, verbose=0)
    dice = 2 * ((found > 0.5) * masks).sum() / ((found > 0.5).sum() + masks.sum())
    assert dice > 0.9
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(images, verbose=0), found, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"input_shape": (16, 16)}, r"input_shape.*\(16, 16\)"),
        ({"input_shape": (16, 20, 1)}, r"multiples of 8.*\(16, 20, 1\)"),
        ({"filters": ()}, r"filters.*1 or more.*\(\)"),
        ({"residual": True, "num_outputs": 2}, "residual.*1 channels.*2 outputs"),
        ({"residual": True, "activation": "relu"}, "`activation` None.*'relu'"),
        ({"activation": "steep"}, "activation.*'steep'"),
        ({"dropout": 1.0}, r"dropout.*\[0, 1\).*1.0"),
    ],
)
def test_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        kit.unet(**{"input_shape": (16, 16, 1), **arguments})
