"""`maskwright convert`, called as a person calls it, on the reference's own checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from checkpoint_files import ATTRIBUTE, graph_of, model_only, object_graph, write_checkpoint
from parity_data import ParityData, below
from safetensors.torch import load_file

import maskwright
from maskwright.cli import main
from maskwright.convert.checkpoint import Variables
from maskwright.convert.coco_labels import coco_categories
from maskwright.convert.deep_mac import DEEP_MAC
from maskwright.convert.tables import module_table
from maskwright.data.categories import resolve_mask_classes
from maskwright.models.deep_mac import DeepMAC
from maskwright.nn.backbones import BACKBONES, BackboneRow, HourglassBackbone
from maskwright.nn.feature_maps import Backbone, BackboneOptions
from maskwright.nn.hourglass import Hourglass
from maskwright.ops.boxes import clip_boxes

OWN_COPY = ParityData("deep_mac")
OWN_COPY.folder = Path(__file__).parents[1] / "parity" / "data" / "deep_mac"
FILE = "g_e2e_infer_3x3.npz"
CONFIG = OWN_COPY.files[FILE]["config"]
CHECKPOINT = OWN_COPY.folder / "ckpt_3x3"
CENTER_BIAS = "model/_prediction_head_dict/object_center/1/layer_with_weights-1/bias"
PIXEL = "model/_prediction_head_dict/PIXEL_EMBEDDING/{}/layer_with_weights-0/kernel"
INSTANCE = PIXEL.replace("PIXEL", "INSTANCE")


class TinyHourglass(HourglassBackbone):
    """The reference's small backbone, which no published recipe has."""

    def __init__(self, options: BackboneOptions) -> None:
        size = CONFIG["backbone"]
        stem, channels, blocks = (size[k] for k in ("input_channel_dims", "channel_dims_per_stage", "blocks_per_stage"))
        stacks = size["num_hourglasses"]
        levels = list(zip(channels, blocks, strict=True))
        network = Hourglass(3, stem, levels, stacks=stacks, stem_stride=4, norm_momentum=options.norm_momentum)
        Backbone.__init__(self, network.out_channels, (4,) * stacks, network.size_divisor)
        self.network = network


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a recipe of the reference's model."""
    monkeypatch.setitem(BACKBONES, "tiny_hourglass", BackboneRow(TinyHourglass))
    monkeypatch.chdir(tmp_path)
    write_recipe(tmp_path / "tiny.yaml")
    return tmp_path


def write_recipe(path: Path, **changes: object) -> None:
    model = {
        "categories": [{"id": 10 * index, "name": f"thing {index}"} for index in range(CONFIG["num_classes"])],
        "image_size": CONFIG["size"],
        "detector": "centernet",
        "detector_width": CONFIG["center_and_box_head_filters"],
        "backbone": "tiny_hourglass",
        "mask_head": CONFIG["network_type"],
        "mask_head_width": CONFIG["num_init_channels"],
        "mask_size": CONFIG["mask_size"],
        "pixel_embedding_dim": CONFIG["pixel_embedding_dim"],
        "instance_embedding_dim": CONFIG["dim"],
        "embedding_width": CONFIG["embedding_head_filters"],
        "resize": "tf1",
        "image_mean": [value / 255 for value in CONFIG["channel_means"][::-1]],
        "image_std": [value / 255 for value in CONFIG["channel_stds"][::-1]],
        "channel_order": "bgr",
        "norm_momentum": 0.9,
    }
    kept = {key: value for key, value in {**model, **changes}.items() if value is not None}
    path.write_text(yaml.safe_dump({"family": "deep_mac", "model": kept}))


def convert(checkpoint: Path, recipe: str = "tiny.yaml", out: str = "converted") -> int:
    return main(["convert", str(checkpoint), "--family", "deep_mac", "--recipe", recipe, "--out", out])


def refused(capsys: pytest.CaptureFixture, folder: Path, *arguments: str) -> str:
    """The one sentence that answers a mistake; nothing was written."""
    before = sorted(folder.rglob("*"))
    assert convert(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert sorted(folder.rglob("*")) == before
    return line.removeprefix("maskwright: error: ")


def weights() -> dict[str, np.ndarray]:
    variables = Variables(CHECKPOINT / "model_only")
    return {path: variables[path] for path in variables}


def training_loop(folder: Path) -> Path:
    """Step, optimizer and slots beside the model, as the original's training loop saves them."""
    variables = weights()
    beside = {"step": np.int64(1), "optimizer/iter": np.int64(1), "save_counter": np.int64(1)}
    slots = {f"{p}/.OPTIMIZER_SLOT/optimizer/m{ATTRIBUTE}": v + 1 for p, v in variables.items() if "kernel" in p}
    return model_only(folder, variables | {path: np.array(value) for path, value in beside.items()}, slots)


def model_as_root(folder: Path) -> Path:
    variables = {path.removeprefix("model/"): value for path, value in weights().items()}
    return model_only(folder, variables | {"save_counter": np.array(1)})


def saved_model(_: Path) -> Path:
    return CHECKPOINT / "saved_model_variables"


def test_the_converted_model_gives_the_reference_results(folder: Path, capsys):
    assert convert(CHECKPOINT / "model_only") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.splitlines() == [
        f"variables converted: {len(weights())} ({sum(value.size for value in weights().values()):,} numbers)",
        "optimizer slots skipped: 0",
        "other bookkeeping skipped: 1",
        "embedding heads: 3 x 3",
        "classes: 6, 6 of them with masks",
        "converted",
    ]
    assert sorted(path.name for path in Path("converted").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    model = maskwright.from_pretrained("converted")
    assert isinstance(model, DeepMAC)
    arrays = OWN_COPY.arrays(FILE)
    image = torch.from_numpy(arrays["image"]).permute(2, 0, 1).contiguous()
    scale = torch.tensor([image.shape[2], image.shape[1], image.shape[2], image.shape[1]])
    found = below(arrays, "det/")
    with torch.no_grad():
        (prediction,) = model([image], max_detections=CONFIG["max_box_predictions"])
        provided = torch.from_numpy(arrays["provided_boxes"][0])[:, [1, 0, 3, 2]] * scale
        (masks,) = model.masks_from_boxes(model.encode([image]), [provided])
    boxes = torch.from_numpy(found["detection_boxes"][0])[:, [1, 0, 3, 2]] * scale
    kept = torch.from_numpy(found["detection_scores"][0] > 0) & (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    assert kept.sum() > 5
    assert_near(prediction.boxes, boxes[kept])
    assert_near(prediction.scores, torch.from_numpy(found["detection_scores"][0])[kept])
    assert np.array_equal(prediction.labels, found["detection_classes"][0][kept])
    assert_near(masks.mask_probabilities, torch.from_numpy(arrays["provided_masks"][0]))
    # The original makes the mask before it clips the box to the image, so only boxes inside are the same.
    cells = torch.from_numpy(found["detection_boxes_strided"][0])[:, [1, 0, 3, 2]] * 4
    inside = (clip_boxes(cells, (85, 128)) == cells).all(dim=1)[kept]
    assert inside.any()
    theirs = torch.from_numpy(found["detection_masks"][0])[kept]
    assert_near(prediction.mask_probabilities[inside], theirs[inside])


def assert_near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-4


@pytest.mark.parametrize(
    ("write", "slots", "others"), [(training_loop, 139, 3), (model_as_root, 0, 1), (saved_model, 0, 0)]
)
def test_every_form_of_file_gives_the_same_weights(
    folder: Path, capsys, write: Callable[[Path], Path], slots: int, others: int
):
    assert convert(CHECKPOINT / "model_only", out="expected") == 0
    capsys.readouterr()
    assert convert(write(folder)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1:3] == [f"optimizer slots skipped: {slots}", f"other bookkeeping skipped: {others}"]
    expected, found = (load_file(f"{name}/model.safetensors") for name in ("expected", "converted"))
    assert expected.keys() == found.keys()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert Path("converted/config.json").read_text() == Path("expected/config.json").read_text()


def test_the_checkpoint_decides_the_kernel_of_the_embedding_heads(folder: Path, capsys):
    variables = weights()
    for path in (name.format(stack) for name in (PIXEL, INSTANCE) for stack in (0, 1)):
        variables[path] = variables[path][1:2]
    assert convert(model_only(folder, variables)) == 0
    assert "embedding heads: 1 x 3" in capsys.readouterr().out
    assert json.loads(Path("converted/config.json").read_text())["model"]["embedding_kernel"] == [1, 3]
    assert maskwright.from_pretrained("converted").network.pixel_embedding[0][0].weight.shape[2:] == (1, 3)
    variables[INSTANCE.format(1)] = np.repeat(variables[INSTANCE.format(1)], 3, axis=0)
    words = refused(capsys, folder, model_only(folder, variables))
    assert f"variable {INSTANCE.format(1)!r}" in words
    assert "must have shape (1, 3, 8, 256), but got (3, 3, 8, 256)" in words


@pytest.mark.parametrize("path", [CENTER_BIAS, PIXEL.format(0), "model/_mask_net/project_out/bias"])
def test_a_missing_variable_is_named(folder: Path, capsys, path: str):
    variables = weights()
    del variables[path]
    words = refused(capsys, folder, model_only(folder, variables))
    assert words.startswith(f"{folder / 'ckpt-0'} does not fit recipe tiny.yaml: variable {path!r} (for ")
    assert words.endswith("is missing in the checkpoint")


def test_a_variable_that_the_graph_knows_and_the_file_has_not(folder: Path, capsys):
    variables = weights()
    graph = object_graph(graph_of({path: path + ATTRIBUTE for path in variables}))
    tensors = {path + ATTRIBUTE: value for path, value in variables.items() if path != CENTER_BIAS}
    write_checkpoint(folder / "ckpt-0", {**tensors, "_CHECKPOINTABLE_OBJECT_GRAPH": graph})
    assert f"variable {CENTER_BIAS!r}" in refused(capsys, folder, folder / "ckpt-0")


def test_what_is_left_over_is_named(folder: Path, capsys):
    more = model_only(folder, weights() | {"model/_mask_net/again": np.zeros(3)})
    assert "the model has not: ['model/_mask_net/again']" in refused(capsys, folder, more)
    astray = model_only(folder, weights(), {"elsewhere/kernel": np.zeros(3)})
    assert "tensor 'elsewhere/kernel' is left over (1 such)" in refused(capsys, folder, astray)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mask_head": "hourglass10"}, "variable 'model/_mask_net/_net/"),
        ({"mask_head": "resnet4"}, "variable 'model/_mask_net/_net/input_layer/kernel' "),
        ({"mask_head": "fcn"}, "there is no table for this mask_head (FCNHead)"),
        ({"mask_head": "hourglass99"}, "hourglass99"),
        ({"categories": [{"id": 1, "name": "cat"}]}, "object_center/0/layer_with_weights-1/kernel'"),
        ({"categories": None}, "must have shape (1, 1, 16, 90), but got (1, 1, 16, 6)"),
        ({"detector": None}, "variables below 'model' that the model has not: ['model/_prediction_head_dict/"),
        ({"embedding_width": 8}, "PIXEL_EMBEDDING/0/layer_with_weights-0/kernel'"),
        ({"backbone": "resnet18_fpn"}, "there is no table for this backbone"),
    ],
)
def test_a_recipe_that_does_not_fit_is_refused(folder: Path, capsys, changes: dict, words: str):
    write_recipe(folder / "other.yaml", **changes)
    sentence = refused(capsys, folder, CHECKPOINT / "model_only", "other.yaml")
    assert "recipe other.yaml" in sentence
    assert words in sentence


def test_other_mistakes_are_one_sentence(folder: Path, capsys):
    checkpoint = CHECKPOINT / "model_only"
    assert "no/such" in refused(capsys, folder, checkpoint, "no/such")
    assert "there is no checkpoint absent" in refused(capsys, folder, Path("absent"))
    assert "of a SavedModel the folder 'variables'" in refused(capsys, folder, folder)
    (folder / "precious").mkdir()
    (folder / "precious" / "thesis.txt").write_text("years of work")
    assert "precious" in refused(capsys, folder, checkpoint, "tiny.yaml", "precious")
    assert main(["convert", "x", "--family", "deep_mc", "--recipe", "tiny.yaml", "--out", "o"]) == 2
    assert "--family: expected one of deep_mac, deep_marc, max_deeplab, but got 'deep_mc'" in capsys.readouterr().err


def test_the_mask_classes_are_those_of_the_recipe(folder: Path):
    recipe = yaml.safe_load(Path("tiny.yaml").read_text())
    Path("some.yaml").write_text(yaml.safe_dump({**recipe, "data": {"mask_classes": ["thing 4", "thing 1"]}}))
    assert convert(CHECKPOINT / "model_only", "some.yaml") == 0
    model = maskwright.from_pretrained("converted")
    assert model.mask_classes == ["thing 1", "thing 4"]
    assert model.categories == recipe["model"]["categories"]


def test_coco_labels():
    categories = coco_categories()
    ids = {category["name"]: category["id"] for category in categories}
    assert [category["id"] for category in categories] == list(range(1, 91))
    assert (len(ids), ids["person"], ids["truck"], ids["tv"], ids["toothbrush"]) == (90, 1, 8, 72, 90)
    voc = [ids[name] for name in resolve_mask_classes("voc", categories)]
    assert voc == [1, 2, 3, 4, 5, 6, 7, 9, 16, 17, 18, 19, 20, 21, 44, 62, 63, 64, 67, 72]
    non_voc = {ids[name] for name in resolve_mask_classes("non_voc", categories)}
    assert sorted(set(range(1, 91)) - set(voc) - non_voc) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


@pytest.mark.parametrize("head", ["hourglass52", "hourglass100", "resnet20"])
def test_every_tensor_of_the_published_models_has_its_own_row(head: str):
    with torch.device("meta"):
        model = DeepMAC(categories=coco_categories(), detector="centernet", mask_head=head)
    table = module_table(model.network, DEEP_MAC)
    names = {name for name in model.network.state_dict() if not name.endswith("num_batches_tracked")}
    assert set(table) == names
    assert len({row.path for row in table.values()}) == len(table)
