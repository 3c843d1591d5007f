"""What upscale and evaluate share: the device, its precision, memory before and after, and the machine's name."""

import os
import platform
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.checks import has_bf16_base
from experiments.schema import Experiment
from experiments.schema import RealTimeCnn as RealTimeCnnOptions
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.f16_vae import is_f16
from lightning_modules.networks.flux import HEAD_CHANNELS
from lightning_modules.networks.rt4ksr import UNSHUFFLE
from lightning_modules.networks.small_codec import PATCH, SmallF16Codec
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.real_time_cnn import RealTimeCnn
from lightning_modules.super_resolution import resize_up

GIB = 2**30
STRIP_ROWS = 16
"""Latent rows per strip of the codec's finest stages: below 16 the halos cost time, above it the strips cost memory."""
SMALLEST_LR = 4
"""Pixels per side below which a photograph is padded for real_time_cnn: its blur mirrors two of them."""

# Bytes per output pixel that are alive at once, fitted to benchmarks/upscale_4k.py: fp32 RGB is 12 of them.
_ENCODE_BYTES = 36
_WRITE_BYTES = {8: 44, 16: 64}
# Bytes per pixel of a strip at the codec's stride 4, and per channel of a token inside a block of the transformer.
_STRIP_BYTES = 60
_TOKEN_BYTES = 40
# Bytes per value of a feature map of real_time_cnn: eight maps in fp32. And per pixel of sr, in its two forms.
_CNN_MAP_BYTES = 32
_CNN_SR_BYTES = 24
# Bytes per pixel of the wavelet colour fix: eight fp32 images.
_COLOR_FIX_BYTES = 96
# Bytes per pixel and channel of the finest stage of an AutoencoderKL in one piece: 25 to 32 seen at 512 to 1024 px.
_STAGE_BYTES = 32


def pick_device(options: Experiment) -> torch.device:
    """The device that trainer.accelerator names; `auto` takes a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() and options.trainer.accelerator != "cpu" else "cpu")


def autocast(options: Experiment, device: torch.device) -> torch.autocast:
    """bf16 where trainer.precision allows it and the device computes in it; else a context that does nothing.

    real_time_cnn stays in fp32: what it puts out is the image itself, which bf16 holds to 8 bits at most.
    """
    wanted = options.trainer.precision != "32-true" and not isinstance(options, RealTimeCnnOptions)
    enabled = has_bf16_base(options) or (wanted and has_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is done in hardware; an emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def super_resolve(
    system: OneStepFlux | RealTimeCnn, lr: Tensor, size: tuple[int, int], strip_rows: int = STRIP_ROWS
) -> Tensor:
    """lr (3,h,w) in [0,1] restored at `size` pixels in one pass: (3,H,W) float32 on the CPU, unclamped."""
    return restore_on_device(system, lr, size, strip_rows).to("cpu", torch.float32)


def restore_on_device(
    system: OneStepFlux | RealTimeCnn,
    lr: Tensor,
    size: tuple[int, int],
    strip_rows: int = STRIP_ROWS,
    network: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """The same on the system's device, in its precision; real_time_cnn has no strips and no size but its scale's.

    network: what stands for real_time_cnn's own, such as its accelerated form.
    """
    image = lr[None].to(system.device)
    if isinstance(system, OneStepFlux):
        return system.restore(resize_up(image, size), strip_rows)[0]
    sides = lr.shape[-2:]
    bottom, right = (max(SMALLEST_LR, side + side % UNSHUFFLE) - side for side in sides)
    image = F.pad(image, (0, right, 0, bottom), mode="replicate")
    return (network or system.network)(image)[0, :, : size[0], : size[1]]


def expected_peak(
    system: OneStepFlux | RealTimeCnn, size: tuple[int, int], bit_depth: int = 8, alpha: bool = False
) -> int:
    """Bytes that `size` output pixels need on top of what the process holds already: an estimate, linear in the pixels.

    The largest of the phases, which follow one another: the network, the colour fix where there is one, and writing
    (the image as floats and as integers).
    """
    write = _WRITE_BYTES[bit_depth] * size[0] * size[1] * (4 if alpha else 3) // 3
    if isinstance(system, RealTimeCnn):
        return max(_cnn_bytes(system, size), write)
    pitch = system.token_pitch
    height, width = (-(-side // pitch) * pitch for side in size)
    fix = _COLOR_FIX_BYTES * height * width if system.color_fix != "none" else 0
    return max(_flux_bytes(system, height, width), fix, write)


def _cnn_bytes(system: RealTimeCnn, size: tuple[int, int]) -> int:
    """lr, feature maps, and sr before and after its pixels are shuffled: at most, as bands of rows take less."""
    lr_pixels = size[0] * size[1] // system.scale**2
    head = next(module for module in system.network.modules() if isinstance(module, nn.Conv2d))
    values = head.out_channels if head.in_channels == 3 else head.out_channels // UNSHUFFLE**2  # per lr pixel
    return (12 + _CNN_MAP_BYTES * values) * lr_pixels + _CNN_SR_BYTES * size[0] * size[1]


def _flux_bytes(student: OneStepFlux, height: int, width: int) -> int:
    """The encoder (the image three times over, one strip), or the transformer's tokens; SDPA materialises no scores."""
    channels = student.transformer.config["num_attention_heads"] * HEAD_CHANNELS
    pixels = height * width
    encode = _ENCODE_BYTES * pixels + _codec_bytes(student.codec, height, width)
    return max(encode, 12 * pixels + _TOKEN_BYTES * channels * pixels // student.token_pitch**2)


def _codec_bytes(codec: Codec, height: int, width: int) -> int:
    """What the codec's activations take: of the small one a strip's, of the others the whole finest stage's."""
    if isinstance(codec.model, SmallF16Codec):
        return _STRIP_BYTES * min(height, PATCH * (STRIP_ROWS + 2 * codec.model.encoder.fine_halo)) * width
    config = codec.model.config
    finest = config.get("block_out_channels") or config["decoder_block_out_channels"]
    # the last decoder stage takes the channels of the one before; F16 runs it at half of the size
    shrink = 4 if is_f16(codec.model) else 1
    return _STAGE_BYTES * max(finest[:2]) * height * width // shrink


def resident_memory(device: torch.device) -> int:
    """Bytes that the process holds now: allocated on the GPU, or resident (0 where the system does not tell)."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if statm.is_file() else 0


def peak_memory(device: torch.device) -> int:
    """Largest number of bytes that the process has held so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def available_memory(device: torch.device) -> int:
    """Bytes that the process could hold in all; a very large number where the system does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    meminfo = Path("/proc/meminfo")
    lines = meminfo.read_text().splitlines() if meminfo.is_file() else []
    free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return free[0] + resident_memory(device) if free else 2**62


def machine_name(device: torch.device) -> str:
    """Name of the GPU, or of the CPU with the threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"
