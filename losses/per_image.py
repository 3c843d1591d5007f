"""What all terms share that give one value per image."""

from abc import abstractmethod

from torch import Tensor, nn


class PerImageLoss(nn.Module):
    """A loss term whose scalar is the mean of `per_image`, so that a metric can use the same quantity."""

    @abstractmethod
    def per_image(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [0, 1] -> (B,)."""

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [0, 1] -> scalar."""
        return self.per_image(sr, hr).mean()
