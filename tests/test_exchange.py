"""What a recipe saves under one backend gives the same outputs under the others.

Needs all three backends, each in processes of its own: `tox -e exchange`.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from exchange import RUNS

BACKENDS = ("tensorflow", "jax", "torch")
SCRIPT = Path(__file__).with_name("exchange.py")

pytestmark = pytest.mark.exchange


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exchange")
    for task in ("save", "load"):
        processes = [
            subprocess.Popen(
                [sys.executable, SCRIPT, task, folder],
                env={**os.environ, "KERAS_BACKEND": backend},
            )
            for backend in BACKENDS
        ]
        assert [process.wait() for process in processes] == [0, 0, 0]
    return folder


@pytest.mark.parametrize("reader", BACKENDS)
@pytest.mark.parametrize("writer", BACKENDS)
@pytest.mark.parametrize("run", RUNS)
def test_models_mean_the_same_everywhere(folder, run, writer, reader):
    paths = sorted((folder / writer / run).glob("*.keras"))
    assert "model" in [path.stem for path in paths]
    for path in paths:
        written = np.load(path.with_suffix(".npz"))
        read = np.load(path.with_name(f"{path.stem}-{reader}.npz"))
        assert {name for name in written.files if "_outputs_" in name} == set(read)
        assert read.files
        for part in read.files:
            expected = written[part]
            assert np.ptp(expected) > 0
            np.testing.assert_allclose(
                read[part], expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max()
            )
