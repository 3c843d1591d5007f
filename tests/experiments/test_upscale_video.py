import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodules.video import Frame, VideoReader
from datamodules.video_writer import Encoding
from experiments.upscale import is_video, main
from experiments.upscale_video import plan_video, run_video
from experiments.upscaler import Upscaler, build_upscaler

av = pytest.importorskip("av", reason='PyAV is not installed: pip install -e ".[video]"')
needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None, reason="ffmpeg and ffprobe are not installed"
)


@pytest.fixture(scope="module")
def checkpoint(tiny_cnn_run: Path) -> str:
    return str(tiny_cnn_run / "checkpoints" / "last.ckpt")


@pytest.fixture(scope="module")
def upscaler(checkpoint: str) -> Upscaler:
    return build_upscaler(checkpoint, ["trainer.accelerator=cpu"], "", "", 10**8)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds of 96 x 64 at 25 frames/s with AAC."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    picture = ["-f", "lavfi", "-i", "testsrc2=size=96x64:rate=25:duration=3"]
    tone = ["-f", "lavfi", "-i", "sine=frequency=440:duration=3"]
    command = ["ffmpeg", "-v", "error", *picture, *tone, "-c:v", "libx264", "-pix_fmt", "yuv420p", str(path)]
    subprocess.run(command, check=True, capture_output=True)
    return path


@pytest.fixture(scope="module")
def small_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve frames of noise, made without ffmpeg."""
    path = tmp_path_factory.mktemp("small") / "noise.mkv"
    with av.open(str(path), "w") as made:
        stream = made.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = 24, 16, "yuv444p"
        for number in range(12):
            noise = np.random.default_rng(number).integers(90, 160, (16, 24, 3), np.uint8)
            made.mux(stream.encode(av.VideoFrame.from_ndarray(noise, "rgb24")))
        made.mux(stream.encode(None))
    return path


def probe(path: Path, kind: str) -> dict[str, Any]:
    command = ["ffprobe", "-v", "error", "-count_frames", "-select_streams", kind, "-show_streams", "-of", "json"]
    (stream,) = json.loads(subprocess.run([*command, path], check=True, capture_output=True).stdout)["streams"]
    return stream


def audio(path: Path) -> bytes:
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-map", "0:a", "-c", "copy", "-f", "md5", "-"]
    return subprocess.run(command, check=True, capture_output=True).stdout


@needs_ffmpeg
def test_the_command_keeps_frames_rate_and_audio(
    checkpoint: str, clip: Path, tmp_path: Path, command_environment: dict[str, str]
) -> None:
    command = [sys.executable, "-m", "experiments.upscale", checkpoint, str(clip), str(tmp_path / "large.mp4")]
    ended = subprocess.run(command, env=command_environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    before, after = probe(clip, "v"), probe(tmp_path / "large.mp4", "v")
    for key in ("nb_read_frames", "r_frame_rate", "avg_frame_rate", "duration", "color_range"):
        assert after.get(key) == before.get(key), key
    assert (after["nb_read_frames"], after["avg_frame_rate"]) == ("75", "25/1")
    assert (after["width"], after["height"]) == (192, 128)
    assert audio(tmp_path / "large.mp4") == audio(clip)
    assert probe(tmp_path / "large.mp4", "a")["nb_read_frames"] == probe(clip, "a")["nb_read_frames"]
    assert "75/75" in ended.stderr
    assert "large.mp4  96 x 64 -> 192 x 128  75 frames, " in ended.stdout
    assert re.search(r"75 frames, [\d.]+ frames/s  [\d.]+ GiB peak \(expected [\d.]+\)$", ended.stdout.strip())
    assert [path.name for path in tmp_path.iterdir()] == ["large.mp4"]


def test_each_frame_is_the_networks_image(upscaler: Upscaler, small_clip: Path, tmp_path: Path) -> None:
    assert run_video(upscaler, plan_video(small_clip, tmp_path / "b.mkv"), Encoding("ffv1"), False) == 0
    before, after = VideoReader(small_clip), VideoReader(tmp_path / "b.mkv")
    pairs = zip(frames(before), frames(after), strict=True)
    for number, (lr, sr) in enumerate(pairs):
        rgb = upscaler.sr(before.rgb(lr, torch.device("cpu"))).clamp(0, 1)
        assert sr.pts == lr.pts
        # luma alone: chroma has half the resolution in the output
        weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
        difference = (rgb - after.rgb(sr, torch.device("cpu"))) * weights
        assert difference.sum(0).abs().mean() < 1.5 / 255, number


def frames(reader: VideoReader) -> list[Frame]:
    return [event for event in reader if isinstance(event, Frame)]


def test_names_of_outputs(tmp_path: Path) -> None:
    planned = {
        source: plan_video(Path(source), tmp_path).target.name for source in ("a.mp4", "b.MOV", "c.avi", "d.webm")
    }
    assert planned == {"a.mp4": "a.mp4", "b.MOV": "b.MOV", "c.avi": "c.mkv", "d.webm": "d.mkv"}
    assert plan_video(Path("a.avi"), Path("new/large.webm")).target == Path("new/large.webm")
    with pytest.raises(ValueError, match=r"OUT=large.png: expected a folder or a file ending in .mp4"):
        plan_video(Path("a.mp4"), Path("large.png"))
    assert not is_video(tmp_path)
    assert not is_video(tmp_path / "missing.mp4")


def test_a_finished_video_can_be_skipped_and_left_overs_go(
    upscaler: Upscaler, small_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    (tmp_path / f".noise.mkv.{gone.pid}.part.mkv").write_bytes(b"half a vid")
    job = plan_video(small_clip, tmp_path)
    assert run_video(upscaler, job, Encoding(), True) == 0
    assert os.listdir(tmp_path) == ["noise.mkv"]
    before = job.target.read_bytes()
    capsys.readouterr()
    assert run_video(upscaler, job, Encoding(), True) == 0
    assert capsys.readouterr().out == "0 upscaled, 1 skipped, 0 failed\n"
    assert job.target.read_bytes() == before


def test_what_cannot_be_done_ends_in_one_sentence_and_leaves_nothing(
    upscaler: Upscaler, small_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "text.mp4").write_text("no video\n")
    tight = Upscaler(upscaler.system, upscaler.options, 2, upscaler.base + 1000, upscaler.base, 10**8)
    cases = [
        (upscaler, tmp_path / "text.mp4", tmp_path / "out.mp4", Encoding(), "is no readable video"),
        (upscaler, small_clip, small_clip, Encoding(), "the output would replace the input"),
        (upscaler, small_clip, tmp_path / "out.mp4", Encoding("nothing"), "--codec nothing cannot be used"),
        (tight, small_clip, tmp_path / "out.mp4", Encoding(), "raise --memory-limit"),
    ]
    for machine, source, target, encoding, said in cases:
        capsys.readouterr()
        assert run_video(machine, plan_video(source, target), encoding, False) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert said in line
    assert os.listdir(tmp_path) == ["text.mp4"]


@needs_ffmpeg
def test_of_a_video_that_breaks_off_the_frames_before_are_written(
    upscaler: Upscaler, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(
        ["ffmpeg", "-v", "error", "-i", clip, "-c", "copy", tmp_path / "a.mkv"], check=True, capture_output=True
    )
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "a.mkv").write_bytes(whole[: len(whole) // 2])
    assert run_video(upscaler, plan_video(tmp_path / "a.mkv", tmp_path / "b.mkv"), Encoding(), False) == 1
    count = int(probe(tmp_path / "b.mkv", "v")["nb_read_frames"])
    assert 10 < count < 70
    said = capsys.readouterr().err
    assert "the file ends at" in said
    assert f"b.mkv has the {count} frames before" in said


def test_without_pyav_one_sentence_names_the_extra(
    checkpoint: str,
    small_clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)  # what an import of a missing package comes to
    monkeypatch.setattr(sys, "argv", ["upscale", checkpoint, str(small_clip), str(tmp_path / "a.mp4")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert 'pip install -e ".[video]"' in capsys.readouterr().err
