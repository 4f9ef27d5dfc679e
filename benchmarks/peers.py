"""What the benchmarks of agents share: contestants in processes, clocks, a table.

Each contestant trains in a process of its own, one after the other, with its library's
default threads; those that are asked how they play do so on CartPole-v1.
"""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
Marks = list[tuple[int, float]]  # (environment steps, time) between turns
PACKAGES = {"kit": "keras", "sb3": "stable_baselines3", "sbx": "sbx"}  # to import
SHOWN = {  # distributions whose versions are reported
    "kit": ["keras"],  # and the backend
    "sb3": ["stable-baselines3", "torch"],
    "sbx": ["sbx-rl", "jax"],
}


def race(
    script: str, title: str, contestants: tuple[str, ...], output: Path | None, **job
) -> list[Row]:
    """Trains the contestants one after the other and prints a table.

    Args:
        script: The benchmark's file, which `serve`s.
        title: Of the table.
        contestants: Who takes part, of `PACKAGES`.
        output: JSON file for the results, or `None`.
        **job: Arguments of the benchmark's `train` functions.

    Returns:
        A row for each contestant that is installed.
    """
    rows = []
    for who in contestants:
        if importlib.util.find_spec(PACKAGES[who]) is None:
            print(f'{who} is not installed: pip install -e ".[bench]"')
            continue
        print(f"{who}: training", flush=True)
        arguments = json.dumps({"who": who, **job})
        command = [sys.executable, script, "--worker", arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{who} failed:\n{done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print_table(title, rows)
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


def serve(main: Callable, train_kit: Callable, train_peer: Callable) -> None:
    """Runs a benchmark's command line, or trains one contestant in its process."""
    if sys.argv[1:2] != ["--worker"]:
        import tyro

        tyro.cli(main)
        return
    job = json.loads(sys.argv[2])
    train = train_kit if job["who"] == "kit" else train_peer
    marks, act = train(**job)
    print(json.dumps(row_of(job["who"], marks, act, job.get("episodes", 0))))


def row_of(who: str, marks: Marks, act: Callable | None, episodes: int) -> Row:
    """Returns a contestant's row: speeds from its marks, and how it plays.

    Without `act`, it has no return.
    """
    (_, start), (steps, end) = marks[0], marks[-1]
    later = [mark for mark in marks[:-1] if mark[0] >= steps / 5] or marks[:1]
    returns = play(act, episodes) if act else []
    backend = [sys.modules["keras"].backend.backend()] if who == "kit" else []
    row = {
        "contestant": who + "".join(f" ({name})" for name in backend),
        "steps": steps,
        "seconds": end - start,
        "steps_per_second": steps / (end - start),
        "steps_per_second_later": (steps - later[0][0]) / (end - later[0][1]),
        "versions": {p: importlib.metadata.version(p) for p in SHOWN[who] + backend},
    }
    if returns:
        row["return"], row["return_std"] = (
            float(np.mean(returns)),
            float(np.std(returns)),
        )
    return row


def clock_kit(agent: Any, env: Any, total_timesteps: int, seed: int) -> Marks:
    """Trains an agent of the kit; returns the marks after each turn."""
    import keras

    marks: Marks = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            marks.append((logs["timesteps"], time.perf_counter()))

    marks.append((0, time.perf_counter()))
    agent.fit(env, total_timesteps, callbacks=[Clock()], verbose=0, seed=seed)
    marks.append((marks[-1][0], time.perf_counter()))
    return marks


def clock_peer(agent: Any, total_timesteps: int) -> tuple[Marks, Callable]:
    """Trains an agent of Stable-Baselines3's kind; returns marks, and how it acts."""
    from stable_baselines3.common.callbacks import BaseCallback

    marks: Marks = [(0, time.perf_counter())]

    class Clock(BaseCallback):
        def _on_rollout_start(self):  # after the gradient steps of the turn before
            marks.append((self.model.num_timesteps, time.perf_counter()))

        def _on_step(self):
            return True

    agent.learn(total_timesteps, callback=Clock())
    marks.append((agent.num_timesteps, time.perf_counter()))
    return marks, lambda obs: int(agent.predict(obs, deterministic=True)[0])


def play(act: Callable[[np.ndarray], int], episodes: int) -> list[float]:
    """Plays greedily; the episodes begin alike for every contestant."""
    import gymnasium

    env, returns = gymnasium.make("CartPole-v1"), []
    for episode in range(episodes):
        obs, _ = env.reset(seed=10_000 + episode)
        total, ended = 0.0, False
        while not ended:
            obs, reward, terminated, truncated, _ = env.step(act(obs))
            total, ended = total + float(reward), terminated or truncated
        returns.append(total)
    return returns


def print_table(title: str, rows: list[Row]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, caption="kit x: the kit's speed over it")
    columns = ("steps/s", "kit x", "steps/s after 20 %", "kit x", "return", "seconds")
    table.add_column("")
    for column in columns:
        table.add_column(column, justify="right")
    kit = next((row for row in rows if row["contestant"].startswith("kit")), None)
    for row in rows:
        speeds = []
        for name in ("steps_per_second", "steps_per_second_later"):
            speeds.append(f"{row[name]:,.0f}")
            speeds.append(f"{kit[name] / row[name]:.1f}" if kit else "")
        table.add_row(
            row["contestant"],
            *speeds,
            f"{row['return']:.1f} ± {row['return_std']:.1f}" if "return" in row else "",
            f"{row['seconds']:.1f}",
        )
    Console().print(table)
    versions = {p: v for row in rows for p, v in row["versions"].items()}
    print(", ".join(f"{p} {v}" for p, v in versions.items()))
