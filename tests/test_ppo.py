"""PPO: its losses by hand, its update beside NumPy's, and the recipe."""

import json
import math

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from keras import ops
from worlds import Identity

import kit
from kit.ppo import clipped_policy_loss, clipped_value_loss
from kit.rl.rollouts import prepare_batch

TINY = {
    "total_timesteps": 300,
    "num_envs": 2,
    "num_steps": 16,
    "num_epochs": 2,
    "units": (8,),
    "eval_episodes": 2,
    "verbose": 0,
}


def numpy(x):
    return ops.convert_to_numpy(x)


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def make_agent(optimizer=None, **options):
    actor = kit.policy_network((3,), Discrete(2), (8,))
    critic = kit.value_network((3,), (8,))
    kit.initialize_weights(actor, 0)
    kit.initialize_weights(critic, 1)
    actor.layers[-2].set_weights([np.eye(8, 2), np.zeros(2)])  # isn't that small
    agent = kit.PPO(actor, critic, **options)
    agent.compile(optimizer or keras.optimizers.SGD(0.1))
    return agent


def make_rollout(steps=8, envs=2, seed=0):
    rng = np.random.default_rng(seed)
    flags = np.zeros((steps, envs), "bool")
    terminated = rng.random((steps, envs)) < 0.2
    return {
        "obs": rng.normal(size=(steps, envs, 3)).astype("float32"),
        "action": rng.integers(0, 2, (steps, envs)).astype("int32"),
        "reward": rng.normal(size=(steps, envs)).astype("float32"),
        "next_obs": rng.normal(size=(steps, envs, 3)).astype("float32"),
        "terminated": terminated,
        "ended": terminated | flags,
        "valid": ~flags,
    }


def learn(agent, rollout):
    num_envs = rollout["reward"].shape[1]
    logs, _ = agent._learn(rollout, np.zeros(num_envs, "float32"))
    return {name: float(numpy(x)) for name, x in logs.items()}


def batch_of(agent, rollout):
    """The batch that an agent makes of a rollout of nothing to be normalized."""

    @kit.compiled
    def learn(rollout):
        outputs, value, next_value = agent.apply_to_rollout(rollout)
        batch = prepare_batch(rollout, value, next_value, agent.gamma, agent.gae_lambda)
        return batch, agent.distribution.log_prob(outputs, batch["action"])

    batch, log_prob = learn(rollout)
    return {name: numpy(x) for name, x in {**batch, "log_prob": log_prob}.items()}


# --- Losses -------------------------------------------------------------------


def test_clipped_policy_loss_by_hand():
    log_ratio = tensor(np.log([1.0, 1.1, 1.5, 0.5, 1.5, 0.5]))
    advantage = tensor([2, 2, 2, 2, -2, -2])
    # Beyond the clip range nothing more is gained, but what is lost still counts.
    expected = [-2, -2.2, -2.4, -1.0, 3.0, 1.6]
    got = clipped_policy_loss(log_ratio - 1.0, -1.0, advantage, 0.2)
    np.testing.assert_allclose(numpy(got), expected, rtol=1e-5)


def test_clipped_value_loss_by_hand():
    value = tensor([1.0, 3.0, 3.0, -1.0])
    returns = tensor([2.0, 4.0, 0.0, -4.0])
    # From an old value of 1: (1 - 2)^2; far from 4 as 1.5 is; (3 - 0)^2 as it is
    # more than (1.5 - 0)^2; far from -4 as 0.5 is.
    expected = np.square([1.0, 2.5, 3.0, 4.5]) / 2
    got = clipped_value_loss(value, tensor(np.ones(4)), returns, 0.5)
    np.testing.assert_allclose(numpy(got), expected, rtol=1e-5)
    got = clipped_value_loss(value, tensor(np.ones(4)), returns, math.inf)
    np.testing.assert_allclose(
        numpy(got), numpy(ops.square(value - returns)) / 2, rtol=1e-5
    )


# --- The update -----------------------------------------------------------------


@pytest.mark.parametrize("clip_value_loss", [True, False])
def test_one_pass_is_one_gradient_step_on_all_that_was_seen(clip_value_loss):
    options = {"num_epochs": 1, "num_minibatches": 1, "gamma": 0.9, "ent_coef": 0.03}
    rollout = make_rollout()
    agent = make_agent(clip_value_loss=clip_value_loss, **options)
    logs = learn(agent, rollout)

    twin = make_agent(**options)
    batch = batch_of(twin, rollout)
    advantage = batch["advantage"]
    advantage = tensor((advantage - advantage.mean()) / (advantage.std() + 1e-8))
    done, old, returns = (
        tensor(x)
        for x in (np.eye(2)[batch["action"]], batch["log_prob"], batch["returns"])
    )

    def loss_fn():
        log_probs = ops.log_softmax(twin.actor(batch["obs"]))
        # A ratio of 1: nothing is clipped yet.
        ratio = ops.exp(ops.sum(log_probs * done, axis=-1) - old)
        value = twin.critic(batch["obs"])[:, 0]
        entropy = -ops.sum(ops.exp(log_probs) * log_probs, axis=-1)
        return (
            -ops.mean(ratio * advantage)
            + 0.5 * ops.mean(ops.square(value - returns) / 2)
            - 0.03 * ops.mean(entropy)
        )

    kit.compiled(
        lambda: kit.minimize(loss_fn, twin.trainable_variables, twin.optimizer)
    )()
    for a, b in zip(agent.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    value_loss = np.square(batch["advantage"]).mean() / 2
    assert logs["value_loss"] == pytest.approx(value_loss, rel=1e-4)
    assert logs["policy_loss"] == pytest.approx(0, abs=1e-5)
    assert logs["approx_kl"] == pytest.approx(0, abs=1e-6)
    assert logs["clip_fraction"] == 0


def test_every_transition_is_used_once_in_a_pass():
    # The loss of a critic alone, at a rate of 0, is a mean over what it was given.
    rollout = make_rollout()
    logs = [
        learn(
            make_agent(
                keras.optimizers.SGD(0.0), num_epochs=epochs, num_minibatches=parts
            ),
            rollout,
        )["value_loss"]
        for epochs, parts in ((1, 1), (2, 4))
    ]
    np.testing.assert_allclose(logs, logs[0], rtol=1e-4)


def test_passes_draw_other_minibatches():
    rollout = make_rollout()
    agents = [make_agent(num_epochs=3, num_minibatches=4, seed=s) for s in (0, 0, 1)]
    for agent in agents:
        learn(agent, rollout)
    first, same, other = (agent.get_weights()[0] for agent in agents)
    np.testing.assert_array_equal(first, same)
    assert not np.allclose(first, other, rtol=1e-5, atol=0)


def test_target_kl_ends_the_passes():
    rollout = make_rollout()
    optimizers = [keras.optimizers.Adam(0.05) for _ in range(4)]
    agents = [
        make_agent(optimizer, num_epochs=epochs, target_kl=target, num_minibatches=2)
        for optimizer, epochs, target in zip(
            optimizers, (1, 5, 5, 5), (None, 1e-6, 1e6, None), strict=True
        )
    ]
    for agent in agents:
        learn(agent, rollout)
    one_pass, stopped, went_on, all_passes = (agent.get_weights() for agent in agents)
    for a, b, c, d in zip(one_pass, stopped, went_on, all_passes, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5)
        np.testing.assert_allclose(c, d, rtol=1e-5)
    assert not np.allclose(one_pass[0], all_passes[0], atol=1e-3)
    # A learning rate that falls goes on falling.
    assert [int(x.iterations) for x in optimizers] == [2, 10, 10, 10]


@pytest.mark.once
def test_clip_range_may_follow_a_schedule(tmp_path):
    falls = keras.optimizers.schedules.PiecewiseConstantDecay([8], [0.05, 1e9])
    agents = [
        make_agent(keras.optimizers.Adam(0.05), clip_coef=clip_coef)
        for clip_coef in (0.05, falls, 1e9)
    ]
    fractions = []
    for seed in (0, 1):  # 16 gradient steps each; the clip range goes after 8
        logs = [learn(agent, make_rollout(seed=seed)) for agent in agents]
        fractions.append([row["clip_fraction"] for row in logs])
    (near, part, wide), (_, later, _) = fractions
    assert 0 < part < near and wide == later == 0
    agents[1].save(tmp_path / "agent.keras")
    loaded = keras.saving.load_model(tmp_path / "agent.keras")
    assert loaded.clip_coef.get_config() == falls.get_config()


@pytest.mark.parametrize(("clip_value_loss", "expected"), [(True, 1.8), (False, 1.0)])
def test_the_critic_is_kept_near_the_old_one(clip_value_loss, expected):
    agent = make_agent(clip_value_loss=clip_value_loss)
    batch = batch_of(agent, make_rollout())
    # It rose by 1, of which 0.2 counts: it is 1.8 away from what is 1 above it.
    batch["returns"], batch["value"] = batch["value"] + 1, batch["value"] - 1
    logs = kit.compiled(lambda batch: agent.loss_and_logs(batch, 0.2)[1])(batch)
    assert float(numpy(logs["value_loss"])) == pytest.approx(expected**2 / 2, rel=1e-4)


def test_what_is_reported_by_hand():
    agent, rollout = make_agent(), make_rollout(3, 2)
    batch = batch_of(agent, rollout)
    ratio = np.array([1.0, 1.1, 1.5, 0.5, 0.9, 0.7], "float32")
    batch["log_prob"] -= np.log(ratio)  # of the policy that played
    logs = kit.compiled(lambda batch: agent.loss_and_logs(batch, 0.2)[1])(batch)
    # Beyond 0.8 to 1.2 are 1.5, 0.5 and 0.7.
    assert float(numpy(logs["clip_fraction"])) == pytest.approx(3 / 6)
    kl = np.mean(ratio - 1 - np.log(ratio))
    assert float(numpy(logs["approx_kl"])) == pytest.approx(kl, rel=1e-4)


def test_steps_without_weight_change_nothing():
    rollout, other = make_rollout(), make_rollout()
    rollout["valid"][3] = other["valid"][3] = False
    rollout["ended"][2:4] = other["ended"][2:4] = True
    other["obs"][3], other["reward"][3] = 9.0, 77.0
    weights = []
    for data in (rollout, other):
        agent = make_agent(num_epochs=1, num_minibatches=1)
        learn(agent, data)
        weights.append(agent.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_good_action_becomes_likelier():
    rollout = make_rollout()
    rollout["reward"] = np.where(rollout["action"] == 1, 1.0, -1.0).astype("float32")
    agent = make_agent(gamma=0.0, num_minibatches=2)
    before = numpy(agent.actor(rollout["obs"][:, 0]))
    for _ in range(3):
        learn(agent, rollout)
    after = numpy(agent.actor(rollout["obs"][:, 0]))
    assert ((after - before)[:, 1] > (after - before)[:, 0]).mean() > 0.8


def golden_losses():
    """Losses of 12 updates, 96 gradient steps, from weights made with NumPy."""
    agent = make_agent(
        keras.optimizers.Adam(3e-3, epsilon=1e-5, global_clipnorm=0.5),
        num_minibatches=2,
        normalize_observations=True,
        normalize_rewards=True,
    )
    rng = np.random.default_rng(1)
    for network in (agent.actor, agent.critic):
        network.set_weights([0.3 * rng.normal(size=w.shape) for w in network.weights])
    rows = [learn(agent, make_rollout(seed=i)) for i in range(12)]
    return [(row["policy_loss"], row["value_loss"], row["entropy"]) for row in rows]


GOLDEN = [
    (-0.0135253, 0.5788015, 0.6853687),
    (0.0021685, 0.2197423, 0.6872395),
    (-0.0011235, 0.6411036, 0.6877896),
    (0.0004202, 0.7157222, 0.6852178),
    (-0.0094265, 0.9938121, 0.6920509),
    (0.0010141, 0.476844, 0.692096),
    (-0.0078186, 0.5145695, 0.6921909),
    (0.0026179, 0.1857619, 0.6901543),
    (-0.0029979, 0.6473383, 0.6906914),
    (-0.0024825, 0.285747, 0.6885061),
    (0.0010029, 0.0799605, 0.6907197),
    (-0.0002963, 0.3267665, 0.6903508),
]


def test_updates_are_the_same_on_every_backend():
    np.testing.assert_allclose(golden_losses(), GOLDEN, rtol=1e-4, atol=1e-5)


def test_fit_reports_and_plays_whole_turns():
    env = Identity()
    actor = kit.policy_network(env.observation_space.shape, env.action_space, (8,))
    agent = kit.PPO(actor, kit.value_network((3,), (8,)), num_steps=16)
    agent.compile()
    history = agent.fit(env, 40, steps_per_epoch=16, verbose=0).history
    assert history["timesteps"] == [16, 32, 48]
    assert set(history) == {
        *("return", "length", "steps_per_second", "timesteps"),
        *("policy_loss", "value_loss", "entropy", "approx_kl", "clip_fraction"),
        "explained_variance",
    }
    assert history["entropy"][0] == pytest.approx(math.log(3), abs=0.01)
    assert int(agent.optimizer.iterations) == 3 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_epochs": 0}, r"`num_epochs` must be an integer in \[1, .*received 0"),
        ({"clip_coef": 0.0}, r"`clip_coef` must be a number in \(0, .*received 0\.0"),
        ({"target_kl": -1.0}, r"`target_kl` must be a number in \[0, .*received -1\.0"),
    ],
)
def test_numbers_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_agent(**options)


def test_more_minibatches_than_steps_are_refused():
    env = Identity()
    agent = kit.PPO(
        kit.policy_network((3,), env.action_space),
        kit.value_network((3,)),
        num_steps=4,
        num_minibatches=5,
    )
    agent.compile()
    with pytest.raises(ValueError, match="`num_minibatches` is 5, more than the 4"):
        agent.fit(env, 100)
    agent.num_minibatches = 3
    with pytest.raises(ValueError, match="advantages` needs at least two.* has 1"):
        agent.fit(env, 100)


# --- The recipe ---------------------------------------------------------------


@pytest.mark.variants
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_recipe_leaves_what_it_promises(load_recipe, env, tmp_path):
    load_recipe("ppo").main(env=env, output_dir=tmp_path, seed=1, **TINY)
    names = {"model.keras", "history.csv", "learning_curve.png", "metrics.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"]["eval_episodes"] == 2
    assert record["metrics"]["total_timesteps"] == 320  # whole turns
    assert set(record["baselines"]) == {"random_return"}
    assert record["throughput"]["unit"] == "env steps/s"
    agent = keras.saving.load_model(tmp_path / "model.keras")
    obs = np.zeros(agent.actor.input_shape[1:], "float32")
    assert gymnasium.make(env).action_space.contains(agent.act(obs))


def test_recipe_refuses_no_environments(load_recipe, tmp_path):
    with pytest.raises(ValueError, match=r"`num_envs` must be .*\[1, .*received 0"):
        load_recipe("ppo").main(output_dir=tmp_path, **{**TINY, "num_envs": 0})


# Of recipes/ppo.py's docstring; a final policy's mean over seeds 0 to 2 is at least so.
LEARN = {
    "CartPole-v1": (490, {}),
    "Acrobot-v1": (
        -85,
        {
            "total_timesteps": 500_000,
            "num_envs": 16,
            "num_steps": 256,
            "num_minibatches": 64,
            "num_epochs": 4,
            "gamma": 0.99,
            "gae_lambda": 0.94,
            "learning_rate": 3e-4,
            "ent_coef": 0.02,
        },
    ),
    "Pendulum-v1": (
        -175,
        {
            "total_timesteps": 200_000,
            "num_envs": 4,
            "num_steps": 1024,
            "num_minibatches": 64,
            "num_epochs": 10,
            "gamma": 0.9,
            "gae_lambda": 0.95,
        },
    ),
}


@pytest.mark.learn
@pytest.mark.parametrize("env", LEARN)
def test_ppo_learns(load_recipe, tmp_path, env):
    least, options = LEARN[env]
    returns = [
        load_recipe("ppo").main(
            env=env,
            seed=seed,
            output_dir=tmp_path / str(seed),
            verbose=0,
            **options,
        )["metrics"]["eval_return"]
        for seed in range(3)
    ]
    assert np.mean(returns) >= least
