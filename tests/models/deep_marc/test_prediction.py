"""What Deep-MARC makes of its network's findings: frames of boxes, thresholds, chunks and scores of masks.

The network's `detect` and `mask_logits` say here what the tests want to hear.
"""

import math

import pytest
import torch
from small_deep_marc import BOXES, CATEGORIES, build, images

from maskwright.models.family import Detections

# On an input of 128 x 128: 57 x 128 and 128 x 91 pixels, so that x and y have different factors.
WIDE, HIGH = torch.rand(3, 40, 90), torch.rand(3, 70, 50)


def find(model, *boxes, labels=None, scores=None):
    """Let the detector find these `boxes` [N, 4] of each image (pixels of the input); gives the sizes it is told."""
    found = [torch.tensor(rows) for rows in boxes]
    sizes = []

    def detect(_maps, image_sizes):
        sizes.extend(image_sizes)
        most = range(max(len(rows) for rows in found))
        return Detections(
            found,
            [torch.tensor(labels or [0 for _ in most])[: len(rows)] for rows in found],
            [torch.tensor(scores or [1.0 for _ in most])[: len(rows)] for rows in found],
        )

    model.network.detect = detect
    return sizes


def answer(model, logits=lambda boxes: torch.zeros(len(boxes), 16, 16)):
    """Let the mask head give these `logits` of the boxes (pixels of the input); gives what it is asked."""
    asked = []

    def mask_logits(_maps, boxes, image_index, labels=None):
        asked.append((boxes, image_index.tolist(), None if labels is None else labels.tolist()))
        return logits(boxes)

    model.network.mask_logits = mask_logits
    return asked


def predict(model, pictures, **arguments):
    with torch.inference_mode():
        return model.eval()(pictures, **arguments)


def prompt(model, pictures, boxes):
    with torch.inference_mode():
        return model.eval().masks_from_boxes(model.encode(pictures), [torch.tensor(rows) for rows in boxes])


def test_found_boxes_are_masked_on_the_input_and_told_in_pixels_of_the_original():
    model = build()
    first, second = [[64.0, 28.5, 128.0, 57.0], [0.0, 0.0, 32.0, 14.25]], [[18.2, 12.8, 45.5, 128.0]]
    sizes = find(model, first, second, labels=[2, 0], scores=[0.75, 0.5])
    asked = answer(model)
    wide, high = predict(model, [WIDE, HIGH])
    assert sizes == [(57, 128), (128, 91)]
    torch.testing.assert_close(wide.boxes, torch.tensor([[45.0, 20.0, 90.0, 40.0], [0.0, 0.0, 22.5, 10.0]]))
    torch.testing.assert_close(high.boxes, torch.tensor([[10.0, 7.0, 25.0, 70.0]]))
    ((boxes, image_index, labels),) = asked
    torch.testing.assert_close(boxes, torch.tensor(first + second))
    assert (image_index, labels) == ([0, 0, 1], [2, 0, 2])
    assert (wide.labels.tolist(), wide.scores.tolist(), wide.image_size) == ([2, 0], [0.75, 0.5], (40, 90))
    assert (high.labels.tolist(), high.scores.tolist(), high.image_size) == ([2], [0.75], (70, 50))
    assert list(wide.categories) == list(high.categories) == CATEGORIES


def test_found_boxes_end_at_the_image_and_those_without_extent_are_left_out():
    model = build()
    find(model, [[-9.0, -5.0, 300.0, 200.0], [130.0, 0.0, 140.0, 9.0], [5.0, 20.0, 5.0, 30.0], [0.0, 57.0, 9.0, 64.0]])
    asked = answer(model)
    (found,) = predict(model, [WIDE])
    torch.testing.assert_close(found.boxes, torch.tensor([[0.0, 0.0, 90.0, 40.0]]))
    assert [len(boxes) for boxes, *_ in asked] == [1]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, 100),
        ({"max_detections": 1000}, 150),  # also that of score 0
        ({"max_detections": 3}, 3),
        ({"score_threshold": 0.5}, 76),
        ({"score_threshold": 0.5, "max_detections": 5}, 5),
        ({"score_threshold": 1.5}, 0),
    ],
)
def test_a_call_says_how_many_detections_are_masked(arguments, kept):
    model = build(mask_chunk_size=1000)
    scores = [1 - row / 150 for row in range(149)] + [0.0]
    find(model, [BOXES[0]] * 150, scores=scores)
    asked = answer(model)
    (found,) = predict(model, images(1), **arguments)
    assert found.scores.tolist() == torch.tensor(scores[:kept]).tolist()
    assert [len(boxes) for boxes, *_ in asked] == [kept]


def test_given_boxes_are_masked_on_the_input_and_stay_as_they_are():
    model = build()
    asked = answer(model)
    boxes = [[[45.0, 20.0, 90.0, 40.0], [-9.0, 10.0, 99.0, 44.0]], [[10.0, 7.0, 25.0, 70.0]]]
    wide, high = prompt(model, [WIDE, HIGH], boxes)
    ((asked_boxes, image_index, labels),) = asked
    expected = [[64.0, 28.5, 128.0, 57.0], [-12.8, 14.25, 140.8, 62.7], [18.2, 12.8, 45.5, 128.0]]
    torch.testing.assert_close(asked_boxes, torch.tensor(expected))
    assert (image_index, labels) == ([0, 0, 1], None)
    assert (wide.boxes.tolist(), high.boxes.tolist()) == (boxes[0], boxes[1])
    assert (wide.labels.tolist(), wide.scores.tolist(), wide.image_size) == ([-1, -1], [1, 1], (40, 90))
    assert high.image_size == (70, 50)
    assert list(high.categories) == CATEGORIES


def test_boxes_enter_the_mask_head_in_chunks_and_come_back_in_order():
    model = build(mask_chunk_size=2)
    asked = answer(model, lambda boxes: (boxes[:, :1, None] / 64 - 1).expand(-1, 16, 16))
    starts = [[10.0, 40.0, 5.0], [90.0, 0.0]]
    first, second = prompt(model, images(2), [[[x, 2.0, x + 9, 20.0] for x in image] for image in starts])
    assert [image_index for _, image_index, _ in asked] == [[0, 0], [0, 1], [1]]
    expected = (torch.tensor(starts[0] + starts[1]) / 64 - 1).sigmoid()
    found = torch.cat([first.mask_probabilities, second.mask_probabilities])
    torch.testing.assert_close(found, expected[:, None, None].expand(-1, 16, 16))


def test_the_score_of_a_mask_is_the_iou_that_its_probabilities_promise():
    model = build()
    logits = torch.full((3, 16, 16), -5.0)
    logits[0, :4] = torch.tensor(3.0).log()
    logits[1, 8, 8:10] = torch.tensor([[1.0, 9.0]]).log() + 1e-6
    answer(model, lambda boxes: logits)
    (prediction,) = prompt(model, images(1), [[*BOXES, BOXES[0]]])
    outside = 1 / (1 + math.exp(5))  # of each pixel of the 256 that is not in the mask
    expected = torch.tensor([64 * 0.75 / (64 + 192 * outside), (0.5 + 0.9) / (2 + 254 * outside), 0.0])
    torch.testing.assert_close(prediction.mask_scores, expected, atol=1e-5, rtol=0)


def test_masks_lie_on_the_image_as_their_training_targets_were_cut_from_it():
    """Crop and paste share one frame: targets of the training come back as the mask that they were cut from."""
    model = build(mask_upsample=8, mask_weight=1.0)
    mask = torch.zeros(1, 128, 128, dtype=torch.bool)
    mask[0, 30:50, 20:80] = mask[0, 40:90, 60:75] = True
    box = torch.tensor([[20.0, 30.0, 80.0, 90.0]])
    target = {"boxes": box, "labels": torch.tensor([0]), "masks": mask, "has_mask": torch.tensor([True])}
    target |= {"iscrowd": torch.tensor([False]), "ids": torch.tensor([1]), "image_id": 1}
    logits = torch.zeros(1, 64, 64, requires_grad=True)
    answer(model, lambda boxes: logits)
    model.train()(images(1), [target])["mask_cross_entropy"].backward()
    learnt = -logits.grad.sign() * 10  # of a logit of 0 the gradient says on which side of 1/2 the target is
    answer(model, lambda boxes: learnt)
    (prediction,) = prompt(model, images(1), [box.tolist()])
    assert (prediction.masks ^ mask).sum() <= 0.01 * mask.sum()
    assert prediction.frame == "pixel"


def test_of_one_mask_per_class_a_found_box_takes_that_of_its_label():
    model = build(class_agnostic_masks=False).eval()
    with torch.no_grad():
        bias = model.network.roi_heads.box_predictor.cls_score.bias
        bias[:] = torch.tensor([0.0, 50.0, 0.0, 0.0])  # what the box head would say of any box: label 0
        model.network.mask_head.project_out.bias[:] = torch.tensor([0.0, 40.0, -40.0])
    find(model, BOXES, labels=[2, 1])
    (found,) = predict(model, images(1))
    with torch.inference_mode():
        features = model.encode(images(2))
        first, second = model.masks_from_boxes(
            features, [torch.tensor(BOXES), torch.tensor(BOXES[:1])], [torch.tensor([1, 2]), torch.tensor([1])]
        )
        (none,) = model.masks_from_boxes(model.encode(images(1)), [torch.zeros(0, 4)], [torch.zeros(0).long()])
        bias[:] = torch.tensor([0.0, 0.0, 50.0, 0.0])  # of a box whose class is not known, it says: label 1
        (unknown,) = model.masks_from_boxes(model.encode(images(1)), [torch.tensor(BOXES)], [torch.tensor([2, -1])])
    for prediction, expected in ((found, [0, 1]), (first, [1, 0]), (second, [1]), (none, []), (unknown, [0, 1])):
        assert (prediction.mask_probabilities > 0.5).float().mean((1, 2)).tolist() == expected


@pytest.mark.parametrize("labels", [[[0, 3]], [[-2, 0]], [[0]], [[0, 0], [0]], [[[0, 0]]]])
def test_labels_of_given_boxes_that_fit_neither_boxes_nor_categories_are_refused(labels):
    model = build().eval()
    with pytest.raises(ValueError, match=r"labels of image 0 must lie in -1\.\.2|expected one label per box"):
        model.masks_from_boxes(model.encode(images(1)), [torch.tensor(BOXES)], [torch.tensor(rows) for rows in labels])


@pytest.mark.parametrize(("image_padding", "channel_order"), [("black", "rgb"), ("mean", "bgr")])
def test_images_are_normalised_and_padded_as_the_model_says(image_padding, channel_order):
    """An image of one colour and the padding beside it; 0 is the mean once it is normalised."""
    mean, std, colour = torch.tensor([0.1, 0.2, 0.4]), torch.tensor([0.5, 0.25, 1.0]), torch.tensor([0.9, 0.6, 0.3])
    values = {"image_padding": image_padding, "channel_order": channel_order}
    model = build(image_mean=mean.tolist(), image_std=std.tolist(), **values).eval()
    seen, maps = [], model.network.maps
    model.network.maps = lambda batch: seen.append(batch) or maps(batch)
    model.encode([colour.view(3, 1, 1).expand(-1, 40, 90)])
    image = (colour - mean) / std
    beside = -mean / std if image_padding == "black" else torch.zeros(3)
    for part, value in ((seen[0][0, :, :57], image), (seen[0][0, :, 57:], beside)):
        expected = value.flip(0) if channel_order == "bgr" else value
        torch.testing.assert_close(part, expected.view(3, 1, 1).expand_as(part))


def test_images_are_resized_as_the_model_says():
    stripes = (torch.arange(512) % 4 < 1).float().expand(3, 512, 512)
    batches = []
    for resize in ("antialias", "tf1"):
        model = build(resize=resize)
        maps = model.network.maps
        model.network.maps = lambda batch, maps=maps: batches.append(batch) or maps(batch)
        with torch.inference_mode():
            model.eval().encode([stripes])
    mean, std = (torch.tensor(getattr(model.config, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
    averaged, sampled = (batch[0] * std + mean for batch in batches)
    torch.testing.assert_close(averaged[..., 1:-1], torch.full((3, 128, 126), 0.25), atol=0.05, rtol=0)
    torch.testing.assert_close(sampled, torch.ones(3, 128, 128))  # every fourth column


def test_prediction_changes_nothing_and_repeats():
    model = build(min_box_score=0.0, mask_boxes="proposals", max_masks_per_image=1).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    first, second = predict(model, [WIDE, HIGH]), predict(model, [WIDE, HIGH])
    for one, other in zip(first, second, strict=True):
        for field in ("boxes", "labels", "scores", "mask_scores", "mask_probabilities"):
            assert torch.equal(getattr(one, field), getattr(other, field))
        assert len(one) > 1
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("mask_upsample", [1, 2, 4])
def test_masks_are_larger_than_crops_by_mask_upsample(mask_upsample):
    (prediction,) = prompt(build(mask_upsample=mask_upsample), images(1), [BOXES])
    assert prediction.mask_probabilities.shape == (2, 8 * mask_upsample, 8 * mask_upsample)
