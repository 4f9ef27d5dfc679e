"""What the recipes of agents share: environments before, results afterwards."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from kit import checks
from kit.backend import compile_seconds
from kit.lab.run import Run, plot_learning_curve
from kit.rl.environments import play_episodes, random_policy

ACCEPTED = {
    "env": checks.TEXT,
    "num_envs": checks.SIZE,
    "run": checks.instance(Run),
    "agent": checks.MODEL,
    "episodes": checks.SIZE,
    "render": checks.one_of("none", "video"),
    "act": checks.FUNCTION,
    "folder": checks.PATH,
    "seed": checks.SEED,
}


def flat_observations(env: Any) -> Any:
    """Makes vectors of observations that aren't arrays, such as numbers of states."""
    kind = checks.instance(gymnasium.Env, gymnasium.vector.VectorEnv)
    checks.check("flat_observations", locals(), {"env": kind})
    if isinstance(env.observation_space, gymnasium.spaces.Box):
        return env
    return gymnasium.wrappers.FlattenObservation(env)


def make_envs(env: str, num_envs: int) -> Any:
    """Makes a vector environment, of several that are played side by side.

    By one that computes all of them at once where Gymnasium has it, as of CartPole:
    ten times faster than one after the other.

    Args:
        env: Id of a Gymnasium environment.
        num_envs: Number of environments, at least 1.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If `num_envs` isn't positive.
    """
    checks.check("make_envs", locals(), ACCEPTED)
    try:
        spec = gymnasium.spec(env)
    except gymnasium.error.Error as error:
        raise ValueError(
            f"make_envs: `env` must be the id of an environment, received {env!r}: "
            f"{error}"
        ) from error
    if spec.vector_entry_point is not None:
        envs = gymnasium.make_vec(
            env, num_envs, vectorization_mode="vector_entry_point"
        )
        if isinstance(envs.single_observation_space, gymnasium.spaces.Box):
            return envs
        envs.close()
    return gymnasium.make_vec(
        env,
        num_envs,
        vectorization_mode="sync",
        wrappers=[flat_observations],
        # A step that only resets would be one that nothing is learned from.
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
    )


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

    The episodes are others than those of the training, and the same ones for the
    agent and for the random policy.

    Args:
        run: The recipe's run.
        agent: The trained agent.
        history: What its `fit` returned.
        env: Id of the environment.
        episodes: Number of episodes to play.
        render: `"video"` records an episode.
        metrics: More figures for metrics.json.
        baselines: More to compare with.

    Returns:
        What metrics.json holds.
    """
    checks.check("finish_agent", locals(), ACCEPTED)
    test_env, seed = flat_observations(gymnasium.make(env)), 10_000 + run.seed
    final = agent.evaluate(test_env, episodes, seed=seed)
    policy = random_policy(test_env, run.seed)
    baseline = play_episodes(test_env, policy, episodes, seed=seed)
    test_env.close()
    agent.save(run.output_dir / "model.keras")
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


def record_video(
    act: Callable[[np.ndarray], Any], env: str, folder: Path, seed: int
) -> None:
    """Records one episode, by Gymnasium's own wrapper, in the folder `video`."""
    checks.check("record_video", locals(), ACCEPTED)
    recorded = gymnasium.wrappers.RecordVideo(
        flat_observations(gymnasium.make(env, render_mode="rgb_array")),
        str(Path(folder) / "video"),
    )
    obs, _ = recorded.reset(seed=seed)
    ended = False
    while not ended:
        obs, _, terminated, truncated, _ = recorded.step(act(obs))
        ended = bool(terminated or truncated)
    recorded.close()
