"""RBM and DBN: against enumeration, against scikit-learn, by hand; the recipe."""

import itertools
import json

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.dbn import DBN, RBM

BITS = [np.array(list(itertools.product([0, 1], repeat=n)), "float32") for n in (6, 4)]


def to_numpy(x):
    return ops.convert_to_numpy(x)


def weights_of(rbm):
    return [to_numpy(w) for w in (rbm.kernel, rbm.visible_bias, rbm.hidden_bias)]


def make_rbm(shape=(6, 4), scale=0.7, seed=1, **kwargs):
    """An RBM with weights large enough to matter."""
    rng = np.random.default_rng(seed)
    rbm = RBM(shape[1], **{"seed": 0, **kwargs})
    rbm.build((None, shape[0]))
    for w in (rbm.kernel, rbm.visible_bias, rbm.hidden_bias):
        w.assign(rng.normal(0, scale, w.shape))
    return rbm


def binary(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 2, shape).astype("float32")


# --- Against the enumerated RBM ---------------------------------------------


def joint(rbm):
    """p(v, h) of all 64 x 16 states of a 6x4 RBM, and log Z, from the energies."""
    kernel, visible_bias, hidden_bias = [w.astype("float64") for w in weights_of(rbm)]
    v, h = BITS
    energy = -(v @ kernel @ h.T + (v @ visible_bias)[:, None] + h @ hidden_bias)
    log_z = np.log(np.exp(-energy).sum())
    return np.exp(-energy - log_z), log_z


def exact_gradient(rbm, data):
    """d mean log p(v) / d (W, b, c), each mean taken over all states."""
    p, _ = joint(rbm)
    v, h = BITS
    given_v = p / p.sum(1, keepdims=True)  # p(h | v)
    row = (data @ 2 ** np.arange(5, -1, -1)).astype(int)
    assert np.array_equal(v[row], data)
    h_mean = given_v[row] @ h
    return (
        data.T @ h_mean / len(data) - v.T @ p @ h,
        data.mean(0) - p.sum(1) @ v,
        h_mean.mean(0) - p.sum(0) @ h,
    )


def test_free_energy_is_that_of_the_enumerated_rbm():
    rbm = make_rbm()
    p, log_z = joint(rbm)
    energy = to_numpy(rbm.free_energy(BITS[0]))
    np.testing.assert_allclose(energy, -np.log(p.sum(1)) - log_z, rtol=1e-5)
    np.testing.assert_allclose(np.log(np.exp(-energy).sum()), log_z, rtol=1e-5)
    h_mean = p @ BITS[1] / p.sum(1, keepdims=True)
    np.testing.assert_allclose(to_numpy(rbm(BITS[0])), h_mean, rtol=1e-4)


@pytest.mark.parametrize("persistent", [False, True])
def test_update_with_long_chains_is_the_exact_gradient(persistent):
    num = 20_000
    data = np.repeat(binary((10, 6), seed=3), num // 10, axis=0)
    rbm = make_rbm(
        k=50, persistent=persistent, chains=num, learning_rate=1.0, scale=0.8
    )
    expected = exact_gradient(rbm, data)
    before = weights_of(rbm)
    rbm.contrastive_divergence(data)
    for old, new, gradient in zip(before, weights_of(rbm), expected, strict=True):
        assert np.abs(gradient).max() > 0.05
        # Products of a chain have a standard deviation of 0.5 at most: five of them.
        np.testing.assert_allclose(new - old, gradient, atol=2.5 / num**0.5)


def test_gibbs_sampling_reaches_the_models_distribution():
    rbm = make_rbm(scale=0.5)
    num = 20_000
    v = to_numpy(rbm.gibbs(np.zeros((num, 6)), steps=50))
    counts = np.bincount((v @ 2 ** np.arange(5, -1, -1)).astype(int), minlength=64)
    p = joint(rbm)[0].sum(1)
    chi2 = np.sum((counts - num * p) ** 2 / (num * p))
    assert chi2 < 103.4  # 63 degrees of freedom: exceeded once in 1,000 times
    v = to_numpy(rbm.gibbs(np.zeros((num, 6)), steps=1))  # and that takes steps
    counts = np.bincount((v @ 2 ** np.arange(5, -1, -1)).astype(int), minlength=64)
    assert np.sum((counts - num * p) ** 2 / (num * p)) > 103.4


def test_learning_raises_the_exact_likelihood():
    data = np.tile(BITS[0][[0, 7, 56, 63]], (1600, 1))
    rbm = make_rbm(scale=0.01, persistent=True, learning_rate=0.3, momentum=0.5)
    before = np.mean(-to_numpy(rbm.free_energy(data))) - joint(rbm)[1]
    DBN([rbm]).pretrain(data, epochs=5, batch_size=100, verbose=0)
    after = np.mean(-to_numpy(rbm.free_energy(data))) - joint(rbm)[1]
    assert before < -4  # 6 log 2 = 4.16: all 64 states alike
    assert after > -3  # log 4 = 1.39 is the best


# --- Against scikit-learn ---------------------------------------------------


def test_updates_are_those_of_scikit_learn():
    from sklearn.neural_network import BernoulliRBM

    class SameNumbers:
        """What scikit-learn asks for random numbers: ours."""

        generator = kit.random.Generator(5)

        def uniform(self, size):
            return to_numpy(kit.random.uniform(self.generator, size))

    rbm = make_rbm(
        (12, 7), scale=0.3, persistent=True, chains=10, learning_rate=0.1, seed=2
    )
    rbm.random.state.assign(to_numpy(kit.random.Generator(5).state))
    kernel, visible_bias, hidden_bias = weights_of(rbm)
    theirs = BernoulliRBM(7, learning_rate=0.1)
    theirs.components_ = np.array(kernel.T, order="F")
    theirs.intercept_visible_ = visible_bias.copy()
    theirs.intercept_hidden_ = hidden_bias.copy()
    theirs.h_samples_ = np.zeros((10, 7), "float32")
    for batch in binary((20, 10, 12), seed=4):
        rbm.contrastive_divergence(batch)
        theirs._fit(batch, SameNumbers())
    ours = weights_of(rbm)
    assert np.abs(ours[0] - kernel).max() > 0.05
    np.testing.assert_allclose(ours[0], theirs.components_.T, atol=1e-5)
    np.testing.assert_allclose(ours[1], theirs.intercept_visible_, atol=1e-5)
    np.testing.assert_allclose(ours[2], theirs.intercept_hidden_, atol=1e-5)
    np.testing.assert_array_equal(to_numpy(rbm.chain_states), theirs.h_samples_)
    batch = binary((5, 12))
    np.testing.assert_allclose(
        to_numpy(rbm.free_energy(batch)), theirs._free_energy(batch), rtol=1e-4
    )


# --- By hand ----------------------------------------------------------------


def test_gaussian_free_energy_and_means_by_hand():
    rbm = RBM(1, visible="gaussian")
    rbm.build((None, 2))
    rbm.kernel.assign([[2.0], [-1.0]])
    rbm.visible_bias.assign([0.5, 1.0])
    rbm.hidden_bias.assign([-1.0])
    v = np.array([[1.5, -1.0]], "float32")
    # (1 + 4) / 2 - log(1 + exp(1.5 * 2 + 1 - 1))
    np.testing.assert_allclose(
        to_numpy(rbm.free_energy(v)), [2.5 - np.log(1 + np.exp(3))], rtol=1e-5
    )
    mean = to_numpy(rbm.visible_mean(np.array([[1.0]], "float32")))
    np.testing.assert_allclose(mean, [[2.5, 0.0]])
    draws = to_numpy(rbm.sample_visible(np.ones((20_000, 1))))
    np.testing.assert_allclose(draws.mean(0), [2.5, 0.0], atol=0.04)
    np.testing.assert_allclose(draws.std(0), [1.0, 1.0], atol=0.03)
    hidden = to_numpy(rbm.sample_hidden(np.repeat(v, 20_000, axis=0)))
    assert set(hidden.ravel()) == {0.0, 1.0}
    np.testing.assert_allclose(hidden.mean(), 1 / (1 + np.exp(-3)), atol=0.01)


def test_momentum_weight_decay_and_sparsity_by_hand():
    batch = binary((10, 6))

    def steps(num=1, **kwargs):
        rbm = make_rbm(learning_rate=0.1, **kwargs)
        states = [weights_of(rbm)]
        h_mean = to_numpy(rbm(batch)).mean(0)
        for _ in range(num):
            rbm.contrastive_divergence(batch)
            states.append(weights_of(rbm))
        return states, h_mean

    # The draws are the same, so that the differences are the terms alone.
    (start, plain), h_mean = steps()
    (_, decayed), _ = steps(weight_decay=0.5)
    np.testing.assert_allclose(decayed[0] - plain[0], -0.05 * start[0], atol=1e-6)
    np.testing.assert_allclose(decayed[1], plain[1])
    (_, sparse), _ = steps(sparsity_cost=2.0, sparsity_target=0.05)
    pull = 0.1 * 2.0 * (0.05 - h_mean)
    np.testing.assert_allclose(sparse[2] - plain[2], pull, atol=1e-6)
    np.testing.assert_allclose(
        sparse[0] - plain[0], np.outer(batch.mean(0), pull), atol=1e-6
    )
    np.testing.assert_allclose(sparse[1], plain[1])

    rbm = make_rbm(learning_rate=0.1, momentum=0.5)
    rbm.contrastive_divergence(batch)
    first = weights_of(rbm)
    np.testing.assert_allclose(first[0], plain[0], atol=1e-6)
    twin = make_rbm(learning_rate=0.1)
    twin.random.state.assign(to_numpy(rbm.random.state))
    for ours, value in zip(
        (twin.kernel, twin.visible_bias, twin.hidden_bias), first, strict=True
    ):
        ours.assign(value)
    rbm.contrastive_divergence(batch)
    twin.contrastive_divergence(batch)
    for i, (w, without) in enumerate(
        zip(weights_of(rbm), weights_of(twin), strict=True)
    ):
        np.testing.assert_allclose(w - without, 0.5 * (first[i] - start[i]), atol=1e-6)


def test_momentum_adds_up_over_three_updates():
    # The data are 0. From them h = 0, from that v = 1, and from that h = 1, whatever is
    # drawn: all three gradients are 0 - 1.
    rbm = make_rbm((1, 1), learning_rate=0.1, momentum=0.5)
    start = [[[40.0]], [20.0], [-20.0]]
    for w, value in zip(
        (rbm.kernel, rbm.visible_bias, rbm.hidden_bias), start, strict=True
    ):
        w.assign(value)
    # Steps of 0.1, 0.1 + 0.05, and 0.1 + 0.075.
    for moved in (-0.1, -0.25, -0.425):
        rbm.contrastive_divergence(np.zeros((4, 1), "float32"))
        for w, value in zip(weights_of(rbm), start, strict=True):
            np.testing.assert_allclose(w - value, np.full(w.shape, moved), atol=1e-5)


def test_reconstruction_error_by_hand():
    rbm = RBM(1)
    rbm.build((None, 2))
    rbm.kernel.assign([[0.0], [0.0]])
    rbm.visible_bias.assign([0.0, np.log(3.0)])
    error = to_numpy(rbm.reconstruction_error(np.array([[1.0, 1.0]])))
    np.testing.assert_allclose(error, [(0.5**2 + 0.25**2) / 2], rtol=1e-5)


# --- The stack --------------------------------------------------------------


def test_what_an_update_was_compiled_with_cannot_change():
    rbm = make_rbm()
    with pytest.raises(AttributeError, match="`learning_rate` is part of the compiled"):
        rbm.learning_rate = 0.1


def test_tensors_are_checked_too():
    rbm = make_rbm()
    before = weights_of(rbm)
    with pytest.raises(ValueError, match="`visible` must hold finite numbers"):
        rbm.contrastive_divergence(ops.convert_to_tensor(np.full((3, 6), np.nan)))
    with pytest.raises(ValueError, match=r"must be in \[0, 1\]"):
        rbm.free_energy(ops.full((3, 6), 255.0))
    for a, b in zip(before, weights_of(rbm), strict=True):
        np.testing.assert_array_equal(a, b)


def test_rbms_built_for_other_sizes_are_found_before_training():
    with pytest.raises(ValueError, match=r"`rbms\[1\]` was built for 5 .* gets 4"):
        DBN([make_rbm((6, 4)), make_rbm((5, 3))]).build((None, 6))


@pytest.fixture(scope="module")
def trained():
    x = np.random.default_rng(0).random((50, 12)).astype("float32")
    dbn = DBN(
        [RBM(8, momentum=0.5, seed=0), RBM(5, persistent=True, chains=10, seed=1)]
    )
    histories = dbn.pretrain(
        x, epochs=3, batch_size=20, validation_data=x[:7], verbose=0
    )
    return dbn, x, histories


def test_pretraining_learns_the_one_rbm_and_then_the_other(trained):
    dbn, x, histories = trained
    assert [len(h.epoch) for h in histories] == [3, 3]
    assert set(histories[0].history) == {
        "reconstruction_error",
        "val_reconstruction_error",
    }
    # The second one's training left the first as it was: again, without it.
    alone = DBN([RBM(8, momentum=0.5, seed=0)])
    keras.utils.set_random_seed(0)
    alone.pretrain(x, epochs=3, batch_size=20, verbose=0)
    keras.utils.set_random_seed(0)
    both = DBN([RBM(8, momentum=0.5, seed=0), RBM(5, seed=1)])
    both.pretrain(x, epochs=3, batch_size=20, verbose=0)
    for a, b in zip(weights_of(alone.rbms[0]), weights_of(both.rbms[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    np.testing.assert_allclose(
        to_numpy(both(x)), to_numpy(both.rbms[1](both.rbms[0](x))), rtol=1e-6
    )


@pytest.mark.once
def test_the_second_rbm_learns_from_what_the_first_one_makes_of_the_data(trained):
    _, x, _ = trained
    stack = DBN([RBM(8, seed=0), RBM(5, seed=1)])
    keras.utils.set_random_seed(0)
    histories = stack.pretrain(x, 3, 20, validation_data=x[:30], verbose=0)
    codes = to_numpy(stack.rbms[0](x))
    alone = DBN([RBM(5, seed=1)])
    keras.utils.set_random_seed(0)
    np.random.randint(2**31)  # of which the first one's order came
    (history,) = alone.pretrain(codes, 3, 20, validation_data=codes[:30], verbose=0)
    for a, b in zip(weights_of(alone.rbms[0]), weights_of(stack.rbms[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    for name, values in history.history.items():
        np.testing.assert_allclose(histories[1].history[name], values, rtol=1e-5)


def test_unrolled_networks_compute_what_the_stack_does(trained):
    dbn, x, _ = trained
    codes = to_numpy(dbn(x))
    classifier = dbn.to_classifier(3)
    assert isinstance(classifier, kit.Sequential)
    assert classifier.output_shape == (None, 3)
    features = keras.Sequential(classifier.layers[:-1])
    np.testing.assert_allclose(to_numpy(features(x)), codes, rtol=1e-5)
    autoencoder = dbn.to_autoencoder()
    np.testing.assert_allclose(to_numpy(autoencoder.encode(x)), codes, rtol=1e-5)
    down = codes
    for rbm in dbn.rbms[::-1]:
        down = to_numpy(rbm.visible_mean(down))
    np.testing.assert_allclose(to_numpy(autoencoder(x)), down, rtol=1e-5)

    # Copies: fine-tuning leaves the stack as it was.
    classifier.compile("adam", "sparse_categorical_crossentropy")
    classifier.fit(x, np.arange(50) % 3, epochs=1, verbose=0)
    np.testing.assert_array_equal(to_numpy(dbn(x)), codes)


def test_samples(trained):
    dbn, x, _ = trained
    samples = to_numpy(dbn.sample(4, steps=5))
    assert samples.shape == (4, 12)
    assert (samples > 0).all() and (samples < 1).all()
    assert to_numpy(dbn.sample(7, steps=1, start=x[:7])).shape == (7, 12)
    assert not np.array_equal(to_numpy(dbn.sample(4, steps=5)), samples)


def test_samples_are_the_models():
    data = np.tile(BITS[0][[7, 56]], (400, 1))  # 000111 and 111000
    dbn = DBN([RBM(4, persistent=True, learning_rate=0.3, chains=50, seed=0)])
    dbn.pretrain(data, epochs=10, batch_size=50, verbose=0)
    samples = np.round(to_numpy(dbn.sample(200, steps=200)))
    found = (samples @ 2 ** np.arange(5, -1, -1)).astype(int)
    assert np.mean((found == 7) | (found == 56)) > 0.8


def test_saved_and_loaded(trained, tmp_path):
    dbn, x, _ = trained
    dbn.save(tmp_path / "dbn.keras")
    loaded = keras.saving.load_model(tmp_path / "dbn.keras")
    np.testing.assert_allclose(to_numpy(loaded(x)), to_numpy(dbn(x)), rtol=1e-6)
    np.testing.assert_array_equal(
        to_numpy(loaded.rbms[1].chain_states), to_numpy(dbn.rbms[1].chain_states)
    )
    loaded.pretrain(x, epochs=1, verbose=0)


def test_config_holds_every_argument():
    arguments = {
        "units": 3,
        "visible": "gaussian",
        "k": 2,
        "persistent": True,
        "chains": 7,
        "learning_rate": 0.01,
        "momentum": 0.5,
        "weight_decay": 0.1,
        "sparsity_target": 0.2,
        "sparsity_cost": 0.3,
        "kernel_initializer": keras.initializers.Constant(0.25),
        "visible_bias_initializer": keras.initializers.Constant(0.5),
        "hidden_bias_initializer": keras.initializers.Constant(0.75),
        "seed": 4,
    }
    config = RBM(**arguments).get_config()
    assert set(arguments) <= set(config)
    copy = RBM.from_config(config)
    assert copy.get_config() == config
    copy.build((None, 2))
    assert [float(w.reshape(-1)[0]) for w in weights_of(copy)] == [0.25, 0.5, 0.75]
    assert copy.visible == "gaussian" and copy.random.seed == 4


def test_same_weights_from_a_seed_and_stacks_in_sequential():
    model = kit.Sequential([keras.Input((6,)), RBM(4, seed=0), RBM(2, seed=1)])
    kit.initialize_weights(model, 1)
    assert model.output_shape == (None, 2)
    assert 0.005 < to_numpy(model.layers[0].kernel).std() < 0.02
    first, second = (to_numpy(layer.random.state) for layer in model.layers)
    assert not np.array_equal(first, second)  # not the same draws in both
    rbm = RBM(4, momentum=0.5, persistent=True, seed=0)
    rbm.build((None, 6))
    kit.initialize_weights(rbm, 1)


# --- Bad input --------------------------------------------------------------


@pytest.mark.parametrize(
    "kwargs",
    [
        {"units": 0},
        {"visible": "binary"},
        {"k": 0},
        {"chains": 0},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
        {"weight_decay": -1.0},
        {"sparsity_target": 0.0},
        {"sparsity_cost": -0.1},
    ],
)
def test_rbm_refuses(kwargs):
    (name,) = kwargs
    with pytest.raises(ValueError, match=rf"`{name}` must be .*received"):
        RBM(**{"units": 3, **kwargs})


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[0.0, 2.0]], r"must be in \[0, 1\].*from 0 to 2"),
        ([[-0.5, 1.0]], r"must be in \[0, 1\]"),
        ([[0.0, np.nan]], "finite numbers, received nan in row 0, column 1"),
        ([0.0, 1.0], r"must have the shape.*received \(2,\)"),
        (np.zeros((3, 2, 2)), r"must have the shape.*received \(3, 2, 2\)"),
        (np.zeros((0, 2)), r"must have the shape"),
        ([["a", "b"]], "must hold numbers"),
        (np.zeros((3, 5)), r"received.*\(3, 5\)"),
    ],
)
def test_bad_examples_are_refused(x, message):
    rbm = make_rbm((2, 3))
    before = weights_of(rbm)
    with pytest.raises(ValueError, match="`visible`.*" + message):
        rbm.contrastive_divergence(x)
    with pytest.raises(ValueError, match="`x`.*" + message):
        DBN([rbm]).pretrain(x, verbose=0)
    for a, b in zip(before, weights_of(rbm), strict=True):
        np.testing.assert_array_equal(a, b)


def test_gaussian_units_take_any_finite_numbers():
    rbm = RBM(3, visible="gaussian", learning_rate=0.01, seed=0)
    rbm.contrastive_divergence(np.array([[-2.0, 3.0], [1.0, -1.0]]))
    assert np.isfinite(weights_of(rbm)[0]).all()
    with pytest.raises(ValueError, match="`visible` must hold finite"):
        rbm.contrastive_divergence(np.array([[np.inf, 0.0]]))


def test_rbm_refuses_another_type():
    with pytest.raises(TypeError, match=r"`units` must be an integer.*received 2\.5"):
        RBM(2.5)


def test_dbn_refuses():
    rbm = RBM(3)
    with pytest.raises(
        TypeError, match="`rbms` must be a sequence of 1 or more, each a kit.RBM"
    ):
        DBN([keras.layers.Dense(3)])
    with pytest.raises(
        ValueError, match=r"`rbms` must be .*1 or more, .*received \[\]"
    ):
        DBN([])
    with pytest.raises(ValueError, match="`rbms` must hold no RBM twice"):
        DBN([rbm, rbm])
    with pytest.raises(ValueError, match=r"`rbms\[1\]` must have visible='bernoulli'"):
        DBN([rbm, RBM(2, visible="gaussian")])
    dbn = DBN([rbm])
    for call in (
        lambda: dbn.to_classifier(2),
        dbn.to_autoencoder,
        lambda: dbn.sample(1),
    ):
        with pytest.raises(ValueError, match="isn't built"):
            call()
    x = np.zeros((4, 2))
    with pytest.raises(ValueError, match="`epochs` must be"):
        dbn.pretrain(x, epochs=0)
    with pytest.raises(ValueError, match="`batch_size` must be"):
        dbn.pretrain(x, batch_size=0)
    dbn.build((None, 2))
    with pytest.raises(ValueError, match="`validation_data` must have 2 columns"):
        dbn.pretrain(x, validation_data=np.zeros((4, 3)))
    with pytest.raises(ValueError, match="`num_classes` must be"):
        dbn.to_classifier(0)
    for kwargs in ({"num": 0}, {"num": 1, "steps": 0}):
        with pytest.raises(
            ValueError, match=r"must be an integer in \[1, .*received 0"
        ):
            dbn.sample(**kwargs)
    with pytest.raises(ValueError, match="`start` must hold num=3"):
        dbn.sample(3, start=x)


# --- The recipe -------------------------------------------------------------

TINY = {
    "dataset": "nudged_digits",
    "labels": (50,),
    "repeats": 1,
    "units": (12,),
    "rbm_epochs": 1,
    "epochs": 1,
    "batch_size": 200,
    "verbose": 0,
}


def test_recipe_leaves_what_it_promises(load_recipe, tmp_path):
    record = load_recipe("dbn").main(output_dir=tmp_path, seed=1, **TINY)
    names = {"model.keras", "dbn.keras", "history.csv", "metrics.json"}
    names |= {"labels.png", "filters.png", "samples.png"}
    assert names == {path.name for path in tmp_path.iterdir()}
    assert record == json.loads((tmp_path / "metrics.json").read_text())
    assert set(record["metrics"]) == {"test_accuracy", "test_accuracy_50"}
    assert set(record["baselines"]) == {
        f"{name}_test_accuracy{size}"
        for name in ("pixels", "sklearn_rbm", "no_pretraining")
        for size in ("", "_50")
    }
    assert record["throughput"]["unit"] == "samples/s"
    model = keras.saving.load_model(tmp_path / "model.keras")
    data = load_recipe("dbn").load_data("nudged_digits")
    accuracy = np.mean(to_numpy(model(data.x_test)).argmax(1) == data.y_test)
    np.testing.assert_allclose(accuracy, record["metrics"]["test_accuracy"], atol=1e-3)
    dbn = keras.saving.load_model(tmp_path / "dbn.keras")
    assert [rbm.units for rbm in dbn.rbms] == [12]


def test_nudged_images_are_moved_by_a_pixel(load_recipe):
    image = np.zeros((1, 8, 8), "float32")
    image[0, 3, 4] = 1
    x, y = load_recipe("dbn").nudge(image.reshape(1, 64), np.array([7]))
    places = {tuple(map(int, np.argwhere(i.reshape(8, 8))[0])) for i in x}
    assert places == {(3, 4), (4, 4), (2, 4), (3, 5), (3, 3)}
    assert y.tolist() == [7] * 5


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"labels": (10,)}, r"`labels` must be .*\[50, .*received \[10\]"),
        ({"labels": (5000,)}, r"received \[5000\]"),
        ({"repeats": 0}, r"`repeats` must be .*\[1, .*received 0"),
        ({"units": ()}, r"`units` must be .*1 or more, .*received \[\]"),
        ({"units": (0,)}, "`units` must be"),
        ({"momentum": 1.0}, "`momentum` must be"),
        ({"dataset": "digits"}, "'digits'"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be .*\(0, .*received 0.0"),
        ({"patience": -1}, r"`patience` must be .*\[0, .*received -1"),
    ],
)
def test_recipe_refuses(load_recipe, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("dbn").main(output_dir=tmp_path, **{**TINY, **kwargs})


@pytest.mark.learn
def test_pretraining_helps_on_few_labels(load_recipe, tmp_path):
    record = load_recipe("dbn").main(output_dir=tmp_path, verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    for size in ("_500", ""):
        for name in ("no_pretraining", "pixels"):
            key = f"test_accuracy{size}"
            assert metrics[key] > baselines[f"{name}_{key}"]


@pytest.mark.learn
def test_dbn_learns_nudged_digits(load_recipe, tmp_path):
    record = load_recipe("dbn").main(
        dataset="nudged_digits", output_dir=tmp_path, verbose=0
    )
    accuracy = record["metrics"]["test_accuracy"]
    assert accuracy > 0.94
    assert accuracy > record["baselines"]["sklearn_rbm_test_accuracy"]


def test_rbms_draw_different_numbers_unless_told():
    first, second = RBM(3), RBM(3)
    assert first.seed != second.seed
    keras.utils.set_random_seed(1)
    third = RBM(3)
    keras.utils.set_random_seed(1)
    assert RBM(3).seed == third.seed
