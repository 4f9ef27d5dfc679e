"""Freeway: cross eight lanes of traffic."""

from keras import ops

from kit.envs.minatar.board import (
    DOWN,
    NOTHING,
    UP,
    BoardGame,
    cell,
    full,
    inner_rows,
    marks,
    moved,
    pick,
)

LANES = 8  # rows 1 to 8, one car in each
COLUMN = 4  # the chicken's column
PAUSE = 3  # steps between two moves of the chicken
TIME_LIMIT = 2500


class Freeway(BoardGame):
    """A point for each crossing; a game has 2,501 steps.

    A car that hits the chicken puts it back to the start. Cars that leave the board
    reenter on the other side. After each crossing of the chicken, they get new speeds
    and directions.

    Args:
        num_envs: See `kit.envs.minatar.board.BoardGame`.
        sticky_action_prob: See there.
        ramping: Has no effect in this game.
        minimal_actions: Nothing, up, down.
    """

    channels = ("chicken", "car", "speed1", "speed2", "speed3", "speed4", "speed5")
    useful_actions = (NOTHING, UP, DOWN)
    num_draws = (2 * LANES, 2 * LANES)

    def begin(self, drawn):
        """Begins at the bottom."""
        speed = _draw_speeds(drawn)
        return {
            "y": full(drawn, 9),
            "place": ops.zeros_like(speed),
            # Negative: to the left. A car rests |speed| steps between two moves.
            "speed": speed,
            "timer": ops.abs(speed),
            "move_timer": full(drawn, PAUSE),
            "time_left": full(drawn, TIME_LIMIT),
        }

    def act(self, state, action, drawn):
        """Moves the chicken, then the cars."""
        # 1. The chicken.
        ready = state["move_timer"] == 0
        up, down = (action == UP) & ready, (action == DOWN) & ready
        y = moved(state["y"], up, down, 0, 9)
        across = y == 0
        y = ops.where(across, 9, y)
        new = across[:, None]
        speed = ops.where(new, _draw_speeds(drawn), state["speed"])
        timer = ops.where(new, ops.abs(speed), state["timer"])
        # 2. The cars, of which at most one is in the chicken's lane.
        moves = timer == 0
        place = ops.where(speed > 0, state["place"] + 1, state["place"] - 1)
        place = ops.where(moves, (place + 10) % 10, state["place"])
        meets = (state["place"] == COLUMN) | (place == COLUMN)
        hit = ops.any(meets & marks(y - 1, LANES), axis=1)
        # 3. Timers.
        pause = ops.where(up | down, PAUSE, state["move_timer"])
        time_left = state["time_left"] - 1
        after = {
            "y": ops.where(hit, 9, y),
            "place": place,
            "speed": speed,
            "timer": ops.where(moves, ops.abs(speed), timer - 1),
            "move_timer": ops.maximum(pause - 1, 0),
            "time_left": time_left,
        }
        return after, across, time_left < 0

    def observe(self, state):
        """Returns the seven boards; a mark behind each car encodes its speed."""
        place, speed = state["place"], state["speed"]
        behind = (place + ops.where(speed > 0, 9, 11)) % 10
        car = ops.expand_dims(marks(place), -1)
        trail = ops.expand_dims(marks(behind), -1)
        trail = trail & marks(ops.abs(speed) - 1, 5)[:, :, None]
        lanes = inner_rows(ops.concatenate([car, trail], axis=-1))
        chicken = cell(state["y"], ops.full_like(state["y"], COLUMN))
        return ops.concatenate([ops.expand_dims(chicken, -1), lanes], axis=-1)


def _draw_speeds(drawn):
    """Returns speeds 1 to 5, to the left or to the right, for each lane."""
    speed = 1 + pick(drawn[:, :LANES], 5)
    return ops.where(drawn[:, LANES:] < 0.5, -speed, speed)
