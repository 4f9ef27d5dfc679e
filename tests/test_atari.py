"""Games of Atari: what agents see of them, backups, and the recipes."""

import json
import sys

import gymnasium
import keras
import numpy as np
import pytest
import tyro
from gymnasium.vector import AutoresetMode

from kit.lab.agent_recipe import make_env, make_envs
from kit.lab.run import command_line
from kit.rl.atari import Lives, make_atari
from kit.rl.env_state import (
    NotReadableError,
    Recorder,
    make_readable,
    read_attributes,
)
from kit.rl.environments import Environments, stacks_frames

pytestmark = pytest.mark.once  # of environments, and of what recipes choose for them
pytest.importorskip("ale_py", reason="ale-py isn't installed (the extra `atari`)")
pytest.importorskip("cv2", reason="OpenCV isn't installed (the extra `atari`)")

BREAKOUT, PONG = "ALE/Breakout-v5", "ALE/Pong-v5"


def play(env, steps, seed=0):
    """Acts at random; yields what each step gave, and begins anew at ends."""
    rng = np.random.default_rng(seed)
    env.reset(seed=seed)
    for _ in range(steps):
        step = env.step(int(rng.integers(env.action_space.n)))
        yield step
        if step[2] or step[3]:
            env.reset()


@pytest.mark.once
def test_agents_see_the_last_four_frames():
    env = make_atari(BREAKOUT)
    assert stacks_frames(env)
    assert env.observation_space == gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    first, _ = env.reset(seed=0)
    assert first.shape == (4, 84, 84) and first.dtype == np.uint8
    assert (first == first[0]).all() and first.max() > 0
    frames = [*first]
    rng = np.random.default_rng(0)
    numbers = []
    for _ in range(20):
        obs, _, _, _, info = env.step(int(rng.integers(4)))
        frames.append(obs[-1])
        np.testing.assert_array_equal(obs, frames[-4:])
        numbers.append(info["frame_number"])
    assert set(np.diff(numbers)) == {4}  # of the console's frames
    assert len({frame.tobytes() for frame in frames}) > 10


@pytest.mark.once
def test_lives_are_episodes_in_training_only():
    training = list(play(make_atari(BREAKOUT, training=True), 400))
    lives = [info["lives"] for *_, info in training]
    ends = [bool(terminated) for _, _, terminated, _, _ in training]
    # An episode ends with each life, and the next one goes on with the game.
    games = np.flatnonzero(np.array(lives) == 0)
    assert games.size and sum(ends) >= 5
    lost = [i for i in range(1, 400) if lives[i] < lives[i - 1]]
    assert [i for i, end in enumerate(ends) if end] == lost
    assert lives[: games[0] + 1] == sorted(lives[: games[0] + 1], reverse=True)
    assert set(lives) == {5, 4, 3, 2, 1, 0}

    whole = list(play(make_atari(BREAKOUT), 400))
    lives = [info["lives"] for *_, info in whole]
    ends = [bool(terminated) for _, _, terminated, _, _ in whole]
    assert [i for i, end in enumerate(ends) if end] == [
        i for i in range(400) if lives[i] == 0
    ]
    assert sum(ends) >= 1


@pytest.mark.once
def test_a_life_begins_with_fire():
    env = make_atari(BREAKOUT)
    env.reset(seed=0)
    # Without it, the ball would never come, and nothing would ever be lost.
    for _ in range(400):
        _, _, terminated, _, _ = env.step(0)
        if terminated:
            break
    assert terminated
    assert env.get_wrapper_attr("fire") == 1


class Console(gymnasium.Env):
    """Has as many lives as it is told, step by step."""

    action_space = gymnasium.spaces.Discrete(2)
    observation_space = gymnasium.spaces.Discrete(1000)

    def __init__(self, lives, meanings=("NOOP", "FIRE")):
        self.lives, self.meanings, self.calls = lives, meanings, []

    def get_action_meanings(self):
        return list(self.meanings)

    def reset(self, *, seed=None, options=None):
        self.calls.append("reset")
        self.at = 0
        return 0, {"lives": self.lives[0]}

    def step(self, action):
        self.calls.append(int(action))
        self.at += 1
        lives = self.lives[self.at]
        return self.at, 1.0, lives == 0, False, {"lives": lives}


@pytest.mark.once
def test_lives_by_hand():
    console = Console([2, 2, 2, 1, 1, 1, 0])
    env = Lives(console, ends_episodes=True)
    assert env.reset()[0] == 1  # after FIRE
    assert env.step(0)[2] is False
    assert env.step(0)[2] is True  # a life is lost
    obs, info = env.reset()  # no action, then FIRE, in the same game
    assert (obs, info["lives"]) == (5, 1)
    assert env.step(0)[2] is True
    env.reset()
    assert console.calls == ["reset", 1, 0, 0, 0, 1, 0, "reset", 1]

    console = Console([2, 2, 2, 1, 1, 1, 0])
    env = Lives(console, ends_episodes=False)
    env.reset()
    env.step(0)
    obs, reward, terminated, _, _ = env.step(0)  # and FIRE
    assert (obs, reward, terminated) == (4, 2.0, False)
    env.reset()  # in the middle: another game
    assert console.calls == ["reset", 1, 0, 0, 1, "reset", 1]

    console = Console([1, 1, 0], meanings=("NOOP", "UP"))
    env = Lives(console, ends_episodes=True)
    env.reset()
    env.step(1)
    env.reset(seed=3)
    assert console.calls == ["reset", 1, "reset"]


@pytest.mark.once
def test_rewards_are_cut_in_training_only():
    game = "ALE/Seaquest-v5"  # a diver is 20 points
    _, cut, *_ = zip(*play(make_atari(game, training=True), 300), strict=True)
    _, whole, *_ = zip(*play(make_atari(game), 300), strict=True)
    assert set(cut) == {0.0, 1.0}
    assert max(whole) >= 20


@pytest.mark.once
@pytest.mark.parametrize("game", [BREAKOUT, PONG])
@pytest.mark.parametrize("vector", [False, True])
def test_games_go_on_where_they_were(game, vector):
    def make():
        def one():
            return make_atari(game, training=True)

        env = one()
        if vector:
            mode = AutoresetMode.SAME_STEP
            env = gymnasium.vector.SyncVectorEnv([one, one], autoreset_mode=mode)
        envs = Environments(env)
        envs.record()
        return envs

    def play(envs, actions):
        return [envs.step(action) for action in actions]

    first, second = make(), make()
    actions = np.random.default_rng(0).integers(0, 4, (260, first.num_envs))
    first.reset(1)
    for start, stop in ((0, 1), (1, 30), (30, 190)):  # also with fewer lives
        play(first, actions[start:stop])
        second.reset(7)
        second.set_state(first.get_state())
        assert not second.restarted
        np.testing.assert_array_equal(first.obs, second.obs)
    for step, other in zip(
        play(first, actions[190:]), play(second, actions[190:]), strict=True
    ):
        for x, y in zip(step, other, strict=True):
            np.testing.assert_array_equal(x, y)
    assert first.episodes == second.episodes


@pytest.mark.once
def test_the_state_of_a_game_that_takes_actions_again_is_not_whole():
    env = make_atari(PONG, repeat_action_probability=0.25)
    with pytest.raises(NotReadableError, match="ALEInterface"):
        read_attributes(env)
    assert isinstance(make_readable(env), Recorder)
    assert make_readable(game := make_atari(PONG)) is game


@pytest.mark.once
def test_what_is_missing_is_named(monkeypatch):
    with pytest.raises(ValueError, match="`env` .*ALE/Pnog-v5"):
        make_atari("ALE/Pnog-v5")
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(ImportError, match=r"ale-py.*keras-algorithm-kit\[atari\]"):
        make_env(PONG)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"OpenCV.*keras-algorithm-kit\[atari\]"):
        make_envs(PONG, 2)


# --- Recipes ----------------------------------------------------------------------

TINY = {
    "dqn": {
        "total_timesteps": 64,
        "learning_starts": 20,
        "buffer_size": 100,
        "train_freq": 32,
        "gradient_steps": 1,
        "batch_size": 4,
    },
    "ppo": {
        "total_timesteps": 32,
        "num_envs": 2,
        "num_steps": 8,
        "num_minibatches": 2,
        "num_epochs": 1,
    },
}


@pytest.mark.parametrize(
    "recipe", ["dqn", pytest.param("ppo", marks=pytest.mark.thorough)]
)
def test_recipes_learn_from_pixels(load_recipe, recipe, tmp_path, monkeypatch):
    """By the command line, whose options win over those of Atari."""
    module, found = load_recipe(recipe), {}
    words = [f"--env={BREAKOUT}", "--eval-episodes=1", "--verbose=0"]
    words += [f"--{x.replace('_', '-')}={y}" for x, y in TINY[recipe].items()]
    words += [f"--output-dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", [f"{recipe}.py", *words])
    monkeypatch.setattr(tyro, "cli", _keeping(tyro.cli, found))
    command_line(module.main, {"ALE/": module.ATARI})
    config = json.loads((tmp_path / "metrics.json").read_text())["config"]
    assert found["result"]["config"] == config
    expected = {"env": BREAKOUT, **module.ATARI, **TINY[recipe]}
    assert {name: config[name] for name in expected} == expected

    agent = keras.saving.load_model(tmp_path / "model.keras")
    names = [layer.__class__.__name__ for layer in agent.network_for_obs().layers]
    assert names.count("Conv2D") == 3
    obs, _ = make_atari(BREAKOUT).reset(seed=0)
    assert agent.act(obs) in range(4)


def _keeping(cli, found):
    def run(main):
        found["result"] = cli(main)

    return run


@pytest.mark.once
@pytest.mark.parametrize("recipe", list(TINY))
def test_other_environments_have_the_defaults_of_the_signature(
    load_recipe, recipe, monkeypatch
):
    module, chosen = load_recipe(recipe), {}
    monkeypatch.setattr(tyro, "cli", lambda main: chosen.update(main=main))
    for words in ([], ["--env", "Acrobot-v1"], ["--env=Breakout-v1"]):
        monkeypatch.setattr(sys, "argv", ["recipe.py", *words])
        command_line(module.main, {"ALE/": module.ATARI})
        assert chosen["main"] is module.main
