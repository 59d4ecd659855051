# mypy: no-warn-return-any, allow-untyped-decorators
"""Watch attention sampling while it trains: numbers and pictures for TensorBoard and in files."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, SupportsIndex

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ats_core._attention_log import SEEDS, AttentionLog, Look, at_least
from ats_core.diagnostics import CELL, EDGE, WINDOW, CollapseDetector
from ats_core.sources import SourceBatch

from .functional import estimator_arrays
from .modules import AttentionSampling, Image
from .sources import is_sources

if TYPE_CHECKING:
    from typing_extensions import Self


class AttentionMonitor:
    """Logs what the `AttentionSampling` modules of a model attend to, and warns when attention collapses.

    At every `every`-th forward pass in training mode, from the first one on, the monitor looks at the attention of the
    batch, and `draws` times more at the first `images` images of it: it draws other patches from the same attention and
    estimates the features again. That gives the variance of the estimator, and the patches shown. It is done without
    gradients, with the feature network in eval mode and buffers that are copies, with random numbers of its own and
    without the cache of autocast: training goes on with the same bits as without a monitor. (Forward hooks of the
    feature network's own are called in these passes too.)

    Of a `SourceBatch` the thumbnails x_low are drawn. The patches of a look are read from the files, draws * images *
    n_patches of them; attention on the padding of thumbnails is left out.

    Files in `folder`: statistics.jsonl (a line a step), overlay_<step>.png, patches_<step>.png and
    events.out.tfevents.* for TensorBoard. A folder that was written before is gone on with: steps are counted on, lines
    are added, files are never overwritten. With several modules each has a folder in it, of its name in the model.

    Under torch.distributed every rank looks (collectives in the feature network stay in step), and rank 0 writes. Of the
    replicas of DataParallel the one on the model's own device looks. Where an `AttentionSampling` is compiled by itself
    the monitor stays outside of its graph. Within a larger compiled model it is a graph break, an error under
    fullgraph=True, and it must be attached before that model's first call: PyTorch does not look for new hooks later.
    Copies and pickles of a model come without the monitor.

    Args:
        module: an `AttentionSampling`, or a model with some inside.
        folder: where to write; made when needed.
        every: training forward passes from one look to the next.
        images: how many of the batch to look at again and to draw.
        draws: estimates of each of them, at least 2.
        cell, edge, window: when attention counts as collapsed, see `CollapseDetector`. There is one
            `AttentionCollapseWarning` of each kind and module.

    Raises:
        ValueError: no such module; a number out of range; a folder with something else in it. TypeError: no module, no
            number. ImportError: Pillow, Matplotlib or TensorBoard is missing.

    Example:
        with AttentionMonitor(model, "runs/first", every=100):
            for x_low, x_high, y in loader:
                ...
    """

    def __init__(
        self,
        module: nn.Module,
        folder: str | os.PathLike[str],
        *,
        every: SupportsIndex = 100,
        images: SupportsIndex = 4,
        draws: SupportsIndex = 8,
        cell: float = CELL,
        edge: float = EDGE,
        window: int = WINDOW,
    ) -> None:
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: must be a torch.nn.Module, got {type(module).__name__}")
        every, images, draws = (
            at_least("every", every, 1),
            at_least("images", images, 1),
            at_least("draws", draws, 2),
        )
        found = list(_find(module))
        if not found:
            raise ValueError(f"module: must be or hold an AttentionSampling, got {type(module).__name__}")
        hooks = []
        for name, called, sampling in found:
            log = AttentionLog(
                Path(folder, name) if len(found) > 1 else folder,
                name or type(sampling).__name__,
                CollapseDetector(cell=cell, edge=edge, window=window),
            )
            hooks.append((called, _Hook(sampling, log, every, images, draws)))
        self._handles = [called.register_forward_hook(hook, with_kwargs=True) for called, hook in hooks]

    def remove(self) -> None:
        """Take the hooks off. Nothing is written any more."""
        for handle in self._handles:
            handle.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


class _Hook:
    """The forward hook of one module."""

    def __init__(self, sampling: AttentionSampling, log: AttentionLog, every: int, images: int, draws: int) -> None:
        self._sampling = sampling
        self._log = log
        self._every = every
        self._images = images
        self._draws = draws
        last = log.folder.last_step
        self._step = 0 if last is None else last + 1

    def __reduce__(self) -> tuple[Any, ...]:
        return _NoHook, ()  # copies and pickles of the model are not watched

    # Not traced: a compiler would run the files and the pictures once, while it compiles.
    @torch.compiler.disable
    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        sampling: Any = getattr(module, "_orig_mod", module)
        if not sampling.training or torch.compiler.is_exporting():
            return
        attention: Tensor = output[1]
        if getattr(sampling, "_is_replica", False) and attention.device != _device(self._sampling):
            return
        step, self._step = self._step, self._step + 1
        if step % self._every or attention.shape[0] == 0:
            return
        look = self._look(sampling, step, attention.detach(), *_inputs(*args, **kwargs))
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if not distributed or torch.distributed.get_rank() == 0:
            self._log.write(step, look)

    def _look(
        self, sampling: AttentionSampling, step: int, attention: Tensor, x_low: Tensor, x_high: Image, low_shapes: Any
    ) -> Look:
        some = _first(self._images, x_high)
        shapes = None if low_shapes is None else low_shapes[: self._images]
        attention_of_some = attention[: self._images]
        batch, low = len(attention_of_some), x_low.shape[2:]
        axes = len(low)
        draws, estimates = [], []
        with _undisturbed(sampling.feature, attention.device) as feature:
            for draw in range(self._draws):
                # Streams of no other look, nor of training, and nothing of PyTorch's generator.
                rng = SEEDS + step, draw * batch
                seen = sampling.sampler(attention_of_some, some, low_shape=low, low_shapes=shapes, rng=rng)
                flat = seen.patches.flatten(0, 1)
                features = feature(flat.flatten(1, flat.dim() - 1 - axes)).unflatten(0, (batch, -1))
                estimates.append(sampling.expectation(features, seen.attention, seen.threshold))
                draws.append((seen.attention, seen.threshold))
            probabilities, thresholds = map(torch.cat, zip(*draws, strict=True))
            coefficients, _ = estimator_arrays(probabilities, sampling.expectation.estimator, threshold=thresholds)
        fields = _sizes(sampling.sampler.receptive_field, axes)
        shown: dict[str, Any]
        if is_sources(x_high):
            shown = _thumbnails(attention, x_low, x_high, low_shapes, fields, batch)
        else:
            finest = some if isinstance(some, Tensor) else some[0]
            pixels = zip(fields, finest.shape[2:], low, strict=True)
            shown = {
                "attention": _to_numpy(attention),
                "images": list(finest.movedim(1, -1)),
                "margin": [field / 2 * high / size for field, high, size in pixels],
            }
        return Look(
            patch_size=_sizes(sampling.sampler.patch_size, axes),
            origins=_to_numpy(seen.origins),
            probabilities=_to_numpy(seen.attention),
            patches=_to_numpy(seen.patches.movedim(-axes - 1, -1)),
            coefficients=_to_numpy(coefficients),
            estimates=_to_numpy(torch.stack(estimates, 1)),
            to_numpy=_to_numpy,
            **shown,
        )


class _NoHook:
    """What copies of a watched module have instead of the hook."""

    def __call__(self, *_: Any) -> None:
        return None


def _find(model: nn.Module) -> Iterator[tuple[str, nn.Module, AttentionSampling]]:
    """Name, module to hang a hook on, and module for each AttentionSampling; each once."""
    seen = set()
    for name, module in model.named_modules():
        inside = getattr(module, "_orig_mod", module)  # torch.compile's wrapper comes before what it wraps
        if isinstance(inside, AttentionSampling) and inside not in seen:
            seen.add(inside)
            yield ".".join(part for part in name.split(".") if part not in ("_orig_mod", "module")), module, inside


@contextmanager
def _undisturbed(network: nn.Module, device: torch.device) -> Iterator[Any]:
    """A network to call that leaves no trace: no gradient, no random number, no buffer and no mode is changed."""
    network = network.module if isinstance(network, DistributedDataParallel) else network
    modes = [(module, module.training) for module in network.modules()]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    kind = device.type
    autocast = torch.autocast(
        kind,
        torch.get_autocast_dtype(kind),
        torch.is_autocast_enabled(kind),
        cache_enabled=False,  # training must not find casts in it that were made without a gradient
    )

    def call(patches: Tensor) -> Tensor:
        return torch.func.functional_call(network, buffers, (patches,)) if buffers else network(patches)

    devices = [] if kind == "cpu" else [device]
    with torch.no_grad(), autocast, torch.random.fork_rng(devices, device_type="cuda" if kind == "cpu" else kind):
        try:
            for module, _ in modes:
                module.training = False  # not eval(), which a module may have made its own
            yield call
        finally:
            for module, mode in modes:
                module.training = mode


def _inputs(x_low: Tensor, x_high: Image, rng: Any = None, low_shapes: Any = None) -> tuple[Tensor, Image, Any]:
    """Of the arguments of `AttentionSampling.forward`."""
    return x_low, x_high, low_shapes


def _first(n: int, images: Any) -> Any:
    if isinstance(images, SourceBatch):
        return images[:n]
    return images[:n].detach() if isinstance(images, Tensor) else [level[:n].detach() for level in images]


def _thumbnails(
    attention: Tensor, x_low: Tensor, sources: SourceBatch, low_shapes: Any, fields: Sequence[int], some: int
) -> dict[str, Any]:
    """Of a `Look`: maps and images without what is padding only."""
    grid, low = attention.shape[1:], tuple(x_low.shape[2:])
    valid = np.asarray([low] * len(sources) if low_shapes is None else _to_numpy(torch.as_tensor(low_shapes)))
    mask = sources.low_mask(tuple(grid), low_shape=low, low_shapes=valid, receptive_field=fields)
    cells = [[int(there.any(tuple({*range(len(low))} - {axis})).sum()) for axis in range(len(low))] for there in mask]
    maps, images = [], []
    for row, counts in enumerate(cells):
        maps.append(_to_numpy(attention[(row, *map(slice, counts))]))
        if row < some:  # as far as the cells reach
            ends = [
                round(field + n * (size - field) / of)
                for n, of, size, field in zip(counts, grid, low, fields, strict=True)
            ]
            images.append(x_low[(row, slice(None), *map(slice, ends))].detach().movedim(0, -1))
    return {
        "attention": maps,
        "images": images,
        "margin": [field / 2 for field in fields],
        "zoom": (valid / sources.shapes)[:some],
    }


def _device(module: nn.Module) -> torch.device | None:
    return next((parameter.device for parameter in module.parameters()), None)


def _sizes(sizes: int | tuple[int, ...], axes: int) -> Sequence[int]:
    return sizes if isinstance(sizes, tuple) else (sizes,) * axes


def _to_numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
