"""Playing and learning in one program: as the ordinary way learns."""

import functools
import json

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium import spaces
from keras import ops

import kit
import kit.envs
from kit.envs import CartPole
from kit.rl import device_replay
from kit.rl.functional import FunctionalEnv, begin, play
from kit.rl.fused import STEPS_PER_CALL, environment_keys, updates_per_call
from kit.rl.on_policy import OnPolicy


class Walk(FunctionalEnv):
    """Left or right from 0 to 3 or -3; who is at 3 gets 1. Cut off after 5 steps."""

    observation_space = spaces.Box(-3.0, 3.0, (1,), "float32")
    action_space = spaces.Discrete(2)
    max_episode_steps = 5

    def reset(self, key, num):
        return {"x": ops.zeros((num,)), "steps": ops.zeros((num,), "int32")}

    def observe(self, state):
        return state["x"][:, None]

    def step(self, state, action, key):
        x = state["x"] + 2.0 * ops.cast(action, "float32") - 1.0
        reward = ops.cast(x >= 3.0, "float32")
        state = {"x": x, "steps": state["steps"] + 1}
        return state, reward, ops.abs(x) >= 3.0, ops.zeros_like(x, "bool")


def to_numpy(tree):
    return keras.tree.map_structure(lambda x: np.array(ops.convert_to_numpy(x)), tree)


# --- Environments -----------------------------------------------------------------


def test_episodes_begin_again_and_are_cut_off():
    env = Walk(2)
    # The first always goes right, the second to and fro.
    actions = np.array([[1, t % 2] for t in range(8)], "int32")
    position = begin(env, kit.random.key(0))
    position, rollout = kit.compiled(
        lambda position, actions: play(
            env, position, lambda obs, action: action, actions, 8, kit.random.key(1)
        )
    )(position, actions)
    position, rollout = to_numpy(position), to_numpy(rollout)
    np.testing.assert_array_equal(
        rollout["obs"][..., 0].T, [[0, 1, 2, 0, 1, 2, 0, 1], [0, -1, 0, -1, 0, 0, 1, 0]]
    )
    np.testing.assert_array_equal(
        rollout["next_obs"][..., 0].T,
        [[1, 2, 3, 1, 2, 3, 1, 2], [-1, 0, -1, 0, -1, 1, 0, 1]],
    )
    terminated, ended = rollout["terminated"], rollout["ended"]
    assert np.flatnonzero(terminated[:, 0]).tolist() == [2, 5]
    assert np.flatnonzero(ended[:, 0]).tolist() == [2, 5]
    assert not terminated[:, 1].any()
    assert np.flatnonzero(ended[:, 1]).tolist() == [4]
    assert rollout["episode_return"][ended].tolist() == [1, 0, 1]
    assert rollout["episode_length"][ended].tolist() == [3, 5, 3]
    assert position["length"].tolist() == [2, 3]
    assert position["state"]["steps"].tolist() == [2, 3]
    assert rollout["action"].tolist() == actions.tolist()


@pytest.mark.parametrize("num_envs", [0, -1, 1.5, "4", None])
def test_numbers_of_environments_that_are_none(num_envs):
    with pytest.raises((TypeError, ValueError), match=r"Walk.*`num_envs`"):
        Walk(num_envs)


def test_what_a_subclass_does_not_define_is_named():
    with pytest.raises(NotImplementedError, match=r"FunctionalEnv: `reset`"):
        FunctionalEnv().reset(kit.random.key(0), 1)


class Column(Walk):
    """Rewards of shape (N, 1)."""

    def step(self, state, action, key):
        state, reward, *flags = super().step(state, action, key)
        return state, reward[:, None], *flags


def test_what_an_environment_returns_has_the_right_shape():
    def run(env):
        noise = ops.zeros((2, 3), "int32")
        start = begin(env, kit.random.key(0))
        play(env, start, lambda obs, action: action, noise, 2, kit.random.key(0))

    run(Walk(3))
    with pytest.raises(ValueError, match=r"Column: `step`.*rewards.*\(3, 1\)"):
        run(Column(3))
    wrong = Walk(3)
    wrong.observation_space = spaces.Box(-1.0, 1.0, (2,))
    with pytest.raises(ValueError, match=r"Walk: `observe`.*\(3, 2\).*\(3, 1\)"):
        run(wrong)


def step_returns(make):
    """Returns an environment whose step returns what `make` makes of it."""

    class Other(Walk):
        def step(self, state, action, key):
            return make(*super().step(state, action, key))

    return Other(2)


class Forgets(Walk):
    """Begins as many episodes as there are environments, however many are needed."""

    def reset(self, key, num):
        return super().reset(key, self.num_envs)


class Halves(Walk):
    """Observes what its space hasn't."""

    observation_space = spaces.Box(0, 3, (1,), "uint8")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (Forgets(2), r"Forgets: `reset`.*`num` states, here 4.*\(2,\)"),
        (Halves(2), r"Halves: `observe` must return integers.*float32"),
        (step_returns(lambda *x: x[:3]), r"`step`.*truncated\), received 3 values"),
        (step_returns(lambda *x: (*x, {})), "received 5 values"),
        (step_returns(lambda *x: list(x)), "received no tuple"),
        (step_returns(lambda state, *x: (state["x"], *x)), "a state like that"),
        (
            step_returns(lambda s, *x: ({**s, "x": ops.cast(s["x"], "int32")}, *x)),
            r"a state like that.*float32.*received.*int32",
        ),
    ],
)
def test_mistakes_in_an_environment_are_named(env, message):
    noise = ops.zeros((2, 2), "int32")
    with pytest.raises(ValueError, match=message):
        start = begin(env, kit.random.key(0))
        play(env, start, lambda obs, action: action, noise, 2, kit.random.key(0))


@pytest.mark.once
def test_an_environment_is_not_changed_once_it_is_compiled():
    env = CartPole(2)
    env.gravity = 1.6
    AGENTS["ppo"]().fit(env, 32, verbose=0)
    with pytest.raises(AttributeError, match=r"CartPole: `gravity` can't be changed"):
        env.gravity = 9.8


@pytest.mark.once
@pytest.mark.parametrize("name", ["dqn", "ppo"])
def test_a_backup_is_for_environments_with_the_same_settings(name, tmp_path):
    def fit(env):
        backup = kit.BackupAndRestore(tmp_path, interval=0, delete_checkpoint=False)
        AGENTS[name]().fit(env, 64, verbose=0, seed=0, callbacks=[backup])

    fit(CartPole(2))
    fit(CartPole(2))
    other = CartPole(2)
    other.max_episode_steps = 4
    with pytest.raises(ValueError, match=r"settings"):
        fit(other)


def test_settings_are_numbers_texts_and_tables():
    lake = kit.envs.make("FrozenLake-v1").settings()
    assert lake["max_episode_steps"] == 100
    assert lake != kit.envs.make("FrozenLake-v1", is_slippery=False).settings()
    assert lake == kit.envs.make("FrozenLake-v1").settings()


# --- The replay buffer --------------------------------------------------------------


def test_the_buffer_has_the_latest_transitions():
    env = Walk(2)
    buffer = device_replay.empty_buffer(env, capacity=11, num_steps=3)  # 2 x 3 x 2
    assert buffer["reward"].shape == (6, 2)
    add = kit.compiled(device_replay.add_steps)
    for turn in range(3):
        number = np.arange(6, dtype="float32").reshape(3, 2) + 10 * turn
        buffer = add(
            buffer,
            {
                "obs": number[..., None],
                "action": number.astype("int32") % 2,
                "reward": number,
                "next_obs": number[..., None] + 1,
                "terminated": number % 3 == 0,
                "ended": number % 3 == 0,
            },
        )
    batch = to_numpy(
        kit.compiled(lambda buffer, key: device_replay.sample(buffer, key, (4, 500)))(
            buffer, kit.random.key(0)
        )
    )
    assert batch["obs"].shape == (4, 500, 1)
    number = batch["reward"]
    found, counts = np.unique(number, return_counts=True)
    assert found.tolist() == [*range(10, 16), *range(20, 26)]  # the first turn is gone
    # Of 2,000 draws of 12 with equal chances: 167 each, standard deviation 12.4.
    assert np.abs(counts - 2000 / 12).max() < 5 * 12.4
    np.testing.assert_array_equal(batch["obs"][..., 0], number)
    np.testing.assert_array_equal(batch["next_obs"][..., 0], number + 1)
    np.testing.assert_array_equal(batch["action"], number % 2)
    np.testing.assert_array_equal(batch["terminated"], number % 3 == 0)


def test_only_what_was_added_is_drawn():
    env = Walk(1)
    buffer = device_replay.empty_buffer(env, capacity=100, num_steps=1)
    row = {name: np.ones((1, 1), "float32") for name in ("action", "reward")}
    row |= {name: np.ones((1, 1, 1), "float32") for name in ("obs", "next_obs")}
    row["terminated"] = row["ended"] = np.zeros((1, 1), bool)
    buffer = device_replay.add_steps(buffer, row)
    batch = device_replay.sample(buffer, kit.random.key(0), (200,))
    assert to_numpy(batch["reward"]).tolist() == [1.0] * 200


# --- Agents ---------------------------------------------------------------------------


def on_policy_agent(kind, **options):
    actor = kit.policy_network((4,), spaces.Discrete(2), units=(8,))
    critic = kit.value_network((4,), units=(8,))
    for network, seed in zip((actor, critic), kit.random.split_seed(0), strict=True):
        kit.initialize_weights(network, seed)
    agent = kind(actor, critic, num_steps=8, **options)
    agent.compile(keras.optimizers.Adam(1e-2))
    return agent


def dqn_agent(**options):
    network = kit.q_network((4,), 2, units=(8,))
    kit.initialize_weights(network, 0)
    options = {"learning_starts": 0, "batch_size": 8, "train_freq": 8} | options
    agent = kit.DQN(network, buffer_size=64, target_update_freq=32, **options)
    agent.compile(keras.optimizers.Adam(1e-2))
    return agent


@pytest.mark.parametrize("kind", [kit.PPO, kit.A2C])
def test_an_actor_and_a_critic_learn_as_from_a_rollout(kind):
    options = {"normalize_observations": True, "normalize_rewards": True}
    env = CartPole(3)
    fused = on_policy_agent(kind, **options)
    history = fused.fit(env, 48, verbose=0, seed=5, steps_per_epoch=48)
    assert history.history["timesteps"] == [48]

    # The same two turns, played and learned from by one call each.
    other = on_policy_agent(kind, **options)
    other.env_seed(5)
    key, first = ops.unstack(environment_keys(5))
    position, discounted = begin(env, first), ops.zeros((3,))

    def choose(obs, noise):
        return other.distribution.sample(other.policy(obs), noise)

    for _ in range(2):
        key, draws = ops.unstack(kit.random.split(key))
        noise = other.distribution.noise(other.random, (8, 3))
        position, rollout = play(env, position, choose, noise, 8, draws)
        rollout = {k: v for k, v in rollout.items() if not k.startswith("episode")}
        _, discounted = other._learn(rollout, discounted)
    for a, b in zip(fused.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_dqn_learns_as_from_its_buffer():
    env = CartPole(2)
    fused = dqn_agent()
    fused.fit(env, 48, verbose=0, seed=5, steps_per_epoch=48)

    other = dqn_agent()
    other.env_seed(5)
    key, first = ops.unstack(environment_keys(5))
    position = begin(env, first)
    buffer = device_replay.empty_buffer(env, 64, 8)
    for begun in (0, 16, 32):
        key, play_key = ops.unstack(kit.random.split(key))
        uniform = to_numpy(kit.random.uniform(other.random, (2, 8, 2)))
        epsilon = np.maximum(1 - 0.95 * (begun + 2 * np.arange(8)) / 24, 0.05)
        explore = uniform[0] < epsilon[:, None]
        noise = (explore, (uniform[1] * 2).astype("int32"))

        def choose(obs, noise):
            return ops.where(noise[0], noise[1], ops.argmax(other(obs), axis=-1))

        position, rollout = play(env, position, choose, noise, 8, play_key)
        buffer = device_replay.add_steps(buffer, rollout)
        other._learn(device_replay.sample(buffer, other.random, (1, 8)))
        if begun == 16:  # every 32 steps; the network goes on alone afterwards
            other.target_network.set_weights(other.q_network.get_weights())
    for a, b in zip(fused.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_dqn_only_plays_before_learning_starts():
    agent = dqn_agent(learning_starts=64)
    before = agent.q_network.get_weights()
    history = agent.fit(Walk4(2), 48, verbose=0)
    assert np.isnan(history.history["loss"]).all()
    for a, b in zip(agent.q_network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


class RowByRow:
    """`UniformRows` that draws each row by itself, as a program draws it."""

    def __init__(self, generator, shape):
        self.draw = lambda: to_numpy(kit.random.uniform(generator, shape))

    def __iter__(self):
        return self

    def __next__(self):
        return self.draw()


@pytest.mark.variants
@pytest.mark.parametrize("algorithm", ["q_learning", "sarsa", "expected_sarsa"])
def test_a_table_is_learned_as_in_the_ordinary_way(algorithm, monkeypatch):
    monkeypatch.setattr(kit.q_learning, "UniformRows", RowByRow)
    lake = kit.envs.FrozenLake(3, is_slippery=False)  # nothing that it draws matters
    agents, histories = [], []
    for env in (lake, kit.envs.as_vector_env(lake)):
        agent = kit.QLearning(
            16, 4, algorithm=algorithm, horizon=4.0, initial_value=0.5, train_freq=7
        )
        agent.compile(keras.optimizers.SGD(0.5))
        history = agent.fit(env, 420, verbose=0, steps_per_epoch=210).history
        del history["steps_per_second"], history["epsilon"]  # of calls, and of turns
        agents.append(agent)
        histories.append(history)
    for a, b in zip(agents[0].get_weights(), agents[1].get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert histories[0].keys() == histories[1].keys()
    for name, values in histories[0].items():
        np.testing.assert_allclose(values, histories[1][name], rtol=1e-4, err_msg=name)
    assert histories[0]["length"][1] > 0
    assert ops.sum(agents[0].visits) == 420


def test_a_table_is_for_numbered_states():
    agent = kit.QLearning(16, 4)
    agent.compile()
    with pytest.raises(ValueError, match=r"QLearning: the observation space Box"):
        agent.fit(CartPole(2), 64)
    with pytest.raises(ValueError, match=r"48 states, the table has 16"):
        agent.fit(kit.envs.CliffWalking(2), 64)
    with pytest.raises(ValueError, match=r"`total_timesteps`.*2\*\*31"):
        agent.fit(kit.envs.FrozenLake(2), 2**31)


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(3))
def test_the_way_across_the_ice(load_recipe, seed):
    recipe = load_recipe("q_learning")
    lake = kit.envs.FrozenLake(1)
    agent = kit.QLearning(
        16, 4, gamma=0.99, horizon=40.0, initial_value=1.0, train_freq=20,
        epsilon_start=0.1, epsilon_end=0.1, seed=seed,
    )  # fmt: skip
    agent.compile(keras.optimizers.SGD(1.0))
    agent.fit(lake, 300_000, verbose=0)
    model = recipe.transition_model(gymnasium.make("FrozenLake-v1"))
    policies = (recipe.value_iteration(*model, 0.99), recipe.greedy_policy(agent))
    best, learned = (
        recipe.policy_evaluation(*model, policy, 0.99)[0] for policy in policies
    )
    assert learned == pytest.approx(best, rel=1e-6)


class Walk4(Walk):
    """Its place four times."""

    observation_space = spaces.Box(-3.0, 3.0, (4,), "float32")

    def observe(self, state):
        return ops.repeat(state["x"][:, None], 4, axis=1)


class Broken(Walk4):
    """Rewards that aren't finite, from the third step on."""

    def step(self, state, action, key):
        state, reward, *flags = super().step(state, action, key)
        return state, ops.where(state["steps"] > 2, -np.inf, reward), *flags


AGENTS = {
    "dqn": dqn_agent,
    "ppo": functools.partial(on_policy_agent, kit.PPO),
    "a2c": functools.partial(on_policy_agent, kit.A2C),
}


class Blind(Walk4):
    """Observations that aren't finite, from the third step on."""

    def observe(self, state):
        obs = super().observe(state)
        return ops.where(state["steps"][:, None] > 2, np.nan, obs)


@pytest.mark.variants
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    "env, what, value", [(Broken, "reward", "-inf"), (Blind, "observation", "nan")]
)
def test_what_is_not_finite_ends_the_training(name, env, what, value):
    agent = AGENTS[name]()
    message = f"`{what}` is {value} in step .*in the environment"
    with pytest.raises(ArithmeticError, match=message) as error:
        agent.fit(env(2), 200, verbose=0)
    assert error.value.quantity == what
    assert all(np.isfinite(x).all() for x in agent.get_weights())


@pytest.mark.parametrize("name", AGENTS)
def test_environments_that_do_not_fit_are_refused(name):
    agent = AGENTS[name]()
    with pytest.raises(ValueError, match=r"shape \(1,\).*takes \(4,\)"):
        agent.fit(Walk(2), 200, verbose=0)


def cliff_agent():
    agent = kit.QLearning(48, 4, seed=0)
    agent.compile(keras.optimizers.SGD(0.5))
    return agent


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="has float64 only if the process asks"
)
@pytest.mark.parametrize("name", ["dqn", "q_learning"])
def test_agents_train_in_float64(name, float64):
    env = kit.envs.CliffWalking(2) if name == "q_learning" else CartPole(2)
    agent = {**AGENTS, "q_learning": cliff_agent}[name]()
    before = agent.get_weights()
    agent.fit(env, 400, verbose=0)
    after = agent.get_weights()
    assert all(np.isfinite(x).all() for x in after)
    assert any(np.any(x != y) for x, y in zip(before, after, strict=True))


def test_dqn_counts_steps_in_32_bits():
    with pytest.raises(ValueError, match=r"DQN: `total_timesteps`.*2\*\*31"):
        dqn_agent().fit(Walk4(2), 2**31)


def test_what_is_reported():
    agent = on_policy_agent(kit.PPO)
    epochs = []
    report = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: epochs.append(dict(logs))
    )
    history = agent.fit(CartPole(4), 3200, verbose=0, callbacks=[report])
    assert history.history["timesteps"][-1] == 3200
    assert len(epochs) == 50
    assert 5 < np.nanmean(history.history["return"]) < 500
    assert np.array_equal(history.history["return"], history.history["length"], True)
    assert set(epochs[0]) >= {"policy_loss", "value_loss", "entropy", "approx_kl"}
    result = agent.evaluate(gymnasium.make("CartPole-v1"), episodes=2, seed=0)
    assert result["return"] > 5


@pytest.mark.once
def test_options_count_that_are_set_between_two_fits():
    agent = on_policy_agent(kit.PPO)
    agent.compile("sgd")
    agent.fit(CartPole(2), 32, verbose=0)
    before = agent.critic.get_weights()
    agent.vf_coef = 0.0
    agent.fit(CartPole(2), 32, verbose=0)
    for a, b in zip(agent.critic.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)
    agent.vf_coef = 0.5
    agent.fit(CartPole(2), 32, verbose=0)
    assert not np.array_equal(agent.critic.get_weights()[0], before[0])


def test_a_turn_is_some_updates_and_not_longer_than_an_epoch():
    agent = dqn_agent()
    assert updates_per_call(agent, 10**6, 512) == STEPS_PER_CALL // 512
    assert updates_per_call(agent, 100, 512) == 1
    assert updates_per_call(agent, 10_000, 10, 1_000) == 100


@pytest.mark.once
@pytest.mark.parametrize("name", ["dqn", "ppo", "a2c"])
@pytest.mark.parametrize("argument", ["total_timesteps", "steps_per_epoch"])
@pytest.mark.parametrize("value", [0, -5, "a"])
def test_numbers_of_steps_that_are_none(name, argument, value):
    arguments = {"total_timesteps": 64, argument: value}
    with pytest.raises((TypeError, ValueError), match=f"`{argument}`.*{value}"):
        AGENTS[name]().fit(Walk4(2), **arguments, verbose=0)


@pytest.mark.once
@pytest.mark.parametrize("name", ["dqn", "ppo", "a2c"])
def test_both_seeds_count(name):
    def weights(agent_seed, env_seed):
        agent = AGENTS[name](seed=agent_seed)
        agent.fit(CartPole(2), 64, verbose=0, seed=env_seed)
        return np.concatenate([x.ravel() for x in agent.get_weights()])

    one = weights(1, 5)
    np.testing.assert_array_equal(one, weights(1, 5))
    assert not np.array_equal(one, weights(2, 5))
    assert not np.array_equal(one, weights(1, 6))


def test_environments_draw_other_numbers_than_an_agent_of_the_same_seed():
    environments = to_numpy(environment_keys(3)).tolist()
    agent = to_numpy(kit.random.split(kit.random.key(3), 20)).tolist()
    assert not any(key in agent for key in environments)


def test_dqn_begins_to_learn_with_the_next_call():
    agent = dqn_agent(learning_starts=40)
    history = agent.fit(Walk4(2), 160, verbose=0, steps_per_epoch=32)
    assert np.isnan(history.history["loss"]).tolist() == [True, False] + [False] * 3


def test_a_subclass_says_how_it_learns():
    with pytest.raises(NotImplementedError, match="`update` isn't defined"):
        OnPolicy.update(on_policy_agent(kit.A2C), {}, None)


def test_agents_are_evaluated_where_they_learn():
    agent = on_policy_agent(kit.A2C)
    result = agent.evaluate(CartPole(3), episodes=6, seed=0)
    assert result["episodes"] == 6
    assert result["return"] == result["length"] > 5


def test_environments_by_their_ids():
    env = kit.envs.make("kit/CartPole-v1", 3)
    assert isinstance(env, CartPole)
    assert env.num_envs == 3
    assert kit.envs.make("FrozenLake-v1", is_slippery=False).num_envs == 1
    with pytest.raises(ValueError, match=r"`env` must be one of Acrobot-v1.*'Pong'"):
        kit.envs.make("Pong")


# --- The recipe -----------------------------------------------------------------------

TINY = {"total_timesteps": 600, "units": (8,), "num_epochs": 2, "eval_episodes": 2}


def test_the_recipe_leaves_what_it_promises(load_recipe, tmp_path, capsys):
    load_recipe("fused").main(output_dir=tmp_path, verbose=0, **TINY)
    names = {"model.keras", "history.csv", "learning_curve.png", "metrics.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"]["total_timesteps"] >= 600
    assert set(record["baselines"]) == {"random_return"}
    assert capsys.readouterr().out == ""
    agent = keras.saving.load_model(tmp_path / "model.keras")
    assert agent.act(np.zeros(4, "float32")) in (0, 1)


@pytest.mark.parametrize(
    "env",
    [
        pytest.param("Freeway-v1", marks=pytest.mark.once),  # with convolutions
        pytest.param("kit/Pendulum-v1", marks=pytest.mark.once),
        "FrozenLake-v1",
    ],
)
def test_the_recipe_takes_environments_of_the_kit(load_recipe, env, tmp_path):
    small = {"total_timesteps": 64, "num_envs": 2, "num_steps": 8, "num_epochs": 1}
    options = {**small, "units": (8,), "eval_episodes": 1}
    load_recipe("fused").main(env=env, output_dir=tmp_path, verbose=0, **options)
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"]["eval_episodes"] == 1


@pytest.mark.once
def test_a_trained_agent_is_saved_before_it_is_evaluated(
    load_recipe, tmp_path, monkeypatch
):
    def fail(*args, **kwargs):
        raise OSError("no display")

    monkeypatch.setattr(kit.PPO, "evaluate", fail)
    with pytest.raises(OSError, match="no display"):
        load_recipe("fused").main(output_dir=tmp_path, verbose=0, **TINY)
    assert (tmp_path / "model.keras").exists()


def test_numbered_states_as_vectors():
    env = kit.envs.one_hot(kit.envs.make("FrozenLake-v1", 3))
    assert env.observation_space.shape == (16,)
    np.testing.assert_array_equal(
        to_numpy(env.observe(ops.convert_to_tensor([0, 5, 15], "int32"))),
        np.eye(16)[[0, 5, 15]],
    )
    agent = dqn_agent()
    with pytest.raises(ValueError, match=r"Discrete\(16\).*kit.encoder"):
        agent.fit(kit.envs.make("FrozenLake-v1"), 64)
    with pytest.raises(ValueError, match=r"one_hot: `env`.*Discrete.*Box"):
        kit.envs.one_hot(CartPole(1))


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(3))
def test_the_recipe_learns_cartpole(load_recipe, seed, tmp_path):
    record = load_recipe("fused").main(seed=seed, output_dir=tmp_path, verbose=0)
    assert record["metrics"]["eval_return"] >= 475
