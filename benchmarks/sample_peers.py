"""Sampling without replacement, beside what PyTorch, NumPy and TensorFlow offer

    python benchmarks/sample_peers.py [--threads 1 2] [--out benchmarks/results]

`sum` reads the weights once, which is the least that any method must do; for logits that is `logsumexp`.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import timing

CASES = [(32, 32_400, 10), (16, 32_400, 256), (1, 1_000_000, 100), (1, 10_000_000, 100), (1, 10_000_000, 1000)]
FIRST = "PyTorch and NumPy, weights"
SMOKE_CASES = [(2, 500, 4), (1, 3000, 10)]


def measure(framework: str, turns: int, smoke: bool) -> Iterator[timing.Record]:
    for rows, cells, n in SMOKE_CASES if smoke else CASES:
        weights = np.random.default_rng(cells + n).random((rows, cells), np.float32) + np.float32(1e-3)
        for group, methods in (torch_groups if framework == "torch" else tensorflow_groups)(weights, n):
            if n == 1000 and group != FIRST:
                continue  # much as with N = 100, and it takes long
            for name, method in methods.items():
                if not name.endswith(timing.FLOOR):
                    check(name, method(0), rows, cells, n)
            yield timing.compare(group, f"{rows} x {cells:,}, N = {n:,}", methods, turns)


def check(name: str, picks: object, rows: int, cells: int, n: int) -> None:
    """n different cells a row."""
    indices = np.asarray(picks[0] if isinstance(picks, tuple) else picks)
    assert indices.shape == (rows, n), f"{name}: shape {indices.shape}"
    assert 0 <= indices.min() and indices.max() < cells, f"{name}: outside of the map"
    assert all(len(set(row)) == n for row in indices.tolist()), f"{name}: a cell was drawn twice"


def torch_groups(array, n):
    import torch

    import ats_core.torch as ats

    weights = torch.from_numpy(array)
    logits = weights.log()
    p = array.astype(np.float64)
    p /= p.sum(1, keepdims=True)
    generator = np.random.default_rng(0)

    def gumbel_topk(logits):
        return torch.topk(logits - torch.empty_like(logits).exponential_().log(), n).indices

    yield (
        FIRST,
        {
            "ats_core.torch.sample": lambda _: ats.sample(weights, n),
            "torch.multinomial": lambda _: torch.multinomial(weights, n),
            "Gumbel + topk": lambda _: gumbel_topk(weights.log()),
            "exponential race + topk": lambda _: (
                torch.topk(torch.empty_like(weights).exponential_() / weights, n, largest=False).indices
            ),
            "numpy Generator.choice": lambda _: np.stack(
                [generator.choice(len(row), n, replace=False, p=row) for row in p]
            ),
            "sum(1)" + timing.FLOOR: lambda _: weights.sum(1),
        },
    )
    yield (
        "PyTorch, logits",
        {
            "ats_core.torch.sample": lambda _: ats.sample(logits, n, logits=True),
            "Gumbel + topk": lambda _: gumbel_topk(logits),
            "logsumexp" + timing.FLOOR: lambda _: torch.logsumexp(logits, 1),
        },
    )


def tensorflow_groups(array, n):
    import tensorflow as tf

    import ats_core.tensorflow as ats

    weights = tf.constant(array)

    def uniform():
        return tf.random.uniform(tf.shape(weights), minval=1e-30)

    yield (
        "TensorFlow, weights",
        {
            "ats_core.tensorflow.sample": lambda _: ats.sample(weights, n),
            "Gumbel + tf.math.top_k": lambda _: (
                tf.math.top_k(tf.math.log(weights) - tf.math.log(-tf.math.log(uniform())), n).indices
            ),
            "exponential race + tf.math.top_k": lambda _: tf.math.top_k(tf.math.log(uniform()) / weights, n).indices,
            "reduce_sum" + timing.FLOOR: lambda _: tf.reduce_sum(weights, 1),
        },
    )


def main() -> None:
    timing.run(__doc__, "sample_peers", measure)


if __name__ == "__main__":
    main()
