"""
Deep Q-network, step by step
============================

We begin with Q-learning by a network, in a few lines that hardly learn, and add what
makes it work: a replay buffer, a target network, several gradient steps in one
program, double DQN. The last step is `kit/dqn.py`.
"""

import gymnasium
import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kit

GAMMA = 0.99
STEPS = 12_000

# %%
# Step 1: a network in place of the table
# ---------------------------------------
#
# CartPole observes four numbers: position and speed of the cart, angle and speed of the
# pole. Each step that the pole stands gives a reward of 1. The network has one output
# for each action, left and right: the expected sum of discounted rewards Q. It is moved
# towards the reward plus the value of the next state,
#
# .. math:: y = r + \gamma\,(1 - \mathrm{terminated})\,\max_{a'} Q(s', a')
#
# Only a pole that fell ends the future (`terminated`). After 500 steps, CartPole stops
# although the pole stands (`truncated`): the next state still has a value.


def network(seed=0):
    model = kit.q_network((4,), 2, units=(64, 64))
    kit.initialize_weights(model, seed)
    return model


def update(q, q_target, optimizer, batch, double=False):
    """Makes a gradient step on a batch of transitions and returns the mean Q-value."""
    obs, action, reward, next_obs, terminated = batch
    next_q = q_target(next_obs)  # (B, 2)
    if double:  # step 5
        best = ops.argmax(q(next_obs), axis=1)
        next_value = ops.sum(next_q * ops.one_hot(best, 2), axis=1)
    else:
        next_value = ops.max(next_q, axis=1)
    y = ops.stop_gradient(reward + GAMMA * (1 - terminated) * next_value)

    def loss_fn():
        taken = ops.sum(q(obs) * ops.one_hot(action, 2), axis=1)
        return ops.mean(keras.losses.huber(y[:, None], taken[:, None])), taken

    _, taken = kit.minimize(loss_fn, q.trainable_variables, optimizer)
    return ops.mean(taken)


def play(act, learn, seed=0):
    """Plays STEPS steps; returns the step and the return of each finished episode."""
    env = gymnasium.make("CartPole-v1")
    rng = np.random.default_rng(seed)
    obs, _ = env.reset(seed=seed)
    total, returns = 0.0, []
    for step in range(STEPS):
        epsilon = max(0.05, 1 - step / (0.5 * STEPS))  # explore less and less
        action = int(rng.integers(2)) if rng.random() < epsilon else act(obs)
        next_obs, reward, terminated, truncated, _ = env.step(action)
        learn(step, (obs, action, reward, next_obs, float(terminated)))
        total += reward
        obs = next_obs
        if terminated or truncated:
            returns.append((step, total))
            obs, _ = env.reset()
            total = 0.0
    return np.array(returns)


def greedy(q):
    """Returns the function that takes the best action, compiled."""
    best = kit.compiled(lambda obs: ops.argmax(q(obs), axis=1))
    return lambda obs: int(best(obs[None])[0])


def as_batch(transitions):
    obs, action, reward, next_obs, terminated = zip(*transitions, strict=True)
    return (
        np.array(obs, "float32"),
        np.array(action, "int32"),
        np.array(reward, "float32"),
        np.array(next_obs, "float32"),
        np.array(terminated, "float32"),
    )


q, optimizer = network(), keras.optimizers.Adam(1e-3)
step_fn = kit.compiled(lambda batch: update(q, q, optimizer, batch))
curves = {
    "1 each transition once": play(
        greedy(q), lambda step, transition: step_fn(as_batch([transition]))
    )
}


def show(curves, title):
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, points in curves.items():
        smooth = np.convolve(points[:, 1], np.ones(10) / 10, mode="valid")
        axis.plot(points[9:, 0], smooth, label=name)
    axis.axhline(500, color="gray", linewidth=1, linestyle=":")
    axis.set(xlabel="environment step", ylabel="return, mean of 10 episodes")
    axis.set_title(title)
    axis.legend()


show(curves, "Step 1: successive transitions, each used once")

# %%
# Step 2: replay
# --------------
#
# Successive transitions are alike, and each was used once. A replay buffer keeps the
# latest ones; each gradient step uses 64 of them at random.


class Replay:
    def __init__(self, capacity, seed=0):
        self.capacity, self.rows = capacity, []
        self.rng, self.next = np.random.default_rng(seed), 0

    def add(self, transition):
        if len(self.rows) < self.capacity:
            self.rows.append(transition)
        else:
            self.rows[self.next] = transition
        self.next = (self.next + 1) % self.capacity

    def sample(self, size):
        return as_batch(
            [self.rows[i] for i in self.rng.integers(len(self.rows), size=size)]
        )


def learner(step_fn, after=lambda step: None):
    """Returns a function that stores a transition, and learns in each second step."""
    replay = Replay(10_000)

    def learn(step, transition):
        replay.add(transition)
        if step >= 500 and step % 2 == 0:
            step_fn(replay.sample(64))
        after(step)

    return learn


q, optimizer = network(), keras.optimizers.Adam(1e-3)
step_fn = kit.compiled(lambda batch: update(q, q, optimizer, batch))
values = {"2 with replay": []}
curves["2 with replay"] = play(
    greedy(q),
    learner(lambda batch: values["2 with replay"].append(float(step_fn(batch)))),
)
show(curves, "Step 2: a minibatch of old transitions")

# %%
# Replay alone doesn't help here. Step 3 shows why.
#
# Step 3: a target network
# ------------------------
#
# The target y contains the network that is trained: if a step raises Q(s, a), it also
# raises the value of the next state, which looks alike. A copy, which is renewed every
# 200 steps only, keeps the target still.


def with_target(double=False):
    q, target = network(), network()
    optimizer = keras.optimizers.Adam(1e-3)
    estimates = []

    @kit.compiled
    def step_fn(batch):
        return update(q, target, optimizer, batch, double)

    def copy_weights(step):
        if step % 200 == 0:
            target.set_weights(q.get_weights())

    returns = play(
        greedy(q),
        learner(lambda batch: estimates.append(float(step_fn(batch))), copy_weights),
    )
    return returns, estimates


name = "3 with target network"
curves[name], values[name] = with_target()
show(curves, "Step 3: targets that stand still")

# %%
# No state is worth more than 1 + gamma + gamma² + ... = 100. Without the target
# network, the estimates run away from their own targets:

figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
for name, series in values.items():
    axis.plot(series, label=name)
axis.axhline(
    1 / (1 - GAMMA), color="gray", linestyle=":", label="largest possible value"
)
axis.set(xlabel="gradient step", ylabel="mean Q of the minibatch")
axis.set(yscale="log", ylim=(1, None))
axis.set_title("Step 3: estimates without and with a target network")
axis.legend()

# %%
# Step 4: the right value of an end
# ---------------------------------
#
# The most frequent mistake: to treat a truncated episode like a terminated one. Here is
# the value of a state from which the policy always balances on. With the right target
# it converges to 1 + gamma + gamma² + ... = 100. If each step is the last one with a
# probability of 1/500 (which is what the wrong target says on average), it converges to
# a smaller number, although nothing about the state is worse.

value, wrong = np.zeros(800), np.zeros(800)
for k in range(799):
    value[k + 1] = 1 + GAMMA * value[k]
    wrong[k + 1] = 1 + GAMMA * (1 - 1 / 500) * wrong[k]
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
axis.plot(value, label="truncated: the next state has a value")
axis.plot(wrong, label="truncated taken for terminated")
axis.set(xlabel="number of backups", ylabel="value of a balanced pole")
axis.set_title("Step 4: what truncation costs if it is taken for an end")
axis.legend()

# %%
# Step 5: double DQN
# ------------------
#
# The maximum of noisy estimates is too large on average: it chooses the action whose
# estimate erred upwards. Suppose that all actions are worth 0, and each estimate has an
# error of standard deviation 1. In double DQN, one network chooses the action, and
# another one, whose errors are others, evaluates it.

rng = np.random.default_rng(0)
numbers = np.array([2, 4, 8, 16, 32])
single, double = [], []
for number in numbers:
    chooses, evaluates = rng.normal(size=(2, 2_000, number))
    best = chooses.argmax(axis=1)[:, None]
    single.append(np.take_along_axis(chooses, best, axis=1).mean())
    double.append(np.take_along_axis(evaluates, best, axis=1).mean())
figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
axis.plot(numbers, single, marker="o", label="maximum")
axis.plot(numbers, double, marker="o", label="double")
axis.axhline(0, color="gray", linestyle=":", label="true value")
axis.set(xlabel="number of actions", ylabel="mean estimate")
axis.set_title("Step 5: the maximum overestimates")
axis.legend()

# %%
# The target network shares most of its errors with the network, so that the effect is
# smaller in practice. With two actions it can hardly be seen, but it costs little:

curves["5 double"], _ = with_target(double=True)
show(curves, "Step 5: with double DQN")

# %%
# Step 6: many gradient steps in one program
# ------------------------------------------
#
# So far, each gradient step was one call from Python. `kit.scan` makes a loop of many
# gradient steps one program: the carry is empty here, and `batches` has a leading axis.

q, target, optimizer = network(), network(), keras.optimizers.Adam(1e-3)


@kit.compiled
def many_steps(batches):
    def body(carry, batch):
        return carry, update(q, target, optimizer, batch)

    return kit.scan(body, (), batches)[1]


rng = np.random.default_rng(0)
batches = (
    rng.normal(size=(50, 64, 4)).astype("float32"),
    rng.integers(2, size=(50, 64)).astype("int32"),
    np.ones((50, 64), "float32"),
    rng.normal(size=(50, 64, 4)).astype("float32"),
    np.zeros((50, 64), "float32"),
)
print(
    "mean Q after each of 50 gradient steps:",
    np.asarray(many_steps(batches)).round(1)[::10],
)

# %%
# Step 7: the kit's file
# ----------------------
#
# `kit.DQN` has these parts, with playing and learning in turns and several gradient
# steps in each call. Its curve is the mean of the episodes in each epoch.

env = gymnasium.make("CartPole-v1")
agent = kit.DQN(
    network(), learning_starts=500, double=True, batch_size=64, train_freq=2
)
agent.compile(keras.optimizers.Adam(1e-3))
history = agent.fit(env, total_timesteps=STEPS, verbose=0)
rows = np.stack([history.history["timesteps"], history.history["return"]], axis=1)
rows = rows[np.isfinite(rows[:, 1])]

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, points in curves.items():
    smooth = np.convolve(points[:, 1], np.ones(10) / 10, mode="valid")
    axis.plot(points[9:, 0], smooth, label=name)
axis.plot(*rows.T, color="black", label="7 kit.DQN")
axis.set(xlabel="environment step", ylabel="return")
axis.set_title("Step 7: all steps, one seed each")
axis.legend()

# %%
# One seed proves little: two curves of the same algorithm differ as much as some of
# these do. :doc:`How to train several seeds </howto/several_seeds>` says more. Next:
# `recipes/dqn.py`, and :doc:`its page </algorithms/dqn>`.
