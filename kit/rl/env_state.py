"""The state of an environment, for backups.

Gymnasium has no call for it. There are two ways, which both are exact:

- An environment that is made of plain Python and NumPy (classic control, toy text, and
  Gymnasium's wrappers) has its state in its attributes: `read_attributes`.
- Others keep it in a library written in C (Box2D, MuJoCo). They get a `Recorder`, which
  remembers how the present episode began and which actions were taken. Played again,
  the episode arrives at the same state; what was observed last proves it.
"""

import enum
import types
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import VectorEnv, VectorWrapper

from kit.backups import is_plain

# What doesn't change while an environment runs, or is made anew when it is needed.
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
    """The state of an environment isn't in attributes of plain Python and NumPy."""


class Recorder(gymnasium.Wrapper):
    """Remembers what has to be played again to arrive at the present state.

    Args:
        env: An environment that is determined by its generator and its actions.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.begun: dict[str, Any] = {}  # how the episode began
        self.actions: list[Any] = []  # since then
        self.seen: Any = None  # what was observed last

    def reset(self, *, seed=None, options=None):
        """Begins an episode, as the environment does."""
        _forget_world(self.env.unwrapped)
        state = None if seed is not None else _generator_state(self.env)
        self.begun = {"seed": seed, "generator": state, "options": options}
        self.actions = []
        self.seen, info = self.env.reset(seed=seed, options=options)
        return self.seen, info

    def step(self, action):
        """Acts, as the environment does."""
        # A copy: vector environments may write the next actions into the same memory.
        self.actions.append(np.array(action))
        self.seen, *rest = self.env.step(action)
        return self.seen, *rest

    def get_state(self) -> dict[str, Any]:
        """Returns what has to be played again."""
        actions = np.array(self.actions)
        return {**self.begun, "actions": actions, "seen": np.array(self.seen)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Plays the episode again.

        Raises:
            NotReadableError: If it arrives elsewhere.
        """
        if state["generator"] is not None:
            self.env.unwrapped.np_random.bit_generator.state = state["generator"]
        self.reset(seed=state["seed"], options=state["options"])
        # From now on as recorded, also where another backup is made.
        self.begun = {name: state[name] for name in self.begun}
        discrete = isinstance(self.action_space, gymnasium.spaces.Discrete)
        for action in state["actions"]:
            self.step(action.item() if discrete and action.ndim == 0 else action)
        if not np.array_equal(self.seen, state["seen"], equal_nan=False):
            raise NotReadableError(
                f"{self.env.unwrapped} played the same actions again, and arrived "
                "elsewhere"
            )


def _forget_world(env):
    """Gives an environment of Box2D a new world for its next episode.

    Some of them keep theirs, which remembers contacts of earlier episodes: an episode
    would depend on those before it.
    """
    world: Any = getattr(env, "world", None)
    if type(world).__name__ == "b2World" and hasattr(env, "_destroy"):
        env._destroy()
        env.world = type(world)(gravity=world.gravity)


def _generator_state(env):
    return env.unwrapped.np_random.bit_generator.state


def make_readable(env: Any) -> Any:
    """Returns an environment whose state can be read, if there is a way.

    The environments within a vector environment are wrapped where they are.
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
    """Returns the state of an environment and of all that it wraps.

    Raises:
        NotReadableError: If part of it is neither plain nor recorded.
    """
    return _read(env, type(env).__name__, set())


def write_attributes(env: Any, state: Any) -> None:
    """Gives an environment the state that `read_attributes` returned of one like it.

    Raises:
        NotReadableError: If it is another one.
    """
    _write(env, state)


def _read(value, path, above):
    if isinstance(value, Recorder):
        return {"recorded": value.get_state()}
    if isinstance(value, np.random.Generator):
        return {"generator": value.bit_generator.state}
    if is_plain(value):
        return {"plain": _copied(value)}
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
    return isinstance(value, CONSTANT) or (
        callable(value) and not isinstance(value, ENVIRONMENTS)
    )


def _has_state(value):
    """Environments, and small objects such as running means."""
    if isinstance(value, ENVIRONMENTS):
        return True
    return hasattr(value, "__dict__") and type(value).__module__.startswith("gymnasium")


def _copied(value):
    return np.copy(value) if isinstance(value, np.ndarray) else value


def _write(value, state):
    if "recorded" in state:
        _expect(isinstance(value, Recorder), value)
        value.set_state(state["recorded"])
    elif "generator" in state:
        _expect(isinstance(value, np.random.Generator), value)
        value.bit_generator.state = state["generator"]
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
                old[...] = attribute["plain"]  # others may hold views of it
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
        raise NotReadableError(f"{type(value).__name__} isn't what it was")


def restart_message(reason: BaseException) -> str:
    """Returns what is said where an environment begins anew."""
    return (
        f"BackupAndRestore: the environment can't be restored exactly ({reason}); its "
        "episodes begin anew."
    )
