"""A BERT of random weights as Hugging Face stores it, small enough for any test."""

import json

import keras
import numpy as np
from safetensors.numpy import save_file

import kit
from kit import pretrained

KERNELS = ("query.weight", "key.weight", "value.weight", "dense.weight")


def write_tiny_bert(folder):
    """Writes the model and a vocabulary of a few words into a folder that exists."""
    words = "[PAD] [UNK] [CLS] [SEP] a of the matrix sparse signal function random root"
    (folder / "vocab.txt").write_text("\n".join(words.split()))
    config = {
        "model_type": "bert",
        "vocab_size": 13,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 8,
        "max_position_embeddings": 16,
        "hidden_act": "gelu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    model = kit.transformer.bert(13, 16, 1, 2, 8, 8)
    kit.initialize_weights(model, 0)
    weights = {
        name: keras.ops.convert_to_numpy(variable)
        for name, variable, _ in pretrained._places(model)
    }
    # In PyTorch's order, which transposes kernels.
    weights = {
        name: np.ascontiguousarray(x.T if name.endswith(KERNELS) else x)
        for name, x in weights.items()
    }
    save_file(weights, folder / "model.safetensors")
