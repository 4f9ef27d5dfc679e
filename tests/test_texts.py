"""Labelled texts: where they are from, and what was left out."""

import numpy as np
import pytest

from kit.data import texts

pytestmark = pytest.mark.once


@pytest.fixture(scope="module")
def parts():
    return texts.load("scipy")


def test_no_file_and_no_text_is_in_both_parts(parts):
    train, test = parts
    assert not set(train.documents) & set(test.documents)
    assert not set(train.texts) & set(test.texts)
    assert len(train.y) > 500 and len(test.y) > 250
    for part in parts:
        assert np.bincount(part.y, minlength=10).min() >= 10
        assert min(len(text) for text in part.texts) >= 60
        for name, k in zip(part.names, part.y, strict=True):
            assert name.startswith(f"{part.classes[k]}.")
            assert "._" not in name


def test_some_texts_are_taken(parts):
    some = parts[0].take(np.array([4, 2]))
    assert some.texts == [parts[0].texts[4], parts[0].texts[2]]
    assert some.names == [parts[0].names[4], parts[0].names[2]]
    assert some.y.tolist() == parts[0].y[[4, 2]].tolist()
    assert some.documents.tolist() == parts[0].documents[[4, 2]].tolist()


def test_nearly_the_same_text_is_left_out(parts):
    train, test = parts
    runs = []
    for part in (train, test):
        words = [text.lower().split() for text in part.texts]
        runs.append([{tuple(w[i : i + 12]) for i in range(len(w) - 11)} for w in words])
    seen = set().union(*runs[0])
    copies = [len(r & seen) > 0.5 * len(r) for r in runs[1] if r]
    assert not any(copies)


def test_descriptions_are_prose_only():
    text = """Finds a `root` of a function.

    .. versionadded:: 1.2

    See :func:`brentq`
    for more.

    Parameters
    ----------
    x : float
    """
    expected = "Finds a root of a function. See brentq for more."
    assert texts.description(text) == expected


def test_a_set_that_is_not_known():
    with pytest.raises(ValueError, match="'scipy', '20newsgroups', received 'imdb'"):
        texts.load("imdb")


def test_a_set_that_cannot_be_downloaded(monkeypatch):
    def refuse(**_):
        raise OSError("no route to host")

    monkeypatch.setattr("sklearn.datasets.fetch_20newsgroups", refuse)
    with pytest.raises(OSError, match=r"'20newsgroups' could not.*'scipy' needs no"):
        texts.load("20newsgroups")


def test_messages_of_newsgroups(monkeypatch):
    from types import SimpleNamespace

    def fetch(subset, **_):
        size = 3 if subset == "train" else 2
        return SimpleNamespace(
            data=[f"{subset} " * 20, "short", f"other\n{subset} " * 20][:size],
            filenames=[f"/news/{i}" for i in range(size)],
            target=np.arange(size),
            target_names=["a", "b", "c"],
        )

    monkeypatch.setattr("sklearn.datasets.fetch_20newsgroups", fetch)
    train, test = texts.load("20newsgroups", max_texts=2)
    assert sorted(train.y) == [0, 2] and train.y.dtype == "int32"
    assert sorted(train.names) == ["0", "2"] and train.classes == ("a", "b", "c")
    assert "\n" not in "".join(train.texts)
    assert test.texts == [("test " * 20).strip()]
