"""From RGB to one luminance channel, and how far two images' colours are apart."""

from torch import Tensor

LUMA_WEIGHTS = (0.299, 0.587, 0.114)
# ITU-R BT.601 studio swing as MATLAB's rgb2ycbcr has it: Y of black is 16, of white 235.
_Y_WEIGHTS = (65.481 / 255, 128.553 / 255, 24.966 / 255)
_Y_OFFSET = 16 / 255


def check_rgb(image: Tensor) -> None:
    """Raise ValueError unless `image` is (B, 3, H, W)."""
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"found an image tensor of shape {tuple(image.shape)}; expected RGB of shape (B, 3, H, W)")


def weighted_channels(image: Tensor, weights: tuple[float, float, float]) -> Tensor:
    """Weighted sum of the channels: (B, 3, H, W) -> (B, H, W), float32."""
    check_rgb(image)
    red, green, blue = image.float().unbind(dim=1)
    return weights[0] * red + weights[1] * green + weights[2] * blue


def luma(image: Tensor) -> Tensor:
    """Full-range luma: (B, 3, H, W) in [0, 1] -> (B, H, W) in [0, 1], float32."""
    return weighted_channels(image, LUMA_WEIGHTS)


def rgb_to_y(image: Tensor) -> Tensor:
    """BT.601 luma with studio swing: (B, 3, H, W) in [0, 1] -> (B, 1, H, W) in [16/255, 235/255], float32."""
    return (weighted_channels(image, _Y_WEIGHTS) + _Y_OFFSET).unsqueeze(1)


def color_error(sr: Tensor, hr: Tensor) -> Tensor:
    """Mean absolute difference of the channels' means over the image, in 8-bit grey levels: two (B, 3, H, W) -> (B,).

    Ours: a cast over the whole image, which PSNR mixes with all else and a colour fix is to remove.
    """
    check_rgb(sr)
    check_rgb(hr)
    return 255 * (sr.float().mean(dim=(-2, -1)) - hr.float().mean(dim=(-2, -1))).abs().mean(dim=1)
