"""Labelled texts to classify, split by document, that need no download.

The texts are descriptions of functions from SciPy's docstrings, labelled with the
subpackage; or the messages of 20 newsgroups, which need a download.
"""

import ast
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kit import checks

SETS = ("scipy", "20newsgroups")
ACCEPTED = {
    "name": checks.one_of(*SETS),
    "max_texts": checks.SIZE | None,
    "docstring": checks.TEXT,
}
# Subpackages with enough functions in enough files.
SUBPACKAGES = (
    "integrate",
    "interpolate",
    "io",
    "linalg",
    "optimize",
    "signal",
    "sparse",
    "spatial",
    "special",
    "stats",
)


class Texts(NamedTuple):
    """Labelled texts.

    Attributes:
        texts: N texts.
        names: Display name of each text.
        y: Classes, int32 of shape `(N,)`.
        documents: Numbers of the documents that the texts are from, `(N,)`.
        classes: Names of the classes.
    """

    texts: list[str]
    names: list[str]
    y: np.ndarray
    documents: np.ndarray
    classes: tuple[str, ...]

    def take(self, places: np.ndarray) -> "Texts":
        """Returns the texts at these indices."""
        return self._replace(
            texts=[self.texts[i] for i in places],
            names=[self.names[i] for i in places],
            y=self.y[places],
            documents=self.documents[places],
        )


def load(name: str = "scipy", max_texts: int | None = None) -> tuple[Texts, Texts]:
    """Returns training and test texts, always the same.

    `"scipy"`, and any score on it, depends slightly on SciPy's version. A third of its
    files is the test set. Texts that repeat an earlier one, exactly or nearly, are left
    out: documentation repeats itself, and test texts that are also in the training set
    would measure memorization.

    Args:
        name: `"scipy"`, or `"20newsgroups"`, which scikit-learn downloads, without
            headers, footers and quotes, which would reveal the group.
        max_texts: Largest number of texts in each of the two sets, always the same
            ones. Defaults to `None`: all.

    Returns:
        Two `Texts`, in random order.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If there is no set of this name.
        OSError: If scikit-learn can't download it.
        ImportError: If SciPy or scikit-learn isn't installed.
    """
    checks.check("load", locals(), ACCEPTED)
    if name == "scipy":
        from sklearn.model_selection import StratifiedGroupKFold

        data = _scipy()
        folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
        split = next(folds.split(data.y, data.y, data.documents))
        train, test = (data.take(places) for places in split)
    else:
        train, test = _newsgroups("train"), _newsgroups("test")
    rng = np.random.default_rng(0)
    first, second = (
        data.take(rng.permutation(len(data.y))[:max_texts]) for data in (train, test)
    )
    return first, second


def _scipy():
    """Returns descriptions of classes and functions; reads files, imports nothing."""
    spec = importlib.util.find_spec("scipy")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The set of texts 'scipy' is SciPy's documentation, which isn't installed: "
            "`python -m pip install scipy`, or kit's extra `recipes`."
        )
    root = Path(spec.origin).parent
    rows: list[tuple] = []
    seen: set[tuple[str, ...]] = set()
    for document, file in enumerate(sorted(root.rglob("*.py"))):
        package, *inner = file.relative_to(root).parts
        if package not in SUBPACKAGES or {"tests", "_lib", "externals"} & set(inner):
            continue
        for node in ast.walk(ast.parse(file.read_bytes())):
            if not isinstance(node, ast.ClassDef | ast.FunctionDef):
                continue
            text = description(ast.get_docstring(node) or "")
            if node.name.startswith("_") or len(text) < 60:
                continue
            words = re.findall("[a-z]+", text.lower())
            # Runs of six words, which rarely occur twice by chance.
            runs = {tuple(words[i : i + 6]) for i in range(max(1, len(words) - 5))}
            if len(runs & seen) < 0.2 * len(runs):
                label = SUBPACKAGES.index(package)
                rows.append((text, f"{package}.{node.name}", label, document))
            seen |= runs
    texts, names, y, documents = zip(*rows, strict=True)
    return Texts(
        list(texts), list(names), np.array(y, "int32"), np.array(documents), SUBPACKAGES
    )


def description(docstring: str) -> str:
    """Returns a docstring's prose up to its first heading, without markup."""
    checks.check("description", locals(), ACCEPTED)
    text = re.split(r"\n[^\n]+\n *[-=]{3,}", "\n" + docstring)[0]
    text = re.sub(r"%\(\w+\)s|\.\. [^\n]*|:\w+:|`", "", text)
    return " ".join(text.split())


def _newsgroups(part):
    from sklearn.datasets import fetch_20newsgroups

    try:
        found = fetch_20newsgroups(
            subset=part, remove=("headers", "footers", "quotes"), shuffle=False
        )
    except Exception as error:  # the type depends on the cause
        raise OSError(
            f"The set '20newsgroups' could not be downloaded ({error}). The set "
            "'scipy' needs no download."
        ) from error
    data = Texts(
        [" ".join(text.split()) for text in found.data],
        [Path(file).name for file in found.filenames],
        found.target.astype("int32"),
        np.arange(len(found.data)),
        tuple(found.target_names),
    )
    return data.take(np.flatnonzero([len(text) >= 60 for text in data.texts]))
