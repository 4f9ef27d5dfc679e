"""What the running thread traces, and the variables' values while it does.

TensorFlow has compiled state of its own. On JAX and PyTorch, a function becomes pure by
running under a `Scope`, which hands out the values of variables and catches what is
assigned to them.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
from keras import ops


class Context(threading.local):
    """What the running thread is in the middle of."""

    def __init__(self):
        self.tracing = False  # inside a compiled function that is being traced
        self.compiled: Callable | None = None  # it, while its first trace runs
        self.scope: Any = None  # the innermost `Scope`, on JAX and PyTorch
        self.depth = 0  # of functions inside each other that are differentiated
        # What the engine keeps of the loops of this trace, on JAX and PyTorch.
        self.frame: Any = None
        self.for_xla = False  # whether what is traced will run there, on TensorFlow
        # Registries and names: what the trace registers, on TensorFlow.
        self.registered: Any = None


context = Context()
# make_fx patches torch.nn.Module while it traces, and Keras keeps names in
# global dictionaries: one trace at a time. Compiled programs run in parallel.
trace_lock = threading.RLock()


@contextlib.contextmanager
def tracing() -> Iterator[None]:
    """Marks that this thread traces; no other one does meanwhile."""
    before = context.tracing
    with trace_lock:
        context.tracing = True
        try:
            yield
        finally:
            context.tracing = before


def raw_value(variable: keras.Variable) -> Any:
    """Returns the tensor that holds a variable's value.

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


class Scope(keras.StatelessScope):
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
        """Returns the value that a variable has here. Keras asks for it."""
        key = id(variable)
        if key not in self.state_mapping:
            self.read[key] = variable  # also keeps it alive, and so its id
            self.state_mapping[key] = self._read(variable)
        return self.state_mapping[key]

    def add_update(self, update):
        """Takes an assignment, a pair of variable and value. Keras calls it."""
        variable, value = update
        self.written[id(variable)] = variable
        if context.depth:
            value = self._assigned(variable, value)
        self.state_mapping[id(variable)] = value

    def _assigned(self, variable, value):
        """A value without gradient but the variable's own, as everywhere in Keras.

        On TensorFlow, and on PyTorch run eagerly, gradients don't go through an
        assignment: they are those with respect to what is read, before and after it.
        """
        value = ops.stop_gradient(value)
        scope: Scope | None = self
        while scope and id(variable) not in scope.inputs:
            scope = scope._around
        if scope:
            x = scope.inputs[id(variable)]
            value += x - ops.stop_gradient(x)
        return value

    def __enter__(self):
        self._around, context.scope = context.scope, self
        return super().__enter__()

    def __exit__(self, *args):
        context.scope = self._around
        super().__exit__(*args)

    def updates(self):
        """Returns the variables that were assigned, and their new values."""
        variables = list(self.written.values())
        return variables, [self.state_mapping[id(v)] for v in variables]


def outer_read() -> Callable[[keras.Variable], Any]:
    """Returns how a scope inside the present one reads: through it, or the variable."""
    return context.scope.get_current_value if context.scope else raw_value


def assign_all(variables: Sequence[keras.Variable], values: Sequence[Any]) -> None:
    """Assigns a value to each variable."""
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)


def with_values(
    fn: Callable[[Sequence[Any]], Any], variables: Sequence[keras.Variable]
) -> Callable[[Sequence[Any], Sequence[Any]], tuple[list, Any]]:
    """Returns a function that uses variables as one of their values: no side effects.

    Args:
        fn: From arrays to results.
        variables: Those that it may assign; others it only reads.

    Returns:
        A function from the variables' values and the arrays to the new values and the
        results.
    """
    read = outer_read()
    own = {id(variable) for variable in variables}

    def run(values, arrays):
        with Scope(read, zip(variables, values, strict=True)) as scope:
            results = fn(arrays)
        others = [v.path for key, v in scope.written.items() if key not in own]
        if others:
            raise ValueError(
                f"vectorize: `fn` assigned {others}, which isn't among `variables`: "
                "each run needs one of its own."
            )
        return [scope.state_mapping[id(v)] for v in variables], results

    return run


class differentiating:
    """Marks that a differentiated function runs."""

    def __enter__(self):
        context.depth += 1

    def __exit__(self, *args):
        context.depth -= 1
