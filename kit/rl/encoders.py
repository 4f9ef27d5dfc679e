"""Networks from observations to features, for every Gymnasium observation space.

Each part of an observation is encoded by its kind:

    image                   divided by its bounds, then convolutions:
        nature              Mnih et al., 2015: 32 8x8/4, 64 4x4/2, 64 3x3/1, Dense 512
        impala              Espeholt et al., 2018: 16, 32, 32 filters with two residual
                            blocks each, Dense 256
        minatar             Young and Tian, 2019: 16 3x3, Dense 128
    number of a category    one-hot, or embedded if there are more than 1,000 categories
    other numbers           flattened; integers, and parts of a Dict or Tuple, are
                            divided by their bounds

All parts are concatenated. An image is an array, not of categories, with

    three axes              (height, width, channels) or (channels, height, width)
    four axes               a stack of such images, whose channels are concatenated
    two axes                (height, width), if all bounds are finite and equal

whose height and width are at least 8, and either equal or not below the number of
channels. If both orders fit, channels are last. By default, images of 36 by 36 and more
get `nature`, smaller ones `minatar`. A vector that is a whole observation isn't
divided: use the agents' `normalize_observations`.

Shapes: B batch, H height, W width, C channels, S images in a stack.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import keras
import numpy as np

from kit import checks
from kit.initialization import Orthogonal
from kit.rl.spaces import (
    SPACE,
    Categories,
    Packing,
    Scaling,
    Unpacking,
    bounds_of,
    describe,
    is_category,
)

# Sizes of the Dense layers after the convolutions.
UNITS = {"nature": (512,), "impala": (256,), "minatar": (128,)}
# Smallest height and width that the convolutions can process.
LEAST_SIDES = {"nature": 36, "impala": 1, "minatar": 3}
LEAST_SIDE = 8  # smaller arrays aren't treated as images
MOST_ONE_HOT = 1_000
EMBEDDING_DIM = 32

NETWORK = checks.one_of(*UNITS, "mlp") | checks.MODEL | None
OBSERVATIONS = checks.SIZES | SPACE
ACCEPTED = {
    "space": SPACE,
    "obs_shape": OBSERVATIONS,
    "network": NETWORK,
    "units": checks.SIZES | None,
    "activation": checks.ACTIVATION,
    "gain": checks.POSITIVE | None,
    "name": checks.TEXT,
    "default": checks.SIZES,
}


def encoder(
    space: Any,
    network: Any = None,
    activation: str | None = "relu",
    gain: float | None = None,
    name: str = "encoder",
) -> keras.Model:
    """Builds a model from observations of any space to features.

    Like agents' networks, it takes observations packed by `kit.rl.spaces.Packing`. Add
    layers after it to build a network for an agent.

    Args:
        space: Gymnasium space of one observation: Box, Discrete, MultiDiscrete,
            MultiBinary, or a Dict or Tuple of them.
        network: Network for images: `"nature"`, `"impala"`, `"minatar"`, `"mlp"` (no
            convolutions), or a Keras model from `(B, H, W, C)`. Defaults to `None`:
            chosen by image size.
        activation: Activation of the layers. Defaults to `"relu"`.
        gain: Gain of orthogonal kernels. Defaults to `None`: Glorot uniform kernels.
        name: Name of the model. Defaults to `"encoder"`.

    Returns:
        A functional `keras.Model` from `(B, *packed_shape)` to `(B, features)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the space isn't supported, or `network` doesn't fit it.

    Example:

    ```python
    space = gymnasium.spaces.Dict(
        camera=gymnasium.spaces.Box(0, 255, (84, 84, 3), "uint8"),
        gear=gymnasium.spaces.Discrete(6),
    )
    encoder = kit.encoder(space)
    outputs = keras.layers.Dense(4)(encoder.output)
    agent = kit.DQN(keras.Model(encoder.input, outputs))
    ```
    """
    checks.check("encoder", locals(), ACCEPTED)
    options = _Options("encoder", network, activation, gain)
    packing = Packing(space)
    inputs = network_input(space)
    if packing.is_array:
        found = _layers_for_part(packing.space, options, alone=True)
        _check_use(options, space, [found])
        features = [_apply(_with_dense(found, options), inputs)]
    else:
        parts = Unpacking(describe(space), name="parts")(inputs)
        every = [
            _layers_for_part(part.space, options, alone=False) for part in packing.parts
        ]
        _check_use(options, space, every)
        features = [
            _apply(_with_dense(found, options), x)
            for found, x in zip(every, parts, strict=True)
        ]
    x = features[0]
    if len(features) > 1:
        x = keras.layers.Concatenate()(features)
    return keras.Model(inputs, x, name=name)


def is_shape(obs_shape: Any) -> bool:
    """Whether it is the shape of an observation, not a space."""
    # Gymnasium's Tuple is a sequence, too.
    sequence = isinstance(obs_shape, Sequence | np.ndarray)
    return sequence and not hasattr(obs_shape, "contains")


def network_input(obs_shape: Any) -> Any:
    """Returns the `keras.Input` of a network for a space, or for a shape."""
    checks.check("network_input", locals(), ACCEPTED)
    if is_shape(obs_shape):
        return keras.Input(tuple(obs_shape))
    packing = Packing(obs_shape)
    # Otherwise Keras casts inputs to float32.
    whole = packing.is_array and is_category(obs_shape)
    whole = whole or packing.dtype == np.int32 and not packing.is_array
    return keras.Input(packing.shape, dtype="int32" if whole else None)


def has_images(obs_shape: Any, network: Any = None) -> bool:
    """Whether a network for a space, or for a shape, begins with convolutions."""
    checks.check("has_images", locals(), ACCEPTED)
    options = _Options("has_images", network, None, None)
    if is_shape(obs_shape):
        space, least = _space_of_shape(obs_shape)
        return _image_network(space, options, least) is not None
    parts = Packing(obs_shape).parts
    return any(_image_network(part.space, options) is not None for part in parts)


def default_units(
    obs_shape: Any, network: Any, default: Sequence[int]
) -> tuple[int, ...]:
    """Returns the default sizes of a network's hidden layers.

    Args:
        obs_shape: A space, or a shape.
        network: As in `encoder`.
        default: Sizes if observations are no image.
    """
    checks.check("default_units", locals(), ACCEPTED)
    options = _Options("default_units", network, None, None)
    if isinstance(network, keras.Model):
        return ()
    if is_shape(obs_shape):
        space, least = _space_of_shape(obs_shape)
        found = _image_network(space, options, least)
        # Small images get `default`, as in earlier versions.
        by_name = network is not None or found == "nature"
        return UNITS.get(found, tuple(default)) if by_name else tuple(default)
    packing = Packing(obs_shape)
    if not packing.is_array:  # the encoder has Dense layers for its images
        return tuple(default)
    found = _image_network(obs_shape, options)
    return UNITS.get(found, tuple(default))


def hidden_layers(
    name: str,
    obs_shape: Any,
    units: Sequence[int] | None,
    activation: str | None = "relu",
    gain: float | None = None,
    network: Any = None,
) -> list[keras.layers.Layer]:
    """Returns the hidden layers of an agent's network, after `network_input`.

    Args:
        name: Name of the caller, for the error.
        obs_shape: Gymnasium space of one observation, or the shape of one.
        units: Sizes of the Dense layers. `None`: the default of `network`.
        activation: Activation of all layers. Defaults to `"relu"`.
        gain: Gain of orthogonal kernels. Defaults to `None`: Glorot uniform kernels.
        network: As in `encoder`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `obs_shape` is an empty shape or an unsupported space, or
            `network` doesn't fit it.
    """
    checks.check("hidden_layers", locals(), ACCEPTED)
    options = _Options(name, network, activation, gain)
    if units is None:
        units = default_units(obs_shape, network, (64, 64))
    dense = [keras.layers.Dense(size, **options.for_layer()) for size in units]
    if is_shape(obs_shape):
        if not len(obs_shape):
            raise ValueError(
                f"{name}: `obs_shape` is (), so observations are single numbers, or "
                "categories; give their space, `env.observation_space`, in its place."
            )
        space, least = _space_of_shape(obs_shape)
        found = _layers_for_part(space, options, alone=True, least=least)
    elif Packing(obs_shape).is_array:
        found = _layers_for_part(obs_shape, options, alone=True)
    else:
        return [encoder(obs_shape, network, activation, gain), *dense]
    _check_use(options, obs_shape, [found])
    return [*found.layers, *dense]


# --- Parts ----------------------------------------------------------------------


class _Options(NamedTuple):
    """The arguments that all layers share."""

    name: str
    network: Any
    activation: Any
    gain: float | None

    def for_layer(self) -> dict[str, Any]:
        return {"activation": self.activation, **self.kernel()}

    def kernel(self) -> dict[str, Any]:
        gain = self.gain
        kernel = "glorot_uniform" if gain is None else Orthogonal(gain)
        return {"kernel_initializer": kernel}


class _Layers(NamedTuple):
    """Layers from a part of an observation to `(B, features)`.

    `network` is the network for an image: a name, or a model; otherwise `None`.
    """

    layers: list[keras.layers.Layer]
    network: Any


def _layers_for_part(space, options, alone, least=None):
    """Returns the layers for a space of arrays; `alone`: it is the whole space."""
    if is_category(space):
        nvec = np.ravel(getattr(space, "nvec", getattr(space, "n", 0))).tolist()
        start = np.ravel(space.start).tolist()
        embedding_dim = EMBEDDING_DIM if max(nvec) > MOST_ONE_HOT else None
        return _Layers([Categories(nvec, start, embedding_dim)], None)
    layout = image_layout(space, _least_side(options, least))
    network = _image_network(space, options, least)
    divisor = bounds_of(space)
    if layout is not None:  # one divisor for all pixels, to preserve their differences
        divisor = np.array(divisor.max() if (divisor > 0).all() else 0.0)
    integers = np.dtype(space.dtype).kind in "iub"
    divides = (divisor > 1).any() or ((divisor > 0) & (divisor < 1)).any()
    layers: list[keras.layers.Layer] = []
    if (
        (divides and (integers or not alone))
        or (layout is not None and divisor.any())  # marks it as scaled, also in [0, 1]
        or (integers and not alone)  # converts them to floats
    ):
        layers.append(Scaling(divisor))
    if network is None:
        if len(space.shape) != 1:
            layers.append(keras.layers.Flatten())
        return _Layers(layers, None)
    shape = tuple(space.shape)
    if isinstance(network, keras.Model) and _takes(network, shape):
        layout = None
    if layout is not None:
        layers += _channels_last(shape, layout)
        shape = _image_shape(shape, layout)
    if isinstance(network, keras.Model):
        return _Layers([*layers, *_own_model(network, shape, options)], network)
    sides = min(shape[:2])
    if sides < LEAST_SIDES[network]:
        raise ValueError(
            f"{options.name}: `network` {network!r} is for images of at least "
            f"{LEAST_SIDES[network]} pixels in height and width, received "
            f"observations of shape {tuple(space.shape)}."
        )
    return _Layers([*layers, *CONVOLUTIONS[network](shape, options)], network)


def _image_network(space, options, least=None):
    """Returns the network for an image, a name or model; `None` for non-images."""
    network = options.network
    if is_category(space) or (isinstance(network, str) and network == "mlp"):
        return None
    layout = image_layout(space, _least_side(options, least))
    if isinstance(network, keras.Model):
        fits = layout is not None or _takes(network, tuple(space.shape))
        return network if fits else None
    if layout is None:
        return None
    sides = min(_image_shape(space.shape, layout)[:2])
    return network or ("nature" if sides >= LEAST_SIDES["nature"] else "minatar")


def _least_side(options, least):
    """Returns an image's smallest side: any if the user names a network for images."""
    if least is not None:
        return least
    return LEAST_SIDE if options.network is None else 1


def _space_of_shape(shape):
    """Returns a space for a shape, and an image's smallest side.

    Three axes are an image with values in [0, 255]; other shapes have no bounds.
    """
    from gymnasium.spaces import Box

    shape = tuple(int(n) for n in shape)
    if len(shape) == 3:
        return Box(0, 255, shape, np.uint8), LEAST_SIDES["minatar"]
    return Box(-np.inf, np.inf, shape, np.float32), np.inf


def image_layout(space: Any, least: float = LEAST_SIDE) -> str | None:
    """Returns the axes of an image, `None` if the space is no image's.

    Args:
        space: A Box or MultiBinary.
        least: Smallest height and width of an image.

    Returns:
        `"HW"`, `"HWC"`, `"CHW"`, `"SHWC"` or `"SCHW"`.
    """
    checks.check(
        "image_layout", locals(), {"space": SPACE, "least": checks.real("[1, inf]")}
    )
    shape = tuple(space.shape)
    if len(shape) == 2:
        divisor = bounds_of(space)
        alike = divisor.min() == divisor.max() > 0
        return "HW" if alike and min(shape) >= least else None
    if len(shape) == 4:
        layout = _order(shape[1:], least)
        return layout and f"S{layout}"
    return _order(shape, least) if len(shape) == 3 else None


def _order(shape, least):
    """Returns whether channels are the last or the first of three axes."""
    for layout, channels in (("HWC", -1), ("CHW", 0)):
        sides = shape[:2] if channels else shape[1:]
        wide = sides[0] == sides[1] or shape[channels] <= min(sides)
        if min(sides) >= least and wide:
            return layout
    return None


def _channels_last(shape, layout):
    """Returns the layers that transpose an image to (H, W, C)."""
    image = _image_shape(shape, layout)
    if layout == "HW":
        return [keras.layers.Reshape(image)]
    if layout == "CHW":
        return [keras.layers.Permute((2, 3, 1))]
    if layout == "SHWC":
        return [keras.layers.Permute((2, 3, 1, 4)), keras.layers.Reshape(image)]
    if layout == "SCHW":
        return [keras.layers.Permute((3, 4, 1, 2)), keras.layers.Reshape(image)]
    return []


def _image_shape(shape, layout):
    """Returns an image's (H, W, C)."""
    size = dict(zip(layout, shape, strict=True))
    channels = math.prod(n for axis, n in size.items() if axis in "SC")
    return (size["H"], size["W"], channels)


def _own_model(network, shape, options):
    """Returns the user's own model, and a layer that flattens its outputs if needed."""
    if not _takes(network, shape):
        raise ValueError(
            f"{options.name}: `network` must be a built model that takes images of "
            f"shape {shape}, channels last; the model {network.name!r} takes "
            f"{network.input_shape[1:] if network.built else 'an unknown shape'}."
        )
    flat = [] if len(network.output_shape) == 2 else [keras.layers.Flatten()]
    return [network, *flat]


def _takes(network, shape):
    """Whether a model is built for observations of a shape."""
    expected = getattr(network, "input_shape", None) if network.built else None
    if not isinstance(expected, tuple) or len(expected) != len(shape) + 1:
        return False
    return all(size in (None, n) for size, n in zip(expected[1:], shape, strict=True))


def _with_dense(found, options):
    """Returns the layers, followed by the Dense layers of a named network."""
    units = UNITS.get(found.network, ()) if isinstance(found.network, str) else ()
    dense = [keras.layers.Dense(size, **options.for_layer()) for size in units]
    return [*found.layers, *dense] or [keras.layers.Flatten()]


def _check_use(options, space, every):
    """Raises an error if a network for images is given, but there is no image."""
    network = options.network
    if network in (None, "mlp") or any(x.network is not None for x in every):
        return
    called = repr(network) if isinstance(network, str) else f"the model {network.name}"
    raise ValueError(
        f"{options.name}: `network` is {called}, for images, and there is none in "
        f"{space}."
    )


def _apply(layers, x):
    for layer in layers:
        x = layer(x)
    return x


# --- Convolutions ---------------------------------------------------------------


def _conv(options, filters, size, strides=1, **more):
    settings = {**options.for_layer(), "data_format": "channels_last", **more}
    return keras.layers.Conv2D(filters, size, strides, **settings)


def _nature(shape, options):
    return [
        _conv(options, 32, 8, 4),
        _conv(options, 64, 4, 2),
        _conv(options, 64, 3, 1),
        keras.layers.Flatten(),
    ]


def _minatar(shape, options):
    return [_conv(options, 16, 3), keras.layers.Flatten()]


def _impala(shape, options):
    """Three stages: a convolution, pooling, and two residual blocks (figure 3)."""

    def conv(filters):
        return _conv(options, filters, 3, padding="same", activation=None)

    inputs = x = keras.Input(shape)
    for filters in (16, 32, 32):
        x = conv(filters)(x)
        x = keras.layers.MaxPooling2D(3, 2, "same", data_format="channels_last")(x)
        for _ in range(2):
            y = keras.layers.Activation(options.activation)(x)
            y = conv(filters)(y)
            y = keras.layers.Activation(options.activation)(y)
            x = keras.layers.Add()([x, conv(filters)(y)])
    x = keras.layers.Activation(options.activation)(x)
    return [keras.Model(inputs, x, name="impala"), keras.layers.Flatten()]


CONVOLUTIONS = {"nature": _nature, "impala": _impala, "minatar": _minatar}
