"""Weights folders: a round trip is exact, and everything that does not fit is refused by name."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from maskwright.errors import UserError
from maskwright.models.calibration import MaskCalibration
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.hub import from_pretrained, model_hash, push_to_hub, save_pretrained


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DeepMAC(
        categories=[{"id": 7, "name": "cat"}],
        mask_classes=["cat"],
        image_size=64,
        backbone="hourglass10",
        mask_head="hourglass10",
        mask_head_width=2,
        embedding_width=4,
        width=0.25,
    ).eval()


def test_round_trip_is_exact(model, tmp_path, capsys):
    save_pretrained(model, tmp_path / "weights")
    loaded = from_pretrained(tmp_path / "weights")
    assert loaded.categories == model.categories
    assert loaded.mask_classes == ["cat"]
    assert not loaded.training
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert capsys.readouterr().out == ""


def test_half_precision_storage_loads_as_float32(model, tmp_path):
    save_pretrained(model, tmp_path / "weights", dtype=torch.float16)
    stored = load_file(tmp_path / "weights" / "model.safetensors")
    assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.float16}
    loaded = from_pretrained(tmp_path / "weights")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_saving_replaces_a_folder_as_a_whole(model, tmp_path):
    save_pretrained(model, tmp_path / "weights", card="first")
    save_pretrained(model, tmp_path / "weights")
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["config.json", "model.safetensors"]
    assert [p.name for p in tmp_path.iterdir()] == ["weights"]


def _edit_tensors(folder, edit):
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(next(iter(sorted(t)))), "is missing"),
        (lambda t: t.update(extra=torch.zeros(1)), "'extra' is not in the model"),
        (lambda t: t.update({sorted(t)[0]: torch.zeros(1, 2, 3)}), "has another shape"),
    ],
)
def test_tensors_that_do_not_fit_are_named(model, tmp_path, edit, message):
    save_pretrained(model, tmp_path / "weights")
    _edit_tensors(tmp_path / "weights", edit)
    with pytest.raises(UserError, match=message):
        from_pretrained(tmp_path / "weights")


def test_broken_folders_get_one_sentence(model, tmp_path):
    folder = tmp_path / "weights"
    save_pretrained(model, folder)
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:100])
    with pytest.raises(UserError, match="not a whole safetensors file"):
        from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="no such file"):
        from_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "family": "cat"}))
    with pytest.raises(UserError, match="unknown family 'cat'"):
        from_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({**config, "model": {**config["model"], "legs": 4}}))
    with pytest.raises(UserError, match="legs"):
        from_pretrained(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json is not a JSON file"):
        from_pretrained(folder)
    with pytest.raises(UserError, match="neither a weights folder nor a bundled model"):
        from_pretrained(tmp_path / "nothing" / "here")
    with pytest.raises(UserError, match=rf"; did you mean {re.escape(str(folder))}\?"):
        from_pretrained(f"{folder}x")
    with pytest.raises(UserError, match=r"; did you mean deep-mac-tiny\?"):
        from_pretrained("deep-mac-tinny")


def test_nothing_but_a_weights_folder_is_ever_replaced(model, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("long work")
    (tmp_path / "notes.txt").write_text("notes")
    for name in ("thesis", "notes.txt"):
        with pytest.raises(UserError, match="not a weights folder"):
            save_pretrained(model, tmp_path / name)
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "long work"
    assert (tmp_path / "notes.txt").read_text() == "notes"


def test_push_refuses_what_is_no_weights_folder(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        push_to_hub(tmp_path, "somebody/something")


def test_the_hash_of_a_model_is_that_of_all_that_decides_its_predictions():
    torch.manual_seed(0)
    values = {"image_size": 64, "backbone": "resnet18_fpn", "mask_head": "resnet4", "mask_size": 8, "width": 0.1}
    model = DeepMAC(**values)

    def changed(**others) -> DeepMAC:
        other = DeepMAC(**{**values, **others})
        other.load_state_dict(model.state_dict())
        return other

    calibrated = changed()
    calibrated.mask_calibration = MaskCalibration([0.0, 1.0], [0.0, 0.9])
    trained = changed()
    with torch.no_grad():
        next(trained.parameters()).mul_(1.5)
    assert model_hash(changed()) == model_hash(model)
    hashes = {model_hash(each) for each in (model, calibrated, trained, changed(image_size=128))}
    assert len(hashes) == 4
