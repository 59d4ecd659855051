"""What benchmarks/peers_expectation.py measures beside ours computes the same."""

import importlib.util
import pathlib

import pytest

torch = pytest.importorskip("torch")

PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "peers_expectation.py"


def test_the_peers_are_the_same_estimators():
    ats = pytest.importorskip("ats_core.torch")
    spec = importlib.util.spec_from_file_location("peers_expectation", PATH)
    peers = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(peers)
    generator = torch.Generator().manual_seed(0)
    samples = ats.sample(torch.rand(3, 50, generator=generator), 6, rng=(1, 2))
    features = torch.randn(3, 6, 8, generator=generator)
    slope = torch.randn(3, 8, generator=generator)
    for name, peer in peers.PEERS.items():
        estimator = name.partition("(")[2].rstrip(")")
        more = {"threshold": samples.threshold} if estimator == "horvitz_thompson" else {}
        results = []
        for method in (lambda f, a, t: ats.expectation(f, a, estimator=estimator, **more), peer):  # noqa: B023
            f, a = features.clone().requires_grad_(), samples.attention.detach().clone().requires_grad_()
            expected = method(f, a, samples.threshold)
            results.append((expected, *torch.autograd.grad(expected, (f, a), slope)))
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5 * float(ours.detach().abs().max()))
