"""Every metric of this folder, on two processes with unequal shares, equals one process that saw all images."""

from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch import multiprocessing as mp
from torchmetrics import Metric

from losses.fidelity import PsnrY, SsimY
from losses.perceptual import PerceptualDistance, RandomFeatureDistance
from losses.periodicity import CombRatio, Periodicity
from losses.weighted_sum import NonFiniteLossError, WeightedSum

# five images: the first process gets three in two updates, the second the other two
SHARES = ((slice(0, 1), slice(1, 3)), (slice(3, 5),))


def metrics() -> dict[str, Metric]:
    distance = RandomFeatureDistance(torch.Generator().manual_seed(0), channels=(4, 8))
    return {
        "psnr": PsnrY(crop_border=2),
        "ssim": SsimY(),
        "periodicity": Periodicity(period=8, lags=2),
        "comb": CombRatio(16),
        "perceptual": PerceptualDistance(distance),
    }


def images() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(5, 3, 64, 64, generator=generator)
    noise = 0.1 * torch.randn(hr.shape, generator=generator) * torch.arange(1, 6).view(5, 1, 1, 1)
    tile = 0.2 * torch.randn(5, 3, 8, 8, generator=generator)
    return hr + noise + tile.tile(1, 1, 8, 8), hr


def measured(shares: tuple[slice, ...]) -> dict[str, float]:
    sr, hr = images()
    values = {}
    for name, metric in metrics().items():
        for share in shares:
            metric.update(sr[share], hr[share])
        values[name] = metric.compute().item()
    return values


def run_rank(rank: int, folder: Path) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=120)
    )
    try:
        with pytest.raises(NonFiniteLossError, match=f"rank {rank} at step 3"):
            WeightedSum({"infinite": (1.0, _Infinite())})(torch.zeros(1), torch.zeros(1), step=3)
        torch.save(measured(SHARES[rank]), folder / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def second_process(_: int, folder: Path) -> None:
    torch.set_num_threads(1)
    run_rank(1, folder)


class _Infinite(torch.nn.Module):
    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return (sr - hr + 1).sum() / 0


def test_two_processes_equal_one(tmp_path: Path) -> None:
    # this process is rank 0: importing torch once less halves the time
    other = mp.spawn(second_process, args=(tmp_path,), nprocs=1, join=False)
    run_rank(0, tmp_path)
    other.join()
    results = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    single = measured(SHARES[0] + SHARES[1])
    assert len(set(single.values())) == len(single)
    for name, value in single.items():
        for rank in (0, 1):
            torch.testing.assert_close(results[rank][name], value, rtol=1e-5, atol=1e-7)
