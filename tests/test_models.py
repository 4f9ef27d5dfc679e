"""`kit.Sequential` and `kit.Model` beside Keras' own `fit` and `evaluate`."""

import contextlib
import csv
import gc
import inspect
import itertools
import types
import warnings
import weakref

import gymnasium
import keras
import numpy as np
import pytest
from keras import layers, ops

import kit
import kit.backend
import kit.models

N, BATCH = 20, 4  # five full batches


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(N, 3)).astype("float32")
    return x, (x @ [[1.0], [-2.0], [0.5]] + 0.1).astype("float32")


def dense(*more, **first):
    """A small model: a Dense layer between those given and the output."""
    return kit.Sequential(
        [keras.Input((3,)), layers.Dense(4, **first), *more, layers.Dense(1)]
    )


def count_calls(monkeypatch, name="train"):
    """Returns a list that grows by the number of steps of each program's run."""
    calls = []
    run = getattr(kit.models._Programs, name)

    def counted(self, data, indices):
        calls.append(len(indices))
        return run(self, data, indices)

    monkeypatch.setattr(kit.models._Programs, name, counted)
    return calls


def no_programs(monkeypatch):
    """Makes whatever isn't Keras' own `fit` or `evaluate` fail."""

    def fail(*args):
        raise AssertionError("a program of kit.models was used")

    monkeypatch.setattr(kit.models, "_Programs", fail)


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, values in theirs.items():
        np.testing.assert_allclose(ours[name], values, 1e-4, 1e-5, err_msg=name)


def assert_as_keras(monkeypatch, build, compile_args, x, y=None, **fit_args):
    """Trains two models from the same weights, one with Keras' `fit`."""
    calls = count_calls(monkeypatch)
    fit_args = {"batch_size": BATCH, "epochs": 2, "shuffle": False} | fit_args
    models, histories, results, weights = [], [], [], None
    for cls in (kit.Model, keras.Model):
        model = build()
        weights = weights or model.get_weights()
        model.set_weights(weights)
        model.compile(**compile_args())
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Gradients do not exist")
            warnings.filterwarnings("ignore", "The loss doesn't depend")
            history = cls.fit(model, x, y, verbose=0, **fit_args)
        assert bool(calls) == (cls is kit.Model)
        calls.clear()
        before = model.get_weights()
        if "val_loss" not in history.history:
            results.append(
                cls.evaluate(model, x, y, BATCH, verbose=0, return_dict=True)
            )
        for value, again in zip(before, model.get_weights(), strict=True):
            np.testing.assert_array_equal(value, again)
        models.append(model)
        histories.append(history.history)
    assert_same(*histories)
    if results:
        assert_same(*results)
    for ours, theirs in zip(models[0].weights, models[1].weights, strict=True):
        ours, theirs = map(ops.convert_to_numpy, (ours, theirs))
        np.testing.assert_allclose(ours, theirs, 1e-3, 1e-5)
    return models[0]


# --- The same numbers as Keras ------------------------------------------------


def test_batch_normalization_metrics_and_weights_as_keras(data, monkeypatch):
    x, y = (np.concatenate([a, a[:3]]) for a in data)
    assert_as_keras(
        monkeypatch,
        lambda: dense(layers.BatchNormalization(), activation="tanh"),
        lambda: {
            "optimizer": keras.optimizers.Adam(0.05),
            "loss": "mse",
            "metrics": ["mae", keras.metrics.RootMeanSquaredError()],
            "weighted_metrics": ["mae"],
        },
        x,
        y,
        sample_weight=np.linspace(0.0, 2.0, 23),
        validation_data=(x[:7], y[:7], np.ones(7)),
        validation_batch_size=7,
    )


def two_in_two_out():
    left, right = keras.Input((3,), name="left"), keras.Input((2,), name="right")
    h = layers.Dense(4, activation="relu")(layers.concatenate([left, right]))
    outputs = {
        "value": layers.Dense(1, name="value")(h),
        "label": layers.Dense(3, activation="softmax", name="label")(h),
    }
    return kit.Model({"left": left, "right": right}, outputs)


def test_inputs_and_outputs_in_dicts_as_keras(data, monkeypatch):
    x, y = data  # without a last batch that Keras' backends weigh differently
    labels = np.arange(20) % 3
    assert_as_keras(
        monkeypatch,
        two_in_two_out,
        lambda: {
            "optimizer": keras.optimizers.SGD(0.05, momentum=0.9),
            "loss": {"value": "mse", "label": "sparse_categorical_crossentropy"},
            "loss_weights": {"value": 1.0, "label": 0.3},
            "metrics": {"label": ["accuracy"]},
        },
        {"left": x, "right": x[:, :2]},
        {"value": y, "label": labels},
        sample_weight={"value": np.linspace(0, 1, 20), "label": np.ones(20)},
    )


def test_output_without_a_loss_as_keras(data, monkeypatch):
    x, y = data
    x = {"left": x, "right": x[:, :2]}
    model = assert_as_keras(
        monkeypatch,
        two_in_two_out,
        lambda: {"optimizer": "adam", "loss": {"value": "mse"}},
        x,
        {"value": y},
    )
    kernel = model.get_layer("label").get_weights()[0]
    model.compile("adam", {"value": "mse"})
    with pytest.warns(UserWarning, match="doesn't depend on .*label/kernel"):
        model.fit(x, {"value": y}, verbose=0)
    np.testing.assert_array_equal(kernel, model.get_layer("label").get_weights()[0])


class Activity(layers.Layer):
    def call(self, x):
        self.add_loss(0.1 * ops.mean(ops.square(x)))
        return x


def test_regularizers_and_added_losses_as_keras(data, monkeypatch):
    assert_as_keras(
        monkeypatch,
        lambda: dense(Activity(), kernel_regularizer="l2", activity_regularizer="l1"),
        lambda: {"optimizer": "adam", "loss": "mae"},
        *data,
    )


def test_schedule_clipping_averages_and_split_as_keras(data, monkeypatch):
    def compile_args():
        schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 2, 0.5)
        optimizer = keras.optimizers.AdamW(schedule, clipnorm=0.5, use_ema=True)
        return {"optimizer": optimizer, "loss": "mse"}

    assert_as_keras(
        monkeypatch,
        dense,
        compile_args,
        *data,
        sample_weight=np.linspace(0.0, 2.0, N),
        validation_split=0.4,
    )


def test_what_needs_keras_own_steps_as_keras(data):
    """PyTorch can't compile these: what runs is for the backend to say."""
    for optimizer in (
        lambda: keras.optimizers.Nadam(0.01),
        lambda: keras.optimizers.SGD(0.01, gradient_accumulation_steps=2),
    ):
        model = dense()
        weights, results = model.get_weights(), []
        for cls in (kit.Model, keras.Model):
            model.set_weights(weights)
            model.compile(optimizer(), "mse")
            cls.fit(model, *data, batch_size=BATCH, shuffle=False, verbose=0)
            results.append(model.get_weights())
        for ours, theirs in zip(*results, strict=True):
            np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5)


def test_spectral_normalization_is_the_same_everywhere(monkeypatch):
    """It assigns the kernel in the middle of the loss.

    The figures are those of Keras' own `fit` on TensorFlow and PyTorch; on JAX, that
    forgets what was assigned to a variable that is trained.
    """
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(64, n)).astype("float32") for n in (6, 2))

    def build():
        hidden = layers.SpectralNormalization(layers.Dense(8, activation="relu"))
        model = kit.Sequential([keras.Input((6,)), hidden, layers.Dense(2)])
        rng = np.random.default_rng(1)
        model.set_weights([0.5 * rng.normal(size=w.shape) for w in model.weights])
        return model

    options = {"batch_size": 16, "epochs": 4, "shuffle": False}
    if keras.backend.backend() != "jax":
        assert_as_keras(
            monkeypatch,
            build,
            lambda: {"optimizer": keras.optimizers.SGD(0.05), "loss": "mse"},
            x,
            y,
            **options,
        )
    model = build()
    model.compile(keras.optimizers.SGD(0.05), "mse")
    losses = model.fit(x, y, verbose=0, **options).history["loss"]
    np.testing.assert_allclose(losses, [1.26783, 1.08161, 1.02139, 0.98845], 1e-4)


def test_convolution_as_keras(data, monkeypatch):
    calls = count_calls(monkeypatch, "test")
    image = np.random.default_rng(0).normal(size=(N, 6, 6, 1)).astype("float32")
    assert_as_keras(
        monkeypatch,
        lambda: kit.Sequential(
            [
                keras.Input((6, 6, 1)),
                layers.Conv2D(2, 3, activation="relu"),
                layers.MaxPooling2D(),
                layers.Flatten(),
                layers.Dense(1),
            ]
        ),
        lambda: {"optimizer": "adam", "loss": "mse"},
        image,
        data[1],
    )
    assert set(calls) == {1}


def masked(*more):
    embedding = layers.Embedding(5, 3, mask_zero=True)
    return kit.Sequential([keras.Input((4,)), embedding, *more, layers.Dense(1)])


def test_masked_lstm_as_keras(data, monkeypatch):
    tokens = np.random.default_rng(0).integers(0, 5, size=(N, 4))
    tokens[:, 0] = 1  # cuDNN wants no empty sequence
    y = np.repeat(data[1], 4, axis=1)[..., None]
    assert_as_keras(
        monkeypatch,
        lambda: masked(layers.LSTM(4, return_sequences=True)),
        lambda: {"optimizer": "sgd", "loss": "mse"},
        tokens,
        y,
    )
    # Keras on JAX loses the mask between the loss and a metric.
    model = masked()
    model.compile(keras.optimizers.SGD(0.0), "mse", weighted_metrics=["mae"])
    trained = model.fit(tokens, y, BATCH, shuffle=False, verbose=0).history["mae"]
    error = np.abs(model.predict(tokens, verbose=0) - y)[tokens > 0]
    assert trained == [pytest.approx(error.mean(), rel=1e-4)]
    assert model.evaluate(tokens, y, verbose=0)[1] == pytest.approx(trained[0])


def test_metric_that_is_a_vector_as_keras(data, monkeypatch):
    assert_as_keras(
        monkeypatch,
        lambda: kit.Sequential([keras.Input((3,)), layers.Dense(3, "softmax")]),
        lambda: {
            "optimizer": "adam",
            "loss": "categorical_crossentropy",
            "metrics": [keras.metrics.F1Score(average=None), "accuracy"],
        },
        data[0],
        np.eye(3)[np.arange(N) % 3],
        epochs=1,
    )


# --- Data ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", ["bool", "uint8", "uint16", "int64", "uint64", "float16", "float64"]
)
def test_dtypes_of_data(data, dtype):
    x = np.random.default_rng(0).integers(0, 2, size=(8, 3))
    y = np.random.default_rng(1).integers(0, 2, size=(8, 1))
    model = kit.Sequential([keras.Input((3,)), layers.Dense(1)])
    model.compile("sgd", "mse")
    expected = model.evaluate(x.astype("float32"), y.astype("float32"), verbose=0)
    assert model.evaluate(x.astype(dtype), y.astype(dtype), verbose=0) == (
        pytest.approx(expected)
    )


def test_tensors_views_and_locked_arrays_as_data(data, monkeypatch):
    x, y = data
    model = dense()
    model.compile("sgd", "mse")
    expected = model.evaluate(x, y, verbose=0)
    calls = count_calls(monkeypatch, "test")
    tensors = ops.convert_to_tensor(x), ops.convert_to_tensor(y)
    assert model.evaluate(*tensors, verbose=0) == pytest.approx(expected)
    wide = ops.cast(tensors[1], "float16")
    assert model.evaluate(tensors[0], wide, verbose=0) == (
        pytest.approx(expected, rel=1e-2)
    )
    x, y = x[::-1], np.broadcast_to(y[::-1], (N, 1))
    y.flags.writeable = False
    assert model.evaluate(x, y, verbose=0) == pytest.approx(expected)
    assert calls


def test_numbers_past_32_bits_go_to_keras(data, monkeypatch):
    no_programs(monkeypatch)
    model = dense()
    model.compile("sgd", "mse")
    x = np.full((4, 3), 2**40)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of JAX, that it knows no such numbers
        model.fit(x, data[1][:4], verbose=0)


def test_sequential_that_learns_its_input_shape_from_data(data):
    model = kit.Sequential([layers.Dense(4), layers.Dense(1)])
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(*data, verbose=0)
    assert model.input_shape[1:] == (3,)
    assert model.optimizer.iterations == 1
    model.fit(*data, batch_size=5, verbose=0)
    assert model.predict(data[0], batch_size=7, verbose=0).shape == (N, 1)


def test_nan_in_the_data(data):
    x, y = data[0].copy(), data[1]
    x[5] = np.nan
    model = dense()
    model.compile("sgd", "mse")
    history = model.fit(x, y, epochs=2, verbose=0, check_finite=False).history
    assert np.isnan(history["loss"]).all()
    assert np.isnan(model.get_weights()[0]).all()


def test_bfloat16_policy(data, monkeypatch):
    calls = count_calls(monkeypatch)
    model = kit.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(8, dtype="mixed_bfloat16"),
            layers.Dense(1, dtype="mixed_bfloat16"),
        ]
    )
    model.compile(keras.optimizers.Adam(0.1), "mse")
    losses = model.fit(*data, batch_size=BATCH, epochs=8, verbose=0).history["loss"]
    assert losses[-1] < losses[0] / 4
    assert model.layers[0].kernel.dtype == "float32"
    assert calls


def test_order_of_examples():
    """By a model whose metric keeps what it sees, and which hangs on the order."""
    size = 23
    x = np.arange(size, dtype="float32")[:, None]

    def orders(epochs, seed, **options):
        keras.utils.set_random_seed(seed)
        order = []

        class Seen(keras.metrics.Metric):
            def __init__(self):
                super().__init__(name="seen")
                self.seen = self.add_weight(shape=(BATCH,), initializer="zeros")

            def update_state(self, y_true, y_pred, sample_weight=None):
                values = ops.reshape(y_true, (-1,))
                missing = BATCH - values.shape[0]
                self.seen.assign(ops.pad(values, [[0, missing]], constant_values=-1))

            def result(self):
                return ops.copy(self.seen.value)

        model = kit.Sequential([keras.Input((1,)), layers.Dense(1)])
        model.compile("sgd", "mse", metrics=[Seen()])
        watch = keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: order.extend(logs["seen"])
        )
        model.fit(x, x, BATCH, epochs, verbose=0, callbacks=[watch], **options)
        order = np.array(order).reshape(epochs, -1)
        assert (order[:, -1] == -1).all()  # the last batch was one short
        return order[:, :-1]

    first = orders(2, seed=3)
    np.testing.assert_array_equal(np.sort(first), np.tile(np.arange(size), (2, 1)))
    assert (first[0] != first[1]).any()
    assert (first[0] != np.arange(size)).any()
    np.testing.assert_array_equal(first, orders(2, seed=3))
    assert (first[0] != orders(1, seed=4)[0]).any()
    np.testing.assert_array_equal(orders(1, 3, shuffle=False)[0], np.arange(size))
    # The same on every backend.
    assert first[0, :4].tolist() == [17.0, 6.0, 21.0, 13.0]


def test_dropout_draws_in_each_step():
    """With a gradient of 1 for each unit kept, a weight counts its steps."""
    model = kit.Sequential(
        [keras.Input((64,)), layers.Dropout(0.5, seed=1), Scale(), Sum()]
    )
    model.compile(keras.optimizers.SGD(1.0), lambda y_true, y_pred: -y_pred)
    model.fit(np.ones((6, 64)), np.zeros((6, 1)), batch_size=1, verbose=0)
    kept = -(1.0 - model.get_weights()[0]) / 2.0  # of six draws
    assert set(np.unique(kept)) - {0.0, 6.0}  # not the same mask each time
    assert 0.3 < kept.mean() / 6 < 0.7
    counts = np.bincount(kept.astype(int), minlength=7)
    assert counts[[0, 6]].sum() < 16  # of 64, where 2 are expected


class Scale(layers.Layer):
    def build(self, shape):
        self.scale = self.add_weight(shape=shape[1:], initializer="ones")

    def call(self, x):
        return x * self.scale


class Sum(layers.Layer):
    def call(self, x):
        return ops.sum(x, axis=-1, keepdims=True)


# --- Keras' own fit, where it has to be ---------------------------------------


class OwnStep(kit.Model):
    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def train_step(self, *args):
        self.steps = getattr(self, "steps", 0) + 1
        return super().train_step(*args)


class Batches(keras.utils.PyDataset):
    def __init__(self, x, y):
        super().__init__()
        self.x, self.y = x, y

    def __len__(self):
        return 3

    def __getitem__(self, i):
        return self.x[4 * i : 4 * i + 4], self.y[4 * i : 4 * i + 4]


def generator(x, y):
    for i in itertools.cycle(range(3)):
        yield x[4 * i : 4 * i + 4], y[4 * i : 4 * i + 4]


@pytest.mark.once
@pytest.mark.parametrize(
    "case",
    ["generator", "dataset", "frame", "opt_out", "eager", "later", "steps", "list"],
)
def test_keras_fit_for_what_programs_do_not_do(case, data, monkeypatch):
    x, y = data[0][:12], data[1][:12]
    expected, model = dense(), dense()
    model.set_weights(expected.get_weights())
    expected.compile("sgd", "mse")
    expected.fit(x, y, 4, shuffle=False, verbose=0)
    no_programs(monkeypatch)
    model.compile(
        "sgd",
        "mse",
        jit_compile=False if case == "opt_out" else "auto",
        run_eagerly=case == "eager",
    )
    if case == "later":
        model.run_eagerly = True
    options = {"shuffle": False, "verbose": 0}
    if case == "generator":
        model.fit(generator(x, y), steps_per_epoch=3, **options)
    elif case == "dataset":
        model.fit(Batches(x, y), **options)
    elif case == "frame":
        pandas = pytest.importorskip("pandas")
        model.fit(pandas.DataFrame(x), pandas.DataFrame(y), batch_size=4, **options)
    elif case == "steps":
        model.fit(x, y, batch_size=4, steps_per_epoch=3, **options)
    elif case == "list":  # a list holds one array an input
        with pytest.raises(ValueError):
            model.fit(x.tolist(), y.tolist(), batch_size=4, **options)
        return
    else:
        model.fit(x, y, batch_size=4, **options)
    for ours, theirs in zip(model.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-4, 1e-5)


def test_class_weight_goes_to_keras(data, monkeypatch):
    no_programs(monkeypatch)
    labels = (data[1] > 0).astype("int32")
    model = kit.Sequential([keras.Input((3,)), layers.Dense(1, "sigmoid")])
    model.compile("sgd", "binary_crossentropy", weighted_metrics=["accuracy"])
    logs = model.fit(*(data[0], labels), class_weight={0: 0.0, 1: 1.0}, verbose=0)
    right = (model.predict(data[0], verbose=0) > 0.5)[labels > 0]
    assert 0 <= logs.history["accuracy"][0] <= 1 and len(right) < N


def test_own_train_step_and_validation_from_a_generator_go_to_keras(data, monkeypatch):
    model = OwnStep()
    model.compile("sgd", "mse")
    no_programs(monkeypatch)
    model.fit(*data, BATCH, verbose=0)
    assert model.steps
    model = dense()
    model.compile("sgd", "mse")
    history = model.fit(*data, BATCH, validation_data=Batches(*data), verbose=0)
    assert set(history.history) == {"loss", "val_loss"}
    model.fit(*data, BATCH, shuffle="batch", verbose=0)
    assert model.evaluate(Batches(*data), verbose=0) > 0


def test_limits_of_keras_config(data, monkeypatch):
    model = dense()
    model.compile("sgd", "mse")
    keras.config.set_max_epochs(1)
    try:
        with pytest.warns(UserWarning, match="Limiting epochs"):
            history = model.fit(*data, epochs=3, verbose=0)
    finally:
        keras.config.set_max_epochs(None)
    assert len(history.history["loss"]) == 1


# --- Callbacks ----------------------------------------------------------------


class Recorder(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.heard = []

    def __getattribute__(self, name):
        if not name.startswith("on_"):
            return super().__getattribute__(name)

        def hook(*args, logs=None):
            if args and (args[-1] is None or isinstance(args[-1], dict)):
                *args, logs = args
            self.heard.append((name, *args, sorted(logs or {})))

        return hook


@pytest.mark.once
def test_callbacks_hear_what_they_hear_from_keras(data, monkeypatch):
    x, y = data
    heard = []
    for choice in ("auto", False):
        model = dense()
        model.compile("sgd", "mse", metrics=["mae"], jit_compile=choice)
        recorder = Recorder()
        model.fit(
            x,
            y,
            batch_size=10,
            epochs=4,
            initial_epoch=1,
            validation_data=(x, y),
            validation_freq=[4],
            callbacks=[recorder],
            verbose=0,
        )
        assert model.history.epoch == [1, 2, 3]
        assert len(model.history.history["val_loss"]) == 1
        model.evaluate(x, y, batch_size=10, callbacks=[recorder], verbose=0)
        heard.append(recorder.heard)
    assert heard[0] == heard[1]
    assert ("on_train_batch_end", 1, ["loss", "mae"]) in heard[0]


def test_batch_logs_are_those_of_keras(data):
    losses = []
    weights = None
    for choice in ("auto", False):
        model = dense()
        weights = weights or model.get_weights()
        model.set_weights(weights)
        model.compile("sgd", "mse", jit_compile=choice)
        heard = []
        model.fit(
            *data,
            BATCH,
            shuffle=False,
            verbose=0,
            callbacks=[
                keras.callbacks.LambdaCallback(
                    on_train_batch_end=lambda b, logs, to=heard: to.append(
                        (b, logs["loss"])
                    )
                )
            ],
        )
        losses.append(heard)
    np.testing.assert_allclose(*losses, 1e-5)
    assert [b for b, _ in losses[0]] == list(range(5))


def test_programs_of_many_steps_unless_a_callback_asks(data, monkeypatch, tmp_path):
    calls = count_calls(monkeypatch)
    model = dense()

    def steps(callbacks=(), **compile_args):
        model.compile("sgd", "mse", **compile_args)
        calls.clear()
        model.fit(*data, BATCH, callbacks=list(callbacks), verbose=0)
        return calls

    path = tmp_path / "model.keras"
    assert steps() == [5]
    assert steps([keras.callbacks.EarlyStopping("loss")]) == [5]
    assert steps([keras.callbacks.ModelCheckpoint(path)]) == [5]
    assert path.exists()
    path.unlink()
    assert steps([keras.callbacks.ModelCheckpoint(path, save_freq=2)]) == [1] * 5
    assert path.exists()
    assert steps([keras.callbacks.TerminateOnNaN()]) == [1] * 5
    assert steps(steps_per_execution=2) == [2, 2, 1]
    assert steps(steps_per_execution=50) == [5]
    assert steps([keras.callbacks.TerminateOnNaN()], steps_per_execution=3) == [
        3,
        1,
        1,
    ]
    monkeypatch.setattr(kit.models, "MAX_STEPS_PER_CALL", 3)
    assert steps() == [2, 2, 1]


def test_early_stopping_restores_the_best_weights(data):
    model = dense()
    model.compile(keras.optimizers.SGD(0.01), "mse")
    best = {}

    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["score"] = [3.0, 1.0, 2.0, 5.0, 6.0][epoch]
            if epoch == 1:
                best["weights"] = [w.copy() for w in self.model.get_weights()]

    stop = keras.callbacks.EarlyStopping(
        "score", mode="min", patience=2, restore_best_weights=True
    )
    history = model.fit(*data, BATCH, 5, verbose=0, callbacks=[Worse(), stop])
    assert history.epoch == [0, 1, 2, 3]
    for now, then in zip(model.get_weights(), best["weights"], strict=True):
        np.testing.assert_array_equal(now, then)


def test_usual_callbacks(data, tmp_path):
    model = dense()
    model.compile(keras.optimizers.SGD(0.5), "mse")
    plateau = keras.callbacks.ReduceLROnPlateau(
        "loss", factor=0.1, patience=1, min_delta=1e9
    )
    model.fit(
        *data,
        batch_size=BATCH,
        epochs=3,
        check_finite=False,  # the loss explodes
        validation_split=0.2,
        verbose=0,
        callbacks=[
            keras.callbacks.CSVLogger(tmp_path / "log.csv"),
            keras.callbacks.ModelCheckpoint(tmp_path / "{epoch}.weights.h5",
                                            save_weights_only=True),
            plateau,
        ],
    )  # fmt: skip
    with open(tmp_path / "log.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1", "2"]
    np.testing.assert_allclose(
        [float(row["val_loss"]) for row in rows], model.history.history["val_loss"]
    )
    np.testing.assert_allclose(
        model.history.history["learning_rate"], [0.5, 0.5, 0.05], rtol=1e-6
    )
    weights = model.get_weights()
    model.load_weights(tmp_path / "3.weights.h5")
    for now, then in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(now, then)


def test_backup_and_restore_goes_on_where_it_stopped(data, tmp_path):
    class Crash(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    for callbacks, epochs in (([Crash()], []), ([], [2, 3])):
        model = dense()
        model.compile("sgd", "mse")
        backup = keras.callbacks.BackupAndRestore(tmp_path / "backup")
        try:
            history = model.fit(
                *data, BATCH, 4, callbacks=[backup, *callbacks], verbose=0
            )
        except KeyboardInterrupt:
            continue
        assert history.epoch == epochs
        assert model.optimizer.iterations == 4 * 5


def test_terminate_on_nan_and_stop_in_the_middle_of_an_epoch(data):
    x = data[0].copy()
    x[9] = np.inf
    model = dense()
    model.compile("sgd", "mse")
    model.fit(
        x,
        data[1],
        BATCH,
        shuffle=False,
        epochs=3,
        verbose=0,
        callbacks=[keras.callbacks.TerminateOnNaN()],
        check_finite=False,
    )
    assert model.history.epoch == [0]
    assert model.optimizer.iterations == 3
    model = dense()
    model.compile("sgd", "mse")

    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            self.model.stop_training = batch == 1

        def on_test_batch_end(self, batch, logs=None):
            self.model.stop_evaluating = batch == 2

    model.fit(*data, BATCH, epochs=3, verbose=0, callbacks=[Stop()])
    assert model.history.epoch == [0]
    assert model.optimizer.iterations == 2
    part = model.evaluate(*data, BATCH, verbose=0, callbacks=[Stop()])
    first = model.evaluate(data[0][:12], data[1][:12], BATCH, verbose=0)
    assert part == pytest.approx(first)


def test_a_list_of_callbacks_of_ones_own(data):
    model = dense()
    model.compile("sgd", "mse")
    recorder = Recorder()
    callbacks = keras.callbacks.CallbackList(
        [recorder], add_history=True, model=model, epochs=1, steps=5, verbose=0
    )
    history = model.fit(*data, BATCH, callbacks=callbacks)
    assert len(history.history["loss"]) == 1
    assert sum(name == "on_train_batch_end" for name, *_ in recorder.heard) == 5


def lines(text):
    """The words of each line, without times and other numbers."""
    return [
        [x for x in row.split() if x.endswith(":") or "/" in x and "/step" not in x]
        for row in text.splitlines()
    ]


@pytest.mark.once
def test_progress_is_printed_as_by_keras(data, capsys):
    model = dense()
    model.compile("sgd", "mse", metrics=["mae"])
    printed = {}
    for cls in (kit.Model, keras.Model):
        for verbose in (0, 1, 2, "auto"):
            cls.fit(model, *data, BATCH, 2, validation_split=0.4, verbose=verbose)
            cls.evaluate(model, *data, verbose=verbose)
            printed[cls, verbose] = capsys.readouterr().out
    assert printed[kit.Model, 0] == ""
    assert lines(printed[kit.Model, 2]) == lines(printed[keras.Model, 2])
    for verbose in (1, "auto"):
        ours, theirs = (
            lines(printed[cls, verbose]) for cls in (kit.Model, keras.Model)
        )
        assert ours[0] == theirs[0] == ["1/2"]
        assert ours[-1][-3:] == theirs[-1][-3:]
        assert "val_mae:" in sum(ours, []) and "2/2" in sum(ours, [])


# --- Between fits -------------------------------------------------------------


def test_second_fit_compiles_nothing(data):
    model = dense()
    model.compile("adam", "mse", metrics=["mae"])
    model.fit(*data, BATCH, validation_data=data, verbose=0)
    before = kit.compile_seconds()
    model.fit(*data, BATCH, epochs=3, validation_data=data, verbose=0)
    model.evaluate(*data, BATCH, verbose=0)
    x, y = (a[::-1].copy() for a in data)
    model.fit(x, y, BATCH, verbose=0)
    assert kit.compile_seconds() == before
    assert model.optimizer.iterations == 5 * 5
    model.fit(*data, batch_size=7, verbose=0)
    assert kit.compile_seconds() > before
    assert model.optimizer.iterations == 5 * 5 + 3


def test_layers_frozen_and_freed_between_fits(data):
    model = dense()
    model.compile("sgd", "mse")
    model.fit(*data, verbose=0)
    frozen = model.layers[0]
    for trainable in (False, True):
        frozen.trainable = trainable
        before, others = frozen.get_weights()[0], model.layers[1].get_weights()[0]
        model.fit(*data, verbose=0)
        assert (frozen.get_weights()[0] == before).all() != trainable
        assert (model.layers[1].get_weights()[0] != others).any()
    model.trainable = False
    before = model.get_weights()
    model.compile("sgd", "mse")
    assert np.isfinite(model.fit(*data, verbose=0).history["loss"]).all()
    for now, then in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("mode", ["int8", "lora"])
def test_layers_that_change_are_compiled_again(mode, data):
    """Where the trainable variables stay the same, too."""
    x, y = data
    model = dense(activation="relu")
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    model.fit(x, y, BATCH, verbose=0)
    before = model.evaluate(x, y, verbose=0)
    if mode == "int8":
        model.layers[0].quantize(mode)
    else:
        model.layers[0].enable_lora(2)
        model.layers[0].lora_kernel_b.assign(np.ones((2, 4)))
    expected = np.mean((ops.convert_to_numpy(model(x)) - y) ** 2)
    assert abs(before - expected) > 1e-5
    np.testing.assert_allclose(model.evaluate(x, y, verbose=0), expected, 1e-4)

    theirs = keras.Sequential(model.layers)
    weights = model.get_weights()
    results = []
    for each in (model, theirs):
        each.set_weights(weights)
        each.compile("sgd", "mse")
        results.append(each.fit(x, y, BATCH, 2, 0, shuffle=False).history["loss"])
    np.testing.assert_allclose(*results, 1e-4)


def test_compiled_anew_between_fits(data):
    model = dense()
    model.compile(keras.optimizers.SGD(0.0), "mse")
    model.fit(*data, verbose=0)
    error = model.predict(data[0], verbose=0) - data[1]
    model.compile(keras.optimizers.SGD(0.0), "mae", metrics=["mse"])
    history = model.fit(*data, verbose=0).history
    assert history["loss"][0] == pytest.approx(np.abs(error).mean(), rel=1e-4)
    assert history["mse"][0] == pytest.approx((error**2).mean(), rel=1e-4)
    before = model.get_weights()[0]
    model.compile(keras.optimizers.Adam(0.1), "mse")
    model.fit(*data, verbose=0)
    np.testing.assert_allclose(np.abs(model.get_weights()[0] - before), 0.1, 1e-2)


def test_learning_rate_set_by_a_callback(data):
    model = dense()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch: [0.1, 0.0][epoch])
    seen = [model.get_weights()[0]]
    watch = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda *_: seen.append(model.get_weights()[0])
    )
    model.fit(*data, epochs=2, verbose=0, callbacks=[scheduler, watch])
    assert (seen[0] != seen[1]).any()
    np.testing.assert_array_equal(seen[1], seen[2])


def test_predict_agrees_with_evaluate(data):
    model = dense(layers.BatchNormalization(), layers.Dropout(0.5))
    model.compile("adam", "mse")
    model.fit(*data, BATCH, epochs=2, verbose=0)
    error = model.predict(data[0], verbose=0) - data[1]
    assert model.evaluate(*data, BATCH, verbose=0) == (
        pytest.approx((error**2).mean(), rel=1e-4)
    )
    named = model.evaluate(*data, BATCH, verbose=0, return_dict=True)
    assert named == {"loss": pytest.approx((error**2).mean(), rel=1e-4)}


def held(compiled_fn):
    """Weak references to a compiled function's programs and what these consist of."""
    refs, found = [], list(compiled_fn._programs.values())
    while found:
        part = found.pop()
        if isinstance(part, (types.ModuleType, kit.backend._Compiled, keras.Model)) or (
            part is kit.engines.running.get_engine()
        ):
            continue
        with contextlib.suppress(TypeError):  # such as of a list
            refs.append(weakref.ref(part))
        found += [
            cell.cell_contents for cell in getattr(part, "__closure__", None) or ()
        ]
    return refs


def assert_released(compiled_fn, compile_again):
    refs = held(compiled_fn)
    assert len(refs) > 1 and all(ref() is not None for ref in refs)
    gc.collect()
    gc.disable()  # it would come by some time: nothing is to wait for it
    try:
        compile_again()
        assert [ref() for ref in refs if ref() is not None] == []
    finally:
        gc.enable()


def test_compiling_anew_releases_the_programs(data):
    model = dense()
    model.compile("adam", "mse")
    model.fit(*data, BATCH, validation_data=data, verbose=0)
    programs = model.__dict__["_programs"]
    assert_released(programs._train, lambda: model.compile("adam", "mse"))
    model.fit(*data, BATCH, validation_data=data, verbose=0)
    programs = model.__dict__["_programs"]
    assert_released(programs._test, lambda: model.compile("adam", "mse"))
    model.fit(*data, BATCH, verbose=0)
    model.layers[0].trainable = False
    old = held(model.__dict__["_programs"]._train)
    model.fit(*data, BATCH, verbose=0)
    gc.collect()
    assert not any(ref() for ref in old)


def test_compiling_anew_releases_what_was_traced(data):
    """Also what TensorFlow registers: its optimizers, and silu, as custom gradients."""
    refs = []

    class Recording(kit.Sequential):
        def compute_loss(self, x, y, y_pred, sample_weight):
            loss = super().compute_loss(x, y, y_pred, sample_weight)
            if kit.backend.is_tracing():
                refs.append(weakref.ref(loss))
            return loss + ops.mean(ops.silu(y_pred))

    model = Recording([keras.Input((3,)), layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(*data, BATCH, verbose=0)
    assert refs
    gc.collect()
    model.compile("adam", "mse")
    assert [ref() for ref in refs if ref() is not None] == []


def test_compiling_an_agent_anew_releases_its_programs():
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
    space = envs.single_action_space
    networks = [kit.policy_network((4,), space), kit.value_network((4,))]
    options = {"num_steps": 8}
    for agent in (
        kit.DQN(kit.q_network((4,), 2), learning_starts=8),
        kit.A2C(*networks, **options),
        kit.PPO(*networks, num_minibatches=2, **options),
    ):
        agent.compile("adam")
        agent.fit(envs, 32, verbose=0)
        learn = agent.__dict__["_learn"]
        if not isinstance(learn, kit.backend._Compiled):  # the agent's numbers go first
            learn = inspect.getclosurevars(learn).nonlocals["program"]
        assert_released(learn, lambda a=agent: a.compile("adam"))
    assert np.isfinite(agent.fit(envs, 32, verbose=0).history["value_loss"]).all()


# --- Saving, copying, deriving ------------------------------------------------


@pytest.mark.variants
@pytest.mark.parametrize("kind", ["sequential", "functional", "derived"])
def test_round_trip_goes_on_training(kind, data, tmp_path, monkeypatch):
    if kind == "sequential":
        model = dense()
    elif kind == "functional":
        inputs = keras.Input((3,))
        model = kit.Model(inputs, layers.Dense(1)(layers.Dense(4)(inputs)))
        assert isinstance(model, kit.Model)
    else:
        model = Derived(4)
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    model.fit(*data, BATCH, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert type(loaded) is type(model)
    assert type(model).from_config(model.get_config()).name == model.name
    assert loaded.get_compile_config() == model.get_compile_config()
    assert loaded.get_compile_config()["jit_compile"] == "auto"
    calls = count_calls(monkeypatch)
    for one in (model, loaded):
        one.fit(*data, BATCH, shuffle=False, verbose=0)
    assert calls == [5, 5]
    np.testing.assert_allclose(
        model.predict(data[0], verbose=0), loaded.predict(data[0], verbose=0), 1e-5
    )
    assert loaded.optimizer.iterations == 10
    model.compile("sgd", "mse", jit_compile=False)
    model.fit(*data, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    calls.clear()
    loaded.fit(*data, verbose=0)
    assert not calls


@keras.saving.register_keras_serializable(package="test_models")
class Derived(kit.Model):
    """Has a loss and a result of its own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.hidden = layers.Dense(units)
        self.out = layers.Dense(1)

    def build(self, input_shape):
        self.hidden.build(input_shape)
        self.out.build((None, self.units))

    def call(self, x):
        return self.out(self.hidden(x))

    def get_config(self):
        return super().get_config() | {"units": self.units}


def test_functional_models_leave_the_base_class_alone(data):
    inputs = keras.Input((3,))
    functional = kit.Model(inputs, layers.Dense(1)(inputs))

    class Named(kit.Model):
        pass

    named = Named(inputs=inputs, outputs=functional.output)
    for model in (functional, named, Derived(2)):
        model.compile("sgd", "mse")
        model.fit(*data, verbose=0)
    assert isinstance(named, Named) and isinstance(functional, kit.Model)
    copy = keras.models.clone_model(functional)
    assert isinstance(copy, kit.Model)
    assert copy.count_params() == functional.count_params()
    assert keras.models.clone_model(dense()).count_params() == dense().count_params()


def test_copies_are_of_the_same_class(data):
    class Own(kit.Sequential):
        def train_batch(self, x, y=None, sample_weight=None):
            return super().train_batch(x, y, sample_weight)

    for cls in (kit.Sequential, Own):
        model = cls([keras.Input((3,)), layers.Dense(1)])
        copy = type(model).from_config(model.get_config())
        assert type(copy) is cls and copy.count_params() == model.count_params()

    class Named(kit.Model):
        def train_batch(self, x, y=None, sample_weight=None):
            return super().train_batch(x, y, sample_weight)

    inputs = keras.Input((3,))
    for cls in (kit.Model, Named):
        model = cls(inputs, layers.Dense(1)(inputs))
        copy = keras.models.clone_model(model)
        assert type(copy) is type(model)
        copy.compile("sgd", "mse")
        assert np.isfinite(copy.fit(*data, verbose=0).history["loss"]).all()


def test_agents_export_the_network_that_acts(monkeypatch, tmp_path):
    exported = []
    export = keras.Model.export

    def record(self, path, **kwargs):
        exported.append(self)
        if keras.backend.backend() == "tensorflow":
            export(self, path, **kwargs)

    monkeypatch.setattr(keras.Model, "export", record)
    envs = gymnasium.make_vec("CartPole-v1", num_envs=2)
    space = envs.single_action_space
    obs = np.random.default_rng(0).normal(size=(5, 4)).astype("float32")
    actor, critic = kit.policy_network((4,), space), kit.value_network((4,))
    ppo = kit.PPO(actor, critic, num_steps=8, normalize_observations=True)
    ppo.compile("adam")
    ppo.fit(envs, 16, verbose=0)  # statistics
    dqn = kit.DQN(kit.q_network((4,), 2))
    for agent, network in (
        (ppo, ppo.policy),
        (kit.A2C(kit.shared_network((4,), space)), None),
        (dqn, dqn.q_network),
    ):
        path = tmp_path / type(agent).__name__
        agent.export(path, verbose=False)
        expected = ops.convert_to_numpy((network or agent.policy)(obs))
        outputs = ops.convert_to_numpy(exported[-1](obs))
        np.testing.assert_allclose(outputs, expected, 1e-5)
        if keras.backend.backend() == "tensorflow":
            import tensorflow as tf

            loaded = tf.saved_model.load(path)  # holds the variables
            outputs = loaded.serve(obs)
            np.testing.assert_allclose(outputs, expected, 1e-4, 1e-5)
    with pytest.raises(NotImplementedError, match="np.save"):
        kit.QLearning(num_states=2, num_actions=2).export(tmp_path / "table")


def test_compute_loss_and_metrics_of_ones_own(data, monkeypatch):
    class Own(Derived):
        def compute_loss(self, x, y, y_pred, sample_weight):
            return ops.mean(ops.abs(y - y_pred)) + 0.0 * ops.sum(x)

        def compute_metrics(self, x, y, y_pred, sample_weight=None):
            logs = super().compute_metrics(x, y, y_pred, sample_weight)
            return logs | {"largest": ops.max(y)}

    assert_as_keras(
        monkeypatch,
        lambda: build(Own(3)),
        lambda: {"optimizer": "sgd", "metrics": ["mse"]},
        *data,
    )
    model = Own(3)
    model.compile("sgd")
    assert model.evaluate(*data, BATCH, verbose=0, return_dict=True)["largest"] == (
        pytest.approx(data[1][-4:].max())
    )


def build(model):
    model.build((None, 3))
    return model


# --- Errors -------------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize(
    "change, message",
    [
        ({"y": np.zeros((5, 1))}, "same number of examples"),
        ({"sample_weight": np.ones(4)}, "same number of examples"),
        ({"validation_data": (np.ones((2, 3)), np.ones((3, 1)))}, "same number"),
        ({"validation_split": 1.0}, "validation_split=1.0"),
        ({"validation_split": -0.5}, "validation_split=-0.5"),
        ({"x": np.zeros((0, 3)), "y": np.zeros((0, 1))}, "no example"),
        ({"batch_size": -1}, "batch_size .* received -1"),
        ({"batch_size": 2.5}, "batch_size .* received 2.5"),
        ({"x": np.zeros((N, 2))}, r"[Ii]nput"),
        ({"validation_freq": "often", "validation_split": 0.5}, "validation_freq"),
    ],
)  # fmt: skip
def test_errors_before_anything_changes(change, message, data):
    model = dense()
    model.compile("sgd", "mse")
    before = model.get_weights()
    arguments = {"x": data[0], "y": data[1], "verbose": 0} | change
    with pytest.raises(ValueError, match=message):
        model.fit(**arguments)
    if "validation_freq" not in change:
        for now, then in zip(model.get_weights(), before, strict=True):
            np.testing.assert_array_equal(now, then)
    model.fit(*data, verbose=0)  # nothing is in the way of a right call


class OwnBatch(kit.Model):
    """A linear model with steps of its own, with or without a `call`."""

    def __init__(self, build=True):
        super().__init__()
        self.dense = layers.Dense(1)
        if build:
            self.dense.build((None, 3))
        self.error = keras.metrics.Mean(name="error")
        self.weighted = keras.metrics.Mean(name="weighted")

    def compute_error(self, x, y):
        return ops.mean(ops.square(y - self.dense(x)))

    def train_batch(self, x, y=None, sample_weight=None):
        loss = kit.minimize(
            lambda: self.compute_error(x, y), self.trainable_variables, self.optimizer
        )
        self.error.update_state(loss)
        if sample_weight is not None:
            self.weighted.update_state(ops.sum(sample_weight))
            return {}
        return {"error": self.error.result(), "last": loss}


class OwnBatches(OwnBatch):
    def test_batch(self, x, y=None, sample_weight=None):
        self.error.update_state(self.compute_error(x, y))
        return {"error": self.error.result()}


class OwnTest(kit.Model):
    """Trains as Keras does, and has an evaluation of its own."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(1)

    def call(self, x):
        return self.dense(x)

    def test_batch(self, x, y=None, sample_weight=None):
        return {"error": ops.mean(ops.square(y - self(x)))}


def test_own_train_batch_is_the_training_step(data, monkeypatch):
    x, y = data
    calls = count_calls(monkeypatch)
    model = OwnBatches()
    kernel = ops.convert_to_numpy(model.dense.kernel)
    model.compile(keras.optimizers.SGD(0.1))
    fit = model.fit(x, y, BATCH, epochs=3, verbose=0, shuffle=False)
    assert calls == [5, 5, 5]  # batches in each of three programs' runs

    bias, errors = np.zeros(1), []
    for first in np.tile(np.arange(0, N, BATCH), 3):
        a, b = x[first : first + BATCH], y[first : first + BATCH]
        difference = a @ kernel + bias - b
        errors.append(np.mean(difference**2))
        kernel = kernel - 0.1 * 2 * a.T @ difference / BATCH
        bias = bias - 0.1 * 2 * np.mean(difference, axis=0)
    np.testing.assert_allclose(model.dense.kernel, kernel, rtol=1e-4)
    expected = np.reshape(errors, (3, 5))
    np.testing.assert_allclose(fit.history["error"], expected.mean(1), rtol=1e-4)
    np.testing.assert_allclose(fit.history["last"], expected[:, -1], rtol=1e-4)

    test = model.evaluate(x, y, N, verbose=0, return_dict=True)
    assert test["error"] == pytest.approx(np.mean((x @ kernel + bias - y) ** 2), 1e-4)


def test_own_train_batch_gets_weights_and_reports_all_metrics(data):
    x, y = data
    model = OwnBatch()
    model.compile("sgd")
    fit = model.fit(x, y, N, sample_weight=np.ones(N), verbose=0)
    assert set(fit.history) == {"error", "weighted"}
    assert fit.history["weighted"] == [N]


def test_own_train_batch_with_a_call_builds_by_itself(data):
    class WithCall(OwnBatch):
        def call(self, x):
            return self.dense(x)

    model = WithCall(build=False)
    model.compile("sgd")
    assert model.fit(*data, verbose=0, epochs=2).history["error"][1] > 0


def test_own_train_batch_is_never_passed_over(data):
    x, y = data
    model = OwnBatch()
    model.compile("sgd")
    before = model.get_weights()
    with pytest.raises(ValueError, match="own train_batch: x holds .* type Batches"):
        model.fit(Batches(x, y))
    with pytest.raises(ValueError, match="override test_batch as well"):
        model.fit(x, y, validation_data=(x, y))
    with pytest.raises(ValueError, match="override test_batch as well"):
        model.evaluate(x, y)
    tested = OwnTest()
    tested.compile("sgd", "mse")
    with pytest.raises(ValueError, match="own test_batch: class_weight is given"):
        tested.fit(x, y, class_weight={0: 1.0}, validation_data=(x, y))
    assert int(ops.convert_to_numpy(tested.optimizer.iterations)) == 0
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


def assert_refused(model, message, *data, **arguments):
    """`fit` and `evaluate` of a model of its own steps say why they can't use them."""
    before = model.get_weights()
    for called in ("fit", "evaluate"):
        with pytest.raises(ValueError, match=message) as error:
            getattr(model, called)(*data, verbose=0, **arguments)
        assert str(error.value).startswith(f"{type(model).__name__}.{called} can't run")
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"jit_compile": False}, "own test_batch|own train_batch: .*jit_compile=False"),
        ({"run_eagerly": True}, "own (train|test)_batch: run_eagerly is set"),
    ],
)
def test_refused_for_what_compile_was_given(arguments, message, data):
    model = OwnBatches()
    model.compile("sgd", **arguments)
    assert_refused(model, message, *data)


@pytest.mark.parametrize(
    "x, message",
    [
        (np.zeros((N, 3), "complex64"), "x holds an array of dtype complex64"),
        (np.full((N, 3), 2**40), "x holds int64 numbers beyond 32 bits"),
        (None, "x is None"),
        ([[1.0, 2.0]] * N, "x holds an object of type float"),
        (np.ones(()), "x holds an array without an axis"),
    ],
)
def test_refused_for_the_data(x, message, data):
    model = OwnBatches()
    model.compile("sgd")
    assert_refused(model, message, x, data[1])


def test_refused_for_the_size_of_the_data(data, monkeypatch):
    model = OwnBatches()
    model.compile("sgd")
    monkeypatch.setattr(kit.models, "MAX_BYTES", 100)
    assert_refused(model, "the data takes 0.0 GiB, more than", *data)


@pytest.mark.parametrize(
    "arguments, name",
    [
        ({"steps_per_epoch": 2}, "steps_per_epoch"),
        ({"validation_data": None, "validation_steps": 2}, "validation_steps"),
        ({"shuffle": "batch"}, "shuffle='batch'"),
        ({"class_weight": {0: 1.0}}, "class_weight"),
    ],
)
def test_refused_for_arguments_of_fit(arguments, name, data):
    model = OwnBatches()
    model.compile("sgd")
    with pytest.raises(ValueError, match=f"own train_batch: {name} is given"):
        model.fit(*data, verbose=0, **arguments)
    with pytest.raises(ValueError, match="own test_batch: steps is given"):
        model.evaluate(*data, verbose=0, steps=2)
    with pytest.raises(ValueError, match="in validation_data, x holds .* Batches"):
        model.fit(*data, verbose=0, validation_data=Batches(*data))


def test_refused_for_limits_and_a_train_step(data):
    model = OwnBatches()
    model.compile("sgd")
    keras.config.set_max_epochs(1)
    try:
        assert_refused(model, r"keras.config.set_max_epochs\(None\)", *data)
    finally:
        keras.config.set_max_epochs(None)

    class Both(OwnBatches):
        def train_step(self, *args):
            return {}

    model = Both()
    model.compile("sgd")
    with pytest.raises(ValueError, match="also has a train_step of its own"):
        model.fit(*data, verbose=0)


@pytest.mark.parametrize(
    "make, reason",
    [
        (lambda: keras.optimizers.Nadam(), "Nadam.* use Adam"),
        (
            lambda: keras.optimizers.SGD(gradient_accumulation_steps=2),
            ".gradient_accumulation_steps.* larger batch",
        ),
        (
            lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD()),
            "a LossScaleOptimizer.* bfloat16",
        ),
    ],
)
def test_refused_for_an_optimizer_that_the_backend_cannot_compile(make, reason, data):
    model = OwnBatches()
    model.compile(make())
    if keras.backend.backend() == "torch":
        assert_refused(model, f"own .*_batch: PyTorch can't compile {reason}", *data)
        kit.run_eagerly()  # as the message says
    try:
        assert np.isfinite(model.fit(*data, verbose=0).history["error"]).all()
    finally:
        kit.run_eagerly(False)


@pytest.mark.skipif(
    keras.backend.backend() != "jax", reason="Keras distributes on JAX only"
)
def test_refused_for_a_distribution(data):
    model = OwnBatches()
    model.compile("sgd")
    devices = keras.distribution.list_devices()[:1]
    keras.distribution.set_distribution(
        keras.distribution.DataParallel(devices=devices)
    )
    try:
        assert_refused(model, r"a distribution is set.*set_distribution\(None", *data)
    finally:
        keras.distribution.set_distribution(None)


# --- One batch by itself ------------------------------------------------------


@pytest.mark.variants
@pytest.mark.parametrize("how", ["auto", "eager", "keras", "unbuilt", "after fit"])
def test_one_batch_by_itself_is_one_batch_of_fit(how, data):
    arguments = {
        "loss": "mse",
        "metrics": ["mae"],
        "run_eagerly": how == "eager",
        "jit_compile": False if how == "keras" else "auto",
    }

    def make():
        kernels = [keras.initializers.GlorotUniform(seed) for seed in (1, 2)]
        stack = [layers.Dense(4, kernel_initializer=kernels[0])]
        stack.append(layers.Dense(1, kernel_initializer=kernels[1]))
        return kit.Sequential(
            stack if how == "unbuilt" else [keras.Input((3,)), *stack]
        )

    models = [make(), make()]
    for model in models:
        model.compile(keras.optimizers.SGD(0.1), **arguments)
        if how == "after fit":
            model.fit(*data, BATCH, shuffle=False, verbose=0)
    one, fitted = models
    part = [a[:7] for a in data]
    weight = np.linspace(0.5, 1.5, 7).astype("float32")
    for _ in range(2):
        logs = one.train_batch(*part, weight)
        expected = fitted.fit(
            *part, 7, sample_weight=weight, shuffle=False, verbose=0
        ).history
        assert set(logs) == set(expected) == {"loss", "mae"}
        for name, value in logs.items():
            assert value == pytest.approx(expected[name][0], rel=1e-4)
    for ours, theirs in zip(one.get_weights(), fitted.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, 1e-5, 1e-6)
    before = one.get_weights()
    logs = one.test_batch(*part)
    assert logs == {
        name: pytest.approx(value, rel=1e-4)
        for name, value in fitted.evaluate(
            *part, verbose=0, return_dict=True
        ).items()
    }  # fmt: skip
    for now, then in zip(one.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_one_batch_before_anything_else(data):
    model = kit.Sequential([layers.Dense(1)])
    model.compile("sgd", "mse")
    assert set(model.test_batch(*data)) == {"loss"}
    with pytest.raises(ValueError, match="compile"):
        dense().train_batch(*data)
    with pytest.raises(ValueError, match="train_batch: x holds an object of type"):
        model.train_batch(Batches(*data))


def test_one_batch_of_a_step_that_asks_for_keras_step(data):
    class Counting(Derived):
        def train_batch(self, x, y=None, sample_weight=None):
            self.count.assign_add(1.0)
            return super().train_batch(x, y, sample_weight)

    model = Counting(4)
    model.count = keras.Variable(0.0, trainable=False)
    build(model).compile(keras.optimizers.SGD(0.1), "mse")
    first = model.train_batch(*data)["loss"]
    assert float(ops.convert_to_numpy(model.count.value)) == 1.0
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 1
    history = model.fit(*data, N, epochs=2, verbose=0).history
    assert first > history["loss"][0] > history["loss"][1]
    assert float(ops.convert_to_numpy(model.count.value)) == 3.0
    kit.run_eagerly()
    try:
        again = model.fit(*data, N, verbose=0).history["loss"]
    finally:
        kit.run_eagerly(False)
    assert again < history["loss"][1:]


def test_one_batch_in_a_program_of_ones_own(data):
    model = dense()
    model.compile(keras.optimizers.SGD(0.1), "mse")

    @kit.compiled
    def two_steps(x, y):
        return model.train_batch(x, y), model.train_batch(x, y)

    first, second = two_steps(*data)
    assert float(ops.convert_to_numpy(second["loss"])) < float(
        ops.convert_to_numpy(first["loss"])
    )
    assert int(ops.convert_to_numpy(model.optimizer.iterations)) == 2


def test_model_that_is_not_compiled(data):
    model = dense()
    with pytest.raises(ValueError, match="compile"):
        model.fit(*data, verbose=0)
    with pytest.raises(ValueError, match="compile"):
        model.evaluate(*data, verbose=0)
    model.compile("sgd", "mse")
    with pytest.raises(TypeError, match="banana"):
        model.fit(*data, banana=1)
    with pytest.raises(ValueError, match="banana"):
        model.evaluate(*data, banana=1)
