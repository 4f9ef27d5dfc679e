"""
Convolutional network, step by step
===================================

We begin with one matrix, and add the parts of a convolutional network one by one:
hidden units, filters, pooling, augmentation. After each part, we measure what it
brings. The last step is `kit/cnn.py`.
"""

import keras
import matplotlib.pyplot as plt
import numpy as np
from keras import ops

import kit

data = kit.data.images()  # 4,000 training digits, 1,000 test digits
x_train, x_test = data.x_train / np.float32(255), data.x_test / np.float32(255)
y_train, y_test = data.y_train, data.y_test
# Choices are made on a part of the training digits, so that the test digits stay
# unseen.
x_train, x_valid = x_train[:3200], x_train[3200:]
y_train, y_valid = y_train[:3200], y_train[3200:]

# %%
# Step 1: one matrix
# ------------------
#
# A linear classifier computes a score for each digit, a weighted sum of the pixels.
# Softmax turns scores into probabilities, and the cross-entropy is the loss:
#
# .. math:: p = \mathrm{softmax}(x W + b), \qquad L = -\log p_y
#
# This is the whole training loop. `kit.compiled` makes it one program on TensorFlow,
# JAX or PyTorch.


def train(model, x, y, epochs=8, batch_size=64, seed=0):
    """Trains a classifier and returns the loss of each step."""
    kit.initialize_weights(model, seed)
    optimizer = keras.optimizers.Adam(1e-3)

    @kit.compiled
    def train_step(x, y):
        def loss_fn():
            probabilities = model(x, training=True)
            return ops.mean(
                keras.losses.sparse_categorical_crossentropy(y, probabilities)
            )

        return kit.minimize(loss_fn, model.trainable_variables, optimizer)

    rng, losses = np.random.default_rng(seed), []
    for _ in range(epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - batch_size + 1, batch_size):
            rows = order[start : start + batch_size]
            losses.append(float(train_step(x[rows], y[rows])))
    return losses


def accuracy(model, x, y):
    """Returns the share of digits that are recognized."""
    return float(np.mean(np.argmax(model.predict(x, verbose=0), axis=1) == y))


linear = keras.Sequential(
    [
        keras.Input((28, 28, 1)),
        keras.layers.Flatten(),
        keras.layers.Dense(10, activation="softmax"),
    ]
)
losses = {"one matrix": train(linear, x_train, y_train)}
scores = {"one matrix": accuracy(linear, x_valid, y_valid)}
print(scores)

# %%
# Each column of the matrix is an image: where ink counts for a digit (blue), and where
# it counts against it (red).

weights = ops.convert_to_numpy(linear.layers[-1].kernel).reshape(28, 28, 10)
figure, axes = plt.subplots(2, 5, figsize=(8, 3.4), layout="constrained")
for digit, axis in enumerate(axes.flat):
    axis.imshow(weights[..., digit], cmap="RdBu", vmin=-0.5, vmax=0.5)
    axis.set(title=f"{digit}", xticks=[], yticks=[])
figure.suptitle("Step 1: one weight for each pixel and digit")

# %%
# Step 2: hidden units
# --------------------
#
# A hidden layer combines pixels before the scores. It is better, but it ignores which
# pixels are neighbours: if we shuffle the pixels of all images in the same way, it
# learns as well as before.


def perceptron():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Flatten(),
            keras.layers.Dense(64, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


pixels = np.random.default_rng(0).permutation(784)


def shuffled(x):
    return x.reshape(-1, 784)[:, pixels].reshape(x.shape)


hidden, of_shuffled = perceptron(), perceptron()
losses["hidden units"] = train(hidden, x_train, y_train)
train(of_shuffled, shuffled(x_train), y_train)
scores["hidden units"] = accuracy(hidden, x_valid, y_valid)
print(scores["hidden units"], accuracy(of_shuffled, shuffled(x_valid), y_valid))

figure, axes = plt.subplots(1, 4, figsize=(8, 2.2), layout="constrained")
for axis, image in zip(axes, [*x_train[:2], *shuffled(x_train[:2])], strict=True):
    axis.imshow(image[..., 0], cmap="gray_r")
    axis.set(xticks=[], yticks=[])
figure.suptitle("Step 2: for the perceptron, these are equally hard")

# %%
# Step 3: a filter
# ----------------
#
# A convolution moves a small filter over the image, and writes down at each place how
# well it matches:
#
# .. math:: z_{ij} = \sum_{a,b} w_{ab}\, x_{i+a,\,j+b}
#
# The same nine weights serve all places. By hand:

edges = np.array([[-1, -1, -1], [0, 0, 0], [1, 1, 1]], "float32")  # bright below dark


def convolve(image, weights):
    size = len(weights)
    height, width = image.shape
    result = np.zeros((height - size + 1, width - size + 1), "float32")
    for a in range(size):
        for b in range(size):
            rows = slice(a, a + height - size + 1)
            columns = slice(b, b + width - size + 1)
            result += weights[a, b] * image[rows, columns]
    return result


image = x_train[0, ..., 0]
by_hand = convolve(image, edges)
layer = keras.layers.Conv2D(1, 3, use_bias=False)
layer.build((None, 28, 28, 1))
layer.set_weights([edges[:, :, None, None]])
np.testing.assert_allclose(by_hand, layer(image[None, ..., None])[0, ..., 0], atol=1e-5)

figure, axes = plt.subplots(1, 3, figsize=(8, 2.8), layout="constrained")
for axis, picture, title in zip(
    axes, (image, edges, by_hand), ("image", "filter", "where it matches"), strict=True
):
    axis.imshow(picture, cmap="gray_r" if title == "image" else "RdBu")
    axis.set(title=title, xticks=[], yticks=[])
figure.suptitle("Step 3: one filter, all places")

# %%
# Step 4: a convolutional network
# -------------------------------
#
# Many filters, whose weights are learned, then a matrix. Between two convolutions,
# pooling keeps the strongest match in each square of 2 by 2 pixels: the next filters
# see twice as far. This network has half as many weights as the perceptron above.


def convolutional():
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Conv2D(32, 3, activation="relu"),
            keras.layers.MaxPooling2D(2),
            keras.layers.Flatten(),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )


cnn = convolutional()
losses["convolutions"] = train(cnn, x_train, y_train)
scores["convolutions"] = accuracy(cnn, x_valid, y_valid)
print(scores["convolutions"], cnn.count_params(), hidden.count_params())

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, values in losses.items():
    smooth = np.convolve(values, np.ones(25) / 25, mode="valid")
    axis.plot(smooth, label=f"{name}: {scores[name]:.3f} of unseen digits")
axis.set(xlabel="gradient step", ylabel="cross-entropy", yscale="log")
axis.set_title("Step 4: the same data, three networks")
axis.legend()

# %%
# The filters of the first layer, and what they respond to in a digit:

filters = ops.convert_to_numpy(cnn.layers[0].kernel)[:, :, 0]  # (3, 3, 16)
maps = ops.convert_to_numpy(cnn.layers[0](x_train[:1]))[0]  # (26, 26, 16)
figure, axes = plt.subplots(2, 8, figsize=(8, 2.4), layout="constrained")
for i in range(8):
    axes[0, i].imshow(filters[..., i], cmap="RdBu", vmin=-0.6, vmax=0.6)
    axes[1, i].imshow(maps[..., i], cmap="gray_r")
for axis in axes.flat:
    axis.set(xticks=[], yticks=[])
figure.suptitle("Learned filters, and where they match")

# %%
# Step 5: shifted digits
# ----------------------
#
# Digits in this set are centred. How do the networks recognize them if they are
# shifted? Pooling makes a convolutional network less sensitive to the place, but not
# indifferent.

SHIFTS = range(0, 7)


def accuracies_when_shifted(model):
    return [
        accuracy(model, np.roll(x_valid, (0, shift), axis=(1, 2)), y_valid)
        for shift in SHIFTS
    ]


when_shifted = {
    "hidden units": accuracies_when_shifted(hidden),
    "convolutions": accuracies_when_shifted(cnn),
}

# %%
# Step 6: augmentation
# --------------------
#
# A digit that is moved or turned a little is the same digit. `kit.RandomAffine` changes
# each image of each batch at random, in training only. The network sees no image twice.

augment = kit.RandomAffine(
    rotation_factor=0.03, translation_factor=0.12, zoom_factor=0.1, seed=0
)
figure, axes = plt.subplots(1, 8, figsize=(8, 1.6), layout="constrained")
for axis, changed in zip(
    axes,
    ops.convert_to_numpy(augment(np.repeat(x_train[:1], 8, 0), training=True)),
    strict=True,
):
    axis.imshow(changed[..., 0], cmap="gray_r")
    axis.set(xticks=[], yticks=[])
figure.suptitle("Step 6: one training digit, eight times")

augmented = keras.Sequential([keras.Input((28, 28, 1)), augment, convolutional()])
train(augmented, x_train, y_train, epochs=15)
when_shifted["convolutions, augmented"] = accuracies_when_shifted(augmented)
scores["convolutions, augmented"] = accuracy(augmented, x_valid, y_valid)

figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
for name, values in when_shifted.items():
    axis.plot(SHIFTS, values, marker="o", label=name)
axis.set(xlabel="shift in pixels", ylabel="share recognized", ylim=(0, 1.02))
axis.set_title("Steps 5 and 6: digits that are shifted to the right")
axis.legend()

# %%
# Step 7: the kit's file
# ----------------------
#
# `kit.cnn` builds this kind of network: more filters, a hidden layer, dropout and batch
# normalization as options. `fit` of `kit.Sequential` runs dozens of batches in one
# program. Only now do we look at the test digits.

model = kit.Sequential(
    [
        keras.Input((28, 28, 1)),
        kit.RandomAffine(
            rotation_factor=0.03, translation_factor=0.12, zoom_factor=0.1, seed=0
        ),
        *kit.cnn((28, 28, 1), 10, filters=(16, 32, 32), dropout=0.3).layers,
    ]
)
kit.initialize_weights(model, seed=0)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(
    x_train, y_train, epochs=15, validation_data=(x_valid, y_valid), verbose=0
)
print("validation", history.history["val_accuracy"][-1])
print("test", accuracy(model, x_test, y_test))

figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
names = [*scores, "kit.cnn"]
values = [*scores.values(), history.history["val_accuracy"][-1]]
axis.barh(names[::-1], [1 - value for value in values[::-1]])
axis.set(xlabel="share of unseen digits that are not recognized")
axis.set_title("What each step brought")

# %%
# Next: `recipes/cnn.py` has this with cross-checked settings and a support vector
# machine beside it, and :doc:`its page </algorithms/cnn>` what each setting does.
