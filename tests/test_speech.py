"""The speech recognizer: CTC, decoding, frames, streaming, learning."""

import itertools

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit.lab.ngram import NGram
from kit.speech import (
    LetterModel,
    Listener,
    SpeechRecognizer,
    beam_search,
    ctc_loss,
    greedy,
    speech_recognizer,
)

numpy = ops.convert_to_numpy


def tiny(**options):
    """A recognizer of the letters a, b and c."""
    return speech_recognizer(
        **{"layer": "gru", "units": (12,), "alphabet": "abc", "num_mel_bins": 8}
        | options
    )


# --- CTC ------------------------------------------------------------------------


def text_of(path):
    """Repeated letters merged, then blanks removed."""
    merged = [k for k, _ in itertools.groupby(path)]
    return tuple(k for k in merged if k)


def all_texts(y):
    """The probability of each text: the sum over all paths. y is (T, K)."""
    found: dict = {}
    for path in itertools.product(range(y.shape[1]), repeat=len(y)):
        p = np.prod(y[np.arange(len(y)), path])
        found[text_of(path)] = found.get(text_of(path), 0.0) + p
    return found


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


TOKENS = np.array([[1, 2, 0], [1, 1, 0], [2, 1, 2], [2, 0, 0], [1, 0, 0]], "int32")
NUM_TOKENS = np.array([2, 2, 3, 1, 0], "int32")
NUM_FRAMES = np.array([5, 3, 4, 1, 2], "int32")
LOGITS = np.random.default_rng(0).normal(size=(5, 5, 3)).astype("float32")


def losses_by_hand(logits, num_frames):
    return [
        -np.log(all_texts(softmax(x[:frames]))[tuple(row[:number])])
        for x, row, number, frames in zip(
            logits.astype("float64"), TOKENS, NUM_TOKENS, num_frames, strict=True
        )
    ]


def test_ctc_loss_by_hand():
    assert text_of((3, 3, 0, 1, 0, 2, 2)) == (3, 1, 2)
    assert text_of((0, 1, 1, 0, 1)) == (1, 1)
    loss = numpy(ctc_loss(TOKENS, LOGITS, NUM_TOKENS, NUM_FRAMES))
    np.testing.assert_allclose(loss, losses_by_hand(LOGITS, NUM_FRAMES), rtol=1e-5)
    # Two frames, all probabilities 1/3: the paths a a, a _ and _ a.
    one = ctc_loss([[1]], np.zeros((1, 2, 3), "float32"), [1], [2])
    np.testing.assert_allclose(numpy(one), [-np.log(3 / 9)], rtol=1e-6)


def test_ctc_gradient_by_hand_in_a_compiled_function():
    """Lengths are data: another call of the same program has other ones."""

    @kit.compiled
    def loss_and_gradient(logits, tokens, num_tokens, num_frames):
        def loss(x):
            return ops.sum(ctc_loss(tokens, x, num_tokens, num_frames))

        return loss(logits), kit.gradient(loss, logits)

    for num_frames in (NUM_FRAMES, NUM_FRAMES[[2, 1, 0, 4, 3]]):
        loss, gradient = loss_and_gradient(LOGITS, TOKENS, NUM_TOKENS, num_frames)
        expected = np.sum(losses_by_hand(LOGITS, num_frames))
        np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
        gradient, step = numpy(gradient), 1e-4
        for i, t, k in [(0, 0, 1), (0, 4, 0), (1, 1, 0), (2, 2, 2), (3, 0, 2)]:
            up, down = LOGITS.astype("float64"), LOGITS.astype("float64")
            up[i, t, k] += step
            down[i, t, k] -= step
            by_hand = [sum(losses_by_hand(x, num_frames)) for x in (up, down)]
            difference = (by_hand[0] - by_hand[1]) / (2 * step)
            assert gradient[i, t, k] == pytest.approx(difference, abs=1e-4)
        after_the_end = np.arange(5) >= num_frames[:, None]
        np.testing.assert_array_equal(gradient[after_the_end], 0.0)


# --- Decoding -------------------------------------------------------------------


@pytest.mark.once
def test_greedy_reads_the_best_path():
    path = [0, 2, 2, 0, 2, 1, 1, 3, 0]
    assert greedy(np.eye(4, dtype="float32")[path]) == [2, 2, 1, 3]
    assert greedy(np.eye(4, dtype="float32")[[0, 0]]) == []
    logits = np.random.default_rng(1).normal(size=(6, 20, 5)).astype("float32")
    decoded, _ = ops.ctc_decode(logits, np.full(6, 20), strategy="greedy")
    for row, expected in zip(logits, numpy(decoded)[0], strict=True):
        assert greedy(row) == [k for k in expected.tolist() if k >= 0]


@pytest.mark.once
def test_beam_search_finds_the_best_text():
    rng, differs = np.random.default_rng(2), 0
    for _ in range(20):
        y = softmax(1.5 * rng.normal(size=(6, 3)))
        every = all_texts(y)
        best = list(max(every, key=lambda text: every[text]))
        assert beam_search(np.log(y), beam_width=200, least=0.0) == best
        differs += greedy(y) != best
    assert differs > 3  # or the test would say nothing


@pytest.mark.once
def test_beam_search_with_a_language_model_by_hand():
    letters = LetterModel(["ab", "ab", "ba", "abb"], "ab", order=3)
    rng, differs = np.random.default_rng(3), 0
    for _ in range(20):
        y = softmax(rng.normal(size=(5, 3)))

        def score(text, y=y):
            tokens = np.array([0, *text, 0])
            p = letters.ngram.probabilities(tokens)[1:]  # given the sentence's begin
            return np.log(all_texts(y)[text]) + 0.7 * np.log(p).sum() + 0.3 * len(text)

        best = max(all_texts(y), key=score)
        found = beam_search(np.log(y), 200, letters, 0.7, 0.3, least=0.0)
        assert found == list(best)
        differs += found != beam_search(np.log(y), 200, least=0.0)
    assert differs > 3


@pytest.mark.once
@pytest.mark.parametrize("smoothing", ["kneser_ney", "witten_bell"])
def test_next_probabilities_are_those_of_texts(smoothing):
    rng = np.random.default_rng(0)
    model = NGram(4, smoothing).fit(rng.integers(0, 3, 300), 5)
    for context in ([0], [1, 2], [2, 1, 0], [0, 1, 2, 2, 1], [4, 0], [0, 4]):
        found = model.next_probabilities(context)
        assert found.sum() == pytest.approx(1.0)
        for token in range(5):
            whole = model.probabilities([*context, token])[-1]
            assert found[token] == pytest.approx(whole)


@pytest.mark.once
def test_letter_model_learns_spelling():
    letters = LetterModel(["two", "too", "two two"], " otw", order=3)
    t, w, o = (" otw".index(x) + 1 for x in "two")
    after_tw = np.exp(letters.log_probs([t, w]))
    assert after_tw.argmax() == o and after_tw.sum() == pytest.approx(1.0)
    assert np.exp(letters.log_probs([])).argmax() == t
    assert letters.log_probs([t, w, o])[0] > np.log(0.3)  # the end


# --- Frames ---------------------------------------------------------------------


def test_spectrum_by_hand():
    model = tiny(windows_per_frame=1, num_mel_bins=8)
    audio = np.random.default_rng(0).normal(0, 0.1, 1200).astype("float32")
    (frames,), (number,) = model.frames([audio])
    assert (model.frame_step, model.frame_length) == (80, 320)
    assert number == len(frames) == 1200 // 80 - 3

    def mel(f):
        return 1127 * np.log(1 + f / 700)

    edges = np.linspace(mel(60), mel(3800), 10)
    bins = mel(np.arange(129) * 8000 / 256)[:, None]
    up = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    down = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    bank = np.maximum(0, np.minimum(up, down))
    bank[0] = 0
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    for t in (0, 5, number - 1):
        middle = 80 * (t + 2)
        window = np.zeros(256)
        window[28:228] = hann * audio[middle - 100 : middle + 100]
        power = np.abs(np.fft.rfft(window)) ** 2 @ bank
        expected = 10 * np.log10(np.maximum(power, 1e-4)) / 20
        np.testing.assert_allclose(frames[t], expected, atol=2e-3)


@pytest.mark.parametrize("windows", [1, 3, 4])
def test_a_frame_depends_on_its_samples_only(windows):
    model = tiny(windows_per_frame=windows)
    step, length = model.frame_step, model.frame_length
    rng = np.random.default_rng(0)
    audio = rng.normal(0, 0.1, 2000).astype("float32")
    (frames,), _ = model.frames([audio])
    for place in (0, 700, 1300, 1999):
        other = audio.copy()
        other[place] += 10.0
        (changed,), _ = model.frames([other])
        for t in np.flatnonzero((changed != frames).any(axis=1)):
            assert step * t <= place < step * t + length
    # The same frames alone, in a batch with longer audio, and one by one.
    both, numbers = model.frames([audio[:1000], audio], batch_size=1)
    (alone,), (number,) = model.frames([audio[:1000]])
    assert numbers[0] == number == len(alone)
    np.testing.assert_allclose(both[0, :number], alone, atol=1e-4)
    np.testing.assert_array_equal(both[0, number:], 0.0)
    piece = audio[None, 2 * step : 2 * step + length]
    np.testing.assert_allclose(numpy(model.frontend(piece))[0, 0], frames[2], atol=1e-4)


# --- The model ------------------------------------------------------------------


def tones(number=48, seed=0):
    """Letters as tones of different pitch, with pauses of different length."""
    rng = np.random.default_rng(seed)
    audio, texts = [], []
    for _ in range(number):
        text = "".join(rng.choice(list("abc"), rng.integers(1, 4)))
        parts = [rng.normal(0, 0.003, rng.integers(400, 900))]
        for letter in text:
            pitch = {"a": 300, "b": 900, "c": 2500}[letter]
            tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(900) / 8000)
            parts += [tone, rng.normal(0, 0.003, rng.integers(500, 900))]
        audio.append(np.concatenate(parts).astype("float32"))
        texts.append(text)
    return audio, texts


def trained(epochs=30, **options):
    model = tiny(**options)
    kit.initialize_weights(model, 0)
    model.compile(keras.optimizers.Adam(2e-2))
    x, y = model.encode(*tones())
    history = model.fit(x, y, batch_size=16, epochs=epochs, verbose=0)
    return model, history


def test_learns_is_saved_and_hears_while_audio_arrives(tmp_path):
    model, history = trained()
    assert history.history["loss"][-1] < 0.2 * history.history["loss"][0]
    audio, texts = tones(12, seed=1)
    heard = model.transcribe(audio, batch_size=5)
    assert np.mean([a == b for a, b in zip(heard, texts, strict=True)]) > 0.8
    letters = LetterModel(texts, "abc", order=2)
    read = model.transcribe(audio, letters, beam_width=4, lm_weight=0.1)
    assert np.mean([a == b for a, b in zip(read, texts, strict=True)]) > 0.8

    x, y = model.encode(audio, texts)
    loss = model.evaluate(x, y, batch_size=12, verbose=0)
    by_hand = ctc_loss(y["tokens"], model(x), y["num_tokens"], y["num_frames"])
    assert loss == pytest.approx(numpy(by_hand).mean(), rel=1e-4)

    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert isinstance(loaded, SpeechRecognizer) and loaded.alphabet == "abc"
    assert loaded.transcribe(audio) == heard

    rng = np.random.default_rng(0)
    rows = loaded.log_probs(audio)
    for samples, expected, whole in zip(audio[:4], heard, rows, strict=False):
        listener, text, first = Listener(loaded), "", 0
        while first < len(samples):
            number = int(rng.integers(1, 700))
            text += listener.hear(samples[first : first + number])
            first += number
        text += listener.finish()
        assert text == listener.text == expected
        np.testing.assert_allclose(listener.log_probs, whole, atol=1e-4)
    # A sound shorter than a frame is filled up with silence.
    short = Listener(loaded)
    short.hear(audio[0][:100])
    short.finish()
    np.testing.assert_allclose(
        short.log_probs, loaded.log_probs([audio[0][:100]])[0], atol=1e-4
    )


@pytest.mark.variants
@pytest.mark.parametrize("layer", ["rnn", "lstm"])
def test_other_layers(layer):
    model = tiny(layer=layer, units=(4, 4), dropout=0.1)
    model.compile("adam")
    audio, texts = tones(4)
    model.fit(*model.encode(audio, texts), epochs=1, verbose=0)
    listener = Listener(model)
    listener.hear(audio[0])
    listener.finish()
    assert listener.text == model.transcribe(audio[:1])[0]


def test_encodes_texts():
    model = tiny()
    audio = [np.zeros(n, "float32") for n in (2400, 1200, 1)]
    x, y = model.encode(audio, ["abca", "b", ""])
    assert (model.frame_step, model.frame_length) == (240, 480)
    assert x.shape == (3, 9, 24)
    assert y["tokens"].tolist() == [[1, 2, 3, 1], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert y["num_tokens"].tolist() == [4, 1, 0]
    assert y["num_frames"].tolist() == [9, 4, 1]
    assert model.decode([1, 2, 3]) == "abc"


AUDIO = [np.zeros(1200, "float32")] * 2


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny(layer="cnn"), "layer.*'rnn', 'lstm', 'gru'.*'cnn'"),
        (lambda: tiny(units=()), "units"),
        (lambda: tiny(sampling_rate=8001), "multiple of 200.*8001"),
        (lambda: tiny(alphabet="aba"), "each letter once.*'aba'"),
        (lambda: tiny(alphabet=""), "each letter once.*''"),
        (lambda: tiny().compile("adam", "mse"), "own loss.*'mse'"),
        (lambda: tiny().encode(AUDIO, ["a"]), "2 utterances and 1 texts"),
        (lambda: tiny().encode(AUDIO, ["a", "de"]), "'abc'.*'de'"),
        (lambda: tiny().encode(AUDIO, ["a", "aab"]), None),
        (lambda: tiny().encode(AUDIO, ["a", "aabc"]), "number 1.*needs 5.*has 4"),
        (lambda: tiny().frames([np.zeros(0, "float32")]), "audio"),
        (lambda: tiny().transcribe(AUDIO, beam_width=0), "beam_width.*0"),
        (lambda: LetterModel(["abd"], "abc"), "'abc'.*'d'"),
        (lambda: beam_search(np.zeros((3, 4)), least=1.0), "least.*1.0"),
        (lambda: greedy(np.zeros(3)), "log_probs"),
        (
            lambda: ctc_loss([[1]], np.zeros((2, 2, 3), "float32"), [1], [2]),
            "B=1",
        ),
        (
            lambda: SpeechRecognizer(tiny().frontend, tiny().network, 480, 240),
            r"\(B, T, 28\)",
        ),
        (
            lambda: SpeechRecognizer(tiny().frontend, tiny().network, 500, 240, "abc"),
            "multiple.*500 and 240",
        ),
    ],
)
def test_refuses(make, message):
    if message is None:
        make()
    else:
        with pytest.raises((ValueError, TypeError), match=message):
            make()


@pytest.mark.once
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens", [[4], [1]], "from 1 to 3.*1 to 4"),
        ("tokens", [[0], [1]], "from 1 to 3.*0 to 1"),
        ("num_tokens", [2, 1], "2 in 1 columns"),
        ("num_frames", [1, 0], "number 1 of `y` needs 1 frames, and has 0"),
        ("num_frames", [1], "num_frames.*B"),
        ("extra", [1], "received the keys.*extra"),
    ],
)
def test_refuses_targets(name, value, message):
    model = tiny()
    model.compile("adam")
    x, y = model.encode(AUDIO, ["a", "b"])
    wrong = {**y, name: np.array(value, "int32")}
    with pytest.raises(ValueError, match=message):
        model.fit(x, wrong, verbose=0)
    with pytest.raises(ValueError, match=message):
        model.evaluate(x, wrong, verbose=0)
    with pytest.raises(ValueError, match="sample_weight"):
        model.fit(x, y, sample_weight=np.ones(2), verbose=0)
    with pytest.raises(ValueError, match="`y` must be a dict.*ndarray"):
        model.fit(x, y["tokens"], verbose=0)
