"""Deep learning and reinforcement learning in Keras 3, written once.

Each algorithm is one file, runs compiled on TensorFlow, JAX and PyTorch, and
stands on four functions: `compiled`, `minimize`, `gradient` and `scan`.
"""

from kit import random
from kit.backend import (
    compile_seconds,
    compiled,
    gradient,
    minimize,
    run_eagerly,
    scan,
)
from kit.callbacks import Evaluation
from kit.dqn import DQN, Dueling, q_network
from kit.initialization import initialize_weights

__version__ = "0.1.0"

__all__ = [
    "DQN",
    "Dueling",
    "Evaluation",
    "compile_seconds",
    "compiled",
    "gradient",
    "initialize_weights",
    "minimize",
    "q_network",
    "random",
    "run_eagerly",
    "scan",
]
