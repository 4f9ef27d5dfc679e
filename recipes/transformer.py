r"""Trains a small GPT to write English: a Transformer instead of lstm.py's LSTM.

You will learn: what attention gains over recurrence on the same text
(`kit/transformer.py`), how a language model is measured
(`kit/lab/language_model.py`), and why text is generated with a cache: without it, each
new character requires computing the whole text before it again.

    KERAS_BACKEND=jax python recipes/transformer.py
    KERAS_BACKEND=torch python recipes/transformer.py --positions learned --lstm
    KERAS_BACKEND=jax python recipes/transformer.py --text mine.txt --prompt "It was"

Text and split are those of recipes/lstm.py: Python's documentation, 1.2 million
characters, whole chapters and modules held out. Tokens are 1,024 subwords
(`kit/data/subwords.py`), of which the text has a third as many as characters.

Expected result with seed 0: 1.694 bits per character (JAX), 1.696 (TensorFlow), 1.705
(PyTorch), in six epochs of 47 seconds each on two cores (JAX). The LSTM reaches 1.721
on the same tokens, the best n-gram of characters 1.743. On characters, training takes
longer: 1.720 (JAX) after ten epochs of four minutes on one slow core, and after 20 with
Adam 1.703 (JAX), 1.697 (TensorFlow) and 1.683 (PyTorch).

    KERAS_BACKEND=jax python recipes/transformer.py --tokenizer characters \
        --sequence-length 128 --optimizer adam --learning-rate 3e-3 --epochs 20

To use the trained model elsewhere:

    model = keras.saving.load_model("runs/transformer-jax-0/model.keras")
    vocabulary = kit.data.Subwords.load("runs/transformer-jax-0/vocabulary.json")
    prompt = vocabulary.encode("A list is")[None]
    tokens = kit.transformer.generate(model, prompt, 100, temperature=0.7, top_k=20)
    print(vocabulary.decode(tokens[0]))

Papers: Vaswani et al., 2017, https://arxiv.org/abs/1706.03762; Radford et al., 2019
(GPT-2). Differences: rotary positions (Su et al., 2021), Adam without weight decay.
"""

import time
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import kit
from kit import checks, transformer
from kit.data.corpus import Characters, load_text
from kit.data.subwords import NUM_BYTES, Subwords
from kit.lab import language_model
from kit.lab.ngram import best_ngram
from kit.lab.run import Run, command_line

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "GPT",
    "place": 6,
    "score": "bits_per_char",
    "larger_is_better": False,
    "curve": "val_bits_per_char",
    "quick": "--num-layers 2 --hidden-dim 64 --epochs 1 --max-ngram-order 5",
}


def main(
    *,
    text: Path | None = None,
    tokenizer: Literal["subwords", "characters"] = "subwords",
    vocabulary_size: int = 1024,
    num_layers: int = 4,
    num_heads: int = 4,
    hidden_dim: int = 128,
    dropout: float = 0.1,
    positions: Literal["rotary", "learned", "sinusoidal"] = "rotary",
    sequence_length: int = 64,
    batch_size: int = 16,
    epochs: int = 6,
    optimizer: Literal["muon", "adam"] = "muon",
    learning_rate: float = 1e-2,
    warmup_steps: int = 100,
    beta_2: float = 0.99,
    lstm: bool = False,
    max_ngram_order: int = 16,
    prompt: str = "This function returns",
    sample_length: int = 200,
    temperatures: tuple[float, ...] = (0.3, 0.7, 1.0),
    top_k: int = 20,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a small GPT, compares it with an LSTM and n-grams, samples text.

    Args:
        text: UTF-8 text file to learn instead, of at least tens of thousands of
            characters; its end is held out.
        tokenizer: What a token is. Subwords are frequent pieces of words; a window of
            them covers more than twice as many characters.
        vocabulary_size: Number of different subwords.
        num_layers: Number of decoder blocks.
        num_heads: Attention heads per block.
        hidden_dim: Width of the model, a multiple of num_heads.
        dropout: Share of each sublayer's outputs to drop in training, in [0, 1).
        positions: Position encoding.
        sequence_length: Tokens in a window; the model can look back that far.
        batch_size: Windows in a gradient step.
        epochs: Passes over the text.
        optimizer: "muon" needs fewer epochs than "adam", whose steps are cheaper.
        learning_rate: Largest step size; it falls on a half cosine to a hundredth. For
            Adam, try a third of it.
        warmup_steps: Gradient steps in which the step size first rises to
            `learning_rate`. Without warm-up, large first steps spoil the attention.
        beta_2: Adam's second decay rate. Muon leaves vectors, the embedding and the
            last layer to Adam.
        lstm: Whether to train recipes/lstm.py's model, too, on the same tokens, with
            the same optimizer and as many epochs.
        max_ngram_order: Longest n-grams to try as the other baseline.
        prompt: Beginning of the samples. Spaces at its end are left out, as subwords
            begin with them.
        sample_length: Tokens to generate per temperature.
        temperatures: Sampling temperatures, one sample each. Below 1, probable
            tokens become more probable; 0 always takes the most probable one.
        top_k: Sample from this many most probable tokens only.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/transformer-<backend>-<seed> if not
            given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "transformer", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    parts = train_text, _, _ = load_text(text)
    characters = Characters.of(train_text)
    vocabulary: Characters | Subwords = characters
    if tokenizer == "subwords":
        sizes = {"vocabulary_size": checks.integer(f"[{NUM_BYTES + 1}, 65536]")}
        checks.check("transformer", run.config, sizes)
        vocabulary = Subwords.learn(train_text.splitlines(), vocabulary_size)
    train, valid, test = map(vocabulary.encode, parts)
    language_model.check(**run.config | {"vocabulary_size": len(vocabulary)})
    prompt = prompt.rstrip(" ") or prompt
    if sequence_length < 2:
        raise ValueError(
            f"sequence_length must be at least 2, to look back; got {sequence_length}."
        )
    # If there is too little text, raise the error before training.
    language_model.windows(
        train, sequence_length, batch_size, np.random.default_rng(seed)
    )
    model = kit.gpt(
        len(vocabulary),
        sequence_length,
        num_layers,
        num_heads,
        hidden_dim,
        dropout=dropout,
        positions=positions,
    )
    kit.initialize_weights(model, seed)

    options: Any = {
        "length": sequence_length,
        "batch_size": batch_size,
        "epochs": epochs,
        "optimizer": optimizer,
        "warmup_steps": warmup_steps,
        "beta_2": beta_2,
        "characters_per_token": len(train_text) / len(train),
        "seed": seed,
        "verbose": verbose,
    }
    measure = language_model.per_character(
        language_model.make_bits_by_windows(model, sequence_length), vocabulary
    )
    history = language_model.fit(
        model,
        train,
        valid,
        measure,
        learning_rate=learning_rate,
        backup=run.backup("gpt"),
        **options,
    )
    # Slower than in training: each token gets nearly a whole window before it.
    by_windows = language_model.make_bits_by_windows(
        model, sequence_length, stride=max(1, sequence_length // 8)
    )
    measure = language_model.per_character(by_windows, vocabulary)
    model.save(run.output_dir / "model.keras")
    vocabulary.save(run.output_dir / "vocabulary.json")
    metrics: dict[str, Any] = {
        "bits_per_char": measure(test),
        "test_characters": len(parts[2]),
        "parameters": model.count_params(),
    }

    # The best n-gram of characters: kind and order are chosen on the validation text.
    train_set, valid_set, test_set = map(characters.encode, parts)
    ngram = best_ngram(train_set, valid_set, len(characters), max_ngram_order)
    baselines: dict[str, Any] = {
        "ngram_bits_per_char": ngram.bits_per_token(test_set),
        "ngram_order": ngram.order,
    }
    levels = {
        "GPT": metrics["bits_per_char"],
        f"best n-gram ({ngram.order}-gram)": baselines["ngram_bits_per_char"],
    }
    if lstm:
        baseline = make_lstm(len(vocabulary), seed)
        measure = language_model.per_character(
            language_model.make_bits_by_steps(baseline), vocabulary
        )
        language_model.fit(
            baseline,
            train,
            valid,
            measure,
            learning_rate=1e-2 if optimizer == "muon" else 5e-3,
            backup=run.backup("lstm"),
            **options,
        )
        baselines["lstm_bits_per_char"] = levels["LSTM"] = measure(test)
        baselines["lstm_parameters"] = baseline.count_params()
    language_model.plot(run, history, "GPT", levels)

    start = vocabulary.encode("\n" + prompt)[None]
    samples = {
        f"temperature {temperature:g}": prompt
        + vocabulary.decode(
            transformer.generate(model, start, sample_length, temperature, top_k, seed)[
                0
            ]
        )
        for temperature in temperatures
    }
    run.write_texts("samples.txt", samples)
    for name, cache in (("cached", True), ("uncached", False)):
        metrics[f"{name}_tokens_per_second"] = writing_speed(
            model, sequence_length, cache
        )
    return run.finish(
        history=history,
        metrics=metrics,
        baselines=baselines,
        # Without the first epoch, which includes compilation.
        throughput=(
            np.median([row["characters_per_second"] for row in history[1:] or history]),
            "characters/s",
        ),
        compile_seconds=kit.compile_seconds(),
    )


def make_lstm(vocabulary_size: int, seed: int) -> kit.Sequential:
    """Builds the model of recipes/lstm.py, whose docstring explains it."""
    model = kit.lstm(
        (None,),
        vocabulary_size,
        units=(256,),
        return_sequences=True,
        vocabulary_size=vocabulary_size,
        dropout=0.1,
    )
    language_model.initialize_recurrent(model, seed)
    return model


def writing_speed(model: keras.Model, length: int, use_cache: bool) -> float:
    """Returns tokens per second when generating one text that fills a window."""
    seconds = []
    for _ in range(4):  # the first one compiles
        start = time.perf_counter()
        tokens = transformer.generate(
            model, np.zeros((1, 1), "int32"), length - 1, use_cache=use_cache
        )
        keras.ops.convert_to_numpy(tokens)  # waits for them
        seconds.append(time.perf_counter() - start)
    return (length - 1) / min(seconds)


if __name__ == "__main__":
    command_line(main)
