"""Space Invaders: shoot aliens before they reach the ground."""

from keras import ops

from kit.envs.minatar.board import (
    FIRE,
    LEFT,
    NOTHING,
    RIGHT,
    BoardGame,
    cell,
    full,
    integer,
    marks,
    moved,
    shifted,
)

COOL_DOWN = 5  # steps between two shots of the player
SHOT_INTERVAL = 10  # steps between two shots of the aliens
MOVE_INTERVAL = 12  # steps between two moves of the aliens, if many are left
FASTEST = 6


class SpaceInvaders(BoardGame):
    """A point for each alien; the game is over when the player is hit.

    Aliens and their bullets hit the player. The game is also over when aliens land.
    Aliens move to one side, then down, then to the other side; the fewer are left, the
    faster they move. The nearest one shoots. When none is left, a faster wave comes.

    Args:
        num_envs: See `kit.envs.minatar.board.BoardGame`.
        sticky_action_prob: See there.
        ramping: See there.
        minimal_actions: Nothing, left, right, fire.
    """

    channels = (
        "cannon",
        "alien",
        "alien_left",
        "alien_right",
        "friendly_bullet",
        "enemy_bullet",
    )
    useful_actions = (NOTHING, LEFT, RIGHT, FIRE)

    def begin(self, drawn):
        """Begins with four rows of aliens."""
        num = drawn.shape[0]
        return {
            "x": full(drawn, 5),
            "bullets": ops.zeros((num, 10, 10), "bool"),
            "alien_bullets": ops.zeros((num, 10, 10), "bool"),
            "aliens": ops.broadcast_to(_wave(), (num, 10, 10)),
            "to_right": ops.zeros((num,), "bool"),
            "interval": full(drawn, MOVE_INTERVAL),
            "move_timer": full(drawn, MOVE_INTERVAL),
            "alien_shot_timer": full(drawn, SHOT_INTERVAL),
            "shot_timer": full(drawn, 0),
            "ramp": full(drawn, 0),
        }

    def act(self, state, action, drawn):
        """Moves the player and all bullets, then the aliens; removes hit aliens."""
        # 1. The player, and bullets. A new bullet starts one row above the player.
        x = moved(state["x"], action == LEFT, action == RIGHT, 0, 9)
        fires = (action == FIRE) & (state["shot_timer"] == 0)
        here = cell(ops.full_like(x, 9), x)
        bullets = shifted(state["bullets"] | (here & _wide(fires)), down=-1)
        alien_bullets = shifted(state["alien_bullets"], down=1)
        hits = alien_bullets
        # 2. Aliens.
        aliens = state["aliens"]
        hits = hits | aliens
        moves = state["move_timer"] == 0
        count = ops.sum(integer(aliens), axis=(1, 2))
        move_timer = ops.where(
            moves, ops.minimum(count, state["interval"]), state["move_timer"]
        )
        to_right = state["to_right"]
        edges = ops.any(aliens, axis=1)
        at_edge = moves & ops.where(to_right, edges[:, 9], edges[:, 0])
        landed = at_edge & ops.any(aliens[:, 9], axis=1)
        # `roll` lets aliens reenter at the opposite edge, which has no effect: at the
        # bottom the game is over, and at the sides they turn before.
        aside = ops.where(
            _wide(to_right), ops.roll(aliens, 1, axis=2), ops.roll(aliens, -1, axis=2)
        )
        aside = ops.where(_wide(moves), aside, aliens)
        aliens = ops.where(_wide(at_edge), ops.roll(aliens, 1, axis=1), aside)
        to_right = to_right ^ at_edge
        hits = ops.any((hits | aliens) & here, axis=(1, 2))
        # 3. The nearest alien shoots.
        shoots = state["alien_shot_timer"] == 0
        alien_shot_timer = ops.where(shoots, SHOT_INTERVAL, state["alien_shot_timer"])
        alien_bullets = alien_bullets | (_nearest(aliens, x) & _wide(shoots))
        # 4. Hits.
        killed = aliens & bullets
        aliens, bullets = aliens & ~killed, bullets & ~killed
        # 5. Timers, and the next wave.
        shot_timer = ops.where(fires, COOL_DOWN, state["shot_timer"])
        cleared = ~ops.any(aliens, axis=(1, 2))
        harder = integer(cleared & (state["interval"] > FASTEST)) * int(self.ramping)
        after = {
            "x": x,
            "bullets": bullets,
            "alien_bullets": alien_bullets,
            "aliens": aliens | (_wave() & _wide(cleared)),
            "to_right": to_right,
            "interval": state["interval"] - harder,
            "move_timer": move_timer - 1,
            "alien_shot_timer": alien_shot_timer - 1,
            "shot_timer": ops.maximum(shot_timer - 1, 0),
            "ramp": state["ramp"] + harder,
        }
        return after, ops.sum(integer(killed), axis=(1, 2)), hits | landed

    def observe(self, state):
        """Returns the six boards."""
        aliens, to_right = state["aliens"], _wide(state["to_right"])
        boards = (
            cell(ops.full_like(state["x"], 9), state["x"]),
            aliens,
            aliens & ~to_right,
            aliens & to_right,
            state["bullets"],
            state["alien_bullets"],
        )
        return ops.stack(boards, axis=-1)


def _wide(mask):
    """Returns a mask `(N,)` that broadcasts over boards."""
    return mask[:, None, None]


def _wave():
    index = ops.arange(10, dtype="int32")
    return (index[:, None] < 4) & (index >= 2) & (index < 8)


def _nearest(aliens, x):
    """Marks the lowest alien of the nearest column; of two equally near, the left."""
    index = ops.arange(10, dtype="int32")
    lowest = ops.max(ops.where(aliens, index[:, None], -1), axis=1)
    away = index - x[:, None]
    distance = 2 * ops.abs(away) + integer(away > 0)
    distance = ops.where(lowest >= 0, distance, 100)
    nearest = distance == ops.min(distance, axis=1, keepdims=True)
    return nearest[:, None] & ops.swapaxes(marks(lowest), 1, 2)
