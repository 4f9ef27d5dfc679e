"""Recording the branches of `keras.ops.cond` in PyTorch, each as if it ran alone.

A graph has no branches, so both are recorded, one after the other, and the results of
one are taken. On PyTorch `x -= y` changes the tensor itself, which the other branch
would see, taken or not. Here each branch gets a copy of what it is about to change;
from then on, `merge` has what follows work on the copy of the branch that is taken.

Nothing is copied for a branch that changes nothing but what it made itself.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from kit.engines.torch_nodes import written_arguments

_open: list[Any] = []  # what is being recorded, the innermost last


class Region:
    """A part of a recording, a context, in which copies stand for some tensors."""

    def __init__(self):
        self.copies: dict[int, tuple] = {}  # memory -> tensor in it, and its copy

    def __enter__(self):
        _open.append(self)
        return self

    def __exit__(self, *error):
        _open.pop()

    def resolve(self, x):
        """Returns what stands for a tensor here: itself, or a view of a copy."""
        while _memory(x) in self.copies:
            base, copy = self.copies[_memory(x)]
            if x.requires_grad and not copy.requires_grad:
                raise ValueError(
                    "keras.ops.cond: a branch changes a tensor in place through one "
                    "that is detached from its gradient. Change a copy: `x = x - y`."
                )
            if x.dtype != base.dtype:
                copy = copy.view(x.dtype)
            offset = x.storage_offset() - base.storage_offset()
            if (x.shape, x.stride(), offset) != (copy.shape, copy.stride(), 0):
                copy = copy.as_strided(x.shape, x.stride(), offset)
            x = copy if x.requires_grad == copy.requires_grad else copy.detach()
        return x

    def replace(self, base, copy):
        """Uses a copy in place of a tensor, and of all views of its memory."""
        if copy.stride() != base.stride():
            raise ValueError(
                "keras.ops.cond: a branch changes in place a tensor with gaps, of "
                f"strides {base.stride()}. Change a copy: `x = x - y`."
            )
        self.copies[_memory(base)] = base, copy


class Branch(Region):
    """A region in which tensors from outside of it keep their values.

    Whatever would change one, by an operator in place, an `out` argument, an index or
    a view, is found by the operator's schema, before it runs. From then on, the branch
    works on a copy.
    """

    def __init__(self):
        super().__init__()
        self.own: dict[int, Any] = {}  # memory made inside, kept alive
        self.modes = (_Watch(self), _Substitute(self))

    def __enter__(self):
        for mode in self.modes:
            mode.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        for mode in reversed(self.modes):
            mode.__exit__(*error)

    def share(self, x):
        """Returns `x`, a tensor made inside that others will see too."""
        self.own.pop(_memory(x), None)
        return x

    def copy(self, x):
        """Gives the branch a copy of the memory that a tensor from outside lies in."""
        base = x if x._base is None else x._base
        if base.requires_grad and base.is_leaf and torch.is_grad_enabled():
            raise ValueError(
                "keras.ops.cond: a branch changes in place a tensor that gradients are "
                "taken with respect to. Change a copy: `x = x - y`."
            )
        with torch.set_grad_enabled(base.requires_grad):
            self.replace(base, base.clone())


def resolve(structure: Any) -> Any:
    """Replaces the tensors of a structure by their copies in the open regions."""
    if not any(region.copies for region in _open):
        return structure

    def last(x):
        for region in _open:
            x = region.resolve(x)
        return x

    return tree_map_only(torch.Tensor, last, structure)


def merge(pred: Any, yes: Branch, no: Branch) -> None:
    """Gives tensors that a branch changed the value from the branch that is taken."""
    for memory, (base, _) in (yes.copies | no.copies).items():
        if memory not in yes.own | no.own:
            after = torch.where(pred, yes.resolve(base), no.resolve(base))
            _open[-1].replace(base, after)


class _Changing(BaseException):
    """Raised instead of running an operator that would change tensors from outside."""

    def __init__(self, memory):
        super().__init__(memory)
        self.memory = memory


class _Substitute(TorchFunctionMode):
    """Has functions work on a branch's copies; here, gradients are still to come."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if _open[-1] is not self.branch:
            return function(*args, **kwargs)
        while True:
            args, kwargs = resolve((args, kwargs))
            try:
                return function(*args, **kwargs)
            except _Changing as change:
                tensors = {_memory(x): x for x in _tensors((args, kwargs))}
                if change.memory.isdisjoint(tensors):
                    raise ValueError(
                        f"keras.ops.cond: {function} changes a tensor from outside of "
                        "its branch that isn't among its arguments."
                    ) from None
                for memory in change.memory.intersection(tensors):
                    self.branch.copy(tensors[memory])


class _Watch(TorchDispatchMode):
    """Sees each operator: which memory it makes, and which it is about to change."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        own = self.branch.own
        if _open[-1] is self.branch and operator._schema.is_mutable:
            written = written_arguments(operator._schema, args, kwargs)
            memory = set(map(_memory, _tensors(written)))
            if not memory <= own.keys():
                raise _Changing(memory - own.keys())
        before = set(map(_memory, _tensors((args, kwargs))))
        results = operator(*args, **kwargs)
        for x in _tensors(results):
            if _memory(x) not in before:
                own[_memory(x)] = x.untyped_storage()
        return results


def _tensors(structure):
    return [x for x in tree_leaves(structure) if isinstance(x, torch.Tensor)]


def _memory(x):
    """Returns a number for the memory that a tensor lies in."""
    return x.untyped_storage()._cdata
