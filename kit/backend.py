"""A training loop written once, compiled on TensorFlow, JAX and PyTorch.

Four functions are the whole core:

- `compiled(fn)`: `fn` as one compiled program;
- `minimize(loss_fn, variables, optimizer)`: one gradient step inside it (and its two
  halves, `loss_gradients` and `apply_gradients`);
- `gradient(fn, inputs)`: the gradient of a scalar function of arrays;
- `scan(fn, init, xs)`: a loop that is compiled once, however long it runs.

The code between them is ordinary stateful Keras: it calls models, assigns
variables, updates metrics, draws from seed generators. This is the only file
of the project that asks which backend runs.

How it works. TensorFlow has compiled state of its own (`tf.function`). JAX and
PyTorch compile pure functions only, so there `fn` runs once under a
`keras.StatelessScope` that hands out the values of the variables and catches
what is assigned to them: that makes a pure function `(values, arguments) ->
(results, new values)` of it, which `jax.jit` compiles, or `make_fx` records as
a flat graph of ATen calls. Nobody lists the variables: the scope sees each one
that is read or written.
"""

import contextlib
import functools
import gc
import itertools
import operator
import random as python_random
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import optree
from keras import ops

from kit.engines import fast_ops, torch_calls
from kit.engines.allocator import keep_freed_memory

__all__ = [
    "apply_gradients",
    "compile_seconds",
    "compiled",
    "gradient",
    "loss_gradients",
    "minimize",
    "run_eagerly",
    "scan",
    "set_random_seed",
]

_NOT_GIVEN: Any = object()
Nested = Any  # any nesting of tuples, lists, dicts and named tuples of arrays


class _Context(threading.local):
    """What the running thread is in the middle of."""

    def __init__(self):
        self.tracing = False  # inside a compiled function that is being traced
        self.compiled: Any = None  # that function, while its first trace runs
        self.scope: Any = None  # the innermost `_Scope`, on JAX and PyTorch
        self.depth = 0  # of functions inside each other that are differentiated
        self.frame: Any = None  # the `scan` body that is being traced, on JAX
        self.for_xla = False  # whether what is traced will run there, on TensorFlow


_context = _Context()
# make_fx patches torch.nn.Module while it traces, and Keras keeps names in
# global dictionaries: one trace at a time. Compiled programs run in parallel.
_trace_lock = threading.RLock()
_clock_lock = threading.Lock()
_settings = {"eager": False, "compile_seconds": 0.0, "compiling": 0, "since": 0.0}


# --- The public functions ---------------------------------------------------


def compiled(
    fn: Callable | None = None, *, eager: bool = False, inductor: bool = False
) -> Callable:
    """Returns `fn` as one compiled program; usable as a decorator.

    The program is `tf.function(jit_compile=True)`, `jax.jit` or a flat PyTorch
    graph. Variables are found by themselves, whatever object holds them, and
    are updated when the call returns. Each new combination of the arguments'
    structure, shapes and dtypes is compiled once.

    Arguments and results are nested structures of arrays. Python and NumPy
    numbers are data: another number doesn't recompile, and 64-bit ones become
    32-bit (floats: `keras.config.floatx()`), as on JAX. Booleans, strings and
    `None` are part of the program: `training=True` and `training=False` are
    two. A number that `fn` takes from elsewhere (a closure, `self`) is frozen
    at the first call: pass it, or keep it in a `keras.Variable`. Layers that change
    otherwise than in their variables' values (`quantize`, `enable_lora`, another
    `dtype_policy`) are compiled again.

    Args:
        fn: The function, or a method of a class. Everything it uses has to be
            built: layers, models and metrics. Optimizers are built here.
        eager: If `True`, `fn` runs line by line, for a debugger or prints.
            `run_eagerly` does the same for all compiled functions at once.
        inductor: PyTorch only: compile the graph further with TorchInductor.
            About 1.5 times faster, after 10 to 30 s: for long runs.

    Returns:
        A callable with the signature of `fn`. The results hold the backend's
        own tensors.

    Raises:
        TypeError: If `fn` is not callable, or an argument of the compiled
            function is neither an array nor hashable.
        ValueError: If a layer that isn't built is used. An exception inside
            `fn` leaves every variable as it was.

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
    if not callable(fn):
        raise TypeError(
            f"compiled: `fn` must be callable, received {fn!r} "
            f"of type {type(fn).__name__}."
        )
    return _Compiled(fn, eager, inductor)


def minimize(
    loss_fn: Callable[[], Any],
    variables: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
) -> Any:
    """Makes one gradient step on a scalar loss.

    To be called inside a `compiled` function (or outside of one, to debug).
    Other state that `loss_fn` changes (BatchNormalization's statistics, seeds,
    metrics) is updated as well, once.

    Args:
        loss_fn: Function of no arguments that returns the scalar loss, or
            `(loss, aux)`, where `aux` is any nested structure of arrays.
        variables: The `keras.Variable`s to change, such as
            `model.trainable_variables`.
        optimizer: A Keras optimizer; its clipping, schedules, weight decay and
            loss scaling apply. It is built on `variables` when it isn't yet:
            build it yourself on the larger list to call it on parts of it.

    Returns:
        The loss before the step, or `(loss, aux)` if `loss_fn` returns a pair.

    Raises:
        TypeError: If `optimizer` is no Keras optimizer, or `variables` holds
            something else than Keras variables.
        ValueError: If the loss isn't a scalar, a variable has no part in it,
            or `minimize` is called inside a `loss_fn`.

    Example:

    ```python
    @kit.compiled
    def train_step(x, y):
        def loss_fn():
            return keras.ops.mean((model(x, training=True) - y) ** 2)
        return kit.minimize(loss_fn, model.trainable_variables, optimizer)
    ```
    """
    variables = list(variables)
    _check_minimize("minimize", variables, optimizer, loss_fn)
    _build_optimizer(optimizer, variables)
    result, grads = _loss_gradients("minimize", loss_fn, variables, optimizer)
    _engine.apply_gradients(optimizer, grads, variables)
    return result


def loss_gradients(
    loss_fn: Callable[[], Any], variables: Sequence[keras.Variable]
) -> tuple[Any, list]:
    """Returns a loss and its gradients with respect to variables: half a `minimize`.

    For gradients that are applied elsewhere than where they are computed, by
    `apply_gradients`: on other weights, or in another process.

    Args:
        loss_fn: As in `minimize`.
        variables: As in `minimize`.

    Returns:
        What `minimize` returns, and a list with an array for each variable.

    Raises:
        TypeError, ValueError: As `minimize`.
    """
    variables = list(variables)
    _check_minimize("loss_gradients", variables, loss_fn=loss_fn)
    return _loss_gradients("loss_gradients", loss_fn, variables)


def apply_gradients(
    gradients: Sequence[Any],
    variables: Sequence[keras.Variable],
    optimizer: keras.optimizers.Optimizer,
) -> None:
    """Makes one gradient step by gradients that are given: the rest of `minimize`.

    Args:
        gradients: An array for each variable.
        variables: As in `minimize`.
        optimizer: As in `minimize`; loss scaling doesn't apply.

    Raises:
        TypeError: As `minimize`.
        ValueError: If gradients and variables don't match in number and shapes.
    """
    variables = list(variables)
    _check_minimize("apply_gradients", variables, optimizer)
    gradients = [_engine.tensor(_canonical(gradient)) for gradient in gradients]
    shapes = [tuple(x.shape) for x in gradients]
    expected = [tuple(variable.shape) for variable in variables]
    if shapes != expected:
        raise ValueError(
            "apply_gradients: `gradients` must have the variables' shapes "
            f"{expected}, received {shapes}."
        )
    _build_optimizer(optimizer, variables)
    _engine.apply_gradients(optimizer, gradients, variables)


def gradient(fn: Callable[[Nested], Any], inputs: Nested) -> Nested:
    """Returns the gradient of a scalar function with respect to its input.

    Works alone, inside a `compiled` function, and inside the `loss_fn` of
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
    leaves, spec = _flatten(inputs)
    leaves = [_engine.tensor(_canonical(leaf)) for leaf in leaves]
    for leaf in leaves:
        dtype = keras.backend.standardize_dtype(leaf.dtype)
        if not keras.backend.is_float_dtype(dtype):
            raise TypeError(
                "gradient: `inputs` must hold floating-point arrays, received one "
                f"of dtype {dtype}."
            )
    grads = _engine.gradient(
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

    Inside a `compiled` function the body is compiled once, however long the
    loop. It may use and change variables, call `minimize`, `gradient` and
    `scan`. Inside a function that is differentiated, PyTorch unrolls it.

    Args:
        fn: The body. Takes the carry and a slice of `xs` (`None` without
            `xs`); returns the next carry, with the same structure, shapes and
            dtypes, and an output of any structure (or `None`).
        init: The first carry, a nested structure of arrays.
        xs: Nested structure of arrays with an equal leading axis, or `None`.
        length: Number of turns; needed if `xs` is `None`.
        reverse: If `True`, runs from the last slice to the first; outputs
            stand where their slices stood.

    Returns:
        The last carry, and the outputs stacked along a new leading axis.

    Raises:
        ValueError: If the leading axes or `length` don't agree, or the body
            returns a carry of another structure, shape or dtype.

    Example:

    ```python
    rewards = np.array([1.0, 1.0, 1.0], "float32")
    step = lambda value, reward: (reward + 0.5 * value, reward + 0.5 * value)
    kit.scan(step, 0.0, rewards, reverse=True)  # 1.75, [1.75, 1.5, 1.0]
    ```
    """
    carry, carry_spec = optree.tree_flatten(init, namespace="keras")
    carry = [_engine.tensor(_canonical(leaf)) for leaf in carry]
    slices, xs_spec = _flatten(xs)
    if xs is None:
        slices, xs_spec = [], None
    slices = [_engine.tensor(_canonical(leaf)) for leaf in slices]
    length = _scan_length(slices, length)
    y_spec: list[Any] = [None]  # filled by the body: known after one trace

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

    carry, ys = _engine.scan(body, carry, slices, length, reverse)
    return carry_spec.unflatten(carry), y_spec[0](ys)


def run_eagerly(eager: bool = True) -> None:
    """Runs every compiled function line by line from now on, or no longer.

    For a debugger, prints, and finding the line that raises. What was assigned
    before an exception stays assigned.

    Args:
        eager: `True` to run uncompiled, `False` to compile again.
    """
    _settings["eager"] = bool(eager)


def set_random_seed(seed: int) -> None:
    """Seeds the random numbers of Python, NumPy, Keras and the running backend.

    The draws that follow are those after `keras.utils.set_random_seed`. That function
    also imports TensorFlow wherever it is installed: under another backend, some 500
    MB of memory and two to three seconds for nothing.

    Args:
        seed: Integer, 0 <= seed < 2**32.

    Raises:
        TypeError: If `seed` is not an integer.
        ValueError: If `seed` is out of range.
    """
    accepted = "set_random_seed: `seed` must be an integer, 0 <= seed < 2**32"
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"{accepted}, received {seed!r} of type {type(seed).__name__}.")
    seed = int(seed)
    if not 0 <= seed < 2**32:
        raise ValueError(f"{accepted}, received {seed}.")
    python_random.seed(seed)
    np.random.seed(seed)
    state = keras.src.backend.common.global_state
    state.set_global_attribute(keras.src.utils.rng_utils.GLOBAL_RANDOM_SEED, seed)
    # Keras makes its global generator anew, from the seed, at the next draw.
    generator = keras.src.random.seed_generator.GLOBAL_SEED_GENERATOR
    state.set_global_attribute(generator, None)
    _engine.set_random_seed(seed)


def import_no_other_framework() -> None:
    """Keeps Keras from importing another framework only to look for its objects.

    When Keras saves or copies a model, it imports TensorFlow under every backend, to
    see whether a setting is one of TensorFlow's types. From now on it does so only if
    somebody has imported TensorFlow: before that, no such object can exist.
    """
    _engine.import_no_other_framework()


def compile_seconds() -> float:
    """Returns the seconds this process has spent on compiling so far.

    That is the time of each program's tracing and first call; where several threads
    compile at once, it counts once.
    """
    return _settings["compile_seconds"]


def is_tracing() -> bool:
    """Returns whether a compiled function is being traced: arrays have no values."""
    return _context.tracing


def why_not_compiled(optimizer: keras.optimizers.Optimizer) -> str | None:
    """Returns why `minimize` can't use an optimizer in a compiled function.

    Args:
        optimizer: A Keras optimizer. On PyTorch, some decide or compute outside of
            the framework, and can only run eagerly.

    Returns:
        A sentence with the remedy, or `None`: it can, or nothing is compiled as
        `run_eagerly` asked.
    """
    if _settings["eager"]:
        return None
    try:
        with _tracing():
            _engine.check_optimizer(optimizer)
    except ValueError as error:
        return str(error).removeprefix("minimize: ")
    return None


def release_programs(owner: Any, *names: str) -> None:
    """Forgets the programs of an object's compiled methods, and frees their memory.

    To be called where a program's optimizer or loss is replaced. The next call of
    the method compiles it anew.

    Args:
        owner: The object.
        *names: Names of methods, or of attributes that hold compiled functions.
    """
    found = [owner.__dict__.pop(name, None) for name in names]
    if any([program.release() for program in found if program is not None]):
        _engine.release()


class NoGradient(ValueError):
    """Raised by `minimize` if variables have no part in the loss.

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
    """Raised in a trace to have the optimizer built outside of it."""

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
        # The same programs by the shapes and dtypes of arguments that are plain
        # arrays: found without taking structures apart, some 10 us sooner.
        self._shortcuts: dict[Any, Callable] = {}

    def __set_name__(self, owner, name):
        self._name = name

    def __get__(self, instance, owner=None):
        """Binds a method: each object has programs of its own."""
        if instance is None:
            return self
        bound = _Compiled(self._fn.__get__(instance), self._eager, self._inductor)
        # Found there by the next look-up, and gone when the object goes. Not by
        # setattr: Keras would track it.
        instance.__dict__[getattr(self, "_name", self._fn.__name__)] = bound
        return bound

    def __deepcopy__(self, memo):
        return self  # programs belong to variables, which the copy doesn't share

    def release(self):
        """Forgets the programs, so that the next call of each signature compiles again.

        Returns whether there were any. They hold this object, and so themselves: only
        Python's garbage collector would free them, which may take dozens of programs.
        """
        released = bool(self._programs)
        self._programs.clear()
        self._shortcuts.clear()
        return released

    def __call__(self, *args, **kwargs):
        if not (kwargs or self._eager or _settings["eager"] or _context.tracing):
            try:
                shortcut = self._shortcuts[tuple([(x.dtype, x.shape) for x in args])]
            except (AttributeError, KeyError, TypeError):
                pass  # not plain arrays, or not seen before
            else:
                return shortcut(args)
        leaves, spec = _flatten((args, kwargs) if kwargs else args)
        if _context.tracing or self._eager or _settings["eager"]:
            leaves = [_canonical(leaf) for leaf in leaves]
            leaves = [_engine.tensor(x) if hasattr(x, "shape") else x for x in leaves]
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
        with _tracing():
            _context.compiled = self
            try:
                return _engine.trace(fn, arrays, self._inductor)
            finally:
                _context.compiled = None


# Layer -> the compiled functions whose programs call it.
_users: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _forget_programs_of_changed_layers():
    """Has functions compiled again when a layer that they call becomes another one.

    Such as by `quantize` and `enable_lora`, which add and take away variables and set
    the dtype policy. Layers say so, thus calls need not look. What is hooked is private
    in Keras; test_backend.py has a test that names it.
    """
    cls = keras.layers.Layer

    def call(original, layer, *args, **kwargs):
        function = _context.compiled
        if function not in _users.get(layer, ()):
            for part in layer._flatten_layers():
                _users.setdefault(part, weakref.WeakSet()).add(function)
        return original(layer, *args, **kwargs)

    def change(original, layer, *args):
        original(layer, *args)
        for function in list(_users.get(layer, ())):
            function.release()

    def has_users():
        return len(_users) > 0

    fast_ops.replace(cls, "__call__", call, lambda: _context.compiled is not None)
    fast_ops.replace(cls, "_track_variable", change, has_users)
    fast_ops.replace(cls, "_untrack_variable", change, has_users)
    policy = cls.dtype_policy
    cls.dtype_policy = policy.setter(functools.partial(change, policy.fset))


@contextlib.contextmanager
def _tracing():
    before = _context.tracing
    with _trace_lock:
        _context.tracing = True
        try:
            yield
        finally:
            _context.tracing = before


@contextlib.contextmanager
def _timing():
    """Counts the seconds in which any thread compiles."""
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


def _flatten(structure):
    """Leaves and structure of nested containers; `None` is a leaf."""
    return optree.tree_flatten(structure, none_is_leaf=True, namespace="keras")


def _flatten_results(structure):
    """Returns the arrays of `structure`, and a function that puts them back.

    `None`, strings and the like stay in the structure.
    """
    leaves, spec = _flatten(structure)
    leaves = [_canonical(leaf) for leaf in leaves]
    is_array = [hasattr(leaf, "shape") for leaf in leaves]
    arrays = [
        _engine.tensor(leaf)
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


_SAME = ("float32", "int32", "uint8", "bool")  # dtypes that PyTorch has as they are
_NARROW = {"float64": None, "int64": "int32", "uint64": "uint32"}


def _canonical(leaf):
    """Numbers as NumPy scalars, 64 bits narrowed, variables by value."""
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
    if optimizer is not _NOT_GIVEN and not isinstance(
        optimizer, keras.optimizers.Optimizer
    ):
        raise TypeError(
            f"{caller}: `optimizer` must be a Keras optimizer, received "
            f"{type(optimizer).__name__}."
        )
    if not variables:
        raise ValueError(f"{caller}: `variables` is empty: is the model built?")
    for variable in variables:
        if not isinstance(variable, keras.Variable):
            raise TypeError(
                f"{caller}: `variables` must hold keras.Variable objects, as in "
                f"`model.trainable_variables`; received {type(variable).__name__}."
            )
    if _context.depth:
        raise ValueError(
            f"{caller}: called inside a function that is being differentiated; "
            "move it out of `loss_fn` (or out of the function given to `gradient`)."
        )
    if optimizer is not _NOT_GIVEN:
        _engine.check_optimizer(optimizer)


def _build_optimizer(optimizer, variables):
    if not optimizer.built:
        if _context.tracing:
            raise _BuildOptimizer(optimizer, variables)
        optimizer.build(variables)


def _loss_gradients(caller, loss_fn, variables, optimizer=None):
    """What `loss_fn` returns, and the gradients, scaled as the optimizer wants it."""

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

    (loss, aux, has_aux), grads = _engine.value_and_grad(scaled_loss_fn, variables)
    without = [v for v, g in zip(variables, grads, strict=True) if g is None]
    if without:
        raise NoGradient(without)
    return ((loss, aux) if has_aux else loss), grads


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
        raise ValueError(f"scan: at least one turn is needed, received {length}.")
    return length


def _check_carry(spec, old_leaves, new_carry):
    new_leaves, new_spec = optree.tree_flatten(new_carry, namespace="keras")
    if new_spec != spec:
        raise ValueError(
            f"scan: `fn` returned a carry of structure {new_spec}, expected {spec}."
        )
    new_leaves = [_engine.tensor(_canonical(leaf)) for leaf in new_leaves]
    for old, new in zip(old_leaves, new_leaves, strict=True):
        before = (tuple(old.shape), keras.backend.standardize_dtype(old.dtype))
        after = (tuple(new.shape), keras.backend.standardize_dtype(new.dtype))
        if before != after:
            raise ValueError(
                "scan: the carry must keep its shape and dtype, received "
                f"{after[0]} {after[1]} after {before[0]} {before[1]}."
            )
    return new_leaves


def _eager_scan(body, carry, slices, length, reverse):
    """The loop in Python: for eager runs, and to differentiate on PyTorch."""
    ys: list[Any] = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        carry, ys[t] = body(carry, [x[t] for x in slices])
    return carry, [ops.stack(column) for column in zip(*ys, strict=True)]


# --- Variables under a trace, on JAX and PyTorch ----------------------------


def _raw(variable):
    """The tensor that holds a variable's value.

    `Variable.value` can't serve: it asks the scope, which asks us, and casts
    under mixed precision. `_value` is private in Keras 3; test_backend.py has
    a test that names it.
    """
    value = variable._value
    if value is None:
        raise ValueError(
            f"The variable {variable.path!r} was created inside a compiled function. "
            "Build layers, models and metrics before: call `build(input_shape)`, or "
            "call them once on an example."
        )
    return value


class _Scope(keras.StatelessScope):
    """The values of variables while a function is traced; scopes nest."""

    def __init__(self, read, values=(), differentiated=False):
        super().__init__(collect_losses=True)
        self._read = read  # called for a variable this scope has no value of
        self.read = {}  # id -> variable, in the order of first use
        self.written = {}
        self.state_mapping = {id(variable): value for variable, value in values}
        # What gradients are taken with respect to.
        self.inputs = dict(self.state_mapping) if differentiated else {}

    def get_current_value(self, variable):
        key = id(variable)
        if key not in self.state_mapping:
            self.read[key] = variable  # also keeps it alive, and so its id
            self.state_mapping[key] = self._read(variable)
        return self.state_mapping[key]

    def add_update(self, update):
        variable, value = update
        self.written[id(variable)] = variable
        if _context.depth:
            value = self._assigned(variable, value)
        self.state_mapping[id(variable)] = value

    def _assigned(self, variable, value):
        """A value without gradient but the variable's own, as everywhere in Keras.

        On TensorFlow, and on PyTorch run eagerly, gradients don't go through an
        assignment: they are those with respect to what is read, before and after it.
        """
        value = ops.stop_gradient(value)
        scope: Any = self
        while scope and id(variable) not in scope.inputs:
            scope = scope._around
        if scope:
            x = scope.inputs[id(variable)]
            value += x - ops.stop_gradient(x)
        return value

    def __enter__(self):
        self._around, _context.scope = _context.scope, self
        return super().__enter__()

    def __exit__(self, *args):
        _context.scope = self._around
        super().__exit__(*args)

    def updates(self):
        """Written variables and their new values."""
        variables = list(self.written.values())
        return variables, [self.state_mapping[id(v)] for v in variables]


def _outer_read():
    """How a scope inside the present one reads: through it, or the variable."""
    return _context.scope.get_current_value if _context.scope else _raw


def _assign(variables, values):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


class _differentiating:
    """Marks that a differentiated function runs."""

    def __enter__(self):
        _context.depth += 1

    def __exit__(self, *args):
        _context.depth -= 1


# --- JAX --------------------------------------------------------------------


class _Frame:
    """A `scan` body under trace, in which it numbers the scans.

    So each has a name that is the same in every trace of the function.
    """

    def __init__(self, key, plan):
        self.key = key
        self.plan = plan  # name of a scan -> the variables that its body writes
        self.count = 0

    def next_key(self):
        self.count += 1
        return (*self.key, self.count)


class _JaxEngine:
    def __init__(self):
        import jax

        # On the CPU, JAX hands each program to another thread, which costs 50 us
        # when that thread has to wake up: several times what an agent's network
        # takes to act. On this thread, a step that nobody waits for costs 10 us
        # more. To have it back: set this to True after `import kit`.
        jax.config.update("jax_cpu_enable_async_dispatch", False)
        self.jax = jax
        self.tensor = ops.convert_to_tensor
        self.set_random_seed = lambda seed: None  # JAX has no generator of its own
        self.import_no_other_framework = _only_if_imported
        self.discovering = False
        variable = keras.Variable(0.0)
        self.own_references = _count_references([variable._value])[0]
        layers = keras.src.backend
        if jax.default_backend() == "cpu":
            _use_kernel(layers.nn, "max_pool", fast_ops.jax_max_pool)
            _use_kernel(layers, "lstm", fast_ops.xla_lstm, scan=jax.lax.scan)
            _use_kernel(layers, "gru", fast_ops.xla_gru, scan=jax.lax.scan)

    def trace(self, fn, arrays, inductor):
        jax = self.jax
        plan: dict[tuple, list] = {}
        scope: Any = None
        unflatten: Any = None

        def discover(arrays):
            nonlocal scope
            scope = _Scope(_raw)
            _context.frame = _Frame((), plan)
            with scope:
                fn(arrays)
            return ()

        self.discovering = True
        try:
            jax.eval_shape(discover, arrays)
        finally:
            self.discovering = False
            _context.frame = None
        written = list(scope.written.values())
        kept = [v for key, v in scope.read.items() if key not in scope.written]
        for variable in written + kept:  # a Python number left them a weak type
            if _raw(variable).weak_type:
                variable.assign(jax.numpy.array(variable._value, variable.dtype))

        def pure(written_values, kept_values, arrays):
            nonlocal unflatten
            values = zip(
                [*written, *kept], [*written_values, *kept_values], strict=True
            )
            # JAX traces when the program is first called, out of our sight.
            with _tracing(), _Scope(_unforeseen, values) as scope:
                _context.frame = _Frame((), plan)
                try:
                    results, unflatten = fn(arrays)
                finally:
                    _context.frame = None
                return results, [scope.state_mapping[id(v)] for v in written]

        # The debugger of NaNs runs a failed program again, on the same arrays.
        donate = () if jax.config.jax_debug_nans else (0,)
        program = jax.jit(pure, donate_argnums=donate)

        def run(arrays):
            old = [v._value for v in written]
            rest = [v._value for v in kept]
            # What somebody else holds too can't be donated: `a.assign(b)` lets two
            # variables have one array, and `value = a.value` keeps it.
            for i, references in enumerate(_count_references(old)):
                if references > self.own_references:
                    old[i] = jax.numpy.array(old[i], copy=True)
            results, new = program(old, rest, list(arrays))
            for variable, value in zip(written, new, strict=True):
                variable._value = value
            return unflatten(results)

        return run

    def release(self):
        """JAX's programs go with the functions that they were made of."""

    def _pure(self, fn, variables=()):
        """`fn()` as a function of the variables' values: (out, updates)."""
        written = []
        read = _outer_read()

        def pure(values):
            nonlocal written
            with _differentiating():
                values = zip(variables, values, strict=True)
                with _Scope(read, values, differentiated=True) as scope:
                    out = fn()
                written, updates = scope.updates()
            return out, updates

        return pure, lambda updates: _assign(written, updates)

    def value_and_grad(self, loss_fn, variables):
        jax = self.jax
        pure, commit = self._pure(loss_fn, variables)
        reached = set()
        has_aux = False
        checking = self.discovering or not _context.tracing

        def mark(index):
            """The identity, which notes that a gradient came by."""

            @jax.custom_vjp
            def identity(x):
                return x

            def backward(_, cotangent):
                reached.add(index)
                return (cotangent,)

            identity.defvjp(lambda x: (x, None), backward)
            return identity

        def with_aux(values):
            nonlocal has_aux
            if checking:
                values = [mark(i)(x) for i, x in enumerate(values)]
            (scaled, (loss, aux, has_aux)), updates = pure(values)
            return scaled, (loss, aux, updates)

        values = [v.value for v in variables]
        grads, (loss, aux, updates) = jax.grad(with_aux, has_aux=True)(values)
        commit(updates)
        if checking:
            grads = [g if i in reached else None for i, g in enumerate(grads)]
        return (loss, aux, has_aux), grads

    def check_optimizer(self, optimizer):
        pass

    def apply_gradients(self, optimizer, grads, variables):
        if not isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            optimizer.apply(grads, variables)
            return
        # It branches on the gradients, which on JAX only this form of it can.
        values = [v.value for v in variables]
        state = [v.value for v in optimizer.variables]
        values, state = optimizer.stateless_apply(state, grads, values)
        _assign([*variables, *optimizer.variables], [*values, *state])

    def gradient(self, fn, leaves):
        state = {}

        def scalar(leaves):
            pure, state["commit"] = self._pure(lambda: fn(leaves))
            return pure([])

        grads, updates = self.jax.grad(scalar, has_aux=True)(leaves)
        state["commit"](updates)
        return grads

    def scan(self, body, carry, slices, length, reverse):
        jax = self.jax
        if not _context.tracing:
            return _eager_scan(body, carry, slices, length, reverse)
        key, plan = _context.frame.next_key(), _context.frame.plan
        outer = _context.scope

        def traced_body(carry, x):
            before, _context.frame = _context.frame, _Frame(key, plan)
            try:
                return body(carry, x)
            finally:
                _context.frame = before

        if self.discovering:  # one turn shows what is written, and all shapes
            with _Scope(outer.get_current_value) as scope:
                carry, ys = traced_body(carry, [x[0] for x in slices])
            written, updates = scope.updates()
            plan[key] = written
            _assign(written, updates)
            ys = [jax.numpy.broadcast_to(y, (length, *y.shape)) for y in ys]
            return carry, ys

        written = plan[key]

        def turn(state, x):
            carry, values = state
            values = zip(written, values, strict=True)
            with _Scope(outer.get_current_value, values) as scope:
                carry, ys = traced_body(carry, x)
                return (carry, [scope.state_mapping[id(v)] for v in written]), ys

        init = (carry, [outer.get_current_value(v) for v in written])
        # Weak types (of Python numbers) would have the body traced once more.
        init = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), init)
        (carry, values), ys = jax.lax.scan(
            turn, init, slices, length=length, reverse=reverse
        )
        _assign(written, values)
        return carry, ys


def _count_references(values):
    return [sys.getrefcount(value) for value in values]


def _unforeseen(variable):
    _raw(variable)  # a variable created in the trace has an error of its own
    raise RuntimeError(
        f"The variable {variable.path!r} was used in one trace of a function and not "
        "in another: the function does something else each time it runs (it branches "
        "on something outside of it). Pass what it branches on as an argument."
    )


# --- TensorFlow -------------------------------------------------------------


class _TensorFlowEngine:
    def __init__(self):
        import tensorflow as tf

        self.tf = tf
        self.tensor = tf.convert_to_tensor  # Keras' hands variables back as they are
        self.set_random_seed = tf.random.set_seed
        self.import_no_other_framework = lambda: None  # Keras imports no other
        # What XLA doesn't compile, TensorFlow optimizes, and this pass then lets a
        # variable be assigned before all that should see its old value has read it.
        tf.config.optimizer.set_experimental_options({"dependency_optimization": False})
        self.on_cpu = not tf.config.list_physical_devices("GPU")
        if self.on_cpu:
            _use_kernel(keras.src.backend, "lstm", fast_ops.xla_lstm, scan=scan)
            _use_kernel(keras.src.backend, "gru", fast_ops.xla_gru, scan=scan)
            for module, name, option in (
                (tf.random, "stateless_uniform", "alg"),
                (tf.random, "stateless_normal", "alg"),
                (tf.random, "stateless_truncated_normal", "alg"),
                (tf.nn.experimental, "stateless_dropout", "rng_alg"),
            ):
                kernel = functools.partial(fast_ops.xla_draw, option=option)
                fast_ops.replace(module, name, kernel, lambda: _context.for_xla)

    def trace(self, fn, arrays, inductor):
        tf = self.tf
        unflatten: Any = None

        def pure(*arrays):
            nonlocal unflatten
            with tf.variable_creator_scope(_refuse_creation):
                results, unflatten = fn(arrays)
            return results

        specs = [tf.TensorSpec(x.shape, x.dtype) for x in arrays]

        def make(jit_compile):
            program = tf.function(pure, jit_compile=jit_compile, autograph=False)
            _context.for_xla = jit_compile
            try:
                return program.get_concrete_function(*specs)
            finally:
                _context.for_xla = False

        program = make(jit_compile=True)
        if self.on_cpu and _has_convolution(program.graph):
            # XLA's convolutions take several times longer on the CPU than those of
            # TensorFlow's graphs, and in loops longer still.
            program = make(jit_compile=False)

        def call(arrays):
            tensors = list(map(tf.convert_to_tensor, arrays))
            # What `program(*tensors)` comes to, without comparing each argument with
            # what was traced, which takes longer than a small network: arguments of
            # another kind have a program of their own. Private in TensorFlow;
            # test_backend.py has a test that names it.
            return unflatten(program._call_flat(tensors, program.captured_inputs))

        def run(arrays):
            nonlocal program
            try:
                return call(arrays)
            except tf.errors.InvalidArgumentError as error:
                if "unsupported operations" not in error.message:
                    raise
            # XLA lacks some operations, such as those that turn images.
            with _tracing():
                program = make(jit_compile=False)
            return call(arrays)

        return run

    def release(self):
        """A graph and its operations hold each other."""
        gc.collect()

    def value_and_grad(self, loss_fn, variables):
        tf = self.tf
        values = [v.value for v in variables]
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            for value in values:
                tape.watch(value)
            with _differentiating():
                scaled, results = loss_fn()
        grads = tape.gradient(scaled, values)
        # Embedding gives tf.IndexedSlices, the other backends arrays.
        grads = [g if g is None else tf.convert_to_tensor(g) for g in grads]
        return results, grads

    def check_optimizer(self, optimizer):
        pass

    def apply_gradients(self, optimizer, grads, variables):
        optimizer.apply(grads, variables)

    def gradient(self, fn, leaves):
        tf = self.tf
        leaves = [tf.identity(x) for x in leaves]  # two may be the same tensor
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(leaves)
            with _differentiating():
                value = fn(leaves)
        zero = tf.UnconnectedGradients.ZERO
        return [
            tf.convert_to_tensor(g)
            for g in tape.gradient(value, leaves, unconnected_gradients=zero)
        ]

    def scan(self, body, carry, slices, length, reverse):
        tf = self.tf
        if not _context.tracing:
            return _eager_scan(body, carry, slices, length, reverse)

        # Traced once as a function of its own, which tells what the loop has
        # to allocate; the loop then calls it. A loop that is differentiated has its
        # body itself: XLA has to see the body's constants in the gradient.
        turn = tf.function(lambda carry, x: body(carry, x), autograph=False)
        turn = turn.get_concrete_function(
            [tf.TensorSpec(c.shape, c.dtype) for c in carry],
            [tf.TensorSpec(x.shape[1:], x.dtype) for x in slices],
        )
        arrays = [
            tf.TensorArray(y.dtype, size=length, element_shape=y.shape)
            for y in turn.structured_outputs[1]
        ]

        def step(i, carry, arrays):
            t = length - 1 - i if reverse else i
            run = body if _context.depth else turn
            carry, ys = run(carry, [x[t] for x in slices])
            arrays = [a.write(t, y) for a, y in zip(arrays, ys, strict=True)]
            return i + 1, carry, arrays

        _, carry, arrays = tf.while_loop(
            lambda i, *_: i < length,
            step,
            (tf.constant(0), carry, arrays),
            # XLA needs the bound to differentiate the loop.
            maximum_iterations=length,
        )
        return carry, [a.stack() for a in arrays]


def _has_convolution(graph):
    """Whether a graph, or a function that it calls, convolves."""
    graph = graph.as_graph_def()
    nodes = [graph.node, *(function.node_def for function in graph.library.function)]
    return any("Conv" in node.op for node in itertools.chain(*nodes))


def _refuse_creation(next_creator, **kwargs):
    raise ValueError(
        f"The variable {kwargs.get('name')!r} was created inside a compiled function. "
        "Build layers, models and metrics before: call `build(input_shape)`, or call "
        "them once on an example."
    )


# --- PyTorch ----------------------------------------------------------------


class _TorchEngine:
    def __init__(self):
        import torch
        import torch.fx.experimental.proxy_tensor as proxy_tensor

        from kit.engines import torch_branches

        self.torch = torch
        self.branches = torch_branches
        self.set_random_seed = torch.manual_seed
        self.import_no_other_framework = _only_if_imported
        self.make_fx = proxy_tensor.make_fx
        self.untraced = proxy_tensor.disable_proxy_modes_tracing
        self.loops: Any = weakref.WeakValueDictionary()
        self.numbers = itertools.count()
        # One for each copy of this package (`python -m kit copy`) in a process.
        self.namespace = __name__.replace(".", "_")
        self.library = torch.library.Library(self.namespace, "DEF")
        self.library.define("loop(int number, Tensor[] operands) -> Tensor[]")
        self.library.impl("loop", self._run_loop, "CompositeExplicitAutograd")
        torch.library.register_fake(
            f"{self.namespace}::loop", self._fake_loop, lib=self.library
        )
        _make_random_traceable()
        fast_ops.replace(
            keras.src.backend.core, "cond", self.cond, lambda: _context.tracing
        )
        _use_kernel(keras.src.backend.core, "slice_update", fast_ops.torch_slice_update)
        _use_kernel(
            keras.src.optimizers.base_optimizer,
            "clip_by_global_norm",
            fast_ops.torch_clip_by_global_norm,
        )
        self.device = keras.src.backend.torch.core.get_device
        if self.device() == "cpu":
            layers = keras.src.backend
            _use_kernel(
                layers.nn, "_transpose_spatial_inputs", fast_ops.torch_transpose_inputs
            )
            _use_kernel(layers, "lstm", fast_ops.torch_lstm)
            _use_kernel(layers, "gru", fast_ops.torch_gru)

        tensor = torch.Tensor
        values = (tensor.numpy, tensor.__array__, tensor.tolist, tensor.item)

        class Guard(torch.overrides.TorchFunctionMode):
            """Keeps what a trace would take as a constant from becoming one."""

            def __torch_function__(self, function, types, args=(), kwargs=None):
                args, kwargs = torch_branches.resolve((args, dict(kwargs or {})))
                if function in values:
                    raise TypeError(
                        "A compiled function asked for the value of an array (as "
                        "`float`, `convert_to_numpy` or `if` do), which isn't known "
                        "while it is compiled. Use keras.ops, or return the array."
                    )
                if function is torch.nn.functional.one_hot:  # it looks for the maximum
                    x, num_classes = args
                    classes = torch.arange(num_classes, device=x.device)
                    return (x.unsqueeze(-1) == classes).to(torch.int64)
                if torch.is_tensor(kwargs.get("alpha")):  # a learning rate
                    changes = torch._foreach_mul(args[1], kwargs.pop("alpha"))
                    args = (args[0], changes)
                return function(*args, **kwargs)

        self.guard = Guard

    def trace(self, fn, arrays, inductor):
        torch = self.torch
        graph = _TorchGraph(self, fn, [self.tensor(x) for x in arrays])
        run_graph = graph.compile(inductor)
        captured, sources, written = graph.captured, graph.sources, graph.written

        def run(arrays):
            with torch.no_grad():
                outputs = run_graph(
                    *map(self.tensor, arrays),
                    *captured,
                    *[v._value for v in sources],
                )
                for variable, value in zip(written, outputs, strict=False):
                    variable._value.data = value
            return graph.unflatten(outputs[len(written) :])

        return run

    def release(self):
        """PyTorch's programs go with the last that holds them."""

    def tensor(self, x):
        if isinstance(x, np.ndarray):
            # A copy: PyTorch would share the memory. Keras makes one too, in 10 us.
            if x.dtype.name in _SAME and self.device() == "cpu":
                return self.torch.from_numpy(x.copy())
            if not x.flags.writeable:
                x = x.copy()  # or PyTorch warns
        # A graph is recorded for contiguous inputs.
        return ops.convert_to_tensor(x).contiguous()

    def _differentiate(self, fn, values, variables=()):
        """Runs `fn` on a scope of its own; returns its results and updates."""
        with (
            self.torch.enable_grad(),
            _differentiating(),
            _Scope(
                _outer_read(), zip(variables, values, strict=True), differentiated=True
            ) as scope,
        ):
            results = fn()
        return results, scope.updates()

    def value_and_grad(self, loss_fn, variables):
        torch = self.torch
        values = [v.value.detach().requires_grad_() for v in variables]
        (scaled, (loss, aux, has_aux)), updates = self._differentiate(
            loss_fn, values, variables
        )
        if not scaled.requires_grad:
            return (loss, aux, has_aux), [None] * len(variables)
        grads = torch.autograd.grad(scaled, values, allow_unused=True)
        _assign(updates[0], [x.detach() for x in updates[1]])
        leaves, spec = _flatten((loss, aux))
        leaves = [x.detach() if torch.is_tensor(x) else x for x in leaves]
        return (*spec.unflatten(leaves), has_aux), grads

    def apply_gradients(self, optimizer, grads, variables):
        with self.torch.no_grad():
            if _context.scope:
                # Keras' optimizers change tensors in place on PyTorch: give them
                # copies, which nothing else can be looking at.
                for v in [*variables, *optimizer.variables]:
                    v.assign(v.value.clone())
            optimizer.apply(grads, variables)

    def check_optimizer(self, optimizer):
        """Keras decides in Python, from a tensor's value, whether these act."""
        without = None
        if isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
            without = "a LossScaleOptimizer; train in bfloat16, which needs no scaling"
        elif isinstance(optimizer, keras.optimizers.Nadam):
            without = "Nadam, which computes in NumPy; use Adam"
        elif optimizer.gradient_accumulation_steps:
            without = "`gradient_accumulation_steps`; use a larger batch"
        elif optimizer.ema_overwrite_frequency and optimizer.use_ema:
            without = "`ema_overwrite_frequency`; call `finalize_variable_values`"
        if without and _context.tracing:
            raise ValueError(f"minimize: PyTorch can't compile {without} instead.")

    def gradient(self, fn, leaves):
        torch = self.torch
        nested = torch.is_grad_enabled() and _context.depth
        if nested:  # stay connected with what the inputs were computed from
            leaves = [
                x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
                for x in leaves
            ]
        else:
            leaves = [x.detach().requires_grad_() for x in leaves]
        value, updates = self._differentiate(lambda: fn(leaves), ())
        if value.requires_grad:
            grads = torch.autograd.grad(
                value, leaves, create_graph=nested, allow_unused=True
            )
        else:
            grads = [None] * len(leaves)
        if not nested:
            updates = (updates[0], [x.detach() for x in updates[1]])
        _assign(*updates)
        return [
            torch.zeros_like(x) if g is None else g
            for x, g in zip(leaves, grads, strict=True)
        ]

    def cond(self, original, pred, true_fn, false_fn):
        """Both ways, of which the results of one are taken: a graph has no branches."""
        torch = self.torch
        if not torch.is_tensor(pred):
            return original(pred, true_fn, false_fn)
        ways: list[Any] = []
        branches = self.branches
        yes_branch, no_branch = branches.Branch(), branches.Branch()
        read = _outer_read()
        for fn, branch in ((true_fn, yes_branch), (false_fn, no_branch)):
            # What is first read in a branch, all read later: it isn't the branch's.
            with branch, _Scope(lambda v, b=branch: b.share(read(v))) as scope:
                leaves, spec = _flatten(fn())
                leaves = branches.resolve(leaves)
                scope.state_mapping = branches.resolve(scope.state_mapping)
            ways.append((leaves, spec, scope))
        (yes, spec, yes_scope), (no, no_spec, no_scope) = ways
        if spec != no_spec:
            raise ValueError(
                "keras.ops.cond: both functions must return the same structure, "
                f"received {spec} and {no_spec}."
            )

        def choose(a, b):
            if a is None and b is None:  # such as of ways that only assign
                return None
            return torch.where(pred, self.tensor(a), self.tensor(b))

        for key, variable in (yes_scope.written | no_scope.written).items():
            before = variable.value
            scopes = (yes_scope, no_scope)
            after = (scope.state_mapping.get(key, before) for scope in scopes)
            variable.assign(choose(*after))
        branches.merge(pred, yes_branch, no_branch)
        return spec.unflatten([choose(a, b) for a, b in zip(yes, no, strict=True)])

    def scan(self, body, carry, slices, length, reverse):
        torch = self.torch
        if not _context.tracing or torch.is_grad_enabled():
            return _eager_scan(body, carry, slices, length, reverse)
        with self.untraced():
            loop = _TorchLoop(self, body, carry, slices, length, reverse)
        state = [v.value for v in loop.written]
        others = [v.value for v in loop.read_only]
        operands = [*state, *carry, *loop.captured, *others, *slices]
        outputs = getattr(torch.ops, self.namespace).loop(loop.number, operands)
        _context.frame.append(loop)
        _assign(loop.written, outputs[: len(state)])
        outputs = outputs[len(state) :]
        return outputs[: len(carry)], outputs[len(carry) :]

    def _run_loop(self, number, operands):
        loop = self.loops[number]
        # Shapes are all that a trace needs.
        return loop.zeros() if _context.tracing else loop.run(operands)

    def _fake_loop(self, number, operands):
        return self.loops[number].zeros()


class _TorchGraph:
    """A function as a flat graph of ATen calls.

    Its inputs are the function's arguments, `captured` tensors (constants, and
    what a loop's body takes from around it) and the values of the variables in
    `sources`; its outputs the new values of `written`, then the results.
    """

    def __init__(self, engine, fn, tensors, in_loop=False):
        torch = engine.torch
        self.torch = torch
        held = {}  # id of a tensor -> the variable whose value it stands for
        examples = []  # keeps these ids valid

        def read(variable):
            with engine.untraced():
                example = _raw(variable).detach().clone()
            held[id(example)] = variable
            examples.append(example)
            # A copy inside the trace: make_fx takes what it hasn't seen before
            # for a constant, whose value may be looked at.
            return example.clone()

        def flat(*tensors):
            with _Scope(read) as scope:
                results, self.unflatten = fn(tensors)
                self.written, updates = scope.updates()
            return engine.branches.resolve([*updates, *results])

        around, _context.frame = _context.frame, []
        try:
            with torch.no_grad(), engine.guard(), engine.branches.Region():
                tensors = [x.detach().clone() for x in tensors]
                self.module = engine.make_fx(flat)(*tensors)
            self.loops = _context.frame  # the graph knows them by number only
        finally:
            _context.frame = around
        # Without the guard of a trace around this one.
        with torch._C.DisableTorchFunction(), torch.no_grad():
            self._rewrite(held, in_loop)

    def _rewrite(self, held, in_loop):
        self._lift(held)
        for node in self.module.graph.find_nodes(
            op="call_function", target=self.torch.ops.aten.mkldnn_rnn_layer.default
        ):
            node.target = fast_ops.torch_lstm_forward
        self._simplify()
        self._own_outputs()
        self.module.graph.eliminate_dead_code()
        self._work_in_place(in_loop)
        torch_calls.hold_numbers(self.module)
        torch_calls.call_directly(self.module)
        self.module.recompile()

    def _lift(self, held):
        """Turns tensors that the trace took for constants into inputs."""
        graph = self.module.graph
        found: dict[int, tuple] = {}
        for node in graph.find_nodes(op="get_attr"):
            tensor = getattr(self.module, node.target)
            found.setdefault(id(tensor), (tensor, []))[1].append(node)
        captured = [x for key, x in found.items() if key not in held]
        sources = [(held[key], x[1]) for key, x in found.items() if key in held]
        self.captured = [tensor for tensor, _ in captured]
        self.sources = [variable for variable, _ in sources]
        arguments = list(graph.find_nodes(op="placeholder"))
        if arguments:  # then these
            here = graph.inserting_after(arguments[-1])
        else:
            here = graph.inserting_before(next(iter(graph.nodes)))
        self.source_nodes = {}
        for owner, nodes in captured + sources:
            with here:
                placeholder = graph.placeholder(f"lifted_{nodes[0].name}")
            here = graph.inserting_after(placeholder)
            value = getattr(owner, "_value", owner)
            placeholder.meta["val"] = self.torch.empty_like(value, device="meta")
            if isinstance(owner, keras.Variable):
                self.source_nodes[placeholder] = owner
            for node in nodes:
                node.replace_all_uses_with(placeholder)
                graph.erase_node(node)
        for name in list(self.module._buffers) + list(self.module.__dict__):
            if name.startswith("_tensor_constant"):
                delattr(self.module, name)

    def _simplify(self):
        """Takes out copies that nobody needs, and what is computed twice."""
        torch, graph = self.torch, self.module.graph
        changed = self._changed_in_place()
        literals = self._literals()
        seen: dict[tuple, Any] = {}
        for node in list(graph.nodes):
            if node.op != "call_function":
                continue
            source: Any = node.args[0] if node.args else None
            if (
                node.target is torch.ops.aten.lift_fresh_copy.default
                and node not in changed
            ):
                # A copy of a constant, in case that somebody changes it.
                replacement = literals.get(source, source)
            elif (
                node.target is torch.ops.aten.detach.default
                or (changed.isdisjoint((node, source)) and self._does_nothing(node))
                or (
                    node.target is torch.ops.aten.clone.default
                    and source in self.source_nodes
                    and not node.kwargs
                    and node not in changed
                )
            ):
                replacement = source
            elif node not in changed and self._is_dense(node, changed):
                # Keras writes the kernel's product and the bias as two steps, of
                # sequences with a change of shape in between.
                product, bias = node.args
                shape: Any = ()
                if product.target is torch.ops.aten._unsafe_view.default:
                    product, *shape = product.args
                with graph.inserting_before(node):
                    replacement = graph.call_function(
                        torch.ops.aten.addmm.default, (bias, *product.args)
                    )
                    replacement.meta = product.meta
                    if shape:
                        replacement = graph.call_function(
                            torch.ops.aten.view.default, (replacement, *shape)
                        )
                        replacement.meta = node.meta
            elif (
                node.target is torch.ops.aten.view.default
                and source.target is torch.ops.aten.view.default
                and changed.isdisjoint((node, source))
            ):
                with graph.inserting_before(node):
                    replacement = graph.call_function(
                        node.target, (source.args[0], node.args[1])
                    )
                    replacement.meta = node.meta
            elif (
                isinstance(node.target, torch._ops.OpOverload)
                and not node.target._schema.is_mutable
                and torch.Tag.nondeterministic_seeded not in node.target.tags
                and node not in changed
                and changed.isdisjoint(node.all_input_nodes)
            ):
                key = (node.target, repr(node.args), repr(node.kwargs))
                replacement = seen.setdefault(key, node)
            else:
                continue
            if replacement is not node:
                node.replace_all_uses_with(replacement)
                graph.erase_node(node)

    def _literals(self):
        """Inputs that hold a number which another one holds already -> that one."""
        first: dict[tuple, Any] = {}
        same = {}
        inputs = list(self.module.graph.find_nodes(op="placeholder"))
        constants = inputs[len(inputs) - len(self.captured) - len(self.sources) :]
        for node, value in zip(constants, self.captured, strict=False):
            # A number in the code is copied each time that it is used; what a loop
            # takes from around it isn't, and has another value at each call.
            copied = node.users and all(
                user.target is self.torch.ops.aten.lift_fresh_copy.default
                for user in node.users
            )
            if copied and value.ndim == 0:
                key = (value.dtype, value.device, repr(value.item()))
                same[node] = first.setdefault(key, node)
        return same

    def _does_nothing(self, node):
        """Whether a call returns what it is given."""
        aten = self.torch.ops.aten
        if node.target is aten.pow.Tensor_Scalar:
            return node.args[1] == 1 and self._keeps(node, "dtype")
        if node.target in (aten.view.default, aten.squeeze.dim, aten.expand.default):
            return self._keeps(node, "shape")
        return False

    def _keeps(self, node, attribute):
        source = node.args[0].meta.get("val")
        return source is not None and getattr(source, attribute) == getattr(
            node.meta["val"], attribute
        )

    def _work_in_place(self, in_loop):
        """Has optimizers change the variables themselves, not copies of them.

        `minimize` gives them a copy, `clone` in the graph. It isn't needed where
        nobody reads the old value afterwards, and where nothing can fail any more
        that would leave half of the variables changed. (The state of a loop is a
        copy already: there, failing does no harm.)
        """
        graph = self.module.graph
        nodes: list[Any] = list(graph.nodes)
        order = {node: i for i, node in enumerate(nodes)}
        output = nodes[-1]
        final = dict(zip(map(id, self.written), output.args[0], strict=False))
        last_risk = max((order[n] for n in nodes if self._may_fail(n)), default=-1)
        for node in nodes:
            if node.target is not self.torch.ops.aten.clone.default or node.kwargs:
                continue
            source = node.args[0]
            variable = self.source_nodes.get(source)
            if final.get(id(variable)) != node:
                continue
            first_change = min(order[user] for user in self._readers(node))
            readers = self._readers(source) - {node}
            if all(order[reader] < first_change for reader in readers) and (
                in_loop or last_risk < first_change < order[output]
            ):
                node.replace_all_uses_with(source)
                graph.erase_node(node)
        if not in_loop:  # what was changed in place needn't be returned
            values = list(output.args[0])
            pairs = list(zip(self.written, values, strict=False))
            kept = [p for p in pairs if self.source_nodes.get(p[1]) is not p[0]]
            self.written = [variable for variable, _ in kept]
            output.args = ([value for _, value in kept] + values[len(pairs) :],)

    def _may_fail(self, node):
        """Whether a call can raise, depending on the values it gets."""
        if node.op != "call_function":
            return False
        tags = getattr(node.target, "tags", ())
        name = getattr(node.target, "__name__", "")
        harmless = ("_foreach", "getitem", "clone", "_to_copy")
        return self.torch.Tag.pointwise not in tags and not name.startswith(harmless)

    def _readers(self, node):
        """Those who use a node's tensor, through views of it too."""
        readers = set()
        for user in node.users:
            readers.add(user)
            if self._is_view(user):
                readers |= self._readers(user)
        return readers

    def _is_dense(self, node, changed):
        """Whether a call adds a bias to a product that nobody else reads.

        The product moves to where the bias is added: nothing that it is made of may
        be overwritten in between.
        """
        aten = self.torch.ops.aten
        if node.target is not aten.add.Tensor or node.kwargs:
            return False
        product, bias = node.args
        variable = self.source_nodes.get(bias)
        if variable is None or len(variable.shape) != 1:
            return False
        matrix = product
        if product.target is aten._unsafe_view.default and len(product.users) == 1:
            matrix = product.args[0]
        if matrix.target is not aten.mm.default or len(matrix.users) > 1:
            return False
        if not changed.isdisjoint((matrix, product, bias, *matrix.args)):
            return False
        # addmm neither widens the product to the bias nor promotes dtypes, and adds
        # the bias to the matrix' columns.
        columns, before, after = (x.meta["val"] for x in (matrix, product, node))
        return (
            columns.shape[-1] == before.shape[-1]
            and before.shape == after.shape
            and before.dtype == after.dtype == variable._value.dtype
        )

    def _is_view(self, node):
        if node.target is operator.getitem:  # one of several
            return self._is_view(node.args[0])
        schema = getattr(node.target, "_schema", None)
        return schema is not None and any(
            r.alias_info is not None and not r.alias_info.is_write
            for r in schema.returns
        )

    def _changed_in_place(self):
        """The nodes whose tensors some later call overwrites."""
        changed = set()
        for node in self.module.graph.nodes:
            schema = getattr(node.target, "_schema", None)
            if schema is None or not schema.is_mutable:
                continue
            for argument, value in zip(schema.arguments, node.args, strict=False):
                if argument.alias_info is None or not argument.alias_info.is_write:
                    continue
                for written in value if isinstance(value, list | tuple) else [value]:
                    changed.add(written)
            changed.add(node)  # returns what it wrote to
        # Whoever looks at the same memory through a view has changed as well.
        before = -1
        while before != len(changed):
            before = len(changed)
            for node in self.module.graph.nodes:
                if self._is_view(node) and not changed.isdisjoint(
                    (node, *node.all_input_nodes)
                ):
                    changed.update((node, *node.all_input_nodes))
        return changed

    def _own_outputs(self):
        """Has each output a memory of its own; drops variables left unchanged."""
        torch, graph = self.torch, self.module.graph
        output = next(iter(graph.find_nodes(op="output")))
        values = list(output.args[0])
        count = len(self.written)
        pairs = [
            (variable, value)
            for variable, value in zip(self.written, values[:count], strict=True)
            if self.source_nodes.get(value) is not variable
        ]
        self.written = [variable for variable, _ in pairs]
        outputs = []
        for value in [v for _, v in pairs] + values[count:]:
            if value in outputs or value.op == "placeholder" or self._is_view(value):
                with graph.inserting_before(output):
                    value = graph.call_function(
                        torch.ops.aten.clone.default,
                        (value,),
                        {"memory_format": torch.contiguous_format},
                    )
            outputs.append(value)
        output.args = (outputs,)

    def compile(self, inductor):
        if not inductor:
            return self.module.forward
        for loop in self.loops:
            loop.call = loop.graph.compile(inductor)
        return self.torch.compile(self.module, dynamic=False)


class _TorchLoop:
    """The body of a `scan`, recorded once, run `length` times."""

    def __init__(self, engine, body, carry, slices, length, reverse):
        self.torch = engine.torch
        self.number = next(engine.numbers)
        engine.loops[self.number] = self
        self.steps = range(length)[:: -1 if reverse else 1]

        def fn(tensors):
            new_carry, ys = body(tensors[: len(carry)], tensors[len(carry) :])
            self.examples = [*new_carry, *ys]
            return self.examples, None

        examples = [*carry, *(x[0] for x in slices)]
        self.graph = _TorchGraph(engine, fn, examples, in_loop=True)
        # Out of the trace, which they would keep alive.
        self.examples = [x.detach().clone() for x in self.examples]
        self.call = self.graph.module.forward
        self.written = self.graph.written
        written = {id(v) for v in self.written}
        self.read_only = [v for v in self.graph.sources if id(v) not in written]
        self.captured = self.graph.captured
        self.num_carry = len(carry)
        self.num_slices = len(slices)

    def zeros(self):
        """Outputs of the right shapes and dtypes, for traces."""
        carry, ys = self.examples[: self.num_carry], self.examples[self.num_carry :]
        shapes = [(tuple(x.shape), x) for x in [v._value for v in self.written] + carry]
        shapes += [((len(self.steps), *y.shape), y) for y in ys]
        return [
            self.torch.zeros(shape, dtype=x.dtype, device=x.device)
            for shape, x in shapes
        ]

    def run(self, operands):
        """From the operands of `kit::loop` to its outputs."""
        torch, num_written = self.torch, len(self.written)
        num_state = num_written + self.num_carry
        # The body may change the variables in place: they are the loop's own.
        state = [x.clone() for x in operands[:num_written]]
        state += operands[num_written:num_state]
        operands = operands[num_state:]
        captured = operands[: len(self.captured)]
        others = operands[len(self.captured) : len(operands) - self.num_slices]
        slices = [x.unbind(0) for x in operands[len(operands) - self.num_slices :]]
        # Where each value of a variable comes from: the state, or from outside.
        position = {id(v): i for i, v in enumerate(self.written)}
        others = iter(others)
        sources = [
            (position.get(id(v)), None if id(v) in position else next(others))
            for v in self.graph.sources
        ]
        ys = [None] * len(self.steps)
        for t in self.steps:
            outputs = self.call(
                *state[num_written:],
                *[x[t] for x in slices],
                *captured,
                *[fixed if i is None else state[i] for i, fixed in sources],
            )
            state, ys[t] = outputs[:num_state], outputs[num_state:]
        return [*state, *(torch.stack(column) for column in zip(*ys, strict=True))]


def _make_random_traceable():
    """Has `keras.random` draw from the seed's value while PyTorch is traced.

    Keras seeds a `torch.Generator` with the number that the seed holds at that
    moment, which a trace would make a constant: the same dropout mask on every
    call. The functions stand in a private module of Keras; outside of a trace
    they are Keras' own. test_backend.py has a test that names them.
    """
    from keras.src.backend.torch import random as keras_random

    from kit import random

    def key(seed):
        return ops.cast(keras_random.draw_seed(seed), "int32")

    def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        return random.uniform(key(seed), tuple(shape), minval, maxval, dtype)

    def normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        return random.normal(key(seed), tuple(shape), mean, stddev, dtype)

    def truncated_normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        return random.truncated_normal(key(seed), tuple(shape), mean, stddev, dtype)

    def randint(shape, minval, maxval, dtype="int32", seed=None):
        return ops.cast(random.randint(key(seed), tuple(shape), minval, maxval), dtype)

    def categorical(logits, num_samples, dtype="int32", seed=None):
        logits = ops.repeat(ops.expand_dims(logits, -2), num_samples, axis=-2)
        return ops.cast(random.categorical(key(seed), logits), dtype)

    def shuffle(x, axis=0, seed=None):
        return ops.take(x, random.permutation(key(seed), x.shape[axis]), axis=axis)

    def dropout(inputs, rate, noise_shape=None, seed=None):
        if rate in (0.0, 1.0):
            return inputs * (1.0 - rate)
        shape = [
            size if noise is None else noise
            for size, noise in zip(
                inputs.shape, noise_shape or [None] * inputs.ndim, strict=True
            )
        ]
        keep = random.uniform(key(seed), tuple(shape)) >= rate
        return ops.where(keep, inputs / (1.0 - rate), ops.zeros_like(inputs))

    for replacement in (
        uniform, normal, truncated_normal, randint, categorical, shuffle, dropout
    ):  # fmt: skip
        original = getattr(keras_random, replacement.__name__)

        def choose(*args, _original=original, _replacement=replacement, **kwargs):
            function = _replacement if _context.tracing else _original
            return function(*args, **kwargs)

        setattr(keras_random, replacement.__name__, functools.wraps(original)(choose))


def _use_kernel(module, name, kernel, **options):
    """Puts a faster form of a function of Keras' backend into compiled programs.

    Not where gradients of gradients are taken, which fused operators don't have.
    """
    fast_ops.replace(
        module,
        name,
        functools.partial(kernel, **options),
        lambda: _context.tracing and _context.depth < 2,
    )


class _OnlyIfImported:
    """Stands in Keras for a module that is available only if it is imported already."""

    def __init__(self, module):
        self._module = module

    @property
    def available(self):
        return self._module.name in sys.modules and self._module.available

    def __getattr__(self, name):
        return getattr(self._module, name)


def _only_if_imported():
    library = keras.src.saving.serialization_lib
    if not isinstance(library.tf, _OnlyIfImported):
        library.tf = _OnlyIfImported(library.tf)


def _make_engine():
    engines = {
        "jax": _JaxEngine,
        "tensorflow": _TensorFlowEngine,
        "torch": _TorchEngine,
    }
    name = keras.backend.backend()
    if name not in engines:
        raise ImportError(
            f"kit runs on {', '.join(engines)}; the Keras backend is {name!r}. Set "
            "the environment variable KERAS_BACKEND before Python starts."
        )
    return engines[name]()


keep_freed_memory()
_forget_programs_of_changed_layers()
_engine: Any = _make_engine()
