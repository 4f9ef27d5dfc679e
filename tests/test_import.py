"""`import kit` leaves the process as `import keras` left it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

ROOT = Path(__file__).parents[1]
BACKEND = keras.backend.backend()


def run(program, *paths, **environment):
    """Runs a program in a process of its own; returns what it printed as JSON."""
    path = os.pathsep.join(map(str, [*paths, ROOT]))
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


STARTS = {
    "jax": """
import socket, jax, jax._src.xla_bridge as bridge
started = bridge.backends_are_initialized()
jax.config.update("jax_num_cpu_devices", 4)
with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=1, process_id=0)
count = len(jax.devices())
""",
    "tensorflow": """
import tensorflow as tf
from tensorflow.python.eager import context
started = context.context()._initialized
(cpu,) = tf.config.list_physical_devices("CPU")
four = [tf.config.LogicalDeviceConfiguration()] * 4
tf.config.set_logical_device_configuration(cpu, four)
tf.config.threading.set_inter_op_parallelism_threads(2)
count = len(tf.config.list_logical_devices("CPU"))
""",
    # Refused once PyTorch has computed anything in parallel.
    "torch": """
import torch
started = torch.cuda.is_initialized()
torch.set_num_interop_threads(4)
count = torch.get_num_interop_threads()
""",
}


def test_no_backend_is_started():
    program = (
        f"import json, kit\n{STARTS[BACKEND]}\nprint(json.dumps([started, count]))"
    )
    assert run(program) == [False, 4]


SETTINGS = {
    "jax": "[dict(jax.config.values)]",
    "tensorflow": """[
    tf.config.optimizer.get_experimental_options(), tf.config.optimizer.get_jit(),
    {x: id(getattr(tf.random, x)) for x in dir(tf.random)},
    {x: id(getattr(tf.nn.experimental, x)) for x in dir(tf.nn.experimental)},
]""",
    "torch": """[
    torch.get_num_threads(), str(torch.get_default_dtype()), torch.is_grad_enabled(),
    {x: id(y) for x, y in vars(torch.Tensor).items()},
]""",
}

UNCHANGED = f"""
import json, os, sys
import keras, {"tensorflow as tf" if BACKEND == "tensorflow" else BACKEND}

def look():
    names = [x for x in sys.modules if x.startswith("keras.src") or x == "keras"]
    members = {{name: dict(vars(sys.modules[name])) for name in names}}
    members["Layer"] = dict(vars(keras.layers.Layer))
    members["Model"] = dict(vars(keras.Model))
    found = {{
        f"{{name}}.{{key}}": id(x)
        for name in members
        for key, x in members[name].items()
        if not key.startswith("__") and key != "GLOBAL_CUSTOM_OBJECTS"
    }}
    settings = {SETTINGS[BACKEND]}
    return found, repr(settings), dict(os.environ)

before = look()
import kit
after = look()
changed = [x for x in before[0] if before[0][x] != after[0].get(x)]
print(json.dumps([changed, before[1] == after[1], before[2] == after[2]]))
"""


def test_nothing_is_replaced_and_no_setting_changed():
    # But for one of JAX's, which has to stand before its backend starts.
    dispatch = {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "true"}
    assert run(UNCHANGED, **dispatch) == [[], True, True]


def test_the_core_can_be_loaded_again():
    program = """
import importlib, json, kit
add = lambda x: x + 1
before = float(kit.compiled(add)(1.0))
backend = importlib.reload(kit.backend)
print(json.dumps([before, float(backend.compiled(add)(1.0))]))
"""
    assert run(program) == [2.0, 2.0]


@pytest.mark.skipif(BACKEND != "jax", reason="a setting of JAX's")
@pytest.mark.parametrize("environment", [{}, {"JAX_CPU_ENABLE_ASYNC_DISPATCH": "1"}])
def test_dispatch_is_the_users_where_the_user_says_so(environment):
    program = (
        "import json, jax, kit; "
        "print(json.dumps(jax.config.read('jax_cpu_enable_async_dispatch')))"
    )
    assert run(program, **environment) is bool(environment)


@pytest.mark.parametrize("arguments", [["list"], ["--help"], ["copy", "--help"]])
def test_commands_need_no_backend(arguments, tmp_path):
    (tmp_path / "keras.py").write_text("raise SystemExit('Keras was imported')")
    done = subprocess.run(
        [sys.executable, "-m", "kit", *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "dqn" in done.stdout or "usage" in done.stdout
