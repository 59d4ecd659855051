"""What the trainings in Keras have in common: their set-up, and checkpoints of arrays and JSON, for every backend."""

import json
import os
import time
import zipfile
import zlib

import keras
import numpy as np

PARTS = ("model", "optimizer")
KINDS = {"options": dict, "history": list}
UNREADABLE = (EOFError, KeyError, OSError, TypeError, ValueError, zipfile.BadZipFile, zlib.error)


class AfterEpoch(keras.callbacks.Callback):
    """Call `function(epoch, logs)` after an epoch, with its duration as logs["seconds"]."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def on_epoch_begin(self, epoch, logs=None):
        self.start = time.perf_counter()

    def on_epoch_end(self, epoch, logs=None):
        self.function(epoch, {**logs, "seconds": time.perf_counter() - self.start})


def state(model):
    """Arrays of a compiled model and of its optimizer: weights, states of random generators, moments, step."""
    variables = {"model": model.variables, "optimizer": model.optimizer.variables}
    return {part: [keras.ops.convert_to_numpy(variable) for variable in variables[part]] for part in PARTS}


def restore(model, arrays):
    """Continue from what `state` returned; a ValueError or KeyError if it is of another model."""
    model.optimizer.build(model.trainable_variables)
    variables = {"model": model.variables, "optimizer": model.optimizer.variables}
    for part in PARTS:
        pairs = list(zip(variables[part], arrays[part], strict=True))
        for variable, array in pairs:
            if tuple(variable.shape) != array.shape:
                raise ValueError(f"expected shape {tuple(variable.shape)}, got {array.shape}")
        for variable, array in pairs:
            variable.assign(array)


def write_checkpoint(path, content):
    """Write {"options": dict, "history": list, "backend": `state()`}; a crash leaves the old file or the new."""
    arrays = {f"{part}/{i}": array for part in PARTS for i, array in enumerate(content["backend"][part])}
    text = json.dumps({name: content[name] for name in KINDS})
    part = path.with_suffix(".part")
    with open(part, "wb") as file:
        np.savez(file, json=np.array(text), **arrays)
    os.replace(part, path)


def read_checkpoint(path):
    """What `write_checkpoint` wrote; a ValueError for any other file."""
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as stored:
            content = json.loads(str(stored["json"]))
            numbers = {part: sum(name.startswith(f"{part}/") for name in stored.files) for part in PARTS}
            arrays = {part: [stored[f"{part}/{i}"] for i in range(count)] for part, count in numbers.items()}
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a checkpoint of this program") from error
    if not isinstance(content, dict) or {name: type(value) for name, value in content.items()} != KINDS:
        raise ValueError(f"{path} is not a checkpoint of this program")
    return {**content, "backend": arrays}


def set_up(options):
    """Prepare Keras for a training: the seed, the layout of images, and the CPU threads of its backend."""
    keras.utils.set_random_seed(options.seed % 2**32)
    keras.config.set_image_data_format("channels_last")
    if keras.backend.backend() == "torch":
        import torch

        torch.set_num_threads(options.threads)
        return
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(options.threads)
        tf.config.threading.set_inter_op_parallelism_threads(options.threads)
    except RuntimeError:
        pass  # TensorFlow has computed something already and keeps the threads it has
