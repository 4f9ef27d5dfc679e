"""What A2C and PPO share: rollouts, batches, spaces, files; what they solve."""

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Box, Discrete
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from keras import ops
from worlds import Identity

import kit
from kit.rl.environments import Environments
from kit.rl.on_policy import OnPolicy
from kit.rl.rollouts import Rollouts, prepare_batch
from kit.tools import parity

AGENTS = {"a2c": kit.A2C, "ppo": kit.PPO}


def numpy(x):
    return ops.convert_to_numpy(x)


def make_agent(kind, space=None, obs_shape=(3,), shared=False, seed=0, **options):
    space = space or Discrete(2)
    if shared:
        networks = [kit.shared_network(obs_shape, space, (8,))]
    else:
        networks = [
            kit.policy_network(obs_shape, space, (8,)),
            kit.value_network(obs_shape, (8,)),
        ]
    for i, network in enumerate(networks):
        kit.initialize_weights(network, seed + i)
    return AGENTS[kind](*networks, seed=seed, **options)


class Scripted(gymnasium.Env):
    """Episodes of 2, 3, 2, 3... steps; observes (episode, step, 0).

    Those of 2 steps terminate, those of 3 are truncated. A step earns its number.
    """

    observation_space = Box(-np.inf, np.inf, (3,), np.float32)
    action_space = Discrete(2)

    def __init__(self):
        self.episode = -1

    def _observe(self):
        return np.array([self.episode, self.t, 0], np.float32)

    def reset(self, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.t = self.episode + 1, 0
        return self._observe(), {}

    def step(self, action):
        self.t += 1
        odd = self.episode % 2
        ended = self.t == 2 + odd
        return self._observe(), self.t, ended and not odd, bool(ended and odd), {}


# --- Rollouts -----------------------------------------------------------------


@pytest.mark.parametrize("mode", [None, *AutoresetMode])
def test_rollouts_hold_what_happened(mode):
    env = Scripted()
    if mode is not None:
        env = SyncVectorEnv([Scripted], autoreset_mode=mode)
    agent = make_agent("ppo")
    rollout = Rollouts(agent, Environments(env), 8, seed=0).play()
    valid = rollout["valid"][:, 0]
    seen = [
        (*obs[:2].astype(int), *next_obs[:2].astype(int), int(r), bool(t), bool(e))
        for obs, next_obs, r, t, e, v in zip(
            *(
                rollout[name][:, 0]
                for name in ("obs", "next_obs", "reward", "terminated", "ended")
            ),
            valid,
            strict=True,
        )
        if v
    ]
    # Episode and step, before and after; reward, terminated, ended.
    expected = [
        (0, 0, 0, 1, 1, False, False),
        (0, 1, 0, 2, 2, True, True),
        (1, 0, 1, 1, 1, False, False),
        (1, 1, 1, 2, 2, False, False),
        (1, 2, 1, 3, 3, False, True),
        (2, 0, 2, 1, 1, False, False),
        (2, 1, 2, 2, 2, True, True),
        (3, 0, 3, 1, 1, False, False),
    ]
    assert seen == expected[: len(seen)]
    assert len(seen) == (6 if mode == AutoresetMode.NEXT_STEP else 8)


def test_environments_may_write_each_step_to_the_same_memory():
    rollouts = []
    for copy in (True, False):
        env = SyncVectorEnv(
            [Scripted] * 2, copy=copy, autoreset_mode=AutoresetMode.SAME_STEP
        )
        agent = make_agent("a2c", num_steps=8)
        rollouts.append(Rollouts(agent, Environments(env), 8, seed=0).play())
    for name, expected in rollouts[0].items():
        np.testing.assert_array_equal(rollouts[1][name], expected)


def test_rollouts_go_on_where_they_stopped():
    agent = make_agent("ppo")
    rollouts = Rollouts(agent, Environments(Scripted()), 3, seed=0)
    first, second = rollouts.play(), rollouts.play()
    assert first["obs"][:, 0, :2].tolist() == [[0, 0], [0, 1], [1, 0]]
    assert second["obs"][:, 0, :2].tolist() == [[1, 1], [1, 2], [2, 0]]
    assert rollouts.envs.episodes == [(3.0, 2), (6.0, 3)]


def test_actions_are_drawn_as_often_as_they_are_likely():
    agent = make_agent("ppo")
    agent.actor.layers[-2].bias.assign([0.0, 1.0])
    rollout = Rollouts(agent, Environments(Scripted()), 4000, seed=0).play()
    p = 1 / (1 + np.exp(-1.0))
    assert rollout["action"].mean() == pytest.approx(p, abs=0.03)


def test_the_same_seed_plays_the_same_on_every_backend():
    agent = make_agent("ppo", seed=5)
    rollout = Rollouts(agent, Environments(Scripted()), 20, seed=0).play()
    expected = [1, 1, 0, 0, 0, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0]
    assert rollout["action"][:, 0].tolist() == expected


# --- Batches ------------------------------------------------------------------


def test_a_batch_by_hand():
    # T = 3 steps in N = 2 environments. In the first, step 1 terminates; in the second
    # it is truncated, and step 2 only begins an episode.
    rollout = {
        "obs": np.arange(12, dtype="float32").reshape(3, 2, 2),
        "action": np.array([[0, 1], [1, 0], [0, 1]]),
        "reward": np.array([[1, 2], [3, 4], [5, 0]], "float32"),
        "next_obs": np.zeros((3, 2, 2), "float32"),
        "terminated": np.array([[False, False], [True, False], [False, False]]),
        "ended": np.array([[False, False], [True, True], [False, False]]),
        "valid": np.array([[True, True], [True, True], [True, False]]),
    }
    value = np.array([[1, 1], [2, 2], [3, 3]], "float32")
    next_value = np.array([[2, 2], [8, 8], [4, 4]], "float32")
    batch = prepare_batch(rollout, value, next_value, 0.5, 0.5)
    batch = {name: numpy(x) for name, x in batch.items()}
    # delta = r + (1 - terminated) V(s') / 2 - V(s); A = delta + (1 - ended) A' / 4.
    expected = [[1 + 1 / 4, 2 + 6 / 4], [1, 6], [4, -1]]
    np.testing.assert_allclose(batch["advantage"], np.ravel(expected), rtol=1e-6)
    np.testing.assert_allclose(batch["returns"], np.ravel(expected + value), rtol=1e-6)
    assert batch["value"].tolist() == [1, 1, 2, 2, 3, 3]
    assert batch["valid_mask"].tolist() == [1, 1, 1, 1, 1, 0]
    assert batch["valid_mask"].dtype == "float32"
    assert batch["action"].tolist() == [0, 1, 1, 0, 0, 1]
    assert batch["obs"].tolist() == rollout["obs"].reshape(6, 2).tolist()
    names = ("obs", "action", "value", "advantage", "returns", "valid_mask")
    assert tuple(batch) == names


def batch_of(agent, rollout):
    """The batch that an agent makes of a rollout, and the returns to go on with."""

    @kit.compiled
    def learn(rollout, discounted):
        played, discounted = agent.normalize_rollout(rollout, discounted)
        _, value, next_value = agent.apply_to_rollout(played)
        batch = prepare_batch(played, value, next_value, agent.gamma, agent.gae_lambda)
        return batch, discounted

    num_envs = rollout["reward"].shape[1]
    batch, discounted = learn(rollout, np.zeros(num_envs, "float32"))
    return {name: numpy(x) for name, x in batch.items()}, numpy(discounted)


def test_truncation_is_continued_by_the_state_that_it_ended_in():
    agent = make_agent("ppo", gamma=0.5, gae_lambda=0.0)
    rollout = Rollouts(agent, Environments(Scripted()), 5, seed=0).play()
    batch, _ = batch_of(agent, rollout)
    value = numpy(agent.critic(rollout["obs"][:, 0]))[:, 0]
    next_value = numpy(agent.critic(rollout["next_obs"][:, 0]))[:, 0]
    # Steps 0 and 1 terminate, 2 to 4 are truncated: only step 1 has nothing after it.
    expected = np.array([1, 2, 1, 2, 3]) + 0.5 * next_value * [1, 0, 1, 1, 1]
    np.testing.assert_allclose(batch["returns"], expected, rtol=1e-4)
    np.testing.assert_allclose(batch["value"], value, rtol=1e-4)
    np.testing.assert_allclose(batch["advantage"], expected - value, rtol=1e-3)


@pytest.mark.parametrize("shared", [False, True])
def test_networks_are_applied_to_both_ends_of_each_step(shared):
    agent = make_agent("ppo", shared=shared)
    rollout = Rollouts(agent, Environments(Scripted()), 5, seed=0).play()
    outputs, value, next_value = map(
        numpy, kit.compiled(lambda x: agent.apply_to_rollout(x))(rollout)
    )
    for obs, found in (("obs", value), ("next_obs", next_value)):
        policy, expected = map(numpy, agent(rollout[obs][:, 0]))
        np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4)
        if obs == "obs":
            np.testing.assert_allclose(outputs, policy, rtol=1e-4, atol=1e-6)


def test_steps_that_only_reset_have_no_weight():
    env = SyncVectorEnv([Scripted, Scripted], autoreset_mode=AutoresetMode.NEXT_STEP)
    agent = make_agent("ppo", normalize_observations=True)
    rollout = Rollouts(agent, Environments(env), 4, seed=0).play()
    batch, _ = batch_of(agent, rollout)
    assert batch["valid_mask"].tolist() == [1, 1, 1, 1, 0, 0, 1, 1]
    kit.compiled(lambda rollout: agent.update_statistics(rollout))(rollout)
    assert numpy(agent.obs_statistics.count) == 6


def test_observations_are_normalized_by_the_statistics_of_earlier_rollouts():
    agent = make_agent("ppo", normalize_observations=True)
    agent.obs_statistics.mean.assign([1.0, 0.0, 0.0])
    agent.obs_statistics.variance.assign([4.0, 1.0, 1.0])
    rollout = Rollouts(agent, Environments(Scripted()), 3, seed=0).play()
    played, _ = kit.compiled(lambda *args: agent.normalize_rollout(*args))(
        rollout, np.zeros(1, "float32")
    )
    # Episode and step.
    assert rollout["obs"][:, 0, :2].tolist() == [[0, 0], [0, 1], [1, 0]]
    expected = {
        "obs": [[-0.5, 0], [-0.5, 1], [0, 0]],
        "next_obs": [[-0.5, 1], [-0.5, 2], [0, 1]],
    }
    for name, obs in expected.items():
        np.testing.assert_allclose(numpy(played[name])[:, 0, :2], obs, atol=1e-6)


def test_rewards_are_divided_by_the_spread_of_returns():
    agent = make_agent("ppo", normalize_rewards=True, gamma=0.5, gae_lambda=0.0)
    rollout = Rollouts(agent, Environments(Scripted()), 5, seed=0).play()
    batch, discounted = batch_of(agent, rollout)
    totals = np.array([1, 2.5, 1, 2.5, 4.25])
    assert discounted.tolist() == [0]
    next_value = numpy(agent.critic(rollout["next_obs"][:, 0]))[:, 0]
    reward = np.array([1, 2, 1, 2, 3]) / totals.std()
    expected = reward + 0.5 * next_value * [1, 0, 1, 1, 1]
    np.testing.assert_allclose(batch["returns"], expected, rtol=1e-3)


def test_all_options_are_arguments_of_the_class_that_uses_them():
    networks = kit.policy_network((3,), Discrete(2)), kit.value_network((3,))
    options = {
        "gamma": 0.5,
        "gae_lambda": 0.25,
        "num_steps": 7,
        "normalize_advantages": True,
        "ent_coef": 0.125,
        "vf_coef": 2.0,
        "normalize_observations": True,
        "normalize_rewards": False,
    }
    with pytest.raises(TypeError, match="gamma.*vf_coef"):
        OnPolicy(
            *networks, normalize_observations=True, normalize_rewards=False, seed=0
        )
    agent = OnPolicy(*networks, **options, seed=3)
    assert options.items() <= agent.get_config().items()
    rollout = Rollouts(agent, Environments(Scripted()), agent.num_steps, 0).play()
    assert batch_of(agent, rollout)[0]["returns"].shape == (7,)


# --- Worlds that they solve -----------------------------------------------------


# A2C makes one step where PPO makes 16.
RATES = {"a2c": 0.02, "ppo": 0.003}
WORLDS = ("discrete", "multi-discrete", "continuous")


@pytest.mark.variants(2)
@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize(
    ("world", "shared"), [*((world, False) for world in WORLDS), ("discrete", True)]
)
def test_agents_do_as_they_see(kind, world, shared):
    env = SyncVectorEnv(
        [lambda: Identity(world)] * 8, autoreset_mode=AutoresetMode.SAME_STEP
    )
    options = {"num_steps": 8, "gamma": 0.0, "normalize_advantages": True}
    agent = make_agent(
        kind,
        env.single_action_space,
        env.single_observation_space.shape,
        shared,
        **options,
    )
    agent.compile(keras.optimizers.Adam(RATES[kind]))
    agent.fit(env, 8_000, verbose=0)
    # At random: 3.3, 4.2 and about -13.
    wanted = {"discrete": 9.5, "multi-discrete": 9.5, "continuous": -0.8}[world]
    assert agent.evaluate(env, 16, seed=1)["return"] >= wanted


@pytest.fixture
def bfloat16():
    """Has Keras make and compute all variables in bfloat16."""
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("bfloat16")
    yield
    keras.config.set_dtype_policy(before)


@pytest.mark.variants(2)
@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize("world", ["discrete", "continuous"])
def test_agents_learn_in_bfloat16(kind, world, bfloat16):
    env = SyncVectorEnv(
        [lambda: Identity(world)] * 8, autoreset_mode=AutoresetMode.SAME_STEP
    )
    normalized = world == "continuous"
    agent = make_agent(
        kind,
        env.single_action_space,
        env.single_observation_space.shape,
        num_steps=8,
        gamma=0.0,
        normalize_advantages=True,
        normalize_observations=normalized,
        normalize_rewards=normalized,
    )
    assert {layer.kernel.dtype for layer in agent.critic.layers} == {"bfloat16"}
    agent.compile("adam")
    with pytest.raises(ValueError, match=r"beta_2=0.999 of Adam is 1 in bfloat16"):
        agent.fit(env, 64, verbose=0)
    agent.compile(keras.optimizers.Adam(RATES[kind], beta_2=0.99))
    agent.fit(env, 8_000, verbose=0)
    wanted = {"discrete": 9.5, "continuous": -0.8}[world]
    assert agent.evaluate(env, 16, seed=1)["return"] >= wanted


@pytest.mark.skipif(
    keras.backend.backend() == "jax", reason="has float64 only if the process asks"
)
@pytest.mark.parametrize("kind", AGENTS)
def test_agents_train_in_float64(kind, float64):
    env = SyncVectorEnv(
        [lambda: Identity("continuous")] * 2, autoreset_mode=AutoresetMode.SAME_STEP
    )
    agent = make_agent(
        kind,
        env.single_action_space,
        env.single_observation_space.shape,
        num_steps=8,
        normalize_observations=True,
        normalize_rewards=True,
    )
    agent.compile("adam")
    before = agent.critic.get_weights()
    agent.fit(env, 64, verbose=0)
    assert {x.dtype for x in agent.critic.weights} == {"float64"}
    for old, new in zip(before, agent.critic.weights, strict=True):
        assert (old != ops.convert_to_numpy(new)).any()


@pytest.mark.parametrize("kind", AGENTS)
def test_normalized_agents_learn(kind):
    env = gymnasium.wrappers.TransformReward(
        gymnasium.wrappers.TransformObservation(
            Identity("continuous"),
            lambda x: 100.0 * x + 50.0,
            Box(-50.0, 150.0, (2,), np.float32),
        ),
        lambda r: 1000.0 * r,
    )
    agent = make_agent(
        kind,
        env.action_space,
        (2,),
        num_steps=64,
        gamma=0.0,
        normalize_advantages=True,
        normalize_observations=True,
        normalize_rewards=True,
    )
    agent.compile(keras.optimizers.Adam(RATES[kind]))
    agent.fit(env, 8_000, verbose=0)
    np.testing.assert_allclose(numpy(agent.obs_statistics.mean), [50, 50], atol=5)
    assert agent.evaluate(env, 16, seed=1)["return"] >= -1500


# --- Seeds --------------------------------------------------------------------


class Begun(Exception):
    """Raised where training would begin."""


def begin(*args, **kwargs):
    raise Begun


@pytest.mark.parametrize("recipe", ["ppo", "actor_critic", "a3c", "parity"])
def test_no_two_networks_of_two_seeds_have_the_same_weights(
    recipe, load_recipe, tmp_path, monkeypatch
):
    seeds = []
    monkeypatch.setattr(kit, "initialize_weights", lambda _, seed: seeds.append(seed))
    for agent in (*AGENTS.values(), kit.A3C):
        monkeypatch.setattr(agent, "compile", begin)
    for seed in range(3):
        with pytest.raises(Begun):
            if recipe == "parity":
                parity.ppo(1, seed)
            else:
                load_recipe(recipe).main(seed=seed, output_dir=tmp_path, verbose=0)
    assert len(seeds) == len(set(seeds)) == 6


# --- Files --------------------------------------------------------------------


@pytest.mark.variants(2)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", AGENTS)
def test_saved_agents_act_alike_and_go_on(kind, shared, tmp_path):
    env = Identity("continuous")
    agent = make_agent(
        kind,
        env.action_space,
        (2,),
        shared,
        num_steps=8,
        normalize_observations=True,
        normalize_rewards=True,
    )
    agent.compile(keras.optimizers.Adam(0.01))
    agent.fit(env, 32, verbose=0)
    agent.save(tmp_path / "agent.keras")
    loaded = keras.saving.load_model(tmp_path / "agent.keras")
    x = np.random.default_rng(0).uniform(-1, 1, (5, 2)).astype("float32")
    np.testing.assert_allclose(agent.act(x), loaded.act(x), rtol=1e-5)
    assert options_of(loaded) == options_of(agent)
    assert int(loaded.optimizer.iterations) == int(agent.optimizer.iterations) > 0
    for a, b in zip(agent.optimizer.variables, loaded.optimizer.variables, strict=True):
        np.testing.assert_allclose(numpy(a), numpy(b), rtol=1e-6)
    loaded.fit(env, 16, verbose=0)


def options_of(agent):
    config = agent.get_config()
    return {name: x for name, x in config.items() if name not in ("actor", "critic")}


def test_act_takes_one_observation_or_several():
    agent = make_agent("ppo", Discrete(3, start=4))
    one = agent.act(np.zeros(3, "float32"))
    assert one in (4, 5, 6) and np.ndim(one) == 0
    assert agent.act(np.zeros((7, 3), "float32")).shape == (7,)
    drawn = agent.act(np.zeros((500, 3), "float32"), sample=True)
    assert set(drawn) == {4, 5, 6}
    with pytest.raises(ValueError, match=r"`obs` must have shape \(3,\).*\(2,\)"):
        agent.act(np.zeros(2))


# --- Errors -------------------------------------------------------------------


class Other(Scripted):
    def __init__(self, **spaces):
        super().__init__()
        for name, space in spaces.items():
            setattr(self, name, space)


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize(
    ("spaces", "message"),
    [
        (
            {"observation_space": Discrete(3)},
            r"observation space Discrete\(3\) doesn't fit `actor`, which",
        ),
        ({"observation_space": Box(0, 1, (2,))}, r"shape \(2,\), `actor` takes \(3,\)"),
        ({"action_space": Discrete(3)}, r"ends in Categorical.* fit .*Discrete\(3\)"),
        ({"action_space": Box(0, 1, (2,))}, "`actor` ends in Categorical.* fit .*Box"),
    ],
)
def test_environments_that_do_not_fit_are_refused(kind, spaces, message):
    agent = make_agent(kind)
    agent.compile()
    for use in (lambda env: agent.fit(env, 100), agent.evaluate):
        with pytest.raises(ValueError, match=message):
            use(Other(**spaces))


def sequential(*layers):
    return keras.Sequential([keras.Input((3,)), *layers])


def dense(n):
    return keras.layers.Dense(n)


@pytest.mark.parametrize("kind", AGENTS)
@pytest.mark.parametrize(
    ("networks", "error", "message"),
    [
        (lambda: ["mlp"], TypeError, "`actor` must be a keras.Model, received .*str"),
        (
            lambda: [keras.Sequential([dense(2)])],
            ValueError,
            "`actor` must be a built model",
        ),
        (
            lambda: [sequential(dense(2)), sequential(dense(1))],
            ValueError,
            "must end in one layer of kit.policies.*it has 0",
        ),
        (
            lambda: [kit.policy_network((3,), Discrete(2))],
            ValueError,
            r"values must have shape \(batch, 1\), received None",
        ),
        (
            lambda: [
                sequential(dense(2), kit.policies.Categorical(2), dense(7)),
                kit.value_network((3,)),
            ],
            ValueError,
            "must be that of its layer 'categorical.*'",
        ),
        (
            lambda: [
                kit.shared_network((3,), Discrete(2)),
                kit.value_network((3,)),
            ],
            ValueError,
            "with a `critic` the only one",
        ),
        (
            lambda: [kit.policy_network((3,), Discrete(2)), sequential(dense(2))],
            ValueError,
            r"values must have shape \(batch, 1\), received \(None, 2\)",
        ),
        (
            lambda: [kit.policy_network((3,), Discrete(2)), kit.value_network((4,))],
            ValueError,
            r"`actor` takes \(None, 3\), `critic` \(None, 4\)",
        ),
    ],
)
def test_networks_of_another_form_are_refused(kind, networks, error, message):
    with pytest.raises(error, match=message):
        AGENTS[kind](*networks())


@pytest.mark.parametrize("kind", AGENTS)
def test_numbers_out_of_range_are_refused(kind):
    for name, value in (("gamma", 1.1), ("gae_lambda", -0.1), ("num_steps", 0)):
        with pytest.raises(ValueError, match=f"`{name}` must be .*, received {value}"):
            make_agent(kind, **{name: value})
    with pytest.raises(TypeError, match="`num_steps` must be an integer"):
        make_agent(kind, num_steps=2.5)
    with pytest.raises(TypeError, match="`num_steps` must be an integer .*True"):
        make_agent(kind, num_steps=True)
    with pytest.raises(TypeError, match="`normalize_advantages` must be True or Fal"):
        make_agent(kind, normalize_advantages="no")
    agent = make_agent(kind)
    with pytest.raises(ValueError, match="call `compile"):
        agent.fit(Scripted(), 100)
    agent.compile()
    with pytest.raises(ValueError, match=r"`total_timesteps` must be .*received 0"):
        agent.fit(Scripted(), 0)
    with pytest.raises(TypeError, match="must be a gymnasium.Env"):
        agent.fit("CartPole-v1", 100)
