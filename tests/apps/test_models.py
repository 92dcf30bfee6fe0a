"""`maskwright models` lists everything there is."""

import yaml

from maskwright.cli import main
from maskwright.models.hub import bundled_names
from maskwright.training.recipes import recipe_names


def test_every_model_and_recipe_is_listed_with_its_size(capsys):
    assert main(["models"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert {*bundled_names(), *recipe_names()} <= rows.keys()
    assert rows["deep-mac-tiny"][1:4] == ["deep_mac", "6.02", "M"]
    # The original's 217.13 million count 90 classes; 80 leave out ten of 257 weights in each of two stacks.
    assert rows["deep_mac/512_voc_only"][2:4] == ["217.12", "M"]
    # With COCO's 133 panoptic classes, as published.
    assert rows["max_deeplab/s_os16_res641_100k"][1:4] == ["max_deeplab", "77.76", "M"]
    assert rows["max_deeplab/l_os16_res1025_100k"][2:4] == ["450.87", "M"]


def test_a_recipe_is_printed_with_the_values_of_its_base_and_the_defaults(capsys, tmp_path):
    (tmp_path / "mine.yaml").write_text("base: deep_mac/1024_coco\ntrainer: {steps: 7}\n")
    assert main(["models", "--recipe", str(tmp_path / "mine.yaml")]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["family"] == "deep_mac"
    assert printed["data"]["mask_classes"] == "all"
    assert (printed["optimizer"]["name"], printed["trainer"]["steps"], printed["trainer"]["seed"]) == ("adam", 7, 0)
    assert main(["models", "--recipe", "no/such"]) == 2
