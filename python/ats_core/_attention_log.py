"""What a monitor writes of its looks: numbers, pictures, TensorBoard's events, and the warning of a collapse.

Needs ``python -m pip install 'ats-core[diagnostics]'``.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np

from ats_core import plot
from ats_core._arguments import Array, to_int
from ats_core.diagnostics import (
    AttentionCollapseWarning,
    AttentionStatistics,
    CollapseDetector,
    attention_statistics,
    effective_sample_size,
    estimator_variance,
    mean_of,
)

# Looks at step s draw with seed SEEDS + s: negative, as are no seeds of layers nor those of a framework's generator.
SEEDS = -(2**63)

_RECORDS = "tensorboard.summary.writer.record_writer"
_PROTO = "tensorboard.compat.proto."


class DiagnosticsFolder:
    """A folder with statistics.jsonl (a line a step), pictures name_step.png, and an events file for TensorBoard.

    A folder that was written before is gone on with: lines are added, files are never overwritten.

    Args:
        folder: made with its parents.

    Raises:
        ValueError: there is a statistics.jsonl of something else. ImportError: a package is missing.

    Attributes:
        last_step: the last step that statistics.jsonl tells of, None in a new folder.
    """

    _counter = itertools.count()

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        for module in ("PIL.Image", "PIL.ImageDraw", "PIL.ImageFont", "matplotlib", _RECORDS, _PROTO + "event_pb2"):
            plot.require(module)  # a missing one is told now, not in the middle of a training
        self.folder = Path(folder)
        self.statistics = self.folder / "statistics.jsonl"
        self.last_step = self._read_last_step()
        self._events: Path | None = None

    def write(self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, plot.Picture]) -> None:
        """Write numbers (those that are not finite as null) and pictures of a step."""
        self.folder.mkdir(parents=True, exist_ok=True)
        encoded = {name: plot.to_png(picture) for name, picture in pictures.items()}
        line = {"step": step, **{name: value if math.isfinite(value) else None for name, value in numbers.items()}}
        with open(self.statistics, "ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # whoever wrote the last line was stopped in the middle of it
                    file.write(b"\n")
            file.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        for name, png in encoded.items():
            _write_new(f"{self.folder / name}_{step:07d}", ".png", png)
        self._write_event(step, numbers, {name: (picture, encoded[name]) for name, picture in pictures.items()})
        self.last_step = step

    def _read_last_step(self) -> int | None:
        if not self.statistics.exists():
            return None
        last = None
        with open(self.statistics, "rb") as file:
            for line in file:
                try:
                    last = int(json.loads(line)["step"])
                except (ValueError, KeyError, TypeError):
                    continue  # half a line
        if last is None and self.statistics.stat().st_size > 0:
            raise ValueError(f"folder: {self.statistics} is there and holds no steps; choose another folder")
        return last

    def _write_event(
        self, step: int, numbers: Mapping[str, float], pictures: Mapping[str, tuple[plot.Picture, bytes]]
    ) -> None:
        # Records and protocol buffers, not TensorBoard's EventFileWriter: that one imports TensorFlow where it finds it.
        proto, event = plot.require(_PROTO + "summary_pb2"), plot.require(_PROTO + "event_pb2")
        events = [event.Event(wall_time=time.time(), file_version="brain.Event:2")] if self._events is None else []
        if self._events is None:
            name = f"events.out.tfevents.{int(time.time()):010d}.{os.uname().nodename}.{os.getpid()}"
            self._events = self.folder / f"{name}.{next(self._counter)}"
        values = [proto.Summary.Value(tag=f"attention/{tag}", simple_value=value) for tag, value in numbers.items()]
        for tag, (picture, png) in pictures.items():
            height, width, _ = picture.shape
            image = proto.Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=png)
            values.append(proto.Summary.Value(tag=f"attention/{tag}", image=image))
        events.append(event.Event(wall_time=time.time(), step=step, summary=proto.Summary(value=values)))
        with open(self._events, "ab") as file:
            records = plot.require(_RECORDS).RecordWriter(file)
            for one in events:
                records.write(one.SerializeToString())


def _write_new(stem: str, suffix: str, content: bytes) -> None:
    """Write a file, with a number in its name if there is one of that name."""
    for number in itertools.count(1):
        try:
            with open(f"{stem}{'' if number == 1 else f'_{number}'}{suffix}", "xb") as file:
                file.write(content)
            return
        except FileExistsError:
            continue


@dataclass(frozen=True)
class Look:
    """What a monitor saw at one step: B images of a batch, some of which, b, were looked at R times.

    Attributes:
        attention: (B, *grid), or B maps of different sizes.
        images: b images to draw (*spatial, C), of full resolution or less (`zoom`), channels-last views that `to_numpy`
            turns into arrays.
        patch_size: D sizes, in the pixels that patches are cut from.
        margin: D widths, as for `plot.overlay`.
        origins, probabilities, patches: (b, n, D), (b, n) and (b, n, [S,] *patch, C): of one of the R looks.
        coefficients: (b * R, n), the estimator's.
        estimates: (b, R, ...).
        zoom: (b, D), how many of a pixel that patches are cut from an image shows; None: 1.
    """

    attention: Sequence[Array]
    images: Sequence[Any]
    patch_size: Sequence[int]
    margin: Sequence[float]
    origins: Array
    probabilities: Array
    patches: Array
    coefficients: Array
    estimates: Array
    to_numpy: Callable[[Any], Any] = np.asarray
    zoom: Array | None = None

    def statistics(self) -> AttentionStatistics:
        if isinstance(self.attention, np.ndarray):
            return attention_statistics(self.attention)
        each = [attention_statistics(one[None]) for one in self.attention]
        return AttentionStatistics(
            **{field.name: np.concatenate([getattr(one, field.name) for one in each]) for field in fields(each[0])}
        )

    def numbers(self, statistics: AttentionStatistics) -> dict[str, float]:
        return {
            **statistics.means(),
            "effective_sample_size": mean_of(effective_sample_size(self.coefficients)),
            **estimator_variance(self.estimates).means(),
        }

    def pictures(self) -> dict[str, plot.Picture]:
        limits = float(self.probabilities.min()), float(self.probabilities.max())
        zoom = np.ones((len(self.images), len(self.patch_size))) if self.zoom is None else self.zoom
        overlays = [
            plot.overlay(
                image,
                self.attention[i],
                self.origins[i] * zoom[i],
                list(self.patch_size * zoom[i]),
                self.probabilities[i],
                margin=self.margin,
                probability_limits=limits,
                to_numpy=self.to_numpy,
            )
            for i, image in enumerate(self.images)
        ]
        shown = plot.montage(overlays, columns=min(4, math.ceil(math.sqrt(len(overlays)))))
        return {
            "overlay": plot.montage([shown, plot.probability_bar(limits, shown.shape[1])], columns=1, gap=4),
            "patches": plot.contact_sheet(self.patches, self.probabilities, axes=len(self.patch_size)),
        }


_COLLAPSE = {
    "cell": "attention has collapsed onto single cells: nearly all of it is on one cell of each image, so that the other "
    "patches hardly count",
    "edge": "attention has collapsed onto the edge of its map: nearly all of it is on the border cells, where padding "
    "shows and images seldom differ",
}


class AttentionLog:
    """The folder of one layer, and the warnings of its collapse, one of each kind.

    Args:
        folder: as for `DiagnosticsFolder`.
        name: what warnings call the layer.
        detector: with its thresholds.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str, detector: CollapseDetector) -> None:
        self.folder = DiagnosticsFolder(folder)
        self._name = name
        self._detector = detector
        self._warned: set[str] = set()

    def write(self, step: int, look: Look) -> None:
        """Write the files of a step, then warn if attention is collapsed."""
        statistics = look.statistics()
        self.folder.write(step, look.numbers(statistics), look.pictures())
        for kind in self._detector.update(statistics):
            if kind not in self._warned:
                self._warned.add(kind)
                warnings.warn(
                    f"{self._name}: {_COLLAPSE[kind]} (step {step}). If the overlays in {self.folder.folder} do not show "
                    "that it belongs there, try a stronger entropy regulariser, a smaller learning rate, or "
                    "SampleSoftmax(smooth=0.01); see docs/diagnostics.md",
                    AttentionCollapseWarning,
                    stacklevel=2,
                )


def at_least(name: str, value: SupportsIndex, least: int) -> int:
    """An argument of a monitor as an int."""
    number = to_int(name, value)
    if number < least:
        raise ValueError(f"{name}: must be at least {least}, got {number}")
    return number
