import json
import shutil
import subprocess
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datamodules.video import Frame, VideoReader
from datamodules.video_writer import Encoding, VideoWriter
from datamodules.yuv import Colour

av = pytest.importorskip("av", reason='PyAV is not installed: pip install -e ".[video]"')
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="ffmpeg and ffprobe are not installed"
)
CPU = torch.device("cpu")
LOSSLESS = Encoding(crf=0)
PICTURE = "testsrc2=size=96x64:rate=25:duration=1"
TONE = "sine=frequency=440:duration=1"


def ffmpeg(*arguments: str | Path) -> str:
    command = ["ffmpeg", "-v", "error", "-y", "-nostdin", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def probe(path: Path, kind: str = "v:0") -> dict[str, Any]:
    """What ffprobe says of one stream, its frames counted."""
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", kind, "-show_streams", "-of", "json"]
    streams = json.loads(subprocess.run([*command, path], check=True, capture_output=True).stdout)["streams"]
    return streams[0] if streams else {}


def times(path: Path) -> list[str]:
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", "frame=pts_time", "-of", "csv=p=0"]
    lines = subprocess.run([*command, path], check=True, capture_output=True, text=True).stdout.split()
    return [line.strip(",") for line in lines]


def packets(path: Path, kind: str) -> str:
    """Hash of all packets of the streams of a kind: of their bytes, not of what they decode to."""
    return ffmpeg("-i", path, "-map", f"0:{kind}", "-c", "copy", "-f", "md5", "-")


def rgb_of(path: Path, matrix: str, full: bool) -> np.ndarray:
    """All frames as (N,H,W,3) by FFmpeg's own conversion from a given matrix and range."""
    size = probe(path)
    source = f"in_color_matrix={matrix}:in_range={'pc' if full else 'tv'}:out_range=pc"
    scale = ["-vf", f"scale={source}:flags=accurate_rnd+full_chroma_int", "-pix_fmt", "rgb24"]
    command = ["ffmpeg", "-v", "error", "-i", f"file:{path}", *scale, "-f", "rawvideo", "-"]
    raw = subprocess.run(command, check=True, capture_output=True).stdout
    return np.frombuffer(raw, np.uint8).reshape(-1, size["height"], size["width"], 3).astype(float)


def rewrite(
    source: Path, target: Path, scale: int = 1, encoding: Encoding = LOSSLESS
) -> tuple[VideoReader, VideoWriter]:
    """Through reader and writer, each pixel repeated `scale` times."""
    with closing(VideoReader(source)) as reader, VideoWriter(target, reader, scale, encoding) as writer:
        for event in reader:
            if isinstance(event, Frame):
                rgb = reader.rgb(event, CPU).repeat_interleave(scale, 1).repeat_interleave(scale, 2)
                writer.write(writer.planes(rgb), event)
            else:
                writer.copy(event)
    return reader, writer


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of 96 x 64 at 25 frames/s with AAC."""
    path = tmp_path_factory.mktemp("clip") / "it's 100%: clip.mp4"
    ffmpeg(
        "-f",
        "lavfi",
        "-i",
        PICTURE,
        "-f",
        "lavfi",
        "-i",
        TONE,
        "-c:v",
        "libx264",
        "-pix_fmt",
        "yuv420p",
        f"file:{path}",
    )
    return path


def test_a_clip_made_and_read_by_pyav_alone_keeps_times_and_colours(tmp_path: Path) -> None:
    path, colours = tmp_path / "a.mkv", [(200, 40, 40), (40, 200, 40), (40, 40, 200), (128, 128, 128)]
    with av.open(str(path), "w") as made:
        stream = made.add_stream("ffv1", rate=Fraction(24000, 1001), time_base=Fraction(1, 1000))
        stream.width, stream.height, stream.pix_fmt = 16, 12, "bgr0"
        for pts, colour in zip((0, 42, 125, 167), colours, strict=True):
            frame = av.VideoFrame.from_ndarray(np.full((12, 16, 3), colour, np.uint8), "rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, 1000)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))

    _, writer = rewrite(path, tmp_path / "b.mkv", 2)
    assert writer.frames == 4
    with closing(VideoReader(tmp_path / "b.mkv")) as reader:
        frames = [event for event in reader if isinstance(event, Frame)]
        assert reader.info.size == (24, 32)
        assert reader.info.colour == Colour(matrix=1, range=1)
        assert [frame.pts for frame in frames] == [0, 42, 125, 167]
        for frame, colour in zip(frames, colours, strict=True):
            difference = reader.rgb(frame, CPU) * 255 - torch.tensor(colour)[:, None, None]
            assert difference.abs().max() < 2.5
        assert reader.damage == ""


@needs_ffmpeg
def test_frames_rate_times_audio_and_metadata_are_kept(clip: Path, tmp_path: Path) -> None:
    tagged = tmp_path / "tagged.mp4"
    marks = ["-metadata", "title=A title", "-metadata:s:a", "language=deu"]
    ffmpeg("-i", f"file:{clip}", "-c", "copy", *marks, tagged)
    rewrite(tagged, tmp_path / "out.mp4", 2)
    before, after = probe(tagged), probe(tmp_path / "out.mp4")
    for key in ("nb_read_frames", "r_frame_rate", "avg_frame_rate", "time_base", "start_pts", "duration_ts"):
        assert after[key] == before[key], key
    assert (after["nb_read_frames"], after["r_frame_rate"]) == ("25", "25/1")
    assert (after["width"], after["height"]) == (192, 128)
    assert times(tmp_path / "out.mp4") == times(tagged)
    assert packets(tmp_path / "out.mp4", "a") == packets(tagged, "a")
    assert probe(tmp_path / "out.mp4", "a:0")["start_time"] == probe(tagged, "a:0")["start_time"]
    assert probe(tmp_path / "out.mp4", "a:0")["tags"]["language"] == "deu"
    with av.open(str(tmp_path / "out.mp4")) as written:
        assert written.metadata["title"] == "A title"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_varying_rate_keeps_every_time(suffix: str, tmp_path: Path) -> None:
    source, target = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    uneven = "select='not(mod(n,3))+not(mod(n,5))'"
    ffmpeg("-f", "lavfi", "-i", PICTURE, "-vf", uneven, "-vsync", "vfr", "-pix_fmt", "yuv420p", source)
    rewrite(source, target)
    assert len(set(np.diff(np.array(times(source), float)).round(3))) > 1
    assert times(target) == times(source)
    before, after = probe(source), probe(target)
    assert (after["nb_read_frames"], after.get("duration_ts")) == (before["nb_read_frames"], before.get("duration_ts"))


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 areas of 16 x 16 px, each of one colour that is not at the edge of the gamut."""
    colours = np.random.default_rng(0).integers(40, 216, (4, 6, 3), np.uint8)
    path = tmp_path_factory.mktemp("patches") / "patches.png"
    Image.fromarray(colours.repeat(16, 0).repeat(16, 1)).save(path)
    return path


@needs_ffmpeg
@pytest.mark.parametrize(("matrix", "tag"), [("bt709", "bt709"), ("bt601", "smpte170m")])
@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
def test_colours_and_their_tags_come_back(matrix: str, tag: str, full: bool, patches: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / "b.mp4"
    scale = f"scale=out_color_matrix={matrix}:out_range={'pc' if full else 'tv'}:flags=accurate_rnd+full_chroma_int"
    tags = ["-colorspace", tag, "-color_primaries", tag, "-color_trc", tag, "-color_range", "pc" if full else "tv"]
    still = ["-loop", "1", "-framerate", "25", "-i", str(patches), "-t", "0.2"]
    ffmpeg(*still, "-vf", scale, "-pix_fmt", "yuv420p", "-crf", "1", *tags, source)
    rewrite(source, target, 2, Encoding())  # with the loss that users have
    before, after = probe(source), probe(target)
    for key in ("color_range", "color_space", "color_transfer", "color_primaries"):
        assert after[key] == before[key] != "unknown", key
    small = rgb_of(source, matrix, full)[:, 8::16, 8::16]
    large = rgb_of(target, matrix, full)[:, 16::32, 16::32]
    with Image.open(patches) as image:
        assert np.abs(small - np.asarray(image, float)[8::16, 8::16]).max() <= 3  # the clip is what it is meant to be
    assert small.shape == large.shape == (5, 4, 6, 3)
    assert np.abs(small - large).max() <= 2

    with closing(VideoReader(source)) as reader:  # and the network sees the RGB that FFmpeg sees
        first = next(event for event in reader if isinstance(event, Frame))
        ours = reader.rgb(first, CPU)[:, 8::16, 8::16].permute(1, 2, 0).numpy() * 255
    assert np.abs(ours - small[0]).max() <= 1.5


@needs_ffmpeg
def test_ten_bits_stay_ten_bits(tmp_path: Path) -> None:
    deep = ["-pix_fmt", "yuv420p10le", "-c:v", "ffv1"]
    ffmpeg("-f", "lavfi", "-i", "gradients=size=96x64:rate=5:duration=1:n=2:seed=1", *deep, tmp_path / "a.mkv")
    _, writer = rewrite(tmp_path / "a.mkv", tmp_path / "b.mp4")
    assert probe(tmp_path / "b.mp4")["pix_fmt"] == "yuv420p10le"
    assert writer.notes == []
    rewrite(tmp_path / "a.mkv", tmp_path / "b.mkv", encoding=Encoding(codec="ffv1"))
    with closing(VideoReader(tmp_path / "a.mkv")) as a, closing(VideoReader(tmp_path / "b.mkv")) as b:
        assert b.info.bits == 10
        for before, after in zip(a, b, strict=True):
            assert (before.planes[0] - after.planes[0]).abs().max() <= 1
    _, writer = rewrite(tmp_path / "a.mkv", tmp_path / "c.mkv", encoding=Encoding(codec="mpeg4"))
    assert writer.notes == ["the output gets 8 of the input's 10 bits"]
    rewrite(tmp_path / "c.mkv", tmp_path / "d.mov", encoding=Encoding(codec="prores_ks"))  # it has no 8 bits
    assert probe(tmp_path / "d.mov")["pix_fmt"] == "yuv422p10le"


@needs_ffmpeg
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_rotation_and_pixel_aspect_are_kept(suffix: str, clip: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "a.mp4", tmp_path / f"b{suffix}"
    wide = ["-bsf:v", "h264_metadata=sample_aspect_ratio=4/3", "-aspect", "2"]
    ffmpeg("-i", f"file:{clip}", "-c", "copy", *wide, "-metadata:s:v", "rotate=90", source)
    rewrite(source, target, 2)
    assert probe(target)["sample_aspect_ratio"] == probe(source)["sample_aspect_ratio"] == "4:3"
    with av.open(str(source)) as a, av.open(str(target)) as b:
        rotations = [next(file.decode(video=0)).rotation for file in (a, b)]
    assert rotations[0] == rotations[1] != 0


@needs_ffmpeg
def test_subtitles_and_chapters_are_kept_or_told(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "a.srt").write_text("1\n00:00:00,100 --> 00:00:00,600\nHello\n")
    (tmp_path / "chapters.txt").write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=0\nEND=400\ntitle=One\n")
    inputs = ["-i", f"file:{clip}", "-i", f"{tmp_path}/a.srt", "-i", f"{tmp_path}/chapters.txt"]
    ffmpeg(*inputs, "-map", "0", "-map", "1", "-map_metadata", "2", "-c", "copy", tmp_path / "a.mkv")
    _, writer = rewrite(tmp_path / "a.mkv", tmp_path / "b.mkv")
    assert writer.notes == []
    assert packets(tmp_path / "b.mkv", "s") == packets(tmp_path / "a.mkv", "s")
    with av.open(str(tmp_path / "b.mkv")) as written:
        assert [chapter["metadata"]["title"] for chapter in written.chapters()] == ["One"]
    _, writer = rewrite(tmp_path / "a.mkv", tmp_path / "b.mp4")
    (note,) = writer.notes
    assert ".mp4 files hold no srt subtitle" in note
    assert packets(tmp_path / "b.mp4", "a") == packets(tmp_path / "a.mkv", "a")


@needs_ffmpeg
def test_odd_sizes_are_padded_for_420_and_told(patches: Path, tmp_path: Path) -> None:
    still = ["-loop", "1", "-framerate", "5", "-i", str(patches), "-t", "1", "-vf", "crop=35:21:exact=1"]
    ffmpeg(*still, "-pix_fmt", "yuv444p", "-c:v", "ffv1", tmp_path / "a.mkv")
    _, writer = rewrite(tmp_path / "a.mkv", tmp_path / "b.mp4", 3)
    written = probe(tmp_path / "b.mp4")
    assert (written["width"], written["height"], written["nb_read_frames"]) == (106, 64, "5")
    (note,) = writer.notes
    assert "105 x 63 px are odd for yuv420p: written as 106 x 64" in note
    _, writer = rewrite(tmp_path / "a.mkv", tmp_path / "c.mp4", 2)
    assert (probe(tmp_path / "c.mp4")["width"], writer.notes) == (70, [])


@needs_ffmpeg
def test_webm_gets_vp9_and_copies_opus(clip: Path, tmp_path: Path) -> None:
    ffmpeg(
        "-i",
        f"file:{clip}",
        "-c:v",
        "libvpx-vp9",
        "-deadline",
        "realtime",
        "-cpu-used",
        "8",
        "-c:a",
        "libopus",
        tmp_path / "a.webm",
    )
    rewrite(tmp_path / "a.webm", tmp_path / "b.webm", encoding=Encoding())
    assert probe(tmp_path / "b.webm")["codec_name"] == "vp9"
    assert times(tmp_path / "b.webm") == times(tmp_path / "a.webm")
    assert packets(tmp_path / "b.webm", "a") == packets(tmp_path / "a.webm", "a")


@needs_ffmpeg
def test_what_cannot_be_written_is_refused_and_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    refused = {
        "out.avi": (Encoding(), "expected a name ending in .mp4"),
        "out.webm": (Encoding(), r"\.webm files hold no aac audio; give OUT= a name in .mkv"),
        "a.mp4": (Encoding(codec="no_such"), "--codec no_such cannot be used"),
        "b.mp4": (Encoding(codec="aac"), "--codec aac cannot be used for b.mp4: it is for audio"),
        "c.mp4": (Encoding(codec="mpeg4", crf=20), "--codec mpeg4 has no crf"),
    }
    for name, (encoding, said) in refused.items():
        with pytest.raises(ValueError, match=said):
            rewrite(clip, tmp_path / name, encoding=encoding)
    with pytest.raises(OSError, match=r"cannot write .*e.mp4: "):
        rewrite(clip, tmp_path / "e.mp4", encoding=Encoding(preset="none_such"))
    reader = VideoReader(clip)
    with pytest.raises(RuntimeError), closing(reader), VideoWriter(tmp_path / "d.mp4", reader, 1, Encoding()):
        raise RuntimeError("in between")
    assert list(tmp_path.iterdir()) == []


@needs_ffmpeg
def test_a_file_that_breaks_off_says_so_after_its_last_whole_frame(clip: Path, tmp_path: Path) -> None:
    ffmpeg("-stream_loop", "3", "-i", f"file:{clip}", "-c", "copy", "-movflags", "+faststart", tmp_path / "a.mp4")
    ffmpeg("-i", tmp_path / "a.mp4", "-c", "copy", tmp_path / "a.mkv")
    for name in ("a.mp4", "a.mkv"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / f"cut_{name}").write_bytes(whole[: len(whole) // 2])
        reader, writer = rewrite(tmp_path / f"cut_{name}", tmp_path / f"out_{name}")
        assert reader.damage, name
        assert 10 < writer.frames < 90
        assert probe(tmp_path / f"out_{name}")["nb_read_frames"] == str(writer.frames)
        reader, writer = rewrite(tmp_path / name, tmp_path / f"whole_{name}")
        assert (reader.damage, writer.frames) == ("", 100)


@needs_ffmpeg
def test_what_is_no_video_is_refused_in_one_sentence(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("this is no video\n")
    (tmp_path / "no_index.mp4").write_bytes(clip.read_bytes()[:3000])
    (tmp_path / "empty.mkv").touch()
    ffmpeg("-i", f"file:{clip}", "-vn", "-c", "copy", tmp_path / "audio.mp4")
    for name, said in {
        "text.mp4": "is no readable video",
        "no_index.mp4": "is no readable video",
        "empty.mkv": "is no readable video",
        "audio.mp4": "holds audio, expected a video stream",
    }.items():
        with pytest.raises(ValueError, match=said):
            VideoReader(tmp_path / name)
    with pytest.raises(FileNotFoundError, match=r"gone.mp4: no such file"):
        VideoReader(tmp_path / "gone.mp4")
