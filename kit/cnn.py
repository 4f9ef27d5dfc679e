"""Convolutional network: the same small filters at every place of an image.

A convolution looks for its patterns everywhere with the same weights, pooling keeps
the strongest answer of each neighbourhood; layer by layer the patterns grow larger
and their places coarser, until Dense layers name what is there.

Reference: LeCun et al., 1998, https://doi.org/10.1109/5.726791.
"""

from collections.abc import Sequence

import keras

from kit.models import Sequential


def cnn(
    input_shape: Sequence[int] = (28, 28, 1),
    num_classes: int = 10,
    filters: Sequence[int] = (32, 64, 64),
    kernel_size: int = 3,
    pool_size: int = 2,
    units: Sequence[int] = (64,),
    dropout: float = 0.0,
) -> Sequential:
    """Builds an image classifier: convolutions with pooling between, then Dense.

    Args:
        input_shape: (height, width, channels). Defaults to `(28, 28, 1)`.
        num_classes: Number of classes. Defaults to 10.
        filters: Number of filters of each convolution. Defaults to `(32, 64, 64)`.
        kernel_size: Height and width of the filters. Defaults to 3.
        pool_size: Height and width of the neighbourhoods of which the maximum is
            kept, between two convolutions. Defaults to 2.
        units: Sizes of the hidden Dense layers. Defaults to `(64,)`.
        dropout: Share of the inputs of each Dense layer to drop in training, in
            [0, 1). Defaults to 0.

    Returns:
        A `kit.Sequential` from `(B, height, width, channels)` to probabilities
        `(B, num_classes)`.

    Raises:
        ValueError: If `input_shape` isn't (height, width, channels), or an image
            is too small for so many convolutions.

    Example:

    ```python
    model = kit.cnn((28, 28, 1), 10)
    model(np.zeros((2, 28, 28, 1))).shape  # (2, 10)
    ```
    """
    if len(input_shape) != 3:
        raise ValueError(
            "cnn: `input_shape` must be (height, width, channels), received "
            f"{tuple(input_shape)}."
        )
    model = Sequential([keras.Input(tuple(input_shape))], name="cnn")
    for i, number in enumerate(filters):
        if i > 0:
            model.add(keras.layers.MaxPooling2D(pool_size))
        model.add(keras.layers.Conv2D(number, kernel_size, activation="relu"))
    model.add(keras.layers.Flatten())
    for size in units:
        if dropout:
            model.add(keras.layers.Dropout(dropout))
        model.add(keras.layers.Dense(size, activation="relu"))
    if dropout:
        model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Dense(num_classes, activation="softmax"))
    return model
