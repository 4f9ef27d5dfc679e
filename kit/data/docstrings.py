"""Docstrings of installed packages as documents with a summary: body and first line.

The first line of a docstring says what the rest explains, so each one is a document
with a summary that a person wrote. The packages' files are parsed, not imported, and
nothing is downloaded. What they contain depends on the packages' versions, and so does
any score on it.

    head   "Return the sum of a sequence."                    the summary
    body   "The start value defaults to 0. If the ..."        the document

Whole modules are held out, and whole packages for a second test: no body of a test
comes from a module that the training knows. Near-copies are left out, because packages
repeat their descriptions of arguments and methods in many places.
"""

import ast
import hashlib
import importlib.util
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from kit import checks
from kit.data.corpus import NO_PROSE

# The standard library, and packages that come with the kit or its extra `recipes`.
PACKAGES = (
    "stdlib",
    "gymnasium",
    "keras",
    "matplotlib",
    "networkx",
    "numpy",
    "pandas",
    "river",
    "scipy",
    "skimage",
    "sklearn",
)
# Of these, no module is in the training: the second test.
UNSEEN_PACKAGES = ("skimage",)

ACCEPTED = {
    "packages": checks.sequence(checks.TEXT, least=1),
    "unseen_packages": checks.sequence(checks.TEXT),
    "max_words": checks.integer("[10, 10000]"),
    "text": checks.TEXT,
    "docstring": checks.TEXT,
}

MIN_WORDS, MIN_SENTENCES = 15, 2  # of a body
SUMMARY_WORDS = (3, 20)
# A body is a near-copy if more than this share of its runs of words occurred before.
RUN, COPIED = 6, 0.3
NO_DOCUMENTS = {"test", "tests", "_vendor", "vendored", "site-packages", "externals"}
# Sections without a description of their own, and what looks like code.
LEFT_OUT = {"examples", "example", "references", "see also", "methods", "attributes"}
UNDERLINE = re.compile(r"^\s*([-=~])\1{2,}\s*$")
# Lines of examples, tables, and templates that are filled in at import.
CODE = re.compile(r"^\s*(>>>|[|+$]|==|--)|%\(\w+\)s")
# Directives and literal blocks, which end where the indentation does.
BLOCK = re.compile(r"^\s*\.\. |::\s*$")
# Before a new sentence, a paragraph, an item of a list, or an argument's description.
BORDER = re.compile(
    r"(?<=[.!?])\s+(?=[\"'`(*]*[A-Z])|\n\s*\n|\n(?=\s*([*-] |:\w+ |\w+ ?: ))"
)


class Document(NamedTuple):
    """A document with its summary.

    Attributes:
        source: Module that it comes from, `"numpy.lib._function_base_impl"`.
        sentences: The document's sentences.
        summary: The summary.
    """

    source: str
    sentences: tuple[str, ...]
    summary: str

    @property
    def text(self) -> str:
        """The document in one line."""
        return " ".join(self.sentences)


def docstrings(
    packages: Sequence[str] = PACKAGES, max_words: int = 80
) -> list[Document]:
    """Returns the docstrings of installed packages, without near-copies.

    A docstring is a document if its first paragraph is one sentence of 3 to 20 words,
    and the rest has 15 words and two sentences or more without code, examples, lists of
    methods and references. No two documents have the same summary, or bodies that share
    more than 30 % of their runs of six words; the one whose module has the smaller
    hash stays.

    Args:
        packages: Names to import them by; `"stdlib"` is Python's standard library.
            Packages that aren't installed are left out. Defaults to those that the kit
            and its extra `recipes` bring.
        max_words: Words of a document, at most; later sentences are left out. Defaults
            to 80.

    Returns:
        Documents, always in the same order.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If no document was found.

    Example:

    ```python
    documents = docstrings(["numpy"])
    documents[0].summary, documents[0].text
    ```
    """
    checks.check("docstrings", locals(), ACCEPTED)
    found = []
    for package in dict.fromkeys(packages):
        for module, docstring in _read(package):
            head, rest = split_docstring(docstring)
            if head and (kept := _first_sentences(rest, max_words)):
                found.append(Document(module, kept, head))
    # Sorted by module, but mixed, so that no package comes first.
    found.sort(key=lambda document: (_number(document.source), document))
    documents = list(_without_copies(found))
    if not documents:
        raise ValueError(
            "docstrings: `packages` must name installed packages whose source files "
            f"have docstrings, received {tuple(packages)!r}."
        )
    return documents


def split_by_module(
    documents: Sequence[Document], unseen_packages: Sequence[str] = UNSEEN_PACKAGES
) -> dict[str, list[Document]]:
    """Splits documents into parts that have no module in common.

    A hash of a module's name determines its part: 80 % of the modules are for training,
    10 % for validation and 10 % for the test. So a module stays in its part if others
    are added.

    Args:
        documents: Documents.
        unseen_packages: Packages that are in none of these three parts.

    Returns:
        `"train"`, `"valid"`, `"test"`, and `"unseen"`, the documents of
        `unseen_packages`.
    """
    kinds = {
        "documents": checks.sequence(checks.instance(Document)),
        "unseen_packages": ACCEPTED["unseen_packages"],
    }
    checks.check("split_by_module", locals(), kinds)
    parts: dict[str, list[Document]] = {"train": [], "valid": [], "test": []}
    parts["unseen"] = []
    for document in documents:
        tenth = _number(document.source) % 10
        name = {0: "test", 1: "valid"}.get(tenth, "train")
        if document.source.partition(".")[0] in unseen_packages:
            name = "unseen"
        parts[name].append(document)
    return parts


def split_docstring(docstring: str) -> tuple[str, str]:
    """Splits a docstring into its summary and the prose of the rest.

    Args:
        docstring: The docstring, without indentation.

    Returns:
        The first paragraph in one line, `""` if it isn't a sentence of 3 to 20 words,
        and the rest without underlines, code and sections such as examples.
    """
    checks.check("split_docstring", locals(), ACCEPTED)
    head, _, rest = docstring.partition("\n\n")
    head = " ".join(head.split())
    fewest, most = SUMMARY_WORDS
    letters = sum(c.isalpha() or c == " " for c in head)
    is_sentence = head[-1:] == "." and not re.search(r"[.!?:]\s", head)
    if not (
        is_sentence
        and head.isascii()
        and fewest <= len(head.split()) <= most
        and letters > 0.85 * len(head)
    ):
        return "", ""
    lines: list[str] = []
    skips = False
    for line in rest.split("\n"):
        if UNDERLINE.match(line) and lines:
            title = lines.pop().strip()
            skips = title.lower() in LEFT_OUT
        elif re.fullmatch(r"[A-Z][\w ]+:", line):  # a section in Google's style
            skips = line[:-1].lower() in LEFT_OUT
        elif not skips or not line.strip():
            lines.append(line)
    return head, "\n".join(_without_code(lines)).strip()


def _without_code(lines):
    """Yields the lines that aren't code, tables or directives."""
    in_code, block = False, None  # the indentation of the line above a block
    for line in lines:
        if not line.strip():
            in_code = False  # an example ends, with its output
            yield line
            continue
        indent = len(line) - len(line.lstrip())
        if block is not None and indent > block:
            continue
        block = indent if BLOCK.search(line) else None
        in_code = in_code or bool(CODE.search(line))
        if block is None and not in_code:
            yield line


def _first_sentences(text, max_words):
    """Returns the first sentences of a text, `()` if they are too few or short."""
    kept: list[str] = []
    number = 0
    ends = [match.span() for match in BORDER.finditer(text)]
    begins = [0, *(end for _, end in ends)]
    for begin, end in zip(begins, [*(x for x, _ in ends), len(text)], strict=True):
        sentence = " ".join(text[begin:end].split()).lstrip("*- ")
        if not sentence.isascii() or len(sentence.split()) < 3:
            continue
        number += len(sentence.split())
        if number > max_words:
            number -= len(sentence.split())
            break
        kept.append(sentence)
    is_enough = len(kept) >= MIN_SENTENCES and number >= min(MIN_WORDS, max_words)
    return tuple(kept) if is_enough else ()


def _without_copies(documents: Sequence[Document]) -> Iterator[Document]:
    """Yields documents whose summary is new, and whose body is, but for a share."""
    summaries: set[str] = set()
    runs_before: set[int] = set()
    for document in documents:
        summary = " ".join(_words(document.summary))
        words = _words(document.text)
        count = max(1, len(words) - RUN + 1)
        runs = {hash(tuple(words[i : i + RUN])) for i in range(count)}
        if summary not in summaries and len(runs & runs_before) <= COPIED * len(runs):
            yield document
            summaries.add(summary)
            runs_before |= runs


def _words(text):
    return re.findall(r"\w+", text.lower())


def _number(name: str) -> int:
    """Returns a number for a name that is the same in each process, unlike `hash`."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def _read(package: str) -> Iterator[tuple[str, str]]:
    """Yields pairs of a module's name and a docstring in it."""
    for path, module in _files(package):
        try:
            with warnings.catch_warnings(action="ignore"):  # invalid escapes
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # a template, or made for another Python
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes: list[Any] = [tree]
        while nodes:
            node = nodes.pop()
            # Statements in statements; to look at expressions too takes much longer.
            for name in ("body", "orelse", "finalbody", "handlers"):
                nodes += getattr(node, name, ())
            if isinstance(node, kinds) and (text := ast.get_docstring(node)):
                yield module, text


def _files(package: str) -> Iterator[tuple[Path, str]]:
    """Yields the source files of a package with their modules' names."""
    if package == "stdlib":
        root = Path(sysconfig.get_path("stdlib"))
        known = sys.stdlib_module_names - NO_PROSE
    else:
        try:
            spec = importlib.util.find_spec(package)
        except (ImportError, ValueError):
            spec = None
        if spec is None or not spec.submodule_search_locations:
            return
        root, known = Path(spec.submodule_search_locations[0]), None
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        inside = known is None or parts[0] in known
        if inside and NO_DOCUMENTS.isdisjoint(parts):
            parts = parts if known is not None else (package, *parts)
            yield path, ".".join(parts).removesuffix(".__init__")
