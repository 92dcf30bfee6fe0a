import errno
import json
import signal
from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from refusals import refused

import maskwright
from maskwright.errors import UserError
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.measurement import MasksFromBoxes, measurements_of
from maskwright.models.deep_mac import DeepMAC
from maskwright.models.hub import from_pretrained
from maskwright.ops.crop import crop_masks
from maskwright.structures import InstancePrediction
from maskwright.training import callbacks
from maskwright.training.data_sets import open_data_sets
from maskwright.training.engine import train_recipe
from maskwright.training.recipes import resolve_recipe
from maskwright.training.run import main
from maskwright.training.run_folder import read_best_score
from maskwright.training.task import TrainingTask


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def losses(directory):
    return [tuple(line.items()) for line in lines(directory / "losses.jsonl")]


def changed(recipe, **trainer):
    return replace(recipe, trainer=replace(recipe.trainer, **trainer))


@pytest.fixture
def recipe(arguments):
    return resolve_recipe(arguments[0], arguments[1:])


def test_a_run_leaves_its_recipe_records_checkpoint_and_weights(recipe, tmp_path):
    result = train_recipe(recipe)

    run = tmp_path / "run"
    assert (result.folder, result.step, result.signal_number) == (run, 6, None)
    assert resolve_recipe(run / "recipe.yaml").model == recipe.model
    assert [line["step"] for line in lines(run / "losses.jsonl")] == [1, 2, 3, 4, 5, 6]
    assert [line["step"] for line in lines(run / "validation.jsonl")] == [4, 6]
    model = from_pretrained(run / "last")
    assert [category["name"] for category in model.categories] == ["person", "dog", "kite"]
    assert model.mask_classes == ["person"]
    assert any(entry.name.startswith("events") for entry in (run / "tensorboard").iterdir())


def test_saved_weights_are_the_averaged_ones_and_the_checkpoint_is_plain_data(recipe, tmp_path):
    train_recipe(recipe)
    checkpoint = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)
    model = from_pretrained(tmp_path / "run" / "last")
    saved, names = model.state_dict(), [name for name, weight in model.named_parameters() if weight.ndim > 1]

    assert len(names) > 20
    for name in names:
        assert torch.equal(saved[name], checkpoint["state_dict"][f"model.{name}"]), name
        assert not torch.equal(saved[name], checkpoint["current_model_state"][f"model.{name}"]), name
    assert "mask_classes: person" in checkpoint["recipe"]


def test_validation_measures_the_weights_that_are_saved(recipe, tmp_path):
    metrics = train_recipe(recipe).metrics
    model = from_pretrained(tmp_path / "run" / "last")
    metric = MaskIoU(model.categories, ["person"])
    dataset = open_data_sets(recipe.data, 64, None).validation
    for image, target in (dataset[index] for index in range(len(dataset))):
        with torch.no_grad():
            metric.update(model.masks_from_boxes(model.encode([image]), [target["boxes"]]), [target])
    assert metric.compute()["mask_iou"] == pytest.approx(metrics["mask_iou"], abs=1e-4)


def test_validation_tells_the_model_the_classes_of_the_boxes(recipe, ellipse_model):
    dataset = open_data_sets(recipe.data, 64, None).validation
    ellipse_model.categories, ellipse_model.mask_classes = dataset.categories, ["person"]
    image, target = dataset[0]
    (measurement,) = measurements_of(ellipse_model)
    measurement.update([image], [target])
    assert ellipse_model.told == [target["labels"].tolist()] == [[0, 1, 2]]


def test_seen_and_unseen_classes_are_told_apart_and_box_only_classes_do_not_count(recipe, tmp_path):
    metrics = train_recipe(recipe).metrics
    # 4 images, each with a person (seen), a dog (unseen) and a kite, which has a box only.
    assert [metrics[f"instances{group}"] for group in ("", "_seen", "_unseen")] == [8, 4, 4]


def test_a_model_with_a_detector_is_validated_by_what_it_finds(arguments, tmp_path, monkeypatch, capsys):
    recipe = resolve_recipe(arguments[0], [*arguments[1:], "--model.detector=centernet"])
    dataset = open_data_sets(recipe.data, 64, None).validation
    truth = {int(image.sum()): target for image, target in (dataset[index] for index in range(len(dataset)))}

    def find_all_but_kites(self, images, score_threshold, max_detections):
        assert (score_threshold, max_detections) == (0.0, 100)
        return [_found(truth[int(image.sum())], image) for image in images]

    monkeypatch.setattr(DeepMAC, "predict", find_all_but_kites)
    assert main([*arguments, "--model.detector=centernet"]) == 0
    validations = lines(tmp_path / "run" / "validation.jsonl")
    assert list(json.loads((tmp_path / "run" / "best.json").read_text())) == ["step", "mask_ap"]
    assert f"finished 6 steps; mask_ap {validations[-1]['mask_ap']:.4f}\n" in capsys.readouterr().err
    for line in validations:
        # Kites have boxes only: missing them costs box AP alone.
        assert [line[f"box_ap{group}"] for group in ("", "_seen", "_unseen")] == pytest.approx([2 / 3, 1, 1 / 2])
        assert line["mask_ap50_seen"] == line["mask_ap50_unseen"] == 1
        assert line["mask_ap"] > 0.8


def _found(target, image):
    rows = target["labels"] != 2
    boxes, masks = target["boxes"][rows], target["masks"][rows].planes()
    certain = torch.ones(len(boxes))
    size = (image.shape[1], image.shape[2])
    crops = crop_masks(masks, boxes, 16, "corner")
    return InstancePrediction(boxes, target["labels"][rows], certain, certain, crops, size, "corner")


def test_a_model_without_a_detector_is_validated_by_its_masks_alone(recipe):
    metrics = train_recipe(changed(recipe, steps=2)).metrics
    assert "mask_iou" in metrics
    assert not any(name.startswith(("box_", "mask_ap")) for name in metrics)


def test_best_of_a_model_without_a_detector_is_the_validation_with_the_highest_mask_iou(recipe, tmp_path):
    train_recipe(changed(recipe, steps=8, validate_every_steps=2))
    scores = {line["step"]: line["mask_iou"] for line in lines(tmp_path / "run" / "validation.jsonl")}
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best["mask_iou"] == max(scores.values())
    assert scores[best["step"]] == best["mask_iou"]


def test_best_of_equal_validations_is_the_last(recipe, tmp_path, monkeypatch):
    scores = iter([0.0, 0.5, 0.5, 0.25])
    monkeypatch.setattr(MasksFromBoxes, "compute", lambda self: {"mask_iou": next(scores)})
    train_recipe(changed(recipe, steps=8, validate_every_steps=2))
    assert json.loads((tmp_path / "run" / "best.json").read_text()) == {"step": 6, "mask_iou": 0.5}


def test_weights_that_another_number_chose_are_not_the_best(tmp_path):
    assert read_best_score(tmp_path, "mask_ap") == -float("inf")
    (tmp_path / "best.json").write_text('{"step": 6, "mask_iou": 0.5}')
    assert read_best_score(tmp_path, "mask_iou") == 0.5
    assert read_best_score(tmp_path, "mask_ap") == -float("inf")


@pytest.mark.parametrize(("accumulate", "ema_decay"), [(1, None), (2, 0.9)])
def test_a_stopped_and_resumed_run_has_the_losses_of_an_unbroken_one(
    recipe, tmp_path, stop_after, accumulate, ema_decay
):
    recipe = changed(recipe, accumulate=accumulate, ema_decay=ema_decay, steps=9, validate_every_steps=3)
    train_recipe(changed(recipe, output=str(tmp_path / "unbroken")))
    for stop_at in (3, 5):
        with stop_after(stop_at):
            stopped = train_recipe(recipe, resume=stop_at > 3)
        # Step 3 is to be validated: stopped there, the run goes back by one step, so that nothing is left out.
        assert (stopped.step, stopped.signal_number) == (2 if stop_at == 3 else stop_at, signal.SIGINT)
    train_recipe(recipe, resume=True)

    assert losses(tmp_path / "run") == losses(tmp_path / "unbroken")
    assert lines(tmp_path / "run" / "validation.jsonl") == lines(tmp_path / "unbroken" / "validation.jsonl")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_a_checkpoint_and_the_command_that_goes_on(
    arguments, tmp_path, stop_after, capsys, number, code
):
    handlers = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    with stop_after(2, number):
        assert main(arguments) == code
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1] == (
        f"stopped with a checkpoint of step 2; go on with: maskwright train {tmp_path / 'run'} --resume last"
    )
    assert torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] == 2
    assert {each: signal.getsignal(each) for each in handlers} == handlers


def test_a_signal_during_the_last_validation_comes_too_late(recipe, monkeypatch):
    def compute(self):
        signal.raise_signal(signal.SIGINT)
        return {"mask_iou": 0.5}

    monkeypatch.setattr(MasksFromBoxes, "compute", compute)
    result = train_recipe(changed(recipe, validate_every_steps=1000))
    assert (result.step, result.signal_number) == (6, None)


def test_a_checkpoint_of_the_last_step_has_its_weights_beside_it(recipe, tmp_path, monkeypatch):
    """A full disk or a kill while weights are written leaves the checkpoint before, from which the run goes on."""
    save = callbacks.save_pretrained

    def full_at_the_best(model, folder, **given):
        if folder.name == "best" and (tmp_path / "run" / "best").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        save(model, folder, **given)

    monkeypatch.setattr(callbacks, "save_pretrained", full_at_the_best)
    monkeypatch.setattr(MasksFromBoxes, "compute", lambda self: {"mask_iou": 0.5})
    with suppress(OSError):
        train_recipe(recipe)
    assert 4 <= torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["global_step"] < 6
    monkeypatch.setattr(callbacks, "save_pretrained", save)
    train_recipe(recipe, resume=True)
    assert json.loads((tmp_path / "run" / "best.json").read_text())["step"] == 6


def test_too_little_memory_is_one_sentence(recipe, monkeypatch):
    def no_memory(self, batch, batch_idx):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")

    monkeypatch.setattr(TrainingTask, "training_step", no_memory)
    with pytest.raises(UserError, match=r"CUDA out of memory.*: give a smaller data\.batch_size"):
        train_recipe(recipe)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("deep_mac/tiny", "validation_images"),
        ("max_deeplab/tiny", "validation_images"),
        ("max_deeplab/tiny", "validation_segmentations"),
    ],
)
def test_half_of_the_validation_files_is_refused(name, key):
    with pytest.raises(UserError, match=f"data.{key} has no use without data.validation_annotations"):
        resolve_recipe(name, ["--data.images=a", "--data.annotations=b.json", f"--data.{key}=c"])


def test_what_is_trained_on_is_said_first(recipe, capsys):
    train_recipe(changed(recipe, accumulate=2))
    said = capsys.readouterr()
    # 12 images with 3 instances each but one; persons alone have masks to learn, kites have none at all.
    assert "training: 8 images, 7 instances with masks, 14 with boxes only; masks of 1 of 3 classes" in said.err
    assert "validation: 4 images, 8 instances with masks, 4 with boxes only; masks of 2 of 3 classes" in said.err
    assert "seen classes, whose masks are learnt: 1 (person)\n" in said.err
    assert "batch: 4 images (2 per device x 1 device(s) x 2 accumulated)" in said.err
    assert "6/6" in said.err
    assert "loss=" in said.err
    assert said.out == ""


def test_a_run_is_never_overwritten_nor_continued_as_another(arguments, tmp_path, capsys):
    assert main([*arguments, "--trainer.steps=2"]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'run' / 'best'}\n"
    before = (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns

    refused(arguments, tmp_path / "run", "already holds a run", "--resume last", "--trainer.output")
    refused([*arguments, "--trainer.steps=2", "--resume=last"], "has taken its 2 steps", "--trainer.steps")
    refused([*arguments, "--resume", "last", "--trainer.seed=1"], "trainer.seed", "0", "1", "--trainer.output")
    refused([*arguments, "--resume", "last", "--model.mask_head=fcn"], "model.mask_head", "resnet4", "fcn")
    refused([*arguments, "--resume", "best"], "--resume", "last")
    assert (tmp_path / "run" / "last.ckpt").stat().st_mtime_ns == before


def test_other_files_are_not_written_among(arguments, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    refused(arguments, tmp_path / "run", "not an empty folder", "--trainer.output")
    refused([*arguments, "--resume", "last"], tmp_path / "run", "no run to resume")
    assert [entry.name for entry in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("extra", "parts"),
    [
        (["--data.annotations=null"], ["--data.annotations"]),
        (["--data.images=nowhere"], ["nowhere"]),
        (["--data.mask_classes=horse"], ["horse", "person, dog, kite"]),
        (["--data.mask_classes=kite"], ["no image to train on", "mask", "kite", "data.mask_classes"]),
        (["--model.mask_head=resnet5"], ["model", "resnet5"]),
        (["--model.image_size=70"], ["model", "image_size", "70"]),
        (["--optimizer.learning_rate_factors={tail: 2}"], ["learning_rate_factors", "tail"]),
        (["--trainer.strategy=ddb"], ["trainer", "ddb"]),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(arguments, tmp_path, extra, parts):
    refused([*arguments, *extra], *parts)
    assert not (tmp_path / "run").exists()


def test_without_a_recipe_the_known_ones_are_named():
    refused([], "recipe", "deep_mac/tiny")
    refused(["--trainer.steps=3"], "recipe", "deep_mac/tiny")


def test_a_loss_that_is_no_number_ends_the_run(recipe):
    with pytest.raises(UserError, match=r"no longer a finite number at step \d: lower optimizer.learning_rate"):
        train_recipe(replace(recipe, optimizer=replace(recipe.optimizer, learning_rate=1e30, gradient_clip=None)))


def test_mixed_precision_and_channels_last_save_plain_float32_weights(recipe, tmp_path):
    train_recipe(changed(recipe, precision="bf16-mixed", channels_last=True, ema_decay=None))
    weights = from_pretrained(tmp_path / "run" / "last").state_dict()
    assert {weight.dtype for weight in weights.values() if weight.is_floating_point()} == {torch.float32}
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_python_trains_as_the_command_line_does(coco, arguments, tmp_path):
    images, file = coco
    values = {
        "data.images": images,
        "data.annotations": str(file),
        "data.mask_classes": ["person", "dog"],
        "data.validation_share": 0.5,
        "trainer.output": tmp_path / "python",
        "trainer.ema_decay": None,
        "trainer.steps": 2,
    }
    result = maskwright.train(arguments[0], values)
    given = [
        *arguments, "--data.mask_classes=[person, dog]", "--data.validation_share=0.5", "--trainer.ema_decay=null",
        "--trainer.steps=2",
    ]  # fmt: skip
    assert main(given) == 0
    assert losses(result.folder) == losses(tmp_path / "run")
    assert from_pretrained(result.best).mask_classes == from_pretrained(result.last).mask_classes == ["person", "dog"]

    assert maskwright.train(arguments[0], {**values, "trainer.steps": 3}, resume=True).step == 3
    with pytest.raises(UserError, match="imagse"):
        maskwright.train(arguments[0], {"data.imagse": images})
