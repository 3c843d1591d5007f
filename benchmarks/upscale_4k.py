"""Time and peak memory of one patch-free pass in a fresh process per row, and strips against one piece, as a table.

    python -m benchmarks.upscale_4k --sizes 256 512 1024 --threads 1
    python -m benchmarks.upscale_4k --checkpoint runs/op4ksr/mini/checkpoints/last.ckpt

Without a checkpoint it builds the student of op4ksr/mini with untrained weights: time and memory do not depend on them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from datamodules.image_io import write_image
from experiments.build import build_system
from experiments.checkpoints import load_system
from experiments.command_line import quiet
from experiments.inference import (
    GIB,
    STRIP_ROWS,
    autocast,
    expected_peak,
    machine_name,
    peak_memory,
    pick_device,
    resident_memory,
    super_resolve,
)
from experiments.options import load_options
from experiments.schema import Autoencoder, Experiment
from lightning_modules.autoencoder import Autoencoder as AutoencoderModule
from lightning_modules.one_step_flux import OneStepFlux

TOLERANCE = 0.2
"""Share of the measured peak by which `expected_peak`, an estimate for strips, may be wrong."""


def build(checkpoint: str, threads: int, precision: str) -> tuple[OneStepFlux, Experiment]:
    """The student on its device, and its options."""
    torch.set_num_threads(threads)
    overrides = [f"trainer.precision={precision}"]
    if checkpoint:
        system, options = load_system(checkpoint, overrides)
    else:
        with tempfile.TemporaryDirectory() as folder:
            codec_options = load_options("f16_vae/small")
            codec = build_system(codec_options)
            if not isinstance(codec_options, Autoencoder) or not isinstance(codec, AutoencoderModule):
                raise TypeError("f16_vae/small is no autoencoder")
            randomise(codec)
            codec.codec.save_pretrained(folder)
            options = load_options("op4ksr/mini", [*overrides, f"codec.path={folder}"])
            system = build_system(options).eval().requires_grad_(False)
            randomise(system)
    if not isinstance(system, OneStepFlux):
        raise ValueError(f"--checkpoint {checkpoint}: expected a student of system one_step_flux")
    return system.to(pick_device(options)), options


def randomise(module: nn.Module) -> None:
    """Give parameters that start at zero small random values, so that nothing is skipped or equal by chance."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.copy_(0.02 * torch.randn(parameter.shape, generator=generator))


def one_pass(student: OneStepFlux, options: Experiment, side: int, strip_rows: int, out: Path) -> dict[str, float]:
    """Upscale side x side noise, write it to `out`; seconds of the pass, and bytes."""
    lr = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    size = (side * student.scale, side * student.scale)
    expected = resident_memory(student.device) + expected_peak(student, size)
    start = time.perf_counter()
    with torch.inference_mode(), autocast(options, student.device):
        sr = super_resolve(student, lr, size, strip_rows)
    seconds = time.perf_counter() - start
    write_image(out, sr)
    return {"seconds": seconds, "expected": expected, "peak": peak_memory(student.device)}


def largest_difference(student: OneStepFlux, side: int) -> float:
    """Largest difference between strips and one piece in fp32, images in [0,1]."""
    lr = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
    size = (side * student.scale, side * student.scale)
    with torch.inference_mode():
        strips, whole = (super_resolve(student, lr, size, rows) for rows in (STRIP_ROWS, 0))
    return float((strips - whole).abs().max())


def in_fresh_process(arguments: argparse.Namespace, side: int, rows: int) -> dict[str, float]:
    """`one_pass` in a process of its own, so that its peak is not another's."""
    command = [sys.executable, "-m", "benchmarks.upscale_4k", "--child", "--sizes", str(side)]
    command += ["--strip-rows", str(rows), "--threads", str(arguments.threads), "--precision", arguments.precision]
    command += ["--checkpoint", arguments.checkpoint]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[256, 512, 1024], help="sides of lr, pixels")
    parser.add_argument("--strip-rows", type=int, nargs="+", default=[STRIP_ROWS], help="0: in one piece")
    parser.add_argument("--checkpoint", default="")
    parser.add_argument("--precision", default="auto", choices=["auto", "bf16-mixed", "32-true"])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    quiet()
    if arguments.child:
        student, options = build(arguments.checkpoint, arguments.threads, arguments.precision)
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "sr.png"
            print(json.dumps(one_pass(student, options, arguments.sizes[0], arguments.strip_rows[0], out)))
        return
    student, options = build(arguments.checkpoint, arguments.threads, arguments.precision)
    print(f"{machine_name(student.device)}, torch {torch.__version__}, {arguments.precision}, peak with PNG\n")
    print(f"{'lr':>12}{'sr':>14}{'strip rows':>12}{'seconds':>9}{'peak GiB':>10}{'expected':>10}")
    for side in arguments.sizes:
        for rows in arguments.strip_rows:
            row = in_fresh_process(arguments, side, rows)
            large = side * student.scale
            memory = f"{row['peak'] / GIB:10.2f}{row['expected'] / GIB:10.2f}"
            sizes = f"{f'{side} x {side}':>12}{f'{large} x {large}':>14}"
            verdict = "" if not rows or abs(row["expected"] / row["peak"] - 1) < TOLERANCE else "  estimate is off"
            print(f"{sizes}{rows:12}{row['seconds']:9.1f}{memory}{verdict}", flush=True)
    print(f"\nstrips against one piece, 192 -> {192 * student.scale}, fp32: {largest_difference(student, 192):.1e}")


if __name__ == "__main__":
    main()
