"""Transformers: attention instead of recurrence.

Each position of a sequence has a query, a key and a value. Its output is the mean of
all values, weighted by how well its query matches their keys:

    Attention(Q, K, V) = softmax(Q K^T / sqrt(H)) V

Several heads do this in parallel, each with its own projections Q = x W_Q, K, V. After
attention follows a small network, applied to each position separately:

    FFN(x) = activation(x W_1 + b_1) W_2 + b_2

Both have a residual connection, LayerNorm and dropout around them. Three models consist
of such blocks:

    gpt              decoder blocks: each position sees itself and earlier ones; the
                     model predicts the next token
    bert             encoder blocks: each position sees all; a text becomes vectors
    encoder_decoder  an encoder reads the source; the decoder's blocks also attend to it
                     (cross-attention) while they write the target

While a decoder generates, keys and values of earlier tokens don't change. A cache keeps
them, so that a new token costs one step (`step`, `generate`, `translate`) instead of
the whole text again. Shapes: B batch, T and S positions of target and source, D width
(`hidden_dim`), N heads, H = D / N width of a head, V vocabulary, L length of the cache.

Paper: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; GPT-2: Radford et al.,
2019; BERT: Devlin et al., 2018, https://arxiv.org/abs/1810.04805; rotary positions: Su
et al., 2021, https://arxiv.org/abs/2104.09864; randomized positions: Ruoss et al.,
2023, https://arxiv.org/abs/2305.16843. Letters: d_model = D, h = N, d_k = H, d_ff =
`intermediate_dim`. Differences: no dropout of attention weights, which the backends'
fused attention doesn't have; LayerNorm before the sublayers instead of after them, as
in GPT-2 (`normalize_first=False` for the paper's order, which BERT has).
"""

import math
from collections.abc import Callable
from typing import Any

import keras
from keras import ops

from kit import checks, decoding, random
from kit.backend import Tensor, compiled
from kit.models import Model, Sequential

# Layers that process each position separately, so that `step` can use them.
POINTWISE = (
    keras.layers.Dense,
    keras.layers.Dropout,
    keras.layers.Embedding,
    keras.layers.LayerNormalization,
)


ACCEPTED = {
    "num_heads": checks.SIZE,
    "causal": checks.BOOL,
    "rotary_length": checks.SIZE | None,
    "use_bias": checks.BOOL,
    "max_length": checks.SIZE,
    "kind": checks.one_of("learned", "sinusoidal"),
    "embeddings_initializer": checks.INITIALIZER | None,
    "intermediate_dim": checks.SIZE | None,
    "activation": checks.ACTIVATION,
    "dropout": checks.SHARE,
    "normalize_first": checks.BOOL,
    "epsilon": checks.POSITIVE,
    "stddev": checks.WEIGHT,
    # rotate
    "x": checks.array("B T N H"),
    "positions": checks.one_of("learned", "sinusoidal", "rotary", "randomized", "none"),
    "random_length": checks.SIZE | None,
    # gpt, bert, encoder_decoder
    "vocabulary_size": checks.SIZE,
    "source_vocabulary_size": checks.SIZE,
    "target_vocabulary_size": checks.SIZE,
    "num_layers": checks.NUM_LAYERS,
    "hidden_dim": checks.SIZE,
    "mask_zero": checks.BOOL,
    "num_segments": checks.SIZE,
    "padding_token": checks.COUNT,
    # start, step, generate, translate
    "model": checks.MODEL,
    "batch_size": checks.SIZE,
    "length": checks.SIZE,
    "tokens": checks.array("B T", "integers"),
    "cache": checks.sequence(checks.instance(dict, what="what `start` returns")),
    "context": checks.sequence(checks.ARRAY | None, length=2) | None,
    "position": checks.array("", "integers", "[0, 2**31)"),
    "temperature": checks.WEIGHT,
    "top_k": checks.SIZE | None,
    "seed": checks.SEED,
    "use_cache": checks.BOOL,
    "start_token": checks.COUNT,
    "end_token": checks.SIZE,
    "beam_width": checks.SIZE,
    "length_penalty": checks.FINITE,
}


# --- Layers -----------------------------------------------------------------


@keras.saving.register_keras_serializable(package="kit")
class Attention(keras.layers.Layer):
    """Multi-head attention, using each backend's fused implementation.

    Args:
        num_heads: N. The inputs' width D must be a multiple of it.
        causal: If `True`, a position sees itself and earlier ones only.
        rotary_length: Longest sequence, to turn on rotary positions: queries and keys
            are rotated by angles that grow with their position, so that their product
            depends on their distance. The model then needs no `PositionEmbedding`.
            Defaults to `None`: no rotation.
        use_bias: Whether the four projections have biases. Defaults to `True`.

    Call arguments:
        x: Inputs of the queries, shape `(B, T, D)`.
        context: Inputs of keys and values, shape `(B, S, D)`. Defaults to `x`:
            self-attention.
        attention_mask: Booleans that broadcast to `(B, N, T, S)`, `True` where a
            position may attend. Defaults to `None`: everywhere.

    Output shape: `(B, T, D)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If D isn't a multiple of `num_heads` (with `rotary_length`, of twice
            that), or a sequence is longer than `rotary_length`.

    Example:

    ```python
    kit.transformer.Attention(4, causal=True)(np.ones((2, 10, 64))).shape  # (2, 10, 64)
    ```
    """

    def __init__(
        self, num_heads, causal=False, rotary_length=None, use_bias=True, **kwargs
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.num_heads = num_heads
        self.causal = causal
        self.rotary_length = rotary_length
        self.use_bias = use_bias
        self.supports_masking = True

    def build(self, x_shape, context_shape=None):
        """Builds the weights for inputs of this shape."""
        width, pieces = x_shape[-1], self.num_heads * (2 if self.rotary_length else 1)
        if width % pieces:
            raise ValueError(
                f"The inputs' width must be a multiple of {pieces} (num_heads="
                f"{self.num_heads}, rotary_length={self.rotary_length}), received "
                f"{width}."
            )
        for name in ("query", "key", "value", "output_projection"):
            dense = keras.layers.Dense(
                width, use_bias=self.use_bias, dtype=self.dtype_policy, name=name
            )
            asks = name in ("query", "output_projection") or context_shape is None
            dense.build(x_shape if asks else context_shape)
            setattr(self, name, dense)

    def call(self, x, context=None, attention_mask=None):
        """Attends from x to itself, or to the context."""
        longest = self.rotary_length
        if longest and x.shape[1] is not None:
            _check_length(x.shape[1], longest)
        keys, values = self.keys_values(x if context is None else context)
        return self.attend(x, keys, values, attention_mask, self.causal)

    def keys_values(self, context, start=0):
        """Returns K and V of `context`, `(B, S, N, H)`, with positions from `start`."""
        keys = self._split(self.key(context))
        if self.rotary_length:
            keys = rotate(keys, start + ops.arange(ops.shape(context)[1]))
        return keys, self._split(self.value(context))

    def attend(self, x, keys, values, attention_mask=None, causal=False, start=0):
        """Returns the attention's output for x, whose first position is `start`."""
        attended = ops.dot_product_attention(
            self._queries(x, start), keys, values, mask=attention_mask, is_causal=causal
        )
        return self.output_projection(ops.reshape(attended, ops.shape(x)))

    def step(self, x, cache, position):
        """Attends from new positions to themselves and to the cached ones.

        Args:
            x: The new positions, `(B, T, D)`.
            cache: Keys and values of earlier positions, `(B, L, N, H)` each.
            position: Index of the first new position: an integer, or a scalar tensor.

        Returns:
            `(B, T, D)`, and the cache with the new keys and values.
        """
        places = position + ops.arange(ops.shape(x)[1])  # (T,)
        keys, values = (
            ops.slice_update(old, (0, position, 0, 0), new)
            for old, new in zip(cache, self.keys_values(x, position), strict=True)
        )
        seen = ops.arange(keys.shape[1]) <= places[:, None]  # (T, L)
        y = self.attend(x, keys, values, seen[None, None], start=position)
        return y, (keys, values)

    def weights_of(self, x, context=None, attention_mask=None):
        """Returns the attention weights, `(B, N, T, S)`; each row sums to 1."""
        keys, _ = self.keys_values(x if context is None else context)
        scores = ops.einsum("btnh,bsnh->bnts", self._queries(x), keys)
        scores /= math.sqrt(keys.shape[-1])
        if self.causal:
            places = ops.arange(ops.shape(x)[1])
            scores = ops.where(places <= places[:, None], scores, -1e30)
        if attention_mask is not None:
            scores = ops.where(attention_mask, scores, -1e30)
        return ops.softmax(scores, axis=-1)

    def _queries(self, x, start=0):
        queries = self._split(self.query(x))
        if self.rotary_length:
            queries = rotate(queries, start + ops.arange(ops.shape(x)[1]))
        return queries

    def _split(self, x):
        """Splits (B, T, D) into heads (B, T, N, H)."""
        head = x.shape[-1] // self.num_heads
        return ops.reshape(x, (*ops.shape(x)[:2], self.num_heads, head))

    def compute_output_shape(self, x_shape, context_shape=None):
        """Returns the shape of x."""
        return tuple(x_shape)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return super().get_config() | {
            "num_heads": self.num_heads,
            "causal": self.causal,
            "rotary_length": self.rotary_length,
            "use_bias": self.use_bias,
        }


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """Rotates pairs of features by angles that grow with the position (RoPE).

    At position p, pair i of H/2 (features i and i + H/2) is rotated by
    p / 10000^(2i/H).

    Args:
        x: Queries or keys, `(B, T, N, H)`, H even.
        positions: Integers `(T,)`.

    Returns:
        The same shape.
    """
    checks.check("rotate", locals(), {**ACCEPTED, "positions": checks.array("T")})
    x = ops.convert_to_tensor(x)
    half = x.shape[-1] // 2
    frequencies = 10_000.0 ** (-ops.arange(half, dtype="float32") / half)
    angles = ops.cast(positions, "float32")[:, None, None] * frequencies  # (T, 1, H/2)
    cos, sin = (ops.cast(f(angles), x.dtype) for f in (ops.cos, ops.sin))
    a, b = x[..., :half], x[..., half:]
    return ops.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


@keras.saving.register_keras_serializable(package="kit")
class PositionEmbedding(keras.layers.Layer):
    """Adds to each position a vector that encodes the position.

    Args:
        max_length: Longest sequence.
        kind: `"learned"`, weights as in GPT-2 and BERT, or `"sinusoidal"`, the paper's
            sin(p / 10000^(2i/D)) and cosines. Defaults to `"learned"`.
        embeddings_initializer: Initializer of the learned vectors. Defaults to a normal
            distribution of standard deviation 0.02.
        random_length: L, to train with randomized positions: in each training batch,
            `max_length` of the positions 0 to L - 1 are drawn and sorted, and the first
            T of them are used. So no position has a meaning of its own, only their
            order, and vectors of later positions are trained, too. Outside of training,
            the positions are L // `max_length` apart. Defaults to `None`: 0, 1, 2, ...
        seed: Integer, or `None` for a seed from Python's `random`. Of the draws.

    Call arguments:
        x: Shape `(B, T, D)`.
        start: Index of the first position, an integer or a scalar tensor. Defaults
            to 0.

    Output shape: `(B, T, D)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `kind` is unknown, a sequence is longer than `max_length`, or
            `random_length` is less than it.

    Example:

    ```python
    kit.transformer.PositionEmbedding(128)(np.zeros((2, 10, 64))).shape  # (2, 10, 64)
    ```

    Reference: of randomized positions: Ruoss et al., 2023,
    https://arxiv.org/abs/2305.16843. Difference: they draw T positions, also outside of
    training, which a decoder can't do before it knows T.
    """

    def __init__(
        self,
        max_length,
        kind="learned",
        embeddings_initializer=None,
        random_length=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED | {"seed": checks.SEED | None})
        if random_length is not None and random_length < max_length:
            raise ValueError(
                f"PositionEmbedding: `random_length` must be at least max_length="
                f"{max_length}, received {random_length}."
            )
        self.random_length = random_length
        self.seed = seed
        if random_length is not None:
            self.seed_generator = keras.random.SeedGenerator(seed)
        self.max_length = max_length
        self.kind = kind
        self.embeddings_initializer = keras.initializers.get(
            embeddings_initializer or normal(0.02)
        )
        self.supports_masking = True

    def build(self, x_shape):
        """Builds the weights for inputs of this shape."""
        if self.kind == "learned":
            self.embeddings = self.add_weight(
                shape=(self.random_length or self.max_length, x_shape[-1]),
                initializer=self.embeddings_initializer,
                name="embeddings",
            )

    def call(self, x, start=0, training=None):
        """Adds the positions' vectors."""
        length, width = x.shape[1:]
        if length is not None:
            _check_length(length, self.max_length)
        positions = start + ops.arange(ops.shape(x)[1])
        if self.random_length is not None:
            positions = ops.take(self._places(training), positions)
        if self.kind == "learned":
            return x + ops.take(self.embeddings, positions, axis=0)
        frequencies = 10_000.0 ** (-ops.arange(0, width, 2, dtype="float32") / width)
        angles = ops.cast(positions, "float32")[:, None] * frequencies  # (T, D/2)
        waves = ops.stack([ops.sin(angles), ops.cos(angles)], axis=-1)  # (T, D/2, 2)
        waves = ops.reshape(waves, (-1, 2 * frequencies.shape[0]))[:, :width]
        return x + ops.cast(waves, x.dtype)

    def _places(self, training):
        """Returns the randomized positions, integers `(max_length,)` in order."""
        if not training:
            return ops.arange(self.max_length) * (self.random_length // self.max_length)
        words = keras.random.uniform((self.random_length,), seed=self.seed_generator)
        return ops.sort(ops.argsort(words)[: self.max_length])

    def compute_output_shape(self, x_shape):
        """Returns the shape of x."""
        return tuple(x_shape)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return super().get_config() | {
            "max_length": self.max_length,
            "kind": self.kind,
            "embeddings_initializer": keras.initializers.serialize(
                self.embeddings_initializer
            ),
            "random_length": self.random_length,
            "seed": self.seed,
        }


@keras.saving.register_keras_serializable(package="kit")
class EncoderBlock(keras.layers.Layer):
    """Self-attention and a feed-forward network, each with a residual connection.

        x = x + dropout(attention(norm(x)))
        x = x + dropout(FFN(norm(x)))

    Args:
        num_heads: N.
        intermediate_dim: Width of the feed-forward network's hidden layer.
        activation: Activation of the hidden layer. Defaults to `"gelu"`.
        dropout: Share of each sublayer's outputs to drop in training. Defaults to 0.
        normalize_first: `False` for LayerNorm after the residual connection, as in
            the paper and BERT: x = norm(x + dropout(attention(x))). Defaults to `True`.
        epsilon: LayerNorm's epsilon. Defaults to 1e-5.
        rotary_length: See `Attention`.

    Call arguments:
        x: Shape `(B, T, D)`.
        mask: Booleans `(B, T)`, `False` at padding, which isn't attended to. Keras
            passes an Embedding's mask on automatically.

    Output shape: `(B, T, D)`.

    Example:

    ```python
    kit.transformer.EncoderBlock(4, 256)(np.ones((2, 10, 64))).shape  # (2, 10, 64)
    ```
    """

    causal = False

    def __init__(
        self,
        num_heads,
        intermediate_dim,
        activation="gelu",
        dropout=0.0,
        normalize_first=True,
        epsilon=1e-5,
        rotary_length=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        required = {"intermediate_dim": checks.SIZE}
        checks.check(self, locals(), {**ACCEPTED, **required})
        self.num_heads = num_heads
        self.intermediate_dim = intermediate_dim
        self.activation = keras.activations.get(activation)
        self.dropout = dropout
        self.normalize_first = normalize_first
        self.epsilon = epsilon
        self.rotary_length = rotary_length
        self.supports_masking = True
        self.attention = Attention(
            num_heads,
            self.causal,
            rotary_length,
            dtype=self.dtype_policy,
            name="attention",
        )
        self.attention_norm = self._norm("attention_norm")
        self.feed_forward_norm = self._norm("feed_forward_norm")
        self.dropout_layer = keras.layers.Dropout(dropout, dtype=self.dtype_policy)

    def _norm(self, name):
        return keras.layers.LayerNormalization(
            epsilon=self.epsilon, dtype=self.dtype_policy, name=name
        )

    def build(self, x_shape):
        """Builds the weights for inputs of this shape."""
        width = x_shape[-1]
        self.attention.build(x_shape)
        self.attention_norm.build(x_shape)
        self.feed_forward_norm.build(x_shape)
        self.intermediate = keras.layers.Dense(
            self.intermediate_dim,
            self.activation,
            dtype=self.dtype_policy,
            name="intermediate",
        )
        self.intermediate.build(x_shape)
        self.output_dense = keras.layers.Dense(
            width, dtype=self.dtype_policy, name="output_dense"
        )
        self.output_dense.build((*x_shape[:-1], self.intermediate_dim))

    def call(self, x, mask=None, training=None):
        """Applies the block to a whole sequence."""
        mask = _where_to_look(mask)
        x = self.residual(
            x,
            self.attention_norm,
            lambda x: self.attention(x, attention_mask=mask),
            training,
        )
        return self.residual(x, self.feed_forward_norm, self.feed_forward, training)

    def feed_forward(self, x):
        """Returns FFN(x), for each position separately."""
        return self.output_dense(self.intermediate(x))

    def residual(self, x, norm, sublayer, training=None):
        """Applies a sublayer with its residual connection, LayerNorm and dropout."""
        if self.normalize_first:
            return x + self.dropout_layer(sublayer(norm(x)), training=training)
        return norm(x + self.dropout_layer(sublayer(x), training=training))

    def compute_output_shape(self, x_shape):
        """Returns the shape of x."""
        return tuple(x_shape)

    def get_config(self):
        """Returns the arguments of the constructor."""
        return super().get_config() | {
            "num_heads": self.num_heads,
            "intermediate_dim": self.intermediate_dim,
            "activation": keras.activations.serialize(self.activation),
            "dropout": self.dropout,
            "normalize_first": self.normalize_first,
            "epsilon": self.epsilon,
            "rotary_length": self.rotary_length,
        }


@keras.saving.register_keras_serializable(package="kit")
class DecoderBlock(EncoderBlock):
    """An encoder block with causal attention and, optionally, cross-attention.

        x = x + dropout(causal_attention(norm(x)))
        x = x + dropout(cross_attention(norm(x), context))    if there is a context
        x = x + dropout(FFN(norm(x)))

    Args: those of `EncoderBlock`.

    Call arguments:
        x: Shape `(B, T, D)`.
        context: The encoder's outputs, `(B, S, D)`. Defaults to `None`: no
            cross-attention, as in GPT. The first call decides which.
        mask: Booleans `(B, T)`, `False` at padding.
        context_mask: Booleans `(B, S)`. Keras passes both masks on automatically.

    Output shape: `(B, T, D)`.

    Example:

    ```python
    block = kit.transformer.DecoderBlock(4, 256)
    block(np.ones((2, 10, 64)), context=np.ones((2, 7, 64))).shape  # (2, 10, 64)
    ```
    """

    causal = True

    def build(self, x_shape, context_shape=None):
        """Builds the weights for inputs of this shape."""
        super().build(x_shape)
        self.cross_attention: Any = None
        if context_shape is not None:
            self.cross_attention = Attention(
                self.num_heads, dtype=self.dtype_policy, name="cross_attention"
            )
            self.cross_attention.build(x_shape, context_shape)
            self.cross_attention_norm = self._norm("cross_attention_norm")
            self.cross_attention_norm.build(x_shape)

    def call(self, x, mask=None, training=None, context=None, context_mask=None):
        """Applies the block to a whole sequence."""
        self._check_context(context)
        mask, context_mask = _where_to_look(mask), _where_to_look(context_mask)
        x = self.residual(
            x,
            self.attention_norm,
            lambda x: self.attention(x, attention_mask=mask),
            training,
        )
        if self.cross_attention is not None:
            x = self.residual(
                x,
                self.cross_attention_norm,
                lambda x: self.cross_attention(x, context, context_mask),
                training,
            )
        return self.residual(x, self.feed_forward_norm, self.feed_forward, training)

    def _check_context(self, context):
        if (context is None) != (self.cross_attention is None):
            was, now = (
                ("without", "with") if context is not None else ("with", "without")
            )
            raise ValueError(f"{self.name}: built {was} a context, called {now} one.")

    def start(self, batch_size, length, context=None, context_mask=None):
        """Returns an empty cache, with the context's keys and values."""
        head = self.attention.query.units // self.num_heads
        shape = (batch_size, length, self.num_heads, head)
        self._check_context(context)
        cache: dict[str, Any] = {"own": (ops.zeros(shape, self.compute_dtype),) * 2}
        if self.cross_attention is not None:
            keys, values = self.cross_attention.keys_values(context)
            if context_mask is None:
                context_mask = ops.ones(context.shape[:2], "bool")
            cache |= {"context": (keys, values, context_mask)}
        return cache

    def step(self, x, cache, position):
        """Applies the block to new positions `(B, T, D)`; see `Attention.step`."""
        cache = dict(cache)

        def attend(x):
            y, cache["own"] = self.attention.step(x, cache["own"], position)
            return y

        def attend_to_context(x):
            keys, values, mask = cache["context"]
            return self.cross_attention.attend(x, keys, values, _where_to_look(mask))

        x = self.residual(x, self.attention_norm, attend)
        if self.cross_attention is not None:
            x = self.residual(x, self.cross_attention_norm, attend_to_context)
        return self.residual(x, self.feed_forward_norm, self.feed_forward), cache

    def compute_output_shape(self, x_shape, context_shape=None):
        """Returns the shape of x."""
        return tuple(x_shape)


def _check_length(length, longest):
    if length > longest:
        raise ValueError(
            f"The sequence has {length} positions, more than the {longest} that the "
            "model was made for (max_length)."
        )


def _where_to_look(mask):
    """Turns a padding mask (B, S) into an attention mask (B, 1, 1, S)."""
    return None if mask is None else mask[:, None, None, :]


def normal(stddev: float) -> keras.initializers.Initializer:
    """Returns the initializer of GPT-2's and BERT's embeddings."""
    checks.check("normal", locals(), ACCEPTED)
    return keras.initializers.RandomNormal(stddev=stddev)


# --- Models -----------------------------------------------------------------


def gpt(
    vocabulary_size: int,
    max_length: int,
    num_layers: int = 4,
    num_heads: int = 4,
    hidden_dim: int = 128,
    intermediate_dim: int | None = None,
    dropout: float = 0.0,
    activation: Any = "gelu",
    positions: str = "learned",
    mask_zero: bool = False,
    epsilon: float = 1e-5,
) -> Sequential:
    """Builds a language model of decoder blocks, as GPT-2.

    Args:
        vocabulary_size: V.
        max_length: Longest sequence that it reads at once.
        num_layers: Number of blocks. Defaults to 4.
        num_heads: N. Defaults to 4.
        hidden_dim: D, a multiple of N. Defaults to 128.
        intermediate_dim: Of the feed-forward networks. Defaults to 4 D.
        dropout: Share of the embeddings and of each sublayer's outputs to drop in
            training, in [0, 1). Defaults to 0.
        activation: Of the feed-forward networks. Defaults to `"gelu"`.
        positions: `"learned"` as in GPT-2, `"sinusoidal"` as in the paper, `"rotary"`
            (see `Attention`), `"randomized"` sinusoidal ones out of four times as many
            as `max_length` (see `PositionEmbedding`), or `"none"`: causal attention can
            tell the order without. Defaults to `"learned"`.
        mask_zero: If `True`, token 0 is padding, which the loss ignores.
        epsilon: Of LayerNorm. Defaults to 1e-5.

    Returns:
        A `kit.Sequential` from integers `(B, T)` to logits `(B, T, V)` of each next
        token.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, `positions` unknown, or D not a
            multiple of N.

    Example:

    ```python
    model = kit.gpt(50, max_length=64)
    model(np.zeros((2, 10), "int32")).shape  # (2, 10, 50)
    ```
    """
    _check_sizes("gpt", locals())
    model = Sequential([keras.Input((None,), dtype="int32")], name="gpt")
    for layer in _embedding_layers(
        vocabulary_size, hidden_dim, max_length, positions, mask_zero, dropout
    ):
        model.add(layer)
    for i in range(num_layers):
        block = DecoderBlock(
            num_heads,
            intermediate_dim or 4 * hidden_dim,
            activation=activation,
            dropout=dropout,
            epsilon=epsilon,
            rotary_length=max_length if positions == "rotary" else None,
            name=f"block_{i}",
        )
        model.add(block)
    model.add(keras.layers.LayerNormalization(epsilon=epsilon, name="final_norm"))
    model.add(keras.layers.Dense(vocabulary_size, name="logits"))
    return model


def bert(
    vocabulary_size: int,
    max_length: int = 512,
    num_layers: int = 12,
    num_heads: int = 12,
    hidden_dim: int = 768,
    intermediate_dim: int | None = None,
    dropout: float = 0.1,
    activation: Any = "gelu",
    num_segments: int = 2,
    padding_token: int = 0,
    epsilon: float = 1e-12,
) -> Model:
    """Builds BERT's encoder; the defaults are BERT-base.

    `kit.load_bert` builds one with published weights.

    Args:
        vocabulary_size: V.
        max_length: Longest sequence. Defaults to 512.
        num_layers: Number of blocks. Defaults to 12.
        num_heads: N. Defaults to 12.
        hidden_dim: D, a multiple of N. Defaults to 768.
        intermediate_dim: Of the feed-forward networks. Defaults to 4 D.
        dropout: Share of the embeddings and of each sublayer's outputs to drop in
            training, in [0, 1). Defaults to 0.1.
        activation: Of the feed-forward networks. Defaults to `"gelu"`, the exact one.
        num_segments: Number of texts that a sequence may contain. Defaults to 2.
        padding_token: Token that isn't attended to. Defaults to 0.
        epsilon: Of LayerNorm. Defaults to 1e-12.

    Returns:
        A `kit.Model` from a dict of `"token_ids"` and `"segment_ids"` (0 for tokens of
        the sequence's first text, 1 for the second), integers `(B, T)`, to a dict of
        `"sequence_output"`, `(B, T, D)`, and `"pooled_output"`, `(B, D)`: the first
        position after a Dense layer with tanh.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, or D not a multiple of N.

    Example:

    ```python
    model = kit.bert(100, num_layers=2, num_heads=2, hidden_dim=32)
    tokens = np.array([[5, 6, 7, 0]])
    outputs = model({"token_ids": tokens, "segment_ids": np.zeros_like(tokens)})
    outputs["pooled_output"].shape  # (1, 32)
    ```
    """
    _check_sizes("bert", locals())
    token_ids = keras.Input((None,), dtype="int32", name="token_ids")
    segment_ids = keras.Input((None,), dtype="int32", name="segment_ids")
    x = keras.layers.Embedding(
        vocabulary_size, hidden_dim, normal(0.02), name="token_embedding"
    )(token_ids)
    x += keras.layers.Embedding(
        num_segments, hidden_dim, normal(0.02), name="segment_embedding"
    )(segment_ids)
    x = PositionEmbedding(max_length, name="position_embedding")(x)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="embedding_norm")(x)
    x = keras.layers.Dropout(dropout, name="embedding_dropout")(x)
    mask = token_ids != padding_token
    for i in range(num_layers):
        x = EncoderBlock(
            num_heads,
            intermediate_dim or 4 * hidden_dim,
            activation=activation,
            dropout=dropout,
            normalize_first=False,
            epsilon=epsilon,
            name=f"block_{i}",
        )(x, mask=mask)
    pooled = keras.layers.Dense(hidden_dim, "tanh", name="pooler")(x[:, 0])
    return Model(
        {"token_ids": token_ids, "segment_ids": segment_ids},
        {"sequence_output": x, "pooled_output": pooled},
        name="bert",
    )


def encoder_decoder(
    source_vocabulary_size: int,
    target_vocabulary_size: int,
    max_length: int,
    num_layers: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 128,
    intermediate_dim: int | None = None,
    dropout: float = 0.0,
    activation: Any = "relu",
    positions: str = "sinusoidal",
    epsilon: float = 1e-5,
) -> Model:
    """Builds the paper's model, which maps a source sequence to a target sequence.

    Token 0 is padding in both.

    Args:
        source_vocabulary_size: V of the source.
        target_vocabulary_size: V of the target.
        max_length: Length of the longest source or target.
        num_layers: Number of blocks of the encoder, and of the decoder. Defaults to 2.
        num_heads: N. Defaults to 4.
        hidden_dim: D, a multiple of N. Defaults to 128.
        intermediate_dim: Of the feed-forward networks. Defaults to 4 D.
        dropout: As in `gpt`.
        activation: Of the feed-forward networks. Defaults to `"relu"`.
        positions: As in `gpt`; with `"none"`, the encoder reads its source as a bag of
            tokens. Defaults to `"sinusoidal"`.
        epsilon: Of LayerNorm. Defaults to 1e-5.

    Returns:
        A `kit.Model` from a dict of `"source"`, `(B, S)`, and `"target"`, `(B, T)`,
        the target with a start token before it and without its last token, to logits
        `(B, T, V)` of each next token. `translate` generates with it.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a number is out of range, `positions` unknown, or D not a
            multiple of N.

    Example:

    ```python
    model = kit.encoder_decoder(30, 40, max_length=20)
    source, target = np.ones((2, 7), "int32"), np.ones((2, 10), "int32")
    model({"source": source, "target": target}).shape  # (2, 10, 40)
    ```
    """
    _check_sizes("encoder_decoder", locals())
    options: Any = {
        "num_heads": num_heads,
        "intermediate_dim": intermediate_dim or 4 * hidden_dim,
        "activation": activation,
        "dropout": dropout,
        "epsilon": epsilon,
        "rotary_length": max_length if positions == "rotary" else None,
    }

    def embed(tokens, vocabulary_size):
        for layer in _embedding_layers(
            vocabulary_size, hidden_dim, max_length, positions, True, dropout
        ):
            tokens = layer(tokens)
        return tokens

    source = keras.Input((None,), dtype="int32", name="source")
    x = embed(source, source_vocabulary_size)
    for i in range(num_layers):
        x = EncoderBlock(**options, name=f"block_{i}")(x)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="final_norm")(x)
    encoder = keras.Model(source, x, name="encoder")

    target = keras.Input((None,), dtype="int32", name="target")
    context = keras.Input((None, hidden_dim), name="context")
    x = embed(target, target_vocabulary_size)
    for i in range(num_layers):
        x = DecoderBlock(**options, name=f"block_{i}")(x, context=context)
    x = keras.layers.LayerNormalization(epsilon=epsilon, name="final_norm")(x)
    logits = keras.layers.Dense(target_vocabulary_size, name="logits")(x)
    decoder = keras.Model([target, context], logits, name="decoder")

    inputs = {"source": source, "target": target}
    logits = decoder([target, encoder(source)])
    return Model(inputs, logits, name="encoder_decoder")


def _embedding_layers(
    vocabulary_size, hidden_dim, max_length, positions, mask_zero, dropout
):
    """Returns layers from integers (B, T) to vectors (B, T, D) with positions."""
    layers: list[Any] = [
        keras.layers.Embedding(
            vocabulary_size, hidden_dim, normal(0.02), mask_zero=mask_zero
        )
    ]
    if positions in ("sinusoidal", "randomized"):
        # Embeddings of size 0.02 would vanish beside sines of size 1.
        layers[0].embeddings_initializer = normal(1.0)
    if positions == "randomized":
        layers.append(
            PositionEmbedding(max_length, "sinusoidal", random_length=4 * max_length)
        )
    elif positions in ("learned", "sinusoidal"):
        layers.append(PositionEmbedding(max_length, positions))
    if dropout:
        layers.append(keras.layers.Dropout(dropout))
    return layers


def _check_sizes(name, arguments):
    checks.check(name, arguments, ACCEPTED)
    if arguments["hidden_dim"] % arguments["num_heads"]:
        raise ValueError(
            f"{name}: hidden_dim={arguments['hidden_dim']} must be a multiple of "
            f"num_heads={arguments['num_heads']}."
        )


# --- Generation -------------------------------------------------------------


def start(model: keras.Model, batch_size: int, length: int, context=None) -> list:
    """Returns an empty cache, for a model that has read nothing yet.

    Args:
        model: A model of `gpt`, or the decoder of an `encoder_decoder`.
        batch_size: B.
        length: L, capacity of the cache in tokens.
        context: A pair: the encoder's outputs `(B, S, D)`, and their mask, `(B, S)` or
            `None`. Defaults to `None`: no context.

    Returns:
        A cache for each decoder block.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model can't be run step by step, or `length` is more than
            its `max_length`.
    """
    checks.check("start", locals(), ACCEPTED)
    layers, longest = _layers(model), _max_length(model)
    if longest is not None and length > longest:
        raise ValueError(
            f"length={length} is more than the model's max_length of {longest}."
        )
    return [
        layer.start(batch_size, length, *(context or ()))
        for layer in layers
        if isinstance(layer, DecoderBlock)
    ]


def step(model: keras.Model, tokens: Tensor, cache: list, position) -> tuple:
    """Reads new tokens; the cache has the earlier ones.

    The logits are those of `model(all tokens so far)` at the new positions, if there is
    no padding among them. Compile it: see the second line of the example.

    Args:
        model: As in `start`.
        tokens: Integers `(B, T)`: one each, or a whole prompt at once.
        cache: From `start` or the last `step`.
        position: Index of the first new token: an integer, or a scalar tensor. It must
            be within the cache's length, which compiled programs don't check.

    Returns:
        Logits `(B, T, V)`, and the new cache.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model can't be run step by step.

    Example:

    ```python
    model = kit.gpt(50, max_length=64)
    step = kit.compiled(lambda *args: kit.transformer.step(model, *args))
    cache = kit.transformer.start(model, batch_size=1, length=64)
    for position, token in enumerate([3, 14, 15]):
        logits, cache = step(np.array([[token]]), cache, position)
    ```
    """
    checks.check("step", locals(), ACCEPTED)
    layers = _layers(model)
    if len(cache) != (number := sum(isinstance(x, DecoderBlock) for x in layers)):
        raise ValueError(
            f"step: `cache` must have an element for each of {number} decoder blocks, "
            f"as `start` returns it, received {len(cache)}."
        )
    x, old, new = tokens, iter(cache), []
    for layer in layers:
        if isinstance(layer, DecoderBlock):
            x, layer_cache = layer.step(x, next(old), position)
            new.append(layer_cache)
        elif isinstance(layer, PositionEmbedding):
            x = layer(x, start=position)
        else:
            x = layer(x)
    return x, new


def generate(
    model: keras.Model,
    prompt: Tensor,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    seed: int = 0,
    use_cache: bool = True,
) -> Tensor:
    """Continues sequences of integers by sampling tokens from the model's predictions.

    A compiled loop carries the cache: a token costs one step. A text may grow beyond
    the model's `max_length`: when the cache is full, the model reads the last half of
    it again, and forgets the rest.

    Args:
        model: A model of `gpt`.
        prompt: Integers of shape `(B, P)`, at least one each.
        length: Number of tokens to generate.
        temperature: Divides the logits: below 1, probable tokens become more probable;
            0 always takes the most probable one. Defaults to 1.
        top_k: Sample from the k most probable tokens only. Defaults to `None`, all.
        seed: Integer.
        use_cache: `False` reads the whole text again for each token: slower, with the
            same tokens up to rounding. Defaults to `True`.

    Returns:
        The generated tokens, int32 of shape `(B, length)`; the same on every backend up
        to rounding. Never 0 if that is padding (`mask_zero`).

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the model can't be run step by step, or reads fewer than two
            tokens at once; if `prompt` isn't `(B, P)` integers of the vocabulary, or
            contains padding; if a number is out of its range.

    Example:

    ```python
    model = kit.gpt(50, max_length=64)
    kit.transformer.generate(model, [[3, 14, 15]], 20, temperature=0.7).shape  # (1, 20)
    ```
    """
    checks.check("generate", locals(), ACCEPTED)
    _layers(model)
    size = model.output_shape[-1]
    prompt = decoding.check_generation(prompt, size, length, temperature, top_k)
    pads = any(getattr(layer, "mask_zero", False) for layer in model.layers)
    if pads and bool(ops.any(prompt == 0)):
        raise ValueError(
            "`prompt` holds token 0, which is padding to this model (mask_zero=True): "
            "continue texts of one length at a time."
        )
    key, text, end = random.key(seed), prompt, prompt.shape[1] + length
    longest = _max_length(model) or end
    if longest < 2:
        raise ValueError(f"The model's max_length is {longest}; 2 are needed to write.")
    while text.shape[1] < end:
        seen = text
        if seen.shape[1] >= longest:
            seen = text[:, -max(1, longest // 2) :]
        # The last piece is as long as the others, to reuse their compiled program.
        count = longest - seen.shape[1]
        if text is prompt:
            count = min(count, length)
        options = (count, top_k, temperature == 0, use_cache, pads)
        program = decoding.kept_program(model, _make_generate, *options)
        tokens, key = program(seen, float(temperature), key)
        text = ops.concatenate([text, tokens], axis=1)
    return text[:, prompt.shape[1] : end]


def _make_generate(model, length, top_k, greedy, use_cache, pads):
    def read(token, cache, position):
        logits, cache = step(model, token[:, None], cache, position)
        return allowed(logits[:, 0]), cache

    def read_all(token, text, position):
        text = ops.where(ops.arange(text.shape[1]) == position, token[:, None], text)
        return allowed(ops.take(model(text), position, axis=1)), text

    def allowed(logits):
        return decoding.without_padding(logits) if pads else logits

    @compiled
    def program(prompt, temperature, key):
        batch_size, size = prompt.shape
        if use_cache:
            state = start(model, batch_size, size + length)
            logits, state = step(model, prompt, state, 0)
        else:
            state = ops.pad(prompt, ((0, 0), (0, length)))
            logits = model(prompt)
        if not greedy:
            key, draw_key = ops.unstack(random.split(key))
        tokens = decoding.sample(
            read if use_cache else read_all,
            state,
            allowed(logits[:, -1]),
            length,
            None if greedy else draw_key,
            temperature,
            top_k,
            start=size,
        )
        return tokens, key

    return program


def translate(
    model: keras.Model,
    source: Tensor,
    start_token: int,
    end_token: int,
    length: int,
    beam_width: int = 1,
    length_penalty: float = 0.0,
) -> Tensor:
    """Generates the most probable target sequences, greedily or by beam search.

    The source is read once; then each token costs one step.

    Args:
        model: A model of `encoder_decoder`.
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
        ValueError: If the model isn't of `encoder_decoder`, or a number is out of its
            range.

    Example:

    ```python
    model = kit.encoder_decoder(30, 40, max_length=20)
    kit.transformer.translate(model, [[3, 14, 15]], 1, 2, length=20).shape  # (1, 20)
    ```
    """
    checks.check("translate", locals(), ACCEPTED)
    source = decoding.check_source(model, source)
    longest = _max_length(model.get_layer("decoder"))
    decoding.check_writing(locals(), model.output_shape[-1], longest)
    program = decoding.kept_program(
        model,
        _make_translate,
        start_token,
        end_token,
        length,
        beam_width,
        length_penalty,
    )
    return program(source)[0][:, 0]


def _make_translate(model, start_token, end_token, length, beam_width, length_penalty):
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")

    @compiled
    def program(source):
        batch_size = source.shape[0]
        context = ops.repeat(encoder(source), beam_width, axis=0)
        mask = ops.repeat(source != 0, beam_width, axis=0)
        cache = start(decoder, batch_size * beam_width, length, (context, mask))

        return decoding.beam_search(
            *beam_step(decoder, cache),
            batch_size,
            length,
            start_token,
            end_token,
            beam_width,
            length_penalty,
        )

    return program


def beam_step(
    decoder: keras.Model, cache: list, predict: Callable = lambda outputs: outputs
) -> tuple[Callable, list]:
    """Returns the step of `kit.decoding.beam_search`, and its state before it.

    Beams are reordered, together with their own keys and values; the keys and values of
    the source are the same for all beams.

    Args:
        decoder: The decoder, as for `step`.
        cache: The result of `start`.
        predict: Function from the decoder's outputs `(B, 1, ...)` to logits
            `(B, 1, V)`. Defaults to one that returns them as they are.
    """

    def read(token, own, position):
        blocks = [
            block | {"own": keys_values}
            for block, keys_values in zip(cache, own, strict=True)
        ]
        outputs, blocks = step(decoder, token[:, None], blocks, position)
        logits = decoding.without_padding(predict(outputs)[:, 0])
        return logits, [block["own"] for block in blocks]

    return read, [block["own"] for block in cache]


def _layers(model):
    """Returns the layers in order, after a check that they can run step by step."""
    layers = [x for x in model.layers if not isinstance(x, keras.layers.InputLayer)]
    for layer in layers:
        if not isinstance(layer, (DecoderBlock, PositionEmbedding, *POINTWISE)):
            raise ValueError(
                f"The layer {layer.name!r} ({type(layer).__name__}) looks at other "
                "positions than its own, so the model can't be run step by step: "
                "models of `kit.gpt` can, and the decoder of `kit.encoder_decoder`."
            )
    return layers


def _max_length(model):
    lengths = [
        layer.max_length
        if isinstance(layer, PositionEmbedding)
        else getattr(layer, "rotary_length", None)
        for layer in model.layers
    ]
    return min(filter(None, lengths), default=None)
