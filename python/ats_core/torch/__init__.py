"""Attention sampling for PyTorch: differentiable operations and modules.

Works with autograd, ``torch.func``, ``torch.compile(fullgraph=True)``, ``torch.export`` and autocast, on PyTorch's own
threads. The operations are also there as ``torch.ops.ats.*``; a program that loads an exported model needs only
``import ats_core.torch`` before it does.
"""

_NEEDED = "ats_core.torch needs PyTorch 2.10 or newer: python -m pip install 'torch>=2.10'"

try:
    import torch as _torch
except ImportError as _error:
    raise ImportError(_NEEDED) from _error
if _torch.__version__ < (2, 10):
    raise ImportError(f"{_NEEDED} (found {_torch.__version__})")

from .functional import (
    Samples,
    estimator_arrays,
    expectation,
    expectation_backward,
    extract_patches,
    extract_patches_backward,
    patch_origins,
    sample,
    topk,
)
from .modules import (
    AttentionSampling,
    AttentionSamplingOutput,
    Expectation,
    MultinomialEntropy,
    SampledPatches,
    SamplePatches,
    SampleSoftmax,
)
from .monitor import AttentionMonitor
from .nested import NestedSamples, nested_expectation, nested_origins, nested_sample
from .normalize import Normalize
from .prefetch import prefetch
from .sources import SourceDataset, SourceItems, collate_sources
from .streams import RngStream
from .tiled import TiledAttention, tiled_attention

__all__ = [
    "AttentionMonitor",
    "AttentionSampling",
    "AttentionSamplingOutput",
    "Expectation",
    "MultinomialEntropy",
    "NestedSamples",
    "Normalize",
    "RngStream",
    "SamplePatches",
    "SampleSoftmax",
    "SampledPatches",
    "Samples",
    "SourceDataset",
    "SourceItems",
    "TiledAttention",
    "collate_sources",
    "estimator_arrays",
    "expectation",
    "expectation_backward",
    "extract_patches",
    "extract_patches_backward",
    "nested_expectation",
    "nested_origins",
    "nested_sample",
    "patch_origins",
    "prefetch",
    "sample",
    "tiled_attention",
    "topk",
]
