"""Reads a video: its frames with times and colours, and the packets of its audio and subtitles (PyAV, an extra)."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.yuv import FULL, RGB, UNSPECIFIED, Colour, luma_weights, to_rgb

SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mpg", ".mpeg", ".wmv", ".flv", ".y4m")

_PLANAR = re.compile(r"(yuvj?4(20|22|44)p|gbrp|gray)((9|1[0246])le)?")
"""Pixel formats whose planes are read as they lie; others are repacked into one of them first."""

_SLACK = 0.5
"""Seconds by which the last packet of a whole file may end before the duration in its header."""

_TS_DISCONT = 0x200
"""FFmpeg's mark of formats whose times start anywhere (MPEG-TS): they are shifted to begin at 0."""

_LOST = {
    "MASTERING_DISPLAY_METADATA": "HDR mastering data",
    "DYNAMIC_HDR_PLUS": "HDR10+ data",
    "DOVI_METADATA": "Dolby Vision data",
    "A53_CC": "closed captions",
}
"""Side data of frames that is not carried over, by PyAV's names."""


@dataclass(frozen=True)
class Frame:
    """A decoded frame: integer planes as `to_rgb` takes them, time and duration in units of the video's time base."""

    planes: tuple[Tensor, ...]
    pts: int
    duration: int


@dataclass(frozen=True)
class VideoInfo:
    """What a video's header and its first frame say.

    size: (height, width) in pixels. frames: by the header, 0 where it tells none. rate: frames per second on average.
    pixel_aspect: a pixel's width over its height, None where untold. display_matrix: how a player turns the picture,
    nine integers as FFmpeg has them, or None. notes: what will be lost or may look wrong, a sentence each.
    """

    size: tuple[int, int]
    bits: int
    colour: Colour
    frames: int
    rate: Fraction
    time_base: Fraction
    pixel_aspect: Fraction | None
    display_matrix: tuple[int, ...] | None
    notes: tuple[str, ...]


def import_av() -> Any:
    """The package av; ValueError names the extra that brings it."""
    try:
        import av
    except ImportError as error:
        raise ValueError('video files need PyAV, which is not installed: pip install -e ".[video]"') from error
    av.logging.set_level(None)  # what FFmpeg prints names no file; errors come as exceptions
    return av


def reason(error: Exception) -> str:
    """FFmpeg's own words for an error of PyAV."""
    return str(getattr(error, "strerror", None) or error)


class VideoReader:
    """Iterates once over a video: Frame by Frame, and in between the copied streams' packets as they lie in the file.

    copied: audio and subtitle streams. A file that breaks off ends the iteration early; `damage` then says how, and is
    empty for a whole one. FileNotFoundError; ValueError: no readable file, no video stream, no frame, or a colour
    matrix that is not supported.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.damage = Path(path), ""
        self._av = import_av()
        if not self.path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        try:  # with "file:" a name may hold colons and percent signs
            self.container = self._av.open(f"file:{path}", metadata_errors="ignore")
        except self._av.FFmpegError as error:
            raise ValueError(f"{path} is no readable video ({reason(error)}); is the file whole?") from error
        try:
            self._start()
        except BaseException:
            self.container.close()
            raise

    def close(self) -> None:
        self.container.close()

    def __iter__(self) -> Iterator[Any]:
        for event in chain(self._begun, self._events):
            if not isinstance(event, self._av.VideoFrame):
                yield event
            elif (event.height, event.width) == self.info.size:
                yield self._frame(event)
            else:
                large, small = f"{event.width} x {event.height}", f"{self.info.size[1]} x {self.info.size[0]}"
                self.damage = f"frames change from {small} to {large} px, expected one size"
                return

    def rgb(self, frame: Frame, device: torch.device) -> Tensor:
        """A frame as (3,H,W) float32 in [0,1] on a device."""
        colour = self.info.colour.resolved(self.info.size)
        planes = [plane.to(device) for plane in frame.planes]
        return to_rgb(planes, self.info.bits, colour.matrix, colour.range == FULL)

    def _start(self) -> None:
        streams = self.container.streams
        videos = [s for s in streams.video if s.codec_context and not s.disposition & s.disposition.attached_pic]
        if not videos:
            kinds = ", ".join(sorted({s.type for s in streams})) or "nothing"
            raise ValueError(f"{self.path} holds {kinds}, expected a video stream that can be decoded")
        self.stream = videos[0]
        self.stream.thread_type = "AUTO"
        self.copied = [s for s in streams if s.type in ("audio", "subtitle") and s.codec_context]
        self._shift = Fraction(self.container.start_time or 0, self._av.time_base)
        if not self.container.format.flags & _TS_DISCONT:
            self._shift = Fraction(0)
        self._begun, self._events = [], self._read()
        for event in self._events:  # only a decoded frame tells the pixel format and the tags
            self._begun.append(event)
            if isinstance(event, self._av.VideoFrame):
                break
        else:
            raise ValueError(f"{self.path}: no frame could be decoded{self.damage and f', {self.damage}'}")
        self.info = self._describe(event)
        self._next = self._last = 0
        luma_weights(self.info.colour.at(self.info.size, self.info.size).resolved(self.info.size).matrix)

    def _describe(self, frame: Any) -> VideoInfo:
        stream = self.stream
        self._format = _planar_format(frame.format)
        kept = [stream, *self.copied]
        lost = [f"stream {s.index} ({s.type})" for s in self.container.streams if s not in kept]
        lost += [words for name, words in _LOST.items() if _side_data(frame, name) is not None]
        notes = [f"{what} will not be in the output" for what in lost]
        notes += ["frames are interlaced: both fields are upscaled as one picture"] if frame.interlaced_frame else []
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        matrix = _side_data(frame, "DISPLAYMATRIX")
        return VideoInfo(
            size=(frame.height, frame.width),
            bits=int(re.findall(r"(\d+)le", self._format)[0]) if self._format.endswith("le") else 8,
            colour=_colour(frame),
            frames=stream.frames,
            rate=rate,
            time_base=stream.time_base,
            pixel_aspect=stream.sample_aspect_ratio or None,
            display_matrix=None if matrix is None else tuple(np.frombuffer(matrix, np.int32).tolist()),
            notes=tuple(notes),
        )

    def _read(self) -> Iterator[Any]:
        """PyAV's frames and packets in the file's order; what goes wrong is told in `damage`."""
        end, failed, packets = 0.0, 0, self.container.demux()
        packet: Any = True
        while packet is not None:
            try:
                packet = next(packets, None)
            except self._av.FFmpegError as error:
                self.damage, packet = f"the file is damaged ({reason(error)})", None
            end = max(end, _end(packet))
            if packet is None or packet.stream is self.stream:
                try:
                    yield from self.stream.decode(packet)
                except self._av.EOFError:  # all frames are out since demux's own last, empty packet
                    pass
                except self._av.FFmpegError:
                    failed += 1
            elif packet.stream in self.copied and packet.dts is not None:
                yield self._shifted(packet)
        self.damage = self.damage or self._shortfall(end, failed)

    def _shortfall(self, end: float, failed: int) -> str:
        """What a file that could be read to its end lacks, or nothing."""
        if failed:
            return f"packets that could not be decoded: {failed}"
        if not self.container.duration:
            return ""
        stated = (self.container.duration + (self.container.start_time or 0)) / self._av.time_base
        return f"the file ends at {end:.1f} s of {stated:.1f} s" if end < stated - _SLACK else ""

    def _frame(self, frame: Any) -> Frame:
        repacked = frame if frame.format.name == self._format else _repacked(frame, self._format)
        pts = frame.pts if frame.pts is not None else frame.dts
        pts = self._next if pts is None else pts - self._in_units(self.info.time_base)
        duration = frame.duration or round(1 / (self.info.rate * self.info.time_base))
        if self._next:  # encoders take growing times alone, which broken files lack
            pts = max(pts, self._last + 1)
        self._last, self._next = pts, pts + duration
        return Frame(tuple(_plane(plane, self.info.bits) for plane in repacked.planes), pts, duration)

    def _shifted(self, packet: Any) -> Any:
        units = self._in_units(packet.time_base)
        packet.dts -= units
        packet.pts = packet.dts if packet.pts is None else packet.pts - units
        return packet

    def _in_units(self, time_base: Fraction) -> int:
        return round(self._shift / time_base)


def _end(packet: Any) -> float:
    """Second at which a packet ends, 0 where it has no time."""
    start = None if packet is None else packet.dts if packet.pts is None else packet.pts
    return 0.0 if start is None else float((start + (packet.duration or 0)) * packet.time_base)


def _planar_format(given: Any) -> str:
    """The planar pixel format with the content of a given one."""
    if _PLANAR.fullmatch(given.name):
        return given.name
    bits = max(component.bits for component in given.components)
    if given.is_rgb or given.has_palette:
        return "gbrp" if bits <= 8 else "gbrp16le"
    halves = (given.chroma_width(64) <= 32, given.chroma_height(64) <= 32)
    name = {(True, True): "yuv420p", (True, False): "yuv422p"}.get(halves, "yuv444p")
    return name if bits <= 8 else f"{name}{bits if bits in (9, 10, 12, 14, 16) else 16}le"


def _repacked(frame: Any, name: str) -> Any:
    """A frame in another pixel format of the same colours."""
    same = {"src_colorspace": frame.colorspace, "dst_colorspace": frame.colorspace}
    return frame.reformat(
        format=name, src_color_range=frame.color_range, dst_color_range=frame.color_range, threads=1, **same
    )


def _colour(frame: Any) -> Colour:
    name, told = frame.format.name, frame.color_range
    rgb = frame.format.is_rgb or frame.format.has_palette
    full = rgb or name.startswith("yuvj") or (name.startswith("gray") and not told)
    matrix = RGB if rgb else frame.colorspace or UNSPECIFIED
    return Colour(matrix, frame.color_primaries, frame.color_trc, FULL if full else told)


def _plane(plane: Any, bits: int) -> Tensor:
    """A plane's samples (h,w), copied: uint8, or int32 for more than 8 bits."""
    dtype = np.dtype(np.uint8 if bits == 8 else "<u2")
    rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)[: plane.height, : plane.width]
    return torch.from_numpy(rows.astype(np.uint8 if bits == 8 else np.int32))


def _side_data(frame: Any, name: str) -> bytes | None:
    return next((bytes(data) for data in frame.side_data if data.type.name == name), None)
