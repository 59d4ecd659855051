"""DICOM whole slides, through wsidicom."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from ats_core._arguments import Array
from ats_core.sources.errors import SourceError, require
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, Source


class DicomSource(Source):
    """A slide in DICOM format: a folder of instances, or one instance. uint8, gray or RGB.

    Args:
        path: of the folder or file.
    """

    backend = "dicom"
    _exclusive = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require("wsidicom", "dicom")
        self._path = os.fspath(path)
        super().__init__(self._path)

    def _open(self) -> Any:
        if not os.path.exists(self._path):
            raise SourceError(f"{self.name}: no such file")
        return require("wsidicom", "dicom").WsiDicom.open(self._path)

    def _describe(self, handle: Any) -> Description:
        levels = list(handle.levels)
        first = levels[0]
        spacing = first.mpp
        return Description(
            axes="yx",
            dtype="uint8",
            channels={"L": 1, "RGB": 3}[handle.read_tile(first.level, (0, 0)).mode],
            shapes=[(level.size.height, level.size.width) for level in levels],
            tiles=[(level.tile_size.height, level.tile_size.width) for level in levels],
            spacing=[float(spacing.height), float(spacing.width)],
            units=["um", "um"],
            private=[level.level for level in levels],
        )

    def _read_tile(self, handle: Any, level: int, index: Shape) -> Array:
        tile: Array = np.asarray(handle.read_tile(self._private[level], index[::-1]))
        return tile if tile.ndim == 3 else tile[..., None]
