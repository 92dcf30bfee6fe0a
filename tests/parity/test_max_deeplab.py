"""MaX-DeepLab against reference outputs: every case of the manifest is checked here, or listed with its reason.

The data are the project's copy, or `$MASKWRIGHT_PARITY/max_deeplab`. Cases are found by the manifest's `module`, so
that other seeds and sizes of the same kinds run through the same checks. Each file of cases has `CHECKS`: the
manifest's module -> the functions `check(data, file)` that each file of that module goes through.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cases_max_deeplab_checkpoints as checkpoints
import cases_max_deeplab_data as panoptic_data
import cases_max_deeplab_layers as layers
import cases_max_deeplab_losses as losses
import cases_max_deeplab_network as network
import cases_max_deeplab_panoptic_quality as panoptic_quality
import cases_max_deeplab_post as post
import cases_max_deeplab_training as training
import pytest
from parity_data import ParityData

DATA = ParityData("max_deeplab")

Check = Callable[[ParityData, str], None]

CHECKS: dict[str, list[Check]] = {}
for _cases_of_a_kind in (layers, network, checkpoints, losses, training, post, panoptic_data, panoptic_quality):
    for _module, _checks in _cases_of_a_kind.CHECKS.items():
        CHECKS.setdefault(_module, []).extend(_checks)

# Files that other cases read: no case of their own.
READ_BY_OTHERS = {"object-graph variables", "experiment config of the reduced model"}
# Of these modules only the files with this ending are cases; the others are read with them.
CASE_ENDING = {
    "panopticapi evaluation (cocodataset/panopticapi 7bb4655)": "expected.json",
    "tf.train.CheckpointManager as in train_lib.run_experiment": ".index",
}

# (module, part): the issue that brings it.
NOT_YET: dict[tuple[str, str], str] = {}
NEVER: dict[tuple[str, str], str] = {
    ("loss_builder.DeepLabFamilyLoss -> MaXDeepLabLoss", "class and mask-id terms with more masks than slots"): (
        "the original asks pixels of masks without a slot for a logit of -99999; ours teaches them no slot"
    ),
    ("autoaugment_utils", "AutoContrast, Invert, Posterize"): "the recipes' policy does not use them",
    ("evaluation.panoptic_quality.PanopticQuality", "means of tp, fn and fp"): "ours reports their sums per class",
}

# Files of the manifest that the project's own copy leaves out for their size; elsewhere every file must be there.
NOT_COPIED = {
    "layers/axial2d_13x21_s1.npz",
    "loss/coco_full_slots_ambiguous.npz",
    "loss/coco_small_void_crowd.npz",
    "model/ckpt_legacy/checkpoint",
    "model/ckpt_legacy/ckpt-3.data-00000-of-00001",
    "model/ckpt_legacy/ckpt-3.index",
    "model/ckpt_legacy_keys.json",
    "model/ckpt_newadam_keys.json",
    "model/forward_after_ckpt.npz",
    "model/train_gradients.npz",
    "post/coco_maskwise.npz",
    "post/coco_pixelwise_128slots.npz",
    "post/coco_pixelwise_s641like.npz",
}


def _cases() -> list[Any]:
    cases = []
    for file, entry in DATA.files.items():
        if DATA.is_own_copy and file in NOT_COPIED:
            continue
        if not file.endswith(CASE_ENDING.get(entry["module"], "")):
            continue
        for check in CHECKS.get(entry["module"], []):
            cases.append(pytest.param(check, file, id=f"{file}-{check.__name__}"))
    return cases


@pytest.mark.parametrize(("check", "file"), _cases())
def test_reference(check: Check, file: str) -> None:
    check(DATA, file)


def test_every_case_is_checked_or_listed(capsys: pytest.CaptureFixture[str]) -> None:
    listed = {module for module, _ in NOT_YET} | {module for module, _ in NEVER} | READ_BY_OTHERS
    known = listed | set(CHECKS)
    unknown = [file for file, entry in DATA.files.items() if entry["module"] not in known]
    assert not unknown, f"cases that are neither checked nor listed: {unknown}"
    stale = known - {entry["module"] for entry in DATA.files.values()}
    assert not (stale and DATA.is_own_copy), f"modules that no case has: {stale}"
    missing = {name for name in DATA.files if not (DATA.folder / name).exists()}
    assert missing == (NOT_COPIED if DATA.is_own_copy else set())
    with capsys.disabled():
        print(
            f"\nMaX-DeepLab parity: {len(NOT_YET)} parts not yet, {len(NEVER)} never, {len(missing)} files not copied"
        )
