"""Models of Keras that attend to sources."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from ats_core import estimator_arrays
from ats_core._arguments import Array, to_ints
from ats_core.attend.keras_graph import over_sources
from ats_core.attend.models import ModelError
from ats_core.attend.result import Attended, read_attended
from ats_core.keras import Expectation, SamplePatches
from ats_core.keras.ops import ON_TORCH
from ats_core.sources import Source, SourceBatch, to_handles

if TYPE_CHECKING:
    from ats_core.attend.work import Settings


class KerasModel:
    """A model with one `SamplePatches` and one `Expectation` in it, which `attention_sampling` consists of.

    Its inputs are thumbnails (1, *low, C), which are cast to the dtype of this input, handles of sources (`SourceInput`),
    and low_shapes if it takes them. Or it is a functional model for images in memory, see `over_sources`. What it
    returns, or the first of several things, is the prediction, (1, ...).

    Args:
        model: functional; or subclassed, built, with these inputs in a list or a dict, which is its one argument.
        size, downsample: of the thumbnails, as for `Source.thumbnail`; by default the longest axis of the input for them.

    Raises:
        ModelError: no such model; no size.
    """

    def __init__(self, model: keras.Model, *, size: int | None = None, downsample: float | None = None) -> None:
        layers = model._flatten_layers() if isinstance(model, keras.Model) else []
        found = {kind: [layer for layer in layers if isinstance(layer, kind)] for kind in (SamplePatches, Expectation)}
        for kind, members in found.items():
            if len(members) != 1:
                raise ModelError(
                    f"model: must have one {kind.__name__} layer, as attention_sampling makes it, has {len(members)}"
                )
        (self._sampler,), (self._expectation,) = found[SamplePatches], found[Expectation]
        self._channel_axis = 1 if self._sampler.data_format == "channels_first" else -1
        self._model = over_sources(model, self._sampler)
        self._inputs = _Inputs(self._model)
        fixed = list(self._inputs.low.shape[1:])
        fixed.pop(0 if self._channel_axis == 1 else -1)
        self._low_shape = None if None in fixed else tuple(fixed)
        if size is None and downsample is None and self._low_shape is not None:
            size = max(self._low_shape)
        if (size is None) == (downsample is None):
            raise ModelError(
                "model: takes thumbnails of any size; --low-size or --low-downsample says which its attention network "
                "looks at"
            )
        self._thumbnail = {"downsample": downsample} if size is None else {"size": size}

    @classmethod
    def load(cls, settings: Settings) -> KerasModel:
        """Load a model from a .keras or an .h5 file.

        Raises:
            ModelError: it cannot be loaded.
        """
        if settings.weights is not None:
            raise ModelError("weights: are for a model that a function makes; a .keras file has its own")
        if settings.threads is not None:
            _set_threads(settings.threads)
        try:
            model = keras.saving.load_model(settings.model, compile=False)
        except Exception as error:  # whatever a broken file makes Keras raise
            raise ModelError(f"model: {settings.model}: cannot be loaded by Keras: {error}") from error
        return cls(model, size=settings.size, downsample=settings.downsample)

    def attend(self, source: Source, rng: tuple[int, int]) -> Attended:
        """Look at a source. `rng` is the (seed, offset) of the draws."""
        thumbnail, _ = source.thumbnail(**self._thumbnail)
        sources = SourceBatch([source])
        own = thumbnail.shape[:-1]
        x_low = np.moveaxis(self._fit(source, thumbnail)[None], -1, self._channel_axis)
        output, (inputs, outputs) = self._call(x_low, to_handles(sources), np.array([own], np.int64), rng)
        _, probabilities, indices, origins, threshold = map(_to_numpy, outputs)
        estimator = "normalized" if self._expectation.inference == "topk" else self._expectation.estimator
        weights, _ = estimator_arrays(probabilities, estimator, threshold=threshold)
        sampler = self._sampler
        attention, cells = self._crop(sources, _to_numpy(inputs[2])[0], x_low.shape, own, indices[0])
        return read_attended(
            source,
            prediction=_first(output)[0],
            thumbnail=thumbnail,
            attention=attention,
            indices=cells,
            origins=origins[0],
            probabilities=probabilities[0],
            weights=weights[0],
            patch_size=sampler.patch_size,
            scales=sampler.extraction["scales"] or (1,),
            receptive_field=sampler.receptive_field,
            padding=sampler.extraction["padding"],
            fill=sampler.extraction["fill"],
        )

    def _fit(self, source: Source, thumbnail: Array) -> Array:
        """The thumbnail in the size that the model takes: padded, if it can be told so."""
        dtype = self._inputs.low_dtype
        if dtype is not None and "int" in dtype and not np.can_cast(thumbnail.dtype, dtype):
            raise ModelError(f"model: takes thumbnails of {dtype}, {source.name} has {thumbnail.dtype}")
        wanted, own = self._low_shape, thumbnail.shape[:-1]
        if wanted is None or wanted == own:
            return thumbnail
        if (
            self._inputs.shapes is None
            or len(wanted) != len(own)
            or any(a > b for a, b in zip(own, wanted, strict=True))
        ):
            raise ModelError(
                f"model: takes thumbnails of {wanted} pixels, that of {source.name} has {own}. A model whose input has "
                "the shape (None, None, C) takes any, one that takes low_shapes too takes smaller ones"
            )
        padded = np.zeros((*wanted, thumbnail.shape[-1]), thumbnail.dtype)
        padded[tuple(map(slice, own))] = thumbnail
        return padded

    def _call(self, x_low: Array, handles: Array, low_shapes: Array, rng: tuple[int, int]) -> tuple[Any, Any]:
        """What the model returns, and what went into and came out of its `SamplePatches`."""
        sampler, seen = self._sampler, []
        call: Any = sampler.call
        details = sampler.details

        def sample(inputs: Any, *_: Any, **__: Any) -> list[Any]:
            sampler.details = True
            try:
                outputs: list[Any] = call(inputs, rng=rng, training=False)
            finally:
                sampler.details = details
            seen.append((inputs, outputs))
            return outputs if details else outputs[:2]

        sampler.__dict__["call"] = sample  # an attribute of the object comes before the method of its class
        try:
            output = _without_gradient(self._model, self._inputs.pack(x_low, handles, low_shapes))
        finally:
            del sampler.__dict__["call"]
        if len(seen) != 1:
            raise ModelError(f"model: must sample once in a call, it did {len(seen)} times")
        return output, seen[0]

    def _crop(
        self, sources: SourceBatch, attention: Array, x_low: Sequence[int], own: Sequence[int], indices: Array
    ) -> tuple[Array, Array]:
        """Weights of the cells that lie on the thumbnail, and the drawn ones among them."""
        axes = len(own)
        if attention.ndim > axes:
            attention = attention.squeeze(0 if self._channel_axis == 1 else -1)
        low = x_low[2:] if self._channel_axis == 1 else x_low[1:-1]
        field = to_ints("receptive_field", self._sampler.receptive_field, axes)
        sizes = list(attention.shape)
        if tuple(low) != tuple(own):  # padded
            mask = sources.low_mask(sizes, low_shape=low, low_shapes=[own], receptive_field=field)[0]
            sizes = [int(mask.any(tuple(set(range(axes)) - {axis})).sum()) for axis in range(axes)]
        places = np.unravel_index(indices, attention.shape)
        attention = attention[tuple(map(slice, sizes))].astype(np.float64)
        if self._sampler.use_logits:
            attention = np.exp(attention - attention.max())
        return attention, np.ravel_multi_index(places, sizes)


class _Inputs:
    """Which input of a model is what: that for thumbnails, for handles, and for low_shapes or None."""

    def __init__(self, model: keras.Model) -> None:
        known = bool(getattr(model, "inputs", None))
        self._structure = model.input if known else _built_with(model)
        self._order = keras.tree.flatten(self._structure)
        found: dict[str, list[Any]] = {"low": [], "handles": [], "shapes": [], "others": []}
        for tensor in self._order:
            rank, integer = len(tensor.shape), "int" in tensor.dtype
            kind = "handles" if rank == 1 and tensor.dtype == "int64" else "shapes" if rank == 2 and integer else "low"
            found[kind if kind != "low" or 3 <= rank <= 5 else "others"].append(tensor)
        if [len(members) for members in found.values()] not in ([1, 1, 0, 0], [1, 1, 1, 0]):
            told = ", ".join(f"{tensor.shape} {tensor.dtype}" for tensor in self._order)
            raise ModelError(
                "model: must take thumbnails (B, *low, C), handles (B,) (SourceInput) and, at will, low_shapes (B, D), its "
                f"inputs are {told or 'not known'}"
            )
        self.low, self.handles = found["low"][0], found["handles"][0]
        self.shapes = found["shapes"][0] if found["shapes"] else None
        self.low_dtype = self.low.dtype if known else None

    def pack(self, x_low: Array, handles: Array, low_shapes: Array) -> Any:
        """Arrays in the structure that the model takes."""
        arrays = {id(self.low): (x_low, self.low_dtype), id(self.handles): (handles, "int64")}
        if self.shapes is not None:
            arrays[id(self.shapes)] = low_shapes, self.shapes.dtype
        flat = [keras.ops.convert_to_tensor(array, dtype) for array, dtype in (arrays[id(x)] for x in self._order)]
        return keras.tree.pack_sequence_as(self._structure, flat)


def _built_with(model: keras.Model) -> Any:
    """The inputs that a subclassed model was built with; sizes of thumbnails and dtypes are not known then."""

    def is_shape(value: Any) -> bool:
        return isinstance(value, (list, tuple)) and all(size is None or isinstance(size, int) for size in value)

    def to_input(shape: Any) -> Any:
        small = len(shape) < 3
        return keras.KerasTensor(shape if small else [None] * len(shape), dtype="int64" if small else "uint8")

    shapes = (model.get_build_config() or {}).get("input_shape", [])
    if isinstance(shapes, dict):
        return {name: to_input(shape) for name, shape in shapes.items() if is_shape(shape)}
    return [to_input(shape) for shape in shapes if is_shape(shape)]


def _without_gradient(model: Any, inputs: Any) -> Any:
    if not ON_TORCH:
        return model(inputs, training=False)
    import torch

    with torch.no_grad():
        return model(inputs, training=False)


def _set_threads(threads: int) -> None:
    if ON_TORCH:
        import torch

        torch.set_num_threads(threads)
        return
    import tensorflow as tf

    if tf.config.threading.get_intra_op_parallelism_threads() == threads:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise ModelError("threads: TensorFlow has started already, with another number of them") from error


def _to_numpy(tensor: Any) -> Array:
    if keras.backend.standardize_dtype(tensor.dtype) in ("float16", "bfloat16"):
        tensor = keras.ops.cast(tensor, "float32")
    array: Array = keras.ops.convert_to_numpy(tensor)
    return array


def _first(output: Any) -> Array:
    """The prediction in what a model returns."""
    if isinstance(output, (tuple, list)) and output:
        output = output[0]
    if not keras.ops.is_tensor(output) or len(output.shape) < 1 or output.shape[0] != 1:
        what = tuple(output.shape) if keras.ops.is_tensor(output) else type(output).__name__
        raise ModelError(f"model: must return a tensor (1, ...) for one source, or such a one first, got {what}")
    return _to_numpy(output)
