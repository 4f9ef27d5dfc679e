"""Pictures of predictions for the rows of a table."""

from typing import Any

import numpy as np
from sklearn import metrics as sk_metrics
from sklearn.calibration import calibration_curve

from kit.data.tables import Table
from kit.lab.run import Run
from kit.lab.table_scores import Costs

OURS, OTHERS = "#b4470e", "#14508c"


def draw_scores(
    run: Run,
    table: Table,
    scores: dict[str, list],
    predicted: np.ndarray,
    thresholds: np.ndarray,
) -> None:
    """Plots each model's scores per fold, and what the ensembles say of all rows."""
    shown = [
        key
        for key in ("rmse", "accuracy", "average_precision")
        if key in scores["mlp"][0]
    ]
    # Leave out the trivial baseline: it would set the scale. metrics.json has it.
    hidden = ("majority_class", "mean_of_y", "uncalibrated")
    names = [name for name in scores if name not in hidden]
    with run.figure("result.png", figsize=(11.5, 4), layout="constrained") as figure:
        *panels, last = figure.subplots(1, len(shown) + 1)
        for axes, key in zip(panels, shown, strict=True):
            for place, name in enumerate(names):
                values = [fold[key] for fold in scores[name]]
                mean, color = np.mean(values), OURS if name == "mlp" else OTHERS
                axes.plot(values, [place] * len(values), "o", color=color, alpha=0.35)
                axes.plot(mean, place, "|", color=color, ms=22, mew=2.5)
                axes.text(mean, place - 0.27, f"{mean:.4g}", color=color, ha="center")
            labels = [name.replace("_", " ") for name in names]
            axes.set_yticks(range(len(names)), labels if axes is panels[0] else [])
            axes.set_ylim(len(names) - 0.5, -0.6)
            better = "lower" if key == "rmse" else "higher"
            axes.set_xlabel(f"{key.replace('_', ' ')} ({better} is better)")
            axes.set_title("Test score of each fold, and mean", loc="left", fontsize=10)
            tidy(axes)
        if table.classes:
            chosen = predicted.argmax(axis=1)
            if len(table.classes) == 2:
                chosen = (predicted[:, 1] >= thresholds).astype(int)
            sk_metrics.ConfusionMatrixDisplay.from_predictions(
                table.y,
                chosen,
                display_labels=table.classes,
                ax=last,
                cmap="Blues",
                normalize=None,
                colorbar=False,
                values_format=",d",
            )
        else:
            y, predicted = table.y, predicted[:, 0]
            ends = [min(y.min(), predicted.min()), max(y.max(), predicted.max())]
            last.plot(ends, ends, color="#666666", linewidth=1)
            last.plot(y, predicted, ".", color=OURS, alpha=0.5)
            last.set(xlabel="true value", ylabel="predicted value", aspect="equal")
        decided = ", decided by costs" if len(table.classes) == 2 else ""
        last.set_title(f"Rows that were not seen{decided}", fontsize=10)
        figure.suptitle(
            f"MLPs on {table.target}, {len(scores['mlp'])} folds ({run.backend}, seed "
            f"{run.seed})"
        )


def draw_probabilities(
    run: Run,
    table: Table,
    predicted: dict[str, np.ndarray],
    thresholds: np.ndarray,
    costs: Costs,
) -> None:
    """Plots how often rows of a probability are positive, and the costs by threshold.

    With more than two classes: how often the most probable class is right.
    """
    binary = len(table.classes) == 2
    with run.figure(
        "probabilities.png", figsize=(9 if binary else 4.5, 4), layout="constrained"
    ) as figure:
        left, *right = figure.subplots(1, 1 + binary, squeeze=False)[0]
        left.plot([0, 1], [0, 1], color="#666666", linewidth=1)
        for name, label, color in (
            ("sklearn_mlp", "scikit-learn's MLP", "#999999"),
            ("uncalibrated", "MLPs without temperatures", OTHERS),
            ("mlp", "MLPs", OURS),
        ):
            p = predicted[name]
            hit = table.y if binary else table.y == p.argmax(axis=1)
            p = p[:, 1] if binary else p.max(axis=1)
            share, mean = calibration_curve(hit, p, n_bins=10, strategy="quantile")
            left.plot(mean, share, "o-", color=color, label=label)
        left.set_title("Reliability: on the line is right", loc="left", fontsize=10)
        what = f"is {table.classes[1]}" if binary else "has the most probable class"
        left.set(xlabel="predicted probability", ylabel=f"share of rows that {what}")
        left.legend(frameon=False)
        tidy(left)
        for axes in right:
            p, x = predicted["mlp"][:, 1], np.linspace(0, 1, 201)
            y = [costs.mean(table.y, p >= threshold) for threshold in x]
            axes.plot(x, y, color=OURS)
            axes.set_ylim(0, 1.5 * np.median(y))
            theory = costs.false_positive / sum(costs)
            for label, at, style in (
                ("half", 0.5, ":"),
                ("theory, for calibrated probabilities", theory, "--"),
                ("chosen, mean of the folds", thresholds.mean(), "-"),
            ):
                axes.axvline(
                    at, color=OTHERS, linestyle=style, linewidth=1, label=label
                )
            axes.set_title(
                f"A missed row costs {costs.false_negative:g}, a false alarm "
                f"{costs.false_positive:g}",
                loc="left",
                fontsize=10,
            )
            axes.set(xlabel="threshold", ylabel="mean cost of a row")
            axes.legend(frameon=False)
            tidy(axes)


def draw_importance(run: Run, table: Table, importances: np.ndarray) -> None:
    """Plots how much the loss grows if a column is permuted, (columns, repeats)."""
    order = np.argsort(importances.mean(axis=1))[::-1]
    names = [list(table.columns)[i].replace("_", " ") for i in order]
    unit = "log loss" if table.classes else "RMSE"
    with run.figure(
        "importance.png",
        figsize=(7, 1.2 + 0.24 * min(len(order), 20)),
        layout="constrained",
    ) as figure:
        axes = figure.subplots()
        for place, i in enumerate(order[:20]):
            axes.plot(importances[i], [place] * len(importances[i]), ".", color=OTHERS)
            axes.barh(place, importances[i].mean(), color=OURS, alpha=0.5)
        axes.set_yticks(range(len(order[:20])), names[:20])
        axes.invert_yaxis()
        axes.set_xlabel(f"increase of the {unit} if the column is permuted")
        axes.set_title("What the predictions need", loc="left", fontsize=10)
        tidy(axes)


def tidy(axes: Any) -> None:
    """Removes the frame, and draws a light grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e6e6e6")
    axes.set_axisbelow(True)
