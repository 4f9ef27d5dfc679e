"""Noisy layers, which let a Q-network explore without epsilon.

Shapes: B batch.
"""

import math
from collections.abc import Iterator
from typing import Any

import keras
from keras import ops

from kit import checks, random

ACCEPTED = {
    "units": checks.SIZE,
    "activation": checks.ACTIVATION,
    "initial_std": checks.POSITIVE,
}


@keras.saving.register_keras_serializable(package="kit")
class NoisyDense(keras.layers.Layer):
    """A Dense layer with random weights, whose standard deviations are learned.

        y = (mu + sigma * epsilon) x + mu_b + sigma_b * epsilon_b

    A network of such layers explores where it is uncertain, without epsilon-greedy
    exploration. The noise is factorised, epsilon_ij = f(e_i) f(e_j) with
    f(e) = sign(e) sqrt(|e|), so that each input and each output needs one number only.
    `draw_noise` draws it; until then, and with `training=False`, epsilon is 0.

    Args:
        units: Number of outputs.
        activation: Name or function, see `keras.layers.Dense`. Defaults to `None`.
        initial_std: Initial sigma, times the square root of the number of inputs.
            Defaults to 0.5.
        **kwargs: See `keras.layers.Layer`.

    Reference: Fortunato et al., 2018, https://arxiv.org/abs/1706.10295.
    """

    def __init__(
        self,
        units: int,
        activation: Any = None,
        initial_std: float = 0.5,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.units = int(units)
        self.activation = keras.activations.get(activation)
        self.initial_std = initial_std

    def build(self, input_shape):
        """Builds the means, uniform within 1 / sqrt(inputs), and the deviations."""
        inputs = input_shape[-1]
        limit = 1 / math.sqrt(inputs)
        mean = keras.initializers.RandomUniform(-limit, limit)
        std = keras.initializers.Constant(self.initial_std / math.sqrt(inputs))
        zeros = keras.initializers.Zeros()
        for name, shape, initializer in (
            ("kernel", (inputs, self.units), mean),
            ("bias", (self.units,), mean),
            ("kernel_std", (inputs, self.units), std),
            ("bias_std", (self.units,), std),
            ("noise_in", (inputs,), zeros),
            ("noise_out", (self.units,), zeros),
        ):
            # `kit.initialize_weights` looks for this name.
            setattr(self, f"{name}_initializer", initializer)
            trainable = not name.startswith("noise")
            weight = self.add_weight(shape, initializer, trainable=trainable, name=name)
            setattr(self, name, weight)

    def call(self, inputs, training=None):
        """Returns the outputs `(B, units)`."""
        y = ops.matmul(inputs, self.kernel) + self.bias
        if training is not False:
            noise_in, noise_out = map(
                ops.convert_to_tensor, (self.noise_in, self.noise_out)
            )
            noise = ops.matmul(inputs * noise_in, self.kernel_std) + self.bias_std
            y = y + noise * noise_out
        return self.activation(y)

    def compute_output_shape(self, input_shape):
        """Returns `(B, units)`."""
        return (*input_shape[:-1], self.units)

    def draw(self, key: Any) -> None:
        """Draws new noise.

        Args:
            key: See `kit.random`.
        """
        for noise in (self.noise_in, self.noise_out):
            drawn = random.normal(key, tuple(noise.shape), dtype="float32")
            noise.assign(ops.sign(drawn) * ops.sqrt(ops.abs(drawn)))

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = {
            "units": self.units,
            "activation": keras.activations.serialize(self.activation),
            "initial_std": self.initial_std,
        }
        return {**super().get_config(), **config}


def noisy_layers(model: keras.Model) -> Iterator[NoisyDense]:
    """Yields the noisy layers of a model and of models within it."""
    for layer in model.layers:
        if isinstance(layer, NoisyDense):
            yield layer
        elif isinstance(layer, keras.Model):
            yield from noisy_layers(layer)


def draw_noise(model: keras.Model, generator: random.Generator) -> None:
    """Draws new noise for all noisy layers of a model."""
    for layer in noisy_layers(model):
        layer.draw(generator)
