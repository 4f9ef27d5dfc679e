"""Policies: what an actor's outputs mean, and the networks that make them.

An actor ends in one of the layers here, which says how actions are drawn from the
numbers before it, and how likely an action was:

    Categorical         one of A actions:           p(a) = softmax(logits)_a
    MultiCategorical    K choices at once:          p(a) = prod_k softmax(logits_k)_a_k
    Gaussian            A real numbers:             p(a) = N(a; mean, exp(log_std)^2)

Randomness comes in as an argument, `noise`, so that an agent draws much of it at once:
the Gumbel-max trick and mean + std * noise turn it into actions. Shapes: B batch, A
actions, K choices.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import Tensor
from kit.initialization import Orthogonal, at_least_float32

ACCEPTED = {
    "num_actions": checks.SIZE,
    "start": checks.INTEGER,
    "low": checks.array(interval="[-inf, inf]"),
    "high": checks.array(interval="[-inf, inf]"),
    "initial_log_std": checks.FINITE,
    "action_dtype": checks.one_of("float16", "float32", "float64"),
    "name": checks.TEXT,
    "obs_shape": checks.SIZES,
    "units": checks.SIZES,
    "activation": checks.ACTIVATION,
    "gain": checks.POSITIVE | None,
}

# --- Distributions ----------------------------------------------------------


class Distribution(keras.layers.Layer):
    """What the layers of this file share: the last layer of an actor.

    Probabilities are computed in float32 at least, whatever the network before.

    Args:
        dtype: See `keras.layers.Layer`. Defaults to Keras' dtype policy, or
            `"float32"` where that computes in 16 bits.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, *, dtype: Any = None, **kwargs: Any):
        checks.check(self, locals(), {"dtype": checks.LAYER_DTYPE})
        dtype = at_least_float32() if dtype is None else dtype
        super().__init__(dtype=dtype, **kwargs)

    def noise(self, key: Any, shape: Sequence[int]) -> Tensor:
        """Draws what `sample` needs for actions of a leading shape."""
        raise NotImplementedError

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Returns the actions that the noise leads to."""
        raise NotImplementedError

    def mode(self, outputs: Tensor) -> Tensor:
        """Returns the likeliest actions."""
        raise NotImplementedError

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Returns the logarithms of the actions' probabilities (or densities), (B,)."""
        raise NotImplementedError

    def entropy(self, outputs: Tensor) -> Tensor:
        """Returns the entropies in nats, (B,)."""
        raise NotImplementedError

    def to_env(self, action: np.ndarray) -> np.ndarray:
        """Returns actions as the environment takes them."""
        raise NotImplementedError

    def fits(self, space: Any) -> bool:
        """Whether the actions are those of a Gymnasium space."""
        raise NotImplementedError

    def build(self, input_shape):
        """Checks that the outputs before are as many as the actions need."""
        if input_shape[-1] != self.num_inputs:
            raise ValueError(
                f"{type(self).__name__} needs {self.num_inputs} numbers to choose "
                f"actions by, received {input_shape[-1]}: give the layer before it "
                "as many units."
            )

    def call(self, inputs):
        """Returns the numbers that describe the distribution: the inputs."""
        return inputs

    def compute_output_shape(self, input_shape):
        """Returns the shape of the outputs."""
        return tuple(input_shape)


@keras.saving.register_keras_serializable(package="kit")
class Categorical(Distribution):
    """One of A actions, by their logits.

    Args:
        num_actions: A.
        start: What the environment calls the first one. Defaults to 0.

    Input and output shape: `(B, A)`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `num_actions` isn't positive, or the inputs are another number.

    Example:

    ```python
    keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(2), kit.policies.Categorical(2)]
    )
    ```
    """

    def __init__(self, num_actions: int, start: int = 0, **kwargs: Any):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.num_actions = self.num_inputs = int(num_actions)
        self.start = int(start)

    def noise(self, key, shape):
        """Gumbel noise, `(*shape, A)`."""
        return _gumbel(key, (*shape, self.num_actions))

    def sample(self, outputs, noise):
        """Actions `(B,)`, counted from 0."""
        return self.mode(outputs + noise)

    def mode(self, outputs):
        """The likeliest actions `(B,)`, counted from 0."""
        return ops.cast(ops.argmax(outputs, axis=-1), "int32")

    def log_prob(self, outputs, action):
        """Log softmax(logits)_a, `(B,)`."""
        return _at(ops.log_softmax(outputs, axis=-1), action)

    def entropy(self, outputs):
        """-sum_a p(a) log p(a), `(B,)`."""
        log_probs = ops.log_softmax(outputs, axis=-1)
        return -ops.sum(ops.exp(log_probs) * log_probs, axis=-1)

    def to_env(self, action):
        """Counts actions as the environment does."""
        return action + self.start

    def fits(self, space):
        """Whether the space is Discrete, with as many actions."""
        from gymnasium.spaces import Discrete

        return (
            isinstance(space, Discrete)
            and space.n == self.num_actions
            and space.start == self.start
        )

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = {"num_actions": self.num_actions, "start": self.start}
        return {**super().get_config(), **config}


@keras.saving.register_keras_serializable(package="kit")
class MultiCategorical(Distribution):
    """K choices at once, each by its own logits, independent of the others.

    Args:
        nvec: Number of possibilities of each choice, K integers.
        start: What the environment calls the first possibility of each. Defaults to
            zeros.

    Input and output shape: `(B, sum of nvec)`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `nvec` is empty or not positive, or the inputs are not as many.
    """

    def __init__(
        self, nvec: Sequence[int], start: Sequence[int] | None = None, **kwargs: Any
    ):
        super().__init__(**kwargs)
        accepted = {"nvec": checks.sequence(checks.SIZE, least=1)}
        accepted["start"] = checks.sequence(checks.INTEGER) | None
        checks.check(self, locals(), accepted)
        self.nvec = tuple(int(n) for n in nvec)
        start = (0,) * len(self.nvec) if start is None else start
        self.start = tuple(int(s) for s in start)
        if len(self.start) != len(self.nvec):
            raise ValueError(
                f"MultiCategorical: `start` must have as many numbers as `nvec`, "
                f"{len(self.nvec)}; received {len(self.start)}."
            )
        self.num_inputs = sum(self.nvec)

    def noise(self, key, shape):
        """Gumbel noise, `(*shape, sum of nvec)`."""
        return _gumbel(key, (*shape, self.num_inputs))

    def sample(self, outputs, noise):
        """Actions `(B, K)`, counted from 0."""
        return self.mode(outputs + noise)

    def mode(self, outputs):
        """The likeliest actions `(B, K)`, counted from 0."""
        best = [ops.argmax(logits, axis=-1) for logits in self._choices(outputs)]
        return ops.cast(ops.stack(best, axis=-1), "int32")

    def log_prob(self, outputs, action):
        """The sum of the choices' log-probabilities, `(B,)`."""
        return sum(
            _at(ops.log_softmax(logits, axis=-1), action[..., k])
            for k, logits in enumerate(self._choices(outputs))
        )

    def entropy(self, outputs):
        """The sum of the choices' entropies, `(B,)`."""
        log_probs = [ops.log_softmax(x, axis=-1) for x in self._choices(outputs)]
        return -sum(ops.sum(ops.exp(x) * x, axis=-1) for x in log_probs)

    def _choices(self, outputs):
        ends = np.cumsum(self.nvec)
        return [
            outputs[..., end - n : end] for end, n in zip(ends, self.nvec, strict=True)
        ]

    def to_env(self, action):
        """Counts actions as the environment does."""
        return action + np.array(self.start, action.dtype)

    def fits(self, space):
        """Whether the space is MultiDiscrete or MultiBinary, with these choices."""
        return _choices_of(space) == (self.nvec, self.start)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "nvec": self.nvec, "start": self.start}


@keras.saving.register_keras_serializable(package="kit")
class Gaussian(Distribution):
    """A real numbers, each normally distributed around a mean of its own.

    The standard deviations are weights of this layer, the same in all states, kept as
    logarithms. What is drawn beyond the bounds is cut off on its way to the
    environment; its probability is that of what was drawn.

    Args:
        low: Smallest value of each action: nested lists in the shape of an action.
        high: Largest value of each.
        initial_log_std: Logarithm of the standard deviations at the start. Defaults
            to 0.
        action_dtype: Type of the actions that the environment takes, in which they
            are cut off: rounded otherwise, a bound may lie outside of the space.
            Defaults to `"float32"`.

    Input shape: `(B, A)`, the means.

    Output shape: `(B, 2 A)`, the means and the log standard deviations.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `low` and `high` differ in shape, or the inputs are not as many.
    """

    def __init__(
        self,
        low: Any,
        high: Any,
        initial_log_std: float = 0.0,
        action_dtype: str = "float32",
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.action_dtype = np.dtype(action_dtype).name
        self.low, self.high = (np.asarray(x, self.action_dtype) for x in (low, high))
        if self.low.shape != self.high.shape or not self.low.size:
            raise ValueError(
                "Gaussian: `low` and `high` must have the same shape, received "
                f"{self.low.shape} and {self.high.shape}."
            )
        if not (self.low <= self.high).all():
            raise ValueError(
                "Gaussian: `low` must nowhere be above `high`, received "
                f"{self.low.tolist()} and {self.high.tolist()}."
            )
        self.initial_log_std = initial_log_std
        self.log_std_initializer = keras.initializers.Constant(initial_log_std)
        self.num_inputs = self.low.size

    def build(self, input_shape):
        """Builds the standard deviations."""
        super().build(input_shape)
        self.log_std = self.add_weight(
            shape=(self.num_inputs,),
            initializer=self.log_std_initializer,
            name="log_std",
        )

    def call(self, inputs):
        """Returns means and log standard deviations."""
        log_std = ops.broadcast_to(
            ops.cast(self.log_std, inputs.dtype), ops.shape(inputs)
        )
        return ops.concatenate([inputs, log_std], axis=-1)

    def compute_output_shape(self, input_shape):
        """Returns `(B, 2 A)`."""
        return (*input_shape[:-1], 2 * input_shape[-1])

    def noise(self, key, shape):
        """Standard normal noise, `(*shape, A)`."""
        return random.normal(key, (*shape, self.num_inputs), dtype="float32")

    def sample(self, outputs, noise):
        """Actions `(B, A)`: mean + std * noise."""
        mean, log_std = self._split(outputs)
        return mean + ops.exp(log_std) * noise

    def mode(self, outputs):
        """The means `(B, A)`."""
        return self._split(outputs)[0]

    def log_prob(self, outputs, action):
        """The sum of -((a - mean) / std)^2 / 2 - log_std - log(2 pi) / 2, `(B,)`."""
        mean, log_std = self._split(outputs)
        z = ops.subtract(action, mean) * ops.exp(-log_std)
        density = -0.5 * ops.square(z) - log_std - 0.5 * math.log(2 * math.pi)
        return ops.sum(density, axis=-1)

    def entropy(self, outputs):
        """The sum of log_std + log(2 pi e) / 2, `(B,)`."""
        _, log_std = self._split(outputs)
        return ops.sum(log_std + 0.5 * math.log(2 * math.pi * math.e), axis=-1)

    def _split(self, outputs):
        outputs = ops.convert_to_tensor(outputs)
        return outputs[..., : self.num_inputs], outputs[..., self.num_inputs :]

    def to_env(self, action):
        """Cuts actions at the bounds, in the shape of the environment's."""
        action = np.reshape(action, (*np.shape(action)[:-1], *self.low.shape))
        return np.clip(action.astype(self.action_dtype), self.low, self.high)

    def fits(self, space):
        """Whether the space is a Box with these bounds, and takes these actions."""
        from gymnasium.spaces import Box

        return (
            isinstance(space, Box)
            and np.can_cast(self.action_dtype, space.dtype)
            and np.array_equal(space.low, self.low)
            and np.array_equal(space.high, self.high)
        )

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = {
            "low": self.low.tolist(),
            "high": self.high.tolist(),
            "initial_log_std": self.initial_log_std,
            "action_dtype": self.action_dtype,
        }
        return {**super().get_config(), **config}


def distribution(action_space: Any, initial_log_std: float = 0.0) -> Distribution:
    """Returns the layer for a Gymnasium action space.

    Args:
        action_space: `Discrete`, `MultiDiscrete` or `MultiBinary` in one dimension,
            or `Box` of real numbers.
        initial_log_std: Of real numbers, the logarithm of their standard deviations
            at the start. Defaults to 0.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If the space is of another kind, or has no standard deviations.

    Example:

    ```python
    kit.policies.distribution(env.action_space)
    ```
    """
    from gymnasium.spaces import Box, Discrete

    checks.check("distribution", locals(), ACCEPTED)
    if isinstance(action_space, Box) and np.issubdtype(action_space.dtype, np.floating):
        return Gaussian(
            action_space.low,
            action_space.high,
            initial_log_std,
            action_space.dtype.name,
            name="policy",
        )
    if initial_log_std:
        raise ValueError(
            f"`initial_log_std` is {initial_log_std}, but actions of {action_space} "
            "have no standard deviation; those of a Box of real numbers do."
        )
    if isinstance(action_space, Discrete):
        return Categorical(int(action_space.n), int(action_space.start), name="policy")
    if choices := _choices_of(action_space):
        return MultiCategorical(*choices, name="policy")
    raise ValueError(
        f"`action_space` {action_space} isn't supported; Discrete, MultiDiscrete and "
        "MultiBinary (in one dimension) and Box (of real numbers) are."
    )


def _choices_of(space):
    """The nvec and start of spaces of several choices, or `None`."""
    from gymnasium.spaces import MultiBinary, MultiDiscrete

    if isinstance(space, MultiDiscrete) and space.nvec.ndim == 1:
        return tuple(map(int, space.nvec)), tuple(map(int, space.start))
    if isinstance(space, MultiBinary) and len(space.shape) == 1:
        return (2,) * space.shape[0], (0,) * space.shape[0]
    return None


def _gumbel(key, shape):
    # 0 would give -inf, whatever the logits.
    u = random.uniform(key, shape, dtype="float32")
    u = ops.maximum(u, float(np.finfo("float32").tiny))
    return -ops.log(-ops.log(u))


def _at(values, index):
    """The values (B,) at one index each, out of all (B, A)."""
    indices = ops.arange(values.shape[-1], dtype="int32")
    taken = ops.equal(ops.expand_dims(ops.cast(index, "int32"), -1), indices)
    return ops.sum(ops.where(taken, values, 0.0), axis=-1)


# --- Networks ---------------------------------------------------------------


def policy_network(
    obs_shape: Sequence[int],
    action_space: Any,
    units: Sequence[int] = (64, 64),
    activation: str = "tanh",
    initial_log_std: float = 0.0,
) -> keras.Sequential:
    """Builds an actor: Dense layers, behind a convolution for images.

    Kernels are orthogonal; the last one is small, so that all actions are about
    equally likely at first.

    Args:
        obs_shape: Shape of an observation: any, or (height, width, channels) for
            images, whose values are expected in [0, 255].
        action_space: Gymnasium's; see `distribution`.
        units: Sizes of the hidden layers. Defaults to `(64, 64)`.
        activation: Of the hidden layers. Defaults to `"tanh"`.
        initial_log_std: See `distribution`. Defaults to 0.

    Returns:
        A `keras.Sequential` from `(B, *obs_shape)` to what describes the policy.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `obs_shape` is empty, or the space isn't supported.

    Example:

    ```python
    actor = kit.policy_network((4,), gymnasium.spaces.Discrete(2))
    ```
    """
    checks.check("policy_network", locals(), ACCEPTED)
    head = distribution(action_space, initial_log_std)
    layers = [
        *hidden_layers("policy_network", obs_shape, units, activation, math.sqrt(2)),
        keras.layers.Dense(head.num_inputs, kernel_initializer=Orthogonal(0.01)),
        head,
    ]
    return keras.Sequential([keras.Input(tuple(obs_shape)), *layers], name="actor")


def value_network(
    obs_shape: Sequence[int],
    units: Sequence[int] = (64, 64),
    activation: str = "tanh",
) -> keras.Sequential:
    """Builds a critic: like `policy_network`, from `(B, *obs_shape)` to `(B, 1)`."""
    checks.check("value_network", locals(), ACCEPTED)
    layers = [
        *hidden_layers("value_network", obs_shape, units, activation, math.sqrt(2)),
        keras.layers.Dense(1, kernel_initializer=Orthogonal(1.0)),
    ]
    return keras.Sequential([keras.Input(tuple(obs_shape)), *layers], name="critic")


def shared_network(
    obs_shape: Sequence[int],
    action_space: Any,
    units: Sequence[int] = (64, 64),
    activation: str = "tanh",
    initial_log_std: float = 0.0,
) -> keras.Model:
    """Builds actor and critic in one, with the hidden layers in common.

    Args: those of `policy_network`.

    Returns:
        A `keras.Model` from `(B, *obs_shape)` to what describes the policy, and to
        values `(B, 1)`.
    """
    checks.check("shared_network", locals(), ACCEPTED)
    head = distribution(action_space, initial_log_std)
    inputs = x = keras.Input(tuple(obs_shape))
    for layer in hidden_layers(
        "shared_network", obs_shape, units, activation, math.sqrt(2)
    ):
        x = layer(x)
    outputs = keras.layers.Dense(
        head.num_inputs, kernel_initializer=Orthogonal(0.01), name="outputs"
    )(x)
    value = keras.layers.Dense(1, kernel_initializer=Orthogonal(1.0), name="value")(x)
    return keras.Model(inputs, [head(outputs), value], name="actor_critic")


def hidden_layers(
    name: str,
    obs_shape: Sequence[int],
    units: Sequence[int],
    activation: str = "relu",
    gain: float | None = None,
) -> list[keras.layers.Layer]:
    """Returns the hidden layers of an agent's network.

    Args:
        name: Of the function that is called, for the error.
        obs_shape: As in `policy_network`.
        units: Sizes of the hidden layers.
        activation: Of all of them. Defaults to `"relu"`.
        gain: Of orthogonal kernels. Defaults to `None`: Glorot's uniform ones.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `obs_shape` is empty.
    """
    checks.check("hidden_layers", locals(), ACCEPTED)
    if not len(obs_shape):
        raise ValueError(
            f"{name}: `obs_shape` is (), so observations are single numbers; "
            "gymnasium.wrappers.FlattenObservation makes vectors of them."
        )

    def options():
        kernel = "glorot_uniform" if gain is None else Orthogonal(gain)
        return {"activation": activation, "kernel_initializer": kernel}

    layers: list[keras.layers.Layer] = []
    if len(obs_shape) == 3:
        layers.append(keras.layers.Rescaling(1 / 255))
        layers.append(keras.layers.Conv2D(16, 3, **options()))
    if len(obs_shape) > 1:
        layers.append(keras.layers.Flatten())
    return layers + [keras.layers.Dense(size, **options()) for size in units]
