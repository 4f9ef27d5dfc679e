"""Every observation space of Gymnasium: packed, seen by networks, learned from."""

import copy

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Sequence,
    Text,
    Tuple,
)
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from interruptions import Killed, interrupt
from keras import ops
from test_backups import check_goes_on, every_step

import kit
import kit.envs
from kit.rl import spaces
from kit.rl.encoders import image_layout
from kit.rl.environments import Environments
from kit.rl.policies import distribution

EVERYTHING = Dict(
    image=Box(0, 255, (8, 9, 3), np.uint8),
    inner=Tuple([Discrete(3, start=2), MultiDiscrete([2, 4]), MultiBinary(2)]),
    number=Box(-2.0, 2.0, (), np.float32),
    vector=Box(np.array([-4, -np.inf]), np.array([4, np.inf]), dtype=np.float64),
)
SPACES = {
    "scalar": Box(-1, 1, ()),
    "vector": Box(-np.inf, np.inf, (3,)),
    "float16": Box(-1, 1, (2,), np.float16),
    "float64": Box(-1, 1, (2, 3), np.float64),
    "bytes": Box(0, 255, (5,), np.uint8),
    "int8": Box(-3, 3, (2,), np.int8),
    "uint64": Box(0, 2**64 - 1, (2,), np.uint64),
    "image": Box(0, 255, (12, 10, 3), np.uint8),
    "planes": Box(0, 1, (10, 10, 4), np.bool_),
    "tiny": Box(0, 255, (1, 4, 10), np.uint8),
    "discrete": Discrete(5, start=3),
    "many": Discrete(3_000),
    "choices": MultiDiscrete([[3, 4], [2, 2]]),
    "binary": MultiBinary(4),
    "tuple": Tuple([Discrete(3), Box(0, np.inf, (2,))]),
    "bytes and numbers": Dict(a=Discrete(4), b=Box(0, 255, (9, 9), np.uint8)),
    "large integers": Dict(a=Discrete(4), b=Box(0, 100_000, (2,), np.int32)),
    "everything": EVERYTHING,
}


class World(gymnasium.Env):
    """Observes anything in a space; episodes of four steps, every other truncated."""

    def __init__(self, space, action_space=None):
        self.observation_space = copy.deepcopy(space)
        self.action_space = Discrete(2) if action_space is None else action_space
        self.episode, self.actions = 0, []

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observe(), {}

    def _observe(self):
        # By the environment's generator, which backups have.
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        return self.observation_space.sample()

    def step(self, action):
        self.actions.append(action)
        self.steps += 1
        ended, odd = self.steps == 4, self.episode % 2 == 1
        reward = float(np.mean(action))
        return self._observe(), reward, ended and odd, ended and not odd, {}


def sample(space, seed=0):
    space = copy.deepcopy(space)
    space.seed(seed)
    return space.sample()


def packed(space, num=4):
    packing = spaces.Packing(space)
    return np.stack([packing.pack(sample(space, seed)) for seed in range(num)])


def numpy(x):
    return ops.convert_to_numpy(x)


def networks(kind, space, action_space=None, **options):
    action_space = Discrete(2) if action_space is None else action_space
    if kind is kit.DQN:
        return [kit.q_network(space, action_space.n, (8,), **options)]
    return [
        kit.policy_network(space, action_space, (8,), **options),
        kit.value_network(space, (8,), **options),
    ]


def make_agent(kind, space, action_space=None, **options):
    made = networks(kind, space, action_space)
    for i, network in enumerate(made):
        kit.initialize_weights(network, i)
    if kind is kit.DQN:
        few = {"learning_starts": 4, "buffer_size": 40, "batch_size": 4}
        options = {**few, "train_freq": 4, **options}
    else:
        options = {"num_steps": 4, **options}
    if kind is kit.PPO:  # fewer to compile
        options = {"num_minibatches": 1, "num_epochs": 1, **options}
    agent = kind(*made, **options)
    agent.compile("sgd")
    return agent


# --- Packing --------------------------------------------------------------------


def test_a_dict_is_packed_by_hand():
    packing = spaces.Packing(EVERYTHING)
    obs = {
        "image": np.arange(216, dtype=np.uint8).reshape(8, 9, 3),
        "inner": (4, np.array([1, 3]), np.array([0, 1], np.int8)),
        "number": np.float32(0.5),
        "vector": np.array([1.5, -9.0]),
    }
    got = packing.pack(obs)
    assert (got.shape, got.dtype, packing.dtype) == ((224,), "float32", "float32")
    np.testing.assert_array_equal(got[:216], np.arange(216))
    np.testing.assert_array_equal(got[216:], [4, 1, 3, 0, 1, 0.5, 1.5, -9])


@pytest.mark.parametrize("name", SPACES)
def test_packed_observations_are_taken_apart(name):
    space = SPACES[name]
    packing, obs = spaces.Packing(space), packed(space)
    assert obs.shape == (4, *packing.shape) and obs.dtype == packing.dtype
    again = spaces.restore(spaces.describe(space))
    assert again == space
    if packing.is_array:
        assert packing.shape == space.shape
        assert packing.dtype == space.dtype or name == "uint64"
        return
    parts = spaces.Unpacking(spaces.describe(space))(ops.cast(obs, "float32"))
    for i in range(4):
        rows = [numpy(part)[i] for part in parts]
        np.testing.assert_array_equal(
            np.concatenate([np.ravel(x) for x in rows]), obs[i].astype("float32")
        )
        shapes = [part.space.shape for part in packing.parts]
        assert [x.shape for x in rows] == shapes
    # A batch, as a vector environment has it.
    batch = gymnasium.vector.utils.batch_space(space, 4)
    batch.seed(0)
    batch = batch.sample()
    several = packing.pack_any(batch)
    one = gymnasium.vector.utils.iterate(
        gymnasium.vector.utils.batch_space(space, 4), batch
    )
    np.testing.assert_array_equal(several[0], packing.pack(next(one)))


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_environments_give_packed_observations(mode):
    env, alone, packing = World(EVERYTHING), World(EVERYTHING), None
    if mode is not None:
        make = [lambda: env, lambda: World(EVERYTHING)]
        env = SyncVectorEnv(make, autoreset_mode=mode)
    envs = Environments(env)
    num, packing = envs.num_envs, envs.packing
    assert envs.observation_space == EVERYTHING
    obs = envs.reset(3)
    np.testing.assert_array_equal(obs[0], packing.pack(alone.reset(seed=3)[0]))
    for _ in range(4):
        step = envs.step(np.zeros(num, int))
        expected = packing.pack(alone.step(0)[0])
        np.testing.assert_array_equal(step.next_obs[0], expected)
        assert step.obs.shape == step.next_obs.shape == (num, 224)
    assert step.terminated.all()
    if mode != AutoresetMode.NEXT_STEP:  # the first of another episode
        np.testing.assert_array_equal(step.obs[0], packing.pack(alone.reset()[0]))


def test_what_is_not_in_the_space_is_named():
    env = World(EVERYTHING)
    env.observation_space = Dict(
        {**EVERYTHING.spaces, "number": Box(-1, 1, (3,)), "more": Discrete(2)}
    )
    envs = Environments(env)
    env.observation_space = EVERYTHING
    with pytest.raises(ValueError, match=r"no part \['more'\]|\['number'\]"):
        envs.reset()
    for space in (Text(4), Sequence(Discrete(2)), Dict(a=Discrete(2), b=Text(3))):
        with pytest.raises(ValueError, match="isn't supported; Box, Discrete"):
            spaces.Packing(space)
    with pytest.raises(ValueError, match="is empty"):
        spaces.Packing(Dict({}))
    with pytest.raises(ValueError, match=r"\['a'\].*categories"):
        spaces.Packing(Dict(a=Discrete(2**30)))


# --- Networks -------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_networks_for_every_space_are_saved(name, tmp_path):
    space, obs = SPACES[name], packed(SPACES[name])
    features = kit.encoder(space)(obs)
    assert features.ndim == 2
    network = kit.q_network(space, 3)
    kit.initialize_weights(network, 0)
    network.save(tmp_path / "network.keras")
    values = numpy(network(obs))
    assert values.shape == (4, 3) and np.isfinite(values).all()
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(numpy(loaded(obs)), values)


def test_features_by_hand():
    space = Dict(
        at=Discrete(3, start=5),
        far=Box(-np.inf, np.inf, (1,)),
        near=Box(np.array([-4, 0]), np.array([2, 10]), dtype=np.float32),
        on=MultiBinary(2),
        two=MultiDiscrete([2, 3]),
    )
    obs = {
        "at": 6,
        "far": np.array([-50.0]),
        "near": np.array([2.0, 5.0]),
        "on": np.array([0, 1]),
        "two": np.array([1, 0]),
    }
    got = kit.encoder(space)(spaces.Packing(space).pack(obs)[None])
    expected = [0, 1, 0, -50, 0.5, 0.5, 0, 1, 0, 1, 1, 0, 0]
    np.testing.assert_array_equal(numpy(got)[0], expected)
    # A category of many has a vector of its own.
    many = kit.encoder(Discrete(2_000))
    (table,) = map(numpy, many.weights)
    got = numpy(many(np.array([7, 1_999])))
    np.testing.assert_array_equal(got, table[[7, 1_999]])
    # Alone, a vector of real numbers is left as it is, one of integers isn't.
    alone = kit.encoder(space["near"])(obs["near"][None].astype("float32"))
    np.testing.assert_array_equal(numpy(alone)[0], obs["near"])
    ram = kit.encoder(Box(0, 255, (2,), np.uint8))(np.array([[0, 255]], np.uint8))
    np.testing.assert_array_equal(numpy(ram)[0], [0, 1])


@pytest.mark.parametrize(
    ("space", "layout"),
    [
        (Box(0, 255, (84, 84, 4), np.uint8), "HWC"),
        (Box(0, 255, (210, 160, 3), np.uint8), "HWC"),
        (Box(0, 255, (4, 84, 84), np.uint8), "CHW"),
        (Box(0, 255, (3, 210, 160), np.uint8), "CHW"),
        (Box(0, 255, (12, 84, 84), np.uint8), "CHW"),  # three channels, four frames
        (Box(0, 1, (10, 10, 10), np.bool_), "HWC"),
        (Box(0, 1, (8, 8, 111), np.bool_), "HWC"),
        (MultiBinary((9, 9, 2)), "HWC"),
        (Box(0, 255, (84, 84), np.uint8), "HW"),
        (Box(-np.inf, np.inf, (20, 12)), None),  # such as a window of measurements
        (Box(0, 255, (4, 84, 84, 3), np.uint8), "SHWC"),
        (Box(0, 255, (4, 3, 96, 96), np.uint8), "SCHW"),
        (Box(0, 255, (7, 7, 3), np.uint8), None),
        (Box(0, 255, (1, 4, 10), np.uint8), None),
        (Box(0, 1, (5,)), None),
    ],
)
def test_images_by_rule(space, layout):
    assert image_layout(space) == layout
    convolves = [isinstance(x, keras.layers.Conv2D) for x in layers_of(space)]
    assert any(convolves) == (layout is not None)


def layers_of(space, **options):
    return kit.q_network(space, 2, **options).layers


def test_axes_are_brought_into_order():
    image = Box(0, 255, (12, 10, 6), np.uint8)
    network = kit.q_network(image, 2, (4,))
    x = packed(image)
    expected = numpy(network(x))
    for shape, axes in (
        ((6, 12, 10), (0, 3, 1, 2)),
        ((2, 12, 10, 3), None),
        ((2, 3, 12, 10), None),
    ):
        if axes is not None:
            y = x.transpose(axes)
        else:
            y = x.reshape(4, 12, 10, 2, 3)
            last = shape[-1] == 3
            y = y.transpose((0, 3, 1, 2, 4) if last else (0, 3, 4, 1, 2))
        other = kit.q_network(Box(0, 255, shape, np.uint8), 2, (4,))
        other.set_weights(network.get_weights())
        np.testing.assert_allclose(numpy(other(y)), expected, 1e-5, 1e-6)


def test_images_are_divided_by_their_bounds_once():
    def first(space, x):
        (layer,) = (
            x for x in layers_of(space, units=(2,)) if isinstance(x, spaces.Scaling)
        )
        return numpy(layer(x))

    x = np.ones((1, 10, 10, 3))
    full = first(Box(0, 255, (10, 10, 3), np.uint8), (255 * x).astype("uint8"))
    np.testing.assert_array_equal(full, x)
    for dtype in ("float32", "bool"):
        space = Box(0, 1, (10, 10, 3), np.dtype(dtype).type)
        np.testing.assert_array_equal(first(space, x.astype(dtype)), x)
    wide = first(Box(0, 60_000, (10, 10, 3), np.uint16), (60_000 * x).astype("uint16"))
    np.testing.assert_array_equal(wide, x)
    # A shape says nothing of bounds: [0, 255], as ever.
    (scaling, *_) = kit.q_network((10, 10, 3), 2).layers
    np.testing.assert_allclose(numpy(scaling(x)), x / 255)


def test_networks_by_name_have_the_published_sizes():
    space = Box(0, 255, (84, 84, 4), np.uint8)
    # Mnih et al., 2015: 1,684,128 up to the last layer.
    expected = 32 * (8 * 8 * 4 + 1) + 64 * (4 * 4 * 32 + 1) + 64 * (9 * 64 + 1)
    expected += 512 * (7 * 7 * 64 + 1)
    for shape in (space, (84, 84, 4)):
        assert kit.q_network(shape, 6).count_params() == expected + 6 * 513
    residual = {}
    for filters, before in ((16, 4), (32, 16), (32, 32)):
        residual[filters, before] = filters * (9 * before + 1)
        residual[filters, before] += 4 * filters * (9 * filters + 1)
    expected = sum(residual.values()) + 256 * (11 * 11 * 32 + 1)
    impala = kit.q_network(space, 6, network="impala")
    assert impala.count_params() == expected + 6 * 257
    planes = Box(0, 1, (10, 10, 4), np.bool_)
    expected = 16 * (9 * 4 + 1) + 128 * (8 * 8 * 16 + 1)
    for network in (None, "minatar"):
        q_network = kit.q_network(planes, 6, network=network)
        assert q_network.count_params() == expected + 6 * 129
    flat = kit.q_network(planes, 6, network="mlp")
    assert flat.count_params() == 128 * 401 + 6 * 129
    actor = kit.policy_network(planes, Discrete(6))
    activations = [x.activation.__name__ for x in actor.layers if hasattr(x, "kernel")]
    assert activations == ["relu", "relu", "linear"]


def test_a_model_of_ones_own_sees_images(tmp_path):
    space = Box(0, 255, (3, 10, 12), np.uint8)
    body = keras.Sequential(
        [keras.Input((10, 12, 3)), keras.layers.Conv2D(2, 3), keras.layers.ReLU()],
        name="body",
    )
    body.trainable = False
    network = kit.q_network(space, 2, network=body)
    assert body in network.layers
    assert [tuple(w.shape) for w in network.trainable_weights] == [(160, 2), (2,)]
    network.save(tmp_path / "network.keras")
    loaded = keras.saving.load_model(tmp_path / "network.keras")
    x = packed(space)
    np.testing.assert_array_equal(numpy(loaded(x)), numpy(network(x)))
    both = Dict(a=space, b=Discrete(3))
    assert kit.encoder(both, network=body).output_shape == (None, 163)
    with pytest.raises(ValueError, match=r"\(12, 10, 3\), channels last.*'body'"):
        kit.q_network(Box(0, 255, (12, 10, 3), np.uint8), 2, network=body)
    with pytest.raises(ValueError, match="the model body, for images"):
        kit.q_network(Box(-1, 1, (5,)), 2, network=body)


def test_networks_that_do_not_fit_are_refused():
    small = Box(0, 255, (10, 10, 3), np.uint8)
    with pytest.raises(ValueError, match=r"'nature' is for images of at least 36"):
        kit.q_network(small, 2, network="nature")
    with pytest.raises(ValueError, match=r"'impala', for images.*none in Discrete"):
        kit.policy_network(Discrete(4), Discrete(2), network="impala")
    with pytest.raises(ValueError, match="`network` must be one of 'nature'"):
        kit.value_network(small, network="resnet")


# --- Agents -----------------------------------------------------------------------


@pytest.mark.variants(2)
@pytest.mark.parametrize("kind", [kit.DQN, kit.PPO, kit.A2C, kit.A3C])
def test_agents_learn_from_everything_at_once(kind, tmp_path):
    agent = make_agent(kind, EVERYTHING)
    before = agent.get_weights()
    if kind is kit.A3C:
        agent.fit(lambda: World(EVERYTHING), 16, max_restarts=0, verbose=0)
    else:
        env = SyncVectorEnv([lambda: World(EVERYTHING)] * 2)
        agent.fit(env, 24, verbose=0)
    assert any((a != b).any() for a, b in zip(before, agent.get_weights(), strict=True))
    obs, several = sample(EVERYTHING), packed(EVERYTHING)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.saving.load_model(tmp_path / "agent.keras")
    assert agent.act(obs) == loaded.act(obs) == agent.act(several)[0]
    assert loaded.evaluate(World(EVERYTHING), 2)["length"] == 4
    # In another order, the same numbers would mean something else.
    other = Dict([(x, EVERYTHING[x]) for x in ("vector", "number", "inner", "image")])
    with pytest.raises(ValueError, match=r"is made for Dict\('image'"):
        loaded.evaluate(World(other), 1)
    with pytest.raises(ValueError, match=r"no part \['inner'\]\[0\]"):
        agent.act({"image": obs["image"]})


@pytest.mark.parametrize(
    "name", ["scalar", "uint64", "discrete", "choices", "binary", "tiny", "planes"]
)
def test_dqn_learns_from_each_space(name):
    space = SPACES[name]
    agent = make_agent(kit.DQN, space)
    agent.fit(World(space), 16, verbose=0)
    assert agent.act(sample(space)) in (0, 1)
    assert agent.act(packed(space)).shape == (4,)


def test_categories_that_are_others_are_refused():
    agent = make_agent(kit.DQN, Discrete(5, start=3))
    for other in (Discrete(5), Discrete(6, start=3), Box(0, 9, ()), Box(0, 9, (5,))):
        with pytest.raises(ValueError, match="categories|takes"):
            agent.evaluate(World(other), 1)
    plain = make_agent(kit.DQN, (3,))
    with pytest.raises(ValueError, match=r"takes arrays of shape \(3,\).*kit.encoder"):
        plain.evaluate(World(SPACES["tuple"]), 1)


def test_a_resumed_training_in_a_dict_is_the_same(tmp_path, monkeypatch):
    def train(callbacks=()):
        agent = make_agent(kit.DQN, EVERYTHING)
        agent.fit(World(EVERYTHING), 40, seed=0, callbacks=callbacks, verbose=0)
        return agent.get_weights()

    expected = train()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 5)
        train([every_step(tmp_path)])
    for a, b in zip(train([every_step(tmp_path)]), expected, strict=True):
        np.testing.assert_array_equal(a, b)


class Opaque(World):
    """Has to be played again, as one whose state is in a library."""

    def __init__(self):
        super().__init__(EVERYTHING)
        self.opaque = iter(())

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        return obs, reward, terminated or truncated, False, info


def test_what_is_played_again_observes_the_same_dict():
    check_goes_on(Environments(Opaque()), Environments(Opaque()), steps=10)


def test_numbers_are_scaled_by_the_network_or_normalized():
    # An image is divided by its bounds, and by nothing else.
    image = SPACES["image"]
    agent = make_agent(kit.PPO, image, normalize_observations=True)
    agent.fit(World(image), 8, verbose=0)
    obs = packed(image)
    np.testing.assert_array_equal(numpy(agent.normalized(obs)), obs)
    # Of everything, only the number without a bound is left to the statistics.
    scaled = spaces.scaled_by_network(networks(kit.PPO, EVERYTHING)[0])
    assert scaled.tolist() == [True] * 223 + [False]
    agent = make_agent(kit.A2C, EVERYTHING, normalize_observations=True)
    agent.fit(World(EVERYTHING), 8, verbose=0)
    obs = packed(EVERYTHING)
    got, statistics = numpy(agent.normalized(obs)), agent.obs_statistics
    np.testing.assert_array_equal(got[:, :-1], obs[:, :-1])
    expected = numpy(statistics(obs))[:, -1]
    np.testing.assert_allclose(got[:, -1], expected, 1e-6)
    assert (got[:, -1] != obs[:, -1]).any()
    # Networks of one's own, and those of old files, leave it to the statistics.
    old = keras.Sequential([keras.Input((10, 10, 3)), keras.layers.Rescaling(1 / 255)])
    assert not spaces.scaled_by_network(old).any()


def test_one_program_with_numbered_states():
    env = kit.envs.make("FrozenLake-v1", 4)
    agent = make_agent(kit.DQN, env.observation_space, env.action_space)
    agent.fit(env, 64, verbose=0)
    assert agent.act(5) in range(4)
    with pytest.raises(ValueError, match=r"Tuple.*isn't supported in environments in"):
        env = kit.envs.make("CartPole-v1", 4)
        env.observation_space = SPACES["tuple"]
        make_agent(kit.DQN, SPACES["tuple"]).fit(env, 64)


# --- Actions ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "drawn", "expected"),
    [
        (Box(0, 9, (), np.int32), [-9, -1, -0.79, 0.05, 1, 9], [0, 0, 1, 5, 9, 9]),
        (Box(-1, 1, (), np.int8), [-0.4, -0.3, 0.3, 0.4], [-1, 0, 0, 1]),
        (Box(0, 255, (), np.uint8), [-1, 0.2, 1.0], [0, 153, 255]),
        (Box(-(2**63), 2**63 - 1, (), np.int64), [-2.7, 2.4], [-3, 2]),
        (Box(0, 2**64 - 1, (), np.uint64), [-2.7, 2.4], [0, 2]),
    ],
)
def test_integers_are_rounded(space, drawn, expected):
    layer = distribution(space)
    assert layer.fits(space)
    drawn = np.array(drawn, "float32")[:, None]
    got = layer.to_env(drawn)
    assert got.dtype == space.dtype and got.tolist() == expected
    assert all(space.contains(np.asarray(x)) for x in got)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(layer)
    )
    assert again.fits(space) and again.to_env(drawn).tolist() == expected
    if space.dtype.itemsize < 8:
        tensor = layer.to_env(ops.convert_to_tensor(drawn))
        assert numpy(tensor).tolist() == expected


def test_the_largest_integers_are_in_the_space():
    for dtype in (np.int64, np.uint64):
        info = np.iinfo(dtype)
        space = Box(info.min, info.max, (1,), dtype)
        got = distribution(space).to_env(np.array([[1e30], [-1e30]]))
        assert got.tolist() == [[info.max], [info.min]]


@pytest.mark.parametrize(
    "space", [Box(0, 9, (2,), np.int32), Box(-1, 1, (1, 2), np.float16)]
)
def test_actions_are_those_of_the_space(space):
    agent = make_agent(kit.A2C, SPACES["vector"], space)
    env = World(SPACES["vector"], space)
    agent.fit(env, 8, verbose=0)
    assert all(space.contains(x) and x.dtype == space.dtype for x in env.actions)
    assert space.contains(agent.act(sample(SPACES["vector"])))


class Wanted(World):
    """The action that earns the most is in the observation, among other things."""

    def __init__(self):
        space = Dict(noise=Box(0, 255, (3,), np.uint8), wanted=Discrete(4, start=2))
        super().__init__(space, Box(0, 3, (1,), np.int32))

    def reset(self, seed=None, options=None):
        self.obs, info = super().reset(seed=seed)
        return self.obs, info

    def step(self, action):
        error = abs(int(action[0]) - int(self.obs["wanted"]) + 2)
        self.obs, _, *ended = super().step(action)
        return self.obs, -float(error), *ended


@pytest.mark.learn
@pytest.mark.parametrize("seed", range(3))
def test_integers_are_chosen_by_a_part_of_a_dict(seed):
    env = SyncVectorEnv([Wanted] * 8, autoreset_mode=AutoresetMode.SAME_STEP)
    space, actions = env.single_observation_space, env.single_action_space
    networks = kit.policy_network(space, actions), kit.value_network(space)
    for network, own in zip(networks, kit.random.split_seed(seed), strict=True):
        kit.initialize_weights(network, own)
    agent = kit.PPO(*networks, num_steps=32, gamma=0.0, seed=seed)
    agent.compile(keras.optimizers.Adam(3e-3, global_clipnorm=0.5))
    agent.fit(env, 20_000, seed=seed, verbose=0)
    assert agent.evaluate(Wanted(), 50, seed=1_000)["return"] > -0.2
