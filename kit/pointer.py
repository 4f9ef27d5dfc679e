"""The pointer-generator: a Transformer that can copy words from its source.

A summary has many words of its document: names above all, which a small vocabulary of
summaries can't know. At each position t, the model either generates a token w of its
vocabulary or copies one of the source's tokens x_i:

    a_t = softmax_i(q_t . k_i / sqrt(D))             where to copy from
    p_gen = sigmoid(w_h . h*_t + w_s . s_t + b)      with h*_t = sum_i a_ti h_i
    P(w) = p_gen P_vocab(w) + (1 - p_gen) sum_(i: x_i = w) a_ti

s_t are the decoder's outputs, h_i the encoder's, q = W_q s + b_q and k = W_k h + b_k.
Nobody tells the model when to copy: the loss is -log P of the right token, and the
gradient reaches both ways to write it. Probabilities are added as logarithms, so a tiny
one doesn't become 0, whose logarithm has no gradient.

The rest consists of the blocks of `kit.transformer`. Encoder and decoder have one
vocabulary and the same embeddings E; P_vocab = softmax(E s_t). Shapes: B batch, T and S
positions of target and source, D width, V vocabulary.

Paper: See et al., 2017, https://arxiv.org/abs/1704.04368, with LSTMs. Differences:
Transformers; p_gen doesn't see the decoder's input, which s_t contains; no coverage;
subwords instead of words, so no word is unknown and V needs no extension.
"""

from typing import Any

import keras
from keras import ops

from kit import checks, decoding
from kit.backend import Tensor, compiled
from kit.models import Model
from kit.transformer import (
    DecoderBlock,
    EncoderBlock,
    PositionEmbedding,
    beam_step,
    normal,
    start,
)

ACCEPTED = {
    "vocabulary_size": checks.SIZE,
    "max_length": checks.SIZE,
    "num_layers": checks.NUM_LAYERS,
    "num_heads": checks.SIZE,
    "hidden_dim": checks.SIZE,
    "intermediate_dim": checks.SIZE | None,
    "dropout": checks.SHARE,
    "activation": checks.ACTIVATION,
    "copy": checks.BOOL,
    "epsilon": checks.POSITIVE,
    # mix
    "vocabulary_logits": checks.array("B T V"),
    "attention": checks.array("B T S"),
    "source": checks.array("B S", "integers"),
    "gate": checks.array("B T"),
    # summarize, copy_shares
    "model": checks.MODEL,
    "start_token": checks.COUNT,
    "end_token": checks.SIZE,
    "length": checks.SIZE,
    "beam_width": checks.SIZE,
    "length_penalty": checks.FINITE,
    "target": checks.array("B T", "integers"),
}
# Probability of a token that isn't in the source, so that its logarithm is finite.
TINY = 1e-20


def mix(
    vocabulary_logits: Tensor, attention: Tensor, source: Tensor, gate: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns log (p_gen P_vocab) and log ((1 - p_gen) P_copy), `(B, T, V)` each.

    P is the sum of both: `ops.logaddexp` adds them as logarithms.

    Args:
        vocabulary_logits: Logits of P_vocab, `(B, T, V)`.
        attention: a, `(B, T, S)`: rows sum to 1.
        source: x, integers `(B, S)`.
        gate: The logit of p_gen, `(B, T)`.
    """
    checks.check("mix", locals(), ACCEPTED)
    logits = ops.cast(vocabulary_logits, "float32")
    gate = ops.cast(gate, "float32")[..., None]
    copied = _sum_by_token(ops.cast(attention, "float32"), source, logits.shape[-1])
    generated = ops.log_softmax(logits, axis=-1) + ops.log_sigmoid(gate)
    return generated, ops.log(copied + TINY) + ops.log_sigmoid(-gate)


def _sum_by_token(attention, source, size):
    """Returns sum_(i: x_i = w) a_ti for each token w, `(B, T, V)`."""
    rows, steps, places = attention.shape
    if rows is None:  # while a model is being built
        rows, steps, places = ops.shape(attention)
    # A segment for each token of each example: twice as fast as a product with one-hot
    # vectors.
    segments = (
        ops.cast(source, "int32") + size * ops.arange(rows, dtype="int32")[:, None]
    )
    weights = ops.reshape(ops.transpose(attention, (0, 2, 1)), (rows * places, steps))
    sums = ops.segment_sum(weights, ops.reshape(segments, (-1,)), rows * size)
    return ops.transpose(ops.reshape(sums, (rows, size, steps)), (0, 2, 1))


@keras.saving.register_keras_serializable(package="kit")
class Pointer(keras.layers.Layer):
    """Points at the source's positions, and decides between generating and copying.

    Call arguments:
        states: s, the decoder's outputs, `(B, T, D)`.
        context: h, the encoder's outputs, `(B, S, D)`.
        vocabulary_logits: Logits of P_vocab, `(B, T, V)`.
        source: x, integers `(B, S)`; zeros are padding, which isn't copied.

    Output shape: `(B, T, V)`: log P of each token. They are logits, too: their softmax
        is P.

    Example:

    ```python
    states, context, source = np.ones((2, 5, 8)), np.ones((2, 7, 8)), np.ones((2, 7))
    pointer = kit.pointer.Pointer()
    pointer(states, context, np.zeros((2, 5, 30)), source).shape  # (2, 5, 30)
    ```
    """

    def build(self, states_shape, context_shape, *others):
        """Builds the weights for inputs of this shape."""
        width = states_shape[-1]
        for name, units, shape in (
            ("query", width, states_shape),
            ("key", width, context_shape),
            ("gate", 1, (*states_shape[:-1], 2 * width)),
        ):
            dense = keras.layers.Dense(units, dtype=self.dtype_policy, name=name)
            dense.build(shape)
            setattr(self, name, dense)

    def call(self, states, context, vocabulary_logits, source):
        """Returns log P."""
        return ops.logaddexp(*self.parts(states, context, vocabulary_logits, source))

    def parts(self, states, context, vocabulary_logits, source):
        """Returns the two parts of P; see `mix`."""
        source = ops.cast(source, "int32")
        scores = ops.einsum("btd,bsd->bts", self.query(states), self.key(context))
        scores = ops.cast(scores, "float32") / states.shape[-1] ** 0.5
        scores = ops.where((source != 0)[:, None], scores, -1e9)
        attention = ops.softmax(scores, axis=-1)  # a, (B, T, S)
        read = ops.matmul(ops.cast(attention, context.dtype), context)  # h*, (B, T, D)
        gate = self.gate(ops.concatenate([read, states], axis=-1))[..., 0]
        return mix(vocabulary_logits, attention, source, gate)

    def compute_output_shape(
        self, states_shape, context_shape, vocabulary_logits_shape, source_shape
    ):
        """Returns the shape of the logits."""
        return tuple(vocabulary_logits_shape)

    def compute_output_spec(self, states, context, vocabulary_logits, source):
        """Returns the shape and dtype of log P."""
        return keras.KerasTensor(vocabulary_logits.shape, "float32")


def pointer_generator(
    vocabulary_size: int,
    max_length: int,
    num_layers: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 128,
    intermediate_dim: int | None = None,
    dropout: float = 0.1,
    activation: Any = "relu",
    copy: bool = True,
    epsilon: float = 1e-5,
) -> Model:
    """Builds a Transformer that generates and copies tokens, such as for summaries.

    Token 0 is padding.

    Args:
        vocabulary_size: V, of source and target.
        max_length: Length of the longest source or target.
        num_layers: Number of blocks of the encoder, and of the decoder. Defaults to 2.
        num_heads: N. Defaults to 4.
        hidden_dim: D, a multiple of N. Defaults to 128.
        intermediate_dim: Of the feed-forward networks. Defaults to 4 D.
        dropout: Share of the embeddings and of each sublayer's outputs to drop in
            training, in [0, 1). Defaults to 0.1.
        activation: Of the feed-forward networks. Defaults to `"relu"`.
        copy: Whether it can copy; `False` leaves the pointer out. Defaults to `True`.
        epsilon: Of LayerNorm. Defaults to 1e-5.

    Returns:
        A `kit.Model` from a dict of `"source"`, `(B, S)`, and `"target"`, `(B, T)`, the
        target with a start token before it and without its last token, to log P
        `(B, T, V)` of each next token. These are logits, too, so the loss is
        `SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)`, which leaves
        padding out. `summarize` writes with the model.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, or D not a multiple of N.

    Example:

    ```python
    model = kit.pointer_generator(40, max_length=20)
    source, target = np.ones((2, 7), "int32"), np.ones((2, 10), "int32")
    model({"source": source, "target": target}).shape  # (2, 10, 40)
    ```
    """
    checks.check("pointer_generator", locals(), ACCEPTED)
    if hidden_dim % num_heads:
        raise ValueError(
            f"pointer_generator: hidden_dim={hidden_dim} must be a multiple of "
            f"num_heads={num_heads}."
        )
    options: Any = {
        "num_heads": num_heads,
        "intermediate_dim": intermediate_dim or 4 * hidden_dim,
        "activation": activation,
        "dropout": dropout,
        "epsilon": epsilon,
    }
    embedding = keras.layers.ReversibleEmbedding(
        vocabulary_size,
        hidden_dim,
        embeddings_initializer=normal(0.02),
        name="embedding",
    )

    def add_positions(x):
        x = PositionEmbedding(max_length, name="position_embedding")(x)
        return keras.layers.Dropout(dropout, name="embedding_dropout")(x)

    # Keras doesn't save a layer that two inner models share, so both get vectors; masks
    # (False at padding) are inputs, too. After padding, the target has only padding, to
    # which no earlier position attends.
    mask = keras.Input((None,), dtype="bool", name="mask")
    vectors = keras.Input((None, hidden_dim), name="source_vectors")
    x = add_positions(vectors)
    for i in range(num_layers):
        x = EncoderBlock(**options, name=f"block_{i}")(x, mask=mask)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="final_norm")(x)
    encoder = keras.Model([vectors, mask], x, name="encoder")

    vectors = keras.Input((None, hidden_dim), name="target_vectors")
    context = keras.Input((None, hidden_dim), name="context")
    x = add_positions(vectors)
    for i in range(num_layers):
        block = DecoderBlock(**options, name=f"block_{i}")
        x = block(x, context=context, context_mask=mask)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="final_norm")(x)
    decoder = keras.Model([vectors, context, mask], x, name="decoder")

    source = keras.Input((None,), dtype="int32", name="source")
    target = keras.Input((None,), dtype="int32", name="target")
    context = encoder([embedding(source), source != 0])
    states = decoder([embedding(target), context, source != 0])
    logits = embedding(states, reverse=True)
    if copy:
        logits = Pointer(name="pointer")(states, context, logits, source)
    inputs = {"source": source, "target": target}
    return Model(inputs, logits, name="pointer_generator")


def summarize(
    model: keras.Model,
    source: Tensor,
    start_token: int,
    end_token: int,
    length: int,
    beam_width: int = 1,
    length_penalty: float = 0.0,
) -> Tensor:
    """Generates the most probable targets, greedily or by beam search.

    The source is read once; then each token costs one step.

    Args:
        model: A model of `pointer_generator`.
        source: Integers `(B, S)`, zeros where there is padding.
        start_token: Token at the beginning of each target in training.
        end_token: Token that ends a target.
        length: Largest number of tokens to generate, including the end token.
        beam_width: Number of candidates that beam search keeps. Defaults to 1: greedy.
        length_penalty: See `kit.decoding.beam_search`. Defaults to 0.

    Returns:
        Tokens, int32 `(B, length)`: the best sequence, its end token, zeros.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model isn't of `pointer_generator`, or a number is out of its
            range.

    Example:

    ```python
    model = kit.pointer_generator(40, max_length=20)
    kit.pointer.summarize(model, [[3, 14, 15]], 1, 2, length=20).shape  # (1, 20)
    ```
    """
    checks.check("summarize", locals(), ACCEPTED)
    size, longest = _sizes("summarize", model)
    source = decoding.check_tokens("source", source, size)
    decoding.check_writing(locals(), size, longest)
    options = (start_token, end_token, length, beam_width, length_penalty)
    program = decoding.kept_program(model, _make_summarize, *options)
    return program(source)


def _make_summarize(model, start_token, end_token, length, beam_width, length_penalty):
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    embedding = model.get_layer("embedding")
    # The decoder from tokens on, of which `start` and `step` need the layers.
    inner = [x for x in decoder.layers if not isinstance(x, keras.layers.InputLayer)]
    writer = keras.Sequential([embedding, *inner])

    @compiled
    def program(source):
        source = ops.cast(source, "int32")
        batch_size = source.shape[0]
        context = encoder([embedding(source), source != 0])
        context = ops.repeat(context, beam_width, axis=0)
        repeated = ops.repeat(source, beam_width, axis=0)
        beams = batch_size * beam_width
        cache = start(writer, beams, length, (context, repeated != 0))

        def predict(states):
            return _predict(model, states, context, repeated)

        tokens, _ = decoding.beam_search(
            *beam_step(writer, cache, predict),
            batch_size,
            length,
            start_token,
            end_token,
            beam_width,
            length_penalty,
        )
        return tokens[:, 0]

    return program


def copy_shares(model: keras.Model, source: Tensor, target: Tensor) -> Tensor:
    """Returns which share of each token's probability comes from copying.

    It is (1 - p_gen) P_copy(w) / P(w): near 1 where the token was copied, near 0 where
    it was generated.

    Args:
        model: A model of `pointer_generator` that can copy.
        source: Integers `(B, S)`.
        target: Integers `(B, T + 1)`: a start token, and then T tokens.

    Returns:
        float32 `(B, T)`, in [0, 1]: one share for each token but the first.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model can't copy, or a token isn't of its vocabulary.
    """
    checks.check("copy_shares", locals(), ACCEPTED)
    size, _ = _sizes("copy_shares", model)
    if "pointer" not in [layer.name for layer in model.layers]:
        raise ValueError(
            "copy_shares: `model` must be able to copy, received one of "
            "`pointer_generator(..., copy=False)`."
        )
    source = decoding.check_tokens("source", source, size)
    target = decoding.check_tokens("target", target, size)
    return decoding.kept_program(model, _make_copy_shares)(source, target)


def _make_copy_shares(model):
    pointer = model.get_layer("pointer")
    inner = keras.Model(model.input, pointer.input)  # up to the pointer's arguments

    @compiled
    def program(source, target):
        arguments = inner({"source": source, "target": target[:, :-1]})
        generated, copied = (
            ops.take_along_axis(part, target[:, 1:, None], axis=-1)[..., 0]
            for part in pointer.parts(*arguments)
        )
        return ops.sigmoid(copied - generated)  # C / (C + G), from logarithms

    return program


def _predict(model, states, context, source):
    """Returns the model's logits for outputs of the decoder."""
    logits = model.get_layer("embedding")(states, reverse=True)
    if "pointer" not in [layer.name for layer in model.layers]:
        return logits
    return model.get_layer("pointer")(states, context, logits, source)


def _sizes(where, model):
    """Returns V and the longest sequence of a model of `pointer_generator`."""
    names = {layer.name for layer in model.layers}
    if not {"encoder", "decoder", "embedding"} <= names:
        raise ValueError(
            f"{where}: `model` must be of `kit.pointer_generator`, received {model!r}."
        )
    positions = model.get_layer("decoder").get_layer("position_embedding")
    return model.output_shape[-1], positions.max_length
