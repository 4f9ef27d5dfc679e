"""The observations of a replay buffer: each is stored once, stacked frames likewise.

The next observation of a transition is the observation of the following one, so one
slot stores both. Only at the end of an episode is the next observation stored
separately.

    Observations    stores whole observations
    FrameStacks     stores only the newest frame of each; its other frames belong to
                    the observations before it

Shapes: N environments, S slots per environment, B any shape, K frames in an
observation.
"""

import numpy as np


class Observations:
    """Stores whole observations.

    Each environment has a ring of slots, filled one after the other. The newest slot
    may be filled again.

    Args:
        num_envs: N.
        slots: S.
        obs_shape: Shape of one observation.
        obs_dtype: Dtype to keep them in.
    """

    def __init__(self, num_envs, slots, obs_shape, obs_dtype):
        self.slots = slots
        self._obs = np.zeros((num_envs, slots, *obs_shape), obs_dtype)
        self._add_last(num_envs, obs_shape, obs_dtype)

    def _add_last(self, num_envs, shape, dtype):
        # At the end of an episode: the row of `_last` with its final observation;
        # otherwise -1.
        self._last_row = np.full((num_envs, self.slots), -1, np.int32)
        self._last = Rows(shape, dtype)

    @property
    def num_bytes(self):
        """Size in bytes."""
        arrays = [x for x in vars(self).values() if isinstance(x, np.ndarray)]
        rows = [x for x in vars(self).values() if isinstance(x, Rows)]
        return sum(x.nbytes for x in arrays) + sum(x.values.nbytes for x in rows)

    # --- One after the other ----------------------------------------------------

    def put(self, env, slot, obs):
        """Fills the next slot of environments, or the newest one again.

        Args:
            env: Environments, each once, integers (E,).
            slot: A slot of each, (E,).
            obs: Their observations (E, ...).
        """
        self._obs[env, slot] = obs

    def end(self, env, slot, obs):
        """Stores the final observation of an episode, after the one in a slot."""
        self._last_row[env, slot] = self._last.add(obs)

    def release(self, env, slot):
        """Deletes final observations after slots (E,) that are filled again."""
        rows = self._last_row[env, slot]
        if (rows >= 0).any():
            self._last.release(rows[rows >= 0])
            self._last_row[env, slot] = -1

    # --- Looking up -------------------------------------------------------------

    def get(self, env, slot):
        """Returns the observations in slots, (B, ...)."""
        return self._obs[env, slot]

    def ended(self, env, slot):
        """Returns whether final observations follow those in slots, (B)."""
        return self._last_row[env, slot] >= 0

    def get_next(self, env, slot):
        """Returns the observations that follow those in slots, (B, ...)."""
        next_obs = self.get(env, (slot + 1) % self.slots)
        row = self._last_row[env, slot]
        ended = row >= 0
        if ended.any():
            next_obs[ended] = self._get_last(env[ended], slot[ended], row[ended])
        return next_obs

    def _get_last(self, env, slot, row):
        return self._last.values[row]

    # --- Backups ----------------------------------------------------------------

    def rows(self, env, slot):
        """Returns what `add_rows` needs, a dict of arrays.

        Args:
            env: Environments in order, integers (R,).
            slot: Slots that follow each other in each environment, (R,).
        """
        return {"obs": self._obs[env, slot]}

    def add_rows(self, env, slot, rows):
        """Restores slots from the result of `rows`."""
        self._obs[env, slot] = rows["obs"]


class FrameStacks(Observations):
    """Stores stacks of frames, each frame once.

    It is made for Gymnasium's `FrameStackObservation`: the first axis of an observation
    has K frames, the newest last. After a step, all frames but the newest are those of
    the observation before. If they aren't, as at the start of an episode, they are
    stored, too: every observation is returned unchanged, and only the memory differs.
    Padding takes no memory if it repeats the first frame; zeros are stored once.

    Args:
        num_envs: N.
        slots: S.
        obs_shape: Shape of one observation, (K, ...).
        obs_dtype: Dtype to keep them in.
    """

    def __init__(self, num_envs, slots, obs_shape, obs_dtype):
        self.slots = slots
        self.num_frames, *frame_shape = obs_shape
        # The oldest observation still needs the frames before its own.
        self._places = slots + self.num_frames - 1
        ring = (num_envs, self._places)
        self._frame = np.zeros((*ring, *frame_shape), obs_dtype)
        # How many frames right before one belong to its observation, up to K - 1.
        self._behind = np.zeros(ring, np.min_scalar_type(self.num_frames))
        # What precedes the first of these frames: a row of `_openings`, or -1 for
        # copies of that frame.
        self._opening = np.full(ring, -1, np.int32)
        self._openings = Rows((self.num_frames - 1, *frame_shape), obs_dtype)
        self._place = np.zeros((num_envs, slots), np.int32)  # of the newest frame
        self._newest = np.zeros(num_envs, np.int64)  # slot
        self._add_last(num_envs, frame_shape, obs_dtype)
        # Openings of last observations that don't go on from the one before, by row.
        self._last_opening = {}

    def put(self, env, slot, obs):
        """Fills the next slot of environments, or the newest one again."""
        obs = np.asarray(obs, self._frame.dtype)
        before = self._newest[env]
        again = slot == before
        goes_on = ~again & _same(self.get(env, before)[:, 1:], obs[:, :-1])
        place = (self._place[env, before] + ~again) % self._places
        behind = self._behind[env, place - 1] + np.int64(1)
        behind = np.minimum(behind, self.num_frames - 1)
        self._release_openings(env, place)
        self._frame[env, place] = obs[:, -1]
        self._behind[env, place] = np.where(goes_on, behind, 0)
        self._place[env, slot] = place
        self._newest[env] = slot
        for i in np.flatnonzero(~goes_on):
            if not _same(obs[i, :-1], obs[i, -1:]).all():
                row = self._openings.add(obs[i, :-1], share=True)
                self._opening[env[i], place[i]] = row

    def end(self, env, slot, obs):
        """Stores the final observation of an episode, after the one in a slot."""
        obs = np.asarray(obs, self._frame.dtype)
        row = self._last_row[env, slot] = self._last.add(obs[-1])
        before = self.get(np.array([env]), np.array([slot]))[0]
        if not np.array_equal(before[1:], obs[:-1]):
            self._last_opening[row] = self._openings.add(obs[:-1])

    def release(self, env, slot):
        """Deletes final observations after slots (E,) that are filled again."""
        if self._last_opening:
            for row in self._last_row[env, slot]:
                if row in self._last_opening:
                    self._openings.release([self._last_opening.pop(row)])
        super().release(env, slot)

    def _release_openings(self, env, place):
        rows = self._opening[env, place]
        if (rows >= 0).any():
            self._openings.release(rows[rows >= 0])
            self._opening[env, place] = -1

    def get(self, env, slot):
        """Returns the observations in slots, (B, K, ...)."""
        place = self._place[env, slot]
        behind = self._behind[env, place].astype(np.int64)
        back = np.arange(self.num_frames)[::-1]  # (K,), the newest is 0 back
        back = np.minimum(back, behind[..., None])  # (B, K)
        obs = self._frame[env[..., None], (place[..., None] - back) % self._places]
        row = self._opening[env, (place - behind) % self._places]
        for at in map(tuple, np.argwhere(row >= 0)):
            missing = self.num_frames - 1 - behind[at]
            # Of what was before the first frame, the newest `missing`.
            obs[at][:missing] = self._openings.values[row[at], behind[at] :]
        return obs

    def _get_last(self, env, slot, row):
        before = self.get(env, slot)
        last = self._last.values[row][:, None]
        obs = np.concatenate([before[:, 1:], last], axis=1)
        for i, each in enumerate(row):
            if each in self._last_opening:
                obs[i, :-1] = self._openings.values[self._last_opening[each]]
        return obs

    def rows(self, env, slot):
        """Returns what `add_rows` needs, a dict of arrays."""
        place = self._place[env, slot]
        # The first row of each environment stands alone, those after it go on from it.
        first = np.flatnonzero(np.diff(env, prepend=-1))
        number = np.arange(len(env)) - np.repeat(first, np.diff(first, append=len(env)))
        behind = np.minimum(self._behind[env, place], number)
        begins = np.flatnonzero(behind == 0)
        return {
            "frame": self._frame[env, place],
            "behind": behind,
            "opening": self.get(env[begins], slot[begins])[:, :-1],
        }

    def add_rows(self, env, slot, rows):
        """Restores slots from the result of `rows`."""
        openings = iter(rows["opening"])
        for each in np.unique(env):
            here = np.flatnonzero(env == each)
            newest = self._newest[each]
            start = self._place[each, newest] + (slot[here[0]] != newest)
            place = (start + np.arange(len(here))) % self._places
            self._release_openings(each, place)
            self._frame[each, place] = rows["frame"][here]
            self._behind[each, place] = rows["behind"][here]
            self._place[each, slot[here]] = place
            self._newest[each] = slot[here[-1]]
            for at in place[rows["behind"][here] == 0]:
                opening = next(openings)
                if not _same(opening, self._frame[each, at]).all():
                    self._opening[each, at] = self._openings.add(opening, share=True)


class Rows:
    """A small pool of arrays, whose rows are reused.

    Args:
        shape: Shape of an array.
        dtype: Its dtype.

    Attributes:
        values: The rows, (R, ...); unused rows are undefined.
    """

    def __init__(self, shape, dtype):
        self.values = np.zeros((16, *shape), dtype)
        self._free = list(range(16))
        self._uses = [0] * 16
        self._newest = 0

    def add(self, value, share=False):
        """Stores an array and returns its row.

        Args:
            value: The array.
            share: Whether to return the last added row if it holds the same array.
        """
        row = self._newest
        shared = share and self._uses[row] and np.array_equal(self.values[row], value)
        if not shared:
            if not self._free:
                self._grow()
            row = self._newest = self._free.pop()
            self.values[row] = value
        self._uses[row] += 1
        return row

    def release(self, rows):
        """Ends one use of each row."""
        for row in rows:
            self._uses[row] -= 1
            if not self._uses[row]:
                self._free.append(int(row))

    def _grow(self):
        size = len(self.values)
        more = max(16, size // 4)
        empty = np.zeros((more, *self.values.shape[1:]), self.values.dtype)
        self.values = np.concatenate([self.values, empty])
        self._free = list(range(size, size + more))
        self._uses += [0] * more


def _same(first, second):
    """Returns whether arrays are equal, for each index of their first axis: (E,)."""
    equal = first == second
    return equal.all(axis=tuple(range(1, equal.ndim)))
