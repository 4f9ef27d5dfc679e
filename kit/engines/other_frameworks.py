"""Keeps Keras from importing another framework only to look for its objects."""

import sys
from typing import Any

import keras


class _OnlyIfImported:
    """Stands in Keras for a module that is available only if it is imported already."""

    def __init__(self, module):
        self._module = module

    @property
    def available(self):
        return self._module.name in sys.modules and self._module.available

    def __getattr__(self, name):
        return getattr(self._module, name)


def import_no_other_framework() -> None:
    """See `kit.backend.import_no_other_framework`."""
    library: Any = keras.src.saving.serialization_lib
    if not isinstance(library.tf, _OnlyIfImported):
        library.tf = _OnlyIfImported(library.tf)
