"""DQN's options: several steps, priorities, quantiles and noisy layers, by hand."""

import gymnasium
import keras
import numpy as np
import pytest
from interruptions import Killed, interrupt
from keras import ops
from test_backups import every_step
from test_dqn import Corridor, agent_for, batches, linear, network

import kit
from kit.dqn import quantile_huber
from kit.envs import CartPole
from kit.rl import device_replay
from kit.rl.noisy import NoisyDense, draw_noise, noisy_layers
from kit.rl.replay import PrioritizedReplayBuffer, ReplayBuffer, SumTree

to_numpy = ops.convert_to_numpy


# --- Several steps ------------------------------------------------------------


def play(buffer, rewards, ends=(), cuts=(), num_envs=1):
    """Step t leads from the observation t to t + 1 and earns the t-th reward."""
    buffer.reset(np.zeros((num_envs, 1), "float32"))
    for t, reward in enumerate(rewards):
        full = np.full(num_envs, 1)
        buffer.add(
            full,
            full * np.float32(reward),
            full * t == [t if t in ends else -1],
            full * t == [t if t in cuts else -1],
            np.full((num_envs, 1), t + 1.0, "float32"),
            np.full((num_envs, 1), t + 1.0 if t not in ends else 100.0, "float32"),
        )
    return buffer


def test_several_steps_by_hand():
    buffer = play(ReplayBuffer(10, (1,), "float32"), [1, 2, 4, 8, 16], ends=[1])
    batch = buffer.gather((np.zeros(5, int), np.arange(5)), n_step=3, gamma=0.5)
    # The episode ends after the second step; the last but one has two steps left.
    assert batch["reward"].tolist() == [2, 2, 4 + 4 + 4, 8 + 8, 16]
    assert batch["steps"].tolist() == [2, 1, 3, 2, 1]
    assert batch["terminated"].tolist() == [True, True, False, False, False]
    assert batch["next_obs"][:, 0].tolist() == [2, 2, 5, 5, 5]
    assert batch["obs"][:, 0].tolist() == [0, 1, 100, 3, 4]


def test_several_steps_where_the_ring_is_full():
    buffer = play(ReplayBuffer(3, (1,), "float32"), [1, 2, 4, 8, 16, 32])
    indices = buffer.indices(np.array([0.0, 0.4, 0.9]))
    batch = buffer.gather(indices, n_step=2, gamma=1.0)
    assert batch["reward"].tolist() == [8 + 16, 16 + 32, 32]
    assert batch["next_obs"][:, 0].tolist() == [5, 6, 6]


@pytest.mark.parametrize("full", [False, True])
def test_the_buffer_on_the_device_gathers_the_same(full):
    """Two environments; the second one's rewards are ten times as large."""
    steps = 12 if full else 6
    env = CartPole(2)
    on_device = device_replay.empty_buffer(env, 16, 2)
    buffer = ReplayBuffer(14, (4,), "float32", 2)
    generator = np.random.default_rng(0)
    obs = generator.normal(size=(2, 4)).astype("float32")
    buffer.reset(obs)
    rollout = {name: [] for name in device_replay.NAMES}
    for t in range(steps):
        following = generator.normal(size=(2, 4)).astype("float32")
        transition = {
            "obs": obs,
            "action": np.array([0, 1]),
            "reward": np.array([2.0**t, 10 * 2.0**t], "float32"),
            "next_obs": following,
            "terminated": np.array([t == 3, False]),
            "ended": np.array([t == 3, t == 8]),
        }
        first = generator.normal(size=(2, 4)).astype("float32")
        obs = np.where(transition["ended"][:, None], first, following)
        truncated = transition["ended"] & ~transition["terminated"]
        buffer.add(
            transition["action"],
            transition["reward"],
            transition["terminated"],
            truncated,
            following,
            obs,
        )
        for name, values in rollout.items():
            values.append(ops.convert_to_tensor(transition[name]))
        if t % 2:
            two = {name: ops.stack(values[-2:]) for name, values in rollout.items()}
            on_device = device_replay.add_steps(on_device, two)
    taken = min(steps, 7)  # as many as both hold
    slots = np.arange(steps - taken, steps)
    index = np.array([[2 * (s % 8), 2 * (s % 8) + 1] for s in slots]).reshape(-1)
    index = ops.convert_to_tensor(index)
    batch = device_replay._gather(on_device, index, (len(index),), 3, 0.5)
    expected = buffer.gather(
        (np.tile([0, 1], taken), np.repeat(slots % 8, 2)), n_step=3, gamma=0.5
    )
    for name, values in batch.items():
        np.testing.assert_allclose(to_numpy(values), expected[name], err_msg=name)


def test_the_target_after_several_steps():
    agent = agent_for(linear([[2.0, 1.0]]), gamma=0.5, n_step=3)
    batch = batches([[0.0]] * 2, [0, 0], [3.0, 3.0], [[4.0]] * 2, [False, True])
    batch["steps"] = np.array([2.0, 2.0], "float32")
    batch = {name: ops.convert_to_tensor(x) for name, x in batch.items()}
    # 3 + 0.5^2 * 8, and a final state has no value.
    assert to_numpy(agent._td_target(batch)).tolist() == [5.0, 3.0]


# --- Priorities ---------------------------------------------------------------


def test_sums_of_a_tree():
    tree = SumTree(5)
    tree.set(np.array([0, 1, 2, 4]), np.array([1.0, 2.0, 3.0, 4.0]))
    tree.set(np.array([1, 1]), np.array([7.0, 5.0]))  # the last one counts
    assert tree.total == 13
    assert tree.get(np.array([0, 1, 2, 3, 4])).tolist() == [1, 5, 3, 0, 4]
    heights = [0, 0.9, 1, 5.9, 6, 8.9, 9, 12.9]
    assert tree.find(np.array(heights)).tolist() == [0, 0, 1, 1, 2, 2, 4, 4]
    other = SumTree(5)
    other.leaves = tree.leaves
    assert other.total == 13
    other.clear()
    assert other.total == 0


@pytest.mark.parametrize("size", [1, 2, 3, 64, 65])
def test_a_tree_finds_what_a_cumulative_sum_finds(size):
    generator = np.random.default_rng(size)
    values = generator.integers(1, 9, size).astype(float)
    tree = SumTree(size)
    tree.set(np.arange(size), values)
    heights = generator.uniform(0, values.sum(), 100)
    expected = np.searchsorted(np.cumsum(values), heights, side="right")
    np.testing.assert_array_equal(tree.find(heights), expected)
    assert tree.find(np.array(values.sum())) == size - 1  # by rounding


def test_priorities_by_hand():
    buffer = PrioritizedReplayBuffer(6, (1,), "float32", exponent=0.5)
    play(buffer, [0, 1, 2])
    indices = (np.zeros(3, int), np.arange(3))
    buffer.set_errors(indices, np.array([1.0, -9.0, 4.0]))  # p = 1, 3, 2
    uniform = np.array([0.0, 0.5, 0.1, 0.9, 0.7, 0.9])  # times a sixth of 6
    assert buffer.indices(uniform)[1].tolist() == [0, 1, 1, 1, 2, 2]
    weights = buffer.weights(indices, 0.5)  # (3 p / 6)^-0.5, over the largest
    np.testing.assert_allclose(weights, [1.0, 3**-0.5, 2**-0.5], rtol=1e-5)
    # A new transition has the largest priority so far; what lay there has none.
    play_on = np.zeros(1)
    obs = np.zeros((1, 1))
    buffer.add(play_on, play_on, play_on > 0, play_on > 0, obs, obs)
    leaves = buffer._tree.leaves
    np.testing.assert_allclose(leaves[:5], [1, 3, 2, 3, 0], rtol=1e-5)
    for _ in range(3):
        buffer.add(play_on, play_on, play_on > 0, play_on > 0, obs, obs)
    # The oldest one was overwritten; of the others, two had their errors.
    assert buffer._tree.total == pytest.approx(3 + 2 + 4 * 3, rel=1e-5)
    assert np.count_nonzero(leaves) == len(buffer) == 6


def test_what_has_just_been_added_is_drawn_and_nothing_else():
    buffer = PrioritizedReplayBuffer(8, (1,), "float32", num_envs=2)
    play(buffer, range(30), ends=[5, 20], num_envs=2)
    rewards = buffer.gather(buffer.indices(np.linspace(0, 0.999, 400)))["reward"]
    assert set(rewards.tolist()) == {26, 27, 28, 29}


def test_priorities_on_the_device_are_those_of_the_buffer():
    env = CartPole(1)
    buffer = device_replay.empty_buffer(env, 4, 2, prioritized=True)
    rollout = {
        "obs": np.zeros((2, 1, 4), "float32"),
        "next_obs": np.zeros((2, 1, 4), "float32"),
        "action": np.array([[0], [1]]),
        "reward": np.array([[10.0], [20.0]], "float32"),
        "terminated": np.zeros((2, 1), bool),
        "ended": np.zeros((2, 1), bool),
    }
    buffer = device_replay.add_steps(buffer, rollout)
    buffer = device_replay.set_errors(
        buffer, np.array([[0, 1]]), np.array([[1.0, -9.0]]), 0.5
    )
    assert to_numpy(buffer["priority"])[:, 0] == pytest.approx([1, 3, 0, 0], rel=1e-4)
    batch = device_replay.sample_by_priority(
        buffer, kit.random.Generator(0), (50, 8), 0.5
    )
    index, reward = to_numpy(batch["index"]), to_numpy(batch["reward"])
    np.testing.assert_array_equal(reward, 10 * (index + 1))
    np.testing.assert_array_equal(index.sum(axis=1), 6)  # two of eight equal parts
    weight = np.where(index == 0, 1.0, 3**-0.5)
    np.testing.assert_allclose(to_numpy(batch["weight"]), weight, rtol=1e-4)
    buffer = device_replay.add_steps(buffer, rollout)
    assert to_numpy(buffer["priority"])[:, 0] == pytest.approx([1, 3, 3, 3], rel=1e-4)


def test_weights_count_in_the_loss():
    agent = agent_for(linear([[2.0, 0.0]]), "sgd", kit.dqn.huber, batch_size=2)
    batch = batches(
        [[[1.0], [1.0]]], [[0, 0]], [[2.5, 12.0]], [[[0.0], [0.0]]], [[True, True]]
    )
    batch["weight"] = np.array([[1.0, 0.5]], "float32")
    loss, q_value, error = map(to_numpy, agent._learn(batch))
    assert loss == pytest.approx((0.125 + 0.5 * 9.5) / 2)
    assert error.tolist() == [[0.5, 10.0]]


def test_a_loss_that_is_one_number_cannot_be_weighted():
    agent = agent_for(network((4,)), "adam", "mse", prioritized=True)
    with pytest.raises(ValueError, match=r"`loss` must return an array of shape \(8,"):
        agent.fit(Corridor(), 50, verbose=0)


# --- Quantiles ----------------------------------------------------------------


def test_quantile_huber_by_hand():
    # tau = 1/4, 3/4. i = 0: u = 0.5, 4; i = 1: u = -1.5, 2.
    loss = to_numpy(quantile_huber(np.array([[0.5, 4.0]]), np.array([[0.0, 2.0]])))
    first = (0.25 * 0.125 + 0.25 * 3.5) / 2
    second = (0.25 * 1.0 + 0.75 * 1.5) / 2
    np.testing.assert_allclose(loss, [first + second], rtol=1e-6)


def quantile_network(kernel, num_quantiles):
    """Q(s, a) has the quantiles s @ kernel, the actions one after the other."""
    kernel = np.asarray(kernel, "float32")
    model = keras.Sequential(
        [
            keras.Input((kernel.shape[0],)),
            keras.layers.Dense(kernel.shape[1], use_bias=False),
            keras.layers.Reshape((-1, num_quantiles)),
        ]
    )
    model.set_weights([kernel])
    return model


@pytest.mark.parametrize("double", [False, True])
def test_targets_are_the_quantiles_of_the_best_mean(double):
    # Means 2 and 3, though the first action has the largest quantile.
    agent = agent_for(
        quantile_network([[-2, 6, 3, 3]], 2), loss=None, gamma=0.5, double=double
    )
    batch = batches([[1.0]], [0], [1.0], [[2.0]], [False])
    batch = {name: ops.convert_to_tensor(x) for name, x in batch.items()}
    assert to_numpy(agent._td_target(batch)).tolist() == [[4.0, 4.0]]
    assert agent.act(np.ones(1, "float32")) == 1
    assert to_numpy(agent(np.ones((1, 1), "float32"))).tolist() == [[2.0, 3.0]]


def test_quantiles_learn_the_distribution_of_rewards():
    """One state, one action: 0 or 1 by chance, so quantiles of 1/8 and 7/8 differ."""
    agent = agent_for(
        quantile_network(np.zeros((1, 4)), 4),
        keras.optimizers.Adam(0.05),
        None,
        batch_size=64,
    )
    generator = np.random.default_rng(0)
    shape = (200, 64)
    reward = generator.integers(0, 2, shape)
    ones = np.ones((*shape, 1))
    batch = batches(ones, np.zeros(shape), reward, ones, np.ones(shape))
    for _ in range(3):
        agent._learn(batch)
    quantiles = to_numpy(agent.q_network(np.ones((1, 1))))[0, 0]
    # 1/8: |tau - 1| p(0) (0 - theta) ... the minimum of the Huber loss is at tau.
    np.testing.assert_allclose(quantiles, [0.125, 0.375, 0.625, 0.875], atol=0.06)


# --- Noise --------------------------------------------------------------------


def test_noise_by_hand():
    layer = NoisyDense(2, initial_std=0.5)
    layer.build((None, 4))
    assert to_numpy(layer.kernel_std).tolist() == [[0.25] * 2] * 4
    assert np.abs(to_numpy(layer.kernel)).max() <= 0.5
    x = np.arange(8.0).reshape(2, 4).astype("float32")
    kernel, bias = map(to_numpy, (layer.kernel, layer.bias))
    mean = x @ kernel + bias
    np.testing.assert_allclose(to_numpy(layer(x, training=False)), mean, rtol=1e-5)
    np.testing.assert_allclose(to_numpy(layer(x, training=True)), mean, rtol=1e-5)
    generator = kit.random.Generator(0)
    layer.draw(kit.random.Generator(0))
    scaled = []
    for shape in ((4,), (2,)):
        drawn = to_numpy(kit.random.normal(generator, shape))
        scaled.append(np.sign(drawn) * np.sqrt(np.abs(drawn)))
    epsilon = np.outer(*scaled)
    expected = x @ (kernel + 0.25 * epsilon) + bias + 0.25 * scaled[1]
    np.testing.assert_allclose(
        to_numpy(layer(x, training=True)), expected, rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(to_numpy(layer(x, training=False)), mean, rtol=1e-5)


def test_a_noisy_network_is_saved_and_loaded(tmp_path):
    model = network(noisy=True, dueling=True, num_quantiles=5)
    assert model.output_shape == (None, 2, 5)
    assert len(list(noisy_layers(keras.Sequential([keras.Input((3,)), model])))) == 2
    draw_noise(model, kit.random.Generator(1))
    x = np.ones((2, 3), "float32")
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for training in (False, True):
        np.testing.assert_allclose(
            to_numpy(loaded(x, training=training)),
            to_numpy(model(x, training=training)),
            rtol=1e-5,
        )


def test_noise_is_drawn_for_each_step():
    agent = agent_for(network(noisy=True), batch_size=1)
    seen = []
    shape = (3, 1)
    ones = np.ones((*shape, 3))
    batch = batches(ones, np.zeros(shape), np.ones(shape), ones, np.ones(shape))
    for _ in range(2):
        agent._learn(batch)
        (layer, _), (target, _) = (
            list(noisy_layers(model))
            for model in (agent.q_network, agent.target_network)
        )
        seen += [to_numpy(layer.noise_in), to_numpy(target.noise_in)]
    assert len({x.tobytes() for x in seen}) == 4
    assert (seen[0] != 0).all()


def test_a_noisy_agent_explores_without_epsilon():
    """Before it learns, so that nothing but the noise changes what it does."""
    options = {"epsilon_start": 0.0, "epsilon_end": 0.0, "learning_starts": 10_000}
    first_actions = {}
    for noisy in (True, False):
        env = Corridor()
        env.length = 1  # each step is an episode, from the same place
        agent = agent_for(network((1,), noisy=noisy), **options)
        env.observation_space = gymnasium.spaces.Box(0, 1, (1,), np.float32)
        agent.fit(env, 300, verbose=0)
        first_actions[noisy] = set(map(int, env.actions))
    assert first_actions[True] == {0, 1}
    assert len(first_actions[False]) == 1


# --- All of them --------------------------------------------------------------

RAINBOW = {"double": True, "n_step": 3, "prioritized": True}


def rainbow(env, **options):
    space = getattr(env, "single_observation_space", env.observation_space)
    net = network(
        space.shape, 2, (16,), dueling=True, noisy=True, num_quantiles=5, **options
    )
    agent = agent_for(net, keras.optimizers.Adam(1e-2), None, **RAINBOW)
    return agent


def test_all_options_learn_the_corridor():
    agent = rainbow(Corridor())
    agent.epsilon_start = agent.epsilon_end = 0.0
    history = agent.fit(Corridor(), 1_500, verbose=0, steps_per_epoch=500)
    assert np.isfinite(history.history["loss"]).all()
    assert agent.evaluate(Corridor(), 1)["return"] == 1


@pytest.mark.once  # test_backups.py resumes every agent on every backend
@pytest.mark.parametrize("env", [CartPole(2), None], ids=["fused", "gymnasium"])
def test_resumed_it_is_the_same_to_the_last_bit(tmp_path, monkeypatch, env):
    env = env or gymnasium.make("CartPole-v1")

    def train(callbacks=()):
        agent = rainbow(env)
        agent.fit(env, 160, seed=3, steps_per_epoch=20, callbacks=callbacks, verbose=0)
        arrays = [*agent.get_weights(), to_numpy(agent.random.state)]
        return [*arrays, *(to_numpy(v) for v in agent.optimizer.variables)]

    expected = train()
    with monkeypatch.context() as patch, pytest.raises(Killed):
        interrupt(patch, 5)
        train([every_step(tmp_path)])
    assert list(tmp_path.iterdir())
    for a, b in zip(train([every_step(tmp_path)]), expected, strict=True):
        np.testing.assert_array_equal(a, b)
