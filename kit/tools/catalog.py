"""Lists the algorithms and recipes, with one line each.

    python -m kit list

The line is the first one of the file's docstring; the file is read, not imported.
"""

import ast
import functools
import re
from pathlib import Path

PACKAGE = Path(__file__).parents[1]
# A wheel has the recipes in the package, a checkout beside it.
IS_CHECKOUT = not (PACKAGE / "recipes").exists()


def recipes() -> dict[str, Path]:
    """Returns the recipes' files by name, in alphabetical order."""
    folder = (PACKAGE.parent if IS_CHECKOUT else PACKAGE) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


def file_of(module: str) -> Path:
    """Returns the file of a module of the kit: `rl/policies.py` for `"rl.policies"`.

    A package's file is its `__init__.py`; the kit's own has the empty name.
    """
    path = PACKAGE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def is_module(name: str) -> bool:
    """Returns whether the kit has a module or package of this dotted name."""
    return file_of(name).is_file()


def is_package(name: str) -> bool:
    """Returns whether the kit has a package of this dotted name."""
    return is_module(name) and file_of(name).name == "__init__.py"


@functools.cache
def exports(package: str = "") -> dict[str, str]:
    """Returns the public names of a package, with their paths in the kit.

    `"dqn.DQN"` for `kit.DQN`; `"random"` for `kit.random`, which is a module.

    Args:
        package: Dotted name of a package within the kit. Defaults to the kit itself.
    """
    found = {}
    for node in ast.walk(ast.parse(file_of(package).read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = str(node.module).removeprefix("kit").removeprefix(".")
            for alias in node.names:
                found[alias.name] = f"{module}.{alias.name}".removeprefix(".")
    return found


def module_of(path: str) -> str:
    """Returns the module of an export: `"dqn"` for `"dqn.DQN"`."""
    return path if is_module(path) else path.rpartition(".")[0]


def summary(path: Path) -> str:
    """Returns the first line of a file's docstring."""
    return _docstring(path).partition("\n")[0]


def algorithms(recipe: str) -> list[str]:
    """Returns the kit's modules that explain what a recipe teaches, the main one first.

    They are the module, or the module of the public name, that the recipe is named
    after, and the files that its docstring mentions.
    """
    named = [recipe, module_of(exports().get(recipe, ""))]
    mentioned = re.findall(r"`kit/([\w/]+)\.py`", _docstring(recipes()[recipe]))
    named += [path.replace("/", ".") for path in mentioned]
    there = [name for name in named if name and is_module(name)]
    return list(dict.fromkeys(there))


def show() -> None:
    """Lists the algorithms and the recipes, with a line each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    modules = {name: algorithms(name) for name in recipes()}
    console = Console()

    explained = sorted({module for found in modules.values() for module in found})
    for title, names in (
        ("Algorithms", [name for name in explained if "." not in name]),
        ("What recipes also explain", [name for name in explained if "." in name]),
    ):
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        table.add_column("file", no_wrap=True, style="bold")
        table.add_column("what it is")
        for name in names:
            path = file_of(name)
            table.add_row(f"kit/{path.relative_to(PACKAGE).as_posix()}", summary(path))
        console.print(table)

    table = Table(title="Recipes", title_justify="left", box=box.SIMPLE)
    table.add_column("recipe", no_wrap=True, style="bold")
    table.add_column("what it does")
    table.add_column("algorithm, in kit/", style="dim")
    for name, path in recipes().items():
        files = [f"{module.replace('.', '/')}.py" for module in modules[name]]
        table.add_row(name, summary(path), ", ".join(files))
    console.print(table)
    console.print(
        "Take one with you: python -m kit copy RECIPE FOLDER", highlight=False
    )


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
