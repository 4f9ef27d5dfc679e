"""Recognizes handwritten digits, by a convolutional network.

You will learn: how to build a convolutional network (`kit/cnn.py`), how few images it
needs when augmentation turns, shifts and warps them anew in each epoch, and how to look
at the mistakes that remain.

    KERAS_BACKEND=jax python recipes/cnn.py
    KERAS_BACKEND=torch python recipes/cnn.py --seed 3 --validation 0.2
    KERAS_BACKEND=tensorflow python recipes/cnn.py --dataset cifar10 \
        --filters 64 128 256 --units 256

Expected result: 98.9 to 99.5 % of the 1,000 test digits (seeds 0 to 2 on each backend)
from 4,000 training digits, in one to four minutes on two busy cores. A support vector
machine reaches 96.1 %.

Paper: LeCun et al., 1998, https://doi.org/10.1109/5.726791. Differences: ReLU, Adam,
dropout, batch normalization, and elastic warps of the images (Simard et al., 2003,
https://doi.org/10.1109/ICDAR.2003.1227801). To choose settings, compare them with
`--validation 0.25`. Only `padding` was chosen so; the others are common values.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.svm import SVC

import kit
from kit.cnn import RandomAffine
from kit.data.vision import Split, images
from kit.lab.run import Run, command_line

DIGITS = "0 1 2 3 4 5 6 7 8 9"
NAMES = {
    "mnist_5k": DIGITS,
    "mnist": DIGITS,
    "fashion_mnist": "t-shirt trousers pullover dress coat sandal shirt sneaker bag "
    "boot",
    "cifar10": "airplane car bird cat deer dog frog horse ship truck",
}


def load_data(dataset: str) -> tuple[Split, list[str]]:
    """Returns training and test images, and the names of the classes.

    To use your own data, return arrays (N, height, width, channels) of numbers from 0
    to 255, and their classes as integers that start at 0.
    """
    return images(dataset), NAMES[dataset].split()


def check_data(data: Split, names: list[str]) -> None:
    """Raises a ValueError if images or classes aren't as `load_data` says."""
    for part, x, y in (
        ("train", data.x_train, data.y_train),
        ("test", data.x_test, data.y_test),
    ):
        if x.ndim != 4 or not len(x) or x.shape[1:] != data.x_train.shape[1:]:
            raise ValueError(
                f"load_data: `x_{part}` must be images (N, height, width, channels) of "
                f"one size, received an array of shape {x.shape}."
            )
        low, high = x.min(), x.max()
        if not (low >= 0 and 1 < high <= 255):  # the model divides by 255
            raise ValueError(
                f"load_data: `x_{part}` must hold numbers from 0 to 255, received "
                f"numbers from {low} to {high}. Multiply images from 0 to 1 by 255."
            )
        if y.shape != x.shape[:1] or not set(np.unique(y)) <= set(range(len(names))):
            raise ValueError(
                f"load_data: `y_{part}` must hold a class from 0 to {len(names) - 1} "
                f"for each of {len(x)} images, as there are {len(names)} names; "
                f"received shape {y.shape}, classes {np.unique(y)[:20].tolist()}."
            )


def augmentation(dataset: str, seed: int) -> list[keras.layers.Layer]:
    """Returns layers that change images in training, but not their class.

    Digits are turned and warped; other pictures are mirrored and shifted. Use what
    leaves your pictures' class as it is: letters can't be mirrored.
    """
    if dataset not in ("mnist", "mnist_5k"):  # a mirror image has the same class
        return [
            keras.layers.RandomFlip("horizontal", seed=seed),
            RandomAffine(
                translation_factor=0.1, zoom_factor=0.1, fill_mode="nearest", seed=seed
            ),
        ]
    return [
        RandomAffine(
            rotation_factor=0.03,
            translation_factor=0.07,
            zoom_factor=0.1,
            shear_factor=0.1,
            elastic_stddev=1.0,
            seed=seed,
        )
    ]


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Convolutional network",
    "place": 2,
    "score": "test_accuracy",
    "larger_is_better": True,
    "curve": "accuracy",
    "quick": "--epochs 3 --svc-examples 1000",
    "published": [
        ("0.992", "Keras' example, 60,000 digits", {"dataset": "mnist"}),
    ],
}


def main(
    *,
    dataset: Literal["mnist_5k", "mnist", "fashion_mnist", "cifar10"] = "mnist_5k",
    filters: tuple[int, ...] = (32, 64, 64),
    units: tuple[int, ...] = (64,),
    padding: Literal["valid", "same"] = "valid",
    dropout: float = 0.3,
    batch_normalization: bool = True,
    augment: bool = True,
    epochs: int = 40,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    validation: float = 0.0,
    svc_examples: int = 5_000,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a CNN and evaluates it on images that it hasn't seen.

    Args:
        dataset: "mnist_5k" needs no download: 4,000 training and 1,000 test digits.
            Keras downloads the others.
        filters: Number of filters of each convolution.
        units: Sizes of the hidden Dense layers.
        padding: "same" pads each convolution's input, so that images keep their rim.
        dropout: Share of the inputs of each Dense layer to drop in training.
        batch_normalization: Normalize the outputs of the convolutions.
        augment: Change the images at random in training.
        epochs: Passes over the training images.
        batch_size: Images in a gradient step.
        learning_rate: Step size of Adam at the start; it falls to 0 on a half cosine.
        validation: Share of the training images to hold out for choosing settings;
            metrics.json then has `validation_accuracy`.
        svc_examples: Largest number of training images for the support vector machine,
            whose time grows with its square.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/cnn-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("cnn", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    for name, value in (("epochs", epochs), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1.")
    if svc_examples < 100:
        raise ValueError(
            f"svc_examples={svc_examples} must be at least 100: a few of each class."
        )
    if not 0.0 <= validation < 1.0:
        raise ValueError(f"validation={validation} must be in [0, 1).")
    data, names = load_data(dataset)
    check_data(data, names)
    x_train, y_train, x_test, y_test = data

    # The model takes raw images, so that a loaded model needs no preprocessing.
    shape = x_train.shape[1:]
    changes = augmentation(dataset, seed) if augment else []
    network = kit.cnn(
        shape,
        len(names),
        filters=filters,
        units=units,
        dropout=dropout,
        padding=padding,
        batch_normalization=batch_normalization,
    )
    scale = keras.layers.Rescaling(1 / 255)
    model = kit.Sequential([keras.Input(shape), scale, *changes, network])
    kit.initialize_weights(model, seed)
    num_train = math.floor(len(x_train) * (1.0 - validation))
    num_steps = epochs * math.ceil(num_train / batch_size)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
        ),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    history = model.fit(
        x_train,
        y_train,
        batch_size=batch_size,
        epochs=epochs,
        validation_split=validation,
        callbacks=[kit.EpochTimer(), run.backup()],
        verbose=verbose,
    )
    model.save(run.output_dir / "model.keras")
    # The model numbers the classes; their names are for those who use it.
    (run.output_dir / "classes.json").write_text(json.dumps(names), encoding="utf-8")

    probabilities = model.predict(x_test, batch_size=500, verbose=0)
    y_pred = probabilities.argmax(axis=1)
    metrics = {"test_accuracy": accuracy_score(y_test, y_pred)}
    if validation:
        metrics["validation_accuracy"] = history.history["val_accuracy"][-1]

    # The baseline doesn't know that these are images: each pixel is a feature.
    svc = SVC(C=10.0)  # RBF kernel; its width is set by the pixels' variance
    svc.fit(
        x_train[:svc_examples].reshape(-1, math.prod(shape)) / 255.0,
        y_train[:svc_examples],
    )
    svc_pred = svc.predict(x_test.reshape(len(x_test), -1) / 255.0)

    draw_confusion_matrix(run, y_test, y_pred, names)
    draw_mistakes(run, x_test, y_test, probabilities, names)
    if changes:
        draw_augmentation(run, x_train[:8], changes)
    return run.finish(
        history=history,
        metrics=metrics,
        baselines={"svc_test_accuracy": accuracy_score(y_test, svc_pred)},
        throughput=(num_train / np.median(history.history["seconds"]), "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def draw_confusion_matrix(
    run: Run, y_test: np.ndarray, y_pred: np.ndarray, names: list[str]
) -> None:
    """Plots the confusion matrix; mistakes are red."""
    counts = confusion_matrix(y_test, y_pred, labels=range(len(names)))
    mistakes = counts - np.diag(np.diag(counts))
    with run.figure("confusion_matrix.png", figsize=(6, 6)) as figure:
        axes = figure.subplots()
        axes.imshow(mistakes, cmap="Reds", vmin=0, vmax=max(5, 1.5 * mistakes.max()))
        for (row, column), count in np.ndenumerate(counts):
            weight = "bold" if row == column else "normal"
            if count:
                axes.text(column, row, count, ha="center", va="center", weight=weight)
        turn = 90 if max(map(len, names)) > 2 else 0
        axes.set_xticks(range(len(names)), names, rotation=turn)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("Predicted class")
        axes.set_ylabel("True class")
        share = np.trace(counts) / counts.sum()
        title = f"{mistakes.sum()} of {counts.sum():,} test images are mistaken"
        axes.set_title(f"{title}: accuracy {share:.1%}", loc="left")


def draw_mistakes(
    run: Run,
    x_test: np.ndarray,
    y_test: np.ndarray,
    probabilities: np.ndarray,
    names: list[str],
    number: int = 16,
) -> None:
    """Draws the mistakes with the highest predicted probability."""
    y_pred, confidence = probabilities.argmax(axis=1), probabilities.max(axis=1)
    wrong = np.flatnonzero(y_pred != y_test)
    worst = wrong[np.argsort(-confidence[wrong])][:number]
    rows = max(1, math.ceil(len(worst) / 4))
    with run.figure("mistakes.png", figsize=(7, 0.5 + 2.1 * rows)) as figure:
        figure.suptitle(f"{len(wrong)} mistakes: those it was surest of")
        for axes, i in zip(figure.subplots(rows, 4).flat, worst, strict=False):
            show(axes, x_test[i])
            axes.set_title(
                f"{names[y_test[i]]}, taken for {names[y_pred[i]]}\n"
                f"with {confidence[i]:.0%} confidence",
                fontsize="small",
            )
        for axes in figure.axes:
            axes.axis("off")


def draw_augmentation(
    run: Run, x: np.ndarray, changes: list[keras.layers.Layer]
) -> None:
    """Draws training images (left column) and augmented copies of them."""
    with run.figure("augmentation.png", figsize=(7, 8)) as figure:
        columns: list[Any] = [x]
        for _ in range(6):
            changed = x
            for change in changes:
                changed = change(changed, training=True)
            columns.append(keras.ops.convert_to_numpy(changed))
        grid = figure.subplots(len(x), len(columns))
        for (row, column), axes in np.ndenumerate(grid):
            show(axes, columns[column][row])
            axes.axis("off")
        grid[0, 0].set_title("original")
        grid[0, 1].set_title("changed", loc="left")


def show(axes: Any, image: np.ndarray) -> None:
    """Draws a grey or a coloured image."""
    axes.imshow(image.astype("uint8").squeeze(), cmap="gray_r", vmin=0, vmax=255)


if __name__ == "__main__":
    command_line(main)
