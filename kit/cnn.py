"""Convolutional network: the same small filters at every place of an image.

A convolution detects its patterns everywhere with the same weights; pooling keeps the
strongest response of each neighbourhood. Layer by layer, the patterns become larger and
their positions coarser, until Dense layers classify the image. `RandomAffine` changes
each image's position and shape at random, so that the network learns to ignore them.

Reference: LeCun et al., 1998, https://doi.org/10.1109/5.726791.
"""

import math
from collections.abc import Sequence
from typing import Literal

import keras
import numpy as np
from keras import ops

from kit import checks
from kit.models import Sequential

ACCEPTED = {
    "input_shape": checks.IMAGE,
    "num_classes": checks.SIZE,
    "filters": checks.SIZES,
    "kernel_size": checks.SIZE,
    "pool_size": checks.SIZE,
    "units": checks.SIZES,
    "dropout": checks.SHARE,
    "padding": checks.one_of("valid", "same"),
    "batch_normalization": checks.BOOL,
    # RandomAffine
    "rotation_factor": checks.WEIGHT,
    "translation_factor": checks.WEIGHT,
    "zoom_factor": checks.SHARE,
    "shear_factor": checks.WEIGHT,
    "elastic_stddev": checks.WEIGHT,
    "fill_mode": checks.one_of("constant", "nearest"),
    "seed": checks.SEED | None,
}


def cnn(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    filters: Sequence[int] = (32, 64, 64),
    kernel_size: int = 3,
    pool_size: int = 2,
    units: Sequence[int] = (64,),
    dropout: float = 0.0,
    padding: Literal["valid", "same"] = "valid",
    batch_normalization: bool = False,
) -> Sequential:
    """Builds an image classifier: convolutions with pooling between, then Dense.

    Args:
        input_shape: (height, width, channels). Defaults to `(28, 28, 1)`.
        num_classes: Number of classes. Defaults to 10.
        filters: Number of filters of each convolution. Defaults to `(32, 64, 64)`.
        kernel_size: Height and width of the filters. Defaults to 3.
        pool_size: Height and width of the neighbourhoods of max pooling, between two
            convolutions. Defaults to 2.
        units: Sizes of the hidden Dense layers. Defaults to `(64,)`.
        dropout: Share of the inputs of each Dense layer to drop in training, in
            [0, 1). Defaults to 0.
        padding: `"valid"`: filters stay within the image, which loses its rim at each
            convolution; `"same"`: the image keeps its size. Defaults to `"valid"`.
        batch_normalization: Whether to normalize each convolution's outputs, before the
            ReLU, by their mean and variance: the batch's in training, moving averages
            in inference. Defaults to `False`.

    Returns:
        A `kit.Sequential` from `(B, height, width, channels)` to probabilities
        `(B, num_classes)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `input_shape` isn't (height, width, channels), or an image
            is too small for so many convolutions.

    Example:

    ```python
    model = kit.cnn((28, 28, 1), 10)
    model(np.zeros((2, 28, 28, 1))).shape  # (2, 10)
    ```
    """
    checks.check("cnn", locals(), ACCEPTED)
    _check_size(input_shape, len(filters), kernel_size, pool_size, padding)
    model = Sequential([keras.Input(tuple(input_shape))], name="cnn")
    for i, number in enumerate(filters):
        if i > 0:
            model.add(keras.layers.MaxPooling2D(pool_size))
        if not batch_normalization:
            model.add(
                keras.layers.Conv2D(
                    number, kernel_size, padding=padding, activation="relu"
                )
            )
            continue
        # No bias: the normalization would subtract it. Momentum 0.9, because with
        # Keras' 0.99 the moving averages lag behind in short trainings.
        model.add(
            keras.layers.Conv2D(number, kernel_size, padding=padding, use_bias=False)
        )
        model.add(keras.layers.BatchNormalization(momentum=0.9))
        model.add(keras.layers.ReLU())
    model.add(keras.layers.Flatten())
    for size in units:
        if dropout:
            model.add(keras.layers.Dropout(dropout))
        model.add(keras.layers.Dense(size, activation="relu"))
    if dropout:
        model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Dense(num_classes, activation="softmax"))
    return model


@keras.saving.register_keras_serializable(package="kit")
class RandomAffine(keras.layers.Layer):
    """Rotates, shears, scales, shifts and warps each image at random, in training.

    A digit that is moved, scaled or rotated a little is the same digit: changed images
    are new examples at no cost. Each image in each batch gets its own random changes;
    outside of training, images are returned unchanged.

    The pixel at p takes the value at A (p - c) + c + t + d(p), interpolated from the
    four pixels around that place, c being the centre: A = z R(a) S(s), a rotation by an
    angle a, a slant x + s y and a magnification 1 / z; t a shift; d an elastic warp,
    independent normal displacements on a grid of 4 x 4 points, smoothed between them
    (Simard). All changes are one interpolation, which blurs only once. Keras' own
    RandomRotation, RandomZoom and so on make one change each; on a CPU they can't be
    part of a compiled program on TensorFlow, and on PyTorch they process one image at a
    time, which is slow.

    Args:
        rotation_factor: Largest angle, in full turns: 0.03 is up to 10.8 degrees in
            either direction. The factors are those of Keras' layers. Defaults to 0.
        translation_factor: Largest shift, as a share of height and width; 0.1 is up
            to three pixels of 28. Defaults to 0.
        zoom_factor: Largest change of z: 0.1 zooms in or out by 10 %. In [0, 1).
            Defaults to 0.
        shear_factor: Largest slant: 0.1 shifts a row by a tenth of its distance from
            the centre. Defaults to 0.
        elastic_stddev: Standard deviation of the grid's displacements, in pixels.
            Defaults to 0.
        fill_mode: Pixels outside of the image: `"constant"`, zeros, or `"nearest"`, the
            nearest pixel of the rim. Defaults to `"constant"`.
        seed: Integer, or `None` for a seed from Python's `random`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Images of any dtype, (B, height, width, channels).
        training: Boolean; `False` and `None` change only the dtype.

    Output shape:
        Same as the inputs, as floats.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a factor is negative, `zoom_factor` is 1 or more, or the inputs
            aren't images of a known size.

    Example:

    ```python
    augment = RandomAffine(rotation_factor=0.03, translation_factor=0.1)
    augment(np.ones((2, 28, 28, 1)), training=True).shape  # (2, 28, 28, 1)
    ```

    Reference:
        Simard, Steinkraus, Platt, 2003, https://doi.org/10.1109/ICDAR.2003.1227801.
    """

    def __init__(
        self,
        rotation_factor: float = 0.0,
        translation_factor: float = 0.0,
        zoom_factor: float = 0.0,
        shear_factor: float = 0.0,
        elastic_stddev: float = 0.0,
        fill_mode: Literal["constant", "nearest"] = "constant",
        seed: int | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.factors = {
            "rotation_factor": rotation_factor,
            "translation_factor": translation_factor,
            "zoom_factor": zoom_factor,
            "shear_factor": shear_factor,
            "elastic_stddev": elastic_stddev,
        }
        self.fill_mode = fill_mode
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)

    def build(self, input_shape):
        """Checks that the inputs are images of a known size."""
        if len(input_shape) != 4 or None in input_shape[1:]:
            raise ValueError(
                "RandomAffine: the inputs must be images (B, height, width, channels) "
                f"of a known size, received the shape {tuple(input_shape)}."
            )

    def call(self, inputs, training=None):
        """Returns changed images in training, otherwise the images themselves."""
        images = ops.cast(inputs, self.compute_dtype)  # (B, H, W, C)
        if not training:
            return images
        y, x = self._draw_sources(ops.shape(images)[0], *images.shape[1:3])
        return _bilinear(images, y, x, self.fill_mode)

    def _draw_sources(self, batch_size, height, width):
        """Draws the source of each pixel: rows and columns, (B, H, W) each."""
        draws = keras.random.uniform(
            (5, batch_size, 1, 1), -1.0, 1.0, dtype="float32", seed=self.seed_generator
        )
        factors = self.factors
        angle = 2.0 * math.pi * factors["rotation_factor"] * draws[0]
        zoom = 1.0 + factors["zoom_factor"] * draws[1]
        slant = factors["shear_factor"] * draws[2]
        shift_y = factors["translation_factor"] * height * draws[3]
        shift_x = factors["translation_factor"] * width * draws[4]

        centre_y, centre_x = (height - 1) / 2, (width - 1) / 2
        y = ops.reshape(ops.arange(height, dtype="float32"), (1, -1, 1)) - centre_y
        x = ops.reshape(ops.arange(width, dtype="float32"), (1, 1, -1)) - centre_x
        x = x + slant * y
        cos, sin = ops.cos(angle), ops.sin(angle)
        source_y = zoom * (cos * y + sin * x) + shift_y + centre_y
        source_x = zoom * (cos * x - sin * y) + shift_x + centre_x
        if factors["elastic_stddev"]:
            grid = keras.random.normal(
                (2, batch_size, GRID, GRID),
                stddev=factors["elastic_stddev"],
                dtype="float32",
                seed=self.seed_generator,
            )
            # (H, grid) @ (2, B, grid, grid) @ (grid, W)
            warp = ops.matmul(ops.matmul(_smooth(height), grid), _smooth(width).T)
            source_y, source_x = source_y + warp[0], source_x + warp[1]
        return source_y, source_x

    def compute_output_shape(self, input_shape):
        """Returns `input_shape`."""
        return input_shape

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = {**self.factors, "fill_mode": self.fill_mode, "seed": self.seed}
        return {**super().get_config(), **config}


GRID = 4  # points of the elastic warp, in each direction


def _smooth(size):
    """Returns weights (size, GRID) that interpolate smoothly between GRID points."""
    places = np.arange(size) * (GRID - 1) / max(1, size - 1)
    distances = places[:, None] - np.arange(GRID)
    weights = np.exp(-(distances**2) / (2.0 * 0.6**2))
    return (weights / weights.sum(axis=1, keepdims=True)).astype("float32")


def _bilinear(images, y, x, fill_mode):
    """Interpolates images (B, H, W, C) at rows y and columns x, both (B, H, W)."""
    height, width, channels = images.shape[1:]
    # A rim of zeros around the image: clip outside places to it, or to the image.
    outside = 1.0 if fill_mode == "constant" else 0.0
    y = ops.clip(y, -outside, height - 1 + outside) + 1.0
    x = ops.clip(x, -outside, width - 1 + outside) + 1.0
    # Round down, but never to the last row, which has none below it.
    top = ops.minimum(ops.floor(y), float(height))
    left = ops.minimum(ops.floor(x), float(width))
    low = ops.cast(ops.expand_dims(y - top, -1), images.dtype)  # (B, H, W, 1)
    right = ops.cast(ops.expand_dims(x - left, -1), images.dtype)

    row = width + 2  # pixels in a row, with the rim
    pixels = ops.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    pixels = ops.reshape(pixels, (-1, channels))
    first = ops.arange(ops.shape(images)[0], dtype="int32") * ((height + 2) * row)
    first = ops.reshape(first, (-1, 1, 1)) + ops.cast(top * row + left, "int32")

    def corner(offset):
        return ops.take(pixels, first + offset, axis=0)

    above = corner(0) * (1.0 - right) + corner(1) * right
    below = corner(row) * (1.0 - right) + corner(row + 1) * right
    return above * (1.0 - low) + below * low


def _check_size(input_shape, num_convolutions, kernel_size, pool_size, padding):
    """Raises an error early if the image is too small, naming `cnn`'s arguments."""
    size = min(input_shape[:2])
    for i in range(num_convolutions):
        size = size // pool_size if i > 0 else size
        size = size - kernel_size + 1 if padding == "valid" else size
        if size < 1:
            raise ValueError(
                f"cnn: no pixel of an image of `input_shape` {tuple(input_shape)} is "
                f"left after convolution {i + 1} of {num_convolutions}. Take larger "
                "images, fewer `filters`, or padding='same'."
            )
