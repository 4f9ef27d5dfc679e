r"""Capsule network: groups of neurons that represent an object's presence and pose.

A capsule is a vector. Its length is the confidence that its object is present; its
direction describes the object's pose: slant, thickness, position. Each capsule i of one
layer predicts the output of each capsule j of the next, u_hat_ij = W_ij u_i: "if I am
the upper loop of an 8, the 8 has this pose". Capsules whose predictions agree with the
others' get more weight: this is routing by agreement.

    b_ij = 0
    r times:  c_i = softmax_j(b_ij)                 how i divides its vote among j
              s_j = sum_i c_ij u_hat_ij             weighted prediction for j
              v_j = |s_j|^2 / (1 + |s_j|^2) s_j / |s_j|                  (squash)
              b_ij = b_ij + u_hat_ij . v_j          agreement

Letters as in the paper: u input capsules, v output capsules, r `routings`. Shapes: B
batch, I input capsules, J `num_capsules`, D `capsule_dim`, K classes.

Reference: Sabour, Frosst, Hinton, 2017, https://arxiv.org/abs/1710.09829.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from kit import checks
from kit.autoencoder import decoder as dense_decoder
from kit.backend import Tensor
from kit.models import Model, WithParts, output_range, to_array

# Convolutions: (filters, kernel size, strides); primary capsules: (kinds, kernel size,
# strides).
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "small": {
        "convolutions": ((32, 3, 1), (32, 3, 2), (64, 3, 1), (64, 3, 1)),
        "batch_normalization": True,
        "primary": (16, 5, 2),
        "share_weights": True,
        "decoder_units": (128, 256),
        "smallest_image": 21,
    },
    "paper": {
        "convolutions": ((256, 9, 1),),
        "batch_normalization": False,
        "primary": (32, 9, 2),
        "share_weights": False,
        "decoder_units": (512, 1024),
        "smallest_image": 17,
    },
}


ACCEPTED = {
    "input_shape": checks.IMAGE,
    "num_classes": checks.SIZE,
    "architecture": checks.one_of(*ARCHITECTURES),
    "routings": checks.SIZE,
    "capsule_dim": checks.SIZE,
    "share_weights": checks.BOOL | None,
    "reconstruction_weight": checks.WEIGHT,
    "preprocessing": checks.LAYER | None,
    # CapsNet, PrimaryCaps, CapsuleLayer
    "capsules": checks.MODEL,
    "decoder": checks.MODEL,
    "channels": checks.SIZE,
    "kernel_size": checks.SIZE | checks.sequence(checks.SIZE, length=2),
    "strides": checks.SIZE | checks.sequence(checks.SIZE, length=2),
    "padding": checks.one_of("valid", "same"),
    "num_capsules": checks.SIZE,
    "kinds": checks.SIZE | None,
    "kernel_initializer": checks.INITIALIZER | None,
    # squash, margin_loss
    "s": checks.array("B ...", "floats"),
    "axis": checks.INTEGER,
    "y_true": checks.array("B ..."),
    "y_pred": checks.array("B K"),
    "m_plus": checks.FRACTION,
    "m_minus": checks.FRACTION,
    "lambda_": checks.WEIGHT,
}


def capsnet(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    architecture: Literal["small", "paper"] = "small",
    routings: int = 3,
    capsule_dim: int = 16,
    share_weights: bool | None = None,
    reconstruction_weight: float = 0.0005,
    preprocessing: keras.layers.Layer | None = None,
) -> "CapsNet":
    """Builds a capsule network: convolutions, primary capsules, one capsule per class.

    `"paper"` has a convolution of 256 filters of 9 x 9 pixels, 32 kinds of primary
    capsules from a second convolution, and a decoder of 512 and 1024 hidden units: 8.2
    million weights. `"small"` trains on a CPU in minutes: four convolutions of 32 and
    64 filters of 3 x 3 pixels with batch normalization, 16 kinds of primary capsules at
    2 x 2 places, which share weights, and a decoder of 128 and 256 hidden units: 0.55
    million weights. Primary capsules have 8 numbers in both.

    Args:
        input_shape: (height, width, channels), 21 pixels or more each way, 17 for
            `"paper"`. Defaults to `(28, 28, 1)`.
        num_classes: K, number of classes. Defaults to 10.
        architecture: `"small"` or `"paper"`. Defaults to `"small"`.
        routings: Steps of routing by agreement. With 1, every capsule divides its vote
            evenly: a layer without routing. Defaults to 3, as in the paper.
        capsule_dim: D, numbers in a class capsule. Defaults to 16.
        share_weights: Whether primary capsules of one kind share the weights of their
            predictions at all places, so that what is learned at one place holds at all
            others. Defaults to `True` for `"small"`, `False` for `"paper"`.
        reconstruction_weight: See `CapsNet`. Defaults to 0.0005.
        preprocessing: Layer or model that scales images to [0, 1] and may augment them
            in training. Defaults to `None`.

    Returns:
        A `CapsNet`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the images are too small, or an argument is out of range.

    Example:

    ```python
    model = kit.capsnet((28, 28, 1), 10)
    model.compile("adam", metrics=["accuracy"])
    model.fit(np.random.rand(100, 28, 28, 1), np.arange(100) % 10)
    model.predict(np.random.rand(5, 28, 28, 1))["length"]  # shape (5, 10)
    ```
    """
    checks.check("capsnet", locals(), ACCEPTED)
    sizes = ARCHITECTURES[architecture]
    least = sizes["smallest_image"]
    if min(input_shape[:2]) < least:
        raise ValueError(
            "capsnet: `input_shape` must be (height, width, channels) with at least "
            f"{least} x {least} pixels, received {tuple(input_shape)}."
        )
    if share_weights is None:
        share_weights = sizes["share_weights"]
    x = keras.Input(tuple(input_shape))
    features = x
    for filters, kernel_size, strides in sizes["convolutions"]:
        features = keras.layers.Conv2D(filters, kernel_size, strides)(features)
        if sizes["batch_normalization"]:  # adapts even in short trainings
            features = keras.layers.BatchNormalization(momentum=0.9)(features)
        features = keras.layers.ReLU()(features)
    channels, kernel_size, strides = sizes["primary"]
    u = PrimaryCaps(channels, 8, kernel_size, strides)(features)
    kinds = channels if share_weights else None
    v = CapsuleLayer(num_classes, capsule_dim, routings, kinds)(u)
    return CapsNet(
        capsules=Model(x, v, name="capsules"),
        decoder=dense_decoder(
            input_shape, num_classes * capsule_dim, sizes["decoder_units"]
        ),
        reconstruction_weight=reconstruction_weight,
        preprocessing=preprocessing,
    )


@keras.saving.register_keras_serializable(package="kit")
class CapsNet(WithParts, Model):
    """Capsules that classify, and a decoder that regularizes them.

    Training makes the capsule of the right class long and the others short
    (`margin_loss`), and lets the decoder reconstruct the image from the right class'
    capsule alone. So that capsule must encode the image's pose, not only its class. The
    loss of an image x of class y is

        margin_loss(y, |v|) + reconstruction_weight sum_pixels (x - x^)^2.

    The sum is the paper's form, with its weight 0.0005; for 784 pixels, that is 0.392
    times the mean squared error.

    The model maps images to a dict: `"length"` (B, K), the scores of the classes;
    `"capsules"` (B, K, D), their poses; `"image"`, the preprocessed image, which is the
    decoder's target. The metrics of `compile` get the lengths.

    Args:
        capsules: Built model from images to capsules (B, K, D).
        decoder: Built model from (B, K D), where all capsules but one are zeros, to
            images.
        reconstruction_weight: Weight of the sum of squared errors, 0 or more.
            Defaults to 0.0005.
        preprocessing: Layer or model applied to the images first. Defaults to `None`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the parts don't fit together, or the weight is negative.

    Example: see `capsnet`.
    """

    parts = ("capsules", "decoder", "preprocessing")

    def __init__(
        self,
        capsules: keras.Model,
        decoder: keras.Model,
        reconstruction_weight: float = 0.0005,
        preprocessing: keras.layers.Layer | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        shape = capsules.output_shape
        if len(shape) != 3 or decoder.input_shape[1:] != (shape[1] * shape[2],):
            raise ValueError(
                "CapsNet: `capsules` must give (B, K, D) and `decoder` take (B, K D); "
                f"received {shape} and {decoder.input_shape}."
            )
        if preprocessing is None and decoder.output_shape != capsules.input_shape:
            raise ValueError(
                "CapsNet: `decoder` must give images as `capsules` takes them, "
                f"{capsules.input_shape}; received {decoder.output_shape}."
            )
        self.capsules = capsules
        self.decoder = decoder
        self.reconstruction_weight = reconstruction_weight
        self.preprocessing = preprocessing
        self.num_classes = shape[1]
        self.length = Length()
        self.mask = Mask()
        self.reconstruction_mse = keras.metrics.Mean("reconstruction_mse")
        self.built = True  # the parts are already built

    def build(self, input_shape):
        """Does nothing: the parts are already built."""

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """Compiles as Keras does; the default loss is `margin_loss`."""
        loss = margin_loss if loss is None else loss
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def fit(self, x=None, y=None, *args, **kwargs):
        """Fits as Keras does, after a check that x is finite and y are classes."""
        self._check_data(x, y)
        if isinstance(kwargs.get("validation_data"), (tuple, list)):
            self._check_data(*kwargs["validation_data"][:2])
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Evaluates as Keras does, after a check that x is finite and y are classes."""
        self._check_data(x, y)
        return super().evaluate(x, y, *args, **kwargs)

    def call(self, inputs, training=None):
        """Returns lengths, capsules and preprocessed images, as a dict."""
        image = ops.cast(inputs, self.compute_dtype)
        if self.preprocessing is not None:
            image = self.preprocessing(image, training=training)
        v = self.capsules(image, training=training)  # (B, K, D)
        return {"length": self.length(v), "capsules": v, "image": image}

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the loss of `compile` plus the reconstruction loss."""
        loss = super().compute_loss(x, y, y_pred["length"], sample_weight, training)
        drawn = self.decode(y_pred["capsules"], y, training=training)
        error = ops.square(ops.cast(y_pred["image"] - drawn, loss.dtype))
        self.reconstruction_mse.update_state(error)
        error = ops.sum(error, axis=(1, 2, 3))  # (B,)
        if sample_weight is not None:
            weight = ops.reshape(ops.cast(sample_weight, error.dtype), (-1,))
            error = error * weight
        return loss + self.reconstruction_weight * ops.mean(error)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics of `compile` with the lengths."""
        return super().compute_metrics(x, y, y_pred["length"], sample_weight)

    def decode(self, v: Tensor, y: Tensor = None, training: bool = False) -> Tensor:
        """Returns the images that the decoder reconstructs from capsules.

        Args:
            v: Capsules, (B, K, D): `predict(x)["capsules"]`, changed as you like.
            y: Classes (B,) of the capsules to decode. Defaults to the longest ones.
            training: Whether to decode in training mode.

        Returns:
            Images, (B, height, width, channels).
        """
        v = ops.convert_to_tensor(v)
        return self.decoder(self.mask(v if y is None else (v, y)), training=training)

    def _check_data(self, x, y):
        x, y = to_array(x), to_array(y)
        if x is None:
            return  # a generator or a dataset, which Keras' `fit` iterates over
        if not np.isfinite(x).all():
            raise ValueError("CapsNet: `x` has values that are NaN or infinite.")
        low, high = output_range(self.decoder) or (-np.inf, np.inf)
        # With preprocessing, any range is accepted.
        outside = x.size and (x.min() < low or x.max() > high)
        if outside and self.preprocessing is None:
            raise ValueError(
                f"CapsNet: `x` must be in [{low:g}, {high:g}], which is all that the "
                f"decoder can draw, or have a `preprocessing` that brings it there; "
                f"received {x.min():g} to {x.max():g}."
            )
        if y is None:
            raise ValueError("CapsNet: `y` is missing: the classes, (B,) or one-hot.")
        if y.ndim == 2 and y.shape[1] == self.num_classes:  # one-hot
            if not ((y >= 0) & (y <= 1)).all():
                raise ValueError("CapsNet: a one-hot `y` must be of numbers in [0, 1].")
            return
        if y.ndim > 2 or y.shape[1:] not in ((), (1,)):
            raise ValueError(
                f"CapsNet: `y` must be classes (B,), or one-hot (B, {self.num_classes}"
                f"), received the shape {y.shape}."
            )
        wrong = y[~((y >= 0) & (y < self.num_classes) & (y == np.floor(y)))]
        if len(wrong):
            raise ValueError(
                f"CapsNet: `y` must be integers from 0 to {self.num_classes - 1}, "
                f"received {np.unique(wrong)[:5].tolist()}."
            )

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        weight = {"reconstruction_weight": self.reconstruction_weight}
        return {**super().get_config(), **weight}


@keras.saving.register_keras_serializable(package="kit")
class PrimaryCaps(keras.layers.Layer):
    """First capsules: a convolution whose channels are grouped into vectors.

    At each place of its output grid, there are `channels` squashed capsules of
    `capsule_dim` numbers; all places share the weights.

    Args:
        channels: Kinds of capsules; 32 in the paper.
        capsule_dim: Numbers in a capsule. Defaults to 8.
        kernel_size: Height and width of the filters. Defaults to 9.
        strides: Pixels between neighbouring places. Defaults to 2.
        padding: `"valid"` or `"same"`, as in `keras.layers.Conv2D`. Defaults to
            `"valid"`.
        kernel_initializer: Initializer of the filters. Defaults to
            `"glorot_uniform"`.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Input shape:
        Images or feature maps, (B, height, width, channels).

    Output shape:
        (B, I, capsule_dim), where I is the number of places times `channels`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size isn't a positive integer, or the inputs' rank isn't 4.
    """

    def __init__(
        self,
        channels: int,
        capsule_dim: int = 8,
        kernel_size: int = 9,
        strides: int = 2,
        padding: str = "valid",
        kernel_initializer: Any = "glorot_uniform",
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.channels = channels
        self.capsule_dim = capsule_dim
        self.kernel_size = kernel_size
        self.strides = strides
        self.padding = padding
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.convolution = keras.layers.Conv2D(
            channels * capsule_dim,
            kernel_size,
            strides,
            padding,
            kernel_initializer=self.kernel_initializer,
            dtype=self.dtype_policy,
            name="convolution",
        )

    def build(self, input_shape):
        """Builds the convolution."""
        _check_rank(self, input_shape, 4, "(B, height, width, channels)")
        self.convolution.build(input_shape)

    def call(self, inputs):
        """Returns capsules (B, I, capsule_dim)."""
        s = self.convolution(inputs)  # (B, H, W, channels capsule_dim)
        num_capsules = math.prod(s.shape[1:3]) * self.channels
        return squash(ops.reshape(s, (-1, num_capsules, self.capsule_dim)))

    def compute_output_shape(self, input_shape):
        """Returns (B, I, capsule_dim)."""
        shape = self.convolution.compute_output_shape(input_shape)
        number = None if None in shape[1:3] else math.prod(shape[1:3]) * self.channels
        return (input_shape[0], number, self.capsule_dim)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "channels": self.channels,
            "capsule_dim": self.capsule_dim,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "padding": self.padding,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="kit")
class CapsuleLayer(keras.layers.Layer):
    """Capsules connected to the layer below by routing by agreement.

    See the top of this file for the equations. The gradient flows through all routing
    steps.

    Memory: the predictions u_hat are the largest tensor, with B J I D numbers: for the
    paper's 1152 input and 10 x 16 output capsules, 0.74 MB an image in float32, 94 MB a
    batch of 128. It is stored once, as (B, J, I, D), and the routing steps are matrix
    products with it: u, W, c and v are never broadcast to its size. (The gradient needs
    a second copy, and one more for each routing step after the first, unless the
    compiler adds them up in place.)

    Args:
        num_capsules: J, number of output capsules.
        capsule_dim: D, numbers in each.
        routings: r, steps of routing, 1 or more. Defaults to 3.
        kinds: Number of kinds of input capsules, if capsules of one kind share their
            W_ij at all places of the image (Hinton et al., 2018, below). The inputs
            must be ordered place by place, as from `PrimaryCaps`. Defaults to `None`:
            nothing is shared, as in the paper.
        kernel_initializer: Initializer of the W_ij. Defaults to a normal distribution
            with the standard deviation 0.1.
        **kwargs: Arguments of `keras.layers.Layer`, such as `name`.

    Call arguments:
        inputs: Capsules u.
        mask: Boolean (B, I), optional; capsules with `False` are ignored.

    Input shape:
        (B, I, size), where I and size are known.

    Output shape:
        (B, J, D).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number isn't a positive integer, the inputs' rank isn't 3, or
            `kinds` doesn't divide I.

    Example:

    ```python
    layer = CapsuleLayer(num_capsules=10, capsule_dim=16, routings=3)
    layer(np.random.rand(2, 1152, 8)).shape  # (2, 10, 16)
    ```

    Reference: Hinton, Sabour, Frosst, 2018, https://openreview.net/forum?id=HJWLfGWRb.
    """

    def __init__(
        self,
        num_capsules: int,
        capsule_dim: int,
        routings: int = 3,
        kinds: int | None = None,
        kernel_initializer: Any = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.num_capsules = num_capsules
        self.capsule_dim = capsule_dim
        self.routings = routings
        self.kinds = kinds
        self.kernel_initializer = keras.initializers.get(
            kernel_initializer or keras.initializers.RandomNormal(stddev=0.1)
        )
        self.supports_masking = True

    def build(self, input_shape):
        """Builds W: for each input capsule, a matrix to all output capsules."""
        _check_rank(self, input_shape, 3, "capsules (B, I, size)")
        num, size = input_shape[1:]
        if self.kinds and num % self.kinds:
            raise ValueError(
                f"CapsuleLayer: `kinds`={self.kinds} doesn't divide the {num} capsules "
                "that come in."
            )
        self.kernel = self.add_weight(
            shape=(self.kinds or num, size, self.num_capsules * self.capsule_dim),
            initializer=self.kernel_initializer,
            name="kernel",
        )

    def call(self, inputs, mask=None):
        """Returns capsules v, (B, J, D)."""
        u = inputs
        if mask is not None:  # The prediction of a zero capsule is zero.
            u = u * ops.cast(ops.expand_dims(mask, -1), u.dtype)
        u_hat = self.predict_outputs(u)
        b = None  # (B, J, I)
        for step in range(self.routings):
            if b is None:  # softmax of zeros
                s = ops.sum(u_hat, axis=2) / self.num_capsules  # (B, J, D)
            else:
                c = ops.expand_dims(ops.softmax(b, axis=1), 2)  # (B, J, 1, I)
                s = ops.squeeze(ops.matmul(c, u_hat), axis=2)
            v = squash(s)
            if step < self.routings - 1:
                agreement = ops.matmul(u_hat, ops.expand_dims(v, -1))  # (B, J, I, 1)
                agreement = ops.squeeze(agreement, axis=-1)
                b = agreement if b is None else b + agreement
        return v

    def predict_outputs(self, u: Tensor) -> Tensor:
        """Returns u_hat_ij = W_ij u_i, in the order (B, J, I, D)."""
        num, size = u.shape[1:]
        kinds = self.kinds or num
        u = ops.reshape(u, (-1, num // kinds, kinds, size))
        u = ops.reshape(ops.transpose(u, (2, 1, 0, 3)), (kinds, -1, size))
        u_hat = ops.matmul(u, self.kernel)  # (kinds, places B, J D)
        shape = (kinds, num // kinds, -1, self.num_capsules, self.capsule_dim)
        u_hat = ops.transpose(ops.reshape(u_hat, shape), (2, 3, 1, 0, 4))
        return ops.reshape(u_hat, (-1, self.num_capsules, num, self.capsule_dim))

    def compute_mask(self, inputs, mask=None):
        """Returns `None`: no output capsule is masked."""
        return None

    def compute_output_shape(self, input_shape):
        """Returns (B, J, D)."""
        return (input_shape[0], self.num_capsules, self.capsule_dim)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {
            **super().get_config(),
            "num_capsules": self.num_capsules,
            "capsule_dim": self.capsule_dim,
            "routings": self.routings,
            "kinds": self.kinds,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
        }


@keras.saving.register_keras_serializable(package="kit")
class Length(keras.layers.Layer):
    """Lengths of capsules: the confidence of each one, between 0 and 1.

    Input shape:
        (B, J, D).

    Output shape:
        (B, J).
    """

    def call(self, inputs):
        """Returns |v|."""
        # The root has no gradient at 0.
        squares = ops.sum(ops.square(inputs), axis=-1)
        return ops.sqrt(squares + keras.config.epsilon())

    def compute_output_shape(self, input_shape):
        """Returns (B, J)."""
        return tuple(input_shape[:-1])


@keras.saving.register_keras_serializable(package="kit")
class Mask(keras.layers.Layer):
    """Sets all capsules except one to zero, and flattens them for the decoder.

    Call arguments:
        inputs: Capsules v; the longest is kept. Or a pair (v, y), y being the classes
            to keep, (B,), (B, 1) or one-hot (B, J).

    Input shape:
        (B, J, D).

    Output shape:
        (B, J D).
    """

    def call(self, inputs):
        """Returns the masked capsules, flattened."""
        v, y = inputs if isinstance(inputs, (list, tuple)) else (inputs, None)
        if y is None:
            y = ops.argmax(ops.sum(ops.square(v), axis=-1), axis=-1)
        keep = ops.expand_dims(_one_hot(y, v.shape[1], v.dtype), -1)
        return ops.reshape(v * keep, (-1, v.shape[1] * v.shape[2]))

    def compute_output_shape(self, input_shape):
        """Returns (B, J D)."""
        pair = isinstance(input_shape[0], (list, tuple))
        shape = input_shape[0] if pair else input_shape
        return (shape[0], shape[1] * shape[2])


@keras.saving.register_keras_serializable(package="kit")
def squash(s: Tensor, axis: int = -1) -> Tensor:
    """Shortens vectors to a length below 1 and keeps their directions.

    v = |s|^2 / (1 + |s|^2) s / |s|: the length of short vectors becomes nearly 0, that
    of long vectors nearly 1.

    Args:
        s: Vectors along `axis`.
        axis: Defaults to the last.

    Returns:
        v, of the shape of s.
    """
    checks.check("squash", locals(), ACCEPTED)
    s = ops.convert_to_tensor(s)
    if not -len(s.shape) <= axis < len(s.shape):
        raise ValueError(
            f"squash: `axis` must be an axis of `s`, received {axis} for the shape "
            f"{tuple(s.shape)}."
        )
    squares = ops.sum(ops.square(s), axis=axis, keepdims=True)
    # The root has no gradient at 0.
    return s * (squares / (1.0 + squares) / ops.sqrt(squares + keras.config.epsilon()))


@keras.saving.register_keras_serializable(package="kit")
def margin_loss(
    y_true: Tensor,
    y_pred: Tensor,
    m_plus: float = 0.9,
    m_minus: float = 0.1,
    lambda_: float = 0.5,
) -> Tensor:
    """Margin loss: the right capsule must be long, the others short.

    sum_k T_k max(0, m_plus - |v_k|)^2 + lambda (1 - T_k) max(0, |v_k| - m_minus)^2,
    T_k being 1 if class k is present. Several classes may be present. lambda keeps the
    many absent classes from shrinking all capsules at the start.

    Args:
        y_true: Classes (B,) or (B, 1), or T, ones and zeros (B, K).
        y_pred: Lengths |v|, (B, K).
        m_plus: Length above which a present class has no loss. Defaults to 0.9.
        m_minus: Length below which an absent class has no loss. Defaults to 0.1.
        lambda_: Weight of absent classes. Defaults to 0.5.

    Returns:
        Losses, (B,).
    """
    checks.check("margin_loss", locals(), ACCEPTED)
    t = _one_hot(y_true, y_pred.shape[-1], y_pred.dtype)
    present = ops.square(ops.maximum(0.0, m_plus - y_pred))
    absent = ops.square(ops.maximum(0.0, y_pred - m_minus))
    return ops.sum(t * present + lambda_ * (1.0 - t) * absent, axis=-1)


def _one_hot(y, number, dtype):
    """Returns one-hot (B, number) from classes (B,) or (B, 1), or from one-hot."""
    y = ops.convert_to_tensor(y)
    if len(y.shape) == 2 and y.shape[1] == number:
        return ops.cast(y, dtype)
    classes = ops.cast(ops.reshape(y, (-1,)), "int32")
    return ops.one_hot(classes, number, dtype=dtype)


def _check_rank(layer, shape, rank, form):
    if len(shape) != rank or None in shape[1:]:
        raise ValueError(
            f"{type(layer).__name__}: the inputs must be {form} of a known size, "
            f"received the shape {tuple(shape)}."
        )
