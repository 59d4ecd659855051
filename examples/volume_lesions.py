"""What kind of lesion is in a large volume? It is some voxels wide, as bright as the vessels around it.

    python volume_lesions.py --out volume-output

The attention network sees the means of 8 x 8 x 8 voxels; patches of the voxels themselves tell a solid lesion from a hollow
one. Beside it: the same feature network on patches drawn evenly, and on all voxels.
"""

import sys

import numpy as np
from command_line import OptionError, exit_code
from patch_tasks import FEATURES, Run, Task, check_options, parser
from torch import nn

from ats_core import plot

STEP = 8  # voxels of each axis to one of the view
PATCH = 20
RADIUS = 5
VESSELS = 5  # a volume
VESSEL = 24  # voxels long
NOISE = 24.0  # standard deviation, of 255
CONTRAST = 2.0  # mean of a lesion over that
TISSUE = 80
CLIP = 5.0
SHIFT = 32  # voxels of noise more than a volume has, on each axis
KINDS = ("solid", "hollow", "split")


def lesions():
    """One of each kind, (PATCH,) * 3 of mean 1 over the ball's volume."""
    z, y, x = np.mgrid[:PATCH, :PATCH, :PATCH] - (PATCH - 1) / 2
    r = np.sqrt(z * z + y * y + x * x)
    ball = r < RADIUS
    shapes = [ball, ball & (r > RADIUS - 1.6), ball & (np.abs(x) > 1.5)]
    return [shape * (ball.sum() / shape.sum()) for shape in shapes]


def vessels(rng, n=64):
    """Tubes in n directions, (n, VESSEL, VESSEL, VESSEL)."""
    points = np.stack(np.mgrid[:VESSEL, :VESSEL, :VESSEL], -1) - (VESSEL - 1) / 2
    directions = rng.standard_normal((n, 3))
    along = points @ (directions / np.linalg.norm(directions, axis=1, keepdims=True)).T
    away = np.sqrt(np.maximum(np.square(points).sum(-1)[..., None] - along**2, 0))
    return np.moveaxis(1.2 * (away < 2.5), -1, 0)


class Volumes:
    """`n` volumes, decided by `seed`; what lies where is stored, voxels are put together for a batch."""

    def __init__(self, n, size, seed):
        rng = np.random.default_rng(seed)
        self.size, self.lesions, self.vessels = size, lesions(), vessels(rng)
        noise = rng.standard_normal((size + SHIFT,) * 3, np.float32)
        self.noise = np.clip(TISSUE + NOISE * noise, 0, 255).astype(np.uint8)
        self.labels = rng.integers(len(KINDS), size=n)
        self.shift = rng.integers(SHIFT, size=(n, 3))
        self.at = rng.integers(size - PATCH, size=(n, 3))
        self.vessel_ids = rng.integers(len(self.vessels), size=(n, VESSELS))
        self.vessels_at = rng.integers(size - VESSEL, size=(n, VESSELS, 3))

    def volume(self, row):
        """(size, size, size) uint8."""
        voxels = self.noise[tuple(slice(first, first + self.size) for first in self.shift[row])].copy()
        things = [(self.at[row], self.lesions[self.labels[row]])]
        things += zip(self.vessels_at[row], self.vessels[self.vessel_ids[row]], strict=True)
        for at, thing in things:
            place = tuple(slice(first, first + n) for first, n in zip(at, thing.shape, strict=True))
            voxels[place] = np.clip(voxels[place] + CONTRAST * NOISE * thing, 0, 255)
        return voxels

    def batch(self, rows):
        """x_low (B, 1, *low), means of STEP**3 voxels; x_high (B, 1, *size) uint8; labels (B,)."""
        x = np.stack([self.volume(row) for row in rows])
        sums, low = x, self.size // STEP
        for axis in (1, 2, 3):
            parts = (*sums.shape[:axis], low, STEP, *sums.shape[axis + 1 :])
            sums = sums.reshape(parts).sum(axis + 1, dtype=np.uint32)
        # what is brighter than tissue ever is stands out alike
        view = np.minimum((sums - sums.mean()) / sums.std(), CLIP).astype(np.float32)
        return view[:, None], x[:, None], self.labels[rows]


class Lesions(Task):
    classes = KINDS
    conv = nn.Conv3d
    patch_size = (PATCH,) * 3
    prior = 1.5

    def data(self, options, n, seed):
        return Volumes(n, options.size, seed)

    def feature(self):
        layers = []
        for inputs, outputs in ((1, 16), (16, FEATURES)):
            layers += [nn.Conv3d(inputs, outputs, 3, 2, 1), nn.BatchNorm3d(outputs), nn.ReLU()]
        return nn.Sequential(nn.BatchNorm3d(1), *layers, nn.AdaptiveMaxPool3d(1), nn.Flatten())

    def picture(self, x_high, attention, origins, probabilities):
        return plot.overlay(x_high[0, ..., None], attention, origins, self.patch_size, probabilities, size=512)


def start(argv):
    p = parser(__doc__, 512, 6, 10, "volume-output")
    p.add("--size", 128, f"voxels of each axis, a multiple of {STEP}")
    options = p.parse_args(argv)
    if options.size % STEP:
        raise OptionError(f"--size must be a multiple of {STEP}, got {options.size}")
    check_options(options, {"size": 32}, {"size": 512}, lambda options: (options.size // STEP) ** 3)
    return Run(Lesions(), options)


def main(argv=None):
    return exit_code("volume_lesions.py", start, Run.work, argv)


if __name__ == "__main__":
    sys.exit(main())
