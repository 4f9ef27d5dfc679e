"""
Transformer, step by step
=========================

We begin with a model that sees one character, and let it see more: the mean of the
past, then the parts of the past that matter, several at once, in order, several
times. The last step is `kit/transformer.py`.
"""

import time

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kit

train_text, valid_text, _ = kit.data.english_text()  # Python's documentation
vocabulary = kit.data.Characters.of(train_text)
train_tokens, valid_tokens = map(vocabulary.encode, (train_text, valid_text))
V, T, D, BATCH, STEPS = len(vocabulary), 32, 48, 32, 800
print(len(train_tokens), "characters,", V, "different ones")

# %%
# Step 1: one character
# ---------------------
#
# The model predicts the next character from the present one: a table with a row of
# logits for each character. The loss is the cross-entropy, here in bits: 0 if the next
# character is certain, log2(V) if the model knows nothing.


def windows(tokens, rng):
    """Returns BATCH windows of T + 1 characters."""
    starts = rng.integers(len(tokens) - T - 1, size=BATCH)
    return tokens[starts[:, None] + np.arange(T + 1)]


def bits(model, tokens):
    """Returns the mean cross-entropy of the next characters, in bits."""
    logits = model(tokens[:, :-1], training=True)
    losses = keras.losses.sparse_categorical_crossentropy(
        tokens[:, 1:], logits, from_logits=True
    )
    return ops.mean(losses) / np.log(2)


def train(model, learning_rate=5e-3, seed=0):
    """Trains for STEPS steps; returns the loss in bits on training and unseen text."""
    kit.initialize_weights(model, seed)
    optimizer = keras.optimizers.Adam(learning_rate)

    @kit.compiled
    def step(tokens):
        return kit.minimize(
            lambda: bits(model, tokens), model.trainable_variables, optimizer
        )

    rng = np.random.default_rng(seed)
    losses = [float(step(windows(train_tokens, rng))) for _ in range(STEPS)]
    measure = kit.compiled(lambda tokens: bits(model, tokens))
    unseen = np.mean([float(measure(windows(valid_tokens, rng))) for _ in range(40)])
    return losses, unseen


def tokens_in():
    return keras.Input((T,), dtype="int32")


inputs = tokens_in()
bigram = keras.Model(inputs, keras.layers.Embedding(V, V)(inputs))
curves = {"1 one character": train(bigram, learning_rate=0.05)}


def show(curves, title):
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    for name, (losses, unseen) in curves.items():
        smooth = np.convolve(losses, np.ones(20) / 20, mode="valid")
        axis.plot(smooth, label=f"{name}: {unseen:.2f} bits on unseen text")
    axis.set(xlabel="gradient step", ylabel="bits per character", title=title)
    axis.legend()


show(curves, "Step 1: a table")

# %%
# Step 2: the mean of the past
# ----------------------------
#
# Characters become vectors, and each position sees the mean of all vectors until it. A
# triangular matrix computes all means at once, and no position sees the future.

triangle = np.tril(np.ones((T, T), "float32"))
uniform = triangle / triangle.sum(axis=1, keepdims=True)


class MeanOfPast(keras.layers.Layer):
    def call(self, x):  # (B, T, D)
        return ops.einsum("ts,bsd->btd", uniform, x)


inputs = tokens_in()
x = keras.layers.Embedding(V, D)(inputs)
x = x + MeanOfPast()(x)
curves["2 mean of the past"] = train(keras.Model(inputs, keras.layers.Dense(V)(x)))
show(curves, "Step 2: all of the past, all of it equally")

# %%
# Step 3: attention
# -----------------
#
# Not all of the past matters equally. Each position asks by a query what it looks for,
# and offers a key. Where query and key match, it takes the value:
#
# .. math::
#    \mathrm{Attention}(Q, K, V) = \mathrm{softmax}\bigl(Q K^\top / \sqrt{H}\bigr) V
#
# The root keeps the products small: with large ones, softmax would take one position
# only, and its gradient would vanish.


class Attention(keras.layers.Layer):
    """One head."""

    def __init__(self, size):
        super().__init__()
        self.size = size
        self.query, self.key, self.value = (keras.layers.Dense(size) for _ in range(3))

    def build(self, shape):
        for layer in (self.query, self.key, self.value):
            layer.build(shape)

    def weights_at(self, x):
        scores = ops.einsum("bth,bsh->bts", self.query(x), self.key(x)) / np.sqrt(
            self.size
        )
        scores = ops.where(triangle > 0, scores, -1e9)  # not the future
        return ops.softmax(scores)

    def call(self, x):
        return ops.matmul(self.weights_at(x), self.value(x))


inputs = tokens_in()
embedding, head = keras.layers.Embedding(V, D), Attention(D)
x = embedding(inputs)
x = x + head(x)
curves["3 attention"] = train(keras.Model(inputs, keras.layers.Dense(V)(x)))
show(curves, "Step 3: what matters of the past")

# %%
# What the head looks at, row by row, in a piece of unseen text:

piece = valid_tokens[1000 : 1000 + T][None]
weights = ops.convert_to_numpy(head.weights_at(embedding(piece)))[0]
figure, axis = plt.subplots(figsize=(5.5, 5), layout="constrained")
axis.imshow(weights[:32, :32], cmap="viridis")
letters = list(vocabulary.decode(piece[0, :32]).replace("\n", "¶"))
axis.set_xticks(range(32), letters, fontsize=7)
axis.set_yticks(range(32), letters, fontsize=7)
axis.set(xlabel="looks at", ylabel="position", title="Attention weights of one head")

# %%
# Step 4: positions
# -----------------
#
# Attention is a weighted mean, which doesn't know the order: "on" and "no" look the
# same to it. Adding a vector to each position, learned like the characters' vectors,
# tells.
#
# Step 5: several heads
# ---------------------
#
# One head can look at one kind of thing. Four heads of a quarter of the size cost as
# much, and look at four.


def attending(heads, positions=True):
    inputs = tokens_in()
    x = keras.layers.Embedding(V, D)(inputs)
    if positions:
        x = kit.transformer.PositionEmbedding(T)(x)
    parts = [Attention(D // heads)(x) for _ in range(heads)]
    x = x + (keras.layers.Concatenate()(parts) if heads > 1 else parts[0])
    return keras.Model(inputs, keras.layers.Dense(V)(x))


curves["4 positions"] = train(attending(heads=1))
curves["5 four heads"] = train(attending(heads=4))
show(curves, "Steps 4 and 5: order, and four heads")

# %%
# Step 6: blocks
# --------------
#
# After attention, a small network processes each position. Both are added to their
# input (residual connections), and normalize it first. This makes a block; blocks can
# be stacked. Without the residual connections, each block has to pass on all that the
# next ones need, and a stack of three learns slowly:


def block(x, residual):
    def add(x, y):
        return x + y if residual else y

    parts = [Attention(D // 4)(keras.layers.LayerNormalization()(x)) for _ in range(4)]
    x = add(x, keras.layers.Dense(D)(keras.layers.Concatenate()(parts)))
    y = keras.layers.Dense(4 * D, activation="gelu")(
        keras.layers.LayerNormalization()(x)
    )
    return add(x, keras.layers.Dense(D)(y))


def stacked(blocks, residual=True):
    inputs = tokens_in()
    x = keras.layers.Embedding(V, D)(inputs)
    x = kit.transformer.PositionEmbedding(T)(x)
    for _ in range(blocks):
        x = block(x, residual)
    x = keras.layers.LayerNormalization()(x)
    return keras.Model(inputs, keras.layers.Dense(V)(x))


curves["6 without residuals"] = train(stacked(3, residual=False))
curves["6 three blocks"] = train(stacked(3))
show(curves, "Step 6: blocks with residual connections")

# %%
# Step 7: the kit's file
# ----------------------
#
# `kit.gpt` builds this model. Its attention is each backend's fused one, and a cache
# keeps keys and values of earlier characters while it generates, so that a new
# character costs one step.

gpt = kit.gpt(V, T, num_layers=3, num_heads=4, hidden_dim=D)
curves["7 kit.gpt"] = train(gpt)
show(
    {name: curves[name] for name in ("1 one character", "6 three blocks", "7 kit.gpt")},
    "Step 7: kit.gpt",
)

prompt = vocabulary.encode("The function ")[None]
for use_cache in (True, False):
    kit.transformer.generate(gpt, prompt, 50, use_cache=use_cache)  # compiles
    start = time.perf_counter()
    tokens = kit.transformer.generate(
        gpt, prompt, 50, temperature=0.7, use_cache=use_cache
    )
    print(f"use_cache={use_cache}: {time.perf_counter() - start:.3f} s")
print(vocabulary.decode(np.asarray(tokens)[0]))

# %%
# 800 gradient steps are a beginning: `recipes/transformer.py` trains longer, with a
# larger network and subwords, and reaches 1.69 bits.
# :doc:`Its page </algorithms/transformer>` says what each setting does.
