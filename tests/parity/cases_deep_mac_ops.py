"""What `ops` alone can prove of the Deep-MAC fixtures. `test_deep_mac.py` finds the files and calls these.

Each callable takes an opened npz and its entry in the manifest, and asserts. Tolerance: 1e-4 of the
largest magnitude (inference), unless an edge pixel is at stake.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from maskwright.models.deep_mac import DeepMACConfig
from maskwright.models.deep_mac.losses import MaskInstances, MaskLoss
from maskwright.ops.crop import (
    center_offsets,
    coordinate_grid,
    crop_and_resize,
    crop_masks,
    fill_boxes,
    gather_at_centers,
)
from maskwright.ops.losses import mask_cross_entropy, mask_dice
from maskwright.ops.paste import paste_mask_region

Arrays = Mapping[str, np.ndarray]


def pixel_boxes(boxes: np.ndarray, frame_size: tuple[int, int]) -> Tensor:
    """Normalised yxyx boxes as xyxy pixels of a frame of (height, width); float64, so that dividing restores them."""
    height, width = frame_size
    return torch.from_numpy(boxes[:, [1, 0, 3, 2]].astype(np.float64)) * torch.tensor([width, height, width, height])


def channels_first(array: np.ndarray) -> Tensor:
    """`[H, W, C]` as `[1, C, H, W]`, `[N, H, W, C]` as `[N, C, H, W]`."""
    return torch.from_numpy(np.moveaxis(array, -1, -3)).reshape(-1, array.shape[-1], *array.shape[-3:-1]).contiguous()


def assert_near(actual: Tensor, expected: np.ndarray | Tensor, name: str, relative: float = 1e-4) -> None:
    """Within `relative` of the largest magnitude of `expected`."""
    expected = torch.as_tensor(expected)
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    allowed = relative * max(float(expected.abs().max()), 1e-6)
    error = float((actual - expected).abs().max())
    assert error <= allowed, f"{name}: differs by {error:.3g}, allowed {allowed:.3g}"


def check_roi_crop(arrays: Arrays, entry: Mapping[str, Any]) -> None:
    """Feature crops, mask crops, the coordinate channels and the gather at box centres."""
    features, boxes = channels_first(arrays["features"]), arrays["boxes"]
    frame_size = (4 * features.shape[2], 4 * features.shape[3])
    pixels = pixel_boxes(boxes, frame_size)
    first_image = torch.zeros(len(boxes), dtype=torch.int64)
    sizes = [int(match[1]) for name in arrays if (match := re.fullmatch(r"crop(\d+)", name))]
    assert sizes, "no crop in the fixture"
    for size in sizes:
        crop = crop_and_resize(features, pixels, first_image, frame_size, size, "corner")
        assert_near(crop, channels_first(arrays[f"crop{size}"]), f"crop{size}")

    size = entry["config"]["mask_size"]
    crop = crop_and_resize(features, pixels, first_image, frame_size, size, "corner")
    assert_near(crop, channels_first(arrays["head_input_noxy"]), "head_input_noxy")
    grid = coordinate_grid(size).expand(len(boxes), -1, -1, -1)
    assert_near(torch.cat([grid, crop], dim=1), channels_first(arrays["head_input_xy"]), "head_input_xy")

    rows = torch.from_numpy(arrays["instance_box_rows"])
    embedding = channels_first(arrays["instance_embedding"])
    gathered = gather_at_centers(embedding, pixels[rows], first_image[rows], frame_size)
    assert_near(gathered, arrays["instance_at_center"], "instance_at_center")

    masks = torch.from_numpy(arrays["masks"])
    assert set(masks.unique().tolist()) <= {0.0, 1.0}
    target = crop_masks(masks > 0.5, pixel_boxes(boxes, (masks.shape[1], masks.shape[2])), size, "corner")
    assert_near(target, arrays[f"mask_crop{size}"], f"mask_crop{size}")


def check_full_resolution(arrays: Arrays, entry: Mapping[str, Any]) -> None:
    """The head's input from the whole map, masks enlarged and cut out at boxes, and boxes as rasters."""
    features = channels_first(arrays["features"])
    map_size = (features.shape[2], features.shape[3])
    frame_size = (4 * map_size[0], 4 * map_size[1])
    expected = channels_first(arrays["head_input_fullres"])
    offsets = center_offsets(pixel_boxes(arrays["boxes"][: len(expected)], frame_size), frame_size, map_size)
    assert_near(torch.cat([offsets, features.expand(len(expected), -1, -1, -1)], dim=1), expected, "head_input_fullres")

    masks = torch.from_numpy(arrays["resize_in"])[:, None]
    for name in arrays:
        if match := re.fullmatch(r"resize_out_(\d+)x(\d+)", name):
            size = (int(match[1]), int(match[2]))
            enlarged = torch.nn.functional.interpolate(masks, size=size, mode="bilinear", align_corners=False)
            assert_near(enlarged[:, 0], arrays[name], name)
    boxes = pixel_boxes(arrays["boxes"][[0, 2, 7, 10]], frame_size)
    for name in arrays:
        if match := re.fullmatch(r"cropwithin_out_(\d+)", name):
            cut = crop_and_resize(masks, boxes, torch.arange(len(masks)), frame_size, int(match[1]), "corner")
            assert_near(cut[:, 0], arrays[name], name)

    raster = torch.from_numpy(arrays["fill_boxes_out"])
    size = (raster.shape[1], raster.shape[2])
    assert torch.equal(fill_boxes(pixel_boxes(arrays["fill_boxes_in"], size).float(), size, size), raster)


def check_mask_losses(arrays: Arrays, entry: Mapping[str, Any]) -> None:
    """Mask targets from the ground truth, and both losses per instance on the recorded logits (eval mode)."""
    config = entry["config"]
    images = [name.removeprefix("gt_boxes") for name in arrays if name.startswith("gt_boxes")]
    assert images, "no image in the fixture"
    for image in images:
        masks = torch.from_numpy(arrays[f"gt_masks{image}"]) > 0
        boxes = pixel_boxes(arrays[f"gt_boxes{image}"], (config["H"], config["W"]))
        targets = crop_masks(masks, boxes, config["mask_size"], "corner")
        assert_near(targets, arrays[f"mask_target{image}"], f"mask_target{image}")
        logits = torch.from_numpy(arrays[f"mask_logits_stack0_img{image}"])
        for case, loss in (("some_boxcons", mask_cross_entropy), ("some_dice_boxcons", mask_dice)):
            name = f"per_instance/{case}/eval/img{image}/mask"
            assert_near(loss(logits, targets), arrays[name], name)
            cross_entropy = loss is mask_cross_entropy
            boxes, known = boxes.float(), torch.ones(len(boxes), dtype=torch.bool)
            instances = MaskInstances(boxes, boxes, torch.zeros(len(boxes), dtype=torch.int64), known, targets)
            weighted = MaskLoss(
                DeepMACConfig(cross_entropy_weight=float(cross_entropy), dice_weight=float(not cross_entropy))
            )
            value = weighted.box_consistency(logits, instances, (config["H"], config["W"]))
            name = f"per_instance/{case}/eval/img{image}/boxcons"
            assert_near(value, arrays[name], name)


def check_paste(arrays: Arrays) -> None:
    """Provided masks pasted at the image's size, edge pixels included."""
    expected = torch.from_numpy(arrays["pasted_provided"])
    height, width = expected.shape[1:]
    boxes = pixel_boxes(arrays["provided_boxes"][0], (height, width))
    pasted = torch.zeros_like(expected)
    for plane, probability, box in zip(pasted, torch.from_numpy(arrays["provided_masks"][0]), boxes, strict=True):
        region, (left, top) = paste_mask_region(probability, box, (height, width), "corner")
        plane[top : top + region.shape[0], left : left + region.shape[1]] = region
    assert_near(pasted, expected, "pasted_provided", relative=1e-6)
