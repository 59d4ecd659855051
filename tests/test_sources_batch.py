"""SourceBatch against `extract_patches` on the whole levels, and each tile decoded once."""

import pickle
import threading

import numpy as np
import pytest

import ats_core
from ats_core.sources import (
    FunctionSource,
    Level,
    SourceBatch,
    SourceError,
    get_cache_size,
    open_source,
    set_cache_size,
)
from sources_files import halves, need, pixels, smooth

SHAPES = [(307, 403), (128, 130), (64, 499)]


@pytest.fixture
def cache():
    """Sets the cache's size; it is put back after the test."""
    before = get_cache_size()
    yield set_cache_size
    set_cache_size(before)


class Tiled:
    """A function over arrays in memory, which notes what it is asked for."""

    def __init__(self, levels, tile):
        self.levels, self.tile, self.asked = levels, tile, []

    def __call__(self, level, start, stop):
        self.asked.append((level, start))
        return self.levels[level][tuple(slice(*ends) for ends in zip(start, stop, strict=True))]

    def source(self):
        levels = [Level(level.shape[:-1], (), self.tile) for level in self.levels]
        return FunctionSource(self, levels, self.levels[0].dtype, self.levels[0].shape[-1], name="tiled")


def tiffs(folder):
    """Pyramids of three sizes: paths, and their levels as tifffile reads them."""
    tifffile, _ = need("tifffile", "imagecodecs")
    paths, wholes = [], []
    for number, shape in enumerate(SHAPES):
        levels = halves(smooth(shape, number), 3)
        path = folder / f"{number}.tif"
        with tifffile.TiffWriter(path) as writer:
            options = {"photometric": "rgb", "compression": "jpeg", "tile": (64, 64)}
            writer.write(levels[0], subifds=2, **options)
            for level in levels[1:]:
                writer.write(level, subfiletype=1, **options)
        with tifffile.TiffFile(path) as file:
            wholes.append([level.asarray() for level in file.series[0].levels])
        paths.append(path)
    return paths, wholes


def places(shapes, n, patch, seed=0):
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(-patch, np.array(shape), (n, len(shape))) for shape in shapes])


def expected(wholes, origins, patch, levels, padding="constant", fill=0.0):
    """What `extract_patches` makes of the pyramids in memory."""
    rows = []
    for whole, row in zip(wholes, origins, strict=True):
        pyramid = [level[None] for level in whole]
        rows.append(ats_core.extract_patches(pyramid, row[None], patch, padding=padding, fill=fill)[0][:, list(levels)])
    return np.stack(rows)


@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("threads", [1, 3])
def test_patches_of_a_pyramid(tmp_path, padding, threads):
    paths, wholes = tiffs(tmp_path)
    origins = places(SHAPES, 20, 48)
    with SourceBatch(paths) as batch:
        assert batch.shapes.tolist() == [list(shape) for shape in SHAPES] and len(batch) == 3
        options = {"padding": padding, "fill": 9.0, "threads": threads}
        for levels in [(0,), (0, 1, 2), (2, 0)]:
            found = batch.read_patches(origins, 48, levels=levels, **options)
            np.testing.assert_array_equal(found, expected(wholes, origins, (48, 48), levels, padding, 9.0))
        one = batch.read_patches(origins, (48, 48), levels=1, **options)
        np.testing.assert_array_equal(one, expected(wholes, origins, (48, 48), [1], padding, 9.0)[:, :, 0])


def test_origins_are_those_of_each_source():
    """The bits of the core, with a scale for every source; halves are rounded to even."""
    generator = np.random.default_rng(0)
    for _ in range(200):
        shapes = generator.integers(1, 5000, (3, 2))
        low, grid, patch = generator.integers(20, 300, 2), generator.integers(1, 40, 2), generator.integers(1, 90, 2)
        field = int(generator.integers(0, 20))
        indices = generator.integers(0, grid.prod(), (3, 7))
        functions = [FunctionSource(lambda *_: None, [tuple(shape)], "uint8") for shape in shapes.tolist()]
        with SourceBatch(functions) as batch:
            options = {"low_shape": low, "receptive_field": field}
            found = batch.patch_origins(indices, grid, patch, **options)
            same = batch.patch_origins(indices, grid, patch, low_shapes=np.tile(low, (3, 1)), **options)
            # A thumbnail that is half padding is one of twice the source.
            half = batch.patch_origins(
                indices, grid, patch, low_shape=2 * low, low_shapes=np.tile(low, (3, 1)), receptive_field=field
            )
        for row, shape in enumerate(shapes):
            args = indices[row : row + 1], grid, shape, patch
            np.testing.assert_array_equal(found[row], ats_core.patch_origins(*args, **options)[0])
            doubled = ats_core.patch_origins(*args[:2], 2 * shape, patch, low_shape=2 * low, receptive_field=field)
            np.testing.assert_array_equal(half[row], doubled[0])
        np.testing.assert_array_equal(found, same)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("limit", [0, 10_000, 1 << 28])
def test_each_tile_is_decoded_once(cache, threads, limit):
    """Whatever the cache holds, and no tile is decoded that no patch touches."""
    cache(limit)
    readers = [Tiled([pixels((*shape, 3), seed=seed)], (32, 48)) for seed, shape in enumerate(SHAPES)]
    origins = places(SHAPES, 60, 40)
    with SourceBatch([reader.source() for reader in readers]) as batch:
        found = batch.read_patches(origins, 40, threads=threads)
        np.testing.assert_array_equal(
            found, expected([reader.levels for reader in readers], origins, (40, 40), [0])[:, :, 0]
        )
        for reader, source, row in zip(readers, batch, origins, strict=True):
            touched = set()
            for y, x in row.tolist():
                ys = range(max(y, 0), min(y + 40, source.shape[0]))
                xs = range(max(x, 0), min(x + 40, source.shape[1]))
                touched |= {
                    (0, (i // 32 * 32, j // 48 * 48)) for i in {*ys[::31], *ys[-1:]} for j in {*xs[::39], *xs[-1:]}
                }
            assert len(reader.asked) == len(set(reader.asked)) and set(reader.asked) == touched
            assert source.statistics.tiles_decoded == len(touched)
            needed = (np.minimum(row + 40, source.shape) - np.maximum(row, 0)).clip(0).prod(1).sum() * 3
            assert source.statistics.bytes_read == needed


def test_a_tile_that_many_threads_want_is_decoded_once():
    gate, asked = threading.Event(), []

    def slow(level, start, stop):
        asked.append(start)
        assert gate.wait(30)
        return np.ones((*(b - a for a, b in zip(start, stop, strict=True)), 1), np.uint8)

    with FunctionSource(slow, [Level((64, 64), (), (64, 64))], "uint8") as source:
        results = []
        threads = [threading.Thread(target=lambda: results.append(source.read(0, (3, 3), 4))) for _ in range(8)]
        for thread in threads:
            thread.start()
        gate.set()
        for thread in threads:
            thread.join()
        assert len(results) == 8 and all((result == 1).all() for result in results) and len(asked) == 1


def test_the_cache_is_bounded(cache):
    cache(1000)
    reader = Tiled([pixels((64, 64, 1))], (16, 16))
    with reader.source() as source:
        for _ in range(2):
            source.read(0, (0, 0), (64, 64))
        assert len(reader.asked) == 32  # three of sixteen tiles fit,
        cache(100)  # now none does
        reader.asked.clear()
        source.read(0, (0, 0), 1)
        source.read(0, (0, 0), 1)
        assert len(reader.asked) == 2
    with pytest.raises(ValueError, match="size: must not be negative"):
        set_cache_size(-1)


def test_thumbnails(tmp_path):
    paths, _ = tiffs(tmp_path)
    with SourceBatch(paths) as batch:
        found, shapes, downsamples = batch.thumbnails(50, fill=200)
        assert found.shape == (3, 49, 50, 3)
        for row, source in enumerate(batch):
            alone, downsample = source.thumbnail(50)
            height, width = shapes[row]
            assert alone.shape == (height, width, 3) and tuple(downsamples[row]) == downsample
            np.testing.assert_array_equal(found[row, :height, :width], alone)
            assert (found[row, height:] == 200).all() and (found[row, :, width:] == 200).all()


def test_thumbnails_at_a_downsample(tmp_path):
    paths, wholes = tiffs(tmp_path)
    with SourceBatch(paths) as batch:
        assert not all(level.downsample == (4, 4) for level in (source.levels[2] for source in batch))  # odd rows
        found, shapes, downsamples = batch.thumbnails(downsample=4, fill=9)
        for row, levels in enumerate(wholes):
            height, width = shapes[row]
            np.testing.assert_array_equal(found[row, :height, :width], levels[2])
            assert (found[row, height:] == 9).all() and (found[row, :, width:] == 9).all()
            assert tuple(downsamples[row]) == batch[row].levels[2].downsample
        # Neither within 2% of a level nor a whole number.
        found, shapes, _ = batch.thumbnails(downsample=(3.0, 7.5))
        for row, source in enumerate(batch):
            assert shapes[row].tolist() == [round(source.shape[0] / 3), round(source.shape[1] / 7.5)]
            height, width = shapes[row]
            np.testing.assert_array_equal(found[row, :height, :width], source.thumbnail((height, width))[0])
        reads = [source.statistics.tiles_decoded for source in batch]
        batch.thumbnails(downsample=4.05)
        assert [source.statistics.tiles_decoded for source in batch] == reads  # the level, from the cache


def test_thumbnail_memory_is_bounded():
    """Strips of a source that is far too large for memory."""
    largest = []

    def function(level, start, stop):
        size = [b - a for a, b in zip(start, stop, strict=True)]
        largest.append(size[0] * size[1])
        return np.broadcast_to(np.uint8(5), (*size, 1))

    with FunctionSource(function, [(20_000, 9_000)], "uint8") as source:
        thumbnail, downsample = source.thumbnail(10)
        assert thumbnail.shape == (10, 4, 1) and (thumbnail == 5).all() and downsample == (2000.0, 2250.0)
    assert max(largest) <= 17 << 20 and sum(largest) >= 20_000 * 9_000


def test_a_batch_is_pickled(tmp_path):
    paths, wholes = tiffs(tmp_path)
    origins = places(SHAPES, 3, 32)
    with SourceBatch(paths) as batch, pickle.loads(pickle.dumps(batch)) as other:
        np.testing.assert_array_equal(
            other.read_patches(origins, 32), expected(wholes, origins, (32, 32), [0])[:, :, 0]
        )
        assert isinstance(batch[1:], SourceBatch) and batch[1:][0] is batch[1] and repr(batch) == repr(other)


@pytest.mark.parametrize("threads", [1, 2])
def test_an_error_comes_through(threads):
    def broken(level, start, stop):
        if start[0] > 20:
            raise OSError("no such luck")
        return np.zeros((*(b - a for a, b in zip(start, stop, strict=True)), 1), np.uint8)

    source = FunctionSource(broken, [(64, 64)], "uint8", name="luckless")
    with SourceBatch([source, source]) as batch:
        batch.read_patches(np.zeros((2, 5, 2), np.int64), 8, threads=threads)
        with pytest.raises(SourceError, match=r"^luckless: level 0, region \[30:38, 1:9\]: OSError: no such luck$"):
            batch.read_patches(np.full((2, 5, 2), [[[30, 1]]]), 8, threads=threads)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"origins": np.zeros((2, 1, 3), int)}, ValueError, r"origins: must have the shape \(2, n, 2\)"),
        ({"origins": np.zeros((2, 1, 2))}, TypeError, "origins: must hold int64"),
        ({"patch_size": 0}, ValueError, "patch_size: must be at least 1"),
        ({"patch_size": (4, 4, 4)}, ValueError, "patch_size: must have 2 values"),
        ({"levels": 1}, ValueError, "level: must be 0 to 0"),
        ({"levels": ()}, ValueError, "levels: must not be empty"),
        ({"padding": "wrap"}, ValueError, "padding: must be one of 'constant', 'edge', 'reflect', got 'wrap'"),
        ({"fill": "x"}, TypeError, "fill: must be a real number"),
        ({"threads": 0}, ValueError, "threads: must be at least 1"),
    ],
)
def test_bad_arguments(options, error, words):
    arguments = {"origins": np.zeros((2, 1, 2), np.int64), "patch_size": 4, **options}
    with SourceBatch([pixels((9, 9, 1)), pixels((5, 7, 1))]) as batch, pytest.raises(error, match=words):
        batch.read_patches(**arguments)


def test_sources_that_do_not_go_together():
    image = pixels((9, 9, 3))
    for other, name in [(image[..., :1], "channels"), (image.astype(float), "dtype")]:
        with pytest.raises(ValueError, match=f"sources: must have the same {name}, but array"):
            SourceBatch([image, other])
    with pytest.raises(ValueError, match="the same axes"):
        SourceBatch([open_source(image[..., 0], axes="yx"), open_source(image[:, 0, 0], axes="x")])
    with pytest.raises(ValueError, match="sources: must not be empty"):
        SourceBatch([])
    with pytest.raises(TypeError, match="sources: must be a sequence"):
        SourceBatch("a.tif")


def test_one_dimension_and_three():
    for shape, axes in [((500, 2), "xc"), ((12, 20, 22, 1), "tyxc")]:
        images = [pixels(shape, seed=0), pixels((shape[0] + 9, *shape[1:]), seed=1)]
        origins = places([image.shape[:-1] for image in images], 9, 6)
        with SourceBatch([open_source(image, axes=axes) for image in images]) as batch:
            found = batch.read_patches(origins, 6, padding="reflect")
        patch = (6,) * (len(shape) - 1)
        np.testing.assert_array_equal(
            found, expected([[image] for image in images], origins, patch, [0], "reflect")[:, :, 0]
        )
