"""Runs recipes under each backend, one after the other, and keeps their results.

    python -m kit compare --recipes dqn ppo --backends jax torch --seeds 3 --quick

Each run is a separate process, `python recipes/dqn.py --seed 0 --output-dir
reports/runs/dqn-jax-0` with `KERAS_BACKEND=jax`. In addition to the recipe's files, its
folder has `log.txt`, the recipe's output, and `run.json`, with its arguments and how it
ended. After the last run, the report is written, as by `python -m kit report`:
`backends.md`, `backends.html` and `backends.json`.

After an interruption, the same command continues. A run isn't repeated if it has a
`metrics.json` and had the same arguments, signature and versions. If another run
replaced it, such as a quick one, it is restored when it is requested again. To repeat a
run, delete its folder in `runs/` and in `replaced/`.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from kit.tools import catalog
from kit.tools.scores import Comparison, read_comparison

Backend = Literal["tensorflow", "jax", "torch"]
BACKENDS: tuple[Backend, ...] = ("tensorflow", "jax", "torch")

PARITY = "parity"  # The name of kit/tools/parity.py among the recipes.
PARITY_FILE = Path(__file__).with_name("parity.py")
LAST_LINES = 20  # of the output of a run that failed, for the report


@dataclass(frozen=True)
class Job:
    """One run to make: everything that determines its results, and its declaration."""

    recipe: str
    backend: str
    seed: int
    quick: bool
    arguments: tuple[str, ...]
    signature: str  # of the recipe's `main`: it has the defaults
    file: str  # where the recipe is, for one that isn't the kit's
    versions: Mapping[str, str | None]
    comparison: Comparison  # what the recipe declares; the run is the same without it

    @property
    def name(self) -> str:
        """Name of the run's folder."""
        return f"{self.recipe}-{self.backend}-{self.seed}"

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the results of the run."""
        return {k: v for k, v in asdict(self).items() if k != "comparison"}

    def is_done(self, folder: Path) -> bool:
        """Whether `folder` contains a finished run of exactly this job."""
        record = read_json(folder / "run.json")
        same = record.get("job") == json.loads(json.dumps(self.identity))
        return same and (folder / "metrics.json").is_file()


def compare(
    *,
    recipes: tuple[str, ...] = (),
    backends: tuple[Backend, ...] = BACKENDS,
    seeds: int = 3,
    quick: bool = False,
    parity: bool = True,
    arguments: tuple[str, ...] = (),
    timeout: float | None = None,
    output_dir: Path = Path("reports"),
) -> int:
    """Runs recipes under each backend and over seeds, one run at a time.

    After an interruption, the same command continues: finished runs are not repeated,
    unless their arguments, the recipe's defaults or the versions have changed. A run
    that is replaced is moved to `replaced/`, and restored when it is requested again.

    Args:
        recipes: Names of recipes, or paths that end in `.py`; all if none is given. A
            recipe takes `--seed` and `--output-dir`, and writes `metrics.json` with
            `kit.lab.run.Run`. Its `COMPARISON` declares its score, published figures
            and the arguments of `quick`: `recipes/dqn.py` is an example,
            kit/tools/scores.py has the keys.
        backends: Backends to run. The report names those that aren't installed.
        seeds: Number of seeds, 0 to `seeds` - 1.
        quick: Use the small budgets that recipes declare, to try it out; the report
            says so.
        parity: Whether to compare losses from the same weights, too.
        arguments: Further arguments for a recipe, after its name:
            `"dqn --env Acrobot-v1 --total-timesteps 60000"`.
        timeout: Seconds after which a run is killed and counts as failed.
        output_dir: Folder for the runs, in `runs`, and for the reports.

    Returns:
        Exit status: 0 if every run was finished, 1 if one failed or no backend is
        installed, 130 after an interruption.

    Raises:
        ValueError: If a recipe or backend isn't known, a number is out of range, or a
            declaration is invalid.
        ImportError: If a package of kit's extra `report` is missing.
    """
    require("rich")
    from rich.console import Console

    from kit.tools.report import report  # which imports this module

    console = Console(highlight=False)
    files = find_recipes(recipes)
    if parity:
        files[PARITY] = PARITY_FILE
    more = split_arguments(arguments, files)
    check_backends(backends)
    check_numbers(seeds, timeout)
    jobs = [
        make_job(file, name, backend, seed, quick, more.get(name, ()))
        for name, file in files.items()
        for seed in range(1 if name == PARITY else seeds)
        for backend in backends  # Next to each other, so in the same conditions.
    ]
    installed = [x for x in backends if importlib.util.find_spec(x)]
    for backend in backends:
        if backend not in installed:
            console.print(f"{backend} is not installed: its runs are left out.")

    runs = Path(output_dir) / "runs"
    runs.mkdir(parents=True, exist_ok=True)
    try:
        with only_one(Path(output_dir) / ".lock", console) as lock:
            todo = still_to_do(jobs, runs, installed)
            console.print(f"{len(jobs) - len(todo)} of {len(jobs)} runs are done.")
            todo = [job for job in todo if job.backend in installed]
            failed = run_all(todo, files, runs, timeout, console, lock)
    except KeyboardInterrupt:
        console.print("Interrupted. Run the same command again to continue.")
        return 130
    if failed:
        console.print(f"Failed: {', '.join(failed)}. Their log.txt says why.")
    try:
        report(output_dir=Path(output_dir))
    except (ImportError, ValueError) as error:  # runs are worth more than their report
        console.print(f"No report was written: {error}", highlight=False)
        command = f"python -m kit report --output-dir {output_dir}"
        console.print(f"To write it later: {command}", highlight=False, soft_wrap=True)
    return 1 if failed or not installed else 0


def require(*packages: str) -> None:
    """Raises an error for the first missing package, with the command to install it."""
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ImportError(
                f"{package} is not installed: "
                'python -m pip install "keras-algorithm-kit[report]".'
            )


def find_recipes(names: Sequence[str]) -> dict[str, Path]:
    """Returns the files of recipes, given by name or path; all if none is given."""
    known = catalog.recipes()
    files: dict[str, Path] = {}
    for name in names or known:
        path = Path(name) if name.endswith(".py") else known.get(name)
        if path is None or not path.is_file():
            raise ValueError(
                f"recipes: {name!r} is no recipe. Known are "
                f"{', '.join(known) or 'none here'}; or give the path of a file .py."
            )
        if path.stem == PARITY or files.get(path.stem, path) != path:
            raise ValueError(f"recipes: {str(path)!r} needs a name of its own.")
        files[path.stem] = path
    return files


def split_arguments(
    arguments: Sequence[str], files: Mapping[str, Path]
) -> dict[str, tuple[str, ...]]:
    """Returns the arguments of each recipe, from `"dqn --env Acrobot-v1"`."""
    found: dict[str, tuple[str, ...]] = {}
    for line in arguments:
        name, *rest = shlex.split(line) or [""]
        if name not in files:
            raise ValueError(
                f"arguments: {line!r} must begin with one of the recipes to be run: "
                f"{', '.join(files)}."
            )
        found[name] = (*found.get(name, ()), *rest)
    return found


def check_backends(backends: Sequence[str]) -> None:
    """Raises an error for unknown backends."""
    for backend in backends:
        if backend not in BACKENDS:
            raise ValueError(f"backends: {backend!r} is none of {', '.join(BACKENDS)}.")


def check_numbers(seeds: int, timeout: float | None) -> None:
    """Raises an error for numbers that give no run."""
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}.")
    if timeout is not None and not timeout > 0:
        raise ValueError(f"timeout must be above 0 seconds, got {timeout}.")


def make_job(
    file: Path, name: str, backend: str, seed: int, quick: bool, more: tuple[str, ...]
) -> Job:
    """Returns the job that runs a recipe; later arguments override earlier ones."""
    signature = main_signature(file)
    ours = (*catalog.recipes().values(), PARITY_FILE)
    comparison = read_comparison(file)
    budget = shlex.split(comparison.get("quick", "")) if quick else []
    return Job(
        recipe=name,
        backend=backend,
        seed=seed,
        quick=bool(budget),
        arguments=(*budget, *more),
        signature=signature,
        file="" if file in ours else str(file.resolve()),
        versions={package: version(package) for package in ("keras", backend)},
        comparison=comparison,
    )


def main_signature(file: Path) -> str:
    """Returns the arguments of a file's `main`, without running it."""
    for node in ast.parse(file.read_text(encoding="utf-8"), str(file)).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return ast.unparse(node.args)
    return ""


def version(package: str) -> str | None:
    """Returns the version of an installed package."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def still_to_do(jobs: Sequence[Job], runs: Path, installed: Sequence[str]) -> list[Job]:
    """Returns the jobs without a finished run; records those that can't be run."""
    for job in jobs:
        bring_back(job, runs)
    renew_comparisons(jobs, runs)
    todo = [job for job in jobs if not job.is_done(runs / job.name)]
    for job in todo:
        folder = runs / job.name
        # Keep the results of a run that another environment made.
        known = read_json(folder / "run.json").get("status", "not installed")
        there = (folder / "metrics.json").exists() or known != "not installed"
        if job.backend not in installed and not there:
            write_record(folder, job, "not installed")
    return todo


def run_all(
    jobs: Sequence[Job],
    files: Mapping[str, Path],
    runs: Path,
    timeout: float | None,
    console: Any,
    lock: IO[str],
) -> list[str]:
    """Runs jobs one after the other; returns the names of those that failed."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    failed = []
    with interruptible(), Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(jobs))
        for job in jobs:
            progress.update(task, description=job.name)
            status, seconds = run_one(job, files[job.recipe], runs, timeout, lock)
            console.print(f"{job.name}: {status} after {seconds:.0f} s")
            if status != "finished":
                failed.append(job.name)
            progress.advance(task)
    return failed


def run_one(
    job: Job, file: Path, runs: Path, timeout: float | None, lock: IO[str]
) -> tuple[str, float]:
    """Runs one job in a process; returns how it ended and after how many seconds."""
    folder = runs / job.name
    set_aside(folder, runs.with_name("replaced"))
    write_record(folder, job, "running")  # What stays, if we are killed.
    start = time.perf_counter()
    process = None
    status = "interrupted"
    with (folder / "log.txt").open("w", encoding="utf-8") as log:
        try:
            with interrupted_afterwards():
                process = subprocess.Popen(
                    command_line(job, file, folder),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env=environment(job.backend),
                    # A group of its own: what the recipe starts (Ray) is ended with it.
                    start_new_session=True,
                    # If this process is killed, the run continues and keeps the lock.
                    pass_fds=[lock.fileno()] if os.name == "posix" else (),
                )
            code = process.wait(timeout)
            ended = code == 0 and (folder / "metrics.json").is_file()
            status = "finished" if ended else "failed"
        except subprocess.TimeoutExpired:
            status = "timed out"
        finally:
            if process is not None:
                end(process)
            seconds = time.perf_counter() - start
            # Without its metrics, it can't be mistaken for a finished run.
            if status != "finished":
                (folder / "metrics.json").unlink(missing_ok=True)
            write_record(
                folder,
                job,
                status,
                seconds=round(seconds, 1),
                exit_code=process and process.returncode,
                last_lines=[] if status == "finished" else last_lines(folder),
            )
    return status, seconds


def command_line(job: Job, file: Path, folder: Path) -> list[str]:
    """Returns the command of a run."""
    # As a script, kit/tools/parity.py would import kit/random.py as Python's own.
    script = ["-m", "kit.tools.parity"] if job.recipe == PARITY else [str(file)]
    command = [sys.executable, *script, "--seed", str(job.seed)]
    command += ["--output-dir", str(folder)]
    if "verbose: int" in job.signature:
        # One line per epoch, instead of a progress bar that fills the log.
        command += ["--verbose", "2"]
    return [*command, *job.arguments]


def environment(backend: str) -> dict[str, str]:
    """Returns a run's environment variables: this process', and its backend."""
    # The recipe imports this kit, installed or not.
    path = [str(catalog.PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
    defaults = {"TF_CPP_MIN_LOG_LEVEL": "2", "MPLBACKEND": "Agg", "COLUMNS": "100"}
    return {
        **defaults,
        **os.environ,
        "KERAS_BACKEND": backend,
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "PYTHONUNBUFFERED": "1",  # The log gets a killed process' last lines.
    }


def end(process: subprocess.Popen) -> None:
    """Ends a running process and its child processes."""
    if os.name != "posix":
        process.kill()
    else:
        with suppress(ProcessLookupError):  # No process is left.
            os.killpg(process.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def set_aside(folder: Path, replaced: Path) -> None:
    """Moves a finished run away before another one uses its folder."""
    if (folder / "metrics.json").is_file():
        replaced.mkdir(exist_ok=True)
        folder.rename(replaced / f"{folder.name}-{time.time_ns()}")
    folder.mkdir(exist_ok=True)


def bring_back(job: Job, runs: Path) -> None:
    """Restores a finished run of exactly this job, if another one replaced it."""
    folder, replaced = runs / job.name, runs.with_name("replaced")
    if job.is_done(folder):
        return
    for old in sorted(replaced.glob(f"{job.name}-*")):
        if job.is_done(old):
            set_aside(folder, replaced)
            shutil.rmtree(folder)
            old.rename(folder)
            return


def write_record(folder: Path, job: Job, status: str, **more: Any) -> None:
    """Writes `run.json`: the job, and how it ended."""
    folder.mkdir(exist_ok=True)
    record = {"status": status, **more, "machine": processor()}
    write_json(folder, record | {"job": job.identity, "comparison": job.comparison})


def write_json(folder: Path, record: Mapping[str, Any]) -> None:
    """Writes `run.json` atomically."""
    temporary = folder / ".run.json"
    temporary.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / "run.json")


def renew_comparisons(jobs: Sequence[Job], runs: Path) -> None:
    """Writes the recipes' current declarations to the `run.json` of earlier runs.

    The report reads them there, as a recipe's file may not exist any more. Runs with
    other backends, seeds and arguments get them as well, so that all of a recipe's runs
    are judged in the same way.
    """
    today = {str([job.recipe, job.file]): job.comparison for job in jobs}
    for path in runs.glob("*/run.json"):
        record = read_json(path)
        job = record.get("job")
        job = job if isinstance(job, dict) else {}
        comparison = today.get(str([job.get("recipe"), job.get("file")]))
        if comparison is not None and comparison != record.get("comparison"):
            write_json(path.parent, record | {"comparison": comparison})


@functools.cache
def processor() -> str | None:
    """Returns the name of the processor, if the system provides it."""
    try:  # Linux, where Python's function returns nothing.
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return text.split("model name")[1].split("\n")[0].strip("\t :")
    except (OSError, IndexError):
        return platform.processor() or None


def read_json(path: Path) -> dict[str, Any]:
    """Returns the content of a JSON file; nothing if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def last_lines(folder: Path) -> list[str]:
    """Returns the end of a run's log."""
    text = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")
    return [line[:500] for line in text.rstrip().splitlines()[-LAST_LINES:]]


@contextmanager
def interruptible() -> Iterator[None]:
    """Makes SIGTERM act like Ctrl-C: the current run is ended and recorded."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Where Python allows no handlers.
        return
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interrupted_afterwards() -> Iterator[None]:
    """Delays Ctrl-C and SIGTERM to the end of a block, so that its process is known."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []

    def wait(number: int, frame: object) -> None:
        received.append(number)

    before = {x: signal.signal(x, wait) for x in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if received:
        signal.raise_signal(received[0])


@contextmanager
def only_one(path: Path, console: Any) -> Iterator[IO[str]]:
    """Waits until no other comparison runs in this folder, as it would disturb timings.

    It is a lock of the operating system: it is released when the last process that
    holds it ends, which may be a run whose `compare` was killed.
    """
    with path.open("w", encoding="utf-8") as file:
        try:
            import fcntl
        except ImportError:  # Windows
            yield file
            return
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            console.print(f"Waiting for another comparison in {path.parent} to end.")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file
