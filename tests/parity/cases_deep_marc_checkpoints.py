"""Whole checkpoints of the original Deep-MARC: what carries over, through the converter, against forward passes."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from cases_deep_mac_networks import INFERENCE
from cases_deep_mac_ops import assert_near, channels_first
from cases_deep_marc_crops import flat_boxes
from cases_deep_marc_networks import create_backbone, create_head, create_resnet
from parity_data import ParityData, below
from rounding import Results, Rounding

from maskwright.convert.checkpoint import Variables
from maskwright.convert.coco_labels import coco_categories
from maskwright.convert.deep_marc import DEEP_MARC, convert_deep_marc, network_table, original_values, skip_background
from maskwright.convert.tables import load_variables, module_table
from maskwright.models.deep_marc import DeepMARC
from maskwright.models.deep_marc.network import DeepMARCNetwork
from maskwright.models.deep_marc.roi_heads import crop_levels

BACKBONES = {
    "r50": "resnet50_fpn",
    "r101": "resnet101_fpn",
    "spine49": "spinenet49",
    "spine143": "spinenet143",
}


def check_forward(data: ParityData, file: str) -> None:
    """Pyramid, box crops and masks of a checkpoint; the boxes are given."""
    config, arrays = data.files[file]["config"], data.arrays(file)
    variables = Variables(data.folder / config["checkpoint"])
    # The original takes the background's mask for given boxes, which we leave out: there, detected boxes.
    given = config["mask_head"]["class_agnostic"]
    boxes, expected = (
        (arrays["given_boxes"], arrays["given_boxes_masks"])
        if given
        else (arrays["detection_outer_boxes"], arrays["detection_masks"])
    )
    corners, image_index = flat_boxes(boxes)
    detected = np.full(len(boxes), boxes.shape[1]) if given else arrays["num_detections"]
    rows = torch.cat([torch.arange(int(number)) + image * boxes.shape[1] for image, number in enumerate(detected)])
    labels = torch.zeros(len(corners)) if given else torch.from_numpy(arrays["detection_classes"]).flatten() - 1

    def infer(network: DeepMARCNetwork) -> Results:
        with torch.no_grad():
            maps = network.backbone(channels_first(arrays["image"]).double())
            size = config["mask_roi_aligner"]["crop_size"]
            crops = crop_levels(maps, corners, image_index, size, network.finest_level)
            masks = network.mask_head(crops).sigmoid()[rows, labels.long()[rows]]
        pyramid = {
            f"pyramid/{level}": values.permute(0, 2, 3, 1)
            for level, values in zip(network.backbone.levels, maps, strict=True)
        }
        recorded = {name: values for name, values in pyramid.items() if name.replace("pyramid/", "decoder_") in arrays}
        return recorded | {"masks/all": masks}

    rounding = Rounding(lambda: _load(config, variables).network, infer)
    rounding.check("pyramid", below(arrays, "decoder_"), INFERENCE)
    rounding.check("masks", {"all": expected.reshape(-1, *expected.shape[2:])[rows]}, INFERENCE)


def check_serving(data: ParityData, file: str) -> None:
    """From a raw image that is not square to the masks of given and of detected boxes, by the converted model."""
    arrays = data.arrays(file)
    config = data.files[file.replace("_serving", "_forward")]["config"]
    variables = Variables(data.folder / data.files[file]["config"]["checkpoint"])
    image = torch.from_numpy(arrays["image"][0]).permute(2, 0, 1)
    height, width = image.shape[1:]
    count, scale = int(arrays["serve_num_detections"][0]), torch.from_numpy(arrays["serve_image_info"][0, 2])
    class_agnostic = config["mask_head"]["class_agnostic"]
    detected = arrays["serve_detection_boxes" if class_agnostic else "serve_detection_outer_boxes"]
    prompts = {"detected": flat_boxes(detected)[0][:count] / scale.flip(0).repeat(2)}
    expected = {"detected": arrays["serve_detection_masks"][0, :count]}
    classes = None
    if class_agnostic:  # else the original answers given boxes with the background's mask
        prompts["given"] = flat_boxes(arrays["boxes_normalized"])[0] * torch.tensor([width, height] * 2)
        expected["given"] = arrays["image_and_boxes_masks"][0]
    else:
        classes = [torch.from_numpy(arrays["serve_detection_classes"][0, :count]).long() - 1]

    def infer(model: DeepMARC) -> Results:
        with torch.no_grad():
            features = model.encode([image])
            predictions = {name: model.masks_from_boxes(features, [boxes], classes) for name, boxes in prompts.items()}
        return {f"masks/{name}": prediction.mask_probabilities for name, (prediction,) in predictions.items()}

    batch, _ = _load(config, variables).image_batch([image])
    assert_near(batch, channels_first(arrays["preprocessed"]), "preprocessed", INFERENCE)
    rounding = Rounding(lambda: _load(config, variables), infer, dtype=torch.float32)
    rounding.check("masks", expected, INFERENCE)


def _load(config: Mapping[str, Any], variables: Variables) -> DeepMARC:
    """By the converter, or part by part where no recipe builds such a model (ResNet-18, other widths)."""
    resnet, mask_head = config["backbone"]["resnet"], config["mask_head"]
    width, channels = resnet["depth_multiplier"], config["decoder"]["fpn"]["num_filters"]
    values: dict[str, Any] = {
        "width": width,
        "image_size": config["input_size"][0],
        "categories": [{"id": i + 1, "name": str(i)} for i in range(config["num_classes"] - 1)],
        "mask_head": mask_head["convnet_variant"].replace("default", "fcn"),
        "mask_head_width": round(mask_head["num_filters"] / width),
        "mask_size": config["mask_roi_aligner"]["crop_size"],
        "mask_upsample": mask_head["upsample_factor"],
        "class_agnostic_masks": mask_head["class_agnostic"],
    }
    if resnet["model_id"] in (50, 101) and channels == 256 * width:
        model = convert_deep_marc(variables, {**values, "backbone": f"resnet{resnet['model_id']}_fpn"}).model
        assert isinstance(model, DeepMARC)
        return model
    model = DeepMARC(**values, **original_values("resnet50_fpn"))
    epsilon = config["norm_activation"]["norm_epsilon"]
    trunk = create_resnet(resnet["model_id"], width, epsilon)
    backbone = create_backbone(trunk, channels, epsilon)
    not_taken = ["model/mask_head/", "model/rpn_head/", "model/_config_dict/detection_head/", "model/detection_head/"]
    load_variables(backbone, module_table(backbone, DEEP_MARC), variables, "model", not_taken)
    per_class = not mask_head["class_agnostic"]
    settings = {**mask_head, **config["norm_activation"]}
    head = create_head(settings, channels, config["num_classes"] - 1 if per_class else 1)
    table = module_table(head, DEEP_MARC)
    load_variables(head, skip_background(table) if per_class else table, variables, "model/mask_head")
    model.network.backbone, model.network.mask_head = backbone, head
    return model.eval()


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
    for name, row in network_table(model.network).items():
        found[row.path] = list(row.shape(state[name].shape))
    not_taken = ("rpn_head/", "detection_head/")
    assert found == {key: shape for key, shape in listing["keys"].items() if not key.startswith(not_taken)}
    for part in {key.partition("/")[0] for key in found}:
        numbers = sum(math.prod(shape) for key, shape in found.items() if key.startswith(f"{part}/"))
        assert numbers == listing["params"][part], part
