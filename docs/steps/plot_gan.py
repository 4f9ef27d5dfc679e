"""
Generative adversarial network, step by step
============================================

We begin with numbers on a line, where everything can be drawn, then see what goes
wrong on a ring of points, and what helps. The last steps draw digits, with
`kit/gan.py`.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kit

rng = np.random.default_rng(0)


def dense(inputs, outputs, units=(64, 64), seed=0):
    layers = [keras.layers.Dense(size, activation="leaky_relu") for size in units]
    model = keras.Sequential(
        [keras.Input((inputs,)), *layers, keras.layers.Dense(outputs)]
    )
    kit.initialize_weights(model, seed)
    return model


# %%
# Step 1: two networks, two losses
# --------------------------------
#
# The generator G turns random numbers z into examples. The discriminator D gives a
# logit: positive if an example looks real. Each has its own loss and optimizer:
#
# .. math::
#    L_D = \mathrm{softplus}(-D(x)) + \mathrm{softplus}(D(G(z))), \qquad
#    L_G = \mathrm{softplus}(-D(G(z)))
#
# Both gradient steps are one compiled function.


def train(generator, discriminator, draw_real, steps, learning_rate=1e-3, watch=()):
    """Trains both; returns the losses, and examples at the steps in `watch`."""
    optimizers = [keras.optimizers.Adam(learning_rate, beta_1=0.5) for _ in range(2)]

    @kit.compiled
    def step(real, z, z_again):
        def discriminator_loss():
            fake = ops.stop_gradient(generator(z))
            return ops.mean(
                ops.softplus(-discriminator(real)) + ops.softplus(discriminator(fake))
            )

        def generator_loss():
            return ops.mean(ops.softplus(-discriminator(generator(z_again))))

        d = kit.minimize(
            discriminator_loss, discriminator.trainable_variables, optimizers[0]
        )
        g = kit.minimize(generator_loss, generator.trainable_variables, optimizers[1])
        return d, g

    latent_dim = generator.input_shape[1]
    losses, seen = [], {}
    for i in range(steps):
        if i in watch:
            seen[i] = np.asarray(
                generator(rng.normal(size=(500, latent_dim)).astype("float32"))
            )
        z = rng.normal(size=(2, 128, latent_dim)).astype("float32")
        losses.append([float(x) for x in step(draw_real(128), *z)])
    return np.array(losses), seen


def numbers(size):
    return (4 + 0.5 * rng.normal(size=(size, 1))).astype("float32")


generator, discriminator = dense(1, 1), dense(1, 1, seed=1)
losses, seen = train(generator, discriminator, numbers, 2001, watch=(0, 300, 2000))

figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), layout="constrained", sharey=True)
bins = np.linspace(-2, 7, 50)
for axis, (step, fake) in zip(axes, seen.items(), strict=True):
    axis.hist(numbers(500)[:, 0], bins, alpha=0.5, label="real")
    axis.hist(np.clip(fake[:, 0], -2, 7), bins, alpha=0.5, label="generated")
    axis.set(title=f"after {step} steps", xlabel="number")
axes[0].legend()
figure.suptitle("Step 1: the generated numbers move to the real ones")

# %%
# Step 2: how to read the curves
# ------------------------------
#
# No loss falls to 0. If both are about log 2 = 0.69 (twice that for the discriminator,
# which has two terms), D can't tell real from fake: a draw. A discriminator's loss near
# 0 means that it wins, and that the generator learns little.

figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, series, draw in (
    ("discriminator", losses[:, 0], 2),
    ("generator", losses[:, 1], 1),
):
    line = axis.plot(np.convolve(series, np.ones(50) / 50, mode="valid"), label=name)[0]
    axis.axhline(draw * np.log(2), color=line.get_color(), linestyle=":")
axis.set(
    xlabel="step", ylabel="loss", title="Step 2: near a draw (dotted), all is well"
)
axis.legend()

# %%
# Step 3: why this loss of the generator
# --------------------------------------
#
# The first idea is that G maximizes the discriminator's loss, and so minimizes
# -softplus(D(G(z))). At the beginning, D is sure that examples are fake (a very
# negative logit), and there this loss is flat. The loss above is steepest there.

logit = np.linspace(-8, 8, 200)
sigmoid = 1 / (1 + np.exp(-logit))
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
axis.plot(logit, sigmoid, label="minimax: -softplus(D)")
axis.plot(logit, 1 - sigmoid, label="non-saturating: softplus(-D)")
axis.set(xlabel="logit of a generated example", ylabel="size of the gradient")
axis.set_title("Step 3: where the generator learns")
axis.legend()

# %%
# Step 4: mode collapse
# ---------------------
#
# Eight groups of points on a ring. The generator may find a few of them, on which D is
# deceived for the moment, and neglect the others.

angles = 2 * np.pi * np.arange(8) / 8
centres = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def ring(size):
    points = centres[rng.integers(8, size=size)] + 0.05 * rng.normal(size=(size, 2))
    return points.astype("float32")


def groups_found(points):
    """Returns how many of the groups have at least 1 % of the points near them."""
    distances = np.linalg.norm(points[:, None] - centres, axis=2)
    near = np.argmin(distances, axis=1)[distances.min(axis=1) < 0.3]
    return int(np.sum(np.bincount(near, minlength=8) >= len(points) / 100))


generator, discriminator = dense(8, 2), dense(2, 1, seed=1)
_, collapsed = train(generator, discriminator, ring, 3001, watch=(500, 1500, 3000))


def show_ring(seen, title):
    figure, axes = plt.subplots(1, len(seen), figsize=(9, 3.2), layout="constrained")
    for axis, (step, points) in zip(axes, seen.items(), strict=True):
        axis.scatter(*ring(500).T, s=4, label="real")
        axis.scatter(*points.T, s=4, alpha=0.5, label="generated")
        axis.set(
            xlim=(-3, 3),
            ylim=(-3, 3),
            title=f"{step} steps: {groups_found(points)} of 8",
        )
    axes[0].legend(loc="center")
    figure.suptitle(title)


show_ring(collapsed, "Step 4: groups that are found")

# %%
# Step 5: Wasserstein distance with gradient penalty
# --------------------------------------------------
#
# D becomes a critic without a probability, and a penalty keeps its slope near 1:
#
# .. math:: L_D = D(G(z)) - D(x) + 10\,(\lVert \nabla D(\hat x) \rVert - 1)^2
#
# The loss contains a gradient, which `kit.gradient` computes inside of `kit.minimize`.
# This is `loss="wasserstein"` of `kit.GAN`; by hand:


def train_wasserstein(generator, critic, draw_real, steps, watch, critic_steps=3):
    optimizers = [keras.optimizers.Adam(1e-3, beta_1=0.5, beta_2=0.9) for _ in range(2)]

    @kit.compiled
    def critic_step(real, z, place):
        def loss_fn():
            fake = ops.stop_gradient(generator(z))
            between = real + place * (fake - real)
            slope = kit.gradient(lambda x: ops.sum(critic(x)), between)
            length = ops.sqrt(ops.sum(slope**2, axis=1) + 1e-12)
            penalty = 10.0 * ops.mean((length - 1.0) ** 2)
            return ops.mean(critic(fake)) - ops.mean(critic(real)) + penalty

        return kit.minimize(loss_fn, critic.trainable_variables, optimizers[0])

    @kit.compiled
    def generator_step(z):
        def loss_fn():
            return -ops.mean(critic(generator(z)))

        return kit.minimize(loss_fn, generator.trainable_variables, optimizers[1])

    seen = {}
    latent_dim = generator.input_shape[1]

    def noise(size):
        return rng.normal(size=(size, latent_dim)).astype("float32")

    for i in range(steps):
        if i in watch:
            seen[i] = np.asarray(generator(noise(500)))
        for _ in range(critic_steps):
            place = rng.random((128, 1)).astype("float32")
            critic_step(draw_real(128), noise(128), place)
        generator_step(noise(128))
    return seen


seen = train_wasserstein(
    dense(8, 2), dense(2, 1, seed=1), ring, 3001, (500, 1500, 3000)
)
show_ring(seen, "Step 5: with the Wasserstein distance")

# %%
# Step 6: digits
# --------------
#
# The same for images: `kit.GAN` takes the two networks and both optimizers. First with
# Dense layers, for a few epochs of 4,000 digits in [-1, 1].

x = kit.data.images().x_train.astype("float32") / 127.5 - 1


def adams():
    return [keras.optimizers.Adam(1e-3, beta_1=0.5) for _ in range(2)]


def show_digits(samples, title):
    figure, axes = plt.subplots(2, 10, figsize=(8, 2), layout="constrained")
    for axis, image in zip(axes.flat, samples, strict=True):
        axis.imshow(np.reshape(image, (28, 28)), cmap="gray_r", vmin=-1, vmax=1)
        axis.set(xticks=[], yticks=[])
    figure.suptitle(title)


gan = kit.GAN(kit.gan.generator(), kit.gan.discriminator(dropout=0.3))
gan.compile(*adams())
gan.fit(x.reshape(-1, 784), epochs=40, batch_size=128, verbose=0)
show_digits(np.asarray(gan.sample(20, seed=1)), "Step 6: Dense layers, 40 epochs")

# %%
# Step 7: convolutions and labels
# -------------------------------
#
# Convolutions know which pixels are neighbours, and labels tell both networks which
# digit is meant: here one column for each digit.

labels = kit.data.images().y_train
gan = kit.GAN(
    kit.gan.conv_generator(filters=(32, 16, 8), num_classes=10),
    kit.gan.conv_discriminator(filters=(16, 32), num_classes=10),
    num_classes=10,
)
gan.compile(*adams())
history = gan.fit(x, labels, epochs=12, batch_size=64, verbose=0)
samples = np.asarray(gan.sample(20, labels=np.arange(20) % 10, seed=1))
show_digits(samples, "Step 7: convolutions and labels, 12 epochs")

# %%
# Next: `recipes/gan.py` trains longer, with moving averages of the generator's weights,
# and measures quality and novelty. :doc:`Its page </algorithms/gan>` says what each
# setting does.
