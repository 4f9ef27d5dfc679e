"""recipes/pixels.py: eyes that are trained beforehand, and what they see."""

import json

import keras
import numpy as np
import pytest
from interruptions import check_resumed_run

import kit
from kit.envs import Breakout
from kit.envs.minatar.board import COLORS, GROUND, paint
from kit.lab.run import Run

TINY = {
    "total_timesteps": 96,
    "num_envs": 4,
    "buffer_size": 64,
    "batch_size": 8,
    "learning_starts": 0,  # so that there is one program, not two
    "target_update_freq": 16,
    "latent_dim": 4,
    "pretraining_frames": 40,
    "pretraining_epochs": 1,
    "eval_episodes": 2,
    "verbose": 0,
}
WAYS = {"end_to_end", "frozen", "fine_tuned", "imitation", "linear"}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("pixels")


# Five programs to compile; tests/test_exchange.py trains on every backend.
@pytest.mark.once
def test_pixels_leaves_what_it_promises(recipe, tmp_path, capsys):
    recipe.main(output_dir=tmp_path, seed=1, **TINY)
    names = {"history.csv", "curves.png", "seeing.png", "metrics.json", "model.keras"}
    names |= {f"{way}-1.keras" for way in WAYS | {"autoencoder", "clone"}}
    assert names <= {path.name for path in tmp_path.iterdir()}
    assert not (tmp_path / "backups").exists()

    record = json.loads((tmp_path / "metrics.json").read_text())
    metrics, baselines = record["metrics"], record["baselines"]
    returns = {f"{way}_eval_return" for way in (*WAYS - {"linear"}, "clone")}
    returns = returns - {"end_to_end_eval_return"} | {"eval_return"}
    assert returns == {name for name in metrics if name.endswith("eval_return")}
    assert set(baselines) == {"random_return", "linear_eval_return", "mean_picture_mse"}
    # Steps that others have made for an agent: their pictures, and the teacher's play.
    extra = {name: x for name, x in metrics.items() if name.endswith("extra_steps")}
    assert extra == {
        "frozen_extra_steps": 40,
        "fine_tuned_extra_steps": 40,
        "imitation_extra_steps": 40 + 96,
    }
    assert metrics["total_timesteps"] == 96
    assert record["throughput"]["unit"] == "env steps/s"
    assert capsys.readouterr().out == ""

    rows = np.genfromtxt(tmp_path / "history.csv", None, delimiter=",", names=True)
    assert set(rows["way"]) == WAYS
    for way in WAYS:
        assert rows["timesteps"][rows["way"] == way][-1] == 96

    agent = keras.saving.load_model(tmp_path / "model.keras")
    other = keras.saving.load_model(tmp_path / "end_to_end-1.keras")
    for a, b in zip(agent.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
    assert agent.act(np.zeros((10, 10, 4), bool)) in range(6)


@pytest.mark.once
def test_several_seeds_are_compared_by_their_means(recipe, tmp_path):
    options = {**TINY, "ways": ("linear",), "seeds": 2}
    record = recipe.main(output_dir=tmp_path, seed=3, **options)
    found = record["baselines"]
    single = [found[f"linear_eval_return_seed_{seed}"] for seed in (3, 4)]
    assert found["linear_eval_return"] == pytest.approx(np.mean(single))
    assert "reconstruction_mse" not in record["metrics"]
    names = {path.name for path in tmp_path.glob("*.keras")}
    assert names == {"model.keras", "linear-3.keras", "linear-4.keras"}


@pytest.mark.once
def test_a_resumed_comparison_has_the_same_figures(recipe, tmp_path, monkeypatch):
    options = {**TINY, "ways": ("frozen", "linear"), "total_timesteps": 24}
    # The autoencoder makes one call of its program, the agents three or more.
    check_resumed_run(recipe.main, tmp_path, monkeypatch, (3, 4), **options)


# --- Networks ------------------------------------------------------------------------


@pytest.fixture
def learned(recipe):
    """What is trained beforehand, here with random weights."""
    autoencoder = kit.autoencoder((10, 10, 4), 4, units=(8,))
    clone = kit.Sequential(kit.q_network(Breakout().observation_space, 6).layers)
    clone.build((None, 10, 10, 4))
    for model in (autoencoder, clone):
        kit.initialize_weights(model, 5)
    return {"autoencoder": autoencoder, "clone": clone}


@pytest.mark.parametrize(
    "way", ["frozen", pytest.param("fine_tuned", marks=pytest.mark.once)]
)
def test_rewards_change_a_code_unless_it_is_frozen(recipe, learned, way):
    encoder = learned["autoencoder"].encoder
    before = encoder.get_weights()
    network = recipe.q_network(way, Breakout(), learned, seed=0)
    begins = network.get_weights()
    (code,) = (x for x in network.layers if isinstance(x, keras.Sequential))
    for a, b in zip(code.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)

    agent = kit.DQN(network, batch_size=8, learning_starts=0, train_freq=1)
    agent.compile(keras.optimizers.Adam(1e-2))
    agent.fit(Breakout(4), 80, verbose=0)
    changed = [
        not np.array_equal(*x) for x in zip(code.get_weights(), before, strict=True)
    ]
    assert changed == [way == "fine_tuned"] * len(before)
    changed = [
        not np.array_equal(*x) for x in zip(network.get_weights(), begins, strict=True)
    ]
    assert all(changed[-4:])  # the two layers behind it
    # Both ways, and the pictures, begin with the same autoencoder.
    for a, b in zip(encoder.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_weights_of_a_classifier_arrive_in_the_agent(recipe, learned):
    network = recipe.q_network("imitation", Breakout(), learned, seed=0)
    *hidden, last = [x.get_weights() for x in network.layers]
    *expected, outputs = [x.get_weights() for x in learned["clone"].layers]
    assert sum(map(len, hidden)) == 4  # of a convolution and a Dense layer
    for found, wanted in zip(hidden, expected, strict=True):
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
    assert not np.array_equal(last[0], outputs[0])  # these are no Q-values


def test_a_classifier_learns_what_its_teacher_does(recipe, tmp_path):
    run, game = Run("pixels", output_dir=tmp_path), Breakout(10)
    teacher = kit.DQN(kit.q_network(game.observation_space, 6))
    kit.initialize_weights(teacher.q_network, 3)
    options = {"num_frames": 400, "epochs": 20, "batch_size": 32, "verbose": 0}
    clone = recipe.learn_to_imitate(run, "clone", game, teacher, seed=0, **options)
    frames, actions = recipe.record(game, teacher.greedy_policy(), 200, seed=1)
    agreement = np.mean(recipe.best_of(clone)(frames) == actions)
    assert agreement > max(0.9, np.bincount(actions).max() / len(actions))


def test_what_is_recorded(recipe):
    game = Breakout(3)
    frames, actions = recipe.record(game, lambda obs: np.arange(3), 7, seed=0)
    assert frames.shape == (7, 10, 10, 4)
    assert frames.dtype == "float32"
    assert actions.tolist() == [0, 1, 2, 0, 1, 2, 0]
    trails = np.argwhere(frames[..., 2])  # where the ball was before
    balls = np.argwhere(frames[..., 1])
    np.testing.assert_array_equal(trails[3:, 1:], balls[:-3, 1:])


# --- Pictures ------------------------------------------------------------------------


def test_saliency_of_a_linear_network_by_hand(recipe):
    network = keras.Sequential(
        [keras.Input((1, 2, 2)), keras.layers.Flatten(), keras.layers.Dense(2)]
    )
    kernel = np.array([[1.0, 0.0], [-3.0, 0.0], [0.5, 2.0], [0.25, -1.0]])
    network.set_weights([kernel, np.array([0.0, 0.5])])
    frames = np.array([[[[1, 0], [0, 0]]], [[[0, 0], [1, 0]]]], "float32")
    # Q-values are (1, 0.5) and (0.5, 2.5): the gradient is a column of the kernel.
    np.testing.assert_allclose(
        recipe.saliency(network, frames), [[[3.0, 0.5]], [[0.0, 2.0]]]
    )


def test_pictures_of_boards_by_hand():
    ground, first, second = (np.array(x) / 255 for x in (GROUND, *COLORS[:2]))
    boards = np.array([[0, 0], [1, 0], [0, 1], [1, 1], [0.5, 0]])
    expected = [ground, first, second, first, (ground + first) / 2]
    np.testing.assert_allclose(paint(boards), expected, rtol=1e-6)
    assert paint(np.zeros((2, 10, 10, 10), bool)).shape == (2, 10, 10, 3)


# --- Bad arguments -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ways": ("imitation",)}, r"`ways`.*'end_to_end'.*received \['imitation'\]"),
        ({"ways": ()}, "`ways` must be"),
        ({"ways": ("linear", "blind")}, "`ways` must be .*'end_to_end'"),
        ({"env": "CartPole-v1"}, "`env`.*Breakout-v1.*'CartPole-v1'"),
        ({"env": "Pong"}, "`env` must be one of .*'Pong'"),
        ({"seeds": 0}, "`seeds` must be"),
        ({"latent_dim": 0}, "`latent_dim` must be"),
        ({"pretraining_frames": 0}, "`pretraining_frames` must be"),
        ({"pretraining_epochs": 0}, "`pretraining_epochs` must be"),
        ({"num_envs": 0}, "`num_envs` must be"),
        ({"total_timesteps": 0}, "`total_timesteps` must be"),
        ({"batch_size": 0}, "`batch_size` must be"),
    ],
)
def test_bad_arguments_are_named(recipe, options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        recipe.main(output_dir=tmp_path, **{**TINY, **options})
