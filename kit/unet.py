"""U-Net: from an image to an image of the same size, with a view of the whole.

A pixel's value or class depends on details beside it and on what is far away. The
network has two paths, whose picture is the letter U:

- the contracting path: on each level, convolutions with ReLU, then max pooling, which
  halves the image. The next level has more feature channels, and sees more;
- the expansive path: an up-convolution doubles the image. The features of the same
  level of the contracting path are concatenated, as they know the details that pooling
  lost, and convolutions combine both.

    filters[0]  x -> convolutions --------- copy ---------> + -> convolutions -> 1 x 1
                         | max pooling                      ^ up-convolution
    filters[1]           convolutions ----- copy -----> + -> convolutions
                              | max pooling             ^ up-convolution
    filters[2]                convolutions -------------'

A last 1 x 1 convolution maps the features of each pixel to its outputs: logits or
probabilities of classes (segmentation), or values (regression).

With `residual`, the network's output is added to its input: it learns what is wrong
with an image, such as streaks or noise, instead of the image (Jin et al., 2017).

Shapes: B batch, H and W height and width, C channels.

Reference: Ronneberger, Fischer, Brox, 2015, https://arxiv.org/abs/1505.04597; for
tomography Jin et al., 2017, https://arxiv.org/abs/1611.03679.
"""

from collections.abc import Sequence

import keras

from kit import checks
from kit.models import Model

ACCEPTED = {
    "input_shape": checks.IMAGE,
    "num_outputs": checks.SIZE,
    "filters": checks.sequence(checks.SIZE, least=1),
    "num_convolutions": checks.SIZE,
    "activation": checks.ACTIVATION,
    "residual": checks.BOOL,
    "dropout": checks.SHARE,
    "batch_normalization": checks.BOOL,
}


def unet(
    input_shape: Sequence[int] = (64, 64, 1),
    num_outputs: int = 1,
    filters: Sequence[int] = (16, 32, 64, 128),
    num_convolutions: int = 2,
    activation: str | None = None,
    residual: bool = False,
    dropout: float = 0.0,
    batch_normalization: bool = False,
) -> Model:
    """Builds a U-Net.

    Args:
        input_shape: (height, width, channels); height and width must be multiples of 2
            to the power of `len(filters) - 1`. Defaults to `(64, 64, 1)`.
        num_outputs: Channels of the output: 1 for two classes with a sigmoid, the
            number of classes with a softmax, the number of values in a regression.
            Defaults to 1.
        filters: Feature channels on each level, from the finest to the coarsest. Each
            level sees twice as far: with two convolutions, the coarsest of four sees 68
            pixels. The paper has `(64, 128, 256, 512, 1024)`. Defaults to
            `(16, 32, 64, 128)`.
        num_convolutions: 3 x 3 convolutions on each level of each path. Defaults to 2.
        activation: Activation of the output: `"sigmoid"`, `"softmax"`, or `None`.
            Defaults to `None`.
        residual: Whether to add the input to the output. The last convolution then
            begins with zeros, so that the untrained network returns its input. Needs as
            many outputs as input channels, and no activation. Defaults to `False`.
        dropout: Share of the coarsest level's outputs to drop in training, as the paper
            does at the end of the contracting path. In [0, 1). Defaults to 0.
        batch_normalization: Whether to normalize each convolution's outputs before the
            ReLU. Defaults to `False`, as in the paper.

    Returns:
        A `kit.Model` from `(B, H, W, C)` to `(B, H, W, num_outputs)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the image can't be halved so often, or `residual` doesn't fit
            the outputs.

    Example:

    ```python
    model = kit.unet((32, 32, 1), activation="sigmoid", filters=(8, 16, 32))
    model.compile("adam", "binary_crossentropy")
    images = np.random.rand(8, 32, 32, 1)
    model.fit(images, images > 0.5)  # one probability for each pixel
    ```
    """
    checks.check("unet", locals(), ACCEPTED)
    _check_shapes(input_shape, num_outputs, filters, activation, residual)

    def convolutions(x, number):
        for _ in range(num_convolutions):
            # No bias before a normalization, which would subtract it.
            x = keras.layers.Conv2D(
                number,
                3,
                padding="same",
                use_bias=not batch_normalization,
                kernel_initializer="he_normal",
            )(x)
            if batch_normalization:
                # Keras' momentum of 0.99 lags behind in short trainings.
                x = keras.layers.BatchNormalization(momentum=0.9)(x)
            x = keras.layers.ReLU()(x)
        return x

    inputs = x = keras.Input(tuple(input_shape))
    # 1. Contracting path. Each level's features are kept.
    copies = []
    for number in filters[:-1]:
        x = convolutions(x, number)
        copies.append(x)
        x = keras.layers.MaxPooling2D(2)(x)
    x = convolutions(x, filters[-1])
    if dropout:
        x = keras.layers.Dropout(dropout)(x)
    # 2. Expansive path.
    for number, copy in zip(reversed(filters[:-1]), reversed(copies), strict=True):
        x = keras.layers.Conv2DTranspose(
            number, 2, strides=2, kernel_initializer="he_normal"
        )(x)
        x = keras.layers.Concatenate()([copy, x])
        x = convolutions(x, number)
    # 3. The outputs of each pixel.
    x = keras.layers.Conv2D(
        num_outputs,
        1,
        activation=activation,
        kernel_initializer="zeros" if residual else "glorot_uniform",
        dtype="float32",
    )(x)
    outputs = keras.layers.Add(dtype="float32")([inputs, x]) if residual else x
    return Model(inputs, outputs, name="unet")


def _check_shapes(input_shape, num_outputs, filters, activation, residual):
    """Raises an error if arguments of `unet` don't fit together."""
    height, width, channels = input_shape
    multiple = 2 ** (len(filters) - 1)
    if height % multiple or width % multiple:
        raise ValueError(
            f"unet: between {len(filters)} levels of `filters` the image is halved "
            f"{len(filters) - 1} times, so height and width must be multiples of "
            f"{multiple}; received `input_shape` {tuple(input_shape)}."
        )
    if residual and (num_outputs != channels or activation is not None):
        raise ValueError(
            "unet: `residual` adds the input to the output, so `num_outputs` must be "
            f"the input's {channels} channels and `activation` None; received "
            f"{num_outputs} outputs and the activation {activation!r}."
        )
