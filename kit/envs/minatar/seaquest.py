"""Seaquest: a submarine that rescues divers, and shoots fish and submarines.

Enemies, divers and the player's bullets have slots, for as many as can exist at once.
At most, one enemy enters in each step and leaves after 29 steps. A diver enters every
30th step and leaves after 59; the player shoots every fifth step, and a bullet leaves
after 9. So there are at most 30 enemies, 2 divers and 2 bullets. Enemies' bullets all
move equally, and nothing stops them: they are on two boards, one for each direction.

Shapes: N environments, E slots for enemies.
"""

from keras import ops

from kit.envs.minatar.board import (
    DOWN,
    FIRE,
    LEFT,
    NOTHING,
    RIGHT,
    UP,
    BoardGame,
    cell,
    full,
    integer,
    marks,
    moved,
    pick,
    shifted,
)

ENEMIES = 30
COOL_DOWN = 5  # steps between two shots of the player
SHOT_INTERVAL = 10  # steps between two shots of an enemy
DIVER_INTERVAL = 5  # steps between two moves of a diver
DIVER_SPAWN_INTERVAL = 30
MAX_DIVERS = 6
MAX_OXYGEN = 200
LATE = 2**30  # later than any step


class Seaquest(BoardGame):
    """A point for each enemy that is shot, and more for surfacing with six divers.

    The game is over when the player is hit, runs out of oxygen, or surfaces without a
    diver. Surfacing costs one diver and refills the oxygen. With six divers, it costs
    all of them and gives up to 10 points, more if more oxygen is left. After each
    surfacing, enemies become more frequent and faster.

    As in the package, the number of divers is -1 after surfacing with six.

    Args:
        num_envs: See `kit.envs.minatar.board.BoardGame`.
        sticky_action_prob: See there.
        ramping: See there.
        minimal_actions: All six.
    """

    channels = (
        "sub_front",
        "sub_back",
        "friendly_bullet",
        "trail",
        "enemy_bullet",
        "enemy_fish",
        "enemy_sub",
        "oxygen_gauge",
        "diver_gauge",
        "diver",
    )
    useful_actions = (NOTHING, LEFT, UP, RIGHT, DOWN, FIRE)
    num_draws = (0, 5)

    def begin(self, drawn):
        """Begins at the surface, alone."""
        num = drawn.shape[0]
        none, two = ops.zeros((num, ENEMIES), "bool"), ops.zeros((num, 2), "bool")
        return {
            "x": full(drawn, 5),
            "y": full(drawn, 0),
            "to_right": ops.zeros((num,), "bool"),
            "surfaced": ops.ones((num,), "bool"),
            "oxygen": full(drawn, MAX_OXYGEN),
            "divers": full(drawn, 0),  # on board
            "spawn_speed": full(drawn, 20),
            "spawn_timer": full(drawn, 20),
            "diver_timer": full(drawn, DIVER_SPAWN_INTERVAL),
            "move_speed": full(drawn, 5),
            "shot_timer": full(drawn, 0),
            "ramp": full(drawn, 0),
            "time": full(drawn, 0),
            # Bullets and divers: the older one first.
            **_slots("bullet", two),
            **_slots("diver", two),
            "diver_wait": integer(two),
            **_slots("enemy", none),
            "enemy_is_sub": none,
            "enemy_wait": integer(none),
            "enemy_shot_wait": integer(none),
            "enemy_since": integer(none),  # the step in which it entered
            "bullets_left": ops.zeros((num, 10, 10), "bool"),
            "bullets_right": ops.zeros((num, 10, 10), "bool"),
        }

    def act(self, state, action, drawn):
        """Lets objects enter; moves the player, its bullets, divers and enemies."""
        state = {**state, "time": state["time"] + 1}
        state = _spawn_diver(_spawn_enemy(state, drawn), drawn)
        state = _move_player(state, action)
        state, points = _move_bullets(state)
        state = _move_divers(state)
        state, hit, more_points = _move_enemies(state)
        state, shot = _move_enemy_bullets(state)
        state, suffocated, even_more_points = self._breathe(state)
        return state, points + more_points + even_more_points, hit | shot | suffocated

    def _breathe(self, state):
        """Uses oxygen below the surface; refills it at the surface, for a diver."""
        oxygen, divers = state["oxygen"], state["divers"]
        below = state["y"] > 0
        arrives = ~below & ~state["surfaced"]
        over = (oxygen <= 0) | (arrives & (divers == 0))
        surfaces = arrives & (divers != 0)
        delivers = surfaces & (divers == MAX_DIVERS)
        points = ops.where(delivers, oxygen * 10 // MAX_OXYGEN, 0)
        divers = ops.where(delivers, 0, divers) - integer(surfaces)
        spawn_speed, move_speed, ramp = (
            state[name] for name in ("spawn_speed", "move_speed", "ramp")
        )
        harder = surfaces & ((spawn_speed > 1) | (move_speed > 2))
        harder = harder & self.ramping
        faster = harder & (move_speed > 2) & (ramp % 2 == 1)
        state = {
            **state,
            "oxygen": ops.where(surfaces, MAX_OXYGEN, oxygen - integer(below)),
            "divers": divers,
            "surfaced": ~below & (state["surfaced"] | surfaces),
            "spawn_speed": spawn_speed - integer(harder & (spawn_speed > 1)),
            "move_speed": move_speed - integer(faster),
            "ramp": ramp + integer(harder),
        }
        return state, over, points

    def observe(self, state):
        """Returns the ten boards."""
        x, y = state["x"], state["y"]
        back = ops.where(state["to_right"], x - 1, x + 1)
        index = ops.arange(10, dtype="int32")
        bottom = (index == 9)[:, None]
        air = ops.maximum(state["oxygen"], 0) * 10 // MAX_OXYGEN
        air = index < air[:, None]
        divers = (index >= 9 - state["divers"][:, None]) & (index < 9)
        fish, subs, divers_at, trail = _draw(state)
        boards = (
            cell(y, x),
            cell(y, back),
            _board(state, "bullet"),
            trail,
            state["bullets_left"] | state["bullets_right"],
            fish,
            subs,
            bottom & air[:, None],
            bottom & divers[:, None],
            divers_at,
        )
        return ops.stack(boards, axis=-1)


# --- Slots ----------------------------------------------------------------------

COMMON = ("there", "x", "y", "to_right")


def _slots(kind, none):
    """Returns empty slots for objects of a kind."""
    zeros = integer(none)
    values = (none, zeros, zeros, none)
    return {f"{kind}_{name}": x for name, x in zip(COMMON, values, strict=True)}


def _get(state, kind):
    return tuple(state[f"{kind}_{name}"] for name in COMMON)


def _board(state, kind, which=None, behind=0):
    """Marks the cells of objects of a kind, or the cells behind them."""
    there, x, y, to_right = _get(state, kind)
    there = there if which is None else there & which
    if behind:
        x = x - ops.where(to_right, 1, -1)
    # Count the objects in each cell. An integer has 6 bits for each of 5 cells, which
    # needs a fifth of the numbers of a board for each object.
    halves = marks(y)[:, :, :, None] & marks(x // 5, 2)[:, :, None]
    one = ops.where(there, ops.left_shift(1, 6 * (x % 5)), 0)
    counts = ops.sum(ops.where(halves, one[:, :, None, None], 0), axis=1)
    places = 6 * ops.arange(5, dtype="int32")
    counts = ops.bitwise_and(ops.right_shift(counts[..., None], places), 63)
    return ops.reshape(counts > 0, (-1, 10, 10))


def _draw(state):
    """Returns the boards of fish, submarines, divers, and of the trails behind them."""
    is_sub = state["enemy_is_sub"]
    trail = _board(state, "enemy", behind=1) | _board(state, "diver", behind=1)
    fish, subs = _board(state, "enemy", ~is_sub), _board(state, "enemy", is_sub)
    return fish, subs, _board(state, "diver"), trail


def _push(state, kind, new, values):
    """Puts a new object into the second slot; the one there moves to the first."""
    after = dict(state)
    for name, value in values.items():
        slots = state[f"{kind}_{name}"]
        pushed = ops.stack([slots[:, 1], value], axis=1)
        after[f"{kind}_{name}"] = ops.where(new[:, None], pushed, slots)
    return after


def _at(state, kind):
    """Returns which objects of a kind are at the player's position."""
    there, x, y, _ = _get(state, kind)
    return there & (x == state["x"][:, None]) & (y == state["y"][:, None])


# --- The parts of a step --------------------------------------------------------


def _spawn_enemy(state, drawn):
    """Lets an enemy enter when it is time, unless it would meet another one."""
    due = state["spawn_timer"] == 0
    to_right, is_sub = drawn[:, 0] < 1 / 2, drawn[:, 1] < 1 / 3
    y = 1 + pick(drawn[:, 2], 8)
    there, x, rows, directions = _get(state, "enemy")
    meets = there & (rows == y[:, None]) & (directions ^ to_right[:, None])
    comes = due & ~ops.any(meets, axis=1)
    free = integer(~there)
    new = (free == 1) & (ops.cumsum(free, axis=1) == 1) & comes[:, None]
    values = {
        "enemy_x": ops.where(to_right, 0, 9),
        "enemy_y": y,
        "enemy_to_right": to_right,
        "enemy_is_sub": is_sub,
        "enemy_wait": state["move_speed"],
        "enemy_shot_wait": ops.full_like(y, SHOT_INTERVAL),
        "enemy_since": state["time"],
    }
    values = {
        name: ops.where(new, value[:, None], state[name])
        for name, value in values.items()
    }
    timer = ops.where(due, state["spawn_speed"], state["spawn_timer"])
    timer = ops.maximum(timer - 1, 0)
    return {**state, **values, "enemy_there": there | new, "spawn_timer": timer}


def _spawn_diver(state, drawn):
    """Lets a diver enter when it is time."""
    due = state["diver_timer"] == 0
    to_right = drawn[:, 3] < 1 / 2
    y = 1 + pick(drawn[:, 4], 8)
    values = {
        "there": due,
        "x": ops.where(to_right, 0, 9),
        "y": y,
        "to_right": to_right,
        "wait": ops.full_like(y, DIVER_INTERVAL),
    }
    timer = ops.where(due, DIVER_SPAWN_INTERVAL, state["diver_timer"])
    timer = ops.maximum(timer - 1, 0)
    return {**_push(state, "diver", due, values), "diver_timer": timer}


def _move_player(state, action):
    """Moves the player, or fires."""
    fires = (action == FIRE) & (state["shot_timer"] == 0)
    x, y, to_right = state["x"], state["y"], state["to_right"]
    values = {"there": fires, "x": x, "y": y, "to_right": to_right}
    timer = ops.where(fires, COOL_DOWN, state["shot_timer"])
    left, right = action == LEFT, action == RIGHT
    return {
        **_push(state, "bullet", fires, values),
        "x": moved(x, left, right, 0, 9),
        "y": moved(y, action == UP, action == DOWN, 0, 8),
        "to_right": (to_right | right) & ~left,
        "shot_timer": ops.maximum(timer - 1, 0),
    }


def _move_bullets(state):
    """Moves the player's bullets, the newer one first; each kills one enemy."""
    there, x, y, to_right = _get(state, "bullet")
    x = x + ops.where(to_right, 1, -1)
    there = there & (x >= 0) & (x <= 9)
    alive, enemy_x, enemy_y, _ = _get(state, "enemy")
    # It kills fish before submarines, and earlier enemies before later ones.
    rank = state["enemy_since"] + LATE // 2 * integer(state["enemy_is_sub"])
    left = [there[:, 0], there[:, 1]]
    points = 0
    for i in (1, 0):
        hit = alive & (enemy_x == x[:, i, None]) & (enemy_y == y[:, i, None])
        hit = hit & left[i][:, None]
        order = ops.where(hit, rank, LATE)
        killed = hit & (order == ops.min(order, axis=1, keepdims=True))
        alive = alive & ~killed
        success = ops.any(killed, axis=1)
        left[i] = left[i] & ~success
        points = points + integer(success)
    there = ops.stack(left, axis=1)
    return {**state, "bullet_there": there, "bullet_x": x, "enemy_there": alive}, points


def _move_divers(state):
    """Moves divers, and picks them up: the newer one first, if there is room."""
    there, x, y, to_right = _get(state, "diver")
    before = _at(state, "diver")
    moves = there & (state["diver_wait"] == 0)
    x = ops.where(moves, x + ops.where(to_right, 1, -1), x)
    inside = there & (x >= 0) & (x <= 9)
    state = {**state, "diver_there": inside, "diver_x": x}
    meets = integer(before | (_at(state, "diver") & moves))
    room = MAX_DIVERS - state["divers"]
    newer = meets[:, 1] * integer(room > 0)
    older = meets[:, 0] * integer(room > newer)
    taken = ops.stack([older, newer], axis=1) == 1
    wait = ops.where(moves, DIVER_INTERVAL, state["diver_wait"] - 1)
    return {
        **state,
        "diver_there": inside & ~taken,
        "diver_wait": wait,
        "divers": state["divers"] + older + newer,
    }


def _move_enemies(state):
    """Moves enemies; they shoot, hit the player, or move onto the player's bullets."""
    there, x, y, to_right = _get(state, "enemy")
    is_sub = state["enemy_is_sub"]
    hit = ops.any(_at(state, "enemy"), axis=1)
    moves = there & (state["enemy_wait"] == 0)
    x = ops.where(moves, x + ops.where(to_right, 1, -1), x)
    alive = there & (x >= 0) & (x <= 9)
    state = {**state, "enemy_there": alive, "enemy_x": x}
    at_player = _at(state, "enemy") & moves
    hit = hit | ops.any(at_player, axis=1)
    # Enemies that moved onto a bullet: the older bullet first; it kills submarines
    # before fish, and later enemies before earlier ones.
    rank = state["enemy_since"] + LATE // 2 * integer(is_sub)
    exposed = alive & moves & ~at_player
    bullets, bullet_x, bullet_y, _ = _get(state, "bullet")
    left = []
    points = 0
    for i in (0, 1):
        struck = exposed & (x == bullet_x[:, i, None]) & (y == bullet_y[:, i, None])
        struck = struck & bullets[:, i, None]
        order = ops.where(struck, rank, -1)
        killed = struck & (order == ops.max(order, axis=1, keepdims=True))
        alive, exposed = alive & ~killed, exposed & ~killed
        success = ops.any(killed, axis=1)
        left.append(bullets[:, i] & ~success)
        points = points + integer(success)
    # Submarines shoot from their new position, also in their last step.
    shoots = there & is_sub & (state["enemy_shot_wait"] == 0)
    state = {**state, "enemy_there": there}
    shot_wait = ops.where(shoots, SHOT_INTERVAL, state["enemy_shot_wait"] - 1)
    right, left_shots = shoots & to_right, shoots & ~to_right
    after = {
        **state,
        "enemy_there": alive,
        "enemy_wait": ops.where(
            moves, state["move_speed"][:, None], state["enemy_wait"] - 1
        ),
        "enemy_shot_wait": shot_wait,
        "bullet_there": ops.stack(left, axis=1),
        "bullets_right": state["bullets_right"] | _board(state, "enemy", right),
        "bullets_left": state["bullets_left"] | _board(state, "enemy", left_shots),
    }
    return after, hit, points


def _move_enemy_bullets(state):
    """Moves the enemies' bullets; returns whether one hits the player."""
    left, right = state["bullets_left"], state["bullets_right"]
    here = cell(state["y"], state["x"])
    after_left, after_right = shifted(left, right=-1), shifted(right, right=1)
    hit = ops.any((left | right | after_left | after_right) & here, axis=(1, 2))
    return {**state, "bullets_left": after_left, "bullets_right": after_right}, hit
