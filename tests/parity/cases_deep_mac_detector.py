"""CenterNet within Deep-MAC: targets, losses, decoding, and the whole model with its own boxes."""

from __future__ import annotations

import numpy as np
import torch
from cases_deep_mac_mask_branch import (
    GRADIENT,
    OBJECT_HEADS,
    allowed_rows,
    create_model,
    load_model,
)
from cases_deep_mac_networks import INFERENCE, TRAINING
from cases_deep_mac_ops import Arrays, assert_near, channels_first, pixel_boxes
from parity_data import ParityData, below
from torch import Tensor

from maskwright.models.deep_mac import DeepMACConfig
from maskwright.models.deep_mac.centernet import CenterNetLoss, CenterNetMaps, decode
from maskwright.ops.boxes import clip_boxes
from maskwright.ops.heatmap import center_cells, center_heatmap, gaussian_radius, size_and_offset_targets

LOSSES = {"object_center": "object_center", "box/scale": "box_size", "box/offset": "box_offset"}


def check_targets(data: ParityData, file: str) -> None:
    """Radii, heat maps at every overlap, and the cells, sizes and offsets of boxes that count."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    sizes = torch.from_numpy(np.stack([arrays["radius_h"], arrays["radius_w"]], axis=1))
    radius = gaussian_radius(sizes, 0.7)
    assert_near(radius, arrays["radius07"], "radius07")
    assert_near((2 * radius.floor().clamp(min=0) + 1) / 6, arrays["sigma07"], "sigma07")

    stride, num_classes = config["stride"], config["num_classes"]
    map_size = (config["H"] // stride, config["W"] // stride)
    images = sum(name.startswith("boxes") for name in arrays)
    start = 0
    for image in range(images):
        every = (pixel_boxes(arrays[f"boxes{image}"], (config["H"], config["W"])) / stride).float()
        labels = torch.from_numpy(arrays[f"classes{image}"].argmax(axis=1))
        weights = torch.from_numpy(arrays[f"weights{image}"])
        for name in (name for name in arrays if name.startswith("heatmap_iou")):
            overlap = float(name.removeprefix("heatmap_iou"))
            # A weight between 0 and 1 lowers its own Gaussian; our boxes have none, so each level is made alone.
            levels = [
                weight
                * center_heatmap(every[weights == weight], labels[weights == weight], num_classes, map_size, overlap)
                for weight in weights.unique()
            ]
            expected = channels_first(arrays[name][image])[0]
            assert_near(torch.stack(levels).amax(dim=0), expected, f"{name} of image {image}")
        real = weights > 0
        rows = torch.arange(start, start + len(every))[real]
        cells = center_cells(every[real], map_size)
        assert np.array_equal(cells, arrays["indices"][rows][:, 1:]), f"cells of image {image}"
        height_width, offsets = size_and_offset_targets(every[real], cells)
        if len(rows):
            assert_near(height_width, arrays["height_width"][rows], f"height_width of image {image}")
            assert_near(offsets, arrays["offsets"][rows], f"offsets of image {image}")
        start += len(every)
    assert start == len(arrays["indices"])


def check_detector_losses(data: ParityData, file: str) -> None:
    """The three losses of every case, and their gradients with respect to the maps of every stack."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    count = sum(name.startswith("pred/object_center/") for name in arrays)
    stacks = [_recorded(arrays, f"/{stack}") for stack in range(count)]
    leaves = [CenterNetMaps(*(value.requires_grad_() for value in maps)) for maps in stacks]
    loss = CenterNetLoss(
        DeepMACConfig(
            object_center_weight=1.0,
            box_size_weight=config["scale_loss_weight"],
            box_offset_weight=config["offset_loss_weight"],
            min_box_overlap=config["min_box_overlap_iou"],
        )
    )
    losses = detector_losses(loss, leaves, arrays, (config["H"], config["W"]), config["stride"])
    for case in config["cases"]:
        for mode in ("eval", "train"):
            for theirs, ours in LOSSES.items():
                name = f"loss/{case}/{mode}/{theirs}"
                assert_near(losses[ours].detach(), arrays[name], name, TRAINING)
    torch.stack(list(losses.values())).sum().backward()
    for stack, maps in enumerate(leaves):
        for theirs, ours in OBJECT_HEADS.items():
            gradient = getattr(maps, ours).grad
            assert gradient is not None
            name = f"grad_eval/{theirs}/{stack}"
            assert_near(gradient, channels_first(arrays[name]), name, GRADIENT)


def check_detections(data: ParityData, file: str) -> None:
    """Scores, classes and boxes, in order, ties and plateaus included; images smaller than the map, too."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    maps, k = _recorded(arrays, ""), config["max_box_predictions"]
    shapes = {"det": arrays["true_image_shapes"], "det_small": arrays["small_true_shapes"]}
    for name, true_shapes in shapes.items():
        rolled = maps if name == "det" else maps._replace(center=maps.center.roll(1, dims=0))
        sizes = [(int(height), int(width)) for height, width, _ in true_shapes]
        found = decode(rolled, sizes, config["stride"], k)
        assert_near(found.scores, arrays[f"{name}/detection_scores"], f"{name}/detection_scores", INFERENCE)
        assert np.array_equal(found.labels, arrays[f"{name}/detection_classes"]), f"{name}/detection_classes"
        assert np.array_equal((found.scores > 0).sum(dim=1), arrays[f"{name}/num_detections"])
        strided = torch.from_numpy(arrays[f"{name}/detection_boxes_strided"])[..., [1, 0, 3, 2]]
        assert_near(found.boxes / config["stride"], strided, f"{name}/detection_boxes_strided", INFERENCE)
        for image, size in enumerate(sizes):
            expected = pixel_boxes(arrays[f"{name}/detection_boxes"][image], size)
            assert_near(clip_boxes(found.boxes[image], size), expected, f"{name}/detection_boxes/{image}", INFERENCE)


def check_inference_with_detector(data: ParityData, file: str) -> None:
    """A photograph to boxes, scores, classes and masks, through the model as it is called.

    The original clips a box to the image after it has made its mask, we do before; so masks of clipped boxes
    are compared on the original's unclipped boxes, through the network.
    """
    arrays, config = data.arrays(file), data.files[file]["config"]
    model = create_model(config, "centernet").eval()
    load_model(model, below(arrays, "w/"))
    image = channels_first(arrays["image"])[0]
    size = (image.shape[1], image.shape[2])
    with torch.no_grad():
        (prediction,) = model([image], max_detections=config["max_box_predictions"])
        batch, geometry = model.image_batch([image])
        stacks, detected = model.network.stack_outputs(batch)
        strided = torch.from_numpy(arrays["det/detection_boxes_strided"][0])[:, [1, 0, 3, 2]]
        boxes = strided * model.network.backbone.strides[-1]
        first = torch.zeros(len(boxes), dtype=torch.int64)
        masks = model.network.mask_logits(stacks[-1], boxes, first).sigmoid()
    for stack, maps in enumerate(detected):
        for theirs, ours in OBJECT_HEADS.items():
            name = f"heads/{theirs}/{stack}"
            assert_near(getattr(maps, ours), channels_first(arrays[name]), name, INFERENCE)
    assert_near(masks, arrays["det/detection_masks"][0], "detection_masks", INFERENCE)

    expected = pixel_boxes(arrays["det/detection_boxes"][0], size)
    kept = ((expected[:, 2:] > expected[:, :2]).all(dim=1)) & torch.from_numpy(arrays["det/detection_scores"][0] > 0)
    assert_near(prediction.boxes, expected[kept], "detection_boxes", INFERENCE)
    assert_near(prediction.scores, arrays["det/detection_scores"][0][kept], "detection_scores", INFERENCE)
    assert np.array_equal(prediction.labels, arrays["det/detection_classes"][0][kept])
    height, width = geometry[0].resized_size
    inside = (boxes[kept] <= torch.tensor([width, height, width, height])).all(dim=1)
    if inside.any():
        ours, theirs = prediction.mask_probabilities[inside], masks[kept][inside]
        assert_near(ours, theirs, "masks of boxes inside the image", INFERENCE)


def _recorded(arrays: Arrays, suffix: str) -> CenterNetMaps:
    """Maps of the fixture, of one stack or of the last."""
    return CenterNetMaps(*(channels_first(arrays[f"pred/{theirs}{suffix}"]) for theirs in OBJECT_HEADS))


def detector_losses(
    loss: CenterNetLoss, stacks: list[CenterNetMaps], arrays: Arrays, size: tuple[int, int], stride: int
) -> dict[str, Tensor]:
    """The losses against the fixture's ground truth without its padding rows."""
    images = range(sum(name.startswith("gt_boxes") for name in arrays))
    rows = [allowed_rows(arrays, image, None) for image in images]
    boxes = [pixel_boxes(arrays[f"gt_boxes{image}"][rows[image]], size).float() for image in images]
    labels = [torch.from_numpy(arrays[f"gt_classes{image}"][rows[image]].argmax(axis=1)) for image in images]
    sizes = [(int(height), int(width)) for height, width, _ in arrays["true_image_shapes"]]
    return loss(stacks, boxes, labels, sizes, stride)
