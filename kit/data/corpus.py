"""English text that comes with Python, and a vocabulary of characters.

The text is Python's own documentation: nothing is downloaded. Recipes of language
models read it.
"""

import ast
import json
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from kit import checks

ACCEPTED = {
    "path": checks.PATH | None,
    "characters": checks.TEXT,
    "text": checks.TEXT,
    "min_count": checks.COUNT,
}


def english_text() -> tuple[str, str, str]:
    """Returns English prose: the topics of Python's `help()`, and docstrings.

    About 1.2 million characters, a paragraph a line: pydoc's topics, and docstrings
    of the standard library, whose files are read, not imported. What isn't prose
    (code, tables, grammars) is left out, and so is a paragraph that repeats an
    earlier one, word for word or nearly: manuals copy themselves, and held-out text
    that stands in the training text measures memory. Whole topics and whole modules
    are held out, drawn once and for all. The text, and so any score on it, depends a
    little on Python's version.

    Returns:
        Text to train on, to validate on and to test on; the last two are about a
        twentieth each.

    Raises:
        OSError: If this Python comes without topics, or without the standard
            library's source files.
    """
    documents = [*_topics(), *_docstrings()]
    order = np.random.default_rng(0).permutation(len(documents))
    documents = [documents[i] for i in order]
    seen: set[tuple[str, ...]] = set()
    texts = ["\n".join(_unseen_prose(document, seen)) for document in documents]
    texts = [text + "\n\n" for text in texts if text]

    share = sum(len(text) for text in texts) // 20
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    left = {"test": share, "valid": share}  # characters to go
    for text in texts:
        part = next((name for name in left if left[name] > 0), "train")
        # One long document would be most of a held-out part, and its only subject.
        if len(text) > share // 5:
            part = "train"
        parts[part].append(text)
        if part in left:
            left[part] -= len(text)
    return "".join(parts["train"]), "".join(parts["valid"]), "".join(parts["test"])


def load_text(path: str | Path | None = None) -> tuple[str, str, str]:
    """Returns text to train on, to validate on and to test on.

    Args:
        path: File of UTF-8 text, whose last tenth is held out. Defaults to `None`:
            `english_text`.

    Raises:
        TypeError: If an argument has another type.
        ValueError: If the file can't be read as UTF-8 text.
    """
    checks.check("load_text", locals(), ACCEPTED)
    if path is None:
        return english_text()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"text={str(path)!r} can't be read as the UTF-8 text that `path` is to "
            f"name: {error}"
        ) from error
    share = len(text) // 20
    return text[: -2 * share], text[-2 * share : -share], text[-share:]


class Characters:
    """The characters of a text, numbered from 1; 0 stands for any other.

    Args:
        characters: The characters that have a number of their own, in that order.

    Example:

    ```python
    vocabulary = Characters.of("hello", min_count=1)
    tokens = vocabulary.encode("hole?")  # 2, 4, 3, 1, 0
    vocabulary.decode(tokens)  # "hole\ufffd"
    ```
    """

    UNKNOWN = "\ufffd"  # as Unicode writes what can't be read

    def __init__(self, characters: str):
        checks.check(self, locals(), ACCEPTED)
        self.characters = self.UNKNOWN + characters

    @classmethod
    def of(cls, text: str, min_count: int = 5) -> "Characters":
        """Returns the characters that occur `min_count` times in a text.

        The rarer ones stay unknown, so that a model of the text meets some.
        """
        checks.check("Characters.of", locals(), ACCEPTED)
        counts = Counter(text)
        return cls("".join(sorted(c for c in counts if counts[c] >= min_count)))

    @classmethod
    def load(cls, path: str | Path) -> "Characters":
        """Returns what `save` wrote."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8"))["characters"])

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, to lie beside the model that needs it."""
        text = json.dumps({"characters": self.characters[1:]})
        Path(path).write_text(text + "\n", encoding="utf-8")

    def encode(self, text: str) -> np.ndarray:
        """Returns the characters' numbers, int32."""
        checks.check("Characters.encode", locals(), ACCEPTED)
        number = {c: i for i, c in enumerate(self.characters)}
        return np.fromiter((number.get(c, 0) for c in text), "int32", len(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """Returns the text that the numbers stand for."""
        places = checks.array("T", "integers", f"[0, {len(self) - 1}]")
        if isinstance(tokens, Iterable):  # of integers, or of a backend's scalars
            numbers = [np.asarray(x) for x in tokens]
            if not numbers:
                return ""
            if len({x.shape for x in numbers}) == 1:
                tokens = np.stack(numbers)
        checks.check("Characters.decode", locals(), {"tokens": places})
        return "".join(self.characters[int(i)] for i in tokens)

    def __len__(self) -> int:
        """Size of the vocabulary, the unknown included."""
        return len(self.characters)


# Documents of the standard library that aren't documentation of it, or not English.
NO_PROSE = {"encodings", "idlelib", "lib2to3", "pydoc_data", "test", "turtledemo"}
TO_ASCII = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")


def _topics():
    """The topics of `help()`, each a document."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise OSError(
            "This Python comes without the module pydoc_data.topics, from which "
            "`english_text` reads. Python as python.org or conda give it has it."
        ) from error
    return [topics[name] for name in sorted(topics)]


def _docstrings():
    """The docstrings of each module of the standard library, a document a module."""
    library = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(library.rglob("*.py")):
        package, *inner = path.relative_to(library).parts
        if package.removesuffix(".py") not in sys.stdlib_module_names - NO_PROSE:
            continue
        if {"_vendor", "test", "tests"} & set(inner):
            continue
        with warnings.catch_warnings(action="ignore"):  # of its own old escapes
            nodes = ast.walk(ast.parse(path.read_bytes()))
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        found = [ast.get_docstring(node) for node in nodes if isinstance(node, kinds)]
        documents.append("\n\n".join(text for text in found if text))
    if not documents:
        raise OSError(
            f"No source files of the standard library lie in {str(library)!r}, from "
            "which `english_text` reads docstrings."
        )
    return documents


def _unseen_prose(document, seen):
    """Yields the paragraphs that are prose and new; notes what they hold in `seen`."""
    for paragraph in document.split("\n\n"):
        text = " ".join(paragraph.translate(TO_ASCII).split())
        letters = sum(c.isalpha() or c == " " for c in text)
        if len(text) < 60 or text[-1] not in ".:!?)" or letters < 0.85 * len(text):
            continue
        words = "".join(c for c in text.lower() if c.isalpha() or c == " ").split()
        # Runs of six words, which hardly occur twice by chance.
        runs = {tuple(words[i : i + 6]) for i in range(max(1, len(words) - 5))}
        if len(runs & seen) < 0.2 * len(runs):
            yield text
        seen |= runs
