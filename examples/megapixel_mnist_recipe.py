"""What the Megapixel-MNIST classifier is made of and how it is trained, whatever the framework."""

import math
from typing import NamedTuple

import numpy as np

CLASSES = 10
FEATURES = 64  # length of a patch's feature vector
WIDTH = 16  # channels of the first convolutions
# (channels, kernel) of the feature network's convolutions, each of stride 2
FEATURE_LAYERS = ((WIDTH, 5), (2 * WIDTH, 3), (4 * WIDTH, 3))
# Length of every feature vector. Attention and features start out useless to each other. With features of free length
# the attention narrowed before anything was learned, and the loss stayed at log 10. One length for all patches stopped
# that, and a large one lets the few patches that show a digit be heard among the rest of the sample.
FEATURE_NORM = 32.0
UNIFORM_SHARE = 0.01  # part of the attention that is spread evenly, so that no cell is ever out of reach
WARMUP_STEPS = 100

# What --paper sets: the paper's experiment, and how it is trained here (docs/megapixel_mnist.md).
PAPER = {
    "size": 1500,
    "noise": 50,
    "digits": "mnist",
    "n_train": 5000,
    "n_test": 1000,
    "fresh": False,
    "downsample": 25 / 3,  # 1500 to 180
    "patch_size": 50,
    "n_patches": 10,
    "entropy": 1e-4,
    "epochs": 25,
    "batch_size": 32,
    "lr": 2e-3,
    "first_patches": 40,
    "first_epochs": 3,
}
PAPER_WARMUP = 0.057  # share of the training in which the learning rate goes up
# Models of --paper: attention sampling and what it is compared with (megapixel_mnist_paper.py)
MODELS = "attention", "uniform", "mil", "whole", "downsampled"
SAMPLING = "attention", "uniform"  # those that draw patches


class Look(NamedTuple):
    """What the network saw on a batch, as NumPy arrays, for the figures."""

    attention: np.ndarray  # (B, h, w)
    patches: np.ndarray  # (B, n, p, p) uint8
    origins: np.ndarray  # (B, n, 2) top left corners in x_high
    weights: np.ndarray  # (B, n) attention of the cells drawn
    predictions: np.ndarray  # (B,)


def warmup_and_cosine(step, steps, warmup=None):
    """Share of the learning rate at a step: up in the first steps, then down to zero along a cosine.

    `warmup` is the share of the steps in which it goes up; by default 100 steps and no more than a tenth.
    """
    warmup = min(WARMUP_STEPS, steps // 10) if warmup is None else int(warmup * steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
