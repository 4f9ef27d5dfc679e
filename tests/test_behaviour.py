"""What each agent must cope with: noise, scale, late rewards, what isn't seen any more.

Tiny environments, as in bsuite (Osband et al., 2020, https://arxiv.org/abs/1908.03568).
They judge the algorithm, not the backend: JAX runs them.
"""

import functools

import keras
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import FrameStackObservation
from worlds import Bandit, Recall, Umbrella

import kit

pytestmark = pytest.mark.once

AGENTS = pytest.mark.parametrize("kind", ["dqn", "a2c", "ppo"])


def trained(kind, make, total_timesteps, gamma=1.0, **options):
    """Returns the agent and the environments, after a training."""
    env = SyncVectorEnv([make] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    space, actions = env.single_observation_space, env.single_action_space
    if kind == "dqn":
        network = kit.q_network(space, int(actions.n), units=(32,))
        kit.initialize_weights(network, 0)
        options = {"buffer_size": 5_000, "learning_starts": 400} | options
        agent = kit.DQN(
            network, gamma=gamma, batch_size=64, train_freq=5, gradient_steps=20,
            target_update_freq=200, **options,
        )  # fmt: skip
        rate = 3e-3
    else:
        networks = [
            kit.policy_network(space, actions, (32,)),
            kit.value_network(space, (32,)),
        ]
        for network in networks:
            kit.initialize_weights(network, 0)
        kinds = {"a2c": kit.A2C, "ppo": kit.PPO}
        options = {"normalize_advantages": True, "gae_lambda": 0.95} | options
        agent = kinds[kind](*networks, gamma=gamma, num_steps=20, **options)
        rate = 1e-2
    agent.compile(keras.optimizers.Adam(rate))
    agent.fit(env, total_timesteps, verbose=0)
    return agent, env


@AGENTS
def test_noise_hides_the_best_arm_from_no_agent(kind):
    """A reward's standard deviation is six times the difference of the best two."""
    agent, _ = trained(kind, functools.partial(Bandit, noise=3.0), 20_000)
    assert agent.act(np.ones(1, np.float32)) == 2


@AGENTS
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_rewards_may_be_of_any_size(kind, scale):
    agent, _ = trained(kind, functools.partial(Bandit, scale), 6_000)
    assert agent.act(np.ones(1, np.float32)) == 2


@AGENTS
def test_the_first_action_is_given_credit_for_the_last_reward(kind):
    options = {"n_step": 10} if kind == "dqn" else {"gae_lambda": 1.0}
    agent, env = trained(kind, Umbrella, 40_000, **options)
    # The other rewards add up to nothing, with a standard deviation of 0.3.
    assert agent.evaluate(env, 64, seed=1)["return"] >= 0.8


@AGENTS
def test_what_is_not_seen_any_more_takes_a_stack_of_observations(kind):
    agent, env = trained(kind, Recall, 12_000)
    assert agent.evaluate(env, 64, seed=1)["return"] <= 0.75  # a guess
    agent, env = trained(kind, lambda: FrameStackObservation(Recall(), 3), 12_000)
    assert agent.evaluate(env, 64, seed=1)["return"] >= 0.95
