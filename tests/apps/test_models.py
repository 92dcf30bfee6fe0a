"""`maskwright models` lists everything there is."""

from maskwright.cli import main
from maskwright.models.hub import bundled_names
from maskwright.training.recipes import recipe_names


def test_every_model_and_recipe_is_listed_with_its_size(capsys):
    assert main(["models"]) == 0
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().out.splitlines() if line}
    assert {*bundled_names(), *recipe_names()} <= rows.keys()
    assert rows["deep-mac-tiny"][1:4] == ["deep_mac", "4.61", "M"]
    # The original's 217.13 million count 90 classes; 80 leave out ten of 257 weights in each of two stacks.
    assert rows["deep_mac/512_voc_only"][2:4] == ["217.12", "M"]
    # With COCO's 133 panoptic classes, as published.
    assert rows["max_deeplab/s_os16_res641_100k"][1:4] == ["max_deeplab", "77.76", "M"]
    assert rows["max_deeplab/l_os16_res1025_100k"][2:4] == ["450.87", "M"]
