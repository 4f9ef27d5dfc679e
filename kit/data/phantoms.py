"""Phantoms: drawn cross-sections of bodies with lesions, for medical imaging.

A phantom is an image whose truth is known: what a scanner should show, and where the
lesions are. Each one is a body of random ellipses (fat, tissues, air, bones) with a
faint smooth texture, and a few small lesions, a little brighter than their
surroundings. Values are attenuations from 0 (air) to 1 (bone); water has about 0.5.

`phantoms` draws whole bodies. `lesion_crops` cuts out single lesions of four shapes,
turned and scaled as asked for, to be classified.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kit import checks

# Lesions: how much brighter than their surroundings, their semi-axes (the image's
# half side is 1), and how many.
LESION_CONTRAST, LESION_AXES, MOST_LESIONS = (0.08, 0.2), (0.06, 0.14), 3
TISSUE = (0.38, 0.68)  # range of the values in which a lesion may grow
TEXTURE = 0.03  # standard deviation of the texture, as a share of the value
FAT, BONE, AIR = 0.42, (0.85, 1.0), (0.05, 0.2)


# Crops: the classes; the side of the body in crops; the lesion's radius before scaling
# and the largest distance of its centre from the crop's, as shares of the crop's side.
LESION_KINDS = ("none", "round", "elongated", "lobulated", "spiculated")
BODY_SIDE, CROP_RADIUS, CROP_SHIFT = 3.5, 0.2, 0.07

ACCEPTED = {
    "number": checks.SIZE,
    "size": checks.integer("[16, 4096]"),
    "seed": checks.SEED,
    "degrees": checks.sequence(checks.real("[0, 180]"), length=2),
    "scales": checks.sequence(checks.real("[1, 2]"), length=2),
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


class LesionCrops(NamedTuple):
    """Crops of phantoms, with a lesion or without.

    Attributes:
        images: (N, size, size, 1), uint8: 255 is an attenuation of 1.
        kinds: (N,), int32: indices into `LESION_KINDS`.
    """

    images: np.ndarray
    kinds: np.ndarray


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


def lesion_crops(
    number: int,
    size: int = 28,
    seed: int = 0,
    degrees: tuple[float, float] = (0.0, 10.0),
    scales: tuple[float, float] = (1.0, 1.1),
) -> LesionCrops:
    """Draws crops of phantoms: a lesion of one of four shapes, or none.

    Five crops in a row show different places of one body: no lesion, a round one, an
    ellipse, one of three lobes, one with spikes. Body, place, shape and brightness of a
    lesion depend on `seed` alone, its pose also on the two ranges: with other ranges,
    the same lesions are seen in other poses.

    Args:
        number: N, crops to draw.
        size: Pixels in a side, 16 or more. Defaults to 28.
        seed: Seed of all draws. Defaults to 0.
        degrees: Smallest and largest angle by which a lesion is turned, to the left or
            to the right, in [0, 180]. Upright, the longer axis is vertical. Defaults to
            `(0, 10)`.
        scales: Smallest and largest factor, in [1, 2]; half of the lesions are
            magnified by it, the others are made smaller. Defaults to `(1, 1.1)`.

    Returns:
        The crops and their classes.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If an argument is out of range, or a smallest value is above the
            largest one.

    Example:

    ```python
    images, kinds = lesion_crops(10, degrees=(60, 90))
    images.shape, kinds  # (10, 28, 28, 1), [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    ```
    """
    checks.check("lesion_crops", locals(), ACCEPTED)
    for name, pair in (("degrees", degrees), ("scales", scales)):
        if pair[0] > pair[1]:
            raise ValueError(
                f"lesion_crops: `{name}` must be (smallest, largest), received "
                f"{tuple(pair)}."
            )
    num_kinds, body_size = len(LESION_KINDS), round(BODY_SIDE * size)
    kinds = np.arange(number, dtype="int32") % num_kinds
    images = np.zeros((number, size, size, 1), "uint8")
    for i, kind in enumerate(kinds):
        body, places = _body_with_room(seed, i // num_kinds, body_size, size)
        rng, pose = (np.random.default_rng((seed, i, part)) for part in (1, 2))
        angle = np.deg2rad(pose.uniform(*degrees)) * pose.choice([-1, 1])
        scale = pose.uniform(*scales) ** pose.choice([-1, 1])
        crop = _crop(body, places[kind], size, LESION_KINDS[kind], angle, scale, rng)
        images[i, ..., 0] = np.round(255 * crop)
    return LesionCrops(images, kinds)


@functools.lru_cache(maxsize=256)  # Bodies take most of the time: keep a test set's.
def _body_with_room(seed, number, body_size, size):
    """Draws a body's image, and a place in tissue for each class: (column, row)."""
    rng = np.random.default_rng((seed, number, 0))
    half = int(2 * CROP_RADIUS * size) + 2  # of the largest lesion
    while True:
        body, places = _draw_body(body_size, rng), []
        for _ in range(100):
            place = (body.within(0.85) + 1.0) * body_size / 2
            column, row = place.astype(int)
            around = body.image[row - half : row + half, column - half : column + half]
            if around.size and TISSUE[0] < around.min() < around.max() < TISSUE[1]:
                places.append(place)
            if len(places) == len(LESION_KINDS):
                return body.image, places


def _crop(body, place, size, kind, angle, scale, rng):
    """Cuts out a place of a body with a lesion in it, (size, size)."""
    shift = rng.uniform(-CROP_SHIFT, CROP_SHIFT, 2) * size
    first = np.clip(place - size / 2 - shift, 0, len(body) - size).astype(int)
    column, row = first
    crop = body[row : row + size, column : column + size]
    outline, contrast = _outline(kind, rng), rng.uniform(*LESION_CONTRAST)
    if kind != "none":
        x, y = np.meshgrid(np.arange(size), np.arange(size))
        x, y = x - (place - first)[0], y - (place - first)[1]
        rim = CROP_RADIUS * size * scale * outline(np.arctan2(y, x) - angle)
        crop = crop + contrast * np.clip(0.5 + rim - np.hypot(x, y), 0.0, 1.0)
    return np.clip(crop, 0.0, 1.0)


def _outline(kind, rng) -> Callable[[np.ndarray], np.ndarray]:
    """Returns the outline of an upright lesion: its radius, about 1, by direction.

    Directions are angles from the right towards below.
    """
    ratio, depth, phase = rng.uniform(1.8, 2.4), rng.uniform(0.25, 0.35), rng.random()
    if kind == "elongated":  # an ellipse
        long, short = ratio**0.5, ratio**-0.5
        return lambda t: 1.0 / np.hypot(np.cos(t) / short, np.sin(t) / long)
    if kind == "lobulated":  # three lobes, one of them below
        return lambda t: 1.0 - depth * np.sin(3.0 * t)
    if kind == "spiculated":  # seven thin spikes on a core
        return lambda t: 0.65 + 2.0 * depth * np.cos(3.5 * t + np.pi * phase) ** 8
    return np.ones_like


class _Body(NamedTuple):
    """A body without lesions, and functions to draw more in it.

    Attributes:
        image: (size, size).
        inner: How much of each pixel is inside of the fat, (size, size).
        ellipse: Function of centre, semi-axes and angle: how much of each pixel is in
            the ellipse.
        within: Function that draws a point within a share of the body's inside.
    """

    image: np.ndarray
    inner: np.ndarray
    ellipse: Callable
    within: Callable


def _draw_body(size, rng):
    """Draws a `_Body`. The centre of the image is (0, 0), its half side is 1."""
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
    return _Body(image, inner, ellipse, within)


def _draw(size, rng):
    """Draws one phantom: the image and the mask of its lesions, (size, size) each."""
    image, inner, ellipse, within = _draw_body(size, rng)
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
