r"""Teaches an agent to balance a pole, by an actor and a critic (A2C).

You will learn: the policy gradient in its plainest form, with one gradient step per
batch of collected data, and what the critic is for (`kit/actor_critic.py` has the
algorithm). recipes/ppo.py reaches more in the same environments.

    KERAS_BACKEND=jax python recipes/actor_critic.py
    KERAS_BACKEND=torch python recipes/actor_critic.py --shared
    KERAS_BACKEND=tensorflow python recipes/actor_critic.py --env Acrobot-v1 \
        --num-envs 16

Expected result on CartPole-v1: a return of 500 (the maximum) after 500,000 steps, in 15
seconds on one core with JAX, 30 with TensorFlow, 40 with PyTorch. 200,000 steps are
usually enough: `--total-timesteps 200000` gave 500 for nine of ten seeds on JAX (11 to
15 and 21 to 25; seed 23 gave 412) and for seeds 11 to 13 on TensorFlow and PyTorch.

Paper: Mnih et al., 2016, https://arxiv.org/abs/1602.01783. Environments, steps, gamma,
networks and gradient clipping are those of RL Baselines3 Zoo for CartPole-v1. Three
settings differ: the learning rate starts at 2e-3 and falls to 0 (the Zoo's stays at
7e-4), the critic's loss weighs half as much, and Keras' RMSprop adds epsilon under the
square root. From 7e-4, the return after 200,000 steps is only 68 to 147 (seeds 11 to
15, JAX). The score is that of the last policy, which always takes the most probable
action.
"""

from pathlib import Path
from typing import Literal

import keras

import kit
from kit.lab.agent_recipe import finish_agent, make_envs
from kit.lab.run import Run, command_line

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Actor-critic (A2C)",
    "place": 16,
    "score": "eval_return",
    "larger_is_better": True,
    "curve": "return",
    "quick": "--total-timesteps 100000",
    "published": [
        ("500", "RL Baselines3 Zoo", {"env": "CartPole"}),
        ("-83.4", "RL Baselines3 Zoo", {"env": "Acrobot"}),
        ("156", "RL Baselines3 Zoo", {"env": "LunarLander-"}),
    ],
}


def main(
    *,
    env: str = "CartPole-v1",
    total_timesteps: int = 500_000,
    num_envs: int = 8,
    num_steps: int = 5,
    learning_rate: float = 2e-3,
    critic_learning_rate: float | None = None,
    units: tuple[int, ...] | None = None,
    shared: bool = False,
    gamma: float = 0.99,
    gae_lambda: float = 1.0,
    normalize_advantages: bool = False,
    ent_coef: float = 0.0,
    vf_coef: float = 0.5,
    max_grad_norm: float = 0.5,
    normalize_observations: bool = False,
    normalize_rewards: bool = False,
    eval_episodes: int = 20,
    render: Literal["none", "video"] = "none",
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains an agent with A2C and evaluates it.

    Args:
        env: Id of a Gymnasium environment.
        total_timesteps: Environment steps to train for.
        num_envs: Number of parallel environments.
        num_steps: Steps of each environment between two updates.
        learning_rate: Step size of RMSprop at the start; falls linearly to 0.
        critic_learning_rate: Learning rate of the critic, which then gets its own
            optimizer. If not given, one optimizer trains both.
        units: Sizes of the hidden layers of actor and critic. If not given, 64 and 64,
            or the default of the network for images.
        shared: Whether actor and critic share their hidden layers.
        gamma: Discount factor.
        gae_lambda: Lambda of the advantages; 1 for n-step returns.
        normalize_advantages: Scale advantages to mean 0, variance 1.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the critic's loss, half the squared error.
        max_grad_norm: Largest global norm of gradients, beyond which they are clipped.
        normalize_observations: Scale observations to mean 0, variance 1.
        normalize_rewards: Divide rewards by the standard deviation of returns.
        eval_episodes: Episodes to play at the end.
        render: "video" records an episode of the trained agent, as MP4 and as GIF.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/actor_critic-<backend>-<seed> if not
            given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "actor_critic", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    if shared and critic_learning_rate is not None:
        raise ValueError(
            "critic_learning_rate is for a critic of its own; leave out --shared."
        )
    envs = make_envs(env, num_envs, training=True)
    space, action_space = envs.single_observation_space, envs.single_action_space
    if shared:
        networks = [kit.shared_network(space, action_space, units)]
    else:
        networks = [
            kit.policy_network(space, action_space, units),
            kit.value_network(space, units),
        ]
    seeds = kit.random.split_seed(seed, len(networks))
    for network, network_seed in zip(networks, seeds, strict=True):
        kit.initialize_weights(network, network_seed)
    agent = kit.A2C(
        *networks,
        gamma=gamma,
        gae_lambda=gae_lambda,
        num_steps=num_steps,
        normalize_advantages=normalize_advantages,
        ent_coef=ent_coef,
        vf_coef=vf_coef,
        normalize_observations=normalize_observations,
        normalize_rewards=normalize_rewards,
        seed=seed,
    )
    turns = -(-total_timesteps // (num_envs * num_steps))  # rounded up

    def optimizer(rate):
        schedule = keras.optimizers.schedules.PolynomialDecay(rate, turns, 0.0)
        return keras.optimizers.RMSprop(
            schedule, rho=0.99, epsilon=1e-5, global_clipnorm=max_grad_norm
        )

    agent.compile(
        optimizer(learning_rate),
        None if critic_learning_rate is None else optimizer(critic_learning_rate),
    )
    history = agent.fit(
        envs, total_timesteps, callbacks=[run.backup()], verbose=verbose
    )
    envs.close()
    return finish_agent(run, agent, history, env, eval_episodes, render=render)


if __name__ == "__main__":
    command_line(main)
