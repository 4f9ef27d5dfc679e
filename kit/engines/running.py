"""The engine of the backend that Keras runs on."""

import threading

import keras

from kit.engines.base import Engine

BACKENDS = ("tensorflow", "jax", "torch")

_engine: Engine | None = None
_engine_lock = threading.Lock()


def get_engine() -> Engine:
    """Returns the engine of the running backend; the first call makes it.

    Making it starts the backend, so `import kit` doesn't.
    """
    global _engine
    if _engine is None:
        with _engine_lock:
            if _engine is None:
                _engine = _make_engine()
    return _engine


def require_backend(name: str, what: str) -> None:
    """Raises an error if Keras runs on another backend than what is needed.

    Args:
        name: The backend that is needed.
        what: What needs it.

    Raises:
        ValueError: If another one runs.
    """
    running = keras.backend.backend()
    if running != name:
        raise ValueError(
            f"{what} runs only where Keras runs on {name}; the backend is {running!r}. "
            f"Set the environment variable KERAS_BACKEND={name} before Python starts."
        )


def prepare() -> None:
    """Does what has to be done before the backend starts; nothing here starts it.

    Raises:
        ImportError: If Keras runs on a backend that the kit has no engine for.
    """
    name = keras.backend.backend()
    if name not in BACKENDS:
        raise ImportError(
            f"kit runs on {', '.join(BACKENDS)}; the Keras backend is {name!r}. Set "
            "the environment variable KERAS_BACKEND before Python starts."
        )
    if name == "jax":
        from kit.engines.jax import dispatch_on_this_thread

        dispatch_on_this_thread()


def _make_engine() -> Engine:
    name = keras.backend.backend()
    if name == "jax":
        from kit.engines.jax import JaxEngine

        return JaxEngine()
    if name == "tensorflow":
        from kit.engines.tensorflow import TensorFlowEngine

        return TensorFlowEngine()
    from kit.engines.torch import TorchEngine

    return TorchEngine()
