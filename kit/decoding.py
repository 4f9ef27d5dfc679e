"""Generates sequences token by token: sampling, greedy decoding and beam search.

After each token, a model predicts the probability of each next token. The methods
choose one:

    sample       draw the next token from the predicted distribution
    greedy       take the most probable token
    beam search  keep the K most probable beginnings; extend each by every token, and
                 keep the K most probable again

All are compiled loops around a function of the model,

    step(token, state, position) -> logits, state

which reads one token. Its state is an RNN's state in `kit.recurrent`, a cache of keys
and values in `kit.transformer`. Shapes: B batch, K beams, V vocabulary.
"""

from collections.abc import Callable, Mapping
from typing import Any

import keras
from keras import ops

from kit import checks, random
from kit.backend import Tensor, scan

ACCEPTED = {
    "step": checks.FUNCTION,
    "logits": checks.array("B V"),
    "length": checks.SIZE,
    "temperature": checks.array("", interval="[0, inf)"),
    "top_k": checks.SIZE | None,
    "start": checks.COUNT,
    "batch_size": checks.SIZE,
    "start_token": checks.COUNT,
    "end_token": checks.COUNT,
    "beam_width": checks.SIZE,
    "length_penalty": checks.FINITE,
    "vocabulary_size": checks.SIZE,
    "name": checks.TEXT,
    "model": checks.MODEL,
    "make": checks.FUNCTION,
    "arguments": checks.instance(Mapping),
    "longest": checks.SIZE | None,
}
Step = Callable[[Tensor, Any, Tensor], tuple[Tensor, Any]]


def sample(
    step: Step,
    state: Any,
    logits: Tensor,
    length: int,
    key: Tensor | None,
    temperature: Tensor = 1.0,
    top_k: int | None = None,
    start: int = 0,
) -> Tensor:
    """Samples tokens one after the other, each from the model's prediction.

    Args:
        step: Reads tokens `(B,)` at a position; returns logits `(B, V)` and the state.
        state: The state after the prompt.
        logits: The logits after the prompt, `(B, V)`.
        length: Number of tokens to generate.
        key: Random key (`kit.random.key`). `None` takes the most probable token.
        temperature: Divides the logits. Defaults to 1.
        top_k: Sample from the k most probable tokens only. Defaults to `None`, all.
        start: Position of the first new token. Defaults to 0.

    Returns:
        Tokens, int32 `(B, length)`.
    """
    checks.check("sample", locals(), ACCEPTED)

    def draw(logits, key=None):
        if key is None:
            return ops.cast(ops.argmax(logits, axis=-1), "int32")
        if top_k is None:
            return random.categorical(key, logits / temperature)
        logits, tokens = ops.top_k(logits, top_k)  # (B, k)
        choice = random.categorical(key, logits / temperature)[:, None]
        return ops.cast(ops.take_along_axis(tokens, choice, axis=1)[:, 0], "int32")

    def write(carry, slices):
        state, logits = carry
        position, *keys = slices
        token = draw(logits, *keys)
        logits, state = step(token, state, position)
        return (state, logits), token

    positions = start + ops.arange(length, dtype="int32")
    keys = () if key is None else (random.split(key, length),)
    _, tokens = scan(write, (state, logits), (positions, *keys))
    return ops.transpose(tokens)  # (B, length)


def beam_search(
    step: Step,
    state: Any,
    batch_size: int,
    length: int,
    start_token: int,
    end_token: int,
    beam_width: int = 1,
    length_penalty: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Searches for the most probable sequences; with one beam, greedily.

    Args:
        step: Reads tokens `(B K,)` at a position; returns logits `(B K, V)` and the
            state.
        state: The state before the first token: tensors whose first axis is B K, with
            the beams of an example next to each other.
        batch_size: B.
        length: Longest sequence, including its end token.
        start_token: First token to read; not in the results.
        end_token: Token that ends a sequence; zeros follow it.
        beam_width: K. Defaults to 1.
        length_penalty: Sequences are ranked by log-probability / length^penalty: 0
            favours short ones, 1 is the mean over tokens. Defaults to 0.

    Returns:
        Tokens, int32 `(B, K, length)`, the best first, and their log-probabilities
        `(B, K)`.
    """
    checks.check("beam_search", locals(), ACCEPTED)
    beams = (batch_size, beam_width)

    def extend(carry, position):
        state, token, scores, lengths, ended = carry
        logits, state = step(ops.reshape(token, (-1,)), state, position)
        log_probs = ops.log_softmax(ops.cast(logits, "float32"), axis=-1)
        size = log_probs.shape[-1]
        log_probs = ops.reshape(log_probs, (*beams, size))
        # The only continuation of a finished sequence is zeros, with probability 1.
        nothing = ops.where(ops.arange(size) == 0, 0.0, -1e30)
        log_probs = ops.where(ended[..., None], nothing, log_probs)
        totals = scores[..., None] + log_probs  # (B, K, V)
        new_lengths = lengths + ops.cast(~ended, "float32")
        ranks = totals / new_lengths[..., None] ** length_penalty
        _, best = ops.top_k(ops.reshape(ranks, (batch_size, -1)), beam_width)
        best = ops.cast(best, "int32")  # (B, K), of K V
        parent, token = best // size, best % size
        scores = ops.take_along_axis(ops.reshape(totals, (batch_size, -1)), best, 1)
        lengths = ops.take_along_axis(new_lengths, parent, axis=1)
        ended = ops.take_along_axis(ended, parent, axis=1) | (token == end_token)
        rows = parent + beam_width * ops.arange(batch_size, dtype="int32")[:, None]
        if beam_width > 1:
            rows = ops.reshape(rows, (-1,))
            state = keras.tree.map_structure(lambda a: ops.take(a, rows, axis=0), state)
        return (state, token, scores, lengths, ended), (token, parent)

    # All beams start equal: only the first one counts.
    scores = ops.where(ops.arange(beam_width) == 0, 0.0, -1e30) * ops.ones(beams)
    token = ops.full(beams, start_token, dtype="int32")
    carry = (state, token, scores, ops.zeros(beams), ops.zeros(beams, "bool"))
    positions = ops.arange(length, dtype="int32")
    (_, _, scores, _, _), (tokens, parents) = scan(extend, carry, positions)

    def follow(beam, slices):  # from the last token back to the first
        token, parent = slices
        written = ops.take_along_axis(token, beam, axis=1)
        return ops.take_along_axis(parent, beam, axis=1), written

    last = ops.broadcast_to(ops.arange(beam_width, dtype="int32"), beams)
    _, tokens = scan(follow, last, (tokens, parents), reverse=True)
    return ops.transpose(tokens, (1, 2, 0)), scores


def kept_program(model: keras.Model, make: Callable, *options: Any) -> Callable:
    """Returns `make(model, *options)`: a program that is made once per model.

    Args:
        model: Keeps the program, hidden from Keras' tracking.
        make: Returns a compiled function.
        options: Options that the program is compiled for.
    """
    checks.check("kept_program", locals(), ACCEPTED)
    programs = model.__dict__.setdefault("_decoding_programs", {})
    if (make, options) not in programs:
        programs[make, options] = make(model, *options)
    return programs[make, options]


def check_generation(
    prompt: Any,
    vocabulary_size: int,
    length: int,
    temperature: float,
    top_k: int | None,
) -> Tensor:
    """Checks the arguments of a `generate`; returns the prompt as int32 `(B, P)`."""
    checks.check("generate", {"vocabulary_size": vocabulary_size}, ACCEPTED)
    top_k_range = {"top_k": checks.integer(f"[1, {vocabulary_size}]") | None}
    checks.check("generate", locals(), {**ACCEPTED, **top_k_range})
    return check_tokens("prompt", prompt, vocabulary_size)


def check_writing(
    arguments: Mapping[str, Any], vocabulary_size: int, longest: int | None
) -> None:
    """Raises an error if an argument of a `translate` doesn't suit the model.

    Args:
        arguments: The arguments of `translate` by name.
        vocabulary_size: V.
        longest: Longest sequence that the model can generate; `None` for any.
    """
    checks.check("check_writing", locals(), ACCEPTED)
    token = f"{vocabulary_size - 1}]"
    accepted = {
        "start_token": checks.integer(f"[0, {token}"),
        "end_token": checks.integer(f"[1, {token}"),
        "length": checks.integer(f"[1, {longest or 2**31 - 1}]"),
        "beam_width": checks.integer(f"[1, {vocabulary_size}]"),
    }
    checks.check("translate", arguments, accepted)


def without_padding(logits: Tensor) -> Tensor:
    """Returns the logits with that of token 0 so low that it is never chosen."""
    checks.check("without_padding", locals(), {"logits": checks.array("B ...")})
    logits = ops.cast(logits, "float32")
    return ops.where(ops.arange(logits.shape[-1]) == 0, -1e9, logits)


def check_tokens(name: str, tokens: Any, vocabulary_size: int) -> Tensor:
    """Checks tokens and returns them as int32 `(B, T)`."""
    checks.check("check_tokens", locals(), ACCEPTED)
    checks.check("", {name: tokens}, {name: checks.array("B T", "integers")})
    tokens = ops.convert_to_tensor(tokens)
    first, last = int(ops.min(tokens)), int(ops.max(tokens))
    if first < 0 or last >= vocabulary_size:
        raise ValueError(
            f"`{name}` must hold integers from 0 to {vocabulary_size - 1}, the model's "
            f"V - 1; received some from {first} to {last}."
        )
    return ops.cast(tokens, "int32")


def check_source(model: keras.Model, source: Any) -> Tensor:
    """Checks the source of a `translate` and returns it as int32 `(B, S)`."""
    checks.check("check_source", locals(), ACCEPTED)
    if not {"encoder", "decoder"} <= {layer.name for layer in model.layers}:
        raise ValueError(
            "`model` must be of `kit.encoder_decoder` or "
            f"`kit.seq2seq.gru_encoder_decoder`, received {model!r}."
        )
    (embedding,) = (
        layer
        for layer in model.get_layer("encoder").layers
        if isinstance(layer, keras.layers.Embedding)
    )
    return check_tokens("source", source, embedding.input_dim)
