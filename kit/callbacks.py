"""Keras callbacks: what happens between the epochs of a training."""

import time
from typing import Any

import keras

from kit.rl.environments import share_environment


class Evaluation(keras.callbacks.Callback):
    """Plays greedily at the end of each epoch, and adds the outcome to the logs.

    What an agent earns while it explores says little about the policy it has
    learned. Keras' own callbacks can then go by what does: put them behind this
    one, and give them `monitor="eval_return", mode="max"`.

    Args:
        env: Environment to play in, another one than the training's; a vector
            environment plays its episodes side by side, which is faster.
        episodes: Number of episodes. Defaults to 10.
        seed: Seed of the first reset, the same in each epoch. Defaults to 0.

    Raises:
        ValueError: As a training begins, if it plays in the same environment.

    Example:

    ```python
    agent.fit(
        env,
        total_timesteps=50_000,
        callbacks=[
            kit.Evaluation(gymnasium.make_vec("CartPole-v1", num_envs=10)),
            keras.callbacks.ModelCheckpoint(
                "best.keras", monitor="eval_return", mode="max", save_best_only=True
            ),
        ],
    )
    ```
    """

    def __init__(self, env: Any, episodes: int = 10, seed: int = 0):
        super().__init__()
        self.env = env
        self.episodes = episodes
        self.seed = seed

    def on_train_begin(self, logs=None):
        """Checks that the environment isn't the training's."""
        if share_environment(self.env, self.params.get("env")):
            raise ValueError(
                "Evaluation: `env` is the environment of the training, whose episode "
                "an evaluation would break off. Make another one for it: "
                f"`kit.Evaluation(gymnasium.make(...))`; received {self.env!r}."
            )

    def on_epoch_end(self, epoch, logs=None):
        """Adds `eval_return` to the logs."""
        results = self.model.evaluate(self.env, self.episodes, self.seed)
        if logs is not None:
            logs["eval_return"] = results["return"]


class EpochTimer(keras.callbacks.Callback):
    """Adds to the logs how long each epoch took, validation included.

    `History` then has a column `seconds`, of which a median tells the speed: the
    first epoch compiles.

    Example:

    ```python
    history = model.fit(x, y, epochs=5, callbacks=[kit.EpochTimer()])
    len(x) / np.median(history.history["seconds"])  # samples a second
    ```
    """

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        """Adds `seconds` to the logs."""
        if logs is not None:
            logs["seconds"] = time.perf_counter() - self.start
