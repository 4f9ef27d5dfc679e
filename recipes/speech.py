r"""Recognizes speech: short sentences and rows of digits, letter by letter.

You will learn: how a recurrent network learns to spell what it hears although nobody
tells it when a letter is spoken (CTC, `kit/speech.py`); how a language model of letters
(`kit/lab/ngram.py`) corrects it; how words appear while the audio still arrives; how
speech recognizers are scored, clean and in noise.

    KERAS_BACKEND=jax python recipes/speech.py
    KERAS_BACKEND=torch python recipes/speech.py --layer lstm --seed 3 --validation
    KERAS_BACKEND=jax python recipes/speech.py --wav me.wav

The speech comes from eSpeak NG, a synthesizer under the GNU General Public License 3 or
later (`python -m pip install espeakng-loader`). No speaker and no sentence of the test
occurs in training. The baseline compares with recordings of single words (dynamic time
warping).

Expected result: 0.5 % wrong words with the language model and 9 to 11 % without, on 150
clean sentences by 21 speakers that aren't in the training (JAX, seeds 0 and 1). In
noise of 10 dB, it is 6 and 24 to 26 %; in an accent that isn't in the training, 4 to 6
and 24 to 26 %. The baseline has 54 to 57 % clean and 95 % in this noise. The language
model knows the patterns that all sentences are made of. The run takes four and a half
minutes of one core on JAX, and 4.2 GB of memory. On PyTorch, it took nine minutes, and
0.5 % were wrong (seed 0); on TensorFlow, it wasn't run. All speakers are made by the
same rules, so this says nothing about people.

Paper: Graves et al., 2006, https://doi.org/10.1145/1143844.1143891. Differences:
letters instead of phonemes, layers that only look back, and a beam search with a
language model (Hannun et al., 2014, https://arxiv.org/abs/1408.2873).
"""

import itertools
import math
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jiwer
import keras
import numpy as np
from scipy.fft import dct

import kit
from kit import checks
from kit.data import speech
from kit.data.speech import SAMPLING_RATE, Utterances
from kit.lab.run import COLORS, DARK, Run, command_line
from kit.speech import LetterModel, Listener, beam_search, greedy

# Layers with the same number of parameters, 262,600 up to 200.
UNITS = {"rnn": (272, 272), "lstm": (128, 128), "gru": (150, 150)}
NOISE = (20, 10, 5, 0)  # decibels of the noisy tests
DTW_NOISE = (None, 20, 10)  # those of the baseline, which is lost in louder noise
MAX_SECONDS = 2.7  # of a training sentence
# Seeds of the sentences and voices that are tested, the same in each run.
TEST_SEED, ACCENT_SEED = 2006, 2007


class Data(NamedTuple):
    """Speech to learn from and to test on.

    Attributes:
        train: Utterances of the training.
        test: Utterances by other speakers, with other sentences.
        new_accent: Utterances by speakers of the test in an accent of which none is in
            the training.
        words: Single words by speakers of the training, for the baseline.
    """

    train: Utterances
    test: Utterances
    new_accent: Utterances
    words: Utterances


def load_data(
    train_sentences: int,
    test_sentences: int,
    templates: int,
    validation: bool,
    seed: int,
) -> Data:
    """Returns speech, 8,000 samples each second.

    To use your own data, return your recordings as `Utterances`, and record each word
    a few times alone for the baseline. Letters other than the space and a to z must be
    passed to `kit.speech_recognizer` as `alphabet`.
    """
    part = "validation" if validation else "test"
    number = 2 * test_sentences
    tested = speech.sentences(number, TEST_SEED + validation)
    # A sentence may occur often, by another voice each time.
    texts = speech.sentences(train_sentences, seed, without=tested, different=False)
    train = speech.recordings(texts, "train", seed=seed, vary=True)
    # Half of the training is noisy: from 0 to 30 decibels.
    rng = np.random.default_rng(seed)
    for i in np.flatnonzero(rng.random(len(texts)) < 0.5):
        decibels, own = rng.uniform(0, 30), int(rng.integers(2**31))
        train.audio[i] = speech.add_noise(train.audio[i], decibels, own)
    return Data(
        train,
        speech.recordings(tested[::2], part, seed=TEST_SEED),
        speech.recordings(tested[1::2], part, speech.NEW_ACCENT, ACCENT_SEED),
        speech.recordings(templates * speech.vocabulary(), "train", seed=seed),
    )


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Speech recognition",
    "place": 22,
    "score": "test_wer",
    "larger_is_better": False,
    "curve": "loss",
    "quick": "--train-sentences 200 --test-sentences 10 --templates 1 --epochs 2",
}


ACCEPTED = {
    "units": checks.sequence(checks.SIZE),
    "train_sentences": checks.integer("[10, 10**5]"),
    "test_sentences": checks.integer("[1, 1000]"),
    "epochs": checks.SIZE,
    "batch_size": checks.SIZE,
    "learning_rate": checks.POSITIVE,
    "beam_width": checks.SIZE,
    "lm_weight": checks.WEIGHT,
    "letter_bonus": checks.FINITE,
    "order": checks.integer("[1, 100]"),
    "templates": checks.integer("[1, 100]"),
}


def main(
    *,
    layer: Literal["rnn", "lstm", "gru"] = "gru",
    units: tuple[int, ...] = (),
    train_sentences: int = 16_000,
    test_sentences: int = 150,
    epochs: int = 9,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    beam_width: int = 16,
    lm_weight: float = 1.2,
    letter_bonus: float = 1.5,
    order: int = 6,
    templates: int = 10,
    validation: bool = False,
    wav: Path | None = None,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains and tests a speech recognizer, or transcribes a WAV file with it.

    Args:
        layer: Kind of the recurrent layers.
        units: Size of the state of each layer. If not given, all kinds have about as
            many parameters: 272 272 (rnn), 128 128 (lstm), 150 150 (gru).
        train_sentences: Sentences to learn from, each spoken once.
        test_sentences: Sentences to test on.
        epochs: Passes over the training sentences.
        batch_size: Sentences in a gradient step.
        learning_rate: Step size of Adam at the start; it falls to 0 on a half cosine.
        beam_width: Beginnings of the text that the beam search keeps.
        lm_weight: How much the language model counts in the beam search.
        letter_bonus: Reward of the beam search for each letter.
        order: Letters of the language model's longest n-grams.
        templates: Recordings of each word for the baseline.
        validation: Test on other speakers and sentences, which aren't those of the
            test. Use it to choose settings.
        wav: WAV file to transcribe with the model of an earlier run, which is in
            `output_dir`. Nothing is trained then.
        seed: Seed of all random draws, except for those of the test data.
        output_dir: Folder for the results; runs/speech-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json; with `wav`, the text with and without the language
        model.
    """
    arguments = dict(locals())
    checks.check("speech", arguments, ACCEPTED)
    search = {"beam_width": beam_width, "lm_weight": lm_weight}
    search |= {"letter_bonus": letter_bonus}
    if wav is not None:
        folder = Path("runs") / f"speech-{keras.backend.backend()}-{seed}"
        folder = folder if output_dir is None else output_dir
        result = transcribe_file(wav, folder, order, search, verbose)
    else:
        run = Run(
            "speech", seed=seed, output_dir=output_dir, resume=resume, config=arguments
        )
        start = time.perf_counter()
        data = load_data(train_sentences, test_sentences, templates, validation, seed)
        model = kit.speech_recognizer(layer, units or UNITS[layer])
        kit.initialize_weights(model, seed)
        # In silence, the network can tell only the first frame from the others, and
        # would learn to guess a sentence's first letter there. A space takes its place.
        texts = [" " + text for text in data.train.texts]
        pairs = zip(data.train.audio, texts, strict=True)
        kept = [(audio, text) for audio, text in pairs if suits(model, audio, text)]
        frames, targets = model.encode(*zip(*kept, strict=True))
        data_seconds = time.perf_counter() - start

        steps = epochs * math.ceil(len(frames) / batch_size)
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
        # Gradients through many frames can explode: their norm is clipped.
        model.compile(keras.optimizers.Adam(schedule, clipnorm=1.0))
        history = model.fit(
            frames,
            targets,
            batch_size=batch_size,
            epochs=epochs,
            callbacks=[kit.EpochTimer(), run.backup("recognizer")],
            verbose=verbose,
        )
        model.save(run.output_dir / "model.keras")
        sentences = "\n".join(texts)
        (run.output_dir / "sentences.txt").write_text(sentences, encoding="utf-8")

        letters = LetterModel(texts, model.alphabet, order)
        name = "validation" if validation else "test"
        templates_of_words = Templates(model, data.words)
        metrics, baselines = {}, {}
        for decibels in (None, *NOISE):
            audio = with_noise(data.test.audio, decibels)
            level = "" if decibels is None else f"_{decibels}db"
            heard, read = transcribe(model, audio, letters, search)
            spoken = data.test.texts
            metrics[f"{name}_wer{level}"] = jiwer.wer(spoken, read)
            metrics[f"{name}_greedy_wer{level}"] = jiwer.wer(spoken, heard)
            if decibels in DTW_NOISE:
                found = [templates_of_words.transcribe(x) for x in audio]
                baselines[f"dtw_{name}_wer{level}"] = jiwer.wer(spoken, found)
        heard, read = transcribe(model, data.new_accent.audio, letters, search)
        metrics["new_accent_wer"] = jiwer.wer(data.new_accent.texts, read)
        metrics["new_accent_greedy_wer"] = jiwer.wer(data.new_accent.texts, heard)
        metrics |= stream(model, data.test)
        metrics |= {"parameters": model.count_params(), "data_seconds": data_seconds}

        draw_result(run, history, metrics, baselines, name)
        draw_sentences(run, model, data.test, letters, search)
        result = run.finish(
            history=history,
            metrics=metrics,
            baselines=baselines,
            throughput=(
                len(frames) / np.median(history.history["seconds"]),
                "samples/s",
            ),
            compile_seconds=kit.compile_seconds(),
        )
    return result


def suits(model: kit.SpeechRecognizer, audio: np.ndarray, text: str) -> bool:
    """Tells if a sentence suits the training: not too long, and not too fast for CTC.

    All are filled up to the longest, so a few long ones would cost much time.
    """
    number = math.ceil(len(audio) / model.frame_step)
    frames = number + 1 - model.frame_length // model.frame_step
    # A blank must stand between equal letters.
    needed = len(text) + sum(a == b for a, b in itertools.pairwise(text))
    return needed <= frames and len(audio) <= MAX_SECONDS * SAMPLING_RATE


# --- Recognition --------------------------------------------------------------------


def with_noise(audio: list[np.ndarray], decibels: float | None) -> list[np.ndarray]:
    """Returns audio with the same noise in each run, or as it is."""
    if decibels is None:
        return audio
    return [speech.add_noise(x, decibels, seed=i) for i, x in enumerate(audio)]


def transcribe(
    model: kit.SpeechRecognizer,
    audio: list[np.ndarray],
    letters: LetterModel,
    search: dict[str, Any],
) -> tuple[list[str], list[str]]:
    """Returns the texts of the best paths, and those of the beam search."""
    rows = model.log_probs(audio)
    heard = [greedy(x) for x in rows]
    read = [beam_search(x, language_model=letters, **search) for x in rows]
    return (
        [model.decode(tokens).strip() for tokens in heard],
        [model.decode(tokens).strip() for tokens in read],
    )


def stream(model: kit.SpeechRecognizer, data: Utterances) -> dict[str, float]:
    """Transcribes utterances while they arrive, in pieces of 20 ms.

    Returns:
        The computation for a frame, how much later than the end of speech the last
        letter appears, and the share of texts that differ from those of whole
        utterances.
    """
    delays, seconds, wrong = [], [], []
    number = min(30, len(data.audio))
    whole = model.transcribe(data.audio[:number])
    for audio, expected in zip(data.audio[:number], whole, strict=True):
        listener, piece, last = Listener(model), SAMPLING_RATE // 50, 0
        for first in range(0, len(audio) + piece, piece):
            start, before = time.perf_counter(), len(listener.log_probs)
            if first < len(audio):
                added = listener.hear(audio[first : first + piece])
            else:
                added = listener.finish()
            number_of_frames = len(listener.log_probs) - before
            if number_of_frames:
                seconds.append((time.perf_counter() - start) / number_of_frames)
            if added:
                last = len(listener.log_probs) - 1
        heard_until = last * model.frame_step + model.frame_length
        loud = np.flatnonzero(abs(audio) >= 0.01 * abs(audio).max())
        delays.append((heard_until - loud[-1]) / SAMPLING_RATE)
        wrong.append(listener.text != expected)
    return {
        "milliseconds_per_frame": 1e3 * float(np.median(seconds)),
        "delay_milliseconds": 1e3 * float(np.median(delays)),
        "streamed_differently": float(np.mean(wrong)),
    }


def transcribe_file(
    wav: Path, folder: Path, order: int, search: dict[str, Any], verbose: int
) -> dict[str, str]:
    """Prints the words of a WAV file as they are recognized; returns the text.

    Args:
        wav: The file.
        folder: Folder of the run whose model and sentences are used.
        order: Letters of the language model's longest n-grams.
        search: Options of the beam search.
        verbose: 0 prints nothing.
    """
    for path in (folder / "model.keras", folder / "sentences.txt"):
        if not path.exists():
            raise ValueError(
                f"wav: {path} is missing. Train a model first, by the same command "
                "without --wav, or name the folder of a finished run by --output-dir."
            )
    audio = speech.read_wav(wav)
    model = keras.saving.load_model(folder / "model.keras")
    texts = (folder / "sentences.txt").read_text(encoding="utf-8").splitlines()
    letters = LetterModel(texts, model.alphabet, order)
    listener, shown, piece = Listener(model), 0, SAMPLING_RATE // 50
    for first in range(0, len(audio) + piece, piece):
        if first < len(audio):
            listener.hear(audio[first : first + piece])
        else:
            listener.finish()
        words = listener.text.split(" ")
        complete = len(words) - (first < len(audio))  # a space ends a word
        for word in words[shown:complete]:
            if verbose and word:
                print(
                    f"{min(first + piece, len(audio)) / SAMPLING_RATE:6.2f} s  {word}"
                )
        shown = max(shown, complete)
    tokens = beam_search(np.array(listener.log_probs), language_model=letters, **search)
    result = {"heard": listener.text.strip(), "text": model.decode(tokens).strip()}
    if verbose:
        print(f"\nWith the language model: {result['text']}")
    return result


# --- The baseline: dynamic time warping ---------------------------------------------


class Templates:
    """Recognizes words by their distance to recordings of single words.

    Dynamic time warping stretches or shrinks a template to fit the audio. Here, any
    row of templates may follow each other, and all rows are compared at once (the
    one-stage algorithm): d is the distance of window t to window s of a template, and

        D(t, s) = d(t, s) + min(D(t-1, s), D(t-1, s-1), D(t-1, s-2)),

    so that speech may be up to twice as fast as the template. The first windows of a
    template may also follow the last one of any word. A template of silence may, too.

    Args:
        model: Computes the spectra.
        words: Recordings of single words.
        penalty: Added for each word, or many short words would be found.

    Reference: Ney, 1984, https://doi.org/10.1109/TASSP.1984.1164320.
    """

    def __init__(
        self, model: kit.SpeechRecognizer, words: Utterances, penalty: float = 2.0
    ):
        self.model = model
        audio = [speech.trimmed(x) for x in words.audio]
        silence = np.zeros(SAMPLING_RATE // 8, "float32")
        found = self.features([*audio, silence])
        self.names = [*words.texts, ""]
        self.windows = np.concatenate(found)  # (S, features)
        sizes = [len(x) for x in found]
        self.last = np.cumsum(sizes) - 1
        first = self.last - np.array(sizes) + 1
        # Windows that have no window before them in their template, or only one.
        self.first = np.zeros(len(self.windows), bool)
        self.first[first] = True
        self.second = np.roll(self.first, 1) & ~self.first
        self.enter = np.full(len(self.windows), penalty, "float32")  # another word
        self.enter[first[-1] :] = 0.0  # but not of silence

    def features(self, audio: list[np.ndarray]) -> list[np.ndarray]:
        """Returns cepstra, 20 ms each, and their changes: `(windows, 24)`."""
        frames, number = self.model.frames(audio)
        found = []
        for rows, size in zip(frames, number, strict=True):
            spectra = rows[:size].reshape(3 * size, -1)[::2]
            cepstra = dct(spectra, norm="ortho")[:, 1:13]
            changes = np.gradient(cepstra, axis=0) if len(cepstra) > 1 else 0 * cepstra
            found.append(np.hstack([cepstra, 2 * changes]).astype("float32"))
        return found

    def transcribe(self, audio: np.ndarray) -> str:
        """Returns the words whose templates fit best."""
        x = self.features([audio])[0]
        # Distances of all windows of the audio and the templates: (t, s).
        squared = np.square(x).sum(1)[:, None] + np.square(self.windows).sum(1)
        d = np.sqrt(np.maximum(squared - 2 * x @ self.windows.T, 0.0))
        begins = self.first | self.second
        cost = np.where(begins, d[0] + self.enter, np.inf)
        # The words before the current one, as a place in a list of (before, word).
        before = np.full(len(cost), -1)
        rows: list[tuple[int, int]] = []
        for t in range(1, len(x)):
            word = int(cost[self.last].argmin())
            rows.append((int(before[self.last[word]]), word))
            entered = cost[self.last[word]] + self.enter
            costs, places = [cost], [before]
            for step, is_missing in ((1, self.first), (2, begins)):
                moved, came = np.roll(cost, step), np.roll(before, step)
                # The word may begin with either of its first two windows.
                start = self.first if step == 1 else self.second
                moved[is_missing], came[is_missing] = np.inf, -1
                moved[start], came[start] = entered[start], len(rows) - 1
                costs.append(moved)
                places.append(came)
            best = np.argmin(costs, axis=0)[None]
            cost = np.take_along_axis(np.array(costs), best, 0)[0] + d[t]
            before = np.take_along_axis(np.array(places), best, 0)[0]
        word = int(cost[self.last].argmin())
        place, found = int(before[self.last[word]]), [word]
        while place >= 0:
            place, word = rows[place]
            found.append(word)
        return " ".join(self.names[i] for i in reversed(found) if self.names[i])


# --- Pictures -----------------------------------------------------------------------


def draw_result(
    run: Run,
    history: keras.callbacks.History,
    metrics: dict[str, Any],
    baselines: dict[str, Any],
    name: str,
) -> None:
    """Plots the word error rate over the noise, and the loss over the epochs."""
    with run.figure("result.png", figsize=(9, 3.6)) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        labels = ["clean", *(f"{x} dB" for x in NOISE)]
        levels = ["", *(f"_{x}db" for x in NOISE)]
        for values, prefix, label, color in (
            (baselines, f"dtw_{name}_wer", "templates (DTW)", COLORS[1]),
            (metrics, f"{name}_greedy_wer", "network", COLORS[0]),
            (metrics, f"{name}_wer", "network and language model", COLORS[2]),
        ):
            rates = [
                values[x] for x in (prefix + level for level in levels) if x in values
            ]
            left.plot(labels[: len(rates)], rates, marker="o", color=color, label=label)
        left.axhline(0.05, color="0.6", linestyle=":", linewidth=1)
        left.set_title("Wrong words, speakers never heard", loc="left")
        left.set_xlabel("Noise (signal-to-noise ratio)")
        left.set_ylim(0, 1.02)
        left.yaxis.set_major_formatter("{x:.0%}")
        left.grid(alpha=0.3)
        left.legend(loc="upper right", fontsize="small")
        losses = history.history["loss"]
        right.plot(np.arange(1, len(losses) + 1), losses, marker="o", color=DARK)
        right.set_title("CTC loss of the training", loc="left")
        right.set_xlabel("Epoch")
        right.set_ylim(0)
        right.grid(alpha=0.3)


def draw_sentences(
    run: Run,
    model: kit.SpeechRecognizer,
    data: Utterances,
    letters: LetterModel,
    search: dict[str, Any],
) -> None:
    """Draws a sentence, clean and noisy, and the letters over it; writes the audio."""
    longest = max(range(len(data.texts)), key=lambda i: len(data.texts[i]))
    parts = [(None, "clean.wav"), (NOISE[-1], "noisy.wav")]
    with run.figure("sentences.png", figsize=(9, 8)) as figure:
        axes = figure.subplots(4, 1, height_ratios=(3, 2, 3, 2), sharex=True)
        for (decibels, file), (top, bottom) in zip(
            parts, axes.reshape(2, 2), strict=True
        ):
            audio = with_noise(data.audio, decibels)[longest]
            speech.write_wav(run.output_dir / file, audio / max(1, abs(audio).max()))
            frames = model.frames([audio])[0][0]
            (heard,), (read,) = transcribe(model, [audio], letters, search)
            hop = model.frame_step / SAMPLING_RATE
            end = (len(frames) + 1) * hop
            spectra = frames.reshape(3 * len(frames), -1).T
            top.imshow(
                spectra,
                aspect="auto",
                origin="lower",
                extent=(hop / 2, end - hop / 2, 0, 1),
                cmap="magma",
            )
            top.set_yticks([])
            top.set_ylabel("mel bands")
            noise = "clean" if decibels is None else f"noise at {decibels} dB"
            top.set_title(f"{noise}: “{data.texts[longest]}”", loc="left")
            draw_letters(bottom, model, audio, hop)
            bottom.set_title(
                f"heard: “{heard}”\nwith the language model: “{read}”",
                loc="left",
                fontsize="small",
            )
        axes[-1].set_xlabel("Seconds")


def draw_letters(
    axes: Any, model: kit.SpeechRecognizer, audio: np.ndarray, hop: float
) -> None:
    """Plots each letter's probability over time, with the letter on its peaks."""
    probabilities = np.exp(model.log_probs([audio])[0])  # (T, K)
    seconds = (np.arange(len(probabilities)) + 1) * hop
    axes.plot(seconds, probabilities[:, 0], color="0.8", label="blank")
    for k, letter in enumerate(model.alphabet, start=1):
        y = probabilities[:, k]
        if y.max() < 0.2:
            continue
        axes.plot(seconds, y, color=COLORS[k % len(COLORS)])
        above = np.pad(y, 1)
        is_peak = (y >= 0.2) & (y >= above[:-2]) & (y > above[2:])
        for t in np.flatnonzero(is_peak):
            mark = "␣" if letter == " " else letter
            axes.text(seconds[t], y[t] + 0.03, mark, ha="center", fontsize="small")
    axes.set_ylim(0, 1.25)
    axes.set_ylabel("probability")


if __name__ == "__main__":
    command_line(main)
