import itertools

import numpy as np

from kit import random
from kit.rl.exploration import UniformRows, linear_epsilon


def test_epsilon_by_hand():
    got = linear_epsilon([0.0, 0.1, 0.2, 0.4, 0.7, 1.0], 0.9, 0.1, 0.4)
    np.testing.assert_allclose(got, [0.9, 0.7, 0.5, 0.1, 0.1, 0.1], rtol=1e-6)
    assert got.dtype == np.float32
    assert linear_epsilon(0.5, 0.3, 0.3, 1.0) == np.float32(0.3)


def test_rows_are_uniform_and_never_the_same():
    rows = UniformRows(random.Generator(0), (3, 2000))
    drawn = np.stack(list(itertools.islice(rows, 7)))  # more than one call makes
    assert drawn.shape == (7, 3, 2000)
    assert len(np.unique(drawn)) == drawn.size
    assert drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=10, range=(0, 1))
    assert ((counts - drawn.size / 10) ** 2).sum() / (drawn.size / 10) < 27.9  # p 0.001
    again = next(UniformRows(random.Generator(0), (3, 2000)))
    np.testing.assert_array_equal(again, drawn[0])
    assert np.any(next(UniformRows(random.Generator(1), (3, 2000))) != drawn[0])
