"""Super-resolution: from a small image to a large one, with details that fit.

An image I_LR of low resolution has r^2 times fewer pixels than the image I_HR that it
was made of. Interpolation fills in smooth values between its pixels; a network G has
seen what lies between such pixels in other images:

    I_SR = G(I_LR) = bicubic(I_LR) + PS(f(I_LR)).

- f works on the small image, where a pixel costs r^2 times less: a convolution,
  residual blocks x + conv(relu(conv(x))), and a convolution with r^2 C channels.
- PS, the sub-pixel convolution's shuffle, turns the r^2 C channels of each pixel into
  r x r pixels with C channels.
- The sum with bicubic interpolation leaves only the details to be learned. It is a
  fixed sub-pixel convolution itself.

Trained by the mean absolute error, G gives the middle (the median) of all the images
that would fit, which is blurred where many would. So a second training makes it look
real (`SRGAN`): a discriminator D compares enlarged and real patches, and G minimizes

    L = pixel_weight L1 + feature_weight d(I_SR, I_HR) + adversarial_weight L_G,

with d a distance of the features of a trained network (`perceptual_distance`), and the
losses of the relativistic average GAN, where x are real images and f are G's:

    L_D = softplus(-(D(x) - mean D(f))) + softplus(D(f) - mean D(x)),
    L_G = softplus(-(D(f) - mean D(x))) + softplus(D(x) - mean D(f)).

All images have pixel values from 0 to 255. Whole images of any size can be given to G;
`enlarge` works in tiles, so that the memory and the compiled program stay the same.

Shapes: B batch, H and W height and width of the small image, C channels, r the scale.

Reference: Lim et al., 2017, https://arxiv.org/abs/1707.02921 (EDSR: the network); Shi
et al., 2016, https://arxiv.org/abs/1609.05158 (PS); Ledig et al., 2017,
https://arxiv.org/abs/1609.04802 (SRGAN); Wang et al., 2018,
https://arxiv.org/abs/1809.00219 (ESRGAN: the losses); Zhang et al., 2018,
https://arxiv.org/abs/1801.03924 (distances of features).
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kit import checks
from kit.backend import minimize
from kit.gan import Adversarial
from kit.models import Model

ACCEPTED = {
    "scale": checks.integer("[2, 16]"),
    "channels": checks.SIZE,
    "filters": checks.SIZE,
    "num_blocks": checks.SIZE,
    "num_classes": checks.integer("[2, 2**31)"),
    "generator": checks.MODEL,
    "discriminator": checks.MODEL,
    "features": checks.MODEL,
    **dict.fromkeys(
        ("pixel_weight", "feature_weight", "adversarial_weight"), checks.WEIGHT
    ),
    # Functions
    "classifier": checks.MODEL,
    **dict.fromkeys(("x", "y"), checks.array("B H W C")),
    **dict.fromkeys(("above", "below"), checks.array("B 1")),
    "model": checks.MODEL,
    "image": checks.array("H W C", interval="[0, 255]"),
    "tile": checks.SIZE,
    "overlap": checks.COUNT,
    "ensemble": checks.BOOL,
    "batch_size": checks.SIZE,
}


# --- The network --------------------------------------------------------------------


def super_resolver(
    scale: int = 4, channels: int = 3, filters: int = 32, num_blocks: int = 8
) -> Model:
    """Builds a network that enlarges images of any size.

    Before training, it returns the bicubic interpolation: its last convolution begins
    with zeros.

    Args:
        scale: r, how many times larger height and width become. Defaults to 4.
        channels: C, channels of the images. Defaults to 3.
        filters: Feature channels. EDSR has 256, its small version 64. Defaults to 32.
        num_blocks: Residual blocks of two convolutions. EDSR has 32, its small version
            16. Defaults to 8, with which a pixel sees 19 pixels around it.

    Returns:
        A `kit.Model` from `(B, H, W, C)` to `(B, r H, r W, C)`, both with pixel values
        from 0 to 255. The outputs may lie a little outside of that range.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it is out of range.

    Example:

    ```python
    model = kit.super_resolver(scale=2, filters=8, num_blocks=1)
    model.compile("adam", "mean_absolute_error")
    large = np.random.randint(0, 256, (16, 32, 32, 3), "uint8")
    model.fit(large[:, ::2, ::2], large)
    ```
    """
    checks.check("super_resolver", locals(), ACCEPTED)

    def convolution(number, **options):
        options = {"kernel_initializer": "he_normal", **options}
        return layers.Conv2D(number, 3, padding="same", **options)

    inputs = keras.Input((None, None, channels))
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    # 1. Features, from the small image.
    first = x = convolution(filters)(x)
    for _ in range(num_blocks):
        y = convolution(filters, activation="relu")(x)
        y = convolution(filters)(y)
        x = layers.Add()([x, y])
    x = layers.Add()([first, convolution(filters)(x)])
    # 2. Details of the large one: r x r pixels from each.
    x = convolution(scale**2 * channels, kernel_initializer="zeros")(x)
    x = layers.Rescaling(127.5, dtype="float32")(PixelShuffle(scale)(x))
    smooth = BicubicUpsampling(scale, dtype="float32")(inputs)
    outputs = layers.Add(dtype="float32")([smooth, x])
    return Model(inputs, outputs, name="super_resolver")


@keras.saving.register_keras_serializable(package="kit")
class PixelShuffle(layers.Layer):
    """Turns the channels of each pixel into a block of pixels.

    Channel (i r + j) C + c of a pixel becomes channel c of the pixel in row i and
    column j of its block.

    Args:
        scale: r, height and width of a block.

    Input shape:
        `(B, H, W, r^2 C)`.

    Output shape:
        `(B, r H, r W, C)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it is out of range, or the channels can't be divided.

    Example:

    ```python
    PixelShuffle(2)(np.array([[[[1, 2, 3, 4]]]]))[0, :, :, 0]  # [[1, 2], [3, 4]]
    ```

    Reference: Shi et al., 2016, https://arxiv.org/abs/1609.05158.
    """

    def __init__(self, scale: int, **kwargs: Any):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.scale = int(scale)

    def build(self, input_shape):
        """Checks the number of channels."""
        if input_shape[-1] % self.scale**2:
            raise ValueError(
                f"PixelShuffle: the channels must be a multiple of scale^2 = "
                f"{self.scale**2}, received inputs of shape {tuple(input_shape)}."
            )

    def call(self, inputs):
        """Returns the blocks."""
        r = self.scale
        batch, height, width, channels = ops.shape(inputs)
        x = ops.reshape(inputs, (batch, height, width, r, r, channels // r**2))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))  # (B, H, r, W, r, C)
        return ops.reshape(x, (batch, height * r, width * r, channels // r**2))

    def compute_output_shape(self, input_shape):
        """Returns `(B, r H, r W, C)`."""
        batch, height, width, channels = input_shape
        height, width = (n and n * self.scale for n in (height, width))
        return (batch, height, width, channels // self.scale**2)

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {**super().get_config(), "scale": self.scale}


@keras.saving.register_keras_serializable(package="kit")
class BicubicUpsampling(layers.Layer):
    """Enlarges images by bicubic interpolation, equally on each backend.

    Each new pixel is a sum of 4 x 4 pixels around its place, with the weights of
    Keys' cubic (a = -0.5), as Pillow's. There are r x r places between the pixels, so
    it is a convolution with r^2 filters, and a shuffle. Edges are repeated.

    Args:
        scale: r, how many times larger height and width become.

    Input shape:
        `(B, H, W, C)`.

    Output shape:
        `(B, r H, r W, C)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it is out of range.

    Reference: Keys, 1981, https://doi.org/10.1109/TASSP.1981.1163711.
    """

    def __init__(self, scale: int, **kwargs: Any):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.scale = int(scale)
        self.shuffle = PixelShuffle(scale, dtype=self.dtype_policy)

    def build(self, input_shape):
        """Computes the filters; there is nothing to learn."""
        channels, weights = input_shape[-1], cubic_weights(self.scale)
        kernel = np.einsum("ik,jl,cd->klcijd", weights, weights, np.eye(channels))
        self.kernel = kernel.reshape(5, 5, channels, -1).astype("float32")

    def call(self, inputs):
        """Returns the enlarged images."""
        x = ops.cast(inputs, self.compute_dtype)
        for axis in (1, 2):
            first, last = ops.take(x, [0], axis=axis), ops.take(x, [-1], axis=axis)
            x = ops.concatenate([first, first, x, last, last], axis=axis)
        kernel = ops.convert_to_tensor(self.kernel, dtype=self.compute_dtype)
        x = ops.conv(x, kernel, padding="valid", data_format="channels_last")
        return self.shuffle(x)

    def compute_output_shape(self, input_shape):
        """Returns `(B, r H, r W, C)`."""
        *sizes, channels = input_shape
        return self.shuffle.compute_output_shape((*sizes, channels * self.scale**2))

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {**super().get_config(), "scale": self.scale}


def cubic_weights(scale: int) -> np.ndarray:
    """Returns the weights (scale, 5) of the five nearest pixels, for each new pixel.

    Args:
        scale: New pixels for each old one.

    Raises:
        TypeError: If `scale` has the wrong type.
        ValueError: If it is out of range.
    """
    checks.check("cubic_weights", locals(), ACCEPTED)
    places = (np.arange(scale) + 0.5) / scale - 0.5  # the old pixel is at 0
    t = abs(places[:, None] - np.arange(-2, 3))
    near = 1.5 * t**3 - 2.5 * t**2 + 1.0
    far = -0.5 * t**3 + 2.5 * t**2 - 4.0 * t + 2.0
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


# --- Features and their distance ----------------------------------------------------


def patch_classifier(num_classes: int, filters: Sequence[int] = (16, 32, 64)) -> Model:
    """Builds a classifier of patches, whose features `feature_maps` returns.

    No pretrained network is needed where its classes are those that the training images
    have anyway, such as the photograph that a patch was cut from. It sees grey values.

    Args:
        num_classes: Number of classes.
        filters: Filters of each convolution; pooling is in between. Defaults to
            `(16, 32, 64)`.

    Returns:
        A `kit.Model` from images of any size, `(B, H, W, 3)` with pixel values from 0
        to 255, to probabilities `(B, num_classes)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it is out of range.
    """
    kinds = {**ACCEPTED, "filters": checks.sequence(checks.SIZE, least=1)}
    checks.check("patch_classifier", locals(), kinds)
    inputs = keras.Input((None, None, 3))
    x = layers.Rescaling(1 / 127.5, -1.0)(inputs)
    x = ops.mean(x, axis=-1, keepdims=True)
    for i, number in enumerate(filters):
        x = layers.MaxPooling2D(2)(x) if i else x
        x = layers.Conv2D(
            number,
            3,
            padding="same",
            activation="relu",
            kernel_initializer="he_normal",
        )(x)
    x = layers.GlobalAveragePooling2D()(x)
    x = layers.Dense(num_classes, activation="softmax", dtype="float32")(x)
    return Model(inputs, x, name="patch_classifier")


def feature_maps(classifier: keras.Model) -> keras.Model:
    """Returns the model from images to the outputs of all convolutions.

    Args:
        classifier: Model of images, such as `patch_classifier`.

    Raises:
        TypeError: If it isn't a model.
    """
    checks.check("feature_maps", locals(), ACCEPTED)
    maps = [x.output for x in classifier.layers if isinstance(x, layers.Conv2D)]
    return keras.Model(classifier.input, maps, name="feature_maps")


def perceptual_distance(features: keras.Model, x: Any, y: Any) -> Any:
    """Returns the distances of images in the features of a network, `(B,)`.

    In each feature map, the channels of a pixel are a vector, scaled to the length 1.
    The distance is the squared length of the difference of two such vectors, averaged
    over the pixels and then over the maps: between 0 and 4 (2 after a ReLU). It is the
    form of LPIPS, but not LPIPS, whose network is a large one trained on ImageNet and
    whose channels have weights that fit people's judgements.

    Args:
        features: Model from images to a list of feature maps, such as `feature_maps`.
        x: Images `(B, H, W, C)`.
        y: As many images of the same size.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the images don't have the same shape.
    """
    checks.check("perceptual_distance", locals(), ACCEPTED)
    distances = []
    maps = (keras.tree.flatten(features(images)) for images in (x, y))
    for a, b in zip(*maps, strict=True):
        squares = ops.sum(ops.square(_unit_length(a) - _unit_length(b)), axis=-1)
        distances.append(ops.mean(squares, axis=(1, 2)))
    return sum(distances) / len(distances)


def _unit_length(x):
    x = ops.cast(x, "float32")
    return x / ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + 1e-6)


# --- Adversarial training -----------------------------------------------------------


@keras.saving.register_keras_serializable(package="kit")
class SRGAN(Adversarial):
    """Trains a network that enlarges images to draw details that look real.

    For each batch of small and large patches, the discriminator makes a gradient step,
    then the generator; the features don't change. Train with `fit(small, large)`.
    `compile` takes two optimizers and no loss. The logs contain the mean absolute
    error in pixel values, both other terms of the generator's loss and the
    discriminator's loss.

    Args:
        generator: Built model from `(B, H, W, C)` to `(B, r H, r W, C)`, as
            `super_resolver` builds it, trained by the mean absolute error before.
        discriminator: Built model from patches with values in [-1, 1] to scores
            `(B, 1)`, as `kit.gan.conv_discriminator` builds it.
        features: Model from large patches to feature maps, as `feature_maps` returns.
        pixel_weight: Weight of the mean absolute error, with pixel values scaled to
            [-1, 1]. Defaults to 2.
        feature_weight: Weight of the perceptual distance. Defaults to 0.3.
        adversarial_weight: Weight of the adversarial loss. Defaults to 0.02.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range, or the parts don't fit together.

    Example:

    ```python
    gan = kit.SRGAN(
        kit.super_resolver(scale=2, filters=8, num_blocks=1),
        kit.gan.conv_discriminator((32, 32, 3), dropout=0.0),
        kit.super_resolution.feature_maps(kit.super_resolution.patch_classifier(5)),
    )
    gan.compile(keras.optimizers.Adam(1e-4), keras.optimizers.Adam(1e-4))
    large = np.random.randint(0, 256, (16, 32, 32, 3), "uint8")
    gan.fit(large[:, ::2, ::2], large)
    ```
    """

    parts = ("generator", "discriminator", "features")

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        features: keras.Model,
        pixel_weight: float = 2.0,
        feature_weight: float = 0.3,
        adversarial_weight: float = 0.02,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        _check_parts(generator, discriminator)
        self.generator = generator
        self.discriminator = discriminator
        self.features = features
        self.pixel_weight = pixel_weight
        self.feature_weight = feature_weight
        self.adversarial_weight = adversarial_weight
        names = ("pixel_loss", "feature_loss", "adversarial_loss", "discriminator_loss")
        self.trackers = {name: keras.metrics.Mean(name=name) for name in names}
        self.built = True

    def train_batch(self, x, y=None, sample_weight=None):
        """Makes a step of the discriminator, then one of the generator."""
        if y is None or sample_weight is not None:
            raise ValueError(
                "SRGAN.fit: `x` must be small images, `y` the large ones, and "
                "`sample_weight` None."
            )
        y = ops.cast(y, "float32")
        losses = self.train_discriminator(x, y) | self.train_generator(x, y)
        for name, loss in losses.items():
            self.trackers[name].update_state(loss)
        return {name: tracker.result() for name, tracker in self.trackers.items()}

    def train_discriminator(self, x, y):
        """Makes one step of D, to score y above G(x). Returns its loss by name."""
        fake_y = self.generator(x, training=False)

        def loss_fn():
            real = self.score(y, training=True)
            fake = self.score(fake_y, training=True)
            return relativistic_loss(real, fake)

        variables = self.discriminator.trainable_variables
        loss = minimize(loss_fn, variables, self.discriminator_optimizer)
        return {"discriminator_loss": loss}

    def train_generator(self, x, y):
        """Makes one step of G. Returns the terms of its loss by name."""

        def loss_fn():
            fake_y = self.generator(x, training=True)
            pixel = ops.mean(ops.abs(fake_y - y))
            feature = ops.mean(perceptual_distance(self.features, fake_y, y))
            # Not in training mode: this step leaves D as it was.
            real, fake = self.score(y), self.score(fake_y)
            adversarial = relativistic_loss(fake, real)  # the other way round
            loss = (
                self.pixel_weight * pixel / 127.5
                + self.feature_weight * feature
                + self.adversarial_weight * adversarial
            )
            return loss, (pixel, feature, adversarial)

        variables = self.generator.trainable_variables
        _, terms = minimize(loss_fn, variables, self.generator_optimizer)
        names = ("pixel_loss", "feature_loss", "adversarial_loss")
        return dict(zip(names, terms, strict=True))

    def score(self, images, training=False):
        """Returns D's scores `(B, 1)`: high for images that look real."""
        return self.discriminator(images / 127.5 - 1.0, training=training)

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {
            **super().get_config(),
            "pixel_weight": self.pixel_weight,
            "feature_weight": self.feature_weight,
            "adversarial_weight": self.adversarial_weight,
        }


def relativistic_loss(above: Any, below: Any) -> Any:
    """Returns how far scores are from being above the mean of others, and vice versa.

    softplus(-(a - mean b)) + softplus(b - mean a), averaged over scores a and b.

    Args:
        above: Scores `(B, 1)` that should be higher.
        below: Scores `(B, 1)` that should be lower.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it has another shape.
    """
    checks.check("relativistic_loss", locals(), ACCEPTED)
    above, below = ops.cast(above, "float32"), ops.cast(below, "float32")
    return ops.mean(ops.softplus(ops.mean(below) - above)) + ops.mean(
        ops.softplus(below - ops.mean(above))
    )


def _check_parts(generator, discriminator):
    """Raises an error if the discriminator can't score the generator's images."""
    for name, model in (("generator", generator), ("discriminator", discriminator)):
        if not getattr(model, "inputs", None):
            raise ValueError(
                f"SRGAN: `{name}` isn't built; begin it with `keras.Input(shape)`."
            )
    shapes: list[Any] = [x.output_shape for x in (generator, discriminator)]
    if len(generator.inputs) != 1 or len(shapes[0]) != 4:
        raise ValueError(
            "SRGAN: `generator` must be a model from images to images, received one "
            f"that gives {shapes[0]}."
        )
    if shapes[1][1:] != (1,):
        raise ValueError(
            "SRGAN: `discriminator` must give one score, shape (B, 1), received one "
            f"that gives {shapes[1]}."
        )
    judged = discriminator.inputs[0].shape
    if len(judged) != 4 or judged[-1] != shapes[0][-1]:
        raise ValueError(
            f"SRGAN: the generator makes images of shape {shapes[0]}, the "
            f"discriminator takes {tuple(judged)}."
        )


# --- Whole images -------------------------------------------------------------------


def enlarge(
    model: keras.Model,
    image: np.ndarray,
    tile: int = 48,
    overlap: int = 12,
    ensemble: bool = False,
    batch_size: int = 4,
) -> np.ndarray:
    """Enlarges an image of any size, in tiles.

    Each tile is enlarged together with a rim of its neighbours, so that its edges know
    their surroundings. At the image's edges, the rim is a mirror image.

    Args:
        model: Network from `super_resolver`.
        image: (H, W, C), pixel values from 0 to 255.
        tile: Pixels in a side of a tile. Defaults to 48.
        overlap: Pixels of the rim. Where it is as wide as the network sees (3 +
            2 `num_blocks`), seams can't be told. Defaults to 12.
        ensemble: Whether to enlarge the image's eight mirrored and turned copies, and
            average the results, turned back. Takes eight times as long. Defaults to
            `False`.
        batch_size: Tiles to enlarge at once. Defaults to 4.

    Returns:
        The image (r H, r W, C), uint8.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it is out of range.
    """
    checks.check("enlarge", locals(), ACCEPTED)
    image = np.asarray(image)
    copies = []
    for turns in range(4 if ensemble else 1):
        for mirrored in (False, True) if ensemble else (False,):
            copy = np.rot90(image[:, ::-1] if mirrored else image, turns)
            large = _enlarge_once(model, copy, tile, overlap, batch_size)
            large = np.rot90(large, -turns)
            copies.append(large[:, ::-1] if mirrored else large)
    mean = np.mean(copies, axis=0)
    return np.clip(np.rint(mean), 0, 255).astype("uint8")


def _enlarge_once(model, image, tile, overlap, batch_size):
    """Returns the model's output (r H, r W, C) for one image, put together of tiles."""
    height, width = image.shape[:2]
    rows, columns = -(-height // tile), -(-width // tile)
    rims = [
        (overlap, overlap + count * tile - size)
        for count, size in ((rows, height), (columns, width))
    ]
    padded = np.pad(image, (*rims, (0, 0)), mode="symmetric")
    side = tile + 2 * overlap
    places = [(i * tile, j * tile) for i in range(rows) for j in range(columns)]
    tiles = np.stack([padded[y : y + side, x : x + side] for y, x in places])
    # Equal batches, so that there is one program.
    missing = -len(tiles) % batch_size
    tiles = np.concatenate([tiles, np.repeat(tiles[-1:], missing, axis=0)])
    parts = [
        ops.convert_to_numpy(model.predict_on_batch(tiles[i : i + batch_size]))
        for i in range(0, len(tiles), batch_size)
    ]
    found = np.concatenate(parts)
    scale = found.shape[1] // side
    rim = slice(overlap * scale, (overlap + tile) * scale)
    large = np.zeros((rows * tile * scale, columns * tile * scale, image.shape[2]))
    for (y, x), part in zip(places, found, strict=False):
        y, x = y * scale, x * scale
        large[y : y + tile * scale, x : x + tile * scale] = part[rim, rim]
    return large[: height * scale, : width * scale]
