r"""Trains an LSTM to write English: a character-level language model.

You will learn: how text becomes integers and windows, how a recurrent network
(`kit/recurrent.py`) learns to predict the next character, why language models are
measured in bits per character and compared with n-grams (`kit/lab/ngram.py`), and how
to sample text from one: a compiled loop carries the state, so that each character costs
one step, however long the text before it is.

    KERAS_BACKEND=jax python recipes/lstm.py
    KERAS_BACKEND=torch python recipes/lstm.py --units 128 --epochs 4
    KERAS_BACKEND=jax python recipes/lstm.py --text mine.txt --prompt "It was "

The text is Python's own documentation (`kit.data.english_text`), 1.2 million
characters. Whole chapters and modules are held out, and the training text repeats
nothing from them. The baseline is the best n-gram, a 16-gram with modified Kneser-Ney
smoothing: 1.743 bits per character on Python 3.11.

Expected result with seed 0: 1.728 bits per character on JAX, in 18 minutes on one slow
core, and 1.731 on PyTorch, in 11 minutes.
With Adam, 20 epochs reach 1.724 (1.725 on TensorFlow and PyTorch):

    KERAS_BACKEND=jax python recipes/lstm.py --optimizer adam --learning-rate 5e-3 \
        --warmup-steps 0 --beta-2 0.999 --epochs 20

To use the trained model elsewhere:

    model = keras.saving.load_model("runs/lstm-jax-0/model.keras")
    vocabulary = kit.data.Characters.load("runs/lstm-jax-0/vocabulary.json")
    prompt = vocabulary.encode("A list is ")[None]
    tokens = kit.recurrent.generate(model, prompt, 300, temperature=0.7, top_k=20)
    print(vocabulary.decode(tokens[0]))

Papers: Hochreiter and Schmidhuber, 1997, https://doi.org/10.1162/neco.1997.9.8.1735;
Graves, 2013, https://arxiv.org/abs/1308.0850. Differences: one layer instead of a
stack, Muon with a cosine schedule, and windows that start from a zero state instead of
the state of the batch before.
"""

from pathlib import Path
from typing import Literal

import numpy as np

import kit
from kit import recurrent
from kit.data.corpus import Characters, load_text
from kit.lab import language_model
from kit.lab.ngram import best_ngram
from kit.lab.run import Run, command_line

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "LSTM",
    "place": 4,
    "score": "bits_per_char",
    "larger_is_better": False,
    "curve": "val_bits_per_char",
    "quick": "--units 64 --epochs 1 --max-ngram-order 5",
}


def main(
    *,
    text: Path | None = None,
    units: tuple[int, ...] = (256,),
    dropout: float = 0.1,
    sequence_length: int = 128,
    batch_size: int = 16,
    epochs: int = 8,
    optimizer: Literal["muon", "adam"] = "muon",
    learning_rate: float = 1e-2,
    warmup_steps: int = 100,
    beta_2: float = 0.99,
    max_ngram_order: int = 16,
    prompt: str = "This function returns ",
    sample_length: int = 400,
    temperatures: tuple[float, ...] = (0.3, 0.7, 1.0),
    top_k: int = 20,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a character language model, compares it with n-grams, samples text.

    Args:
        text: UTF-8 text file to learn instead, of at least tens of thousands of
            characters; its end is held out.
        units: Sizes of the LSTM layers; the first is also the embedding's size.
        dropout: Share of each layer's outputs to drop in training, in [0, 1).
        sequence_length: Characters in a training window; gradients reach that far.
        batch_size: Windows in a gradient step.
        epochs: Passes over the text.
        optimizer: "muon" needs fewer epochs than "adam", whose steps are cheaper.
        learning_rate: Largest step size; it falls on a half cosine to a hundredth. For
            Adam, try half of it.
        warmup_steps: Gradient steps in which the step size first rises to
            `learning_rate`.
        beta_2: Adam's second decay rate. Muon leaves vectors, the embedding and the
            last layer to Adam.
        max_ngram_order: Longest n-grams to try as the baseline.
        prompt: Beginning of the samples.
        sample_length: Characters to generate per temperature.
        temperatures: Sampling temperatures, one sample each. Below 1, probable
            characters become more probable; 0 always takes the most probable one.
        top_k: Sample from this many most probable characters only.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/lstm-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("lstm", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    train_text, valid_text, test_text = load_text(text)
    vocabulary = Characters.of(train_text)
    train, valid, test = map(vocabulary.encode, (train_text, valid_text, test_text))
    language_model.check(len(vocabulary), **run.config)

    # If there is too little text, raise the error before counting n-grams.
    language_model.windows(
        train, sequence_length, batch_size, np.random.default_rng(seed)
    )

    # The best n-gram: kind and order are chosen on the validation text.
    ngram = best_ngram(train, valid, len(vocabulary), max_ngram_order)
    ngram_bits = ngram.bits_per_token(test)

    model = kit.lstm(
        (None,),
        len(vocabulary),
        units=units,
        return_sequences=True,
        vocabulary_size=len(vocabulary),
        dropout=dropout,
    )
    language_model.initialize_recurrent(model, seed)
    # Evaluation carries the state along the whole text.
    bits_per_char = language_model.make_bits_by_steps(model)
    history = language_model.fit(
        model,
        train,
        valid,
        bits_per_char,
        length=sequence_length,
        batch_size=batch_size,
        epochs=epochs,
        learning_rate=learning_rate,
        optimizer=optimizer,
        warmup_steps=warmup_steps,
        beta_2=beta_2,
        seed=seed,
        backup=run.backup(),
        verbose=verbose,
    )

    model.save(run.output_dir / "model.keras")
    vocabulary.save(run.output_dir / "vocabulary.json")
    test_bits = bits_per_char(test)
    levels = {"LSTM": test_bits, f"best n-gram ({ngram.order}-gram)": ngram_bits}
    language_model.plot(run, history, "LSTM", levels)
    samples = {
        f"temperature {temperature:g}": prompt
        + vocabulary.decode(
            recurrent.generate(
                model,
                vocabulary.encode("\n" + prompt)[None],
                sample_length,
                temperature,
                top_k,
                seed,
            )[0]
        )
        for temperature in temperatures
    }
    run.write_texts("samples.txt", samples)
    return run.finish(
        history=history,
        metrics={"bits_per_char": test_bits, "test_characters": len(test)},
        baselines={"ngram_bits_per_char": ngram_bits, "ngram_order": ngram.order},
        # Without the first epoch, which includes compilation.
        throughput=(
            np.median([row["characters_per_second"] for row in history[1:] or history]),
            "characters/s",
        ),
        compile_seconds=kit.compile_seconds(),
    )


if __name__ == "__main__":
    command_line(main)
