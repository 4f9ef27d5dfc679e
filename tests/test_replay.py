"""The replay buffer, held against a naive one that keeps everything in lists."""

import numpy as np
import pytest

from kit.rl.replay import ReplayBuffer

pytestmark = pytest.mark.tools


class NaiveBuffer:
    """Keeps copies of whole transitions, a list for each environment."""

    def __init__(self, capacity, num_envs):
        self.length = -(-capacity // num_envs)
        self.rings = [[] for _ in range(num_envs)]

    def add(self, env, transition):
        self.rings[env] = [*self.rings[env], transition][-self.length :]

    def transitions(self):
        return {t["obs"].tobytes(): t for ring in self.rings for t in ring}


def every_index(buffer):
    """Numbers that draw each stored transition once."""
    total = len(buffer)
    return (np.arange(total) + 0.5) / total


def gather_all(buffer):
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    return [dict(zip(batch, row, strict=True)) for row in zip(*batch.values())]  # noqa: B905


def fill(buffer, steps, obs_of, end_every=None):
    """Plays `steps` steps of one environment whose observation t is `obs_of(t)`."""
    buffer.reset(obs_of(0)[None])
    for t in range(1, steps + 1):
        end = np.array([bool(end_every) and t % end_every == 0])
        buffer.add(
            np.array([t]),
            np.array([float(t)]),
            end,
            np.array([False]),
            obs_of(t)[None],
            obs_of(t)[None],
        )


def numbered(t):
    return np.array([t, -t], "float32")


def nbytes(buffer):
    return sum(x.nbytes for x in vars(buffer).values() if isinstance(x, np.ndarray))


@pytest.mark.parametrize("resets_next", [False, True], ids=["same", "next"])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("capacity", [1, 50, 301])
def test_it_stores_what_a_naive_buffer_stores(num_envs, capacity, resets_next):
    rng = np.random.default_rng(capacity + num_envs)
    buffer = ReplayBuffer(capacity, (2,), "float32", num_envs)
    naive = NaiveBuffer(capacity, num_envs)
    ids = iter(range(10**6))

    def fresh():
        return np.array([[env, next(ids)] for env in range(num_envs)], "float32")

    obs, ended = fresh(), np.zeros(num_envs, bool)
    buffer.reset(obs)
    for step in range(1200):
        action = rng.integers(0, 5, num_envs)
        reward = rng.standard_normal(num_envs)
        next_obs, first_obs = fresh(), fresh()
        valid = ~ended if resets_next else None
        live = valid if resets_next else np.ones(num_envs, bool)
        # Some ends are both, which happens at the last step of a time limit.
        terminated = (rng.random(num_envs) < 0.15) & live
        truncated = (rng.random(num_envs) < 0.15) & live
        for env in np.flatnonzero(live):
            transition = {
                "obs": obs[env].copy(),
                "action": action[env],
                "reward": np.float32(reward[env]),
                "next_obs": next_obs[env].copy(),
                "terminated": terminated[env],
                "truncated": truncated[env],
            }
            naive.add(env, transition)
        ended = terminated | truncated
        following = next_obs.copy()
        if not resets_next:
            following[ended] = first_obs[ended]
        buffer.add(action, reward, terminated, truncated, next_obs, following, valid)
        obs = following
        if step % 100 == 99 or step < 5:
            expected = naive.transitions()
            got = gather_all(buffer)
            assert len(got) == len(buffer) == len(expected)
            assert {t["obs"].tobytes() for t in got} == set(expected)
            for transition in got:
                wanted = expected[transition["obs"].tobytes()]
                for name, value in wanted.items():
                    np.testing.assert_array_equal(transition[name], value, name)
        # The caller may use its arrays again: the buffer holds copies.
        next_obs[:], first_obs[:], action[:] = -1, -1, -1


def test_next_obs_at_an_end_is_the_last_one_and_not_the_first_of_another_episode():
    buffer = ReplayBuffer(10, (1,), "float32")
    no, yes = np.array([False]), np.array([True])
    zero = np.array([0])
    buffer.reset(np.array([[1.0]]))
    buffer.add(zero, zero, no, no, np.array([[2.0]]), np.array([[2.0]]))
    buffer.add(zero, zero, yes, no, np.array([[3.0]]), np.array([[10.0]]))
    buffer.add(zero, zero, no, yes, np.array([[11.0]]), np.array([[20.0]]))
    buffer.add(zero, zero, no, no, np.array([[21.0]]), np.array([[21.0]]))
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    assert batch["obs"].ravel().tolist() == [1, 2, 10, 20]
    assert batch["next_obs"].ravel().tolist() == [2, 3, 11, 21]
    assert batch["terminated"].tolist() == [False, True, False, False]
    assert batch["truncated"].tolist() == [False, False, True, False]


@pytest.mark.parametrize("steps", [30, 100, 260])
def test_sampling_is_uniform(steps):
    buffer = ReplayBuffer(100, (2,), "float32")
    fill(buffer, steps, numbered, end_every=7)
    stored = min(steps, 100)
    assert len(buffer) == stored
    # An even grid draws each of them as often as the others,
    grid = (np.arange(stored * 8) + 0.5) / (stored * 8)
    actions = buffer.gather(buffer.indices(grid))["action"]
    names, counts = np.unique(actions, return_counts=True)
    assert names.tolist() == list(range(steps - stored + 1, steps + 1))
    assert set(counts) == {8}
    # and so do random numbers, as far as chance has it.
    uniform = np.random.default_rng(0).random(200 * stored, np.float32)
    counts = np.bincount(buffer.gather(buffer.indices(uniform))["action"])
    counts = counts[steps - stored + 1 :]
    chi_square = ((counts - 200.0) ** 2 / 200.0).sum()
    dof = stored - 1
    assert abs(chi_square - dof) < 4 * np.sqrt(2 * dof)


def test_environments_with_more_transitions_are_drawn_more_often():
    buffer = ReplayBuffer(60, (1,), "float32", num_envs=3)
    obs = np.zeros((3, 1), "float32")
    buffer.reset(obs)
    never = np.zeros(3, bool)
    for t in range(12):  # Environment 0 acts each time, 1 every other, 2 at last.
        valid = np.array([True, t % 2 == 0, t == 11])
        buffer.add(np.arange(3), np.ones(3), never, never, obs, obs, valid)
    assert len(buffer) == 12 + 6 + 1
    env, _ = buffer.indices((np.arange(190) + 0.5) / 190)
    assert np.bincount(env).tolist() == [120, 60, 10]


def test_the_ends_of_the_unit_interval_draw_stored_transitions():
    buffer = ReplayBuffer(7, (2,), "float32")
    fill(buffer, 18, numbered)
    # Rounding in float32 must not lead past the newest.
    uniform = np.array([[0.0], [np.nextafter(np.float32(1), np.float32(0))]], "float32")
    batch = buffer.gather(buffer.indices(uniform))
    assert batch["action"].tolist() == [[12], [18]]
    assert batch["obs"].shape == (2, 1, 2)
    assert batch["reward"].shape == batch["terminated"].shape == (2, 1)


def test_images_are_stored_once_and_stay_uint8():
    shape, capacity = (20, 20, 3), 200
    buffer = ReplayBuffer(capacity, shape, np.uint8)
    fill(buffer, 500, lambda t: np.full(shape, t % 256, np.uint8), end_every=50)
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    assert batch["obs"].dtype == batch["next_obs"].dtype == np.uint8
    np.testing.assert_array_equal(
        batch["next_obs"][:, 0, 0, 0], np.arange(301, 501) % 256
    )
    assert nbytes(buffer) < 1.15 * capacity * np.prod(shape)


def test_dtypes_of_the_other_arrays():
    buffer = ReplayBuffer(4, (2,), np.float64)
    fill(buffer, 3, numbered)
    batch = buffer.gather(buffer.indices(np.zeros(2)))
    dtypes = {name: array.dtype for name, array in batch.items()}
    assert dtypes == {
        "obs": np.float64,
        "next_obs": np.float64,
        "action": np.int32,
        "reward": np.float32,
        "terminated": bool,
        "truncated": bool,
    }


def test_the_memory_for_last_observations_does_not_grow_for_ever():
    buffer = ReplayBuffer(100, (50,), "float32")
    fill(buffer, 400, lambda t: np.full(50, t, "float32"), end_every=3)
    before = nbytes(buffer)
    fill(buffer, 4000, lambda t: np.full(50, t, "float32"), end_every=3)
    assert nbytes(buffer) == before
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    np.testing.assert_array_equal(batch["next_obs"][:, 0], batch["action"])


def test_the_worst_case_is_an_end_at_each_step():
    buffer = ReplayBuffer(40, (2,), "float32")
    fill(buffer, 500, numbered, end_every=1)
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    np.testing.assert_array_equal(batch["next_obs"][:, 0], np.arange(461, 501))
    assert batch["terminated"].all()


def test_reset_forgets():
    buffer = ReplayBuffer(10, (2,), "float32")
    fill(buffer, 14, numbered, end_every=2)
    fill(buffer, 3, lambda t: numbered(100 + t))
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    assert batch["obs"][:, 0].tolist() == [100, 101, 102]
    assert batch["next_obs"][:, 0].tolist() == [101, 102, 103]
    assert not batch["terminated"].any()


def test_sampled_arrays_are_copies():
    buffer = ReplayBuffer(4, (2,), "float32")
    fill(buffer, 2, numbered)
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    for array in batch.values():
        array[...] = 1
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    assert batch["obs"][:, 0].tolist() == [0, 1]
    assert batch["action"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"capacity": 0}, ValueError, "`capacity` .*0"),
        ({"capacity": -5}, ValueError, "`capacity` .*-5"),
        ({"capacity": 2.5}, TypeError, "`capacity` .*2.5"),
        ({"num_envs": 0}, ValueError, "`num_envs` .*0"),
        ({"num_envs": "3"}, TypeError, "`num_envs` .*3"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {"capacity": 10, "obs_shape": (2,), "obs_dtype": "float32"} | arguments
    with pytest.raises(error, match=message):
        ReplayBuffer(**arguments)


def test_nothing_to_sample_from_an_empty_buffer():
    buffer = ReplayBuffer(10, (2,), "float32")
    buffer.reset(np.zeros((1, 2)))
    assert len(buffer) == 0
    with pytest.raises(ValueError, match="empty"):
        buffer.indices(np.zeros(3))
