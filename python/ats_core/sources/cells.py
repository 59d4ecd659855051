"""Which cells of a padded attention map belong to a signal, and where their patches are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ats_core._arguments import Ints, to_int64, to_ints
from ats_core._patches import patch_origins


class Cells:
    """An attention map over thumbnails of different sizes, which were padded at their ends to one size.

    Args:
        names: of the sources, for messages.
        shapes: int64 (B, D) of the sources.
        grid: shape of the attention map.
        low_shape: shape of the padded thumbnails; the grid's by default.
        low_shapes: int64 (B, D) of the thumbnails without padding; by default there is none.
        receptive_field: as for `patch_origins`.
    """

    def __init__(
        self,
        names: Sequence[str],
        shapes: NDArray[np.int64],
        grid: Ints,
        low_shape: Ints | None,
        low_shapes: ArrayLike | None,
        receptive_field: Ints,
    ) -> None:
        self.names, self.shapes = names, shapes
        axes = shapes.shape[1]
        self.grid = to_ints("grid", grid, axes)
        self.low = self.grid if low_shape is None else to_ints("low_shape", low_shape, axes)
        self.field = to_ints("receptive_field", receptive_field, axes)
        if low_shapes is None:
            self.valid = np.tile(np.array(self.low, np.int64), (len(shapes), 1))
            return
        self.valid = to_int64("low_shapes", low_shapes)
        if self.valid.shape != shapes.shape:
            raise ValueError(f"low_shapes: must have the shape {shapes.shape}, got {self.valid.shape}")
        for name, valid in zip(names, self.valid.tolist(), strict=True):
            if min(valid) < 1 or any(size > whole for size, whole in zip(valid, self.low, strict=True)):
                raise ValueError(f"low_shapes: must be 1 to {tuple(self.low)}, got {tuple(valid)} for {name}")

    def origins(self, indices: ArrayLike, patch_size: Ints) -> NDArray[np.int64]:
        """The law of `patch_origins`, every source with a scale of its own: its shape over that of its thumbnail."""
        # Checks everything, in the core's words.
        patch_origins(indices, self.grid, self.shapes[0], patch_size, low_shape=self.low, receptive_field=self.field)
        flat = to_int64("indices", indices)
        if len(flat) != len(self.shapes):
            raise ValueError(f"indices: must have a row for each of {len(self.shapes)} sources, got {flat.shape}")
        cells = np.stack(np.unravel_index(flat, self.grid), -1)
        patch = np.array(to_ints("patch_size", patch_size, len(self.grid)), np.float64)
        field, low, grid = (np.array(sizes, np.float64) for sizes in (self.field, self.low, self.grid))
        scale = (self.shapes / self.valid)[:, None]
        # In the order of the core, for the same bits.
        step = (low - field) * scale / grid
        return np.rint(field / 2.0 * scale + cells * step + step / 2.0 - patch / 2.0).astype(np.int64)

    def mask(self) -> NDArray[np.bool_]:
        """True for the cells that begin within the thumbnail, (B, *grid): as many as of the thumbnail alone."""
        out = np.ones((len(self.shapes), *self.grid), np.bool_)
        for axis, (low, field, cells) in enumerate(zip(self.low, self.field, self.grid, strict=True)):
            # Cell i is there if field + i * (low - field) / cells < valid; in whole numbers.
            room = (self.valid[:, axis] - field) * cells
            there = np.arange(cells, dtype=np.int64) * (low - field) < room[:, None]
            column = [len(there), *(1,) * len(self.grid)]
            column[axis + 1] = cells
            out &= there.reshape(column)
        empty = np.flatnonzero(~out.reshape(len(out), -1).any(1))
        if len(empty):
            row = int(empty[0])
            raise ValueError(
                f"low_shapes: a thumbnail of {tuple(self.valid[row].tolist())} has no cell, for {self.names[row]}: the "
                f"receptive field is {tuple(self.field)}"
            )
        return out
