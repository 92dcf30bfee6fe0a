"""The box-to-mask benchmark: baselines against known shapes, and the command as a person calls it."""

from __future__ import annotations

import importlib
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from maskwright.models.hub import BUNDLED
from maskwright.structures import EncodedMasks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"

pytest.importorskip("cv2", reason="needs maskwright[benchmark]")


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(BENCHMARKS))  # as Python does for the script
    yield importlib.import_module("box_to_mask")
    sys.path.remove(str(BENCHMARKS))


def photo_of_a_disc() -> np.ndarray:
    """120 x 160: a noisy red disc of radius 30 at (80, 60) on noisy blue."""
    y, x = np.mgrid[:120, :160] + 0.5
    disc = (x - 80) ** 2 + (y - 60) ** 2 < 900
    colours = np.where(disc[..., None], (220, 30, 30), (30, 30, 200))
    return (colours + np.random.default_rng(0).integers(-20, 20, (120, 160, 3))).clip(0, 255).astype(np.uint8)


def test_shapes_are_cut_at_pixel_centres(benchmark):
    image = torch.zeros(3, 12, 12, dtype=torch.uint8)
    boxes = torch.tensor([[2.0, 1.0, 6.0, 9.0], [-4.0, 3.6, 3.4, 20.0]])
    filled = benchmark.filled_boxes(image, boxes)
    assert filled[0, 1:9, 2:6].all()
    assert filled.sum((1, 2)).tolist() == [32, 8 * 3]
    ellipse = benchmark.inscribed_ellipses(torch.zeros(3, 100, 100), torch.tensor([[10.0, 20.0, 90.0, 60.0]]))
    assert int(ellipse.sum()) == pytest.approx(math.pi * 40 * 20, rel=0.01)
    assert not ellipse[0, :20].any()
    assert not ellipse[0, 60:].any()


def test_grabcut_finds_a_disc_and_falls_back_to_the_box(benchmark):
    image = torch.from_numpy(photo_of_a_disc()).permute(2, 0, 1)
    whole, disc = [0.0, 0.0, 160.0, 120.0], [50.0, 30.0, 110.0, 90.0]
    found = benchmark.grabcut(image, torch.tensor([disc, whole]))
    y, x = torch.meshgrid(torch.arange(120) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    truth = (x - 80) ** 2 + (y - 60) ** 2 < 900
    assert int((found[0] & truth).sum()) / int((found[0] | truth).sum()) > 0.95
    assert found[1].all()  # no background in the crop: OpenCV refuses


def test_the_interval_of_a_difference_is_that_of_all_draws_of_images(benchmark):
    # One image has one mask, 0.3 better, the other three, 0.1 worse. Of the four draws of two images one is the first
    # twice (0.3), two are both (0), and one is the second twice (-0.1).
    ious, others = np.array([0.8, 0.4, 0.5, 0.6]), np.array([0.5, 0.5, 0.6, 0.7])
    found = benchmark.paired_difference([7, 9, 9, 9], ious, others)
    assert tuple(found) == pytest.approx((0, -0.1, 0.3))
    assert found.verdict == "as before"
    assert benchmark.paired_difference([7, 9, 9, 9], ious - 0.02, others).verdict == "as before"  # -0.12 to 0.28
    # 200 images of one mask without a difference, 200 of three that are 0.1 better: the mean is 600 * 0.1 / 800.
    # The standard error of a quotient of sums is that of the mean of (sum - 0.075 * count), which is +-0.075 for every
    # image, over the mean count of 2: 0.075 / sqrt(400) / 2.
    images = np.repeat(range(400), [1, 3] * 200)
    found = benchmark.paired_difference(images, np.where(images % 2, 0.6, 0.5), np.full(800, 0.5))
    assert tuple(found) == pytest.approx((0.075, 0.075 - 1.96 * 0.001875, 0.075 + 1.96 * 0.001875), abs=3e-4)


@pytest.mark.parametrize(("change", "verdict"), [(-0.006, "fallen"), (-0.004, "as before"), (0.001, "risen")])
def test_a_set_has_fallen_if_the_interval_lies_wholly_below(benchmark, change: float, verdict: str):
    others = np.linspace(0.2, 0.9, 6)
    found = benchmark.paired_difference([0, 0, 1, 2, 2, 2], others + change, others)
    assert tuple(found) == pytest.approx((change, change, change))
    assert found.verdict == verdict


def test_one_image_has_no_interval(benchmark):
    found = benchmark.paired_difference([3, 3], np.array([0.5, 0.7]), np.array([0.4, 0.4]))
    assert found == (pytest.approx(0.2), None, None)
    assert found.verdict is None
    assert benchmark.paired_difference([], np.zeros(0), np.zeros(0)) == (None, None, None)


def test_shares_of_bad_masks(benchmark):
    found = benchmark.shares(np.array([0.4, 0.5, 0.6, 0.7, 0.8]))
    assert found == {"instances": 5, "mask_iou": pytest.approx(0.6), "share_below_0.5": 0.2, "share_below_0.7": 0.6}
    assert benchmark.shares(np.zeros(0))["share_below_0.7"] is None


def groups(benchmark, boxes: list[list[int]], labels: list[int], heights: list[int]) -> list[tuple[str, ...]]:
    """The groups of each box, whose mask has its width and that height."""
    masks = torch.zeros(len(boxes), 80, 80, dtype=torch.bool)
    for mask, (left, top, right, _), height in zip(masks, boxes, heights, strict=True):
        mask[top : top + height, left:right] = True
    target = {"boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), "labels": torch.tensor(labels).long()}
    categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "cat"}, {"id": 3, "name": "fork"}]
    found = benchmark.groups_of({**target, "masks": masks}, categories)
    return [
        tuple(name for name, belongs in zip(benchmark.GROUPS, row, strict=True) if belongs) for row in found.tolist()
    ]


def test_thin_is_a_class_or_a_box_that_is_hardly_filled(benchmark):
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]]
    assert groups(benchmark, boxes, [0, 0, 2], [3, 4, 10]) == [("thin",), (), ("thin",)]
    assert groups(benchmark, [], [], []) == []


def test_occluded_is_an_overlap_with_any_box(benchmark):
    # IoU of the first two 40 / 160, of the last two 30 / 170.
    boxes = [[0, 0, 10, 10], [6, 0, 16, 10], [40, 0, 50, 10], [47, 0, 57, 10]]
    assert groups(benchmark, boxes, [0, 1, 0, 1], [10] * 4) == [("occluded",), ("occluded",), (), ()]


def test_crowded_has_two_neighbours_of_its_class(benchmark):
    row = [[0, 0, 10, 10], [12, 0, 22, 10], [24, 0, 34, 10]]  # gaps of 2, a reach of 2.5
    assert groups(benchmark, row, [0, 0, 0], [10] * 3) == [(), ("crowded",), ()]
    assert groups(benchmark, row, [0, 0, 1], [10] * 3) == [(), (), ()]
    assert groups(benchmark, [*row[:2], [25, 0, 35, 10]], [0, 0, 0], [10] * 3) == [(), (), ()]


def test_sets_are_named_after_their_files(benchmark):
    files = [Path("out/nuts_held_out.json"), Path("out/coco_dev_development.json"), Path("a/instances.json")]
    found = benchmark.sets_of(["data/{set}/images"], files)
    assert list(found) == ["nuts", "coco_dev", "instances"]
    assert found["coco_dev"] == (Path("data/coco_dev/images"), files[1])
    assert benchmark.sets_of(["a", "b"], files[:2])["coco_dev"][0] == Path("b")
    with pytest.raises(ValueError, match="one folder for each of the 3 annotation files"):
        benchmark.sets_of(["a", "b"], files)
    with pytest.raises(ValueError, match="told apart by their files' names, but got instances, instances"):
        benchmark.sets_of(["a", "b"], [files[2], Path("b/instances.json")])


def test_a_cell_shows_both_outlines(benchmark):
    sheet = importlib.import_module("contact_sheet")
    truth = torch.zeros(1, 100, 100, dtype=torch.bool)
    truth[0, 40:60, 40:60] = True
    predicted = torch.zeros(100, 100, dtype=torch.bool)
    predicted[45:55, 45:55] = True
    masks = EncodedMasks.from_planes(truth), predicted
    box = torch.tensor([36.0, 36.0, 64.0, 64.0])
    cell = sheet.draw_cell(torch.zeros(3, 100, 100, dtype=torch.uint8), box, masks, ("cup", "IoU 0.25"))
    assert cell.size == (sheet.SIDE, sheet.SIDE + 2 * sheet.LINE)
    scale = sheet.SIDE / (28 + 2 * sheet.LEAST)  # the box and what lies around it fill the cell
    middle = sheet.SIDE // 2
    for edge, colour in ((36, sheet.BOX), (40, sheet.TRUE), (45, sheet.PREDICTED)):
        x = round((edge - 36 + sheet.LEAST) * scale)
        assert colour in [cell.getpixel((x + step, middle)) for step in (-1, 0, 1)]
    assert cell.getpixel((middle, middle)) == (0, 0, 0)
    drawn = sheet.contact_sheet("cups", [cell] * 8)
    assert drawn.size[0] == sheet.GAP + sheet.COLUMNS * (sheet.SIDE + sheet.GAP)
    assert drawn.size[1] > 2 * cell.height


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two photographs with the same disc and rectangle; the first has a crowd and a box without a mask, too."""
    circle = [v for a in np.linspace(0, 2 * math.pi, 60) for v in (80 + 30 * math.cos(a), 60 + 30 * math.sin(a))]
    rectangle = [5, 5, 25, 5, 25, 20, 5, 20]
    annotations = [
        {"id": 1, "image_id": 1, "bbox": [50, 30, 60, 60], "area": 2827, "segmentation": [circle]},
        {"id": 2, "image_id": 1, "bbox": [5, 5, 20, 15], "area": 300, "segmentation": [rectangle]},
        {"id": 3, "image_id": 1, "bbox": [0, 0, 9, 9], "area": 81, "segmentation": [rectangle], "iscrowd": 1},
        {"id": 4, "image_id": 1, "bbox": [0, 0, 9, 9], "area": 81},
        {"id": 5, "image_id": 2, "bbox": [50, 30, 60, 60], "area": 2827, "segmentation": [circle]},
        {"id": 6, "image_id": 2, "bbox": [5, 5, 20, 15], "area": 300, "segmentation": [rectangle]},
    ]
    images = []
    for number in (1, 2):
        Image.fromarray(photo_of_a_disc()).save(tmp_path / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "width": 160, "height": 120})
    rows = [{"iscrowd": 0, "category_id": 1, **annotation} for annotation in annotations]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "disc"}]}
    (tmp_path / "discs_held_out.json").write_text(json.dumps(content))
    return tmp_path


def run(benchmark, monkeypatch: pytest.MonkeyPatch, data: Path, *options: str) -> None:
    files = ["--images", str(data), "--annotations", str(data / "discs_held_out.json")]
    monkeypatch.setattr(sys, "argv", ["box_to_mask.py", *files, "--threads", "1", *options])
    benchmark.main()


def test_baselines_need_no_model_and_share_their_instances(
    benchmark, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    run(benchmark, monkeypatch, data, "--model", "none", "--out", str(data / "out"))
    content = json.loads((data / "out" / "numbers.json").read_text())
    assert content["machine"]["threads"] == 1
    methods = content["sets"]["discs"]["methods"]
    assert {name: row["instances"] for name, row in methods.items()} == {"GrabCut": 4, "box": 4, "ellipse": 4}
    assert methods["box"]["mask_iou"] == pytest.approx((math.pi / 4 + 1) / 2, abs=0.02)
    assert methods["ellipse"]["mask_iou"] == pytest.approx((1 + math.pi / 4) / 2, abs=0.03)
    assert all(row["seconds_per_instance"] > 0 for row in methods.values())
    printed = capsys.readouterr().out
    assert "discs          4 " in printed
    assert "Mask scores" not in printed  # which only models have
    assert sorted(path.name for path in (data / "out").iterdir()) == ["numbers.json", "tables.md"]


def test_models_stand_side_by_side_on_several_sets(
    benchmark, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    old, out = data / "old", data / "out"
    shutil.copytree(BUNDLED / "deep-mac-tiny", old)
    shutil.copy(data / "discs_held_out.json", data / "more_development.json")
    more = ["--annotations", str(data / "discs_held_out.json"), str(data / "more_development.json")]
    run(benchmark, monkeypatch, data, *more, "--against", str(old), "--out", str(out))
    content = json.loads((out / "numbers.json").read_text())["sets"]
    assert list(content) == ["discs", "more"]
    methods = content["discs"]["methods"]
    assert list(methods) == ["deep-mac-tiny", str(old), "GrabCut", "box", "ellipse"]
    assert methods[str(old)]["mask_scores"] == methods["deep-mac-tiny"]["mask_scores"]
    assert methods["box"]["mask_scores"] is None
    assert content["discs"]["differences"][str(old)] == {"mean": 0, "low": 0, "high": 0, "verdict": "as before"}
    tables = (out / "tables.md").read_text()
    for title in ("Mean mask IoU", "All objects", "Crowded objects", "Mask scores", "Accepted", "Seconds per instance"):
        assert f"### {title}" in tables
    assert "Thin objects" not in tables  # there are none
    assert tables[tables.index("Crowded objects") :].splitlines()[4].startswith("| discs | 1 | ")  # beside 3 and 4
    assert f"| set | instances | IoU, {old} | IoU, deep-mac-tiny | IoU < 0.5, {old} |" in tables
    assert "| discs | 0.000 | 0.000 | 0.000 | as before |" in tables
    assert "Crowded objects: at least 2 boxes of its class reach into its own" in capsys.readouterr().out
    assert Image.open(out / "worst_discs.jpg").size == Image.open(out / "worst_more.jpg").size


def test_the_worst_come_first(benchmark, data: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []
    monkeypatch.setattr(benchmark, "draw_cell", lambda *arguments: drawn.append(arguments) or Image.new("RGB", (9, 9)))
    sample = benchmark.Sample(benchmark.CocoInstances(data, data / "discs_held_out.json"), None)
    measured = benchmark.compare(sample, {"box": benchmark.filled_boxes})
    benchmark.draw_worst(sample, measured, "box", benchmark.filled_boxes, "discs")
    captions = [arguments[3] for arguments in drawn]
    assert [(name, annotation) for name, _, annotation in captions] == [
        ("disc", f"annotation {number}") for number in (1, 5, 2, 6)
    ]
    assert captions[2][1] == "IoU 1.00"
    truth, predicted = drawn[0][2]
    assert int(predicted.sum()) == 60 * 60
    assert int(truth.areas()) == pytest.approx(math.pi * 900, rel=0.02)


def test_a_sample_is_fixed_by_its_seed(benchmark, data: Path):
    file = data / "discs_held_out.json"
    assert benchmark.sampled_ids(file, None, 0) is None
    assert benchmark.sampled_ids(file, 9, 0) == {1, 2, 5, 6}  # neither the crowd nor the bare box
    drawn = [benchmark.sampled_ids(file, 1, seed) for seed in range(8)]
    assert drawn == [benchmark.sampled_ids(file, 1, seed) for seed in range(8)]
    assert len(set(map(tuple, drawn))) > 1


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-instances", "0"], "--max-instances must be at least 1, but got 0"),
        (["--against", "deep-mac-tiny"], "--against deep-mac-tiny: expected other models than --model deep-mac-tiny"),
        (["--model", "none", "--against", "sam"], "expected other models than --model none"),
        (["--against", "sam"], "sam needs transformers"),
        (["--images", "a", "b"], "expected one folder for each of the 1 annotation files"),
        (["--model", "none", "--out", __file__], "cannot make this folder"),
    ],
)
def test_bad_options_are_one_sentence(
    benchmark,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    told: str,
):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SystemExit, match="2"):
        run(benchmark, monkeypatch, data, *options)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("box_to_mask: error: ")
    assert told in line


def test_a_missing_picture_is_one_sentence_and_nothing_is_written(
    benchmark, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (data / "2.png").unlink()
    with pytest.raises(SystemExit, match="2"):
        run(benchmark, monkeypatch, data, "--model", "none", "--out", str(data / "out"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("box_to_mask: error: ")
    assert "2.png" in line
    assert not (data / "out").exists()


def test_a_stop_is_no_traceback(
    benchmark, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(benchmark, "compare", stop)
    with pytest.raises(SystemExit, match="130"):
        run(benchmark, monkeypatch, data, "--model", "none", "--out", str(data / "out"))
    assert capsys.readouterr().err == "box_to_mask: stopped\n"
    assert not (data / "out").exists()


class TransformersDouble:
    """As much of transformers as SAM needs, after its documentation; the mask of a box is the filled box."""

    def __init__(self, with_reshaped_sizes: bool) -> None:
        self.with_reshaped_sizes = with_reshaped_sizes
        self.loaded: list[str] = []
        for prefix in ("Sam", "Sam2"):
            setattr(self, f"{prefix}Model", self)
            setattr(self, f"{prefix}Processor", self)

    def from_pretrained(self, weights: str):
        self.loaded.append(weights)
        return self

    def eval(self):
        return self

    def to(self, device: str):
        return self

    def __call__(self, **inputs):
        if "images" not in inputs:
            assert inputs["multimask_output"] is False
            return SimpleNamespace(pred_masks=inputs["boxes"][None, :, None])
        width, height = inputs["images"].size
        boxes = torch.tensor(inputs["input_boxes"])
        assert boxes.ndim == 3  # image, box, coordinate
        sizes = {"original_sizes": torch.tensor([[height, width]])}
        sizes |= {"reshaped_input_sizes": torch.tensor([[768, 1024]])} if self.with_reshaped_sizes else {}
        return BatchDouble(boxes=boxes[0], **sizes)

    def post_process_masks(self, masks, original_sizes, *reshaped_sizes):
        assert len(reshaped_sizes) == self.with_reshaped_sizes
        height, width = original_sizes[0].tolist()
        left, top, right, bottom = masks[0, :, :, :, None, None].unbind(2)
        y, x = torch.arange(height)[:, None] + 0.5, torch.arange(width) + 0.5
        return [(x >= left) & (x < right) & (y >= top) & (y < bottom)]


class BatchDouble(dict):
    def to(self, device: str):
        return self


@pytest.mark.parametrize(
    ("name", "weights"), [("sam", "facebook/sam-vit-base"), ("sam2:folder", "folder"), ("sam2:a/b:c", "a/b:c")]
)
def test_sam_gives_one_mask_per_box(benchmark, monkeypatch: pytest.MonkeyPatch, name: str, weights: str):
    methods = importlib.import_module("mask_methods")
    double = TransformersDouble(with_reshaped_sizes=name == "sam")
    monkeypatch.setitem(sys.modules, "transformers", double)
    masks = methods.create_method(name, "cpu")
    assert double.loaded == [weights, weights]
    image, boxes = (
        torch.zeros(3, 30, 40, dtype=torch.uint8),
        torch.tensor([[2.0, 3.0, 9.0, 8.0], [20.0, 1.0, 40.0, 30.0]]),
    )
    assert torch.equal(masks(image, boxes), benchmark.filled_boxes(image, boxes))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sam", "sam2"])
def test_sam_of_transformers_runs_with_random_weights(benchmark, name: str):
    pytest.importorskip("transformers")
    masks = importlib.import_module("mask_methods").create_method(name, "cpu", random_weights=True)
    found = masks(
        torch.zeros(3, 48, 64, dtype=torch.uint8), torch.tensor([[8.0, 8.0, 40.0, 40.0], [1.0, 2.0, 60.0, 47.0]])
    )
    assert found.shape == (2, 48, 64)
    assert found.dtype == torch.bool


def test_speed_of_models_in_turns(
    benchmark, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    speed = importlib.import_module("box_to_mask_speed")
    asked = []

    def method(name: str, device: str, random_weights: bool):
        return lambda image, boxes: asked.append((name, tuple(image.shape), len(boxes))) or torch.zeros(10, 480, 640)

    monkeypatch.setattr(speed, "create_method", method)
    out = tmp_path / "speed.json"
    monkeypatch.setattr(sys, "argv", ["box_to_mask_speed.py", "new", "old", "--repeats", "2", "--json", str(out)])
    speed.main()
    assert asked == [(name, (3, 480, 640), 10) for name in ("new", "old") * 2]
    content = json.loads(out.read_text())["models"]
    assert content["new"]["ratio"] == 1
    assert content["old"]["ratio"] == pytest.approx(content["old"]["cpu_seconds"] / content["new"]["cpu_seconds"])
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()[-2:]] == ["new", "old"]
