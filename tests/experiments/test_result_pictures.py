"""Pictures of an evaluation, from what a method computed to the files beside the results."""

import json
import sys

import numpy as np
import torch
from PIL import Image

from datamodules.benchmarks import BenchmarkImage
from datamodules.image_io import write_image
from experiments.evaluate import main
from experiments.measure import DENOISED_SHUFFLED, SHUFFLED, measure
from experiments.result_pictures import SIDE, ResultPictures, plain_name, read_pictures

FP32 = torch.autocast("cpu", enabled=False)


def benchmark_image(name, height, width, group="photo"):
    hr = torch.rand(3, height, width, generator=torch.Generator().manual_seed(len(name)))
    return BenchmarkImage(name, group, hr[:, ::4, ::4], hr)


def saved(folder, methods, images):
    pictures = ResultPictures()
    measure(methods, images, [], FP32, seen=pictures)
    pictures.save(folder)
    return json.loads((folder / "pictures" / "pictures.json").read_text())


def pixels_of(path):
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def test_a_picture_holds_the_bytes_that_the_method_computed(tmp_path):
    image = benchmark_image("a", 40, 56)
    listed = saved(tmp_path, {"brighter": lambda lr, hr: hr * 1.3 - 0.1, "hr": lambda lr, hr: hr}, [image])
    assert listed == [
        {"group": "photo", "image": "a", "method": name, "file": f"photo-a-{name}.png"} for name in ("brighter", "hr")
    ]
    hr = image.hr.numpy().transpose(1, 2, 0)
    for name, values in (("brighter", hr * np.float32(1.3) - np.float32(0.1)), ("hr", hr)):
        expected = np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)
        np.testing.assert_array_equal(pixels_of(tmp_path / "pictures" / f"photo-a-{name}.png"), expected)


def test_a_large_image_is_cut_to_its_middle(tmp_path):
    image = benchmark_image("a", SIDE + 10, SIDE - 8)
    saved(tmp_path, {"hr": lambda lr, hr: hr}, [image])
    expected = np.rint(image.hr[:, 5 : SIDE + 5].numpy().transpose(1, 2, 0) * 255)
    np.testing.assert_array_equal(pixels_of(tmp_path / "pictures" / "photo-a-hr.png"), expected)


def test_rows_with_shuffled_ids_are_left_out_and_names_never_collide(tmp_path):
    methods = {name: lambda lr, hr: hr for name in ("codec(hr)", SHUFFLED, DENOISED_SHUFFLED)}
    names = ["set/a b", "set_a_b", "../up", "é" * 400, "é" * 401]
    listed = saved(tmp_path, methods, [benchmark_image(name, 8, 8, "flat") for name in names])
    assert [(entry["image"], entry["method"]) for entry in listed] == [(name, "codec(hr)") for name in names]
    files = {entry["file"] for entry in listed}
    assert len(files) == len(names)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == files | {"pictures.json"}
    assert all(plain_name(file) == file for file in files)
    assert list(read_pictures(tmp_path)) == [("flat", name, "codec(hr)") for name in names]


def test_new_pictures_replace_those_of_an_earlier_evaluation(tmp_path):
    saved(tmp_path, {"old": lambda lr, hr: hr, "hr": lambda lr, hr: hr}, [benchmark_image("a", 8, 8)])
    saved(tmp_path, {"hr": lambda lr, hr: 1 - hr}, [benchmark_image("a", 8, 8)])
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"photo-a-hr.png", "pictures.json"}
    inverted = 255 - np.rint(benchmark_image("a", 8, 8).hr.numpy().transpose(1, 2, 0) * 255)
    np.testing.assert_allclose(pixels_of(tmp_path / "pictures" / "photo-a-hr.png"), inverted, atol=1)


def test_results_without_pictures_have_none(tmp_path):
    assert read_pictures(tmp_path) == {}
    (tmp_path / "pictures").mkdir()
    for damaged in ("", "{}", '["a"]', '[{"group": "photo"}]'):
        (tmp_path / "pictures" / "pictures.json").write_text(damaged)
        assert read_pictures(tmp_path) == {}


def test_the_command_saves_them_beside_the_results(tiny_cnn_run, tmp_path, monkeypatch, capsys):
    hr = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(0))
    write_image(tmp_path / "data" / "a.png", hr)
    checkpoint = tiny_cnn_run / "checkpoints" / "last.ckpt"
    arguments = [str(checkpoint), str(tmp_path / "data"), "--out", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments])
    main()
    assert not (tmp_path / "out" / "pictures").exists()
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments, "--pictures"])
    main()
    assert capsys.readouterr().out.splitlines()[-3:] == [
        str(tmp_path / "out" / name) for name in ("pictures", "results.md", "results.json")
    ]
    found = read_pictures(tmp_path / "out")
    assert list(found) == [("photo", "a", method) for method in ("bicubic", "rt4ksr", "hr")]
    measured = json.loads((tmp_path / "out" / "results.json").read_text())["images"]
    rgb = {method: pixels_of(path).astype(float) for (_, _, method), path in found.items()}
    np.testing.assert_array_equal(rgb["hr"], np.rint(hr.numpy().transpose(1, 2, 0) * 255))
    for row in measured[:2]:  # the figures are those of the pictures
        inner = (slice(2, -2), slice(2, -2))
        error = np.mean(((rgb[row["method"]] - rgb["hr"])[inner] / 255) ** 2)
        np.testing.assert_allclose(row["values"]["psnr_rgb"], -10 * np.log10(error), atol=1e-3)
