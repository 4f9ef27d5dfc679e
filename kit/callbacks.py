"""Keras callbacks: what happens between the epochs of a training."""

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
        TypeError: If `env` isn't one of Gymnasium's.
        ValueError: If `episodes` or `seed` is out of range; as a training begins, if
            it plays in the same environment.

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
        Environments(env)  # raises an error if it is none
        checks.check(self, locals(), ACCEPTED)
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

    def __init__(self):
        super().__init__()
        self.start = time.perf_counter()

    def on_epoch_begin(self, epoch, logs=None):
        """Starts the clock."""
        self.start = time.perf_counter()

    def get_state(self):
        """Returns the seconds of the present epoch so far, for a backup."""
        return time.perf_counter() - self.start

    def set_state(self, state):
        """Goes on with an epoch that has lasted so many seconds."""
        self.start = time.perf_counter() - state

    def on_epoch_end(self, epoch, logs=None):
        """Adds `seconds` to the logs."""
        if logs is not None:
            logs["seconds"] = time.perf_counter() - self.start


class BackupAndRestore(keras.callbacks.Callback):
    """Backs a training up, and goes on exactly where an interrupted one was.

    As Keras' callback of this name, but a resumed training ends with the same weights,
    to the last bit, as one that was never interrupted: it also saves the optimizers,
    all random generators, the other callbacks, the replay buffer, and the environment,
    in the middle of an epoch. For the agents of the kit, and for `fit` of `kit.Model`
    and `kit.Sequential` on arrays.

    Where the folder holds a backup, `fit` goes on from it. A backup is written beside
    the one before, flushed to disk and renamed: a process may be killed at any moment.
    Ctrl-C and SIGTERM end a training after the present step, with a backup.

    Environments of Gymnasium are restored exactly if their state is plain Python and
    NumPy (classic control, toy text), or if their episode can be played again from its
    first observation (Box2D, MuJoCo). Others, and those in other processes, begin a new
    episode, and a warning says so.

    Args:
        backup_dir: Folder for the backups of this training, and of nothing else.
        interval: Seconds between two backups. Where writing one takes long, the next
            one waits until it costs at most 2 % of the time. 0 writes one after each
            step, whatever it costs. Defaults to 30.
        restore: Whether to go on from a backup that is there. `False` begins anew.
            Defaults to `True`.
        delete_checkpoint: Whether to delete the backups at the end of `fit`. If
            `False`, the last one is of the finished training: another `fit` returns
            at once. Defaults to `True`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range; in `fit`, if the backup is of another model,
            environment or training, or no backup is whole.
        OSError: In `fit`, if there is no space for backups, or the last one can't be
            written.

    Example:

    ```python
    # Killed and started again, it goes on.
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

        Its backups lie in a folder of this one, and stay until `delete` is called: a
        stage that is over is restored at once.

        Args:
            name: Name of the stage, a file name.
        """
        return BackupAndRestore(
            Path(self.backups.folder) / name,
            self.interval,
            restore=self.restore is not False,
            delete_checkpoint=False,
        )

    def keep(self, **parts: Part) -> None:
        """Adds what a loop around `fit` must remember, and restores it if it can.

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
        """Deletes the backups, those of all stages, too."""
        self.backups.delete()

    def open_session(
        self, identity: Mapping[str, Any], parts: Mapping[str, Part]
    ) -> Session:
        """Returns the backups of a training that begins. The training loop calls it.

        See `kit.backups.Session` for the arguments.
        """
        # Whoever fits again in this process goes on from the model as it is.
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
                "only Keras knows). Use keras.callbacks.BackupAndRestore, which saves "
                "after each epoch."
            )

    def on_train_end(self, logs=None):
        """Forgets the training."""
        self._session = None
