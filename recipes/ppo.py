r"""Teaches an agent to balance a pole, or to walk, by proximal policy optimization.

You will learn: how to improve a policy by several passes over freshly collected data
without changing it too much (`kit/ppo.py` has the algorithm), and what PPO needs in
practice: parallel environments, learning-rate decay to 0, gradient clipping.

    KERAS_BACKEND=jax python recipes/ppo.py
    KERAS_BACKEND=tensorflow python recipes/ppo.py --env Acrobot-v1 \
        --total-timesteps 500000 --num-envs 16 --num-steps 256 --num-minibatches 64 \
        --num-epochs 4 --gamma 0.99 --gae-lambda 0.94 --learning-rate 3e-4 \
        --ent-coef 0.02
    KERAS_BACKEND=torch python recipes/ppo.py --env Pendulum-v1 \
        --total-timesteps 200000 --num-envs 4 --num-steps 1024 --num-minibatches 64 \
        --num-epochs 10 --gamma 0.9 --gae-lambda 0.95
    KERAS_BACKEND=jax python recipes/ppo.py --env LunarLander-v3 \
        --total-timesteps 1000000 --num-envs 16 --num-steps 1024 \
        --num-minibatches 256 --num-epochs 4 --gamma 0.999 --gae-lambda 0.98 \
        --ent-coef 0.01 --learning-rate 3e-4 --no-anneal-learning-rate \
        --no-anneal-clip-coef
    KERAS_BACKEND=jax python recipes/ppo.py --env HalfCheetah-v5 \
        --total-timesteps 1000000 --num-envs 1 --num-steps 512 --num-minibatches 8 \
        --num-epochs 20 --gamma 0.98 --gae-lambda 0.92 --ent-coef 0.000401762 \
        --vf-coef 0.58096 --clip-coef 0.1 --max-grad-norm 0.8 \
        --learning-rate 2.0633e-5 --no-anneal-learning-rate --no-anneal-clip-coef \
        --units 256 256 --activation relu --initial-log-std -2 \
        --normalize-observations --normalize-rewards
    KERAS_BACKEND=jax python recipes/ppo.py --env ALE/Breakout-v5

`--env` takes any Gymnasium environment with discrete, multi-discrete or continuous
actions. LunarLander needs `pip install "gymnasium[box2d]"`, HalfCheetah
`"gymnasium[mujoco]"`: the kit's extras `box2d` and `mujoco`.

For Atari games (`--env ALE/...`, the kit's extra `atari`), the agent sees four grey
frames of 84x84, actor and critic share one network, and the options that you don't set
are those of CleanRL: 10 million steps of four frames each. The score is that of whole
games.

Expected result on CartPole-v1: a return of 500 (the maximum) after 100,000 steps, in 10
to 15 seconds on one core (seeds 0 to 2 on each backend; once 484.8, on TensorFlow).
With the commands above: -80 to -86 on Acrobot, -126 to -205 on Pendulum, 218 to 266 on
LunarLander (seeds 0 to 2 on each backend), 5,770 to 6,187 on HalfCheetah (seeds 0 to 2
on JAX).

Paper: Schulman et al., 2017, https://arxiv.org/abs/1707.06347. The hyper-parameters
follow RL Baselines3 Zoo; the learning rate decays except on LunarLander and
HalfCheetah. `--vf-coef` is the Zoo's number, but the critic's loss weighs half as much
as in the Zoo, because the loss here is half the squared error. The score is that of the
last policy, which takes the most probable action.
"""

from pathlib import Path
from typing import Literal

import keras

import kit
from kit.lab.agent_recipe import finish_agent, make_envs
from kit.lab.run import Run, command_line

# Read by `python -m kit compare`: how runs are judged, and what --quick passes.
COMPARISON = {
    "title": "Proximal policy optimization",
    "place": 15,
    "score": "eval_return",
    "larger_is_better": True,
    "curve": "return",
    "quick": "--total-timesteps 30000",
    "published": [
        ("490 ± 6", "CleanRL, 500,000 steps", {"env": "CartPole"}),
        ("500", "RL Baselines3 Zoo, 100,000 steps", {"env": "CartPole"}),
        ("-73.5", "RL Baselines3 Zoo", {"env": "Acrobot"}),
        ("242 ± 32", "RL Baselines3 Zoo", {"env": "LunarLander-"}),
        ("-172 ± 104", "RL Baselines3 Zoo", {"env": "Pendulum"}),
        ("1,443 ± 46", "CleanRL, 1M steps", {"env": "HalfCheetah"}),
        ("5,819 ± 664", "RL Baselines3 Zoo, 1M steps", {"env": "HalfCheetah"}),
        ("20.4", "CleanRL, 10M steps", {"env": "ALE/Pong"}),
        ("415", "CleanRL, 10M steps", {"env": "ALE/Breakout"}),
    ],
}

# What the command line has in place of the defaults for games of Atari: CleanRL's.
ATARI = {
    "total_timesteps": 10_000_000,
    "num_envs": 8,
    "num_steps": 128,
    "num_minibatches": 4,
    "num_epochs": 4,
    "learning_rate": 2.5e-4,
    "network": "nature",
    "shared": True,
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "clip_coef": 0.1,
    "anneal_clip_coef": False,
    "clip_value_loss": True,
    "ent_coef": 0.01,
    "vf_coef": 0.5,
    "max_grad_norm": 0.5,
}


def main(
    *,
    env: str = "CartPole-v1",
    total_timesteps: int = 100_000,
    num_envs: int = 8,
    num_steps: int = 32,
    num_minibatches: int = 1,
    num_epochs: int = 20,
    learning_rate: float = 1e-3,
    anneal_learning_rate: bool = True,
    units: tuple[int, ...] | None = None,
    activation: str = "auto",
    network: Literal["nature", "impala", "minatar", "mlp"] | None = None,
    shared: bool = False,
    initial_log_std: float = 0.0,
    gamma: float = 0.98,
    gae_lambda: float = 0.8,
    clip_coef: float = 0.2,
    anneal_clip_coef: bool = True,
    clip_value_loss: bool = False,
    ent_coef: float = 0.0,
    vf_coef: float = 0.5,
    max_grad_norm: float = 0.5,
    target_kl: float | None = None,
    normalize_observations: bool = False,
    normalize_rewards: bool = False,
    eval_episodes: int = 20,
    render: Literal["none", "video"] = "none",
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains an agent by PPO and reports how it plays.

    Args:
        env: Id of a Gymnasium environment. For a game of Atari, the command line has
            other defaults.
        total_timesteps: Environment steps to train for.
        num_envs: Environments that are played side by side.
        num_steps: Steps of each between two updates.
        num_minibatches: Minibatches in a pass over these steps.
        num_epochs: Passes over them.
        learning_rate: Step size of Adam.
        anneal_learning_rate: Let it fall linearly to 0.
        units: Sizes of the hidden layers of actor and critic; if not given, 64 and 64,
            or that of the network for images.
        activation: Of these layers; "auto" is tanh, or relu for images.
        network: What sees images; if not given, what their size calls for.
        shared: Whether actor and critic have their hidden layers in common.
        initial_log_std: Logarithm of the standard deviations of continuous actions at
            the start.
        gamma: Discount factor.
        gae_lambda: Lambda of the generalized advantages.
        clip_coef: How far the ratio of probabilities may be from 1.
        anneal_clip_coef: Let it fall linearly to 0.
        clip_value_loss: Keep the critic near its last one as well.
        ent_coef: Weight of the entropy.
        vf_coef: Weight of the critic's loss, half the squared error.
        max_grad_norm: Length that gradients are cut to.
        target_kl: End an update early if the policy went farther than this.
        normalize_observations: Bring observations to mean 0, variance 1.
        normalize_rewards: Divide rewards by the spread of returns.
        eval_episodes: Episodes to play at the end.
        render: "video" records an episode of the trained agent, as MP4 and as GIF.
        seed: Seed of everything that is drawn.
        output_dir: Folder for the results; runs/ppo-<backend>-<seed> if not given.
        resume: Go on with an interrupted run, from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        What metrics.json holds.
    """
    run = Run("ppo", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    envs = make_envs(env, num_envs, training=True)
    space, action_space = envs.single_observation_space, envs.single_action_space
    policy = (space, action_space, units, activation, initial_log_std, network)
    if shared:
        networks = [kit.shared_network(*policy)]
    else:
        critic = kit.value_network(space, units, activation, network)
        networks = [kit.policy_network(*policy), critic]
    seeds = kit.random.split_seed(seed, len(networks))
    for model, model_seed in zip(networks, seeds, strict=True):
        kit.initialize_weights(model, model_seed)
    turns = -(-total_timesteps // (num_envs * num_steps))  # rounded up
    gradient_steps = turns * num_epochs * num_minibatches

    def schedule(start, anneal):
        if not anneal:
            return start
        return keras.optimizers.schedules.PolynomialDecay(start, gradient_steps, 0.0)

    agent = kit.PPO(
        *networks,
        gamma=gamma,
        gae_lambda=gae_lambda,
        num_steps=num_steps,
        num_minibatches=num_minibatches,
        num_epochs=num_epochs,
        clip_coef=schedule(clip_coef, anneal_clip_coef),
        clip_value_loss=clip_value_loss,
        ent_coef=ent_coef,
        vf_coef=vf_coef,
        target_kl=target_kl,
        normalize_observations=normalize_observations,
        normalize_rewards=normalize_rewards,
        seed=seed,
    )
    agent.compile(
        keras.optimizers.Adam(
            schedule(learning_rate, anneal_learning_rate),
            epsilon=1e-5,
            global_clipnorm=max_grad_norm,
        )
    )
    history = agent.fit(
        envs, total_timesteps, callbacks=[run.backup()], verbose=verbose
    )
    envs.close()
    return finish_agent(run, agent, history, env, eval_episodes, render=render)


if __name__ == "__main__":
    command_line(main, {"ALE/": ATARI})
