"""Cut patches out of images, and send gradients back into them."""

import math
from collections.abc import Sequence
from types import MappingProxyType
from typing import SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from ats_core import _core
from ats_core._arguments import Array, Ints, choose, is_single, to_array, to_dtype, to_float, to_int64, to_ints, to_name

DATA_FORMATS = MappingProxyType({"channels_last": 0, "channels_first": 1})


def patch_origins(
    indices: ArrayLike,
    grid: Sequence[SupportsIndex],
    image_shape: Sequence[SupportsIndex],
    patch_size: Ints,
    *,
    low_shape: Sequence[SupportsIndex] | None = None,
    receptive_field: Ints = 0,
) -> NDArray[np.int64]:
    """Map cells of the attention map to where their patches begin in the image.

    A patch is centred on what its cell looks at: per axis ``scale = image / low``, ``step = (low - receptive_field) *
    scale / grid`` and ``origin = round_half_even(receptive_field / 2 * scale + index * step + step / 2 - patch / 2)``.

    Parameters
    ----------
    indices : array_like of int64, shape (B, n)
        Flat cells: ``Samples.indices``.
    grid : sequence of int, length D
        Shape of the attention map. D is 1, 2 or 3.
    image_shape : sequence of int, length D
        Spatial shape of the full-resolution image, in pixels.
    patch_size : int or sequence of int, length D
        In pixels of that image.
    low_shape : sequence of int, length D, optional
        Spatial shape of the image that the attention network saw; `grid` by default.
    receptive_field : int or sequence of int, length D
        Pixels of that image by which a network without padding makes the attention map smaller.

    Returns
    -------
    ndarray of int64, shape (B, n, D)
        First pixel of each patch. Patches of cells at the border may begin outside the image.

    Raises
    ------
    ValueError
        For a wrong shape, or an index outside the grid.
    TypeError
        For an argument that does not hold integers.
    """
    cells = to_ints("grid", grid)
    axes = len(cells)
    if not 1 <= axes <= 3:
        raise ValueError(f"grid: must have 1 to 3 axes, got {axes}")
    return _core.locate(
        to_int64("indices", indices),
        cells,
        cells if low_shape is None else to_ints("low_shape", low_shape, axes),
        to_ints("image_shape", image_shape, axes),
        to_ints("patch_size", patch_size, axes),
        to_ints("receptive_field", receptive_field, axes),
    )


def extract_patches(
    image: ArrayLike | Sequence[Array],
    origins: ArrayLike,
    patch_size: Ints,
    *,
    scales: Sequence[SupportsIndex] | None = None,
    padding: str = "constant",
    fill: float = 0.0,
    dtype: DTypeLike | None = None,
    mean: ArrayLike | None = None,
    std: ArrayLike | None = None,
    data_format: str = "channels_last",
) -> Array:
    """Cut patches out of each image of a batch, converted and normalised in the same pass.

    Parameters
    ----------
    image : array_like, shape (B, *spatial, C), or list of such arrays
        uint8, int16, uint16, float16, float32 or float64, with 1 to 3 spatial axes. A list is a pyramid of the same
        images, finest first: one scale a level, each level reduced by the ratio of the shapes.
    origins : array_like of int64, shape (B, n, D)
        First pixel of each patch, anywhere, also outside the image.
    patch_size : int or sequence of int, length D
        Shape of the patches in pixels.
    scales : sequence of int, optional
        Scale s covers ``s * patch_size`` pixels around the same centre, from ``origin - floor((s - 1) * patch / 2)``,
        and averages ``s**D`` of them into one.
    padding : {"constant", "edge", "reflect"}
        Pixels outside the image: `fill`, the nearest pixel, or mirrored without repeating the border.
    fill : float
        A pixel's value, before normalisation.
    dtype : dtype, optional
        Of the patches: the image's or a floating one. By default the image's, or float32 for an integer image with
        `mean` or `std`. Integers are rounded half to even.
    mean, std : float or array_like of shape (C,), optional
        Every pixel becomes ``(x - mean[c]) / std[c]``, in units of the image's pixel values.
    data_format : {"channels_last", "channels_first"}
        With channels_first `image` is (B, C, *spatial), and C stands before the patch's axes in the result.

    Returns
    -------
    ndarray, shape (B, n, *patch_size, C)
        With `scales` or a pyramid (B, n, S, *patch_size, C).

    Raises
    ------
    ValueError
        For a wrong shape or value.
    TypeError
        For an argument of a type that means nothing here.
    """
    if isinstance(image, list | tuple):
        if scales is not None:
            raise ValueError("scales: must be left out where image is a list: a pyramid has one scale a level already")
        levels = [to_array(f"image[{index}]", level) for index, level in enumerate(image)]
        if not levels:
            raise ValueError("image: a pyramid needs at least one level")
    else:
        levels = [to_array("image", image)]
    first = to_int64("origins", origins)
    patch = _to_patch(patch_size, first)
    axes = len(patch)
    padding_name = to_name(padding)
    channels_first = bool(choose("data_format", data_format, DATA_FORMATS))
    views = [_channels_last("image", level, axes, channels_first) for level in levels]
    if dtype is None:
        normalised = mean is not None or std is not None
        dtype = np.float32 if normalised and views[0].dtype.kind != "f" else views[0].dtype
    channels = views[0].shape[-1]
    patches = [
        _core.extract_patches(
            view,
            first if level == 0 else _origins_in_level(first, patch, views[0].shape, view.shape, level),
            patch,
            [] if scales is None else _to_scales(scales),
            padding_name,
            to_float("fill", fill),
            to_dtype("dtype", dtype),
            _to_statistics("mean", mean, channels),
            _to_statistics("std", std, channels),
            channels_first,
        )
        for level, view in enumerate(views)
    ]
    if channels_first:
        patches = [np.moveaxis(level, -1, -1 - axes) for level in patches]
    return np.stack(patches, axis=2) if isinstance(image, list | tuple) else patches[0]


def extract_patches_backward(
    grad: ArrayLike,
    origins: ArrayLike,
    image_shape: Sequence[SupportsIndex],
    patch_size: Ints,
    *,
    scales: Sequence[SupportsIndex] | None = None,
    padding: str = "constant",
    std: ArrayLike | None = None,
    dtype: DTypeLike | None = None,
    data_format: str = "channels_last",
) -> Array:
    """Gradient of `extract_patches` with respect to the image.

    Parameters
    ----------
    grad : array_like of float, shape (B, n, [S,] *patch_size, C)
        Gradient with respect to the patches; channels before the patch's axes with channels_first.
    origins, patch_size, scales, padding, std, data_format
        As in `extract_patches`. (Its `mean` and `fill` have no part in the gradient.)
    image_shape : sequence of int
        The image's whole shape: (B, *spatial, C), or (B, C, *spatial) with channels_first.
    dtype : dtype, optional
        Of the result, floating; that of `grad` by default.

    Returns
    -------
    ndarray, shape image_shape
        Every pixel's contributions, added in the order of the patches.

    Raises
    ------
    ValueError
        For a wrong shape or value.
    TypeError
        For an argument of a type that means nothing here.
    """
    gradient = to_array("grad", grad)
    first = to_int64("origins", origins)
    patch = _to_patch(patch_size, first)
    axes = len(patch)
    channels_first = bool(choose("data_format", data_format, DATA_FORMATS))
    shape = to_ints("image_shape", image_shape)
    if len(shape) != axes + 2 or min(shape) < 0:
        raise ValueError(f"image_shape: must be {axes + 2} sizes (batch, {axes} spatial axes, channels), got {shape}")
    if math.prod(max(1, size) for size in shape) > 2**56:
        raise ValueError(f"image_shape: {shape} is more than any memory")
    if channels_first:
        shape.append(shape.pop(1))
        if gradient.ndim < axes + 3:
            raise ValueError(f"grad: has {gradient.ndim} axes, too few for {axes} spatial axes")
        gradient = np.moveaxis(gradient, -1 - axes, -1)
    if gradient.ndim > 0 and (shape[0], shape[-1]) != (gradient.shape[0], gradient.shape[-1]):
        raise ValueError(
            f"image_shape: has batch {shape[0]} and {shape[-1]} channels, "
            f"but grad has {gradient.shape[0]} and {gradient.shape[-1]}"
        )
    d_image = _core.extract_patches_backward(
        gradient,
        first,
        shape,
        patch,
        [] if scales is None else _to_scales(scales),
        to_name(padding),
        to_dtype("dtype", gradient.dtype if dtype is None else dtype),
        _to_statistics("std", std, shape[-1]),
        channels_first,
    )
    return np.moveaxis(d_image, -1, 1) if channels_first else d_image


def _to_patch(patch_size: Ints, origins: NDArray[np.int64]) -> list[int]:
    """Return the size along each spatial axis; of a single int `origins` says how many there are."""
    if is_single(patch_size):
        if origins.ndim != 3 or not 1 <= origins.shape[2] <= 3:
            raise ValueError(f"origins: must have the shape (B, n, D) with D = 1..3 spatial axes, got {origins.shape}")
        return to_ints("patch_size", patch_size, origins.shape[2])
    patch = to_ints("patch_size", patch_size)
    if not 1 <= len(patch) <= 3:
        raise ValueError(f"patch_size: must have 1 to 3 values, one a spatial axis, got {len(patch)}")
    return patch


def _channels_last(name: str, image: Array, axes: int, channels_first: bool) -> Array:
    if image.ndim != axes + 2:
        raise ValueError(
            f"{name}: must have {axes + 2} axes (batch, {axes} spatial as in patch_size, channels), got {image.shape}"
        )
    return np.moveaxis(image, 1, -1) if channels_first else image


def _to_scales(scales: Sequence[SupportsIndex]) -> list[int]:
    numbers = to_ints("scales", scales)
    if not numbers:
        raise ValueError("scales: must not be empty")
    return numbers


def _to_statistics(name: str, values: ArrayLike | None, channels: int) -> list[float] | None:
    if values is None:
        return None
    array = to_array(name, values).astype(np.float64)
    if array.ndim != 0 and array.shape != (channels,):
        raise ValueError(f"{name}: must be a number or one a channel ({channels}), got shape {array.shape}")
    return [float(array)] * channels if array.ndim == 0 else array.tolist()


def _origins_in_level(
    origins: NDArray[np.int64], patch: Sequence[int], finest: Sequence[int], shape: Sequence[int], level: int
) -> NDArray[np.int64]:
    """Where the patches around the same centres begin in a coarser level of a pyramid."""
    if 0 in shape[1:-1] or 0 in finest[1:-1]:
        raise ValueError(f"image[{level}]: the levels of a pyramid must not be empty, got shape {tuple(shape)}")
    if (finest[0], finest[-1]) != (shape[0], shape[-1]):
        raise ValueError(f"image[{level}]: batch and channels must be those of image[0], got shape {tuple(shape)}")
    half = np.array(patch) / 2
    ratio = np.array(finest[1:-1]) / np.array(shape[1:-1])
    mapped: Array = np.rint((origins + half) / ratio - half)
    return mapped.clip(-(2.0**62), 2.0**62).astype(np.int64)
