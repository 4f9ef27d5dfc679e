"""One backup for several trainings that advance together.

Each training has its own loop, and each loop asks its `kit.BackupAndRestore` for a
session. Separate backups wouldn't fit each other, as they are written at different
moments. Here, only the last loop writes backups: its session also saves the parts of
the others, which have already finished the same turn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import keras

from kit.backups import NoSession, Part, Session
from kit.callbacks import BackupAndRestore


def joint_backups(
    callback: BackupAndRestore, names: Sequence[str]
) -> list[keras.callbacks.Callback]:
    """Returns a callback for each of several loops that advance in this order.

    Args:
        callback: Where and how often to write backups.
        names: Names of the trainings. A backup of others is refused.

    Raises:
        ValueError: If the folder's backup is of other trainings, or all are damaged.
    """
    saved = None
    if callback.restore:
        saved = callback.backups.load({"trainings": list(names)}, {})
    members = {name: _Member(saved and saved[name]) for name in names[:-1]}
    return [*members.values(), _Leader(callback, names, members)]


class _Member(keras.callbacks.Callback):
    """The backup of a loop that another loop writes and restores.

    It is also the part of that other loop's backups that has this loop's parts.

    Args:
        saved: The state of this loop's parts in the existing backup, or `None`.
    """

    def __init__(self, saved: Mapping[str, Any] | None):
        super().__init__()
        self.saved = saved
        self.parts: Mapping[str, Part] = {}

    def open_session(self, identity, parts):
        """Returns a session that restores the parts, and writes nothing."""
        self.parts = parts
        return _MemberSession(self.saved, parts)

    def get_state(self):
        """Returns the states of the loop's parts."""
        return {name: part.get_state() for name, part in self.parts.items()}

    def set_state(self, state):
        """Does nothing: the loop's own session has restored its parts."""


class _MemberSession(NoSession):
    def __init__(self, saved, parts):
        self.saved = saved
        self.parts = parts

    def load(self):
        return self.saved

    set_state = Session.set_state


class _Leader(keras.callbacks.Callback):
    """The backup of all loops, for the one that advances last."""

    def __init__(self, callback, names, members):
        super().__init__()
        self.callback = callback
        self.names = names
        self.members = members

    def open_session(self, identity, parts):
        """Returns the session that saves all loops."""
        identity = {"trainings": list(self.names), **identity}
        return self.callback.open_session(identity, {**parts, **self.members})
