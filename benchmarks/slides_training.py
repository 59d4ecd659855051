"""Training steps over slides that do not fit into memory: time, memory and what is decoded

    python benchmarks/slides_training.py [--turns 15] [--workers 2] [--folder F] [--out benchmarks/results]

A step reads the thumbnails of 4 slides (625 pixels), computes attention, draws 16 patches of 256 x 256 from each slide,
reads them, and updates both networks. Slides are 10,000, 20,000 and 40,000 pixels high and wide, RGB, in JPEG tiles of 256,
with a pyramid of halves; 40,000 squared are 4.8 GB each. They are written to a temporary folder (2 GB in all), or to F,
where they are kept and used again. No decoded tile is kept from one step to the next.

Steps over the three sizes take turns in one process. Peak memory is that of a process of its own for each size, PyTorch
included, over 3 steps. With --workers the same step takes its thumbnails from a DataLoader with that many workers, in a
process of its own for each size; what is told is the mean, since workers run ahead of some steps and not of others.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timing

SIZES, SMOKE = (10_000, 20_000, 40_000), (1_250, 2_500)
SLIDES, PATCH, COUNT, TILE, COARSEST = 4, 256, 16, 256, 625
BLOCK = 4096


def encoded_tiles(seed: int) -> list[bytes]:
    """Tiles of noise at several scales, as JPEG, which take about as much room as tissue."""
    import io

    import tifffile

    generator = np.random.default_rng(seed)
    image = np.zeros((BLOCK, BLOCK // 4, 3), np.float32)
    for scale in (1, 4, 16, 64):
        noise = generator.normal(size=(BLOCK // scale, BLOCK // 4 // scale, 3)).astype(np.float32)
        image += 10 * scale**0.4 * noise.repeat(scale, 0).repeat(scale, 1)
    stream = io.BytesIO()
    tifffile.imwrite(stream, (150 + image).clip(0, 255).astype(np.uint8), **options(80))
    stream.seek(0)
    with tifffile.TiffFile(stream) as file:
        page = file.pages[0]
        data = stream.getvalue()
        return [data[at : at + n] for at, n in zip(page.dataoffsets, page.databytecounts, strict=True)]


def options(quality: int) -> dict[str, object]:
    return {
        "tile": (TILE, TILE),
        "photometric": "rgb",
        "compression": "jpeg",
        "compressionargs": {"level": quality},
    }


def write_slide(path: Path, size: int, seed: int) -> None:
    """One tile after the other, so that memory does not grow. Tiles repeat: encoding 100,000 would take minutes."""
    import tifffile

    tiles = encoded_tiles(seed)
    generator = np.random.default_rng(seed)

    def picked(length: int) -> Iterator[bytes]:
        for number in generator.integers(0, len(tiles), (-(-length // TILE)) ** 2):
            yield tiles[number]

    lengths = [size]
    while lengths[-1] > COARSEST:
        lengths.append(lengths[-1] // 2)
    unfinished = path.with_suffix(".part")
    with tifffile.TiffWriter(unfinished, bigtiff=True) as writer:
        for number, length in enumerate(lengths):
            writer.write(
                picked(length),
                shape=(length, length, 3),
                dtype="uint8",
                subifds=len(lengths) - 1 if number == 0 else 0,
                subfiletype=int(number > 0),
                **options(80),
            )
    unfinished.rename(path)


def slides(folder: Path, size: int) -> list[Path]:
    return [folder / f"{size}_{number}.tif" for number in range(SLIDES)]


class Training:
    """Steps over the slides of a size."""

    def __init__(self, paths: list[Path], workers: int = 0, steps: int = 0) -> None:
        import torch
        from torch import nn
        from torch.utils.data import DataLoader

        import ats_core.torch as ats
        from ats_core.sources import set_cache_size

        set_cache_size(0)
        torch.manual_seed(0)
        attention = nn.Sequential(
            ats.Normalize(150.0, 50.0), nn.Conv2d(3, 8, 5, 4, 2), nn.ReLU(), nn.Conv2d(8, 1, 3, 1, 1),
            ats.SampleSoftmax(0.5),
        )  # fmt: skip
        feature = nn.Sequential(
            nn.Conv2d(3, 16, 7, 4, 3), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.sampling = ats.AttentionSampling(attention, feature, PATCH, COUNT, mean=150.0, std=50.0)
        self.head = nn.Linear(32, 2)
        self.optimizer = torch.optim.Adam([*self.sampling.parameters(), *self.head.parameters()])
        self.dataset = ats.SourceDataset(paths, COARSEST, torch.arange(SLIDES) % 2)
        self.loss = nn.functional.cross_entropy
        loader = DataLoader(
            self.dataset, SLIDES, sampler=[*range(SLIDES)] * steps, num_workers=workers, collate_fn=ats.collate_sources
        )
        self.batches = iter(loader)

    def step(self, number: int) -> None:
        batch = next(self.batches)
        self.sampling.train()
        output = self.sampling(batch.x_low, batch.sources, rng=number, low_shapes=batch.low_shapes)
        self.optimizer.zero_grad()
        self.loss(self.head(output.features), batch.targets).backward()
        self.optimizer.step()
        self.sources = batch.sources


def time_steps(folder: Path, sizes: tuple[int, ...], turns: int) -> dict[str, float]:
    methods: dict[str, Callable[[int], object]] = {
        f"{size:,}": Training(slides(folder, size), steps=2 * turns + 2).step for size in sizes
    }
    return timing.take_turns(methods, turns)


def time_workers(folder: Path, size: int, workers: int, turns: int) -> float:
    """Mean milliseconds a step, after as many as workers may have prepared before."""
    ahead = 3 * workers
    training = Training(slides(folder, size), workers, ahead + turns)
    for number in range(ahead):
        training.step(number)
    start = time.perf_counter()
    for number in range(turns):
        training.step(number)
    return 1e3 * (time.perf_counter() - start) / turns


def one_size(folder: Path, size: int) -> dict[str, float]:
    """Three steps; of the third what was decoded, without the thumbnails."""
    from ats_core.sources import SourceBatch

    training = Training(slides(folder, size), steps=3)
    for number in range(3):
        training.step(number)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))

    def total(name: str) -> int:
        return sum(getattr(source.statistics, name) for source in training.sources)

    origins = np.random.default_rng(0).integers(0, size - PATCH, (SLIDES, COUNT, 2))
    before = {name: total(name) for name in ("tiles_decoded", "bytes_decoded", "bytes_read")}
    assert isinstance(training.sources, SourceBatch)
    training.sources.read_patches(origins, PATCH)
    after = {name: total(name) - value for name, value in before.items()}
    touched = sum(len(touch(row)) for row in origins)
    assert after["tiles_decoded"] == touched, "a tile was decoded twice"
    return {
        "MiB": int(peak.split()[1]) / 1024,
        "decoded over needed": after["bytes_decoded"] / after["bytes_read"],
        "tiles": touched,
    }


def touch(origins: np.ndarray) -> set[tuple[int, int]]:
    """Tiles that patches lie on."""
    ends = [(first // TILE, (first + PATCH - 1) // TILE + 1) for first in origins]
    return {(y, x) for low, high in ends for y in range(low[0], high[0]) for x in range(low[1], high[1])}


def child(*arguments: object) -> Any:
    command = [sys.executable, __file__, *map(str, arguments)]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=timing.whole(1, 10_000), default=timing.TURNS, metavar="N")
    parser.add_argument("--smoke", action="store_true", help="tiny slides: tells only that everything works")
    parser.add_argument("--workers", type=timing.whole(0, 64), default=2, metavar="N", help="of the DataLoader")
    parser.add_argument("--folder", type=timing.folder, help="for the slides, which are kept there")
    parser.add_argument("--out", type=timing.folder, help="folder for the table and the numbers")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    sizes = SMOKE if args.smoke else SIZES
    if args.child:
        size = int(args.child)
        if not size:
            print(json.dumps(time_steps(args.folder, sizes, args.turns)))
        elif args.workers:
            print(json.dumps(time_workers(args.folder, size, args.workers, args.turns)))
        else:
            print(json.dumps(one_size(args.folder, size)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for size in sizes:
            for number, path in enumerate(slides(folder, size)):
                if not path.exists():
                    write_slide(path, size, number)
        common = ["--folder", folder, "--turns", args.turns, *["--smoke"] * args.smoke]
        times = child(*common, "--child", 0)
        found = {f"{size:,}": child(*common, "--workers", 0, "--child", size) for size in sizes}
        workers = {}
        if args.workers:
            workers = {f"{size:,}": child(*common, "--workers", args.workers, "--child", size) for size in sizes}
    first = next(iter(times.values()))
    rows = [
        [
            f"{SLIDES} slides of {name} x {name} x 3",
            timing.number(times[name]),
            f"{times[name] / first:.2f} x",
            *[timing.number(workers[name]) for _ in range(name in workers)],
            timing.number(found[name]["MiB"]),
            f"{found[name]['decoded over needed']:.2f} x",
        ]
        for name in times
    ]
    with_workers = [f"with {args.workers} workers"] * bool(workers)
    facts, title = timing.machine(), str(__doc__).splitlines()[0]
    how = (
        f"milliseconds a step, medians of {args.turns} in turn, and as multiples of the first row; the peak resident memory "
        "of the process without workers; bytes decoded for bytes needed by patches at random places, each tile once."
    )
    text = [
        f"# {title}",
        f"`python benchmarks/slides_training.py`: {how}",
        timing.describe(facts),
        timing.table(["a step", "milliseconds", "", *with_workers, "peak MiB", "decoded"], rows),
    ]
    print("\n\n".join(text))
    if args.out:
        results = {
            "title": title,
            "turns": args.turns,
            "machine": facts,
            "milliseconds": times,
            "workers": workers,
            "sizes": found,
        }
        timing.write(args.out, "slides_training", results, "\n\n".join(text))


if __name__ == "__main__":
    main()
