"""Pairs of texts as integers, and the recurrent sequence-to-sequence model."""

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit import seq2seq, transformer


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "attention"])
def model(request):
    model = small((5, 5), attention=request.param)
    model.compile(
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=[seq2seq.ExactMatch()],
    )
    # Keras warns of a saved optimizer that has nothing yet.
    model.optimizer.build(model.trainable_variables)
    return model


def small(units=(4,), **options):
    model = seq2seq.gru_encoder_decoder(7, 8, units, **options)
    kit.initialize_weights(model, 0)
    # A random model with opinions, so that it writes different things.
    for layer in (model.get_layer("encoder"), model.get_layer("decoder")):
        layer.set_weights([3 * w for w in layer.get_weights()])
    return model


def logits_of(model, source, target):
    inputs = {"source": np.asarray(source), "target": np.asarray(target)}
    program = model.__dict__.setdefault("_program", kit.compiled(lambda x: model(x)))
    return np.array(ops.convert_to_numpy(program(inputs)))


# Texts


def test_texts_become_integers_and_come_back():
    characters = seq2seq.vocabulary(["hole", "hello"])
    assert len(characters) == 3 + 4  # padding, start, end; e h l o
    tokens = seq2seq.encode(["hello", "ho"], characters)
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, [[4, 3, 5, 5, 6], [4, 6, 0, 0, 0]])
    assert seq2seq.decode(tokens, characters) == ["hello", "ho"]
    longer = seq2seq.encode([seq2seq.START + "o" + seq2seq.END], characters, 5)
    np.testing.assert_array_equal(
        longer, [[seq2seq.START_TOKEN, 6, seq2seq.END_TOKEN, 0, 0]]
    )
    assert seq2seq.decode(longer, characters) == ["o"]
    assert seq2seq.decode([[6, seq2seq.END_TOKEN, 3]], characters) == ["o"]


def test_smoothed_labels_by_hand():
    """Probabilities 1/2, 1/4, 1/4; a tenth of the label is spread over three tokens."""
    loss = seq2seq.SmoothedCrossentropy(label_smoothing=0.1, reduction="none")
    logits = np.log([[[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]])
    half, quarter = np.log(2), np.log(4)
    spread = 0.1 / 3 * (half + 2 * quarter)
    expected = [[0.9 * half + spread, 0.9 * quarter + spread]]
    found = ops.convert_to_numpy(loss(np.array([[0, 2]]), logits))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    plain = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    again = keras.saving.deserialize_keras_object(
        keras.saving.serialize_keras_object(seq2seq.SmoothedCrossentropy(0.0))
    )
    y = np.array([[0, 2]])
    np.testing.assert_allclose(float(again(y, logits)), float(plain(y, logits)), 1e-5)


def test_what_cannot_be_encoded_is_refused():
    characters = seq2seq.vocabulary(["ab"])
    with pytest.raises(ValueError, match=r"'abc!'.*lacks: '!', 'c'.*It has 'ab'"):
        seq2seq.encode(["ab", "abc!"], characters)
    with pytest.raises(ValueError, match="'abab' has 4 characters, more than the 3"):
        seq2seq.encode(["ab", "abab"], characters, 3)


def test_exact_match_by_hand():
    y_true = np.array([[1, 2, 0], [1, 2, 2], [2, 1, 0]])
    said = np.array([[1, 2, 2], [1, 2, 1], [2, 1, 0]])  # right, wrong, right
    metric = seq2seq.ExactMatch()
    metric.update_state(y_true, np.eye(3, dtype="float32")[said])
    assert float(metric.result()) == pytest.approx(2 / 3)
    metric.update_state(y_true[:1], np.eye(3, dtype="float32")[said[:1]])
    assert float(metric.result()) == pytest.approx(3 / 4)


# The model


def test_the_model_by_hand():
    """In NumPy: h = z h + (1 - z) n, the state handed over, and attention's mean."""
    model = small(attention=True)
    source, target = [3, 5, 2], [1, 6, 4]

    def read(part, tokens, h):
        embedding, kernel, recurrent, bias = part.get_weights()[:4]
        states = []
        for token in tokens:
            x = embedding[token] @ kernel + bias[0]
            inner = h @ recurrent + bias[1]
            (xz, xr, xn), (hz, hr, hn) = np.split(x, 3), np.split(inner, 3)
            z, r = (1 / (1 + np.exp(-a)) for a in (xz + hz, xr + hr))
            h = z * h + (1 - z) * np.tanh(xn + r * hn)
            states.append(h)
        return np.array(states)

    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    h = read(encoder, source, np.zeros(4))
    g = read(decoder, target, h[-1])
    weights = np.exp(g @ h.T)
    weights /= weights.sum(axis=1, keepdims=True)
    (kernel,) = decoder.get_layer("combine").get_weights()
    g = np.tanh(np.concatenate([weights @ h, g], axis=1) @ kernel)
    kernel, bias = decoder.get_layer("logits").get_weights()
    expected = g @ kernel + bias
    logits = logits_of(model, [source], [target])
    np.testing.assert_allclose(logits[0], expected, atol=1e-4)


@pytest.mark.once
def test_padding_of_the_source_changes_nothing(model):
    source, target = np.array([[3, 5, 2]]), np.array([[1, 6, 4]])
    padded = np.pad(source, ((0, 0), (0, 4)))
    np.testing.assert_allclose(
        logits_of(model, source, target), logits_of(model, padded, target), atol=1e-5
    )


@pytest.mark.once
def test_the_loss_leaves_padding_out(model):
    x = {"source": np.array([[3, 5]]), "target": np.array([[1, 6, 4]])}
    y = np.array([[6, 4, 2]])
    short = model.evaluate(x, y, verbose=0)
    x = {"source": x["source"], "target": np.array([[1, 6, 4, 0, 0]])}
    assert model.evaluate(x, np.array([[6, 4, 2, 0, 0]]), verbose=0) == pytest.approx(
        short, rel=1e-5
    )


def test_greedy_writing_is_the_models_own_choice_at_each_step(model):
    source = np.array([[3, 5, 2, 4], [6, 1, 0, 0], [2, 2, 5, 0]])
    tokens = seq2seq.translate(model, source, 1, 2, length=9)
    tokens = ops.convert_to_numpy(tokens)
    assert tokens.shape == (3, 9) and tokens.dtype == np.int32
    target = np.concatenate([np.ones((3, 1), "int32"), tokens[:, :-1]], axis=1)
    # But for padding, which stands for nothing.
    likeliest = 1 + logits_of(model, source, target)[..., 1:].argmax(-1)
    assert len({tuple(row) for row in tokens.tolist()}) > 1
    for row, expected in zip(tokens, likeliest, strict=True):
        end = list(row).index(2) + 1 if 2 in row else 9
        np.testing.assert_array_equal(row[:end], expected[:end])
        assert not row[end:].any()


@pytest.mark.once
def test_a_beam_never_ends_on_something_less_likely_than_all_others(model):
    """The best of a beam as wide as the vocabulary: exact for two tokens."""
    source = np.array([[3, 5, 2, 4], [6, 1, 0, 0]])
    tokens = ops.convert_to_numpy(
        seq2seq.translate(model, source, 1, 2, length=2, beam_width=8)
    )
    for row, text in zip(tokens, source, strict=True):
        pairs = np.array([(a, b) for a in range(8) for b in range(8)])
        target = np.stack([np.ones(64, "int32"), pairs[:, 0]], axis=1)
        logits = logits_of(model, np.tile(text, (64, 1)), target)
        logits[..., 0] = -1e9  # is never written
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        first = np.take_along_axis(log_probs[:, 0], pairs[:, :1], 1)[:, 0]
        second = np.take_along_axis(log_probs[:, 1], pairs[:, 1:], 1)[:, 0]
        ended = pairs[:, 0] == 2
        totals = first + np.where(ended, np.where(pairs[:, 1] == 0, 0, -1e9), second)
        np.testing.assert_array_equal(row, pairs[totals.argmax()])


@pytest.mark.once
def test_exact_match_is_what_greedy_writing_gets(model):
    # A trained model doesn't want to write padding, which writing never does.
    dense = model.get_layer("decoder").get_layer("logits")
    kernel, bias = dense.get_weights()
    bias[0] = -100.0
    dense.set_weights([kernel, bias])
    rng = np.random.default_rng(0)
    source = rng.integers(1, 7, (40, 4))
    right = ops.convert_to_numpy(seq2seq.translate(model, source, 1, 2, length=6))
    right[::4, 0] = right[::4, 0] % 7 + 1  # some are to be wrong
    target = np.concatenate([np.ones((40, 1), "int32"), right[:, :-1]], axis=1)
    x = {"source": source, "target": target}
    _, exact = model.evaluate(x, right, verbose=0, batch_size=20)
    said = ops.convert_to_numpy(seq2seq.translate(model, source, 1, 2, length=6))
    assert exact == pytest.approx((said == right).all(axis=1).mean())
    assert 0 < exact < 1


def test_it_learns_to_reverse_three_letters():
    rng = np.random.default_rng(0)
    source = rng.integers(3, 6, (64, 3))  # of 27 texts
    right = np.concatenate([source[:, ::-1], np.full((64, 1), 2)], axis=1)
    target = np.concatenate([np.ones((64, 1), "int64"), right[:, :-1]], axis=1)
    model = seq2seq.gru_encoder_decoder(6, 6, (24,), attention=True)
    kit.initialize_weights(model, 0)
    model.compile(
        keras.optimizers.Adam(0.02),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    model.fit({"source": source, "target": target}, right, 64, 80, verbose=0)
    said = seq2seq.translate(model, source, 1, 2, length=4)
    assert (ops.convert_to_numpy(said) == right).all(axis=1).mean() > 0.9


def test_it_is_saved_and_loaded(model, tmp_path):
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    source, target = np.array([[3, 5, 2]]), np.array([[1, 6, 4]])
    np.testing.assert_allclose(
        logits_of(model, source, target), logits_of(loaded, source, target), atol=1e-6
    )
    np.testing.assert_array_equal(
        ops.convert_to_numpy(seq2seq.translate(model, source, length=5)),
        ops.convert_to_numpy(seq2seq.translate(loaded, source, length=5)),
    )


def test_dropout_is_for_training_only():
    model = small(dropout=0.5)
    x = {"source": np.array([[3, 5, 2]]), "target": np.array([[1, 6, 4]])}
    drop = kit.compiled(lambda x: model(x, training=True))
    logits = [ops.convert_to_numpy(drop(x)) for _ in range(2)]
    assert np.abs(logits[0] - logits[1]).max() > 0.01
    np.testing.assert_array_equal(logits_of(model, **x), logits_of(model, **x))


def test_units_are_the_most_that_the_parameters_allow(model):
    attention = model.name == "gru_with_attention"
    count = model.count_params()
    assert seq2seq.units_for(count, 7, 8, 2, attention) == (5, 5)
    assert seq2seq.units_for(count - 1, 7, 8, 2, attention) == (4, 4)
    assert seq2seq.units_for(100_000, 7, 8) > seq2seq.units_for(100_000, 7, 8, 2)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"source_vocabulary_size": 0}, r"`source_vocabulary_size` must be .*\[1, "),
        ({"target_vocabulary_size": -1}, "`target_vocabulary_size`.*received -1"),
        ({"units": ()}, r"`units` must be .*received \(\)"),
        ({"units": (8, 0)}, r"`units` must be .*received \(8, 0\)"),
        ({"dropout": 1.0}, r"`dropout` must be .*\[0, 1\), received 1\.0"),
    ],
)
def test_bad_sizes_are_refused(arguments, message):
    sizes = {"source_vocabulary_size": 7, "target_vocabulary_size": 8}
    with pytest.raises(ValueError, match=message):
        seq2seq.gru_encoder_decoder(**sizes | arguments)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"start_token": 8}, r"`start_token`.*\[0, 7\], received 8"),
        ({"end_token": 0}, r"`end_token` must be .*\[1, .*received 0"),
        ({"length": 0}, r"`length` must be .*\[1, .*received 0"),
        ({"beam_width": 0}, r"`beam_width` must be .*\[1, .*received 0"),
        ({"beam_width": 9}, r"`beam_width`.*\[1, 8\], received 9"),
    ],
)
def test_bad_wishes_are_refused(model, arguments, message):
    with pytest.raises(ValueError, match=message):
        seq2seq.translate(model, [[3, 4]], **arguments)


def test_other_models_are_refused():
    other = transformer.encoder_decoder(7, 8, 10, 1, 1, 4)
    for model in (other, kit.mlp((3,), 2)):
        with pytest.raises(ValueError, match="must be of `kit.seq2seq.gru_encoder"):
            seq2seq.translate(model, [[3, 4]])


def test_units_are_found_at_once_however_many_parameters():
    (units,) = seq2seq.units_for(2**62, 7, 8)
    assert 12 * units * (units + 1) <= 2**62 < 12 * (units + 1) * (units + 100)
