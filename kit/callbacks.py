"""Keras callbacks: evaluate agents, time epochs, back up and resume trainings."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras

from kit import checks
from kit.backups import Backups, Part, Session
from kit.rl.environments import Environments, share_environment

ACCEPTED = {
    "episodes": checks.SIZE,
    "seed": checks.SEED | None,
    "backup_dir": checks.PATH,
    "interval": checks.WEIGHT,
    "restore": checks.BOOL,
    "delete_checkpoint": checks.BOOL,
}


class Evaluation(keras.callbacks.Callback):
    """Plays greedily at the end of each epoch, and adds the mean return to the logs.

    Returns during exploration say little about the policy that an agent has learned.
    Keras' own callbacks can monitor the greedy return instead: put them after this
    callback, with `monitor="eval_return", mode="max"`.

    Args:
        env: Environment to play in, not the training's. A vector environment plays its
            episodes in parallel, which is faster.
        episodes: Number of episodes. Defaults to 10.
        seed: Seed of the first reset, the same in each epoch. Defaults to 0.

    Raises:
        TypeError: If `env` isn't a Gymnasium environment.
        ValueError: If `episodes` or `seed` is out of range; at the beginning of `fit`,
            if `env` is the training's environment.

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
        Environments(env)  # raises an error if it isn't an environment
        checks.check(self, locals(), ACCEPTED)
        self.env = env
        self.episodes = episodes
        self.seed = seed

    def on_train_begin(self, logs=None):
        """Checks that the environment isn't the training's."""
        if share_environment(self.env, self.params.get("env")):
            raise ValueError(
                "Evaluation: `env` is the training's environment, whose episode an "
                "evaluation would interrupt. Make another environment: "
                f"`kit.Evaluation(gymnasium.make(...))`; received {self.env!r}."
            )

    def on_epoch_end(self, epoch, logs=None):
        """Adds `eval_return` to the logs."""
        results = self.model.evaluate(self.env, self.episodes, self.seed)
        if logs is not None:
            logs["eval_return"] = results["return"]


class EpochTimer(keras.callbacks.Callback):
    """Adds the seconds of each epoch to the logs, including validation.

    `History` then has a column `seconds`. Use its median to measure the speed, as the
    first epoch includes compilation.

    Example:

    ```python
    history = model.fit(x, y, epochs=5, callbacks=[kit.EpochTimer()])
    len(x) / np.median(history.history["seconds"])  # samples a second
    ```
    """

    def __init__(self):
        super().__init__()
        self.start = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self.start = time.perf_counter()

    def get_state(self):
        """Returns the seconds of the current epoch so far, for a backup."""
        return time.perf_counter() - self.start

    def set_state(self, state):
        """Continues an epoch that has already lasted so many seconds."""
        self.start = time.perf_counter() - state

    def on_epoch_end(self, epoch, logs=None):
        """Adds `seconds` to the logs."""
        if logs is not None:
            logs["seconds"] = time.perf_counter() - self.start


class BackupAndRestore(keras.callbacks.Callback):
    """Backs up a training; a restarted one continues exactly where it was interrupted.

    It works like Keras' callback of this name, but a resumed training ends with the
    same weights, bit for bit, as one that was never interrupted. It also saves the
    optimizers, all random generators, the other callbacks, the replay buffer and the
    environment, also in the middle of an epoch. Use it with the kit's agents, and with
    `fit` of `kit.Model` and `kit.Sequential` on arrays.

    If the folder contains a backup, `fit` continues from it. Each backup is written
    next to the one before, flushed to disk and renamed, so that the process may be
    killed at any moment. Ctrl-C and SIGTERM end a training after the current step, with
    a backup.

    Gymnasium environments are restored exactly if their state is plain Python and NumPy
    (classic control, toy text), or if their episode can be replayed from its first
    observation (Box2D, MuJoCo). Others, and those in other processes, start a new
    episode, and a warning says so.

    Args:
        backup_dir: Folder for the backups of this training, and of nothing else.
        interval: Seconds between two backups. If writing takes long, backups are rarer,
            so that they take at most 2 % of the time. 0 writes one after each step,
            however long it takes. Defaults to 30.
        restore: Whether to continue from an existing backup. `False` starts anew.
            Defaults to `True`.
        delete_checkpoint: Whether to delete the backups at the end of `fit`. If
            `False`, the last backup is of the finished training, and another `fit`
            returns at once. Defaults to `True`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range; in `fit`, if the backup is of
            another model, environment or training, or all backups are damaged.
        OSError: In `fit`, if there is no space for backups, or the last one can't be
            written.

    Example:

    ```python
    # If it is killed and started again, it continues.
    agent.fit(env, 1_000_000, callbacks=[kit.BackupAndRestore("backups/dqn")])
    ```
    """

    def __init__(
        self,
        backup_dir: str | Path,
        interval: float = 30.0,
        restore: bool = True,
        delete_checkpoint: bool = True,
    ):
        super().__init__()
        checks.check("BackupAndRestore", locals(), ACCEPTED)
        self.backups = Backups(backup_dir)
        self.interval = interval
        self.restore: bool | None = restore
        self.delete_checkpoint = delete_checkpoint
        self._session: Session | None = None
        self._more: dict[str, Part] = {}

    def stage(self, name: str) -> "BackupAndRestore":
        """Returns a callback for one of several trainings that follow each other.

        Its backups are in a subfolder, and stay until `delete` is called: a finished
        stage is restored at once.

        Args:
            name: Name of the stage, a valid file name.
        """
        return BackupAndRestore(
            Path(self.backups.folder) / name,
            self.interval,
            restore=self.restore is not False,
            delete_checkpoint=False,
        )

    def keep(self, **parts: Part) -> None:
        """Adds the state of a loop around `fit`; restores it if there is a backup.

        Args:
            **parts: By name, objects with `get_state` and `set_state`, such as
                `kit.backups.Values`.
        """
        self._more.update(parts)
        saved = self.backups.load({}, {}) if self.restore else None
        if saved is not None:
            for name, part in parts.items():
                part.set_state(saved[name])

    def delete(self) -> None:
        """Deletes the backups, including those of all stages."""
        self.backups.delete()

    def open_session(
        self, identity: Mapping[str, Any], parts: Mapping[str, Part]
    ) -> Session:
        """Returns the backups of a new training. The training loop calls it.

        See `kit.backups.Session` for the arguments.
        """
        # Another `fit` in this process continues from the current model.
        restore, self.restore = self.restore, None
        if restore is False:
            self.backups.delete()
        self._session = Session(
            self.backups,
            self.interval,
            bool(restore),
            self.delete_checkpoint,
            identity,
            {**parts, **self._more},
        )
        return self._session

    def on_train_begin(self, logs=None):
        """Checks that the training loop can be backed up."""
        if self._session is None:
            raise ValueError(
                "BackupAndRestore: this training can't be backed up exactly, as Keras' "
                "own loop runs it (the data isn't in arrays, or an option is set that "
                "only that loop supports). Use keras.callbacks.BackupAndRestore, which "
                "saves after each epoch."
            )

    def on_train_end(self, logs=None):
        """Forgets the session."""
        self._session = None
