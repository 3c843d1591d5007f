import hashlib
import json
import sys
from pathlib import Path

import pytest
import torch

from datamodules.image_io import write_image
from experiments.evaluate import evaluate, main, save


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
