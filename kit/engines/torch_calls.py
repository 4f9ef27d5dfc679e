"""What a recorded PyTorch graph calls, made cheaper: the same operators from Python.

A small network's step is hundreds of operators that compute for less than a
microsecond each, so the way to them counts. Two things make it shorter:

- A number among an operator's arguments is wrapped into a tensor at each call, which
  takes longer than the arithmetic. Here it becomes a tensor once.
- `torch.ops.aten.mul.Tensor(x, y)` goes through Python and boxes its arguments;
  `torch.mul(x, y)` is the same operator without either, in two thirds of the time.

`TorchGraph` does both once a graph is complete. Values stay the same to the
last bit; test_torch_calls.py checks that.
"""

import functools
import types
from collections.abc import Callable
from typing import Any

# Operators that take a number, and their names with a tensor in its place.
_WITH_NUMBER = {
    f"aten.{name}.{overload}": name
    for names, overloads in (
        ("add sub mul div eq ne lt le gt ge", ("Tensor", "Scalar")),
        (
            "bitwise_and bitwise_or bitwise_xor bitwise_left_shift bitwise_right_shift",
            ("Tensor_Scalar", "Scalar"),
        ),
    )
    for name in names.split()
    for overload in overloads
}


def hold_numbers(module: Any) -> None:
    """Replaces numbers among a graph's arguments by tensors that the module holds.

    Where the result is certain to be the same: in float32, and whole numbers in int32
    and int64. (In half precision, operators compute with the number in float32.)

    Args:
        module: `torch.fx.GraphModule` of ATen calls, changed; to be recompiled.
    """
    import torch

    graph = module.graph
    held: dict[tuple, Any] = {}
    inputs = list(graph.find_nodes(op="placeholder"))
    for node in list(graph.nodes):
        name = _WITH_NUMBER.get(str(node.target))
        if name is None or node.kwargs or len(node.args) != 2:
            continue
        x, number = node.args
        value = _value(x)
        if value is None or not _keeps_its_value(number, value.dtype, name):
            continue
        # By how it is written: 0.0 equals -0.0.
        key = (repr(number), value.dtype)
        if key not in held:
            attribute = f"_number{len(held)}"
            # Not by setattr: PyTorch would look it up among the module's parameters.
            # On the CPU also for GPUs, as PyTorch does with numbers.
            module.__dict__[attribute] = torch.tensor(
                number, dtype=value.dtype, device="cpu"
            )
            first = graph.inserting_before(next(iter(graph.nodes)))
            with graph.inserting_after(inputs[-1]) if inputs else first:
                held[key] = graph.create_node("get_attr", attribute)
            held[key].meta["val"] = module.__dict__[attribute]
        node.target = getattr(torch.ops.aten, name).Tensor
        node.args = (x, held[key])


def _keeps_its_value(number, dtype, name):
    """Whether an operator computes the same with `number` as a tensor of `dtype`."""
    import torch

    if type(number) not in (int, float):
        return False
    if dtype in (torch.int32, torch.int64):
        limits = torch.iinfo(dtype)
        return (
            type(number) is int
            and limits.min <= number <= limits.max
            and name != "div"  # which makes floats of them
        )
    return dtype == torch.float32


def call_directly(module: Any) -> None:
    """Replaces ATen operators by functions of PyTorch that come down to them.

    Args:
        module: `torch.fx.GraphModule` of ATen calls, changed; to be recompiled.
    """
    import torch

    for node in module.graph.nodes:
        if not isinstance(node.target, torch._ops.OpOverload):
            continue
        try:
            # Which function PyTorch takes depends on the kinds of the arguments.
            kinds = repr(torch.fx.map_arg((node.args, node.kwargs), _kind))
            key = (node.target, kinds)
            if key not in _functions:
                _functions[key] = _find_function(node)
        except LookupError:  # an argument that we know nothing about
            continue
        if _functions[key] is not None:
            node.target = _functions[key]


_functions: dict[tuple, Callable | None] = {}


def _value(x):
    """A tensor like the one that a node will stand for, or `None`."""
    import torch

    value = x.meta.get("val") if isinstance(x, torch.fx.Node) else None
    return value if isinstance(value, torch.Tensor) else None


def _kind(x):
    value = _value(x)
    if value is None:
        raise LookupError
    return value.dtype, value.ndim


def _find_function(node):
    """PyTorch's function or method that does nothing but to call `node.target`.

    Found by its name, and tried on tensors without data: the one operator that is
    called has to be this one, with these arguments.
    """
    import torch
    from torch.utils._python_dispatch import TorchDispatchMode

    name = node.target.overloadpacket.__name__
    names = {"_to_copy": "to"}
    function = getattr(torch, name, None)
    if not isinstance(function, types.BuiltinFunctionType):
        function = getattr(torch.Tensor, names.get(name, name), None)
        if not isinstance(function, types.MethodDescriptorType):
            return None

    @functools.cache
    def empty(x):
        value = _value(x)
        if value is None:
            raise LookupError
        return torch.empty_strided(
            value.shape, value.stride(), dtype=value.dtype, device="meta"
        )

    calls = []

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            calls.append((operator, args, kwargs or {}))
            return operator(*args, **(kwargs or {}))

    args, kwargs = torch.fx.map_arg((node.args, node.kwargs), empty)
    try:
        with Recorder():
            function(*args, **kwargs)
    except Exception:  # not with these arguments, or not without data
        return None
    expected = (node.target, args, kwargs)
    return function if len(calls) == 1 and _alike(calls[0], expected) else None


def _alike(a, b):
    """Whether two nestings are the same, tensors being those very tensors."""
    import torch

    if isinstance(a, torch.Tensor) or isinstance(b, torch.Tensor):
        return a is b
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_alike, a, b))
    return type(a) is type(b) and a == b
