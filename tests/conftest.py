"""Settings that must stand before Keras is imported, and one seed for each test."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Only warnings and errors.
os.environ.setdefault("MPLBACKEND", "Agg")

if all(importlib.util.find_spec(name) for name in ("tensorflow", "torch")):
    # After TensorFlow in the same process, importing it has crashed.
    import torch  # noqa: F401

import keras
import pytest


def pytest_report_header():
    return f"keras {keras.__version__} on {keras.backend.backend()}"


@pytest.fixture(autouse=True)
def seeded():
    """Makes a test independent of those before it: names, seeds, draws."""
    keras.utils.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="session")
def load_recipe():
    """Returns a function from a recipe's name to its module: recipes are scripts."""

    def load(name):
        path = Path(__file__).parents[1] / "recipes" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(f"recipe_{name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load
