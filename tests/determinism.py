"""Runs each recipe twice with the same seed: figures and weights must be the same.

    KERAS_BACKEND=jax python tests/determinism.py            all recipes: minutes
    KERAS_BACKEND=jax python tests/determinism.py dqn gan    those of these test files

The tests that run a recipe in its tiny configuration run in two processes, in which
Python hashes strings differently. What they leave is compared to the last bit: the
figures in `metrics.json` and `history.csv` but for times and memory, and all arrays and
configurations in `.keras` files. Run by `tox -m determinism`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import h5py

ROOT = Path(__file__).parents[1]
# Parts of names of what is measured by a clock, or counted by the operating system.
MEASURED = ("second", "throughput", "memory", "speed")
# By which Keras' configurations say that two parts are one: an address.
ADDRESS = "shared_object_id"
RUNS = "leaves_what_it_promises or recipe_classifies or recipe_predicts_numbers"
# Recipe -> why two runs of it differ.
KNOWN = {"a3c": "which of its workers is first is up to the machine"}


def is_measured(name):
    """Whether a figure tells of time or memory."""
    return any(part in name for part in MEASURED)


def figures(value, path=""):
    """Yields `(path, value)` of all that JSON holds, but for what is measured."""
    if isinstance(value, dict):
        for name, part in value.items():
            if not is_measured(name) and name != ADDRESS:
                yield from figures(part, f"{path}/{name}")
    elif isinstance(value, list):
        yield f"{path}/length", len(value)
        for i, part in enumerate(value):
            yield from figures(part, f"{path}/{i}")
    else:
        yield path, repr(value)


def arrays(file):
    """Yields `(path, bytes)` of the arrays in an open HDF5 file."""
    found = {}

    def note(name, item):
        if isinstance(item, h5py.Dataset):
            value = item[()]
            found[name] = (str(item.dtype), item.shape, value.tobytes())

    file.visititems(note)
    yield from found.items()


def content(path):
    """Returns what a file holds that has to be the same, by name."""
    if path.suffix == ".json":
        return dict(figures(json.loads(path.read_text(encoding="utf-8"))))
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        return dict(figures(rows))
    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            config = json.loads(archive.read("config.json"))
            with archive.open("model.weights.h5") as file, h5py.File(file) as weights:
                return {**dict(figures(config, "config")), **dict(arrays(weights))}
    return {}  # pictures, which show these figures


def read_runs(folder):
    """Returns contents by recipe and file, of all files beside a `metrics.json`."""
    found = {}
    for metrics in sorted(folder.rglob("metrics.json")):
        recipe = json.loads(metrics.read_text(encoding="utf-8"))["recipe"]
        for path in sorted(metrics.parent.rglob("*")):
            if parts := content(path) if path.is_file() else {}:
                found[recipe, str(path.relative_to(folder))] = parts
    return found


def run_recipes(tests, folder, hash_seed):
    """Runs the tests, which leave their folders in `folder`."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("-k", RUNS, f"--basetemp={folder}", *tests),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": str(hash_seed)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"the recipes' tests failed:\n{done.stdout[-3000:]}")


def main():
    """Prints what differs; fails if anything does, or a recipe left nothing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help="of test files, such as dqn_recipe")
    arguments = parser.parse_args()
    tests = [f"tests/test_{name}.py" for name in arguments.names] or ["tests"]
    with tempfile.TemporaryDirectory() as folder:
        # In the same place, one after the other: a run records where its files lie.
        place, runs = Path(folder) / "runs", []
        for hash_seed in (1, 2):
            run_recipes(tests, place, hash_seed)
            runs.append(read_runs(place))
            place.rename(Path(folder) / f"runs-{hash_seed}")
    first, second = runs
    recipes = {recipe for recipe, _ in first}
    expected = {path.stem for path in (ROOT / "recipes").glob("*.py")}
    missing = set() if arguments.names else expected - recipes
    failed = bool(missing) or not recipes
    for key in sorted({*first, *second}):
        one, two = first.get(key, {}), second.get(key, {})
        names = [x for x in {**one, **two} if one.get(x) != two.get(x)]
        if names:
            known = KNOWN.get(key[0])
            failed |= known is None
            what = f"known: {known}" if known else "DIFFERENT"
            print(f"{': '.join(key)}: {what}: {len(names)} of {len(one)} values")
            for name in () if known else names[:5]:
                print(f"  {name}: {one.get(name)!s:.60}, {two.get(name)!s:.60}")
    values = sum(map(len, first.values()))
    print(
        f"{os.environ.get('KERAS_BACKEND', '')}: {len(recipes)} recipes, {len(first)} "
        f"files, {values} values; without figures: {', '.join(missing) or 'none'}."
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
