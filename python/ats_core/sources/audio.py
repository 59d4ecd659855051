"""Audio files."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import DTypeLike

from ats_core._arguments import Array, to_dtype
from ats_core.sources.errors import SourceError, require
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, FileSource

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


# libsndfile 1.2.2 seeks to other samples than it says in these (seen with Ogg): they are read from the beginning.
SEQUENTIAL = ("VORBIS", "OPUS", "MPEG_LAYER_I", "MPEG_LAYER_II", "MPEG_LAYER_III")
BLOCK = 1 << 16


class _File:
    """An open file, and the sample that it would decode next."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.again()

    def again(self) -> None:
        """Go to the beginning. A seek to it is one of those that cannot be trusted."""
        self.close()
        soundfile = require("soundfile", "audio")
        self.file = soundfile.SoundFile(self._path)
        if self.file.subtype in SEQUENTIAL:
            # The package seeks after every read, which moves an MP3 decoder, unless the file says that it cannot.
            self.file.seekable = lambda: False
        self.position = 0

    def close(self) -> None:
        if hasattr(self, "file"):
            self.file.close()


class AudioSource(FileSource):
    """An audio file (WAV, FLAC, Ogg, MP3 and what else libsndfile reads): axis x, channels.

    WAV, AIFF, FLAC and the like are read from any sample on. Ogg and MP3 files are decoded on to the sample that is
    wanted, for a read that goes back from the beginning, in blocks of 65,536 samples that are cached: store them as
    FLAC if long files are to be read at random.

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

    def _open(self) -> _File:
        self._check_stamp()
        return _File(self._path)

    def _describe(self, handle: _File) -> Description:
        file = handle.file
        dtype = self._dtype or np.dtype(DTYPES.get(file.subtype, "float32"))
        sequential = file.subtype in SEQUENTIAL
        if not sequential and not file.seekable():
            raise SourceError(f"{self.name}: cannot be read from the middle")
        tiles = [(BLOCK,)] if sequential else None
        return Description("x", dtype, file.channels, [[file.frames]], tiles, [1 / file.samplerate], ["s"])

    def _read_region(self, handle: _File, level: int, start: Shape, stop: Shape) -> Array:
        if handle.position != start[0]:
            handle.file.seek(start[0])
        return self._next(handle, start[0], stop[0] - start[0])

    def _read_tile(self, handle: _File, level: int, index: Shape) -> Array:
        start, stop = self._tile_ends(level, index)
        if handle.position > start[0]:
            handle.again()
        while handle.position < start[0]:
            self._next(handle, handle.position, min(BLOCK, start[0] - handle.position))
        return self._next(handle, start[0], stop[0] - start[0])

    def _next(self, handle: _File, position: int, count: int) -> Array:
        samples: Array = handle.file.read(count, self.dtype.name, always_2d=True)
        handle.position = position + len(samples)
        if len(samples) < count:
            raise SourceError(f"the file ends at sample {position + len(samples)}, {self.shape[0]} expected")
        return samples
