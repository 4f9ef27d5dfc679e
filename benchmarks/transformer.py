"""Times a small GPT, training and writing: Keras, native code, and the kit.

    KERAS_BACKEND=jax python benchmarks/transformer.py
    KERAS_BACKEND=torch python benchmarks/transformer.py --hidden-dim 256

Training: batches of windows by `fit` of `keras.Sequential`, by `fit` of
`kit.Sequential`, and by a loop written by hand for PyTorch or JAX with its own fused
attention; same weights, same batches, Adam, and losses that must agree to 1e-3.
Writing: one text, greedily, by `kit.transformer.generate` with its cache and without,
and by a loop by hand with a cache; the tokens must be the same. They run in turns (see
rounds.py). The native code runs in the kit's process and has its allocator's setting.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rounds import Tasks, adam, measure, print_table, summary, write_report

import kit
from kit import transformer

LEARNING_RATE = 1e-3
VOCABULARY = 64
PROMPT = 8
KERAS_FIT, UNCACHED = "keras fit", "kit, no cache"

Weights = dict[str, Any]  # arrays by their name in kit.gpt


def main(
    *,
    num_layers: int = 4,
    num_heads: int = 4,
    hidden_dim: int = 128,
    sequence_length: int = 128,
    batch_size: int = 16,
    batches: int = 8,
    seconds: float = 1.0,
    rounds: int = 5,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Prints the tables of the running backend, which must be JAX or PyTorch.

    Args:
        num_layers: Number of blocks.
        num_heads: Attention heads.
        hidden_dim: Width of the model.
        sequence_length: Tokens in a window; the text that is written is as long.
        batch_size: Windows in a training step.
        batches: Training steps in a turn.
        seconds: Least time of a contestant's turn in a round.
        rounds: Number of rounds.
        output: JSON file for the results.

    Returns:
        The rows of the tables.
    """
    backend = keras.backend.backend()
    if backend not in NATIVE:
        raise ValueError(
            f"KERAS_BACKEND={backend}: the native code is for {' and '.join(NATIVE)}."
        )
    if sequence_length <= PROMPT:
        raise ValueError(
            f"sequence_length must be above {PROMPT}, got {sequence_length}."
        )
    kit.keep_freed_memory()
    sizes = (VOCABULARY, sequence_length, num_layers, num_heads, hidden_dim)
    models = [kit.gpt(*sizes) for _ in range(3)]
    kit.initialize_weights(models[0], 0)
    rng = np.random.default_rng(0)
    for weight in models[0].weights:  # biases, too, that an error in them shows
        weight.assign(weight + 0.02 * rng.standard_normal(weight.shape, "float32"))
    for model in models[1:]:
        model.set_weights(models[0].get_weights())
    weights = {
        w.path.split("/", 1)[1]: keras.ops.convert_to_numpy(w)
        for w in models[0].weights
    }
    x = rng.integers(0, VOCABULARY, (batches * batch_size, sequence_length + 1))
    x, y = x[:, :-1].astype("int32"), x[:, 1:].astype("int32")
    train, write = NATIVE[backend](weights, num_layers, num_heads)

    contestants: Tasks = {
        "native": lambda: train(x, y, batch_size),
        KERAS_FIT: by_fit(keras.Sequential(models[1].layers), x, y, batch_size),
        "kit fit": by_fit(models[2], x, y, batch_size),
    }
    task = f"training, {batch_size} windows of {sequence_length}"
    times = measure(task, contestants, batches, seconds, rounds)
    rows = [{"task": task, **row} for row in summary(times, KERAS_FIT)]
    print_table(rows, "microseconds a step", "fit of keras.Sequential")

    prompt, count = x[:1, :PROMPT], sequence_length - PROMPT
    contestants = {
        "native": lambda: write(prompt, count),
        "kit": by_generate(models[0], prompt, count, True),
        UNCACHED: by_generate(models[0], prompt, count, False),
    }
    task = f"writing {count} tokens after {PROMPT}"
    times = measure(task, contestants, count, seconds, rounds)
    more = [{"task": task, **row} for row in summary(times, UNCACHED)]
    print_table(more, "microseconds a token", UNCACHED)
    if output is not None:
        write_report(output, rows + more)
    return rows + more


def by_fit(model: Any, x: np.ndarray, y: np.ndarray, batch_size: int) -> Callable:
    """Some steps by the model's own `fit`; returns their mean loss."""
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), loss)
    options = {"batch_size": batch_size, "shuffle": False, "verbose": 0}
    return lambda: model.fit(x, y, **options).history["loss"][0]


def by_generate(model: Any, prompt: np.ndarray, count: int, cache: bool) -> Callable:
    def write() -> np.ndarray:
        tokens = transformer.generate(model, prompt, count, 0, use_cache=cache)
        return keras.ops.convert_to_numpy(tokens)

    return write


# --- JAX ------------------------------------------------------------------------


def native_jax(weights: Weights, num_layers: int, num_heads: int) -> tuple:
    import jax
    import jax.numpy as jnp

    def norm(x, w, name):
        mean = x.mean(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}/gamma"] + w[f"{name}/beta"]

    def dense(x, w, name):
        return x @ w[f"{name}/kernel"] + w[f"{name}/bias"]

    def blocks(x, w, attend):
        kept = []
        for i in range(num_layers):
            block = f"block_{i}"
            h = norm(x, w, f"{block}/attention_norm")
            split = (*x.shape[:2], num_heads, -1)
            q, k, v = (
                dense(h, w, f"{block}/attention/{name}").reshape(split)
                for name in ("query", "key", "value")
            )
            y, cache = attend(i, q, k, v)
            kept.append(cache)
            y = y.reshape(x.shape)
            x = x + dense(y, w, f"{block}/attention/output_projection")
            h = norm(x, w, f"{block}/feed_forward_norm")
            h = jax.nn.gelu(dense(h, w, f"{block}/intermediate"), approximate=False)
            x = x + dense(h, w, f"{block}/output_dense")
        return dense(norm(x, w, "final_norm"), w, "logits"), kept

    def embed(tokens, w, start=0):
        places = start + jnp.arange(tokens.shape[1])
        return (
            w["embedding/embeddings"][tokens]
            + w["position_embedding/embeddings"][places]
        )

    def causal(i, q, k, v):
        return jax.nn.dot_product_attention(q, k, v, is_causal=True), (k, v)

    def loss_fn(w, x, y):
        logits, _ = blocks(embed(x, w), w, causal)
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(log_probs, y[..., None], axis=-1).mean()

    @jax.jit
    def step(state, x, y):
        w, m, v, t = state
        loss, g = jax.value_and_grad(loss_fn)(w, x, y)
        new = {n: adam(w[n], g[n], m[n], v[n], t, jnp.sqrt, LEARNING_RATE) for n in w}
        w, m, v = ({n: new[n][i] for n in w} for i in range(3))
        return (w, m, v, t + 1), loss

    zeros = {n: jnp.zeros_like(w) for n, w in weights.items()}
    state = ({n: jnp.asarray(w) for n, w in weights.items()}, zeros, zeros, 1.0)

    def train(x, y, batch_size):
        nonlocal state
        losses = []
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)
            state, loss = step(state, x[rows], y[rows])
            losses.append(loss)
        return float(np.mean([float(loss) for loss in losses]))

    @jax.jit
    def generate(w, prompt, places):
        size, length = prompt.shape[1], prompt.shape[1] + len(places)
        logits, kept = blocks(embed(prompt, w), w, causal)
        room = ((0, 0), (0, length - size), (0, 0), (0, 0))
        kept = jax.tree.map(lambda a: jnp.pad(a, room), kept)

        def read(carry, place):
            token, kept = carry

            def cached(i, q, k, v):
                keys, values = (
                    jax.lax.dynamic_update_slice(old, new, (0, place, 0, 0))
                    for old, new in zip(kept[i], (k, v), strict=True)
                )
                mask = (jnp.arange(length) <= place)[None, None, None]
                y = jax.nn.dot_product_attention(q, keys, values, mask=mask)
                return y, (keys, values)

            logits, kept = blocks(embed(token[:, None], w, place), w, cached)
            return (logits[:, 0].argmax(-1), kept), token

        first = logits[:, -1].argmax(-1)
        _, tokens = jax.lax.scan(read, (first, kept), places)
        return tokens.T

    fixed = {n: jnp.asarray(w) for n, w in weights.items()}

    def write(prompt, count):
        places = prompt.shape[1] + jnp.arange(count)
        return np.asarray(generate(fixed, prompt, places))

    return train, write


# --- PyTorch --------------------------------------------------------------------


def native_torch(weights: Weights, num_layers: int, num_heads: int) -> tuple:
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Block(nn.Module):
        def __init__(self, width: int, inner: int):
            super().__init__()
            self.norm1 = nn.LayerNorm(width, 1e-5)
            self.qkv = nn.Linear(width, 3 * width)
            self.out = nn.Linear(width, width)
            self.norm2 = nn.LayerNorm(width, 1e-5)
            self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

        def forward(self, x, cache=None, place=0):
            B, T, D = x.shape
            q, k, v = (
                a.view(B, T, num_heads, -1).transpose(1, 2)
                for a in self.qkv(self.norm1(x)).split(D, dim=2)
            )
            if cache is not None:
                keys, values = cache
                keys[:, :, place : place + T] = k
                values[:, :, place : place + T] = v
                k, v = keys[:, :, : place + T], values[:, :, : place + T]
            y = F.scaled_dot_product_attention(q, k, v, is_causal=T > 1)
            x = x + self.out(y.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norm2(x))))

    class GPT(nn.Module):
        def __init__(self):
            super().__init__()
            tokens = weights["embedding/embeddings"]
            places = weights["position_embedding/embeddings"]
            inner = weights["block_0/intermediate/kernel"].shape[1]
            self.tokens, self.places = (
                nn.Embedding(*tokens.shape),
                nn.Embedding(*places.shape),
            )
            width = tokens.shape[1]
            self.blocks = nn.ModuleList(Block(width, inner) for _ in range(num_layers))
            self.norm = nn.LayerNorm(width, 1e-5)
            self.logits = nn.Linear(width, tokens.shape[0])

        def forward(self, x, caches=None, place=0):
            T = x.shape[1]
            x = self.tokens(x) + self.places(torch.arange(place, place + T))
            for i, block in enumerate(self.blocks):
                x = block(x, caches and caches[i], place)
            return self.logits(self.norm(x))

    def tensor(name):
        return torch.tensor(weights[name])

    def set_dense(linear, *names):
        kernels = [tensor(f"{name}/kernel").T for name in names]
        linear.weight.data = torch.cat(kernels).contiguous()
        linear.bias.data = torch.cat([tensor(f"{name}/bias") for name in names])

    def set_norm(norm, name):
        norm.weight.data, norm.bias.data = (
            tensor(f"{name}/gamma"),
            tensor(f"{name}/beta"),
        )

    def make():
        model = GPT()
        model.tokens.weight.data = tensor("embedding/embeddings")
        model.places.weight.data = tensor("position_embedding/embeddings")
        for i, block in enumerate(model.blocks):
            name = f"block_{i}"
            set_norm(block.norm1, f"{name}/attention_norm")
            parts = (f"{name}/attention/{part}" for part in ("query", "key", "value"))
            set_dense(block.qkv, *parts)
            set_dense(block.out, f"{name}/attention/output_projection")
            set_norm(block.norm2, f"{name}/feed_forward_norm")
            set_dense(block.up, f"{name}/intermediate")
            set_dense(block.down, f"{name}/output_dense")
        set_norm(model.norm, "final_norm")
        set_dense(model.logits, "logits")
        return model

    model, fixed = make(), make()
    optimizer = torch.optim.Adam(model.parameters(), LEARNING_RATE, eps=1e-7)

    def train(x, y, batch_size):
        losses = []
        for first in range(0, len(x), batch_size):
            rows = slice(first, first + batch_size)
            batch, target = (torch.from_numpy(a[rows]).long() for a in (x, y))
            optimizer.zero_grad()
            loss = F.cross_entropy(model(batch).flatten(0, 1), target.flatten())
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return float(np.mean([float(loss) for loss in losses]))

    @torch.inference_mode()
    def write(prompt, count):
        text = torch.from_numpy(prompt).long()
        size, width = prompt.shape[1], fixed.norm.normalized_shape[0]
        shape = (len(prompt), num_heads, size + count, width // num_heads)
        caches = [(torch.empty(shape), torch.empty(shape)) for _ in fixed.blocks]
        token, tokens = fixed(text, caches)[:, -1:].argmax(-1), []
        for place in range(size, size + count):
            tokens.append(token)
            token = fixed(token, caches, place).argmax(-1)
        return torch.cat(tokens, dim=1).numpy()

    return train, write


NATIVE: dict[str, Callable] = {"jax": native_jax, "torch": native_torch}

if __name__ == "__main__":
    import tyro

    tyro.cli(main)
