"""The voices of eSpeak NG, and the recipe of speech recognition."""

import json
import re
from contextlib import contextmanager
from pathlib import Path

import keras
import numpy as np
import pytest
from interruptions import check_resumed_run

import kit
from kit.data import speech

loader = pytest.importorskip("espeakng_loader")
pytest.importorskip("jiwer")

# --- Voices ---------------------------------------------------------------------


@pytest.mark.once
def test_voices_are_in_one_part():
    parts = {part: speech.voices(part) for part in speech.SPEAKERS}
    speakers = {
        part: {name.partition("+")[2] for name in names}
        for part, names in parts.items()
    }
    assert len(speakers["test"]) == 21 and len(speakers["validation"]) == 10
    assert len(speakers["train"]) == 104 - 21 - 10 - 26
    assert not any(
        name.startswith(speech.ACCENTS["scotland"]) for name in parts["train"]
    )
    assert {x.partition("+")[0] for x in speech.voices("test", "scotland")} == {
        "gmw/en-GB-scotland"
    }

    folder = Path(loader.get_data_path()) / "voices" / "!v"

    def settings(name):
        lines = (folder / name).read_text(errors="replace").lower().splitlines()
        lines = [" ".join(line.partition("//")[0].split()) for line in lines]
        about = ("name", "language", "gender", "maintainer", "status")
        return {line for line in lines if line and not line.startswith(about)}

    every = {name: settings(name) for part in speakers.values() for name in part}
    for i, part in enumerate(speech.SPEAKERS):
        for other in speech.SPEAKERS[:i]:
            assert not speakers[part] & speakers[other]
            for a in speakers[part]:
                for b in speakers[other]:
                    shared = every[a] & every[b]
                    assert len(shared) <= 0.5 * len(every[a] | every[b]), (a, b)


@pytest.mark.once
def test_speaks_with_speed_and_pitch():
    audio = speech.say("turn on the light")
    assert audio.dtype == "float32" and audio.ndim == 1
    assert 0.05 < abs(audio).max() <= 1.1
    assert 0.8 < len(audio) / speech.SAMPLING_RATE < 2.0
    np.testing.assert_array_equal(speech.say("turn on the light"), audio)
    slow = speech.say("turn on the light", words_per_minute=80)
    assert len(slow) > 1.4 * len(audio)
    other = speech.say("turn on the light", "gmw/en-GB-scotland+f3")
    assert other.shape != audio.shape or not np.array_equal(other, audio)

    def pitch(samples):  # of a long vowel
        middle = samples[len(samples) // 2 :][:1200]
        rows = np.correlate(middle, middle, "full")[len(middle) :]
        return 8000 / (25 + rows[25:160].argmax())

    low, high = (pitch(speech.say("ah", pitch=x)) for x in (20, 90))
    assert high > 1.2 * low


@pytest.mark.once
def test_recordings_are_repeatable():
    texts = ["one two three", "call anna on friday"] * 3
    first, again, other = (speech.recordings(texts, "test", seed=s) for s in (0, 0, 1))
    assert first.texts == texts and len(set(first.voices)) > 3
    for a, b, c in zip(first.audio, again.audio, other.audio, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
        assert 0.1 * 0.9 < abs(a).max() <= 1.0001
    assert set(first.voices) <= set(speech.voices("test"))


@pytest.mark.once
def test_varied_voices(monkeypatch):
    asked = []

    @contextmanager
    def synthesizer():
        def speak(text, voice, words_per_minute, pitch):
            asked.append(words_per_minute)
            tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000)
            return (10_000 * tone).astype("int16"), 16_000

        yield speak

    monkeypatch.setattr(speech, "synthesizer", synthesizer)

    def factors(**options):  # by which the tone is higher, and the samples are fewer
        audio = speech.recordings(["one"] * 60, seed=3, **options).audio
        high = [8000 * abs(np.fft.rfft(x)).argmax() / x.size / 1000 for x in audio]
        return np.array(high), np.array([8000 / speech.trimmed(x).size for x in audio])

    high, short = factors()
    np.testing.assert_allclose(high, 1, atol=1e-3)
    assert min(asked) < 140 and max(asked) > 180
    asked.clear()
    high, short = factors(vary=True)
    np.testing.assert_allclose(high, short, rtol=0.01)
    assert 0.83 < high.min() < 0.88 and 1.14 < high.max() < 1.21
    # As many words per minute as without.
    speeds = np.array(asked) * high
    assert 129 < speeds.min() < 140 and 180 < speeds.max() < 192

    # Six gains, at 0, 800, ..., 4000 Hz: here, the tone is between two of them.
    tone = np.sin(2 * np.pi * 1200 * np.arange(8000) / 8000)
    louder = speech._with_tone(tone, [0.0, 0.0, 20.0, 0.0, 0.0, 0.0])
    np.testing.assert_allclose(louder, 10**0.5 * tone, rtol=1e-3, atol=1e-3)


@pytest.mark.once
def test_sentences_differ_and_have_known_words(monkeypatch):
    texts = speech.sentences(500, seed=3)
    assert len(set(texts)) == 500 == len(texts)
    assert {word for text in texts for word in text.split()} <= set(speech.vocabulary())
    assert not set(speech.sentences(300, seed=4, without=texts)) & set(texts)
    assert texts == speech.sentences(500, seed=3)
    assert set("".join(texts)) <= set(" abcdefghijklmnopqrstuvwxyz")
    monkeypatch.setattr(speech, "TEMPLATES", ("call {name} on {day}",))
    assert len(speech.sentences(56)) == 8 * 7
    with pytest.raises(ValueError, match="number=57 is more"):
        speech.sentences(57)
    often = speech.sentences(500, without=["call anna on friday"], different=False)
    assert len(often) == 500 and len(set(often)) == 55


@pytest.mark.once
@pytest.mark.parametrize("decibels", [20.0, 0.0, -10.0])
def test_noise_has_its_power(decibels):
    audio = np.sin(np.arange(8000) / 5).astype("float32")
    noisy = speech.add_noise(audio, decibels, seed=1)
    ratio = np.square(audio).mean() / np.square(noisy - audio).mean()
    assert 10 * np.log10(ratio) == pytest.approx(decibels, abs=0.01)
    assert not np.array_equal(noisy, speech.add_noise(audio, decibels, seed=2))


@pytest.mark.once
def test_wav_files(tmp_path):
    from scipy.io import wavfile

    audio = (0.5 * np.sin(np.arange(4000) / 3)).astype("float32")
    speech.write_wav(tmp_path / "a.wav", audio)
    found = speech.read_wav(tmp_path / "a.wav")
    np.testing.assert_allclose(found, audio, atol=1e-4)
    # Two channels, another rate, other formats.
    time = np.arange(16_000) / 16_000
    tone = 0.5 * np.sin(2 * np.pi * 440 * time)
    for dtype, scale, zero in (("uint8", 127, 128), ("int16", 32767, 0), ("f4", 1, 0)):
        both = np.stack([tone, tone], axis=1) * scale + zero
        wavfile.write(tmp_path / "b.wav", 16_000, both.astype(dtype))
        found = speech.read_wav(tmp_path / "b.wav")
        expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
        np.testing.assert_allclose(found[100:-100], expected[100:-100], atol=0.02)
    wavfile.write(tmp_path / "short.wav", 16_000, np.zeros(100, "int16"))
    with pytest.raises(ValueError, match=r"short.wav must hold 0.1 s.*100"):
        speech.read_wav(tmp_path / "short.wav")
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(ValueError, match="text.wav must be a WAV file"):
        speech.read_wav(tmp_path / "text.wav")
    with pytest.raises(OSError):
        speech.read_wav(tmp_path / "none.wav")


@pytest.mark.once
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: speech.say("a", "nobody"), "voice.*'nobody'"),
        (lambda: speech.say("a", "gmw/en-US+nobody"), "voice.*nobody"),
        (lambda: speech.say("a", pitch=100), "pitch.*100"),
        (lambda: speech.say("a", words_per_minute=20), "words_per_minute.*20"),
        (lambda: speech.voices("everyone"), "part.*'everyone'"),
        (lambda: speech.voices("test", "mars"), "accent.*'mars'"),
        (lambda: speech.recordings([]), "texts"),
        (lambda: speech.add_noise(np.zeros((2, 3)), 0.0), "audio"),
    ],
)
def test_voices_refuse(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- The recipe -----------------------------------------------------------------

TINY = {
    "units": (8,),
    "train_sentences": 24,
    "test_sentences": 2,
    "templates": 1,
    "epochs": 1,
    "batch_size": 12,
    "beam_width": 2,
    "verbose": 0,
}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("speech")


@pytest.fixture
def few_words(monkeypatch):
    """Templates of four words."""
    monkeypatch.setattr(speech, "vocabulary", lambda: ["one", "two", "the", "light"])


@pytest.mark.once  # test_exchange.py runs it under each backend
def test_recipe_leaves_what_it_promises(recipe, tmp_path, few_words, capsys):
    record = recipe.main(output_dir=tmp_path, seed=1, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "sentences.txt",
        "history.csv",
        "metrics.json",
        "result.png",
        "sentences.png",
        "clean.wav",
        "noisy.wav",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    rates = [f"wer{x}" for x in ("", "_20db", "_10db", "_5db", "_0db")]
    assert {f"test_{x}" for x in rates} < set(record["metrics"])
    assert {f"test_greedy_{x}" for x in rates} < set(record["metrics"])
    assert set(record["baselines"]) == {f"dtw_test_{x}" for x in rates[:3]}
    assert record["metrics"]["streamed_differently"] == 0.0

    lines = (tmp_path / "sentences.txt").read_text().splitlines()
    assert len(lines) == 24 and all(re.match(" [a-z]", line) for line in lines)

    # Raw audio is all that the saved model needs.
    model = keras.saving.load_model(tmp_path / "model.keras")
    audio = speech.read_wav(tmp_path / "clean.wav")
    (heard,) = model.transcribe([audio])
    capsys.readouterr()
    result = recipe.main(wav=tmp_path / "noisy.wav", output_dir=tmp_path, verbose=1)
    shown = capsys.readouterr().out
    assert set(result) == {"heard", "text"} and result["text"] in shown
    result = recipe.main(wav=tmp_path / "clean.wav", output_dir=tmp_path, verbose=0)
    assert result["heard"] == heard.strip() and not capsys.readouterr().out
    assert json.loads((tmp_path / "metrics.json").read_text()) == record


@pytest.mark.once
def test_a_resumed_run_has_the_same_figures(recipe, tmp_path, few_words, monkeypatch):
    timed = {"milliseconds_per_frame", "data_seconds"}
    check_resumed_run(recipe.main, tmp_path, monkeypatch, (1,), timed, **TINY)


@pytest.mark.once
def test_train_and_test_share_nothing(recipe, few_words):
    for validation in (False, True):
        data = recipe.load_data(300, 20, 1, validation, 0)
        assert not set(data.train.texts) & {*data.test.texts, *data.new_accent.texts}
        assert not set(data.test.texts) & set(data.new_accent.texts)
        heard = {voice.partition("+")[2] for voice in data.train.voices}
        heard |= {voice.partition("+")[2] for voice in data.words.voices}
        for part in (data.test, data.new_accent):
            assert not heard & {voice.partition("+")[2] for voice in part.voices}
        assert not any("scotland" in voice for voice in data.train.voices)
        assert all("scotland" in voice for voice in data.new_accent.voices)
        again = recipe.load_data(10, 20, 1, validation, 5)
        assert again.test.texts == data.test.texts
        np.testing.assert_array_equal(again.test.audio[3], data.test.audio[3])


@pytest.mark.once
def test_templates_stretch_to_the_words(recipe):
    class Plain(recipe.Templates):
        def features(self, audio):
            return [np.asarray(x, "float64")[:, None] for x in audio]

    audio = [np.array([5.0, 6, 7, 8]), np.array([9.0, 3, 3, 3, 9])]
    words = recipe.Utterances(audio, ["up", "dip"], ["", ""])
    templates = Plain(None, words, penalty=0.1)
    assert templates.transcribe([5, 6, 7, 8]) == "up"
    assert templates.transcribe([5, 5, 5, 6, 6, 7, 8, 8, 8]) == "up"  # slower
    assert templates.transcribe([6, 8]) == "up"  # faster
    assert templates.transcribe([0, 9, 3, 9, 0, 0, 5, 6, 7, 8, 5, 7, 8]) == "dip up up"
    # The whole costs a penalty for each word: few long words win.
    flat = recipe.Utterances([np.array([4.0, 4.0])], ["hum"], [""])
    assert Plain(None, flat, penalty=0.1).transcribe([4.0] * 9) == "hum"


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_sentences": 0}, "train_sentences.*0"),
        ({"epochs": 0}, "epochs.*0"),
        ({"beam_width": 0}, "beam_width.*0"),
        ({"lm_weight": -1.0}, "lm_weight.*-1.0"),
        ({"templates": 0}, "templates.*0"),
        ({"units": (0,)}, "units.*0"),
        ({"wav": Path("none.wav")}, "wav: .*model.keras is missing"),
    ],
)
def test_recipe_refuses(recipe, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(**{**TINY, "output_dir": tmp_path, **arguments})


@pytest.mark.once
def test_leaves_out_what_training_cannot_use(recipe):
    model = kit.speech_recognizer("gru", (2,))
    for text, needed in (("one", 3), ("three", 6), ("call anna", 11)):
        enough = np.zeros(240 * (needed + 1), "float32")
        assert recipe.suits(model, enough, text)
        assert not recipe.suits(model, enough[:-240], text)
        model.encode([enough], [text])
        with pytest.raises(ValueError, match=f"needs {needed} frames"):
            model.encode([enough[:-240]], [text])
    assert recipe.suits(model, np.zeros(21_600, "float32"), "one")
    assert not recipe.suits(model, np.zeros(21_601, "float32"), "one")


@pytest.mark.learn
def test_learns_sentences(recipe, tmp_path):
    record = recipe.main(output_dir=tmp_path, verbose=0)
    assert record["metrics"]["test_wer"] < 0.03
    assert record["metrics"]["test_greedy_wer"] < 0.2  # without the space: 0.2
    assert record["baselines"]["dtw_test_wer"] > 0.4


@pytest.mark.once
def test_layers_have_as_many_parameters(recipe):
    sizes = [
        kit.speech_recognizer(layer, units).count_params()
        for layer, units in recipe.UNITS.items()
    ]
    assert np.ptp(sizes) <= 0.001 * max(sizes)
