"""The replay buffer, held against a naive one that keeps everything in lists."""

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from hypothesis import given
from hypothesis import strategies as st

import kit
from kit.rl.environments import Environments, stacks_frames
from kit.rl.observations import FrameStacks, Observations
from kit.rl.replay import PrioritizedReplayBuffer, ReplayBuffer

pytestmark = pytest.mark.once


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
    parts = [buffer, buffer._obs, *map(vars(buffer._obs).get, ("_last", "_openings"))]
    arrays = [x for part in parts if part for x in vars(part).values()]
    return sum(x.nbytes for x in arrays if isinstance(x, np.ndarray))


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


# --- Stacks of frames -------------------------------------------------------------


class Stacks:
    """Observations of N environments as frame stacking has them, of random frames.

    Of three values, so that small frames often happen to be the same.
    """

    def __init__(self, num_envs, num_frames, padding, rng, shape=(2,)):
        self.num_frames, self.padding, self.rng = num_frames, padding, rng
        self.shape = shape
        self.obs = np.zeros((num_envs, num_frames, *shape), np.uint8)

    def _frames(self, num):
        return self.rng.integers(0, 3, (num, *self.shape), np.uint8)

    def first(self, env):
        """Begins an episode; its first observation."""
        frame = self._frames(1)
        before = {
            "reset": frame,
            "zero": np.zeros_like(frame),
            "any": self._frames(self.num_frames - 1),
        }[self.padding]
        before = np.broadcast_to(before, (self.num_frames - 1, *self.shape))
        self.obs[env] = np.concatenate([before, frame])
        return self.obs[env].copy()

    def next(self, env):
        """The next observation of the episode."""
        self.obs[env] = np.concatenate([self.obs[env, 1:], self._frames(1)])
        return self.obs[env].copy()


def assert_same_samples(plain, stacked, uniform, n_step=1):
    """Compares what is drawn, by chance and all of it."""
    assert len(plain) == len(stacked)
    if not len(plain):
        return
    for numbers in (uniform, every_index(plain)):
        indices = plain.indices(numbers)
        for x, y in zip(indices, stacked.indices(numbers), strict=True):
            np.testing.assert_array_equal(x, y)
        expected = plain.gather(indices, n_step, 0.9)
        found = stacked.gather(indices, n_step, 0.9)
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            assert value.dtype == found[name].dtype
            np.testing.assert_array_equal(value, found[name], name)


EVENTS = st.sampled_from([*[""] * 6, "terminated", "truncated", "both", "jump"])


@given(
    num_frames=st.integers(1, 5),
    capacity=st.integers(1, 12),
    padding=st.sampled_from(["reset", "zero", "any"]),
    resets_next=st.booleans(),
    prioritized=st.booleans(),
    n_step=st.integers(1, 4),
    seed=st.integers(0, 1000),
    steps=st.integers(1, 3).flatmap(
        lambda num_envs: st.lists(
            st.tuples(st.booleans(), st.booleans(), *[EVENTS] * num_envs),
            min_size=1,
            max_size=50,
        )
    ),
)
def test_a_buffer_of_frames_samples_what_a_buffer_of_stacks_does(
    num_frames, capacity, padding, resets_next, prioritized, n_step, seed, steps
):
    rng = np.random.default_rng(seed)
    num_envs = len(steps[0]) - 2
    kind = PrioritizedReplayBuffer if prioritized else ReplayBuffer
    arguments = (capacity, (num_frames, 2), "uint8", num_envs)
    plain, stacked = kind(*arguments), kind(*arguments, frame_stack=True)
    stacks = Stacks(num_envs, num_frames, padding, rng)
    segments, ended = [], np.zeros(num_envs, bool)
    first = np.array([stacks.first(env) for env in range(num_envs)])
    for buffer in (plain, stacked):
        buffer.reset(first)
    for number, (restarts, backs_up, *events) in enumerate(steps):
        valid = ~ended if resets_next else np.ones(num_envs, bool)
        terminated, truncated = (
            np.array([event in (flag, "both") for event in events]) & valid
            for flag in ("terminated", "truncated")
        )
        resets = ~valid if resets_next else terminated | truncated
        next_obs = np.zeros_like(stacks.obs)
        for env in range(num_envs):
            if events[env] == "jump":  # what no stack does: the rest is new, too
                stacks.first(env)
            next_obs[env] = stacks.next(env)
        obs = next_obs.copy()
        for env in np.flatnonzero(resets):
            obs[env] = stacks.first(env)
        ended = terminated | truncated
        action, reward = np.full(num_envs, number), rng.normal(size=num_envs)
        given_valid = valid if resets_next else None
        for buffer in (plain, stacked):
            buffer.add(
                action, reward, terminated, truncated, next_obs, obs, given_valid
            )
        if restarts and number % 5 == 0:
            ended[:] = False
            first = np.array([stacks.first(env) for env in range(num_envs)])
            for buffer in (plain, stacked):
                buffer.restart(first)
        if backs_up and number % 3 == 0:  # as kit.backups does it
            segments = [x for x in segments if stacked.holds(x[0])]
            rows = stacked.rows_since(segments[-1][0] if segments else None)
            segments.append((stacked.mark(), rows))
            restored = kind(*arguments, frame_stack=True)
            for _, rows in segments:
                restored.add_rows(rows)
            restored.set_state(stacked.get_state())
            stacked = restored
        uniform = rng.random((2, 8))
        assert_same_samples(plain, stacked, uniform, n_step)
        if prioritized and len(plain):
            indices, errors = plain.indices(uniform), rng.normal(size=(2, 8))
            for buffer in (plain, stacked):
                buffer.set_errors(indices, errors)


class Frames(gymnasium.Env):
    """Shows random frames, and ends at random."""

    observation_space = gymnasium.spaces.Box(0, 9, (3, 2), np.uint8)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._frame(), {}

    def step(self, action):
        ends = self.np_random.random(2) < 0.1
        return self._frame(), 1.0, bool(ends[0]), bool(ends[1]), {}

    def _frame(self):
        return self.np_random.integers(0, 10, (3, 2), np.uint8)


@pytest.mark.parametrize("num_envs", [None, 3])
@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("padding", ["reset", "zero", np.full((3, 2), 7, np.uint8)])
def test_frames_of_gymnasiums_own_stacks(num_envs, mode, padding):
    def make():
        return FrameStackObservation(Frames(), 4, padding_type=padding)

    one = num_envs is None
    env = make() if one else SyncVectorEnv([make] * num_envs, autoreset_mode=mode)
    assert stacks_frames(env)
    envs = Environments(env)
    arguments = (60, envs.packing.shape, envs.packing.dtype, envs.num_envs)
    plain, stacked = (
        ReplayBuffer(*arguments),
        ReplayBuffer(*arguments, frame_stack=True),
    )
    obs = envs.reset(0)
    plain.reset(obs)
    stacked.reset(obs)
    rng = np.random.default_rng(0)
    for t in range(200):
        step = envs.step(np.zeros(envs.num_envs, int))
        for buffer in (plain, stacked):
            buffer.add(
                np.full(envs.num_envs, t),
                step.reward,
                step.terminated,
                step.truncated,
                step.next_obs,
                step.obs,
                step.valid,
            )
        if t % 20 == 19:
            assert_same_samples(plain, stacked, rng.random((2, 8)), n_step=3)
    # What is put before the first frame takes no memory, or is kept once.
    openings = stacked._obs._openings
    most = 0 if isinstance(padding, str) and padding == "reset" else 1
    assert sum(uses > 0 for uses in openings._uses) == most


@pytest.mark.parametrize("padding", ["reset", "zero"])
def test_a_stack_of_four_frames_takes_the_memory_of_one(padding):
    capacity, shape = 300, (20, 20)
    buffer = ReplayBuffer(capacity, (4, *shape), "uint8", frame_stack=True)
    stacks = Stacks(1, 4, padding, np.random.default_rng(0), shape)
    obs, seen, no = stacks.first(0), [], np.array([False])
    buffer.reset(obs[None])
    for t in range(1000):
        next_obs = stacks.next(0)
        seen.append((obs, next_obs))
        obs = stacks.first(0) if t % 60 == 59 else next_obs
        end = np.array([t % 60 == 59])
        buffer.add(no, no, end, no, next_obs[None], obs[None])
    batch = buffer.gather(buffer.indices(every_index(buffer)))
    for i, (obs, next_obs) in enumerate(seen[-capacity:]):
        np.testing.assert_array_equal(batch["obs"][i], obs)
        np.testing.assert_array_equal(batch["next_obs"][i], next_obs)
    # Frames; places for 16 last ones, and for 16 times the three before a first one;
    # 23 bytes of numbers for each transition, and some for the environment.
    most = (capacity + 4 + 16 + 48) * 400 + 23 * (capacity + 4) + 100
    assert buffer.num_bytes < nbytes(buffer) < most


def test_100_000_frames_of_atari_take_0_71_gb():
    shape = (4, 84, 84)
    stacked = ReplayBuffer(100_000, shape, "uint8", frame_stack=True)
    assert 0.7056e9 < stacked.num_bytes < 0.71e9  # asked for; used as it fills
    plain = ReplayBuffer(100_000, shape, "uint8")
    assert plain.num_bytes > 3.9 * stacked.num_bytes
    million = ReplayBuffer(1_000_000, shape, "uint8", num_envs=8, frame_stack=True)
    assert million.num_bytes < 7.1e9


def stack(env, size=4):
    return FrameStackObservation(env, size)


@pytest.mark.parametrize(
    ("make", "stacked"),
    [
        (lambda env: stack(env), True),
        (lambda env: env, False),
        (lambda env: gymnasium.wrappers.TransformReward(stack(env), np.sign), True),
        (lambda env: gymnasium.wrappers.FlattenObservation(stack(env)), False),
        (lambda env: stack(gymnasium.wrappers.FlattenObservation(env)), True),
    ],
)
def test_stacks_are_seen_where_nothing_changes_them(make, stacked):
    def envs():
        return make(Frames())

    assert stacks_frames(envs()) is stacked
    vector = SyncVectorEnv([envs, envs])
    assert stacks_frames(vector) is stacked
    counted = gymnasium.wrappers.vector.RecordEpisodeStatistics(vector)
    assert stacks_frames(counted) is stacked
    flat = gymnasium.wrappers.vector.FlattenObservation(vector)
    assert not stacks_frames(flat)


@pytest.mark.parametrize("options", [{}, {"prioritized": True, "n_step": 3}])
@pytest.mark.parametrize("num_envs", [None, 2])
def test_dqn_learns_the_same_from_frames(num_envs, options, monkeypatch):
    made = []

    def learn(frame_stack):
        def make():
            return stack(gymnasium.make("CartPole-v1"))

        env = make() if num_envs is None else SyncVectorEnv([make] * num_envs)
        network = kit.q_network((4, 4), 2, units=(8,))
        kit.initialize_weights(network, 0)
        agent = kit.DQN(
            network,
            buffer_size=100,
            batch_size=8,
            learning_starts=50,
            frame_stack=frame_stack,
            **options,
        )
        agent.compile("adam")
        buffer = agent._buffer
        monkeypatch.setattr(
            agent, "_buffer", lambda x: made.append(buffer(x)) or made[-1]
        )
        agent.fit(env, 300, seed=1, verbose=0)
        return network.get_weights()

    every = [learn(frame_stack) for frame_stack in (None, True, False)]
    kinds = [type(buffer._obs) for buffer in made]
    assert kinds == [FrameStacks, FrameStacks, Observations]
    for weights in every[1:]:
        for x, y in zip(weights, every[0], strict=True):
            np.testing.assert_array_equal(x, y)


def test_single_numbers_are_no_stack():
    with pytest.raises(ValueError, match="`frame_stack` .*axis"):
        ReplayBuffer(10, (), "float32", frame_stack=True)
