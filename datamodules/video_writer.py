"""Writes a VideoReader's video anew: other frames at the old times, and all else copied (PyAV, an extra)."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from datamodules.video import Frame, VideoReader, import_av, reason
from datamodules.yuv import FULL, from_rgb

WRITABLE = (".mp4", ".m4v", ".mov", ".mkv", ".webm")

_OF_THE_FILE = ("major_brand", "minor_version", "compatible_brands", "encoder")
"""Metadata that describe the old file, not what it shows."""


@dataclass(frozen=True)
class Encoding:
    """How frames are compressed.

    codec: FFmpeg's name of an encoder; "" is libx264, or VP9 in .webm. crf: its constant rate factor, lower is better
    and larger; None is 16 where the encoder has one. preset: its speed, such as veryfast; "" leaves the encoder's own.
    """

    codec: str = ""
    crf: float | None = None
    preset: str = ""


class VideoWriter:
    """A video of `scale` times a reader's size; a context that renames the file into place, or leaves none on an error.

    Rate, times, colour tags, pixel aspect, display matrix, metadata, chapters, audio and subtitles are the reader's.
    notes: what could not be kept, a sentence each. ValueError: an unknown encoder, a suffix other than WRITABLE, audio
    that the container does not hold, an encoder without 4:2:0, 4:2:2 or 4:4:4.
    """

    def __init__(self, path: Path, reader: VideoReader, scale: float, encoding: Encoding) -> None:
        self.path, self.frames, self.notes = path, 0, list(reader.info.notes)
        self._av, self._info = import_av(), reader.info
        if path.suffix.lower() not in WRITABLE:
            raise ValueError(f"cannot write {path}: expected a name ending in {', '.join(WRITABLE)}")
        self.size = (round(reader.info.size[0] * scale), round(reader.info.size[1] * scale))
        self.colour = reader.info.colour.at(reader.info.size, self.size)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._partial = path.with_name(f".{path.name}.{os.getpid()}.part{path.suffix}")
        self._container = self._av.open(f"file:{self._partial}", "w")
        try:
            self._stream = self._add_video(encoding)
            self._set_picture(scale)
            self._copies = self._add_copies(reader)
        except BaseException:
            self._drop()
            raise

    def __enter__(self) -> "VideoWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._drop()
            return
        try:
            with self._named_errors():
                self._container.mux(self._stream.encode(None))
                self._container.close()
            os.replace(self._partial, self.path)
        except BaseException:
            self._drop()
            raise

    def planes(self, rgb: Tensor) -> list[Tensor]:
        """The planes of (3,H,W) RGB in [0,1] on the CPU, in the encoder's format and of its size."""
        bottom, right = (padded - side for padded, side in zip(self._padded, rgb.shape[1:], strict=True))
        if bottom or right:
            rgb = F.pad(rgb[None], (0, right, 0, bottom), mode="replicate")[0]
        colour = self.colour.resolved(self.size)
        planes = from_rgb(rgb, self._bits, colour.matrix, colour.range == FULL, self._halved)
        return [plane.cpu() for plane in planes]

    def write(self, planes: Sequence[Tensor], source: Frame) -> None:
        """Encode one frame, in the order of their times, at the time of its source."""
        frame = self._av.VideoFrame(self._padded[1], self._padded[0], self._stream.pix_fmt)
        dtype = np.dtype(np.uint8 if self._bits == 8 else "<u2")
        for plane, values in zip(frame.planes, planes, strict=True):
            rows = np.frombuffer(plane, dtype).reshape(-1, plane.line_size // dtype.itemsize)
            rows[: plane.height, : plane.width] = values.numpy()
        frame.pts, frame.duration, frame.time_base = source.pts, source.duration, self._info.time_base
        frame.colorspace, frame.color_range = self.colour.matrix, self.colour.range
        frame.color_primaries, frame.color_trc = self.colour.primaries, self.colour.transfer
        with self._named_errors():
            self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def copy(self, packet: Any) -> None:
        """Write a packet of the reader's audio or subtitles as it is."""
        copy = self._copies.get(packet.stream.index)
        if copy is not None:
            packet.stream = copy
            with self._named_errors():
                self._container.mux(packet)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except self._av.FFmpegError as error:
            raise OSError(f"cannot write {self.path}: {reason(error)}") from error

    def _drop(self) -> None:
        with contextlib.suppress(self._av.FFmpegError):
            self._container.close()
        self._partial.unlink(missing_ok=True)

    def _add_video(self, encoding: Encoding) -> Any:
        container = self._container
        name = encoding.codec or ("libx264" if "libx264" in container.supported_codecs else "libvpx-vp9")
        try:
            codec = self._av.Codec(name, "w")
            if codec.type != "video":
                raise ValueError(f"it is for {codec.type}")
            stream = container.add_stream(name, rate=self._info.rate, time_base=self._info.time_base)
        except (self._av.FFmpegError, ValueError) as error:
            raise ValueError(f"--codec {name} cannot be used for {self.path.name}: {reason(error)}") from error
        known = {option.name for option in stream.codec_context.supported_options.private}
        wanted = {"crf": 16 if encoding.crf is None else encoding.crf, "preset": encoding.preset}
        given = {"crf": encoding.crf is not None, "preset": bool(encoding.preset)}
        missing = [option for option in given if given[option] and option not in known]
        if missing:
            raise ValueError(f"--codec {name} has no {missing[0]}; leave --{missing[0]} out")
        stream.options = {key: f"{value}" for key, value in wanted.items() if key in known and value != ""}
        stream.pix_fmt = self._choose_format(codec)
        return stream

    def _choose_format(self, codec: Any) -> str:
        """The encoder's pixel format: the source's depth, else the next above, else the next below; 4:2:0 if it can."""
        offered = [video_format.name for video_format in codec.video_formats or []] or ["yuv420p"]
        bits = self._info.bits
        for depth in sorted({bits, 8, 10, 12, 16}, key=lambda depth: (depth < bits, abs(depth - bits))):
            for kind in ("yuv420p", "yuv422p", "yuv444p"):
                name = kind if depth == 8 else f"{kind}{depth}le"
                if name in offered:
                    self._bits, self._halved = depth, (kind == "yuv420p", kind != "yuv444p")
                    if depth < bits:
                        self.notes.append(f"the output gets {depth} of the input's {bits} bits")
                    return name
        raise ValueError(f"--codec {codec.name} takes {', '.join(offered[:6])}, expected yuv420p, yuv422p or yuv444p")

    def _set_picture(self, scale: float) -> None:
        stream, info = self._stream, self._info
        height, width = (side + side % 2 if half else side for side, half in zip(self.size, self._halved, strict=True))
        self._padded = height, width
        if self._padded != self.size:
            found = f"{self.size[1]} x {self.size[0]} px are odd for {stream.pix_fmt}"
            self.notes.append(f"{found}: written as {width} x {height}, the last row or column repeated")
        stream.height, stream.width = height, width
        stream.codec_context.flags |= int(self._av.codec.context.Flags.frame_duration)
        stream.codec_context.sample_aspect_ratio = info.pixel_aspect or Fraction(0, 1)
        stream.codec_context.colorspace, stream.codec_context.color_range = self.colour.matrix, self.colour.range
        stream.codec_context.color_primaries = self.colour.primaries
        stream.codec_context.color_trc = self.colour.transfer
        if info.display_matrix:
            scaled = list(info.display_matrix)
            scaled[6:8] = (round(shift * scale) for shift in scaled[6:8])  # the translation is in pixels
            stream.set_display_matrix(scaled)

    def _add_copies(self, reader: VideoReader) -> dict[int, Any]:
        """Streams to copy to, by the index of the reader's."""
        container, copies = self._container, {}
        kept = {key: value for key, value in reader.container.metadata.items() if key not in _OF_THE_FILE}
        container.metadata.update(kept)
        self._stream.metadata.update({k: v for k, v in reader.stream.metadata.items() if k != "encoder"})
        self._stream.disposition = reader.stream.disposition
        container.set_chapters(reader.container.chapters())
        for source in reader.copied:
            found = f"{source.codec_context.name} {source.type}"
            try:
                copy = container.add_stream_from_template(source)
            except (self._av.FFmpegError, ValueError):
                if source.type == "audio":
                    raise ValueError(f"{self.path.suffix} files hold no {found}; give OUT= a name in .mkv") from None
                self.notes.append(f"{self.path.suffix} files hold no {found}: stream {source.index} is left out")
                continue
            copy.metadata.update(source.metadata)
            copy.disposition = source.disposition
            copies[source.index] = copy
        return copies
