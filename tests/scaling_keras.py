"""What the workers of tests/test_scaling.py run: programs of docs/scaling.md for tf.distribute.

python scaling_keras.py FOLDER mirrored|multiworker     # multiworker: TF_CONFIG names the workers
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import numpy as np
import tensorflow as tf
from keras import layers

import ats_core.keras
from scaling_page import snippet

SEED = 3


def make_model():
    keras.utils.set_random_seed(4)
    x_low, x_high = keras.Input((16, 16, 1)), keras.Input((64, 64, 1))
    attention = keras.Sequential(
        [
            layers.Conv2D(4, 3, padding="same", activation="tanh"),
            layers.Conv2D(1, 3, padding="same"),
            ats_core.keras.SampleSoftmax(squeeze_channels=True),
        ]
    )
    feature = keras.Sequential([layers.Conv2D(8, 5, activation="relu"), layers.GlobalMaxPooling2D()])
    features, _, _ = ats_core.keras.attention_sampling(attention, feature, 8, 4, seed=SEED)([x_low, x_high])
    return keras.Model([x_low, x_high], layers.Dense(3, activation="softmax")(features))


def make_data():
    x_high = np.random.default_rng(2).random((48, 64, 64, 1), np.float32)
    x_low = x_high.reshape(48, 16, 4, 16, 4, 1).mean((2, 4))
    return tf.data.Dataset.from_tensor_slices(((x_low, x_high), np.arange(48) % 3)).batch(16, drop_remainder=True)


def draw(strategy, calls=3):
    """Cells that a layer draws for the batch of `weights()`, of which every replica has a part: (calls, B, n)."""
    with strategy.scope():
        layer = ats_core.keras.SamplePatches(4, 8, seed=SEED, details=True)

    def step(attention):
        image = tf.zeros((len(attention), 64, 64, 1))
        return layer([image[:, ::4, ::4], image, attention])[2]

    run = tf.function(lambda batch: strategy.run(step, (batch,)))
    batches = strategy.experimental_distribute_dataset(tf.data.Dataset.from_tensors(weights()).unbatch().batch(8))
    parts = []
    for batch in batches:
        parts += [strategy.experimental_local_results(run(batch)) for _ in range(calls)]
    return np.stack([np.concatenate(part) for part in parts])


def weights():
    return np.random.default_rng(6).random((8, 16, 16), np.float32)


def main(folder, name):
    if name == "mirrored":  # two devices in place of two GPUs, and one device to compare with
        cpu = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
        tf.distribute.MirroredStrategy = lambda make=tf.distribute.MirroredStrategy: make(["CPU:0", "CPU:1"])
        train(Path(folder, "one-0.npz"), snippet(name).replace("MirroredStrategy", "get_strategy"))
    train(Path(folder, f"{name}-{os.environ.get('RANK', '0')}.npz"), snippet(name))


def train(path, text):
    first, rest = text.split("\n", 1)  # the strategy comes before anything that computes
    space = {"tf": tf, "keras": keras, "make_model": make_model}
    exec(first, space)  # noqa: S102
    space["data"] = make_data()
    exec(rest, space)  # noqa: S102
    np.savez(path, *space["model"].get_weights(), picks=draw(space["strategy"]))


if __name__ == "__main__":
    main(*sys.argv[1:])
