"""What `python -m kit list` tells, and the command line around it."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import kit
from kit import __main__
from kit.tools import catalog

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[1]


def test_every_recipe_is_there_with_its_first_line():
    paths = catalog.recipes()
    assert {f"{name}.py" for name in paths} == {
        path.name for path in (ROOT / "recipes").glob("*.py")
    }
    assert list(paths) == sorted(paths)
    says = "Teaches an agent to balance a pole, by deep Q-learning."
    assert catalog.summary(paths["dqn"]) == says
    for path in paths.values():
        assert catalog.summary(path).endswith(".")


def test_public_names_are_where_they_are_said_to_be():
    exports = catalog.exports()
    assert exports["DQN"] == "dqn.DQN" and exports["random"] == "random"
    assert exports["mlp"] == "mlp.mlp"  # a function, not the module
    assert exports["policy_network"] == "rl.policies.policy_network"
    assert exports["policies"] == "rl.policies" and exports["data"] == "data"
    for name, path in exports.items():
        module = catalog.module_of(path)
        found = importlib.import_module(f"kit.{module}")
        assert getattr(kit, name) is (found if module == path else getattr(found, name))


@pytest.mark.parametrize(
    "recipe, modules",
    [
        ("dqn", ["dqn"]),
        ("rnn", ["recurrent"]),
        ("gan", ["gan", "lab.gan_metrics"]),
        ("bert", ["transformer", "pretrained"]),
    ],
)
def test_a_recipe_leads_to_the_files_that_explain_it(recipe, modules):
    assert catalog.algorithms(recipe) == modules


def test_no_recipe_lacks_an_algorithm():
    assert all(catalog.algorithms(recipe) for recipe in catalog.recipes())


def test_list_has_a_line_for_each(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    __main__.main(["list"])
    out = capsys.readouterr().out
    for name, path in catalog.recipes().items():
        line = re.escape(catalog.summary(path))
        assert re.search(rf"^\s*{name}\s+{line}\s.*\.py", out, re.MULTILINE)
    line = "Deep Q-network: Q-learning with a neural network, from replayed experience."
    assert re.search(rf"kit/dqn\.py\s+{line}", out)


def test_a_wrong_command_is_told_the_right_ones(capsys):
    with pytest.raises(SystemExit) as error:
        __main__.main(["lsit"])
    assert error.value.code
    assert re.search(r"list.*copy", capsys.readouterr().err)


def test_bad_input_ends_with_its_message_and_no_traceback(tmp_path):
    with pytest.raises(SystemExit, match=r"^python -m kit copy: There is no recipe"):
        __main__.main(["copy", "dqm", str(tmp_path)])
    assert not list(tmp_path.iterdir())


def test_a_backend_that_is_not_installed_is_named():
    """As where KERAS_BACKEND isn't set, and TensorFlow isn't there."""
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); sys.modules['torch'] = None; "
        "import kit"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, str(ROOT)],
        env={**os.environ, "KERAS_BACKEND": "torch"},
        capture_output=True,
        text=True,
    )
    assert result.returncode
    last = result.stderr.strip().splitlines()[-1]
    assert re.match("ImportError: kit: .*torch, which isn't installed.*KERAS_B", last)
