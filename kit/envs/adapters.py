"""Adapts JAX environments of other packages to the kit's compiled training.

They need Keras' JAX backend. Their functions are for one environment; here they are
vectorized.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from gymnasium.spaces import Box
from keras import ops

from kit import checks
from kit.engines.running import require_backend
from kit.rl.functional import FunctionalEnv

ACCEPTED = {
    "num_envs": checks.SIZE,
    "max_episode_steps": checks.SIZE | None,
}


def from_func_env(
    env: Any, num_envs: int = 1, max_episode_steps: int | None = None
) -> FunctionalEnv:
    """Adapts a functional environment of Gymnasium.

    Args:
        env: A `gymnasium.experimental.functional.FuncEnv` in JAX.
        num_envs: N. Defaults to 1.
        max_episode_steps: Steps after which an episode is truncated. Defaults to
            `None`: never.

    Returns:
        The environment, for `agent.fit` and `kit.rl.functional`.

    Raises:
        ValueError: If Keras runs on another backend than JAX.

    Example:

    ```python
    from gymnasium.envs.phys2d.cartpole import CartPoleFunctional
    env = kit.envs.from_func_env(CartPoleFunctional(), 64, max_episode_steps=500)
    ```
    """
    checks.check("from_func_env", locals(), ACCEPTED)

    def reset(key):
        state = env.initial(key)
        return state, env.observation(state, key)

    def step(key, state, action):
        after = env.transition(state, action, key)
        obs = env.observation(after, key)
        reward = env.reward(state, action, after, key)
        return after, obs, reward, env.terminal(after, key), False

    spaces = (env.observation_space, env.action_space)
    return _JaxEnv(env, reset, step, spaces, num_envs, max_episode_steps)


def from_gymnax(env: Any, params: Any = None, num_envs: int = 1) -> FunctionalEnv:
    """Adapts an environment of gymnax, version 1.0 or later.

    Args:
        env: The environment.
        params: Its parameters. Defaults to `None`: `env.default_params`.
        num_envs: N. Defaults to 1.

    Returns:
        The environment, for `agent.fit` and `kit.rl.functional`.

    Raises:
        ValueError: If Keras runs on another backend than JAX.

    Example:

    ```python
    env, params = gymnax.make("CartPole-v1")
    env = kit.envs.from_gymnax(env, params, num_envs=64)
    ```
    """
    checks.check("from_gymnax", locals(), ACCEPTED)
    require_backend("jax", type(env).__name__)
    from gymnax.environments.spaces import gymnax_space_to_gym_space

    params = env.default_params if params is None else params

    def reset(key):
        obs, state = env.reset_env(key, params)
        return state, obs

    def step(key, state, action):
        obs, after, reward, terminated, _ = env.step_env(key, state, action, params)
        return after, obs, reward, terminated, env.is_truncated(after, params)

    spaces = (env.observation_space(params), env.action_space(params))
    spaces = tuple(map(gymnax_space_to_gym_space, spaces))
    return _JaxEnv(env, reset, step, spaces, num_envs, None)


def from_brax(
    env: Any, num_envs: int = 1, max_episode_steps: int | None = 1000
) -> FunctionalEnv:
    """Adapts an environment of Brax or of MuJoCo Playground, a physics simulation.

    Args:
        env: The environment, without wrappers for batches, resets or time limits: what
            `brax.envs.get_environment` or `mujoco_playground.registry.load` returns.
            Its observations are vectors, its actions vectors in [-1, 1].
        num_envs: N. Defaults to 1.
        max_episode_steps: Steps after which an episode is truncated, `None` for never.
            Defaults to 1000, as in Brax.

    Returns:
        The environment, for `agent.fit` and `kit.rl.functional`.

    Raises:
        TypeError: If observations aren't vectors.
        ValueError: If Keras runs on another backend than JAX.

    Example:

    ```python
    from brax import envs
    env = kit.envs.from_brax(envs.get_environment("inverted_pendulum"), num_envs=64)
    ```
    """
    checks.check("from_brax", locals(), ACCEPTED)
    require_backend("jax", type(env).__name__)
    if not isinstance(env.observation_size, int):
        raise TypeError(
            "from_brax: `env` must have vectors as observations, received "
            f"{type(env).__name__} with {env.observation_size}."
        )

    def reset(key):
        state = env.reset(key)
        return state, state.obs

    def step(key, state, action):
        after = env.step(state, action)
        return after, after.obs, after.reward, after.done, False

    spaces = (
        Box(-np.inf, np.inf, (env.observation_size,), np.float32),
        Box(-1.0, 1.0, (env.action_size,), np.float32),
    )
    return _JaxEnv(env, reset, step, spaces, num_envs, max_episode_steps)


class _JaxEnv(FunctionalEnv):
    """N environments from JAX functions of one environment.

    State: `"leaves"`, the arrays of the environments' own state, whose structure Keras
    may not support, and `"obs"`, as some environments' observations are random.

    Args:
        env: The environment that the functions are from.
        reset: Function from a key to a state and an observation.
        step: Function from a key, a state and an action to the next state, an
            observation, the reward, `terminated` and `truncated`.
        spaces: Spaces of one observation and of one action.
        num_envs: N.
        max_episode_steps: As in `FunctionalEnv`.
    """

    def __init__(
        self,
        env: Any,
        reset: Callable,
        step: Callable,
        spaces: tuple[Any, ...],
        num_envs: int,
        max_episode_steps: int | None,
    ):
        require_backend("jax", type(env).__name__)
        import jax

        super().__init__(num_envs)
        self.env = env
        self.observation_space, self.action_space = spaces
        self.max_episode_steps = max_episode_steps
        self._jax = jax
        self._reset, self._step = jax.vmap(reset), jax.vmap(step)
        state, _ = jax.eval_shape(reset, jax.random.key(0))
        leaves, self._structure = jax.tree.flatten(state)
        self._dtypes = [leaf.dtype for leaf in leaves]

    def reset(self, key, num):
        """Begins episodes."""
        state, obs = self._reset(self._keys(key, num))
        return self._pack(state, obs)

    def observe(self, state):
        """Returns the last observations."""
        return state["obs"]

    def step(self, state, action, key):
        """Acts in each environment."""
        keys = self._keys(key, action.shape[0])
        before = self._unpack(state)
        after, obs, reward, terminated, truncated = self._step(keys, before, action)
        return (
            self._pack(after, obs),
            ops.cast(reward, "float32"),
            ops.cast(terminated, "bool"),
            ops.cast(truncated, "bool"),
        )

    def _keys(self, key, num):
        key = self._jax.random.wrap_key_data(ops.cast(key, "uint32"))
        return self._jax.random.split(key, num)

    def _is_key(self, dtype):
        """Whether arrays of a dtype are JAX's keys, which Keras has no dtype for."""
        return self._jax.dtypes.issubdtype(dtype, self._jax.dtypes.prng_key)

    def _unpack(self, state):
        leaves = [
            self._jax.random.wrap_key_data(x) if self._is_key(dtype) else x
            for x, dtype in zip(state["leaves"], self._dtypes, strict=True)
        ]
        return self._structure.unflatten(leaves)

    def _pack(self, state, obs):
        leaves = [
            self._jax.random.key_data(x) if self._is_key(dtype) else x.astype(dtype)
            for x, dtype in zip(self._jax.tree.leaves(state), self._dtypes, strict=True)
        ]
        dtype = self.observation_space.dtype.name
        dtype = "int32" if dtype == "int64" else dtype
        return {"leaves": leaves, "obs": ops.cast(obs, dtype)}
