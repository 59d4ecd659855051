"""Cutting patches out of images."""

from __future__ import annotations

from typing import Any

from ats_core.keras import ops as _ops

__all__ = ["extract_patches"]


def extract_patches(x: Any, offsets: Any, size: Any) -> Any:
    """Patches (B, n, *size, C) of x (B, *spatial, C), tensors, which begin at offsets (B, n, D); zeros outside."""
    return _ops.extract_patches(x, offsets, [int(length) for length in size])
