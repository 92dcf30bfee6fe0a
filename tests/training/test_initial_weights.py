"""Starting from other weights: what fits is copied, classes go by their names, what does not fit is named."""

import json
from dataclasses import fields

import pytest
import torch
from torch import nn

from maskwright.errors import UserError
from maskwright.models.config import FamilyConfig
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.family import Family
from maskwright.models.hub import family_class, save_pretrained
from maskwright.structures import Category
from maskwright.training.initial_weights import _TOLD_OTHERWISE, start_from
from maskwright.training.run import main

VALUES = {
    "image_size": 64, "backbone": "resnet18_fpn", "mask_head": "resnet4", "mask_head_width": 8, "mask_size": 16,
    "embedding_width": 64, "box_jitter_ratio": 0.1, "width": 0.0625,
}  # fmt: skip


def build(*names, seed=0, **values):
    torch.manual_seed(seed)
    categories = [Category(id=index + 1, name=name) for index, name in enumerate(names)]
    return DeepMAC(categories=categories, **{**VALUES, "detector": "centernet", **values})


def test_the_same_classes_are_copied_whole(tmp_path, capsys):
    source, model = build("dog", "cat"), build("dog", "cat", seed=1)
    save_pretrained(source, tmp_path / "weights")
    start_from(model, str(tmp_path / "weights"))
    expected = source.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert capsys.readouterr().err == f"first weights: {len(expected)} tensors of {tmp_path / 'weights'}\n"


def test_rows_of_classes_go_by_their_names(tmp_path, capsys):
    source, model = build("dog", "aeroplane", "cat"), build("airplane", "kite", "dog", seed=1)
    fresh = model.state_dict()["network.detector.0.center.2.weight"].clone()
    save_pretrained(source, tmp_path / "weights")
    start_from(model, str(tmp_path / "weights"))
    state, expected = model.state_dict(), source.state_dict()
    for kind in ("weight", "bias"):
        name = f"network.detector.0.center.2.{kind}"
        assert torch.equal(state.pop(name)[[0, 2]], expected[name][[1, 0]])
    assert torch.equal(model.network.state_dict()["detector.0.center.2.weight"][1], fresh[1])
    assert all(torch.equal(value, expected[name]) for name, value in state.items())
    words = capsys.readouterr().err
    assert "the classes differ: of network.detector.0.center.2.weight, network.detector.0.center.2.bias" in words
    assert "the rows of 2 are copied, those of 1 start anew (kite)" in words


class Layered(Family):
    """A layer with a row of background before two of each class."""

    family = "layered"

    def __init__(self, *names):
        categories = [Category(id=index, name=name) for index, name in enumerate(names)]
        super().__init__(FamilyConfig(image_size=8, categories=categories))
        self.layer = nn.Linear(1, 1 + 2 * len(names))
        nn.init.constant_(self.layer.bias, -1)

    def class_layers(self):
        labels = torch.tensor([-1, *(label for label in range(len(self.categories)) for _ in "ab")])
        return {"layer.weight": labels, "layer.bias": labels}

    def training_losses(self, images, targets):
        return {}

    def predict(self, images, score_threshold, max_detections):
        return []

    def backbone_parameters(self):
        return []


def test_rows_of_no_class_and_several_rows_of_one(monkeypatch):
    source, model = Layered("dog", "cat", "cow"), Layered("cat", "kite")
    with torch.no_grad():
        source.layer.bias.copy_(torch.arange(7.0))
    monkeypatch.setattr("maskwright.training.initial_weights.from_pretrained", lambda _: source)
    start_from(model, "source")
    assert model.layer.bias.tolist() == [0, 3, 4, -1, -1]


def test_a_part_that_only_one_has_is_told(tmp_path, capsys):
    without, having = build(detector=None, seed=1), build("dog")
    save_pretrained(having, tmp_path / "having")
    start_from(without, str(tmp_path / "having"))
    words = capsys.readouterr().err
    assert "network.detector (12 tensors), it is left out" in words
    assert "differs" not in words

    fresh = build("dog", seed=2)
    detector = {name: value.clone() for name, value in fresh.network.detector.state_dict().items()}
    save_pretrained(without, tmp_path / "without")
    start_from(fresh, str(tmp_path / "without"))
    assert "network.detector (12 tensors), it starts anew" in capsys.readouterr().err
    assert all(torch.equal(value, detector[name]) for name, value in fresh.network.detector.state_dict().items())
    assert all(
        torch.equal(a, b)
        for a, b in zip(fresh.network.mask_head.parameters(), having.network.mask_head.parameters(), strict=True)
    )


def test_values_that_change_the_meaning_of_the_weights_are_told(tmp_path, capsys):
    save_pretrained(build("dog", box_frame="pixel", box_margin=0.1, image_mean=[0.5, 0.5, 0.5]), tmp_path / "weights")
    training = {"box_jitter_ratio": 0.2, "cross_entropy_weight": 1.0, "norm_momentum": 0.5, "image_size": 128}
    model = build("dog", channel_order="bgr", image_mean=(0.0, 0.0, 0.0), image_std=(0.229, 0.224, 0.225), **training)
    start_from(model, str(tmp_path / "weights"))
    assert capsys.readouterr().err.splitlines()[1:] == [
        "first weights: differs: box_frame pixel -> corner, box_margin 0.1 -> 0.0, "
        "image_mean [0.5, 0.5, 0.5] -> [0.0, 0.0, 0.0], channel_order rgb -> bgr"
    ]


def test_every_value_told_otherwise_is_one_of_a_family():
    """A name that no config has (any more) would hide nothing and mislead who reads the list."""
    families = [family_class(name) for name in ("deep_mac", "deep_marc", "max_deeplab")]
    assert {field.name for family in families for field in fields(family.config_class)} >= _TOLD_OTHERWISE


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mask_head_width": 64}, r"'network.mask_head.* has shape \[.*\] there and \[.*\] in this model"),
        ({"mask_head": "resnet8"}, r"'network.mask_head.*' are not in these weights"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, values, words):
    save_pretrained(build("dog"), tmp_path / "weights")
    model = build("dog", **values)
    with pytest.raises(UserError, match=words):
        start_from(model, str(tmp_path / "weights"))


def test_another_family_is_refused(monkeypatch):
    monkeypatch.setattr("maskwright.training.initial_weights.from_pretrained", lambda _: Layered("dog"))
    with pytest.raises(UserError, match="of family 'layered', but the recipe is of 'deep_mac'"):
        start_from(build("dog"), "other")


def test_a_run_starts_from_them_and_a_resumed_one_does_not_ask_for_them(arguments, tmp_path, capsys):
    """With a learning rate of next to nothing the weights after two steps are those of the beginning."""
    weights = tmp_path / "weights"
    save_pretrained(build("dog", "person", seed=5), weights)
    options = ["--model.detector=centernet", f"--trainer.initial_weights={weights}", "--optimizer.learning_rate=1e-12"]
    options += ["--trainer.ema_decay=null", "--trainer.validate_every_steps=2"]
    assert main([*arguments, *options, "--trainer.steps=2"]) == 0
    assert "the rows of 2 are copied, those of 1 start anew (kite)" in capsys.readouterr().err
    (weights / "model.safetensors").unlink()
    assert main([*arguments, *options, "--trainer.steps=3", "--resume", "last"]) == 0
    assert "first weights" not in capsys.readouterr().err
    assert (
        json.loads((tmp_path / "run" / "last" / "config.json").read_text())["model"]["categories"][2]["name"] == "kite"
    )
