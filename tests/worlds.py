"""Small environments whose best policy is known."""

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete, MultiDiscrete


class Identity(gymnasium.Env):
    """Do as you see: the observation is the action that earns the most.

    Episodes of ten steps. A discrete action (or choice) that is right earns 1; a real
    number minus the square of its error.
    """

    metadata = {"render_modes": []}

    def __init__(self, kind="discrete"):
        self.action_space = {
            "discrete": Discrete(3),
            "multi-discrete": MultiDiscrete([2, 3]),
            "continuous": Box(-1.0, 1.0, (2,), np.float32),
        }[kind]
        self.sizes = {"discrete": [3], "multi-discrete": [2, 3]}.get(kind)
        size = sum(self.sizes) if self.sizes else 2
        self.observation_space = Box(-1.0, 1.0, (size,), np.float32)

    def _observe(self):
        if self.sizes is None:
            self.wanted = self.np_random.uniform(-1, 1, 2).astype("float32")
            return self.wanted
        self.wanted = self.np_random.integers(self.sizes)
        rows = [np.eye(n)[i] for n, i in zip(self.sizes, self.wanted, strict=True)]
        return np.concatenate(rows).astype("float32")

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self._observe(), {}

    def step(self, action):
        assert self.action_space.contains(np.asarray(action, self.action_space.dtype))
        if self.sizes is None:
            reward = -float(np.sum((action - self.wanted) ** 2))
        else:
            reward = float(np.mean(np.ravel(action) == self.wanted))
        self.steps += 1
        return self._observe(), reward, False, self.steps == 10, {}


class Ring(gymnasium.Env):
    """Five places in a ring: each step goes on to the next, whatever the action.

    No episode ever terminates. After each step, it may be truncated, so that every
    place is also the last one of some episode, and is acted in as well.
    """

    rewards = np.array([1.0, 0.0, 0.0, 2.0, 0.5])

    def __init__(self, cut_off=0.2, discrete=False):
        places = len(self.rewards)
        self.cut_off, self.discrete = cut_off, discrete
        self.action_space = Discrete(2)
        self.observation_space = (
            Discrete(places) if discrete else Box(0, 1, (places,), np.float32)
        )

    @classmethod
    def values(cls, gamma, cut_off=0.0):
        """The value of each place; with `cut_off`, that of a truncation is 0."""
        places = len(cls.rewards)
        step = np.roll(np.eye(places), 1, axis=1)
        chance = gamma * (1.0 - cut_off)
        return np.linalg.solve(np.eye(places) - chance * step, cls.rewards)

    def _observe(self):
        if self.discrete:
            return self.place
        return np.eye(len(self.rewards), dtype=np.float32)[self.place]

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.place = int(self.np_random.integers(len(self.rewards)))
        return self._observe(), {}

    def step(self, action):
        reward = float(self.rewards[self.place])
        self.place = (self.place + 1) % len(self.rewards)
        return (
            self._observe(),
            reward,
            False,
            self.np_random.random() < self.cut_off,
            {},
        )


class Bandit(gymnasium.Env):
    """Three arms and one step; the last earns the most, by `scale`, under noise."""

    def __init__(self, scale=1.0, noise=0.0):
        self.means, self.noise = scale * np.array([0.0, 0.5, 1.0]), scale * noise
        self.action_space = Discrete(3)
        self.observation_space = Box(0, 1, (1,), np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action):
        reward = self.np_random.normal(self.means[action], self.noise)
        return np.ones(1, np.float32), float(reward), True, False, {}


class Umbrella(gymnasium.Env):
    """The first of ten actions decides what the last step earns: 1 or -1.

    Before it, the forecast is seen, afterwards whether it and the action were the same;
    what the other steps earn is chance. (Osband et al., 2020: umbrella_length.)
    """

    length = 10

    def __init__(self):
        self.action_space = Discrete(2)
        self.observation_space = Box(-1, 1, (3,), np.float32)

    def _observe(self):
        forecast = self.forecast if self.time == 0 else 0.0
        return np.array([forecast, self.right, self.time / self.length], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.right = 0, 0.0
        self.forecast = float(self.np_random.choice([-1, 1]))
        return self._observe(), {}

    def step(self, action):
        if self.time == 0:
            self.right = 1.0 if action == (self.forecast > 0) else -1.0
        self.time += 1
        ended = self.time == self.length
        reward = self.right if ended else 0.1 * self.np_random.choice([-1, 1])
        return self._observe(), float(reward), ended, False, {}


class Recall(gymnasium.Env):
    """The action of the last step must be what the first observation said."""

    length = 3

    def __init__(self):
        self.action_space = Discrete(2)
        self.observation_space = Box(-1, 1, (2,), np.float32)

    def _observe(self):
        cue = self.cue if self.time == 0 else 0.0
        return np.array([cue, self.time == self.length - 1], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.time, self.cue = 0, float(self.np_random.choice([-1, 1]))
        return self._observe(), {}

    def step(self, action):
        self.time += 1
        ended = self.time == self.length
        right = (action == 1) == (self.cue > 0)
        return self._observe(), float(ended and right), ended, False, {}
