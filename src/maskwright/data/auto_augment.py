"""The photometric augmentation policy of the MaX-DeepLab-L recipes, on uint8 images, as the originals compute it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.nn import functional

Image = UInt8[Tensor, "3 h w"]

_LUMINANCE = (0.2989, 0.587, 0.114)
_SOFTENING = ((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 1.0))


def auto_augment(image: Image) -> Image:
    """Apply one of `POLICY`'s pairs of operations, drawn uniformly; each with its own probability.

    All randomness is torch's.

    Source: autoaugment_utils.distort_image_with_autoaugment of deeplab2, policy `simple_classification_policy`.
    """
    pair = POLICY[int(torch.randint(len(POLICY), ()))]
    for name, probability, level in pair:
        if float(torch.rand(())) < probability:
            image = OPERATIONS[name](image, level)
    return image


def sharpness(image: Image, level: int) -> Image:
    """Blend with a softened copy (3 x 3, the centre five times as heavy); the outermost pixels stay."""
    height, width = image.shape[1:]
    if min(height, width) < 3:
        return image
    kernel = torch.tensor(_SOFTENING).div(13).expand(3, 1, 3, 3)
    softened = image.clone()
    softened[:, 1:-1, 1:-1] = functional.conv2d(image[None].float(), kernel, groups=3)[0].clamp(0, 255).to(torch.uint8)
    return _blend(softened, image, _factor(level))


def brightness(image: Image, level: int) -> Image:
    """Blend with black."""
    return _blend(torch.zeros_like(image), image, _factor(level))


def colour(image: Image, level: int) -> Image:
    """Blend with the grey image."""
    return _blend(_grey(image).expand_as(image), image, _factor(level))


def contrast(image: Image, level: int) -> Image:
    """Blend with one grey: the number of pixels / 256, at most 255.

    The originals take the mean of the histogram's counts for the mean of the greys.
    """
    grey = min(image.shape[1] * image.shape[2] / 256, 255.0)
    return _blend(torch.full_like(image, int(grey)), image, _factor(level))


def equalize(image: Image, _level: int) -> Image:
    """Spread the values of each channel evenly over 0..255; it has no level."""
    return torch.stack([_equalize_channel(channel) for channel in image])


def solarize(image: Image, level: int) -> Image:
    """Invert the values from the threshold level / 10 * 256 on; it is a uint8, and so 0 at level 10."""
    return torch.where(image.int() < int(level / 10 * 256) % 256, image, 255 - image)


OPERATIONS: dict[str, Callable[[Image, int], Image]] = {
    "Brightness": brightness,
    "Color": colour,
    "Contrast": contrast,
    "Equalize": equalize,
    "Sharpness": sharpness,
    "Solarize": solarize,
}
"""By the originals' names. Each takes a level in 0..10."""

POLICY: tuple[tuple[tuple[str, float, int], ...], ...] = (
    (("Sharpness", 0.4, 7), ("Brightness", 0.2, 10)),
    (("Equalize", 0.0, 9), ("Contrast", 0.2, 10)),
    (("Sharpness", 0.2, 9), ("Color", 0.2, 9)),
    (("Solarize", 0.2, 7), ("Equalize", 0.6, 9)),
    (("Sharpness", 0.2, 1), ("Equalize", 0.2, 7)),
)
"""Pairs of (operation, probability, level)."""


def _factor(level: int) -> float:
    return level / 10 * 1.8 + 0.1


def _blend(start: Image, end: Image, factor: float) -> Image:
    """From `start` (0) to `end` (1) and beyond, fractions cut off."""
    if factor == 1:
        return end
    mixed = start.float() + factor * (end.float() - start.float())
    return mixed.clamp(0, 255).to(torch.uint8)


def _grey(image: Image) -> UInt8[Tensor, "1 h w"]:
    """Luminance, rounded, from values in 0..1 as the originals compute it."""
    fractions = image.float() * (1 / 255)
    grey = torch.einsum("chw,c->hw", fractions, torch.tensor(_LUMINANCE))[None]
    return (grey * 255.5).to(torch.uint8)


def _equalize_channel(channel: UInt8[Tensor, "h w"]) -> UInt8[Tensor, "h w"]:
    counts = torch.bincount(channel.flatten().long(), minlength=256)
    last = counts[counts > 0][-1]
    step = int((counts.sum() - last) // 255)
    if step == 0:
        return channel
    table = ((counts.cumsum(0) + step // 2) // step).roll(1)
    table[0] = 0
    return table.clamp(0, 255).to(torch.uint8)[channel.long()]
