"""The adversarial side of a training: discriminator, loss, augmentation, and the weights they are used with."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lightning_modules.networks.diff_augment import diff_augment
from lightning_modules.networks.discriminator import Discriminator
from losses.adversarial import check_kind, discriminator_loss, generator_loss


class Adversary(nn.Module):
    """A discriminator with its loss; a system that has one trains in two phases.

    kind: "hinge" or "bce". real_label: label of real images in BCE, 0.8 with OMGSR; hinge has none. augment:
    DiffAugment of all that the discriminator sees. weight: of the generator's term in its total. adaptive: the term is
    scaled further by `losses.adversarial.adaptive_weight`. learning_rate_factor: of the heads, to the generator's rate.
    Its parameters are the heads'; its state dict holds them and their spectral norms' vectors, no backbone.
    """

    def __init__(
        self,
        discriminator: Discriminator,
        kind: str = "bce",
        real_label: float = 0.8,
        augment: bool = True,
        weight: float = 0.5,
        adaptive: bool = False,
        learning_rate_factor: float = 1.0,
    ) -> None:
        super().__init__()
        check_kind(kind, real_label)
        self.discriminator = discriminator
        self.kind = kind
        self.real_label = real_label
        self.augment = augment
        self.weight = weight
        self.adaptive = adaptive
        self.learning_rate_factor = learning_rate_factor

    def generator_loss(self, sr: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """How little sr (B,3,H,W) in [0,1] passes for real, unweighted: scalar; the gradient flows to sr.

        The heads need no gradient here: switch their requires_grad off around forward and backward.
        generators: one per sample, on the CPU, for the augmentation; None is allowed only where `augment` is off.
        """
        return generator_loss(self.discriminator(self._augmented(sr, generators)), self.kind, self.real_label)

    def discriminator_loss(self, sr: Tensor, hr: Tensor, generators: Sequence[torch.Generator] | None = None) -> Tensor:
        """How badly the heads tell sr from hr, two (B,3,H,W) in [0,1]: scalar; sr is detached here.

        One forward of both halves, so that the spectral norms take one step of their power iteration. A sample's
        generator serves its sr first and then its hr, so the two are augmented differently, as published.
        """
        images = torch.cat([self._augmented(sr.detach(), generators), self._augmented(hr, generators)])
        logits = self.discriminator(images)
        fake, real = [level[: len(sr)] for level in logits], [level[len(sr) :] for level in logits]
        return discriminator_loss(real, fake, self.kind, self.real_label)

    def _augmented(self, images: Tensor, generators: Sequence[torch.Generator] | None) -> Tensor:
        if not self.augment:
            return images
        if generators is None:
            raise ValueError("found no generators for an adversary that augments; expected one per sample")
        return diff_augment(images, generators)
