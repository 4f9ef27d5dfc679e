"""The run of a recipe: its folder, metrics and learning curve.

    run = Run("dqn", seed=seed, output_dir=output_dir, config=locals())
    ...                                            # train, evaluate
    agent.save(run.output_dir / "model.keras")
    run.finish(history=history, metrics={"eval_return": 500.0},
               baselines={"random_return": 22.1}, throughput=(8123, "env steps/s"))

`command_line(main)` is the command line of a recipe. `--resume` continues an
interrupted run: the callbacks of `run.backup()` back up its trainings.
"""

import argparse
import csv
import functools
import importlib.metadata
import itertools
import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kit import checks
from kit.backend import import_no_other_framework, set_random_seed
from kit.backups import exit_by_signal
from kit.callbacks import BackupAndRestore
from kit.engines.allocator import keep_freed_memory
from kit.files import replacing
from kit.finite import DivergenceError
from kit.lab.baselines import pair_with_baselines

LIGHT, DARK = "#9ec5e8", "#14508c"  # blues of learning curves
# Of curves that are compared: Okabe and Ito's, which the colour-blind tell apart.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7d4f00")
ACCEPTED = {
    "recipe": checks.TEXT,
    "seed": checks.SEED,
    "output_dir": checks.PATH | None,
    "resume": checks.BOOL,
    "config": checks.instance(Mapping, what="a mapping of arguments by name") | None,
}


class Run:
    """One run of a recipe: sets the seeds, creates the folder, writes the results.

    Create it first in `main`, as it starts the clock. The folder of an earlier run is
    reused, and its files are overwritten one by one. The earlier `metrics.json` is
    deleted when the work begins, and the new one is written last, so a folder with a
    `metrics.json` contains a finished run. Until then, nothing in the folder changes:
    an error in arguments or data leaves the earlier results.

    `backup`, `figure`, `write_texts` and `finish` call `begin`. Call it yourself
    before you write to `output_dir` by other means, and have called none of them.

    Args:
        recipe: Name of the recipe, as in its file name: `"dqn"`.
        seed: Integer, 0 or more. Seeds Python, NumPy and the Keras backend.
        output_dir: Folder for the results, created if missing. Defaults to
            `runs/<recipe>-<backend>-<seed>` in the current directory.
        resume: Whether to resume an interrupted run in this folder. Defaults to
            `False`.
        config: Mapping of this run's arguments, to be recorded: `locals()` in the first
            line of `main`. `seed`, `output_dir` and `resume` are left out, as they are
            recorded elsewhere or not part of the configuration.

    Attributes:
        latest: The run that was created last in this process, or `None`.

    Raises:
        ValueError: If `output_dir` isn't writable; with `resume`, if it contains no
            interrupted run, or one with another `config`.
        TypeError: If a value of `config` can't be written as JSON.
    """

    latest: "Run | None" = None

    def __init__(
        self,
        recipe: str,
        *,
        seed: int = 0,
        output_dir: str | Path | None = None,
        resume: bool = False,
        config: Mapping[str, Any] | None = None,
    ):
        checks.check(self, locals(), ACCEPTED)
        self.recipe = recipe
        self.seed = seed
        self.backend = keras.backend.backend()
        self.config = {
            name: _to_json(value, f"config[{name!r}]")
            for name, value in (config or {}).items()
            if name not in ("seed", "output_dir", "resume")
        }
        default = Path("runs") / f"{recipe}-{self.backend}-{seed}"
        self.output_dir = default if output_dir is None else Path(output_dir)
        self.resume = resume
        if resume:
            self._check_interrupted()
        try:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if (self.output_dir / "metrics.json").is_dir():
                raise IsADirectoryError("metrics.json is a folder")
            with tempfile.NamedTemporaryFile(dir=self.output_dir):
                pass  # Checks permissions, and leaves an earlier run as it is.
        except OSError as error:
            raise ValueError(
                f"output_dir={str(self.output_dir)!r} cannot be written to "
                f"({error}). Choose another folder with --output-dir."
            ) from error
        keep_freed_memory()
        import_no_other_framework()  # It would add to seconds and memory.
        set_random_seed(seed)
        self._has_begun = False
        self._start = time.perf_counter()
        Run.latest = self

    def begin(self) -> None:
        """Deletes an earlier run's `metrics.json` and backups, the first time.

        Call it when arguments and data are known to be good, before anything is written
        to `output_dir`. With `resume`, the backups stay.
        """
        if self._has_begun:
            return
        self._has_begun = True
        (self.output_dir / "metrics.json").unlink(missing_ok=True)
        if not self.resume:
            shutil.rmtree(self._backups, ignore_errors=True)

    @property
    def console(self) -> Any:
        """The `rich.console.Console` to print to; silent where `verbose` is 0."""
        from rich.console import Console

        return Console(quiet=self.config.get("verbose") == 0)

    @property
    def _backups(self):
        return self.output_dir / "backups"

    def _check_interrupted(self):
        """Raises an error if there is no run to resume."""
        if (self.output_dir / "metrics.json").exists():
            raise ValueError(
                f"resume: the run in {self.output_dir} has finished. Leave --resume "
                "out to run it again."
            )
        try:
            text = (self._backups / "config.json").read_text(encoding="utf-8")
            config = json.loads(text)
        except (OSError, ValueError) as error:
            raise ValueError(
                f"resume: {self.output_dir} holds no run that was interrupted ({error})"
                ". Leave --resume out to begin one."
            ) from error
        for name, value in self.config.items():
            if name != "verbose" and config.get(name) != value:
                raise ValueError(
                    f"resume: the run in {self.output_dir} began with {name}="
                    f"{config.get(name)!r}; received {value!r}. Pass the same options."
                )

    def backup(self, training: str = "training") -> BackupAndRestore:
        """Returns a callback that backs up a training, and resumes it with `resume`.

        `finish` deletes the backups.

        Args:
            training: Name of the training, a valid file name, if a run has several.
        """
        self.begin()
        self._backups.mkdir(exist_ok=True)
        config = self._backups / "config.json"
        if not config.exists():
            with replacing(config) as file:
                file.write_text(json.dumps(self.config), encoding="utf-8")
        return BackupAndRestore(
            self._backups / training, restore=self.resume, delete_checkpoint=False
        )

    def finish(
        self,
        *,
        metrics: Mapping[str, Any],
        baselines: Mapping[str, Any],
        throughput: tuple[float, str],
        compile_seconds: float | None = None,
        history: keras.callbacks.History | Sequence[Mapping[str, Any]] = (),
    ) -> dict[str, Any]:
        """Writes `history.csv` and `metrics.json`, and prints a table of the results.

        Nothing is printed if `verbose` is 0.

        Args:
            metrics: The results of this run: numbers, named as in the other recipes.
                NaN and infinities become `null`, as JSON has no such numbers.
            baselines: Numbers to compare the metrics with. A baseline is shown beside
                the metric whose name ends in the same words: `random_return` beside
                `eval_return`.
            throughput: Pair of a number and its unit, `(8123.0, "env steps/s")`.
            compile_seconds: Time spent in compilation, if known.
            history: The result of `fit`, or a list with one mapping per row. NaN
                becomes an empty cell.

        Returns:
            The content of `metrics.json`.
        """
        self.begin()
        wall_seconds = time.perf_counter() - self._start
        record = {
            "recipe": self.recipe,
            "backend": self.backend,
            "seed": self.seed,
            "config": self.config,
            "metrics": dict(metrics),
            "baselines": dict(baselines),
            "throughput": {"value": throughput[0], "unit": throughput[1]},
            "compile_seconds": compile_seconds,
            "wall_seconds": round(wall_seconds, 3),
            "peak_memory_mb": peak_memory_mb(),
            "versions": versions(),
        }
        record = {name: _to_json(value, name) for name, value in record.items()}
        if isinstance(history, keras.callbacks.History):
            history = history_rows(history)
        _write_rows(self.output_dir / "history.csv", history)
        with replacing(self.output_dir / "metrics.json") as file:
            text = json.dumps(record, indent=2, allow_nan=False)
            file.write_text(text + "\n", encoding="utf-8")
        shutil.rmtree(self._backups, ignore_errors=True)
        self._print(record)
        return record

    @contextmanager
    def figure(self, name: str, **options: Any) -> Iterator[Any]:
        """Yields a matplotlib figure to draw in, and saves it in the run's folder.

        Args:
            name: File name; its suffix determines the format, `"digits.png"`.
            **options: Options of `matplotlib.figure.Figure`, such as `figsize` in
                inches.

        Yields:
            The figure, with 150 dots per inch. It never opens a window.

        Example:

        ```python
        with run.figure("digits.png", figsize=(6, 3)) as figure:
            axes = figure.subplots(1, 2)
        ```
        """
        self.begin()
        figure = _new_figure(**options)
        yield figure
        with replacing(self.output_dir / name) as file:
            figure.savefig(file)

    def write_texts(self, name: str, texts: Mapping[str, str]) -> None:
        """Prints texts under their titles, and writes them to a file of the run.

        Args:
            name: File name, `"samples.txt"`.
            texts: Texts by title.
        """
        from rich.panel import Panel
        from rich.text import Text

        self.begin()
        for title, text in texts.items():
            self.console.print(Panel(Text(text), title=title, title_align="left"))
        parts = [f"# {title}\n{text}\n" for title, text in texts.items()]
        with replacing(self.output_dir / name) as file:
            file.write_text("\n".join(parts), encoding="utf-8")

    def _print(self, record: dict[str, Any]) -> None:
        from rich.table import Table

        table = Table(title=f"{self.recipe} · {self.backend} · seed {self.seed}")
        table.add_column("metric")
        table.add_column("this run", justify="right", style="bold")
        table.add_column("baseline")
        table.add_column("", justify="right")
        for metric, baselines in pair_with_baselines(
            record["metrics"], record["baselines"]
        ):
            left = [metric, _number(record["metrics"][metric])] if metric else ["", ""]
            for name in baselines or [""]:
                right = _number(record["baselines"][name]) if name else ""
                table.add_row(*left, name, right)
                left = ["", ""]
        console = self.console
        console.print(table)
        rate = record["throughput"]
        facts = [
            f"{_number(rate['value'])} {rate['unit']}",
            f"{record['wall_seconds']:.1f} s "
            + ("since it was resumed" if self.resume else "in all"),
        ]
        if record["compile_seconds"] is not None:
            facts[1] += f", {record['compile_seconds']:.1f} s of it compiling"
        if record["peak_memory_mb"] is not None:
            facts.append(f"{record['peak_memory_mb']} MB at most")
        console.print("; ".join(facts), highlight=False)
        console.print(f"Results in {self.output_dir}", highlight=False, soft_wrap=True)


def command_line(
    main: Callable[..., Any],
    by_env: Mapping[str | tuple[str, ...], Mapping[str, Any]] | None = None,
) -> None:
    """Runs a recipe with the command line's options, parsed by tyro.

    Ctrl-C and SIGTERM end it with a line that tells how to resume, and with the exit
    codes 130 and 143.

    Args:
        main: The recipe's function; its signature and docstring define the options.
        by_env: Other default values, for environments whose id has a prefix, or one of
            several: `{"ALE/": {"batch_size": 32}}`. Defaults to none.
    """
    import tyro

    for prefix, defaults in (by_env or {}).items():
        if (_chosen_env() or "").startswith(prefix):
            main = functools.partial(main, **defaults)

    signal.signal(signal.SIGTERM, exit_by_signal)
    try:
        tyro.cli(main)
    except KeyboardInterrupt:
        _say_how_to_go_on()
        sys.exit(128 + signal.SIGINT)
    except SystemExit as error:
        if error.code == 128 + signal.SIGTERM:
            _say_how_to_go_on()
        raise
    except DivergenceError as error:
        sys.exit(f"Error: {error}")


def _chosen_env():
    """Returns what `--env` is on the command line, `None` if it isn't there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--env")
    return parser.parse_known_args()[0].env


def _say_how_to_go_on():
    run, command = Run.latest, [x for x in sys.argv if x != "--resume"]
    if run is None or not (run._has_begun or run.resume) or not run._backups.exists():
        return  # there is nothing to resume
    again = shlex.join(["python", *command, "--resume"])
    print(
        f"\nInterrupted. To resume: KERAS_BACKEND={run.backend} {again}",
        file=sys.stderr,
    )


def plot_learning_curve(
    path: str | Path,
    steps: Sequence[float],
    returns: Sequence[float],
    *,
    title: str,
    baseline: float | None = None,
    final: float | None = None,
    window: int | None = None,
    points: str = "episodes",
) -> None:
    """Plots the return of each episode over environment steps, to a file.

    Single returns are light, their moving mean is dark. Two labelled lines mark the
    random and the trained policy's return.

    Args:
        path: File to write; its suffix determines the format, `.png` or `.svg`.
        steps: Environment steps so far at the end of each episode.
        returns: Return of each episode. NaN entries are skipped.
        title: Algorithm, environment, backend and seed.
        baseline: Mean return of the random policy.
        final: Mean return of the trained policy in its final evaluation.
        window: Number of points in the centred moving mean. Defaults to a twentieth of
            all points, but at least five.
        points: The meaning of a point: "episodes", or "intervals" if each is the mean
            over a reporting interval.
    """
    x, y = np.asarray(steps, "float64"), np.asarray(returns, "float64")
    x, y = x[np.isfinite(y)], y[np.isfinite(y)]
    window = window or max(5, len(y) // 20)
    with _curve_figure(path, title, x, baseline, final) as (axes, labels):
        if len(y):
            smooth = _moving_mean(y, window)
            axes.plot(x, y, color=LIGHT, linewidth=0.8)
            axes.plot(x, smooth, color=DARK, linewidth=2)
            # The window size shows the reader how much was smoothed.
            what = f"mean of {window}\n{points}" if window > 1 else points
            labels.append((float(smooth[-1]), what, DARK))


def plot_seeds(
    path: str | Path,
    steps: Sequence[float],
    returns: Sequence[Sequence[float]],
    *,
    title: str,
    baseline: float | None = None,
    final: float | None = None,
) -> None:
    """Plots learning curves of several seeds, to a file.

    Each run is a thin line. The thick line is their mean, with the 95 % interval of the
    mean by Student's t distribution.

    Args:
        path: File to write; its suffix determines the format, `.png` or `.svg`.
        steps: Environment steps at the end of each reporting interval, E of them.
        returns: Mean return of the episodes of each interval, for each of two or more
            runs: `(R, E)`. NaN where no episode ended: the line interpolates.
        title: Algorithm, environment, backend and seeds.
        baseline: Mean return of the random policy.
        final: Mean return of the trained policies in their final evaluation.
    """
    x, y, mean, half = mean_and_interval(steps, returns)
    with _curve_figure(path, title, x, baseline, final) as (axes, labels):
        axes.plot(x, y.T, color=LIGHT, linewidth=0.8)
        axes.fill_between(x, mean - half, mean + half, color=DARK, alpha=0.2, lw=0)
        axes.plot(x, mean, color=DARK, linewidth=2)
        what = f"mean of {len(y)} seeds,\n95 % interval"
        labels.append((float(mean[-1]), what, DARK))


def plot_comparison(
    path: str | Path,
    curves: Mapping[str, tuple[Sequence[float], Sequence[Sequence[float]]]],
    *,
    title: str,
    baseline: float | None = None,
) -> None:
    """Draws the learning curves of several agents, as one picture.

    With several seeds, an agent's line is their mean, inside Student's t interval of
    the mean at 95 %.

    Args:
        path: File to write; its suffix chooses the format, `.png` or `.svg`.
        curves: Agent's label -> steps, and returns of one or more runs, as in
            `plot_seeds`. Colours repeat after seven agents.
        title: What is compared, environment, backend and seeds.
        baseline: Mean return of the random policy.
    """
    steps = max((np.asarray(x, "float64") for x, _ in curves.values()), key=np.max)
    with _curve_figure(path, title, steps, baseline, None) as (axes, labels):
        colors = itertools.cycle(COLORS)
        for color, (name, (at, returns)) in zip(colors, curves.items(), strict=False):
            if len(returns) > 1:
                x, _, mean, half = mean_and_interval(at, returns)
                axes.fill_between(x, mean - half, mean + half, color=color, alpha=0.2)
            else:
                y = np.asarray(returns[0], "float64")
                x, mean = np.asarray(at, "float64")[np.isfinite(y)], y[np.isfinite(y)]
            axes.plot(x, mean, color=color, linewidth=2)
            if len(mean):
                labels.append((float(mean[-1]), name, color))


def mean_and_interval(
    steps: Sequence[float], returns: Sequence[Sequence[float]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Returns the data that `plot_seeds` plots.

    Args:
        steps: As in `plot_seeds`, `(E,)`.
        returns: As in `plot_seeds`, `(R, E)`.

    Returns:
        The steps from the point where every run has ended an episode, at most `(E,)`;
        for these steps, the returns without gaps, `(R, ...)`, their mean, and half the
        width of the interval.
    """
    from kit.lab.intervals import student_half_width

    x, y = np.asarray(steps, "float64"), np.asarray(returns, "float64")
    seen = np.isfinite(y)
    begin = seen.argmax(axis=1).max() if seen.any(axis=1).all() else len(x)
    x, y = x[begin:], np.stack(list(map(_fill, y)))[:, begin:]
    return x, y, y.mean(axis=0), student_half_width(y)


def _fill(values: np.ndarray) -> np.ndarray:
    """Replaces NaN by linear interpolation between its neighbours."""
    at, seen = np.arange(len(values)), np.isfinite(values)
    return np.interp(at, at[seen], values[seen]) if seen.any() else values


def _new_figure(**options: Any) -> Any:
    """Returns a figure that needs no window system, whatever backend is set."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**{"dpi": 150, "layout": "constrained", **options})
    FigureCanvasAgg(figure)
    return figure


@contextmanager
def _curve_figure(
    path: str | Path,
    title: str,
    steps: np.ndarray,
    baseline: float | None,
    final: float | None,
) -> Iterator[tuple[Any, list[tuple[float, str, str]]]]:
    """Yields axes for learning curves, and a list for labels at their ends.

    A label is a height, a text and a colour. Two dashed lines mark the returns of the
    random policy and of the trained one.
    """
    figure = _new_figure(figsize=(8, 4.5))
    axes = figure.add_subplot()
    labels: list[tuple[float, str, str]] = []
    yield axes, labels
    for level, what, color in (
        (baseline, "random policy", "#666666"),
        (final, "final evaluation", "#b4470e"),
    ):
        if level is not None and math.isfinite(level):
            axes.axhline(level, color=color, linewidth=1.2, linestyle="--", zorder=1)
            labels.append((level, f"{what}\n{_number(level)}", color))
    axes.set_title(title, loc="left")
    axes.set_xlabel("Environment steps")
    axes.set_ylabel("Return per episode (sum of rewards)")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlim(0, steps[-1] if len(steps) else None)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)

    low, high = axes.get_ylim()
    heights = [(level - low) / (high - low) for level, _, _ in sorted(labels)]
    for height, (_, what, color) in zip(_spread(heights), sorted(labels), strict=True):
        axes.text(
            1.01, height, what, color=color, va="center", transform=axes.transAxes
        )
    with replacing(Path(path)) as file:
        figure.savefig(file)


def peak_memory_mb() -> int | None:
    """Returns the peak main memory of this process so far, in MB.

    It includes imports, but not an accelerator's memory. `None` if the operating system
    doesn't report it (Windows).
    """
    try:  # Linux. Unlike `ru_maxrss`, not inherited from the parent process.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        kilobytes = status.split("VmHWM:")[1].split()[0]
        return round(int(kilobytes) * 1024 / 1e6)
    except (OSError, IndexError):
        pass
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6)


def versions() -> dict[str, Any]:
    """Returns the versions and the machine, on which results depend."""
    found: dict[str, Any] = {"python": platform.python_version()}
    packages = ("keras", keras.backend.backend(), "numpy", "gymnasium")
    # The version of the package around this one, which may be a copy of parts of the
    # kit (`python -m kit copy`).
    package = sys.modules[str(__package__).rpartition(".")[0]]
    found["keras-algorithm-kit"] = getattr(package, "__version__", None)
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    # Those that this process may use, where the operating system tells.
    may_use = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))
    cpu_count = len(may_use(0))
    return {**found, "platform": platform.platform(), "cpu_count": cpu_count}


def _to_json(value: Any, name: str) -> Any:
    """Converts `value` to JSON's types; NaN and infinities become None."""
    if isinstance(value, Mapping):
        return {str(k): _to_json(v, f"{name}[{k!r}]") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_to_json(v, f"{name}[{i}]") for i, v in enumerate(value)]
    if keras.ops.is_tensor(value) or isinstance(value, keras.Variable):
        value = keras.ops.convert_to_numpy(value)
    if isinstance(value, np.ndarray | np.generic):
        return _to_json(value.tolist(), name)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{name} has no form in JSON: {value!r} ({type(value).__name__}).")


def history_rows(history: keras.callbacks.History, **columns: Any) -> list[dict]:
    """Returns the rows of a training: the epoch, and what was logged in it.

    With several trainings in a run, join their rows, and say which one each is of.

    Args:
        history: The result of `fit`.
        **columns: Further columns, the same in all rows. They come first.

    Raises:
        ValueError: If a quantity wasn't logged in every epoch.

    Example:

    ```python
    rows = history_rows(first, part="first") + history_rows(second, part="second")
    run.finish(history=rows, ...)
    ```
    """
    for name, column in history.history.items():
        if len(column) != len(history.epoch):
            raise ValueError(
                f"history has {len(column)} values of {name!r} in "
                f"{len(history.epoch)} epochs, so they don't form a table. Log it in "
                "every epoch (NaN if there is none), or pass a list of rows."
            )
    logged = {"epoch": history.epoch, **history.history}
    return [
        {**columns, **dict(zip(logged, row, strict=True))}
        for row in zip(*logged.values(), strict=True)
    ]


def _write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with replacing(path) as file, file.open("w", newline="", encoding="utf-8") as f:
        writer = csv.DictWriter(f, names)
        writer.writeheader()
        for i, row in enumerate(rows):
            # Under PyTorch, Keras logs tensors: convert them to numbers.
            writer.writerow(_to_json(row, f"history[{i}]"))


def _moving_mean(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over `window` values; at the edges, over the existing ones."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    centre = np.arange(len(values))
    first = np.maximum(centre - (window - 1) // 2, 0)
    last = np.minimum(centre + window // 2 + 1, len(values))
    return (total[last] - total[first]) / (last - first)


def _spread(heights: list[float], gap: float = 0.11, top: float = 1.0) -> list[float]:
    """Moves ascending heights apart so that labels don't overlap or exceed top."""
    spread = list(heights)
    for i in range(1, len(spread)):
        spread[i] = max(spread[i], spread[i - 1] + gap)
    for i in reversed(range(len(spread))):
        spread[i], top = min(spread[i], top), min(spread[i], top) - gap
    return spread


def _number(value: Any) -> str:
    if value is None:
        return "not a number"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
