"""A discriminator that judges a frozen backbone's features at several scales, as OMGSR's does with DINO."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from losses.backbone import FrozenBackbone
from losses.precision import full_precision


class Discriminator(nn.Module):
    """One small head per stage of the backbone; only the heads are trained and saved.

    backbone: OMGSR takes the blocks 2, 5 and 8 of a DINOv3 ViT, or the first three stages of its ConvNeXt. channels:
    width of the heads. A head: features brought to zero mean and unit variance per image (ours), then two 3 x 3 and
    one 1 x 1 convolutions with spectral norm (Miyato et al. 2018) and LeakyReLU 0.2 between them.
    """

    def __init__(self, backbone: FrozenBackbone, channels: int = 64) -> None:
        super().__init__()
        if channels < 1:
            raise ValueError(f"found adversary.channels={channels}; expected 1 or more")
        self.backbone = backbone
        self.heads = nn.ModuleList([_head(width, channels) for width in backbone.channels])

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B,3,H,W) in [0,1] -> per stage logits (B,1,h,w), float32: above 0 for real.

        In training mode each call takes one power-iteration step of the spectral norms. It depends on the weights
        alone, not on the images, so the ranks stay equal as long as they make the same number of calls.
        """
        features = self.backbone(images)
        # the power iteration does not bear half precision
        with full_precision(images):
            return [head(level.float()) for head, level in zip(self.heads, features, strict=True)]


def _head(width: int, channels: int) -> nn.Sequential:
    # No strides: they would write their own grid into the generator's gradient.
    return nn.Sequential(
        nn.GroupNorm(1, width, affine=False),
        spectral_norm(nn.Conv2d(width, channels, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(channels, channels, 3, padding=1)),
        nn.LeakyReLU(0.2),
        spectral_norm(nn.Conv2d(channels, 1, 1)),
    )
