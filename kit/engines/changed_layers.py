"""Detects layers that change after a program that calls them was compiled.

`quantize` and `enable_lora`, for example, add and remove variables and set the dtype
policy. A changed layer notifies its programs, so that calls need not check.
"""

import functools
import weakref
from typing import Any

import keras

from kit.engines.replacements import Replacement, function
from kit.engines.scope import context

# Layer -> the compiled functions whose programs call it.
_users: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()


def _call(original, layer, *args, **kwargs):
    compiled = context.compiled
    if compiled not in _users.get(layer, ()):
        for part in layer._flatten_layers():
            _users.setdefault(part, weakref.WeakSet()).add(compiled)
    return original(layer, *args, **kwargs)


RECORD_CALLS: Replacement = function(
    keras.layers.Layer,
    "__call__",
    _call,
    "notes which layers a compiled function calls",
    lambda: context.compiled is not None,
)


def _change(original, layer, *args):
    original(layer, *args)
    for compiled in list(_users.get(layer, ())):
        compiled.release()


# What stays in place after the first trace: Keras says nowhere else that a layer
# changes. The names are private in Keras; test_backend.py has a test that names them.
HOOKS = ("_track_variable", "_untrack_variable", "dtype_policy")


@functools.cache
def watch_layers() -> None:
    """Makes layers notify the compiled functions that call them when they change."""
    layer = keras.layers.Layer

    def watched(method):
        @functools.wraps(method)
        def call(self, *args):
            return _change(method, self, *args)

        return call

    layer._track_variable = watched(layer._track_variable)
    layer._untrack_variable = watched(layer._untrack_variable)
    policy = layer.dtype_policy
    layer.dtype_policy = policy.setter(watched(policy.fset))
