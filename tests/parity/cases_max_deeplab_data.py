"""The data side of MaX-DeepLab against the originals: ids, resizing, the training pipeline, augmentation, the way back.

`test_max_deeplab.py` finds the files and calls the functions of `CHECKS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from inspect import signature
from typing import Any

import numpy as np
import torch
from parity_data import ParityData
from torch import Tensor
from torch.nn import functional

from maskwright.data.auto_augment import OPERATIONS, POLICY
from maskwright.data.categories import read_categories
from maskwright.data.panoptic_transforms import (
    RandomCrop,
    panoptic_steps,
    panoptic_training_transforms,
    scaled_size,
)
from maskwright.data.transforms import Augmentation
from maskwright.models.max_deeplab.mask_targets import create_mask_targets
from maskwright.ops.panoptic_map import decode_ids, encode_ids, rows_of_ids
from maskwright.ops.resize import fitted_size, resize_nearest
from maskwright.structures import PanopticTarget

NOT_IN_THE_POLICY = {"AutoContrast", "Invert", "Posterize"}
NUM_THINGS = 80


def check_auto_augmentation(data: ParityData, file: str) -> None:
    """Every operation of the policy, to the bit, at every recorded level; and the policy itself."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    assert [[list(step) for step in pair] for pair in POLICY] == config["policy"]
    image = torch.from_numpy(arrays["image"]).permute(2, 0, 1)
    compared = set()
    for key in set(arrays) - {"image"}:
        name, level = key.rsplit("_", 1)
        if name not in NOT_IN_THE_POLICY:
            result = OPERATIONS[name](image, int(level)).permute(1, 2, 0)
            assert np.array_equal(result.numpy(), arrays[key]), key
            compared.add(name)
    assert compared == set(OPERATIONS)


def labels_of_ids(data: ParityData) -> dict[int, int]:
    """The label of each COCO category id: its contiguous id less one (0 is void)."""
    arrays = data.arrays("data/coco_id_map.npz")
    return dict(zip(arrays["coco_category_id"].tolist(), (arrays["contiguous_id"] - 1).tolist(), strict=True))


def check_id_map(data: ParityData, file: str) -> None:
    """The labels of COCO's panoptic classes are their places in the category list of COCO's own files."""
    arrays = data.arrays(file)
    categories = read_categories(data.folder / "pq" / "sample_data" / "gt.json")
    identities = {category["id"]: label for label, category in enumerate(categories)}
    assert labels_of_ids(data) == identities
    assert [category.get("isthing") for category in categories] == arrays["isthing"].astype(bool).tolist()
    assert arrays["inverse"][1:].tolist() == list(identities)


def check_resize_rules(data: ParityData, file: str) -> None:
    """Sizes that fit, the list of scales, and both ways of resizing at every recorded scale."""
    arrays = data.arrays(file)
    for height, width, target, *expected in arrays["h_w_target_newh_neww"].tolist():
        assert list(fitted_size((height, width), (target, target))) == expected
    scales = torch.linspace(0.5, 1.5, 10).numpy()
    assert np.allclose(scales, arrays["scale_factors_from_proto"], rtol=1e-6)
    defaults = signature(panoptic_training_transforms).parameters
    assert (defaults["scale"].default, defaults["scale_steps"].default) == ((0.5, 1.5), 10)
    image = torch.from_numpy(arrays["rs_image"]).permute(2, 0, 1)
    label = torch.from_numpy(arrays["rs_label"][..., 0])
    names = [name.removeprefix("rs_label_") for name in arrays if name.startswith("rs_label_")]
    assert names
    for name in names:
        size = scaled_size((label.shape[0], label.shape[1]), float(name))
        assert np.array_equal(resize_nearest(label, size).numpy(), arrays[f"rs_label_{name}"][..., 0]), name
        resized = functional.interpolate(image[None], size=size, mode="bilinear", align_corners=True)[0]
        assert_image(resized.permute(1, 2, 0), arrays[f"rs_image_{name}"], name)


def assert_image(actual: Tensor, expected: np.ndarray, name: str) -> None:
    """Within 1e-4 of the largest value, 255."""
    assert actual.shape == expected.shape
    error = np.abs(actual.numpy() - expected).max()
    assert error <= 1e-4 * 255, f"{name}: differs by {error:.3g}"


def check_sample(data: ParityData, file: str) -> None:
    """A PNG and its segments to a target; the deterministic pipeline, and the random one with the recorded draws."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    target = _target(arrays, config, labels_of_ids(data))
    colours = encode_ids(_values(target, torch.cat([target["ids"], torch.zeros(1).long()])).numpy())
    assert np.array_equal(colours, arrays["panoptic_png_rgb"])
    assert np.array_equal(_panoptic(target).numpy(), arrays["label"])
    image = torch.from_numpy(arrays["image"]).permute(2, 0, 1)
    height, width = image.shape[1:]
    size = (config["crop_size"][0], config["crop_size"][1])
    fitted = fitted_size((height, width), size)
    crops = {"eval": RandomCrop(fitted, fitted, size, (0, 0), (0, 0), flip=False)}
    for name in [name for name in arrays if name.endswith("_flip")]:
        scale, *offsets, flip = arrays[name].tolist()
        top, left, crop_top, crop_left = (int(offset) for offset in offsets)
        crops[name.split("/")[0]] = RandomCrop(
            fitted, scaled_size(fitted, scale), size, (top, left), (crop_top, crop_left), flip <= 0.5
        )
    assert len(crops) == 1 + len(config["draws"])
    for name, crop in crops.items():
        expected = {key.removeprefix(f"{name}/"): arrays[key] for key in arrays if key.startswith(f"{name}/")}
        augment = Augmentation(lambda *_, crop=crop: crop, panoptic_steps())
        pixels, cropped = augment(image, target)
        assert_image(pixels.permute(1, 2, 0) * 255, expected["image"], f"{name}/image")
        _check_target(cropped, expected, config)


def _target(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], labels: Mapping[int, int]) -> PanopticTarget:
    segments = config["segments_info"]
    ids = torch.tensor([segment["id"] for segment in segments])
    return PanopticTarget(
        segmentation=torch.from_numpy(rows_of_ids(decode_ids(arrays["panoptic_png_rgb"]), ids.numpy())),
        labels=torch.tensor([labels[segment["category_id"]] for segment in segments]),
        iscrowd=torch.tensor([bool(segment["iscrowd"]) for segment in segments]),
        ids=ids,
        image_id=1,
    )


def _values(target: PanopticTarget, values: Tensor) -> Tensor:
    """[S + 1] values as a map; the last is that of void."""
    return values[target["segmentation"].long()]


def _panoptic(target: PanopticTarget) -> Tensor:
    """The originals' class * 256 + instance: 1, 2, ... in each thing class, in order; 0 in stuff; crowds are void."""
    values, counts = [], {}
    for label, crowd in zip(target["labels"].tolist(), target["iscrowd"].tolist(), strict=True):
        if label < NUM_THINGS and not crowd:
            counts[label] = counts.get(label, 0) + 1
        values.append(0 if crowd else (label + 1) * 256 + (counts[label] if label < NUM_THINGS else 0))
    return _values(target, torch.tensor([*values, 0]))


def _check_target(target: PanopticTarget, expected: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
    things = (target["labels"] < NUM_THINGS) & ~target["iscrowd"]
    classes = torch.where(target["iscrowd"], 0, target["labels"] + 1)
    assert np.array_equal(_values(target, torch.cat([classes, torch.zeros(1).long()])).numpy(), expected["semantic_gt"])
    is_thing = _values(target, torch.cat([things, torch.zeros(1).bool()])).numpy()
    assert np.array_equal(is_thing, expected["thing_id_mask_gt"] >= 0)
    # The originals number the things of the crop as they appear, row by row: one of their ids for each of our rows.
    rows = target["segmentation"].numpy()[is_thing]
    pairs = dict(zip(rows.tolist(), expected["thing_id_mask_gt"][is_thing].tolist(), strict=True))
    assert (
        len(pairs) == len(set(pairs.values())) == int(things.sum()) == int((expected["thing_id_class_gt"] >= 0).sum())
    )
    for row, number in pairs.items():
        assert np.array_equal(target["segmentation"].numpy() == row, expected["thing_id_mask_gt"] == number)
        assert int(expected["thing_id_class_gt"][number]) == int(target["labels"][row]) + 1
    # The weights come out of the model's side, at every pixel here.
    focus = config["generator_kwargs"].get("focus_small_instances", {"threshold": 0, "weight": 2.0})
    isthing = torch.arange(133) < NUM_THINGS
    masks = create_mask_targets([target], isthing, 1, focus["weight"], focus["threshold"])
    weights = masks.semantic_weight.reshape(target["segmentation"].shape)
    assert np.array_equal(weights.numpy(), expected["semantic_loss_weight"])


def check_undo_preprocessing(data: ParityData, file: str) -> None:
    """A padded map back to the image's own size, to the pixel."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    height, width = config["resized"]
    cropped = torch.from_numpy(arrays["panoptic"][0])[:height, :width]
    assert np.array_equal(resize_nearest(cropped, tuple(config["raw"])).numpy(), arrays["out"][0])


CHECKS = {
    "autoaugment_utils": [check_auto_augmentation],
    "coco_constants": [check_id_map],
    "preprocess_utils": [check_resize_rules],
    "build_coco_data._generate_panoptic_label + sample_generator.PanopticSampleGenerator": [check_sample],
    "utils.undo_preprocessing": [check_undo_preprocessing],
}
