"""Sampling without replacement beside what PyTorch offers, in one run.

    python benchmarks/sample_peers.py [--threads 1] [--out benchmarks/results]

Prints a Markdown table of medians (the methods take turns, so that a machine that slows down slows all of them) and
writes it, with the numbers, to the output folder. `sum` reads the weights once: the floor.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import torch

import ats_core
import ats_core.torch as ats

CASES = [(32, 32_400, 10), (16, 32_400, 256), (1, 1_000_000, 100), (1, 10_000_000, 1000)]


def gumbel_topk(weights: torch.Tensor, n: int) -> torch.Tensor:
    return torch.topk(weights.log() - torch.empty_like(weights).exponential_().log(), n).indices


def exponential_topk(weights: torch.Tensor, n: int) -> torch.Tensor:
    return torch.topk(torch.empty_like(weights).exponential_() / weights, n, largest=False).indices


METHODS = {
    "sum (the floor)": lambda weights, n: weights.sum(1),
    "ats_core.torch.sample": lambda weights, n: ats.sample(weights, n),
    "torch.multinomial": lambda weights, n: torch.multinomial(weights, n),
    "Gumbel + topk": gumbel_topk,
    "exponential + topk": exponential_topk,
}


def measure(rows: int, cells: int, n: int, repeats: int) -> dict[str, float]:
    """Median milliseconds of each method."""
    weights = torch.rand(rows, cells)
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    for repeat in range(repeats + 1):
        for name, method in METHODS.items():
            start = time.perf_counter()
            method(weights, n)
            if repeat > 0:  # the first is a warm-up
                times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for the table and the numbers")
    args = parser.parse_args()
    for name, most in (("threads", 256), ("repeats", 10_000)):
        if not 1 <= getattr(args, name) <= most:
            parser.error(f"--{name} must be from 1 to {most}, got {getattr(args, name)}")
    if args.out:
        try:
            args.out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            parser.error(f"--out: {error}")
    torch.set_num_threads(args.threads)

    lines = ["| rows x cells, N | " + " | ".join(METHODS) + " | times faster than torch.multinomial |"]
    lines.append("|---|" + "---|" * (len(METHODS) + 1))
    results = []
    for rows, cells, n in CASES:
        medians = measure(rows, cells, n, args.repeats)
        ratio = medians["torch.multinomial"] / medians["ats_core.torch.sample"]
        results.append({"rows": rows, "cells": cells, "n": n, "milliseconds": medians, "ratio": ratio})
        cells_text = " | ".join(f"{value:.3g}" for value in medians.values())
        lines.append(f"| {rows} x {cells:,}, {n} | {cells_text} | {ratio:.0f} |")
        print("\n".join(lines) if len(lines) == 3 else lines[-1], flush=True)
    if args.out:
        machine = {
            "cpu": platform.processor() or platform.machine(),
            "threads": args.threads,
            "torch": torch.__version__,
            "ats_core": ats_core.__version__,
        }
        stem = args.out / f"sample_peers_{args.threads}_thread{'s' if args.threads > 1 else ''}"
        stem.with_suffix(".json").write_text(json.dumps({"machine": machine, "results": results}, indent=2) + "\n")
        note = f"Milliseconds, median of {args.repeats}, float32 weights; {machine}."
        stem.with_suffix(".md").write_text("\n".join([note, "", *lines]) + "\n")


if __name__ == "__main__":
    main()
