"""The base class of MinAtar's games: sticky actions, and boards of 10 x 10 cells.

Shapes: N environments, C channels.
"""

from typing import Any, ClassVar

import numpy as np
from gymnasium.spaces import Box, Discrete
from keras import ops

from kit import checks, random
from kit.backend import Tensor
from kit.rl.functional import FunctionalEnv

SIZE = 10  # rows and columns
CELL = 16  # pixels of a cell's side in a picture
# Red, green and blue of the ground, and of the things on each board, the player first.
GROUND = (23, 27, 38)
COLORS = (
    (76, 201, 240),
    (255, 255, 255),
    (122, 132, 150),
    (244, 114, 43),
    (229, 56, 59),
    (128, 185, 24),
    (199, 125, 255),
    (255, 214, 10),
    (0, 180, 160),
    (255, 143, 171),
)
NOTHING, LEFT, UP, RIGHT, DOWN, FIRE = range(6)
ACCEPTED = {
    "num_envs": checks.SIZE,
    "sticky_action_prob": checks.FRACTION,
    "ramping": checks.BOOL,
    "minimal_actions": checks.BOOL,
    "boards": checks.array(interval="[0, 1]"),
}


class BoardGame(FunctionalEnv):
    """N games; a subclass defines the rules in `begin`, `act` and `observe`.

    Args:
        num_envs: N. Defaults to 1.
        sticky_action_prob: Probability that the game repeats the last action instead of
            the given one. Defaults to 0.1.
        ramping: Whether the game gets more difficult with time, if it has this rule.
            Defaults to `True`.
        minimal_actions: Whether to offer only the actions that have an effect in this
            game. Defaults to `False`: nothing (0), left (1), up (2), right (3), down
            (4), fire (5).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """

    channels: ClassVar[tuple[str, ...]]
    useful_actions: ClassVar[tuple[int, ...]]
    num_draws: ClassVar[tuple[int, int]] = (0, 0)  # for `begin`, and for `act`

    def __init__(
        self,
        num_envs: int = 1,
        sticky_action_prob: float = 0.1,
        ramping: bool = True,
        minimal_actions: bool = False,
    ):
        checks.check(self, locals(), ACCEPTED)
        super().__init__(num_envs)
        self.sticky_action_prob = float(sticky_action_prob)
        self.ramping = bool(ramping)
        self.actions = self.useful_actions if minimal_actions else tuple(range(6))
        self.action_space = Discrete(len(self.actions))
        shape = (SIZE, SIZE, len(self.channels))
        dtype: Any = np.bool_  # valid in Gymnasium, but not by its annotation
        self.observation_space = Box(0, 1, shape, dtype)

    def begin(self, drawn: Tensor) -> dict[str, Tensor]:
        """Returns first states, from uniform numbers `(num, num_draws[0])`."""
        raise self._undefined("begin")

    def act(
        self, state: dict[str, Tensor], action: Tensor, drawn: Tensor
    ) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Makes one step of the game.

        Args:
            state: Integers and booleans `(N, ...)` by name.
            action: `(N,)`, each one of the six.
            drawn: Uniform numbers in [0, 1), `(N, num_draws[1])`.

        Returns:
            The next state; points `(N,)`, integers or booleans; whether the game is
            over, `(N,)`.
        """
        raise self._undefined("act")

    def reset(self, key, num):
        """Begins games."""
        # Draw at least one number, as `begin` takes the number of games from its shape.
        shape = (num, max(self.num_draws[0], 1))
        state = self.begin(random.uniform(key, shape, dtype="float32"))
        return {**state, "last_action": ops.zeros((num,), "int32")}

    def step(self, state, action, key):
        """Makes one step, with the given action or with the last one."""
        action = ops.cast(action, "int32")
        if len(self.actions) < 6:
            action = ops.take(self.actions, action)
        shape = (action.shape[0], 1 + self.num_draws[1])
        drawn = random.uniform(key, shape, dtype="float32")
        repeats = drawn[:, 0] < self.sticky_action_prob
        action = ops.where(repeats, state["last_action"], action)
        after, reward, over = self.act(state, action, drawn[:, 1:])
        after = {**after, "last_action": action}
        return after, ops.cast(reward, "float32"), over, ops.zeros_like(over)

    def render(self, state):
        """Returns a picture of each game, uint8 `(N, 160, 160, 3)`; see `paint`."""
        cells = paint(ops.convert_to_numpy(self.observe(state)))
        pictures = np.rint(255 * cells).astype("uint8")
        return pictures.repeat(CELL, axis=1).repeat(CELL, axis=2)


def paint(boards: np.ndarray) -> np.ndarray:
    """Returns boards as a picture, with a colour for each of them.

    Where several things are in a cell, that of the first board is on top.

    Args:
        boards: Booleans `(..., C)`, C up to 10, or how likely it is that something is
            there, in [0, 1].

    Returns:
        Red, green and blue in [0, 1], float32 `(..., 3)`.
    """
    checks.check("paint", locals(), ACCEPTED)
    there = np.asarray(boards, "float32")[..., None]
    colors = np.array((GROUND, *COLORS), "float32") / 255
    picture = np.broadcast_to(colors[0], (*there.shape[:-2], 3))
    for channel in reversed(range(there.shape[-2])):
        color = colors[1 + channel]
        picture = picture + there[..., channel, :] * (color - picture)
    return picture


def full(drawn: Tensor, value: int) -> Tensor:
    """Returns `value` for each game, int32 `(N,)`."""
    return ops.full((drawn.shape[0],), value, "int32")


def integer(mask: Tensor) -> Tensor:
    """Returns booleans as 0 and 1."""
    return ops.cast(mask, "int32")


def moved(place: Tensor, back: Tensor, forth: Tensor, low: int, high: int) -> Tensor:
    """Returns a position moved one cell back or forth, within limits."""
    return ops.clip(place + integer(forth) - integer(back), low, high)


def pick(drawn: Tensor, count: Tensor | int) -> Tensor:
    """Returns an integer in [0, count) for a uniform number in [0, 1)."""
    return ops.cast(ops.floor(drawn * ops.cast(count, "float32")), "int32")


def marks(place: Tensor, size: int = SIZE) -> Tensor:
    """Returns `(..., size)` booleans with `True` at the position, if it is inside."""
    return ops.equal(ops.expand_dims(place, -1), ops.arange(size, dtype="int32"))


def cell(row: Tensor, column: Tensor) -> Tensor:
    """Returns a board with `True` in one cell."""
    return ops.expand_dims(marks(row), -1) & ops.expand_dims(marks(column), -2)


def shifted(board: Tensor, down: int = 0, right: int = 0) -> Tensor:
    """Returns a board with all objects moved one cell; those that leave it vanish."""
    if down:
        edge = ops.zeros_like(board[:, :1])
        parts = [edge, board[:, :-1]] if down > 0 else [board[:, 1:], edge]
        return ops.concatenate(parts, axis=1)
    edge = ops.zeros_like(board[:, :, :1])
    parts = [edge, board[:, :, :-1]] if right > 0 else [board[:, :, 1:], edge]
    return ops.concatenate(parts, axis=2)


def inner_rows(rows: Tensor) -> Tensor:
    """Returns a board from its rows 1 to 8, `(N, 8, 10, ...)`."""
    edge = ops.zeros_like(rows[:, :1])
    return ops.concatenate([edge, rows, edge], axis=1)
