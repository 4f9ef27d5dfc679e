"""MinAtar's games in `keras.ops` make the same steps as the package `minatar`."""

import keras
import numpy as np
import pytest
from minatar import Environment

import kit
from kit.envs import minatar
from kit.rl import functional

GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
NUM = 10_000
to_numpy = keras.ops.convert_to_numpy


class Draws:
    """In place of the package's random numbers: those that it is given."""

    def __init__(self, drawn):
        self.drawn = [float(u) for u in drawn]

    def rand(self, size=None):
        if size is None:
            return self.drawn.pop(0)
        return np.array([self.drawn.pop(0) for _ in range(size)])

    def randint(self, low, high=None, size=None):
        low, high = (0, low) if high is None else (low, high)
        u = self.rand(size)
        return (low + np.floor(u * (high - low))).astype(int)[()]


def draw_uniform(rng, shape):
    return (rng.integers(2**23, size=shape) / 2**23).astype("float32")


# --- States, in the package's form and in ours ----------------------------------


def breakout_state(game):
    dx, dy = ((-1, -1), (1, -1), (1, 1), (-1, 1))[game.ball_dir]
    return {
        "paddle": game.pos,
        "x": game.ball_x,
        "y": game.ball_y,
        "dx": dx,
        "dy": dy,
        "last_x": game.last_x,
        "last_y": game.last_y,
        "struck": game.strike,
        "bricks": game.brick_map == 1,
    }


def asterix_state(game):
    things = [x or [0, 0, False, False] for x in game.entities]
    place, _, to_right, gold = map(np.array, zip(*things, strict=True))
    assert to_right.dtype == gold.dtype == bool
    return {
        "x": game.player_x,
        "y": game.player_y,
        "there": np.array([x is not None for x in game.entities]),
        "place": place,
        "to_right": to_right,
        "gold": gold,
        "spawn_speed": game.spawn_speed,
        "spawn_timer": game.spawn_timer,
        "move_speed": game.move_speed,
        "move_timer": game.move_timer,
        "ramp_timer": game.ramp_timer,
        "ramp": game.ramp_index,
    }


def freeway_state(game):
    place, _, timer, speed = map(np.array, zip(*game.cars, strict=True))
    return {
        "y": game.pos,
        "place": place,
        "speed": speed,
        "timer": timer,
        "move_timer": game.move_timer,
        "time_left": game.terminate_timer,
    }


def space_invaders_state(game):
    return {
        "x": game.pos,
        "bullets": game.f_bullet_map == 1,
        "alien_bullets": game.e_bullet_map == 1,
        "aliens": game.alien_map == 1,
        "to_right": game.alien_dir > 0,
        "interval": game.enemy_move_interval,
        "move_timer": game.alien_move_timer,
        "alien_shot_timer": game.alien_shot_timer,
        "shot_timer": game.shot_timer,
        "ramp": game.ramp_index,
    }


def slots(kind, things, size, names):
    """Returns things in slots; those before the first one are empty."""
    rows = [[False] + [0] * len(names)] * (size - len(things))
    rows += [[True, *thing[: len(names)]] for thing in things]
    columns = zip(("there", *names), zip(*rows, strict=True), strict=True)
    booleans = ("there", "to_right", "is_sub")
    return {
        f"{kind}_{name}": np.array(column, bool if name in booleans else int)
        for name, column in columns
    }


def board(bullets):
    cells = np.zeros((10, 10), bool)
    for x, y, _ in bullets:
        cells[y, x] = True
    return cells


def seaquest_state(game):
    place = ("x", "y", "to_right")
    enemies = [[*fish, 0, False] for fish in game.e_fish]
    enemies += [[*sub, True] for sub in game.e_subs]
    state = slots("enemy", enemies, 30, (*place, "wait", "shot_wait", "is_sub"))
    # Within fish and within submarines, the order of the lists is that of age.
    order = np.arange(30) - 30
    return {
        "x": game.sub_x,
        "y": game.sub_y,
        "to_right": game.sub_or,
        "surfaced": game.surface,
        "oxygen": game.oxygen,
        "divers": game.diver_count,
        "spawn_speed": game.e_spawn_speed,
        "spawn_timer": game.e_spawn_timer,
        "diver_timer": game.d_spawn_timer,
        "move_speed": game.move_speed,
        "shot_timer": game.shot_timer,
        "ramp": game.ramp_index,
        "time": 40,
        **slots("bullet", game.f_bullets, 2, place),
        **slots("diver", game.divers, 2, (*place, "wait")),
        **state,
        "enemy_since": order + 40,
        "bullets_left": board([x for x in game.e_bullets if not x[2]]),
        "bullets_right": board([x for x in game.e_bullets if x[2]]),
    }


def canonical(state):
    """A state less what makes no difference: what empty slots hold, their order."""
    state = {name: np.array(value) for name, value in state.items()}
    if "there" in state:
        for name in ("place", "to_right", "gold"):
            state[name] = state[name] * state["there"]
    if "enemy_there" in state:
        since = {"enemy": state.pop("enemy_since") + 1000 * state["enemy_is_sub"]}
        state["enemy_shot_wait"] = state["enemy_shot_wait"] * state["enemy_is_sub"]
        for kind in ("bullet", "diver", "enemy"):
            there = state.pop(f"{kind}_there").astype(bool)
            order = np.argsort(since.get(kind, np.arange(2)))
            for name in [x for x in state if x.startswith(f"{kind}_")]:
                if state[name].ndim:
                    state[name] = state[name][order][there[order]]
    state.pop("time", None)
    return state


STATES = {name: globals()[f"{game}_state"] for name, game in GAMES.items()}


# --- Random states of the package's games ---------------------------------------


def scramble_breakout(game, rng):
    game.ball_x, game.last_x, game.pos = map(int, rng.integers(10, size=3))
    game.ball_y, game.last_y = map(int, rng.integers(9, size=2))
    game.ball_dir = int(rng.integers(4))
    game.strike = bool(rng.integers(2))
    game.brick_map[1:4] = rng.random((3, 10)) < rng.choice([0.0, 0.1, 0.5, 1.0])
    if rng.random() < 0.3:  # near the paddle
        game.ball_y, game.pos = 8, int(np.clip(game.ball_x + rng.integers(-1, 2), 0, 9))


def scramble_asterix(game, rng):
    game.player_x = int(rng.integers(10))
    game.player_y = int(rng.integers(1, 9))
    share = rng.choice([0.3, 0.9, 1.0])
    game.entities = [
        [int(rng.integers(10)), i + 1, bool(rng.integers(2)), bool(rng.integers(2))]
        if rng.random() < share
        else None
        for i in range(8)
    ]
    game.spawn_speed = int(rng.integers(1, 11))
    game.spawn_timer = int(rng.integers(0, min(game.spawn_speed, 3) + 1))
    game.move_speed = int(rng.integers(1, 6))
    game.move_timer = int(rng.integers(0, min(game.move_speed, 3) + 1))
    game.ramp_timer = int(rng.integers(-1, 3))
    game.ramp_index = int(rng.integers(12))


def scramble_freeway(game, rng):
    game.pos = 1 if rng.random() < 0.3 else int(rng.integers(1, 10))
    game.move_timer = int(rng.integers(2))
    game.terminate_timer = int(rng.integers(4))
    for car in game.cars:
        car[0] = (
            int(rng.integers(10)) if rng.random() < 0.5 else int(rng.integers(3, 6))
        )
        car[3] = int(rng.integers(1, 6) * rng.choice([-1, 1]))
        car[2] = int(rng.integers(abs(car[3]) + 1))


def scramble_space_invaders(game, rng):
    game.pos = int(rng.integers(10))
    share = rng.choice([0.01, 0.1, 0.5])
    game.alien_map[:] = rng.random((10, 10)) < share
    if not game.alien_map.any():
        game.alien_map[tuple(rng.integers(10, size=2))] = 1
    if rng.random() < 0.5:  # none in the lowest rows
        game.alien_map[7:] = 0
        game.alien_map[3, 4] = 1
    game.f_bullet_map[:9] = rng.random((9, 10)) < 0.1
    game.e_bullet_map[:] = rng.random((10, 10)) < 0.05
    game.alien_dir = int(rng.choice([-1, 1]))
    game.enemy_move_interval = int(rng.integers(6, 13))
    game.alien_move_timer = int(rng.integers(3))
    game.alien_shot_timer = int(rng.integers(3))
    game.shot_timer = int(rng.integers(3))
    game.ramp_index = int(rng.integers(7))


def scramble_seaquest(game, rng):
    """Crowds the board near the player, in states that a game may come to.

    No bullet of the player is where an enemy is: one of them would be gone.
    """
    low, high = map(int, rng.choice([(0, 10), (3, 6), (0, 3)]))
    rows = (1, 9) if high == 10 else (2, 4)

    def place():
        return [int(rng.integers(low, high)), int(rng.integers(*rows))]

    game.sub_x, game.sub_y = place()
    if rng.random() < 0.3:
        game.sub_y = int(rng.integers(2))
    game.sub_or = game.sub_x > 0 and (game.sub_x == 9 or bool(rng.integers(2)))
    game.surface = game.sub_y == 0 and bool(rng.integers(2))
    game.oxygen = int(rng.choice([0, 1, 2, 77, 199, 200]))
    game.diver_count = int(rng.integers(-1, 7))
    game.e_spawn_speed = int(rng.integers(1, 21))
    game.e_spawn_timer = int(rng.integers(2))
    game.d_spawn_timer = int(rng.integers(2))
    game.move_speed = int(rng.integers(2, 6))
    game.ramp_index = int(rng.integers(20))
    game.shot_timer = int(rng.integers(2))
    direction = [bool(rng.integers(2)) for _ in range(10)]
    # All in a row go in one direction.
    enemies = []
    for _ in range(int(rng.integers(20))):
        x, y = place()
        wait = int(rng.integers(min(game.move_speed, 2) + 1))
        enemies.append([x, y, direction[y], wait])
    is_sub = rng.random(len(enemies)) < 0.5
    game.e_fish = [x for x, sub in zip(enemies, is_sub, strict=True) if not sub]
    game.e_subs = [
        [*x, int(rng.integers(3))]
        for x, sub in zip(enemies, is_sub, strict=True)
        if sub
    ]
    # As many as there are places for, after one that may come in.
    count = int(rng.integers(2 if game.shot_timer == 0 else 3))
    bullets = [[*place(), bool(rng.integers(2))] for _ in range(count)]
    taken = [x[:2] for x in enemies]
    game.f_bullets = [x for x in bullets if x[:2] not in taken]
    count = int(rng.integers(2 if game.d_spawn_timer == 0 else 3))
    wait = int(rng.integers(2))
    game.divers = [[*place(), bool(rng.integers(2)), wait] for _ in range(count)]
    game.e_bullets = [[*place(), bool(rng.integers(2))] for _ in range(rng.integers(4))]


# --- Tests --------------------------------------------------------------------


def stack(states):
    """Returns states as arrays (N, ...)."""
    arrays = {name: np.array([x[name] for x in states]) for name in states[0]}
    return {
        name: x if x.dtype == bool else x.astype("int32") for name, x in arrays.items()
    }


def row(state, i):
    return {name: x[i] for name, x in state.items()}


def package_game(name, rng, num_draws, ramping=True):
    game = Environment(GAMES[name], difficulty_ramping=ramping).env
    game.random = Draws(draw_uniform(rng, 20))
    game.reset()
    return game


def make_program(env):
    """Returns a function that makes a step, by the rules alone, and observes."""

    @kit.compiled
    def both(state, action, drawn):
        after, points, over = env.act(state, action, drawn)
        return after, env.observe(after), keras.ops.cast(points, "float32"), over

    return lambda *arrays: keras.tree.map_structure(to_numpy, both(*arrays))


def compare(name, games, program, num_draws, rng, actions):
    """Makes a step in all games, and in ours; compares everything."""
    drawn = draw_uniform(rng, (len(games), num_draws))
    before = stack([STATES[name](game) for game in games])
    after, obs, points, over = program(before, actions, drawn)
    expected = []
    for game, action, numbers in zip(games, actions, drawn, strict=True):
        # The package draws a diver's numbers only when one comes in.
        if name == "Seaquest" and game.e_spawn_timer > 0:
            numbers = numbers[3:]
        game.random = Draws(numbers)
        reward, terminal = game.act(int(action))
        expected.append((game.state(), float(reward), bool(terminal)))
    their_obs, rewards, ends = map(np.array, zip(*expected, strict=True))
    assert obs.dtype == bool
    np.testing.assert_array_equal(points, rewards)
    np.testing.assert_array_equal(over, ends)
    np.testing.assert_array_equal(obs, their_obs)
    for i, game in enumerate(games):
        ours, theirs = canonical(row(after, i)), canonical(STATES[name](game))
        assert ours.keys() == theirs.keys()
        different = [key for key in ours if not np.array_equal(ours[key], theirs[key])]
        assert not different, f"transition {i}"
    return rewards, ends


# The games themselves are Python's, and take longest; backends are to play alike.
@pytest.mark.parametrize("ramping", [pytest.param(True, marks=pytest.mark.once), False])
@pytest.mark.parametrize("name", GAMES)
def test_random_transitions_are_the_packages(name, ramping):
    num = NUM if ramping else NUM // 10
    rng = np.random.default_rng(0)
    env = getattr(minatar, name)(num, ramping=ramping)
    games = [package_game(name, rng, env.num_draws[1], ramping) for _ in range(num)]
    for game in games:
        globals()[f"scramble_{GAMES[name]}"](game, rng)
    actions = rng.integers(6, size=num).astype("int32")
    program = make_program(env)
    rewards, ends = compare(name, games, program, env.num_draws[1], rng, actions)
    assert (rewards > 0).sum() > num / 100
    assert ends.sum() > num / 100


@pytest.mark.once
@pytest.mark.parametrize("name", GAMES)
def test_whole_games_are_the_packages(name):
    num, num_steps = 20, 250
    rng = np.random.default_rng(1)
    env = getattr(minatar, name)(num)
    games = [package_game(name, rng, env.num_draws[1]) for _ in range(num)]
    program = make_program(env)
    for _ in range(num_steps):
        actions = rng.integers(6, size=len(games)).astype("int32")
        _, ends = compare(name, games, program, env.num_draws[1], rng, actions)
        for i in np.flatnonzero(ends):
            games[i] = package_game(name, rng, env.num_draws[1])


@pytest.mark.parametrize("name", GAMES)
def test_first_states_are_the_packages(name):
    env = getattr(minatar, name)(20)
    drawn = draw_uniform(np.random.default_rng(0), (20, max(env.num_draws[0], 1)))
    state = keras.tree.map_structure(to_numpy, kit.compiled(env.begin)(drawn))
    for i, numbers in enumerate(drawn):
        game = Environment(GAMES[name]).env
        game.random = Draws(numbers)
        game.reset()
        ours, theirs = canonical(row(state, i)), canonical(STATES[name](game))
        for key in ours:
            np.testing.assert_array_equal(ours[key], theirs[key], err_msg=key)


@pytest.mark.parametrize("name", GAMES)
def test_spaces_and_actions_are_the_packages(name):
    theirs = Environment(GAMES[name])
    env = getattr(minatar, name)()
    assert list(env.observation_space.shape) == theirs.state_shape()
    assert env.observation_space.dtype == bool
    assert env.action_space.n == theirs.num_actions()
    names = sorted(theirs.env.channels, key=theirs.env.channels.get)
    assert [x.replace("guage", "gauge") for x in names] == list(env.channels)
    fewer = getattr(minatar, name)(minimal_actions=True)
    assert list(fewer.actions) == sorted(theirs.minimal_action_set())
    assert fewer.action_space.n == len(fewer.actions)


def test_sticky_actions():
    num = 20_000
    env = minatar.Breakout(num, sticky_action_prob=0.1, minimal_actions=True)

    def both(key):
        begin, step = keras.ops.unstack(kit.random.split(key))
        state = env.reset(begin, num)
        state = {**state, "last_action": keras.ops.full((num,), 1, "int32")}
        return env.step(state, keras.ops.full((num,), 2, "int32"), step)[0]

    state = keras.tree.map_structure(to_numpy, kit.compiled(both)(kit.random.key(0)))
    repeated = state["last_action"] == 1
    assert set(state["last_action"]) == {1, 3}  # the third action is "right"
    np.testing.assert_allclose(repeated.mean(), 0.1, atol=0.01)
    np.testing.assert_array_equal(state["paddle"], np.where(repeated, 3, 5))


# Of 60 steps of 8 games: the sums of points, of ends and of all that was observed. They
# are the same on TensorFlow, JAX and PyTorch.
PLAYED = {
    "Asterix": (3, 5, 2080),
    "Breakout": (24, 36, 15622),
    "Freeway": (0, 0, 8160),
    "Seaquest": (0, 14, 6121),
    "SpaceInvaders": (38, 11, 22523),
}


def play(name):
    env = getattr(minatar, name)(8)

    def whole(key):
        begin, noise, steps = keras.ops.unstack(kit.random.split(key, 3))
        position = functional.begin(env, begin)
        noise = kit.random.randint(noise, (60, 8), 0, 6)
        return functional.play(
            env, position, lambda obs, action: action, noise, 60, steps
        )[1]

    return keras.tree.map_structure(to_numpy, kit.compiled(whole)(kit.random.key(0)))


@pytest.mark.parametrize("name", GAMES)
def test_backends_play_alike(name):
    steps = play(name)
    sums = tuple(int(steps[x].sum()) for x in ("reward", "ended", "next_obs"))
    assert sums == PLAYED[name]
