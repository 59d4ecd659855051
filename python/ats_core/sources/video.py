"""Videos, through PyAV."""

from __future__ import annotations

import bisect
import os
from typing import Any

import numpy as np

from ats_core._arguments import Array
from ats_core.sources.errors import SourceError, require
from ats_core.sources.plan import Shape
from ats_core.sources.source import Description, FileSource

FORMATS = {"gray": "gray", "gray16le": "gray16le", "gray16be": "gray16le"}
# A seek costs about as much as decoding this many frames.
NEAR = 8


class _Decoder:
    """An open video, and the frame that it would decode next."""

    def __init__(self, path: str) -> None:
        av = require("av", "video")
        self.container = av.open(path)
        try:
            if not self.container.streams.video:
                raise SourceError("has no video in it")
            self.stream = self.container.streams.video[0]
            self.stream.thread_type = "SLICE"  # threads for frames would decode more of them than are asked for
        except BaseException:
            self.container.close()
            raise
        self.frames: Any = None
        self.next = -1  # time of the frame that comes next at the latest; -1: not known

    def close(self) -> None:
        self.container.close()


class VideoSource(FileSource):
    """A video: axes t, y, x; uint8 RGB, or gray (uint8, uint16) as the file has it.

    Every frame is a tile. To read one, the decoder goes on from where it is, or seeks to the keyframe before. When the
    file is first opened it is read once, without decoding, to find the time of every frame: frames are counted exactly,
    also at a variable rate.

    Args:
        path: of the file.
    """

    backend = "video"
    _exclusive = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        require("av", "video")
        super().__init__(path)

    def _open(self) -> _Decoder:
        self._check_stamp()
        return _Decoder(self._path)

    def _describe(self, handle: _Decoder) -> Description:
        stream = handle.stream
        times, keys = [], []
        for packet in handle.container.demux(stream):
            time = packet.dts if packet.pts is None else packet.pts
            if packet.size == 0 or packet.is_discard:
                continue
            if time is None:
                raise SourceError("frames have no times: put them into another container, as with ffmpeg -c copy")
            times.append(time)
            if packet.is_keyframe:
                keys.append(time)
        if not times or not keys:
            raise SourceError("has no frames")
        times.sort()
        handle.next = -1
        context = stream.codec_context
        format = FORMATS.get(context.format.name if context.format else "", "rgb24")
        rate = stream.average_rate
        seconds = None if not rate else float(1 / rate)
        return Description(
            axes="tyx",
            dtype="uint16" if format == "gray16le" else "uint8",
            channels=3 if format == "rgb24" else 1,
            shapes=[(len(times), context.height, context.width)],
            tiles=[(1, context.height, context.width)],
            spacing=[seconds, None, None],
            units=["s", None, None],
            private=(np.array(times, np.int64), np.array(sorted(keys), np.int64), format),
        )

    def _read_tile(self, handle: _Decoder, level: int, index: Shape) -> Array:
        times, keys, format = self._private
        wanted = int(times[index[0]])
        near = int(times[max(0, index[0] - NEAR)])
        key = bisect.bisect_right(keys, wanted) - 1
        follows = handle.frames is not None and handle.next <= wanted
        # Going on is as good as a seek when no keyframe lies between, or the frame is near.
        if not follows or (key >= 0 and handle.next < keys[key] and handle.next < near):
            self._seek(handle, int(keys[max(key, 0)]))
        while True:
            frame = self._decode(handle, wanted)
            if frame is not None:
                break
            key -= 1  # the decoder began after the frame: keyframes may lie
            if key < 0:
                raise SourceError(f"frame {index[0]} is missing")
            self._seek(handle, int(keys[key]))
        pixels: Array = frame.to_ndarray(format=format)
        return pixels[None] if pixels.ndim == 3 else pixels[None, ..., None]

    def _seek(self, handle: _Decoder, time: int) -> None:
        handle.container.seek(time, stream=handle.stream, backward=True)
        handle.frames = handle.container.decode(handle.stream)
        handle.next = -1

    def _decode(self, handle: _Decoder, wanted: int) -> Any:
        """The frame of that time; None if what comes is later."""
        for frame in handle.frames:
            time = frame.dts if frame.pts is None else frame.pts
            if time is None:
                raise SourceError("a frame has no time")
            handle.next = time + 1
            if time == wanted:
                return frame
            if time > wanted:
                break
        else:
            handle.frames = None
        return None
