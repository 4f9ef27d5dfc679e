"""Breakout: bounce a ball off a paddle, and break bricks with it."""

from keras import ops

from kit.envs.minatar.board import (
    LEFT,
    NOTHING,
    RIGHT,
    BoardGame,
    cell,
    full,
    integer,
    marks,
    moved,
)


class Breakout(BoardGame):
    """A point for each brick; the game is over when the ball passes the paddle.

    The ball moves diagonally, one cell per step. Three new rows of bricks appear when
    the last brick is gone and the ball is at the bottom.

    Args:
        num_envs: See `kit.envs.minatar.board.BoardGame`.
        sticky_action_prob: See there.
        ramping: Has no effect in this game.
        minimal_actions: Nothing, left, right.
    """

    channels = ("paddle", "ball", "trail", "brick")
    useful_actions = (NOTHING, LEFT, RIGHT)
    num_draws = (1, 0)

    def begin(self, drawn):
        """Begins with the ball on one side below the bricks, moving down."""
        on_right = drawn[:, 0] >= 0.5
        x = 9 * integer(on_right)
        y = full(drawn, 3)
        return {
            "paddle": full(drawn, 4),
            "x": x,
            "y": y,
            "dx": 1 - 2 * integer(on_right),
            "dy": full(drawn, 1),
            "last_x": x,
            "last_y": y,
            # Whether the ball was at a brick in the last step; then it breaks none now.
            "struck": ops.zeros_like(on_right),
            "bricks": ops.broadcast_to(_wall(), (drawn.shape[0], 10, 10)),
        }

    def act(self, state, action, drawn):
        """Moves the paddle, then the ball."""
        paddle = moved(state["paddle"], action == LEFT, action == RIGHT, 0, 9)
        last_x, last_y, bricks = state["x"], state["y"], state["bricks"]
        # 1. Walls.
        x, y = last_x + state["dx"], last_y + state["dy"]
        side = (x < 0) | (x > 9)
        top = y < 0
        x, y = ops.clip(x, 0, 9), ops.maximum(y, 0)
        # 2. Bricks.
        here = cell(y, x)
        at_brick = ops.any(bricks & here, axis=(1, 2)) & ~top
        breaks = at_brick & ~state["struck"]
        bricks = bricks & ~(here & breaks[:, None, None])
        # 3. The bottom: the ball bounces if it is above the paddle, or at its corner.
        bottom = (y == 9) & ~at_brick
        cleared = bottom & ~ops.any(bricks, axis=(1, 2))
        bricks = bricks | (cleared[:, None, None] & _wall())
        below = bottom & (last_x == paddle)
        corner = bottom & ~below & (x == paddle)
        bounces = breaks | below | corner
        after = {
            "paddle": paddle,
            "x": x,
            "y": ops.where(bounces, last_y, y),
            "dx": ops.where(side ^ corner, -state["dx"], state["dx"]),
            "dy": ops.where(top | bounces, -state["dy"], state["dy"]),
            "last_x": last_x,
            "last_y": last_y,
            "struck": at_brick,
            "bricks": bricks,
        }
        return after, breaks, bottom & ~below & ~corner

    def observe(self, state):
        """Returns the four boards."""
        bottom = ops.expand_dims(marks(ops.full_like(state["paddle"], 9)), -1)
        boards = (
            bottom & marks(state["paddle"])[:, None],
            cell(state["y"], state["x"]),
            cell(state["last_y"], state["last_x"]),
            state["bricks"],
        )
        return ops.stack(boards, axis=-1)


def _wall():
    row = ops.arange(10, dtype="int32")[:, None]
    return ops.broadcast_to((row >= 1) & (row <= 3), (10, 10))
