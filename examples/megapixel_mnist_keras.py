"""The Megapixel-MNIST classifier in Keras 3, on the backend that Keras has: what `megapixel_mnist_torch` is in PyTorch."""

import math

import keras
import numpy as np
from keras import layers
from keras_training import read_checkpoint, restore, set_up, state, write_checkpoint
from megapixel_mnist_recipe import (
    CLASSES,
    FEATURE_LAYERS,
    FEATURE_NORM,
    FEATURES,
    UNIFORM_SHARE,
    WIDTH,
    Look,
    warmup_and_cosine,
)

from ats_core.keras import L2Normalize, SamplePatches, SampleSoftmax, attention_sampling, multinomial_entropy

__all__ = ["Backend", "read_checkpoint", "write_checkpoint"]


def convolution(inputs, channels, kernel, **options):
    """A convolution that starts with weights as PyTorch's do, uniform within 1 / sqrt(inputs of one output)."""
    bound = 1 / math.sqrt(kernel**2 * inputs)
    return layers.Conv2D(
        channels,
        kernel,
        kernel_initializer=keras.initializers.RandomUniform(-bound, bound),
        bias_initializer=keras.initializers.RandomUniform(-bound, bound),
        **options,
    )


def attention_network():
    """x_low (B, h, w, 1) in [0, 1] -> attention (B, h, w), positive, summing to 1 over an image."""
    return keras.Sequential(
        [
            convolution(1, WIDTH, 3, padding="same", activation="relu"),
            convolution(WIDTH, WIDTH, 3, padding="same", activation="relu"),
            convolution(WIDTH, WIDTH, 3, padding="same", activation="relu"),
            convolution(WIDTH, 1, 1),
            SampleSoftmax(squeeze_channels=True, smooth=UNIFORM_SHARE),
        ],
        name="attention",
    )


def dense_features(patch_size):
    """Images (N, H, W, 1) -> features (N, h, w, 64) of length `FEATURE_NORM`, one for every patch, every 8 pixels."""
    network = [keras.Input((None, None, 1)), layers.Rescaling(1 / 128)]
    side, channels = patch_size, 1
    for width, kernel in FEATURE_LAYERS:
        # not padding="same": with a stride of 2 that pads one side more than the other
        network += [
            layers.ZeroPadding2D(kernel // 2),
            convolution(channels, width, kernel, strides=2, use_bias=False),
            layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
            layers.ReLU(),
        ]
        side, channels = (side + 1) // 2, width
    network += [convolution(channels, FEATURES, side), L2Normalize(), layers.Rescaling(FEATURE_NORM)]
    return keras.Sequential(network, name="feature")


class Backend:
    """What the training loop needs of a framework. Takes NumPy batches; `rng` is (seed, number of the first image).

    `options` are those of the command line; `steps` is the length of the whole training, for the learning rate.
    """

    def __init__(self, options, steps):
        set_up(options)
        self.options = options
        self.steps = steps
        dense = dense_features(options.patch_size)
        self.sampling = attention_sampling(
            attention_network(),
            lambda patches: layers.Flatten()(dense(patches)),
            options.patch_size,
            options.n_patches,
            estimator=options.estimator,
            replace=options.estimator == "iid",
            attention_regularizer=multinomial_entropy(options.entropy) if options.entropy else None,
        )
        # start from "every class alike": with features this long, random logits would be confidently wrong
        head = layers.Dense(CLASSES, kernel_initializer="zeros", name="head")

        x_low = keras.Input((None, None, 1), name="x_low")
        x_high = keras.Input((None, None, 1), dtype="uint8", name="x_high")
        # Inputs have a batch axis: every image brings the batch's (seed, number of its first image).
        rng = keras.Input((2,), dtype="int64", name="rng")
        features, attention, _ = self.sampling([x_low, x_high], rng=rng[0])
        self.model = self._compile([x_low, x_high, rng], head(features))
        self.attention = keras.Model(x_low, attention)
        # what attention sampling saves: the same feature network over all of x_high, averaged, classified
        everything = head(layers.GlobalAveragePooling2D()(dense(x_high)))
        self.whole_image = self._compile([x_low, x_high, rng], everything)

    def _compile(self, inputs, logits):
        model = keras.Model(inputs, logits)
        model.compile(
            keras.optimizers.Adam(self.options.lr, epsilon=1e-8),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            # the loss has the regulariser in it
            metrics=[keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="cross_entropy")],
        )
        return model

    def train_step(self, x_low, x_high, labels, rng):
        """One optimiser step on a batch; returns the mean cross-entropy."""
        step = int(self.model.optimizer.iterations)
        self.model.optimizer.learning_rate = self.options.lr * warmup_and_cosine(step, self.steps)
        logs = self.model.train_on_batch(_inputs(x_low, x_high, rng), labels, return_dict=True)
        return float(logs["cross_entropy"])

    def predict(self, x_low, x_high, rng):
        """Logits (B, 10) of a batch."""
        return np.asarray(self.model.predict_on_batch(_inputs(x_low, x_high, rng)))

    def look(self, x_low, x_high, rng):
        """The attention, the patches and the predictions of `predict` with the same `rng`, as a `Look`."""
        predictions = self.predict(x_low, x_high, rng).argmax(1)
        x_low, x_high, _ = _inputs(x_low, x_high, rng)
        attention = self.attention.predict_on_batch(x_low)
        sampler = SamplePatches(
            self.options.n_patches, self.options.patch_size, replace=self.options.estimator == "iid", details=True
        )
        drawn = sampler([x_low, x_high, keras.ops.convert_to_tensor(attention)], rng=rng)
        patches, weights, _, origins, _ = map(keras.ops.convert_to_numpy, drawn)
        return Look(np.asarray(attention), patches.squeeze(-1).astype(np.uint8), origins, weights, predictions)

    def state(self):
        """What a resumed training needs."""
        return state(self.model)

    def restore(self, arrays):
        """Continue from what `state` returned."""
        restore(self.model, arrays)

    def save_weights(self, path):
        self.model.save_weights(path)

    def costs(self, variant, x_low, x_high, labels):
        """(training step, inference) on one batch, as functions without arguments.

        `variant` is "attention sampling" or "whole image".
        """
        model = {"attention sampling": self.model, "whole image": self.whole_image}[variant]
        inputs = _inputs(x_low, x_high, (0, 0))
        return lambda: model.train_on_batch(inputs, labels), lambda: model.predict_on_batch(inputs)


def _inputs(x_low, x_high, rng):
    """The model's inputs: channels last, and `rng` for every image."""
    channels_last = [images.transpose(0, 2, 3, 1) for images in (x_low, x_high)]
    return [*channels_last, np.tile(np.array(rng, np.int64), (len(x_low), 1))]
