"""Deep-MARC's detector: anchors, samples, losses and detections, computed by hand around the layers that learn.

torchvision's parts are driven through the attributes that hold their layers (`head`, `box_predictor`).
"""

import math

import pytest
import torch
from small_deep_marc import BOXES, SIZE, build
from torch import nn


def pyramid(network, height=SIZE, width=SIZE, images=1):
    sizes = [(height >> level, width >> level) for level in network.backbone.levels]
    return tuple(torch.zeros(images, network.backbone.channels, *size) for size in sizes)


class Says(nn.Module):
    """Gives what it was built with, whatever it is asked."""

    def __init__(self, *answer):
        super().__init__()
        self.answer = answer

    def forward(self, *_question):
        return self.answer


class Peak(nn.Module):
    """A head of the first stage that is sure of one anchor of one cell of one level, and moves none."""

    def __init__(self, level, anchor, anchors=3):
        super().__init__()
        self.level, self.anchor, self.anchors = level, anchor, anchors

    def forward(self, maps):
        logits = [torch.full((len(m), self.anchors, *m.shape[-2:]), -9.0) for m in maps]
        height, width = maps[self.level].shape[-2:]
        logits[self.level][:, self.anchor, height // 2, width // 2] = 9.0
        return logits, [torch.zeros(len(m), 4 * self.anchors, *m.shape[-2:]) for m in maps]


def propose(network, boxes):
    """Let the first stage propose `boxes` [N, 4] of every image."""
    losses = {"loss_objectness": torch.tensor(5.0), "loss_rpn_box_reg": torch.tensor(7.0)}
    network.proposals = Says([torch.tensor(boxes)], losses)


def detect(network, logits, deltas=None, size=(SIZE, SIZE)):
    """What the second stage finds at the proposals with these class logits (background first) and box deltas."""
    logits = torch.tensor(logits)
    deltas = torch.zeros(len(logits), 4 * logits.shape[1]) if deltas is None else deltas
    network.roi_heads.box_predictor = Says(logits, deltas)
    with torch.inference_mode():
        (boxes,), (labels,), (scores,) = network.eval().detect(pyramid(network), [size])
    return boxes, labels.tolist(), scores


@pytest.mark.parametrize(("backbone", "finest", "sizes"), [("resnet18_fpn", 2, 1), ("spinenet49", 3, 2)])
@pytest.mark.parametrize("index", range(5))
def test_anchors_have_sizes_per_level_and_three_shapes(index, backbone, finest, sizes):
    """The input is not square; where in a cell its anchors lie is torchvision's choice."""
    network = build(backbone=backbone, anchor_scale=1.5, num_anchor_scales=sizes).network.eval()
    height, width, stride = 1024, 512, 2 ** (finest + index)
    sides = []
    for anchor in range(3 * sizes):
        network.proposals.head = Peak(index, anchor, 3 * sizes)
        found = []
        handle = network.proposals.register_forward_hook(lambda _m, _i, output: found.append(output[0][0][0]))  # noqa: B023
        with torch.inference_mode():
            network.detect(pyramid(network, height, width), [(height, width)])
        handle.remove()
        (x1, y1, x2, y2) = found[0].tolist()
        assert -1 <= (x1 + x2) / 2 - width // stride // 2 * stride <= stride / 2 + 1
        assert -1 <= (y1 + y2) / 2 - height // stride // 2 * stride <= stride / 2 + 1
        sides.append((x2 - x1, y2 - y1))
    root, first = math.sqrt(2), 1.5 * stride
    shapes = [(side / root, side * root) for side in (first, first * root)[:sizes]]
    shapes += [(side, side) for side in (first, first * root)[:sizes]]
    shapes += [(side * root, side / root) for side in (first, first * root)[:sizes]]
    for shape in shapes:  # each is there, to the pixel
        assert [side for side in sides if side == pytest.approx(shape, abs=1.01)], shape


@pytest.mark.parametrize("training", [False, True])
def test_the_first_stage_proposes_num_proposals_boxes_inside_their_image(training):
    network = build(num_proposals=7).network.train(training)
    proposals = []
    network.proposals.register_forward_hook(lambda _module, _inputs, output: proposals.extend(output[0]))
    maps = tuple(torch.randn_like(level) for level in pyramid(network, images=2))
    if training:
        network.detector_losses(maps, [torch.tensor(BOXES)] * 2, [torch.tensor([0, 1])] * 2)
        sizes = [(SIZE, SIZE)] * 2
    else:
        sizes = [(50, 128), (128, 60)]
        with torch.inference_mode():
            network.detect(maps, sizes)
    for boxes, (height, width) in zip(proposals, sizes, strict=True):
        assert len(boxes) == 7
        assert boxes.min() >= 0
        assert boxes[:, 2].max() <= width
        assert boxes[:, 3].max() <= height
    # Before non-maximum suppression, per level: the original's 2000 and 1000 at 1000 proposals.
    assert network.proposals.pre_nms_top_n() == (14 if training else 7)


@pytest.mark.parametrize(("overlap", "count"), [(0.69, 2), (0.71, 1)])
def test_proposals_of_one_level_overlap_by_at_most_70_percent(overlap, count):
    network = build().network.eval()
    boxes = torch.tensor([[0.0, 0.0, 100.0, 100.0], [0.0, 0.0, 100.0, 100 * overlap]])
    kept, _ = network.proposals.filter_proposals(boxes[None], torch.tensor([[2.0], [1.0]]), [(SIZE, SIZE)], [2])
    assert len(kept[0]) == count


def test_what_counts_as_an_object_and_how_many_are_sampled_is_as_in_the_original():
    """Reference: RPN 0.7 and 0.3, half of 256; box head 0.5, a quarter of `num_box_samples`."""
    network = build(num_box_samples=40).network
    overlaps = torch.tensor([[0.71, 0.69, 0.31, 0.29]])
    assert network.proposals.proposal_matcher(overlaps).tolist() == [0, -2, -2, -1]
    assert network.roi_heads.proposal_matcher(torch.tensor([[0.51, 0.49]])).tolist() == [0, -1]
    candidates = [torch.cat([torch.ones(500), torch.zeros(500)])]
    for stage, expected in ((network.proposals, [128, 128]), (network.roi_heads, [10, 30])):
        (objects,), (background,) = stage.fg_bg_sampler(candidates)
        assert [int(objects.sum()), int(background.sum())] == expected


def test_losses_of_the_first_stage():
    network = build().network.train()
    for layer in (network.proposals.head.cls_logits, network.proposals.head.bbox_pred):
        nn.init.zeros_(layer.weight)
    boxes = [torch.tensor([[20.0, 30.0, 51.0, 59.0]])]
    losses, _ = network.detector_losses(pyramid(network), boxes, [torch.tensor([1])])
    torch.testing.assert_close(losses["proposal_class"], torch.tensor(2.0).log())  # every logit is 0
    losses["proposal_regression"].backward()
    assert network.proposals.head.bbox_pred.bias.grad.abs().sum() > 0
    assert network.proposals.head.cls_logits.bias.grad is None


def test_losses_and_samples_of_the_second_stage():
    """Of a box and of one that lies 4 pixels beside it, a tenth of its width; a third shows background."""
    network = build().network.train()
    beside, background, box = [[14.0, 10.0, 54.0, 50.0], [80.0, 80.0, 100.0, 100.0], [10.0, 10.0, 50.0, 50.0]]
    propose(network, [beside, background])
    logits, deltas = torch.zeros(3, 4, requires_grad=True), torch.zeros(3, 16, requires_grad=True)
    network.roi_heads.box_predictor = Says(logits, deltas)
    losses, samples = network.detector_losses(pyramid(network), [torch.tensor([box])], [torch.tensor([1])])
    assert (losses["proposal_class"], losses["proposal_regression"]) == (5, 7)
    torch.testing.assert_close(losses["box_class"], torch.tensor(4.0).log())
    # The weight 10 makes -0.1 to -1, which costs 1 - 1 / 18; the mean is over all three.
    torch.testing.assert_close(losses["box_regression"], torch.tensor((1 - 1 / 18) / 3))
    ((boxes, rows),) = samples
    assert (boxes.tolist(), rows.tolist()) == ([beside, box], [0, 0])
    (losses["box_class"] + losses["box_regression"]).backward()
    assert (3 * logits.grad - 0.25).argmin(dim=1).tolist() == [2, 0, 2]  # label 1 after the background
    assert deltas.grad.nonzero().tolist() == [[0, 8]]  # dx of label 1
    assert deltas.grad[0, 8] > 0  # which is to be lower: the box lies on the left


def test_samples_name_the_box_that_each_lies_on():
    network = build().network.train()
    first, second = [10.0, 10.0, 50.0, 50.0], [60.0, 60.0, 120.0, 120.0]
    propose(network, [[60.0, 62.0, 120.0, 120.0], [10.0, 10.0, 50.0, 48.0]])
    _, samples = network.detector_losses(pyramid(network), [torch.tensor([first, second])], [torch.tensor([2, 0])])
    assert samples[0][1].tolist() == [1, 0, 0, 1]


def test_every_sample_reads_its_own_image():
    network = build().network.eval()
    maps = tuple(torch.cat([level, level + 1]) for level in pyramid(network))
    boxes = [torch.tensor(BOXES[:1]), torch.tensor(BOXES)]
    crops = network.roi_heads.box_roi_pool(maps, boxes, [(SIZE, SIZE)] * 2)
    assert crops.mean((1, 2, 3)).tolist() == [0, 1, 1]
    assert crops.shape[-2:] == (7, 7)


@pytest.mark.parametrize("backbone", ["resnet18_fpn", "spinenet49"])
@pytest.mark.parametrize("stage", ["box", "mask", "class"])
def test_boxes_and_masks_read_the_level_and_the_place_of_their_box(stage, backbone):
    """The finest map holds x; each stage is to read from 10.. to 26.. of it in a box of 16 pixels there."""
    network = build(backbone=backbone, class_agnostic_masks=False, mask_size=4).network.eval()
    maps = pyramid(network)
    maps[0][:] = torch.arange(maps[0].shape[-1]) * float(2 ** network.backbone.levels[0])
    box, index = torch.tensor([[10.0, 10.0, 26.0, 26.0]]), torch.tensor([0])
    read = []
    layer = network.mask_head if stage == "mask" else network.roi_heads.box_head
    layer.register_forward_pre_hook(lambda _module, inputs: read.append(inputs[0]))
    with torch.inference_mode():
        if stage == "box":
            propose(network, box.tolist())
            network.detect(maps, [(SIZE, SIZE)])
        else:
            network.mask_logits(maps, box, index, index if stage == "mask" else None)
    cells = read[0].shape[-1]
    expected = 10 + 16 * (torch.arange(cells) + 0.5) / cells
    torch.testing.assert_close(read[0], expected.expand_as(read[0]))


def test_detections_are_the_moved_proposals_inside_the_image():
    """Deltas of the box head: 10 times the shift over the size, 5 times the logarithm of the factor."""
    network = build().network
    propose(network, [[10.0, 10.0, 50.0, 50.0], [10.0, 100.0, 50.0, 120.0]])
    deltas = torch.zeros(2, 4, 4)
    deltas[0, 3] = torch.tensor([1.0, 0.0, 5 * math.log(2.0), 0.0])
    deltas[1, 1] = torch.tensor([0.0, -5.0, 0.0, 5 * math.log(0.5)])
    boxes, labels, scores = detect(network, [[0.0, 0.0, 0.0, 9.0], [0.0, 6.0, 0.0, 0.0]], deltas.flatten(1), (96, 60))
    # The first is moved by 4 pixels to 14..54 and made twice as wide, -6..74; the second moved up by 10 and halved.
    torch.testing.assert_close(boxes, torch.tensor([[0.0, 10.0, 60.0, 50.0], [10.0, 95.0, 50.0, 96.0]]))
    assert labels == [2, 0]
    expected = [math.exp(9) / (3 + math.exp(9)), math.exp(6) / (3 + math.exp(6))]
    assert scores.tolist() == pytest.approx(expected, rel=1e-5)


def test_detections_of_one_class_overlap_by_at_most_half():
    network = build(min_box_score=0.3).network
    propose(network, [[0.0, 0.0, 100.0, high] for high in (45.0, 62.0, 100.0, 100.0)])
    boxes, labels, _ = detect(
        network, [[0.0, 4.0, 0.0, 0.0], [0.0, 5.0, 0.0, 0.0], [0.0, 6.0, 0.0, 0.0], [0.0, 0.0, 3.0, 0.0]]
    )
    assert (boxes[:, 3].tolist(), labels) == ([100, 45, 100], [0, 0, 1])


@pytest.mark.parametrize(("min_box_score", "kept"), [(0.0, [0, 0, 1, 2, 1, 2]), (0.2, [0, 0]), (0.7, [0]), (0.9, [])])
def test_only_scores_above_min_box_score_are_detected(min_box_score, kept):
    network = build(min_box_score=min_box_score).network
    propose(network, [[0.0, 0.0, 20.0, 20.0], [50.0, 50.0, 90.0, 90.0]])
    _, labels, scores = detect(network, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.2, 0.6, 0.1, 0.1]]).log().tolist())
    assert sorted(labels) == sorted(kept)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


def test_no_detection_is_left_out_for_their_number():
    network = build().network
    propose(network, [[x, y, x + 4.0, y + 4.0] for x in torch.arange(16) * 8.0 for y in torch.arange(16) * 8.0])
    boxes, _, _ = detect(network, [[0.0, 5.0, 0.0, 0.0]] * 256)
    assert len(boxes) == 256
