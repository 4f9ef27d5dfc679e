r"""Teaches an agent to balance a pole, by asynchronous workers (A3C).

You will learn: how workers that train side by side without a barrier share one set of
weights. Their gradients arrive a few updates late, and training works all the same
(`kit/a3c.py` has the algorithm). For comparison, the recipe also trains A2C, in which
every update waits for the slowest environment: same networks, same number of frames.

    KERAS_BACKEND=jax python recipes/a3c.py
    KERAS_BACKEND=jax python recipes/a3c.py --engine ray --num-workers 4
    KERAS_BACKEND=tensorflow python recipes/a3c.py --engine ray --address auto

Threads share one Python interpreter. With an environment and networks as small as
these, they also share one processor, so more threads aren't faster. More processes of
Ray (`pip install "ray>=2.50"`) are, up to the number of processors. `speed.png` shows
it: on JAX and two cores, 1, 2 and 4 threads make 16,100, 12,100 and 9,400 steps a
second, Ray's processes 5,200, 8,200 and 7,500, as weights and gradients are copied
between processes.

Expected result on CartPole-v1: a return of 500 from both, after 200,000 steps each, and
a mean staleness of 0.7 to 0.9 updates with two threads. Runs differ: in one of eleven
on the three backends, A3C's last policy had fallen back to 423.

Paper: Mnih et al., 2016, https://arxiv.org/abs/1602.01783. The score is that of the
last policy, which always takes the most probable action.
"""

import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import keras

import kit
from kit.lab.agent_recipe import finish_agent, make_env, make_envs
from kit.lab.run import Run, command_line


class Speedometer(keras.callbacks.Callback):
    """Measures frames per second once all workers play, then ends the training."""

    def __init__(self, num_workers: int, frames: int):
        super().__init__()
        self.num_workers = num_workers
        self.frames = frames
        self.start: tuple[float, int] | None = None

    def on_train_batch_end(self, batch, logs=None):
        """Starts and stops the clock."""
        frames, now = logs["timesteps"], time.perf_counter()
        if self.start is None and len(self.model.pushes) >= self.num_workers:
            self.start = now, frames
        elif self.start is not None and frames - self.start[1] >= self.frames:
            self.speed = (frames - self.start[1]) / (now - self.start[0])
            self.model.stop_training = True


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Asynchronous actor-critic",
    "place": 17,
    "score": "eval_return",
    "larger_is_better": True,
    "curve": "return",
    "quick": "--total-timesteps 10000 --worker-counts",
}


def main(
    *,
    env: str = "CartPole-v1",
    total_timesteps: int = 200_000,
    num_workers: int = 2,
    engine: Literal["threads", "ray"] = "threads",
    address: str | None = None,
    num_steps: int = 20,
    learning_rate: float = 2e-3,
    units: tuple[int, ...] | None = None,
    gamma: float = 0.99,
    gae_lambda: float = 1.0,
    ent_coef: float = 0.01,
    vf_coef: float = 0.5,
    max_grad_norm: float = 40.0,
    worker_counts: tuple[int, ...] = (1, 2, 4),
    speed_frames: int = 5_000,
    eval_episodes: int = 20,
    render: Literal["none", "video"] = "none",
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains one agent with A3C and one with A2C, and evaluates both.

    Args:
        env: Id of a Gymnasium environment.
        total_timesteps: Environment steps to train each of them for.
        num_workers: Number of A3C's workers, and of A2C's environments.
        engine: What runs the workers: "threads", or "ray" for processes.
        address: Address of a Ray cluster to join; "auto" for one on this machine.
        num_steps: Steps between two updates, per worker or per environment.
        learning_rate: Step size of RMSprop at the start; falls linearly to 0.
        units: Sizes of the hidden layers of actor and critic. If not given, 64 and 64,
            or the default of the network for images.
        gamma: Discount factor.
        gae_lambda: Lambda of the advantages; 1 for n-step returns.
        ent_coef: Weight of the entropy bonus.
        vf_coef: Weight of the critic's loss, half the squared error.
        max_grad_norm: Largest global norm of gradients, beyond which they are clipped.
            The critic's error is most of the norm: a small limit also shrinks the
            actor's steps.
        worker_counts: Numbers of workers whose speed to measure; none skips it.
        speed_frames: Environment steps of each speed measurement.
        eval_episodes: Episodes to play at the end.
        render: "video" records an episode of the trained agent, as MP4 and as GIF.
        seed: Seed of all random draws. Runs differ all the same.
        output_dir: Folder for the results; runs/a3c-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        The contents of metrics.json.
    """
    run = Run("a3c", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    example = make_env(env)

    def make_agent(kind: Callable[..., Any], frames_per_update: int) -> Any:
        """An untrained agent: each has the same weights."""
        space = example.observation_space
        networks = [
            kit.policy_network(space, example.action_space, units),
            kit.value_network(space, units),
        ]
        seeds = kit.random.split_seed(seed)
        for network, network_seed in zip(networks, seeds, strict=True):
            kit.initialize_weights(network, network_seed)
        agent = kind(
            *networks,
            gamma=gamma,
            gae_lambda=gae_lambda,
            num_steps=num_steps,
            ent_coef=ent_coef,
            vf_coef=vf_coef,
            seed=seed,
        )
        schedule = keras.optimizers.schedules.PolynomialDecay(
            learning_rate, math.ceil(total_timesteps / frames_per_update), 0.0
        )
        agent.compile(
            keras.optimizers.RMSprop(
                schedule, rho=0.99, epsilon=1e-5, global_clipnorm=max_grad_norm
            )
        )
        return agent

    workers: dict[str, Any] = {
        "env": functools.partial(make_env, env, training=True),
        "engine": engine,
        "address": address,
    }
    agent = make_agent(kit.A3C, num_steps)
    history = agent.fit(
        total_timesteps=total_timesteps,
        num_workers=num_workers,
        callbacks=[run.backup("a3c")],
        verbose=verbose,
        **workers,
    )

    envs = make_envs(env, num_workers, training=True)
    a2c = make_agent(kit.A2C, num_steps * num_workers)
    a2c.fit(envs, total_timesteps, callbacks=[run.backup("a2c")], verbose=verbose)
    envs.close()
    # The point at which `finish_agent` lets A3C begin.
    a2c_return = a2c.evaluate(example, eval_episodes, seed=10_000 + seed)["return"]

    speeds = {}
    for count in worker_counts:
        speedometer = Speedometer(count, speed_frames)
        make_agent(kit.A3C, num_steps).fit(
            total_timesteps=10**9,  # the speedometer ends it
            num_workers=count,
            callbacks=[speedometer],
            verbose=0,
            **workers,
        )
        speeds[count] = speedometer.speed

    example.close()
    late = sum(updates * count for updates, count in agent.staleness.items())
    draw_staleness(run, agent)
    if speeds:
        draw_speeds(run, speeds, engine)
    return finish_agent(
        run,
        agent,
        history,
        env,
        eval_episodes,
        render=render,
        metrics={
            "staleness_mean": late / agent.staleness.total(),
            "restarts": agent.restarts,
            **{f"steps_per_second_{n}_workers": x for n, x in speeds.items()},
        },
        baselines={"a2c_eval_return": a2c_return},
    )


def draw_staleness(run: Run, agent: kit.A3C) -> None:
    """Plots a histogram of the gradients' staleness, in updates."""
    with run.figure("staleness.png", figsize=(6, 4)) as figure:
        axes = figure.subplots()
        total = agent.staleness.total()
        # If the machine pauses a worker, a few gradients are very late: leave them out.
        often = [late for late, n in agent.staleness.items() if n >= total / 1000]
        late = range(max(often) + 1)
        axes.bar(late, [100 * agent.staleness[x] / total for x in late], width=0.9)
        axes.set_xlabel("Updates by other workers between pull and push")
        axes.set_ylabel("Gradients (%)")
        axes.set_title(f"Staleness, {len(agent.pushes)} workers", loc="left")
        axes.xaxis.get_major_locator().set_params(integer=True)


def draw_speeds(run: Run, speeds: dict[int, float], engine: str) -> None:
    """Plots frames per second against the number of workers."""
    with run.figure("speed.png", figsize=(6, 4)) as figure:
        axes = figure.subplots()
        axes.plot(list(speeds), list(speeds.values()), marker="o")
        axes.set_ylim(0)
        axes.set_xticks(list(speeds))
        axes.set_xlabel("Workers")
        axes.set_ylabel("Environment steps a second")
        axes.yaxis.set_major_formatter("{x:,.0f}")
        axes.set_title(f"Speed, engine {engine}, {run.backend}", loc="left")


if __name__ == "__main__":
    command_line(main)
