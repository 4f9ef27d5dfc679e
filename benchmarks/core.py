"""Times one training step and one act: Keras' own, native code, and the kit.

    KERAS_BACKEND=jax python benchmarks/core.py
    KERAS_BACKEND=torch python benchmarks/core.py --inductor   # with torch.compile

Every contestant starts from the same weights, takes the same NumPy batches in the
same order, minimises the mean squared error with Adam, and hands its loss to the
host after a pass over the batches; acting hands the Q-values over at every call,
since an environment waits for them. Their last losses must agree to 1e-3, or the
benchmark raises. They run in turns (see rounds.py).

The native code is what a good practitioner writes without Keras; the row `native`
is its fastest form without a loop over batches, and without TorchInductor. For that
this file asks which backend runs, as in the kit only `kit/backend.py` does.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops
from rounds import Tasks, adam, measure, print_table, summary, write_report

import kit

NETWORKS = {  # name: (units of all layers from the input on, batch size)
    "4-120-84-2": ((4, 120, 84, 2), 128),
    "64-256-256-256-8": ((64, 256, 256, 256, 8), 256),
}
LEARNING_RATE = 1e-4  # with 1e-3, rounding grows beyond 1e-3 within 128 steps
BATCHES = 128  # in a pass

Array = Any  # an array of the running backend, or of NumPy
Step = Callable[[np.ndarray, np.ndarray], Array]  # batch (B, ...) -> loss
Pass = Callable[[np.ndarray, np.ndarray], Array]  # batches (S, B, ...) -> last loss
Act = Callable[[np.ndarray], np.ndarray]  # observation (1, ...) -> Q-values


def main(
    *,
    seconds: float = 0.3,
    rounds: int = 9,
    batches: int = BATCHES,
    inductor: bool = False,
    async_dispatch: bool = False,
    output: Path | None = None,
) -> list[dict[str, Any]]:
    """Prints the table of the running backend.

    Args:
        seconds: Least time of a contestant's turn in a round.
        rounds: Number of rounds.
        batches: Number of batches in a pass, and of steps in a `kit.scan`.
        inductor: PyTorch only: adds torch.compile and `kit.compiled(inductor=True)`,
            which compile for up to a minute each.
        async_dispatch: JAX only: dispatches as JAX does by default, on another
            thread, which the kit turns off when it is imported.
        output: JSON file for the results.

    Returns:
        The rows of the table.
    """
    kit.keep_freed_memory()
    if async_dispatch:
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", True)
    rows = []
    for name, (units, batch_size) in NETWORKS.items():
        rng = np.random.default_rng(0)
        xs = rng.standard_normal((batches, batch_size, units[0]), "float32")
        ys = rng.standard_normal((batches, batch_size, units[-1]), "float32")
        weights = draw_weights(units, rng)
        native_train, native_act = NATIVE[keras.backend.backend()](weights, inductor)
        train = native_train | keras_train(weights) | kit_train(weights, inductor)
        act = native_act | keras_act(weights) | kit_act(weights)
        for task, contestants, keras_own in (
            (
                f"train {name}, batch {batch_size}",
                whole_passes(train, xs, ys),
                KERAS_TRAIN,
            ),
            (f"act {name}, batch 1", whole_plays(act, xs[:, :1]), KERAS_ACT),
        ):
            times = measure(task, contestants, batches, seconds, rounds)
            rows += [{"task": task, **row} for row in summary(times, keras_own)]
    print_table(rows, "microseconds a step, or an act", "train_on_batch, or model(x)")
    if output is not None:
        write_report(output, rows)
    return rows


def draw_weights(units: tuple[int, ...], rng: np.random.Generator) -> list[np.ndarray]:
    """Returns kernel, bias, kernel, bias, ... of an MLP."""
    weights = []
    for fan_in, fan_out in zip(units[:-1], units[1:], strict=True):
        w = rng.normal(0, np.sqrt(2 / fan_in), (fan_in, fan_out))
        weights += [w.astype("float32"), np.zeros(fan_out, "float32")]
    return weights


def whole_passes(train: dict[str, Pass], xs: np.ndarray, ys: np.ndarray) -> Tasks:
    return {who: partial(_loss_of, run, xs, ys) for who, run in train.items()}


def whole_plays(act: dict[str, Act], xs: np.ndarray) -> Tasks:
    return {who: partial(_last_of, run, xs) for who, run in act.items()}


def _loss_of(run: Pass, xs: np.ndarray, ys: np.ndarray) -> float:
    return float(run(xs, ys))


def _last_of(run: Act, xs: np.ndarray) -> np.ndarray:
    return [run(x) for x in xs][-1]


def one_by_one(step: Step) -> Pass:
    """A pass that calls `step` for each batch."""

    def run(xs, ys):
        for x, y in zip(xs, ys, strict=True):
            loss = step(x, y)
        return loss

    return run


# --- Keras and the kit ------------------------------------------------------

KERAS_TRAIN = "keras train_on_batch"
KERAS_ACT = "keras model(x)"


def mlp(weights: list[np.ndarray]) -> keras.Sequential:
    model = keras.Sequential([keras.Input((weights[0].shape[0],))])
    for bias in weights[1:-1:2]:
        model.add(keras.layers.Dense(len(bias), activation="relu"))
    model.add(keras.layers.Dense(len(weights[-1])))
    model.set_weights(weights)
    return model


def keras_train(weights: list[np.ndarray]) -> dict[str, Pass]:
    model = mlp(weights)
    model.compile(keras.optimizers.Adam(LEARNING_RATE), "mse")
    step = one_by_one(model.train_on_batch)

    def run(xs, ys):
        if len(xs) > 1:
            step(xs[:-1], ys[:-1])
        model.reset_metrics()  # the loss it returns is a mean since the last reset
        return model.train_on_batch(xs[-1], ys[-1])

    return {KERAS_TRAIN: run}


def keras_act(weights: list[np.ndarray]) -> dict[str, Act]:
    model = mlp(weights)
    return {
        KERAS_ACT: lambda x: ops.convert_to_numpy(model(x)),
        "keras predict_on_batch": model.predict_on_batch,
    }


def kit_train(weights: list[np.ndarray], inductor: bool) -> dict[str, Pass]:
    def make_step():
        model, optimizer = mlp(weights), keras.optimizers.Adam(LEARNING_RATE)

        def step(x, y):
            def loss_fn():
                return ops.mean(ops.square(model(x, training=True) - y))

            return kit.minimize(loss_fn, model.trainable_variables, optimizer)

        return step

    def make_scan():
        step = make_step()

        def run(xs, ys):
            _, losses = kit.scan(lambda carry, xy: (carry, step(*xy)), None, (xs, ys))
            return losses[-1]

        return run

    found = {
        "kit compiled": one_by_one(kit.compiled(make_step())),
        "kit scan": kit.compiled(make_scan()),
    }
    if inductor and keras.backend.backend() == "torch":
        found["kit compiled, inductor"] = one_by_one(
            kit.compiled(make_step(), inductor=True)
        )
        found["kit scan, inductor"] = kit.compiled(make_scan(), inductor=True)
    return found


def kit_act(weights: list[np.ndarray]) -> dict[str, Act]:
    model = mlp(weights)
    act = kit.compiled(lambda x: model(x, training=False))
    return {"kit compiled": lambda x: ops.convert_to_numpy(act(x))}


# --- Native code ------------------------------------------------------------


def forward(weights, x, relu):
    """The MLP on weights (w, b, w, b, ...)."""
    for w, b in zip(weights[:-2:2], weights[1:-2:2], strict=True):
        x = relu(x @ w + b)
    return x @ weights[-2] + weights[-1]


def native_jax(
    weights: list[np.ndarray], inductor: bool
) -> tuple[dict[str, Pass], dict[str, Act]]:
    import jax
    import jax.numpy as jnp

    def update(state, batch):
        weights, ms, vs, t = state
        x, y = batch

        def loss_fn(weights):
            return jnp.mean((forward(weights, x, jax.nn.relu) - y) ** 2)

        loss, grads = jax.value_and_grad(loss_fn)(weights)
        new = [
            adam(*each, t + 1, jnp.sqrt, LEARNING_RATE)
            for each in zip(weights, grads, ms, vs, strict=True)
        ]
        return (*map(list, zip(*new, strict=True)), t + 1), loss

    def stateful(program: Callable) -> Callable:
        zeros = [jnp.zeros(w.shape) for w in weights]
        state = (list(map(jnp.array, weights)), zeros, zeros, jnp.float32(0))
        state = jax.tree.map(jnp.copy, state)  # what is donated can't be shared

        def run(x, y):
            nonlocal state
            state, loss = program(state, (x, y))
            return loss

        return run

    def many(state, batches):
        state, losses = jax.lax.scan(update, state, batches)
        return state, losses[-1]

    params = list(map(jnp.array, weights))
    act = jax.jit(lambda params, x: forward(params, x, jax.nn.relu))
    train = {
        "native": one_by_one(stateful(jax.jit(update, donate_argnums=0))),
        "native, lax.scan": stateful(jax.jit(many, donate_argnums=0)),
    }
    return train, {"native": lambda x: np.asarray(act(params, x))}


def native_tensorflow(
    weights: list[np.ndarray], inductor: bool
) -> tuple[dict[str, Pass], dict[str, Act]]:
    import tensorflow as tf

    def make_update():
        variables = [tf.Variable(w) for w in weights]
        ms = [tf.Variable(tf.zeros_like(w)) for w in weights]
        vs = [tf.Variable(tf.zeros_like(w)) for w in weights]
        t = tf.Variable(0.0)

        def update(x, y):
            with tf.GradientTape() as tape:
                error = forward(variables, x, tf.nn.relu) - y
                loss = tf.reduce_mean(error * error)
            grads = tape.gradient(loss, variables)
            t.assign_add(1.0)
            for w, g, m, v in zip(variables, grads, ms, vs, strict=True):
                values = adam(w, g, m, v, t, tf.sqrt, LEARNING_RATE)
                for old, new in zip((w, m, v), values, strict=True):
                    old.assign(new)
            return loss

        return update

    def make_many():
        update = make_update()

        def many(xs, ys):
            n = xs.shape[0]
            return tf.while_loop(
                lambda i, _: i < n,
                lambda i, _: (i + 1, update(xs[i], ys[i])),
                (tf.constant(0), tf.constant(0.0)),
            )[1]

        return many

    def program(fn: Callable) -> Callable:
        """Compiles once and calls that directly: twice as fast for small inputs."""
        jitted, concrete = tf.function(fn, jit_compile=True), None

        def run(*arrays):
            nonlocal concrete
            tensors = [tf.convert_to_tensor(x) for x in arrays]
            concrete = concrete or jitted.get_concrete_function(*tensors)
            return concrete(*tensors)

        return run

    variables = [tf.Variable(w) for w in weights]
    act = program(lambda x: forward(variables, x, tf.nn.relu))
    train = {
        "native": one_by_one(program(make_update())),
        "native, tf.function": one_by_one(tf.function(make_update(), jit_compile=True)),
        "native, while_loop": program(make_many()),
    }
    jitted = tf.function(lambda x: forward(variables, x, tf.nn.relu), jit_compile=True)
    return train, {
        "native": lambda x: act(x).numpy(),
        "native, tf.function": lambda x: jitted(tf.convert_to_tensor(x)).numpy(),
    }


def native_torch(
    weights: list[np.ndarray], inductor: bool
) -> tuple[dict[str, Pass], dict[str, Act]]:
    import torch

    device = ops.convert_to_tensor(weights[0]).device  # where Keras computes
    tensors = [torch.tensor(w, device=device) for w in weights]

    def make_net():
        layers: list[Any] = []
        for w, b in zip(tensors[::2], tensors[1::2], strict=True):
            linear = torch.nn.Linear(*w.shape, device=device)
            linear.weight.data, linear.bias.data = w.T.contiguous(), b.clone()
            layers += [linear, torch.nn.ReLU()]
        return torch.nn.Sequential(*layers[:-1])

    def to_device(x):
        return torch.from_numpy(x).to(device)

    def eager(**kwargs: bool) -> Step:
        net = make_net()
        optimizer = torch.optim.Adam(
            net.parameters(), LEARNING_RATE, eps=1e-7, **kwargs
        )

        def step(x, y):
            loss = torch.nn.functional.mse_loss(net(to_device(x)), to_device(y))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return step

    def whole_step_compiled() -> Step:
        state = [
            [w.clone() for w in tensors],
            [torch.zeros_like(w) for w in tensors],
            [torch.zeros_like(w) for w in tensors],
        ]
        t = torch.zeros((), device=device)

        def loss_fn(weights, x, y):
            return torch.mean((forward(weights, x, torch.relu) - y) ** 2)

        @torch.compile
        def update(weights, ms, vs, t, x, y):
            grads, loss = torch.func.grad_and_value(loss_fn)(weights, x, y)
            t += 1
            for w, g, m, v in zip(weights, grads, ms, vs, strict=True):
                for old, new in zip(
                    (w, m, v),
                    adam(w, g, m, v, t, torch.sqrt, LEARNING_RATE),
                    strict=True,
                ):
                    old.copy_(new)
            return loss

        return lambda x, y: update(*state, t, to_device(x), to_device(y))

    act_net = make_net()

    def act(net):
        def run(x):
            with torch.inference_mode():
                return net(to_device(x)).numpy(force=True)

        return run

    train = {  # eager; fused is the fastest of the three
        "native": one_by_one(eager(fused=True)),
        "native, foreach": one_by_one(eager(foreach=True)),
        "native, for loop": one_by_one(eager(foreach=False)),
    }
    acts = {"native": act(act_net)}
    if inductor:
        train["native, torch.compile"] = one_by_one(whole_step_compiled())
        acts["native, torch.compile"] = act(torch.compile(make_net()))
    return train, acts


NATIVE = {
    "jax": native_jax,
    "tensorflow": native_tensorflow,
    "torch": native_torch,
}

if __name__ == "__main__":
    import tyro

    tyro.cli(main)
