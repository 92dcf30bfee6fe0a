"""MaX-DeepLab's post-processing against reference outputs: no pixel may differ."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from parity_data import ParityData

from maskwright.models.max_deeplab import MaXDeepLabConfig
from maskwright.models.max_deeplab.post_processing import PanopticMerging
from maskwright.structures import Category, ImageGeometry

# The originals' class ids, in the order of the class logits.
THINGS = {"coco_panoptic": range(1, 81), "cityscapes_panoptic": range(11, 19)}
STUFF = {"coco_panoptic": range(81, 134), "cityscapes_panoptic": range(11)}
SCORE = 1e-5

# The original's option: ours.
OPTIONS = {
    "stuff_area_limit": "stuff_area_limit",
    "thing_area_limit": "thing_area_limit",
    "transformer_class_confidence_threshold": "class_threshold",
    "pixel_confidence_threshold": "pixel_threshold",
    "transformer_class_confidence_threshold_thing": "class_threshold",
    "transformer_class_confidence_threshold_stuff": "stuff_class_threshold",
    "overlapping_threshold": "overlap_threshold",
    "reorder_class_weight": "class_exponent",
    "reorder_mask_weight": "mask_exponent",
}


def create_merging(config: Mapping[str, Any]) -> PanopticMerging:
    things, stuff = THINGS[config["dataset"]], STUFF[config["dataset"]]
    categories: list[Category] = [{"id": i, "name": str(i), "isthing": i in things} for i in [*things, *stuff]]
    text = config["evaluator_options"]
    values: dict[str, Any] = {}
    for theirs, number in re.findall(r"(\w+): ([\d.]+)", text):
        values[OPTIONS[theirs]] = int(number) if theirs.endswith("limit") else float(number)
    merging = "maskwise" if '"maskwise"' in text else "pixelwise"
    return PanopticMerging(MaXDeepLabConfig(categories=categories, merging=merging, **values))


def check_post_processing(data: ParityData, file: str) -> None:
    """Panoptic maps pixel by pixel; slots and scores, where the original's do not count ranks."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    merging, size = create_merging(config), tuple(config["crop_size"])
    of_class = np.array([category["id"] for category in merging.config.categories])
    geometry = ImageGeometry(size, size, size)
    for image, expected in enumerate(arrays["out/panoptic_pred"]):
        mask_logits = torch.from_numpy(arrays["in/pixel_space_mask_logits"][image]).permute(2, 0, 1)
        class_logits = torch.from_numpy(arrays["in/transformer_class_logits"][image])
        classes = merging.classify(class_logits)
        slots = merging.assign(mask_logits, classes, size)
        prediction = merging(mask_logits, class_logits, geometry)
        _check_segments(prediction, expected, config, f"{file}: image {image}")

        kept = slots.confident.numpy() if merging.config.merging == "maskwise" else np.ones(size, dtype=bool)
        scores = np.where(classes.detected.any() & torch.ones(size, dtype=torch.bool), slots.probability, 0)
        assert np.abs(scores - arrays["out/instance_scores"][image]).max() <= SCORE
        certainty = classes.confidence[slots.slot].numpy() * classes.detected.any().numpy() * kept
        assert np.abs(certainty - arrays["out/semantic_scores"][image]).max() <= SCORE
        if merging.config.merging == "pixelwise":
            assert np.array_equal(slots.slot + 1, arrays["out/instance_pred"][image])
            everything = PanopticMerging(replace(merging.config, class_threshold=0.0, pixel_threshold=0.0))
            winner = everything.assign(mask_logits, everything.classify(class_logits), size).slot
            assert np.array_equal(of_class[classes.labels[winner]], arrays["out/semantic_pred"][image])


def _check_segments(prediction: Any, expected: np.ndarray, config: Mapping[str, Any], name: str) -> None:
    """The same segments with the same classes and areas, and in pixelwise merging the same order of slots."""
    divisor, void = config["label_divisor"], config["ignore_label"] * config["label_divisor"]
    pairs = np.unique(np.stack([prediction.segmentation.numpy(), expected]).reshape(2, -1), axis=1).T.tolist()
    theirs = dict(pairs)
    assert len(theirs) == len(pairs) == len({value for _, value in pairs}), f"{name}: segments differ"
    assert theirs.get(0, void) == void, f"{name}: void differs"
    assert len(prediction) == len(theirs) - (0 in theirs)
    for info in prediction.segments_info:
        assert theirs[info["id"]] // divisor == info["category_id"], f"{name}: class of segment {info['id']}"
        assert (theirs[info["id"]] % divisor > 0) == info["isthing"]
        assert info["area"] == (expected == theirs[info["id"]]).sum()


CHECKS = {"post_processor.max_deeplab.PostProcessor": [check_post_processing]}
