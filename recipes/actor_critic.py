r"""Teaches an agent to balance a pole, by an actor and a critic (A2C).

What there is to learn here: the policy gradient in its plainest form, one step on what
was just lived through, and what the critic is for (`kit/actor_critic.py` has the
algorithm). The same environments go further by recipes/ppo.py.

    KERAS_BACKEND=jax python recipes/actor_critic.py
    KERAS_BACKEND=torch python recipes/actor_critic.py --shared
    KERAS_BACKEND=tensorflow python recipes/actor_critic.py --env Acrobot-v1 \
        --num-envs 16

To expect on CartPole-v1: a return of 500, the most that it gives, after 500,000 steps
and 15 seconds on one core with JAX, 30 with TensorFlow, 40 with PyTorch. 200,000 steps
are mostly enough: `--total-timesteps 200000` gave 500 for nine of ten seeds on JAX (11
to 15 and 21 to 25; seed 23 gave 412) and for seeds 11 to 13 on TensorFlow and PyTorch.

Paper: Mnih et al., 2016, https://arxiv.org/abs/1602.01783. Environments, steps, gamma,
networks and gradient clipping are those of RL Baselines3 Zoo for CartPole-v1. Three
settings aren't: the learning rate starts at 2e-3 and falls to 0 (the Zoo's stays at
7e-4), the critic's loss weighs half as much, and Keras' RMSprop adds epsilon under the
square root. From 7e-4, the return after 200,000 steps is only 68 to 147 (seeds 11 to
15, JAX). The score is that of the last policy, which always takes the likeliest action.
"""

from pathlib import Path
from typing import Literal

import keras

import kit
from kit.lab.agent_recipe import finish_agent, make_envs
from kit.lab.run import Run, command_line

# Read by `python -m kit compare`: how runs are judged, and what --quick passes.
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
    units: tuple[int, ...] = (64, 64),
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
    """Trains an agent by A2C and reports how it plays.

    Args:
        env: Id of a Gymnasium environment.
        total_timesteps: Environment steps to train for.
        num_envs: Environments that are played side by side.
        num_steps: Steps of each between two updates.
        learning_rate: Step size of RMSprop at the start; falls linearly to 0.
        critic_learning_rate: Another one for the critic, which then has an optimizer
            of its own.
        units: Sizes of the hidden layers of actor and critic.
        shared: Whether actor and critic have their hidden layers in common.
        gamma: Discount factor.
        gae_lambda: Lambda of the advantages; 1 for n-step returns.
        normalize_advantages: Bring advantages to mean 0, variance 1.
        ent_coef: Weight of the entropy.
        vf_coef: Weight of the critic's loss, half the squared error.
        max_grad_norm: Length that gradients are cut to.
        normalize_observations: Bring observations to mean 0, variance 1.
        normalize_rewards: Divide rewards by the spread of returns.
        eval_episodes: Episodes to play at the end.
        render: "video" records an episode of the trained agent.
        seed: Seed of everything that is drawn.
        output_dir: Folder for the results; runs/actor_critic-<backend>-<seed> if not
            given.
        resume: Go on with an interrupted run, from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        What metrics.json holds.
    """
    run = Run(
        "actor_critic", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    if shared and critic_learning_rate is not None:
        raise ValueError(
            "critic_learning_rate is for a critic of its own; leave out --shared."
        )
    envs = make_envs(env, num_envs)
    obs_shape, action_space = (
        envs.single_observation_space.shape,
        envs.single_action_space,
    )
    if shared:
        networks = [kit.shared_network(obs_shape, action_space, units)]
    else:
        networks = [
            kit.policy_network(obs_shape, action_space, units),
            kit.value_network(obs_shape, units),
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
