"""Autoencoders: learn short codes of examples by reconstructing them from the codes.

An encoder maps an example x to a code z, a decoder maps z to x^, and both learn to
bring x^ close to x. As z has fewer numbers than x, it must represent what examples have
in common. Linear layers and the squared error would give principal component analysis;
with activations between the layers, the codes lie on a curved surface, not a plane.

There are three kinds, each with its own loss:

- `Autoencoder` minimizes the distance between x and x^;
- `DenoisingAutoencoder` gets a noisy x and must return the clean one;
- `VariationalAutoencoder` encodes x as a distribution, and keeps all codes together
  normally distributed, so that the decoder can generate examples from random codes.

Shapes: B batch, L size of the code (latent dimension).

Reference: Hinton and Salakhutdinov, 2006, https://doi.org/10.1126/science.1127647.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import Tensor, compiled, scan
from kit.models import Model, Sequential, WithParts

LIKELIHOODS = ("bernoulli", "gaussian")
ACCEPTED = {
    "input_shape": checks.SIZES,
    "output_shape": checks.SIZES,
    "latent_dim": checks.SIZE,
    "units": checks.SIZES,
    "activation": checks.ACTIVATION,
    "output_activation": checks.ACTIVATION,
    "variational": checks.BOOL,
    "noise_stddev": checks.WEIGHT,
    "likelihood": checks.one_of(*LIKELIHOODS),
    "beta": checks.WEIGHT,
    "seed": checks.SEED,
    "num": checks.SIZE,
    "num_draws": checks.SIZE,
    "z_mean": checks.array("B L"),
    "z_log_var": checks.array("B L"),
    "x": checks.array("B *E"),
    "x_pred": checks.array("B *E"),
}
PARTS = {"encoder": checks.MODEL, "decoder": checks.MODEL}


def encoder(
    input_shape: Sequence[int] = (784,),
    latent_dim: int = 64,
    units: Sequence[int] = (128,),
    activation: Any = "relu",
    variational: bool = False,
) -> Sequential:
    """Builds an encoder: Dense layers that narrow down to the code.

    Args:
        input_shape: Shape of an example, which is flattened. Defaults to `(784,)`.
        latent_dim: L, numbers in a code. Defaults to 64.
        units: Sizes of the hidden layers. Defaults to `(128,)`.
        activation: Activation of the hidden layers; the code has none. Defaults to
            `"relu"`.
        variational: If `True`, the output is the mean and the log variance of each
            number of the code, for `VariationalAutoencoder`.

    Returns:
        A `kit.Sequential` from `(B, *input_shape)` to `(B, L)`, or `(B, 2 L)` if
        `variational`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `latent_dim` is smaller than 1.
    """
    checks.check("encoder", locals(), ACCEPTED)
    model = Sequential([keras.Input(tuple(input_shape))], name="encoder")
    if len(input_shape) != 1:
        model.add(keras.layers.Flatten())
    for size in units:
        model.add(keras.layers.Dense(size, activation=activation))
    model.add(keras.layers.Dense(latent_dim * (2 if variational else 1), name="code"))
    return model


def decoder(
    output_shape: Sequence[int] = (784,),
    latent_dim: int = 64,
    units: Sequence[int] = (128,),
    activation: Any = "relu",
    output_activation: Any = "sigmoid",
) -> Sequential:
    """Builds a decoder: Dense layers that widen from the code to an example.

    Args:
        output_shape: Shape of an example. Defaults to `(784,)`.
        latent_dim: L, numbers in a code. Defaults to 64.
        units: Sizes of the hidden layers. Defaults to `(128,)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.
        output_activation: `"sigmoid"`, the default, for examples in [0, 1]; `None`
            for any numbers.

    Returns:
        A `kit.Sequential` from `(B, L)` to `(B, *output_shape)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `latent_dim` is smaller than 1.
    """
    checks.check("decoder", locals(), ACCEPTED)
    model = Sequential([keras.Input((latent_dim,))], name="decoder")
    for size in units:
        model.add(keras.layers.Dense(size, activation=activation))
    model.add(keras.layers.Dense(math.prod(output_shape), output_activation))
    if len(output_shape) != 1:
        model.add(keras.layers.Reshape(tuple(output_shape)))
    return model


def autoencoder(
    input_shape: Sequence[int] = (784,),
    latent_dim: int = 64,
    units: Sequence[int] = (128,),
    activation: Any = "relu",
    output_activation: Any = "sigmoid",
) -> "Autoencoder":
    """Builds an autoencoder of Dense layers: 784-128-64-128-784 by default.

    Args:
        input_shape: Shape of an example. Defaults to `(784,)`.
        latent_dim: L, numbers in a code. Defaults to 64.
        units: Sizes of the encoder's hidden layers; the decoder's are the reverse.
            Defaults to `(128,)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.
        output_activation: `"sigmoid"`, the default, for examples in [0, 1]; `None`
            for any numbers.

    Returns:
        An `Autoencoder`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `latent_dim` is smaller than 1.

    Example:

    ```python
    model = kit.autoencoder((784,), latent_dim=2)
    model.compile("adam", "mse")
    model.fit(np.random.rand(100, 784), epochs=2)
    codes = model.encode(np.random.rand(5, 784))  # shape (5, 2)
    ```
    """
    checks.check("autoencoder", locals(), ACCEPTED)
    return Autoencoder(
        encoder(input_shape, latent_dim, units, activation),
        decoder(input_shape, latent_dim, units[::-1], activation, output_activation),
    )


@keras.saving.register_keras_serializable(package="kit")
class Autoencoder(WithParts, Model):
    """Encoder and decoder, trained to reconstruct their inputs.

    `fit(x)` needs no targets: x is the target. With `fit(x, y)`, the target is y.
    `compile` sets the loss.

    Args:
        encoder: Built model from examples to codes `(B, L)`; the function `encoder`
            builds one.
        decoder: Built model from codes `(B, L)` to examples.

    Raises:
        TypeError: If one of them is no Keras model.
        ValueError: If they don't fit together.

    Example:

    ```python
    from kit.autoencoder import decoder, encoder

    model = kit.Autoencoder(encoder((28, 28)), decoder((28, 28)))
    model.compile("adam", "binary_crossentropy")
    model.fit(np.random.rand(100, 28, 28), epochs=2)
    model.reconstruction_error(np.random.rand(5, 28, 28))  # high for anomalies
    ```
    """

    code_parts = 1  # The encoder's outputs per number of the code.

    parts = ("encoder", "decoder")

    def __init__(self, encoder: keras.Model, decoder: keras.Model, **kwargs: Any):
        super().__init__(**kwargs)
        checks.check(self, locals(), PARTS)
        _check_fit(type(self).__name__, encoder, decoder, self.code_parts)
        self.encoder = encoder
        self.decoder = decoder
        self.latent_dim = decoder.input_shape[-1]
        # Not through `build`, which would keep subclasses from adding metrics.
        self.built = True

    def build(self, input_shape):
        """Does nothing: encoder and decoder are already built."""

    def compile(self, optimizer="adam", loss="binary_crossentropy", **kwargs):
        """Compiles as Keras does.

        The default loss suits examples in [0, 1] and a sigmoid: where the sigmoid is
        flat, its gradients are steeper than the squared error's. Use `"mse"` for
        examples with other values.
        """
        super().compile(optimizer=optimizer, loss=loss, **kwargs)

    def call(self, inputs, training=None):
        """Returns the reconstructions, with the shape of `inputs`."""
        return self.decoder(self.encoder(inputs, training=training), training=training)

    def encode(self, inputs: Tensor) -> Tensor:
        """Returns the codes `(B, L)` of examples."""
        return self.encoder(ops.convert_to_tensor(inputs), training=False)

    def decode(self, codes: Tensor) -> Tensor:
        """Returns the decoder's examples for codes `(B, L)`."""
        return self.decoder(ops.convert_to_tensor(codes), training=False)

    def reconstruction_error(self, inputs: np.ndarray, batch_size: int = 256):
        """Returns the mean squared error of each reconstruction.

        It is also an anomaly score: examples unlike the training data are reconstructed
        badly, provided that the code is small.

        Args:
            inputs: Examples, a NumPy array `(B, ...)`.
            batch_size: Examples to compute at once. Defaults to 256.

        Returns:
            NumPy array of shape `(B,)`.
        """
        error = np.square(self.predict(inputs, batch_size, verbose=0) - inputs)
        return np.mean(error, axis=tuple(range(1, error.ndim)))

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the loss of `compile`; the target is x if there is no y."""
        y = x if y is None else y
        return super().compute_loss(x, y, y_pred, sample_weight, training)

    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        """Updates the metrics of `compile`; the target is x if there is no y."""
        y = x if y is None else y
        return super().compute_metrics(x, y, y_pred, sample_weight)


@keras.saving.register_keras_serializable(package="kit")
class DenoisingAutoencoder(Autoencoder):
    """Autoencoder that gets noisy examples and must reconstruct the clean ones.

    In training, each example gets new noise in each epoch, x~ = x + noise_stddev e,
    with e normally distributed; the target stays x. So copying isn't enough: the model
    must learn the distribution of examples. In inference, no noise is added: pass noisy
    examples.

    Args:
        encoder: See `Autoencoder`.
        decoder: See `Autoencoder`.
        noise_stddev: Standard deviation of the noise, in the unit of the examples.
            For pixels in [0, 1], 0.1 is light and 0.5 heavy. Defaults to 0.5.
        seed: Seed of the noise; every backend makes the same draws. Defaults to 0.

    Raises:
        TypeError: If encoder or decoder is no Keras model.
        ValueError: If they don't fit together, or `noise_stddev` is negative.

    Example:

    ```python
    from kit.autoencoder import decoder, encoder

    model = kit.DenoisingAutoencoder(encoder(), decoder(), noise_stddev=0.3)
    model.compile("adam")
    model.fit(np.random.rand(100, 784), epochs=2)  # clean examples
    ```

    Reference: Vincent et al., 2008, https://doi.org/10.1145/1390156.1390294 (there,
    noise sets pixels to zero; Gaussian noise: 2010, section 4.1).
    """

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        noise_stddev: float = 0.5,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(encoder, decoder, **kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.noise_stddev = noise_stddev
        self.seed = seed
        self.random = random.Generator(seed)

    def call(self, inputs, training=None):
        """Returns the reconstructions; in training, those of noisy examples."""
        if training:
            inputs = self.corrupt(inputs)
        return super().call(inputs, training=training)

    def corrupt(self, inputs: Tensor) -> Tensor:
        """Returns the examples with fresh noise."""
        inputs = ops.cast(inputs, self.compute_dtype)
        noise = random.normal(self.random, inputs.shape, dtype=self.compute_dtype)
        return inputs + self.noise_stddev * noise

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {
            **super().get_config(),
            "noise_stddev": self.noise_stddev,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="kit")
class VariationalAutoencoder(Autoencoder):
    """Autoencoder whose codes are distributions; it can generate new examples.

    The encoder gives q(z|x), normal with mean `z_mean` and variance exp(`z_log_var`);
    codes have the prior p(z), normal with mean 0 and variance 1. The loss is the
    negative evidence lower bound, an upper bound of -log p(x):

        loss = E_q[-log p(x|z)] + beta KL(q(z|x) || p(z)),

    in nats per example. The expectation is estimated from one code drawn in each step,
    z = z_mean + exp(z_log_var / 2) e (reparameterization: the gradient flows through
    the draw). Outside of training, z = z_mean: reconstructions and `val_loss` have no
    noise; `negative_elbo` estimates the bound itself.

    Args:
        encoder: Built model from examples to `(B, 2 L)`, means and log variances;
            `encoder(..., variational=True)` builds one.
        decoder: Built model from codes `(B, L)` to examples: the mean of p(x|z).
        likelihood: p(x|z): `"bernoulli"`, for examples in [0, 1] and a sigmoid; or
            `"gaussian"`, of variance 1 and without its constant, for any numbers
            (for another variance s, set `beta` to s). Defaults to `"bernoulli"`.
        beta: Weight of the divergence. Above 1, codes are more independent and
            reconstructions blurrier (Higgins et al., 2017). Defaults to 1.
        seed: Seed of the draws, which are the same on every backend. Defaults to 0.

    Raises:
        TypeError: If encoder or decoder is no Keras model.
        ValueError: If they don't fit together, the likelihood is unknown, or `beta`
            is negative.

    Example:

    ```python
    from kit.autoencoder import decoder, encoder

    model = kit.VariationalAutoencoder(encoder(variational=True), decoder())
    model.compile("adam")  # the loss is the model's own
    model.fit(np.random.rand(100, 784), epochs=2)
    model.sample(16, seed=1)  # new examples, shape (16, 784)
    ```

    Reference: Kingma and Welling, 2014, https://arxiv.org/abs/1312.6114, appendix B
    for the divergence.
    """

    code_parts = 2

    def __init__(
        self,
        encoder: keras.Model,
        decoder: keras.Model,
        likelihood: str = "bernoulli",
        beta: float = 1.0,
        seed: int = 0,
        **kwargs: Any,
    ):
        super().__init__(encoder, decoder, **kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.likelihood = likelihood
        self.beta = beta
        self.seed = seed
        self.random = random.Generator(seed)
        self.reconstruction_loss = keras.metrics.Mean(name="reconstruction_loss")
        self.kl_loss = keras.metrics.Mean(name="kl_loss")

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """Compiles as Keras does, but without `loss`: see `likelihood` and `beta`."""
        if loss is not None:
            raise ValueError(
                "VariationalAutoencoder has its own loss: leave out `loss` in "
                f"compile, received {loss!r}. The argument `likelihood` of the "
                "constructor chooses how reconstructions are compared."
            )
        super().compile(optimizer=optimizer, loss=None, **kwargs)

    def call(self, inputs, training=None):
        """Returns reconstructions: in training from a drawn code, else from z_mean."""
        z_mean, z_log_var = self.encode_distribution(inputs, training=training)
        kl = kl_divergence(z_mean, z_log_var)  # (B,)
        self.add_loss(self.beta * ops.mean(kl))
        self.kl_loss.update_state(kl)
        z = draw_code(self.random, z_mean, z_log_var) if training else z_mean
        return self.decoder(z, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the negative evidence lower bound, averaged over the batch."""
        if sample_weight is not None:
            raise ValueError("VariationalAutoencoder: `sample_weight` has no effect.")
        losses = RECONSTRUCTION_LOSSES[self.likelihood](x if y is None else y, y_pred)
        self.reconstruction_loss.update_state(losses)
        # `self.losses` has beta KL from `call`, and the layers' regularizers if any.
        return ops.mean(losses) + ops.sum(ops.stack(self.losses))

    def encode_distribution(self, inputs: Tensor, training: bool = False):
        """Returns z_mean and z_log_var of examples, each `(B, L)`."""
        return ops.split(self.encoder(inputs, training=training), 2, axis=-1)

    def encode(self, inputs: Tensor) -> Tensor:
        """Returns z_mean of examples, `(B, L)`."""
        return self.encode_distribution(ops.convert_to_tensor(inputs))[0]

    def sample(self, num: int, seed: int = 0) -> Tensor:
        """Returns `num` new examples: codes drawn from the prior, decoded."""
        checks.check(f"{type(self).__name__}.sample", locals(), ACCEPTED)
        return self.decode(random.normal(random.key(seed), (num, self.latent_dim)))

    def negative_elbo(self, inputs: Tensor, num_draws: int = 10, seed: int = 0):
        """Returns an upper bound of -log p(x) of each example, whatever `beta` is.

        Args:
            inputs: Examples `(B, ...)`.
            num_draws: Codes to draw per example. Defaults to 10.
            seed: Seed of the draws.

        Returns:
            Nats, shape `(B,)`.
        """
        checks.check(f"{type(self).__name__}.negative_elbo", locals(), ACCEPTED)
        return self._negative_elbo(inputs, random.split(random.key(seed), num_draws))

    @compiled
    def _negative_elbo(self, inputs, keys):
        inputs = ops.cast(inputs, self.compute_dtype)
        z_mean, z_log_var = self.encode_distribution(inputs)
        compare = RECONSTRUCTION_LOSSES[self.likelihood]

        def draw(total, key):
            x_pred = self.decode(draw_code(key, z_mean, z_log_var))
            return total + compare(inputs, x_pred), None

        total, _ = scan(draw, ops.zeros_like(z_mean[:, 0]), keys)
        return total / keys.shape[0] + kl_divergence(z_mean, z_log_var)

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {
            **super().get_config(),
            "likelihood": self.likelihood,
            "beta": self.beta,
            "seed": self.seed,
        }


def kl_divergence(z_mean: Tensor, z_log_var: Tensor) -> Tensor:
    """Returns KL(N(z_mean, exp(z_log_var)) || N(0, 1)) of each code, in nats.

    1/2 sum_l (z_mean_l^2 + exp(z_log_var_l) - 1 - z_log_var_l).

    Args:
        z_mean: Means, shape `(B, L)`.
        z_log_var: Logarithms of the variances, shape `(B, L)`.

    Returns:
        Shape `(B,)`, 0 or more.
    """
    checks.check("kl_divergence", locals(), ACCEPTED)
    parts = ops.square(z_mean) + ops.exp(z_log_var) - 1.0
    parts = ops.subtract(parts, z_log_var)  # not `-`: all arrays may be NumPy's
    return 0.5 * ops.sum(parts, axis=-1)


def draw_code(key: Any, z_mean: Tensor, z_log_var: Tensor) -> Tensor:
    """Draws z = z_mean + exp(z_log_var / 2) e, e standard normal.

    Args:
        key: A key or a `Generator` of `kit.random`.
        z_mean: Means, shape `(B, L)`.
        z_log_var: Logarithms of the variances, shape `(B, L)`.

    Returns:
        Codes, shape `(B, L)`, differentiable with respect to mean and variance.
    """
    checks.check("draw_code", locals(), ACCEPTED)
    noise = random.normal(key, z_mean.shape, dtype=z_mean.dtype)
    return ops.add(z_mean, ops.exp(ops.multiply(0.5, z_log_var)) * noise)


def bernoulli_loss(x: Tensor, x_pred: Tensor) -> Tensor:
    """Returns -log p(x|z), p Bernoulli with mean `x_pred`: the cross-entropy, (B,)."""
    probabilities = checks.array("B *E", interval="[0, 1]")
    accepted = {"x": probabilities, "x_pred": probabilities}
    checks.check("bernoulli_loss", locals(), accepted)
    return _sum_example(ops.binary_crossentropy(ops.cast(x, x_pred.dtype), x_pred))


def gaussian_loss(x: Tensor, x_pred: Tensor) -> Tensor:
    """Returns -log p(x|z) without its constant, p normal with variance 1, (B,)."""
    checks.check("gaussian_loss", locals(), ACCEPTED)
    error = ops.subtract(ops.cast(x, x_pred.dtype), x_pred)
    return _sum_example(0.5 * ops.square(error))


RECONSTRUCTION_LOSSES = {"bernoulli": bernoulli_loss, "gaussian": gaussian_loss}


def _sum_example(values):
    return ops.sum(values, axis=tuple(range(1, len(values.shape))))


def _check_fit(name, encoder, decoder, code_parts):
    """Raises an error unless encoder and decoder fit together."""
    for what, model in (("encoder", encoder), ("decoder", decoder)):
        if not model.built:
            raise ValueError(
                f"{name}: `{what}` isn't built; begin it with `keras.Input(shape)`."
            )
    code = decoder.input_shape[1:]
    expected = (code_parts * code[-1],)
    if len(code) != 1 or encoder.output_shape[1:] != expected:
        kind = "means and log variances, so twice " if code_parts == 2 else ""
        raise ValueError(
            f"{name}: the encoder must give {kind}the size of the decoder's codes; "
            f"it gives {encoder.output_shape[1:]}, the decoder takes {code}."
        )
