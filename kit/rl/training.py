"""The training loop of all agents: turns, epochs, Keras callbacks, backups."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
from keras import ops

from kit import checks
from kit.backups import Part, Values, asks_for_backups, backed_up
from kit.finite import Guard
from kit.rl.environments import env_name
from kit.rl.functional import FunctionalEnv
from kit.rl.hanging import watched
from kit.rl.progress import with_progress

if TYPE_CHECKING:
    from kit.rl.agent import Agent

ACCEPTED = {
    "agent": checks.MODEL,
    "total_timesteps": checks.real("[1, 2**63)"),
    "num_steps": checks.SIZE,
    "log_names": checks.sequence(checks.TEXT),
    "whole_turns": checks.BOOL,
    "steps_per_epoch": checks.real("[1, 2**63)") | None,
    "callbacks": checks.sequence(checks.instance(keras.callbacks.Callback)) | None,
    "verbose": checks.VERBOSE,
    "check_finite": checks.BOOL,
    "parts": checks.instance(dict, what="a dict of parts by name") | None,
}


class CountsEpisodes(Protocol):
    """The interface that `turns` needs of environments.

    Attributes:
        num_envs: N.
        episodes: `(return, length)` of the episodes that ended; `turns` clears it.
        check_finite: Whether values that aren't finite are an error.
        on_error: Function to call before an environment's error is raised.
    """

    num_envs: int
    episodes: list[tuple[float, int]]
    check_finite: bool
    on_error: Callable[[], None]

    def record(self) -> None:
        """Prepares for backups, before the first episode."""


@dataclass
class Turn:
    """One turn of playing and learning.

    Attributes:
        index: Number of turns before this one.
        start: Environment steps before this turn, all environments together.
        end: Environment steps after this turn.
        num_steps: Steps of each environment in this turn.
        logs: Metrics of this turn by name; the agent fills them in.
        not_finite: What isn't finite in the environments, by name, where `step` itself
            can't raise an error; filled in with the logs.
    """

    index: int
    start: int
    end: int
    num_steps: int
    logs: dict[str, Any] = field(default_factory=dict)
    not_finite: dict[str, float] = field(default_factory=dict)


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
    check_finite: bool = True,
    parts: Mapping[str, Part] | None = None,
) -> Iterator[Turn]:
    """Yields the turns of a training, and calls Keras' callbacks.

    For callbacks, a turn is a batch and a reporting interval is an epoch. An epoch's
    logs are `return` and `length` (means of the episodes that ended in it), the means
    of the turns' logs, `steps_per_second` and `timesteps`. A mean over nothing is NaN.

    Args:
        agent: The agent, compiled.
        envs: `kit.rl.environments.Environments`, or an object with the same interface.
        total_timesteps: Environment steps, all environments together. The last
            turn may be shorter, and ends within N steps of this.
        num_steps: Steps of each environment in a turn.
        log_names: Names of the turns' logs.
        whole_turns: Whether the last turn is as long as the others, and may end
            beyond `total_timesteps`. Defaults to `False`.
        steps_per_epoch: Environment steps in an epoch, rounded to turns. Defaults
            to a fiftieth of `total_timesteps`.
        callbacks: Keras callbacks.
        verbose: 0 silent, 1 a progress bar of the whole training, 2 a line an epoch
            with all logs; `"auto"` is 1.
        check_finite: Whether to stop at the first loss that isn't finite.
        parts: Further parts by name whose state a backup needs, such as a replay
            buffer. It is read when the first turn is requested.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `total_timesteps` or `steps_per_epoch` isn't positive.
    """
    checks.check(agent, locals(), ACCEPTED)
    envs.check_finite = check_finite
    if asks_for_backups(callbacks):
        envs.record()
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
        check_finite,
        {} if parts is None else parts,
    )


class _Position(Values):
    """The position of a training, from which a resumed one continues."""

    def begin_epoch(self, epoch: int) -> None:
        self.epoch, self.batch = epoch, 0  # the next turn in this epoch
        self.first = self.timesteps  # at the beginning of this epoch
        self.seconds = 0.0  # of this epoch so far
        self.logs: list[dict[str, Any]] = []  # of its turns


class _Options:
    """An agent's options, which callbacks may change."""

    def __init__(self, agent):
        self.agent = agent

    def get_state(self):
        return self.agent.options()

    def set_state(self, state):
        for name, value in state.items():
            if getattr(self.agent, name) != value:
                setattr(self.agent, name, value)


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
    check_finite,
    parts,
):
    turn_steps = num_steps * envs.num_envs
    num_turns = math.ceil(total_timesteps / turn_steps)
    per_epoch = max(1, round(steps_per_epoch / turn_steps))
    epochs = math.ceil(num_turns / per_epoch)
    progress: Any = keras.callbacks.CallbackList(
        with_progress(callbacks, total_timesteps, verbose),
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
    guard = Guard(agent, check_finite, progress.callbacks, "step")
    at = _Position(timesteps=0)
    at.begin_epoch(0)
    env = getattr(envs, "env", None)
    settings = {"settings": env.settings()} if isinstance(env, FunctionalEnv) else {}
    identity = {
        "environment": env_name(env),
        **settings,
        "num_envs": envs.num_envs,
        "total_timesteps": total_timesteps,
        "steps_per_turn": turn_steps,
        "turns_per_epoch": per_epoch,
        **agent.options(),
    }
    parts = {"position": at, "options": _Options(agent), **parts}
    backups = backed_up(progress.callbacks, agent, identity, parts)
    with watched(envs), backups as backup:
        progress.on_train_begin()
        saved = backup.load()
        if saved is None:
            backup.check_space()
        envs.on_error = backup.rescue  # saves the training so far
        begin = saved["position"]["epoch"] if saved else 0
        for epoch in range(begin, epochs):
            at.begin_epoch(epoch)
            progress.on_epoch_begin(epoch)
            if saved is not None:  # callbacks continue from the backup, too
                backup.set_state(saved)
                saved = None
            guard.keep(at.timesteps)
            begun = time.perf_counter() - at.seconds
            turns_left = num_turns - epoch * per_epoch
            while at.batch < min(per_epoch, turns_left) and not agent.stop_training:
                progress.on_train_batch_begin(at.batch, {"timesteps": at.timesteps})
                left = math.ceil((total_timesteps - at.timesteps) / envs.num_envs)
                steps = num_steps if whole_turns else min(num_steps, left)
                end = at.timesteps + steps * envs.num_envs
                number = epoch * per_epoch + at.batch
                turn = Turn(number, at.timesteps, end, steps)
                yield turn
                logs = {name: _number(x) for name, x in turn.logs.items()}
                losses = {name: x for name, x in logs.items() if "loss" in name}
                guard.look({**turn.not_finite, **losses}, end)
                at.timesteps = end
                at.logs.append(logs)
                at.batch += 1
                batch_logs = {"timesteps": end}
                if losses and not guard.checks:  # for `TerminateOnNaN`
                    batch_logs["loss"] = sum(losses.values())
                progress.on_train_batch_end(at.batch - 1, batch_logs)
                at.seconds = time.perf_counter() - begun
                backup.look()
            summary = _summary(at.logs, log_names, envs.episodes)
            seconds = time.perf_counter() - begun
            summary["steps_per_second"] = (at.timesteps - at.first) / seconds
            summary["timesteps"] = at.timesteps
            envs.episodes.clear()
            progress.on_epoch_end(epoch, summary)
            at.begin_epoch(epoch + 1)
            if agent.stop_training:
                at.begin_epoch(epochs)
                break
        if saved is None:
            agent.finalize_optimizers()
        progress.on_train_end()
        if saved is not None:  # the backup is of a finished training
            backup.set_state(saved)
        backup.finish()


def _number(value):
    return float(ops.convert_to_numpy(value))


def _summary(logs, names, episodes):
    """Returns means over an epoch; a mean over nothing is NaN."""
    returns, lengths = zip(*episodes, strict=True) if episodes else ([], [])
    columns = {"return": returns, "length": lengths}
    for name in names:
        values = [turn[name] for turn in logs if name in turn]
        columns[name] = values
    return {k: float(np.mean(v)) if len(v) else math.nan for k, v in columns.items()}
