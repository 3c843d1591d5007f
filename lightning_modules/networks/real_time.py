"""A folded network made ready for its device: precision, memory layout, compilation and CUDA graphs."""

import copy
import os
import shutil
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from lightning_modules.networks.rt4ksr_folded import FoldedRT4KSR

Upscale = Callable[[Tensor], Tensor]
"""lr (N,3,H,W), H and W even, of any precision and on any device, to sr (N,3,sH,sW), unclamped."""

MOST_GRAPHS = 4
"""Sizes whose CUDA graphs are kept; each holds the memory of all features of its size."""

_WARM_UPS = 3
"""Calls before a CUDA graph is recorded: they compile, and choose the fastest convolutions."""


def accelerate(
    network: FoldedRT4KSR,
    device: torch.device | str,
    half: bool = False,
    compiled: bool = False,
    cuda_graph: bool = False,
) -> Upscale:
    """The function of a folded network, without gradients and as fast as the device allows; `network` stays as it is.

    sr is on the device and in the precision of the computation. half: fp16, on GPUs only. compiled: by torch.compile,
    once for each size of lr, which takes a minute; worth it on GPUs, where it joins what lies between convolutions. On
    a CPU the plain call is faster. cuda_graph: record the kernels for each size of lr and start them all at once.

    On a GPU this sets torch.backends.cudnn.benchmark for the whole process: the first call for a size tries out
    convolutions. ValueError where the device cannot do what is asked.
    """
    device = torch.device(device)
    _check(device, half, compiled, cuda_graph)
    dtype = torch.float16 if half else torch.float32
    ready = copy.deepcopy(network).to(device, dtype)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True
        # Tensor cores read channels last, and LayerNorm then is one kernel that reads and writes each value once:
        # 25 + 25 MB at 1080p in fp16, a third of what a block moves in eager mode. In NCHW the features are copied.
        ready = ready.to(memory_format=torch.channels_last)
    run = _compile(ready, device) if compiled else ready
    upscale = _Graphs(run, device) if cuda_graph else run

    @torch.no_grad()
    def accelerated(lr: Tensor) -> Tensor:
        return upscale(lr.to(device, dtype))

    return accelerated


def can_compile(device: torch.device) -> bool:
    """Whether torch.compile finds what it needs: Triton for a GPU, a C++ compiler for a CPU."""
    if device.type == "cuda":
        return find_spec("triton") is not None
    return any(shutil.which(name) for name in (os.environ.get("CXX", "g++"), "clang++"))


def _check(device: torch.device, half: bool, compiled: bool, cuda_graph: bool) -> None:
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"found device={device}, but no CUDA device; expected device=cpu")
    if half and device.type == "cpu":
        raise ValueError(
            "found half=True with device=cpu, which computes fp16 more slowly; expected a GPU or half=False"
        )
    if cuda_graph and device.type != "cuda":
        raise ValueError(f"found cuda_graph=True with device={device}; expected device=cuda or cuda_graph=False")
    if compiled and not can_compile(device):
        needed = "Triton" if device.type == "cuda" else "a C++ compiler (g++, or CXX=)"
        raise ValueError(f"found compiled=True without {needed}; expected it to be installed, or compiled=False")


def _compile(network: FoldedRT4KSR, device: torch.device) -> Upscale:
    # on a CPU only constant weights are packed, and joined with the activation after them
    if device.type == "cpu":
        return torch.compile(network, fullgraph=True, dynamic=False, options={"freezing": True})
    return torch.compile(network, fullgraph=True, dynamic=False)


class _Graphs:
    """A function of one tensor on a GPU, recorded as a CUDA graph for each size of it."""

    def __init__(self, run: Upscale, device: torch.device) -> None:
        self.run, self.device = run, device
        self.recorded: dict[torch.Size, tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}

    def __call__(self, lr: Tensor) -> Tensor:
        if lr.shape not in self.recorded:
            if len(self.recorded) == MOST_GRAPHS:
                self.recorded.pop(next(iter(self.recorded)))
            self.recorded[lr.shape] = self._record(lr)
        graph, given, made = self.recorded[lr.shape]
        given.copy_(lr)
        graph.replay()
        # the next replay writes to the same place
        return made.clone()

    def _record(self, lr: Tensor) -> tuple[torch.cuda.CUDAGraph, Tensor, Tensor]:
        """The graph, what it reads and what it writes."""
        with torch.cuda.device(self.device):
            given = lr.clone()
            # recording takes place on a stream of its own, and so must what is chosen at the first calls
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(_WARM_UPS):
                    self.run(given)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                made = self.run(given)
        return graph, given, made
