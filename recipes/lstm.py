r"""Teaches an LSTM to write: a language model of English, character by character.

What there is to learn here: how text becomes integers and windows, how a recurrent
network (`kit/recurrent.py`) is trained to guess the next character, why a language
model is measured in bits per character and against n-grams (`kit/ngram.py`), and how
text is drawn from it: one compiled loop that carries the state, so that a character
costs one step however long the text before it.

    KERAS_BACKEND=jax python recipes/lstm.py
    KERAS_BACKEND=torch python recipes/lstm.py --units 128 --epochs 4
    KERAS_BACKEND=jax python recipes/lstm.py --text mine.txt --prompt "It was "

The text is Python's own documentation (`kit.data.english_text`), 1.2 million
characters; whole chapters and modules are held out, and nothing that stands in them
stands in the training text. The level to get below is that of the best n-gram, a
16-gram with modified Kneser-Ney smoothing: 1.743 bits per character on Python 3.11. The
LSTM gets to 1.724 (JAX, seed 0; 1.725 on TensorFlow and PyTorch), in a quarter of an
hour on two busy cores.

The trained model goes on writing elsewhere:

    model = keras.saving.load_model("runs/lstm-jax-0/model.keras")
    vocabulary = kit.data.Characters.load("runs/lstm-jax-0/vocabulary.json")
    prompt = vocabulary.encode("A list is ")[None]
    tokens = kit.recurrent.generate(model, prompt, 300, temperature=0.7, top_k=20)
    print(vocabulary.decode(tokens[0]))

Papers: Hochreiter and Schmidhuber, 1997, https://doi.org/10.1162/neco.1997.9.8.1735;
Graves, 2013, https://arxiv.org/abs/1308.0850. Differences: one layer where Graves
stacks, Adam with a cosine schedule, and windows that start without a state instead of
a state carried from batch to batch.
"""

import math
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
from keras import ops

import kit
from kit import recurrent
from kit.data import Characters, english_text
from kit.ngram import best_ngram
from kit.recipe import Run


def main(
    *,
    text: Path | None = None,
    units: tuple[int, ...] = (256,),
    dropout: float = 0.1,
    sequence_length: int = 128,
    batch_size: int = 16,
    epochs: int = 20,
    learning_rate: float = 5e-3,
    max_ngram_order: int = 16,
    prompt: str = "This function returns ",
    sample_length: int = 400,
    temperatures: tuple[float, ...] = (0.3, 0.7, 1.0),
    top_k: int = 20,
    seed: int = 0,
    output_dir: Path | None = None,
    verbose: int = 1,
) -> dict:
    """Trains a character language model, compares it with n-grams, lets it write.

    Args:
        text: File of UTF-8 text to learn instead; its end is held out. Tens of
            thousands of characters at least.
        units: Sizes of the LSTM layers; the first is the embedding's too.
        dropout: Share of each layer's outputs to drop in training, in [0, 1).
        sequence_length: Characters in a training window: gradients reach that far.
        batch_size: Windows in a gradient step.
        epochs: Passes over the text.
        learning_rate: Step size of Adam at the start; falls along a cosine to a
            hundredth of that.
        max_ngram_order: Longest n-grams to try as the baseline.
        prompt: What the samples begin with.
        sample_length: Characters to write for each temperature.
        temperatures: One sample each: below 1 the likely becomes likelier, 0 takes
            the likeliest.
        top_k: Samples draw from this many likeliest characters only.
        seed: Seed of everything that is drawn.
        output_dir: Folder for the results; runs/lstm-<backend>-<seed> if not given.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        What metrics.json holds.
    """
    run = Run("lstm", seed=seed, output_dir=output_dir, config=locals())
    train_text, valid_text, test_text = load_text(text)
    vocabulary = Characters.of(train_text)
    train, valid, test = map(vocabulary.encode, (train_text, valid_text, test_text))
    check(len(train), len(vocabulary), **run.config)

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
    kit.initialize_weights(model, seed)
    # Keras' embeddings begin within 0.05 of zero, where a cell hardly tells one
    # character from another; ten times that saves it hundreds of steps.
    (embeddings,) = model.layers[0].get_weights()
    model.layers[0].set_weights([10 * embeddings])
    rng = np.random.default_rng(seed)
    x, y = windows(train, sequence_length, batch_size, rng)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate, decay_steps=epochs * len(x) // batch_size, alpha=0.01
    )
    model.compile(
        # A recurrent network's gradient explodes now and then: a long one is cut.
        optimizer=keras.optimizers.Adam(schedule, clipnorm=1.0),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    bits_per_char = make_bits_per_char(model)
    history: list[dict[str, float]] = []
    best_weights = model.get_weights()
    for epoch in range(epochs):
        start = time.perf_counter()
        nats = model.fit(
            x, y, batch_size, initial_epoch=epoch, epochs=epoch + 1, verbose=verbose
        ).history["loss"][0]
        row = {
            "epoch": epoch + 1,
            "bits_per_char": nats / math.log(2),
            "characters_per_second": x.size / (time.perf_counter() - start),
            "val_bits_per_char": bits_per_char(valid),
        }
        if verbose:
            print(f"{row['val_bits_per_char']:.3f} bits per character on new text")
        history.append(row)
        if row["val_bits_per_char"] == min(r["val_bits_per_char"] for r in history):
            best_weights = model.get_weights()
        x, y = windows(train, sequence_length, batch_size, rng)
    model.set_weights(best_weights)

    model.save(run.output_dir / "model.keras")
    vocabulary.save(run.output_dir / "vocabulary.json")
    test_bits = bits_per_char(test)
    plot(run, history, ngram_bits, test_bits, f"{ngram.order}-gram")
    samples = {
        temperature: prompt
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
    write_samples(samples, run.output_dir / "samples.txt")
    return run.finish(
        history=history,
        metrics={"bits_per_char": test_bits, "test_characters": len(test)},
        baselines={"ngram_bits_per_char": ngram_bits, "ngram_order": ngram.order},
        # Of all but the first epoch, in which the program is compiled.
        throughput=(
            np.median([row["characters_per_second"] for row in history[1:] or history]),
            "characters/s",
        ),
        compile_seconds=kit.compile_seconds(),
    )


def load_text(path: Path | None) -> tuple[str, str, str]:
    """Returns text to train on, to validate on and to test on: swap in your own."""
    if path is None:
        return english_text()
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(
            f"text={str(path)!r} can't be read as UTF-8 text: {error}"
        ) from error
    share = len(text) // 20
    return text[: -2 * share], text[-2 * share : -share], text[-share:]


def check(num_characters: int, vocabulary_size: int, **config) -> None:
    """Raises an error for what would only be found out after the training."""
    least = {"epochs": 1, "batch_size": 1, "sequence_length": 1, "sample_length": 1}
    for name, low in least.items():
        if config[name] < low:
            raise ValueError(f"{name} must be at least {low}, got {config[name]}.")
    if not config["prompt"]:
        raise ValueError("prompt must hold one character at least, got ''.")
    if not 0 <= config["dropout"] < 1:
        raise ValueError(f"dropout must be in [0, 1), got {config['dropout']}.")
    if any(not 0 <= value < math.inf for value in config["temperatures"]):
        raise ValueError(f"temperatures must be 0 or more: {config['temperatures']}.")
    if not 1 <= config["top_k"] <= vocabulary_size:
        raise ValueError(
            f"top_k must be from 1 to {vocabulary_size}, the number of different "
            f"characters; got {config['top_k']}."
        )
    needed = config["sequence_length"] * (config["batch_size"] + 1) + 1
    if num_characters < needed:
        raise ValueError(
            f"text has {num_characters} characters to train on, fewer than the "
            f"{needed} of one batch: sequence_length={config['sequence_length']}, "
            f"batch_size={config['batch_size']}."
        )


def windows(
    tokens: np.ndarray, length: int, batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into windows (N, T) and what follows each of their characters.

    The first window starts at random, so that each epoch cuts at other places. As many
    as fill whole batches: the same number each time, and one compiled program.
    """
    count = (len(tokens) - 1) // length - 1
    size = count // batch_size * batch_size * length
    start = rng.integers(length)
    x = tokens[start : start + size].reshape(-1, length)
    y = tokens[start + 1 : start + 1 + size].reshape(-1, length)
    return x, y


def make_bits_per_char(
    model: kit.Sequential, lanes: int = 64, warm_up: int = 256
) -> Callable[[np.ndarray], float]:
    """Returns a function that measures the model on every character of a text.

    The state is carried along the text, as when it is read. To go faster, the text is
    divided into lanes that are read side by side; each begins `warm_up` characters
    early, to have a state when its own part begins.
    """

    @kit.compiled
    def total_nats(inputs, targets, weights):  # (T, lanes) each
        def read(state, slices):
            token, target, weight = slices
            logits, state = recurrent.step(model, token, state)
            loss = keras.losses.sparse_categorical_crossentropy(
                target, logits, from_logits=True
            )
            return state, ops.sum(weight * loss)

        state = recurrent.initial_state(model, inputs.shape[1])
        _, nats = kit.scan(read, state, (inputs, targets, weights))
        return ops.sum(nats)

    def bits_per_char(tokens):
        per_lane = math.ceil(len(tokens) / lanes)
        # Before the text, and after it, stands filling that doesn't count.
        padded = np.zeros(warm_up + 1 + lanes * per_lane, "int32")
        padded[warm_up + 1 : warm_up + 1 + len(tokens)] = tokens
        time_steps = np.arange(warm_up + per_lane)[:, None]
        places = time_steps + per_lane * np.arange(lanes)  # (T, lanes)
        counts = (time_steps >= warm_up) & (places < warm_up + len(tokens))
        nats = total_nats(padded[places], padded[places + 1], counts.astype("float32"))
        return float(nats) / math.log(2) / len(tokens)

    return bits_per_char


def plot(run: Run, history: list, ngram: float, final: float, ngram_name: str) -> None:
    """Draws bits per character over epochs, and the level to get below."""
    epochs = [row["epoch"] for row in history]
    with run.figure("learning_curve.png", figsize=(8, 4.5)) as figure:
        axes = figure.subplots()
        axes.plot(
            epochs,
            [row["bits_per_char"] for row in history],
            color="#9ec5e8",
            label="training text, with dropout",
        )
        axes.plot(
            epochs,
            [row["val_bits_per_char"] for row in history],
            color="#14508c",
            label="validation text",
        )
        for level, color, label in (
            (ngram, "#666666", f"test text, best n-gram ({ngram_name}): {ngram:.3f}"),
            (final, "#b4470e", f"test text, LSTM: {final:.3f}"),
        ):
            axes.axhline(level, color=color, linestyle="--", label=label)
        axes.set_title(
            f"LSTM on English text ({run.backend}, seed {run.seed})", loc="left"
        )
        axes.set_xlabel("Epochs")
        axes.set_ylabel("Bits per character (lower is better)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)


def write_samples(samples: dict[float, str], path: Path) -> None:
    """Writes the texts to a file, and prints them."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    for temperature, sample in samples.items():
        title = f"temperature {temperature:g}"
        Console().print(Panel(Text(sample), title=title, title_align="left"))
    path.write_text(
        "\n\n".join(f"# temperature {t:g}\n{text}" for t, text in samples.items())
        + "\n",
        encoding="utf-8",
    )


if __name__ == "__main__":
    import tyro

    tyro.cli(main)
