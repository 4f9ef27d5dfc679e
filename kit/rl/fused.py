"""Trains in environments of `kit.rl.functional`: many updates in one program.

An agent plays and learns in the same compiled program. Control returns to Python
several times a second, for progress, callbacks and backups.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.backend import Nested, Tensor, compiled, scan
from kit.rl.functional import FunctionalEnv
from kit.rl.training import ACCEPTED, Turn, turns

if TYPE_CHECKING:
    from kit.rl.agent import Agent

# Environment steps per call: they take ten milliseconds to a second. The call itself
# takes a tenth of a millisecond.
STEPS_PER_CALL = 4_096
# Compiled programs count steps in 32 bits.
COUNTED = {"total_timesteps": checks.real("[1, 2**31)")}


@dataclass(frozen=True)
class Plan:
    """The settings that a program depends on, besides its arguments' shapes.

    Attributes:
        env: The environments.
        num_updates: Updates of the agent per call.
        learns: Whether the agent learns, or only plays.
    """

    env: FunctionalEnv
    num_updates: int
    learns: bool = True


@dataclass(frozen=True)
class Schedule:
    """How a training is divided into calls of a program.

    Attributes:
        env: The environments.
        num_steps: Steps of each environment between two updates.
        num_updates: Updates of the agent per call.
        log_names: Names of the program's logs.
        first_update: Number of updates that are skipped at the beginning, where the
            agent only plays.
    """

    env: FunctionalEnv
    num_steps: int
    num_updates: int
    log_names: tuple[str, ...]
    first_update: int = 0

    @property
    def steps_per_call(self) -> int:
        """Steps of each environment per call."""
        return self.num_steps * self.num_updates

    def plan(self, turn: Turn) -> Plan:
        """Returns the plan of a call's program."""
        learns = turn.index * self.num_updates >= self.first_update
        return Plan(self.env, self.num_updates, learns)


class Fusable(Protocol):
    """The methods that an agent must add to be trained here."""

    def schedule(
        self, env: FunctionalEnv, total_timesteps: int, steps_per_epoch: int | None
    ) -> Schedule:
        """Returns how a training is divided into calls, after all checks."""

    def begin(
        self, env: FunctionalEnv, keys: Tensor, total_timesteps: Tensor
    ) -> Nested:
        """Returns the position at the beginning; part of a compiled program.

        Args:
            env: The environments.
            keys: From `environment_keys`.
            total_timesteps: Environment steps of the training, a float.
        """

    def play_and_learn(
        self, plan: Plan, position: Nested
    ) -> tuple[Nested, dict[str, Tensor], Sequence[Tensor]]:
        """Makes several updates in sequence; part of a compiled program.

        Returns:
            The next position; the logs, scalars by name; and the episodes that ended,
            see `episodes_of`.
        """


def updates_per_call(
    agent: "Agent",
    total_timesteps: int,
    steps_per_update: int,
    steps_per_epoch: int | None = None,
) -> int:
    """Returns the number of updates per call, so that calls are equally long.

    Args:
        agent: The agent, for errors.
        total_timesteps: Environment steps of the training.
        steps_per_update: Environment steps between two updates.
        steps_per_epoch: Environment steps in an epoch, as in `kit.rl.training.turns`.
            A call isn't longer than that.

    Raises:
        TypeError: If a number of steps has the wrong type.
        ValueError: If one isn't positive.
    """
    given = {"total_timesteps": total_timesteps, "steps_per_epoch": steps_per_epoch}
    checks.check(agent, given, {name: ACCEPTED[name] for name in given})
    updates = math.ceil(total_timesteps / steps_per_update)
    longest = min(STEPS_PER_CALL, steps_per_epoch or total_timesteps / 50)
    calls = math.ceil(updates * steps_per_update / longest)
    return math.ceil(updates / calls)


def environment_keys(seed: int) -> Tensor:
    """Returns the keys of the steps and of the first episodes, `(2, 2)`.

    They differ from the keys of an agent with the same seed.
    """
    (own,) = random.split_seed(seed, 1)
    return random.split(random.key(own))


class Played:
    """The environments of a training, with the interface that `turns` needs.

    Attributes:
        env: The environments.
        num_envs: N.
        episodes: `(return, length)` of the episodes that ended.
        position: Their position, arrays in any structure; a part of backups.
    """

    def __init__(self, env: FunctionalEnv, position: Nested):
        self.env = env
        self.num_envs = env.num_envs
        self.episodes: list[tuple[float, int]] = []
        self.check_finite = True
        self.on_error: Callable[[], None] = lambda: None
        self.position = position

    def record(self) -> None:
        """Does nothing: `position` is the state."""

    def count(
        self, ended: Tensor, returns: Tensor, lengths: Tensor, odd_obs: Tensor
    ) -> dict[str, float]:
        """Records the episodes that ended in a call.

        Args:
            ended: Booleans of any shape.
            returns: Return of each step's episode up to it, same shape.
            lengths: Length of each step's episode up to it, same shape.
            odd_obs: Sums of those numbers in observations that aren't finite, any
                shape.

        Returns:
            What isn't finite, by name: `reward`, `observation`.
        """
        ended, returns, lengths = map(ops.convert_to_numpy, (ended, returns, lengths))
        self.episodes += zip(
            returns[ended].tolist(), lengths[ended].tolist(), strict=True
        )
        # Return and reward become infinite at once.
        values = {"observation": ops.convert_to_numpy(odd_obs), "reward": returns}
        odd = {name: x[~np.isfinite(x)] for name, x in values.items()}
        return {name: float(x[0]) for name, x in odd.items() if x.size}

    def get_state(self) -> dict[str, Any]:
        """Returns the environments' position, for a backup."""
        leaves = keras.tree.flatten(self.position)
        return {
            "position": [np.array(ops.convert_to_numpy(x)) for x in leaves],
            "episodes": list(self.episodes),
        }

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from the result of `get_state`."""
        leaves = map(ops.convert_to_tensor, state["position"])
        self.position = keras.tree.pack_sequence_as(self.position, list(leaves))
        self.episodes[:] = map(tuple, state["episodes"])


def episodes_of(rollout: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Returns the arguments of `Played.count` from a rollout."""
    obs = rollout["next_obs"]
    odd = (
        ops.sum(ops.where(ops.isfinite(obs), ops.zeros_like(obs), obs))
        if keras.backend.is_float_dtype(obs.dtype)
        else ops.zeros(())
    )
    episode = rollout["episode_return"], rollout["episode_length"]
    return rollout["ended"], *episode, odd


def repeat(update: Callable, position: Nested, num_updates: int) -> tuple:
    """Makes updates in sequence; part of a compiled program.

    Args:
        update: Function of a position, as the body of `scan`. It returns the next
            position and a pair: the logs, and `episodes_of` its rollout.
        position: The position of environments and agent.
        num_updates: U.

    Returns:
        The last position; the means of the logs (for `epsilon` the last value); the
        episodes, `(U, ...)`.
    """
    position, (logs, episodes) = scan(update, position, length=num_updates)
    logs = {
        name: values[-1] if name == "epsilon" else ops.mean(values)
        for name, values in logs.items()
    }
    return position, logs, episodes


def train(
    agent: Any,
    env: FunctionalEnv,
    total_timesteps: int,
    seed: int | None,
    **options: Any,
) -> keras.callbacks.History:
    """Trains an agent; each turn is one call of a program.

    Args:
        agent: An `Agent` that is `Fusable`.
        env: The environments.
        total_timesteps: Environment steps, rounded up to equally long calls.
        seed: Seed of the environments.
        **options: Options of `kit.rl.training.turns`.
    """
    schedule = agent.schedule(env, total_timesteps, options["steps_per_epoch"])
    keys = environment_keys(agent.env_seed(seed))

    def begin(keys, total):
        return agent.begin(env, keys, total)

    played = Played(env, compiled(begin)(keys, float(total_timesteps)))
    progress = turns(
        agent,
        played,
        total_timesteps,
        schedule.steps_per_call,
        schedule.log_names,
        whole_turns=True,
        parts={"envs": played},
        **options,
    )
    for turn in progress:
        plan = schedule.plan(turn)
        played.position, logs, episodes = agent._play_and_learn(plan, played.position)
        turn.not_finite = played.count(*episodes)
        turn.logs.update(logs)
    return agent.history
