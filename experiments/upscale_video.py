"""Upscaling of a video: decoding, network and encoding overlap; all that is no picture is copied."""

import os
import sys
import time
from contextlib import closing
from functools import partial
from pathlib import Path

from tqdm import tqdm

from datamodules.video import Frame, VideoReader
from datamodules.video_writer import WRITABLE, Encoding, VideoWriter
from experiments.command_line import EXIT_INPUT, EXIT_PARTIAL
from experiments.inference import GIB, peak_memory
from experiments.overlap import Background, Prefetched
from experiments.upscale_images import Job, remove_left_overs, tell_error
from experiments.upscaler import Upscaler

AHEAD, BACKLOG = 16, 16
"""Frames and packets decoded in advance, and waiting to be encoded."""

_ENCODER_FRAMES = 80
"""Frames that an encoder holds: x264's look-ahead, its references and its threads."""


def plan_video(source: Path, out: Path) -> Job:
    """The file a video becomes: OUT=, or its own name in that folder, as .mkv where its container holds no H.264."""
    if out.is_dir() or not out.suffix:
        kept = source.suffix.lower() in WRITABLE and source.suffix.lower() != ".webm"
        return Job(source, out / (source.stem + (source.suffix if kept else ".mkv")))
    if out.suffix.lower() not in WRITABLE:
        raise ValueError(f"OUT={out}: expected a folder or a file ending in {', '.join(WRITABLE)}")
    return Job(source, out)


def run_video(upscaler: Upscaler, job: Job, encoding: Encoding, skip_existing: bool) -> int:
    """Upscale a video, tell how it went, and return the exit code; of one that breaks off, the frames up to there."""
    remove_left_overs([job.target])
    if skip_existing and job.target.exists():
        print("0 upscaled, 1 skipped, 0 failed")
        return 0
    try:
        return _run(upscaler, job, encoding)
    except Exception as error:
        if os.environ.get("SR_TRACEBACK"):
            raise
        tell_error(job.source, error)
        return EXIT_INPUT


def _run(upscaler: Upscaler, job: Job, encoding: Encoding) -> int:
    if job.source.resolve() == job.target.resolve():
        raise ValueError(f"{job.source}: the output would replace the input; give another name with OUT=")
    start = time.perf_counter()
    with closing(VideoReader(job.source)) as reader:
        small = reader.info.size
        with VideoWriter(job.target, reader, upscaler.scale, encoding) as writer:
            for note in writer.notes:
                print(f"warning: {job.source}: {note}", file=sys.stderr)
            needed = upscaler.expected(writer.size) + _held(writer.size, reader.info.bits)
            expected = upscaler.check_memory(job.source, writer.size, needed)
            print(f"{job.source}: expecting {expected / GIB:.2f} GiB at the peak")
            _convert(upscaler, reader, writer)
    rate = writer.frames / (time.perf_counter() - start)
    sizes = f"{small[1]} x {small[0]} -> {writer.size[1]} x {writer.size[0]}"
    memory = f"{peak_memory(upscaler.device) / GIB:.2f} GiB peak (expected {expected / GIB:.2f})"
    print(f"{job.target}  {sizes}  {writer.frames} frames, {rate:.2f} frames/s  {memory}")
    if reader.damage:
        tell_error(job.source, ValueError(f"{reader.damage}; {job.target} has the {writer.frames} frames before"))
        return EXIT_PARTIAL
    return 0


def _convert(upscaler: Upscaler, reader: VideoReader, writer: VideoWriter) -> None:
    """All frames through the network, and all else past it."""
    with (
        tqdm(total=reader.info.frames or None, unit=" frames") as bar,
        Background(1, BACKLOG) as encoder,
        Prefetched(reader, AHEAD) as events,
    ):
        for event in events:
            if not isinstance(event, Frame):
                encoder.submit(partial(writer.copy, event))
                continue
            sr = upscaler.sr(reader.rgb(event, upscaler.device), reader.info.bits)
            encoder.submit(partial(writer.write, writer.planes(sr), event))
            bar.update()


def _held(size: tuple[int, int], bits: int) -> int:
    """Bytes of the frames that wait or are inside the encoder, at 4:2:0."""
    waiting = BACKLOG * (1 if bits == 8 else 4)  # int32 until they are encoded
    return (waiting + _ENCODER_FRAMES * (1 if bits == 8 else 2)) * size[0] * size[1] * 3 // 2
