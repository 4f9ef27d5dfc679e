"""DQN: the equations by hand, the contract of `fit`, parity, learning.

`KERAS_BACKEND=jax python tests/test_dqn.py` makes the golden figures anew.
"""

import csv
import importlib.util
import inspect
import json
import math
import os
import pathlib
import re
import subprocess
import sys

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from keras import ops

import kit
from kit.rl.progress import Progress, with_progress

GOLDEN = pathlib.Path(__file__).parent / "golden"
LOGS = {
    "return",
    "length",
    "loss",
    "q_value",
    "epsilon",
    "steps_per_second",
    "timesteps",
}


class Corridor(gymnasium.Env):
    """Four places, seen one-hot: leave at once for 0.2, or go to the end for 1.

    Action 0 leaves, and the last thing it shows is the place next to the goal,
    which is worth 1 to those who haven't left: whoever bootstraps from it leaves.
    Action 1 goes right, for nothing until the end.
    """

    length = 4

    def __init__(self, start=0):
        self.observation_space = Box(0, 1, (self.length,), np.float32)
        self.action_space = Discrete(2, start=start)
        self.actions, self.resets = [], []

    def _obs(self, place):
        return np.eye(self.length, dtype=np.float32)[place]

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.resets.append(seed)
        self.place = 0
        return self._obs(0), {}

    def step(self, action):
        self.actions.append(action)
        action = int(action - self.action_space.start)
        assert action in (0, 1)
        if action == 0:
            return self._obs(-1), 0.2, True, False, {}
        self.place += 1
        done = self.place == self.length
        return self._obs(min(self.place, self.length - 1)), float(done), done, False, {}


class Still(gymnasium.Env):
    """Shows the same for ever; episodes are cut off after 5 steps, 1 for each."""

    def __init__(self, observation_space=None, action_space=None):
        self.observation_space = observation_space or Box(0, 1, (3,), np.float32)
        self.action_space = action_space or Discrete(2)
        self.actions = []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.t = 0
        return self.observation_space.sample(), {}

    def step(self, action):
        self.actions.append(int(action))
        self.t += 1
        return self.observation_space.sample(), 1.0, False, self.t == 5, {}


class Untouchable(Still):
    """Must be neither reset nor stepped."""

    def reset(self, seed=None, options=None):
        raise AssertionError("reset")

    def step(self, action):
        raise AssertionError("step")


def linear(kernel):
    """Q(s, .) = s @ kernel."""
    kernel = np.asarray(kernel, "float32")
    model = keras.Sequential(
        [
            keras.Input((kernel.shape[0],)),
            keras.layers.Dense(kernel.shape[1], use_bias=False),
        ]
    )
    model.set_weights([kernel])
    return model


def network(obs_shape=(3,), num_actions=2, units=(8,), seed=0, **kwargs):
    model = kit.q_network(obs_shape, num_actions, units, **kwargs)
    kit.initialize_weights(model, seed)
    return model


def agent_for(q_network, optimizer="adam", loss="huber", **kwargs):
    defaults = {"learning_starts": 10, "batch_size": 8, "buffer_size": 1000}
    agent = kit.DQN(q_network, **(defaults | kwargs))
    agent.compile(optimizer, loss)
    return agent


def batches(obs, action, reward, next_obs, terminated, truncated=None):
    """A batch as the replay buffer gives it."""
    batch = {
        "obs": np.asarray(obs, "float32"),
        "action": np.asarray(action, "int32"),
        "reward": np.asarray(reward, "float32"),
        "next_obs": np.asarray(next_obs, "float32"),
        "terminated": np.asarray(terminated, bool),
    }
    truncated = np.zeros_like(batch["terminated"]) if truncated is None else truncated
    return batch | {"truncated": np.asarray(truncated, bool)}


def learn(agent, batch):
    """Learns from batches (G, B, ...); returns the mean loss and Q-value."""
    loss, q_value, _ = agent._learn(batch)
    return float(ops.convert_to_numpy(loss)), float(ops.convert_to_numpy(q_value))


def td_target(agent, batch):
    batch = {name: ops.convert_to_tensor(x) for name, x in batch.items()}
    return ops.convert_to_numpy(agent._td_target(batch)).tolist()


def q_values(agent, obs):
    return ops.convert_to_numpy(agent(np.asarray(obs, "float32")))


def weights_equal(a, b):
    return all((x == y).all() for x, y in zip(a, b, strict=True))


# --- The equations ----------------------------------------------------------


TD_CASE = batches(
    obs=[[1, 0], [1, 0], [1, 0], [1, 0]],
    action=[0, 1, 0, 1],
    reward=[1.0, -2.0, 10.0, 20.0],
    next_obs=[[1, 0], [0, 1], [0, 1], [0, 1]],
    terminated=[False, False, True, False],
    truncated=[False, False, False, True],
)


@pytest.mark.parametrize(
    ("double", "expected"),
    [
        # Q_target is (1, 2) in the first state, (5, 3) in the second.
        (False, [1 + 0.5 * 2, -2 + 0.5 * 5, 10.0, 20 + 0.5 * 5]),
        # Q chooses action 0 in the first state and 1 in the second.
        (True, [1 + 0.5 * 1, -2 + 0.5 * 3, 10.0, 20 + 0.5 * 3]),
    ],
    ids=["dqn", "double"],
)
def test_td_target_by_hand(double, expected):
    agent = agent_for(linear([[4, 0], [0, 4]]), gamma=0.5, double=double)
    agent.target_network.set_weights([np.array([[1, 2], [5, 3]], "float32")])
    assert td_target(agent, TD_CASE) == expected


def test_terminated_and_truncated_at_once_is_terminated():
    agent = agent_for(linear([[1], [1]]), gamma=0.5)
    batch = batches([[1, 0]], [0], [3.0], [[1, 1]], [True], [True])
    assert td_target(agent, batch) == [3.0]


def test_gradient_steps_by_hand():
    agent = agent_for(
        linear([[2, 0], [0, 4]]), keras.optimizers.SGD(0.01), "mse", gamma=0.5
    )
    # y = 3 + 0.5 * 2 = 4, Q([1, 2], action 1) = 8, dLoss/dQ = 2 (8 - 4) = 8.
    batch = batches([[[1, 2]]], [[1]], [[3.0]], [[[1, 0]]], [[False]])
    assert learn(agent, batch) == (16.0, 8.0)
    (kernel,) = agent.q_network.get_weights()
    np.testing.assert_allclose(kernel, [[2, -0.08], [0, 4 - 0.16]], rtol=1e-6)
    # The target network still says 2, so y = 4: Q is -0.08 + 2 * 3.84 = 7.6.
    loss, q_value = learn(agent, batch)
    np.testing.assert_allclose((loss, q_value), (3.6**2, 7.6), rtol=1e-5)


def test_the_action_that_was_taken_learns_though_another_is_better():
    agent = agent_for(
        linear([[2, 0], [0, 4]]), keras.optimizers.SGD(0.01), "mse", gamma=0.5
    )
    # y = 3 + 0.5 * 2 = 4, Q([1, 2]) = (2, 8), dLoss/dQ = 2 (2 - 4) = -4.
    batch = batches([[[1, 2]]], [[0]], [[3.0]], [[[1, 0]]], [[False]])
    assert learn(agent, batch) == (4.0, 2.0)
    (kernel,) = agent.q_network.get_weights()
    np.testing.assert_allclose(kernel, [[2 + 0.04, 0], [0.08, 4]], rtol=1e-6)


def test_huber_by_hand():
    q = np.array([1.0, 0.0, 0.0, 2.0, 0.0], "float32")
    td_target = np.array([1.0, 0.5, -1.0, 3.5, -3.0], "float32")
    # Errors 0, 1/2 and 1: e^2 / 2. Beyond, 3/2 and 3: e - 1/2.
    losses = ops.convert_to_numpy(kit.dqn.huber(td_target, q))
    np.testing.assert_allclose(losses, [0, 0.125, 0.5, 1.0, 2.5], rtol=1e-6)


def test_the_default_loss_is_huber_and_a_batch_is_averaged():
    agent = agent_for(linear([[2, 0], [0, 4]]), gamma=0.5)
    agent.compile(keras.optimizers.SGD(0.1))
    # Errors 4 (loss 3.5, gradient 1) and 0.5 (loss 0.125, gradient 0.5).
    batch = batches(
        [[[1, 2], [1, 0]]],
        [[1, 0]],
        [[3.0, 1.5]],
        [[[1, 0], [0, 1]]],
        [[False, True]],
    )
    loss, q_value = learn(agent, batch)
    np.testing.assert_allclose((loss, q_value), ((3.5 + 0.125) / 2, 5.0), rtol=1e-6)
    (kernel,) = agent.q_network.get_weights()
    expected = [[2 - 0.1 * 0.25, -0.1 * 0.5], [0, 4 - 0.1 * 1.0]]
    np.testing.assert_allclose(kernel, expected, rtol=1e-6)


def test_gradient_steps_of_a_turn_follow_each_other():
    losses = []
    batch = golden_batches(6)
    for together in (True, False):
        agent = agent_for(network((4,)), keras.optimizers.SGD(0.1))
        if together:
            losses.append(learn(agent, batch)[0])
        else:
            parts = [{k: v[i : i + 1] for k, v in batch.items()} for i in range(6)]
            losses.append(np.mean([learn(agent, part)[0] for part in parts]))
        assert int(agent.optimizer.iterations) == 6
        losses += [w for w in agent.q_network.get_weights()]
    half = len(losses) // 2
    for a, b in zip(losses[:half], losses[half:], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_dueling_by_hand():
    layer = kit.Dueling()
    inputs = np.array([[10, 1, 2, 6], [-1, 0, 0, 0]], "float32")
    expected = [[10 + 1 - 3, 10 + 2 - 3, 10 + 6 - 3], [-1, -1, -1]]
    np.testing.assert_allclose(ops.convert_to_numpy(layer(inputs)), expected)


def run_layer_test(layer_class, **kwargs):
    """Keras' own checks of a layer. They are private: this is where they come in."""
    from keras.src.testing import TestCase

    TestCase().run_layer_test(layer_class, **kwargs)


# They fit a model of this layer alone on a generator: Keras warns of both.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.filterwarnings("ignore:The model does not have any trainable:UserWarning")
def test_dueling_passes_keras_layer_checks():
    run_layer_test(
        kit.Dueling,
        init_kwargs={},
        input_shape=(2, 4),
        expected_output_shape=(2, 3),
        expected_num_trainable_weights=0,
        expected_num_non_trainable_weights=0,
        supports_masking=False,
        assert_built_after_instantiation=False,
    )


@pytest.mark.parametrize("dueling", [False, True])
def test_q_network_shapes(dueling):
    model = kit.q_network((4,), 3, units=(8, 6), dueling=dueling)
    assert model.output_shape == (None, 3)
    assert model.count_params() == 4 * 8 + 8 + 8 * 6 + 6 + 7 * (3 + dueling)
    assert isinstance(model.layers[-1], kit.Dueling) == dueling
    image = kit.q_network((10, 10, 2), 3, units=(), dueling=dueling)
    assert image.output_shape == (None, 3)
    assert any(isinstance(layer, keras.layers.Conv2D) for layer in image.layers)
    assert kit.q_network((2, 5), 3).output_shape == (None, 3)


# --- Exploration ------------------------------------------------------------


def test_the_environment_sees_the_epsilon_schedule():
    # Greedy is action 0, always; one of four random ones is 0 too.
    q_network = linear(np.zeros((3, 4)))
    env = Still(action_space=Discrete(4))
    agent = agent_for(
        q_network,
        learning_starts=10**6,
        epsilon_end=0.2,
        exploration_fraction=0.5,
        train_freq=20,
    )
    history = agent.fit(env, 4000, steps_per_epoch=1000, verbose=0).history
    others = np.array(env.actions).reshape(4, 1000)
    rates = (others != 0).mean(axis=1) / 0.75
    np.testing.assert_allclose(rates, [0.8, 0.4, 0.2, 0.2], atol=0.07)
    expected = [0.8, 0.4, 0.2, 0.2]
    np.testing.assert_allclose(history["epsilon"], expected, atol=0.01)
    assert len(np.unique(others[others != 0])) == 3


def test_without_epsilon_it_is_greedy_from_the_start():
    env = Still(action_space=Discrete(3))
    q_network = linear(np.ones((3, 1)) * [[0, 1, 0.5]])
    agent = agent_for(
        q_network, learning_starts=10**6, epsilon_start=0.0, epsilon_end=0.0
    )
    agent.fit(env, 60, verbose=0)
    assert set(env.actions) == {1}


class Clock(Still):
    """Shows the time, and is cut off at 3."""

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(3, "float32"), {}

    def step(self, action):
        self.t += 1
        return np.full(3, self.t, "float32"), 1.0, False, self.t == 3, {}


@pytest.mark.parametrize(
    "mode", [None, *AutoresetMode], ids=["alone", "next", "same", "not"]
)
def test_a_final_observation_is_what_is_learned_from(mode):
    space = Box(0, 3, (3,), np.float32)
    env = Clock(space)
    if mode is not None:
        env = SyncVectorEnv([lambda: Clock(space)] * 2, autoreset_mode=mode)
    agent = agent_for(network(), batch_size=50)
    seen = []

    def learn(batches):
        seen.append(batches)
        return 0.0, 0.0, np.zeros(0)

    agent.__dict__["_learn"] = learn
    agent.fit(env, 60, verbose=0)
    obs, next_obs, truncated = (
        np.concatenate([batch[name].reshape(50, -1) for batch in seen])
        for name in ("obs", "next_obs", "truncated")
    )
    np.testing.assert_array_equal(next_obs, obs + 1)
    np.testing.assert_array_equal(truncated[:, 0], next_obs[:, 0] == 3)
    assert set(np.unique(obs)) == {0, 1, 2}


@pytest.mark.variants
@pytest.mark.parametrize("num_envs", [1, 2])
def test_the_action_space_may_start_at_one(num_envs):
    envs = [Corridor(start=1) for _ in range(num_envs)]
    env = envs[0] if num_envs == 1 else SyncVectorEnv([lambda e=e: e for e in envs])
    agent = agent_for(network((4,)), epsilon_end=0.5)
    agent.fit(env, 100, verbose=0)
    for each in envs:
        assert set(map(int, each.actions)) == {1, 2}
        each.actions.clear()
    agent.evaluate(env, 2 * num_envs)
    assert {int(a) for a in envs[0].actions} <= {1, 2}
    first = agent.act(envs[0]._obs(0))
    assert envs[0].actions[0] == first


# --- The target network -----------------------------------------------------


def test_gradient_steps_leave_the_target_network_alone():
    agent = agent_for(network((4,)), double=True)
    before = agent.target_network.get_weights()
    online = agent.q_network.get_weights()
    for _ in range(3):
        learn(agent, golden_batches(2))
    assert weights_equal(agent.target_network.get_weights(), before)
    assert not weights_equal(agent.q_network.get_weights(), online)
    assert weights_equal(online, before)


def test_a_hard_update_is_a_copy_and_comes_in_its_period():
    agent = agent_for(network(), train_freq=10, target_update_freq=30)
    equal, moved = [], []
    last = [agent.target_network.get_weights()]

    def on_batch_end(batch, logs):
        target = agent.target_network.get_weights()
        equal.append(weights_equal(target, agent.q_network.get_weights()))
        moved.append(not weights_equal(target, last[0]))
        last[0] = target

    record = keras.callbacks.LambdaCallback(on_train_batch_end=on_batch_end)
    agent.fit(Still(), 120, callbacks=[record], verbose=0)
    assert equal == moved == [False, False, True] * 4


def test_soft_updates_by_hand():
    agent = agent_for(
        linear([[4.0, 8.0]] * 3),
        keras.optimizers.SGD(0.0),
        train_freq=20,
        target_update_freq=10,
        tau=0.25,
    )
    agent.target_network.set_weights([np.zeros((3, 2), "float32")])
    agent.fit(Still(), 40, verbose=0)
    # Four updates, two in each turn.
    (target,) = agent.target_network.get_weights()
    part = 1 - 0.75**4
    np.testing.assert_allclose(target, [[4 * part, 8 * part]] * 3, rtol=1e-6)


def test_only_the_variables_of_the_q_network_are_trained():
    agent = agent_for(network(), target_update_freq=10**6)
    assert [v.path for v in agent.trainable_variables] == [
        v.path for v in agent.q_network.trainable_variables
    ]
    target = agent.target_network.get_weights()
    online = agent.q_network.get_weights()
    agent.fit(Still(), 100, verbose=0)
    assert weights_equal(agent.target_network.get_weights(), target)
    for now, then in zip(agent.q_network.get_weights(), online, strict=True):
        assert (now != then).any()


def test_a_frozen_layer_stays_as_it_is():
    q_network = network()
    q_network.layers[0].trainable = False
    agent = agent_for(q_network)
    frozen = q_network.layers[0].get_weights()
    last = q_network.layers[1].get_weights()
    agent.fit(Still(), 50, verbose=0)
    assert weights_equal(q_network.layers[0].get_weights(), frozen)
    assert not weights_equal(q_network.layers[1].get_weights(), last)


def test_batch_normalization_and_dropout():
    q_network = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(8, activation="relu"),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.Dropout(0.5),
            keras.layers.Dense(2),
        ]
    )
    agent = agent_for(q_network, train_freq=10, target_update_freq=10, double=True)
    norm, target_norm = q_network.layers[1], agent.target_network.layers[1]
    agent.fit(Still(), 50, verbose=0)
    mean = ops.convert_to_numpy(norm.moving_mean)
    assert (mean != 0).any()
    np.testing.assert_array_equal(ops.convert_to_numpy(target_norm.moving_mean), mean)
    # Acting normalizes with the moving statistics, and drops nothing.
    obs = np.random.default_rng(0).random((16, 3), np.float32)
    together = agent.act(obs)
    assert [agent.act(o) for o in obs] == together.tolist()
    np.testing.assert_array_equal(together, q_values(agent, obs).argmax(-1))
    # The target's pass and acting leave the statistics alone.
    np.testing.assert_array_equal(ops.convert_to_numpy(norm.moving_mean), mean)


# --- fit --------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 10, 101])
def test_one_environment_takes_exactly_total_timesteps(total):
    env = Still()
    agent = agent_for(network(), train_freq=10, learning_starts=10**6)
    history = agent.fit(env, total, verbose=0)
    assert len(env.actions) == total
    assert history.history["timesteps"][-1] == total


@pytest.mark.variants
@pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)
def test_vector_environments_train_and_round_the_steps(mode):
    envs = [Still() for _ in range(3)]
    vector = SyncVectorEnv([lambda e=e: e for e in envs], autoreset_mode=mode)
    agent = agent_for(network(), train_freq=4)
    start = agent.q_network.get_weights()
    history = agent.fit(vector, 100, steps_per_epoch=36, verbose=0).history
    assert history["timesteps"] == [36, 72, 102]
    resets = mode == AutoresetMode.NEXT_STEP
    # After five steps, one that only resets.
    assert [len(env.actions) for env in envs] == [34 - 34 // 6 * resets] * 3
    assert history["return"] == history["length"] == [5.0, 5.0, 5.0]
    assert not weights_equal(agent.q_network.get_weights(), start)


def test_history_has_every_key_in_every_epoch():
    agent = agent_for(network(), train_freq=10, learning_starts=50)
    history = agent.fit(Still(), 100, steps_per_epoch=20, verbose=0)
    assert isinstance(history, keras.callbacks.History)
    assert history is agent.history
    assert history.epoch == [0, 1, 2, 3, 4]
    logs = history.history
    assert set(logs) == LOGS
    assert {len(values) for values in logs.values()} == {5}
    assert logs["timesteps"] == [20, 40, 60, 80, 100]
    assert logs["return"] == [5.0] * 5
    assert logs["length"] == [5.0] * 5
    assert np.isnan(logs["loss"]).tolist() == [True, True, False, False, False]
    assert np.isnan(logs["q_value"]).tolist() == [True, True, False, False, False]
    assert (np.array(logs["steps_per_second"]) > 0).all()
    assert all(type(v) in (int, float) for values in logs.values() for v in values)


def test_an_epoch_without_an_end_has_no_return():
    agent = agent_for(network(), train_freq=3, learning_starts=10**6)
    logs = agent.fit(Still(), 6, steps_per_epoch=3, verbose=0).history
    np.testing.assert_array_equal(logs["return"], [math.nan, 5.0])


class Rising(Still):
    """Each step of episode n gives the reward n."""

    episode = 0

    def reset(self, **kwargs):
        self.episode += 1
        return super().reset(**kwargs)

    def step(self, action):
        obs, _, terminated, truncated, info = super().step(action)
        return obs, float(self.episode), terminated, truncated, info


def test_the_return_is_the_mean_of_the_epochs_own_episodes():
    agent = agent_for(network(), train_freq=5, learning_starts=10**6)
    logs = agent.fit(Rising(), 20, steps_per_epoch=10, verbose=0).history
    assert logs["return"] == [5 * 1.5, 5 * 3.5]


def test_learning_starts_and_the_number_of_gradient_steps():
    agent = agent_for(network(), train_freq=10, learning_starts=45, gradient_steps=3)
    agent.fit(Still(), 100, verbose=0)
    # After 50, 60, 70, 80, 90 and 100 steps.
    assert int(agent.optimizer.iterations) == 6 * 3


def test_images_of_uint8():
    space = Box(0, 255, (6, 6, 2), np.uint8)
    agent = agent_for(network((6, 6, 2)), buffer_size=60)
    start = agent.q_network.get_weights()
    env = Still(space)
    history = agent.fit(env, 80, verbose=0)
    assert np.isfinite(history.history["loss"][-1])
    assert not weights_equal(agent.q_network.get_weights(), start)
    obs = np.stack([space.sample() for _ in range(5)])
    np.testing.assert_array_equal(agent.act(obs), q_values(agent, obs).argmax(-1))
    assert isinstance(agent.act(obs[0]), int)


def test_act_on_one_observation_and_on_a_batch():
    agent = agent_for(linear([[1, 0], [0, 1]]))
    action = agent.act([3.0, 1.0])
    assert (action, type(action)) == (0, int)
    assert agent.act(np.array([0, 2])) == 1  # integers
    actions = agent.act(np.array([[1.0, 2.0], [2.0, 1.0], [0.0, 1.0]]))
    assert isinstance(actions, np.ndarray)
    assert np.issubdtype(actions.dtype, np.integer)
    assert actions.tolist() == [1, 0, 1]
    for wrong in (np.zeros(3), np.zeros((2, 3)), np.zeros((1, 1, 2)), 1.0):
        with pytest.raises(ValueError, match=r"`obs` must have shape \(2,\)") as error:
            agent.act(wrong)
        assert str(np.shape(wrong)) in str(error.value)


def test_evaluate_plays_greedily():
    agent = kit.DQN(linear(np.ones((4, 1)) * [[0, 1]]))  # right, always
    assert agent.evaluate(Corridor(), episodes=3) == {
        "return": 1.0,
        "return_std": 0.0,
        "length": 4.0,
        "episodes": 3,
    }
    agent = kit.DQN(linear(np.ones((4, 1)) * [[1, 0]]))
    env = Corridor()
    got = agent.evaluate(env, episodes=4, seed=3)
    np.testing.assert_allclose(got["return"], 0.2, rtol=1e-6)
    assert env.resets[:2] == [3, None]
    pair = SyncVectorEnv([Corridor, Corridor])
    assert agent.evaluate(pair, episodes=3)["episodes"] == 4


def train(seed=0, env_seed=None):
    agent = agent_for(network(), seed=seed, epsilon_end=0.5)
    env = Still()
    history = agent.fit(env, 120, steps_per_epoch=20, verbose=0, seed=env_seed).history
    del history["steps_per_second"]
    return history, agent.q_network.get_weights(), env.actions


def test_one_seed_is_one_run():
    first, again, other = train(3), train(3), train(4)
    np.testing.assert_equal(first[0], again[0])
    assert weights_equal(first[1], again[1])
    assert first[2] == again[2]
    assert first[0]["loss"] != other[0]["loss"]
    assert first[2] != other[2]


def test_the_environments_seed_is_drawn_or_its_own():
    (drawn,) = kit.random.split_seed(kit.random.Generator(9), 1)
    for seed, expected in ((None, drawn), (4, 4)):
        env = Corridor()
        agent = agent_for(network((4,)), seed=9, learning_starts=10**6)
        agent.fit(env, 30, verbose=0, seed=seed)
        assert env.resets[0] == expected
        assert set(env.resets[1:]) == {None}


def test_a_second_fit_goes_on():
    agent = agent_for(network(), train_freq=10)
    agent.fit(Still(), 50, verbose=0)
    steps = int(agent.optimizer.iterations)
    weights = agent.q_network.get_weights()
    history = agent.fit(Still(), 50, verbose=0)
    assert int(agent.optimizer.iterations) == 2 * steps
    assert history.history["timesteps"][-1] == 50
    assert not weights_equal(agent.q_network.get_weights(), weights)


def test_compile_again_changes_how_it_learns():
    agent = agent_for(network(), keras.optimizers.SGD(0.0))
    weights = agent.q_network.get_weights()
    agent.fit(Still(), 50, verbose=0)
    assert weights_equal(agent.q_network.get_weights(), weights)
    agent.compile(keras.optimizers.SGD(0.1))
    agent.fit(Still(), 50, verbose=0)
    assert not weights_equal(agent.q_network.get_weights(), weights)


# --- Callbacks --------------------------------------------------------------


def test_callbacks(tmp_path, capsys):
    seen = []

    def see(name):
        return lambda *args: seen.append((name, *args[:1]))

    agent = agent_for(network(), train_freq=10)
    history = agent.fit(
        Still(),
        80,
        steps_per_epoch=20,
        verbose=0,
        callbacks=[
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}-{return:.0f}.keras"),
            keras.callbacks.ModelCheckpoint(
                tmp_path / "best.weights.h5",
                monitor="return",
                mode="max",
                save_best_only=True,
                save_weights_only=True,
            ),
            keras.callbacks.LambdaCallback(
                on_train_begin=see("begin"),
                on_train_end=see("end"),
                on_epoch_begin=see("epoch"),
                on_epoch_end=see("epoch end"),
            ),
            keras.callbacks.LearningRateScheduler(lambda epoch: 0.1 / (epoch + 1)),
        ],
    )
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
    epochs = [(name, i) for i in range(4) for name in ("epoch", "epoch end")]
    assert [s[:2] for s in seen[1:-1]] == epochs
    assert (seen[0][0], seen[-1][0]) == ("begin", "end")
    with open(tmp_path / "log.csv") as file:
        rows = list(csv.DictReader(file))
    assert set(rows[0]) >= LOGS
    for name in LOGS:
        written = [float(row[name]) for row in rows]
        np.testing.assert_allclose(written, history.history[name], rtol=1e-6)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [
        *(f"{i}-5.keras" for i in range(1, 5)),
        "best.weights.h5",
        "log.csv",
    ]
    loaded = keras.saving.load_model(tmp_path / "4-5.keras")
    obs = np.random.default_rng(0).random((4, 3), np.float32)
    np.testing.assert_allclose(
        q_values(loaded, obs), q_values(agent, obs), rtol=1e-6, atol=1e-7
    )
    np.testing.assert_allclose(history.history["learning_rate"][-1], 0.025)
    np.testing.assert_allclose(float(agent.optimizer.learning_rate), 0.025)


def test_early_stopping_stops():
    env = Still()
    agent = agent_for(network(), train_freq=10, learning_starts=10**6)
    # The return is 5 from the first epoch on.
    stop = keras.callbacks.EarlyStopping(monitor="return", mode="max", patience=2)
    history = agent.fit(env, 500, steps_per_epoch=10, callbacks=[stop], verbose=0)
    assert len(history.epoch) == 3
    assert len(env.actions) == 30
    # and the next fit isn't stopped from the start.
    assert len(agent.fit(env, 50, steps_per_epoch=10, verbose=0).epoch) == 5


def test_a_callback_may_stop_within_an_epoch():
    agent = agent_for(network(), train_freq=10, learning_starts=10**6)

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = logs["timesteps"] >= 30

    history = agent.fit(
        Still(), 500, steps_per_epoch=100, callbacks=[Stop()], verbose=0
    )
    assert history.history["timesteps"] == [30]
    assert set(history.history) == LOGS


@pytest.mark.parametrize("verbose", [0, 1, 2, "auto"])
def test_verbose(verbose, capsys):
    agent = agent_for(network(), train_freq=10, learning_starts=10**6)
    agent.fit(Still(), 40, steps_per_epoch=20, verbose=verbose)
    captured = capsys.readouterr()
    assert captured.err == ""
    lines = captured.out.splitlines()
    if verbose == 0:
        assert lines == []
    elif verbose == 2:
        assert "Epoch 2/2" in lines
        assert "return: 5.0" in lines[-1] and "q_value" in lines[-1]
    else:
        shown = [bare(x) for x in captured.out.split("\r") if x.strip("\b ")]
        assert shown[-1].startswith("40/40 ━━━━")
        assert shown[-1].endswith(" - return: 5.0000")
        assert captured.out.count("\n") == 1  # one bar, for all epochs


def bare(text):
    """Without colours, and what is deleted again."""
    return re.sub(r"\x1b\[\d+m|\x08", "", text).strip()


def test_progress_fits_into_80_columns_and_says_what_is_left(capsys, monkeypatch):
    now = iter(range(0, 10**9, 5_000))
    monkeypatch.setattr("time.time", lambda: next(now))
    bar = Progress(10_000_000)
    bar.set_params({"verbose": 1, "epochs": 3, "steps": 2})
    bar.on_train_begin()
    for epoch, logs in enumerate(({"return": 1.0}, {"eval_return": -1234.5})):
        bar.on_epoch_begin(epoch)
        for batch in range(2):
            steps = 1_000_000 * (2 * epoch + batch + 1)
            bar.on_train_batch_end(batch, {"timesteps": steps})
        bar.on_epoch_end(epoch, {"return": math.nan, **logs})
    bar.on_train_batch_end(0, {"timesteps": 12_000_000})  # whole turns
    bar.on_train_end()
    shown = [bare(x) for x in capsys.readouterr().out.split("\r")[1:]]
    assert max(map(len, shown)) <= 80
    assert "return" not in shown[0]
    assert re.search(r" \d+:\d\d:\d\d \d+ms/step - return: 1.0000", shown[2])
    assert shown[-1].startswith("10000000/10000000 ")
    assert shown[-1].endswith(" - return: -1234.5000")


@pytest.mark.once
def test_the_time_left_of_a_resumed_training_is_that_of_its_own_steps(
    capsys, monkeypatch
):
    now = iter(range(0, 10**9, 100))  # each look at the clock is 100 s later
    monkeypatch.setattr("time.time", lambda: next(now))
    bar = Progress(1_000)
    bar.set_params({"verbose": 1, "epochs": 1, "steps": 1})
    bar.on_train_begin()
    for steps in (800, 850):  # it was interrupted after 800 steps
        bar.on_train_batch_begin(0, {"timesteps": steps})
        bar.on_train_batch_end(0, {"timesteps": steps + 50})
    shown = [bare(x) for x in capsys.readouterr().out.split("\r")[1:]]
    # 100 s for 50 steps: 150 steps are left, then 100. The last of them is exact.
    assert " 5:00 2s/step" in shown[0] and " 3:20 2s/step" in shown[1]


def test_the_bar_of_a_resumed_agent_knows_where_it_begins(tmp_path, monkeypatch):
    begun = []

    class Stop(keras.callbacks.Callback):
        def __init__(self, timesteps):
            super().__init__()
            self.timesteps = timesteps

        def on_train_batch_end(self, batch, logs=None):
            if logs["timesteps"] == self.timesteps:
                raise KeyboardInterrupt

    def fit(stop):
        agent = agent_for(network(), train_freq=10)
        backup = kit.BackupAndRestore(tmp_path / "backups", 0)
        agent.fit(Still(), 40, callbacks=[backup, Stop(stop)], verbose=1)

    monkeypatch.setattr(
        Progress, "on_train_end", lambda self, logs: begun.append(self.progbar.begun)
    )
    with pytest.raises(KeyboardInterrupt):
        fit(stop=20)  # before it is backed up: the backup is that of 10 steps
    fit(stop=None)
    assert begun == [10]


def test_a_progress_bar_of_the_users_is_the_only_one():
    own = keras.callbacks.ProgbarLogger()
    assert with_progress([own], 10, verbose=1) == [own]
    assert with_progress(None, 10, verbose=2) == []
    assert [type(x) for x in with_progress(None, 10, verbose=1)] == [Progress]


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    pytest.importorskip("tensorflow.summary")
    agent = agent_for(network(), train_freq=10)
    board = keras.callbacks.TensorBoard(tmp_path, histogram_freq=1)
    agent.fit(Still(), 40, callbacks=[board], verbose=0)
    files = [path for path in tmp_path.rglob("*tfevents*") if path.is_file()]
    assert files
    assert any(b"epoch_return" in path.read_bytes() for path in files)


# --- Saving -----------------------------------------------------------------


ARGUMENTS = {
    "gamma": 0.8,
    "buffer_size": 77,
    "batch_size": 9,
    "learning_starts": 11,
    "train_freq": 3,
    "gradient_steps": 2,
    "target_update_freq": 13,
    "tau": 0.5,
    "epsilon_start": 0.9,
    "epsilon_end": 0.2,
    "exploration_fraction": 0.3,
    "double": True,
    "n_step": 2,
    "prioritized": True,
    "priority_exponent": 0.5,
    "priority_correction": 0.6,
    "frame_stack": True,
    "action_start": 3,
    "seed": 5,
}


def test_config_has_every_argument():
    parameters = inspect.signature(kit.DQN.__init__).parameters.values()
    names = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    assert names == list(ARGUMENTS), "complete ARGUMENTS in this file"
    defaults = {p.name: p.default for p in parameters}
    agent = kit.DQN(network(dueling=True), **ARGUMENTS, name="agent")
    config = agent.get_config()
    for name, value in ARGUMENTS.items():
        assert getattr(agent, name) == config[name] == value != defaults[name]
    json.dumps(config)
    for _ in range(2):  # A config may be used twice.
        again = kit.DQN.from_config(config)
        assert again.get_config() == config
    assert again.name == "agent"
    assert [layer.name for layer in again.q_network.layers] == [
        layer.name for layer in agent.q_network.layers
    ]


@pytest.mark.variants
@pytest.mark.parametrize("dueling", [False, True])
def test_saved_and_loaded_it_goes_on_learning(tmp_path, dueling):
    loss = keras.losses.LogCosh() if dueling else "mse"
    options = {**ARGUMENTS, "prioritized": False}  # which takes other losses
    agent = agent_for(
        network(dueling=dueling), keras.optimizers.Adam(0.01), loss, **options
    )
    agent.fit(Still(), 60, verbose=0)
    agent.save(tmp_path / "dqn.keras")
    loaded = keras.saving.load_model(tmp_path / "dqn.keras")  # No warning: an error.
    assert isinstance(loaded, kit.DQN)
    # `fit` has taken the first action from the environment.
    for name, value in {**options, "action_start": 0}.items():
        assert getattr(loaded, name) == value
    obs = np.random.default_rng(0).random((20, 3), np.float32)
    np.testing.assert_array_equal(q_values(loaded, obs), q_values(agent, obs))
    np.testing.assert_array_equal(loaded.act(obs), agent.act(obs))
    for name in ("q_network", "target_network"):
        assert weights_equal(
            getattr(loaded, name).get_weights(), getattr(agent, name).get_weights()
        )
    assert not weights_equal(
        agent.q_network.get_weights(), agent.target_network.get_weights()
    )
    assert loaded.compiled
    state = {v.path: ops.convert_to_numpy(v) for v in agent.optimizer.variables}
    assert int(loaded.optimizer.iterations) == int(agent.optimizer.iterations) > 0
    assert len(loaded.optimizer.variables) == len(state) > 4
    for v, w in zip(loaded.optimizer.variables, agent.optimizer.variables, strict=True):
        np.testing.assert_array_equal(
            ops.convert_to_numpy(v), ops.convert_to_numpy(w), v.path
        )
    # The same step from the same state.
    batch = batches(
        obs[None, :8],
        np.arange(8)[None] % 2,
        np.ones((1, 8)),
        obs[None, 8:16],
        np.zeros((1, 8)),
    )
    np.testing.assert_allclose(learn(loaded, batch), learn(agent, batch), rtol=1e-6)
    for a, b in zip(
        loaded.q_network.get_weights(), agent.q_network.get_weights(), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)
    weights = loaded.q_network.get_weights()
    loaded.fit(Still(), 60, verbose=0)
    assert not weights_equal(loaded.q_network.get_weights(), weights)


def test_an_uncompiled_agent_can_be_saved(tmp_path):
    agent = kit.DQN(network())
    agent.save(tmp_path / "dqn.keras")
    loaded = keras.saving.load_model(tmp_path / "dqn.keras")
    obs = np.eye(3, dtype="float32")
    np.testing.assert_array_equal(q_values(loaded, obs), q_values(agent, obs))


# --- Errors -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "error", "message"),
    [
        ("CartPole-v1", TypeError, "`env` must be a gymnasium.Env .*'CartPole-v1'"),
        (
            Untouchable(action_space=Box(-1, 1, (2,))),
            ValueError,
            r"action space Box\(.* needs Discrete",
        ),
        (
            Untouchable(Dict({"a": Box(0, 1, (3,))})),
            ValueError,
            r"observation space Dict\(.* doesn't fit `q_network`, which",
        ),
        (Untouchable(Discrete(3)), ValueError, r"observation space Discrete\(3\)"),
        (Untouchable(Box(0, 1, (4,))), ValueError, r"shape \(4,\), .* takes \(3,\)"),
        (Untouchable(Box(0, 1, (3, 1))), ValueError, r"\(3, 1\), .* takes \(3,\)"),
        (
            Untouchable(action_space=Discrete(5)),
            ValueError,
            "5 actions, `q_network` has 2",
        ),
    ],
    ids=["id", "box", "dict", "discrete", "shape", "rank", "actions"],
)
def test_environments_that_do_not_fit_are_refused(env, error, message):
    agent = agent_for(network())
    with pytest.raises(error, match=message):
        agent.fit(env, 100, verbose=0)
    with pytest.raises(error, match=message):
        agent.evaluate(env, 1)


def test_an_uncompiled_agent_does_not_fit():
    with pytest.raises(ValueError, match=r"call `compile\(optimizer=\.\.\.\)`"):
        kit.DQN(network()).fit(Untouchable(), 100)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"total_timesteps": 0}, "`total_timesteps` .*0"),
        ({"total_timesteps": -10}, "`total_timesteps` .*-10"),
        ({"total_timesteps": math.nan}, "`total_timesteps` .*nan"),
        ({"total_timesteps": 100, "steps_per_epoch": 0}, "`steps_per_epoch` .*0"),
        ({"total_timesteps": 100, "steps_per_epoch": -1}, "`steps_per_epoch` .*-1"),
    ],
    ids=str,
)
def test_fit_refuses_bad_numbers(arguments, message):
    agent = agent_for(network())
    with pytest.raises(ValueError, match=message):
        agent.fit(Untouchable(), **arguments, verbose=0)


def test_evaluate_refuses_no_episodes():
    with pytest.raises(ValueError, match="`episodes` .*0"):
        agent_for(network()).evaluate(Untouchable(), 0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gamma", -0.1),
        ("gamma", 1.5),
        ("gamma", math.nan),
        ("buffer_size", 0),
        ("batch_size", 0),
        ("learning_starts", -1),
        ("train_freq", 0),
        ("gradient_steps", 0),
        ("target_update_freq", 0),
        ("tau", 0.0),
        ("tau", 1.1),
        ("epsilon_start", 1.1),
        ("epsilon_end", -0.1),
        ("exploration_fraction", 0.0),
        ("exploration_fraction", 2.0),
    ],
)
def test_numbers_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` .*{value}"):
        kit.DQN(network(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("buffer_size", 100.0),
        ("batch_size", 2.5),
        ("train_freq", 10.0),
        ("gradient_steps", 1.5),
        ("gamma", "0.9"),
        ("tau", None),
    ],
)
def test_numbers_of_another_type_are_refused(name, value):
    with pytest.raises(TypeError, match=f"`{name}` .*{value}"):
        kit.DQN(network(), **{name: value})


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(2)

    def call(self, inputs):
        return self.dense(inputs)


def two_headed():
    inputs = keras.Input((3,))
    heads = [keras.layers.Dense(2)(inputs), keras.layers.Dense(1)(inputs)]
    return keras.Model(inputs, heads)


def built_subclass():
    model = Subclassed()
    model(np.zeros((1, 3)))
    return model


@pytest.mark.parametrize(
    ("q_network", "error", "message"),
    [
        (lambda: keras.layers.Dense(2), TypeError, "a keras.Model, received <Dense"),
        (lambda: "mlp", TypeError, "a keras.Model, received 'mlp' of type str"),
        (lambda: keras.Sequential([keras.layers.Dense(2)]), ValueError, "keras.Input"),
        (two_headed, ValueError, r"\(batch, actions\)"),
        (
            lambda: keras.Sequential([keras.Input((4, 3, 2)), keras.layers.Dense(2)]),
            ValueError,
            r"\(batch, actions\)",
        ),
        (Subclassed, ValueError, "keras.Input"),
        (built_subclass, ValueError, "keras.Input"),
    ],
    ids=["layer", "string", "unbuilt", "heads", "rank", "subclass", "built-subclass"],
)
def test_networks_that_rate_no_actions_are_refused(q_network, error, message):
    with pytest.raises(error, match=f"`q_network` must .*{message}"):
        kit.DQN(q_network())


# --- The same on every backend ----------------------------------------------


def golden_batches(steps, size=32):
    rng = np.random.default_rng(0)
    return batches(
        rng.standard_normal((steps, size, 4)),
        rng.integers(0, 2, (steps, size)),
        rng.standard_normal((steps, size)),
        rng.standard_normal((steps, size, 4)),
        rng.random((steps, size)) < 0.2,
    )


def golden_losses():
    """Losses of 50 gradient steps from weights and batches made with NumPy."""
    q_network = kit.q_network((4,), 2, units=(32, 32), dueling=True)
    rng = np.random.default_rng(1)
    q_network.set_weights(
        [0.3 * rng.standard_normal(w.shape) for w in q_network.weights]
    )
    agent = agent_for(q_network, keras.optimizers.Adam(1e-3), gamma=0.9, double=True)
    batch, losses = golden_batches(50), []
    for i in range(50):
        part = {name: x[i : i + 1] for name, x in batch.items()}
        losses.append(learn(agent, part)[0])
        if i % 10 == 9:
            agent.target_network.set_weights(agent.q_network.get_weights())
    return losses


def golden_q_values():
    """Q-values of networks with weights from `initialize_weights`."""
    flat = network((4,), 3, (16, 16), seed=7, dueling=True)
    image = network((6, 6, 2), 3, (8,), seed=7)
    x = np.random.default_rng(2).standard_normal((3, 4)).astype("float32")
    images = np.random.default_rng(2).integers(0, 256, (3, 6, 6, 2), np.uint8)
    return {
        "flat": ops.convert_to_numpy(flat(x)).tolist(),
        "image": ops.convert_to_numpy(image(images)).tolist(),
    }


GOLDEN_MAKERS = {"dqn_losses": golden_losses, "dqn_q_values": golden_q_values}


def test_fifty_steps_give_the_golden_losses():
    golden = json.loads((GOLDEN / "dqn_losses.json").read_text())
    assert len(golden) == 50
    np.testing.assert_allclose(golden_losses(), golden, rtol=1e-5)


def test_initial_q_values_are_golden():
    golden = json.loads((GOLDEN / "dqn_q_values.json").read_text())
    for name, values in golden_q_values().items():
        np.testing.assert_allclose(
            values, golden[name], rtol=1e-5, atol=1e-6, err_msg=name
        )


LOAD = """
import json, sys
import keras, numpy as np
import kit
from kit.rl.progress import Progress, with_progress
agent = keras.saving.load_model(sys.argv[1])
obs = np.array(json.loads(sys.argv[2]), "float32")
q = keras.ops.convert_to_numpy(agent(obs)).tolist()
steps = int(agent.optimizer.iterations)
print(json.dumps([keras.backend.backend(), q, agent.act(obs).tolist(), steps]))
"""


@pytest.mark.parametrize("backend", ["tensorflow", "jax", "torch"])
def test_another_backend_loads_what_this_one_saved(tmp_path, backend):
    if backend == keras.backend.backend():
        pytest.skip("the running backend")
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} isn't installed")
    agent = agent_for(network(dueling=True))
    agent.fit(Still(), 50, verbose=0)
    agent.save(tmp_path / "dqn.keras")
    obs = np.random.default_rng(0).random((5, 3), np.float32)
    result = subprocess.run(
        [sys.executable, "-c", LOAD, tmp_path / "dqn.keras", json.dumps(obs.tolist())],
        env={**os.environ, "KERAS_BACKEND": backend},
        cwd=GOLDEN.parents[1],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    name, q, actions, steps = json.loads(result.stdout.splitlines()[-1])
    assert name == backend
    np.testing.assert_allclose(q, q_values(agent, obs), rtol=1e-5, atol=1e-6)
    assert actions == agent.act(obs).tolist()
    assert steps == int(agent.optimizer.iterations) > 0


# --- Learning ---------------------------------------------------------------


def corridor_result(seed=0, agent_class=kit.DQN, **kwargs):
    settings = {
        "gamma": 0.8,
        "buffer_size": 2000,
        "batch_size": 32,
        "learning_starts": 100,
        "train_freq": 10,
        "gradient_steps": 4,
        "target_update_freq": 30,
        "epsilon_end": 0.3,
        "exploration_fraction": 1.0,
        "seed": seed,
    }
    agent = agent_class(network((4,), units=(32,), seed=seed), **(settings | kwargs))
    agent.compile(keras.optimizers.Adam(1e-2))
    agent.fit(Corridor(), 1200, verbose=0)
    return agent.evaluate(Corridor(), 1)["return"], agent


@pytest.mark.parametrize(("double", "seed"), [(False, 0), (True, 1)])
def test_it_learns_to_go_to_the_end_of_the_corridor(double, seed):
    score, agent = corridor_result(seed, double=double)
    assert score == 1.0
    # Q*: going on is worth 0.8 to the power of the steps that are left.
    q = q_values(agent, np.eye(4))
    np.testing.assert_allclose(q[:, 0], 0.2, atol=0.1)
    np.testing.assert_allclose(q[:, 1], 0.8 ** np.arange(3, -1, -1), atol=0.1)


class NoTermination(kit.DQN):
    def _td_target(self, batch):
        never = ops.zeros_like(batch["terminated"])
        return super()._td_target({**batch, "terminated": never})


class WrongSign(kit.DQN):
    def _td_target(self, batch):
        return -super()._td_target(batch)


@pytest.mark.once
@pytest.mark.parametrize(
    "broken",
    [
        {"gamma": 0.0},
        {"target_update_freq": 10**6},
        {"agent_class": NoTermination},
        {"agent_class": WrongSign},
    ],
    ids=["no bootstrap", "no target update", "no termination", "wrong sign"],
)
def test_a_broken_agent_does_not_pass_the_corridor(broken):
    """What the test above is worth."""
    score, _ = corridor_result(**broken)
    assert score < 1.0


if __name__ == "__main__":
    for name, make in GOLDEN_MAKERS.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(make(), indent=1) + "\n")
