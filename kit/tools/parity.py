"""Compares backends: fifty steps of several trainings from the same weights and data.

    KERAS_BACKEND=jax python -m kit.tools.parity --output-dir reports/runs/parity-jax-0

`kit.initialize_weights` draws the same weights on every backend, `kit.random` the same
numbers, and the data come from NumPy. So the losses differ only by rounding, which
grows from step to step. `python -m kit compare` runs this under each backend, and
`python -m kit report` shows the largest differences. It has no dropout: on JAX and
TensorFlow, Keras' `Dropout` uses the backend's own generator, so masks differ.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium
import keras
import numpy as np

import kit
from kit.envs import CartPole
from kit.lab.run import versions

# B batch, T time, N environments, G gradient steps
BATCH_SIZE = 32
NUM_BATCHES = 5  # of supervised data, over and over, so that the loss falls


def main(
    *,
    trainings: tuple[str, ...] = (),
    steps: int = 50,
    seed: int = 0,
    output_dir: Path,
) -> dict[str, Any]:
    """Writes the losses of trainings to `metrics.json`.

    Args:
        trainings: Names of the trainings; all if none is given.
        steps: Gradient steps of each training.
        seed: Seed of weights and data.
        output_dir: Folder for the result.

    Returns:
        The contents of `metrics.json`.

    Raises:
        ValueError: If `steps` is below 1, or a training isn't known.
    """
    for name in trainings:
        if name not in TRAININGS:
            raise ValueError(f"trainings: {name!r} is none of {', '.join(TRAININGS)}.")
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}.")
    losses = {}
    for name in trainings or TRAININGS:
        losses[name] = TRAININGS[name](steps, seed)
        print(f"{name}: {losses[name][0]:.6g} -> {losses[name][-1]:.6g}")
    record = {
        "recipe": "parity",
        "backend": keras.backend.backend(),
        "seed": seed,
        "losses": losses,
        "versions": versions(),
    }
    output_dir.mkdir(parents=True, exist_ok=True)
    path = output_dir / "metrics.json"
    path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return record


def mlp(steps: int, seed: int) -> list[float]:
    """Classifies rows."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(NUM_BATCHES, BATCH_SIZE, 30))
    return supervised(
        kit.mlp((30,), 5, units=(64, 64)), x, classes(rng, x, 5), steps, seed
    )


def cnn(steps: int, seed: int) -> list[float]:
    """Classifies images, with batch normalization.

    If rounding changes the result of a ReLU or the maximum of a window, a gradient
    jumps: losses that differ by 1e-7 differ by 1e-4 to 1e-3 some twenty steps later
    (seeds 0, 2, 3). With tanh and average pooling, they stay within 1e-6.
    """
    rng = np.random.default_rng(seed)
    x = rng.uniform(0, 1, (NUM_BATCHES, BATCH_SIZE, 28, 28, 1))
    model = kit.cnn(filters=(8, 16, 16), units=(32,), batch_normalization=True)
    return supervised(model, x, classes(rng, x, 10), steps, seed, from_logits=False)


def lstm(steps: int, seed: int) -> list[float]:
    """Classifies sequences."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(NUM_BATCHES, BATCH_SIZE, 16, 8))
    return supervised(
        kit.lstm((16, 8), 5, units=(32,)), x, classes(rng, x, 5), steps, seed
    )


def gru(steps: int, seed: int) -> list[float]:
    """Classifies sequences."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(NUM_BATCHES, BATCH_SIZE, 16, 8))
    return supervised(
        kit.gru((16, 8), 5, units=(32,)), x, classes(rng, x, 5), steps, seed
    )


def gpt(steps: int, seed: int) -> list[float]:
    """Predicts the next token of each window."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 20, (NUM_BATCHES, BATCH_SIZE, 33)).cumsum(-1) % 20
    model = kit.gpt(20, 32, num_layers=2, num_heads=2, hidden_dim=32)
    return supervised(model, tokens[..., :-1], tokens[..., 1:], steps, seed)


def dqn(steps: int, seed: int) -> list[float]:
    """Learns from random transitions; updates the target network every ten steps."""
    rng = np.random.default_rng(seed)
    shape = (steps, BATCH_SIZE)
    batch = {  # (G, B, ...)
        "obs": rng.normal(size=(*shape, 4)).astype("float32"),
        "action": rng.integers(0, 2, shape).astype("int32"),
        "reward": rng.normal(size=shape).astype("float32"),
        "next_obs": rng.normal(size=(*shape, 4)).astype("float32"),
        "terminated": rng.random(shape) < 0.2,
        "truncated": np.zeros(shape, bool),
    }
    network = kit.q_network((4,), 2, units=(64, 64), dueling=True)
    kit.initialize_weights(network, seed)
    agent = kit.DQN(network, gamma=0.9, double=True, seed=seed)
    agent.compile(keras.optimizers.Adam(1e-3), "huber")
    losses = []
    for i in range(steps):
        if i % 10 == 0:
            agent.target_network.set_weights(agent.q_network.get_weights())
        part = {name: x[i : i + 1] for name, x in batch.items()}
        losses.append(number(agent._learn(part)[0]))
    return losses


def ppo(steps: int, seed: int) -> list[float]:
    """Learns from random rollouts; the loss is the critic's."""
    rng = np.random.default_rng(seed)
    agent = ppo_agent(seed)
    shape, losses = (16, 4), []  # (T, N)
    for _ in range(steps):
        terminated = rng.random(shape) < 0.1
        rollout = {
            "obs": rng.normal(size=(*shape, 4)).astype("float32"),
            "action": rng.integers(0, 2, shape).astype("int32"),
            "reward": rng.normal(size=shape).astype("float32"),
            "next_obs": rng.normal(size=(*shape, 4)).astype("float32"),
            "terminated": terminated,
            "ended": terminated,
            "valid": np.ones(shape, bool),
        }
        logs, _ = agent._learn(rollout, np.zeros(shape[1], "float32"))
        losses.append(number(logs["value_loss"]))
    return losses


def ppo_in_one_program(steps: int, seed: int) -> list[float]:
    """Plays CartPole and learns from it in one program; the loss is the critic's.

    Rounding decides nothing until an action is drawn that is as likely as another one,
    or an episode ends a step sooner: then the trainings part.
    """
    env = CartPole(4)
    agent = ppo_agent(seed, num_steps=16)
    turn = agent.num_steps * env.num_envs
    history = agent.fit(env, steps * turn, steps_per_epoch=turn, verbose=0, seed=seed)
    return history.history["value_loss"]


def ppo_agent(seed: int, **options: Any) -> kit.PPO:
    """Returns an agent for CartPole that makes one gradient step a turn."""
    space = gymnasium.spaces.Discrete(2)
    actor, critic = kit.policy_network((4,), space), kit.value_network((4,))
    seeds = kit.random.split_seed(seed)
    for network, network_seed in zip((actor, critic), seeds, strict=True):
        kit.initialize_weights(network, network_seed)
    agent = kit.PPO(
        actor, critic, num_epochs=1, num_minibatches=1, seed=seed, **options
    )
    agent.compile(keras.optimizers.Adam(1e-3, global_clipnorm=0.5))
    return agent


TRAININGS: dict[str, Callable[[int, int], list[float]]] = {
    "mlp": mlp,
    "cnn": cnn,
    "lstm": lstm,
    "gru": gru,
    "gpt": gpt,
    "dqn": dqn,
    "ppo": ppo,
    "ppo_in_one_program": ppo_in_one_program,
}


def supervised(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    steps: int,
    seed: int,
    from_logits: bool = True,
) -> list[float]:
    """Returns the losses of Adam's steps on the batches of `x`, in turn."""
    kit.initialize_weights(model, seed)
    optimizer = keras.optimizers.Adam(1e-3)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits)

    @kit.compiled
    def train_step(x: Any, y: Any) -> Any:
        return kit.minimize(
            lambda: loss(y, model(x, training=True)),
            model.trainable_variables,
            optimizer,
        )

    x = x.astype("int32" if x.dtype.kind == "i" else "float32")
    y = y.astype("int32")
    return [number(train_step(x[i % len(x)], y[i % len(x)])) for i in range(steps)]


def classes(rng: np.random.Generator, x: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns learnable classes of `x`: the index of its largest projection."""
    rows = x.reshape(*x.shape[:2], -1) - x.mean()
    projections: Sequence[Any] = rows @ rng.normal(size=(rows.shape[-1], num_classes))
    return np.argmax(projections, axis=-1)


def number(x: Any) -> float:
    """Returns a scalar of the backend as a float."""
    return float(keras.ops.convert_to_numpy(x))


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
