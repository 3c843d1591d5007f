"""pyiqa's metrics from local files; what needs the package itself skips without the extra."""

import importlib.util
import socket

import pytest
import torch

from datamodules.curation.pyiqa_scores import METRICS, check_pyiqa, higher_is_better, pieces, pyiqa_scores
from datamodules.curation.settings import ScoreModels

INSTALLED = importlib.util.find_spec("pyiqa") is not None


def noise(height, width):
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_metrics_without_a_file_are_skipped_with_one_line_each():
    assert pyiqa_scores(noise(8, 8), ScoreModels(pyiqa={"musiq": ""})) == {}
    assert check_pyiqa({"musiq": "", "piqe": ""}) == [
        "pyiqa_musiq is skipped: set models.pyiqa.musiq to its local file of weights",
        'pyiqa_piqe is skipped: set models.pyiqa.piqe to "none", it has no weights',
    ]
    (line,) = check_pyiqa({})
    assert "models.pyiqa.<name>" in line


@pytest.mark.parametrize(
    ("wanted", "named"),
    [
        ({"topiq_nr": ""}, "models.pyiqa.topiq_nr: found an unknown metric, expected one of brisque"),
        ({"piqe": "piqe.pth"}, 'models.pyiqa.piqe=piqe.pth: the metric has no weights, expected "none"'),
        ({"musiq": "none"}, "models.pyiqa.musiq=none: no such file"),
    ],
)
def test_what_cannot_be_used_is_an_error(wanted, named):
    with pytest.raises((FileNotFoundError, ValueError), match=named):
        check_pyiqa(wanted)


@pytest.mark.skipif(INSTALLED, reason="the extra is installed")
def test_a_wanted_metric_without_the_package_names_the_extra():
    with pytest.raises(ValueError, match=r'pip install -e "\.\[pyiqa\]"'):
        check_pyiqa({"piqe": "none"})


def test_pieces_are_at_full_size_and_cover_the_image_evenly():
    rows, columns = torch.meshgrid(torch.arange(2160), torch.arange(3840), indexing="ij")
    image = torch.stack([rows, columns, rows])
    found = pieces(image)
    assert all(piece.shape == (3, 512, 512) for piece in found)
    centres = [(int(piece[0, 256, 0]), int(piece[1, 0, 256])) for piece in found]
    assert centres == [(y, x) for y in (540, 1620) for x in (640, 1920, 3200)]
    assert all(bool((piece.diff(dim=1)[0] == 1).all() and (piece.diff(dim=2)[1] == 1).all()) for piece in found)
    assert {tuple(piece.shape) for piece in pieces(image[:, :300, :700])} == {(3, 300, 512)}


def test_the_direction_of_each_metric():
    assert not higher_is_better("piqe")
    assert higher_is_better("musiq")
    with pytest.raises(ValueError, match="unknown metric"):
        higher_is_better("psnr")


@pytest.fixture
def no_network(monkeypatch):
    """Any attempt to open a connection, even to this machine, ends the test."""

    def refuse(*arguments, **options):
        pytest.fail("the network was reached for")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.mark.usefixtures("no_network")
def test_scores_and_directions_are_pyiqas_own_without_network(tmp_path):
    pyiqa = pytest.importorskip("pyiqa")
    from pyiqa.archs.cnniqa_arch import CNNIQA

    torch.save({"params": CNNIQA(pretrained=None).state_dict()}, tmp_path / "cnniqa.pth")
    image = noise(300, 400)
    found = pyiqa_scores(image, ScoreModels(pyiqa={"piqe": "none", "cnniqa": str(tmp_path / "cnniqa.pth")}))
    own = {
        "pyiqa_piqe": pyiqa.create_metric("piqe", device="cpu"),
        "pyiqa_cnniqa": pyiqa.create_metric("cnniqa", device="cpu", pretrained_model_path=str(tmp_path / "cnniqa.pth")),
    }
    assert found == {name: pytest.approx(float(metric(image[None] / 255)), abs=1e-4) for name, metric in own.items()}
    configs = pyiqa.default_model_configs.DEFAULT_CONFIGS
    assert {name: not configs[name].get("lower_better", False) for name in METRICS} == METRICS


class Executed:
    """Unpickling it would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (self.path, "w"))


def test_a_file_that_would_execute_code_is_refused(tmp_path):
    pytest.importorskip("pyiqa")
    torch.save({"params": Executed(str(tmp_path / "executed"))}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"^models\.pyiqa\.cnniqa=.*weights_only"):
        pyiqa_scores(noise(64, 64), ScoreModels(pyiqa={"cnniqa": str(tmp_path / "evil.pth")}))
    assert not (tmp_path / "executed").exists()
