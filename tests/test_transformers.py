"""The kit's BERT beside the one of Hugging Face's `transformers`, on PyTorch.

Needs PyTorch and `transformers`: `tox -e transformers`.
"""

import keras
import numpy as np
import pytest

from kit import pretrained

pytestmark = pytest.mark.transformers

SIZES = {
    "vocab_size": 60,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 20,
    "type_vocab_size": 2,
    "initializer_range": 0.5,  # so that each weight's place shows in the outputs
}


def make_reference(**options):
    """A `BertModel` of random weights, biases and LayerNorms too, with its sizes."""
    import transformers

    return randomize(
        transformers.BertModel(transformers.BertConfig(**SIZES, **options))
    )


def randomize(model):
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Large enough that each weight's place shows in the outputs.
            center = 1.0 if name.endswith("LayerNorm.weight") else 0.0
            weight.normal_(center, 0.3)
    return model.eval()


def make_batch():
    """Sequences of 12, 7 and 1 tokens; of two texts each, the longer ones."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, SIZES["vocab_size"], (3, 12)).astype("int32")
    lengths = np.array([[12], [7], [1]])
    tokens[np.arange(12) >= lengths] = 0
    segments = (np.arange(12) >= lengths // 2 + 1) & (tokens != 0)
    return {"token_ids": tokens, "segment_ids": segments.astype("int32")}


def check_parity(reference, model):
    import torch

    batch = make_batch()
    tokens, segments = (torch.from_numpy(x).long() for x in batch.values())
    with torch.no_grad():
        theirs = reference(
            input_ids=tokens, token_type_ids=segments, attention_mask=(tokens != 0) * 1
        )
    ours = {
        name: keras.ops.convert_to_numpy(x)
        for name, x in model(batch, training=False).items()
    }
    real = batch["token_ids"] != 0  # nobody uses what stands at padding
    hidden = theirs.last_hidden_state.numpy()
    assert hidden[real].std() > 0.5
    np.testing.assert_allclose(ours["sequence_output"][real], hidden[real], atol=1e-5)
    if theirs.pooler_output is not None:
        np.testing.assert_allclose(
            ours["pooled_output"], theirs.pooler_output.numpy(), atol=1e-5
        )
    # The test would pass without the mask and the segments, did they change nothing.
    for change in ({"token_ids": batch["token_ids"] + (1 - real)}, {"segment_ids": 0}):
        changed = batch | change
        changed["segment_ids"] = changed["segment_ids"] * np.ones((3, 12), "int32")
        outputs = keras.ops.convert_to_numpy(model(changed)["sequence_output"])
        assert np.abs(outputs - ours["sequence_output"])[:2][real[:2]].max() > 1e-2


@pytest.mark.parametrize("hidden_act", list(pretrained.ACTIVATIONS))
def test_hidden_states_are_those_of_transformers(tmp_path, hidden_act):
    reference = make_reference(hidden_act=hidden_act)
    reference.save_pretrained(tmp_path)
    check_parity(reference, pretrained.load_bert(tmp_path))


def test_the_encoder_of_a_model_with_a_head_is_loaded(tmp_path):
    import transformers

    config = transformers.BertConfig(**SIZES)
    whole = randomize(transformers.BertForMaskedLM(config))
    whole.save_pretrained(tmp_path)
    with pytest.warns(UserWarning) as caught:
        model = pretrained.load_bert(tmp_path)
    messages = [str(warning.message) for warning in caught]
    assert any("cls.predictions.transform.dense.weight" in m for m in messages)
    assert any("no pooler" in m for m in messages)
    check_parity(whole.bert, model)


def test_tokens_are_those_of_transformers(tmp_path):
    import transformers

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += ["the", "rain", "##ing", "it", "is", "in", "spa", "##in", "?", "'"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    theirs = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    texts = ["Is it raining?", "It's in SPAIN: raining, raining, raining in the rain."]
    pairs = ["the rain in Spain", "is it"]
    expected = theirs(texts, pairs, padding=True, truncation=True, max_length=12)
    tokenizer = pretrained.load_tokenizer(tmp_path, max_length=12)
    found = tokenizer(texts, pairs)
    np.testing.assert_array_equal(found["token_ids"], expected["input_ids"])
    np.testing.assert_array_equal(found["segment_ids"], expected["token_type_ids"])


def test_gpt_is_gpt2(tmp_path):
    """GPT-2 has no function to load it; its weights have places in `kit.gpt`, too."""
    import torch
    import transformers

    from kit import transformer

    config = transformers.GPT2Config(
        vocab_size=60, n_positions=20, n_embd=32, n_layer=2, n_head=4
    )
    reference = randomize(transformers.GPT2LMHeadModel(config))
    weights = {k: v.detach().numpy() for k, v in reference.named_parameters()}
    model = transformer.gpt(
        60,
        20,
        num_layers=2,
        num_heads=4,
        hidden_dim=32,
        activation=pretrained.gelu_tanh,
    )
    embedding, positions, *blocks, norm, logits = model.layers
    embedding.set_weights([weights["transformer.wte.weight"]])
    positions.set_weights([weights["transformer.wpe.weight"]])
    for i, block in enumerate(blocks):
        # Conv1D holds (inputs, outputs), as Keras does; Q, K and V side by side.
        w = {name.removeprefix(f"transformer.h.{i}."): x for name, x in weights.items()}
        kernels = np.split(w["attn.c_attn.weight"], 3, axis=1)
        biases = np.split(w["attn.c_attn.bias"], 3)
        attention = block.attention
        layers = (attention.query, attention.key, attention.value)
        for layer, kernel, bias in zip(layers, kernels, biases, strict=True):
            layer.set_weights([kernel, bias])
        for layer, name in (
            (attention.output_projection, "attn.c_proj"),
            (block.intermediate, "mlp.c_fc"),
            (block.output_dense, "mlp.c_proj"),
            (block.attention_norm, "ln_1"),
            (block.feed_forward_norm, "ln_2"),
        ):
            layer.set_weights([w[f"{name}.weight"], w[f"{name}.bias"]])
    norm.set_weights([weights[f"transformer.ln_f.{x}"] for x in ("weight", "bias")])
    logits.set_weights([weights["transformer.wte.weight"].T, np.zeros(60)])  # tied

    tokens = make_batch()["token_ids"]
    with torch.no_grad():
        theirs = reference(torch.from_numpy(tokens).long()).logits.numpy()
    ours = keras.ops.convert_to_numpy(model(tokens))
    assert theirs.std() > 0.5
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
