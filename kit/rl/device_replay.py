"""A replay buffer whose arrays are arguments and results of a compiled program.

`kit.rl.replay.ReplayBuffer` is for environments that Python steps. This one is for
those of `kit.rl.functional`: it lies on the program's device, and its size is part of
the program. It stores both observations of a transition, which takes twice the memory.

Shapes: T time steps, N environments, B sampled transitions.
"""

import math
from typing import Any

import keras
from keras import ops

from kit import random
from kit.backend import Tensor
from kit.rl.functional import FunctionalEnv

NAMES = ("obs", "action", "reward", "next_obs", "terminated", "ended")


def empty_buffer(
    env: FunctionalEnv, capacity: int, num_steps: int, prioritized: bool = False
) -> dict[str, Any]:
    """Creates an empty buffer.

    Args:
        env: The environments, with `Discrete` actions.
        capacity: Number of transitions to keep, all environments together; rounded up
            to a multiple of the transitions of a turn.
        num_steps: T, steps of each environment that are added at a time.
        prioritized: Whether it is for `sample_by_priority`. Defaults to `False`.

    Returns:
        A dict: the transitions' arrays `(slots, N, ...)` by name; `added`, the number
        of steps of each environment added so far, int32; with priorities, `priority`,
        an array `(slots, N)`, and `largest`, the largest priority so far.
    """
    turns = max(1, math.ceil(capacity / (num_steps * env.num_envs)))
    shape = (turns * num_steps, env.num_envs)
    space = env.observation_space
    obs_shape = (*shape, *space.shape)
    obs_dtype = keras.backend.standardize_dtype(space.dtype.name)
    obs_dtype = "int32" if obs_dtype == "int64" else obs_dtype  # as when compiled
    priorities = {
        "priority": ops.zeros(shape, "float32"),
        "largest": ops.ones((), "float32"),
    }
    return {
        "obs": ops.zeros(obs_shape, obs_dtype),
        "action": ops.zeros(shape, "int32"),
        "reward": ops.zeros(shape, "float32"),
        "next_obs": ops.zeros(obs_shape, obs_dtype),
        "terminated": ops.zeros(shape, "bool"),
        "ended": ops.zeros(shape, "bool"),
        "added": ops.zeros((), "int32"),
        **(priorities if prioritized else {}),
    }


def add_steps(buffer: dict[str, Any], rollout: dict[str, Tensor]) -> dict[str, Any]:
    """Returns the buffer with T new steps, which overwrite the oldest.

    Args:
        buffer: From `empty_buffer`, created for T steps, or from this function.
        rollout: Arrays `(T, N, ...)`, from `kit.rl.functional.play`.
    """
    slots = buffer["reward"].shape[0]
    slot = buffer["added"] % slots
    changed = {**buffer, "added": buffer["added"] + rollout["reward"].shape[0]}
    new = {name: rollout[name] for name in NAMES}
    if "priority" in buffer:  # the largest so far, until the error is known
        shape = rollout["reward"].shape
        new["priority"] = ops.broadcast_to(buffer["largest"], shape)
    for name, values in new.items():
        old = buffer[name]
        start = [slot, *[0] * (len(old.shape) - 1)]
        changed[name] = ops.slice_update(old, start, ops.cast(values, old.dtype))
    return changed


def sample(
    buffer: dict[str, Any],
    key: Tensor,
    shape: tuple[int, ...],
    n_step: int = 1,
    gamma: Any = 1.0,
) -> dict[str, Tensor]:
    """Draws transitions uniformly, with replacement.

    Args:
        buffer: The buffer, with at least one step.
        key: See `kit.random`.
        shape: Leading shape of the result, such as `(G, B)`.
        n_step: n, steps of a transition, see `ReplayBuffer.gather`. Defaults to 1.
        gamma: Discount factor. Defaults to 1.

    Returns:
        A dict of arrays `(*shape, ...)`, as from `ReplayBuffer.gather`.
    """
    index = random.randint(key, (math.prod(shape),), 0, _filled(buffer))
    return _gather(buffer, index, shape, n_step, gamma)


def sample_by_priority(
    buffer: dict[str, Any],
    key: Tensor,
    shape: tuple[int, ...],
    correction: Any,
    n_step: int = 1,
    gamma: Any = 1.0,
) -> dict[str, Tensor]:
    """Draws transitions by their priorities, see `PrioritizedReplayBuffer`.

    Args:
        buffer: The buffer, with priorities and at least one step.
        key: See `kit.random`.
        shape: Leading shape of the result, such as `(G, B)`.
        correction: beta, the exponent of the weights.
        n_step: n, steps of a transition, see `ReplayBuffer.gather`. Defaults to 1.
        gamma: Discount factor. Defaults to 1.

    Returns:
        The dict of `sample`, with `weight`, and `index` for `set_errors`.
    """
    filled, priority = _filled(buffer), ops.reshape(buffer["priority"], (-1,))
    heights = ops.cumsum(priority)
    # Stratified: one draw from each of B equal parts of the priorities' sum.
    parts = ops.arange(shape[-1], dtype="float32")
    uniform = (parts + random.uniform(key, shape)) / shape[-1]
    drawn = ops.reshape(uniform, (-1,)) * heights[-1]
    index = ops.cast(ops.searchsorted(heights, drawn, side="right"), "int32")
    index = ops.minimum(index, filled - 1)  # rounding may exceed it
    probability = ops.take(priority, index) / heights[-1]
    weight = (ops.cast(filled, "float32") * probability) ** -correction
    weight = ops.reshape(weight, shape)
    batch = _gather(buffer, index, shape, n_step, gamma)
    return {
        **batch,
        "weight": weight / ops.max(weight, axis=-1, keepdims=True),
        "index": ops.reshape(index, shape),
    }


def set_errors(
    buffer: dict[str, Any], index: Tensor, error: Tensor, exponent: Any
) -> dict[str, Any]:
    """Returns the buffer with new priorities of transitions, from their TD errors.

    Args:
        buffer: The buffer.
        index: From `sample_by_priority`.
        error: TD errors, same shape.
        exponent: alpha.
    """
    priority = (ops.abs(ops.cast(error, "float32")) + 1e-6) ** exponent
    flat = ops.reshape(buffer["priority"], (-1,))
    index = ops.reshape(index, (-1, 1))
    flat = ops.scatter_update(flat, index, ops.reshape(priority, (-1,)))
    return {
        **buffer,
        "priority": ops.reshape(flat, buffer["priority"].shape),
        "largest": ops.maximum(buffer["largest"], ops.max(priority)),
    }


def _filled(buffer):
    """Returns the number of transitions in the buffer."""
    slots, num_envs = buffer["reward"].shape
    return ops.minimum(buffer["added"], slots) * num_envs


def _gather(buffer, index, shape, n_step, gamma):
    """Returns the transitions at indices (B,) of the buffer, with a leading shape."""
    index = ops.cast(index, "int32")
    slots, num_envs = buffer["reward"].shape

    def take(name, index):
        rows = buffer[name]
        rows = ops.reshape(rows, (slots * num_envs, *rows.shape[2:]))
        return ops.take(rows, index, axis=0)

    batch = {name: take(name, index) for name in ("obs", "action", "reward")}
    if n_step > 1:
        # Number of later steps of the same environment in the ring buffer.
        left = (buffer["added"] - 1 - index // num_envs) % slots
        goes_on = ops.ones(index.shape, "bool")
        steps = ops.ones(index.shape, "float32")
        for k in range(1, n_step):
            goes_on = goes_on & ~take("ended", index) & (left >= k)
            following = (index + num_envs) % (slots * num_envs)
            index = ops.where(goes_on, following, index)
            gain = gamma**k * take("reward", index)
            batch["reward"] = batch["reward"] + ops.where(goes_on, gain, 0.0)
            steps = steps + ops.cast(goes_on, "float32")
        batch["steps"] = steps
    for name in ("next_obs", "terminated"):
        batch[name] = take(name, index)
    return {name: ops.reshape(x, (*shape, *x.shape[1:])) for name, x in batch.items()}
