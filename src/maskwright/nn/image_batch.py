"""Images of any size to one normalised batch of the network's input size, and boxes between both frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional

from maskwright.ops.resize import fitted_size
from maskwright.structures import ImageGeometry

ResizeMethod = Literal["antialias", "half_pixel", "tf1", "align_corners"]
ChannelOrder = Literal["rgb", "bgr"]
SizeRule = Literal["round", "floor_twice"]


class ImageBatch(nn.Module):
    """Resizes, pads and normalises images into one square batch.

    The long side becomes `image_size` (small images are enlarged). The rest of the square, on the right and at the
    bottom, gets one colour. Then the batch is normalised.

    Args:
        image_size: side of the square network input, in pixels.
        resize: how pixels are interpolated. `antialias` and `half_pixel` are torch's bilinear resizing with and
            without a low-pass filter; `align_corners` aligns the centres of the corner pixels; `tf1` samples at
            `i * in / out` without a half-pixel shift, the Deep-MAC original's convention.
        mean: per channel, in 0..1, in RGB order.
        std: per channel, in 0..1, in RGB order.
        channel_order: the order in which the network takes the channels.
        size_rule: how the sides are rounded to pixels: once to the nearest, or as in `ops.resize.fitted_size`.
        padding: the colour beside the image, in 0..1, RGB, or one value for all three channels. Deep-MAC pads with
            black. To pad with 0 *after* the normalisation, as some originals do, give the `mean`.

    Raises:
        ValueError: not three finite means and stds, or a std that is not above 0.

    Source: Object Detection API `resize_to_range`, `CenterNetHourglassFeatureExtractor.preprocess`; Model Garden
    `normalize_image` and `resize_and_crop_image` (half_pixel, and the mean as the padding).
    """

    mean: Tensor
    std: Tensor
    padding: Tensor

    def __init__(
        self,
        image_size: int,
        resize: ResizeMethod,
        mean: Sequence[float],
        std: Sequence[float],
        channel_order: ChannelOrder = "rgb",
        size_rule: SizeRule = "round",
        padding: float | Sequence[float] = 0.0,
    ) -> None:
        super().__init__()
        if len(mean) != 3 or len(std) != 3 or not all(map(math.isfinite, (*mean, *std))):
            raise ValueError(f"mean and std must be three finite numbers each, but got {list(mean)} and {list(std)}")
        if min(std) <= 0:
            raise ValueError(f"std (image_std of a model) must be three numbers above 0, but got {list(std)}")
        self.image_size = image_size
        self.resize: ResizeMethod = resize
        self.channel_order: ChannelOrder = channel_order
        self.size_rule: SizeRule = size_rule
        # Constants of the configuration, not weights: they stay out of the state dict.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(3, 1, 1), persistent=False)
        colour = torch.tensor(padding, dtype=torch.float32).expand(3).view(3, 1, 1).clone()
        self.register_buffer("padding", colour, persistent=False)

    def forward(
        self, images: Sequence[Float[Tensor, "3 _ _"] | UInt8[Tensor, "3 _ _"]], size: int | None = None
    ) -> tuple[Float[Tensor, "b 3 s s"], tuple[ImageGeometry, ...]]:
        """RGB images (uint8, or float in 0..1) to the network input, and the place of each image in it.

        `size` is the side of this batch; None is `image_size`.
        """
        size = size or self.image_size
        geometry = tuple(self.geometry(image, size) for image in images)
        batch = self.padding.repeat(len(images), 1, size, size)
        for row, image, placement in zip(batch, images, geometry, strict=True):
            height, width = placement.resized_size
            row[:, :height, :width] = resize_image(self._as_float(image), placement.resized_size, self.resize)
        return self.normalize(batch), geometry

    def stack(self, images: Sequence[Float[Tensor, "3 h w"] | UInt8[Tensor, "3 h w"]]) -> Float[Tensor, "b 3 h w"]:
        """Training crops of one size to a batch: only normalised, so that boxes and masks still fit them."""
        return self.normalize(torch.stack([self._as_float(image) for image in images]))

    def geometry(self, image: Tensor, size: int | None = None) -> ImageGeometry:
        """Sizes of one image [3, H, W] before and after resizing; `round` rounds halves to even, as numpy does."""
        height, width = image.shape[-2:]
        size = size or self.image_size
        input_size = (size, size)
        scale = min(size / height, size / width)
        resized = (max(1, round(scale * height)), max(1, round(scale * width)))
        if self.size_rule == "floor_twice":
            resized = fitted_size((height, width), input_size)
        return ImageGeometry((height, width), resized, input_size)

    def normalize(self, batch: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """RGB in 0..1 as the network takes it."""
        batch = (batch - self.mean) / self.std
        return batch.flip(1) if self.channel_order == "bgr" else batch

    def _as_float(self, image: Tensor) -> Tensor:
        image = image.to(self.mean.device)
        return image.to(self.mean.dtype).div_(255) if image.dtype == torch.uint8 else image.to(self.mean.dtype)


def resize_image(image: Float[Tensor, "c h w"], size: tuple[int, int], method: ResizeMethod) -> Float[Tensor, "c _ _"]:
    """Bilinear resize to `size` = (height, width) in one of the four conventions of `ImageBatch`."""
    if tuple(image.shape[-2:]) == size:
        return image
    if method == "tf1":
        return _lerp_tf1(_lerp_tf1(image, size[0], dim=1), size[1], dim=2)
    corners, antialias = method == "align_corners", method == "antialias"
    return functional.interpolate(image[None], size, mode="bilinear", align_corners=corners, antialias=antialias)[0]


def _lerp_tf1(image: Tensor, new_size: int, dim: int) -> Tensor:
    """Linear interpolation along one axis at `i * in / out`, the neighbour clamped to the last sample."""
    old_size = image.shape[dim]
    position = torch.arange(new_size, device=image.device, dtype=torch.float32) * (old_size / new_size)
    lower = position.floor().long()
    upper = (lower + 1).clamp(max=old_size - 1)
    shape = [1, 1, 1]
    shape[dim] = new_size
    weight = (position - lower).to(image.dtype).view(shape)
    low, high = image.index_select(dim, lower), image.index_select(dim, upper)
    return low + (high - low) * weight


def boxes_to_input(boxes: Float[Tensor, "n 4"], geometry: ImageGeometry) -> Float[Tensor, "n 4"]:
    """xyxy boxes, original image pixels to input pixels: a scaling, as padding is at the right and bottom only."""
    x, y = geometry.scale
    return boxes * boxes.new_tensor([x, y, x, y])


def boxes_to_original(boxes: Float[Tensor, "n 4"], geometry: ImageGeometry) -> Float[Tensor, "n 4"]:
    """xyxy boxes, input pixels to original image pixels; the inverse of `boxes_to_input`."""
    x, y = geometry.scale
    return boxes / boxes.new_tensor([x, y, x, y])
