"""Time and peak memory of attention sampling against the same feature network run over the whole image."""

import ctypes
import json
import resource
import statistics
import subprocess
import sys
import time
from argparse import Namespace
from pathlib import Path

import numpy as np
from megapixel_mnist import backend_module, low_size
from megapixel_mnist_data import DIGIT, MegapixelMNIST, load_digits
from megapixel_mnist_recipe import MODELS
from tqdm import tqdm

VARIANTS = "attention sampling", "whole image"
PIXELS_PER_BATCH = 3_000_000  # the batch shrinks for large images, or the whole-image variant would take gigabytes
REPETITIONS = 3


def variants(options):
    """What is measured, the one to compare the others with first."""
    return MODELS if options.paper else VARIANTS


def sizes(options):
    """The image sizes whose cost is measured."""
    return sorted({options.size, max(options.size, options.cost_size)}) if options.cost_size else []


def earlier_costs(options, history):
    """The costs in the output folder's results.json if they belong to this very run and none is missing, else []."""
    try:
        results = json.loads((options.out / "results.json").read_text())
        costs = results["costs"]
        measured = sorted({row["size"] for row in costs}), {row["threads"] for row in costs}
        return costs if results["history"] == history and measured == (sizes(options), {options.threads}) else []
    except (OSError, ValueError, KeyError, TypeError):
        return []


def cost_rows(options):
    """Rows of the cost table for all sizes. One that fails ends the table and prints a line: the rest is worth more."""
    rows = []
    try:
        for size in tqdm(sizes(options), desc="measuring time and memory", leave=False, disable=None):
            rows += measure(options, size)
    except (MemoryError, OSError, RuntimeError, ValueError) as error:
        reason = [type(error).__name__, *str(error).strip().splitlines()][-1]
        print(f"measuring time and memory at {size} x {size} failed: {reason}", file=sys.stderr)
    return rows


def measure(options, size):
    """Rows of the cost table for `size` x `size` images, one per variant; times in s per image, memory in bytes."""
    options = Namespace(**{**vars(options), "size": size})
    digits = load_digits(options.digits, options.digits_file)[0]
    images = _images(options, digits)
    times = _times(options, images)
    common = {"size": size, "batch_size": len(images), "threads": options.threads}
    return [
        {"variant": variant, **common, **times[variant], **_memory_in_subprocess(options, variant)}
        for variant in variants(options)
    ]


def _images(options, digits):
    """A data set of one batch, as large as the batch size and `PIXELS_PER_BATCH` allow."""
    n = max(1, min(options.batch_size, PIXELS_PER_BATCH // options.size**2))
    return MegapixelMNIST(digits, n, options.size, options.noise, options.seed, low_size(options), options.paper)


def _times(options, images):
    """variant -> {"train_s", "infer_s"} per image: medians of alternated repetitions, after one to warm up."""
    backend = backend_module(options).Backend(options, steps=1)
    batch = images.batch(np.arange(len(images)))
    jobs = [(variant, backend.costs(variant, *batch)) for variant in variants(options)]
    seconds = {variant: {"train_s": [], "infer_s": []} for variant in variants(options)}
    for repetition in range(REPETITIONS + 1):
        for variant, functions in jobs:
            for name, function in zip(seconds[variant], functions, strict=True):
                start = time.perf_counter()
                function()
                if repetition > 0:
                    seconds[variant][name].append((time.perf_counter() - start) / len(images))
    return {
        variant: {name: statistics.median(values) for name, values in record.items()}
        for variant, record in seconds.items()
    }


def _memory_in_subprocess(options, variant):
    """{"train_bytes", "infer_bytes"} of `variant` from a fresh process, where nothing freed earlier can hide a peak."""
    request = json.dumps({"options": vars(options), "variant": variant}, default=str)
    process = subprocess.run([sys.executable, __file__], input=request, capture_output=True, text=True, check=False)
    if process.returncode != 0:
        raise RuntimeError(f"measuring the memory of {variant!r} failed:\n{process.stderr}")
    return json.loads(process.stdout)


def _memory(options, variant):
    """Growth of the peak resident memory over what imports, digits and the model take; it includes the batch itself."""
    backend = backend_module(options).Backend(options, steps=1)
    digits = load_digits(options.digits, options.digits_file)[0]
    # small images first: the libraries' one-time allocations belong to the baseline
    small = Namespace(**{**vars(options), "size": max(4 * DIGIT, options.patch_size), "downsample": 2, "batch_size": 1})
    small_batch = _images(small, digits).batch(np.arange(1))
    for function in backend.costs(variant, *small_batch):
        function()
    images = _images(options, digits)
    del function, small_batch
    _reset_peak()
    baseline = _peak()
    train, infer = backend.costs(variant, *images.batch(np.arange(len(images))))
    infer()
    infer_bytes = _peak() - baseline
    for _ in range(2):
        train()
    return {"train_bytes": _peak() - baseline, "infer_bytes": infer_bytes}


def _reset_peak():
    """Linux: set the peak to the memory in use now. Elsewhere the peak of the imports stays the baseline."""
    try:
        # what malloc keeps after free() would otherwise be used again without showing
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (AttributeError, OSError):
        pass


def _peak():
    """Peak resident memory of this process in bytes."""
    try:
        # not getrusage: on Linux its peak starts at that of the process that started this one
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    print(json.dumps(_memory(Namespace(**asked["options"]), asked["variant"])))
