"""Find the noise level at which the student is entered: `python -m experiments.sigma EXP` (make sigma EXP= SET=).

OMGSR (arXiv 2508.08227) enters a pretrained flow where a noised hr latent is as far from hr's as lr's latent is, and
computes that level beforehand from training crops through the frozen encoder; so does this command.
"""

import argparse
import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.sr4k import SR4KDataModule
from experiments.build import build_data
from experiments.checkpoints import NO_FILES, NO_LOSSES
from experiments.command_line import quiet, user_errors
from experiments.inference import pick_device
from experiments.options import load_options, system_of
from experiments.schema import OneStepFlux
from lightning_modules.networks.codec import load_codec
from lightning_modules.super_resolution import resize_up

FLUX_MU = 1.15
"""Shift of Flux's schedule at 4096 tokens, sigma = e^mu / (e^mu + 1 / u - 1) for u from 0 to 1."""
FLUX_LAST = 999
"""Index of sigma = 1 in the schedule of 1000 levels by which OMGSR names its noise level; 0 is sigma = 0."""


def latent_powers(z_l: Tensor, z_h: Tensor) -> tuple[Tensor, Tensor]:
    """Per image, mean square of hr's latent and of the difference of lr's from it: two (B,), of latents (B,C,h,w)."""
    z_l, z_h = z_l.double(), z_h.double()
    return z_h.square().flatten(1).mean(1), (z_l - z_h).square().flatten(1).mean(1)


def match_sigma(signal: Tensor, error: Tensor) -> Tensor:
    """Noise level at which a noised hr latent has the signal-to-noise ratio of lr's, elementwise.

    signal: E z_H^2. error: E (z_L - z_H)^2. OMGSR takes z_H as the signal of either latent and the rest as its noise:
    z_L - z_H, and of z_sigma = (1 - sigma) z_H + sigma eps the part sigma (eps - z_H), whose power is
    sigma^2 (1 + E z_H^2). They are equal at sigma = sqrt(error / (1 + signal)); OMGSR's script searches a schedule of
    1000 levels with one draw of eps, the closed form is ours. Above 1 where lr is further from hr than noise is.
    """
    return (error / (1 + signal)).sqrt()


def flux_index(sigma: float) -> int:
    """Index 0-999 of the level of Flux's shifted schedule next to sigma; OMGSR-F's is 244, sigma 0.505.

    >>> flux_index(0.505), flux_index(0.0), flux_index(1.0)
    (244, 0, 999)
    """
    return round(FLUX_LAST * sigma / (sigma + math.exp(FLUX_MU) * (1 - sigma)))


def measure_powers(encode: Callable[[Tensor], Tensor], pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """`latent_powers` over batches of (lr, hr) in [0,1], lr up-sampled as the student sees it; fp32, no gradient."""
    found = []
    with torch.no_grad():
        for lr, hr in pairs:
            size = (hr.shape[-2], hr.shape[-1])
            found.append(latent_powers(encode(resize_up(lr, size)).cpu(), encode(hr).cpu()))
    signal, error = (torch.cat(parts) for parts in zip(*found, strict=True))
    return signal, error


def training_pairs(data: SR4KDataModule, crops: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """The run's first training crops with the degradation they get there, in batches of data.batch_size."""
    training = data.training_crops()
    for first in tqdm(range(0, crops, data.batch_size), unit="batch", disable=None):
        items = [training[number] for number in range(first, min(first + data.batch_size, crops))]
        batch = {name: torch.stack([item[name] for item in items]) for name in ("hr", "key")}
        batch = data.on_after_batch_transfer({**batch, "hr": batch["hr"].to(device)}, 0)
        yield batch["lr"], batch["hr"]


def find_sigma(options: OneStepFlux, crops: int) -> str:
    """The report for an experiment's data and codec; ValueError or FileNotFoundError for what it cannot be made of."""
    if crops < 1:
        raise ValueError(f"--crops={crops}: expected at least 1")
    if options.trainer.threads:
        torch.set_num_threads(options.trainer.threads)
    device = pick_device(options)
    codec = load_codec(options.codec.path, options.codec.layout).to(device).eval()
    signal, error = measure_powers(codec.encode, training_pairs(build_data(options), crops, device))
    return report(signal, error + options.student.noise**2)


def report(signal: Tensor, error: Tensor) -> str:
    """Sigma of the means over all crops, its spread from crop to crop, its place in Flux's schedule, and SET=.

    ValueError where no level fits.
    """
    sigma = float(match_sigma(signal.mean(), error.mean()))
    if not sigma < 1:
        raise ValueError(
            f"lr's latents are further from hr's than noise is (mean square {error.mean():.3g}, noise "
            f"{1 + signal.mean():.3g}), so no noise level fits: choose a milder data.degradation, a smaller data.scale "
            "or another codec.path"
        )
    low, middle, high = torch.quantile(match_sigma(signal, error), torch.tensor([0.1, 0.5, 0.9]).double()).tolist()
    lines = [
        f"crops       {len(signal)}",
        f"latents     power {signal.mean():.4f}, error of lr {error.mean():.4f}",
        f"sigma       {sigma:.3f}; crop by crop {low:.3f} (10 %), {middle:.3f} (50 %), {high:.3f} (90 %)",
        f"schedule    index {flux_index(sigma)} of {FLUX_LAST}, mu {FLUX_MU}",
        "",
        f'SET="student.sigma={sigma:.3f}"',
    ]
    return "\n".join(lines)


NOT_NEEDED = (
    *NO_LOSSES,
    *NO_FILES,
    "perceptual.backbone=",
    "perceptual.linear=",
    "transformer.path=",
    "transformer.prompt=",
    "transformer.dtype=float32",
    "trainer.accelerator=auto",
)
"""Overrides under which the options load where only the data and the codec are at hand."""


def main() -> None:
    parser = argparse.ArgumentParser(description="Find a student's noise level from its data and codec.")
    parser.add_argument("experiment", help="name below experiments/ or a YAML file (EXP=)")
    parser.add_argument("overrides", nargs="*", default=[], help="key=value ... (SET=)")
    parser.add_argument("--crops", type=int, default=64, help="training crops to look at")
    parser.add_argument("--tiny", action="store_true", help="apply the experiment's own tiny overrides (TINY=1)")
    given = parser.parse_intermixed_args()
    quiet()
    with user_errors():
        # only a student knows all of them, and others shall hear what is wrong in the next sentence
        spared = NOT_NEEDED if system_of(given.experiment) == "one_step_flux" else ()
        options = load_options(given.experiment, [*spared, *given.overrides], given.tiny)
        if not isinstance(options, OneStepFlux):
            raise ValueError(
                f"EXP={given.experiment} is of system={options.system}, expected one_step_flux, whose student.sigma "
                "this finds"
            )
        print(find_sigma(options, given.crops))


if __name__ == "__main__":
    main()
