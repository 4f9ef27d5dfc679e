"""Random draws of `keras.random` in PyTorch's traces."""

from keras import ops

from kit.engines.replacements import Replacement, function


def traceable_draws() -> list[Replacement]:
    """Makes `keras.random` draw from the seed variable's value while PyTorch traces.

    Keras seeds a `torch.Generator` with the number that the seed holds at that
    moment, which a trace would make a constant: the same dropout mask on every
    call. The functions stand in a private module of Keras.
    """
    from keras.src.backend.torch import random as keras_random

    from kit import random

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
    return [
        function(
            keras_random,
            draw.__name__,
            lambda original, *args, draw=draw, **kwargs: draw(*args, **kwargs),
            reason,
        )
        for draw in draws
    ]
