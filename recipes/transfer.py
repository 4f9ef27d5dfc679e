"""Classifies pictures with few labels, by a network pretrained on other pictures.

You will learn: how to pretrain a convolutional network (`kit/cnn.py`) on pictures that
need no labels, how to give it a new last layer, what to freeze, and why the pretrained
layers are trained with a small learning rate, if at all.

    KERAS_BACKEND=jax python recipes/transfer.py
    KERAS_BACKEND=torch python recipes/transfer.py --labels 5 50 --seeds 2
    KERAS_BACKEND=tensorflow python recipes/transfer.py --images my_pictures

The task: from which of six photographs was a patch of 32 x 32 pixels cut? The network
gets a few labelled patches from the left half of each photograph, and is tested on
patches from the right half. It was pretrained on patches of twelve other photographs,
with the same question, whose answers cost nothing. The ways:

- `scratch`: trained from random weights;
- `frozen`: the pretrained convolutions, which stay as they are, and a new last layer;
- `fine_tuned`: then all layers are trained, with a small learning rate.

All ways see the labelled patches in the same changed copies, by Keras' layers, and
`scratch` makes as many gradient steps as `fine_tuned`. The baseline is a support vector
machine on the patches' colours.

To use your own pictures, pass a folder with one folder for each class: `--images`. To
pretrain on your own pictures, too, see `load_pretraining`.

Expected result (JAX, seeds 0 to 4, test patches; mean, and of the gains over `scratch`
the 95 % interval in percentage points):

| labels | scratch | frozen | fine_tuned | svc   | frozen's gain | fine_tuned's |
|--------|---------|--------|------------|-------|---------------|--------------|
| 2      | 0.623   | 0.658  | 0.685      | 0.547 | -4.3 to 11.4  | 1.0 to 11.5  |
| 5      | 0.759   | 0.774  | 0.799      | 0.614 | -3.4 to 6.6   | 1.2 to 6.9   |
| 20     | 0.835   | 0.824  | 0.835      | 0.699 | -4.6 to 2.6   | -3.2 to 3.3  |

Pretraining helps where labels are fewest. A run pretrains one network and trains 45
classifiers, in twelve minutes on one core that does other work, too. The classes are
patches of the same six photographs, so this doesn't show what a network pretrained on
millions of photographs gains.

Papers: Yosinski et al., 2014, https://arxiv.org/abs/1411.1792 (which layers transfer);
Donahue et al., 2014, https://arxiv.org/abs/1310.1531 (frozen features).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

import kit
from kit import checks
from kit.data.photographs import photographs, read_images
from kit.data.vision import Split
from kit.lab.few_labels import (
    draw_labelled,
    mean_and_half_width,
    plot_by_labels,
    restarter,
)
from kit.lab.run import Run, command_line, history_rows

SIZE = 32  # height and width of a patch
ZOOMS = (1, 2, 3, 4)  # a patch shows up to 128 x 128 pixels of a photograph
WAYS = {
    "scratch": "from random weights",
    "frozen": "pretrained, only the last layer trained",
    "fine_tuned": "pretrained, then all layers trained",
    "svc": "support vector machine on colours",
}

# --- Data -------------------------------------------------------------------------


def load_pretraining(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns patches (N, 32, 32, 3), floats in [0, 1], and their photographs (N,).

    To pretrain on your own pictures, which need no labels, replace `photographs` by
    `read_images(folder, SIZE)`. Any other question whose answer is known works, too.
    """
    pictures = list(photographs("train").values())
    return cut_patches(pictures, number // len(pictures), seed)


def load_data(
    images: Path | None, number: int, validation: bool
) -> tuple[Split, list[str]]:
    """Returns the task's pictures, their classes, and the classes' names.

    Pictures are (N, 32, 32, 3), floats in [0, 1].

    Labelled pictures are drawn from `x_train`.
    """
    if images is not None:
        if validation:
            raise ValueError(
                "transfer: `validation` takes other photographs for the task; with "
                f"images={str(images)!r}, leave it out."
            )
        return load_folder(images)
    named = photographs("validation" if validation else "test")
    pictures = list(named.values())
    # Left and right halves: no pixel is in both.
    parts = [
        cut_patches([half(picture, part) for picture in pictures], number, part)
        for part in (0, 1)
    ]
    return Split(*parts[0], *parts[1]), list(named)


def half(picture: np.ndarray, part: int) -> np.ndarray:
    """Returns the left (0) or right (1) half of a picture."""
    middle = picture.shape[1] // 2
    return picture[:, middle:] if part else picture[:, :middle]


def cut_patches(
    pictures: list[np.ndarray], number: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cuts patches from random places of pictures (height, width, 3), uint8.

    A patch shows a square of 1 to 4 times its size, shrunk by means.

    Returns:
        `number` patches of each picture, floats in [0, 1], and the pictures' indices.
    """
    rng = np.random.default_rng(seed)
    x = np.empty((len(pictures) * number, SIZE, SIZE, 3), "float32")
    y = np.repeat(np.arange(len(pictures), dtype="int32"), number)
    for i, index in enumerate(y):
        picture = pictures[index]
        height, width = picture.shape[:2]
        zoom = rng.choice([z for z in ZOOMS if z * SIZE <= min(height, width)])
        side = zoom * SIZE
        top, left = rng.integers(height - side + 1), rng.integers(width - side + 1)
        square = picture[top : top + side, left : left + side] / np.float32(255)
        x[i] = square.reshape(SIZE, zoom, SIZE, zoom, 3).mean(axis=(1, 3))
    return x, y


def load_folder(folder: Path) -> tuple[Split, list[str]]:
    """Returns a folder's pictures, each third one for the test, and classes' names."""
    pictures = {Path(name): x for name, x in read_images(folder).items()}
    names = sorted({path.parts[0] for path in pictures if len(path.parts) > 1})
    if len(names) < 2 or len(names) < len({path.parts[0] for path in pictures}):
        raise ValueError(
            f"transfer: `images` must be a folder with one folder of pictures for each "
            f"of two or more classes, and no others; {str(folder)!r} has {names}."
        )
    sides = (SIZE, SIZE)
    x = np.stack(
        [
            keras.ops.convert_to_numpy(
                keras.ops.image.resize(
                    picture / np.float32(255),
                    sides,
                    antialias=True,
                    crop_to_aspect_ratio=True,
                )
            )
            for picture in pictures.values()
        ]
    )
    y = np.array([names.index(path.parts[0]) for path in pictures], "int32")
    # The number of a picture within its class.
    place = np.array([np.sum(y[:i] == y[i]) for i in range(len(y))])
    test = place % 3 == 2
    return Split(x[~test], y[~test], x[test], y[test]), names


def augmentation(seed: int) -> keras.Sequential:
    """Returns Keras' layers that change pictures, but not their class."""
    seeds = kit.random.split_seed(seed, 3)
    return keras.Sequential(
        [
            keras.layers.RandomFlip("horizontal", seed=seeds[0]),
            keras.layers.RandomTranslation(0.1, 0.1, seed=seeds[1]),
            keras.layers.RandomBrightness(0.1, value_range=(0, 1), seed=seeds[2]),
        ]
    )


def changed_copies(
    x: np.ndarray, y: np.ndarray, number: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Returns `number` changed copies of labelled pictures, and their classes."""
    rows = np.resize(np.arange(len(x)), number)
    copies = augmentation(seed)(x[rows], training=True)
    return keras.ops.convert_to_numpy(copies), y[rows]


# --- Networks ---------------------------------------------------------------------


def build_classifier(
    num_classes: int, filters: tuple[int, ...], frozen: bool = False
) -> kit.Sequential:
    """Builds convolutions, the `body`, and a last layer.

    With `frozen`, the body's weights stay as they are. Its batch normalization then
    uses the means and variances of the pretraining, also in training.
    """
    layers = kit.cnn(
        (SIZE, SIZE, 3),
        num_classes,
        filters=filters,
        units=(),
        padding="same",
        batch_normalization=True,
    ).layers
    body = kit.Sequential([keras.Input((SIZE, SIZE, 3)), *layers[:-1]], name="body")
    body.trainable = not frozen
    dropout = keras.layers.Dropout(0.3)
    return kit.Sequential([keras.Input((SIZE, SIZE, 3)), body, dropout, layers[-1]])


def compile_classifier(
    model: keras.Model, learning_rate: float, pictures: int, epochs: int, batch: int
) -> None:
    """Compiles a classifier; its learning rate falls to 0 on a half cosine."""
    steps = epochs * -(-pictures // batch)
    schedule = keras.optimizers.schedules.CosineDecay(learning_rate, steps)
    model.compile(
        keras.optimizers.Adam(schedule),
        loss="sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )


ACCEPTED = {
    "images": checks.PATH | None,
    **dict.fromkeys(("num_patches", "num_images"), checks.integer("[64, 10000000]")),
    **dict.fromkeys(("pretrain_epochs", "epochs", "seeds"), checks.SIZE),
    "fine_tuning_epochs": checks.SIZE,
    "filters": checks.sequence(checks.SIZE, least=1),
    **dict.fromkeys(
        ("learning_rate", "head_learning_rate", "fine_tuning_rate"), checks.POSITIVE
    ),
}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Transfer",
    "place": 27,
    "score": "frozen_test_accuracy",
    "larger_is_better": True,
    "curve": "accuracy",
    "curve_rows": {"training": "pretraining"},
    "quick": "--labels 5 --seeds 1 --num-patches 600 --pretrain-epochs 1 --epochs 1 "
    "--fine-tuning-epochs 1",
}


def main(
    *,
    images: Path | None = None,
    labels: tuple[int, ...] = (2, 5, 20),
    num_patches: int = 12_000,
    num_images: int = 1_600,
    filters: tuple[int, ...] = (16, 32, 64),
    pretrain_epochs: int = 8,
    learning_rate: float = 2e-3,
    epochs: int = 4,
    head_learning_rate: float = 5e-3,
    fine_tuning_epochs: int = 4,
    fine_tuning_rate: float = 3e-4,
    batch_size: int = 32,
    validation: bool = False,
    seed: int = 0,
    seeds: int = 5,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Pretrains a CNN, transfers it to a task with few labels, and compares the ways.

    Args:
        images: Folder of your own pictures, with one folder for each class. Each third
            picture is for the test.
        labels: Numbers of labelled pictures of each class. Of your own pictures, 20
            labels need 29 in each class.
        num_patches: Patches to pretrain on.
        num_images: Changed copies of the labelled pictures in an epoch.
        filters: Number of filters of each convolution.
        pretrain_epochs: Passes over the patches.
        learning_rate: Step size of Adam at the start, for pretraining and for
            `scratch`; it falls to 0 on a half cosine, as the others do.
        epochs: Passes over the copies for the last layer alone.
        head_learning_rate: Step size for the last layer alone.
        fine_tuning_epochs: Further passes for all layers.
        fine_tuning_rate: Step size for all layers.
        batch_size: Pictures in a gradient step.
        validation: Use three other photographs for the task, to choose settings.
        seed: Seed of all random draws.
        seeds: Number of repetitions, with this seed and the next ones; each draws other
            labelled pictures.
        output_dir: Folder for the results; runs/transfer-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 a line for each number of labels, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "transfer", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    checks.check("transfer", run.config, ACCEPTED)
    labels = tuple(sorted(labels))
    data, names = load_data(images, max(200, *labels), validation)
    num_classes = check_labels(data, run.config)
    options: Any = {"batch_size": batch_size, "verbose": 2 * (verbose == 2)}

    # 1. Pretraining: patches say by themselves which photograph they are from.
    x, y = load_pretraining(num_patches, seed)
    kit.set_random_seed(seed)  # the order of the patches
    pretrained = build_classifier(int(y.max()) + 1, filters)
    kit.initialize_weights(pretrained, seed)
    compile_classifier(pretrained, learning_rate, len(x), pretrain_epochs, batch_size)
    pretraining = pretrained.fit(
        *changed_copies(x, y, len(x), seed),
        epochs=pretrain_epochs,
        callbacks=[kit.EpochTimer(), run.backup("pretraining")],
        **options,
    )
    body = pretrained.get_layer("body")
    pretrained.save(run.output_dir / "pretrained.keras")
    history = history_rows(pretraining, training="pretraining")

    # 2. A classifier for each way, which is compiled once and starts anew each time.
    together = epochs + fine_tuning_epochs
    settings = {
        "scratch": (learning_rate, together),
        "frozen": (head_learning_rate, epochs),
        "fine_tuned": (fine_tuning_rate, fine_tuning_epochs),
    }
    models, restarts = {}, {}
    for way, (rate, passes) in settings.items():
        model = build_classifier(num_classes, filters, frozen=way == "frozen")
        compile_classifier(model, rate, num_images, passes, batch_size)
        models[way], restarts[way] = model, restarter(model, (model.optimizer,))

    # 3. Each seed draws labelled pictures.
    scores: dict[str, dict[int, list[float]]] = {
        way: {count: [] for count in labels} for way in WAYS
    }
    for draw in range(seed, seed + seeds):
        weights_seed, copies_seed = kit.random.split_seed(draw, 2)
        for count in labels:
            x, y = draw_labelled(data.x_train, data.y_train, count, draw)
            copies = changed_copies(x, y, num_images, copies_seed)
            for way, (_, passes) in settings.items():
                model = models[way]
                restarts[way](weights_seed)
                if way == "frozen":  # a new last layer on the pretrained body
                    model.get_layer("body").set_weights(body.get_weights())
                elif way == "fine_tuned":  # from where `frozen` has come
                    model.set_weights(models["frozen"].get_weights())
                logs = model.fit(
                    *copies,
                    epochs=passes,
                    callbacks=[
                        kit.EpochTimer(),
                        run.backup(f"{way}-{count}-{draw}"),
                    ],
                    **options,
                )
                row = {"training": way, "labels": count, "seed": draw}
                history += history_rows(logs, **row)
                found = model.evaluate(data.x_test, data.y_test, 500, verbose=0)
                scores[way][count].append(float(found[1]))
            scores["svc"][count].append(score_colours(x, y, data))
            line = ", ".join(f"{way} {x[count][-1]:.3f}" for way, x in scores.items())
            run.console.print(f"seed {draw}, {count} labels: {line}")
    models["fine_tuned"].save(run.output_dir / "model.keras")  # of the last draw
    # The model numbers the classes; their names are for those who use it.
    (run.output_dir / "classes.json").write_text(json.dumps(names), encoding="utf-8")

    # 4. The comparison.
    draw_comparison(run, scores, data, num_classes)
    prefix = "validation" if validation else "test"
    metrics, baselines = figures(scores, f"{prefix}_accuracy")
    seconds = np.median(pretraining.history["seconds"])
    return run.finish(
        history=history,
        metrics=metrics,
        baselines=baselines,
        throughput=(num_patches / seconds, "samples/s"),
        compile_seconds=kit.compile_seconds(),
    )


def check_labels(data: Split, given: Mapping[str, Any]) -> int:
    """Raises an error for numbers of labels that can't be drawn; returns classes."""
    counts = np.bincount(data.y_train)
    kinds = {
        "labels": checks.sequence(checks.integer(f"[1, {counts.min()}]"), least=1),
        "batch_size": checks.integer(f"[1, {given['num_images']}]"),
    }
    checks.check("transfer", given, kinds)
    least = len(counts) * max(given["labels"])  # each labelled picture once
    checks.check(
        "transfer", given, {"num_images": checks.integer(f"[{least}, 10000000]")}
    )
    return len(counts)


def score_colours(x: np.ndarray, y: np.ndarray, data: Split) -> float:
    """Returns the test accuracy of a support vector machine on the colours alone."""
    svc = make_pipeline(StandardScaler(), SVC(C=10.0))
    svc.fit(colours(x), y)
    return float(svc.score(colours(data.x_test), data.y_test))


def colours(x: np.ndarray) -> np.ndarray:
    """Returns each picture's histograms of red, green and blue, (N, 24)."""
    bins = np.clip((x * 8).astype(int), 0, 7)
    return np.concatenate(
        [(bins == b).mean(axis=(1, 2)) for b in range(8)], axis=-1, dtype="float32"
    )


def figures(scores: Mapping[str, Any], name: str) -> tuple[dict, dict]:
    """Returns metrics and baselines: means over the seeds, with intervals.

    Gains are differences to `scratch` on the same labelled pictures. The fewest labels
    have no number in their names.
    """
    metrics: dict[str, Any] = {}
    baselines: dict[str, Any] = {}

    def add(where: dict[str, Any], key: str, values: Any) -> None:
        where[key], half_width = mean_and_half_width(values)
        if len(values) > 2:  # of two, it would be wider than all possible values
            where[f"{key}_low"] = where[key] - half_width
            where[f"{key}_high"] = where[key] + half_width

    for i, count in enumerate(scores["scratch"]):
        end = f"_{count}" if i else ""
        found = {way: np.array(x[count]) for way, x in scores.items()}
        for way in ("frozen", "fine_tuned"):
            add(metrics, f"{way}_{name}{end}", found[way])
            add(metrics, f"{way}_gain{end}", found[way] - found["scratch"])
        for way in ("scratch", "svc"):
            add(baselines, f"{way}_{name}{end}", found[way])
    return metrics, baselines


# --- Pictures ---------------------------------------------------------------------


def draw_comparison(
    run: Run, scores: Mapping[str, Any], data: Split, num_classes: int
) -> None:
    """Plots accuracy over labels, beside labelled pictures and test pictures."""
    with run.figure("transfer.png", figsize=(11, 4.6)) as figure:
        left, right = figure.subfigures(1, 2, width_ratios=(1.5, 1))
        axes = left.subplots()
        plot_by_labels(axes, scores, WAYS)
        number = len(next(iter(scores["scratch"].values())))
        what = f"mean of {number} draws, 95 % intervals" if number > 1 else "one draw"
        axes.set_title(f"{what} ({run.backend}, seed {run.seed})", loc="left")
        rows = min(num_classes, 10)
        grid = right.subplots(rows, 8, squeeze=False)
        for (row, column), axes in np.ndenumerate(grid):
            x, y = (
                (data.x_train, data.y_train)
                if column < 4
                else (data.x_test, data.y_test)
            )
            places = np.flatnonzero(y == row)
            axes.axis("off")
            if column % 4 < len(places):
                axes.imshow(x[places[column % 4]])
        grid[0, 0].set_title("to draw labels from", loc="left", fontsize=8)
        grid[0, 4].set_title("test", loc="left", fontsize=8)


if __name__ == "__main__":
    command_line(main)
