"""Bad arguments get clear errors, everywhere in the public interface.

A table holds, for each public function and class, one valid call. Each argument is
replaced by values that are usually wrong, one at a time: the error must be a
`TypeError` or `ValueError` that names the argument and what was received, within a
second. What is fine for an argument stands in the table as well, and must work.

`python tests/test_bad_input.py` counts what the calls end in.
"""

import collections
import functools
import importlib
import inspect
import re
import signal
import sys
import time
import traceback
import warnings
from pathlib import Path

import gymnasium
import keras
import numpy as np
import pandas as pd
import pytest
from keras import ops

import kit
import kit.envs
from kit import gan, random, recurrent, seq2seq, transformer
from kit.a3c import A3C
from kit.data import corpus, docstrings
from kit.rl.environments import Environments

SECONDS = 1.0  # Of the processor: an error comes before anything is computed.

# --- What every argument is given ---------------------------------------------

BAD = {
    "None": None,
    "text": "bogus",
    "object": object(),
    "-1": -1,
    "0": 0,
    "1.5": 1.5,
    "nan": float("nan"),
    "inf": float("inf"),
    "-inf": float("-inf"),
    "2**70": 2**70,
    "[]": [],
    "[-1]": [-1],
    "[text]": ["bogus"],
    "rank 5": np.ones((2, 2, 2, 2, 2), "float32"),
    "nan rank 5": np.full((2, 2, 2, 2, 2), np.nan, "float32"),
}
# An argument that is an array is given these, too.
BAD_ARRAYS = {
    "one axis more": lambda x: x[..., None],
    "empty": lambda x: x[:0],
    "nan inside": lambda x: np.where(
        np.arange(x.size).reshape(x.shape) == 0, np.nan, x
    ),
    "strings": lambda x: x.astype(str),
}
ANYTHING = " ".join(label.replace(" ", "_") for label in [*BAD, *BAD_ARRAYS])
ARRAYS = "one_axis_more empty nan_inside"

# What is fine for an argument of this name, unless a case says otherwise.
FINE = {
    **dict.fromkeys(("activation", "output_activation"), "None"),
    **dict.fromkeys(("dropout", "gamma", "gae_lambda", "seed"), "0"),
    **dict.fromkeys(("ent_coef", "vf_coef"), "0 1.5"),
    **dict.fromkeys(("input_shape", "obs_shape", "units"), "[]"),
    **dict.fromkeys(("shape",), "[]"),
    **dict.fromkeys(("epsilon_start", "epsilon_end"), "0"),
    **dict.fromkeys(("min_share", "confidence", "m_plus", "m_minus"), "0"),
    **dict.fromkeys(("noise_stddev", "beta", "lambda_"), "0 1.5"),
    "epsilon": "1.5",
    **dict.fromkeys(("stddev", "reconstruction_weight", "gradient_penalty"), "0 1.5"),
    **dict.fromkeys(("temperature",), "0 1.5"),
    **dict.fromkeys(("length_penalty", "gain", "initial_log_std"), "-1 0 1.5"),
    **dict.fromkeys(("action_start", "state_start"), "-1 0"),
    **dict.fromkeys(("callbacks", "steps_per_epoch"), "None []"),
}


class Case:
    """A valid call.

    Args:
        arguments: Returns the arguments of the call.
        runs: Whether the call is made as it is, and with what is fine: not where that
            would compile a program.
        fine: Names in `BAD` of what is fine, by argument.
    """

    def __init__(self, arguments, runs=True, fine=None):
        self.arguments = arguments
        self.runs = runs
        self.fine = fine or {}

    def names_fine(self, argument):
        return self.fine.get(argument, FINE.get(argument, "")).split()


def case(runs=True, fine=None, **arguments):
    return Case(lambda: {k: _made(v) for k, v in arguments.items()}, runs, fine)


class Later:
    """An argument that is made when it is needed."""

    def __init__(self, make):
        self.make = make


def _made(value):
    return value.make() if isinstance(value, Later) else value


def later(make):
    return Later(functools.cache(make))


# --- Parts of valid calls -----------------------------------------------------

# What is fine for the functions that build networks for observations.
NETWORK = {"obs_shape": "", "units": "None []", "network": "None"}

DISCRETE = gymnasium.spaces.Discrete(2)
PIXELS = gymnasium.spaces.Box(0, 255, (10, 10, 3), np.uint8)
SPEECH = later(lambda: kit.speech_recognizer("gru", (2,), "ab"))
NOTES = np.zeros((3, 4), "float32")
ENV = later(lambda: gymnasium.make("CartPole-v1"))
ACTOR = later(lambda: kit.policy_network((4,), DISCRETE, (4,)))
CRITIC = later(lambda: kit.value_network((4,), (4,)))
Q_NETWORK = later(lambda: kit.q_network((4,), 2, (4,)))
AGENT = later(lambda: kit.PPO(ACTOR.make(), CRITIC.make()))
LANGUAGE_MODEL = later(
    lambda: kit.gru((None,), 5, (4,), return_sequences=True, vocabulary_size=5)
)
RECURRENT = later(lambda: kit.gru((None, 2), 3, (4,)))
GPT = later(lambda: kit.gpt(5, 8, 1, 1, 4))
BERT = later(lambda: kit.bert(5, 8, 1, 1, 4))
TRANSLATOR = later(lambda: kit.encoder_decoder(5, 5, 8, 1, 1, 4))
POINTER = later(lambda: kit.pointer_generator(5, 8, 1, 1, 4))
GRU_TRANSLATOR = later(lambda: seq2seq.gru_encoder_decoder(5, 5, (4,)))
ENCODER = later(lambda: kit.autoencoder((6,), 2, (4,)).encoder)
DECODER = later(lambda: kit.autoencoder((6,), 2, (4,)).decoder)
WIDE_ENCODER = later(
    lambda: importlib.import_module("kit.autoencoder").encoder(
        (6,), 2, (4,), variational=True
    )
)
GENERATOR = later(lambda: gan.generator((6,), 2, (4,)))
DISCRIMINATOR = later(lambda: gan.discriminator((6,), (4,)))
CAPSNET = later(lambda: kit.capsnet((21, 21, 1), 2))
DETECTOR = later(lambda: kit.detector((8, 8, 1), 2, (2, 2)))
OPTIMIZER = later(lambda: keras.optimizers.SGD())
VARIABLES = later(lambda: [keras.Variable([1.0])])
LAYER = later(lambda: keras.layers.Dense(2))
CHARACTERS = later(lambda: seq2seq.vocabulary(["hello", "hole"]))
KEY = later(lambda: random.key(0))
B = np.linspace(0.1, 0.9, 4).astype("float32")
TN = np.ones((3, 2), "float32")
NO = np.zeros((3, 2), bool)
CODES = np.ones((3, 2), "float32")
TOKENS = np.array([0, 1, 0, 1, 2, 0, 1])
BOXES = np.tile(np.array([1, 1, 9, 9], "float32"), (2, 3, 1))
MAPS = np.full((2, 4, 4, 2), 0.5, "float32")
IMAGES = np.ones((4, 3), "float32")
PATCHES = np.ones((2, 8, 8, 3), "float32")
ROLLOUT = {
    "obs": np.ones((3, 2, 4), "float32"),
    "action": NO.astype("int32"),
    "reward": TN,
    "terminated": NO,
    "ended": NO,
    "valid": ~NO,
}
OPTIONS = {
    "gamma": 0.9,
    "gae_lambda": 0.9,
    "num_steps": 4,
    "normalize_advantages": True,
    "ent_coef": 0.0,
    "vf_coef": 0.5,
    "seed": 0,
}
RNN = {
    "input_shape": (3, 2),
    "num_outputs": 2,
    "units": (3,),
    "output_activation": "softmax",
    "return_sequences": False,
    "vocabulary_size": None,
    "mask_value": 0.0,
    "dropout": 0.1,
    "preprocessing": (),
}
RNN_FINE = {
    "input_shape": "",
    "units": "",
    "vocabulary_size": "None",
    "mask_value": "None -1 0 1.5",
    "preprocessing": "[]",
}
TRANSFORMER = {"num_layers": 1, "num_heads": 1, "hidden_dim": 4, "intermediate_dim": 4}
TRANSFORMER |= {"dropout": 0.1, "activation": "relu", "epsilon": 1e-5}
TRANSFORMER_FINE = {"intermediate_dim": "None"}


TRANSLATE = {"source": np.array([[1, 2]]), "start_token": 1, "end_token": 2}
TRANSLATE |= {"length": 3, "beam_width": 1, "length_penalty": 0.5}


def _maths(*names, shape=B, **others):
    """A case of a function of arrays of one shape, whose values may be any."""
    fine = dict.fromkeys(names, "nan_inside")
    return case(fine=fine, **dict.fromkeys(names, shape), **others)


PATH = later(lambda: "no/such/folder")
LM = "kit.lab.language_model."

PATCH_CLASSIFIER = later(lambda: kit.super_resolution.patch_classifier(2, (2,)))
PATCH_FEATURES = later(
    lambda: kit.super_resolution.feature_maps(PATCH_CLASSIFIER.make())
)

CASES = {
    # --- Feed-forward networks
    "kit.mlp.mlp": case(
        fine={"members": "None"},
        input_shape=(3,),
        num_outputs=2,
        units=(4,),
        activation="relu",
        output_activation="softmax",
        dropout=0.1,
        members=None,
    ),
    "kit.cnn.cnn": case(
        fine={"input_shape": "", "filters": "[]"},
        input_shape=(8, 8, 1),
        num_classes=2,
        filters=(2, 2),
        kernel_size=3,
        pool_size=2,
        units=(4,),
        dropout=0.1,
        padding="valid",
        batch_normalization=False,
    ),
    "kit.cnn.RandomAffine": case(
        fine=dict.fromkeys(
            ("rotation_factor", "translation_factor", "shear_factor", "elastic_stddev"),
            "0 1.5",
        )
        | {"zoom_factor": "0", "seed": "None 0"},
        rotation_factor=0.1,
        translation_factor=0.1,
        zoom_factor=0.1,
        shear_factor=0.1,
        elastic_stddev=0.1,
        fill_mode="constant",
        seed=0,
    ),
    # --- Recurrent networks
    "kit.recurrent.rnn": case(fine=RNN_FINE, **RNN),
    "kit.recurrent.lstm": case(fine=RNN_FINE, **RNN),
    "kit.recurrent.gru": case(fine=RNN_FINE, **RNN),
    "kit.recurrent.initial_state": case(model=LANGUAGE_MODEL, batch_size=2),
    "kit.recurrent.step": case(
        fine={"inputs": "nan_inside"},
        model=RECURRENT,
        inputs=np.ones((1, 2), "float32"),
        state=later(lambda: recurrent.initial_state(RECURRENT.make(), 1)),
    ),
    "kit.recurrent.generate": case(
        runs=False,
        fine={"top_k": "None"},
        model=LANGUAGE_MODEL,
        prompt=np.array([[1, 2]]),
        length=2,
        temperature=1.0,
        top_k=2,
        seed=0,
    ),
    "kit.seq2seq.vocabulary": case(fine={"texts": "[text]"}, texts=["a", "b"]),
    "kit.seq2seq.encode": case(
        fine={"length": "None"},
        texts=["hello"],
        characters=CHARACTERS,
        length=6,
    ),
    "kit.seq2seq.decode": case(tokens=np.array([[3, 4]]), characters=CHARACTERS),
    "kit.seq2seq.subwords": case(
        fine={"texts": "[text]", "special": "[] [text]"},
        texts=["a", "b"],
        size=300,
        special=("<0>",),
    ),
    "kit.seq2seq.SmoothedCrossentropy": case(
        fine={
            "label_smoothing": "0",
            "name": "None text",
            "reduction": "None",
            "dtype": "None",
        },
        label_smoothing=0.1,
        name="smoothed",
        reduction="sum",
        dtype="float32",
    ),
    "kit.seq2seq.ExactMatch": case(
        fine={"name": "None text", "dtype": "None"}, name="match", dtype="float32"
    ),
    "kit.seq2seq.gru_encoder_decoder": case(
        fine={"units": ""},
        source_vocabulary_size=5,
        target_vocabulary_size=5,
        units=(3,),
        attention=False,
        dropout=0.1,
    ),
    "kit.seq2seq.units_for": case(
        num_parameters=10_000,
        source_vocabulary_size=5,
        target_vocabulary_size=5,
        num_layers=1,
        attention=False,
    ),
    "kit.seq2seq.translate": case(
        runs=False, fine={"start_token": "0"}, model=GRU_TRANSLATOR, **TRANSLATE
    ),
    # --- Transformers
    "kit.transformer.Attention": case(
        fine={"rotary_length": "None"},
        num_heads=2,
        causal=True,
        rotary_length=8,
        use_bias=True,
    ),
    "kit.transformer.rotate": case(
        fine={"x": "nan_inside", "positions": "nan_inside"},
        x=np.ones((1, 3, 2, 4), "float32"),
        positions=np.arange(3),
    ),
    "kit.transformer.PositionEmbedding": case(
        fine={
            "embeddings_initializer": "None",
            "random_length": "None",
            "seed": "None 0",
        },
        max_length=4,
        kind="learned",
        embeddings_initializer="zeros",
        random_length=9,
        seed=0,
    ),
    "kit.transformer.normal": case(stddev=0.1),
    "kit.transformer.gpt": case(
        fine=TRANSFORMER_FINE,
        vocabulary_size=5,
        max_length=4,
        positions="learned",
        mask_zero=False,
        **TRANSFORMER,
    ),
    "kit.transformer.bert": case(
        fine=TRANSFORMER_FINE | {"padding_token": "0"},
        vocabulary_size=5,
        max_length=4,
        num_segments=2,
        padding_token=0,
        **TRANSFORMER,
    ),
    "kit.transformer.encoder_decoder": case(
        fine=TRANSFORMER_FINE,
        source_vocabulary_size=5,
        target_vocabulary_size=5,
        max_length=4,
        positions="learned",
        **TRANSFORMER,
    ),
    "kit.transformer.start": case(
        fine={"context": "None"}, model=GPT, batch_size=1, length=4, context=None
    ),
    "kit.transformer.step": case(
        runs=False,
        fine={"position": "0"},
        model=GPT,
        tokens=np.array([[1, 2]]),
        cache=later(lambda: transformer.start(GPT.make(), 1, 4)),
        position=0,
    ),
    "kit.transformer.generate": case(
        runs=False,
        fine={"top_k": "None"},
        model=GPT,
        prompt=np.array([[1, 2]]),
        length=2,
        temperature=1.0,
        top_k=2,
        seed=0,
        use_cache=True,
    ),
    "kit.transformer.translate": case(
        runs=False, fine={"start_token": "0"}, model=TRANSLATOR, **TRANSLATE
    ),
    # --- The pointer-generator
    "kit.pointer.mix": case(
        fine=dict.fromkeys(("vocabulary_logits", "attention", "gate"), "nan_inside"),
        vocabulary_logits=np.zeros((2, 3, 5), "float32"),
        attention=np.full((2, 3, 4), 0.25, "float32"),
        source=np.ones((2, 4), "int32"),
        gate=np.zeros((2, 3), "float32"),
    ),
    "kit.pointer.Pointer": case(),
    "kit.pointer.pointer_generator": case(
        fine=TRANSFORMER_FINE,
        vocabulary_size=5,
        max_length=4,
        copy=True,
        **TRANSFORMER,
    ),
    "kit.pointer.summarize": case(
        runs=False, fine={"start_token": "0"}, model=POINTER, **TRANSLATE
    ),
    "kit.pointer.copy_shares": case(
        runs=False,
        model=POINTER,
        source=np.array([[1, 2]]),
        target=np.array([[1, 2]]),
    ),
    "kit.pretrained.gelu_tanh": case(
        fine={"x": f"1.5 nan inf -inf [] rank_5 nan_rank_5 {ARRAYS}"}, x=B
    ),
    "kit.pretrained.packaged_model": case(runs=False),
    "kit.pretrained.load_bert": case(
        runs=False, fine={"dropout": "None 0"}, path="no/such/folder", dropout=0.1
    ),
    "kit.pretrained.load_tokenizer": case(
        runs=False, fine={"max_length": "None"}, path="no/such/folder", max_length=8
    ),
    "kit.pretrained.sentence_encoder": case(
        fine={"padding_token": "0"}, bert=BERT, normalize=True, padding_token=0
    ),
    # --- Writing
    "kit.decoding.sample": case(
        runs=False,
        fine={"state": ANYTHING, "start": "0", "top_k": "None", "key": "None"}
        | {"logits": "nan_inside"},
        step=lambda token, state, position: (np.ones((2, 5)), state),
        state=np.zeros((2, 1)),
        logits=np.ones((2, 5), "float32"),
        length=2,
        key=KEY,
        temperature=1.0,
        top_k=2,
        start=0,
    ),
    "kit.decoding.beam_search": case(
        runs=False,
        fine={"state": ANYTHING, "start_token": "0", "end_token": "0"},
        step=lambda token, state, position: (np.ones((2, 5)), state),
        state=np.zeros((2, 1)),
        batch_size=2,
        length=2,
        start_token=1,
        end_token=2,
        beam_width=1,
        length_penalty=0.5,
    ),
    "kit.decoding.kept_program": case(model=GPT, make=lambda model: len),
    "kit.decoding.check_generation": case(
        fine={"top_k": "None"},
        prompt=np.array([[1, 2]]),
        vocabulary_size=5,
        length=2,
        temperature=1.0,
        top_k=2,
    ),
    "kit.decoding.check_writing": case(
        fine={"longest": "None"},
        arguments={"length": 3},
        vocabulary_size=5,
        longest=8,
    ),
    "kit.decoding.without_padding": case(
        fine={"logits": "[-1] rank_5 nan_rank_5 one_axis_more nan_inside"},
        logits=np.ones((2, 5), "float32"),
    ),
    "kit.decoding.check_tokens": case(
        fine={"name": "text"},
        name="tokens",
        tokens=np.array([[1, 2]]),
        vocabulary_size=5,
    ),
    "kit.decoding.check_source": case(model=TRANSLATOR, source=np.array([[1, 2]])),
    # --- Autoencoders, GANs, capsules, RBMs
    "kit.autoencoder.encoder": case(
        input_shape=(6,), latent_dim=2, units=(4,), activation="relu", variational=False
    ),
    "kit.autoencoder.decoder": case(
        fine={"output_shape": "[]"},
        output_shape=(6,),
        latent_dim=2,
        units=(4,),
        activation="relu",
        output_activation="sigmoid",
    ),
    "kit.autoencoder.autoencoder": case(
        input_shape=(6,),
        latent_dim=2,
        units=(4,),
        activation="relu",
        output_activation="sigmoid",
    ),
    "kit.autoencoder.Autoencoder": case(encoder=ENCODER, decoder=DECODER),
    "kit.autoencoder.DenoisingAutoencoder": case(
        fine={"noise_stddev": "0 1.5"},
        encoder=ENCODER,
        decoder=DECODER,
        noise_stddev=0.1,
        seed=0,
    ),
    "kit.autoencoder.VariationalAutoencoder": case(
        fine={"beta": "0 1.5"},
        encoder=WIDE_ENCODER,
        decoder=DECODER,
        likelihood="bernoulli",
        beta=1.0,
        seed=0,
    ),
    "kit.autoencoder.kl_divergence": _maths("z_mean", "z_log_var", shape=CODES),
    "kit.autoencoder.draw_code": case(
        fine=dict.fromkeys(("z_mean", "z_log_var"), "nan_inside"),
        key=KEY,
        z_mean=CODES,
        z_log_var=CODES,
    ),
    "kit.autoencoder.bernoulli_loss": case(x=CODES, x_pred=CODES),
    "kit.autoencoder.gaussian_loss": case(
        fine=dict.fromkeys(("x", "x_pred"), "nan_inside"), x=CODES, x_pred=CODES
    ),
    "kit.gan.generator": case(
        fine={"num_classes": "None", "output_shape": "[]"},
        output_shape=(6,),
        latent_dim=2,
        units=(4,),
        num_classes=2,
        output_activation="tanh",
    ),
    "kit.gan.discriminator": case(
        fine={"num_classes": "None"},
        input_shape=(6,),
        units=(4,),
        num_classes=2,
        dropout=0.1,
    ),
    "kit.gan.conv_generator": case(
        fine={"num_classes": "None"},
        output_shape=(8, 8, 1),
        latent_dim=2,
        filters=(2, 2),
        num_classes=2,
        output_activation="tanh",
    ),
    "kit.gan.conv_discriminator": case(
        fine={"num_classes": "None", "input_shape": ""},
        input_shape=(8, 8, 1),
        filters=(2, 2),
        num_classes=2,
        dropout=0.1,
    ),
    "kit.gan.GAN": case(
        fine={"num_classes": "None"},
        generator=GENERATOR,
        discriminator=DISCRIMINATOR,
        num_classes=None,
        loss="wasserstein",
        gradient_penalty=10.0,
        discriminator_steps=1,
        seed=0,
    ),
    "kit.capsnet.capsnet": case(
        fine={"input_shape": "", "share_weights": "None", "preprocessing": "None"},
        input_shape=(21, 21, 1),
        num_classes=2,
        architecture="small",
        routings=1,
        capsule_dim=4,
        share_weights=True,
        reconstruction_weight=0.1,
        preprocessing=None,
    ),
    "kit.capsnet.CapsNet": case(
        fine={"preprocessing": "None"},
        capsules=later(lambda: CAPSNET.make().capsules),
        decoder=later(lambda: CAPSNET.make().decoder),
        reconstruction_weight=0.1,
        preprocessing=None,
    ),
    "kit.capsnet.PrimaryCaps": case(
        channels=2,
        capsule_dim=2,
        kernel_size=3,
        strides=1,
        padding="valid",
        kernel_initializer="zeros",
        fine={"kernel_initializer": "None"},
    ),
    "kit.capsnet.CapsuleLayer": case(
        fine={"kinds": "None", "kernel_initializer": "None"},
        num_capsules=2,
        capsule_dim=2,
        routings=1,
        kinds=2,
        kernel_initializer="zeros",
    ),
    "kit.capsnet.Length": case(),
    "kit.capsnet.Mask": case(),
    "kit.capsnet.squash": case(
        fine={"s": "rank_5 nan_rank_5 one_axis_more nan_inside", "axis": "-1 0"},
        s=CODES,
        axis=-1,
    ),
    "kit.capsnet.margin_loss": case(
        fine={"y_true": "nan_inside one_axis_more", "y_pred": "nan_inside"},
        y_true=np.array([0, 1, 0]),
        y_pred=np.ones((3, 2), "float32"),
        m_plus=0.9,
        m_minus=0.1,
        lambda_=0.5,
    ),
    "kit.detection.detector": case(
        fine={"input_shape": "", "preprocessing": "None"},
        input_shape=(8, 8, 1),
        num_classes=2,
        filters=(2, 2),
        stride=4,
        min_overlap=0.7,
        preprocessing=None,
    ),
    "kit.detection.Detector": case(
        fine=dict.fromkeys(("size_weight", "offset_weight"), "0 1.5"),
        network=later(lambda: DETECTOR.make().network),
        size_weight=0.1,
        offset_weight=1.0,
        min_overlap=0.7,
    ),
    "kit.detection.gaussian_radius": case(
        fine=dict.fromkeys(("height", "width"), "0 1.5 rank_5 one_axis_more"),
        height=np.ones((2, 1), "float32"),
        width=np.ones((2, 1), "float32"),
        min_overlap=0.7,
    ),
    "kit.detection.draw_heatmap": case(
        fine={"boxes": "nan_inside"},
        boxes=BOXES,
        labels=np.zeros((2, 3), "int32"),
        map_shape=(4, 4),
        num_classes=2,
        stride=4,
        min_overlap=0.7,
    ),
    "kit.detection.focal_loss": case(
        fine={
            **dict.fromkeys(("y_true", "logits"), "nan_inside"),
            **dict.fromkeys(("alpha", "beta"), "0 1.5"),
        },
        y_true=MAPS,
        logits=MAPS,
        alpha=2.0,
        beta=4.0,
    ),
    "kit.detection.decode": case(
        fine=dict.fromkeys(("heatmap", "size", "offset"), "nan_inside"),
        heatmap=MAPS,
        size=MAPS,
        offset=MAPS,
        stride=4,
        max_detections=3,
    ),
    "kit.dbn.RBM": case(
        fine=dict.fromkeys(("weight_decay", "sparsity_cost"), "0 1.5")
        | {"kernel_initializer": "None", "seed": "None 0", "momentum": "0"}
        | {"learning_rate": "1.5", "units": ""},
        units=3,
        visible="bernoulli",
        k=1,
        persistent=False,
        chains=2,
        learning_rate=0.1,
        momentum=0.5,
        weight_decay=0.1,
        sparsity_target=0.1,
        sparsity_cost=0.1,
        kernel_initializer="zeros",
        visible_bias_initializer="zeros",
        hidden_bias_initializer="zeros",
        seed=0,
    ),
    "kit.dbn.DBN": case(rbms=later(lambda: [kit.RBM(2)])),
    "kit.dbn.check_visible": case(
        fine={"name": "text"}, values=CODES, visible="bernoulli", name="values"
    ),
    # --- The core
    "kit.backend.compiled": case(
        fine={"fn": "None"}, fn=len, eager=True, inductor=False
    ),
    "kit.backend.minimize": case(
        runs=False,
        loss_fn=later(lambda: lambda: ops.sum(VARIABLES.make()[0])),
        variables=VARIABLES,
        optimizer=OPTIMIZER,
    ),
    "kit.backend.loss_gradients": case(
        runs=False,
        loss_fn=later(lambda: lambda: ops.sum(VARIABLES.make()[0])),
        variables=VARIABLES,
    ),
    "kit.backend.apply_gradients": case(
        gradients=[np.ones(1, "float32")],
        variables=VARIABLES,
        optimizer=OPTIMIZER,
    ),
    "kit.backend.gradient": case(
        fine={"inputs": f"1.5 nan inf -inf [] rank_5 nan_rank_5 {ARRAYS}"},
        fn=later(lambda: _sum_of_squares),
        inputs=CODES,
    ),
    "kit.backend.scan": case(
        fine={
            "init": f"None 1.5 0 -1 nan inf -inf [] [-1] rank_5 nan_rank_5 {ARRAYS}",
            "xs": "None [] nan_inside one_axis_more",
            "length": "None",
        },
        fn=later(lambda: lambda carry, x: (carry, x)),
        init=np.ones(1, "float32"),
        xs=CODES,
        length=3,
        reverse=False,
    ),
    "kit.backend.vectorize": case(
        fn=len, variables=later(lambda: [[keras.Variable(0.0)] for _ in range(2)])
    ),
    "kit.backend.run_eagerly": case(eager=False),
    "kit.backend.set_random_seed": case(seed=0),
    "kit.backend.import_no_other_framework": case(runs=False),
    "kit.backend.compile_seconds": case(),
    "kit.backend.is_tracing": case(),
    "kit.backend.why_not_compiled": case(optimizer=OPTIMIZER),
    "kit.backend.run_well_in_loops": case(
        fine={"layers": "[] text [-1] [text] rank_5 nan_rank_5"},
        layers=later(lambda: [LAYER.make()]),
    ),
    "kit.backend.release_programs": case(
        runs=False, fine={"owner": ANYTHING}, owner=None
    ),
    # --- Random numbers
    "kit.random.key": case(seed=0),
    "kit.random.split": case(key=KEY, num=2),
    "kit.random.split_seed": case(seed=0, num=2),
    "kit.random.Generator": case(fine={"name": "None text"}, seed=0, name="draws"),
    "kit.random.bits": case(key=KEY, shape=(2,)),
    "kit.random.uniform": case(
        fine={"minval": "-1 0 [-1]", "maxval": "0 1.5", "dtype": "None"},
        key=KEY,
        shape=(2,),
        minval=0.0,
        maxval=1.0,
        dtype="float32",
    ),
    "kit.random.normal": case(
        fine={"mean": "-1 0 1.5 [-1]", "dtype": "None"},
        key=KEY,
        shape=(2,),
        mean=0.0,
        stddev=1.0,
        dtype="float32",
    ),
    "kit.random.truncated_normal": case(
        fine={"mean": "-1 0 1.5 [-1]", "dtype": "None"},
        key=KEY,
        shape=(2,),
        mean=0.0,
        stddev=1.0,
        dtype="float32",
    ),
    "kit.random.bernoulli": case(fine={"p": "0"}, key=KEY, shape=(2,), p=0.5),
    "kit.random.randint": case(
        fine={"minval": "-1 0 [-1]"}, key=KEY, shape=(2,), minval=0, maxval=5
    ),
    "kit.random.categorical": case(
        fine={
            "logits": "[-1] rank_5 nan_rank_5 one_axis_more nan_inside",
            "axis": "-1 0",
        },
        key=KEY,
        logits=CODES,
        axis=-1,
    ),
    "kit.random.permutation": case(fine={"num": "None"}, key=KEY, n=3, num=2),
    "kit.random.orthogonal": case(fine={"shape": ""}, key=KEY, shape=(3, 2), gain=1.0),
    "kit.initialization.Orthogonal": case(
        fine={"seed": "None 0 -1 2**70"}, gain=1.0, seed=0
    ),
    "kit.initialization.at_least_float32": case(
        fine={"dtype": "None"}, dtype="float16"
    ),
    "kit.initialization.initialize_weights": case(model=Q_NETWORK, seed=0),
    # --- Agents
    "kit.a3c.A3C": case(fine={"critic": ""}, actor=ACTOR, critic=CRITIC, **OPTIONS),
    "kit.a3c.Worker": case(
        runs=False,
        fine={"number": "0", "weights": "[]"},
        kind=A3C,
        config=later(lambda: A3C(ACTOR.make(), CRITIC.make()).get_config()),
        weights=later(lambda: A3C(ACTOR.make(), CRITIC.make()).get_weights()),
        make_env=lambda: gymnasium.make("CartPole-v1"),
        seed=0,
        number=0,
    ),
    "kit.actor_critic.policy_gradient_loss": _maths("log_prob", "advantage"),
    "kit.actor_critic.value_loss": _maths("value", "returns"),
    "kit.actor_critic.A2C": case(
        actor=ACTOR,
        critic=CRITIC,
        normalize_observations=False,
        normalize_rewards=False,
        **OPTIONS,
    ),
    "kit.ppo.clipped_policy_loss": case(
        fine=dict.fromkeys(("log_prob", "advantage"), "nan_inside")
        | {"clip_coef": "1.5 inf", "old_log_prob": "-1 0 1.5 nan inf -inf nan_inside"},
        log_prob=B,
        old_log_prob=B,
        advantage=B,
        clip_coef=0.2,
    ),
    "kit.ppo.clipped_value_loss": case(
        fine=dict.fromkeys(("value", "old_value", "returns"), "nan_inside")
        | {"clip_coef": "1.5 inf"},
        value=B,
        old_value=B,
        returns=B,
        clip_coef=0.2,
    ),
    "kit.ppo.PPO": case(
        fine={"clip_coef": "1.5", "target_kl": "None 0 1.5"},
        actor=ACTOR,
        critic=CRITIC,
        num_minibatches=2,
        num_epochs=2,
        clip_coef=0.2,
        clip_value_loss=True,
        target_kl=0.1,
        normalize_observations=False,
        normalize_rewards=False,
        **OPTIONS,
    ),
    "kit.rl.on_policy.OnPolicy": case(
        actor=ACTOR,
        critic=CRITIC,
        normalize_observations=False,
        normalize_rewards=False,
        **OPTIONS,
    ),
    "kit.rl.on_policy.flat_values": case(
        fine={"outputs": "nan_inside"}, outputs=np.ones((3, 1), "float32")
    ),
    "kit.dqn.Dueling": case(),
    "kit.dqn.q_network": case(
        fine={**NETWORK, "num_quantiles": "None"},
        obs_shape=(4,),
        num_actions=2,
        units=(4,),
        dueling=False,
        num_quantiles=3,
        noisy=False,
        network=None,
    ),
    "kit.dqn.huber": _maths("td_target", "q"),
    "kit.dqn.DQN": case(
        fine=dict.fromkeys(
            ("learning_starts", "priority_exponent", "priority_correction"), "0"
        )
        | {"frame_stack": "None"},
        q_network=Q_NETWORK,
        gamma=0.9,
        buffer_size=10,
        batch_size=2,
        learning_starts=2,
        train_freq=1,
        gradient_steps=1,
        target_update_freq=2,
        tau=1.0,
        epsilon_start=1.0,
        epsilon_end=0.1,
        exploration_fraction=0.5,
        double=False,
        n_step=1,
        prioritized=False,
        priority_exponent=0.6,
        priority_correction=0.4,
        frame_stack=True,
        action_start=0,
        seed=0,
    ),
    "kit.q_learning.QLearning": case(
        fine={"horizon": "None 0 1.5", "initial_value": "-1 0 1.5"},
        num_states=3,
        num_actions=2,
        algorithm="sarsa",
        gamma=0.9,
        horizon=1.0,
        initial_value=0.0,
        train_freq=1,
        epsilon_start=1.0,
        epsilon_end=0.1,
        exploration_fraction=0.5,
        state_start=0,
        action_start=0,
        seed=0,
    ),
    "kit.callbacks.Evaluation": case(
        fine={"seed": "None 0"}, env=ENV, episodes=2, seed=0
    ),
    "kit.callbacks.EpochTimer": case(),
    "kit.callbacks.BackupAndRestore": case(
        fine={"backup_dir": "text", "interval": "0 1.5"},
        backup_dir="backups",
        interval=1.0,
        restore=True,
        delete_checkpoint=True,
    ),
    "kit.rl.agent.Agent": case(seed=0),
    "kit.rl.environments.Environments": case(env=ENV),
    "kit.rl.environments.play_episodes": case(
        fine={"seed": "None 0"},
        env=ENV,
        policy=lambda obs: np.zeros(len(obs), int),
        episodes=1,
        seed=0,
    ),
    "kit.rl.atari.is_atari": case(fine={"env": "text"}, env="ALE/Pong-v5"),
    "kit.rl.atari.make_atari": case(  # runs where ale-py is: tests/test_atari.py
        runs=False,
        fine={"env": "text", "repeat_action_probability": "0", "render_mode": "None"},
        env="ALE/Pong-v5",
        training=True,
        repeat_action_probability=0.25,
        render_mode="rgb_array",
    ),
    "kit.rl.environments.share_environment": case(
        fine={"first": ANYTHING, "second": ANYTHING}, first=ENV, second=None
    ),
    "kit.rl.environments.random_policy": case(fine={"seed": "None 0"}, env=ENV, seed=0),
    "kit.rl.exploration.linear_epsilon": case(
        fine={"progress": "0 1.5 rank_5 one_axis_more", "start": "0", "end": "0"},
        progress=B,
        start=1.0,
        end=0.1,
        fraction=0.5,
    ),
    "kit.rl.exploration.UniformRows": case(
        generator=later(lambda: random.Generator(0)), shape=(2,)
    ),
    "kit.rl.functional.FunctionalEnv": case(num_envs=2),
    "kit.rl.together.fit_together": case(
        runs=False,
        fine={"total_timesteps": "1.5", "steps_per_epoch": "None 1.5", "verbose": "0"},
        agents=later(lambda: [AGENT.make()]),
        env=later(lambda: kit.envs.CartPole()),
        total_timesteps=64,
        steps_per_epoch=64,
        callbacks=None,
        verbose=0,
        check_finite=True,
    ),
    "kit.rl.vector_env.as_vector_env": case(env=later(lambda: kit.envs.CartPole())),
    "kit.rl.normalization.RunningNormalization": case(
        fine={"clip": "1.5 inf 2**70", "dtype": "None"},
        center=True,
        clip=10.0,
        epsilon=1e-8,
        dtype="float32",
    ),
    "kit.rl.policies.Distribution": case(fine={"dtype": "None"}, dtype="float32"),
    "kit.rl.policies.Categorical": case(fine={"start": "-1 0"}, num_actions=2, start=0),
    "kit.rl.policies.MultiCategorical": case(
        fine={"start": "None"}, nvec=(2, 3), start=(0, 1)
    ),
    "kit.rl.policies.Gaussian": case(
        low=np.zeros(2, "float32"),
        high=np.ones(2, "float32"),
        initial_log_std=0.0,
        action_dtype="float32",
    ),
    "kit.rl.policies.distribution": case(
        action_space=gymnasium.spaces.Box(-1, 1, (2,)), initial_log_std=0.0
    ),
    "kit.rl.policies.policy_network": case(
        fine=NETWORK,
        obs_shape=(4,),
        action_space=gymnasium.spaces.Box(-1, 1, (2,)),
        units=(4,),
        activation="tanh",
        initial_log_std=0.0,
        network=None,
    ),
    "kit.rl.policies.value_network": case(
        fine=NETWORK, obs_shape=(4,), units=(4,), activation="tanh", network=None
    ),
    "kit.rl.policies.shared_network": case(
        fine=NETWORK,
        obs_shape=(4,),
        action_space=gymnasium.spaces.Box(-1, 1, (2,)),
        units=(4,),
        activation="tanh",
        initial_log_std=0.0,
        network=None,
    ),
    "kit.rl.encoders.encoder": case(
        fine={"network": "None", "gain": "None 1.5", "name": "text"},
        space=PIXELS,
        network="minatar",
        activation="relu",
        gain=1.0,
        name="encoder",
    ),
    "kit.rl.encoders.hidden_layers": case(
        fine={**NETWORK, "name": "text", "gain": "None 1.5"},
        name="q_network",
        obs_shape=(4,),
        units=(4,),
        activation="tanh",
        gain=1.0,
        network=None,
    ),
    "kit.rl.encoders.default_units": case(
        fine={"obs_shape": "[]", "network": "None", "default": "[]"},
        obs_shape=(4,),
        network=None,
        default=(4,),
    ),
    "kit.rl.encoders.has_images": case(
        fine={"obs_shape": "[]", "network": "None"}, obs_shape=(4,), network=None
    ),
    "kit.rl.encoders.network_input": case(fine={"obs_shape": "[]"}, obs_shape=(4,)),
    "kit.rl.encoders.image_layout": case(
        fine={"least": "1.5 inf 2**70"}, space=PIXELS, least=8
    ),
    "kit.rl.spaces.Packing": case(space=PIXELS),
    "kit.rl.spaces.Unpacking": case(spec={"kind": "Discrete", "n": 3, "start": 0}),
    "kit.rl.spaces.Scaling": case(fine={"divisor": "0 1.5 rank_5"}, divisor=255.0),
    "kit.rl.spaces.Categories": case(
        fine={"start": "None", "embedding_dim": "None"},
        nvec=(2, 3),
        start=(0, 1),
        embedding_dim=4,
    ),
    "kit.rl.noisy.NoisyDense": case(
        fine={"units": "", "activation": "None", "initial_std": "1.5"},
        units=2,
        activation="relu",
        initial_std=0.5,
    ),
    "kit.dqn.quantile_huber": _maths("td_target", "quantiles", shape=TN),
    "kit.rl.replay.PrioritizedReplayBuffer": case(
        fine={"exponent": "0"},
        capacity=4,
        obs_shape=(2,),
        obs_dtype="float32",
        num_envs=2,
        exponent=0.5,
        frame_stack=False,
    ),
    "kit.rl.replay.ReplayBuffer": case(
        capacity=4,
        obs_shape=(2,),
        obs_dtype="float32",
        num_envs=2,
        frame_stack=False,
    ),
    "kit.rl.returns.generalized_advantages": case(
        fine=dict.fromkeys(
            ("reward", "value", "next_value", "terminated", "ended"), "nan_inside"
        ),
        reward=TN,
        value=TN,
        next_value=TN,
        terminated=TN,
        ended=TN,
        gamma=0.9,
        gae_lambda=0.9,
    ),
    "kit.rl.returns.discounted_returns": case(
        fine=dict.fromkeys(("reward", "ended", "before"), "nan_inside"),
        reward=TN,
        ended=NO,
        before=np.zeros(2, "float32"),
        gamma=0.9,
    ),
    "kit.rl.returns.explained_variance": _maths("value", "returns", "weight"),
    "kit.rl.returns.normalized": _maths("x", "weight"),
    "kit.rl.returns.weighted_mean": _maths("x", "weight"),
    "kit.rl.returns.weighted_variance": _maths("x", "weight"),
    "kit.rl.rollouts.Rollouts": case(
        runs=False,
        fine={"seed": "None 0"},
        agent=AGENT,
        envs=later(lambda: Environments(ENV.make())),
        num_steps=2,
        seed=0,
    ),
    "kit.rl.rollouts.prepare_batch": case(
        fine=dict.fromkeys(("value", "next_value"), "nan_inside"),
        rollout=ROLLOUT,
        value=TN,
        next_value=TN,
        gamma=0.9,
        gae_lambda=0.9,
    ),
    "kit.rl.rollouts.flatten_steps": case(
        fine={"x": "rank_5 nan_rank_5 one_axis_more nan_inside"}, x=TN
    ),
    "kit.rl.training.turns": case(
        runs=False,
        fine={
            "envs": ANYTHING,
            "log_names": "[] [text]",
            "total_timesteps": "1.5",
            "steps_per_epoch": "None 1.5",
            "verbose": "0",
            "parts": "None",
        },
        agent=AGENT,
        envs=later(lambda: Environments(ENV.make())),
        total_timesteps=4,
        num_steps=2,
        log_names=("loss",),
        whole_turns=False,
        steps_per_epoch=2,
        check_finite=True,
        parts={},
        callbacks=(),
        verbose=0,
    ),
    # --- Models
    "kit.models.output_range": case(model=Q_NETWORK),
    "kit.models.to_array": case(fine={"x": ANYTHING}, x=CODES),
    # --- Data
    "kit.data.corpus.english_text": case(runs=False),
    "kit.data.corpus.load_text": case(runs=False, fine={"path": "None"}, path=__file__),
    "kit.data.corpus.Characters": case(fine={"characters": "text"}, characters="abc"),
    "kit.data.catalogues.catalogue_pairs": case(
        runs=False,
        # No package need be installed: tests/test_catalogues.py has one of its own.
        fine={"source": "text", "target": "text", "packages": "[text]"},
        source="en",
        target="de",
        packages=("Django",),
    ),
    "kit.data.catalogues.read_pairs": case(runs=False, path="no/such/file.tsv"),
    "kit.data.catalogues.mask": case(
        fine={"text": "text", "only": "None [] [text]"}, text="Hi %s", only=["%s"]
    ),
    "kit.data.catalogues.restore": case(
        fine={"text": "text", "placeholders": "[] [text]"},
        text="Hi <0>",
        placeholders=["%s"],
    ),
    "kit.data.catalogues.same_placeholders": case(
        fine={"text": "text", "other": "text"}, text="Hi %s", other="%s"
    ),
    "kit.data.catalogues.near_duplicates": case(
        fine={"texts": "[] [text]"}, texts=["a b", "b a"], similarity=0.5
    ),
    "kit.data.catalogues.split": case(
        fine={"min_words": "0"},
        pairs=[("a b", "c"), ("d e", "f")],
        share=0.1,
        similarity=0.5,
        min_words=1,
    ),
    "kit.data.subwords.Subwords": case(runs=False, json="{}"),
    "kit.data.docstrings.docstrings": case(
        runs=False, fine={"packages": "[text]"}, packages=("json",), max_words=50
    ),
    "kit.data.docstrings.split_by_module": case(
        fine={"documents": "[]", "unseen_packages": "[] [text]"},
        documents=[docstrings.Document("a.b", ("A text.",), "A summary.")],
        unseen_packages=("c",),
    ),
    "kit.data.docstrings.split_docstring": case(
        fine={"docstring": "text"}, docstring="A text."
    ),
    "kit.data.passages.python_topics": case(runs=False),
    "kit.data.passages.read_folder": case(runs=False, folder="no/such/folder"),
    "kit.data.passages.split_passages": case(documents={"a": "A text."}, max_words=3),
    "kit.data.passages.sentences": case(fine={"text": "text"}, text="A text."),
    "kit.data.texts.load": case(
        runs=False, fine={"max_texts": "None"}, name="scipy", max_texts=2
    ),
    "kit.speech.speech_recognizer": case(
        fine={"units": "", "alphabet": "text", "dropout": "0"},
        layer="gru",
        units=(2,),
        alphabet="ab",
        sampling_rate=8000,
        num_mel_bins=4,
        windows_per_frame=3,
        dropout=0.0,
    ),
    "kit.speech.SpeechRecognizer": case(
        frontend=later(lambda: SPEECH.make().frontend),
        network=later(lambda: SPEECH.make().network),
        frame_length=480,
        frame_step=240,
        alphabet="ab",
    ),
    "kit.speech.ctc_loss": case(
        fine={"logits": "nan_inside"},
        tokens=np.ones((2, 1), "int32"),
        logits=np.zeros((2, 3, 3), "float32"),
        num_tokens=np.array([1, 1]),
        num_frames=np.array([3, 3]),
    ),
    "kit.speech.greedy": case(fine={"log_probs": "nan_inside"}, log_probs=NOTES),
    "kit.speech.beam_search": case(
        fine={
            "log_probs": "nan_inside",
            "language_model": "None",
            "lm_weight": "0 1.5",
            "letter_bonus": "0 -1 1.5",
            "least": "0",
        },
        log_probs=NOTES,
        beam_width=2,
        language_model=None,
        lm_weight=0.5,
        letter_bonus=0.0,
        least=0.001,
    ),
    "kit.speech.LetterModel": case(texts=["ab", "ba"], alphabet="ab", order=2),
    "kit.speech.Listener": case(model=SPEECH),
    "kit.data.speech.say": case(
        runs=False,
        fine={"text": "text", "pitch": "0"},
        text="a",
        voice="gmw/en-US",
        words_per_minute=160,
        pitch=50,
    ),
    "kit.data.speech.voices": case(
        runs=False, fine={"accent": "None"}, part="test", accent="britain"
    ),
    "kit.data.speech.sentences": case(
        fine={"without": "[] [text]"}, number=2, seed=0, without=(), different=True
    ),
    "kit.data.speech.vocabulary": case(),
    "kit.data.speech.recordings": case(
        runs=False,
        fine={"accent": "None", "texts": "[text]"},
        texts=["one"],
        part="test",
        accent="britain",
        seed=0,
        vary=False,
    ),
    "kit.data.speech.trimmed": case(
        fine={"decibels": "-1 0"}, audio=NOTES[0], decibels=-40.0
    ),
    "kit.data.speech.add_noise": case(
        fine={"decibels": "-1 0 1.5"}, audio=NOTES[0], decibels=5.0, seed=0
    ),
    "kit.data.speech.read_wav": case(
        runs=False, fine={"path": "text"}, path="no/such/file.wav"
    ),
    "kit.data.speech.write_wav": case(
        runs=False, fine={"path": "text"}, path="no/such/folder/a.wav", audio=NOTES[0]
    ),
    "kit.unet.unet": case(
        fine={"input_shape": "", "activation": "None", "dropout": "0"},
        input_shape=(8, 8, 1),
        num_outputs=1,
        filters=(2, 2),
        num_convolutions=1,
        activation="sigmoid",
        residual=False,
        dropout=0.0,
        batch_normalization=False,
    ),
    "kit.super_resolution.super_resolver": case(
        scale=2, channels=1, filters=2, num_blocks=1
    ),
    "kit.super_resolution.PixelShuffle": case(scale=2),
    "kit.super_resolution.BicubicUpsampling": case(scale=2),
    "kit.super_resolution.cubic_weights": case(scale=2),
    "kit.super_resolution.patch_classifier": case(num_classes=2, filters=(2,)),
    "kit.super_resolution.feature_maps": case(classifier=PATCH_CLASSIFIER),
    "kit.super_resolution.perceptual_distance": case(
        fine=dict.fromkeys(("x", "y"), "nan_inside"),
        features=PATCH_FEATURES,
        x=PATCHES,
        y=PATCHES,
    ),
    "kit.super_resolution.SRGAN": case(
        fine=dict.fromkeys(
            ("pixel_weight", "feature_weight", "adversarial_weight"), "0 1.5"
        ),
        generator=later(lambda: kit.super_resolver(2, 3, 2, 1)),
        discriminator=later(lambda: gan.conv_discriminator((8, 8, 3), (2,))),
        features=PATCH_FEATURES,
        pixel_weight=1.0,
        feature_weight=1.0,
        adversarial_weight=0.1,
    ),
    "kit.super_resolution.relativistic_loss": case(
        fine=dict.fromkeys(("above", "below"), "nan_inside"),
        above=PATCHES[:, 0, 0, :1],
        below=PATCHES[:, 0, 0, :1],
    ),
    "kit.super_resolution.enlarge": case(
        runs=False,
        fine={"overlap": "0"},
        model=later(lambda: kit.super_resolver(2, 3, 2, 1)),
        image=PATCHES[0],
        tile=4,
        overlap=2,
        ensemble=False,
        batch_size=1,
    ),
    "kit.data.photographs.photographs": case(part="validation"),
    "kit.data.photographs.read_image": case(
        runs=False, fine={"path": "text"}, path="no/such/file.png"
    ),
    "kit.data.photographs.read_images": case(
        runs=False, fine={"folder": "text"}, folder="no/such/folder", least=1
    ),
    "kit.data.phantoms.phantoms": case(fine={"seed": "0"}, number=1, size=16, seed=0),
    "kit.data.phantoms.lesion_crops": case(
        fine={"seed": "0"},
        number=1,
        size=16,
        seed=0,
        degrees=(0.0, 10.0),
        scales=(1.0, 1.1),
    ),
    "kit.data.tables.read_table": case(
        runs=False, fine={"csv": "text", "target": "text"}, csv="no.csv", target="y"
    ),
    "kit.data.tables.make_table": case(
        fine={"target": "text", "classes": "[]"},
        frame=later(lambda: pd.DataFrame({"a": [1.0, 2.0]})),
        y=np.array([0, 1]),
        classes=("no", "yes"),
        target="t",
    ),
    "kit.data.tables.encode": case(
        frame=later(lambda: pd.DataFrame({"a": [1.0]})), columns={"a": []}
    ),
    "kit.data.texts.description": case(fine={"docstring": "text"}, docstring="A text."),
    "kit.data.vision.images": case(runs=False, name="mnist_5k"),
    # --- What recipes share
    "kit.lab.agent_recipe.make_env": case(
        runs=False, fine={"env": "text"}, env="CartPole-v1", training=True
    ),
    "kit.lab.agent_recipe.spaces_of": case(env=later(lambda: kit.envs.CartPole())),
    "kit.lab.agent_recipe.make_envs": case(
        env="CartPole-v1", num_envs=2, training=True
    ),
    "kit.lab.agent_recipe.finish_agents": case(
        runs=False,
        run=later(lambda: object.__new__(kit.lab.run.Run)),
        agents=later(lambda: [AGENT.make()] * 2),
        histories=later(lambda: [keras.callbacks.History()] * 2),
        env="CartPole-v1",
        episodes=1,
    ),
    "kit.lab.agent_recipe.finish_agent": case(
        runs=False,
        fine=dict.fromkeys(("history", "metrics", "baselines"), ANYTHING)
        | {"env": "text"},
        run=later(lambda: object.__new__(kit.lab.run.Run)),
        agent=AGENT,
        history=None,
        env="CartPole-v1",
        episodes=2,
        render="none",
        metrics=None,
        baselines=None,
    ),
    "kit.lab.agent_recipe.record_video": case(
        runs=False,
        fine={"env": "text", "folder": "text"},
        act=len,
        env="CartPole-v1",
        folder=Path("no/such/folder"),
        seed=0,
    ),
    "kit.lab.agent_recipe.save_animation": case(
        runs=False,
        fine={"path": "text", "frames": ARRAYS, "frames_per_second": "1.5"},
        path=Path("no/such/folder.gif"),
        frames=[np.zeros((4, 4, 3), "uint8")] * 2,
        frames_per_second=10.0,
    ),
    "kit.lab.baselines.pair_with_baselines": case(
        metrics={"eval_return": 1}, baselines={"random_return": 0}
    ),
    "kit.lab.gan_metrics.classes_covered": case(
        probabilities=np.array([[0.9, 0.1], [0.2, 0.8]]), min_share=0.1, confidence=0.5
    ),
    "kit.lab.gan_metrics.frechet_distance": case(
        features=np.arange(8.0).reshape(4, 2), other=np.ones((3, 2))
    ),
    "kit.lab.gan_metrics.nearest_neighbours": case(samples=IMAGES, references=IMAGES),
    "kit.lab.ranking.BM25": case(
        fine={"texts": "[text]", "k1": "0 1.5", "b": "0"},
        texts=["a b", "b c"],
        analyzer=str.split,
        k1=1.2,
        b=0.75,
    ),
    "kit.lab.ranking.reciprocal_rank_fusion": case(
        fine={"k": "0 1.5"}, scores=[np.ones((2, 3))] * 2, k=60
    ),
    "kit.lab.ranking.first_ranks": case(
        scores=np.arange(6.0).reshape(2, 3), relevant=np.ones((2, 3))
    ),
    LM + "windows": case(
        tokens=np.arange(20),
        length=2,
        batch_size=2,
        rng=later(lambda: np.random.default_rng(0)),
    ),
    LM + "check": case(vocabulary_size=5),
    LM + "fit": case(
        runs=False,
        fine={"learning_rate": "1.5", "warmup_steps": "0", "beta_2": "0"}
        | {
            "characters_per_token": "1.5",
            "verbose": "0",
            "valid": "[-1]",
            "backup": "None",
        },  # `measure` looks at the text
        model=LANGUAGE_MODEL,
        tokens=np.arange(20) % 5,
        valid=np.arange(20) % 5,
        measure=len,
        length=2,
        batch_size=2,
        epochs=1,
        learning_rate=0.1,
        optimizer="adam",
        warmup_steps=0,
        beta_2=0.9,
        characters_per_token=1.0,
        seed=0,
        backup=None,
        verbose=0,
    ),
    LM + "initialize_recurrent": case(
        runs=False, fine={"seed": "0"}, model=LANGUAGE_MODEL, seed=1
    ),
    LM + "per_character": case(
        runs=False, measure=len, vocabulary=later(lambda: corpus.Characters("ab"))
    ),
    LM + "make_bits_by_windows": case(
        fine={"stride": "None"}, model=LANGUAGE_MODEL, length=4, stride=2, batch_size=2
    ),
    LM + "make_bits_by_steps": case(
        fine={"warm_up": "0"}, model=LANGUAGE_MODEL, lanes=2, warm_up=2
    ),
    "kit.lab.ngram.NGram": case(order=2, smoothing="kneser_ney"),
    "kit.lab.ngram.best_ngram": case(
        train=TOKENS, valid=TOKENS, vocabulary_size=3, max_order=2
    ),
    "kit.lab.run.Run": case(
        runs=False,
        fine={"recipe": "text", "output_dir": "None text", "config": "None"},
        recipe="dqn",
        seed=0,
        output_dir="no/such/folder",
        resume=False,
        config={},
    ),
    "kit.lab.run.peak_memory_mb": case(),
    "kit.lab.run.versions": case(),
}
CASES["kit.transformer.EncoderBlock"] = CASES["kit.transformer.DecoderBlock"] = case(
    fine={"rotary_length": "None"},
    num_heads=2,
    intermediate_dim=4,
    activation="relu",
    dropout=0.1,
    normalize_first=True,
    epsilon=1e-5,
    rotary_length=8,
)

# Methods, by the function that makes the object.
METHODS = {
    "rbm.gibbs": (
        later(lambda: kit.RBM(2)),
        case(runs=False, visible=CODES, steps=1),
    ),
    "dbn.pretrain": (
        later(lambda: kit.DBN([kit.RBM(2)])),
        case(
            runs=False,
            fine={
                "validation_data": "None",
                "callbacks": ANYTHING,
                "verbose": ANYTHING,
            },
            x=CODES,
            epochs=1,
            batch_size=2,
            validation_data=CODES,
            callbacks=None,
            verbose=0,
        ),
    ),
    "gan.sample": (
        later(
            lambda: kit.GAN(GENERATOR.make(), DISCRIMINATOR.make(), loss="wasserstein")
        ),
        case(runs=False, fine={"labels": "None"}, num=2, labels=None, seed=0),
    ),
    "vae.sample": (
        later(lambda: kit.VariationalAutoencoder(WIDE_ENCODER.make(), DECODER.make())),
        case(num=2, seed=0),
    ),
    "agent.act": (
        AGENT,
        case(
            runs=False,
            fine={"obs": "nan_inside"},
            obs=np.ones(4, "float32"),
            sample=False,
        ),
    ),
    "agent.evaluate": (
        AGENT,
        case(runs=False, fine={"seed": "None 0"}, env=ENV, episodes=1, seed=0),
    ),
    "buffer.indices": (
        later(lambda: _buffer()),
        case(fine={"uniform": "0 one_axis_more"}, uniform=B),
    ),
    "buffer.reset": (
        later(lambda: _buffer()),
        case(fine={"obs": "nan_inside"}, obs=np.ones((2, 3), "float32")),
    ),
    "ngram.fit": (
        later(lambda: kit.ngram.NGram(2)),
        case(tokens=TOKENS, vocabulary_size=3),
    ),
    "ngram.probabilities": (
        later(lambda: kit.ngram.NGram(2).fit(TOKENS, 3)),
        case(tokens=TOKENS),
    ),
    "ngram.next_probabilities": (
        later(lambda: kit.ngram.NGram(2).fit(TOKENS, 3)),
        case(context=TOKENS),
    ),
    "characters.of": (
        later(lambda: corpus.Characters),
        case(fine={"text": "text", "min_count": "0"}, text="abc", min_count=1),
    ),
    "characters.encode": (CHARACTERS, case(fine={"text": "text"}, text="hello")),
    "characters.decode": (
        CHARACTERS,
        case(fine={"tokens": "[] empty"}, tokens=np.array([3, 4])),
    ),
}

# Public, but not called with a user's values.
EXEMPT = {
    "kit.checks": "makes the checks",
    "kit.backups": "training loops call it",
    "kit.files": "a path, which the operating system checks",
    "kit.finite": "training loops call it",
    "kit.rl.device_replay": "agents call it",
    "kit.rl.env_state": "backups call it",
    "kit.rl.hanging": "training loops call it",
    "kit.rl.joint_backups": "fit_together calls it",
    "kit.rl.progress": "training loops call it",
    "kit.data.speech.synthesizer": "takes nothing",
    "kit.rl.noisy.draw_noise": "agents call it",
    "kit.rl.noisy.noisy_layers": "agents call it",
    "kit.rl.policies.of_taken_action": "a part of compiled programs",
    "kit.rl.atari.Lives": "made by make_atari",
    "kit.rl.environments.stacks_frames": "of whatever there is",
    "kit.rl.observations": "a part of replay buffers",
    "kit.rl.replay.SumTree": "a part of PrioritizedReplayBuffer",
    **{
        f"kit.rl.spaces.{name}": "agents and networks call it"
        for name in (
            "bounds_of",
            "describe",
            "is_category",
            "misfit",
            "packing_of",
            "restore",
            "scaled_by_network",
        )
    },
    "kit.rl.encoders.is_shape": "of whatever there is",
    "kit.rl.functional.advance": "a part of compiled programs",
    "kit.rl.functional.begin": "a part of compiled programs",
    "kit.rl.functional.play": "a part of compiled programs",
    "kit.rl.fused": "agents call it",
    "kit.rl.vector_env.FunctionalVectorEnv": "made by as_vector_env",
    "kit.rl.vector_env.FunctionalSingleEnv": "made by gymnasium.make",
    "kit.models.check_targets": "`fit` calls it",
    "kit.rl.environments.env_name": "of whatever there is",
    "kit.lab.run.command_line": "of a recipe",
    "kit.lab.few_labels": "a recipe has checked its arguments",
    "kit.lab.intervals": "of what a recipe has measured",
    "kit.lab.table_scores": "of what a recipe has predicted",
    "kit.lab.table_pictures": "of what a recipe has predicted",
    "kit.models.CompiledFit": "a mixin without arguments",
    "kit.models.WithParts": "a mixin without arguments",
    "kit.gan.Adversarial": "a base class without arguments",
    "kit.transformer.beam_step": "a part of compiled programs",
    "kit.models.Sequential": "arguments are Keras'",
    "kit.models.Model": "arguments are Keras'",
    "kit.models.Functional": "arguments are Keras'",
    "kit.pretrained.Tokenizer": "made by load_tokenizer",
    "kit.rl.agent.compiled_with_numbers": "a decorator within agents",
    "kit.lab.run.history_rows": "a training of a recipe",
    "kit.lab.run.plot_learning_curve": "a picture of what a recipe has measured",
    "kit.lab.run.plot_seeds": "a picture of what a recipe has measured",
    "kit.lab.run.plot_comparison": "a picture of what a recipe has measured",
    "kit.lab.run.mean_and_interval": "of what a recipe has measured",
    LM + "plot": "a picture of what a recipe has measured",
}


def _sum_of_squares(x):
    return sum((ops.sum(ops.square(leaf)) for leaf in keras.tree.flatten(x)), 0.0)


def _buffer():
    buffer = kit.rl.replay.ReplayBuffer(4, (3,), "float32", 2)
    obs, no = np.ones((2, 3), "float32"), np.zeros(2, bool)
    buffer.reset(obs)
    buffer.add(np.zeros(2, int), np.zeros(2), no, no, obs, obs)
    return buffer


# --- The public interface -----------------------------------------------------


def public_callables():
    """Yields the names of all public functions and classes; of records, none."""
    root = Path(kit.__file__).parent
    for folder in (root, root / "rl", root / "data", root / "lab"):
        for file in sorted(folder.glob("*.py")):
            if file.stem.startswith("__"):
                continue
            parts = file.relative_to(root.parent).with_suffix("").parts
            module = importlib.import_module(".".join(parts))
            for name, value in vars(module).items():
                own = getattr(value, "__module__", None) == module.__name__
                if own and callable(value) and not name.startswith("_"):
                    yield f"{module.__name__}.{name}", value


def _is_record(value):
    """Whether it only holds values, or is an error."""
    return isinstance(value, type) and (
        issubclass(value, (tuple, Exception))
        or hasattr(value, "__dataclass_fields__")
        or getattr(value, "_is_protocol", False)
    )


def _find(name):
    if name in METHODS:
        owner, made = METHODS[name]
        return getattr(owner.make(), name.partition(".")[2]), made
    module, _, attribute = name.rpartition(".")
    return getattr(importlib.import_module(module), attribute), CASES[name]


# --- Calls --------------------------------------------------------------------


class Endless(BaseException):
    """Raised in a call that takes too long."""


def _call(function, arguments, seconds=3):
    """Returns the error of a call, or `None`, and how long it took."""

    def stop(*_):
        raise Endless

    before = signal.signal(signal.SIGPROF, stop)
    # Again and again: one may be raised where nobody passes it on.
    signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
    start = time.process_time()
    try:
        with warnings.catch_warnings(action="ignore"):
            function(**arguments)
        error = None
    except (Exception, Endless) as raised:
        error = raised
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
    return error, time.process_time() - start


def _bad_values(valid):
    yield from BAD.items()
    if isinstance(valid, np.ndarray) and valid.ndim:
        for name, change in BAD_ARRAYS.items():
            yield name, change(valid)


def is_clear(error, argument):
    """Whether it is an error of the right kind that names the argument."""
    text = str(error)
    named = re.search(rf"\b{re.escape(argument)}\b", text)
    return type(error) in (TypeError, ValueError, FileNotFoundError) and bool(named)


def outcome(error, argument):
    """Returns the class of what a call with a bad value ended in."""
    if error is None:
        return "accepted"
    if isinstance(error, Endless):
        return "endless"
    if is_clear(error, argument):
        return "clear"
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    owners = [
        "kit" if Path(kit.__file__).parent in Path(file).parents else "Keras"
        for file in files
        if Path(kit.__file__).parent in Path(file).parents or "/keras/" in file
    ]
    return f"obscure, from {owners[-1] if owners else 'elsewhere'}"


def calls(name):
    """Yields what each bad value of each argument leads to."""
    function, made = _find(name)
    for argument, valid in made.arguments().items():
        for label, value in _bad_values(valid):
            fine = label.replace(" ", "_") in made.names_fine(argument)
            if fine and not made.runs:
                continue
            if argument not in inspect.signature(function).parameters:
                continue
            error, seconds = _call(function, {**made.arguments(), argument: value})
            yield argument, label, fine, error, seconds


# --- Tests --------------------------------------------------------------------


def test_every_public_callable_has_a_case():
    names = {
        name
        for name, value in public_callables()
        if not _is_record(value)
        and name not in EXEMPT
        and name.rpartition(".")[0] not in EXEMPT
    }
    assert names == set(CASES)


@pytest.mark.parametrize("name", [*CASES, *METHODS])
def test_cases_name_all_arguments(name):
    function, made = _find(name)
    parameters = inspect.signature(function).parameters.values()
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    names = {p.name for p in parameters if p.kind not in kinds}
    assert names == set(made.arguments())


@pytest.mark.once
@pytest.mark.parametrize("name", [*CASES, *METHODS])
def test_bad_arguments_get_clear_errors(name):
    function, made = _find(name)
    if made.runs:
        function(**made.arguments())
    wrong = []
    for argument, label, fine, error, seconds in calls(name):
        found = outcome(error, argument)
        if fine and found != "accepted":
            wrong.append(f"{argument}={label} is fine, but: {error!r}")
        elif not fine and (found != "clear" or seconds > SECONDS):
            wrong.append(f"{argument}={label}: {found} in {seconds:.1f} s: {error!r}")
    assert not wrong, "\n".join(wrong)


def main():
    """Counts what the calls end in, and prints what isn't clear with `-v`."""
    counts = collections.Counter()
    for name in [*CASES, *METHODS]:
        try:
            found = list(calls(name))
        except Exception as error:
            print("left out:", name, repr(error)[:100])
            continue
        for argument, label, fine, error, _ in found:
            kind = "fine" if fine else outcome(error, argument)
            if kind == "accepted":
                kind += " NaN or infinity" if re.search("nan|inf", label) else ", other"
            counts[kind] += 1
            if "-v" in sys.argv and kind not in ("clear", "fine"):
                print(f"{name}({argument}={label}): {kind}: {error!r:.150}")
    print(dict(sorted(counts.items())), "of", counts.total())


if __name__ == "__main__":
    main()
