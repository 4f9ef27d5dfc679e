"""
Proximal policy optimization, step by step
==========================================

We begin with the plain policy gradient, and add a critic, generalized advantages,
several passes over the same data, and the limit that makes these safe. The last step
is `kit/ppo.py`.
"""

import gymnasium
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kit

GAMMA, NUM_ENVS, NUM_STEPS = 0.99, 8, 128
UPDATES = 50  # of NUM_ENVS * NUM_STEPS environment steps each

# %%
# Step 1: the policy gradient
# ---------------------------
#
# The actor has one output for each action, a logit; softmax turns logits into
# probabilities. Actions that were followed by a high return G are made more probable:
#
# .. math:: L = -\mathrm{mean}\bigl(G \log \pi(a \mid s)\bigr)


def networks(seed=0):
    actor, critic = (
        keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(64, activation="tanh"),
                keras.layers.Dense(64, activation="tanh"),
                keras.layers.Dense(outputs),
            ]
        )
        for outputs in (2, 1)
    )
    for part, part_seed in zip(
        (actor, critic), kit.random.split_seed(seed), strict=True
    ):
        kit.initialize_weights(part, part_seed)
    return actor, critic


def log_prob_of(actor, obs, action):
    log_probs = ops.log_softmax(actor(obs))
    return ops.sum(log_probs * ops.one_hot(action, 2), axis=1)


class Player:
    """Plays NUM_STEPS steps in NUM_ENVS environments at a time."""

    def __init__(self, actor, seed=0):
        self.envs = gymnasium.make_vec("CartPole-v1", num_envs=NUM_ENVS)
        self.policy = kit.compiled(lambda obs: ops.softmax(actor(obs)))
        self.rng = np.random.default_rng(seed)
        self.obs, _ = self.envs.reset(seed=seed)
        self.total, self.returns, self.step = np.zeros(NUM_ENVS), [], 0
        self.reset = np.zeros(NUM_ENVS, bool)  # steps that only start a new episode

    def play(self):
        rows = {
            name: []
            for name in ("obs", "action", "reward", "terminated", "ended", "valid")
        }
        for _ in range(NUM_STEPS):
            right = np.asarray(self.policy(self.obs))[:, 1]
            action = (self.rng.random(NUM_ENVS) < right).astype("int32")
            next_obs, reward, terminated, truncated, _ = self.envs.step(action)
            values = (
                self.obs,
                action,
                reward,
                terminated,
                terminated | truncated,
                ~self.reset,
            )
            for name, value in zip(rows, values, strict=True):
                rows[name].append(
                    np.asarray(value, "int32" if name == "action" else "float32")
                )
            self.step += NUM_ENVS
            self.total += reward
            self.reset = terminated | truncated
            for total in self.total[self.reset]:
                self.returns.append((self.step, total))
            self.total[self.reset] = 0
            self.obs = next_obs
        rollout = {name: np.stack(value) for name, value in rows.items()}  # (T, N, ...)
        rollout["next_obs"] = np.concatenate([rollout["obs"][1:], self.obs[None]])
        return rollout


def run(make_learn, seed=0):
    """Plays and learns UPDATES times; returns the episodes' returns, and logs."""
    actor, critic = networks(seed)
    player, learn = Player(actor, seed), make_learn(actor, critic)
    logs = [learn(player.play()) for _ in range(UPDATES)]
    return np.array(player.returns), logs


def returns_of(rollout):
    """Returns the discounted sum of the rewards until the end of episode or rollout."""
    total, result = np.zeros(NUM_ENVS, "float32"), np.zeros_like(rollout["reward"])
    for t in reversed(range(NUM_STEPS)):
        total = rollout["reward"][t] + GAMMA * (1 - rollout["ended"][t]) * total
        result[t] = total
    return result


def flat(x):
    return x.reshape(-1, *x.shape[2:])


def policy_gradient(actor, critic):
    optimizer = keras.optimizers.Adam(3e-3)

    @kit.compiled
    def step(obs, action, weight):
        def loss_fn():
            return -ops.mean(weight * log_prob_of(actor, obs, action))

        return kit.minimize(loss_fn, actor.trainable_variables, optimizer)

    def learn(rollout):
        weight = flat(returns_of(rollout) * rollout["valid"])
        return float(step(flat(rollout["obs"]), flat(rollout["action"]), weight))

    return learn


curves = {"1 policy gradient": run(policy_gradient)[0]}


def show(curves, title):
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, points in curves.items():
        smooth = np.convolve(points[:, 1], np.ones(20) / 20, mode="valid")
        axis.plot(points[19:, 0], smooth, label=name)
    axis.axhline(500, color="gray", linewidth=1, linestyle=":")
    axis.set(xlabel="environment step", ylabel="return, mean of 20 episodes")
    axis.set_title(title)
    axis.legend()


show(curves, "Step 1: actions weighted by what followed")

# %%
# Step 2: a critic
# ----------------
#
# All returns are positive here, so that every action is made more probable, the better
# ones a little more. The critic V(s) predicts the return, and the actor learns from the
# advantage: how much better it went than predicted.
#
# .. math:: A = G - V(s)
#
# Step 3: generalized advantages
# ------------------------------
#
# G ends with the rollout, and it is noisy, a sum of many random steps. The TD error of
# one step is less noisy, but relies on a critic that is wrong at first. Generalized
# advantage estimation mixes both, with lambda = 0.95:
#
# .. math::
#    \delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad
#    A_t = \delta_t + \gamma \lambda A_{t+1}
#
# `kit.rl.returns.generalized_advantages` is this recursion, with the ends of episodes.

from kit.rl.returns import generalized_advantages  # noqa: E402


def advantages(critic, rollout, gae_lambda):
    value = critic(flat(rollout["obs"]))
    next_value = critic(flat(rollout["next_obs"]))
    shape = (NUM_STEPS, NUM_ENVS)
    value, next_value = ops.reshape(value, shape), ops.reshape(next_value, shape)
    advantage = generalized_advantages(
        rollout["reward"],
        value,
        next_value,
        rollout["terminated"],
        rollout["ended"],
        GAMMA,
        gae_lambda,
    )
    return advantage, advantage + value


def with_critic(gae_lambda):
    def make_learn(actor, critic):
        optimizers = [keras.optimizers.Adam(3e-3) for _ in range(2)]
        estimate = kit.compiled(lambda rollout: advantages(critic, rollout, gae_lambda))

        @kit.compiled
        def step(obs, action, valid, advantage, returns):
            def policy_loss():
                return -ops.mean(valid * advantage * log_prob_of(actor, obs, action))

            def value_loss():
                return ops.mean(valid * (critic(obs)[:, 0] - returns) ** 2)

            kit.minimize(value_loss, critic.trainable_variables, optimizers[1])
            return kit.minimize(policy_loss, actor.trainable_variables, optimizers[0])

        def learn(rollout):
            advantage, returns = map(np.asarray, estimate(rollout))
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            rows = [rollout[name] for name in ("obs", "action", "valid")]
            return float(step(*map(flat, (*rows, advantage, returns))))

        return learn

    return make_learn


curves["2 with a critic"] = run(with_critic(gae_lambda=1.0))[0]
curves["3 generalized advantages"] = run(with_critic(gae_lambda=0.95))[0]
show(curves, "Steps 2 and 3: better or worse than expected")

# %%
# Step 4: the same data again
# ---------------------------
#
# One gradient step for 1,024 environment steps is little. Here are 20 steps on the same
# data, first without a limit. After a few of them, the policy is another one than that
# which played. The ratio
#
# .. math:: r = \pi(a \mid s) \,/\, \pi_\mathrm{old}(a \mid s)
#
# shows by how much, and PPO's loss stops where r leaves [0.8, 1.2] in the direction
# that the advantage asks for:
#
# .. math:: L = -\min\bigl(r A,\; \mathrm{clip}(r, 1 - \epsilon, 1 + \epsilon)\, A\bigr)

ratio = np.linspace(0, 2, 200)
figure, axes = plt.subplots(1, 2, figsize=(8, 2.8), layout="constrained")
for axis, advantage in zip(axes, (1, -1), strict=True):
    axis.plot(ratio, ratio * advantage, linestyle=":", label="r A")
    clipped = np.minimum(ratio * advantage, np.clip(ratio, 0.8, 1.2) * advantage)
    axis.plot(ratio, clipped, label="PPO")
    axis.set(xlabel="ratio r", title=f"advantage {advantage:+d}")
    axis.legend()
figure.suptitle("Step 4: beyond the limit, nothing is gained")

# %%
# The minimum matters: if r left the range in the wrong direction (on the right of the
# right picture), the loss still pulls it back.


def several_passes(clip_coef, num_steps=20, minibatches=1):
    def make_learn(actor, critic):
        optimizers = [keras.optimizers.Adam(1e-3) for _ in range(2)]
        estimate = kit.compiled(lambda rollout: advantages(critic, rollout, 0.95))
        old = kit.compiled(lambda obs, action: log_prob_of(actor, obs, action))
        rng = np.random.default_rng(0)

        @kit.compiled
        def step(obs, action, valid, advantage, returns, old_log_prob):
            def policy_loss():
                log_prob = log_prob_of(actor, obs, action)
                ratio = ops.exp(log_prob - old_log_prob)
                near = ops.clip(ratio, 1 - clip_coef, 1 + clip_coef)
                gain = ops.minimum(ratio * advantage, near * advantage)
                return -ops.mean(valid * gain), ops.mean(
                    ratio - 1 - log_prob + old_log_prob
                )

            def value_loss():
                return ops.mean(valid * (critic(obs)[:, 0] - returns) ** 2)

            kit.minimize(value_loss, critic.trainable_variables, optimizers[1])
            return kit.minimize(policy_loss, actor.trainable_variables, optimizers[0])[
                1
            ]

        def learn(rollout):
            advantage, returns = map(np.asarray, estimate(rollout))
            advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
            rows = [rollout[name] for name in ("obs", "action", "valid")]
            data = [flat(x) for x in (*rows, advantage, returns)]
            data.append(np.asarray(old(*data[:2])))
            for _ in range(num_steps // minibatches):
                for part in np.split(rng.permutation(len(data[0])), minibatches):
                    kl = step(*(x[part] for x in data))
            return float(kl)  # how far the policy is from the one that played

        return learn

    return make_learn


free, free_kl = run(several_passes(clip_coef=1e9))
curves["5 clipped"], clipped_kl = run(several_passes(clip_coef=0.2))

# %%
# Step 5: with and without the limit
# ----------------------------------
#
# The KL divergence says how far the policy has moved from the one that played. Without
# the limit, it is an order of magnitude larger. The return of one seed doesn't show
# which is better: with other initial weights, the order of these two curves changes.
# Without the limit, a policy may reach 500, and lose it within a few updates.

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
for name, points in (("no limit", free), ("clipped", curves["5 clipped"])):
    axes[0].plot(
        points[19:, 0],
        np.convolve(points[:, 1], np.ones(20) / 20, mode="valid"),
        label=name,
    )
axes[0].set(xlabel="environment step", ylabel="return")
axes[1].semilogy(np.abs(free_kl), label="no limit")
axes[1].semilogy(np.abs(clipped_kl), label="clipped")
axes[1].set(xlabel="update", ylabel="KL divergence after 20 steps")
axes[0].legend()
figure.suptitle("Step 5: twenty gradient steps on the same data")
print("median KL", np.median(free_kl).round(4), np.median(clipped_kl).round(4))

# %%
# Step 6: minibatches
# -------------------
#
# Four passes in four parts are sixteen gradient steps, for a fifth of the work of
# twenty passes over everything.

curves["6 minibatches"] = run(several_passes(0.2, num_steps=16, minibatches=4))[0]
show(curves, "Step 6: four passes in four minibatches")

# %%
# Step 7: the kit's file
# ----------------------
#
# `kit.PPO` also has an entropy bonus, clips the critic and the gradients, and makes all
# gradient steps of an update in one program. In an environment that is part of the
# program, seconds suffice for several seeds. The settings are those of
# `recipes/fused.py`: short rollouts, twenty passes, and a learning rate that falls to
# 0, which calms the policy at the end.

import kit.envs  # noqa: E402

env = kit.envs.CartPole(num_envs=NUM_ENVS)
TOTAL = 100_000


def make_agent(seed):
    actor = kit.policy_network((4,), env.action_space)
    critic = kit.value_network((4,))
    for part, part_seed in zip(
        (actor, critic), kit.random.split_seed(seed), strict=True
    ):
        kit.initialize_weights(part, part_seed)
    agent = kit.PPO(
        actor,
        critic,
        num_steps=32,
        num_epochs=20,
        num_minibatches=1,
        gamma=0.98,
        gae_lambda=0.8,
        ent_coef=0.0,
        clip_value_loss=False,
        seed=seed,
    )
    gradient_steps = TOTAL // (NUM_ENVS * 32) * 20
    rate = keras.optimizers.schedules.PolynomialDecay(1e-3, gradient_steps, 0.0)
    agent.compile(keras.optimizers.Adam(rate, global_clipnorm=0.5))
    return agent


histories = kit.fit_together(
    [make_agent(seed) for seed in range(8)],
    env,
    TOTAL,
    verbose=0,
)
figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for history in histories:
    axis.plot(history.history["timesteps"], history.history["return"], alpha=0.6)
axis.set(xlabel="environment step", ylabel="return")
axis.set_title("Step 7: kit.PPO, eight seeds")

# %%
# Next: `recipes/ppo.py`, and :doc:`its page </algorithms/ppo>`.
