"""What isn't finite, or has no meaning, stops a training with a clear error."""

import functools

import gymnasium
import keras
import numpy as np
import pytest

import kit
from kit import finite
from kit.finite import DivergenceError
from kit.rl.environments import Environments

SILENT = {"verbose": 0}


def data(num=64):
    rng = np.random.default_rng(0)
    return rng.normal(size=(num, 4)).astype("float32"), np.arange(num) % 3


def model(loss="sparse_categorical_crossentropy", rate=1e-2, **options):
    activation = "softmax" if "crossentropy" in str(loss) else None
    layers = [keras.Input((4,)), keras.layers.Dense(3, activation)]
    network = kit.Sequential(layers)
    kit.initialize_weights(network, 0)
    network.compile(keras.optimizers.SGD(rate), loss, **options)
    return network


# --- `fit` of models --------------------------------------------------------------


def test_a_loss_that_is_not_finite_ends_a_training_with_good_weights():
    x, _ = data()
    network = model("mse", 1e9)
    before = network.get_weights()
    with pytest.raises(
        DivergenceError,
        match=r"Sequential: `loss` is .* learning rate"
        r".*1e\+09, and gradients aren't clipped\): try a tenth .*clipnorm=1.0; "
        r"inputs, .*check_finite=False\) only",
    ) as error:
        network.fit(x, np.ones((64, 3)), epochs=20, **SILENT)
    assert error.value.quantity == "loss" and not np.isfinite(error.value.value)
    for now, then in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)  # those of the beginning are kept


def test_weights_that_are_kept_are_good(monkeypatch):
    monkeypatch.setattr(finite, "INTERVAL", 0.0)
    monkeypatch.setattr(finite, "MAX_SHARE", 1e9)
    network = model()
    guard = finite.Guard(network, True, [], "batch")
    weights = {}
    for name, value in (("begin", 1.0), ("good", 2.0), ("bad", 3.0)):
        weights[name] = [np.full_like(w, value) for w in network.get_weights()]
    network.set_weights(weights["begin"])
    guard.keep(0)
    network.set_weights(weights["good"])
    guard.look({"loss": 0.5}, 1)
    network.set_weights(weights["bad"])
    with pytest.raises(DivergenceError, match="batch 2. The weights of batch 1 are"):
        guard.look({"loss": float("nan")}, 2)
    for now, then in zip(network.get_weights(), weights["good"], strict=True):
        np.testing.assert_array_equal(now, then)


def test_check_finite_false_goes_on():
    x, _ = data()
    network = model("mse", 1e9)
    history = network.fit(x, np.ones((64, 3)), epochs=20, check_finite=False, **SILENT)
    assert len(history.epoch) == 20 and not np.isfinite(history.history["loss"][-1])


def test_keras_callback_ends_it_without_an_error():
    x, _ = data()
    callbacks = [keras.callbacks.TerminateOnNaN()]
    history = model("mse", 1e9).fit(
        x, np.ones((64, 3)), epochs=20, callbacks=callbacks, **SILENT
    )
    assert len(history.epoch) < 20


def test_keras_own_loop_is_guarded_too():
    x, _ = data()
    y = np.ones((64, 3))
    network = model("mse", 1e9, jit_compile=False)
    with pytest.raises(DivergenceError, match="`loss` is .* of an epoch"):
        network.fit(x, y, epochs=20, **SILENT)
    network = model("mse", 1e9, jit_compile=False)
    history = network.fit(x, y, epochs=20, check_finite=False, **SILENT)
    assert len(history.epoch) == 20


def test_metrics_may_have_nothing_to_measure():
    class Nothing(keras.metrics.SparseCategoricalAccuracy):
        def result(self):
            return super().result() * float("nan")

    x, y = data()
    network = model(metrics=[Nothing(name="nothing")])
    history = network.fit(x, y, epochs=2, **SILENT)
    assert np.isnan(history.history["nothing"]).all()


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_examples_that_are_not_finite_are_refused(value):
    x, y = data()
    network, before = model(), model().get_weights()
    bad = x.copy()
    bad[17, 2] = value
    with pytest.raises(ValueError, match="`x` holds NaN or infinity.* example 17"):
        network.fit(bad, y, **SILENT)
    with pytest.raises(ValueError, match="validation_data: `x` holds NaN"):
        network.fit(x, y, validation_data=(bad, y), **SILENT)
    weight = np.ones(64)
    weight[3] = value
    with pytest.raises(ValueError, match="`sample_weight` holds .* example 3"):
        network.fit(x, y, sample_weight=weight, **SILENT)
    target = np.ones((64, 3))
    target[5, 1] = value
    with pytest.raises(ValueError, match="`y` holds NaN or infinity.* example 5"):
        model("mse").fit(x, target, **SILENT)
    for now, then in zip(network.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_inputs_by_name_are_told_apart():
    inputs = {"a": keras.Input((2,), name="a"), "b": keras.Input((2,), name="b")}
    outputs = keras.layers.Dense(1)(keras.layers.Concatenate()(list(inputs.values())))
    network = kit.Model(inputs, outputs)
    network.compile("sgd", "mse")
    x = {"a": np.ones((8, 2)), "b": np.full((8, 2), np.nan)}
    with pytest.raises(ValueError, match=r"`x\['b'\]` holds NaN"):
        network.fit(x, np.ones((8, 1)), **SILENT)


@pytest.mark.parametrize(
    "loss",
    [
        "sparse_categorical_crossentropy",
        keras.losses.SparseCategoricalCrossentropy(),
        keras.losses.sparse_categorical_crossentropy,
    ],
)
@pytest.mark.parametrize("label", [7, 3, -1])
def test_labels_outside_of_their_classes_are_refused(loss, label):
    x, y = data()
    with pytest.raises(ValueError, match=rf"labels from 0 to 2.*3 outputs.*{label}"):
        model(loss).fit(x, np.where(y == 1, label, y), **SILENT)
    with pytest.raises(ValueError, match="`validation_data` must hold labels"):
        model(loss).fit(x, y, validation_data=(x, np.where(y == 1, label, y)), **SILENT)


def test_labels_that_a_loss_ignores_are_none_of_ours():
    x, y = data()
    loss = keras.losses.SparseCategoricalCrossentropy(ignore_class=-1)
    model(loss).fit(x, np.where(y == 1, -1, y), **SILENT)


def test_labels_of_another_shape_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match=r"one label for each output.*\(64, 2\)"):
        model().fit(x, np.stack([y, y], axis=1), **SILENT)
    model().fit(x, y[:, None], **SILENT)


def test_probabilities_outside_of_their_range_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="from 0 to 1, .* from 0 to 2"):
        model("binary_crossentropy").fit(x, np.eye(3)[y] * 2, **SILENT)
    model("categorical_crossentropy").fit(x, np.eye(3)[y], **SILENT)


# --- Agents -----------------------------------------------------------------------


class Broken(gymnasium.Wrapper):
    """Returns something else in one step."""

    def __init__(self, step, obs=None, reward=None, error=None):
        super().__init__(gymnasium.make("CartPole-v1", disable_env_checker=True))
        self.count, self.broken = 0, step
        self.changed_obs, self.changed_reward, self.error = obs, reward, error

    def step(self, action):
        obs, reward, *flags = self.env.step(action)
        self.count += 1
        if self.count == self.broken:
            if self.error:
                raise self.error
            obs = obs if self.changed_obs is None else self.changed_obs
            reward = reward if self.changed_reward is None else self.changed_reward
        return obs, reward, *flags


def dqn(optimizer):
    network = kit.q_network((4,), 2, units=(8,))
    kit.initialize_weights(network, 0)
    agent = kit.DQN(network, learning_starts=20, batch_size=8)
    agent.compile(optimizer, "mse")
    return agent


def on_policy(kind):
    def make(optimizer):
        actor = kit.policy_network((4,), gymnasium.spaces.Discrete(2), units=(8,))
        critic = kit.value_network((4,), units=(8,))
        kit.initialize_weights(actor, 0)
        kit.initialize_weights(critic, 1)
        agent = kind(actor, critic, num_steps=16)
        agent.compile(optimizer)
        return agent

    return make


AGENTS = {"DQN": dqn, "PPO": on_policy(kit.PPO), "A2C": on_policy(kit.A2C)}


@pytest.mark.parametrize("name", AGENTS)
def test_agents_stop_where_they_diverge(name):
    agent = AGENTS[name](keras.optimizers.SGD(1e30))
    before = agent.get_weights()
    env = gymnasium.make("CartPole-v1")
    with pytest.raises(DivergenceError, match=rf"{name}: `\w*loss` is .* in step "):
        agent.fit(env, 2000, **SILENT)
    for now, then in zip(agent.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)
    history = agent.fit(
        env, 2000, callbacks=[keras.callbacks.TerminateOnNaN()], **SILENT
    )
    assert history.history["timesteps"][-1] < 2000
    agent.set_weights(before)
    history = agent.fit(env, 200, check_finite=False, **SILENT)
    assert history.history["timesteps"][-1] >= 200


@pytest.fixture(scope="module")
def compiled_agent():
    """Returns an agent, each made once: an error leaves it as it was."""
    return functools.cache(lambda name: AGENTS[name]("sgd"))


@pytest.mark.once
@pytest.mark.parametrize("name", AGENTS)
@pytest.mark.parametrize(
    ("what", "match"),
    [
        ({"reward": np.nan}, r"CartPole-v1: the reward in step 37 isn't finite.*nan"),
        ({"reward": -np.inf}, "the reward in step 37"),
        (
            {"obs": np.array([0, np.nan, 0, 0], "float32")},
            r"CartPole-v1: the observation in step 37 isn't finite, .* causes: a "
            r"division by 0.*Print .*check_finite=False\) only",
        ),
        (
            {"obs": np.zeros(3, "float32")},
            r"the observation in step 37 has shape \(3,\) .* its space is Box",
        ),
        ({"obs": np.array(["a"] * 4)}, "dtype <U1"),
    ],
)
def test_agents_refuse_what_they_cannot_learn_from(name, what, match, compiled_agent):
    agent = compiled_agent(name)
    with pytest.raises(ValueError, match=match):
        agent.fit(Broken(37, **what), 200, **SILENT)
    assert all(np.isfinite(w).all() for w in agent.get_weights())


def test_a_reward_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"one number, .* of shape \(1,\)") as error:
        dqn("sgd").fit(Broken(5, reward=np.array([1.0])), 200, **SILENT)
    assert "CartPole-v1 in step 5" in error.value.__notes__[0]


def test_an_error_of_an_environment_says_which_and_when():
    with pytest.raises(ZeroDivisionError) as error:
        dqn("sgd").fit(Broken(9, error=ZeroDivisionError()), 200, **SILENT)
    (note,) = error.value.__notes__
    assert "`step` of the environment CartPole-v1 in step 9" in note
    assert "Discrete(2)" in note and "Box(" in note


def test_large_numbers_are_finite():
    class Large(gymnasium.ObservationWrapper):
        def observation(self, obs):
            return np.full_like(obs, 3e38)  # whose sum isn't

    envs = Environments(Large(gymnasium.make("CartPole-v1", disable_env_checker=True)))
    with np.errstate(over="ignore"):
        envs.reset(0)
        envs.step(np.array([0]))


def test_check_finite_is_a_flag():
    x, y = data()
    with pytest.raises(TypeError, match="`check_finite` must be True or False"):
        model().fit(x, y, check_finite="no", **SILENT)
