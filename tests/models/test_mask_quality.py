"""`mask_quality` in both families that turn boxes into masks: what it learns, leaves alone and predicts."""

from __future__ import annotations

import copy

import pytest
import small_deep_mac
import small_deep_marc
import torch
from small_deep_mac import BOXES

from maskwright.models.deep_mac import DeepMACConfig
from maskwright.models.deep_mac.losses import MaskInstances, MaskLoss
from maskwright.models.deep_marc.model import quality_loss
from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.nn.mask_quality import expected_iou
from maskwright.predictor import Predictor
from maskwright.training.initial_weights import start_from

FAMILIES = [small_deep_mac, small_deep_marc]
ON = {"mask_quality": True}
ALONE = {**ON, "mask_quality_alone": True}

family = pytest.mark.parametrize("small", FAMILIES, ids=["deep_mac", "deep_marc"])


def target(small, boxes, **values):
    return small_deep_mac.make_target(boxes, size=small.SIZE, **values)


def losses(model, small, *targets):
    torch.manual_seed(0)  # of the samples
    return model.train()(small.images(len(targets)), list(targets))


def prompted(model, small, boxes):
    with torch.inference_mode():
        (prediction,) = model.eval().masks_from_boxes(
            model.encode(small.images(1)), [torch.tensor(boxes).reshape(-1, 4)]
        )
    return prediction


@pytest.mark.parametrize("mask_head", sorted(MASK_HEADS))
@family
def test_every_head_trains_and_predicts_with_few_boxes(small, mask_head):
    model = small.build(**ON, mask_head=mask_head, mask_size=32, mask_head_width=8)
    for count in (0, 1, 2):
        model.zero_grad()
        found = losses(model, small, target(small, BOXES[:count]))
        assert torch.isfinite(found["mask_quality"])
        assert (found["mask_quality"] > 0) == (count > 0)
        found["mask_quality"].backward()
        own = [name for name, _ in model.named_parameters() if ".mask_quality." in name]
        assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == own
        prediction = prompted(model, small, BOXES[:count])
        assert prediction.mask_scores.shape == (count,)
        assert ((prediction.mask_scores >= 0) & (prediction.mask_scores <= 1)).all()


@family
def test_masks_and_their_losses_are_those_without_it(small):
    without, with_it = small.build(), small.build(**ON)
    before, after = (losses(model, small, target(small, BOXES)) for model in (without, with_it))
    assert after.keys() - before.keys() == {"mask_quality"}
    assert all(torch.equal(after[name], loss) for name, loss in before.items())
    for model, found in ((without, before), (with_it, after)):
        torch.stack(list(found.values())).sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.01).step()
    state = with_it.state_dict()
    assert all(torch.equal(state[name], value) for name, value in without.state_dict().items())
    masks = [prompted(model, small, BOXES) for model in (without, with_it)]
    assert torch.equal(masks[0].mask_probabilities, masks[1].mask_probabilities)
    assert not torch.equal(masks[0].mask_scores, masks[1].mask_scores)


@family
def test_without_it_the_score_comes_from_the_probabilities(small):
    prediction = prompted(small.build(), small, BOXES)
    assert torch.equal(prediction.mask_scores, expected_iou(prediction.mask_probabilities))


@family
def test_only_instances_with_a_mask_are_learnt(small):
    model = small.build(**ON)
    none = losses(model, small, target(small, BOXES, has_mask=[False, False]))["mask_quality"]
    assert none == 0
    partial = target(small, BOXES, has_mask=[True, False])
    poisoned = {**partial, "masks": partial["masks"].clone()}
    poisoned["masks"][1] = True
    # Each on a model as it was built: a step of training moves the statistics of the norms.
    first, second = (losses(small.build(**ON), small, one)["mask_quality"] for one in (partial, poisoned))
    assert torch.equal(first, second)


def test_instances_that_enter_for_their_box_s_extent_alone_are_not_learnt():
    loss = MaskLoss(DeepMACConfig(mask_quality=True, box_consistency_weight=1.0))
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 2)
    has_mask = torch.tensor([False, True])
    instances = MaskInstances(box, box, torch.zeros(2, dtype=torch.int64), has_mask, torch.ones(1, 4, 4))
    found = loss.quality(torch.tensor([9.0, 0.0]), torch.ones(2, 4, 4), instances, 1)
    assert found.item() == pytest.approx(0.6931472)  # of the second alone: IoU 1, predicted 1 / 2


def test_the_iou_that_is_learnt_by_hand():
    """Of a grid of 6 x 6 the inner 4 x 4 are the box: what the mask has outside of them is cut off, the truth not."""
    loss = MaskLoss(DeepMACConfig(mask_quality=True, box_margin=0.25, box_frame="pixel", mask_quality_weight=2.0))
    logits = torch.full((1, 6, 6), -1.0)
    logits[0, :, :4] = 1.0  # in the box 4 rows x 3 columns
    truth = torch.zeros(1, 6, 6)
    truth[0, :2, 1:5] = 0.75  # 2 rows x 4 columns, the first of them above the box
    truth[0, 3] = 0.5  # no more than half
    box = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    instances = MaskInstances(box, box, torch.zeros(1, dtype=torch.int64), torch.tensor([True]), truth)
    iou = 3 / (12 + 8 - 3)
    qualities = torch.logit(torch.tensor([iou])).requires_grad_()
    expected = torch.distributions.Bernoulli(probs=iou).entropy()
    found = loss.quality(qualities, logits, instances, 2)
    torch.testing.assert_close(found, 2 * expected / 2)  # the weight; a second image without instances
    found.backward()
    torch.testing.assert_close(qualities.grad, torch.zeros(1), rtol=0, atol=1e-6)  # least where it is right


def test_the_iou_that_deep_marc_learns_by_hand():
    logits, targets = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]]]), torch.tensor([[[1.0, 0.0], [0.75, 0.5]]])
    found = quality_loss(torch.logit(torch.tensor([1 / 3])), logits, targets)
    torch.testing.assert_close(found, torch.distributions.Bernoulli(probs=1 / 3).entropy())
    assert quality_loss(torch.zeros(0), torch.zeros(0, 2, 2), torch.zeros(0, 2, 2)) == 0


@family
def test_it_learns_which_masks_are_good(small):
    """One image over and over: the scores come near the IoU of the (frozen) masks."""
    torch.manual_seed(0)
    model = small.build(**ALONE, mask_size=16)
    one = target(small, BOXES)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(60):
        optimizer.zero_grad()
        losses(model, small, one)["mask_quality"].backward()
        optimizer.step()
    prediction = prompted(model, small, BOXES)
    overlap = (prediction.masks & one["masks"]).sum((1, 2)) / (prediction.masks | one["masks"]).sum((1, 2))
    torch.testing.assert_close(prediction.mask_scores, overlap, rtol=0, atol=0.1)


@family
def test_learnt_alone_nothing_else_changes(small):
    model = small.build(**ALONE, **({"box_consistency_weight": 1.0} if small is small_deep_mac else {}))
    assert not model.learns_from_boxes
    model.load_state_dict({name: value + 0.01 for name, value in model.state_dict().items()})
    before = copy.deepcopy(model.state_dict())
    torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)  # in place
    groups = model.parameter_groups()
    assert {group["name"] for group in groups if group["params"]} == {"mask_quality"}
    optimizer = torch.optim.AdamW([p for group in groups for p in group["params"]], lr=0.1)
    found = losses(model, small, target(small, BOXES), target(small, []))
    assert list(found) == ["mask_quality"]
    found["mask_quality"].backward()
    optimizer.step()
    changed = {name.split(".")[1] for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"mask_quality"}


@family
def test_it_is_a_parameter_group_of_its_own(small):
    model = small.build(**ON)
    groups = model.parameter_groups()
    assert [group["name"] for group in groups[::2]] == ["backbone", "heads", "mask_quality"]
    own = {id(p) for group in groups if group["name"] == "mask_quality" for p in group["params"]}
    assert own == {id(p) for p in model.network.mask_quality.parameters()}
    decayed = [p for group in groups[4:] if group["weight_decay_factor"] for p in group["params"]]
    assert {p.ndim for p in decayed} == {2, 4}
    assert [group["name"] for group in small.build().parameter_groups()[::2]] == ["backbone", "heads"]


@family
def test_chunks_and_images_do_not_matter(small):
    model = small.build(**ON, mask_chunk_size=1).eval()
    pictures, boxes = [torch.rand(3, 40, 90), torch.rand(3, 70, 50)], [torch.tensor(BOXES), torch.tensor(BOXES[:1])]
    with torch.inference_mode():
        together = model.masks_from_boxes(model.encode(pictures), boxes)
        model.mask_chunk_size = 100
        alone = [model.masks_from_boxes(model.encode([i]), [b])[0] for i, b in zip(pictures, boxes, strict=True)]
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.mask_scores, other.mask_scores, rtol=1e-4, atol=1e-5)


@family
def test_scores_are_float32_with_a_predictor_of_bfloat16(small):
    model = small.build(**ON)
    boxes = torch.tensor(BOXES * 8) * torch.linspace(0.5, 1, 16)[:, None]
    image = torch.rand(3, small.SIZE, small.SIZE)
    plain, reduced = (Predictor(model.eval(), device="cpu", precision=p) for p in ("float32", "bfloat16"))
    expected, found = (each.predict(image, boxes).mask_scores for each in (plain, reduced))
    assert found.dtype == torch.float32
    assert (found.bfloat16().float() != found).float().mean() > 0.8
    torch.testing.assert_close(found, expected, rtol=0, atol=0.05)


class Prompt(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, maps, boxes, image_index):
        return self.network.masks_and_qualities(maps, boxes, image_index)


@family
def test_masks_and_qualities_export_with_any_number_of_boxes(small):
    network = small.build(**ON).eval().network
    maps = network.maps(torch.rand(2, 3, small.SIZE, small.SIZE))
    count = torch.export.Dim("count", min=0, max=1024)
    example = (maps, torch.tensor(BOXES), torch.zeros(2, dtype=torch.int64))
    shapes = ((None,) * len(maps), {0: count}, {0: count})
    exported = torch.export.export(Prompt(network), example, dynamic_shapes=shapes, strict=False).module()
    for n in (0, 1, 2, 7):
        index = torch.arange(n) % 2
        prompt = (maps, torch.tensor(BOXES)[index], index)
        torch.testing.assert_close(exported(*prompt), network.masks_and_qualities(*prompt))
        torch.testing.assert_close(network.masks_and_qualities(*prompt)[0], network.mask_logits(*prompt))


def test_with_a_mask_per_class_the_quality_is_that_of_the_mask_that_is_given():
    model = small_deep_marc.build(**ON, class_agnostic_masks=False).eval()
    boxes, (image,) = torch.tensor(BOXES), small_deep_marc.images(1)
    with torch.inference_mode():
        features = model.encode([image])
        maps, index = tuple(features.maps.values()), torch.zeros(2, dtype=torch.int64)
        likeliest = model.network.likeliest_class(maps, boxes, index)
        found = [
            model.masks_from_boxes(features, [boxes], [labels])[0].mask_scores
            for labels in (torch.full((2,), -1), likeliest, (likeliest + 1) % 3)
        ]
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[1], found[2])


@family
def test_a_network_without_it_says_so(small):
    network = small.build().eval().network
    maps = network.maps(torch.rand(1, 3, small.SIZE, small.SIZE))
    with pytest.raises(ValueError, match="build it with mask_quality true"):
        network.masks_and_qualities(maps, torch.tensor(BOXES), torch.zeros(2, dtype=torch.int64))


@family
def test_saved_and_loaded_it_predicts_the_same_and_older_weights_have_none(small, tmp_path):
    model = small.build(**ON)
    save_pretrained(model, tmp_path / "weights")
    loaded = from_pretrained(tmp_path / "weights")
    assert torch.equal(prompted(loaded, small, BOXES).mask_scores, prompted(model, small, BOXES).mask_scores)
    assert not from_pretrained("deep-mac-tiny").config.mask_quality  # its file was written before there was the value


@family
def test_weights_without_it_are_first_weights_of_a_model_with_it(small, tmp_path, capsys):
    source, model = small.build(), small.build(**ALONE)
    with torch.no_grad():
        for value in source.state_dict().values():
            value.copy_(value + 1)
    save_pretrained(source, tmp_path / "weights")
    start_from(model, str(tmp_path / "weights"))
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in source.state_dict().items())
    told = capsys.readouterr().err
    count = len(state) - len(source.state_dict())
    assert f"network.mask_quality ({count} tensors), it starts anew: those weights have none" in told
    assert "differs" not in told


@family
def test_to_learn_it_alone_it_must_be_there(small):
    with pytest.raises(ValueError, match="mask_quality_alone needs mask_quality"):
        small.build(mask_quality_alone=True)


def test_full_resolution_masks_have_none():
    with pytest.raises(ValueError, match="but got another mask_quality"):
        small_deep_mac.build(**ON, predict_full_resolution_masks=True)
