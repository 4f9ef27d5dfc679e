"""Runs Keras' own tests with the kit's classes in place of Keras'.

Keras' package contains its tests. Each file runs twice: as it is, and with the kit's
`Model`, `Sequential`, `Functional` and trainer under the names that it imports. A test
that passes with Keras and fails with the kit is a difference; the known ones are listed
here with their reason. Run by `tox -m keras-tests`; `-- cloning functional` runs the
files of these names only.
"""

import argparse
import ast
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDERS = ("callbacks", "models", "saving", "trainers")

SEQUENTIAL = "models/sequential_test.py::SequentialTest::test"
SAVING = "saving/saving_lib_test.py::SavingTest::test"
TRAINER = "trainers/trainer_test.py::TestTrainer::test"
INNER = "looks at the functional model inside of a Sequential, which stays Keras'"
COMPILES = "a model is loaded compiled though its class overrides compile()"
LAST = "the last batch has its own number, not that of a whole group of batches"
DATA = "labels that are infinite are refused before the first batch"
NAN = "callbacks/terminate_on_nan_test.py::TerminateOnNaNTest::test"

# Test -> why it fails with the kit.
KNOWN_DIFFERENCES = {
    f"{NAN}_raise_error_terminate_does_not_trigger_on_train_end": DATA,
    f"{NAN}_raise_error_terminate_preserves_backup": DATA,
    f"{NAN}_raise_error_terminate_stops_on_later_batch": DATA,
    f"{NAN}_terminate_on_nan_graceful_stop": DATA,
    f"{NAN}_terminate_on_nan_raise_error_raises_error": DATA,
    f"{SEQUENTIAL}_basic_flow_deferred": INNER,
    f"{SEQUENTIAL}_basic_flow_with_functional_model_as_first_layer": INNER,
    f"{SEQUENTIAL}_basic_flow_with_input": INNER,
    f"{SEQUENTIAL}_basic_flow_with_sequential_model_as_first_layer": INNER,
    f"{SEQUENTIAL}_legacy_flow_with_input_shape": INNER,
    f"{SAVING}_compile_overridden_warnings_sequential": COMPILES,
    f"{SAVING}_compile_overridden_warnings_subclassed": COMPILES,
    f"{TRAINER}_fit_eval_flow_for_jax_model_weights": "weights keep values in fit()",
    f"{TRAINER}_steps_per_execution_steps_count_3_jit": LAST,
    f"{TRAINER}_steps_per_execution_steps_count_101_jit": LAST,
    f"{TRAINER}_steps_per_execution_unrolled_steps_steps_count_3": LAST,
    f"{TRAINER}_steps_per_execution_unrolled_steps_steps_count_8": LAST,
    f"{TRAINER}_steps_per_execution_unrolled_steps_steps_count_32": LAST,
}


def find_modules(names):
    """Returns the names of Keras' test modules: of these files, or all."""
    source = Path(importlib.util.find_spec("keras").origin).parent / "src"
    files = [path for name in FOLDERS for path in (source / name).rglob("*_test.py")]
    if names:
        files = [path for path in files if path.stem.removesuffix("_test") in names]
    return sorted(
        ".".join(path.relative_to(source.parents[1]).with_suffix("").parts)
        for path in files
    )


def make_replace():
    """Returns a function that puts the kit's classes into a namespace.

    It replaces names of the test module only: Keras itself, and the kit, keep Keras'.
    """
    import keras

    import kit

    backend = keras.backend.backend()
    trainers = importlib.import_module(f"keras.src.backend.{backend}.trainer")
    (trainer,) = [x for x in keras.Model.__mro__ if x.__module__ == trainers.__name__]
    replacements = {
        keras.Model: kit.Model,
        keras.Sequential: kit.Sequential,
        keras.src.models.Functional: kit.models.Functional,
        trainer: type(trainer.__name__, (kit.CompiledFit, trainer), {}),
    }

    modules = (keras, keras.models, keras.src.models)

    def replace(namespace):
        for name, value in list(namespace.items()):
            if isinstance(value, type):
                namespace[name] = replacements.get(value, value)
            elif isinstance(value, ModuleType) and value in modules:
                view = ModuleType(value.__name__)
                vars(view).update(vars(value))
                namespace[name] = view
                replace(vars(view))

    return replace


def import_with(replace, name):
    """Imports a module, calling `replace` on its names after each of its imports."""
    spec: Any = importlib.util.find_spec(name)
    tree = ast.parse(Path(spec.origin).read_text())
    body = []
    for node in tree.body:
        body.append(node)
        if isinstance(node, ast.Import | ast.ImportFrom | ast.If):
            body += ast.parse("_replace(globals())").body
    tree.body = body
    module = importlib.util.module_from_spec(spec)
    vars(module)["_replace"] = replace
    sys.modules[name] = module
    exec(compile(tree, spec.origin, "exec"), vars(module))


class Outcomes:
    """A pytest plugin that notes how each test ended."""

    def __init__(self):
        self.outcomes = {}

    def pytest_runtest_logreport(self, report):
        if report.when == "call" or report.outcome != "passed":
            self.outcomes[report.nodeid.partition("keras/src/")[2]] = report.outcome


def run_tests(modules, with_kit, path):
    """Runs the tests in this process, and writes how they ended to a file."""
    if importlib.util.find_spec("torch"):
        import torch  # noqa: F401  # before TensorFlow, as in conftest.py
    import keras
    import pytest

    # Keras' repository has it; its package doesn't.
    conftest: Any = ModuleType("conftest")
    conftest.skip_if_backend = lambda backend, reason: pytest.mark.skipif(
        keras.backend.backend() == backend, reason=reason
    )
    sys.modules["conftest"] = conftest
    replace = make_replace() if with_kit else lambda namespace: None
    files = []
    for name in modules:
        try:
            import_with(replace, name)
        except ModuleNotFoundError as error:
            print(f"{name} is left out: it needs {error.name}.")
            del sys.modules[name]
        else:
            files.append(sys.modules[name].__file__)
    plugin = Outcomes()
    pytest.main(
        [
            *("-c", os.devnull, "-p", "no:cacheprovider", "-q", "--tb=short", "-rf"),
            *("-W", "ignore", "--disable-warnings", "--import-mode=importlib"),
            f"--rootdir={Path(files[0]).parents[3]}",
            *files,
        ],
        plugins=[plugin],
    )
    Path(path).write_text(json.dumps(plugin.outcomes))


def compare(modules):
    """Returns the lines of a report, and whether the differences are the known ones."""
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        for arguments in ([], ["--with-kit"]):
            path = Path(folder) / f"outcomes{len(outcomes)}.json"
            subprocess.run(
                [sys.executable, __file__, *modules, *arguments, "--write-to", path]
            )
            outcomes.append(json.loads(path.read_text()))
    plain, ours = outcomes
    passed = {test for test, outcome in plain.items() if outcome == "passed"}
    failed = {test for test in passed if ours.get(test) != "passed"}
    known = {test for test in KNOWN_DIFFERENCES if test in passed}
    lines = [f"With Keras: {dict(Counter(plain.values()))}."]
    lines += [f"known: {x}: {KNOWN_DIFFERENCES[x]}" for x in sorted(failed & known)]
    lines += [f"FAILED with the kit: {test}" for test in sorted(failed - known)]
    lines += [f"PASSED, though listed here: {test}" for test in sorted(known - failed)]
    lines.append(f"With the kit, {len(passed - failed)} of {len(passed)} pass.")
    return lines, bool(passed) and failed == known


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="such as cloning; default: all")
    parser.add_argument("--with-kit", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--write-to", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write_to:
        run_tests(options.names, options.with_kit, options.write_to)
        return
    lines, fine = compare(find_modules(options.names))
    print("\n".join(lines))
    sys.exit(not fine)


if __name__ == "__main__":
    main()
