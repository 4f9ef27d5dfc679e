"""Replaces functions of Keras, or of a backend, while a compiled function is traced.

Each engine has a table of replacements, with the reason for each one. They are
installed when a trace begins and removed when it ends; in between, threads that don't
trace still get Keras' own functions. test_backend.py names them all.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kit.engines.scope import context


class Replacement(NamedTuple):
    """A name in a module or class, and what it stands for during a trace.

    Attributes:
        owner: Module or class in which Keras looks the name up.
        name: The name.
        make: Function from what stands there to what takes its place.
        reason: Why.
    """

    owner: Any
    name: str
    make: Callable[[Any], Any]
    reason: str


def function(
    owner: Any,
    name: str,
    replacement: Callable,
    reason: str,
    active: Callable[[], bool] = lambda: context.tracing,
) -> Replacement:
    """Replaces a function.

    Args:
        owner: See `Replacement`.
        name: See `Replacement`.
        replacement: Takes the original function, then its arguments.
        reason: See `Replacement`.
        active: Says whether the replacement is to be used at a call.
    """

    def make(original):
        @functools.wraps(original)
        def choose(*args, **kwargs):
            if active():
                return replacement(original, *args, **kwargs)
            return original(*args, **kwargs)

        return choose

    return Replacement(owner, name, make, reason)


def fast_op(
    owner: Any, name: str, op: Callable, reason: str, **options: Any
) -> Replacement:
    """Replaces a function by a faster form of it, from `kit.engines.fast_ops`.

    Not where gradients of gradients are taken, which fused operators don't have.
    """
    return function(
        owner,
        name,
        functools.partial(op, **options),
        reason,
        lambda: context.tracing and context.depth < 2,
    )


@contextlib.contextmanager
def installed(replacements: Sequence[Replacement]) -> Iterator[None]:
    """Installs replacements; restores the originals at the end."""
    originals = [(x, getattr(x.owner, x.name)) for x in replacements]
    for x, original in originals:
        setattr(x.owner, x.name, x.make(original))
    try:
        yield
    finally:
        for x, original in originals:
            setattr(x.owner, x.name, original)
