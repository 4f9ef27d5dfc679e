"""Backups of a training: its complete state, to continue exactly where it stopped.

Users pass `kit.BackupAndRestore` of `kit/callbacks.py` to `fit`. This file has the two
parts that it consists of:

- `Backups`, a folder of backups. Each backup is a subfolder that is written under
  another name, flushed to disk, and renamed, so that a process may be killed at any
  moment. Each file has a checksum; if a backup is damaged, the one before is used.
- `Session`, the backups of one `fit`. The training loop passes it all parts that have a
  state, and calls it between steps.

A state consists of dicts, lists, tuples, numbers, strings and NumPy arrays. It is
stored as JSON and `.npz` files. Nothing is pickled, so nothing in a backup is executed.
"""

import collections
import contextlib
import hashlib
import inspect
import json
import random
import re
import shutil
import signal
import sys
import threading
import time
import types
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops
from keras.src.backend.common import global_state
from keras.src.random import seed_generator

from kit.files import replacing

FORMAT = 1  # of the files; other formats raise an error
KEPT = 2  # backups in a folder
# Largest share of the time that backups may take: on slow disks they are rarer.
MAX_SHARE = 0.02


class Part(Protocol):
    """A part of a training that has a state."""

    def get_state(self) -> Any:
        """Returns the state, in a form that `Backups` can store."""

    def set_state(self, state: Any) -> None:
        """Restores the result of `get_state`."""


class GrowingPart(Part, Protocol):
    """A part that is too large to be written each time: only new rows are written.

    Attributes:
        num_bytes: Its size when it is full.
    """

    num_bytes: int

    def mark(self) -> list[int]:
        """Returns the current position."""

    def rows_since(self, mark: list[int] | None) -> dict[str, np.ndarray]:
        """Returns the rows added since `mark`; all rows if it is `None`."""

    def add_rows(self, rows: dict[str, np.ndarray]) -> None:
        """Adds rows from `rows_since`, the oldest first."""

    def holds(self, mark: list[int]) -> bool:
        """Whether it still has rows that were added before `mark`."""


class DamagedError(Exception):
    """A backup's files differ from what was written."""


# --- Files ------------------------------------------------------------------------


class Backups:
    """A folder with the newest two backups.

    Args:
        folder: Path, created with the first backup. It must contain nothing else.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._segments: dict[str, list[dict]] = {}  # of growing parts
        self._number = max((_number(p) for p in self._paths()), default=0)

    def save(
        self,
        identity: Mapping[str, Any],
        state: Mapping[str, Any],
        growing: Mapping[str, GrowingPart],
    ) -> None:
        """Writes a backup. Until it is complete, the one before stays intact.

        Args:
            identity: Values by name that must be equal when the backup is restored.
            state: The state that `load` returns.
            growing: Parts by name, of which only new rows are written.

        Raises:
            OSError: If it can't be written.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        self._number += 1
        segments = {
            name: self._save_segments(name, part) for name, part in growing.items()
        }
        with replacing(self.folder / f"backup-{self._number:06}") as folder:
            folder.mkdir()
            arrays: dict[str, np.ndarray] = {}
            packed = _pack(state, arrays)
            np.savez(folder / "arrays.npz", **arrays)  # type: ignore[arg-type]
            (folder / "state.json").write_text(json.dumps(packed), encoding="utf-8")
            manifest = {
                "format": FORMAT,
                "identity": _as_json(identity),
                "segments": segments,
                "files": {p.name: _checksum(p) for p in sorted(folder.iterdir())},
            }
            text = json.dumps(manifest)
            text = json.dumps({"manifest": text, "sha256": _sha256(text.encode())})
            (folder / "manifest.json").write_text(text, encoding="utf-8")
        self._segments = segments
        self._tidy()

    def load(
        self, identity: Mapping[str, Any], growing: Mapping[str, GrowingPart]
    ) -> dict[str, Any] | None:
        """Returns the state of the newest undamaged backup, or `None`.

        The rows of growing parts are also read and checked, and added to them.

        Args:
            identity: As given to `save`.
            growing: As given to `save`.

        Raises:
            ValueError: If the backup is of another training, or all are damaged.
                Nothing is changed then.
        """
        damaged = []
        for path in sorted(self._paths(), key=_number, reverse=True):
            try:
                manifest, state = self._read(path)
            except DamagedError as error:
                damaged.append(f"{path} ({error})")
                continue
            _check_identity(path, manifest, identity)
            rows = {
                name: [self._read_segment(x) for x in manifest["segments"][name]]
                for name in growing
            }
            if damaged:
                warnings.warn(
                    f"BackupAndRestore: skipped damaged backups, "
                    f"{', '.join(damaged)}; continuing from {path}.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            for name, part in growing.items():
                for segment in rows[name]:
                    part.add_rows(segment)
            self._segments = manifest["segments"]
            return state
        if damaged:
            raise ValueError(
                f"BackupAndRestore: all backups are damaged: {', '.join(damaged)}. "
                f"Delete {self.folder} to start anew."
            )
        return None

    def delete(self) -> None:
        """Deletes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._segments = {}

    def _paths(self):
        found = self.folder.glob("backup-*") if self.folder.is_dir() else ()
        return [path for path in found if re.fullmatch(r"backup-\d+", path.name)]

    def _save_segments(self, name, part):
        """Writes the new rows, and returns the part's current segments."""
        # Drop segments whose rows have all been overwritten since.
        segments = [x for x in self._segments.get(name, []) if part.holds(x["end"])]
        since = segments[-1]["end"] if segments else None
        end = part.mark()
        if since == end:
            return segments
        path = self.folder / f"{name}-{self._number:06}.npz"
        with replacing(path) as file:
            np.savez(file, **part.rows_since(since))
        new = {"file": path.name, "end": end, "checksum": _checksum(path)}
        return [*segments, new]

    def _read(self, path):
        """Returns the manifest and state of a backup, after a check of all files."""
        try:
            manifest = _read_manifest(path)
            if manifest["format"] != FORMAT:
                raise ValueError(
                    f"BackupAndRestore: {path} has the format {manifest['format']} of "
                    f"another version of the kit; this one reads {FORMAT}."
                )
            files = {path / name: x for name, x in manifest["files"].items()}
            for segments in manifest["segments"].values():
                files |= {self.folder / x["file"]: x["checksum"] for x in segments}
            for file, checksum in files.items():
                if _checksum(file) != checksum:
                    raise DamagedError(f"{file.name} isn't what was written")
            packed = json.loads((path / "state.json").read_text(encoding="utf-8"))
            with np.load(path / "arrays.npz", allow_pickle=False) as arrays:
                state = _unpack(packed, arrays)
        except (OSError, KeyError, TypeError, zipfile.BadZipFile) as error:
            raise DamagedError(str(error)) from error
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise DamagedError(str(error)) from error
        return manifest, state

    def _read_segment(self, segment):
        with np.load(self.folder / segment["file"], allow_pickle=False) as rows:
            return dict(rows)

    def _tidy(self):
        """Deletes files that no kept backup needs, or that a killed process left."""
        paths = sorted(self._paths(), key=_number)
        for path in paths[:-KEPT]:
            shutil.rmtree(path, ignore_errors=True)
        needed = {path.name for path in paths[-KEPT:]}
        for path in paths[-KEPT:]:
            with contextlib.suppress(OSError, ValueError, KeyError, DamagedError):
                segments = _read_manifest(path)["segments"]
                needed |= {x["file"] for part in segments.values() for x in part}
        for path in self.folder.iterdir():
            if path.name not in needed:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


def _read_manifest(path):
    """Returns a backup's manifest, after a check of its checksum."""
    outer = json.loads((path / "manifest.json").read_text(encoding="utf-8"))
    if _sha256(outer["manifest"].encode()) != outer["sha256"]:
        raise DamagedError("manifest.json isn't what was written")
    return json.loads(outer["manifest"])


def _number(path):
    return int(path.name.rpartition("-")[2])


def _sha256(content):
    return hashlib.sha256(content).hexdigest()


def _checksum(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _as_json(identity):
    """Returns `identity` as JSON reads it: tuples as lists, NumPy's numbers plain."""
    return json.loads(json.dumps(dict(identity), default=lambda x: x.item()))


def _check_identity(path, manifest, identity):
    there = manifest["identity"]
    here = _as_json(identity)
    for name in here:
        if there.get(name) != here[name]:
            raise ValueError(
                f"BackupAndRestore: {path} is of another training: `{name}` was "
                f"{there.get(name)!r}, and is {here.get(name)!r} now. Use its old "
                f"value, choose another folder, or delete {path.parent} to start anew."
            )


def _pack(value, arrays):
    """Returns a form that JSON can represent; arrays go into `arrays`."""
    # Check this first, as np.float64 is also a float, and np.str_ also a str.
    if isinstance(value, np.ndarray | np.generic):
        kind = "array" if isinstance(value, np.ndarray) else "scalar"
        return _pack_array(value, arrays, kind)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        items = [[_pack(k, arrays), _pack(v, arrays)] for k, v in value.items()]
        return {"kind": "dict", "items": items}
    if isinstance(value, list | tuple | collections.deque):
        classes = (list, tuple, collections.deque)
        name = next(cls.__name__ for cls in classes if isinstance(value, cls))
        items = [_pack(x, arrays) for x in value]
        return {"kind": name, "items": items, "maxlen": getattr(value, "maxlen", None)}
    raise TypeError(f"a {type(value).__name__} can't be stored in a backup: {value!r}")


def _pack_array(value, arrays, kind):
    array = np.asarray(value)
    if array.dtype.hasobject:
        raise TypeError("an array of Python objects can't be stored in a backup")
    name = f"a{len(arrays)}"
    packed = {"kind": kind, "name": name}
    if array.dtype.kind == "V":  # bfloat16 and the like, which NumPy's files don't know
        packed |= {"dtype": str(array.dtype), "shape": list(array.shape)}
        array = np.frombuffer(array.tobytes(), np.uint8)
    arrays[name] = array
    return packed


def _unpack(packed, arrays):
    """Returns the value that `_pack` packed."""
    if not isinstance(packed, dict):
        return packed
    kind = packed["kind"]
    if kind in ("array", "scalar"):
        array = arrays[packed["name"]]
        if "dtype" in packed:
            import ml_dtypes  # comes with every backend that has such numbers

            dtype = np.dtype(getattr(ml_dtypes, packed["dtype"]))
            array = np.frombuffer(array.tobytes(), dtype).reshape(packed["shape"])
        return array if kind == "array" else array[()]
    if kind == "dict":
        return {_unpack(k, arrays): _unpack(v, arrays) for k, v in packed["items"]}
    items = [_unpack(x, arrays) for x in packed["items"]]
    if kind == "deque":
        return collections.deque(items, packed["maxlen"])
    return tuple(items) if kind == "tuple" else items


# --- Parts that every training has ------------------------------------------------


class ModelState:
    """The variables of a model, its metrics and optimizers, and `stop_training`."""

    def __init__(self, model: keras.Model):
        self.model = model

    def variables(self) -> list[keras.Variable]:
        """Returns the variables, each once."""
        model = self.model
        found = [*model.variables, *model.metrics_variables]
        for value in vars(model).values():
            if isinstance(value, keras.optimizers.Optimizer):
                found += value.variables
        return list({id(v): v for v in found}.values())

    def get_state(self):
        """Returns the values, each with its variable's shape and dtype."""
        values = [(_describe(v), _to_numpy(v)) for v in self.variables()]
        return {"variables": values, "stop_training": self.model.stop_training}

    def check_state(self, state):
        """Raises a `ValueError` if a state doesn't fit the variables."""
        variables, values = self.variables(), state["variables"]
        here, there = map(_describe, variables), [tuple(x) for x, _ in values]
        for new, old in zip(here, there, strict=False):
            if tuple(new) != old:
                raise ValueError(
                    "BackupAndRestore: the backup is of another model or optimizer: "
                    f"it has a variable of shape and dtype {old}, where there is one "
                    f"of {tuple(new)} now."
                )
        if len(variables) != len(values):
            raise ValueError(
                "BackupAndRestore: the backup is of another model or optimizer: it has "
                f"{len(values)} variables, and there are {len(variables)} now."
            )

    def set_state(self, state):
        """Assigns the values."""
        values = state["variables"]
        for variable, (_, value) in zip(self.variables(), values, strict=True):
            variable.assign(value)
        self.model.stop_training = state["stop_training"]


def _describe(variable):
    # Not by name: Keras' automatic names depend on the objects created before.
    return (tuple(variable.shape), keras.backend.standardize_dtype(variable.dtype))


def _to_numpy(variable):
    # Copy: a backend may return its own memory, which the next step changes.
    return np.array(ops.convert_to_numpy(variable))


class GlobalRandom:
    """The global random generators of Python, NumPy and Keras."""

    def get_state(self):
        """Returns their states."""
        made = global_state.get_global_attribute(seed_generator.GLOBAL_SEED_GENERATOR)
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            # Keras creates its own on demand, with a seed from Python's generator.
            "keras": None if made is None else _to_numpy(made.state),
        }

    def set_state(self, state):
        """Restores their states."""
        if state["keras"] is None:
            name = seed_generator.GLOBAL_SEED_GENERATOR
            global_state.set_global_attribute(name, None)
        else:
            seed_generator.global_seed_generator().state.assign(state["keras"])
        random.setstate(state["python"])
        np.random.set_state(state["numpy"])


class Values(types.SimpleNamespace):
    """A part with values by name that change between steps.

    Example:

    ```python
    chosen = Values(action=0)
    chosen.action = 1
    chosen.get_state()  # {"action": 1}
    ```
    """

    def __getattr__(self, name: str) -> Any:  # for type checkers: any name may exist
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        vars(self)[name] = value

    def get_state(self):
        """Returns the values."""
        return {name: _as_plain(x) for name, x in vars(self).items()}

    def set_state(self, state):
        """Restores the values."""
        vars(self).update(state)


def _as_plain(value):
    return np.array(ops.convert_to_numpy(value)) if ops.is_tensor(value) else value


class Callbacks:
    """The state of Keras callbacks between steps: their plain attributes.

    That suffices for `EarlyStopping`, `ReduceLROnPlateau`, `ModelCheckpoint` and
    `History`. Your own callback may define `get_state` and `set_state` instead.
    """

    skipped = ("params", "validation_data")

    def __init__(self, callbacks: list[keras.callbacks.Callback]):
        # The progress bar needs no state.
        self.callbacks = [
            c for c in callbacks if not isinstance(c, keras.callbacks.ProgbarLogger)
        ]

    def get_state(self):
        """Returns the states, each with its callback's class."""
        return [(type(c).__name__, self._get(c)) for c in self.callbacks]

    def check_state(self, state):
        """Raises a `ValueError` if the callbacks' classes differ from the state's."""
        here = [type(c).__name__ for c in self.callbacks]
        there = [name for name, _ in state]
        if here != there:
            raise ValueError(
                f"BackupAndRestore: the training began with the callbacks {there}, "
                f"received {here}. Pass the same callbacks."
            )

    def set_state(self, state):
        """Restores the states."""
        for callback, (_, values) in zip(self.callbacks, state, strict=True):
            if hasattr(callback, "set_state"):
                callback.set_state(values)
                continue
            for name, value in values.items():
                setattr(callback, name, value)

    def _get(self, callback):
        if hasattr(callback, "get_state"):
            return callback.get_state()
        # Skip the constructor's arguments: they are passed again, and Keras derives
        # other values from them, such as the sign of `min_delta` in the first epoch.
        given = inspect.signature(type(callback).__init__).parameters
        return {
            name: value
            for name, value in vars(callback).items()
            if name not in (*self.skipped, *given) and is_plain(value)
        }


def is_plain(value: Any) -> bool:
    """Whether a value consists of numbers, strings and arrays, which can be stored."""
    if isinstance(value, Mapping):
        return all(is_plain(x) for x in (*value.keys(), *value.values()))
    if isinstance(value, list | tuple | collections.deque):
        return all(map(is_plain, value))
    if isinstance(value, np.ndarray):
        return not value.dtype.hasobject
    return value is None or isinstance(value, bool | int | float | str | np.generic)


# --- A training that is backed up -------------------------------------------------


class Session:
    """The backups of one `fit`, called by its training loop.

    Args:
        backups: The folder.
        interval: Smallest number of seconds between two backups.
        restore: Whether to continue from an existing backup.
        delete: Whether to delete the backups at the end of the training.
        identity: Values by name that must be equal when a backup is restored.
        parts: All parts that have a state, by name, including the loop's position.
    """

    def __init__(
        self,
        backups: Backups,
        interval: float,
        restore: bool,
        delete: bool,
        identity: Mapping[str, Any],
        parts: Mapping[str, Part],
    ):
        self.backups = backups
        self.interval = interval
        self.restore = restore
        self.delete = delete
        self.identity = identity
        self.growing: dict[str, Any] = {
            name: x for name, x in parts.items() if hasattr(x, "rows_since")
        }
        self.parts = parts
        self._next = time.monotonic() + interval
        self._failed = False

    def load(self) -> dict[str, Any] | None:
        """Returns the states of the parts by name, or `None`.

        Growing parts get their rows back; other parts aren't changed yet.

        Raises:
            ValueError: If the backup is of another training, or all are damaged.
        """
        if not self.restore:
            return None
        return self.backups.load(self.identity, self.growing)

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Restores each part from the states that `load` returned.

        Raises:
            ValueError: If a state doesn't fit its part. Nothing is changed then.
        """
        for name, part in self.parts.items():
            if hasattr(part, "check_state"):
                part.check_state(state[name])
        for name, part in self.parts.items():
            part.set_state(state[name])

    def check_space(self) -> None:
        """Raises an `OSError` if the disk has no space for the backups."""
        arrays: dict[str, np.ndarray] = {}
        _pack({name: part.get_state() for name, part in self.parts.items()}, arrays)
        needed = KEPT * sum(x.nbytes for x in arrays.values())
        # One complete copy, and the segments that are still needed.
        needed += 2 * sum(part.num_bytes for part in self.growing.values())
        self.backups.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.backups.folder).free
        if free < 1.5 * needed:
            raise OSError(
                f"BackupAndRestore: backups of this training take about "
                f"{needed / 1e6:,.0f} MB, and {self.backups.folder} has "
                f"{free / 1e6:,.0f} MB left. Choose another `backup_dir`."
            )

    def look(self) -> None:
        """Writes a backup if it is time, or if a signal asks the process to end.

        Raises:
            KeyboardInterrupt: After the backup, if Ctrl-C was pressed.
            SystemExit: After the backup, if SIGTERM was sent.
        """
        if signals.received is not None:
            self.save(final=True)
            signals.end()
        if time.monotonic() >= self._next:
            self.save()

    def save(self, final: bool = False) -> None:
        """Writes a backup now.

        Args:
            final: Whether it is the last backup. If not, a disk error is only a
                warning, and the next interval tries again.

        Raises:
            OSError: If the backup can't be written and `final` is `True`.
        """
        begun = time.monotonic()
        try:
            state = {name: part.get_state() for name, part in self.parts.items()}
            self.backups.save(self.identity, state, self.growing)
        except OSError as error:
            if final:
                raise
            if not self._failed:
                warnings.warn(
                    f"BackupAndRestore: no backup was written to "
                    f"{self.backups.folder}: {error}. The training continues, and "
                    f"tries again in {self.interval:g} seconds.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            self._failed = True
        else:
            self._failed = False
        now = time.monotonic()
        wait = max(self.interval, (now - begun) / MAX_SHARE)
        self._next = now + (wait if self.interval else 0)

    def rescue(self) -> None:
        """Writes a backup before an error ends the training, and prints its folder.

        If that fails, it only warns, so as not to hide the original error.
        """
        try:
            self.save(final=True)
        except Exception as error:
            warnings.warn(
                f"BackupAndRestore: the last backup couldn't be written: {error!r}. "
                "The one before it is kept.",
                RuntimeWarning,
                stacklevel=2,
            )
        else:
            print(
                f"The training so far is saved in {self.backups.folder}.",
                file=sys.stderr,
            )

    def finish(self) -> None:
        """Deletes the backups of a finished training, or writes the last one."""
        if self.delete:
            self.backups.delete()
        else:
            self.save(final=True)


class NoSession:
    """A training that isn't backed up."""

    def load(self) -> None:
        """Returns `None`: there is no backup."""

    def check_space(self) -> None:
        """Does nothing."""

    def look(self) -> None:
        """Does nothing."""

    def rescue(self) -> None:
        """Does nothing."""

    def finish(self) -> None:
        """Does nothing."""


def in_stage(callbacks: Any, name: str) -> list[Any]:
    """Returns callbacks for one of several trainings that follow each other.

    Args:
        callbacks: Callbacks as `fit` takes them.
        name: Name of the stage, a valid file name.
    """
    found = keras.tree.flatten(callbacks or [])
    return [c.stage(name) if hasattr(c, "open_session") else c for c in found]


def end_stages(callbacks: Any) -> None:
    """Deletes the backups of all stages, unless they should be kept."""
    for callback in _backing_up(keras.tree.flatten(callbacks or [])):
        if callback.delete_checkpoint:
            callback.delete()


def asks_for_backups(callbacks: Any) -> bool:
    """Whether there is a `kit.BackupAndRestore` among callbacks as `fit` takes them."""
    callbacks = getattr(callbacks, "callbacks", callbacks)
    return bool(_backing_up(keras.tree.flatten(callbacks)))


def _backing_up(callbacks):
    return [c for c in callbacks if hasattr(c, "open_session")]


@contextlib.contextmanager
def backed_up(
    callbacks: list[keras.callbacks.Callback],
    model: keras.Model,
    identity: Mapping[str, Any],
    parts: Mapping[str, Part],
) -> Iterator[Any]:
    """Yields the `Session` of a training; signals end it between two steps.

    Args:
        callbacks: The training's callbacks. Without a `kit.BackupAndRestore`, nothing
            is backed up.
        model: The model or agent.
        identity: Values by name that must be equal when a backup is restored, in
            addition to the model's class.
        parts: The loop's own parts, by name.
    """
    found: list[Any] = _backing_up(callbacks)
    if not found:
        yield NoSession()
        return
    everything = {
        "model": ModelState(model),
        "callbacks": Callbacks([c for c in callbacks if c not in found]),
        "random": GlobalRandom(),
        **parts,
    }
    identity = {"class": type(model).__name__, **identity}
    with signals.caught():
        yield found[0].open_session(identity, everything)


class Signals:
    """Handles Ctrl-C and SIGTERM in trainings with backups: stop between two steps.

    A second Ctrl-C stops at once.
    """

    def __init__(self):
        self.received: int | None = None
        self._depth = 0
        self._before: dict[int, Any] = {}

    @contextlib.contextmanager
    def caught(self) -> Iterator[None]:
        """Catches the signals in a block, unless the program has its own handlers."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._depth += 1
        if self._depth == 1:
            self._install()
        try:
            yield
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._restore()

    def end(self) -> None:
        """Ends the process or the training, as the received signal demands."""
        received, self.received = self.received, None
        if received == signal.SIGINT:
            raise KeyboardInterrupt
        if received is not None:
            sys.exit(128 + received)

    def _install(self):
        self.received = None
        usual = (signal.default_int_handler, signal.SIG_DFL, exit_by_signal)
        for number in (signal.SIGINT, signal.SIGTERM):
            before = signal.getsignal(number)
            if before in usual:
                self._before[number] = before
                signal.signal(number, self._handle)

    def _restore(self):
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number, frame):
        if self.received is not None:
            self._restore()
            self.received = number
            self.end()
        self.received = number
        print(
            "\nStopping after this step, with a backup. Press Ctrl-C again to stop at "
            "once.",
            file=sys.stderr,
            flush=True,
        )


def exit_by_signal(number: int, frame: Any) -> None:
    """Ends the process by an exception instead of the signal, so that blocks exit."""
    sys.exit(128 + number)


signals = Signals()
