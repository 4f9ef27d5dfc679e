"""Each benchmark runs from end to end, as small as can be."""

import importlib.util
import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from keras import ops

import kit
from kit.actor_critic import value_loss
from kit.ppo import clipped_value_loss

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def beside_each_other(monkeypatch):
    """A script finds the ones beside it."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def load(name):
    spec = importlib.util.spec_from_file_location(
        f"benchmark_{name}", ROOT / "benchmarks" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.thorough
def test_core_times_every_contestant(monkeypatch, tmp_path):
    core = load("core")
    monkeypatch.setattr(core, "NETWORKS", {"4-8-2": ((4, 8, 2), 16)})
    output = tmp_path / "core.json"
    rows = core.main(seconds=0.0, rounds=1, batches=3, output=output)
    assert {"native", "keras train_on_batch", "kit compiled", "kit scan"} <= {
        row["contestant"] for row in rows if row["task"] == "train 4-8-2, batch 16"
    }
    assert {"native", "keras model(x)", "keras predict_on_batch", "kit compiled"} <= {
        row["contestant"] for row in rows if row["task"] == "act 4-8-2, batch 1"
    }
    assert all(row["min_us"] > 0 for row in rows)
    assert json.loads(output.read_text())["rows"] == rows


def test_rounds_refuse_contestants_that_differ():
    contestants = {"native": lambda: 1.0, "kit compiled": lambda: 1.01}
    with pytest.raises(AssertionError, match="kit compiled computes 1.01"):
        load("rounds").measure("train", contestants, 1, 0.0, 1)


def test_ratios_are_those_within_a_round():
    times = {
        "native": [1.0, 10.0, 2.0],
        "keras train_on_batch": [4.0, 40.0, 8.0],
        "kit compiled": [2.0, 5.0, 2.0],
    }
    row = load("rounds").summary(times, "keras train_on_batch")[2]
    assert (row["median_us"], row["min_us"]) == (2.0, 2.0)
    assert row["of_native"] == 1.0  # the median of 2, 0.5, 1
    assert row["keras_of_it"] == 4.0  # of 2, 8, 4


@pytest.mark.thorough
@pytest.mark.parametrize("who", ["kit", "sb3", "sbx"])
def test_dqn(who, monkeypatch, tmp_path):
    dqn = load("dqn")
    # Not importorskip: the contestants belong into processes of their own.
    if importlib.util.find_spec(dqn.PACKAGES[who]) is None:
        pytest.skip(f"{who} is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where the kit isn't installed
    output = tmp_path / "dqn.json"
    (row,) = dqn.main(
        contestants=(who,), total_timesteps=1_100, episodes=1, output=output
    )
    assert row["contestant"].startswith(who)
    assert row["steps"] == (1_100 if who == "kit" else 1_280)  # whole turns
    assert row["steps_per_second"] > 0 and row["steps_per_second_later"] > 0
    assert 1 <= row["return"] <= 500 and np.isfinite(row["return_std"])
    assert json.loads(output.read_text()) == [row]


@pytest.mark.thorough
def test_fused(monkeypatch, tmp_path):
    fused = load("fused")
    monkeypatch.setattr(fused, "PEERS", ())
    output = tmp_path / "fused.json"
    rows = fused.main(num_envs=(2,), steps=300, rounds=1, output=output)
    assert {"kit", "gymnasium"} <= {row["contestant"] for row in rows}
    assert all(row["steps_per_second"] > 0 for row in rows)
    assert json.loads(output.read_text())["rows"] == rows


@pytest.mark.thorough
@pytest.mark.parametrize("who", ["kit", "sb3", "sbx"])
def test_pixels(who, monkeypatch):
    pytest.importorskip("ale_py")
    pixels = load("pixels")
    if importlib.util.find_spec(pixels.PACKAGES[who]) is None:
        pytest.skip(f"{who} is not installed")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (row,) = pixels.main(contestants=(who,), total_timesteps=220)
    assert row["contestant"].startswith(who) and row["steps"] == 220
    assert row["steps_per_second_later"] > 0 and "return" not in row


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("algorithm", "who", "steps"),
    [
        ("ppo", "kit", 512),
        ("a2c", "kit", 320),
        ("ppo", "sb3", 512),
        ("a2c", "sb3", 320),
    ],
)
def test_on_policy(algorithm, who, steps):
    on_policy = load("on_policy")
    if importlib.util.find_spec(on_policy.PACKAGES[who]) is None:
        pytest.skip(f"{who} is not installed")
    (row,) = on_policy.main(
        algorithm=algorithm, contestants=(who,), total_timesteps=300, episodes=1
    )
    assert row["contestant"].startswith(who)
    assert row["steps"] == steps  # whole turns
    assert row["steps_per_second"] > 0 and 1 <= row["return"] <= 500


@pytest.mark.parametrize("algorithm", ["ppo", "a2c"])
def test_the_critics_loss_weighs_as_much_as_the_peers(algorithm):
    agent = load("on_policy").kit_agent(algorithm, Discrete(2), seed=0)
    value, returns = (
        ops.convert_to_tensor(np.array(x, "float32")) for x in ([1, 4], [3, 1])
    )
    if algorithm == "ppo":
        loss = clipped_value_loss(value, value, returns, np.inf)
    else:
        loss = value_loss(value, returns)
    # Stable-Baselines3 adds 0.5 (V - R)^2 to the actor's loss.
    np.testing.assert_allclose(agent.vf_coef * ops.convert_to_numpy(loss), [2, 4.5])


def test_a2c_has_the_peers_optimizer():
    agent = load("on_policy").kit_agent("a2c", Discrete(2), seed=0)
    variables, before = agent.trainable_variables, agent.get_weights()
    # One gradient isn't 0, and small: there it matters where epsilon is added.
    gradients = [np.zeros(w.shape, "float32") for w in before]
    gradients[-1][:] = 1e-3
    step = kit.compiled(
        lambda *x: kit.backend.apply_gradients(x, variables, agent.optimizer)
    )
    w, v = before[-1].item(), 0.0
    for _ in range(3):
        step(*gradients)
        v = 0.99 * v + 0.01 * 1e-3**2
        w -= 7e-4 * 1e-3 / (np.sqrt(v) + 1e-5)  # torch.optim.RMSprop's
    np.testing.assert_allclose(agent.get_weights()[-1], [w], rtol=0.1)


def test_dqn_reports_a_missing_peer(monkeypatch, capsys):
    dqn = load("dqn")
    monkeypatch.setitem(dqn.PACKAGES, "sbx", "a_package_that_is_missing")
    assert dqn.main(contestants=("sbx",)) == []
    assert 'pip install -e ".[bench]"' in capsys.readouterr().out
    assert "a_package_that_is_missing" not in sys.modules


def test_transformer(tmp_path):
    transformer = load("transformer")
    output = tmp_path / "transformer.json"
    small = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "sequence_length": 12}
    run = {"batch_size": 2, "batches": 2, "seconds": 0.0, "rounds": 1}
    if keras.backend.backend() not in transformer.NATIVE:
        with pytest.raises(ValueError, match="the native code is for jax and torch"):
            transformer.main(**small, **run)
        return
    rows = transformer.main(**small, **run, output=output)
    assert {row["contestant"] for row in rows} == {
        "native",
        "keras fit",
        "kit fit",
        "kit",
        "kit, no cache",
    }
    assert json.loads(output.read_text())["rows"] == rows
