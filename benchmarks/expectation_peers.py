"""The estimators, forward and backward, beside the same in PyTorch with autograd, eager and compiled

    python benchmarks/expectation_peers.py [--threads 1 2] [--out benchmarks/results]

What PyTorch's users would write is in torch_estimators.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import timing
from torch_estimators import PEERS

SIZE = 128, 10, 512  # batch, samples, channels
SMOKE = 4, 5, 8


def measure(framework: str, turns: int, smoke: bool) -> Iterator[timing.Record]:
    import torch

    import ats_core.torch as ats

    batch, n, channels = SMOKE if smoke else SIZE
    generator = torch.Generator().manual_seed(0)
    samples = ats.sample(torch.rand(batch, 20 * n, generator=generator), n, rng=0)
    features = torch.randn(batch, n, channels, generator=generator).requires_grad_()
    attention = samples.attention.requires_grad_()
    gradient = torch.randn(batch, channels, generator=generator)

    def step(estimate: Callable[..., torch.Tensor]) -> Callable[[int], list[torch.Tensor]]:
        def both(_: int) -> list[torch.Tensor]:
            expected = estimate(features, attention, samples.threshold)
            return [expected.detach(), *torch.autograd.grad(expected, (features, attention), gradient)]

        return both

    for estimator, peer in PEERS.items():

        def ours(features, attention, threshold, estimator=estimator):
            return ats.expectation(features, attention, estimator=estimator, threshold=threshold)

        methods = {"ats_core.torch.expectation": step(ours), "eager PyTorch": step(peer)}
        if not smoke:  # it takes half a minute
            compiled = step(torch.compile(peer, dynamic=False))
            try:
                compiled(0)
                methods["torch.compile"] = compiled
            except Exception as error:  # noqa: BLE001
                # No compiler, or a Python that it does not know.
                yield {"note": f"torch.compile does not work here: {type(error).__name__}."}
        check(methods)
        yield timing.compare(
            "PyTorch, forward and backward", f"{estimator}, B = {batch}, N = {n}, C = {channels}", methods, turns
        )


def check(methods: dict[str, Callable[[int], list]]) -> None:
    """The same estimate and gradients; those at the attention but for a shift, which a softmax cancels."""
    import torch

    ours, *others = (method(0) for method in methods.values())
    for name, other in zip(list(methods)[1:], others, strict=True):
        for part, mine, theirs in zip(("expected", "d_features", "d_attention"), ours, other, strict=True):
            if part == "d_attention":
                mine, theirs = (x - x.mean(1, keepdim=True) for x in (mine, theirs))
            scale = mine.abs().max().item()
            torch.testing.assert_close(
                theirs, mine, rtol=1e-3, atol=1e-4 * scale, msg=lambda text, n=name, p=part: f"{n}, {p}: {text}"
            )


def main() -> None:
    timing.run(__doc__, "expectation_peers", measure, frameworks=("torch",), threads=(1, 2))


if __name__ == "__main__":
    main()
