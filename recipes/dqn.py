r"""Teaches an agent to balance a pole, by deep Q-learning.

You will learn: how a network learns from an agent's replayed experience (`kit/dqn.py`
has the algorithm), and how a Keras agent is created, compiled, fitted, evaluated and
saved.

    KERAS_BACKEND=jax python recipes/dqn.py
    KERAS_BACKEND=torch python recipes/dqn.py --seed 3 --render video
    KERAS_BACKEND=tensorflow python recipes/dqn.py --env Acrobot-v1 \
        --total-timesteps 60000 --learning-rate 6.3e-4 --batch-size 128 \
        --train-freq 64 --gradient-steps 64 --target-update-freq 250
    KERAS_BACKEND=jax python recipes/dqn.py --env kit/Breakout-v1
    KERAS_BACKEND=jax python recipes/dqn.py --env ALE/Pong-v5

Expected result: a return of about 500 (the maximum) on CartPole-v1 after 50,000 steps,
in 20 to 30 seconds on two cores; about -80 on Acrobot-v1, in a minute. docs/scores.md
has the scores over seeds. `--env` takes any Gymnasium environment with discrete
actions and any observation space.

MinAtar's games (`--env kit/Breakout-v1`, Asterix, Freeway, Seaquest, SpaceInvaders) run
in one program with the agent (`--fused`), with settings of their own for the options
that you don't set: 1,000,000 frames in three to seven minutes.

For Atari games (`--env ALE/...`, the kit's extra `atari`), the agent sees four grey
frames of 84x84, and the options that you don't set are those of CleanRL: 10 million
steps of four frames each, and a buffer of 7 GB. The score is that of whole games.

Paper: Mnih et al., 2015, https://doi.org/10.1038/nature14236. The hyper-parameters are
those of RL Baselines3 Zoo for CartPole-v1. With these alone, the quality of the last
policy varies: it keeps changing, and good policies are lost again. Three things are
added: double DQN, learning-rate decay, and Keras' EarlyStopping, which keeps the best
policy of regular greedy evaluations. The score is measured on other episodes.
"""

import math
from pathlib import Path
from typing import Any, Literal

import gymnasium
import keras

import kit
from kit.envs import MINATAR as GAMES
from kit.envs import gymnasium_id, make
from kit.lab.agent_recipe import (
    MOST_STEPS,
    finish_agent,
    make_env,
    make_envs,
    spaces_of,
)
from kit.lab.run import Run, command_line
from kit.rl.encoders import default_units

# Read by `python -m kit compare`: how runs are judged, and what --quick passes.
COMPARISON = {
    "title": "Deep Q-network",
    "place": 14,
    "score": "eval_return",
    "larger_is_better": True,
    "curve": "return",
    "quick": "--total-timesteps 10000",
    "published": [
        (
            "488.7 ± 16.1 (PyTorch), 498.4 ± 2.3 (JAX)",
            "CleanRL, 500,000 steps",
            {"env": "CartPole"},
        ),
        ("500", "RL Baselines3 Zoo, 50,000 steps", {"env": "CartPole"}),
        ("-76.6", "RL Baselines3 Zoo", {"env": "Acrobot"}),
        ("154 ± 79", "RL Baselines3 Zoo", {"env": "LunarLander-"}),
        ("9", "MinAtar's authors, 1M frames", {"env": "kit/Breakout"}),
        ("7", "MinAtar's authors, 1M frames", {"env": "kit/Asterix"}),
        ("48", "MinAtar's authors, 1M frames", {"env": "kit/Freeway"}),
        ("1", "MinAtar's authors, 1M frames", {"env": "kit/Seaquest"}),
        ("33", "MinAtar's authors, 1M frames", {"env": "kit/SpaceInvaders"}),
        ("20.3", "CleanRL, 10M steps", {"env": "ALE/Pong"}),
        ("367 ± 40", "CleanRL, 10M steps", {"env": "ALE/Breakout"}),
    ],
}

# What the command line has in place of the defaults for games of Atari: CleanRL's.
ATARI = {
    "total_timesteps": 10_000_000,
    "learning_rate": 1e-4,
    "final_learning_rate": 1e-4,
    "network": "nature",
    "buffer_size": 1_000_000,
    "batch_size": 32,
    "learning_starts": 80_000,
    "train_freq": 4,
    "gradient_steps": 1,
    "target_update_freq": 1_000,
    "epsilon_end": 0.01,
    "exploration_fraction": 0.1,
    "double": False,
}
# For MinAtar's games.
MINATAR = {
    "fused": True,
    "num_envs": 8,
    "total_timesteps": 1_000_000,
    "learning_rate": 1e-3,
    "final_learning_rate": 1e-4,
    "learning_starts": 5_000,
    "train_freq": 16,
    "gradient_steps": 4,
    "target_update_freq": 1_000,
    "epsilon_end": 0.05,
    "exploration_fraction": 0.1,
    "n_step": 3,
}
BY_ENV: dict[Any, dict[str, Any]] = {"ALE/": ATARI, GAMES: MINATAR}


def main(
    *,
    env: str = "CartPole-v1",
    fused: bool = False,
    num_envs: int = 1,
    total_timesteps: int = 50_000,
    learning_rate: float = 2.3e-3,
    final_learning_rate: float = 1e-4,
    units: tuple[int, ...] | None = None,
    network: Literal["nature", "impala", "minatar", "mlp"] | None = None,
    gamma: float = 0.99,
    buffer_size: int = 100_000,
    batch_size: int = 64,
    learning_starts: int = 1_000,
    train_freq: int = 256,
    gradient_steps: int = 128,
    target_update_freq: int = 10,
    tau: float = 1.0,
    epsilon_end: float = 0.04,
    exploration_fraction: float = 0.16,
    double: bool = True,
    dueling: bool = False,
    n_step: int = 1,
    prioritized: bool = False,
    num_quantiles: int | None = None,
    noisy: bool = False,
    eval_episodes: int = 20,
    render: Literal["none", "video"] = "none",
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a DQN and reports how it plays.

    Args:
        env: Id of a Gymnasium environment with discrete actions. For a game of Atari,
            the command line has other defaults.
        fused: Play and learn in one compiled program, for environments of the kit
            (`kit/envs/registration.py`).
        num_envs: Number of parallel environments.
        total_timesteps: Environment steps to train for, all environments together.
        learning_rate: Step size of Adam at the start.
        final_learning_rate: The same at the end; it falls linearly.
        units: Sizes of the hidden layers; if not given, 256 and 256, or that of the
            network for images.
        network: What sees images; if not given, what their size calls for.
        gamma: Discount factor.
        buffer_size: Transitions to remember.
        batch_size: Transitions in a gradient step.
        learning_starts: Environment steps before the first gradient step.
        train_freq: Steps of each environment between turns of learning.
        gradient_steps: Gradient steps in a turn.
        target_update_freq: Environment steps between target network updates.
        tau: How far the target network goes to the network in an update.
        epsilon_end: Probability of a random action after exploration.
        exploration_fraction: Part of the training in which it falls to that.
        double: Double DQN.
        dueling: Dueling network.
        n_step: Steps from a state to the one that its target is made of.
        prioritized: Draw transitions of large errors more often.
        num_quantiles: Numbers that describe the distribution of an action's return, in
            the place of its mean.
        noisy: Explore by noisy layers, not by epsilon.
        eval_episodes: Episodes to play greedily at the end.
        render: "video" records an episode of the trained agent, as MP4 and as GIF.
        seed: Seed of everything that is drawn.
        output_dir: Folder for the results; runs/dqn-<backend>-<seed> if not given.
        resume: Go on with an interrupted run, from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        What metrics.json holds.
    """
    run = Run("dqn", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    train_env, test_env = make_environments(env, num_envs, fused)
    space, action_space = spaces_of(train_env)

    if units is None:
        units = default_units(space, network, (256, 256))
    q_network = kit.q_network(
        space,
        getattr(action_space, "n", 1),
        units=units,
        dueling=dueling,
        num_quantiles=num_quantiles,
        noisy=noisy,
        network=network,
    )
    kit.initialize_weights(q_network, seed)
    agent = kit.DQN(
        q_network,
        gamma=gamma,
        buffer_size=buffer_size,
        batch_size=batch_size,
        learning_starts=learning_starts,
        train_freq=train_freq,
        gradient_steps=gradient_steps,
        target_update_freq=target_update_freq,
        tau=tau,
        epsilon_start=0.0 if noisy else 1.0,
        epsilon_end=0.0 if noisy else epsilon_end,
        exploration_fraction=exploration_fraction,
        double=double,
        n_step=n_step,
        prioritized=prioritized,
        seed=seed,
    )
    turns = max(1, (total_timesteps - learning_starts) // (train_freq * num_envs))
    schedule = keras.optimizers.schedules.PolynomialDecay(
        learning_rate, turns * gradient_steps, final_learning_rate
    )
    agent.compile(optimizer=keras.optimizers.Adam(schedule))

    # A Q-network's policy goes on changing: the best of regular evaluations stays.
    (test_seed,) = kit.random.split_seed(seed, 1)
    keep_best = [
        kit.Evaluation(test_env, episodes=10, seed=test_seed),
        keras.callbacks.EarlyStopping(
            monitor="eval_return",
            mode="max",
            patience=total_timesteps,  # never stops
            restore_best_weights=True,
        ),
    ]

    history = agent.fit(
        train_env,
        total_timesteps,
        steps_per_epoch=math.ceil(total_timesteps / 25),
        callbacks=[*keep_best, run.backup()],
        verbose=verbose,
    )

    train_env.close()
    test_env.close()
    name = gymnasium_id(env) if fused else env
    return finish_agent(run, agent, history, name, eval_episodes, render=render)


def make_environments(env: str, num_envs: int, fused: bool) -> tuple[Any, Any]:
    """Makes environments to learn in, and ten to be evaluated in: put your own here."""
    if fused:
        games = make(env, num_envs=10)
        games.max_episode_steps = games.max_episode_steps or MOST_STEPS
        return make(env, num_envs), games
    test_env = gymnasium.vector.SyncVectorEnv([lambda: make_env(env)] * 10)
    if num_envs > 1:
        return make_envs(env, num_envs, training=True), test_env
    return make_env(env, training=True), test_env


if __name__ == "__main__":
    command_line(main, BY_ENV)
