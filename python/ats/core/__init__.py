"""Attention sampling in a Keras model: `attention_sampling`, and the layers that it is made of."""

from .ats_layer import Expectation, SamplePatches, attention_sampling

__all__ = ["Expectation", "SamplePatches", "attention_sampling"]
