"""Layers, regularisers and sequences of data."""

from . import layers, regularizers, training

__all__ = ["layers", "regularizers", "training"]
