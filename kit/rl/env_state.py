"""Saves and restores the state of an environment, for backups.

Gymnasium has no interface for it. There are two ways; both are exact:

- Environments in plain Python and NumPy (classic control, toy text, and Gymnasium's
  wrappers) have their state in their attributes: `read_attributes`. So do Atari games,
  whose emulator returns its own state; with sticky actions
  (`repeat_action_probability`), this lacks the last action.
- Others have it in a library written in C (Box2D, MuJoCo). They get a `Recorder`, which
  records how the current episode began and its actions. Replaying the episode leads to
  the same state; the last observation is compared to verify it.
"""

import copy
import enum
import types
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv, VectorWrapper

from kit.backups import is_plain
from kit.rl.spaces import Packing

# Attributes of these types don't change in an episode, or are recreated when needed.
CONSTANT = (
    gymnasium.Space,
    EnvSpec,
    enum.Enum,
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
)
ENVIRONMENTS = (gymnasium.Env, VectorEnv, VectorWrapper)


class NotReadableError(Exception):
    """The environment's state isn't in attributes of plain Python and NumPy."""


class Recorder(gymnasium.Wrapper):
    """Records the current episode, so that it can be replayed to the same state.

    Args:
        env: An environment that is determined by its generator and its actions.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.begun: dict[str, Any] = {}  # how the episode began
        self.actions: list[Any] = []  # since then
        self.seen: Any = None  # the last observation

    def reset(self, *, seed=None, options=None):
        """Begins and records a new episode."""
        _forget_world(self.env.unwrapped)
        state = None if seed is not None else _generator_state(self.env)
        self.begun = {"seed": seed, "generator": state, "options": options}
        self.actions = []
        self.seen, info = self.env.reset(seed=seed, options=options)
        return self.seen, info

    def step(self, action):
        """Acts and records the action."""
        # Copy: vector environments may write the next actions to the same memory.
        self.actions.append(np.array(action))
        self.seen, *rest = self.env.step(action)
        return self.seen, *rest

    def get_state(self) -> dict[str, Any]:
        """Returns the record of the episode."""
        actions = np.array(self.actions)
        return {**self.begun, "actions": actions, "seen": self._seen_as_array()}

    def set_state(self, state: dict[str, Any]) -> None:
        """Replays the episode.

        Raises:
            NotReadableError: If the replay ends in another state.
        """
        if state["generator"] is not None:
            self.env.unwrapped.np_random.bit_generator.state = state["generator"]
        self.reset(seed=state["seed"], options=state["options"])
        # Keep the original record, for the next backup.
        self.begun = {name: state[name] for name in self.begun}
        discrete = isinstance(self.action_space, gymnasium.spaces.Discrete)
        for action in state["actions"]:
            self.step(action.item() if discrete and action.ndim == 0 else action)
        if not np.array_equal(self._seen_as_array(), state["seen"], equal_nan=False):
            raise NotReadableError(
                f"replaying the actions in {self.env.unwrapped} ended in another state"
            )

    def _seen_as_array(self):
        try:
            return Packing(self.observation_space).pack(self.seen)
        except ValueError:  # an inner environment may observe anything
            return np.array(self.seen)


def _forget_world(env):
    """Gives a Box2D environment a new world for its next episode.

    Some keep their world, which stores contacts of earlier episodes: an episode would
    then depend on those before it.
    """
    world: Any = getattr(env, "world", None)
    if type(world).__name__ == "b2World" and hasattr(env, "_destroy"):
        env._destroy()
        env.world = type(world)(gravity=world.gravity)


def _generator_state(env):
    return env.unwrapped.np_random.bit_generator.state


def make_readable(env: Any) -> Any:
    """Returns an environment whose state can be read, if possible.

    The environments of a vector environment are wrapped in place.
    """
    if isinstance(env, VectorEnv | VectorWrapper):
        vector: Any = env.unwrapped
        inner = getattr(vector, "envs", None)
        if isinstance(inner, list | tuple):
            vector.envs = type(inner)(map(make_readable, inner))
        return env
    try:
        read_attributes(env)
    except NotReadableError:
        return env if isinstance(env, Recorder) else Recorder(env)
    return env


def read_attributes(env: Any) -> Any:
    """Returns the state of an environment and of everything that it wraps.

    Raises:
        NotReadableError: If part of it is neither plain nor recorded.
    """
    return _read(env, type(env).__name__, set())


def write_attributes(env: Any, state: Any) -> None:
    """Sets the state of an environment to the result of `read_attributes`.

    Raises:
        NotReadableError: If the state doesn't fit the environment.
    """
    _write(env, state)


def _read(value, path, above):
    if isinstance(value, Recorder):
        return {"recorded": value.get_state()}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    if is_plain(value):
        return {"plain": copy.deepcopy(value)}
    if _is_emulator(value) and not value.getFloat("repeat_action_probability"):
        state = value.cloneState(include_rng=True).serialize()
        return {"emulator": np.frombuffer(state, np.uint8)}
    if isinstance(value, list | tuple) and all(map(_has_state, value)):
        return {"items": [_read(x, f"{path}[]", above) for x in value]}
    if not _has_state(value) or id(value) in above:
        raise NotReadableError(f"{path} is a {type(value).__name__}")
    above = above | {id(value)}
    return {
        "attributes": {
            name: _read(x, f"{path}.{name}", above)
            for name, x in vars(value).items()
            if not _is_constant(x)
        }
    }


def _is_constant(value):
    if isinstance(value, list | tuple) and value:
        return all(map(_is_constant, value))  # the functions that make environments
    if isinstance(value, dict) and value and not is_plain(value):
        return all(_is_constant(x) or is_plain(x) for x in value.values())
    if type(value).__module__.startswith("ale_py._"):  # names of actions
        return not _is_emulator(value)
    return isinstance(value, CONSTANT) or (
        callable(value) and not isinstance(value, ENVIRONMENTS)
    )


def _is_emulator(value):
    """Whether it is ale-py's, in which the state of an Atari environment is."""
    return type(value).__name__ == "ALEInterface"


def _has_state(value):
    """Whether it is an environment, or a small object such as a running mean."""
    if isinstance(value, ENVIRONMENTS):
        return True
    return hasattr(value, "__dict__") and type(value).__module__.startswith("gymnasium")


def _write(value, state):
    if "recorded" in state:
        _expect(isinstance(value, Recorder), value)
        value.set_state(state["recorded"])
    elif "generator" in state:
        _expect(isinstance(value, np.random.Generator), value)
        value.bit_generator.state = state["generator"]
    elif "emulator" in state:
        _expect(_is_emulator(value), value)
        kind = type(value.cloneState())
        value.restoreState(kind(state["emulator"].tobytes()))
    elif "items" in state:
        _expect(isinstance(value, list | tuple), value)
        for item, item_state in zip(value, state["items"], strict=True):
            _write(item, item_state)
    else:
        for name, attribute in state["attributes"].items():
            old: Any = getattr(value, name, None)
            if "plain" not in attribute:
                _write(old, attribute)
            elif _same_kind(old, attribute["plain"]):
                old[...] = attribute["plain"]  # in place: other objects may share it
            else:
                setattr(value, name, attribute["plain"])


def _same_kind(old, new):
    return (
        isinstance(old, np.ndarray)
        and isinstance(new, np.ndarray)
        and (old.shape, old.dtype) == (new.shape, new.dtype)
        and old.flags.writeable
    )


def _expect(fine, value):
    if not fine:
        raise NotReadableError(f"{type(value).__name__} doesn't fit the backup")


def restart_message(reason: BaseException) -> str:
    """Returns the warning for an environment that can't be restored."""
    return (
        f"BackupAndRestore: the environment can't be restored exactly ({reason}); new "
        "episodes begin."
    )
