"""`maskwright evaluate`: a COCO file against known masks, seen classes, outputs, and bad input."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn

import maskwright
from maskwright.apps import evaluate as evaluate_app
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.evaluation.measurement import MasksFromBoxes
from maskwright.evaluation.report import summarize, tables_of
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.hub import save_pretrained
from maskwright.predictor import Predictor
from maskwright.structures import Category, InstancePrediction

ELLIPSE_IN_BOX = math.pi / 4


def evaluate(model: Any, images: Path, annotations: Path, **options: Any) -> dict[str, Any]:
    """The numbers of an evaluation."""
    return summarize(evaluate_app.evaluate(model=model, images=images, annotations=annotations, **options))


def polygon(x1: int, y1: int, x2: int, y2: int) -> list[list[int]]:
    return [[x1, y1, x2, y1, x2, y2, x1, y2]]


def annotation(number: int, image: int, category: int, box: tuple[int, int, int, int], **fields: Any) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": (x2 - x1) * (y2 - y1),
        "iscrowd": 0,
        "segmentation": polygon(*box),
        **fields,
    }


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two photographs, filled boxes of an airplane (100 x 100) and a fork (20 x 20), half a fork (40 x 20, its
    left half), a box without a mask, a crowd, and an image without annotations."""
    generator = np.random.default_rng(0)
    for name, size in (("a.png", (120, 160, 3)), ("b.png", (64, 48, 3)), ("c.png", (32, 32, 3))):
        Image.fromarray(generator.integers(0, 255, size, dtype=np.uint8)).save(tmp_path / name)
    annotations = [
        annotation(11, 1, 5, (20, 10, 120, 110)),
        annotation(12, 1, 48, (130, 40, 150, 60)),
        annotation(13, 1, 48, (0, 0, 30, 30), segmentation=[]),
        annotation(14, 1, 5, (0, 60, 40, 120), iscrowd=1),
        annotation(15, 2, 48, (4, 20, 44, 40), segmentation=polygon(4, 20, 24, 40)),
    ]
    content = {
        "images": [
            {"id": 1, "file_name": "a.png", "width": 160, "height": 120},
            {"id": 2, "file_name": "b.png", "width": 48, "height": 64},
            {"id": 9, "file_name": "c.png", "width": 32, "height": 32},
        ],
        "annotations": annotations,
        "categories": [{"id": 5, "name": "airplane"}, {"id": 48, "name": "fork"}],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return tmp_path


@pytest.fixture
def predictor(ellipse_model) -> Predictor:
    ellipse_model.mask_classes = ["aeroplane", "unicorn"]
    return Predictor(ellipse_model, "cpu")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    model = DeepMAC(
        image_size=64,
        backbone="resnet18_fpn",
        mask_head="fully_connected",
        mask_size=8,
        width=0.1,
        mask_classes=["airplane"],
    )
    folder = tmp_path / "weights"
    save_pretrained(model, folder)
    return folder


def test_known_masks_give_known_numbers(predictor: Predictor, data: Path):
    summary = evaluate(predictor, data, data / "instances.json", seen="voc", batch_size=2)
    half = (ELLIPSE_IN_BOX / 2) / (0.5 + ELLIPSE_IN_BOX / 2)  # an ellipse over a box of which half is true
    expected = {
        "mask_iou": (2 * ELLIPSE_IN_BOX + half) / 3,
        "mask_iou_seen": ELLIPSE_IN_BOX,
        "mask_iou_unseen": (ELLIPSE_IN_BOX + half) / 2,
        "class_mask_iou": (1.5 * ELLIPSE_IN_BOX + half / 2) / 2,
        "mask_iou_small": (ELLIPSE_IN_BOX + half) / 2,
        "mask_iou_large": ELLIPSE_IN_BOX,
    }
    assert {key: summary[key] for key in expected} == pytest.approx(expected, abs=0.02)
    assert summary["mask_iou_medium"] is None
    assert [summary[f"instances{key}"] for key in ("", "_seen", "_unseen")] == [3, 1, 2]
    assert [(row["name"], row["seen"], row["instances"]) for row in summary["classes"]] == [
        ("airplane", True, 1),
        ("fork", False, 2),
    ]


def test_seen_defaults_to_the_models_mask_classes_by_any_usual_name(predictor: Predictor, data: Path):
    summary = evaluate(predictor, data, data / "instances.json")
    assert summary["instances_seen"] == 1
    assert evaluate(predictor, data, data / "instances.json", seen=["fork"])["instances_seen"] == 2


def test_the_model_is_told_those_classes_of_the_boxes_that_it_knows(data: Path, ellipse_model):
    ellipse_model.categories, ellipse_model.mask_classes = ({"id": 7, "name": "cat"}, {"id": 1, "name": "fork"}), []
    predictor = Predictor(ellipse_model, "cpu")
    evaluate(predictor, data, data / "instances.json", batch_size=2)
    assert predictor.model.told == [[-1, 1, 1], [1], []]  # an airplane and two forks; the crowd is left out


def test_workers_and_batches_change_nothing(predictor: Predictor, data: Path):
    one = evaluate(predictor, data, data / "instances.json", batch_size=1)
    assert one == evaluate(predictor, data, data / "instances.json", batch_size=3, num_workers=2)


def test_too_little_memory_is_one_sentence(predictor: Predictor, data: Path, monkeypatch: pytest.MonkeyPatch):
    def no_memory(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(MasksFromBoxes, "update", no_memory)
    with pytest.raises(UserError, match=r"batch size \d+: out of memory \(CUDA out of memory"):
        evaluate(predictor, data, data / "instances.json")


def test_saved_results_are_cocos_with_the_files_ids(predictor: Predictor, data: Path, tmp_path: Path):
    file = tmp_path / "results.json"
    evaluate(predictor, data, data / "instances.json", save_results=file)
    results = json.loads(file.read_text())
    assert [(r["image_id"], r["category_id"]) for r in results] == [(1, 5), (1, 48), (1, 48), (2, 48)]
    truth = COCO(data / "instances.json")
    areas = [a["area"] for a in truth.loadRes(results).loadAnns([1, 2])]
    assert areas == pytest.approx([ELLIPSE_IN_BOX * 10000, ELLIPSE_IN_BOX * 400], rel=0.05)


def test_command_line_prints_tables_and_writes_json(weights: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    out = data / "numbers.json"
    options = ["--images", str(data), "--annotations", str(data / "instances.json"), "--device", "cpu"]
    assert main(["evaluate", str(weights), *options, "--boxes", "ground-truth", "--json", str(out)]) == 0
    printed = capsys.readouterr()
    numbers = json.loads(out.read_text())
    assert 0 <= numbers["mask_iou"] <= 1
    assert numbers["instances_seen"] == 1
    lines = [line.split() for line in printed.out.split("\n")]
    assert ["all", "classes", f"{numbers['mask_iou']:.3f}", f"{numbers['class_mask_iou']:.3f}", "3"] in lines
    assert printed.err == ""  # no progress bar where nobody looks


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--boxes", "drawn"], "boxes must be one of ground-truth, predicted, but got 'drawn'"),
        (["--boxes", "predicted"], "this model has no detector"),
        (["--processes", "0"], "processes >= 1"),
        (["--seen", "airplane,spoon"], "unknown class names: spoon; known are: airplane, fork"),
        (["--json", "missing/out.json"], "cannot write missing/out.json: the folder missing does not exist"),
        (["--save-results", "missing/out.json"], "cannot write missing/out.json: the folder missing does not exist"),
        (["--json", "."], "cannot write .: it is a folder"),
        (["--save-results", "."], "cannot write .: it is a folder"),
        (["--json", "x.json", "--save-results", "./x.json"], "cannot write x.json: it is an input or another outp"),
        (["--boxes", "predicted", "--json", "x.bbox.json", "--save-results", "x.json"], "cannot write x.bbox.json"),
        (["--json", "DATA/instances.json"], "instances.json: it is an input"),
        (["--save-results", "DATA/instances.json"], "instances.json: it is an input"),
        (["--batch-size", "0"], "expected batch_size >= 1"),
        (["--annotations", "nowhere.json"], "nowhere.json"),
        (["--images", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_code_2(
    weights: Path, data: Path, options: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
):
    given = ["--images", str(data), "--annotations", str(data / "instances.json"), "--device", "cpu"]
    options = [option.replace("DATA", str(data)) for option in options]
    assert main(["evaluate", str(weights), *given, *options]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert sentence in printed.err
    assert printed.err.count("\n") == 1


def test_no_results_are_left_by_a_run_that_fails_halfway(predictor: Predictor, data: Path, tmp_path: Path):
    (data / "b.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(UserError, match=r"b\.png"):
        evaluate(predictor, data, data / "instances.json", save_results=out / "results.json")
    assert list(out.iterdir()) == []


class Unprompted(nn.Module):
    task = "instance"


def test_a_model_without_boxes_is_refused(predictor: Predictor, data: Path, tmp_path: Path):
    with pytest.raises(UserError, match="cannot be prompted with boxes"):
        evaluate(Predictor(Unprompted(), "cpu"), data, data / "instances.json")
    with pytest.raises(UserError, match="nothing-here"):
        evaluate(tmp_path / "nothing-here", data, data / "instances.json")


def run_jobs_here(work: Any, jobs: Any, processes: int) -> list[tuple[Any, Any]]:
    """In place of processes, whose start takes seconds: what goes and comes is pickled, the last comes first."""
    return [(job, pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(job)))))) for job in reversed(list(jobs))]


@pytest.mark.parametrize("boxes", ["ground-truth", "predicted"])
def test_two_processes_measure_every_image_once(
    data: Path, tmp_path: Path, boxes: str, monkeypatch: pytest.MonkeyPatch
):
    """Three images in two processes; all that is printed and saved is that of one process."""
    if boxes == "ground-truth":
        monkeypatch.setattr(evaluate_app, "run_jobs", run_jobs_here)
    torch.manual_seed(0)
    categories: list[Category] = [{"id": 1, "name": "fork"}, {"id": 2, "name": "airplane"}]
    model = DeepMAC(
        categories=categories,
        detector="centernet",
        image_size=64,
        backbone="resnet18_fpn",
        mask_head="fully_connected",
        mask_size=8,
        width=0.1,
    )
    save_pretrained(model, tmp_path / "weights")
    found = []
    for processes in (1, 2):
        file = tmp_path / f"results{processes}.json"
        options = {"boxes": boxes, "processes": processes, "batch_size": 1, "save_results": file, "device": "cpu"}
        numbers = evaluate(tmp_path / "weights", data, data / "instances.json", **options)
        found.append((numbers, json.loads(file.read_text())))
    (expected, entries), (numbers, shared_entries) = found
    assert shared_entries == entries
    assert {entry["image_id"] for entry in entries} == ({1, 2, 9} if boxes == "predicted" else {1, 2})
    assert numbers == expected  # to the last digit


def change_annotations(data: Path, **fields: Any) -> None:
    """Give every annotation of the file these fields."""
    content = json.loads((data / "instances.json").read_text())
    content["annotations"] = [entry | fields for entry in content["annotations"]]
    (data / "instances.json").write_text(json.dumps(content))


@pytest.mark.parametrize("boxes", ["ground-truth", "predicted"])
def test_skipped_annotations_are_counted_on_stderr(
    predictor: Predictor, detector: Predictor, data: Path, boxes: str, capsys: pytest.CaptureFixture[str]
):
    content = json.loads((data / "instances.json").read_text())
    content["annotations"] += [
        annotation(21, 1, 5, (9, 9, 9, 9)),
        annotation(22, 1, 5, (8, 8, 8, 8)),
        annotation(23, 1, 77, (0, 0, 9, 9)),
    ]
    (data / "instances.json").write_text(json.dumps(content))
    model = predictor if boxes == "ground-truth" else detector
    evaluate(model, data, data / "instances.json", boxes=boxes)
    printed = capsys.readouterr()
    assert (
        "1 unknown category_id, 2 bbox without extent in the image (`maskwright data check` names each" in printed.err
    )
    assert "skipped" not in printed.out


@pytest.mark.parametrize("fields", [{"segmentation": []}, {"segmentation": [[0, 0, 0, 0, 0, 0]]}])
def test_a_file_without_a_mask_to_compare_is_refused(predictor: Predictor, data: Path, fields: dict[str, Any]):
    change_annotations(data, **fields)
    with pytest.raises(UserError, match=r"instances\.json: nothing to measure"):
        evaluate(predictor, data, data / "instances.json", save_results=data / "results.json")
    assert not (data / "results.json").exists()


def test_a_file_without_an_instance_to_find_is_refused(detector: Predictor, data: Path):
    change_annotations(data, segmentation=[])
    assert evaluate(detector, data, data / "instances.json", boxes="predicted")["mask_ap"] is None
    content = json.loads((data / "instances.json").read_text())
    (data / "instances.json").write_text(json.dumps(content | {"annotations": []}))
    with pytest.raises(UserError, match=r"instances\.json: nothing to measure"):
        evaluate(detector, data, data / "instances.json", boxes="predicted")


class KnownDetections(nn.Module):
    """A detector that finds filled boxes in the images of `data`, told by their height; its classes are in another
    order than the file's, under other names and ids, and there is one more."""

    task = "instance"
    needs_boxes = False
    mask_classes = ("aeroplane",)
    categories = ({"id": 1, "name": "unicorn"}, {"id": 2, "name": "Fork"}, {"id": 3, "name": "aeroplane"})

    FOUND = (
        (120, (20, 10, 120, 110), 2, 0.9),
        (120, (20, 10, 120, 110), 0, 0.95),
        (120, (0, 0, 30, 30), 1, 0.85),
        (120, (130, 40, 150, 60), 1, 0.8),
        (64, (4, 20, 44, 40), 1, 0.7),
    )

    def forward(self, images: list[Tensor], *, score_threshold: float, max_detections: int) -> list[InstancePrediction]:
        assert score_threshold == 0
        assert max_detections == 100
        predictions = []
        for image in images:
            rows = [row[1:] for row in self.FOUND if row[0] == image.shape[1]]
            predictions.append(
                InstancePrediction(
                    boxes=torch.tensor([row[0] for row in rows], dtype=torch.float32).reshape(-1, 4),
                    labels=torch.tensor([row[1] for row in rows], dtype=torch.int64),
                    scores=torch.tensor([row[2] for row in rows]),
                    mask_scores=torch.full((len(rows),), 0.5),
                    mask_probabilities=torch.ones(len(rows), 8, 8),
                    image_size=(image.shape[1], image.shape[2]),
                    frame="pixel",
                )
            )
        return predictions


@pytest.fixture
def detector() -> Predictor:
    return Predictor(KnownDetections(), "cpu")


def test_detections_are_scored_in_the_classes_of_the_file(detector: Predictor, data: Path):
    summary = evaluate(detector, data, data / "instances.json", boxes="predicted", batch_size=2)
    # Of the forks with masks one is found, the other at IoU 0.5; the box without a mask is ignored for masks.
    forks = (1 + 9 * 51 / 101) / 10
    assert summary["box_ap"] == summary["mask_ap_seen"] == 1
    assert summary["mask_ap_unseen"] == pytest.approx(forks)
    assert summary["mask_ap"] == pytest.approx((1 + forks) / 2)
    assert (summary["images"], summary["instances"], summary["instances_without_mask"]) == (3, 4, 1)
    assert [(row["name"], row["seen"]) for row in summary["classes"]] == [("airplane", True), ("fork", False)]
    other = evaluate(detector, data, data / "instances.json", boxes="predicted", seen=["fork"], num_workers=1)
    assert other["mask_ap_seen"] == pytest.approx(forks)


class RoundDetections(KnownDetections):
    """The same, but for masks that are ellipses in boxes between the pixels; and one fork too many, whose box is of
    COCO's medium size and whose mask is of its small one."""

    FOUND = (*KnownDetections.FOUND, (120, (60, 60, 96, 94), 1, 0.82))

    def forward(self, images: list[Tensor], **values: Any) -> list[InstancePrediction]:
        row = (torch.arange(32) + 0.5) / 16 - 1
        ellipse = (row[:, None] ** 2 + row**2 < 1).float()
        return [
            replace(found, boxes=found.boxes + 0.3, mask_probabilities=ellipse.expand(len(found), 32, 32))
            for found in super().forward(images, **values)
        ]


def test_saved_detections_score_the_same_elsewhere(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = json.loads((data / "instances.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["id"] != 13]  # has no mask
    (data / "instances.json").write_text(json.dumps(content))
    file, detector = tmp_path / "found.json", Predictor(RoundDetections(), "cpu")
    summary = evaluate(detector, data, data / "instances.json", boxes="predicted", save_results=file)
    truth = COCO(data / "instances.json")
    sizes = [f"ap{size}" for size in ("", "50", "75", "_small", "_medium", "_large")]
    names = [*sizes, *(f"ar{size}" for size in ("1", "10", "100", "_small", "_medium", "_large"))]
    files: list[tuple[str, Any, Path]] = [("mask", "segm", file), ("box", "bbox", tmp_path / "found.bbox.json")]
    for prefix, overlap, results in files:
        assert [entry["category_id"] for entry in json.loads(results.read_text())] == [5, 48, 48, 48, 48]
        evaluation = COCOeval(truth, truth.loadRes(str(results)), overlap)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        found = [summary[f"{prefix}_{name}"] for name in names]
        assert [-1 if value is None else value for value in found] == pytest.approx(
            evaluation.stats.tolist(), abs=1e-14
        )
    assert summary["mask_ap_small"] < summary["box_ap_small"]  # the fork too many counts by the size of its mask
    capsys.readouterr()


def test_tables_of_detections(detector: Predictor, data: Path):
    file = data / "instances.json"
    options: dict[str, Any] = {"images": data, "annotations": file, "boxes": "predicted", "json": data / "numbers.json"}
    printed = tables_of(evaluate_app.evaluate(model=detector, **options))
    numbers = json.loads((data / "numbers.json").read_text())
    assert f"{numbers['mask_ap_unseen']:.3f}" in printed
    assert "3 images, 4 instances; 1 of them have no mask" in printed


def test_a_class_that_the_detector_does_not_know_is_refused(detector: Predictor, data: Path):
    text = (data / "instances.json").read_text().replace('"fork"', '"ladle"')
    (data / "instances.json").write_text(text)
    with pytest.raises(UserError, match="classes that the model does not know: ladle"):
        evaluate(detector, data, data / "instances.json", boxes="predicted")


def test_python_evaluates_as_the_command_line_does(weights: Path, data: Path, capsys: pytest.CaptureFixture[str]):
    metric = maskwright.evaluate(weights, images=data, annotations=data / "instances.json")
    numbers = data / "numbers.json"
    given = ["evaluate", str(weights), "--images", str(data), "--annotations", str(data / "instances.json")]
    assert main([*given, "--json", str(numbers)]) == 0
    assert json.loads(numbers.read_text()) == summarize(metric)


def test_scores_are_measured_and_drawn(predictor: Predictor, data: Path, capsys):
    """All scores are 0.75, and the IoUs pi / 4 twice and 0.44."""
    files = ["--images", str(data), "--annotations", str(data / "instances.json")]
    picture, numbers = data / "out.png", data / "out.json"
    metric = evaluate_app.evaluate(
        predictor, images=data, annotations=data / "instances.json", reliability=picture, json=numbers
    )
    scores = json.loads(numbers.read_text())["mask_scores"]
    assert scores["error"] == pytest.approx(0.75 - metric.compute()["mask_iou"])
    assert scores["spearman"] is None
    assert [row["masks"] for row in scores["bins"]] == [0] * 7 + [3, 0, 0]
    at = {row["threshold"]: row for row in scores["accepted"]}
    assert (at[0.75]["masks"], at[0.8]["masks"], at[0.8]["mean_iou"]) == (3, 0, None)
    assert at[0.75]["share_below_half"] == pytest.approx(1 / 3)
    assert "expected calibration error" in tables_of(metric)
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    for options in (["--reliability", str(data / "out.jpg")], ["--boxes", "predicted", "--reliability", str(picture)]):
        assert main(["evaluate", "deep-mac-tiny", *files, *options]) == 2
        assert "reliability" in capsys.readouterr().err
