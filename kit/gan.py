"""Generative adversarial network: generator and discriminator train each other.

The generator G makes examples from random numbers z, the discriminator D scores how
real an example looks, and each learns against the other. With D(x) a logit and
softplus(a) = log(1 + e^a), the discriminator minimizes

    L_D = softplus(-D(x)) + softplus(D(G(z))),

the cross-entropy of "real" and "fake", and the generator the non-saturating

    L_G = softplus(-D(G(z))),

whose gradient stays large even if D is certain. With an optimal D, G minimizes a
distance between the two distributions. The alternative is the Wasserstein distance: D
becomes a critic, and a penalty keeps its slope near 1, which needs a gradient inside
the loss:

    L_D = D(G(z)) - D(x) + gradient_penalty (|grad D(x^)| - 1)^2,    L_G = -D(G(z)),

with x^ a random point on the line between a real and a fake example.

Shapes: B batch, L numbers in z (latent dimension), C classes.

Reference: Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661; Gulrajani et al.,
2017, https://arxiv.org/abs/1704.00028 (gradient penalty); Radford et al., 2016,
https://arxiv.org/abs/1511.06434 (convolutions); Mirza and Osindero, 2014,
https://arxiv.org/abs/1411.1784 (labels).
"""

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import layers, ops

from kit import checks, random
from kit.backend import compiled, gradient, minimize
from kit.models import Model, WithParts, output_range, to_array

LOSSES = ("non_saturating", "wasserstein")
ACCEPTED = {
    "output_shape": checks.SIZES,
    "input_shape": checks.SIZES,
    "latent_dim": checks.SIZE,
    "units": checks.SIZES,
    "filters": checks.sequence(checks.SIZE, least=1),
    "num_classes": checks.SIZE | None,
    "output_activation": checks.ACTIVATION,
    "dropout": checks.SHARE,
    # GAN
    "generator": checks.MODEL,
    "discriminator": checks.MODEL,
    "loss": checks.one_of(*LOSSES),
    "gradient_penalty": checks.WEIGHT,
    "discriminator_steps": checks.SIZE,
    "seed": checks.SEED,
    "num": checks.SIZE,
}


def generator(
    output_shape: Sequence[int] = (784,),
    latent_dim: int = 100,
    units: Sequence[int] = (128,),
    num_classes: int | None = None,
    output_activation: Any = "tanh",
) -> keras.Model:
    """Builds a generator of Dense layers: 100-128-784 by default.

    Args:
        output_shape: Shape of an example. Defaults to `(784,)`.
        latent_dim: L, random numbers for an example. Defaults to 100.
        units: Sizes of the hidden layers. Defaults to `(128,)`.
        num_classes: C, to generate examples of a given class; the model then takes
            `[z, one-hot labels]`. Defaults to `None`: no classes.
        output_activation: `"tanh"`, the default, for examples in [-1, 1].

    Returns:
        A `keras.Model` from `(B, L)`, or `[(B, L), (B, C)]`, to `(B, *output_shape)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size isn't 1 or more.
    """
    checks.check("generator", locals(), ACCEPTED)
    inputs, x = _latent_inputs(latent_dim, num_classes)
    for size in units:
        x = layers.Dense(size, activation="leaky_relu")(x)
    x = layers.Dense(math.prod(output_shape), activation=output_activation)(x)
    if len(output_shape) != 1:
        x = layers.Reshape(tuple(output_shape))(x)
    return keras.Model(inputs, x, name="generator")


def discriminator(
    input_shape: Sequence[int] = (784,),
    units: Sequence[int] = (128,),
    num_classes: int | None = None,
    dropout: float = 0.0,
) -> keras.Model:
    """Builds a discriminator of Dense layers: 784-128-1 by default.

    Args:
        input_shape: Shape of an example, which is flattened. Defaults to `(784,)`.
        units: Sizes of the hidden layers. Defaults to `(128,)`.
        num_classes: C, to score examples together with their classes; the model then
            takes `[x, one-hot labels]`. Defaults to `None`: no classes.
        dropout: Share of each hidden layer's outputs to drop in training. It reduces
            overfitting to few examples. Defaults to 0.

    Returns:
        A `keras.Model` from `(B, *input_shape)`, or `[(B, *input_shape), (B, C)]`, to
        logits `(B, 1)`: positive for real.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size isn't 1 or more.
    """
    checks.check("discriminator", locals(), ACCEPTED)
    image = x = keras.Input(tuple(input_shape), name="x")
    if len(input_shape) != 1:
        x = layers.Flatten()(x)
    for size in units:
        x = layers.Dense(size, activation="leaky_relu")(x)
        x = layers.Dropout(dropout)(x) if dropout else x
    return _judge(image, x, num_classes)


def conv_generator(
    output_shape: Sequence[int] = (28, 28, 1),
    latent_dim: int = 100,
    filters: Sequence[int] = (64, 32, 16),
    num_classes: int | None = None,
    output_activation: Any = "tanh",
) -> keras.Model:
    """Builds a convolutional generator: 7x7, then 14x14, then 28x28 by default.

    A Dense layer produces a small image with many channels, which is upsampled by 2 and
    convolved until it has the output's size. On JAX (CPU), a training step takes a
    third of its time with `Conv2DTranspose`.

    Args:
        output_shape: Height, width and channels. Height and width must be divisible by
            2 for each upsampling. Defaults to `(28, 28, 1)`.
        latent_dim: L, random numbers for an image. Defaults to 100.
        filters: Channels at each image size, from the smallest to the largest. Defaults
            to `(64, 32, 16)`.
        num_classes: See `generator`.
        output_activation: See `generator`.

    Returns:
        A `keras.Model` from `(B, L)`, or `[(B, L), (B, C)]`, to `(B, *output_shape)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size isn't 1 or more, or `output_shape` can't be reached.
    """
    checks.check("conv_generator", locals(), {**ACCEPTED, "output_shape": checks.IMAGE})
    height, width, channels = output_shape
    factor = 2 ** (len(filters) - 1)
    if height % factor or width % factor:
        raise ValueError(
            f"conv_generator: {len(filters)} `filters` double the image's size "
            f"{len(filters) - 1} times, so `output_shape` must be divisible by "
            f"{factor}, received {tuple(output_shape)}."
        )
    inputs, x = _latent_inputs(latent_dim, num_classes)
    first = (height // factor, width // factor, filters[0])
    x = layers.Dense(math.prod(first), activation="leaky_relu")(x)
    x = layers.Reshape(first)(x)
    for size in filters[1:]:
        x = layers.UpSampling2D(2)(x)
        x = layers.Conv2D(size, 3, padding="same", activation="leaky_relu")(x)
    x = layers.Conv2D(channels, 3, padding="same", activation=output_activation)(x)
    return keras.Model(inputs, x, name="generator")


def conv_discriminator(
    input_shape: Sequence[int] = (28, 28, 1),
    filters: Sequence[int] = (32, 64),
    num_classes: int | None = None,
    dropout: float = 0.3,
) -> keras.Model:
    """Builds a convolutional discriminator: each convolution halves the image.

    Args:
        input_shape: Height, width and channels. Defaults to `(28, 28, 1)`.
        filters: Number of filters of each convolution. Defaults to `(32, 64)`.
        num_classes: See `discriminator`.
        dropout: Share of whole channels to drop in training, which needs few random
            numbers. Defaults to 0.3.

    Returns:
        A `keras.Model` from `(B, *input_shape)`, or `[(B, *input_shape), (B, C)]`, to
        logits `(B, 1)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size isn't 1 or more, or `input_shape` isn't an image's.
    """
    image_shape = {"input_shape": checks.IMAGE}
    checks.check("conv_discriminator", locals(), {**ACCEPTED, **image_shape})
    image = x = keras.Input(tuple(input_shape), name="x")
    for size in filters:
        x = layers.Conv2D(size, 4, strides=2, padding="same", activation="leaky_relu")(
            x
        )
        x = layers.SpatialDropout2D(dropout)(x) if dropout else x
    return _judge(image, layers.Flatten()(x), num_classes)


class Adversarial(WithParts, Model):
    """Base class of models of two networks, each of which has its own optimizer.

    Attributes:
        generator: A built model.
        discriminator: A built model.
    """

    generator: keras.Model
    discriminator: keras.Model

    def build(self, input_shape):
        """Does nothing: the parts are already built."""

    def compile(self, generator_optimizer="adam", discriminator_optimizer="adam"):
        """Sets the optimizer of each part: a Keras optimizer or the name of one."""
        super().compile(optimizer=None, loss=None)
        self.generator_optimizer = keras.optimizers.get(generator_optimizer)
        self.discriminator_optimizer = keras.optimizers.get(discriminator_optimizer)
        if self.generator_optimizer is self.discriminator_optimizer:
            raise ValueError(
                f"{type(self).__name__}: `generator_optimizer` and "
                "`discriminator_optimizer` must be two optimizers, received the same "
                "one twice."
            )
        self.generator_optimizer.build(self.generator.trainable_variables)
        self.discriminator_optimizer.build(self.discriminator.trainable_variables)

    def get_compile_config(self):
        """Returns the arguments of `compile`, for saving."""
        if not self.compiled:
            return {}
        return {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in ("generator_optimizer", "discriminator_optimizer")
        }


@keras.saving.register_keras_serializable(package="kit")
class GAN(Adversarial):
    """Generator and discriminator, trained in alternating steps.

    For each batch of real examples, the discriminator makes `discriminator_steps`
    steps, each with new fake examples; then the generator makes one. A step of one
    leaves the other unchanged, including BatchNormalization's running statistics.
    Train with `fit(x)`, or `fit(x, y)` with labels. `compile` takes two optimizers and
    no loss. If the generator's has `use_ema=True`, `fit` ends with the moving averages
    of its weights, which generate better examples than the last step's. The logs
    contain both losses, and the mean scores of real and of fake examples.

    Args:
        generator: Built model from z `(B, L)` to examples; with `num_classes` from
            `[z, one-hot labels]`. `generator` and `conv_generator` build one.
        discriminator: Built model from examples to scores `(B, 1)`, without an
            activation at the end; with `num_classes` from `[x, one-hot labels]`.
        num_classes: C, number of classes, for examples of a given class. Defaults to
            `None`: no classes.
        loss: `"non_saturating"` or `"wasserstein"`. Defaults to the first.
        gradient_penalty: Weight of the critic's penalty, only for `"wasserstein"`.
            Defaults to 10.
        discriminator_steps: Steps of the discriminator per step of the generator. The
            paper of `"wasserstein"` uses 5. Defaults to 1.
        seed: Seed of the noise; every backend makes the same draws. Defaults to 0.

    Raises:
        TypeError: If one of the parts is no Keras model.
        ValueError: If they don't fit together, or an option is out of range.

    Example:

    ```python
    gan = kit.GAN(kit.gan.generator(), kit.gan.discriminator())
    gan.compile(keras.optimizers.Adam(2e-4, 0.5), keras.optimizers.Adam(2e-4, 0.5))
    gan.fit(np.random.uniform(-1, 1, (100, 784)), epochs=2)
    gan.sample(16, seed=1)  # new examples, shape (16, 784)
    ```
    """

    parts = ("generator", "discriminator")

    def __init__(
        self,
        generator: keras.Model,
        discriminator: keras.Model,
        num_classes: int | None = None,
        loss: str = "non_saturating",
        gradient_penalty: float = 10.0,
        discriminator_steps: int = 1,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        _check_parts(generator, discriminator, num_classes)
        self.generator = generator
        self.discriminator = discriminator
        self.num_classes = num_classes
        self.loss_name = loss
        self.gradient_penalty = gradient_penalty
        self.discriminator_steps = int(discriminator_steps)
        self.seed = seed
        self.latent_dim = generator.inputs[0].shape[-1]
        self.example_shape = tuple(generator.output_shape[1:])
        self.random = random.Generator(seed)
        self.random_state = self.random.state  # to have it saved with the weights
        self.trackers = [
            keras.metrics.Mean(name=name)
            for name in ("discriminator_loss", "generator_loss", "real", "fake")
        ]
        self.built = True

    def fit(self, x=None, y=None, *args, **kwargs):
        """Trains on real examples x `(N, ...)`, and labels y `(N,)` if conditional.

        Arguments and results are otherwise those of `kit.Model.fit`.

        Raises:
            ValueError: If x has another shape than the generator's examples or isn't
                finite; if labels are missing, unexpected or out of range.
        """
        self._check_data(x, y)
        history = super().fit(x, y, *args, **kwargs)
        if history.epoch:  # without a step, averages are still zeros
            self.generator_optimizer.finalize_variable_values(
                self.generator.trainable_variables
            )
        return history

    def train_batch(self, x, y=None, sample_weight=None):
        """Makes the discriminator's steps, then one step of the generator."""
        if sample_weight is not None:
            raise ValueError("GAN.fit: `sample_weight` has no meaning here.")
        labels = self._one_hot(y)
        for _ in range(self.discriminator_steps):
            self.train_discriminator(x, labels)
        self.train_generator(x.shape[0], labels)
        return {tracker.name: tracker.result() for tracker in self.trackers}

    def train_discriminator(self, x, labels=None):
        """Makes one gradient step of the discriminator, to tell real from fake."""
        x = ops.cast(x, self.compute_dtype)
        with _unchanged(self.generator):
            fake_x = self.generate(self._draw(x.shape[0]), labels, training=True)

        def loss_fn():
            real = self.score(x, labels, training=True)
            fake = self.score(fake_x, labels, training=True)
            if self.loss_name == "wasserstein":
                loss = ops.mean(fake) - ops.mean(real)
                if self.gradient_penalty:
                    penalty = self._penalize_slope(x, fake_x, labels)
                    loss = ops.cast(loss, "float32") + self.gradient_penalty * penalty
            else:
                loss = ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(fake))
            return loss, (real, fake)

        variables = self.discriminator.trainable_variables
        loss, scores = minimize(loss_fn, variables, self.discriminator_optimizer)
        for name, value in zip((0, 2, 3), (loss, *scores), strict=True):
            self.trackers[name].update_state(value)
        return loss

    def train_generator(self, batch_size, labels=None):
        """Makes one gradient step of the generator, to raise the scores of fakes."""
        z = self._draw(batch_size)

        def loss_fn():
            fake = self.generate(z, labels, training=True)
            score = self.score(fake, labels, training=True)
            if self.loss_name == "wasserstein":
                return -ops.mean(score)
            return ops.mean(ops.softplus(-score))

        with _unchanged(self.discriminator):
            variables = self.generator.trainable_variables
            loss = minimize(loss_fn, variables, self.generator_optimizer)
        self.trackers[1].update_state(loss)
        return loss

    def generate(self, z, labels=None, training=False):
        """Returns G(z): examples from z `(B, L)` and one-hot labels, if conditional."""
        inputs = z if labels is None else [z, labels]
        return self.generator(inputs, training=training)

    def score(self, x, labels=None, training=False):
        """Returns D(x), `(B, 1)`: high for examples that look real."""
        inputs = x if labels is None else [x, labels]
        return self.discriminator(inputs, training=training)

    def sample(
        self, num: int, labels: Sequence[int] | np.ndarray | None = None, seed: int = 0
    ) -> np.ndarray:
        """Returns new examples; the same weights give the same ones on every backend.

        Args:
            num: Number of examples.
            labels: Their classes, integers `(num,)`, if the model is conditional.
                Defaults to all classes in turn.
            seed: Seed of the noise.

        Returns:
            NumPy array of shape `(num, ...)`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If `num` isn't 1 or more, or the labels don't fit.
        """
        checks.check("GAN.sample", {"num": num, "seed": seed}, ACCEPTED)
        if self.num_classes and labels is None:
            labels = np.arange(num) % self.num_classes
        self._check_labels(labels, num, "GAN.sample: `labels`")
        z = ops.convert_to_numpy(
            random.normal(random.key(seed), (num, self.latent_dim))
        )
        parts = []
        for start in range(0, num, SAMPLES_AT_ONCE):
            part = slice(start, start + SAMPLES_AT_ONCE)
            chosen = None if labels is None else np.asarray(labels, "int32")[part]
            parts.append(ops.convert_to_numpy(self._sample(z[part], chosen)))
        return np.concatenate(parts)

    @compiled
    def _sample(self, z, labels):
        return self.generate(z, self._one_hot(labels))

    def _draw(self, batch_size):
        shape = (batch_size, self.latent_dim)
        return random.normal(self.random, shape, dtype=self.compute_dtype)

    def _one_hot(self, labels):
        if labels is None:
            return None
        labels = ops.reshape(ops.cast(labels, "int32"), (-1,))
        return ops.one_hot(labels, self.num_classes, dtype=self.compute_dtype)

    def _penalize_slope(self, x, fake_x, labels):
        """Returns the mean of (|grad D(x^)| - 1)^2, x^ between real and fake."""
        shape = (x.shape[0],) + (1,) * (len(x.shape) - 1)
        share = random.uniform(self.random, shape, dtype=self.compute_dtype)
        between = share * x + (1.0 - share) * fake_x
        slopes = gradient(
            lambda x: ops.sum(self.score(x, labels, training=True)), between
        )
        slopes = ops.cast(slopes, "float32")  # in float16, 1e-12 below would be 0
        squares = ops.sum(ops.square(slopes), axis=tuple(range(1, len(x.shape))))
        # The square root has no finite gradient at 0.
        return ops.mean(ops.square(ops.sqrt(squares + 1e-12) - 1.0))

    def _check_data(self, x, y):
        examples = to_array(x)
        received = type(x).__name__ if examples is None else examples.shape
        if examples is None or received[1:] != self.example_shape or not received[0]:
            raise ValueError(
                "GAN.fit: `x` must be an array of shape "
                f"{('N', *self.example_shape)}, received {received}."
            )
        if not np.isfinite(examples).all():
            raise ValueError("GAN.fit: `x` must be finite, it holds NaN or infinity.")
        low, high = output_range(self.generator) or (-np.inf, np.inf)
        if examples.min() < low or examples.max() > high:
            raise ValueError(
                f"GAN.fit: `x` must be in [{low:g}, {high:g}], which is all that the "
                f"generator's last activation can draw; received {examples.min():g} to "
                f"{examples.max():g}."
            )
        self._check_labels(y, len(x), "GAN.fit: `y`")

    def _check_labels(self, labels, num, name):
        if self.num_classes is None:
            if labels is not None:
                raise ValueError(
                    f"{name} is given, but the model isn't conditional: make it with "
                    "`num_classes`."
                )
            return
        accepted = (
            f"{name} must be {num} integers from 0 to {self.num_classes - 1}, of shape "
            f"({num},)"
        )
        if labels is None:
            raise ValueError(f"{accepted}, received None.")
        labels = to_array(labels)
        if labels is None:
            raise ValueError(f"{accepted}.")
        if labels.shape != (num,) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{accepted}, received shape {labels.shape} of {labels.dtype}."
            )
        if labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(f"{accepted}, received {labels.min()} to {labels.max()}.")

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {
            **super().get_config(),
            "num_classes": self.num_classes,
            "loss": self.loss_name,
            "gradient_penalty": self.gradient_penalty,
            "discriminator_steps": self.discriminator_steps,
            "seed": self.seed,
        }


SAMPLES_AT_ONCE = 500


@contextlib.contextmanager
def _unchanged(model):
    """Restores the variables that a training pass changes: running statistics."""
    states = [
        (variable, ops.copy(variable))
        for variable in model.non_trainable_variables
        if "float" in variable.dtype  # seeds are integers and advance
    ]
    yield
    for variable, value in states:
        variable.assign(value)


def _latent_inputs(latent_dim, num_classes):
    """Returns the inputs of a generator, and their concatenation."""
    z = keras.Input((latent_dim,), name="z")
    if num_classes is None:
        return z, z
    labels = keras.Input((num_classes,), name="labels")
    return [z, labels], layers.Concatenate()([z, labels])


def _judge(x, features, num_classes):
    """Builds the discriminator from x to a score of the features.

    With labels, the score is w.h + b + (V y).h: each class adds its own weights, so
    that the score measures how much the example looks like a real one of this class
    (the projection of Miyato and Koyama, 2018, https://arxiv.org/abs/1802.05637).
    """
    score = layers.Dense(1)(features)
    if num_classes is None:
        return keras.Model(x, score, name="discriminator")
    labels = keras.Input((num_classes,), name="labels")
    weights = layers.Dense(features.shape[-1], use_bias=False)(labels)
    score = layers.Add()([score, layers.Dot(axes=1)([features, weights])])
    return keras.Model([x, labels], score, name="discriminator")


def _check_parts(generator, discriminator, num_classes):
    """Raises an error unless D([G([z, labels]), labels]) is a score."""
    for what, model in (("generator", generator), ("discriminator", discriminator)):
        if not model.built or not getattr(model, "inputs", None):
            raise ValueError(
                f"GAN: `{what}` isn't built; begin it with `keras.Input(shape)`."
            )
        shapes = [tuple(x.shape[1:]) for x in model.inputs]
        expected = [] if num_classes is None else [(num_classes,)]
        if len(shapes[0]) != 1 and what == "generator":
            raise ValueError(
                "GAN: the first input of `generator` must be z, (B, L), received one "
                f"of the shape {('B', *shapes[0])}."
            )
        if shapes[1:] != expected:
            raise ValueError(
                f"GAN: with num_classes={num_classes}, `{what}` must have "
                f"{1 + len(expected)} input(s), the last of one-hot labels if there "
                f"are two; received one with inputs of the shapes {shapes}."
            )
    made, judged = generator.output_shape[1:], discriminator.inputs[0].shape[1:]
    if made != judged:
        raise ValueError(
            f"GAN: the generator makes examples of shape {made}, the discriminator "
            f"takes {judged}."
        )
    if discriminator.output_shape[1:] != (1,):
        raise ValueError(
            "GAN: `discriminator` must give one score, shape (B, 1), received one that "
            f"gives {discriminator.output_shape}."
        )
