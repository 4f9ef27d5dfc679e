"""A training loop written once, compiled on TensorFlow, JAX and PyTorch.

The core consists of five functions:

- `compiled(fn)`: `fn` as one compiled program;
- `minimize(loss_fn, variables, optimizer)`: one gradient step inside it (and its two
  halves, `loss_gradients` and `apply_gradients`);
- `gradient(fn, inputs)`: the gradient of a scalar function of arrays;
- `scan(fn, init, xs)`: a loop that is compiled once, however long it runs;
- `vectorize(fn, variables)`: several runs of a function at once, each with its own
  variables.

The code between them is ordinary stateful Keras: it calls models, assigns variables,
updates metrics, draws from seed generators. This file has the public functions and
their checks. `kit/engines/` has the implementations, and is the only place that asks
which backend runs.

How it works: TensorFlow compiles functions with state itself (`tf.function`). JAX and
PyTorch compile only pure functions. There, `fn` runs once under a
`keras.StatelessScope` that supplies the variables' values and records assignments. This
turns it into a pure function `(values, arguments) -> (results, new values)`, which
`jax.jit` compiles, or `make_fx` records as a flat graph of ATen calls. Variables are
discovered automatically: the scope sees each one that is read or written.
"""

import contextlib
import functools
import random as python_random
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import keras
import ml_dtypes  # Keras depends on it
import numpy as np
import optree
from keras import ops

from kit import checks
from kit.engines.base import Nested, Tensor, flatten
from kit.engines.changed_layers import watch_layers
from kit.engines.replacements import installed
from kit.engines.running import get_engine, prepare
from kit.engines.scope import context, tracing

__all__ = [
    "Tensor",
    "apply_gradients",
    "compile_seconds",
    "compiled",
    "gradient",
    "loss_gradients",
    "minimize",
    "run_eagerly",
    "scan",
    "set_random_seed",
    "vectorize",
]

_NOT_GIVEN: Any = object()
ACCEPTED = {
    "fn": checks.FUNCTION,
    "eager": checks.BOOL,
    "inductor": checks.BOOL,
    "variables": checks.instance(list, tuple, what="a list of keras.Variable"),
    "gradients": checks.sequence(checks.ARRAY),
    "optimizer": checks.instance(keras.optimizers.Optimizer, what="a Keras optimizer"),
    "length": checks.SIZE | None,
    "reverse": checks.BOOL,
    "seed": checks.SEED,
    "layers": checks.instance(Iterable, what="layers, in a list"),
    "names": checks.sequence(checks.TEXT),
}
_SETS = checks.sequence(
    checks.sequence(checks.instance(keras.Variable)),
    least=1,
)
_clock_lock = threading.Lock()
_settings = {"eager": False, "compile_seconds": 0.0, "compiling": 0, "since": 0.0}


# --- The public functions ---------------------------------------------------


def compiled(
    fn: Callable | None = None, *, eager: bool = False, inductor: bool = False
) -> Callable:
    """Returns `fn` as one compiled program; usable as a decorator.

    The program is `tf.function(jit_compile=True)`, `jax.jit` or a flat PyTorch graph.
    Variables are discovered automatically, and updated when the call returns. Each new
    combination of the arguments' structure, shapes and dtypes is compiled once.

    Arguments and results are nested structures of arrays. Python and NumPy numbers are
    data: a new number doesn't recompile, and 64-bit ones become 32-bit (floats:
    `keras.config.floatx()`), as on JAX. Booleans, strings and `None` are part of the
    program: `training=True` and `training=False` are two programs. A number that `fn`
    takes from elsewhere (a closure, `self`) is frozen at the first call: pass it as an
    argument, or keep it in a `keras.Variable`. If a layer changes other than by its
    variables' values (`quantize`, `enable_lora`, another `dtype_policy`), the function
    is compiled again.

    Args:
        fn: The function, or a method of a class. Layers, models and metrics that it
            uses must be built. Optimizers are built automatically.
        eager: If `True`, `fn` runs line by line, for debuggers and prints.
            `run_eagerly` does the same for all compiled functions at once.
        inductor: PyTorch only: compile the graph further with TorchInductor. About 1.5
            times faster, after 10 to 30 s of compilation: for long runs.

    Returns:
        A callable with the signature of `fn`. The results are the backend's own
        tensors.

    Raises:
        TypeError: If `fn` is not callable, or an argument of the compiled function is
            neither an array nor hashable.
        ValueError: If a layer that isn't built is used. After an exception inside `fn`,
            all variables have their old values.

    Example:

    ```python
    counter = keras.Variable(0.0)

    @kit.compiled
    def count(x):
        counter.assign_add(keras.ops.sum(x))
        return counter.value

    count(np.ones(3))  # 3.0
    ```
    """
    if fn is None:
        return functools.partial(compiled, eager=eager, inductor=inductor)
    checks.check("compiled", locals(), ACCEPTED)
    return _Compiled(fn, eager, inductor)


def minimize(
    loss_fn: Callable[[], Any],
    variables: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
) -> Any:
    """Makes one gradient step on a scalar loss.

    Call it inside a `compiled` function (or outside of one, to debug). Other state that
    `loss_fn` changes (BatchNormalization's statistics, seeds, metrics) is also updated,
    once.

    Args:
        loss_fn: Function of no arguments that returns the scalar loss, or
            `(loss, aux)`, where `aux` is any nested structure of arrays.
        variables: The `keras.Variable`s to change, such as
            `model.trainable_variables`.
        optimizer: A Keras optimizer; its clipping, schedules, weight decay and loss
            scaling apply. If it isn't built yet, it is built for `variables`. To use it
            with parts of a larger list, build it yourself for the whole list.

    Returns:
        The loss before the step, or `(loss, aux)` if `loss_fn` returns a pair.

    Raises:
        TypeError: If `optimizer` is no Keras optimizer, or `variables` contains
            anything but Keras variables.
        ValueError: If the loss isn't a scalar or doesn't depend on a variable,
            `minimize` is called inside a `loss_fn`, or the optimizer would never change
            a variable, as Adam's defaults would not with dtype bfloat16.

    Example:

    ```python
    @kit.compiled
    def train_step(x, y):
        def loss_fn():
            return keras.ops.mean((model(x, training=True) - y) ** 2)
        return kit.minimize(loss_fn, model.trainable_variables, optimizer)
    ```
    """
    checks.check("minimize", locals(), ACCEPTED)
    variables = list(variables)
    _check_minimize("minimize", variables, optimizer, loss_fn)
    _build_optimizer(optimizer, variables)
    result, grads = _loss_gradients("minimize", loss_fn, variables, optimizer)
    get_engine().apply_gradients(optimizer, grads, variables)
    return result


def loss_gradients(
    loss_fn: Callable[[], Any], variables: Sequence[keras.Variable]
) -> tuple[Any, list]:
    """Returns a loss and its gradients: the first half of `minimize`.

    Use it to apply gradients elsewhere, with `apply_gradients`: to other weights, or in
    another process.

    Args:
        loss_fn: As in `minimize`.
        variables: As in `minimize`.

    Returns:
        The result of `minimize`, and a list of gradients, one for each variable.

    Raises:
        TypeError, ValueError: As `minimize`.
    """
    checks.check("loss_gradients", locals(), ACCEPTED)
    variables = list(variables)
    _check_minimize("loss_gradients", variables, loss_fn=loss_fn)
    return _loss_gradients("loss_gradients", loss_fn, variables)


def apply_gradients(
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
) -> None:
    """Makes one gradient step with given gradients: the second half of `minimize`.

    Args:
        gradients: An array for each variable.
        variables: As in `minimize`.
        optimizer: As in `minimize`; loss scaling doesn't apply.

    Raises:
        TypeError: As `minimize`.
        ValueError: If gradients and variables don't match in number and shapes.
    """
    checks.check("apply_gradients", locals(), ACCEPTED)
    variables = list(variables)
    _check_minimize("apply_gradients", variables, optimizer)
    gradients = [get_engine().tensor(_canonical(gradient)) for gradient in gradients]
    shapes = [tuple(x.shape) for x in gradients]
    expected = [tuple(variable.shape) for variable in variables]
    if shapes != expected:
        raise ValueError(
            "apply_gradients: `gradients` must have the variables' shapes "
            f"{expected}, received {shapes}."
        )
    _build_optimizer(optimizer, variables)
    get_engine().apply_gradients(optimizer, gradients, variables)


def gradient(fn: Callable[[Nested], Any], inputs: Nested) -> Nested:
    """Returns the gradient of a scalar function with respect to its input.

    It works alone, inside a `compiled` function, and inside the `loss_fn` of
    `minimize`, which then differentiates through it (gradient penalties).

    Args:
        fn: Function of one argument, a structure like `inputs`, that returns a
            scalar. Sum over a batch to get the gradient of each example.
        inputs: Nested structure of floating-point arrays.

    Returns:
        A structure like `inputs`: d fn / d inputs. Zero where `fn` doesn't
        depend on an input.

    Raises:
        TypeError: If an input isn't floating-point.
        ValueError: If `fn` doesn't return a scalar.

    Example:

    ```python
    kit.gradient(lambda x: keras.ops.sum(x**2), np.array([1.0, 2.0]))  # [2, 4]
    ```
    """
    checks.check("gradient", locals(), ACCEPTED)
    leaves, spec = flatten(inputs)
    for leaf in leaves:
        checks.check("gradient", {"inputs": leaf}, {"inputs": checks.ARRAY})
    leaves = [get_engine().tensor(_canonical(leaf)) for leaf in leaves]
    for leaf in leaves:
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise TypeError(
                "gradient: `inputs` must hold floating-point arrays, received one "
                f"of dtype {dtype}."
            )
    grads = get_engine().gradient(
        lambda values: _scalar(fn(spec.unflatten(values)), "gradient: `fn`"), leaves
    )
    return spec.unflatten(grads)


def scan(
    fn: Callable[[Nested, Nested], tuple[Nested, Nested]],
    init: Nested,
    xs: Nested = None,
    length: int | None = None,
    reverse: bool = False,
) -> tuple[Nested, Nested]:
    """Runs `carry, y = fn(carry, x)` over the leading axis of `xs`.

    Inside a `compiled` function, the body is compiled once, however long the loop is.
    The body may use and change variables, and call `minimize`, `gradient` and `scan`.
    Inside a function that is differentiated, PyTorch unrolls the loop.

    Args:
        fn: The body. Takes the carry and a slice of `xs` (`None` without
            `xs`); returns the next carry, with the same structure, shapes and
            dtypes, and an output of any structure (or `None`).
        init: The first carry, a nested structure of arrays.
        xs: Nested structure of arrays with an equal leading axis, or `None`.
        length: Number of iterations; needed if `xs` is `None`.
        reverse: If `True`, runs from the last slice to the first; each output has the
            index of its slice.

    Returns:
        The last carry, and the outputs stacked along a new leading axis.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the leading axes or `length` don't agree, or the body returns a
            carry with another structure, shape or dtype.

    Example:

    ```python
    rewards = np.array([1.0, 1.0, 1.0], "float32")
    step = lambda value, reward: (reward + 0.5 * value, reward + 0.5 * value)
    kit.scan(step, 0.0, rewards, reverse=True)  # 1.75, [1.75, 1.5, 1.0]
    ```
    """
    checks.check("scan", locals(), ACCEPTED)
    carry, carry_spec = optree.tree_flatten(init, namespace="keras")
    for leaf in carry:
        checks.check("scan", {"init": leaf}, {"init": checks.ARRAY})
    for leaf in flatten(xs)[0] if xs is not None else ():
        checks.check("scan", {"xs": leaf}, {"xs": checks.ARRAY})
    carry = [get_engine().tensor(_canonical(leaf)) for leaf in carry]
    slices, xs_spec = flatten(xs)
    if xs is None:
        slices, xs_spec = [], None
    slices = [get_engine().tensor(_canonical(leaf)) for leaf in slices]
    length = _scan_length(slices, length)
    y_spec: list[Any] = [None]  # set by the body, during its trace

    def body(carry_leaves, x_leaves):
        x = None if xs_spec is None else xs_spec.unflatten(x_leaves)
        result = fn(carry_spec.unflatten(carry_leaves), x)
        if not isinstance(result, tuple) or len(result) != 2:
            raise ValueError(
                "scan: `fn` must return a pair (carry, y), received "
                f"{type(result).__name__}."
            )
        new_leaves = _check_carry(carry_spec, carry_leaves, result[0])
        ys, y_spec[0] = _flatten_results(result[1])
        return new_leaves, ys

    carry, ys = get_engine().scan(body, carry, slices, length, reverse)
    return carry_spec.unflatten(carry), y_spec[0](ys)


def vectorize(fn: Callable, variables: Sequence[Sequence[keras.Variable]]) -> Callable:
    """Returns a function that runs `fn` for several sets of variables at once.

    Write `fn` for one run, such as the training step of a model, using the variables of
    the first set. In run r, the variables in `variables[r]` replace them, one by one,
    for reads and assignments. Other variables are shared, and must not be assigned.

    Call it inside a `compiled` function. There, JAX computes all runs in parallel
    (`jax.vmap`): with small networks, this is hardly slower than one run. TensorFlow
    and PyTorch compute one run after the other, in one program.

    Args:
        fn: Function of arrays, in any structures. It may call `minimize`, `gradient`
            and `scan`.
        variables: R sets of variables, one for each run, with the same shapes and
            dtypes in the same order; no variable twice.

    Returns:
        A function like `fn` whose arguments and results have a leading axis R.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the sets differ in length, shapes or dtypes or share a variable;
            if an argument of the function has no leading axis R; on JAX and PyTorch, if
            `fn` assigns a variable that isn't in the first set.

    Example:

    ```python
    counters = [keras.Variable(0.0), keras.Variable(10.0)]

    @kit.compiled
    def count(steps):
        return kit.vectorize(counters[0].assign_add, [[c] for c in counters])(steps)

    count(np.array([1.0, 2.0]))  # [1.0, 12.0]
    ```
    """
    checks.check("vectorize", locals(), ACCEPTED | {"variables": _SETS})
    _check_sets(variables)
    num_runs, first = len(variables), variables[0]

    @functools.wraps(fn)
    def run(*args):
        leaves, spec = flatten(args)
        leaves = [_canonical(leaf) for leaf in leaves]
        is_array = [hasattr(leaf, "shape") for leaf in leaves]
        arrays = [get_engine().tensor(x) for x in leaves if hasattr(x, "shape")]
        for x in arrays:
            if tuple(x.shape)[:1] != (num_runs,):
                raise ValueError(
                    f"vectorize: arguments need a leading axis of {num_runs}, one "
                    f"slice a run, received shape {tuple(x.shape)}."
                )
        unflatten: Any = None

        def one_run(arrays):
            nonlocal unflatten
            slices = iter(arrays)
            args = spec.unflatten(
                next(slices) if array else leaf
                for array, leaf in zip(is_array, leaves, strict=True)
            )
            results, unflatten = _flatten_results(fn(*args))
            return results

        values = [ops.stack([v.value for v in x]) for x in zip(*variables, strict=True)]
        values, results = get_engine().vectorize(
            one_run, first, values, arrays, num_runs
        )
        rows = [ops.unstack(x, num_runs) for x in values]
        for r, own in enumerate(variables):
            for variable, row in zip(own, rows, strict=True):
                variable.assign(row[r])
        return unflatten(results)

    return run


def run_eagerly(eager: bool = True) -> None:
    """Turns eager execution of all compiled functions on or off.

    Use it for debuggers, prints, and to find the line that raises an error. Assignments
    before an exception are kept.

    Args:
        eager: `True` to run line by line, `False` to compile again.
    """
    checks.check("run_eagerly", locals(), ACCEPTED)
    _settings["eager"] = bool(eager)


def set_random_seed(seed: int) -> None:
    """Seeds the random numbers of Python, NumPy, Keras and the running backend.

    Later draws are the same as after `keras.utils.set_random_seed`. But that function
    also imports TensorFlow if it is installed, which needlessly costs about 500 MB of
    memory and two to three seconds under another backend.

    Args:
        seed: Integer, 0 <= seed < 2**32.

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If `seed` is out of range.
    """
    checks.check("set_random_seed", locals(), ACCEPTED)
    seed = int(seed)
    python_random.seed(seed)
    np.random.seed(seed)
    state = keras.src.backend.common.global_state
    state.set_global_attribute(keras.src.utils.rng_utils.GLOBAL_RANDOM_SEED, seed)
    # Keras creates a new global generator from the seed at the next draw.
    generator = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    state.set_global_attribute(generator, None)
    get_engine().set_random_seed(seed)


def import_no_other_framework() -> None:
    """Keeps Keras from importing another framework only to look for its objects.

    When Keras saves or copies a model, it imports TensorFlow under every backend, to
    check whether a setting has one of TensorFlow's types. After this call, it does so
    only if TensorFlow is already imported: otherwise no such object can exist.
    """
    get_engine().import_no_other_framework()


def compile_seconds() -> float:
    """Returns the seconds that this process has spent on compilation so far.

    That is the time of each program's trace and first call. Time in which several
    threads compile counts once.
    """
    return _settings["compile_seconds"]


def is_tracing() -> bool:
    """Returns whether a compiled function is being traced: arrays have no values."""
    return context.tracing


def why_not_compiled(optimizer: keras.optimizers.Optimizer) -> str | None:
    """Returns why `minimize` can't use an optimizer in a compiled function.

    Args:
        optimizer: A Keras optimizer. On PyTorch, some make decisions or compute outside
            of the framework, and can only run eagerly.

    Returns:
        A sentence with the remedy; `None` if it can be used, or if `run_eagerly` turned
        compilation off.
    """
    checks.check("why_not_compiled", locals(), ACCEPTED)
    if _settings["eager"]:
        return None
    try:
        with tracing():
            get_engine().check_optimizer(optimizer)
    except ValueError as error:
        return str(error).removeprefix("minimize: ")
    return None


def run_well_in_loops(layers: Iterable[keras.layers.Layer]) -> bool:
    """Returns whether training steps with these layers are faster in one `scan`.

    Convolutions on CPUs aren't: each step is long enough for its own program.

    Args:
        layers: Keras layers.
    """
    checks.check("run_well_in_loops", locals(), ACCEPTED)
    slow = get_engine().slow_in_loops
    return not any(isinstance(layer, slow) for layer in layers)


def release_programs(owner: Any, *names: str) -> None:
    """Deletes the programs of an object's compiled methods, and frees their memory.

    Call it when a program's optimizer or loss is replaced. The next call of the method
    compiles it again.

    Args:
        owner: The object.
        *names: Names of methods, or of attributes that hold compiled functions.
    """
    checks.check("release_programs", {"names": names}, ACCEPTED)
    found = [owner.__dict__.pop(name, None) for name in names]
    if any([program.release() for program in found if program is not None]):
        get_engine().release()


class NoGradient(ValueError):
    """Raised by `minimize` if the loss doesn't depend on some variables.

    Attributes:
        paths: The paths of the variables, a list of strings.
    """

    def __init__(self, variables: Sequence[keras.Variable]):
        self.paths = [variable.path for variable in variables]
        super().__init__(
            "minimize: the loss doesn't depend on these variables, so they get no "
            f"gradient: {self.paths}. Leave them out of `variables`, or check that "
            "`loss_fn` calls the layers that hold them and stops no gradient."
        )


# --- Compiled functions: arguments, signatures, programs --------------------


class _BuildOptimizer(Exception):
    """Raised in a trace, so that the optimizer is built outside of it."""

    def __init__(self, optimizer, variables):
        super().__init__(optimizer, variables)
        self.optimizer = optimizer
        self.variables = variables


class _Compiled:
    """A function and its compiled programs, one for each signature."""

    def __init__(self, fn, eager, inductor):
        functools.update_wrapper(self, fn)
        self._fn = fn
        self._eager = eager
        self._inductor = inductor
        self._programs: dict[Any, Callable] = {}
        # The same programs, by shapes and dtypes, for arguments that are plain arrays:
        # without flattening structures, the look-up is some 10 us faster.
        self._shortcuts: dict[Any, Callable] = {}

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, instance, owner=None):
        """Binds a method: each object has its own programs."""
        if instance is None:
            return self
        bound = _Compiled(self._fn.__get__(instance), self._eager, self._inductor)
        # The next look-up finds it in the object, with which it is deleted. Not with
        # setattr: Keras would track it.
        instance.__dict__[getattr(self, "_name", self._fn.__name__)] = bound
        return bound

    def __deepcopy__(self, memo):
        return self  # programs belong to variables, which the copy doesn't share

    def release(self):
        """Deletes the programs, so that the next call of each signature compiles again.

        Returns whether there were any. Programs and this object refer to each other, so
        only Python's garbage collector would free them, maybe after dozens of programs.
        """
        released = bool(self._programs)
        self._programs.clear()
        self._shortcuts.clear()
        return released

    def __call__(self, *args, **kwargs):
        if not (kwargs or self._eager or _settings["eager"] or context.tracing):
            try:
                shortcut = self._shortcuts[tuple([(x.dtype, x.shape) for x in args])]
            except (AttributeError, KeyError, TypeError):
                pass  # not plain arrays, or not seen before
            else:
                return shortcut(args)
        leaves, spec = flatten((args, kwargs) if kwargs else args)
        if context.tracing or self._eager or _settings["eager"]:
            leaves = [_canonical(leaf) for leaf in leaves]
            leaves = [
                get_engine().tensor(x) if hasattr(x, "shape") else x for x in leaves
            ]
            structure = spec.unflatten(leaves)
            args, kwargs = structure if kwargs else (structure, {})
            arrays, unflatten = _flatten_results(self._fn(*args, **kwargs))
            return unflatten(arrays)
        signature: list[Any] = [spec]
        arrays = []
        for leaf in leaves:
            leaf = _canonical(leaf)
            if hasattr(leaf, "shape"):
                arrays.append(leaf)
                dtype = leaf.dtype
                name = _dtype_names.get(dtype) or _name_dtype(dtype)
                signature.append((name, tuple(leaf.shape)))
            else:
                signature.append(leaf)
        try:
            program = self._programs.get(tuple(signature))
        except TypeError:
            raise TypeError(
                f"{self._fn.__name__}: compiled functions take arrays, numbers and "
                "hashable objects; received "
                f"{[type(x).__name__ for x in signature[1:] if not _hashable(x)]}."
            ) from None
        if program is None:
            return self._first_call(tuple(signature), arrays, bool(kwargs))
        plain = [x is y for x, y in zip(args, arrays, strict=False)]
        if not kwargs and len(args) == len(arrays) == sum(plain):
            self._shortcuts[tuple([(x.dtype, x.shape) for x in args])] = program
        return program(arrays)

    def _first_call(self, signature, arrays, has_kwargs):
        spec, entries = signature[0], signature[1:]
        is_array = [isinstance(e, tuple) and len(e) == 2 for e in entries]

        def fn(values):
            values = iter(values)
            leaves = [
                next(values) if array else entry
                for array, entry in zip(is_array, entries, strict=True)
            ]
            structure = spec.unflatten(leaves)
            args, kwargs = structure if has_kwargs else (structure, {})
            return _flatten_results(self._fn(*args, **kwargs))

        with _timing():
            while True:
                try:
                    program = self._trace(fn, arrays)
                    break
                except _BuildOptimizer as request:
                    request.optimizer.build(request.variables)
            results = program(arrays)
        self._programs[signature] = program
        return results

    def _trace(self, fn, arrays):
        engine = get_engine()
        watch_layers()
        with tracing(), installed(engine.replacements):
            context.compiled = self
            try:
                return engine.trace(fn, arrays, self._inductor)
            finally:
                context.compiled = None


@contextlib.contextmanager
def _timing():
    """Counts the seconds in which at least one thread compiles."""
    with _clock_lock:
        _settings["compiling"] += 1
        if _settings["compiling"] == 1:
            _settings["since"] = time.perf_counter()
    try:
        yield
    finally:
        with _clock_lock:
            _settings["compiling"] -= 1
            if _settings["compiling"] == 0:
                seconds = time.perf_counter() - _settings["since"]
                _settings["compile_seconds"] += seconds


def _flatten_results(structure):
    """Returns the arrays of `structure`, and a function that restores the structure.

    `None`, strings and the like stay in the structure.
    """
    leaves, spec = flatten(structure)
    leaves = [_canonical(leaf) for leaf in leaves]
    is_array = [hasattr(leaf, "shape") for leaf in leaves]
    arrays = [
        get_engine().tensor(leaf)
        for leaf, array in zip(leaves, is_array, strict=True)
        if array
    ]
    if all(is_array):
        return arrays, spec.unflatten

    def unflatten(values):
        values = iter(values)
        return spec.unflatten(
            next(values) if array else leaf
            for leaf, array in zip(leaves, is_array, strict=True)
        )

    return arrays, unflatten


_dtype_names: dict[Any, str] = {}  # NumPy's and each framework's -> Keras' name


def _name_dtype(dtype):
    name = _dtype_names[dtype] = keras.backend.standardize_dtype(dtype)
    return name


_NARROW = {"float64": None, "int64": "int32", "uint64": "uint32"}


def _canonical(leaf):
    """Converts numbers to NumPy scalars, 64 bits to 32, variables to their values."""
    kind = type(leaf)
    if kind is int:
        return np.int32(leaf) if -(2**31) <= leaf < 2**31 else np.uint32(leaf)
    if kind is float:
        return np.dtype(keras.config.floatx()).type(leaf)
    if isinstance(leaf, np.ndarray | np.generic):
        name = leaf.dtype.name
        if name in _NARROW:
            return leaf.astype(_NARROW[name] or keras.config.floatx())
        if leaf.dtype.kind in "OSUM":
            raise TypeError(f"An array of dtype {name} can't be used as a tensor.")
        return leaf
    if isinstance(leaf, keras.Variable):
        return leaf.value
    return leaf


def _hashable(value):
    try:
        hash(value)
    except TypeError:
        return False
    return True


def _scalar(value, what):
    value = ops.convert_to_tensor(value)
    if tuple(value.shape) != ():
        raise ValueError(
            f"{what} must return a scalar, received shape {tuple(value.shape)}. "
            "Reduce it, as with `keras.ops.mean` or `keras.ops.sum`."
        )
    dtype = keras.backend.standardize_dtype(value.dtype)
    if not keras.backend.is_float_dtype(dtype):
        raise ValueError(f"{what} must return a float, received dtype {dtype}.")
    return value


def _check_minimize(caller, variables, optimizer=_NOT_GIVEN, loss_fn=_NOT_GIVEN):
    if loss_fn is not _NOT_GIVEN and not callable(loss_fn):
        raise TypeError(
            f"{caller}: `loss_fn` must be a function without arguments that returns "
            f"the loss, received {type(loss_fn).__name__}: wrap what computes the "
            "loss in a function."
        )
    if not variables:
        raise ValueError(f"{caller}: `variables` is empty: is the model built?")
    for variable in variables:
        if not isinstance(variable, keras.Variable):
            raise TypeError(
                f"{caller}: `variables` must hold keras.Variable objects, as in "
                f"`model.trainable_variables`; received {type(variable).__name__}."
            )
    if context.depth:
        raise ValueError(
            f"{caller}: called inside a function that is being differentiated; "
            "move it out of `loss_fn` (or out of the function given to `gradient`)."
        )
    if optimizer is not _NOT_GIVEN:
        get_engine().check_optimizer(optimizer)
        _check_rates(caller, optimizer, variables)


def _check_rates(caller, optimizer, variables):
    """Raises an error if one of Adam's rates rounds to 1 in the variables' dtype.

    Keras computes the correction 1 - beta^t in that dtype. If it is 0, all steps are 0
    or NaN.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    if isinstance(optimizer, keras.optimizers.Adamax):  # corrects no second moment
        return
    for name in ("beta_1", "beta_2", "adam_beta_1", "adam_beta_2"):
        rate: Any = getattr(optimizer, name, None)
        for dtype in {variable.dtype for variable in variables} if rate else ():
            if 0 < 1.0 - rate <= ml_dtypes.finfo(dtype).epsneg / 2:
                raise ValueError(
                    f"{caller}: {name}={rate} of {type(optimizer).__name__} is 1 in "
                    f"{dtype}, the dtype of the variables, which it would never "
                    f"change. Set {name}=0.99, or take an optimizer without it such as "
                    "RMSprop, or keep the variables in float32, as the dtype policy "
                    '"mixed_bfloat16" does.'
                )


def _build_optimizer(optimizer, variables):
    if not optimizer.built:
        if context.tracing:
            raise _BuildOptimizer(optimizer, variables)
        optimizer.build(variables)


def _loss_gradients(caller, loss_fn, variables, optimizer=None):
    """Returns the result of `loss_fn`, and gradients of the optimizer's scaled loss."""

    def scaled_loss_fn():
        result = loss_fn()
        has_aux = isinstance(result, tuple)
        if has_aux and len(result) != 2:
            raise ValueError(
                f"{caller}: `loss_fn` must return the loss or a pair (loss, aux), "
                f"received a tuple of length {len(result)}."
            )
        loss, aux = result if has_aux else (result, None)
        loss = _scalar(loss, f"{caller}: `loss_fn`")
        scaled = loss if optimizer is None else optimizer.scale_loss(loss)
        return scaled, (loss, aux, has_aux)

    (loss, aux, has_aux), grads = get_engine().value_and_grad(scaled_loss_fn, variables)
    without = [v for v, g in zip(variables, grads, strict=True) if g is None]
    if without:
        raise NoGradient(without)
    return ((loss, aux) if has_aux else loss), grads


def _check_sets(variables):
    kinds = [[(tuple(v.shape), v.dtype) for v in own] for own in variables]
    for r, kind in enumerate(kinds):
        if kind != kinds[0]:
            raise ValueError(
                "vectorize: the sets in `variables` must have the same shapes and "
                f"dtypes; the first has {kinds[0]}, number {r} has {kind}."
            )
    found: dict[int, int] = {}
    for r, own in enumerate(variables):
        for variable in own:
            if (before := found.setdefault(id(variable), r)) != r:
                raise ValueError(
                    f"vectorize: the variable {variable.path!r} is in the sets "
                    f"{before} and {r} of `variables`; each run needs its own."
                )


def _scan_length(slices, length):
    axes = {tuple(x.shape)[0] if len(x.shape) else None for x in slices}
    if None in axes or len(axes) > 1:
        raise ValueError(
            "scan: the arrays in `xs` need leading axes of equal length, received "
            f"shapes {[tuple(x.shape) for x in slices]}."
        )
    if length is None and not axes:
        raise ValueError("scan: `length` is needed when `xs` is None.")
    if axes and length is not None and axes != {length}:
        raise ValueError(f"scan: `length` is {length}, but `xs` has {axes.pop()}.")
    length = axes.pop() if length is None else int(length)
    if length < 1:
        raise ValueError(f"scan: at least one iteration is needed, received {length}.")
    return length


def _check_carry(spec, old_leaves, new_carry):
    new_leaves, new_spec = optree.tree_flatten(new_carry, namespace="keras")
    if new_spec != spec:
        raise ValueError(
            f"scan: `fn` returned a carry of structure {new_spec}, expected {spec}."
        )
    new_leaves = [get_engine().tensor(_canonical(leaf)) for leaf in new_leaves]
    for old, new in zip(old_leaves, new_leaves, strict=True):
        before = (tuple(old.shape), keras.backend.standardize_dtype(old.dtype))
        after = (tuple(new.shape), keras.backend.standardize_dtype(new.dtype))
        if before != after:
            raise ValueError(
                "scan: the carry must keep its shape and dtype, received "
                f"{after[0]} {after[1]} after {before[0]} {before[1]}."
            )
    return new_leaves


prepare()
