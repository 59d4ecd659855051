"""The paper's feature network on images without noise, computed only where digits stand: the same features, sooner.

What the network answers to a black image is one vector; elsewhere it is needed around the digits only, once for all the
patches that show a digit. Behind the global maximum no more than 32 positions of a patch have a gradient, so only their
13 x 13 windows are computed again to be differentiated. `test_megapixel_mnist.py` compares features and gradients
with those of whole patches.
"""

from typing import NamedTuple

import numpy as np
import torch
from megapixel_mnist_data import PER_IMAGE
from megapixel_mnist_paper import RECEPTIVE_FIELD
from torch import Tensor
from torch.nn import functional as F

from ats_core.torch import extract_patches

MARGIN = RECEPTIVE_FIELD - 1
COMPOSED = 64  # images composed at a time
CROPS = 16  # that go through the network at a time, so that their responses stay in the cache
PAIRS = 256  # pairs of a patch and a digit looked at at a time


class Batch(NamedTuple):
    """Images as crops around their digits."""

    x_low: Tensor  # (B, 1, low, low) float32 in [0, 1]
    crops: Tensor  # (B, 5, 1, c, c) from 0 to 255: all pixels that a response to a digit's ink depends on
    at: Tensor  # (B, 5, 2) the crops' corners in the image; those of the responses, too
    labels: Tensor  # (B,)


def crop_images(images, shrink=1):
    """All of a `MegapixelMNIST` without noise, as one `Batch`; `shrink` reduces the images, by means of pixels."""
    if images.line_ids.shape[1]:
        raise ValueError("only images without noise are black between the digits")
    corner, ink = _ink(images.digits.images)
    at = (images.digit_at + corner[images.digit_ids]) // shrink - MARGIN
    side = (ink - 1) // shrink + 1 + (shrink > 1) + 2 * MARGIN  # reduced, ink may begin and end within a pixel
    parts = []
    for first in range(0, len(images), COMPOSED):
        rows = np.arange(first, min(first + COMPOSED, len(images)))
        x_low, x_high, labels = map(torch.from_numpy, images.batch(rows))
        origins = torch.from_numpy(at[rows])
        if shrink > 1:
            x_high = F.avg_pool2d(x_high.float(), shrink)
        parts.append(Batch(x_low, extract_patches(x_high, origins, side), origins, labels))
    return Batch(*map(torch.cat, zip(*parts, strict=True)))


def _ink(digits):
    """(corner (D, 2) of each digit's ink, pixels along the side of the largest)."""
    corners, ends = [], []
    for axis in (2, 1):  # rows, then columns
        some = digits.any(axis=axis)
        corners.append(some.argmax(axis=1))
        ends.append(some.shape[1] - some[:, ::-1].argmax(axis=1))
    corner, end = np.stack(corners, 1), np.stack(ends, 1)
    return corner, int((end - corner).max())


def feature_maxima(responses, batch, origins, side):
    """Maxima (B, n, 32) of `responses` over the windows (`side` pixels) of the images at `origins` (B, n, 2).

    Equal to `responses(windows).amax((2, 3))`, pixels beyond the image black, as long as a window has a black part.
    """
    n = origins.shape[1]
    dtype = next(responses.parameters()).dtype
    positions = side - MARGIN  # responses of a window along its side
    block = batch.crops.shape[-1] - MARGIN  # those of a crop
    offset = origins[:, :, None] - batch.at[:, None]  # (B, n, 5, 2) where the window begins in the crop's responses
    image, window, digit = ((offset < block) & (offset > -positions)).all(3).nonzero(as_tuple=True)
    shown, crop_of_pair = torch.unique(image * PER_IMAGE + digit, return_inverse=True)
    crops = (batch.crops.flatten(0, 1)[shown].to(dtype) / 255).contiguous(memory_format=torch.channels_last)
    black = crops.new_zeros(1, 1, RECEPTIVE_FIELD, RECEPTIVE_FIELD)
    with torch.no_grad():
        nothing = responses(black).flatten()
        best = nothing.new_full((len(origins) * n, PER_IMAGE + 1, len(nothing)), -1.0)
        best[:, PER_IMAGE] = nothing
        place = torch.full(best.shape, len(shown) * block**2)  # the black window's
        everywhere = torch.cat([responses(part) for part in crops.split(CROPS)])
        steps = torch.arange(block)
        for pairs in torch.arange(len(image)).split(PAIRS):
            begin = offset[image[pairs], window[pairs], digit[pairs]][:, :, None]
            rows, columns = ((steps >= begin) & (steps < begin + positions)).unbind(1)
            outside = ~(rows[:, :, None] & columns[:, None])
            found = everywhere[crop_of_pair[pairs]].masked_fill(outside[:, None], -1.0).flatten(2).max(2)
            where = image[pairs] * n + window[pairs], digit[pairs]
            best[where] = found.values
            place[where] = found.indices + crop_of_pair[pairs, None] * block**2
        place = place.gather(1, best.argmax(1, keepdim=True)).squeeze(1)
    places, number = torch.unique(place, return_inverse=True)
    crop, position = places // block**2, places % block**2
    digits = crop < len(shown)
    looks = black.expand(len(places), -1, -1, -1).clone()
    every = crops.unfold(2, RECEPTIVE_FIELD, 1).unfold(3, RECEPTIVE_FIELD, 1)[:, 0]
    looks[digits, 0] = every[crop[digits], position[digits] // block, position[digits] % block]
    values = responses(looks.contiguous(memory_format=torch.channels_last)).flatten(1)
    return values[number, torch.arange(values.shape[1])].unflatten(0, (len(origins), n))


def features(network, batch, origins, side):
    """What a `FeatureNetwork` makes of those windows: (B, n, 32), of length 1."""
    return F.normalize(feature_maxima(network.responses, batch, origins, side), dim=-1)
