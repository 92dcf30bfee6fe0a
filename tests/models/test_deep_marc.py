"""Deep-MARC: its losses, partial supervision, on which boxes masks are learnt, prompting, detections, export."""

import pytest
import torch
from small_deep_mac import make_target
from small_deep_marc import BOXES, CATEGORIES, SIZE, build, images

from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.predictor import Predictor
from maskwright.structures import BoxPrompted, SegmentationModel

LOSSES = {"proposal_class", "proposal_regression", "box_class", "box_regression", "mask_cross_entropy"}


def target(boxes, **values):
    return make_target(boxes, size=SIZE, **values)


def seeded_losses(model, *arguments):
    torch.manual_seed(0)  # of the samples
    return {name: loss.detach() for name, loss in model(*arguments).items()}


def entering(model):
    """The numbers of rows that enter the mask head from now on."""
    rows = []
    model.network.mask_head.register_forward_hook(lambda _module, inputs, _output: rows.append(len(inputs[0])))
    return rows


def test_it_is_what_training_and_prediction_expect():
    model = build()
    assert isinstance(model, SegmentationModel)
    assert isinstance(model, BoxPrompted)
    assert (model.task, model.needs_boxes) == ("instance", False)


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


@pytest.mark.parametrize("mask_head", sorted(MASK_HEADS))
def test_every_head_trains_and_predicts_with_few_boxes(mask_head):
    values = {"class_agnostic_masks": mask_head != "fcn", "mask_size": 32, "mask_head_width": 32}
    model = build(mask_head=mask_head, **values)
    for count in (0, 1, 2):
        maps = model.train().network.maps(torch.rand(1, 3, SIZE, SIZE))
        boxes = torch.tensor(BOXES[:count]).reshape(-1, 4)
        index = torch.zeros(count, dtype=torch.int64)
        logits = model.network.mask_logits(maps, boxes, index)
        assert logits.shape == (count, 64, 64)
        logits.sum().backward()
        with torch.inference_mode():
            assert model.eval().network.mask_logits(maps, boxes, index).shape == (count, 64, 64)
    assert [name for name, p in model.network.mask_head.named_parameters() if p.grad is None] == []


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


@pytest.mark.parametrize("mask_boxes", ["ground_truth", "proposals"])
def test_max_masks_per_image_bounds_the_head(mask_boxes):
    model = build(max_masks_per_image=1, mask_boxes=mask_boxes).train()
    rows = entering(model)
    model(images(2), [target(BOXES), target(BOXES)])
    assert rows == [2]


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


def test_a_given_box_gets_the_mask_of_the_class_that_the_box_head_finds():
    model = build(class_agnostic_masks=False).eval()
    predictor = model.network.roi_heads.box_predictor
    with torch.inference_mode():
        maps = model.network.maps(torch.rand(1, 3, SIZE, SIZE))
        prompt = (maps, torch.tensor(BOXES), torch.zeros(2, dtype=torch.int64))
        for label in range(3):
            predictor.cls_score.bias[:] = -100.0
            predictor.cls_score.bias[label + 1] = 100.0
            expected = model.network.mask_logits(*prompt, torch.tensor([label, label]))
            assert torch.equal(model.network.mask_logits(*prompt), expected)
            other = model.network.mask_logits(*prompt, torch.tensor([(label + 1) % 3] * 2))
            assert not torch.equal(other, expected)


def test_batched_prompting_equals_one_by_one_and_chunks_do_not_matter():
    model = build(mask_chunk_size=1).eval()
    first, second = torch.rand(3, 40, 90), torch.rand(3, 70, 50)
    boxes = [torch.tensor([[3.0, 4.0, 80.0, 39.0], [20.0, 1.0, 30.0, 20.0]]), torch.tensor([[1.0, 2.0, 30.0, 60.0]])]
    with torch.inference_mode():
        together = model.masks_from_boxes(model.encode([first, second]), boxes)
        model.mask_chunk_size = 100
        alone = [model.masks_from_boxes(model.encode([i]), [b])[0] for i, b in zip([first, second], boxes, strict=True)]
        empty = model.masks_from_boxes(model.encode([first]), [torch.zeros(0, 4)])[0]
        assert model.masks_from_boxes(model.encode([]), []) == model([]) == []
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one.mask_probabilities, other.mask_probabilities, rtol=1e-4, atol=1e-5)
    assert [p.image_size for p in together] == [(40, 90), (70, 50)]
    assert (len(empty), empty.masks.shape) == (0, (0, 40, 90))


def test_detections_are_inside_the_image_sorted_and_masked_as_prompted():
    model = build(min_box_score=0.0).eval()
    pictures = [torch.rand(3, 40, 90), torch.rand(3, 70, 50)]
    with torch.inference_mode():
        found = model(pictures, max_detections=5)
        features = model.encode(pictures)
        prompted = model.masks_from_boxes(features, [prediction.boxes for prediction in found])
        fewer = model(pictures, score_threshold=float(found[0].scores[2]))[0]
    for picture, prediction, given in zip(pictures, found, prompted, strict=True):
        height, width = picture.shape[1:]
        assert len(prediction) == 5
        assert (prediction.boxes >= 0).all()
        assert (prediction.boxes <= torch.tensor([width, height, width, height])).all()
        assert prediction.scores.tolist() == sorted(prediction.scores.tolist(), reverse=True)
        assert set(prediction.labels.tolist()) <= {0, 1, 2}
        torch.testing.assert_close(prediction.mask_probabilities, given.mask_probabilities, rtol=1e-4, atol=1e-5)
    assert fewer.scores.tolist() == found[0].scores[:3].tolist()


def test_min_box_score_holds_back_what_no_call_asks_for():
    with torch.inference_mode():
        assert build(min_box_score=0.999).eval()(images(1))[0].boxes.shape == (0, 4)


def test_under_autocast_boxes_keep_their_precision():
    """torchvision would compute them in bfloat16: a coordinate between 64 and 128 would be half a pixel off."""
    model = build(min_box_score=0.0).eval()
    proposals = []
    model.network.proposals.register_forward_hook(lambda _module, _inputs, output: proposals.extend(output[0]))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        (prediction,) = model(images(1))
    assert prediction.boxes.dtype == prediction.scores.dtype == prediction.mask_probabilities.dtype == torch.float32
    for boxes in (proposals[0], prediction.boxes):
        assert boxes.dtype == torch.float32
        assert (boxes.bfloat16().float() != boxes).float().mean() > 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model.train()(images(1), [target(BOXES)])
    assert {loss.dtype for loss in losses.values()} == {torch.float32}


class Encode(torch.nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, batch):
        return self.network.maps(batch)


class Prompt(Encode):
    def forward(self, maps, boxes, image_index):
        return self.network.mask_logits(maps, boxes, image_index)


def test_maps_export():
    network, batch = build().eval().network, torch.rand(2, 3, SIZE, SIZE)
    exported = torch.export.export(Encode(network), (batch,), strict=False).module()
    torch.testing.assert_close(exported(batch), network.maps(batch))


@pytest.mark.parametrize("class_agnostic_masks", [True, False])
def test_mask_logits_export_with_any_number_of_boxes(class_agnostic_masks):
    network = build(class_agnostic_masks=class_agnostic_masks).eval().network
    maps = network.maps(torch.rand(2, 3, SIZE, SIZE))
    count = torch.export.Dim("count", min=0, max=1024)
    example = (maps, torch.tensor(BOXES), torch.zeros(2, dtype=torch.int64))
    shapes = ((None,) * len(maps), {0: count}, {0: count})
    exported = torch.export.export(Prompt(network), example, dynamic_shapes=shapes, strict=False).module()
    for n in (0, 1, 2, 7):
        index = torch.arange(n) % 2
        boxes = torch.tensor(BOXES)[index]
        torch.testing.assert_close(exported(maps, boxes, index), network.mask_logits(maps, boxes, index))


def test_saved_and_loaded_it_predicts_the_same(tmp_path):
    model = build(mask_classes=["cat"], min_box_score=0.0).eval()
    save_pretrained(model, tmp_path / "weights")
    loaded = from_pretrained(tmp_path / "weights")
    assert (loaded.categories, loaded.mask_classes) == (CATEGORIES, ["cat"])
    with torch.inference_mode():
        assert torch.equal(loaded(images(1))[0].mask_probabilities, model(images(1))[0].mask_probabilities)


def test_parameter_groups_decay_neither_norms_nor_hourglasses():
    model = build(mask_head="hourglass10", mask_size=16)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    grouped = [names[id(p)] for group in model.parameter_groups() for p in group["params"]]
    assert sorted(grouped) == sorted(names.values())
    decayed = {names[id(p)] for g in model.parameter_groups() if g["weight_decay_factor"] for p in g["params"]}
    assert {"network.mask_head.enlarge.weight", "network.mask_head.project_out.weight"} <= decayed
    assert not [name for name in decayed if name.endswith("bias") or ".mask_head.trunk." in name]
    trunk = {names[id(p)] for g in model.parameter_groups() if g["name"] == "backbone" for p in g["params"]}
    assert {name.split(".")[2] for name in trunk} == {"trunk"}


def test_frozen_levels_keep_weights_and_statistics():
    model = build(frozen_levels=2).train()
    before = {k: v.clone() for k, v in model.network.backbone.trunk.state_dict().items()}
    optimizer = torch.optim.SGD([p for g in model.parameter_groups() for p in g["params"]], lr=0.1)
    sum(model(images(1), [target(BOXES)]).values()).backward()
    optimizer.step()
    after = model.network.backbone.trunk.state_dict()
    changed = {k.split(".")[0] for k, v in after.items() if not torch.equal(v, before[k])}
    assert changed == {"layer3", "layer4"}


@pytest.mark.parametrize("class_agnostic_masks", [True, False])
def test_class_layers_name_every_tensor_whose_size_depends_on_the_classes(class_agnostic_masks):
    model = build(class_agnostic_masks=class_agnostic_masks)
    fewer = build(class_agnostic_masks=class_agnostic_masks, categories=CATEGORIES[:2]).state_dict()
    state = model.state_dict()
    layers = model.class_layers()
    assert set(layers) == {name for name, value in state.items() if value.shape != fewer[name].shape}
    for name, labels in layers.items():
        assert len(labels) == len(state[name])
        assert len(fewer[name]) == (labels < 2).sum()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"categories": None}, "needs categories"),
        ({"image_size": 100}, "image_size must be a multiple of 64 for backbone 'resnet18_fpn'"),
        ({"mask_head": "hourglass52", "mask_size": 16}, "mask_size must be a multiple of 32"),
        ({"num_proposals": 0}, "num_proposals must be at least 1"),
        ({"frozen_levels": 5}, "frozen_levels of a backbone must lie in 0..4"),
        ({"backbone": "spinenet49", "frozen_levels": 1}, "no levels to freeze"),
    ],
)
def test_values_without_a_meaning_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        build(**values)


def test_images_of_two_sizes_are_refused_in_training():
    targets = [target([]), {**target([]), "masks": torch.zeros(0, 64, 128, dtype=torch.bool)}]
    with pytest.raises(ValueError, match=r"image 0 is \[3, 128, 128\] and 1 \[3, 64, 128\]"):
        build().train()([torch.rand(3, 128, 128), torch.rand(3, 64, 128)], targets)


@pytest.mark.parametrize("box_head", ["4conv1fc", "2fc"])
def test_a_predictor_finds_what_the_model_finds(box_head):
    """It folds batch norms into convolutions, and may store weights in bfloat16."""
    model = build(min_box_score=0.0, box_head=box_head, norm_momentum=1.0).train()
    with torch.no_grad():  # norms that are not the identity
        model.network.maps(torch.rand(2, 3, SIZE, SIZE))
    image = (255 * images(1)[0]).byte()
    with torch.inference_mode():
        (expected,) = model.eval()([image])
    for precision, tolerance in (("float32", 1e-3), ("bfloat16", 0.1)):
        predictor = Predictor(model, "cpu", precision)
        found, given = predictor.predict(image, score_threshold=0.0), predictor.predict(image, expected.boxes)
        torch.testing.assert_close(given.mask_probabilities, expected.mask_probabilities, rtol=0, atol=tolerance)
        torch.testing.assert_close(found.scores[:10], expected.scores[:10], rtol=0, atol=tolerance)
