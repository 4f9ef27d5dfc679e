"""Observation spaces: packs observations of any Gymnasium space into one array.

Environments return arrays, numbers of categories, and dicts and tuples of them. Replay
buffers, rollouts and compiled programs take one array. `Packing` creates it:

    Box, Discrete, MultiDiscrete, MultiBinary    unchanged, in their dtype (integers
                                                 beyond 32 bits as floats)
    Dict, Tuple (also nested)                    their parts, flattened and concatenated

The layer `Unpacking` splits it again, at the beginning of a network. Two more layers
convert the parts to inputs that networks can learn from: `Scaling` (by the bounds of a
Box) and `Categories` (one-hot, or embedded if there are many).

Shapes: B batch, N environments, D numbers of a packed observation, K choices.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
from keras import ops

from kit import checks

# Larger bounds are no scale, such as that of a dtype, or one that is never reached.
LARGEST_BOUND = 1e6
# Integers up to this are exact in float32, the dtype of networks' inputs.
LARGEST_INTEGER = 2**24
SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"


def _find_space(value, sizes):
    """Returns the fault of a space; imports Gymnasium only when it is needed."""
    from gymnasium import Space

    return None if isinstance(value, Space) else TypeError


SPACE = checks.Kind("a Gymnasium observation space", _find_space)
ACCEPTED = {
    "space": SPACE,
    "spec": checks.instance(dict, what="the description of a space"),
    "divisor": checks.array(interval="[0, 1e6]"),
    "nvec": checks.sequence(checks.SIZE, least=1),
    "start": checks.sequence(checks.INTEGER) | None,
    "embedding_dim": checks.SIZE | None,
}


class Part(NamedTuple):
    """A part of a packed observation.

    Attributes:
        path: Its keys in dicts and indices in tuples.
        space: Its space: Box, Discrete, MultiDiscrete or MultiBinary.
        start: Index of its first number among the D numbers.
        stop: Index after its last number.
    """

    path: tuple[Any, ...]
    space: Any
    start: int
    stop: int

    @property
    def label(self) -> str:
        """Its name in the names of layers."""
        return "_".join(str(x) for x in self.path) or "obs"


class Packing:
    """Converts the observations of a space to one array each.

    Args:
        space: Gymnasium space of one observation.

    Raises:
        TypeError: If `space` isn't a Gymnasium space.
        ValueError: If its kind isn't supported, or it is empty.

    Attributes:
        space: The space.
        is_array: Whether observations are arrays already, and keep their shape.
        shape: Shape of a packed observation.
        dtype: Its dtype.
        parts: The parts, one if observations are arrays.

    Example:

    ```python
    space = gymnasium.spaces.Dict(
        {"at": gymnasium.spaces.Discrete(4), "speed": gymnasium.spaces.Box(-1, 1, (2,))}
    )
    packing = kit.rl.spaces.Packing(space)
    packing.pack({"at": 3, "speed": np.array([0.5, -0.5])})  # [3.0, 0.5, -0.5]
    ```
    """

    def __init__(self, space: Any):
        checks.check(self, locals(), ACCEPTED)
        self.space = space
        self.parts: list[Part] = []
        for path, inner in _leaves(space):
            start = self.parts[-1].stop if self.parts else 0
            stop = start + math.prod(inner.shape)
            self.parts.append(Part(path, inner, start, stop))
        self.is_array = [part.path for part in self.parts] == [()]
        size = self.parts[-1].stop if self.parts else 0
        if not size:
            raise ValueError(f"The observation space {space} is empty.")
        self.shape: tuple[int, ...] = tuple(space.shape) if self.is_array else (size,)
        self._converts = not self.is_array or _is_wide(space)
        if self._converts:
            self.dtype = _common_dtype([part.space for part in self.parts])
        else:
            self.dtype = np.dtype(space.dtype)

    def pack(self, obs: Any) -> np.ndarray:
        """Returns one observation as an array of `shape`."""
        return self.pack_batch(obs, None)[0]

    def pack_batch(self, obs: Any, num: int | None) -> np.ndarray:
        """Returns N observations as an array `(N, *shape)`, a copy.

        Args:
            obs: Observations of a vector environment: parts are arrays `(N, ...)`.
            num: N; `None` for one observation, whose parts have no axis N.
        """
        if self.is_array:
            dtype = self.dtype if self._converts else None
            packed = np.array(obs, dtype)
            return packed if num is not None else packed[None]
        packed = np.empty((num or 1, *self.shape), self.dtype)
        values = self._values(obs)
        for part, value in zip(self.parts, values, strict=True):
            shape = part.space.shape if num is None else (num, *part.space.shape)
            if value.shape != shape:
                raise ValueError(
                    f"the part {_name(part.path)} of an observation has shape "
                    f"{value.shape}, and its space is {part.space}"
                )
            packed[:, part.start : part.stop] = value.reshape(num or 1, -1)
        return packed

    def pack_any(self, obs: Any) -> np.ndarray:
        """Packs one observation, or a batch of them; packed ones stay unchanged.

        Returns:
            An array of `shape`, or `(B, *shape)`.

        Raises:
            ValueError: If the structure or shapes of `obs` don't fit the space.
        """
        if self.is_array or isinstance(obs, np.ndarray):
            return np.asarray(obs, self.dtype if self._converts else None)
        part, value = self.parts[0], next(iter(self._values(obs)))
        axes = value.ndim - len(part.space.shape)
        return self.pack_batch(obs, len(value)) if axes == 1 else self.pack(obs)

    def _values(self, obs: Any) -> Iterator[np.ndarray]:
        """Yields the parts of an observation as arrays."""
        for part in self.parts:
            value = obs
            try:
                for key in part.path:
                    value = value[key]
            except (KeyError, IndexError, TypeError) as error:
                raise ValueError(
                    f"an observation has no part {_name(part.path)}, as the space "
                    f"{self.space} has; received {type(obs).__name__} "
                    f"{list(obs) if isinstance(obs, dict) else ''}"
                ) from error
            yield np.asarray(value)


def is_category(space: Any) -> bool:
    """Whether a space's numbers are categories: Discrete, MultiDiscrete."""
    from gymnasium.spaces import Discrete, MultiDiscrete

    return isinstance(space, Discrete | MultiDiscrete)


def bounds_of(space: Any) -> np.ndarray:
    """Returns the divisors that scale a Box or MultiBinary to [-1, 1].

    They are the largest absolute values of the bounds, in the space's shape; 0, for no
    scaling, if there is no bound, or one above a million.
    """
    low = np.broadcast_to(getattr(space, "low", 0), space.shape)
    high = np.broadcast_to(getattr(space, "high", 1), space.shape)
    with np.errstate(over="ignore"):
        largest = np.maximum(
            np.abs(low.astype("float64")), np.abs(high.astype("float64"))
        )
    return np.where(largest <= LARGEST_BOUND, largest, 0.0)


def _leaves(space, path=()):
    """Yields the array spaces within a space, with their paths."""
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

    if isinstance(space, Dict):
        for key, inner in space.spaces.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(space, Tuple):
        for i, inner in enumerate(space.spaces):
            yield from _leaves(inner, (*path, i))
    elif isinstance(space, Box | Discrete | MultiBinary | MultiDiscrete):
        if path and isinstance(space, Discrete) and space.n > LARGEST_INTEGER:
            raise ValueError(
                f"The observation space {space} at {_name(path)} isn't supported: it "
                f"has more than {LARGEST_INTEGER:,} categories."
            )
        yield path, space
    else:
        where = f" at {_name(path)}" if path else ""
        raise ValueError(
            f"The observation space {space}{where} isn't supported; {SUPPORTED} are."
        )


def _name(path):
    return "".join(f"[{key!r}]" for key in path)


def _common_dtype(spaces):
    """Returns the smallest of three dtypes that can represent all spaces' numbers."""
    dtypes = [np.dtype(space.dtype) for space in spaces]
    if any(dtype.kind == "f" for dtype in dtypes):
        return np.dtype("float32")
    least, most = 0, 0
    for space in spaces:
        low, high = _range(space)
        least, most = min(least, low), max(most, high)
    if least >= 0 and most <= 255:
        return np.dtype("uint8")
    fits = least >= -(2**31) and most < 2**31
    return np.dtype("int32" if fits else "float32")


def _is_wide(space):
    """Whether a space's integers are beyond what all backends support."""
    from gymnasium.spaces import Box

    if not isinstance(space, Box) or space.dtype.kind not in "iu":
        return False
    least, most = _range(space)
    return space.dtype == np.uint64 or least < -(2**31) or most >= 2**31


def _range(space):
    """Returns the smallest and the largest integer of a space."""
    from gymnasium.spaces import Discrete, MultiDiscrete

    if isinstance(space, Discrete):
        return int(space.start), int(space.start + space.n - 1)
    if isinstance(space, MultiDiscrete):
        return int(space.start.min()), int((space.start + space.nvec).max()) - 1
    low, high = getattr(space, "low", np.zeros(1)), getattr(space, "high", np.ones(1))
    return int(low.min()), int(high.max())


# --- Spaces in files ----------------------------------------------------------


def describe(space: Any) -> dict[str, Any]:
    """Returns a space as names, numbers, lists and dicts, for saved models."""
    from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, Tuple

    if isinstance(space, Dict):
        items = [[key, describe(inner)] for key, inner in space.spaces.items()]
        return {"kind": "Dict", "spaces": items}
    if isinstance(space, Tuple):
        return {"kind": "Tuple", "spaces": [describe(x) for x in space.spaces]}
    if isinstance(space, Discrete):
        return {"kind": "Discrete", "n": int(space.n), "start": int(space.start)}
    if isinstance(space, MultiBinary):
        return {"kind": "MultiBinary", "shape": list(map(int, space.shape))}
    kind = {"kind": type(space).__name__, "shape": list(map(int, space.shape))}
    if not isinstance(space, Box):
        return {**kind, "nvec": _short(space.nvec), "start": _short(space.start)}
    dtype = np.dtype(space.dtype).name
    return {**kind, "low": _short(space.low), "high": _short(space.high)} | {
        "dtype": dtype
    }


def restore(spec: dict[str, Any]) -> Any:
    """Returns the space from the result of `describe`."""
    from gymnasium import spaces

    checks.check("restore", locals(), ACCEPTED)
    kind, inner = spec["kind"], spec.get("spaces", [])
    if kind == "Dict":
        return spaces.Dict([(key, restore(x)) for key, x in inner])
    if kind == "Tuple":
        return spaces.Tuple([restore(x) for x in inner])
    if kind == "Discrete":
        return spaces.Discrete(spec["n"], start=spec["start"])
    shape = tuple(spec["shape"])
    if kind == "MultiBinary":
        return spaces.MultiBinary(shape[0] if len(shape) == 1 else shape)
    if kind == "MultiDiscrete":
        nvec, start = (np.broadcast_to(spec[x], shape) for x in ("nvec", "start"))
        return spaces.MultiDiscrete(nvec, start=start)
    dtype = np.dtype(spec["dtype"])
    low, high = (np.broadcast_to(spec[x], shape).astype(dtype) for x in ("low", "high"))
    return spaces.Box(low, high, shape, dtype.type)


def _short(array):
    """Returns numbers as nested lists, or as one number if all are equal."""
    array = np.asarray(array)
    same = array.size and (array == array.reshape(-1)[0]).all()
    return array.reshape(-1)[0].item() if same else array.tolist()


# --- Layers -------------------------------------------------------------------


@keras.saving.register_keras_serializable(package="kit")
class Unpacking(keras.layers.Layer):
    """Splits packed observations into parts; a network's first layer for them.

    Args:
        spec: The space, from `describe`.

    Input shape: `(B, D)`.

    Output shape: A list with an array `(B, ...)` for each part.
    """

    def __init__(self, spec: dict[str, Any], **kwargs: Any):
        # No autocast, as numbers of categories aren't exact in 16 bits.
        super().__init__(**{"autocast": False, **kwargs})
        checks.check(self, locals(), ACCEPTED)
        # Not with setattr: Keras would turn its contents into tracked lists.
        self.__dict__["spec"] = spec
        self.__dict__["packing"] = Packing(restore(spec))

    def call(self, inputs):
        """Returns the parts."""
        return [
            ops.reshape(inputs[:, part.start : part.stop], (-1, *part.space.shape))
            for part in self.packing.parts
        ]

    def compute_output_shape(self, input_shape):
        """Returns the shapes of the parts."""
        return [(input_shape[0], *part.space.shape) for part in self.packing.parts]

    def compute_output_spec(self, inputs):
        """Returns the symbolic tensors of the parts."""
        return [
            keras.KerasTensor(shape, dtype=inputs.dtype)
            for shape in self.compute_output_shape(inputs.shape)
        ]

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "spec": self.spec}


@keras.saving.register_keras_serializable(package="kit")
class Scaling(keras.layers.Layer):
    """Divides by the bounds of a Box, so that numbers lie in [-1, 1].

    It computes in float32, in which the integers of images are exact, and casts the
    result to the compute dtype.

    Args:
        divisor: One number, or nested lists in the shape of an input; 0 for no scaling,
            see `bounds_of`.

    Input and output shape: `(B, ...)`.
    """

    def __init__(self, divisor: Any, **kwargs: Any):
        super().__init__(**{"autocast": False, **kwargs})
        checks.check(self, locals(), ACCEPTED)
        self.divisor = np.asarray(divisor, "float64")

    def call(self, inputs):
        """Returns the scaled inputs."""
        divisor = np.where(self.divisor > 0, self.divisor, 1.0).astype("float32")
        x = ops.cast(inputs, "float32") / ops.convert_to_tensor(divisor)
        return ops.cast(x, self.compute_dtype)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the inputs."""
        return tuple(input_shape)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return {**super().get_config(), "divisor": _short(self.divisor)}


@keras.saving.register_keras_serializable(package="kit")
class Categories(keras.layers.Layer):
    """Converts numbers of categories to vectors, one for each of K choices.

    The vectors are one-hot, with a 1 at the category, or learned, if there are so many
    categories that shorter vectors are needed.

    Args:
        nvec: Number of categories of each choice, K integers.
        start: Number of the first category of each. Defaults to zeros.
        embedding_dim: Length of learned vectors. Defaults to `None`: one-hot.

    Input shape: `(B, ...)`, with K numbers; integers, or floats without a fraction.

    Output shape: `(B, sum of nvec)`, or `(B, K embedding_dim)`.
    """

    def __init__(
        self,
        nvec: Sequence[int],
        start: Sequence[int] | None = None,
        embedding_dim: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**{"autocast": False, **kwargs})
        checks.check(self, locals(), ACCEPTED)
        self.nvec = tuple(map(int, nvec))
        self.start = (0,) * len(self.nvec) if start is None else tuple(map(int, start))
        if len(self.start) != len(self.nvec):
            raise ValueError(
                f"Categories: `start` must have as many numbers as `nvec`, "
                f"{len(self.nvec)}; received {len(self.start)}."
            )
        self.embedding_dim = embedding_dim
        self.embeddings_initializer = keras.initializers.RandomUniform(-0.05, 0.05)

    def build(self, input_shape):
        """Builds the learned vectors."""
        if self.embedding_dim is not None:
            self.embeddings = self.add_weight(
                shape=(sum(self.nvec), self.embedding_dim),
                initializer=self.embeddings_initializer,
                name="embeddings",
            )

    def call(self, inputs):
        """Returns the vectors."""
        choices = len(self.nvec)
        number = ops.reshape(ops.cast(inputs, "int32"), (-1, choices))
        number = ops.subtract(number, np.array(self.start, "int32"))  # (B, K), from 0
        if self.embedding_dim is not None:
            first = np.cumsum([0, *self.nvec[:-1]]).astype("int32")
            rows = ops.take(self.embeddings, ops.add(number, first), axis=0)
            rows = ops.reshape(rows, (-1, choices * self.embedding_dim))
            return ops.cast(rows, self.compute_dtype)
        # Output j belongs to a category of the choice `owner[j]`.
        owner = np.repeat(np.arange(choices), self.nvec).astype("int32")
        category = np.concatenate([np.arange(n) for n in self.nvec]).astype("int32")
        if choices > 1:
            number = ops.take(number, owner, axis=1)
        return ops.cast(ops.equal(number, category), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the outputs."""
        if self.embedding_dim is not None:
            return (input_shape[0], len(self.nvec) * self.embedding_dim)
        return (input_shape[0], sum(self.nvec))

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = {
            "nvec": list(self.nvec),
            "start": list(self.start),
            "embedding_dim": self.embedding_dim,
        }
        return {**super().get_config(), **config}


# --- The spaces of networks -----------------------------------------------------


def packing_of(network: keras.layers.Layer) -> Packing | None:
    """Returns how a network's observations are packed, `None` if they are arrays."""
    for layer in network._flatten_layers():
        if isinstance(layer, Unpacking):
            return layer.packing
    return None


def misfit(network: keras.Model, space: Any) -> str | None:
    """Returns why a network isn't made for a space, `None` if it is.

    Args:
        network: A model with one input.
        space: Gymnasium's space of one observation.
    """
    obs_shape = tuple(network.input_shape[1:])
    packing, made_for = Packing(space), packing_of(network)
    if made_for is not None:
        if made_for.is_array or describe(made_for.space) != describe(space):
            return f"is made for {made_for.space}"
        return None
    if not packing.is_array:
        return f"takes arrays of shape {obs_shape}"
    if packing.shape != obs_shape:
        return f"takes {obs_shape}"
    for layer in network._flatten_layers():
        if isinstance(layer, Categories):
            nvec, start = _categories(space)
            if (nvec, start) != (layer.nvec, layer.start):
                return f"is made for categories {layer.nvec} from {layer.start}"
    return None


def _categories(space):
    """Returns the number of categories of each choice of a space, and their starts."""
    if not is_category(space):
        return None, None
    nvec, start = getattr(space, "nvec", getattr(space, "n", 0)), space.start
    return tuple(np.ravel(nvec).tolist()), tuple(np.ravel(start).tolist())


def scaled_by_network(network: keras.Model) -> np.ndarray:
    """Returns which numbers of an observation a network scales or encodes itself.

    Booleans, with the shape of the network's observations. Don't normalize these
    numbers elsewhere: categories would be lost, and images scaled twice.
    """
    obs_shape = tuple(network.input_shape[1:])
    packing = packing_of(network)
    if packing is not None:
        parts = [
            np.ones(part.stop - part.start, bool)
            if is_category(part.space)
            else bounds_of(part.space).reshape(-1) > 0
            for part in packing.parts
        ]
        return np.concatenate(parts)
    for layer in network._flatten_layers():
        if isinstance(layer, Categories):
            return np.ones(obs_shape, bool)
        if isinstance(layer, Scaling):
            known = layer.divisor > 0
            return np.broadcast_to(known if known.ndim else known.all(), obs_shape)
    return np.zeros(obs_shape, bool)
