"""Keras' `fit` and `evaluate`, at the speed of native code.

Keras' own `fit` passes one batch at a time from Python to the backend, and computes the
logs between batches. Here the data lies on the device, and one compiled program gathers
a batch, trains on it and updates the metrics, for many batches in a row. Callbacks and
the progress bar are called once per group of up to a few dozen batches. The mathematics
is Keras': the model's own `compute_loss`, metrics and optimizer.

    model = kit.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile("adam", "mse")
    model.fit(x, y, epochs=3)                        # many steps in one program
    model.compile("adam", "mse", jit_compile=False)  # Keras' own `fit` from now on

A training step of your own is one method, for all backends:

    class MyModel(kit.Model):
        def train_batch(self, x, y=None, sample_weight=None):
            kit.minimize(my_loss, self.trainable_variables, self.optimizer)
            return {}

Where this `fit` can't be used, Keras' own runs instead, with the same results but more
slowly: for data that isn't in dense arrays of numbers (a generator, `tf.data`, a
`DataLoader`, a data frame, strings), `class_weight`, `steps_per_epoch`,
`shuffle="batch"`, `run_eagerly=True`, your own `train_step`, a distribution, data of
more than 4 GiB, an optimizer that the backend can't compile.
"""

import inspect
import math
import warnings
from typing import TYPE_CHECKING, Any

import keras
import numpy as np
from keras import ops
from keras.src.backend.common.masking import get_keras_mask, set_keras_mask

from kit import checks
from kit.backend import (
    NoGradient,
    compiled,
    is_tracing,
    minimize,
    release_programs,
    run_well_in_loops,
    scan,
    why_not_compiled,
)
from kit.backups import Values, backed_up
from kit.files import SavedWhole
from kit.finite import Guard, with_guard

# Between two calls of callbacks; few enough for a progress bar to move.
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

# For type checkers, the mixin derives from the class that it is combined with.
if TYPE_CHECKING:
    from keras import Model as Mixin
else:
    Mixin = object


class CompiledFit(SavedWhole):
    """Mixin with the compiled `fit` and `evaluate` of `kit.Sequential` and `kit.Model`.

    Use it for your own classes: `class VAE(kit.CompiledFit, keras.Model)`. You can
    override `call`, `compute_loss`, `compute_metrics`, `train_batch` and `test_batch`.
    """

    def train_batch(self, x, y=None, sample_weight=None) -> dict[str, Any]:
        """Trains on one batch. Override it to write your own training step.

        `fit` compiles it into a program that runs it for many batches. Use
        `kit.minimize` instead of a backend's gradients. Change state in variables only,
        and create all variables before: in `__init__` or `compile`, build the layers,
        and each optimizer except `self.optimizer` (`optimizer.build(variables)`).

        If you call it yourself and it isn't overridden, it makes one step and returns
        the logs of a single batch, as `fit` reports them. An override that you call
        yourself runs line by line, and its layers must be built.

        Args:
            x: Inputs of the batch, a tensor `(B, ...)` or a nested structure of them.
            y: Targets of the batch, or `None`.
            sample_weight: Weights of the examples, or `None`.

        Returns:
            The logs, scalars by name. Return results of metrics to report means over
            the epoch: other values are those of the last batch. If empty, `fit` logs
            the results of all the model's metrics.

        Example:

        ```python
        class Regression(kit.Model):
            def __init__(self):
                super().__init__()
                self.dense = keras.layers.Dense(1)
                self.error = keras.metrics.Mean(name="error")

            def call(self, x):
                return self.dense(x)

            def train_batch(self, x, y=None, sample_weight=None):
                def loss_fn():
                    return ops.mean(ops.square(y - self(x)))

                loss = kit.minimize(loss_fn, self.trainable_variables, self.optimizer)
                self.error.update_state(loss)
                return {"error": self.error.result()}

        model = Regression()
        model.compile("adam")
        model.fit(np.ones((8, 4)), np.ones((8, 1)), epochs=2)
        ```
        """
        return self._step("train", (x, y, sample_weight))

    def test_batch(self, x, y=None, sample_weight=None) -> dict[str, Any]:
        """Evaluates one batch: the counterpart of `train_batch` in `evaluate`."""
        return self._step("test", (x, y, sample_weight))

    def _step(self, phase, batch):
        """Runs Keras' step, within a program or alone."""
        programs = self.__dict__.get("_programs")
        if programs is not None and programs.running:
            return programs.step(phase, batch)
        self._assert_compile_called(f"{phase}_batch")
        if is_tracing():  # another program than this model's
            programs = programs or self._new_programs()
            return programs.step(phase, batch) or programs.metrics_result()
        if reason := _why_not_arrays(*batch):
            raise ValueError(f"{type(self).__name__}.{phase}_batch: {reason}")
        data = _Data(*batch)
        programs = self._get_programs(data, data.size, phase)
        self.reset_metrics()
        # An override that calls this step through `super()` runs line by line.
        if self._has_own(f"{phase}_batch") or self._why_eager(phase):
            logs = programs.step(phase, data.arrays) or programs.metrics_result()
        else:
            run = programs.train if phase == "train" else programs.test
            logs = run(data.arrays, np.arange(data.size, dtype="int32")[None])
        return _numbers(logs)

    def compile(self, *args, **kwargs):
        """Compiles as Keras does; `jit_compile=False` selects Keras' own `fit`."""
        super().compile(*args, **kwargs)
        arguments = inspect.signature(keras.Model.compile).bind(self, *args, **kwargs)
        # Not with setattr: Keras would track the value as a part of the model. Programs
        # hold the loss and optimizer that they were compiled with.
        self.__dict__["_jit_choice"] = arguments.arguments.get("jit_compile", "auto")
        release_programs(self, "_programs")

    def get_compile_config(self):
        """Returns Keras' compile config, with the original `jit_compile`.

        Keras stores the value to which it resolved "auto" on the current backend.
        """
        config = super().get_compile_config()
        if config:
            config["jit_compile"] = self.__dict__["_jit_choice"]
        return config

    def compile_from_config(self, config):
        """Compiles a loaded model as it was compiled when it was saved."""
        arguments = keras.saving.deserialize_keras_object(config)
        try:
            inspect.signature(self.compile).bind(**arguments)
        except TypeError:  # the model's own `compile` has other arguments
            return super().compile_from_config(config)  # which warns
        self.compile(**arguments)
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
        check_finite=True,
    ):
        """Trains the model; arguments and results are those of `keras.Model.fit`.

        NumPy's global seed, which `kit.set_random_seed` sets, determines the order of
        the examples: the same order on every backend. If a callback overrides a batch
        hook, each program trains on one batch;
        `compile(steps_per_execution=...)` sets the number of batches in a program.

        There is one more argument, `check_finite`: unless it is `False`, examples that
        aren't finite raise an error, and the training stops at the first loss that
        isn't finite, with the last good weights.

        Returns:
            `keras.callbacks.History`.

        Raises:
            DivergenceError: If a loss isn't finite.
            ValueError: If the arrays are empty or have different numbers of examples;
                if `batch_size` or `validation_split` is out of range.
        """
        options = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        if options.pop("check_finite"):
            options["callbacks"] = with_guard(callbacks)
        needs_keras = {
            "class_weight": class_weight is not None,
            "steps_per_epoch": steps_per_epoch is not None,
            "validation_steps": validation_steps is not None,
            "shuffle='batch'": shuffle == "batch",
        }
        reason = self._why_keras("train", (x, y, sample_weight), needs_keras)
        if reason:
            own = ["train_batch"]
            if validation_data is not None or validation_split:
                own.append("test_batch")
            self._refuse_keras("fit", reason, *own)
            return super().fit(**options)

        data = _Data(x, y, sample_weight)
        if check_finite:
            data.check_finite()
        self._check_targets(data, "y")
        if validation_split and validation_data is None:
            data, validation = data.split(validation_split)
        elif validation_data is not None:
            x, y, sample_weight = _unpack(validation_data)
            if reason := self._why_keras("test", (x, y, sample_weight)):
                reason = f"in validation_data, {reason}"
                self._refuse_keras("fit", reason, "train_batch", "test_batch")
                return super().fit(**options)
            validation = _Data(x, y, sample_weight)
            if check_finite:
                validation.check_finite("validation_data: ")
            self._check_targets(validation, "validation_data")
        else:
            validation = None
        if validation is not None:
            self._check_evaluation()
        batch_size = batch_size or 32
        batches = _Batches(data.size, batch_size)
        programs = self._get_programs(data, batch_size, "train")

        progress = self._callback_list(
            callbacks, verbose, epochs, batches.number, add_history=True
        )
        steps = self._steps_per_call(batches, progress, "train")
        guard = Guard(self, check_finite, progress.callbacks, "batch")
        rng = np.random.default_rng(np.random.randint(2**31))
        at = _Position(logs={}, epoch_logs={})  # of the last batches, the last epoch
        at.begin_epoch(0, rng)
        identity = {"examples": data.size, "batch_size": batch_size, "shuffle": shuffle}
        self.stop_training = False
        parts = {"position": at}
        with backed_up(progress.callbacks, self, identity, parts) as backup:
            progress.on_train_begin()
            # Keras' BackupAndRestore sets `_initial_epoch`.
            begin = self._initial_epoch or initial_epoch
            saved = backup.load()
            if saved is None:
                backup.check_space()
            else:
                begin = saved["position"]["epoch"]
            for epoch in range(begin, epochs):
                self.reset_metrics()
                at.begin_epoch(epoch, rng)
                progress.on_epoch_begin(epoch)
                if saved is not None:  # callbacks continue from the backup, too
                    backup.set_state(saved)
                    saved = None
                guard.keep(epoch * batches.number + at.batch)
                rng.bit_generator.state = at.drawn_from  # also in a resumed epoch
                order = rng.permutation(data.size) if shuffle else np.arange(data.size)
                for first, indices in batches.calls(order, steps):
                    if first < at.batch:  # done before it was interrupted
                        continue
                    if self.stop_training:
                        break
                    progress.on_train_batch_begin(first)
                    at.logs = _numbers(programs.train(data.arrays, indices))
                    at.batch = first + len(indices)
                    losses = {k: x for k, x in at.logs.items() if self._is_loss(k, x)}
                    guard.look(losses, epoch * batches.number + at.batch)
                    progress.on_train_batch_end(at.batch - 1, at.logs)
                    backup.look()
                at.epoch_logs = dict(at.logs)
                if validation is not None and self._should_eval(epoch, validation_freq):
                    results = self._evaluate(
                        validation, validation_batch_size or batch_size, progress
                    )
                    at.epoch_logs |= {f"val_{name}": x for name, x in results.items()}
                progress.on_epoch_end(epoch, at.epoch_logs)
                at.begin_epoch(epoch + 1, rng)
                if self.stop_training:
                    at.begin_epoch(epochs, rng)
                    break
            if epochs > begin and self.optimizer is not None:
                # With `use_ema`, the final weights are the moving averages.
                self.optimizer.finalize_variable_values(self.trainable_weights)
            progress.on_train_end(at.epoch_logs)
            if saved is not None:  # the backup is of a finished training
                backup.set_state(saved)
            backup.finish()
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
        self._assert_compile_called("evaluate")
        self._check_evaluation()
        needs_keras = {"steps": steps is not None, **dict.fromkeys(kwargs, True)}
        reason = self._why_keras("test", (x, y, sample_weight), needs_keras)
        if reason:
            self._refuse_keras("evaluate", reason, "test_batch")
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
        steps = math.ceil(data.size / batch_size)
        progress = self._callback_list(callbacks, verbose, 1, steps)
        logs = self._evaluate(data, batch_size, progress)
        return logs if return_dict else self._flatten_metrics_in_order(logs)

    def _evaluate(self, data, batch_size, progress):
        batches = _Batches(data.size, batch_size)
        programs = self._get_programs(data, batch_size, "test")
        steps = self._steps_per_call(batches, progress, "test")
        logs: dict[str, Any] = {}
        self.stop_evaluating = False
        progress.on_test_begin()
        self.reset_metrics()
        for first, indices in batches.calls(np.arange(data.size), steps):
            progress.on_test_batch_begin(first)
            logs = _numbers(programs.test(data.arrays, indices))
            progress.on_test_batch_end(first + len(indices) - 1, logs)
            if self.stop_evaluating:
                break
        progress.on_test_end(logs)
        return logs

    def _is_loss(self, name, value):
        """Whether a log must be finite: a metric may have nothing to measure."""
        is_loss = "loss" in name or self._has_own("train_batch")
        return is_loss and isinstance(value, float)

    def _check_targets(self, data, name):
        """Raises an error for meaningless targets, which not every backend detects."""
        loss = getattr(self, "loss", None)
        if self._has_own("train_batch", "test_batch") or loss is None:
            return
        outputs = getattr(self, "output_shape", None) if self.built else None
        y = data.arrays[1]
        if not isinstance(outputs, tuple) or y is None or keras.tree.is_nested(y):
            return  # several outputs, or unknown output shapes
        check_targets(f"{type(self).__name__}.fit", name, loss, y, outputs)

    def _has_own(self, *methods):
        return any(
            getattr(type(self), method) is not getattr(CompiledFit, method)
            for method in methods
        )

    def _refuse_keras(self, called, reason, *methods):
        """Raises an error if Keras' own `fit` would ignore the model's own step."""
        own = [method for method in methods if self._has_own(method)]
        if own and self.compiled:
            raise ValueError(
                f"{type(self).__name__}.{called} can't run the model's own "
                f"{' and '.join(own)}: {reason}"
            )

    def _check_evaluation(self):
        """Raises an error if there is neither a `test_batch` nor a loss to evaluate."""
        own = self._has_own("train_batch") and not self._has_own("test_batch")
        if own and self._compile_loss is None:
            raise ValueError(
                f"{type(self).__name__} has a train_batch of its own, but nothing to "
                "evaluate with: override test_batch as well, or give a loss to "
                "compile()."
            )

    def _why_keras(self, phase, data, arguments=()):
        """Returns why Keras' own loop must be used, or `None`.

        The reason says what to change. `arguments` maps names of arguments that only
        Keras' loop supports to whether they are given.
        """
        for name in arguments:
            if arguments[name]:
                return f"{name} is given, which only Keras' own loop supports. Omit it."
        return self._why_eager(phase) or _why_not_arrays(*data)

    def _why_eager(self, phase):
        """The part of `_why_keras` that doesn't depend on data."""
        step = f"{phase}_step"
        if not self.compiled:
            return "the model isn't compiled. Call compile()."
        if self.__dict__.get("_jit_choice") is False:
            return "compile() got jit_compile=False. Leave it out."
        if self.run_eagerly:
            return "run_eagerly is set. Call compile() without it."
        if getattr(type(self), step) is not getattr(keras.Model, step):
            return f"the model also has a {step} of its own. Keep one of them."
        if keras.distribution.distribution() is not None:
            return (
                "a distribution is set, which compiled steps can't follow. Call "
                "keras.distribution.set_distribution(None)."
            )
        if getattr(self, "_distribute_strategy", None) is not None:  # TensorFlow's
            return (
                "the model was made under a tf.distribute strategy, which compiled "
                "steps can't follow. Make it outside of the strategy's scope."
            )
        for limit in ("max_epochs", "max_steps_per_epoch"):
            if getattr(keras.config, limit)():
                return (
                    f"keras.config.{limit}() is set, which only Keras' own loop "
                    f"supports. Call keras.config.set_{limit}(None)."
                )
        if self.optimizer and (reason := why_not_compiled(self.optimizer)):
            return f"{reason} Or call kit.run_eagerly(), to train line by line."
        return None

    def _get_programs(self, data, batch_size, phase):
        """Returns the programs of the variables that are trainable now."""
        # Builds layers, metrics and the optimizer; their shapes depend on the data. A
        # model with its own step, such as a GAN, may have no `call` and needs no build.
        if not self._has_own(f"{phase}_batch") or self._has_call():
            self._symbolic_build(data_batch=data.example(batch_size))
        elif self.optimizer is not None and not self.optimizer.built:
            self.optimizer.build(self.trainable_variables)
        programs = self.__dict__.get("_programs")
        if programs is None or programs.trainable != self._trainable_parts():
            programs = self._new_programs()
        return programs

    def _new_programs(self):
        release_programs(self, "_programs")
        programs = _Programs(self, self._trainable_parts())
        self.__dict__["_programs"] = programs
        return programs

    def _trainable_parts(self):
        """What is trainable now: a program is compiled for one such set."""
        layers = [layer.trainable for layer in self._flatten_layers()]
        return [*map(id, self.trainable_variables), *layers]

    def _has_call(self):
        return type(self).call is not keras.Model.call

    def _callback_list(self, callbacks, verbose, epochs, steps, add_history=False):
        """Returns the callbacks as a `CallbackList`, which they may already be."""
        if isinstance(callbacks, keras.callbacks.CallbackList):
            return callbacks
        return keras.callbacks.CallbackList(
            callbacks,
            add_history=add_history,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=epochs,
            steps=steps,
            model=self,
        )

    def _steps_per_call(self, batches, progress, phase):
        if self.steps_per_execution > 1:
            return min(self.steps_per_execution, batches.full or 1)
        if any(_overrides(c, BATCH_HOOKS[phase]) for c in progress.callbacks):
            return 1
        if not run_well_in_loops(self._flatten_layers()):
            return 1
        calls = math.ceil(batches.full / MAX_STEPS_PER_CALL)
        return batches.full // calls if calls else 1


@keras.saving.register_keras_serializable(package="kit")
class Sequential(CompiledFit, keras.Sequential):
    """`keras.Sequential` whose `fit` and `evaluate` run many steps in one program.

    See `keras.Sequential` for arguments and methods; `compile(jit_compile=False)`
    restores Keras' own `fit`. `keras.models.clone_model` returns a plain
    `keras.Sequential`, as for all classes derived from it;
    `type(model).from_config(model.get_config())` returns a `kit.Sequential`.

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

    Call `Model(inputs, outputs)` for a functional model, or derive from it.
    `compile(jit_compile=False)` restores Keras' own `fit`.
    """

    # Once one object of a class is functional, Keras makes the class and its bases
    # functional. Here only the class itself becomes functional: `Model` stays as it is.

    def __new__(cls, *args, **kwargs):
        """Creates a `Functional` from inputs and outputs, as Keras does."""
        functional = cls is Model and _is_functional(args, kwargs)
        return super().__new__(Functional if functional else cls, *args, **kwargs)

    def __init__(self, *args, **kwargs):
        if _is_functional(args, kwargs):
            _make_functional(type(self))
            keras.src.models.Functional.__init__(self, *args, **kwargs)
        else:
            super().__init__(*args, **kwargs)


@keras.saving.register_keras_serializable(package="kit")
class Functional(Model, keras.src.models.Functional):
    """The class of `Model(inputs, outputs)`."""

    def __init__(self, inputs, outputs, name=None, **kwargs):
        super().__init__(inputs, outputs, name=name, **kwargs)


class WithParts(Mixin):
    """Mixin that saves and loads a model made of models, its constructor's arguments.

    Put it before the model's class: `class GAN(WithParts, kit.Model)`.

    Attributes:
        parts: Names of these arguments, and of the attributes that hold them.
    """

    parts: tuple[str, ...] = ()

    def get_config(self):
        """Returns the parts, for saving; subclasses add their other arguments."""
        parts = {
            name: keras.saving.serialize_keras_object(getattr(self, name))
            for name in self.parts
        }
        return {**super().get_config(), **parts}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds a model from the result of `get_config`."""
        parts = {
            name: keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
            for name in cls.parts
        }
        return cls(**{**config, **parts})


def output_range(model: keras.Model) -> tuple[float, float] | None:
    """Returns the range of a model's outputs if its last activation has one."""
    checks.check("output_range", locals(), {"model": checks.MODEL})
    ranges = {"sigmoid": (0.0, 1.0), "tanh": (-1.0, 1.0)}
    shapes = (keras.layers.Reshape, keras.layers.Flatten)
    layers = [x for x in model.layers if not isinstance(x, shapes)]
    activation = getattr(layers[-1], "activation", None) if layers else None
    return ranges.get(getattr(activation, "__name__", ""))


def _is_functional(args, kwargs):
    """Whether a model's arguments are its inputs and outputs."""
    return len(args) == 2 or (
        "outputs" in kwargs and (len(args) == 1 or "inputs" in kwargs)
    )


def _make_functional(cls):
    """Replaces `Model` by `Functional` among the bases of a class."""
    if cls is Model:
        return Functional
    if issubclass(cls, Model) and not issubclass(cls, Functional):
        cls.__bases__ = tuple(map(_make_functional, cls.__bases__))
    return cls


class _Data:
    """The training data: x, y and sample weights, each a nested structure of arrays."""

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
        if not self.size:
            raise ValueError("x holds no example: its length is 0.")
        self.arrays = keras.tree.map_structure(_to_device, (x, y, sample_weight))

    def check_finite(self, where=""):
        """Raises an error if a number isn't finite."""
        for name, part in zip(("x", "y", "sample_weight"), self.arrays, strict=True):
            for path, array in keras.tree.flatten_with_path(part):
                if array is None or "float" not in _dtype(array):
                    continue
                # In NumPy, as a backend would compile each operation for each shape.
                finite = np.isfinite(ops.convert_to_numpy(array))
                if not finite.all():
                    i = int(finite.reshape(len(finite), -1).all(axis=1).argmin())
                    what = "".join([name, *(f"[{key!r}]" for key in path)])
                    raise ValueError(
                        f"{where}`{what}` holds NaN or infinity, first in example {i}. "
                        "Fill in or leave out what is missing; or pass "
                        "fit(..., check_finite=False)."
                    )

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


class _Position(Values):
    """The position of `fit`, from which a resumed one continues."""

    def begin_epoch(self, epoch: int, rng: np.random.Generator) -> None:
        self.epoch, self.batch = epoch, 0  # the next batch in this epoch
        self.drawn_from = rng.bit_generator.state  # the order of its examples


class _Batches:
    """Divides the examples into batches, and the batches into programs' calls."""

    def __init__(self, size, batch_size):
        if batch_size != int(batch_size) or batch_size < 1:
            raise ValueError(
                f"batch_size must be a positive integer, received {batch_size}."
            )
        self.size = size
        self.batch_size = batch_size
        self.full, self.rest = divmod(size, batch_size)
        self.number = self.full + bool(self.rest)

    def calls(self, order, steps):
        """Yields the number of the first batch, and indices `(steps, B)`.

        Remaining full batches come one by one, so that at most three programs are
        compiled: for `steps` batches, for one, and for one that isn't full.
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
        # An overridden `compute_metrics` may return more than the metrics' results,
        # which are otherwise read once, after the last step.
        own = type(model).compute_metrics
        self.own_logs = own is not keras.Model.compute_metrics
        self.own_step = model._has_own("train_batch")
        self.running = False  # while one of the model's steps runs, or is traced
        self.reaches_all = True  # whether each variable has a part in the loss
        self._train: Any = compiled(self._train_program)
        self._test: Any = compiled(self._test_program)

    def release(self):
        """Forgets the programs; returns whether there were any."""
        return any([self._train.release(), self._test.release()])

    def train(self, data, indices):
        try:
            return self._train(data, indices)
        except NoGradient as error:
            if self.own_step:
                raise
            paths = error.paths  # such as those of an output without a loss
        # The error comes from the trace: no step has been made yet.
        warnings.warn(
            f"The loss doesn't depend on these variables: {paths}. Their gradients "
            "are zero.",
            stacklevel=3,
        )
        self.reaches_all = False
        self._train = compiled(self._train_program)
        return self._train(data, indices)

    def test(self, data, indices):
        return self._test(data, indices)

    def _train_program(self, data, indices):
        return self._repeat(self.model.train_batch, data, indices)

    def _test_program(self, data, indices):
        return self._repeat(self.model.test_batch, data, indices)

    def _repeat(self, step, data, indices):
        self.running = True
        try:
            return self._run(step, data, indices)
        finally:
            self.running = False

    def _run(self, step, data, indices):
        if indices.shape[0] == 1:
            logs = step(*_take(data, indices[0]))
        else:
            _, logs = scan(lambda _, i: (None, step(*_take(data, i))), None, indices)
            logs = {name: values[-1] for name, values in logs.items()}
        return logs or self.metrics_result()

    def metrics_result(self):
        logs = self.model.get_metrics_result()
        # Without a Keras loss, the loss tracker is meaningless; drop its result, unless
        # a metric has the same name.
        names = [
            m.name for m in self.model.metrics if m is not self.model._loss_tracker
        ]
        if self.model._compile_loss is None and "loss" not in names and self.own_step:
            logs.pop("loss", None)
        return logs

    def step(self, phase, batch):
        """Makes Keras' step on one batch, with the model's loss and optimizer."""
        if phase == "train":
            return self._train_batch(batch)
        return self._update_metrics(batch, *self._forward(batch, training=False))

    def _train_batch(self, batch):
        variables = self.model.trainable_variables

        def loss_fn():
            loss, y_pred = self._forward(batch, training=True)
            # Masks are attributes of tensors, which are other objects outside of the
            # gradient.
            masks = [get_keras_mask(array) for array in keras.tree.flatten(y_pred)]
            if not self.reaches_all:
                nothing = [ops.cast(ops.sum(v * 0.0), loss.dtype) for v in variables]
                loss += sum(nothing)
            return loss, (y_pred, masks)

        if variables:
            loss, aux = minimize(loss_fn, variables, self.model.optimizer)
        else:
            loss, aux = loss_fn()
        y_pred, masks = aux
        for array, mask in zip(keras.tree.flatten(y_pred), masks, strict=True):
            if mask is not None:
                set_keras_mask(array, mask)
        return self._update_metrics(batch, loss, y_pred)

    def _forward(self, batch, training):
        x, y, sample_weight = batch
        kwargs = {"training": training} if self.model._call_has_training_arg else {}
        y_pred = self.model(x, **kwargs)
        loss = self.model._compute_loss(
            x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=training
        )
        return loss, y_pred

    def _update_metrics(self, batch, loss, y_pred):
        x, y, sample_weight = batch
        size = next(a.shape[0] for a in keras.tree.flatten(x) if a is not None)
        self.model._loss_tracker.update_state(loss, sample_weight=size)
        logs = self.model.compute_metrics(x, y, y_pred, sample_weight=sample_weight)
        return logs if self.own_logs else {}


def to_array(x: Any) -> np.ndarray | None:
    """Returns an array or a tensor of any device as a NumPy array.

    `None` if it is something else, such as a generator.
    """
    if isinstance(x, (np.ndarray, list, tuple)):
        return np.asarray(x)
    return ops.convert_to_numpy(x) if ops.is_tensor(x) else None


def check_targets(
    called: str, name: str, loss: Any, y: Any, outputs: tuple[int | None, ...]
) -> None:
    """Raises a `ValueError` if targets don't fit a loss and these outputs.

    Args:
        called: Name of the caller, for the message.
        name: Name of the argument that holds the targets.
        loss: A Keras loss, or its name.
        y: Targets, an array `(N, ...)`.
        outputs: Shape of the model's outputs.
    """
    loss = _loss_name(loss)
    shape = tuple(y.shape)[1:]
    y = ops.convert_to_numpy(y)
    classes = outputs[-1]
    if loss == "sparse_categorical_crossentropy" and classes is not None:
        one = outputs[1:-1]  # shape of the labels of one example
        if not _fits(shape, one) and not _fits(shape, (*one, 1)):
            raise ValueError(
                f"{called}: `{name}` must hold one label for each output, of shape "
                f"(N, {', '.join(map(str, one))}), received {tuple(y.shape)}."
            )
        low, high = y.min(), y.max()
        if not 0 <= low <= high < classes:
            raise ValueError(
                f"{called}: `{name}` must hold labels from 0 to {classes - 1}, as the "
                f"model has {classes} outputs; received labels from {low:g} to "
                f"{high:g}."
            )
    elif loss in ("binary_crossentropy", "categorical_crossentropy"):
        low, high = y.min(), y.max()
        if not 0 <= low <= high <= 1:
            raise ValueError(
                f"{called}: `{name}` must hold probabilities, from 0 to 1, for the "
                f"loss {loss}; received numbers from {low:g} to {high:g}."
            )


def _fits(shape, expected):
    """Whether a shape is the expected one, where `None` is any size."""
    return len(shape) == len(expected) and all(
        b in (None, a) for a, b in zip(shape, expected, strict=True)
    )


def _loss_name(loss):
    """Returns the name of a Keras loss, given in any form; `None` for other losses."""
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    if getattr(loss, "ignore_class", None) is not None:
        return None  # a label outside of the classes has a meaning
    # A class of Keras, or the function.
    fn = getattr(loss, "fn", loss)
    is_keras = str(getattr(fn, "__module__", "")).startswith("keras.")
    return getattr(fn, "__name__", None) if is_keras else None


def _dtype(array):
    return keras.backend.standardize_dtype(array.dtype)


def _take(data, indices):
    return keras.tree.map_structure(
        _unless_none(lambda a: ops.take(a, indices, axis=0)), data
    )


def _unless_none(fn):
    return lambda array: None if array is None else fn(array)


def _unpack(data):
    """Returns (x, y, sample_weight) from `validation_data`."""
    return keras.utils.unpack_x_y_sample_weight(data)


def _why_not_arrays(x, y, sample_weight):
    """Returns why data can't lie on the device as it is, or `None`."""
    if x is None:
        return "x is None. Pass NumPy arrays or tensors."
    size = 0
    for name, part in (("x", x), ("y", y), ("sample_weight", sample_weight)):
        for array in keras.tree.flatten(part):
            if array is None:
                continue
            if found := _why_not_numeric(array):
                return (
                    f"{name} holds {found}. Pass NumPy arrays or tensors, of numbers "
                    "that fit into 32 bits."
                )
            size += _num_bytes(array)
    if size > MAX_BYTES:
        return (
            f"the data takes {size / 2**30:.1f} GiB, more than the "
            f"{MAX_BYTES / 2**30:.3g} GiB that are put on the device. Call fit() on "
            "parts of it."
        )
    return None


def _why_not_numeric(array):
    """Returns `None` for a dense array of 32-bit numbers, else what it is instead."""
    if not isinstance(array, (np.ndarray, type(ops.zeros(())))):
        return f"an object of type {type(array).__name__}"
    if not len(array.shape):
        return "an array without an axis of examples"
    if not isinstance(array, np.ndarray):
        dtype = keras.backend.standardize_dtype(array.dtype)
        if dtype == "bool" or dtype.startswith(("float", "bfloat", "int", "uint")):
            return None
    elif array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.size:
        if -(2**31) <= array.min() <= array.max() < 2**31:
            return None
        return f"{array.dtype} numbers beyond 32 bits"
    elif array.dtype.kind in "fiub":
        return None
    return f"an array of dtype {array.dtype}"


def _num_bytes(array):
    return math.prod(array.shape) * getattr(array.dtype, "itemsize", 4)


def _to_device(array):
    """Returns a tensor, with floats of dtype `floatx` and 32-bit integers."""
    if array is None:
        return None
    floatx = keras.config.floatx()
    if not isinstance(array, np.ndarray):
        is_float = "float" in keras.backend.standardize_dtype(array.dtype)
        return ops.cast(array, floatx) if is_float else array
    if array.dtype.kind == "f":
        array = array.astype(floatx, copy=False)
    elif array.dtype.itemsize == 8:
        array = array.astype("int32")
    return ops.convert_to_tensor(array)


def _numbers(logs):
    """Returns the logs as a flat dict of Python floats (or arrays), in Keras' order."""
    numbers: dict[str, Any] = {}
    for name, value in sorted(logs.items()):
        if isinstance(value, dict):
            numbers |= _numbers(value)
        else:
            value = ops.convert_to_numpy(value)
            numbers[name] = value if value.ndim else float(value)
    return numbers


def _overrides(callback, hooks):
    """Whether a callback overrides one of `hooks`; the progress bar doesn't count."""
    if isinstance(callback, keras.callbacks.ProgbarLogger):
        return False
    idle: list[Any] = [keras.callbacks.Callback]
    if getattr(callback, "save_freq", None) == "epoch":
        idle += [keras.callbacks.ModelCheckpoint, keras.callbacks.BackupAndRestore]
    return any(
        getattr(getattr(callback, hook), "__func__", None)
        not in [getattr(cls, hook) for cls in idle]
        for hook in hooks
    )
