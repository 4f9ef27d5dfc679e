"""Epsilon-greedy exploration: the schedule of epsilon, and random numbers in bulk."""

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
    "start": checks.array("", interval="[0, 1]"),
    "end": checks.array("", interval="[0, 1]"),
    "fraction": checks.array("", interval="(0, 1]"),
    "generator": checks.instance(random.Generator, what="a kit.random.Generator"),
    "shape": checks.SIZES,
}


def linear_epsilon(progress: Any, start: float, end: float, fraction: float) -> Any:
    """Returns the probability of a random action: it falls linearly, then stays.

    Args:
        progress: Share of the training so far, in [0, 1]; any shape.
        start: Probability at the beginning.
        end: Probability from `fraction` on.
        fraction: Share of the training in which it falls; above 0.

    Returns:
        float32 with the shape of `progress`: a tensor if that is one, else an array.
    """
    checks.check("linear_epsilon", locals(), ACCEPTED)
    if ops.is_tensor(progress):
        done = ops.minimum(progress / fraction, 1.0)
        return ops.cast(start + (end - start) * done, "float32")
    done = np.minimum(np.asarray(progress) / fraction, 1.0)
    return (start + (end - start) * done).astype(np.float32)


class UniformRows:
    """Infinite iterator over arrays of random numbers in [0, 1).

    It draws many arrays at once, as a call costs more than the numbers.

    Args:
        generator: Generator to draw from.
        shape: Shape of an array.

    Yields float64 arrays, with 32 random bits in each number: float32 has too few to
    choose from a large buffer.
    """

    def __init__(self, generator: random.Generator, shape: tuple[int, ...]):
        checks.check("UniformRows", locals(), ACCEPTED)
        self.generator = generator
        self.rows = max(1, 2**14 // math.prod(shape))
        self._draw = _bits((self.rows, *shape))
        self._key: np.ndarray | None = None  # of the current rows
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
        """Returns the position of the next array, for a backup."""
        return {"key": self._key, "row": self._row}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from the result of `get_state`."""
        if state["key"] is not None:
            self._fill(state["key"], state["row"])

    def _fill(self, key, row):
        self._key, self._row = np.array(key), row
        bits = ops.convert_to_numpy(self._draw(self._key))
        self._drawn = bits.view(np.uint32) / 2.0**32


@functools.lru_cache(maxsize=8)
def _bits(shape):
    """Returns the program that draws bits of a shape from a key, for all agents."""
    return compiled(lambda key: random.bits(key, shape))
