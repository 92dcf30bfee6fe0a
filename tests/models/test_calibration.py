"""A calibration belongs to its weights: both box-prompted families, their folders, their copies, fine-tuning."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import small_deep_mac
import small_deep_marc
import small_max_deeplab
import torch

from maskwright.errors import UserError
from maskwright.models.calibration import MaskCalibration
from maskwright.models.hub import from_pretrained, save_pretrained, store_calibration
from maskwright.nn.mask_quality import expected_iou
from maskwright.predictor import Predictor
from maskwright.training.initial_weights import start_from

CURVE = MaskCalibration([0.0, 0.6, 0.8, 1.0], [0.0, 0.2, 0.7, 0.9])


def test_the_curve_is_linear_between_its_knots():
    found = CURVE(torch.tensor([0.0, 0.3, 0.6, 0.7, 0.9, 1.0]))
    torch.testing.assert_close(found, torch.tensor([0.0, 0.1, 0.2, 0.45, 0.8, 0.9]))
    assert found.dtype == torch.float32


def test_the_order_of_the_scores_survives():
    scores = torch.linspace(0, 1, 10_001)
    assert (CURVE(scores).diff() > 0).all()


@pytest.mark.parametrize(
    ("scores", "ious", "message"),
    [
        ([0.0, 0.5, 0.5], [0.1, 0.2, 0.3], "scores must be numbers that rise"),
        ([0.0, 0.5], [0.3, 0.2], "ious must be numbers that rise"),
        ([0.0, 0.5], [0.3, 1.2], "ious must be numbers that rise"),
        ([float("nan")], [0.2], "scores must be"),
        ([0.0, 0.5], [0.3, 0.4, 0.5], "as many scores as ious"),
        ([], [], "scores must be"),
    ],
)
def test_what_is_no_curve_is_refused(scores, ious, message):
    with pytest.raises(ValueError, match=message):
        MaskCalibration(scores, ious)


@pytest.mark.parametrize("small", [small_deep_mac, small_deep_marc])
def test_predictions_have_the_expected_iou(small, tmp_path: Path):
    model = small.build().eval()
    (raw,) = model.masks_from_boxes(model.encode(small.images(1)), [torch.tensor(small.BOXES)])
    model.mask_calibration = CURVE
    save_pretrained(model, tmp_path / "weights")
    loaded = from_pretrained(tmp_path / "weights")
    assert loaded.mask_calibration == CURVE
    (found,) = loaded.masks_from_boxes(loaded.encode(small.images(1)), [torch.tensor(small.BOXES)])
    assert torch.equal(found.mask_scores, CURVE(raw.mask_scores))
    assert torch.equal(found.mask_probabilities, raw.mask_probabilities)
    for precision in ("float32", "bfloat16"):
        predicted = Predictor(loaded, "cpu", precision).predict(small.images(1)[0], torch.tensor(small.BOXES))
        probabilities = predicted.mask_probabilities
        torch.testing.assert_close(predicted.mask_scores, CURVE(expected_iou(probabilities)))
        assert predicted.mask_scores.dtype == torch.float32


def test_a_copy_gets_the_calibration_and_all_else_unchanged(tmp_path: Path):
    model = small_deep_mac.build()
    save_pretrained(model, tmp_path / "raw", dtype=torch.float16, card="text")
    store_calibration(tmp_path / "raw", CURVE, tmp_path / "calibrated")
    raw, calibrated = tmp_path / "raw", tmp_path / "calibrated"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibrated", "raw"]
    for name in ("model.safetensors", "README.md"):
        assert (raw / name).read_bytes() == (calibrated / name).read_bytes()
    assert from_pretrained(raw).mask_calibration is None
    assert from_pretrained(calibrated).mask_calibration == CURVE
    store_calibration(raw, CURVE)
    assert (raw / "config.json").read_text() == (calibrated / "config.json").read_text()


def test_a_broken_calibration_is_one_sentence(tmp_path: Path):
    for model, values, message in (
        (small_deep_mac.build(), {"scores": [0.0, 1.0]}, "ious"),
        (small_deep_mac.build(), {"scores": [1.0, 0.0], "ious": [0.0, 1.0]}, "rise within 0..1"),
        (small_max_deeplab.small_model(), CURVE.stored_values(), "has no mask scores"),
    ):
        save_pretrained(model, tmp_path / "weights")
        config = json.loads((tmp_path / "weights" / "config.json").read_text())
        (tmp_path / "weights" / "config.json").write_text(json.dumps({**config, "mask_calibration": values}))
        with pytest.raises(UserError, match=f"config.json: cannot build the model: .*{message}"):
            from_pretrained(tmp_path / "weights")


def test_fine_tuning_drops_it_and_says_so(tmp_path: Path, capsys):
    model = small_deep_mac.build()
    fresh = copy.deepcopy(model)
    model.mask_calibration = CURVE
    save_pretrained(model, tmp_path / "weights")
    start_from(fresh, str(tmp_path / "weights"))
    assert fresh.mask_calibration is None
    assert "mask calibration is dropped" in capsys.readouterr().err
