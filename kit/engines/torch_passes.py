"""How a recorded PyTorch graph becomes shorter: copies nobody needs, work done twice.

A pass is a function that rewrites the graph of a `Recording`. `PASSES` lists them in
the order in which they run, each once: a pass stands after those that make work for it.
A pass leaves a tensor alone that is changed in place anywhere in the graph: its readers
might see another value.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import torch
from torch.fx import Graph, Node

from kit.engines.base import Tensor
from kit.engines.torch_nodes import changed_in_place

aten = torch.ops.aten


class Recording:
    """A graph, and what a pass has to know about its inputs.

    Attributes:
        graph: The graph of ATen calls. Nodes have an example of their value in
            `meta["val"]`.
        variables: Inputs that are a variable's value, and which variable's.
        constants: Inputs that are constants, and their values.
    """

    def __init__(
        self,
        graph: Graph,
        variables: Mapping[Node, keras.Variable] | None = None,
        constants: Mapping[Node, Tensor] | None = None,
    ):
        self.graph = graph
        self.variables = dict(variables or {})
        self.constants = dict(constants or {})
        # Found once: passes only take nodes out, and put in ones that don't change.
        self._changed = changed_in_place(graph)

    def calls(self, *targets: Any) -> list[Node]:
        """Returns the calls of an operator (of any of several), in their order."""
        return [
            node
            for node in self.graph.nodes
            if node.op == "call_function" and (not targets or node.target in targets)
        ]

    def unchanged(self, *nodes: Any) -> bool:
        """Returns whether nobody changes the nodes' tensors in place."""
        return self._changed.isdisjoint(nodes)

    def insert(self, before: Node, target: Any, args: tuple, meta: dict) -> Node:
        """Inserts a call before a node."""
        with self.graph.inserting_before(before):
            node = self.graph.call_function(target, args)
        node.meta = meta
        return node

    def replace(self, node: Node, replacement: Node) -> None:
        """Has another node stand for a node from now on."""
        node.replace_all_uses_with(replacement)
        self.graph.erase_node(node)


def use_constants_themselves(recording: Recording) -> None:
    """Takes out the copies of constants, and all but one constant of equal value.

    A trace copies a number in the code each time that it is used, in case that somebody
    changes the copy.
    """
    copies = recording.calls(aten.lift_fresh_copy.default)
    first: dict[tuple, Node] = {}
    same: dict[Node, Node] = {}
    for node, value in recording.constants.items():
        # What a loop takes from around it isn't copied, and has another value at
        # each call.
        copied = node.users and node.users.keys() <= set(copies)
        if copied and value.ndim == 0:
            key = (value.dtype, value.device, repr(value.item()))
            same[node] = first.setdefault(key, node)
    for node in copies:
        source = node.args[0]
        if recording.unchanged(node, source):
            recording.replace(node, same.get(source, source))


def remove_detaches(recording: Recording) -> None:
    """Takes out `detach`: a recorded graph has no gradients to cut.

    The result is the argument itself, also for those that change it in place.
    """
    for node in recording.calls(aten.detach.default):
        recording.replace(node, node.args[0])


def remove_calls_without_effect(recording: Recording) -> None:
    """Takes out calls that return what they are given: x**1, x as its own shape."""
    for node in recording.calls(aten.pow.Tensor_Scalar, *_RESHAPING):
        source = node.args[0]
        if recording.unchanged(node, source) and _does_nothing(node):
            recording.replace(node, source)


def read_variables_themselves(recording: Recording) -> None:
    """Takes out the copies that a trace makes of variables when it reads them."""
    for node in recording.calls(aten.clone.default):
        source = node.args[0]
        if (
            source in recording.variables
            and not node.kwargs
            and recording.unchanged(node, source)
        ):
            recording.replace(node, source)


def add_biases_to_products(recording: Recording) -> None:
    """Makes one `addmm` of a product and the bias that is added to it.

    Keras writes a dense layer as two steps, of sequences with a change of shape in
    between.
    """
    for node in recording.calls(aten.add.Tensor):
        if not _is_dense(recording, node):
            continue
        product, bias = node.args
        shape = None
        if product.target is aten._unsafe_view.default:
            product, shape = product.args
        args = (bias, *product.args)
        dense = recording.insert(node, aten.addmm.default, args, product.meta)
        if shape is not None:
            args = (dense, shape)
            dense = recording.insert(node, aten.view.default, args, node.meta)
        recording.replace(node, dense)


def merge_views(recording: Recording) -> None:
    """Has a view of a view look at the tensor itself.

    Takes the view out where its shape is then the tensor's own.
    """
    for node in recording.calls(aten.view.default):
        source, shape = node.args
        if source.target is aten.view.default and recording.unchanged(node, source):
            node.args = (source.args[0], shape)
            if _does_nothing(node):
                recording.replace(node, source.args[0])


def compute_once(recording: Recording) -> None:
    """Has the first of several equal calls stand for all of them."""
    first: dict[tuple, Node] = {}
    for node in recording.calls():
        if (
            isinstance(node.target, torch._ops.OpOverload)
            and not node.target._schema.is_mutable
            and torch.Tag.nondeterministic_seeded not in node.target.tags
            and recording.unchanged(node, *node.all_input_nodes)
        ):
            # As they are written: 0.0 equals -0.0, and 1 equals True.
            key = (node.target, repr(node.args), repr(node.kwargs))
            if first.setdefault(key, node) is not node:
                recording.replace(node, first[key])


PASSES: tuple[Callable[[Recording], None], ...] = (
    use_constants_themselves,
    remove_detaches,
    remove_calls_without_effect,
    read_variables_themselves,  # after what may stand between variable and copy
    add_biases_to_products,  # which are variables, not copies of them
    merge_views,  # those of sequences from dense layers, too
    compute_once,  # finds most once equal calls have equal arguments
)


def simplify(recording: Recording) -> None:
    """Runs all passes over a graph."""
    for rewrite in PASSES:
        rewrite(recording)


_RESHAPING = (aten.view.default, aten.squeeze.dim, aten.expand.default)


def _does_nothing(node):
    """Whether a call returns what it is given."""
    source, value = node.args[0].meta.get("val"), node.meta["val"]
    if source is None:
        return False
    if node.target in _RESHAPING:
        return source.shape == value.shape
    return node.args[1] == 1 and source.dtype == value.dtype  # pow


def _is_dense(recording, node):
    """Whether a call adds a bias to a product that nobody else reads.

    The product moves to where the bias is added: nothing that it is made of may
    be overwritten in between.
    """
    if node.kwargs:
        return False
    product, bias = node.args
    variable = recording.variables.get(bias)
    if variable is None or len(variable.shape) != 1:
        return False
    matrix = product
    if product.target is aten._unsafe_view.default and len(product.users) == 1:
        matrix = product.args[0]
    if matrix.target is not aten.mm.default or len(matrix.users) > 1:
        return False
    if not recording.unchanged(node, matrix, product, bias, *matrix.args):
        return False
    # addmm neither widens the product to the bias nor promotes dtypes, and adds
    # the bias to the matrix' columns.
    columns, before, after = (x.meta["val"] for x in (matrix, product, node))
    return (
        columns.shape[-1] == before.shape[-1]
        and before.shape == after.shape
        and before.dtype == after.dtype == variable._value.dtype
    )
