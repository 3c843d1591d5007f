"""DISTS' form over the features of a frozen backbone, such as DINO's."""

from torch import Tensor

from losses.backbone import FrozenBackbone
from losses.per_image import PerImageLoss
from losses.perceptual import structure_texture_distance
from losses.precision import full_precision


class BackboneDistance(PerImageLoss):
    """`structure_texture_distance` over the image and the backbone's stages; OMGSR takes a DINOv3 ConvNeXt's four.

    Stages weigh the same (ours); published DISTS learns a weight per channel, OMGSR gives all channels the same.
    OMGSR first pools each stage by a 5 x 5 L2 pooling; here the stages are compared as they are (ours).
    """

    def __init__(self, backbone: FrozenBackbone) -> None:
        super().__init__()
        self.backbone = backbone

    def per_image(self, sr: Tensor, hr: Tensor) -> Tensor:
        """Two (B, 3, H, W) in [0, 1] -> (B,) >= 0; the gradient flows to both."""
        sr_features, hr_features = self.backbone(sr), self.backbone(hr)
        with full_precision(sr):
            return structure_texture_distance(
                [sr.float(), *(features.float() for features in sr_features)],
                [hr.float(), *(features.float() for features in hr_features)],
            )
