"""Deep-MAC against reference outputs: every case of the manifest is checked here, or listed with its reason.

The data are the project's copy, or `$MASKWRIGHT_PARITY/deep_mac`. Cases are found by the manifest's `module`, so
that other seeds and sizes of the same kinds run through the same checks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases_deep_mac_checkpoints as checkpoints
import cases_deep_mac_detector as detector
import cases_deep_mac_mask_branch as mask_branch
import cases_deep_mac_networks as networks
import cases_deep_mac_ops as ops
import cases_deep_mac_training as training
import pytest
from parity_data import ParityData

DATA = ParityData("deep_mac")
LARGE = 100_000_000  # parameters: such a network is a slow test

Check = Callable[[ParityData, str], None]


def _of_arrays(check: Callable[..., None]) -> Check:
    def run(data: ParityData, file: str) -> None:
        check(data.arrays(file), data.files[file])

    run.__name__ = check.__name__
    return run


CROPS = (
    "crop_and_resize_feature_map / _get_mask_head_input / _get_instance_embeddings / crop_and_resize_instance_masks"
    " / fill_boxes / resize_instance_masks / crop_masks_within_boxes"
)
TARGETS = "CenterNetCenterHeatmapTargetAssigner / CenterNetBoxTargetAssigner"
LOSSES = "DeepMACMetaArch.loss"
POSTPROCESS = "DeepMACMetaArch.postprocess / predict_masks_from_boxes / reframe_box_masks_to_image_masks"
PREPROCESS = "resize_to_range + CenterNetHourglassFeatureExtractor.preprocess"
END_TO_END = "DeepMACMetaArch end to end, inference"
TRAINING_STEP = "model_lib_v2 training step (losses, gradients, BN updates)"
RESNET_FPN = "CenterNetResnetV1FpnFeatureExtractor"

CHECKS: dict[str, list[Check]] = {
    "HourglassNetwork": [networks.check_hourglass],
    "MaskHeadNetwork": [networks.check_mask_head],
    "CenterNetHourglassFeatureExtractor": [networks.check_full_size],
    RESNET_FPN: [networks.check_full_size],
    CROPS: [_of_arrays(ops.check_roi_crop), _of_arrays(ops.check_full_resolution)],
    TARGETS: [detector.check_targets],
    LOSSES: [
        _of_arrays(ops.check_mask_losses),
        mask_branch.check_mask_losses_of_stacks,
        detector.check_detector_losses,
    ],
    POSTPROCESS: [
        mask_branch.check_provided_masks,
        mask_branch.check_full_resolution_masks,
        detector.check_detections,
    ],
    PREPROCESS: [mask_branch.check_preprocessing],
    END_TO_END: [mask_branch.check_inference, detector.check_inference_with_detector],
    TRAINING_STEP: [training.check_training_step, training.check_first_adam_step],
}

# (module, part): the issue that brings it.
NOT_YET: dict[tuple[str, str], str] = {}
NEVER: dict[tuple[str, str], str] = {
    (POSTPROCESS, "detection_multiclass_scores"): "our predictions have one class each",
    (END_TO_END, "detection_multiclass_scores; masks of boxes that exceed the image, as predicted"): (
        "one class each; we clip a box before its mask is made (the original's order is compared in the network)"
    ),
    (PREPROCESS, "resized_masks"): "our models never resize masks: targets are gathered from the masks as they are",
}

# Files of the manifest that the project's own copy leaves out for their size; elsewhere every file must be there.
NOT_COPIED = {
    "a_hourglass100_nc2.npz",
    "a_hourglass104_div16_io.npz",
    "a_hourglass104_div16_weights.npz",
    "a_hourglass32_nc4.npz",
    "b_maskhead_hourglass100.npz",
    "b_maskhead_hourglass32.npz",
    "b_maskhead_resnet12.npz",
    "b_maskhead_resnet16.npz",
    "b_maskhead_resnet8.npz",
    "ckpt_1x3",
    "p_hourglass104.npz",
    "p_resnet101fpn.npz",
    "p_resnet34fpn.npz",
}


def _cases() -> list[Any]:
    cases = []
    for file, entry in DATA.files.items():
        if DATA.is_own_copy and file in NOT_COPIED:
            continue
        if not entry["arrays"]:
            continue  # weights alone: read by the case of the same seed that has the outputs
        marks = [pytest.mark.slow] if entry["config"].get("params_all", 0) > LARGE else []
        for check in CHECKS.get(entry["module"], []):
            cases.append(pytest.param(check, file, id=f"{file}-{check.__name__}", marks=marks))
    return cases


@pytest.mark.parametrize(("check", "file"), _cases())
def test_reference(check: Check, file: str) -> None:
    check(DATA, file)


_CHECKPOINTS: list[str] = list(DATA.manifest["common"]["checkpoints"])


@pytest.mark.parametrize("name", [name for name in _CHECKPOINTS if not (DATA.is_own_copy and name in NOT_COPIED)])
def test_checkpoint(name: str) -> None:
    checkpoints.check_checkpoint_folder(DATA, name)


def test_every_case_is_checked_or_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {module for module, _ in NOT_YET} | {module for module, _ in NEVER}
    unknown = [file for file, entry in DATA.files.items() if entry["module"] not in listed | set(CHECKS)]
    assert not unknown, f"cases that are neither checked nor listed: {unknown}"
    stale = (listed | set(CHECKS)) - {entry["module"] for entry in DATA.files.values()}
    assert not (stale and DATA.is_own_copy), f"modules that no case has: {stale}"
    named = [*DATA.files, *_CHECKPOINTS]
    missing = [name for name in named if not (DATA.folder / name).exists()]
    if DATA.is_own_copy:
        assert set(missing) == NOT_COPIED
    else:
        assert not missing, f"files of the manifest that are missing: {missing}"
    with capsys.disabled():
        print(f"\nDeep-MAC parity: {len(NOT_YET)} parts not yet, {len(NEVER)} never, {len(missing)} files not copied")
