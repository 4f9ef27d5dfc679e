"""Judges predictions for the rows of a table: decisions, scores, other models.

A model gives probabilities. A decision also needs the costs of errors, and
probabilities that are neither too sure nor too cautious: `choose_rule` finds a
threshold and a temperature for an ensemble's logits.

Shapes: N rows, M members of an ensemble, K classes.

Temperature: Guo et al., 2017, https://arxiv.org/abs/1706.04599.
"""

from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import softmax
from sklearn import metrics as sk_metrics
from sklearn.compose import TransformedTargetRegressor
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
)
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

# --- From outputs to decisions ------------------------------------------------------


class Costs(NamedTuple):
    """The costs of the two errors."""

    false_negative: float
    false_positive: float

    def mean(self, y: np.ndarray, positive: np.ndarray) -> float:
        """Returns the mean cost of calling rows of classes y (N,) positive or not."""
        missed, alarm = (y == 1) & ~positive, (y == 0) & positive
        total = self.false_negative * missed + self.false_positive * alarm
        return float(np.mean(total))


class Rule(NamedTuple):
    """How to read an ensemble: a temperature for its logits, and a threshold."""

    temperature: float = 1.0
    threshold: float = 0.5


def combine(
    outputs: np.ndarray, temperature: float | np.ndarray, classes: tuple[str, ...]
) -> np.ndarray:
    """Returns an ensemble's predictions (N, K) from the outputs (N, M, K)."""
    if classes:
        outputs = softmax(outputs / temperature, axis=-1)
    return outputs.mean(axis=1)


def choose_rule(
    y: np.ndarray, unseen: np.ndarray, classes: tuple[str, ...], costs: Costs
) -> Rule:
    """Chooses the temperature of the lowest log loss, and the cheapest threshold.

    The temperature stays 1 unless the gain is at least two standard errors.

    Args:
        y: Classes (n,).
        unseen: Logits (n, M, K) of ensembles that haven't learned from these rows.
        classes: Names of the classes.
        costs: Costs of the errors.
    """
    if not classes:
        return Rule()

    def losses(log_temperature):
        p = combine(unseen, np.exp(log_temperature), classes)
        return -np.log(np.clip(p[np.arange(len(y)), y], 1e-15, None))

    best = minimize_scalar(lambda t: losses(t).mean(), bounds=(-3, 3), method="bounded")
    # A few rows decide on a small gain. Then the next rows may as well lose by it.
    gains = losses(0.0) - losses(best.x)
    clear = gains.mean() > 2 * gains.std() / np.sqrt(len(y))
    temperature = float(np.exp(best.x)) if clear else 1.0
    if len(classes) > 2:
        return Rule(temperature)
    p = combine(unseen, temperature, classes)[:, 1]
    false_alarms, found, thresholds = sk_metrics.roc_curve(y, p)
    total = costs.false_positive * false_alarms * np.sum(y == 0)
    total += costs.false_negative * (1 - found) * np.sum(y == 1)
    return Rule(temperature, float(min(thresholds[np.argmin(total)], 1.0)))


# --- Other models, scores -----------------------------------------------------------


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


def log_loss(y: np.ndarray, p: np.ndarray) -> float:
    """Returns the mean of -log p of the true class, of probabilities (N, K)."""
    # scikit-learn's function does the same, with checks that take a hundred times as
    # long: too long for each of many permutations.
    return -float(np.mean(np.log(np.clip(p[np.arange(len(y)), y], 1e-15, None))))


def score(y: np.ndarray, predicted: np.ndarray, classes: tuple) -> dict[str, float]:
    """Returns the scores of predicted probabilities `(N, classes)`, or of numbers."""
    if not classes:
        predicted = predicted.reshape(-1)
        return {
            "rmse": sk_metrics.root_mean_squared_error(y, predicted),
            "mae": sk_metrics.mean_absolute_error(y, predicted),
        }
    chosen = predicted.argmax(axis=1)
    scores = {
        "accuracy": sk_metrics.accuracy_score(y, chosen),
        "log_loss": log_loss(y, predicted),
    }
    if len(classes) == 2:
        positive = predicted[:, 1]
        scores |= {
            "brier": sk_metrics.brier_score_loss(y, positive),
            "balanced_accuracy": sk_metrics.balanced_accuracy_score(y, chosen),
            "average_precision": sk_metrics.average_precision_score(y, positive),
            "auroc": sk_metrics.roc_auc_score(y, positive),
        }
    return scores


def mean_scores(scores: list[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of each score over the folds."""
    return {key: float(np.mean([fold[key] for fold in scores])) for key in scores[0]}
