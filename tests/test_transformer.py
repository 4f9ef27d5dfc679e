"""Transformers: attention against NumPy, the cache against the whole text, masks."""

import json
import math

import keras
import numpy as np
import pytest
from keras import layers, ops

import kit
from kit import transformer
from kit.data.corpus import Characters
from kit.data.subwords import Subwords
from kit.lab import language_model
from kit.transformer import Attention, DecoderBlock, EncoderBlock, PositionEmbedding

V = 11  # vocabulary
POSITIONS = ("learned", "sinusoidal", "rotary", "randomized", "none")
every_position = pytest.mark.parametrize("positions", POSITIONS)


def numpy(x):
    return ops.convert_to_numpy(x)


def run(model, *args, **kwargs):
    """What the model says, in one program: eager JAX would compile each operation."""
    return keras.tree.map_structure(
        numpy, kit.compiled(lambda *args: model(*args, **kwargs))(*args)
    )


def tokens(*shape, seed=0, low=1):
    return np.random.default_rng(seed).integers(low, V, shape).astype("int32")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def randomized(model, seed=0, gamma=3.0):
    """Weights of which none is zero or one, so that each has a say."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        if "seed" not in weight.path:
            values = rng.normal(0, 0.3, weight.shape)
            values += gamma if weight.path.endswith("gamma") else 0.0
            weight.assign(values.astype("float32"))
    return model


def small_gpt(positions="learned", **kwargs):
    sizes = {"max_length": 12, "num_layers": 2, "num_heads": 2, "hidden_dim": 8}
    model = kit.gpt(V, positions=positions, **(sizes | kwargs))
    return randomized(model, seed=1)  # of which various texts are the likeliest


def small_translator(**kwargs):
    sizes = {"max_length": 10, "num_layers": 2, "num_heads": 2, "hidden_dim": 8}
    return randomized(kit.encoder_decoder(V, V, **(sizes | kwargs)), gamma=0.0)


# Attention, as the docstring of the file has it


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def reference(layer, x, context=None, mask=None):
    """Attention in loops over examples, heads and positions."""
    context = x if context is None else context
    weights = {
        w.path.split("/", 1)[-1]: numpy(w).astype("float64") for w in layer.weights
    }
    q, k, v = (
        inputs @ weights[f"{name}/kernel"] + weights[f"{name}/bias"]
        for name, inputs in (("query", x), ("key", context), ("value", context))
    )
    head = x.shape[-1] // layer.num_heads
    y = np.zeros_like(q)
    for b in range(len(x)):
        for n in range(layer.num_heads):
            columns = slice(n * head, (n + 1) * head)
            for t in range(x.shape[1]):
                scores = k[b, :, columns] @ q[b, t, columns] / math.sqrt(head)
                if layer.causal:
                    scores[t + 1 :] = -np.inf
                if mask is not None:
                    scores[~mask[b]] = -np.inf
                y[b, t, columns] = softmax(scores) @ v[b, :, columns]
    kernel, bias = (weights[f"output_projection/{x}"] for x in ("kernel", "bias"))
    return y @ kernel + bias


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_papers(causal):
    layer, x = Attention(2, causal=causal), normal(2, 5, 8)
    layer.build(x.shape)
    randomized(layer)
    np.testing.assert_allclose(run(layer, x), reference(layer, x), atol=1e-5)


def test_cross_attention_looks_at_the_context_but_its_padding():
    x, context = normal(2, 5, 8), normal(2, 3, 8, seed=1)
    mask = np.array([[True, True, False], [True, True, True]])
    layer = Attention(2)
    layer.build(x.shape, context.shape)
    randomized(layer)
    y = run(layer, x, context, attention_mask=mask[:, None, None])
    np.testing.assert_allclose(y, reference(layer, x, context, mask), atol=1e-5)


def test_weights_of_are_those_of_the_call():
    x, context = normal(2, 5, 8), normal(2, 3, 8, seed=1)
    mask = np.array([[True, True, False], [True, True, True]])[:, None, None]
    layer = Attention(2)
    layer.build(x.shape, context.shape)
    randomized(layer)
    weights = numpy(layer.weights_of(x, context, mask))
    assert weights.shape == (2, 2, 5, 3)
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)
    assert (weights[0, :, :, 2] < 1e-6).all()
    _, values = layer.keys_values(ops.convert_to_tensor(context))
    y = np.einsum("bnts,bsnh->btnh", weights, numpy(values)).reshape(2, 5, 8)
    y = numpy(layer.output_projection(y))
    np.testing.assert_allclose(
        y, run(layer, x, context, attention_mask=mask), atol=1e-5
    )


def test_causal_weights_of_do_not_look_ahead():
    layer = Attention(2, causal=True)
    layer.build((2, 4, 8))
    weights = numpy(
        randomized(layer).weights_of(ops.convert_to_tensor(normal(2, 4, 8)))
    )
    assert (np.triu(weights, 1) < 1e-6).all()
    np.testing.assert_allclose(weights.sum(axis=-1), 1, rtol=1e-5)


def test_rotated_products_depend_on_distance_alone():
    q, k = normal(1, 1, 1, 8), normal(1, 1, 1, 8, seed=1)

    def product(i, j):
        a, b = (
            numpy(transformer.rotate(ops.convert_to_tensor(x), np.array([p])))
            for x, p in ((q, i), (k, j))
        )
        return (a * b).sum()

    assert product(5, 3) == pytest.approx(product(12, 10), rel=1e-4)
    assert product(5, 3) != pytest.approx(product(5, 4), rel=1e-2)
    # The first pair turns by one radian a step: features 0 and 4 of 8.
    turned = numpy(transformer.rotate(ops.convert_to_tensor(q), np.array([2])))
    a, b = q[0, 0, 0, 0], q[0, 0, 0, 4]
    expected = a * math.cos(2) - b * math.sin(2)
    assert turned[0, 0, 0, 0] == pytest.approx(expected, rel=1e-4)


def test_sinusoids_are_the_papers():
    layer = PositionEmbedding(10, "sinusoidal")
    waves = run(layer, np.zeros((1, 4, 6), "float32"))[0]
    for p in range(4):
        for i in range(3):
            angle = p / 10_000 ** (2 * i / 6)
            expected = [math.sin(angle), math.cos(angle)]
            np.testing.assert_allclose(waves[p, 2 * i : 2 * i + 2], expected, atol=1e-5)
    later = numpy(layer(np.zeros((1, 1, 6), "float32"), start=3))[0, 0]
    np.testing.assert_allclose(later, waves[3], atol=1e-6)


def test_learned_positions_are_added_by_hand():
    layer = PositionEmbedding(3)
    layer.build((None, None, 2))
    layer.embeddings.assign([[1, 2], [3, 4], [5, 6]])
    x = np.array([[[10, 20], [30, 40]]], "float32")
    np.testing.assert_allclose(numpy(layer(x)), [[[11, 22], [33, 44]]])
    np.testing.assert_allclose(numpy(layer(x, start=1)), [[[13, 24], [35, 46]]])


def test_randomized_positions_are_sorted_draws():
    """The vector of position p is the number p, so that the outputs are positions."""
    layer = PositionEmbedding(4, random_length=12, seed=3)
    layer.build((None, None, 1))
    layer.embeddings.assign(np.arange(12)[:, None])
    x = np.zeros((2, 3, 1), "float32")
    # Otherwise they are 12 // 4 apart.
    np.testing.assert_array_equal(numpy(layer(x))[..., 0], [[0, 3, 6]] * 2)
    np.testing.assert_array_equal(numpy(layer(x, start=1))[..., 0], [[3, 6, 9]] * 2)

    draw = kit.compiled(lambda x: layer(x, training=True))
    draws = np.array([numpy(draw(x))[..., 0] for _ in range(200)])
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])  # one for the batch
    places = draws[:, 0]
    assert (np.diff(places) >= 1).all() and places.min() == 0
    # The i-th of 4 numbers of 0 to 11 is 13 i / 5 - 1 on average, so the third is at
    # most 10.
    assert places.max() == 10
    np.testing.assert_allclose(places.mean(0), [1.6, 4.2, 6.8], atol=0.5)


def test_as_many_randomized_positions_as_there_are_are_the_plain_ones():
    layer = PositionEmbedding(5, "sinusoidal", random_length=5, seed=0)
    plain, x = PositionEmbedding(5, "sinusoidal"), normal(1, 4, 6)
    for training in (True, False):
        drawn = numpy(layer(x, training=training))
        np.testing.assert_allclose(drawn, run(plain, x), atol=1e-6)


@pytest.mark.once
def test_an_encoder_without_positions_reads_a_bag_of_tokens():
    outputs = {}
    for positions in ("none", "randomized"):
        model = transformer.encoder_decoder(
            V, V, 12, 1, num_heads=2, hidden_dim=8, positions=positions
        )
        kit.initialize_weights(model, 0)
        encoder, x = model.get_layer("encoder"), np.array([[3, 4, 5]])
        outputs[positions] = run(encoder, x), run(encoder, x[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(*outputs["none"], atol=1e-5)
    assert np.abs(np.subtract(*outputs["randomized"])).max() > 1e-3


# Blocks


@pytest.mark.parametrize("first", [True, False])
def test_encoder_block_is_two_residual_sublayers(first):
    block = EncoderBlock(2, 16, activation="relu", normalize_first=first)
    x = normal(2, 5, 8)
    block.build(x.shape)
    y = run(randomized(block), x)
    for norm, sublayer in (
        (block.attention_norm, block.attention),
        (block.feed_forward_norm, block.feed_forward),
    ):
        x = (
            x + run(sublayer, run(norm, x))
            if first
            else run(norm, x + run(sublayer, x))
        )
    np.testing.assert_allclose(y, x, atol=1e-4)


def test_dropout_is_in_training_only():
    block = EncoderBlock(2, 16, dropout=0.5)
    x = normal(2, 5, 8)
    block.build(x.shape)
    still = run(block, x)
    np.testing.assert_array_equal(run(block, x, training=False), still)
    assert np.abs(run(block, x, training=True) - still).max() > 1e-3


def test_decoder_block_with_a_context_has_a_third_sublayer():
    x, context = normal(2, 5, 8), normal(2, 3, 8, seed=1)
    block = DecoderBlock(2, 16)
    block.build(x.shape, context.shape)
    randomized(block)
    y = run(lambda x, c: block(x, context=c), x, context)
    x = x + run(block.attention, run(block.attention_norm, x))
    x = x + run(block.cross_attention, run(block.cross_attention_norm, x), context)
    x = x + run(block.feed_forward, run(block.feed_forward_norm, x))
    np.testing.assert_allclose(y, x, atol=1e-4)
    assert block.attention.causal and not block.cross_attention.causal


# Models


@pytest.mark.variants
@every_position
def test_gpt_does_not_look_ahead(positions):
    model, x = small_gpt(positions), tokens(2, 9)
    changed = x.copy()
    changed[:, 6] = (x[:, 6] + 1) % V
    before, after = run(model, x), run(model, changed)
    assert before.shape == (2, 9, V)
    np.testing.assert_allclose(before[:, :6], after[:, :6], atol=1e-5)
    assert np.abs(before[:, 6:] - after[:, 6:]).max() > 1e-2


@pytest.mark.variants
@every_position
def test_gpt_knows_the_order(positions):
    model, x = small_gpt(positions), tokens(1, 9)
    shuffled = x.copy()
    shuffled[:, :8] = x[:, 7::-1]
    last = run(model, x)[:, -1], run(model, shuffled)[:, -1]
    assert np.abs(last[0] - last[1]).max() > 1e-3


@pytest.mark.variants
@every_position
def test_cached_logits_are_those_of_the_whole_text(positions):
    model, x = small_gpt(positions), tokens(2, 12)
    step = kit.compiled(lambda *args: transformer.step(model, *args))
    cache = transformer.start(model, 2, 12)
    logits, cache = step(x[:, :5], cache, 0)  # a prompt at once, then one by one
    parts = [numpy(logits)]
    for position in range(5, 12):
        logits, cache = step(x[:, position : position + 1], cache, position)
        parts.append(numpy(logits))
    np.testing.assert_allclose(np.concatenate(parts, axis=1), run(model, x), atol=2e-5)


def test_cache_may_be_longer_than_the_text():
    model, x = small_gpt(), tokens(2, 4)
    logits, _ = transformer.step(model, x, transformer.start(model, 2, 10), 0)
    np.testing.assert_allclose(numpy(logits), run(model, x), atol=2e-5)


def test_gpt_leaves_padding_out_of_the_loss():
    model = small_gpt(mask_zero=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss)
    x, y = tokens(1, 6), tokens(1, 6, seed=1)
    short = model.evaluate(x, y, verbose=0)
    x, y = (np.pad(a, ((0, 0), (0, 4))) for a in (x, y))
    assert model.evaluate(x, y, verbose=0) == pytest.approx(short, rel=1e-4)


def test_bert_does_not_look_at_padding_but_ahead():
    model = randomized(kit.bert(V, 10, num_layers=2, num_heads=2, hidden_dim=8))
    x = tokens(2, 5)
    inputs = {"token_ids": x, "segment_ids": np.zeros_like(x)}
    outputs = run(model, inputs)
    assert outputs["pooled_output"].shape == (2, 8)
    padded = {k: np.pad(a, ((0, 0), (0, 3))) for k, a in inputs.items()}
    longer = run(model, padded)
    np.testing.assert_allclose(
        longer["sequence_output"][:, :5], outputs["sequence_output"], atol=1e-5
    )
    first = outputs["sequence_output"][:, 0]
    pooler = model.get_layer("pooler")
    expected = np.tanh(first @ numpy(pooler.kernel) + numpy(pooler.bias))
    np.testing.assert_allclose(outputs["pooled_output"], expected, atol=1e-5)
    for name, index in (("token_ids", 4), ("segment_ids", 4)):
        changed = {k: a.copy() for k, a in inputs.items()}
        changed[name][:, index] = (
            1 if name == "segment_ids" else x[:, index] % (V - 1) + 1
        )
        assert np.abs(run(model, changed)["sequence_output"][:, 0] - first).max() > 1e-4


def test_encoder_decoder_masks_both_paddings():
    model = small_translator()
    source, target = tokens(2, 6), tokens(2, 4, seed=1)
    logits = run(model, {"source": source, "target": target})
    assert logits.shape == (2, 4, V)
    padded = {"source": np.pad(source, ((0, 0), (0, 2)))}
    padded["target"] = np.pad(target, ((0, 0), (0, 3)))
    np.testing.assert_allclose(run(model, padded)[:, :4], logits, atol=1e-5)
    changed = source.copy()
    changed[:, 5] = source[:, 5] % (V - 1) + 1
    other = run(model, {"source": changed, "target": target})
    assert np.abs(other[:, 0] - logits[:, 0]).max() > 1e-4


@pytest.mark.parametrize("make", [small_gpt, small_translator])
def test_saved_models_load(make, tmp_path):
    model = make(positions="rotary") if make is small_gpt else make(dropout=0.1)
    x = tokens(2, 6)
    inputs = x if make is small_gpt else {"source": x, "target": x[:, :4]}
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(run(loaded, inputs), run(model, inputs))
    assert isinstance(loaded, kit.CompiledFit)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (
            Attention,
            {"num_heads": 3, "causal": True, "rotary_length": 9, "use_bias": False},
        ),
        (PositionEmbedding, {"max_length": 7, "kind": "sinusoidal"}),
        (PositionEmbedding, {"max_length": 7, "random_length": 30, "seed": 5}),
        (
            EncoderBlock,
            {
                "num_heads": 2,
                "intermediate_dim": 5,
                "activation": "relu",
                "dropout": 0.2,
                "normalize_first": False,
                "epsilon": 1e-3,
            },
        ),
        (DecoderBlock, {"num_heads": 2, "intermediate_dim": 5, "rotary_length": 4}),
    ],
)
def test_layers_keep_their_configuration(kind, options):
    config = kind(**options).get_config()
    assert {name: config[name] for name in options} == options
    assert kind.from_config(config).get_config() == config


def test_position_embeddings_keep_their_initializer():
    config = PositionEmbedding(7, embeddings_initializer="zeros").get_config()
    layer = PositionEmbedding.from_config(config)
    assert isinstance(layer.embeddings_initializer, keras.initializers.Zeros)


def test_blocks_refuse_a_context_that_they_were_not_built_for():
    x = np.ones((1, 3, 4), "float32")
    alone, looks = DecoderBlock(2, 4), DecoderBlock(2, 4)
    alone(x), looks(x, context=x)
    with pytest.raises(ValueError, match="built without a context.*called with one"):
        alone(x, context=x)
    with pytest.raises(ValueError, match="built with a context.*called without one"):
        looks(x)
    with pytest.raises(ValueError, match="built with a context.*called without one"):
        looks.start(1, 5)


@pytest.mark.once
def test_texts_with_padding_are_not_continued():
    model = small_gpt(mask_zero=True)
    with pytest.raises(ValueError, match="`prompt` holds token 0, which is padding"):
        transformer.generate(model, [[0, 1]], 2)
    model.layers[-1].bias.assign([50.0] + [0.0] * (V - 1))  # would always write it
    for use_cache in (True, False):
        written = transformer.generate(model, [[1, 2]], 30, use_cache=use_cache)
        assert numpy(written).min() > 0


def test_a_model_that_reads_one_token_cannot_write():
    with pytest.raises(ValueError, match="max_length is 1; 2 are needed"):
        transformer.generate(kit.gpt(V, 1), [[1]], 3)


@pytest.mark.parametrize(
    ("source", "error"),
    [
        ([[V + 99, 1]], ValueError),
        ([[-1, 2]], ValueError),
        ([[1.5, 2.0]], TypeError),
        ([1, 2], ValueError),
    ],
)
def test_sources_that_the_model_does_not_know_are_refused(source, error):
    with pytest.raises(error, match="`source` must (hold|be an array of) integers"):
        transformer.translate(small_translator(), source, 1, 2, 5)


def test_rotary_models_predict_sequences_of_any_length():
    model = small_gpt(positions="rotary")
    for length in (3, 5, 4):
        x = tokens(2, length)
        got = model.predict(x, verbose=0)
        np.testing.assert_allclose(got, run(model, x), rtol=1e-4, atol=1e-5)


def test_half_precision_follows_the_policy():
    block = DecoderBlock(2, 16, dtype="mixed_float16")
    y = block(normal(2, 5, 8))
    assert keras.backend.standardize_dtype(y.dtype) == "float16"
    cache = block.start(2, 6)
    y, cache = block.step(ops.cast(normal(2, 5, 8), "float16"), cache, 0)
    assert keras.backend.standardize_dtype(cache["own"][0].dtype) == "float16"


# Writing


def make_next(model, length=12):
    """What the model expects after a text; one program for all lengths."""
    program = kit.compiled(lambda x: model(x))

    def expect(text):
        padded = np.pad(text, ((0, 0), (0, length - text.shape[1])))
        return numpy(program(padded.astype("int32")))[:, text.shape[1] - 1]

    return expect


def greedy_by_hand(expect, text, length):
    """Reads the whole text again for each token."""
    for _ in range(length):
        text = np.concatenate([text, expect(text).argmax(axis=-1)[:, None]], axis=1)
    return text[:, -length:]


@pytest.mark.variants
@every_position
def test_generates_the_likeliest(positions):
    model, prompt = small_gpt(positions), tokens(2, 3)
    written = numpy(transformer.generate(model, prompt, 9, temperature=0))
    assert len(np.unique(written)) > 1
    np.testing.assert_array_equal(written, greedy_by_hand(make_next(model), prompt, 9))


@pytest.mark.variants
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_without_the_cache_the_same_is_written(temperature):
    model, prompt = small_gpt(), tokens(2, 3)
    cached, uncached = (
        numpy(transformer.generate(model, prompt, 9, temperature, use_cache=use_cache))
        for use_cache in (True, False)
    )
    np.testing.assert_array_equal(cached, uncached)


@pytest.mark.once
def test_writes_beyond_its_length_from_the_last_half():
    model, prompt = small_gpt(), tokens(1, 5)  # reads 12 at once
    expect = make_next(model)
    written = numpy(transformer.generate(model, prompt, 20, temperature=0))[0]
    text = np.concatenate([prompt[0], written])
    assert len(set(written)) > 3
    for end in (12, 18):  # where it went on from six characters
        again = greedy_by_hand(expect, text[None, end - 6 : end], 6)[0]
        np.testing.assert_array_equal(text[end : end + 6], again)
    long = numpy(transformer.generate(model, tokens(1, 30), 4, temperature=0))[0]
    expected = greedy_by_hand(expect, tokens(1, 30)[:, -6:], 4)[0]
    np.testing.assert_array_equal(long, expected)


def test_draws_by_seed_temperature_and_top_k():
    model, prompt = small_gpt(), np.repeat(tokens(1, 3), 400, axis=0)
    draw = lambda **k: numpy(transformer.generate(model, prompt, 1, **k))[:, 0]  # noqa: E731
    first, again, other = draw(seed=1), draw(seed=1), draw(seed=2)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    logits = run(model, prompt[:1])[0, -1]
    shares = np.bincount(first, minlength=V) / 400
    np.testing.assert_allclose(shares, softmax(logits), atol=0.1)
    assert set(draw(top_k=2)) <= set(np.argsort(logits)[-2:])


def test_translate_greedily_is_the_models_choice():
    model, source = randomized(small_translator(), seed=2), tokens(8, 6)
    source[::2, 3:] = 0
    # What padding hides matters here, and there is an end that one of them comes to.
    end = int(numpy(transformer.translate(model, source, 1, 9, 10))[1, 4])
    written = numpy(transformer.translate(model, source, 1, end, 10))
    program = kit.compiled(lambda x, y: model({"source": x, "target": y}))
    target = np.zeros((8, 10), "int32")
    target[:, 0] = 1
    ended = np.zeros(8, bool)
    for t in range(10):
        logits = numpy(program(source, target))[:, t]
        choice = np.where(ended, 0, logits[:, 1:].argmax(axis=-1) + 1)
        ended |= choice == end
        np.testing.assert_array_equal(written[:, t], choice)
        if t < 9:
            target[:, t + 1] = choice
    assert ended.any() and (written[1, 5:] == 0).all()


@pytest.mark.once
def test_wider_beams_find_likelier_sequences():
    model, source = small_translator(), tokens(8, 6)

    def log_probs(written):
        target = np.pad(written[:, :-1], ((0, 0), (1, 0)), constant_values=1)
        logits = run(model, {"source": source, "target": target})
        logits[..., 0] = -np.inf  # padding is never written
        chosen = np.take_along_axis(softmax(logits), written[..., None], axis=-1)
        chosen = np.where(written == 0, 1.0, chosen[..., 0])
        return np.log(chosen).sum(axis=-1)

    narrow, wide = (
        log_probs(numpy(transformer.translate(model, source, 1, 2, 6, width)))
        for width in (1, 8)
    )
    assert (wide >= narrow - 1e-4).all()
    assert (wide > narrow + 1e-3).any()


# Bad input


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: kit.gpt(V, 8, hidden_dim=10), "hidden_dim=10 must be a multiple.*=4"),
        (
            lambda: kit.gpt(0, 8),
            "`vocabulary_size` must be an integer .*received 0",
        ),
        (lambda: kit.gpt(V, 8, dropout=1), r"`dropout` must be .*\[0, 1\), received 1"),
        (lambda: kit.gpt(V, 8, positions="alibi"), "`positions` must be.*'alibi'"),
        (lambda: kit.bert(V, num_segments=0), "num_segments.*received 0"),
        (lambda: PositionEmbedding(8, "rotary"), "`kind` must be.*'rotary'"),
        (
            lambda: PositionEmbedding(8, random_length=7),
            "`random_length` must be at least max_length=8, received 7",
        ),
        (lambda: PositionEmbedding(0), r"`max_length` must be .*\[1, .*received 0"),
        (lambda: Attention(0), r"`num_heads` must be .*\[1, .*received 0"),
        (lambda: Attention(3)(np.ones((1, 2, 8))), "multiple of 3.*received 8"),
        (lambda: EncoderBlock(2, 0), r"`intermediate_dim` must be .*received 0"),
        (lambda: small_gpt()(tokens(1, 13)), "13 positions, more than the 12"),
        (lambda: small_gpt("rotary")(tokens(1, 13)), "13 positions, more than the 12"),
        (lambda: transformer.start(small_gpt(), 1, 13), "length=13 is more.*12"),
    ],
)
def test_refuses_bad_sizes(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("wrong", [{"num_layers": 1.5}, {"hidden_dim": 16.0}])
def test_refuses_numbers_that_are_no_integers(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(TypeError, match=f"`{name}` must be an integer .*{value} of"):
        kit.gpt(V, 8, **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": [3, 4]}, r"`prompt` must be .*\(B, T\), received \[3, 4\]"),
        ({"prompt": [[V]]}, f"`prompt` must hold integers from 0 to {V - 1}"),
        ({"length": 0}, r"`length` must be .*\[1, .*received 0"),
        ({"temperature": -1}, r"`temperature` must be .*\[0, .*received -1"),
        ({"top_k": V + 1}, rf"`top_k` must be .*\[1, {V}\] or None"),
    ],
)
def test_generate_refuses_bad_input(wrong, message):
    arguments = {"prompt": [[1, 2]], "length": 3} | wrong
    with pytest.raises(ValueError, match=message):
        transformer.generate(small_gpt(), **arguments)


def test_writing_refuses_other_models():
    other = kit.Sequential(
        [keras.Input((None,)), layers.Embedding(V, 8), layers.GRU(4)]
    )
    with pytest.raises(ValueError, match=r"'gru.*looks at other positions"):
        transformer.generate(other, [[1, 2]], 3)
    with pytest.raises(ValueError, match="must be of `kit.encoder_decoder`"):
        transformer.translate(small_gpt(), [[1, 2]], 1, 2, 5)
    with pytest.raises(ValueError, match=r"`beam_width` must be .*\[1, .*received 0"):
        transformer.translate(small_translator(), [[1, 2]], 1, 2, 5, beam_width=0)
    with pytest.raises(ValueError, match=r"`length` must be .*\[1, 10\], received 11"):
        transformer.translate(small_translator(), [[1, 2]], 1, 2, 11)


# Language models


def test_bits_of_subwords_are_shared_among_their_characters():
    vocabulary = Subwords.learn(["low lower lowest"] * 9, 265)
    tokens = vocabulary.encode("lowest low")
    assert 2 <= len(tokens) < 10
    measure = language_model.per_character(lambda tokens: 3.0, vocabulary)
    assert measure(tokens) == pytest.approx(3.0 * len(tokens) / 10)


@pytest.mark.once
@pytest.mark.parametrize("stride", [None, 5])
def test_bits_by_windows_counts_every_token_once(stride):
    model, text = small_gpt(), tokens(50)
    measure = language_model.make_bits_by_windows(model, 12, stride, batch_size=4)
    with pytest.raises(ValueError, match=r"`stride` must be .*\[1, 12\], received 13"):
        language_model.make_bits_by_windows(model, 12, 13)
    expect, nats, stride = make_next(model), 0.0, stride or 6
    for i, token in enumerate(text):
        # From 12 - stride to 11 characters before it; zeros stand before the text.
        first = i // stride * stride - (13 - stride)
        before = [text[j] if j >= 0 else 0 for j in range(first, i)]
        nats -= np.log(softmax(expect(np.array([before])))[0, token])
    assert measure(text) == pytest.approx(nats / math.log(2) / 50, rel=1e-4)


def test_gpt_learns_to_copy():
    rng = np.random.default_rng(0)
    half = rng.integers(1, V, (512, 6)).astype("int32")
    x = np.concatenate([half, half], axis=1)
    model = kit.gpt(V, 12, num_layers=2, hidden_dim=32, positions="rotary")
    kit.initialize_weights(model, 0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(5e-3), loss)
    model.fit(x[:, :-1], x[:, 1:], 32, epochs=25, verbose=0)
    new = rng.integers(1, V, (50, 6)).astype("int32")
    # The first one of the second half has to be told where the copy begins.
    prompt = np.concatenate([new, new[:, :1]], axis=1)
    written = numpy(transformer.generate(model, prompt, 5, temperature=0))
    assert (written == new[:, 1:]).mean() > 0.95


# The recipe

TINY = {
    "tokenizer": "characters",
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "sequence_length": 16,
    "batch_size": 8,
    "epochs": 2,
    "max_ngram_order": 3,
    "prompt": "in",
    "sample_length": 12,
    "temperatures": (0.0, 0.8),
    "top_k": 5,
    "verbose": 0,
}


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    words = ["in", "the", "end", "there", "is", "an", "art"]
    words = np.random.default_rng(0).choice(words, 1200)
    path.write_text(" ".join(words)[:3500])
    return path


@pytest.mark.once  # test_exchange.py runs it under each backend
@pytest.mark.parametrize("kind", [Characters, Subwords])
def test_recipe_leaves_what_it_promises(load_recipe, text_file, tmp_path, capsys, kind):
    folder = tmp_path / "run"
    main = load_recipe("transformer").main
    chosen = {"tokenizer": kind.__name__.lower(), "vocabulary_size": 270}
    if kind is Subwords:
        chosen["batch_size"] = 4  # there are fewer tokens
    main(text=text_file, output_dir=folder, seed=1, lstm=True, **(TINY | chosen))
    assert {path.name for path in folder.iterdir()} == {
        "model.keras",
        "vocabulary.json",
        "history.csv",
        "learning_curve.png",
        "samples.txt",
        "metrics.json",
    }
    record = json.loads((folder / "metrics.json").read_text())
    assert set(record["metrics"]) == {
        "bits_per_char",
        "test_characters",
        "parameters",
        "cached_tokens_per_second",
        "uncached_tokens_per_second",
    }
    assert set(record["baselines"]) == {
        "ngram_bits_per_char",
        "ngram_order",
        "lstm_bits_per_char",
        "lstm_parameters",
    }
    assert capsys.readouterr().out == ""

    model = keras.saving.load_model(folder / "model.keras")
    vocabulary = kind.load(folder / "vocabulary.json")
    prompt = vocabulary.encode("\nin")[None]
    continued = numpy(transformer.generate(model, prompt, 12, temperature=0))[0]
    written = (folder / "samples.txt").read_text().split("\n")[1]
    assert written == "in" + vocabulary.decode(continued)
    test = vocabulary.encode(text_file.read_text()[-175:])
    bits = language_model.make_bits_by_windows(model, 16, stride=2)(test)
    bits *= len(test) / 175
    assert record["metrics"]["bits_per_char"] == pytest.approx(bits, rel=1e-4)
    assert record["metrics"]["test_characters"] == 175


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, r"`epochs` must be an integer in \[1, .*received 0"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be .*\(0, .*received 0\.0"),
        ({"sequence_length": 1}, "sequence_length must be at least 2"),
        ({"hidden_dim": 9}, "hidden_dim=9 must be a multiple of num_heads=2"),
        ({"top_k": 50}, r"`top_k` must be an integer in \[1, \d+\], received 50"),
        ({"temperatures": (-1.0,)}, r"`temperatures` must be .*received \[-1\.0\]"),
        ({"prompt": ""}, "`prompt` must hold one character"),
        ({"sequence_length": 400}, "fewer than the 3601 of one batch"),
        ({"text": "nowhere.txt"}, "text='nowhere.txt' can't be read"),
        (
            {"tokenizer": "subwords", "vocabulary_size": 256},
            r"`vocabulary_size` must be an integer in \[257, .*received 256",
        ),
    ],
)
def test_recipe_refuses_bad_input_before_it_trains(
    load_recipe, text_file, tmp_path, wrong, message
):
    arguments = {"text": text_file, "output_dir": tmp_path, **TINY, **wrong}
    with pytest.raises(ValueError, match=message):
        load_recipe("transformer").main(**arguments)


@pytest.mark.learn
@pytest.mark.parametrize(
    ("others", "options"),
    [
        (("ngram",), {}),
        (
            ("ngram", "lstm"),
            {
                "lstm": True,
                "tokenizer": "characters",
                "sequence_length": 128,
                "optimizer": "adam",
                "learning_rate": 3e-3,
                "epochs": 20,
            },
        ),
    ],
)
def test_recipe_beats_the_lstm_and_the_best_ngram(
    load_recipe, tmp_path, others, options
):
    main = load_recipe("transformer").main
    record = main(output_dir=tmp_path, verbose=0, **options)
    bits, baselines = record["metrics"]["bits_per_char"], record["baselines"]
    for other in others:
        assert bits < baselines[f"{other}_bits_per_char"]
    assert bits > 1  # less would mean that held-out text is known
