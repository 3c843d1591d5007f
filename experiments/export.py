"""Write a network for other programs: `python -m experiments.export last.ckpt` (make export CKPT= FORMAT= OUT= HALF=).

The file is ONNX: the folded network for any number, height and width of images, padding and crop of odd sides inside.
It is compared with PyTorch in ONNX Runtime before it takes its name.
"""

import argparse
import copy
import hashlib
import math
import os
import warnings
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodules.image_io import read_image
from datamodules.synthetic import HELD_OUT_PHOTOGRAPHS, bundled_path
from experiments import schema
from experiments.checkpoints import load_system, run_of
from experiments.command_line import quiet, user_errors
from experiments.inference import SMALLEST_LR
from lightning_modules.networks.rt4ksr import BLOCKS, UNSHUFFLE, VARIANTS, size_of
from lightning_modules.real_time_cnn import RealTimeCnn

FORMATS = ("onnx",)

TRACED = (2, 3, 64, 96)
CHECKED = ((1, 3, 38, 54), (2, 3, 61, 45))
"""Sizes of random images of the comparison; a crop of a photograph comes on top."""
PHOTOGRAPH_CROP = (126, 200)

FULL_TOLERANCE = 1e-5
"""Largest difference that is allowed in fp32, of values in [0,1]."""
HALF_TOLERANCE = 4 / 255
"""The same of fp16 against PyTorch in fp32 (ours): the released x2 network is 1.1 grey levels off."""


class AnySize(nn.Module):
    """lr (N,3,H,W) of any size to sr (N,3,sH,sW) by a network that needs even sides, without a branch on the size.

    An odd side is padded by its last row or column, and what becomes of that is cut off, as `RealTimeCnn.restore` does.
    """

    def __init__(self, network: nn.Module, scale: int) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[-2:]
        extra = UNSHUFFLE - 1
        # padding by a constant and a cut: not all engines take pads that depend on the input
        padded = F.pad(lr, (0, extra, 0, extra), mode="replicate")
        rows, columns = ((side + extra) // UNSHUFFLE * UNSHUFFLE for side in (height, width))
        # narrow promises its length, so the sizes that the exporter reasons about stay short
        sr = self.network(padded.narrow(-2, 0, rows).narrow(-1, 0, columns))
        return sr.narrow(-2, 0, height * self.scale).narrow(-1, 0, width * self.scale)


def export(checkpoint: str, kind: str = "onnx", out: str = "", half: bool = False) -> str:
    """Export a checkpoint and return a report: the file, what it is, and how far it is from PyTorch.

    kind: one of FORMATS. out: the file; by default in export/ of the run, or in runs/export/ where the checkpoint is in
    none. half: weights, computation, lr and sr in fp16.

    ValueError or FileNotFoundError name the make variable; where the outputs differ, nothing is left on the disk.
    """
    if kind not in FORMATS:
        raise ValueError(f"FORMAT={kind}: expected {', '.join(FORMATS)}")
    _need_packages()
    path = target_path(checkpoint, out, half)
    system, options = load_system(checkpoint)
    if not isinstance(system, RealTimeCnn) or not isinstance(options, schema.RealTimeCnn):
        raise ValueError(f"CKPT={checkpoint} is of system={options.system}; only real_time_cnn can be exported")
    system.deploy()
    model = to_onnx(AnySize(system.network, system.scale), half)
    _name_sizes(model, system.scale)
    _describe(model, properties(options, checkpoint, half))
    differences = write_checked(model, path, system, half)
    return _report(path, system.scale, half, differences)


def target_path(checkpoint: str, out: str, half: bool) -> Path:
    """The file to write; ValueError names OUT= where it is not an .onnx file."""
    if out:
        if Path(out).suffix != ".onnx" or Path(out).is_dir():
            raise ValueError(f"OUT={out}: expected a file ending in .onnx")
        return Path(out)
    source, suffix = Path(checkpoint), "_fp16" if half else ""
    if run := run_of(checkpoint):
        return Path(os.path.relpath(run / "export" / f"{run.resolve().name}{suffix}.onnx"))
    return Path("runs") / "export" / f"{source.stem}{suffix}.onnx"


def to_onnx(network: nn.Module, half: bool) -> Any:
    """A network from `lr` (N,3,H,W) to `sr` as onnx.ModelProto, N, H and W free; in fp16 with `half`."""
    dtype = torch.float16 if half else torch.float32
    example = torch.zeros(TRACED, dtype=dtype)
    free = torch.export.Dim.DYNAMIC
    with warnings.catch_warnings():  # the exporter speaks of its own parts
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            copy.deepcopy(network).to(dtype).eval(),
            (example,),
            input_names=["lr"],
            output_names=["sr"],
            dynamic_shapes=({0: free, 2: free, 3: free},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export gave no program")
    return program.model_proto


def _name_sizes(model: Any, scale: int) -> None:
    """Call the free sizes by their names; leave out what the exporter notes on its way, paths of source files too."""
    graph = model.graph
    for value, names in (
        (graph.input[0], ("batch", "", "height", "width")),
        (graph.output[0], ("batch", "", f"{scale}*height", f"{scale}*width")),
    ):
        for size, name in zip(value.type.tensor_type.shape.dim, names, strict=True):
            if name:
                size.dim_param = name
    graph.ClearField("value_info")
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")


def properties(options: schema.RealTimeCnn, checkpoint: str, half: bool) -> dict[str, str]:
    """What a program needs to know to use the file, and where the file comes from."""
    network, named = options.network, {sizes: name for name, sizes in VARIANTS.items()}
    blocks, channels = size_of(network.variant)
    blocks, channels = network.blocks or blocks, network.channels or channels
    with open(checkpoint, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "scale": str(options.data.scale),
        "color_range": "RGB in [0,1]",
        "clamped": "false",
        "size_multiple": "1",
        "smallest_side": str(SMALLEST_LR),
        "layout": "NCHW",
        "dtype": "float16" if half else "float32",
        "network": "RT4KSR" if network.block in BLOCKS else "RT4KSRStep",
        "variant": named.get((blocks, channels), "none") if network.block in BLOCKS else "none",
        "blocks": str(blocks),
        "channels": str(channels),
        "hf_branch": str(network.hf_branch).lower(),
        "extraction": network.extraction,
        "block": network.block,
        "features": network.features,
        "shared_head": str(network.shared_head).lower(),
        "checkpoint": Path(checkpoint).name,
        "checkpoint_sha256": digest,
        **{package: version(package) for package in ("sr4k", "torch", "onnx")},
    }


def _describe(model: Any, described: dict[str, str]) -> None:
    """Put the properties and the opset where ONNX Runtime's `custom_metadata_map` finds them."""
    import onnx

    (opset,) = (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx"))
    onnx.helper.set_model_props(model, {**described, "opset": str(opset)})
    onnx.checker.check_model(model, full_check=True)


def write_checked(model: Any, path: Path, system: RealTimeCnn, half: bool) -> dict[str, float]:
    """Write a model beside `path`, `compare` it, and rename it; ValueError, and no new file, where it differs."""
    import onnx

    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    try:
        onnx.save(model, partial)
        differences = compare(partial, system, half)
        tolerance = HALF_TOLERANCE if half else FULL_TOLERANCE
        worst = max(differences, key=differences.__getitem__)
        if differences[worst] > tolerance:
            raise ValueError(
                f"OUT={path}: on {worst} ONNX Runtime is {differences[worst]:.2g} away from PyTorch, more than "
                f"{tolerance:.2g}; nothing was written{', leave HALF= out for fp32' if half else ''}"
            )
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return differences


def compare(path: Path, system: RealTimeCnn, half: bool) -> dict[str, float]:
    """Largest absolute difference of an ONNX file in ONNX Runtime from `system.restore` in fp32, by the image's name.

    Infinity where an output has another shape or holds what is no number.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    found = {}
    for name, lr in _images():
        given = lr.half() if half else lr
        sr = torch.from_numpy(session.run(["sr"], {"lr": given.numpy()})[0]).float()
        with torch.no_grad():
            expected = system.restore(lr)
        largest = (sr - expected).abs().max().item() if sr.shape == expected.shape else float("inf")
        found[name] = float("inf") if math.isnan(largest) else largest
    return found


def _images() -> Iterator[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for size in CHECKED:
        yield f"{size[0]} random of {size[2]} x {size[3]}", torch.rand(size, generator=generator)
    rows, columns = PHOTOGRAPH_CROP
    name = HELD_OUT_PHOTOGRAPHS[0]
    yield f"{name} at {rows} x {columns}", read_image(bundled_path(name)).rgb[None, :, :rows, :columns].contiguous()


def _report(path: Path, scale: int, half: bool, differences: dict[str, float]) -> str:
    import onnxruntime

    kind = "fp16" if half else "fp32"
    lines = [
        f"{path}: x{scale}, {kind}, any size, {path.stat().st_size / 1e6:.2f} MB",
        f"largest difference of ONNX Runtime {onnxruntime.__version__} from PyTorch in fp32:",
        *(f"  {value:.1e} ({255 * value:.2g} grey levels) on {name}" for name, value in differences.items()),
    ]
    return "\n".join(lines)


def _need_packages() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ValueError(f'the export needs the package {error.name}: pip install -e ".[onnx]"') from error


def main() -> None:
    parser = argparse.ArgumentParser(description="Export a trained network for other programs.")
    parser.add_argument("checkpoint", help="checkpoint of a real_time_cnn, or a released RT4KSR .pth (CKPT=)")
    parser.add_argument("--format", default="onnx", help="onnx (FORMAT=)")
    parser.add_argument("--out", default="", help="file; else export/ in the run's folder, or runs/export/ (OUT=)")
    parser.add_argument("--half", action="store_true", help="fp16, lr and sr too (HALF=1)")
    given = parser.parse_args()
    quiet()
    with user_errors():
        print(export(given.checkpoint, given.format, given.out, given.half))


if __name__ == "__main__":
    main()
