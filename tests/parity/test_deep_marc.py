"""Deep-MARC against reference outputs: every case of the manifest is checked here, or listed with its reason.

The data are the project's copy, or `$MASKWRIGHT_PARITY/deep_marc`. Cases are found by the manifest's `module`, so
that other seeds and sizes of the same kinds run through the same checks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cases_deep_marc_checkpoints as checkpoints
import cases_deep_marc_crops as crops
import cases_deep_marc_model as model
import cases_deep_marc_networks as networks
import pytest
from parity_data import ParityData

DATA = ParityData("deep_marc")

Check = Callable[[ParityData, str], None]

SPINENET = "SpineNet"
RESNET_FPN = "ResNet+FPN+RPNHead+DetectionHead"
MODEL = "DeepMaskRCNNModel"
SERVING = "serving DetectionModule (image_tensor, image_and_boxes_tensor)"
CROPS = "MultilevelROIAligner"

CHECKS: dict[str, list[Check]] = {
    "DeepMaskHead": [networks.check_mask_head],
    "DeepMaskHead(training=True)": [networks.check_mask_head_in_training],
    SPINENET: [networks.check_spinenet],
    RESNET_FPN: [networks.check_resnet_fpn, networks.check_symmetric_padding_is_another_function],
    MODEL: [checkpoints.check_forward],
    SERVING: [checkpoints.check_serving],
    CROPS: [crops.check_crops],
    "_build_mask_loss": [model.check_mask_loss],
}

# (module, part): the issue that brings it.
NOT_YET: dict[tuple[str, str], str] = {}

DETECTOR = "the detector is torchvision's: what differs is listed in `DeepMARC`"
NEVER: dict[tuple[str, str], str] = {
    (SPINENET, "built with a dynamic shape"): (
        "without a static width the original never merges unused nodes and drops what nobody reads then: another "
        "network, with 35 arrays less, that nobody trains or serves"
    ),
    (RESNET_FPN, "rpn_scores, rpn_boxes, roi_features, class_outputs, box_outputs"): DETECTOR,
    (RESNET_FPN, "ResNet-18 as torchvision has it"): (
        "the original's first block has a convolution in its shortcut; the check adds it to torchvision's"
    ),
    (MODEL, "detections, proposals, rpn_scores, rpn_boxes, class_outputs, box_outputs"): DETECTOR,
    (MODEL, "given boxes of a model with one mask per class"): (
        "the original answers with the background's mask, which we have not; detected boxes are compared instead"
    ),
    ("DeepMaskRCNNModel(training=True, use_gt_boxes_for_masks)", "all"): (
        "mixes the detector's random samples into the batch norms; the mask head in training is compared alone, and "
        "the loss in its own case"
    ),
    (SERVING, "detections"): f"batched suppression; {DETECTOR}; masks are compared on the original's boxes",
    (SERVING, "given boxes of a model with one mask per class"): "the background's mask, which we have not",
    (CROPS, "boxes beyond the image or turned over"): "the original extrapolates there, ours is 0 beyond a cell",
    (CROPS, "crop4_off0"): "samples on the corners of cells: no model of the original asks for them",
    ("level assignment", "all"): "the same rule but for 1e-6 below powers of two (torchvision's epsilon)",
    ("crop_mask_in_target_box", "all"): (
        "our mask targets are cut from the full-size masks, not from crops of 112 x 112 of them"
    ),
    (
        "Anchor",
        "all",
    ): "torchvision's lie on the corners of cells, not on their centres, and have sides of whole pixels",
    ("ROISampler", "all"): DETECTOR,
    ("MaskSampler / resize_as (use_gt_boxes_for_masks)", "all"): (
        "our mask targets are cut from the full-size masks; a box without a learnable mask is no row of the batch"
    ),
    ("RpnAnchorLabeler + build_losses", "all"): DETECTOR,
    ("MultilevelROIGenerator", "all"): DETECTOR,
    ("DetectionGenerator", "all"): DETECTOR,
    ("maskrcnn_input.Parser (no augmentation)", "all"): (
        "our data pipeline is of its own: targets hold full-size masks, and the model resizes and normalises"
    ),
}

# Files of the manifest that the project's own copy leaves out, for their size or because they are never compared.
NOT_COPIED = {
    "a_maskhead_hourglass100_agnostic.npz",
    "a_maskhead_hourglass52_agnostic.npz",
    "b_anchors_r50_640.npz",
    "b_anchors_spinenet.npz",
    "b_crop_mask_in_target_box.npz",
    "b_level_table.npz",
    "b_roialign_p2p6_256.npz",
    "c_detection_generator.npz",
    "c_losses.npz",
    "c_mask_targets.npz",
    "c_parser.npz",
    "c_roi_generator.npz",
    "c_roi_matching.npz",
    "d_resnetfpn_r101.npz",
    "d_resnetfpn_r18.npz",
    "d_resnetfpn_r50.npz",
    "d_spinenet_49like_dyn.npz",
    "e_r18perclass_forward.npz",
    "e_r18perclass_serving.npz",
    "e_r50hg52_trainforward.npz",
}


def _cases() -> list[Any]:
    cases = []
    for file, entry in DATA.files.items():
        if DATA.is_own_copy and file in NOT_COPIED:
            continue
        if entry["config"].get("built_with_dynamic_shape"):
            continue  # listed under *never*
        for check in CHECKS.get(entry["module"], []):
            cases.append(pytest.param(check, file, id=f"{file}-{check.__name__}"))
    return cases


@pytest.mark.parametrize(("check", "file"), _cases())
def test_reference(check: Check, file: str) -> None:
    check(DATA, file)


@pytest.mark.parametrize("file", sorted((DATA.folder / "full_model_keys").glob("*.json")), ids=lambda file: file.stem)
def test_published_size(file: Path) -> None:
    checkpoints.check_full_size(file)


def test_every_case_is_checked_or_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {module for module, _ in NOT_YET} | {module for module, _ in NEVER}
    unknown = [file for file, entry in DATA.files.items() if entry["module"] not in listed | set(CHECKS)]
    assert not unknown, f"cases that are neither checked nor listed: {unknown}"
    stale = (listed | set(CHECKS)) - {entry["module"] for entry in DATA.files.values()}
    assert not (stale and DATA.is_own_copy), f"modules that no case has: {stale}"
    missing = {file for file in DATA.files if not (DATA.folder / file).exists()}
    assert missing == (NOT_COPIED if DATA.is_own_copy else set())
    with capsys.disabled():
        print(f"\nDeep-MARC parity: {len(NOT_YET)} parts not yet, {len(NEVER)} never, {len(missing)} files not copied")
