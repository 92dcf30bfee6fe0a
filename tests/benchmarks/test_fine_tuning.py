"""The fine-tuning benchmark divides a file: held-out images keep their masks, of the others one in N."""

import importlib.util
import json
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "fine_tuning.py"


def test_one_in_n_training_images_keeps_its_masks(tmp_path):
    specification = importlib.util.spec_from_file_location("fine_tuning", SCRIPT)
    benchmark = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(benchmark)
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(40)]
    entry = {"bbox": [0, 0, 2, 2], "category_id": 1, "segmentation": [[0, 0, 2, 0, 2, 2]]}
    entries = [{**entry, "id": image["id"], "image_id": image["id"]} for image in images]
    content = {"images": images, "annotations": entries}
    files = tmp_path / "training.json", tmp_path / "held_out.json"
    benchmark.divide(content, 5, *files)
    training, held_out = (json.loads(file.read_text()) for file in files)
    assert {image["id"] for side in (training, held_out) for image in side["images"]} == set(range(40))
    assert all("segmentation" in entry for entry in held_out["annotations"])
    assert len(training["annotations"]) == len(training["images"]) == 40 - len(held_out["images"])
    with_masks = [index for index, entry in enumerate(training["annotations"]) if "segmentation" in entry]
    assert with_masks == list(range(0, len(training["images"]), 5))
    assert all("segmentation" in entry for entry in content["annotations"])
