"""Recurrent networks: a state that is carried along a sequence.

At each time step, a cell computes a new state h_t from the input x_t and the old state
h_(t-1); the last output, or each of them, goes into a Dense layer.

    simple RNN   h_t = tanh(W x_t + U h_(t-1) + b)
    LSTM         i, f, o = sigmoid(...), g = tanh(...), each of x_t and h_(t-1)
                 c_t = f c_(t-1) + i g,    h_t = o tanh(c_t)
    GRU          z, r = sigmoid(...),  n = tanh(W x_t + r (U h_(t-1))),
                 h_t = z h_(t-1) + (1 - z) n

The LSTM's f and the GRU's z control what a cell forgets; where they stay near 1,
gradients reach far back. The same weights process a whole sequence (`model(x)`) or one
time step at a time (`step`), as needed for streamed audio and for generating text
(`generate`). Shapes: B batch, T time steps, F features, V vocabulary.

Reference: Elman, 1990; Hochreiter and Schmidhuber, 1997,
https://doi.org/10.1162/neco.1997.9.8.1735; Cho et al., 2014,
https://arxiv.org/abs/1406.1078.
"""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, decoding, random
from kit.backend import Tensor, compiled, scan
from kit.models import Sequential

ACCEPTED = {
    "input_shape": checks.OPEN_SHAPE,
    "num_outputs": checks.SIZE,
    "units": checks.SIZE | checks.sequence(checks.SIZE, least=1),
    "output_activation": checks.ACTIVATION,
    "return_sequences": checks.BOOL,
    "vocabulary_size": checks.SIZE | None,
    "mask_value": checks.FINITE | None,
    "dropout": checks.SHARE,
    "preprocessing": checks.sequence(checks.LAYER),
    # initial_state, step, generate
    "model": checks.instance(keras.Sequential),
    "batch_size": checks.SIZE,
    "inputs": checks.array("B ..."),
    "state": checks.sequence(checks.instance(list, tuple, what="a list of states")),
    "length": checks.SIZE,
    "temperature": checks.WEIGHT,
    "top_k": checks.SIZE | None,
    "seed": checks.SEED,
}
RECURRENT = (keras.layers.SimpleRNN, keras.layers.LSTM, keras.layers.GRU)
# Layers that process each time step separately, so that `step` can use them.
POINTWISE = (
    keras.layers.Activation,
    keras.layers.BatchNormalization,
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.Embedding,
    keras.layers.GaussianNoise,
    keras.layers.LayerNormalization,
    keras.layers.Masking,
    keras.layers.Normalization,
    keras.layers.ReLU,
    keras.layers.Rescaling,
)


def rnn(
    input_shape: Sequence[int | None],
    num_outputs: int,
    units: Sequence[int] = (64,),
    output_activation: Any = None,
    return_sequences: bool = False,
    vocabulary_size: int | None = None,
    mask_value: float | None = None,
    dropout: float = 0.0,
    preprocessing: Sequence[keras.layers.Layer] = (),
) -> Sequential:
    """Builds a simple recurrent network: SimpleRNN layers, then a Dense layer.

    `lstm` and `gru` take the same arguments.

    Args:
        input_shape: Shape of a sequence: `(T, F)`, or `(T,)` for sequences of
            integers with `vocabulary_size`. T may be `None`, for any length.
        num_outputs: Number of outputs.
        units: Size of the state of each recurrent layer. Defaults to `(64,)`.
        output_activation: Activation of the outputs, `"softmax"` for classes.
            Defaults to `None`.
        return_sequences: If `True`, an output for each time step. Defaults to
            `False`: one for the sequence.
        vocabulary_size: V, if the inputs are integers in [0, V): they go through an
            Embedding of the first layer's size. Defaults to `None`.
        mask_value: Time steps whose features all equal this value are skipped, such as
            the padding of sequences in a batch. With `vocabulary_size`, it can only be
            0. Defaults to `None`.
        dropout: Share of each layer's outputs to drop in training, in [0, 1).
            Defaults to 0.
        preprocessing: Layers after the mask, which must see the raw padding, and before
            the first recurrent layer: an adapted `Normalization`, a `GaussianNoise`.
            Defaults to none.

    Returns:
        A `kit.Sequential` from `(B, T, F)` or `(B, T)` to `(B, num_outputs)`, or
        `(B, T, num_outputs)` with `return_sequences`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `units` is empty, `input_shape` doesn't fit the kind of
            input, or `mask_value` isn't 0 for integers.

    Example:

    ```python
    model = kit.rnn((24, 1), 12)  # 24 hours to the next 12
    model(np.zeros((2, 24, 1))).shape  # (2, 12)
    ```
    """
    return _build(keras.layers.SimpleRNN, **locals())


def lstm(
    input_shape: Sequence[int | None],
    num_outputs: int,
    units: Sequence[int] = (64,),
    output_activation: Any = None,
    return_sequences: bool = False,
    vocabulary_size: int | None = None,
    mask_value: float | None = None,
    dropout: float = 0.0,
    preprocessing: Sequence[keras.layers.Layer] = (),
) -> Sequential:
    """Builds a network of LSTM layers and a Dense layer; arguments as in `rnn`.

    Example:

    ```python
    model = kit.lstm((None,), 50, return_sequences=True, vocabulary_size=50)
    model(np.zeros((2, 10), "int32")).shape  # (2, 10, 50)
    ```
    """
    return _build(keras.layers.LSTM, **locals())


def gru(
    input_shape: Sequence[int | None],
    num_outputs: int,
    units: Sequence[int] = (64,),
    output_activation: Any = None,
    return_sequences: bool = False,
    vocabulary_size: int | None = None,
    mask_value: float | None = None,
    dropout: float = 0.0,
    preprocessing: Sequence[keras.layers.Layer] = (),
) -> Sequential:
    """Builds a network of GRU layers and a Dense layer; arguments as in `rnn`.

    Example:

    ```python
    model = kit.gru((None, 12), 9, output_activation="softmax", mask_value=0.0)
    model(np.ones((2, 29, 12))).shape  # (2, 9)
    ```
    """
    return _build(keras.layers.GRU, **locals())


def _build(
    layer,
    input_shape,
    num_outputs,
    units,
    output_activation,
    return_sequences,
    vocabulary_size,
    mask_value,
    dropout,
    preprocessing,
):
    name = layer.__name__.lower()
    checks.check(name.removeprefix("simple"), locals(), ACCEPTED)
    units = (units,) if isinstance(units, int) else tuple(units)
    rank = 2 if vocabulary_size is None else 1
    if len(input_shape) != rank or input_shape[1:] == (None,):
        raise ValueError(
            "`input_shape` must be (time steps, features), or (time steps,) with "
            f"`vocabulary_size`; received {tuple(input_shape)} and vocabulary_size="
            f"{vocabulary_size}."
        )
    if vocabulary_size is None:
        model = Sequential([keras.Input(tuple(input_shape))], name=name)
        if mask_value is not None:
            model.add(keras.layers.Masking(mask_value))
    elif mask_value not in (None, 0):
        raise ValueError(
            "With `vocabulary_size`, the integer that stands for padding can only be "
            f"0: `mask_value` must be 0 or None, received {mask_value!r}."
        )
    else:
        model = Sequential([keras.Input(tuple(input_shape), dtype="int32")], name=name)
        padded = mask_value is not None
        model.add(keras.layers.Embedding(vocabulary_size, units[0], mask_zero=padded))
    for before in preprocessing:
        model.add(before)
    for i, size in enumerate(units):
        last = i == len(units) - 1
        model.add(layer(size, return_sequences=return_sequences or not last))
        if dropout:
            model.add(keras.layers.Dropout(dropout))
    model.add(keras.layers.Dense(num_outputs, activation=output_activation))
    return model


def initial_state(model: keras.Sequential, batch_size: int = 1) -> list[list[Tensor]]:
    """Returns the state before the first time step: zeros.

    Args:
        model: A model of `rnn`, `lstm` or `gru`, or another `keras.Sequential` of such
            layers that go forward, and of layers that process each time step
            separately. Any layer may follow a recurrent layer that returns one output
            for the sequence.
        batch_size: Number of sequences. Defaults to 1.

    Returns:
        For each recurrent layer a list of its states, each of shape `(B, units)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model can't be run step by step.
    """
    checks.check("initial_state", locals(), ACCEPTED)
    return [layer.get_initial_state(batch_size) for layer in _recurrent_layers(model)]


def step(
    model: keras.Sequential, inputs: Tensor, state: list[list[Tensor]]
) -> tuple[Tensor, list[list[Tensor]]]:
    """Applies a recurrent model to one time step.

    After the last step of a sequence, the output is that of `model(sequence)`. So audio
    can be processed as it arrives, at the same cost for each frame. A masked step
    leaves the state unchanged, so sequences of different lengths may share a batch.
    Compile it: see the second line of the example.

    Args:
        model: See `initial_state`.
        inputs: The time step's features, shape `(B, F)`, or integers `(B,)`.
        state: The old state, from `initial_state` or the last `step`.

    Returns:
        The output, shape `(B, num_outputs)`, and the new state.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model can't be run step by step, or `inputs` or `state`
            doesn't fit one of its time steps.

    Example:

    ```python
    model = kit.gru((None, 12), 9)
    step = kit.compiled(lambda frame, state: kit.recurrent.step(model, frame, state))
    state = kit.recurrent.initial_state(model)
    for frame in np.zeros((20, 1, 12), "float32"):
        output, state = step(frame, state)
    ```
    """
    checks.check("step", locals(), ACCEPTED)
    number = len(_recurrent_layers(model))
    if len(state) != number:
        raise ValueError(
            f"`state` must hold the states of {number} recurrent layers, as "
            f"`initial_state(model)` returns them; received {len(state)} elements."
        )
    x = ops.convert_to_tensor(inputs)
    shape = (*model.input_shape[:1], *model.input_shape[2:])  # without time
    if len(x.shape) != len(shape) or tuple(x.shape[1:]) != shape[1:]:
        raise ValueError(
            f"`inputs` must be one time step of a batch, of shape {shape}, where None "
            f"is the number of sequences; received the shape {tuple(x.shape)}."
        )
    old, new, keep, is_sequence = iter(state), [], None, True
    for layer in model.layers:
        if is_sequence and isinstance(layer, RECURRENT):
            before = list(next(old))
            x, after = layer.cell(x, before)
            if keep is not None:  # a masked step changes nothing
                after = [
                    ops.where(keep, a, b) for a, b in zip(after, before, strict=True)
                ]
                x = after[0]  # the cell's output is its first state
            new.append(list(after))
            is_sequence = layer.return_sequences
        elif is_sequence:
            x = ops.expand_dims(x, 1)  # (B, 1, F), or (B, 1): a sequence of one
            keep = layer.compute_mask(x, keep)  # (B, 1), or None
            x = ops.squeeze(layer(x), 1)
        else:
            x = layer(x)
    return x, new


def generate(
    model: keras.Sequential,
    prompt: Tensor,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
) -> Tensor:
    """Continues sequences of integers by sampling tokens from the model's predictions.

    A compiled `scan` carries the state: a token costs one step, however long the text
    before it is.

    Args:
        model: Model from `(B, T)` integers to `(B, T, V)` logits, such as
            `lstm(..., vocabulary_size=V, return_sequences=True)`.
        prompt: Integers of shape `(B, P)`, at least one each.
        length: Number of tokens to generate.
        temperature: Divides the logits: below 1, probable tokens become more probable;
            0 always takes the most probable one. Defaults to 1.
        top_k: Sample from the k most probable tokens only. Defaults to `None`, all.
        seed: Integer.

    Returns:
        The generated tokens, int32 of shape `(B, length)`; the same on every backend up
        to rounding.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model doesn't give logits for each time step or can't be
            run step by step, if `prompt` isn't `(B, P)` integers of the vocabulary, or
            a number is out of its range.

    Example:

    ```python
    model = kit.lstm((None,), 50, return_sequences=True, vocabulary_size=50)
    kit.recurrent.generate(model, [[3, 14, 15]], 20, temperature=0.7).shape  # (1, 20)
    ```
    """
    checks.check("generate", locals(), ACCEPTED)
    _recurrent_layers(model)
    size = model.output_shape[-1]
    activation = getattr(model.layers[-1], "activation", None)
    if len(model.output_shape) != 3 or activation is keras.activations.softmax:
        kind = getattr(activation, "__name__", "none")
        raise ValueError(
            "`model` must give logits for each time step, (B, T, V) without softmax; "
            f"its output has the shape {model.output_shape}, its last activation is "
            f"{kind}."
        )
    prompt = decoding.check_generation(prompt, size, length, temperature, top_k)
    options = (length, top_k, temperature == 0)
    program = decoding.kept_program(model, _make_generate, *options)
    return program(prompt, float(temperature), random.key(seed))


def _make_generate(model, length, top_k, greedy):
    def read(token, state, position=None):
        return step(model, token, state)

    @compiled
    def program(prompt, temperature, key):
        state = initial_state(model, prompt.shape[0])
        state, logits = scan(
            lambda state, token: read(token, state)[::-1], state, ops.transpose(prompt)
        )
        draw_key = None if greedy else key
        return decoding.sample(
            read, state, logits[-1], length, draw_key, temperature, top_k
        )

    return program


def _recurrent_layers(model):
    """Returns the recurrent layers, after a check that the model can run by steps."""
    if not isinstance(model, keras.Sequential) or not model.built:
        raise ValueError(
            "Only a built keras.Sequential can be run step by step (give it a "
            f"keras.Input); received {model!r}."
        )
    found = []
    for layer in model.layers:
        if isinstance(layer, RECURRENT):
            found.append(layer)
            fits = not (layer.go_backwards or layer.zero_output_for_mask)
        else:
            # A normalization over the time axis mixes time steps.
            axes = np.atleast_1d(getattr(layer, "axis", None) or -1).tolist()
            fits = isinstance(layer, POINTWISE) and not {1, -2}.intersection(axes)
        if not fits:
            raise ValueError(
                f"The layer {layer.name!r} ({type(layer).__name__}) looks at other "
                "time steps than the current one, or masks in another way, so the "
                "model can't be run step by step. SimpleRNN, LSTM and GRU that go "
                "forward can, and layers that process each step separately: "
                f"{', '.join(x.__name__ for x in POINTWISE)}."
            )
        if isinstance(layer, RECURRENT) and not layer.return_sequences:
            return found  # later layers get one output for the whole sequence
    return found
