"""Deep-MARC through the commands: trained, stopped and resumed, measured both ways, and asked about a photograph."""

import json

import pytest

from maskwright.cli import main

MODEL = {
    "image_size": 64,
    "backbone": "resnet18_fpn",
    "box_head": "2fc",
    "num_proposals": 20,
    "num_box_samples": 8,
    "mask_head": "resnet4",
    "mask_head_width": 8,
    "mask_size": 8,
    "width": 0.0625,
}
RECIPE = {
    "family": "deep_marc",
    "model": MODEL,
    "data": {"validation_share": 0.25, "mask_classes": "person", "batch_size": 2, "num_workers": 0},
    "optimizer": {"learning_rate": 0.002, "warmup_steps": 2},
    "trainer": {"steps": 5, "validate_every_steps": 5, "ema_decay": 0.9, "accelerator": "cpu"},
}


@pytest.fixture
def arguments(coco, tmp_path):
    recipe = tmp_path / "toy.yaml"
    recipe.write_text(json.dumps(RECIPE))
    return ["train", str(recipe), f"--data.images={coco[0]}", f"--data.annotations={coco[1]}"]


def losses(run):
    return [json.loads(line) for line in (run / "losses.jsonl").read_text().splitlines()]


def test_train_resume_evaluate_and_predict(arguments, coco, tmp_path, stop_after):
    run, unbroken = tmp_path / "run", tmp_path / "unbroken"
    assert main([*arguments, f"--trainer.output={unbroken}"]) == 0
    with stop_after(3):
        assert main([*arguments, f"--trainer.output={run}"]) == 130
    assert len(losses(run)) == 3
    assert main([*arguments, f"--trainer.output={run}", "--resume", "last"]) == 0
    assert losses(run) == losses(unbroken)
    parts = {"proposal_class", "proposal_regression", "box_class", "box_regression", "mask_cross_entropy"}
    assert losses(run)[-1].keys() == {"step", "loss"} | parts

    images, file = coco
    model, found = str(run / "last"), tmp_path / "found"
    for boxes, metric in (("ground-truth", "mask_iou"), ("predicted", "mask_ap")):
        out = tmp_path / f"{boxes}.json"
        files = ["--images", str(images), "--annotations", str(file), "--json", str(out)]
        assert main(["evaluate", model, *files, "--boxes", boxes]) == 0
        assert 0 <= json.loads(out.read_text())[metric] <= 1
    photograph = str(images / "000.png")
    assert main(["predict", photograph, "--model", model, "--out", str(found), "--score-threshold", "0"]) == 0
    detections = json.loads((found / "predictions.json").read_text())
    assert detections
    assert {detection["category_id"] for detection in detections} <= {1, 2, 3}
    assert all(detection["segmentation"]["size"] == [60, 80] for detection in detections)
