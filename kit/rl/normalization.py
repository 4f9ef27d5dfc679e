"""Normalization with running means and variances."""

from typing import Any

import keras
from keras import ops

from kit import checks
from kit.backend import Tensor
from kit.initialization import at_least_float32

ACCEPTED = {
    "center": checks.BOOL,
    "clip": checks.real("(0, inf]"),
    "epsilon": checks.POSITIVE,
    "dtype": checks.LAYER_DTYPE,
}


@keras.saving.register_keras_serializable(package="kit")
class RunningNormalization(keras.layers.Layer):
    """Scales inputs to mean 0 and variance 1, with the statistics of `update`'s data.

    The statistics are non-trainable weights, so they are saved with the model. Before
    the first update, inputs are only clipped.

    Args:
        center: `False` to divide only, as for rewards, whose sign has a meaning.
            Defaults to `True`.
        clip: Largest absolute value of the outputs. Defaults to 10.
        epsilon: Added to the variance. Defaults to 1e-8.

    Input and output shape: `(B, ...)`.

    Example:

    ```python
    layer = kit.rl.normalization.RunningNormalization()
    layer.build((None, 3))
    layer.update(np.random.default_rng(0).normal(5, 2, (1000, 3)).astype("float32"))
    layer(np.full((1, 3), 5.0))  # about 0
    ```

    Reference: Chan et al., 1979, for the update of mean and variance by a batch.
    """

    def __init__(
        self,
        center: bool = True,
        clip: float = 10.0,
        epsilon: float = 1e-8,
        dtype: Any = None,
        **kwargs: Any,
    ):
        checks.check("RunningNormalization", locals(), ACCEPTED)
        dtype = at_least_float32() if dtype is None else dtype
        super().__init__(dtype=dtype, **kwargs)
        self.center = center
        self.clip = clip
        self.epsilon = epsilon

    def build(self, input_shape):
        """Builds the statistics for inputs of this shape."""
        shape = tuple(input_shape[1:])

        def weight(name, shape, value):
            return self.add_weight(
                shape=shape, initializer=value, trainable=False, name=name
            )

        self.mean = weight("mean", shape, "zeros")
        self.variance = weight("variance", shape, "ones")
        self.count = weight("count", (), "zeros")

    def call(self, inputs):
        """Returns the normalized inputs."""
        x = ops.cast(inputs, self.compute_dtype)
        if self.center:
            x = x - self.mean
        return ops.clip(
            x * ops.rsqrt(self.variance + self.epsilon), -self.clip, self.clip
        )

    def update(self, x: Tensor, weight: Tensor | None = None) -> None:
        """Updates the statistics with a batch.

        Args:
            x: Shape `(B, ...)`.
            weight: Weight of each row, `(B,)`: 1 or 0. Defaults to 1.
        """
        x = ops.cast(x, self.variable_dtype)
        if weight is None:
            weight = ops.ones(x.shape[:1], x.dtype)
        weight = ops.cast(weight, x.dtype)
        added = ops.sum(weight)
        weight = ops.reshape(weight, (-1,) + (1,) * (len(x.shape) - 1))
        safe = ops.maximum(added, 1.0)
        mean = ops.sum(weight * x, axis=0) / safe
        variance = ops.sum(weight * ops.square(x - mean), axis=0) / safe
        # Combine the old moments with the batch's.
        old_count, old_mean = self.count + 0.0, self.mean + 0.0
        count = old_count + added
        share = added / ops.maximum(count, 1.0)
        change = mean - old_mean
        self.mean.assign(old_mean + change * share)
        self.variance.assign(
            (1.0 - share) * self.variance
            + share * variance
            + share * (1.0 - share) * ops.square(change)
        )
        self.count.assign(count)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the inputs."""
        return tuple(input_shape)

    def get_config(self):
        """Returns the arguments of the constructor."""
        config = {"center": self.center, "clip": self.clip, "epsilon": self.epsilon}
        return {**super().get_config(), **config}
