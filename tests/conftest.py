"""Settings that must stand before Keras is imported, and one seed for each test.

Keras is imported where it is needed: not in the process that only hands out tests.
"""

import collections
import functools
import gc
import importlib.util
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # Only warnings and errors.
os.environ.setdefault("MPLBACKEND", "Agg")

if all(importlib.util.find_spec(name) for name in ("tensorflow", "torch")):
    # After TensorFlow in the same process, importing it has crashed.
    import torch  # noqa: F401

import hypothesis
import pytest

# Most of a fast test's time is spent compiling. Without these optimizations, XLA takes
# about half as long. Learning runs compile as users do. XLA aborts the process if it
# doesn't know a flag.
CHEAP_TO_COMPILE = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
)

# The same examples in each run, few of them, and no limit for the one that compiles.
hypothesis.settings.register_profile(
    "kit", derandomize=True, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("kit")


def pytest_configure(config):
    """Has XLA compile cheaply, which reads its flags with the first program."""
    if config.option.markexpr != "learn":
        given = os.environ.get("XLA_FLAGS", "").split()
        cheap = [flag for flag in CHEAP_TO_COMPILE if flag not in given]
        os.environ["XLA_FLAGS"] = " ".join(cheap + given)


def pytest_collection_finish():
    """Has Python look for garbage less often: traces make many objects that stay.

    Of what was imported, none becomes garbage. Tests of what is released collect it.
    """
    gc.freeze()
    gc.set_threshold(50_000, 10, 2)


def pytest_report_header(config):
    if config.getoption("numprocesses", None):  # tox says which backend it is
        return None
    import keras

    return f"keras {keras.__version__} on {keras.backend.backend()}"


def pytest_addoption(parser):
    parser.addoption(
        "--part", metavar="I/N", help="run the I-th of N parts of the files"
    )
    parser.addoption(
        "--no-repeats",
        action="store_true",
        help="leave out what is marked as once, and variants but the first",
    )


@functools.cache
def other_parts(part):
    """Returns the test files that aren't of the part I/N.

    XLA keeps what it compiled, some two hundred memory maps for a model, and a process
    on Linux may have 65,530: the whole suite in one process is aborted.
    """
    if part is None:
        return frozenset()
    number, count = map(int, part.split("/"))
    files = sorted(Path(__file__).parent.glob("test_*.py"))
    return frozenset(files) - frozenset(files[number - 1 :: count])


def pytest_ignore_collect(collection_path, config):
    """Leaves out the files of other parts, before time is spent on reading them."""
    return collection_path in other_parts(config.getoption("part")) or None


@pytest.hookimpl(trylast=True)  # after the choice by markers
def pytest_collection_modifyitems(config, items):
    """Leaves out what isn't tested under another backend, or in another part."""
    chosen = items
    if config.getoption("no_repeats"):
        chosen = list(without_repeats(chosen))
    # Files that the command line names were read all the same.
    others = other_parts(config.getoption("part"))
    chosen = [x for x in chosen if x.path not in others]
    if left_out := set(items) - set(chosen):
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = chosen


def without_repeats(items):
    """Yields what depends on the backend, and of variants the first ones."""
    seen = collections.Counter()
    for item in items:
        if item.get_closest_marker("once"):
            continue
        if marker := item.get_closest_marker("variants"):
            seen[item.function] += 1
            if seen[item.function] > (marker.args or (1,))[0]:
                continue
        yield item


def pytest_sessionfinish(session, exitstatus):
    """A part may be empty, as where a single file is asked for."""
    if (
        session.config.getoption("part")
        and exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED
    ):
        session.exitstatus = pytest.ExitCode.OK


@pytest.fixture(autouse=True)
def seeded():
    """Makes a test independent of those before it: names, seeds, draws."""
    import keras

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


@pytest.fixture
def few_digits(monkeypatch):
    """The digits that recipes train on, but few of them."""
    from kit.data import vision

    data = vision.images()
    few = vision.Split(
        data.x_train[:200], data.y_train[:200], data.x_test[:40], data.y_test[:40]
    )
    monkeypatch.setattr(vision, "images", lambda name="mnist_5k": few)
    return few


@pytest.fixture
def float64():
    """Has Keras make and compute all variables in float64."""
    import keras

    before = keras.config.floatx()
    keras.config.set_floatx("float64")
    yield
    keras.config.set_floatx(before)
