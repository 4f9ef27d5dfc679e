"""Runs the recipes small, or opens what another backend left; for test_exchange.py.

    KERAS_BACKEND=jax python tests/exchange.py save folder
    KERAS_BACKEND=torch python tests/exchange.py load folder

`save` leaves folder/jax/<run>/model.keras of each run, and inputs and outputs in
model.npz. `load` opens every model that it finds there, and leaves the outputs that
it computes in torch.npz beside them.
"""

import contextlib
import importlib.util
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
from tiny_bert import write_tiny_bert

import kit
from kit.data import vision
from kit.files import SavedWhole

ROOT = Path(__file__).parents[1]

TINY_GAN = {"epochs": 1, "judge_epochs": 1, "vae_epochs": 1, "num_samples": 100}
RUNS: dict = {  # name of the run: recipe and arguments
    "mlp": ("mlp", {"folds": 2, "epochs": 2}),
    "mlp_regression": ("mlp", {"dataset": "diabetes", "folds": 2, "epochs": 2}),
    "cnn": ("cnn", {"epochs": 1, "filters": (4, 4, 4), "svc_examples": 200}),
    "detection": (
        "detection",
        {
            "train_canvases": 64,
            "test_canvases": 4,
            "filters": (4, 4, 4),
            "epochs": 1,
            "window_epochs": 1,
        },
    ),
    "rnn": ("rnn", {"units": (4,), "epochs": 1, "batch_size": 512}),
    "lstm": (
        "lstm",
        {"text": ROOT / "README.md", "units": (8,), "epochs": 1, "max_ngram_order": 2},
    ),
    "transformer": (
        "transformer",
        {
            "text": ROOT / "LICENSE",
            "num_layers": 1,
            "hidden_dim": 8,
            "vocabulary_size": 300,
            "sequence_length": 16,
            "epochs": 1,
            "max_ngram_order": 2,
        },
    ),
    "translation": (
        "translation",
        {"num_pairs": 200, "num_layers": 1, "hidden_dim": 8, "epochs": 1},
    ),
    "bert": (
        "bert",
        {
            "few": 2,
            "max_texts": 100,
            "max_length": 16,
            "epochs": 1,
            "few_epochs": 1,
        },
    ),
    "chat": ("chat", {"max_topics": 12, "max_length": 16}),
    "gru": ("gru", {"units": (8,), "epochs": 1}),
    "speech": (
        "speech",
        {
            "units": (8,),
            "train_sentences": 64,
            "test_sentences": 2,
            "templates": 1,
            "epochs": 1,
        },
    ),
    "ct": (
        "ct",
        {
            "size": 16,
            "views": 10,
            "train_phantoms": 20,
            "test_phantoms": 3,
            "filters": (2, 4),
            "segmentation_filters": (2, 3),
            "epochs": 1,
            "segmentation_epochs": 1,
        },
    ),
    "super_resolution": (
        "super_resolution",
        {
            "filters": 2,
            "num_blocks": 1,
            "patch_size": 8,
            "patches": 16,
            "epochs": 1,
            "feature_patches": 8,
            "adversarial_patches": 8,
        },
    ),
    "summarise": (
        "summarise",
        {
            "packages": ("gymnasium",),
            "vocabulary_size": 300,
            "source_length": 16,
            "target_length": 8,
            "num_layers": 1,
            "num_heads": 2,
            "hidden_dim": 4,
            "epochs": 1,
            "beam_width": 2,
            "test_documents": 2,
        },
    ),
    "autoencoder": ("autoencoder", {"epochs": 1}),
    "denoising": ("autoencoder", {"variant": "denoising", "epochs": 1}),
    "variational": ("autoencoder", {"variant": "variational", "epochs": 1}),
    "gan": ("gan", TINY_GAN),
    "gan_dense": ("gan", {**TINY_GAN, "architecture": "dense"}),
    "augment": (
        "augment",
        {
            "labels": (2,),
            "num_images": 80,
            "batch_size": 40,
            "filters": (4, 4),
            "epochs": 1,
            "generator_filters": (4, 4),
            "discriminator_filters": (4, 4),
            "gan_epochs": 1,
            "seeds": 1,
        },
    ),
    "transfer": (
        "transfer",
        {
            "labels": (2,),
            "num_patches": 64,
            "num_images": 64,
            "filters": (4, 4),
            "pretrain_epochs": 1,
            "epochs": 1,
            "fine_tuning_epochs": 1,
            "seeds": 1,
        },
    ),
    "dbn": (
        "dbn",
        {
            "dataset": "nudged_digits",
            "labels": (50,),
            "repeats": 1,
            "units": (8,),
            "rbm_epochs": 1,
            "epochs": 1,
        },
    ),
    "capsnet": ("capsnet", {"epochs": 1, "ablation": ()}),
    "q_learning": ("q_learning", {"total_timesteps": 300, "eval_episodes": 2}),
    "ppo": ("ppo", {"total_timesteps": 300, "units": (8,), "num_epochs": 1}),
    "fused": ("fused", {"total_timesteps": 300, "units": (8,), "num_epochs": 1}),
    "ppo_continuous": (
        "ppo",
        {
            "env": "Pendulum-v1",
            "total_timesteps": 300,
            "units": (8,),
            "num_epochs": 1,
            "eval_episodes": 2,
            "normalize_observations": True,
            "normalize_rewards": True,
        },
    ),
    "actor_critic": ("actor_critic", {"total_timesteps": 300, "units": (8,)}),
    "a3c": (
        "a3c",
        {"total_timesteps": 300, "units": (8,), "worker_counts": ()},
    ),
    "dqn": ("dqn", {"total_timesteps": 300, "learning_starts": 100, "units": (8,)}),
    "pixels": (
        "pixels",
        {
            "ways": ("end_to_end",),
            "total_timesteps": 300,
            "learning_starts": 0,
            "buffer_size": 300,
            "eval_episodes": 10,
        },
    ),
}

LONG_LOOPS = ("lstm", "gru", "dbn")


class ModelSaved(Exception):
    """Ends a run."""


def shorten_runs():
    """Trains on few images; ends a run with model.keras, which nothing changes after.

    The recipes' own tests run them to the end.
    """
    load_images, save_model = vision.images, SavedWhole.save

    def images(*args):
        return vision.Split(*(x[:: len(x) // 200] for x in load_images(*args)))

    def save(model, filepath, *args, **kwargs):
        save_model(model, filepath, *args, **kwargs)
        if Path(filepath).name == "model.keras":
            raise ModelSaved

    # Not Keras' own, which writes a file that takes its name afterwards.
    vision.images, SavedWhole.save = images, save


def load_main(recipe):
    path = ROOT / "recipes" / f"{recipe}.py"
    spec = importlib.util.spec_from_file_location(f"recipe_{recipe}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def parts(model):
    """The networks of a model, by name."""
    names = ("encoder", "decoder", "q_network", "generator", "discriminator")
    names += ("capsules", "network")
    if hasattr(model, "actor"):  # with the statistics by which it normalizes
        return {"agent": model}
    found = {name: getattr(model, name) for name in names if hasattr(model, name)}
    return found or {"model": model}


def inputs_for(network):
    """Arrays for each of the network's inputs, by name."""
    rng = np.random.default_rng(0)
    arrays = {}
    for tensor in getattr(network, "inputs", None) or states_of(network):
        shape = [3, *(7 if size is None else size for size in tensor.shape[1:])]
        if "int" in tensor.dtype:
            high = 2 if "segment" in tensor.name else 10
            arrays[tensor.name] = rng.integers(0, high, shape).astype("int32")
        else:
            arrays[tensor.name] = rng.uniform(0, 5, shape).astype("float32")
    return arrays


def states_of(agent):
    """What the call of an agent takes, which has no `inputs`."""
    if hasattr(agent, "actor"):
        return agent.actor.inputs
    if hasattr(agent, "rbms"):  # a DBN, no agent
        size = agent.rbms[0].kernel.shape[0]
        return [keras.KerasTensor((None, size), "float32", name="visible")]
    return [keras.KerasTensor((None,), "int32", name="state")]


def outputs_of(network, inputs):
    # Those with several inputs take a dict of them.
    outputs = network(inputs if len(inputs) > 1 else next(iter(inputs.values())))
    outputs = keras.tree.flatten(outputs)
    return {str(i): keras.ops.convert_to_numpy(x) for i, x in enumerate(outputs)}


def named(prefix, arrays):
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def outputs_for(model, arrays):
    """The outputs of a model's parts for the inputs that lie in a file beside it."""
    outputs = {}
    for part, network in parts(model).items():
        prefix = f"{part}_inputs_"
        inputs = {
            name.removeprefix(prefix): arrays[name]
            for name in arrays.files
            if name.startswith(prefix)
        }
        outputs |= named(f"{part}_outputs_", outputs_of(network, inputs))
    return outputs


def save(folder):
    shorten_runs()
    bert = folder / keras.backend.backend() / "tiny-bert"
    bert.mkdir(parents=True)
    write_tiny_bert(bert)
    for name, (recipe, arguments) in RUNS.items():
        run = folder / keras.backend.backend() / name
        # The recipes' own tests compile. On TensorFlow and PyTorch, short runs take
        # half the time without. JAX would then compile each operation by itself,
        # which takes four times as long.
        kit.run_eagerly(keras.backend.backend() != "jax" and recipe not in LONG_LOOPS)
        if recipe in ("bert", "chat"):
            arguments = arguments | {"path": bert}
        with contextlib.suppress(ModelSaved):
            load_main(recipe)(**arguments, verbose=0, output_dir=run)
        for path in sorted(run.glob("*.keras")):
            model = keras.saving.load_model(path)
            arrays = {}
            for part, network in parts(model).items():
                inputs = inputs_for(network)
                arrays |= named(f"{part}_inputs_", inputs)
                arrays |= named(f"{part}_outputs_", outputs_of(network, inputs))
            np.savez(path.with_suffix(".npz"), **arrays)


def load(folder):
    backend = keras.backend.backend()
    for path in sorted(folder.glob("*/*/*.keras")):
        model = keras.saving.load_model(path)
        outputs = outputs_for(model, np.load(path.with_suffix(".npz")))
        np.savez(path.with_name(f"{path.stem}-{backend}.npz"), **outputs)


if __name__ == "__main__":
    {"save": save, "load": load}[sys.argv[1]](Path(sys.argv[2]))
