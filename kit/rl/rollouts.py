"""Rollouts: T steps in each of N environments, and the training batch made from them.

Shapes: T time steps, N environments, B = T N.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from keras import ops

from kit import checks
from kit.backend import Tensor, compiled
from kit.rl.environments import Environments
from kit.rl.returns import generalized_advantages

if TYPE_CHECKING:
    from kit.rl.on_policy import OnPolicy

Rollout = dict[str, Any]
NAMES = ("obs", "action", "reward", "terminated", "ended", "valid")
ACCEPTED = {
    "agent": checks.MODEL,
    "envs": checks.instance(Environments),
    "num_steps": checks.SIZE,
    "seed": checks.SEED | None,
    "rollout": checks.instance(dict),
    "value": checks.array("T N"),
    "next_value": checks.array("T N"),
    "gamma": checks.array("", interval="[0, 1]"),
    "gae_lambda": checks.array("", interval="[0, 1]"),
    "x": checks.array("T N ..."),
}


class Rollouts:
    """Plays T steps at a time in N environments.

    Args:
        agent: The agent that plays, with its `distribution`, `random` and `sample`.
        envs: The environments.
        num_steps: T.
        seed: Seed of the environments' first episodes.
    """

    def __init__(
        self, agent: "OnPolicy", envs: Environments, num_steps: int, seed: int
    ):
        checks.check(self, locals(), ACCEPTED)
        self.agent = agent
        self.envs = envs
        self.num_steps = num_steps
        shape = (num_steps, envs.num_envs)
        # One call per rollout, as a call costs more than the numbers. The agent keeps
        # the program for the next `fit`.
        draws = agent.__dict__.setdefault("_draws", {})
        if shape not in draws:
            draws[shape] = compiled(
                lambda: agent.distribution.noise(agent.random, shape)
            )
        self.draw = draws[shape]
        envs.reset(seed)

    def play(self) -> Rollout:
        """Plays T steps; returns a dict of arrays `(T, N, ...)`.

        `obs`, `action`, `reward`, `next_obs` (at the end of an episode its final
        observation, not the first one of the next episode), `terminated`, `ended`
        (terminated or truncated), `valid` (`False` where the step only began an
        episode).
        """
        agent, envs = self.agent, self.envs
        noise = ops.convert_to_numpy(self.draw())
        rows = []
        for t in range(self.num_steps):
            obs = envs.obs
            action = ops.convert_to_numpy(agent.sample(obs, noise[t]))
            step = envs.step(agent.distribution.to_env(action))
            ended = step.terminated | step.truncated
            valid = np.ones_like(ended) if step.valid is None else step.valid
            rows.append(
                (
                    obs,
                    action,
                    step.reward,
                    step.next_obs,
                    step.terminated,
                    ended,
                    valid,
                )
            )
        names = ("obs", "action", "reward", "next_obs", "terminated", "ended", "valid")
        columns = map(np.stack, zip(*rows, strict=True))
        return dict(zip(names, columns, strict=True))


def prepare_batch(
    rollout: Rollout,
    value: Tensor,
    next_value: Tensor,
    gamma: float,
    gae_lambda: float,
) -> dict[str, Tensor]:
    """Returns the training batch of an actor and a critic.

    The advantages are A = `generalized_advantages(...)`; the critic's targets are
    R = A + V(s).

    Args:
        rollout: Arrays `(T, N, ...)` from `Rollouts.play`.
        value: V(s), values of `rollout["obs"]`, `(T, N)`.
        next_value: V(s'), values of `rollout["next_obs"]`, `(T, N)`.
        gamma: Discount factor.
        gae_lambda: Lambda, in [0, 1].

    Returns:
        A dict of arrays `(B, ...)`: `obs`, `action`, `value`, `advantage` (A),
        `returns` (R), `valid_mask` (1, or 0 where a step only began an episode).

    Example:

    ```python
    rollout = {
        "obs": np.zeros((2, 1, 4), "float32"),
        "action": np.array([[0], [1]]),
        "reward": np.array([[1.0], [2.0]], "float32"),
        "terminated": np.array([[False], [True]]),
        "ended": np.array([[False], [True]]),
        "valid": np.array([[True], [True]]),
    }
    zeros = np.zeros((2, 1), "float32")
    prepare_batch(rollout, zeros, zeros, 0.5, 1.0)["returns"]  # 2, 2
    ```
    """
    checks.check("prepare_batch", locals(), ACCEPTED)
    if missing := set(NAMES) - set(rollout):
        raise ValueError(
            f"prepare_batch: `rollout` must have the arrays {', '.join(NAMES)}, as of "
            f"`Rollouts.play`; {', '.join(sorted(missing))} missing."
        )
    advantage = generalized_advantages(
        rollout["reward"],
        value,
        next_value,
        rollout["terminated"],
        rollout["ended"],
        gamma,
        gae_lambda,
    )
    value, advantage = flatten_steps(value), flatten_steps(advantage)
    return {
        "obs": flatten_steps(rollout["obs"]),
        "action": flatten_steps(rollout["action"]),
        "value": value,
        "advantage": advantage,
        "returns": advantage + value,
        "valid_mask": ops.cast(flatten_steps(rollout["valid"]), value.dtype),
    }


def flatten_steps(x: Tensor) -> Tensor:
    """Reshapes `(T, N, ...)` to `(B, ...)`."""
    checks.check("flatten_steps", locals(), ACCEPTED)
    return ops.reshape(x, (-1, *x.shape[2:]))
