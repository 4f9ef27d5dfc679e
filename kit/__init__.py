"""Deep learning and reinforcement learning in Keras 3, written once.

Each algorithm is one file, runs compiled on TensorFlow, JAX and PyTorch, and
stands on four functions: `compiled`, `minimize`, `gradient` and `scan`.
"""

from kit import data, gan, gan_metrics, ngram, random, recurrent
from kit.autoencoder import (
    Autoencoder,
    DenoisingAutoencoder,
    VariationalAutoencoder,
    autoencoder,
)
from kit.backend import (
    compile_seconds,
    compiled,
    gradient,
    minimize,
    run_eagerly,
    scan,
)
from kit.callbacks import EpochTimer, Evaluation
from kit.capsnet import (
    CapsNet,
    CapsuleLayer,
    Length,
    Mask,
    PrimaryCaps,
    capsnet,
    margin_loss,
    squash,
)
from kit.cnn import RandomAffine, cnn
from kit.dbn import DBN, RBM
from kit.dqn import DQN, Dueling, q_network
from kit.gan import GAN
from kit.initialization import initialize_weights
from kit.mlp import mlp
from kit.models import CompiledFit, Model, Sequential
from kit.recurrent import gru, lstm, rnn

__version__ = "0.1.0"

__all__ = [
    "Autoencoder",
    "CapsNet",
    "CapsuleLayer",
    "CompiledFit",
    "DBN",
    "DQN",
    "DenoisingAutoencoder",
    "Dueling",
    "EpochTimer",
    "Evaluation",
    "GAN",
    "Length",
    "Mask",
    "Model",
    "PrimaryCaps",
    "RBM",
    "RandomAffine",
    "Sequential",
    "VariationalAutoencoder",
    "autoencoder",
    "capsnet",
    "cnn",
    "compile_seconds",
    "compiled",
    "data",
    "gan",
    "gan_metrics",
    "gradient",
    "gru",
    "initialize_weights",
    "lstm",
    "margin_loss",
    "minimize",
    "mlp",
    "ngram",
    "q_network",
    "random",
    "recurrent",
    "rnn",
    "run_eagerly",
    "scan",
    "squash",
]
