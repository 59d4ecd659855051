"""Pictures of attention sampling: uint8 RGB arrays (height, width, 3).

Images are channels-last here, without a batch axis: (L, C) signals are drawn as waveforms, (H, W, C) images as they are,
and of (D, H, W, C) volumes one slice is shown. Needs Pillow and Matplotlib, which are imported when first needed:
``python -m pip install 'ats-core[diagnostics]'``.
"""

from __future__ import annotations

import importlib
import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ats_core._arguments import to_int

Picture = NDArray[np.uint8]

BACKGROUND, INK = (255, 255, 255), (40, 40, 40)
HEAT, PROBABILITY = "inferno", "cool"  # Matplotlib's colour maps
# Values below and above these percentiles are drawn black and white.
PERCENTILES = (0.5, 99.5)
# Attention's opacity is this where it is largest, and falls with its square root.
OPACITY = 0.5
# A pixel of a picture is the mean of at most this many pixels an axis.
PHASES = 4


def require(module: str, extra: str = "diagnostics") -> Any:
    """The module, or an error that says how to install it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{extra} needs {module.partition('.')[0]}: python -m pip install 'ats-core[{extra}]'"
        ) from error


# ---- pictures ----


def draw_image(
    image: Any,
    *,
    size: int = 512,
    depth: int | None = None,
    limits: tuple[float, float] | None = None,
    to_numpy: Callable[[Any], Any] = np.asarray,
) -> Picture:
    """Draw an image.

    Three channels or more: the first three are red, green and blue. Otherwise the mean of the channels is drawn in
    gray. uint8 is drawn as it is; other values are scaled so that the 0.5th and the 99.5th percentile of what is drawn
    become black and white.

    Args:
        image: (L, C), (H, W, C) or (D, H, W, C); a NumPy array, or a tensor with `to_numpy`. A large one is thinned by
            slices before anything is converted: the memory taken is that of the picture.
        size: pixels of the picture's longer side.
        depth: the slice of a volume, the middle by default.
        limits: values drawn black and white, instead of the percentiles.
        to_numpy: turns a slice of `image` into a NumPy array.

    Raises:
        ValueError: a wrong shape; a size below 1.
    """
    if to_int("size", size) < 1:
        raise ValueError(f"size: must be at least 1, got {size}")
    shape = tuple(int(n) for n in image.shape)
    if not 2 <= len(shape) <= 4 or 0 in shape:
        raise ValueError(f"image: must be (L, C), (H, W, C) or (D, H, W, C), none of them 0, got {shape}")
    if len(shape) == 4:
        image = image[shape[0] // 2 if depth is None else depth]
        shape = shape[1:]
    if shape[-1] > 3:
        image = image[..., :3]
    if len(shape) == 2:
        return _waveform(to_numpy(image), size, limits)
    views = [to_numpy(image[view]) for view in _thinned(shape[:2], size)]
    raw = views[0].dtype == np.uint8
    pixels = sum(view.astype(np.float32) for view in views) / np.float32(len(views))
    if pixels.shape[-1] < 3:
        pixels = pixels.mean(-1, keepdims=True)
    low, high = (0.0, 255.0) if raw and limits is None else limits or limits_of(pixels)
    with np.errstate(invalid="ignore"):
        grey = np.nan_to_num((pixels - low) / (high - low), nan=0.0, posinf=1.0, neginf=0.0)
    return _resize(np.broadcast_to(_to_bytes(grey), (*grey.shape[:2], 3)), _fit(shape[:2], size))


def overlay(
    image: Any,
    attention: ArrayLike,
    origins: ArrayLike | None = None,
    patch_size: Sequence[float] | None = None,
    probabilities: ArrayLike | None = None,
    *,
    margin: Sequence[float] | None = None,
    probability_limits: tuple[float, float] | None = None,
    size: int = 512,
    to_numpy: Callable[[Any], Any] = np.asarray,
) -> Picture:
    """Draw an image, its attention as a heat map over it, and the sampled patches as boxes.

    The heat map is scaled to its largest value; where there is no attention the image shows through. Of a volume the
    slice with most attention is drawn, with the attention and the boxes of all slices.

    Args:
        image, size, to_numpy: as for `draw_image`.
        attention: (*grid), weights of any scale, with as many axes as the image has spatial ones.
        origins: (n, D) where patches begin, in pixels of the image (`patch_origins`).
        patch_size: D sizes, with origins.
        probabilities: (n,) of the patches' cells; the boxes' colours go by their logarithm. The likeliest is on top.
        margin: D widths in pixels of the image, at its borders, that no cell covers: ``receptive_field / 2 * scale`` of
            `patch_origins`. 0 by default.
        probability_limits: that the ends of the colour map stand for, the least and the largest by default.

    Raises:
        ValueError: shapes that do not fit together.
    """
    spatial = tuple(int(n) for n in image.shape[:-1])
    heat = np.asarray(attention, np.float64)
    if heat.ndim != len(spatial) or 0 in heat.shape:
        raise ValueError(f"attention: must have {len(spatial)} axes as the image has, got {heat.shape}")
    edges = np.zeros(len(spatial)) if margin is None else np.asarray(margin, np.float64)
    corners = np.zeros((0, len(spatial))) if origins is None else np.asarray(origins, np.float64)
    patch = np.zeros(len(spatial)) if patch_size is None else np.asarray(patch_size, np.float64)
    if corners.shape[1:] != (len(spatial),) or patch.shape != edges.shape or edges.shape != (len(spatial),):
        raise ValueError(
            f"origins, patch_size, margin: must be (n, D), (D,) and (D,) for an image with D = {len(spatial)}, got "
            f"{corners.shape}, {patch.shape}, {edges.shape}"
        )
    depth = None
    if len(spatial) == 3:
        share = (heat.sum((1, 2)).argmax() + 0.5) / heat.shape[0]
        depth = min(int(edges[0] + share * (spatial[0] - 2 * edges[0])), spatial[0] - 1)
        heat, corners, patch, edges, spatial = heat.sum(0), corners[:, 1:], patch[1:], edges[1:], spatial[1:]
    picture = draw_image(image, size=size, depth=depth, to_numpy=to_numpy)
    if len(spatial) == 1:  # a waveform is as high as the picture
        height = picture.shape[0]
        heat, spatial, edges = heat[None], (height, *spatial), np.array([0.0, *edges])
        corners = np.insert(corners, 0, 0.0, axis=1)
        patch = np.array([float(height), *patch])
    scale = np.array(picture.shape[:2]) / spatial
    picture = _add_heat(picture, heat, np.round(edges * scale).astype(int))
    colours = probability_colours(len(corners), probabilities, probability_limits)
    order = np.arange(len(corners)) if probabilities is None else np.argsort(np.asarray(probabilities), kind="stable")
    return _add_boxes(picture, corners[order] * scale, patch * scale, colours[order])


def contact_sheet(
    patches: ArrayLike,
    probabilities: ArrayLike | None = None,
    *,
    axes: int = 2,
    columns: int = 12,
    tile: int = 80,
) -> Picture:
    """Draw the patches of some images, a row an image, those of the likeliest cells first.

    All patches have one scale of values, so that they can be compared. Scales of a patch stand below each other.

    Args:
        patches: (B, n, [S,] *patch, C), with that many spatial axes; of patches of a volume the middle slice is drawn.
        probabilities: (B, n) of their cells, written above them.
        axes: spatial axes of a patch, 1 to 3.
        columns: patches to show of an image.
        tile: pixels of a patch's longer side.

    Raises:
        ValueError: a wrong shape.
    """
    array = np.asarray(patches)
    if array.ndim not in (axes + 3, axes + 4) or 0 in array.shape:
        raise ValueError(f"patches: must be (B, n, [S,] *patch, C) with {axes} axes in patch, got {array.shape}")
    if array.ndim == axes + 3:
        array = array[:, :, None]
    p = None if probabilities is None else np.asarray(probabilities, np.float64)
    if p is not None and p.shape != array.shape[:2]:
        raise ValueError(f"probabilities: must be {array.shape[:2]} as the patches are, got {p.shape}")
    first = np.arange(array.shape[1])[None].repeat(len(array), 0) if p is None else np.argsort(-p, 1, kind="stable")
    limits = None if array.dtype == np.uint8 else limits_of(array)
    rows = []
    for b, order in enumerate(first[:, :columns]):
        tiles = []
        for i in order:
            scales = [draw_image(patch, size=tile, limits=limits) for patch in array[b, i]]
            drawn = montage(scales, columns=1, gap=2)
            if p is not None:
                caption = _caption(f"{p[b, i]:.2g}", max(drawn.shape[1], 40))
                drawn = montage([caption, drawn], columns=1, gap=0)
            tiles.append(drawn)
        rows.append(montage(tiles, columns=columns, gap=4))
    return montage(rows, columns=1, gap=8)


def montage(pictures: Sequence[Picture], *, columns: int, gap: int = 8) -> Picture:
    """Put pictures of any sizes next to each other, that many a row."""
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    widths = [max(row[j].shape[1] for row in rows if j < len(row)) for j in range(len(rows[0]))]
    heights = [max(picture.shape[0] for picture in row) for row in rows]
    sheet = np.empty((sum(heights) + gap * (len(rows) - 1), sum(widths) + gap * (len(widths) - 1), 3), np.uint8)
    sheet[:] = BACKGROUND
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            top, left = sum(heights[:i]) + gap * i, sum(widths[:j]) + gap * j
            sheet[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return sheet


def probability_bar(limits: tuple[float, float], width: int, height: int = 22) -> Picture:
    """Draw what the colours of `overlay`'s boxes stand for."""
    draw, canvas = _canvas(np.full((height, width, 3), BACKGROUND, np.uint8))
    font = _font(12)
    words = [f"boxes: probability {limits[0]:.2g}", f"{limits[1]:.2g}"]
    left = 4 + draw.textlength(words[0], font=font) + 6
    right = min(left + 160, width - 10 - draw.textlength(words[1], font=font))
    draw.text((4, height / 2), words[0], INK, font=font, anchor="lm")
    columns = range(int(left), int(right))
    for x, colour in zip(columns, colours_of(PROBABILITY, np.linspace(0.0, 1.0, len(columns))), strict=True):
        draw.line([(x, 5), (x, height - 6)], fill=tuple(colour))
    draw.text((right + 6, height / 2), words[1], INK, font=font, anchor="lm")
    return np.asarray(canvas)


def to_png(picture: Picture) -> bytes:
    """The bytes of a PNG file."""
    buffer = io.BytesIO()
    require("PIL.Image").fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


# ---- parts of pictures ----


def _thinned(shape: Sequence[int], size: int) -> Iterator[tuple[slice, slice]]:
    """Slices of the two first axes whose mean is the image with a longer side of size to 2 size pixels."""
    step = max(max(shape) // size, 1)
    steps = [min(step, n) for n in shape]  # an axis that is shorter than a step keeps one pixel
    starts = [range(0, s, -(-s // PHASES)) for s in steps]
    for corner in itertools.product(*starts):
        # all slices have as many pixels: what does not fill a last step is left out
        yield tuple(slice(c, n // s * s, s) for c, s, n in zip(corner, steps, shape, strict=True))  # type: ignore[misc]


def _fit(shape: Sequence[int], size: int) -> tuple[int, int]:
    """Height and width with `size` for the longer one, the shorter one at least an eighth of it."""
    height, width = (max(round(n * size / max(shape)), size // 8, 1) for n in shape)
    return height, width


def limits_of(values: NDArray[Any]) -> tuple[float, float]:
    """What is drawn black and white: percentiles, or the whole range if they are one."""
    flat = values.reshape(-1)
    flat = flat[:: max(flat.size // 1_000_000, 1)].astype(np.float64)
    flat = flat[np.isfinite(flat)]
    if flat.size == 0:
        return 0.0, 1.0
    low, high = np.percentile(flat, PERCENTILES)
    if not high > low:
        low, high = flat.min(), flat.max()
    return float(low), float(high if high > low else low + 1.0)


def _waveform(signal: NDArray[Any], size: int, limits: tuple[float, float] | None) -> Picture:
    """Draw the range of values of every column, channels in one."""
    length, height = len(signal), max(size // 4, 16)
    starts = np.arange(min(length, size)) * length // min(length, size)
    low = np.minimum.reduceat(signal.min(1), starts).astype(np.float64)
    high = np.maximum.reduceat(signal.max(1), starts).astype(np.float64)
    least, most = limits or limits_of(np.concatenate([low, high]))
    rows = [np.nan_to_num((most - y) / (most - least)).clip(0.0, 1.0) * (height - 1) for y in (high, low)]
    top, bottom = rows[0].round(), rows[1].round()
    y = np.arange(height)[:, None]
    lit = (y >= top) & (y <= bottom)
    picture = np.where(lit[..., None], 255, 30).astype(np.uint8).repeat(3, -1)
    columns = np.arange(size) * picture.shape[1] // size
    return np.ascontiguousarray(picture[:, columns])


def _resize(picture: Picture, shape: tuple[int, int]) -> Picture:
    """Means when it gets smaller, whole pixels when it gets larger."""
    pil = require("PIL.Image")
    larger = shape[0] >= picture.shape[0] and shape[1] >= picture.shape[1]
    method = pil.Resampling.NEAREST if larger else pil.Resampling.BOX
    return np.asarray(pil.fromarray(np.ascontiguousarray(picture)).resize(shape[::-1], method))


def colours_of(name: str, values: NDArray[np.float64]) -> Picture:
    """Colours (..., 3) of values between 0 and 1."""
    return np.asarray(require("matplotlib").colormaps[name](values, bytes=True)[..., :3])


def _add_heat(picture: Picture, heat: NDArray[np.float64], edges: NDArray[np.int_]) -> Picture:
    height, width = (int(n) for n in np.maximum(np.array(picture.shape[:2]) - 2 * edges, 1))
    colours, opacity = heat_layer(heat, (height, width))
    opacity = OPACITY * opacity[..., None]
    blended = picture.astype(np.float64)
    part = blended[edges[0] : edges[0] + height, edges[1] : edges[1] + width]
    part *= 1.0 - opacity
    part += opacity * colours
    return np.round(blended).astype(np.uint8)


def heat_layer(heat: NDArray[np.float64], shape: tuple[int, int]) -> tuple[Picture, NDArray[np.float64]]:
    """Colours (*shape, 3) and opacities (*shape,), 0 to 1, of a heat map."""
    pil = require("PIL.Image")
    small = pil.fromarray((heat / max(heat.max(), np.finfo(np.float64).tiny)).astype(np.float32))
    large = np.asarray(small.resize(shape[::-1], pil.Resampling.BILINEAR), np.float64)
    large = (large / max(large.max(), np.finfo(np.float32).tiny)).clip(0.0, 1.0)
    return colours_of(HEAT, 0.35 + 0.5 * large), np.sqrt(large)  # its dark end would only darken the image


def probability_colours(n: int, probabilities: ArrayLike | None, limits: tuple[float, float] | None) -> Picture:
    if probabilities is None or n == 0:
        return colours_of(PROBABILITY, np.full(n, 0.5))
    p = np.log(np.maximum(np.asarray(probabilities, np.float64), np.finfo(np.float64).tiny))
    if p.shape != (n,):
        raise ValueError(f"probabilities: must be ({n},) as there are origins, got {p.shape}")
    low, high = (p.min(), p.max()) if limits is None else np.log(np.maximum(limits, np.finfo(np.float64).tiny))
    return colours_of(PROBABILITY, ((p - low) / (high - low)).clip(0.0, 1.0) if high > low else np.full(n, 0.5))


def _add_boxes(picture: Picture, corners: NDArray[np.float64], patch: NDArray[np.float64], colours: Picture) -> Picture:
    draw, canvas = _canvas(picture)
    height, width = picture.shape[:2]
    line = max(round(max(height, width) / 256), 1)
    for (y, x), colour in zip(corners, colours, strict=True):
        # kept within reach of the picture: a far origin is far outside all the same
        box = np.clip([x, y, x + patch[1] - 1, y + patch[0] - 1], -4.0 * max(height, width), 4.0 * max(height, width))
        box = [*box[:2], *np.maximum(box[2:], box[:2])]
        outer = [box[0] - 1, box[1] - 1, box[2] + 1, box[3] + 1]
        draw.rectangle(outer, outline=(0, 0, 0), width=line + 2)  # seen on bright images too
        draw.rectangle(box, outline=tuple(colour), width=line)
    return np.asarray(canvas)


def _caption(text: str, width: int, height: int = 14) -> Picture:
    draw, canvas = _canvas(np.full((height, width, 3), BACKGROUND, np.uint8))
    draw.text((width / 2, height / 2), text, INK, font=_font(11), anchor="mm")
    return np.asarray(canvas)


def _canvas(picture: Picture) -> tuple[Any, Any]:
    canvas = require("PIL.Image").fromarray(np.ascontiguousarray(picture))
    return require("PIL.ImageDraw").Draw(canvas), canvas


def _font(size: int) -> Any:
    return require("PIL.ImageFont").load_default(size)


def _to_bytes(values: NDArray[Any]) -> Picture:
    return np.round(values.clip(0.0, 1.0) * 255.0).astype(np.uint8)
