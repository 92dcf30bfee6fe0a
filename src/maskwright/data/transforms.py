"""Augmentation of an image together with its boxes, masks, labels and flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, cast

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor
from torchvision.transforms.v2 import functional
from torchvision.tv_tensors import BoundingBoxFormat

from maskwright.data.dataset import Transforms
from maskwright.structures import EncodedMasks, PanopticTarget, Target

AnyTarget = TypeVar("AnyTarget", Target, PanopticTarget)
Step = Callable[[Any, Tensor, Any], tuple[Tensor, Any]]
"""(crop, image, target) -> (image, target)."""

# The original keeps crop centres this far from the image's edges.
_CENTRE_BORDER = 128

# Beyond it, an object's annotated mask is coarser than the grid that learns it.
_LARGEST_ENLARGEMENT = 6

# NTSC: luminance and two chroma axes; grey has no chroma.
_RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = torch.linalg.inv(_RGB_TO_YIQ)


def training_transforms(
    image_size: int,
    *,
    scale: tuple[float, float] | None = (0.6, 1.3),
    object_crops: float = 0.0,
    object_scale: tuple[float, float] = (1.5, 4.0),
    flip: float = 0.5,
    colour: float = 0.25,
    min_box_size: float = 1.0,
) -> Transforms:
    """The training augmentation of instances: a random square crop resized to `image_size`, a flip, colour.

    The result is a uint8 RGB image [3, image_size, image_size] and its target in that frame. All randomness is
    torch's, so `torch.manual_seed` fixes it.

    Args:
        image_size: side of the square that comes out, in pixels.
        scale: range of the crop's side relative to the image's long side: at 1.0 the whole image just fits, below
            it is zoomed in, above it is zoomed out with zeros around it. None: no random crop, but the whole image,
            at the top left of the square as in inference.
        object_crops: share of the crops that are laid around one object with a mask instead, small or large, so that
            small ones are seen enlarged.
        object_scale: range of the side of such a crop relative to the long side of the object's box.
        flip: probability of a horizontal flip.
        colour: strength of the colour jitter from 0 (none); 0.25 is the original's.
        min_box_size: boxes with a side below this many output pixels are dropped.

    Raises:
        ValueError: a value is out of its range.

    Source: the four training configurations of Deep-MAC (`random_square_crop_by_scale` and the colour operations).
    Departures:
    - The scale is drawn from the whole range instead of eight values.
    - Crop and resize come first, then colour, then the flip (the original: flip, colour, crop, resize); so the mean
      that contrast turns about is that of the image's part inside the crop, not of the whole image.
    - Resizing is antialiased (the original: plain bilinear, TF1's).
    - A cut instance with a mask gets the tight box of what is left of its mask (`Square.crop_target`).
    - Boxes below `min_box_size` and instances whose mask is lost are dropped (the original: boxes fully outside).
    """
    check_augmentation(image_size, scale, flip)
    if colour < 0:
        raise ValueError(f"colour must be a strength of at least 0, but is {colour}")

    def draw(height: int, width: int, target: Target) -> Square:
        objects = target["boxes"][target["has_mask"] & ~target["iscrowd"]]
        if object_crops and len(objects) and toss(object_crops):
            box = objects[torch.randint(len(objects), ())]
            return Square.around(box, height, width, object_scale, image_size)
        return Square.draw(height, width, scale, image_size) if scale else Square.whole(height, width, image_size)

    steps: list[Step] = [
        partial(Square.crop, min_box_size=min_box_size),
        *([partial(jitter_inside, strength=colour)] if colour > 0 else []),
        partial(flip_at_random, probability=flip),
    ]
    return Augmentation(draw, steps)


@dataclass(frozen=True)
class Augmentation:
    """Transforms as a list of steps, taken in order; the crop that all of them refer to is drawn first.

    draw: (height, width) of the image and its target -> the crop.
    steps: each takes (crop, image, target) and returns image and target.
    """

    draw: Callable[[int, int, Any], Any]
    steps: Sequence[Step]

    def __call__(self, image: Tensor, target: Any) -> tuple[Tensor, Any]:
        """The image and its target after the last step."""
        height, width = image.shape[1:]
        crop = self.draw(height, width, target)
        for step in self.steps:
            image, target = step(crop, image, target)
        return image, target


def check_augmentation(image_size: int, scale: tuple[float, float] | None, flip: float) -> None:
    """Check the values that the augmentations of instances and of panoptic maps share.

    Raises:
        ValueError: a value is out of its range.
    """
    if image_size < 1:
        raise ValueError(f"image_size must be at least 1, but is {image_size}")
    if scale is not None and not 0 < scale[0] <= scale[1]:
        raise ValueError(f"scale must be (low, high) with 0 < low <= high, but is {scale}")
    if not 0 <= flip <= 1:
        raise ValueError(f"flip must lie in 0..1, but is {flip}")


def toss(probability: float) -> bool:
    """True with this probability; one draw of torch's random state."""
    return float(torch.rand(())) < probability


def flip_horizontally(image: Tensor, target: AnyTarget) -> tuple[Tensor, AnyTarget]:
    """Swap left and right of an image and of its boxes, masks or map of segments."""
    fields = cast("dict[str, Tensor]", target)
    flipped = {name: fields[name].flip(-1) for name in ("masks", "segmentation") if name in fields}
    if "boxes" in fields:
        height, width = image.shape[-2:]
        flipped["boxes"] = functional.horizontal_flip_bounding_boxes(
            fields["boxes"], BoundingBoxFormat.XYXY, (height, width)
        )
    return image.flip(-1), cast("AnyTarget", {**fields, **flipped})


def jitter_inside(square: Square, image: Tensor, target: Target, *, strength: float) -> tuple[Tensor, Target]:
    """Change the colours of the image (in place), but not of the padding, which stays 0 as it is in inference."""
    rows, columns = square.inside
    image[:, rows, columns] = jitter_colour(image[:, rows, columns], strength)
    return image, target


def flip_at_random(_crop: Any, image: Tensor, target: AnyTarget, *, probability: float) -> tuple[Tensor, AnyTarget]:
    """Swap left and right with this probability."""
    return flip_horizontally(image, target) if toss(probability) else (image, target)


@dataclass(frozen=True)
class Square:
    """A square cut out of an image, to be resized to `size` x `size` pixels.

    left, top, side: in whole pixels of the image; the square may reach outside of it.
    height, width: of the image.
    """

    left: int
    top: int
    side: int
    height: int
    width: int
    size: int

    @classmethod
    def draw(cls, height: int, width: int, scale: tuple[float, float], size: int) -> Square:
        """A random square out of an image of `height` x `width` pixels.

        The side is U(scale) times the image's long side; the centre is uniform in whole pixels, at least 128 px (or
        the largest 128 / 2^k below half the image's side) away from each edge.
        """
        side = max(1, int(max(height, width) * torch.empty(()).uniform_(*scale).item()))
        corner = []
        for extent in (width, height):
            border = _CENTRE_BORDER
            while border >= extent / 2 and border > 0:
                border //= 2
            centre = int(torch.randint(border, extent - border + 1, ()).item())
            corner.append(centre - side // 2)
        return cls(*corner, side=side, height=height, width=width, size=size)

    @classmethod
    def around(cls, box: Float[Tensor, " 4"], height: int, width: int, scale: tuple[float, float], size: int) -> Square:
        """A square with the centre of `box` (xyxy pixels of the image) in its middle, or moved into the image.

        The side is U(scale) times the box's long side, in whole pixels, and at least so large that the image is
        enlarged `_LARGEST_ENLARGEMENT` times at most.
        """
        x1, y1, x2, y2 = box.tolist()
        side = max(x2 - x1, y2 - y1) * torch.empty(()).uniform_(*scale).item()
        side = max(1, round(max(side, size / _LARGEST_ENLARGEMENT)))
        corner = [
            min(max(round(middle - side / 2), 0), max(extent - side, 0))
            for middle, extent in (((x1 + x2) / 2, width), ((y1 + y2) / 2, height))
        ]
        return cls(*corner, side=side, height=height, width=width, size=size)

    @classmethod
    def whole(cls, height: int, width: int, size: int) -> Square:
        """The smallest square with the whole image of `height` x `width` pixels at its top left."""
        return cls(0, 0, side=max(height, width), height=height, width=width, size=size)

    @property
    def inside(self) -> tuple[slice, slice]:
        """The rows and the columns of the result whose pixel centres lie inside of the image."""
        return self._inside(self.top, self.height), self._inside(self.left, self.width)

    def _inside(self, start: int, extent: int) -> slice:
        positions = self._positions(start)
        valid = ((positions >= 0) & (positions < extent)).nonzero()
        return slice(int(valid[0, 0]), int(valid[-1, 0]) + 1) if len(valid) else slice(0, 0)

    def _positions(self, start: int) -> Int64[Tensor, " size"]:
        """The pixel of the image under the centre of each row or column of the result."""
        return start + ((torch.arange(self.size) + 0.5) * (self.side / self.size)).long()

    def crop(self, image: UInt8[Tensor, "3 h w"], target: Target, min_box_size: float) -> tuple[Tensor, Target]:
        """Both in the frame of the result."""
        return self.crop_image(image), self.crop_target(target, min_box_size)

    def crop_image(self, image: UInt8[Tensor, "3 h w"]) -> UInt8[Tensor, "3 s s"]:
        """The square, resized with antialias; 0 outside of the image."""
        cut = functional.crop(image, self.top, self.left, self.side, self.side)
        return functional.resize(cut, [self.size, self.size], antialias=True)

    def crop_target(self, target: Target, min_box_size: float = 1.0) -> Target:
        """The instances inside of the square, in the frame of the result.

        Masks take the nearest pixel. An instance is dropped when its box has a side below `min_box_size` pixels of
        the result, or when its mask becomes empty. The box of an instance that the square cuts: where it has a
        mask, the tight box of the mask that is left (a clipped box would no longer touch the object on all sides);
        otherwise, the clipped box. An instance that is not cut keeps its annotated box.
        """
        unclipped = (target["boxes"] - torch.tensor([self.left, self.top] * 2)) * (self.size / self.side)
        boxes = unclipped.clamp(0, self.size)
        is_cut = ((boxes - unclipped).abs() > 0.01).any(dim=1)
        keep = _is_large(boxes, min_box_size)
        # The planes may be large: those that stay are selected and cropped in one step.
        masks = self.crop_masks(target["masks"], keep.nonzero()[:, 0])
        target = _select(Target(**{**target, "boxes": boxes, "masks": masks}), keep, ("masks",))
        tight, is_empty = tight_boxes(masks)
        replaced = target["has_mask"] & is_cut[keep] & ~is_empty
        boxes = torch.where(replaced[:, None], tight, target["boxes"])
        keep = ~(target["has_mask"] & is_empty) & _is_large(boxes, min_box_size)
        return _select(Target(**{**target, "boxes": boxes}), keep)

    def crop_masks(
        self, masks: Bool[Tensor, "n h w"] | EncodedMasks, keep: Int64[Tensor, " k"]
    ) -> Bool[Tensor, "k s s"]:
        """The masks `keep`: each pixel of the result takes the pixel of the image under its centre."""
        rows, columns = self.inside
        from_rows, from_columns = self._positions(self.top)[rows], self._positions(self.left)[columns]
        if isinstance(masks, EncodedMasks):
            pixels = masks[keep].sample(from_rows, from_columns)
        else:
            pixels = masks[keep[:, None, None], from_rows[:, None], from_columns]
        result = torch.zeros((len(keep), self.size, self.size), dtype=torch.bool)
        result[:, rows, columns] = pixels
        return result


def tight_boxes(masks: Bool[Tensor, "n s s"]) -> tuple[Float[Tensor, "n 4"], Bool[Tensor, " n"]]:
    """Boxes around the masks (zeros where a mask is empty), and which masks are empty."""
    planes: np.ndarray = masks.numpy()  # numpy reduces truth values several times faster than torch
    occupied_rows, occupied_columns = np.any(planes, axis=2), np.any(planes, axis=1)
    is_empty = torch.from_numpy(~np.any(occupied_rows, axis=1))
    edges = []
    for occupied in (occupied_columns, occupied_rows):
        edges.append((occupied.argmax(axis=1), occupied.shape[1] - occupied[:, ::-1].argmax(axis=1)))
    (x1, x2), (y1, y2) = edges
    boxes = torch.from_numpy(np.stack([x1, y1, x2, y2], axis=1)).float()
    return boxes.masked_fill(is_empty[:, None], 0.0), is_empty


def _is_large(boxes: Float[Tensor, "n 4"], min_box_size: float) -> Bool[Tensor, " n"]:
    extent = boxes[:, 2:] - boxes[:, :2]
    return ((extent >= min_box_size) & (extent > 0)).all(dim=1)


def _select(target: Target, keep: Bool[Tensor, " n"], untouched: tuple[str, ...] = ()) -> Target:
    """The instances `keep`, without a copy where these are all; the fields `untouched` stay as they are."""
    if keep.all():
        return target
    chosen = {key: value[keep] for key, value in target.items() if isinstance(value, Tensor) and key not in untouched}
    return Target(**{**target, **chosen})


def jitter_colour(image: UInt8[Tensor, "3 h w"], strength: float) -> UInt8[Tensor, "3 h w"]:
    """Change hue, saturation, contrast and brightness at random, as one linear map of each pixel.

    Hue turns by U(-1, 1) * 0.08 * strength of the colour circle; contrast (about each channel's mean) and
    saturation are multiplied by U(1 / (1 + strength), 1 + strength); brightness gains U(-1, 1) * 0.8 * strength of
    the full range. At strength 0.25 these are the original's: 0.02, 0.8..1.25, 0.8..1.25 and 0.2.

    Source: the colour operations of the Deep-MAC configurations. Departures: hue and saturation turn and stretch
    the chroma plane of YIQ instead of HSV's (about ten times faster), and values are clipped to 0..255 once, at the
    end, instead of after each operation.
    """
    hue, brightness = (torch.rand(2) * 2 - 1).tolist()
    contrast, saturation = torch.empty(2).uniform_(1 / (1 + strength), 1 + strength).tolist()
    angle = 2 * math.pi * 0.08 * strength * hue
    turn = torch.eye(3)
    turn[1:, 1:] = saturation * torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    mixing = _YIQ_TO_RGB @ turn @ _RGB_TO_YIQ
    pixels = image.flatten(1).float()
    offset = (1 - contrast) * (mixing @ pixels.mean(dim=1, keepdim=True)) + 0.8 * strength * brightness * 255
    changed = torch.addmm(offset, mixing * contrast, pixels)
    return changed.clamp_(0, 255).round_().to(torch.uint8).view_as(image)
