"""Recurrent sequence-to-sequence models: one GRU reads, another one writes.

    encoder   h_s = GRU(x_s, h_(s-1))
    decoder   g_0 = h_S,  g_t = GRU(y_(t-1), g_(t-1)),   p(y_t) = softmax(W g_t + b)

The decoder gets the source as one vector h_S, however long the source is. Attention was
invented to remove this bottleneck: the decoder's state attends to all states of the
encoder,

    a_t = sum_s softmax_s(g_t . h_s) h_s,       W and b applied to tanh(U [a_t, g_t])

Both are baselines of `kit.encoder_decoder`, which uses attention only. This file also
has what all three need for pairs of texts: characters or subwords as padded integers
(`vocabulary`, `subwords`, `encode`, `decode`), a metric (`ExactMatch`), and a loss for
few pairs (`SmoothedCrossentropy`). Shapes: B batch, S and T positions of
source and target, V vocabulary.

Paper: Sutskever et al., 2014, https://arxiv.org/abs/1409.3215, with the GRU of Cho et
al., 2014, https://arxiv.org/abs/1406.1078; attention ("dot") as in Luong et al., 2015,
https://arxiv.org/abs/1508.04025, without its input feeding.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, decoding
from kit.backend import Tensor, compiled
from kit.data.corpus import Characters
from kit.data.subwords import Subwords
from kit.models import Model

# Unicode's control characters "start of text" and "end of text".
START, END = "\x02", "\x03"
START_TOKEN, END_TOKEN = 1, 2  # their numbers; 0 is padding

ACCEPTED = {
    "texts": checks.sequence(checks.TEXT, least=1),
    "characters": checks.instance(
        Characters, Subwords, what="a vocabulary of characters or subwords"
    ),
    "size": checks.SIZE,
    "special": checks.sequence(checks.TEXT),
    "label_smoothing": checks.SHARE,
    "reduction": checks.one_of("sum_over_batch_size", "sum", "mean", "none") | None,
    "length": checks.SIZE | None,
    "tokens": checks.array("B T", "integers"),
    "name": checks.TEXT | None,
    "dtype": checks.DTYPE | checks.instance(keras.DTypePolicy) | None,
    "y_true": checks.array("B T"),
    "y_pred": checks.array("B T V"),
    "source_vocabulary_size": checks.SIZE,
    "target_vocabulary_size": checks.SIZE,
    "units": checks.sequence(checks.SIZE, least=1),
    "attention": checks.BOOL,
    "dropout": checks.SHARE,
    "num_parameters": checks.integer("[1, 2**63)"),
    "num_layers": checks.NUM_LAYERS,
    # translate
    "model": checks.MODEL,
    "start_token": checks.COUNT,
    "end_token": checks.SIZE,
    "beam_width": checks.SIZE,
    "length_penalty": checks.FINITE,
}


# --- Pairs of texts ---------------------------------------------------------


def vocabulary(texts: Iterable[str]) -> Characters:
    """Returns a vocabulary: start and end characters, then all characters of texts."""
    if not isinstance(texts, str) and isinstance(texts, Iterable):
        texts = list(texts)
    checks.check("vocabulary", locals(), ACCEPTED)
    return Characters(START + END + "".join(sorted(set().union(*texts))))


def subwords(texts: Iterable[str], size: int, special: Sequence[str] = ()) -> Subwords:
    """Returns a vocabulary of subwords, whose first two are start and end characters.

    Args:
        texts: Texts to learn it from, sources and targets if both are to share it.
        size: See `kit.data.subwords.Subwords.learn`.
        special: Texts that are one token each, such as `"<0>"`. Defaults to none.

    Raises:
        ImportError: If the package tokenizers isn't installed.
        TypeError: If an argument has the wrong type.
        ValueError: If `texts` is empty, or `size` too small.
    """
    if not isinstance(texts, str) and isinstance(texts, Iterable):
        texts = list(texts)
    checks.check("subwords", locals(), ACCEPTED)
    return Subwords.learn(texts, size, [START, END, *special])


def encode(
    texts: Sequence[str],
    characters: Characters | Subwords,
    length: int | None = None,
) -> np.ndarray:
    """Returns texts as integers, padded with zeros.

    Args:
        texts: One text per example, whose characters are in the vocabulary.
        characters: The result of `vocabulary` or `subwords`.
        length: S, at least the longest text's length. Defaults to `None`: that length.

    Returns:
        int32 of shape `(B, S)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a character is unknown, or a text is longer than `length`.

    Example:

    ```python
    characters = kit.seq2seq.vocabulary(["hello", "hole"])
    kit.seq2seq.encode(["hello", "hole"], characters)  # (2, 5)
    ```
    """
    checks.check("encode", locals(), ACCEPTED)
    rows = [characters.encode(text) for text in texts]
    sizes = [len(row) for row in rows]
    length = max(sizes) if length is None else length
    if max(sizes) > length:
        longest = texts[int(np.argmax(sizes))]
        unit = "characters" if isinstance(characters, Characters) else "subwords"
        raise ValueError(
            f"The text {longest!r} has {max(sizes)} {unit}, more than the "
            f"{length} that were asked for (length={length})."
        )
    tokens = np.zeros((len(texts), length), "int32")
    for row, numbers, text in zip(tokens, rows, texts, strict=True):
        row[: len(numbers)] = numbers
        if isinstance(characters, Characters) and not numbers.all():
            unknown = sorted(set(text) - set(characters.characters))
            raise ValueError(
                f"The text {text!r} of `texts` has characters that the vocabulary "
                f"lacks: {', '.join(map(repr, unknown))}. It has "
                f"{characters.characters[3:]!r}."
            )
    return tokens


def decode(tokens: Any, characters: Characters | Subwords) -> list[str]:
    """Returns the texts of integers `(B, T)`, each up to its end character."""
    checks.check("decode", locals(), ACCEPTED)
    rows = ops.convert_to_numpy(tokens)
    if rows.min() < 0 or rows.max() >= len(characters):
        raise ValueError(
            f"decode: `tokens` must be integers in [0, {len(characters) - 1}], numbers "
            f"of `characters`, received some from {rows.min()} to {rows.max()}."
        )
    texts = [characters.decode(row[row != 0]) for row in rows]
    return [text.split(END)[0].removeprefix(START) for text in texts]


@keras.saving.register_keras_serializable(package="kit")
class ExactMatch(keras.metrics.Mean):
    """Share of sequences in which the most probable token is right at each position.

    The model reads the right tokens before each position. Greedy decoding reads its own
    tokens, which are the same up to the first error. So greedy decoding gets exactly
    these sequences right: the metric is its exact match, for one forward pass.

    Call arguments of `update_state`:
        y_true: Integers `(B, T)`; zeros are padding and ignored.
        y_pred: Logits or probabilities `(B, T, V)`.

    Example:

    ```python
    metric = kit.seq2seq.ExactMatch()
    metric(np.array([[1, 2], [1, 0]]), np.eye(3)[[[1, 1], [1, 1]]])  # 0.5
    ```
    """

    def __init__(self, name="exact_match", dtype=None):
        checks.check(self, locals(), ACCEPTED)
        super().__init__(name=name, dtype=dtype)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Counts the sequences of a batch."""
        checks.check("ExactMatch", {"y_true": y_true, "y_pred": y_pred}, ACCEPTED)
        y_true = ops.cast(y_true, "int32")
        right = ops.cast(ops.argmax(y_pred, axis=-1), "int32") == y_true
        values = ops.all(right | (y_true == 0), axis=-1)
        super().update_state(ops.cast(values, self.dtype), sample_weight)


@keras.saving.register_keras_serializable(package="kit")
class SmoothedCrossentropy(keras.losses.Loss):
    """Cross-entropy with smoothed labels, for integers as targets.

    A share e of the right answer's probability is spread over all V tokens:

        loss = -(1 - e) log p(y) - e / V sum_v log p(v)

    So the network gains nothing from being surer than that, which helps where it could
    learn few pairs by heart. The loss of the right distribution isn't 0 any more.

    Args:
        label_smoothing: e, in [0, 1). Defaults to 0.1.

    Call arguments:
        y_true: Integers `(B, T)`.
        y_pred: Logits `(B, T, V)`. Positions that their Keras mask hides don't count.

    Example:

    ```python
    loss = kit.seq2seq.SmoothedCrossentropy(label_smoothing=0.1)
    float(loss(np.array([[1]]), np.zeros((1, 1, 4))))  # log 4 = 1.386
    ```

    Reference: Szegedy et al., 2015, https://arxiv.org/abs/1512.00567.
    """

    def __init__(
        self,
        label_smoothing=0.1,
        name="smoothed_crossentropy",
        reduction="sum_over_batch_size",
        dtype=None,
    ):
        checks.check(self, locals(), ACCEPTED)
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        self.label_smoothing = label_smoothing

    def call(self, y_true, y_pred):
        """Returns the loss of each position, `(B, T)`."""
        log_probs = ops.log_softmax(y_pred, axis=-1)
        labels = ops.cast(y_true, "int32")[..., None]
        right = ops.squeeze(ops.take_along_axis(log_probs, labels, axis=-1), axis=-1)
        e = self.label_smoothing
        return -(1.0 - e) * right - e * ops.mean(log_probs, axis=-1)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return super().get_config() | {"label_smoothing": self.label_smoothing}


# --- The model --------------------------------------------------------------


def gru_encoder_decoder(
    source_vocabulary_size: int,
    target_vocabulary_size: int,
    units: Sequence[int] = (128,),
    attention: bool = False,
    dropout: float = 0.0,
) -> Model:
    """Builds a recurrent sequence-to-sequence model.

    Token 0 is padding in both sequences.

    Args:
        source_vocabulary_size: V of the source.
        target_vocabulary_size: V of the target.
        units: Size of the state of each layer, in both encoder and decoder; the first
            is also the size of the embeddings. Defaults to `(128,)`.
        attention: Whether the decoder attends to all of the encoder's states, not only
            the last. Defaults to `False`.
        dropout: Share of the embeddings and of each layer's outputs to drop in
            training, in [0, 1). Defaults to 0.

    Returns:
        A `kit.Model` from a dict of `"source"`, `(B, S)`, and `"target"`, `(B, T)`,
        the target with a start token before it and without its last token, to logits
        `(B, T, V)` of each next token, as in `kit.encoder_decoder`.
        `kit.seq2seq.translate` generates with it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `units` is empty, or a number is out of range.

    Example:

    ```python
    model = kit.seq2seq.gru_encoder_decoder(30, 40)
    source, target = np.ones((2, 7), "int32"), np.ones((2, 10), "int32")
    model({"source": source, "target": target}).shape  # (2, 10, 40)
    ```
    """
    checks.check("gru_encoder_decoder", locals(), ACCEPTED)
    units = tuple(units)

    def layers(tokens, vocabulary_size, states):
        # Keras initializes embeddings within 0.05 of zero: too similar for a GRU.
        initializer = keras.initializers.RandomNormal(stddev=0.5)
        x = keras.layers.Embedding(
            vocabulary_size, units[0], initializer, mask_zero=True
        )(tokens)
        after = []
        for size, state in zip(units, states, strict=True):
            if dropout:
                x = keras.layers.Dropout(dropout)(x)
            gru = keras.layers.GRU(size, return_sequences=True, return_state=True)
            x, state = gru(x, initial_state=state)
            after.append(state)
        return x, after

    source = keras.Input((None,), dtype="int32", name="source")
    x, states = layers(source, source_vocabulary_size, [None] * len(units))
    read = [*states, x] if attention else states
    encoder = keras.Model(source, read, name="encoder")

    target = keras.Input((None,), dtype="int32", name="target")
    states = [keras.Input((size,), name=f"state_{i}") for i, size in enumerate(units)]
    x, _ = layers(target, target_vocabulary_size, states)
    if attention:
        context = keras.Input((None, units[-1]), name="context")
        states.append(context)
        attended = keras.layers.Attention(name="attention")([x, context])
        x = keras.layers.Concatenate(name="concatenate")([attended, x])
        x = keras.layers.Dense(units[-1], "tanh", use_bias=False, name="combine")(x)
    if dropout:
        x = keras.layers.Dropout(dropout)(x)
    logits = keras.layers.Dense(target_vocabulary_size, name="logits")(x)
    decoder = keras.Model([target, *states], logits, name="decoder")

    logits = decoder([target, *keras.tree.flatten(encoder(source))])
    inputs = {"source": source, "target": target}
    name = "gru_with_attention" if attention else "gru_encoder_decoder"
    return Model(inputs, logits, name=name)


def units_for(
    num_parameters: int,
    source_vocabulary_size: int,
    target_vocabulary_size: int,
    num_layers: int = 1,
    attention: bool = False,
) -> tuple[int, ...]:
    """Returns `units` of the largest model with at most `num_parameters` parameters.

    Each layer, with U units and U inputs, has 6 U^2 + 6 U weights in the encoder and as
    many in the decoder; attention has 2 U^2; embeddings and the last layer have the
    rest.
    """
    checks.check("units_for", locals(), ACCEPTED)
    v, w = source_vocabulary_size, target_vocabulary_size

    def count(units):
        recurrent = 12 * num_layers * units * (units + 1)
        attends = 2 * units**2 if attention else 0
        return recurrent + attends + (v + 2 * w) * units + w

    units, too_many = 1, math.isqrt(num_parameters) + 2  # 12 U^2 are more
    while too_many - units > 1:
        middle = (units + too_many) // 2
        if count(middle) <= num_parameters:
            units = middle
        else:
            too_many = middle
    return (units,) * num_layers


# --- Generation -------------------------------------------------------------


def translate(
    model: keras.Model,
    source: Tensor,
    start_token: int = START_TOKEN,
    end_token: int = END_TOKEN,
    length: int = 100,
    beam_width: int = 1,
    length_penalty: float = 0.0,
) -> Tensor:
    """Generates the most probable target sequences, greedily or by beam search.

    The counterpart of `kit.transformer.translate`.

    Args:
        model: A model of `gru_encoder_decoder`.
        source: Integers `(B, S)`, zeros where there is padding.
        start_token: Token at the beginning of each target in training. Defaults to
            that of `vocabulary`.
        end_token: Token that ends a target. Defaults to that of `vocabulary`.
        length: Largest number of tokens to generate, including the end token. Defaults
            to 100.
        beam_width: Number of candidates that beam search keeps. Defaults to 1: greedy.
        length_penalty: See `kit.decoding.beam_search`. Defaults to 0.

    Returns:
        Tokens, int32 `(B, length)`: the best sequence, its end token, zeros.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model isn't of `gru_encoder_decoder`, or a number is out of
            its range.

    Example:

    ```python
    model = kit.seq2seq.gru_encoder_decoder(30, 40)
    kit.seq2seq.translate(model, [[3, 14, 15]], length=20).shape  # (1, 20)
    ```
    """
    checks.check("translate", locals(), ACCEPTED)
    names = {layer.name for layer in model.layers}
    if not {"encoder", "decoder"} <= names or not _grus(model.get_layer("decoder")):
        raise ValueError(
            f"`model` must be of `kit.seq2seq.gru_encoder_decoder`, received {model!r}."
        )
    source = decoding.check_source(model, source)
    decoding.check_writing(locals(), model.output_shape[-1], None)
    options = (start_token, end_token, length, beam_width, length_penalty)
    program = decoding.kept_program(model, _make_translate, *options)
    return program(source)


def _make_translate(model, start_token, end_token, length, beam_width, length_penalty):
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    embedding = next(
        layer for layer in decoder.layers if isinstance(layer, keras.layers.Embedding)
    )

    grus = _grus(decoder)
    names = [layer.name for layer in decoder.layers]

    def read(token, state, position):
        x, after = ops.take(embedding.embeddings, token, axis=0), []
        x = ops.cast(x, embedding.compute_dtype)
        for layer, before in zip(grus, state["h"], strict=True):
            x, new = layer.cell(x, before)
            after.append(keras.tree.flatten(new)[0])
        if "attention" in names:
            context, mask = state["context"]
            asked = [x[:, None], context]  # a target of one position
            attended = decoder.get_layer("attention")(asked, mask=[None, mask])
            x = ops.concatenate([attended[:, 0], x], axis=-1)
            x = decoder.get_layer("combine")(x)
        logits = decoding.without_padding(decoder.get_layer("logits")(x))
        return logits, {**state, "h": after}

    @compiled
    def program(source):
        states = [
            ops.repeat(h, beam_width, axis=0)
            for h in keras.tree.flatten(encoder(source))
        ]
        state: dict[str, Any] = {"h": states[: len(grus)]}
        if "attention" in names:
            mask = ops.repeat(source != 0, beam_width, axis=0)
            state["context"] = (states[-1], mask)
        tokens, _ = decoding.beam_search(
            read,
            state,
            source.shape[0],
            length,
            start_token,
            end_token,
            beam_width,
            length_penalty,
        )
        return tokens[:, 0]

    return program


def _grus(model):
    """Returns the model's GRU layers in order."""
    layers = getattr(model, "layers", ())
    return [layer for layer in layers if isinstance(layer, keras.layers.GRU)]
