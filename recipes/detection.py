"""Finds handwritten digits in photographs: where they are, how large, and which.

You will learn: an anchor-free detector, which sees objects as points
(`kit/detection.py`), how detectors are scored (mean average precision), and what a
detector saves, compared with a classifier that looks at windows of all sizes.

    KERAS_BACKEND=jax python recipes/detection.py
    KERAS_BACKEND=torch python recipes/detection.py --seed 3 --validation 0.25
    KERAS_BACKEND=tensorflow python recipes/detection.py --stride 2 --epochs 20
    KERAS_BACKEND=jax python recipes/detection.py --objects faces

Each canvas is a crop of a photograph with up to five MNIST digits of different sizes on
it, which may overlap a little. Test digits and the test strips of the photographs don't
occur in training. The baseline is the same data's other solution: a CNN as in
`recipes/cnn.py` learns to tell ten digits and background apart in square crops, slides
over the canvas at several scales, and non-maximum suppression keeps the best of its
overlapping windows.

Expected result on 300 new canvases: mAP at .5 of 0.957, 0.956 and 0.963 (JAX, seeds 0
to 2), 0.963 (TensorFlow, seed 0) and 0.959 (PyTorch, seed 0); the sliding window
reaches 0.783 to 0.812. mAP at .5:.95 is 0.740 to 0.751, that of the sliding window
0.303 to 0.315. It takes five minutes on JAX and one core. All backgrounds are strips of
two photographs, so this doesn't show that the detector copes with others. Of faces, a
hundred real ones pasted beside other patches, the detector has an mAP at .5 of 0.955,
the sliding window 0.890 (JAX, seed 0).

Paper: Zhou, Wang and Krähenbühl, 2019, https://arxiv.org/abs/1904.07850. Differences:
a small network, trained from random weights on small images; Adam's rate falls on a
half cosine; nothing is averaged over mirrored copies. Settings were chosen with
`--validation` and the seeds 10 and 11.
"""

import contextlib
import io
import math
import time
from pathlib import Path
from typing import Any, Literal, NamedTuple

import keras
import numpy as np
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from skimage.data import lfw_subset
from sklearn.datasets import load_sample_images

import kit
from kit import checks
from kit.cnn import RandomAffine
from kit.data.photographs import photographs
from kit.data.vision import images
from kit.lab.run import COLORS, Run, command_line

NAMES = {"digits": list("0123456789"), "faces": ["face"]}
# Canvases: objects are 14 to 28 pixels long; the boxes of two of them may share up to
# 15 % of the smaller one.
LENGTHS, MAX_SHARED = (14, 28), 0.15
TEST_SEED = 2019  # the same test canvases in each run
TEST_FACES = 30  # of a hundred
# The sliding window: a square, this much longer than the digit in it.
MARGIN = 1.25
WINDOWS = (18, 21, 25, 30, 35)  # pixels in a side
WINDOW_STEP = 0.2  # of the side

ACCEPTED = {
    **dict.fromkeys(("train_canvases", "test_canvases", "max_objects"), checks.SIZE),
    **dict.fromkeys(("epochs", "batch_size", "window_epochs"), checks.SIZE),
    "canvas_size": checks.integer(f"[{2 * LENGTHS[0]}, 2**31)"),
    "learning_rate": checks.POSITIVE,
    "validation": checks.SHARE,
}


# Patches (n, height, width), their classes (n,), and grey photographs.
Part = tuple[np.ndarray, np.ndarray, list[np.ndarray]]


class Canvases(NamedTuple):
    """Images with their objects.

    Attributes:
        images: (N, height, width, 1), uint8.
        boxes: (N, M, 4), (x_min, y_min, x_max, y_max) in pixels, float32.
        labels: (N, M), classes from 0; -1 for rows without an object.
    """

    images: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def load_data(
    train_canvases: int,
    test_canvases: int,
    size: int,
    max_objects: int,
    validation: float,
    seed: int,
    objects: str = "digits",
) -> tuple[Canvases, Canvases, list[str]]:
    """Returns training and test canvases, and the names of the classes.

    To use your own data, return your images, boxes and labels as two `Canvases`, and
    the names of your classes. All images must have one size, with sides that are
    multiples of 2 to the power of the number of `filters`.

    With `validation`, the test canvases are made of this share of the training digits
    or faces, and of half of the training photographs.
    """
    if objects == "digits":
        train_parts, test_parts = digit_parts(validation)
        # Training digits are turned, slanted and warped; test digits are as they are.
        change = RandomAffine(
            rotation_factor=0.03, shear_factor=0.1, elastic_stddev=1.0, seed=seed
        )
    else:
        train_parts, test_parts = face_parts(validation)
        change = RandomAffine(
            rotation_factor=0.03, shear_factor=0.1, fill_mode="nearest", seed=seed
        )
    options: Any = {"opaque": objects == "faces"}
    rng = np.random.default_rng(seed)
    train = draw_canvases(
        train_canvases, *train_parts, size, max_objects, rng, change, **options
    )
    rng = np.random.default_rng(TEST_SEED)
    test = draw_canvases(test_canvases, *test_parts, size, max_objects, rng, **options)
    return train, test, NAMES[objects]


def digit_parts(validation: float) -> tuple[Part, Part]:
    """Returns digits, their classes, and photographs: to train on, and to test on."""
    digits = images()
    x_train, y_train = digits.x_train, digits.y_train
    x_test, y_test = digits.x_test, digits.y_test
    # Four vertical strips of each photograph: train, test, train, test.
    photos = [np.asarray(Image.fromarray(p).convert("L")) for p in _photographs()]
    strips = [np.array_split(photo, 4, axis=1) for photo in photos]
    train_photos = [strip for photo in strips for strip in photo[0::2]]
    test_photos = [strip for photo in strips for strip in photo[1::2]]
    if validation:
        first = round(len(x_train) * (1.0 - validation))
        x_train, x_test = x_train[:first], x_train[first:]
        y_train, y_test = y_train[:first], y_train[first:]
        train_photos, test_photos = train_photos[0::2], train_photos[1::2]
    return (x_train[..., 0], y_train, train_photos), (
        x_test[..., 0],
        y_test,
        test_photos,
    )


def face_parts(validation: float) -> tuple[Part, Part]:
    """Returns patches, their classes, and photographs: to train on, and to test on.

    Half of the patches are faces, of class 0. The others show something else; they get
    no box (class -1), so that being pasted doesn't give a face away. In training, there
    is a mirror image of each.
    """
    faces, others = np.split((255 * lfw_subset()).round().astype("uint8"), 2)
    order = np.random.default_rng(0).permutation(len(faces))
    train, test = order[:-TEST_FACES], order[-TEST_FACES:]
    # Two photographs have faces themselves.
    photos = {
        part: [
            np.asarray(Image.fromarray(photo).convert("L"))
            for name, photo in photographs(part).items()
            if name not in ("astronaut", "camera")
        ]
        for part in ("train", "test")
    }
    if validation:
        first = round(len(train) * (1.0 - validation))
        if not 0 < first < len(train):
            raise ValueError(
                f"detection: `validation` must leave faces to train on and to test on, "
                f"of {len(train)}; received {validation}."
            )
        train, test = train[:first], train[first:]
        photos = {"train": photos["train"][0::2], "test": photos["train"][1::2]}
    pasted, shown = (
        np.concatenate([faces[rows], others[rows]]) for rows in (train, test)
    )
    pasted = np.concatenate([pasted, pasted[:, :, ::-1]])
    classes = np.repeat(np.array([0, -1], "int32"), len(train))
    return (
        (pasted, np.tile(classes, 2), photos["train"]),
        (shown, np.repeat(np.array([0, -1], "int32"), len(test)), photos["test"]),
    )


def _photographs() -> list[np.ndarray]:
    return load_sample_images().images  # a temple and a flower


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Object detection",
    "place": 21,
    "score": "test_map_50",
    "larger_is_better": True,
    "curve": "loss",
    "quick": "--train-canvases 300 --test-canvases 20 --epochs 2 --window-epochs 1",
}


def main(
    *,
    objects: Literal["digits", "faces"] = "digits",
    train_canvases: int = 16_000,
    test_canvases: int = 300,
    canvas_size: int = 64,
    max_objects: int = 5,
    filters: tuple[int, ...] = (16, 32, 64, 128),
    stride: int = 4,
    min_overlap: float = 0.7,
    epochs: int = 4,
    batch_size: int = 32,
    learning_rate: float = 3e-3,
    window_epochs: int = 2,
    validation: float = 0.0,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a detector and a sliding window, and compares them on new canvases.

    Args:
        objects: What to find. "faces" are a hundred of Labeled Faces in the Wild, 25
            pixels large, which scikit-image brings along; patches without a face are
            pasted beside them.
        train_canvases: Number of training canvases.
        test_canvases: Number of test canvases.
        canvas_size: Pixels in a canvas' side, a multiple of 2 to the power of the
            number of `filters`.
        max_objects: Largest number of digits or patches on a canvas.
        filters: Number of filters on each grid of the detector; each grid has half the
            side of the one before.
        stride: Pixels in a side of the heat map's cells.
        min_overlap: Width of the heat map's bumps; smaller is wider.
        epochs: Passes over the training canvases.
        batch_size: Canvases in a gradient step.
        learning_rate: Step size of Adam at the start; it falls to 0 on a half cosine.
        window_epochs: Passes of the sliding window's CNN over the training crops.
        validation: Share of the training digits or faces to hold out, with half of the
            photographs, and to test on instead of the test data. Use it to choose
            settings.
        seed: Seed of all random draws, except for the test canvases.
        output_dir: Folder for the results; runs/detection-<backend>-<seed> if not
            given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run(
        "detection", seed=seed, output_dir=output_dir, resume=resume, config=locals()
    )
    checks.check("detection", run.config, ACCEPTED)
    train, test, names = load_data(
        train_canvases,
        test_canvases,
        canvas_size,
        max_objects,
        validation,
        seed,
        objects,
    )
    model = kit.detector(
        train.images.shape[1:],
        len(names),
        filters=filters,
        stride=stride,
        min_overlap=min_overlap,
        preprocessing=keras.layers.Rescaling(1 / 255),
    )
    kit.initialize_weights(model, seed)
    num_steps = epochs * math.ceil(len(train.images) / batch_size)
    model.compile(
        keras.optimizers.Adam(
            keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
        )
    )
    history = model.fit(
        train.images,
        {"boxes": train.boxes, "labels": train.labels},
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[kit.EpochTimer(), run.backup("detector")],
        verbose=verbose,
    )
    model.save(run.output_dir / "model.keras")
    model.detect(test.images)  # compiles
    found, milliseconds = timed(model.detect, test.images)

    window = train_window(
        train, len(names), window_epochs, seed, run.backup("window"), verbose
    )
    shapes = mean_shapes(train, len(names))
    slide_window(window, shapes, test.images[:1])  # compiles
    window_found, window_milliseconds = timed(
        lambda x: slide_window(window, shapes, x), test.images
    )

    name = "validation" if validation else "test"
    draw_learning_curve(run, history)
    draw_detections(run, test, found, names)
    draw_heatmaps(run, model, test)
    return run.finish(
        history=history,
        metrics={
            **score(test, found, len(names), f"{name}_"),
            "milliseconds": milliseconds,
            "parameters": model.count_params(),
        },
        baselines={
            **score(test, window_found, len(names), f"window_{name}_"),
            "window_milliseconds": window_milliseconds,
            "window_parameters": window.count_params(),
        },
        throughput=(
            len(train.images) / np.median(history.history["seconds"]),
            "samples/s",
        ),
        compile_seconds=kit.compile_seconds(),
    )


# --- Canvases -----------------------------------------------------------------------


def draw_canvases(
    number: int,
    patches: np.ndarray,
    labels: np.ndarray,
    photos: list[np.ndarray],
    size: int,
    max_objects: int,
    rng: np.random.Generator,
    change: RandomAffine | None = None,
    opaque: bool = False,
) -> Canvases:
    """Puts digits, or other patches, on crops of photographs.

    Args:
        number: N, canvases to draw.
        patches: Images (n, height, width) of white digits on black, uint8.
        labels: Their classes (n,); -1 for patches without an object.
        photos: Grey photographs (height, width), uint8.
        size: Pixels in a canvas' side.
        max_objects: M, largest number of patches on a canvas.
        rng: Generator of all draws, except for those of `change`.
        change: Layer that changes the patches at random. Defaults to `None`.
        opaque: Whether patches are pictures, of which ellipses are pasted, instead of
            digits on a transparent ground. Defaults to `False`.

    Returns:
        The canvases. A box encloses its digit's ink, or its ellipse.
    """
    chosen = rng.integers(0, len(patches), (number, max_objects))
    ink = patches[chosen].reshape(-1, *patches.shape[1:], 1)
    if change is not None:
        parts = np.array_split(ink, math.ceil(len(ink) / 1000))
        parts = [keras.ops.convert_to_numpy(change(x, training=True)) for x in parts]
        ink = np.concatenate(parts).round().astype("uint8")
    ink = ink.reshape(number, max_objects, *patches.shape[1:])

    canvases = np.zeros((number, size, size, 1), "uint8")
    boxes = np.zeros((number, max_objects, 4), "float32")
    classes = np.full((number, max_objects), -1, "int32")
    for i in range(number):
        canvas = (1.0 if opaque else 0.5) * background(photos, size, rng)
        taken = np.zeros((0, 4), "float32")
        for j in range(rng.integers(1, max_objects + 1)):
            length = rng.uniform(*LENGTHS)
            picture, mask = (
                ellipse(ink[i, j], length)
                if opaque
                else (None, resized(ink[i, j], length))
            )
            box = free_place(mask.shape, taken, size, rng)
            if box is None:
                continue
            taken = np.concatenate([taken, box[None]])
            x, y = box[:2].astype(int)
            area = canvas[y : y + mask.shape[0], x : x + mask.shape[1]]
            ink_value = rng.uniform(200, 255) if picture is None else picture
            area += (ink_value - area) * mask
            if labels[chosen[i, j]] >= 0:
                boxes[i, j], classes[i, j] = box, labels[chosen[i, j]]
        canvases[i, ..., 0] = canvas
    return Canvases(canvases, boxes, classes)


def background(photos: list[np.ndarray], size: int, rng: np.random.Generator) -> Any:
    """Returns a crop of a photograph, scaled to (size, size) and perhaps mirrored."""
    photo = photos[rng.integers(len(photos))]
    side = min(*photo.shape, round(size * rng.uniform(1.0, 2.0)))
    y, x = (rng.integers(0, length - side + 1) for length in photo.shape)
    crop = Image.fromarray(photo[y : y + side, x : x + side])
    crop = crop.resize((size, size), Image.Resampling.BILINEAR)
    pixels = np.asarray(crop, "float64")
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def resized(digit: np.ndarray, length: float) -> np.ndarray:
    """Scales a digit's longer side to `length`; returns its ink in [0, 1], trimmed."""

    def trimmed(x):
        rows, columns = np.flatnonzero(x.max(1) > 50), np.flatnonzero(x.max(0) > 50)
        return x[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]

    digit = trimmed(digit)
    scale = length / max(digit.shape)
    height, width = (max(1, round(scale * n)) for n in digit.shape)
    image = Image.fromarray(digit).resize((width, height), Image.Resampling.BILINEAR)
    return trimmed(np.asarray(image)) / 255.0


def ellipse(patch: np.ndarray, length: float) -> tuple[np.ndarray, np.ndarray]:
    """Scales a square patch to `length`; returns it, and the mask of an ellipse in it.

    The mask (length, 0.8 length) is 1 inside and falls to 0 at the rim.
    """
    height, width = round(length), round(0.8 * length)
    scaled = Image.fromarray(patch).resize((height, height), Image.Resampling.BILINEAR)
    left = (height - width) // 2
    y, x = (np.linspace(-1.0, 1.0, n) for n in (height, width))
    radius = np.hypot(y[:, None], x[None])
    return np.asarray(scaled, "float64")[:, left : left + width], np.clip(
        (1.0 - radius) / 0.15, 0.0, 1.0
    )


def free_place(
    shape: tuple[int, ...], others: np.ndarray, size: int, rng: np.random.Generator
) -> np.ndarray | None:
    """Returns a box of this (height, width) that hides little of `others` (M, 4).

    `None` if there was none in 20 trials.
    """
    height, width = shape
    for _ in range(20):
        x, y = rng.integers(0, size - width + 1), rng.integers(0, size - height + 1)
        box = np.array([x, y, x + width, y + height], "float32")
        smaller = np.minimum(area(box), area(others))
        if (intersection(box, others) <= MAX_SHARED * smaller).all():
            return box
    return None


# --- Boxes and scores ---------------------------------------------------------------


def area(boxes: np.ndarray) -> np.ndarray:
    """Returns the areas of boxes (..., 4)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def intersection(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns the areas that a box (4,) shares with others (M, 4)."""
    low = np.maximum(box[:2], others[:, :2])
    high = np.minimum(box[2:], others[:, 2:])
    return np.maximum(high - low, 0.0).prod(axis=1)


def overlap(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns intersection over union of a box (4,) with others (M, 4)."""
    shared = intersection(box, others)
    return shared / (area(box) + area(others) - shared)


def score(
    data: Canvases, found: dict[str, np.ndarray], num_classes: int, prefix: str = ""
) -> dict[str, float]:
    """Returns the mean average precision, as the COCO benchmark defines it.

    A found box is right if its class is right and it overlaps a true box, which no
    surer one has claimed, by at least t (intersection over union). From the surest to
    the least sure, precision is the share of right ones so far, recall the share of
    objects found so far. Average precision is the area under precision over recall; its
    mean is over the classes.

    Args:
        data: Canvases with the true objects.
        found: `"boxes"` (N, K, 4), `"labels"` and `"scores"` (N, K); rows of score 0
            are empty.
        num_classes: Number of classes.
        prefix: Of the names in the result.

    Returns:
        `map_50`, with t = 0.5; `map_50_95`, the mean over t = 0.5, 0.55, ..., 0.95.
    """

    def entries(boxes, labels, kept, scores=None):
        rows: list[dict[str, Any]] = []
        for i, j in zip(*np.nonzero(kept), strict=True):
            x, y, *_ = corners = boxes[i, j].tolist()
            box = [x, y, corners[2] - x, corners[3] - y]
            rows.append(
                {
                    "id": len(rows) + 1,
                    "image_id": int(i),
                    "category_id": int(labels[i, j]),
                    "bbox": box,
                    "area": box[2] * box[3],
                    "iscrowd": 0,
                }
            )
            if scores is not None:
                rows[-1]["score"] = float(scores[i, j])
        return rows

    shared = {
        "images": [{"id": i} for i in range(len(data.images))],
        "categories": [{"id": k} for k in range(num_classes)],
    }
    truth, results = COCO(), COCO()
    true = entries(data.boxes, data.labels, data.labels >= 0)
    scores = found["scores"]
    guesses = entries(found["boxes"], found["labels"], scores > 0, scores)
    truth.dataset = shared | {"annotations": true}
    results.dataset = shared | {"annotations": guesses}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a table
        truth.createIndex()
        results.createIndex()
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    mean, at_50 = evaluation.stats[:2]
    return {f"{prefix}map_50": float(at_50), f"{prefix}map_50_95": float(mean)}


def timed(find: Any, images: np.ndarray) -> tuple[dict[str, np.ndarray], float]:
    """Returns what is found, and the milliseconds for an image."""
    start = time.perf_counter()
    found = find(images)
    return found, 1000 * (time.perf_counter() - start) / len(images)


# --- The baseline: a sliding window -------------------------------------------------


def train_window(
    data: Canvases,
    num_classes: int,
    epochs: int,
    seed: int,
    backup: kit.BackupAndRestore,
    verbose: int,
) -> kit.Sequential:
    """Trains a CNN to tell the classes and background apart in square crops."""
    x, y = draw_crops(data, num_classes, np.random.default_rng(seed))
    network = kit.cnn(
        x.shape[1:], num_classes + 1, dropout=0.3, batch_normalization=True
    )
    scale = keras.layers.Rescaling(1 / 255)
    model = kit.Sequential([keras.Input(x.shape[1:]), scale, network])
    kit.set_random_seed(seed)
    kit.initialize_weights(model, seed)
    schedule = keras.optimizers.schedules.CosineDecay(
        2e-3, epochs * math.ceil(len(x) / 128)
    )
    model.compile(
        keras.optimizers.Adam(schedule),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=128, epochs=epochs, callbacks=[backup], verbose=verbose)
    return model


def draw_crops(
    data: Canvases, num_classes: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns crops (n, 28, 28, 1) and their classes (n,), the last one background.

    For each object, there is a window that is shifted and scaled a little, and two
    windows at random places that overlap no object's window by more than 0.4.
    """
    crops, classes = [], []
    size = data.images.shape[1]
    for image, boxes, labels in zip(*data, strict=True):
        canvas = padded(image)
        boxes, labels = boxes[labels >= 0], labels[labels >= 0]
        squares = np.array([square(box) for box in boxes])
        for window, label in zip(squares, labels, strict=True):
            side = window[2] - window[0]
            shift = rng.uniform(-0.1, 0.1, 2) * side
            grow = rng.uniform(-0.05, 0.05) * side
            moved = window + [*(shift - grow), *(shift + grow)]
            crops.append(crop(canvas, moved))
            classes.append(label)
        for _ in range(2 * len(squares)):
            side = rng.uniform(WINDOWS[0], WINDOWS[-1])
            x, y = rng.uniform(-PADDING, size + PADDING - side, 2)
            window = np.array([x, y, x + side, y + side])
            if overlap(window, squares).max() < 0.4:
                crops.append(crop(canvas, window))
                classes.append(num_classes)
    return np.stack(crops)[..., None], np.array(classes, "int32")


PADDING = 8  # pixels around a canvas, where windows may lie


def padded(image: np.ndarray) -> Image.Image:
    """Returns an image with a rim of `PADDING` pixels, which repeat its edges."""
    return Image.fromarray(np.pad(image[..., 0], PADDING, mode="edge"))


def square(box: np.ndarray) -> np.ndarray:
    """Returns the window in which a box (4,) is in the middle, with a margin."""
    centre = (box[:2] + box[2:]) / 2
    half = MARGIN * (box[2:] - box[:2]).max() / 2
    return np.concatenate([centre - half, centre + half])


def crop(canvas: Image.Image, window: np.ndarray) -> np.ndarray:
    """Returns a window of a padded canvas, scaled to (28, 28)."""
    window = np.clip(window + PADDING, 0, canvas.width)
    scaled = canvas.resize(
        (28, 28), Image.Resampling.BILINEAR, box=tuple(window.tolist())
    )
    return np.asarray(scaled)


def mean_shapes(data: Canvases, num_classes: int) -> np.ndarray:
    """Returns mean (width, height) of each class' boxes, as shares of the window."""
    boxes, labels = data.boxes[data.labels >= 0], data.labels[data.labels >= 0]
    size = boxes[:, 2:] - boxes[:, :2]
    share = size / (MARGIN * size.max(axis=1, keepdims=True))
    seen = [share[labels == k] for k in range(num_classes)]
    return np.array([x.mean(axis=0) if len(x) else [0.8, 0.8] for x in seen])


def slide_window(
    model: keras.Model, shapes: np.ndarray, images: np.ndarray, max_detections: int = 20
) -> dict[str, np.ndarray]:
    """Classifies windows of all sizes at all places; returns the best as boxes.

    Args:
        model: Classifier of crops (28, 28, 1), whose last class is background.
        shapes: Mean (width, height) of the classes' boxes, as shares of the window.
        images: Images (N, size, size, 1).
        max_detections: K, boxes for each image.

    Returns:
        A dict like that of `kit.Detector.detect`.
    """
    windows = all_windows(images.shape[1])
    centres = (windows[:, :2] + windows[:, 2:]) / 2
    sides = windows[:, 2:] - windows[:, :2]
    found: dict[str, Any] = {
        "boxes": np.zeros((len(images), max_detections, 4), "float32"),
        "labels": np.zeros((len(images), max_detections), "int32"),
        "scores": np.zeros((len(images), max_detections), "float32"),
    }
    for i, image in enumerate(images):
        canvas = padded(image)
        crops = np.stack([crop(canvas, window) for window in windows])[..., None]
        probabilities = keras.ops.convert_to_numpy(model.predict_on_batch(crops))
        scores, labels = probabilities[:, :-1].max(1), probabilities[:, :-1].argmax(1)
        half = sides * shapes[labels] / 2
        boxes = np.concatenate([centres - half, centres + half], axis=1)
        kept = suppress(boxes, scores)[:max_detections]
        found["boxes"][i, : len(kept)] = boxes[kept]
        found["labels"][i, : len(kept)] = labels[kept]
        found["scores"][i, : len(kept)] = scores[kept]
    return found


def all_windows(size: int) -> np.ndarray:
    """Returns the windows (n, 4) of all scales, over a padded image of this size."""
    windows = []
    for side in WINDOWS:
        room = size + 2 * PADDING - side
        steps = max(2, 1 + math.ceil(room / (WINDOW_STEP * side)))
        places = np.linspace(0, room, steps) - PADDING
        x, y = (z.ravel() for z in np.meshgrid(places, places))
        windows.append(np.stack([x, y, x + side, y + side], axis=1))
    return np.concatenate(windows)


def suppress(
    boxes: np.ndarray, scores: np.ndarray, max_overlap: float = 0.4, least: float = 0.02
) -> list[int]:
    """Returns indices of boxes that overlap no surer one: non-maximum suppression."""
    order = [int(i) for i in np.argsort(-scores) if scores[i] >= least]
    kept = []
    while order:
        best, *rest = order
        kept.append(best)
        free = overlap(boxes[best], boxes[rest]) <= max_overlap
        order = [i for i, is_free in zip(rest, free, strict=True) if is_free]
    return kept


# --- Pictures -----------------------------------------------------------------------


def draw_learning_curve(run: Run, history: keras.callbacks.History) -> None:
    """Plots the three losses over the epochs."""
    with run.figure("learning_curve.png", figsize=(8, 3)) as figure:
        names = ("heatmap_loss", "size_loss", "offset_loss")
        units = ("heat map", "size in pixels", "offset in cells")
        for axes, name, unit in zip(figure.subplots(1, 3), names, units, strict=True):
            values = history.history[name]
            axes.plot(np.arange(1, len(values) + 1), values, marker=".")
            axes.set_title(f"Error: {unit}", loc="left", fontsize="medium")
            axes.set_xlabel("Epoch")
            axes.set_ylim(0)
            axes.grid(alpha=0.3)


def draw_detections(
    run: Run,
    data: Canvases,
    found: dict[str, np.ndarray],
    names: list[str],
    least: float = 0.3,
) -> None:
    """Draws canvases with true boxes, white, and found ones with class and score.

    Found boxes are green where class and place are right, otherwise red.
    """
    number = min(12, len(data.images))
    rows = math.ceil(number / 4)
    with run.figure("detections.png", figsize=(9, 0.4 + 2.4 * rows)) as figure:
        figure.suptitle(f"New canvases: true boxes white, found ones (score ≥ {least})")
        for i, axes in enumerate(figure.subplots(rows, 4, squeeze=False).flat):
            axes.axis("off")
            if i >= number:
                continue
            axes.imshow(data.images[i, ..., 0], cmap="gray", vmin=0, vmax=255)
            axes.autoscale(False)  # labels may stand out
            true = data.labels[i] >= 0
            for box in data.boxes[i][true]:
                draw_box(axes, box, "white", linestyle=":")
            # A peak of two classes gives two boxes: show the surer one.
            for j in suppress(found["boxes"][i], found["scores"][i], 0.7, least):
                box, label = found["boxes"][i, j], found["labels"][i, j]
                same = data.boxes[i][true & (data.labels[i] == label)]
                right = len(same) and overlap(box, same).max() >= 0.5
                color = COLORS[2] if right else COLORS[1]
                draw_box(axes, box, color)
                axes.text(
                    box[0],
                    box[1] - 1,
                    f"{names[label]} {found['scores'][i, j]:.2f}",
                    color="white",
                    fontsize=6,
                    bbox={"facecolor": color, "pad": 0.5, "linewidth": 0},
                )


def draw_box(axes: Any, box: np.ndarray, color: str, linestyle: str = "-") -> None:
    """Draws a box; pixel centres are at whole numbers in pictures."""
    x, y = box[[0, 2, 2, 0, 0]] - 0.5, box[[1, 1, 3, 3, 1]] - 0.5
    axes.plot(x, y, color=color, linestyle=linestyle, linewidth=1.2)


def draw_heatmaps(run: Run, model: kit.Detector, data: Canvases) -> None:
    """Draws canvases, the heat maps to give, and those that the model gives."""
    few = Canvases(*(x[:6] for x in data))
    maps = keras.ops.convert_to_numpy(model.predict_on_batch(few.images)["heatmap"])
    true = kit.detection.draw_heatmap(
        few.boxes,
        few.labels,
        model.map_shape,
        model.num_classes,
        model.stride,
        model.min_overlap,
    )
    true = keras.ops.convert_to_numpy(true)
    rows: list[Any] = [
        ("canvas", few.images[..., 0] / 255, "gray"),
        ("true", true.max(axis=-1), "viridis"),
        ("found", 1 / (1 + np.exp(-maps.max(axis=-1))), "viridis"),
    ]
    with run.figure("heatmaps.png", figsize=(9, 4.9)) as figure:
        grid = figure.subplots(3, len(few.images), squeeze=False)
        for (name, pictures, cmap), line in zip(rows, grid, strict=True):
            for picture, axes in zip(pictures, line, strict=True):
                axes.imshow(picture, cmap=cmap, vmin=0, vmax=1)
                axes.set_xticks([])
                axes.set_yticks([])
            line[0].set_ylabel(name)
        figure.suptitle("Heat maps: the highest of all classes")


if __name__ == "__main__":
    command_line(main)
