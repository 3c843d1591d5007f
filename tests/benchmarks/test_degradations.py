import dataclasses
import sys

import numpy as np
import pytest
import torch

from benchmarks import degradations
from datamodules.degradations.parameters import SampleParameters, draw_parameters
from datamodules.degradations.pipeline import PRESETS, stages


def quiet(parameters: SampleParameters) -> SampleParameters:
    """Without noise, and without the area filter, which OpenCV and torch define differently."""

    def filter_of(name: str) -> str:
        return "bilinear" if name == "area" else name

    orders = tuple(
        dataclasses.replace(
            order, noise=dataclasses.replace(order.noise, strength=0.0), filter_name=filter_of(order.filter_name)
        )
        for order in parameters.orders
    )
    return dataclasses.replace(parameters, orders=orders, final_filter=filter_of(parameters.final_filter))


@pytest.mark.parametrize("preset", ["omgsr", "real_esrgan"])
def test_the_two_chains_are_the_same_but_for_their_noise(preset: str) -> None:
    pytest.importorskip("cv2")
    from benchmarks.degradations_opencv import opencv_stages

    hr = degradations.photographs(2, 96)
    differences = []
    for seed in range(16):
        parameters = draw_parameters(PRESETS[preset], 4, torch.Generator().manual_seed(seed))
        image, other = hr[seed % 2, None], hr[seed % 2].flip(0).permute(1, 2, 0).contiguous().numpy()
        names = [[name for name, _ in chain(parameters, (24, 24))] for chain in (stages, opencv_stages)]
        assert names[0] == names[1]
        for _, stage in stages(quiet(parameters), (24, 24)):
            image = stage(image)
        for _, stage in opencv_stages(quiet(parameters), (24, 24)):
            other = stage(other)
        ours = image[0].flip(0).permute(1, 2, 0).numpy()
        assert ours.shape == other.shape == (24, 24, 3)
        differences.append(np.abs(ours - other).mean() * 255)
    assert np.median(differences) < 0.01
    assert max(differences) < 2


@pytest.mark.parametrize("installed", [True, False])
def test_without_opencv_its_column_is_left_out_and_one_sentence_says_so(
    installed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if installed:
        pytest.importorskip("cv2")
    else:
        monkeypatch.setitem(sys.modules, "cv2", None)
    options = f"--presets omgsr --sizes 32 --batch 1 --draws 1 --repeats 1 --threads {torch.get_num_threads()}"
    monkeypatch.setattr(sys, "argv", ["degradations", *options.split()])
    degradations.main()
    said = capsys.readouterr().out
    assert said.count('.venv/bin/python -m pip install "opencv-python-headless>=4.11"') == (not installed)
    assert ("this project        OpenCV" in said) == installed
    assert ("NumPy's sampler" in said) == installed
