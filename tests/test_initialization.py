"""kit.initialize_weights: the same weights everywhere, as Keras distributes them."""

import keras
import numpy as np
import pytest
from keras import layers, ops

from kit import initialize_weights, random


def to_numpy(x):
    return ops.convert_to_numpy(x)


# Of every_layer() drawn from seed 0: size, sums of w, |w| and w^2; a few weights.
GOLDEN_MODEL = [9094, 4762.115994, 9168.557387, 24079.501985]
GOLDEN_KERNEL = [-0.10341269, -0.12380331, -0.02572431, -0.05615167]
GOLDEN_STATE = [658080391, 0]


class Noise(layers.Layer):
    def __init__(self, keep_state=False, **kwargs):
        super().__init__(**kwargs)
        self.generator = random.Generator(3)
        if keep_state:
            self.generator_state = self.generator.state

    def call(self, x):
        return x + random.uniform(self.generator, x.shape[1:])


def every_layer():
    """A model of many kinds of layer."""
    image = keras.Input((10, 10, 8))
    x = layers.Conv2D(8, 3, kernel_initializer="he_normal")(image)
    x = layers.BatchNormalization()(x)
    x = layers.DepthwiseConv2D(3)(x)
    x = layers.SeparableConv2D(8, 3, depthwise_initializer="he_uniform")(x)
    x = layers.PReLU()(x)
    x = layers.TimeDistributed(layers.Dense(8, kernel_initializer="lecun_normal"))(x)
    x = layers.GroupNormalization(2)(x)
    x = layers.Reshape((-1, 8))(x)
    x = layers.MultiHeadAttention(2, 4)(x, x)
    x = layers.LayerNormalization()(layers.Dropout(0.5)(x))
    x = layers.RMSNormalization()(x)
    x = layers.Bidirectional(layers.LSTM(6, return_sequences=True))(x)
    x = layers.RNN([layers.GRUCell(6), layers.SimpleRNNCell(6)])(x)
    token = keras.Input((4,))
    y = layers.Embedding(20, 8)(token)
    y = layers.EinsumDense("abc,cde->abde", (4, 8, 16), bias_axes="de")(y)
    y = layers.Flatten()(y)
    nested = keras.Sequential(
        [
            keras.Input((512,)),
            layers.Dense(
                9, kernel_initializer=keras.initializers.RandomNormal(1.0, 2.0)
            ),
            layers.SpectralNormalization(layers.Dense(9)),
            layers.Dense(
                9,
                kernel_initializer=keras.initializers.RandomUniform(0.25, 0.5),
                bias_initializer=keras.initializers.Constant(3.0),
            ),
            layers.Dense(9, kernel_initializer=keras.initializers.TruncatedNormal()),
            layers.Dense(
                9,
                kernel_initializer=keras.initializers.VarianceScaling(
                    3.0, "fan_avg", "untruncated_normal"
                ),
                bias_initializer="ones",
            ),
            layers.Dense(9, kernel_initializer=keras.initializers.Orthogonal(0.5)),
            layers.Dense(9, kernel_initializer="identity"),
            layers.Dense(9, kernel_initializer="lecun_uniform"),
        ]
    )
    return keras.Model([image, token], [x, nested(y)])


def test_weights_are_distributed_as_kerass_own_initializers_distribute_them():
    model, reference = every_layer(), every_layer()
    for weight in model.weights:
        weight.assign(ops.full_like(weight.value, 7))
    initialize_weights(model, seed=0)
    for ours, keras_ in zip(model.weights, reference.weights, strict=True):
        a, b = to_numpy(ours).astype("float64"), to_numpy(keras_).astype("float64")
        if keras_.trainable and np.unique(b).size > 16:
            assert a.std() == pytest.approx(b.std(), rel=6 / b.size**0.5), ours.path
            assert abs(a.mean() - b.mean()) < 6 * b.std() / b.size**0.5, ours.path
            assert abs(a).max() < 1.35 * abs(b).max(), ours.path
        elif keras_.trainable:  # zeros, ones, LSTM's bias: nothing random
            np.testing.assert_array_equal(a, b, err_msg=ours.path)
        assert not (a == 7).any()


def test_weights_are_the_same_on_every_backend_and_follow_the_seed():
    model = every_layer()
    initialize_weights(model, seed=0)
    first = [to_numpy(v) for v in model.variables]
    for weight in model.weights:
        weight.assign(ops.zeros_like(weight.value))
    initialize_weights(model, seed=1)
    other = [to_numpy(v) for v in model.variables]
    assert sum(not np.array_equal(a, b) for a, b in zip(first, other, strict=True)) > 30
    initialize_weights(model, seed=0)
    for again, value in zip(model.variables, first, strict=True):
        np.testing.assert_array_equal(to_numpy(again), value)
    values = np.concatenate([w.ravel() for w in map(to_numpy, model.weights)])
    values = values.astype("float64")
    found = [values.size, values.sum(), np.abs(values).sum(), (values**2).sum()]
    np.testing.assert_allclose(found, GOLDEN_MODEL, rtol=1e-6, atol=1e-4)
    kernel = to_numpy(model.weights[0])[0, 0, :4, 0]
    np.testing.assert_allclose(kernel, GOLDEN_KERNEL, atol=1e-6)


def test_later_layers_leave_the_earlier_weights_as_they_were():
    def mlp(*units):
        model = keras.Sequential([keras.Input((4,)), *map(layers.Dense, units)])
        initialize_weights(model, seed=3)
        return model.get_weights()

    for a, b in zip(mlp(5, 6), mlp(5, 6, 7), strict=False):
        np.testing.assert_array_equal(a, b)


def test_seed_generators_start_again():
    def outputs(model):
        initialize_weights(model, seed=5)
        x = np.ones((1, 64), "float32")
        return [to_numpy(model(x, training=True)) for _ in range(2)]

    model = keras.Sequential([keras.Input((64,)), layers.Dropout(0.5, seed=1), Noise()])
    state = model.layers[0].seed_generator.state
    a, b = outputs(model), outputs(model)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a[0], a[1])
    initialize_weights(model, seed=5)
    assert to_numpy(state).tolist() == GOLDEN_STATE
    layer = Noise(keep_state=True)
    layer.build(None)
    layer(np.ones((1, 2)))
    initialize_weights(layer, seed=5)
    assert to_numpy(layer.generator.state)[2] == 0


def test_what_adapt_learned_stays():
    model = keras.Sequential(
        [keras.Input((2,)), layers.Normalization(), layers.Dense(1)]
    )
    model.layers[0].adapt(np.array([[1.0, 2.0], [3.0, 6.0]]))
    before = model.get_weights()
    initialize_weights(model, seed=0)
    np.testing.assert_array_equal(before[0], model.get_weights()[0])
    assert not np.array_equal(before[-2], model.get_weights()[-2])


class Capsules(layers.Layer):
    def __init__(self, **attributes):
        super().__init__()
        vars(self).update(attributes)

    def build(self, input_shape):
        self.W = self.add_weight(shape=(30, 30), initializer="zeros", name="W")


def test_layers_of_ones_own():
    layer = Capsules(W_initializer="glorot_uniform")
    layer.build(None)
    initialize_weights(layer, seed=0)
    assert to_numpy(layer.W).std() == pytest.approx((6 / 60 / 3) ** 0.5, rel=0.1)

    class Mine(keras.initializers.GlorotUniform):
        def __call__(self, shape, dtype=None):
            return ops.ones(shape, dtype)

    for attributes, message in [
        ({}, "'W'|W.*not known.*W_initializer"),
        ({"W_initializer": Mine()}, "W.*not supported.*Mine.*Accepted: .*Orthogonal"),
        ({"W_initializer": lambda shape, dtype: None}, "not supported"),
    ]:
        dense = layers.Dense(3)
        model = keras.Sequential([keras.Input((30,)), dense, Capsules(**attributes)])
        before = dense.get_weights()
        with pytest.raises(ValueError, match=message):
            initialize_weights(model, seed=0)
        np.testing.assert_array_equal(before[0], dense.get_weights()[0])


def test_wrong_arguments_are_named():
    with pytest.raises(TypeError, match="model.*'m'.*str"):
        initialize_weights("m", 0)
    with pytest.raises(ValueError, match="model.*built"):
        initialize_weights(keras.Sequential([layers.Dense(2)]), 0)
