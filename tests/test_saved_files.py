"""Models that an earlier version saved open as before.

`tests/files/` has a small model of each kind as version 0.1.0 saved it on JAX, before
the kit's modules moved into packages, with inputs and the outputs that it gave.
"""

from pathlib import Path

import keras
import numpy as np
import pytest
from exchange import outputs_for

import kit

FILES = sorted((Path(__file__).parent / "files").glob("*.keras"))
AGENTS = {
    "a2c": kit.A2C,
    "a3c": kit.A3C,
    "dqn": kit.DQN,
    "ppo": kit.PPO,
    "q_learning": kit.QLearning,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_file_of_an_earlier_version_gives_the_same_outputs(path):
    model = keras.saving.load_model(path)
    assert type(model) is AGENTS.get(path.stem, type(model))
    arrays = np.load(path.with_suffix(".npz"))
    outputs = outputs_for(model, arrays)
    expected = {name: arrays[name] for name in arrays.files if "_outputs_" in name}
    assert outputs.keys() == expected.keys() and expected
    for name, array in expected.items():
        np.testing.assert_allclose(outputs[name], array, rtol=1e-4, atol=1e-5)


def test_there_is_a_file_of_each_agent():
    assert AGENTS.keys() <= {path.stem for path in FILES}
