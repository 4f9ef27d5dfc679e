"""What a call in a recorded PyTorch graph does, by its operator's schema and tags."""

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.fx import Graph, Node

aten = torch.ops.aten

# Arithmetic on lists of tensors, as Keras' optimizers and gradient clipping use it.
_FOREACH = {
    *(aten._foreach_add, aten._foreach_add_, aten._foreach_sub, aten._foreach_sub_),
    *(aten._foreach_mul, aten._foreach_mul_, aten._foreach_div, aten._foreach_div_),
    *(aten._foreach_addcmul, aten._foreach_addcmul_),
    *(aten._foreach_addcdiv, aten._foreach_addcdiv_),
    *(aten._foreach_maximum, aten._foreach_maximum_),
    *(aten._foreach_minimum, aten._foreach_minimum_),
    *(aten._foreach_sqrt, aten._foreach_sqrt_, aten._foreach_pow, aten._foreach_norm),
    *(aten._foreach_abs, aten._foreach_abs_, aten._foreach_neg, aten._foreach_neg_),
}
_COPIES = {aten.clone, aten._to_copy}
# Pointwise operators that look at the values of whole numbers: division by zero raises,
# and so does a number to fill in that the dtype doesn't hold.
_CHECKED = {
    *(aten.div, aten.div_, aten.fmod, aten.fmod_, aten.remainder, aten.remainder_),
    *(aten.masked_fill, aten.masked_fill_),
}


def may_fail(node: Node) -> bool:
    """Returns whether a call can raise, depending on the values it gets.

    Only calls that are known to be harmless can't: pointwise operators, copies, the
    arithmetic on lists in `_FOREACH`, and taking one of several results.
    """
    if node.op != "call_function" or node.target is operator.getitem:
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    packet = node.target.overloadpacket
    if packet in _CHECKED:
        value = node.meta.get("val")
        return not (isinstance(value, torch.Tensor) and value.is_floating_point())
    harmless = packet in _FOREACH or packet in _COPIES
    return not harmless and torch.Tag.pointwise not in node.target.tags


def is_view(node: Node) -> bool:
    """Returns whether a call's result lies in the memory of one of its arguments."""
    if node.target is operator.getitem:  # one of several
        return is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    return schema is not None and any(
        r.alias_info is not None and not r.alias_info.is_write for r in schema.returns
    )


def readers(node: Node) -> set[Node]:
    """Returns the calls that use a node's tensor, through views of it too."""
    found = set()
    for user in node.users:
        found.add(user)
        if is_view(user):
            found |= readers(user)
    return found


def written_arguments(
    schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> list[Any]:
    """Returns the arguments that an operator writes to, such as `self` and `out`."""
    names = [argument.name for argument in schema.arguments]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return [
        given[argument.name]
        for argument in schema.arguments
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and argument.name in given
    ]


def changed_in_place(graph: Graph) -> set[Node]:
    """Returns the nodes whose tensors some call overwrites, through views too."""
    changed: set[Node] = set()
    for node in graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        for value in written_arguments(schema, node.args, node.kwargs):
            changed.update(value if isinstance(value, list | tuple) else [value])
        changed.add(node)  # returns what it wrote to
    # Whoever looks at the same memory through a view has changed as well.
    before = -1
    while before != len(changed):
        before = len(changed)
        for node in graph.nodes:
            if is_view(node):
                together = (node, *node.all_input_nodes)
                if not changed.isdisjoint(together):
                    changed.update(together)
    return changed
