"""What `validate=True` does on CUDA: wait, and let the same operation on copies on the CPU raise, in the core's own words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import _ops

_NOWHERE = torch.iinfo(torch.int64).min


def draws(log_mass: Tensor, op: Any, *arguments: Any) -> None:
    """After sample or topk, whose bad rows have no mass."""
    if bool(log_mass.isnan().any()):
        on_cpu(op, *arguments)


def origins(located: Tensor, *arguments: Any) -> None:
    """After locate, which puts what is no cell where nothing else is."""
    if bool((located == _NOWHERE).any()):
        on_cpu(_ops.locate, *arguments)


def expectation(attention: Tensor, *arguments: Any) -> None:
    """What is copied is small: features are not looked at."""
    on_cpu(_ops.expectation, torch.empty((*attention.shape, 0), device="cpu"), attention, *arguments)


def on_cpu(op: Any, *arguments: Any) -> None:
    with torch.no_grad():
        op(*(x.cpu() if isinstance(x, Tensor) else x for x in arguments))
