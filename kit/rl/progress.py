"""The progress of an agent's training, on a line of at most 80 columns."""

import math
from collections.abc import Sequence
from typing import Any

import keras

BAR_WIDTH = 16  # leaves room for 8 digits of steps, hours, and a return


class Progress(keras.callbacks.ProgbarLogger):
    """Shows one bar for the whole training: steps, the time that is left, the return.

    Keras' own has a bar for each epoch, and all logs beside it, which don't fit on a
    line. The return is that of `kit.Evaluation`, if it is used; otherwise, the mean of
    the episodes that ended in the last epoch.

    Args:
        total_timesteps: Environment steps of the training.
    """

    def __init__(self, total_timesteps: int) -> None:
        super().__init__()
        self.total_timesteps = total_timesteps
        self.score: list[tuple[str, float]] = []
        self.timesteps = 0

    def on_train_begin(self, logs: Any = None) -> None:
        """Makes the bar."""
        super().on_train_begin(logs)
        self.progbar = _Bar(self.total_timesteps, BAR_WIDTH, stateless_metrics=set())

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        """Does nothing: the bar goes on."""

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        """Notes the steps that a resumed training begins with."""
        if self.progbar.begun is None:
            self.progbar.begun = logs["timesteps"]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        """Moves the bar on, after a turn."""
        self.timesteps = min(logs["timesteps"], self.total_timesteps)
        self.progbar.update(self.timesteps, self.score, finalize=False)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Takes the score from the epoch's logs."""
        score = logs.get("eval_return", logs["return"])
        if not math.isnan(score):  # otherwise no episode ended
            self.score = [("return", score)]

    def on_train_end(self, logs: Any = None) -> None:
        """Leaves the bar on its line, with the seconds that it took."""
        self.progbar.update(self.timesteps, self.score, finalize=True)


class _Bar(keras.utils.Progbar):
    """A bar that may begin after some steps, which took none of its time.

    Keras' own divides its seconds by all steps, so that the time left of a resumed
    training would be too short.

    Attributes:
        begun: The steps that it begins with, as soon as they are known.
    """

    begun: int | None = None

    def _estimate_step_duration(self, current: int, now: float) -> float:
        done = current - (self.begun or 0)
        return (now - self._start) / done if done > 0 else 0.0


def with_progress(
    callbacks: Sequence[keras.callbacks.Callback] | None,
    total_timesteps: int,
    verbose: int,
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks, with a `Progress` where the user wants a bar.

    Args:
        callbacks: The user's. A `keras.callbacks.ProgbarLogger` among them is kept.
        total_timesteps: Environment steps of the training.
        verbose: 0 silent, 1 progress bar, 2 a line an epoch, by Keras.
    """
    given = list(callbacks or ())
    own = any(isinstance(x, keras.callbacks.ProgbarLogger) for x in given)
    return given if own or verbose != 1 else [*given, Progress(total_timesteps)]
