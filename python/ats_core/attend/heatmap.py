"""Attention as a picture that viewers of slides open."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np

from ats_core import plot
from ats_core._arguments import Array
from ats_core.attend.result import Attended

TILE = 256


def write_pyramid(path: Path, attended: Attended, view: Array) -> None:
    """Write a pyramidal OME-TIFF of two images.

    The first is `view` (the whole source in fewer pixels, (H, W, C)) with attention over it, uint8 RGB, in tiles, each
    level half the one before. The second is the attention itself, float32 (*grid), whose sum is 1. Sizes of pixels are
    given where the source's are known, so that viewers lay both over the source.

    Raises:
        ImportError: tifffile is missing. OSError: nothing can be written there.
    """
    tifffile = plot.require("tifffile", "attend")
    scale = np.array(view.shape[:2]) / attended.shape
    margin = np.array(attended.margin) * scale
    picture = plot.overlay(view, attended.attention, margin=margin.tolist(), size=max(view.shape[:2]))
    levels = [picture]
    while max(levels[-1].shape) > 2 * TILE:
        levels.append(plot.draw_image(levels[-1], size=max(levels[-1].shape) // 2))
    with tifffile.TiffWriter(path, ome=True) as writer:
        for number, level in enumerate(levels):
            writer.write(
                level,
                photometric="rgb",
                tile=(TILE, TILE),
                compression="adobe_deflate",
                subifds=len(levels) - 1 if number == 0 else None,
                subfiletype=int(number > 0),
                metadata=_metadata(attended, "attention over the image", picture.shape[:2]) if number == 0 else None,
            )
        writer.write(
            attended.attention.astype(np.float32),
            photometric="minisblack",
            metadata=_metadata(attended, "attention", attended.attention.shape),
        )


def _metadata(attended: Attended, name: str, shape: tuple[int, ...]) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "Name": name,
        "axes": "YXS" if name != "attention" else "YX",
        "UUID": str(uuid.uuid5(uuid.NAMESPACE_URL, attended.name)),  # by default another one in every run
    }
    if attended.mpp is not None:
        for axis, letter in enumerate("YX"):
            metadata[f"PhysicalSize{letter}"] = attended.mpp[axis] * attended.shape[axis] / shape[axis]
            metadata[f"PhysicalSize{letter}Unit"] = "µm"
    return metadata
