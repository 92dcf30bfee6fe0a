"""The head that predicts a mask's IoU with the truth: its inputs, its precision, its gradients, any number of rows."""

from __future__ import annotations

import copy

import pytest
import torch

from maskwright.nn.inference import fold_batch_norms, store_weights
from maskwright.nn.mask_quality import MaskQualityHead, expected_iou, mask_measures

BOXES = torch.tensor([[0.0, 0.0, 32.0, 64.0], [5.0, 5.0, 69.0, 37.0], [1.0, 1.0, 1.0, 1025.0]])


def create() -> MaskQualityHead:
    torch.manual_seed(0)
    return MaskQualityHead(5, width=0.125)


def inputs(rows: int, upsample: int = 1) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    crops, logits = (torch.randn(rows, *shape, generator=generator) for shape in ((5, 12, 12), (12 * upsample,) * 2))
    return crops, logits, BOXES[torch.arange(rows) % 3]


PROBABILITIES = torch.tensor([[[0.9, 0.7], [0.2, 0.4]], [[0.5, 0.1], [0.0, 0.0]]])


def test_the_expected_iou_by_hand():
    assert expected_iou(PROBABILITIES).tolist() == pytest.approx([(0.9 + 0.7) / (2 + 0.2 + 0.4), 0])
    assert expected_iou(torch.tensor([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]])).tolist() == [1, 0]
    assert expected_iou(torch.zeros(0, 2, 2)).shape == (0,)


def test_the_expected_iou_is_the_mean_over_the_truths():
    """Of many drawn truths, of a mask so large that a quotient's mean is the means' quotient."""
    generator = torch.Generator().manual_seed(2)
    probabilities = torch.rand(1, 60, 60, generator=generator)
    truths = torch.rand(500, 60, 60, generator=generator) < probabilities
    mask = probabilities > 0.5
    ious = (truths & mask).sum(dim=(1, 2)) / (truths | mask).sum(dim=(1, 2))
    assert expected_iou(probabilities).item() == pytest.approx(ious.mean().item(), abs=0.002)


def test_measures_by_hand():
    first, second = mask_measures(PROBABILITIES, BOXES[[0, 2]])
    assert first.tolist() == pytest.approx([1.6 / 2.6, 0.8, 0.5, (0.9 + 0.7) / 2, (0.9 + 0.4) / 2, 0.5, 0.6])
    assert second.tolist() == pytest.approx([0, 0, 0, (0.5 + 0.1) / 2, (0.5 + 0.0) / 2, 0.0, 1.0])


@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_train_and_predict(rows):
    head = create().train()
    head(*inputs(rows)).sum().backward()
    for name, parameter in head.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    assert all(buffer.isfinite().all() for buffer in head.buffers())
    assert head.eval()(*inputs(rows, upsample=2)).shape == (rows,)


def test_it_sees_the_crops_the_mask_and_the_box():
    head = create().eval()
    crops, logits, boxes = inputs(3)
    expected = head(crops, logits, boxes)
    for other in ((crops.roll(1, 0), logits, boxes), (crops, logits.flip(2), boxes), (crops, logits, 2 * boxes)):
        assert ((head(*other) - expected).abs() > 1e-6).all()


def test_no_gradient_flows_into_crops_or_masks():
    crops, logits, boxes = inputs(2)
    head = create()
    head(crops.requires_grad_(), logits.requires_grad_(), boxes).sum().backward()
    assert crops.grad is None
    assert logits.grad is None


def test_under_autocast_the_result_keeps_its_precision():
    """Also with stored weights; bfloat16 itself would hold all logits."""
    head = fold_batch_norms(create())
    expected = head(*inputs(64))
    stored = copy.deepcopy(head)
    store_weights(stored, torch.bfloat16)
    assert {name.split(".")[0] for name, p in stored.named_parameters() if p.dtype == torch.bfloat16} == {
        "convolutions"
    }
    for one in (head, stored):
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            crops, logits, boxes = inputs(64)
            found = one(crops.bfloat16(), logits, boxes)
        assert found.dtype == torch.float32
        assert (found.bfloat16().float() != found).float().mean() > 0.9
        torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


def test_folded_it_computes_the_same():
    head = create()
    head.train()(*inputs(3))  # norms of some use
    torch.testing.assert_close(fold_batch_norms(head)(*inputs(3)), head.eval()(*inputs(3)), rtol=1e-4, atol=1e-5)
