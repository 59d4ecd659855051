"""Sequences of data."""

from ats_core.keras import Batcher, DataTransform, LambdaTransform, compose_sequences

__all__ = ["Batcher", "DataTransform", "LambdaTransform", "compose_sequences"]
