"""OMGSR's latent term: the lr image's latent must look like the noised hr latent of the step it enters at."""

from torch import Tensor
from torch.nn import functional as F


def latent_loss(lr_latent: Tensor, hr_latent: Tensor, sigma: float, noise: Tensor) -> Tensor:
    """LRR = mean (z_L - ((1 - sigma) z_H + sigma eps))^2 in float32: scalar (OMGSR, Wu et al. 2025).

    lr_latent z_L: (B,C,h,w) of the trained encoder. hr_latent z_H: of the frozen one; no gradient flows to it. sigma:
    noise level of the one step in [0,1], flow schedule. noise eps: standard normal. ValueError for unequal shapes.
    """
    if not lr_latent.shape == hr_latent.shape == noise.shape:
        raise ValueError(
            f"found latents of shape {tuple(lr_latent.shape)} and {tuple(hr_latent.shape)} and noise of "
            f"{tuple(noise.shape)}; expected three equal shapes"
        )
    target = (1 - sigma) * hr_latent.detach().float() + sigma * noise.float()
    return F.mse_loss(lr_latent.float(), target)
