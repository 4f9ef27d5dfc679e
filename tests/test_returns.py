"""Returns, advantages and running statistics, by hand."""

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.rl.normalization import RunningNormalization
from kit.rl.returns import (
    discounted_returns,
    explained_variance,
    generalized_advantages,
    weighted_mean,
    weighted_variance,
)


def numpy(x):
    return ops.convert_to_numpy(x)


def floats(rows):
    return np.array(rows, "float32")


# Three steps of two environments. The first one terminates in the second step, the
# other one is truncated there, in a state that the critic gives a 9.
REWARD = floats([[1, 2], [3, 4], [5, 6]])
VALUE = floats([[1, 1], [2, 2], [3, 3]])
NEXT_VALUE = floats([[2, 2], [9, 9], [4, 4]])
TERMINATED = np.array([[0, 0], [1, 0], [0, 0]], "bool")
ENDED = np.array([[0, 0], [1, 1], [0, 0]], "bool")


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        # TD errors: r + V'/2 - V, without V' where it terminated.
        (0.0, [[1, 2], [1, 6.5], [4, 5]]),
        # Each takes a quarter of the next one's, within an episode.
        (0.5, [[1 + 1 / 4, 2 + 6.5 / 4], [1, 6.5], [4, 5]]),
        # Discounted sums, less V: 1 + 3/2 - 1; 2 + 4/2 + 9/4 - 1.
        (1.0, [[1.5, 5.25], [1, 6.5], [4, 5]]),
    ],
)
def test_advantages_by_hand(gae_lambda, expected):
    compute = kit.compiled(lambda *args: generalized_advantages(*args, 0.5, gae_lambda))
    got = compute(REWARD, VALUE, NEXT_VALUE, TERMINATED, ENDED)
    np.testing.assert_allclose(numpy(got), expected, rtol=1e-6)


def test_discounted_returns_by_hand():
    compute = kit.compiled(lambda *args: discounted_returns(*args, 0.5))
    got, before = compute(REWARD, ENDED, floats([8, 0]))
    np.testing.assert_allclose(numpy(got), [[5, 2], [5.5, 5], [5, 6]])
    np.testing.assert_allclose(numpy(before), [5, 6])
    # An episode that ends with the last step leaves nothing to the next.
    _, before = compute(REWARD[:2], ENDED[:2], floats([0, 0]))
    np.testing.assert_allclose(numpy(before), [0, 0])


def test_weighted_moments_by_hand():
    x, weight = floats([1, 5, 100]), floats([1, 1, 0])
    assert numpy(weighted_mean(x, weight)) == pytest.approx(3)
    assert numpy(weighted_variance(x, weight)) == pytest.approx(4)
    assert numpy(weighted_mean(x, 0 * weight)) == 0


def test_explained_variance_by_hand():
    returns, weight = floats([1, 5, 100]), floats([1, 1, 0])
    for value, expected in (([1, 5, 0], 1), ([7, 7, 0], 0), ([2, 4, 0], 0.75)):
        got = explained_variance(floats(value), returns, weight)
        assert numpy(got) == pytest.approx(expected, abs=1e-5)


# --- Running statistics -------------------------------------------------------


def test_running_statistics_are_those_of_all_that_was_seen():
    rng = np.random.default_rng(0)
    layer = RunningNormalization()
    layer.build((None, 2, 3))
    parts = [rng.normal(5 * i, 1 + i, (20 + i, 2, 3)).astype("f") for i in range(4)]
    update = kit.compiled(lambda x, weight: layer.update(x, weight))
    seen = []
    for part in parts:
        weight = (rng.random(len(part)) < 0.7).astype("float32")
        update(part, weight)
        seen.append(part[weight == 1])
    seen = np.concatenate(seen)
    np.testing.assert_allclose(numpy(layer.mean), seen.mean(axis=0), rtol=1e-4)
    np.testing.assert_allclose(numpy(layer.variance), seen.var(axis=0), rtol=1e-4)
    assert numpy(layer.count) == len(seen)
    normal = numpy(layer(seen))
    np.testing.assert_allclose(normal.mean(axis=0), np.zeros((2, 3)), atol=1e-3)
    np.testing.assert_allclose(normal.std(axis=0), np.ones((2, 3)), rtol=1e-3)


def test_statistics_of_two_batches_by_hand():
    layer = RunningNormalization()
    layer.build((None,))
    layer.update(floats([0, 2]))  # mean 1, variance 1
    layer.update(floats([9, 9, 9, 9, 11, 13]))  # mean 10, variance (4 + 1 + 9) / 6
    # Of all eight the mean is (2 + 60) / 8. Variance: that within the two, and that
    # between them, 2/8 * 6/8 * (10 - 1)^2.
    assert numpy(layer.mean) == 7.75
    within = (2 * 1 + 14) / 8
    assert numpy(layer.variance) == pytest.approx(within + 3 / 16 * 81, rel=1e-6)
    assert numpy(layer.count) == 8


def test_normalization_cuts_and_keeps_signs():
    layer = RunningNormalization(center=False, clip=2.0)
    layer.build((None,))
    np.testing.assert_allclose(numpy(layer(floats([1, -3]))), [1, -2])
    layer.update(floats([0, 8]))  # mean 4, variance 16
    np.testing.assert_allclose(numpy(layer(floats([4, -4]))), [1, -1], rtol=1e-6)
    layer.update(floats([7, 7]), floats([0, 0]))
    assert numpy(layer.mean) == 4


def test_statistics_are_saved(tmp_path):
    layer = RunningNormalization(clip=3.0)
    model = keras.Sequential([keras.Input((2,)), layer])
    layer.update(floats([[1, 2], [3, 8]]))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    x = floats([[0, 1], [9, 0]])
    np.testing.assert_allclose(numpy(loaded(x)), numpy(model(x)), rtol=1e-6)
    assert numpy(loaded(x)).max() == 3
