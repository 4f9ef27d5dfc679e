"""Replay buffers in preallocated NumPy arrays: drawn from uniformly, or by priority."""

import numpy as np

from kit import checks
from kit.rl.observations import FrameStacks, Observations

ACCEPTED = {
    "capacity": checks.SIZE,
    "obs_shape": checks.SIZES,
    "obs_dtype": checks.DTYPE,
    "num_envs": checks.SIZE,
    "frame_stack": checks.BOOL,
    "uniform": checks.array(interval="[0, 1)"),
    "n_step": checks.SIZE,
    "gamma": checks.FRACTION,
    "exponent": checks.FRACTION,
    "error": checks.array(),
}


class ReplayBuffer:
    """Keeps the latest transitions and samples them uniformly.

    Each environment has its own ring. An observation is stored once, as the next
    observation of one transition and the observation of the following one. Only at the
    end of an episode is the next observation stored separately, since the following one
    belongs to another episode.

    With `frame_stack`, each frame of stacked frames is stored once: a stack of four
    frames of 84x84 takes 7 KB instead of 28, a million of them 7.1 GB. The samples are
    the same.

    Shapes: N environments, B sampled transitions.

    Args:
        capacity: Number of transitions to keep, all environments together;
            rounded up to a multiple of `num_envs`.
        obs_shape: Shape of one observation.
        obs_dtype: Dtype to store observations in, as the environment gives them:
            `uint8` images stay `uint8`.
        num_envs: N. Defaults to 1.
        frame_stack: Whether observations are stacks of frames, along the first axis,
            the newest last, as from Gymnasium's `FrameStackObservation`. Defaults to
            `False`.

    Raises:
        TypeError: If `capacity` or `num_envs` isn't an integer.
        ValueError: If one of them isn't positive, or `frame_stack` with observations
            that have no axis.

    Example:

    ```python
    buffer = ReplayBuffer(10_000, (4,), "float32")
    buffer.reset(obs)  # (N, 4)
    buffer.add(action, reward, terminated, truncated, next_obs, obs)
    batch = buffer.gather(buffer.indices(np.random.uniform(size=32)))
    ```
    """

    def __init__(
        self, capacity, obs_shape, obs_dtype, num_envs=1, *, frame_stack=False
    ):
        checks.check(self, locals(), ACCEPTED)
        if frame_stack and not len(obs_shape):
            raise ValueError(
                f"{type(self).__name__}: `frame_stack` needs observations with an axis "
                "of frames, received `obs_shape` ()."
            )
        self.num_envs = num_envs
        self.obs_shape = tuple(obs_shape)
        # One slot more: the newest holds an observation without a transition.
        self.slots = -(-capacity // num_envs) + 1
        shape = (num_envs, self.slots)
        kind = FrameStacks if frame_stack else Observations
        self._obs = kind(num_envs, self.slots, self.obs_shape, obs_dtype)
        self._action = np.zeros(shape, np.int32)
        self._reward = np.zeros(shape, np.float32)
        self._terminated = np.zeros(shape, bool)
        self._truncated = np.zeros(shape, bool)
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
        axes = " ".join(map(str, (self.num_envs, *self.obs_shape)))
        checks.check("ReplayBuffer.reset", locals(), {"obs": checks.array(axes)})
        self._count[:] = 0
        self._obs.put(self._envs, self._newest, np.asarray(obs))

    def add(self, action, reward, terminated, truncated, next_obs, obs, valid=None):
        """Adds one step of N environments.

        Args:
            action: Integers of shape (N,).
            reward: Floats of shape (N,).
            terminated: Booleans of shape (N,): the episode reached a final state.
            truncated: Booleans of shape (N,): it was cut off.
            next_obs: The next observations; at the end of an episode, the final ones.
                Shape (N, ...).
            obs: The observations for the next action: `next_obs`, or the first ones of
                new episodes.
            valid: Booleans of shape (N,): `False` where the step was only a
                reset. Defaults to all `True`.
        """
        envs = self._envs if valid is None else self._envs[valid]
        if valid is not None and not valid.all():
            resets = self._envs[~valid]
            self._obs.put(resets, self._newest[resets], obs[resets])
        here = self._newest[envs]
        self._action[envs, here] = action[envs]
        self._reward[envs, here] = reward[envs]
        self._terminated[envs, here] = terminated[envs]
        self._truncated[envs, here] = truncated[envs]
        self._obs.release(envs, here)
        for env in envs[(terminated | truncated)[envs]]:
            self._obs.end(env, self._newest[env], next_obs[env])
        following = (here + 1) % self.slots
        self._newest[envs] = following
        self._added[envs] += 1
        self._obs.put(envs, following, obs[envs])
        self._count[envs] = np.minimum(self._count[envs] + 1, self.slots - 1)

    # --- Backups --------------------------------------------------------------

    @property
    def num_bytes(self):
        """Size in bytes."""
        arrays = (self._action, self._reward, self._terminated, self._truncated)
        return self._obs.num_bytes + sum(x.nbytes for x in arrays)

    def get_state(self):
        """Returns what `add_rows` doesn't bring back, for a backup."""
        return {
            "newest": self._newest,
            "added": self._added,
            "count": self._count,
            # A step that only resets changes it, and adds nothing.
            "obs": self._obs.get(self._envs, self._newest),
        }

    def set_state(self, state):
        """Takes over what `get_state` returned."""
        self._newest, self._added = state["newest"], state["added"]
        self._count = state["count"]
        self._obs.put(self._envs, self._newest, state["obs"])

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
        ended = (age > 0) & self._obs.ended(env, slot)
        return {
            "env": env,
            "slot": slot,
            **self._obs.rows(env, slot),
            "action": self._action[env, slot],
            "reward": self._reward[env, slot],
            "terminated": self._terminated[env, slot],
            "truncated": self._truncated[env, slot],
            "has_last": ended,
            "last_obs": self._obs.get_next(env[ended], slot[ended]),
        }

    def add_rows(self, rows):
        """Puts what `rows_since` returned where it was."""
        env, slot = rows["env"], rows["slot"]
        self._obs.release(env, slot)
        self._obs.add_rows(env, slot, rows)
        self._action[env, slot] = rows["action"]
        self._reward[env, slot] = rows["reward"]
        self._terminated[env, slot] = rows["terminated"]
        self._truncated[env, slot] = rows["truncated"]
        ended = rows["has_last"]
        for e, s, obs in zip(env[ended], slot[ended], rows["last_obs"], strict=True):
            self._obs.end(e, s, obs)

    def restart(self, obs):
        """Goes on with the first observations of N new episodes, shape (N, ...).

        What the last transitions led to stays as it is: they ended nothing.
        """
        last = (self._newest - 1) % self.slots
        now = self._obs.get(self._envs, self._newest)
        for env in self._envs[self._count > 0]:
            if not self._obs.ended(env, last[env]):
                self._obs.end(env, last[env], now[env])
        self._obs.put(self._envs, self._newest, obs)

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

    def gather(self, indices, n_step=1, gamma=1.0):
        """Returns the transitions at `indices`, a dict of arrays.

        With n steps, a transition leads from an observation to the one n steps later,
        or to the last one of the episode or of the buffer, and its reward is
        r_1 + gamma r_2 + gamma^2 r_3 + ... (Sutton, 1988).

        Args:
            indices: From `indices`.
            n_step: n, steps of a transition. Defaults to 1.
            gamma: Discount factor. Defaults to 1.

        Returns:
            `obs` and `next_obs` (B, ...) in the stored dtype, `action` (B) int32,
            `reward` (B) float32, `terminated` and `truncated` (B) bool; where n isn't
            1, also `steps` (B) float32, how many each transition has.
        """
        env, slot = indices
        batch = {"obs": self._obs.get(env, slot), "action": self._action[env, slot]}
        reward = self._reward[env, slot]
        if n_step > 1:
            slot, reward, batch["steps"] = self._go_on(env, slot, n_step, gamma)
        return {
            **batch,
            "reward": reward,
            "next_obs": self._obs.get_next(env, slot),
            "terminated": self._terminated[env, slot],
            "truncated": self._truncated[env, slot],
        }

    def _go_on(self, env, slot, n_step, gamma):
        """Returns the last slots of n steps, their discounted rewards and numbers."""
        checks.check(
            "ReplayBuffer.gather", {"n_step": n_step, "gamma": gamma}, ACCEPTED
        )
        reward = self._reward[env, slot]
        steps = np.ones(np.shape(slot), np.float32)
        goes_on = np.ones(np.shape(slot), bool)
        for k in range(1, n_step):
            following = (slot + 1) % self.slots
            goes_on &= ~self._obs.ended(env, slot)  # the episode
            goes_on &= following != self._newest[env]  # what was stored
            slot = np.where(goes_on, following, slot)
            gain = np.float32(gamma**k) * self._reward[env, slot]
            reward = np.where(goes_on, reward + gain, reward)
            steps += goes_on
        return slot, reward, steps


class PrioritizedReplayBuffer(ReplayBuffer):
    """Draws the more often what there is more to learn from.

    A transition of TD error d has the priority p = (|d| + 1e-6)^alpha and is drawn with
    the probability p / sum of p. A new one has the largest priority so far.

    Args:
        capacity: See `ReplayBuffer`.
        obs_shape: See `ReplayBuffer`.
        obs_dtype: See `ReplayBuffer`.
        num_envs: See `ReplayBuffer`.
        exponent: alpha in [0, 1]; 0 draws uniformly. Defaults to 0.6.
        frame_stack: See `ReplayBuffer`.

    Example:

    ```python
    buffer = PrioritizedReplayBuffer(10_000, (4,), "float32")
    ...
    indices = buffer.indices(np.random.uniform(size=32))
    weights = buffer.weights(indices, 0.4)
    buffer.set_errors(indices, td_errors)
    ```

    Reference: Schaul et al., 2016, https://arxiv.org/abs/1511.05952, proportional
    variant.
    """

    def __init__(
        self,
        capacity,
        obs_shape,
        obs_dtype,
        num_envs=1,
        exponent=0.6,
        *,
        frame_stack=False,
    ):
        super().__init__(
            capacity, obs_shape, obs_dtype, num_envs, frame_stack=frame_stack
        )
        checks.check(self, {"exponent": exponent}, ACCEPTED)
        self.exponent = exponent
        self._tree = SumTree(num_envs * self.slots)
        self._largest = 1.0

    def reset(self, obs):
        """See `ReplayBuffer.reset`."""
        super().reset(obs)
        self._tree.clear()

    def add(self, action, reward, terminated, truncated, next_obs, obs, valid=None):
        """See `ReplayBuffer.add`."""
        envs = self._envs if valid is None else self._envs[valid]
        here = self._newest[envs]
        super().add(action, reward, terminated, truncated, next_obs, obs, valid)
        self._tree.set(envs * self.slots + here, self._largest)
        # What lay there was overwritten, and has no transition yet.
        self._tree.set(envs * self.slots + self._newest[envs], 0.0)

    def indices(self, uniform):
        """Returns where the transitions lie that `uniform` draws by their priority.

        The last axis has one number for each of B equal parts of the priorities' sum,
        so that a minibatch is spread over all of them.

        Args:
            uniform: Numbers in [0, 1), any shape (..., B).

        Returns:
            The environment and the slot of each, two integer arrays (..., B).
        """
        checks.check("PrioritizedReplayBuffer.indices", locals(), ACCEPTED)
        if not len(self):
            raise ValueError(
                "PrioritizedReplayBuffer: nothing to sample, the buffer is empty."
            )
        uniform = np.asarray(uniform, np.float64)
        parts = uniform.shape[-1] if uniform.ndim else 1
        height = (np.arange(parts) + uniform) / parts * self._tree.total
        return np.divmod(self._tree.find(height), self.slots)

    def weights(self, indices, exponent):
        """Returns the weights that make up for drawing some more often.

        w = (K P)^-beta / max w, where P is the probability of a transition among K, and
        the maximum that of the minibatch (the last axis).

        Args:
            indices: From `indices`.
            exponent: beta in [0, 1]; 1 makes up for it fully.
        """
        checks.check("PrioritizedReplayBuffer.weights", locals(), ACCEPTED)
        priority = self._tree.get(indices[0] * self.slots + indices[1])
        probability = priority / self._tree.total
        weight = (len(self) * probability) ** -exponent
        return (weight / weight.max(axis=-1, keepdims=True)).astype(np.float32)

    def set_errors(self, indices, error):
        """Sets the priorities of transitions by their TD errors.

        Args:
            indices: From `indices`.
            error: TD errors, in the shape of the indices.
        """
        checks.check("PrioritizedReplayBuffer.set_errors", locals(), ACCEPTED)
        priority = (np.abs(np.asarray(error, np.float64)) + 1e-6) ** self.exponent
        self._largest = max(self._largest, float(priority.max()))
        leaf = indices[0] * self.slots + indices[1]
        self._tree.set(leaf.reshape(-1), priority.reshape(-1))

    def get_state(self):
        """See `ReplayBuffer.get_state`."""
        priorities = {"priorities": self._tree.leaves, "largest": self._largest}
        return {**super().get_state(), **priorities}

    def set_state(self, state):
        """See `ReplayBuffer.set_state`."""
        super().set_state(state)
        self._largest = state["largest"]
        self._tree.leaves = state["priorities"]


class SumTree:
    """Numbers, and the sums of each two, four, eight, ... neighbours.

    Setting a number, and finding the one at which the sum from the left passes a value,
    take as many steps as the tree is high. Each step is made for many at once.

    Args:
        size: How many numbers there are.
    """

    def __init__(self, size):
        self.size = size
        self.height = max(1, int(size - 1).bit_length())
        # Node 1 is the root; those below node i are 2i and 2i + 1.
        self._sums = np.zeros(2 << self.height, np.float64)

    @property
    def total(self):
        """The sum of all numbers."""
        return self._sums[1]

    @property
    def leaves(self):
        """The numbers, `(size,)`; those that are set at once replace all."""
        return self._sums[1 << self.height :][: self.size]

    @leaves.setter
    def leaves(self, values):
        self._sums[1 << self.height :][: self.size] = values
        for level in reversed(range(self.height)):
            below = self._sums[2 << level : 4 << level]
            self._sums[1 << level : 2 << level] = below[::2] + below[1::2]

    def clear(self):
        """Sets all to 0."""
        self._sums[:] = 0.0

    def get(self, index):
        """Returns the numbers at an array of indices."""
        return self._sums[(1 << self.height) + index]

    def set(self, index, value):
        """Sets the numbers at indices (K,); at one that occurs twice, the last."""
        node = (1 << self.height) + index
        self._sums[node] = value
        for _ in range(self.height):
            node = node >> 1
            self._sums[node] = self._sums[2 * node] + self._sums[2 * node + 1]

    def find(self, value):
        """Returns the indices at which the sum from the left first passes `value`.

        Args:
            value: Numbers in [0, total), any shape.
        """
        value = np.array(value, np.float64)
        node = np.ones(value.shape, np.int64)
        for _ in range(self.height):
            left = self._sums[2 * node]
            # Where rounding leads beyond the last number, it is not empty there.
            right = (value >= left) & (self._sums[2 * node + 1] > 0)
            value -= np.where(right, left, 0.0)
            node = 2 * node + right
        return node - (1 << self.height)
