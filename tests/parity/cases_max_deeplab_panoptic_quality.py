"""Panoptic quality against panopticapi and against the DeepLab2 trainer's own metric.

`test_max_deeplab.py` finds the files and calls the functions of `CHECKS`.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from parity_data import ParityData

from maskwright.apps.compare_panoptic import compare_panoptic_files
from maskwright.evaluation.panoptic_quality import PanopticQuality
from maskwright.structures import Category, PanopticPrediction, PanopticTarget, SegmentInfo


def check_official(data: ParityData, file: str) -> None:
    """Two files and their folders of PNGs: PQ, SQ and RQ of all groups and of every class, to 1e-9."""
    folder = (data.folder / file).parent
    metric = compare_panoptic_files(folder / "gt.json", folder / "pred.json", folder / "gt", folder / "pred")
    expected = json.loads((folder / "expected.json").read_text())
    numbers = metric.compute()
    for group, suffix in (("All", ""), ("Things", "_things"), ("Stuff", "_stuff")):
        for name in ("pq", "sq", "rq"):
            assert numbers[name + suffix] == pytest.approx(expected[group][name], rel=0, abs=1e-9)
        assert numbers["classes" + suffix] == expected[group]["n"]
    ids = [str(category["id"]) for category in metric.categories]
    per_class = dict(zip(ids, metric.per_class(), strict=True))
    for identity, values in expected["per_class"].items():
        found = per_class[identity]
        for name, value in values.items():
            # panopticapi writes 0 where no segment of the class counts.
            assert np.nan_to_num(getattr(found, name)) == pytest.approx(value, rel=0, abs=1e-9), (identity, name)


def check_in_house(data: ParityData, file: str) -> None:
    """The counts of every class and the means; float32 sums of the original."""
    arrays, config = data.arrays(file), data.files[file]["config"]
    divisor, isthing = config["divisor"], data.arrays("data/coco_id_map.npz")["isthing"].tolist()
    categories = [Category(id=label + 1, name=str(label), isthing=bool(thing)) for label, thing in enumerate(isthing)]
    metric = PanopticQuality(categories, "in_house")
    number = sum(name.startswith("gt") for name in arrays)
    for image in range(number):
        truth = torch.from_numpy(arrays[f"gt{image}"]).int()
        values, rows = truth.unique(return_inverse=True)
        # 0 is void; a thing's class * divisor + 0 is its crowd.
        classes, instances = values // divisor, values % divisor
        crowds = (instances == 0) & (classes <= sum(isthing))
        kept = classes > 0
        new_rows = torch.where(kept, kept.cumsum(0) - 1, -1).int()
        target = PanopticTarget(
            segmentation=new_rows[rows],
            labels=classes[kept].long() - 1,
            iscrowd=crowds[kept],
            ids=values[kept].long(),
            image_id=image,
        )
        metric.update([_prediction(arrays[f"pred{image}"], divisor, categories)], [target])
    per_class = metric.per_class()
    names = {"iou": "iou", "tp": "true_positives", "fp": "false_positives", "fn": "false_negatives"}
    for name, ours in names.items():
        found = [getattr(row, ours) for row in per_class]
        assert found == pytest.approx(arrays[name][1:].tolist(), rel=1e-6, abs=1e-9), name
    numbers = metric.compute()
    means = arrays["result_pq_sq_rq_tp_fn_fp"].tolist()
    assert [numbers["pq"], numbers["sq"], numbers["rq"]] == pytest.approx(means[:3], rel=1e-5)


def _prediction(panoptic: np.ndarray, divisor: int, categories: list[Category]) -> PanopticPrediction:
    segmentation = torch.from_numpy(panoptic).int()
    infos = []
    for value, area in zip(*(column.tolist() for column in segmentation.unique(return_counts=True)), strict=True):
        label = value // divisor - 1
        if label < 0:
            segmentation[segmentation == value] = 0
            continue
        isthing = bool(categories[label].get("isthing"))
        infos.append(SegmentInfo(id=value, label=label, category_id=label + 1, isthing=isthing, score=1.0, area=area))
    height, width = panoptic.shape
    return PanopticPrediction(segmentation, infos, (height, width), categories)


CHECKS = {
    "panopticapi evaluation (cocodataset/panopticapi 7bb4655)": [check_official],
    "evaluation.panoptic_quality.PanopticQuality": [check_in_house],
}
