"""What the model of the gigapixel example saw of the unseen slide: a picture, and how much of it was lesions."""

import numpy as np
from PIL import Image

from ats_core import plot

SIDE, PATCHES = 640, 10  # pixels along the side of the two large pictures, and patches below them
BOX = 9  # pixels along the side of a box on the whole slide, where a patch would be too small to be seen


def hits(attended, lesions):
    """Which patches touch a lesion, (n,)."""
    at = np.array([(lesion.y, lesion.x) for lesion in lesions])
    radius = np.array([lesion.radius for lesion in lesions])
    low = attended.origins[:, None]
    nearest = np.clip(at, low, low + np.array(attended.patch_size))  # the point of each patch next to each lesion
    return (np.hypot(*np.moveaxis(nearest - at, -1, 0)) < radius).any(1)


def overview(attended, source, path):
    """The slide with attention and boxes, the part with most patches close by, and the patches of most attention."""
    whole, downsample = source.thumbnail(SIDE)
    centres = attended.origins + np.array(attended.patch_size) / 2
    pictures = [
        plot.overlay(
            whole, attended.attention, centres / downsample - BOX / 2, (BOX, BOX), attended.probabilities, size=SIDE
        )
    ]
    # The part begins and ends at cells of the attention.
    grid = np.array(attended.attention.shape)
    cell = np.array(source.shape) / grid
    part = np.maximum(1, grid // 10)
    corners = np.clip((centres / cell).astype(int) - part // 2, 0, grid - part)
    inside = [((centres >= corner * cell) & (centres < (corner + part) * cell)).all(1).sum() for corner in corners]
    corner = corners[np.argmax(inside)]
    origin, size = np.rint(corner * cell).astype(int), np.rint(part * cell).astype(int)
    close, downsample = source.crop(origin, size).thumbnail(SIDE)
    heat = attended.attention[tuple(slice(first, first + n) for first, n in zip(corner, part, strict=True))]
    boxes = (attended.origins - origin) / downsample, np.array(attended.patch_size) / downsample
    pictures.append(plot.overlay(close, heat, *boxes, attended.probabilities, size=SIDE))
    first = np.argsort(-attended.probabilities, kind="stable")[:PATCHES]
    gap = 8
    tile = (2 * SIDE + gap - (PATCHES - 1) * gap) // PATCHES
    tiles = [plot.draw_image(attended.patches[i, 0], size=tile) for i in first]
    sheet = plot.montage(
        [plot.montage(pictures, columns=2, gap=gap), plot.montage(tiles, columns=PATCHES, gap=gap)], columns=1, gap=gap
    )
    Image.fromarray(sheet).save(path, quality=85)
