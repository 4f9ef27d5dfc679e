"""Documents in passages: short pieces of text, each with its heading and source.

A search finds passages rather than documents, because one vector can't describe a long
text, and because the reader wants the place. The documents are the topics of Python's
`help()`, which come with Python, or the files of a folder.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from kit import checks

SUFFIXES = (".txt", ".md", ".rst")
ACCEPTED = {
    "folder": checks.PATH,
    "documents": checks.instance(Mapping, what="a mapping of texts by name"),
    "max_words": checks.SIZE,
    "text": checks.TEXT,
}
PARAGRAPH = re.compile(r"\n\s*\n")
# The end of a sentence or paragraph, or the line before an item of a list or a table's
# row.
SENTENCE = re.compile(
    r"(?<=[.!?:])\s+(?=[\"'*(\w<>])|\n\s*\n|\n(?=\s*\+[-=])|\n(?=\s*[*-] )"
)


class Passage(NamedTuple):
    """A piece of a document.

    Attributes:
        heading: The document's title, the section's, and the name that it defines.
        text: The text, with its line breaks.
        sources: Names of all documents that contain it, the shortest document first.
    """

    heading: str
    text: str
    sources: tuple[str, ...]

    @property
    def words(self) -> str:
        """Heading and text in one line, without the borders of tables: to search in."""
        text = re.sub(r"[-=+|]{3,}|\|", " ", f"{self.heading}. {self.text}")
        return " ".join(text.split())


def python_topics() -> dict[str, str]:
    """Returns the topics of Python's help: what `help("for")` and the like show.

    They depend on Python's version.

    Returns:
        Texts by topic, in alphabetical order.

    Raises:
        OSError: If this Python comes without topics.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise OSError(
            "This Python comes without the module pydoc_data.topics, which holds the "
            "topics of its help. Python from python.org or conda has it."
        ) from error
    return {name: topics[name] for name in sorted(topics)}


def read_folder(folder: str | Path) -> dict[str, str]:
    """Returns the texts of a folder's .txt, .md and .rst files.

    Args:
        folder: Folder, which is searched with all folders in it.

    Returns:
        Texts by path relative to the folder.

    Raises:
        TypeError: If `folder` isn't a path.
        ValueError: If it isn't a folder, holds no text, or a file isn't UTF-8 text.
    """
    checks.check("read_folder", locals(), ACCEPTED)
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"`folder` must be a folder, received {str(folder)!r}.")
    texts = {}
    for file in sorted(root.rglob("*")):
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            continue
        try:
            texts[file.relative_to(root).as_posix()] = file.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"`folder`: {str(file)!r} can't be read as UTF-8 text: {error}"
            ) from error
    if not any(text.strip() for text in texts.values()):
        raise ValueError(
            f"`folder` must hold files in {', '.join(SUFFIXES)} with text, received "
            f"{str(folder)!r}, which holds none."
        )
    return texts


def split_passages(documents: Mapping[str, str], max_words: int = 40) -> list[Passage]:
    r"""Splits documents into passages that don't cross a heading.

    A passage has as many whole paragraphs as fit into `max_words`. Longer paragraphs
    are split into sentences, and a sentence is never split. A passage that several
    documents contain is returned once.

    Args:
        documents: Texts by name. Headings are underlined, or begin with `#`.
        max_words: Words per passage, at most. Defaults to 40.

    Returns:
        The passages, those of the shortest document first.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `max_words` is less than 1.

    Example:

    ```python
    notes = {"cake.md": "# Cake\n\nMix flour and eggs.\n\n## Oven\n\nBake it."}
    [p.heading for p in split_passages(notes)]  # ["Cake", "Cake: Oven"]
    ```
    """
    checks.check("split_passages", locals(), ACCEPTED)
    found: dict[str, Passage] = {}
    for name in sorted(documents, key=lambda name: (len(documents[name]), name)):
        for heading, section in _sections(name, documents[name]):
            for text in _pack(section, max_words):
                key = " ".join(text.split())
                if not re.search(r"\w", key):
                    continue
                passage = found.setdefault(key, Passage(heading, text, ()))
                if name not in passage.sources:
                    sources = (*passage.sources, name)
                    found[key] = passage._replace(sources=sources)
    return list(found.values())


def sentences(text: str) -> list[tuple[int, int]]:
    """Returns the begin and end of each sentence of a text.

    A paragraph's end, an item of a list and a row of a table also end a sentence.

    Args:
        text: The text.

    Returns:
        Pairs of indices, without the white space between sentences.
    """
    checks.check("sentences", locals(), ACCEPTED)
    return _pieces(text, SENTENCE)


def _pieces(text, border):
    borders = [(m.start(), m.end()) for m in border.finditer(text)]
    begins = [0, *(end for _, end in borders)]
    ends = [*(begin for begin, _ in borders), len(text)]
    return [(a, b) for a, b in zip(begins, ends, strict=True) if text[a:b].strip()]


def _pack(text, max_words):
    """Returns the passages of a section."""
    units = []
    for begin, end in _pieces(text, PARAGRAPH):
        if len(text[begin:end].split()) <= max_words:
            units.append((begin, end))
        else:
            inner = _pieces(text[begin:end], SENTENCE)
            units += [(begin + a, begin + b) for a, b in inner]
    packed: list[tuple[int, int]] = []
    for begin, end in units:
        if packed and len(text[packed[-1][0] : end].split()) <= max_words:
            packed[-1] = packed[-1][0], end
        else:
            packed.append((begin, end))
    return [textwrap.dedent(text[begin:end]).strip("\n") for begin, end in packed]


def _sections(name: str, text: str) -> Iterator[tuple[str, str]]:
    """Yields pairs of a heading and the text below it.

    A section ends at the next heading or definition. A definition is a block without
    punctuation at its end, above a block that is indented further: `str.lower()`.
    """
    title, section = "", ""
    definitions: list[tuple[int, str]] = []  # open ones, with their indentation
    blocks: list[str] = []

    def finish():
        parts = [title or name, section, *(what for _, what in definitions[-1:])]
        found = ": ".join(part for part in parts if part), "\n\n".join(blocks)
        blocks.clear()
        return found

    read = _blocks(text)
    for i, block in enumerate(read):
        indent = _indent(block)
        below = _indent(read[i + 1]) if i + 1 < len(read) else 0
        is_heading = block.startswith("#")
        is_definition = below > indent and block.rstrip()[-1] not in ".:,;!?"
        leaves = bool(definitions) and indent <= definitions[-1][0]
        if blocks and (is_heading or is_definition or leaves):
            yield finish()
        while definitions and (is_heading or indent <= definitions[-1][0]):
            definitions.pop()
        if is_heading:
            what = block.strip("# ")
            title, section = (title, what) if title else (what, "")
            continue
        if is_definition:
            what = textwrap.shorten(block, 60, placeholder=" ...")
            definitions.append((indent, what))
        blocks.append(block)
    if blocks:
        yield finish()


def _blocks(text):
    """Returns what lies between empty lines; a heading is `# Heading`, by itself."""
    # In Markdown's code blocks, `#` begins a comment.
    text = re.sub(r"(?ms)^```.*?^```", lambda code: textwrap.indent(code[0], " "), text)
    text = re.sub(r"(?m)^(\S.*)\n([=*~^\"'#+.-])\2{2,}$", r"# \1", text)  # underlined
    text = re.sub(r"(?m)^(#{1,6} .*)$", r"\n\1\n", text)
    return [block.strip("\n") for block in PARAGRAPH.split(text) if block.strip()]


def _indent(block):
    line = block.split("\n")[0]
    return len(line) - len(line.lstrip())
