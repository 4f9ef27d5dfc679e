"""What there is: algorithms and recipes, each in a line, taken from its docstring.

    python -m kit list

Nothing is written twice: what a recipe or an algorithm is said to do is the first line
of its file, which is read, not imported.
"""

import ast
import functools
import re
from pathlib import Path

PACKAGE = Path(__file__).parent
# A wheel has the recipes in the package, a checkout has them, and more, beside it.
IS_CHECKOUT = not (PACKAGE / "recipes").exists()


def recipes() -> dict[str, Path]:
    """Returns the recipes' files by name, in alphabetical order."""
    folder = (PACKAGE.parent if IS_CHECKOUT else PACKAGE) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.py"))}


@functools.cache
def exports() -> dict[str, str]:
    """Returns the kit's public names, and where in the kit each one is.

    `"dqn.DQN"` for `kit.DQN`; `"random"` for `kit.random`, which is a module.
    """
    found = {}
    for node in ast.parse((PACKAGE / "__init__.py").read_text("utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            module = str(node.module).removeprefix("kit").removeprefix(".")
            for alias in node.names:
                found[alias.name] = f"{module}.{alias.name}".removeprefix(".")
    return found


def summary(path: Path) -> str:
    """Returns the first line of a file's docstring."""
    return _docstring(path).partition("\n")[0]


def algorithms(recipe: str) -> list[str]:
    """Returns the kit's modules that explain what a recipe teaches, the main one first.

    They are the module or the public name that the recipe is named after, and the
    files that its docstring speaks of.
    """
    named = [recipe, exports().get(recipe, "").partition(".")[0]]
    named += re.findall(r"`kit/(\w+)\.py`", _docstring(recipes()[recipe]))
    there = [name for name in named if (PACKAGE / f"{name}.py").exists()]
    return list(dict.fromkeys(there))


def show() -> None:
    """Lists the algorithms and the recipes, with a line each."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    modules = {name: algorithms(name) for name in recipes()}
    console = Console()

    table = Table(title="Algorithms", title_justify="left", box=box.SIMPLE)
    table.add_column("file", no_wrap=True, style="bold")
    table.add_column("what it is")
    for module in sorted({module for found in modules.values() for module in found}):
        table.add_row(f"kit/{module}.py", summary(PACKAGE / f"{module}.py"))
    console.print(table)

    table = Table(title="Recipes", title_justify="left", box=box.SIMPLE)
    table.add_column("recipe", no_wrap=True, style="bold")
    table.add_column("what it does")
    table.add_column("algorithm, in kit/", style="dim")
    for name, path in recipes().items():
        table.add_row(name, summary(path), ", ".join(f"{x}.py" for x in modules[name]))
    console.print(table)
    console.print(
        "Take one with you: python -m kit copy RECIPE FOLDER", highlight=False
    )


def _docstring(path: Path) -> str:
    return ast.get_docstring(ast.parse(path.read_text("utf-8"))) or ""
