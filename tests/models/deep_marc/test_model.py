"""Deep-MARC: its contracts, prompting, detections, export, parameter groups and class layers."""

import pytest
import torch
from small_deep_marc import BOXES, CATEGORIES, SIZE, build, images, target

from maskwright.models.hub import from_pretrained, save_pretrained
from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.predictor import Predictor
from maskwright.structures import BoxPrompted, SegmentationModel


def test_it_is_what_training_and_prediction_expect():
    model = build()
    assert isinstance(model, SegmentationModel)
    assert isinstance(model, BoxPrompted)
    assert (model.task, model.needs_boxes) == ("instance", False)


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


def test_a_given_box_gets_the_mask_of_the_class_that_the_box_head_finds():
    model = build(class_agnostic_masks=False).eval()
    predictor = model.network.roi_heads.box_predictor
    with torch.inference_mode():
        maps = model.network.maps(torch.rand(1, 3, SIZE, SIZE))
        prompt = (maps, torch.tensor(BOXES), torch.zeros(2, dtype=torch.int64))
        for label in range(3):
            predictor.cls_score.bias[:] = -100.0
            predictor.cls_score.bias[0] = 200.0  # whatever it is, it is not the background
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
    proposals, stages = [], []
    model.network.proposals.register_forward_hook(lambda _module, _inputs, output: proposals.extend(output[0]))
    for stage in (model.network.proposals.head, model.network.roi_heads.box_predictor):
        stage.register_forward_hook(lambda _module, _inputs, output: stages.extend(output))
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        (prediction,) = model(images(1))
        maps = model.network.maps(torch.rand(1, 3, SIZE, SIZE))
    (logits, deltas), second = stages[:2], stages[2:]
    assert {value.dtype for value in (*maps, *logits, *deltas, *second)} == {torch.float32}
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


def test_norms_take_the_values_of_the_part_they_are_in():
    values = {"norm_momentum": 0.25, "mask_norm_momentum": 0.5, "norm_epsilon": 0.125, "trunk_norm_epsilon": 0.0625}
    model = build(**values, box_head="4conv1fc")
    norms = {name: m for name, m in model.network.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    found = {
        part: {(m.momentum, m.eps) for name, m in norms.items() if name.startswith(part)}
        for part in ("backbone.trunk", "backbone.pyramid", "roi_heads", "mask_head")
    }
    assert found == {
        "backbone.trunk": {(0.25, 0.0625)},
        "backbone.pyramid": {(0.25, 0.125)},
        "roi_heads": {(0.25, 0.125)},
        "mask_head": {(0.5, 0.125)},
    }
    assert {name.split(".")[0] for name in norms} == {"backbone", "roi_heads", "mask_head"}


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.9])
def test_a_spinenet_drops_paths_in_training_if_asked(drop_path_rate):
    model = build(backbone="spinenet49", drop_path_rate=drop_path_rate).train()
    batch = torch.rand(2, 3, SIZE, SIZE)
    with torch.no_grad():
        for module in model.network.backbone.modules():  # a residual's last norm may start at 0
            if isinstance(module, torch.nn.BatchNorm2d):
                module.weight.fill_(1)
        first, second = (model.network.maps(batch)[0] for _ in range(2))
    assert torch.equal(first, second) == (drop_path_rate == 0)


def test_padding_of_the_backbone_and_width_of_the_mask_head_are_handed_on():
    symmetric, same = build(), build(padding="same")
    same.load_state_dict(symmetric.state_dict())
    batch = torch.rand(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        maps = [model.eval().network.maps(batch)[0] for model in (symmetric, same)]
    assert not torch.allclose(*maps)
    assert build(mask_head_width=128).network.mask_head.project_out.in_channels == 8  # of 128 at a width of 1 / 16


def test_frozen_levels_keep_weights_and_statistics():
    model = build(frozen_levels=2).train()
    before = {k: v.clone() for k, v in model.network.backbone.trunk.state_dict().items()}
    optimizer = torch.optim.SGD([p for g in model.parameter_groups() for p in g["params"]], lr=0.1)
    grouped = {id(p) for g in model.parameter_groups() for p in g["params"]}
    assert grouped == {id(p) for p in model.parameters() if p.requires_grad}
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
