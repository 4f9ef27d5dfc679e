"""Writes a recipe as a Jupyter notebook: docstrings and comments become its prose.

`main` is unrolled: its parameters become a cell of assignments, its body becomes the
cells after it, and each function comes before the first cell that uses it. A recipe can
be unrolled if its `main` returns only at its end, and none of its variables has the
name of a global one.
"""

import ast
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kit.tools.editing import edit_nodes
from kit.tools.scores import declares

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
SCOPES = (*FUNCTIONS, ast.ClassDef, ast.Lambda, *COMPREHENSIONS)
# Comments to leave out: for tools, and headings of a file, as functions are moved.
NO_PROSE = re.compile(r"(fmt|isort|mypy|noqa|ruff|type):|---")


class Piece(NamedTuple):
    """Statements that form a cell, and their prose."""

    prose: str
    code: str
    nodes: tuple[ast.stmt, ...]


def make_notebook(source: str, licence: str, backend: str, install: str) -> str:
    """Returns the text of a notebook.

    Args:
        source: A recipe's source.
        licence: Comment with its licence and origin.
        backend: The backend that the notebook selects.
        install: Commands that install its requirements.

    Raises:
        ValueError: If `main` can't be unrolled.
        ImportError: If nbformat isn't installed.
    """
    try:
        import nbformat
        from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook
    except ImportError as error:
        raise ImportError(
            "A notebook is written by nbformat, which isn't installed: "
            "`python -m pip install nbformat`, or kit's extra `notebook`."
        ) from error

    cells: list[Any] = []
    for kind, text in cells_of(source, licence, backend, install):
        if not text:
            continue
        new = new_markdown_cell if kind == "prose" else new_code_cell
        # papermill finds parameters by this name.
        metadata = {"tags": ["parameters"]} if kind == "parameters" else {}
        # Numbered ids, so that the same source gives the same notebook.
        cells.append(new(text, id=f"cell-{len(cells)}", metadata=metadata))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    about = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return nbformat.writes(new_notebook(cells=cells, metadata=about)) + "\n"


def cells_of(
    source: str, licence: str, backend: str, install: str
) -> Iterator[tuple[str, str]]:
    """Yields the cells' kinds ("prose", "code", "parameters") and texts."""
    source, main = unroll(source)
    tree, lines = ast.parse(source), source.splitlines()
    imports = [x for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom)]
    rest = [x for x in tree.body[1:] if x not in imports and not is_command(x)]
    every = [without_docstring(piece) for piece in split(rest, lines, imports[-1])]
    # `python -m kit compare` runs scripts only: a notebook needs no declaration.
    outside = [
        piece
        for piece in every
        if "main" not in bound(piece.nodes) and not any(map(declares, piece.nodes))
    ]
    placed: list[Piece] = []

    def definitions(names: set[str]) -> Iterator[tuple[str, str]]:
        """Yields the definitions of these names, each after the ones that it needs."""
        for piece in outside:
            if piece not in placed and bound(piece.nodes) & names:
                placed.append(piece)
                yield from definitions(used(piece.nodes))
                yield from (("prose", piece.prose), ("code", piece.code))

    title, _, text = (ast.get_docstring(tree) or "").partition("\n")
    yield "prose", f"# {title.rstrip('.')}\n\n{markdown(text)}"
    origin = "\n".join(line for line in licence.splitlines() if line)
    yield (
        "prose",
        "The commands above are those of the script that this notebook was made from; "
        "their options are parameters here, below.\n\n"
        f"```python\n{origin}\n"
        "# Changed as well: main() became cells, COMPARISON is left out.\n```\n\n"
        f"What is used here is installed by\n\n```sh\n{install}\n```",
    )
    yield (
        "code",
        f'import os\n\nos.environ["KERAS_BACKEND"] = "{backend}"'
        "  # or one of jax, tensorflow, torch",
    )
    yield "code", "\n".join(lines[imports[0].lineno - 1 : end(imports[-1])])
    # Definitions that no cell uses come first, with those that the parameters need.
    defined = set[str]().union(*(bound(piece.nodes) for piece in outside))
    yield from definitions(defined - reached(outside, used([main])) | used([main.args]))

    summary, texts = docstring_of(main)
    yield "prose", f"## Parameters\n\n{summary}"
    yield "parameters", assignments(main, texts, source)
    names = ", ".join(f"{x.arg}={x.arg}" for x in main.args.kwonlyargs)
    names = textwrap.indent(textwrap.fill(names, 84), " " * 4)
    yield "code", f"config = dict(\n{names},\n)"

    yield "prose", "## The run"
    for piece in split(main.body[1:], lines, main.body[0]):
        yield from definitions(used(piece.nodes))
        yield from (("prose", piece.prose), ("code", piece.code))
    yield (
        "prose",
        "## Pictures\n\nThey lie in the run's folder, as all other results do.",
    )
    yield (
        "code",
        "from IPython.display import Image, display\n\n"
        'for picture in sorted(run.output_dir.glob("*.png")):\n'
        "    display(Image(filename=picture))",
    )


# --- Code -------------------------------------------------------------------


def unroll(source: str) -> tuple[str, Any]:
    """Returns a source whose `main` works outside of a function, and its `main`.

    `locals()` becomes `config`, and the result becomes `record`.
    """
    main = main_of(source)
    inner = list(walk_scope(main.body))
    returns = [x for x in inner if isinstance(x, ast.Return)]
    if returns != main.body[-1:] or returns[0].value is None:
        raise ValueError("main() can't become cells: it must return once, at its end.")
    parameters = {x.arg for x in main.args.kwonlyargs}
    names = parameters | bound(main.body)
    module = [x for x in ast.parse(source).body if not is_command(x)]
    twice = sorted(names & bound(module) | names & {"config", "os", "record"})
    if twice:
        raise ValueError(
            f"main() can't become cells: {', '.join(twice)} would mean two things."
        )
    edits: list[tuple[ast.AST, Callable[[str], str]]] = [
        (x, lambda _: "config")
        for x in inner
        if isinstance(x, ast.Call) and ast.unparse(x) == "locals()"
    ]
    edits.append((returns[0], lambda x: x.replace("return", "record =", 1)))
    source = edit_nodes(source, edits)
    return source, main_of(source)


def main_of(source: str) -> Any:
    """Returns the function `main` of a source."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == "main":
            return node
    raise ValueError("There is no function main().")


def walk_scope(nodes: Sequence[ast.AST]) -> Iterator[ast.AST]:
    """Yields nodes and their descendants, except those inside functions."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        yield node
        if not isinstance(node, SCOPES):
            todo += ast.iter_child_nodes(node)


def bound(nodes: Sequence[ast.AST]) -> set[str]:
    """Returns the names that statements define."""
    names = set()
    for node in walk_scope(nodes):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.alias):
            names.add(node.asname or node.name.partition(".")[0])
        elif isinstance(node, (*FUNCTIONS, ast.ClassDef, ast.ExceptHandler)):
            names |= {node.name} if node.name else set()
    return names


def used(nodes: Sequence[ast.AST]) -> set[str]:
    """Returns the names that statements use, including functions within them."""
    every = (inner for node in nodes for inner in ast.walk(node))
    return {x.id for x in every if isinstance(x, ast.Name)}


def reached(pieces: Sequence[Piece], names: set[str]) -> set[str]:
    """Returns names, and all names that their definitions use, recursively."""
    while True:
        more = names.union(*(used(p.nodes) for p in pieces if bound(p.nodes) & names))
        if more == names:
            return names
        names = more


def is_command(node: ast.stmt) -> bool:
    """Whether this is `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def start(node: ast.stmt) -> int:
    """Returns the number of a statement's first line, including decorators."""
    return min([node.lineno, *(x.lineno for x in getattr(node, "decorator_list", []))])


def end(node: ast.stmt) -> int:
    """Returns the number of a statement's last line."""
    return node.end_lineno or node.lineno


def split(
    nodes: Sequence[ast.stmt], lines: Sequence[str], before: ast.stmt
) -> Iterator[Piece]:
    """Splits statements at blank lines and at comments, which become prose."""
    group: list[ast.stmt] = []
    prose, last = "", end(before)
    for node in nodes:
        if gap := lines[last : start(node) - 1]:
            if group:
                yield Piece(prose, code_of(group, lines), tuple(group))
            group, prose = [], comments(gap)
        group.append(node)
        last = end(node)
    if group:
        yield Piece(prose, code_of(group, lines), tuple(group))


def code_of(nodes: Sequence[ast.stmt], lines: Sequence[str]) -> str:
    """Returns the source of statements, without the indentation of a function."""
    code = textwrap.dedent("\n".join(lines[start(nodes[0]) - 1 : end(nodes[-1])]))
    try:
        same = [ast.dump(x) for x in ast.parse(code).body]
    except SyntaxError:
        same = []
    if same != [ast.dump(x) for x in nodes]:
        raise ValueError(
            f"Line {nodes[0].lineno}: this can't become a cell, for it has a string "
            "of several lines, which would change."
        )
    return code


def without_docstring(piece: Piece) -> Piece:
    """Moves the docstring of a function or class from the code to the prose."""
    (node, *others) = piece.nodes
    if others or not isinstance(node, (*FUNCTIONS, ast.ClassDef)):
        return piece
    docstring, first = ast.get_docstring(node), node.body[0]
    if not docstring or len(node.body) == 1:
        return piece
    lines = piece.code.splitlines()
    above = first.lineno - start(node)
    below = lines[end(first) - start(node) + 1 :]
    while not below[0]:
        del below[0]
    prose = "\n\n".join(filter(None, [piece.prose, markdown(docstring)]))
    return Piece(prose, "\n".join(lines[:above] + below), piece.nodes)


def assignments(main: Any, texts: dict[str, str], source: str) -> str:
    """Returns the parameters of `main` as assignments of their defaults."""
    lines = []
    for arg, default in zip(main.args.kwonlyargs, main.args.kw_defaults, strict=True):
        value = textwrap.dedent(" " * 4 + str(ast.get_source_segment(source, default)))
        annotation = ast.get_source_segment(source, arg)
        lines += textwrap.wrap(
            texts[arg.arg],
            86,
            initial_indent="# ",
            subsequent_indent="# ",
            break_on_hyphens=False,
        )
        lines.append(f"{annotation} = {value}")
    return "\n".join(lines)


# --- Prose ------------------------------------------------------------------


def comments(lines: Sequence[str]) -> str:
    """Returns the comments among lines as Markdown."""
    texts = [line.strip().removeprefix("#").strip() for line in lines]
    return markdown("\n".join(text for text in texts if not NO_PROSE.match(text)))


def markdown(text: str) -> str:
    """Returns a docstring as Markdown: indented blocks become code."""
    parts: list[str] = []
    for block in re.split(r"\n\s*\n", text.strip("\n")):
        is_code = block.startswith("    ")
        if is_code and parts and parts[-1].endswith("\n```"):  # one, with a gap in it
            parts[-1] = parts[-1].removesuffix("\n```") + f"\n\n{indented(block)}\n```"
        elif is_code:
            shell = re.match(r"\s+(KERAS_BACKEND|python|pip)\b", block)
            parts.append(f"```{'sh' if shell else 'python'}\n{indented(block)}\n```")
        elif re.match(r"[A-Z]\w+:\n", block):
            parts += section(block)
        elif block.startswith(("|", "- ")):
            parts.append(escaped(block))
        else:
            parts.append(escaped(" ".join(block.split())))
    return "\n\n".join(parts)


def section(block: str) -> list[str]:
    """Returns a section of a docstring, such as `Args:`, as heading and list."""
    title, _, text = block.partition(":\n")
    items = entries(text)
    if not items:
        return [f"**{title}.** {escaped(' '.join(text.split()))}"]
    return [
        f"**{title}**",
        "\n".join(f"- `{name}`: {escaped(text)}" for name, text in items.items()),
    ]


def entries(text: str) -> dict[str, str]:
    """Returns the entries of a docstring's section by name."""
    found: dict[str, str] = {}
    for line in textwrap.dedent(text).splitlines():
        if match := re.match(r"(\w+): (.*)", line):
            found[match[1]] = match[2]
        elif found and line.startswith(" "):
            found[list(found)[-1]] += " " + line.strip()
    return found


def docstring_of(main: Any) -> tuple[str, dict[str, str]]:
    """Returns the docstring of `main` as Markdown, and the texts of its parameters."""
    before, _, rest = (ast.get_docstring(main) or "").partition("\nArgs:\n")
    texts = entries(re.split(r"\n\n(?=\S)", rest)[0])
    return markdown(before), texts


def indented(block: str) -> str:
    """Returns a block of code without its indentation."""
    return "\n".join(line[4:] for line in block.splitlines())


def escaped(text: str) -> str:
    """Returns text escaped for Markdown, except code in backquotes."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [
        re.sub(r"([*$])", r"\\\1", x).replace("<", "&lt;") for x in parts[::2]
    ]
    return "".join(parts)
