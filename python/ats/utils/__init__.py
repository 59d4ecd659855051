"""Layers, regularisers and sequences of data."""
