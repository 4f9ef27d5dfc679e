"""Short English sentences, spoken by the synthetic voices of eSpeak NG.

eSpeak NG is a speech synthesizer that imitates the resonances of the throat. Its voices
sound like robots, and all are made by the same rules: what recognizes them needn't
recognize people. But it speaks any number of sentences by about a hundred voices in
eight English accents, without a download. The package espeakng-loader brings it along
(kit's extra `speech`). It is free software under the GNU General Public License 3 or
later; the kit only loads it.

Audio is a float32 array of samples in [-1, 1], 8,000 each second, as on the telephone.
"""

import ctypes
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import gcd
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from kit import checks

SAMPLING_RATE = 8000  # Hz

# eSpeak NG's names of accents.
ACCENTS = {
    "america": "gmw/en-US",
    "new_york": "gmw/en-US-nyc",
    "britain": "gmw/en",
    "received": "gmw/en-GB-x-rp",
    "lancaster": "gmw/en-GB-x-gbclan",
    "midlands": "gmw/en-GB-x-gbcwmd",
    "caribbean": "gmw/en-029",
    "scotland": "gmw/en-GB-scotland",
}
NEW_ACCENT = "scotland"  # not in the training part
# How far `recordings` varies voices: the logarithm of all frequencies, and decibels.
STRETCH, TONE = 0.18, 4.0

# Speakers that aren't in the training part. No two speakers of different parts have
# more than half of their settings in common.
HELD_OUT = {
    "validation": "Andrea Denis Lee boris grandpa linda m5 rob robert shelby",
    "test": "Andy Annie Diogo Gene Gene2 Henrique Hugo Jacky Mario Michael aunty "
    "belinda benjamin f4 m3 marcelo michel miguel steph steph2 steph3",
}
# Speakers that are left out: those with breath, whose noise is another one in each
# process; robots; and antonio, who swallows letters.
LEFT_OUT = (
    "Alicia Demonic Reed Storm caleb f2 f3 f5 sandro victor whisper whisperf "
    "RicishayMax RicishayMax2 RicishayMax3 UniRobot anikaRobot robosoft robosoft2 "
    "robosoft3 robosoft4 robosoft5 robosoft6 robosoft7 robosoft8 antonio"
)
NUMBERS = {
    "ones": "zero one two three four five six seven eight nine ten eleven twelve "
    "thirteen fourteen fifteen sixteen seventeen eighteen nineteen",
    "tens": "twenty thirty forty fifty sixty seventy eighty ninety",
}
ONES, TENS = (words.split() for words in NUMBERS.values())
WORDS = {
    "device": "light lamp heater fan radio television oven camera",
    "room": "kitchen bedroom bathroom garage garden hall office cellar",
    "name": "anna peter maria oliver susan david laura thomas",
    "city": "london paris berlin madrid rome vienna oslo dublin",
    "day": "monday tuesday wednesday thursday friday saturday sunday",
    "food": "apples eggs bananas potatoes onions lemons carrots mushrooms",
    "unit": "seconds minutes hours",
    "operation": "plus minus times",
}
# Each slot is drawn; the digits' slot has three to five of them.
TEMPLATES = (
    "{digits}",
    "{digits}",
    "{digits}",
    "turn on the {device} in the {room}",
    "turn off the {device} in the {room}",
    "set a timer for {number} {unit}",
    "call {name} on {day}",
    "the weather in {city} on {day}",
    "play song number {number}",
    "buy {number} {food}",
    "what is {number} {operation} {number}",
    "send the {food} to {city}",
    "meet {name} in the {room}",
)

SPEAKERS = ("train", "validation", "test")
ACCEPTED = {
    "text": checks.TEXT,
    "texts": checks.sequence(checks.TEXT, least=1),
    "voice": checks.TEXT,
    "words_per_minute": checks.integer("[80, 450]"),
    "pitch": checks.integer("[0, 99]"),
    "number": checks.SIZE,
    "seed": checks.SEED,
    "without": checks.sequence(checks.TEXT),
    "different": checks.BOOL,
    "vary": checks.BOOL,
    "part": checks.one_of(*SPEAKERS),
    "accent": checks.one_of(*ACCENTS),
    "audio": checks.array("samples", "floats", "[-1e6, 1e6]"),
    "decibels": checks.FINITE,
    "path": checks.PATH,
}


class Utterances(NamedTuple):
    """Spoken sentences.

    Attributes:
        audio: Samples of each, float32 arrays of different lengths.
        texts: What is said: lower-case words, separated by spaces.
        voices: Who says it, in eSpeak NG's names.
    """

    audio: list[np.ndarray]
    texts: list[str]
    voices: list[str]


# --- Voices ---------------------------------------------------------------------


@contextmanager
def synthesizer() -> Iterator[Any]:
    """Loads eSpeak NG, and yields a function that speaks.

    Its arguments are those of `say`; it returns int16 samples and their rate. The
    library keeps a state between sentences, on which the noise in its sounds depends.
    It is unloaded in the end, so that the same calls give the same samples again, but
    for speakers with breath (`LEFT_OUT`).

    Raises:
        ImportError: If espeakng-loader isn't installed.
        OSError: If the library can't be loaded.
    """
    loader = _loader()
    library = ctypes.CDLL(loader.get_library_path())
    data = loader.get_data_path()
    # 2: speak before the call returns. 0x8000: don't end the process after an error.
    rate = library.espeak_Initialize(2, 0, data.encode(), 0x8000)
    if rate <= 0:
        raise OSError(f"eSpeak NG can't read its data in {data}.")
    known = set(_speakers(data))
    parts: list[np.ndarray] = []

    @ctypes.CFUNCTYPE(
        ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
    )
    def hear(samples, number, events):
        if samples and number > 0:
            parts.append(np.ctypeslib.as_array(samples, (number,)).copy())
        return 0  # go on

    def speak(text, voice, words_per_minute, pitch):
        accent, _, variant = voice.partition("+")
        found = not variant or variant in known  # it ignores unknown variants
        if not found or library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"`voice` must be one of eSpeak NG's, received {voice!r}.")
        library.espeak_SetParameter(1, words_per_minute, 0)
        library.espeak_SetParameter(3, pitch, 0)
        parts.clear()
        line = text.encode() + b"\0"
        # 0, 1, 0: from the first character on, to the end. 1: the text is UTF-8.
        if library.espeak_Synth(line, len(line), 0, 1, 0, 1, None, None) != 0:
            raise OSError(f"eSpeak NG can't speak {text!r}.")
        return np.concatenate([np.zeros(0, "int16"), *parts]), rate

    library.espeak_SetSynthCallback(hear)
    try:
        yield speak
    finally:
        library.espeak_Terminate()
        _unload(library)


def _loader():
    """Returns the package that knows where the library and its data are."""
    try:
        import espeakng_loader
    except ImportError as error:
        raise ImportError(
            "eSpeak NG and its voices come with espeakng-loader, which isn't "
            "installed: `python -m pip install espeakng-loader`, or kit's extra "
            "`speech`."
        ) from error
    return espeakng_loader


def _speakers(data):
    """Returns the names of all speakers, sorted."""
    return sorted(path.name for path in (Path(data) / "voices" / "!v").iterdir())


def _unload(library):
    """Unloads a library, where Python offers it."""
    import _ctypes

    unload = getattr(_ctypes, "dlclose", getattr(_ctypes, "FreeLibrary", None))
    if unload is not None:
        unload(library._handle)


def say(
    text: str,
    voice: str = "gmw/en-US",
    words_per_minute: int = 160,
    pitch: int = 50,
) -> np.ndarray:
    """Speaks a text.

    Args:
        text: Text in English.
        voice: Accent, and perhaps a speaker: `"gmw/en-US+f3"`. `voices` has some.
            Defaults to `"gmw/en-US"`.
        words_per_minute: Speed, 80 to 450. Defaults to 160.
        pitch: Pitch of the voice, 0 to 99. Defaults to 50.

    Returns:
        Samples, float32 of shape `(samples,)`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such voice, or a number is out of range.
        ImportError: If espeakng-loader isn't installed.

    Example:

    ```python
    audio = kit.data.speech.say("Hello, world!", "gmw/en-GB-scotland+f2")
    ```
    """
    checks.check("say", locals(), ACCEPTED)
    with synthesizer() as speak:
        return _resample(*speak(text, voice, words_per_minute, pitch))


def voices(part: str = "train", accent: str | None = None) -> list[str]:
    """Returns voices: each speaker of a part in each accent.

    Args:
        part: `"train"`, `"validation"` or `"test"`; they share no speaker.
        accent: Key of `ACCENTS`. Defaults to `None`: all but that of Scotland, which
            is left to test on.

    Returns:
        Names that `say` takes.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such part or accent.
        ImportError: If espeakng-loader isn't installed.
    """
    accepted = {**ACCEPTED, "accent": ACCEPTED["accent"] | None}
    checks.check("voices", locals(), accepted)
    speakers = HELD_OUT.get(part, "").split()
    if not speakers:
        others = " ".join([*HELD_OUT.values(), LEFT_OUT]).split()
        names = _speakers(_loader().get_data_path())
        speakers = [name for name in names if name not in others]
    accents = [x for x in ACCENTS if x != NEW_ACCENT] if accent is None else [accent]
    return [f"{ACCENTS[x]}+{speaker}" for speaker in speakers for x in accents]


# --- Sentences ------------------------------------------------------------------


def sentences(
    number: int, seed: int = 0, without: Sequence[str] = (), different: bool = True
) -> list[str]:
    """Draws sentences: rows of digits, and requests to a machine at home.

    Args:
        number: How many.
        seed: Seed of the draws. Defaults to 0.
        without: Sentences that must not be among them, such as those of the test.
        different: If `True`, each sentence occurs once. Then thousands of sentences are
            mostly digits and sums, as there are few others. Defaults to `True`.

    Returns:
        Lower-case words, separated by spaces.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there aren't so many different sentences.

    Example:

    ```python
    kit.data.speech.sentences(2)
    ```
    """
    checks.check("sentences", locals(), ACCEPTED)
    rng = np.random.default_rng(seed)
    found: list[str] = []
    refused = set(without)
    for _ in range(100 * number):
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        text = re.sub(r"{(\w+)}", lambda slot: _fill(slot[1], rng), template)
        if text not in refused:
            found.append(text)
            if different:
                refused.add(text)
            if len(found) == number:
                return found
    raise ValueError(f"number={number} is more than there are different sentences.")


def vocabulary() -> list[str]:
    """Returns all words of `sentences`, sorted."""
    fixed = re.sub(r"{\w+}", " ", " ".join(TEMPLATES))
    return sorted({*ONES, *TENS, *fixed.split(), *" ".join(WORDS.values()).split()})


def _fill(slot, rng):
    if slot == "digits":
        return " ".join(ONES[i] for i in rng.integers(10, size=rng.integers(3, 6)))
    if slot == "number":
        ten, one = divmod(int(rng.integers(1, 100)), 10)
        if ten < 2:
            return ONES[10 * ten + one]
        return f"{TENS[ten - 2]} {ONES[one]}" if one else TENS[ten - 2]
    words = WORDS[slot].split()
    return words[rng.integers(len(words))]


# --- Recordings -----------------------------------------------------------------


def recordings(
    texts: Sequence[str],
    part: str = "train",
    accent: str | None = None,
    seed: int = 0,
    vary: bool = False,
) -> Utterances:
    """Speaks each text with a voice, speed and pitch that are drawn at random.

    Speeds are 130 to 190 words per minute, and there is up to 0.15 s of silence before
    and after the speech. The largest sample is 0.1 to 1.

    There are few speakers to learn from. `vary` makes each sentence that of another
    one. A longer throat has lower resonances: all frequencies are multiplied by the
    same factor, 0.84 to 1.2. And some bands get louder, others quieter, by a few
    decibels.

    Args:
        texts: Sentences.
        part: See `voices`. Defaults to `"train"`.
        accent: See `voices`. Defaults to `None`.
        seed: Seed of the draws. Defaults to 0.
        vary: If `True`, each voice is varied. Defaults to `False`.

    Returns:
        `Utterances`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no such part or accent.
        ImportError: If espeakng-loader isn't installed.
    """
    names = voices(part, accent)
    given = {"texts": texts, "seed": seed, "vary": vary}
    checks.check("recordings", given, ACCEPTED)
    rng = np.random.default_rng(seed)
    audio, chosen = [], []
    with synthesizer() as speak:
        for text in texts:
            voice = names[rng.integers(len(names))]
            speed, pitch = int(rng.integers(130, 191)), int(rng.integers(20, 81))
            factor = np.exp(rng.uniform(-STRETCH, STRETCH)) if vary else 1.0
            samples, rate = speak(text, voice, round(speed / factor), pitch)
            if vary:  # played faster, the speech is higher, and as fast as it should be
                rate = 100 * round(rate * factor / 100)
            speech = trimmed(_resample(samples, rate))
            if vary:
                speech = _with_tone(speech, rng.normal(0, TONE, 6))
            loudness = 10 ** rng.uniform(-1, 0) / max(abs(speech).max(), 1e-6)
            silence = rng.integers(0, round(0.15 * SAMPLING_RATE), 2)
            audio.append(np.pad(loudness * speech, silence).astype("float32"))
            chosen.append(voice)
    return Utterances(audio, list(texts), chosen)


def _with_tone(audio, decibels):
    """Makes frequencies louder, by decibels from the lowest to the highest."""
    spectrum = np.fft.rfft(audio)
    places = np.linspace(0, 1, len(spectrum))
    gains = np.interp(places, np.linspace(0, 1, len(decibels)), decibels)
    return np.fft.irfft(spectrum * 10 ** (gains / 20), len(audio))


def trimmed(audio: np.ndarray, decibels: float = -40.0) -> np.ndarray:
    """Returns audio without the silence at both ends.

    Args:
        audio: Samples, `(samples,)`.
        decibels: What is this much below the largest sample is silence. Defaults to
            -40.

    Returns:
        A part of `audio`, at least one sample.

    Raises:
        TypeError: If an argument has the wrong type.
    """
    accepted = {**ACCEPTED, "decibels": checks.real("(-1000, 0]")}
    checks.check("trimmed", locals(), accepted)
    audio = np.asarray(audio)
    loud = np.flatnonzero(abs(audio) >= abs(audio).max() * 10 ** (decibels / 20))
    return audio[loud[0] : loud[-1] + 1]


def add_noise(audio: np.ndarray, decibels: float, seed: int = 0) -> np.ndarray:
    """Adds noise, white or pink or in between.

    Args:
        audio: Samples, `(samples,)`.
        decibels: Signal-to-noise ratio: the audio's mean power over that of the noise.
            At 20, the noise is faint; at 0, it is as loud as the speech.
        seed: Seed of the noise. Defaults to 0.

    Returns:
        The sum, of the same shape, float32.

    Raises:
        TypeError: If an argument has the wrong type.

    Example:

    ```python
    kit.data.speech.add_noise(audio, 5.0)
    ```
    """
    checks.check("add_noise", locals(), ACCEPTED)
    rng = np.random.default_rng(seed)
    audio = np.asarray(audio, "float32")
    # Power falls with a random power of the frequency: 0 is white, 1 is pink.
    spectrum = np.fft.rfft(rng.normal(size=len(audio)))
    frequencies = np.arange(1, len(spectrum) + 1)
    noise = np.fft.irfft(spectrum / frequencies ** rng.uniform(0, 0.5), len(audio))
    power = np.square(audio).mean() / 10 ** (decibels / 10)
    noise *= np.sqrt(power / max(np.square(noise).mean(), 1e-20))
    return audio + noise.astype("float32")


# --- Files ----------------------------------------------------------------------


def read_wav(path: str | Path) -> np.ndarray:
    """Reads a WAV file of any rate and number of channels.

    Args:
        path: The file: PCM of 8, 16, 24 or 32 bits, or floats.

    Returns:
        The mean of its channels at 8,000 samples each second, float32.

    Raises:
        TypeError: If `path` isn't a path.
        ValueError: If it isn't such a file, or holds less than 0.1 s.
        OSError: If it can't be read.
    """
    checks.check("read_wav", locals(), ACCEPTED)
    from scipy.io import wavfile

    try:
        rate, samples = wavfile.read(path)
    except ValueError as error:
        raise ValueError(f"{path} must be a WAV file: {error}.") from error
    if len(samples) < 0.1 * rate:
        raise ValueError(
            f"{path} must hold 0.1 s of audio, has {len(samples)} samples."
        )
    if samples.ndim == 2:
        samples = samples.mean(axis=1).astype(samples.dtype)
    return _resample(samples, rate)


def write_wav(path: str | Path, audio: np.ndarray) -> None:
    """Writes samples in [-1, 1] as a WAV file; larger ones are clipped.

    Args:
        path: The file.
        audio: Samples, `(samples,)`.

    Raises:
        TypeError: If an argument has the wrong type.
        OSError: If it can't be written.
    """
    checks.check("write_wav", locals(), ACCEPTED)
    from scipy.io import wavfile

    samples = np.clip(np.round(32767 * np.asarray(audio)), -32768, 32767)
    wavfile.write(path, SAMPLING_RATE, samples.astype("int16"))


def _resample(samples, rate):
    """Returns float32 samples in [-1, 1] at `SAMPLING_RATE`."""
    from scipy.signal import resample_poly

    if samples.dtype == np.uint8:  # 8 bits have no sign
        samples = (samples.astype("float32") - 128) / 128
    elif samples.dtype.kind == "i":
        samples = samples.astype("float32") / -float(np.iinfo(samples.dtype).min)
    divisor = gcd(int(rate), SAMPLING_RATE)
    up, down = SAMPLING_RATE // divisor, int(rate) // divisor
    return resample_poly(samples.astype("float32"), up, down).astype("float32")
