"""Multilayer perceptron: a stack of Dense layers.

Each layer computes h = activation(W x + b). One hidden layer, if wide enough,
approximates any continuous function arbitrarily well; several layers need fewer units.

With `members`, M networks compute side by side, each with its own inputs and weights:

    h[m] = activation(W[m] x[m] + b[m])

Their weights are arrays with a leading axis M, so `fit` trains all of them at once. As
the sum of their losses has the gradient of each of them, none learns from the others.

Shapes: B batch, M members.

Reference: Rumelhart, Hinton and Williams, 1986, https://doi.org/10.1038/323533a0.
"""

import math
from collections.abc import Sequence
from typing import Any

import keras

from kit import checks
from kit.models import Sequential

ACCEPTED = {
    "input_shape": checks.SIZES,
    "num_outputs": checks.SIZE,
    "units": checks.SIZES,
    "activation": checks.ACTIVATION,
    "output_activation": checks.ACTIVATION,
    "dropout": checks.SHARE,
    "members": checks.SIZE | None,
}


def mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    units: Sequence[int] = (64,),
    activation: Any = "relu",
    output_activation: Any = None,
    dropout: float = 0.0,
    members: int | None = None,
) -> Sequential:
    """Builds a multilayer perceptron, or several that are trained together.

    Args:
        input_shape: Shape of an example: `(30,)` for rows of 30 numbers. Examples with
            more dimensions are flattened.
        num_outputs: Number of outputs: classes, or numbers to predict.
        units: Sizes of the hidden layers. Defaults to `(64,)`.
        activation: Activation of the hidden layers. Defaults to `"relu"`.
        output_activation: `"softmax"` for classes, `"sigmoid"` for yes or no. Defaults
            to `None`, for regression.
        dropout: Share of each hidden layer's outputs to drop in training, in [0, 1).
            Defaults to 0.
        members: Number of independent networks, such as those of an ensemble. Examples
            and outputs then have an axis more. Defaults to `None`, one network.

    Returns:
        A `kit.Sequential` from `(B, *input_shape)` to `(B, num_outputs)`; with
        `members`, from `(B, members, *input_shape)` to `(B, members, num_outputs)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a size isn't 1 or more, or `dropout` is outside [0, 1).

    Example:

    ```python
    model = kit.mlp((30,), 2, output_activation="softmax")
    model(np.zeros((5, 30))).shape  # (5, 2)
    ```
    """
    checks.check("mlp", locals(), ACCEPTED)
    axes = () if members is None else (members,)
    model = Sequential([keras.Input((*axes, *input_shape))], name="mlp")
    if len(input_shape) != 1:
        flat = (*axes, math.prod(input_shape))
        model.add(keras.layers.Reshape(flat) if axes else keras.layers.Flatten())
    for size in units:
        model.add(_dense(size, activation, members))
        if dropout:
            model.add(keras.layers.Dropout(dropout))
    model.add(_dense(num_outputs, output_activation, members))
    return model


def _dense(units, activation, members):
    """Returns a Dense layer, or one with a kernel and a bias for each member."""
    if members is None:
        return keras.layers.Dense(units, activation=activation)
    # Weights as large as in a Dense layer: what counts is one member's inputs, outputs.
    glorot = keras.initializers.GlorotUniform(input_axes=[1], output_axes=[2])
    return keras.layers.EinsumDense(
        "bmi,mio->bmo",
        output_shape=(members, units),
        activation=activation,
        bias_axes="mo",
        kernel_initializer=glorot,
    )
