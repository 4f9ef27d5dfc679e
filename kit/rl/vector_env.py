"""Wraps environments in `keras.ops` as Gymnasium's, to be stepped from Python.

Use it with agents of other libraries, with wrappers, and for comparisons. The kit's
agents are faster with the environment itself, which is compiled together with them.
"""

from typing import Any

import gymnasium
import keras
import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from keras import ops

from kit import checks, random
from kit.backend import compiled
from kit.rl import functional
from kit.rl.functional import FunctionalEnv

ACCEPTED = {
    "env": checks.instance(FunctionalEnv, what="a kit.rl.functional.FunctionalEnv"),
    "seed": checks.SEED | None,
}


def as_vector_env(env: FunctionalEnv) -> "FunctionalVectorEnv":
    """Wraps an environment in `keras.ops` as a Gymnasium vector environment.

    Args:
        env: The environments; N is its `num_envs`.

    Returns:
        A `gymnasium.vector.VectorEnv` whose step is one compiled program. At the end of
        an episode, the next one begins in the same step; `infos["final_obs"]` has the
        final observation.

    Raises:
        TypeError: If `env` is something else.

    Example:

    ```python
    env = kit.envs.as_vector_env(kit.envs.CartPole(num_envs=1024))
    obs, infos = env.reset(seed=0)
    obs, rewards, terminated, truncated, infos = env.step(env.action_space.sample())
    ```
    """
    checks.check("as_vector_env", locals(), ACCEPTED)
    return FunctionalVectorEnv(env)


class FunctionalVectorEnv(VectorEnv):
    """The vector environment that `as_vector_env` returns.

    Args:
        env: The environments.

    Attributes:
        env: The environments.
        position: Their state, see `kit.rl.functional.begin`; `None` before the first
            reset.
    """

    metadata: dict[str, Any] = {
        "autoreset_mode": AutoresetMode.SAME_STEP,
        "render_modes": [],
    }

    def __init__(self, env: FunctionalEnv):
        self.env = env
        self.num_envs = env.num_envs
        self.single_observation_space = env.observation_space
        self.single_action_space = env.action_space
        self.observation_space = batch_space(env.observation_space, self.num_envs)
        self.action_space = batch_space(env.action_space, self.num_envs)
        self.position: Any = None
        self._program = _program_of(env)

    def reset(self, *, seed=None, options=None):
        """Begins new episodes in all environments.

        Args:
            seed: Seed of all later draws, an integer, 0 <= seed < 2**32. `None`
                continues with the current generator, seeded randomly the first time.
            options: Has no effect.

        Returns:
            First observations `(N, ...)`, and an empty dict.
        """
        checks.check(self, {"seed": seed}, ACCEPTED)
        super().reset(seed=seed)
        self.position, obs = self._program.begin(_draw_key(self.np_random))
        return _as_space(obs, self.observation_space), {}

    def step(self, actions):
        """Acts in each environment.

        Args:
            actions: Actions of `action_space`.

        Returns:
            Observations to act on next, rewards, `terminated`, `truncated`, and a dict:
            if an episode ended, `final_obs` `(N, ...)` has the final observations, and
            `_final_obs` `(N,)` marks the environments that they are of.

        Raises:
            gymnasium.error.ResetNeeded: If `reset` wasn't called before.
        """
        if self.position is None:
            raise gymnasium.error.ResetNeeded("Call `reset` before `step`.")
        key = _draw_key(self.np_random)
        self.position, results = self._program.step(self.position, actions, key)
        obs, final_obs, reward, terminated, ended = results
        space = self.observation_space
        infos = {}
        if ended.any():
            infos = {"final_obs": _as_space(final_obs, space), "_final_obs": ended}
        return (
            _as_space(obs, space),
            reward,
            terminated,
            ended & ~terminated,
            infos,
        )


class FunctionalSingleEnv(gymnasium.Env):
    """One environment in `keras.ops` as a `gymnasium.Env`.

    Args:
        env: The environment, with a `num_envs` of 1.
        render_mode: `"rgb_array"` for one that defines `render`. Defaults to `None`.

    Raises:
        ValueError: If `env` doesn't know this `render_mode`.

    Attributes:
        env: The environment.
        position: Its state, see `kit.rl.functional.begin`; `None` before a reset.
    """

    metadata: dict[str, Any] = {"render_modes": [], "render_fps": 10}

    def __init__(self, env: FunctionalEnv, render_mode: str | None = None):
        if type(env).render is not FunctionalEnv.render:
            self.metadata = {**self.metadata, "render_modes": ["rgb_array"]}
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(
                f"{type(env).__name__}: `render_mode` must be of "
                f"{[None, *self.metadata['render_modes']]}, received {render_mode!r}."
            )
        self.render_mode = render_mode
        self.env = env
        self.observation_space = env.observation_space
        self.action_space = env.action_space
        self.position: Any = None
        self._program = _program_of(env)

    def reset(self, *, seed=None, options=None):
        """Begins an episode; arguments and results as in Gymnasium."""
        super().reset(seed=seed)
        self.position, obs = self._program.begin(_draw_key(self.np_random))
        return _as_space(obs, self.observation_space, first=True), {}

    def step(self, action):
        """Acts; arguments and results as in Gymnasium."""
        if self.position is None:
            raise gymnasium.error.ResetNeeded("Call `reset` before `step`.")
        key = _draw_key(self.np_random)
        action = np.array(action)[None]
        self.position, results = self._program.step(self.position, action, key)
        _, obs, reward, terminated, ended = results
        obs = _as_space(obs, self.observation_space, first=True)
        truncated = bool(ended[0] and not terminated[0])
        return obs, float(reward[0]), bool(terminated[0]), truncated, {}

    def render(self):
        """Returns a picture, uint8 `(height, width, 3)`; `None` without a mode."""
        if self.render_mode is None:
            return None
        if self.position is None:
            raise gymnasium.error.ResetNeeded("Call `reset` before `render`.")
        return self.env.render(self.position["state"])[0]


class _Program:
    """The compiled `begin` and `step` of environments."""

    def __init__(self, env: FunctionalEnv):
        def begin(key):
            return functional.begin(env, key)

        def step(position, action, key):
            reset_key, step_key = ops.unstack(random.split(key))
            first = env.reset(reset_key, env.num_envs)
            first_obs = env.observe(first)
            return functional.advance(
                env, position, action, action, first, first_obs, step_key
            )

        self._begin, self._step = compiled(begin), compiled(step)
        discrete = np.issubdtype(env.action_space.dtype, np.integer)
        self._action_dtype = "int32" if discrete else "float32"

    def begin(self, key):
        position = self._begin(key)
        return position, ops.convert_to_numpy(position["obs"])

    def step(self, position, actions, key):
        actions = np.asarray(actions, self._action_dtype)
        position, step = self._step(position, actions, key)
        names = ("next_obs", "reward", "terminated", "ended")
        arrays = (position["obs"], *(step[name] for name in names))
        return position, keras.tree.map_structure(ops.convert_to_numpy, arrays)


def _program_of(env):
    """Returns the environments' program, compiled once for all uses."""
    return env.__dict__.setdefault("_program", _Program(env))


def _draw_key(generator):
    """Draws a key from a NumPy generator, the only source of randomness."""
    return generator.integers(-(2**31), 2**31, size=2).astype("int32")


def _as_space(obs, space, first=False):
    """Returns a copy of observations in the dtype of their space."""
    obs = obs[0] if first else obs
    if isinstance(space, gymnasium.spaces.Discrete):
        return space.dtype.type(obs)
    return np.array(obs, space.dtype)
