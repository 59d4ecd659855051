"""Files in a folder that a backend may read."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ats_core.sources.errors import SourceError, words
from ats_core.sources.opening import EXTENSIONS, _candidates


def find_sources(path: str | os.PathLike[str]) -> list[str]:
    """Paths of the signals at a path: itself if it is a file, a Zarr or a DICOM folder, otherwise those in the folder.

    In folders, and the folders in them, files are taken whose name ends as a format's does (`.svs`, `.tiff`, `.npy`,
    `.wav`, ...), without opening them. Hidden ones are left out, and links to a folder that they are in. Sorted.

    Raises:
        SourceError: there is no such path, or a folder cannot be listed.
    """
    name = os.fspath(path)
    if os.path.isdir(name):
        return sorted(_walk(name))
    file, _, _ = name.partition("::")  # "file.h5::/dataset"
    if "://" not in name and not os.path.exists(name) and not os.path.exists(file):
        raise SourceError(f"{name}: no such file or folder")
    return [name]


def _walk(folder: str, above: tuple[str, ...] = ()) -> Iterator[str]:
    real = os.path.realpath(folder)
    if real in above:  # a link back, which has no end
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"{folder}: cannot be listed: {words(error)}") from error
    names = [entry.name for entry in entries]
    if _candidates(folder) == ("zarr",) or any(name.lower().endswith(".dcm") for name in names):
        yield folder
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if _is_folder(entry):
            yield from _walk(entry.path, (*above, real))
        elif entry.name.lower().endswith(tuple(EXTENSIONS)):
            yield entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
