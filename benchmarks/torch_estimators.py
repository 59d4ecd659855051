"""The estimators as a user would write them in eager PyTorch today, with autograd: a library, of which
expectation_peers.py measures ats_core.torch.expectation beside.

Every function takes features (B, N, C), sampled attention (B, N) and the threshold (B,) of `sample`, and returns the
expected features (B, C). A sampled value says nothing about the gradient to the attention; the score function does, and
autograd finds it through weights whose value is c and whose derivative by the attention is M (docs/estimators.md).
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def weighted_sum(weights: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """(B, N), (B, N, C) -> (B, C): a batched product of matrices, the fastest of PyTorch's ways."""
    return torch.einsum("bn,bnc->bc", weights, features)


def scored(c: torch.Tensor, m: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
    """c in value; its derivative by the attention is M."""
    change = attention - attention.detach()
    return c + torch.einsum("bi,bij->bj", change, m)


def iid(features: torch.Tensor, attention: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    """The mean, every draw compared with the mean of the others."""
    n = attention.shape[1]
    with torch.no_grad():
        own = torch.eye(n, dtype=attention.dtype, device=attention.device)
        m = (own - (1 - own) / max(n - 1, 1)) / (n * attention[:, :, None])
    return weighted_sum(scored(torch.full_like(attention, 1 / n).detach(), m, attention), features)


def des_raj(features: torch.Tensor, attention: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    n = attention.shape[1]
    with torch.no_grad():
        before = 1 - (attention.cumsum(1) - attention)
        later = torch.arange(n - 1, -1, -1, dtype=attention.dtype, device=attention.device)
        ratio = (before / attention + later) / n
    return weighted_sum(ratio * attention, features)


def horvitz_thompson(features: torch.Tensor, attention: torch.Tensor, threshold: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        inverse = -1 / torch.expm1(-attention * threshold[:, None])
    return weighted_sum(inverse * attention, features)


def murthy(features: torch.Tensor, attention: torch.Tensor, threshold: torch.Tensor, nodes: int = 96) -> torch.Tensor:
    """By quadrature over the logarithm of the race time, all rows and nodes at once."""
    n = attention.shape[1]
    with torch.no_grad():
        # In double: the baselines of M are differences.
        a = attention.double()
        rest = 1 - a.sum(1, keepdim=True)
        steps = torch.linspace(-36 / (n - 1) - 1, 4.5 + 0.1 * n**0.5, nodes, dtype=a.dtype, device=a.device)
        rates = torch.exp(steps)
        t = rates / rest  # (B, Q)
        psi = a[:, :, None] / -torch.expm1(-a[:, :, None] * t[:, None, :])  # (B, N, Q)
        weight = torch.softmax(rates.log() - rates - psi.log().sum(1), 1)
        c = torch.einsum("bnq,bq->bn", psi, weight)
        m = -torch.einsum("biq,bjq,bq->bij", psi, psi, weight)
        m = (torch.diagonal_scatter(m, c * (1 - a), dim1=1, dim2=2) / a[:, :, None]).to(attention.dtype)
    return weighted_sum(scored(c.to(attention.dtype), m, attention), features)


PEERS: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "murthy": murthy,
    "des_raj": des_raj,
    "horvitz_thompson": horvitz_thompson,
    "iid": iid,
}
