"""Variance of the estimators, by simulation: of the value, and of the gradient at the logits of a softmax.

    python benchmarks/estimator_variance.py [--draws 50000] [--out benchmarks/results]

Attention is drawn from a Dirichlet distribution (small concentrations: a few cells hold the mass), the feature of a
cell is one normal number with mean 1 and deviation 1. The gradient's variance is relative to the squared norm of the
exact gradient.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

import ats_core

CASES = [(6, 3, 1.0), (6, 4, 0.5), (100, 10, 0.3), (1000, 12, 0.1), (1000, 12, 0.01)]  # cells, samples, concentration
ESTIMATORS = ["murthy", "horvitz_thompson", "des_raj", "iid"]


def variances(cells: int, n: int, concentration: float, estimator: str, draws: int) -> tuple[float, float]:
    """(variance of the value, relative variance of the gradient at the logits)."""
    generator = np.random.default_rng(cells + n)
    attention = generator.dirichlet(np.full(cells, concentration))
    features = 1.0 + generator.standard_normal(cells)
    exact = attention * (features - attention @ features)
    maps = np.broadcast_to(attention, (draws, cells))
    samples = ats_core.sample(maps, n, replace=estimator == "iid", rng=5)
    drawn = features[samples.indices][..., None]
    options = {"estimator": estimator, "threshold": samples.threshold}
    value = ats_core.expectation(drawn, samples.attention, **options)
    _, d_attention = ats_core.expectation_backward(np.ones((draws, 1)), drawn, samples.attention, **options)
    gradient = (
        ats_core.sample_backward(d_attention, maps, samples) * attention
    )  # a_k dL/da_k: weights made by a softmax
    return float(value.var()), float(((gradient - exact) ** 2).sum(1).mean() / (exact**2).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=50_000)
    parser.add_argument("--out", type=Path, help="folder for the table")
    args = parser.parse_args()
    if args.draws < 2:
        parser.error("--draws must be at least 2")
    lines = [
        "Variance of the value; relative variance of the gradient at the logits.",
        "",
        "| cells, N, concentration | " + " | ".join(ESTIMATORS) + " |",
        "|---|" + "---|" * len(ESTIMATORS),
    ]
    for case in CASES:
        pairs = (variances(*case, estimator, args.draws) for estimator in ESTIMATORS)
        lines.append(
            "| {}, {}, {:g} | ".format(*case) + " | ".join(f"{value:.3g}; {grad:.3g}" for value, grad in pairs) + " |"
        )
    print("\n".join(lines))
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "estimator_variance.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
