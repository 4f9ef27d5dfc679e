"""The comparison runs small recipes: failure, resume, interruption, what is missing."""

import ast
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import threading
import time

import keras
import pytest

from kit.tools import catalog
from kit.tools.compare import BACKENDS, compare, main_signature
from kit.tools.report import report
from kit.tools.scores import read_comparison

pytestmark = pytest.mark.once

BACKEND = keras.backend.backend()
OTHER = next(name for name in BACKENDS if name != BACKEND)

# Keeps to what compare asks of a recipe, and starts at once, as it imports no Keras.
SMALL = """
import json, os, pathlib, sys, time

def main(*, size: int = {size}):  # {comment}
    pass

arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
folder = pathlib.Path(arguments["--output-dir"])
with (folder.parent / "calls.txt").open("a") as file:
    file.write(f"{{folder.name}} {{os.environ['KERAS_BACKEND']}}\\n")
print("line one")
{body}
(folder / "metrics.json").write_text(json.dumps({{
    "recipe": folder.name.split("-")[0],
    "backend": os.environ["KERAS_BACKEND"],
    "seed": int(arguments["--seed"]),
    "config": {{"size": int(arguments.get("--size", {size}))}},
    "metrics": {{"score": 1.0, "error": 2.0}},
}}))
"""


def write_recipe(folder, name="small", body="", size=3, comment="", declared=""):
    path = folder / f"{name}.py"
    text = SMALL.format(body=body, size=size, comment=comment)
    path.write_text(text.replace("\ndef main", f"\n{declared}\ndef main"))
    return str(path)


def run(folder, *recipes, **options):
    options = {"backends": (BACKEND,), "seeds": 1, "parity": False} | options
    return compare(recipes=recipes, output_dir=folder / "reports", **options)


def calls(folder):
    return (folder / "reports/runs/calls.txt").read_text().split("\n")[:-1]


def record(folder, name):
    return json.loads((folder / "reports/runs" / name / "run.json").read_text())


# --- What a recipe declares ----------------------------------------------------

DECLARED = """
COMPARISON = {
    "title": "A small one",
    "score": "error",
    "larger_is_better": True,
    "quick": "--size '1'",
    "published": [
        ("0.9", "everyone"),
        ("0.8", "those with one", {"size": 1}),
        ("0.7", "those with three", {"size": 3}),
    ],
}
"""


def entry(folder):
    assert report(output_dir=folder / "reports") == 0
    (found,) = json.loads((folder / "reports/backends.json").read_text())["recipes"]
    return found


def test_a_recipe_declares_how_it_is_judged(tmp_path):
    recipe = write_recipe(tmp_path, declared=DECLARED)
    assert run(tmp_path, recipe, quick=True) == 0
    pathlib.Path(recipe).unlink()  # What it declared is kept with its runs.
    found = entry(tmp_path)
    assert (found["title"], found["metric"]) == ("A small one", "error")
    assert found["larger_is_better"]
    assert found["backends"][BACKEND]["score"]["mean"] == 2.0
    assert found["quick"] and found["arguments"] == "--size 1"
    figures = [x["figure"] for x in found["references"]]
    assert figures == ["0.9", "0.8"]


def test_a_changed_declaration_counts_without_new_runs(tmp_path):
    recipe = write_recipe(tmp_path, declared=DECLARED)
    run(tmp_path, recipe, seeds=2)
    assert entry(tmp_path)["title"] == "A small one"
    changed = DECLARED.replace("A small one", "Another").replace("True", "False")
    write_recipe(tmp_path, declared=changed)
    assert run(tmp_path, recipe) == 0
    found = entry(tmp_path)
    assert (found["title"], found["larger_is_better"]) == ("Another", False)
    assert found["backends"][BACKEND]["seeds"] == [0, 1]
    assert len(calls(tmp_path)) == 2
    write_recipe(tmp_path)  # It declares nothing any more.
    run(tmp_path, recipe)
    found = entry(tmp_path)
    assert (found["title"], found["metric"]) == ("small", "score")
    assert len(calls(tmp_path)) == 2


def test_a_run_that_failed_keeps_what_its_recipe_declares(tmp_path):
    body = "raise SystemExit('no such thing')"
    assert run(tmp_path, write_recipe(tmp_path, body=body, declared=DECLARED)) == 1
    found = entry(tmp_path)
    assert (found["title"], found["metric"]) == ("A small one", "error")


def test_an_own_recipe_named_like_one_of_the_kits_is_judged_by_itself(tmp_path):
    assert run(tmp_path, write_recipe(tmp_path, "dqn"), quick=True) == 0
    found = entry(tmp_path)
    assert (found["title"], found["metric"]) == ("dqn", "score")
    assert (found["arguments"], found["references"]) == ("", [])


def test_declarations_may_be_annotated_and_the_last_one_counts(tmp_path):
    declared = "COMPARISON = {'title': 'a'}\nCOMPARISON: dict = {'title': 'b'}"
    path = write_recipe(tmp_path, declared=declared)
    assert read_comparison(pathlib.Path(path)) == {"title": "b"}


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ("make()", r", line \d+: COMPARISON must be a literal .*, got make\(\)"),
        ("{'title': NAME}", r"must be a literal .*, got {'title': NAME}"),
        ("{[]: 1}", r"must be a literal .*, got {\[\]: 1}"),
        ("['error']", r": COMPARISON must be a dict, got \['error'\]"),
        ("None", ": COMPARISON must be a dict, got None"),
        ("{'scores': 'error'}", "the unknown key 'scores'; accepted are 'title', 'pl"),
        ("{3: 'error'}", "the unknown key 3; accepted are 'title'"),
        ("{'title': 3}", r"COMPARISON\['title'\] must be a string, got 3"),
        ("{'place': True}", r"\['place'\] must be an integer, got True"),
        ("{'place': '1'}", r"\['place'\] must be an integer, got '1'"),
        (
            "{'score': 'error'}",
            "both 'score' and 'larger_is_better' or neither, got 's",
        ),
        ("{'larger_is_better': True}", "or neither, got 'larger_is_better' only"),
        (
            "{'score': 'error', 'larger_is_better': 'yes'}",
            r"\['larger_is_better'\] must be True or False, got 'yes'",
        ),
        (
            "{'score': ['error'], 'larger_is_better': 1}",
            r"\['score'\] must be a string, the name of a figure in metrics.json, got",
        ),
        ("{'curve': None}", r"\['curve'\] must be a string, the name of a column"),
        ("{'curve_rows': 'rbm'}", r"\['curve_rows'\] must be a dict of .*got 'rbm'"),
        (
            "{'curve_rows': {'rbm': 1}}",
            r"\['curve_rows'\]\['rbm'\] must be a string or None, got 1",
        ),
        (
            "{'curve_rows': {1: '1'}}",
            r"\['curve_rows'\] must have strings as keys, got 1",
        ),
        ("{'quick': ['--size', '1']}", r"\['quick'\] must be a string of arguments"),
        (
            "{'quick': '--name \"a'}",
            r"\['quick'\] must be a string of arguments as they are typed in a shell, "
            r"got '--name \"a' \(No closing quotation\)",
        ),
        ("{'published': ('1', 'me')}", r"\['published'\] must be a list, got"),
        (
            "{'published': ['1']}",
            r"\['published'\]\[0\] must be a tuple of the figure and .*, got '1'",
        ),
        (
            "{'published': [('1', 'me'), (2, 'me')]}",
            r"\['published'\]\[1\] must be a tuple of .*, got \(2, 'me'\)",
        ),
        ("{'published': [('1', 'me', 'x')]}", r"perhaps a dict of arguments, got"),
        ("{'published': [('1', 'me', {}, {})]}", r"perhaps a dict of arguments, got"),
        (
            "{'published': [('1', 'me', {'units': [64]})]}",
            r"\['published'\]\[0\]\[2\]\['units'\] must be a string, a number or a "
            r"Boolean, got \[64\]",
        ),
        (
            "{'published': [('1', 'me', {64: 64})]}",
            r"\['published'\]\[0\]\[2\] must have strings as keys, got 64",
        ),
    ],
)
def test_a_bad_declaration_is_named_before_anything_runs(tmp_path, declared, message):
    recipe = write_recipe(tmp_path, declared=f"COMPARISON = {declared}")
    with pytest.raises(ValueError, match=f"^{re.escape(recipe)}.*{message}"):
        run(tmp_path, recipe)
    assert not (tmp_path / "reports").exists()


# --- One run after the other --------------------------------------------------


def test_each_seed_runs_under_its_backend(tmp_path):
    assert run(tmp_path, write_recipe(tmp_path), seeds=2) == 0
    assert calls(tmp_path) == [f"small-{BACKEND}-{i} {BACKEND}" for i in range(2)]


TINY = """
from pathlib import Path

from kit.lab.run import Run, command_line

COMPARISON = {"title": "Tiny", "score": "score", "larger_is_better": True}


def main(*, seed: int = 0, output_dir: Path | None = None) -> dict:
    run = Run("tiny", seed=seed, output_dir=output_dir, config=locals())
    return run.finish(metrics={"score": 2.5}, baselines={}, throughput=(1.0, "x/s"))


if __name__ == "__main__":
    command_line(main)
"""


@pytest.mark.once
def test_the_last_thing_is_the_report(tmp_path, capsys):
    (tmp_path / "tiny.py").write_text(TINY)
    assert run(tmp_path, str(tmp_path / "tiny.py"), seeds=2) == 0
    names = ("backends.md", "backends.html", "backends.json")
    pages = [(tmp_path / "reports" / name).read_text() for name in names]
    assert all("2.5" in page for page in pages) and "No report" not in str(
        capsys.readouterr()
    )


@pytest.mark.once
def test_without_the_packages_of_the_report_runs_are_kept(
    tmp_path, capsys, monkeypatch
):
    def refuse(*packages):
        raise ImportError("jinja2 isn't installed")

    monkeypatch.setattr("kit.tools.report.require", refuse)
    assert run(tmp_path, write_recipe(tmp_path)) == 0
    printed = capsys.readouterr().out
    assert "No report was written: jinja2 isn't installed" in printed
    assert "To write it later: python -m kit report --output-dir" in printed
    assert (tmp_path / "reports" / "runs" / f"small-{BACKEND}-0").is_dir()


# --- Going on -----------------------------------------------------------------


def test_finished_runs_are_not_repeated(tmp_path):
    recipe = write_recipe(tmp_path)
    assert run(tmp_path, recipe) == run(tmp_path, recipe) == 0
    assert len(calls(tmp_path)) == 1
    write_recipe(tmp_path, comment="changes nothing")
    run(tmp_path, recipe)
    assert len(calls(tmp_path)) == 1
    run(tmp_path, recipe, seeds=2)
    assert len(calls(tmp_path)) == 2


@pytest.mark.parametrize("change", ["argument", "default"])
def test_a_changed_budget_is_a_new_run_and_the_old_one_is_kept(tmp_path, change):
    recipe = write_recipe(tmp_path)
    run(tmp_path, recipe)
    if change == "default":
        write_recipe(tmp_path, size=4)
        options = {}
    else:
        options = {"arguments": ("small --size 4",)}
    run(tmp_path, recipe, **options)
    assert len(calls(tmp_path)) == 2
    path = f"small-{BACKEND}-0/metrics.json"
    new = json.loads((tmp_path / "reports/runs" / path).read_text())
    (old,) = (tmp_path / "reports/replaced").glob("*/metrics.json")
    assert new["config"] == {"size": 4}
    assert json.loads(old.read_text())["config"] == {"size": 3}


def test_a_quick_look_costs_no_full_runs(tmp_path):
    recipe = write_recipe(tmp_path)
    look = {"arguments": ("small --size 1",)}
    for options in ({}, look, {}, look):
        assert run(tmp_path, recipe, **options) == 0
        path = tmp_path / f"reports/runs/small-{BACKEND}-0/metrics.json"
        size = json.loads(path.read_text())["config"]["size"]
        assert size == (1 if options else 3)
    assert len(calls(tmp_path)) == 2  # the others came back


def test_another_file_of_the_same_name_is_another_recipe(tmp_path):
    (tmp_path / "copy").mkdir()
    run(tmp_path, write_recipe(tmp_path))
    run(tmp_path, write_recipe(tmp_path / "copy"))
    assert len(calls(tmp_path)) == 2


def test_a_failure_is_recorded_the_rest_goes_on_and_it_is_tried_again(tmp_path):
    bad = write_recipe(tmp_path, "bad", body="raise SystemExit('no such thing')")
    good = write_recipe(tmp_path, "good")
    assert run(tmp_path, bad, good) == 1
    failed = record(tmp_path, f"bad-{BACKEND}-0")
    assert failed["status"] == "failed"
    assert failed["exit_code"] == 1
    assert failed["last_lines"] == ["line one", "no such thing"]
    assert record(tmp_path, f"good-{BACKEND}-0")["status"] == "finished"
    write_recipe(tmp_path, "bad")  # mended
    assert run(tmp_path, bad, good) == 0
    assert [line.split("-")[0] for line in calls(tmp_path)] == ["bad", "good", "bad"]


def test_a_recipe_that_leaves_no_figures_has_failed(tmp_path):
    assert run(tmp_path, write_recipe(tmp_path, body="sys.exit(0)")) == 1
    assert record(tmp_path, f"small-{BACKEND}-0")["status"] == "failed"


WAIT = """
child = __import__("subprocess").Popen(["sleep", "60"])
(folder / "pids").write_text(f"{os.getpid()} {child.pid}")
time.sleep(60)
"""


def test_what_a_run_leaves_running_is_ended(tmp_path):
    body = WAIT.replace("time.sleep(60)", "")
    assert run(tmp_path, write_recipe(tmp_path, body=body)) == 0
    assert all_ended(tmp_path / "reports/runs" / f"small-{BACKEND}-0")


def all_ended(folder):
    """Whether the processes that WAIT tells of are gone, within a few seconds."""
    pids = (folder / "pids").read_text().split()
    for _ in range(100):
        if not any(is_running(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


def is_running(pid):
    """Whether a process is there, and isn't one that nobody has asked about yet."""
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    status = pathlib.Path(f"/proc/{pid}/stat")
    return not status.exists() or ") Z " not in status.read_text()


def test_a_run_that_takes_too_long_is_ended_with_what_it_started(tmp_path):
    assert run(tmp_path, write_recipe(tmp_path, body=WAIT), timeout=2.0) == 1
    name = f"small-{BACKEND}-0"
    assert record(tmp_path, name)["status"] == "timed out"
    assert record(tmp_path, name)["last_lines"] == ["line one"]
    assert all_ended(tmp_path / "reports/runs" / name)


@pytest.fixture
def ctrl_c():
    """Has Ctrl-C heard also in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_after_an_interruption_the_same_command_goes_on(tmp_path, number):
    first = write_recipe(tmp_path, "first")
    second = write_recipe(tmp_path, "second", body=WAIT)
    folder = tmp_path / "reports/runs" / f"second-{BACKEND}-0"

    def interrupt():
        for _ in range(1200):
            time.sleep(0.05)
            if (folder / "pids").exists():
                os.kill(os.getpid(), number)
                return

    thread = threading.Thread(target=interrupt)
    thread.start()
    status = run(tmp_path, first, second, timeout=60.0)
    thread.join()
    assert status == 130
    assert record(tmp_path, folder.name)["status"] == "interrupted"
    assert all_ended(folder)

    write_recipe(tmp_path, "second")
    assert run(tmp_path, first, second) == 0
    assert [x.split("-")[0] for x in calls(tmp_path)] == ["first", "second", "second"]


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_while_a_run_is_started_ends_it(tmp_path, monkeypatch, number):
    pids = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            pids.append(self.pid)
            signal.raise_signal(number)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    assert run(tmp_path, write_recipe(tmp_path, body=WAIT)) == 130
    assert record(tmp_path, f"small-{BACKEND}-0")["status"] == "interrupted"
    assert pids and not any(map(is_running, pids))


def test_two_comparisons_in_a_folder_take_turns(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    recipe = write_recipe(tmp_path)
    (tmp_path / "reports").mkdir()
    with (tmp_path / "reports/.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread = threading.Thread(target=run, args=(tmp_path, recipe))
        thread.start()
        time.sleep(1)
        assert not list((tmp_path / "reports/runs").glob("small*"))
    thread.join(60)
    assert len(calls(tmp_path)) == 1


# --- What is missing or wrong -------------------------------------------------


def test_a_backend_that_is_not_installed_is_told_and_no_failure(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, OTHER, None)  # Python's way to say: not there.
    recipe = write_recipe(tmp_path)
    assert run(tmp_path, recipe, backends=(OTHER, BACKEND)) == 0
    assert f"{OTHER} is not installed" in capsys.readouterr().out
    assert record(tmp_path, f"small-{OTHER}-0")["status"] == "not installed"
    assert len(calls(tmp_path)) == 1
    assert run(tmp_path, recipe, backends=(OTHER,)) == 1


def test_what_was_run_elsewhere_stays_where_a_backend_is_missing(tmp_path, monkeypatch):
    recipe = write_recipe(tmp_path)
    folder = tmp_path / "reports/runs" / f"small-{OTHER}-0"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    monkeypatch.setitem(sys.modules, OTHER, None)
    run(tmp_path, recipe, backends=(OTHER,))
    assert list(folder.iterdir()) == [folder / "metrics.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"recipes": ("no_such",)}, "recipes: 'no_such' is no recipe.*dqn"),
        ({"recipes": ("no/such.py",)}, "recipes: 'no/such.py' is no recipe"),
        ({"seeds": 0}, "seeds must be 1 or more, got 0"),
        ({"timeout": -1.0}, "timeout must be above 0"),
        ({"backends": ("theano",)}, "backends: 'theano'.*tensorflow, jax, torch"),
        ({"arguments": ("ppo --x 1",)}, "arguments: 'ppo --x 1' must begin with.*dqn"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        compare(**{"recipes": ("dqn",), "output_dir": tmp_path / "reports"} | options)
    assert not (tmp_path / "reports").exists()


def test_two_recipes_of_the_same_name_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    one, two = write_recipe(tmp_path), write_recipe(tmp_path / "a")
    with pytest.raises(ValueError, match="needs a name of its own"):
        run(tmp_path, one, two)


# --- Tables -------------------------------------------------------------------


@pytest.mark.parametrize("name", catalog.recipes())
def test_quick_budgets_are_options_of_the_recipe(name):
    file = catalog.recipes()[name]
    signature = main_signature(file)
    arguments = ast.parse(f"def main({signature}): pass").body[0].args
    options = {x.arg.replace("_", "-"): x for x in arguments.kwonlyargs}
    for word in shlex.split(read_comparison(file)["quick"]):
        if word.startswith("--"):
            option = word.removeprefix("--")
            assert option in options or options[option.removeprefix("no-")]
