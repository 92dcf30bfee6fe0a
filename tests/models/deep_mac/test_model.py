"""Deep-MAC without a detector: partial supervision, prompting, and every mask head with 0, 1 and 2 boxes."""

import pytest
import torch
from small_deep_mac import BOXES, SIZE, build, images, make_target

from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.structures import BoxPrompted, SegmentationModel


def test_it_is_what_training_and_prediction_expect():
    model = build()
    assert isinstance(model, SegmentationModel)
    assert isinstance(model, BoxPrompted)


@pytest.mark.parametrize("count", [0, 1, 2])
@pytest.mark.parametrize("mask_head", sorted(MASK_HEADS))
def test_every_head_trains_and_predicts_with_few_boxes(mask_head, count):
    model = build(mask_head=mask_head, mask_size=32, mask_head_width=8)
    losses = model.train()(images(1), [make_target(BOXES[:count])])
    total = sum(losses.values())
    assert torch.isfinite(total)
    assert (total > 0) == (count > 0)
    total.backward()
    # Every parameter takes part even without a box: a DDP rank whose images are empty must not be left behind.
    assert [k for k, p in model.named_parameters() if p.grad is None] == []
    model.eval()
    with torch.inference_mode():
        (prediction,) = model.masks_from_boxes(model.encode(images(1)), [torch.tensor(BOXES[:count]).reshape(-1, 4)])
    assert prediction.mask_probabilities.shape == (count, 32, 32)
    assert prediction.masks.shape == (count, SIZE, SIZE)


def test_masks_of_other_classes_and_crowds_are_never_read():
    model = build().train()
    torch.manual_seed(0)
    target = make_target(BOXES, has_mask=[True, False])
    expected = model(images(1), [target])["mask_cross_entropy"]
    poisoned = {**target, "masks": target["masks"].clone()}
    poisoned["masks"][1] = True
    torch.manual_seed(0)
    assert torch.equal(model(images(1), [poisoned])["mask_cross_entropy"], expected)
    crowd = make_target(BOXES, iscrowd=[False, True])
    torch.manual_seed(0)
    torch.testing.assert_close(model(images(1), [crowd])["mask_cross_entropy"], expected)


def test_loss_is_the_mean_over_images_not_instances():
    model = build()
    stacks = [(torch.zeros(2, 4, 16, 16), torch.zeros(2, 4, 16, 16), torch.zeros(2, 3, SIZE, SIZE))]
    model.eval()
    with torch.no_grad():
        first = model.mask_losses(stacks, [make_target(BOXES), make_target([])])["mask_cross_entropy"]
        second = model.mask_losses(stacks, [make_target([]), make_target(BOXES[:1])])["mask_cross_entropy"]
        both = model.mask_losses(stacks, [make_target(BOXES), make_target(BOXES[:1])])["mask_cross_entropy"]
    torch.testing.assert_close(both, first + second)


def test_max_masks_per_image_bounds_the_head():
    model = build(max_masks_per_image=1).train()
    seen = []
    model.network.mask_head.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    model(images(2), [make_target(BOXES), make_target(BOXES)])
    assert seen == [2]


def test_batched_prompting_equals_one_by_one_and_chunks_do_not_matter():
    model = build(mask_chunk_size=1).eval()
    first, second = torch.rand(3, 40, 90), torch.rand(3, 70, 50)
    boxes = [torch.tensor(BOXES), torch.tensor([[1.0, 2.0, 30.0, 60.0]])]
    with torch.inference_mode():
        together = model.masks_from_boxes(model.encode([first, second]), boxes)
        model.mask_chunk_size = 100
        alone = [model.masks_from_boxes(model.encode([i]), [b])[0] for i, b in zip([first, second], boxes, strict=True)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.mask_probabilities, other.mask_probabilities, rtol=1e-4, atol=1e-5)
    assert [p.image_size for p in together] == [(40, 90), (70, 50)]


def test_order_of_boxes_is_kept():
    model = build().eval()
    with torch.inference_mode():
        features = model.encode(images(1))
        (forward,) = model.masks_from_boxes(features, [torch.tensor(BOXES)])
        (backward,) = model.masks_from_boxes(features, [torch.tensor(BOXES[::-1])])
    torch.testing.assert_close(forward.mask_probabilities, backward.mask_probabilities.flip(0), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("box_frame", ["corner", "pixel"])
def test_a_margin_is_taken_away_again(box_frame):
    """A head that copies the x coordinate of its crop must give the box's own coordinates back."""
    model = build(box_frame=box_frame, box_margin=0.25, mask_size=16).eval()
    row = torch.linspace(-1, 1, 16) if box_frame == "corner" else (torch.arange(16) + 0.5) / 8 - 1
    widened = row.expand(1, 16, 16) * 1.5  # the crop spans -1.5..1.5 in units of half a box
    inside = model.on_boxes(widened)
    torch.testing.assert_close(inside, row.expand(1, 16, 16), rtol=0, atol=1e-5)


def test_network_exports_with_any_number_of_boxes():
    network = build().eval().network
    maps = network.maps(torch.rand(1, 3, SIZE, SIZE))

    class Prompt(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, pixel, instance, image, boxes, image_index):
            return self.network.mask_logits((pixel, instance, image), boxes, image_index)

    example = (*maps, torch.tensor(BOXES), torch.zeros(2, dtype=torch.int64))
    count = torch.export.Dim("count", min=0, max=1024)
    shapes = (None, None, None, {0: count}, {0: count})
    exported = torch.export.export(Prompt(), example, dynamic_shapes=shapes, strict=False).module()
    for n in (0, 1, 2, 7):
        boxes = torch.tensor(BOXES)[torch.arange(n) % 2]
        index = torch.zeros(n, dtype=torch.int64)
        torch.testing.assert_close(exported(*maps, boxes, index), network.mask_logits(maps, boxes, index))


def test_images_of_two_sizes_are_refused_in_training():
    targets = [make_target([]), {**make_target([]), "masks": torch.zeros(0, 32, 64, dtype=torch.bool)}]
    with pytest.raises(ValueError, match=r"image 0 is \[3, 64, 64\] and 1 \[3, 32, 64\]"):
        build().train()([torch.rand(3, 64, 64), torch.rand(3, 32, 64)], targets)


def test_training_crops_may_be_smaller_than_the_input():
    model = build(image_size=128).train()
    assert torch.isfinite(sum(model(images(1), [make_target(BOXES)]).values()))


def test_frozen_levels_keep_weights_and_statistics():
    model = build(backbone="resnet18_fpn", frozen_levels=2)  # new models are in training mode
    before = {k: v.clone() for k, v in model.network.backbone.trunk.state_dict().items()}
    optimizer = torch.optim.SGD([p for g in model.parameter_groups() for p in g["params"]], lr=1.0)
    sum(model(images(1), [make_target(BOXES)]).values()).backward()
    optimizer.step()
    after = model.network.backbone.trunk.state_dict()
    changed = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {"layer3", "layer4"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("labels", torch.zeros(2), r"target 0 \(image_id 1\): field 'labels' must be torch.int64"),
        ("boxes", torch.tensor([[0.0, 0.0, 0.0, 5.0], [0.0, 0.0, 9.0, 5.0]]), "box 0 must have x2 > x1"),
        ("masks", torch.zeros(2, 8, 8, dtype=torch.bool), r"field 'masks' must be \[N, 64, 64\]"),
        ("has_mask", torch.ones(3, dtype=torch.bool), "field 'has_mask' must have 1 dimensions and 2 rows"),
    ],
)
def test_broken_targets_are_named(field, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        build().train()(images(1), [{**make_target(BOXES), field: value}])


def test_image_size_must_fit_the_backbone():
    with pytest.raises(ValueError, match="image_size must be a multiple of"):
        build(image_size=50)


def test_without_a_detector_eval_needs_boxes():
    with pytest.raises(ValueError, match="no detector"):
        build().eval()(images(1))


def test_parameter_groups_cover_every_parameter_once():
    model = build()
    grouped = [id(p) for group in model.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize("unused", ["use_coordinates", "use_instance_embedding", "use_image_crop"])
def test_every_trained_parameter_takes_part_in_every_ablation(unused):
    model = build(**{"use_image_crop": True, unused: False}).train()
    sum(model(images(1), [make_target(BOXES)]).values()).backward()
    assert [k for k, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_predictions_are_float32_and_free_of_the_graph():
    model = build(box_margin=0.25).eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (prediction,) = model.masks_from_boxes(model.encode(images(1)), [torch.tensor(BOXES)])
    assert prediction.mask_probabilities.dtype == prediction.mask_scores.dtype == torch.float32
    assert not prediction.mask_probabilities.requires_grad
    detections = prediction.to_supervision()
    assert detections.mask.shape == (2, SIZE, SIZE)
    assert len(prediction.to_coco(1)) == 2


def test_no_images_give_no_predictions():
    model = build().eval()
    assert model.masks_from_boxes(model.encode([]), []) == []


def test_frozen_levels_stay_frozen_when_norms_are_synchronised():
    model = build(backbone="resnet18_fpn", frozen_levels=2)
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(model).train()
    trunk = model.network.backbone.trunk
    assert not trunk.bn1.training
    assert not trunk.layer2[0].bn1.training
    assert trunk.layer3[0].bn1.training


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"mask_head": "hourglass52", "mask_size": 16},
            "mask_size must be a multiple of 32 for mask head 'hourglass52'",
        ),
        ({"box_margin": -0.6}, "box_margin must be at least 0"),
        ({"mask_chunk_size": 0}, "mask_chunk_size must be at least 1"),
        ({"cross_entropy_weight": 0.0}, "both 0"),
        ({"image_mean": [0.5]}, "three finite numbers each"),
    ],
)
def test_values_without_a_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build(**values)
