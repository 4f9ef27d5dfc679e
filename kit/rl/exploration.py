"""When to act at random: epsilon, which falls, and the numbers that decide."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import compiled

ACCEPTED = {
    "progress": checks.array(interval="[0, inf)"),
    "start": checks.FRACTION,
    "end": checks.FRACTION,
    "fraction": checks.real("(0, 1]"),
    "generator": checks.instance(random.Generator, what="a kit.random.Generator"),
    "shape": checks.SIZES,
}


def linear_epsilon(
    progress: Any, start: float, end: float, fraction: float
) -> np.ndarray:
    """Returns the probability of a random action, which falls linearly, then stays.

    Args:
        progress: Share of the training that is over, in [0, 1]; any shape.
        start: Probability at the beginning.
        end: Probability from `fraction` on.
        fraction: Share of the training in which it falls; above 0.

    Returns:
        float32 of the shape of `progress`.
    """
    checks.check("linear_epsilon", locals(), ACCEPTED)
    done = np.minimum(np.asarray(progress) / fraction, 1.0)
    return (start + (end - start) * done).astype(np.float32)


class UniformRows:
    """Arrays of random numbers in [0, 1), without end.

    A call to draw costs more than the numbers do: it makes many rows.

    Args:
        generator: What is drawn from.
        shape: Shape of an array.

    Yields float64 arrays, with 32 random bits in each number: a large buffer needs more
    than a float32 has.
    """

    def __init__(self, generator: random.Generator, shape: tuple[int, ...]):
        checks.check("UniformRows", locals(), ACCEPTED)
        self.generator = generator
        self.rows = max(1, 2**14 // math.prod(shape))
        self._draw = _bits((self.rows, *shape))
        self._key: np.ndarray | None = None  # of the rows that are drawn
        self._row = self.rows  # the next one

    def __iter__(self) -> Iterator[np.ndarray]:
        """Returns the iterator, which is this object."""
        return self

    def __next__(self) -> np.ndarray:
        """Returns the next array."""
        if self._row == self.rows:
            self._fill(ops.convert_to_numpy(self.generator.next()), 0)
        self._row += 1
        return self._drawn[self._row - 1]

    def get_state(self) -> dict[str, Any]:
        """Returns which array comes next, for a backup."""
        return {"key": self._key, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on from what `get_state` returned."""
        if state["key"] is not None:
            self._fill(state["key"], state["row"])

    def _fill(self, key, row):
        self._key, self._row = np.array(key), row
        bits = ops.convert_to_numpy(self._draw(self._key))
        self._drawn = bits.view(np.uint32) / 2.0**32


@functools.lru_cache(maxsize=8)
def _bits(shape):
    """The program that draws so many bits from a key: one for all agents."""
    return compiled(lambda key: random.bits(key, shape))
