"""Policies: the distributions of actions, and networks that end in them.

An actor ends in one of these layers, which defines how to sample actions from the
outputs of the layer before it, and how probable an action is:

    Categorical         one of A actions:           p(a) = softmax(logits)_a
    MultiCategorical    K choices at once:          p(a) = prod_k softmax(logits_k)_a_k
    Gaussian            A real numbers:             p(a) = N(a; mean, exp(log_std)^2)

Randomness is an argument, `noise`, so that an agent can draw much of it at once. The
Gumbel-max trick and mean + std * noise convert it to actions. Shapes: B batch, A
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
from kit.rl.encoders import (
    NETWORK,
    OBSERVATIONS,
    default_units,
    has_images,
    hidden_layers,
    is_shape,
    network_input,
)

FLOATS = ("float16", "float32", "float64")
INTEGERS = tuple(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))
# Up to this many integers between two bounds, [-1, 1] is mapped to the bounds.
MOST_INTEGERS = 2**16
ACCEPTED = {
    "num_actions": checks.SIZE,
    "start": checks.INTEGER,
    "low": checks.array(interval="[-inf, inf]"),
    "high": checks.array(interval="[-inf, inf]"),
    "initial_log_std": checks.FINITE,
    "action_dtype": checks.one_of(*FLOATS, *INTEGERS),
    "name": checks.TEXT,
    "obs_shape": OBSERVATIONS,
    "units": checks.SIZES | None,
    "activation": checks.ACTIVATION | checks.one_of("auto"),
    "network": NETWORK,
}

# --- Distributions ----------------------------------------------------------


class Distribution(keras.layers.Layer):
    """Base class of the layers in this file: the last layer of an actor.

    Probabilities are computed at least in float32, whatever the network's dtype.

    Args:
        dtype: See `keras.layers.Layer`. Defaults to Keras' dtype policy, or
            `"float32"` if that computes in 16 bits.
        **kwargs: See `keras.layers.Layer`.
    """

    def __init__(self, *, dtype: Any = None, **kwargs: Any):
        checks.check(self, locals(), {"dtype": checks.LAYER_DTYPE})
        dtype = at_least_float32() if dtype is None else dtype
        super().__init__(dtype=dtype, **kwargs)

    def noise(self, key: Any, shape: Sequence[int]) -> Tensor:
        """Draws the noise of `sample` for actions with a leading shape."""
        raise NotImplementedError

    def sample(self, outputs: Tensor, noise: Tensor) -> Tensor:
        """Returns the actions that are sampled with this noise."""
        raise NotImplementedError

    def mode(self, outputs: Tensor) -> Tensor:
        """Returns the most probable actions."""
        raise NotImplementedError

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """Returns the log probabilities (or log densities) of actions, (B,)."""
        raise NotImplementedError

    def entropy(self, outputs: Tensor) -> Tensor:
        """Returns the entropies in nats, (B,)."""
        raise NotImplementedError

    def to_env(self, action: Any) -> Any:
        """Converts actions to the environment's form, arrays or tensors."""
        raise NotImplementedError

    def fits(self, space: Any) -> bool:
        """Whether the actions fit a Gymnasium space."""
        raise NotImplementedError

    def build(self, input_shape):
        """Checks that the number of inputs is what the actions need."""
        if input_shape[-1] != self.num_inputs:
            raise ValueError(
                f"{type(self).__name__} needs {self.num_inputs} numbers to choose "
                f"actions by, received {input_shape[-1]}: give the layer before it "
                "as many units."
            )

    def call(self, inputs):
        """Returns the parameters of the distribution: the inputs."""
        return inputs

    def compute_output_shape(self, input_shape):
        """Returns the shape of the outputs."""
        return tuple(input_shape)


@keras.saving.register_keras_serializable(package="kit")
class Categorical(Distribution):
    """One of A actions, from their logits.

    Args:
        num_actions: A.
        start: Number of the environment's first action. Defaults to 0.

    Input and output shape: `(B, A)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `num_actions` isn't positive, or isn't the number of inputs.

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
        """Actions `(B,)`, numbered from 0."""
        return self.mode(ops.add(outputs, noise))

    def mode(self, outputs):
        """The most probable actions `(B,)`, numbered from 0."""
        return ops.cast(ops.argmax(outputs, axis=-1), "int32")

    def log_prob(self, outputs, action):
        """Log softmax(logits)_a, `(B,)`."""
        return of_taken_action(ops.log_softmax(outputs, axis=-1), action)

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
    """K independent choices at once, each from its own logits.

    Args:
        nvec: Number of options of each choice, K integers.
        start: Number of the environment's first option of each choice. Defaults to
            zeros.

    Input and output shape: `(B, sum of nvec)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `nvec` is empty or not positive, or its sum isn't the number of
            inputs.
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
        """Actions `(B, K)`, numbered from 0."""
        return self.mode(ops.add(outputs, noise))

    def mode(self, outputs):
        """The most probable actions `(B, K)`, numbered from 0."""
        best = [ops.argmax(logits, axis=-1) for logits in self._choices(outputs)]
        return ops.cast(ops.stack(best, axis=-1), "int32")

    def log_prob(self, outputs, action):
        """The sum of the choices' log-probabilities, `(B,)`."""
        return sum(
            of_taken_action(ops.log_softmax(logits, axis=-1), action[..., k])
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
        if ops.is_tensor(action):
            return action + ops.convert_to_tensor(self.start, action.dtype)
        return action + np.array(self.start, action.dtype)

    def fits(self, space):
        """Whether the space is MultiDiscrete or MultiBinary, with these choices."""
        return _choices_of(space) == (self.nvec, self.start)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "nvec": self.nvec, "start": self.start}


@keras.saving.register_keras_serializable(package="kit")
class Gaussian(Distribution):
    """A real numbers, each normally distributed around its own mean.

    The standard deviations are weights of this layer, the same in all states, stored as
    logarithms. Sampled actions are clipped to the bounds for the environment only;
    their probability is that of the unclipped sample.

    Integer actions are real numbers for the agent, and rounded for the environment:
    [-1, 1] is mapped evenly to the integers from `low` to `high`. If there are more
    than 65,536 of them, such as all integers of a dtype, the sample itself is rounded.

    Args:
        low: Smallest value of each action: nested lists in the shape of an action.
        high: Largest value of each action.
        initial_log_std: Initial logarithm of the standard deviations. Defaults to 0.
        action_dtype: The environment's dtype of actions, floats or integers. Actions
            are clipped in this dtype, as otherwise a rounded bound might lie outside of
            the space. Defaults to `"float32"`.

    Input shape: `(B, A)`, the means.

    Output shape: `(B, 2 A)`, the means and the log standard deviations.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `low` and `high` differ in shape, or their size isn't the number
            of inputs.
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
                "Gaussian: `low` must not be above `high`, received "
                f"{self.low.tolist()} and {self.high.tolist()}."
            )
        self.is_integer = self.action_dtype in INTEGERS
        if self.is_integer:  # in float64, as the difference of two may not fit
            low, high = self.low.astype("float64"), self.high.astype("float64")
            few = high - low < MOST_INTEGERS
            # In [-1, 1], the nearest integers lie from low - 1/2 to high + 1/2.
            self.offset = np.where(few, (low + high) / 2, 0.0).astype("float32")
            self.scale = np.where(few, (high - low + 1) / 2, 1.0).astype("float32")
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
        return ops.add(mean, ops.multiply(ops.exp(log_std), noise))

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
        """Clips actions to the bounds, in the environment's shape and dtype."""
        if ops.is_tensor(action):
            shape = (*action.shape[:-1], *self.low.shape)
            action = ops.reshape(action, shape)
            if self.is_integer:
                action = ops.add(ops.multiply(action, self.scale), self.offset)
                action = ops.round(action)
                low, high = (x.astype("float32") for x in (self.low, self.high))
                return ops.cast(ops.clip(action, low, high), self.action_dtype)
            action = ops.cast(action, self.action_dtype)
            return ops.clip(action, self.low, self.high)
        action = np.reshape(action, (*np.shape(action)[:-1], *self.low.shape))
        if self.is_integer:
            action = np.rint(action * self.scale.astype("float64") + self.offset)
            inside = np.clip(action, self.low, self.high)
            with np.errstate(invalid="ignore"):  # 2**63 - 1 is 2**63 as a float
                inside = inside.astype(self.action_dtype)
            return np.where(action >= self.high, self.high, inside)
        return np.clip(action.astype(self.action_dtype), self.low, self.high)

    def fits(self, space):
        """Whether the space is a Box with these bounds that accepts these actions."""
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
            or `Box` of real numbers or integers.
        initial_log_std: For real numbers, the initial logarithm of their standard
            deviations. Defaults to 0.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the space isn't supported, or `initial_log_std` is given although
            the space has no standard deviations.

    Example:

    ```python
    kit.policies.distribution(env.action_space)
    ```
    """
    from gymnasium.spaces import Box, Discrete

    checks.check("distribution", locals(), ACCEPTED)
    if isinstance(action_space, Box) and action_space.dtype.kind in "fiu":
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
            "have no standard deviation; those of a Box do."
        )
    if isinstance(action_space, Discrete):
        return Categorical(int(action_space.n), int(action_space.start), name="policy")
    if choices := _choices_of(action_space):
        return MultiCategorical(*choices, name="policy")
    raise ValueError(
        f"`action_space` {action_space} isn't supported; Discrete, MultiDiscrete and "
        "MultiBinary (in one dimension) and Box (of real numbers or integers) are."
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
    # u = 0 would give -inf, whatever the logits.
    u = random.uniform(key, shape, dtype="float32")
    u = ops.maximum(u, float(np.finfo("float32").tiny))
    return -ops.log(-ops.log(u))


def of_taken_action(values: Any, action: Any) -> Any:
    """Selects one action's values from (B, A) or (B, A, M): (B,) or (B, M)."""
    actions = ops.arange(values.shape[1], dtype="int32")
    taken = ops.equal(ops.expand_dims(ops.cast(action, "int32"), -1), actions)
    if len(values.shape) == 3:
        taken = ops.expand_dims(taken, -1)
    return ops.sum(ops.where(taken, values, 0.0), axis=1)


# --- Networks ---------------------------------------------------------------


def policy_network(
    obs_shape: Any,
    action_space: Any,
    units: Sequence[int] | None = None,
    activation: str | None = "auto",
    initial_log_std: float = 0.0,
    network: Any = None,
) -> keras.Sequential:
    """Builds an actor: Dense layers, after convolutions for images.

    Kernels are orthogonal; the last one is small, so that all actions are about equally
    probable at first. `kit/rl/encoders.py` explains how each kind of observation is
    encoded.

    Args:
        obs_shape: Any Gymnasium space of a single observation. Or the shape of one:
            any, or (height, width, channels) for images with values in [0, 255].
        action_space: Gymnasium action space, see `distribution`.
        units: Sizes of the hidden layers. Defaults to `None`: those of the network
            for images, else `(64, 64)`.
        activation: Activation of the hidden layers. Defaults to `"auto"`: `"relu"` for
            the networks for images, else `"tanh"`.
        initial_log_std: See `distribution`. Defaults to 0.
        network: Network for images: `"nature"`, `"impala"`, `"minatar"`, `"mlp"`, or a
            Keras model from `(B, height, width, channels)`, which critic and actor
            share if both get the same one. Defaults to `None`: chosen by image size.

    Returns:
        A `keras.Sequential` from `(B, *obs_shape)` to the policy's parameters. Dict and
        tuple observations must be packed into one array, which agents do.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `obs_shape` is an empty shape, a space isn't supported, or
            `network` doesn't fit it.

    Example:

    ```python
    actor = kit.policy_network((4,), gymnasium.spaces.Discrete(2))
    ```
    """
    checks.check("policy_network", locals(), ACCEPTED)
    head = distribution(action_space, initial_log_std)
    layers = [
        *_hidden_layers("policy_network", obs_shape, units, activation, network),
        keras.layers.Dense(head.num_inputs, kernel_initializer=Orthogonal(0.01)),
        head,
    ]
    return keras.Sequential([network_input(obs_shape), *layers], name="actor")


def value_network(
    obs_shape: Any,
    units: Sequence[int] | None = None,
    activation: str | None = "auto",
    network: Any = None,
) -> keras.Sequential:
    """Builds a critic: like `policy_network`, from `(B, *obs_shape)` to `(B, 1)`."""
    checks.check("value_network", locals(), ACCEPTED)
    layers = [
        *_hidden_layers("value_network", obs_shape, units, activation, network),
        keras.layers.Dense(1, kernel_initializer=Orthogonal(1.0)),
    ]
    return keras.Sequential([network_input(obs_shape), *layers], name="critic")


def shared_network(
    obs_shape: Any,
    action_space: Any,
    units: Sequence[int] | None = None,
    activation: str | None = "auto",
    initial_log_std: float = 0.0,
    network: Any = None,
) -> keras.Model:
    """Builds actor and critic as one model with shared hidden layers.

    Args: those of `policy_network`.

    Returns:
        A `keras.Model` from `(B, *obs_shape)` to the policy's parameters and to values
        `(B, 1)`.
    """
    checks.check("shared_network", locals(), ACCEPTED)
    head = distribution(action_space, initial_log_std)
    inputs = x = network_input(obs_shape)
    for layer in _hidden_layers(
        "shared_network", obs_shape, units, activation, network
    ):
        x = layer(x)
    outputs = keras.layers.Dense(
        head.num_inputs, kernel_initializer=Orthogonal(0.01), name="outputs"
    )(x)
    value = keras.layers.Dense(1, kernel_initializer=Orthogonal(1.0), name="value")(x)
    return keras.Model(inputs, [head(outputs), value], name="actor_critic")


def _hidden_layers(name, obs_shape, units, activation, network):
    """Returns the hidden layers of an actor or critic, with their defaults."""
    if activation == "auto":
        by_name = network is not None or not is_shape(obs_shape)
        # Small images given by shape only keep tanh, as in earlier versions.
        large = default_units(obs_shape, None, ()) != ()
        seen = (by_name or large) and has_images(obs_shape, network)
        activation = "relu" if seen else "tanh"
    if units is None:
        units = default_units(obs_shape, network, (64, 64))
    return hidden_layers(name, obs_shape, units, activation, math.sqrt(2), network)
