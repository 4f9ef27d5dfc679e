"""The interface of an engine, which compiles and runs functions on one backend."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

import keras
import optree
from keras import ops

from kit.engines.replacements import Replacement

# A tensor of the running backend (`tf.Tensor`, `jax.Array`, `torch.Tensor`), or what
# it can be made of: a NumPy array, a number, a Keras variable. The backends share no
# type, so a type checker sees `Any`.
Tensor: TypeAlias = Any
# Any nesting of tuples, lists, dicts and named tuples of tensors, or one tensor.
Nested: TypeAlias = Any
# Restores the structure of a function's results from a list of tensors.
Unflatten: TypeAlias = Callable[[Sequence[Tensor]], Nested]


CONVOLUTIONS: tuple[type[keras.layers.Layer], ...] = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


class Engine(Protocol):
    """The interface of each backend's engine. `kit.backend` checks the arguments."""

    # Layers that take longer in a compiled loop than in a program of their own.
    slow_in_loops: tuple[type[keras.layers.Layer], ...]
    # Functions of Keras that this engine replaces while it traces.
    replacements: list[Replacement]

    def tensor(self, x: Any) -> Tensor:
        """Returns an array as a tensor of the backend."""

    def trace(
        self,
        fn: Callable[[Sequence[Tensor]], tuple[list[Tensor], Unflatten]],
        arrays: list[Tensor],
        inductor: bool,
    ) -> Callable[[Sequence[Tensor]], Nested]:
        """Compiles a function for arguments of these shapes and dtypes.

        Args:
            fn: Returns its results as a list of tensors, and a function that restores
                their structure.
            arrays: Example arguments; they set shapes and dtypes.
            inductor: Whether to compile further with TorchInductor (PyTorch only).

        Returns:
            A function that takes the arguments, assigns the variables and returns the
            results.
        """

    def value_and_grad(
        self, loss_fn: Callable[[], tuple], variables: Sequence[keras.Variable]
    ) -> tuple[tuple, list]:
        """Returns results and gradients.

        Args:
            loss_fn: Returns the scalar to differentiate, and a tuple of results.
            variables: What to differentiate with respect to.

        Returns:
            The results, and a gradient for each variable: `None` if the loss doesn't
            depend on it.
        """

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Raises ValueError if the backend can't compile an optimizer's step."""

    def apply_gradients(
        self,
        optimizer: keras.optimizers.Optimizer,
        grads: Sequence[Tensor],
        variables: Sequence[keras.Variable],
    ) -> None:
        """Applies gradients to variables: one step of the optimizer."""

    def gradient(
        self, fn: Callable[[list[Tensor]], Tensor], leaves: list[Tensor]
    ) -> list[Tensor]:
        """Returns the gradient of a scalar function; zeros if it ignores an input."""

    def release(self) -> None:
        """Frees the memory of programs that are no longer referenced."""

    def set_random_seed(self, seed: int) -> None:
        """Seeds the framework's own random numbers, if it has any."""

    def import_no_other_framework(self) -> None:
        """See `kit.backend.import_no_other_framework`."""

    def scan(
        self,
        body: Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[list, list]],
        carry: list[Tensor],
        slices: list[Tensor],
        length: int,
        reverse: bool,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Runs a loop over the leading axis of `slices`; see `kit.scan`."""

    def vectorize(
        self,
        fn: Callable[[Sequence[Tensor]], list[Tensor]],
        variables: Sequence[keras.Variable],
        values: list[Tensor],
        arrays: list[Tensor],
        num_runs: int,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Runs a function once for each set of the variables' values.

        Args:
            fn: From slices of `arrays` to results.
            variables: What it may assign.
            values: The variables' values, with a leading axis of runs.
            arrays: Arguments, with a leading axis of runs.
            num_runs: Number of runs.

        Returns:
            The new values and the results, with a leading axis of runs.
        """


def flatten(structure: Nested) -> tuple[list, Any]:
    """Returns leaves and structure of nested containers; `None` is a leaf."""
    return optree.tree_flatten(structure, none_is_leaf=True, namespace="keras")


def one_after_another(scan, run, values, arrays, num_runs):
    """The runs of `Engine.vectorize` as a loop.

    Args:
        scan: The engine's.
        run: From values and arrays of one run to new values and results.
        values: As `Engine.vectorize` has them.
        arrays: As `Engine.vectorize` has them.
        num_runs: As `Engine.vectorize` has it.
    """
    count = len(values)

    def body(carry, slices):
        new_values, results = run(slices[:count], slices[count:])
        return carry, [*new_values, *results]

    _, ys = scan(body, [], [*values, *arrays], num_runs, reverse=False)
    return ys[:count], ys[count:]


def scan_of_structures(scan):
    """Returns the engine's `scan` for nested carries and slices, without checks."""

    def scan_structures(fn, init, xs, reverse=False):
        carry, carry_spec = flatten(init)
        slices, xs_spec = flatten(xs)
        y_spec: Any = None

        def body(carry, slices):
            nonlocal y_spec
            result = fn(carry_spec.unflatten(carry), xs_spec.unflatten(slices))
            ys, y_spec = flatten(result[1])
            return flatten(result[0])[0], ys

        carry, ys = scan(body, carry, slices, slices[0].shape[0], reverse)
        return carry_spec.unflatten(carry), y_spec.unflatten(ys)

    return scan_structures


def eager_scan(body, carry, slices, length, reverse):
    """The loop in Python: for eager runs, and to differentiate on PyTorch."""
    ys: list[Any] = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        carry, ys[t] = body(carry, [x[t] for x in slices])
    return carry, [ops.stack(column) for column in zip(*ys, strict=True)]
