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

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from peers import PACKAGES, Marks, clock_kit, clock_peer, race, serve

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
    return race(
        __file__,
        "DQN on CartPole-v1",
        contestants,
        output,
        preset=preset,
        total_timesteps=total_timesteps,
        seed=seed,
        episodes=episodes,
    )


def train_kit(
    who: str, preset: str, total_timesteps: int, seed: int, episodes: int
) -> tuple[Marks, Callable]:
    import gymnasium
    import keras

    import kit

    settings = PRESETS[preset]
    network = kit.q_network((4,), 2, units=settings["units"])
    kit.initialize_weights(network, seed)
    agent = kit.DQN(
        network,
        **settings["shared"],
        target_update_freq=settings["target_update_freq"],
        epsilon_end=settings["epsilon_end"],
        seed=seed,
    )
    agent.compile(keras.optimizers.Adam(settings["learning_rate"], epsilon=1e-8))
    env = gymnasium.make("CartPole-v1")
    return clock_kit(agent, env, total_timesteps, seed), agent.act


def train_peer(
    who: str, preset: str, total_timesteps: int, seed: int, episodes: int
) -> tuple[Marks, Callable]:
    library = importlib.import_module(PACKAGES[who])
    settings = PRESETS[preset]
    agent = library.DQN(
        "MlpPolicy",
        "CartPole-v1",
        learning_rate=settings["learning_rate"],
        policy_kwargs={"net_arch": list(settings["units"])},
        **settings["shared"],
        target_update_interval=settings["target_update_freq"],
        exploration_final_eps=settings["epsilon_end"],
        seed=seed,
    )
    return clock_peer(agent, total_timesteps)


if __name__ == "__main__":
    serve(main, train_kit, train_peer)
