"""Enlarges photographs four times, and draws details that interpolation can't.

You will learn: a residual network with sub-pixel convolution
(`kit/super_resolution.py`), what training by the mean absolute error makes of it, what
an adversarial training makes of that, and why the second looks sharper and scores
worse.

    KERAS_BACKEND=jax python recipes/super_resolution.py
    KERAS_BACKEND=jax python recipes/super_resolution.py --upscale holiday.jpg
    KERAS_BACKEND=torch python recipes/super_resolution.py --images ~/photographs

The photographs come with scikit-image and scikit-learn, and are split by photograph: 12
to train, 3 to choose settings (`--validation`), 6 to test. Their small versions are
made by Pillow's antialiased bicubic filter. Bicubic and Lanczos interpolation get the
same small versions. PSNR and SSIM are those of the brightness (luma), without a border.
The perceptual distance is that of features of a small network which no loss contains;
it is not LPIPS, whose network no package brings along.

Expected result (JAX, seed 0, six test photographs): the network is 0.72 dB above
bicubic interpolation, 0.82 dB as a mean of eight mirrored and turned copies; Lanczos
interpolation 0.24. It gains 0.3 to 1.5 dB on five photographs, and loses 0.4 on
`brick`, where it draws dark rims beside light lines. On the validation photographs
(seed 10), it gains 0.74. After the adversarial training, the error is larger than that
of bicubic interpolation (-0.31 dB), the perceptual distance smaller (0.184; before
0.220, bicubic 0.283), and smooth areas have a grid that can be seen. Six
photographs say little about others, and details that look real are made up: enlarged
letters and faces are no evidence. A run takes six minutes on one core.

Papers: Lim et al., 2017, https://arxiv.org/abs/1707.02921, for the network; Ledig et
al., 2017, https://arxiv.org/abs/1609.04802, and Wang et al., 2018,
https://arxiv.org/abs/1809.00219, for the adversarial training. Differences: a far
smaller network, to which bicubic interpolation is added; features of a network trained
in the same run instead of VGG's. Settings were compared on validation photographs, with
seed 10 and less training.
"""

import csv
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
from PIL import Image
from skimage.color import rgb2ycbcr
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

import kit
from kit import checks
from kit.data.photographs import photographs, read_image, read_images
from kit.gan import conv_discriminator
from kit.lab.run import Run, command_line, history_rows
from kit.super_resolution import (
    enlarge,
    feature_maps,
    patch_classifier,
    perceptual_distance,
)

# Training photographs are also used in these sizes: smaller ones are sharper.
SIZES = (1.0, 0.7, 0.5)
# Networks between the two trained ones: the share of the adversarial one's weights.
MIXTURES = {
    0.0: "l1",
    0.25: "mixture_0.25",
    0.5: "mixture_0.5",
    0.75: "mixture_0.75",
    1.0: "adversarial",
}
# Pixels in a side of the tiles whose perceptual distance is measured.
TILE = 64

ACCEPTED = {
    "images": checks.PATH | None,
    "upscale": checks.PATH | None,
    "scale": checks.integer("[2, 8]"),
    **dict.fromkeys(("filters", "num_blocks", "batch_size"), checks.SIZE),
    "patch_size": checks.integer("[8, 256]"),
    **dict.fromkeys(("patches", "adversarial_patches"), checks.integer("[8, 2**31)")),
    "feature_patches": checks.integer("[8, 2**31)"),
    "epochs": checks.SIZE,
    **dict.fromkeys(("learning_rate", "adversarial_learning_rate"), checks.POSITIVE),
    "feature_weight": checks.WEIGHT,
    "adversarial_weight": checks.WEIGHT,
    "pixel_weight": checks.WEIGHT,
}

Photographs = Mapping[str, np.ndarray]


def load_data(
    images: Path | None, validation: bool, least: int
) -> tuple[Photographs, Photographs]:
    """Returns training and test photographs, (height, width, 3), uint8, by name.

    Replace it to use your own data, or pass the folder by `--images`: every fifth of
    its pictures, in the order of their names, is for tests.

    Args:
        images: Folder of PNG and JPEG files, or `None`.
        validation: Whether to return other photographs than the test photographs.
        least: Least height and width.
    """
    if images is None:
        return photographs("train"), photographs("validation" if validation else "test")
    found = read_images(images, least)
    if len(found) < 4:
        raise ValueError(
            f"images: the folder must hold 4 pictures or more, some of which are for "
            f"tests; {str(images)!r} holds {len(found)}."
        )
    held_out = list(found)[3 if validation else 4 :: 5] or list(found)[-1:]
    reserved = {name for i, name in enumerate(found) if i % 5 >= 3} | set(held_out)
    train = {name: x for name, x in found.items() if name not in reserved}
    return train, {name: found[name] for name in held_out}


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Super-resolution",
    "place": 25,
    "score": "test_gain_over_bicubic",
    "larger_is_better": True,
    "curve": "loss",
    "curve_rows": {"training": "l1"},
    "quick": "--filters 8 --num-blocks 1 --patches 200 --feature-patches 100 "
    "--adversarial-patches 100",
}


def main(
    *,
    images: Path | None = None,
    upscale: Path | None = None,
    scale: int = 4,
    filters: int = 24,
    num_blocks: int = 4,
    patch_size: int = 16,
    patches: int = 12_000,
    epochs: int = 4,
    batch_size: int = 8,
    learning_rate: float = 2e-3,
    feature_patches: int = 2_000,
    adversarial_patches: int = 4_000,
    adversarial_learning_rate: float = 3e-4,
    pixel_weight: float = 2.0,
    feature_weight: float = 0.3,
    adversarial_weight: float = 0.02,
    validation: bool = False,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains two networks that enlarge photographs, and compares them.

    Args:
        images: Folder of PNG or JPEG files to train and test on; a fifth of them is for
            tests. The photographs of scikit-image and scikit-learn if not given.
        upscale: Picture to enlarge with the networks of an earlier run, which are in
            `output_dir`; nothing is trained then.
        scale: How many times larger height and width become.
        filters: Feature channels of the network.
        num_blocks: Its residual blocks.
        patch_size: Pixels in a side of the small patches to train on.
        patches: Number of training patches, cut at random places.
        epochs: Passes of the training by the mean absolute error over the patches.
        batch_size: Patches in a gradient step.
        learning_rate: Step size of Adam at the start; it falls to 0 on a half cosine.
        feature_patches: Patches to train each of the two networks for features on.
        adversarial_patches: Patches of the adversarial training.
        adversarial_learning_rate: Step size of both its Adam optimizers.
        pixel_weight: Weight of the mean absolute error in the adversarial training.
        feature_weight: Weight of the features' distance.
        adversarial_weight: Weight of the discriminator's judgement.
        validation: Test on the validation photographs. Use it to choose settings.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/super_resolution-<backend>-<seed> if
            not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json; with `upscale`, the files by network.
    """
    arguments = dict(locals())
    checks.check("super_resolution", arguments, ACCEPTED)
    for name in ("feature_patches", "adversarial_patches"):
        if arguments[name] > patches:
            raise ValueError(
                f"super_resolution: `{name}` must be at most `patches`, {patches}, "
                f"received {arguments[name]}."
            )
    if upscale is not None:
        folder = Path("runs") / f"super_resolution-{keras.backend.backend()}-{seed}"
        result = upscale_file(upscale, output_dir or folder, verbose)
    else:
        run = Run(
            "super_resolution",
            seed=seed,
            output_dir=output_dir,
            resume=resume,
            config=arguments,
        )
        least = max(scale * patch_size, TILE + scale)
        train, test = load_data(images, validation, least)
        rng = np.random.default_rng(seed)
        small, large, labels = draw_patches(train, patches, patch_size, scale, rng)
        options: Any = {"batch_size": batch_size, "seed": seed, "verbose": verbose}

        # 1. By the mean absolute error.
        model = kit.super_resolver(scale, filters=filters, num_blocks=num_blocks)
        kit.initialize_weights(model, seed)
        num_steps = epochs * math.ceil(patches / batch_size)
        schedule = keras.optimizers.schedules.CosineDecay(learning_rate, num_steps)
        model.compile(keras.optimizers.Adam(schedule), "mean_absolute_error")
        backup = run.backup("model")
        history = fit(model, small, large, epochs, backup, **options)
        model.save(run.output_dir / "model.keras")

        # 2. Features: one network for the loss, and another one to judge by.
        features, judge_features = (
            train_features(
                large[part],
                labels[part],
                len(train),
                start,
                run.backup(name),
                **options,
            )
            for name, part, start in zip(
                ("features", "judge"),
                (slice(feature_patches), slice(-feature_patches, None)),
                kit.random.split_seed(seed),
                strict=True,
            )
        )
        judge = kit.compiled(partial(perceptual_distance, judge_features))

        # 3. Against a discriminator.
        drawn = kit.super_resolver(scale, filters=filters, num_blocks=num_blocks)
        drawn.set_weights(model.get_weights())
        side = scale * patch_size
        discriminator = conv_discriminator((side, side, 3), (16, 32, 64), dropout=0.0)
        kit.initialize_weights(discriminator, seed)
        weights = pixel_weight, feature_weight, adversarial_weight
        gan = kit.SRGAN(drawn, discriminator, features, *weights)
        gan.compile(
            *(keras.optimizers.Adam(adversarial_learning_rate, 0.9, 0.99) for _ in "GD")
        )
        few = slice(adversarial_patches)
        backup = run.backup("adversarial")
        adversarial = fit(gan, small[few], large[few], 1, backup, **options)
        drawn.save(run.output_dir / "adversarial.keras")

        # 4. All methods, on the same small photographs.
        pairs = {name: shrunk(photo, scale) for name, photo in test.items()}
        small_ones = {name: low for name, (low, _) in pairs.items()}
        true = {name: high for name, (_, high) in pairs.items()}
        found = {
            method: {x: stretched(low, scale, method) for x, low in small_ones.items()}
            for method in ("bicubic", "lanczos")
        }
        found["ensemble"] = {
            x: enlarge(model, low, ensemble=True) for x, low in small_ones.items()
        }
        ends = list(zip(model.get_weights(), drawn.get_weights(), strict=True))
        for share, method in MIXTURES.items():
            # One network takes all weights in turn, so that it is compiled once.
            model.set_weights([(1 - share) * a + share * b for a, b in ends])
            found[method] = {x: enlarge(model, low) for x, low in small_ones.items()}
        scores = {x: score(images, true, judge, scale) for x, images in found.items()}
        write_scores(run.output_dir / "scores.csv", scores)
        draw_crops(run, found, true, scores)
        draw_tradeoff(run, scores)
        draw_learning_curves(run, history, adversarial)

        prefix = "validation_" if validation else "test_"
        means = {x: mean_scores(rows, prefix) for x, rows in scores.items()}
        gains = [
            scores["l1"][name]["psnr"] - scores["bicubic"][name]["psnr"]
            for name in true
        ]
        metrics: dict[str, Any] = {
            **means["l1"],
            f"{prefix}gain_over_bicubic": float(np.mean(gains)),
            f"{prefix}least_gain_over_bicubic": float(np.min(gains)),
            "parameters": model.count_params(),
        }
        for method in ("ensemble", "adversarial"):
            metrics |= {f"{method}_{name}": x for name, x in means[method].items()}
        result = run.finish(
            history=history_rows(history, training="l1")
            + history_rows(adversarial, training="adversarial"),
            metrics=metrics,
            baselines={
                f"{method}_{name}": x
                for method in ("bicubic", "lanczos")
                for name, x in means[method].items()
            },
            throughput=(patches / np.median(history.history["seconds"]), "samples/s"),
            compile_seconds=kit.compile_seconds(),
        )
    return result


def fit(
    model: keras.Model,
    x: np.ndarray,
    y: np.ndarray,
    epochs: int,
    backup: kit.BackupAndRestore,
    *,
    batch_size: int,
    seed: int,
    verbose: int,
) -> keras.callbacks.History:
    """Trains a model on patches in the seed's order."""
    kit.set_random_seed(seed)
    return model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[kit.EpochTimer(), backup],
        verbose=verbose,
    )


def train_features(
    patches: np.ndarray,
    labels: np.ndarray,
    num_classes: int,
    start: int,
    backup: kit.BackupAndRestore,
    **options: Any,
) -> keras.Model:
    """Returns feature maps that tell from which photograph a patch was cut.

    Args:
        patches: Large patches (N, size, size, 3), uint8.
        labels: Indices of their photographs (N,).
        num_classes: Number of photographs.
        start: Seed of the first weights.
        backup: Callback for backups.
        **options: Of `fit`.
    """
    classifier = patch_classifier(num_classes)
    kit.initialize_weights(classifier, start)
    classifier.compile(
        keras.optimizers.Adam(2e-3),
        "sparse_categorical_crossentropy",
        metrics=["accuracy"],
    )
    fit(classifier, equalized(patches), labels, 3, backup, **options)
    return feature_maps(classifier)


def upscale_file(file: Path, folder: Path, verbose: int) -> dict[str, str]:
    """Enlarges a picture with both networks of a finished run.

    Args:
        file: The picture.
        folder: Folder of the run, to which the enlarged pictures are written.
        verbose: 0 prints nothing.

    Returns:
        The files, by the network's name.
    """
    image, written = read_image(file), {}
    for name in ("model", "adversarial"):
        path = folder / f"{name}.keras"
        if not path.exists():
            raise ValueError(
                f"upscale: {path} is missing. Train the networks first, by the same "
                "command without --upscale, or name the folder of a finished run by "
                "--output-dir."
            )
        large = enlarge(keras.saving.load_model(path), image)
        target = folder / f"{file.stem}_{name}.png"
        Image.fromarray(large).save(target)
        written[name] = str(target)
        if verbose:
            print(f"{image.shape[1]} x {image.shape[0]} pixels became ", end="")
            print(f"{large.shape[1]} x {large.shape[0]}: {target}")
    return written


# --- Photographs and patches --------------------------------------------------------


def resized(image: np.ndarray, height: int, width: int, method: str) -> np.ndarray:
    """Returns an image in another size, by one of Pillow's methods, uint8.

    Pillow's filters get wider where an image becomes smaller (antialiasing).
    """
    resampling = Image.Resampling[method.upper()]
    return np.asarray(Image.fromarray(image).resize((width, height), resampling))


def shrunk(image: np.ndarray, scale: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns an image's small version, and the image, cut to a multiple of `scale`."""
    height, width = (n // scale for n in image.shape[:2])
    large = image[: height * scale, : width * scale]
    return resized(large, height, width, "bicubic"), large


def stretched(image: np.ndarray, scale: int, method: str) -> np.ndarray:
    """Returns an image in `scale` times its size, by one of Pillow's methods."""
    return resized(image, scale * image.shape[0], scale * image.shape[1], method)


def draw_patches(
    train: Photographs, number: int, size: int, scale: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cuts patches from photographs, turned and mirrored at random.

    Each photograph has the same chance, in each of its `SIZES` that is large enough. Of
    two places, the one with more contrast is taken: empty sky teaches little.

    Args:
        train: Photographs by name.
        number: N, patches to cut.
        size: Pixels in a side of a small patch.
        scale: How many times larger the large patches are.
        rng: Generator of all draws.

    Returns:
        Small patches (N, size, size, 3) and large ones (N, scale size, scale size, 3),
        uint8, and the index of each one's photograph, int32.
    """
    pairs = []
    for photo in train.values():
        versions = []
        for share in SIZES:
            height, width = (round(share * n) for n in photo.shape[:2])
            if min(height, width) >= scale * size:
                image = resized(photo, height, width, "bicubic")
                versions.append(shrunk(image, scale))
        pairs.append(versions)
    side = scale * size
    small = np.zeros((number, size, size, 3), "uint8")
    large = np.zeros((number, side, side, 3), "uint8")
    labels = rng.integers(0, len(pairs), number, "int32")
    for i, label in enumerate(labels):
        low, high = pairs[label][rng.integers(len(pairs[label]))]
        places = [[rng.integers(0, n - size + 1) for n in low.shape[:2]] for _ in "ab"]
        cuts = [low[y : y + size, x : x + size] for y, x in places]
        best = int(cuts[1].std() > cuts[0].std())
        y, x = (scale * n for n in places[best])
        turns, mirrored = int(rng.integers(4)), rng.random() < 0.5
        pair = cuts[best], high[y : y + side, x : x + side]
        for patches, cut in zip((small, large), pair, strict=True):
            patches[i] = np.rot90(cut[:, ::-1] if mirrored else cut, turns)
    return small, large, labels


def equalized(patches: np.ndarray) -> np.ndarray:
    """Returns patches of equal brightness and contrast, float32.

    So the networks for features have to look at textures.
    """
    axes = (1, 2, 3)
    mean = patches.mean(axis=axes, keepdims=True)
    stddev = patches.std(axis=axes, keepdims=True)
    return np.clip(128 + 50 * (patches - mean) / (stddev + 5), 0, 255).astype("float32")


# --- Scores -------------------------------------------------------------------------


def psnr(found: np.ndarray, true: np.ndarray, border: int) -> float:
    """Returns the peak signal-to-noise ratio of the luma, in decibels.

    As is usual for super-resolution: colours are left out (Y of BT.601, 16 to 235), and
    so are the `border` pixels at each edge.
    """
    pair = luma(true, border), luma(found, border)
    return float(peak_signal_noise_ratio(*pair, data_range=255))


def ssim(found: np.ndarray, true: np.ndarray, border: int) -> float:
    """Returns the structural similarity of the luma, with a Gaussian window."""
    return float(
        structural_similarity(
            luma(true, border),
            luma(found, border),
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def luma(image: np.ndarray, border: int) -> np.ndarray:
    """Returns the brightness (height, width) of an image without its border."""
    inner = image[border:-border, border:-border] if border else image
    return rgb2ycbcr(inner)[..., 0]


def distance(
    found: np.ndarray, true: np.ndarray, judge: Callable, size: int = TILE
) -> float:
    """Returns the mean perceptual distance of an image's tiles.

    Args:
        found: Image (height, width, 3).
        true: The original.
        judge: Function of two batches of tiles that returns their distances.
        size: Pixels in a side of a tile; what is left at the edges is left out.
    """
    rows, columns = (n // size for n in true.shape[:2])
    parts = []
    for image in (found, true):
        grid = image[: rows * size, : columns * size].astype("float32")
        grid = grid.reshape(rows, size, columns, size, 3).swapaxes(1, 2)
        parts.append(grid.reshape(-1, size, size, 3))
    number, at_once, distances = len(parts[0]), 16, []
    for i in range(0, number, at_once):
        # Equal batches, so that there is one program: the last one has copies.
        chosen = np.minimum(np.arange(i, i + at_once), number - 1)
        distances.append(keras.ops.convert_to_numpy(judge(*(x[chosen] for x in parts))))
    return float(np.concatenate(distances)[:number].mean())


def score(
    found: Photographs, true: Photographs, judge: Callable, scale: int
) -> dict[str, dict[str, float]]:
    """Returns the three scores of each photograph."""
    return {
        name: {
            "psnr": psnr(found[name], image, scale),
            "ssim": ssim(found[name], image, scale),
            "perceptual_distance": distance(found[name], image, judge),
        }
        for name, image in true.items()
    }


def mean_scores(rows: dict[str, dict[str, float]], prefix: str) -> dict[str, float]:
    """Returns the means over the photographs."""
    return {
        f"{prefix}{name}": float(np.mean([values[name] for values in rows.values()]))
        for name in next(iter(rows.values()))
    }


def write_scores(path: Path, scores: dict[str, dict[str, dict[str, float]]]) -> None:
    """Writes a row for each method and photograph."""
    rows: list[dict[str, Any]] = [
        {"method": method, "photograph": name, **values}
        for method, photos in scores.items()
        for name, values in photos.items()
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


# --- Pictures -----------------------------------------------------------------------

TITLES = {
    "bicubic": "bicubic",
    "lanczos": "Lanczos",
    "l1": "network, L1",
    "adversarial": "adversarial",
}


def draw_crops(
    run: Run,
    found: Mapping[str, Photographs],
    true: Photographs,
    scores: dict[str, dict[str, dict[str, float]]],
    size: int = 96,
) -> None:
    """Draws, of each photograph, the square with the most contrast, by each method.

    Below it stands the PSNR of the whole photograph.
    """
    names = list(true)[:6]
    columns = [*TITLES, "original"]
    shape = (1.9 * len(columns), 2.2 * len(names))
    with run.figure("crops.png", figsize=shape) as figure:
        grid = figure.subplots(len(names), len(columns), squeeze=False)
        for name, line in zip(names, grid, strict=True):
            window = most_contrast(true[name], size)
            for method, axes in zip(columns, line, strict=True):
                image = true[name] if method == "original" else found[method][name]
                axes.imshow(image[window], interpolation="nearest")
                axes.set(xticks=[], yticks=[])
                text = "PSNR"
                if method != "original":
                    text = f"{scores[method][name]['psnr']:.2f} dB"
                axes.set_xlabel(text, fontsize="small")
            line[0].set_ylabel(name)
        for method, axes in zip(columns, grid[0], strict=True):
            axes.set_title(TITLES.get(method, method), fontsize="medium")


def most_contrast(image: np.ndarray, size: int) -> tuple[slice, slice]:
    """Returns rows and columns of the square, on a grid, that varies the most."""
    places = [
        (slice(y, y + size), slice(x, x + size))
        for y in range(0, max(1, image.shape[0] - size + 1), size // 2)
        for x in range(0, max(1, image.shape[1] - size + 1), size // 2)
    ]
    return max(places, key=lambda place: image[place].std())


def draw_tradeoff(run: Run, scores: dict[str, dict[str, dict[str, float]]]) -> None:
    """Plots each method's mean PSNR over its mean perceptual distance."""
    points = {method: mean_scores(rows, "") for method, rows in scores.items()}
    with run.figure("tradeoff.png", figsize=(6, 4.2)) as figure:
        axes = figure.subplots()
        line = [points[x] for x in MIXTURES.values()]
        axes.plot(
            [x["perceptual_distance"] for x in line],
            [x["psnr"] for x in line],
            marker=".",
            label="mixtures of both networks' weights",
        )
        for method, title in (TITLES | {"ensemble": "L1, 8 copies"}).items():
            place = points[method]["perceptual_distance"], points[method]["psnr"]
            axes.plot(*place, marker="o", color="black", markersize=4)
            axes.annotate(title, place, xytext=(5, 5), textcoords="offset points")
        axes.set(xlabel="Perceptual distance (less is better)", ylabel="PSNR in dB")
        axes.margins(0.2)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False, loc="lower right")


def draw_learning_curves(
    run: Run, history: keras.callbacks.History, adversarial: keras.callbacks.History
) -> None:
    """Plots the mean absolute error, and the losses of the adversarial training."""
    with run.figure("learning_curve.png", figsize=(10, 3.6)) as figure:
        left, right = figure.subplots(1, 2)
        logs = history.history
        left.plot(np.array(history.epoch) + 1, logs["loss"], marker=".")
        left.set(xlabel="Epoch", ylabel="Mean absolute error in training")
        for name in ("discriminator_loss", "adversarial_loss"):
            values = adversarial.history[name]
            right.plot(np.array(adversarial.epoch) + 1, values, marker=".", label=name)
        right.set(xlabel="Epoch of the adversarial training", ylabel="Loss")
        right.legend(frameon=False)
        for axes in (left, right):
            axes.grid(alpha=0.3)


if __name__ == "__main__":
    command_line(main)
