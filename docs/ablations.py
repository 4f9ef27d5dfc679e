"""Measures what a hyper-parameter does, and draws the pictures of docs/algorithms.

    KERAS_BACKEND=jax python docs/ablations.py          # all, a quarter of an hour
    KERAS_BACKEND=jax python docs/ablations.py dqn ppo

Each hyper-parameter has three values; the others stay as they are below. Agents train
in environments of `kit.envs`, with seeds 30 to 34, on which nothing was chosen; a curve
is the mean over these seeds, a band its 95 % interval. Networks are measured on
validation data. docs/images/ has the pictures, docs/images/ablations.json the numbers.
"""

import functools
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import matplotlib.pyplot as plt
import numpy as np

import kit
from kit.envs.classic_control import CartPole
from kit.envs.grid_worlds import FrozenLake
from kit.lab.run import mean_and_interval

IMAGES = Path(__file__).parent / "images"
SEEDS = range(30, 35)

# --- What is trained ----------------------------------------------------------


def networks(seed, *models):
    for model, model_seed in zip(
        models, kit.random.split_seed(seed, len(models)), strict=True
    ):
        kit.initialize_weights(model, model_seed)
    return models


def dqn(seed, **options):
    (network,) = networks(seed, kit.q_network((4,), 2, (120, 84)))
    frequent = {"gradient_steps": 5, "batch_size": 64, "buffer_size": 50_000}
    agent = kit.DQN(network, **{"seed": seed, **frequent, **options})
    agent.compile(keras.optimizers.Adam(5e-4))
    return agent


def on_policy(kind, rate, seed, **options):
    env = CartPole(num_envs=8)
    actor = kit.policy_network((4,), env.action_space)
    critic = kit.value_network((4,))
    networks(seed, actor, critic)
    agent = kind(actor, critic, **{"seed": seed, **options})
    agent.compile(keras.optimizers.Adam(rate, epsilon=1e-5, global_clipnorm=0.5))
    return agent


def q_learning(seed, **options):
    agent = kit.QLearning(16, 4, **{"seed": seed, **options})
    agent.compile(keras.optimizers.SGD(0.1))
    return agent


def returns(make_agent: Callable, env: Any, steps: int, **options):
    """Trains one agent for each seed; returns steps and returns, (E,) and (S, E)."""
    agents = [make_agent(seed, **options) for seed in SEEDS]
    histories = kit.fit_together(
        agents, env, steps, steps_per_epoch=steps // 25, verbose=0
    )
    curves = np.array([history.history["return"] for history in histories])
    return np.array(histories[0].history["timesteps"]), curves


def digits():
    """Returns images and labels to train on, and to validate on."""
    data = kit.data.images()
    x, y = data.x_train / np.float32(255), data.y_train
    return (x[:3200], y[:3200]), (x[3200:], y[3200:])


def cnn(seed, **options):
    (x, y), valid = digits()
    (model,) = networks(seed, kit.cnn(**{"filters": (16, 32, 32), **options}))
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    history = model.fit(x, y, epochs=10, validation_data=valid, verbose=0)
    return history.history["val_accuracy"]


def autoencoder(seed, **options):
    x, x_valid = (images.reshape(-1, 784) for images, _ in digits())
    sizes = {"latent_dim": 32, "units": (256,), **options}
    (model,) = networks(seed, kit.autoencoder((784,), **sizes))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    history = model.fit(x, x, epochs=20, validation_data=(x_valid, x_valid), verbose=0)
    return history.history["val_loss"]


def by_seed(train: Callable, **options):
    """Trains once for each of three seeds; returns epochs and curves, (E,), (S, E)."""
    curves = np.array([train(seed, **options) for seed in SEEDS[:3]])
    return np.arange(1, curves.shape[1] + 1), curves


# --- What is changed ----------------------------------------------------------

cart_pole = functools.partial(returns, env=CartPole(num_envs=8), steps=100_000)
# name: what trains, axes, and the values of each hyper-parameter
ABLATIONS: dict[str, tuple[Callable, tuple[str, str], dict[str, tuple]]] = {
    "dqn": (
        functools.partial(returns, dqn, CartPole(num_envs=1), 50_000),
        ("environment step", "return"),
        {
            "target_update_freq": (10, 500, 10_000),
            "exploration_fraction": (0.02, 0.5, 1.0),
        },
    ),
    "actor_critic": (
        functools.partial(cart_pole, functools.partial(on_policy, kit.A2C, 2e-3)),
        ("environment step", "return"),
        {"num_steps": (1, 5, 50), "ent_coef": (0.0, 0.01, 0.3)},
    ),
    "ppo": (
        functools.partial(cart_pole, functools.partial(on_policy, kit.PPO, 1e-3)),
        ("environment step", "return"),
        {"clip_coef": (0.02, 0.2, 1e6), "num_epochs": (1, 4, 20)},
    ),
    "q_learning": (
        functools.partial(returns, q_learning, FrozenLake(num_envs=1), 50_000),
        ("environment step", "return"),
        {"epsilon_end": (0.0, 0.1, 0.5), "gamma": (0.5, 0.9, 0.99)},
    ),
    "cnn": (
        functools.partial(by_seed, cnn),
        ("epoch", "accuracy on validation digits"),
        {
            "filters": ((4, 8, 8), (16, 32, 32), (64, 64, 64)),
            "dropout": (0.0, 0.3, 0.7),
        },
    ),
    "autoencoder": (
        functools.partial(by_seed, autoencoder),
        ("epoch", "squared error on validation digits"),
        {"latent_dim": (2, 32, 256), "units": ((32,), (256,), (1024,))},
    ),
}


def draw(name: str) -> dict[str, Any]:
    """Measures and draws an ablation; returns the last means and intervals."""
    train, (xlabel, ylabel), changed = ABLATIONS[name]
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 3.2), sharey=True, layout="constrained"
    )
    found: dict[str, Any] = {}
    for axis, (option, values) in zip(axes, changed.items(), strict=True):
        for value in values:
            x, curves = train(**{option: value})
            x, _, mean, half = mean_and_interval(x, curves)
            line = axis.plot(
                x, mean, label=f"{value:g}" if np.isscalar(value) else str(value)
            )
            axis.fill_between(
                x, mean - half, mean + half, color=line[0].get_color(), alpha=0.2
            )
            result = {"mean": float(mean[-1]), "interval": float(half[-1])}
            found.setdefault(option, {})[str(value)] = result
            print(name, option, value, result, flush=True)
        axis.set(title=option, xlabel=xlabel)
        axis.legend()
    axes[0].set_ylabel(ylabel)
    figure.savefig(IMAGES / f"ablation_{name}.png", dpi=90)
    return found


def main(names: list[str]) -> None:
    path = IMAGES / "ablations.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    for name in names or ABLATIONS:
        results[name] = draw(name)
        path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
