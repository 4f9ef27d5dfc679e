r"""Speech recognition: from audio to text, letter by letter.

A recurrent network hears a sentence frame by frame, and gives in each frame t the
probabilities y^t_k of all letters k and of a blank, "no new letter". Nobody tells it
when a letter is spoken: the texts of the training data have no times. Connectionist
temporal classification (CTC) learns without them.

A path pi is a choice of a letter or the blank in each frame. Its text B(pi) is what
remains if repeated letters are merged, and then the blanks removed:

    B(c c _ a _ t t) = B(_ c a a _ t _) = cat,    B(t o _ o) = too.

Many paths have the same text l. Its probability is the sum over them, and the loss its
negative logarithm:

    p(l | x) = sum of prod_t y^t_(pi_t) over all paths pi with B(pi) = l
    loss = -log p(l | x).

`keras.ops.ctc_loss` sums over all paths at once, from left to right: all paths that
have the same beginning of the text after t frames share what follows.

To read a text from the probabilities, `greedy` takes the best path, and `beam_search`
looks for the best text, to which a language model may add what it knows of spelling.

The network only looks back, so it can hear a sentence while it is spoken (`Listener`).

Letters as in the paper: x frames, l text, pi path, y^t_k probabilities. Shapes: B
batch, T frames, F features of a frame, L letters of the longest text, K letters of the
alphabet and the blank, which is letter 0.

Reference: Graves, Fernández, Gomez and Schmidhuber, 2006, "Connectionist Temporal
Classification", https://doi.org/10.1145/1143844.1143891.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from kit import checks, decoding, recurrent
from kit.backend import Tensor, compiled
from kit.lab.ngram import NGram
from kit.models import Model, WithParts, to_array

ALPHABET = " abcdefghijklmnopqrstuvwxyz"
BLANK = 0  # the letters of the alphabet follow it
LAYERS = {"rnn": recurrent.rnn, "lstm": recurrent.lstm, "gru": recurrent.gru}
# Hearing, in seconds: a window of the spectrum, and the step to the next one.
WINDOW, STRIDE = 0.025, 0.010
# Quieter bands count as silent, in decibels: about the noise of good microphones.
SILENCE = -40.0

ACCEPTED = {
    "layer": checks.one_of(*LAYERS),
    "units": checks.SIZE | checks.sequence(checks.SIZE, least=1),
    "alphabet": checks.TEXT,
    "sampling_rate": checks.integer("[2000, 200000]"),
    "num_mel_bins": checks.SIZE,
    "windows_per_frame": checks.integer("[1, 100]"),
    "dropout": checks.SHARE,
    # SpeechRecognizer
    "frontend": checks.instance(keras.Sequential),
    "network": checks.instance(keras.Sequential),
    "frame_length": checks.SIZE,
    "frame_step": checks.SIZE,
    "batch_size": checks.SIZE,
    "audio": checks.array("samples", "floats", "[-1e6, 1e6]"),
    "texts": checks.sequence(checks.TEXT, least=1),
    # Functions
    "tokens": checks.array("B L", "integers"),
    "num_tokens": checks.array("B", "integers", "[0, 2**31)"),
    "num_frames": checks.array("B", "integers", "[0, 2**31)"),
    "logits": checks.array("B T K", "floats"),
    "log_probs": checks.array("T K", "floats"),
    "beam_width": checks.SIZE,
    "lm_weight": checks.WEIGHT,
    "letter_bonus": checks.FINITE,
    "least": checks.SHARE,
}


def speech_recognizer(
    layer: str = "gru",
    units: Sequence[int] = (128, 128),
    alphabet: str = ALPHABET,
    sampling_rate: int = 8000,
    num_mel_bins: int = 40,
    windows_per_frame: int = 3,
    dropout: float = 0.0,
) -> "SpeechRecognizer":
    """Builds a speech recognizer: a spectrogram, recurrent layers and a Dense layer.

    The ear's part has no weights. Each 10 ms, it measures the loudness of mel bands,
    which are narrow for low frequencies and wide for high ones, in a window of 25 ms.
    A frame is a few windows in a row: fewer frames are faster to compute, and easier to
    remember for the network.

    Args:
        layer: `"rnn"`, `"lstm"` or `"gru"`. Defaults to `"gru"`.
        units: Size of the state of each recurrent layer. Defaults to `(128, 128)`.
        alphabet: Letters that texts consist of, each once. Defaults to the space and
            `a` to `z`.
        sampling_rate: Samples each second, a multiple of 200. Defaults to 8000.
        num_mel_bins: Number of mel bands. Defaults to 40.
        windows_per_frame: Windows in a frame. There must be at least as many frames
            as letters, and one more where a letter is doubled; people speak up to 20
            letters each second. Defaults to 3.
        dropout: Share of each recurrent layer's outputs to drop in training, in [0, 1).
            Defaults to 0.

    Returns:
        A `SpeechRecognizer`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Example:

    ```python
    model = kit.speech_recognizer("lstm", units=(32,))
    model.compile("adam")
    audio, texts = [np.random.rand(8000)] * 4, ["one", "two", "four", "six"]
    model.fit(*model.encode(audio, texts), epochs=2)
    model.transcribe(audio)  # four texts, wrong ones
    ```
    """
    checks.check("speech_recognizer", locals(), ACCEPTED)
    if sampling_rate % 200:
        raise ValueError(
            "speech_recognizer: `sampling_rate` must be a multiple of 200, received "
            f"{sampling_rate}."
        )
    window, stride = round(WINDOW * sampling_rate), round(STRIDE * sampling_rate)
    # A window in the middle of the transform's length: the layer adds mirrored samples
    # at both ends, which the first two and the last windows see. They are left out, the
    # last ones so many that each further frame of samples gives a further frame.
    first = 2
    last = next(n for n in range(2, 200) if (n + 1) % windows_per_frame == 0)
    frontend = keras.Sequential(
        [
            keras.Input((None,)),
            keras.layers.MelSpectrogram(
                fft_length=2 ** math.ceil(math.log2(window)),
                sequence_stride=stride,
                sequence_length=window,
                sampling_rate=sampling_rate,
                num_mel_bins=num_mel_bins,
                min_freq=60.0,
                max_freq=0.475 * sampling_rate,
                min_power=10 ** (SILENCE / 10),
                top_db=1000.0,  # else silence depends on the loudest of the batch
            ),
            keras.layers.Permute((2, 1)),  # (B, windows, mel bands)
            keras.layers.Cropping1D((first, last)),
            keras.layers.Reshape((-1, windows_per_frame * num_mel_bins)),  # (B, T, F)
            keras.layers.Rescaling(1 / 20),
        ],
        name="frontend",
    )
    network = LAYERS[layer](
        (None, windows_per_frame * num_mel_bins),
        len(alphabet) + 1,
        units=units,
        return_sequences=True,
        dropout=dropout,
    )
    step = windows_per_frame * stride
    length = step * (last + 1) // windows_per_frame + step
    return SpeechRecognizer(frontend, network, length, step, alphabet)


@keras.saving.register_keras_serializable(package="kit")
class SpeechRecognizer(WithParts, Model):
    """Trains a network on the CTC loss, and transcribes audio.

    `encode` turns audio and texts into the arrays that `fit` takes. The model itself
    maps frames `(B, T, F)` to the logits of letters `(B, T, K)`.

    Args:
        frontend: `keras.Sequential` from audio `(B, samples)` to frames `(B, T, F)`.
            Frame t must depend on the samples from `frame_step` t to `frame_step` t +
            `frame_length` only.
        network: `keras.Sequential` from frames to logits `(B, T, K)`, K being the
            letters of the alphabet and the blank. To transcribe while audio arrives, it
            must fit `kit.recurrent.step`.
        frame_length: Samples on which a frame depends, a multiple of `frame_step`.
        frame_step: Samples from one frame to the next.
        alphabet: Letters that texts consist of, each once. Defaults to the space and
            `a` to `z`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a letter occurs twice, or the network's outputs don't fit.

    Example: see `speech_recognizer`.
    """

    parts = ("frontend", "network")

    def __init__(
        self,
        frontend: keras.Sequential,
        network: keras.Sequential,
        frame_length: int,
        frame_step: int,
        alphabet: str = ALPHABET,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        checks.check(self, locals(), ACCEPTED)
        if len(set(alphabet)) != len(alphabet) or not alphabet:
            raise ValueError(
                "SpeechRecognizer: `alphabet` must have each letter once, received "
                f"{alphabet!r}."
            )
        shape = network.output_shape if network.built else None
        if shape is None or len(shape) != 3 or shape[-1] != len(alphabet) + 1:
            raise ValueError(
                "SpeechRecognizer: `network` must give logits (B, T, "
                f"{len(alphabet) + 1}), for the {len(alphabet)} letters of `alphabet` "
                f"and the blank; its output is {shape}."
            )
        if frame_length % frame_step:
            raise ValueError(
                "SpeechRecognizer: `frame_length` must be a multiple of `frame_step`, "
                f"received {frame_length} and {frame_step}."
            )
        self.frontend = frontend
        self.network = network
        self.frame_length = frame_length
        self.frame_step = frame_step
        self.alphabet = alphabet
        self.built = True  # both parts are built already

    def build(self, input_shape):
        """Does nothing: the parts are already built."""

    def compile(self, optimizer="adam", loss=None, **kwargs):
        """Compiles as Keras does, but without `loss`: the model has its own."""
        if loss is not None:
            raise ValueError(
                "SpeechRecognizer has its own loss, that of CTC: leave out `loss` in "
                f"compile, received {loss!r}."
            )
        super().compile(optimizer=optimizer, loss=None, **kwargs)

    def call(self, inputs, training=None):
        """Returns the logits of the letters in each frame."""
        return self.network(inputs, training=training)

    def compute_loss(
        self, x=None, y=None, y_pred=None, sample_weight=None, training=True
    ):
        """Returns the mean of the CTC loss over the batch."""
        if sample_weight is not None:
            raise ValueError(
                "SpeechRecognizer: `sample_weight` has no effect; leave it out."
            )
        return ops.mean(ctc_loss(y["tokens"], y_pred, y["num_tokens"], y["num_frames"]))

    def fit(self, x=None, y=None, *args, **kwargs):
        """Fits as Keras does, after a check of the targets."""
        self._check_targets_of("y", y)
        if isinstance(kwargs.get("validation_data"), tuple | list):
            self._check_targets_of("validation_data", kwargs["validation_data"][1])
        return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        """Evaluates as Keras does, after a check of the targets."""
        self._check_targets_of("y", y)
        return super().evaluate(x, y, *args, **kwargs)

    def encode(
        self, audio: Sequence[np.ndarray], texts: Sequence[str]
    ) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Turns audio and its texts into arrays for `fit`.

        Args:
            audio: Samples of each utterance, arrays of any length.
            texts: What is said in each.

        Returns:
            The frames `(B, T, F)`, float32, and a dict of int32: `"tokens"` `(B, L)`,
            the letters' numbers; `"num_tokens"` and `"num_frames"`, `(B,)`. Shorter
            utterances and texts are filled up with zeros.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If there are more texts than utterances, or fewer; if a text has
                a letter that isn't in the alphabet, or more letters than frames.
        """
        checks.check("SpeechRecognizer.encode", {"texts": texts}, ACCEPTED)
        if len(audio) != len(texts):
            raise ValueError(
                "SpeechRecognizer.encode: `texts` must be as many as the utterances; "
                f"received {len(audio)} utterances and {len(texts)} texts."
            )
        unknown = sorted(set("".join(texts)) - set(self.alphabet))
        if unknown:
            raise ValueError(
                "SpeechRecognizer.encode: `texts` must consist of letters of the "
                f"alphabet {self.alphabet!r}; received {''.join(unknown)!r}, too."
            )
        frames, num_frames = self.frames(audio)
        number = {letter: i + 1 for i, letter in enumerate(self.alphabet)}
        num_tokens = np.array([len(text) for text in texts], "int32")
        tokens = np.zeros((len(texts), max(1, num_tokens.max())), "int32")
        for row, text in zip(tokens, texts, strict=True):
            row[: len(text)] = [number[letter] for letter in text]
        y = {"tokens": tokens, "num_tokens": num_tokens, "num_frames": num_frames}
        self._check_targets_of("texts", y)
        return frames, y

    def frames(
        self, audio: Sequence[np.ndarray], batch_size: int = 64
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the frames of audio, filled up with zeros, and their numbers.

        Args:
            audio: Samples of each utterance, arrays of any length.
            batch_size: Utterances to compute at once. Defaults to 64.

        Returns:
            The frames `(B, T, F)`, float32, and their numbers `(B,)`, int32.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If there is no utterance, or one without samples.
        """
        where = "SpeechRecognizer.frames"
        checks.check(where, {"batch_size": batch_size}, ACCEPTED)
        if not len(audio):
            raise ValueError(f"{where}: `audio` must hold one utterance at least.")
        for samples in audio:
            checks.check(where, {"audio": samples}, ACCEPTED)
        step, overlap = self.frame_step, self.frame_length // self.frame_step - 1
        lengths = np.array([len(samples) for samples in audio])
        # The last frame's samples are filled up with silence.
        num_frames = np.maximum(-(-lengths // step) - overlap, 1)
        longest = step * int(num_frames.max() + overlap)
        program = decoding.kept_program(self, _make_part, "frontend")
        size, found = min(batch_size, len(audio)), []
        for first in range(0, len(audio), size):
            part = audio[first : first + size]
            samples = np.zeros((size, longest), "float32")
            for row, x in zip(samples, part, strict=False):
                row[: len(x)] = x
            found.append(ops.convert_to_numpy(program(samples))[: len(part)])
        frames = np.concatenate(found)
        frames[np.arange(frames.shape[1]) >= num_frames[:, None]] = 0.0
        return frames, num_frames.astype("int32")

    def log_probs(
        self, audio: Sequence[np.ndarray], batch_size: int = 64
    ) -> list[np.ndarray]:
        """Returns log y^t_k for each utterance.

        Args:
            audio: Samples of each utterance, arrays of any length.
            batch_size: Utterances to compute at once. Defaults to 64.

        Returns:
            For each utterance, an array `(T, K)` with its own T.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If there is no utterance, or one without samples.
        """
        frames, num_frames = self.frames(audio, batch_size)
        program = decoding.kept_program(self, _make_part, "network")
        size, rows = min(batch_size, len(frames)), []
        for first in range(0, len(frames), size):
            part = frames[first : first + size]
            # A smaller batch would need a program of its own.
            filled = np.pad(part, ((0, size - len(part)), (0, 0), (0, 0)))
            rows.extend(ops.convert_to_numpy(program(filled))[: len(part)])
        return [
            _log_softmax(x[:number]) for x, number in zip(rows, num_frames, strict=True)
        ]

    def transcribe(
        self,
        audio: Sequence[np.ndarray],
        language_model: "LetterModel | None" = None,
        beam_width: int = 1,
        batch_size: int = 64,
        **options: Any,
    ) -> list[str]:
        """Returns the text of each utterance.

        Args:
            audio: Samples of each utterance, arrays of any length.
            language_model: See `beam_search`. Defaults to `None`.
            beam_width: Texts that the search keeps. Defaults to 1: the best path
                (`greedy`), if there is no language model.
            batch_size: Utterances to compute at once. Defaults to 64.
            **options: Further options of `beam_search`.

        Raises:
            TypeError: If an argument has the wrong type.
            ValueError: If an argument is out of its range.
        """
        given = {"beam_width": beam_width, "language_model": language_model}
        accepted = {
            **ACCEPTED,
            "language_model": checks.instance(LetterModel) | None,
        }
        checks.check("SpeechRecognizer.transcribe", given, accepted)
        texts = []
        for log_probs in self.log_probs(audio, batch_size):
            if beam_width == 1 and language_model is None:
                tokens = greedy(log_probs)
            else:
                tokens = beam_search(log_probs, beam_width, language_model, **options)
            texts.append(self.decode(tokens))
        return texts

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of letters' numbers."""
        return "".join(self.alphabet[token - 1] for token in tokens)

    def _check_targets_of(self, name, y):
        """Raises an error for targets that mean nothing."""
        names = {"tokens", "num_tokens", "num_frames"}
        if not isinstance(y, Mapping):
            if y is None or to_array(y) is not None:
                raise ValueError(
                    f"SpeechRecognizer: `{name}` must be a dict as `encode` returns "
                    f"it, received an object of type {type(y).__name__}."
                )
            return  # a dataset, which yields them
        if set(y) != names:
            raise ValueError(
                f"SpeechRecognizer: `{name}` must be a dict of {sorted(names)}, "
                f"received the keys {sorted(map(str, y))}."
            )
        arrays: dict[str, Any] = {key: to_array(part) for key, part in y.items()}
        checks.check("SpeechRecognizer", arrays, ACCEPTED)
        tokens, number = arrays["tokens"], arrays["num_tokens"]
        length = tokens.shape[1]
        is_token = np.arange(length) < number[:, None]
        high = len(self.alphabet)
        if not ((tokens >= is_token) & (tokens <= high)).all() or number.max() > length:
            raise ValueError(
                f"SpeechRecognizer: `tokens` must be from 1 to {high} in the first "
                f"`num_tokens` columns, then 0; received {tokens.min()} to "
                f"{tokens.max()}, and {number.max()} in {length} columns."
            )
        # A blank must stand between equal letters.
        same = (tokens[:, 1:] == tokens[:, :-1]) & is_token[:, 1:]
        needed = number + same.sum(axis=1)
        if (needed > arrays["num_frames"]).any():
            i = int(np.argmax(needed - arrays["num_frames"]))
            raise ValueError(
                f"SpeechRecognizer: an utterance must have as many frames as letters, "
                f"and one between equal letters; number {i} of `{name}` needs "
                f"{needed[i]} frames, and has {arrays['num_frames'][i]}. Leave it out, "
                "or take fewer `windows_per_frame`."
            )

    def get_config(self):
        """Returns the constructor's arguments, for saving."""
        return {
            **super().get_config(),
            "frame_length": self.frame_length,
            "frame_step": self.frame_step,
            "alphabet": self.alphabet,
        }


# --- Loss -----------------------------------------------------------------------


def ctc_loss(
    tokens: Tensor, logits: Tensor, num_tokens: Tensor, num_frames: Tensor
) -> Tensor:
    """Returns -log p(l | x) of each text: the loss of CTC.

    Args:
        tokens: l, letters' numbers from 1, `(B, L)`; what follows a text is ignored.
        logits: Logits of y^t_k, `(B, T, K)`; letter 0 is the blank.
        num_tokens: Letters of each text, `(B,)`.
        num_frames: Frames of each utterance, `(B,)`; what follows is ignored.

    Returns:
        The losses, `(B,)`. If a text needs more frames than there are, there is no
        path, and the backends return different large numbers or infinity.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the shapes don't fit together.

    Example:

    ```python
    logits = np.zeros((1, 2, 3), "float32")  # two frames: blank, a, b, all 1/3
    ctc_loss([[1]], logits, [1], [2])  # -log(3/9): the paths a a, a _ and _ a
    ```
    """
    checks.check("ctc_loss", locals(), ACCEPTED)
    return ops.ctc_loss(
        ops.cast(tokens, "int32"),
        ops.cast(logits, "float32"),
        ops.cast(num_tokens, "int32"),
        ops.cast(num_frames, "int32"),
        mask_index=BLANK,
    )


# --- Decoding -------------------------------------------------------------------


def greedy(log_probs: np.ndarray) -> list[int]:
    """Returns the text of the best path: B of the most probable letter in each frame.

    Args:
        log_probs: log y^t_k or logits, `(T, K)`.

    Returns:
        The letters' numbers.

    Raises:
        TypeError: If it isn't such an array.
    """
    checks.check("greedy", locals(), ACCEPTED)
    path = np.asarray(log_probs).argmax(axis=1)
    is_new = np.diff(path, prepend=BLANK) != 0
    return path[is_new & (path != BLANK)].tolist()


def beam_search(
    log_probs: np.ndarray,
    beam_width: int = 16,
    language_model: "LetterModel | None" = None,
    lm_weight: float = 0.5,
    letter_bonus: float = 0.0,
    least: float = 1e-3,
) -> list[int]:
    """Searches for the best text, with the help of a language model.

    The best text isn't always that of the best path, as many paths may share another
    text. The search reads the frames from left to right, and keeps the best beginnings
    of texts. Each has two probabilities: of all its paths so far that end in a blank,
    and of those that end in its last letter, since only after a blank can the same
    letter follow anew. What is maximized is

        log p(l | x) + lm_weight log p_LM(l) + letter_bonus L.

    Args:
        log_probs: log y^t_k, `(T, K)`.
        beam_width: Beginnings to keep. Defaults to 16.
        language_model: Knows which letters follow which. Defaults to `None`.
        lm_weight: How much the language model counts. Defaults to 0.5.
        letter_bonus: Reward for each letter, against the language model's preference
            for short texts. Defaults to 0.
        least: Letters with a smaller y^t_k aren't tried in that frame. Defaults to
            0.001.

    Returns:
        The letters' numbers.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of its range.

    Reference: Hannun et al., 2014, https://arxiv.org/abs/1408.2873.
    """
    accepted = {**ACCEPTED, "language_model": checks.instance(LetterModel) | None}
    checks.check("beam_search", locals(), accepted)
    rows = np.asarray(log_probs, "float64")

    def guess(text, letter):  # what is added for the next letter
        if language_model is None:
            return letter_bonus
        return letter_bonus + lm_weight * language_model.log_probs(text)[letter]

    # Beginning -> logarithms: all paths that end in a blank, in its last letter; and
    # what the language model and the bonus add.
    beams: dict[tuple[int, ...], list[float]] = {(): [0.0, -math.inf, 0.0]}
    for row in rows:
        letters = [k for k in np.flatnonzero(row > math.log(least or 1e-300)) if k]
        found: dict[tuple[int, ...], list[float]] = {}
        for text, (blank, letter, extra) in beams.items():
            either = _log_add(blank, letter)
            same = found.setdefault(text, [-math.inf, -math.inf, extra])
            same[0] = _log_add(same[0], either + row[BLANK])
            if text:
                same[1] = _log_add(same[1], letter + row[text[-1]])
            for k in letters:
                longer = (*text, int(k))
                if longer not in found:
                    more = extra + guess(text, int(k))
                    found[longer] = [-math.inf, -math.inf, more]
                before = blank if text and k == text[-1] else either
                grown = found[longer]
                grown[1] = _log_add(grown[1], before + row[k])
        ranked = sorted(
            found.items(),
            key=lambda item: _log_add(item[1][0], item[1][1]) + item[1][2],
            reverse=True,
        )
        beams = dict(ranked[:beam_width])

    def score(text):  # of a whole sentence
        blank, letter, extra = beams[text]
        return _log_add(blank, letter) + extra + guess(text, BLANK)

    return list(max(beams, key=score))


class LetterModel:
    """An n-gram model of letters, which knows how words are spelled.

    Args:
        texts: Sentences, which needn't be spoken.
        alphabet: The recognizer's. Defaults to the space and `a` to `z`.
        order: Letters of the longest n-grams: each letter is predicted from the
            `order - 1` before it. Defaults to 6.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If a text has a letter that isn't in the alphabet.

    Example:

    ```python
    model = kit.speech.LetterModel(["one two", "two one"], order=3)
    model.log_probs([21, 24])[16]  # o after "tw": almost 0
    ```

    Reference: `kit.lab.ngram`.
    """

    def __init__(self, texts: Sequence[str], alphabet: str = ALPHABET, order: int = 6):
        accepted = {**ACCEPTED, "order": checks.integer("[1, 100]")}
        checks.check(self, locals(), accepted)
        number = {letter: i + 1 for i, letter in enumerate(alphabet)}
        tokens = [BLANK]  # no letter: here, it stands between sentences
        for text in texts:
            if unknown := sorted(set(text) - set(alphabet)):
                raise ValueError(
                    f"LetterModel: `texts` must consist of letters of the alphabet "
                    f"{alphabet!r}; received {''.join(unknown)!r}, too."
                )
            tokens += [*(number[letter] for letter in text), BLANK]
        self.ngram = NGram(order).fit(np.array(tokens), len(alphabet) + 1)
        self._known: dict[tuple[int, ...], list[float]] = {}

    def log_probs(self, tokens: Sequence[int]) -> list[float]:
        """Returns the logarithms of the next letter's probabilities, `(K,)`.

        That of letter 0 is for the end of the sentence.

        Args:
            tokens: The letters' numbers from the sentence's beginning on.
        """
        context = (BLANK, *tokens)[-max(1, self.ngram.order - 1) :]
        if context not in self._known:
            probabilities = self.ngram.next_probabilities(np.array(context))
            self._known[context] = np.log(probabilities).tolist()
        return self._known[context]


def _log_add(a, b):
    """Returns log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


# --- Streaming ------------------------------------------------------------------


class Listener:
    """Transcribes audio while it arrives.

    The state of the network is all that is kept of what was heard, so each frame costs
    the same. After the end, the text is that of `transcribe` on the whole audio.

    Args:
        model: A `SpeechRecognizer` whose network fits `kit.recurrent.step`.

    Attributes:
        text: The text so far.
        log_probs: Row for each frame so far, `(K,)`: for `beam_search` in the end.

    Raises:
        TypeError: If `model` is another object.
        ValueError: If its network can't be run step by step.

    Example:

    ```python
    listener = kit.speech.Listener(model)
    for i in range(0, len(audio), 400):
        print(listener.hear(audio[i : i + 400]))  # what is new
    print(listener.finish())
    ```
    """

    def __init__(self, model: SpeechRecognizer):
        accepted = {"model": checks.instance(SpeechRecognizer)}
        checks.check(self, locals(), accepted)
        self.model = model
        self._state = recurrent.initial_state(model.network)
        self._rest = np.zeros(0, "float32")  # samples that the next frame needs
        self._last = BLANK
        self.text = ""
        self.log_probs: list[np.ndarray] = []
        self._step = decoding.kept_program(model, _make_step)

    def hear(self, audio: np.ndarray) -> str:
        """Takes the next samples; returns the letters that they add.

        Args:
            audio: Samples, `(samples,)`, any number.

        Raises:
            TypeError: If it isn't such an array.
        """
        if len(audio):
            checks.check("Listener.hear", locals(), ACCEPTED)
        self._rest = np.concatenate([self._rest, np.asarray(audio, "float32")])
        before = len(self.text)
        while len(self._rest) >= self.model.frame_length:
            piece = self._rest[None, : self.model.frame_length]
            row, self._state = self._step(piece, self._state)
            self._rest = self._rest[self.model.frame_step :]
            self.log_probs.append(ops.convert_to_numpy(row)[0])
            letter = int(self.log_probs[-1].argmax())
            if letter not in (BLANK, self._last):
                self.text += self.model.decode([letter])
            self._last = letter
        return self.text[before:]

    def finish(self) -> str:
        """Ends the utterance; returns the letters that its last samples add."""
        missing = -len(self._rest) % self.model.frame_step
        if not self.log_probs:
            missing = max(missing, self.model.frame_length - len(self._rest))
        return self.hear(np.zeros(missing, "float32"))


def _log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _make_step(model):
    @compiled
    def step(samples, state):
        frame = model.frontend(samples)[:, 0]  # (1, F)
        logits, state = recurrent.step(model.network, frame, state)
        return ops.log_softmax(logits), state

    return step


def _make_part(model, name):
    part = getattr(model, name)
    return compiled(lambda x: part(x, training=False))
