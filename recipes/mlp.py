r"""Trains a multilayer perceptron to classify rows of a table, or to predict a number.

You will learn: how to put preprocessing into the model, so that the saved model takes
raw rows; how cross-validation tests a model on every row, but never on a row that it
was trained on; how early stopping finds the number of epochs without using the test
rows; and how well simpler models do, which on tables is often as well.

    KERAS_BACKEND=jax python recipes/mlp.py
    KERAS_BACKEND=torch python recipes/mlp.py --dataset diabetes
    KERAS_BACKEND=tensorflow python recipes/mlp.py --dataset shuttle --batch-size 256

| --dataset     | question                                       | rows   | columns |
|---------------|------------------------------------------------|--------|---------|
| breast_cancer | is the tumour malignant (37 %)?                | 569    | 30      |
| wine          | from which of three growers?                   | 178    | 13      |
| diabetes      | how far will the disease be in a year?         | 442    | 10      |
| phishing      | is the web page a fraud (44 %)?                | 1,250  | 9       |
| shuttle       | are the sensors' readings an anomaly (7 %)?    | 49,097 | 9       |

Expected result: an accuracy of about 0.98 on `breast_cancer`, the same as logistic
regression and scikit-learn's MLPClassifier on the same folds. One row is 0.0018, so the
order of the three changes with the seed.

Accuracy misleads where one class is rare: calling every reading of `shuttle` normal is
right 93 % of the time (baseline `majority_class`) and finds no anomaly at all. So with
two classes, the recipe also reports the balanced accuracy (mean of both classes'
recall), the average precision (area under the precision-recall curve) and the AUROC
(probability that a positive row is scored above a negative one).
`shuttle` is an example of predictive maintenance: sensors of a space shuttle, whose
rare states are the anomalies. The anomalies are not failures that came days later.
In `phishing`, half of the rows repeat another one, as web pages have few features.

To use your own table, add a case to `load_data` that returns its rows as numbers, and
its name to the annotation of `dataset`. To turn words into numbers, use
`keras.layers.StringLookup` or `keras.utils.FeatureSpace`.

Paper: Rumelhart, Hinton and Williams, 1986, https://doi.org/10.1038/323533a0.
Dropout: Srivastava et al., 2014, https://jmlr.org/papers/v15/srivastava14a.html.
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from sklearn import metrics as sk_metrics
from sklearn.compose import TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold, train_test_split
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

import kit
from kit.lab.run import Run, command_line


class Table(NamedTuple):
    """Rows of numbers `x`, `(N, columns)`, and targets `y`, `(N,)`.

    `classes` are the names of the classes 0, 1, ...; empty if `y` is a quantity. With
    two classes, class 1 is the positive one.
    """

    x: np.ndarray
    y: np.ndarray
    classes: tuple[str, ...] = ()


def load_data(name: str) -> Table:
    """Returns a table by name. Add a case to use your own data."""
    if name == "breast_cancer":
        x, y = load_breast_cancer(return_X_y=True)
        return _table(x, 1 - y, "benign", "malignant")
    if name == "wine":
        return _table(*load_wine(return_X_y=True), "grower 1", "grower 2", "grower 3")
    if name == "diabetes":
        return _table(*load_diabetes(return_X_y=True, scaled=False))
    if name in ("phishing", "shuttle"):
        try:
            from river import datasets
        except ImportError as error:
            raise ImportError(
                f"The data of --dataset {name} come with river, which isn't installed: "
                "`python -m pip install river`, or kit's extra `recipes`."
            ) from error
        rows = datasets.Phishing() if name == "phishing" else datasets.Shuttle()
        x, y = zip(*((list(row.values()), target) for row, target in rows), strict=True)
        if name == "phishing":
            return _table(x, y, "genuine", "phishing")
        return _table(x, y, "normal", "anomaly")
    raise ValueError(
        f"dataset={name!r} is not known. Accepted: 'breast_cancer', 'wine', "
        "'diabetes', 'phishing', 'shuttle'."
    )


def _table(x: Any, y: Any, *classes: str) -> Table:
    x, y = np.asarray(x, "float32"), np.asarray(y, "int32" if classes else "float32")
    if not np.isfinite(x).all():
        row, column = np.argwhere(~np.isfinite(x))[0]
        raise ValueError(
            f"Row {row} of the data has {x[row, column]} in column {column}; every "
            "entry must be a finite number: fill gaps in, or leave such rows out."
        )
    return Table(x, y, classes)


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Multilayer perceptron",
    "place": 1,
    "score": "test_accuracy",
    "larger_is_better": True,
    "curve": "val_loss",
    "quick": "--folds 2 --epochs 30",
}


def main(
    *,
    dataset: Literal[
        "breast_cancer", "wine", "diabetes", "phishing", "shuttle"
    ] = "breast_cancer",
    folds: int = 5,
    units: tuple[int, ...] = (64,),
    dropout: float = 0.3,
    learning_rate: float = 1e-3,
    batch_size: int = 32,
    epochs: int = 200,
    patience: int = 20,
    validation_fraction: float = 0.15,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Cross-validates an MLP and its baselines, then trains one on all rows.

    Args:
        dataset: Name of the table, see above.
        folds: Parts of the rows. Each is the test set once; the others are for
            training.
        units: Sizes of the hidden layers.
        dropout: Share of each hidden layer's outputs to drop in training.
        learning_rate: Step size of Adam.
        batch_size: Rows in a gradient step.
        epochs: Passes over the rows, at most.
        patience: Epochs without a lower validation loss before training stops.
        validation_fraction: Share of the training rows held out for validation.
        seed: Seed of all random draws, including the folds.
        output_dir: Folder for the results; runs/mlp-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 a line for each fold, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("mlp", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    check_arguments(**run.config)
    x, y, classes = table = load_data(dataset)
    rarest = min(np.bincount(y)) if classes else len(y)
    if not 2 <= folds <= rarest:
        raise ValueError(
            f"folds={folds} must be from 2 to {rarest}, the number of rows "
            f"{'of the rarest class' if classes else ''} in {dataset}."
        )
    settings: dict[str, Any] = {
        "units": units,
        "dropout": dropout,
        "learning_rate": learning_rate,
        "batch_size": batch_size,
        "epochs": epochs,
        "patience": patience,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "verbose": 2 if verbose == 2 else 0,
    }

    # All models get the same folds, stratified by class.
    kind = StratifiedKFold if classes else KFold
    splits = list(kind(folds, shuffle=True, random_state=seed).split(x, y))
    baselines = make_baselines(classes, seed)
    scores: dict[str, list] = {name: [] for name in ("mlp", *baselines)}
    # Each row's prediction, from the model that was not trained on it.
    out_of_fold = np.zeros((len(y), len(classes) or 1))
    history = []
    for fold, (train, test) in enumerate(splits, 1):
        for name, estimator in baselines.items():
            with threadpool_limits(1):  # Its threads block each other on busy cores.
                estimator.fit(x[train], y[train])
            predict = estimator.predict_proba if classes else estimator.predict
            scores[name].append(score(y[test], predict(x[test]), classes))
        part = Table(x[train], y[train], classes)
        backup = run.backup(f"fold-{fold}")
        model, epochs_log = train_mlp(part, backup=backup, **settings)
        out_of_fold[test] = keras.ops.convert_to_numpy(model(x[test]))
        scores["mlp"].append(score(y[test], out_of_fold[test], classes))
        history += [{"fold": fold, **row} for row in epochs_log]
        if verbose:
            result = ", ".join(f"{k} {v:.4g}" for k, v in scores["mlp"][-1].items())
            print(f"fold {fold} of {folds}: {result}; {len(epochs_log)} epochs")

    # The folds measured how good such a model is; the final model learns from all rows.
    model, epochs_log = train_mlp(table, backup=run.backup("all"), **settings)
    model.save(run.output_dir / "model.keras")
    with run.figure("result.png", figsize=(11.5, 4)) as figure:
        draw(figure, scores, y, out_of_fold, classes)
        figure.suptitle(f"MLP on {dataset}, {folds} folds ({run.backend}, seed {seed})")
    mean = {
        (name, key): float(np.mean([fold[key] for fold in results]))
        for name, results in scores.items()
        for key in results[0]
    }
    seconds = np.median([row["seconds"] / row["rows"] for row in history])
    return run.finish(
        history=history,
        metrics={f"test_{k}": v for (name, k), v in mean.items() if name == "mlp"},
        baselines={
            f"{name}_test_{k}": v for (name, k), v in mean.items() if name != "mlp"
        },
        throughput=(1 / seconds, "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def train_mlp(
    table: Table,
    *,
    units: tuple[int, ...],
    dropout: float,
    learning_rate: float,
    batch_size: int,
    epochs: int,
    patience: int,
    validation_fraction: float,
    seed: int,
    backup: kit.BackupAndRestore,
    verbose: int,
) -> tuple[keras.Model, list[dict[str, Any]]]:
    """Returns a trained model that takes raw rows, and the history of each epoch."""
    x, x_val, y, y_val = train_test_split(
        table.x,
        table.y,
        test_size=validation_fraction,
        random_state=seed,
        stratify=table.y if table.classes else None,
    )
    # Adapt to the training rows only: statistics of validation and test rows would
    # leak information about them.
    normalization = keras.layers.Normalization()
    normalization.adapt(x)
    layers = [
        keras.Input((x.shape[1],)),
        normalization,
        kit.mlp(
            (x.shape[1],),
            len(table.classes) or 1,
            units=units,
            dropout=dropout,
            output_activation="softmax" if table.classes else None,
        ),
    ]
    if not table.classes:  # scale outputs back to the unit of y
        y, y_val = y[:, None], y_val[:, None]
        units_of_y = keras.layers.Normalization(invert=True)
        units_of_y.adapt(y)
        layers.append(units_of_y)
    model = kit.Sequential(layers)
    kit.initialize_weights(model, seed)
    model.compile(
        optimizer=keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy" if table.classes else "mse",
    )
    stop = keras.callbacks.EarlyStopping(patience=patience, restore_best_weights=True)
    history = model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        validation_data=(x_val, y_val),
        callbacks=[kit.EpochTimer(), stop, backup],
        verbose=verbose,
    )
    rows = zip(*history.history.values(), strict=True)
    return model, [
        {"epoch": i, "rows": len(x), **dict(zip(history.history, row, strict=True))}
        for i, row in enumerate(rows)
    ]


def make_baselines(classes: tuple[str, ...], seed: int) -> dict[str, Any]:
    """Returns scikit-learn's models, each with the best of its usual settings."""
    if classes:
        return {
            "majority_class": DummyClassifier(),
            "logistic_regression": make_pipeline(
                StandardScaler(), LogisticRegression(max_iter=1000)
            ),
            "gradient_boosting": HistGradientBoostingClassifier(random_state=seed),
            # No early stopping: it made this model worse on each of these tables.
            "sklearn_mlp": make_pipeline(
                StandardScaler(), MLPClassifier(max_iter=1000, random_state=seed)
            ),
        }
    # Without early stopping, it overfits on `diabetes`.
    sklearn_mlp = MLPRegressor(max_iter=1000, early_stopping=True, random_state=seed)
    return {
        "mean_of_y": DummyRegressor(),
        "linear_regression": make_pipeline(StandardScaler(), LinearRegression()),
        "gradient_boosting": HistGradientBoostingRegressor(random_state=seed),
        "sklearn_mlp": TransformedTargetRegressor(
            make_pipeline(StandardScaler(), sklearn_mlp), transformer=StandardScaler()
        ),
    }


def score(y: np.ndarray, predicted: np.ndarray, classes: tuple) -> dict[str, float]:
    """Returns the scores of predicted probabilities `(N, classes)`, or of numbers."""
    if not classes:
        predicted = predicted.reshape(-1)
        return {
            "rmse": sk_metrics.root_mean_squared_error(y, predicted),
            "mae": sk_metrics.mean_absolute_error(y, predicted),
        }
    scores = {"accuracy": sk_metrics.accuracy_score(y, predicted.argmax(1))}
    if len(classes) == 2:
        scores |= {
            "balanced_accuracy": sk_metrics.balanced_accuracy_score(
                y, predicted.argmax(1)
            ),
            "average_precision": sk_metrics.average_precision_score(y, predicted[:, 1]),
            "auroc": sk_metrics.roc_auc_score(y, predicted[:, 1]),
        }
    return scores


def draw(
    figure: Any,
    scores: dict[str, list],
    y: np.ndarray,
    predicted: np.ndarray,
    classes: tuple[str, ...],
) -> None:
    """Plots each model's score per fold, and the MLP's out-of-fold predictions."""
    shown = [
        key
        for key in ("rmse", "accuracy", "average_precision")
        if key in scores["mlp"][0]
    ]
    *panels, last = figure.subplots(1, len(shown) + 1)
    # Leave out the trivial baseline: it would set the scale. metrics.json has it.
    names = [name for name in scores if name not in ("majority_class", "mean_of_y")]
    for axes, key in zip(panels, shown, strict=True):
        for place, name in enumerate(names):
            values = [fold[key] for fold in scores[name]]
            color = "#b4470e" if name == "mlp" else "#14508c"
            axes.plot(values, [place] * len(values), "o", color=color, alpha=0.35)
            axes.plot(np.mean(values), place, "|", color=color, ms=22, mew=2.5)
            axes.text(
                np.mean(values),
                place - 0.27,
                f"{np.mean(values):.4g}",
                color=color,
                ha="center",
            )
        axes.set_yticks(
            range(len(names)),
            [name.replace("_", " ") for name in names] if axes is panels[0] else [],
        )
        axes.set_ylim(len(names) - 0.5, -0.6)
        better = "lower" if key == "rmse" else "higher"
        axes.set_xlabel(f"{key.replace('_', ' ')} ({better} is better)")
        axes.set_title("Test score of each fold, and mean", loc="left", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#e6e6e6")
        axes.set_axisbelow(True)
    if classes:
        sk_metrics.ConfusionMatrixDisplay.from_predictions(
            y,
            predicted.argmax(1),
            display_labels=classes,
            ax=last,
            cmap="Blues",
            normalize=None,
            colorbar=False,
            values_format=",d",
        )
        last.set_title("Rows, by the MLP that had not seen them", fontsize=10)
    else:
        ends = [min(y.min(), predicted.min()), max(y.max(), predicted.max())]
        last.plot(ends, ends, color="#666666", linewidth=1)
        last.plot(y, predicted[:, 0], ".", color="#b4470e", alpha=0.5)
        last.set_title("Rows, by the MLP that had not seen them", fontsize=10)
        last.set(xlabel="true value", ylabel="predicted value", aspect="equal")


def check_arguments(**given: Any) -> None:
    """Raises ValueError for an argument that would fail later in the run."""
    limits = {
        "dropout": (0 <= given["dropout"] < 1, "at least 0 and below 1"),
        "learning_rate": (given["learning_rate"] > 0, "above 0"),
        "batch_size": (given["batch_size"] >= 1, "at least 1"),
        "epochs": (given["epochs"] >= 1, "at least 1"),
        "patience": (given["patience"] >= 0, "at least 0"),
        "validation_fraction": (
            0 < given["validation_fraction"] < 1,
            "above 0 and below 1",
        ),
    }
    for name, (fine, accepted) in limits.items():
        if not fine:
            raise ValueError(f"{name}={given[name]} must be {accepted}.")


if __name__ == "__main__":
    command_line(main)
