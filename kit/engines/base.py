"""What an engine is: how compiled functions run on one backend."""

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
# What puts a list of tensors in its place in a function's results.
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
    """What each backend's engine does; `kit.backend` has the checks before it."""

    # Layers that take longer in a compiled loop than in a program of their own.
    slow_in_loops: tuple[type[keras.layers.Layer], ...]
    # What stands in the place of parts of Keras while this engine traces.
    replacements: list[Replacement]

    def tensor(self, x: Any) -> Tensor:
        """Returns an array as a tensor of the backend."""

    def trace(
        self,
        fn: Callable[[Sequence[Tensor]], tuple[list[Tensor], Unflatten]],
        arrays: list[Tensor],
        inductor: bool,
    ) -> Callable[[Sequence[Tensor]], Nested]:
        """Compiles a function of arrays like these.

        Args:
            fn: Returns a list of tensors, and a function that puts such a list in the
                place of the first one in the results.
            arrays: Examples of its arguments.
            inductor: Whether to compile further by TorchInductor, on PyTorch.

        Returns:
            A function from the arguments to the results, which assigns the variables.
        """

    def value_and_grad(
        self, loss_fn: Callable[[], tuple], variables: Sequence[keras.Variable]
    ) -> tuple[tuple, list]:
        """Returns results and gradients.

        Args:
            loss_fn: Returns the scalar to differentiate, and a tuple of results.
            variables: What to differentiate with respect to.

        Returns:
            The results, and a gradient for each variable, `None` where it has no part.
        """

    def check_optimizer(self, optimizer: keras.optimizers.Optimizer) -> None:
        """Raises ValueError if the backend can't compile an optimizer's step."""

    def apply_gradients(
        self,
        optimizer: keras.optimizers.Optimizer,
        grads: Sequence[Tensor],
        variables: Sequence[keras.Variable],
    ) -> None:
        """Makes an optimizer's step."""

    def gradient(
        self, fn: Callable[[list[Tensor]], Tensor], leaves: list[Tensor]
    ) -> list[Tensor]:
        """Returns the gradient of a scalar function; zeros where it has no part."""

    def release(self) -> None:
        """Frees the memory of programs that nobody can call any more."""

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


def flatten(structure: Nested) -> tuple[list, Any]:
    """Returns leaves and structure of nested containers; `None` is a leaf."""
    return optree.tree_flatten(structure, none_is_leaf=True, namespace="keras")


def eager_scan(body, carry, slices, length, reverse):
    """The loop in Python: for eager runs, and to differentiate on PyTorch."""
    ys: list[Any] = [None] * length
    for t in reversed(range(length)) if reverse else range(length):
        carry, ys[t] = body(carry, [x[t] for x in slices])
    return carry, [ops.stack(column) for column in zip(*ys, strict=True)]
