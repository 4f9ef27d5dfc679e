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
