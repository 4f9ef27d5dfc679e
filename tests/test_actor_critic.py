"""A2C: its losses by hand, its step, one optimizer or two, and the recipe."""

import json

import gymnasium
import keras
import numpy as np
import pytest
from gymnasium.spaces import Discrete
from keras import ops
from worlds import Identity

import kit
from kit.actor_critic import LOGS, policy_gradient_loss, value_loss
from kit.envs import CartPole
from kit.rl.rollouts import prepare_batch

TINY = {
    "total_timesteps": 300,
    "num_envs": 2,
    "units": (8,),
    "eval_episodes": 2,
    "verbose": 0,
}


def numpy(x):
    return ops.convert_to_numpy(x)


def tensor(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def make_agent(optimizer=None, critic_optimizer=None, **options):
    actor = kit.policy_network((3,), Discrete(2), (8,))
    critic = kit.value_network((3,), (8,))
    kit.initialize_weights(actor, 0)
    kit.initialize_weights(critic, 1)
    actor.layers[-2].set_weights([np.eye(8, 2), np.zeros(2)])  # isn't that small
    agent = kit.A2C(actor, critic, **options)
    agent.compile(optimizer or keras.optimizers.SGD(0.1), critic_optimizer)
    return agent


def make_rollout(steps=5, envs=3, seed=0):
    rng = np.random.default_rng(seed)
    terminated = rng.random((steps, envs)) < 0.2
    return {
        "obs": rng.normal(size=(steps, envs, 3)).astype("float32"),
        "action": rng.integers(0, 2, (steps, envs)).astype("int32"),
        "reward": rng.normal(size=(steps, envs)).astype("float32"),
        "next_obs": rng.normal(size=(steps, envs, 3)).astype("float32"),
        "terminated": terminated,
        "ended": terminated,
        "valid": np.ones((steps, envs), "bool"),
    }


def learn(agent, rollout):
    num_envs = rollout["reward"].shape[1]
    logs, _ = agent._learn(rollout, np.zeros(num_envs, "float32"))
    return {name: float(numpy(x)) for name, x in logs.items()}


def batch_of(agent, rollout):
    """The batch that an agent makes of a rollout of nothing to be normalized."""

    @kit.compiled
    def learn(rollout):
        _, value, next_value = agent.apply_to_rollout(rollout)
        return prepare_batch(rollout, value, next_value, agent.gamma, agent.gae_lambda)

    return {name: numpy(x) for name, x in learn(rollout).items()}


def test_losses_by_hand():
    got = policy_gradient_loss(tensor(np.log([0.5, 0.25])), tensor([3.0, -2.0]))
    np.testing.assert_allclose(numpy(got), [3 * np.log(2), -4 * np.log(2)], 1e-5)
    got = value_loss(tensor([1.0, 2.0]), tensor([4.0, 2.0]))
    np.testing.assert_allclose(numpy(got), [4.5, 0])


@pytest.mark.parametrize("two", [False, True])
def test_a_turn_is_one_gradient_step(two):
    rollout = make_rollout()
    critic_optimizer = keras.optimizers.SGD(0.3) if two else None
    agent = make_agent(None, critic_optimizer, ent_coef=0.02, gamma=0.9)
    logs = learn(agent, rollout)

    twin = make_agent(gamma=0.9)
    batch = batch_of(twin, rollout)

    done, advantage, returns = (
        tensor(x)
        for x in (np.eye(2)[batch["action"]], batch["advantage"], batch["returns"])
    )

    def actor_loss():
        log_probs = ops.log_softmax(twin.actor(batch["obs"]))
        chosen = ops.sum(log_probs * done, axis=-1)
        entropy = -ops.sum(ops.exp(log_probs) * log_probs, axis=-1)
        return -ops.mean(chosen * advantage) - 0.02 * ops.mean(entropy)

    def critic_loss():
        value = twin.critic(batch["obs"])[:, 0]
        return ops.mean(ops.square(value - returns)) / 2

    def both():
        kit.minimize(actor_loss, twin.actor.trainable_variables, actor_sgd)
        kit.minimize(critic_loss, twin.critic.trainable_variables, critic_sgd)

    actor_sgd = keras.optimizers.SGD(0.1)
    critic_sgd = keras.optimizers.SGD(0.3 if two else 0.5 * 0.1)
    kit.compiled(both)()
    for a, b in zip(agent.get_weights(), twin.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    expected = np.square(batch["advantage"]).mean() / 2
    assert logs["value_loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("fused", [False, True], ids=["ordinary", "one program"])
def test_fit_reports_what_the_file_says(fused):
    env = CartPole(2) if fused else gymnasium.make("CartPole-v1")
    actor = kit.policy_network((4,), Discrete(2), (8,))
    agent = kit.A2C(actor, kit.value_network((4,), (8,)), num_steps=8)
    agent.compile()
    history = agent.fit(env, 32, steps_per_epoch=16, verbose=0).history
    assert set(LOGS) <= set(history)
    for name in LOGS:
        assert len(history[name]) == 2 and np.isfinite(history[name]).all()


def test_n_step_returns_by_hand():
    agent = make_agent(gamma=0.5)
    rollout = make_rollout(steps=3, envs=1)
    rollout["reward"][:, 0] = [1, 2, 3]
    rollout["terminated"][:] = rollout["ended"][:] = False
    batch = batch_of(agent, rollout)
    last = numpy(agent.critic(rollout["next_obs"][-1]))[0, 0]
    expected = [1 + 1 + 0.75 + last / 8, 2 + 1.5 + last / 4, 3 + last / 2]
    # Where the next observation isn't the next row's, only the sum telescopes.
    value = numpy(agent.critic(rollout["obs"][:, 0]))[:, 0]
    next_value = numpy(agent.critic(rollout["next_obs"][:, 0]))[:, 0]
    gap = next_value[:2] - value[1:]
    expected[0] += gap[0] / 2 + gap[1] / 4
    expected[1] += gap[1] / 2
    np.testing.assert_allclose(batch["returns"], expected, rtol=1e-4)


@pytest.mark.once
def test_normalized_advantages_forget_the_size_of_rewards():
    weights = []
    for scale in (1.0, 50.0):
        agent = make_agent(normalize_advantages=True, vf_coef=0.0)
        agent.critic.set_weights([0 * w for w in agent.critic.get_weights()])
        rollout = make_rollout()
        rollout["reward"] *= scale
        learn(agent, rollout)
        weights.append(agent.actor.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_optimizers_of_a_saved_agent_go_on(tmp_path):
    agent = make_agent(keras.optimizers.Adam(0.01), keras.optimizers.RMSprop(0.02))
    learn(agent, make_rollout())
    agent.save(tmp_path / "a2c.keras")
    loaded = keras.saving.load_model(tmp_path / "a2c.keras")
    assert isinstance(loaded.critic_optimizer, keras.optimizers.RMSprop)
    for a in (agent, loaded):
        learn(a, make_rollout(seed=1))
    for a, b in zip(agent.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.once
def test_both_optimizers_end_on_their_averages():
    env, weights = Identity(), []
    for steps in (4, 12):
        actor = kit.policy_network((3,), env.action_space, (8,))
        critic = kit.value_network((3,), (8,))
        kit.initialize_weights(actor, 0)
        kit.initialize_weights(critic, 1)
        agent = kit.A2C(actor, critic, num_steps=4)
        # An average that moves by nothing stays at the weights after the first step.
        averages = {"use_ema": True, "ema_momentum": 1.0 - 1e-7}
        agent.compile(
            keras.optimizers.SGD(0.1, **averages), keras.optimizers.SGD(0.1, **averages)
        )
        agent.fit(env, steps, verbose=0)
        weights.append(agent.get_weights())
    for a, b in zip(*weights, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_single_transition_cannot_be_normalized():
    env = Identity()
    actor = kit.policy_network((3,), env.action_space, (8,))
    agent = kit.A2C(actor, kit.value_network((3,)), num_steps=1)
    agent.compile()
    agent.normalize_advantages = True
    with pytest.raises(ValueError, match="advantages` needs at least two.* has 1"):
        agent.fit(env, 10)


def test_wrong_optimizers_are_refused():
    optimizer = keras.optimizers.SGD()
    with pytest.raises(ValueError, match="must be two optimizers"):
        make_agent(optimizer, optimizer)
    agent = kit.A2C(kit.shared_network((3,), Discrete(2), (8,)))
    with pytest.raises(ValueError, match="`critic_optimizer` is given, but"):
        agent.compile("sgd", "sgd")


@pytest.mark.variants
@pytest.mark.parametrize(
    "options", [{}, {"shared": True}, {"critic_learning_rate": 1e-3}]
)
def test_recipe_leaves_what_it_promises(load_recipe, options, tmp_path):
    main = load_recipe("actor_critic").main
    main(output_dir=tmp_path, seed=1, **options, **TINY)
    names = {"model.keras", "history.csv", "learning_curve.png", "metrics.json"}
    assert names <= {path.name for path in tmp_path.iterdir()}
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["metrics"]["eval_episodes"] == 2
    assert set(record["baselines"]) == {"random_return"}
    agent = keras.saving.load_model(tmp_path / "model.keras")
    assert agent.act(np.zeros(4, "float32")) in (0, 1)


def test_recipe_refuses_a_rate_for_no_critic(load_recipe, tmp_path):
    with pytest.raises(ValueError, match="critic_learning_rate is for a critic of its"):
        load_recipe("actor_critic").main(
            output_dir=tmp_path, shared=True, critic_learning_rate=1e-3, **TINY
        )


@pytest.mark.learn
def test_a2c_learns_cartpole(load_recipe, tmp_path):
    returns = [
        load_recipe("actor_critic").main(
            total_timesteps=200_000,
            seed=seed,
            output_dir=tmp_path / str(seed),
            verbose=0,
        )["metrics"]["eval_return"]
        for seed in range(3)
    ]
    assert np.mean(returns) >= 475
