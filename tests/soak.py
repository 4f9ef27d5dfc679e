"""Trains for long: memory, threads, open files and processes must not become more.

    KERAS_BACKEND=jax python tests/soak.py               each agent, a minute or two
    KERAS_BACKEND=jax python tests/soak.py dqn ppo       these agents

Each agent makes 200,000 steps in a process of its own, in 40 calls of `fit` with
backups, each in a new environment, and is saved after each. What the process holds
after a quarter of them is compared with what it holds at the end. Run by `tox -m soak`.
"""

import argparse
import gc
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

TIMESTEPS = 200_000
CALLS = 40
# MB that may come on top in three quarters of a training. Without a leak it was 0.2 at
# most. The arrays of each step of CartPole, kept in a list, are 30 MB; ten thousand
# transitions that outlive their call of `fit`, 9 MB.
MEGABYTES = 4.0
# Of the backend's own threads some start late, as does a file that it reads. A call
# that left one behind would leave 30.
COUNT = 2


def dqn():
    """Four environments, ten steps of each for a gradient step."""
    import kit

    network = kit.q_network((4,), 2, units=(32,))
    kit.initialize_weights(network, 0)
    return kit.DQN(network, batch_size=32, learning_starts=200)


def on_policy(kind, **options):
    """Actor and critic of 32 units."""
    from gymnasium.spaces import Discrete

    import kit

    actor = kit.policy_network((4,), Discrete(2), units=(32,))
    critic = kit.value_network((4,), units=(32,))
    for network, seed in zip((actor, critic), kit.random.split_seed(0), strict=True):
        kit.initialize_weights(network, seed)
    return kind(actor, critic, normalize_rewards=True, **options)


def ppo():
    """Four environments, 64 steps of each for 16 gradient steps."""
    import kit

    return on_policy(kit.PPO, num_steps=64, normalize_observations=True)


def a2c():
    """Four environments, ten steps of each for a gradient step."""
    import kit

    return on_policy(kit.A2C, num_steps=10)


def q_learning():
    """Four environments, whose states are numbered."""
    import kit

    return kit.QLearning(16, 4, horizon=10.0, train_freq=50)


AGENTS = {f.__name__: f for f in (dqn, ppo, a2c, q_learning)}


def make_env(kind):
    """CartPole; for a table, FrozenLake."""
    import gymnasium

    if kind == "q_learning":
        return gymnasium.make_vec("FrozenLake-v1", 4, vectorization_mode="sync")
    return gymnasium.make_vec("CartPole-v1", 4, vectorization_mode="vector_entry_point")


def holds():
    """Returns what this process holds: MB, threads, open files, child processes."""
    gc.collect()
    process = psutil.Process()
    return {
        "MB": process.memory_info().rss / 1e6,
        "threads": process.num_threads(),
        "files": process.num_fds(),
        "processes": len(process.children(recursive=True)),
    }


def train(kind, timesteps, calls):
    """Trains an agent; prints what grew, and returns whether it is too much."""
    import kit
    from kit.backend import import_no_other_framework

    import_no_other_framework()  # of which the memory isn't the kit's
    kit.set_random_seed(0)
    agent = AGENTS[kind]()
    agent.compile()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        backups = kit.BackupAndRestore(Path(folder) / "backups", interval=0.5)
        for _ in range(calls):
            env = make_env(kind)
            agent.fit(env, timesteps // calls, callbacks=[backups], verbose=0)
            env.close()
            agent.save(Path(folder) / "agent.keras")
            rows.append(holds())
    quarter, end = rows[calls // 4 - 1], rows[-1]
    limits = {"MB": MEGABYTES}
    grown = {
        name: end[name] - quarter[name]
        for name in end
        if end[name] - quarter[name] > limits.get(name, COUNT)
    }
    print(
        f"{os.environ.get('KERAS_BACKEND', '')} {kind}: "
        + ", ".join(f"{quarter[x]:.0f} to {end[x]:.0f} {x}" for x in end)
        + f" ({end['MB'] - quarter['MB']:+.1f} MB)"
        + (f": GREW by {grown}" if grown else ""),
        flush=True,
    )
    every = max(1, calls // 8)
    print(
        "  MB:", *(f"{row['MB']:.1f}" for row in rows[every - 1 :: every]), flush=True
    )
    return bool(grown)


def main():
    """Trains each agent in a process of its own; fails if one of them grew."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("agents", nargs="*", default=[*AGENTS])
    parser.add_argument("--timesteps", type=int, default=TIMESTEPS)
    parser.add_argument("--calls", type=int, default=CALLS)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        return train(options.agents[0], options.timesteps, options.calls)
    numbers = [f"--timesteps={options.timesteps}", f"--calls={options.calls}"]
    codes = [
        subprocess.run([sys.executable, __file__, kind, "--here", *numbers]).returncode
        for kind in options.agents
    ]
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
