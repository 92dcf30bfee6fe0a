"""Weights to the Hub and back, against a stand-in of its HTTP interface: equal to the bit, or refused by a sentence."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import small_deep_mac
import small_max_deeplab
import torch
from hub_server import TOKEN, Hub, Repository, running_hub
from huggingface_hub import ModelCard
from PIL import Image

import maskwright
from maskwright.cli import main
from maskwright.errors import UserError
from maskwright.models.hub import BUNDLED, model_hash

BOXES = "10,10,60,50;5,20,80,70"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A stand-in that this process takes for the Hub, with a token for it and an empty cache."""
    monkeypatch.chdir(tmp_path)
    constants = huggingface_hub.constants
    with running_hub() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.address)
        template = hub.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda _: None)  # between tries
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub
        assert hub.unknown == []


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A weights folder of a small model."""
    categories = [{"id": 7, "name": "cat"}]
    model = small_deep_mac.build(mask_head="resnet4", categories=categories, mask_classes=["cat"]).eval()
    maskwright.save_pretrained(model, tmp_path / "weights")
    return tmp_path / "weights"


def picture(folder: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / "picture.png")
    return str(folder / "picture.png")


def refused(capsys: pytest.CaptureFixture[str], name: str, folder: Path) -> str:
    """The one sentence with which `predict` refuses the model."""
    capsys.readouterr()
    assert main(["predict", picture(folder), "--boxes", BOXES, "--model", name]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("maskwright: ")]
    assert len(said) == 1
    assert not (folder / "masks").exists()
    return said[0]


def test_the_bundled_model_comes_back_to_the_bit(hub: Hub, capsys):
    url = maskwright.push_to_hub("deep-mac-tiny", "somebody/boxes")
    repository = hub.repositories["somebody/boxes"]
    assert url == f"{hub.address}/somebody/boxes/commit/{repository.commit}"
    assert sorted(repository.files) == ["LICENSE-weights", "README.md", "config.json", "model.safetensors"]
    assert repository.files["model.safetensors"] == (BUNDLED / "deep-mac-tiny" / "model.safetensors").read_bytes()
    assert "model.safetensors" in repository.large  # it went the way of large files
    back = maskwright.from_pretrained("somebody/boxes")
    assert model_hash(back) == model_hash(maskwright.from_pretrained("deep-mac-tiny"))
    assert capsys.readouterr().out == ""


def test_predict_takes_the_name(hub: Hub, weights: Path, tmp_path: Path):
    maskwright.push_to_hub(weights, "somebody/small")
    for name in ("somebody/small", str(weights)):
        arguments = [picture(tmp_path), "--boxes", BOXES, "--model", name, "--device", "cpu", "--no-overlays"]
        assert main(["predict", *arguments, "--out", str(tmp_path / Path(name).name)]) == 0
    own, other = ((tmp_path / name / "predictions.json").read_bytes() for name in ("weights", "small"))
    assert own == other


def test_a_process_of_its_own_needs_the_environment_alone(hub: Hub, weights: Path, tmp_path: Path):
    maskwright.push_to_hub(weights, "somebody/small", private=True)
    environment = {**os.environ, "HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}
    environment.pop("HF_HUB_CACHE", None)
    command = ["-m", "maskwright", "predict", picture(tmp_path), "--boxes", BOXES, "--device", "cpu", "--no-overlays"]
    command += ["--model", "somebody/small", "--out", "masks"]
    ended = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "masks" / "predictions.json").is_file()


class TestCard:
    def test_it_is_filled_in(self, hub: Hub, weights: Path, tmp_path: Path):
        numbers = {"mask_iou": 0.75, "mask_iou_seen": None, "class_mask_iou": 0.5, "instances": 12, "classes": []}
        (tmp_path / "numbers.json").write_text(json.dumps(numbers))
        results = {"coco_dev": tmp_path / "numbers.json"}
        maskwright.push_to_hub(weights, "somebody/small", license="apache-2.0", results=results)
        card = ModelCard(hub.repositories["somebody/small"].files["README.md"].decode())
        data = card.data.to_dict()
        assert data["library_name"] == "maskwright"
        assert data["pipeline_tag"] == "mask-generation"
        assert data["license"] == "apache-2.0"
        assert data["tags"] == ["maskwright", "deep-mac", "arxiv:2104.00613"]
        assert card.data.model_name == "small"
        found = {(each.dataset_name, each.metric_type): each.metric_value for each in card.data.eval_results}
        assert found == {("coco_dev", "mask_iou"): 0.75, ("coco_dev", "class_mask_iou"): 0.5}
        assert 'maskwright.load("somebody/small")' in card.text
        assert "Classes: cat." in card.text

    def test_the_bundled_models_text_and_licence_stay(self, hub: Hub):
        maskwright.push_to_hub("deep-mac-tiny", "somebody/boxes")
        card = ModelCard(hub.repositories["somebody/boxes"].files["README.md"].decode())
        assert card.text.strip() == (BUNDLED / "deep-mac-tiny" / "README.md").read_text().strip()
        licence = {name: value for name, value in card.data.to_dict().items() if name.startswith("license")}
        assert licence == {"license": "other", "license_name": "license-weights", "license_link": "LICENSE-weights"}

    def test_what_its_author_wrote_stays(self, hub: Hub, weights: Path):
        own = "---\nlicense: mit\ntags: [cats]\nlanguage: en\n---\n# Cats\n"
        (weights / "README.md").write_text(own)
        maskwright.push_to_hub(weights, "somebody/small", license="apache-2.0")
        card = ModelCard(hub.repositories["somebody/small"].files["README.md"].decode())
        assert card.text == "# Cats\n"
        data = card.data.to_dict()
        assert (data["license"], data["tags"], data["language"]) == ("mit", ["cats"], "en")
        assert data["library_name"] == "maskwright"

    def test_other_tasks_have_other_names(self, hub: Hub, tmp_path: Path):
        maskwright.save_pretrained(small_max_deeplab.small_model(), tmp_path / "panoptic")
        maskwright.push_to_hub(tmp_path / "panoptic", "somebody/panoptic")
        card = ModelCard(hub.repositories["somebody/panoptic"].files["README.md"].decode())
        assert card.data.pipeline_tag == "image-segmentation"
        assert "max-deeplab" in card.data.tags

    @pytest.mark.parametrize(
        ("readme", "options", "message"),
        [
            ("---\n- a\n- b\n---\n", {}, r"README\.md: its front matter is not what the Hub reads"),
            ("---\na: [\n---\n", {}, r"README\.md: its front matter is not what the Hub reads"),
            ("", {"results": {"set": "nowhere.json"}}, r"cannot read the file of numbers nowhere\.json"),
            ("", {"results": {"set": "empty.json"}}, r"empty\.json: none of the numbers mask_iou, "),
            ("", {"license": "MIT license"}, "cannot be uploaded .*license.* must be one of the list"),
        ],
    )
    def test_what_cannot_be_read_is_refused_before_anything_is_sent(self, hub: Hub, weights, readme, options, message):
        Path("empty.json").write_text("{}")
        (weights / "README.md").write_text(readme)
        with pytest.raises(UserError, match=message):
            maskwright.push_to_hub(weights, "somebody/small", **options)
        assert not any(repository.files for repository in hub.repositories.values())


def test_nothing_but_the_weights_is_sent_and_again_nothing(hub: Hub, weights: Path):
    (weights / "optimizer.pt").write_bytes(b"secret")
    maskwright.push_to_hub(weights, "somebody/small")
    assert sorted(hub.repositories["somebody/small"].files) == ["README.md", "config.json", "model.safetensors"]
    hub.requests.clear()
    maskwright.push_to_hub(weights, "somebody/small")
    assert not [request for request in hub.requests if request.startswith("PUT") or "/commit/" in request]


def test_the_cache_answers_when_the_hub_does_not(hub: Hub, weights: Path, monkeypatch):
    maskwright.push_to_hub(weights, "somebody/small")
    first = model_hash(maskwright.from_pretrained("somebody/small"))
    hub.down = True
    assert model_hash(maskwright.from_pretrained("somebody/small")) == first
    hub.requests.clear()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the environment variable of that name
    assert model_hash(maskwright.from_pretrained("somebody/small")) == first
    assert hub.requests == []
    with pytest.raises(UserError, match=r"somebody/other: .* \(the Hub cannot be reached, and the cache does not"):
        maskwright.from_pretrained("somebody/other")


def test_what_is_missing_private_or_gated_is_told(hub: Hub, weights: Path, tmp_path: Path, capsys, monkeypatch):
    missing = "there is none of this name, or it is private: a token opens what is yours, from `hf auth login` or in"
    assert missing in refused(capsys, "somebody/nothing", tmp_path)
    maskwright.push_to_hub(weights, "somebody/hidden", private=True)
    monkeypatch.delenv("HF_TOKEN")
    assert missing in refused(capsys, "somebody/hidden", tmp_path)
    hub.repositories["somebody/gated"] = Repository(gated=True)
    assert "its owner gives access on request" in refused(capsys, "somebody/gated", tmp_path)
    assert "somebody/na..me: neither" in refused(capsys, "somebody/na..me", tmp_path)
    with pytest.raises(UserError, match=r"somebody/small: cannot be uploaded \(it asks who you are: a token opens"):
        maskwright.push_to_hub(weights, "somebody/small")


def test_an_interrupted_download_is_told_and_goes_on(hub: Hub, weights: Path, tmp_path: Path, capsys):
    maskwright.push_to_hub(weights, "somebody/small")
    hub.cut_off = True
    said = refused(capsys, "somebody/small", tmp_path)
    assert re.search(r"somebody/small: neither a folder here nor a repository that the Hub gives \(.*\)", said)
    hub.cut_off = False
    back = maskwright.from_pretrained("somebody/small")
    assert model_hash(back) == model_hash(maskwright.from_pretrained(weights))


def test_pickled_weights_are_never_read(hub: Hub, weights: Path, tmp_path: Path, capsys):
    """Not even downloaded: a pickle that is loaded would leave a file behind."""

    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "was_loaded",)

    config = (weights / "config.json").read_bytes()
    hub.repositories["somebody/pickled"] = pickled = Repository()
    for name, content in (("config.json", config), ("pytorch_model.bin", pickle.dumps(Trap()))):
        pickled.put(name, content)
    hub.requests.clear()
    said = refused(capsys, "somebody/pickled", tmp_path)
    assert "there is no model.safetensors in this repository" in said
    assert "no pickle (pytorch_model.bin)" in said
    assert not [request for request in hub.requests if "pytorch_model.bin" in request]
    (weights / "model.safetensors").unlink()
    torch.save({}, weights / "pytorch_model.bin")
    assert "model.safetensors: no such file" in refused(capsys, str(weights), tmp_path)
    assert not (tmp_path / "was_loaded").exists()
