"""Time of the folded RT4KSR by the paper's protocol, and on a CPU beside its plain form and ONNX Runtime, as tables.

    python -m benchmarks.rt4ksr
    python -m benchmarks.rt4ksr --tables compare --threads 1
    python -m benchmarks.rt4ksr --cases 1080x1920x2 --variants S XL --modes compiled+graph

Protocol: a random image, 50 warm-ups, 244 repeats, the GPU's own clock, fp16 on GPUs and fp32 on CPUs, weights as they
are drawn; each row in a process of its own, so that its peak of memory is not another's. The peak is what the network
adds: weights, images, features, and on a GPU what its choice of convolutions needs.

Comparison (CPU, fp32, branch off): `plain` is the network layer by layer with F.layer_norm, `ours` is what users get.
They take turns in one process, a few passes in a row each, of which the first is not timed: like the frames of a video,
a pass then finds memory as one of its own kind left it.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.rt4ksr_floor import rates_of, work
from experiments.command_line import quiet, user_errors
from experiments.inference import machine_name, peak_memory, resident_memory
from lightning_modules.networks.real_time import Upscale, accelerate, can_compile
from lightning_modules.networks.rt4ksr import RT4KSR, SCALES, UNSHUFFLE, VARIANTS, size_of
from lightning_modules.networks.rt4ksr_folded import FoldedRT4KSR, fold

MODES = {"eager": (False, False), "compiled": (True, False), "graph": (False, True), "compiled+graph": (True, True)}
"""Whether torch.compile and CUDA graphs are used."""

PASSES = 3
"""Passes in a row of the comparison; the first is not timed."""

MIB = 2**20


@dataclass(frozen=True)
class Case:
    """Size of lr in pixels, and the scale."""

    height: int
    width: int
    scale: int

    def __str__(self) -> str:
        return f"{self.height} x {self.width}, x{self.scale}"


def case(text: str) -> Case:
    """`1080x1920x2` as a case."""
    parts = text.split("x")
    if len(parts) == 3 and all(part.isdigit() for part in parts):
        height, width, scale = map(int, parts)
        if scale in SCALES and not (height % UNSHUFFLE or width % UNSHUFFLE) and min(height, width) > 2:
            return Case(height, width, scale)
    raise argparse.ArgumentTypeError(f"found {text!r}; expected HEIGHTxWIDTHxSCALE, even sides and scale 2, 3 or 4")


def network_of(variant: str, scale: int, hf_branch: bool) -> FoldedRT4KSR:
    """A folded network with weights as they are drawn: time and memory do not depend on them."""
    blocks, channels = size_of(variant)
    torch.manual_seed(0)
    return fold(RT4KSR(scale, channels, blocks, hf_branch))


def times(run: Upscale, lr: Tensor, warm_ups: int, repeats: int) -> list[float]:
    """Milliseconds of each repeat: between two events on a GPU, by the wall clock on a CPU."""
    for _ in range(warm_ups):
        run(lr)
    if lr.device.type != "cuda":
        spent = []
        for _ in range(repeats):
            start = time.perf_counter()
            run(lr)
            spent.append(1e3 * (time.perf_counter() - start))
        return spent
    torch.cuda.synchronize(lr.device)
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for start_mark, end_mark in marks:
        start_mark.record()
        run(lr)
        end_mark.record()
    torch.cuda.synchronize(lr.device)
    return [start_mark.elapsed_time(end_mark) for start_mark, end_mark in marks]


def measure_row(arguments: argparse.Namespace, variant: str, of: Case, hf_branch: bool, mode: str) -> dict[str, float]:
    """Median milliseconds, and the bytes that were added to the process at the most."""
    device, half = torch.device(arguments.device), arguments.device != "cpu"
    network = network_of(variant, of.scale, hf_branch)
    network(torch.rand(1, 3, 16, 16))  # loads what PyTorch loads with the first convolution
    before = resident_memory(device)
    compiled, cuda_graph = MODES[mode]
    run = accelerate(network, device, half, compiled, cuda_graph)
    lr = torch.rand(1, 3, of.height, of.width, device=device, dtype=torch.float16 if half else torch.float32)
    spent = times(run, lr, arguments.warm_ups, arguments.repeats)
    return {"ms": statistics.median(spent), "peak": largest_memory(device) - before}


def largest_memory(device: torch.device) -> int:
    """`peak_memory`, but on Linux without what the process that started this one held."""
    status = Path("/proc/self/status")
    if device.type == "cuda" or not status.is_file():
        return peak_memory(device)
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def in_fresh_process(
    arguments: argparse.Namespace, variant: str, of: Case, hf_branch: bool, mode: str
) -> dict[str, float]:
    """`measure_row` in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.rt4ksr", "--child", "--device", arguments.device]
    command += ["--cases", f"{of.height}x{of.width}x{of.scale}", "--variants", variant, "--modes", mode]
    command += ["--hf", "on" if hf_branch else "off", "--threads", str(arguments.threads)]
    command += ["--warm-ups", str(arguments.warm_ups), "--repeats", str(arguments.repeats)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(ended.stdout.splitlines()[-1])


def print_protocol(arguments: argparse.Namespace) -> None:
    """One row for each case, variant, branch and mode."""
    device = torch.device(arguments.device)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    rates = rates_of(device, dtype)
    print(f"{str(dtype)[6:]}, {arguments.warm_ups} warm-ups, {arguments.repeats} repeats, medians")
    print(f"floor: {rates.flops / 1e12:.3g} TFLOP/s and {rates.bytes / 1e9:.4g} GB/s ({rates.source})")
    if device.type == "cpu" and arguments.repeats > 20:
        print("On a CPU the whole table takes many minutes; --repeats 10 --warm-ups 2 will do.")
    print(f"\n{'lr':18}{'variant':9}{'HF':5}{'mode':16}{'ms':>9}{'fps':>8}{'floor ms':>10}{'ratio':>7}{'peak MiB':>10}")
    for of in arguments.cases:
        for variant in arguments.variants:
            for hf in arguments.hf:
                network = network_of(variant, of.scale, hf == "on")
                floor = work(network, of.height, of.width, dtype.itemsize).floor(rates)
                for mode in arguments.modes:
                    row = in_fresh_process(arguments, variant, of, hf == "on", mode)
                    name = f"{of!s:18}{variant:9}{hf:5}{mode:16}"
                    speed = f"{row['ms']:9.3f}{1e3 / row['ms']:8.1f}{floor:10.3f}{row['ms'] / floor:7.1f}"
                    print(f"{name}{speed}{row['peak'] / MIB:10.0f}", flush=True)


def contenders(network: FoldedRT4KSR, threads: int, left_out: list[str]) -> dict[str, Upscale]:
    """What takes part in the comparison, by its name; one line says what cannot."""
    cpu = torch.device("cpu")
    found: dict[str, Upscale] = {"plain": torch.no_grad()(network.whole), "ours": accelerate(network, cpu)}
    if "compiled" not in left_out:
        if can_compile(cpu):
            found["compiled"] = accelerate(network, cpu, compiled=True)
        else:
            print("compiled is left out, since there is no C++ compiler (g++, or CXX=)")
    if "onnx" not in left_out:
        if find_spec("onnxruntime") and find_spec("onnxscript"):
            found["ONNX Runtime"] = in_onnx_runtime(network, threads)
        else:
            print('ONNX Runtime is left out, since it is not installed: pip install -e ".[onnx]" adds it')
    return found


def in_onnx_runtime(network: FoldedRT4KSR, threads: int) -> Upscale:
    """The exported network as a function."""
    import onnxruntime

    from experiments.export import to_onnx

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3  # errors
    settings.intra_op_num_threads = threads
    model = to_onnx(network, half=False).SerializeToString()
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda lr: torch.from_numpy(session.run(["sr"], {"lr": lr.numpy()})[0])


def compare(runs: dict[str, Upscale], lr: Tensor, rounds: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    """Milliseconds of the timed passes of each."""
    spent: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run(lr)
            for _ in range(PASSES - 1):
                start = clock()
                run(lr)
                spent[name].append(1e3 * (clock() - start))
    return spent


def print_comparison(arguments: argparse.Namespace) -> None:
    """The contenders, their times beside those of the plain network, and how far their images are from its."""
    of = arguments.compare
    lr = torch.rand(1, 3, of.height, of.width, generator=torch.Generator().manual_seed(0))
    for variant in arguments.variants:
        runs = contenders(network_of(variant, of.scale, False), arguments.threads, arguments.leave_out)
        images = {name: run(lr) for name, run in runs.items()}
        spent = compare(runs, lr, arguments.rounds, time.perf_counter)
        plain = spent["plain"]
        print(f"\n{of}, variant {variant}, HF branch off, fp32, {len(plain)} passes each")
        print(f"{'':16}{'median ms':>10}{'of plain':>10}{'least ms':>10}{'of plain':>10}{'difference':>12}")
        for name, own in spent.items():
            middle, least = statistics.median(own), min(own)
            ratios = middle / statistics.median(plain), least / min(plain)
            far = float((images[name] - images["plain"]).abs().max())
            print(f"{name:16}{middle:10.1f}{ratios[0]:10.2f}{least:10.1f}{ratios[1]:10.2f}{far:12.1e}", flush=True)


def parse() -> argparse.Namespace:
    """The options, with what follows from the device filled in; ValueError where they do not fit it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", choices=["protocol", "compare"], help="default: protocol; on a CPU both")
    parser.add_argument("--cases", nargs="+", type=case, default=[Case(720, 1280, 3), Case(1080, 1920, 2)])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=["S"])
    parser.add_argument("--hf", nargs="+", choices=["off", "on"], default=["off", "on"], help="the HF branch")
    parser.add_argument("--modes", nargs="+", choices=list(MODES), help="default: eager; on a GPU all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--warm-ups", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=244)
    parser.add_argument("--compare", type=case, default=Case(540, 960, 2), help="the case of the comparison")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each in the comparison")
    parser.add_argument("--leave-out", nargs="+", choices=["compiled", "onnx"], default=[], help="of the comparison")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    on_cpu = arguments.device == "cpu"
    if not on_cpu and torch.device(arguments.device).type != "cuda":
        raise ValueError(f"found --device {arguments.device}; expected cpu, cuda or cuda:N")
    if not on_cpu and not torch.cuda.is_available():
        raise ValueError(f"found --device {arguments.device}, but no CUDA device; expected --device cpu")
    arguments.modes = arguments.modes or (["eager"] if on_cpu else list(MODES))
    arguments.tables = arguments.tables or (["protocol", "compare"] if on_cpu else ["protocol"])
    if not on_cpu and "compare" in arguments.tables:
        raise ValueError(f"--tables compare: found --device {arguments.device}; expected --device cpu")
    if min(arguments.repeats, arguments.rounds, arguments.threads) < 1 or arguments.warm_ups < 0:
        raise ValueError("found no --repeats, --rounds or --threads, or --warm-ups below 0; expected at least one")
    return arguments


def main() -> None:
    quiet()
    with user_errors():
        arguments = parse()
        torch.set_num_threads(arguments.threads)
        if arguments.device != "cpu":
            torch.cuda.set_device(torch.device(arguments.device).index or 0)
        if arguments.child:
            row = (arguments.variants[0], arguments.cases[0], arguments.hf[0] == "on", arguments.modes[0])
            print(json.dumps(measure_row(arguments, *row)))
            return
        print(f"{machine_name(torch.device(arguments.device))}, torch {torch.__version__}")
        if "protocol" in arguments.tables:
            print_protocol(arguments)
        if "compare" in arguments.tables:
            print_comparison(arguments)


if __name__ == "__main__":
    main()
