"""Gymnasium's small environments with numbered states, in `keras.ops`.

Each is a Markov decision process in tables, so a step is a look-up. With the same
tables, dynamic programming can find the best policy.

Shapes: N environments, S states, A actions, K outcomes of an action.
"""

from collections.abc import Callable, Sequence

import numpy as np
from gymnasium.spaces import Box, Discrete
from keras import ops

from kit import checks, random
from kit.rl.functional import FunctionalEnv

MAPS = {
    "4x4": ("SFFF", "FHFH", "FFFH", "HFFG"),
    "8x8": (
        "SFFFFFFF",
        "FFFFFFFF",
        "FFFHFFFF",
        "FFFFFHFF",
        "FFFHFFFF",
        "FHHFFFHF",
        "FHFFHFHF",
        "FFFHFFFG",
    ),
}
ACCEPTED = {
    "env": checks.instance(FunctionalEnv, what="a kit.rl.functional.FunctionalEnv"),
    "num_envs": checks.SIZE,
    "is_slippery": checks.BOOL,
    "map_name": checks.one_of(*MAPS),
    "desc": checks.sequence(checks.TEXT, least=1) | None,
    "success_rate": checks.FRACTION,
}


def one_hot(env: FunctionalEnv) -> FunctionalEnv:
    """Converts the numbers of states to one-hot vectors.

    Use it for your own networks; `kit.q_network` and the like, built for a space, take
    the numbers.

    Args:
        env: Environments whose observation space is `Discrete`.

    Raises:
        TypeError: If `env` is no FunctionalEnv.
        ValueError: If its observation space isn't `Discrete`.

    Example:

    ```python
    env = kit.envs.one_hot(kit.envs.FrozenLake(num_envs=64))
    env.observation_space.shape  # (16,)
    ```
    """
    checks.check("one_hot", locals(), ACCEPTED)
    if not isinstance(env.observation_space, Discrete):
        raise ValueError(
            "one_hot: `env` must have a Discrete observation space, received "
            f"{env.observation_space}."
        )
    return _OneHot(env)


class _OneHot(FunctionalEnv):
    """The environments that `one_hot` returns."""

    def __init__(self, env):
        super().__init__(env.num_envs)
        self.env = env
        self.action_space = env.action_space
        self.max_episode_steps = env.max_episode_steps
        self.observation_space = Box(0.0, 1.0, (int(env.observation_space.n),))

    def reset(self, key, num):
        """Begins episodes of the environment."""
        return self.env.reset(key, num)

    def step(self, state, action, key):
        """Acts in the environment."""
        return self.env.step(state, action, key)

    def observe(self, state):
        """Returns one-hot vectors."""
        first = int(self.env.observation_space.start)
        number = self.env.observe(state) - first
        return ops.one_hot(number, self.observation_space.shape[0], dtype="float32")

    def settings(self):
        """Returns the environment's settings."""
        return self.env.settings()


class TabularEnv(FunctionalEnv):
    """N copies of a Markov decision process in tables.

    State and observation: `(N,)`, int32, the number of the state.

    Args:
        num_envs: N.
        num_states: S.
        num_actions: A.
        probabilities: Probabilities of the K outcomes, the same for all actions.
        outcome: Function from the numbers of a state, an action and an outcome to the
            next state, the reward and `terminated`.
        starts: The states in which episodes begin, with equal probability.

    Attributes:
        probabilities: `(K,)`.
        next_state: `(S, A, K)`, int32.
        reward: `(S, A, K)`, float32.
        terminated: `(S, A, K)`, bool.
        starts: int32.
    """

    def __init__(
        self,
        num_envs: int,
        num_states: int,
        num_actions: int,
        probabilities: Sequence[float],
        outcome: Callable[[int, int, int], tuple[int, float, bool]],
        starts: Sequence[int],
    ):
        super().__init__(num_envs)
        self.observation_space = Discrete(num_states)
        self.action_space = Discrete(num_actions)
        self.probabilities = np.array(probabilities)
        self.starts = np.array(starts, "int32")
        shape = (num_states, num_actions, len(probabilities))
        rows = [outcome(*map(int, index)) for index in np.ndindex(shape)]
        columns = zip(*rows, strict=True)
        dtypes = ("int32", "float32", "bool")
        self.next_state, self.reward, self.terminated = (
            np.array(column, dtype).reshape(shape)
            for column, dtype in zip(columns, dtypes, strict=True)
        )

    def reset(self, key, num):
        """Begins in one of `starts`."""
        if len(self.starts) == 1:
            return ops.full((num,), int(self.starts[0]), "int32")
        drawn = random.randint(key, (num,), 0, len(self.starts))
        return ops.take(self.starts, drawn)

    def observe(self, state):
        """Returns the number of the state."""
        return state

    def step(self, state, action, key):
        """Draws an outcome, and looks up its results."""
        num_outcomes = len(self.probabilities)
        row = state * int(self.action_space.n) + ops.cast(action, "int32")
        if num_outcomes > 1:
            drawn = random.uniform(key, state.shape, dtype="float32")
            row = row * num_outcomes
            for limit in np.cumsum(self.probabilities)[:-1]:
                row = row + ops.cast(drawn >= float(limit), "int32")
        state, reward, terminated = (
            ops.take(table.ravel(), row)
            for table in (self.next_state, self.reward, self.terminated)
        )
        return state, reward, terminated, ops.zeros_like(terminated)


class FrozenLake(TabularEnv):
    """A lake with holes in the ice, to be crossed from the start to the goal.

    `FrozenLake-v1` of Gymnasium: left (0), down (1), right (2), up (3); a reward of 1
    at the goal, 0 otherwise; at most 100 steps (200 on the 8x8 map).

    State: the field's number, line by line.

    Args:
        num_envs: N. Defaults to 1.
        is_slippery: Whether the agent may slip to a side instead. Defaults to `True`.
        map_name: `"4x4"` or `"8x8"`. Defaults to `"4x4"`.
        desc: Your own map instead, lines of equal length of the letters S (start), F
            (frozen), H (hole) and G (goal). Defaults to `None`.
        success_rate: On slippery ice, the probability of moving in the chosen
            direction; both sides share the rest. Defaults to 1/3.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or `desc` is no valid map.
    """

    max_episode_steps = 100

    def __init__(
        self,
        num_envs: int = 1,
        is_slippery: bool = True,
        map_name: str = "4x4",
        desc: Sequence[str] | None = None,
        success_rate: float = 1 / 3,
    ):
        checks.check(self, locals(), ACCEPTED)
        lines = MAPS[map_name] if desc is None else tuple(desc)
        if desc is None and map_name == "8x8":
            self.max_episode_steps = 200
        letters = "".join(lines)
        if len({len(line) for line in lines}) > 1 or not (
            "S" in letters and set(letters) <= set("SFHG")
        ):
            raise ValueError(
                "FrozenLake: `desc` must be lines of equal lengths out of the letters "
                "S (start, at least one), F (frozen), H (hole) and G (goal), received "
                f"{desc!r}."
            )
        self.lines = lines
        shape = (len(lines), len(lines[0]))
        side = (1.0 - success_rate) / 2
        moves = ((0, -1), (1, 0), (0, 1), (-1, 0))

        def outcome(state, action, turn):
            if letters[state] in "HG":
                return state, 0.0, True
            turn = turn - 1 if is_slippery else 0
            state = _move(state, moves[(action + turn) % 4], shape)
            return state, float(letters[state] == "G"), letters[state] in "HG"

        super().__init__(
            num_envs,
            num_states=len(letters),
            num_actions=4,
            probabilities=(side, success_rate, side) if is_slippery else (1.0,),
            outcome=outcome,
            starts=[i for i, letter in enumerate(letters) if letter == "S"],
        )


class CliffWalking(TabularEnv):
    """A walk along a cliff, on a grid of 4 x 12 fields.

    `CliffWalking-v1` of Gymnasium: up (0), right (1), down (2), left (3); a reward of
    -1 for each step and -100 for a step off the cliff, which leads back to the start.
    There is no step limit.

    State: the field's number, line by line.

    Args:
        num_envs: N. Defaults to 1.
        is_slippery: Whether the agent slips to a side with probability 2/3.
            Defaults to `False`.

    Reference: Sutton and Barto, "Reinforcement learning: an introduction", example 6.6.
    """

    def __init__(self, num_envs: int = 1, is_slippery: bool = False):
        checks.check(self, locals(), ACCEPTED)
        shape = (4, 12)
        start, goal = 36, 47
        moves = ((-1, 0), (0, 1), (1, 0), (0, -1))

        def outcome(state, action, turn):
            turn = turn - 1 if is_slippery else 0
            state = _move(state, moves[(action + turn) % 4], shape)
            if start < state < goal:
                return start, -100.0, False
            return state, -1.0, state == goal

        super().__init__(
            num_envs,
            num_states=48,
            num_actions=4,
            probabilities=(1 / 3, 1 / 3, 1 / 3) if is_slippery else (1.0,),
            outcome=outcome,
            starts=[start],
        )


class Taxi(TabularEnv):
    """A taxi that picks up a passenger and drives them to their destination.

    `Taxi-v3` and `Taxi-v4` of Gymnasium, without rain: down (0), up (1), right (2),
    left (3), pick up (4), drop off (5). Rewards: 20 for dropping the passenger at the
    destination, -10 for an illegal pick-up or drop-off, otherwise -1. At most 200
    steps.

    State: ((line * 5 + column) * 5 + passenger) * 4 + destination. Destination and
    passenger are numbers of the four stands; 4 means that the passenger is in the taxi.

    Args:
        num_envs: N. Defaults to 1.

    Reference: Dietterich, 2000, "Hierarchical reinforcement learning with the MAXQ
    value function decomposition".
    """

    max_episode_steps = 200
    shape = (5, 5, 5, 4)
    stands = ((0, 0), (0, 4), (4, 0), (4, 3))
    # (line, column) of the fields with a wall to their right.
    walls = ((0, 1), (1, 1), (3, 0), (3, 2), (4, 0), (4, 2))

    def __init__(self, num_envs: int = 1):
        states = np.ndindex(self.shape)
        super().__init__(
            num_envs,
            num_states=500,
            num_actions=6,
            probabilities=(1.0,),
            outcome=self._outcome,
            starts=[i for i, (*_, at, to) in enumerate(states) if at < 4 and at != to],
        )

    def _outcome(self, state, action, _):
        line, column, at, to = map(int, np.unravel_index(state, self.shape))
        place, reward, terminated = (line, column), -1.0, False
        stand = self.stands.index(place) if place in self.stands else None
        if action == 0:
            line = min(line + 1, 4)
        elif action == 1:
            line = max(line - 1, 0)
        elif action == 2 and place not in self.walls:
            column = min(column + 1, 4)
        elif action == 3 and (line, column - 1) not in self.walls:
            column = max(column - 1, 0)
        elif action == 4 and at < 4 and at == stand:
            at = 4
        elif action == 5 and at == 4 and stand is not None:
            at, terminated = stand, stand == to
            reward = 20.0 if terminated else -1.0
        elif action >= 4:
            reward = -10.0
        state = int(np.ravel_multi_index((line, column, at, to), self.shape))
        return state, reward, terminated


def _move(state, by, shape):
    """Returns the field after a move; at the border, the same field."""
    place = np.add(np.unravel_index(state, shape), by)
    place = np.clip(place, 0, np.array(shape) - 1)
    return int(np.ravel_multi_index(tuple(place), shape))
