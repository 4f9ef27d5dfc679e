"""A replay buffer in preallocated NumPy arrays."""

import numpy as np

from kit import checks

ACCEPTED = {
    "capacity": checks.SIZE,
    "obs_shape": checks.SIZES,
    "obs_dtype": checks.DTYPE,
    "num_envs": checks.SIZE,
    "uniform": checks.array(interval="[0, 1)"),
}


class ReplayBuffer:
    """Keeps the latest transitions and samples them uniformly.

    Each environment has a ring of its own. An observation is stored once: it is
    the next observation of one transition and the observation of the following
    one. Only where an episode ends does the next observation need a place of
    its own, since what follows there is the first one of another episode.

    Shapes: N environments, B sampled transitions.

    Args:
        capacity: Number of transitions to keep, all environments together;
            rounded up to a multiple of `num_envs`.
        obs_shape: Shape of one observation.
        obs_dtype: Dtype to store observations in, as the environment gives them:
            `uint8` images stay `uint8`.
        num_envs: N. Defaults to 1.

    Raises:
        TypeError: If `capacity` or `num_envs` isn't an integer.
        ValueError: If one of them isn't positive.

    Example:

    ```python
    buffer = ReplayBuffer(10_000, (4,), "float32")
    buffer.reset(obs)  # (N, 4)
    buffer.add(action, reward, terminated, truncated, next_obs, obs)
    batch = buffer.gather(buffer.indices(np.random.uniform(size=32)))
    ```
    """

    def __init__(self, capacity, obs_shape, obs_dtype, num_envs=1):
        checks.check(self, locals(), ACCEPTED)
        self.num_envs = num_envs
        # One slot more: the newest holds an observation without a transition.
        self.slots = -(-capacity // num_envs) + 1
        shape = (num_envs, self.slots)
        self._obs = np.zeros((*shape, *obs_shape), obs_dtype)
        self._action = np.zeros(shape, np.int32)
        self._reward = np.zeros(shape, np.float32)
        self._terminated = np.zeros(shape, bool)
        self._truncated = np.zeros(shape, bool)
        # Where an episode ended: the row of `_last_obs` that holds its last
        # observation; elsewhere -1. Rows are used again.
        self._last_row = np.full(shape, -1, np.int32)
        self._last_obs = np.zeros((16, *obs_shape), obs_dtype)
        self._free_rows = list(range(16))
        self._newest = np.zeros(num_envs, np.int64)
        self._added = np.zeros(num_envs, np.int64)  # ever, also what is overwritten
        self._count = np.zeros(num_envs, np.int64)
        self._envs = np.arange(num_envs)

    def __len__(self):
        """Number of stored transitions."""
        return int(self._count.sum())

    # --- Adding ---------------------------------------------------------------

    def reset(self, obs):
        """Begins with the first observations of N episodes, shape (N, ...)."""
        axes = " ".join(map(str, (self.num_envs, *self._obs.shape[2:])))
        checks.check("ReplayBuffer.reset", locals(), {"obs": checks.array(axes)})
        self._count[:] = 0
        self._obs[self._envs, self._newest] = obs

    def add(self, action, reward, terminated, truncated, next_obs, obs, valid=None):
        """Adds what one step of N environments gave.

        Args:
            action: Integers of shape (N,).
            reward: Floats of shape (N,).
            terminated: Booleans of shape (N,): the episode reached a final state.
            truncated: Booleans of shape (N,): it was cut off.
            next_obs: What the action led to, also where the episode ended; shape
                (N, ...).
            obs: What the next action will be chosen for: `next_obs`, or the
                first observation of the next episode.
            valid: Booleans of shape (N,): `False` where the step was only a
                reset. Defaults to all `True`.
        """
        envs = self._envs if valid is None else self._envs[valid]
        if valid is not None and not valid.all():
            resets = self._envs[~valid]
            self._obs[resets, self._newest[resets]] = obs[resets]
        here = self._newest[envs]
        self._action[envs, here] = action[envs]
        self._reward[envs, here] = reward[envs]
        self._terminated[envs, here] = terminated[envs]
        self._truncated[envs, here] = truncated[envs]
        self._release(envs, here)
        for env in envs[(terminated | truncated)[envs]]:
            self._last_row[env, self._newest[env]] = self._store_last(next_obs[env])
        following = (here + 1) % self.slots
        self._newest[envs] = following
        self._added[envs] += 1
        self._obs[envs, following] = obs[envs]
        self._count[envs] = np.minimum(self._count[envs] + 1, self.slots - 1)

    def _release(self, envs, slots):
        rows = self._last_row[envs, slots]
        if (rows >= 0).any():
            self._free_rows.extend(rows[rows >= 0].tolist())
            self._last_row[envs, slots] = -1

    def _store_last(self, obs):
        if not self._free_rows:
            rows = len(self._last_obs)
            self._free_rows = list(range(rows, 2 * rows))
            self._last_obs = np.concatenate([self._last_obs, self._last_obs])
        row = self._free_rows.pop()
        self._last_obs[row] = obs
        return row

    # --- Backups --------------------------------------------------------------

    @property
    def num_bytes(self):
        """Size in bytes."""
        arrays = (self._obs, self._action, self._reward, self._last_row, self._last_obs)
        return sum(x.nbytes for x in arrays) + 2 * self._terminated.nbytes

    def get_state(self):
        """Returns what `add_rows` doesn't bring back, for a backup."""
        return {
            "newest": self._newest,
            "added": self._added,
            "count": self._count,
            # A step that only resets changes it, and adds nothing.
            "obs": self._obs[self._envs, self._newest],
        }

    def set_state(self, state):
        """Takes over what `get_state` returned."""
        self._newest, self._added = state["newest"], state["added"]
        self._count = state["count"]
        self._obs[self._envs, self._newest] = state["obs"]

    def mark(self):
        """Returns how many transitions each environment has added, a list of N."""
        return self._added.tolist()

    def holds(self, mark):
        """Whether some transition is left that was added before `mark`."""
        return bool((self._added - np.array(mark) < self.slots - 1).any())

    def rows_since(self, mark):
        """Returns what was added since `mark`, a dict of arrays `(K, ...)`.

        Also the newest observation, which has no transition yet.
        """
        new = self._added - (0 if mark is None else np.array(mark))
        new = np.minimum(new, self._count)
        env = np.repeat(self._envs, new + 1)
        age = np.concatenate([np.arange(n, -1, -1) for n in new])
        slot = (self._newest[env] - age) % self.slots
        row = np.where(age > 0, self._last_row[env, slot], -1)
        return {
            "env": env,
            "slot": slot,
            "obs": self._obs[env, slot],
            "action": self._action[env, slot],
            "reward": self._reward[env, slot],
            "terminated": self._terminated[env, slot],
            "truncated": self._truncated[env, slot],
            "has_last": row >= 0,
            "last_obs": self._last_obs[row[row >= 0]],
        }

    def add_rows(self, rows):
        """Puts what `rows_since` returned where it was."""
        env, slot = rows["env"], rows["slot"]
        self._release(env, slot)
        self._obs[env, slot] = rows["obs"]
        self._action[env, slot] = rows["action"]
        self._reward[env, slot] = rows["reward"]
        self._terminated[env, slot] = rows["terminated"]
        self._truncated[env, slot] = rows["truncated"]
        ended = rows["has_last"]
        for e, s, obs in zip(env[ended], slot[ended], rows["last_obs"], strict=True):
            self._last_row[e, s] = self._store_last(obs)

    def restart(self, obs):
        """Goes on with the first observations of N new episodes, shape (N, ...).

        What the last transitions led to stays as it is: they ended nothing.
        """
        last = (self._newest - 1) % self.slots
        for env in self._envs[self._count > 0]:
            if self._last_row[env, last[env]] < 0:
                row = self._store_last(self._obs[env, self._newest[env]])
                self._last_row[env, last[env]] = row
        self._obs[self._envs, self._newest] = obs

    # --- Sampling -------------------------------------------------------------

    def indices(self, uniform):
        """Returns where the stored transitions lie that `uniform` draws.

        Args:
            uniform: Numbers in [0, 1), any shape (B).

        Returns:
            The environment and the slot of each, two integer arrays (B).
        """
        checks.check("ReplayBuffer.indices", locals(), ACCEPTED)
        uniform = np.asarray(uniform)
        if not len(self):
            raise ValueError("ReplayBuffer: nothing to sample, the buffer is empty.")
        total = len(self)
        rank = np.minimum((uniform * np.float64(total)).astype(np.int64), total - 1)
        ends = np.cumsum(self._count)
        env = np.searchsorted(ends, rank, side="right")
        age = ends[env] - rank  # 1 is the newest transition
        return env, (self._newest[env] - age) % self.slots

    def gather(self, indices):
        """Returns the transitions at `indices`, a dict of arrays.

        Returns:
            `obs` and `next_obs` (B, ...) in the stored dtype, `action` (B) int32,
            `reward` (B) float32, `terminated` and `truncated` (B) bool.
        """
        env, slot = indices
        next_obs = self._obs[env, (slot + 1) % self.slots]
        row = self._last_row[env, slot]
        ended = row >= 0
        if ended.any():
            next_obs[ended] = self._last_obs[row[ended]]
        return {
            "obs": self._obs[env, slot],
            "action": self._action[env, slot],
            "reward": self._reward[env, slot],
            "next_obs": next_obs,
            "terminated": self._terminated[env, slot],
            "truncated": self._truncated[env, slot],
        }
