"""Images that are there already."""

from ats_core.keras import FromTensors

__all__ = ["FromTensors"]
