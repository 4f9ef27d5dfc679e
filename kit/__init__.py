"""Deep learning and reinforcement learning in Keras 3, written once.

Each algorithm is one file, runs compiled on TensorFlow, JAX and PyTorch, and builds on
five functions: `compiled`, `minimize`, `gradient`, `scan` and `vectorize`.
"""

import sys


def _runs_commands() -> bool:
    """Returns whether Python was started as `python -m kit`.

    Python then imports this package before the command. Commands need no backend, and
    shouldn't wait for one.
    """
    words = sys.orig_argv
    return sys.argv[:1] == ["-m"] and words[words.index("-m") + 1 :][:1] == ["kit"]


if not _runs_commands():
    try:
        import keras  # noqa: F401
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in ("tensorflow", "jax", "torch"):
            raise
        raise ImportError(
            f"kit: Keras is set to use the backend {missing}, which isn't installed. "
            "Install it, or choose an installed backend, for example with the "
            "environment variable KERAS_BACKEND=jax (or torch, or tensorflow)."
        ) from error

    from kit import (
        data,
        decoding,
        gan,
        pointer,
        pretrained,
        random,
        recurrent,
        seq2seq,
        speech,
        super_resolution,
        transformer,
    )
    from kit.a3c import A3C
    from kit.actor_critic import A2C
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
        set_random_seed,
        vectorize,
    )
    from kit.callbacks import BackupAndRestore, EpochTimer, Evaluation
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
    from kit.detection import Detector, detector
    from kit.dqn import DQN, Dueling, q_network
    from kit.engines.allocator import keep_freed_memory
    from kit.gan import GAN
    from kit.initialization import initialize_weights
    from kit.lab import gan_metrics, ngram
    from kit.mlp import mlp
    from kit.models import CompiledFit, Model, Sequential
    from kit.pointer import pointer_generator
    from kit.ppo import PPO
    from kit.pretrained import load_bert
    from kit.q_learning import QLearning
    from kit.recurrent import gru, lstm, rnn
    from kit.rl import policies
    from kit.rl.encoders import encoder
    from kit.rl.policies import policy_network, shared_network, value_network
    from kit.rl.together import fit_together
    from kit.speech import SpeechRecognizer, speech_recognizer
    from kit.super_resolution import SRGAN, super_resolver
    from kit.transformer import bert, encoder_decoder, gpt
    from kit.unet import unet

__version__ = "0.2.0"

__all__ = [
    "A2C",
    "A3C",
    "Autoencoder",
    "BackupAndRestore",
    "CapsNet",
    "CapsuleLayer",
    "CompiledFit",
    "DBN",
    "DQN",
    "DenoisingAutoencoder",
    "Detector",
    "Dueling",
    "EpochTimer",
    "Evaluation",
    "GAN",
    "Length",
    "Mask",
    "Model",
    "PPO",
    "PrimaryCaps",
    "QLearning",
    "RBM",
    "RandomAffine",
    "SRGAN",
    "Sequential",
    "SpeechRecognizer",
    "VariationalAutoencoder",
    "autoencoder",
    "bert",
    "capsnet",
    "cnn",
    "compile_seconds",
    "compiled",
    "data",
    "decoding",
    "detector",
    "encoder",
    "encoder_decoder",
    "fit_together",
    "gan",
    "gan_metrics",
    "gpt",
    "gradient",
    "gru",
    "initialize_weights",
    "keep_freed_memory",
    "load_bert",
    "lstm",
    "margin_loss",
    "minimize",
    "mlp",
    "ngram",
    "policies",
    "policy_network",
    "pointer",
    "pointer_generator",
    "pretrained",
    "q_network",
    "random",
    "recurrent",
    "rnn",
    "run_eagerly",
    "scan",
    "seq2seq",
    "set_random_seed",
    "shared_network",
    "speech",
    "speech_recognizer",
    "squash",
    "super_resolution",
    "super_resolver",
    "transformer",
    "unet",
    "value_network",
    "vectorize",
]
