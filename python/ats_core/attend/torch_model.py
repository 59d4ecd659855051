# mypy: no-warn-return-any
"""Models of PyTorch that attend to sources."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ats_core.attend.models import ModelError
from ats_core.attend.result import Attended, read_attended
from ats_core.sources import Source, SourceBatch
from ats_core.torch import AttentionSampling, estimator_arrays
from ats_core.torch.modules import SampledPatches

if TYPE_CHECKING:
    from ats_core.attend.work import Settings


class TorchModel:
    """A module with one `AttentionSampling` in it (or that is one), which is called as ``module(x_low, sources)``.

    x_low is the thumbnail (1, C, *low) in the source's dtype, so that the module has to convert it (`Normalize`);
    sources is a `SourceBatch` of one. What the module returns, or the first of several things, is the prediction, (1, ...).

    Args:
        module: it is put on the device and into eval mode.
        size, downsample: of the thumbnails, as for `Source.thumbnail`; by default the module's attributes `low_size` or
            `low_downsample`.
        device: as PyTorch names it.

    Raises:
        ModelError: no such module; no size; no such device.
    """

    def __init__(
        self, module: nn.Module, *, size: int | None = None, downsample: float | None = None, device: str = "cpu"
    ) -> None:
        if not isinstance(module, nn.Module):
            raise ModelError(f"model: must be a torch.nn.Module, got {type(module).__name__}")
        inside = [part for part in module.modules() if isinstance(part, AttentionSampling)]
        if len(inside) != 1:
            raise ModelError(f"model: must have one AttentionSampling in it, {type(module).__name__} has {len(inside)}")
        self._sampling = inside[0]
        if size is None and downsample is None:
            size, downsample = getattr(module, "low_size", None), getattr(module, "low_downsample", None)
        if (size is None) == (downsample is None):
            raise ModelError(
                "model: does not say by an attribute low_size or low_downsample how large the thumbnails are that its "
                "attention network looks at; --low-size or --low-downsample does"
            )
        self._thumbnail = {"downsample": downsample} if size is None else {"size": size}
        try:
            self._device = torch.device(device)
            self._module = module.to(self._device).eval()
        except (RuntimeError, AssertionError) as error:  # what PyTorch raises without a GPU
            raise ModelError(f"device: {device!r} cannot be used: {error}") from error

    @classmethod
    def load(cls, settings: Settings) -> TorchModel:
        """Load a module from a file that torch.save wrote, or make it by "module:function" or "file.py:function".

        Raises:
            ModelError: it cannot be loaded.
        """
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        made = _make(settings.model)
        module = _load(settings.model) if made is None else made
        if settings.weights is not None:
            if made is None:
                raise ModelError("weights: are for a model that a function makes, module:function or file.py:function")
            _load_weights(module, settings.weights)
        return cls(module, size=settings.size, downsample=settings.downsample, device=settings.device)

    def attend(self, source: Source, rng: tuple[int, int]) -> Attended:
        """Look at a source. `rng` is the (seed, offset) of the draws."""
        thumbnail, _ = source.thumbnail(**self._thumbnail)
        x_low = torch.from_numpy(np.ascontiguousarray(np.moveaxis(thumbnail, -1, 0))[None]).to(self._device)
        sampling, seen = self._sampling, []

        def give_rng(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, kwargs if len(args) > 2 else {**kwargs, "rng": rng}

        def see(_: nn.Module, args: tuple[Any, ...], output: SampledPatches) -> None:
            seen.append((args[0], output))

        hooks = [
            sampling.register_forward_pre_hook(give_rng, with_kwargs=True),
            sampling.sampler.register_forward_hook(see),
        ]
        try:
            with torch.inference_mode():
                prediction = _first(self._module(x_low, SourceBatch([source])))
        finally:
            for hook in hooks:
                hook.remove()
        if len(seen) != 1:
            raise ModelError(f"model: must sample once in a call, it did {len(seen)} times")
        attention, draws = seen[0]
        sampler = sampling.sampler
        return read_attended(
            source,
            prediction=_to_numpy(prediction)[0],
            thumbnail=thumbnail,
            attention=_to_numpy(attention)[0],
            indices=_to_numpy(draws.indices)[0],
            origins=_to_numpy(draws.origins)[0],
            probabilities=_to_numpy(draws.attention)[0],
            weights=_to_numpy(self._weights(draws))[0],
            patch_size=sampler.patch_size,
            scales=sampler.extraction["scales"] or (1,),
            receptive_field=sampler.receptive_field,
            padding=sampler.extraction["padding"],
            fill=sampler.extraction["fill"],
        )

    def _weights(self, draws: SampledPatches) -> Tensor:
        """What the features of each patch were multiplied by."""
        inference = self._sampling.inference
        if inference == "full":  # of all cells; these are some of them
            return draws.attention
        estimator = "normalized" if inference == "topk" else self._sampling.expectation.estimator
        coefficients, _ = estimator_arrays(draws.attention, estimator, threshold=draws.threshold)
        return coefficients


def _to_numpy(tensor: Tensor) -> Any:
    return (
        tensor.detach()
        .to("cpu", torch.promote_types(tensor.dtype, torch.float32) if tensor.is_floating_point() else None)
        .numpy()
    )


def _first(output: Any) -> Tensor:
    """The prediction in what a module returns."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() < 1 or output.shape[0] != 1:
        what = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ModelError(f"model: must return a tensor (1, ...) for one source, or such a one first, got {what}")
    return output


def _make(name: str) -> nn.Module | None:
    """Call the function that a model's name means; None if it means a file."""
    where, separator, function = name.rpartition(":")
    if not separator or not function.isidentifier():
        return None
    try:
        if where.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(where).stem, where)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules.setdefault(Path(where).stem, module)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
        make = getattr(module, function)
    except Exception as error:  # whatever the code of a model raises
        raise ModelError(f"model: {name!r} cannot be imported: {type(error).__name__}: {error}") from error
    if not callable(make):
        raise ModelError(f"model: {name!r} must be a function without arguments that returns a model")
    try:
        return make()
    except Exception as error:
        raise ModelError(f"model: {name!r} raised {type(error).__name__}: {error}") from error


def _load(path: str) -> Any:
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=False)
    except FileNotFoundError:
        raise ModelError(f"model: {path}: no such file") from None
    except (AttributeError, ModuleNotFoundError) as error:
        raise ModelError(
            f"model: {path}: {error}. The code of the model must be importable; or give file.py:function and --weights"
        ) from error
    except Exception as error:  # whatever reading a broken pickle raises
        raise ModelError(
            f"model: {path}: is no model that torch.save wrote: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(loaded, nn.Module):
        raise ModelError(
            f"model: {path}: holds a {type(loaded).__name__}, not a module. For a state dict give --model "
            f"file.py:function --weights {path}"
        )
    return loaded


def _load_weights(module: Any, path: str) -> None:
    try:
        module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ModelError(f"weights: {path}: no such file") from None
    except Exception as error:
        raise ModelError(f"weights: {path}: do not suit the model: {error}") from error
