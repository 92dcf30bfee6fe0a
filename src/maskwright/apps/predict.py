"""`maskwright predict`: pictures in; COCO results or panoptic maps, overlays and mask pictures out."""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from maskwright import __version__
from maskwright.apps.given_boxes import Job, boxes_of_pictures
from maskwright.apps.journalled import keep_results, waiting_jobs
from maskwright.apps.named_models import AnyPredictor, NamedModel, load_named
from maskwright.apps.outputs import check_can_make, output_folder
from maskwright.apps.predict_pictures import PictureJob, PicturePredictor, Record, map_name
from maskwright.apps.processes import run_jobs
from maskwright.apps.results import RESULTS, write_results
from maskwright.apps.run_summary import RunSummary
from maskwright.data.orientation import ExifRule
from maskwright.data.picture_files import find_pictures
from maskwright.drawing.overlays import OverlayStyle
from maskwright.errors import UserError
from maskwright.journal import Journal
from maskwright.prompts import DEFAULT_MODEL, MAX_DETECTIONS, check_score_threshold
from maskwright.training.recipe_names import recipe_names


@dataclass(frozen=True)
class PredictOptions:
    """What `maskwright predict` is asked for.

    Attributes:
        boxes: the boxes: `x1,y1,x2,y2;...` for one image, or a file or folder of boxes (`read_box_file`); in pixels of
            the upright image (a COCO file: of the image as it gives its size).
        annotations: a COCO file that says what the ids of a COCO results list in `boxes` are.
        exif: what boxes of images with an EXIF orientation were drawn on (`choose_frame`).
        model: a bundled model, a weights folder, a Hub repository, or an exported file.
        out: folder for the results and the pictures; made where it is missing.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        precision: see `Predictor`.
        compile: see `Predictor`.
        processes: that share the pictures, each with the model.
        masks: also write every mask as a black-and-white PNG.
        score_threshold: without boxes, the smallest score of a detection, in 0..1.
        max_detections: without boxes, how many instances an image has at most.
        strict: stop at the first picture or box that fails.
        overlays: write the overlays.
        overlay_style: how they look.
    """

    boxes: str | None = None
    annotations: str | None = None
    exif: ExifRule = "auto"
    model: str = DEFAULT_MODEL
    out: str = "masks"
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    processes: int = 1
    masks: bool = False
    score_threshold: float = 0.3
    max_detections: int = MAX_DETECTIONS
    strict: bool = False
    overlays: bool = True
    overlay_style: OverlayStyle = field(default_factory=OverlayStyle)

    def __post_init__(self) -> None:
        check_score_threshold(self.score_threshold)
        for name, value in (("max-detections", self.max_detections), ("processes", self.processes)):
            if value < 1:
                raise UserError(f"--{name}: expected 1 or more, but got {value}")
        if self.annotations is not None and self.boxes is None:
            raise UserError("--annotations says what the ids of --boxes RESULTS.json are; it needs --boxes")


def predict_files(images: Sequence[str], options: PredictOptions) -> RunSummary:
    """Predict every image and write the results; one line per image on stdout: file, masks, overlay.

    In the options' folder `out`: `predictions.json` (`write_results`), `NAME_overlay.jpg` per image and, if asked for,
    `NAME_mask_K.png` per instance; of a panoptic model `panoptic.json`, `NAME_panoptic.png` and `NAME_overlay.jpg`.
    Each file appears whole. Until the end the results stand in a journal beside them, with which the same command goes
    on after Ctrl-C, a kill or a full disk; then `predictions.json` is written in the order of the images, and replaces
    that of an earlier run. What became of everything is summed up on stderr.

    Args:
        images: files, folders and glob patterns (see `find_pictures`).
        options: see `PredictOptions`.

    Raises:
        UserError: something that no image can be predicted with (model, device, box file, output), no image at all
            could be predicted, or with `strict` the first that could not. What fails of some images and boxes is only
            counted in the summary.
    """
    summary = RunSummary(options.strict)
    found = find_pictures(images, options.out)
    for reason, path in found.left_out:
        summary.note("left out", f"picture that is {reason}", path)
    pairs: list[Job] = [(path, None) for path in found.paths]
    if options.boxes is not None:
        pairs = boxes_of_pictures(options.boxes, found.paths, summary, options.annotations, options.exif)
    model = _load(options)
    predictor = model.predictor
    options = replace(options, precision=predictor.precision)  # the same one in all processes
    out = _output_folder(options, predictor)
    jobs = _jobs(pairs, out)
    journal_path = (out / RESULTS[predictor.task]).with_suffix(".journal")
    if predictor.task == "panoptic" and not journal_path.exists():
        _refuse_to_overwrite(jobs, out)
    work = PicturePredictor(options, out, predictor)
    with output_folder(out), Journal.open(journal_path, _header(jobs, options, model)) as journal:
        _predict(jobs, work, journal, options)
        _finish(jobs, journal, summary, predictor, out)
    return summary


def _predict(jobs: Sequence[PictureJob], work: PicturePredictor, journal: Journal, options: PredictOptions) -> None:
    """Predict what the journal lacks, and write it there."""
    results = run_jobs(work, waiting_jobs(jobs, journal), options.processes)
    keep_results(_strict(results, RunSummary(options.strict)), jobs, journal, done=_print_line)


def _strict(results: Iterator[tuple[PictureJob, Record]], summary: RunSummary) -> Iterator[tuple[PictureJob, Record]]:
    for job, record in results:
        for cause, sentence in record["failed"]:
            summary.note("failed", cause, sentence)
        yield job, record


def _print_line(record: Record) -> None:
    if "line" in record:
        with tqdm.external_write_mode(file=sys.stdout):
            print(record["line"], flush=True)


def _finish(
    jobs: Sequence[PictureJob], journal: Journal, summary: RunSummary, predictor: AnyPredictor, out: Path
) -> None:
    """Write the results of a whole journal, remove it, and sum up.

    Raises:
        UserError: no image could be predicted, or the results cannot be written.
    """
    failures: list[tuple[str, str]] = []
    usable = False
    for position, record in journal.items():
        usable |= record["usable"]
        failures += record["failed"]
        if record.get("capped"):
            told = "image with as many detections as --max-detections allows; there may be more"
            summary.note("left out", told, jobs[position].path)
    if not usable:
        journal.finish()
        raise UserError(failures[0][1] + (f" ({len(failures)} failures in all)" if len(failures) > 1 else ""))
    told = write_results(journal, predictor, out)
    journal.finish()
    for cause, sentence in failures:
        summary.note("failed", cause, sentence)
    print(f"{told}, computed in {predictor.precision}", file=sys.stderr)
    summary.print()


def _load(options: PredictOptions) -> NamedModel:
    """The model.

    Raises:
        UserError: there is no such model, or it does not go with the other options.
    """
    refuse_what_is_no_model(options.model)
    model = load_named(options.model, options.device, options.precision, options.compile)
    predictor = model.predictor
    if options.boxes is None and predictor.needs_boxes:
        raise UserError(
            f"{options.model} has no detector and needs boxes: add --boxes, as "
            '"x1,y1,x2,y2;...", as a JSON file {"photo.jpg": [[x1, y1, x2, y2], ...]} or as a COCO file'
        )
    if predictor.task == "panoptic" and (options.boxes is not None or options.masks):
        raise UserError(f"{options.model} finds all segments by itself: it takes no --boxes and has no --masks")
    return model


def refuse_what_is_no_model(name: str) -> None:
    """Refuse the folder of a training run, or a recipe, with a word on what to give.

    Raises:
        UserError: so.
    """
    weights = next(
        (Path(name) / part for part in ("best", "last") if (Path(name) / part / "config.json").is_file()), None
    )
    if weights is not None and not (Path(name) / "config.json").exists():
        raise UserError(f"--model {name}: this is the folder of a training run; its weights are in {weights}")
    if name in recipe_names() or Path(name).suffix in (".yaml", ".yml"):
        told = "a weights folder, or a bundled model (see `maskwright models`)"
        raise UserError(f"--model {name}: this is a recipe, which `maskwright train` makes a model of; expected {told}")


def _output_folder(options: PredictOptions, predictor: AnyPredictor) -> Path:
    folder = Path(options.out)
    results = folder / RESULTS[predictor.task]
    if results.is_dir():
        raise UserError(f"--out {folder}: {results.name} in it is a folder; expected to write a file of this name")
    if options.boxes is not None and os.path.realpath(options.boxes) == str(results.resolve()):
        raise UserError(f"--out {folder}: its {results.name} would overwrite the boxes; give another folder")
    check_can_make(folder)
    if results.exists() and predictor.task == "instance":
        print(f"{results} of an earlier run will be replaced at the end", file=sys.stderr)
    return folder


def _refuse_to_overwrite(jobs: Sequence[PictureJob], out: Path) -> None:
    """Refuse a folder that has panoptic maps of an earlier run: its file would name some of them no longer.

    Raises:
        UserError: so.
    """
    for name in (RESULTS["panoptic"], *map(map_name, jobs)):
        if (out / name).exists():
            raise UserError(f"{out / name} exists already and is not overwritten; give another folder as --out")


def _jobs(pairs: Sequence[Job], out: Path) -> list[PictureJob]:
    paths = [path for path, _ in pairs]
    identities = _image_ids(paths)
    names = _output_names(paths, out)
    return [
        PictureJob(position, path, boxes, identities[path], names[position])
        for position, (path, boxes) in enumerate(pairs)
    ]


def _image_ids(paths: Sequence[Path]) -> dict[Path, str]:
    """The file name where it is unique among the images, else the path."""
    counts = Counter(path.name for path in dict.fromkeys(paths))
    return {path: path.name if counts[path.name] == 1 else path.as_posix() for path in paths}


def _output_names(paths: Sequence[Path], out: Path) -> list[str]:
    """A name per image for its outputs: its stem, numbered where that would overwrite an output or an input."""
    inputs = {path.stem.casefold() for path in paths if path.resolve().parent == out.resolve()}
    taken: set[str] = set()
    names: list[str] = []
    for path in paths:
        name, number = path.stem, 1
        while _clashes(name.casefold(), taken, inputs):
            number += 1
            name = f"{path.stem}_{number}"
        taken.add(name.casefold())
        names.append(name)
    return names


def _clashes(name: str, taken: set[str], inputs: set[str]) -> bool:
    outputs = (f"{name}_overlay", f"{name}_mask_", f"{name}_panoptic")
    return name in taken or any(stem.startswith(outputs) for stem in inputs)


def _header(jobs: Sequence[PictureJob], options: PredictOptions, model: NamedModel) -> dict[str, Any]:
    """What the run is: all that could change a result."""
    pictures, boxes = hashlib.sha256(), hashlib.sha256()
    for job in jobs:
        pictures.update(f"{job.path.absolute()}\n{job.path.stat().st_size}\n".encode(errors="surrogateescape"))
        given = job.boxes
        if given is not None:
            boxes.update(given.boxes.tobytes())
            boxes.update(
                repr([value for key, value in vars(given).items() if key != "boxes"]).encode(errors="backslashreplace")
            )
    told = asdict(options)
    for key in ("boxes", "annotations", "model", "out", "device", "processes", "strict"):
        del told[key]
    return {
        "version": __version__,
        "model": f"{model.weights} on {model.kind_of_device}",
        "images": pictures.hexdigest(),
        "boxes": boxes.hexdigest(),
        **told,
    }
