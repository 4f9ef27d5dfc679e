r"""Generates handwritten digits with a generative adversarial network (GAN).

You will learn: how two networks train each other (`kit/gan.py`), and how to measure the
quality of samples, which the losses don't show (`kit/lab/gan_metrics.py`).

    KERAS_BACKEND=jax python recipes/gan.py
    KERAS_BACKEND=jax python recipes/gan.py --architecture dense --epochs 100
    KERAS_BACKEND=torch python recipes/gan.py --conditional
    KERAS_BACKEND=tensorflow python recipes/gan.py --loss wasserstein \
        --discriminator-steps 3

Expected result with the defaults (JAX, seed 0): the samples cover ten digits at a
Fréchet distance of 10.2 (training images 0.9, variational autoencoder 67), after three
and a half minutes on two busy cores. Some samples are malformed. The autoencoder is a
small one of Dense layers; its samples are means, hence blurred.

Other options (JAX, seed 0): `--conditional` reaches 1.4, as labels tell the generator
which digits there are, and 99 % of its samples are classified as the requested digit;
`--loss wasserstein --discriminator-steps 3` 16.3, in ten minutes; `--architecture dense
--epochs 100` 34.9, with eight digits.

A classifier that is trained on the real digits judges the samples. Its probabilities
show which digits the samples cover. The Fréchet distance compares 1,000 samples with
the test images in the classifier's last hidden layer. The same distance is measured for
as many training images (the best possible value), for a variational autoencoder's
samples, and for noise. Distances to the nearest training image show whether samples are
copies. The settings are common values, not tuned.

Paper: Goodfellow et al., 2014, https://arxiv.org/abs/1406.2661; Radford et al., 2016,
https://arxiv.org/abs/1511.06434. Differences: fewer layers, upsampling and convolution
instead of transposed convolutions, dropout of channels instead of batch normalization,
and moving averages of the generator's weights.
"""

from pathlib import Path
from typing import Any, Literal

import keras
import numpy as np
from matplotlib.image import imsave
from sklearn.metrics import accuracy_score

import kit
from kit import checks
from kit.autoencoder import VariationalAutoencoder, decoder, encoder
from kit.data.vision import Split, images
from kit.gan import (
    GAN,
    conv_discriminator,
    conv_generator,
    discriminator,
    generator,
)
from kit.lab.gan_metrics import classes_covered, frechet_distance, nearest_neighbours
from kit.lab.run import Run, command_line


def load_data(dataset: str) -> Split:
    """Returns images of floats in [-1, 1], the range of tanh, and their labels.

    Replace it to use your own data. Height and width must be divisible by four.
    """
    data = images(dataset)
    x_train, x_test = (
        x.astype("float32") / 127.5 - 1.0 for x in (data.x_train, data.x_test)
    )
    return Split(x_train, data.y_train, x_test, data.y_test)


ACCEPTED = {
    "architecture": checks.one_of("conv", "dense"),
    **dict.fromkeys(("epochs", "judge_epochs", "vae_epochs"), checks.SIZE),
    "learning_rate": checks.POSITIVE,
}

# Read by `python -m kit compare`: how to judge runs, and the arguments of --quick.
COMPARISON = {
    "title": "Generative adversarial network",
    "place": 10,
    "score": "frechet_distance",
    "larger_is_better": False,
    "curve": "generator_loss",
    "quick": "--architecture dense --epochs 10 --judge-epochs 2 --vae-epochs 10",
}


def main(
    *,
    dataset: Literal["mnist_5k", "mnist", "fashion_mnist", "cifar10"] = "mnist_5k",
    architecture: Literal["conv", "dense"] = "conv",
    conditional: bool = False,
    loss: Literal["non_saturating", "wasserstein"] = "non_saturating",
    gradient_penalty: float = 10.0,
    discriminator_steps: int = 1,
    latent_dim: int = 100,
    units: tuple[int, ...] = (128,),
    generator_filters: tuple[int, ...] = (64, 32, 16),
    discriminator_filters: tuple[int, ...] = (32, 64),
    dropout: float = 0.3,
    epochs: int = 40,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    ema_momentum: float = 0.995,
    judge_epochs: int = 8,
    vae_epochs: int = 60,
    num_samples: int = 1_000,
    seed: int = 0,
    output_dir: Path | None = None,
    resume: bool = False,
    verbose: int = 1,
) -> dict:
    """Trains a GAN; measures the quality, variety and novelty of its samples.

    Args:
        dataset: "mnist_5k" needs no download. Keras downloads the others.
        architecture: "dense" is 100-128-784 and 784-128-1.
        conditional: Learn to generate a requested digit.
        loss: "wasserstein" includes a gradient penalty.
        gradient_penalty: Weight of the gradient penalty.
        discriminator_steps: Steps of the discriminator per step of the generator.
        latent_dim: Random numbers per image.
        units: Sizes of the hidden layers of "dense".
        generator_filters: Channels at each image size, from the smallest size on.
        discriminator_filters: Filters of each convolution.
        dropout: Share of the discriminator's channels (or units) to drop in training.
        epochs: Passes over the training images.
        batch_size: Real images, and as many generated ones, per gradient step.
        learning_rate: Step size of both Adam optimizers.
        ema_momentum: Momentum of the moving average of the generator's weights.
        judge_epochs: Epochs of the classifier.
        vae_epochs: Epochs of the variational autoencoder.
        num_samples: Samples to measure, at most the number of test images.
        seed: Seed of all random draws.
        output_dir: Folder for the results; runs/gan-<backend>-<seed> if not given.
        resume: Resume an interrupted run from its last backup.
        verbose: 0 silent, 1 progress bar, 2 a line for each epoch.

    Returns:
        The contents of metrics.json.
    """
    run = Run("gan", seed=seed, output_dir=output_dir, resume=resume, config=locals())
    data = load_data(dataset)
    num_classes = int(data.y_train.max()) + 1
    sizes = {
        "batch_size": checks.integer(f"[1, {len(data.x_train)}]"),
        "num_samples": checks.integer(f"[100, {len(data.x_test)}]"),
    }
    checks.check("gan", run.config, ACCEPTED | sizes)
    shape, classes = data.x_train.shape[1:], num_classes if conditional else None
    if architecture == "dense":
        parts = (
            generator(shape, latent_dim, units, classes),
            discriminator(shape, units, classes, dropout),
        )
    else:
        parts = (
            conv_generator(shape, latent_dim, generator_filters, classes),
            conv_discriminator(shape, discriminator_filters, classes, dropout),
        )
    gan = GAN(*parts, classes, loss, gradient_penalty, discriminator_steps, seed)
    kit.initialize_weights(gan, seed)
    average: Any = {"use_ema": True, "ema_momentum": ema_momentum}
    # Low momentum: older gradients were computed against an older adversary.
    gan.compile(
        keras.optimizers.Adam(learning_rate, beta_1=0.5, beta_2=0.99, **average),
        keras.optimizers.Adam(learning_rate, beta_1=0.5, beta_2=0.99),
    )
    history = gan.fit(
        data.x_train,
        data.y_train if conditional else None,
        batch_size=batch_size,
        epochs=epochs,
        callbacks=[
            kit.EpochTimer(),
            SampleSheets(run.output_dir / "samples"),
            run.backup(),
        ],
        verbose=verbose,
    )
    gan.save(run.output_dir / "model.keras")

    # The Fréchet distance depends on the number of images: all sets have the same.
    real = np.random.default_rng(0).permutation(data.x_test)[:num_samples]
    sets = {
        "GAN": gan.sample(num_samples, seed=seed),
        "real": data.x_train[:num_samples],
        "VAE": vae_samples(data.x_train, num_samples, vae_epochs, seed),
        "noise": np.random.default_rng(seed).uniform(-1, 1, real.shape),
    }
    judge = train_judge(data, num_classes, judge_epochs, seed)
    last = judge.layers[-1]
    watch = keras.Model(judge.inputs, [last.input, last.output])
    features, _ = watch.predict(real, verbose=0)
    judged = judge.predict(data.x_test, verbose=0).argmax(axis=1)
    accuracy = accuracy_score(data.y_test, judged)
    figures: dict[str, dict] = {}
    for name, x in sets.items():
        inner, probabilities = watch.predict(x, verbose=0)
        figures[name] = {
            "digits_covered": classes_covered(probabilities),
            "frechet_distance": frechet_distance(inner, features),
        }
        if name == "GAN" and conditional:  # sample() cycles through the classes
            asked = np.arange(num_samples) % num_classes
            hits = accuracy_score(asked, probabilities.argmax(axis=1))
            figures[name]["asked_digit_accuracy"] = hits

    # Copies lie nearer to training images than test images do.
    distances, indices = nearest_neighbours(sets["GAN"] / 2, data.x_train / 2)
    real_distances, _ = nearest_neighbours(real / 2, data.x_train / 2)
    figures["GAN"]["nearest_distance"] = np.median(distances)
    figures["GAN"]["copied_share"] = np.mean(
        distances < np.quantile(real_distances, 0.01)
    )
    figures["real"]["nearest_distance"] = np.median(real_distances)

    draw_sets(run, {name: sets[name] for name in ("real", "VAE", "GAN")}, figures)
    draw_progress(run, gan, history)
    draw_nearest(run, sets["GAN"], data.x_train[indices], distances)
    baselines = {
        f"{name.lower()}_{key}": value
        for name in ("real", "VAE", "noise")
        for key, value in figures[name].items()
    }
    return run.finish(
        history=history,
        metrics={**figures["GAN"], "judge_test_accuracy": accuracy},
        baselines=baselines,
        throughput=(
            len(data.x_train) / np.median(history.history["seconds"]),
            "samples/s",
        ),
        compile_seconds=kit.compile_seconds(),
    )


class SampleSheets(keras.callbacks.Callback):
    """Saves a sheet of samples after each epoch, from the same random numbers."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder

    def on_train_begin(self, logs=None):
        """Creates the folder."""
        self.folder.mkdir(exist_ok=True)

    def on_epoch_end(self, epoch, logs=None):
        """Draws 100 samples with the current weights."""
        sheet = tile(self.model.sample(100), columns=10)
        path = self.folder / f"epoch_{epoch + 1:03d}.png"
        sheet = np.repeat(sheet, 3, axis=-1) if sheet.shape[-1] == 1 else sheet
        imsave(path, sheet.repeat(2, axis=0).repeat(2, axis=1))


def train_judge(data: Split, num_classes: int, epochs: int, seed: int) -> Any:
    """Trains the CNN of recipes/cnn.py, without augmentation, to judge samples."""
    judge = kit.cnn(
        data.x_train.shape[1:], num_classes, dropout=0.3, batch_normalization=True
    )
    kit.initialize_weights(judge, seed)
    steps = epochs * -(-len(data.x_train) // 128)
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, steps)
    judge.compile(keras.optimizers.Adam(schedule), "sparse_categorical_crossentropy")
    judge.fit(data.x_train, data.y_train, batch_size=128, epochs=epochs, verbose=0)
    return judge


def vae_samples(x: np.ndarray, num: int, epochs: int, seed: int) -> np.ndarray:
    """Trains a VAE, the baseline, and returns its samples in [-1, 1]."""
    shape, latent_dim, units = x.shape[1:], 16, (256,)
    vae = VariationalAutoencoder(
        encoder(shape, latent_dim, units, variational=True),
        decoder(shape, latent_dim, units),
    )
    kit.initialize_weights(vae, seed)
    steps = epochs * -(-len(x) // 64)
    vae.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(2e-3, steps))
    )
    vae.fit((x + 1) / 2, batch_size=64, epochs=epochs, verbose=0)
    return 2 * keras.ops.convert_to_numpy(vae.sample(num, seed)) - 1


def tile(x: np.ndarray, columns: int) -> np.ndarray:
    """Arranges images in [-1, 1] in a grid, uint8; grey ones as dark ink on white."""
    rows = len(x) // columns
    _, height, width, channels = x.shape
    x = x[: rows * columns].reshape(rows, columns, height, width, channels)
    sheet = x.transpose(0, 2, 1, 3, 4).reshape(rows * height, columns * width, channels)
    sheet = -sheet if channels == 1 else sheet
    return np.clip(127.5 * (sheet + 1), 0, 255).astype("uint8")


def show(axes: Any, sheet: np.ndarray) -> None:
    axes.imshow(sheet.squeeze(), cmap="gray", vmin=0, vmax=255)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def draw_sets(run: Run, sets: dict[str, np.ndarray], figures: dict[str, dict]) -> None:
    """Draws real images, the VAE's samples and the GAN's samples side by side."""
    with run.figure("samples.png", figsize=(12, 4.6)) as figure:
        panels = figure.subplots(1, len(sets))
        for axes, (name, x) in zip(panels, sets.items(), strict=True):
            show(axes, tile(x[:100], columns=10))
            distance = figures[name]["frechet_distance"]
            axes.set_title(f"{name}: Fréchet distance {distance:.2f}", loc="left")


def draw_progress(run: Run, gan: GAN, history: keras.callbacks.History) -> None:
    """Plots both losses, and the discriminator's mean scores."""
    logs, epochs = history.history, np.array(history.epoch) + 1
    with run.figure("learning_curve.png", figsize=(10, 4)) as figure:
        left, right = figure.subplots(1, 2)
        for part in ("discriminator", "generator"):
            left.plot(epochs, logs[f"{part}_loss"], label=part)
        for kind in ("real", "fake"):
            right.plot(epochs, logs[kind], label=f"{kind} images")
        left.set(xlabel="Epoch", ylabel=f"Loss ({gan.loss_name})", title="Losses")
        right.set(xlabel="Epoch", ylabel="Mean score D(x)", title="Scores")
        for axes in (left, right):
            axes.legend(frameon=False)
            axes.spines[["top", "right"]].set_visible(False)


def draw_nearest(
    run: Run, samples: np.ndarray, nearest: np.ndarray, distances: np.ndarray
) -> None:
    """Draws the samples nearest to a training image, each with that image."""
    first = np.argsort(distances)[:12]
    pairs = np.concatenate([samples[first], nearest[first]])
    height = samples.shape[1]
    with run.figure("nearest.png", figsize=(10, 2.4)) as figure:
        axes = figure.subplots()
        show(axes, tile(pairs, columns=len(first)))
        axes.set_yticks([height / 2, 3 * height / 2], ["sample", "training image"])
        axes.tick_params(length=0)
        axes.set_title("The samples that come nearest to a training image", loc="left")


if __name__ == "__main__":
    command_line(main)
