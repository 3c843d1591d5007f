"""Upscale photographs, frames or a video: `python -m experiments.upscale last.ckpt photo.jpg out/` (make upscale).

Each image goes through the network in one piece, whatever its size and shape: no patches, so no seams.
"""

import argparse
from collections import Counter
from pathlib import Path

from datamodules.image_io import MAX_PIXELS, WRITABLE, list_images
from datamodules.video import SUFFIXES as VIDEO_SUFFIXES
from datamodules.video_writer import Encoding
from experiments.command_line import quiet, user_errors
from experiments.upscale_images import Job, run_jobs
from experiments.upscale_video import plan_video, run_video
from experiments.upscaler import Acceleration, build_upscaler


def plan_jobs(source: Path, out: Path, suffix: str) -> list[Job]:
    """What becomes of a file, or of every image below a folder, whose tree is kept; errors name IN= or OUT=."""
    if source.is_dir():
        if out.exists() and not out.is_dir():
            raise ValueError(f"OUT={out} is a file, but IN={source} is a folder; give a folder")
        names = [path.relative_to(source) for path in list_images(source)]
        if not names:
            raise ValueError(f"IN={source} holds no images; expected files ending in .png, .jpg, .webp or .bmp")
        # photo.jpg beside photo.png: the old suffix stays in the name, so that none replaces the other
        count = Counter(name.with_suffix("") for name in names)
        stems = [name.with_suffix("") if count[name.with_suffix("")] == 1 else name for name in names]
        return [Job(source / n, out / stem.with_name(stem.name + suffix)) for n, stem in zip(names, stems, strict=True)]
    if not source.is_file():
        raise FileNotFoundError(f"IN={source}: no such file or folder")
    if out.is_dir() or not out.suffix:
        return [Job(source, out / (source.stem + suffix))]
    if out.suffix.lower() not in WRITABLE:
        raise ValueError(f"OUT={out}: expected a folder or a file ending in {', '.join(WRITABLE)}")
    return [Job(source, out)]


def is_video(path: Path) -> bool:
    """Whether a path is a file that is named like a video."""
    return path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES


def main() -> None:
    given = _arguments()
    quiet()
    with user_errors():
        video = plan_video(given.input, given.output) if is_video(given.input) else None
        jobs = [] if video else plan_jobs(given.input, given.output, f".{given.format}")
        acceleration = Acceleration(given.half, given.compile, given.cuda_graph)
        limits = (given.memory_limit, given.max_pixels)
        upscaler = build_upscaler(given.checkpoint, given.overrides, given.scale, *limits, acceleration)
    if video:
        encoding = Encoding(given.codec, given.crf, given.preset)
        raise SystemExit(run_video(upscaler, video, encoding, given.skip_existing))
    raise SystemExit(run_jobs(upscaler, jobs, given.skip_existing))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Upscale an image, a folder of images or frames, or a video.")
    parser.add_argument("checkpoint", help="checkpoint of one_step_flux or real_time_cnn, or a released .pth (CKPT=)")
    parser.add_argument("input", type=Path, help="image, video or folder of images (IN=)")
    parser.add_argument("output", type=Path, help="folder, or for a single image or video a file (OUT=)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument("--scale", default="", help="factor; the trained one unless given (SCALE=)")
    parser.add_argument("--format", default="png", choices=["png", "jpg", "webp"], help="of the files in a folder")
    parser.add_argument("--memory-limit", default="", help="GiB; a file that needs more is refused; else: what is free")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="an input of more pixels is refused")
    parser.add_argument("--skip-existing", action="store_true", help="leave files alone whose output is there")
    cnn = parser.add_argument_group("real_time_cnn")
    cnn.add_argument("--half", action="store_true", help="half precision, on a GPU")
    cnn.add_argument("--compile", action="store_true", help="compile the network; pays for many frames of one size")
    cnn.add_argument("--cuda-graph", action="store_true", help="replay the network as a CUDA graph, on a GPU")
    video = parser.add_argument_group("video")
    video.add_argument("--codec", default="", help="FFmpeg's name of an encoder; else libx264, in .webm libvpx-vp9")
    video.add_argument("--crf", type=float, help="the encoder's constant rate factor, lower is better (default 16)")
    video.add_argument("--preset", default="", help="the encoder's speed, such as veryfast; its own unless given")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    main()
