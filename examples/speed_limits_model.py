"""The networks of the speed limit classifier, in Keras, and how its images come to them."""

from typing import NamedTuple

import keras
import numpy as np
from keras import layers
from speed_limits_data import CLASSES

from ats_core.keras import (
    ImageLinearTransform,
    ImagePan,
    L2Normalize,
    ResizeImages,
    SamplePatches,
    SampleSoftmax,
    attention_sampling,
    multinomial_entropy,
)

WEIGHT_DECAY = 1e-5
UNIFORM_SHARE = 1e-4  # part of the attention that is spread evenly
RECEPTIVE_FIELD = 9  # of the attention network's convolutions, in pixels of the small view
POOL = 8  # pixels of the small view along the side of a cell of the attention
WIDTH = 32  # channels of the feature network
STRIDES = (1, 2, 2, 2)


class Elements:
    """`SpeedLimitImages` as pairs: image (height, width, 3) uint8, class as (4,) float32 with a one.

    uint8 as long as possible: a batch of 32 images of 960 x 1280 takes 118 MB, as float32 470 MB.
    """

    def __init__(self, images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        return self.images.read(i), np.eye(len(CLASSES), dtype=np.float32)[self.images.classes[i]]


def attention_network():
    """x_low (B, h, w, 3) -> attention (B, (h - 8) // 8, (w - 8) // 8), positive, summing to 1 over an image."""
    common = {"activation": "relu", "kernel_regularizer": keras.regularizers.L2(WEIGHT_DECAY)}
    return keras.Sequential(
        [
            layers.Conv2D(8, 3, **common),
            layers.Conv2D(16, 3, **common),
            layers.Conv2D(32, 3, **common),
            layers.Conv2D(1, 3),
            layers.MaxPooling2D(POOL),
            SampleSoftmax(squeeze_channels=True, smooth=UNIFORM_SHARE),
        ],
        name="attention",
    )


def feature_network(patch_size):
    """Patches (N, *patch_size, 3) -> features (N, 32) of length 1, by a small residual network."""
    x = patches = keras.Input((*patch_size, 3))
    x = _convolution(x, 3, STRIDES[0])
    for stride in STRIDES[1:]:
        x = _activated(x)
        short = _convolution(x, 1, stride)
        x = _activated(_convolution(x, 3, stride))
        x = layers.add([_convolution(x, 3, 1), short])
    x = layers.GlobalAveragePooling2D()(_activated(x))
    return keras.Model(patches, L2Normalize()(x), name="feature")


def _convolution(x, kernel, stride):
    return layers.Conv2D(WIDTH, kernel, strides=stride, padding="same", use_bias=False)(x)


def _activated(x):
    # Keras's 0.99 takes hundreds of steps to follow; an epoch has about 30, and tests would lag behind the training
    return layers.ReLU()(layers.BatchNormalization(momentum=0.9)(x))


class Look(NamedTuple):
    """What the network saw on a batch, as NumPy arrays, for the figure."""

    attention: np.ndarray  # (B, h, w)
    origins: np.ndarray  # (B, n, 2) top left corners in the image
    weights: np.ndarray  # (B, n) attention of the cells drawn
    probabilities: np.ndarray  # (B, 4)


class Classifier:
    """The classifier for images of `shape` (height, width), with the options of the command line.

    Attributes:
        model: images (B, height, width, 3) uint8 -> probabilities (B, 4), compiled.
    """

    def __init__(self, shape, options):
        self.options = options
        image = keras.Input((*shape, 3), dtype="uint8")
        x = layers.Rescaling(1 / 255)(image)  # from here on float32, which is most of the memory that a training takes
        x = ImageLinearTransform()(x)
        x_high = ImagePan(options.pan, horizontally=True, vertically=True)(x)
        x_low = ResizeImages(low_shape(shape, options.scale))(x_high)
        self.sampling = attention_sampling(
            attention_network(),
            feature_network((options.patch_size, options.patch_size)),
            options.patch_size,
            options.n_patches,
            replace=options.estimator == "iid",
            attention_regularizer=multinomial_entropy(options.entropy),
            receptive_field=RECEPTIVE_FIELD,
            estimator=options.estimator,
        )
        self.head = layers.Dense(len(CLASSES), activation="softmax", name="head")
        features, _, _ = self.sampling([x_low, x_high])
        self.model = keras.Model(image, self.head(features))
        self.views = keras.Model(image, [x_low, x_high])
        self.model.compile(
            # of all weights together, as in the original: what Keras 2 called clipnorm is global_clipnorm in Keras 3
            keras.optimizers.Adam(options.lr, global_clipnorm=options.clipnorm or None),
            loss="categorical_crossentropy",
            metrics=["accuracy"],
        )

    def look(self, images, rng):
        """The attention on images (B, height, width, 3) uint8, the patches of `rng` = (seed, offset), what they say."""
        views = self.views(images, training=False)
        features, attention, _ = self.sampling(views, rng=rng, training=False)
        options = self.options
        sampler = SamplePatches(
            options.n_patches, options.patch_size, RECEPTIVE_FIELD, replace=options.estimator == "iid", details=True
        )
        _, weights, _, origins, _ = sampler([*views, attention], rng=rng)
        return Look(*map(keras.ops.convert_to_numpy, (attention, origins, weights, self.head(features))))


def low_shape(shape, scale):
    """Size of the small view that the attention network gets."""
    return int(shape[0] * scale), int(shape[1] * scale)


def grid(shape, scale):
    """Cells of the attention."""
    return tuple((side - RECEPTIVE_FIELD + 1) // POOL for side in low_shape(shape, scale))
