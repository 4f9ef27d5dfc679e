"""Recipes that are interrupted, and go on with --resume."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from interruptions import check_resumed_run

from kit.lab.run import Run

RECIPES = Path(__file__).parents[1] / "recipes"
FIGURES = {"metrics": {}, "baselines": {}, "throughput": (1.0, "steps/s")}
# One of each kind: an agent, several trainings, a loop around `fit`, several agents at
# once. And the backups after which they are interrupted.
INTERRUPTED = {"q_learning": (2, 3), "dbn": (3,), "lstm": (3,), "fused": (20,)}
TINY = {
    "q_learning": {"total_timesteps": 2000, "eval_episodes": 5},
    "dbn": {
        "units": (16, 8),
        "rbm_epochs": 2,
        "epochs": 2,
        "labels": (50,),
        "repeats": 1,
    },
    "lstm": {
        "units": (16, 16),
        "epochs": 6,
        "batch_size": 4,
        "sequence_length": 16,
        "sample_length": 10,
        "top_k": 5,
    },
    # Several agents at once, which learn in 75 turns.
    "fused": {
        "total_timesteps": 600,
        "num_envs": 2,
        "num_steps": 4,
        "num_epochs": 1,
        "units": (8,),
        "seeds": 2,
        "eval_episodes": 2,
    },
}


# Backups are compared on every backend by test_backups.py.
@pytest.mark.once
@pytest.mark.parametrize("name", list(INTERRUPTED))
def test_a_resumed_recipe_has_the_same_figures(
    name, load_recipe, tmp_path, monkeypatch
):
    options = dict(TINY[name])
    if name == "lstm":
        options["text"] = tmp_path / "text.txt"
        lines = "to be or not to be, that is the question\n" * 60
        options["text"].write_text(lines, encoding="utf-8")
    runs = check_resumed_run(
        load_recipe(name).main,
        tmp_path,
        monkeypatch,
        INTERRUPTED[name],
        verbose=0,
        **options,
    )
    histories = []
    for folder, _ in runs:
        rows = np.genfromtxt(folder / "history.csv", delimiter=",", names=True)
        names = [n for n in rows.dtype.names if "second" not in n]
        histories.append([rows[n].tolist() for n in names])
    np.testing.assert_array_equal(*histories)


def test_what_cannot_be_resumed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no run that was interrupted"):
        Run("dqn", output_dir=tmp_path, resume=True, config={"gamma": 0.9})
    Run("dqn", output_dir=tmp_path, config={"gamma": 0.9, "verbose": 0}).backup()
    with pytest.raises(ValueError, match=r"began with gamma=0\.9; received 0\.8"):
        Run("dqn", output_dir=tmp_path, resume=True, config={"gamma": 0.8})
    run = Run(
        "dqn", output_dir=tmp_path, resume=True, config={"gamma": 0.9, "verbose": 2}
    )
    run.finish(**FIGURES)
    with pytest.raises(ValueError, match="has finished"):
        Run("dqn", output_dir=tmp_path, resume=True, config={"gamma": 0.9})
    (tmp_path / "metrics.json").unlink()
    (tmp_path / "backups").mkdir()
    (tmp_path / "backups" / "config.json").write_text("{")
    with pytest.raises(ValueError, match="holds no run that was interrupted"):
        Run("dqn", output_dir=tmp_path, resume=True, config={"gamma": 0.9})


def test_a_run_that_begins_anew_deletes_what_was_there(tmp_path):
    run = Run("dqn", output_dir=tmp_path)
    run.backup().backups.save({}, {}, {})
    assert (tmp_path / "backups" / "training" / "backup-000001").is_dir()
    run = Run("dqn", output_dir=tmp_path)
    run.begin()
    assert not (tmp_path / "backups").exists()
    assert run.backup("a").backups.folder == tmp_path / "backups" / "a"


@pytest.mark.once
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)]
)
def test_signals_end_a_recipe_with_a_backup_and_a_line(number, code, tmp_path):
    # A process in the background may ignore Ctrl-C.
    script = (
        "import runpy, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "sys.argv = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    options = ["--total-timesteps", "100000000", "--output-dir", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-c", script, RECIPES / "q_learning.py", *options]
        + ["--verbose", "2"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(RECIPES.parent), "COLUMNS": "200"},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Epoch 1"):
            break
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "Traceback" not in errors
    (line,) = [
        x for x in errors.splitlines() if x.startswith("Interrupted. To resume:")
    ]
    backend = keras.backend.backend()
    assert f"KERAS_BACKEND={backend} python {RECIPES}/q_learning.py" in line
    assert line.endswith("--resume")
    assert list((tmp_path / "backups" / "training").glob("backup-*"))
    config = json.loads((tmp_path / "backups" / "config.json").read_text())
    assert config["total_timesteps"] == 100000000
