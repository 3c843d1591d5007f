"""Adversarial losses over the logit maps of a multi-scale discriminator: hinge, and BCE with a soft real label."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

KINDS = ("hinge", "bce")


def check_kind(kind: str, real_label: float) -> None:
    """ValueError unless `kind` is one of `KINDS` and `real_label` lies in (0.5, 1]."""
    if kind not in KINDS:
        raise ValueError(f"found adversary.kind={kind!r}; expected one of {', '.join(KINDS)}")
    if not 0.5 < real_label <= 1:
        raise ValueError(f"found adversary.real_label={real_label}; expected a value above 0.5, at most 1")


def generator_loss(fake: Sequence[Tensor], kind: str, real_label: float = 1.0) -> Tensor:
    """Loss of the generator from its images' logits: scalar.

    fake: one map of logits (B, 1, h, w) per scale; a scale counts the same whatever its size. "hinge": -mean logit (Lim
    and Ye 2017). "bce": cross-entropy with the label of real images (Goodfellow et al. 2014), soft as in OMGSR.
    """
    if kind == "hinge":
        return _mean_over_scales(fake, lambda logits: -logits)
    return _mean_over_scales(fake, lambda logits: F.softplus(logits) - real_label * logits)


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor], kind: str, real_label: float = 1.0) -> Tensor:
    """Loss of the discriminator, sum of the means over real and fake logits: scalar >= 0.

    Maps as in `generator_loss`. "hinge": relu(1 - real) + relu(1 + fake). "bce": cross-entropy with the labels
    `real_label` and 0; a label below 1 keeps the discriminator from growing ever surer (Salimans et al. 2016).
    """
    if kind == "hinge":
        on_real = _mean_over_scales(real, lambda logits: F.relu(1 - logits))
        return on_real + _mean_over_scales(fake, lambda logits: F.relu(1 + logits))
    on_real = _mean_over_scales(real, lambda logits: F.softplus(logits) - real_label * logits)
    return on_real + _mean_over_scales(fake, F.softplus)


def _mean_over_scales(maps: Sequence[Tensor], term: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([term(logits.float()).mean() for logits in maps]).mean()


def gradient_at(loss: Tensor, layer: Tensor) -> Tensor:
    """Gradient of a scalar loss at one parameter, detached; the graph is kept for the backward pass to come."""
    (gradient,) = torch.autograd.grad(loss, layer, retain_graph=True)
    return gradient.detach()


def adaptive_weight(reconstruction: Tensor, adversarial: Tensor, limit: float = 1e4) -> Tensor:
    """Ratio of gradient norms by which the adversarial term is scaled to the others: scalar in [0, limit].

    reconstruction, adversarial: gradients of the two losses at the generator's last layer (see `gradient_at`); with
    several ranks, of the mean losses over all of them. VQGAN (Esser et al. 2021), eq. 7: norm / (norm + 1e-4), clamped.
    """
    ratio = reconstruction.float().norm() / (adversarial.float().norm() + 1e-4)
    return ratio.clamp(0, limit).detach()
