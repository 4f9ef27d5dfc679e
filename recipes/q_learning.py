r"""Learns FrozenLake with tabular Q-learning; reaches the optimal policy's value.

You will learn: how an agent that doesn't know its environment learns to act as well as
one that does. The baseline knows it: value iteration computes the best policy from the
environment's transition probabilities, without a single step. Both policies are
evaluated exactly: a policy's value solves a system of linear equations, so chance
plays no part. `kit/q_learning.py` has the algorithm, and SARSA and Expected SARSA,
which differ from it in one line.

    KERAS_BACKEND=jax python recipes/q_learning.py
    KERAS_BACKEND=jax python recipes/q_learning.py --env FrozenLake8x8-v1
    KERAS_BACKEND=tensorflow python recipes/q_learning.py --env CliffWalking-v1
    KERAS_BACKEND=torch python recipes/q_learning.py --env Taxi-v4

Expected result: exactly the value of the best policy; on the 8x8 lake, where many
policies are nearly as good as the best, up to half a percent less. On two cores it
takes 5 to 20 seconds with JAX, a minute on the 8x8 lake. TensorFlow and PyTorch take
two to four times as long, as starting a step costs them more than the step itself.

gamma is 0.99 everywhere. Below 1, each policy has a finite value, even one that walks
in circles along the cliff for ever, at -1 a step. Rewards 100 steps ahead still matter,
which is about what it takes to cross the larger lake.

Paper: Watkins and Dayan, 1992, https://doi.org/10.1007/BF00992698. The learning rate
falls with the visits to a state and action, (h + 1) / (h + n), after Jin et al., 2018,
https://arxiv.org/abs/1807.03765. Exploration is their optimism in its simplest form: a
table of high initial values.
"""

from pathlib import Path
from typing import Any, Literal

import gymnasium
import keras
import numpy as np

import kit
from kit.lab.run import Run, command_line
from kit.rl.environments import play_episodes, random_policy

# Environment steps to train for, and the largest possible return. That is the initial
# Q-value: optimism makes the agent try every action.
WORLDS = {
    "FrozenLake-v1": (300_000, 1.0),
    "FrozenLake8x8-v1": (1_000_000, 1.0),
    "CliffWalking-v1": (50_000, 0.0),
    "Taxi-v4": (300_000, 20.0),
}
# Symbols of the actions in pictures; P picks the passenger up, D drops them off.
ACTIONS = {"FrozenLake": "←↓→↑", "CliffWalking": "↑→↓←", "Taxi": "↓↑→←PD"}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Q-learning",
    "place": 13,
    "score": "policy_value",
    "larger_is_better": True,
    "curve": "policy_value",
    "quick": "--total-timesteps 30000",
}


def main(
    *,
    env: str = "FrozenLake-v1",
    algorithm: Literal["q_learning", "sarsa", "expected_sarsa"] = "q_learning",
    total_timesteps: int | None = None,
    gamma: float = 0.99,
    learning_rate: float = 1.0,
    horizon: float | None = 40.0,
    initial_value: float | None = None,
    epsilon_start: float = 0.1,
    epsilon_end: float = 0.1,
    exploration_fraction: float = 1.0,
    train_freq: int = 20,
    eval_episodes: int = 100,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Learns a table of Q-values and compares its policy with the best one.

    Args:
        env: Id of a Gymnasium environment with numbered states and a table of
            transition probabilities `P`: FrozenLake-v1, FrozenLake8x8-v1,
            CliffWalking-v1, CliffWalkingSlippery-v1, Taxi-v4.
        algorithm: Value of the next state: that of its best action (q_learning), of
            the next action (sarsa), or the mean over the policy (expected_sarsa).
        total_timesteps: Environment steps to train for; if not given, a number that
            suits the environment.
        gamma: Discount factor.
        learning_rate: Step size alpha at the first visit of a state and action.
        horizon: Number of visits h after which alpha has about halved; None keeps it
            constant.
        initial_value: Initial Q-value; if not given, the environment's largest
            possible return.
        epsilon_start: Probability of a random action at the start.
        epsilon_end: Probability of a random action after exploration.
        exploration_fraction: Part of the training in which epsilon falls to
            `epsilon_end`.
        train_freq: Environment steps between updates.
        eval_episodes: Episodes to play greedily at the end.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/q_learning-<backend>-<seed> if not
            given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each reporting interval.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "q_learning", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    world = make(env)
    model = transition_model(world)
    known_timesteps, known_value = WORLDS.get(env, (1_000_000, 1.0))
    total_timesteps = known_timesteps if total_timesteps is None else total_timesteps
    initial_value = known_value if initial_value is None else initial_value
    if not 0 <= gamma < 1:
        raise ValueError(
            "--gamma must lie in [0, 1): at 1, a policy that never ends has no finite "
            f"value. Received {gamma}."
        )

    # The baselines. All policies play the same episodes, with seeds unused in training.
    test: Any = {"episodes": eval_episodes, "seed": 10_000 + seed}
    best_policy = value_iteration(*model, gamma)
    start = world.unwrapped.initial_state_distrib
    best_values = policy_evaluation(*model, best_policy, gamma)
    optimal_value = start @ best_values
    best = play_episodes(world, lambda obs: best_policy[obs], **test)
    random = play_episodes(world, random_policy(world, seed), **test)

    agent = kit.QLearning(
        world.observation_space.n,
        world.action_space.n,
        algorithm=algorithm,
        gamma=gamma,
        horizon=horizon,
        initial_value=initial_value,
        train_freq=train_freq,
        epsilon_start=epsilon_start,
        epsilon_end=epsilon_end,
        exploration_fraction=exploration_fraction,
        seed=seed,
    )
    agent.compile(optimizer=keras.optimizers.SGD(learning_rate))

    def add_policy_value(epoch, logs):
        values = policy_evaluation(*model, greedy_policy(agent), gamma)
        logs["policy_value"] = float(start @ values)

    history = agent.fit(
        world,
        total_timesteps,
        callbacks=[
            keras.callbacks.LambdaCallback(on_epoch_end=add_policy_value),
            run.backup(),
        ],
        verbose=verbose,
    )

    policy = greedy_policy(agent)
    values = policy_evaluation(*model, policy, gamma)
    final = agent.evaluate(world, **test)
    world.close()

    agent.save(run.output_dir / "model.keras")
    title = f"{algorithm} on {env} ({run.backend}, seed {seed})"
    with run.figure("learning_curve.png", figsize=(8, 4.5)) as figure:
        draw_curve(figure, title, history.history, optimal_value)
    maps = state_maps(world, model)
    signs = next((x for name, x in ACTIONS.items() if env.startswith(name)), None)
    with run.figure("policy.png", figsize=figure_size(maps)) as figure:
        policies = {"learned": (policy, values), "best": (best_policy, best_values)}
        draw_policies(figure, title, maps, policies, signs)
    return run.finish(
        history=history,
        metrics={
            "policy_value": start @ values,
            "eval_return": final["return"],
            "eval_return_std": final["return_std"],
            "eval_episodes": final["episodes"],
            "total_timesteps": total_timesteps,
        },
        baselines={
            "optimal_value": optimal_value,
            "optimal_return": best["return"],
            "random_return": random["return"],
        },
        throughput=(np.median(history.history["steps_per_second"]), "env steps/s"),
        compile_seconds=kit.compile_seconds(),
    )


def make(env: str) -> Any:
    """Makes the environment, with a time limit in any case.

    Without one, the episode of a greedy policy that walks in circles never ends.
    """
    limit = gymnasium.spec(env).max_episode_steps or 1_000
    world = gymnasium.make(env, max_episode_steps=limit)
    if not all(hasattr(world.unwrapped, x) for x in ("P", "initial_state_distrib")):
        raise ValueError(
            f"--env {env}: it keeps no transition probabilities `P` to compare with, "
            f"received an environment whose observation space is "
            f"{world.observation_space}. {', '.join(WORLDS)} keep them; "
            "recipes/dqn.py learns from observations of other kinds."
        )
    return world


def transition_model(world: Any) -> tuple[np.ndarray, np.ndarray]:
    """Returns the environment's transition probabilities and mean rewards.

    They are P(s, a, s'), the probability to continue in s' (its sum over s' is below 1
    if the episode may end), and R(s, a), the mean reward.
    """
    num_states, num_actions = world.observation_space.n, world.action_space.n
    transitions = np.zeros((num_states, num_actions, num_states))
    rewards = np.zeros((num_states, num_actions))
    for state, actions in world.unwrapped.P.items():
        for action, outcomes in actions.items():
            for probability, next_state, reward, terminated in outcomes:
                rewards[state, action] += probability * reward
                if not terminated:
                    transitions[state, action, next_state] += probability
    return transitions, rewards


def value_iteration(
    transitions: np.ndarray, rewards: np.ndarray, gamma: float
) -> np.ndarray:
    """Returns the best policy (S,): iterates V(s) <- max_a R + gamma P V."""
    values, change = np.zeros(len(rewards)), np.inf
    while change > 1e-10:
        q = rewards + gamma * transitions @ values
        values, change = q.max(axis=-1), np.abs(q.max(axis=-1) - values).max()
    return q.argmax(axis=-1)


def policy_evaluation(
    transitions: np.ndarray, rewards: np.ndarray, policy: np.ndarray, gamma: float
) -> np.ndarray:
    """Returns the exact values (S,) of a policy: solves V = R + gamma P V."""
    states = np.arange(len(policy))
    system = np.eye(len(policy)) - gamma * transitions[states, policy]
    return np.linalg.solve(system, rewards[states, policy])


def greedy_policy(agent: kit.QLearning) -> np.ndarray:
    """Returns the action (S,) that the agent takes in each state."""
    return agent.act(np.arange(agent.num_states))


def state_maps(world: Any, model: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns maps of the environment by title: grids of states and of letters.

    The state is -1 where the agent never acts: in a hole, at the goal.
    """
    transitions, _ = model
    inner = world.unwrapped
    acts = inner.initial_state_distrib > 0
    for _ in acts:
        acts = acts | (acts @ transitions.any(axis=1))
    states = np.where(acts, np.arange(len(acts)), -1)
    if hasattr(inner, "decode"):  # Taxi: a map for each place of the passenger
        letters = inner.desc[1:-1, 1:-1:2].astype(str)
        states = states.reshape(5, 5, 5, 4)  # row, column, passenger, destination
        stands = "RGYB"
        return {
            f"passenger {'in the taxi' if i == 4 else f'at {stands[i]}'}, to {to}": (
                states[:, :, i, stands.index(to)],
                letters,
            )
            for i, to in ((0, "B"), (3, "R"), (4, "B"), (4, "R"))
        }
    if hasattr(inner, "desc"):
        return {"": (states.reshape(inner.desc.shape), inner.desc.astype(str))}
    if hasattr(inner, "shape"):
        letters = np.full(inner.shape, " ")
        letters[-1, 1:-1], letters[-1, -1] = "C", "G"
        return {"": (states.reshape(inner.shape), letters)}
    return {"": (states[None], np.full((1, len(states)), " "))}


def draw_curve(figure: Any, title: str, logs: dict, optimal_value: float) -> None:
    """Plots the exact value of the greedy policy during training."""
    axes = figure.add_subplot()
    axes.plot(logs["timesteps"], logs["policy_value"], color="#14508c", linewidth=2)
    axes.axhline(optimal_value, color="#b4470e", linestyle="--", zorder=1)
    label = f"value iteration\n{optimal_value:.4g}"
    axes.text(
        1.01, optimal_value, label, color="#b4470e", va="center",
        transform=axes.get_yaxis_transform(),
    )  # fmt: skip
    axes.set_title(title, loc="left")
    axes.set_xlabel("Environment steps")
    axes.set_ylabel("Exact value of the greedy policy")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.spines[["top", "right"]].set_visible(False)


def figure_size(maps: dict) -> tuple[float, float]:
    """Returns the size in inches for two maps a row, with room for a number a cell."""
    rows = sum(states.shape[0] for states, _ in maps.values())
    columns = max(states.shape[1] for states, _ in maps.values())
    return 1.2 * columns + 2.0, 0.6 * rows + 0.5 * len(maps) + 0.5


def draw_policies(
    figure: Any, title: str, maps: dict, policies: dict, signs: str | None
) -> None:
    """Draws each policy's actions on the values of its states."""
    figure.suptitle(title)
    panels = figure.subplots(len(maps), len(policies), squeeze=False)
    for row, (name, (states, letters)) in zip(panels, maps.items(), strict=True):
        every = np.concatenate([v[states[states >= 0]] for _, v in policies.values()])
        for axes, (who, (policy, values)) in zip(row, policies.items(), strict=True):
            shown = np.ma.masked_array(values[states], states < 0)
            image = axes.imshow(shown, vmin=every.min(), vmax=every.max())
            middle = (every.min() + every.max()) / 2
            for at, state in np.ndenumerate(states):
                color = "black" if state < 0 or values[state] > middle else "white"
                act = signs[policy[state]] if signs else str(policy[state])
                text = letters[at] if state < 0 else f"{act}\n{values[state]:.2f}"
                style = {"color": color, "ha": "center", "va": "center", "size": 8}
                axes.text(*at[::-1], text, **style)
            axes.set_title(f"{who}: {name}" if name else who, loc="left")
            axes.set(xticks=[], yticks=[])
        figure.colorbar(image, ax=list(row), label="Value of the state")


if __name__ == "__main__":
    command_line(main)
