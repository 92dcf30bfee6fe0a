"""Deep-MAC with its detector: joint losses, its own boxes with their masks, and what a model without it keeps."""

import json

import pytest
import torch
from small_deep_mac import BOXES, SIZE, build, images, make_target

from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.predictor import Predictor

CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "bird"}]
DETECTOR = {"object_center", "box_size", "box_offset"}


def build_with_detector(**values):
    return build(**{"detector": "centernet", "categories": CATEGORIES, "detector_width": 8, **values})


def teach(model, boxes, labels):
    """Make the last stack's heads say just these boxes (in pixels), whatever the image."""
    maps = [torch.full((1, 3, SIZE // 4, SIZE // 4), -20.0), *torch.zeros(2, 1, 2, SIZE // 4, SIZE // 4)]
    for rank, (box, label) in enumerate(zip(boxes, labels, strict=True)):
        x1, y1, x2, y2 = (value / 4 for value in box)
        y, x = (y1 + y2) / 2, (x1 + x2) / 2
        maps[0][0, label, int(y), int(x)] = 3.0 - rank
        maps[1][0, :, int(y), int(x)] = torch.tensor([y2 - y1, x2 - x1])
        maps[2][0, :, int(y), int(x)] = torch.tensor([y - int(y), x - int(x)])
    heads = model.network.detector[-1]
    for name, values in zip(("center", "size", "offset"), maps, strict=True):
        getattr(heads, name).register_forward_hook(
            lambda _m, inputs, _o, v=values: v.expand(len(inputs[0]), -1, -1, -1)
        )


def test_losses_of_both_are_named_and_all_boxes_train_the_detector():
    model = build_with_detector().train()
    target = make_target(BOXES, has_mask=[True, False])
    losses = model(images(1), [target])
    assert set(losses) == DETECTOR | {"mask_cross_entropy"}
    assert all(value > 0 for value in losses.values())
    fewer = build_with_detector().train()(images(1), [make_target(BOXES[:1])])
    # The centre's loss changes with the box that has no mask, the mask's does not.
    torch.testing.assert_close(fewer["mask_cross_entropy"], losses["mask_cross_entropy"])
    assert not torch.equal(fewer["object_center"], losses["object_center"])


def test_images_without_masks_teach_a_detector_and_the_loss_of_boxes_alone():
    assert build_with_detector().learns_from_boxes
    assert build(box_consistency_weight=0.5).learns_from_boxes
    assert not build().learns_from_boxes


def test_crowds_train_nothing():
    crowd = build_with_detector().train()(images(1), [make_target(BOXES, iscrowd=[False, True])])
    alone = build_with_detector().train()(images(1), [make_target(BOXES[:1])])
    torch.testing.assert_close(crowd, alone)


def test_weights_are_constructor_values():
    usual = build_with_detector().train()(images(1), [make_target(BOXES)])
    values = {"object_center_weight": 2.0, "box_size_weight": 0.4, "box_offset_weight": 3.0}
    other = build_with_detector(**values).train()(images(1), [make_target(BOXES)])
    for name, factor in {"object_center": 2, "box_size": 4, "box_offset": 3, "mask_cross_entropy": 1}.items():
        torch.testing.assert_close(other[name], factor * usual[name])


@pytest.mark.parametrize("count", [0, 1])
def test_every_parameter_takes_part(count):
    model = build_with_detector(backbone="hourglass104", image_size=128, width=0.05, detector_width=640).train()
    target = make_target(BOXES[:count], size=128)
    sum(model([torch.rand(3, 128, 128)], [target]).values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    assert len(model.network.detector) == 2
    if count:
        still = [n for n, p in model.network.detector.named_parameters() if p.grad.abs().sum() == 0]
        assert still == []


def test_its_own_boxes_come_with_the_masks_that_prompting_gives():
    model = build_with_detector().eval()
    teach(model, BOXES, [2, 0])
    image = torch.rand(3, SIZE // 2, SIZE // 2)  # enlarged twofold
    with torch.inference_mode():
        (found,) = model([image])
        (prompted,) = model.masks_from_boxes(model.encode([image]), [found.boxes])
    torch.testing.assert_close(found.boxes, torch.tensor(BOXES) / 2)
    assert found.labels.tolist() == [2, 0]
    torch.testing.assert_close(found.scores, torch.tensor([3.0, 2.0]).sigmoid())
    torch.testing.assert_close(found.mask_probabilities, prompted.mask_probabilities)
    assert found.image_size == (32, 32)
    assert [entry["category_id"] for entry in found.to_coco(1)] == [90, 7]


def test_boxes_below_the_threshold_or_beyond_the_number_cost_no_mask_head():
    model = build_with_detector().eval()
    teach(model, BOXES, [2, 0])
    seen = []
    model.network.mask_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    scores = torch.tensor([3.0, 2.0]).sigmoid().tolist()
    with torch.inference_mode():
        assert [len(p) for p in model(images(1), score_threshold=scores[0] - 1e-4)] == [1]
        assert [len(p) for p in model(images(2), max_detections=1)] == [1, 1]
        assert [len(p) for p in model(images(1), score_threshold=1.0)] == [0]
    assert seen == [1, 2, 0]


def test_boxes_are_clipped_to_the_image_and_those_in_its_padding_left_out():
    model = build_with_detector().eval()
    inside, across, beyond = [4.0, 4.0, 20.0, 20.0], [8.0, 20.0, 40.0, 44.0], [8.0, 40.0, 40.0, 60.0]
    teach(model, [inside, across, beyond], [0, 1, 2])
    with torch.inference_mode():
        (found,) = model([torch.rand(3, 32, 64)])  # the lower half of the input is padding
    torch.testing.assert_close(found.boxes, torch.tensor([inside, [8.0, 20.0, 40.0, 32.0]]))
    assert found.labels.tolist() == [0, 1]


def test_a_model_without_a_detector_has_no_new_tensors():
    plain, joint = build().state_dict(), build_with_detector().state_dict()
    assert {key for key in joint if key not in plain} == {key for key in joint if key.startswith("network.detector.")}
    assert all(torch.equal(joint[key], value) for key, value in plain.items())


def test_an_old_weights_folder_loads(tmp_path):
    """One written before there was a detector: its configuration has none of the detector's values."""
    model = build().eval()
    new = {"detector_width", "object_center_weight", "box_size_weight", "box_offset_weight", "min_box_overlap"}
    save_pretrained(model, tmp_path / "old")
    path = tmp_path / "old" / "config.json"
    stored = json.loads(path.read_text())
    assert new <= stored["model"].keys()
    stored["model"] = {key: value for key, value in stored["model"].items() if key not in new}
    path.write_text(json.dumps(stored))
    loaded = from_pretrained(tmp_path / "old")
    assert loaded.needs_boxes
    with torch.inference_mode():
        first, second = (m.masks_from_boxes(m.encode(images(1)), [torch.tensor(BOXES)]) for m in (model, loaded))
    torch.testing.assert_close(first[0].mask_probabilities, second[0].mask_probabilities)


def test_a_model_with_a_detector_is_saved_and_loaded(tmp_path):
    model = build_with_detector().eval()
    save_pretrained(model, tmp_path / "joint")
    loaded = from_pretrained(tmp_path / "joint")
    with torch.inference_mode():
        first, second = model(images(1), max_detections=4)[0], loaded(images(1), max_detections=4)[0]
    torch.testing.assert_close(first.boxes, second.boxes)
    assert len(first) > 0


def test_a_detector_needs_categories():
    with pytest.raises(ValueError, match="needs categories"):
        build(detector="centernet")


def test_parameter_groups_cover_the_detector():
    model = build_with_detector()
    grouped = [id(p) for group in model.parameter_groups() if group["name"] == "heads" for p in group["params"]]
    assert {id(p) for p in model.network.detector.parameters()} <= set(grouped)


def test_in_bfloat16_the_detector_s_outputs_are_computed_in_float32():
    """A size is no multiple of 1/256th of itself: only what the last layers read is rounded."""
    model = build_with_detector().eval()
    predictor = Predictor(model, "cpu", "bfloat16")
    heads = ("center", "size", "offset")
    read = {}
    with predictor.inference():
        network = predictor.model.network
        detector = network.detector[-1]
        for name in heads:
            detector.get_submodule(f"{name}.2").register_forward_pre_hook(
                lambda layer, inputs, name=name: read.update({name: inputs[0]})
            )
        batch, _ = predictor.model.image_batch(images(1))
        (pixel_embedding, *_), found = network.maps_and_detection(batch)
    assert pixel_embedding.dtype == torch.bfloat16
    for name in heads:
        ours = getattr(found, name)
        assert (read[name].dtype, ours.dtype) == (torch.bfloat16, torch.float32)
        with torch.inference_mode():
            exact = model.network.detector[-1].get_submodule(f"{name}.2")(read[name].float())
        torch.testing.assert_close(ours, exact, rtol=1e-5, atol=1e-6)
