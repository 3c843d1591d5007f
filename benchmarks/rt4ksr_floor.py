"""The least time that a device needs for a folded network: the larger of its arithmetic's and its memory traffic's."""

import copy
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.networks.rt4ksr_folded import FoldedRT4KSR


@dataclass(frozen=True)
class Rates:
    """What a device does in a second."""

    flops: float
    bytes: float
    source: str


HALF_RATES = {
    "NVIDIA H200": Rates(989e12, 4.8e12, "NVIDIA H200 data sheet"),
    "NVIDIA H100 80GB HBM3": Rates(989e12, 3.35e12, "NVIDIA H100 data sheet"),
    "NVIDIA A100-SXM4-80GB": Rates(312e12, 2.0e12, "NVIDIA A100 data sheet"),
    "NVIDIA A100-SXM4-40GB": Rates(312e12, 1.555e12, "NVIDIA A100 data sheet"),
    "NVIDIA GeForce RTX 3090": Rates(71e12, 0.936e12, "NVIDIA GA102 whitepaper"),
    "NVIDIA GeForce RTX 4090": Rates(165e12, 1.008e12, "NVIDIA Ada whitepaper"),
}
"""Dense fp16 with fp32 sums, and memory, by the name that CUDA gives."""

_TRIES = 5


@dataclass(frozen=True)
class Work:
    """Floating-point operations of the convolutions, and bytes when every layer reads and writes its values once."""

    flops: int
    bytes: int

    def floor(self, rates: Rates) -> float:
        """Milliseconds at these rates."""
        return 1e3 * max(self.flops / rates.flops, self.bytes / rates.bytes)


def work(network: FoldedRT4KSR, height: int, width: int, value_bytes: int) -> Work:
    """Of one image of height x width px of lr: counted at the layers as they run, on tensors without values.

    A convolution takes what lies around it along, such as norm, activation, skip and shuffle. Not counted are weights
    and the blur of the HF branch: 0.1 MB, and less than 1 % of the arithmetic.
    """
    flops = values = 0

    def count(layer: nn.Conv2d, inputs: tuple[Tensor, ...], result: Tensor) -> None:
        nonlocal flops, values
        flops += 2 * result.numel() * layer.weight[0].numel()
        values += inputs[0].numel() + result.numel()

    ghost = copy.deepcopy(network).to("meta")
    for layer in ghost.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    ghost.whole(torch.empty(1, 3, height, width, device="meta"))
    if ghost.hf_branch is not None:
        # the sum with the details reads the body's features once more
        values += ghost.hf_branch.out_channels * height * width // 4
    return Work(flops, values * value_bytes)


def rates_of(device: torch.device, dtype: torch.dtype) -> Rates:
    """Published ones of a known GPU in fp16, otherwise those of a matrix product and of a copy, measured now."""
    if device.type == "cuda" and dtype == torch.float16:
        name = torch.cuda.get_device_name(device)
        if name in HALF_RATES:
            return HALF_RATES[name]
    return measured_rates(device, dtype)


def measured_rates(device: torch.device, dtype: torch.dtype) -> Rates:
    """The best of a few matrix products and of a few copies."""
    side, length = (8192, 2**28) if device.type == "cuda" else (1024, 2**25)
    left, right = torch.rand(2, side, side, device=device, dtype=dtype)
    source = torch.rand(length, device=device, dtype=dtype)
    target = torch.empty_like(source)

    def seconds(call: str) -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        _ = left @ right if call == "product" else target.copy_(source)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    product, moved = (min(seconds(call) for _ in range(_TRIES)) for call in ("product", "copy"))
    traffic = 2 * source.numel() * source.element_size()
    return Rates(2 * side**3 / product, traffic / moved, "a matrix product and a copy, measured")
