"""Attention sampling for Keras 3: layers from one source for its TensorFlow and its PyTorch backend.

A program that loads a saved model needs ``import ats_core.keras`` before it does; one that loads an exported model needs
``import ats_core.tensorflow`` or ``import ats_core.torch``.
"""

from ats_core.keras._backend import check_backend as _check_backend

_check_backend()  # before anything imports keras, whose own words for a backend that is missing are a stack trace

from .attention import AttentionSampling, attention_sampling
from .builder import ATSBuilder, ATSOutput
from .data import FromTensors, MultiResolutionBatch
from .functional import expected, sample
from .images import ImageLinearTransform, ImagePan
from .layers import ActivityRegularizer, L2Normalize, ResizeImages, SampleSoftmax, TotalReshape
from .monitor import AttentionMonitor
from .regularizers import MultinomialEntropy, multinomial_entropy
from .sampling import Expectation, SamplePatches
from .source_data import SourceDataset
from .sources import SourceInput
from .training import Batcher, DataTransform, LambdaTransform, compose_sequences

__all__ = [
    "ATSBuilder",
    "ATSOutput",
    "ActivityRegularizer",
    "AttentionMonitor",
    "AttentionSampling",
    "Batcher",
    "DataTransform",
    "Expectation",
    "FromTensors",
    "ImageLinearTransform",
    "ImagePan",
    "L2Normalize",
    "LambdaTransform",
    "MultiResolutionBatch",
    "MultinomialEntropy",
    "ResizeImages",
    "SamplePatches",
    "SampleSoftmax",
    "SourceDataset",
    "SourceInput",
    "TotalReshape",
    "attention_sampling",
    "compose_sequences",
    "expected",
    "multinomial_entropy",
    "sample",
]
