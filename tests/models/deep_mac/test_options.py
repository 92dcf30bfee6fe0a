"""Full-resolution masks and box consistency: each trains, predicts, is saved and loaded, and exports."""

import math

import pytest
import torch
from small_deep_mac import BOXES, SIZE, build, images, make_target

from maskwright.models.deep_mac import DeepMACConfig
from maskwright.models.deep_mac.losses import MaskInstances, MaskLoss, choose_instances
from maskwright.models.hub import from_pretrained, save_pretrained

FULL = {"predict_full_resolution_masks": True, "postprocess_crop_size": 12}
OPTIONS = [
    FULL,
    {"box_consistency_weight": 0.7},
    {"box_consistency_weight": 0.7, "dice_weight": 1.0, "cross_entropy_weight": 0.0, "box_jitter_ratio": 0.2},
    {**FULL, "box_consistency_weight": 0.7},
    {"boundary_weight": 2.0},
    {**FULL, "boundary_weight": 2.0},
]


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("values", OPTIONS, ids=lambda values: "-".join(values))
def test_every_option_trains_predicts_and_is_saved(values, count, tmp_path):
    model = build(**values).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    losses = model(images(2), [make_target(BOXES[:count]), make_target([])])
    assert ("box_consistency" in losses) == ("box_consistency_weight" in values)
    assert all(torch.isfinite(value) and (value > 0) == (count > 0) for value in losses.values())
    sum(losses.values()).backward()
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    optimizer.step()

    save_pretrained(model, tmp_path / "weights")
    loaded = from_pretrained(tmp_path / "weights")
    boxes = [torch.tensor(BOXES[:count]).reshape(-1, 4), torch.tensor(BOXES)]
    with torch.inference_mode():
        first, second = (m.eval().masks_from_boxes(m.encode(images(2)), boxes) for m in (model, loaded))
    side = values.get("postprocess_crop_size", 32)
    for one, other, given in zip(first, second, boxes, strict=True):
        assert one.mask_probabilities.shape == (len(given), side, side)
        assert one.masks.shape == (len(given), SIZE, SIZE)
        assert torch.equal(one.mask_probabilities, other.mask_probabilities)


def test_full_resolution_learns_the_whole_mask_and_cuts_it_out_at_the_box():
    """A head that copies the x coordinate: logits of the map, and of each box's own part of the image."""
    model = build(predict_full_resolution_masks=True, postprocess_crop_size=5).eval()
    model.network.mask_head = torch.nn.Sequential()  # logits: the first channels as they are
    model.network.mask_head.forward = lambda x: x[:, 1:2]
    maps = (torch.zeros(1, 4, 16, 16), torch.zeros(1, 4, 16, 16), torch.zeros(1, 3, SIZE, SIZE))
    boxes = torch.tensor([[16.0, 0.0, 48.0, 64.0], [8.0, 8.0, 24.0, 40.0]])
    index = torch.zeros(2, dtype=torch.int64)
    whole = model.network.head_logits(maps, boxes, index)
    assert whole.shape == (2, 16, 16)
    torch.testing.assert_close(whole[0, 3], torch.linspace(-0.5, 0.5, 16))
    torch.testing.assert_close(whole[1, 3], torch.linspace(-0.25, 0.75, 16))
    cut = model.network.mask_logits(maps, boxes, index)
    assert cut.shape == (2, 5, 5)
    # The box's edges are at -0.25 and 0.25 of the image from its centre; resampling moves values by under one cell.
    torch.testing.assert_close(cut[0, 2], torch.linspace(-0.25, 0.25, 5), rtol=0, atol=1 / 16)
    target = make_target(boxes.tolist())
    instances = choose_instances([target], model.config, (SIZE, SIZE), torch.device("cpu"))
    assert torch.equal(instances.masks, target["masks"].float())


def test_box_consistency_holds_boxes_without_masks():
    model = build(box_consistency_weight=1.0).train()
    target = make_target(BOXES, has_mask=[False, False])
    losses = model(images(1), [target])
    assert losses["mask_cross_entropy"] == 0
    assert losses["box_consistency"] > 0
    crowd = {**target, "iscrowd": torch.ones(2, dtype=torch.bool)}
    assert model(images(1), [crowd])["box_consistency"] == 0


def test_box_consistency_by_hand():
    """Logits of a whole image of 4 x 4 cells, 8 pixels each: the box covers rows 1..2 and columns 0..1."""
    loss = MaskLoss(
        DeepMACConfig(cross_entropy_weight=1.0, box_consistency_weight=2.0, predict_full_resolution_masks=True)
    )
    box = torch.tensor([[-4.0, 8.0, 12.0, 20.0]])
    logits = torch.full((1, 4, 4), -2.0)
    logits[0, 1, 3] = 3.0
    one = torch.zeros(1, dtype=torch.int64)
    unknown = torch.zeros(1, dtype=torch.bool)
    instances = MaskInstances(box, box, one, unknown, torch.zeros(0, 32, 32))
    near, far = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    columns = (2 * far + near + math.log1p(math.exp(3))) / 4  # two are to be reached, the last is in excess
    rows = (near + math.log1p(math.exp(-3)) + far + near) / 4
    losses = loss([logits], instances, 1, (32, 32))
    assert losses["box_consistency"].item() == pytest.approx(2 * (columns + rows))
    assert losses["mask_cross_entropy"] == 0


def test_the_boundary_counts_more_in_the_loss_of_masks_but_not_of_extents():
    """The logits are right but for the second column, the outer half of the boundary."""
    values = {"cross_entropy_weight": 1.0, "box_consistency_weight": 1.0, "predict_full_resolution_masks": True}
    box = torch.tensor([[0.0, 0.0, 8.0, 32.0]])
    truth = torch.zeros(1, 4, 4)
    truth[0, :, 0] = 1.0
    logits = torch.full((1, 4, 4), -2.0)
    logits[0, :, :2] = 2.0
    instances = MaskInstances(box, box, torch.zeros(1, dtype=torch.int64), torch.tensor([True]), truth)
    plain, weighted = (
        MaskLoss(DeepMACConfig(**values, boundary_weight=w))([logits], instances, 1, (32, 32)) for w in (0.0, 1.0)
    )
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    assert plain["mask_cross_entropy"].item() == pytest.approx((3 * right + wrong) / 4)
    assert weighted["mask_cross_entropy"].item() == pytest.approx((2 * right + 2 * wrong + 2 * right) / 6)
    assert torch.equal(weighted["box_consistency"], plain["box_consistency"])


def test_full_resolution_exports_with_any_number_of_boxes():
    network = build(**FULL).eval().network
    maps = network.maps(torch.rand(1, 3, SIZE, SIZE))

    class Prompt(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, pixel, instance, image, boxes, image_index):
            return self.network.mask_logits((pixel, instance, image), boxes, image_index)

    example = (*maps, torch.tensor(BOXES), torch.zeros(2, dtype=torch.int64))
    count = torch.export.Dim("count", min=0, max=1024)
    exported = torch.export.export(
        Prompt(), example, dynamic_shapes=(None, None, None, {0: count}, {0: count}), strict=False
    ).module()
    for n in (0, 1, 2, 5):
        boxes, index = torch.tensor(BOXES)[torch.arange(n) % 2], torch.zeros(n, dtype=torch.int64)
        torch.testing.assert_close(exported(*maps, boxes, index), network.mask_logits(maps, boxes, index))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({**FULL, "box_jitter_ratio": 0.1}, "but got another box_jitter_ratio"),
        ({**FULL, "box_margin": 0.1}, "but got another box_margin"),
        ({**FULL, "box_frame": "pixel"}, "but got another box_frame"),
        ({**FULL, "mask_head": "fully_connected"}, "needs a convolutional mask_head, not 'fully_connected'"),
        ({"postprocess_crop_size": 1}, "postprocess_crop_size must be at least 2"),
        ({"boundary_weight": 1.0, "cross_entropy_weight": 0.0, "dice_weight": 1.0}, "but cross_entropy_weight is 0"),
        ({"box_consistency_weight": -1.0}, "box_consistency_weight must be at least 0"),
        ({"image_std": [0.0, 0.0, 0.0]}, r"image_std of a model\) must be three numbers above 0"),
        ({"norm_momentum": -1.0}, "norm_momentum must be at least 0 and at most 1, but got -1"),
        ({"embedding_kernel": [2, 2]}, r"embedding_kernel must be two odd numbers, but got \[2, 2\]"),
        ({"embedding_kernel": [3]}, "embedding_kernel must be two odd numbers"),
    ],
)
def test_values_that_do_not_go_together_or_have_no_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build(**values)
