"""Deep-MARC's losses: partial supervision, on which boxes masks are learnt, their targets and their number."""

import pytest
import torch
from small_deep_marc import BOXES, build, images, target

LOSSES = {"proposal_class", "proposal_regression", "box_class", "box_regression", "mask_cross_entropy"}


def seeded_losses(model, *arguments):
    torch.manual_seed(0)  # of the samples
    return {name: loss.detach() for name, loss in model(*arguments).items()}


def entering(model):
    """The numbers of rows that enter the mask head from now on."""
    rows = []
    model.network.mask_head.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    return rows


@pytest.mark.parametrize("mask_boxes", ["ground_truth", "proposals"])
@pytest.mark.parametrize("count", [0, 1, 2])
def test_every_parameter_takes_part_with_any_number_of_boxes(count, mask_boxes):
    """Also where no image has a box: a DDP rank whose images are empty must not be left behind."""
    model = build(mask_boxes=mask_boxes, class_agnostic_masks=mask_boxes == "ground_truth", box_head="4conv1fc").train()
    losses = model(images(2), [target(BOXES[:count]), target([])])
    assert set(losses) == LOSSES
    assert all(torch.isfinite(loss) for loss in losses.values())
    for name in ("box_regression", "mask_cross_entropy"):
        assert (losses[name] > 0) == (count > 0), name
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("mask_boxes", ["ground_truth", "proposals"])
def test_every_parameter_takes_part_with_boxes_but_no_masks(mask_boxes):
    model = build(mask_boxes=mask_boxes, box_head="4conv1fc").train()
    losses = model(images(1), [target(BOXES, has_mask=[False, False])])
    assert losses["mask_cross_entropy"] == 0
    assert losses["box_regression"] > 0
    sum(losses.values()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("mask_boxes", ["ground_truth", "proposals"])
def test_masks_of_other_classes_are_never_read_but_their_boxes_are_learnt(mask_boxes):
    model = build(mask_boxes=mask_boxes).train()
    partial = target(BOXES, has_mask=[True, False])
    expected = seeded_losses(model, images(1), [partial])
    poisoned = {**partial, "masks": partial["masks"].clone()}
    poisoned["masks"][1] = True
    torch.testing.assert_close(seeded_losses(model, images(1), [poisoned]), expected, rtol=0, atol=0)
    alone = seeded_losses(model, images(1), [target(BOXES[:1])])
    assert not torch.equal(alone["box_class"], expected["box_class"])
    none = seeded_losses(model, images(1), [target(BOXES, has_mask=[False, False])])
    assert none["mask_cross_entropy"] == 0


@pytest.mark.parametrize("mask_boxes", ["ground_truth", "proposals"])
def test_crowds_train_nothing(mask_boxes):
    targets = [
        target(BOXES[:1]),
        target(BOXES, iscrowd=[False, True]),
        target(BOXES[::-1], iscrowd=[True, False]),  # the row of the object is not its position among the objects
    ]
    losses = [seeded_losses(build(mask_boxes=mask_boxes).train(), images(1), [one]) for one in targets]
    torch.testing.assert_close(losses[1], losses[0])
    torch.testing.assert_close(losses[2], losses[0])


def test_masks_are_learnt_on_ground_truth_boxes_or_on_the_sampled_ones_that_lie_on_an_object():
    rows = entering(ground_truth := build().train())
    ground_truth(images(2), [target(BOXES), target(BOXES[:1])])
    assert rows == [3]
    model = build(mask_boxes="proposals").train()
    rows, samples = entering(model), []
    method = model.network.roi_heads.losses

    def losses(*arguments):
        result = method(*arguments)
        samples.extend(result[1])
        return result

    model.network.roi_heads.losses = losses
    model(images(2), [target(BOXES), target(BOXES[:1])])
    (boxes, matched), _ = samples
    assert rows == [sum(len(boxes) for boxes, _ in samples)]
    for box in torch.tensor(BOXES):
        assert (boxes == box).all(dim=1).any(), "the ground truth is among the samples"
    assert matched.max() <= 1


def asking(model, logits=None):
    """What the mask head is asked from now on: boxes, images, labels; it gives `logits`, or what it would anyway."""
    asked, mask_logits = [], model.network.mask_logits

    def ask(maps, boxes, image_index, labels):
        asked.append((boxes.tolist(), image_index.tolist(), labels.tolist()))
        return mask_logits(maps, boxes, image_index, labels) if logits is None else logits

    model.network.mask_logits = ask
    return asked


def test_each_box_with_a_mask_enters_with_its_image_and_its_label():
    model = build(class_agnostic_masks=False).train()
    asked = asking(model)
    first = target([*BOXES, *BOXES], has_mask=[False, True, True, True], iscrowd=[False, False, True, False])
    second, third = target([]), target(BOXES[:1])
    first["labels"], third["labels"] = torch.tensor([0, 2, 0, 1]), torch.tensor([1])
    model(images(3), [first, second, third])
    assert asked == [([BOXES[1], BOXES[1], BOXES[0]], [0, 0, 2], [2, 1, 1])]


def test_each_sampled_box_on_an_object_with_a_mask_enters_with_its_label():
    """Samples are numbered among the objects, here the second and the third box: the first is a crowd."""
    model = build(mask_boxes="proposals").train()
    asked, beside = asking(model), [21.0, 10.0, 120.0, 112.0]
    samples = [(torch.tensor([beside, BOXES[0], BOXES[1]]), torch.tensor([1, 0, 1]))]
    model.network.detector_losses = lambda *_: ({}, samples)
    one = target([BOXES[1], *BOXES], has_mask=[True, False, True], iscrowd=[True, False, False])
    one["labels"] = torch.tensor([0, 1, 2])
    model(images(1), [one])
    assert asked == [([beside, BOXES[1]], [0, 0], [2, 2])]


@pytest.mark.parametrize("mask_boxes", ["ground_truth", "proposals"])
def test_max_masks_per_image_bounds_the_head(mask_boxes):
    model = build(max_masks_per_image=1, mask_boxes=mask_boxes).train()
    rows = entering(model)
    model(images(2), [target(BOXES), target(BOXES)])
    assert rows == [2]


def test_any_of_too_many_masks_may_be_learnt():
    model = build(max_masks_per_image=1).train()
    asked = asking(model)
    torch.manual_seed(0)
    for _ in range(8):
        model(images(1), [target(BOXES)])
    assert sorted({tuple(box) for boxes, *_ in asked for box in boxes}) == sorted(map(tuple, BOXES))


def test_mask_targets_are_the_masks_inside_the_boxes_and_soft():
    """Grids of 16 x 16 on boxes of 16 and of 8 pixels: on the pixels, and a quarter of a pixel beside them."""
    model = build().train()
    one = target([[8.0, 8.0, 24.0, 24.0], [8.0, 8.0, 16.0, 16.0]])
    one["masks"][:] = False
    one["masks"][0, :, 12:] = True
    one["masks"][1, 10:] = True
    targets = torch.zeros(2, 16, 16)
    targets[0, :, 4:] = 1
    targets[1] = torch.tensor([0.0, 0.0, 0.0, 0.25, 0.75, *[1.0] * 11])[:, None]
    logits = torch.randn(2, 16, 16)
    asking(model, logits)
    expected = -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log()).mean()
    torch.testing.assert_close(model(images(1), [one])["mask_cross_entropy"], expected)


def test_training_crops_may_be_smaller_than_image_size_and_are_not_resized():
    model = build().train()
    one = {**target([[4.0, 6.0, 40.0, 50.0]]), "masks": torch.ones(1, 64, 128, dtype=torch.bool)}
    maps, seen = model.network.maps, []
    model.network.maps = lambda batch: seen.append(batch) or maps(batch)
    picture = images(1)[0][:, :64]
    losses = model([picture], [one])
    assert all(torch.isfinite(loss) for loss in losses.values())
    mean, std = (torch.tensor(getattr(model.config, name)).view(3, 1, 1) for name in ("image_mean", "image_std"))
    torch.testing.assert_close(seen[0], ((picture - mean) / std)[None])


@pytest.mark.parametrize("targets", [None, [{**target(BOXES), "labels": torch.tensor([0, 3])}]])
def test_targets_are_checked(targets):
    with pytest.raises(ValueError, match=r"labels|needs targets"):
        build().train()(images(1), targets)


def test_mask_loss_is_the_mean_over_all_cells_of_all_boxes():
    model = build(mask_weight=3.0).train()
    head = model.network.mask_head
    head.register_forward_hook(lambda _module, _inputs, output: torch.zeros_like(output))
    for boxes in ([BOXES, BOXES[:1]], [BOXES[:1], []]):
        losses = model(images(2), [target(rows) for rows in boxes])
        # A logit of 0 costs log 2 whatever the target.
        torch.testing.assert_close(losses["mask_cross_entropy"], 3 * torch.tensor(2.0).log())


def test_with_a_mask_per_class_only_that_of_the_class_learns():
    model = build(class_agnostic_masks=False).train()
    labelled = {**target(BOXES), "labels": torch.tensor([2, 2])}
    model(images(1), [labelled])["mask_cross_entropy"].backward()
    silent = model.network.mask_head.project_out.weight.grad.abs().sum(dim=(1, 2, 3)) == 0
    assert silent.tolist() == [True, True, False]


def test_images_of_two_sizes_are_refused_in_training():
    targets = [target([]), {**target([]), "masks": torch.zeros(0, 64, 128, dtype=torch.bool)}]
    with pytest.raises(ValueError, match=r"image 0 is \[3, 128, 128\] and 1 \[3, 64, 128\]"):
        build().train()([torch.rand(3, 128, 128), torch.rand(3, 64, 128)], targets)
