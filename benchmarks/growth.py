"""How the cost grows, with cells, samples, patches and images

    python benchmarks/growth.py [--threads 1] [--out benchmarks/results] [--plot docs/img/growth.png]

The peers are those of sample_peers.py and patches_peers.py, and the best at each point is drawn; dotted, the law.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import timing

# name of the axis, values, values for --smoke
CELLS = ("cells of the map, K (N = 16)", [10**3, 10**4, 10**5, 10**6, 10**7], [500, 1000])
SAMPLES = ("cells drawn, N (K = 1,000,000)", [1, 10, 100, 1000, 10_000, 100_000], [2, 4])
PATCHES = ("side of a patch, pixels (10 patches, images of 1500 x 1500)", [8, 16, 32, 64, 128, 256, 512], [4, 8])
IMAGES = ("side of an image, pixels (40 patches of 50 x 50)", [64, 128, 256, 512, 1024, 2048, 4096], [64, 80])
PICTURES = (".png", ".svg", ".pdf")
PLACES = 64  # of which one is taken every call


def measure(framework: str, turns: int, smoke: bool) -> Iterator[timing.Record]:
    import patches_peers
    import sample_peers

    generator = np.random.default_rng(0)

    def sampling(axis: str, value: int, cells: int, n: int) -> timing.Record:
        weights = generator.random((1, cells), np.float32) + np.float32(1e-3)
        _, methods = next(sample_peers.torch_groups(weights, n))
        return {"x": value, **timing.compare("sample: " + axis, f"{value:,}", methods, turns)}

    def cutting(axis: str, value: int, size: int, patch: int, batch: int, samples: int) -> timing.Record:
        pixels = np.resize(generator.integers(0, 256, 10**6, np.uint8), (batch, size, size, 3))
        places = generator.integers(0, size - patch + 1, (PLACES, batch, samples, 2))
        _, methods = next(patches_peers.torch_groups(pixels, places, patch))
        return {"x": value, **timing.compare("extract_patches: " + axis, f"{value:,}", methods, turns)}

    for value in CELLS[1 + smoke]:
        yield sampling(CELLS[0], value, value, 16)
    for value in SAMPLES[1 + smoke]:
        yield sampling(SAMPLES[0], value, 1000 if smoke else 10**6, value)
    for value in PATCHES[1 + smoke]:
        # Few, so that even the largest are no more memory than malloc keeps: new pages would cost more than the pixels.
        yield cutting(PATCHES[0], value, 80 if smoke else 1500, value, 2, 5)
    for value in IMAGES[1 + smoke]:
        yield cutting(IMAGES[0], value, value, 50, 4, 10)


# What the text says the cost should be, up to a factor.
LAWS = {
    CELLS[0]: ("in proportion to K", lambda k: k),
    SAMPLES[0]: ("in proportion to N log K", lambda n: n),
    PATCHES[0]: ("in proportion to the bytes", lambda side: side**2),
    IMAGES[0]: ("constant", lambda side: 1.0),
}


def plot(records: list[timing.Record], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(2, 2, figsize=(10, 7.6), layout="constrained")
    groups = dict.fromkeys(record["group"] for record in records)
    for panel, group in zip(panels.flat, groups, strict=True):
        members = [record for record in records if record["group"] == group]
        operation, axis = group.split(": ")
        x = [record["x"] for record in members]
        times = [record["milliseconds"] for record in members]
        ours = [next(iter(t.values())) for t in times]
        best = [t[timing.best_peer(t)] for t in times]
        panel.plot(x, best, "s-", color="tab:orange", label="the best peer at that point", markersize=5)
        panel.plot(x, ours, "o-", color="tab:blue", label="ats_core", markersize=5, linewidth=2)
        floor = next(name for name in times[0] if name.endswith(timing.FLOOR))
        panel.plot(x, [t[floor] for t in times], "--", color="0.45", label=floor)
        law, cost = LAWS[axis]
        panel.plot(x, [ours[-1] * cost(i) / cost(x[-1]) for i in x], ":", color="tab:blue", label=law)
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel="time, ms", title=operation)
        if max(x) / min(x) < 1e3:  # sizes in powers of two
            panel.set_xticks(x, [str(i) for i in x])
            panel.minorticks_off()
        low, high = min([*ours, *best]), max([*ours, *best])
        panel.set_ylim(10 ** math.floor(math.log10(low / 2)), 10 ** math.ceil(math.log10(high * 1.2)))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, framealpha=0.9)
    figure.savefig(file, dpi=100)


def picture(text: str) -> Path:
    """A file that `plot` can write, found out before anything is measured."""
    file = Path(text)
    if file.suffix not in PICTURES:
        raise argparse.ArgumentTypeError(f"must end in {', '.join(PICTURES)}, got {text}")
    if not importlib.util.find_spec("matplotlib"):
        raise argparse.ArgumentTypeError("needs matplotlib, which is not installed")
    timing.folder(str(file.parent))
    if file.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder")
    return file


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--plot", type=picture, help=f"file for the picture: {', '.join(PICTURES)}")


def main() -> None:
    args, records = timing.run(
        __doc__, "growth", measure, frameworks=("torch",), threads=(1,), turns=7, arguments=arguments
    )
    if args.plot:
        plot(records, args.plot)


if __name__ == "__main__":
    main()
