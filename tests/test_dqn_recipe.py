"""The recipes: each runs with tiny arguments, and learns with its own."""

import inspect
import json
import sys

import keras
import numpy as np
import pytest
import tyro
from PIL import Image

from kit.lab import agent_recipe
from kit.lab.run import command_line

DQN_TINY = {
    "total_timesteps": 300,
    "units": (8,),
    "learning_starts": 100,
    "train_freq": 50,
    "gradient_steps": 2,
    "eval_episodes": 2,
    "verbose": 0,
}


@pytest.mark.variants
@pytest.mark.parametrize("env", ["CartPole-v1", "FrozenLake-v1", "Blackjack-v1"])
def test_dqn_leaves_what_it_promises(load_recipe, env, tmp_path, capsys):
    load_recipe("dqn").main(env=env, output_dir=tmp_path, seed=1, **DQN_TINY)
    names = {"model.keras", "history.csv", "learning_curve.png", "metrics.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"]["eval_episodes"] == 2
    assert record["metrics"]["total_timesteps"] == 300
    assert set(record["baselines"]) == {"random_return"}
    assert record["throughput"]["unit"] == "env steps/s"
    assert record["config"]["env"] == env
    assert record["compile_seconds"] > 0
    assert capsys.readouterr().out == ""

    agent = keras.saving.load_model(tmp_path / "model.keras")
    obs = np.zeros(agent.q_network.input_shape[1:], "float32")
    assert agent.act(obs) in range(agent.num_actions)


@pytest.mark.parametrize(
    ("env", "options", "layer"),
    [
        ("CartPole-v1", {"num_envs": 2}, "dense"),
        ("CartPole-v1", {"num_envs": 2, "fused": True}, "dense"),
        ("kit/Breakout-v1", {"num_envs": 2, "fused": True}, "conv2d"),
    ],
    ids=["environments", "fused", "game"],
)
@pytest.mark.variants
def test_dqn_plays_several_environments_at_once(
    load_recipe, env, options, layer, tmp_path
):
    record = load_recipe("dqn").main(env=env, output_dir=tmp_path, **DQN_TINY | options)
    assert record["metrics"]["total_timesteps"] == 300
    assert record["config"]["env"] == env
    assert np.isfinite(record["metrics"]["eval_return"])
    agent = keras.saving.load_model(tmp_path / "model.keras")
    names = [x.name for x in agent.network_for_obs().layers]
    assert any(name.startswith(layer) for name in names)


@pytest.mark.once
@pytest.mark.parametrize("recipe", ["dqn", "fused"])
def test_games_of_minatar_have_defaults_of_their_own(load_recipe, recipe, monkeypatch):
    module, chosen = load_recipe(recipe), {}
    monkeypatch.setattr(tyro, "cli", lambda main: chosen.update(main=main))
    monkeypatch.setattr(sys, "argv", ["recipe.py", "--env", "kit/Seaquest-v1"])
    command_line(module.main, module.BY_ENV)
    own = module.SEAQUEST if recipe == "fused" else {}
    options = chosen["main"].keywords
    assert options == module.MINATAR | own
    inspect.signature(module.main).bind(**options)  # all are its options


@pytest.mark.once
def test_dqn_records_a_video(load_recipe, tmp_path):
    pytest.importorskip("moviepy")
    load_recipe("dqn").main(render="video", output_dir=tmp_path, **DQN_TINY)
    (video,) = (tmp_path / "video").glob("*.mp4")
    assert video.stat().st_size > 1000
    with Image.open(video.with_suffix(".gif")) as animation:
        assert animation.n_frames > 1
        assert animation.size == (320, 213)  # of 600 x 400


@pytest.mark.once
def test_only_games_that_are_not_for_training_end_after_many_steps():
    import kit.envs  # registers them

    for id in (kit.envs.MINATAR[0], "Blackjack-v1"):  # neither has a limit
        for training, steps in ((True, None), (False, 5_000)):
            env = agent_recipe.make_env(id, training)
            assert env.spec.max_episode_steps == steps
    assert agent_recipe.make_env("CartPole-v1").spec.max_episode_steps == 500


@pytest.mark.once
def test_spaces_are_those_of_one_environment():
    import kit.envs

    one = agent_recipe.make_env("CartPole-v1")
    several = agent_recipe.make_envs("CartPole-v1", 3)
    for env in (one, several, kit.envs.make("CartPole-v1", 3)):
        space, action_space = agent_recipe.spaces_of(env)
        assert space.shape == (4,)
        assert action_space == one.action_space
    with pytest.raises(TypeError, match="received 'CartPole-v1'"):
        agent_recipe.spaces_of("CartPole-v1")


def test_an_episode_of_a_game_of_the_kit_is_recorded(tmp_path):
    pytest.importorskip("moviepy")
    env = "kit.envs:kit/Breakout-v1"
    agent_recipe.record_video(lambda obs: 0, env, tmp_path, seed=0)
    (video,) = (tmp_path / "video").glob("*.mp4")
    assert video.stat().st_size > 1000
    with Image.open(video.with_suffix(".gif")) as animation:
        assert animation.size == (160, 160)
        assert animation.info["duration"] == 100


@pytest.mark.once
def test_an_animated_picture_is_small_enough(tmp_path, monkeypatch):
    assert agent_recipe.MOST_BYTES == 1_000_000
    rng = np.random.default_rng(0)
    noise = rng.integers(256, size=(200, 300, 3), dtype="uint8")
    frames = [np.roll(noise, i, axis=0) for i in range(20)]
    path, sizes = tmp_path / "small.gif", []
    for most in (1_000_000, 100_000):
        monkeypatch.setattr(agent_recipe, "MOST_BYTES", most)
        agent_recipe.save_animation(path, frames, 50)
        assert path.stat().st_size <= most
        with Image.open(path) as animation:
            sizes.append(animation.size)
            assert animation.n_frames == 4  # every fifth
            assert animation.info["duration"] == 100
    assert sizes[0] == (300, 200) and sizes[1][0] < 240


def test_an_animated_picture_shows_twelve_seconds(tmp_path):
    frames = [np.full((4, 4, 3), i, "uint8") for i in range(200)]
    agent_recipe.save_animation(tmp_path / "short.gif", frames, 10)
    with Image.open(tmp_path / "short.gif") as animation:
        assert animation.n_frames == 120


def test_dqn_refuses_continuous_actions_before_it_trains(load_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"action space Box.*Discrete"):
        load_recipe("dqn").main(env="Pendulum-v1", output_dir=tmp_path, **DQN_TINY)


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(5))
def test_dqn_learns_cartpole(load_recipe, seed, tmp_path):
    record = load_recipe("dqn").main(seed=seed, output_dir=tmp_path, verbose=0)
    assert record["metrics"]["eval_return"] >= 475


@pytest.mark.learn
def test_dqn_learns_acrobot(load_recipe, tmp_path):
    record = load_recipe("dqn").main(
        env="Acrobot-v1",
        total_timesteps=60_000,
        learning_rate=6.3e-4,
        batch_size=128,
        train_freq=64,
        gradient_steps=64,
        target_update_freq=250,
        output_dir=tmp_path,
        verbose=0,
    )
    assert record["metrics"]["eval_return"] >= -90
