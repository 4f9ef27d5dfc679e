"""The frame of an agent's training: its options, turns, epochs, Keras callbacks."""

import math
import numbers
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
from keras import ops

if TYPE_CHECKING:
    from kit.rl.agent import Agent


class CountsEpisodes(Protocol):
    """What `turns` asks of environments.

    Attributes:
        num_envs: N.
        episodes: `(return, length)` of the episodes that ended; `turns` clears it.
    """

    num_envs: int
    episodes: list[tuple[float, int]]


def check_options(
    agent: str, options: Mapping[str, Any], ranges: Mapping[str, Any]
) -> None:
    """Raises an error if an option of an agent is of another type or out of range.

    Args:
        agent: Name of the agent's class.
        options: Values by name; what has no range is left alone.
        ranges: Accepted values by name: `(lowest, highest)`, and types of what else is
            accepted after them; numbers without an upper end, up to infinity, are
            integers. `bool` for `True` or `False`. A tuple of strings for one of them.

    Raises:
        TypeError: If a value is of another type.
        ValueError: If a value is out of its range.
    """
    for name, accepted in ranges.items():
        value = options[name]
        kind: Any
        also: tuple = ()
        if accepted is bool:
            kind, what = bool, "True or False"
        elif isinstance(accepted[0], str):
            kind, what = str, f"one of {', '.join(accepted)}"
        else:
            real, also = is_real(accepted), accepted[2:]
            kind = numbers.Real if real else numbers.Integral
            what = "a number" if real else "an integer"
        if isinstance(value, also):
            continue
        if not isinstance(value, kind) or isinstance(value, bool) != (kind is bool):
            what += "".join(f" or {_name(x)}" for x in also)
            raise TypeError(
                f"{agent}: `{name}` must be {what}, received {value!r} of type "
                f"{type(value).__name__}."
            )
        if kind is str and value not in accepted:
            raise ValueError(f"{agent}: `{name}` must be {what}, received {value!r}.")
        if kind in (bool, str):
            continue
        low, high = accepted[:2]
        if not low <= value <= high:
            raise ValueError(
                f"{agent}: `{name}` must lie between {low} and {high}, received "
                f"{value}."
            )


def is_real(accepted: Any) -> bool:
    """Whether what `check_options` accepts is a range of real numbers."""
    if not isinstance(accepted, tuple) or isinstance(accepted[0], str):
        return False
    return accepted[1] != math.inf


def _name(kind):
    return "None" if kind is type(None) else f"a {kind.__name__}"


@dataclass
class Turn:
    """One turn of play and learning.

    Attributes:
        index: Number of turns before this one.
        start: Environment steps before this turn, all environments together.
        end: The same after it.
        num_steps: Steps of each environment in this turn.
        logs: Figures of this turn by name, to be filled in.
    """

    index: int
    start: int
    end: int
    num_steps: int
    logs: dict[str, Any] = field(default_factory=dict)


def turns(
    agent: "Agent",
    envs: CountsEpisodes,
    total_timesteps: int,
    num_steps: int,
    log_names: Sequence[str],
    *,
    whole_turns: bool = False,
    steps_per_epoch: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    verbose: int | str = "auto",
) -> Iterator[Turn]:
    """Yields the turns of a training, and reports on them to Keras' callbacks.

    To callbacks, a turn is a batch and a reporting interval an epoch. An epoch's
    logs are `return` and `length` (means of the episodes that ended in it), the
    means of what the turns logged, `steps_per_second` and `timesteps`; NaN where
    there is nothing to take a mean of.

    Args:
        agent: The agent, compiled.
        envs: `kit.rl.environments.Environments`, or what counts episodes as they do.
        total_timesteps: Environment steps, all environments together. The last
            turn may be shorter, and ends within N steps of this.
        num_steps: Steps of each environment in a turn.
        log_names: Names of what turns log.
        whole_turns: Whether the last turn is as long as the others, and may end
            beyond `total_timesteps`. Defaults to `False`.
        steps_per_epoch: Environment steps in an epoch, rounded to turns. Defaults
            to a fiftieth of `total_timesteps`.
        callbacks: Keras callbacks.
        verbose: 0 silent, 1 progress bar, 2 a line an epoch; `"auto"` is 1.

    Raises:
        ValueError: If `total_timesteps` or `steps_per_epoch` isn't positive.
    """
    for name, value in (
        ("total_timesteps", total_timesteps),
        ("steps_per_epoch", steps_per_epoch),
    ):
        if value is not None and not 1 <= value < math.inf:
            raise ValueError(f"`{name}` must be positive, received {value}.")
    return _turns(
        agent,
        envs,
        total_timesteps,
        num_steps,
        log_names,
        whole_turns,
        steps_per_epoch or total_timesteps / 50,
        callbacks,
        1 if verbose == "auto" else verbose,
    )


def _turns(
    agent,
    envs,
    total_timesteps,
    num_steps,
    log_names,
    whole_turns,
    steps_per_epoch,
    callbacks,
    verbose,
):
    turn_steps = num_steps * envs.num_envs
    num_turns = math.ceil(total_timesteps / turn_steps)
    per_epoch = max(1, round(steps_per_epoch / turn_steps))
    epochs = math.ceil(num_turns / per_epoch)
    progress: Any = keras.callbacks.CallbackList(
        callbacks,
        add_history=True,
        add_progbar=verbose != 0,
        model=agent,
        env=getattr(envs, "env", None),  # for `kit.Evaluation`
        verbose=verbose,
        epochs=epochs,
        steps=per_epoch,
    )
    if not agent.optimizer.built:
        agent.optimizer.build(agent.trainable_variables)
    agent.stop_training = False
    timesteps = 0
    progress.on_train_begin()
    for epoch in range(epochs):
        progress.on_epoch_begin(epoch)
        first, begun, logs = timesteps, time.perf_counter(), []
        for batch in range(min(per_epoch, num_turns - epoch * per_epoch)):
            progress.on_train_batch_begin(batch)
            left = math.ceil((total_timesteps - timesteps) / envs.num_envs)
            steps = num_steps if whole_turns else min(num_steps, left)
            end = timesteps + steps * envs.num_envs
            turn = Turn(epoch * per_epoch + batch, timesteps, end, steps)
            yield turn
            timesteps = end
            logs.append(turn.logs)
            progress.on_train_batch_end(batch, {"timesteps": timesteps})
            if agent.stop_training:
                break
        summary = _summary(logs, log_names, envs.episodes)
        seconds = time.perf_counter() - begun
        summary["steps_per_second"] = (timesteps - first) / seconds
        summary["timesteps"] = timesteps
        envs.episodes.clear()
        progress.on_epoch_end(epoch, summary)
        if agent.stop_training:
            break
    agent.finalize_optimizers()
    progress.on_train_end()


def _summary(logs, names, episodes):
    """Means over an epoch; NaN where there is nothing to take a mean of."""
    returns, lengths = zip(*episodes, strict=True) if episodes else ([], [])
    columns = {"return": returns, "length": lengths}
    for name in names:
        values = [turn[name] for turn in logs if name in turn]
        columns[name] = [float(ops.convert_to_numpy(x)) for x in values]
    return {k: float(np.mean(v)) if len(v) else math.nan for k, v in columns.items()}
