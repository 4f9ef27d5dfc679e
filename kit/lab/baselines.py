"""Pairs metrics with their baselines, by their names."""

from collections.abc import Mapping
from typing import Any


def pair_with_baselines(
    metrics: Mapping[str, Any], baselines: Mapping[str, Any]
) -> list[tuple[str, list[str]]]:
    """Pairs each baseline with the metric whose last words its name shares most.

    Args:
        metrics: Metrics by name.
        baselines: Baselines by name.

    Returns:
        Pairs of a metric's name and the names of its baselines. Baselines without a
        metric are under an empty name.
    """
    # Not with `kit.checks`, as the commands that use this don't import Keras.
    for name, value in (("metrics", metrics), ("baselines", baselines)):
        if not isinstance(value, Mapping):
            raise TypeError(
                f"pair_with_baselines: `{name}` must be a mapping of figures by name, "
                f"received {value!r} of type {type(value).__name__}."
            )
    pairs: dict[str, list[str]] = {name: [] for name in metrics}
    for baseline in baselines:
        scores = {metric: _common_words(metric, baseline) for metric in metrics}
        best = max(scores, key=lambda metric: scores[metric], default="")
        pairs.setdefault(best if scores.get(best) else "", []).append(baseline)
    return list(pairs.items())


def _common_words(a: str, b: str) -> int:
    """Counts the words at the end of both names: 1 for eval_return, random_return."""
    pairs = zip(reversed(a.split("_")), reversed(b.split("_")), strict=False)
    same = [x == y for x, y in pairs]
    return same.index(False) if False in same else len(same)
