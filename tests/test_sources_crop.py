"""Crops of sources against slices of the whole levels."""

import pickle

import numpy as np
import pytest

from ats_core import extract_patches
from ats_core.sources import FunctionSource, Level, SourceBatch, SourceError, open_source
from sources_files import need, pixels, smooth


class Tiled:
    """A function over arrays in memory, which notes what it is asked for."""

    def __init__(self, levels):
        self.levels, self.asked = levels, []

    def __call__(self, level, start, stop):
        self.asked.append((level, start))
        return self.levels[level][tuple(slice(*ends) for ends in zip(start, stop, strict=True))]


def pyramid(shapes, channels=3, tile=16, name="whole"):
    """Levels of noise, a source of them, and the function that it reads."""
    levels = [pixels((*shape, channels), seed=number) for number, shape in enumerate(shapes)]
    function = Tiled(levels)
    tiles = None if tile is None else (tile,) * len(shapes[0])
    source = FunctionSource(function, [Level(shape, (), tiles) for shape in shapes], "uint8", channels, name=name)
    return levels, source, function


def cut(level, origin, size):
    return level[tuple(slice(first, first + length) for first, length in zip(origin, size, strict=True))]


def padded(image, origin, size, padding, fill=7.0):
    return extract_patches(image[None], [[origin]], size, padding=padding, fill=fill)[0, 0]


HALVES = [(96, 128), (48, 64), (24, 32)]


@pytest.mark.parametrize("tile", [None, 16])
@pytest.mark.parametrize(
    ("shapes", "origin", "size", "expected"),
    [
        (HALVES, (0, 0), (96, 128), {0: (0, 0), 1: (0, 0), 2: (0, 0)}),
        (HALVES, (8, 20), (64, 72), {0: (8, 20), 1: (4, 10), 2: (2, 5)}),
        (HALVES, (10, 20), (64, 72), {0: (10, 20), 1: (5, 10)}),  # 2.5 of 16 pixels: 3% off
        (HALVES, (8, 20), (64, 75), {0: (8, 20)}),
        ([(400, 400), (200, 200)], (1, 0), (100, 101), {0: (1, 0), 1: (0, 0)}),  # half a pixel of 50 is 1%
        ([(400, 400), (200, 200)], (1, 0), (98, 100), {0: (1, 0)}),
        ([(301, 403), (150, 201), (75, 100)], (120, 201), (160, 200), {0: (120, 201), 1: (60, 100), 2: (30, 50)}),
        ([(90,), (30,)], (33,), (42,), {0: (33,), 1: (11,)}),
        ([(16, 40, 40), (8, 20, 20)], (2, 10, 0), (4, 30, 8), {0: (2, 10, 0), 1: (1, 5, 0)}),
        (HALVES, (95, 127), (1, 1), {0: (95, 127)}),
    ],
)
def test_levels_are_slices(shapes, origin, size, expected, tile):
    levels, source, _ = pyramid(shapes, tile=tile)
    crop = source.crop(origin, size)
    assert crop.shape == size and (crop.axes, crop.dtype, crop.channels) == (source.axes, source.dtype, 3)
    assert len(crop.levels) == len(expected)
    for number, (parent, first) in enumerate(expected.items()):
        shape, factors = crop.levels[number].shape, source.levels[parent].downsample
        exact = [length / factor for length, factor in zip(size, factors, strict=True)]
        np.testing.assert_allclose(shape, exact, rtol=0.02)
        assert crop.levels[number].tile == source.levels[parent].tile
        np.testing.assert_array_equal(crop.read(number, [0] * len(size), shape), cut(levels[parent], first, shape))


@pytest.mark.parametrize("padding", ["constant", "edge", "reflect"])
@pytest.mark.parametrize("tile", [None, 16])
def test_padding_begins_at_the_borders_of_the_crop(padding, tile):
    levels, source, _ = pyramid(HALVES, tile=tile)
    crop = source.crop((8, 20), (64, 72))
    for number, first in enumerate([(8, 20), (4, 10), (2, 5)]):
        image = cut(levels[number], first, crop.levels[number].shape)
        for origin in ((-5, 3), (60 >> number, 70 >> number), (-200, 0), (-20, -20)):
            read = crop.read(number, origin, (30, 41), padding=padding, fill=7.0)
            np.testing.assert_array_equal(read, padded(image, origin, (30, 41), padding))


def test_a_crop_of_a_crop():
    levels, source, _ = pyramid(HALVES)
    crop = source.crop((8, 20), (64, 72)).crop((16, 4), (32, 40))
    assert crop.name == "whole[8:72, 20:92][16:48, 4:44]"
    for number, first in enumerate([(24, 24), (12, 12), (6, 6)]):
        shape = crop.levels[number].shape
        np.testing.assert_array_equal(crop.read(number, (0, 0), shape), cut(levels[number], first, shape))


def test_patches_are_those_of_the_part_alone_and_each_tile_is_decoded_once():
    levels, source, function = pyramid([(512, 640), (256, 320), (128, 160)])
    corners = [(0, 0), (64, 128), (200, 300), (64, 132)]
    origins = np.random.default_rng(0).integers(-40, 280, (4, 12, 2))
    batch = SourceBatch([source.crop(corner, (256, 256)) for corner in corners])
    patches = batch.read_patches(origins, 24, levels=(0, 1, 2), padding="reflect", threads=2)
    assert len(function.asked) == len(set(function.asked))
    for row, corner in enumerate(corners):
        part = [cut(level, [x >> k for x in corner], (256 >> k, 256 >> k))[None] for k, level in enumerate(levels)]
        expected = extract_patches(part, origins[row : row + 1], 24, padding="reflect")
        np.testing.assert_array_equal(patches[row : row + 1], expected)
    batch.read_patches(origins, 24, scales=(1, 4))
    assert source.statistics.tiles_decoded == len(function.asked) == len(set(function.asked))  # the whole keeps them
    assert batch[0].statistics.bytes_read > 0 == batch[0].statistics.tiles_decoded


def test_thumbnails_come_from_the_crops_levels():
    _, source, function = pyramid([(512, 640), (256, 320), (128, 160)])
    low, downsample = source.crop((64, 128), (256, 384)).thumbnail(96)
    np.testing.assert_array_equal(low, source.read(2, (16, 32), (64, 96)))
    assert downsample == (4, 4) and {level for level, _ in function.asked} == {2}


def test_a_crop_of_a_file_goes_to_other_processes(tmp_path):
    tifffile, _ = need("tifffile", "imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", smooth((150, 200)), tile=(64, 64), resolution=(40_000, 40_000))
    whole = tifffile.imread(tmp_path / "a.tif")
    with open_source(tmp_path / "a.tif") as source:
        crops = pickle.loads(pickle.dumps([source.crop((10, 20), 100), source.crop((50, 60), 90)]))
        assert crops[0].name == f"{tmp_path / 'a.tif'}[10:110, 20:120]"
        assert crops[0].spacing == source.spacing and crops[0].units == source.units
        np.testing.assert_array_equal(crops[1].read(0, (0, 0), 90), whole[50:140, 60:150])
        np.testing.assert_array_equal(crops[0].read(0, (0, 0), 100), whole[10:110, 20:120])
        tiles = [crop._locate(0, (0, 0))[0].statistics.tiles_decoded for crop in crops]
        assert tiles[0] == tiles[1] > 0 and source.statistics.tiles_decoded == 0  # of one whole, which went with them


def test_closing():
    levels, source, _ = pyramid(HALVES)
    first, second = source.crop((0, 0), 64), source.crop((8, 8), 64)
    with first:
        first.read(0, (0, 0), 8)
    assert first.closed and not source.closed
    with pytest.raises(SourceError, match=r"whole\[0:64, 0:64\]: is closed"):
        first.read(0, (0, 0), 8)
    np.testing.assert_array_equal(second.read(0, (0, 0), 8), levels[0][8:16, 8:16])
    source.close()
    with pytest.raises(SourceError, match=r"whole: .*is closed"):
        second.read(0, (0, 0), 8)
    with pytest.raises(SourceError, match="whole: is closed"):
        source.crop((0, 0), 8)


def test_an_error_names_the_file_and_its_region(tmp_path):
    tifffile, _ = need("tifffile", "imagecodecs")
    tifffile.imwrite(tmp_path / "a.tif", smooth((128, 128)), tile=(64, 64))
    with open_source(tmp_path / "a.tif") as source:
        crop = source.crop((64, 64), 64)
        with open(tmp_path / "a.tif", "r+b") as file:
            file.truncate(64 * 64 * 3 * 2)
        with pytest.raises(SourceError, match=r"a\.tif: level 0, region \[64:128, 64:128\]: the file is cut off"):
            crop.read(0, (0, 0), 8)


@pytest.mark.parametrize(
    ("origin", "size", "error", "words"),
    [
        ((-1, 0), 8, ValueError, r"origin: \(-1, 0\) with size \(8, 8\) reaches outside of whole"),
        ((0, 121), 8, ValueError, r"origin: .* whose shape is \(96, 128\)"),
        ((0, 0), 97, ValueError, "origin: "),
        ((0, 0), 0, ValueError, "size: must be at least 1"),
        ((0, 0), (8, -8), ValueError, "size: must be at least 1"),
        ((0, 0, 0), 8, ValueError, "origin: "),
        ((0.5, 0), 8, TypeError, "origin: "),
        ((0, 0), "8", TypeError, "size: "),
        ((0, 0), None, TypeError, "size: "),
    ],
)
def test_bad_arguments(origin, size, error, words):
    _, source, _ = pyramid(HALVES)
    with pytest.raises(error, match=words):
        source.crop(origin, size)
