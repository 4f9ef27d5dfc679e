"""Random numbers from explicit keys: the same bits on every backend.

A key is an int32 array of shape (2,). Every function here is a pure function of its
key, so a draw can be repeated, compiled, and compared between backends:

- `key(seed)` creates a key, `split(key, num)` derives several keys from one;
- `split_seed(seed, num)` derives several integer seeds from one;
- `bits`, `uniform`, `normal`, `truncated_normal`, `bernoulli`, `randint`,
  `categorical`, `permutation` and `orthogonal` draw;
- `Generator(seed)` gives a new key for each draw: pass it instead of a key.

The bits come from Threefry-2x32 with 20 rounds, the default of `jax.random`: `key`,
`split`, `bits` and float32 `uniform` on (0, 1) equal JAX's bit for bit. Functions that
compute a logarithm (`normal`, `truncated_normal`, `categorical`) may differ between
backends by rounding, about one part in a million.

Use a key for one draw only: two draws from the same key give the same numbers.

Reference:
    Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3",
    SC 2011.
"""

import contextlib
import math
import operator
from collections.abc import Sequence

import keras
import numpy as np
from keras import ops

from kit import checks
from kit.engines.base import Tensor

__all__ = [
    "Generator",
    "bernoulli",
    "bits",
    "categorical",
    "key",
    "normal",
    "orthogonal",
    "permutation",
    "randint",
    "split",
    "split_seed",
    "truncated_normal",
    "uniform",
]


# Number of bits by which each of eight rounds rotates (Salmon et al., table 2).
ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
PARITY = 0x1BD11BDA  # the third key word isn't zero if the others are
MANTISSA_BITS = {"float32": 23, "float16": 10, "bfloat16": 7}
ACCEPTED = {
    "seed": checks.SEED,
    "num": checks.SIZE,
    "name": checks.TEXT | None,
    "shape": checks.sequence(checks.COUNT),
    "minval": checks.array(interval="(-inf, inf)"),
    "maxval": checks.array(interval="(-inf, inf)"),
    "mean": checks.array(interval="(-inf, inf)"),
    "stddev": checks.array(interval="[0, inf)"),
    "dtype": checks.DTYPE | None,
    "p": checks.array(interval="[0, 1]"),
    "logits": checks.array("B ..."),
    "axis": checks.INTEGER,
    "n": checks.SIZE,
    "gain": checks.FINITE,
}
KEY = checks.Kind(
    "an int32 array of shape (2,), from `kit.random.key(seed)` or `kit.random.split`, "
    "or a kit.random.Generator",
    checks.array("2", "integers").fault,
)
TWO_SIGMA_MASS = math.erf(math.sqrt(2.0))  # P(|z| < 2) of a standard normal

# Coefficients of erfinv(x) / x (without the factor sqrt(2)) as polynomials, highest
# power first, with w = -log(1 - x^2): in (w - 2.5) for w < 5, else in (sqrt(w) - 3).
# From Giles, "Approximating the erfinv function", GPU Computing Gems, 2011.
# fmt: off
ERFINV_CENTRAL = (
    2.81022636e-08, 3.43273939e-07, -3.5233877e-06, -4.39150654e-06,
    0.00021858087, -0.00125372503, -0.00417768164, 0.246640727, 1.50140941,
)
ERFINV_TAIL = (
    -0.000200214257, 0.000100950558, 0.00134934322, -0.00367342844,
    0.00573950773, -0.0076224613, 0.00943887047, 1.00167406, 2.83297682,
)
# fmt: on


# --- Keys ---------------------------------------------------------------------


def key(seed: int) -> Tensor:
    """Creates a key from a seed.

    Args:
        seed: Integer, 0 <= seed < 2**32.

    Returns:
        The key, int32 of shape (2,): the bits of `jax.random.key(seed)`.

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If `seed` is out of range.

    Example:

    ```python
    first, second = kit.random.split(kit.random.key(0))
    kit.random.uniform(first, (3,))
    ```
    """
    checks.check("key", locals(), ACCEPTED)
    return ops.convert_to_tensor(_seed_words(seed), dtype="int32")


def split(key: "Tensor | Generator", num: int = 2) -> Tensor:
    """Derives several keys from one, whose draws are independent of each other.

    The i-th key does not depend on `num`. Don't use `key` itself again.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        num: Number of keys, an integer of at least 1. Defaults to 2.

    Returns:
        int32 of shape (num, 2).

    Raises:
        TypeError: If `key` or `num` has the wrong type.
        ValueError: If `num` < 1, or the key has another shape.
    """
    checks.check("split", locals(), ACCEPTED)
    return ops.stack(_threefry(_take(key), 0, ops.arange(num, dtype="int32")), axis=1)


def split_seed(seed: "int | Generator", num: int = 2) -> list[int]:
    """Derives several independent seeds from one.

    Use it if several parts of an experiment take an integer seed, such as two networks
    or an environment. Don't use `seed` and `seed + 1`: the second part of one run would
    equal the first part of the next. The i-th seed does not depend on `num`.

    Args:
        seed: Integer, 0 <= seed < 2**32, or a `Generator`, from which they are drawn.
        num: Number of seeds, an integer of at least 1. Defaults to 2.

    Returns:
        Integers in [0, 2**31 - 1).

    Raises:
        TypeError: If `seed` or `num` has the wrong type.
        ValueError: If `seed` is out of range or `num` < 1.

    Example:

    ```python
    for network, network_seed in zip((actor, critic), kit.random.split_seed(0)):
        kit.initialize_weights(network, network_seed)
    ```
    """
    checks.check("split_seed", {"num": num}, ACCEPTED)
    source = seed if isinstance(seed, Generator) else key(seed)
    # Round the size up, since eager JAX compiles each operation again for each shape.
    drawn = randint(source, (-(-num // 16) * 16,), 0, 2**31 - 1)
    return ops.convert_to_numpy(drawn)[:num].tolist()


@keras.saving.register_keras_serializable(package="kit")
class Generator(keras.random.SeedGenerator):
    """Gives a new key for each draw.

    The n-th key is `split(key(seed), n + 1)[n]`. A Keras variable counts n, so each
    call of a compiled function makes new draws. Keys repeat after 2**32 draws.

    It is a `keras.random.SeedGenerator`, so Keras tracks it as an attribute of a layer
    or model: its state is part of `layer.variables`, and Keras' `fit` updates it. As
    with Keras' own generators, `.keras` files don't contain the state; a loaded model
    starts from the constructor's seed. Use it with the functions of this module; Keras'
    own layers and `keras.random` need Keras' generator.

    Args:
        seed: Integer, 0 <= seed < 2**32.
        name: Optional string, the name of the generator.

    Attributes:
        state: Non-trainable integer variable of shape (3,): the key and the counter.

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If `seed` is out of range.

    Example:

    ```python
    generator = kit.random.Generator(0)
    kit.random.normal(generator, (2, 3))
    kit.random.normal(generator, (2, 3))  # other numbers
    ```
    """

    def __init__(self, seed: int, name: str | None = None):
        checks.check(self, locals(), ACCEPTED)
        words = _seed_words(seed)
        super().__init__(seed=0, name=name)
        self.seed = int(seed)
        # "int" is int64 on TensorFlow, else int32. TensorFlow keeps int32 variables in
        # host memory, which functions compiled by XLA for a GPU can't access.
        with keras.name_scope(self.name):
            self.state = keras.Variable(
                np.array([*words, 0]), dtype="int", trainable=False, name="state"
            )

    def next(self, ordered: bool = True) -> Tensor:
        """Returns a new key, int32 of shape (2,), and counts it.

        Args:
            ordered: Has no effect; part of the signature of Keras' generator.
        """
        state = ops.cast(ops.convert_to_tensor(self.state), "int32")
        fresh = ops.stack(_threefry(state[:2], 0, state[2]))
        self.state.assign(state + ops.convert_to_tensor([0, 0, 1], dtype="int32"))
        return fresh

    def get_config(self) -> dict:
        """Returns the arguments of the constructor."""
        return {"seed": self.seed, "name": self.name}


# --- Draws --------------------------------------------------------------------


def bits(key: "Tensor | Generator", shape: Sequence[int]) -> Tensor:
    """Draws 32 random bits for each element.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        shape: Tuple of integers, known at compile time. At most 2**31 - 1 elements.

    Returns:
        int32 of shape `shape`: the bits of `jax.random.bits`, as signed integers.

    Raises:
        TypeError: If `key` or `shape` has the wrong type.
        ValueError: If a dimension is negative or there are too many elements.
    """
    shape = _check_shape("bits", shape)
    counter = ops.arange(math.prod(shape), dtype="int32")
    return ops.reshape(ops.bitwise_xor(*_threefry(_take(key), 0, counter)), shape)


def uniform(
    key: "Tensor | Generator",
    shape: Sequence[int],
    minval: Tensor = 0.0,
    maxval: Tensor = 1.0,
    dtype: str | None = None,
) -> Tensor:
    """Draws floats uniformly from [minval, maxval).

    As many random bits as the mantissa has give a multiple of 2**-23 (float32) in
    [0, 1), which is then scaled; rounding may then produce `maxval` itself.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        shape: Tuple of integers.
        minval: Float, or an array that broadcasts to `shape`. Defaults to 0.
        maxval: Float, or an array that broadcasts to `shape`. Defaults to 1.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`. Defaults to
            `keras.config.floatx()`.

    Returns:
        Floats of shape `shape`.

    Raises:
        TypeError: If `key` or `shape` has the wrong type.
        ValueError: If `dtype` isn't supported, or `minval` > `maxval` (numbers).
    """
    dtype = _check_draw("uniform", locals())
    numbers = checks.has_values(minval) and checks.has_values(maxval)
    if numbers and not (np.asarray(minval) <= np.asarray(maxval)).all():
        raise ValueError(
            "`minval` must not be greater than `maxval`. "
            f"Received: minval={minval}, maxval={maxval}"
        )
    minval = ops.convert_to_tensor(minval, dtype=dtype)
    maxval = ops.convert_to_tensor(maxval, dtype=dtype)
    return _unit(bits(key, shape), dtype) * (maxval - minval) + minval


def normal(
    key: "Tensor | Generator",
    shape: Sequence[int],
    mean: Tensor = 0.0,
    stddev: Tensor = 1.0,
    dtype: str | None = None,
) -> Tensor:
    """Draws floats from a normal distribution.

    A uniform u in (-1, 1) becomes mean + stddev * sqrt(2) * erfinv(u). erfinv is
    implemented here: TensorFlow's uncompiled one is off by 0.01 at 5 sigma, and those
    of JAX and PyTorch differ by 2e-5. The largest |z| is about 5.4.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        shape: Tuple of integers.
        mean: Float, or an array that broadcasts to `shape`. Defaults to 0.
        stddev: Float, or an array that broadcasts to `shape`. Defaults to 1.
        dtype: `"float32"`, `"float16"` or `"bfloat16"`. Defaults to
            `keras.config.floatx()`.

    Returns:
        Floats of shape `shape`.

    Raises:
        TypeError: If `key` or `shape` has the wrong type.
        ValueError: If `dtype` isn't supported.
    """
    dtype = _check_draw("normal", locals())
    mean, stddev = _as_numbers(mean), _as_numbers(stddev)
    return ops.cast(mean + stddev * _gaussian(bits(key, shape), mass=1.0), dtype)


def truncated_normal(
    key: "Tensor | Generator",
    shape: Sequence[int],
    mean: Tensor = 0.0,
    stddev: Tensor = 1.0,
    dtype: str | None = None,
) -> Tensor:
    """Draws floats from a normal distribution truncated at two `stddev` from the mean.

    `stddev` is that of the untruncated distribution; the draws' is 0.8796 times that.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        shape: Tuple of integers.
        mean: As for `normal`.
        stddev: As for `normal`.
        dtype: As for `normal`.

    Returns:
        Floats of shape `shape`.

    Raises:
        TypeError: If `key` or `shape` has the wrong type.
        ValueError: If `dtype` isn't supported.
    """
    dtype = _check_draw("truncated_normal", locals())
    mean, stddev = _as_numbers(mean), _as_numbers(stddev)
    z = _gaussian(bits(key, shape), mass=TWO_SIGMA_MASS)
    return ops.cast(mean + stddev * z, dtype)


def bernoulli(
    key: "Tensor | Generator", shape: Sequence[int], p: Tensor = 0.5
) -> Tensor:
    """Draws `True` with probability `p`.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        shape: Tuple of integers.
        p: Probability in [0, 1], float or an array that broadcasts to `shape`, with a
            precision of 2**-23. Defaults to 0.5.

    Returns:
        Booleans of shape `shape`.

    Raises:
        TypeError: If `key` or `shape` has the wrong type.
        ValueError: If `p` is a number outside [0, 1].
    """
    _check_draw("bernoulli", {**locals(), "dtype": "float32"})
    # float32 whatever floatx is: half precision is too coarse for `p`.
    return uniform(key, shape, dtype="float32") < ops.cast(p, "float32")


def randint(
    key: "Tensor | Generator", shape: Sequence[int], minval: Tensor, maxval: Tensor
) -> Tensor:
    """Draws integers from [minval, maxval).

    31 random bits modulo n = maxval - minval: the first values are more probable than
    the last by a factor of at most 1 + n / 2**31 (for n = 1000, 5e-7).

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        shape: Tuple of integers.
        minval: Integer, or an int32 array that broadcasts to `shape`; the smallest
            value.
        maxval: Integer, or an int32 array that broadcasts to `shape`; one more than
            the largest value. It may be data, such as the size of a replay buffer.

    Returns:
        int32 of shape `shape`.

    Raises:
        TypeError: If `key` or `shape` has the wrong type.
        ValueError: If both are numbers and `minval` >= `maxval`, or one of them or
            their difference is not below 2**31.
    """
    integers = checks.array("...", "integers")
    checks.check("randint", locals(), {"minval": integers, "maxval": integers})
    _check_draw("randint", {**locals(), "dtype": "float32"})
    if checks.has_values(minval) and checks.has_values(maxval):
        low, high = np.asarray(minval, "int64"), np.asarray(maxval, "int64")
        most = np.minimum(low, 0) + 2**31 - 1
        if not ((low < high) & (high <= most) & (low >= -(2**31))).all():
            raise ValueError(
                "`minval` must be smaller than `maxval`, both int32, and their "
                f"difference below 2**31. Received: minval={minval}, maxval={maxval}"
            )
    minval, maxval = ops.cast(minval, "int32"), ops.cast(maxval, "int32")
    words = _logical_shift_right(bits(key, shape), 1)
    return ops.mod(words, maxval - minval) + minval


def categorical(key: "Tensor | Generator", logits: Tensor, axis: int = -1) -> Tensor:
    """Draws the index of a category, with the probabilities softmax(logits).

    Gumbel-max: argmax(logits - log(-log(u))), u uniform in (0, 1). Categories with a
    probability below 1e-6 are not drawn in proportion; -inf is never drawn.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        logits: Unnormalized log probabilities, floats of a shape known at compile time.
        axis: Integer, the axis of the categories. Defaults to the last.

    Returns:
        int32 of the shape of `logits` without `axis`.

    Raises:
        TypeError: If `key` has the wrong type.
        ValueError: If the shape of `logits` is not known, or `axis` is not in it.

    Example:

    ```python
    logits = keras.ops.log([[0.1, 0.9], [0.5, 0.5]])
    kit.random.categorical(kit.random.key(0), logits)  # shape (2,)
    ```
    """
    checks.check("categorical", locals(), ACCEPTED)
    logits = ops.cast(logits, "float32")
    rank = len(logits.shape)
    if not -rank <= axis < rank:
        raise ValueError(
            f"`axis` must be an axis of `logits`, from {-rank} to {rank - 1}. "
            f"Received: axis={axis}, logits.shape={tuple(logits.shape)}"
        )
    u = uniform(key, logits.shape, dtype="float32")
    # u = 0 would give -inf, and no category at all if the others are masked.
    u = ops.maximum(u, float(np.finfo("float32").tiny))
    scores = logits - ops.log(-ops.log(u))
    # `argmax` in two steps. In one step, XLA's compiler on TensorFlow fuses it with
    # `uniform`, and doesn't terminate for 80, 88 or 96 categories.
    others = scores < ops.max(scores, axis=axis, keepdims=True)
    size = logits.shape[axis]
    index = ops.arange(size, dtype="int32")
    index = ops.reshape(index, [-1] + [1] * (rank - 1 - axis % rank))
    return ops.min(ops.where(others, size, index), axis=axis)


def permutation(key: "Tensor | Generator", n: int, num: int | None = None) -> Tensor:
    """Draws a random order of the integers 0 to n - 1, or several.

    It is the order that sorts n random words. Equal words keep their order, so that
    every backend gives the same. The probability that any two are equal is about
    n**2 / 2**33 (for n = 10,000, 1 %), which favours one order of those two.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        n: Integer, at least 1.
        num: Number of independent orders, an integer. Defaults to `None`: one.

    Returns:
        int32 of shape (n,), each of 0 to n - 1 once; with `num`, (num, n).

    Raises:
        TypeError: If `key`, `n` or `num` has the wrong type.
        ValueError: If `n` or `num` < 1.
    """
    checks.check("permutation", {"n": n}, ACCEPTED)
    checks.check("permutation", {"num": num}, {"num": checks.SIZE | None})
    shape = (n,) if num is None else (num, n)
    # `keras.ops.argsort` is stable on all three backends; a test checks it.
    return ops.cast(ops.argsort(bits(key, shape)), "int32")


def orthogonal(
    key: "Tensor | Generator", shape: Sequence[int], gain: float = 1.0
) -> Tensor:
    """Draws a matrix with orthonormal columns or rows, whichever are fewer.

    It is Q of the QR decomposition of a Gaussian matrix, with signs such that the
    diagonal of R is positive, which makes Q uniformly distributed. More than two
    dimensions are treated as the matrix (product of all but the last, last). It is
    computed in NumPy in float64, to be the same on all backends: don't use it in a
    compiled function.

    Args:
        key: A key, int32 of shape (2,), or a `Generator`.
        shape: Tuple of at least two integers.
        gain: Float, factor of the result. Defaults to 1.

    Returns:
        Floats of shape `shape`, in `keras.config.floatx()`.

    Raises:
        TypeError: If `key` or `shape` has the wrong type.
        ValueError: If `shape` has fewer than two dimensions.

    Reference:
        Saxe, McClelland, Ganguli, "Exact solutions to the nonlinear dynamics of
        learning in deep linear neural networks", ICLR 2014.
    """
    checks.check("orthogonal", {"gain": gain}, ACCEPTED)
    shape = _check_shape("orthogonal", shape)
    if len(shape) < 2:
        raise ValueError(
            f"`shape` must have at least two dimensions. Received: shape={shape}"
        )
    u = uniform(key, (2, math.prod(shape)), dtype="float32")
    value = _orthogonal(ops.convert_to_numpy(u), shape, gain)
    return ops.convert_to_tensor(value, dtype=keras.config.floatx())


# --- Arithmetic -----------------------------------------------------------------


def _threefry(key, x0, x1):
    """Returns the two words of Threefry-2x32-20 for the counter words x0, x1.

    All arithmetic is int32 with wrap-around, as not every backend has uint32.
    """
    key0, key1 = key[0], key[1]
    schedule = (key0, key1, ops.bitwise_xor(ops.bitwise_xor(key0, key1), PARITY))
    x0, x1 = x0 + key0, x1 + key1
    for i in range(20):
        x0 = x0 + x1
        x1 = ops.bitwise_xor(_rotate_left(x1, ROTATIONS[i % 8]), x0)
        if i % 4 == 3:  # mix in the key after every fourth round
            n = i // 4 + 1
            x0 = x0 + schedule[n % 3]
            x1 = x1 + (schedule[(n + 1) % 3] + n)
    return x0, x1


def _rotate_left(x, n):
    return ops.bitwise_or(ops.left_shift(x, n), _logical_shift_right(x, 32 - n))


def _logical_shift_right(x, n):
    # int32 shifts in the sign from the left; the mask removes it.
    return ops.bitwise_and(ops.right_shift(x, n), (1 << (32 - n)) - 1)


def _unit(words, dtype="float32"):
    """Converts random words to multiples of 2**-mantissa in [0, 1)."""
    mantissa = MANTISSA_BITS[dtype]
    return ops.cast(_logical_shift_right(words, 32 - mantissa), dtype) * 2.0**-mantissa


def _gaussian(words, mass):
    """sqrt(2) * erfinv(mass * u), u uniform in (-1, 1), float32."""
    # Odd multiples of 2**-24: exact in float32, whether multiply and add are fused or
    # not. Near 1, the last bit of u changes the second decimal of the result.
    u = _unit(words) * 2.0 + (2.0**-24 - 1.0)
    x = u * mass
    # (1 - x) (1 + x) and not 1 - x^2, which loses precision near 1.
    w = -ops.log((1.0 - x) * (1.0 + x))
    central = _polynomial(ERFINV_CENTRAL, w - 2.5)
    tail = _polynomial(ERFINV_TAIL, ops.sqrt(ops.maximum(w, 5.0)) - 3.0)
    z = ops.where(w < 5.0, central, tail) * x * math.sqrt(2.0)
    # A truncated normal ends at 2, which rounding might exceed.
    return z if mass == 1.0 else ops.clip(z, -2.0, 2.0)


def _polynomial(coefficients, x):
    value = coefficients[0]
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


def _orthogonal(u, shape, gain):
    """Converts uniform draws u (2, size) to an orthogonal matrix, in float64."""
    rows, columns = math.prod(shape[:-1]), shape[-1]
    # Box-Muller in float64, as QR magnifies differences between backends.
    u = u.astype("float64").reshape(2, max(rows, columns), min(rows, columns))
    radius = np.sqrt(-2.0 * np.log1p(-u[0]))
    q, r = np.linalg.qr(radius * np.cos(2.0 * np.pi * u[1]))
    q = q * np.where(np.diag(r) < 0.0, -1.0, 1.0)
    return gain * (q if rows >= columns else q.T).reshape(shape)


# --- Checks ---------------------------------------------------------------------


def _seed_words(seed):
    """Returns the two words of the key of `seed`, as Python integers of 32 bits."""
    return 0, int(seed) - 2**32 if seed >= 2**31 else int(seed)


def _take(key):
    """Returns the key of a draw: `key` itself, or a new one from a generator."""
    if isinstance(key, Generator):
        return key.next()
    checks.check("", {"key": key}, {"key": KEY})
    key = ops.convert_to_tensor(key)
    if keras.backend.standardize_dtype(key.dtype) != "int32":
        raise TypeError(f"`key` must be {KEY.accepted}, received dtype {key.dtype}.")
    return key


def _check_shape(where, shape):
    with contextlib.suppress(TypeError):  # `check` below raises the error
        shape = tuple(map(operator.index, shape))  # TensorFlow has its own shape type
    checks.check(where, {"shape": shape}, ACCEPTED)
    if math.prod(shape) >= 2**31:
        raise ValueError(
            f"{where}: `shape` must have fewer than 2**31 elements, received {shape}."
        )
    return shape


def _as_numbers(value):
    """Converts lists to tensors; other values support arithmetic already."""
    is_list = isinstance(value, list | tuple)
    return ops.convert_to_tensor(value, "float32") if is_list else value


def _check_draw(where, arguments):
    """Returns the dtype of a draw, after a check of its arguments."""
    shape = _check_shape(where, arguments["shape"])
    checks.check(where, {**arguments, "shape": shape}, ACCEPTED)
    for name in {"minval", "maxval", "mean", "stddev", "p"}.intersection(arguments):
        given = getattr(arguments[name], "shape", ())
        if checks.has_values(arguments[name]):
            given = np.shape(arguments[name])
        padded = (1,) * (len(shape) - len(given)) + tuple(given)
        if len(padded) != len(shape) or any(
            size not in (1, expected)
            for size, expected in zip(padded, shape, strict=True)
        ):
            raise ValueError(
                f"{where}: `{name}` must broadcast to `shape`, {shape}, received the "
                f"shape {tuple(given)}."
            )
    dtype = arguments["dtype"]
    dtype = keras.backend.standardize_dtype(dtype or keras.config.floatx())
    checks.check(where, {"dtype": dtype}, {"dtype": checks.one_of(*MANTISSA_BITS)})
    return dtype
