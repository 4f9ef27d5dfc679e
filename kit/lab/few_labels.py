"""Few labels: draws of examples, trainings anew, and how their scores compare."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from kit.backend import set_random_seed
from kit.initialization import initialize_weights
from kit.lab.intervals import student_half_width
from kit.lab.run import COLORS


def restarter(model: keras.Model, optimizers: Sequence[Any]) -> Callable[[int], None]:
    """Returns a function of a seed that makes a model untrained again.

    A new model would have to be compiled anew.
    """
    for optimizer in optimizers:
        if not optimizer.built:
            optimizer.build(model.trainable_variables)
    variables = [v for optimizer in optimizers for v in optimizer.variables]
    values = [keras.ops.convert_to_numpy(v) for v in variables]

    def restart(seed: int) -> None:
        set_random_seed(seed)  # the order of the images
        initialize_weights(model, seed)
        for variable, value in zip(variables, values, strict=True):
            variable.assign(value)

    return restart


def draw_labelled(
    x: np.ndarray, y: np.ndarray, count: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draws `count` examples of each class; with more, the first are the same.

    The classes take turns.

    Args:
        x: Examples (N, ...).
        y: Their classes (N,), integers from 0.
        count: Examples to draw of each class, which has at least so many.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    classes = range(int(y.max()) + 1)
    places = [rng.permutation(np.flatnonzero(y == c))[:count] for c in classes]
    rows = np.stack(places, axis=1).ravel()
    return x[rows], y[rows]


def mean_and_half_width(values: Sequence[float]) -> tuple[float, float]:
    """Returns the mean, and half of its 95 % interval (Student's t), 0 for one."""
    half = student_half_width(np.array(values)) if len(values) > 1 else 0.0
    return float(np.mean(values)), float(half)


def plot_by_labels(
    axes: Any,
    scores: Mapping[str, Mapping[int, Sequence[float]]],
    titles: Mapping[str, str],
) -> None:
    """Plots accuracy over the number of labels, with 95 % intervals over the draws.

    Args:
        axes: Axes of matplotlib.
        scores: Accuracies of several draws, by way and number of labels.
        titles: The ways' names in the legend.
    """
    lowest = 100.0
    for i, (way, by_count) in enumerate(scores.items()):
        points = [mean_and_half_width(values) for values in by_count.values()]
        means, halves = (100 * np.array(x) for x in zip(*points, strict=True))
        lowest = min(lowest, means.min())
        # Bars stand side by side.
        at = np.array(list(by_count)) * 1.02 ** (i - (len(scores) - 1) / 2)
        color, label = COLORS[i % len(COLORS)], titles[way]
        axes.errorbar(
            at, means, halves, color=color, marker="o", capsize=3, label=label
        )
    # Intervals of two or three draws can be wider than the range of an accuracy.
    axes.set_ylim(max(0.0, lowest - 10.0), 101.0)
    axes.set_xscale("log")
    axes.set_xticks(list(by_count), [str(count) for count in by_count])
    axes.set_xticks([], minor=True)
    axes.set(xlabel="Labelled images of each class", ylabel="Accuracy in %")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6")
    axes.legend(frameon=False, loc="lower right")
