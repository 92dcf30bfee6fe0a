"""What Deep-MARC takes of torchvision beyond its documentation: a change there is to be seen here first."""

import inspect

import torch
from torchvision.models.detection import roi_heads


def heads():
    return roi_heads.RoIHeads(
        box_roi_pool=None,
        box_head=None,
        box_predictor=None,
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=8,
        positive_fraction=0.25,
        bbox_reg_weights=(10.0, 10.0, 5.0, 5.0),
        score_thresh=0.05,
        nms_thresh=0.5,
        detections_per_img=100,
    )


def test_select_training_samples_gives_boxes_rows_labels_and_deltas_per_image():
    assert list(inspect.signature(roi_heads.RoIHeads.select_training_samples).parameters) == [
        "self",
        "proposals",
        "targets",
    ]
    objects = torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 90.0, 70.0]])
    proposals = torch.cat([torch.tensor([[51.0, 50.0, 90.0, 70.0]]), torch.rand(20, 4) * 9 + torch.tensor([200] * 4)])
    proposals[1:, 2:] += 10
    targets = [
        {"boxes": objects, "labels": torch.tensor([4, 2])},
        {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)},
    ]
    given = [proposals, proposals]
    boxes, rows, labels, deltas = heads().train().select_training_samples(given, targets)
    assert [len(value) for value in (boxes, rows, labels, deltas)] == [2, 2, 2, 2]
    assert [len(box) for box in boxes] == [8, 8]
    assert [box.shape == delta.shape for box, delta in zip(boxes, deltas, strict=True)] == [True, True]
    positive = labels[0] > 0
    assert positive.sum() == 2  # a quarter of 8, drawn from one proposal and both objects themselves
    for box, row, label in zip(boxes[0][positive], rows[0][positive], labels[0][positive], strict=True):
        assert label == targets[0]["labels"][row]
        assert torch.equal(box, objects[row]) or (row == 1 and torch.equal(box, proposals[0]))
    assert labels[1].tolist() == [0] * 8


def test_fastrcnn_loss_takes_what_it_gives():
    logits, deltas = torch.zeros(3, 5), torch.zeros(3, 20)
    labels, wanted = [torch.tensor([1, 0]), torch.tensor([0])], [torch.zeros(2, 4), torch.zeros(1, 4)]
    classes, regression = roi_heads.fastrcnn_loss(logits, deltas, labels, wanted)
    torch.testing.assert_close(classes, torch.tensor(5.0).log())
    assert regression == 0
