"""Reports on the runs of `kit.tools.compare`: tables, plots and pages.

    python -m kit report                                # from reports/runs
    python -m kit report --curves docs/curves           # from reports/runs, too
    python -m kit report --readme docs/comparison.md    # from reports/backends.json
    python -m kit report --readme docs/comparison.md --check

`backends.json` has all results, `backends.md` and `backends.html` show them; the recipe
declares its score (kit/tools/scores.py). `--curves` also writes the learning curves as
small CSV files, from which the documentation draws its pictures. A spread is the
standard deviation over seeds; an interval is the 95 % interval of the mean by Student's
t distribution. Backends are called equal if Welch's t-test finds no significant
difference, which doesn't prove that they are equal.
"""

import collections
import csv
import itertools
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kit.lab.baselines import pair_with_baselines
from kit.tools import catalog
from kit.tools.compare import BACKENDS, PARITY, read_json, require
from kit.tools.plots import Curve, learning_curves
from kit.tools.scores import (
    BOUNDS,
    CURVES,
    check_comparison,
    read_comparison,
    references,
    score_of,
)

NAMES = {"tensorflow": "TensorFlow", "jax": "JAX", "torch": "PyTorch"}
BEGIN, END = "<!-- compare:begin -->", "<!-- compare:end -->"
TEMPLATES = Path(__file__).with_name("templates")

Record = dict[str, Any]

SIGNIFICANCE = 0.05  # Backends are called equal from this p-value on.
ROUNDING = 1e-6  # Relative differences up to this are treated as rounding.

POINTS = 100  # of a run's learning curve in a CSV file, at most

# Instead of who is fastest, where only quick runs could tell.
QUICK_TIME = "quick runs: largely compilation"


def report(
    *,
    output_dir: Path = Path("reports"),
    curves: Path | None = None,
    readme: Path | None = None,
    check: bool = False,
) -> int:
    """Writes backends.json, backends.md and backends.html from the runs of `compare`.

    With `readme`, it reads backends.json instead, and writes its table between the
    markers in that file.

    Args:
        output_dir: Output folder of `compare`.
        curves: Folder for the learning curves: a CSV file for each recipe, with at most
            100 points for each run. Files of other recipes stay.
        readme: File with the lines `<!-- compare:begin -->` and
            `<!-- compare:end -->`.
        check: Write nothing; the exit status is 1 if `readme` is out of date.

    Returns:
        Exit status.

    Raises:
        ValueError: If there are no runs, no backends.json or no markers, if `check`
            is given without `readme`, or `curves` with it.
        ImportError: If a package of kit's extra `report` is missing.
    """
    require("jinja2", "matplotlib", "scipy")
    output_dir = Path(output_dir)
    if readme is not None:
        if curves is not None:
            raise ValueError("curves are read from runs: leave readme out.")
        return update_readme(Path(readme), output_dir / "backends.json", check)
    if check:
        raise ValueError("check needs readme: --readme README.md --check.")
    runs, parity = read_runs(output_dir / "runs")
    if not runs and not parity:
        raise ValueError(
            f"output_dir: no runs in {str(output_dir / 'runs')!r}. Make some: "
            "python -m kit compare --quick."
        )
    data, series = summarize(runs, parity)
    text = json.dumps(data, indent=1, allow_nan=False) + "\n"
    (output_dir / "backends.json").write_text(text, encoding="utf-8")
    pictures = {key: draw(x, NAMES, key) for key, x in series.items()}
    for name in ("backends.md", "backends.html"):
        page = render(f"{name}.jinja", data=data, curves=pictures)
        (output_dir / name).write_text(page, encoding="utf-8")
        print(f"Wrote {output_dir / name}")
    if curves is not None:
        curves = Path(curves)
        curves.mkdir(parents=True, exist_ok=True)
        for key, found in series.items():
            if found.runs:
                write_curves(curves / f"{key}.csv", found)
                print(f"Wrote {curves / key}.csv")
    return 0


# --- Reading ------------------------------------------------------------------

KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "true or false",
}
# The forms of files from `kit.lab.run` and `kit.tools.compare`, as far as used here.
METRICS_JSON: Record = {
    "recipe": str,
    "backend": str,
    "seed": int,
    "config": dict,
    "metrics": dict,
    "baselines": dict,
    "throughput": {"value": float, "unit": str},
    "compile_seconds": float,
    "wall_seconds": float,
    "peak_memory_mb": float,
    "versions": dict,
    "losses": dict,
}
RUN_JSON: Record = {
    "status": str,
    "machine": str,
    "last_lines": list,
    "job": {
        "recipe": str,
        "backend": str,
        "seed": int,
        "quick": bool,
        "arguments": list,
        "file": str,
    },
    "comparison": dict,
}


def read_runs(folder: Path) -> tuple[list[Record], list[Record]]:
    """Returns the runs in a folder, and separately those of kit/tools/parity.py.

    A run has the contents of its `metrics.json`, if it was finished, and of its
    `run.json`, if `compare` started it. A damaged file is reported and treated as
    missing; a run without metrics has failed.
    """
    runs = []
    for path in sorted(folder.glob("*")):
        record, fault = read_record(path / "run.json")
        tell(path / "run.json", fault)
        figures, fault = read_object(path / "metrics.json", METRICS_JSON)
        needed = ["recipe", "backend", "seed"]
        needed += ["losses" if figures.get("recipe") == PARITY else "metrics"]
        missing = [name for name in needed if figures.get(name) is None]
        if not fault and missing and (path / "metrics.json").exists():
            fault = f"{', '.join(map(repr, missing))} missing"
        if not fault and figures.get("backend", BACKENDS[0]) not in BACKENDS:
            fault = f"'backend' must be one of {', '.join(BACKENDS)}"
        tell(path / "metrics.json", fault)
        figures = {} if fault else figures
        job = record.get("job") or {}
        recipe = job.get("recipe") or figures.get("recipe")
        backend = figures.get("backend", job.get("backend"))
        if not recipe or backend not in BACKENDS:
            continue
        status = record.get("status", "finished")
        if figures:
            status = "finished"
        elif status == "finished":
            status = "failed"
        elif status == "running":  # still, or its `compare` was killed
            status = "interrupted"
        lines = [f"metrics.json: {fault}"] if fault else record.get("last_lines") or []
        runs.append(
            {
                **{k: v for k, v in figures.items() if v is not None},
                "recipe": recipe,
                "backend": backend,
                "seed": figures.get("seed", job.get("seed")),
                "quick": job.get("quick") or False,
                "machine": record.get("machine"),
                "status": status,
                "last_lines": [without_paths(str(line)) for line in lines],
                "history": read_history(path / "history.csv") if figures else [],
                "comparison": record.get("comparison") or known_comparison(recipe, job),
                # Only runs with the same arguments are compared.
                "arguments": [str(x) for x in job.get("arguments") or []],
                "called": json.dumps(
                    [job.get("arguments"), job.get("signature"), job.get("file")]
                    if job
                    else figures.get("config", {})
                ),
            }
        )
    parity = [run for run in runs if run["recipe"] == PARITY]
    return [run for run in runs if run["recipe"] != PARITY], parity


def read_record(path: Path) -> tuple[Record, str | None]:
    """Returns the content of a `run.json`, and a description of its faults."""
    record, fault = read_object(path, RUN_JSON)
    try:
        check_comparison(record.get("comparison") or {})
    except ValueError as error:
        return {}, str(error).removesuffix(".")
    return record, fault


def known_comparison(recipe: str, job: Record) -> Record:
    """Returns the declaration of a kit recipe, for runs without one."""
    file = catalog.recipes().get(recipe)
    return read_comparison(file) if file and not job.get("file") else {}


def read_object(path: Path, form: Mapping[str, Any]) -> tuple[Record, str | None]:
    """Returns the object in a JSON file, and a description of its faults.

    Args:
        path: The file.
        form: Expected values by name: a type, or the form of an object. Null is
            accepted everywhere.

    Returns:
        The object, empty if the file is missing or damaged; the end of a sentence that
        describes the fault, or None.
    """
    try:
        # NaN and infinities, which no JSON has, are no numbers here either.
        content = json.loads(
            path.read_text(encoding="utf-8"),
            parse_constant=lambda _: None,
            parse_float=number,
        )
    except (FileNotFoundError, NotADirectoryError):
        return {}, None
    except UnicodeDecodeError as error:
        return {}, f"not UTF-8 ({error.reason} at byte {error.start})"
    except ValueError as error:
        return {}, f"not JSON ({error})"
    except OSError as error:
        return {}, f"can't be read ({error.strerror})"
    fault = fault_of(content, form, "the file")
    return ({}, fault) if fault else (content, None)


def fault_of(value: Any, form: Any, name: str) -> str | None:
    """Returns a description of how a value departs from its form, or None."""
    kind = dict if isinstance(form, Mapping) else form
    accepted: Any = (int, float) if kind is float else kind
    # In Python, a Boolean is an integer; in JSON it isn't.
    if not isinstance(value, accepted) or isinstance(value, bool) != (kind is bool):
        return f"{name} must be {KINDS[kind]}, received {str(value)[:40]!r}"
    parts: Any = form.items() if isinstance(form, Mapping) else ()
    faults = (
        fault_of(value[key], part, repr(key))
        for key, part in parts
        if value.get(key) is not None
    )
    return next(filter(None, faults), None)


def tell(path: Path, fault: str | None) -> None:
    """Prints the fault of a file, if there is one."""
    if fault:
        print(f"{path} is left out: {fault}.")


def read_history(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a `history.csv`; no rows if it is missing or damaged."""
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        tell(path, str(error))
        return []


def without_paths(line: str) -> str:
    """Returns a line of a log without this machine's paths."""
    for folder in (str(Path.cwd()), sys.prefix, sys.base_prefix, str(Path.home())):
        if len(folder) > 1:
            line = line.replace(folder + os.sep, "")
    return line


def number(value: Any) -> float | None:
    """Returns a finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        value = float(value)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


# --- Statistics ---------------------------------------------------------------


def estimate(values: Iterable[Any]) -> Record:
    """Returns statistics of a metric over runs, without values that are no numbers.

    Args:
        values: The metric in each run.

    Returns:
        `n`, the number of values; `mean`; `sd`, the standard deviation; `low` and
        `high`, the 95 % interval of the mean by Student's t distribution; `values`.
        With one value, there is no spread and no interval; without any, no mean.
    """
    from scipy import stats

    found = [x for x in map(number, values) if x is not None]
    n = len(found)
    result: Record = {"n": n, "mean": None, "sd": None, "low": None, "high": None}
    result["values"] = [short(x) for x in found]
    if n:
        mean = math.fsum(found) / n
        result["mean"] = short(mean)
    if n > 1:
        sd = math.sqrt(math.fsum((x - mean) ** 2 for x in found) / (n - 1))
        half = float(stats.t.ppf(0.975, n - 1)) * sd / math.sqrt(n)
        result |= {k: short(v) for k, v in (("sd", sd), ("low", mean - half))}
        result["high"] = short(mean + half)
    return result


def short(value: float) -> float:
    """Returns a number rounded to eight digits, more than any result here needs."""
    return float(f"{value:.8g}")


def welch(a: Record, b: Record) -> float | None:
    """Returns the p-value of Welch's t-test for the equality of two means.

    Args:
        a: A result of `estimate` with a mean.
        b: Another one.

    Returns:
        The two-sided p-value; 1 for means that differ only by rounding. None if there
        is none: one of them has a single value, or neither varies.
    """
    from scipy import stats

    if math.isclose(a["mean"], b["mean"], rel_tol=ROUNDING):
        return 1.0
    if a["n"] < 2 or b["n"] < 2:
        return None
    if all(x["sd"] <= ROUNDING * abs(x["mean"]) for x in (a, b)):
        return None
    given = [x[name] for x in (a, b) for name in ("mean", "sd", "n")]
    return short(float(stats.ttest_ind_from_stats(*given, equal_var=False).pvalue))


def against_best(estimates: Mapping[str, Record], larger_is_better: bool) -> Record:
    """Compares each backend's mean with the best one.

    Returns:
        `best`, the backend with the best mean, and `p`, the p-value of `welch` for
        each of the others.
    """
    known = {name: x for name, x in estimates.items() if x["mean"] is not None}
    if len(known) < 2:
        return {"best": None, "p": {}}
    sign = 1 if larger_is_better else -1
    best = max(known, key=lambda name: sign * known[name]["mean"])
    others = {name: x for name, x in known.items() if name != best}
    return {
        "best": best,
        "p": {name: welch(x, known[best]) for name, x in others.items()},
    }


def leaders(estimates: Mapping[str, Record], larger_is_better: bool) -> list[str]:
    """Returns the backends that don't differ significantly from the best mean.

    If one of them has no p-value, no backend leads.
    """
    found = against_best(estimates, larger_is_better)
    if not found["best"] or None in found["p"].values():
        return []
    p = {found["best"]: 1.0, **found["p"]}
    return [name for name in estimates if p.get(name, 0) >= SIGNIFICANCE]


def verdict(estimates: Mapping[str, Record], larger_is_better: bool) -> str:
    """Returns a sentence about the leading backends."""
    known = [name for name, x in estimates.items() if x["mean"] is not None]
    found = leaders(estimates, larger_is_better)
    if len(known) < 2:
        return f"only {NAMES[known[0]]}" if known else "no figures"
    if not found:
        few = any(estimates[name]["n"] < 2 for name in known)
        return "too few seeds to tell" if few else "no spread over seeds to tell by"
    names = [NAMES[name] for name in found]
    if len(found) == len(known):
        return "equal"
    return names[0] if len(names) == 1 else f"{' and '.join(names)}, equal"


# --- Learning curves ----------------------------------------------------------


class Curves(NamedTuple):
    """The learning curves of a recipe.

    Attributes:
        x: Column of `history.csv` on the x-axis.
        y: Column on the y-axis.
        runs: The curve of each run, by backend and seed.
    """

    x: str
    y: str
    runs: dict[tuple[str, str], Curve]


def draw(curves: Curves, names: Mapping[str, str], key: str) -> str:
    """Returns learning curves as SVG; an empty text if there are none."""
    series: dict[str, list[Curve]] = {}
    for backend in BACKENDS:
        found = [curve for (x, _), curve in curves.runs.items() if x == backend]
        if found:
            series[backend] = found
    return learning_curves(series, curves.x, curves.y, names, key) if series else ""


def write_curves(path: Path, curves: Curves) -> None:
    """Writes learning curves, with at most `POINTS` points for each run."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["backend", "seed", curves.x, curves.y])
        for (backend, seed), curve in curves.runs.items():
            for x, y in zip(*thinned(curve), strict=True):
                writer.writerow([backend, seed, f"{x:.6g}", f"{y:.6g}"])


def read_curves(path: Path) -> Curves:
    """Returns what `write_curves` has written."""
    with path.open(newline="", encoding="utf-8") as file:
        (_, _, x, y), *rows = csv.reader(file)
    runs: dict[tuple[str, str], Any] = {}
    for backend, seed, at, value in rows:
        xs, ys = runs.setdefault((backend, seed), ([], []))
        xs.append(float(at))
        ys.append(float(value))
    return Curves(x, y, runs)


def thinned(curve: Curve) -> Curve:
    """Returns a curve of at most `POINTS` points: means of as many neighbours each."""
    size = math.ceil(len(curve[0]) / POINTS)
    xs, ys = (
        [
            math.fsum(x[i : i + size]) / len(x[i : i + size])
            for i in range(0, len(x), size)
        ]
        for x in curve
    )
    return xs, ys


# --- Summary ------------------------------------------------------------------


def summarize(
    runs: Sequence[Record], parity: Sequence[Record]
) -> tuple[Record, dict[str, Curves]]:
    """Returns the contents of backends.json, and the learning curves of each recipe."""
    groups: dict[tuple[str, str], list[Record]] = {}
    for run in runs:
        groups.setdefault((run["recipe"], run["called"]), []).append(run)
    recipes: list[Record] = []
    curves: dict[str, Curves] = {}
    for (recipe, _), group in sorted(groups.items(), key=lambda x: place_of(x[1])):
        key = recipe
        while key in curves:  # the same recipe with other arguments
            key += "-"
        entry = summarize_recipe(key, group)
        recipes.append(entry)
        curves[key] = curves_of(entry, group)
    versions: dict[str, list[str]] = {}
    for run in [*runs, *parity]:
        for name, version in run.get("versions", {}).items():
            if version is not None and name not in ("platform", "cpu_count"):
                known = versions.setdefault(name, [])
                known += [] if str(version) in known else [str(version)]
    machines = {machine_of(run) for run in [*runs, *parity] if run.get("versions")}
    data = {
        "backends": [b for b in BACKENDS if any(r["backend"] == b for r in runs)],
        "quick": any(run["quick"] for run in runs),
        "machines": sorted(machines),
        "versions": dict(sorted(versions.items())),
        "verdicts": {
            name: dict(collections.Counter(r[name] for r in recipes).most_common())
            for name in ("best_score", "shortest_time")
        },
        "recipes": recipes,
        "parity": summarize_parity(parity),
        "parity_failures": [
            {name: run[name] for name in ("backend", "status", "last_lines")}
            for run in parity
            if run["status"] != "finished"
        ],
    }
    return data, curves


def declared_by(runs: Sequence[Record]) -> Record:
    """Returns the declaration of these runs' recipe."""
    return next((run["comparison"] for run in runs if run["comparison"]), {})


def place_of(runs: Sequence[Record]) -> float:
    """Returns the place of these runs' recipe in the report; without one, the last."""
    return declared_by(runs).get("place", math.inf)


def machine_of(run: Record) -> str:
    """Returns system and processor of a run."""
    versions = run["versions"]
    parts = re.match(r"(\w+)-[\d.]+\d", str(versions.get("platform")))
    system = parts[0].replace("-", " ") if parts else str(versions.get("platform"))
    processor = run.get("machine") or "processor unknown"
    return f"{processor}, {versions.get('cpu_count')} cores, {system}"


def versions_of(run: Record) -> str:
    """Returns a run's versions of Keras and of the backend."""
    versions = run["versions"]
    return ", ".join(f"{x} {versions.get(x)}" for x in ("keras", run["backend"]))


def summarize_recipe(key: str, runs: Sequence[Record]) -> Record:
    """Returns the results of one recipe, with one set of arguments, by backend."""
    done = [run for run in runs if run["status"] == "finished"]
    declared = declared_by(runs)
    figures: dict[str, None] = {}  # names, in order, of what is a number
    for run in done:
        figures |= dict.fromkeys(
            name
            for name, x in run.get("metrics", {}).items()
            # The main score stays the main score, even if all its values are NaN.
            if number(x) is not None or name == declared.get("score")
        )
    score = score_of(runs[0]["recipe"], declared, figures)
    metric = score.metric
    by_backend: dict[str, Record] = {
        backend: summarize_backend([r for r in runs if r["backend"] == backend], metric)
        for backend in BACKENDS
    }

    def compare(name: str, figure: str, larger_is_better: bool) -> Record:
        estimates = {b: x[figure] for b, x in by_backend.items()}
        return {
            name: verdict(estimates, larger_is_better),
            f"{name}_test": against_best(estimates, larger_is_better),
        }

    names = {name for run in done for name in baselines_of(run, metric)}
    baselines = {name: estimate_of_seeds(done, name) for name in sorted(names)}
    means = {
        name: x["mean"]
        for name, x in baselines.items()
        if x["mean"] is not None and not name.startswith(BOUNDS)
    }
    machines = {machine for x in by_backend.values() for machine in x["machines"]}
    choose: Callable[..., str] = max if score.larger_is_better else min
    config = done[0].get("config", {}) if done else {}
    quick = any(run["quick"] for run in runs)
    if quick or len(machines) > 1:
        times = {
            "shortest_time": QUICK_TIME if quick else "not on one machine",
            "shortest_time_test": against_best({}, False),
        }
    else:
        times = compare("shortest_time", "wall_seconds", False)
    return {
        "key": key,
        "recipe": runs[0]["recipe"],
        "title": score.title,
        "metric": metric,
        "larger_is_better": score.larger_is_better,
        "curve": declared.get("curve", ""),
        "where": declared.get("curve_rows", {}),
        "quick": quick,
        "arguments": " ".join(runs[0]["arguments"]),
        "config": config,
        "backends": by_backend,
        "baselines": baselines,
        "best_baseline": choose(means, key=lambda n: means[n]) if means else None,
        "references": references(declared, config),
        **compare("best_score", "score", score.larger_is_better),
        **times,
    }


def baselines_of(run: Record, metric: str) -> list[str]:
    """Returns the names of a metric's baselines."""
    pairs = dict(pair_with_baselines(run.get("metrics", {}), run.get("baselines", {})))
    return pairs.get(metric, [])


def estimate_of_seeds(runs: Sequence[Record], baseline: str) -> Record:
    """Returns statistics of a baseline over runs.

    Each backend's run measured it again, mostly with the same result. So each seed
    counts once, with its mean.
    """
    by_seed: dict[Any, list[float]] = {}
    for run in runs:
        value = number(run.get("baselines", {}).get(baseline))
        if value is not None:
            by_seed.setdefault(run["seed"], []).append(value)
    return estimate(math.fsum(x) / len(x) for x in by_seed.values())


def summarize_backend(runs: Sequence[Record], metric: str) -> Record:
    """Returns the results of one recipe under one backend."""
    done = [run for run in runs if run["status"] == "finished"]
    rates = [run.get("throughput") or {} for run in done]
    units = {rate["unit"] for rate in rates if rate.get("unit")}
    figures = {name: None for run in done for name in run.get("metrics", {})}
    score = estimate(run.get("metrics", {}).get(metric) for run in done)
    state = state_of(runs, done)
    if state == "finished" and 0 < score["n"] < len(done):  # the others diverged
        state = f"no figure: {len(done) - score['n']} of {len(done)}"
    return {
        "state": state,
        "runs": len(runs),
        "seeds": [run["seed"] for run in done],
        "score": score,
        "wall_seconds": estimate(run.get("wall_seconds") for run in done),
        "compile_seconds": estimate(run.get("compile_seconds") for run in done),
        "throughput": estimate(rate.get("value") for rate in rates),
        "throughput_unit": units.pop() if len(units) == 1 else None,
        "peak_memory_mb": estimate(run.get("peak_memory_mb") for run in done),
        "versions": sorted({versions_of(run) for run in done if run.get("versions")}),
        "machines": sorted({machine_of(run) for run in done if run.get("versions")}),
        "metrics": {
            name: estimate(run.get("metrics", {}).get(name) for run in done)["mean"]
            for name in figures
            if name != metric
        },
        "failures": [
            {name: run[name] for name in ("seed", "status", "last_lines")}
            for run in runs
            if run["status"] not in ("finished", "not installed")
        ],
    }


def state_of(runs: Sequence[Record], done: Sequence[Record]) -> str:
    """Returns a description of how the runs of one backend ended."""
    if not runs:
        return "not run"
    if len(done) == len(runs):
        return "finished"
    kinds = {run["status"] for run in runs if run not in done}
    what = kinds.pop() if len(kinds) == 1 else "failed"
    return what if not done else f"{what}: {len(runs) - len(done)} of {len(runs)}"


def summarize_parity(runs: Sequence[Record]) -> list[Record]:
    """Returns for each training the largest difference of losses, pair by pair."""
    losses = {run["backend"]: run.get("losses") or {} for run in runs}
    backends = [backend for backend in BACKENDS if losses.get(backend)]
    trainings = {name: None for backend in backends for name in losses[backend]}
    rows = []
    for name in trainings:
        series: dict[str, Any] = {b: losses[b].get(name) for b in backends}
        series = {b: x for b, x in series.items() if isinstance(x, list) and x}
        first: Sequence[Any] = next(iter(series.values()), [])
        rows.append(
            {
                "training": name,
                "steps": len(first),
                "first_loss": number(first[0]) if first else None,
                "last_loss": number(first[-1]) if first else None,
                "differences": {
                    f"{a}-{b}": largest_difference(series[a], series[b])
                    for a, b in itertools.combinations(series, 2)
                },
            }
        )
    return rows


def largest_difference(a: Sequence[Any], b: Sequence[Any]) -> float | None:
    """Returns max |a - b|; None, if they can't be compared step by step."""
    if len(a) != len(b) or any(number(x) is None for x in (*a, *b)):
        return None
    return short(max(abs(x - y) for x, y in zip(a, b, strict=True)))


def curves_of(entry: Record, runs: Sequence[Record]) -> Curves:
    """Returns the learning curve of each run of a recipe."""
    histories = [run["history"] for run in runs if run["history"]]
    columns = histories[0][0] if histories else {}
    y = next((c for c in (entry["curve"], *CURVES) if c in columns), "")
    x = next((c for c in ("timesteps", "epoch") if c in columns), "")
    found: dict[tuple[str, str], Curve] = {}
    for run in runs:
        points: dict[float, list[float]] = {}
        for row in run["history"]:
            at, value = number(row.get(x)), number(row.get(y))
            kept = all(
                row.get(name) == (wanted or run["history"][-1].get(name))
                for name, wanted in entry["where"].items()
            )
            if at is not None and value is not None and kept:
                points.setdefault(at, []).append(value)
        if points:  # Of several values at one place (folds): their mean.
            xs = sorted(points)
            ys = [math.fsum(points[at]) / len(points[at]) for at in xs]
            found[run["backend"], str(run["seed"])] = (xs, ys)
    return Curves(x, y, found)


# --- Writing ------------------------------------------------------------------


def render(template: str, **values: Any) -> str:
    """Returns a page rendered from a file in kit/templates."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=jinja2.select_autoescape(("html.jinja",)),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals |= {"NAMES": NAMES, "BACKENDS": BACKENDS}
    environment.filters |= {
        "figure": figure,
        "mean": mean_text,
        "interval": interval_text,
        "tested": verdict_text,
        "whole": lambda text: text.replace(" ", "\N{NO-BREAK SPACE}"),
    }
    return environment.get_template(template).render(**values)


def figure(value: float | None, digits: int = 4) -> str:
    """Returns a number formatted for people, a dash if there is none."""
    if value is None:
        return "–"
    if value == int(value) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.1e}" if abs(value) < 1e-3 else f"{value:.{digits}g}"


def mean_text(x: Record, digits: int = 4) -> str:
    """Returns a mean and half its interval: `488.7 ± 16`; one value stands alone."""
    if x["low"] is None:
        return figure(x["mean"], digits)
    return f"{figure(x['mean'], digits)} ± {figure((x['high'] - x['low']) / 2, 2)}"


def interval_text(x: Record) -> str:
    """Returns the bounds of an interval as text, also if there is none."""
    if x["low"] is None:
        return f"none, n = {x['n']}" if x["n"] else "–"
    return f"{figure(x['low'])} to {figure(x['high'])}"


def verdict_text(conclusion: str, test: Record) -> str:
    """Returns a verdict with its p-values: `equal (best mean JAX; p: PyTorch 0.23)`.

    A p-value is that of the difference from the best mean.
    """
    known = [
        f"{NAMES[backend]} {figure(p, 2) if p >= 0.001 else '< 0.001'}"
        for backend, p in test["p"].items()
        if p is not None
    ]
    if not known:
        return conclusion
    best = NAMES[test["best"]]
    best = "" if best == conclusion else f"best mean {best}; "
    return f"{conclusion} ({best}p: {', '.join(known)})"


def update_readme(readme: Path, source: Path, check: bool) -> int:
    """Writes the table of `source` into a file, or checks that it is up to date."""
    data = read_json(source)
    if not data:
        raise ValueError(
            f"output_dir: {str(source)!r} is missing. Make it: python -m kit report."
        )
    text = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    places = [text.find(BEGIN), text.find(END)]
    if text.count(BEGIN) != 1 or text.count(END) != 1 or places != sorted(places):
        raise ValueError(f"readme: {str(readme)!r} needs one {BEGIN}, then one {END}.")
    before, rest = text.split(BEGIN)
    table = render("table.md.jinja", data=data)
    new = f"{before}{BEGIN}\n\n{table}\n{END}{rest.split(END)[1]}"
    command = f"python -m kit report --readme {readme}"
    if check:
        print(f"{readme} is {'up to date' if new == text else 'out of date'}.")
        if new != text:
            print(f"It differs from {source}: {command}")
        return int(new != text)
    readme.write_text(new, encoding="utf-8")
    return 0
