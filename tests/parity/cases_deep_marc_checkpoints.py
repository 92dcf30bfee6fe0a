"""Whole checkpoints of the original Deep-MARC: what carries over, through the converter, against forward passes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from cases_deep_mac_networks import INFERENCE
from cases_deep_mac_ops import assert_near, channels_first
from cases_deep_marc_crops import flat_boxes
from cases_deep_marc_networks import create_head, create_resnet
from parity_data import ParityData

from maskwright.convert.checkpoint import Variables
from maskwright.convert.coco_labels import coco_categories
from maskwright.convert.deep_marc import (
    convert_deep_marc,
    mask_head_table,
    network_tables,
    pyramid_table,
    resnet_table,
)
from maskwright.convert.tables import load_variables
from maskwright.models.deep_marc import DeepMARC
from maskwright.models.roi_heads import crop_levels
from maskwright.nn.detection_backbones import ResNetFPN
from maskwright.nn.mask_heads import MaskHead

BACKBONES = {
    "r50": "resnet50_fpn",
    "r101": "resnet101_fpn",
    "spine49": "spinenet49",
    "spine143": "spinenet143",
}
MASKS = 1e-3  # probabilities after all of it: the reference's own tolerance


def check_forward(data: ParityData, file: str) -> None:
    """Pyramid, box crops and masks of a checkpoint; the boxes are given."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    variables = Variables(data.folder / config["checkpoint"])
    network, head = _load(config, variables)
    with torch.no_grad():
        maps = network.eval()(channels_first(arrays["image"]))
        for name in [name for name in arrays if name.startswith("decoder_")]:
            assert_near(maps[name.removeprefix("decoder_")], channels_first(arrays[name]), name, INFERENCE)
        # The original takes the background's mask for given boxes, which we leave out: there, detected boxes.
        given = config["mask_head"]["class_agnostic"]
        boxes, expected = arrays["given_boxes"], arrays["given_boxes_masks"]
        if not given:
            boxes, expected = arrays["detection_outer_boxes"], arrays["detection_masks"]
        corners, image_index = flat_boxes(boxes)
        size = config["mask_roi_aligner"]["crop_size"]
        crops = crop_levels(list(maps.values()), corners, image_index, size, network.levels[0])
        probabilities = head.eval()(crops).sigmoid()
        if given:
            assert_near(probabilities.squeeze(1), expected.reshape(-1, *expected.shape[2:]), "masks", MASKS)
            return
        count = boxes.shape[1]
        for image, detected in enumerate(arrays["num_detections"]):
            rows = torch.arange(int(detected)) + image * count
            labels = torch.from_numpy(arrays["detection_classes"][image, :detected]).long() - 1
            assert_near(probabilities[rows, labels], expected[image, :detected], "masks", MASKS)


def _load(config: Mapping[str, Any], variables: Variables) -> tuple[ResNetFPN, MaskHead]:
    """By the converter, or part by part where no recipe builds such a model (ResNet-18, other widths)."""
    resnet = config["backbone"]["resnet"]
    width, channels = resnet["depth_multiplier"], config["decoder"]["fpn"]["num_filters"]
    if resnet["model_id"] in (50, 101) and channels == 256 * width:
        names = {"width": width, "backbone": f"resnet{resnet['model_id']}_fpn"}
        mask_head = config["mask_head"]
        model = convert_deep_marc(
            variables,
            {
                **names,
                "image_size": config["input_size"][0],
                "categories": [{"id": i + 1, "name": str(i)} for i in range(config["num_classes"] - 1)],
                "mask_head": mask_head["convnet_variant"].replace("default", "fcn"),
                "mask_head_width": round(mask_head["num_filters"] / width),
                "mask_size": config["mask_roi_aligner"]["crop_size"],
                "mask_upsample": mask_head["upsample_factor"],
                "class_agnostic_masks": mask_head["class_agnostic"],
            },
        ).model
        assert isinstance(model, DeepMARC)
        assert isinstance(model.network.backbone, ResNetFPN)
        assert isinstance(model.network.mask_head, MaskHead)
        return model.network.backbone, model.network.mask_head
    epsilon = config["norm_activation"]["norm_epsilon"]
    trunk = create_resnet(resnet["model_id"], width, epsilon)
    network = ResNetFPN(trunk, channels, 0.003, epsilon, "same")
    load_variables(network, resnet_table(trunk, "trunk."), variables, "model/backbone")
    load_variables(network, pyramid_table(network.pyramid, "pyramid."), variables, "model/decoder")
    per_class = not config["mask_head"]["class_agnostic"]
    settings = {**config["mask_head"], **config["norm_activation"]}
    head = create_head(settings, channels, config["num_classes"] - 1 if per_class else 1)
    load_variables(head, mask_head_table(head, skip_background=per_class), variables, "model/mask_head")
    return network, head


def check_full_size(file: Path) -> None:
    """Names, shapes and numbers of all that carries over from a model of published size, built on `meta`."""
    listing = json.loads(file.read_text())
    backbone, mask_head = file.stem.split("_")
    values: dict[str, Any] = {"categories": coco_categories(), "backbone": BACKBONES[backbone]}
    if mask_head == "default":
        values |= {"mask_head": "fcn", "mask_head_width": 256, "mask_size": 14}
    else:
        values["mask_head"] = mask_head.replace("hg", "hourglass")
    with torch.device("meta"):
        model = DeepMARC(**values)
    state = model.network.state_dict()
    found: dict[str, list[int]] = {}
    for prefix, table in network_tables(model.network).items():
        for name, row in table.items():
            shape = state[name].shape
            shape = [shape[2], shape[3], shape[1], shape[0]] if len(shape) == 4 else list(shape)
            found[f"{prefix.removeprefix('model/')}/{row.path}"] = shape
    not_taken = ("rpn_head/", "detection_head/")
    assert found == {key: shape for key, shape in listing["keys"].items() if not key.startswith(not_taken)}
    for part in {key.partition("/")[0] for key in found}:
        numbers = sum(math.prod(shape) for key, shape in found.items() if key.startswith(f"{part}/"))
        assert numbers == listing["params"][part], part
