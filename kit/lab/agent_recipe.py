"""Shared code of agents' recipes: creates environments, evaluates and reports."""

import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import keras
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from PIL import Image

from kit import checks
from kit.backend import compile_seconds
from kit.files import replacing
from kit.lab.run import Run, plot_learning_curve, plot_seeds
from kit.rl.atari import is_atari, make_atari
from kit.rl.environments import Environments, play_episodes, random_policy

# Of an episode that isn't for training: a greedy agent may play a game for ever, as
# Breakout's ball can move in a circle.
MOST_STEPS = 5_000
MOST_FRAMES = 2_000  # in a video
MOST_BYTES = 1_000_000  # in an animated picture
ACCEPTED = {
    "env": checks.TEXT,
    "num_envs": checks.SIZE,
    "training": checks.BOOL,
    "run": checks.instance(Run),
    "agent": checks.MODEL,
    "agents": checks.sequence(checks.MODEL, least=2),
    "episodes": checks.SIZE,
    "render": checks.one_of("none", "video"),
    "act": checks.FUNCTION,
    "folder": checks.PATH,
    "path": checks.PATH,
    "frames": checks.sequence(checks.array("H W 3", "integers"), least=1),
    "frames_per_second": checks.real("(0, 1000]"),
    "seed": checks.SEED,
    "histories": checks.sequence(
        checks.instance(keras.callbacks.History, what="a History"), least=2
    ),
}


def make_env(env: str, training: bool = False, **options: Any) -> gymnasium.Env:
    """Makes an environment; Atari games with preprocessing (`kit.rl.atari`).

    Args:
        env: Id of a Gymnasium environment.
        training: Whether agents will learn from it: in Atari games, rewards are then
            clipped to their sign, and each life is an episode. Defaults to `False`.
        **options: See `gymnasium.make`. Unless for training, episodes of an environment
            without a time limit end after 5,000 steps.

    Raises:
        TypeError: If an argument has the wrong type.
    """
    checks.check("make_env", locals(), ACCEPTED)
    if is_atari(env):
        return make_atari(env, training=training, **options)
    made = gymnasium.make(env, **options)
    if training or made.spec is None or made.spec.max_episode_steps is not None:
        return made
    return gymnasium.wrappers.TimeLimit(made, MOST_STEPS)


def make_envs(env: str, num_envs: int, training: bool = False) -> Any:
    """Makes a vector environment of several parallel environments.

    If Gymnasium has a vectorized implementation, as for CartPole, it is used: ten times
    faster than one environment after the other.

    Args:
        env: Id of a Gymnasium environment.
        num_envs: Number of environments, at least 1.
        training: See `make_env`. Defaults to `False`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `num_envs` isn't positive.
    """
    checks.check("make_envs", locals(), ACCEPTED)
    # Otherwise, some steps would only reset, with nothing to learn from.
    mode = AutoresetMode.SAME_STEP
    if is_atari(env):
        games = [partial(make_env, env, training)] * num_envs
        return SyncVectorEnv(games, autoreset_mode=mode)
    try:
        spec = gymnasium.spec(env)
    except gymnasium.error.Error as error:
        raise ValueError(
            f"make_envs: `env` must be the id of an environment, received {env!r}: "
            f"{error}"
        ) from error
    if spec.vector_entry_point is not None:
        return gymnasium.make_vec(
            env, num_envs, vectorization_mode="vector_entry_point"
        )
    return gymnasium.make_vec(
        env,
        num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
    )


def spaces_of(env: Any) -> tuple[gymnasium.Space, gymnasium.Space]:
    """Returns the spaces of one observation and of one action.

    Args:
        env: Environment, vector environment, or environments in `keras.ops`.

    Raises:
        TypeError: If `env` is none of them.
    """
    envs = Environments(env)
    return envs.observation_space, envs.action_space


def finish_agent(
    run: Run,
    agent: Any,
    history: Any,
    env: str,
    episodes: int,
    *,
    render: str = "none",
    metrics: Mapping[str, Any] | None = None,
    baselines: Mapping[str, Any] | None = None,
) -> dict:
    """Evaluates, saves and reports on a trained agent.

    The episodes differ from those of the training. Agent and random policy play the
    same episodes.

    Args:
        run: The recipe's run.
        agent: The trained agent.
        history: The result of its `fit`.
        env: Id of the environment.
        episodes: Number of episodes to play.
        render: `"video"` records an episode.
        metrics: Further metrics for metrics.json.
        baselines: Further baselines.

    Returns:
        The contents of metrics.json.
    """
    checks.check("finish_agent", locals(), ACCEPTED)
    run.begin()
    agent.save(run.output_dir / "model.keras")
    test_env, seed = make_env(env), 10_000 + run.seed
    final = agent.evaluate(test_env, episodes, seed=seed)
    policy = random_policy(test_env, run.seed)
    baseline = play_episodes(test_env, policy, episodes, seed=seed)
    test_env.close()
    plot_learning_curve(
        run.output_dir / "learning_curve.png",
        history.history["timesteps"],
        history.history["return"],
        title=f"{type(agent).__name__} on {env} ({run.backend}, seed {run.seed})",
        baseline=baseline["return"],
        final=final["return"],
        points="intervals",
    )
    if render == "video":
        record_video(agent.act, env, run.output_dir, seed)
    return run.finish(
        history=history,
        metrics={
            "eval_return": final["return"],
            "eval_return_std": final["return_std"],
            "eval_episodes": final["episodes"],
            "total_timesteps": int(history.history["timesteps"][-1]),
            **(metrics or {}),
        },
        baselines={"random_return": baseline["return"], **(baselines or {})},
        throughput=(np.median(history.history["steps_per_second"]), "env steps/s"),
        compile_seconds=compile_seconds(),
    )


def finish_agents(
    run: Run,
    agents: Sequence[Any],
    histories: Sequence[keras.callbacks.History],
    env: str,
    episodes: int,
) -> dict:
    """Evaluates, saves and reports on agents that were trained with several seeds.

    Args:
        run: The recipe's run.
        agents: The trained agents, two or more, which differ in their seeds.
        histories: The result of `kit.fit_together`.
        env: Id of the environment.
        episodes: Number of episodes that each of them plays.

    Returns:
        The contents of metrics.json: means over the agents, and each agent's return by
        its seed.
    """
    checks.check("finish_agents", locals(), ACCEPTED)
    test_env, seed = make_envs(env, episodes), 10_000 + run.seed
    run.begin()
    returns = {}
    for agent in agents:
        agent.save(run.output_dir / f"model-{agent.seed}.keras")
        returns[agent.seed] = agent.evaluate(test_env, episodes, seed=seed)["return"]
    policy = random_policy(test_env, run.seed)
    baseline = play_episodes(test_env, policy, episodes, seed=seed)
    test_env.close()
    logs = [history.history for history in histories]
    name, seeds = type(agents[0]).__name__, ", ".join(map(str, returns))
    if len(returns) > 3 and [*returns] == [*range(min(returns), max(returns) + 1)]:
        seeds = f"{min(returns)} to {max(returns)}"
    plot_seeds(
        run.output_dir / "learning_curve.png",
        logs[0]["timesteps"],
        [x["return"] for x in logs],
        title=f"{name} on {env} ({run.backend}, seeds {seeds})",
        baseline=baseline["return"],
        final=np.mean([*returns.values()]),
    )
    rows = [
        {
            "seed": agent.seed,
            "epoch": epoch,
            **{name: x[epoch] for name, x in log.items()},
        }
        for agent, log in zip(agents, logs, strict=True)
        for epoch in range(len(log["timesteps"]))
    ]
    return run.finish(
        history=rows,
        metrics={
            "eval_return": np.mean([*returns.values()]),
            **{f"eval_return_seed_{x}": value for x, value in returns.items()},
            "eval_episodes": episodes,
            "total_timesteps": int(logs[0]["timesteps"][-1]),
        },
        baselines={"random_return": baseline["return"]},
        throughput=(
            len(agents) * np.median(logs[0]["steps_per_second"]),
            "env steps/s, all seeds",
        ),
        compile_seconds=compile_seconds(),
    )


def record_video(
    act: Callable[[np.ndarray], Any], env: str, folder: Path, seed: int
) -> None:
    """Records one episode, as a video and as a small animated picture.

    The folder `video` gets an MP4 from Gymnasium, and a GIF from `save_animation`.
    Recording stops after 2,000 steps.

    Args:
        act: Function from an observation to an action.
        env: Id of the environment.
        folder: Parent of the folder `video`, which is created.
        seed: Seed of the episode.
    """
    checks.check("record_video", locals(), ACCEPTED)
    videos = Path(folder) / "video"
    recorded = gymnasium.wrappers.RecordVideo(
        make_env(env, render_mode="rgb_array"), str(videos)
    )
    obs, _ = recorded.reset(seed=seed)
    frames: list[Any] = recorded.recorded_frames
    ended = False
    while not ended and len(frames) < MOST_FRAMES:
        obs, _, terminated, truncated, _ = recorded.step(act(obs))
        ended = bool(terminated or truncated)
    recorded.close()  # which writes it
    animation = videos / "rl-video-episode-0.gif"
    save_animation(animation, frames, recorded.frames_per_sec)


def save_animation(
    path: str | Path, frames: Sequence[np.ndarray], frames_per_second: float
) -> None:
    """Writes an animated picture small enough for a page: a GIF of at most 1 MB.

    It shows the first twelve seconds, at most ten frames a second, and is scaled down
    until it is small enough.

    Args:
        path: File to write.
        frames: Pictures `(H, W, 3)`, uint8, all of one size.
        frames_per_second: Frame rate of the episode.
    """
    checks.check("save_animation", locals(), ACCEPTED)
    stride = max(1, round(frames_per_second / 10))
    shown = frames[: math.ceil(12 * frames_per_second) : stride]
    for width in (320, 240, 160, 120, 80):
        images = [Image.fromarray(np.asarray(frame)) for frame in shown]
        for image in images:
            image.thumbnail((width, width))  # never larger than it is
        animation = io.BytesIO()
        images[0].save(
            animation,
            "GIF",
            save_all=True,
            append_images=images[1:],
            duration=round(1000 * stride / frames_per_second),
            loop=0,
        )
        if animation.tell() <= MOST_BYTES:
            break
    with replacing(path) as file:
        file.write_bytes(animation.getvalue())
