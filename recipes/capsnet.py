"""Recognizes turned digits, or lesions, by a capsule network and by a CNN.

You will learn: capsules and their routing (`kit/capsnet.py`), how to test a network on
images unlike those it was trained on, and how to compare two kinds of networks fairly:
as many parameters, the same images, the same training, and a second CNN with the same
convolutions.

    KERAS_BACKEND=jax python recipes/capsnet.py
    KERAS_BACKEND=torch python recipes/capsnet.py --routings 1 --ablation
    KERAS_BACKEND=jax python recipes/capsnet.py --dataset lesions --epochs 4 --ablation
    KERAS_BACKEND=tensorflow python recipes/capsnet.py --architecture paper --epochs 5

All models are trained on nearly upright, centred digits: turned by up to 11 degrees,
shifted by up to 2 pixels each way, slanted and warped a little, at random. They are
tested on the original test digits, and on transformed ones: turned by 15 to 40 degrees
and shifted by 3 to 5 pixels, which no model has ever seen.

Do capsules win? Accuracy in %, JAX, seed 0:

| | as they are | transformed | only turned | only shifted |
|---|---|---|---|---|
| capsules, 3 steps of routing | 99.3 | 78.8 | 89.6 | 95.5 |
| 2 steps | 99.2 | 80.4 | 89.6 | 95.9 |
| 1 step: no routing | 98.9 | 79.8 | 89.2 | 96.2 |
| CNN of as many parameters | 99.3 | 71.8 | 89.1 | 90.6 |
| the capsules' convolutions, averaged over places | 99.1 | 79.7 | 90.3 | 93.5 |

On PyTorch, seeds 0 to 2, the transformed digits: capsules 79.3, 79.6, 80.6; CNN 71.1,
72.0, 73.0; averaged convolutions 76.5, 79.1, 79.3.

Capsules beat the CNN, on shifted digits. The cause is not the routing, as one step does
as well, and hardly the capsules: their convolutions alone, averaged over all places, do
as well too. (The capsule network was chosen among six on held-out training digits; the
CNN wasn't tuned. With 5 x 5 filters and separate weights for each place, as in the
paper, it had been no better than a CNN on those: 67.9 against 68.1 %.) The
decoder draws little more than the mean of each class after so few steps, so poses.png
changes little.

`--dataset lesions` asks the same of medical images (`kit/data/phantoms.py`): crops of
drawn CT images with a lesion of one of four shapes, or none, in training upright and of
one size. With the options above (JAX, seed 0), capsules classify 98.6 % of the upright
crops correctly. If lesions are turned by 30 to 90 degrees and magnified or reduced by
1.4 to 1.8, it is 50.8 %. The CNN has 98.4 and 54.1 %, the averaged convolutions 99.4
and 50.7 %. Capsules don't help there.

Paper: Sabour, Frosst and Hinton, 2017, https://arxiv.org/abs/1710.09829. Differences:
more and smaller convolutions with batch normalization, so that it trains on a CPU;
weights that all places share; more augmentation than shifts, as there are few training
images; a decaying learning rate. To choose settings, compare them with
`--validation 0.25`, as was done for the convolutions.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from scipy.ndimage import affine_transform

import kit
from kit import checks
from kit.capsnet import CapsNet, capsnet
from kit.cnn import RandomAffine
from kit.data.phantoms import LESION_KINDS, lesion_crops
from kit.data.vision import Split, images
from kit.lab.run import Run, command_line

# Augmentation in training: up to 0.03 turns, and 7 % of 28 pixels in each axis.
TRAIN_DEGREES, TRAIN_PIXELS = 0.03 * 360, 0.07 * 28
# The transformed test digits lie beyond that, in any direction.
DEGREES, PIXELS = (15.0, 40.0), (3.0, 5.0)
# Lesions are turned and scaled when they are drawn. The augmentation adds to that.
TRAIN_LESIONS, TEST_LESIONS = 4_000, 1_000
UPRIGHT: Any = {"degrees": (0.0, 10.0), "scales": (1.0, 1.1)}
LESION_DEGREES, SCALES = (30.0, 90.0), (1.4, 1.8)
# Seeds of the crops: the same in each run, as the digits are.
TRAIN_SEED, TEST_SEED, VALIDATION_SEED = 0, 2**32 - 1, 2**32 - 2


def load_data(dataset: str, validation: float) -> Split:
    """Returns training and test images. Replace it to use your own data.

    Return uint8 arrays (N, height, width, channels), and their classes as integers
    that start at 0. With `validation`, a part of the training images is the test set.
    """
    if dataset == "lesions":
        seed = VALIDATION_SEED if validation else TEST_SEED
        train = lesion_crops(TRAIN_LESIONS, seed=TRAIN_SEED, **UPRIGHT)
        return Split(*train, *lesion_crops(TEST_LESIONS, seed=seed, **UPRIGHT))
    data = images(dataset)
    if not validation:
        return data
    x, y = data.x_train, data.y_train
    first = round(len(x) * (1.0 - validation))
    return Split(x[:first], y[:first], x[first:], y[first:])


class Change(NamedTuple):
    """How test images are changed, further than in training.

    Attributes:
        apply: Function of images and two ranges, of the angle in degrees and of the
            amount of the second change, to changed images.
        name: The second change: "shifted" or "scaled".
        degrees: Range of the angles of changed test images.
        amounts: Range of the amounts of the second change.
        none: The amount that leaves an image as it is.
        trained: The largest angle and amount in training.
        label: What the amount is, for the axis of a plot.
        angles: Angles to plot.
        sweep: Amounts to plot.
    """

    apply: Callable[[np.ndarray, tuple, tuple], np.ndarray]
    name: str
    degrees: tuple[float, float]
    amounts: tuple[float, float]
    none: float
    trained: tuple[float, float]
    label: str
    angles: np.ndarray
    sweep: np.ndarray


def change_of(dataset: str, validation: float, seed: int) -> Change:
    """Returns the changes of a set's test images."""
    if dataset == "lesions":
        crops_seed = VALIDATION_SEED if validation else TEST_SEED
        return Change(
            functools.partial(redraw, seed=crops_seed),
            "scaled",
            LESION_DEGREES,
            SCALES,
            1.0,
            (UPRIGHT["degrees"][1] + TRAIN_DEGREES, UPRIGHT["scales"][1] * 1.1),
            "Magnified or reduced by a factor",
            np.arange(0, 91, 15),
            np.arange(1.0, 2.01, 0.2),
        )
    return Change(
        functools.partial(transform, seed=seed),
        "shifted",
        DEGREES,
        PIXELS,
        0.0,
        (TRAIN_DEGREES, TRAIN_PIXELS),
        "Shift in pixels, either way",
        np.arange(0, 61, 10),
        np.arange(0, 9, 1),
    )


ACCEPTED = {
    **dict.fromkeys(("routings", "epochs", "batch_size"), checks.SIZE),
    "ablation": checks.SIZES,
    "learning_rate": checks.POSITIVE,
    "validation": checks.SHARE,
}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Capsule network",
    "place": 12,
    "score": "test_accuracy",
    "larger_is_better": True,
    "curve": "accuracy",
    "quick": "--epochs 1 --ablation",
    "published": [
        ("0.9975", "Sabour et al. 2017, 60,000 digits", {"dataset": "mnist"}),
    ],
}


def main(
    *,
    dataset: Literal["mnist_5k", "lesions", "mnist", "fashion_mnist"] = "mnist_5k",
    architecture: Literal["small", "paper"] = "small",
    routings: int = 3,
    reconstruction_weight: float = 0.0005,
    ablation: tuple[int, ...] = (1, 2),
    epochs: int = 15,
    batch_size: int = 64,
    learning_rate: float = 2e-3,
    validation: float = 0.0,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a capsule network and CNNs, and compares their accuracy.

    Args:
        dataset: "mnist_5k" needs no download: 4,000 training and 1,000 test digits.
            Nor does "lesions": 5,000 drawn crops of CT images with a lesion of one of
            four shapes, or none. Keras downloads the others.
        architecture: "paper" has the sizes of the paper, and takes hours on a CPU.
        routings: Steps of routing by agreement.
        reconstruction_weight: Weight of the decoder's summed squared error.
        ablation: Further numbers of routing steps; one more capsule network is trained
            for each. `--ablation` with nothing after it trains none.
        epochs: Passes over the training images.
        batch_size: Images in a gradient step.
        learning_rate: Step size of Adam at the start; it falls to 0 on a half cosine.
        validation: Share of the training images to hold out and to test on instead of
            the test images. With "lesions", any share tests on other crops. Use it to
            choose settings.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/capsnet-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "capsnet", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    checks.check("capsnet", run.config, ACCEPTED)
    data = load_data(dataset, validation)
    shape, num_classes = data.x_train.shape[1:], int(data.y_train.max()) + 1
    options: Any = {
        "epochs": epochs,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "verbose": verbose,
    }

    def train_capsnet(routings: int) -> tuple[CapsNet, keras.callbacks.History]:
        model = capsnet(
            shape,
            num_classes,
            architecture,
            routings,
            reconstruction_weight=reconstruction_weight,
            preprocessing=preprocessing(shape, seed),
        )
        backup = run.backup(f"capsnet-{routings}")
        return model, train(model, None, data, backup=backup, **options)

    model, history = train_capsnet(routings)
    model.save(run.output_dir / "model.keras")

    # The CNN to compare with: as many parameters, decoder included, the same images in
    # the same order. It may use what makes CNNs good: pooling, normalization, dropout.
    network = cnn_of_size(shape, num_classes, model.count_params())
    cnn = kit.Sequential(
        [keras.Input(shape), preprocessing(shape, seed), network], name="baseline"
    )
    train(
        cnn,
        "sparse_categorical_crossentropy",
        data,
        backup=run.backup("cnn"),
        **options,
    )
    # A second CNN separates the effect of the capsules from that of the convolutions.
    pooled = without_capsules(model, num_classes, seed)
    train(
        pooled,
        "sparse_categorical_crossentropy",
        data,
        backup=run.backup("pooled"),
        **options,
    )

    # Every model gets the same transformed images.
    change = change_of(dataset, validation, seed)
    upright, unchanged = (0.0, 0.0), (change.none, change.none)
    test = {
        "validation" if validation else "test": data.x_test,
        "transformed": change.apply(data.x_test, change.degrees, change.amounts),
        "rotated": change.apply(data.x_test, change.degrees, unchanged),
        change.name: change.apply(data.x_test, upright, change.amounts),
    }

    def scores(model: keras.Model, prefix: str = "") -> dict[str, float]:
        return {
            f"{prefix}{name}_accuracy": accuracy(model, x, data.y_test)
            for name, x in test.items()
        }

    metrics = {**scores(model), "parameters": model.count_params()}
    baselines = {**scores(cnn, "cnn_"), "cnn_parameters": cnn.count_params()}
    baselines |= scores(pooled, "pooled_cnn_")
    for number in ablation:
        if number != routings:
            ablated, _ = train_capsnet(number)
            baselines |= scores(ablated, f"routings_{number}_")

    names = (
        LESION_KINDS if dataset == "lesions" else tuple(map(str, range(num_classes)))
    )
    models = {"capsules": model, "CNN": cnn, "pooled CNN": pooled}
    draw_robustness(run, models, data, change)
    draw_reconstructions(run, model, data, test["transformed"], names)
    draw_poses(run, model, data, names)
    if dataset == "lesions":
        draw_lesions(run, models, data.y_test, test)
    return run.finish(
        history=history,
        metrics=metrics,
        baselines=baselines,
        throughput=(
            len(data.x_train) / np.median(history.history["seconds"]),
            "samples/s",
        ),
        compile_seconds=kit.compile_seconds(),
    )


def preprocessing(shape: tuple[int, ...], seed: int) -> kit.Sequential:
    """Returns layers that scale images to [0, 1], and augment them in training."""
    change = RandomAffine(
        rotation_factor=TRAIN_DEGREES / 360,
        translation_factor=TRAIN_PIXELS / 28,
        zoom_factor=0.1,
        shear_factor=0.1,
        elastic_stddev=1.0,
        seed=seed,
    )
    return kit.Sequential([keras.Input(shape), keras.layers.Rescaling(1 / 255), change])


def cnn_of_size(shape: tuple[int, ...], num_classes: int, size: int) -> kit.Sequential:
    """Returns a CNN of at least `size` parameters, and little more."""
    filters = 1
    while True:
        model = kit.cnn(
            shape,
            num_classes,
            filters=(filters, 2 * filters, 2 * filters),
            units=(2 * filters,),
            dropout=0.3,
            batch_normalization=True,
        )
        if model.count_params() >= size:
            return model
        # Parameters grow at most with the square of the filters: never overshoots.
        growth = (size / model.count_params()) ** 0.5
        filters = max(filters + 1, int(0.95 * filters * growth))


def without_capsules(model: CapsNet, num_classes: int, seed: int) -> kit.Sequential:
    """Returns a CNN with the capsule network's convolutions, without its capsules.

    The primary capsules' convolution is used as an ordinary one. Its output is averaged
    over all places, and a Dense layer classifies it.
    """
    capsules, primary = model.capsules, model.capsules.layers[-2]
    stem = keras.models.clone_model(keras.Model(capsules.input, primary.input))
    shape = capsules.input_shape[1:]
    return kit.Sequential(
        [
            keras.Input(shape),
            preprocessing(shape, seed),
            stem,
            keras.layers.Conv2D(
                primary.channels * primary.capsule_dim,
                primary.kernel_size,
                primary.strides,
                use_bias=False,
            ),
            keras.layers.BatchNormalization(momentum=0.9),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dropout(0.3),
            keras.layers.Dense(num_classes, activation="softmax"),
        ]
    )


def train(
    model: keras.Model,
    loss: str | None,
    data: Split,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    backup: kit.BackupAndRestore,
    verbose: int,
) -> keras.callbacks.History:
    """Trains a capsule network or a CNN, in the same way and from the same seed."""
    kit.set_random_seed(seed)  # the same order of the images for each model
    kit.initialize_weights(model, seed)
    steps = epochs * -(-len(data.x_train) // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(keras.optimizers.Adam(schedule), loss=loss, metrics=["accuracy"])
    return model.fit(
        data.x_train,
        data.y_train,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[kit.EpochTimer(), backup],
        verbose=verbose,
    )


def accuracy(model: keras.Model, x: np.ndarray, y: np.ndarray) -> float:
    """Returns the share of images whose class has the highest score."""
    return float(np.mean(classes_of(model, x) == y))


def classes_of(model: keras.Model, x: np.ndarray) -> np.ndarray:
    """Returns the classes with the highest scores."""
    scores = model.predict(x, batch_size=500, verbose=0)
    scores = scores["length"] if isinstance(scores, dict) else scores
    return scores.argmax(axis=1)


def transform(
    x: np.ndarray, degrees: tuple[float, float], pixels: tuple[float, float], seed: int
) -> np.ndarray:
    """Turns and shifts each image by random amounts in the given ranges.

    Args:
        x: Images (N, height, width, channels).
        degrees: Smallest and largest angle, to the left or to the right.
        pixels: Smallest and largest shift, in any direction.
        seed: Seed of the draws.

    Returns:
        Images of the same shape and dtype; uncovered pixels are zero.
    """
    rng = np.random.default_rng(seed)
    angles = np.radians(rng.uniform(*degrees, len(x)) * rng.choice([-1, 1], len(x)))
    shifts = rng.uniform(*pixels, len(x))
    directions = rng.uniform(0.0, 2.0 * np.pi, len(x))
    centre = (np.array(x.shape[1:3]) - 1) / 2
    changed = np.empty_like(x)
    for i, image in enumerate(x):
        cos, sin = np.cos(angles[i]), np.sin(angles[i])
        turn = np.array([[cos, sin], [-sin, cos]])
        shift = shifts[i] * np.array([np.sin(directions[i]), np.cos(directions[i])])
        for channel in range(x.shape[3]):
            affine_transform(
                image[..., channel],
                turn,
                centre - turn @ (centre + shift),
                output=changed[i, ..., channel],
                order=1,  # linear, like the augmentation of the training images
            )
    return changed


def redraw(x: np.ndarray, degrees: tuple, scales: tuple, seed: int) -> np.ndarray:
    """Returns the test crops of x with their lesions turned and scaled.

    The bodies around them stay as they are. To use pictures of your own, turn and scale
    them instead, as `transform` does.
    """
    return lesion_crops(len(x), seed=seed, degrees=degrees, scales=scales).images


def draw_robustness(
    run: Run, models: dict[str, keras.Model], data: Split, change: Change
) -> None:
    """Plots accuracy over both changes; the range seen in training is grey."""
    x, y = data.x_test[:500], data.y_test[:500]
    none, start = change.none, (0.0, change.none)
    panels: list[Any] = [
        (
            "Rotation in degrees, either way",
            change.angles,
            lambda a: ((a, a), (none,) * 2),
        ),
        (change.label, change.sweep, lambda s: ((0.0, 0.0), (s, s))),
    ]
    with run.figure("robustness.png", figsize=(8, 3.6)) as figure:
        grid = figure.subplots(1, 2, sharey=True)
        for axes, panel, low, high in zip(
            grid, panels, start, change.trained, strict=True
        ):
            label, amounts, ranges = panel
            changed = [change.apply(x, *ranges(amount)) for amount in amounts]
            axes.axvspan(low, high, color="0.9", label="shown in training")
            for name, model in models.items():
                shares = [100 * accuracy(model, z, y) for z in changed]
                axes.plot(amounts, shares, marker=".", label=name)
            axes.set_xlabel(label)
            axes.set_ylim(0, 101)
            axes.grid(alpha=0.3)
        figure.axes[0].set_ylabel("Accuracy in %")
        figure.axes[0].legend(loc="lower left")
        figure.suptitle(f"How far test images may be rotated and {change.name}")


def draw_lesions(
    run: Run,
    models: dict[str, keras.Model],
    y: np.ndarray,
    test: dict[str, np.ndarray],
    bodies: int = 3,
) -> None:
    """Draws the first test crops as they are changed, and the mistakes in them."""
    number = bodies * len(LESION_KINDS)
    title = "Below each lesion: models that mistake it (" + ", ".join(
        f"{name[0]} = {name}" for name in models
    )
    with run.figure("lesions.png", figsize=(0.72 * number, 4.6)) as figure:
        grid = figure.subplots(len(test), number, squeeze=False)
        for (name, x), line in zip(test.items(), grid, strict=True):
            wrong = {
                label: classes_of(model, x[:number]) != y[:number]
                for label, model in models.items()
            }
            for i, axes in enumerate(line):
                show(axes, x[i] / 255, "gray")
                letters = "".join(label[0] for label, w in wrong.items() if w[i])
                axes.set_xlabel(letters, color="#c03000", labelpad=2)
            line[0].set_ylabel(name)
        for axes, kind in zip(grid[0], y, strict=False):
            axes.set_title(LESION_KINDS[kind], fontsize=8)
        figure.suptitle(f"{title})", fontsize=10)


def draw_reconstructions(
    run: Run,
    model: CapsNet,
    data: Split,
    transformed: np.ndarray,
    names: tuple[str, ...],
) -> None:
    """Draws images, and the reconstructions from their longest capsules."""
    first = [int(np.argmax(data.y_test == c)) for c in np.unique(data.y_test)]
    rows: list[Any] = []
    for name, x in (("test", data.x_test[first]), ("transformed", transformed[first])):
        outputs = model.predict(x, verbose=0)
        drawn = keras.ops.convert_to_numpy(model.decode(outputs["capsules"]))
        rows += [(name, x / 255, data.y_test[first])]
        rows += [("decoded", drawn, outputs["length"].argmax(axis=1))]
    with run.figure("reconstructions.png", figsize=(8, 3.9)) as figure:
        grid = figure.subplots(len(rows), len(first), squeeze=False)
        for (name, row, classes), line in zip(rows, grid, strict=True):
            for image, number, true, axes in zip(
                row, classes, data.y_test[first], line, strict=True
            ):
                show(axes, image)
                if name == "decoded":
                    colour = "black" if number == true else "red"
                    axes.set_title(
                        f"as {names[number]}", fontsize=8, color=colour, pad=2
                    )
            line[0].set_ylabel(name)
        figure.suptitle("Images, and what the decoder draws of the longest capsule")


def draw_poses(run: Run, model: CapsNet, data: Split, names: tuple[str, ...]) -> None:
    """Draws reconstructions of an image as one number of its capsule changes."""
    klass = len(names) // 2
    image = data.x_test[np.argmax(data.y_test == klass)]
    v = model.predict(image[None], verbose=0)["capsules"]
    changes = np.linspace(-0.25, 0.25, 11)  # as in the paper
    dims = v.shape[2]
    swept = np.repeat(v, dims * len(changes), axis=0)
    for i, (dim, change) in enumerate(np.ndindex(dims, len(changes))):
        swept[i, klass, dim] += changes[change]
    y = np.full(len(swept), klass, "int32")
    drawn = keras.ops.convert_to_numpy(model.decode(swept, y))
    # Sorted: the numbers that change the image most come first.
    drawn = drawn.reshape(dims, len(changes), *image.shape)
    effects = np.abs(drawn[:, -1] - drawn[:, 0]).mean(axis=(1, 2, 3))
    with run.figure("poses.png", figsize=(7, 0.62 * dims + 0.8)) as figure:
        grid = figure.subplots(dims, len(changes), squeeze=False)
        for dim, line in zip(np.argsort(-effects), grid, strict=True):
            for axes, picture in zip(line, drawn[dim], strict=True):
                show(axes, picture)
            line[0].set_ylabel(str(dim), rotation=0, ha="right", va="center")
        for axes, change in zip(grid[0], changes, strict=True):
            axes.set_title(f"{change:+.2f}" if change else "0", fontsize=9)
        figure.supylabel("Number of the capsule, the most effective first")
        figure.suptitle(f"Class {names[klass]}: one number of its capsule changes")


def show(axes: Any, image: np.ndarray, colours: str = "gray_r") -> None:
    """Draws an image of values in [0, 1], without axes."""
    axes.imshow(image.squeeze(), cmap=colours, vmin=0, vmax=1)
    axes.set_xticks([])
    axes.set_yticks([])


if __name__ == "__main__":
    command_line(main)
