"""Language models: training, evaluation and plots.

A model from tokens (B, T) to logits (B, T, V) predicts the token after each one;
`kit.lstm` and `kit.gpt` build such models. The measure is bits per character on a text
that the model has never seen: the mean of -log2 of the probability that it gave to the
actual next character. If tokens are subwords, their bits are added up and divided by
the number of characters, so that models with different tokens can be compared. Shapes:
B batch, T time steps, V vocabulary.
"""

import math
import time
from collections.abc import Callable

import keras
import numpy as np
from keras import ops

from kit import checks, recurrent
from kit.backend import compiled, scan
from kit.backups import Values
from kit.callbacks import BackupAndRestore
from kit.data.corpus import Characters
from kit.data.subwords import Subwords
from kit.initialization import initialize_weights
from kit.lab.run import Run

ACCEPTED = {
    "vocabulary_size": checks.SIZE,
    "tokens": checks.array("T", "integers"),
    "valid": checks.array("V", "integers"),
    "length": checks.SIZE,
    "batch_size": checks.SIZE,
    "rng": checks.instance(np.random.Generator),
    "model": checks.MODEL,
    "measure": checks.FUNCTION,
    "epochs": checks.SIZE,
    "learning_rate": checks.POSITIVE,
    "optimizer": checks.one_of("adam", "muon"),
    "warmup_steps": checks.COUNT,
    "beta_2": checks.SHARE,
    "characters_per_token": checks.POSITIVE,
    "backup": checks.instance(BackupAndRestore) | None,
    "seed": checks.SEED,
    "verbose": checks.VERBOSE,
    "stride": checks.SIZE | None,
    "lanes": checks.SIZE,
    "warm_up": checks.COUNT,
    "vocabulary": checks.instance(Characters, Subwords),
    # check
    "sequence_length": checks.SIZE,
    "sample_length": checks.SIZE,
    "prompt": checks.TEXT,
    "dropout": checks.SHARE,
    "temperatures": checks.sequence(checks.WEIGHT),
}


def windows(
    tokens: np.ndarray, length: int, batch_size: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts a text into windows (N, T), and returns them with their next tokens.

    The first window starts at a random place, so that each epoch has other windows. N
    fills whole batches: always the same number, so that one program suffices.

    Args:
        tokens: The text, integers.
        length: T.
        batch_size: B; N is a multiple of it.
        rng: Generator of the random start.

    Returns:
        Windows, and the windows shifted by one token.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the text doesn't fill one batch.
    """
    checks.check("windows", locals(), ACCEPTED)
    count = ((len(tokens) - 1) // length - 1) // batch_size * batch_size
    if count < 1:
        raise ValueError(
            f"`tokens`, the text, has {len(tokens)} tokens to train on, fewer than "
            f"the {length * (batch_size + 1) + 1} of one batch: "
            f"sequence_length={length}, batch_size={batch_size}."
        )
    start = rng.integers(length)
    x = tokens[start : start + count * length].reshape(-1, length)
    y = tokens[start + 1 : start + 1 + count * length].reshape(-1, length)
    return x, y


def check(vocabulary_size: int, **config) -> None:
    """Raises an error for arguments that would otherwise fail after training.

    Args:
        vocabulary_size: V.
        **config: Arguments of a recipe that trains a language model and samples text.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.
    """
    checks.check("check", {"vocabulary_size": vocabulary_size}, ACCEPTED)
    top_k = {"top_k": checks.integer(f"[1, {vocabulary_size}]")}
    checks.check("", config, {**ACCEPTED, **top_k})
    if not config.get("prompt", " "):
        raise ValueError("`prompt` must hold one character at least, received ''.")


def initialize_recurrent(model: keras.Sequential, seed: int) -> None:
    """Initializes a recurrent language model, with larger embeddings than Keras'.

    Keras initializes embeddings within 0.05 of zero, where an LSTM hardly
    distinguishes characters; a factor of ten saves hundreds of steps.

    Args:
        model: Model whose first layer is an embedding.
        seed: Seed of the weights.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `seed` is out of its range.
    """
    checks.check("initialize_recurrent", locals(), ACCEPTED)
    initialize_weights(model, seed)
    (embeddings,) = model.layers[0].get_weights()
    model.layers[0].set_weights([10 * embeddings])


def fit(
    model: keras.Model,
    tokens: np.ndarray,
    valid: np.ndarray,
    measure: Callable[[np.ndarray], float],
    *,
    length: int,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    optimizer: str = "adam",
    warmup_steps: int = 0,
    beta_2: float = 0.999,
    characters_per_token: float = 1.0,
    seed: int = 0,
    backup: BackupAndRestore | None = None,
    verbose: int = 1,
) -> list[dict[str, float]]:
    """Trains a language model, and keeps the weights of the best epoch.

    The learning rate falls on a half cosine to a hundredth. For Adam, gradients are
    clipped to norm 1, as they sometimes explode. Muon has no use for that: whatever a
    gradient's norm, its steps have the same one.

    Args:
        model: Model from `(B, T)` integers to `(B, T, V)` logits.
        tokens: Text to train on.
        valid: Validation text, which determines the best epoch.
        measure: Function that returns the bits per character of a text.
        length: Tokens in a window; gradients reach that far.
        batch_size: Windows in a gradient step.
        epochs: Passes over the text.
        learning_rate: Largest step size.
        optimizer: `"adam"`, or `"muon"` (Jordan et al., 2024,
            https://kellerjordan.github.io/posts/muon/): the step of a matrix of weights
            is orthogonal, so that it moves all directions equally far, also those in
            which gradients are small. Embeddings, biases and the last layer have Adam,
            with half the step size. Defaults to `"adam"`.
        warmup_steps: Gradient steps in which the step size rises from a hundredth to
            `learning_rate`. Defaults to 0.
        beta_2: Adam's second decay rate, in [0, 1).
        characters_per_token: Mean over `tokens`, which the history's numbers need.
            Defaults to 1: tokens are characters.
        seed: Seed of the windows' starts.
        backup: Callback that backs up the training. Defaults to `None`.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        A row for each epoch: `epoch`, `bits_per_char` in training,
        `characters_per_second`, `val_bits_per_char`.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If the text doesn't fill one batch.
    """
    checks.check("fit", locals(), ACCEPTED)
    rng = np.random.default_rng(seed)
    first = rng.bit_generator.state
    x, y = windows(tokens, length, batch_size, rng)
    steps = epochs * len(x) // batch_size
    warmup_steps = min(warmup_steps, steps - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate / 100 if warmup_steps else learning_rate,
        decay_steps=steps - warmup_steps,
        alpha=0.01,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    update: keras.optimizers.Optimizer
    if optimizer == "adam":
        update = keras.optimizers.Adam(schedule, beta_2=beta_2, clipnorm=1.0)
    else:
        update = keras.optimizers.Muon(
            schedule,
            adam_beta_2=beta_2,
            adam_lr_ratio=0.5,
            weight_decay=None,
            adam_weight_decay=None,
            exclude_layers=[f"(^|/){model.layers[-1].name}/"],
        )
    model.compile(
        optimizer=update,
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    callbacks = [] if backup is None else [backup]
    best = model.get_weights()
    at = Values(epoch=0, history=[], best_weights=best, windows_drawn_from=first)
    if backup is not None:
        backup.keep(loop=at)
    while at.epoch < epochs:
        start = time.perf_counter()
        rng.bit_generator.state = at.windows_drawn_from
        x, y = windows(tokens, length, batch_size, rng)
        nats = model.fit(
            x,
            y,
            batch_size,
            initial_epoch=at.epoch,
            epochs=at.epoch + 1,
            verbose=verbose,
            callbacks=callbacks,
        ).history["loss"][0]
        row = {
            "epoch": at.epoch + 1,
            "bits_per_char": nats / math.log(2) / characters_per_token,
            "characters_per_second": characters_per_token
            * x.size
            / (time.perf_counter() - start),
            "val_bits_per_char": measure(valid),
        }
        if verbose:
            print(f"{row['val_bits_per_char']:.3f} bits per character on new text")
        at.history.append(row)
        if row["val_bits_per_char"] == min(r["val_bits_per_char"] for r in at.history):
            at.best_weights = model.get_weights()
        at.windows_drawn_from = rng.bit_generator.state
        at.epoch += 1
    model.set_weights(at.best_weights)
    return at.history


def per_character(
    measure: Callable[[np.ndarray], float], vocabulary: Characters | Subwords
) -> Callable[[np.ndarray], float]:
    """Returns a function that measures a text in bits per character.

    Args:
        measure: Function that returns the bits per token of a text.
        vocabulary: Vocabulary that made the text's tokens.

    Raises:
        TypeError: If an argument has the wrong type.
    """
    checks.check("per_character", locals(), ACCEPTED)

    def bits_per_char(tokens):
        return measure(tokens) * len(tokens) / len(vocabulary.decode(tokens))

    return bits_per_char


def make_bits_by_windows(
    model: keras.Model, length: int, stride: int | None = None, batch_size: int = 64
) -> Callable[[np.ndarray], float]:
    """Returns a function that measures a model on a text, window by window.

    The function returns bits per token. Windows begin `stride` tokens apart, and only
    the last `stride` tokens of each count. So, except at the text's beginning, each
    prediction is based on at least `length - stride` tokens.

    Args:
        model: Model from `(B, T)` integers to `(B, T, V)` logits.
        length: T, the longest window that the model can read.
        stride: From 1 to T. Smaller values are slower, and fairer to a model that sees
            nothing before its window. Defaults to half of T.
        batch_size: Windows at once. Defaults to 64.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If `stride` is out of its range.
    """
    checks.check("make_bits_by_windows", locals(), ACCEPTED)
    stride = max(1, length // 2) if stride is None else stride
    range_ = {"stride": checks.integer(f"[1, {length}]")}
    checks.check("make_bits_by_windows", locals(), range_)

    @compiled
    def total_nats(inputs, targets, weights):  # (B, T) each
        loss = keras.losses.sparse_categorical_crossentropy(
            targets, model(inputs, training=False), from_logits=True
        )
        return ops.sum(weights * loss)

    def bits_per_token(tokens):
        tokens = np.asarray(tokens, "int32")
        count = math.ceil(len(tokens) / stride)
        count = math.ceil(count / batch_size) * batch_size
        # Padding before and after the text doesn't count.
        padded = np.zeros(1 + length + count * stride, "int32")
        first = 1 + length - stride
        padded[first : first + len(tokens)] = tokens
        places = stride * np.arange(count)[:, None] + np.arange(length)
        text = places + 1 - first  # of the targets
        last = np.arange(length) >= length - stride
        weights = (last & (text >= 0) & (text < len(tokens))).astype("float32")
        nats = sum(
            float(
                total_nats(padded[rows], padded[rows + 1], weights[i : i + len(rows)])
            )
            for i in range(0, count, batch_size)
            for rows in [places[i : i + batch_size]]
        )
        return nats / math.log(2) / len(tokens)

    return bits_per_token


def make_bits_by_steps(
    model: keras.Sequential, lanes: int = 64, warm_up: int = 256
) -> Callable[[np.ndarray], float]:
    """Returns a function that measures a recurrent model on a text.

    The function returns bits per token. The state is carried along the text. To be
    faster, the text is divided into lanes that are read in parallel; each lane begins
    `warm_up` tokens early, to have a state at the beginning of its own part.
    """
    checks.check("make_bits_by_steps", locals(), ACCEPTED)

    @compiled
    def total_nats(inputs, targets, weights):  # (T, lanes) each
        def read(state, slices):
            token, target, weight = slices
            logits, state = recurrent.step(model, token, state)
            loss = keras.losses.sparse_categorical_crossentropy(
                target, logits, from_logits=True
            )
            return state, ops.sum(weight * loss)

        state = recurrent.initial_state(model, inputs.shape[1])
        _, nats = scan(read, state, (inputs, targets, weights))
        return ops.sum(nats)

    def bits_per_token(tokens):
        per_lane = math.ceil(len(tokens) / lanes)
        # Padding before and after the text doesn't count.
        padded = np.zeros(warm_up + 1 + lanes * per_lane, "int32")
        padded[warm_up + 1 : warm_up + 1 + len(tokens)] = tokens
        time_steps = np.arange(warm_up + per_lane)[:, None]
        places = time_steps + per_lane * np.arange(lanes)  # (T, lanes)
        counts = (time_steps >= warm_up) & (places < warm_up + len(tokens))
        nats = total_nats(padded[places], padded[places + 1], counts.astype("float32"))
        return float(nats) / math.log(2) / len(tokens)

    return bits_per_token


def plot(
    run: Run, history: list[dict[str, float]], name: str, levels: dict[str, float]
) -> None:
    """Plots bits per character over epochs, and levels to compare them with.

    Args:
        run: The run, in whose folder learning_curve.png is saved.
        history: The result of `fit`.
        name: Name of the model, for the title.
        levels: Bits per character on the test text by name, the model's own first.
    """
    epochs = [row["epoch"] for row in history]
    with run.figure("learning_curve.png", figsize=(8, 4.5)) as figure:
        axes = figure.subplots()
        for key, color, label in (
            ("bits_per_char", "#9ec5e8", "training text, with dropout"),
            ("val_bits_per_char", "#14508c", "validation text"),
        ):
            axes.plot(epochs, [row[key] for row in history], color=color, label=label)
        colors = ("#b4470e", "#666666", "#3c8d5a")
        for (label, level), color in zip(levels.items(), colors, strict=False):
            label = f"test text, {label}: {level:.3f}"
            axes.axhline(level, color=color, linestyle="--", label=label)
        title = f"{name} on English text ({run.backend}, seed {run.seed})"
        axes.set_title(title, loc="left")
        axes.set_xlabel("Epochs")
        axes.set_ylabel("Bits per character (lower is better)")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
