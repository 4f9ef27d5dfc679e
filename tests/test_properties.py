"""What holds for any values: Hypothesis looks for a case in which it doesn't.

The profile in conftest.py makes the same few examples in each run. Shapes stay the same
wherever a function is compiled: each new one would be another program.
"""

import functools

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import kit
from kit import random
from kit.capsnet import squash
from kit.rl.exploration import linear_epsilon
from kit.rl.replay import ReplayBuffer
from kit.rl.returns import discounted_returns, generalized_advantages

T, N = 5, 2  # time steps, environments
SHARES = st.floats(0, 1, width=32)
SEEDS = st.integers(0, 2**32 - 1)


def numpy(x):
    return keras.ops.convert_to_numpy(x)


def floats(shape, largest=100.0):
    values = st.floats(-largest, largest, width=32, allow_subnormal=False)
    return arrays("float32", shape, elements=values)


@functools.cache
def program(fn):
    """The compiled function, the same for all examples."""
    return kit.compiled(fn)


# --- The replay buffer ------------------------------------------------------------

ENDS = st.sampled_from(["", "", "", "terminated", "truncated", "both"])


@given(
    capacity=st.integers(1, 12),
    resets_next=st.booleans(),
    steps=st.integers(1, 3).flatmap(
        lambda num_envs: st.lists(
            st.tuples(*[ENDS] * num_envs), min_size=1, max_size=40
        )
    ),
)
def test_a_replay_buffer_gives_back_the_latest_transitions_in_order(
    capacity, resets_next, steps
):
    num_envs = len(steps[0])
    buffer = ReplayBuffer(capacity, (2,), "int32", num_envs)
    stored = [[] for _ in range(num_envs)]
    count = 0

    def show():
        """Observations that were never shown before."""
        nonlocal count
        count += 1
        return np.array([[env, count] for env in range(num_envs)])

    obs, ended = show(), np.zeros(num_envs, bool)
    buffer.reset(obs)
    for number, ends in enumerate(steps):
        valid = ~ended if resets_next else np.ones(num_envs, bool)
        terminated, truncated = (
            np.array([end in (kind, "both") for end in ends]) & valid
            for kind in ("terminated", "truncated")
        )
        action, reward = np.full(num_envs, number), np.arange(num_envs) + number / 4
        next_obs, first_obs = show(), show()
        ended = terminated | truncated
        following = next_obs.copy()
        if not resets_next:
            following[ended] = first_obs[ended]
        for env in np.flatnonzero(valid):
            stored[env].append(
                {
                    "obs": obs[env].tolist(),
                    "action": number,
                    "reward": env + number / 4,
                    "next_obs": next_obs[env].tolist(),
                    "terminated": bool(terminated[env]),
                    "truncated": bool(truncated[env]),
                }
            )
        given_valid = valid if resets_next else None
        buffer.add(
            action, reward, terminated, truncated, next_obs, following, given_valid
        )
        obs = following
    length = -(-capacity // num_envs)
    expected = [transition for ring in stored for transition in ring[-length:]]
    assert len(buffer) == len(expected)
    if not expected:
        return
    batch = buffer.gather(buffer.indices((np.arange(len(buffer)) + 0.5) / len(buffer)))
    got = [
        {name: column[i].tolist() for name, column in batch.items()}
        for i in range(len(buffer))
    ]
    assert got == expected


# --- Returns ----------------------------------------------------------------------


@given(
    reward=floats((T, N)),
    value=floats((T, N)),
    next_value=floats((T, N)),
    terminated=arrays("bool", (T, N)),
    truncated=arrays("bool", (T, N)),
    gamma=SHARES,
    gae_lambda=SHARES,
)
def test_advantages_are_what_their_recursion_says(
    reward, value, next_value, terminated, truncated, gamma, gae_lambda
):
    ended = terminated | truncated

    def advantage(t, n):
        rest = 0.0 if terminated[t, n] else float(next_value[t, n])
        delta = float(reward[t, n]) + gamma * rest - float(value[t, n])
        if ended[t, n] or t == T - 1:
            return delta
        return delta + gamma * gae_lambda * advantage(t + 1, n)

    got = program(generalized_advantages)(
        reward, value, next_value, terminated, ended, gamma, gae_lambda
    )
    expected = [[advantage(t, n) for n in range(N)] for t in range(T)]
    np.testing.assert_allclose(numpy(got), expected, rtol=1e-5, atol=1e-3)


@given(
    reward=floats((T, N)),
    ended=arrays("bool", (T, N)),
    before=floats((N,)),
    gamma=SHARES,
)
def test_discounted_returns_are_what_their_recursion_says(reward, ended, before, gamma):
    def total(t, n):
        if t < 0:
            return float(before[n])
        earlier = 0.0 if t and ended[t - 1, n] else total(t - 1, n)
        return float(reward[t, n]) + gamma * earlier

    totals, after = program(discounted_returns)(reward, ended, before, gamma)
    expected = [[total(t, n) for n in range(N)] for t in range(T)]
    np.testing.assert_allclose(numpy(totals), expected, rtol=1e-5, atol=1e-3)
    np.testing.assert_array_equal(numpy(after), numpy(totals)[-1] * ~ended[-1])


# --- Random numbers ---------------------------------------------------------------


def key_of(seed):
    """A key from a seed that is data: `kit.random.key` takes an integer."""
    return np.array([0, seed], "int64").astype("uint32").astype("int32")


def split(key):
    return random.split(key, 300)


@given(first=SEEDS, second=SEEDS)
def test_keys_of_splits_never_collide(first, second):
    seeds = sorted({first, second})
    keys = [numpy(program(split)(key_of(seed))) for seed in seeds]
    rows = {tuple(row) for row in np.concatenate(keys).tolist()}
    assert len(rows) == 300 * len(seeds)
    assert rows.isdisjoint((0, int(key_of(seed)[1])) for seed in seeds)


def draw(key, minval, maxval, low, high, p):
    keys = random.split(key, 5)
    return (
        random.uniform(keys[0], (50,), minval, maxval),
        random.randint(keys[1], (50,), low, high),
        random.truncated_normal(keys[2], (50,)),
        random.bernoulli(keys[3], (50,), p),
        random.permutation(keys[4], 33, 3),
    )


@given(
    seed=SEEDS,
    bounds=st.tuples(*[st.floats(-1000, 1000, width=32)] * 2).map(sorted),
    low=st.integers(-(2**30), 2**30 - 1),
    size=st.integers(1, 2**30),
    p=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_draws_stay_in_their_ranges(seed, bounds, low, size, p):
    uniform, integers, normal, coins, orders = map(
        numpy, program(draw)(key_of(seed), *bounds, low, low + size, p)
    )
    assert bounds[0] <= uniform.min() and uniform.max() <= bounds[1]
    assert low <= integers.min() and integers.max() < low + size
    assert np.abs(normal).max() <= 2
    assert p == 0.5 or (coins == bool(p)).all()
    np.testing.assert_array_equal(np.sort(orders), [range(33)] * 3)


# --- Capsules, exploration --------------------------------------------------------


@given(s=floats((4, 3), largest=1000.0))
def test_squash_shortens_and_keeps_the_direction(s):
    v = numpy(program(squash)(s)).astype("float64")
    s = s.astype("float64")
    before, after = np.linalg.norm(s, axis=1), np.linalg.norm(v, axis=1)
    assert (after < 1 + 1e-6).all()
    # The formula, but for the epsilon under the root, which only short ones feel.
    long = before > 0.1
    expected = before**2 / (1 + before**2)
    np.testing.assert_allclose(after[long], expected[long], rtol=1e-4)
    np.testing.assert_array_less(after[~long], 0.011)
    np.testing.assert_allclose(
        np.sum(s * v, axis=1), before * after, rtol=1e-4, atol=1e-6
    )


@given(
    progress=st.lists(st.floats(0, 1), min_size=1, max_size=20).map(sorted),
    start=SHARES,
    end=SHARES,
    fraction=st.floats(0.01, 1),
)
def test_epsilon_goes_one_way_from_its_start_to_its_end(progress, start, end, fraction):
    first, *way, last = linear_epsilon([0, *progress, 1], start, end, fraction).tolist()
    assert (first, last) == pytest.approx((start, end), abs=1e-7)
    path = [first, *way, last]
    assert path == sorted(path, reverse=start > end)
    over = np.array(progress) >= fraction
    assert (np.array(way)[over] == last).all()


# --- Structures -------------------------------------------------------------------


def nested(leaves):
    """Any nesting of dicts, lists and tuples."""
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, min_size=1, max_size=3),
            st.tuples(inner),
            st.tuples(inner, inner),
            st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
        ),
        max_leaves=6,
    )


def check_scan(xs, wrap):
    """Scans over a structure; the body hands on what it is given."""

    def scan(xs):
        first = keras.tree.map_structure(lambda x: x[0], xs)
        return kit.scan(lambda carry, x: (x, {"was": carry, "is": (x,)}), first, xs)

    carry, ys = wrap(scan)(xs)
    before = keras.tree.map_structure(lambda x: np.concatenate([x[:1], x[:-1]]), xs)
    last = keras.tree.map_structure(lambda x: x[-1], xs)
    for got, expected in ((carry, last), (ys["is"][0], xs), (ys["was"], before)):
        keras.tree.assert_same_structure(got, expected)
        keras.tree.map_structure(
            lambda a, b: np.testing.assert_array_equal(numpy(a), b), got, expected
        )


@given(xs=nested(floats((3, 2))))
def test_scan_hands_on_any_structure(xs):
    check_scan(xs, lambda fn: fn)


# Each is a program of its own.
@settings(max_examples=5)
@given(xs=nested(floats((3, 2))))
def test_a_compiled_scan_hands_on_any_structure(xs):
    check_scan(xs, kit.compiled)
