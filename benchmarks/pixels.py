"""DQN on an Atari game, from its pixels: the kit beside Stable-Baselines3 and SBX.

    pip install -e ".[jax,recipes,atari,bench]"
    KERAS_BACKEND=jax python benchmarks/pixels.py
    KERAS_BACKEND=torch python benchmarks/pixels.py --contestants kit sb3

All have the same environment, network (Nature's) and hyper-parameters: CleanRL's, but
for a smaller buffer and an earlier start. Each trains in a process of its own, one
after the other, with its library's default threads. The clock runs from the call of
`fit` or `learn` to its return, compilation included; the second speed leaves out the
first fifth of the steps, where programs are compiled and nothing is learned yet. A step
is four frames of the game. KERAS_BACKEND concerns the kit alone: Stable-Baselines3 is
PyTorch, SBX is JAX.

So few steps teach an agent nothing: this measures time, and no score. The peers store
each stack of frames twice, the kit each frame once.
"""

import importlib
from pathlib import Path
from typing import Any, Literal

from peers import PACKAGES, Marks, clock_kit, clock_peer, race, serve

SHARED: dict[str, Any] = {
    "gamma": 0.99,
    "batch_size": 32,
    "buffer_size": 10_000,
    "learning_starts": 200,
    "train_freq": 4,
    "gradient_steps": 1,
    "exploration_fraction": 0.1,
}
LEARNING_RATE = 1e-4
TARGET_UPDATE_FREQ = 1_000
EPSILON_END = 0.01


def main(
    *,
    contestants: tuple[Literal["kit", "sb3", "sbx"], ...] = ("kit", "sb3", "sbx"),
    env: str = "ALE/Pong-v5",
    total_timesteps: int = 4_000,
    seed: int = 0,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Trains the contestants one after the other and prints a table.

    Args:
        contestants: Who takes part.
        env: Id of an Atari game.
        total_timesteps: Environment steps to train for.
        seed: Seed of environment, exploration and weights.
        output: JSON file for the results.

    Returns:
        A row for each contestant that is installed.
    """
    return race(
        __file__,
        f"DQN on {env}",
        contestants,
        output,
        env=env,
        total_timesteps=total_timesteps,
        seed=seed,
    )


def train_kit(
    who: str, env: str, total_timesteps: int, seed: int
) -> tuple[Marks, None]:
    import keras

    import kit
    from kit.rl.atari import make_atari

    game: Any = make_atari(env, training=True)
    network = kit.q_network(
        game.observation_space, int(game.action_space.n), network="nature"
    )
    kit.initialize_weights(network, seed)
    agent = kit.DQN(
        network,
        **SHARED,
        target_update_freq=TARGET_UPDATE_FREQ,
        epsilon_end=EPSILON_END,
        seed=seed,
    )
    agent.compile(keras.optimizers.Adam(LEARNING_RATE, epsilon=1e-8))
    return clock_kit(agent, game, total_timesteps, seed), None


def train_peer(
    who: str, env: str, total_timesteps: int, seed: int
) -> tuple[Marks, None]:
    from kit.rl.atari import make_atari

    library = importlib.import_module(PACKAGES[who])
    agent = library.DQN(
        "CnnPolicy",
        make_atari(env, training=True),
        learning_rate=LEARNING_RATE,
        **SHARED,
        target_update_interval=TARGET_UPDATE_FREQ,
        exploration_final_eps=EPSILON_END,
        seed=seed,
    )
    marks, _ = clock_peer(agent, total_timesteps)
    return marks, None


if __name__ == "__main__":
    serve(main, train_kit, train_peer)
