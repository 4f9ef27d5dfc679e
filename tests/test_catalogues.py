"""Pairs of sentences: message catalogues, files, placeholders, splits, subwords."""

import builtins
import sys

import numpy as np
import pytest

from kit import seq2seq
from kit.data import catalogues
from kit.data.catalogues import mask, near_duplicates, read_pairs, restore, split
from kit.data.subwords import Subwords

pytestmark = pytest.mark.once

GERMAN = r"""
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\n"

msgid "Close _without saving"
msgstr "Schlie_ßen ohne zu speichern"

#. Default: "The \"title\" of\nthe page"
msgid "label_title"
msgstr "Der \"Titel\" der Seite"

msgid "label_unknown"
msgstr "Unbekannt"

#, fuzzy
msgid "A guess"
msgstr "Geraten"

#~ msgid "Gone"
#~ msgstr "Weg"

msgid "Not yet"
msgstr ""

msgid "Name"
msgstr "Name"

msgid "%(n_files)d file"
msgid_plural "%(n_files)d files"
msgstr[0] "%(n_files)d Datei"
msgstr[1] "%(n_files)d Dateien"
"""
FRENCH = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8"

msgid "label_title"
msgstr "Le titre"

msgid "Only in French"
msgstr "Seulement"
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with a German .po, a French .mo, and an older German .mo."""
    polib = pytest.importorskip("polib")
    files = []
    for language, text in (("de", GERMAN), ("fr_FR", FRENCH)):
        folder = tmp_path / "fake" / "locale" / language / "LC_MESSAGES"
        folder.mkdir(parents=True)
        (folder / "fake.po").write_text(text, "utf-8")
        polib.pofile(str(folder / "fake.po")).save_as_mofile(str(folder / "fake.mo"))
        files += [folder / "fake.mo", folder / "fake.po"]
    files.remove(folder / "fake.po")  # French has its .mo only
    info = tmp_path / "fake_catalogues-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake-catalogues\n")
    lines = [f"{file.relative_to(tmp_path).as_posix()},,\n" for file in files]
    (info / "RECORD").write_text("".join(lines))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return "fake-catalogues"


# Catalogues


def test_catalogues_become_pairs(package):
    assert catalogues.catalogue_pairs("en", "de", [package]) == [
        ("Close without saving", "Schließen ohne zu speichern"),
        ('The "title" of the page', 'Der "Titel" der Seite'),
        ("%(n_files)d file", "%(n_files)d Datei"),
        ("%(n_files)d files", "%(n_files)d Dateien"),
    ]


def test_any_two_languages_meet_in_their_messages(package):
    pairs = catalogues.catalogue_pairs("fr-FR", "de", [package])
    assert pairs == [("Le titre", 'Der "Titel" der Seite')]
    back = catalogues.catalogue_pairs("de", "en", [package])
    assert ("Schließen ohne zu speichern", "Close without saving") in back


def test_a_language_or_package_that_is_missing_is_named(package):
    with pytest.raises(ValueError, match="`target` .*'xx'.* have en, de, fr_fr"):
        catalogues.catalogue_pairs("en", "xx", [package])
    with pytest.raises(ValueError, match="`source` must .*'xx'"):
        catalogues.catalogue_pairs("xx", "de", [package])
    with pytest.raises(ValueError, match="another language than `source`"):
        catalogues.catalogue_pairs("de", "DE", [package])
    with pytest.raises(ImportError, match="pip install no-such-package"):
        catalogues.catalogue_pairs("en", "de", ["no-such-package"])


def test_a_missing_polib_is_named(package, monkeypatch):
    own = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "polib":
            raise ModuleNotFoundError(name)
        return own(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match="pip install polib"):
        catalogues.catalogue_pairs("en", "de", [package])


def test_packages_of_the_extra_have_thousands_of_sentences():
    pytest.importorskip("gramps")
    pytest.importorskip("polib")
    pairs = catalogues.catalogue_pairs("en", "de", ["gramps"])
    assert len(pairs) > 5_000
    assert dict(pairs)["Edit the selected media object"].startswith("Ausgewähltes")


# Files


def test_a_file_becomes_pairs(tmp_path):
    path = tmp_path / "pairs.tsv"
    path.write_text(
        "\ufeffone\teins\n\n  two  words\tzwei Wörter \none\tein\n", "utf-8"
    )
    expected = [("one", "eins"), ("two words", "zwei Wörter"), ("one", "ein")]
    assert read_pairs(path) == expected


@pytest.mark.parametrize(
    "content, message",
    [
        ("a\tb\nno tab\n\na\tb\tc\nd\t \n", r"aren't: 2, 4, 5\. Line 2 is 'no tab'"),
        ("x\n" * 12, "aren't: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"),
        ("\n \n", "has no pairs"),
        (b"\xff\xfe", "can't be read as UTF-8"),
    ],
)
def test_bad_lines_are_named(tmp_path, content, message):
    path = tmp_path / "pairs.tsv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=message):
        read_pairs(path)
    with pytest.raises(ValueError, match="nowhere.tsv.* can't be read"):
        read_pairs(tmp_path / "nowhere.tsv")


# Placeholders


@pytest.mark.parametrize(
    "text, masked, placeholders",
    [
        ("Hi %(name)s, %d new", "Hi <0>, <1> new", ["%(name)s", "%d"]),
        ("<b>{a}</b> of ${b}", "<0><1><2> of <3>", ["<b>", "{a}", "</b>", "${b}"]),
        ("{{ x }} and {{ x }}", "<0> and <0>", ["{{ x }}"]),
        ("A&nbsp;B, 5% done & 3 < 4", "A<0>B, 5% done & 3 < 4", ["&nbsp;"]),
        ("50% sold", "50% sold", []),  # no %s
    ],
)
def test_placeholders_become_tokens(text, masked, placeholders):
    assert mask(text) == (masked, placeholders)
    assert restore(masked, placeholders) == text


def test_a_target_has_its_sources_tokens():
    _, placeholders = mask("From %(a)s to %(b)s")
    text, same = mask("Von %(b)s, %(c)s, %(a)s", placeholders)
    assert (text, same) == ("Von <1>, %(c)s, <0>", placeholders)
    assert restore("<1> <0> <7>", placeholders) == "%(b)s %(a)s "
    assert catalogues.same_placeholders("%s of %d", "%d von %s")
    assert not catalogues.same_placeholders("%s of %d", "%s von %s")
    many = " ".join("{" + c + "}" for c in "abcdefghijkl")
    assert mask(many)[0].endswith("<9> {k} {l}")


# Splitting


def test_near_duplicates_have_the_same_group():
    texts = [
        "Add a new person to the list",  # 7 words
        "ADD A NEW PLACE TO THAT LIST %d",  # 5 of 9 words shared: too few
        "Add a new place to the list!",  # 6 of 8 with each: joins the two
        "Open the list",
        "%d",
        "%d",
    ]
    groups = near_duplicates(texts, 0.6)
    assert groups.shape == (6,)
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups.tolist())) == 3 and groups[4] == groups[5]
    assert len(set(near_duplicates(texts[:3], 0.76).tolist())) == 3
    # 6 of 8 is 0.75, which counts.
    assert len(set(near_duplicates(texts[::2][:2], 0.75).tolist())) == 1
    assert len(set(near_duplicates(texts[:2], 0.6).tolist())) == 2


def sentences(count, seed=0):
    """Returns pairs of sentences of random words, which don't resemble each other."""
    rng = np.random.default_rng(seed)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(500)]
    texts = {" ".join(rng.choice(words, 5, replace=False)) for _ in range(count)}
    return [(text, text.upper()) for text in sorted(texts)]


def test_no_near_duplicate_crosses_the_parts():
    pairs = sentences(400)
    pairs += [(f"{source} again", f"{target} 2") for source, target in pairs[:100]]
    pairs += [(s.split()[0], f"{s.split()[0]} alone") for s, _ in pairs[100:200]]
    pairs += [(f"the very same words {i} times", f"x {i}") for i in range(30)]
    parts = split(pairs, share=0.1)
    assert split(pairs, share=0.1) == parts
    assert sorted(sum(parts.values(), [])) == sorted(pairs)
    size = int(0.1 * len(pairs))
    assert 0.9 * size <= len(parts["test"]) <= size
    assert 0.9 * size <= len(parts["valid"]) <= size
    where = {source: name for name, part in parts.items() for source, _ in part}
    assert all(where[s] == where[f"{s} again"] for s, _ in pairs[:100])
    held_out = [s for s, _ in parts["test"] + parts["valid"]]
    assert all(len(s.split()) >= 4 for s in held_out)  # no labels
    assert not any(s.startswith("the very") for s in held_out)  # a large group


def test_pairs_with_the_same_target_stay_together():
    pairs = sentences(200)
    pairs = [(source, f"target {i % 50}") for i, (source, _) in enumerate(pairs)]
    parts = split(pairs, share=0.4)
    targets = [{t for _, t in part} for part in parts.values()]
    assert all(targets) and sum(map(len, targets)) == 50


# Subwords


def test_subwords_are_lossless_and_join_what_is_frequent():
    learned = seq2seq.subwords(["lower and lower", "lowest"] * 9, 280, ["<0>"])
    assert len(learned) <= 280
    assert learned.decode([1, 2, 3]) == seq2seq.START + seq2seq.END + "<0>"
    assert len(learned.encode("lower")) < 5 == len("lower")
    text = "lower <0>: ħ, 日本!"
    tokens = learned.encode(text)
    assert tokens.dtype == np.int32 and 3 in tokens and (tokens > 0).all()
    assert learned.decode(tokens) == text
    assert learned.decode([*tokens, 0, 0]) == text


def test_subwords_take_the_place_of_characters(tmp_path):
    learned = seq2seq.subwords(["lower and lower", "lowest"] * 9, 280)
    texts = [seq2seq.START + "lower" + seq2seq.END, "low"]
    tokens = seq2seq.encode(texts, learned, 9)
    assert tokens.shape == (2, 9)
    assert tokens[0, 0] == seq2seq.START_TOKEN and seq2seq.END_TOKEN in tokens[0]
    assert seq2seq.decode(tokens, learned) == ["lower", "low"]
    with pytest.raises(ValueError, match="'zzzz'.* has 4 subwords, more than the 2"):
        seq2seq.encode(["zzzz"], learned, 2)
    learned.save(tmp_path / "subwords.json")
    again = Subwords.load(tmp_path / "subwords.json")
    np.testing.assert_array_equal(again.encode("lowest"), learned.encode("lowest"))


def test_what_subwords_refuse():
    with pytest.raises(ValueError, match="`size` must be at least 259.*received 258"):
        seq2seq.subwords(["a"], 258)
    with pytest.raises(ValueError, match="`json` must be what"):
        Subwords("{}")
