"""Environments in `keras.ops` make the same steps as those that they are made after."""

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.envs.registration import registry

import kit
from kit import envs
from kit.rl import functional

NUM = 10_000
to_numpy = keras.ops.convert_to_numpy


def run(function, *arguments):
    """Calls a function as a compiled program; returns NumPy arrays."""
    result = kit.compiled(function)(*arguments)
    return keras.tree.map_structure(to_numpy, result)


def step(env, state, action):
    """Makes one step, and observes; returns NumPy arrays."""

    def both(state, action):
        after, reward, terminated, truncated = env.step(
            state, action, kit.random.key(0)
        )
        return after, env.observe(after), reward, terminated, truncated

    after, obs, reward, terminated, truncated = run(both, state, action)
    assert reward.dtype == "float32" and terminated.dtype == truncated.dtype == bool
    assert not truncated.any()
    return after, obs, reward, terminated


# --- Classic control ----------------------------------------------------------

# Of each environment: Gymnasium's, and the ranges of the states' numbers.
PI = np.pi
CLASSIC = {
    "CartPole": ("CartPole-v1", [-2.5, -3, -0.22, -3], [2.5, 3, 0.22, 3]),
    "Acrobot": ("Acrobot-v1", [-PI, -PI, -4 * PI, -9 * PI], [PI, PI, 4 * PI, 9 * PI]),
    "MountainCar": ("MountainCar-v0", [-1.2, -0.07], [0.6, 0.07]),
    "MountainCarContinuous": ("MountainCarContinuous-v0", [-1.2, -0.07], [0.6, 0.07]),
    "Pendulum": ("Pendulum-v1", [-20, -8], [20, 8]),
}


def play_gymnasium(name, states, actions):
    """Returns what Gymnasium's environment makes of states and actions."""
    env = gymnasium.make(CLASSIC[name][0]).unwrapped
    env.reset(seed=0)
    env.render_mode = None
    results = []
    for state, action in zip(states, actions, strict=True):
        env.state = state.astype("float64")
        if name == "CartPole":  # It warns of steps after the end.
            env.steps_beyond_terminated = None
        obs, reward, terminated, _, _ = env.step(action)
        results.append((np.array(obs), reward, terminated))
    return map(np.array, zip(*results, strict=True))


def draw_transitions(name):
    rng = np.random.default_rng(0)
    _, low, high = CLASSIC[name]
    states = rng.uniform(low, high, (NUM, len(low))).astype("float32")
    space = getattr(envs, name).action_space
    if isinstance(space, gymnasium.spaces.Discrete):
        return states, rng.integers(space.n, size=NUM).astype("int32")
    # Some actions are beyond the limits.
    actions = 1.2 * space.high * rng.uniform(-1, 1, (NUM, 1))
    return states, actions.astype("float32")


@pytest.mark.parametrize("name", CLASSIC)
def test_classic_control_steps_as_gymnasium(name):
    states, actions = draw_transitions(name)
    expected_obs, expected_reward, expected_end = play_gymnasium(name, states, actions)
    _, obs, reward, terminated = step(getattr(envs, name)(NUM), states, actions)
    # Acrobot turns by up to 5 rad a step: its four slopes amplify what is rounded.
    tolerance = 5e-4 if name == "Acrobot" else 2e-6
    np.testing.assert_allclose(obs, expected_obs, rtol=tolerance, atol=tolerance)
    np.testing.assert_array_equal(terminated, expected_end)
    np.testing.assert_allclose(reward, expected_reward, rtol=1e-5, atol=1e-5)
    assert expected_end.any() == (name != "Pendulum")


@pytest.mark.parametrize("name", CLASSIC)
def test_spaces_and_limits_are_gymnasiums(name):
    env, spec = getattr(envs, name)(3), gymnasium.spec(CLASSIC[name][0])
    theirs = gymnasium.make(CLASSIC[name][0])
    assert env.action_space == theirs.action_space
    np.testing.assert_allclose(env.observation_space.low, theirs.observation_space.low)
    np.testing.assert_allclose(
        env.observation_space.high, theirs.observation_space.high
    )
    assert env.max_episode_steps == spec.max_episode_steps


# States one step before an edge: the action, the velocities; and what they lead to.
EDGES = {
    "CartPole": [
        ([2.3999, 1.0, 0, 0], 1, True),
        ([2.37, 1.0, 0, 0], 1, False),
        ([-2.3999, -1.0, 0, 0], 0, True),
        ([0, 0, 0.2094, 1.0], 1, True),
        ([0, 0, 0.18, 1.0], 1, False),
        ([0, 0, -0.2094, -1.0], 0, True),
    ],
    "Acrobot": [
        ([PI, 0, 0, 0], 1, True),
        ([PI / 2, 0, 0, 0], 1, False),
        ([0, 0, 0, 0], 1, False),
    ],
    "MountainCar": [
        ([0.499, 0.01], 2, True),
        ([0.48, 0.01], 2, False),
        ([0.58, -0.01], 0, False),  # backwards over the goal
        ([-1.2, -0.05], 0, False),
    ],
    "MountainCarContinuous": [
        ([0.449, 0.01], [1.0], True),
        ([0.43, 0.01], [1.0], False),
        ([0.5, -0.01], [-1.0], False),
        ([-1.2, -0.05], [-1.0], False),
    ],
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    states, actions, expected = zip(*EDGES[name], strict=True)
    states = np.array(states, "float32")
    actions = np.array(actions, "float32" if np.ndim(actions) == 2 else "int32")
    _, _, expected_end = play_gymnasium(name, states, actions)
    assert expected_end.tolist() == list(expected)
    after, _, _, terminated = step(getattr(envs, name)(len(states)), states, actions)
    assert terminated.tolist() == list(expected)
    if name.startswith("MountainCar"):  # the wall stops the car
        np.testing.assert_allclose(after[-1], [-1.2, 0.0], rtol=1e-6)


FIRST_OBS = {  # limits of what is observed first
    "CartPole": ([-0.05] * 4, [0.05] * 4),
    "Acrobot": (
        [np.cos(0.1), -np.sin(0.1)] * 2 + [-0.1] * 2,
        [1, np.sin(0.1)] * 2 + [0.1] * 2,
    ),
    "MountainCar": ([-0.6, 0], [-0.4, 0]),
    "MountainCarContinuous": ([-0.6, 0], [-0.4, 0]),
    "Pendulum": ([-1, -1, -1], [1, 1, 1]),
}


@pytest.mark.parametrize("name", FIRST_OBS)
def test_first_observations(name):
    env = getattr(envs, name)(1000)
    obs = run(lambda key: functional.begin(env, key), kit.random.key(0))["obs"]
    low, high = np.array(FIRST_OBS[name])
    assert (obs >= low - 1e-6).all() and (obs <= high + 1e-6).all()
    assert obs.dtype == "float32" and obs.shape == (1000, *env.observation_space.shape)
    # Uniform: the smallest and the largest are near the limits.
    middle, reach = (low + high) / 2, (high - low) / 2
    np.testing.assert_allclose(obs.min(0), middle - reach, atol=0.02)
    np.testing.assert_allclose(obs.max(0), middle + reach, atol=0.02)


# --- Episodes -----------------------------------------------------------------


def play(env, num_steps, seed=0):
    """Plays with random actions; returns the steps as NumPy arrays."""
    space, shape = env.action_space, (num_steps, env.num_envs)

    def choose(obs, drawn):
        if isinstance(space, gymnasium.spaces.Discrete):
            return keras.ops.cast(keras.ops.floor(drawn * int(space.n)), "int32")
        low, high = float(space.low[0]), float(space.high[0])
        return low + drawn[:, None] * (high - low)

    def both(key):
        begin_key, noise_key, play_key = keras.ops.unstack(kit.random.split(key, 3))
        position = functional.begin(env, begin_key)
        noise = kit.random.uniform(noise_key, shape)
        return functional.play(env, position, choose, noise, num_steps, play_key)

    return run(both, kit.random.key(seed))[1]


@pytest.mark.parametrize("name", ["MountainCar", "Pendulum", "Taxi"])
def test_time_limit_and_restart(name):
    env = getattr(envs, name)(2)
    steps = play(env, 2 * env.max_episode_steps + 1)
    limit = env.max_episode_steps
    ended = np.flatnonzero(steps["ended"][:, 0])
    assert ended.tolist() == [limit - 1, 2 * limit - 1]
    assert not steps["terminated"].any()
    np.testing.assert_array_equal(steps["episode_length"][ended, 0], limit)
    np.testing.assert_array_equal(steps["episode_length"][ended[:1] + 1, 0], 1)
    # Another episode begins, in another state than where the last one was cut off.
    assert (steps["obs"][limit] != steps["next_obs"][limit - 1]).any()
    np.testing.assert_array_equal(steps["obs"][1:limit], steps["next_obs"][: limit - 1])
    assert (steps["obs"][limit] != steps["obs"][0]).any()


# Of 30 steps of 8 environments: the mean of what was observed, the sum of the rewards
# and the number of ends. They are the same on TensorFlow, JAX and PyTorch.
PLAYED = {
    "CartPole": (0.0216623, 240.0, 10),
    "Acrobot": (0.324900, -240.0, 0),
    "MountainCar": (-0.2665948, -240.0, 0),
    "MountainCarContinuous": (-0.2710981, -8.221732, 0),
    "Pendulum": (-0.222963, -1762.465, 0),
    "FrozenLake": (2.5291667, 0.0, 28),
    "CliffWalking": (19.8083333, -3210.0, 0),
    "Taxi": (327.875, -915.0, 0),
}


@pytest.mark.parametrize("name", PLAYED)
def test_backends_play_alike(name):
    steps = play(getattr(envs, name)(8), 30)
    mean_obs, total, ends = PLAYED[name]
    assert steps["next_obs"].astype("float64").mean() == pytest.approx(
        mean_obs, abs=2e-5
    )
    assert steps["reward"].astype("float64").sum() == pytest.approx(total, rel=1e-5)
    assert steps["ended"].sum() == ends


# --- Grid worlds --------------------------------------------------------------

LAKE = ["SFFH", "FFSF", "HFFG"]
GRIDS = {
    "FrozenLake": (envs.FrozenLake, {}, "FrozenLake-v1", {}),
    "FrozenLake, 8x8": (
        envs.FrozenLake,
        {"map_name": "8x8"},
        "FrozenLake8x8-v1",
        {},
    ),
    "FrozenLake, not slippery": (
        envs.FrozenLake,
        {"is_slippery": False},
        "FrozenLake-v1",
        {"is_slippery": False},
    ),
    "FrozenLake, own map": (
        envs.FrozenLake,
        {"desc": LAKE},
        "FrozenLake-v1",
        {"desc": LAKE},
    ),
    "CliffWalking": (envs.CliffWalking, {}, "CliffWalking-v1", {}),
    "CliffWalking, slippery": (
        envs.CliffWalking,
        {"is_slippery": True},
        "CliffWalking-v1",
        {"is_slippery": True},
    ),
    "Taxi": (envs.Taxi, {}, max(x for x in registry if x.startswith("Taxi-")), {}),
}


def sum_probabilities(outcomes):
    total: dict[tuple[int, float, bool], float] = {}
    for probability, *outcome in outcomes:
        key = (int(outcome[0]), float(outcome[1]), bool(outcome[2]))
        total[key] = total.get(key, 0.0) + probability
    return {key: pytest.approx(p, abs=1e-12) for key, p in total.items()}


@pytest.mark.parametrize("name", GRIDS)
def test_tables_are_gymnasiums(name):
    make, settings, theirs_id, their_settings = GRIDS[name]
    ours, theirs = make(1, **settings), gymnasium.make(theirs_id, **their_settings)
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    assert ours.max_episode_steps == theirs.spec.max_episode_steps
    for state, actions in theirs.unwrapped.P.items():
        for action, outcomes in actions.items():
            tables = (ours.next_state, ours.reward, ours.terminated)
            mine = zip(
                ours.probabilities, *(x[state, action] for x in tables), strict=True
            )
            assert sum_probabilities(mine) == sum_probabilities(outcomes)
    starts = np.bincount(ours.starts, minlength=ours.observation_space.n)
    np.testing.assert_allclose(
        starts / starts.sum(), theirs.unwrapped.initial_state_distrib
    )


@pytest.mark.parametrize("name", GRIDS)
def test_draws_are_as_frequent_as_the_tables_say(name):
    make, settings, *_ = GRIDS[name]
    env = make(NUM, **settings)
    size = (env.observation_space.n, env.action_space.n)
    rng = np.random.default_rng(0)
    states, actions = (rng.integers(n, size=NUM).astype("int32") for n in size)

    def many(states, actions, keys):
        return kit.scan(lambda _, key: (0, env.step(states, actions, key)), 0, keys)[1]

    rounds = 20 if len(env.probabilities) > 1 else 2
    keys = to_numpy(kit.random.split(kit.random.key(1), rounds))
    after, reward, terminated, truncated = run(many, states, actions, keys)
    assert after.dtype == "int32" and reward.dtype == "float32"
    assert not truncated.any()
    counts = np.zeros((*size, size[0]))
    np.add.at(counts, (states, actions, after), 1)
    expected = np.zeros(counts.shape)
    for k, p in enumerate(env.probabilities):
        index = (*np.indices(size), env.next_state[:, :, k])
        expected[index] += p
    visits = counts.sum(axis=2, keepdims=True)
    assert (counts[expected == 0.0] == 0).all()
    deviation = np.sqrt(np.maximum(visits * expected * (1 - expected), 1e-12))
    deviation = (counts - visits * expected) / deviation
    assert np.abs(deviation[(expected > 0) & (expected < 1)]).max(initial=0.0) < 5.0
    # Reward and end belong to the state that was drawn.
    outcomes = {}
    for k in range(len(env.probabilities)):
        for s, a in np.ndindex(size):
            outcomes.setdefault((s, a, env.next_state[s, a, k]), set()).add(
                (float(env.reward[s, a, k]), bool(env.terminated[s, a, k]))
            )
    for i in range(200):
        got = (float(reward[0, i]), bool(terminated[0, i]))
        assert got in outcomes[states[i], actions[i], after[0, i]]


def test_first_states_are_drawn():
    env = envs.FrozenLake(10_000, desc=LAKE)
    drawn = run(lambda key: env.reset(key, NUM), kit.random.key(0))
    assert drawn.dtype == "int32"
    states, counts = np.unique(drawn, return_counts=True)
    assert states.tolist() == [0, 6]
    np.testing.assert_allclose(counts / NUM, 0.5, atol=0.02)


@pytest.mark.parametrize("desc", [["SF", "F"], ["FG"], ["SXG"], [""]])
def test_wrong_maps_are_refused(desc):
    with pytest.raises(ValueError, match="`desc` must be lines of equal lengths"):
        envs.FrozenLake(desc=desc)


@pytest.mark.once
def test_import_of_kit_leaves_environments_alone():
    import subprocess
    import sys

    program = (
        "import sys, kit\nprint([x for x in ('gymnasium', 'kit.envs')"
        " if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.stdout.split() == [b"[]"]
