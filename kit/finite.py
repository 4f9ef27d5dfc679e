"""Stops a training at the first loss that isn't a finite number.

One NaN in a reward, an observation or a batch, or one step that is too large, turns all
weights into NaN, and the training would continue without learning. Compiled programs
return the losses anyway; the training loops check them.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

# Seconds between two copies of the weights, and their largest share of the time.
INTERVAL = 10.0
MAX_SHARE = 0.01
# Usual causes of a reward or an observation that isn't finite.
IN_ENVIRONMENTS = (
    "Usual causes: a division by 0, in the environment or in a wrapper that "
    "normalizes; missing values in its data; a simulation that became unstable. Print "
    "what `step` returns around this step, and repair it there: divide by a number "
    "above 0, fill in missing values, or end the episode with `terminated`."
)


class DivergenceError(ArithmeticError):
    """A loss isn't finite: the training has diverged.

    Attributes:
        quantity: Name of the loss.
        value: NaN, or an infinity.
    """

    def __init__(self, message: str, quantity: str, value: float):
        super().__init__(message)
        self.quantity = quantity
        self.value = value


class Guard:
    """Stops a training that diverges, and restores the model's last good weights.

    Args:
        model: The model or agent.
        check_finite: Whether to check at all.
        callbacks: Keras callbacks. If there is a `TerminateOnNaN`, it is used instead.
        unit: Unit of the count: `"step"`, `"batch"`.
    """

    def __init__(
        self,
        model: keras.Model,
        check_finite: bool,
        callbacks: Sequence[keras.callbacks.Callback],
        unit: str,
    ):
        if not isinstance(check_finite, bool):
            raise TypeError(
                f"{type(model).__name__}.fit: `check_finite` must be True or False, "
                f"received {check_finite!r}."
            )
        self.model = model
        self.unit = unit
        others = any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in callbacks)
        self.checks = check_finite and not others
        self._next = -math.inf

    def keep(self, count: int) -> None:
        """Copies the current, good weights from time to time.

        Args:
            count: Steps or batches so far.
        """
        begun = time.monotonic()
        if not self.checks or begun < self._next:
            return
        weights = self.model.weights
        self._good = [np.array(ops.convert_to_numpy(w)) for w in weights]
        self._good_count = count
        now = time.monotonic()
        self._next = now + max(INTERVAL, (now - begun) / MAX_SHARE)

    def look(self, losses: Mapping[str, float], count: int) -> None:
        """Checks the losses of the last call.

        Args:
            losses: Losses by name.
            count: Steps or batches so far.

        Raises:
            DivergenceError: If one isn't finite.
        """
        if not self.checks:
            return
        for name, value in losses.items():
            if not math.isfinite(value):
                self._stop(name, value, count)
        self.keep(count)

    def _stop(self, name, value, count):
        for weight, good in zip(self.model.weights, self._good, strict=True):
            weight.assign(good)
        raise _error(
            self.model,
            name,
            value,
            f"{self.unit} {count:,}. The weights of {self.unit} "
            f"{self._good_count:,} are restored",
        )


def _error(model, name, value, where):
    causes = f"Usual causes: {_usual_causes(model)}."
    if name in ("reward", "observation"):
        causes = IN_ENVIRONMENTS
    return DivergenceError(
        f"{type(model).__name__}: `{name}` is {value} in {where}. {causes} "
        "fit(..., check_finite=False) only turns this check off: NaN in the weights "
        "stays.",
        name,
        value,
    )


def _usual_causes(model):
    """Returns what usually leads to NaN, each with what to do."""
    rates = []
    for optimizer in vars(model).values():
        if isinstance(optimizer, keras.optimizers.Optimizer):
            rate = float(ops.convert_to_numpy(optimizer.learning_rate))
            clips = optimizer.clipnorm or optimizer.global_clipnorm
            also = "" if clips else ", and gradients aren't clipped"
            remedy = "" if clips else ", and clipnorm=1.0"
            rates.append(
                f"a learning rate that is too high (it is {rate:.3g}{also}): try a "
                f"tenth of it{remedy}"
            )
    data = "inputs, targets, observations or rewards that are large or NaN: scale them"
    return "; ".join([*dict.fromkeys(rates), data])


def with_guard(callbacks: Any) -> Any:
    """Returns callbacks for Keras' own training loop, and one that checks losses."""
    if isinstance(callbacks, keras.callbacks.CallbackList):
        return callbacks
    found = keras.tree.flatten(callbacks or [])
    if any(isinstance(c, keras.callbacks.TerminateOnNaN) for c in found):
        return callbacks
    return [*found, StopWhereNotFinite()]


class StopWhereNotFinite(keras.callbacks.Callback):
    """Stops a training in Keras' own loop; can't restore weights, which it holds."""

    def on_train_batch_end(self, batch, logs=None):
        """Checks the losses.

        Raises:
            DivergenceError: If one isn't finite.
        """
        for name, value in (logs or {}).items():
            if "loss" in name and not math.isfinite(float(value)):
                where = f"batch {batch + 1:,} of an epoch"
                raise _error(self.model, name, float(value), where)
