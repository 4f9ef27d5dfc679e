"""The character language model: its text, its n-gram baseline, its recipe."""

import json
import math

import keras
import numpy as np
import pytest

import kit
from kit import data
from kit.data.corpus import Characters, english_text
from kit.lab import language_model
from kit.lab.ngram import NGram, best_ngram

TINY = {
    "units": (8,),
    "sequence_length": 16,
    "batch_size": 8,
    "epochs": 2,
    "max_ngram_order": 3,
    "prompt": "in",
    "sample_length": 12,
    "temperatures": (0.0, 0.8),
    "top_k": 3,
    "verbose": 0,
}


@pytest.fixture(scope="module")
def texts():
    return english_text()


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    text = (
        "in the beginning there was a text. " * 95 + "that was the end, it said. " * 7
    )
    path.write_text(text[:3500], encoding="utf-8")
    return path


# The text


@pytest.mark.once
def test_english_text_is_long_prose_and_held_out_in_two_parts(texts):
    train, valid, test = texts
    assert len(train) > 800_000
    total = sum(map(len, texts))
    assert 0.05 <= len(valid) / total < 0.07
    assert 0.05 <= len(test) / total < 0.07
    for text in texts:
        assert sum(c.isalpha() or c == " " for c in text) / len(text) > 0.9


def test_held_out_text_does_not_stand_in_the_training_text(texts):
    train, valid, test = texts

    def runs(text, length):
        words = text.split()
        return {tuple(words[i : i + length]) for i in range(len(words) - length)}

    for held_out, others in ((valid, train), (test, train), (test, valid)):
        assert not set(filter(None, held_out.split("\n"))) & set(others.split("\n"))
        known, found = runs(others, 8), runs(held_out, 8)
        assert len(found & known) < 0.01 * len(found)


def test_characters_are_numbered_from_one_and_come_back(tmp_path):
    vocabulary = Characters.of("hello, hell", min_count=2)
    assert len(vocabulary) == 4  # unknown, e, h, l
    tokens = vocabulary.encode("hole")
    assert tokens.dtype == np.int32
    np.testing.assert_array_equal(tokens, [2, 0, 3, 1])
    assert vocabulary.decode(tokens) == "h\ufffdle"
    vocabulary.save(tmp_path / "vocabulary.json")
    loaded = Characters.load(tmp_path / "vocabulary.json")
    np.testing.assert_array_equal(loaded.encode("hole"), tokens)


def test_what_is_no_prose_or_no_news_is_left_out():
    document = """Lists are mutable sequences,
    typically used to store collections of homogeneous items.

    Short.

    x = [1, 2, 3]; y = {i: i ** 2 for i in range(10)}; print(x[0], y[1], x + y == z).

    So it is known that lists are mutable sequences, typically used to store items.
    """
    found = list(data.corpus._unseen_prose(document, seen := set()))
    start = "Lists are mutable sequences, typically used to store collections"
    assert found == [f"{start} of homogeneous items."]
    assert list(data.corpus._unseen_prose(document, seen)) == []


# The n-grams


def test_witten_bell_by_hand():
    # Text 0 1 0 1 0 2, V = 3. After 0: 1 twice, 2 once; n = 2, c = 3.
    model = NGram(2, "witten_bell").fit(np.array([0, 1, 0, 1, 0, 2]), 3)
    unigram = (3 + 3 * (1 / 3)) / 9, (2 + 3 * (1 / 3)) / 9  # of 0 and 1
    expected = [unigram[0], (2 + 2 * unigram[1]) / 5]
    np.testing.assert_allclose(model.probabilities(np.array([0, 1])), expected)


def test_kneser_ney_by_hand():
    # Text 0 1 0 1 0 2, V = 3: too short to estimate discounts, which are 0.5. Before
    # 0 stands 1 (the one token; the text's begin has none); before 1 and 2 stands 0.
    model = NGram(2, "kneser_ney").fit(np.array([0, 1, 0, 1, 0, 2]), 3)
    unigram = (1 - 0.5) / 3 + (3 * 0.5 / 3) / 3  # of each of the three: 1/3
    expected = [unigram, (2 - 0.5) / 3 + (2 * 0.5 / 3) * unigram]
    np.testing.assert_allclose(model.probabilities(np.array([0, 1])), expected)


def test_kneser_ney_estimates_a_discount_for_each_count():
    rng = np.random.default_rng(0)
    tokens = rng.choice(30, 600, p=np.arange(1, 31) / 465)
    grams, counts = np.unique(tokens[:-1] * 30 + tokens[1:], return_counts=True)
    n1, n2, n3, n4 = ((counts == i).sum() for i in (1, 2, 3, 4))
    y = n1 / (n1 + 2 * n2)
    d1, d2, d3 = 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3
    context = grams[np.argmax(counts)] // 30
    of_context = counts[grams // 30 == context]
    discount = np.where(of_context == 1, d1, np.where(of_context == 2, d2, d3))
    gamma = discount.sum() / of_context.sum()

    one = NGram(2).fit(tokens, 30)
    kinds = [np.unique(tokens[:-1][tokens[1:] == w]).size for w in range(30)]
    rest = kinds / np.sum(kinds)  # before smoothing with the uniform distribution
    pairs = np.array([[context, w] for w in range(30)])
    found = np.array([one.probabilities(pair)[1] for pair in pairs])
    direct = np.zeros(30)
    direct[grams[grams // 30 == context] % 30] = of_context - discount
    # The unigrams' own discounts move the last term a little.
    expected = direct / of_context.sum() + gamma * rest
    np.testing.assert_allclose(found, expected, atol=0.01)


@pytest.mark.parametrize("smoothing", ["kneser_ney", "witten_bell"])
@pytest.mark.parametrize("order", [1, 2, 5])
def test_probabilities_of_all_tokens_sum_to_one(smoothing, order):
    rng = np.random.default_rng(1)
    size = 7
    tokens = rng.choice(size - 1, 400, p=[0.4, 0.3, 0.1, 0.1, 0.05, 0.05])
    model = NGram(order, smoothing).fit(tokens, size)  # the token 6 never occurs
    contexts = [tokens[:10], tokens[-6:], rng.choice(size, 8), [6, 6, 6, 6]]
    for context in contexts:
        p = [model.probabilities(np.append(context, w))[-1] for w in range(size)]
        assert min(p) > 0
        assert sum(p) == pytest.approx(1)


def test_the_begin_of_the_text_is_a_context_too():
    tokens = np.array([3, 0, 1, 0, 1, 0, 2])  # nothing stands before the 3
    model = NGram(3).fit(tokens, 4)
    p = [model.probabilities(np.array([3, w]))[1] for w in range(4)]
    assert sum(p) == pytest.approx(1)
    assert np.argmax(p) == 0


def test_longer_contexts_help_where_there_is_something_to_see():
    tokens = np.tile([0, 1, 0, 2], 300)  # what follows 0 depends on what was before
    bits = [NGram(n).fit(tokens, 3).bits_per_token(tokens[:200]) for n in (1, 2, 3)]
    assert bits[0] > bits[1] > bits[2]
    assert bits[2] < 0.05


def test_best_ngram_is_chosen_on_validation_text(texts):
    train, valid, _ = texts
    vocabulary = Characters.of(train)
    tokens, held_out = vocabulary.encode(train[:50_000]), vocabulary.encode(valid)
    best = best_ngram(tokens, held_out, len(vocabulary), max_order=6)
    bits = best.bits_per_token(held_out)
    assert best.smoothing == "kneser_ney"
    for order in range(1, 7):
        for smoothing in ("kneser_ney", "witten_bell"):
            other = NGram(order, smoothing).fit(tokens, len(vocabulary))
            assert bits <= other.bits_per_token(held_out)


def test_ngram_refuses_what_it_cannot_count():
    with pytest.raises(
        ValueError, match=r"`order` must be an integer in \[1, .*received 0"
    ):
        NGram(0)
    with pytest.raises(
        ValueError, match="one of 'kneser_ney', 'witten_bell', received 'lapl"
    ):
        NGram(2, "laplace")
    with pytest.raises(ValueError, match="integers from 0 to 2"):
        NGram(2).fit(np.array([0, 3]), 3)
    with pytest.raises(ValueError, match="order 3 at least, received 2"):
        NGram(3).fit(np.array([0, 1]), 3)
    with pytest.raises(ValueError, match="`max_order` must be .*received 0"):
        best_ngram(np.array([0, 1]), np.array([0]), 3, max_order=0)


# The recipe


def test_bits_per_char_counts_every_character_once(load_recipe):
    model = kit.lstm((None,), 5, (6,), return_sequences=True, vocabulary_size=5)
    tokens = np.random.default_rng(0).integers(5, size=50).astype("int32")
    # One lane reads the text from end to end, after a filling of one zero and more.
    measure = language_model.make_bits_by_steps(model, lanes=1, warm_up=3)
    whole = np.concatenate([np.zeros(4, "int32"), tokens])
    logits = keras.ops.convert_to_numpy(model(whole[None, :-1]))[0, 3:]
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    nats = -log_p[np.arange(50), tokens].mean()
    assert measure(tokens) == pytest.approx(nats / math.log(2), rel=1e-4)
    # Lanes see a little less before their parts; 50 isn't a multiple of 8.
    lanes = language_model.make_bits_by_steps(model, lanes=8, warm_up=30)
    assert lanes(tokens) == pytest.approx(measure(tokens), rel=1e-2)


def test_windows_are_cut_at_other_places_each_time(load_recipe):
    tokens, rng = np.arange(1000), np.random.default_rng(0)
    starts = set()
    for _ in range(20):
        x, y = language_model.windows(tokens, 10, 8, rng)
        assert x.shape == y.shape == (96, 10)
        np.testing.assert_array_equal(y, x + 1)
        np.testing.assert_array_equal(x.ravel(), x[0, 0] + np.arange(960))
        starts.add(int(x[0, 0]))
    assert len(starts) > 5


@pytest.mark.once
def test_each_epoch_cuts_at_other_places(monkeypatch):
    model = kit.gru((None,), 5, (4,), return_sequences=True, vocabulary_size=5)
    given, fit = [], type(model).fit

    def fit_and_look(model, x, *args, **kwargs):
        given.append(x.copy())
        return fit(model, x, *args, **kwargs)

    monkeypatch.setattr(type(model), "fit", fit_and_look)
    tokens = np.random.default_rng(0).integers(5, size=500)
    language_model.fit(
        model,
        tokens,
        tokens,
        lambda tokens: 1.0,
        length=20,
        batch_size=4,
        epochs=4,
        learning_rate=0.1,
        verbose=0,
    )
    assert len({x.tobytes() for x in given}) > 2


def test_muon_moves_a_matrix_equally_in_all_directions():
    model = kit.gpt(5, 8, 1, 2, 8)
    kit.initialize_weights(model, 0)
    before = model.get_weights()
    tokens = np.random.default_rng(0).integers(5, size=16 * 9 + 1)
    language_model.fit(
        model,
        tokens,
        tokens,
        lambda tokens: 1.0,
        length=8,
        batch_size=16,  # one step
        epochs=1,
        learning_rate=0.01,
        optimizer="muon",
        verbose=0,
    )
    steps = {
        variable.path: after - x
        for variable, after, x in zip(
            model.weights, model.get_weights(), before, strict=True
        )
    }
    sizes = np.linalg.svd(steps["gpt/block_0/output_dense/kernel"], compute_uv=False)
    expected = 0.01 * 0.2 * 32**0.5  # (32, 8)
    # All but one: the LayerNorm that follows takes the mean away.
    assert (sizes[:-1] > 0.5 * expected).all() and (sizes < 1.3 * expected).all()
    assert sizes[-1] < 1e-3 * expected
    # What isn't between two vectors has Adam, whose first step has one size.
    for path in ("gpt/embedding/embeddings", "gpt/logits/kernel"):
        np.testing.assert_allclose(np.abs(steps[path]), 0.005, rtol=0.05)


def test_lstm_leaves_what_it_promises(load_recipe, text_file, tmp_path, capsys):
    folder = tmp_path / "run"
    load_recipe("lstm").main(text=text_file, output_dir=folder, seed=1, **TINY)
    assert {path.name for path in folder.iterdir()} == {
        "model.keras",
        "vocabulary.json",
        "history.csv",
        "learning_curve.png",
        "samples.txt",
        "metrics.json",
    }
    record = json.loads((folder / "metrics.json").read_text())
    assert record["metrics"]["test_characters"] == 175
    assert record["throughput"]["unit"] == "characters/s"
    assert capsys.readouterr().out == ""

    model = keras.saving.load_model(folder / "model.keras")
    vocabulary = Characters.load(folder / "vocabulary.json")
    prompt = vocabulary.encode("\nin")[None]
    tokens = kit.recurrent.generate(model, prompt, 12, temperature=0)
    written = (folder / "samples.txt").read_text().split("\n")[1]
    assert written == "in" + vocabulary.decode(tokens[0])

    # Both scores are of the saved model, and of the n-gram, on the last twentieth.
    text = vocabulary.encode(text_file.read_text())
    train, valid, test = text[:-350], text[-350:-175], text[-175:]
    bits = language_model.make_bits_by_steps(model)
    assert record["metrics"]["bits_per_char"] == pytest.approx(bits(test), rel=1e-4)
    ngram = best_ngram(train, valid, len(vocabulary), max_order=3)
    assert record["baselines"] == {
        "ngram_bits_per_char": pytest.approx(ngram.bits_per_token(test)),
        "ngram_order": ngram.order,
    }


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, r"`epochs` must be an integer in \[1, .*received 0"),
        ({"top_k": 50}, r"`top_k` must be an integer in \[1, 15\], received 50"),
        (
            {"temperatures": (0.5, -1.0)},
            r"`temperatures` must be .*received \[0\.5, -1\.0\]",
        ),
        ({"prompt": ""}, "`prompt` must hold one character"),
        ({"sequence_length": 400}, "fewer than the 3601 of one batch"),
        ({"text": "nowhere.txt"}, "text='nowhere.txt' can't be read"),
        ({"dropout": 1.5}, r"`dropout` must be .*received 1\.5"),
    ],
)
def test_lstm_refuses_bad_input_before_it_trains(
    load_recipe, text_file, tmp_path, wrong, message
):
    arguments = {"text": text_file, "output_dir": tmp_path, **TINY, **wrong}
    with pytest.raises(ValueError, match=message):
        load_recipe("lstm").main(**arguments)


@pytest.mark.learn
def test_lstm_beats_the_best_ngram(load_recipe, tmp_path):
    record = load_recipe("lstm").main(output_dir=tmp_path, verbose=0)
    bits = record["metrics"]["bits_per_char"]
    assert bits < record["baselines"]["ngram_bits_per_char"]
    assert bits > 1  # less would mean that held-out text is known
