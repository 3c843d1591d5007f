"""What upscale and evaluate share: the device, its precision, memory before and after, and the machine's name."""

import os
import platform
import resource
import sys
from pathlib import Path

import torch
from torch import Tensor

from experiments.checks import has_bf16_base
from experiments.schema import Experiment
from lightning_modules.networks.codec import Codec
from lightning_modules.networks.f16_vae import is_f16
from lightning_modules.networks.flux import HEAD_CHANNELS
from lightning_modules.networks.small_codec import PATCH, SmallF16Codec
from lightning_modules.one_step_flux import OneStepFlux
from lightning_modules.super_resolution import resize_up

GIB = 2**30
STRIP_ROWS = 16
"""Latent rows per strip of the codec's finest stages: below 16 the halos cost time, above it the strips cost memory."""

# Bytes per output pixel that are alive at once, fitted to benchmarks/upscale_4k.py: fp32 RGB is 12 of them.
_ENCODE_BYTES = 36
_WRITE_BYTES = {8: 44, 16: 64}
# Bytes per pixel of a strip at the codec's stride 4, and per channel of a token inside a block of the transformer.
_STRIP_BYTES = 60
_TOKEN_BYTES = 40
# Bytes per pixel of the wavelet colour fix: eight fp32 images.
_COLOR_FIX_BYTES = 96
# Bytes per pixel and channel of the finest stage of an AutoencoderKL in one piece: 25 to 32 seen at 512 to 1024 px.
_STAGE_BYTES = 32


def pick_device(options: Experiment) -> torch.device:
    """The device that trainer.accelerator names; `auto` takes a GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() and options.trainer.accelerator != "cpu" else "cpu")


def autocast(options: Experiment, device: torch.device) -> torch.autocast:
    """bf16 where trainer.precision allows it and the device computes in it; else a context that does nothing."""
    wanted = options.trainer.precision != "32-true"
    enabled = has_bf16_base(options) or (wanted and has_bf16(device))
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def has_bf16(device: torch.device) -> bool:
    """Whether bf16 is done in hardware; an emulated bf16 is slower than fp32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    checks = (getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"))
    return any(check is not None and check() for check in checks)


def super_resolve(student: OneStepFlux, lr: Tensor, size: tuple[int, int], strip_rows: int = STRIP_ROWS) -> Tensor:
    """lr (3,h,w) in [0,1] restored at `size` pixels in one pass: (3,H,W) float32 on the CPU, unclamped."""
    image = student.restore(resize_up(lr[None].to(student.device), size), strip_rows)
    return image[0].to("cpu", torch.float32)


def expected_peak(student: OneStepFlux, size: tuple[int, int], bit_depth: int = 8, alpha: bool = False) -> int:
    """Bytes that `size` output pixels need on top of what the process holds already: an estimate, linear in the pixels.

    The largest of the phases, which follow one another: the encoder (the image three times over, one strip), the
    transformer (its tokens; SDPA materialises no scores), the colour fix where there is one, and writing (the image as
    floats and as integers).
    """
    pitch = student.token_pitch
    height, width = (-(-side // pitch) * pitch for side in size)
    channels = student.transformer.config["num_attention_heads"] * HEAD_CHANNELS
    pixels = height * width
    encode = _ENCODE_BYTES * pixels + _codec_bytes(student.codec, height, width)
    fix = _COLOR_FIX_BYTES * pixels if student.color_fix != "none" else 0
    transform = 12 * pixels + _TOKEN_BYTES * channels * pixels // pitch**2
    write = _WRITE_BYTES[bit_depth] * pixels * (4 if alpha else 3) // 3
    return max(encode, transform, fix, write)


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
