"""The networks of the attention sampling paper's Megapixel-MNIST experiment, and what it is compared with.

Katharopoulos and Fleuret, "Processing Megapixel Images with Deep Attention-Sampling Models", ICML 2019. All models share
one feature network; they differ in what they run it over:

    attention     patches sampled from an attention map that a small network makes of the low-resolution view
    uniform       as many patches, sampled evenly
    mil           all patches of a grid without gaps, weighted by attention over their features (deep MIL: Ilse, Tomczak
                  and Welling, ICML 2018)
    whole         the whole image, as an ordinary convolutional network
    downsampled   the whole image at half the resolution
"""

import torch
from megapixel_mnist_recipe import CLASSES, SAMPLING
from torch import nn
from torch.nn import functional as F

from ats_core.torch import AttentionSampling, MultinomialEntropy, SampleSoftmax, extract_patches

FEATURES = 32  # channels of the convolutions, length of a feature vector
RECEPTIVE_FIELD = 13  # of the feature network's four convolutions
SMOOTH = 1e-5  # part of the attention that is spread evenly
MIL_WIDTH = 128  # hidden units of deep MIL's attention
# Times the learning rate of the feature network. Features have length 1, so that the head must grow long for a confident
# answer; an attention five times as fast lost the digits again before their features meant anything.
HEAD_RATE = 15.0
ATTENTION_RATE = 1.5
SHRINK = 2  # by which the images of "downsampled" are reduced


class AttentionNetwork(nn.Sequential):
    """x_low (B, 1, h, w) in [0, 1] -> attention (B, h, w), positive, summing to 1 over an image."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Tanh(),
            nn.Conv2d(8, 1, 3, padding=1),
            SampleSoftmax(smooth=SMOOTH),
        )


class EvenAttention(nn.Module):
    """x_low (B, 1, h, w) -> the same attention for every cell, (B, h, w)."""

    def forward(self, x_low):
        cells = x_low.shape[2] * x_low.shape[3]
        return torch.full_like(x_low[:, 0], 1 / cells)


class FeatureNetwork(nn.Module):
    """Images (N, 1, h, w) in [0, 1], of any size from 13 x 13 on -> features (N, 32) of length 1."""

    def __init__(self):
        super().__init__()
        widths = (1, FEATURES, FEATURES, FEATURES, FEATURES)
        kernels = (7, 3, 3, 3)
        convolutions = [nn.Conv2d(a, b, k) for a, b, k in zip(widths, widths[1:], kernels, strict=False)]
        self.responses = nn.Sequential(*(layer for conv in convolutions for layer in (conv, nn.ReLU(inplace=True))))

    def forward(self, images):
        return F.normalize(F.adaptive_max_pool2d(self.responses(images), 1).flatten(1), dim=1)


class DeepMIL(nn.Module):
    """Features of all patches (B, n, 32) -> their weighted mean (B, 32)."""

    def __init__(self):
        super().__init__()
        self.score = nn.Sequential(nn.Linear(FEATURES, MIL_WIDTH), nn.Tanh(), nn.Linear(MIL_WIDTH, 1))

    def forward(self, features):
        return (torch.softmax(self.score(features), 1) * features).sum(1)


def grid_origins(size, patch_size):
    """(n, 2): corners of the patches that cover an image of `size` x `size` without gaps; the last may reach beyond."""
    at = torch.arange(0, size, patch_size)
    return torch.cartesian_prod(at, at)


class Classifier(nn.Module):
    """One of the models above and a linear layer: x_low (B, 1, h, w) in [0, 1], x_high (B, 1, H, W) uint8 -> logits (B, 10)."""

    def __init__(self, options):
        super().__init__()
        self.kind, self.patch_size = options.model, options.patch_size
        self.feature = FeatureNetwork()
        if self.kind in SAMPLING:
            self.ats = AttentionSampling(
                AttentionNetwork() if self.kind == "attention" else EvenAttention(),
                self.feature,
                options.patch_size,
                options.n_patches,
                estimator=options.estimator,
                replace=options.estimator == "iid",
                attention_regularizer=MultinomialEntropy(options.entropy) if options.entropy else None,
                std=255.0,
            )
        elif self.kind == "mil":
            self.pool = DeepMIL()
        self.head = nn.Linear(FEATURES, CLASSES)
        start_as_keras(self)

    @property
    def regularization(self):
        """What the last call in training adds to the loss."""
        return self.ats.regularization if self.kind in SAMPLING else 0.0

    def forward(self, x_low, x_high, rng=None):
        return self.head(self.features(x_low, x_high, rng))

    def features(self, x_low, x_high, rng):
        if self.kind in SAMPLING:
            return self.ats(x_low, x_high, rng=rng).features
        if self.kind == "mil":
            origins = grid_origins(x_high.shape[2], self.patch_size).expand(len(x_high), -1, -1)
            patches = extract_patches(x_high, origins, self.patch_size, std=255.0)
            return self.pool(self.feature(patches.flatten(0, 1)).unflatten(0, patches.shape[:2]))
        images = x_high.float() / 255
        return self.feature(F.avg_pool2d(images, SHRINK) if self.kind == "downsampled" else images)


def optimizer(model, lr, head_rate=HEAD_RATE, attention_rate=ATTENTION_RATE):
    """Adam; the head and the attention network take larger steps than the feature network, whose rate is `lr`."""
    feature, head = list(model.feature.parameters()), list(model.head.parameters())
    groups = [{"params": feature, "lr": lr}, {"params": head, "lr": head_rate * lr}]
    if model.kind == "attention":
        groups.append({"params": list(model.ats.attention.parameters()), "lr": attention_rate * lr})
    elif model.kind == "mil":
        groups.append({"params": list(model.pool.parameters()), "lr": lr})
    return torch.optim.Adam(groups)


def start_as_keras(model):
    """Initial weights as in the paper's code, which has Keras's: uniform after Glorot, biases 0."""
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
