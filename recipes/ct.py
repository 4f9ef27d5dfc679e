"""Reconstructs CT images from few views, and outlines the lesions in them.

You will learn: a U-Net (`kit/unet.py`), twice: as a residual network that removes the
streaks of a fast but bad reconstruction, and as a segmentation network; and how to
judge both against classical methods, with intervals.

    KERAS_BACKEND=jax python recipes/ct.py
    KERAS_BACKEND=torch python recipes/ct.py --views 60 --photons 1e6
    KERAS_BACKEND=tensorflow python recipes/ct.py --segment fbp

Each phantom (`kit/data/phantoms.py`) is a body of random ellipses with one to three
lesions. scikit-image's `radon` scans it from 30 angles, with the noise of photons.
Filtered back projection, SART and total variation get the same scans, and the settings
that are best on training phantoms.

Expected result on 100 test phantoms (seed 0, each backend): 40.3 dB, which is 7.8 dB
above filtered back projection (95 % interval 7.7 to 8.0); SART has 35.6 dB, total
variation 38.9. The lesions' Dice is 0.81 (0.78 to 0.84), that of the best thresholds
0.42. Seeds 1 and 2 (JAX) give 40.2 and 39.2 dB, and a Dice of 0.84 and 0.82. It takes
two to four minutes on one core. Test and training phantoms are of one kind, so this
doesn't show what the networks do with other bodies, where they may invent or remove
details.

Paper: Jin et al., 2017, https://arxiv.org/abs/1611.03679, for the reconstruction;
Ronneberger et al., 2015, https://arxiv.org/abs/1505.04597, for the network and the
segmentation. Differences: a small network on small images; padded convolutions; Adam's
rate falls on a half cosine. The few settings that were compared were compared on
validation phantoms, with seed 10.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from scipy import sparse
from scipy.linalg import cho_factor, cho_solve
from skimage.color import rgb2gray
from skimage.measure import label
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from skimage.morphology import disk, white_tophat
from skimage.transform import iradon, iradon_sart, resize

import kit
from kit import checks
from kit.data.phantoms import Phantoms, phantoms
from kit.lab.run import Run, command_line, history_rows

# The same test phantoms in each run; training phantoms have the run's seed.
TEST_SEED, VALIDATION_SEED = 2**32 - 1, 2**32 - 2
# Of a ray along the image's side, if all its pixels were 1: 30 cm of bone.
ATTENUATION = 12.0
# Settings of the baselines, the best of which on training phantoms is used.
TUNING_PHANTOMS = 8
FILTERS = ("ramp", "shepp-logan", "cosine", "hamming", "hann")
SART_ITERATIONS = (2, 4, 8, 12, 16)
TV_WEIGHTS = (0.1, 0.2, 0.4, 0.8, 1.6)

ACCEPTED = {
    **dict.fromkeys(("views", "train_phantoms", "test_phantoms"), checks.SIZE),
    **dict.fromkeys(("epochs", "segmentation_epochs", "batch_size"), checks.SIZE),
    "dataset": checks.TEXT,
    "size": checks.integer("[16, 1024]"),
    "photons": checks.real("[0, 1e15]"),
    "segment": checks.one_of("unet", "fbp"),
    "learning_rate": checks.POSITIVE,
}


def load_data(
    dataset: str, size: int, num_train: int, num_test: int, validation: bool, seed: int
) -> tuple[Phantoms, Phantoms]:
    """Returns training and test phantoms.

    To use your own data, return your images and masks of lesions (or `None` instead of
    the masks) as two `Phantoms`. Images are zero outside of the circle in the square.

    With `validation`, the test phantoms are others, to choose settings.
    """
    if dataset == "phantoms":
        test_seed = VALIDATION_SEED if validation else TEST_SEED
        return phantoms(num_train, size, seed), phantoms(num_test, size, test_seed)
    name = dataset.removeprefix("medmnist:")
    in_home = Path.home() / ".medmnist" / f"{name}.npz"
    path = Path(name) if name.endswith(".npz") else in_home
    if name == dataset or not path.is_file():
        raise ValueError(
            f"dataset={dataset!r} must be 'phantoms' or 'medmnist:NAME', where NAME is "
            "the path of an .npz file of MedMNIST, or the name of one in "
            f"{in_home.parent}, such as organamnist_64."
        )
    test = "val_images" if validation else "test_images"
    with np.load(path) as file:
        if missing := {"train_images", test} - set(file):
            raise ValueError(f"dataset={dataset!r}: {path} has no {sorted(missing)}.")
        parts = file["train_images"][:num_train], file[test][:num_test]
    return as_phantoms(parts[0], size), as_phantoms(parts[1], size)


def as_phantoms(images: np.ndarray, size: int) -> Phantoms:
    """Returns pictures (N, h, w) or (N, h, w, 3), uint8, as phantoms without lesions.

    They are resized, turned grey, and cut to the circle that the scanner sees.
    """
    if images.ndim not in (3, 4) or images.shape[3:] not in ((), (3,)):
        raise ValueError(
            "dataset: images must be of shape (N, height, width) or (N, height, width, "
            f"3), received {images.shape}."
        )
    grey = rgb2gray(images) if images.ndim == 4 else images / 255.0
    places = np.arange(size) - size // 2
    circle = np.hypot(*np.meshgrid(places, places)) < size // 2
    scaled = [resize(x, (size, size), anti_aliasing=True) * circle for x in grey]
    return Phantoms(np.stack(scaled)[..., None].astype("float32"), None)


# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "U-Net",
    "place": 23,
    "score": "test_psnr",
    "larger_is_better": True,
    "curve": "loss",
    "curve_rows": {"training": "reconstruction"},
    "quick": "--train-phantoms 200 --test-phantoms 10 --epochs 1 "
    "--segmentation-epochs 1",
}


def main(
    *,
    dataset: str = "phantoms",
    size: int = 64,
    views: int = 30,
    photons: float = 1e5,
    train_phantoms: int = 2_000,
    test_phantoms: int = 100,
    filters: tuple[int, ...] = (16, 32, 64, 128),
    epochs: int = 3,
    segmentation_filters: tuple[int, ...] = (8, 16, 32, 64),
    segmentation_epochs: int = 3,
    segment: Literal["unet", "fbp"] = "unet",
    batch_size: int = 8,
    learning_rate: float = 4e-3,
    validation: bool = False,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains two U-Nets, and compares them with classical methods on new phantoms.

    Args:
        dataset: "phantoms" needs no download. "medmnist:NAME" reconstructs pictures of
            MedMNIST instead, from ~/.medmnist/NAME.npz or the path of an .npz file;
            they have no lesions to outline, so the second network is left out.
        size: Pixels in an image's side, a multiple of 2 to the power of the number of
            `filters`, and of `segmentation_filters`, minus 1.
        views: Angles from which the scanner looks, evenly spaced over 180 degrees.
        photons: Photons that are sent along each ray; fewer make more noise. 0 stands
            for a scanner without noise.
        train_phantoms: Number of training phantoms.
        test_phantoms: Number of test phantoms.
        filters: Feature channels on each level of the reconstruction's U-Net.
        epochs: Passes of the reconstruction's U-Net over the training phantoms.
        segmentation_filters: Feature channels of the segmentation's U-Net.
        segmentation_epochs: Passes of the segmentation's U-Net.
        segment: Where lesions are outlined: in the images of the first U-Net, or in
            those of filtered back projection.
        batch_size: Images in a gradient step.
        learning_rate: Step size of Adam at the start; it falls to 0 on a half cosine.
        validation: Test on other phantoms than the test phantoms. Use it to choose
            settings.
        seed: Seed of all random draws, except for the test phantoms.
        output_dir: Folder for the results; runs/ct-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("ct", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    checks.check("ct", run.config, ACCEPTED)
    shape = (size, size, 1)
    model = kit.unet(shape, filters=filters, residual=True)
    segmenter = kit.unet(
        shape,
        filters=segmentation_filters,
        activation="sigmoid",
        batch_normalization=True,
    )
    train, test = load_data(
        dataset, size, train_phantoms, test_phantoms, validation, seed
    )
    options: Any = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
        "verbose": verbose,
    }

    # 1. The scanner, and the classical reconstructions.
    angles = np.arange(views) * 180.0 / views
    matrix = projection_matrix(size, angles)
    train_scans = scan(train.images, matrix, photons, seed)
    test_scans = scan(test.images, matrix, photons, TEST_SEED)
    methods = classical_methods(matrix, angles, size)
    few = slice(TUNING_PHANTOMS)
    found, settings = {}, {}
    for name, (method, choices) in methods.items():
        settings[name] = best_setting(
            method, choices, train_scans[few], train.images[few]
        )
        found[name] = method(test_scans, settings[name])
    run.console.print("Chosen on training phantoms:", settings)

    # 2. The first U-Net removes what is wrong with filtered back projection.
    x_train = back_projected(train_scans, angles, settings["fbp"])
    history = fit(
        model, "mse", x_train, train.images, epochs, run.backup("unet"), **options
    )
    model.save(run.output_dir / "model.keras")
    found["unet"] = model.predict(found["fbp"], batch_size=64, verbose=0)

    name = "validation" if validation else "test"
    scores = {k: image_scores(x, test.images, f"{name}_") for k, x in found.items()}
    metrics: dict[str, Any] = scores.pop("unet")
    gain = psnr(found["unet"], test.images) - psnr(found["fbp"], test.images)
    metrics |= with_interval(f"{name}_gain_over_fbp", gain)
    metrics["parameters"] = model.count_params()
    baselines: dict[str, Any] = {
        f"{method}_{k}": value for method, x in scores.items() for k, value in x.items()
    }

    # 3. The second U-Net outlines lesions.
    outlined, rows = None, history_rows(history, training="reconstruction")
    if train.lesions is not None and test.lesions is not None:
        if segment == "unet":
            x_train = model.predict(x_train, batch_size=64, verbose=0)
        x_test = found[segment]
        segmentation = fit(
            segmenter,
            segmentation_loss,
            x_train,
            train.lesions.astype("float32"),
            segmentation_epochs,
            run.backup("segmentation"),
            **options,
        )
        rows += history_rows(segmentation, training="segmentation")
        segmenter.compile(loss="binary_crossentropy")  # no function of the recipe
        segmenter.save(run.output_dir / "segmentation.keras")
        outlined = segmenter.predict(x_test, batch_size=64, verbose=0) > 0.5
        metrics |= lesion_scores(outlined, test.lesions, f"{name}_")
        limits = best_limits(x_train[:100], train.lesions[:100])
        bright = threshold(x_test, *limits)
        baselines |= lesion_scores(bright, test.lesions, f"threshold_{name}_")
        masks = {"U-Net": outlined, "threshold": bright}
        draw_lesions(run, x_test, test.lesions, masks)

    draw_learning_curve(run, history)
    draw_reconstructions(run, test, found, outlined)
    return run.finish(
        history=rows,
        metrics=metrics,
        baselines=baselines,
        throughput=(
            len(x_train) / np.median(history.history["seconds"]),
            "samples/s",
        ),
        compile_seconds=kit.compile_seconds(),
    )


def fit(
    model: keras.Model,
    loss: Any,
    x: np.ndarray,
    y: np.ndarray,
    epochs: int,
    backup: kit.BackupAndRestore,
    *,
    batch_size: int,
    learning_rate: float,
    seed: int,
    verbose: int,
) -> keras.callbacks.History:
    """Trains a U-Net from the seed's weights."""
    kit.set_random_seed(seed)
    kit.initialize_weights(model, seed)
    schedule = keras.optimizers.schedules.CosineDecay(
        learning_rate, epochs * math.ceil(len(x) / batch_size)
    )
    model.compile(keras.optimizers.Adam(schedule), loss)
    return model.fit(
        x,
        y,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[kit.EpochTimer(), backup],
        verbose=verbose,
    )


def segmentation_loss(y_true: Any, y_pred: Any) -> Any:
    """Returns the cross-entropy of all pixels, plus 1 minus the Dice of the batch.

    Few pixels are lesions, so the cross-entropy alone is low where none is found.
    """
    crossentropy = keras.losses.binary_crossentropy(y_true, y_pred)
    return keras.ops.mean(crossentropy) + keras.losses.dice(y_true, y_pred)


# --- The scanner --------------------------------------------------------------------


def projection_matrix(size: int, angles: np.ndarray) -> sparse.csr_array:
    """Returns the matrix A of `skimage.transform.radon`, which is linear.

    A view at an angle turns the image about its centre, interpolating between four
    pixels, and sums up the columns. A times the image's pixels is the sinogram
    (size, views), flat. Total variation needs the matrix, and it is faster.
    """
    centre = size // 2
    row, column = np.indices((size, size)) - centre
    rays, pixels, weights = [], [], []
    for view, angle in enumerate(np.deg2rad(angles)):
        x = np.cos(angle) * column + np.sin(angle) * row + centre  # in the image
        y = np.cos(angle) * row - np.sin(angle) * column + centre
        for right, below in np.ndindex(2, 2):
            x_pixel, y_pixel = np.floor(x) + right, np.floor(y) + below
            weight = (1 - abs(x - x_pixel)) * (1 - abs(y - y_pixel))
            inside = (x_pixel >= 0) & (x_pixel < size) & (weight > 0)
            inside &= (y_pixel >= 0) & (y_pixel < size)
            rays.append(((column + centre) * len(angles) + view)[inside])
            pixels.append((y_pixel * size + x_pixel)[inside].astype(int))
            weights.append(weight[inside])
    values = np.concatenate(weights).astype("float32")
    places = np.concatenate(rays), np.concatenate(pixels)
    return sparse.csr_array((values, places), shape=(size * len(angles), size**2))


def scan(
    images: np.ndarray, matrix: sparse.csr_array, photons: float, seed: int
) -> np.ndarray:
    """Returns sinograms (N, size, views): sums of pixels along rays, with noise.

    `photons` enter each ray, and exp(-attenuation) of them leave it on average; their
    number is Poisson distributed. With 0, there is no noise.
    """
    number, size = images.shape[:2]
    sums = (matrix @ images.reshape(number, -1).T).T  # (N, rays)
    if photons:
        scale = ATTENUATION / size
        rng = np.random.default_rng(seed)
        counts = rng.poisson(photons * np.exp(-scale * sums))
        sums = -np.log(np.maximum(counts, 1) / photons) / scale
    return sums.reshape(number, size, -1).astype("float32")


# --- Classical reconstruction -------------------------------------------------------


def classical_methods(
    matrix: sparse.csr_array, angles: np.ndarray, size: int
) -> dict[str, tuple[Callable, Sequence]]:
    """Returns methods, functions of sinograms and a setting, with their settings."""
    return {
        "fbp": (lambda x, name: back_projected(x, angles, name), FILTERS),
        "sart": (lambda x, number: sart(x, angles, number), SART_ITERATIONS),
        "tv": (total_variation(matrix, size), TV_WEIGHTS),
    }


def back_projected(
    sinograms: np.ndarray, angles: np.ndarray, filter_name: str
) -> np.ndarray:
    """Returns images (N, size, size, 1) by filtered back projection."""
    images = [iradon(x, angles, filter_name=filter_name) for x in sinograms]
    return np.stack(images)[..., None].astype("float32")


def sart(sinograms: np.ndarray, angles: np.ndarray, iterations: int) -> np.ndarray:
    """Returns images by the simultaneous algebraic reconstruction technique.

    Each step projects the image so far to one view, and spreads the difference from the
    measured view over the rays' pixels; an iteration goes through all views.
    """
    images = []
    for sinogram in sinograms.astype("float64"):
        image: Any = None
        for _ in range(iterations):
            image = iradon_sart(sinogram, angles, image=image, clip=(0.0, 1.0))
        images.append(image)
    return np.stack(images)[..., None].astype("float32")


def total_variation(
    matrix: sparse.csr_array, size: int, iterations: int = 100, rho: float = 10.0
) -> Callable[[np.ndarray, float], np.ndarray]:
    """Returns a function that reconstructs images of little total variation.

    For sinograms b and a weight w it minimizes

        1/2 |A x - b|^2 + w sum_pixels |grad x|    for x >= 0,

    which favours areas of one value with sharp rims: the strongest baseline here. The
    alternating direction method of multipliers (ADMM) splits it: z = grad x is shrunk,
    p = x is made positive, u and v are what x still violates (Boyd et al., 2011).
    """
    # Differences to the next pixel, right and below, 0 at the end.
    one = sparse.eye_array(size, dtype="float32")
    step = sparse.eye_array(size, k=1, dtype="float32") - one
    step = sparse.csr_array(step.multiply(np.arange(size)[:, None] < size - 1))
    grad = sparse.vstack([sparse.kron(one, step), sparse.kron(step, one)]).tocsr()
    normal = matrix.T @ matrix + rho * (grad.T @ grad + sparse.eye_array(size**2))
    factor = cho_factor(normal.toarray().astype("float32"), overwrite_a=True)

    def solve(sinograms: np.ndarray, weight: float) -> np.ndarray:
        target = matrix.T @ sinograms.reshape(len(sinograms), -1).T  # (pixels, N)
        p = v = np.zeros_like(target)
        z = u = np.zeros((2 * size**2, len(sinograms)), "float32")
        for _ in range(iterations):
            x = cho_solve(factor, target + rho * (grad.T @ (z - u) + p - v))
            slope = grad @ x + u
            length = np.hypot(*np.split(slope, 2))  # (pixels, N)
            shrunk = 1.0 - weight / rho / np.maximum(length, 1e-9)
            z = np.tile(np.maximum(shrunk, 0.0), (2, 1)) * slope
            u = slope - z
            p = np.maximum(x + v, 0.0)
            v = x + v - p
        return p.T.reshape(-1, size, size, 1)

    return solve


def best_setting(
    method: Callable, choices: Sequence, sinograms: np.ndarray, images: np.ndarray
) -> Any:
    """Returns the choice with which a method comes closest to the true images."""
    return max(choices, key=lambda x: psnr(method(sinograms, x), images).mean())


# --- Scores -------------------------------------------------------------------------


def image_scores(
    found: np.ndarray, images: np.ndarray, prefix: str = ""
) -> dict[str, float]:
    """Returns mean PSNR and SSIM; see scikit-image's documentation."""
    clipped = np.clip(found, 0.0, 1.0)[..., 0]
    ssim = [
        structural_similarity(true, x, data_range=1.0)
        for true, x in zip(images[..., 0], clipped, strict=True)
    ]
    return {
        f"{prefix}psnr": float(psnr(found, images).mean()),
        f"{prefix}ssim": float(np.mean(ssim)),
    }


def psnr(found: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns each image's peak signal-to-noise ratio, in decibels.

    Values are cut to [0, 1] before, for each method.
    """
    pairs = zip(images, np.clip(found, 0.0, 1.0), strict=True)
    return np.array(
        [peak_signal_noise_ratio(true, x, data_range=1.0) for true, x in pairs]
    )


def lesion_scores(
    found: np.ndarray, lesions: np.ndarray, prefix: str = ""
) -> dict[str, float]:
    """Returns how well found masks (N, size, size, 1) fit the true ones.

    Returns:
        `dice` with its interval; `lesions_found`, the share of lesions that a found
        region touches; `false_regions`, regions in an image that touch no lesion.
    """
    pairs = list(zip(found[..., 0], lesions[..., 0] > 0, strict=True))
    hits, false = [], 0
    for x, true in pairs:
        areas, regions = label(true), label(x)
        hits += [bool((x & (areas == i)).any()) for i in range(1, areas.max() + 1)]
        touching = set(regions[true & x].tolist())
        false += regions.max() - len(touching)
    return {
        **with_interval(f"{prefix}dice", np.array([dice(*pair) for pair in pairs])),
        f"{prefix}lesions_found": float(np.mean(hits)),
        f"{prefix}false_regions": float(false / len(pairs)),
    }


def dice(found: np.ndarray, true: np.ndarray) -> float:
    """Returns twice the area that two masks share, over the sum of their areas."""
    total = found.sum() + true.sum()
    return float(2.0 * (found & true).sum() / total) if total else 1.0


def with_interval(name: str, values: np.ndarray) -> dict[str, float]:
    """Returns the mean over the phantoms, and its 95 % interval by the bootstrap."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[drawn].mean(axis=1), (0.025, 0.975))
    return {
        name: float(values.mean()),
        f"{name}_low": float(low),
        f"{name}_high": float(high),
    }


# --- The baseline of the segmentation -----------------------------------------------


def threshold(images: np.ndarray, radius: int, low: float, high: float) -> np.ndarray:
    """Returns masks of pixels that are bright, but not as bright as bones.

    Args:
        images: (N, size, size, 1).
        radius: See `brightness`.
        low: Least brightness.
        high: Values from here on are bone.
    """
    return (brightness(images, radius) >= low) & (images < high)


def brightness(images: np.ndarray, radius: int) -> np.ndarray:
    """Returns the values, or what is above the surroundings (white top-hat).

    The surroundings reach about as far as `radius`, in pixels; 0 returns the values.
    """
    if not radius:
        return images
    above = [white_tophat(image[..., 0], disk(radius)) for image in images]
    return np.stack(above)[..., None]


def best_limits(images: np.ndarray, lesions: np.ndarray) -> tuple[int, float, float]:
    """Returns the arguments of `threshold` with the best Dice on training images."""
    scores = {}
    for radius in (0, 4, 6, 8):
        bright = brightness(images, radius)
        lows = np.arange(0.04, 0.2, 0.01) if radius else np.arange(0.5, 0.75, 0.02)
        for low, high in itertools.product(lows.tolist(), (0.7, 0.8, 0.9)):
            found = (bright >= low) & (images < high)
            pairs = zip(found, lesions > 0, strict=True)
            scores[radius, low, high] = np.mean([dice(*pair) for pair in pairs])
    return max(scores, key=lambda limits: scores[limits])


# --- Pictures -----------------------------------------------------------------------

TITLES = {
    "fbp": "filtered back projection",
    "sart": "SART",
    "tv": "total variation",
    "unet": "U-Net",
}


def draw_learning_curve(run: Run, history: keras.callbacks.History) -> None:
    """Plots the mean squared error of the reconstruction over the epochs."""
    with run.figure("learning_curve.png", figsize=(7, 4)) as figure:
        axes = figure.subplots()
        losses = history.history["loss"]
        axes.semilogy(np.arange(1, len(losses) + 1), losses, marker=".")
        axes.set(xlabel="Epoch", ylabel="Mean squared error in training")
        axes.grid(alpha=0.3, which="both")


def draw_reconstructions(
    run: Run,
    test: Phantoms,
    found: dict[str, np.ndarray],
    outlined: np.ndarray | None,
    number: int = 2,
) -> None:
    """Draws phantoms, their reconstructions, and below the errors.

    True lesions have a green outline, those that the second U-Net found an orange one.
    """
    number = min(number, len(test.images))
    ratios = {name: psnr(x[:number], test.images[:number]) for name, x in found.items()}
    with run.figure("reconstructions.png", figsize=(12, 4.9 * number)) as figure:
        grid = figure.subplots(2 * number, len(found) + 1)
        for i in range(number):
            (first, *others), (blank, *errors) = grid[2 * i : 2 * i + 2]
            true = test.images[i, ..., 0]
            show(first, true, "phantom")
            blank.axis("off")
            for name, axes, below in zip(found, others, errors, strict=True):
                image = found[name][i, ..., 0]
                show(axes, image, f"{TITLES[name]}\n{ratios[name][i]:.1f} dB")
                show(below, image - true, "error", "RdBu_r", (-0.2, 0.2))
            if test.lesions is not None:
                for axes in (first, *others):
                    outline(axes, test.lesions[i], GREEN)
            if outlined is not None:
                outline(others[-1], outlined[i], ORANGE)


def draw_lesions(
    run: Run,
    images: np.ndarray,
    lesions: np.ndarray,
    found: dict[str, np.ndarray],
    number: int = 6,
) -> None:
    """Draws images with true lesions (green) and found ones (orange)."""
    number = min(number, len(images))
    with run.figure("lesions.png", figsize=(2.1 * number, 2.4 * len(found))) as figure:
        grid = figure.subplots(len(found), number, squeeze=False)
        for (name, masks), line in zip(found.items(), grid, strict=True):
            for i, axes in enumerate(line):
                score = dice(masks[i], lesions[i] > 0)
                show(axes, images[i, ..., 0], f"{name}: Dice {score:.2f}")
                outline(axes, lesions[i], GREEN)
                outline(axes, masks[i], ORANGE)


GREEN, ORANGE = "#00d18f", "#ff8c1a"


def show(
    axes: Any,
    image: np.ndarray,
    title: str,
    colours: str = "gray",
    limits: tuple[float, float] = (0.0, 1.0),
) -> None:
    """Draws an image (size, size) without axes."""
    axes.imshow(image, colours, vmin=limits[0], vmax=limits[1])
    axes.set_title(title, fontsize="small")
    axes.axis("off")


def outline(axes: Any, mask: np.ndarray, colour: str) -> None:
    """Draws the rims of a mask (size, size, 1)."""
    if mask.any():
        axes.contour(mask[..., 0], [0.5], colors=colour, linewidths=1.0)


if __name__ == "__main__":
    command_line(main)
