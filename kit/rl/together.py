"""Several independent trainings as one program, to compare seeds.

Results of deep reinforcement learning differ more between seeds than most improvements
change them. Therefore, report means over seeds with an interval (Henderson et al.,
2018, https://arxiv.org/abs/1709.06560). Small networks leave most of a processor idle:
JAX computes several trainings in little more than the time of one.

Shapes: R runs, one for each agent.
"""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops
from keras.optimizers.schedules import LearningRateSchedule

from kit import checks
from kit.backend import compiled, vectorize
from kit.callbacks import BackupAndRestore
from kit.finite import DivergenceError
from kit.rl.agent import Agent
from kit.rl.functional import FunctionalEnv
from kit.rl.fused import Played, environment_keys
from kit.rl.joint_backups import joint_backups
from kit.rl.training import ACCEPTED as TRAINING
from kit.rl.training import Turn, turns

ACCEPTED = {
    "agents": checks.sequence(checks.instance(Agent, what="an agent"), least=1),
    "env": checks.instance(FunctionalEnv, what="a kit.rl.functional.FunctionalEnv"),
    **{
        name: TRAINING[name]
        for name in (
            "total_timesteps",
            "steps_per_epoch",
            "callbacks",
            "verbose",
            "check_finite",
        )
    },
}


def fit_together(
    agents: Sequence[Agent],
    env: FunctionalEnv,
    total_timesteps: int,
    *,
    steps_per_epoch: int | None = None,
    callbacks: Sequence[keras.callbacks.Callback] | None = None,
    verbose: int | str = "auto",
    check_finite: bool = True,
) -> list[keras.callbacks.History]:
    """Trains several agents, each in its own environments, as one program.

    Up to rounding, each agent is trained as by `agent.fit(env, total_timesteps)`: it
    has its own weights, optimizer, draws and episodes, and learns nothing from the
    others. The program is that of the first agent, with `kit.vectorize`.

    The agents must be created in the same way, with different seeds and hence initial
    weights. They may also differ in values that are data to the program: options that
    are real numbers, and learning rates that are numbers.

    Args:
        agents: R agents of one class, DQN, A2C, PPO or QLearning, compiled.
        env: Environments in `keras.ops`, N for each agent.
        total_timesteps: Environment steps of each agent, rounded up to calls of the
            program.
        steps_per_epoch: Environment steps of each agent in an epoch. Defaults to a
            fiftieth of `total_timesteps`.
        callbacks: Keras callbacks, called for the first agent. If they stop its
            training, they stop all. A `kit.BackupAndRestore` backs up all agents.
        verbose: As in `fit`; shows the first agent's progress.
        check_finite: Whether to stop all agents at the first loss that isn't finite,
            and restore the last good weights of its agent. Defaults to `True`.

    Returns:
        The `History` of each agent, also available as `agent.history`. The agents are
        trained in place.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an agent can't be trained in `env`, its settings differ from
            the first one's, or the backup is of other agents.

    Example:

    ```python
    env = kit.envs.CartPole(num_envs=8)
    agents = [make_agent(seed) for seed in range(8)]
    histories = kit.fit_together(agents, env, total_timesteps=100_000)
    returns = np.array([h.history["return"] for h in histories])  # (8, 50)
    returns.mean(axis=0), returns.std(axis=0, ddof=1)
    ```
    """
    checks.check("fit_together", locals(), ACCEPTED)
    for agent in agents:
        agent.checked(env)
        if not agent.optimizer.built:
            agent.optimizer.build(agent.trainable_variables)
    first: Any = agents[0]
    schedules = [
        agent.schedule(env, total_timesteps, steps_per_epoch) for agent in agents
    ]
    _check_alike(agents)
    variables = [_variables(agent) for agent in agents]

    def together(method):
        """Compiles a method of the first agent for all of them, with their numbers."""

        def one(numbers, *args):
            with first.using(numbers):
                return method(*args)

        return compiled(lambda *args: vectorize(one, variables)(*args))

    def stack(arrays):
        return np.stack([ops.convert_to_numpy(x) for x in arrays])

    # 1. The runs' initial positions, in arrays (R, ...).
    keys = stack(environment_keys(agent.env_seed(None)) for agent in agents)
    totals = np.full(len(agents), total_timesteps, "float32")
    numbers = stack(agent.numbers() for agent in agents)
    begin = together(lambda keys, total: first.begin(env, keys, total))
    # The last loop's backups have the position of all.
    played = [Played(env, ()) for _ in agents]
    played[-1].position = begin(numbers, keys, totals)

    # 2. Each agent has its own training loop, for its logs; all loops advance together.
    callbacks_of = _callbacks_by_agent(agents, callbacks)
    progress = [
        _named(
            i,
            agent,
            turns(
                agent,
                played[i],
                total_timesteps,
                schedules[i].steps_per_call,
                schedules[i].log_names,
                whole_turns=True,
                steps_per_epoch=steps_per_epoch,
                callbacks=callbacks_of[i],
                verbose=verbose if i == 0 else 0,
                check_finite=check_finite,
                parts={"envs": played[i]},
            ),
        )
        for i, agent in enumerate(agents)
    ]
    play_and_learn = together(first.play_and_learn)
    for turn in _in_step(agents, progress):
        plan = schedules[0].plan(turn[0])
        numbers = stack(agent.numbers() for agent in agents)
        position, logs, episodes = play_and_learn(numbers, plan, played[-1].position)
        played[-1].position = position
        logs, episodes = keras.tree.map_structure(
            ops.convert_to_numpy, (logs, episodes)
        )
        for i in range(len(agents)):
            turn[i].not_finite = played[i].count(*(x[i] for x in episodes))
            turn[i].logs.update({name: x[i] for name, x in logs.items()})
    return [agent.history for agent in agents]


def _callbacks_by_agent(agents, callbacks):
    """Returns each agent's callbacks."""
    given = keras.tree.flatten(callbacks or [])
    backups = [c for c in given if isinstance(c, BackupAndRestore)]
    others = [c for c in given if c not in backups]
    found = [others, *([] for _ in agents[1:])]
    for backup in backups:
        names = [f"agents[{i}], seed {agent.seed}" for i, agent in enumerate(agents)]
        for own, member in zip(found, joint_backups(backup, names), strict=True):
            own.append(member)
    return found


def _in_step(agents, progress: Sequence[Iterator[Turn]]) -> Iterator[list[Turn]]:
    """Yields the turns of all loops together; if one loop stops, all stop."""
    with contextlib.ExitStack() as stack:
        for loop in progress:
            stack.callback(loop.close)  # type: ignore[attr-defined]
        while True:
            turn: list[Any] = []  # of each loop
            for loop in progress:
                turn += [next(loop, None)]
                if agents[0].stop_training:
                    for agent in agents:
                        agent.stop_training = True
            if None in turn:  # all loops have equally many turns
                return
            yield turn


def _named(number: int, agent: Agent, progress: Iterator[Turn]) -> Iterator[Turn]:
    """Yields turns; adds the agent's number to an error."""
    try:
        yield from progress
    except DivergenceError as error:
        error.add_note(f"fit_together: in agents[{number}], seed {agent.seed}.")
        raise


def _optimizers(agent):
    return [
        x for x in vars(agent).values() if isinstance(x, keras.optimizers.Optimizer)
    ]


def _variables(agent):
    """Returns all variables of a training, and learning rates, in a fixed order."""
    return [*agent.variables, *(v for x in _optimizers(agent) for v in x.variables)]


def _check_alike(agents):
    """Raises an error if the agents can't share one program."""
    expected = _settings(agents[0])
    for number, agent in enumerate(agents):
        found = _settings(agent)
        for name in expected | found:
            if found.get(name) != expected.get(name):
                raise ValueError(
                    f"fit_together: `agents` must be made in the same way; `{name}` of "
                    f"the first is {expected.get(name)}, that of agents[{number}] "
                    f"{found.get(name)}. Only seeds, weights, and options and learning "
                    "rates that are real numbers may differ."
                )


def _settings(agent):
    """Returns the settings that are constants of a program, by name."""
    numbers = agent.number_names()
    found: dict[str, Any] = {"class": type(agent).__name__}
    for name in agent.ranges:
        value = getattr(agent, name)
        if isinstance(value, LearningRateSchedule):
            value = (type(value).__name__, value.get_config())
        found[name] = "a number" if name in numbers else value
    for i, optimizer in enumerate(_optimizers(agent)):
        settings = {"class": type(optimizer).__name__, **optimizer.get_config()}
        settings.pop("name")
        if not isinstance(settings.get("learning_rate"), dict):
            settings.pop("learning_rate", None)
        found[f"optimizer {i + 1}"] = settings
    shapes = [(tuple(v.shape), v.dtype) for v in _variables(agent)]
    return {**found, "shapes of variables": shapes}
