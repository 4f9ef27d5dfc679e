"""The pointer-generator: its mixture by hand, its masks, its writing, saving."""

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit import pointer

numpy = ops.convert_to_numpy
PAD, START, END = 0, 1, 2


def tiny_model(seed=0, **options):
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "dropout": 0.0}
    model = kit.pointer_generator(12, 9, **{**sizes, **options})
    kit.initialize_weights(model, seed)
    # Embeddings of the size in which they are after training.
    embeddings = model.get_layer("embedding").embeddings
    embeddings.assign(30.0 * numpy(embeddings))
    return model


def softmax(x):
    powers = np.exp(x - x.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def tokens(shape, seed=0):
    return np.random.default_rng(seed).integers(3, 12, shape).astype("int32")


# --- The mixture ------------------------------------------------------------------


def test_the_mixture_by_hand():
    p_vocab = np.array([[[0.1, 0.2, 0.3, 0.4]]])
    attention = np.array([[[0.5, 0.3, 0.2]]], "float32")
    source = np.array([[2, 3, 2]], "int32")  # token 2 twice: 0.5 + 0.2 of the copies
    gate = np.log(np.array([[0.6 / 0.4]], "float32"))  # p_gen = 0.6
    generated, copied = pointer.mix(
        np.log(p_vocab).astype("float32") + 5.0, attention, source, gate
    )
    np.testing.assert_allclose(np.exp(numpy(generated)), 0.6 * p_vocab, rtol=1e-5)
    np.testing.assert_allclose(
        np.exp(numpy(copied)), [[[0.0, 0.0, 0.4 * 0.7, 0.4 * 0.3]]], atol=1e-6
    )
    total = np.exp(numpy(ops.logaddexp(generated, copied)))
    np.testing.assert_allclose(total, [[[0.06, 0.12, 0.46, 0.36]]], rtol=1e-5)


def test_tiny_probabilities_have_a_finite_gradient():
    """exp(-200) is 0 in float32; as a logarithm, it isn't."""
    logits = np.array([[[0.0, -200.0, -200.0]]], "float32")
    attention = np.array([[[1.0]]], "float32")
    source = np.array([[0]], "int32")

    def log_p(logits, gate):
        parts = pointer.mix(logits, attention, source, gate)
        return ops.sum(ops.logaddexp(*parts)[..., 1])

    gate = np.zeros((1, 1), "float32")
    assert float(log_p(logits, gate)) < -40.0
    # By hand: P(1) = (1 - p) TINY and e^-200 p: log (0.5 * 1e-20), nearly.
    assert float(log_p(logits, gate)) == pytest.approx(np.log(0.5e-20), abs=1e-3)
    for extreme in (-100.0, 0.0, 100.0):
        found = kit.gradient(
            lambda gate: log_p(ops.convert_to_tensor(logits), gate),
            ops.full((1, 1), extreme, dtype="float32"),
        )
        assert np.isfinite(numpy(found)).all(), extreme


def test_the_gradient_reaches_the_attention():
    """By hand: d log P(w) / d a_i = (1 - p_gen) / P(w) where x_i = w."""
    logits = np.log(np.array([[[0.25, 0.25, 0.5]]], "float32"))
    source, gate = np.array([[2, 1]], "int32"), np.zeros((1, 1), "float32")

    def log_p(attention):
        return ops.sum(
            ops.logaddexp(*pointer.mix(logits, attention, source, gate))[..., 2]
        )

    found = kit.gradient(log_p, ops.convert_to_tensor([[[0.4, 0.6]]], "float32"))
    total = 0.5 * 0.5 + 0.5 * 0.4
    np.testing.assert_allclose(numpy(found), [[[0.5 / total, 0.0]]], rtol=1e-4)


def test_the_pointer_by_hand():
    rng = np.random.default_rng(1)
    states, context = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 5, 4))
    logits = rng.normal(size=(2, 3, 12))
    source = tokens((2, 5))
    source[1, 3:] = PAD
    layer = pointer.Pointer()
    arguments = [x.astype("float32") for x in (states, context, logits)]
    found = numpy(layer(*arguments, source))
    values = [rng.normal(size=w.shape) for w in layer.weights]
    layer.set_weights(values)
    found = numpy(layer(*arguments, source))
    query, query_bias, key, key_bias, gate, gate_bias = values
    scores = (states @ query + query_bias) @ (context @ key + key_bias).swapaxes(1, 2)
    scores = np.where(source[:, None] == PAD, -np.inf, scores / 2.0)  # sqrt(D) = 2
    a = softmax(scores)
    read = np.concatenate([a @ context, states], axis=-1)
    p_gen = 1 / (1 + np.exp(-(read @ gate + gate_bias)))  # (B, T, 1)
    p = p_gen * softmax(logits)
    for b, t, i in np.ndindex(2, 3, 5):
        p[b, t, source[b, i]] += (1 - p_gen[b, t, 0]) * a[b, t, i]
    np.testing.assert_allclose(np.exp(found), p, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(np.exp(found).sum(axis=-1), 1.0, rtol=1e-4)


# --- The model --------------------------------------------------------------------


def test_padding_of_the_source_changes_nothing():
    model = tiny_model()
    short, target = tokens((2, 4)), tokens((2, 5), 1)
    padded = np.pad(short, ((0, 0), (0, 3)))
    found = [numpy(model({"source": x, "target": target})) for x in (short, padded)]
    np.testing.assert_allclose(*found, rtol=1e-3, atol=1e-4)


def test_a_prediction_depends_on_earlier_tokens_only():
    model = tiny_model()
    source, target = tokens((1, 4)), tokens((1, 6), 1)
    changed = target.copy()
    changed[0, 4:] = 3
    before, after = (
        numpy(model({"source": source, "target": x}))[0] for x in (target, changed)
    )
    np.testing.assert_allclose(before[:4], after[:4], rtol=1e-4, atol=1e-5)
    assert abs(before[4:] - after[4:]).max() > 1e-3


def log_probs(model, source, written):
    """Log P of tokens at each step, from the whole model."""
    read = np.array([[START, *written]], "int32")
    x = numpy(model({"source": source, "target": read}))[0].astype("float64")
    x[:, PAD] = -1e9
    return x - np.log(np.exp(x).sum(axis=-1, keepdims=True))


@pytest.mark.parametrize("copy", [True, False])
def test_greedy_writing_is_that_of_the_whole_model(copy):
    model = tiny_model(copy=copy, seed=3)
    source = tokens((3, 5))
    source[1, 3:] = PAD
    found = numpy(pointer.summarize(model, source, START, END, length=6))
    for row, text in zip(found, source, strict=True):
        written: list = []
        while len(written) < 6 and END not in written:
            written.append(int(log_probs(model, text[None], written)[-1].argmax()))
        assert row.tolist() == written + [PAD] * (6 - len(written))
    assert len({tuple(row) for row in found.tolist()}) > 1


@pytest.mark.once
def test_beams_keep_their_source():
    """Wide beams of several examples find what all sequences' probabilities say."""
    model = tiny_model(seed=5)
    source = tokens((2, 5), 4)
    found = numpy(pointer.summarize(model, source, START, END, 2, beam_width=12))
    for row, text in zip(found, source, strict=True):
        first = log_probs(model, text[None], [])[-1]
        totals = {(END, PAD): first[END]}
        for a in range(1, 12):
            if a != END:
                second = log_probs(model, text[None], [a])[-1]
                totals |= {(a, b): first[a] + second[b] for b in range(1, 12)}
        assert tuple(row.tolist()) == max(totals, key=lambda pair: totals[pair])


def test_copy_shares_by_hand():
    model = tiny_model()
    source, target = tokens((2, 5)), tokens((2, 4), 1)
    target[:, 0] = START
    target[0, 1] = source[0, 2]
    shares = numpy(pointer.copy_shares(model, source, target))
    assert shares.shape == (2, 3)
    p = np.exp(numpy(model({"source": source, "target": target[:, :-1]})))
    # Without copying: the gate's bias makes p_gen 1, so what is left is p_gen P_vocab.
    gate = model.get_layer("pointer").gate
    inner = keras.Model(model.input, model.get_layer("pointer").input)
    states, context, logits, _ = map(
        numpy, inner({"source": source, "target": target[:, :-1]})
    )
    layer = model.get_layer("pointer")
    scores = numpy(layer.query(states)) @ numpy(layer.key(context)).swapaxes(1, 2)
    a = softmax(scores / 8**0.5)
    read = np.concatenate([a @ context, states], axis=-1)
    p_gen = 1 / (1 + np.exp(-numpy(gate(read))))
    generated = p_gen * softmax(logits)
    for b, t in np.ndindex(2, 3):
        w = target[b, t + 1]
        expected = 1 - generated[b, t, w] / p[b, t, w]
        assert shares[b, t] == pytest.approx(expected, abs=1e-3)
        if w not in source[b]:
            assert shares[b, t] < 1e-6
    assert shares[0, 0] > 0.01


@pytest.mark.once
def test_a_saved_model_writes_the_same(tmp_path):
    model = tiny_model(seed=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert len(loaded.weights) == len(model.weights)
    source = tokens((2, 5))
    for a, b in zip(
        *(
            (
                numpy(x({"source": source, "target": source})),
                numpy(pointer.summarize(x, source, START, END, 5)),
                numpy(pointer.copy_shares(x, source, source)),
            )
            for x in (model, loaded)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def first_token(number, low, high, seed):
    """Sources of five tokens; the target is the first of them."""
    source = (
        np.random.default_rng(seed).integers(low, high, (number, 5)).astype("int32")
    )
    target = np.stack(
        [np.full(number, START), source[:, 0], np.full(number, END)], axis=1
    )
    target = target.astype("int32")
    return {"source": source, "target": target[:, :-1]}, target[:, 1:]


@pytest.mark.once
def test_it_copies_tokens_that_it_never_wrote():
    """Tokens 20 to 39 aren't in the training: no vocabulary's weights can know them."""
    scores = {}
    for copy in (True, False):
        model = kit.pointer_generator(40, 8, 1, 2, 16, dropout=0.0, copy=copy)
        kit.set_random_seed(0)  # of the order of the examples
        kit.initialize_weights(model, 0)
        model.compile(
            keras.optimizers.Adam(1e-2),
            keras.losses.SparseCategoricalCrossentropy(True, ignore_class=0),
        )
        x, y = first_token(2048, 3, 20, 0)
        model.fit(x, y, batch_size=64, epochs=5, verbose=0)
        new, right = first_token(64, 20, 40, 1)
        found = numpy(pointer.summarize(model, new["source"], START, END, 2))
        # Not the end: after a token that is new to it, it may copy again.
        scores[copy] = np.mean(found[:, 0] == right[:, 0])
    assert scores[True] > 0.8, scores
    assert scores[False] < 0.3, scores


# --- Errors -----------------------------------------------------------------------


def test_refuses():
    with pytest.raises(
        ValueError, match="hidden_dim=10 must be a multiple of num_heads=4"
    ):
        kit.pointer_generator(12, 9, hidden_dim=10)
    model = tiny_model()
    with pytest.raises(ValueError, match=r"`length` must be .*\[1, 9\], received 10"):
        pointer.summarize(model, tokens((1, 4)), START, END, 10)
    with pytest.raises(ValueError, match=r"`source` must hold integers from 0 to 11"):
        pointer.summarize(model, np.array([[12]]), START, END, 5)
    other = kit.mlp((4,), 2)
    with pytest.raises(ValueError, match=r"must be of `kit.pointer_generator`"):
        pointer.summarize(other, tokens((1, 4)), START, END, 5)
    with pytest.raises(ValueError, match="must be able to copy"):
        pointer.copy_shares(tiny_model(copy=False), tokens((1, 4)), tokens((1, 4)))
