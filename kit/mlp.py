"""Multilayer perceptron: a stack of Dense layers.

Each layer computes h = activation(W x + b). One hidden layer, if wide enough,
approximates any continuous function arbitrarily well; several layers need fewer units.

Reference: Rumelhart, Hinton and Williams, 1986, https://doi.org/10.1038/323533a0.
"""

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
}


def mlp(
    input_shape: Sequence[int],
    num_outputs: int,
    units: Sequence[int] = (64,),
    activation: Any = "relu",
    output_activation: Any = None,
    dropout: float = 0.0,
) -> Sequential:
    """Builds a multilayer perceptron.

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

    Returns:
        A `kit.Sequential` from `(B, *input_shape)` to `(B, num_outputs)`.

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
    model = Sequential([keras.Input(tuple(input_shape))], name="mlp")
    if len(input_shape) != 1:
        model.add(keras.layers.Flatten())
    for size in units:
        model.add(keras.layers.Dense(size, activation=activation))
        if dropout:
            model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Dense(num_outputs, activation=output_activation))
    return model
