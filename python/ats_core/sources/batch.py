"""A batch of sources of different sizes."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, SupportsIndex, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ats_core._arguments import Array, Ints, is_single, to_float, to_int64, to_ints
from ats_core._patches import _origins_in_level
from ats_core.sources.cells import Cells
from ats_core.sources.opening import open_source
from ats_core.sources.padding import to_pixel
from ats_core.sources.plan import Plan
from ats_core.sources.source import Source
from ats_core.sources.threads import run, to_threads
from ats_core.sources.thumbnails import level_of

if TYPE_CHECKING:
    from typing_extensions import Self


class SourceBatch(Sequence[Source]):
    """Sources of different sizes, with the same axes, dtype and channels.

    Args:
        sources: sources, or what `open_source` takes.

    Attributes:
        axes, dtype, channels: those of every source.
        shapes: int64 (B, D), the spatial shapes at level 0.

    Raises:
        ValueError: the sources do not go together, or there are none.
        SourceError: one of them cannot be opened.
    """

    def __init__(self, sources: Iterable[Source | str | os.PathLike[str] | ArrayLike]) -> None:
        if isinstance(sources, str | bytes | os.PathLike):
            raise TypeError(f"sources: must be a sequence of sources or paths, got {sources!r}")
        members: list[Source] = []
        opened: list[Source] = []
        try:
            for source in sources:
                members.append(open_source(source))
                if members[-1] is not source:
                    opened.append(members[-1])
            self._check(members)
        except BaseException:
            for member in opened:
                member.close()
            raise
        self._sources = tuple(members)
        first = members[0]
        self.axes, self.dtype, self.channels = first.axes, first.dtype, first.channels

    @staticmethod
    def _check(members: Sequence[Source]) -> None:
        if not members:
            raise ValueError("sources: must not be empty")
        first = members[0]
        for name in ("axes", "dtype", "channels"):
            for source in members:
                if getattr(source, name) != getattr(first, name):
                    raise ValueError(
                        f"sources: must have the same {name}, but {source.name} has {getattr(source, name)} and "
                        f"{first.name} has {getattr(first, name)}"
                    )

    @property
    def shapes(self) -> NDArray[np.int64]:
        return np.array([source.shape for source in self], np.int64)

    def __len__(self) -> int:
        return len(self._sources)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> SourceBatch: ...
    def __getitem__(self, index: int | slice) -> Source | SourceBatch:
        return SourceBatch(self._sources[index]) if isinstance(index, slice) else self._sources[index]

    def __iter__(self) -> Iterator[Source]:
        return iter(self._sources)

    def __repr__(self) -> str:
        return f"<SourceBatch of {len(self)}: {self.axes}, {self.channels} x {self.dtype}>"

    def close(self) -> None:
        """Close every source."""
        for source in self:
            source.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read_patches(
        self,
        origins: ArrayLike,
        patch_size: Ints,
        *,
        levels: SupportsIndex | Sequence[SupportsIndex] = 0,
        scales: Sequence[float] | None = None,
        padding: str = "constant",
        fill: float = 0.0,
        threads: SupportsIndex | None = None,
    ) -> Array:
        """Read the same number of patches of every source, each tile once.

        What `extract_patches` would return for the levels in memory, the same bytes: a patch's centre is mapped to
        every level (by the ratio of the shapes, rounded half to even).

        Args:
            origins: int64 (B, n, D), first pixel of each patch at level 0. It may lie outside.
            patch_size: pixels per axis, at every level; one number for every axis, or one each.
            levels: which levels to read; a sequence gives the result an axis for them.
            scales: instead of `levels`, of every source the levels with these downsamples (`levels_of`).
            padding, fill: pixels outside, as in `extract_patches`.
            threads: how many decode at a time; by default one a core. The result does not depend on it.

        Returns:
            ndarray, shape (B, n, *patch_size, C), with a sequence of levels or scales (B, n, L, *patch_size, C).

        Raises:
            SourceError: a file is broken or gone. The message names it, the level and the region.
            ValueError, TypeError: for an argument that means nothing here.
        """
        first = to_int64("origins", origins)
        if first.ndim != 3 or (first.shape[0], first.shape[2]) != (len(self), len(self.axes)):
            raise ValueError(
                f"origins: must have the shape ({len(self)}, n, {len(self.axes)}): the sources, patches of each, and "
                f"the axes {self.axes}, got {first.shape}"
            )
        patch = self[0]._to_size("patch_size", patch_size)
        several = scales is not None or not is_single(levels)
        if scales is not None:
            if not is_single(levels) or levels != 0:
                raise ValueError("levels: must be left out where scales are given")
            numbers = self.levels_of(scales).tolist()
        else:
            numbers = [to_ints("levels", levels if several else [levels])] * len(self)  # type: ignore[list-item]
        if not numbers[0]:
            raise ValueError("levels: must not be empty")
        workers = to_threads(threads)
        plan = Plan(padding, fill)
        shape = (*first.shape[:2], len(numbers[0]), *patch, self.channels)
        patches: NDArray[Any] = np.empty(shape, self.dtype)
        for row, source in enumerate(self):
            for column, number in enumerate(numbers[row]):
                level = source._to_level(number)
                places = to_level(first[row : row + 1], patch, source, level)[0]
                for out, place in zip(patches[row], places.tolist(), strict=True):
                    plan.add(source, level, place, out[column])
        run(plan.jobs(), workers)
        plan.finish()
        return patches if several else patches[:, :, 0]

    def levels_of(self, scales: Sequence[float]) -> NDArray[np.int64]:
        """Numbers (B, S) of the levels whose downsample is `scales`, within 2% on every axis.

        Raises:
            ValueError: a source has no such level. The message names it and its levels.
        """
        wanted = [to_float("scales", scale) for scale in scales]
        if not wanted or min(wanted) <= 0:
            raise ValueError(f"scales: must be positive numbers, got {scales!r}")
        found = np.empty((len(self), len(wanted)), np.int64)
        for row, source in enumerate(self):
            for column, scale in enumerate(wanted):
                number = level_of(source, [scale] * len(self.axes))
                if number is None:
                    levels = ", ".join(
                        " x ".join(f"{factor:.4g}" for factor in level.downsample) for level in source.levels
                    )
                    raise ValueError(
                        f"scales: {source.name} has no level with downsample {scale:g}, but levels with {levels}"
                    )
                found[row, column] = number
        return found

    def patch_origins(
        self,
        indices: ArrayLike,
        grid: Ints,
        patch_size: Ints,
        *,
        low_shape: Ints | None = None,
        low_shapes: ArrayLike | None = None,
        receptive_field: Ints = 0,
    ) -> NDArray[np.int64]:
        """Map cells of an attention map over padded thumbnails to where their patches begin at level 0.

        As `ats_core.patch_origins`, with a shape and a scale for every source.

        Args:
            indices: int64 (B, n), flat cells of the grid.
            grid: shape of the attention map, of all sources.
            patch_size: in pixels of level 0.
            low_shape: spatial shape of the padded thumbnails; `grid` by default.
            low_shapes: int64 (B, D), their shapes without padding, as `thumbnails` returns them; `low_shape` by default.
            receptive_field: as there.

        Returns:
            int64 (B, n, D).

        Raises:
            ValueError, TypeError: as there.
        """
        return self._cells(grid, low_shape, low_shapes, receptive_field).origins(indices, patch_size)

    def low_mask(
        self,
        grid: Ints,
        *,
        low_shape: Ints | None = None,
        low_shapes: ArrayLike | None = None,
        receptive_field: Ints = 0,
    ) -> NDArray[np.bool_]:
        """Which cells of an attention map lie on the thumbnails, and not on their padding.

        Weights have to be multiplied by it, and every row divided by its sum. Per axis those cells are left whose part
        of the thumbnail, with the receptive field before it, begins within it: ``receptive_field + i * (low_shape -
        receptive_field) / grid < low_shapes``. A network with stride s has as many of the thumbnail alone.

        Args:
            As for `patch_origins`.

        Returns:
            bool (B, *grid), True for at least one cell of every source.

        Raises:
            ValueError: a thumbnail is not larger than the receptive field, or a shape is wrong.
        """
        return self._cells(grid, low_shape, low_shapes, receptive_field).mask()

    def _cells(
        self,
        grid: Ints,
        low_shape: Ints | None,
        low_shapes: ArrayLike | None,
        receptive_field: Ints,
    ) -> Cells:
        names = [source.name for source in self]
        return Cells(names, self.shapes, grid, low_shape, low_shapes, receptive_field)

    def thumbnails(
        self,
        size: Ints | None = None,
        *,
        downsample: float | Sequence[float] | None = None,
        fill: float = 0.0,
        threads: SupportsIndex | None = None,
    ) -> tuple[Array, NDArray[np.int64], NDArray[np.float64]]:
        """A thumbnail of every source, in one array.

        Args:
            size, downsample: one of them, as for `Source.thumbnail`.
            fill: value of the pixels beyond the end of smaller thumbnails.
            threads: how many sources are read at a time; by default one a core.

        Returns:
            The thumbnails (B, *size, C), as large as the largest; their own spatial shapes (B, D); and how many pixels
            of level 0 a pixel of theirs spans, (B, D).
        """
        found: list[Any] = [None] * len(self)

        def job(row: int) -> None:
            found[row] = self[row].thumbnail(size, downsample=downsample)

        run(((lambda row=row: job(row)) for row in range(len(self))), to_threads(threads))  # type: ignore[misc]
        shapes = np.array([array.shape[:-1] for array, _ in found], np.int64)
        pixel = to_pixel(self.dtype, "constant", fill)
        out = np.full((len(self), *shapes.max(0), self.channels), pixel, self.dtype)
        for row, (array, _) in enumerate(found):
            out[row][tuple(slice(length) for length in array.shape[:-1])] = array
        return out, shapes, np.array([downsample for _, downsample in found])


def to_level(origins: NDArray[np.int64], patch: Sequence[int], source: Source, level: int) -> NDArray[np.int64]:
    """Where patches begin in a level, by the law of a pyramid in `extract_patches`."""
    if level == 0:
        return origins
    finest, shape = source.levels[0].shape, source.levels[level].shape
    return _origins_in_level(origins, patch, (1, *finest, 1), (1, *shape, 1), level)
