"""Zarr arrays and OME-Zarr images, in folders and behind URLs."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, SupportsIndex

import numpy as np

from ats_core._arguments import Array
from ats_core.sources.errors import SourceError, require
from ats_core.sources.layout import Layout, native, to_layout
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, Source

UNITS = {"micrometer": "um", "millimeter": "mm", "nanometer": "nm", "centimeter": "cm", "meter": "m", "second": "s"}
URL = re.compile(r"^[a-z][a-z0-9+.-]*(::[a-z][a-z0-9+.-]*)*://", re.IGNORECASE)

# TensorStore ends the process when it finds itself in a forked child, so a child of a process that has loaded it reads
# with the zarr package.
_forked = False


def _after_fork() -> None:
    global _forked
    _forked = "tensorstore" in sys.modules


os.register_at_fork(after_in_child=_after_fork)


class ZarrSource(Source):
    """A Zarr array or an OME-Zarr image (versions 2 and 3). Its chunks, all channels of them, are the tiles.

    Folders are read by TensorStore where it is installed, several times as fast as by the zarr package, which reads
    whatever fsspec has a protocol for ("s3://...", "https://...", "simplecache::..."; or a store, as ``zarr.open`` takes).

    Args:
        path: folder or URL of an array, or of a group with OME metadata.
        axes: a letter for every axis; that of the metadata unless given.
        select: at which index other axes are read.
        storage_options: for fsspec.
    """

    backend = "zarr"

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        axes: str | None = None,
        select: Mapping[str, SupportsIndex] | None = None,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        require("zarr", "zarr")
        self._path = os.fspath(path)
        self._axes, self._select, self._storage = axes, select, dict(storage_options or {})
        super().__init__(self._path)

    def _node(self) -> Any:
        zarr = require("zarr", "zarr")
        remote = URL.match(self._path) is not None
        if not remote and not os.path.exists(self._path):
            raise SourceError(f"{self.name}: no such file")
        return zarr.open(self._path, mode="r", storage_options=self._storage or None if remote else None)

    def _open(self) -> list[Any]:
        """An array a level; in a worker they are opened when they are first read."""
        if not hasattr(self, "_private"):
            return []
        return [None] * len(self.levels)

    def _close(self, handle: list[Any]) -> None:
        handle.clear()

    def _describe(self, handle: list[Any]) -> Description:
        zarr = require("zarr", "zarr")
        node = self._node()
        axes, scales, units, paths = self._axes, None, None, [""]
        arrays = [node]
        if isinstance(node, zarr.Group):
            attributes = dict(node.attrs)
            found = attributes.get("ome", attributes).get("multiscales")
            if not found:
                names = ", ".join(sorted(name for name, _ in node.arrays())[:9])
                raise SourceError(f"is a group without OME metadata: name one of its arrays ({names})")
            image = found[0]
            paths = [dataset["path"] for dataset in image["datasets"]]
            arrays = [node[path] for path in paths]
            described = image.get("axes") or [*"tczyx"[-arrays[0].ndim :]]
            letters = [axis if isinstance(axis, str) else axis["name"] for axis in described]
            units = [None if isinstance(axis, str) else UNITS.get(axis.get("unit", "")) for axis in described]
            for step in image["datasets"][0].get("coordinateTransformations", []):
                scales = step.get("scale", scales)
            axes = axes or "".join(letters)
        for array in arrays:
            if not isinstance(array, zarr.Array):
                raise SourceError(f"{array} is no array")
        layouts = [to_layout(array.shape, axes, self._select) for array in arrays]
        first = layouts[0]
        if any((layout.axes, layout.channels) != (first.axes, first.channels) for layout in layouts):
            raise SourceError("levels have different axes or channels")
        while len(handle) < len(arrays):
            handle.append(None)
        stored = [first.stored.index(axis) for axis in first.axes]
        return Description(
            axes=first.axes,
            dtype=arrays[0].dtype,
            channels=first.channels,
            shapes=[layout.spatial() for layout in layouts],
            tiles=[layout.spatial(array.chunks) for layout, array in zip(layouts, arrays, strict=True)],
            spacing=None if scales is None else [float(scales[place]) for place in stored],
            units=None if units is None else [units[place] for place in stored],
            private=(paths, layouts, {3: "zarr3", 2: "zarr"}[arrays[0].metadata.zarr_format]),
        )

    def _array(self, handle: list[Any], level: int) -> Any:
        array = handle[level]
        if array is None:
            path, _, driver = self._private[0][level], None, self._private[2]
            if not _forked and URL.match(self._path) is None:
                try:
                    array = _TensorStore(os.path.join(self._path, path), driver)
                except ImportError:
                    pass
            if array is None:
                node = self._node()
                array = node[path] if path else node
            handle[level] = array
        return array

    def _read_tile(self, handle: list[Any], level: int, index: Shape) -> Array:
        start, stop = self._tile_ends(level, index)
        layout: Layout = self._private[1][level]
        region = np.asarray(self._array(handle, level)[layout.index(start, stop)])
        return native(layout.arrange(region))


class _TensorStore:
    """An array that TensorStore reads."""

    def __init__(self, path: str, driver: str) -> None:
        tensorstore = require("tensorstore", "zarr")
        store = {"driver": "file", "path": os.path.join(os.path.abspath(path), "")}
        # Tiles are cached here, not there.
        context = tensorstore.Context({"cache_pool": {"total_bytes_limit": 0}})
        self._array = tensorstore.open(
            {"driver": driver, "kvstore": store}, open=True, read=True, context=context
        ).result()

    def __getitem__(self, index: Any) -> Any:
        return self._array[index].read().result()
