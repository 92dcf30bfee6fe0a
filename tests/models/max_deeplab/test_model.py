"""The model as it is called: losses in training, maps in eval, groups, weights folders, any label space."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_max_deeplab import CATEGORIES, SIZE, WITHOUT_GRADIENT, scene, small_model, target

from maskwright.models.hub import family_class, from_pretrained, save_pretrained
from maskwright.models.max_deeplab import MaXDeepLab
from maskwright.structures import PanopticPrediction, SegmentationModel

TERMS = {"mask_class", "mask_dice", "mask_id", "instance_discrimination", "semantic"}


def image(seed=0, height=SIZE, width=SIZE):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def total(losses):
    return torch.stack(list(losses.values())).sum()


def nothing_found():
    """Mask and class logits of one slot, which is void."""
    return torch.zeros(1, 1, 5, 5), torch.tensor([[-50.0] * len(CATEGORIES) + [50.0]])[None]


def detecting_model(**changes):
    """Its slots are surer of classes than of void, and of their pixels."""
    model = small_model(class_threshold=0.3, pixel_threshold=0.1, thing_area_limit=0, stuff_area_limit=0, **changes)
    model.network.class_head.void_constant[-1] = -20.0
    model.network.mask_head.norm.weight.data.fill_(20.0)
    return model.eval()


def test_it_is_a_model_of_the_panoptic_task():
    model = small_model()
    assert isinstance(model, SegmentationModel)
    assert family_class("max_deeplab") is MaXDeepLab
    assert (model.task, model.needs_boxes, model.mask_classes) == ("panoptic", False, [])


class TestTraining:
    def test_every_parameter_learns(self):
        """Norms of scale 0 at the start hide what lies before them."""
        model = small_model(drop_path_keep=1.0).train()
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                torch.nn.init.constant_(module.weight, 1.0)
        losses = model([image(0), image(1)], [scene(), scene()])
        assert set(losses) == TERMS
        assert all(loss.isfinite() and loss.ndim == 0 for loss in losses.values())
        total(losses).backward()
        idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not idle
        still = [name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()]
        assert not [name for name in still if not name.endswith(WITHOUT_GRADIENT)]

    @pytest.mark.parametrize(
        "only",
        [target(torch.full((SIZE, SIZE), -1), []), target(torch.zeros(SIZE, SIZE), [1])],
        ids=["no segment", "one covers everything"],
    )
    def test_odd_images_break_nothing(self, only):
        model = small_model().train()
        losses = model([image(0), image(1)], [only, only])
        total(losses).backward()
        assert all(loss.isfinite() for loss in losses.values())
        assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())

    @pytest.mark.parametrize("isthing", [[True], [False], [True, True], [False, False]])
    def test_things_alone_and_stuff_alone_and_one_class(self, isthing):
        categories = [{"id": i + 1, "name": str(i), "isthing": thing} for i, thing in enumerate(isthing)]
        model = small_model(categories=categories).train()
        segmentation = (torch.arange(SIZE) < 30).expand(SIZE, SIZE).int()
        losses = model([image(0), image(1)], [target(segmentation, [0, len(isthing) - 1])] * 2)
        assert all(loss.isfinite() for loss in losses.values())
        assert len(model.eval()([image()])) == 1

    def test_small_instances_weigh_in_the_semantic_loss_alone(self):
        losses = [
            small_model(drop_path_keep=1.0, small_instance_weight=weight).train()([image(0), image(1)], [scene()] * 2)
            for weight in (1.0, 3.0)
        ]
        assert {name for name in TERMS if losses[0][name] != losses[1][name]} == {"semantic"}

    def test_a_few_steps_lower_the_objective(self):
        model = small_model(drop_path_keep=1.0).train()
        optimizer = torch.optim.Adam(model.parameters(), 2e-3)
        objectives = []
        for _ in range(6):
            objective = total(model([image(0), image(1)], [scene(), scene()]))
            optimizer.zero_grad()
            objective.backward()
            optimizer.step()
            objectives.append(objective.item())
        assert objectives[-1] < 0.9 * objectives[0]

    @pytest.mark.parametrize(
        ("images", "targets", "message"),
        [
            ([image()], None, "needs targets"),
            ([image(), image(0, SIZE, 49)], [scene(), target(torch.zeros(SIZE, 49), [0])], "must have one size"),
            ([image()], [target(torch.zeros(SIZE, SIZE), [9])], "labels must lie in 0..2"),
            ([image(0, 64, 64)], [target(torch.zeros(64, 64), [0])], "16 k \\+ 1"),
        ],
    )
    def test_what_does_not_fit_is_named(self, images, targets, message):
        with pytest.raises(ValueError, match=message):
            small_model().train()(images, targets)


class TestPrediction:
    def test_maps_lie_in_the_frames_of_the_images(self):
        model = detecting_model()
        with torch.inference_mode():
            predictions = model([image(0, 50, 90), (image(1, 120, 80) * 255).to(torch.uint8)])
        assert [p.segmentation.shape for p in predictions] == [(50, 90), (120, 80)]
        for prediction in predictions:
            assert isinstance(prediction, PanopticPrediction)
            assert len(prediction) > 0
            ids = {info["id"] for info in prediction.segments_info}
            assert ids == set(prediction.segmentation.unique().tolist()) - {0}
            assert sum(info["area"] for info in prediction.segments_info) == (prediction.segmentation > 0).sum()

    def test_a_batch_is_its_images_one_by_one(self):
        model, images = detecting_model(), [image(0, 50, 90), image(1, 120, 80)]
        with torch.inference_mode():
            together = model(images)
            for prediction, alone in zip(together, (model([one])[0] for one in images), strict=True):
                assert (prediction.segmentation == alone.segmentation).float().mean() > 0.99

    def test_a_score_threshold_of_a_call_leaves_out_segments(self):
        model = detecting_model()
        with torch.inference_mode():
            scores = [info["score"] for info in model([image()])[0].segments_info]
            (fewer,) = model([image()], score_threshold=max(scores))
        assert [info["score"] for info in fewer.segments_info] == [max(scores)]

    def test_what_the_network_sees_of_a_small_image(self, monkeypatch):
        """By hand, as the original's evaluation: 2 x 3 pixels, scaled by 8.5 to 17 x 25.5, down to 17 x 25, by 0.68 to
        11.56 x 17, down to 11 x 17; corners on corners; padded below with 127.5; then x / 127.5 - 1.
        """
        model, seen = small_model(image_size=17).eval(), []
        monkeypatch.setattr(model.network, "masks", lambda batch: seen.append(batch) or nothing_found())
        red, green, blue = [[0, 255, 51], [255, 0, 153]], [[255] * 3, [255] * 3], [[0, 0, 0], [204, 204, 204]]
        small = torch.tensor([red, green, blue], dtype=torch.uint8)
        for given in (small, small / 255):
            model([given])
            (batch,) = seen.pop()
            assert batch.shape == (3, 17, 17)
            assert (batch[:, 11:] == 0).all()
            torch.testing.assert_close(batch[1, :11], torch.ones(11, 17))
            # From row 0 to row 10, and from column 0 over column 8 to column 16, in equal steps.
            expected = {(0, 0): 0, (0, 8): 255, (0, 16): 51, (10, 0): 255, (10, 8): 0, (10, 16): 153}
            expected |= {(0, 2): 63.75, (0, 12): 153, (5, 0): 127.5, (5, 16): 102, (5, 2): 127.5, (1, 16): 61.2}
            for (row, column), value in expected.items():
                assert batch[0, row, column].item() == pytest.approx(value / 127.5 - 1, abs=1e-5), (row, column)
            assert batch[2, :11, 7].tolist() == pytest.approx([20.4 * row / 127.5 - 1 for row in range(11)], abs=1e-5)

    def test_sides_are_rounded_down_twice(self, monkeypatch):
        """4 x 7 pixels: 17 x 29.75, down to 29, by 17 / 29 to 9.97 x 17, to 9 (17 / 7 of 4 would be 9.71, so 10)."""
        model, seen = small_model(image_size=17).eval(), []
        monkeypatch.setattr(model.network, "masks", lambda batch: seen.append(batch) or nothing_found())
        model([torch.full((3, 4, 7), 255, dtype=torch.uint8)])
        torch.testing.assert_close(seen[0][0, 0].mean(dim=1), torch.tensor([1.0] * 9 + [0.0] * 8))

    def test_the_map_comes_back_without_the_padding(self, monkeypatch):
        """The image of 2 x 3 again: its pixels lie on rows 0 and 10, columns 0, 8 and 16 of the network's input."""
        model = small_model(image_size=17, thing_area_limit=0, stuff_area_limit=0).eval()
        winners = torch.tensor([[0, 0, 1, 1, 2]] * 2 + [[2, 2, 0, 0, 1]] * 2 + [[3] * 5])  # the last row is padding
        masks = 50.0 * (winners == torch.arange(4)[:, None, None])
        classes = torch.full((4, len(CATEGORIES) + 1), -50.0)
        classes[:, 1] = 50.0  # things
        monkeypatch.setattr(model.network, "masks", lambda _: (masks[None], classes[None]))
        (prediction,) = model([torch.zeros(3, 2, 3, dtype=torch.uint8)])
        ids = [info["id"] for info in prediction.segments_info]
        assert prediction.segmentation.tolist() == [[ids[0], ids[1], ids[2]], [ids[2], ids[0], ids[1]]]
        assert [info["area"] for info in prediction.segments_info] == [2, 2, 2]
        assert prediction.image_size == (2, 3)


def test_groups_hold_every_parameter_once_and_the_pretrained_ones_apart():
    model = small_model()
    groups = model.parameter_groups()
    members = [id(p) for group in groups for p in group["params"]]
    assert len(members) == len(set(members)) == len(list(model.parameters()))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    backbone = {names[id(p)] for group in groups if group["name"] == "backbone" for p in group["params"]}
    assert {name.split(".")[2] for name in backbone} == {"stem", "stages"}
    assert not [name for name in backbone if "transformers" in name]
    assert all(p.ndim > 1 for group in groups if group["weight_decay_factor"] for p in group["params"])


def test_the_published_sizes_have_as_many_pretrained_parameters_as_the_original_s_second_optimizer():
    """41.3 million of S: the variables without `transformer`, `extra` or `memory_feature` in their names."""
    with torch.device("meta"):
        model = MaXDeepLab(categories=CATEGORIES)
    count = sum(p.numel() for g in model.parameter_groups() if g["name"] == "backbone" for p in g["params"])
    assert count == 41_343_424


@pytest.mark.parametrize("backbone", ["max_deeplab_s", "max_deeplab_l"])
def test_one_width_scales_all_layers(backbone):
    """A kernel has a 64th of its values at an eighth of the width, but at the image and at the classes."""
    with torch.device("meta"):
        whole, eighth = (
            dict(MaXDeepLab(categories=CATEGORIES, backbone=backbone, width=width).named_parameters())
            for width in (1.0, 0.125)
        )
    for name, kernel in whole.items():
        if kernel.ndim in (2, 4) and min(kernel.shape[:2]) > len(CATEGORIES) + 1 and "positions" not in name:
            assert kernel.numel() == 64 * eighth[name].numel(), name


def test_class_layers_have_a_row_for_every_class_and_void():
    model = small_model()
    state = model.state_dict()
    layers = model.class_layers()
    assert {name: len(rows) for name, rows in layers.items()} == {name: len(state[name]) for name in layers}
    assert [rows.tolist() for rows in layers.values()] == [[0, 1, 2, -1]] * 2 + [[-1, 0, 1, 2]] * 2


def test_a_weights_folder_gives_the_same_model(tmp_path):
    model = detecting_model()
    save_pretrained(model, tmp_path / "weights")
    again = from_pretrained(tmp_path / "weights")
    assert isinstance(again, MaXDeepLab)
    assert again.config == replace(model.config, mask_classes=[])
    with torch.inference_mode():
        batch, _ = model.image_batch([image()])
        torch.testing.assert_close(again.network(batch).mask_logits, model.network(batch).mask_logits)


def test_a_model_without_categories_is_refused():
    with pytest.raises(ValueError, match="needs categories"):
        MaXDeepLab()
