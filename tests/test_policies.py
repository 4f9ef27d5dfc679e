"""Policies: distributions beside SciPy's, and the networks that end in them."""

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from keras import ops
from scipy import special, stats

import kit
from kit.rl.policies import Categorical, Gaussian, MultiCategorical, distribution

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype("float32")
MEAN, LOG_STD = RNG.normal(size=(2, 6, 3)).astype("float32")


def numpy(x):
    return ops.convert_to_numpy(x)


def gaussian(**options):
    layer = Gaussian(-np.ones(3), np.ones(3), **options)
    layer.build((None, 3))
    return layer


def test_categorical_beside_scipy():
    layer, action = Categorical(5), np.array([0, 4, 2, 1, 3, 3])
    p = special.softmax(LOGITS, axis=1)
    expected = np.log(p[np.arange(6), action])
    np.testing.assert_allclose(numpy(layer.log_prob(LOGITS, action)), expected, 1e-5)
    expected = [stats.entropy(row) for row in p]
    np.testing.assert_allclose(numpy(layer.entropy(LOGITS)), expected, 1e-5)
    np.testing.assert_array_equal(numpy(layer.mode(LOGITS)), LOGITS.argmax(1))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_actions_stay_in_a_box_of_any_real_type(dtype):
    # float32(0.3) > 0.3, and float16(0.1) < 0.1.
    box = Box(np.array([-0.3, 0.1], dtype), np.array([0.3, 0.7], dtype), dtype=dtype)
    layer = distribution(box)
    assert layer.fits(box)
    actions = np.array([[-9, -9], [0, 0.5], [9, 9], [-0.3, 0.1], [0.3, 0.7]], "float32")
    for action in layer.to_env(actions):
        assert box.contains(action) and action.dtype == dtype
    again = Gaussian.from_config(layer.get_config())
    np.testing.assert_array_equal(again.to_env(actions), layer.to_env(actions))
    assert again.fits(box)


def test_bounds_that_are_rounded_otherwise_are_those_of_another_space():
    wide = Box(-1, 1, (1,), np.float64)
    assert Gaussian([-1.0], [1.0]).fits(wide)  # float32 is among float64
    assert not distribution(wide).fits(Box(-1, 1, (1,), np.float32))
    assert not Gaussian([-0.3], [0.3]).fits(Box(-0.3, 0.3, (1,), np.float64))


def test_multi_categorical_beside_scipy():
    layer = MultiCategorical((2, 3))
    action = np.array([[0, 2], [1, 0], [1, 1], [0, 0], [0, 1], [1, 2]])
    choices = [special.softmax(part, axis=1) for part in np.split(LOGITS, [2], axis=1)]
    rows = np.arange(6)
    expected = sum(np.log(p[rows, action[:, k]]) for k, p in enumerate(choices))
    np.testing.assert_allclose(numpy(layer.log_prob(LOGITS, action)), expected, 1e-5)
    expected = sum(stats.entropy(p, axis=1) for p in choices)
    np.testing.assert_allclose(numpy(layer.entropy(LOGITS)), expected, 1e-5)
    expected = np.stack([p.argmax(1) for p in choices], axis=1)
    np.testing.assert_array_equal(numpy(layer.mode(LOGITS)), expected)


def test_gaussian_beside_scipy():
    layer, outputs = gaussian(), np.concatenate([MEAN, LOG_STD], axis=1)
    action = RNG.normal(size=(6, 3)).astype("float32")
    normal = stats.norm(MEAN, np.exp(LOG_STD))
    expected = normal.logpdf(action).sum(axis=1)
    np.testing.assert_allclose(numpy(layer.log_prob(outputs, action)), expected, 1e-4)
    expected = normal.entropy().sum(axis=1)
    np.testing.assert_allclose(numpy(layer.entropy(outputs)), expected, 1e-4)
    np.testing.assert_array_equal(numpy(layer.mode(outputs)), MEAN)


def test_gaussian_has_standard_deviations_of_its_own():
    layer = gaussian(initial_log_std=-0.5)
    got = numpy(layer(MEAN))
    np.testing.assert_allclose(got, np.hstack([MEAN, np.full((6, 3), -0.5)]))
    assert [tuple(w.shape) for w in layer.trainable_weights] == [(3,)]


@pytest.mark.parametrize("kind", ["categorical", "multi", "gaussian"])
def test_samples_are_distributed_as_they_say(kind):
    n = 20_000
    layer, outputs = {
        "categorical": (Categorical(5), LOGITS[:1]),
        "multi": (MultiCategorical((2, 3)), LOGITS[:1]),
        "gaussian": (gaussian(), np.hstack([MEAN, LOG_STD])[:1]),
    }[kind]
    noise = layer.noise(kit.random.key(3), (n,))
    many = np.repeat(outputs, n, axis=0)
    draw = kit.compiled(lambda x, noise: layer.sample(x, noise))
    action = numpy(draw(many, noise))
    # The mean of -log p is the entropy, whatever the distribution.
    surprise = -numpy(layer.log_prob(many, action)).mean()
    assert surprise == pytest.approx(numpy(layer.entropy(outputs))[0], abs=0.03)
    if kind == "gaussian":
        np.testing.assert_allclose(action.mean(0), MEAN[0], atol=0.06)
    else:
        first = action if kind == "categorical" else action[:, 0]
        logits = LOGITS[0] if kind == "categorical" else LOGITS[0, :2]
        share = np.bincount(first, minlength=len(logits)) / n
        np.testing.assert_allclose(share, special.softmax(logits), atol=0.015)


def test_actions_for_the_environment():
    assert Categorical(3, start=5).to_env(np.array([0, 2])).tolist() == [5, 7]
    multi = MultiCategorical((2, 2), (1, 0))
    assert multi.to_env(np.array([[0, 1]])).tolist() == [[1, 1]]
    box = Gaussian([[-1, -2]], [[1, 2]])
    got = box.to_env(np.array([[0.5, 9.0], [-3.0, -1.0]]))
    assert got.tolist() == [[[0.5, 2.0]], [[-1.0, -1.0]]]


@pytest.mark.parametrize(
    ("space", "kind", "other"),
    [
        (Discrete(3, start=2), Categorical, Discrete(3)),
        (MultiDiscrete([2, 4]), MultiCategorical, MultiDiscrete([4, 2])),
        (MultiBinary(3), MultiCategorical, MultiBinary(4)),
        (Box(-2, 2, (2,)), Gaussian, Box(-1, 2, (2,))),
    ],
)
def test_spaces_have_their_layers(space, kind, other):
    layer = distribution(space)
    assert type(layer) is kind and layer.fits(space)
    assert not layer.fits(other) and not layer.fits(Box(-9, 9, (7,)))
    config = keras.saving.serialize_keras_object(layer)
    assert keras.saving.deserialize_keras_object(config).fits(space)
    model = kit.policy_network((4,), space, (8,))
    action = layer.to_env(numpy(layer.mode(model(np.zeros((1, 4))))))[0]
    assert space.contains(np.asarray(action, space.dtype))


@pytest.mark.parametrize(
    "space", [Dict({}), Box(0, 1, (2,), np.bool_), MultiDiscrete([[2, 2]])]
)
def test_other_spaces_are_refused(space):
    with pytest.raises(ValueError, match="isn't supported; Discrete, MultiDiscrete"):
        distribution(space)


def test_standard_deviations_begin_where_they_are_said_to():
    space = Box(-1, 1, (2,))
    for build in (kit.policy_network, kit.shared_network):
        model = build((3,), space, (8,), "relu", -2.0)
        outputs = model(np.zeros((1, 3)))
        outputs = outputs[0] if isinstance(outputs, list | tuple) else outputs
        np.testing.assert_array_equal(numpy(outputs)[0, 2:], [-2.0, -2.0])
        with pytest.raises(ValueError, match="`initial_log_std` is -2.0, but actions"):
            build((3,), Discrete(2), (8,), "relu", -2.0)


def test_wrong_numbers_are_refused():
    with pytest.raises(
        ValueError, match=r"`num_actions` must be an integer in \[1, .*received 0"
    ):
        Categorical(0)
    with pytest.raises(
        ValueError, match=r"`nvec` must be .*integer in \[1, .*\(2, 0\)"
    ):
        MultiCategorical((2, 0))
    with pytest.raises(ValueError, match="same shape, received \\(2,\\) and \\(3,\\)"):
        Gaussian([0, 0], [1, 1, 1])
    with pytest.raises(ValueError, match="`low` must not be above `high`"):
        Gaussian([1.0], [-1.0])
    with pytest.raises(ValueError, match="`start` must have as many.*2; received 1"):
        MultiCategorical((2, 3), (1,))
    with pytest.raises(ValueError, match="needs 3 numbers.*received 4"):
        keras.Sequential([keras.Input((4,)), Categorical(3)])
    with pytest.raises(ValueError, match="policy_network: `obs_shape` is \\(\\)"):
        kit.policy_network((), Discrete(2))


def test_networks_begin_as_published():
    space = gymnasium.spaces.Discrete(3)
    actor, critic = kit.policy_network((4,), space), kit.value_network((4,))
    for model, gain in ((actor, 0.01), (critic, 1.0)):
        kernels = [numpy(w) for w in model.weights if w.name == "kernel"]
        assert [k.shape[1] for k in kernels[:2]] == [64, 64]
        for kernel, g in zip(kernels, (np.sqrt(2), np.sqrt(2), gain), strict=True):
            small = kernel.T if kernel.shape[0] > kernel.shape[1] else kernel
            np.testing.assert_allclose(
                small @ small.T, g**2 * np.eye(len(small)), atol=1e-4
            )
        assert not any(numpy(w).any() for w in model.weights if w.name == "bias")
    kit.initialize_weights(actor, 0)  # knows every initializer


def test_networks_for_images_and_in_one():
    space = Box(-1, 1, (2,))
    actor = kit.policy_network((8, 8, 3), space, (16,))
    assert actor.output_shape == (None, 4)
    assert any(isinstance(x, keras.layers.Conv2D) for x in actor.layers)
    assert kit.value_network((2, 5)).output_shape == (None, 1)
    shared = kit.shared_network((4,), space, (16,))
    assert shared.output_shape == [(None, 4), (None, 1)]
    assert shared.count_params() == 4 * 16 + 16 + 17 * 2 + 2 + 17
