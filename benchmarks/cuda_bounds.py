"""What each CUDA kernel could take at the least: its bytes over the memory's rate, its operations over theirs

    python benchmarks/cuda_bounds.py [--gpu H100] [--out benchmarks/results]

Operations are counted in the kernels (the headers of libats/src/*.cu say how), not measured. Where a result of
cuda_peers.py lies in --out, its time and the gap to the bound stand beside them.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import timing

MULTIPROCESSORS, CLOCK = 132, 1.7e9
MEMORY = {"H100": 3.35e12, "H200": 4.8e12}  # bytes a second
RATES = {  # a second, of a whole GPU
    "instructions": MULTIPROCESSORS * 128 * CLOCK,
    "double operations": MULTIPROCESSORS * 64 * CLOCK,
    "conversions to double": MULTIPROCESSORS * 16 * CLOCK,
}


@dataclass
class Work:
    """What one call has to do. `chain`: cycles of steps that wait for each other, after all else."""

    kernel: str
    case: str
    bytes: float
    operations: dict[str, float]
    chain: float = 0.0
    measured: str = ""  # the beginning of its case in cuda_peers.json


def works() -> list[Work]:
    byte_values, float_values = 128 * 16 * 224 * 224 * 3, 128 * 64 * 50 * 50 * 3
    image = 32 * 3 * 1500 * 1500
    rows, cells = 128, 32_400
    few, many = 128 * 10 * 512, 1024 * 64 * 2048

    def sums(k: float) -> dict[str, float]:
        return {"double operations": k, "conversions to double": k}

    return [
        Work("extract_patches", "uint8 NHWC to bfloat16, 128 x 16 x 224 x 224 x 3", 3 * byte_values,
             {"instructions": 33 * byte_values}, measured="128 uint8 images"),
        Work("extract_patches", "float32 NCHW, 128 x 64 x 3 x 50 x 50", 8 * float_values,
             {"instructions": 50 * float_values}, measured="128 float32 images"),
        Work("extract_patches_backward", "float32 NCHW, 32 x 3 x 1500 x 1500, 10 patches 50 x 50 each",
             4 * image + 4 * 32 * 10 * 3 * 2500, {"instructions": 3.5 * image + 200 * 32 * 10 * 3 * 2500}),
        Work("sample", "128 x 32,400 float32, N = 10", 4 * rows * cells, sums(rows * cells), 10 * 2_000,
             "128 x 32,400 float32, N = 10"),
        Work("sample", "1 x 100,000,000 float32, N = 100", 4e8, sums(1e8), 100 * 4_700,
             "1 x 100,000,000 float32"),
        Work("sample_backward", "weights, 1 x 100,000,000 float32, N = 100", 4e8, {}, 100 * 8),
        Work("topk", "1 x 100,000,000 float32, N = 100", 8e8, sums(1e8)),
        Work("expectation, forward and backward", "murthy, B = 128, N = 10, C = 512", 12 * few,
             {"double operations": 2 * few + 128 * 10 * 8 * 10 * 120, "conversions to double": 2 * few}, 17_000,
             "murthy, B = 128, N = 10"),
        Work("expectation, forward and backward", "murthy, B = 1024, N = 64, C = 2048", 12 * many,
             {"double operations": 2 * many + 1024 * 64 * 8 * 14 * 60, "conversions to double": 1.5 * many}, 2 * 51_000),
    ]  # fmt: skip


def measured(out: Path | None) -> list[timing.Record]:
    file = out / "cuda_peers.json" if out else None
    return json.loads(file.read_text())["results"] if file and file.exists() else []


def rows(memory: float, records: list[timing.Record]) -> list[list[str]]:
    table = []
    for work in works():
        reading = 1e6 * work.bytes / memory
        counted = [1e6 * count / RATES[name] for name, count in work.operations.items()]
        chain = 1e6 * work.chain / CLOCK
        bound = max([reading, *counted]) + chain
        seen = [
            1e3 * next(iter(record["milliseconds"].values()))
            for record in records
            if work.measured and record.get("how") == "CUDA graph" and record["case"].startswith(work.measured)
        ]
        numbers = [timing.number(x) for x in (1e-6 * work.bytes, reading, max(counted, default=0.0), chain, bound)]
        last = [timing.number(seen[0]), timing.number(seen[0] / bound)] if seen else ["", ""]
        table.append([f"`{work.kernel}`", work.case, *numbers, *last])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpu", choices=MEMORY, default="H100")
    parser.add_argument("--out", type=timing.folder, help="folder for the table")
    args = parser.parse_args()
    about = (
        f"`python benchmarks/cuda_bounds.py --gpu {args.gpu}`: computed from counts for an {args.gpu} "
        f"({MEMORY[args.gpu] / 1e12:.2f} TB/s, {MULTIPROCESSORS} multiprocessors at {CLOCK / 1e9:.1f} GHz), not measured. "
        "bound: the longer of memory and operations, and the chain of steps that wait for each other after them. "
        "*measured* and *over* are from cuda_peers.json, where `make bench-cuda` has been run."
    )
    times = ["memory, us", "operations, us", "chain, us", "bound, us", "measured, us", "over"]
    table = timing.table(["operation", "case", "MB", *times], rows(MEMORY[args.gpu], measured(args.out)))
    text = f"# What the CUDA kernels could take at the least\n\n{about}\n\n{table}"
    print(text)
    if args.out:
        (args.out / "cuda_bounds.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
