"""The interface that the builder takes patches from."""

from ats_core.keras import MultiResolutionBatch

__all__ = ["MultiResolutionBatch"]
