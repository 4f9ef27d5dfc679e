"""Times PPO on CartPole in one program: the kit beside native JAX and other libraries.

    pip install -e ".[jax,recipes,bench]"
    KERAS_BACKEND=jax python benchmarks/fused.py
    KERAS_BACKEND=torch python benchmarks/fused.py --num-envs 4 64

The native program is written by hand in JAX alone, in the manner of PureJaxRL:
environment, rollout, advantages, minibatches and Adam in one `jax.jit`; it takes part
wherever JAX is installed, and is compiled on the same machine. "gymnasium" is the kit's
agent with Gymnasium's own vector of CartPoles, which Python steps. Stable-Baselines3
(PyTorch) and SBX (JAX) take part where they are installed, with the environments that
they make by default, one after the other. All have the same sizes, four passes in four
minibatches over 128 steps of each environment. They run in turns (see rounds.py);
compilation is timed apart. Peak memory is that of two updates in a process that has no
other contestant, imports included. KERAS_BACKEND concerns the kit alone.
"""

import functools
import importlib
import importlib.util
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from peers import PACKAGES, clock_peer
from rounds import write_report

import kit
import kit.envs
from kit.lab.agent_recipe import make_envs
from kit.lab.run import peak_memory_mb

PEERS = ("sb3", "sbx")
NUM_STEPS, NUM_EPOCHS, NUM_MINIBATCHES = 128, 4, 4
RATE, GAMMA, LAMBDA, CLIP, ENTROPY, VALUE, NORM = (
    2.5e-4,
    0.99,
    0.95,
    0.2,
    0.01,
    0.5,
    0.5,
)


def main(
    *,
    num_envs: tuple[int, ...] = (4, 64, 1024),
    steps: int = 200_000,
    peer_steps: int = 16_384,
    rounds: int = 3,
    jit_compile: bool = False,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Prints a table of the running backend.

    Args:
        num_envs: Numbers of environments, one after the other.
        steps: Environment steps of a contestant's turn in a round, at least.
        peer_steps: The same for Stable-Baselines3 and SBX, which need minutes for as
            many.
        rounds: Number of rounds.
        jit_compile: Add the kit with `compile(jit_compile=True)`, which on PyTorch
            means TorchInductor.
        output: JSON file for the results.

    Returns:
        The rows of the table.
    """
    rows = []
    for count in num_envs:
        makers: dict[str, Callable] = {"kit": kit_fused, "gymnasium": kit_ordinary}
        if jit_compile:
            makers["kit, jit_compile"] = functools.partial(kit_fused, jit_compile=True)
        if importlib.util.find_spec("jax"):
            makers["native JAX"] = native_jax
        for who in PEERS:
            if importlib.util.find_spec(PACKAGES[who]):
                makers[who] = functools.partial(peer, PACKAGES[who])
        memory = {who: peak_memory(make, count) for who, make in makers.items()}
        contestants, seconds = {}, {}
        for who, make in makers.items():
            start = time.perf_counter()
            contestants[who] = make(count)
            contestants[who](1)  # compiles
            seconds[who] = time.perf_counter() - start
        speeds: dict[str, list[float]] = {who: [] for who in contestants}
        for _ in range(rounds):
            for who, run in contestants.items():
                speeds[who].append(run(peer_steps if who in PEERS else steps))
        for who, found in speeds.items():
            pairs = zip(speeds["kit"], found, strict=True)
            rows.append(
                {
                    "num_envs": count,
                    "contestant": who,
                    "steps_per_second": statistics.median(found),
                    "kit_over_it": statistics.median(a / b for a, b in pairs),
                    "seconds_to_begin": seconds[who],
                    "peak_memory_mb": memory[who],
                }
            )
        print_table(rows[-len(makers) :])
    if output is not None:
        write_report(output, rows)
    return rows


def print_table(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{keras.backend.backend()}: PPO on CartPole, steps a second")
    for column in ("environments", "", "steps/s", "kit x", "s to begin", "peak MB"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            f"{row['num_envs']:,}",
            row["contestant"],
            f"{row['steps_per_second']:,.0f}",
            f"{row['kit_over_it']:.2f}",
            f"{row['seconds_to_begin']:.1f}",
            str(row["peak_memory_mb"]),
        )
    Console().print(table)


def peak_memory(make: Callable, num_envs: int) -> int | None:
    """Returns the megabytes that a contestant needs, or `None` if unknown."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_train_briefly, (make, num_envs))


def _train_briefly(make: Callable, num_envs: int) -> int | None:
    make(num_envs)(1)
    return peak_memory_mb()


# --- The kit ------------------------------------------------------------------------


def kit_fused(num_envs: int, jit_compile: bool = False) -> Callable[[int], float]:
    return fit(kit.envs.CartPole(num_envs), jit_compile)


def kit_ordinary(num_envs: int) -> Callable[[int], float]:
    return fit(make_envs("CartPole-v1", num_envs))


def fit(env: Any, jit_compile: bool = False) -> Callable[[int], float]:
    """Returns a function that trains for so many steps, and returns their speed."""
    actor = kit.policy_network((4,), env.single_action_space)
    critic = kit.value_network((4,))
    for network, seed in zip((actor, critic), kit.random.split_seed(0), strict=True):
        kit.initialize_weights(network, seed)
    agent = kit.PPO(
        actor,
        critic,
        num_steps=NUM_STEPS,
        num_minibatches=NUM_MINIBATCHES,
        num_epochs=NUM_EPOCHS,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_coef=CLIP,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
    )
    agent.compile(
        keras.optimizers.Adam(RATE, epsilon=1e-5, global_clipnorm=NORM),
        jit_compile=jit_compile or "auto",
    )
    turn = NUM_STEPS * env.num_envs

    def run(steps: int) -> float:
        marks = []
        clock = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: marks.append(
                (logs["timesteps"], time.perf_counter())
            )
        )
        # One call at least after the first, which the clock starts with.
        total = max(steps, 2 * max(turn, 4096))
        agent.fit(env, total, steps_per_epoch=total, callbacks=[clock], verbose=0)
        (begun, start), (ended, end) = marks[0], marks[-1]
        return (ended - begun) / (end - start)

    return run


# --- Others -------------------------------------------------------------------------


def peer(library: str, num_envs: int) -> Callable[[int], float]:
    """Returns the same for an agent of Stable-Baselines3's kind."""
    from stable_baselines3.common.env_util import make_vec_env

    turn = NUM_STEPS * num_envs
    agent = importlib.import_module(library).PPO(
        "MlpPolicy",
        make_vec_env("CartPole-v1", n_envs=num_envs, seed=0),
        n_steps=NUM_STEPS,
        batch_size=turn // NUM_MINIBATCHES,
        n_epochs=NUM_EPOCHS,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        clip_range=CLIP,
        clip_range_vf=CLIP,
        ent_coef=ENTROPY,
        vf_coef=VALUE,
        max_grad_norm=NORM,
        learning_rate=RATE,
        seed=0,
        device="cpu",
    )

    def run(steps: int) -> float:
        marks, _ = clock_peer(agent, max(steps, turn))
        (_, start), (steps, end) = marks[0], marks[-1]
        return steps / (end - start)

    return run


# --- JAX alone ----------------------------------------------------------------------


def native_jax(num_envs: int) -> Callable[[int], float]:
    """Returns the same for a program that is JAX alone."""
    import jax
    import jax.numpy as jnp
    from jax import lax, random

    def dense(key, n, m, gain):
        return {
            "w": random.orthogonal(key, max(n, m))[:n, :m] * gain,
            "b": jnp.zeros(m),
        }

    def network(key, outputs, gain):
        a, b, c = random.split(key, 3)
        root = 2**0.5
        return [
            dense(a, 4, 64, root),
            dense(b, 64, 64, root),
            dense(c, 64, outputs, gain),
        ]

    def apply(layers, x):
        for layer in layers[:-1]:
            x = jnp.tanh(x @ layer["w"] + layer["b"])
        return x @ layers[-1]["w"] + layers[-1]["b"]

    def both(weights, obs):
        return apply(weights["actor"], obs), apply(weights["critic"], obs)[..., 0]

    def new_episodes(key):
        return random.uniform(key, (num_envs, 4), minval=-0.05, maxval=0.05)

    def env_step(state, count, action, key):
        x, v, angle, spin = state.T
        force = jnp.where(action == 1, 10.0, -10.0)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        push = (force + 0.05 * spin**2 * sin) / 1.1
        turning = (9.8 * sin - cos * push) / (0.5 * (4 / 3 - 0.1 * cos**2 / 1.1))
        moving = push - 0.05 * turning * cos / 1.1
        after = state + 0.02 * jnp.stack([v, moving, spin, turning], 1)
        fell = (jnp.abs(after[:, 0]) > 2.4) | (jnp.abs(after[:, 2]) > 0.20943951)
        count = count + 1
        ended = fell | (count >= 500)
        state = jnp.where(ended[:, None], new_episodes(key), after)
        return state, jnp.where(ended, 0, count), after, fell, ended

    def play(carry, _):
        weights, state, count, key = carry
        key, draw, env_key = random.split(key, 3)
        logits, value = both(weights, state)
        action = random.categorical(draw, logits)
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], 1)
        after = env_step(state, count, action, env_key)
        row = (state, action, log_prob[:, 0], value, *after[2:])
        return (weights, *after[:2], key), row

    def loss_fn(weights, batch):
        obs, action, log_prob, value, advantage, returns = batch
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        logits, new_value = both(weights, obs)
        logs = jax.nn.log_softmax(logits)
        new = jnp.take_along_axis(logs, action[:, None], 1)[:, 0]
        ratio = jnp.exp(new - log_prob)
        clipped = jnp.clip(ratio, 1 - CLIP, 1 + CLIP)
        policy = -jnp.minimum(ratio * advantage, clipped * advantage).mean()
        near = value + jnp.clip(new_value - value, -CLIP, CLIP)
        errors = jnp.maximum((new_value - returns) ** 2, (near - returns) ** 2)
        entropy = -(jnp.exp(logs) * logs).sum(-1).mean()
        return policy + VALUE * 0.5 * errors.mean() - ENTROPY * entropy

    def gradient_step(carry, batch):
        weights, m, v, t = carry
        grads = jax.grad(loss_fn)(weights, batch)
        norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(grads)))
        grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, NORM / norm), grads)
        t = t + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, grads)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, grads)
        rate = RATE * jnp.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        weights = jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + 1e-5), weights, m, v
        )
        return (weights, m, v, t), None

    def update(carry, _):
        learned, state, count, key = carry
        weights = learned[0]
        (_, state, count, key), rollout = lax.scan(
            play, (weights, state, count, key), None, NUM_STEPS
        )
        obs, action, log_prob, value, after, fell, ended = rollout
        next_value = both(weights, after)[1]
        delta = 1.0 + GAMMA * (1.0 - fell) * next_value - value

        def back(advantage, x):
            advantage = x[0] + GAMMA * LAMBDA * (1.0 - x[1]) * advantage
            return advantage, advantage

        zeros = jnp.zeros(num_envs)
        _, advantage = lax.scan(back, zeros, (delta, ended), reverse=True)
        data = (obs, action, log_prob, value, advantage, advantage + value)
        size = NUM_STEPS * num_envs
        data = jax.tree.map(lambda x: x.reshape(size, *x.shape[2:]), data)

        def one_pass(carry, _):
            learned, key = carry
            key, draw = random.split(key)
            order = random.permutation(draw, size).reshape(NUM_MINIBATCHES, -1)
            batches = jax.tree.map(lambda x: x[order], data)
            return (lax.scan(gradient_step, learned, batches)[0], key), None

        (learned, key), _ = lax.scan(one_pass, (learned, key), None, NUM_EPOCHS)
        return (learned, state, count, key), None

    turn = NUM_STEPS * num_envs
    length = max(1, 4096 // turn)
    program = jax.jit(lambda carry: lax.scan(update, carry, None, length)[0])
    key, a, b, c = random.split(random.key(0), 4)
    weights = {"actor": network(a, 2, 0.01), "critic": network(b, 1, 1.0)}
    zeros = jax.tree.map(jnp.zeros_like, weights)
    count = jnp.zeros(num_envs, int)
    carry: Any = ((weights, zeros, zeros, 0.0), new_episodes(c), count, key)

    def run(steps: int) -> float:
        nonlocal carry
        carry = jax.block_until_ready(program(carry))
        calls = max(2, steps // (length * turn))
        start = time.perf_counter()
        for _ in range(calls):
            carry = jax.block_until_ready(program(carry))
        assert np.isfinite(np.asarray(carry[0][0]["critic"][0]["w"])).all()
        return calls * length * turn / (time.perf_counter() - start)

    return run


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
