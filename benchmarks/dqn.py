"""DQN on CartPole-v1: the kit beside Stable-Baselines3 and SBX.

    pip install -e ".[jax,recipes,bench]"
    KERAS_BACKEND=jax python benchmarks/dqn.py
    KERAS_BACKEND=torch python benchmarks/dqn.py --contestants kit sb3

All have the same hyper-parameters, by `--preset`. Each trains in a
process of its own, one after the other, with its library's default threads. The
clock runs from the call of `fit` or `learn` to its return, compilation included;
the second speed leaves out the first fifth of the steps, where programs are
compiled and most actions are random. KERAS_BACKEND concerns the kit alone:
Stable-Baselines3 is PyTorch, SBX is JAX.

What the peers do otherwise: Stable-Baselines3 clips gradients at norm 10; both
act at random until step 1000, finish the last turn, and copy the target network
in the middle of a turn, the kit at its end (nothing learns in between).
"""

import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

Preset = Literal["zoo", "cleanrl"]
PRESETS: dict[str, dict[str, Any]] = {
    "zoo": {
        "units": (256, 256),
        "learning_rate": 2.3e-3,
        "target_update_freq": 10,
        "epsilon_end": 0.04,
        "shared": {
            "gamma": 0.99,
            "batch_size": 64,
            "buffer_size": 100_000,
            "learning_starts": 1_000,
            "train_freq": 256,
            "gradient_steps": 128,
            "exploration_fraction": 0.16,
        },
    },
    "cleanrl": {
        "units": (120, 84),
        "learning_rate": 2.5e-4,
        "target_update_freq": 500,
        "epsilon_end": 0.05,
        "shared": {
            "gamma": 0.99,
            "batch_size": 128,
            "buffer_size": 10_000,
            "learning_starts": 1_000,
            "train_freq": 10,
            "gradient_steps": 1,
            "exploration_fraction": 0.5,
        },
    },
}
PACKAGES = {"kit": "keras", "sb3": "stable_baselines3", "sbx": "sbx"}  # to import
SHOWN = {  # distributions whose versions are reported
    "kit": ["keras"],  # and the backend
    "sb3": ["stable-baselines3", "torch"],
    "sbx": ["sbx-rl", "jax"],
}


def main(
    *,
    contestants: tuple[Literal["kit", "sb3", "sbx"], ...] = ("kit", "sb3", "sbx"),
    preset: Preset = "zoo",
    total_timesteps: int = 50_000,
    seed: int = 0,
    episodes: int = 20,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Trains the contestants one after the other and prints a table.

    Args:
        contestants: Who takes part.
        preset: Hyper-parameters: "zoo" (RL Baselines3 Zoo; the time is in matrix
            products, which all of them leave to their framework) or "cleanrl"
            (CleanRL's, but for the length; the time is in acting).
        total_timesteps: Environment steps to train for.
        seed: Seed of environment, exploration and weights.
        episodes: Greedy episodes at the end.
        output: JSON file for the results.

    Returns:
        A row for each contestant that is installed.
    """
    rows = []
    for who in contestants:
        if importlib.util.find_spec(PACKAGES[who]) is None:
            print(f'{who} is not installed: pip install -e ".[bench]"')
            continue
        print(f"{who}: training", flush=True)
        job = dict(
            who=who,
            preset=preset,
            total_timesteps=total_timesteps,
            seed=seed,
            episodes=episodes,
        )
        command = [sys.executable, __file__, "--worker", json.dumps(job)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{who} failed:\n{done.stderr}")
        rows.append(json.loads(done.stdout.splitlines()[-1]))
    print_table(rows)
    if output is not None:
        output.write_text(json.dumps(rows, indent=2) + "\n")
    return rows


# --- In the contestant's process ---------------------------------------------


def work(
    who: str, preset: str, total_timesteps: int, seed: int, episodes: int
) -> dict[str, Any]:
    """Trains one contestant; returns its row."""
    contestant = {"kit": train_kit, "sb3": train_peer, "sbx": train_peer}[who]
    marks, act = contestant(who, PRESETS[preset], total_timesteps, seed)
    (_, start), (steps, end) = marks[0], marks[-1]
    later = [mark for mark in marks[:-1] if mark[0] >= steps / 5] or marks[:1]
    returns = play(act, episodes)
    backend = [sys.modules["keras"].backend.backend()] if who == "kit" else []
    return {
        "contestant": who + "".join(f" ({name})" for name in backend),
        "steps": steps,
        "seconds": end - start,
        "steps_per_second": steps / (end - start),
        "steps_per_second_later": (steps - later[0][0]) / (end - later[0][1]),
        "return": float(np.mean(returns)),
        "return_std": float(np.std(returns)),
        "versions": {p: importlib.metadata.version(p) for p in SHOWN[who] + backend},
    }


Marks = list[tuple[int, float]]  # (environment steps, time) between turns


def train_kit(
    who: str, preset: dict[str, Any], total_timesteps: int, seed: int
) -> tuple[Marks, Callable]:
    import gymnasium
    import keras

    import kit

    network = kit.q_network((4,), 2, units=preset["units"])
    kit.initialize_weights(network, seed)
    agent = kit.DQN(
        network,
        **preset["shared"],
        target_update_freq=preset["target_update_freq"],
        epsilon_end=preset["epsilon_end"],
        seed=seed,
    )
    agent.compile(keras.optimizers.Adam(preset["learning_rate"], epsilon=1e-8))
    marks: Marks = []

    class Clock(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            marks.append((logs["timesteps"], time.perf_counter()))

    env = gymnasium.make("CartPole-v1")
    marks.append((0, time.perf_counter()))
    agent.fit(env, total_timesteps, callbacks=[Clock()], verbose=0, seed=seed)
    marks.append((marks[-1][0], time.perf_counter()))
    return marks, agent.act


def train_peer(
    who: str, preset: dict[str, Any], total_timesteps: int, seed: int
) -> tuple[Marks, Callable]:
    library = importlib.import_module(PACKAGES[who])
    from stable_baselines3.common.callbacks import BaseCallback

    agent = library.DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=preset["learning_rate"],
        policy_kwargs={"net_arch": list(preset["units"])},
        **preset["shared"],
        target_update_interval=preset["target_update_freq"],
        exploration_final_eps=preset["epsilon_end"],
        seed=seed,
    )
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


# --- The table -----------------------------------------------------------------


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="DQN on CartPole-v1", caption="kit x: the kit's speed over it")
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
            f"{row['return']:.1f} ± {row['return_std']:.1f}",
            f"{row['seconds']:.1f}",
        )
    Console().print(table)
    versions = {p: v for row in rows for p, v in row["versions"].items()}
    print(", ".join(f"{p} {v}" for p, v in versions.items()))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        print(json.dumps(work(**json.loads(sys.argv[2]))))
    else:
        import tyro

        tyro.cli(main)
