"""`maskwright convert --family max_deeplab`: every key of the originals' checkpoints, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import model_only

import maskwright
from maskwright.cli import main
from maskwright.convert.coco_labels import coco_panoptic_categories
from maskwright.convert.max_deeplab import MAX_DEEPLAB, convert_max_deeplab
from maskwright.convert.tables import module_table
from maskwright.errors import UserError
from maskwright.models.max_deeplab import MaXDeepLabConfig
from maskwright.models.max_deeplab.network import MaXDeepLabNetwork

PARITY = Path(__file__).parents[1] / "parity" / "data" / "max_deeplab"
MODEL: dict[str, Any] = {
    "image_size": 65,
    "num_mask_slots": 16,
    "stem_width": 0.25,
    "backbone_width": 0.0625,
    "transformer_width": 0.25,
    "memory_channels": 32,
    "memory_feature_channels": 24,
    "feed_forward_channels": 64,
    "semantic_channels": 16,
    "low_level_channels": [8, 4],
    "pixel_head_channels": 24,
    "pixel_feature_channels": 16,
}


@pytest.fixture(scope="module")
def variables() -> dict[str, np.ndarray]:
    """Of the reference's reduced model, COCO's 133 classes."""
    weights = np.load(PARITY / "model" / "weights.npz")
    return {f"model/{name}": weights[name] for name in weights}


@pytest.mark.parametrize("size", ["S", "L"])
def test_tables_have_every_key_and_shape_of_the_originals(size: str):
    with torch.device("meta"):
        config = MaXDeepLabConfig(categories=coco_panoptic_categories(), backbone=f"max_deeplab_{size.lower()}")
        network = MaXDeepLabNetwork(config)
    table, state = module_table(network, MAX_DEEPLAB), network.state_dict()
    keys = json.loads((PARITY / f"object_keys_{size}.json").read_text())
    assert {row.path for row in table.values()} == set(keys)
    assert set(table) == {name for name in state if not name.endswith("num_batches_tracked")}
    for name, row in table.items():
        values = np.broadcast_to(np.int8(0), keys[row.path])
        assert row.fit(values, tuple(state[name].shape)) is not None, name


def test_panoptic_model(variables: dict[str, np.ndarray]):
    conversion = convert_max_deeplab(variables, MODEL)
    assert conversion.used == set(variables)
    assert len(conversion.model.categories) == 133
    state = conversion.model.state_dict()
    rows = variables["model/encoder/memory_feature"][:, :16]
    np.testing.assert_array_equal(state["network.encoder.memory"], rows)
    norms = variables["model/encoder/_stage4/_block2/_attention/_height_axis/_batch_norm_similarity/gamma"]
    ours = [state[f"network.encoder.stages.4.blocks.1.attention.height.similarity_norms.{i}.weight"] for i in range(3)]
    np.testing.assert_array_equal(torch.stack(ours), norms.reshape(3, -1))


@pytest.mark.parametrize("prefix", ["model/encoder/", "model/backbone/_encoder/"])
def test_pretrained_encoder(variables: dict[str, np.ndarray], prefix: str):
    encoder = {
        path.replace("model/encoder/", prefix): values
        for path, values in variables.items()
        if path.startswith("model/encoder/") and "_extra" not in path
    }
    encoder[prefix + "_memory_feature"] = encoder.pop(prefix + "memory_feature")
    conversion = convert_max_deeplab({**encoder, "model/classifier/kernel": np.zeros(3)}, MODEL)
    assert conversion.used == set(encoder)
    assert "heads" in conversion.remarks[0]
    assert "not taken: 1 variables" in conversion.remarks[1]
    with pytest.raises(UserError, match="_stage3"):
        convert_max_deeplab({path: v for path, v in encoder.items() if "_stage3/_block2/_conv1" not in path}, MODEL)


def test_missing_left_over_and_wrong_shapes_are_named(variables: dict[str, np.ndarray]):
    path = "model/transformer_class_head/_conv/kernel"
    with pytest.raises(UserError, match=f"'{path}'.* is missing"):
        convert_max_deeplab({name: value for name, value in variables.items() if name != path}, MODEL)
    with pytest.raises(UserError, match=rf"'{path}' .* must have shape \(24, 134\), but got \(1, 24, 3\)"):
        convert_max_deeplab({**variables, path: np.zeros((1, 24, 3))}, MODEL)
    with pytest.raises(UserError, match="1 variables below 'model' that the model has not"):
        convert_max_deeplab({**variables, "model/unknown": np.zeros(1)}, MODEL)
    with pytest.raises(UserError, match="neither MaX-DeepLab's heads nor an encoder"):
        convert_max_deeplab({"model/other": np.zeros(1)}, MODEL)


def test_command(variables: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    slots = {"encoder/memory_feature/.OPTIMIZER_SLOT/optimizer/m/.ATTRIBUTES/VARIABLE_VALUE": np.zeros(1, np.float32)}
    checkpoint = model_only(tmp_path, {path.removeprefix("model/"): v for path, v in variables.items()}, slots)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"family": "max_deeplab", "model": MODEL, "data": {"train": {}}}))
    out = tmp_path / "out"
    command = ["convert", str(checkpoint), "--family", "max_deeplab", "--recipe", str(recipe), "--out", str(out)]
    assert main(command) in (0, None)
    assert "optimizer slots skipped: 1" in capsys.readouterr().out
    model = maskwright.from_pretrained(out)
    assert model.family == "max_deeplab"
    assert [category["isthing"] for category in model.categories].count(False) == 53
