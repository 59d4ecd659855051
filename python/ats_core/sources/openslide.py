"""Whole slides in the formats of scanners, through OpenSlide."""

from __future__ import annotations

import functools
import os
from typing import Any

import numpy as np

from ats_core._arguments import Array
from ats_core.sources.errors import require
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, FileSource

TILE = 512
BEFORE = 128
WHITE = (255, 255, 255)


@functools.lru_cache(maxsize=1)
def _cache(process: int) -> Any:
    """OpenSlide's own cache, one for all slides of a process. What is read again is in ours; tiles here only overlap."""
    return require("openslide", "slides").OpenSlideCache(32 << 20)


class OpenSlideSource(FileSource):
    """A slide: uint8 RGB. What the scanner left out has the slide's background colour, white unless it says another.

    OpenSlide places regions of coarser levels in pixels of level 0, and moves a region that then begins between two
    pixels of its level by a fraction of a pixel. Where a level's size is no divisor of level 0's, tiles are read from a
    little earlier on, so that what is left of this is next to nothing.
    """

    backend = "openslide"

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require("openslide", "slides")
        super().__init__(path)

    def _open(self) -> Any:
        self._check_stamp()
        openslide = require("openslide", "slides")
        slide = openslide.OpenSlide(self._path)
        slide.set_cache(_cache(os.getpid()))
        return slide

    def _describe(self, handle: Any) -> Description:
        openslide = require("openslide", "slides")
        properties = handle.properties
        tiles = []
        for level in range(handle.level_count):
            sizes = [properties.get(f"openslide.level[{level}].tile-{axis}") for axis in ("height", "width")]
            known = [int(size) if size else TILE for size in sizes]
            # Strips and tiny tiles are read several at a time, whole ones of them.
            least = 128 if handle.level_downsamples[level].is_integer() else TILE
            tiles.append([size if size >= least else size * (TILE // size) for size in known])
        mpp = [properties.get(name) for name in (openslide.PROPERTY_NAME_MPP_Y, openslide.PROPERTY_NAME_MPP_X)]
        color = properties.get(openslide.PROPERTY_NAME_BACKGROUND_COLOR)
        background = tuple(bytes.fromhex(color)) if color else WHITE
        return Description(
            axes="yx",
            dtype="uint8",
            channels=3,
            shapes=[size[::-1] for size in handle.level_dimensions],
            tiles=[[min(n, 4096) for n in tile] for tile in tiles],
            spacing=[float(value) if value else None for value in mpp],
            units=["um" if value else None for value in mpp],
            private=(tuple(handle.level_downsamples), background),
        )

    def _read_tile(self, handle: Any, level: int, index: Shape) -> Array:
        downsamples, background = self._private
        start, stop = self._tile_ends(level, index)
        ratio = downsamples[level]
        begin = [_exact(first, ratio) for first in start]
        place = [round(first * ratio) for first in reversed(begin)]
        size = [last - first for first, last in zip(reversed(begin), reversed(stop), strict=True)]
        pixels: Array = np.asarray(handle.read_region(place, level, size))
        pixels = pixels[start[0] - begin[0] :, start[1] - begin[1] :]
        alpha = pixels[..., 3:]
        if alpha.min() == 255:
            return np.ascontiguousarray(pixels[..., :3])
        mixed = pixels[..., :3] * (alpha / 255.0) + np.array(background) * (1 - alpha / 255.0)
        return np.rint(mixed).astype(np.uint8)


def _exact(pixel: int, ratio: float) -> int:
    """A pixel of a level, at most BEFORE before the given one, that begins where a pixel of level 0 begins, if any."""
    if ratio == round(ratio):
        return pixel
    places = np.arange(pixel, max(-1, pixel - BEFORE - 1), -1) * ratio
    return pixel - int(np.abs(places - np.rint(places)).argmin())
