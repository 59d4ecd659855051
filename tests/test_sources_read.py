"""Every backend of `ats_core.sources` returns the pixels that reading the file whole returns, from any thread."""

import multiprocessing
import os
import pickle
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import ats_core
from ats_core.sources import SourceError, open_source
from sources_files import MAKERS, made  # noqa: F401

PADDINGS = ["constant", "edge", "reflect"]
FILL = 7
CORE = {"uint8", "int16", "uint16", "float16", "float32", "float64"}


def expected(level, origin, size, padding):
    """`extract_patches` on the whole level; dtypes that it does not take go through float64."""
    level = np.ascontiguousarray(level)
    image = level if level.dtype.name in CORE else level.astype(np.float64)
    return ats_core.extract_patches(image[None], [[origin]], size, padding=padding, fill=FILL)[0, 0].astype(level.dtype)


def regions(shape, seed=0):
    """(origin, size) inside, across tiles, over every border and far outside."""
    generator = np.random.default_rng(seed)
    yield [0] * len(shape), list(shape)
    yield [-3] * len(shape), [length + 7 for length in shape]
    yield [10**12] * len(shape), [5] * len(shape)
    yield [-(10**15)] * len(shape), [4] * len(shape)
    for _ in range(12):
        size = [int(generator.integers(1, max(2, min(40, length)))) for length in shape]
        yield [int(generator.integers(-n, length + n)) for n, length in zip(size, shape, strict=True)], size


def check(source, levels):
    for number, level in enumerate(levels):
        for index, (origin, size) in enumerate(regions(level.shape[:-1], number)):
            padding = PADDINGS[index % 3]
            found = source.read(number, origin, size, padding=padding, fill=FILL)
            np.testing.assert_array_equal(found, expected(level, origin, size, padding))


def test_the_same_pixels_as_reading_the_file_whole(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source:
        assert [level.shape for level in source.levels] == [level.shape[:-1] for level in levels]
        assert (source.dtype, source.channels) == (levels[0].dtype.newbyteorder("="), levels[0].shape[-1])
        assert source.dtype.isnative and source.shape == levels[0].shape[:-1]
        assert len(source.spacing) == len(source.units) == len(source.axes)
        for level in source.levels:
            assert level.downsample == tuple(a / b for a, b in zip(source.shape, level.shape, strict=True))
        check(source, levels)


@pytest.mark.parametrize(
    ("name", "axes", "spacing", "units", "mpp"),
    [
        ("ome_tiff", "zyx", (2.0, 0.5, 0.25), ("um",) * 3, (2.0, 0.5, 0.25)),
        ("tiff_pyramid", "yx", (1.0, 0.5), ("um",) * 2, (1.0, 0.5)),
        ("ome_zarr", "yx", (0.5, 0.25), ("um",) * 2, (0.5, 0.25)),
        ("dicom", "yx", (0.5, 0.5), ("um",) * 2, (0.5, 0.5)),
        ("nifti", "zyx", (2.0, 1.0, 0.5), ("mm",) * 3, (2000.0, 1000.0, 500.0)),
        ("audio_wav", "x", (1 / 16000,), ("s",), None),
        ("video_h264", "tyx", (0.04, None, None), ("s", None, None), None),
        ("npy", "yx", (None, None), (None, None), None),
    ],
)
def test_spacing(tmp_path, name, axes, spacing, units, mpp):
    [maker] = [maker for maker in MAKERS if maker.__name__ == name]
    path, options, _ = maker(tmp_path)
    with open_source(path, **options) as source:
        assert (source.axes, source.units) == (axes, units)
        assert source.spacing == pytest.approx(spacing) and source.mpp == (mpp and pytest.approx(mpp))


def test_every_padding(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source:
        shape = source.shape
        for padding in PADDINGS:
            found = source.read(0, [-5] * len(shape), [9] * len(shape), padding=padding, fill=FILL)
            np.testing.assert_array_equal(found, expected(levels[0], [-5] * len(shape), [9] * len(shape), padding))


def test_threads_read_the_same(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source, ThreadPoolExecutor(8) as pool:
        for result in [pool.submit(check, source, levels) for _ in range(8)]:
            result.result()


def test_a_pickled_source_reads_the_same(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source:
        state = pickle.dumps(source)
        with pickle.loads(state) as other:
            assert repr(other) == repr(source) and other.levels == source.levels
            check(other, levels)
            check(source, levels)
        with pytest.raises(SourceError, match="is closed"):
            other.read(0, [0] * len(source.shape), 1)
        check(source, levels)


def child(source, levels, errors):
    try:
        check(source, levels)
    except BaseException as error:
        errors.put(repr(error))
        raise


def test_forked_processes_read_the_same(made):  # noqa: F811
    """Children of a process that has the file open, and may have read half of it, all at once."""
    path, options, levels = made
    context = multiprocessing.get_context("fork")
    with open_source(path, **options) as source:
        check(source, levels[:1])
        errors = context.Queue()
        children = [context.Process(target=child, args=(source, levels, errors)) for _ in range(3)]
        for process in children:
            process.start()
        check(source, levels)
        for process in children:
            process.join(60)
        assert [process.exitcode for process in children] == [0] * 3, errors.get(timeout=1)


def test_thumbnails_are_means(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source:
        size = [max(1, min(40, length // 4)) for length in source.shape]
        found, downsample = source.thumbnail(size)
        assert found.shape == (*size, source.channels) and found.dtype == source.dtype
        np.testing.assert_allclose(downsample, np.array(source.shape) / size)
        check_means(found, levels, size)
        whole, downsample = source.thumbnail(10**6)
        np.testing.assert_array_equal(whole, levels[0])
        assert downsample == (1.0,) * len(size)


def test_thumbnails_at_a_downsample(made):  # noqa: F811
    path, options, levels = made
    with open_source(path, **options) as source:
        for number, level in enumerate(source.levels):
            found, downsample = source.thumbnail(downsample=level.downsample)
            np.testing.assert_array_equal(found, levels[number])
            assert downsample == level.downsample
        several = [max(2.9 + axis, length / 40) for axis, length in enumerate(source.shape)]  # no level has these
        for factors in (several, max(several)):
            found, downsample = source.thumbnail(downsample=factors)
            each = np.broadcast_to(factors, len(source.shape))
            size = [max(1, round(length / factor)) for length, factor in zip(source.shape, each, strict=True)]
            assert found.shape == (*size, source.channels) and found.dtype == source.dtype
            assert downsample == tuple(a / b for a, b in zip(source.shape, size, strict=True))
            check_means(found, levels, size)


def check_means(found, levels, size):
    """The means of the coarsest level that has as many pixels."""
    level = next(level for level in reversed(levels) if all(np.array(level.shape[:-1]) >= size))
    means = level.astype(np.float64)
    for axis, cells in enumerate(size):
        means = np.moveaxis(weights(means.shape[axis], cells) @ np.moveaxis(means, axis, -2), -2, axis)
    if found.dtype.kind == "f":
        np.testing.assert_allclose(found, means, rtol=1e-5, atol=1e-6 * np.abs(means).max())
    else:
        np.testing.assert_allclose(found, means, rtol=0, atol=0.5 + 1e-6)


def weights(length, cells):
    """(cells, length): the share of every pixel in a cell's mean."""
    edges = np.arange(cells + 1) * (length / cells)
    left, right = np.arange(length), np.arange(1, length + 1)
    overlap = np.minimum(edges[1:, None], right) - np.maximum(edges[:-1, None], left)
    return overlap.clip(0) / (length / cells)


def open_files():
    return sorted(
        os.readlink(f"/proc/self/fd/{name}")
        for name in os.listdir("/proc/self/fd")
        if name.isdigit() and os.path.exists(f"/proc/self/fd/{name}")
    )


def test_nothing_stays_open(made):  # noqa: F811
    path, options, levels = made
    shape = levels[0].shape[:-1]
    for _ in range(2):  # what a library opens once for all is not a leak
        open_source(path, **options).close()
    before = open_files()
    for number in range(20):
        source = open_source(path, **options)
        source.read(0, [0] * len(shape), 1)
        if number % 2:
            source.close()
        with pytest.raises(ValueError, match="level"):
            source.read(99, [0] * len(shape), 1)
        del source
    assert open_files() == before
