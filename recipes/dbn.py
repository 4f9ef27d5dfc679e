r"""Pretrains a deep belief network without labels, then fine-tunes it with few labels.

You will learn: how restricted Boltzmann machines learn by contrastive divergence, each
on the output of the one below (`kit/dbn.py`), and what pretraining is for: images are
cheap, labels are not. The recipe compares a network that starts from the pretrained
stack with the same network that starts from random weights, at several numbers of
labels.

    KERAS_BACKEND=jax python recipes/dbn.py
    KERAS_BACKEND=torch python recipes/dbn.py --dataset nudged_digits --labels 50 200
    KERAS_BACKEND=tensorflow python recipes/dbn.py --units 1000 --no-persistent

Expected result: test accuracy in %, JAX, seed 0, in 100 seconds on two busy cores:

| labelled images | 100 | 500 | 4,000 |
|---|---|---|---|
| deep belief network, fine-tuned | 81.8 | 91.9 | 95.8 |
| the same network without pretraining | 73.6 | 86.9 | 92.6 |
| logistic regression on scikit-learn's RBM | 79.4 | 89.2 | 94.6 |
| logistic regression on pixels | 73.8 | 86.1 | 91.4 |

Pretraining gains most where labels are few. (scikit-learn's RBM has the same number of
units, learning rate and epochs as the first RBM here; it wasn't tuned separately.) The
generated images in samples.png contain too many sixes: Markov chains that run so long
stay where the model's probability is highest.

Every method gets the same labelled images. A fifth of them (a tenth if all images are
labelled) is the validation set: it stops the networks' training and chooses the
regularization of the logistic regressions. With few labels, chance matters, so each
figure is a mean over `repeats` draws of them; labels.png shows the spread. The RBMs see
all training images, but no label and no test image.

`nudged_digits` are 1,797 digits of 8x8 pixels and their copies moved by one pixel, as
in scikit-learn's example of BernoulliRBM, which reports 94 %. There, copies of one
digit are on both sides of the split; here the digits are split before they are moved,
which is harder. The label of a digit also holds for its copies, and counts once.

Paper: Hinton, Osindero and Teh, 2006, https://doi.org/10.1162/neco.2006.18.7.1527;
persistent chains: Tieleman, 2008, https://doi.org/10.1145/1390156.1390290.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.neural_network import BernoulliRBM
from threadpoolctl import threadpool_limits

import kit
from kit import checks
from kit.data.vision import images
from kit.dbn import DBN, RBM
from kit.lab.run import Run, command_line, history_rows

NAMES = {
    "dbn": "deep belief network, fine-tuned",
    "no_pretraining": "same network, no pretraining",
    "sklearn_rbm": "scikit-learn's RBM, logistic regression",
    "pixels": "pixels, logistic regression",
}
TITLES = {
    "filters.png": "Kernels of the first RBM (red: pixel on, blue: pixel off)",
    "samples.png": "Made up: 100 Gibbs steps in the last RBM, begun at training images",
}


class Data(NamedTuple):
    """Images as rows of numbers in [0, 1], `(N, pixels)`, and their classes, `(N,)`.

    `augment` adds changed copies to the training images.
    """

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    image_shape: tuple[int, ...]
    augment: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def load_data(dataset: str) -> Data:
    """Returns images by name. Replace it to use your own data."""
    if dataset == "nudged_digits":
        digits = load_digits()
        x, x_test, y, y_test = train_test_split(
            digits.data.astype("float32") / 16,
            digits.target.astype("int32"),
            test_size=0.2,
            random_state=0,
            stratify=digits.target,
        )
        return Data(x, y, *nudge(x_test, y_test), (8, 8), nudge)
    data = images(dataset)
    x, x_test = (
        x.reshape(len(x), -1).astype("float32") / 255
        for x in (data.x_train, data.x_test)
    )
    shape = data.x_train.shape[1:3]
    return Data(x, data.y_train, x_test, data.y_test, shape, lambda x, y: (x, y))


def nudge(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns 8x8 images, and copies moved down, up, right and left by one pixel."""
    padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    corners = [(1, 1), (0, 1), (2, 1), (1, 0), (1, 2)]
    copies = [padded[:, i : i + 8, j : j + 8].reshape(-1, 64) for i, j in corners]
    return np.concatenate(copies), np.tile(y, len(corners))


ACCEPTED = {
    "units": checks.sequence(checks.SIZE, least=1),
    **dict.fromkeys(("repeats", "rbm_epochs", "batch_size", "epochs"), checks.SIZE),
    "patience": checks.COUNT,
    "learning_rate": checks.POSITIVE,
}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Deep belief network",
    "place": 11,
    "score": "test_accuracy",
    "larger_is_better": True,
    "curve": "reconstruction_error",
    "curve_rows": {"rbm": "1"},
    "quick": "--dataset nudged_digits --labels 200 --repeats 1 --units 100 "
    "--rbm-epochs 10 --epochs 50",
    "published": [
        ("0.9875", "Hinton et al. 2006, 60,000 digits", {"dataset": "mnist"}),
        (
            "0.94",
            "scikit-learn's example, an easier split",
            {"dataset": "nudged_digits"},
        ),
    ],
}


def main(
    *,
    dataset: Literal[
        "mnist_5k", "nudged_digits", "mnist", "fashion_mnist"
    ] = "mnist_5k",
    labels: tuple[int, ...] = (100, 500),
    repeats: int = 5,
    units: tuple[int, ...] = (500, 500),
    k: int = 1,
    persistent: bool = True,
    rbm_epochs: int = 60,
    rbm_learning_rate: float = 0.05,
    momentum: float = 0.5,
    weight_decay: float = 2e-4,
    sparsity_target: float = 0.1,
    sparsity_cost: float = 0.0,
    batch_size: int = 50,
    epochs: int = 200,
    patience: int = 20,
    learning_rate: float = 1e-3,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Pretrains a deep belief network, and fine-tunes it at several numbers of labels.

    Args:
        dataset: "mnist_5k" and "nudged_digits" need no download; Keras downloads the
            others.
        labels: Numbers of labelled images. The run with all labels is always added.
        repeats: Random draws of the labelled images to average over.
        units: Hidden units of each RBM.
        k: Gibbs steps per update of an RBM.
        persistent: Use `batch_size` persistent chains (PCD) instead of CD.
        rbm_epochs: Passes over the images for each RBM.
        rbm_learning_rate: Step size of the RBMs.
        momentum: Momentum of the RBMs.
        weight_decay: Weight decay of the RBMs.
        sparsity_target: Share of the images for which a hidden unit should be on.
        sparsity_cost: Weight of the sparsity penalty; 0 turns it off.
        batch_size: Images per update, of RBMs and networks.
        epochs: Passes over the labelled images in fine-tuning, at most.
        patience: Epochs without a lower validation loss before training stops.
        learning_rate: Step size of Adam in fine-tuning.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/dbn-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bars of the RBMs and a line for each number of
            labels, 2 lines for each epoch of the RBMs.

    Returns:
        The contents of metrics.json.
    """
    run = Run("dbn", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    data = load_data(dataset)
    num_classes = int(data.y_train.max()) + 1
    check_arguments(data, num_classes, **run.config)

    # 1. Pretraining without labels, on all training images.
    x, _ = data.augment(data.x_train, data.y_train)
    rbms = [
        RBM(
            size,
            k=k,
            persistent=persistent,
            chains=batch_size,
            learning_rate=rbm_learning_rate,
            momentum=momentum,
            weight_decay=weight_decay,
            sparsity_target=sparsity_target,
            sparsity_cost=sparsity_cost,
        )
        for size in units
    ]
    dbn = DBN(rbms)
    dbn.build(x.shape)
    kit.initialize_weights(dbn, seed)
    histories = dbn.pretrain(
        x,
        epochs=rbm_epochs,
        batch_size=batch_size,
        callbacks=[kit.EpochTimer(), run.backup()],
        verbose=verbose,
    )
    dbn.save(run.output_dir / "dbn.keras")
    sklearn_rbm = BernoulliRBM(
        units[0],
        learning_rate=rbm_learning_rate,
        batch_size=batch_size,
        n_iter=rbm_epochs,
        random_state=seed,
    )
    with threadpool_limits(1):  # Its threads block each other on busy cores.
        sklearn_rbm.fit(x)

    # 2. Training with labels. One network, compiled once, restarts for each draw.
    network = dbn.to_classifier(num_classes)
    network.compile(
        keras.optimizers.Adam(learning_rate),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    network.optimizer.build(network.trainable_variables)
    optimizer_start: dict[str, Any] = {}
    network.optimizer.save_own_variables(optimizer_start)
    optimizer_start = {k: np.array(v) for k, v in optimizer_start.items()}

    def fine_tune(train: Any, valid: Any) -> float:
        network.optimizer.load_own_variables(optimizer_start)
        stop = keras.callbacks.EarlyStopping(
            patience=patience, restore_best_weights=True
        )
        x, y = train
        network.fit(
            x,
            y,
            batch_size=batch_size,
            epochs=epochs,
            validation_data=valid,
            validation_batch_size=len(valid[0]),
            callbacks=[stop],
            verbose=0,
        )
        return network.evaluate(data.x_test, data.y_test, 1000, verbose=0)[1]

    accuracy: dict[str, list[list[float]]] = {name: [] for name in NAMES}
    sizes = [*sorted(labels), len(data.y_train)]
    for size in sizes:
        scores: dict[str, list[float]] = {name: [] for name in NAMES}
        for draw, weights_seed in enumerate(kit.random.split_seed(seed, repeats)):
            train, valid = draw_labelled(data, size, seed=1000 * seed + draw)
            for name, features in (
                ("pixels", lambda x: x),
                ("sklearn_rbm", sklearn_rbm.transform),
            ):
                scores[name].append(score_logistic(features, train, valid, data))
            kit.initialize_weights(network, weights_seed)
            scores["no_pretraining"].append(fine_tune(train, valid))
            pretrained = dbn.to_classifier(num_classes, seed=weights_seed)
            network.set_weights(pretrained.get_weights())
            scores["dbn"].append(fine_tune(train, valid))
        for name, values in scores.items():
            accuracy[name].append(values)
        if verbose:
            row = ", ".join(f"{k} {np.mean(v):.4f}" for k, v in scores.items())
            print(f"{size} labels: {row}")
    network.save(run.output_dir / "model.keras")  # trained with all labels

    draw_curve(run, sizes, accuracy, dataset)
    draw_images(run, "filters.png", filters(rbms[0]), data.image_shape, "seismic", -1)
    fantasies = ops.convert_to_numpy(dbn.sample(50, steps=100, start=x[:50]))
    draw_images(run, "samples.png", fantasies, data.image_shape, "gray_r", 0)
    means = {  # no suffix for the run with all labels
        f"{name}_test_accuracy{'' if size == sizes[-1] else f'_{size}'}": np.mean(v)
        for i, size in reversed(list(enumerate(sizes)))
        for name, v in ((name, values[i]) for name, values in accuracy.items())
    }
    rows = [
        row
        for i, history in enumerate(histories, 1)
        for row in history_rows(history, rbm=i)
    ]
    return run.finish(
        history=rows,
        metrics={
            k.removeprefix("dbn_"): v for k, v in means.items() if k[:4] == "dbn_"
        },
        baselines={k: v for k, v in means.items() if k[:4] != "dbn_"},
        throughput=(len(x) / np.median(histories[0].history["seconds"]), "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def draw_labelled(data: Data, size: int, seed: int) -> tuple[Any, Any]:
    """Draws labelled images at random; returns training and validation (x, y)."""
    rows = np.arange(len(data.y_train))
    if size < len(rows):
        rows, _ = train_test_split(
            rows, train_size=size, random_state=seed, stratify=data.y_train
        )
    train, valid = train_test_split(
        rows,
        test_size=0.2 if size < len(data.y_train) else 0.1,
        random_state=seed,
        stratify=data.y_train[rows],
    )
    return (
        data.augment(data.x_train[train], data.y_train[train]),
        (data.x_train[valid], data.y_train[valid]),
    )


def score_logistic(features: Callable, train: Any, valid: Any, data: Data) -> float:
    """Returns the test accuracy of logistic regression with the best of three C."""
    (x, y), (x_valid, y_valid) = train, valid
    with threadpool_limits(1):
        models = [
            LogisticRegression(C=c, max_iter=1000, tol=1e-3).fit(features(x), y)
            for c in (0.1, 1.0, 10.0)
        ]
    best = max(models, key=lambda model: model.score(features(x_valid), y_valid))
    return float(best.score(features(data.x_test), data.y_test))


def filters(rbm: RBM, count: int = 100) -> np.ndarray:
    """Returns the `count` kernels of largest norm, scaled to [-1, 1]."""
    kernels = ops.convert_to_numpy(rbm.kernel).T
    order = np.argsort(-np.linalg.norm(kernels, axis=1))[:count]
    kernels = kernels[order]
    return kernels / np.abs(kernels).max(axis=1, keepdims=True)


def draw_images(
    run: Run, name: str, x: np.ndarray, shape: tuple[int, ...], cmap: str, low: int
) -> None:
    """Draws images in rows of ten."""
    rows = -(-len(x) // 10)
    with run.figure(name, figsize=(8, 0.8 * rows + 0.4)) as figure:
        for axes, image in zip(figure.subplots(rows, 10).flat, x, strict=False):
            axes.imshow(image.reshape(shape), cmap, vmin=low, vmax=1)
        for axes in figure.axes:
            axes.set_axis_off()
        figure.suptitle(TITLES[name], x=0.01, ha="left")


def draw_curve(run: Run, sizes: list[int], accuracy: dict, dataset: str) -> None:
    """Plots test accuracy over the number of labels, with its spread."""
    with run.figure("labels.png", figsize=(8, 4.5)) as figure:
        axes = figure.add_subplot()
        for name, label in NAMES.items():
            values = 100 * np.array(accuracy[name])  # (sizes, repeats)
            (line,) = axes.plot(sizes, values.mean(1), "o-", label=label)
            low, high = values.min(1), values.max(1)
            axes.fill_between(sizes, low, high, alpha=0.15, color=line.get_color())
        axes.set_xscale("log")
        axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axes.set_xticks([], minor=True)
        repeats = len(accuracy["dbn"][0])
        axes.set_title(
            f"{dataset}: mean, least and most of {repeats} draws "
            f"({run.backend}, seed {run.seed})",
            loc="left",
        )
        axes.set(xlabel="Labelled images", ylabel="Test accuracy (%)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6")
        axes.legend(frameon=False, loc="lower right")


def check_arguments(data: Data, num_classes: int, **given: Any) -> None:
    """Raises an error for arguments out of range, before anything is trained."""
    # The validation set, a fifth of the labels, needs an image of each class.
    least, most = 5 * num_classes, len(data.y_train) - num_classes
    labels = checks.sequence(checks.integer(f"[{least}, {most}]"))
    checks.check("dbn", given, ACCEPTED | {"labels": labels})


if __name__ == "__main__":
    command_line(main)
