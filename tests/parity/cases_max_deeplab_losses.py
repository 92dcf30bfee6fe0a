"""MaX-DeepLab's losses and its assignment against reference outputs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from parity_data import ParityData
from torch import Tensor

from maskwright.models.max_deeplab import MaXDeepLabConfig
from maskwright.models.max_deeplab.losses import MaXDeepLabLoss, matched_dice, mean_of_nonzero
from maskwright.models.max_deeplab.mask_targets import MaskTargets, create_mask_targets
from maskwright.models.max_deeplab.network import MaXDeepLabOutputs
from maskwright.ops.matching import match_masks
from maskwright.structures import PanopticTarget

Arrays = Mapping[str, np.ndarray]
LOSS = 1e-4  # relative, of every term of every image
GRADIENT = 1e-3  # relative to the largest magnitude

# The original's name of each term: ours.
TERMS = {
    "pq_style_loss_class_term": "mask_class",
    "pq_style_loss_mask_dice_term": "mask_dice",
    "mask_id_cross_entropy_loss": "mask_id",
    "instance_discrimination_loss": "instance_discrimination",
    "semantic_loss": "semantic",
}
PREDICTIONS = {
    "mask_logits": "pixel_space_mask_logits",
    "class_logits": "transformer_class_logits",
    "pixel_feature": "pixel_space_normalized_feature",
    "semantic_logits": "semantic_logits",
}


def near(ours: Tensor, theirs: np.ndarray, name: str, tolerance: float, floor: float = 1e-9) -> None:
    """Assert that the largest difference is within `tolerance` of the largest magnitude."""
    expected = torch.from_numpy(np.asarray(theirs))
    assert ours.shape == expected.shape, f"{name}: {tuple(ours.shape)}, expected {tuple(expected.shape)}"
    error = (ours.detach() - expected).abs().max().item()
    assert error <= tolerance * max(expected.abs().max().item(), floor), f"{name}: off by {error}"


class LabelSpace:
    """The original's class ids as our labels: theirs in order, without the ignore label.

    channel: of each of our labels in the original's class logits, which have things first.
    """

    def __init__(self, config: Mapping[str, Any]) -> None:
        things, stuff = list(config["thing_class_ids"]), list(config["stuff_class_ids"])
        self.ids = sorted(things + stuff)
        self.void = config["ignore_label"]
        self.isthing = torch.tensor([i in things for i in self.ids])
        self.channel = [(things + stuff).index(i) for i in self.ids]

    def labels(self, ids: np.ndarray) -> Tensor:
        """-1 for the ignore label."""
        return torch.from_numpy(np.where(ids == self.void, -1, np.searchsorted(self.ids, ids))).long()


def panoptic_targets(arrays: Arrays, space: LabelSpace, prefix: str = "gt/") -> list[PanopticTarget]:
    """The original's semantic map and instance map as our targets: a segment for every instance, class and crowd."""
    targets: list[PanopticTarget] = []
    maps = zip(arrays[f"{prefix}semantic_gt"], arrays[f"{prefix}thing_id_mask_gt"], strict=True)
    for semantic, thing_id in maps:
        labels = space.labels(semantic).numpy()
        pairs, index = np.unique(np.stack([labels, thing_id]).reshape(2, -1), axis=1, return_inverse=True)
        known = pairs[0] >= 0
        rows = np.where(known, np.cumsum(known) - 1, -1)
        label = torch.from_numpy(pairs[0][known])
        targets.append(
            {
                "segmentation": torch.from_numpy(rows[index].reshape(labels.shape)).int(),
                "labels": label,
                "iscrowd": space.isthing[label] & torch.from_numpy(pairs[1][known] < 0),
                "ids": torch.arange(len(label)) + 1,
                "image_id": len(targets),
            }
        )
    return targets


def mask_targets(arrays: Arrays, config: Mapping[str, Any], stride: int) -> MaskTargets:
    space = LabelSpace(config)
    targets = create_mask_targets(panoptic_targets(arrays, space), space.isthing, stride)
    weight = torch.from_numpy(arrays["gt/semantic_loss_weight"][:, ::stride, ::stride]).flatten(1)
    return targets._replace(semantic_weight=weight)


def in_our_order(values: Mapping[str, Tensor], config: Mapping[str, Any]) -> MaXDeepLabOutputs:
    """NHWC tensors in the original's order of classes -> outputs; where it has no channel of void, one is put in."""
    space = LabelSpace(config)
    semantic = values["semantic_logits"].permute(0, 3, 1, 2)
    if space.void not in range(semantic.shape[1]):
        semantic = torch.cat([torch.full_like(semantic[:, :1], -1e9), semantic[:, space.ids]], dim=1)
    return MaXDeepLabOutputs(
        mask_logits=values["mask_logits"].permute(0, 3, 1, 2),
        class_logits=values["class_logits"][..., [*space.channel, -1]],
        pixel_feature=values["pixel_feature"].permute(0, 3, 1, 2),
        semantic_logits=semantic,
    )


def recorded_matching(arrays: Arrays, config: Mapping[str, Any], targets: MaskTargets, stride: int) -> Tensor:
    """The original's assignment for our rows, found by a pixel of each mask; -1 for rows that have none."""
    space, permutation = LabelSpace(config), arrays["mid/permutation"]
    things = arrays["gt/thing_id_mask_gt"][:, ::stride, ::stride].reshape(len(permutation), -1)
    stuff = sorted(config["stuff_class_ids"])
    matching = torch.full(targets.mask_valid.shape, -1)
    for image, row in targets.mask_valid.nonzero().tolist():
        if targets.mask_is_thing[image, row]:
            pixel = (targets.mask_index[image] == row).nonzero()[0, 0]
            theirs = int(things[image, pixel])
        else:
            class_id = space.ids[int(targets.mask_labels[image, row])]
            theirs = config["max_thing_id"] + stuff.index(class_id)
        slots = permutation[image, theirs].nonzero()[0]
        matching[image, row] = int(slots[0]) if len(slots) else -1
    return matching


def create_loss(config: Mapping[str, Any]) -> MaXDeepLabLoss:
    """The loss with the weights and shares of the case."""
    values: dict[str, Any] = {"contrast_pixels": config["instance_discrimination_sample_k"]}
    names = {
        "pq_style": "pq",
        "mask_id_cross_entropy": "mask_id",
        "instance_discrimination": "instance_discrimination",
        "semantic": "semantic",
    }
    for theirs, options in re.findall(r"(\w+)_loss \{([^}]*)\}", config["loss_options"]):
        for key, number in re.findall(r"(weight|top_k_percent): ([\d.]+)", options):
            values[names[theirs] + ("_weight" if key == "weight" else "_top_k")] = float(number)
    return MaXDeepLabLoss(MaXDeepLabConfig(categories=[{"id": 1, "name": "any"}], **values))


def check_true_masks(data: ParityData, file: str) -> None:
    """Which pixels belong to a mask, which are labelled, the areas and the classes."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    targets = mask_targets(arrays, config, config["stride"])
    instance = np.take_along_axis(
        np.pad(targets.mask_is_thing.numpy(), ((0, 0), (0, 1))), targets.mask_index.numpy(), axis=1
    )
    assert np.array_equal(targets.mask_index >= 0, arrays["mid/pixel_gt_mask_id_one_hot"].any(axis=2))
    assert np.array_equal(targets.labels >= 0, arrays["mid/pixel_gt_non_void_mask"] > 0)
    assert np.array_equal(instance, arrays["mid/pixel_gt_thing_mask"] > 0)
    channel = torch.tensor(LabelSpace(config).channel)
    for image, valid in enumerate(targets.mask_valid):
        areas = targets.masks[image].sum(dim=1)[valid]
        ours = sorted(zip(areas.tolist(), channel[targets.mask_labels[image, valid]].tolist(), strict=True))
        present = arrays["mid/mask_gt_non_void_mask"][image] > 0
        theirs = zip(
            arrays["mid/mask_gt_area"][image, present, 0].tolist(),
            arrays["mid/mask_gt_semantic_one_hot"][image, present].argmax(axis=1).tolist(),
            strict=True,
        )
        assert ours == sorted(theirs), f"{file}: masks of image {image}"


def check_assignment(data: ParityData, file: str) -> None:
    """Where the recorded assignment is the optimum, ours gives the same similarity; elsewhere, more."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    targets = mask_targets(arrays, config, config["stride"])
    outputs = in_our_order(_predictions(arrays), config)
    similarity = torch.from_numpy(_similarity(outputs, targets))
    ours = match_masks(similarity, targets.mask_valid)
    theirs = recorded_matching(arrays, config, targets, config["stride"])
    for image, recorded in enumerate(config["match"]):
        rows = (ours[image] >= 0).nonzero().flatten()
        total = similarity[image, rows, ours[image, rows]].double().sum().item()
        expected = -recorded["optimum"]
        assert abs(total - expected) <= LOSS * max(1e-3, abs(expected)), f"{file}: {total}, expected {expected}"
        if recorded["same"]:
            assert torch.equal(ours[image], theirs[image]), f"{file}: assignment of image {image}"


def _similarity(outputs: MaXDeepLabOutputs, targets: MaskTargets) -> np.ndarray:
    """What is matched, from its definition."""
    probabilities = outputs.mask_logits.flatten(2).softmax(dim=1) * (targets.labels >= 0)[:, None]
    masks = targets.masks
    size = (masks.sum(dim=2)[:, :, None] + probabilities.sum(dim=2)[:, None]) / 2
    dice = torch.einsum("bkp,bnp->bkn", masks, probabilities) / (size + 1e-5)
    of_class = outputs.class_logits.softmax(dim=2).transpose(1, 2)
    return (dice * torch.stack([c[labels] for c, labels in zip(of_class, targets.mask_labels, strict=True)])).numpy()


def check_losses(data: ParityData, file: str) -> None:
    """Every term of every image, and the gradients with respect to all predictions, given the recorded assignment.

    With more masks than slots the original piles the classes of all masks that are left over on slot 0, and asks
    their pixels for a column of -99999; ours leaves them out (`MaXDeepLabLoss`), so two terms are not compared.
    """
    arrays, config = data.arrays(file), data.files[file]["config"]
    targets = mask_targets(arrays, config, config["stride"])
    leaves = {name: value.requires_grad_() for name, value in _predictions(arrays).items()}
    outputs = in_our_order(leaves, config)
    matching = recorded_matching(arrays, config, targets, config["stride"])
    losses = create_loss(config).per_image(outputs, targets, matching)
    crowded = bool((targets.mask_valid.sum(dim=1) > config["num_mask_slots"]).any())
    for theirs, ours in TERMS.items():
        if crowded and ours in ("mask_class", "mask_id"):
            assert losses[ours].isfinite().all()
            continue
        for image, expected in enumerate(arrays[f"loss/{theirs}"]):
            near(losses[ours][image], expected, f"{file}: {ours} of image {image}", LOSS)
    total = torch.stack(list(losses.values())).sum(dim=0).mean()
    total.backward()
    for ours, theirs in PREDICTIONS.items():
        if not crowded and f"grad/{theirs}" in arrays:
            gradient = leaves[ours].grad
            assert gradient is not None
            near(gradient, arrays[f"grad/{theirs}"], f"{file}: gradient of {ours}", GRADIENT)


def check_base_losses(data: ParityData, file: str) -> None:
    """The mean of the largest losses, dice, and the weighted cross entropy of slots."""
    arrays = data.arrays(file)
    losses = torch.from_numpy(arrays["topk_in"]).flatten(1)
    for name in (name for name in arrays if name.startswith("topk_") and name != "topk_in"):
        near(mean_of_nonzero(losses, float(name.removeprefix("topk_"))), arrays[name], name, LOSS)
    logits, truth = (torch.from_numpy(arrays[f"dice_{name}"]).transpose(1, 2) for name in ("logits", "gt_onehot"))
    overlap = truth @ logits.softmax(dim=1).transpose(1, 2)
    count = truth.shape[1]  # pixels without a mask count for nothing
    for row in range(count):  # each mask alone with its own slot, the others without
        matching = torch.full((len(truth), count), -1)
        matching[:, row] = row
        dice = matched_dice(overlap, truth.sum(dim=2), torch.ones_like(overlap), matching)
        near(dice, arrays["dice_softmax"][:, row], f"dice of mask {row}", LOSS)


def check_matcher(data: ParityData, file: str) -> None:
    """The same assignment, or with ties the same cost; and the optimum where float32 lost the original's digits."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    for name in (name.removesuffix("_cost") for name in arrays if name.endswith("_cost")):
        cost = torch.from_numpy(arrays[f"{name}_cost"]).double()
        if f"{name}_similarity" in arrays:
            similarity = torch.from_numpy(arrays[f"{name}_similarity"])
            valid = torch.from_numpy(arrays[f"{name}_valid"])[..., 0] > 0
            ours, theirs = match_masks(similarity, valid), arrays[f"{name}_matched"]
            if config[name].get("same"):
                assert np.array_equal(_permutation(ours, theirs.shape[2]), theirs), name
            total = sum(similarity[b, k, ours[b, k]].item() for b, k in (ours >= 0).nonzero().tolist())
            assert abs(total - config[name]["scipy_similarity"]) <= 1e-6 * max(1.0, total), name
            continue
        ours = match_masks(cost.max() - cost, torch.ones(cost.shape[:2], dtype=torch.bool))
        if name != "tie":
            assert np.array_equal(_permutation(ours, cost.shape[2]), arrays[f"{name}_perm"]), name
        for image, expected in enumerate(np.atleast_1d(config[name]["scipy"])):
            rows = (ours[image] >= 0).nonzero().flatten()
            assert abs(cost[image, rows, ours[image, rows]].sum().item() - expected) <= 1e-5 * max(1, abs(expected))


def _permutation(matching: Tensor, count: int) -> np.ndarray:
    """0/1 matrices [b, k, n] of an assignment."""
    return (matching[:, :, None] == torch.arange(count)).numpy().astype(np.uint8)


def _predictions(arrays: Arrays) -> dict[str, Tensor]:
    return {ours: torch.from_numpy(arrays[f"pred/{theirs}"]) for ours, theirs in PREDICTIONS.items()}


CHECKS = {
    "loss_builder.DeepLabFamilyLoss -> MaXDeepLabLoss": [check_true_masks, check_assignment, check_losses],
    "base_loss.*": [check_base_losses],
    "matchers_ops.hungarian_matching / max_deeplab_loss.nonsquare_hungarian_matching": [check_matcher],
}
