"""PPO and A2C on CartPole-v1: the kit beside Stable-Baselines3 and SBX.

    pip install -e ".[jax,recipes,bench]"
    KERAS_BACKEND=jax python benchmarks/on_policy.py
    KERAS_BACKEND=torch python benchmarks/on_policy.py --algorithm a2c

All have the same hyper-parameters, those of RL Baselines3 Zoo. The clock runs from the
call of `fit` or `learn` to its return, compilation included; the second speed leaves
out the first fifth of the steps, where programs are compiled. KERAS_BACKEND concerns
the kit alone: Stable-Baselines3 is PyTorch, SBX is JAX, and has no A2C.

Each plays its eight environments as it does by default: the peers one after the other,
the kit by the one that Gymnasium has for CartPole, which computes all eight at once.
`--envs sync` has the kit play them one after the other, too.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

from peers import PACKAGES, Marks, clock_kit, clock_peer, race, serve

NUM_ENVS = 8
# Learning rates don't fall, as the peers' schedules aren't Keras'.
PPO: dict[str, Any] = {"gamma": 0.98, "gae_lambda": 0.8, "ent_coef": 0.0}
A2C: dict[str, Any] = {"gamma": 0.99, "gae_lambda": 1.0, "ent_coef": 0.0}
VF_COEF = 0.5  # of the peers, whose critic's loss is the whole squared error


def main(
    *,
    algorithm: Literal["ppo", "a2c"] = "ppo",
    contestants: tuple[Literal["kit", "sb3", "sbx"], ...] = ("kit", "sb3", "sbx"),
    envs: Literal["vector", "sync"] = "vector",
    total_timesteps: int = 100_000,
    seed: int = 0,
    episodes: int = 20,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Trains the contestants one after the other and prints a table.

    Args:
        algorithm: Which one.
        contestants: Who takes part.
        envs: How the kit plays its environments.
        total_timesteps: Environment steps to train for.
        seed: Seed of environments, actions and weights.
        episodes: Episodes at the end, always with the likeliest action.
        output: JSON file for the results.

    Returns:
        A row for each contestant that is installed.
    """
    if algorithm == "a2c":
        contestants = tuple(who for who in contestants if who != "sbx")
    return race(
        __file__,
        f"{algorithm.upper()} on CartPole-v1, {NUM_ENVS} environments",
        contestants,
        output,
        algorithm=algorithm,
        envs=envs,
        total_timesteps=total_timesteps,
        seed=seed,
        episodes=episodes,
    )


def train_kit(
    who: str, algorithm: str, envs: str, total_timesteps: int, seed: int, episodes: int
) -> tuple[Marks, Callable]:
    import gymnasium

    from kit.lab.agent_recipe import make_envs

    if envs == "vector":
        env = make_envs("CartPole-v1", NUM_ENVS)
    else:
        env = gymnasium.make_vec("CartPole-v1", NUM_ENVS, vectorization_mode="sync")
    agent = kit_agent(algorithm, env.single_action_space, seed)
    return clock_kit(agent, env, total_timesteps, seed), agent.act


def kit_agent(algorithm: str, action_space: Any, seed: int) -> Any:
    """Returns the kit's agent, compiled."""
    import keras

    import kit

    actor = kit.policy_network((4,), action_space)
    critic = kit.value_network((4,))
    seeds = kit.random.split_seed(seed)
    for network, network_seed in zip((actor, critic), seeds, strict=True):
        kit.initialize_weights(network, network_seed)
    agent: Any
    if algorithm == "ppo":
        agent = kit.PPO(
            actor,
            critic,
            **PPO,
            num_steps=32,
            num_minibatches=1,
            num_epochs=20,
            clip_value_loss=False,
            vf_coef=2 * VF_COEF,  # the kit's loss is half the squared error
            seed=seed,
        )
        agent.compile(keras.optimizers.Adam(1e-3, epsilon=1e-5, global_clipnorm=0.5))
    else:
        agent = kit.A2C(
            actor, critic, **A2C, vf_coef=2 * VF_COEF, num_steps=5, seed=seed
        )
        # PyTorch divides by sqrt(v) + 1e-5, Keras by sqrt(v + epsilon).
        agent.compile(
            keras.optimizers.RMSprop(7e-4, rho=0.99, epsilon=1e-10, global_clipnorm=0.5)
        )
    return agent


def train_peer(
    who: str, algorithm: str, envs: str, total_timesteps: int, seed: int, episodes: int
) -> tuple[Marks, Callable]:
    library = importlib.import_module(PACKAGES[who])
    from stable_baselines3.common.env_util import make_vec_env

    env = make_vec_env("CartPole-v1", n_envs=NUM_ENVS, seed=seed)
    if algorithm == "ppo":
        agent = library.PPO(
            "MlpPolicy",
            env,
            **PPO,
            n_steps=32,
            batch_size=256,
            n_epochs=20,
            learning_rate=1e-3,
            vf_coef=VF_COEF,
            seed=seed,
            device="cpu",
        )
    else:
        agent = library.A2C(
            "MlpPolicy",
            env,
            **A2C,
            n_steps=5,
            vf_coef=VF_COEF,
            seed=seed,
            device="cpu",
        )
    return clock_peer(agent, total_timesteps)


if __name__ == "__main__":
    serve(main, train_kit, train_peer)
