"""Sampling cells of an attention map."""

from ats_core.keras import sample

__all__ = ["sample"]
