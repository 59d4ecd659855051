"""Files that tell what a model made of a source."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import ats_core
from ats_core import plot
from ats_core._arguments import Array
from ats_core.attend.geojson import to_geojson
from ats_core.attend.heatmap import write_pyramid
from ats_core.attend.page import MOST_PIXELS, write_page
from ats_core.attend.result import Attended
from ats_core.diagnostics import attention_statistics, effective_sample_size
from ats_core.sources import Source

if TYPE_CHECKING:
    from ats_core.attend.work import Settings

SUMMARY, PATCHES, PYRAMID = "prediction.json", "patches.npy", "heatmap.ome.tif"
PARTIAL = ".partial"


def write_results(attended: Attended, source: Source, folder: Path, settings: Settings) -> dict[str, Any]:
    """Write everything about one source into a folder that appears when all of it is written.

    prediction.json (the summary that is returned), patches/*.png (of signals, volumes and videos patches.npy),
    heatmap.png; of images also heatmap.ome.tif, patches.geojson and index.html.

    Raises:
        FileExistsError: the folder is there and holds something else.
        OSError: nothing can be written there.
    """
    summary = summarize(attended, source, settings)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f"{_hidden(folder)}.{uuid.uuid4().hex}{PARTIAL}")
    partial.mkdir()
    try:
        _write(attended, source, partial, settings)
        (partial / SUMMARY).write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
        _move(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def read_summary(folder: Path) -> dict[str, Any] | None:
    """The summary of results that are there; None if there are none.

    Raises:
        ValueError: the file holds something else.
    """
    path = folder / SUMMARY
    try:
        summary = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:  # a machine that went down can leave an empty file
        summary = None
    if isinstance(summary, dict):
        return summary
    raise ValueError(f"{path}: holds no results; remove its folder to have them made again")


def is_result(path: str) -> bool:
    """Whether a file is one of those that `write_results` wrote, though it looks like a source."""
    folder, name = os.path.split(path)
    return name in (PATCHES, PYRAMID) and os.path.exists(os.path.join(folder, SUMMARY))


def remove_partial(folder: Path) -> None:
    """Remove what a worker that was killed left of a folder of results. Nobody else may be writing it."""
    for partial in folder.parent.glob(f"{_hidden(folder)}.*{PARTIAL}"):
        shutil.rmtree(partial, ignore_errors=True)


def summarize(attended: Attended, source: Source, settings: Settings) -> dict[str, Any]:
    """What prediction.json holds. It does not depend on when, where or how fast it was made."""
    statistics = attention_statistics(attended.attention[None]).means()
    names = patch_names(attended)
    patches = [
        {
            "rank": int(attended.ranks[i]),
            "index": int(attended.indices[i]),
            "origin": attended.origins[i].tolist(),
            "probability": float(attended.probabilities[i]),
            "weight": float(attended.weights[i]),
            "pictures": names[i],
        }
        for i in range(len(attended.indices))
    ]
    return {
        "file": attended.name,
        "prediction": _finite(attended.prediction.tolist()),
        "class": _predicted_class(attended, settings.classes),
        "model": settings.model,
        "seed": settings.seed,
        "source": describe(source),
        "attention": {
            "grid": list(attended.attention.shape),
            **{name: statistics[name] for name in ("entropy", "effective_cells", "largest_share", "border_share")},
        },
        "effective_sample_size": float(effective_sample_size(attended.weights[None])[0]),
        "patch_size": list(attended.patch_size),
        "scales": list(attended.scales),
        "patches": patches,
        "ats_core": ats_core.__version__,
    }


def describe(source: Source) -> dict[str, Any]:
    """What a source is, in numbers and strings."""
    return {
        "backend": source.backend,
        "axes": source.axes,
        "dtype": source.dtype.name,
        "channels": source.channels,
        "mpp": source.mpp and list(source.mpp),
        "spacing": list(source.spacing),
        "units": list(source.units),
        "levels": [
            {
                "shape": list(level.shape),
                "downsample": list(level.downsample),
                "tile": level.tile and list(level.tile),
            }
            for level in source.levels
        ],
    }


def patch_names(attended: Attended) -> list[list[str]]:
    """For each patch its pictures' names, its rank in them, one a scale; of other than images none."""
    if attended.axes != "yx":
        return [[] for _ in attended.indices]
    digits = len(str(len(attended.indices)))
    marks = [""] if len(attended.scales) == 1 else [f"_x{scale:g}" for scale in attended.scales]
    return [[f"patches/{rank:0{digits}d}{mark}.png" for mark in marks] for rank in attended.ranks.tolist()]


def _predicted_class(attended: Attended, classes: Sequence[str] | None) -> str | None:
    if classes is None or attended.predicted is None:
        return None
    return attended.class_names(classes)[attended.predicted]


def _write(attended: Attended, source: Source, folder: Path, settings: Settings) -> None:
    if attended.axes != "yx":
        np.save(folder / PATCHES, attended.patches)
        view = attended.thumbnail
    else:
        (folder / "patches").mkdir()
        # Of all patches alike; bytes are drawn as they are.
        limits = None if attended.patches.dtype == np.uint8 else plot.limits_of(attended.patches[..., :3])
        for patch, names in zip(attended.patches, patch_names(attended), strict=True):
            for pixels, name in zip(patch, names, strict=True):
                picture = plot.draw_image(pixels, size=max(pixels.shape[:2]), limits=limits)
                (folder / name).write_bytes(plot.to_png(picture))
        view, _ = source.thumbnail(min(settings.view_size, max(source.shape)))
    scale = np.array(view.shape[:-1]) / attended.shape
    heat = plot.overlay(
        view,
        attended.attention,
        attended.origins * scale,
        _scaled(attended.patch_size, scale),
        attended.probabilities,
        margin=_scaled(attended.margin, scale),
        size=max(view.shape[:-1]),
    )
    (folder / "heatmap.png").write_bytes(plot.to_png(heat))
    if attended.axes != "yx":
        return
    write_pyramid(folder / PYRAMID, attended, view)
    places = to_geojson(attended, settings.classes)
    (folder / "patches.geojson").write_text(json.dumps(places, allow_nan=False) + "\n")
    picture = plot.draw_image(view, size=min(max(view.shape[:-1]), MOST_PIXELS))
    write_page(folder / "index.html", attended, picture, classes=settings.classes)


def _scaled(lengths: Sequence[float], scale: Array) -> list[float]:
    return [length * factor for length, factor in zip(lengths, scale.tolist(), strict=True)]


def _move(partial: Path, folder: Path) -> None:
    """Rename into place. Who comes second, having made the same, leaves what is there."""
    try:
        partial.rename(folder)  # replaces an empty folder, and no other
    except OSError:
        if read_summary(folder) is not None:
            return
        if folder.exists():
            raise FileExistsError(f"{folder}: is there already, and holds no {SUMMARY}") from None
        raise


def _finite(value: Any) -> Any:
    """The value with None for what JSON has no number for."""
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if not isinstance(value, float) or math.isfinite(value) else None


def _hidden(folder: Path) -> str:
    """How the names of a folder's unfinished ones begin: short, since a name may be as long as names can be."""
    return "." + hashlib.blake2b(os.fsencode(folder.name), digest_size=8).hexdigest()
