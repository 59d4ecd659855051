"""Audio files."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ats_core._arguments import Array, to_dtype
from ats_core.sources.errors import SourceError, require
from ats_core.sources.source import Description, FileSource, Shape

# The smallest dtype that holds every value of a subtype; whatever is not here is decoded to float32.
DTYPES = {
    "PCM_S8": "int16",
    "PCM_U8": "int16",
    "PCM_16": "int16",
    "ALAC_16": "int16",
    "ULAW": "int16",
    "ALAW": "int16",
    "PCM_32": "float64",
    "ALAC_32": "float64",
    "DOUBLE": "float64",
}


class AudioSource(FileSource):
    """An audio file (WAV, FLAC, Ogg, MP3 and what else libsndfile reads): axis x, channels.

    Args:
        path: of the file.
        dtype: int16, int32, float32 or float64. By default int16 for up to 16 bits (8-bit samples are multiplied by
            256), float64 for 32-bit integers and float64, and float32 for the rest; floating samples of integer files
            lie in [-1, 1).
    """

    backend = "audio"
    _exclusive = True

    def __init__(self, path: str | os.PathLike[str], *, dtype: DTypeLike | None = None) -> None:
        require("soundfile", "audio")
        self._dtype = None if dtype is None else to_dtype("dtype", dtype)
        if self._dtype is not None and self._dtype.name not in ("int16", "int32", "float32", "float64"):
            raise ValueError(f"dtype: must be int16, int32, float32 or float64, got {self._dtype}")
        super().__init__(path)

    def _open(self) -> Any:
        self._check_stamp()
        return require("soundfile", "audio").SoundFile(self._path)

    def _describe(self, handle: Any) -> Description:
        if not handle.seekable():
            raise SourceError(f"{self.name}: cannot be read from the middle")
        dtype = self._dtype or np.dtype(DTYPES.get(handle.subtype, "float32"))
        return Description("x", dtype, handle.channels, [[handle.frames]], None, [1 / handle.samplerate], ["s"])

    def _read_region(self, handle: Any, level: int, start: Shape, stop: Shape) -> Array:
        if handle.tell() != start[0]:
            handle.seek(start[0])
        samples: Array = handle.read(stop[0] - start[0], self.dtype.name, always_2d=True)
        if len(samples) < stop[0] - start[0]:
            raise SourceError(f"the file ends at sample {start[0] + len(samples)}")
        return samples
