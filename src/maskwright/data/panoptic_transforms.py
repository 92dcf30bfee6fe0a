"""Augmentation of an image together with its map of segments, as MaX-DeepLab is trained."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn import functional

from maskwright.data.auto_augment import auto_augment
from maskwright.data.dataset import Transforms
from maskwright.data.transforms import Augmentation, Step, check_augmentation, flip_horizontally, toss
from maskwright.ops.panoptic_map import segment_areas
from maskwright.ops.resize import fitted_size, resize_nearest
from maskwright.structures import PanopticTarget

_GREY = 127.5
"""The padding, which the originals' normalisation makes 0."""


def panoptic_training_transforms(
    image_size: int | tuple[int, int],
    *,
    scale: tuple[float, float] | None = (0.5, 1.5),
    scale_steps: int = 10,
    flip: float = 0.5,
    auto_augmentation: bool = False,
) -> Transforms:
    """The training augmentation of panoptic maps: resize, (photometric policy,) pad and crop at random, flip.

    The result is an RGB image [3, height, width], float32 in 0..1, and its target in that frame. The map of segments
    stays a map; segments without a pixel left are dropped. All randomness is torch's, so `torch.manual_seed` fixes it.

    Args:
        image_size: side of the square that comes out, in pixels, or its (height, width).
        scale: smallest and largest factor after the image is fitted into `image_size`; with None images come whole, at
            the top left, as in inference.
        scale_steps: how many factors there are, at equal distances. The original's list from 0.5 to 1.5 in steps of
            0.1 has 10 of them, since its step is a float32: 1.0 is not among them.
        flip: probability of a horizontal flip.
        auto_augmentation: apply the photometric policy of `data/auto_augment.py` (the original's L recipes).

    Raises:
        ValueError: a value is out of its range.

    Source: deeplab2, input_preprocessing.preprocess_image_and_label with the MaX-DeepLab configurations.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    check_augmentation(min(size), scale, flip)
    if scale_steps < 1:
        raise ValueError(f"scale_steps must be at least 1, but is {scale_steps}")
    scales = None if scale is None else torch.linspace(*scale, scale_steps)

    def draw(height: int, width: int, _target: PanopticTarget) -> RandomCrop:
        if scales is None:
            return RandomCrop.whole((height, width), size, flip)
        return RandomCrop.draw((height, width), size, scales, flip)

    return Augmentation(draw, panoptic_steps(auto_augmentation))


def panoptic_steps(auto_augmentation: bool = False) -> list[Step]:
    """What is done to an image and its map once the crop is drawn, in order."""
    return [
        RandomCrop.resize,
        *([apply_policy] if auto_augmentation else []),
        RandomCrop.crop,
        RandomCrop.flip_as_drawn,
    ]


@dataclass(frozen=True)
class RandomCrop:
    """How an image is resized, laid on a larger grey canvas where it is smaller than the crop, cropped and flipped.

    fitted: (height, width) at which the image fits into the crop; scaled: its size after the random scale.
    size: (height, width) of the crop.
    pad: (top, left) of the scaled image on a canvas that is at least as large as the crop.
    corner: (top, left) of the crop on that canvas.
    flip: left and right change places.
    """

    fitted: tuple[int, int]
    scaled: tuple[int, int]
    size: tuple[int, int]
    pad: tuple[int, int]
    corner: tuple[int, int]
    flip: bool

    @classmethod
    def draw(
        cls, image_size: tuple[int, int], size: tuple[int, int], scales: Float[Tensor, " k"], flip: float
    ) -> RandomCrop:
        """A random crop of an image of `image_size` (height, width); every offset that is possible is equally likely.

        A margin of m pixels has the m offsets 0 .. m - 1 before the image, as the original draws them.
        """
        fitted = fitted_size(image_size, size)
        scaled = scaled_size(fitted, float(scales[torch.randint(len(scales), ())]))
        pad = [_draw(max(outer - inner, 1)) for outer, inner in zip(size, scaled, strict=True)]
        corner = [_draw(max(inner - outer, 0) + 1) for outer, inner in zip(size, scaled, strict=True)]
        return cls(fitted, scaled, size, (pad[0], pad[1]), (corner[0], corner[1]), toss(flip))

    @classmethod
    def whole(cls, image_size: tuple[int, int], size: tuple[int, int], flip: float) -> RandomCrop:
        """All of an image of `image_size` (height, width), at the top left of the crop, or, flipped, the top right."""
        fitted = fitted_size(image_size, size)
        return cls(fitted, fitted, size, (0, 0), (0, 0), toss(flip))

    def resize(
        self, image: UInt8[Tensor, "3 _ _"], target: PanopticTarget
    ) -> tuple[Float[Tensor, "3 _ _"], PanopticTarget]:
        """The image (float32 in 0..255) and the map at the size `scaled`."""
        pixels, segmentation = image.float(), target["segmentation"]
        for new_size in (self.fitted, self.scaled):  # one after the other, as the original interpolates
            pixels = functional.interpolate(pixels[None], size=new_size, mode="bilinear", align_corners=True)[0]
            segmentation = resize_nearest(segmentation, new_size)
        return pixels, PanopticTarget(**{**target, "segmentation": segmentation})

    def crop(
        self, image: Float[Tensor, "3 _ _"], target: PanopticTarget
    ) -> tuple[Float[Tensor, "3 h w"], PanopticTarget]:
        """The crop, in 0..1: 0.5 and void beyond the image; segments without a pixel left are dropped."""
        pixels = self._lay(image, torch.full((3, *self.size), _GREY)) / 255
        segmentation = self._lay(target["segmentation"], torch.full(self.size, -1, dtype=torch.int32))
        return pixels, drop_empty_segments(PanopticTarget(**{**target, "segmentation": segmentation}))

    def flip_as_drawn(
        self, image: Float[Tensor, "3 h w"], target: PanopticTarget
    ) -> tuple[Float[Tensor, "3 h w"], PanopticTarget]:
        """Left and right swapped, if `flip` says so."""
        return flip_horizontally(image, target) if self.flip else (image, target)

    def _lay(self, source: Tensor, canvas: Tensor) -> Tensor:
        """The part of `source` [..., scaled] that the crop shows, on `canvas` [..., size]."""
        (into_rows, from_rows), (into_columns, from_columns) = (
            (slice(pad, pad + min(inner, outer)), slice(corner, corner + min(inner, outer)))
            for pad, corner, inner, outer in zip(self.pad, self.corner, self.scaled, self.size, strict=True)
        )
        canvas[..., into_rows, into_columns] = source[..., from_rows, from_columns]
        return canvas


def apply_policy(
    _crop: RandomCrop, image: Float[Tensor, "3 h w"], target: PanopticTarget
) -> tuple[Float[Tensor, "3 h w"], PanopticTarget]:
    """The photometric policy, on the image cut off to whole values."""
    return auto_augment(image.to(torch.uint8)).float(), target


def scaled_size(size: tuple[int, int], scale: float) -> tuple[int, int]:
    """(height, width) times `scale`, in float32, cut off to whole pixels; at least 1."""
    height, width = (torch.tensor(size, dtype=torch.float32) * scale).int().clamp(min=1).tolist()
    return height, width


def drop_empty_segments(target: PanopticTarget) -> PanopticTarget:
    """The target without the segments that have no pixel; the others keep their order."""
    count = len(target["labels"])
    keep = torch.from_numpy(segment_areas(target["segmentation"].numpy(), count) > 0)
    if keep.all():
        return target
    new_rows = torch.cat([keep.cumsum(0) - 1, torch.tensor([-1])]).int()
    return PanopticTarget(
        segmentation=new_rows[target["segmentation"].long()],
        labels=target["labels"][keep],
        iscrowd=target["iscrowd"][keep],
        ids=target["ids"][keep],
        image_id=target["image_id"],
    )


def _draw(count: int) -> int:
    return int(torch.randint(count, ()))
