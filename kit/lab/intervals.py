"""Intervals of a mean at 95 %: over seeds, and over the examples of a test."""

import numpy as np
from scipy import stats


def student_half_width(values: np.ndarray) -> np.ndarray:
    """Returns half the width of Student's t interval of the means of `(R, ...)`.

    It is for few independent values, such as the scores of R seeds.
    """
    number = len(values)
    error = np.std(values, axis=0, ddof=1) / number**0.5
    return stats.t.ppf(0.975, number - 1) * error


def bootstrap_interval(values: np.ndarray, seed: int) -> tuple[float, float]:
    """Returns the ends of the interval of the mean of `(N,)`, by the bootstrap.

    It is for many values of any distribution, such as the scores of test examples.
    """
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    rng = np.random.default_rng(seed)
    found = stats.bootstrap((values,), np.mean, rng=rng, method="percentile")
    low, high = found.confidence_interval
    return float(low), float(high)
