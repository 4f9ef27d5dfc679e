"""Writes files atomically: completely or not at all.

A process may be killed, and a disk may be full, at any moment. Therefore a file is
written under another name, flushed to disk, and renamed. Until then, the old file
stays.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# For type checkers, the mixin derives from the class that it is combined with.
if TYPE_CHECKING:
    from keras import Model as Mixin
else:
    Mixin = object

_numbers = itertools.count()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path, which replaces `path` after the block.

    Args:
        path: File or folder to write. A folder must not exist yet.

    Yields:
        A path in the same folder, with the same suffix, to write to. If the block
        raises an error, `path` stays unchanged.

    Example:

    ```python
    with replacing("figures.json") as file:
        file.write_text("{}")
    ```
    """
    path = Path(path)
    # Keep the suffix, from which libraries infer the format.
    temporary = path.with_name(f".{os.getpid()}-{next(_numbers)}-{path.name}")
    try:
        yield temporary
        flush(temporary)
        os.replace(temporary, path)
        flush(path.parent, tree=False)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink(missing_ok=True)


def flush(path: Path, tree: bool = True) -> None:
    """Flushes a file from the operating system's memory to the disk.

    Args:
        path: File, or folder.
        tree: Whether to flush a folder's files, too. Defaults to `True`.
    """
    if path.is_dir():
        for child in sorted(path.iterdir()) if tree else ():
            flush(child)
        if os.name == "nt":  # Windows can't open folders
            return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SavedWhole(Mixin):
    """Mixin that makes a model's `save` atomic; put it before the model's class.

    If the process is killed while `save` replaces a file, the old file stays intact.
    """

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> Any:
        """Saves as `keras.Model.save` does; replaces an existing file atomically."""
        return _save(super().save, filepath, overwrite, kwargs)

    def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> Any:
        """Saves as `keras.Model.save_weights` does; replaces a file atomically."""
        return _save(super().save_weights, filepath, overwrite, kwargs)


def _save(save, filepath, overwrite, kwargs):
    # Leave other targets (open files, remote paths, folders, shards) and bad arguments
    # to Keras.
    in_one_file = (
        isinstance(filepath, str | os.PathLike)
        and str(filepath).endswith((".keras", ".h5"))
        and Path(filepath).parent.is_dir()
        and kwargs.get("zipped") is not False
        and kwargs.get("max_shard_size") is None
    )
    if not in_one_file or (not overwrite and Path(filepath).exists()):
        return save(filepath, overwrite=overwrite, **kwargs)
    with replacing(filepath) as file:
        return save(file, overwrite=True, **kwargs)
