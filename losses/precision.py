"""Full precision inside mixed-precision training."""

import torch
from torch import Tensor


def full_precision(image: Tensor) -> torch.autocast:
    """Context in which autocast is off on the device of `image`; cast the inputs with `.float()` inside it."""
    return torch.autocast(device_type=image.device.type, enabled=False)
