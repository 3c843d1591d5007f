import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from datamodules.image_io import write_image
from experiments.evaluate import evaluate, main
from experiments.protocol import save


def checkpoint(run: Path) -> str:
    return str(run / "checkpoints" / "last.ckpt")


def test_bundled_table_and_files(tiny_student_run: Path, tmp_path: Path) -> None:
    text, values = evaluate(checkpoint(tiny_student_run), "bundled", [], crop=96)
    save(tmp_path, text, values)
    assert (tmp_path / "results.md").read_text() == text
    stored = json.loads((tmp_path / "results.json").read_text())
    methods = ["bicubic", "codec(lr)", "codec(hr)", "student", "student, ids shuffled", "hr"]
    assert [(r["group"], r["method"]) for r in stored["rows"]] == [(g, m) for g in ("photo", "flat") for m in methods]
    assert stored["rows"][5]["values"]["psnr_y"] == "inf"
    assert stored["rows"][5]["values"]["periodicity"] is None
    assert stored["checkpoint_sha256"] == hashlib.sha256(Path(checkpoint(tiny_student_run)).read_bytes()).hexdigest()
    assert stored["versions"]["torch"]
    assert stored["precision"] in text
    assert stored["protocol"] in text
    for said in ("8 bits", "BT.601 Y", "border of 4 px", "means of the images' own figures", "MATLAB's imresize"):
        assert said in stored["protocol"]
    assert set(stored["id_shuffle_cost"]) == {"photo", "flat"}
    assert len(stored["images"]) == len(methods) * sum(r["images"] for r in stored["rows"][:: len(methods)])
    assert "untrained-feature distance" in text
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_a_folder_is_measured_alike_twice_and_told_from_another(tiny_student_run: Path, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    for number in range(2):
        write_image(tmp_path / "one" / f"{number}.png", torch.rand(3, 66, 70, generator=generator))
    write_image(tmp_path / "other" / "0.png", torch.rand(3, 66, 70, generator=generator))
    first = evaluate(checkpoint(tiny_student_run), str(tmp_path / "one"), [], None)[1]
    again = evaluate(checkpoint(tiny_student_run), str(tmp_path / "one"), [], None)[1]
    other = evaluate(checkpoint(tiny_student_run), str(tmp_path / "other"), [], None)[1]
    assert first["images"] == again["images"]
    assert first["data_fingerprint"] == again["data_fingerprint"] != other["data_fingerprint"]


def test_pairs_are_used_as_they_are(tiny_student_run: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "HR" / "a.png", torch.full((3, 64, 64), 0.5))
    write_image(tmp_path / "LR" / "a.png", torch.full((3, 16, 16), 0.5))
    text, values = evaluate(checkpoint(tiny_student_run), str(tmp_path), [], None)
    assert "lr as given" in text
    bicubic = values["rows"][0]
    assert (bicubic["method"], bicubic["values"]["psnr_y"]) == ("bicubic", float("inf"))


def test_a_codec_has_only_its_own_round_trip(tiny_codec_run: Path) -> None:
    text, values = evaluate(checkpoint(tiny_codec_run), "bundled", [], crop=64)
    assert [row["method"] for row in values["rows"]] == ["codec(hr)", "hr"] * 2
    assert values["id_shuffle_cost"] == {}
    assert "Id-shuffle" not in text


def test_the_released_network_reaches_its_published_figures(shared: Path) -> None:
    """README of the data: 36.142 dB, .9518 with a border of 2; per image, BasicSR's figures lie beside its outputs."""
    released = str(shared / "weights" / "rt4ksr" / "rt4ksr_x2.pth")
    text, values = evaluate(released, str(shared / "set5"), ["trainer.threads=1"])
    rows = {row["method"]: row["values"] for row in values["rows"]}
    assert list(rows) == ["bicubic", "rt4ksr", "hr"]
    assert list(rows["rt4ksr"]) == ["psnr_rgb", "ssim_rgb", "psnr_y", "ssim_y", "perceptual", "color_error"]
    assert rows["rt4ksr"]["psnr_y"] == pytest.approx(36.142, abs=0.005)
    assert rows["rt4ksr"]["ssim_y"] == pytest.approx(0.9518, abs=0.0002)
    assert rows["bicubic"]["psnr_y"] == pytest.approx(33.66, abs=0.03), "on RGB, where the papers have Y alone"
    records = json.loads((shared / "rt4ksr_ref" / "metrics_Set5_x2.json").read_text())
    reference = {Path(record["image"]).stem: record["rep"] for record in records if "image" in record}
    for score in values["images"]:
        if score["method"] == "rt4ksr":
            expected = reference[score["image"]]
            for name, close in (("psnr_rgb", 2e-3), ("ssim_rgb", 2e-5), ("psnr_y", 2e-3), ("ssim_y", 2e-5)):
                assert score["values"][name] == pytest.approx(expected[f"{name}_c2"], abs=close), score["image"]
    assert "border of 2 px" in text
    assert "lr as given" in text
    assert "fp32" in text
    assert "36.142" in text


def test_the_border_can_be_given(tiny_cnn_run: Path, tmp_path: Path) -> None:
    hr = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "HR" / "a.png", hr)
    write_image(tmp_path / "LR" / "a.png", hr[:, ::2, ::2])
    found = {}
    for border in (None, 2, 9):
        text, values = evaluate(checkpoint(tiny_cnn_run), str(tmp_path), [], crop_border=border)
        found[border] = [row["values"]["psnr_rgb"] for row in values["rows"]]
        assert f"border of {border or 2} px" in text
    assert found[None] == found[2], "the scale, unless given"
    assert found[9] != found[2]


def test_results_of_one_test_set_leave_those_of_another_alone(
    tiny_cnn_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for place, seed in (("one/set", 0), ("two/set", 1)):
        hr = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed))
        write_image(tmp_path / place / "a.png", hr)
    shutil.copy(checkpoint(tiny_cnn_run), "copy.ckpt")

    def run(ckpt: str, data: str) -> Path:
        monkeypatch.setattr(sys, "argv", ["evaluate", ckpt, data])
        main()
        printed = capsys.readouterr().out.splitlines()
        assert [Path(line).name for line in printed[-2:]] == ["results.md", "results.json"]
        assert all(Path(line).is_file() for line in printed[-2:])
        return Path(printed[-1]).parent

    first = run("copy.ckpt", "one/set")
    assert first == Path("runs/evaluate/copy/set")
    second = run("copy.ckpt", "two/set")
    assert second.parent == first.parent
    assert second.name.startswith("set-")
    assert run("copy.ckpt", "one/set") == first, "the same images again"
    names = {json.loads((folder / "results.json").read_text())["data"] for folder in (first, second)}
    assert names == {"one/set", "two/set"}
    of_run = run(checkpoint(tiny_cnn_run), "one/set")
    assert of_run.resolve() == (tiny_cnn_run / "evaluate" / "set").resolve()


@pytest.fixture
def one_image(tmp_path: Path) -> str:
    write_image(tmp_path / "data" / "a.png", torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0)))
    return str(tmp_path / "data")


def test_a_flow_is_measured_as_a_denoiser(tiny_flow_run: Path, one_image: str) -> None:
    text, values = evaluate(checkpoint(tiny_flow_run), one_image, [], None)
    methods = [row["method"] for row in values["rows"]]
    assert methods == ["codec(hr)", "denoised", "denoised, ids shuffled", "hr"]
    psnr = {row["method"]: row["values"]["psnr_y"] for row in values["rows"]}
    assert psnr["denoised"] < psnr["codec(hr)"] < psnr["hr"]
    (cost,) = values["id_shuffle_cost"].values()
    assert cost["psnr_y"] == psnr["denoised"] - psnr["denoised, ids shuffled"]
    assert "Id-shuffle cost" in text


def test_a_decoder_is_measured_by_its_round_trip(tiny_decoder_run: Path, one_image: str) -> None:
    _, values = evaluate(checkpoint(tiny_decoder_run), one_image, [], None)
    assert [row["method"] for row in values["rows"]] == ["codec(hr)", "hr"]
    assert values["rows"][0]["values"]["psnr_y"] < 60, "random weights reconstruct nothing"


def test_a_students_references_know_no_adapters(tiny_lora_run: Path, tiny_codec_run: Path, one_image: str) -> None:
    student = evaluate(checkpoint(tiny_lora_run), one_image, [], None)[1]["rows"]
    codec = evaluate(checkpoint(tiny_codec_run), one_image, [], None)[1]["rows"]
    rows = {row["method"]: row["values"] for row in student}
    assert list(rows) == ["bicubic", "codec(lr)", "codec(hr)", "student", "student, ids shuffled", "hr"]
    # the codec's own table has another border, so only what is measured on whole images compares
    assert rows["codec(hr)"]["perceptual"] == pytest.approx(codec[0]["values"]["perceptual"], rel=1e-5)
    assert rows["student"]["perceptual"] != pytest.approx(rows["codec(lr)"]["perceptual"], rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing.ckpt", "bundled"], "CKPT=missing.ckpt: no such file"),
        (["{ckpt}", "nowhere"], "DATA=nowhere is no folder"),
        (["{ckpt}", "bundled", "data.degradation=none"], "data.degradation"),
        (["{ckpt}", "bundled", "--crop-border", "-1"], "--crop-border -1"),
        (["{ckpt}", "bundled", "--crop", "0"], "--crop 0"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    arguments: list[str],
    said: str,
    tiny_student_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [argument.format(ckpt=checkpoint(tiny_student_run)) for argument in arguments]
    monkeypatch.delenv("SR_TRACEBACK", raising=False)
    monkeypatch.setattr(sys, "argv", ["evaluate", *filled, "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
