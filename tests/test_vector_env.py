"""Environments in `keras.ops` as Gymnasium's vector environments."""

import subprocess
import sys

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, VectorEnv

import kit
import kit.envs
from kit.envs.minatar.board import COLORS, GROUND
from kit.rl.environments import Environments

IDS = sorted(x for x in gymnasium.registry if x.startswith("kit/"))


class Count(kit.rl.functional.FunctionalEnv):
    """Counts to 3, by 1 or 2; is cut off after 2 steps."""

    observation_space = gymnasium.spaces.Box(0.0, 5.0, (1,), "float32")
    action_space = gymnasium.spaces.Discrete(2)
    max_episode_steps = 2

    def reset(self, key, num):
        return keras.ops.zeros((num,))

    def observe(self, state):
        return state[:, None]

    def step(self, state, action, key):
        state = state + 1.0 + keras.ops.cast(action, "float32")
        over = state >= 3.0
        return state, state, over, keras.ops.zeros_like(over)


def test_episodes_restart_in_the_same_step():
    env = kit.envs.as_vector_env(Count(2))
    assert env.metadata["autoreset_mode"] == AutoresetMode.SAME_STEP
    obs, infos = env.reset(seed=0)
    assert obs.tolist() == [[0.0], [0.0]] and infos == {}
    obs, reward, terminated, truncated, infos = env.step(np.array([1, 0]))
    assert obs.tolist() == [[2.0], [1.0]] and reward.tolist() == [2.0, 1.0]
    assert not terminated.any() and not truncated.any() and infos == {}
    obs, reward, terminated, truncated, infos = env.step(np.array([0, 0]))
    assert obs.tolist() == [[0.0], [0.0]] and reward.tolist() == [3.0, 2.0]
    assert terminated.tolist() == [True, False]
    assert truncated.tolist() == [False, True]
    assert infos["final_obs"].tolist() == [[3.0], [2.0]]
    assert infos["_final_obs"].tolist() == [True, True]
    env.close()
    assert env.closed


def test_agents_see_final_observations():
    envs = Environments(kit.envs.as_vector_env(Count(2)))
    envs.reset(seed=0)
    envs.step(np.array([1, 0]))
    step = envs.step(np.array([0, 0]))
    assert step.next_obs.tolist() == [[3.0], [2.0]]
    assert step.obs.tolist() == [[0.0], [0.0]]
    assert envs.episodes == [(5.0, 2), (3.0, 2)]


def play(env, seed, num_steps=5):
    env.action_space.seed(0)
    seen = [env.reset(seed=seed)[0]]
    for _ in range(num_steps):
        seen += env.step(env.action_space.sample())[:2]
    return [np.array(x) for x in seen]


@pytest.mark.variants
@pytest.mark.parametrize("id", IDS)
def test_make_vec(id):
    env = gymnasium.make_vec(id, num_envs=3)
    assert isinstance(env, VectorEnv) and env.num_envs == 3
    assert env.spec.id == id
    first, second = play(env, 1), play(env, 1)
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)
    env.reset(seed=2)
    for _ in range(3):
        obs, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
        assert reward.shape == (3,) and reward.dtype == np.float32
        assert terminated.dtype == truncated.dtype == bool
    env.close()


@pytest.mark.variants
@pytest.mark.parametrize("id", IDS)
@pytest.mark.filterwarnings("ignore:.*For Box action spaces, we recommend")
@pytest.mark.filterwarnings("ignore:.*A Box observation space")
@pytest.mark.filterwarnings("ignore:.*Not able to test alternative render modes")
def test_make_passes_gymnasiums_checks(id):
    env = gymnasium.make(id)
    check_env(env.unwrapped, skip_render_check=True)
    limit = env.unwrapped.env.max_episode_steps
    if limit is not None and limit <= 200:
        env.reset(seed=0)
        ends = [env.step(env.action_space.sample())[2:4] for _ in range(limit)]
        assert ends[-1][1] or np.array(ends).any()


def test_an_environment_of_the_users_gets_an_id(monkeypatch):
    monkeypatch.setattr(kit.envs.registration, "IDS", dict(kit.envs.registration.IDS))
    kit.envs.register("Count-v0", Count)
    try:
        assert isinstance(kit.envs.make("Count-v0", 3), Count)
        name = kit.envs.gymnasium_id("Count-v0")
        assert name == "kit/Count-v0"
        assert isinstance(gymnasium.make(name).unwrapped.env, Count)
        assert gymnasium.make_vec(name, num_envs=3).num_envs == 3
    finally:
        del gymnasium.registry["kit/Count-v0"]
    with pytest.raises(TypeError, match="`kind` must be .* received 'Count'"):
        kit.envs.register("Count-v0", "Count")


def test_other_seeds_and_later_resets_differ():
    env = gymnasium.make_vec("kit/CartPole-v1", num_envs=4)
    first = env.reset(seed=1)[0]
    assert (first != env.reset(seed=2)[0]).all()
    after = env.reset()[0]
    env.reset(seed=2)
    np.testing.assert_array_equal(env.reset()[0], after)  # which the seed determines
    assert (after != first).all() and len(np.unique(first)) == 16


def test_settings():
    env = gymnasium.make_vec("kit/FrozenLake-v1", num_envs=2, map_name="8x8")
    assert env.single_observation_space == gymnasium.spaces.Discrete(64)
    env = gymnasium.make("kit/FrozenLake-v1", is_slippery=False)
    env.reset(seed=0)
    assert env.step(2)[0] == 1


def test_statistics_of_gymnasiums_wrapper():
    env = gymnasium.make_vec("kit/CartPole-v1", num_envs=4)
    env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    env.reset(seed=0)
    env.action_space.seed(0)
    found = []
    for _ in range(60):
        _, _, terminated, _, infos = env.step(env.action_space.sample())
        if terminated.any():
            found += infos["episode"]["r"][infos["_episode"]].tolist()
    assert found and all(8 <= x <= 60 for x in found)


def test_a_game_draws_itself():
    env = gymnasium.make("kit/Breakout-v1", render_mode="rgb_array")
    obs, _ = env.reset(seed=0)
    picture = env.render()
    assert picture.shape == (160, 160, 3) and picture.dtype == np.uint8
    # A colour for each of the paddle, the ball and the bricks, and one for the ground.
    colors = {tuple(picture[16 * y + 8, 16 * x + 8]) for y, x in np.ndindex(10, 10)}
    assert colors == {GROUND, COLORS[0], COLORS[1], COLORS[3]}
    bricks = (picture[8::16, 8::16] == COLORS[3]).all(axis=-1)
    np.testing.assert_array_equal(bricks, obs[..., 3] & ~obs[..., 1])  # the ball on top
    assert gymnasium.make("kit/Breakout-v1").unwrapped.render() is None
    env = gymnasium.make("kit/Breakout-v1", render_mode="rgb_array").unwrapped
    with pytest.raises(gymnasium.error.ResetNeeded, match="`reset` before `render`"):
        env.render()


def test_only_what_has_pictures_draws_itself():
    with pytest.raises(ValueError, match=r"CartPole: `render_mode`.*'rgb_array'"):
        gymnasium.make("kit/CartPole-v1", render_mode="rgb_array")


def test_step_before_reset_is_refused():
    for env in (
        kit.envs.as_vector_env(Count(2)),
        gymnasium.make("kit/CartPole-v1").unwrapped,
    ):
        with pytest.raises(gymnasium.error.ResetNeeded, match="Call `reset`"):
            env.step(env.action_space.sample())


def test_others_are_refused():
    with pytest.raises(TypeError, match="`env` must be a kit.rl.functional.Func"):
        kit.envs.as_vector_env(gymnasium.make("CartPole-v1"))


@pytest.mark.once
def test_gymnasium_imports_the_module():
    program = (
        "import gymnasium\n"
        'env = gymnasium.make_vec("kit.envs:kit/CartPole-v1", num_envs=8)\n'
        "print(env.reset(seed=0)[0].shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.stdout.split() == [b"(8,", b"4)"], done.stderr


def test_environments_are_compiled_once_however_often_they_are_wrapped():
    env = kit.envs.CartPole(2)
    first, second = (kit.envs.as_vector_env(env) for _ in range(2))
    first.reset(seed=0)
    first.step(np.array([0, 1]))
    before = kit.compile_seconds()
    second.reset(seed=0)
    second.step(np.array([0, 1]))
    assert kit.compile_seconds() == before
