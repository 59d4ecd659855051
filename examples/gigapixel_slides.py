"""Write the slides of the gigapixel example: pyramids of JPEG tiles, a row of tiles at a time."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor

import imagecodecs
import numpy as np
import tifffile
from gigapixel_data import CELL, COARSEST, GLASS, MPP, STAINS, TILE

QUALITY = 80  # of the JPEG tiles
REACH = 1.6  # largest radius of a lesion over the mean one
EDGE = 14.0  # pixels over which a lesion passes into the tissue


def colours():
    """What a pixel looks like, by haematoxylin * 256 + eosin: red, green, blue and 0 in 16 bits each of one uint64."""
    h, e = np.divmod(np.arange(1 << 16), 256)
    rgb = GLASS * np.exp(-(h[:, None] / 255 * STAINS[0] + e[:, None] / 255 * STAINS[1]))
    lanes = np.zeros((1 << 16, 4), np.uint16)
    lanes[:, :3] = rgb.round()
    return lanes.view(np.uint64)[:, 0]


def halve(pixels):
    """Means of 2 x 2 pixels, each of four 16-bit numbers in a uint64: three additions for a pixel's colours at once."""
    rows = pixels[::2] + pixels[1::2]
    sums = rows[:, ::2] + rows[:, 1::2]
    return ((sums.view(np.uint16) + 2) >> 2).view(np.uint64)


def encode(pixels):
    rgb = pixels.view(np.uint16).reshape(TILE, TILE, 4)[..., :3].astype(np.uint8)
    return imagecodecs.jpeg8_encode(
        rgb, level=QUALITY, colorspace="RGB", outcolorspace="YCBCR", subsampling="420", optimize=False
    )


def upsample(field, row, column):
    """A tile of a field that has a number every CELL pixels: linear in between."""
    cells = TILE // CELL
    part = field[row * cells : (row + 1) * cells + 1, column * cells : (column + 1) * cells + 1]
    return _WEIGHTS @ part @ _WEIGHTS.T


def _weights():
    at = (np.arange(TILE) + 0.5) / CELL
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(TILE // CELL + 1))).astype(np.float32)


_WEIGHTS = _weights()


class Painter:
    """Tiles of level 0 of a planned slide, as (TILE, TILE) uint64 (see `colours`).

    Args:
        plan: of the slide.
        textures: what `gigapixel_data.tissues` returned.
        lesions: what `gigapixel_data.lesion_textures` returned.
    """

    def __init__(self, plan, textures, lesions):
        self.plan, self.textures = plan, textures
        self.colours = colours()
        self.glass = np.full((TILE, TILE), self.colours[0])
        self._stamp = functools.lru_cache(64)(lambda lesion: make_stamp(lesion, lesions[lesion.kind]))
        self.near = {}  # lesions that a tile may show
        for lesion in plan.lesions:
            reach = REACH * lesion.radius + EDGE
            rows, columns = (
                range(int((x - reach) // TILE), int((x + reach) // TILE) + 1) for x in (lesion.y, lesion.x)
            )
            for row in rows:
                for column in columns:
                    self.near.setdefault((row, column), []).append(lesion)

    def __call__(self, row, column):
        plan = self.plan
        tissue = upsample(plan.tissue, row, column)
        if tissue.max() <= -0.05:
            return self.glass
        cellular = upsample(plan.gland, row, column)
        h = e = None
        if cellular.min() < 0.15:
            h, e = self._texture(1, row, column)
        if cellular.max() > -0.15:
            share = np.clip(cellular / 0.3 + 0.5, 0, 1)
            ours = self._texture(0, row, column)
            h, e = ours if h is None else (h + share * (ours.h - h), e + share * (ours.e - e))
        shade = upsample(plan.shade, row, column)
        h, e = h * shade, e * shade
        for lesion in self.near.get((row, column), ()):
            self._add(lesion, h, e, row, column)
        if tissue.min() < 0.1:
            # Fibres stick out of the edge.
            there = np.clip((tissue + 0.25 * (e - 0.35)) / 0.05, 0, 1)
            h, e = h * there, e * there
        index = np.clip(h * 255, 0, 255).astype(np.uint32) << 8 | np.clip(e * 255, 0, 255).astype(np.uint32)
        return self.colours.take(index)

    def _texture(self, number, row, column):
        texture = self.textures[number]
        tiles = len(texture.h) // TILE
        rows, columns = (slice(i % tiles * TILE, i % tiles * TILE + TILE) for i in (row, column))
        return type(texture)(texture.h[rows, columns], texture.e[rows, columns])

    def _add(self, lesion, h, e, row, column):
        top, left, share, theirs = self._stamp(lesion)
        down, right = row * TILE - top, column * TILE - left  # where the tile begins in the stamp
        ours = tuple(slice(max(0, -first), max(0, len(share) - first)) for first in (down, right))
        its = tuple(slice(max(0, first), max(0, first + TILE)) for first in (down, right))
        for plane, other in ((h, theirs.h), (e, theirs.e)):
            plane[ours] += share[its] * (other[its] - plane[ours])


def make_stamp(lesion, textures):
    """First row and column of a lesion's square, its share of each pixel there, and its texture."""
    generator = np.random.default_rng(lesion.seed)
    texture = textures[generator.integers(len(textures))]
    turns, mirror = generator.integers(4), 1 - 2 * generator.integers(2)
    waves = generator.normal(size=(4, 2)) * np.array([0.09, 0.07, 0.05, 0.04])[:, None]
    angles = np.linspace(-np.pi, np.pi, 721)
    outline = 1 + sum(a * np.cos(n * angles) + b * np.sin(n * angles) for n, (a, b) in enumerate(waves, 2))
    outline = lesion.radius * np.clip(outline / np.sqrt(np.mean(outline**2)), 0.4, REACH)  # the circle's area
    reach = int(outline.max() + EDGE)
    top, left = int(lesion.y) - reach, int(lesion.x) - reach
    dy, dx = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    inside = np.interp(np.arctan2(dy, dx), angles, outline) - np.hypot(dy, dx)
    share = np.clip(inside / EDGE + 0.5, 0, 1).astype(np.float32)
    there = np.ix_(*(np.arange(len(share)) % len(texture.h),) * 2)
    planes = (np.rot90(plane[:, ::mirror], turns)[there].astype(np.float32) for plane in texture)
    return top, left, share, type(texture)(*planes)


class Pyramid:
    """Encoded tiles of every level, made a row of tiles at a time; a pixel is the mean of four of the level before.

    In memory are a row of tiles of each level, and the encoded tiles of all levels but the first.

    Attributes:
        sizes: pixels along the side of each level.
        encoded: the tiles of each level so far, none of the first.
    """

    def __init__(self, size, blank, pool):
        self.sizes = [size >> number for number in range(COARSEST.bit_length())]
        self.encoded = [[] for _ in self.sizes]
        self._tiles = [-(-length // TILE) for length in self.sizes]
        self._rows = [0 for _ in self.sizes]
        self._strips = [np.full((TILE, count * TILE), blank) for count in self._tiles[1:]]
        self._blank, self._pool = blank, pool
        self._encoded_blank = encode(np.full((TILE, TILE), blank))

    def add_row(self, level, paint):
        """The encoded tiles of the next row of a level, which `paint(column)` gives; coarser levels grow with it."""
        half = self._rows[level] % 2
        strip = part = None
        if level < len(self._strips):
            strip = self._strips[level]
            strip[half * TILE // 2 :] = self._blank
            part = strip[half * TILE // 2 : (half + 1) * TILE // 2]

        def finish(column):
            pixels = paint(column)
            if (pixels == self._blank).all():
                return self._encoded_blank
            if part is not None:
                part[:, column * TILE // 2 : (column + 1) * TILE // 2] = halve(pixels)
            return encode(pixels)

        tiles = list(self._pool.map(finish, range(self._tiles[level])))
        self._rows[level] += 1
        if strip is not None and (half == 1 or self._rows[level] == self._tiles[level]):
            self.encoded[level + 1] += self.add_row(
                level + 1, lambda column: strip[:, column * TILE : (column + 1) * TILE]
            )
        return tiles


def write_slide(path, plan, textures, lesions, threads, progress=lambda rows: None):
    """Write a slide: BigTIFF with OME-XML, its coarser levels in SubIFDs. The file has its name once it is whole.

    `progress(1)` is called after every row of tiles.
    """
    paint = Painter(plan, textures, lesions)

    def finest(pyramid):
        for row in range(-(-plan.size // TILE)):
            tiles = pyramid.add_row(0, functools.partial(paint, row))
            progress(1)
            yield from tiles  # nothing comes after the last: nobody asks for more

    part = path.with_name(path.name + ".part")
    options = {
        "dtype": "uint8",
        "tile": (TILE, TILE),
        "photometric": "ycbcr",
        "subsampling": (2, 2),
        "compression": "jpeg",
    }
    spacing = {f"PhysicalSize{axis}{unit}": value for axis in "XY" for unit, value in (("", MPP), ("Unit", "µm"))}
    with ThreadPoolExecutor(threads) as pool, tifffile.TiffWriter(part, bigtiff=True, ome=True) as writer:
        pyramid = Pyramid(plan.size, paint.colours[0], pool)
        for number, size in enumerate(pyramid.sizes):
            writer.write(
                finest(pyramid) if number == 0 else iter(pyramid.encoded[number]),
                shape=(size, size, 3),
                subifds=len(pyramid.sizes) - 1 if number == 0 else 0,
                subfiletype=int(number > 0),
                metadata={"axes": "YXS", **spacing} if number == 0 else None,
                **options,
            )
    os.replace(part, path)
