"""What the benchmarks share: contestants that take turns, and a table.

On a noisy machine only what ran side by side can be compared: contestants run one
after the other in each round (A B C A B C ...), and a ratio is the median of the
ratios within the rounds.
"""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kit.lab.run import versions

Tasks = dict[str, Callable[[], Any]]  # contestant -> runs once, returns its result


def measure(
    task: str,
    contestants: Tasks,
    calls: int,
    seconds: float,
    rounds: int,
) -> dict[str, list[float]]:
    """Returns microseconds a call: for each contestant, one figure a round.

    Raises:
        AssertionError: If a contestant's result isn't that of `"native"`.
    """
    results = {who: run() for who, run in contestants.items()}  # compiles, too
    expected = results["native"]
    for who, result in results.items():
        if not np.allclose(result, expected, rtol=1e-3, atol=1e-5):
            raise AssertionError(f"{task}: {who} computes {result}, native {expected}.")
    repeats = {}
    for who, run in contestants.items():
        start = time.perf_counter()
        run()
        repeats[who] = max(1, round(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {who: [] for who in contestants}
    for _ in range(rounds):
        for who, run in contestants.items():
            start = time.perf_counter()
            for _ in range(repeats[who]):
                run()
            elapsed = time.perf_counter() - start
            times[who].append(1e6 * elapsed / (repeats[who] * calls))
    return times


def summary(times: dict[str, list[float]], keras_own: str) -> list[dict[str, Any]]:
    """Returns a row for each contestant, beside `"native"` and Keras' own."""

    def ratio(a: str, b: str) -> float:
        pairs = zip(times[a], times[b], strict=True)
        return statistics.median(x / y for x, y in pairs)

    return [
        {
            "contestant": who,
            "median_us": statistics.median(column),
            "min_us": min(column),
            "of_native": ratio(who, "native"),
            "keras_of_it": ratio(keras_own, who),
        }
        for who, column in times.items()
    ]


def print_table(rows: list[dict[str, Any]], unit: str, keras_own: str) -> None:
    """Prints the rows of `summary`, each with its `task`."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        title=f"{keras.backend.backend()}: {unit}",
        caption=f"x Keras: how many times faster than {keras_own}",
    )
    table.add_column("")
    for column in ("median", "min", "time / native", "x Keras"):
        table.add_column(column, justify="right")
    task = None
    for row in rows:
        if row["task"] != task:
            table.add_section()
            table.add_row(task := row["task"], style="bold")
        table.add_row(
            "  " + row["contestant"],
            f"{row['median_us']:,.0f}",
            f"{row['min_us']:,.0f}",
            f"{row['of_native']:.2f}",
            f"{row['keras_of_it']:.1f}",
        )
    Console().print(table)


def write_report(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes the rows with versions and machine, as JSON."""
    report = {"backend": keras.backend.backend(), "versions": versions()}
    path.write_text(json.dumps({**report, "rows": rows}, indent=2) + "\n")


def adam(w: Any, g: Any, m: Any, v: Any, t: Any, sqrt: Callable, rate: float) -> tuple:
    """One weight's step by Kingma and Ba, 2015, with Keras' epsilon."""
    m = m + 0.1 * (g - m)
    v = v + 0.001 * (g * g - v)
    rate = rate * sqrt(1 - 0.999**t) / (1 - 0.9**t)
    return w - rate * m / (sqrt(v) + 1e-7), m, v
