"""Made-up slides of stained tissue for the gigapixel example: pyramids of JPEG tiles with small lesions of two kinds.

Seen from afar both kinds are the same dark spots; close by, one is made of rings of round nuclei and the other of
bundles of spindle-shaped ones. Everything follows from a seed.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy import fft, ndimage

KINDS = ("rings", "spindles")
TILE = 256  # pixels of a JPEG tile
CELL = 64  # pixels between the numbers that say where the tissue is
COARSEST = 64  # downsample of the last level; crops begin at its pixels
MPP = 0.25  # micrometres a pixel
RADII = 90.0, 200.0  # of a lesion, in pixels
LESIONS = 8  # in the tissue that a crop is full of
TISSUE = 0.33  # share of the slide
PERIODS = 1024, 768  # of the two textures; what is on the slide repeats after their least common multiple only
LESION_SIDE = 448  # of the textures of lesions
# How much of red, green and blue a full stain absorbs: haematoxylin in nuclei, eosin in everything else.
STAINS = np.array([[1.55, 1.65, 0.70], [0.14, 1.10, 0.35]])
GLASS = np.array([243.0, 241.0, 245.0])


# ------------------------------------------------------------------------------------------------------------ textures


def noise(shape, scale, generator):
    """Periodic noise of blobs about `scale` pixels wide (one number, or one per axis); mean 0, standard deviation 1."""
    scales = np.broadcast_to(scale, 2)
    y, x = (np.exp(-0.5 * (np.pi * fft.fftfreq(n) * s) ** 2) for n, s in zip(shape, scales, strict=True))
    waves = fft.rfft2(generator.standard_normal(shape, np.float32))
    waves *= np.outer(y, x[: shape[1] // 2 + 1]).astype(np.float32)
    values = fft.irfft2(waves, shape)
    return (values - values.mean()) / values.std()


def nuclei(shape, pitch, radii, angle, generator, jitter=0.35, wobble=1.5):
    """Periodic texture of nuclei, from 0 to 1, one a cell of a grid with about `pitch` (y, x) pixels.

    `radii` are half the length and half the width, `angle` (radians, from the x axis) the direction of the length, with
    `None` any.
    """
    grid = [max(2, round(n / p)) for n, p in zip(shape, pitch, strict=True)]
    wave = [wobble * noise(shape, 9, generator) for _ in range(2)]
    nearest, dark = np.full(shape, np.inf, np.float32), np.zeros(shape, np.float32)
    for cell in np.ndindex(*grid):
        centre = (cell + generator.uniform(0.5 - jitter, 0.5 + jitter, 2)) * shape / grid
        turn = generator.uniform(0, np.pi) if angle is None else angle + generator.normal(0, 0.15)
        lengths = radii * generator.uniform(0.8, 1.2, 2)
        reach = 1.4 * lengths.max() + 3 * wobble
        ys, xs = (np.arange(int(c - reach), int(c + reach) + 1) for c in centre)
        at = np.ix_(ys % shape[0], xs % shape[1])
        dy, dx = ys[:, None] - centre[0] + wave[0][at], xs - centre[1] + wave[1][at]
        u, v = dx * np.cos(turn) + dy * np.sin(turn), dy * np.cos(turn) - dx * np.sin(turn)
        # Nuclei next to each other do not overlap: of two the nearer is seen.
        distance = (u / lengths[0]) ** 2 + (v / lengths[1]) ** 2
        nearer = distance < nearest[at]
        nearest[at] = np.where(nearer, distance, nearest[at])
        dark[at] = np.where(nearer, generator.uniform(0.7, 1.0), dark[at])
    return dark / (1 + np.exp(np.minimum(7 * (nearest - 1), 30))) * (1 + 0.12 * noise(shape, 3, generator))


class Texture(NamedTuple):
    """Haematoxylin and eosin per pixel, 0 to 1."""

    h: np.ndarray
    e: np.ndarray


def bent(texture, amount, scale, generator):
    """A periodic texture whose rows are bent by about `amount` pixels within `scale`, its columns by half of that."""
    shape = texture.h.shape
    y, x = np.mgrid[: shape[0], : shape[1]]
    places = y + amount * noise(shape, scale, generator), x + amount / 2 * noise(shape, scale, generator)
    return Texture(
        *(ndimage.map_coordinates(plane, places, np.float32, order=1, mode="grid-wrap") for plane in texture)
    )


def tissues(seed):
    """The textures of cellular tissue and of stroma."""
    generator = np.random.default_rng((seed, 0))
    side = (PERIODS[0],) * 2
    cells = nuclei(side, (36, 36), (9.5, 8.0), None, generator)
    plasma = 0.42 + 0.05 * noise(side, 24, generator) + 0.05 * noise(side, 4, generator)
    cellular = Texture(0.06 + 0.72 * cells, plasma - 0.15 * cells)
    side = (PERIODS[1],) * 2
    spindles = nuclei(side, (64, 90), (13.0, 3.5), 0.0, generator)
    fibres = noise(side, (5, 60), generator) + 0.6 * noise(side, (12, 90), generator)
    stroma = Texture(0.03 + 0.66 * spindles, 0.33 + 0.06 * fibres)
    return cellular, bent(stroma, 32, 150, generator)


def rings(generator):
    """Nuclei in circles around small pale holes."""
    side, radius = (LESION_SIDE,) * 2, 14.5
    grid = 10
    pitch = LESION_SIDE / grid
    y, x = np.mgrid[:LESION_SIDE, :LESION_SIDE].astype(np.float32)
    row = np.floor(y / pitch).astype(int)
    x -= pitch / 2 * (row % 2)
    column = np.floor(x / pitch).astype(int)
    at = row % grid, column % grid
    centre, turn = generator.uniform(0.45, 0.55, (2, grid, grid)), generator.uniform(0, 2 * np.pi, (grid, grid))
    dy, dx = y - (row + centre[0][at]) * pitch, x - (column + centre[1][at]) * pitch
    away, angle = np.hypot(dy, dx), np.arctan2(dy, dx)
    # How far the nearest nucleus of the circle is.
    step = 2 * np.pi / generator.integers(6, 9, (grid, grid))[at]
    along = (angle - turn[at] + step / 2) % step - step / 2
    distance = ((away - radius) / 6.3) ** 2 + (along * radius / 5.6) ** 2
    body = (1 + 0.12 * noise(side, 3, generator)) / (1 + np.exp(np.minimum(6 * (distance - 1), 30)))
    hole = 1 / (1 + np.exp(np.minimum((away - 6) / 1.2, 30)))
    eosin = 0.5 - 0.4 * hole - 0.12 * body + 0.04 * noise(side, 4, generator)
    return bent(Texture(body, eosin), 6, 90, generator)


def spindles(generator):
    """Long nuclei side by side, in waves."""
    side = (LESION_SIDE,) * 2
    body = nuclei(side, (13, 50), (21.0, 4.4), 0.0, generator, jitter=0.3, wobble=0.8)
    eosin = 0.42 + 0.08 * noise(side, (4, 60), generator) - 0.12 * body
    return bent(Texture(body, eosin), 12, 130, generator)


def lesion_textures(seed, each=5):
    """Per kind a list of textures, all with the same mean of either stain: from afar the kinds look alike."""
    generator = np.random.default_rng((seed, 1))
    found = [[make(generator) for _ in range(each)] for make in (rings, spindles)]
    return [[Texture(0.34 / h.mean() * h, 0.42 / e.mean() * e) for h, e in textures] for textures in found]


# ---------------------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Lesion:
    """A lesion: its centre and mean radius in pixels, its kind, and the seed of its outline."""

    y: float
    x: float
    radius: float
    kind: int
    seed: int


@dataclass(frozen=True)
class Plan:
    """What is on a slide.

    Attributes:
        size: pixels along a side.
        crop: pixels along the side of a crop.
        tissue, gland, shade: arrays with a number every CELL pixels: tissue where the first is positive, cellular where
            the second is, and how deeply it is stained.
        lesions: those of one zone, a square larger than a crop, are of one kind.
        zones: corners of the zones with lesions, (n, 2), and their kinds, (n,).
        zone: pixels along the side of a zone.
    """

    seed: tuple
    size: int
    crop: int
    tissue: np.ndarray
    gland: np.ndarray
    shade: np.ndarray
    lesions: tuple
    zones: np.ndarray
    kinds: np.ndarray
    zone: int


def zone_side(size, crop):
    """Zones fill the slide, and are about half as large again as a crop."""
    return size // max(1, int(size / (1.5 * crop))) // COARSEST * COARSEST


def make_plan(size, crop, seed, number, kind=None):
    """Plan slide `number`; its lesions are of both kinds, or of `kind` alone."""
    generator = np.random.default_rng((seed, 2, number))
    while True:  # a small slide may have tissue in one zone only
        plan = _draw_plan(size, crop, (seed, number), generator, kind)
        if len(set(plan.kinds.tolist())) == (2 if kind is None else 1):
            return plan


def _draw_plan(size, crop, seed, generator, kind):
    cells = -(-size // TILE) * TILE // CELL + 2  # with one for interpolation at the end
    shape = (cells, cells)
    place = np.abs(np.linspace(-1, 1, cells))
    away = np.maximum(place[:, None], place[None])
    blobs = noise(shape, cells / 5, generator) + 0.45 * noise(shape, cells / 22, generator)
    tissue = blobs + 0.1 * noise(shape, 4, generator) - 12 * np.maximum(away - 0.82, 0)
    tissue -= np.quantile(tissue, 1 - TISSUE)
    tissue -= 0.5 * (np.abs(noise(shape, cells / 30 + 2, generator)) < 0.06)  # clefts
    gland = noise(shape, 14, generator) + 0.6 * noise(shape, 5, generator)
    shade = 1 + 0.07 * noise(shape, cells / 8, generator) + 0.03 * noise(shape, 6, generator)
    side = zone_side(size, crop)
    corners, lesions, kinds = [], [], []
    for top in range(0, size - side + 1, side):
        for left in range(0, size - side + 1, side):
            # The kinds take turns.
            among = len(kinds) % 2 if kind is None else kind
            found = place_lesions(tissue, (top, left), side, crop, among, generator)
            if len(found) >= 2:
                corners.append((top, left))
                kinds.append(among)
                lesions += found
    fields = (field.astype(np.float32) for field in (tissue, gland, shade))
    return Plan(seed, size, crop, *fields, tuple(lesions), np.array(corners).reshape(-1, 2), np.array(kinds), side)


def place_lesions(tissue, corner, side, crop, kind, generator):
    """Lesions within a zone, in the tissue and apart from each other."""
    found = []
    wanted = max(2, round(LESIONS * (side / crop) ** 2))
    for _ in range(40 * wanted):
        radius = generator.uniform(*RADII)
        y, x = (first + generator.uniform(1.3 * radius, side - 1.3 * radius) for first in corner)
        around = [(y, x), *((y + dy * radius, x + dx * radius) for dy in (-1, 1) for dx in (-1, 1))]
        if any(tissue[int(v / CELL), int(u / CELL)] < 0.15 for v, u in around):
            continue
        if any(math.hypot(y - other.y, x - other.x) < 1.6 * (radius + other.radius) for other in found):
            continue
        found.append(Lesion(y, x, radius, kind, int(generator.integers(1 << 31))))
        if len(found) == wanted:
            break
    return found


def crop_places(plan, count):
    """Corners of crops that lie in a zone and show at least two lesions whole, and their kinds, which take turns."""
    generator = np.random.default_rng((*plan.seed, 3))
    at = np.array([(lesion.y, lesion.x) for lesion in plan.lesions])
    radius = np.array([lesion.radius for lesion in plan.lesions])[:, None]
    steps = (plan.zone - plan.crop) // COARSEST + 1
    places = []
    for number in range(count):
        zones = plan.zones[plan.kinds == number % 2]
        corners = generator.choice(zones, 50) + COARSEST * generator.integers(0, steps, (50, 2))
        shown = [((at - radius >= low) & (at + radius <= low + plan.crop)).all(1).sum() for low in corners]
        best = corners[np.argmax(np.minimum(shown, 2))]  # the first with two
        places.append((tuple(best.tolist()), number % 2))
    return places
