"""What has to be read for a number of regions, as jobs for threads."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ats_core._arguments import Array, to_float
from ats_core.sources.padding import PADDINGS, gather, span, to_pixel

if TYPE_CHECKING:
    from ats_core.sources.source import Source

Shape: TypeAlias = tuple[int, ...]
Job: TypeAlias = Callable[[], None]


class Plan:
    """Regions to read, of one source or of many: jobs that are independent of each other, then what is left to do.

    Every tile is one job, whatever the number of regions that it serves, so that a plan decodes each tile once even
    when the cache holds less than it needs. Jobs come in the order of sources, levels and tiles.
    """

    def __init__(self, padding: str, fill: float) -> None:
        if padding not in PADDINGS:
            to_pixel(np.dtype("u1"), str(padding), 0.0)  # raises in the core's words
        self.padding, self.fill = padding, to_float("fill", fill)
        self._tiles: dict[tuple[int, int], dict[Shape, list[tuple[Shape, Array]]]] = {}
        self._regions: dict[tuple[int, int], list[tuple[Shape, Array]]] = {}
        self._sources: dict[int, Source] = {}
        self._after: list[Job] = []

    def add(self, source: Source, level: int, origin: Sequence[int], out: Array) -> None:
        """Fill `out` (*size, C) with the pixels from `origin` on."""
        shape = source.levels[level].shape
        spans = [span(*axis, self.padding) for axis in zip(origin, out.shape, shape, strict=False)]
        start = tuple(part.start for part in spans)
        size = tuple(part.stop - part.start for part in spans)
        target = out
        if any(part.picks is not None for part in spans):
            region = np.empty((*size, source.channels), source.dtype)
            self._after.append(lambda: np.copyto(out, gather(region, spans)))
            target = region
        elif size != out.shape[:-1]:
            out[...] = to_pixel(source.dtype, self.padding, self.fill)
            target = out[
                tuple(slice(part.begin, part.begin + length) for part, length in zip(spans, size, strict=True))
            ]
        if target.size == 0:
            return
        source._count(0, 0, target.nbytes)
        source, level, start = source._locate(level, start)
        key = (source._token, level)
        self._sources[source._token] = source
        tile = source.levels[level].tile
        if tile is None:
            self._regions.setdefault(key, []).append((start, target))
            return
        ranges = [range(x // n, -(-(x + s) // n)) for x, s, n in zip(start, size, tile, strict=True)]
        users = self._tiles.setdefault(key, {})
        for index in itertools.product(*ranges):
            users.setdefault(index, []).append((start, target))

    def jobs(self) -> Iterator[Job]:
        for token, source in self._sources.items():
            for level in range(len(source.levels)):
                key = (token, level)
                for index, users in sorted(self._tiles.get(key, {}).items(), key=lambda item: item[0]):
                    yield _TileJob(source, level, index, users)
                for start, target in sorted(self._regions.get(key, []), key=lambda item: item[0]):
                    yield _RegionJob(source, level, start, target)

    def finish(self) -> None:
        """What has to wait for all jobs."""
        for job in self._after:
            job()

    def run(self) -> None:
        for job in self.jobs():
            job()
        self.finish()


@dataclass(frozen=True)
class _RegionJob:
    source: Source
    level: int
    start: Shape
    target: Array

    def __call__(self) -> None:
        stop = tuple(first + size for first, size in zip(self.start, self.target.shape, strict=False))
        self.target[...] = self.source._region(self.level, self.start, stop)


@dataclass(frozen=True)
class _TileJob:
    source: Source
    level: int
    index: Shape
    users: list[tuple[Shape, Array]]

    def __call__(self) -> None:
        corner, stop = self.source._tile_ends(self.level, self.index)
        tile = self.source._tile(self.level, self.index, corner, stop)
        for start, target in self.users:
            from_, to = [], []
            for x, end, first, length in zip(corner, stop, start, target.shape, strict=False):
                low, high = max(x, first), min(end, first + length)
                from_.append(slice(low - x, high - x))
                to.append(slice(low - first, high - first))
            target[tuple(to)] = tile[tuple(from_)]
