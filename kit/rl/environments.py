"""A common interface to Gymnasium's environments and vector environments."""

import copy
import math
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from kit import checks
from kit.backups import is_plain
from kit.finite import IN_ENVIRONMENTS
from kit.rl.functional import FunctionalEnv
from kit.rl.hanging import watched
from kit.rl.spaces import Packing

ACCEPTED = {
    "policy": checks.FUNCTION,
    "episodes": checks.SIZE,
    "seed": checks.SEED | None,
}


class Step(NamedTuple):
    """The results of one step of N environments."""

    # At the end of an episode, `next_obs` is its final observation, and `obs` the first
    # one of the next episode. Otherwise they are equal.
    next_obs: np.ndarray  # (N, ...) the observation that the action led to
    obs: np.ndarray  # (N, ...) the observation to act on next
    reward: np.ndarray  # (N,) float32
    terminated: np.ndarray  # (N,) bool: final state, whose value is 0
    truncated: np.ndarray  # (N,) bool: bootstrap from the state's value
    valid: np.ndarray | None  # (N,) bool: False where the step only reset


class Environments:
    """N environments that reset automatically; records their episodes.

    Observations are arrays: others are packed (`kit.rl.spaces.Packing`).

    The class hides the differences between a `gymnasium.Env` and the three ways in
    which a `gymnasium.vector.VectorEnv` resets: in the step after the end (the default;
    that step is no transition), in the same step, or not automatically.

    Args:
        env: A `gymnasium.Env`, `gymnasium.vector.VectorEnv` or `FunctionalEnv`.

    Raises:
        TypeError: If `env` is something else, such as the id of an environment.
        ValueError: If its observation space isn't supported.

    Attributes:
        num_envs: N.
        observation_space: The environment's space of one observation.
        packing: Converts observations to arrays.
        action_space: The space of one action.
        episodes: List of `(return, length)` of the episodes that ended since
            the list was last cleared.
        obs: The observations to act on next, `(N, ...)`.
        steps: Number of calls of `step` so far.
        check_finite: Whether rewards and observations that aren't finite are an error.
        on_error: Function that is called before an environment's error is raised.
        called: Time at which the current call of the environment began, in seconds of
            `time.monotonic`; `None` if there is none.
    """

    def __init__(self, env: Any):
        import gymnasium
        from gymnasium.vector import AutoresetMode, VectorEnv

        if isinstance(env, FunctionalEnv):
            from kit.rl.vector_env import as_vector_env

            env = as_vector_env(env)
        if not isinstance(env, gymnasium.Env | VectorEnv):
            raise TypeError(
                "`env` must be a gymnasium.Env or gymnasium.vector.VectorEnv, or a "
                "kit.rl.functional.FunctionalEnv, "
                f"received {env!r} of type {type(env).__name__}. Make one with "
                "`gymnasium.make`."
            )
        self.env: Any = env
        self.is_vector = isinstance(env, VectorEnv)
        self.num_envs: int = getattr(env, "num_envs", 1)
        prefix = "single_" if self.is_vector else ""
        self.observation_space: Any = getattr(env, f"{prefix}observation_space")
        self.action_space: Any = getattr(env, f"{prefix}action_space")
        mode = env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        self._resets_next = self.is_vector and mode == AutoresetMode.NEXT_STEP
        self._resets_same = self.is_vector and mode == AutoresetMode.SAME_STEP
        self._ended = np.zeros(self.num_envs, bool)
        self.steps = 0
        self.check_finite = True
        self.on_error: Callable[[], None] = lambda: None
        self.packing = Packing(self.observation_space)
        self.called: float | None = None
        self._obs_shape = (self.num_envs, *self.packing.shape)
        self.episodes: list[tuple[float, int]] = []

    def reset(self, seed: int | None = None) -> np.ndarray:
        """Begins new episodes; returns their first observations (N, ...)."""
        self.called = time.monotonic()
        try:
            obs, _ = self.env.reset(seed=seed)
        except Exception as error:
            self._tell(error, "reset")
            raise
        finally:
            self.called = None
        self._ended[:] = False
        self.restarted = False
        self._returns = np.zeros(self.num_envs, np.float64)
        self._lengths = np.zeros(self.num_envs, np.int64)
        # Copy here and in each step: some environments reuse the memory.
        self.obs = self._pack(obs)
        zeros = np.zeros(self.num_envs, np.float32)
        self._check(Step(self.obs, self.obs, zeros, zeros, zeros, None))
        return self.obs

    def step(self, actions: np.ndarray) -> Step:
        """Acts in each environment, with `actions` of shape (N, ...)."""
        self.steps += 1
        self.called = time.monotonic()
        try:
            if self.is_vector:
                step = self._step_vector(actions)
            else:
                step = self._step(actions[0])
        except Exception as error:
            self._tell(error, "step")
            self.on_error()
            raise
        finally:
            self.called = None
        try:
            self._check(step)
        except ValueError:
            self.on_error()
            raise
        self._returns += step.reward
        self._lengths += 1
        if step.valid is not None:
            self._returns[~step.valid] = 0.0
            self._lengths[~step.valid] = 0
        if (ended := step.terminated | step.truncated).any():
            for i in np.flatnonzero(ended):
                self.episodes.append((float(self._returns[i]), int(self._lengths[i])))
                self._returns[i] = self._lengths[i] = 0
        self.obs = step.obs
        return step

    def _pack(self, obs):
        """Returns observations as arrays `(N, ...)`, copies of them."""
        return self.packing.pack_batch(obs, self.num_envs if self.is_vector else None)

    # --- Checks ---------------------------------------------------------------

    def _check(self, step):
        """Raises an error for rewards and observations that are no valid data."""
        # Sums are faster than `isfinite`, which is used only if the sum isn't finite.
        if not math.isfinite(_sum(step.reward)):
            self._check_finite("reward", step.reward)
        obs = step.next_obs
        if obs.shape != self._obs_shape or obs.dtype.kind not in "fiub":
            space = self.observation_space
            raise ValueError(
                f"{env_name(self.env)}: the observation in step {self.steps:,} has "
                f"shape {obs.shape[1:]} and dtype {obs.dtype}, and its space is "
                f"{space}."
            )
        if obs.dtype.kind == "f" and not math.isfinite(_sum(obs)):
            self._check_finite("observation", obs)

    def _check_finite(self, what, array):
        if self.check_finite and not np.isfinite(array).all():
            raise ValueError(
                f"{env_name(self.env)}: the {what} in step {self.steps:,} isn't "
                f"finite, {array.tolist()}; the observation space is "
                f"{self.observation_space}. {IN_ENVIRONMENTS} "
                "fit(..., check_finite=False) only turns this check off: the agent "
                "then learns from NaN."
            )

    def _tell(self, error, called):
        """Adds the environment and the step to its own error."""
        error.add_note(
            f"Raised by `{called}` of the environment {env_name(self.env)} in step "
            f"{self.steps:,}; its action space is {self.action_space}, its observation "
            f"space {self.observation_space}."
        )

    def describe_call(self) -> str:
        """Returns a description of the current call: environment and step."""
        called = "reset" if self.steps == 0 else "step"
        return f"{env_name(self.env)}: `{called}` in step {self.steps:,}"

    # --- Backups --------------------------------------------------------------

    def record(self) -> None:
        """Records what backups need. Call it before the first reset."""
        from kit.rl.env_state import make_readable

        self.env = make_readable(self.env)

    def get_state(self) -> dict[str, Any]:
        """Returns the state, for a backup; `env` is a reason if it can't be read."""
        from kit.rl.env_state import NotReadableError, read_attributes

        try:
            env = read_attributes(self.env)
        except NotReadableError as error:
            env = str(error)
        if not is_plain(env):
            env = "what it observed isn't plain"
        names = ("obs", "_ended", "_returns", "_lengths", "episodes", "steps")
        own = {name: copy.copy(getattr(self, name)) for name in names}
        return {"env": env, **own}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues from the result of `get_state`, or else from a reset."""
        from kit.rl import env_state

        self.episodes[:] = state["episodes"]
        self.steps = state["steps"]
        try:
            if isinstance(state["env"], str):
                raise env_state.NotReadableError(state["env"])
            env_state.write_attributes(self.env, state["env"])
        except env_state.NotReadableError as error:
            warnings.warn(
                env_state.restart_message(error), RuntimeWarning, stacklevel=2
            )
            self.reset()
            self.restarted = True
            return
        for name in ("obs", "_ended", "_returns", "_lengths"):
            setattr(self, name, state[name])

    def _step(self, action):
        obs, reward, terminated, truncated, _ = self.env.step(action)
        next_obs = self._pack(obs)
        if np.ndim(reward):
            raise ValueError(
                f"the reward must be one number, received {reward!r} of shape "
                f"{np.shape(reward)}. gymnasium.wrappers.TransformReward can change it."
            )
        if terminated or truncated:
            obs, _ = self.env.reset()
        return Step(
            next_obs,
            self._pack(obs),
            np.array([reward], np.float32),
            np.array([bool(terminated)]),
            np.array([bool(truncated)]),
            None,
        )

    def _step_vector(self, actions):
        obs, reward, *flags, info = self.env.step(actions)
        obs, reward = self._pack(obs), np.array(reward, np.float32)
        terminated, truncated = map(np.array, flags)
        next_obs, valid = obs, None
        ended: Any = terminated | truncated
        if self._resets_next:
            if self._ended.any():
                valid = ~self._ended
                terminated, truncated = terminated & valid, truncated & valid
            self._ended = terminated | truncated
        elif ended.any() and self._resets_same:
            next_obs = obs.copy()
            for i in np.flatnonzero(ended):
                next_obs[i] = self.packing.pack(info["final_obs"][i])
        elif ended.any():
            next_obs = obs
            obs = self._pack(self.env.reset(options={"reset_mask": ended})[0])
        return Step(next_obs, obs, reward, terminated, truncated, valid)


def play_episodes(
    env: Any,
    policy: Callable[[np.ndarray], np.ndarray],
    episodes: int,
    seed: int | None = None,
) -> dict[str, float]:
    """Plays whole episodes and returns their statistics.

    Each of N environments plays the same number of episodes (rounded up), so that short
    episodes aren't favoured.

    Args:
        env: A `gymnasium.Env` or `gymnasium.vector.VectorEnv`.
        policy: Function from observations (N, ...) to actions (N, ...). Dict and tuple
            observations are packed (`kit.rl.spaces.Packing`).
        episodes: Number of episodes, at least 1.
        seed: Seed of the first reset.

    Returns:
        `return`, `return_std`, `length` (means over episodes, and the standard
        deviation of the returns) and `episodes`.
    """
    checks.check("play_episodes", locals(), ACCEPTED)
    envs = Environments(env)
    quota = math.ceil(episodes / envs.num_envs)
    obs = envs.reset(seed)
    played = np.zeros(envs.num_envs, int)
    results = []
    with watched(envs):
        while played.min() < quota:
            step = envs.step(policy(obs))
            obs = step.obs
            for i in np.flatnonzero(step.terminated | step.truncated):
                episode = envs.episodes.pop(0)
                if played[i] < quota:
                    results.append(episode)
                    played[i] += 1
    returns, lengths = np.array(results).T
    return {
        "return": float(returns.mean()),
        "return_std": float(returns.std()),
        "length": float(lengths.mean()),
        "episodes": len(results),
    }


def _sum(array):
    return np.add.reduce(array, axis=None)


def env_name(env: Any) -> str:
    """Returns the name of an environment: its id, or the name of its class."""
    spec = getattr(env, "spec", None)
    return getattr(spec, "id", None) or type(getattr(env, "unwrapped", env)).__name__


def stacks_frames(env: Any) -> bool:
    """Returns whether observations come from Gymnasium's `FrameStackObservation`.

    Other wrappers may be around it, except those that change observations. For
    environments in other processes (`AsyncVectorEnv`), the answer is always `False`.
    """
    from gymnasium import ObservationWrapper, Wrapper
    from gymnasium.vector import VectorObservationWrapper, VectorWrapper
    from gymnasium.wrappers import FrameStackObservation

    while isinstance(env, Wrapper | VectorWrapper):
        if isinstance(env, FrameStackObservation):
            return True
        if isinstance(env, ObservationWrapper | VectorObservationWrapper):
            return False
        env = env.env
    inner = getattr(env, "envs", ())  # of a vector environment
    return len(inner) > 0 and all(map(stacks_frames, inner))


def share_environment(first: Any, second: Any) -> bool:
    """Whether two (vector) environments share an environment, however wrapped.

    A step in one of them is then also a step in the other.
    """

    def parts(env):
        env = getattr(env, "unwrapped", env)
        inner = getattr(env, "envs", ())  # of a vector environment
        return {id(x) for x in (env, *(getattr(x, "unwrapped", x) for x in inner))}

    if first is None or second is None:
        return False
    return not parts(first).isdisjoint(parts(second))


def random_policy(env: Any, seed: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the policy that draws each action from the action space."""
    checks.check("random_policy", locals(), ACCEPTED)
    envs = Environments(env)
    envs.action_space.seed(seed)

    def policy(obs: np.ndarray) -> np.ndarray:
        return np.array([envs.action_space.sample() for _ in range(len(obs))])

    return policy
