"""Initial weights from a seed, the same on every backend."""

import math
import re
from typing import Any

import keras
import numpy as np
from keras import initializers, layers, ops

from kit import checks, random
from kit.random import Generator

__all__ = ["initialize_weights"]

TRUNCATED_STDDEV = 0.8796256610342398  # of a standard normal truncated at -2 and 2
# No attribute of these layers has the initializer. None: keep the values, which `adapt`
# learned from data.
BUILT_IN_INITIALIZERS: list[tuple[type, str, Any]] = [
    (layers.AdditiveAttention, "scale", "glorot_uniform"),
    (layers.Attention, "scale", "ones"),
    (layers.Attention, "concat_score_weight", "ones"),
    (layers.Normalization, "mean", None),
    (layers.Normalization, "variance", None),
    (layers.Normalization, "count", None),
    (layers.RMSNormalization, "scale", "ones"),
    (layers.RNN, "states", "zeros"),
    (layers.SpectralNormalization, "vector_u", initializers.TruncatedNormal(0.02)),
]


@keras.saving.register_keras_serializable(package="kit")
class Orthogonal(initializers.Orthogonal):
    """`keras.initializers.Orthogonal`, also for 16-bit weights.

    Keras computes a QR decomposition in the dtype of the weights, which no backend
    supports for bfloat16. This class computes in 32 bits, then rounds. The arguments
    are Keras'.
    """

    def __init__(self, gain: float = 1.0, seed: Any = None):
        checks.check(self, locals(), {"gain": checks.FINITE})
        super().__init__(gain=gain, seed=seed)

    def __call__(self, shape, dtype=None):
        """Returns an orthogonal matrix."""
        dtype = keras.backend.standardize_dtype(dtype)
        return ops.cast(super().__call__(shape, at_least_float32(dtype)), dtype)


def at_least_float32(dtype: str | None = None) -> str:
    """Returns the dtype for computations that need more than 16 bits.

    Args:
        dtype: Dtype of the result. Defaults to Keras' compute dtype.
    """
    checks.check("at_least_float32", locals(), {"dtype": checks.DTYPE | None})
    dtype = dtype or keras.config.dtype_policy().compute_dtype
    return keras.backend.result_type(dtype, "float32")


DETERMINISTIC = (
    initializers.Constant,
    initializers.Identity,
    initializers.Ones,
    initializers.STFT,
    initializers.Zeros,
)
RANDOM = (
    Orthogonal,
    initializers.Orthogonal,
    initializers.RandomNormal,
    initializers.RandomUniform,
    initializers.TruncatedNormal,
    initializers.VarianceScaling,  # Glorot, He and LeCun are subclasses
)


def initialize_weights(model: keras.layers.Layer, seed: int) -> None:
    """Draws new weights for a built model, the same on every backend.

    Each weight is drawn from its layer's own initializer (without the initializer's
    seed), with a key for its index in `model.weights`: adding layers at the end doesn't
    change earlier weights. Seed generators (of dropout, of sampling) restart from
    `seed`; on PyTorch, Keras' `Dropout` uses its own generator only if it was given a
    seed. Optimizers and metrics don't change. Copies of a network, such as a target
    network, get different weights: copy afterwards.

    The initializer of a layer's weight `name` is the layer's attribute
    `name_initializer`, as in Keras' layers: give your own layers one. For a weight
    `name_kernel`, it may also be `name_initializer`.

    Args:
        model: A built `keras.Model` or `keras.layers.Layer`.
        seed: Integer, 0 <= seed < 2**32.

    Raises:
        TypeError: If `model` is not a Keras model or layer, or `seed` no integer.
        ValueError: If `model` is not built, `seed` is out of range, or a weight has no
            known initializer. Nothing is changed then.

    Example:

    ```python
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    kit.initialize_weights(model, seed=0)
    ```
    """
    accepted = {"model": checks.LAYER, "seed": checks.SEED}
    checks.check("initialize_weights", locals(), accepted)
    if not model.built:
        raise ValueError(
            "`model` must be built: call it on data once, or "
            f"`model.build(input_shape)`. Received: {model.name!r}, without weights"
        )
    weights_key, states_key = random.split(random.key(seed))
    owners: dict[int, list] = {}
    generators: dict[int, keras.random.SeedGenerator] = {}
    _explore(model, None, "", owners, generators, set())
    # A layer may have a generator's state among its weights, to save it.
    weights = [w for w in model.weights if id(w) not in generators]
    found = [_find_initializer(w, owners.get(id(w), [])) for w in weights]

    # Draw everything before assigning anything, so that an error changes nothing.
    sizes = [_num_words(w.shape, found[i][1]) for i, w in enumerate(weights)]
    draws = _draw_flat(random.split(weights_key, len(weights) + 1), sizes)
    values = [_weight_value(w, found[i], draws[i]) for i, w in enumerate(weights)]
    for weight, value in zip(weights, values, strict=True):
        if value is not None:
            weight.assign(value)
    states = list({id(v): v for v in model.variables if id(v) in generators}.values())
    state_keys = ops.convert_to_numpy(random.split(states_key, len(states) + 1))
    for state, words in zip(states, state_keys, strict=False):
        if isinstance(generators[id(state)], Generator):
            state.assign(np.array([*words, 0]))
        else:  # Keras' (seed, counter), unsigned on JAX: 31 bits are the same for all
            state.assign(np.array([words[1] & 0x7FFFFFFF, 0]))


def _explore(value, owner, attribute, owners, generators, seen):
    """Finds the layer and attribute of each variable, and all generators."""
    if isinstance(value, keras.Variable):
        owners.setdefault(id(value), []).append((owner, attribute))
    elif isinstance(value, keras.random.SeedGenerator):
        generators[id(value.state)] = value
    elif id(value) in seen:
        return
    elif isinstance(value, keras.layers.Layer):
        seen.add(id(value))
        for name, child in list(vars(value).items()):
            _explore(child, value, name, owners, generators, seen)
    elif isinstance(value, (list, tuple, set, dict)):
        seen.add(id(value))
        for child in list(value.values() if isinstance(value, dict) else value):
            _explore(child, owner, attribute, owners, generators, seen)


def _find_initializer(weight, owners):
    """Returns the layer of `weight`, and the layer's initializer for it."""
    for layer, attribute in owners:
        names = dict.fromkeys([weight.name, attribute.lstrip("_")])
        for cls, name, initializer in BUILT_IN_INITIALIZERS:
            if isinstance(layer, cls) and name in names:
                return layer, initializers.get(initializer)
        stems = [*names, *(name.removesuffix("_kernel") for name in names)]
        if "kernel" in names:
            stems.append("depthwise")  # the name in `DepthwiseConv2D`
        for stem in stems:
            initializer = initializers.get(getattr(layer, f"{stem}_initializer", None))
            if initializer is None:
                continue
            # A subclass with its own `__call__` draws from an unknown distribution.
            known = [cls.__call__ for cls in (*DETERMINISTIC, *RANDOM)]
            if type(initializer).__call__ not in known:
                names = dict.fromkeys(x.__name__ for x in (*DETERMINISTIC, *RANDOM))
                raise ValueError(
                    f"The initializer of the weight {weight.path!r} of layer "
                    f"{layer.name!r} is not supported. Received: {initializer!r}. "
                    f"Accepted: {', '.join(names)}, and subclasses that keep their "
                    "`__call__`."
                )
            return layer, initializer
    layer = f"layer {owners[0][0].name!r}" if owners else "no layer"
    raise ValueError(
        f"The initializer of the weight {weight.path!r}, held by {layer}, is not "
        f"known. Accepted: an attribute `{weight.name}_initializer` of the layer."
    )


def _num_words(shape, initializer):
    """Returns the number of random words for the value of a weight."""
    if not isinstance(initializer, RANDOM):
        return 0
    return math.prod(shape) * (
        2 if isinstance(initializer, initializers.Orthogonal) else 1
    )


def _draw_flat(keys, sizes):
    """Draws sizes[i] numbers from keys[i]: rows uniform, normal, truncated normal.

    Number j of part i comes from word j of `bits(keys[i], ...)`. One computation draws
    for all weights, padded to a power of two, since eager JAX compiles each operation
    again for each shape. The last key is for the padding.
    """
    total = sum(sizes)
    padded = [*sizes, max(2**12, 2 ** total.bit_length()) - total]
    keys = ops.convert_to_tensor(
        np.repeat(ops.convert_to_numpy(keys), padded, axis=0).T
    )
    counter = np.concatenate([np.arange(size, dtype="int32") for size in padded])
    words = ops.bitwise_xor(*random._threefry(keys, 0, ops.convert_to_tensor(counter)))
    rows = (
        random._unit(words),
        random._gaussian(words, 1.0),
        random._gaussian(words, random.TWO_SIGMA_MASS),
    )
    draws = np.stack([ops.convert_to_numpy(row) for row in rows])
    return np.split(draws, np.cumsum(sizes), axis=1)


def _weight_value(weight, found, draws):
    """Returns the new value of `weight`, or None to keep the old one."""
    layer, initializer = found
    if initializer is None:
        return None
    shape = tuple(weight.shape)
    if isinstance(initializer, RANDOM):
        value = _draw(draws, shape, initializer, layer)
    else:
        value = ops.convert_to_numpy(initializer(shape, dtype=weight.dtype))
    if weight.name == "bias" and getattr(layer, "unit_forget_bias", False):
        units = shape[0] // 4  # the gates: input, forget, cell, output
        value = np.concatenate([value[:units], np.ones(units), value[2 * units :]])
    return value


def _draw(draws, shape, initializer, layer):
    """Converts draws to the distribution of one of Keras' random initializers."""
    if isinstance(initializer, initializers.Orthogonal):
        return random._orthogonal(draws[0].reshape(2, -1), shape, initializer.gain)
    unit, gaussian, truncated = (draw.reshape(shape) for draw in draws)
    if isinstance(initializer, initializers.RandomUniform):
        low, high = initializer.minval, initializer.maxval
        return low + (high - low) * unit
    if isinstance(initializer, initializers.RandomNormal):
        return initializer.mean + initializer.stddev * gaussian
    if isinstance(initializer, initializers.TruncatedNormal):
        return initializer.mean + initializer.stddev * truncated
    fan_in, fan_out = _fans(shape, initializer, layer)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2.0}
    stddev = math.sqrt(initializer.scale / max(1.0, fan[initializer.mode]))
    if initializer.distribution == "uniform":
        return math.sqrt(3.0) * stddev * (2.0 * unit - 1.0)
    if initializer.distribution == "untruncated_normal":
        return stddev * gaussian
    # `stddev` is that of the truncated distribution.
    return stddev / TRUNCATED_STDDEV * truncated


def _fans(shape, initializer, layer):
    """Returns the numbers of inputs and of outputs of each unit."""
    input_axes, output_axes = initializer.input_axes, initializer.output_axes
    if input_axes is None or output_axes is None:
        if isinstance(layer, layers.EinsumDense) and len(shape) > 1:
            _, kernel, output = re.split(",|->", layer.equation.replace(" ", ""))
            output_axes = [i for i, axis in enumerate(kernel) if axis in output]
            input_axes = [i for i, axis in enumerate(kernel) if axis not in output]
        elif len(shape) < 2:
            return (math.prod(shape),) * 2
        else:  # convolutions: (receptive field..., inputs, outputs)
            field = math.prod(shape[:-2])
            return shape[-2] * field, shape[-1] * field
    return (
        math.prod(shape[axis] for axis in input_axes),
        math.prod(shape[axis] for axis in output_axes),
    )
