"""Trains a classifier with few labels, with augmentation by layers and by a GAN.

You will learn: what augmentation brings where labels are few, how to compare ways to do
it fairly, and whether a GAN (`kit/gan.py`) that is trained on the same few images makes
others that help a classifier (`kit/cnn.py`).

    KERAS_BACKEND=jax python recipes/augment.py
    KERAS_BACKEND=torch python recipes/augment.py --labels 10 200 --seeds 2
    KERAS_BACKEND=tensorflow python recipes/augment.py --shrink 1 --gan-epochs 40

The classifier gets 20, 50 or 100 labelled digits of each class. The ways:

- `none`: these images alone;
- `classical`: changed copies of them, by Keras' RandomRotation, RandomTranslation and
  RandomZoom;
- `gan`: half of the images are samples of a conditional GAN, which was trained on the
  few labelled images and saw no others;
- `both`: changed copies, half of them copies of the GAN's samples.

Each way makes as many training images of the same labels, and each classifier makes as
many steps from the same initial weights. Each seed draws other labelled images.

Expected result (JAX, seeds 0 to 2, test digits; mean, and of the gains the 95 %
interval in percentage points):

| labels a class | none  | classical | gan   | both  | gain of gan    | gain of both   |
|----------------|-------|-----------|-------|-------|----------------|----------------|
| 20             | 0.908 | 0.932     | 0.901 | 0.927 | -4.3 to 2.9    | -0.8 to -0.3   |
| 50             | 0.936 | 0.949     | 0.928 | 0.941 | -2.6 to 1.1    | -3.0 to 1.6    |
| 100            | 0.954 | 0.956     | 0.943 | 0.949 | -2.2 to 0.0    | -2.0 to 0.6    |

`gan` is compared with `none`, `both` with `classical`: on average, the GAN's samples
harm everywhere, by up to one point, though they are digits of the right class (93 %)
and hardly ever copies. Classical changes gain 2.4 points with 20 labels. Digits are
simple, and these changes fit them well; images of which no one knows such changes are
another question. A run trains nine GANs and 37 classifiers, in 15 minutes on one busy
core.

Papers: Antoniou et al., 2017, https://arxiv.org/abs/1711.04340 (augmentation by GAN);
Mirza and Osindero, 2014, https://arxiv.org/abs/1411.1784 (conditional GAN).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np

import kit
from kit import checks
from kit.data.vision import Split, images
from kit.gan import GAN, conv_discriminator, conv_generator
from kit.lab.few_labels import (
    draw_labelled,
    mean_and_half_width,
    plot_by_labels,
    restarter,
)
from kit.lab.gan_metrics import nearest_neighbours
from kit.lab.run import Run, command_line, history_rows

WAYS = {
    "none": "no augmentation",
    "classical": "Keras' layers",
    "gan": "GAN's samples",
    "both": "both",
}
HELD_OUT = 0.25  # share of the training images that `validation` tests on
SAMPLE_ROWS = 3  # in the picture


def load_data(dataset: str, shrink: int, validation: bool) -> Split:
    """Returns training and test images of floats in [0, 1], and their classes.

    Replace it to use your own data. Classes are integers that start at 0. Labelled
    images are drawn from the training images. With `validation`, test on others of
    them, to choose settings.
    """
    data = images(dataset)
    x_train, x_test = (
        shrink_images(x.astype("float32") / 255, shrink)
        for x in (data.x_train, data.x_test)
    )
    if not validation:
        return Split(x_train, data.y_train, x_test, data.y_test)
    first = round(len(x_train) * (1.0 - HELD_OUT))
    y = data.y_train
    return Split(x_train[:first], y[:first], x_train[first:], y[first:])


def shrink_images(x: np.ndarray, factor: int) -> np.ndarray:
    """Returns images (N, H, W, C) whose pixels are the means of squares of pixels."""
    number, height, width, channels = x.shape
    if height % (2 * factor) or width % (2 * factor):
        raise ValueError(
            f"augment: `shrink` must divide half of the images' height and width, "
            f"{height} and {width}, received {factor}."
        )
    squares = (number, height // factor, factor, width // factor, factor, channels)
    return x.reshape(squares).mean(axis=(2, 4))


def augmentation(seed: int) -> keras.Sequential:
    """Returns Keras' layers that change images, but not their class.

    Digits may be turned a little, but not mirrored. Use what fits your images.
    """
    seeds = kit.random.split_seed(seed, 3)
    options: Any = {"fill_mode": "constant", "fill_value": 0.0}
    return keras.Sequential(
        [
            keras.layers.RandomRotation(0.04, seed=seeds[0], **options),
            keras.layers.RandomTranslation(0.1, 0.1, seed=seeds[1], **options),
            keras.layers.RandomZoom(0.15, seed=seeds[2], **options),
        ]
    )


ACCEPTED = {
    **dict.fromkeys(("shrink", "epochs", "gan_epochs", "seeds"), checks.SIZE),
    **dict.fromkeys(("learning_rate", "gan_learning_rate"), checks.POSITIVE),
    "sample_share": checks.real("(0, 1)"),
    "latent_dim": checks.SIZE,
    "generator_filters": checks.sequence(checks.SIZE, length=2),
}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Augmentation by GAN",
    "place": 26,
    "score": "both_test_accuracy",
    "larger_is_better": True,
    "curve": "accuracy",
    "curve_rows": {"way": "both"},
    "quick": "--labels 20 --seeds 1 --epochs 2 --gan-epochs 2",
}


def main(
    *,
    dataset: Literal["mnist_5k", "mnist", "fashion_mnist"] = "mnist_5k",
    shrink: int = 2,
    labels: tuple[int, ...] = (20, 50, 100),
    num_images: int = 4_000,
    sample_share: float = 0.5,
    filters: tuple[int, ...] = (16, 32, 32),
    units: tuple[int, ...] = (64,),
    epochs: int = 8,
    learning_rate: float = 2e-3,
    latent_dim: int = 32,
    generator_filters: tuple[int, ...] = (32, 16),
    discriminator_filters: tuple[int, ...] = (16, 32),
    gan_epochs: int = 20,
    gan_learning_rate: float = 1e-3,
    batch_size: int = 80,
    validation: bool = False,
    seed: int = 0,
    seeds: int = 3,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains classifiers with few labels, and compares ways of augmentation.

    Args:
        dataset: "mnist_5k" needs no download: 4,000 training and 1,000 test digits.
            Keras downloads the others.
        shrink: Factor by which the images' height and width are reduced.
        labels: Numbers of labelled images of each class.
        num_images: Training images that each way makes of the labelled ones.
        sample_share: Share of the GAN's samples in them, for `gan` and `both`.
        filters: Number of filters of each convolution of the classifier.
        units: Sizes of the classifier's hidden Dense layers.
        epochs: Passes of a classifier over `num_images`.
        learning_rate: Step size of the classifier's Adam at the start; it falls to 0 on
            a half cosine.
        latent_dim: Random numbers for a sample of the GAN.
        generator_filters: Channels at half and at full size.
        discriminator_filters: Filters of each convolution of the discriminator.
        gan_epochs: Passes of a GAN over `num_images`, copies of the labelled images.
        gan_learning_rate: Step size of both Adam optimizers of the GAN.
        batch_size: Images in a gradient step.
        validation: Test on a quarter of the training images, of which no label is used
            for training. Use it to choose settings.
        seed: Seed of all random draws.
        seeds: Number of repetitions, with this seed and the next ones; each draws other
            labelled images.
        output_dir: Folder for the results; runs/augment-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 a line for each number of labels, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "augment", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    checks.check("augment", run.config, ACCEPTED)
    data = load_data(dataset, shrink, validation)
    num_classes, labels = int(data.y_train.max()) + 1, tuple(sorted(labels))
    check_sizes(data, num_classes, run.config)
    shape = data.x_train.shape[1:]

    # 1. Networks that are compiled once, and start anew for each training.
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate, epochs * -(-num_images // batch_size)
    )
    classifier = kit.cnn(
        shape,
        num_classes,
        filters=filters,
        units=units,
        dropout=0.3,
        padding="same",
        batch_normalization=True,
    )
    classifier.compile(
        keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    gan = GAN(
        conv_generator(shape, latent_dim, generator_filters, num_classes),
        conv_discriminator(shape, discriminator_filters, num_classes),
        num_classes,
    )
    gan.compile(
        keras.optimizers.Adam(
            gan_learning_rate, beta_1=0.5, beta_2=0.99, use_ema=True, ema_momentum=0.99
        ),
        keras.optimizers.Adam(gan_learning_rate, beta_1=0.5, beta_2=0.99),
    )
    restart_gan = restarter(gan, (gan.generator_optimizer, gan.discriminator_optimizer))
    restart_classifier = restarter(classifier, (classifier.optimizer,))
    options: Any = {"batch_size": batch_size, "verbose": 2 * (verbose == 2)}
    history: list[dict[str, Any]] = []

    def train_classifier(
        name: str, x: Any, y: Any, weights_seed: int, **row: Any
    ) -> float:
        """Returns the test accuracy; adds rows to the history."""
        restart_classifier(weights_seed)
        logs = classifier.fit(
            x,
            y,
            epochs=epochs,
            callbacks=[kit.EpochTimer(), run.backup(name)],
            **options,
        )
        history.extend(history_rows(logs, **row))
        score = classifier.evaluate(data.x_test, data.y_test, 500, verbose=0)[1]
        history[-1]["test_accuracy"] = float(score)
        return float(score)

    # 2. What as many real labels would give. This classifier judges the samples.
    every = np.resize(np.arange(len(data.x_train)), num_images)
    full = train_classifier(
        "all", data.x_train[every], data.y_train[every], seed, way="all", seed=seed
    )
    judge = keras.models.clone_model(classifier)
    judge.set_weights(classifier.get_weights())

    # 3. Each seed draws labelled images, trains a GAN on them, and four classifiers.
    scores: dict[str, dict[int, list[float]]] = {
        name: {count: [] for count in labels}
        for name in (*WAYS, "asked_digit", "copied")
    }
    sheets: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    num_samples = round(sample_share * num_images)
    for draw in range(seed, seed + seeds):
        weights_seed, gan_seed, data_seed = kit.random.split_seed(draw, 3)
        for count in labels:
            x, y = draw_labelled(data.x_train, data.y_train, count, draw)
            rows = np.resize(np.arange(len(x)), num_images)
            restart_gan(gan_seed)
            gan.fit(
                2.0 * x[rows] - 1.0,
                y[rows],
                epochs=gan_epochs,
                callbacks=[run.backup(f"gan-{count}-{draw}")],
                **options,
            )
            asked = np.arange(num_samples, dtype="int32") % num_classes
            samples = (gan.sample(num_samples, asked, data_seed) + 1.0) / 2.0
            sets = training_sets(x, y, samples, asked, num_images, data_seed)
            for way, (x_way, y_way) in sets.items():
                name = f"{way}-{count}-{draw}"
                row = {"way": way, "labels": count, "seed": draw}
                score = train_classifier(name, x_way, y_way, weights_seed, **row)
                scores[way][count].append(score)
                if (way, count, draw) == ("both", labels[-1], seed):
                    gan.save(run.output_dir / "gan.keras")
                    classifier.save(run.output_dir / "model.keras")
            found = judge.predict(samples, batch_size=500, verbose=0).argmax(axis=1)
            scores["asked_digit"][count].append(float(np.mean(found == asked)))
            scores["copied"][count].append(copied_share(samples, x, data.x_test))
            line = ", ".join(f"{way} {scores[way][count][-1]:.3f}" for way in WAYS)
            run.console.print(f"seed {draw}, {count} labels a class: {line}")
            sheets.setdefault(count, (x, samples))

    # 4. The comparison.
    draw_comparison(run, {way: scores[way] for way in WAYS}, full, sheets, num_classes)
    prefix = "validation" if validation else "test"
    metrics, baselines = figures(scores, f"{prefix}_accuracy")
    baselines[f"all_labels_{prefix}_accuracy"] = full
    seconds = [row["seconds"] for row in history]
    return run.finish(
        history=history,
        metrics=metrics,
        baselines=baselines,
        throughput=(num_images / np.median(seconds), "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def check_sizes(data: Split, num_classes: int, given: Mapping[str, Any]) -> None:
    """Raises an error for numbers that don't fit the data, before any training."""
    most = int(np.bincount(data.y_train, minlength=num_classes).min())
    kinds = {"labels": checks.sequence(checks.integer(f"[2, {most}]"), least=1)}
    checks.check("augment", given, kinds)
    # Half of the images hold each labelled one at least once.
    least = 2 * num_classes * max(given["labels"])
    kinds = {"num_images": checks.integer(f"[{least}, 1000000]")}
    checks.check("augment", given, kinds)
    most = given["num_images"]
    checks.check("augment", given, {"batch_size": checks.integer(f"[1, {most}]")})


def training_sets(
    x: np.ndarray,
    y: np.ndarray,
    samples: np.ndarray,
    asked: np.ndarray,
    num_images: int,
    seed: int,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns `num_images` images, and their classes, for each way.

    Args:
        x: The labelled images.
        y: Their classes.
        samples: The GAN's samples.
        asked: The classes that the GAN was asked for.
        num_images: Images to make; each labelled one is among them.
        seed: Seed of the changes.
    """
    rows = np.resize(np.arange(len(x)), num_images)
    copies, classes = x[rows], y[rows]
    everything = np.concatenate([copies, samples])
    changed = keras.ops.convert_to_numpy(augmentation(seed)(everything, training=True))
    changed, changed_samples = changed[:num_images], changed[num_images:]
    changed[: len(x)] = x
    real = num_images - len(samples)
    mixed = np.concatenate([classes[:real], asked])
    return {
        "none": (copies, classes),
        "classical": (changed, classes),
        "gan": (np.concatenate([copies[:real], samples]), mixed),
        "both": (np.concatenate([changed[:real], changed_samples]), mixed),
    }


def copied_share(samples: np.ndarray, x: np.ndarray, unseen: np.ndarray) -> float:
    """Returns the share of samples that are closer to a training image than usual.

    Usual is what holds for 99 % of real images that weren't trained on.
    """
    distances, _ = nearest_neighbours(samples, x)
    usual, _ = nearest_neighbours(unseen, x)
    return float(np.mean(distances < np.quantile(usual, 0.01)))


# --- The comparison -------------------------------------------------------------------


def figures(scores: Mapping[str, Any], name: str) -> tuple[dict, dict]:
    """Returns metrics and baselines: means over the seeds, with intervals.

    Gains are differences on the same labelled images: of `gan` over `none`, of `both`
    over `classical`. The fewest labels have no number in their names.
    """
    metrics: dict[str, Any] = {}
    baselines: dict[str, Any] = {}

    def add(where: dict[str, Any], key: str, values: Any) -> None:
        where[key], half = mean_and_half_width(values)
        if len(values) > 1:
            where |= {f"{key}_low": where[key] - half, f"{key}_high": where[key] + half}

    for i, count in enumerate(scores["none"]):
        end = f"_{count}" if i else ""
        found = {key: np.array(x[count]) for key, x in scores.items()}
        for way in ("both", "gan"):
            add(metrics, f"{way}_{name}{end}", found[way])
        add(metrics, f"gan_gain{end}", found["gan"] - found["none"])
        add(metrics, f"both_gain{end}", found["both"] - found["classical"])
        for key in ("asked_digit", "copied"):
            metrics[f"{key}_share{end}"] = np.mean(found[key])
        for way in ("classical", "none"):
            add(baselines, f"{way}_{name}{end}", found[way])
    return metrics, baselines


def draw_comparison(
    run: Run,
    scores: Mapping[str, Mapping[int, list[float]]],
    full: float,
    sheets: Mapping[int, tuple[np.ndarray, np.ndarray]],
    num_classes: int,
) -> None:
    """Plots accuracy over labels, beside labelled images and the GAN's samples."""
    with run.figure("augmentation.png", figsize=(11, 5)) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.15, 1))
        axes = left.subplots()
        plot_by_labels(axes, scores, WAYS)
        axes.axhline(100 * full, color="#666666", linestyle="--", linewidth=1)
        counts, num_seeds = list(sheets), len(next(iter(scores["none"].values())))
        axes.annotate(
            "all labels", (counts[0], 100 * full), (0, 3), textcoords="offset points"
        )
        what = (
            f"Ways to augment: mean of {num_seeds} seeds, 95 % intervals"
            if num_seeds > 1
            else "one seed"
        )
        axes.set_title(f"{what} ({run.backend}, seed {run.seed})", loc="left")
        grid = right.subplots(len(counts), 1, squeeze=False)[:, 0]
        for axes, (count, (x, samples)) in zip(grid, sheets.items(), strict=True):
            rows = np.concatenate(
                [x[:num_classes], samples[: SAMPLE_ROWS * num_classes]]
            )
            axes.imshow(tile(rows, num_classes), cmap="gray_r", vmin=0, vmax=1)
            axes.axhline(x.shape[1] - 0.5, color="#d55e00")
            axes.set(xticks=[], yticks=[])
            axes.set_title(
                f"{count} labels a class: labelled images above, GAN's samples below",
                loc="left",
                fontsize=8,
            )


def tile(x: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images (N, H, W, C) in rows of `columns`."""
    _, height, width, channels = x.shape
    x = x.reshape(-1, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    return x.reshape(-1, columns * width, channels).squeeze()


if __name__ == "__main__":
    command_line(main)
