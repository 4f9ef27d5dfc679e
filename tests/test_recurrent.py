"""Recurrent networks: cells against NumPy, step by step against whole sequences."""

import keras
import numpy as np
import pytest
from keras import layers, ops

import kit
from kit import recurrent

BUILDERS = {"rnn": kit.rnn, "lstm": kit.lstm, "gru": kit.gru}
CELLS = {"rnn": layers.SimpleRNN, "lstm": layers.LSTM, "gru": layers.GRU}
every_cell = pytest.mark.parametrize("cell", BUILDERS)
V = 7  # vocabulary


def run(model, x):
    """What the model says, in one program: eager JAX would compile each operation."""
    return ops.convert_to_numpy(kit.compiled(lambda x: model(x))(x))


def frames(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomized(model, seed=0):
    """Biases and statistics that aren't zeros and ones: an error there shows."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path:
            weight.assign(rng.uniform(0.1, 0.9, weight.shape).astype("float32"))
    return model


def stepwise(model, x, compile=True):
    """The output after each time step, (B, T, outputs)."""
    step = lambda x, state: recurrent.step(model, x, state)  # noqa: E731
    if compile:
        step = kit.compiled(step)
    state, outputs = recurrent.initial_state(model, len(x)), []
    for t in range(x.shape[1]):
        output, state = step(x[:, t], state)
        outputs.append(ops.convert_to_numpy(output))
    return np.stack(outputs, axis=1)


# The cells, as the docstring of the file has them


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(cell, weights, xs):
    """One unit, one input, one sequence; the gates in Keras' order."""
    w, u, b = (np.asarray(weight, "float64") for weight in weights)
    w, u = w[0], u[0]
    h = c = 0.0
    for x in xs:
        if cell == "rnn":
            h = np.tanh(w[0] * x + u[0] * h + b[0])
        elif cell == "lstm":
            i, f, g, o = w * x + u * h + b
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
            h = sigmoid(o) * np.tanh(c)
        else:
            of_x, of_h = w * x + b[0], u * h + b[1]
            z, r = sigmoid(of_x[:2] + of_h[:2])
            n = np.tanh(of_x[2] + r * of_h[2])
            h = z * h + (1 - z) * n
    return h


@every_cell
def test_one_unit_computes_the_equations(cell):
    model = randomized(BUILDERS[cell]((None, 1), 1, (1,)))
    xs = [0.5, -1.0, 2.0]
    *weights, kernel, bias = [ops.convert_to_numpy(w) for w in model.weights]
    expected = reference(cell, weights, xs) * kernel[0, 0] + bias[0]
    assert run(model, np.reshape(xs, (1, 3, 1)))[0, 0] == pytest.approx(expected, 1e-5)
    steps = stepwise(model, np.reshape(xs, (1, 3, 1)).astype("float32"))
    assert steps[0, -1, 0] == pytest.approx(expected, 1e-5)


# Builders


@every_cell
def test_default_architecture(cell):
    """One recurrent layer, its last output to Dense."""
    model = BUILDERS[cell]((None, 3), 5)
    assert [type(layer) for layer in model.layers] == [CELLS[cell], layers.Dense]
    assert model.layers[0].units == 64 and not model.layers[0].return_sequences
    assert isinstance(model, kit.Sequential)
    assert run(model, frames(2, 4, 3)).shape == (2, 5)


@every_cell
def test_all_the_options_together(cell):
    model = BUILDERS[cell](
        (10, 3),
        2,
        units=(5, 4),
        output_activation="softmax",
        return_sequences=True,
        mask_value=-1.0,
        dropout=0.25,
        preprocessing=[layers.Normalization(mean=0.0, variance=1.0)],
    )
    names = [type(layer).__name__ for layer in model.layers]
    rnn = CELLS[cell].__name__
    assert names == [
        "Masking", "Normalization", rnn, "Dropout", rnn, "Dropout", "Dense"
    ]  # fmt: skip
    assert [model.layers[i].units for i in (2, 4, 6)] == [5, 4, 2]
    assert model.layers[3].rate == 0.25
    assert model.input_shape == (None, 10, 3)
    output = run(model, frames(2, 10, 3))
    assert output.shape == (2, 10, 2)
    np.testing.assert_allclose(output.sum(-1), 1.0, rtol=1e-5)


@every_cell
def test_integers_go_through_an_embedding(cell):
    model = BUILDERS[cell]((None,), V, (5, 4), return_sequences=True, vocabulary_size=V)
    embedding = model.layers[0]
    assert (embedding.input_dim, embedding.output_dim) == (V, 5)
    assert run(model, np.zeros((2, 5), "int32")).shape == (2, 5, V)


def test_units_may_be_one_number():
    assert kit.gru((None, 3), 1, units=5).layers[0].units == 5


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"input_shape": (None, 3), "units": ()}, r"`units` must be .*received \(\)"),
        ({"input_shape": (3,)}, r"`input_shape` must be .*received \(3,\)"),
        ({"input_shape": (None, 3), "vocabulary_size": 9}, "vocabulary_size=9"),
        ({"input_shape": (None,), "vocabulary_size": 9, "mask_value": 1}, "only be 0"),
    ],
)
def test_builders_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        kit.gru(num_outputs=1, **arguments)


# Masks


def padded(x, lengths, value):
    x = x.copy()
    for sequence, length in zip(x, lengths, strict=True):
        sequence[length:] = value
    return x


@every_cell
def test_padding_changes_nothing(cell):
    normalization = layers.Normalization()
    normalization.adapt(3.0 + 2.0 * frames(20, 3))
    model = BUILDERS[cell](
        (None, 3), 2, (5, 4), mask_value=9.0, preprocessing=[normalization]
    )
    x, lengths = frames(3, 6, 3), [6, 4, 4]
    output = run(model, padded(x, lengths, 9.0))
    np.testing.assert_allclose(output[:1], run(model, x)[:1], atol=1e-5)
    np.testing.assert_allclose(output[1:], run(model, x[1:, :4]), atol=1e-5)
    unmasked = kit.Sequential([keras.Input((None, 3)), *model.layers[1:]])
    assert np.abs(run(unmasked, padded(x, lengths, 9.0)) - output)[1:].min() > 1e-3


def test_padding_of_integers_changes_nothing():
    model = kit.gru((None,), 2, (5,), vocabulary_size=V, mask_value=0)
    x = np.array([[3, 1, 2]])
    np.testing.assert_allclose(
        run(model, x), run(model, np.array([[3, 1, 2, 0, 0]])), atol=1e-6
    )


@every_cell
@pytest.mark.parametrize("return_sequences", [False, True])
def test_steps_pass_over_what_is_masked(cell, return_sequences):
    model = BUILDERS[cell](
        (None, 3), 2, (5, 4), mask_value=9.0, return_sequences=return_sequences
    )
    x = padded(frames(3, 6, 3), [6, 4, 1], 9.0)
    x[0, 2] = 9.0  # also in the middle
    x[1, 0] = 9.0  # and at the start
    steps = stepwise(randomized(model), x)
    whole = run(model, x)
    steps = steps if return_sequences else steps[:, -1]
    np.testing.assert_allclose(steps, whole, atol=1e-5)


# Step by step


@every_cell
@pytest.mark.parametrize("units", [(5,), (5, 4, 4)])
def test_steps_equal_the_whole_sequence(cell, units):
    model = randomized(BUILDERS[cell]((None, 3), 2, units, return_sequences=True))
    x = frames(2, 6, 3)
    np.testing.assert_allclose(stepwise(model, x), run(model, x), atol=1e-5)


@every_cell
def test_last_step_equals_the_output_for_the_sequence(cell):
    model = BUILDERS[cell]((None, 3), 2, (5, 4), "softmax", dropout=0.5)
    x = frames(2, 6, 3)
    steps = stepwise(model, x)
    np.testing.assert_allclose(steps[:, -1], run(model, x), atol=1e-6)
    # And each step before that of the sequence so far.
    np.testing.assert_allclose(steps[:, 2], run(model, x[:, :3]), atol=1e-6)


@every_cell
def test_steps_through_an_embedding(cell):
    model = BUILDERS[cell](
        (None,), V, (5, 4), return_sequences=True, vocabulary_size=V, mask_value=0
    )
    x = np.random.default_rng(0).integers(0, V, (3, 8)).astype("int32")
    np.testing.assert_allclose(stepwise(randomized(model), x), run(model, x), atol=1e-5)


def test_steps_through_every_layer_that_treats_them_alone():
    normalization = layers.Normalization()
    model = kit.Sequential([
        keras.Input((None, 3)),
        normalization,  # built for (B, T, F), unlike one that `adapt` builds
        layers.Rescaling(2.0, 0.1),
        layers.GaussianNoise(0.5),
        layers.BatchNormalization(),
        layers.Dense(3, "tanh"),
        layers.LSTM(5, return_sequences=True),
        layers.LayerNormalization(),
        layers.Activation("tanh"),
        layers.Dropout(0.5),
        layers.GRU(5, return_sequences=True, reset_after=False),
        layers.ReLU(),
        layers.SimpleRNN(5),
        layers.Reshape((5, 1)),  # after the sequence, anything
        layers.Conv1D(2, 2),
        layers.Flatten(),
    ])  # fmt: skip
    normalization.adapt(frames(9, 4, 3, seed=1) * 3 + 1)
    x = frames(2, 6, 3)
    np.testing.assert_allclose(stepwise(model, x)[:, -1], run(model, x), atol=1e-5)


def test_steps_compiled_and_not_are_the_same():
    model = kit.gru((None, 3), 2, (5,))
    x = frames(2, 3, 3)
    eager = stepwise(model, x, compile=False)
    np.testing.assert_allclose(stepwise(model, x), eager, atol=1e-6)


def test_step_leaves_the_state_it_was_given():
    model = kit.lstm((None, 3), 2, (5,))
    state = recurrent.initial_state(model, 2)
    assert [tuple(s.shape) for s in state[0]] == [(2, 5), (2, 5)]
    first, _ = recurrent.step(model, frames(2, 3), state)
    again, _ = recurrent.step(model, frames(2, 3), state)
    np.testing.assert_array_equal(*map(ops.convert_to_numpy, (first, again)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: layers.Bidirectional(layers.GRU(5, return_sequences=True)),
        lambda: layers.Conv1D(2, 2),
        lambda: layers.MaxPooling1D(2),
        lambda: layers.GRU(5, return_sequences=True, go_backwards=True),
        lambda: layers.GRU(5, return_sequences=True, zero_output_for_mask=True),
        lambda: layers.LayerNormalization(axis=1),
        lambda: layers.BatchNormalization(axis=-2),
        lambda: layers.RNN(layers.StackedRNNCells([layers.LSTMCell(5)])),
    ],
)
def test_models_that_look_elsewhere_cannot_go_step_by_step(make):
    layer = make()
    model = keras.Sequential([keras.Input((4, 3)), layer])
    for use in (
        lambda: recurrent.initial_state(model),
        lambda: recurrent.step(model, np.zeros((1, 3), "float32"), []),
    ):
        with pytest.raises(ValueError, match=f"{layer.name}.*can't be run step"):
            use()


def test_layers_over_time_after_recurrent_ones_cannot_go_step_by_step():
    pooling = layers.GlobalAveragePooling1D()
    model = kit.Sequential(
        [keras.Input((None, 3)), layers.GRU(5, return_sequences=True)]
    )
    model.add(pooling)
    with pytest.raises(ValueError, match=f"{pooling.name}.*can't be run step"):
        recurrent.initial_state(model)


def test_only_built_stacks_go_step_by_step():
    inputs = keras.Input((None, 3))
    branches = layers.Add()([layers.GRU(5)(inputs), layers.LSTM(5)(inputs)])
    with pytest.raises(TypeError, match=r"`model` must be a keras\.Sequential"):
        recurrent.initial_state(keras.Model(inputs, branches))
    with pytest.raises(ValueError, match=r"Only a built keras\.Sequential"):
        recurrent.initial_state(keras.Sequential([layers.GRU(5)]))


@pytest.mark.parametrize(
    "shape, states, message",
    [
        ((3,), 1, r"one time step of a batch, of shape \(None, 3\).*\(3,\)"),
        ((1, 5, 3), 1, r"received the shape \(1, 5, 3\)"),
        ((1, 4), 1, r"received the shape \(1, 4\)"),
        ((1, 3), 2, "states of 1 recurrent layers.*received 2"),
    ],
)
def test_step_refuses(shape, states, message):
    model = kit.gru((None, 3), 2, (5,))
    state = recurrent.initial_state(model) * states
    with pytest.raises(ValueError, match=message):
        recurrent.step(model, np.zeros(shape, "float32"), state)


# Generation


@pytest.fixture(scope="module")
def language_model():
    """One model for all the tests, so that its programs are compiled once."""
    model = kit.gru((None,), V, (5,), return_sequences=True, vocabulary_size=V)
    kit.initialize_weights(model, 0)
    # Far from uniform: expectations that differ from token to token.
    model.layers[0].set_weights([60.0 * w for w in model.layers[0].get_weights()])
    model.layers[-1].set_weights([4.0 * w for w in model.layers[-1].get_weights()])
    return model


def generate(*args, **kwargs):
    return ops.convert_to_numpy(recurrent.generate(*args, **kwargs))


def slow_generate(model, prompt, length, temperature, top_k, seed):
    """Reads the whole text again for each token."""
    read = kit.compiled(lambda text: model(text))
    draw = kit.compiled(kit.random.categorical)
    size = np.shape(prompt)[1]
    # What comes later changes nothing before it: one length, so one program.
    text = np.pad(prompt, [(0, 0), (0, length)])
    keys = kit.random.split(kit.random.key(seed), length)
    for t, draw_key in enumerate(ops.convert_to_numpy(keys), start=size):
        logits = ops.convert_to_numpy(read(text))[:, t - 1]
        if top_k is not None:
            order = np.argsort(-logits, axis=-1)[:, :top_k]
            logits = np.take_along_axis(logits, order, axis=-1)
        if temperature == 0:
            token = logits.argmax(-1)
        else:
            token = ops.convert_to_numpy(draw(draw_key, logits / temperature))
        if top_k is not None:
            token = np.take_along_axis(order, token[:, None], axis=-1)[:, 0]
        text[:, t] = token
    return text[:, size:]


PROMPT = np.array([[1, 2, 3], [6, 0, 5]], "int32")


@pytest.mark.parametrize("temperature, top_k", [(0.0, None), (1.0, None), (0.7, 3)])
def test_generates_what_reading_the_whole_text_again_would(
    language_model, temperature, top_k
):
    fast = generate(language_model, PROMPT, 12, temperature, top_k, seed=4)
    assert fast.shape == (2, 12) and fast.dtype == "int32"
    slow = slow_generate(language_model, PROMPT, 12, temperature, top_k, seed=4)
    np.testing.assert_array_equal(fast, slow)
    assert len(np.unique(fast)) > 1  # not one token for ever


@pytest.mark.parametrize("cell", ["rnn", "lstm"])
def test_every_cell_generates(cell):
    model = BUILDERS[cell]((None,), V, (5, 4), return_sequences=True, vocabulary_size=V)
    kit.initialize_weights(model, 0)
    fast = generate(model, PROMPT, 5, seed=1)
    np.testing.assert_array_equal(fast, slow_generate(model, PROMPT, 5, 1.0, None, 1))


def test_the_seed_decides(language_model):
    first = generate(language_model, PROMPT, 12, seed=0)
    np.testing.assert_array_equal(first, generate(language_model, PROMPT, 12, seed=0))
    assert (first != generate(language_model, PROMPT, 12, seed=1)).any()


def test_the_same_tokens_on_every_backend(language_model):
    """Golden tokens, written under JAX."""
    tokens = generate(language_model, PROMPT, 12, seed=0)
    np.testing.assert_array_equal(tokens, GOLDEN_TOKENS)


GOLDEN_TOKENS = [
    [0, 4, 0, 2, 4, 3, 0, 4, 6, 5, 5, 5],
    [1, 2, 4, 2, 0, 4, 6, 1, 5, 0, 3, 5],
]


def test_the_likeliest_of_one_is_the_likeliest(language_model):
    greedy = generate(language_model, PROMPT, 12, temperature=0)
    one = generate(language_model, PROMPT, 12, top_k=1, seed=3)
    np.testing.assert_array_equal(greedy, one)


def test_top_k_draws_from_the_k_likeliest_and_temperature_sharpens(language_model):
    """Many sequences, one token each: frequencies against the model's own."""
    prompt = np.repeat(PROMPT[:1], 4000, axis=0)
    logits = run(language_model, PROMPT[:1])[0, -1].astype("float64")
    best = np.argsort(-logits)[:3]
    for temperature in (1.0, 0.5):
        tokens = generate(language_model, prompt, 1, temperature, top_k=3)[:, 0]
        assert set(tokens) <= set(best)
        p = np.exp(logits[best] / temperature)
        frequencies = [(tokens == token).mean() for token in best]
        np.testing.assert_allclose(frequencies, p / p.sum(), atol=0.03)


def test_another_temperature_or_seed_needs_no_other_program(language_model):
    generate(language_model, PROMPT, 12, temperature=0.5)
    before = kit.compile_seconds()
    generate(language_model, PROMPT, 12, temperature=0.9, seed=7)
    assert kit.compile_seconds() == before


def test_generation_follows_the_weights(language_model):
    before = generate(language_model, PROMPT, 12, temperature=0)
    kernel = language_model.layers[-1].kernel
    kernel.assign(-kernel)
    after = generate(language_model, PROMPT, 12, temperature=0)
    kernel.assign(-kernel)
    assert (before != after).any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prompt": [1, 2]}, r"`prompt` must be .*\(B, T\), received \[1, 2\]"),
        ({"prompt": np.zeros((1, 0), "int32")}, r"received .*\(1, 0\)"),
        ({"prompt": [[0, V]]}, "integers from 0 to 6.*from 0 to 7"),
        ({"prompt": [[-1, 2]]}, "integers from 0 to 6.*from -1 to 2"),
        ({"length": 0}, r"`length` must be .*\[1, .*received 0"),
        ({"temperature": -0.1}, r"`temperature` must be .*\[0, .*-0\.1"),
        ({"temperature": float("nan")}, "`temperature` must be .*received nan"),
        ({"top_k": 0}, r"`top_k` must be .*\[1, .*received 0"),
        ({"top_k": V + 1}, rf"`top_k` .*\[1, {V}\] or None, received {V + 1}"),
    ],
)
def test_generate_refuses(language_model, arguments, message):
    with pytest.raises(ValueError, match=message):
        recurrent.generate(
            language_model, **{"prompt": PROMPT, "length": 3} | arguments
        )


def test_generate_refuses_models_without_logits_for_each_step():
    for options in ({}, {"return_sequences": True, "output_activation": "softmax"}):
        model = kit.gru((None,), V, (5,), vocabulary_size=V, **options)
        with pytest.raises(ValueError, match="must give logits for each time step"):
            recurrent.generate(model, PROMPT, 3)


# Files


@every_cell
def test_round_trip_through_a_file(cell, tmp_path):
    normalization = layers.Normalization()
    normalization.adapt(frames(20, 3))
    model = BUILDERS[cell](
        (None, 3),
        2,
        (5, 4),
        mask_value=0.0,
        dropout=0.1,
        preprocessing=[normalization, layers.GaussianNoise(0.1)],
    )
    x = padded(frames(2, 5, 3), [5, 2], 0.0)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, kit.Sequential)
    np.testing.assert_allclose(run(loaded, x), run(model, x), atol=1e-6)
    np.testing.assert_allclose(stepwise(loaded, x)[:, -1], run(model, x), atol=1e-5)


def test_a_loaded_model_generates_the_same(language_model, tmp_path):
    tokens = generate(language_model, PROMPT, 12)
    language_model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(generate(loaded, PROMPT, 12), tokens)
