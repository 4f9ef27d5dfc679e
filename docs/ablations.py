"""Measures what a hyper-parameter does, and draws the pictures of docs/algorithms.

    KERAS_BACKEND=jax python docs/ablations.py          # all, an hour or two
    KERAS_BACKEND=jax python docs/ablations.py dqn ppo
    KERAS_BACKEND=jax python docs/ablations.py --draw   # again, from stored numbers

Each hyper-parameter has three values; the others stay as they are below. Agents train
in environments of `kit.envs`, with seeds 30 to 34, on which nothing was chosen; a curve
is the mean over these seeds, a band its 95 % interval. Networks have seeds 30 to 32 and
are measured on validation data. docs/images/ has the pictures, docs/images/ablations/
the numbers. (Six pictures are older: of those, ablations.json has the last values.
Translation and A3C aren't drawn yet: their runs take an hour each.)
"""

import functools
import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium
import keras
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.model_selection import train_test_split

import kit
from kit.data.corpus import Characters, load_text
from kit.envs.classic_control import CartPole
from kit.envs.grid_worlds import FrozenLake
from kit.lab import language_model
from kit.lab.run import COLORS, mean_and_interval

IMAGES = Path(__file__).parent / "images"
RECIPES = Path(__file__).parents[1] / "recipes"
SEEDS = range(30, 35)
STYLES = ("--", "-", ":")  # of the three values, beside their colours
# Where intervals leave the range of what is measured.
LIMITS = {"a3c": (0, 520), "capsnet": (0.93, 1.0), "gan": (0, 8.5), "mlp": (0, 1.5)}

# --- What is trained ----------------------------------------------------------


def networks(seed, *models):
    for model, model_seed in zip(
        models, kit.random.split_seed(seed, len(models)), strict=True
    ):
        kit.initialize_weights(model, model_seed)
    return models


def dqn(seed, **options):
    (network,) = networks(seed, kit.q_network((4,), 2, (120, 84)))
    frequent = {"gradient_steps": 5, "batch_size": 64, "buffer_size": 50_000}
    agent = kit.DQN(network, **{"seed": seed, **frequent, **options})
    agent.compile(keras.optimizers.Adam(5e-4))
    return agent


def with_critic(kind, seed, **options):
    """Returns an agent that has an actor and a critic, not compiled yet."""
    env = CartPole(num_envs=8)
    actor = kit.policy_network((4,), env.action_space)
    critic = kit.value_network((4,))
    networks(seed, actor, critic)
    return kind(actor, critic, seed=seed, **options)


def on_policy(kind, rate, seed, **options):
    agent = with_critic(kind, seed, **options)
    agent.compile(keras.optimizers.Adam(rate, epsilon=1e-5, global_clipnorm=0.5))
    return agent


def q_learning(seed, **options):
    agent = kit.QLearning(16, 4, **{"seed": seed, **options})
    agent.compile(keras.optimizers.SGD(0.1))
    return agent


def returns(make_agent: Callable, env: Any, steps: int, **options):
    """Trains one agent for each seed; returns steps and returns, (E,) and (S, E)."""
    agents = [make_agent(seed, **options) for seed in SEEDS]
    histories = kit.fit_together(
        agents, env, steps, steps_per_epoch=steps // 25, verbose=0
    )
    curves = np.array([history.history["return"] for history in histories])
    return np.array(histories[0].history["timesteps"]), curves


def digits():
    """Returns images and labels to train on, and to validate on."""
    data = kit.data.images()
    x, y = data.x_train / np.float32(255), data.y_train
    return (x[:3200], y[:3200]), (x[3200:], y[3200:])


def cnn(seed, **options):
    (x, y), valid = digits()
    (model,) = networks(seed, kit.cnn(**{"filters": (16, 32, 32), **options}))
    loss = "sparse_categorical_crossentropy"
    model.compile(keras.optimizers.Adam(1e-3), loss, metrics=["accuracy"])
    history = model.fit(x, y, epochs=10, validation_data=valid, verbose=0)
    return history.history["val_accuracy"]


def autoencoder(seed, **options):
    x, x_valid = (images.reshape(-1, 784) for images, _ in digits())
    sizes = {"latent_dim": 32, "units": (256,), **options}
    (model,) = networks(seed, kit.autoencoder((784,), **sizes))
    model.compile(keras.optimizers.Adam(1e-3), "mse")
    history = model.fit(x, x, epochs=20, validation_data=(x_valid, x_valid), verbose=0)
    return history.history["val_loss"]


class LogLikelihood(keras.callbacks.Callback):
    """Logs log p(v) of validation examples: exact, as there are few hidden units."""

    def __init__(self, x):
        super().__init__()
        self.x = x

    def on_epoch_end(self, epoch, logs=None):
        """Called by Keras."""
        rbm = self.model.rbm
        kernel, visible_bias, hidden_bias = (
            keras.ops.convert_to_numpy(w)
            for w in (rbm.kernel, rbm.visible_bias, rbm.hidden_bias)
        )
        # Z is a sum over the states of the hidden units: here 4,096.
        states = np.indices((2,) * rbm.units).reshape(rbm.units, -1).T  # (2^U, U)
        inputs = states @ kernel.T + visible_bias
        terms = states @ hidden_bias + np.logaddexp(0.0, inputs).sum(axis=1)
        log_z = terms.max() + np.log(np.exp(terms - terms.max()).sum())
        free_energy = keras.ops.convert_to_numpy(rbm.free_energy(self.x))
        logs["log_likelihood"] = float(-free_energy.mean() - log_z)


def rbm(seed, **options):
    x, x_valid = (
        (images.reshape(-1, 784) > 0.5).astype("float32") for images, _ in digits()
    )
    layer = kit.RBM(12, seed=seed, **options)
    dbn = kit.DBN([layer])
    dbn.build((None, 784))
    (history,) = dbn.pretrain(
        x, epochs=30, batch_size=50, callbacks=[LogLikelihood(x_valid)], verbose=0
    )
    return history.history["log_likelihood"]


class Clusters(keras.callbacks.Callback):
    """Logs how many clusters the samples of a GAN cover."""

    def __init__(self, centres):
        super().__init__()
        self.centres = centres

    def on_epoch_end(self, epoch, logs=None):
        """Called by Keras."""
        samples = keras.ops.convert_to_numpy(self.model.sample(1000))
        distances = np.linalg.norm(samples[:, None] - self.centres, axis=2)
        nearest = distances.argmin(axis=1)[distances.min(axis=1) < 0.15]
        counts = np.bincount(nearest, minlength=len(self.centres))
        logs["clusters"] = int(np.sum(counts > 0.02 * len(samples)))


def gan(seed, discriminator_rate=1e-3, loss="non_saturating"):
    angle = 2 * np.pi * np.arange(8) / 8
    centres = 0.7 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    rng = np.random.default_rng(seed)
    x = centres[rng.integers(0, 8, 4000)] + 0.03 * rng.normal(size=(4000, 2))
    name, _, steps = loss.partition(", ")
    model = kit.GAN(
        kit.gan.generator((2,), 2, (64, 64)),
        kit.gan.discriminator((2,), (64, 64)),
        loss=name,
        discriminator_steps=int(steps.split()[0]) if steps else 1,
        seed=seed,
    )
    networks(seed, model)
    adam = functools.partial(keras.optimizers.Adam, beta_1=0.5)
    model.compile(adam(1e-3), adam(discriminator_rate))
    options = {"batch_size": 100, "epochs": 30, "verbose": 0}
    history = model.fit(x.astype("float32"), callbacks=[Clusters(centres)], **options)
    return history.history["clusters"]


def mlp(seed, units=(64,), learning_rate=1e-3):
    x, y = load_breast_cancer(return_X_y=True)
    x, x_valid, y, y_valid = train_test_split(
        x.astype("float32"), y, test_size=0.3, random_state=seed, stratify=y
    )
    mean, std = x.mean(axis=0), x.std(axis=0)
    x, x_valid = (x - mean) / std, (x_valid - mean) / std
    model = kit.mlp((30,), 2, units, output_activation="softmax", dropout=0.3)
    networks(seed, model)
    model.compile(
        keras.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy"
    )
    history = model.fit(x, y, epochs=50, validation_data=(x_valid, y_valid), verbose=0)
    return history.history["val_loss"]


@functools.cache
def recipe(name: str) -> ModuleType:
    """Returns a recipe, whose data and functions are used here."""
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cosine(rate, examples, batch_size, epochs):
    """Returns Adam as the recurrent recipes use it."""
    steps = epochs * -(-examples // batch_size)
    schedule = keras.optimizers.schedules.CosineDecay(rate, steps)
    return keras.optimizers.Adam(schedule, clipnorm=1.0)


def rnn(seed, window=48, units=64):
    sea, horizon, epochs = recipe("rnn"), 24, 10
    series = sea.load_series()
    features = sea.make_features(series)
    ends = sea.check_and_split(len(series), window, horizon)
    (x, t), (x_valid, t_valid) = (
        sea.make_windows(features, window, horizon, start, end)
        for start, end in zip((0, ends[0]), ends, strict=True)
    )
    y, y_valid = (sea.future(features, at, horizon) for at in (t, t_valid))
    model = sea.build_forecaster(x, y, (units,))
    networks(seed, model)
    model.compile(cosine(1e-3, len(x), 64, epochs), "mae")
    options = {"batch_size": 64, "epochs": epochs, "verbose": 0}
    history = model.fit(x, y, validation_data=(x_valid, y_valid), **options)
    return history.history["val_loss"]


def gru(seed, units=64, dropout=0.5):
    speakers = recipe("gru")
    speech, _ = speakers.load_data()
    # Of each speaker's 30 utterances in a row, every third one is held out.
    parts = [
        speakers.Speech(speech.utterances[i::3], speech.speakers[i::3])
        for i in range(3)
    ]
    held_out = parts.pop()
    known = speakers.Speech(
        parts[0].utterances + parts[1].utterances,
        np.concatenate([part.speakers for part in parts]),
    )
    altered = speakers.augment(known, 10, 0.3, 0.3, seed)
    x, x_valid = (speakers.pad(part.utterances) for part in (altered, held_out))
    normalization = keras.layers.Normalization()
    normalization.adapt(np.concatenate(known.utterances))
    model = kit.gru(
        (None, x.shape[-1]),
        9,
        units=(units, units),
        output_activation="softmax",
        mask_value=speakers.PADDING,
        dropout=dropout,
        preprocessing=[normalization, keras.layers.GaussianNoise(0.3)],
    )
    networks(seed, model)
    optimizer = cosine(3e-3, len(x), 30, epochs=8)
    loss = "sparse_categorical_crossentropy"
    model.compile(optimizer, loss, metrics=["accuracy"])
    valid = x_valid, held_out.speakers
    options = {"batch_size": 30, "epochs": 8, "verbose": 0}
    history = model.fit(x, altered.speakers, validation_data=valid, **options)
    return history.history["val_accuracy"]


@functools.cache
def text():
    """Returns tokens to train on and to validate on, and the vocabulary's size."""
    train, valid, _ = load_text(None)
    vocabulary = Characters.of(train)
    return (
        vocabulary.encode(train[:200_000]),
        vocabulary.encode(valid[:30_000]),
        len(vocabulary),
    )


def bits(model, measure, rate, seed, **options):
    """Trains a language model on a sixth of the recipes' text."""
    train, valid, _ = text()
    settings = {"length": 64, "batch_size": 8, "epochs": 6, "verbose": 0}
    history = language_model.fit(
        model,
        train,
        valid,
        measure,
        learning_rate=rate,
        seed=seed,
        **settings,
        **options,
    )
    return [row["val_bits_per_char"] for row in history]


def lstm(seed, units=64, learning_rate=5e-3):
    size = text()[2]
    model = kit.lstm(
        (None,), size, units=(units,), return_sequences=True, vocabulary_size=size
    )
    language_model.initialize_recurrent(model, seed)
    measure = language_model.make_bits_by_steps(model)
    return bits(model, measure, learning_rate, seed)


def transformer(seed, hidden_dim=64, learning_rate=3e-3):
    model = kit.gpt(text()[2], 64, 2, 4, hidden_dim, positions="rotary")
    networks(seed, model)
    measure = language_model.make_bits_by_windows(model, 64)
    return bits(model, measure, learning_rate, seed, warmup_steps=100, beta_2=0.99)


def translation(seed, hidden_dim=64, num_pairs=12_000):
    translator, epochs = recipe("translation"), 10
    pairs = translator.numbers("de", num_pairs, np.random.default_rng(seed))
    lengths = translator.check_length(pairs, 80)
    parts = translator.split(pairs, 4)
    source, target = (
        kit.seq2seq.vocabulary(pair[side] for pair in parts["train"]) for side in (0, 1)
    )
    (x, y), valid = (
        translator.arrays(parts[name], source, target, lengths)
        for name in ("train", "valid")
    )
    model = kit.encoder_decoder(
        len(source),
        len(target),
        80,
        num_layers=2,
        num_heads=4,
        hidden_dim=hidden_dim,
        positions="sinusoidal",
    )
    networks(seed, model)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    exact = kit.seq2seq.ExactMatch()
    model.compile(cosine(3e-3, len(y), 64, epochs), loss, metrics=[exact])
    options = {"batch_size": 64, "epochs": epochs, "verbose": 0}
    history = model.fit(x, y, validation_data=valid, **options)
    return history.history["val_exact_match"]


def capsnet(seed, routings=3, reconstruction_weight=0.0005):
    (x, y), valid = digits()
    model = kit.capsnet(
        (28, 28, 1), 10, "small", routings, reconstruction_weight=reconstruction_weight
    )
    networks(seed, model)
    model.compile(cosine(2e-3, len(x), 64, epochs=5), metrics=["accuracy"])
    options = {"batch_size": 64, "epochs": 5, "verbose": 0}
    history = model.fit(x, y, validation_data=valid, **options)
    return history.history["val_accuracy"]


def a3c(num_workers=2, learning_rate=2e-3):
    """Trains one agent for each seed; returns steps and returns, (E,) and (S, E)."""
    curves, at = [], np.arange(2_000, 100_001, 2_000)
    for seed in SEEDS:
        options = {"num_steps": 20, "gae_lambda": 1.0, "ent_coef": 0.01}
        agent = with_critic(kit.A3C, seed, **options)
        schedule = keras.optimizers.schedules.PolynomialDecay(
            learning_rate, at[-1] // 20, 0.0
        )
        agent.compile(
            keras.optimizers.RMSprop(
                schedule, rho=0.99, epsilon=1e-5, global_clipnorm=40.0
            )
        )
        history = agent.fit(
            functools.partial(gymnasium.make, "CartPole-v1"),
            total_timesteps=int(at[-1]),
            num_workers=num_workers,
            verbose=0,
        ).history
        curves.append(np.interp(at, history["timesteps"], history["return"]))
    return at, np.array(curves)


def by_seed(train: Callable, **options):
    """Trains once for each of three seeds; returns epochs and curves, (E,), (S, E)."""
    curves = np.array([train(seed, **options) for seed in SEEDS[:3]])
    return np.arange(1, curves.shape[1] + 1), curves


# --- What is changed ----------------------------------------------------------

cart_pole = functools.partial(returns, env=CartPole(num_envs=8), steps=100_000)
# name: what trains, axes, and the values of each hyper-parameter
ABLATIONS: dict[str, tuple[Callable, tuple[str, str], dict[str, tuple]]] = {
    "dqn": (
        functools.partial(returns, dqn, CartPole(num_envs=1), 50_000),
        ("environment step", "return"),
        {
            "target_update_freq": (10, 500, 10_000),
            "exploration_fraction": (0.02, 0.5, 1.0),
        },
    ),
    "actor_critic": (
        functools.partial(cart_pole, functools.partial(on_policy, kit.A2C, 2e-3)),
        ("environment step", "return"),
        {"num_steps": (1, 5, 50), "ent_coef": (0.0, 0.01, 0.3)},
    ),
    "ppo": (
        functools.partial(cart_pole, functools.partial(on_policy, kit.PPO, 1e-3)),
        ("environment step", "return"),
        {"clip_coef": (0.02, 0.2, 1e6), "num_epochs": (1, 4, 20)},
    ),
    "q_learning": (
        functools.partial(returns, q_learning, FrozenLake(num_envs=1), 50_000),
        ("environment step", "return"),
        {"epsilon_end": (0.0, 0.1, 0.5), "gamma": (0.5, 0.9, 0.99)},
    ),
    "cnn": (
        functools.partial(by_seed, cnn),
        ("epoch", "accuracy on validation digits"),
        {
            "filters": ((4, 8, 8), (16, 32, 32), (64, 64, 64)),
            "dropout": (0.0, 0.3, 0.7),
        },
    ),
    "autoencoder": (
        functools.partial(by_seed, autoencoder),
        ("epoch", "squared error on validation digits"),
        {"latent_dim": (2, 32, 256), "units": ((32,), (256,), (1024,))},
    ),
    "dbn": (
        functools.partial(by_seed, rbm),
        ("epoch", "log-likelihood of validation digits"),
        {"learning_rate": (0.002, 0.05, 1.0), "k": (1, 5, 25)},
    ),
    "gan": (
        functools.partial(by_seed, gan),
        ("epoch", "clusters that samples cover, of 8"),
        {
            "discriminator_rate": (1e-4, 1e-3, 1e-2),
            "loss": ("non_saturating", "wasserstein", "wasserstein, 5 steps"),
        },
    ),
    "mlp": (
        functools.partial(by_seed, mlp),
        ("epoch", "cross-entropy of validation rows"),
        {
            "units": ((1,), (64,), (1024, 1024)),
            "learning_rate": (1e-5, 1e-3, 1e-1),
        },
    ),
    "rnn": (
        functools.partial(by_seed, rnn),
        ("epoch", "error in the validation span (°C)"),
        {"window": (6, 48, 96), "units": (4, 64, 256)},
    ),
    "gru": (
        functools.partial(by_seed, gru),
        ("epoch", "accuracy on held-out utterances"),
        {"units": (4, 64, 256), "dropout": (0.0, 0.5, 0.9)},
    ),
    "lstm": (
        functools.partial(by_seed, lstm),
        ("epoch", "bits per character, validation text"),
        {"units": (16, 64, 256), "learning_rate": (1e-4, 5e-3, 1e-1)},
    ),
    "transformer": (
        functools.partial(by_seed, transformer),
        ("epoch", "bits per character, validation text"),
        {"hidden_dim": (16, 64, 192), "learning_rate": (1e-4, 3e-3, 1e-1)},
    ),
    "translation": (
        functools.partial(by_seed, translation),
        ("epoch", "exact match, validation numbers"),
        {"hidden_dim": (16, 64, 128), "num_pairs": (1_000, 4_000, 12_000)},
    ),
    "capsnet": (
        functools.partial(by_seed, capsnet),
        ("epoch", "accuracy on validation digits"),
        {"routings": (1, 3, 6), "reconstruction_weight": (0.0, 5e-4, 5e-2)},
    ),
    "a3c": (
        a3c,
        ("environment step", "return"),
        {"num_workers": (1, 2, 8), "learning_rate": (1e-4, 2e-3, 2e-2)},
    ),
}


def measure(name: str) -> dict[str, Any]:
    """Returns mean and interval over training, by hyper-parameter and value."""
    train, _, changed = ABLATIONS[name]
    found: dict[str, Any] = {}
    for option, values in changed.items():
        for value in values:
            x, curves = train(**{option: value})
            x, _, mean, half = mean_and_interval(x, curves)
            found.setdefault(option, {})[str(value)] = {
                key: [float(f"{number:.5g}") for number in numbers]
                for key, numbers in (("x", x), ("mean", mean), ("interval", half))
            }
            print(name, option, value, mean[-1], half[-1], flush=True)
    return found


def draw(name: str, found: dict[str, Any]) -> None:
    """Draws an ablation."""
    _, (xlabel, ylabel), changed = ABLATIONS[name]
    figure, axes = plt.subplots(
        1, 2, figsize=(9, 3.2), sharey=True, layout="constrained"
    )
    for axis, (option, values) in zip(axes, changed.items(), strict=True):
        for value, color, style in zip(values, COLORS, STYLES, strict=False):
            x, mean, half = map(np.array, found[option][str(value)].values())
            label = f"{value:g}" if isinstance(value, int | float) else str(value)
            axis.plot(x, mean, style, color=color, linewidth=2, label=label)
            axis.fill_between(
                x, mean - half, mean + half, color=color, alpha=0.15, linewidth=0
            )
        axis.set(title=option, xlabel=xlabel)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(axis="y", color="#e6e6e6")
        axis.legend(fontsize="small", edgecolor="none")
    axes[0].set_ylabel(ylabel)
    axes[0].set_ylim(LIMITS.get(name))
    figure.savefig(IMAGES / f"ablation_{name}.png", dpi=90)


def main(names: list[str]) -> None:
    stored = "--draw" in names
    names = [name for name in names if name != "--draw"]
    (IMAGES / "ablations").mkdir(exist_ok=True)
    for name in names or ABLATIONS:
        path = IMAGES / "ablations" / f"{name}.json"
        if stored and not path.exists():
            continue
        if not stored:
            path.write_text(json.dumps(measure(name)) + "\n", encoding="utf-8")
        draw(name, json.loads(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
