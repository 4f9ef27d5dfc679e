"""The faster forms that compiled programs use give what Keras' own layers give."""

import functools
import os
import re
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops

import kit
from kit.engines import fast_ops

BACKEND = keras.backend.backend()


def value_and_gradients(model, x, compile_it):
    """Output, input gradient and weight gradients of a weighted sum of outputs."""
    weights = model.trainable_variables
    before = [ops.convert_to_numpy(v) for v in weights]
    optimizer = keras.optimizers.SGD(1.0)
    optimizer.build(weights)
    outputs = keras.tree.flatten(model(x))
    rng = np.random.default_rng(1)
    factors = [ops.convert_to_tensor(rng.normal(size=y.shape)) for y in outputs]
    factors = [ops.cast(factor, "float32") for factor in factors]

    def weighted_sum(x):
        pairs = zip(keras.tree.flatten(model(x)), factors, strict=True)
        return sum(ops.sum(y * factor) for y, factor in pairs)

    def run(x):
        dx = kit.gradient(weighted_sum, x)
        y = [ops.stop_gradient(y) for y in keras.tree.flatten(model(x))]
        if weights:
            kit.minimize(lambda: weighted_sum(x), weights, optimizer)
        return y, dx

    y, dx = kit.compiled(run, eager=not compile_it)(x)
    after = [ops.convert_to_numpy(v) for v in weights]
    for variable, value in zip(weights, before, strict=True):
        variable.assign(value)
    steps = [a - b for a, b in zip(after, before, strict=True)]
    return [ops.convert_to_numpy(a) for a in (*y, dx)] + steps


def check(model, x, **tolerance):
    kit.initialize_weights(model, 0)
    expected = value_and_gradients(model, x, compile_it=False)
    found = value_and_gradients(model, x, compile_it=True)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, **{"rtol": 1e-4, "atol": 2e-5, **tolerance})


@pytest.mark.parametrize(
    "layer",
    [
        layers.MaxPooling2D(2),
        layers.MaxPooling2D(3),
        layers.MaxPooling2D((3, 2)),
        layers.MaxPooling2D(3, strides=2),
        layers.MaxPooling2D(2, padding="same"),
        layers.AveragePooling2D(2),
        layers.GlobalMaxPooling2D(),
    ],
)
def test_pooling(layer):
    # Small integers: windows with several maxima, of which the first counts.
    x = np.random.default_rng(0).integers(0, 3, (2, 7, 8, 3)).astype("float32")
    check(keras.Sequential([keras.Input((7, 8, 3)), layer]), x)


def test_pooling_of_other_ranks():
    x = np.random.default_rng(0).normal(size=(2, 9, 3)).astype("float32")
    check(keras.Sequential([keras.Input((9, 3)), layers.MaxPooling1D(2)]), x)
    x = np.random.default_rng(0).normal(size=(2, 5, 4, 4, 2)).astype("float32")
    check(keras.Sequential([keras.Input((5, 4, 4, 2)), layers.MaxPooling3D(2)]), x)


def test_pooling_gives_a_tie_to_its_first_maximum():
    @kit.compiled
    def dx(x):
        pool = layers.MaxPooling2D(2)
        return kit.gradient(lambda x: ops.sum(pool(x)), x)

    x = np.array([[1, 5], [5, 2]], "float32").reshape(1, 2, 2, 1)
    expected = np.array([[0, 1], [0, 0]]).reshape(1, 2, 2, 1)
    np.testing.assert_array_equal(ops.convert_to_numpy(dx(x)), expected)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("strides", [1, 2])
def test_convolutions(padding, strides):
    model = keras.Sequential(
        [
            keras.Input((13, 12, 1)),
            layers.Conv2D(4, 3, strides, padding, activation="relu"),
            layers.MaxPooling2D(2),
            layers.Conv2D(3, 2, padding=padding),
            layers.Conv2DTranspose(2, 3, strides=2, padding=padding),
        ]
    )
    check(model, np.random.default_rng(0).normal(size=(3, 13, 12, 1)).astype("float32"))


IMAGE, LINE, BLOCK = (9, 8, 4), (11, 4), (5, 6, 5, 2)


@pytest.mark.parametrize(
    "layer, shape",
    [
        (layers.Conv2D(3, 4, strides=2, padding="same"), IMAGE),
        (layers.Conv2D(3, (2, 3), strides=(2, 1)), IMAGE),
        (layers.Conv2D(3, 3, dilation_rate=2, padding="same"), IMAGE),
        (layers.Conv2D(6, 2, strides=2, groups=2), IMAGE),
        (layers.Conv2D(3, (9, 8)), IMAGE),
        (layers.DepthwiseConv2D(3, strides=2, depth_multiplier=2), IMAGE),
        (layers.SeparableConv2D(3, 3), IMAGE),
        (layers.Conv2DTranspose(3, 4, strides=2, padding="same"), IMAGE),
        (layers.Conv2DTranspose(3, 3, strides=(3, 2)), IMAGE),
        (layers.Conv2DTranspose(3, 3, strides=2, output_padding=1), IMAGE),
        (layers.Conv1D(3, 3, padding="causal", dilation_rate=2), LINE),
        (layers.Conv1D(3, 4, strides=2), LINE),
        (layers.Conv1DTranspose(3, 3, strides=2), LINE),
        (layers.Conv3D(3, 2, strides=2), BLOCK),
        (layers.Conv3DTranspose(3, 2, strides=(1, 2, 2)), BLOCK),
    ],
)
def test_forms_of_convolutions(layer, shape):
    x = np.random.default_rng(0).normal(size=(2, *shape)).astype("float32")
    check(keras.Sequential([keras.Input(shape), layer]), x)


@pytest.mark.skipif(BACKEND == "tensorflow", reason="it has none on CPUs")
@pytest.mark.parametrize("layer", [layers.Conv2D, layers.Conv2DTranspose])
def test_convolutions_with_channels_first(layer):
    layer = layer(3, 4, strides=2, padding="same", data_format="channels_first")
    x = np.random.default_rng(0).normal(size=(2, 4, 9, 8)).astype("float32")
    check(keras.Sequential([keras.Input((4, 9, 8)), layer]), x)


def test_convolutions_learn_in_loops():
    """With what else a network may have, and a loss that has a gradient in it."""
    model = keras.Sequential(
        [
            keras.Input((9, 9, 2)),
            layers.Conv2D(4, 4, strides=2, activation="tanh"),
            layers.BatchNormalization(),
            layers.Conv2DTranspose(2, 3, strides=2),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    kit.initialize_weights(model, 0)
    x = np.random.default_rng(0).normal(size=(3, 4, 9, 9, 2)).astype("float32")
    before = [ops.convert_to_numpy(v) for v in model.variables]
    results = []
    for eager in (True, False):
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        optimizer = keras.optimizers.SGD(0.1)
        optimizer.build(model.trainable_variables)

        def step(_, x, optimizer=optimizer):
            def loss_fn():
                slope = kit.gradient(lambda x: ops.sum(model(x, training=False)), x)
                return ops.mean(model(x, training=True) ** 2) + ops.mean(slope**2)

            return (), kit.minimize(loss_fn, model.trainable_variables, optimizer)

        learn = kit.compiled(lambda x, step=step: kit.scan(step, (), x)[1], eager=eager)
        losses = ops.convert_to_numpy(learn(x))
        results.append([losses, *(ops.convert_to_numpy(v) for v in model.variables)])
    assert not np.allclose(results[0][1], before[0])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own function")
def test_convolutions_of_any_window_on_jax():
    import jax

    original, rng = jax.lax.conv_general_dilated, np.random.default_rng(0)
    for _ in range(12):
        size, stride, apart, between = rng.integers(1, [5, 4, 3, 3], 4).tolist()
        padding = rng.integers(-1, 5, (2, 2)).tolist()
        orders = [("NHWC", "HWIO", "NHWC"), ("NCHW", "OIHW", "NHWC")]
        options = {
            "window_strides": (stride, 1),
            "padding": padding,
            "lhs_dilation": (apart, 1),
            "rhs_dilation": (1, between),
            "dimension_numbers": orders[rng.integers(2)],
        }
        shapes = {"N": 2, "H": 9, "W": 11, "C": 3, "I": 3, "O": 4}
        x_order, k_order, _ = options["dimension_numbers"]
        x = rng.normal(size=[shapes[axis] for axis in x_order]).astype("float32")
        shapes |= {"H": size, "W": size}
        kernel = rng.normal(size=[shapes[axis] for axis in k_order]).astype("float32")
        y, vjp = jax.vjp(lambda x, k, o=options: original(x, k, **o), x, kernel)
        expected = [y, *vjp(jax.numpy.sin(y))]

        @kit.compiled
        def run(x, kernel, options=options):
            def value(leaves):
                y = jax.lax.conv_general_dilated(*leaves, **options)
                return ops.sum(ops.stop_gradient(ops.sin(y)) * y)

            y = jax.lax.conv_general_dilated(x, kernel, **options)
            return [y, *kit.gradient(value, (x, kernel))]

        for a, b in zip(run(x, kernel), expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=str(options))


@pytest.mark.skipif(BACKEND != "jax", reason="JAX's own function")
def test_what_a_trace_replaces_hands_over_what_it_lacks_on_jax():
    import jax

    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(2, 3, 7, 7)), rng.normal(size=(4, 3, 3, 3))
    x, kernel = x.astype("float32"), kernel.astype("float32")

    def convolve(x, kernel):
        lax = jax.lax
        return [
            lax.conv_general_dilated(x, kernel, (1, 1), "SAME", precision="highest"),
            lax.conv_transpose(
                x,
                kernel,
                (2, 2),
                "SAME",
                rhs_dilation=None,
                dimension_numbers=("NCHW", "OIHW", "NCHW"),
            ),
        ]

    for a, b in zip(
        kit.compiled(convolve)(x, kernel), convolve(x, kernel), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(BACKEND != "jax", reason="XLA's, by way of JAX")
@pytest.mark.parametrize(
    "layer",
    [
        layers.Conv2D(6, 3, groups=2),
        layers.Conv2D(6, 3, 2, data_format="channels_first"),
        layers.DepthwiseConv2D(3),
        layers.Conv2DTranspose(3, 4, 2),
    ],
    ids=["groups", "channels_first", "depthwise", "transposed"],
)
def test_convolutions_have_the_form_that_xla_is_fast_at_on_jax(layer):
    """In a loop, XLA leaves others as slow as they are: gradients are among them."""
    import jax

    layer.build((2, 8, 8, 8))
    programs = []

    @kit.compiled
    def run(x):
        def total(leaves):
            x, *weights = leaves
            return ops.sum(layer.stateless_call(weights, [], x)[0] ** 2)

        weights = [ops.stop_gradient(v.value) for v in layer.trainable_variables]
        gradients = jax.jit(lambda x, w: kit.gradient(total, [x, *w]))
        shapes = [jax.ShapeDtypeStruct(w.shape, w.dtype) for w in weights]
        programs.append(gradients.lower(jax.ShapeDtypeStruct(x.shape, x.dtype), shapes))
        return x

    run(np.zeros((2, 8, 8, 8), "float32"))
    program = programs[-1]  # JAX traces a function twice
    forms = re.findall(r"dim_numbers = (.*?), window", program.as_text())
    assert len(forms) == 3
    assert set(forms) == {"[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]"}
    batch_groups = re.findall(r"batch_group_count = (\d+)", program.as_text())
    assert set(batch_groups) == {"1"}


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"return_sequences": True, "return_state": True},
        {"go_backwards": True, "return_sequences": True},
        {"use_bias": False},
        {"unroll": True},
        {"activation": "relu"},
    ],
)
def test_recurrent_layers(layer, options):
    inputs = keras.Input((6, 3))
    model = keras.Model(inputs, layer(5, **options)(inputs))
    check(model, np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32"))


def test_gru_with_the_reset_gate_before_the_product():
    model = keras.Sequential([keras.Input((6, 3)), layers.GRU(5, reset_after=False)])
    check(model, np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32"))


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU])
def test_recurrent_layers_with_mask_and_in_both_directions(layer):
    x = np.random.default_rng(0).normal(size=(4, 6, 3)).astype("float32")
    x[1, 3:] = 0
    model = keras.Sequential(
        [keras.Input((6, 3)), layers.Masking(), layers.Bidirectional(layer(5))]
    )
    check(model, x)


@pytest.mark.parametrize("layer", [layers.LSTM, layers.GRU])
def test_state_is_handed_on(layer):
    inputs, other = keras.Input((6, 3)), keras.Input((4, 3))
    _, *state = layer(5, return_state=True)(inputs)
    outputs = layer(5)(other, initial_state=state)
    model = keras.Model([inputs, other], outputs)
    kit.initialize_weights(model, 0)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(2, t, 3)).astype("float32") for t in (6, 4)]
    variables = model.trainable_variables
    optimizer = keras.optimizers.SGD(1.0)
    before = [ops.convert_to_numpy(v) for v in variables]
    results = []
    for eager in (True, False):
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)
        run = kit.compiled(
            lambda a, b: kit.minimize(
                lambda: ops.sum(model([a, b])), variables, optimizer
            ),
            eager=eager,
        )
        loss = ops.convert_to_numpy(run(*x))
        results.append([loss, *(ops.convert_to_numpy(v) for v in variables)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    "layers_",
    [
        [
            layers.Conv2D(3, 2, activation="tanh"),
            layers.MaxPooling2D(2),
            layers.Flatten(),
        ],
        [
            layers.Conv2D(3, 2, strides=2, activation="tanh"),
            layers.Conv2DTranspose(2, 2, strides=2, use_bias=False),
            layers.Flatten(),
        ],
        [layers.Reshape((6, 6)), layers.GRU(4)],
        [layers.Reshape((6, 6)), layers.LSTM(4)],
    ],
    ids=["cnn", "strides", "gru", "lstm"],
)
def test_gradients_of_gradients(layers_):
    """Fused operators have none: there, Keras' general form serves."""
    model = keras.Sequential([keras.Input((6, 6, 1)), *layers_, layers.Dense(1)])
    kit.initialize_weights(model, 0)
    x = np.random.default_rng(0).normal(size=(2, 6, 6, 1)).astype("float32")
    variables = [v for v in model.trainable_variables if v is not model.weights[-1]]
    before = [ops.convert_to_numpy(v) for v in variables]
    results = []
    for eager in (True, False):
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)

        def loss_fn(x):
            slopes = kit.gradient(lambda x: ops.sum(model(x)), x)
            return ops.sum(slopes**2)

        optimizer = keras.optimizers.SGD(1.0)
        optimizer.build(variables)
        run = kit.compiled(
            lambda x, o=optimizer: kit.minimize(lambda: loss_fn(x), variables, o),
            eager=eager,
        )
        loss = ops.convert_to_numpy(run(x))
        results.append([loss, *(ops.convert_to_numpy(v) for v in variables)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5)


KERNELS = {
    "jax": ["nn.max_pool", "lstm", "gru"],
    "tensorflow": ["lstm", "gru"],
    "torch": ["nn._transpose_spatial_inputs", "lstm", "gru", "core.slice_update"],
}


@pytest.mark.parametrize("name", KERNELS[BACKEND])
def test_names_in_keras_backend(name):
    """Where Keras moves one of them, kit gets slower and says nothing: this does."""
    owner, _, function = f"keras.src.backend.{name}".rpartition(".")
    found = functools.reduce(getattr, owner.split(".")[1:], keras)
    original, inside = getattr(found, function), []
    kit.compiled(lambda x: (inside.append(getattr(found, function)), x)[1])(1.0)
    assert original.__module__.startswith("keras.src.backend")
    assert inside[0].__wrapped__ is original


def test_compiled_programs_use_them_and_eager_runs_do_not(monkeypatch):
    calls = []
    check = fast_ops._is_standard
    monkeypatch.setattr(
        fast_ops, "_is_standard", lambda *args: calls.append(args) or check(*args)
    )
    model = keras.Sequential([keras.Input((6, 3)), layers.LSTM(5)])
    x = np.zeros((1, 6, 3), "float32")
    model(x)
    kit.compiled(model, eager=True)(x)
    assert not calls
    kit.compiled(model)(x)
    assert calls


@pytest.mark.parametrize("starts", [(0, 2, 0), (0, "place", 0), (1, "place", 2)])
def test_slice_update_where_a_tensor_says(starts):
    whole = np.zeros((3, 7, 4), "float32")
    size = (3, 2, 4) if starts[0] == 0 else (2, 2, 2)
    part = 1.0 + np.arange(np.prod(size), dtype="float32").reshape(size)
    expected = whole.copy()
    expected[starts[0] :, 2:4, starts[2] :] = part

    @kit.compiled
    def fn(x, y, place):
        return ops.slice_update(x, [place if s == "place" else s for s in starts], y)

    if BACKEND == "torch":  # Keras' own takes other dtypes there
        result = ops.convert_to_numpy(fn(whole, part.astype("float16"), 2))
        np.testing.assert_array_equal(result, expected)
    result = ops.convert_to_numpy(fn(whole, part, 2))
    np.testing.assert_array_equal(result, expected)
    assert not whole.any()  # a copy is changed


MEMORY = Path(__file__).parents[1] / "kit" / "engines" / "allocator.py"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is Linux's")
@pytest.mark.parametrize("ours", [True, False])
def test_allocator_is_left_as_its_user_wants_it(ours):
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    env = clean if ours else {**clean, "MALLOC_TRIM_THRESHOLD_": "131072"}
    program = MEMORY.read_text() + "print(keep_freed_memory())"
    result = subprocess.run(  # in a process of its own: nothing takes it back
        [sys.executable, "-c", program], env=env, capture_output=True, text=True
    )
    assert result.stdout.strip() == str(ours), result.stderr


@pytest.mark.skipif(BACKEND != "tensorflow", reason="XLA's choice is TensorFlow's")
def test_tensorflow_draws_by_threefry_where_xla_runs():
    import tensorflow as tf

    def draw(shape=(200, 100)):
        seed = keras.random.SeedGenerator(3)
        return kit.compiled(
            lambda: (
                keras.random.uniform(shape, seed=seed),
                keras.random.normal(shape, seed=seed),
                keras.random.truncated_normal(shape, seed=seed),
                keras.random.dropout(ops.ones(shape), 0.25, seed=seed),
            )
        )()

    uniform, normal, truncated, dropped = (ops.convert_to_numpy(x) for x in draw())
    assert (uniform.min(), uniform.max()) == pytest.approx((0, 1), abs=1e-3)
    assert (uniform.mean(), uniform.var()) == pytest.approx((1 / 2, 1 / 12), abs=0.01)
    assert (normal.mean(), normal.var()) == pytest.approx((0, 1), abs=0.03)
    assert np.abs(truncated).max() == pytest.approx(2, abs=0.01)
    assert np.mean(dropped == 0) == pytest.approx(0.25, abs=0.01)
    assert set(np.unique(dropped)) == {np.float32(0), np.float32(1 / 0.75)}

    @tf.function(jit_compile=True)
    def threefry():
        return tf.random.stateless_uniform((200, 100), seed=[3, 0], alg="threefry")

    np.testing.assert_array_equal(uniform, threefry())
    # Without a program, TensorFlow's own choice stays what it is.
    eager = keras.random.uniform((4,), seed=keras.random.SeedGenerator(3))
    np.testing.assert_array_equal(
        eager, tf.random.stateless_uniform((4,), seed=[3, 0], alg="philox")
    )
