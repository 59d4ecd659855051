"""Estimates from samples."""

from ats_core.keras import expected

__all__ = ["expected"]
