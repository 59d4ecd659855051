"""Watch attention sampling while it trains: numbers and pictures for TensorBoard and in files."""

from __future__ import annotations

import itertools
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import keras
import numpy as np

from ats_core import estimator_arrays
from ats_core._arguments import to_ints
from ats_core._attention_log import SEEDS, AttentionLog, Look, at_least
from ats_core.diagnostics import CELL, EDGE, WINDOW, CollapseDetector

from . import ops
from .sampling import Expectation, SamplePatches


class Probe(NamedTuple):
    """One draw for a batch of images: what `AttentionMonitor` finds out by itself, or what its `probe` returns.

    Attributes:
        features: (B, ...), the estimate.
        attention: (B, *grid), weights.
        patches: (B, n, [S,] *patch, C), or with C before *patch.
        sampled_attention: (B, n), as `SamplePatches` returns it.
        origins: (B, n, D) int64, in pixels of x_high.
        x_high: (B, *spatial, C), or (B, C, *spatial).
        patch_size: one size for every spatial axis, or one each.
        threshold: (B,), for "horvitz_thompson".
        estimator: that the features come from.
        data_format: of x_high and patches.
        margin: pixels at the borders of x_high, of each axis, that no cell covers; None is 0 (`plot.overlay`).
    """

    features: Any
    attention: Any
    patches: Any
    sampled_attention: Any
    origins: Any
    x_high: Any
    patch_size: Any
    threshold: Any = None
    estimator: str = "murthy"
    data_format: str = "channels_last"
    margin: Sequence[float] | None = None


class AttentionMonitor(keras.callbacks.Callback):
    """Logs what the `SamplePatches` layers of a model attend to, and warns when attention collapses.

    At the end of every epoch, and every `every` batches if told, the model is called with the same few images, `draws`
    times with other patches: for the pictures, and for the variance of the estimator. It is called outside of training
    (training=False, no gradient), with random numbers of the monitor's own, and what it assigns to Keras's variables is
    forgotten: training goes on with the same bits as without the monitor.

    Files in `folder`: statistics.jsonl (a line a step, which is the number of batches trained on), overlay_<step>.png,
    patches_<step>.png and events.out.tfevents.* for TensorBoard. A folder that was written before is gone on with: steps
    are counted on, lines are added, files are never overwritten. With several `SamplePatches` layers each has a folder
    of its name in it. Where one layer leads to several estimates (it is called more than once, or has more than one
    `Expectation`), the second is in estimate_2 of its folder, and so on, in the order in which the model makes them.
    Under torch.distributed only rank 0 looks and writes; elsewhere give the callback to one worker.

    Layers are found however deep they are in the model, functional or subclassed, as long as each `Expectation` is
    given the very tensor of probabilities that its `SamplePatches` returned, as in `attention_sampling`: that is how
    the monitor tells which belong together. Others need a `probe`.

    Args:
        folder: where to write; made when needed.
        images: a small batch of what the model takes: an array, or a list or dict of arrays.
        every: batches from one look to the next within an epoch; None looks at the end of epochs only.
        shown: of the images, how many to draw.
        draws: estimates of each image, at least 2.
        probe: images -> `Probe`, called `draws` times a look; it must draw other patches every time, and leave the
            random numbers of training alone. Needed where there is no `SamplePatches` layer to find.
        cell, edge: when attention counts as collapsed, see `CollapseDetector`; its window is the batch of images, 16 at
            most. There is one `AttentionCollapseWarning` of each kind and layer.

    Raises:
        ValueError: a number out of range. When training begins (of a model that is not built yet: after its first
            batch), a folder with something else in it, or a model without such layers. TypeError: no number.
            ImportError: Pillow, Matplotlib or TensorBoard is missing.

    Example:
        model.fit(data, epochs=10, callbacks=[AttentionMonitor("runs/first", [x_low[:8], x_high[:8]])])
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        images: Any,
        *,
        every: SupportsIndex | None = None,
        shown: SupportsIndex = 4,
        draws: SupportsIndex = 8,
        probe: Callable[[Any], Probe] | None = None,
        cell: float = CELL,
        edge: float = EDGE,
    ) -> None:
        super().__init__()
        arrays = keras.tree.flatten(images)
        if not arrays or any(len(np.shape(array)) == 0 or len(array) == 0 for array in arrays):
            raise ValueError("images: must be a batch of what the model takes, with at least one image")
        self._every = None if every is None else at_least("every", every, 1)
        self._shown = at_least("shown", shown, 1)
        self._draws = at_least("draws", draws, 2)
        self._images = images
        self._probe = probe
        self._folder = Path(folder)
        window = min(len(arrays[0]), WINDOW)
        self._detector = partial(CollapseDetector, cell=cell, edge=edge, window=window)
        self._detector()  # says what is wrong with its arguments
        self._logs: dict[_Estimate, AttentionLog] = {}
        self._alone: str | None = None  # the only layer, which needs no folder of its name
        self._step: int | None = None  # batches trained on; None before `_open`
        self._epoch_start = 0
        self._looked_at = -1

    def on_train_begin(self, logs: Any = None) -> None:
        # A layer that is not built yet may make others.
        if self._probe is not None or all(layer.built for layer in self.model._flatten_layers()):
            self._open()

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self._epoch_start = self._step or 0

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._step is None:
            self._open()
        before, self._step = self._step or 0, self._epoch_start + batch + 1
        # more than one batch at once with steps_per_execution
        if self._every is not None and self._step // self._every > before // self._every:
            self._look()

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self._looked_at != self._step:
            self._look()

    def _open(self) -> None:
        """Find the layers and what was written of them before."""
        names = [""] if self._probe is not None else [layer.name for layer in _samplers(self.model)]
        if not names:
            raise ValueError(
                "AttentionMonitor: the model has no SamplePatches layer; give a probe, a function images -> Probe"
            )
        if not self._logs and len(set(names)) == 1:
            self._alone = names[0]
        for name in names:
            self._log(_Estimate(name, 1))
        if self._step is None:  # a second fit of one callback counts on by itself
            self._step = self._epoch_start = max((log.folder.last_step or 0) for log in self._logs.values())

    def _log(self, estimate: _Estimate) -> AttentionLog:
        if estimate not in self._logs:
            folder = self._folder if estimate.layer == self._alone else self._folder / estimate.layer
            if estimate.number > 1:
                folder = folder / f"estimate_{estimate.number}"
            self._logs[estimate] = AttentionLog(folder, estimate.layer or "AttentionMonitor", self._detector())
        return self._logs[estimate]

    def _look(self) -> None:
        step = self._looked_at = self._step or 0
        if ops.ON_TORCH and _torch_rank() > 0:
            return
        probes: dict[_Estimate, list[Probe]] = defaultdict(list)
        # every call of every layer has a stream of its own
        streams = ((SEEDS + step, call << 32) for call in itertools.count())
        with _undisturbed(self.model):
            images = keras.tree.map_structure(keras.ops.convert_to_tensor, self._images)
            for _ in range(self._draws):
                if self._probe is not None:
                    probes[_Estimate("", 1)].append(self._probe(images))
                else:
                    for estimate, probe in _watch_layers(self.model, images, streams).items():
                        probes[estimate].append(probe)
        if not probes:
            raise ValueError(
                "AttentionMonitor: the model calls no SamplePatches layer with an Expectation after it that is given the "
                "very tensor of probabilities it returned (a cast or reshaped one is another); give a probe, a function "
                "images -> Probe"
            )
        for estimate, draws in probes.items():  # the model need not call every layer that it has
            self._log(estimate).write(step, _to_look(draws, self._shown))


class _Estimate(NamedTuple):
    """Of the estimates that a layer of this name leads to in one call of the model, the first, the second, ..."""

    layer: str
    number: int


def _samplers(model: Any) -> list[SamplePatches]:
    return [layer for layer in model._flatten_layers() if isinstance(layer, SamplePatches)]


def _watch_layers(model: Any, images: Any, streams: Iterator[tuple[int, int]]) -> dict[_Estimate, Probe]:
    """Call the model once, its `SamplePatches` layers with the next of the random streams, and see what they do."""
    # By the id of the probabilities, which the tuple keeps alive. The order of calls tells nothing: Keras calls the
    # layers of parallel branches in turns.
    sampled: dict[int, tuple[SamplePatches, Any, list[Any]]] = {}
    numbers: Counter[str] = Counter()
    probes: dict[_Estimate, Probe] = {}
    strangers: list[str] = []

    # What the model says about randomness and training is overruled.
    def sample(layer: Any, call: Any, inputs: Any, *_: Any, **__: Any) -> list[Any]:
        details, inference = layer.details, layer.inference
        try:
            layer.details, layer.inference = True, "sample"
            outputs: list[Any] = call(inputs, rng=next(streams), training=False)
        finally:
            layer.details, layer.inference = details, inference
        sampled[id(outputs[1])] = layer, inputs, outputs
        return outputs if details else outputs[:2]

    def estimate(layer: Any, call: Any, inputs: Any, *_: Any, **__: Any) -> Any:
        inference = layer.inference
        try:
            layer.inference = "sample"
            features = call(inputs, training=False)
        finally:
            layer.inference = inference
        if id(inputs[1]) in sampled:
            sampler, seen, outputs = sampled[id(inputs[1])]
            numbers[sampler.name] += 1
            found = _Estimate(sampler.name, numbers[sampler.name])
            probes[found] = _to_probe(sampler, seen, outputs, layer.estimator, features)
        else:
            strangers.append(layer.name)
        return features

    with ExitStack() as stack:
        for layer in model._flatten_layers():
            watch = sample if isinstance(layer, SamplePatches) else estimate if isinstance(layer, Expectation) else None
            if watch is not None:
                # An attribute of the object comes before the method of its class.
                layer.__dict__["call"] = partial(watch, layer, layer.call)
                stack.callback(layer.__dict__.pop, "call")
        model(images, training=False)
    if probes and strangers:  # with nothing to write there is an error
        warnings.warn(
            f"AttentionMonitor: {', '.join(strangers)} is not watched, because its probabilities are not the very tensor "
            "that a SamplePatches layer returned (a cast or reshaped one is another); to watch it, give a probe, a "
            "function images -> Probe",
            stacklevel=2,
        )
    return probes


def _to_probe(layer: SamplePatches, inputs: Any, outputs: Any, estimator: str, features: Any) -> Probe:
    x_low, x_high, attention, *_ = inputs
    if len(x_high.shape) == 1:
        raise TypeError("x_high: AttentionMonitor shows images in memory; give a probe, a function images -> Probe")
    patches, probabilities, _, origins, threshold = outputs
    first = layer.data_format == "channels_first"
    axes = len(x_low.shape) - 2
    low, high = (tuple(x.shape)[2:] if first else tuple(x.shape)[1:-1] for x in (x_low, x_high))
    if len(attention.shape) == axes + 2:
        attention = keras.ops.squeeze(attention, 1 if first else -1)
    if layer.use_logits:
        shape = attention.shape
        flat = keras.ops.cast(keras.ops.reshape(attention, (shape[0], -1)), "float32")
        attention = keras.ops.reshape(keras.ops.softmax(flat, -1), shape)
    fields = to_ints("receptive_field", layer.receptive_field, axes)
    return Probe(
        features=features,
        attention=attention,
        patches=patches,
        sampled_attention=probabilities,
        origins=origins,
        x_high=x_high,
        patch_size=layer.patch_size,
        threshold=threshold,
        estimator=estimator,
        data_format=layer.data_format,
        margin=[field / 2 * large / small for field, large, small in zip(fields, high, low, strict=True)],
    )


def _to_look(probes: Sequence[Probe], shown: int) -> Look:
    """What the log takes; the pictures are of the last one."""
    last = probes[-1]
    origins = _to_numpy(last.origins)
    axes = origins.shape[2]
    channel = -axes - 1 if last.data_format == "channels_first" else -1
    thresholds = None if last.threshold is None else np.concatenate([_to_numpy(one.threshold) for one in probes])
    coefficients, _ = estimator_arrays(
        np.concatenate([_to_numpy(one.sampled_attention) for one in probes]), last.estimator, threshold=thresholds
    )
    return Look(
        attention=_to_numpy(last.attention),
        images=[np.moveaxis(_to_numpy(image), channel, -1) for image in last.x_high[:shown]],
        patch_size=to_ints("patch_size", last.patch_size, axes),
        margin=[0.0] * axes if last.margin is None else last.margin,
        origins=origins[:shown],
        probabilities=_to_numpy(last.sampled_attention)[:shown],
        patches=np.moveaxis(_to_numpy(last.patches[:shown]), channel, -1),
        coefficients=coefficients,
        estimates=np.stack([_to_numpy(one.features) for one in probes], 1),
    )


@contextmanager
def _undisturbed(model: Any) -> Iterator[None]:
    """Leave no trace: no gradient, no random number, no moving mean nor other variable of Keras is changed."""
    with ExitStack() as stack:
        stack.enter_context(_torch_undisturbed(model) if ops.ON_TORCH else _eager_tensorflow())
        # Assignments go to the scope and are forgotten with it: no variable, however large, has to be copied.
        stack.enter_context(keras.StatelessScope())
        yield


@contextmanager
def _torch_undisturbed(model: Any) -> Iterator[None]:
    import torch

    # of PyTorch modules within the model
    buffers = {id(buffer): buffer for layer in model._flatten_layers() for buffer in layer.buffers()}.values()
    tensors = [keras.ops.convert_to_tensor(0), *buffers, *(variable.value for variable in model.variables)]
    devices = list({tensor.device for tensor in tensors if tensor.device.type != "cpu"})
    kind = devices[0].type if devices else "cuda"
    with torch.no_grad(), torch.random.fork_rng(devices, device_type=kind):
        before = [buffer.clone() for buffer in buffers]
        try:
            yield
        finally:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


@contextmanager
def _eager_tensorflow() -> Iterator[None]:
    """Within a model's own tf.function a look would see no values, and what it does would stay in the graph."""
    import tensorflow as tf

    before = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        yield
    finally:
        tf.config.run_functions_eagerly(before)


def _torch_rank() -> int:
    import torch

    distributed = torch.distributed
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else 0


def _to_numpy(tensor: Any) -> Any:
    if keras.backend.standardize_dtype(tensor.dtype) == "bfloat16":
        tensor = keras.ops.cast(tensor, "float32")
    return keras.ops.convert_to_numpy(tensor)
