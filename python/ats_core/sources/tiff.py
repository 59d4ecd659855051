"""TIFF, BigTIFF and OME-TIFF: tiled or striped, with or without a pyramid."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, SupportsIndex

import numpy as np

from ats_core._arguments import Array, to_int
from ats_core.sources.array import MappedFile
from ats_core.sources.errors import SourceError, require
from ats_core.sources.layout import Layout, native, to_layout
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, FileSource

# tifffile's letters: samples are channels, and a sequence of pages without a meaning is a stack.
LETTERS = {"S": "c", "C": "c", "I": "z", "Q": "z"}
RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}  # micrometres in an inch and a centimetre
OME_UNITS = {"µm": "um", "um": "um", "mm": "mm", "nm": "nm", "cm": "cm", "m": "m"}

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what is wrong with a file is said in errors


@dataclass(frozen=True)
class _LevelPlan:
    """How the pages of a level make it up."""

    layout: Layout
    outer: Shape  # shape of the stored axes that pages are counted along
    tile: Shape | None = None  # of a page (depth, length, width); None: one plain array in the file
    across: int = 1  # tiles in a row
    segments: int = 1  # tiles in a plane
    planes: int = 1  # of a page, if they are stored one after the other
    samples: int = 1  # of a tile


class _File:
    """An open file. Segments are read with pread: threads need no lock, and processes do not share a position."""

    def __init__(self, path: str) -> None:
        tifffile = require("tifffile", "tiff")
        self.lock = threading.Lock()
        self.arrays: dict[int, MappedFile] = {}
        self.pages: dict[tuple[int, int], Any] = {}
        self.levels: list[Any] = []
        self.size = os.path.getsize(path)
        self.tiff = tifffile.TiffFile(path)
        try:
            self.descriptor = os.open(path, os.O_RDONLY)
        except BaseException:
            self.tiff.close()
            raise

    def close(self) -> None:
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
        self.tiff.close()
        for array in self.arrays.values():
            array.close()


class TiffSource(FileSource):
    """A TIFF file. Its tiles or strips are the tiles; JPEG and other compressions need imagecodecs (in the extra).

    Pages of a stack become axis z, or t where the file says so. Levels are those of an OME-TIFF's SubIFDs and of the
    pyramids of slide scanners.

    Args:
        path: of the file.
        series: number of the image in the file.
        axes: a letter for every axis of the series, for files that do not tell them rightly.
        select: at which index other axes are read.
    """

    backend = "tiff"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        series: SupportsIndex = 0,
        axes: str | None = None,
        select: Mapping[str, SupportsIndex] | None = None,
    ) -> None:
        require("tifffile", "tiff")
        self._series, self._axes, self._select = to_int("series", series), axes, select
        super().__init__(path)

    def _open(self) -> _File:
        self._check_stamp()
        file = _File(self._path)
        try:
            found = file.tiff.series
            if not 0 <= self._series < len(found):
                raise SourceError(f"{self.name}: has {len(found)} images, there is no series {self._series}")
            file.levels = list(found[self._series].levels)
            return file
        except BaseException:
            file.close()
            raise

    def _describe(self, handle: _File) -> Description:
        levels = handle.levels
        plans = [self._plan(level, number) for number, level in enumerate(levels)]
        first = levels[0].keyframe
        layout = plans[0].layout
        plans = [plan for plan in plans if plan.layout.axes == layout.axes and plan.layout.channels == layout.channels]
        spacing, units = self._spacing(handle, levels[0], layout)
        return Description(
            axes=layout.axes,
            dtype=first.dtype,
            channels=layout.channels,
            shapes=[plan.layout.spatial() for plan in plans],
            tiles=[plan.tile and plan.tile[-len(layout.axes) :] for plan in plans],
            spacing=spacing,
            units=units,
            private=plans,
        )

    def _plan(self, level: Any, number: int) -> _LevelPlan:
        page = level.keyframe
        if page.dtype is None:
            raise SourceError(f"level {number}: pixels of {page.bitspersample} bits cannot be read")
        stored = self._axes
        if stored is None:
            letters = [LETTERS.get(letter, letter.lower()) for letter in level.axes]
            if letters.count("c") == 2:  # channels of samples
                raise SourceError(f"has axes {level.axes}: name them, as in axes='kyxc', select={{'k': 0}}")
            stored = "".join(letters)
        layout = to_layout(level.shape, stored, self._select)
        if level.dataoffset is not None:
            return _LevelPlan(layout, ())
        inner = len(page.shape)
        while inner > 0 and tuple(level.shape[len(level.shape) - inner :]) != tuple(page.shape[-inner:]):
            inner -= 1
        outer = tuple(level.shape[: len(level.shape) - inner])
        if math.prod(outer) != len(level.pages) or page.imagedepth != 1 or (page.is_tiled and page.tiledepth != 1):
            raise SourceError(f"level {number}: pages of shape {page.shape} do not make up {level.shape} {level.axes}")
        if page.is_tiled:
            tile = (1, page.tilelength, page.tilewidth)
        else:
            tile = (1, min(page.rowsperstrip, page.imagelength), page.imagewidth)
        if tile[2] < 1 or tile[1] < 1:
            raise SourceError(f"level {number}: has tiles of {tile[1:]} pixels")
        across = -(-page.imagewidth // tile[2])
        segments = -(-page.imagelength // tile[1]) * across
        planes = page.samplesperpixel if page.planarconfig == 2 else 1
        if len(page.dataoffsets) < segments * planes or len(page.databytecounts) < segments * planes:
            raise SourceError(f"level {number}: has {len(page.dataoffsets)} tiles, {segments * planes} expected")
        return _LevelPlan(layout, outer, tile, across, segments, planes, page.samplesperpixel // planes)

    def _spacing(self, file: _File, level: Any, layout: Layout) -> tuple[Sequence[float | None], Sequence[str | None]]:
        try:
            known = _ome_spacing(file.tiff, self._series) if file.tiff.is_ome else _page_spacing(level.keyframe)
        except Exception:  # noqa: BLE001 (spacing is not worth a failure)
            known = {}
        found = [known.get(axis, (None, None)) for axis in layout.axes]
        return [value for value, _ in found], [unit for _, unit in found]

    def _page(self, file: _File, level: int, number: int) -> Any:
        with file.lock:
            page = file.pages.get((level, number))
            if page is None:
                page = file.pages[level, number] = file.levels[level].pages[number]
            return page

    def _read_region(self, handle: _File, level: int, start: Shape, stop: Shape) -> Array:
        layout = self._private[level].layout
        with handle.lock:
            array = handle.arrays.get(level)
            if array is None:
                found = handle.levels[level]
                dtype = np.dtype(handle.tiff.byteorder + found.keyframe.dtype.char)
                array = handle.arrays[level] = MappedFile(self._path, found.dataoffset, dtype, layout.shape)
        return native(layout.arrange(array[layout.index(start, stop)]))

    def _read_tile(self, handle: _File, level: int, index: Shape) -> Array:
        plan: _LevelPlan = self._private[level]
        segment = index[-2] * plan.across + index[-1]
        if not plan.outer:
            pages = [0]
        else:  # every page that has channels of this tile
            layout = plan.layout
            places = [
                range(size) if axis == "c" else [layout.fixed.get(axis, index[0])]
                for axis, size in zip(layout.stored, plan.outer, strict=False)
            ]
            pages = [int(np.ravel_multi_index(place, plan.outer)) for place in itertools.product(*places)]
        parts = [
            self._segment(handle, level, page, segment + plane * plan.segments)
            for page in pages
            for plane in range(plan.planes)
        ]
        tile = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        return tile if len(index) == 2 else tile[None]

    def _segment(self, file: _File, level: int, number: int, segment: int) -> Array:
        """Decode one tile or strip of a page, (length, width, samples)."""
        page = self._page(file, level, number)
        keyframe = file.levels[level].keyframe
        plan: _LevelPlan = self._private[level]
        offset = count = 0
        if page is not None:
            if segment >= len(page.dataoffsets) or segment >= len(page.databytecounts):
                raise SourceError(f"the file has no tile {segment}")
            offset, count = page.dataoffsets[segment], page.databytecounts[segment]
        if offset == 0 or count == 0:  # a sparse file
            assert plan.tile is not None
            return np.full((*plan.tile[1:], plan.samples), keyframe.nodata, self.dtype)
        if offset + count > file.size:
            raise SourceError(f"the file is cut off: {file.size} bytes, tile {segment} ends at {offset + count}")
        data = os.pread(file.descriptor, count, offset)
        if len(data) < count:
            raise SourceError(f"the file is cut off: tile {segment} has {len(data)} bytes of {count}")
        options = {} if page.jpegtables is None else {"jpegtables": page.jpegtables}
        if getattr(keyframe, "jpegheader", None) is not None:  # of Hamamatsu's files
            options["jpegheader"] = keyframe.jpegheader
        array = page.decode(data, segment, **options)[0]
        if array is None:
            raise SourceError(f"tile {segment} cannot be decoded")
        return native(array[0]).astype(self.dtype, copy=False)


def _page_spacing(page: Any) -> dict[str, tuple[float, str]]:
    """From an Aperio description or from the resolution tags."""
    for part in (page.description or "").split("|"):
        key, _, value = part.partition("=")
        if key.strip() == "MPP":
            return {axis: (float(value), "um") for axis in "yx"}
    unit = RESOLUTION_UNITS.get(int(page.tags["ResolutionUnit"].value)) if "ResolutionUnit" in page.tags else None
    found = {}
    for axis, tag in (("x", "XResolution"), ("y", "YResolution")):
        if unit is not None and tag in page.tags:
            numerator, denominator = page.tags[tag].value
            if numerator > 0 and denominator > 0:
                found[axis] = (unit * denominator / numerator, "um")
    return found


def _ome_spacing(tiff: Any, series: int) -> dict[str, tuple[float, str]]:
    from xml.etree import ElementTree

    root = ElementTree.fromstring(tiff.ome_metadata)
    images = [element for element in root if element.tag.endswith("}Image")]
    [pixels] = [element for element in images[series] if element.tag.endswith("}Pixels")]
    found = {}
    for axis in "XYZ":
        value = pixels.get(f"PhysicalSize{axis}")
        unit = OME_UNITS.get(pixels.get(f"PhysicalSize{axis}Unit", "µm"))
        if value is not None and unit is not None:
            found[axis.lower()] = (float(value), unit)
    return found
