"""What models refuse to be built from or prompted with, and that each refusal names the value."""

from __future__ import annotations

import json
import math

import pytest
import small_deep_mac
import small_deep_marc
import torch
from small_max_deeplab import small_model

from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.models.values import check_boxes, check_label_space, check_numbers

FAMILIES = [small_deep_mac.build, small_deep_marc.build, small_model]
PROMPTED = [small_deep_mac.build, small_deep_marc.build]
CAT, DOG = {"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}


def test_label_spaces():
    check_label_space(None, None)
    check_label_space([], [])
    check_label_space((CAT, {**DOG, "isthing": False, "supercategory": "animal"}), ["cat", "neither"])


@pytest.mark.parametrize(
    ("categories", "mask_classes", "message"),
    [
        ("cat", None, "categories must be a list, but got 'cat'"),
        ({"id": 1, "name": "cat"}, None, "categories must be a list, but got {'id': 1"),
        ([CAT, "dog"], None, "categories: number 1 must have a whole number 'id' and a text 'name', but got 'dog'"),
        ([{"name": "cat"}], None, "number 0 must have a whole number 'id'"),
        ([{"id": True, "name": "cat"}], None, "but got {'id': True"),
        ([{"id": 1.0, "name": "cat"}], None, "but got {'id': 1.0"),
        ([{"id": 1, "name": None}], None, "a text 'name', but got {'id': 1, 'name': None}"),
        ([CAT, {"id": 7, "name": "dog"}], None, r"each needs its own id, but these repeat: \[7\]"),
        ([CAT, {"id": 3, "name": "cat"}], None, r"each needs its own name, but these repeat: \['cat'\]"),
        ([CAT], "cat", "mask_classes must be a list, but got 'cat'"),
        ([CAT], ["cat", 7], "mask_classes must be names of classes, but got 7"),
    ],
)
def test_what_is_no_label_space(categories, mask_classes, message):
    with pytest.raises(ValueError, match=message):
        check_label_space(categories, mask_classes)


KINDS = {"smallest": {"n": 2}, "weights": ["n"], "factors": ["n"], "shares": ["n"]}
MEANINGLESS = [math.nan, math.inf, -math.inf, True, "1", None, [1], -1]


@pytest.mark.parametrize(
    ("kind", "good", "bad", "message"),
    [
        ("smallest", [2, 300], [1, 0, 2.0], "n must be at least 2 and a whole number, but got "),
        ("weights", [0, 0.5, 300], [-1e-9], "n must be at least 0 and finite, but got "),
        ("factors", [1e-9, 300], [0, 0.0], "n must be above 0 and finite, but got "),
        ("shares", [0, 0.25, 1], [1.001], r"n must lie in 0\.\.1, but got "),
    ],
)
def test_numbers(kind, good, bad, message):
    names = {"smallest": {}, kind: KINDS[kind]}
    for value in good:
        check_numbers({"n": value, "of no concern": math.nan}, **names)
    for value in bad + MEANINGLESS:
        with pytest.raises(ValueError, match=message):
            check_numbers({"n": value}, **names)


@pytest.mark.parametrize("build", FAMILIES)
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"categories": [CAT, CAT]}, "categories: each needs its own id"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"image_size": True}, "image_size must be at least 1 and a whole number, but got True"),
        ({"width": math.nan}, "width must be above 0 and finite, but got nan"),
        ({"width": math.inf}, "width must be above 0"),
        ({"norm_momentum": math.nan}, r"norm_momentum must lie in 0\.\.1, but got nan"),
    ],
)
def test_every_family_refuses_values_by_name(build, values, message):
    with pytest.raises(ValueError, match=message):
        build(**values)


@pytest.mark.parametrize(
    ("build", "name", "value"),
    [
        *((small_deep_mac.build, name, math.inf) for name in ("box_margin", "dice_weight", "box_jitter_ratio")),
        (small_deep_mac.build, "min_box_overlap", 1.5),
        (small_deep_mac.build, "mask_head_width", 0),
        (small_deep_marc.build, "anchor_scale", 0.0),
        (small_deep_marc.build, "mask_weight", math.nan),
        (small_deep_marc.build, "min_box_score", -0.5),
        (small_deep_marc.build, "num_box_samples", 0),
        (small_model, "num_mask_slots", 0),
        (small_model, "memory_channels", 0),
        (small_model, "stem_width", math.nan),
        (small_model, "pq_weight", math.inf),
    ],
)
def test_values_of_one_family(build, name, value):
    with pytest.raises(ValueError, match=f"{name} must "):
        build(**{name: value})


@pytest.mark.parametrize("build", FAMILIES)
def test_a_folder_with_such_a_value_is_one_sentence(build, tmp_path):
    save_pretrained(build(), tmp_path / "weights")
    path = tmp_path / "weights" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["width"] = math.nan
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config\.json: cannot build the model: width must be above 0"):
        from_pretrained(tmp_path / "weights")


def test_boxes():
    check_boxes([torch.tensor([[30.0, 20.0, 4.0, 3.0], [-900.0, 5.0, -800.0, 5.0]]), torch.zeros(0, 4)], 2)
    check_boxes([torch.tensor([[1, 2, 3, 4]])], 1)


@pytest.mark.parametrize("build", PROMPTED)
@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([[[1.0, 2.0, 3.0, 4.0]]], "expected boxes for 2 images, but got 1"),
        ([[], [[1.0, 2.0, 3.0]]], r"boxes of image 1: expected shape \[N, 4\], but got \[1, 3\]"),
        ([[], [1.0, 2.0, 3.0, 4.0]], r"boxes of image 1: expected shape \[N, 4\], but got \[4\]"),
        ([[], [[1.0, 2, 3, 4], [1, math.nan, 3, 4]]], "box 1 of image 1: expected finite numbers, but got .1.0, nan"),
        ([[[math.inf, 2.0, 3.0, 4.0]], []], "box 0 of image 0: expected finite numbers, but got .inf"),
    ],
)
@torch.inference_mode()
def test_wrong_boxes_are_named_by_image_and_box(build, boxes, message):
    model = build().eval()
    features = model.encode([torch.rand(3, 40, 60), torch.rand(3, 40, 60)])
    rows = [torch.tensor(b, dtype=torch.float32) if b else torch.zeros(0, 4) for b in boxes]
    with pytest.raises(ValueError, match=message):
        model.masks_from_boxes(features, rows)


@pytest.mark.parametrize("build", PROMPTED)
@torch.inference_mode()
def test_labels_change_no_class_agnostic_mask(build):
    model = build().eval()
    features, boxes = model.encode([torch.rand(3, 40, 60)]), [torch.tensor([[4.0, 3.0, 50.0, 30.0]] * 2)]
    (without,) = model.masks_from_boxes(features, boxes)
    (given,) = model.masks_from_boxes(features, boxes, [torch.tensor([-1, 0])])
    assert torch.equal(given.mask_probabilities, without.mask_probabilities)
    assert given.labels.tolist() == without.labels.tolist() == [-1, -1]


@pytest.mark.parametrize("build", PROMPTED)
@torch.inference_mode()
def test_flipped_boxes_and_those_outside_have_masks(build):
    model = build().eval()
    boxes = torch.tensor([[50.0, 30.0, 4.0, 3.0], [-900.0, -80.0, -800.0, -20.0], [9.0, 9.0, 9.0, 9.0]])
    (prediction,) = model.masks_from_boxes(model.encode([torch.rand(3, 40, 60)]), [boxes])
    assert torch.equal(prediction.boxes, boxes)
    assert prediction.mask_probabilities.isfinite().all()
