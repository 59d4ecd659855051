"""Reading random patches from a tiled JPEG TIFF, beside thread pools over tifffile and OpenSlide

    python benchmarks/sources.py [--threads 1 2] [--out benchmarks/results]

Every call reads 64 patches of 256 x 256 at other places, of one slide of 16,384 x 16,384 RGB pixels in tiles of 256 x 256
(768 MiB decoded). The first column keeps no tile from one call to the next, so that every call decodes what it needs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import timing

SIZE, SMOKE, PATCH, COUNT, TILE, QUALITY = 16384, 1024, 256, 64, 256, 80
PLACES = 32


def write_slide(path: Path, size: int) -> None:
    """Noise of several scales, which is compressed about as much as tissue."""
    import tifffile

    generator = np.random.default_rng(0)
    block = np.zeros((1024, 1024, 3), np.float32)
    for scale in (1, 4, 16, 64):
        noise = generator.normal(size=(1024 // scale, 1024 // scale, 3)).astype(np.float32)
        block += 10 * scale**0.4 * noise.repeat(scale, 0).repeat(scale, 1)
    block = (150 + block).clip(0, 255).astype(np.uint8)

    def tiles() -> Iterator[np.ndarray]:
        for row in range(0, size, TILE):
            for column in range(0, size, TILE):
                y, x = row % 1024, column % 1024
                yield np.roll(block[y : y + TILE, x : x + TILE], (row // 1024, column // 1024), (0, 1))

    tifffile.imwrite(
        path,
        tiles(),
        shape=(size, size, 3),
        dtype="uint8",
        tile=(TILE, TILE),
        photometric="rgb",
        compression="jpeg",
        compressionargs={"level": QUALITY},
    )


def measure(_: str, turns: int, smoke: bool) -> Iterator[timing.Record]:
    threads = int(os.environ["OMP_NUM_THREADS"])  # set by timing.run
    size, count = (SMOKE, 8) if smoke else (SIZE, COUNT)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(threads) as pool:
        path = Path(folder) / "slide.tif"
        write_slide(path, size)
        places = np.random.default_rng(1).integers(0, size - PATCH, (PLACES, count, 2))
        methods, source = readers(path, places, threads, pool)
        expected = methods[next(iter(methods))](0)
        for name, method in methods.items():
            found = np.asarray(method(0))
            assert found.shape == expected.shape, name
            # Two decoders of JPEG round differently.
            assert np.abs(found.astype(int) - expected).mean() < 2, name
        case = f"{count} patches {PATCH} x {PATCH} of {size} x {size} x 3"
        yield timing.compare("patches of a tiled JPEG TIFF", case, methods, turns)
        before = source.statistics
        methods["ats_core.sources"](1)
        after = source.statistics
        needed, decoded = (getattr(after, x) - getattr(before, x) for x in ("bytes_read", "bytes_decoded"))
        tiles = after.tiles_decoded - before.tiles_decoded
        yield {
            "note": f"Bytes decoded by ats_core.sources for bytes needed: {decoded / needed:.2f}, in {tiles} tiles for "
            f"{count} patches, each tile once; without sharing tiles between patches it would be "
            f"{shared_nothing(places[1]) / needed:.2f}."
        }


def shared_nothing(origins: np.ndarray) -> int:
    """Bytes that are decoded if every patch decodes all its tiles."""
    spans = (origins + PATCH - 1) // TILE - origins // TILE + 1
    return int(spans.prod(1).sum()) * TILE * TILE * 3


def readers(
    path: Path, places: np.ndarray, threads: int, pool: ThreadPoolExecutor
) -> tuple[dict[str, Callable[[int], np.ndarray]], object]:
    import openslide
    import tifffile
    import zarr

    from ats_core.sources import SourceBatch, set_cache_size

    batch = SourceBatch([path])
    set_cache_size(0)

    def ours(call: int) -> np.ndarray:
        return batch.read_patches(places[call % PLACES][None], PATCH, threads=threads)[0]

    file = tifffile.TiffFile(path)
    page = file.pages[0]
    across = -(-page.imagewidth // TILE)
    descriptor = os.open(path, os.O_RDONLY)

    def by_hand(origin: np.ndarray) -> np.ndarray:
        """The tiles of a patch, read and decoded by tifffile's page."""
        y, x = origin
        out = np.empty((PATCH, PATCH, 3), np.uint8)
        for row in range(y // TILE, (y + PATCH - 1) // TILE + 1):
            for column in range(x // TILE, (x + PATCH - 1) // TILE + 1):
                index = row * across + column
                data = os.pread(descriptor, page.databytecounts[index], page.dataoffsets[index])
                tile = page.decode(data, index, jpegtables=page.jpegtables)[0][0]
                top, left = row * TILE, column * TILE
                low, high = max(y, top), min(y + PATCH, top + TILE)
                first, last = max(x, left), min(x + PATCH, left + TILE)
                out[low - y : high - y, first - x : last - x] = tile[low - top : high - top, first - left : last - left]
        return out

    store = zarr.open(tifffile.imread(path, aszarr=True), mode="r")

    def by_zarr(origin: np.ndarray) -> np.ndarray:
        y, x = map(int, origin)
        return store[y : y + PATCH, x : x + PATCH]

    slide = openslide.OpenSlide(path)
    slide.set_cache(openslide.OpenSlideCache(0))

    def by_openslide(origin: np.ndarray) -> np.ndarray:
        return np.asarray(slide.read_region((int(origin[1]), int(origin[0])), 0, (PATCH, PATCH)))[..., :3]

    def pooled(one: Callable[[np.ndarray], np.ndarray]) -> Callable[[int], np.ndarray]:
        return lambda call: np.stack(list(pool.map(one, places[call % PLACES])))

    methods = {
        "ats_core.sources": ours,
        "tifffile pages, pool": pooled(by_hand),
        "tifffile aszarr, pool": pooled(by_zarr),
        "openslide, pool": pooled(by_openslide),
    }
    return methods, batch[0]


if __name__ == "__main__":
    timing.run(__doc__, "sources", measure, frameworks=("tifffile",))
