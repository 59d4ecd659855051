"""Small models that attend to sources, and files for them; programs that are loaded by name need it in a module."""

import ctypes
import os

import numpy as np
import torch
from torch import nn

import ats_core.torch as ats


class Classifier(nn.Module):
    """Of images, unless `axes` says otherwise."""

    def __init__(self, axes=2, channels=3, outputs=2, low_size=64, patch_size=24, scales=None, field=0, **options):
        super().__init__()
        torch.manual_seed(0)
        convolution = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
        width = channels * (1 if scales is None else len(scales))
        attention = nn.Sequential(
            ats.Normalize(127.0, 64.0),
            convolution(channels, 4, 3, padding=0 if field else 1),
            nn.Tanh(),
            convolution(4, 1, 1),
            ats.SampleSoftmax(0.1),
        )
        feature = nn.Sequential(convolution(width, 6, 3, 2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
        feature(torch.zeros(1, width, *(patch_size,) * axes))
        options = {"n_patches": 6, "mean": 127.0, "std": 64.0, **options}
        self.sampling = ats.AttentionSampling(
            attention, feature, patch_size, scales=scales, receptive_field=field, **options
        )
        self.head = nn.Linear(5, outputs)
        if low_size is not None:
            self.low_size = low_size

    def forward(self, x_low, x_high):
        return self.head(self.sampling(x_low, x_high).features)


class Fragile(Classifier):
    """Says in a file at what it looks, in which process, with how many threads. A white image crashes it."""

    def __init__(self, log):
        super().__init__()
        self.log = log

    def forward(self, x_low, x_high):
        with open(self.log, "a", errors="backslashreplace") as stream:
            stream.write(f"{os.path.basename(x_high[0].name)} {os.getpid()} {torch.get_num_threads()}\n")
        if x_low.min() == 255:
            ctypes.string_at(0)  # a segmentation fault
        return super().forward(x_low, x_high)


def make():
    return Classifier()


def write_slide(path, shape=(300, 420), seed=0, levels=3):
    """A tiled pyramid; half a micrometre a pixel. Returns its levels."""
    import tifffile

    generator = np.random.default_rng(seed)
    image = generator.integers(0, 255, (shape[0] // 4 + 1, shape[1] // 4 + 1, 3), np.uint8)
    image = image.repeat(4, 0).repeat(4, 1)[: shape[0], : shape[1]]
    pyramid = [image[:: 2**k, :: 2**k] for k in range(levels)]
    common = {"tile": (64, 64), "photometric": "rgb", "compression": "zlib"}
    with tifffile.TiffWriter(path) as writer:
        for number, level in enumerate(pyramid):
            writer.write(
                level,
                subifds=levels - 1 if number == 0 else 0,
                subfiletype=int(number > 0),
                resolution=(20_000, 20_000),
                resolutionunit="CENTIMETER",
                **common,
            )
    return pyramid
