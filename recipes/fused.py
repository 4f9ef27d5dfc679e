r"""Trains an agent in seconds: agent and environments are one compiled program.

You will learn: how to write an environment that can be compiled
(`kit/rl/functional.py` has the requirements, `kit/envs/classic_control.py` examples),
and how much faster training is when no Python runs between agent and environment. The
agent is `kit.PPO`, the same as in recipes/ppo.py.

    KERAS_BACKEND=jax python recipes/fused.py
    KERAS_BACKEND=tensorflow python recipes/fused.py --env Acrobot-v1 \
        --total-timesteps 500000 --num-envs 16 --num-steps 256 --num-minibatches 64 \
        --num-epochs 4 --gamma 0.99 --gae-lambda 0.94 --learning-rate 3e-4 \
        --ent-coef 0.02
    KERAS_BACKEND=jax python recipes/fused.py --seeds 8
    KERAS_BACKEND=jax python recipes/fused.py --env kit/Breakout-v1

`--env` is an id in `kit/envs/registration.py`, where `register` gives one to your own
environment, a class with three functions. `--seeds 8` trains eight agents at once, as
one program (`kit/rl/together.py`): learning_curve.png shows each curve, and their mean.

For MinAtar's games (`--env kit/Breakout-v1`, Asterix, Freeway, Seaquest,
SpaceInvaders), the options that you don't set have values of their own: 5,000,000
frames, in three to six minutes on one core. Asterix takes twelve to fifteen, as its
network has convolutions, and Seaquest up to twenty, as its minibatches are small.
docs/scores.md has the scores.

Expected result on CartPole-v1: a return of 500 (the maximum) after 100,000 steps (seeds
0 and 21 to 23 on each backend). On two cores, the process takes 14 seconds on JAX, 15
on TensorFlow and 21 on PyTorch. Of these, training takes 2 to 3 seconds on JAX and
TensorFlow and 13 on PyTorch, and compilation 2 to 4. The score is that of the last
policy. If Gymnasium has the environment, the agent is evaluated in Gymnasium's version,
although it was trained in the kit's.

Paper: Schulman et al., 2017, https://arxiv.org/abs/1707.06347; hyper-parameters as in
recipes/ppo.py. Lu et al., 2022, https://arxiv.org/abs/2210.05639, train whole agents in
one JAX program.
"""

from pathlib import Path
from typing import Any, Literal

import keras

import kit
from kit.envs import MINATAR as GAMES
from kit.envs import gymnasium_id, make
from kit.lab.agent_recipe import finish_agent, finish_agents
from kit.lab.run import Run, command_line

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "PPO in one program with its environments",
    "place": 18,
    "score": "eval_return",
    "larger_is_better": True,
    "curve": "return",
    "quick": "--total-timesteps 30000",
    "published": [
        ("490 ± 6", "CleanRL, 500,000 steps", {"env": "CartPole"}),
        ("17.5", "MinAtar's authors, actor-critic, 5M frames", {"env": "kit/Breakout"}),
        ("19", "MinAtar's authors, actor-critic, 5M frames", {"env": "kit/Asterix"}),
        ("47", "MinAtar's authors, actor-critic, 5M frames", {"env": "kit/Freeway"}),
        ("15.5", "MinAtar's authors, actor-critic, 5M frames", {"env": "kit/Seaquest"}),
        ("185", "MinAtar's authors, actor-critic, 5M frames", {"env": "kit/Space"}),
    ],
}

# What the command line has in place of the defaults for MinAtar's games.
MINATAR = {
    "total_timesteps": 5_000_000,
    "num_envs": 64,
    "num_steps": 128,
    "num_minibatches": 8,
    "num_epochs": 4,
    "learning_rate": 2e-3,
    "units": (128, 128),
    "activation": "relu",
    "network": "mlp",
    "gamma": 0.99,
    "gae_lambda": 0.95,
    "anneal_clip_coef": False,
    "clip_value_loss": True,
    "ent_coef": 0.01,
}
# In Asterix, convolutions reach several times the score, in four times the time.
ASTERIX = {"network": "minatar", "units": (128,), "learning_rate": 4e-3}
# In Seaquest, a smaller lambda, smaller steps and more exploration reach more than
# three times the score.
SEAQUEST = {
    "num_minibatches": 32,
    "learning_rate": 1e-3,
    "gae_lambda": 0.8,
    "ent_coef": 0.03,
}
BY_ENV: dict[Any, dict[str, Any]] = {
    GAMES: MINATAR,
    "kit/Asterix": ASTERIX,
    "kit/Seaquest": SEAQUEST,
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
    units: tuple[int, ...] | None = None,
    activation: str = "auto",
    network: Literal["nature", "impala", "minatar", "mlp"] | None = None,
    gamma: float = 0.98,
    gae_lambda: float = 0.8,
    clip_coef: float = 0.2,
    anneal_clip_coef: bool = True,
    clip_value_loss: bool = False,
    ent_coef: float = 0.0,
    vf_coef: float = 0.5,
    max_grad_norm: float = 0.5,
    jit_compile: bool = False,
    eval_episodes: int = 20,
    seed: int = 0,
    seeds: int = 1,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains an agent with PPO and evaluates it.

    Args:
        env: Id of an environment in `kit/envs/registration.py`.
        total_timesteps: Environment steps to train for.
        num_envs: Number of parallel environments.
        num_steps: Steps of each environment between two updates.
        num_minibatches: Minibatches per pass over the collected steps.
        num_epochs: Passes over them.
        learning_rate: Step size of Adam at the start; it falls linearly to 0.
        units: Sizes of the hidden layers of actor and critic. If not given, 64 and 64,
            or the default of the network for images.
        activation: Activation of these layers. "auto" is tanh, or relu for images.
        network: Network for images. If not given, it is chosen by their size.
        gamma: Discount factor.
        gae_lambda: Lambda of generalized advantage estimation.
        clip_coef: Clip range of the probability ratio around 1.
        anneal_clip_coef: Let it fall linearly to 0.
        clip_value_loss: Keep the critic near its last one as well.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the critic's loss, half the squared error.
        max_grad_norm: Largest global norm of gradients, beyond which they are clipped.
        jit_compile: On PyTorch, compile further with TorchInductor: about twice as
            fast, after 10 to 20 s. Other backends always compile with XLA.
        eval_episodes: Episodes to play at the end.
        seed: Seed of all random draws.
        seeds: Number of agents, with the seeds `seed`, `seed + 1`, ...
        output_dir: Folder for the results; runs/fused-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        The contents of metrics.json.
    """
    run = Run("fused", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    # To use your own environment, `register` it (kit/envs/registration.py).
    envs = make(env, num_envs)
    space = envs.observation_space
    turns = -(-total_timesteps // (num_envs * num_steps))  # rounded up
    gradient_steps = turns * num_epochs * num_minibatches

    def falling(start):
        return keras.optimizers.schedules.PolynomialDecay(start, gradient_steps, 0.0)

    def make_agent(seed):
        actor = kit.policy_network(
            space, envs.action_space, units, activation, network=network
        )
        critic = kit.value_network(space, units, activation, network)
        network_seeds = kit.random.split_seed(seed)
        for model, network_seed in zip((actor, critic), network_seeds, strict=True):
            kit.initialize_weights(model, network_seed)
        agent = kit.PPO(
            actor,
            critic,
            gamma=gamma,
            gae_lambda=gae_lambda,
            num_steps=num_steps,
            num_minibatches=num_minibatches,
            num_epochs=num_epochs,
            clip_coef=falling(clip_coef) if anneal_clip_coef else clip_coef,
            clip_value_loss=clip_value_loss,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            seed=seed,
        )
        agent.compile(
            keras.optimizers.Adam(
                falling(learning_rate), epsilon=1e-5, global_clipnorm=max_grad_norm
            ),
            jit_compile=jit_compile or "auto",
        )
        return agent

    name = gymnasium_id(env)  # If Gymnasium has it, its version is for evaluation.
    if seeds > 1:
        agents = [make_agent(seed + i) for i in range(seeds)]
        histories = kit.fit_together(
            agents, envs, total_timesteps, callbacks=[run.backup()], verbose=verbose
        )
        figures = finish_agents(run, agents, histories, name, eval_episodes)
    else:
        agent = make_agent(seed)
        history = agent.fit(
            envs, total_timesteps, callbacks=[run.backup()], verbose=verbose
        )
        figures = finish_agent(run, agent, history, name, eval_episodes)
    return figures


if __name__ == "__main__":
    command_line(main, BY_ENV)
