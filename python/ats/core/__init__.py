"""Attention sampling in a Keras model: `attention_sampling`, and the layers, functions and the builder it is made of."""

from .ats_layer import Expectation, SamplePatches, attention_sampling
from .builder import ATSBuilder, ATSOutput
from .expectation import expected
from .sampling import sample

__all__ = [
    "ATSBuilder",
    "ATSOutput",
    "Expectation",
    "SamplePatches",
    "attention_sampling",
    "expected",
    "sample",
]
