"""Images at several resolutions."""

from .base import MultiResolutionBatch
from .from_tensors import FromTensors

__all__ = ["FromTensors", "MultiResolutionBatch"]
