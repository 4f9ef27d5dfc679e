"""recipes/summarise.py: docstrings, other summaries, scores, and the whole recipe."""

import json
import textwrap

import keras
import numpy as np
import pytest
from interruptions import check_resumed_run
from tiny_bert import write_tiny_bert

from kit import pointer
from kit.data import docstrings as data
from kit.data.docstrings import Document

pytest.importorskip("rouge_score")

pytestmark = pytest.mark.once  # the network's tests are in test_pointer.py

TINY = {
    "vocabulary_size": 300,
    "source_length": 16,
    "target_length": 8,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 4,
    "epochs": 1,
    "batch_size": 8,
    "beam_width": 2,
    "test_documents": 3,
    "verbose": 0,
}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("summarise")


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bert")
    write_tiny_bert(folder)
    return folder


def write_pairs(path, number=60):
    rng = np.random.default_rng(0)
    words = [
        "matrix",
        "sparse",
        "signal",
        "function",
        "random",
        "root",
        "of",
        "the",
        "a",
    ]
    lines = []
    for i in range(number):
        text = " ".join(rng.choice(words, 12))
        lines.append(
            f"The {text}. Number {i} is another one.\tReturns the {text[:20]}."
        )
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.tsv")


# --- Docstrings -------------------------------------------------------------------

NUMPY_STYLE = """Return the middle value.

The middle is found by sorting. It takes a copy.

Parameters
----------
x : array_like
    Values to sort.

See Also
--------
mean : Another one that is left out.

Examples
--------
>>> middle([1, 2, 3])
2
"""
GOOGLE_STYLE = """Opens the file for reading.

Nothing is locked. See below.

Args:
    path: Where it is.

Example:
    An example that is left out.

Returns:
    The open file::

        code that is left out

    It must be closed."""


def test_numpy_docstrings_by_hand():
    head, rest = data.split_docstring(NUMPY_STYLE)
    assert head == "Return the middle value."
    assert " ".join(rest.split()) == (
        "The middle is found by sorting. It takes a copy. x : array_like Values to "
        "sort."
    )
    assert data._first_sentences(rest, 80) == (
        "The middle is found by sorting.",
        "It takes a copy.",
        "x : array_like Values to sort.",
    )
    # Nothing is cut inside of a sentence: 6 + 4 words, and 6 more that don't fit.
    assert data._first_sentences(rest, 15) == ()  # 10 words are too few
    assert len(data._first_sentences(rest, 16)) == 3


def test_google_docstrings_by_hand():
    head, rest = data.split_docstring(GOOGLE_STYLE)
    assert head == "Opens the file for reading."
    assert "left out" not in rest
    for kept in ("Nothing is locked.", "Where it is.", "It must be closed."):
        assert kept in rest


@pytest.mark.parametrize(
    "head",
    [
        "No full stop",
        "Two. Sentences.",
        "Too short.",
        f"Too {'long ' * 20}.",
        "x = f(a, b)[0] + 17 * y[2:3].",
        "Größe des Bildes.",
    ],
)
def test_other_heads_are_no_summaries(head):
    assert data.split_docstring(f"{head}\n\nMore text. And more.") == ("", "")


def write_package(folder, files):
    for name, docstrings in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        code = [
            f"def f{i}():\n    '''{textwrap.indent(x, '    ').lstrip()}'''\n    1 / 0\n"
            for i, x in enumerate(docstrings)
        ]
        path.write_text("raise SystemExit('imported')\n" + "\n".join(code))


BODY = (
    "\n\nIt counts from the first {0} up to the last {0} of a row. "
    "Rows without any {0} are left where they are, and the {0} stays in its place."
)


def test_packages_are_read_without_import(tmp_path, monkeypatch):
    write_package(
        tmp_path / "some_package",
        {
            "__init__.py": ["Count all apples in a row." + BODY.format("apple")],
            "inner/pears.py": [
                "Count all pears in a row." + BODY.format("pear"),
                "Count all PEARS in a row." + "\n\nAnother text. " * 9,
                "Number the nuts now." + BODY.format("apple"),  # a copy of the body
            ],
            "tests/more.py": ["Tests are left out here." + BODY.format("test")],
        },
    )
    (tmp_path / "some_package" / "template.py").write_text("def {{name}}:")
    monkeypatch.syspath_prepend(tmp_path)
    found = data.docstrings(["some_package", "not_installed_package"])
    summaries = {x.summary.lower(): x.source for x in found}
    # Of two bodies that differ in one word only, one stays.
    assert len(summaries) == len(found)
    assert set(summaries) <= {
        "count all apples in a row.",
        "count all pears in a row.",
        "number the nuts now.",
    }
    assert set(summaries.values()) <= {"some_package", "some_package.inner.pears"}
    assert found == data.docstrings(["some_package"])
    with pytest.raises(ValueError, match=r"received \('not_installed_package',\)"):
        data.docstrings(["not_installed_package"])


def document(source, text, summary="Return some value."):
    return Document(source, tuple(text.split(". ")), summary)


def test_near_copies_are_left_out():
    words = [f"w{i}" for i in range(40)]
    whole = document("a", " ".join(words), "Return the first.")
    # 35 runs of six words; those of the last 25 words are 20 of them: 57 %.
    half = document(
        "b", " ".join([f"x{i}" for i in range(15)] + words[15:]), "Return the second."
    )
    # The last 14 words have nine runs of 35, or 26 %.
    little = document(
        "c", " ".join([f"y{i}" for i in range(26)] + words[26:]), "Return the third."
    )
    same = document("d", "a text like no other", "Return the THIRD")
    kept = list(data._without_copies([whole, half, little, same]))
    assert kept == [whole, little]


def test_parts_have_no_module_in_common():
    documents = [document(f"numpy.m{i // 2}", f"t {i}") for i in range(400)]
    documents += [document("skimage.m1", "u"), document("skimagery", "v")]
    parts = data.split_by_module(documents)
    modules = {name: {x.source for x in part} for name, part in parts.items()}
    assert modules.pop("unseen") == {"skimage.m1"}
    assert sum(map(len, parts.values())) == len(documents)
    for name, part in modules.items():
        others = set().union(*(x for k, x in modules.items() if k != name))
        assert not part & others
    assert 280 <= len(parts["train"]) <= 360
    assert 20 <= len(parts["valid"]) <= 64 and 20 <= len(parts["test"]) <= 64
    fewer = data.split_by_module(documents[100:])
    assert all(set(fewer[name]) <= set(parts[name]) for name in parts)


def test_the_standard_library_has_documents(monkeypatch):
    files = data._files
    wanted = {"argparse", "bisect", "statistics"}
    monkeypatch.setattr(
        data, "_files", lambda x: (f for f in files(x) if f[1] in wanted)
    )
    found = data.docstrings(["stdlib"], max_words=50)
    assert {x.source for x in found} <= wanted
    assert len(found) > 5
    for x in found:
        assert len(x.sentences) >= 2 and 15 <= len(x.text.split()) <= 50
        assert 3 <= len(x.summary.split()) <= 20 and x.summary[-1] == "."
        assert ">>>" not in x.text


# --- Summaries without training ---------------------------------------------------


def test_textrank_by_hand(recipe):
    # B shares words with both others, which share none: every walk goes through it.
    sentences = ["apples pears", "pears nuts", "nuts plums", "nothing"]
    ranked = recipe.textrank(["apples pears", "nuts pears", "nuts plums"])
    assert ranked[0] == 1
    assert ranked[1:].tolist() == [0, 2]  # equal: in the text's order
    assert recipe.textrank(sentences)[-1] in (0, 2, 3)
    assert recipe.textrank(["!", "?"]).tolist() == [0, 1]
    assert recipe.textrank(["one"]).tolist() == [0]


def test_textrank_is_pagerank(recipe):
    networkx = pytest.importorskip("networkx")
    from sklearn.feature_extraction.text import TfidfVectorizer

    sentences = ["a b c d", "b c e", "c d f a", "e f g", "a g h", "h i b"]
    vectors = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True)
    vectors = vectors.fit_transform(sentences).toarray()
    graph = networkx.from_numpy_array(vectors @ vectors.T - np.eye(6))
    ranks = networkx.pagerank(graph, alpha=0.85)
    expected = sorted(ranks, key=lambda i: -ranks[i])
    assert recipe.textrank(sentences, iterations=200).tolist() == expected


def test_central_by_hand(recipe):
    vectors = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]])
    # The sum is (0.6, 1.8): products 0.6, 1.8, 1.8 and -0.6.
    assert recipe.central(vectors).tolist() == [1, 2, 0, 3]


def test_nearest_and_beginning_by_hand(recipe):
    train = [
        document("a", "apples and pears on a tree", "Count the apples."),
        document("b", "a matrix of sparse values", "Invert the matrix."),
    ]
    found = recipe.nearest([document("c", "the sparse matrix")], train)
    assert found == ["Invert the matrix."]
    # The summary is the first six words: more or fewer are worse.
    text = "one two three four five six seven eight nine ten eleven twelve"
    assert recipe.best_cut([document("a", text, "one two three four five six")]) == 6


# --- Scores -----------------------------------------------------------------------


def test_rouge_by_hand(recipe):
    found = recipe.rouge(["the cat sat down", "a b"], ["the cats down", "c d"])
    # Stems: the, cat, down of 3 and 4 words; one pair of 2 and 3; "the cat down".
    np.testing.assert_allclose(found["rouge1"], [6 / 7, 0.0])
    np.testing.assert_allclose(found["rouge2"], [2 / 5, 0.0])
    np.testing.assert_allclose(found["rougeL"], [6 / 7, 0.0])


def test_comparison_by_hand(recipe):
    documents = [
        Document("a", ("one two", "three four"), "one two"),
        Document("b", ("five six", "six seven"), "six seven"),
    ]
    own = ["one two", "x"]  # a letter of "six", but no word of the document
    others = {"lead": ["one two", "five six"]}
    metrics, baselines = recipe.compare(documents, own, others, "test", 0)
    assert metrics["test_rouge_l"] == 0.5
    assert metrics["test_rouge1"] == 0.5 and metrics["test_rouge2"] == 0.5
    assert baselines["lead_test_rouge_l"] == pytest.approx((1.0 + 0.5) / 2)
    assert metrics["test_gain_over_lead"] == pytest.approx(-0.25)
    assert metrics["test_gain_over_lead_low"] == pytest.approx(-0.5)
    assert metrics["test_gain_over_lead_high"] == pytest.approx(0.0)
    assert baselines["best_sentence_test_rouge_l"] == 1.0
    assert metrics["test_words_in_document"] == 0.5


# --- The whole recipe -------------------------------------------------------------


def test_arrays_by_hand(recipe):
    class Letters:
        def encode(self, text):
            return np.array([3 + ord(x) - ord("a") for x in text.strip()], "int32")

    x, y = recipe.arrays([Document("a", ("ABCDE",), "abc")], Letters(), 4, 3)
    assert x["source"].tolist() == [[3, 4, 5, 6]]
    # Start, the first two tokens, and the end: the longest summary that fits.
    assert x["target"].tolist() == [[1, 3, 4]]
    assert y.tolist() == [[3, 4, 2]]
    assert recipe.lower("ABC\n d") == " abc d"


def test_a_summary_may_be_empty(recipe, monkeypatch):
    class Pieces:
        def encode(self, text):
            return np.array([5, 6], "int32")

        def decode(self, tokens):
            assert len(tokens)
            return " ".join(map(str, tokens))

    def summarize(model, source, *others):
        assert source.shape == (32, 4)
        rows = np.zeros((32, 3), "int32")
        rows[1] = [8, 9, 2]  # the end isn't a word
        rows[0, 0] = 2
        return rows

    monkeypatch.setattr(pointer, "summarize", summarize)
    documents = [document("a", "one two"), document("b", "three")]
    assert recipe.write(None, documents, Pieces(), (4, 3), (1, 0.0)) == ["", "8 9"]


def test_words_have_the_mean_share_of_their_subwords(recipe, monkeypatch):
    class Pieces:
        def encode(self, text):
            assert text == " the matrix"
            return np.array([5, 6, 7], "int32")

        def decode(self, tokens):
            return {5: " the", 6: " mat", 7: "rix"}[tokens[0]]

    def shares(model, source, target):
        assert target.tolist() == [[1, 5, 6, 7]]
        return np.array([[0.1, 0.9, 0.5]], "float32")

    monkeypatch.setattr(pointer, "copy_shares", shares)
    found = recipe.word_shares(None, Pieces(), None, "The Matrix")
    assert [word for word, _ in found] == ["the", "matrix"]
    assert [share for _, share in found] == pytest.approx([0.1, 0.7])


def test_recipe_leaves_what_it_promises(recipe, pairs, bert, tmp_path):
    record = recipe.main(output_dir=tmp_path, pairs=pairs, path=bert, **TINY)
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.keras",
        "subwords.json",
        "history.csv",
        "metrics.json",
        "learning_curve.png",
        "summaries.png",
        "summaries.txt",
    }
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    metrics, baselines = record["metrics"], record["baselines"]
    methods = ("lead", "beginning", "textrank", "nearest", "bert")
    for method in methods:
        gain = metrics["test_rouge_l"] - baselines[f"{method}_test_rouge_l"]
        assert metrics[f"test_gain_over_{method}"] == pytest.approx(gain)
    assert metrics["test_documents"] == 3
    assert not any("unseen" in name for name in metrics)  # one file, one kind
    # The saved model and vocabulary write the summaries of the run again.
    model = keras.saving.load_model(tmp_path / "model.keras")
    subwords = recipe.Subwords.load(tmp_path / "subwords.json")
    documents = recipe.load_data(pairs, (), 50)["test"][:3]
    written = recipe.write(model, documents, subwords, (16, 8), (2, 0.6))
    text = (tmp_path / "summaries.txt").read_text()
    for line in written:
        assert f"pointer-generator: {line}" in text


def test_pairs_have_no_document_in_two_parts(recipe, pairs):
    parts = recipe.load_data(pairs, (), 8)
    texts = [x.text for part in parts.values() for x in part]
    assert len(texts) == len(set(texts)) and min(map(len, list(parts.values())[:3])) > 1
    assert all(len(x.split()) <= 8 for x in texts)


def test_a_text_file_is_summarized(recipe, bert, tmp_path, capsys):
    file = tmp_path / "text.txt"
    file.write_text("A heading\n\nThe matrix. A root. Random signal!\n\nThe root.")
    found = recipe.main(text=file, sentences=2, path=bert)["sentences"]
    everything = ["The matrix.", "A root.", "Random signal!", "The root."]
    places = [everything.index(x) for x in found]
    assert len(places) == 2 and places == sorted(places)
    assert capsys.readouterr().out == "\n".join(found) + "\n"
    vectors = recipe.make_embed(bert)(everything)
    assert set(places) == set(recipe.central(vectors)[:2].tolist())
    file.write_text("")
    with pytest.raises(ValueError, match="must hold sentences"):
        recipe.main(text=file, path=bert)
    with pytest.raises(ValueError, match="none.txt' can't be read as UTF-8"):
        recipe.main(text=tmp_path / "none.txt", path=bert)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, r"`epochs` must be .*\[1, .*received 0"),
        (
            {"vocabulary_size": 100},
            r"`vocabulary_size` must be .*\[260, .*received 100",
        ),
        ({"num_heads": 3}, "hidden_dim=4 must be a multiple of num_heads=3"),
        ({"batch_size": 100}, "batch_size=100 must be at most the number of training"),
        ({"beam_width": 301}, "beam_width=301 must be at most vocabulary_size=300"),
        ({"dropout": 1.0}, "`dropout` must be .*received 1.0"),
    ],
)
def test_refuses(recipe, pairs, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(**{**TINY, "output_dir": tmp_path, "pairs": pairs, **arguments})


def test_refuses_other_files(recipe, tmp_path):
    file = tmp_path / "pairs.tsv"
    file.write_text("A document.\tIts summary.\n\nNo tab\n")
    with pytest.raises(ValueError, match="Line 3 is 'No tab'"):
        recipe.load_data(file, (), 50)
    file.write_text("A document. It is short.\tIts summary.\n")
    with pytest.raises(ValueError, match="pairs: 1 documents leave fewer than two"):
        recipe.load_data(file, (), 50)
    with pytest.raises(ValueError, match="pairs=.* can't be read"):
        recipe.load_data(tmp_path / "none.tsv", (), 50)


@pytest.mark.thorough
def test_a_resumed_run_has_the_same_figures(recipe, pairs, tmp_path, monkeypatch):
    for name in ("draw_learning_curve", "draw_summaries"):
        monkeypatch.setattr(recipe, name, lambda *_: None)
    monkeypatch.setattr(recipe, "pretrained_is_there", lambda: False)
    options = {**TINY, "pairs": pairs, "epochs": 2}
    check_resumed_run(recipe.main, tmp_path, monkeypatch, (1,), **options)


@pytest.mark.learn
def test_is_better_than_the_lead(recipe, tmp_path):
    record = recipe.main(output_dir=tmp_path, verbose=0)
    assert record["metrics"]["test_rouge_l"] > record["baselines"]["lead_test_rouge_l"]
