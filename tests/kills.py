"""Kills trainings at random moments, and resumes them: nothing may be lost or changed.

    KERAS_BACKEND=jax python tests/kills.py --kills 5

Each training runs once undisturbed. Then it is killed by SIGKILL again and again, each
time started anew, while it writes a backup after every step; at last it runs to its
end. Weights, optimizers, generators and history must be the same to the last bit.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from trainings import KINDS, differing

FILE = Path(__file__).with_name("trainings.py")


def run(*arguments):
    """Starts a training in a process of its own."""
    # Its folder is the first where Python looks for modules; the kit may lie here.
    paths = filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")])
    return subprocess.Popen(
        [sys.executable, str(FILE), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """Waits for the end of a training that must succeed."""
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"a training failed:\n{errors[-3000:]}")


def kill_at_random(process, rng):
    """Kills a training once an epoch is over; returns whether it was still running."""
    for line in process.stdout:
        if line.startswith("epoch"):
            time.sleep(rng.expovariate(2.0))
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


def try_kills(kind, kills, seed=0):
    """Returns the kills that hit, whether the run was lost, and what is different."""
    rng = random.Random(f"{kind}-{seed}")
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        undisturbed, resumed = folder / "undisturbed.npz", folder / "resumed.npz"
        finish(run(kind, "-", undisturbed, 0))
        hits = 0
        for _ in range(kills):
            hits += kill_at_random(run(kind, folder / "backups", resumed, 0), rng)
        try:
            finish(run(kind, folder / "backups", resumed, 0))
        except RuntimeError as error:
            print(error)
            return hits, True, []
        return hits, False, differing(np.load(undisturbed), np.load(resumed))


def main():
    """Prints a row for each training; fails if one is lost or changed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("trainings", nargs="*", default=[*KINDS])
    arguments = parser.parse_args()
    failed = False
    for kind in arguments.trainings:
        hits, lost, different = try_kills(kind, arguments.kills, arguments.seed)
        failed |= lost or bool(different)
        print(
            f"{os.environ.get('KERAS_BACKEND', '')} {kind}: {hits} kills, "
            f"{'lost' if lost else 'resumed'}, different: {different or 'nothing'}",
            flush=True,
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
