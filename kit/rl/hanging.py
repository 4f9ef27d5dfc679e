"""Warns if an environment doesn't answer.

A call of an environment can't be interrupted from outside. Without a warning, a
training whose simulator hangs looks like one that computes.
"""

import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

# Seconds until the warning. Even slow simulators take less for a step.
PATIENCE = 60.0


@runtime_checkable
class CallsEnvironment(Protocol):
    """An object that can be watched.

    Attributes:
        called: Time at which the current call began, by `time.monotonic`; `None` if
            there is none.
    """

    called: float | None

    def describe_call(self) -> str:
        """Returns a description of the call: environment and step."""


@contextmanager
def watched(envs: Any) -> Iterator[None]:
    """Warns, once per call, if an environment takes longer than `PATIENCE`.

    Args:
        envs: The object that calls the environment, a `CallsEnvironment`. Others, such
            as environments that are part of a program, aren't watched.
    """
    if not isinstance(envs, CallsEnvironment):
        yield
        return
    over = threading.Event()

    def watch():
        warned = None
        while not over.wait(PATIENCE / 10):
            called = envs.called
            if called is None or called == warned:
                continue
            if time.monotonic() - called > PATIENCE:
                warned = called
                warnings.warn(
                    f"{envs.describe_call()} hasn't answered for {PATIENCE:.0f} s. "
                    "Ctrl-C ends the training; kit.BackupAndRestore saves the training "
                    "so far.",
                    RuntimeWarning,
                    stacklevel=2,
                )

    thread = threading.Thread(target=watch, name="kit.rl.hanging", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
