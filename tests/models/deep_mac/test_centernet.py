"""CenterNet's network, losses and decoding, each alone."""

import math

import pytest
import torch

from maskwright.models.deep_mac import DeepMACConfig
from maskwright.models.deep_mac.centernet import CenterNetHeads, CenterNetLoss, CenterNetMaps, decode, valid_cells
from maskwright.ops.heatmap import center_cells, center_heatmap, size_and_offset_targets

STRIDE = 4
SIZE = (24, 32)  # pixels; 6 x 8 cells
BOXES = torch.tensor([[2.0, 3.0, 13.0, 12.0], [17.0, 9.0, 31.0, 24.0]])
LABELS = torch.tensor([1, 0])
NONE = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def zeros(num_classes=2, images=1, cells=(6, 8)):
    return CenterNetMaps(*(torch.zeros(images, channels, *cells) for channels in (num_classes, 2, 2)))


def perfect(boxes, labels, num_classes=2, cells=(6, 8)):
    """The maps of a network that has learnt one image by heart."""
    in_cells = boxes / STRIDE
    where = center_cells(in_cells, cells)
    maps = zeros(num_classes, 1, cells)
    sizes, offsets = size_and_offset_targets(in_cells, where)
    maps.size[0, :, where[:, 0], where[:, 1]] = sizes.T
    maps.offset[0, :, where[:, 0], where[:, 1]] = offsets.T
    heatmap = center_heatmap(in_cells, labels, num_classes, cells)
    return maps._replace(center=heatmap.clamp(1e-6, 1 - 1e-6).logit()[None])


def test_heads_give_maps_of_the_feature_s_size_and_expect_few_objects():
    heads = CenterNetHeads(5, 3, 7)
    maps = heads(torch.zeros(2, 5, 6, 8))
    assert [tuple(part.shape) for part in maps] == [(2, 3, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8)]
    assert maps.center.sigmoid().mean().item() == pytest.approx(0.1, abs=2e-3)
    assert maps.size.abs().max() == 0
    assert heads.center[0].weight.shape == (7, 5, 3, 3)


def test_losses_by_hand():
    """Maps of zeros: every probability is a half, every size and offset 0."""
    losses = CenterNetLoss(DeepMACConfig())([zeros()], [BOXES], [LABELS], [SIZE], STRIDE)
    # Centres (1.875, 1.875) and (4.125, 6) in cells, (y, x); sizes (2.25, 2.75) and (3.75, 3.5).
    assert losses["box_size"].item() == pytest.approx(0.1 * (2.25 + 2.75 + 3.75 + 3.5) / 2)
    assert losses["box_offset"].item() == pytest.approx((0.875 + 0.875 + 0.125 + 0) / 2)
    heatmap = center_heatmap(BOXES / STRIDE, LABELS, 2, (6, 8))
    weights = torch.where(heatmap == 1, 1, (1 - heatmap) ** 4)
    assert losses["object_center"].item() == pytest.approx(0.25 * math.log(2) * weights.sum().item() / 2, rel=1e-5)


def test_weights_and_overlap_are_values():
    usual = CenterNetLoss(DeepMACConfig())([zeros()], [BOXES], [LABELS], [SIZE], STRIDE)
    other = CenterNetLoss(DeepMACConfig(object_center_weight=2.0, box_size_weight=0.3, box_offset_weight=4.0))(
        [zeros()], [BOXES], [LABELS], [SIZE], STRIDE
    )
    factors = {"object_center": 2, "box_size": 3, "box_offset": 4}
    assert {k: other[k].item() for k in other} == pytest.approx({k: v.item() * factors[k] for k, v in usual.items()})
    boxes = torch.tensor([[0.0, 0.0, 96.0, 96.0]])
    wide, narrow = (
        CenterNetLoss(DeepMACConfig(min_box_overlap=overlap))(
            [zeros(cells=(24, 24))], [boxes], [LABELS[:1]], [(96, 96)], STRIDE
        )
        for overlap in (0.3, 0.9)
    )
    assert wide["object_center"] < narrow["object_center"]


def test_the_number_of_boxes_of_the_batch_divides_and_stacks_are_averaged():
    one = CenterNetLoss(DeepMACConfig())([zeros()], [BOXES], [LABELS], [SIZE], STRIDE)
    two = CenterNetLoss(DeepMACConfig())([zeros(images=2)] * 2, [BOXES, BOXES], [LABELS, LABELS], [SIZE, SIZE], STRIDE)
    torch.testing.assert_close(two, one)
    batch = CenterNetLoss(DeepMACConfig())([zeros(images=2)], [BOXES, NONE[0]], [LABELS, NONE[1]], [SIZE, SIZE], STRIDE)
    torch.testing.assert_close(batch["box_size"], one["box_size"])
    maps = zeros()._replace(size=torch.full((1, 2, 6, 8), 100.0))
    uneven = CenterNetLoss(DeepMACConfig())([zeros(), maps], [BOXES], [LABELS], [SIZE], STRIDE)
    alone = CenterNetLoss(DeepMACConfig())([maps], [BOXES], [LABELS], [SIZE], STRIDE)
    torch.testing.assert_close(uneven["box_size"], (one["box_size"] + alone["box_size"]) / 2)


def test_padding_does_not_count():
    valid = valid_cells([(9, 17), (8, 16), (24, 32)], (6, 8), STRIDE)
    assert valid.sum(dim=(1, 2)).tolist() == [3 * 5, 2 * 4, 6 * 8]
    maps = zeros()
    maps.center[..., 3:, :] = 5.0
    maps.center[..., 5:] = 5.0
    loss = CenterNetLoss(DeepMACConfig())([maps], [NONE[0]], [NONE[1]], [(9, 17)], STRIDE)["object_center"]
    assert loss.item() == pytest.approx(2 * 15 * 0.25 * math.log(2), rel=1e-5)


def test_what_was_learnt_by_heart_costs_nothing_and_decodes_to_the_boxes():
    maps = perfect(BOXES, LABELS)
    losses = CenterNetLoss(DeepMACConfig())([maps], [BOXES], [LABELS], [SIZE], STRIDE)
    assert losses["box_size"] == 0
    assert losses["box_offset"] == 0
    # The Gaussians' own flanks are penalised, (1 - t)^4 t^2, but next to no more.
    assert losses["object_center"].item() < 0.2
    found = decode(maps, [SIZE], STRIDE, 2)
    torch.testing.assert_close(found.boxes, BOXES[None], rtol=0, atol=1e-4)
    assert found.labels.tolist() == [[1, 0]]
    assert found.scores.min() > 0.999


def test_decoding_keeps_flat_order_clips_and_bounds_the_number():
    found = decode(zeros(num_classes=3), [SIZE], STRIDE, 5)  # one plateau of 144 equal peaks
    assert found.scores.tolist() == [[0.5] * 5]
    assert found.labels.tolist() == [[0, 1, 2, 0, 1]]
    assert found.boxes[0, :, 0].tolist() == [0, 0, 0, STRIDE, STRIDE]
    assert decode(zeros(), [SIZE], STRIDE, 1000).boxes.shape == (1, 96, 4)
    with pytest.raises(ValueError, match="number of detections must be at least 1, but got 0"):
        decode(zeros(), [SIZE], STRIDE, 0)
    wide = zeros()._replace(size=torch.full((1, 2, 6, 8), 50.0))
    assert decode(wide, [SIZE], STRIDE, 3).boxes.tolist() == [[[0, 0, 32, 24]] * 3]


def test_an_image_smaller_than_the_map_has_no_peaks_beyond_it():
    maps = zeros(num_classes=1)
    maps.center[0, 0, 5, 7] = 3.0
    maps.center[0, 0, 1, 2] = 2.0
    assert decode(maps, [(24, 32)], STRIDE, 1).boxes[0, 0, :2].tolist() == [28, 20]
    assert decode(maps, [(5, 8)], STRIDE, 1).boxes[0, 0, :2].tolist() == [8, 4]


@pytest.mark.parametrize("count", [0, 1, 3])  # of an even number the signs of an L1 loss may cancel out
def test_every_parameter_has_a_gradient_with_any_number_of_boxes(count):
    torch.manual_seed(0)
    heads = torch.nn.ModuleList(CenterNetHeads(4, 2, 16) for _ in range(2))
    features = torch.randn(1, 4, 6, 8)
    boxes, labels = torch.cat([BOXES, BOXES[:1] + 7])[:count], torch.tensor([1, 0, 0])[:count]
    losses = CenterNetLoss(DeepMACConfig())([h(features) for h in heads], [boxes], [labels], [SIZE], STRIDE)
    total = torch.stack(list(losses.values())).sum()
    assert torch.isfinite(total)
    total.backward()
    for name, parameter in heads.named_parameters():
        assert parameter.grad is not None, name
        learns = count > 0 or ".center." in name
        assert bool(parameter.grad.abs().sum() > 0) == learns, name


def test_decoding_exports():
    class Decode(torch.nn.Module):
        def forward(self, center, size, offset):
            return decode(CenterNetMaps(center, size, offset), [SIZE], STRIDE, 4)

    maps = perfect(BOXES, LABELS)
    exported = torch.export.export(Decode(), tuple(zeros()), strict=False).module()
    torch.testing.assert_close(tuple(exported(*maps)), tuple(decode(maps, [SIZE], STRIDE, 4)))
