"""Q-learning: the equations by hand, the contract of `fit`, learning, the recipe."""

import csv
import functools
import json

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete, MultiDiscrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from keras import ops

from kit.q_learning import QLearning
from kit.random import Generator, split_seed

LOGS = {
    "return",
    "length",
    "loss",
    "q_value",
    "alpha",
    "epsilon",
    "steps_per_second",
    "timesteps",
}


class Ring(gymnasium.Env):
    """Five states in a ring: action 1 steps on, 0 stays; each state has a reward.

    An episode is cut off after `limit` steps; where `terminates`, it ends so.
    """

    def __init__(self, limit=7, terminates=False, spaces=None, start=0):
        self.observation_space = Discrete(5, start=start)
        self.action_space = Discrete(2, start=start)
        if spaces is not None:
            self.observation_space, self.action_space = spaces
        self.limit, self.terminates, self.first = limit, terminates, start
        self.actions, self.resets = [], []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.resets.append(seed)
        self.place = self.t = 0
        return self.first, {}

    def step(self, action):
        action = int(action) - self.first
        assert action in (0, 1)
        self.actions.append(action)
        self.place = (self.place + action) % 5
        self.t += 1
        end = self.t == self.limit
        ends = (end and self.terminates, end and not self.terminates)
        return self.place + self.first, float(self.place), *ends, {}


def itself(env):
    return env


def agent_for(shape=(5, 2), learning_rate=0.5, table=None, **kwargs):
    agent = QLearning(*shape, **kwargs)
    agent.compile(keras.optimizers.SGD(learning_rate))
    if table is not None:
        agent.table.assign(np.asarray(table, "float32"))
    return agent


def transitions(*rows, epsilon=0.0):
    """Rows of (state, action, reward, terminated, next_state, next_action, valid)."""
    names = ("state", "action", "reward", "terminated", "next_state", "next_action")
    steps = {
        name: np.array(column)[:, None].astype("float32")
        for name, column in zip((*names, "valid"), zip(*rows, strict=True), strict=True)
    }
    for name in ("state", "action", "next_state", "next_action"):
        steps[name] = steps[name].astype("int32")
    return steps | {"epsilon": np.full_like(steps["reward"], epsilon)}


def learn(agent, steps):
    logs = agent._learn(steps)
    return [float(ops.convert_to_numpy(x)) for x in logs]


def table_of(agent):
    return np.array(ops.convert_to_numpy(agent.table))


def visits_of(agent):
    return np.array(ops.convert_to_numpy(agent.visits))


# --- The equations ----------------------------------------------------------


TABLE = [[1.0, 2.0, 6.0], [3.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("algorithm", "next_value"),
    # In state 0: the best; action 1; 0.4 of the mean 3 and 0.6 of the best.
    [("q_learning", 6.0), ("sarsa", 2.0), ("expected_sarsa", 0.4 * 3 + 0.6 * 6)],
)
def test_update_by_hand(algorithm, next_value):
    agent = agent_for((2, 3), 0.25, TABLE, algorithm=algorithm, gamma=0.5)
    steps = transitions((1, 0, 10.0, False, 0, 1, True), epsilon=0.4)
    loss, q_value, alpha = learn(agent, steps)
    error = 10 + 0.5 * next_value - 3
    np.testing.assert_allclose((loss, q_value, alpha), (error**2, 3, 0.25), rtol=1e-6)
    expected = [TABLE[0], [3 + 0.25 * error, 0, 0]]
    np.testing.assert_allclose(table_of(agent), expected, rtol=1e-6)
    assert int(agent.optimizer.iterations) == 1


@pytest.mark.parametrize("algorithm", ["q_learning", "sarsa", "expected_sarsa"])
def test_nothing_comes_after_terminated(algorithm):
    agent = agent_for((2, 3), 0.25, TABLE, algorithm=algorithm, gamma=0.5)
    learn(agent, transitions((1, 0, 10.0, True, 0, 1, True)))
    assert table_of(agent).tolist() == [TABLE[0], [3 + 0.25 * (10 - 3), 0, 0]]


def test_each_update_sees_those_before_it():
    agent = agent_for((2, 3), 0.5, TABLE, gamma=1.0)
    first, second = (0, 2, 2.0, False, 0, 0, True), (1, 0, 0.0, False, 0, 0, True)
    learn(agent, transitions(first, first, second))
    # 6 + 1 = 7, 7 + 1 = 8; then state 1 sees the 8.
    assert table_of(agent).tolist() == [[1, 2, 8], [(3 + 8) / 2, 0, 0]]


def test_what_is_no_transition_changes_nothing():
    agent = agent_for((2, 3), 0.5, TABLE, gamma=0.5, horizon=1.0)
    no_step = (1, 1, 100.0, False, 0, 0, False)
    logs = learn(agent, transitions((0, 2, 2.0, True, 0, 0, True), no_step))
    assert logs == [16.0, 6.0, 0.5]  # of the one that is
    assert table_of(agent).tolist() == [[1, 2, 4], TABLE[1]]
    assert visits_of(agent).sum() == int(agent.optimizer.iterations) == 1
    assert learn(agent, transitions(no_step)) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("horizon", "rates"),
    [(None, [0.5, 0.5, 0.5]), (0, [0.5, 0.25, 0.5 / 3]), (2, [0.5, 0.375, 0.3])],
)
def test_the_learning_rate_falls_with_visits(horizon, rates):
    agent = agent_for((2, 3), 0.5, horizon=horizon)
    for rate in rates:
        step = transitions((1, 0, 1.0, True, 0, 0, True))
        np.testing.assert_allclose(learn(agent, step)[2], rate, rtol=1e-6)
    # Another action isn't concerned.
    other = transitions((1, 1, 1.0, True, 0, 0, True))
    np.testing.assert_allclose(learn(agent, other)[2], 0.5)
    assert visits_of(agent)[1, 0] == (0 if horizon is None else 3)


def test_horizon_0_is_the_mean():
    agent = agent_for((2, 3), 1.0, horizon=0, initial_value=50.0)
    for reward in (2.0, 4.0, 9.0):
        learn(agent, transitions((0, 0, reward, True, 0, 0, True)))
    np.testing.assert_allclose(table_of(agent)[0], [5.0, 50.0, 50.0], rtol=1e-6)


def test_visits_earlier_in_a_turn_count():
    agent = agent_for((2, 3), 1.0, horizon=0, initial_value=50.0)
    steps = [(0, 0, reward, True, 0, 0, True) for reward in (2.0, 4.0, 9.0)]
    elsewhere, reset = (0, 1, 7.0, True, 0, 0, True), (0, 0, 99.0, True, 0, 0, False)
    rows = [steps[0], elsewhere, steps[1], reset, steps[2]]
    learn(agent, transitions(*rows))
    np.testing.assert_allclose(table_of(agent)[0], [5.0, 7.0, 50.0], rtol=1e-6)
    assert visits_of(agent)[0].tolist() == [3, 1, 0]


def test_a_schedule_counts_environment_steps():
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 40, 0.1)
    agent = agent_for(learning_rate=schedule, train_freq=10)
    logs = agent.fit(Ring(), 60, steps_per_epoch=10, verbose=0).history
    np.testing.assert_allclose(logs["alpha"], [0.5, 0.4, 0.3, 0.2, 0.1, 0.1], rtol=1e-5)
    assert int(agent.optimizer.iterations) == 60


def test_callbacks_change_the_learning_rate(tmp_path):
    agent = agent_for()
    callbacks = [
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.5 / (epoch + 1)),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
    ]
    logs = agent.fit(
        Ring(), 40, steps_per_epoch=20, callbacks=callbacks, verbose=0
    ).history
    np.testing.assert_allclose(logs["alpha"], [0.5, 0.25])
    with open(tmp_path / "log.csv", newline="") as file:
        assert [float(row["alpha"]) for row in csv.DictReader(file)] == logs["alpha"]


# --- Playing ----------------------------------------------------------------


def record_turns(agent):
    """Has the agent keep what it learns from."""
    turns, original = [], agent._learn

    def record(steps):
        turns.append(steps)
        return original(steps)

    agent.__dict__["_learn"] = record
    return turns


@pytest.mark.parametrize("algorithm", ["q_learning", "sarsa", "expected_sarsa"])
def test_a_run_agrees_with_plain_python(algorithm):
    options = {"epsilon_end": 0.4, "gamma": 0.9, "horizon": 3.0, "seed": 5}
    agent = agent_for(algorithm=algorithm, train_freq=8, **options)
    turns = record_turns(agent)
    env = Ring()
    agent.fit(env, 60, verbose=0)  # seven turns of 8, and one of 4
    q, n, acted = np.zeros((5, 2)), np.zeros((5, 2)), []
    place = t = 0
    following = None
    for steps in turns:
        for i in range(8):
            step = {name: x[i, 0] for name, x in steps.items()}
            if not step["valid"]:
                assert steps is turns[-1]
                assert i >= 4
                continue
            s, a, s2, a2 = (
                int(step[name])
                for name in ("state", "action", "next_state", "next_action")
            )
            acted.append(a)
            # What the environment did.
            assert s == place
            place, t = (place + a) % 5, t + 1
            assert (s2, step["reward"], step["terminated"]) == (place, place, 0)
            # SARSA's next action is the one that follows, unless it was cut off.
            assert following is None or a == following
            following = a2
            if t == 7:
                place, t, following = 0, 0, None
            n[s, a] += 1
            value = {
                "q_learning": q[s2].max(),
                "sarsa": q[s2, a2],
                "expected_sarsa": step["epsilon"] * q[s2].mean()
                + (1 - step["epsilon"]) * q[s2].max(),
            }[algorithm]
            alpha = 0.5 * 4 / (3 + n[s, a])
            q[s, a] += alpha * (step["reward"] + 0.9 * value - q[s, a])
    assert acted == env.actions
    assert len(acted) == 60
    np.testing.assert_allclose(table_of(agent), q, rtol=1e-4)
    np.testing.assert_array_equal(visits_of(agent), n)


def test_the_environment_sees_the_epsilon_schedule():
    options = {"epsilon_start": 0.8, "epsilon_end": 0.2, "exploration_fraction": 0.5}
    # Greedy is action 0; half of the random ones are 0 too.
    agent = agent_for(table=[[1e6, 0]] * 5, learning_rate=0.0, **options)
    env = Ring()
    logs = agent.fit(env, 4000, steps_per_epoch=1000, verbose=0).history
    rates = np.array(env.actions).reshape(4, 1000).mean(axis=1) / 0.5
    np.testing.assert_allclose(rates, [0.65, 0.35, 0.2, 0.2], atol=0.08)
    np.testing.assert_allclose(logs["epsilon"], [0.65, 0.35, 0.2, 0.2], atol=0.01)


def test_actions_follow_the_table_as_it_changes():
    # Staying in place 0 earns nothing: once that is known, it goes on for ever.
    options = {"gamma": 0.5, "epsilon_start": 0.0, "epsilon_end": 0.0}
    agent = agent_for(table=[[0.5, 0.1]] * 5, train_freq=1, **options)
    env = Ring(limit=1000)
    agent.fit(env, 40, verbose=0)
    assert env.actions[0] == 0
    assert 1 in env.actions


@pytest.mark.parametrize(("terminates", "worth"), [(False, 2.0), (True, 1.0)])
def test_only_terminated_cuts_the_bootstrap(terminates, worth):
    class One(Ring):
        def step(self, action):
            obs, _, *rest = super().step(0)
            return obs, 1.0, *rest

    agent = agent_for(gamma=0.5)
    agent.fit(One(limit=1, terminates=terminates), 400, verbose=0)
    # 1 + 0.5 + 0.25 ...: or the 1 alone.
    np.testing.assert_allclose(table_of(agent)[0], worth, rtol=1e-4)


@pytest.mark.variants
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
@pytest.mark.parametrize("terminates", [False, True])
def test_vector_environments(mode, terminates):
    envs = [Ring(limit=5, terminates=terminates) for _ in range(3)]
    vector = SyncVectorEnv(
        [functools.partial(itself, e) for e in envs], autoreset_mode=mode
    )
    agent = agent_for(train_freq=4, horizon=1.0, gamma=0.5, epsilon_end=1.0)
    turns = record_turns(agent)
    logs = agent.fit(vector, 100, steps_per_epoch=36, verbose=0).history
    assert logs["timesteps"] == [36, 72, 102]
    # In NEXT_STEP mode, one in six only resets.
    real = 34 - 34 // 6 * (mode == AutoresetMode.NEXT_STEP)
    assert [len(env.actions) for env in envs] == [real] * 3
    assert visits_of(agent).sum() == int(agent.optimizer.iterations) == 3 * real
    assert set(logs["length"]) == {5.0}
    for steps in turns:
        real = steps["valid"] > 0
        moved = (steps["state"] + steps["action"]) % 5 == steps["next_state"]
        assert moved[real].all()
        assert (steps["reward"] == steps["next_state"])[real].all()
    assert sum(steps["terminated"].sum() for steps in turns) == (
        terminates * 3 * (real.size and 34 // (5 + (mode == AutoresetMode.NEXT_STEP)))
    )


@pytest.mark.parametrize("num_envs", [1, 2])
def test_spaces_may_start_elsewhere(num_envs):
    envs = [Ring(start=3) for _ in range(num_envs)]
    env = (
        envs[0]
        if num_envs == 1
        else SyncVectorEnv([functools.partial(itself, e) for e in envs])
    )
    agent = agent_for(horizon=1.0)
    agent.fit(env, 200, verbose=0)
    assert (visits_of(agent).sum(axis=1) > 0).all()
    assert agent.evaluate(env, num_envs)["length"] == 7


def test_history_has_every_key_in_every_epoch():
    agent = agent_for()
    history = agent.fit(Ring(), 100, steps_per_epoch=20, verbose=0)
    assert history is agent.history
    assert set(history.history) == LOGS
    assert history.history["timesteps"] == [20, 40, 60, 80, 100]
    assert history.history["length"] == [7.0] * 5
    for values in history.history.values():
        assert len(values) == 5
        assert np.isfinite(values).all()


@pytest.mark.parametrize("total", [1, 10, 101])
def test_one_environment_takes_exactly_total_timesteps(total):
    env = Ring()
    agent = agent_for(horizon=1.0)
    history = agent.fit(env, total, verbose=0)
    assert len(env.actions) == total == visits_of(agent).sum()
    assert history.history["timesteps"][-1] == total


def test_one_seed_is_one_run():
    def train(seed, env_seed=None):
        agent, env = agent_for(seed=seed), Ring()
        agent.fit(env, 60, verbose=0, seed=env_seed)
        (drawn,) = split_seed(Generator(seed), 1)
        assert env.resets[0] == (drawn if env_seed is None else env_seed)
        assert set(env.resets[1:]) == {None}
        return env.actions, table_of(agent).tolist()

    first = train(3)
    assert first == train(3, 9)  # chance has no part in this environment
    assert first != train(4)


def test_a_second_fit_goes_on():
    agent = agent_for(horizon=1.0)
    agent.fit(Ring(), 50, verbose=0)
    table = table_of(agent)
    history = agent.fit(Ring(), 50, verbose=0)
    assert history.history["timesteps"][-1] == 50
    assert visits_of(agent).sum() == int(agent.optimizer.iterations) == 100
    assert (table_of(agent) != table).any()


def test_compile_again_changes_how_it_learns():
    agent = agent_for(learning_rate=0.0)
    agent.fit(Ring(), 50, verbose=0)
    assert (table_of(agent) == 0).all()
    agent.compile(keras.optimizers.SGD(0.5))
    agent.fit(Ring(), 50, verbose=0)
    assert (table_of(agent) != 0).any()


def test_act_and_call():
    agent = agent_for(table=[[0, 1], [1, 0], [0, 1], [1, 0], [1, 0]])
    assert (agent.act(0), type(agent.act(0))) == (1, int)
    assert agent.act(np.int64(1)) == 0
    actions = agent.act(np.array([2, 1, 0]))
    assert np.issubdtype(actions.dtype, np.integer)
    assert actions.tolist() == [1, 0, 1]
    values = ops.convert_to_numpy(agent(np.array([4, 0])))
    assert values.tolist() == [[1, 0], [0, 1]]
    for outside in (5, -1, [0, 5]):
        with pytest.raises(ValueError, match="`obs` must lie between 0 and 4"):
            agent.act(outside)
    for no_state in (1.0, [[1]]):
        with pytest.raises(ValueError, match="`obs` must be an integer or an array"):
            agent.act(no_state)


def test_evaluate_plays_greedily():
    agent = QLearning(5, 2)  # not compiled
    agent.table.assign(np.array([[0, 1], [0, 1], [1, 0], [1, 0], [1, 0]], "float32"))
    env = Ring()
    result = {"return": 13.0, "return_std": 0.0, "length": 7.0, "episodes": 2}
    assert agent.evaluate(env, episodes=2, seed=8) == result
    assert env.actions == [1, 1, 0, 0, 0, 0, 0] * 2
    assert env.resets[0] == 8
    pair = SyncVectorEnv([Ring, Ring])
    assert agent.evaluate(pair, episodes=3)["episodes"] == 4


# --- Errors -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        ((Box(0, 1, (2,)), Discrete(2)), r"space Box.*Use DQN.*discretisation"),
        ((MultiDiscrete([5]), Discrete(2)), r"observation space MultiDiscrete"),
        ((Discrete(5), Box(0, 1, (2,))), r"action space Box.*Discrete"),
        ((Discrete(6), Discrete(2)), r"6 states, the table has 5.*`num_states=6`"),
        ((Discrete(5), Discrete(3)), r"3 actions, the table has 2.*`num_actions=3`"),
    ],
)
def test_spaces_that_do_not_fit(spaces, message):
    env = Ring(spaces=spaces)
    for play in (lambda a: a.fit(env, 10), lambda a: a.evaluate(env)):
        with pytest.raises(ValueError, match=message):
            play(agent_for())
    assert not env.resets


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_states": 0}, ValueError, r"`num_states` must be .*\[1, .*received 0"),
        ({"num_states": 2.0}, TypeError, "`num_states` must be an integer"),
        ({"num_actions": 0}, ValueError, r"`num_actions` must be .*\[1, "),
        ({"gamma": 1.1}, ValueError, r"`gamma` must be .*\[0, 1\], received 1\.1"),
        ({"gamma": "1"}, TypeError, "`gamma` must be a number .*received '1'"),
        ({"horizon": -1}, ValueError, r"`horizon` must be a number in \[0, "),
        (
            {"initial_value": np.nan},
            ValueError,
            "`initial_value` must be a number in.*nan",
        ),
        ({"train_freq": 0}, ValueError, r"`train_freq` must be an integer in \[1"),
        ({"epsilon_end": 2}, ValueError, r"`epsilon_end` must be .*\[0, 1\]"),
        ({"exploration_fraction": 0}, ValueError, r"`exploration_fraction` .*\(0, 1\]"),
        ({"algorithm": "dqn"}, ValueError, "'q_learning', 'sarsa', .*'dqn'"),
    ],
)
def test_arguments_are_checked(arguments, error, message):
    with pytest.raises(error, match=message):
        QLearning(**({"num_states": 5, "num_actions": 2} | arguments))


def test_fit_checks_its_arguments():
    env = Ring()
    with pytest.raises(ValueError, match="call `compile"):
        QLearning(5, 2).fit(env, 10)
    with pytest.raises(TypeError, match=r"must be a gymnasium\.Env"):
        agent_for().fit("FrozenLake-v1", 10)
    for arguments in (
        {"total_timesteps": 0},
        {"total_timesteps": 9, "steps_per_epoch": 0},
    ):
        with pytest.raises(ValueError, match=r"must be a number in \[1, .*received 0"):
            agent_for().fit(env, **arguments)
    assert not env.resets


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (keras.optimizers.Adam(0.1), "received Adam"),
        (keras.optimizers.SGD(0.1, momentum=0.9), r"received {'momentum': 0\.9}"),
        (keras.optimizers.SGD(0.1, clipnorm=1.0), r"received {'clipnorm': 1\.0}"),
    ],
)
def test_the_optimizer_is_a_learning_rate(optimizer, message):
    with pytest.raises(ValueError, match=f"nothing but a learning rate, {message}"):
        QLearning(5, 2).compile(optimizer)


def test_the_default_learning_rate():
    agent = QLearning(5, 2)
    agent.compile()
    np.testing.assert_allclose(float(agent.optimizer.learning_rate), 0.1)


# --- Saving -----------------------------------------------------------------


def test_saved_and_loaded_it_goes_on_learning(tmp_path):
    arguments = {
        "algorithm": "expected_sarsa",
        "gamma": 0.8,
        "horizon": 7.0,
        "initial_value": 2.0,
        "train_freq": 5,
        "epsilon_start": 0.9,
        "epsilon_end": 0.3,
        "exploration_fraction": 0.7,
        "seed": 4,
    }
    schedule = keras.optimizers.schedules.PolynomialDecay(0.5, 400, 0.1)
    agent = agent_for(learning_rate=schedule, **arguments)
    agent.fit(Ring(), 60, verbose=0)
    agent.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")  # No warning: an error.
    assert isinstance(loaded, QLearning)
    for name, value in arguments.items():
        assert getattr(loaded, name) == value
    np.testing.assert_array_equal(table_of(loaded), table_of(agent))
    np.testing.assert_array_equal(visits_of(loaded), visits_of(agent))
    assert visits_of(loaded).sum() == int(loaded.optimizer.iterations) == 60
    assert loaded.act(np.arange(5)).tolist() == agent.act(np.arange(5)).tolist()
    step = transitions((1, 0, 10.0, False, 0, 1, True), epsilon=0.4)
    assert learn(loaded, step) == learn(agent, step)
    np.testing.assert_array_equal(table_of(loaded), table_of(agent))
    loaded.fit(Ring(), 20, verbose=0)


def test_an_uncompiled_agent_can_be_saved(tmp_path):
    agent = QLearning(5, 2, initial_value=3.0)
    agent.save(tmp_path / "q.keras")
    loaded = keras.saving.load_model(tmp_path / "q.keras")
    assert not loaded.compiled
    assert (table_of(loaded) == 3).all()


# --- Learning ---------------------------------------------------------------


@pytest.mark.once
def test_along_the_cliff_or_at_a_distance():
    """Sutton and Barto's example 6.6: Q-learning goes along the edge."""
    lengths = {}
    for algorithm in ("q_learning", "sarsa"):
        env = gymnasium.make("CliffWalking-v1", max_episode_steps=200)
        agent = agent_for(
            (48, 4), 0.5, algorithm=algorithm, gamma=1.0, epsilon_start=0.1,
            epsilon_end=0.1, train_freq=20,
        )  # fmt: skip
        agent.fit(env, 8000, verbose=0)
        lengths[algorithm] = agent.evaluate(env, 1)["length"]
    assert lengths["q_learning"] == 13
    assert 13 < lengths["sarsa"] < 200


# --- The recipe -------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("q_learning")


def test_policy_evaluation_and_value_iteration_by_hand(recipe):
    # State 0: stay for 1, or go on for 0, which fails half of the time.
    # State 1: leave for 10.
    class World:
        observation_space, action_space = Discrete(2), Discrete(2)
        P = {  # noqa: RUF012
            0: {
                0: [(1.0, 0, 1.0, False)],
                1: [(0.5, 1, 0.0, False), (0.5, 0, 0.0, False)],
            },
            1: dict.fromkeys((0, 1), [(1.0, 0, 10.0, True)]),
        }

        @property
        def unwrapped(self):
            return self

    model = recipe.transition_model(World())
    transitions, rewards = model
    assert transitions.tolist() == [[[1, 0], [0.5, 0.5]], [[0, 0], [0, 0]]]
    assert rewards.tolist() == [[1, 0], [10, 10]]
    stay = recipe.policy_evaluation(*model, np.array([0, 0]), 0.5)
    np.testing.assert_allclose(stay, [2.0, 10.0])
    # V = 0.5 (0.5 V + 0.5 10): V = 10/3.
    go = recipe.policy_evaluation(*model, np.array([1, 0]), 0.5)
    np.testing.assert_allclose(go, [10 / 3, 10.0])
    assert recipe.value_iteration(*model, 0.5)[0] == 1
    assert recipe.value_iteration(*model, 0.1)[0] == 0


@pytest.mark.variants
@pytest.mark.parametrize("env", ["FrozenLake-v1", "CliffWalking-v1", "Taxi-v4"])
def test_the_recipe_leaves_what_it_promises(recipe, env, tmp_path, capsys):
    recipe.main(
        env=env, total_timesteps=500, eval_episodes=2, output_dir=tmp_path, verbose=0
    )
    names = {"history.csv", "learning_curve.png", "policy.png", "metrics.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["eval_episodes"] == 2
    assert metrics["total_timesteps"] == 500
    assert metrics["policy_value"] < baselines["optimal_value"]
    assert {"random_return", "optimal_return", "optimal_value"} == set(baselines)
    assert record["throughput"]["unit"] == "env steps/s"
    assert capsys.readouterr().out == ""
    with open(tmp_path / "history.csv", newline="") as file:
        last = list(csv.DictReader(file))[-1]
    assert float(last["policy_value"]) == metrics["policy_value"]

    agent = keras.saving.load_model(tmp_path / "model.keras")
    world = recipe.make(env)
    policy = recipe.greedy_policy(agent)
    values = recipe.policy_evaluation(*recipe.transition_model(world), policy, 0.99)
    start = world.unwrapped.initial_state_distrib
    np.testing.assert_allclose(start @ values, metrics["policy_value"])


def test_the_recipe_wants_a_transition_model(recipe, tmp_path):
    with pytest.raises(ValueError, match=r"CartPole-v1.*FrozenLake-v1.*dqn\.py"):
        recipe.main(env="CartPole-v1", output_dir=tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"gamma": 1.0}, r"--gamma must lie in \[0, 1\).*Received 1.0"),
        ({"eval_episodes": 0}, r"`episodes` must be an integer in \[1, .*received 0"),
        ({"total_timesteps": 0}, r"`total_timesteps` must be .*\[1, .*received 0"),
        ({"algorithm": "dqn"}, "`algorithm` must be one of"),
    ],
)
def test_the_recipe_checks_its_arguments(recipe, arguments, message, tmp_path):
    def no_step(*args):
        raise AssertionError("trained")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(QLearning, "_play", no_step)
        with pytest.raises(ValueError, match=message):
            recipe.main(output_dir=tmp_path, verbose=0, **arguments)


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "env", ["FrozenLake-v1", "FrozenLake8x8-v1", "CliffWalking-v1", "Taxi-v4"]
)
def test_the_recipe_finds_the_best_policy(recipe, env, seed, tmp_path):
    record = recipe.main(env=env, seed=seed, output_dir=tmp_path, verbose=0)
    best = record["baselines"]["optimal_value"]
    assert best - record["metrics"]["policy_value"] <= 0.01 * abs(best)
