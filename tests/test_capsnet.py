"""Capsules, their loss, the network, and the recipe."""

import json

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.autoencoder import decoder
from kit.capsnet import (
    ARCHITECTURES,
    CapsNet,
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCaps,
    capsnet,
    margin_loss,
    squash,
)
from kit.data import phantoms


def to_numpy(x):
    return ops.convert_to_numpy(x)


def draw(*shape):
    return np.random.default_rng(len(shape)).normal(size=shape).astype("float32")


# --- Squash, length, mask, margin loss: by hand ------------------------------------


def test_squash_by_hand():
    # |s| = 5: 25 / 26 of the direction (0.6, 0.8); |s| = 1: half of it.
    s = np.array([[3, 4], [0, 1], [0, 0]], "float32")
    expected = [[25 / 26 * 0.6, 25 / 26 * 0.8], [0, 0.5], [0, 0]]
    np.testing.assert_allclose(to_numpy(squash(s)), expected, atol=1e-6)
    columns = to_numpy(squash(s.T, axis=0))
    np.testing.assert_allclose(columns.T, expected, atol=1e-6)


def test_length_by_hand():
    v = np.array([[[3, 4], [0, -2], [0, 0]]], "float32")
    lengths = to_numpy(Length()(v))
    np.testing.assert_allclose(lengths, [[5, 2, 0]], atol=1e-3)


@pytest.mark.parametrize("fn", [squash, Length()], ids=["squash", "length"])
def test_zero_vectors_have_a_gradient(fn):
    gradient = kit.gradient(lambda s: ops.sum(fn(s)), ops.zeros((2, 3)))
    np.testing.assert_array_equal(to_numpy(gradient), np.zeros((2, 3)))


V = np.array([[[1, 2], [3, 4]], [[5, 6], [7, -8]], [[-9, 1], [2, 3]]], "float32")


@pytest.mark.parametrize(
    "inputs",
    [
        V,  # the longest ones are 1, 1 and 0
        (V, np.array([1, 1, 0])),
        (V, np.array([[1], [1], [0]])),
        (V, np.array([[0, 1], [0, 1], [1, 0]])),
    ],
    ids=["longest", "classes", "column", "one-hot"],
)
def test_mask_keeps_one_capsule(inputs):
    expected = [[0, 0, 3, 4], [0, 0, 7, -8], [-9, 1, 0, 0]]
    np.testing.assert_allclose(to_numpy(Mask()(inputs)), expected)


def test_mask_goes_by_the_class_and_not_by_the_length():
    masked = to_numpy(Mask()((V, np.array([0, 0, 1]))))
    np.testing.assert_allclose(masked, [[1, 2, 0, 0], [5, 6, 0, 0], [0, 0, 2, 3]])


LENGTHS = np.array([[0.95, 0.05, 0.3], [0.5, 0.6, 0.1]], "float32")


def test_margin_loss_by_hand():
    # (0.3 - 0.1)^2 / 2; and (0.9 - 0.6)^2 + (0.5 - 0.1)^2 / 2.
    expected = [0.02, 0.09 + 0.08]
    for y in ([0, 1], [[0], [1]], [[1, 0, 0], [0, 1, 0]]):
        losses = to_numpy(margin_loss(np.array(y), LENGTHS))
        np.testing.assert_allclose(losses, expected, atol=1e-6)


def test_margin_loss_of_several_classes_and_other_margins():
    y = np.array([[1, 1, 0], [0, 0, 0]])
    losses = to_numpy(margin_loss(y, LENGTHS, m_plus=0.8, m_minus=0.0, lambda_=1.0))
    expected = [0.75**2 + 0.3**2, 0.5**2 + 0.6**2 + 0.1**2]
    np.testing.assert_allclose(losses, expected, atol=1e-6)


# --- Routing ----------------------------------------------------------------------


def slow_routing(u, w, routings):
    """The paper's Procedure 1, capsule by capsule, in float64. w: (I, J, D, size)."""
    num_in, num_out, dim = w.shape[:3]
    outputs = []
    for example in u.astype("float64"):
        u_hat = np.zeros((num_in, num_out, dim))
        for i in range(num_in):
            for j in range(num_out):
                u_hat[i, j] = w[i, j] @ example[i]
        b = np.zeros((num_in, num_out))
        for _ in range(routings):
            c = np.zeros_like(b)
            for i in range(num_in):
                c[i] = np.exp(b[i]) / np.exp(b[i]).sum()
            v = np.zeros((num_out, dim))
            for j in range(num_out):
                s = sum(c[i, j] * u_hat[i, j] for i in range(num_in))
                norm = np.linalg.norm(s)
                v[j] = norm**2 / (1 + norm**2) * s / norm
            for i in range(num_in):
                for j in range(num_out):
                    b[i, j] += u_hat[i, j] @ v[j]
        outputs.append(v)
    return np.array(outputs)


def built_layer(routings, num_in=7, size=3, num_out=4, dim=5):
    """A layer, and its weights as the paper writes them: W_ij, (dim, size) each."""
    layer = CapsuleLayer(num_out, dim, routings)
    layer.build((None, num_in, size))
    w = 0.7 * draw(num_in, size, num_out * dim)
    layer.kernel.assign(w)
    w = w.reshape(num_in, size, num_out, dim).transpose(0, 2, 3, 1)
    return layer, w.astype("float64")


@pytest.mark.parametrize("routings", [1, 2, 3, 5])
def test_routing_is_that_of_the_equations(routings):
    layer, w = built_layer(routings)
    u = draw(6, 7, 3)
    expected = slow_routing(u, w, routings)
    np.testing.assert_allclose(to_numpy(layer(u)), expected, rtol=1e-4, atol=1e-6)
    if routings > 1:  # and a step more or less is another result
        other = slow_routing(u, w, routings - 1)
        assert np.abs(other - expected).max() > 0.01


def test_capsules_of_a_kind_share_their_weights():
    shared = CapsuleLayer(4, 5, kinds=2)
    u = draw(2, 6, 3)
    result = to_numpy(shared(u))
    layer = CapsuleLayer(4, 5)
    layer.build(u.shape)
    # Three places, two kinds at each.
    layer.kernel.assign(np.tile(to_numpy(shared.kernel), (3, 1, 1)))
    np.testing.assert_allclose(result, to_numpy(layer(u)), rtol=1e-4, atol=1e-6)
    # Places can be exchanged, kinds can't.
    places, kinds = u[:, [2, 3, 4, 5, 0, 1]], u[:, [1, 0, 3, 2, 5, 4]]
    np.testing.assert_allclose(result, to_numpy(shared(places)), rtol=1e-3, atol=1e-6)
    assert np.abs(result - to_numpy(shared(kinds))).max() > 1e-3


def test_gradient_goes_through_the_routing():
    layer, w = built_layer(3)
    u, weights = draw(2, 7, 3), draw(4, 5)
    factor = ops.convert_to_tensor(weights)
    gradient = to_numpy(kit.gradient(lambda u: ops.sum(layer(u) * factor), u))
    for index in [(0, 0, 0), (1, 3, 2), (1, 6, 1)]:
        step = np.zeros(u.shape)
        step[index] = 1e-5
        above, below = (
            np.sum(slow_routing(u + s, w, 3) * weights) for s in (step, -step)
        )
        np.testing.assert_allclose(gradient[index], (above - below) / 2e-5, rtol=2e-3)


def test_masked_capsules_have_no_vote():
    layer, _ = built_layer(3)
    u = draw(2, 7, 3)
    mask = np.ones((2, 7), bool)
    mask[0, 2:] = False
    masked = to_numpy(layer(u, mask=ops.convert_to_tensor(mask)))
    np.testing.assert_allclose(masked[1], to_numpy(layer(u))[1], atol=1e-6)
    changed = u.copy()
    changed[0, 2:] += 1.0
    other = to_numpy(layer(changed, mask=ops.convert_to_tensor(mask)))
    np.testing.assert_allclose(masked, other, atol=1e-6)
    assert np.abs(to_numpy(layer(changed)) - masked)[0].max() > 0.01


def test_primary_capsules_are_squashed_channels():
    layer = PrimaryCaps(2, capsule_dim=3, kernel_size=3, strides=2)
    x = draw(2, 7, 6, 4)
    capsules = to_numpy(layer(x))
    assert capsules.shape == (2, 3 * 2 * 2, 3)
    assert layer.compute_output_shape((2, 7, 6, 4)) == capsules.shape
    channels = to_numpy(layer.convolution(x))
    expected = to_numpy(squash(channels.reshape(2, 3, 2, 2, 3)))
    # Place (1, 0), second kind: 2 kinds at each of the 2 places of row 0 before it.
    np.testing.assert_allclose(capsules[:, 5], expected[:, 1, 0, 1], atol=1e-6)


def run_layer_test(layer_class, **kwargs):
    """Keras' own checks of a layer. They are private: this is where they come in."""
    from keras.src.testing import TestCase

    TestCase().run_layer_test(
        layer_class, expected_num_non_trainable_weights=0, **kwargs
    )


# They fit a model of this layer alone on a generator: Keras warns of both.
@pytest.mark.filterwarnings("ignore:`shuffle=True` was passed:UserWarning")
@pytest.mark.filterwarnings("ignore:The model does not have any trainable:UserWarning")
@pytest.mark.parametrize(
    ("layer_class", "init_kwargs", "input_shape", "output_shape", "weights"),
    [
        (Length, {}, (2, 4, 3), (2, 4), 0),
        (Mask, {}, (2, 4, 3), (2, 12), 0),
        (
            CapsuleLayer,
            {"num_capsules": 4, "capsule_dim": 5, "routings": 2, "kinds": 3},
            (2, 6, 3),
            (2, 4, 5),
            1,
        ),
        (
            PrimaryCaps,
            {"channels": 2, "capsule_dim": 4, "kernel_size": 3, "padding": "same"},
            (2, 6, 6, 3),
            (2, 18, 4),
            2,
        ),
    ],
)
def test_layers_pass_keras_checks(
    layer_class, init_kwargs, input_shape, output_shape, weights
):
    run_layer_test(
        layer_class,
        init_kwargs=init_kwargs,
        input_shape=input_shape,
        expected_output_shape=output_shape,
        expected_num_trainable_weights=weights,
        supports_masking=layer_class is CapsuleLayer,
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CapsuleLayer(10, 16, routings=0), r"`routings`.*\[1, .*0"),
        (lambda: CapsuleLayer(0, 16), "`num_capsules`.*0"),
        (lambda: CapsuleLayer(10, -1), "`capsule_dim`.*-1"),
        (lambda: PrimaryCaps(0), "`channels`.*0"),
        (lambda: CapsuleLayer(2, 3, kinds=0), "`kinds`.*0"),
        (lambda: CapsuleLayer(2, 3, kinds=3)(draw(2, 8, 4)), "`kinds`=3.*8 caps"),
        (lambda: CapsuleLayer(2, 3)(draw(2, 8)), r"CapsuleLayer.*\(2, 8\)"),
        (lambda: PrimaryCaps(2)(draw(2, 8, 8)), r"PrimaryCaps.*\(2, 8, 8\)"),
        (lambda: capsnet((28, 28)), r"input_shape.*\(28, 28\)"),
        (lambda: capsnet((28, 16, 1)), r"input_shape.*21 x 21.*\(28, 16, 1\)"),
        (lambda: capsnet(architecture="big"), "architecture.*'paper'.*'big'"),
        (lambda: capsnet(routings=0), "`routings`.*0"),
        (lambda: capsnet(reconstruction_weight=-1.0), "reconstruction_weight.*-1.0"),
    ],
)
def test_refuses(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_refuses_half_a_step():
    with pytest.raises(TypeError, match=r"`routings`.*integer.*1\.5"):
        CapsuleLayer(10, 16, routings=1.5)


# --- The network ------------------------------------------------------------------


def test_paper_architecture():
    model = capsnet(architecture="paper")
    shapes = [layer.output.shape[1:] for layer in model.capsules.layers[1:]]
    convolution = (20, 20, 256)
    assert shapes == [convolution, convolution, (6 * 6 * 32, 8), (10, 16)]
    capsules = 82 * 256 + 81 * 256 * 256 + 256 + 1152 * 8 * 160
    assert model.capsules.count_params() == capsules
    assert model.decoder.count_params() == 161 * 512 + 513 * 1024 + 1025 * 784


def test_smallest_images():
    for architecture, size in (("small", 21), ("paper", 17)):
        model = capsnet((size, size, 1), 2, architecture)
        kinds = 16 if architecture == "small" else 32
        assert model.capsules.layers[-1].input.shape == (None, kinds, 8)


@pytest.mark.parametrize("shared", [None, True, False])
def test_small_architecture(shared):
    model = capsnet(share_weights=shared)
    layer = model.capsules.layers[-1]
    assert layer.input.shape == (None, 2 * 2 * 16, 8)
    kinds = 64 if shared is False else 16
    assert tuple(layer.kernel.shape) == (kinds, 8, 160)
    assert isinstance(model.capsules.layers[2], keras.layers.BatchNormalization)


def spots(number=64, seed=0):
    """Bright spots: in the left or in the right half of an image."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, number)
    x = np.zeros((number, 9, 9, 1), "float32")
    for image, label in zip(x, y, strict=True):
        row, column = rng.integers(0, 7), rng.integers(0, 2) + 5 * label
        image[row : row + 3, column : column + 3] = 1.0
    return x, y


def small_model(seed=0, **options):
    image = keras.Input((9, 9, 1))
    u = PrimaryCaps(4, 4, kernel_size=3)(image)  # 16 places
    capsules = kit.Model(image, CapsuleLayer(2, 4)(u))
    model = CapsNet(capsules, decoder((9, 9, 1), 8, (16,)), **options)
    kit.initialize_weights(model, seed)
    model.compile(keras.optimizers.Adam(3e-3), metrics=["accuracy"])
    return model


def test_loss_is_margin_and_reconstruction():
    x, y = spots(8)
    model = small_model(reconstruction_weight=0.01)
    outputs = model.predict(x, verbose=0)
    assert {k: v.shape for k, v in outputs.items()} == {
        "length": (8, 2),
        "capsules": (8, 2, 4),
        "image": (8, 9, 9, 1),
    }
    drawn = to_numpy(model.decode(outputs["capsules"], y))
    error = np.square(drawn - x)
    margin = to_numpy(margin_loss(y, outputs["length"])).mean()
    expected = margin + 0.01 * error.sum(axis=(1, 2, 3)).mean()
    logs = model.evaluate(x, y, batch_size=8, return_dict=True, verbose=0)
    np.testing.assert_allclose(logs["loss"], expected, rtol=1e-4)
    np.testing.assert_allclose(logs["reconstruction_mse"], error.mean(), rtol=1e-4)
    right = outputs["length"].argmax(axis=1) == y
    np.testing.assert_allclose(logs["accuracy"], right.mean(), atol=1e-6)


def test_the_decoder_draws_the_right_class_though_another_is_longer():
    x, _ = spots(8)
    model = small_model()
    model.decoder.set_weights([100 * w for w in model.decoder.get_weights()])
    outputs = model.predict(x, verbose=0)
    y = outputs["length"].argmin(axis=1)
    error = np.square(to_numpy(model.decode(outputs["capsules"], y)) - x).mean()
    longest = np.square(to_numpy(model.decode(outputs["capsules"])) - x).mean()
    assert abs(error / longest - 1) > 0.01
    logs = model.evaluate(x, y, batch_size=8, return_dict=True, verbose=0)
    assert logs["reconstruction_mse"] == pytest.approx(error, rel=1e-4)


def test_decoder_learns_and_can_be_switched_off():
    x, y = spots(8)
    for weight in (0.0, 0.01):
        model = small_model(reconstruction_weight=weight)
        before = model.decoder.get_weights()
        model.fit(x, y, batch_size=8, epochs=2, verbose=0)
        moved = [
            np.abs(a - b).max()
            for a, b in zip(before, model.decoder.get_weights(), strict=True)
        ]
        assert (max(moved) > 1e-4) == (weight > 0.0)


@pytest.mark.parametrize("jit_compile", ["auto", False])
def test_learns_and_is_saved(tmp_path, jit_compile):
    x, y = spots()
    model = small_model(preprocessing=keras.layers.Rescaling(1.0))
    model.compile(
        keras.optimizers.Adam(3e-3), metrics=["accuracy"], jit_compile=jit_compile
    )
    model.fit(x, y, batch_size=16, epochs=8, verbose=0)
    x_test, y_test = spots(seed=1)
    outputs = model.predict(x_test, verbose=0)
    assert np.mean(outputs["length"].argmax(axis=1) == y_test) > 0.95

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, CapsNet)
    assert loaded.reconstruction_weight == model.reconstruction_weight
    for name, values in loaded.predict(x_test, verbose=0).items():
        np.testing.assert_allclose(values, outputs[name], atol=1e-5)
    loaded.fit(x, y, batch_size=16, verbose=0)


def test_one_hot_classes_are_the_same_training():
    x, y = spots(16)
    losses = [
        small_model().fit(x, labels, batch_size=8, epochs=2, shuffle=False, verbose=0)
        for labels in (y, np.eye(2, dtype="float32")[y])
    ]
    a, b = (history.history["loss"] for history in losses)
    np.testing.assert_allclose(a, b, rtol=1e-4)


def test_decodes_the_longest_capsule_or_the_one_asked_for():
    model = small_model()
    v = np.array([[[0.1, 0, 0, 0], [0, 0.9, 0, 0]]], "float32")
    longest, first, second = (
        to_numpy(model.decode(v, y)) for y in (None, np.array([0]), np.array([1]))
    )
    assert longest.shape == (1, 9, 9, 1)
    np.testing.assert_allclose(longest, second, atol=1e-6)
    assert np.abs(first - second).max() > 1e-4


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([[np.nan]], [0], "`x`.*NaN"),
        ([[np.inf]], [0], "`x`.*NaN"),
        ([[255.0]], [0], r"`x` must be in \[0, 1\].*received 255 to 255"),
        ([[0.0]], [2], r"`y`.*0 to 1.*\[2\]"),
        ([[0.0]], [-1], r"`y`.*0 to 1.*\[-1\]"),
        ([[0.0]], [0.5], r"`y`.*integers.*\[0.5\]"),
        ([[0.0]], [[0, 1, 0]], r"`y`.*\(B, 2\).*\(1, 3\)"),
        ([[0.0]], None, "`y` is missing"),
    ],
)
def test_refuses_data(x, y, message):
    model = small_model()
    x = np.broadcast_to(np.array(x), (1, 9, 9, 1)).astype("float32")
    y = y if y is None else np.array(y)
    with pytest.raises(ValueError, match=message):
        model.fit(x, y, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(x, y, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.fit(np.zeros((1, 9, 9, 1)), np.zeros(1), validation_data=(x, y))


def test_refuses_wrong_tensors_and_parts_that_do_not_fit():
    x, y = spots(8)
    model = small_model()
    with pytest.raises(ValueError, match="integers from 0 to 1"):
        model.fit(x, ops.convert_to_tensor(y + 5), verbose=0)
    with pytest.raises(ValueError, match="NaN"):
        model.fit(ops.convert_to_tensor(np.full_like(x, np.nan)), y, verbose=0)
    with pytest.raises(ValueError, match=r"one-hot `y` must be of numbers in \[0, 1\]"):
        model.fit(x, np.full((8, 2), np.nan), verbose=0)
    with pytest.raises(ValueError, match="`decoder` must give images"):
        CapsNet(model.capsules, decoder((1, 1, 1), 8, (16,)))


def test_weights_of_examples_have_either_shape():
    x, y = spots(8)
    model = small_model(reconstruction_weight=0.1)
    weights = np.arange(8, dtype="float32")
    flat = model.evaluate(x, y, sample_weight=weights, verbose=0)[0]
    column = model.evaluate(x, y, sample_weight=weights[:, None], verbose=0)[0]
    assert column == pytest.approx(flat, rel=1e-5)


def test_keras_own_fit_takes_a_last_batch_that_is_not_full():
    x, y = spots(8)
    model = small_model()
    model.compile("adam", jit_compile=False)
    history = model.fit(x, y, batch_size=5, verbose=0).history
    assert np.isfinite(history["loss"]).all()


# --- The recipe -------------------------------------------------------------------

TINY = {"epochs": 1, "batch_size": 200, "verbose": 0}


@pytest.fixture
def small_convolutions(monkeypatch):
    """Few and small ones: tests/test_exchange.py trains them as they are."""
    sizes = {"convolutions": ((4, 5, 3), (4, 3, 1)), "primary": (2, 3, 2)}
    small = ARCHITECTURES["small"] | sizes
    monkeypatch.setitem(ARCHITECTURES, "small", small)


@pytest.mark.once  # test_exchange.py runs it under each backend
@pytest.mark.usefixtures("small_convolutions")
def test_recipe_leaves_what_it_promises(load_recipe, tmp_path, few_digits):
    record = load_recipe("capsnet").main(
        output_dir=tmp_path, seed=1, ablation=(1,), **TINY
    )
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "history.csv",
        "metrics.json",
        "robustness.png",
        "reconstructions.png",
        "poses.png",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    names = {f"{x}_accuracy" for x in ("test", "transformed", "rotated", "shifted")}
    assert set(record["metrics"]) == {*names, "parameters"}
    others = {
        f"{model}_{x}" for model in ("cnn", "pooled_cnn", "routings_1") for x in names
    }
    assert set(record["baselines"]) == {*others, "cnn_parameters"}
    sizes = record["metrics"]["parameters"], record["baselines"]["cnn_parameters"]
    assert 1.0 <= sizes[1] / sizes[0] < 1.05
    assert record["throughput"]["value"] > 0

    # Raw images are all that the saved model needs.
    model = keras.saving.load_model(tmp_path / "model.keras")
    y_pred = model.predict(few_digits.x_test, verbose=0)["length"].argmax(axis=1)
    assert np.mean(y_pred == few_digits.y_test) == record["metrics"]["test_accuracy"]


def test_recipe_can_validate(load_recipe, tmp_path, few_digits):
    recipe = load_recipe("capsnet")
    data = recipe.load_data("mnist_5k", 0.25)
    np.testing.assert_array_equal(data.x_train, few_digits.x_train[:150])
    np.testing.assert_array_equal(data.x_test, few_digits.x_train[150:])
    np.testing.assert_array_equal(data.y_test, few_digits.y_train[150:])


def test_transform_turns_and_shifts(load_recipe):
    transform = load_recipe("capsnet").transform
    image = np.zeros((400, 15, 15, 1), "uint8")
    image[:, 7, 7] = 200  # the centre
    image[:, 7, 11] = 100
    np.testing.assert_array_equal(transform(image, (0, 0), (0, 0), 0), image)

    turned = transform(image, (90, 90), (0, 0), 0)[..., 0]
    assert (abs(turned[:, 7, 7].astype(int) - 200) <= 1).all()
    up, down = turned[:, 3, 7] > 90, turned[:, 11, 7] > 90
    assert (up ^ down).all() and 100 < up.sum() < 300

    # The centre of mass moves by the shift.
    image[:, 7, 11] = 0
    shifted = transform(image, (0, 0), (3, 5), 0)[..., 0].astype(float)
    places = np.stack([np.indices((15, 15))] * 400)
    mass = shifted.sum(axis=(1, 2))
    moved = (places * shifted[:, None]).sum(axis=(2, 3)) / mass[:, None] - 7
    distance = np.hypot(*moved.T)
    assert 2.9 < distance.min() < 3.2 and 4.8 < distance.max() < 5.1
    assert abs(moved.mean(axis=0)).max() < 0.5

    both = transform(image[:2], (15, 40), (3, 5), 0)
    np.testing.assert_array_equal(transform(image[:2], (15, 40), (3, 5), 0), both)
    assert both.dtype == "uint8" and not np.array_equal(both[0], both[1])


# --- Lesions ----------------------------------------------------------------------


def lesion_pixels(number, **pose):
    """Where the lesions of some crops are: what differs without their brightness."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phantoms, "LESION_CONTRAST", (0.3, 0.3))
        bright = phantoms.lesion_crops(number, **pose)
        patch.setattr(phantoms, "LESION_CONTRAST", (0.0, 0.0))
        dark = phantoms.lesion_crops(number, **pose)
    difference = bright.images.astype(int) - dark.images.astype(int)
    return (difference > 38)[..., 0], bright.kinds  # half of 0.3 times 255


@pytest.mark.once
def test_crops_have_lesions_of_four_shapes():
    mask, kinds = lesion_pixels(60, size=40, seed=3, degrees=(0, 0), scales=(1, 1))
    assert kinds.tolist() == [0, 1, 2, 3, 4] * 12
    areas = mask.sum(axis=(1, 2))
    assert (areas[kinds == 0] == 0).all() and (areas[kinds > 0] > 40).all()
    # Round and elongated ones have the area of a circle of radius 0.2 * 40.
    plain = (kinds == 1) | (kinds == 2)
    np.testing.assert_allclose(areas[plain], np.pi * 8**2, rtol=0.06)
    height = mask.any(axis=2).sum(axis=1)
    width = mask.any(axis=1).sum(axis=1)
    ratio = (height / np.maximum(width, 1))[kinds == 2]
    assert ratio.min() > 1.6 and ratio.max() < 2.6  # upright: 1.8 to 2.4
    assert abs(height - width)[kinds == 1].max() <= 1
    # How often a circle around a lesion's centre crosses its outline.
    t = np.linspace(0, 2 * np.pi, 400, endpoint=False)
    for kind, radius, expected in ((3, 1.0, 6), (4, 0.9, 14)):
        crossings = []
        for one in mask[kinds == kind]:
            y, x = np.argwhere(one).mean(axis=0)
            at = np.round([y + 8 * radius * np.sin(t), x + 8 * radius * np.cos(t)])
            inside = one[tuple(at.astype(int))]
            crossings.append(np.sum(inside != np.roll(inside, 1)))
        assert np.median(crossings) == expected, (kind, crossings)


@pytest.mark.once
def test_a_pose_changes_the_lesion_alone():
    upright, kinds = lesion_pixels(20, seed=1, degrees=(0, 0), scales=(1, 1))
    for pose in ({"degrees": (90, 90), "scales": (1, 1)}, {"scales": (1.6, 1.6)}):
        images = phantoms.lesion_crops(20, seed=1, **pose).images
        same = phantoms.lesion_crops(20, seed=1).images
        np.testing.assert_array_equal(images[kinds == 0], same[kinds == 0])
        np.testing.assert_array_equal(images[:, 0], same[:, 0])  # the rim
        assert not np.array_equal(images[kinds > 0], same[kinds > 0])
    turned, _ = lesion_pixels(20, seed=1, degrees=(90, 90), scales=(1, 1))
    for one, other in zip(upright[kinds == 2], turned[kinds == 2], strict=True):
        assert one.any(axis=1).sum() > 1.5 * one.any(axis=0).sum()
        assert other.any(axis=0).sum() > 1.5 * other.any(axis=1).sum()
    scaled, _ = lesion_pixels(40, seed=1, degrees=(0, 0), scales=(1.5, 1.5))
    upright, kinds = lesion_pixels(40, seed=1, degrees=(0, 0), scales=(1, 1))
    factors = scaled.sum(axis=(1, 2))[kinds == 1] / upright.sum(axis=(1, 2))[kinds == 1]
    larger = factors > 1
    np.testing.assert_allclose(factors[larger], 1.5**2, rtol=0.1)
    np.testing.assert_allclose(factors[~larger], 1.5**-2, rtol=0.2)
    assert 0 < larger.sum() < len(larger)


@pytest.mark.once
def test_crops_depend_on_seed_and_place_only():
    few, many = phantoms.lesion_crops(7, seed=5), phantoms.lesion_crops(12, seed=5)
    np.testing.assert_array_equal(few.images, many.images[:7])
    other = phantoms.lesion_crops(7, seed=6)
    assert few.images.dtype == "uint8" and few.kinds.dtype == "int32"
    assert not np.array_equal(few.images, other.images)
    for name in ("degrees", "scales"):
        with pytest.raises(ValueError, match=f"`{name}`.*smallest.*received"):
            phantoms.lesion_crops(5, **{name: (1.5, 1.2)})


@pytest.mark.once
def test_lesions_of_test_and_validation_are_others(load_recipe, monkeypatch):
    recipe = load_recipe("capsnet")
    monkeypatch.setattr(recipe, "TRAIN_LESIONS", 40)
    monkeypatch.setattr(recipe, "TEST_LESIONS", 20)
    data, held_out = recipe.load_data("lesions", 0.0), recipe.load_data("lesions", 0.5)
    np.testing.assert_array_equal(data.x_train, held_out.x_train)
    for other in (held_out.x_test, data.x_train[:20]):
        assert not np.array_equal(data.x_test, other)


@pytest.mark.once
@pytest.mark.thorough
@pytest.mark.usefixtures("small_convolutions")
def test_recipe_with_lesions(load_recipe, tmp_path, monkeypatch):
    recipe = load_recipe("capsnet")
    monkeypatch.setattr(recipe, "TRAIN_LESIONS", 40)
    monkeypatch.setattr(recipe, "TEST_LESIONS", 20)
    record = recipe.main(
        dataset="lesions", output_dir=tmp_path, ablation=(), validation=0.5, **TINY
    )
    names = {
        f"{x}_accuracy" for x in ("validation", "transformed", "rotated", "scaled")
    }
    assert set(record["metrics"]) == {*names, "parameters"}
    assert (tmp_path / "lesions.png").stat().st_size > 10_000
    model = keras.saving.load_model(tmp_path / "model.keras")
    pose = {"degrees": recipe.LESION_DEGREES, "scales": (1.0, 1.0)}
    x, y = phantoms.lesion_crops(20, seed=recipe.VALIDATION_SEED, **pose)
    found = model.predict(x, verbose=0)["length"].argmax(axis=1)
    assert np.mean(found == y) == record["metrics"]["rotated_accuracy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"routings": 0}, r"`routings` must be .*\[1, .*received 0"),
        ({"ablation": (1, -2)}, r"`ablation` must be .*\[1, .*received \[1, -2\]"),
        ({"epochs": 0}, r"`epochs` must be .*\[1, .*received 0"),
        ({"batch_size": 0}, r"`batch_size` must be .*\[1, .*received 0"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be .*\(0, .*received 0.0"),
        ({"validation": 1.0}, r"`validation` must be .*\[0, 1\), received 1.0"),
        ({"dataset": "imagenet"}, "mnist_5k.*received 'imagenet'"),
        ({"architecture": "big"}, "architecture.*'paper'.*'big'"),
    ],
)
def test_recipe_refuses(load_recipe, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("capsnet").main(**{**TINY, "output_dir": tmp_path, **arguments})


@pytest.mark.learn
def test_learns_digits(load_recipe, tmp_path):
    record = load_recipe("capsnet").main(output_dir=tmp_path, ablation=(), verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["test_accuracy"] >= 0.985, metrics
    transformed = metrics["transformed_accuracy"]
    assert transformed > baselines["cnn_transformed_accuracy"], record
