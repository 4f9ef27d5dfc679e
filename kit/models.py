"""`fit` and `evaluate` as Keras users know them, at the speed of native code.

Keras' own `fit` hands one batch at a time from Python to the backend, and computes
the logs between two of them. Here the data lies on the device, and one compiled
program gathers a batch, trains on it, updates the metrics, and goes on to the next,
for many batches; the callbacks and the progress bar hear of it every few dozen. The
mathematics is Keras': the model's own `compute_loss`, metrics and optimizer.

    model = kit.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(x, y, epochs=3)                        # many steps in one program
    model.compile("adam", "mse", jit_compile=False)  # Keras' own `fit` from now on

Keras' own `fit` also runs, and gets the same results more slowly, where this one
has no better way: data that isn't in arrays (a generator, `tf.data`, a
`DataLoader`, a data frame), `class_weight`, `steps_per_epoch`, `run_eagerly=True`,
a `train_step` of your own, a Keras distribution, data of more than 4 GiB.
"""

import inspect
import math
from typing import Any

import keras
import numpy as np
from keras import ops

from kit.backend import compiled, minimize, scan

# Between two reports to the callbacks; few enough for a progress bar to move.
MAX_STEPS_PER_CALL = 64
MAX_BYTES = 4 * 2**30

BATCH_HOOKS = {
    "train": (
        "on_batch_begin",
        "on_batch_end",
        "on_train_batch_begin",
        "on_train_batch_end",
    ),
    "test": ("on_test_batch_begin", "on_test_batch_end"),
}

# Convolutions are work enough for a program of their own, and XLA on CPUs runs them
# ten times slower inside a loop.
CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
    keras.layers.DepthwiseConv1D,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv1D,
    keras.layers.SeparableConv2D,
)


class CompiledFit:
    """What `Sequential` and `Model` add to Keras' classes of these names.

    A mixin for your own: `class VAE(kit.CompiledFit, keras.Model)`. Whatever you
    override of `call`, `compute_loss` and `compute_metrics` is used.
    """

    def compile(self, *args, **kwargs):
        """As Keras'. `jit_compile=False` chooses Keras' own `fit` and `evaluate`."""
        super().compile(*args, **kwargs)
        arguments = inspect.signature(keras.Model.compile).bind(self, *args, **kwargs)
        # Past Keras' __setattr__, which would take what it finds for a part of the
        # model. Programs belong to the loss and optimizer that they were made with.
        self.__dict__["_wants_programs"] = arguments.arguments.get(
            "jit_compile", "auto"
        ) is not False and not arguments.arguments.get("run_eagerly", False)
        self.__dict__.pop("_programs", None)

    def compile_from_config(self, config):
        """Compiles a loaded model as it was compiled when it was saved."""
        self.compile(**keras.saving.deserialize_keras_object(config))
        if self.optimizer is not None and self.built:
            self.optimizer.build(self.trainable_variables)

    def fit(
        self,
        x=None,
        y=None,
        batch_size=None,
        epochs=1,
        verbose="auto",
        callbacks=None,
        validation_split=0.0,
        validation_data=None,
        shuffle=True,
        class_weight=None,
        sample_weight=None,
        initial_epoch=0,
        steps_per_epoch=None,
        validation_steps=None,
        validation_batch_size=None,
        validation_freq=1,
    ):
        """Trains the model; arguments and results are those of `keras.Model.fit`.

        The order of the examples is drawn from NumPy's global seed, which
        `keras.utils.set_random_seed` sets: the same order on every backend. A
        callback that asks for single batches gets them, at one program a batch;
        `compile(steps_per_execution=...)` sets the number of batches in a program.

        Returns:
            `keras.callbacks.History`.

        Raises:
            ValueError: If the arrays don't have the same number of examples.
        """
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if (
            not self._can_compile(x, y, sample_weight, "train_step")
            or class_weight is not None
            or steps_per_epoch is not None
            or validation_steps is not None
        ):
            return super().fit(**options)

        data = _Data(x, y, sample_weight)
        if validation_split and validation_data is None:
            data, validation = data.split(validation_split)
        elif validation_data is not None and self._can_compile(
            *_unpack(validation_data), "test_step"
        ):
            validation = _Data(*_unpack(validation_data))
        elif validation_data is not None:
            return super().fit(**options)
        else:
            validation = None
        batch_size = batch_size or 32
        batches = _Batches(data.size, batch_size)
        programs = self._get_programs(data, batch_size)

        progress: Any = callbacks
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            progress = keras.callbacks.CallbackList(
                callbacks,
                add_history=True,
                add_progbar=verbose != 0,
                verbose=1 if verbose == "auto" else verbose,
                epochs=epochs,
                steps=batches.number,
                model=self,
            )
        steps = self._steps_per_call(batches, progress, "train")
        rng = np.random.default_rng(np.random.randint(2**31))

        self.stop_training = False
        logs: dict[str, Any] = {}
        progress.on_train_begin()
        for epoch in range(initial_epoch, epochs):
            self.reset_metrics()
            progress.on_epoch_begin(epoch)
            order = rng.permutation(data.size) if shuffle else np.arange(data.size)
            for first, indices in batches.calls(order, steps):
                progress.on_train_batch_begin(first)
                logs = _numbers(programs.train(data.arrays, indices))
                progress.on_train_batch_end(first + len(indices) - 1, logs)
                if self.stop_training:
                    break
            epoch_logs = dict(logs)
            if validation is not None and _is_due(epoch, validation_freq):
                results = self._evaluate(
                    validation, validation_batch_size or batch_size, progress
                )
                epoch_logs |= {f"val_{name}": x for name, x in results.items()}
            progress.on_epoch_end(epoch, epoch_logs)
            if self.stop_training:
                break
        if epochs > initial_epoch:
            # An optimizer with `use_ema` ends on the averages.
            self.optimizer.finalize_variable_values(self.trainable_weights)
        progress.on_train_end(logs)
        return self.history

    def evaluate(
        self,
        x=None,
        y=None,
        batch_size=None,
        verbose="auto",
        sample_weight=None,
        steps=None,
        callbacks=None,
        return_dict=False,
        **kwargs,
    ):
        """Returns the loss and the metrics, as `keras.Model.evaluate` does."""
        if (
            not self._can_compile(x, y, sample_weight, "test_step")
            or steps is not None
            or kwargs
        ):
            return super().evaluate(
                x,
                y,
                batch_size=batch_size,
                verbose=verbose,
                sample_weight=sample_weight,
                steps=steps,
                callbacks=callbacks,
                return_dict=return_dict,
                **kwargs,
            )
        data, batch_size = _Data(x, y, sample_weight), batch_size or 32
        progress: Any = callbacks
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            progress = keras.callbacks.CallbackList(
                callbacks,
                add_progbar=verbose != 0,
                verbose=1 if verbose == "auto" else verbose,
                epochs=1,
                steps=math.ceil(data.size / batch_size),
                model=self,
            )
        logs = self._evaluate(data, batch_size, progress)
        return logs if return_dict else self._flatten_metrics_in_order(logs)

    def _evaluate(self, data, batch_size, progress):
        batches = _Batches(data.size, batch_size)
        programs = self._get_programs(data, batch_size)
        steps = self._steps_per_call(batches, progress, "test")
        logs: dict[str, Any] = {}
        self.reset_metrics()
        progress.on_test_begin()
        for first, indices in batches.calls(np.arange(data.size), steps):
            progress.on_test_batch_begin(first)
            logs = _numbers(programs.test(data.arrays, indices))
            progress.on_test_batch_end(first + len(indices) - 1, logs)
        progress.on_test_end(logs)
        return logs

    def _can_compile(self, x, y, sample_weight, step):
        """Whether the programs of this file do what is asked for."""
        arrays = keras.tree.flatten((x, y, sample_weight))
        arrays = [array for array in arrays if array is not None]
        own = getattr(type(self), step)
        return (
            self.compiled
            and self.__dict__.get("_wants_programs", False)
            and own is getattr(keras.Model, step)
            and keras.distribution.distribution() is None
            and x is not None
            and all(_is_numeric(array) for array in arrays)
            and sum(_num_bytes(array) for array in arrays) <= MAX_BYTES
        )

    def _get_programs(self, data, batch_size):
        """Returns the programs of the variables that are trainable now."""
        # Makes layers, metrics and optimizer, whose shapes hang on the data's.
        self._symbolic_build(data_batch=data.example(batch_size))
        programs = self.__dict__.get("_programs")
        trainable = [id(v) for v in self.trainable_variables]
        if programs is None or programs.trainable != trainable:
            programs = self.__dict__["_programs"] = _Programs(self, trainable)
        return programs

    def _steps_per_call(self, batches, progress, phase):
        if self.steps_per_execution > 1:
            return min(self.steps_per_execution, batches.full or 1)
        if any(_overrides(c, BATCH_HOOKS[phase]) for c in progress.callbacks):
            return 1
        if any(isinstance(x, CONVOLUTIONS) for x in self._flatten_layers()):
            return 1
        calls = math.ceil(batches.full / MAX_STEPS_PER_CALL)
        return batches.full // calls if calls else 1


@keras.saving.register_keras_serializable(package="kit")
class Sequential(CompiledFit, keras.Sequential):
    """`keras.Sequential` whose `fit` and `evaluate` run many steps in one program.

    See `keras.Sequential` for arguments and methods; `compile(jit_compile=False)`
    brings Keras' own `fit` back.

    Example:

    ```python
    model = kit.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2)
    ```
    """


@keras.saving.register_keras_serializable(package="kit")
class Model(CompiledFit, keras.Model):
    """`keras.Model` whose `fit` and `evaluate` run many steps in one program.

    Functional, `Model(inputs, outputs)`, or to be derived from.
    `compile(jit_compile=False)` brings Keras' own `fit` back.
    """


class _Data:
    """Arrays of a training: x, y and sample weights, each a nested structure."""

    def __init__(self, x, y=None, sample_weight=None):
        sizes = {
            len(a) for a in keras.tree.flatten((x, y, sample_weight)) if a is not None
        }
        if len(sizes) != 1:
            raise ValueError(
                "x, y and sample_weight must have the same number of examples, "
                f"received arrays of lengths {sorted(sizes)}."
            )
        (self.size,) = sizes
        self.arrays = keras.tree.map_structure(_to_device, (x, y, sample_weight))

    def split(self, fraction):
        """Returns the first examples, and the last `fraction` of them."""
        first = math.floor(self.size * (1.0 - fraction))
        if not 0 < first < self.size:
            raise ValueError(
                f"validation_split={fraction} of {self.size} examples leaves none to "
                "train on, or none to validate on."
            )
        parts = ((lambda a: a[:first]), (lambda a: a[first:]))
        return [
            _Data(*keras.tree.map_structure(_unless_none(f), self.arrays))
            for f in parts
        ]

    def example(self, batch_size):
        count = min(batch_size, self.size)
        return keras.tree.map_structure(_unless_none(lambda a: a[:count]), self.arrays)


class _Batches:
    """Divides the examples into batches, and the batches into programs' calls."""

    def __init__(self, size, batch_size):
        self.size = size
        self.batch_size = batch_size
        self.full, self.rest = divmod(size, batch_size)
        self.number = self.full + bool(self.rest)

    def calls(self, order, steps):
        """Yields the number of the first batch, and indices `(steps, B)`.

        Whatever is left of full batches comes one by one, so that three programs
        at most are compiled: `steps` batches, one, and one that isn't full.
        """
        full = order[: self.full * self.batch_size].reshape(-1, self.batch_size)
        full = full.astype("int32")
        first = 0
        while first < self.full:
            count = steps if first + steps <= self.full else 1
            yield first, full[first : first + count]
            first += count
        if self.rest:
            yield first, order[None, -self.rest :].astype("int32")


class _Programs:
    """The compiled programs of a model: train and test, on one batch and on many."""

    def __init__(self, model, trainable):
        self.model = model
        self.trainable = trainable
        self.kwargs = "training" in inspect.signature(model.call).parameters
        self._train = compiled(self._train_program)
        self._test = compiled(self._test_program)

    def train(self, data, indices):
        return self._train(data, indices)

    def test(self, data, indices):
        return self._test(data, indices)

    def _train_program(self, data, indices):
        return self._repeat(self._train_step, data, indices)

    def _test_program(self, data, indices):
        return self._repeat(self._test_step, data, indices)

    def _repeat(self, step, data, indices):
        if indices.shape[0] == 1:
            step(_take(data, indices[0]))
        else:
            scan(lambda _, i: (None, step(_take(data, i))), None, indices)
        return self.model.get_metrics_result()

    def _train_step(self, batch):
        def loss_fn():
            return self._forward(batch, training=True)

        variables = self.model.trainable_variables
        if variables:
            loss, y_pred = minimize(loss_fn, variables, self.model.optimizer)
        else:
            loss, y_pred = loss_fn()
        self._update_metrics(batch, loss, y_pred)

    def _test_step(self, batch):
        self._update_metrics(batch, *self._forward(batch, training=False))

    def _forward(self, batch, training):
        x, y, sample_weight = batch
        kwargs = {"training": training} if self.kwargs else {}
        y_pred = self.model(x, **kwargs)
        loss = self.model._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        return loss, y_pred

    def _update_metrics(self, batch, loss, y_pred):
        x, y, sample_weight = batch
        size = keras.tree.flatten(x)[0].shape[0]
        self.model._loss_tracker.update_state(loss, sample_weight=size)
        self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)


def _take(data, indices):
    return keras.tree.map_structure(
        _unless_none(lambda a: ops.take(a, indices, axis=0)), data
    )


def _unless_none(fn):
    return lambda array: None if array is None else fn(array)


def _unpack(data):
    """(x, y, sample_weight) of what `validation_data` may be."""
    return keras.utils.unpack_x_y_sample_weight(data)


def _is_numeric(array):
    if isinstance(array, np.ndarray):
        return array.ndim > 0 and array.dtype.kind in "fiub"
    return keras.ops.is_tensor(array) and len(array.shape) > 0


def _num_bytes(array):
    return math.prod(array.shape) * getattr(array.dtype, "itemsize", 4)


def _to_device(array):
    if array is None:
        return None
    if isinstance(array, np.ndarray) and array.dtype.itemsize == 8:
        kind = array.dtype.kind
        array = array.astype(
            {"f": keras.config.floatx(), "i": "int32"}.get(kind, "uint32")
        )
    return ops.convert_to_tensor(array)


def _numbers(logs):
    """A dict of Python floats, nested where Keras' is."""
    return {
        name: _numbers(x) if isinstance(x, dict) else float(ops.convert_to_numpy(x))
        for name, x in logs.items()
    }


def _overrides(callback, hooks):
    """Whether a callback does anything in `hooks`; the progress bar can wait."""
    if isinstance(callback, keras.callbacks.ProgbarLogger):
        return False
    base = keras.callbacks.Callback
    return any(
        getattr(getattr(callback, hook), "__func__", None) is not getattr(base, hook)
        for hook in hooks
    )


def _is_due(epoch, freq):
    return (epoch + 1) % freq == 0 if isinstance(freq, int) else epoch + 1 in freq
