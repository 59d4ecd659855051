"""What one small call costs in PyTorch, layer by layer, beside torch.topk in one run

    python benchmarks/call_overhead.py [--threads 1] [--rounds 201] [--calls 50] [--out benchmarks/results]

One row of 64 cells, 4 of them sampled; patches of 8 x 8 from an image of 64 x 64; 16 features a patch. Prints a
Markdown table of microseconds, medians of rounds in which everything takes turns. Each column holds the one before it:

- core: shape, workspace and operation through the C ABI (by ctypes, whose own price is measured and taken off)
- torch.ops: the operation on tensors, in inference mode
- function: what ats_core.torch offers, which also draws the seed, checks and turns arguments into lists
- with gradients: the same two where autograd records
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timing
import torch

import ats_core
import ats_core.torch as ats
from ats_core.torch._arguments import to_rng

Call = Callable[[], Any]
CODES = {torch.float32: 5, torch.float64: 6, torch.int64: 7}  # ats_dtype
COLUMNS = ["core", "torch.ops", "function", "torch.ops, with gradients", "function, with gradients"]
GRID, IMAGE, PATCH, N = (8, 8), (64, 64), (8, 8), 4
PLAIN = ("constant", 0.0, None, None, None, True)  # padding, fill, dtype, mean, std, channels_first


# ---- the core by ctypes: the structures of ats.h ----


class View(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("shape", ctypes.c_int64 * 8),
        ("strides", ctypes.c_int64 * 8),
        *((name, ctypes.c_int32) for name in ("ndim", "dtype", "device", "device_index")),
    ]


class SampleOptions(ctypes.Structure):
    _fields_ = [("n", ctypes.c_int64), ("replace", ctypes.c_int32), ("logits", ctypes.c_int32)]


class LocateOptions(ctypes.Structure):
    _fields_ = [
        ("spatial", ctypes.c_int32),
        *((name, ctypes.c_int64 * 3) for name in ("grid", "low", "image", "patch", "receptive_field")),
    ]


class PatchesOptions(ctypes.Structure):
    _fields_ = [
        ("spatial", ctypes.c_int32),
        ("patch", ctypes.c_int64 * 3),
        ("n_scales", ctypes.c_int32),
        ("scales", ctypes.c_int64 * 16),
        ("padding", ctypes.c_int32),
        ("dtype", ctypes.c_int32),
        ("fill", ctypes.c_double),
        *((name, ctypes.c_void_p) for name in ("mean", "std")),
        *((name, ctypes.c_int64) for name in ("n_mean", "n_std")),
    ]


def view(tensor: torch.Tensor) -> Any:
    sizes, strides = (ctypes.c_int64 * 8)(*tensor.shape), (ctypes.c_int64 * 8)(*tensor.stride())
    return ctypes.byref(View(tensor.data_ptr(), sizes, strides, tensor.dim(), CODES[tensor.dtype], 0, 0))


def core_calls(tensors: dict[str, torch.Tensor]) -> dict[str, list[tuple[str, tuple[Any, ...]]]]:
    """The calls of the C ABI that make up each operation: names and arguments."""
    views = {name: view(tensor) for name, tensor in tensors.items()}
    drawn = [views[name] for name in ("indices", "probabilities", "threshold", "log_mass")]
    sample = ctypes.byref(SampleOptions(N, 0, 0))
    triples = [(ctypes.c_int64 * 3)(*sizes) for sizes in (GRID, GRID, IMAGE, PATCH, (0, 0))]
    locate = ctypes.byref(LocateOptions(2, *triples))
    patches = ctypes.byref(PatchesOptions(spatial=2, patch=triples[3], dtype=CODES[torch.float32]))
    found = [ctypes.byref(View()) for _ in range(4)]
    size, scratch = ctypes.byref(ctypes.c_size_t()), ctypes.create_string_buffer(1 << 16)
    features, attention, murthy = views["features"], views["probabilities"], ctypes.c_int32(2)
    return {
        "sample": [
            ("ats_sample_shape", (views["attention"], sample, *found)),
            ("ats_sample_workspace", (views["attention"], sample, size)),
            ("ats_sample", (views["attention"], views["rng"], sample, *drawn, scratch, None)),
        ],
        "patch_origins": [
            ("ats_locate_shape", (views["indices"], locate, found[0])),
            ("ats_locate", (views["indices"], locate, views["origins"], None)),
        ],
        "extract_patches": [
            ("ats_extract_patches_shape", (views["image"], views["origins"], patches, found[0])),
            ("ats_extract_patches", (views["image"], views["origins"], patches, views["patches"], None)),
        ],
        "expectation": [
            ("ats_expectation_shape", (features, attention, None, None, murthy, found[0])),
            ("ats_expectation_workspace", (attention, size)),
            ("ats_expectation", (features, attention, None, None, murthy, views["expected"], scratch, None)),
        ],
    }


# ---- the layers ----


def layers() -> dict[str, dict[str, Call]]:
    """Row of the table -> column -> what is timed."""
    attention, features, image = torch.rand(1, 64), torch.rand(1, N, 16), torch.rand(1, 1, *IMAGE)
    rng = torch.tensor([1, 2])
    ops = torch.ops.ats
    sampled, indices, threshold, log_mass = ops.sample(attention, rng, N, False, False)
    origins = ats.patch_origins(indices, GRID, IMAGE, PATCH)
    patches = ats.extract_patches(image, origins, PATCH)

    def calls(attention: torch.Tensor, features: torch.Tensor, image: torch.Tensor) -> dict[str, tuple[Call, Call]]:
        return {
            "sample": (lambda: ops.sample(attention, rng, N, False, False), lambda: ats.sample(attention, N)),
            "patch_origins": (
                lambda: ops.locate(indices, GRID, GRID, IMAGE, PATCH, (0, 0)),
                lambda: ats.patch_origins(indices, GRID, IMAGE, PATCH),
            ),
            "extract_patches": (
                lambda: ops.extract_patches(image, origins, PATCH, (), *PLAIN),
                lambda: ats.extract_patches(image, origins, PATCH),
            ),
            "expectation": (
                lambda: ops.expectation(features, sampled, None, None, "murthy"),
                lambda: ats.expectation(features, sampled),
            ),
        }

    leaves = [tensor.clone().requires_grad_() for tensor in (attention, features, image)]
    table: dict[str, dict[str, Call]] = {
        "torch.topk": {
            "function": lambda: torch.topk(attention, N),
            "function, with gradients": lambda: torch.topk(leaves[0], N),
        },
        "the seed of sample": {
            "function": lambda: to_rng(None, attention),
            "function, with gradients": lambda: to_rng(None, attention),
        },
    }
    plain, recorded = calls(attention, features, image), calls(*leaves)
    for name in plain:
        columns = (*plain[name], *recorded[name])
        table[name] = dict(zip(COLUMNS[1:], columns, strict=True))

    tensors = {
        "attention": attention,
        "rng": rng,
        "probabilities": sampled,
        "indices": indices,
        "threshold": threshold,
        "log_mass": log_mass,
        "image": image.movedim(1, -1),
        "origins": origins,
        "patches": patches.movedim(2, -1),
        "features": features,
        "expected": torch.empty(1, 16),
    }
    library = ctypes.CDLL(str(Path(ats_core.__file__).parent / "lib" / "libats.so"))

    def run(steps: list[tuple[Any, tuple[Any, ...]]], _alive: Any = tensors) -> None:
        for function, arguments in steps:
            function(*arguments)

    for name, steps in core_calls(tensors).items():
        real = [(getattr(library, function), arguments) for function, arguments in steps]
        empty = [(library.ats_get_num_threads, arguments) for _, arguments in steps]  # does nothing with them
        for function, arguments in real:
            if function(*arguments) != 0:
                raise RuntimeError(f"{name}: the core refused what the benchmark gave it")
        table[name]["core"] = lambda steps=real: run(steps)
        table[name]["ctypes"] = lambda steps=empty: run(steps)
    return table


def measure(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Median microseconds of a call."""
    table = layers()
    times: dict[tuple[str, str], list[float]] = {(row, column): [] for row in table for column in table[row]}
    for _ in range(rounds):
        for (row, column), measured in times.items():
            call = table[row][column]
            with torch.inference_mode("gradients" not in column):
                for _ in range(10):  # the caches are another call's
                    call()
                start = time.perf_counter()
                for _ in range(calls):
                    call()
                measured.append(1e6 * (time.perf_counter() - start) / calls)
    medians = {row: {column: statistics.median(times[row, column]) for column in table[row]} for row in table}
    for columns in medians.values():
        if "ctypes" in columns:
            columns["core"] -= columns.pop("ctypes")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=timing.whole(1, 256), default=1, metavar="N", help="default: 1")
    parser.add_argument("--rounds", type=timing.whole(1, 10_000), default=201, metavar="N", help="default: 201")
    few = "of each in a round, default: 50; few, so that most pass undisturbed"
    parser.add_argument("--calls", type=timing.whole(1, 1_000_000), default=50, metavar="N", help=few)
    parser.add_argument("--smoke", action="store_true", help="2 rounds of 2 calls: tells only that everything works")
    parser.add_argument("--out", type=timing.folder, help="folder for the table and the numbers")
    args = parser.parse_args()
    if args.smoke:
        args.rounds = args.calls = 2
    timing.set_threads("torch", args.threads)

    results = measure(args.rounds, args.calls)
    topk, rows = results["torch.topk"], []
    for name, columns in results.items():
        row = [name]
        for column in COLUMNS:
            ratio = f" ({columns[column] / topk[column]:.1f})" if column in topk and column in columns else ""
            row.append(f"{columns[column]:.1f}{ratio}" if column in columns else "")
        rows.append(row)
    facts, title = timing.machine(), __doc__.splitlines()[0]
    threads = f"{args.threads} thread{'s' * (args.threads > 1)}"
    how = f"`python benchmarks/call_overhead.py`: {threads}, medians of {args.rounds} rounds of {args.calls} calls."
    table = timing.table(["microseconds (times torch.topk)", *COLUMNS], rows)
    text = "\n\n".join([f"# {title}", how, timing.describe(facts), table])
    print(text)
    if args.out:
        setting = {name: getattr(args, name) for name in ("threads", "rounds", "calls")}
        content = {"title": title, **setting, "machine": facts, "microseconds": results}
        timing.write(args.out, "call_overhead_" + threads.replace(" ", "_"), content, text)


if __name__ == "__main__":
    main()
