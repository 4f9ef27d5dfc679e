"""When to act at random: epsilon, which falls, and the numbers that decide."""

import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from keras import ops

from kit import random
from kit.backend import compiled


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
    done = np.minimum(np.asarray(progress) / fraction, 1.0)
    return (start + (end - start) * done).astype(np.float32)


def uniform_rows(
    generator: random.Generator, shape: tuple[int, ...]
) -> Iterator[np.ndarray]:
    """Yields arrays of random numbers in [0, 1), without end.

    A call to draw costs more than the numbers do: it makes many rows.

    Args:
        generator: What is drawn from.
        shape: Shape of an array.

    Yields:
        float64, with 32 random bits each: a large buffer needs more than a float32 has.
    """
    rows = max(1, 2**14 // math.prod(shape))
    draw = _bits((rows, *shape))
    while True:
        bits = ops.convert_to_numpy(draw(generator.next()))
        yield from bits.view(np.uint32) / 2.0**32


@functools.lru_cache(maxsize=8)
def _bits(shape):
    """The program that draws so many bits from a key: one for all agents."""
    return compiled(lambda key: random.bits(key, shape))
