"""Environments in `keras.ops`: a whole training can be one compiled program.

Gymnasium's environments hide their state, and Python must run between them and the
agent. Here, a step takes the state as an argument, returns the next one, and uses only
`keras.ops`. So environments, agent and the loop over time are compiled together, on
every backend. `agent.fit` takes such environments instead of Gymnasium's. `kit.envs`
has some, and `kit.envs.as_vector_env` converts them to Gymnasium's.

Shapes: N environments, T time steps.
"""

import zlib
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import optree
from keras import ops

from kit import checks, random
from kit.backend import Nested, Tensor, scan
from kit.backups import is_plain

ACCEPTED = {"num_envs": checks.SIZE}


class FunctionalEnv:
    """N environments whose state is an argument.

    A subclass sets the spaces and defines `reset`, `observe` and `step`: pure functions
    of arrays with a leading axis N. `advance` starts a new episode after each one that
    ends, and truncates episodes after `max_episode_steps`. `kit.envs.as_vector_env`
    converts the environments to a Gymnasium vector environment. Videos need
    a `render`, which may use any library.

    Args:
        num_envs: N. Defaults to 1.

    Attributes:
        observation_space: Gymnasium space of one observation.
        action_space: Gymnasium space of one action.
        max_episode_steps: Steps after which an episode is truncated; `None` for never.

    Example:

    ```python
    class Walk(kit.rl.functional.FunctionalEnv):
        observation_space = gymnasium.spaces.Box(-5.0, 5.0, (1,), "float32")
        action_space = gymnasium.spaces.Discrete(2)
        max_episode_steps = 100

        def reset(self, key, num):
            return {"x": keras.ops.zeros((num,))}

        def observe(self, state):
            return state["x"][:, None]

        def step(self, state, action, key):
            x = state["x"] + 2.0 * keras.ops.cast(action, "float32") - 1.0
            at_an_end = keras.ops.abs(x) >= 5.0
            reward = keras.ops.cast(x >= 5.0, "float32")
            return {"x": x}, reward, at_an_end, keras.ops.zeros_like(at_an_end)
    ```
    """

    observation_space: Any
    action_space: Any
    max_episode_steps: int | None = None

    def __init__(self, num_envs: int = 1):
        checks.check(self, locals(), ACCEPTED)
        self.num_envs = int(num_envs)

    def __setattr__(self, name, value):
        """Sets an attribute; an error once the environment has been compiled."""
        if "_compiled" in self.__dict__:
            raise AttributeError(
                f"{type(self).__name__}: `{name}` can't be changed once the "
                "environment is compiled: make a new one."
            )
        super().__setattr__(name, value)

    def settings(self) -> dict[str, Any]:
        """Returns the environment's plain attributes by name, arrays as checksums.

        A backup can be restored only to environments with the same settings.
        """
        found = {}
        for name in dir(self):
            is_property = isinstance(getattr(type(self), name, None), property)
            value = None if is_property else getattr(self, name)
            if name.startswith("_") or value is None or not is_plain(value):
                continue
            is_array = isinstance(value, np.ndarray)
            found[name] = zlib.crc32(value.tobytes()) if is_array else value
        return found

    @property
    def single_observation_space(self) -> Any:
        """`observation_space`, by its name in Gymnasium's vector environments."""
        return self.observation_space

    @property
    def single_action_space(self) -> Any:
        """`action_space`, by its name in Gymnasium's vector environments."""
        return self.action_space

    def close(self) -> None:
        """Does nothing: there is nothing to close."""

    def reset(self, key: Tensor, num: int) -> Nested:
        """Returns the states of new episodes, arrays `(num, ...)` in any structure.

        Args:
            key: Random key, see `kit.random`.
            num: Number of episodes: N, or N T, the most that T steps can need.
        """
        raise self._undefined("reset")

    def observe(self, state: Nested) -> Tensor:
        """Returns the agent's observations of states, `(N, ...)`."""
        raise self._undefined("observe")

    def step(
        self, state: Nested, action: Tensor, key: Tensor
    ) -> tuple[Nested, Tensor, Tensor, Tensor]:
        """Acts in each environment.

        Args:
            state: From `reset` or `step`.
            action: Actions of the action space, `(N, ...)`.
            key: Random key of this step, see `kit.random`.

        Returns:
            The next state; rewards `(N,)`, float32; `terminated`, booleans `(N,)`;
            `truncated`, booleans `(N,)`.
        """
        raise self._undefined("step")

    def render(self, state: Nested) -> np.ndarray:
        """Returns a picture of each state, uint8 `(N, height, width, 3)`; optional."""
        raise self._undefined("render")

    def _undefined(self, method):
        return NotImplementedError(
            f"{type(self).__name__}: `{method}` isn't defined. A subclass of "
            "FunctionalEnv defines `reset`, `observe` and `step`."
        )


def begin(env: FunctionalEnv, key: Tensor) -> dict[str, Any]:
    """Begins N episodes; returns their position, for `play`.

    Returns:
        A dict: `state`; `obs`, the observations to act on; `return` and `length` so
        far, `(N,)`.

    Raises:
        ValueError: If the shape or dtype of observations doesn't fit the observation
            space.
    """
    env.__dict__["_compiled"] = True  # programs would ignore later changes
    state = env.reset(key, env.num_envs)
    obs = env.observe(state)
    expected = (env.num_envs, *env.observation_space.shape)
    if tuple(obs.shape) != expected:
        raise ValueError(
            f"{type(env).__name__}: `observe` must return an array of {expected}, "
            f"N observations of {env.observation_space}; received {tuple(obs.shape)}."
        )
    kind = env.observation_space.dtype.kind
    dtype = keras.backend.standardize_dtype(obs.dtype)
    if kind in "biu" and keras.backend.is_float_dtype(dtype):
        raise ValueError(
            f"{type(env).__name__}: `observe` must return integers or booleans, as "
            f"observations are in {env.observation_space}; received {dtype}."
        )
    return {
        "state": state,
        "obs": obs,
        "return": ops.zeros((env.num_envs,), "float32"),
        "length": ops.zeros((env.num_envs,), "int32"),
    }


def play(
    env: FunctionalEnv,
    position: dict[str, Any],
    choose: Callable[[Tensor, Nested], Tensor],
    noise: Nested,
    num_steps: int,
    key: Tensor,
    to_env: Callable[[Tensor], Tensor] = lambda action: action,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Plays T steps in N environments; part of a compiled program.

    Args:
        env: The environments.
        position: The environments' position, from `begin` or `play`.
        choose: Function from observations `(N, ...)` and a step's noise to actions.
        noise: Noise of all steps, arrays `(T, ...)` in any structure; `choose` gets one
            slice per step.
        num_steps: T.
        key: Random key of the environments.
        to_env: Function from actions to those of the environment's action space.

    Returns:
        The new position; and the rollout, `(T, N, ...)` arrays as from
        `kit.rl.rollouts.Rollouts.play` (at the end of an episode, `next_obs` is its
        final observation), with `episode_return` and `episode_length`: return and
        length of the step's episode, up to this step.
    """
    reset_key, step_key = ops.unstack(random.split(key))
    # Reset all episodes that may be needed at once: one large draw instead of many.
    num = num_steps * env.num_envs
    firsts = env.reset(reset_key, num)
    for x in keras.tree.flatten(firsts):
        if tuple(x.shape)[:1] != (num,):
            raise ValueError(
                f"{type(env).__name__}: `reset` must return `num` states, here {num}, "
                f"in arrays of shape ({num}, ...); received {tuple(x.shape)}."
            )
    first_obs = env.observe(firsts)
    shape = (num_steps, env.num_envs)
    firsts, first_obs = keras.tree.map_structure(
        lambda x: ops.reshape(x, (*shape, *x.shape[1:])), (firsts, first_obs)
    )

    def step(position, slices):
        noise, key, first, first_obs = slices
        action = choose(position["obs"], noise)
        return advance(env, position, action, to_env(action), first, first_obs, key)

    keys = random.split(step_key, num_steps)
    position, rollout = scan(step, position, (noise, keys, firsts, first_obs))
    return position, {**rollout, "valid": ops.ones(shape, "bool")}


def advance(
    env: FunctionalEnv,
    position: dict[str, Any],
    action: Tensor,
    env_action: Tensor,
    first: Nested,
    first_obs: Tensor,
    key: Tensor,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Makes one step; starts a new episode where one ends.

    Args:
        env: The environments.
        position: The environments' position.
        action: The agent's actions, `(N, ...)`.
        env_action: The same actions in the form of the environment's action space.
        first: States of new episodes, arrays `(N, ...)`.
        first_obs: Their observations.
        key: Random key of the environments.

    Returns:
        The new position, and the step, arrays `(N, ...)`.
    """
    result = env.step(position["state"], env_action, key)
    _check_step(env, position["state"], result)
    state, reward, terminated, truncated = result
    reward = ops.cast(reward, "float32")
    terminated, truncated = (ops.cast(x, "bool") for x in (terminated, truncated))
    total = position["return"] + reward
    length = position["length"] + 1
    if env.max_episode_steps is not None:
        truncated = ops.logical_or(truncated, length >= env.max_episode_steps)
    ended = ops.logical_or(terminated, truncated)
    next_obs = env.observe(state)

    def restart(new, old):
        wide = len(old.shape) > 1
        where = ops.reshape(ended, (-1, *[1] * (len(old.shape) - 1))) if wide else ended
        return ops.where(where, new, old)

    after = {
        "state": keras.tree.map_structure(restart, first, state),
        "obs": restart(first_obs, next_obs),
        "return": ops.where(ended, 0.0, total),
        "length": ops.where(ended, 0, length),
    }
    step = {
        "obs": position["obs"],
        "action": action,
        "reward": reward,
        "next_obs": next_obs,
        "terminated": terminated,
        "ended": ended,
        "episode_return": total,
        "episode_length": length,
    }
    return after, step


def _check_step(env, before, result):
    """Raises an error if `env.step` returned an invalid result."""
    name = f"{type(env).__name__}: `step` must return"
    if not isinstance(result, tuple) or len(result) != 4:
        count = len(result) if isinstance(result, tuple) else "no tuple"
        raise ValueError(
            f"{name} (state, rewards, terminated, truncated), received {count}"
            f"{' values' if isinstance(result, tuple) else ''}."
        )
    after, *rest = result
    there, here = (
        [
            (path, tuple(x.shape), keras.backend.standardize_dtype(x.dtype))
            for path, x in y
        ]
        for y in map(_leaves, (before, after))
    )
    if there != here:
        wrong = [x for x in here if x not in there] or here
        raise ValueError(
            f"{name} a state like that of `reset`, of the same structure, shapes and "
            f"dtypes: {there}; received {wrong}."
        )
    for what, x in zip(("rewards", "terminated", "truncated"), rest, strict=True):
        if tuple(x.shape) != (env.num_envs,):
            raise ValueError(
                f"{name} {what} of shape ({env.num_envs},), received {tuple(x.shape)}."
            )


def _leaves(state):
    """Returns the arrays of a state with their paths."""
    paths, leaves, _ = optree.tree_flatten_with_path(state, namespace="keras")
    return zip(paths, leaves, strict=True)
