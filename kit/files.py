"""Files that are written whole or not at all.

A process may be killed, and a disk may be full, at any moment. Therefore a file is
written under another name, flushed to the disk, and renamed: until then, what stood
in its place stays.
"""

import contextlib
import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Only beside a Keras model is the mixin of use.
if TYPE_CHECKING:
    from keras import Model as Mixin
else:
    Mixin = object

_numbers = itertools.count()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Yields a temporary path; what is written there takes the place of `path`.

    Args:
        path: File or folder to write. A folder must not exist yet.

    Yields:
        A path beside it, with the same suffix, to be written to. If the block raises,
        `path` stays as it was.

    Example:

    ```python
    with replacing("figures.json") as file:
        file.write_text("{}")
    ```
    """
    path = Path(path)
    # The suffix stays: it tells the format.
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
    """Writes to the disk what the operating system still holds in memory.

    Args:
        path: File, or folder.
        tree: Whether a folder's files are flushed, too. Defaults to `True`.
    """
    if path.is_dir():
        for child in sorted(path.iterdir()) if tree else ():
            flush(child)
        if os.name == "nt":  # Windows opens no folders
            return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class SavedWhole(Mixin):
    """A mixin, before the class of a model: it is saved whole, or not at all.

    Killed while `save` writes over a good file, a process leaves the good one.
    """

    def save(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> Any:
        """As `keras.Model.save`; a file that is there is replaced at once."""
        return _save(super().save, filepath, overwrite, kwargs)

    def save_weights(self, filepath: Any, overwrite: bool = True, **kwargs: Any) -> Any:
        """As `keras.Model.save_weights`; a file that is there is replaced at once."""
        return _save(super().save_weights, filepath, overwrite, kwargs)


def _save(save, filepath, overwrite, kwargs):
    # What Keras writes in other ways (to open files, remote places, folders, shards),
    # or refuses, is Keras' own.
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
