"""The comparison where it depends on the backend that runs."""

import importlib.metadata
import json
import subprocess
import sys

import numpy as np
import pytest
from test_compare import BACKEND, record, run, write_recipe

from kit.tools import parity
from kit.tools.report import report

REAL = """
from pathlib import Path
from kit.lab.run import Run

def main(*, steps: int = 3, seed: int = 0, output_dir: Path | None = None):
    run = Run("real", seed=seed, output_dir=output_dir, config=locals())
    run.finish(
        metrics={"accuracy": 0.5 + steps / 10}, baselines={"svc_accuracy": 0.5},
        throughput=(10.0, "samples/s"), history=[{"epoch": 1, "loss": 2.0}],
    )

if __name__ == "__main__":
    import tyro
    tyro.cli(main)
"""


@pytest.mark.once
def test_a_recipe_from_the_command_line_to_the_report(tmp_path):
    path = tmp_path / "real.py"
    path.write_text(REAL)
    command = [sys.executable, "-m", "kit", "compare", "--recipes", str(path)]
    command += ["--backends", BACKEND, "--seeds", "1", "--no-parity", "--quick"]
    command += ["--arguments", "real --steps 4", "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"real-{BACKEND}-0: finished" in done.stdout

    folder = tmp_path / "out" / "runs" / f"real-{BACKEND}-0"
    figures = json.loads((folder / "metrics.json").read_text())
    assert figures["backend"] == BACKEND
    assert figures["config"]["steps"] == 4
    assert "samples/s" in (folder / "log.txt").read_text()

    assert report(output_dir=tmp_path / "out") == 0
    (entry,) = json.loads((tmp_path / "out/backends.json").read_text())["recipes"]
    assert entry["backends"][BACKEND]["score"]["mean"] == pytest.approx(0.9)
    assert entry["best_baseline"] == "svc_accuracy"
    assert not entry["quick"]  # It declares no small budget.


def test_versions_are_part_of_what_a_run_is(tmp_path):
    run(tmp_path, write_recipe(tmp_path))
    job = record(tmp_path, f"small-{BACKEND}-0")["job"]
    assert job["versions"]["keras"] == importlib.metadata.version("keras")
    assert BACKEND in job["versions"]


# Made under PyTorch, by the function itself.
LOSSES = [1.636676, 1.77673, 1.646681, 1.849357, 1.751176]


def test_parity_trains_alike_on_every_backend(tmp_path):
    options = ("parity --trainings mlp --steps 5",)
    assert run(tmp_path, write_recipe(tmp_path), parity=True, arguments=options) == 0
    folder = tmp_path / "reports/runs" / f"parity-{BACKEND}-0"
    losses = json.loads((folder / "metrics.json").read_text())["losses"]
    np.testing.assert_allclose(losses["mlp"], LOSSES, rtol=1e-5)


def test_an_agent_trains_alike_on_every_backend():
    losses = [0.4573325, 0.6355738, 0.3598903, 0.2393818, 0.3849568]
    np.testing.assert_allclose(parity.dqn(5, seed=0), losses, rtol=1e-5)


def test_an_agent_in_one_program_trains_alike_on_every_backend():
    losses = [21.463699, 14.680798, 19.317544, 21.569992, 23.492244]
    found = parity.ppo_in_one_program(5, seed=0)
    np.testing.assert_allclose(found, losses, rtol=1e-5)


def test_unknown_trainings_are_named(tmp_path):
    with pytest.raises(ValueError, match="trainings: 'cmm' is none of mlp, cnn"):
        parity.main(trainings=("cmm",), output_dir=tmp_path)
