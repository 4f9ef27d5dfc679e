"""Photographs that scikit-image and scikit-learn bring along, and files of your own.

Both packages have sample images; those that `skimage.data` would have to download are
left out, and so are drawings. They are few, hence they are split by photograph: each
part has scenes, textures and scientific images, and none occurs in two parts.
"""

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from kit import checks

# The split was made before anything was trained, and has not been changed since. The
# two eyes of the motorcycle see almost the same, so they are in one part.
PARTS = {
    "train": (
        "astronaut.png",
        "cell.png",
        "china.jpg",
        "clock_motion.png",
        "gravel.png",
        "hubble_deep_field.jpg",
        "ihc.png",
        "moon.png",
        "motorcycle_left.png",
        "motorcycle_right.png",
        "retina.jpg",
        "text.png",
    ),
    "validation": ("flower.jpg", "grass.png", "rocket.jpg"),
    "test": (
        "brick.png",
        "camera.png",
        "chelsea.png",
        "coffee.png",
        "coins.png",
        "page.png",
    ),
}
SUFFIXES = (".jpeg", ".jpg", ".png")

ACCEPTED = {
    "part": checks.one_of(*PARTS),
    "path": checks.PATH,
    "folder": checks.PATH,
    "least": checks.SIZE,
}


def photographs(part: str = "train") -> dict[str, np.ndarray]:
    """Returns the photographs of a part: `"train"`, `"validation"` or `"test"`.

    Args:
        part: Name of the part. Defaults to `"train"`.

    Returns:
        Images (height, width, 3) by name, uint8. Grey ones have three equal channels.

    Raises:
        TypeError: If `part` isn't a string.
        ValueError: If it isn't the name of a part.

    Example:

    ```python
    photographs("test")["coffee"].shape  # (400, 600, 3)
    ```
    """
    checks.check("photographs", locals(), ACCEPTED)
    import skimage
    import sklearn.datasets

    folders = [
        Path(str(skimage.__file__)).parent / "data",
        Path(sklearn.datasets.__file__).parent / "images",
    ]
    found = {}
    for file in PARTS[part]:
        folder = folders[0] if (folders[0] / file).is_file() else folders[1]
        found[Path(file).stem] = read_image(folder / file)
    return found


def read_image(path: str | Path) -> np.ndarray:
    """Reads a picture, such as a PNG or JPEG file.

    Args:
        path: The file.

    Returns:
        The image (height, width, 3), uint8. Transparency is ignored.

    Raises:
        TypeError: If `path` isn't a path.
        ValueError: If there is no such file, or it isn't a picture.
    """
    checks.check("read_image", locals(), ACCEPTED)
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as error:
        raise ValueError(
            f"`path` must be a picture that Pillow reads, received {str(path)!r}: "
            f"{error}"
        ) from error


def read_images(folder: str | Path, least: int = 1) -> dict[str, np.ndarray]:
    """Reads the PNG and JPEG files of a folder, and of all folders in it.

    Args:
        folder: The folder.
        least: Least height and width of an image, in pixels. Defaults to 1.

    Returns:
        Images (height, width, 3), uint8, by path relative to the folder.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If it isn't a folder or holds no picture, or if one can't be read or
            is too small.
    """
    checks.check("read_images", locals(), ACCEPTED)
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"`folder` must be a folder, received {str(folder)!r}.")
    files = [x for x in sorted(root.rglob("*")) if x.suffix.lower() in SUFFIXES]
    if not files:
        raise ValueError(
            f"`folder` must hold files in {', '.join(SUFFIXES)}, received "
            f"{str(folder)!r}, which holds none."
        )
    images = {file.relative_to(root).as_posix(): read_image(file) for file in files}
    for name, image in images.items():
        if min(image.shape[:2]) < least:
            raise ValueError(
                f"`folder`: images must be {least} pixels or more in height and width; "
                f"{name} has {image.shape[0]} x {image.shape[1]}."
            )
    return images
