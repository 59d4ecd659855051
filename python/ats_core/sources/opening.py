"""Which backend reads what."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import Any

from numpy.typing import ArrayLike

from ats_core.sources.errors import SourceError, words
from ats_core.sources.source import Source

# Module and class of every backend; they are imported when first needed.
BACKENDS = {
    "array": ("array", "ArraySource"),
    "npy": ("array", "NpySource"),
    "tiff": ("tiff", "TiffSource"),
    "openslide": ("openslide", "OpenSlideSource"),
    "dicom": ("dicom", "DicomSource"),
    "zarr": ("zarr", "ZarrSource"),
    "hdf5": ("hdf5", "HDF5Source"),
    "video": ("video", "VideoSource"),
    "audio": ("audio", "AudioSource"),
    "nifti": ("nifti", "NiftiSource"),
}
# By what a file begins with.
MAGIC: tuple[tuple[int, bytes, tuple[str, ...]], ...] = (
    (0, b"II*\0", ("tiff",)),
    (0, b"MM\0*", ("tiff",)),
    (0, b"II+\0", ("tiff",)),
    (0, b"MM\0+", ("tiff",)),
    (0, b"\x89HDF\r\n\x1a\n", ("hdf5",)),
    (0, b"\x93NUMPY", ("npy",)),
    (128, b"DICM", ("dicom", "openslide")),
    (8, b"WAVE", ("audio",)),
    (0, b"RF64", ("audio",)),
    (8, b"AIFF", ("audio",)),
    (0, b"fLaC", ("audio",)),
    (0, b"OggS", ("audio", "video")),
    (0, b"ID3", ("audio",)),
    (8, b"AVI ", ("video",)),
    (4, b"ftyp", ("video", "audio")),
    (0, b"\x1a\x45\xdf\xa3", ("video",)),
    (344, b"n+1\0", ("nifti",)),
    (4, b"n+2\0", ("nifti",)),
)
# By its name, where that says more.
EXTENSIONS = {
    **dict.fromkeys((".svs", ".ndpi", ".scn", ".bif", ".mrxs", ".vms", ".vmu", ".svslide", ".czi"), ("openslide",)),
    **dict.fromkeys((".nii", ".nii.gz"), ("nifti",)),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".caf", ".w64"), ("audio",)),
    **dict.fromkeys((".mp4", ".mkv", ".webm", ".mov", ".avi", ".m4v", ".mpg", ".mpeg", ".ts", ".ogv"), ("video",)),
    **dict.fromkeys((".h5", ".hdf5", ".hdf"), ("hdf5",)),
    **dict.fromkeys((".tif", ".tiff", ".btf", ".tf8", ".qptiff"), ("tiff",)),
    ".npy": ("npy",),
    ".dcm": ("dicom", "openslide"),
    ".zarr": ("zarr",),
}


def open_source(
    path: str | os.PathLike[str] | ArrayLike | Source, *, backend: str | None = None, **options: Any
) -> Source:
    """Open a file, a folder, a URL or an array, of which then only those parts are read that are asked for.

    Args:
        path: a path, a URL (read as Zarr), "file.h5::/dataset", or an array (*spatial, C). A source is returned as it
            is.
        backend: one of "array", "npy", "tiff", "openslide", "dicom", "zarr", "hdf5", "video", "audio", "nifti". By
            default what the file begins with and its name decide.
        options: the backend's own, such as ``axes="zyx"`` (a letter for every axis of the array, "c" the channels) and
            ``select={"t": 0}`` (at which index other axes are read).

    Raises:
        SourceError: the file cannot be opened, or nothing here reads it. The message says what was tried.
        ImportError: the backend needs a package that is not installed. The message has the command.
        ValueError, TypeError: for an argument that means nothing here.
    """
    if isinstance(path, Source):
        if options or backend not in (None, path.backend):
            raise ValueError("options: a source is open already")
        return path
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend: must be one of {', '.join(map(repr, BACKENDS))}, got {backend!r}")
    if not isinstance(path, str | os.PathLike):
        if callable(path) or isinstance(path, bytes):
            raise TypeError(f"path: must be a path or an array, got {path!r} (of a function make a FunctionSource)")
        if backend not in (None, "array"):
            raise TypeError(f"path: must be a path for backend {backend!r}, got {type(path).__name__}")
        return _load("array")(path, **options)
    if backend == "array":
        raise TypeError(f"path: must be an array for backend 'array', got {path!r}")
    name = os.fspath(path)
    if isinstance(name, bytes):
        name = os.fsdecode(name)
    tried = []
    candidates = (backend,) if backend is not None else _candidates(name)
    for candidate in candidates:
        make = _load(candidate)
        try:
            return make(name, **options)
        except SourceError as error:
            if len(candidates) == 1:
                raise
            tried.append(f"{candidate}: {str(error).removeprefix(f'{name}: ')}")
    reasons = (
        "; ".join(tried) or f"neither its content nor its name is known; backend= takes one of {', '.join(BACKENDS)}"
    )
    raise SourceError(f"{name}: cannot be opened ({reasons})")


def _load(backend: str) -> Callable[..., Source]:
    module, name = BACKENDS[backend]
    make: Callable[..., Source] = getattr(importlib.import_module(f"ats_core.sources.{module}"), name)
    return make


def _candidates(path: str) -> tuple[str, ...]:
    """Backends that may know a file, the likeliest first."""
    if "://" in path:
        return ("zarr",)
    _, separator, _ = path.partition("::")
    if separator and not os.path.exists(path):
        return ("hdf5",)
    try:
        if os.path.isdir(path):
            inside = os.listdir(path)
            if any(name in inside for name in ("zarr.json", ".zarray", ".zgroup", ".zattrs")):
                return ("zarr",)
            return ("dicom",) if any(not name.startswith(".") for name in inside) else ()
        with open(path, "rb") as stream:
            head = stream.read(512)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file") from None
    except OSError as error:
        raise SourceError(f"{path}: cannot be opened: {words(error)}") from error
    lower = path.lower()
    named = next((backends for end, backends in EXTENSIONS.items() if lower.endswith(end)), ())
    known = next((names for at, magic, names in MAGIC if head[at : at + len(magic)] == magic), ())
    if "openslide" in named:
        return named
    return known or named
