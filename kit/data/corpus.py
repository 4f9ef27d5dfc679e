"""English text that comes with Python, and a vocabulary of characters.

The text is Python's own documentation, so nothing is downloaded. The recipes of
language models use it.
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

    It has about 1.2 million characters, one paragraph per line: pydoc's topics, and
    docstrings of the standard library, whose files are read, not imported. Other text
    than prose (code, tables, grammars) is left out. So are paragraphs that repeat an
    earlier one, exactly or nearly: manuals repeat themselves, and held-out text that is
    also in the training text would measure memorization. Whole topics and modules are
    held out, always the same ones. The text, and so any score on it, depends slightly
    on Python's version.

    Returns:
        Training, validation and test text; the last two are about a twentieth each.

    Raises:
        OSError: If this Python has no topics, or no source files of the standard
            library.
    """
    documents = [*_topics(), *_docstrings()]
    order = np.random.default_rng(0).permutation(len(documents))
    documents = [documents[i] for i in order]
    seen: set[tuple[str, ...]] = set()
    texts = ["\n".join(_unseen_prose(document, seen)) for document in documents]
    texts = [text + "\n\n" for text in texts if text]

    share = sum(len(text) for text in texts) // 20
    parts: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    left = {"test": share, "valid": share}  # characters still needed
    for text in texts:
        part = next((name for name in left if left[name] > 0), "train")
        # A long document would be most of a held-out part: put it in the training text.
        if len(text) > share // 5:
            part = "train"
        parts[part].append(text)
        if part in left:
            left[part] -= len(text)
    return "".join(parts["train"]), "".join(parts["valid"]), "".join(parts["test"])


def load_text(path: str | Path | None = None) -> tuple[str, str, str]:
    """Returns training, validation and test text.

    Args:
        path: UTF-8 text file, whose last tenth is held out. Defaults to `None`:
            `english_text`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the file can't be read as UTF-8 text.
    """
    checks.check("load_text", locals(), ACCEPTED)
    if path is None:
        return english_text()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"text={str(path)!r} can't be read as UTF-8 text; `path` must be such a "
            f"file: {error}"
        ) from error
    share = len(text) // 20
    return text[: -2 * share], text[-2 * share : -share], text[-share:]


class Characters:
    """A vocabulary of characters, numbered from 1; 0 is any other character.

    Args:
        characters: The characters of the vocabulary, in the order of their numbers.

    Example:

    ```python
    vocabulary = Characters.of("hello", min_count=1)
    tokens = vocabulary.encode("hole?")  # 2, 4, 3, 1, 0
    vocabulary.decode(tokens)  # "hole\ufffd"
    ```
    """

    UNKNOWN = "\ufffd"  # Unicode's replacement character

    def __init__(self, characters: str):
        checks.check(self, locals(), ACCEPTED)
        self.characters = self.UNKNOWN + characters

    @classmethod
    def of(cls, text: str, min_count: int = 5) -> "Characters":
        """Returns the vocabulary of characters that occur `min_count` times in a text.

        Rarer characters are unknown, so that a model is trained on some unknown ones.
        """
        checks.check("Characters.of", locals(), ACCEPTED)
        counts = Counter(text)
        return cls("".join(sorted(c for c in counts if counts[c] >= min_count)))

    @classmethod
    def load(cls, path: str | Path) -> "Characters":
        """Loads a vocabulary that `save` wrote."""
        return cls(json.loads(Path(path).read_text(encoding="utf-8"))["characters"])

    def save(self, path: str | Path) -> None:
        """Writes a JSON file, to be kept beside the model."""
        text = json.dumps({"characters": self.characters[1:]})
        Path(path).write_text(text + "\n", encoding="utf-8")

    def encode(self, text: str) -> np.ndarray:
        """Converts a text to the numbers of its characters, int32."""
        checks.check("Characters.encode", locals(), ACCEPTED)
        number = {c: i for i, c in enumerate(self.characters)}
        return np.fromiter((number.get(c, 0) for c in text), "int32", len(text))

    def decode(self, tokens: Iterable[int]) -> str:
        """Converts numbers to a text."""
        places = checks.array("T", "integers", f"[0, {len(self) - 1}]")
        if isinstance(tokens, Iterable):  # integers, or a backend's scalars
            numbers = [np.asarray(x) for x in tokens]
            if not numbers:
                return ""
            if len({x.shape for x in numbers}) == 1:
                tokens = np.stack(numbers)
        checks.check("Characters.decode", locals(), {"tokens": places})
        return "".join(self.characters[int(i)] for i in tokens)

    def __len__(self) -> int:
        """Size of the vocabulary, including the unknown character."""
        return len(self.characters)


# Packages of the standard library without English documentation.
NO_PROSE = {"encodings", "idlelib", "lib2to3", "pydoc_data", "test", "turtledemo"}
TO_ASCII = str.maketrans("\u2018\u2019\u201c\u201d\u2013\u2014", "''\"\"--")


def _topics():
    """Returns the topics of `help()`, one document each."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise OSError(
            "This Python comes without the module pydoc_data.topics, from which "
            "`english_text` reads. Python from python.org or conda has it."
        ) from error
    return [topics[name] for name in sorted(topics)]


def _docstrings():
    """Returns the standard library's docstrings, one document per module."""
    library = Path(sysconfig.get_path("stdlib"))
    documents = []
    for path in sorted(library.rglob("*.py")):
        package, *inner = path.relative_to(library).parts
        if package.removesuffix(".py") not in sys.stdlib_module_names - NO_PROSE:
            continue
        if {"_vendor", "test", "tests"} & set(inner):
            continue
        with warnings.catch_warnings(action="ignore"):  # invalid escapes in old files
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
    """Yields the paragraphs that are prose and new; adds their words to `seen`."""
    for paragraph in document.split("\n\n"):
        text = " ".join(paragraph.translate(TO_ASCII).split())
        letters = sum(c.isalpha() or c == " " for c in text)
        if len(text) < 60 or text[-1] not in ".:!?)" or letters < 0.85 * len(text):
            continue
        words = "".join(c for c in text.lower() if c.isalpha() or c == " ").split()
        # Runs of six words, which rarely occur twice by chance.
        runs = {tuple(words[i : i + 6]) for i in range(max(1, len(words) - 5))}
        if len(runs & seen) < 0.2 * len(runs):
            yield text
        seen |= runs
