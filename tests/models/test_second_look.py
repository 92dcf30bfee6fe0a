"""The second look: small boxes are encoded once more, on an enlarged crop around each, in both families."""

from __future__ import annotations

import pytest
import small_deep_mac
import small_deep_marc
import torch

from maskwright.models.family import BoxPromptedFamily
from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.predictor import Predictor

CROP_SIZE = 128
HEIGHT, WIDTH = 200, 256
SMALL, LARGE = [90.0, 60.0, 110.0, 76.0], [10.0, 20.0, 240.0, 180.0]

family = pytest.mark.parametrize("small", [small_deep_mac, small_deep_marc], ids=["deep_mac", "deep_marc"])


def build(small, **values):
    """A model that sees boxes of less than 40 pixels of the image again."""
    below = 40 * small.SIZE / WIDTH
    values = {"second_look_context": 2.0, "second_look_size": CROP_SIZE, **values}
    return small.build(second_look_below=below, **values).eval()


def picture(seed=1, height=HEIGHT, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)


def prompted(model, image, boxes, **values):
    with torch.inference_mode():
        return model.masks_from_boxes(model.encode([image]), [torch.tensor(boxes).reshape(-1, 4)], **values)[0]


def expected(small, image, box, square, **values):
    """Both looks by models that have one look each; `square` is the crop (left, top, right, bottom) cut by hand."""
    left, top, right, bottom = square
    inside = [box[0] - left, box[1] - top, box[2] - left, box[3] - top]
    first = prompted(small.build(**values).eval(), image, [box])
    crop = image[:, top:bottom, left:right]
    second = prompted(small.build(image_size=CROP_SIZE, **values).eval(), crop, [inside])
    return first, second


@family
def test_a_small_box_has_the_mean_of_both_looks(small):
    model = build(small)
    first, second = expected(small, picture(), SMALL, (80, 48, 120, 88))  # 2 x 20 pixels of side, around (100, 68)
    found = prompted(model, picture(), [SMALL])
    mean = (first.mask_probabilities + second.mask_probabilities) / 2
    torch.testing.assert_close(found.mask_probabilities, mean)
    assert not torch.allclose(first.mask_probabilities, second.mask_probabilities)
    torch.testing.assert_close(found.mask_scores, model.mask_scores(mean, None))


@family
@pytest.mark.parametrize(
    ("box", "context", "square"),
    [
        ([0.0, 0.0, 12.0, 20.0], 2.0, (0, 0, 40, 40)),
        ([236.0, 190.0, 256.0, 200.0], 2.0, (216, 160, 256, 200)),
        ([110.0, 76.0, 90.0, 60.0], 3.0, (70, 38, 130, 98)),  # flipped
        ([400.0, -90.0, 420.0, -80.0], 2.0, (216, 0, 256, 40)),  # outside
        ([50.0, 50.0, 50.0, 50.0], 2.0, (50, 50, 51, 51)),  # without extent
        ([100.0, 80.0, 130.0, 100.0], 8.0, (0, 0, 240, 200)),  # less high than the square
    ],
)
def test_where_the_square_lies(small, box, context, square):
    first, second = expected(small, picture(), box, square)
    found = prompted(build(small, second_look_context=context), picture(), [box])
    torch.testing.assert_close(found.mask_probabilities, (first.mask_probabilities + second.mask_probabilities) / 2)


@family
def test_the_side_is_measured_in_the_network_input_and_below_means_below(small):
    off = small.build().eval()
    for longer, seen_again in ((39.5, True), (40.0, False)):
        box = [[30.0, 30.0, 34.0, 30.0 + longer]]
        masks = [prompted(each, picture(), box).mask_probabilities for each in (off, build(small))]
        assert torch.equal(*masks) != seen_again


@family
def test_large_boxes_are_left_alone_and_all_keep_their_places(small):
    boxes = [LARGE, SMALL, [0.0, 0.0, 200.0, 100.0], [3.0, 5.0, 9.0, 30.0], SMALL]
    found, off = (prompted(model, picture(), boxes) for model in (build(small), small.build().eval()))
    assert torch.equal(found.boxes, torch.tensor(boxes))
    for row in (0, 2):
        assert torch.equal(found.mask_probabilities[row], off.mask_probabilities[row])
    for row in (1, 3, 4):
        (alone,) = prompted(build(small), picture(), [boxes[row]]).mask_probabilities
        torch.testing.assert_close(found.mask_probabilities[row], alone)


@family
def test_boxes_of_several_images_are_seen_on_their_own_image(small):
    model = build(small)
    images = [picture(1), picture(2, 90, 70), picture(3)]
    boxes = [torch.tensor([SMALL, LARGE]), torch.zeros(0, 4), torch.tensor([[5.0, 6.0, 20.0, 9.0], LARGE, SMALL])]
    with torch.inference_mode():
        together = model.masks_from_boxes(model.encode(images), boxes)
    for image, rows, found in zip(images, boxes, together, strict=True):
        alone = prompted(model, image, rows.tolist())
        torch.testing.assert_close(found.mask_probabilities, alone.mask_probabilities)
        assert found.image_size == tuple(image.shape[1:])


@family
@pytest.mark.parametrize("count", [0, 1, 9])
def test_crops_enter_the_backbone_in_parts_no_larger_than_an_image(small, count, monkeypatch):
    sizes = []
    maps = BoxPromptedFamily.maps

    def counted(model, batch):
        sizes.append(tuple(batch.shape))
        return maps(model, batch)

    monkeypatch.setattr(BoxPromptedFamily, "maps", counted)
    model = build(small, image_size=2 * CROP_SIZE)
    prediction = prompted(model, picture(), [LARGE] + [[4.0, 4.0, 10.0, 8.0]] * count)
    assert len(prediction) == 1 + count
    parts = {0: [], 1: [1], 9: [4, 4, 1]}[count]
    crops = [(part, 3, CROP_SIZE, CROP_SIZE) for part in parts]
    assert sizes == [(1, 3, 2 * CROP_SIZE, 2 * CROP_SIZE), *crops]


@family
def test_the_quality_of_a_mask_is_that_of_both_looks(small):
    first, second = expected(small, picture(), SMALL, (80, 48, 120, 88), mask_quality=True)
    (score,) = prompted(build(small, mask_quality=True), picture(), [SMALL]).mask_scores
    assert first.mask_scores != second.mask_scores
    torch.testing.assert_close(score.logit(), (first.mask_scores[0].logit() + second.mask_scores[0].logit()) / 2)


def test_labels_reach_the_second_look():
    """Of a model with one mask per class."""
    values = {"class_agnostic_masks": False}
    model, boxes = build(small_deep_marc, **values), [LARGE, SMALL, SMALL]
    labels = torch.tensor([0, 2, 1])
    found = prompted(model, picture(), boxes, labels=[labels]).mask_probabilities
    for row in range(3):
        (alone,) = prompted(model, picture(), [boxes[row]], labels=[labels[row : row + 1]]).mask_probabilities
        torch.testing.assert_close(found[row], alone)
    assert not torch.allclose(found[1], found[2])


def with_detector(small, **values):
    if small is small_deep_marc:
        return small.build(min_box_score=0.0, **values).eval()
    model = small.build(detector="centernet", categories=small_deep_marc.CATEGORIES, **values).eval()
    torch.nn.init.constant_(model.network.detector[-1].size[-1].bias, 3.0)  # cells; else boxes have no extent
    return model


@family
def test_detected_boxes_are_seen_again_too(small):
    model = with_detector(small, second_look_below=1e6, second_look_size=CROP_SIZE)
    with torch.inference_mode():
        (found,) = model([picture()], max_detections=5)
        (given,) = model.masks_from_boxes(model.encode([picture()]), [found.boxes])
        (off,) = with_detector(small)([picture()], max_detections=5)
    assert len(found)
    torch.testing.assert_close(found.mask_probabilities, given.mask_probabilities)
    assert torch.equal(found.boxes, off.boxes)
    assert not torch.allclose(found.mask_probabilities, off.mask_probabilities)


@family
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_weights_folder_turns_it_on(small, precision, tmp_path):
    save_pretrained(build(small), tmp_path / "weights")
    predictor = Predictor(from_pretrained(tmp_path / "weights"), "cpu", precision)
    found = predictor.predict(picture(), [SMALL, LARGE])
    again = predictor.masks_from_boxes(predictor.encode(picture()), [SMALL, LARGE])
    assert torch.equal(found.mask_probabilities, again.mask_probabilities)
    plain = prompted(build(small), picture(), [SMALL, LARGE])
    tolerance = {"float32": 1e-4, "bfloat16": 0.05}[precision]
    torch.testing.assert_close(found.mask_probabilities, plain.mask_probabilities, atol=tolerance, rtol=0)


@family
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"second_look_below": -1.0}, "second_look_below must be at least 0 and finite, but got -1.0"),
        ({"second_look_context": 0.5}, "second_look_context must be at least 1 and finite, but got 0.5"),
        ({"second_look_size": 0}, "second_look_size must be at least 1 and a whole number, but got 0"),
        ({"second_look_below": 9.0, "second_look_size": 33}, "second_look_size must be a multiple of .* for backbone"),
    ],
)
def test_values_without_a_meaning_are_refused(small, values, message):
    with pytest.raises(ValueError, match=message):
        small.build(**values)


@family
def test_without_it_its_size_does_not_matter(small):
    small.build(second_look_size=33)
