"""Returns and advantages, computed from rewards and a critic's values.

Shapes: T time steps, N environments.
"""

from keras import ops

from kit import checks
from kit.backend import Tensor, scan

ACCEPTED = {
    "reward": checks.array("T N"),
    "value": checks.array("T N"),
    "next_value": checks.array("T N"),
    "terminated": checks.array("T N"),
    "ended": checks.array("T N"),
    "before": checks.array("N"),
    "gamma": checks.array("", interval="[0, 1]"),
    "gae_lambda": checks.array("", interval="[0, 1]"),
}
WEIGHTED = {
    "value": checks.array("B"),
    "returns": checks.array("B"),
    "x": checks.array("B"),
    "weight": checks.array("B"),
}


def generalized_advantages(
    reward: Tensor,
    value: Tensor,
    next_value: Tensor,
    terminated: Tensor,
    ended: Tensor,
    gamma: float,
    gae_lambda: float,
) -> Tensor:
    """Returns the advantages: by how much the return exceeds the critic's value.

        delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t)
        A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}

    With lambda = 1, A_t + V(s_t) is the n-step return: the discounted rewards of the
    remaining steps of T, plus the critic's value of the last state. With lambda = 0,
    A_t is the TD error. Only `terminated` makes V(s') 0. A truncated episode would have
    continued: bootstrap from s', its final state, which isn't the first one of the next
    episode.

    Args:
        reward: r, shape `(T, N)`.
        value: V(s), values of the states acted in, `(T, N)`.
        next_value: V(s'), values of the states that the actions led to, `(T, N)`.
        terminated: Booleans `(T, N)`: s' is a final state.
        ended: Booleans `(T, N)`: the episode ended, terminated or truncated.
        gamma: Discount factor.
        gae_lambda: Lambda, in [0, 1].

    Returns:
        A, shape `(T, N)`.

    Example:

    ```python
    ones, no = np.ones((3, 1), "float32"), np.zeros((3, 1), "bool")
    generalized_advantages(ones, 0 * ones, 0 * ones, no, no, 0.5, 1.0)  # 1.75, 1.5, 1
    ```

    Reference: Schulman et al., 2015, https://arxiv.org/abs/1506.02438, equation 16.
    """
    checks.check("generalized_advantages", locals(), ACCEPTED)
    # All are tensors of the critic's dtype, which is float64 where the network's is.
    # NumPy arrays are accepted, too, which can't be multiplied with PyTorch tensors.
    value = ops.convert_to_tensor(value)
    reward, next_value, gamma, gae_lambda = (
        ops.cast(x, value.dtype) for x in (reward, next_value, gamma, gae_lambda)
    )
    not_terminated = 1.0 - ops.cast(terminated, value.dtype)
    same_episode = 1.0 - ops.cast(ended, value.dtype)
    delta = reward + gamma * not_terminated * next_value - value  # (T, N)
    decay = gamma * gae_lambda * same_episode

    def step(advantage, slices):
        delta, decay = slices
        advantage = delta + decay * advantage
        return advantage, advantage

    _, advantages = scan(step, ops.zeros_like(delta[0]), (delta, decay), reverse=True)
    return advantages


def discounted_returns(
    reward: Tensor, ended: Tensor, before: Tensor, gamma: float
) -> tuple[Tensor, Tensor]:
    """Returns the sum of each episode's past rewards, discounted by their age.

        R_t = r_t + gamma (1 - ended_{t-1}) R_{t-1}

    Its standard deviation is used to normalize rewards.

    Args:
        reward: r, shape `(T, N)`.
        ended: Booleans `(T, N)`: the episode ended with this step.
        before: R before the first step, `(N,)`: 0 in a new episode.
        gamma: Discount factor.

    Returns:
        R, shape `(T, N)`, and `before` for the next call.
    """
    checks.check("discounted_returns", locals(), ACCEPTED)

    def step(total, slices):
        reward, ended = slices
        total = reward + gamma * total
        return ops.where(ended, ops.zeros_like(total), total), total

    before, totals = scan(step, before, (reward, ended))
    return totals, before


def explained_variance(value: Tensor, returns: Tensor, weight: Tensor) -> Tensor:
    """Returns the share of the returns' variance that the critic explains.

    1 - Var(returns - value) / Var(returns): 1 for a perfect critic, 0 for a constant
    one, negative for a worse one.

    Args:
        value: V(s), shape `(B,)`.
        returns: R, the critic's targets, `(B,)`.
        weight: Weight of each, `(B,)`.
    """
    checks.check("explained_variance", locals(), WEIGHTED)
    error = weighted_variance(ops.subtract(returns, value), weight)
    return 1.0 - error / (weighted_variance(returns, weight) + 1e-8)


def normalized(x: Tensor, weight: Tensor) -> Tensor:
    """Returns x scaled to weighted mean 0 and weighted variance 1."""
    checks.check("normalized", locals(), WEIGHTED)
    spread = ops.sqrt(weighted_variance(x, weight))
    return ops.subtract(x, weighted_mean(x, weight)) / (spread + 1e-8)


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Returns sum(weight x) / sum(weight), a scalar; 0 if all weights are 0."""
    checks.check("weighted_mean", locals(), WEIGHTED)
    return ops.sum(ops.multiply(weight, x)) / ops.maximum(ops.sum(weight), 1.0)


def weighted_variance(x: Tensor, weight: Tensor) -> Tensor:
    """Returns the weighted mean square around the weighted mean, a scalar."""
    checks.check("weighted_variance", locals(), WEIGHTED)
    return weighted_mean(ops.square(ops.subtract(x, weighted_mean(x, weight))), weight)
