"""Random draws in PyTorch's traces: those of `keras.random`, and Threefry."""

from typing import Any

import torch
from keras import ops

from kit import random
from kit.engines.replacements import Replacement, function

# As an operator of PyTorch. x0 is 0 if there is none.
THREEFRY = "threefry(Tensor key, Tensor? x0, Tensor x1) -> (Tensor, Tensor)"
# How far each rotation shifts to the left and to the right, and a mask. As tensors,
# which PyTorch would make of the numbers at each call: on the CPU also for GPUs.
SHIFTS = [
    [
        torch.tensor(x, dtype=torch.int32, device="cpu")
        for x in (n, 32 - n, (1 << n) - 1)
    ]
    for n in random.ROTATIONS
]


def threefry(key: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """Computes what `kit.random` does for a key and counter words, in place.

    A trace records it as one operator. Its 140 calls would be half of what is recorded
    of a small agent's program, and half of the time that this takes.
    """
    key0, key1 = key[0], key[1]
    schedule = (key0, key1, key0 ^ key1 ^ random.PARITY)
    x1 = x1 + key1
    x0 = key0 + x1 if x0 is None else x0 + key0 + x1
    high = torch.empty_like(x1)
    for i in range(20):
        if i:
            x0 += x1
        left, right, mask = SHIFTS[i % 8]
        torch.bitwise_left_shift(x1, left, out=high)
        x1 >>= right
        x1 &= mask  # of the sign, which was shifted in
        x1 |= high
        x1 ^= x0
        if i % 4 == 3:
            n = i // 4 + 1
            x0 += schedule[n % 3]
            x1 += schedule[(n + 1) % 3] + n
    return x0, x1


def fake_threefry(key: Any, x0: Any, x1: Any) -> tuple[Any, Any]:
    """Returns tensors like those that `threefry` will return."""
    like = key[0] + x1 if x0 is None else key[0] + x0 + x1
    return torch.empty_like(like), torch.empty_like(like)


def traceable_draws(threefry: Any) -> list[Replacement]:
    """Makes `keras.random` draw from the seed variable's value while PyTorch traces.

    Keras seeds a `torch.Generator` with the number that the seed holds at that
    moment, which a trace would make a constant: the same dropout mask on every
    call. The functions stand in a private module of Keras.

    Args:
        threefry: The operator that computes `threefry`.
    """
    from keras.src.backend.torch import random as keras_random

    def key(seed):
        return ops.cast(keras_random.draw_seed(seed), "int32")

    def uniform(shape, minval=0.0, maxval=1.0, dtype=None, seed=None):
        return random.uniform(key(seed), tuple(shape), minval, maxval, dtype)

    def normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        return random.normal(key(seed), tuple(shape), mean, stddev, dtype)

    def truncated_normal(shape, mean=0.0, stddev=1.0, dtype=None, seed=None):
        return random.truncated_normal(key(seed), tuple(shape), mean, stddev, dtype)

    def randint(shape, minval, maxval, dtype="int32", seed=None):
        return ops.cast(random.randint(key(seed), tuple(shape), minval, maxval), dtype)

    def categorical(logits, num_samples, dtype="int32", seed=None):
        logits = ops.repeat(ops.expand_dims(logits, -2), num_samples, axis=-2)
        return ops.cast(random.categorical(key(seed), logits), dtype)

    def shuffle(x, axis=0, seed=None):
        return ops.take(x, random.permutation(key(seed), x.shape[axis]), axis=axis)

    def dropout(inputs, rate, noise_shape=None, seed=None):
        if rate in (0.0, 1.0):
            return inputs * (1.0 - rate)
        shape = [
            size if noise is None else noise
            for size, noise in zip(
                inputs.shape, noise_shape or [None] * inputs.ndim, strict=True
            )
        ]
        keep = random.uniform(key(seed), tuple(shape)) >= rate
        return ops.where(keep, inputs / (1.0 - rate), ops.zeros_like(inputs))

    draws = (
        uniform, normal, truncated_normal, randint, categorical, shuffle, dropout
    )  # fmt: skip
    reason = "Keras seeds a generator with a number, which a trace makes a constant"

    def as_one(original, key, x0, x1):
        x0 = None if isinstance(x0, int) and x0 == 0 else x0
        return threefry(key, x0, x1)

    return [
        function(
            random, "_threefry", as_one, "one operator to record in the place of 140"
        ),
        *(
            function(
                keras_random,
                draw.__name__,
                lambda original, *args, draw=draw, **kwargs: draw(*args, **kwargs),
                reason,
            )
            for draw in draws
        ),
    ]
