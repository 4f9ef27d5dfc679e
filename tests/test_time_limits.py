"""Episodes that are truncated at random: values are those of a task without an end."""

import functools

import keras
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from keras import ops
from worlds import Ring

import kit

GAMMA = 0.9
PLACES = len(Ring.rewards)
SEEN = np.eye(PLACES, dtype="float32")
EXACT = Ring.values(GAMMA)
MODES = pytest.mark.parametrize("mode", list(AutoresetMode), ids=lambda mode: mode.name)


def rings(mode, **options):
    return SyncVectorEnv([functools.partial(Ring, **options)] * 4, autoreset_mode=mode)


def decaying(rate, steps):
    """A rate that falls to a hundredth, so that the last values stand still."""
    return keras.optimizers.schedules.PolynomialDecay(rate, steps, rate / 100)


def networks():
    actor = kit.policy_network((PLACES,), Discrete(2), (8,))
    critic = keras.Sequential([keras.Input((PLACES,)), keras.layers.Dense(1)])
    for network in (actor, critic):
        kit.initialize_weights(network, 0)
    return actor, critic


def value_of_each_place(agent):
    return ops.convert_to_numpy(agent.critic(SEEN))[:, 0]


def test_values_are_apart_where_a_truncation_is_taken_for_an_end():
    """Otherwise the tests below could not fail."""
    wrong = Ring.values(GAMMA, cut_off=0.2)
    assert (wrong < 0.6 * EXACT).all()
    by_hand = EXACT[(np.arange(PLACES) + 1) % PLACES]
    np.testing.assert_allclose(EXACT, Ring.rewards + GAMMA * by_hand)


@MODES
@pytest.mark.parametrize("options", [{}, {"n_step": 3}], ids=["1 step", "3 steps"])
@pytest.mark.variants(2)
def test_dqn(mode, options):
    network = keras.Sequential([keras.Input((PLACES,)), keras.layers.Dense(2)])
    kit.initialize_weights(network, 0)
    agent = kit.DQN(
        network,
        gamma=GAMMA,
        buffer_size=2_000,
        batch_size=64,
        learning_starts=400,
        train_freq=10,
        gradient_steps=40,
        target_update_freq=40,
        epsilon_end=1.0,
        **options,
    )
    agent.compile(keras.optimizers.Adam(decaying(0.1, 4_000)), "mse")
    agent.fit(rings(mode), 4_400, verbose=0)
    q = ops.convert_to_numpy(network(SEEN))
    np.testing.assert_allclose(q, np.stack([EXACT, EXACT], axis=1), rtol=0.03)


@MODES
@pytest.mark.parametrize("kind", [kit.A2C, kit.PPO])
@pytest.mark.variants(2)
def test_actor_critic(mode, kind):
    agent = kind(*networks(), gamma=GAMMA, num_steps=16)
    agent.compile(keras.optimizers.Adam(decaying(0.1, 1_000)))
    agent.fit(rings(mode), 32_000 if kind is kit.A2C else 16_000, verbose=0)
    np.testing.assert_allclose(value_of_each_place(agent), EXACT, rtol=0.03)


@MODES
@pytest.mark.once
def test_a3c(mode):
    agent = kit.A3C(*networks(), gamma=GAMMA, num_steps=16)
    agent.compile(keras.optimizers.Adam(decaying(0.1, 1_000)))
    agent.fit(functools.partial(rings, mode), 64_000, num_workers=2, verbose=0)
    np.testing.assert_allclose(value_of_each_place(agent), EXACT, rtol=0.03)


@MODES
@pytest.mark.parametrize("algorithm", ["q_learning", "sarsa", "expected_sarsa"])
@pytest.mark.variants(1)
def test_q_learning(mode, algorithm):
    agent = kit.QLearning(PLACES, 2, gamma=GAMMA, algorithm=algorithm, epsilon_end=1.0)
    agent.compile(keras.optimizers.SGD(0.2))
    agent.fit(rings(mode, discrete=True), 8_000, verbose=0)
    q = ops.convert_to_numpy(agent.table)
    np.testing.assert_allclose(q, np.stack([EXACT, EXACT], axis=1), rtol=0.03)
