"""Asterix: collect gold, and keep out of the way of enemies."""

from keras import ops

from kit.envs.minatar.board import (
    DOWN,
    LEFT,
    NOTHING,
    RIGHT,
    UP,
    BoardGame,
    cell,
    full,
    inner_rows,
    integer,
    marks,
    moved,
    pick,
)

LANES = 8  # rows 1 to 8, each with at most one object at a time
RAMP_INTERVAL = 100


class Asterix(BoardGame):
    """A point for each piece of gold; the game is over when an enemy is touched.

    Gold and enemies enter from either side, each in its own lane, and cross the board.
    With time, they become faster and more frequent.

    Args:
        num_envs: See `kit.envs.minatar.board.BoardGame`.
        sticky_action_prob: See there.
        ramping: See there.
        minimal_actions: All except fire.
    """

    channels = ("player", "enemy", "trail", "gold")
    useful_actions = (NOTHING, LEFT, UP, RIGHT, DOWN)
    num_draws = (0, 3)

    def begin(self, drawn):
        """Begins in the middle of an empty board."""
        lanes = ops.zeros((drawn.shape[0], LANES), "bool")
        return {
            "x": full(drawn, 5),
            "y": full(drawn, 5),
            "there": lanes,  # (N, lanes) whether there is an object
            "place": integer(lanes),
            "to_right": lanes,
            "gold": lanes,
            "spawn_speed": full(drawn, 10),
            "spawn_timer": full(drawn, 10),
            "move_speed": full(drawn, 5),
            "move_timer": full(drawn, 5),
            "ramp_timer": full(drawn, RAMP_INTERVAL),
            "ramp": full(drawn, 0),
        }

    def act(self, state, action, drawn):
        """Lets an object enter, moves the player, then the objects."""
        state, spawns = self._spawn(state, drawn)
        x = moved(state["x"], action == LEFT, action == RIGHT, 0, 9)
        y = moved(state["y"], action == UP, action == DOWN, 1, 8)
        in_lane = marks(y - 1, LANES)
        there, place, gold = state["there"], state["place"], state["gold"]
        # 1. Objects that the player moved onto.
        touched = there & in_lane & (place == x[:, None])
        there = there & ~(touched & gold)
        # 2. Objects that move onto the player, or off the board.
        moves = state["move_timer"] == 0
        step = ops.where(state["to_right"], 1, -1)
        place = place + step * integer(moves)[:, None]
        there = there & (place >= 0) & (place <= 9)
        touched_again = there & in_lane & (place == x[:, None]) & moves[:, None]
        there = there & ~(touched_again & gold)
        points = ops.sum(integer((touched | touched_again) & gold), axis=1)
        over = ops.any((touched | touched_again) & ~gold, axis=1)
        # 3. Timers and difficulty.
        speeds = (state["spawn_speed"], state["move_speed"])
        spawn_timer = ops.where(spawns, speeds[0], state["spawn_timer"]) - 1
        move_timer = ops.where(moves, speeds[1], state["move_timer"]) - 1
        after = {
            "x": x,
            "y": y,
            "there": there,
            "place": place,
            "to_right": state["to_right"],
            "gold": gold,
            "spawn_timer": spawn_timer,
            "move_timer": move_timer,
            **self._ramp(state),
        }
        return after, points, over

    def _spawn(self, state, drawn):
        """Lets an object enter one of the empty lanes when it is time."""
        spawns = state["spawn_timer"] == 0
        to_right, gold = drawn[:, 0] < 1 / 2, drawn[:, 1] < 1 / 3
        free = integer(~state["there"])
        order = ops.cumsum(free, axis=1)  # i at the i-th empty lane
        chosen = pick(drawn[:, 2], order[:, -1]) + 1
        new = (free == 1) & (order == chosen[:, None]) & spawns[:, None]
        entry = ops.where(to_right, 0, 9)
        state = {
            **state,
            "there": state["there"] | new,
            "place": ops.where(new, entry[:, None], state["place"]),
            "to_right": ops.where(new, to_right[:, None], state["to_right"]),
            "gold": ops.where(new, gold[:, None], state["gold"]),
        }
        return state, spawns

    def _ramp(self, state):
        """Every 102 steps, objects become more frequent, every 204 steps faster."""
        names = ("spawn_speed", "move_speed", "ramp_timer", "ramp")
        spawn_speed, move_speed, timer, ramp = (state[name] for name in names)
        if not self.ramping:
            return dict(zip(names, (spawn_speed, move_speed, timer, ramp), strict=True))
        can = (spawn_speed > 1) | (move_speed > 1)
        harder = can & (timer < 0)
        faster = harder & (move_speed > 1) & (ramp % 2 == 1)
        more = harder & (spawn_speed > 1)
        return {
            "spawn_speed": spawn_speed - integer(more),
            "move_speed": move_speed - integer(faster),
            "ramp_timer": ops.where(harder, RAMP_INTERVAL, timer - integer(can)),
            "ramp": ramp + integer(harder),
        }

    def observe(self, state):
        """Returns the four boards."""
        there = state["there"]
        place = marks(state["place"]) & there[:, :, None]
        behind = state["place"] - ops.where(state["to_right"], 1, -1)
        gold = state["gold"][:, :, None]
        lanes = (place & ~gold, marks(behind) & there[:, :, None], place & gold)
        lanes = inner_rows(ops.stack(lanes, axis=-1))
        player = ops.expand_dims(cell(state["y"], state["x"]), -1)
        return ops.concatenate([player, lanes], axis=-1)
