# mypy: allow-subclassing-any
"""Random numbers of a training: counted, saved with the model, and of their own on every rank."""

from __future__ import annotations

from typing import SupportsIndex

import torch
from torch import Tensor, distributed, nn

from ._arguments import to_int

CALL = 2**32  # from one call to the next: rows of a batch add to the offset, so that calls have to be far apart


class RngStream(nn.Module):
    """Returns the `rng` for a batch, another one at every call, and keeps count in its state_dict.

    Call c in training mode returns (seed, c * 2**32), as a Keras layer of `ats_core.keras` with this seed does. Under
    torch.distributed rank r adds r * batch: with the same batch size on every rank, the ranks together draw what one
    process draws for the whole batch, laid out rank after rank. (State and rank change nothing but the offset.)

    In eval mode every call returns (seed, -2**32), and r * batch more: it does not move the state on, so that training
    goes on alike however often a model was evaluated, and an image in one row gets one answer.

    Args:
        seed: of 64 bits. The state that is loaded with a state_dict replaces it.

    Call:
        batch: number of rows that are drawn for, on this rank.

    Returns:
        (seed, offset), int64 (2,), where the module is: on a CUDA device nothing waits for it.

    Raises:
        RuntimeError: called again within a backward pass, as torch.utils.checkpoint does. It would draw other cells than
            those whose gradient is wanted; give an rng there.
    """

    state: Tensor

    def __init__(self, seed: SupportsIndex) -> None:
        super().__init__()
        self.register_buffer("state", torch.tensor([to_int("seed", seed), 0]))

    def forward(self, batch: int) -> Tensor:
        rng = self.state.clone()
        if not self.training:
            rng[1] = -CALL
        elif not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            raise RuntimeError("rng: must be given where the module is run again in the backward pass (checkpointing)")
        else:
            self.state[1].add_(CALL)
        if distributed.is_available() and distributed.is_initialized():
            rng[1] += distributed.get_rank() * batch
        return rng
