"""A trained system on its device, ready to upscale: what `make upscale` does with images and with videos."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.checkpoints import load_system
from experiments.checks import has_bf16_base
from experiments.inference import (
    GIB,
    autocast,
    available_memory,
    expected_peak,
    pick_device,
    resident_memory,
    restore_on_device,
)
from experiments.schema import Experiment
from lightning_modules.networks.lora import fold_lora
from lightning_modules.networks.real_time import accelerate
from lightning_modules.networks.rt4ksr_folded import FoldedRT4KSR
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.real_time_cnn import RealTimeCnn

_EXACT_BITS = 12
"""From so many bits per channel on, half precision and bf16 are not enough: fp16 has 11 significant ones."""


@dataclass(frozen=True)
class Acceleration:
    """What makes real_time_cnn faster; half and cuda_graph need a GPU."""

    half: bool = False
    compiled: bool = False
    cuda_graph: bool = False


@dataclass(frozen=True)
class Upscaler:
    """A system with what holds for all files of a batch.

    memory_limit, base: bytes the process may hold in all, and those it held before the first file. fast: the system's
    network accelerated, for images of less than 12 bits, or None.
    """

    system: OneStepFlux | RealTimeCnn
    options: Experiment
    scale: float
    memory_limit: int
    base: int
    max_pixels: int
    fast: Callable[[Tensor], Tensor] | None = None

    @property
    def device(self) -> torch.device:
        return self.system.device

    def size_of(self, small: tuple[int, int]) -> tuple[int, int]:
        """Height and width of what becomes of an image."""
        return round(small[0] * self.scale), round(small[1] * self.scale)

    def sr(self, rgb: Tensor, bits: int = 8) -> Tensor:
        """(3,h,w) in [0,1], of `bits` bits, upscaled: (3,H,W) float32 on the system's device, unclamped."""
        exact = bits >= _EXACT_BITS
        precision = autocast(self.options, self.device)
        if exact and not has_bf16_base(self.options):
            precision = torch.autocast(self.device.type, enabled=False)
        size = self.size_of((rgb.shape[1], rgb.shape[2]))
        with torch.inference_mode(), precision:
            return restore_on_device(self.system, rgb, size, network=None if exact else self.fast).float()

    def expected(self, size: tuple[int, int], bit_depth: int = 8, alpha: bool = False) -> int:
        """Bytes that an image of `size` output pixels needs on top of the weights."""
        return expected_peak(self.system, size, bit_depth, alpha)

    def check_memory(self, source: object, size: tuple[int, int], needed: int) -> int:
        """Bytes expected at the peak where `needed` ones are added; MemoryError where they exceed the limit."""
        expected = self.base + needed
        if expected > self.memory_limit:
            raise MemoryError(
                f"{source} to {size[1]} x {size[0]} px needs about {expected / GIB:.2f} GiB, more than the memory "
                f"limit of {self.memory_limit / GIB:.2f} GiB; raise --memory-limit or lower SCALE="
            )
        return expected


def build_upscaler(
    checkpoint: str,
    overrides: list[str],
    scale: str,
    memory_limit: str,
    max_pixels: int,
    acceleration: Acceleration | None = None,
) -> Upscaler:
    """The system of a checkpoint on its device; ValueError for a system that does not upscale and for wrong values."""
    factor, limit = _number("SCALE", scale, 1), _number("--memory-limit", memory_limit, 0)
    # the network that measured the training is not needed, and need not be on this machine
    system, options = load_system(checkpoint, ["perceptual.backbone=", "perceptual.linear=", *overrides])
    if not isinstance(system, OneStepFlux | RealTimeCnn):
        raise ValueError(f"CKPT={checkpoint} is of system={options.system}, expected one_step_flux or real_time_cnn")
    if options.trainer.threads:
        torch.set_num_threads(options.trainer.threads)
    device = pick_device(options)
    _prepare(system, options, factor)
    system = system.to(device)
    fast = _accelerated(system, device, acceleration or Acceleration())
    bytes_ = int(limit * GIB) if limit else available_memory(device)
    return Upscaler(system, options, factor or system.scale, bytes_, resident_memory(device), max_pixels, fast)


def _prepare(system: OneStepFlux | RealTimeCnn, options: Experiment, factor: float) -> None:
    """Fold what folds, and say what to think of another scale than the trained one."""
    if isinstance(system, RealTimeCnn):
        if factor and factor != system.scale:
            raise ValueError(f"SCALE={factor:g}: this network upscales by {system.scale} alone; leave SCALE= out")
        system.deploy()
        return
    if not has_bf16_base(options):  # a bf16 weight would round the adapters' share off
        fold_lora(system.codec)
        fold_lora(system.transformer)
    if factor and factor != system.scale:
        print(
            f"warning: SCALE={factor:g} is not the {system.scale} this student was trained at: expect a worse image",
            file=sys.stderr,
        )


def _accelerated(
    system: OneStepFlux | RealTimeCnn, device: torch.device, wanted: Acceleration
) -> Callable[[Tensor], Tensor] | None:
    """The system's network made faster, or None where it is used as it is."""
    flags = {"--half": wanted.half, "--compile": wanted.compiled, "--cuda-graph": wanted.cuda_graph}
    given = [flag for flag, on in flags.items() if on]
    if given and not (isinstance(system, RealTimeCnn) and isinstance(system.network, FoldedRT4KSR)):
        raise ValueError(f"{given[0]} is for RT4KSR (system=real_time_cnn); leave it out for this checkpoint")
    if (wanted.half or wanted.cuda_graph) and device.type != "cuda":
        raise ValueError(f"{given[0] if wanted.half else '--cuda-graph'} needs a GPU, the device is {device.type}")
    if not isinstance(system, RealTimeCnn) or not isinstance(system.network, FoldedRT4KSR):
        return None
    if not given and device.type != "cuda":
        return None
    return accelerate(system.network, device, wanted.half, wanted.compiled, wanted.cuda_graph)


def _number(name: str, text: str, smallest: float) -> float:
    """A number from `smallest` on, or 0 for nothing given."""
    if not text:
        return 0.0
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not smallest <= value < float("inf") or value == 0:
        raise ValueError(f"{name}={text}: expected a number {'from 1 on' if smallest else 'above 0'}")
    return value
