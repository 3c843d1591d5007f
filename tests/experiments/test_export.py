"""The exported file in ONNX Runtime, against the training form's three convolutions per block and official outputs."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.build import build_system
from experiments.checkpoints import OPTIONS_KEY, load_system
from experiments.export import AnySize, export, main, target_path, to_onnx, write_checked
from experiments.options import load_options, to_yaml
from lightning_modules.networks.rt4ksr import RT4KSR
from lightning_modules.networks.rt4ksr_folded import fold
from lightning_modules.real_time_cnn import RealTimeCnn
from lightning_modules.super_resolution import BASE_FINGERPRINT

onnx = pytest.importorskip("onnx", reason='needs the extra: pip install -e ".[onnx]"')
onnxruntime = pytest.importorskip("onnxruntime", reason='needs the extra: pip install -e ".[onnx]"')
pytest.importorskip("onnxscript", reason='needs the extra: pip install -e ".[onnx]"')

SIZES = ((38, 54), (61, 45), (4, 4), (5, 8))


def trained(**options) -> RT4KSR:
    """A small network in which every weight matters, with the paper's three convolutions per block."""
    torch.manual_seed(0)
    network = RT4KSR(channels=8, blocks=1, online=False, **options).eval().requires_grad_(False)
    for parameter in network.parameters():
        parameter += 0.05 * torch.randn_like(parameter)
    return network


def run(model: bytes | Path, lr: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, {"lr": lr})[0]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a run of s_x2_mini with fewer blocks and channels leaves, without its training: all exports are faster."""
    options = load_options("rt4ksr/s_x2_mini", ["network.blocks=1", "network.channels=8", "network.start=random"])
    system = build_system(options)
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "last.ckpt"
    weights = {name: value.detach() for name, value in system.named_parameters()}
    path.parent.mkdir()
    torch.save(
        {OPTIONS_KEY: to_yaml(options), "state_dict": weights, BASE_FINGERPRINT: system.base_fingerprint()}, path
    )
    return str(path)


@pytest.fixture(scope="module")
def exported(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32 file of the checkpoint, alone in its folder."""
    path = tmp_path_factory.mktemp("exported") / "small.onnx"
    export(checkpoint, out=str(path))
    return path


@pytest.fixture
def system(checkpoint: str) -> RealTimeCnn:
    loaded, _ = load_system(checkpoint)
    assert isinstance(loaded, RealTimeCnn)
    return loaded


@pytest.mark.parametrize(
    "options",
    [
        {"scale": 3, "hf_branch": True},
        {"scale": 2, "hf_branch": False, "block": "residual"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_the_graph_is_the_training_form_at_any_size(options) -> None:
    network, scale = trained(**options), options["scale"]
    model = to_onnx(AnySize(fold(network), scale), half=False).SerializeToString()
    for count, (height, width) in enumerate(SIZES, start=1):
        lr = np.random.default_rng(0).random((count, 3, height, width), np.float32)
        even = np.pad(lr, ((0, 0), (0, 0), (0, height % 2), (0, width % 2)), mode="edge")
        expected = network(torch.from_numpy(even)).numpy()[..., : scale * height, : scale * width]
        np.testing.assert_allclose(run(model, lr), expected, rtol=0, atol=1e-5)


def test_the_released_network_gives_the_official_images(shared: Path, tmp_path: Path) -> None:
    path = tmp_path / "released.onnx"
    export(str(shared / "weights" / "rt4ksr" / "rt4ksr_x2.pth"), out=str(path))
    sources = sorted((shared / "set5" / "LR_bicubic" / "X2").glob("*.png"))
    assert len(sources) == 5
    for source in sources:
        lr = np.asarray(Image.open(source).convert("RGB"), np.float32).transpose(2, 0, 1)[None] / 255
        sr = np.rint(run(path, lr)[0].clip(0, 1) * 255)
        official = shared / "rt4ksr_ref" / "Set5_x2" / "rep" / f"{source.stem.removesuffix('x2')}.png"
        expected = np.asarray(Image.open(official).convert("RGB"), np.float32).transpose(2, 0, 1)
        assert abs(sr - expected).max() <= 1


def test_the_file_is_one_and_says_nothing_of_the_machine(exported: Path) -> None:
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    content = exported.read_bytes()
    for word in ("site-packages", str(Path(__file__).parents[2]), str(Path.home()), "pkg.torch"):
        assert word.encode() not in content


def test_onnx_runtime_alone_tells_what_the_file_is(exported: Path, checkpoint: str) -> None:
    script = (
        "import json, sys, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "ends = [[end.name, end.type, end.shape] for end in (*session.get_inputs(), *session.get_outputs())]\n"
        "assert not {'torch', 'onnx'} & set(sys.modules)\n"
        "print(json.dumps([session.get_modelmeta().custom_metadata_map, ends]))\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(exported)], capture_output=True, text=True, check=True)
    found, ends = json.loads(done.stdout)
    assert ends == [
        ["lr", "tensor(float)", ["batch", 3, "height", "width"]],
        ["sr", "tensor(float)", ["batch", 3, "2*height", "2*width"]],
    ]
    described = {
        "scale": "2",
        "color_range": "RGB in [0,1]",
        "clamped": "false",
        "size_multiple": "1",
        "dtype": "float32",
        "layout": "NCHW",
        "variant": "none",
        "blocks": "1",
        "channels": "8",
        "hf_branch": "true",
        "extraction": "gaussian",
        "block": "layer_norm",
        "checkpoint": "last.ckpt",
        "checkpoint_sha256": hashlib.sha256(Path(checkpoint).read_bytes()).hexdigest(),
        "torch": torch.__version__.split("+")[0],
        "onnx": onnx.__version__,
        "opset": str(onnx.load(exported).opset_import[0].version),
    }
    assert described.items() <= found.items()


def test_half_precision_goes_through_the_whole_file(checkpoint, system, tmp_path: Path, monkeypatch, capfd) -> None:
    """lr and sr too are fp16, the file is smaller, and the command prints its report and nothing else."""
    path = tmp_path / "half.onnx"
    monkeypatch.setattr(sys, "argv", ["export", checkpoint, "--half", "--out", str(path)])
    main()
    said = capfd.readouterr()
    assert said.err == ""
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{path}: x2, fp16, any size, ")
    assert len(lines) == 5
    model = onnx.load(path)
    half = onnx.TensorProto.FLOAT16
    assert {end.type.tensor_type.elem_type for end in (*model.graph.input, *model.graph.output)} == {half}
    assert {weights.data_type for weights in model.graph.initializer} == {half, onnx.TensorProto.INT64}
    assert not [node for node in model.graph.node if node.op_type == "Cast"]
    assert {entry.key: entry.value for entry in model.metadata_props}["dtype"] == "float16"
    lr = np.random.default_rng(0).random((1, 3, 20, 31), np.float32)
    sr = run(path, lr.astype(np.float16))
    assert sr.dtype == np.float16
    np.testing.assert_allclose(sr, system.restore(torch.from_numpy(lr)), rtol=0, atol=4 / 255)


@pytest.mark.parametrize("change", [3e-5, float("nan")])
def test_a_file_that_differs_is_not_put_in_place(change, exported: Path, system, tmp_path: Path) -> None:
    model, path = onnx.load(exported), tmp_path / "net.onnx"
    path.write_text("the old one")
    (bias,) = (weights for weights in model.graph.initializer if weights.name.endswith("upsample.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(change), bias.name))
    with pytest.raises(ValueError, match=r"net.onnx: on .* ONNX Runtime is .* away from PyTorch, more than 1e-05"):
        write_checked(model, path, system, half=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.onnx"]
    assert path.read_text() == "the old one"


def test_an_interruption_leaves_nothing(exported: Path, system, tmp_path: Path) -> None:
    def interrupt(*_) -> None:
        assert [entry.name for entry in tmp_path.iterdir()] == [".net.onnx.part"]
        raise KeyboardInterrupt

    system.network.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checked(onnx.load(exported), tmp_path / "net.onnx", system, half=False)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{cnn}", "--format", "tflite"], "FORMAT=tflite: expected onnx"),
        (["{cnn}", "--out", "net.pt"], "OUT=net.pt: expected a file ending in .onnx"),
        (["no such.ckpt"], "CKPT=no such.ckpt: no such file"),
        (["{codec}"], "CKPT={codec} is of system=autoencoder; only real_time_cnn can be exported"),
    ],
)
def test_wrong_input_ends_in_one_sentence(
    arguments, said, checkpoint, tiny_codec_run: Path, tmp_path: Path, monkeypatch, capsys
) -> None:
    names = {"cnn": checkpoint, "codec": str(tiny_codec_run / "checkpoints" / "last.ckpt")}
    monkeypatch.delenv("SR_TRACEBACK", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["export", *(argument.format(**names) for argument in arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {said.format(**names)}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_package_is_named_with_its_extra(package, checkpoint, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # what an import meets where a package is not installed
    with pytest.raises(ValueError, match=rf'needs the package {package}: pip install -e "\.\[onnx\]"'):
        export(checkpoint)


@pytest.mark.parametrize(
    ("source", "out", "half", "target"),
    [
        ("runs/rt4ksr/mini/checkpoints/last.ckpt", "", False, "runs/rt4ksr/mini/export/mini.onnx"),
        ("runs/rt4ksr/mini/checkpoints/last.ckpt", "", True, "runs/rt4ksr/mini/export/mini_fp16.onnx"),
        ("weights/rt4ksr_x2.pth", "", False, "runs/export/rt4ksr_x2.onnx"),
        ("code/checkpoints/rt4ksr_x2.pth", "", False, "runs/export/rt4ksr_x2.onnx"),
        ("weights/rt4ksr_x2.pth", "a/net.onnx", True, "a/net.onnx"),
    ],
)
def test_where_the_file_goes(source, out, half, target, tmp_path, monkeypatch) -> None:
    (tmp_path / "runs" / "rt4ksr" / "mini").mkdir(parents=True)
    (tmp_path / "runs" / "rt4ksr" / "mini" / "options.yaml").touch()
    monkeypatch.chdir(tmp_path)
    assert target_path(source, out, half) == Path(target)
