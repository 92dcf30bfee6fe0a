"""COCO AP: identity with pycocotools on hard files, hand-computed cases, ignored regions, merging."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools import mask as reference_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from maskwright.evaluation.coco_ap import CocoAP
from maskwright.structures import Category, EncodedMasks, InstancePrediction, Target

# Ids neither sorted nor from 1; the last class has no instance.
CATEGORIES: list[Category] = [
    {"id": 90, "name": "cat"},
    {"id": 0, "name": "dog"},
    {"id": 1001, "name": "owl"},
    {"id": 7, "name": "eel"},
]
STATISTICS = ["ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large"]
STATISTICS += ["ar1", "ar10", "ar100", "ar_small", "ar_medium", "ar_large"]


def prediction_of(boxes: Any, labels: list[int], scores: list[float], size: tuple[int, int], **fields: Any):
    count = len(labels)
    values: dict[str, Any] = {
        "boxes": torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "labels": torch.tensor(labels, dtype=torch.int64),
        "scores": torch.tensor(scores, dtype=torch.float32),
        "mask_scores": torch.full((count,), 0.5),
        "mask_probabilities": torch.ones(count, 4, 4),
        "image_size": size,
        "frame": "pixel",
    }
    return InstancePrediction(**{**values, **fields})


def target_of(boxes: Any, labels: list[int], size: tuple[int, int], image_id: int | str = 1, **fields: Any) -> Target:
    """Filled boxes with whole corners."""
    count = len(labels)
    corners = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    masks = torch.zeros(count, *size, dtype=torch.bool)
    for mask, (x1, y1, x2, y2) in zip(masks, corners.int().tolist(), strict=True):
        mask[y1:y2, x1:x2] = True
    target: Target = {
        "boxes": corners,
        "labels": torch.tensor(labels, dtype=torch.int64),
        "masks": masks,
        "has_mask": torch.ones(count, dtype=torch.bool),
        "iscrowd": torch.zeros(count, dtype=torch.bool),
        "ids": torch.arange(count),
        "image_id": image_id,
    }
    return {**target, **fields}  # type: ignore[typeddict-item]


def ellipse(box: list[float]) -> list[list[float]]:
    angles = np.linspace(0, 2 * np.pi, 14)[:-1]
    xs, ys = (np.cos(angles) + 1) / 2 * box[2] + box[0], (np.sin(angles) + 1) / 2 * box[3] + box[1]
    return [np.stack([xs, ys], 1).round(2).ravel().tolist()]


def hard_annotation(random: np.random.Generator, size: tuple[int, int]) -> dict[str, Any]:
    """Any form of segmentation, or none; a crowd; COCO's own area, or none; a box that leaves the image."""
    height, width = size
    extent = random.choice([12, 60, 130]) * random.uniform(0.6, 1.2, 2)
    box = [*(random.uniform(-3, [width - 8, height - 8])), *extent]
    box = [round(float(value), 2) for value in box]
    polygons: Any = ellipse(box)
    rle: Any = reference_mask.merge(reference_mask.frPyObjects(polygons, height, width))
    entry = {"category_id": int(random.choice([90, 0, 1001])), "bbox": box, "iscrowd": int(random.random() < 0.15)}
    form = random.choice(["polygons", "compressed", "list", "none", "empty"], p=[0.4, 0.15, 0.15, 0.15, 0.15])
    if form == "polygons":
        entry["segmentation"] = polygons
    elif form == "compressed":
        entry["segmentation"] = {"size": [height, width], "counts": rle["counts"].decode()}
    elif form == "list":
        plane = np.pad(reference_mask.decode(rle).ravel(order="F"), 1, constant_values=2)
        starts = np.flatnonzero(np.diff(plane))
        counts = np.diff(starts).tolist()
        entry["segmentation"] = {"size": [height, width], "counts": [0] * int(plane[1]) + counts}
    elif form == "empty":
        entry["segmentation"] = []
    if random.random() < 0.8:
        entry["area"] = float(reference_mask.area(rle) * random.uniform(0.8, 1.2))
    return entry


def hard_file(seed: int, image_ids: list[int]) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    images, annotations = [], []
    for image_id in image_ids:
        height, width = (int(side) for side in random.integers(120, 200, 2))
        images.append({"id": image_id, "height": height, "width": width})
        for _ in range(random.integers(0, 8)):
            entry = hard_annotation(random, (height, width))
            annotations.append({"id": 1000 - 7 * len(annotations), "image_id": image_id, **entry})
    return {"images": images, "annotations": annotations, "categories": list(CATEGORIES)}


def guesses(content: dict[str, Any], seed: int) -> list[InstancePrediction]:
    """The true boxes, shifted, some under a wrong label, and others, with equal scores among them; in the first
    image more of one class than COCO counts."""
    random = np.random.default_rng(seed)
    label_of = {category["id"]: label for label, category in enumerate(CATEGORIES)}
    predictions = []
    for image in content["images"]:
        size = image["height"], image["width"]
        boxes, labels = [], []
        for entry in content["annotations"]:
            if entry["image_id"] == image["id"]:
                x, y, width, height = np.array(entry["bbox"]) + random.normal(0, 2, 4)
                boxes.append([x, y, x + max(width, 2), y + max(height, 2)])
                wrong = random.random() < 0.1
                labels.append(int(random.integers(4)) if wrong else label_of[entry["category_id"]])
        extra = 110 if not predictions else 3
        corners = random.uniform(0, 100, (extra, 2))
        boxes += np.concatenate([corners, corners + random.uniform(5, 100, (extra, 2))], 1).tolist()
        labels += [0] * extra
        scores = random.uniform(0, 1, len(labels)).round(1).tolist()
        grid = (np.arange(12) + 0.5) / 6 - 1
        inside = grid[:, None] ** 2 + grid**2 < 1
        noisy = 0.4 * inside + random.uniform(0, 0.55, (len(labels), 12, 12))
        probabilities = torch.from_numpy(noisy.astype(np.float32))
        predictions.append(prediction_of(boxes, labels, scores, size, mask_probabilities=probabilities))
    return predictions


def empty_target(image: dict[str, Any]) -> Target:
    return target_of([], [], (image["height"], image["width"]), image["id"])


def reference_statistics(
    content: dict[str, Any], results: list[dict[str, Any]], overlap: Any, category_ids: list[int]
) -> list[float]:
    """pycocotools' twelve numbers, NaN for its -1."""
    truth: Any = COCO()
    truth.dataset = copy.deepcopy(content)
    sizes = {image["id"]: (image["height"], image["width"]) for image in content["images"]}
    for entry in truth.dataset["annotations"]:
        height, width = sizes[entry["image_id"]]
        x, y, w, h = entry["bbox"]
        if not entry.get("segmentation"):
            x1, x2 = np.clip([x, x + w], 0, width).tolist()
            y1, y2 = np.clip([y, y + h], 0, height).tolist()
            entry["segmentation"] = [[x1, y1, x1, y2, x2, y2, x2, y1]]
            entry["iscrowd"] = 1 if overlap == "segm" else entry["iscrowd"]
            entry.setdefault("area", w * h)
        elif "area" not in entry:
            mask = entry["segmentation"]
            if isinstance(mask, list) or isinstance(mask["counts"], list):
                mask = reference_mask.frPyObjects(mask, height, width)
            mask = reference_mask.merge(mask) if isinstance(mask, list) else mask
            entry["area"] = float(reference_mask.area(mask))
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), overlap)
        evaluation.params.catIds = category_ids
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [math.nan if value == -1 else float(value) for value in evaluation.stats]


def evaluated(content: dict[str, Any], predictions: list[InstancePrediction], seen: list[str]) -> CocoAP:
    metric = CocoAP(CATEGORIES, seen, content["annotations"])
    metric.update(predictions, [empty_target(image) for image in content["images"]])
    return metric


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_pycocotools(seed: int):
    content = hard_file(seed, image_ids=[77, 3, 500, 12, 4, 0])
    flags = [(bool(entry.get("segmentation")), entry["iscrowd"]) for entry in content["annotations"]]
    assert {(True, 0), (True, 1), (False, 0)} <= set(flags)
    metric = evaluated(content, guesses(content, seed), seen=["owl", "cat"])
    values = metric.compute()
    for prefix, overlap, results in (("box", "bbox", metric.box_results()), ("mask", "segm", metric.mask_results())):
        for suffix, ids in (("", [90, 0, 1001, 7]), ("_seen", [1001, 90]), ("_unseen", [0, 7])):
            expected = reference_statistics(content, results, overlap, ids)
            found = [values[f"{prefix}_{name}{suffix}"] for name in STATISTICS]
            # pycocotools adds 2e-16 to the denominators of precision.
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-14, err_msg=prefix + suffix)
        for row, category in zip(metric.per_class(), CATEGORIES, strict=True):
            expected = reference_statistics(content, results, overlap, [category["id"]])[0]
            assert getattr(row, f"{prefix}_ap") == pytest.approx(expected, abs=1e-14, nan_ok=True)
    assert 0.05 < values["mask_ap"] < 0.95
    assert values["instances"] == flags.count((True, 0)) + flags.count((False, 0))
    assert values["instances_without_mask"] == flags.count((False, 0))


def test_results_are_cocos_and_hold_run_lengths_only():
    boxes = [[1.25, 2.5, 30.0, 20.0], [0.0, 0.0, 9.0, 7.5]]
    prediction = prediction_of(boxes, [2, 0], [0.3, 0.123456789], (40, 50))
    metric = CocoAP(CATEGORIES, seen=[])
    metric.update([prediction], [target_of([], [], (40, 50), image_id=8)])
    assert metric.box_results() == [
        {"image_id": 8, "category_id": 1001, "bbox": [1.25, 2.5, 28.75, 17.5], "score": pytest.approx(0.3)},
        {"image_id": 8, "category_id": 90, "bbox": [0, 0, 9, 7.5], "score": pytest.approx(0.123456789, abs=1e-8)},
    ]
    masks = metric.mask_results()
    assert [sorted(entry) for entry in masks] == [["category_id", "image_id", "score", "segmentation"]] * 2
    assert [entry["score"] for entry in masks] == [entry["score"] for entry in metric.box_results()]
    decoded = np.stack([reference_mask.decode(entry["segmentation"]) for entry in masks])
    assert np.array_equal(decoded, prediction.masks.numpy())
    assert "tensor" not in repr(metric.state())


@pytest.mark.parametrize("encode", [lambda planes: planes, EncodedMasks.from_planes])
def test_hand_computed_precision_of_targets(encode):
    """Two cats: the first guess is right, the second wrong, the third right: precision 1 up to recall 0.5, then 2/3.
    One dog, found with a box of IoU 0.6: right at 3 of the 10 thresholds (0.50, 0.55, 0.60)."""
    size = (60, 60)
    target = target_of([[0, 0, 10, 10], [20, 20, 30, 30], [40, 40, 50, 50]], [0, 0, 1], size)
    target["masks"] = encode(target["masks"])
    boxes = [[0, 0, 10, 10], [0, 40, 10, 50], [20, 20, 30, 30], [40, 40, 50, 46]]
    metric = CocoAP(CATEGORIES, seen=["cat"])
    metric.update([prediction_of(boxes, [0, 0, 0, 1], [0.9, 0.8, 0.7, 0.6], size)], [target])
    values = metric.compute()
    cats = (51 + 50 * 2 / 3) / 101
    for prefix in ("box", "mask"):
        assert values[f"{prefix}_ap_seen"] == pytest.approx(cats)
        assert values[f"{prefix}_ap_unseen"] == pytest.approx(0.3)
        assert values[f"{prefix}_ap"] == values[f"{prefix}_ap_small"] == pytest.approx((cats + 0.3) / 2)
        assert values[f"{prefix}_ap50_unseen"] == 1
        assert values[f"{prefix}_ap75_unseen"] == 0
        assert values[f"{prefix}_ar1_seen"] == 0.5
        assert values[f"{prefix}_ar10_seen"] == 1
        assert math.isnan(values[f"{prefix}_ap_large"])
    classes = [(row.name, row.seen, row.instances, row.mask_ap) for row in metric.per_class()]
    assert classes[0] == ("cat", True, 2, pytest.approx(cats))
    assert classes[1] == ("dog", False, 1, pytest.approx(0.3))
    assert classes[3] == ("eel", False, 0, pytest.approx(math.nan, nan_ok=True))


def test_an_instance_without_a_mask_is_a_region_that_masks_ignore():
    """The guess on it would be the best-scored wrong one for masks; for boxes it is right."""
    size = (60, 60)
    target = target_of([[0, 0, 10, 10], [20, 20, 30, 30]], [0, 0], size)
    target["has_mask"][1] = False
    target["masks"][1] = False
    guess = prediction_of([[20, 20, 30, 30], [21, 21, 26, 26], [0, 0, 10, 10]], [0, 0, 0], [0.9, 0.8, 0.7], size)
    metric = CocoAP(CATEGORIES, seen=[])
    metric.update([guess], [target])
    values = metric.compute()
    assert values["mask_ap"] == 1
    assert values["box_ap"] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert values["instances"] == 2
    assert values["instances_without_mask"] == metric.per_class()[0].instances_without_mask == 1


def test_detections_in_a_crowd_are_ignored():
    size = (60, 60)
    target = target_of([[0, 0, 10, 10], [20, 20, 60, 60]], [0, 0], size, iscrowd=torch.tensor([False, True]))
    boxes = [[22, 22, 30, 30], [40, 40, 50, 50], [0, 0, 10, 10]]
    metric = CocoAP(CATEGORIES, seen=[])
    metric.update([prediction_of(boxes, [0, 0, 0], [0.9, 0.8, 0.7], size)], [target])
    values = metric.compute()
    assert values["mask_ap"] == values["box_ap"] == 1
    assert values["instances"] == 1


def test_the_size_class_is_that_of_the_area_then_of_the_mask_then_of_the_box():
    size = (120, 120)
    box, triangle = [0, 0, 40, 40], [[0, 0, 40, 0, 0, 40]]  # 1600 pixels is medium, half of it small
    entry = {"id": 1, "image_id": 1, "category_id": 90, "bbox": box, "segmentation": triangle}
    without_mask = {key: value for key, value in entry.items() if key != "segmentation"}
    for annotation, filled in (({**entry, "area": 96**2 + 1}, "large"), (entry, "small"), (without_mask, "medium")):
        metric = CocoAP(CATEGORIES, seen=[], annotations=[annotation])
        metric.update([prediction_of([box], [0], [1.0], size)], [target_of([], [], size)])
        values = metric.compute()
        counted = [name for name in ("small", "medium", "large") if not math.isnan(values[f"box_ap_{name}"])]
        assert counted == [filled]


def test_annotations_of_other_images_and_classes_do_not_count_and_annotation_0_does():
    size = (60, 60)
    entries = [
        {"id": 0, "image_id": "a", "category_id": 90, "bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10]]},
        {"id": 1, "image_id": "b", "category_id": 90, "bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10]]},
        {"id": 2, "image_id": "a", "category_id": 5, "bbox": [0, 0, 10, 10], "segmentation": [[0, 0, 10, 0, 10, 10]]},
    ]
    metric = CocoAP(CATEGORIES, seen=[], annotations=entries)
    metric.update([prediction_of([[0, 0, 10, 10]], [0], [0.9], size)], [target_of([], [], size, image_id="a")])
    values = metric.compute()
    assert values["box_ap"] == 1
    assert values["instances"] == values["images"] == 1


def test_merged_states_are_the_whole_in_any_order_and_reset_forgets():
    content = hard_file(9, image_ids=[5, 4, 3, 2])
    predictions = guesses(content, 9)
    whole = evaluated(content, predictions, seen=["cat"])
    parts = [CocoAP(CATEGORIES, ["cat"], content["annotations"]) for _ in range(2)]
    for index in (3, 0, 2, 1):
        parts[index % 2].update(predictions[index : index + 1], [empty_target(content["images"][index])])
    before = parts[0].compute()
    parts[0].merge(parts[1].state())
    assert parts[0].compute() == pytest.approx(whole.compute(), nan_ok=True, abs=0, rel=0)
    assert before["images"] == 2
    assert parts[0].mask_results() == whole.mask_results()
    with pytest.raises(ValueError, match="image 2: it was counted already"):
        parts[0].merge(parts[1].state())
    parts[0].reset()
    assert parts[0].compute()["images"] == 0


def test_nothing_at_all_is_nan_and_no_guess_is_zero():
    metric = CocoAP(CATEGORIES, seen=["cat"])
    values = metric.compute()
    keys = {f"{p}_{name}{s}" for p in ("box", "mask") for name in STATISTICS for s in ("", "_seen", "_unseen")}
    assert set(values) == {*keys, "images", "instances", "instances_without_mask"}
    assert all(math.isnan(values[key]) for key in keys)
    metric.update([prediction_of([], [], [], (20, 20))], [target_of([], [], (20, 20), image_id=1)])
    assert math.isnan(metric.compute()["mask_ap"])
    metric.update([prediction_of([], [], [], (20, 20))], [target_of([[0, 0, 9, 9]], [0], (20, 20), image_id=2)])
    assert metric.compute()["mask_ap"] == metric.compute()["box_ar100_seen"] == 0
    assert math.isnan(metric.compute()["mask_ap_unseen"])


def test_wrong_input_is_refused_with_the_image_named():
    metric = CocoAP(CATEGORIES, seen=[])
    prediction, target = prediction_of([[0, 0, 5, 5]], [0], [0.5], (20, 20)), target_of([], [], (20, 20), image_id=6)
    with pytest.raises(ValueError, match="one prediction per target, but got 1 and 2"):
        metric.update([prediction], [target, target])
    with pytest.raises(ValueError, match=r"image 6: predictions are for an image of \(20, 20\)"):
        metric.update([prediction], [target_of([], [], (20, 21), image_id=6)])
    with pytest.raises(ValueError, match=r"image 6: labels must lie in 0\.\.3, but got \[-1\]"):
        metric.update([prediction_of([[0, 0, 5, 5]], [-1], [0.5], (20, 20))], [target])
    metric.update([prediction], [target])
    with pytest.raises(ValueError, match="image 6: it was counted already"):
        metric.update([prediction], [target])
    with pytest.raises(ValueError, match="not: unicorn"):
        CocoAP(CATEGORIES, seen=["unicorn"])
