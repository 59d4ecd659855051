"""Images at several resolutions, and patches of them: the reference library's interface for a builder's data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import keras
from keras import KerasTensor
from keras import ops as kops

from . import ops
from ._arguments import to_axes, to_channel_axis, to_data_format, to_option
from .functional import is_symbolic
from .sampling import check_images


class MultiResolutionBatch:
    """A batch of images, each at several resolutions (levels), the lowest first; all levels show the same region.

    Attributes:
        data_format: where the channels of `data` and `patches` are; None: keras.config.image_data_format().
    """

    data_format: str | None = None

    def inputs(self) -> list[Any]:
        """Tensors that a caller has to feed."""
        raise NotImplementedError

    def targets(self) -> Any:
        """What the images are to be mapped to."""
        raise NotImplementedError

    def data(self, level: int) -> Any:
        """The whole images of a level."""
        raise NotImplementedError

    def patches(
        self,
        samples: Any,
        offsets: Any,
        sample_space: Any,
        previous_patch_size: Any,
        patch_size: Any,
        fromlevel: int,
        tolevel: int,
    ) -> tuple[Any, Any]:
        """Patches of level `tolevel` around cells that were sampled in a region of level `fromlevel`.

        Args:
            samples: (B, n, D), coordinates of the cells.
            offsets: (B, n, D), where the region begins, in pixels of `fromlevel`: zeros for the whole image; the
                offsets of an earlier call, to sample within its patches.
            sample_space: D sizes of the grid that the cells are of.
            previous_patch_size: D sizes of the region, in pixels of `fromlevel`.
            patch_size: D sizes of the patches, in pixels of `tolevel`.

        Returns:
            patches (B, n, *patch, C), and where they begin: (B, n, D), in pixels of `tolevel`.
        """
        raise NotImplementedError


class FromTensors(MultiResolutionBatch):
    """A batch from tensors that are there already, or from a functional model's inputs.

    Args:
        xs: images of each level, the lowest resolution first: (B, *spatial, C), or (B, C, *spatial).
        y: the targets, anything.
        data_format: keras.config.image_data_format() by default.

    Raises:
        ValueError: a level is smaller than the one before on every axis, or has another number of axes.
    """

    data_format: str

    def __init__(self, xs: Sequence[Any], y: Any, *, data_format: str | None = None) -> None:
        self._xs = [x if is_symbolic(x) else kops.convert_to_tensor(x) for x in xs]
        self._y = y
        self.data_format = to_data_format(data_format)
        for i, (low, high) in enumerate(itertools.pairwise(self._xs)):
            check_images(low, high, to_channel_axis(self.data_format), (f"xs[{i}]", f"xs[{i + 1}]"))

    def inputs(self) -> list[Any]:
        return []

    def targets(self) -> Any:
        return self._y

    def data(self, level: int) -> Any:
        return self._xs[level]

    def patches(
        self,
        samples: Any,
        offsets: Any,
        sample_space: Any,
        previous_patch_size: Any,
        patch_size: Any,
        fromlevel: int,
        tolevel: int,
    ) -> tuple[Any, Any]:
        axes = len(self._xs[tolevel].shape) - 2
        size = to_axes("patch_size", to_option("patch_size", patch_size, 1), axes)
        tensors = [self._xs[fromlevel], self._xs[tolevel], samples, offsets]
        if not is_symbolic(*tensors):
            return cut(tensors, sample_space, previous_patch_size, size, self.data_format)
        for name, sizes in (("sample_space", sample_space), ("previous_patch_size", previous_patch_size)):
            if any(not isinstance(value, int) for value in sizes):
                raise ValueError(
                    f"{name}: must be known in a functional model, got {tuple(sizes)}; attention_sampling takes unknown ones"
                )
        layer = LevelPatches(tuple(sample_space), tuple(previous_patch_size), size, data_format=self.data_format)
        patches, origins = layer(tensors)
        return patches, origins


def cut(
    tensors: Sequence[Any], sample_space: Any, previous_patch_size: Any, patch_size: tuple[int, ...], data_format: str
) -> tuple[Any, Any]:
    """What `MultiResolutionBatch.patches` says, of [images of fromlevel, images of tolevel, samples, offsets]."""
    source, target, samples, offsets = (kops.convert_to_tensor(x) for x in tensors)
    channel_axis = to_channel_axis(data_format)
    scale = _float64(ops.spatial_shape(target, channel_axis)) / _float64(ops.spatial_shape(source, channel_axis))
    step = _float64(previous_patch_size) * scale / _float64(sample_space)
    origins = _float64(offsets) * scale + _float64(samples) * step + step / 2 - _float64(patch_size) / 2
    origins = kops.cast(kops.round(origins), "int64")  # half to even
    return ops.extract_patches(target, origins, patch_size, data_format=data_format), origins


def _float64(values: Any) -> Any:
    if not kops.is_tensor(values) and isinstance(values, (tuple, list)):
        values = kops.stack([kops.cast(value, "float64") for value in values])
    return kops.cast(values, "float64")


@keras.saving.register_keras_serializable(package="ats")
class LevelPatches(keras.layers.Layer):
    """Patches around cells: what `FromTensors.patches` is in a functional model.

    Args:
        sample_space, previous_patch_size, patch_size, data_format: as for `FromTensors`.

    Call:
        [images of fromlevel, images of tolevel, samples, offsets] -> [patches, origins].
    """

    def __init__(
        self,
        sample_space: Sequence[int],
        previous_patch_size: Sequence[int],
        patch_size: Sequence[int],
        *,
        data_format: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        self.sample_space = tuple(sample_space)
        self.previous_patch_size = tuple(previous_patch_size)
        self.patch_size = tuple(patch_size)
        self.data_format = to_data_format(data_format)
        self.supports_jit = False

    def call(self, inputs: Any) -> list[Any]:
        return list(cut(inputs, self.sample_space, self.previous_patch_size, self.patch_size, self.data_format))

    def compute_output_spec(self, inputs: Any) -> list[Any]:
        _, target, samples, _ = inputs
        batch, n, axes = samples.shape
        patch = list(self.patch_size)
        if self.data_format == "channels_first":
            patch.insert(0, target.shape[1])
        else:
            patch.append(target.shape[-1])
        return [KerasTensor((batch, n, *patch), dtype=target.dtype), KerasTensor((batch, n, axes), dtype="int64")]

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "sample_space": self.sample_space,
            "previous_patch_size": self.previous_patch_size,
            "patch_size": self.patch_size,
            "data_format": self.data_format,
        }
