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
