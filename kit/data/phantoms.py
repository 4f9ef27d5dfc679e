"""Phantoms: drawn cross-sections of bodies with lesions, for medical imaging.

A phantom is an image whose truth is known: what a scanner should show, and where the
lesions are. Each one is a body of random ellipses (fat, tissues, air, bones) with a
faint smooth texture, and a few small lesions, a little brighter than their
surroundings. Values are attenuations from 0 (air) to 1 (bone); water has about 0.5.
"""

from typing import NamedTuple

import numpy as np

from kit import checks

# Lesions: how much brighter than their surroundings, their semi-axes (the image's
# half side is 1), and how many.
LESION_CONTRAST, LESION_AXES, MOST_LESIONS = (0.08, 0.2), (0.06, 0.14), 3
TISSUE = (0.38, 0.68)  # range of the values in which a lesion may grow
TEXTURE = 0.03  # standard deviation of the texture, as a share of the value
FAT, BONE, AIR = 0.42, (0.85, 1.0), (0.05, 0.2)

ACCEPTED = {
    "number": checks.SIZE,
    "size": checks.integer("[16, 4096]"),
    "seed": checks.SEED,
}


class Phantoms(NamedTuple):
    """Images with their lesions.

    Attributes:
        images: (N, size, size, 1), float32 in [0, 1], zero outside of a circle of
            diameter `size`.
        lesions: (N, size, size, 1), uint8: 1 where a lesion is, else 0; `None` if
            unknown.
    """

    images: np.ndarray
    lesions: np.ndarray | None


def phantoms(number: int, size: int = 64, seed: int = 0) -> Phantoms:
    """Draws phantoms, each with one to three lesions.

    Phantom i of a seed is the same, however many are drawn.

    Args:
        number: N, phantoms to draw.
        size: Pixels in a side, 16 or more. Defaults to 64.
        seed: Seed of all draws. Defaults to 0.

    Returns:
        The phantoms with their lesions.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range.

    Example:

    ```python
    images, lesions = phantoms(3)
    images.shape, lesions.shape  # ((3, 64, 64, 1), (3, 64, 64, 1))
    ```
    """
    checks.check("phantoms", locals(), ACCEPTED)
    images = np.zeros((number, size, size, 1), "float32")
    lesions = np.zeros((number, size, size, 1), "uint8")
    for i in range(number):
        rng = np.random.default_rng((seed, i))
        images[i, ..., 0], lesions[i, ..., 0] = _draw(size, rng)
    return Phantoms(images, lesions)


def _draw(size, rng):
    """Draws one phantom: the image and the mask of its lesions, (size, size) each."""
    places = (np.arange(size) - size // 2) * 2.0 / size
    y, x = np.meshgrid(places, places, indexing="ij")

    def ellipse(centre, axes, angle):
        """Returns how much of each pixel an ellipse covers, about."""
        dx, dy = x - centre[0], y - centre[1]
        along = (np.cos(angle) * dx + np.sin(angle) * dy) / axes[0]
        across = (np.cos(angle) * dy - np.sin(angle) * dx) / axes[1]
        distance = (1.0 - np.hypot(along, across)) * min(axes)  # to the rim, about
        return np.clip(0.5 + distance * size / 2, 0.0, 1.0)

    def within(share):
        """Draws a point within this share of the body's inside."""
        radius, angle = share * np.sqrt(rng.random()), 2 * np.pi * rng.random()
        return radius * inside * [np.cos(angle), np.sin(angle)]

    def paint(image, cover, value):
        return image + cover * (value - image)

    # 1. The body: fat around tissue.
    body = rng.uniform((0.78, 0.62), (0.92, 0.85))  # semi-axes
    inside = body - rng.uniform(0.05, 0.12)
    tilt = rng.uniform(-0.15, 0.15)
    image = paint(np.zeros((size, size)), ellipse((0, 0), body, tilt), FAT)
    inner = ellipse((0, 0), inside, tilt)
    image = paint(image, inner, rng.uniform(0.46, 0.54))
    # 2. Organs, some of which hold air, and bones.
    for _ in range(rng.integers(4, 9)):
        cover = ellipse(within(0.8), rng.uniform(0.12, 0.4, 2), rng.uniform(0, np.pi))
        value = rng.uniform(*AIR) if rng.random() < 0.2 else rng.uniform(0.42, 0.64)
        image = paint(image, inner * cover, value)
    for _ in range(rng.integers(1, 4)):
        cover = ellipse(within(0.9), rng.uniform(0.05, 0.14, 2), rng.uniform(0, np.pi))
        image = paint(image, inner * cover, rng.uniform(*BONE))
    # 3. Texture: waves of random directions and lengths.
    waves = rng.normal(size=(8, 2)) * rng.uniform(4.0, 20.0, (8, 1))
    phases = rng.uniform(0, 2 * np.pi, (8, 1, 1))
    angles = waves[:, :1, None] * x + waves[:, 1:, None] * y + phases  # (8, H, W)
    image *= 1.0 + TEXTURE * np.cos(angles).sum(axis=0) / 2.0  # 2: the sum's deviation
    # 4. Lesions, in tissue and apart from each other.
    mask = np.zeros((size, size), "uint8")
    wanted = rng.integers(1, MOST_LESIONS + 1)
    for _ in range(100):
        centre, axes = within(0.85), rng.uniform(*LESION_AXES, 2)
        angle, contrast = rng.uniform(0, np.pi), rng.uniform(*LESION_CONTRAST)
        cover = inner * ellipse(centre, axes, angle)
        around = image[ellipse(centre, axes + 4.0 / size, angle) > 0.5]
        in_tissue = len(around) and TISSUE[0] < around.min() < around.max() < TISSUE[1]
        near = ellipse(centre, axes + 6.0 / size, angle) > 0.5
        if in_tissue and not mask[near].any():
            image = image + contrast * cover
            mask[cover > 0.5] = 1
            wanted -= 1
        if not wanted:
            break
    if not mask.any():  # a body without room for a lesion: draw another one
        return _draw(size, rng)
    return np.clip(image, 0.0, 1.0), mask
