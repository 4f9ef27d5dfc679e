"""Deep belief network: a stack of restricted Boltzmann machines.

A restricted Boltzmann machine (RBM) has visible units v, the data, and hidden units h,
both binary. It connects each visible unit with each hidden unit, but no units of the
same kind. Each state has an energy, which defines its probability:

    E(v, h) = -v W h - b v - c h,    p(v, h) = exp(-E(v, h)) / Z.

Z, the sum over all states, is intractable, but the conditional distributions are easy:
p(h = 1 | v) = sigmoid(v W + c) and p(v = 1 | h) = sigmoid(h W^T + b). Learning makes
the data more probable and the model's own samples less probable:

    d log p(v) / dW = <v h> of the data - <v h> of the model.

The second mean is estimated by a few steps of Gibbs sampling: v, h, v, h, ... The
chains start from the data (contrastive divergence), or continue from the last update
(persistent contrastive divergence). Labels aren't needed.

A deep belief network (DBN) is a stack of RBMs, trained greedily: the hidden
probabilities of the first are the data of the second. Its weights can initialize a
network, which then learns to classify from few labels.

Letters: v `visible`, h `hidden`, W `kernel`, b `visible_bias`, c `hidden_bias`, k Gibbs
steps. Shapes: B batch, D visible units, U hidden units, N examples.

Reference: Hinton, Osindero and Teh, 2006, https://doi.org/10.1162/neco.2006.18.7.1527.
"""

import random as python_random
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, random
from kit.autoencoder import Autoencoder
from kit.backend import Tensor, compiled, is_tracing, scan
from kit.backups import end_stages, in_stage
from kit.initialization import initialize_weights
from kit.models import Model, Sequential, to_array

VISIBLE = ("bernoulli", "gaussian")
ACCEPTED = {
    "units": checks.SIZE,
    "visible": checks.one_of(*VISIBLE),
    "k": checks.SIZE,
    "persistent": checks.BOOL,
    "chains": checks.SIZE,
    "learning_rate": checks.POSITIVE,
    "momentum": checks.SHARE,
    "weight_decay": checks.WEIGHT,
    "sparsity_target": checks.real("(0, 1)"),
    "sparsity_cost": checks.WEIGHT,
    "kernel_initializer": checks.INITIALIZER | None,
    "visible_bias_initializer": checks.INITIALIZER,
    "hidden_bias_initializer": checks.INITIALIZER,
    "seed": checks.SEED | None,
    # Methods
    "steps": checks.SIZE,
    "epochs": checks.SIZE,
    "batch_size": checks.SIZE,
    "num_classes": checks.SIZE,
    "num": checks.SIZE,
}
# Attributes that are constants in the compiled update.
FROZEN = (
    *("visible", "k", "persistent", "learning_rate", "momentum", "weight_decay"),
    *("sparsity_target", "sparsity_cost"),
)


@keras.saving.register_keras_serializable(package="kit")
class RBM(keras.layers.Layer):
    """Restricted Boltzmann machine, as a layer: visible in, hidden probabilities out.

    As a layer it is `Dense(units, "sigmoid")`. In addition, it learns without labels
    (`contrastive_divergence`), and maps hidden units back to visible ones.

    Gaussian visible units are for data that is neither binary nor a probability; there,
    p(v | h) is normal with mean h W^T + b and variance 1. Scale each column to mean 0
    and variance 1 (`keras.layers.Normalization`), and use a learning rate that is ten
    to a hundred times smaller.

    Args:
        units: U, number of hidden units.
        visible: Kind of the visible units: `"bernoulli"`, for values in [0, 1], or
            `"gaussian"`. Defaults to `"bernoulli"`.
        k: Gibbs steps per update. Usually 1; more approximate the likelihood's gradient
            better and take proportionally longer. Defaults to 1.
        persistent: If `True`, `chains` Markov chains continue from update to update
            (PCD), which gives a better model to sample from. Defaults to `False` (CD).
        chains: Number of persistent chains, usually the batch size. Has no effect on
            CD. Defaults to 100.
        learning_rate: Step size; 0.01 to 0.1 for binary units. Defaults to 0.05.
        momentum: Share of the last step that is added to the next, in [0, 1); steps
            become 1 / (1 - momentum) times as long. Defaults to 0.
        weight_decay: Strength of the kernel's decay towards 0; 1e-5 to 1e-3. Defaults
            to 0.
        sparsity_target: Share of the examples for which a hidden unit should be on, in
            (0, 1); 0.01 to 0.1. Defaults to 0.1.
        sparsity_cost: Weight of the penalty that moves each hidden unit's mean
            probability to the target. Defaults to 0.
        kernel_initializer: Defaults to a normal distribution of stddev 0.01.
        visible_bias_initializer: Defaults to zeros.
        hidden_bias_initializer: Defaults to zeros.
        seed: Seed of the samples; every backend draws the same. Defaults to one drawn
            from Python's `random`, as in Keras' layers.

    Input shape:
        `(B, D)`

    Output shape:
        `(B, U)`

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Example:

    ```python
    rbm = kit.RBM(64, persistent=True, chains=10)
    v = np.random.default_rng(0).integers(0, 2, (10, 20)).astype("float32")
    rbm.contrastive_divergence(v)  # one update
    rbm(v)  # p(h = 1 | v), shape (10, 64)
    rbm.free_energy(v)  # -log p(v) - log Z, shape (10,)
    ```

    Reference: Hinton, 2002, https://doi.org/10.1162/089976602760128018; PCD: Tieleman,
    2008, https://doi.org/10.1145/1390156.1390290; advice on each argument: Hinton,
    2010, https://www.cs.toronto.edu/~hinton/absps/guideTR.pdf.
    """

    def __init__(
        self,
        units: int,
        visible: str = "bernoulli",
        k: int = 1,
        persistent: bool = False,
        chains: int = 100,
        learning_rate: float = 0.05,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        sparsity_target: float = 0.1,
        sparsity_cost: float = 0.0,
        kernel_initializer: Any = None,
        visible_bias_initializer: Any = "zeros",
        hidden_bias_initializer: Any = "zeros",
        seed: int | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        self.units = int(units)
        self.visible = visible
        self.k = int(k)
        self.persistent = bool(persistent)
        self.chains = int(chains)
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.sparsity_target = sparsity_target
        self.sparsity_cost = sparsity_cost
        if seed is None:
            seed = python_random.randint(1, 10**9)
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.RandomNormal(stddev=0.01, seed=seed)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.visible_bias_initializer = keras.initializers.get(visible_bias_initializer)
        self.hidden_bias_initializer = keras.initializers.get(hidden_bias_initializer)
        # `kit.initialize_weights` looks for initializers under these names.
        self.velocities_initializer = keras.initializers.Zeros()
        self.chain_states_initializer = keras.initializers.Zeros()
        self.seed = seed
        self.random = random.Generator(seed)
        self.random_state = self.random.state  # to have it saved with the weights

    def __setattr__(self, name, value):
        if name in FROZEN and getattr(self, "built", False):
            raise AttributeError(
                f"RBM: `{name}` is part of the compiled update and can't be changed "
                f"once the RBM is built, received {value!r}. Make a new RBM with it."
            )
        super().__setattr__(name, value)

    def build(self, input_shape):
        """Builds the weights for examples of `input_shape[1]` visible units."""
        if len(input_shape) != 2 or input_shape[-1] is None:
            raise ValueError(
                "RBM: the inputs must have the shape (batch, visible units), received "
                f"{tuple(input_shape)}. Flatten images before."
            )
        size = input_shape[-1]
        self.kernel = self.add_weight(
            (size, self.units), self.kernel_initializer, name="kernel"
        )
        self.visible_bias = self.add_weight(
            (size,), self.visible_bias_initializer, name="visible_bias"
        )
        self.hidden_bias = self.add_weight(
            (self.units,), self.hidden_bias_initializer, name="hidden_bias"
        )
        # Training state that is kept from update to update.
        self.velocities = [
            self.add_weight(
                w.shape, "zeros", trainable=False, name=f"{w.name}_velocity"
            )
            for w in (self.kernel, self.visible_bias, self.hidden_bias)
            if self.momentum
        ]
        if self.persistent:
            self.chain_states = self.add_weight(
                (self.chains, self.units), "zeros", trainable=False, name="chain_states"
            )
        self.input_spec = keras.layers.InputSpec(ndim=2, axes={-1: size})

    def call(self, inputs):
        """Returns p(h = 1 | v), shape `(B, U)`."""
        return ops.sigmoid(ops.matmul(inputs, self.kernel) + self.hidden_bias)

    def compute_output_shape(self, input_shape):
        """Returns the shape of the outputs."""
        return (*input_shape[:-1], self.units)

    def visible_mean(self, hidden: Tensor) -> Tensor:
        """Returns the mean of p(v | h), shape `(B, D)`: probabilities, if binary."""
        mean = ops.matmul(hidden, ops.transpose(self.kernel)) + self.visible_bias
        return mean if self.visible == "gaussian" else ops.sigmoid(mean)

    def sample_hidden(self, visible: Tensor) -> Tensor:
        """Samples h from p(h | v): zeros and ones, shape `(B, U)`."""
        return self._bernoulli(self.call(self._as_visible(visible)))

    def sample_visible(self, hidden: Tensor) -> Tensor:
        """Samples v from p(v | h), shape `(B, D)`."""
        mean = self.visible_mean(ops.cast(hidden, self.variable_dtype))
        if self.visible == "gaussian":
            return random.normal(self.random, mean.shape, mean, dtype=mean.dtype)
        return self._bernoulli(mean)

    def free_energy(self, visible: Tensor) -> Tensor:
        """Returns F(v) = -log sum_h exp(-E(v, h)), shape `(B,)`.

        log p(v) = -F(v) - log Z, so differences of F are differences of log p. If the
        mean F of held-out examples rises above that of training examples, the RBM
        overfits.
        """
        return self._free_energy(self._as_visible(visible))

    def reconstruction_error(self, visible: Tensor) -> Tensor:
        """Returns the mean squared error of v^ = E[v | E[h | v]], shape `(B,)`.

        It is easy to monitor, but learning doesn't minimize it: a chain that hardly
        moves also has a small error.
        """
        return self._reconstruction_error(self._as_visible(visible))

    def gibbs(self, visible: Tensor, steps: int = 1) -> Tensor:
        """Runs Gibbs sampling: h from p(h | v), v from p(v | h), and so on.

        Args:
            visible: Initial states of the chains, shape `(B, D)`.
            steps: Number of times to sample h and v. Defaults to 1.

        Returns:
            The last v, shape `(B, D)`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If `visible` is no such array, or `steps` is smaller than 1.
        """
        checks.check("RBM.gibbs", {"steps": steps}, ACCEPTED)
        hidden = self.sample_hidden(visible)
        return self._gibbs(hidden, np.zeros(int(steps)))[0]

    def contrastive_divergence(self, visible: Tensor) -> None:
        """Learns from one batch: one update of the weights, in place.

        W += learning_rate (<v h> of the batch - <v h> of the chains), and similarly for
        the biases. The chains start at h sampled from p(h | v), or continue from the
        last update if `persistent`, and take k steps. The means use probabilities of h
        instead of samples, which reduces the noise.

        Args:
            visible: v, shape `(B, D)`: in [0, 1], or any finite numbers if Gaussian.

        Raises:
            ValueError: If the values or the shape are wrong.
        """
        self._update(self._as_visible(visible))

    @compiled
    def _update(self, v_pos):
        h_pos = self.call(v_pos)
        start = self.chain_states if self.persistent else self._bernoulli(h_pos)
        v_neg, h_neg, hidden = self._gibbs_steps(start, self.k)
        if self.persistent:
            self.chain_states.assign(hidden)

        kernel = _mean_product(v_pos, h_pos) - _mean_product(v_neg, h_neg)  # (D, U)
        visible_bias = ops.mean(v_pos, axis=0) - ops.mean(v_neg, axis=0)
        hidden_bias = ops.mean(h_pos, axis=0) - ops.mean(h_neg, axis=0)
        if self.sparsity_cost:
            # The gradient of the cross-entropy of target and mean probability, with
            # respect to a unit's input, is mean - target.
            pull = self.sparsity_cost * (self.sparsity_target - ops.mean(h_pos, axis=0))
            kernel += ops.outer(ops.mean(v_pos, axis=0), pull)
            hidden_bias += pull
        if self.weight_decay:
            kernel -= self.weight_decay * self.kernel

        weights = (self.kernel, self.visible_bias, self.hidden_bias)
        gradients = (kernel, visible_bias, hidden_bias)
        for i, (weight, gradient) in enumerate(zip(weights, gradients, strict=True)):
            step = self.learning_rate * gradient
            if self.momentum:
                step += self.momentum * self.velocities[i]
                self.velocities[i].assign(step)
            weight.assign_add(step)

    @compiled
    def _gibbs(self, hidden, steps):
        # The number of steps is an array's length, hence a constant of the program.
        return self._gibbs_steps(hidden, steps.shape[0])

    def _gibbs_steps(self, hidden, steps):
        """Samples v and h `steps` times; returns the last v, p(h = 1 | v), and h."""

        def gibbs_step(hidden):
            visible = self.sample_visible(hidden)
            probabilities = self.call(visible)
            return visible, probabilities, self._bernoulli(probabilities)

        hidden = ops.convert_to_tensor(hidden)
        if steps > 1:
            hidden, _ = scan(
                lambda hidden, _: (gibbs_step(hidden)[2], None),
                hidden,
                length=steps - 1,
            )
        return gibbs_step(hidden)

    @compiled
    def _free_energy(self, visible):
        inputs = ops.matmul(visible, self.kernel) + self.hidden_bias
        if self.visible == "gaussian":
            energy = 0.5 * ops.sum(ops.square(visible - self.visible_bias), axis=-1)
        else:
            energy = -ops.matmul(visible, self.visible_bias)
        return energy - ops.sum(ops.softplus(inputs), axis=-1)

    @compiled
    def _reconstruction_error(self, visible):
        reconstruction = self.visible_mean(self.call(visible))
        return ops.mean(ops.square(visible - reconstruction), axis=-1)

    def _bernoulli(self, probabilities):
        draws = random.bernoulli(self.random, probabilities.shape, probabilities)
        return ops.cast(draws, probabilities.dtype)

    def _as_visible(self, visible):
        """Checks a caller's array, unless it is traced and has no values yet."""
        if not is_tracing():
            visible = check_visible(visible, self.visible)
        if not self.built:
            self.build(visible.shape)
        if len(visible.shape) != 2 or visible.shape[1] != self.kernel.shape[0]:
            raise ValueError(
                f"RBM: `visible` must have the shape (batch, {self.kernel.shape[0]}), "
                f"received {tuple(visible.shape)}."
            )
        return ops.cast(visible, self.variable_dtype)

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        names = (
            *("units", "visible", "k", "persistent", "chains", "learning_rate"),
            *("momentum", "weight_decay", "sparsity_target", "sparsity_cost", "seed"),
        )
        initializers = (
            *("kernel_initializer", "visible_bias_initializer"),
            "hidden_bias_initializer",
        )
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in names},
            **{
                name: keras.initializers.serialize(getattr(self, name))
                for name in initializers
            },
        }


@keras.saving.register_keras_serializable(package="kit")
class DBN(Model):
    """Deep belief network: RBMs, each trained on the hidden units of the one below.

    `pretrain` learns without labels. The learned weights then initialize a classifier
    (`to_classifier`) or a deep autoencoder (`to_autoencoder`), to be trained with
    Keras' `fit`. As a model, a DBN returns the hidden probabilities of its last RBM:
    features for any classifier.

    Args:
        rbms: The RBMs, in order from the data up. Only the first may have Gaussian
            visible units: the others see probabilities.

    Input shape:
        `(B, D)`

    Output shape:
        `(B, U)`, U hidden units of the last RBM.

    Raises:
        TypeError: If `rbms` is no sequence of `RBM`s.
        ValueError: If `rbms` is empty or contains one twice, or if an RBM after the
            first is Gaussian.

    Example:

    ```python
    x = np.random.default_rng(0).random((100, 20)).astype("float32")
    dbn = kit.DBN([kit.RBM(32), kit.RBM(16)])
    dbn.pretrain(x, epochs=2)
    classifier = dbn.to_classifier(3)
    classifier.compile("adam", "sparse_categorical_crossentropy")
    classifier.fit(x[:10], np.arange(10) % 3)
    ```

    Reference: Hinton, Osindero and Teh, 2006,
    https://doi.org/10.1162/neco.2006.18.7.1527; fine-tuning and autoencoder: Hinton and
    Salakhutdinov, 2006, https://doi.org/10.1126/science.1127647.
    """

    def __init__(self, rbms: Sequence[RBM], **kwargs: Any):
        super().__init__(**kwargs)
        accepted = checks.sequence(checks.instance(RBM, what="a kit.RBM"), least=1)
        checks.check(self, locals(), {"rbms": accepted})
        if len({id(rbm) for rbm in rbms}) < len(rbms):
            raise ValueError(
                "DBN: `rbms` must hold no RBM twice, received "
                f"{len(rbms)}: {[rbm.name for rbm in rbms]}."
            )
        for i, rbm in enumerate(rbms[1:], 1):
            if rbm.visible != "bernoulli":
                raise ValueError(
                    f"DBN: `rbms[{i}]` must have visible='bernoulli', as its data are "
                    f"probabilities, received visible={rbm.visible!r}."
                )
        self.rbms = list(rbms)

    def build(self, input_shape):
        """Builds each RBM on the hidden units of the one below."""
        for i, rbm in enumerate(self.rbms):
            if not rbm.built:
                rbm.build(input_shape)
            if rbm.kernel.shape[0] != input_shape[-1]:
                raise ValueError(
                    f"DBN: `rbms[{i}]` was built for {rbm.kernel.shape[0]} visible "
                    f"units, and gets {input_shape[-1]}."
                )
            input_shape = (None, rbm.units)
        self.built = True

    def call(self, inputs):
        """Returns the hidden probabilities of the last RBM."""
        for rbm in self.rbms:
            inputs = rbm(inputs)
        return inputs

    def pretrain(
        self,
        x: np.ndarray,
        epochs: int = 10,
        batch_size: int = 100,
        validation_data: np.ndarray | None = None,
        callbacks: Sequence[keras.callbacks.Callback] | None = None,
        verbose: int | str = "auto",
    ) -> list[keras.callbacks.History]:
        """Trains greedily: the first RBM completely, then the next on its outputs.

        Args:
            x: Examples without labels, shape `(N, D)`: in [0, 1], or of mean 0 and
                variance 1 in each column if the first RBM is Gaussian.
            epochs: Passes over the examples for each RBM. Defaults to 10.
            batch_size: Examples per update. Defaults to 100.
            validation_data: Held-out examples whose error to monitor.
            callbacks: Keras callbacks, used for each RBM in turn; `self.model.rbm` is
                the RBM.
            verbose: As in `keras.Model.fit`.

        Returns:
            A `keras.callbacks.History` for each RBM, with `reconstruction_error`, and
            `val_reconstruction_error` if there is `validation_data`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If the examples have another shape, NaN, or values out of range;
                if `epochs` or `batch_size` is smaller than 1.
        """
        checks.check("DBN.pretrain", locals(), ACCEPTED)
        x = check_visible(x, self.rbms[0].visible, "x")
        self._check_built_for(x, "x")
        if validation_data is not None:
            validation_data = check_visible(
                validation_data, self.rbms[0].visible, "validation_data"
            )
            self._check_built_for(validation_data, "validation_data")
        histories = []
        for i, rbm in enumerate(self.rbms):
            model = _Pretraining(rbm)
            model.compile(optimizer=None)
            options: Any = {}
            if validation_data is not None:
                options["validation_data"] = (validation_data,)
            histories.append(
                model.fit(
                    x,
                    batch_size=batch_size,
                    epochs=epochs,
                    callbacks=in_stage(callbacks, f"rbm-{i}"),
                    verbose=verbose,
                    **options,
                )
            )
            if rbm is not self.rbms[-1]:
                x = _in_batches(rbm, x)
                if validation_data is not None:
                    validation_data = _in_batches(rbm, validation_data)
        end_stages(callbacks)
        return histories

    def to_classifier(self, num_classes: int, seed: int = 0) -> Sequential:
        """Unrolls the stack into a classifier, to be fine-tuned.

        Args:
            num_classes: Number of classes.
            seed: Seed of the new weights of the last layer. Defaults to 0.

        Returns:
            A `kit.Sequential` with a Dense sigmoid layer for each RBM, its weights
            copied, and a Dense softmax layer.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If `num_classes` is smaller than 1, or the DBN isn't built.
        """
        checks.check("DBN.to_classifier", locals(), ACCEPTED)
        model = self._unroll(name="classifier")
        model.add(keras.layers.Dense(num_classes, "softmax", name="classes"))
        initialize_weights(model, seed)
        for layer, rbm in zip(model.layers, self.rbms, strict=False):
            layer.set_weights(_numpy(rbm.kernel, rbm.hidden_bias))
        return model

    def to_autoencoder(self) -> Autoencoder:
        """Unrolls the stack into an autoencoder: up to the codes, and down again.

        Returns:
            A `kit.Autoencoder`. Its encoder has the RBMs' kernels and hidden biases,
            its decoder the transposed kernels and visible biases. All weights are
            copies, so fine-tuning changes encoder and decoder independently.

        Raises:
            ValueError: If the DBN isn't built.
        """
        encoder = self._unroll(name="encoder")
        decoder = Sequential([keras.Input((self.rbms[-1].units,))], name="decoder")
        for rbm in self.rbms[::-1]:
            activation = None if rbm.visible == "gaussian" else "sigmoid"
            decoder.add(keras.layers.Dense(rbm.kernel.shape[0], activation))
        for layer, rbm in zip(encoder.layers, self.rbms, strict=True):
            layer.set_weights(_numpy(rbm.kernel, rbm.hidden_bias))
        for layer, rbm in zip(decoder.layers, self.rbms[::-1], strict=True):
            kernel, visible_bias = _numpy(rbm.kernel, rbm.visible_bias)
            layer.set_weights([kernel.T, visible_bias])
        return Autoencoder(encoder, decoder)

    def sample(self, num: int, steps: int = 1000, start: Any = None) -> Tensor:
        """Generates examples: Gibbs sampling in the last RBM, then one pass down.

        An RBM trained by CD models the neighbourhood of the data well, but may have
        states of low energy far away, where long chains end up. `persistent=True` in
        the last RBM finds and removes such states.

        Args:
            num: Number of examples, one chain each.
            steps: Gibbs steps. Defaults to 1000.
            start: Examples `(num, D)` from which the chains start. Defaults to random
                states.

        Returns:
            The means of p(v | h) of the first RBM, shape `(num, D)`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If `num` or `steps` is smaller than 1, `start` has another shape
                or values out of range, or the DBN isn't built.
        """
        checks.check("DBN.sample", locals(), ACCEPTED)
        self._check_built()
        if start is None:
            return self._sample(self._noise(np.zeros(num)), np.zeros(steps))
        start = check_visible(start, self.rbms[0].visible, "start")
        self._check_built_for(start, "start")
        if len(start) != num:
            raise ValueError(
                f"DBN: `start` must hold num={num} examples, received {len(start)}."
            )
        return self._sample(
            self.rbms[-1].sample_hidden(self._below(start)), np.zeros(steps)
        )

    @compiled
    def _noise(self, num):
        shape = (num.shape[0], self.rbms[-1].units)
        return ops.cast(random.bernoulli(self.rbms[-1].random, shape), "float32")

    @compiled
    def _sample(self, hidden, steps):
        _, _, hidden = self.rbms[-1]._gibbs_steps(hidden, steps.shape[0])
        for rbm in self.rbms[:0:-1]:
            hidden = rbm.sample_visible(hidden)
        return self.rbms[0].visible_mean(hidden)

    @compiled
    def _below(self, inputs):
        """Returns the last RBM's inputs for these examples."""
        for rbm in self.rbms[:-1]:
            inputs = rbm(inputs)
        return inputs

    def _unroll(self, name):
        self._check_built()
        model = Sequential([keras.Input((self.rbms[0].kernel.shape[0],))], name=name)
        for rbm in self.rbms:
            model.add(keras.layers.Dense(rbm.units, "sigmoid"))
        return model

    def _check_built(self):
        if not self.built:
            raise ValueError(
                "DBN: it isn't built. Call `pretrain(x)`, or `build((None, D))` with D "
                "the number of visible units."
            )

    def _check_built_for(self, x, name):
        first = self.rbms[0]
        if first.built and x.shape[1] != first.kernel.shape[0]:
            raise ValueError(
                f"DBN: `{name}` must have {first.kernel.shape[0]} columns, received "
                f"the shape {x.shape}."
            )
        if not self.built:
            self.build(x.shape)

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        rbms = [keras.saving.serialize_keras_object(rbm) for rbm in self.rbms]
        return {**super().get_config(), "rbms": rbms}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Builds a model from the result of `get_config`."""
        rbms = [
            keras.saving.deserialize_keras_object(rbm, custom_objects=custom_objects)
            for rbm in config["rbms"]
        ]
        return cls(**{**config, "rbms": rbms})


class _Pretraining(Model):
    """Trains an RBM with Keras' `fit`: progress bar, History, callbacks."""

    def __init__(self, rbm):
        super().__init__(name=f"pretraining_{rbm.name}")
        self.rbm = rbm
        self.error = keras.metrics.Mean(name="reconstruction_error")

    def train_batch(self, x, y=None, sample_weight=None):
        self.error.update_state(self.rbm.reconstruction_error(x))
        self.rbm.contrastive_divergence(x)
        return {"reconstruction_error": self.error.result()}

    def test_batch(self, x, y=None, sample_weight=None):
        self.error.update_state(self.rbm.reconstruction_error(x))
        return {"reconstruction_error": self.error.result()}


def check_visible(values: Any, visible: str, name: str = "visible") -> np.ndarray:
    """Returns examples as float32; raises an error if an RBM can't learn from them.

    Args:
        values: Examples, shape `(N, D)`.
        visible: Kind of the visible units.
        name: Name of the argument, for the message.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shape is wrong, there is no example, or a value isn't finite,
            or not in [0, 1] though the units are Bernoulli.
    """
    kinds = {"visible": checks.one_of(*VISIBLE), "name": checks.TEXT}
    checks.check("check_visible", {"visible": visible, "name": name}, kinds)
    array = to_array(values)
    values = np.asarray(values) if array is None else array
    if values.dtype.kind not in "fiub":
        raise ValueError(f"`{name}` must hold numbers, received dtype {values.dtype}.")
    if values.ndim != 2 or not values.size:
        raise ValueError(
            f"`{name}` must have the shape (examples, visible units), none of them 0, "
            f"received {values.shape}. Flatten images: x.reshape(len(x), -1)."
        )
    values = values.astype("float32", copy=False)
    if not np.isfinite(values).all():
        row, column = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"`{name}` must hold finite numbers, received {values[row, column]} in row "
            f"{row}, column {column}."
        )
    if visible == "bernoulli" and not (values.min() >= 0 and values.max() <= 1):
        raise ValueError(
            f"`{name}` must be in [0, 1] for Bernoulli visible units, received values "
            f"from {values.min():g} to {values.max():g}. Scale them (pixels: x / 255), "
            "or use RBM(visible='gaussian')."
        )
    return values


def _mean_product(visible, hidden):
    """<v h>: the mean over the batch of each v_i h_j, shape (D, U)."""
    return ops.matmul(ops.transpose(visible), hidden) / visible.shape[0]


def _in_batches(layer, x, batch_size=1000):
    """Returns the layer's outputs as NumPy arrays."""
    parts = [x[i : i + batch_size] for i in range(0, len(x), batch_size)]
    parts = [ops.convert_to_numpy(layer(part)) for part in parts]
    return np.concatenate([part.astype("float32") for part in parts])


def _numpy(*variables):
    return [ops.convert_to_numpy(variable) for variable in variables]
