"""Times the training of the supervised networks: Keras, native code, and the kit.

    KERAS_BACKEND=jax python benchmarks/supervised.py

For each of CNN, LSTM, GRU and MLP, with the architectures of their builders' defaults,
an epoch of batches of 128 by `fit` of `keras.Sequential`, by `fit` of `kit.Sequential`,
and by loops written by hand for the running backend. All start from the same weights,
take the same batches in the same order, minimise the cross-entropy with Adam, and must
agree in the mean loss of their first epoch to 1e-3. They run in turns (see rounds.py).

The native code is what a good practitioner writes without Keras; the row `native` is
its fastest form. For that this file asks which backend runs, as in the kit only
`kit/engines/` does. It runs in the process of the kit, so it has the benefit of the
allocator's setting too (kit/engines/allocator.py); `--plain-malloc` leaves the
allocator alone.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rounds import Tasks, adam, measure, print_table, summary, write_report

import kit

BATCH_SIZE = 128
LEARNING_RATE = 1e-3
UNITS = 64  # of LSTM, GRU and MLP
TIME_STEPS, FEATURES = 32, 16  # of LSTM and GRU
CLASSES = 10
KERAS_FIT = "keras fit"

BUILDERS: dict[str, Callable[[], Any]] = {
    "cnn": lambda: kit.cnn((28, 28, 1), CLASSES),
    "lstm": lambda: kit.lstm((TIME_STEPS, FEATURES), CLASSES, (UNITS,), "softmax"),
    "gru": lambda: kit.gru((TIME_STEPS, FEATURES), CLASSES, (UNITS,), "softmax"),
    "mlp": lambda: kit.mlp((30,), CLASSES, (UNITS,), output_activation="softmax"),
}

Array = Any  # an array of the running backend
Weights = list[Any]


def main(
    *,
    networks: tuple[str, ...] = tuple(BUILDERS),
    batches: int = 24,
    seconds: float = 0.3,
    rounds: int = 7,
    plain_malloc: bool = False,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Prints the table of the running backend.

    Args:
        networks: Which of cnn, lstm, gru and mlp.
        batches: Number of batches of 128 in an epoch; twenty times as many for mlp.
        seconds: Least time of a contestant's turn in a round.
        rounds: Number of rounds.
        plain_malloc: Leaves the C library's allocator as it is.
        output: JSON file for the results.

    Returns:
        The rows of the table.
    """
    unknown = set(networks) - set(BUILDERS)
    if unknown or not networks:
        raise ValueError(f"networks={networks} must be some of {', '.join(BUILDERS)}.")
    if not plain_malloc:
        kit.keep_freed_memory()
    rows = []
    for name in networks:
        count = batches * (20 if name == "mlp" else 1)
        model = BUILDERS[name]()
        kit.initialize_weights(model, 0)
        rng = np.random.default_rng(0)
        shape = (count * BATCH_SIZE, *model.input_shape[1:])
        x = rng.standard_normal(shape, "float32")
        y = rng.integers(0, CLASSES, len(x)).astype("int32")
        weights = model.get_weights()
        contestants: Tasks = {
            KERAS_FIT: by_fit(keras.Sequential(model.layers), weights, x, y),
            "kit fit": by_fit(BUILDERS[name](), weights, x, y),
        }
        for who, train in NATIVE[keras.backend.backend()](name, weights).items():
            contestants[who] = functools.partial(train, x, y)
        task = f"{name}, batch {BATCH_SIZE}"
        times = measure(task, contestants, count, seconds, rounds)
        rows += [{"task": task, **row} for row in summary(times, KERAS_FIT)]
    for row in rows:
        row["samples_per_second"] = BATCH_SIZE / row["median_us"] * 1e6
    print_table(rows, "microseconds a step", "fit of keras.Sequential")
    if output is not None:
        write_report(output, rows)
    return rows


def by_fit(model: Any, weights: Weights, x: Array, y: Array) -> Callable[[], float]:
    """An epoch by the model's own `fit`; returns its mean loss."""
    model.set_weights(weights)
    model.compile(
        keras.optimizers.Adam(LEARNING_RATE), "sparse_categorical_crossentropy"
    )
    options = {"batch_size": BATCH_SIZE, "shuffle": False, "verbose": 0}
    return lambda: model.fit(x, y, **options).history["loss"][0]


def by_hand(step: Callable, asarray: Callable) -> Callable:
    """An epoch that calls `step` for each batch; returns its mean loss."""

    def train(x: np.ndarray, y: np.ndarray) -> float:
        losses = []
        for first in range(0, len(x), BATCH_SIZE):
            batch = slice(first, first + BATCH_SIZE)
            losses.append(step(asarray(x[batch]), asarray(y[batch])))
        return float(np.mean([float(loss) for loss in losses]))

    return train


# --- JAX ------------------------------------------------------------------------


def native_jax(name: str, weights: Weights) -> dict[str, Callable]:
    import jax
    import jax.numpy as jnp
    from jax import lax

    def conv(x, w, b):
        layout = ("NHWC", "HWIO", "NHWC")
        x = lax.conv_general_dilated(x, w, (1, 1), "VALID", dimension_numbers=layout)
        return jax.nn.relu(x + b)

    def pool(x):
        window = (1, 2, 2, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")

    def cnn(w, x):
        x = pool(conv(x, *w[0:2]))
        x = pool(conv(x, *w[2:4]))
        x = conv(x, *w[4:6]).reshape(len(x), -1)
        return jax.nn.relu(x @ w[6] + w[7]) @ w[8] + w[9]

    def lstm(w, x):
        def turn(state, x):
            h, c = state
            i, f, g, o = jnp.split(x + h @ w[1], 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), None

        zeros = jnp.zeros((len(x), UNITS))
        (h, _), _ = lax.scan(turn, (zeros, zeros), (x @ w[0] + w[2]).swapaxes(0, 1))
        return h @ w[3] + w[4]

    def gru(w, x):
        def turn(h, x):
            x_z, x_r, x_n = jnp.split(x, 3, axis=-1)
            h_z, h_r, h_n = jnp.split(h @ w[1] + w[2][1], 3, axis=-1)
            z, r = jax.nn.sigmoid(x_z + h_z), jax.nn.sigmoid(x_r + h_r)
            return z * h + (1 - z) * jnp.tanh(x_n + r * h_n), None

        projected = (x @ w[0] + w[2][0]).swapaxes(0, 1)
        h, _ = lax.scan(turn, jnp.zeros((len(x), UNITS)), projected)
        return h @ w[3] + w[4]

    def mlp(w, x):
        return jax.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]

    forward = {"cnn": cnn, "lstm": lstm, "gru": gru, "mlp": mlp}[name]

    def loss_fn(w, x, y):
        log_probs = jax.nn.log_softmax(forward(w, x))
        return -jnp.mean(jnp.take_along_axis(log_probs, y[:, None], axis=1))

    @functools.partial(jax.jit, donate_argnums=0)
    def update(state, x, y):
        w, ms, vs, t = state
        loss, grads = jax.value_and_grad(loss_fn)(w, x, y)
        new = [
            adam(*each, t + 1, jnp.sqrt, LEARNING_RATE)
            for each in zip(w, grads, ms, vs, strict=True)
        ]
        return (*map(list, zip(*new, strict=True)), t + 1), loss

    state: Any = (
        [jnp.array(w) for w in weights],
        [jnp.zeros(w.shape) for w in weights],
        [jnp.zeros(w.shape) for w in weights],
        jnp.float32(0),
    )

    def step(x, y):
        nonlocal state
        state, loss = update(state, x, y)
        return loss

    return {"native": by_hand(step, jnp.asarray)}


# --- TensorFlow -------------------------------------------------------------------


def native_tensorflow(name: str, weights: Weights) -> dict[str, Callable]:
    import tensorflow as tf

    def conv(x, w, b):
        return tf.nn.relu(tf.nn.conv2d(x, w, 1, "VALID") + b)

    def cnn(w, x):
        x = tf.nn.max_pool2d(conv(x, *w[0:2]), 2, 2, "VALID")
        x = tf.nn.max_pool2d(conv(x, *w[2:4]), 2, 2, "VALID")
        x = tf.reshape(conv(x, *w[4:6]), (len(x), -1))
        return tf.nn.relu(x @ w[6] + w[7]) @ w[8] + w[9]

    def over_time(turn, state, x):
        x = tf.transpose(x, (1, 0, 2))
        return tf.while_loop(
            lambda t, *_: t < TIME_STEPS,
            lambda t, *state: (t + 1, *turn(state, x[t])),
            (0, *state),
            maximum_iterations=TIME_STEPS,
        )[1]

    def lstm(w, x):
        def turn(state, x):
            h, c = state
            i, f, g, o = tf.split(x + h @ w[1], 4, axis=-1)
            c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
            return tf.sigmoid(o) * tf.tanh(c), c

        zeros = tf.zeros((len(x), UNITS))
        return over_time(turn, (zeros, zeros), x @ w[0] + w[2]) @ w[3] + w[4]

    def gru(w, x):
        def turn(state, x):
            (h,) = state
            x_z, x_r, x_n = tf.split(x, 3, axis=-1)
            h_z, h_r, h_n = tf.split(h @ w[1] + w[2][1], 3, axis=-1)
            z, r = tf.sigmoid(x_z + h_z), tf.sigmoid(x_r + h_r)
            return (z * h + (1 - z) * tf.tanh(x_n + r * h_n),)

        zeros = tf.zeros((len(x), UNITS))
        return over_time(turn, (zeros,), x @ w[0] + w[2][0]) @ w[3] + w[4]

    def mlp(w, x):
        return tf.nn.relu(x @ w[0] + w[1]) @ w[2] + w[3]

    forward = {"cnn": cnn, "lstm": lstm, "gru": gru, "mlp": mlp}[name]

    def make(jit_compile):
        variables = [tf.Variable(w) for w in weights]
        ms = [tf.Variable(tf.zeros_like(w)) for w in weights]
        vs = [tf.Variable(tf.zeros_like(w)) for w in weights]
        t = tf.Variable(0.0)

        @tf.function(jit_compile=jit_compile)
        def step(x, y):
            with tf.GradientTape() as tape:
                logits = forward(variables, x)
                loss = tf.reduce_mean(
                    tf.nn.sparse_softmax_cross_entropy_with_logits(y, logits)
                )
            grads = tape.gradient(loss, variables)
            t.assign_add(1.0)
            for old, g in zip(zip(variables, ms, vs, strict=True), grads, strict=True):
                w, m, v = old
                new = adam(w, g, m, v, t, tf.sqrt, LEARNING_RATE)
                for variable, value in zip(old, new, strict=True):
                    variable.assign(value)
            return loss

        return by_hand(step, tf.convert_to_tensor)

    # XLA's convolutions are slow on the CPU; without it, loops are.
    jit_compile = name != "cnn" or bool(tf.config.list_physical_devices("GPU"))
    other = "native, without XLA" if jit_compile else "native, XLA"
    return {"native": make(jit_compile), other: make(not jit_compile)}


# --- PyTorch ----------------------------------------------------------------------


def native_torch(name: str, weights: Weights) -> dict[str, Callable]:
    import torch
    from torch import nn

    device = keras.ops.convert_to_tensor(weights[0]).device  # where Keras computes
    w = [torch.tensor(x, device=device) for x in weights]

    class Last(nn.Module):
        """A recurrent layer, and what it says after the last time step."""

        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(x)[0][:, -1]

    class ChannelsFirst(nn.Module):
        def forward(self, x):
            return x.permute(0, 3, 1, 2)

    class ChannelsLast(nn.Module):
        """Flattens in the order of Keras' weights."""

        def forward(self, x):
            return x.permute(0, 2, 3, 1).flatten(1)

    def dense(kernel, bias):
        layer = nn.Linear(*kernel.shape)
        layer.weight.data, layer.bias.data = kernel.T.contiguous(), bias.clone()
        return layer

    def convolution(kernel, bias):
        layer = nn.Conv2d(kernel.shape[2], kernel.shape[3], kernel.shape[0])
        layer.weight.data = kernel.permute(3, 2, 0, 1).contiguous()
        layer.bias.data = bias.clone()
        return layer

    def recurrent(cls, biases, order):
        layer = cls(FEATURES, UNITS, batch_first=True)
        gates = [
            torch.cat([torch.chunk(x, len(order), -1)[i] for i in order], -1)
            for x in (w[0], w[1], *biases)
        ]
        layer.weight_ih_l0.data = gates[0].T.contiguous()
        layer.weight_hh_l0.data = gates[1].T.contiguous()
        layer.bias_ih_l0.data, layer.bias_hh_l0.data = gates[2], gates[3]
        return Last(layer)

    def make_net():
        relu = nn.ReLU()
        if name == "cnn":
            return nn.Sequential(
                *(ChannelsFirst(), convolution(w[0], w[1]), relu, nn.MaxPool2d(2)),
                *(convolution(w[2], w[3]), relu, nn.MaxPool2d(2)),
                *(convolution(w[4], w[5]), relu, ChannelsLast()),
                *(dense(w[6], w[7]), relu, dense(w[8], w[9])),
            )
        if name == "mlp":
            return nn.Sequential(dense(w[0], w[1]), relu, dense(w[2], w[3]))
        if name == "lstm":
            layer = recurrent(nn.LSTM, (w[2], torch.zeros_like(w[2])), (0, 1, 2, 3))
        else:  # Keras has the gates in the order z, r, n
            layer = recurrent(nn.GRU, (w[2][0], w[2][1]), (1, 0, 2))
        return nn.Sequential(layer, dense(w[3], w[4]))

    def make(memory_format, **kwargs):
        net = make_net().to(device).to(memory_format=memory_format)
        optimizer = torch.optim.Adam(
            net.parameters(), LEARNING_RATE, eps=1e-7, **kwargs
        )

        def step(x, y):
            loss = nn.functional.cross_entropy(net(x), y.long())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return by_hand(step, lambda x: torch.from_numpy(x).to(device))

    plain, last = torch.contiguous_format, torch.channels_last
    found = {"native": make(last if name == "cnn" else plain, fused=True)}
    if name == "cnn":
        found["native, channels first"] = make(plain, fused=True)
    found["native, for-loop Adam"] = make(last if name == "cnn" else plain)
    return found


NATIVE = {
    "jax": native_jax,
    "tensorflow": native_tensorflow,
    "torch": native_torch,
}

if __name__ == "__main__":
    import tyro

    tyro.cli(main)
