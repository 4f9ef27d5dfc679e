"""Copied recipes run without the kit, in this environment and in empty ones."""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import keras
import pytest
from exchange import RUNS
from test_copy_recipe import BACKEND, RECIPES, copied, notebook

import kit

# Arguments with which each recipe ends in seconds, if only to show that it ends.
TINY = {recipe: arguments for recipe, arguments in reversed(RUNS.values())}


def flags(arguments):
    """Arguments of `main` as they are typed."""
    words = []
    for name, value in {**arguments, "verbose": 0}.items():
        name = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        else:
            values = value if isinstance(value, tuple) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


# Runs a script and a notebook's cells, imports the other recipes, opens a model, and
# tells which modules were loaded: where there is no kit, neither this checkout nor an
# installation of it.
WITHOUT_KIT = """
import importlib.abc, json, keras, runpy, sys

class NoKit(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "kit" or name.startswith("kit."):
            raise ModuleNotFoundError(f"{name} was imported")

sys.meta_path.insert(0, NoKit())
sys.path.insert(0, "")
script, cells, recipes = json.load(open("what.json"))
sys.argv = script
runpy.run_path(script[0], run_name="__main__")
model = keras.saving.load_model("kit.keras")
names = {"__name__": "notebook"}
for cell in cells:
    exec(cell, names)
for name in recipes:
    importlib.import_module(name)
found = {"modules": sorted(sys.modules), "weights": model.count_params()}
json.dump({**found, "module": type(model.layers[-1]).__module__}, open("found", "w"))
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with all recipes, two of which have run in a process without kit."""
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path_factory.mktemp("project")
    for recipe in RECIPES:
        copied(recipe, folder)
    copied("rnn", folder, to="notebook")
    book = nbformat.read(folder / "rnn.ipynb", 4)
    small = {**TINY["rnn"], "output_dir": "runs/rnn", "verbose": 0}
    *cells, pictures = with_parameters(book, small)
    assert "IPython" in pictures.source
    script = ["dqn.py", "--output-dir", "runs/dqn", *flags(TINY["dqn"])]
    code = [cell.source for cell in cells if cell.cell_type == "code"]
    (folder / "what.json").write_text(json.dumps([script, code, RECIPES]))
    kit.q_network((4,), 2, units=(3,), dueling=True).save(folder / "kit.keras")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_KIT],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def with_parameters(book, values):
    """The cells of a notebook, with another one after its parameters."""
    (place,) = (
        i
        for i, cell in enumerate(book.cells)
        if "parameters" in cell.metadata.get("tags", [])
    )
    lines = [
        f"{k} = {str(v) if isinstance(v, Path) else v!r}" for k, v in values.items()
    ]
    cell = type(book.cells[place])(book.cells[place], source="\n".join(lines))
    return [*book.cells[: place + 1], cell, *book.cells[place + 1 :]]


@pytest.mark.parametrize("recipe", ["dqn", "rnn"])
def test_recipes_run_without_the_kit(project, recipe):
    run = project / "runs" / recipe
    record = json.loads((run / "metrics.json").read_text())
    assert record["backend"] == BACKEND
    assert record["versions"]["keras"] == keras.__version__
    assert list(run.glob("*.png"))


def test_the_kit_opens_what_a_copy_saved(project):
    agent = keras.saving.load_model(project / "runs" / "dqn" / "model.keras")
    assert type(agent) is kit.DQN


def test_a_copy_opens_what_the_kit_saved(project):
    found = json.loads((project / "found").read_text())
    assert found["module"] == "dqn_kit.dqn"
    network = keras.saving.load_model(project / "kit.keras")
    assert found["weights"] == network.count_params() > 0


@pytest.mark.parametrize("recipe", RECIPES)
def test_exactly_what_is_needed_is_copied(project, recipe):
    package = f"{recipe}_kit"
    loaded = set(json.loads((project / "found").read_text())["modules"])
    there = {
        ".".join(path.relative_to(project).with_suffix("").parts)
        for path in (project / package).rglob("*.py")
    }
    there = {name.removesuffix(".__init__") for name in there}
    used = {x for x in loaded if x.partition(".")[0] == package}
    # A copy runs on each backend: it has the other engines, and what they need.
    engines = {f"{package}.engines.{x}" for x in ("jax", "tensorflow", "torch")}
    assert used <= there and engines <= there
    # And what is imported late: by an agent's first backup, by its first environment in
    # keras.ops, by a picture of several seeds.
    names = ("engines.", "rl.env_state", "rl.vector_env", "lab.intervals")
    later = tuple(f"{package}.{name}" for name in names)
    assert [x for x in there - used if not x.startswith(later)] == []


# --- In empty environments, and in Jupyter: tox -m travel -------------------


@pytest.mark.travel
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_runs_in_an_environment_with_what_it_asks_for(
    recipe, tmp_path_factory, tmp_path, capsys
):
    *installs, run = copied(recipe, tmp_path, capsys)
    # Recipes that ask for the same, one after the other, share an environment; one of
    # them has a gigabyte or two, so the one before it makes room.
    name = hashlib.sha256(str(installs).encode()).hexdigest()
    home = tmp_path_factory.getbasetemp() / f"travel-{name[:8]}"
    python = home / "bin" / "python"
    if not python.exists():
        for other in home.parent.glob("travel-*"):
            shutil.rmtree(other)
        venv.create(home, with_pip=True)
        for _, *words in installs:
            subprocess.run([python, *words], check=True)
    assert subprocess.run([python, "-c", "import kit"], cwd=tmp_path).returncode
    _, _, script = run
    words = [python, script, *flags(TINY[recipe]), "--output-dir", "out"]
    subprocess.run(words, cwd=tmp_path, check=True)
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert record["recipe"] == recipe and record["backend"] == BACKEND


@pytest.mark.travel
@pytest.mark.parametrize("recipe", RECIPES)
def test_a_notebook_executes(recipe, tmp_path):
    import nbclient
    from nbformat.v4 import new_code_cell

    book = notebook(recipe, tmp_path)
    small = {**TINY[recipe], "output_dir": "out", "verbose": 0}
    last = new_code_cell("import sys\nprint('kit' in sys.modules)")
    book.cells = [*with_parameters(book, small), last]
    client = nbclient.NotebookClient(
        book, timeout=1200, resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    *_, pictures, imported = book.cells
    assert "image/png" in pictures.outputs[0].data
    assert imported.outputs[0].text == "False\n"
    assert (tmp_path / "out" / "metrics.json").exists()
