"""`maskwright complete`: a data set of boxes gets its masks, and not a byte of the rest changes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskwright import __version__
from maskwright.apps.cluster import LOCAL, Cluster, check_address, run_jobs_on_cluster
from maskwright.apps.completion.pictures import CompletionRecord, CompletionSettings, PictureCompleter, software
from maskwright.apps.completion.plan import REPLACEABLE, Choice, CompletionJob, CompletionPlan, plan_completion
from maskwright.apps.completion.result import (
    SECONDS_TO_DRAW,
    completion_table,
    gather,
    plan_table,
    write_completed,
    write_undone,
)
from maskwright.apps.completion.yolo import YoloDataset, read_yolo, write_yolo
from maskwright.apps.journalled import keep_results, waiting_jobs
from maskwright.apps.named_models import NamedModel, load_named
from maskwright.apps.outputs import check_outputs
from maskwright.apps.predict import refuse_what_is_no_model
from maskwright.apps.processes import run_jobs
from maskwright.apps.provenance import MaskSource, NewMask
from maskwright.apps.run_summary import RunSummary
from maskwright.data.categories import labels_of_names
from maskwright.data.orientation import exif_rule
from maskwright.data.picture_folder import PictureFolder, PicturePlace, RemoteFolder, RemotePicture, is_remote
from maskwright.errors import UserError
from maskwright.files import read_content, write_json, write_parts
from maskwright.journal import Journal
from maskwright.prompts import DEFAULT_MODEL

ENGINES = ("processes", "ray")


@dataclass(frozen=True)
class CompleteOptions:
    """What `maskwright complete` is asked for.

    Attributes:
        annotations: COCO file with a box for each object, or the data.yaml of a YOLO detection data set; it stays as it
            is.
        images: folder that the file names are relative to, or the URL of one in a bucket or on a server, as
            s3://BUCKET/FOLDER; of a YOLO data set its folder, if data.yaml names another.
        out: COCO file to write; of a YOLO data set also a folder OUT_labels of segmentation labels. While the work goes
            on, its results stand in OUT.journal; after Ctrl-C, a kill or a full disk the same command goes on from
            there.
        undo: take out of a completed file what was put into it, instead of completing one.
        dry_run: only count what there is to do.
        model: a bundled model (see `maskwright models`), a weights folder, a Hub repository, or a FILE.onnx.
        classes: names of the classes to complete, with commas; by default all.
        replace: what is completed though something stands there, with commas: rectangles (masks that are their box),
            rejected (masks that a review rejected) or unreviewed (masks of a model that no review saw).
        min_quality: masks of a lower quality, in 0..1, are left out. OUT_left_out.json lists them.
        polygons: write polygons with as few corners as hold the same pixels, a hole cut open to the outside, instead of
            run lengths.
        device: cpu, cuda, or auto for a GPU where there is one.
        precision: float32, bfloat16, or auto for bfloat16 where the processor or GPU computes it fast.
        compile: compile the network first: minutes, for many images.
        processes: that share the images, each with the model. 0: one, with ray as many as the cluster has room for.
        engine: processes of this machine, or ray for those of a Ray cluster, each with a GPU if the device is one.
        address: of the Ray cluster: auto for the one that this machine belongs to, HOST or HOST:PORT of its head, or
            local for one that is started here and ended.
        exif: frame of the annotations of images with an EXIF orientation, where you know it: upright or stored; auto
            decides by sizes, boxes and polygons.
    """

    annotations: str | Path
    images: str | Path | None = None
    out: str | Path | None = None
    undo: bool = False
    dry_run: bool = False
    model: str = DEFAULT_MODEL
    classes: str = ""
    replace: str = ""
    min_quality: float = 0.0
    polygons: bool = False
    device: str = "auto"
    precision: str = "auto"
    compile: bool = False
    processes: int = 0
    engine: str = "processes"
    address: str = LOCAL
    exif: str = "auto"

    def __post_init__(self) -> None:
        if self.out is None and (self.undo or not self.dry_run):
            raise UserError("expected --out FILE, the file to write, or --dry-run")
        if self.images is None and not self.undo and not self.is_yolo:
            raise UserError("expected --images DIR, the folder of the pictures")
        exif_rule(self.exif)
        if not 0 <= self.min_quality <= 1 or self.processes < 0:
            raise UserError(
                f"expected min-quality in 0..1 and processes >= 0, but got {self.min_quality:g} and {self.processes}"
            )
        if self.engine not in ENGINES:
            raise UserError(f"engine must be one of {', '.join(ENGINES)}, but got {self.engine!r}")
        if self.address != LOCAL and self.engine != "ray":
            raise UserError(f"--address {self.address} is that of a Ray cluster; expected --engine ray with it")
        for name in self.choice.replace - set(REPLACEABLE):
            raise UserError(f"replace must be some of {', '.join(REPLACEABLE)}, but got {name!r}")

    @property
    def choice(self) -> Choice:
        """Which annotations are completed."""
        return Choice(self.classes, frozenset(name.strip() for name in self.replace.split(",") if name.strip()))

    @property
    def is_yolo(self) -> bool:
        """Whether a YOLO data set is completed."""
        return Path(self.annotations).suffix.lower() in (".yaml", ".yml")

    @property
    def out_file(self) -> Path:
        """The file to write."""
        return Path(str(self.out))

    @property
    def left_out_file(self) -> Path:
        """The list of masks that are not good enough."""
        return self.out_file.with_name(f"{self.out_file.stem}_left_out.json")

    @property
    def labels_folder(self) -> Path:
        """The segmentation labels of a YOLO data set."""
        return self.out_file.with_name(f"{self.out_file.stem}_labels")

    @property
    def journal_file(self) -> Path:
        """Where results stand until the end."""
        return self.out_file.with_name(f"{self.out_file.name}.journal")


OPTIONS = CompleteOptions


def run(**given: Any) -> int:
    """Complete a file, count what there is to do, or undo; returns the exit code."""
    options = CompleteOptions(**given)
    if options.undo:
        check_outputs([options.out_file], options.annotations)
        count = write_undone(Path(options.annotations), options.out_file)
        print(f"{options.out}: {count} annotations as they were before")
        return 0
    if not options.dry_run:
        check_address(options.address)
        _check_outputs(options)
    summary = RunSummary()
    data_set = read_yolo(Path(options.annotations), options.images, summary) if options.is_yolo else None
    plan = completion_plan(options, data_set, summary)
    if options.dry_run:
        summary.print()
        print(plan_table(plan))
        hours = int(plan.wanted.sum()) * SECONDS_TO_DRAW / 3600
        print(f"{plan.wanted.sum()} masks to make: {hours:,.1f} hours of drawing at {SECONDS_TO_DRAW} s each")
    else:
        _complete(plan, data_set, options, summary)
        summary.print()
    return summary.exit_code


def _check_outputs(options: CompleteOptions) -> None:
    check_outputs([options.out_file, options.left_out_file], options.annotations)
    folder = options.labels_folder
    if options.is_yolo and folder.exists() and not options.journal_file.exists():
        raise UserError(f"{folder} exists already; move it away, or give another --out")


def completion_plan(options: CompleteOptions, data_set: YoloDataset | None, summary: RunSummary) -> CompletionPlan:
    """What is to be completed; `data_set` is the YOLO data set, if it is one.

    Raises:
        UserError: see `plan_completion`.
    """
    path = Path(options.annotations)
    content = read_content(path) if data_set is None else data_set.content
    images, exif = str(options.images if data_set is None else data_set.root), exif_rule(options.exif)
    pictures = RemoteFolder(images, exif) if is_remote(images) else PictureFolder(images, exif)
    return plan_completion(content, str(path), pictures, options.choice, summary)


def _complete(
    plan: CompletionPlan, data_set: YoloDataset | None, options: CompleteOptions, summary: RunSummary
) -> None:
    """Make the masks that the journal lacks, and write the file.

    Raises:
        UserError: no picture can be read, or something that concerns all of them: model, device, journal, output.
    """
    out = options.out_file
    if not plan.jobs:
        write_parts(out, [plan.content])
        _write_labels(data_set, {}, options)
        print(f"{out}: there was nothing to complete, so that it is as {plan.source} is")
        return
    if out.exists():
        print(f"{out} of an earlier run will be replaced at the end", file=sys.stderr)
    model = load_completer(options)
    source = MaskSource(model.name, model.weights, __version__)
    header = _header(plan, options, model)
    work = PictureCompleter(_settings(plan, options, model, source), model.predictor)
    with Journal.open(options.journal_file, header) as journal:
        results = _results(work, waiting_jobs(plan.jobs, journal), options, model)
        keep_results(results, plan.jobs, journal, "box", lambda job: len(job.rows))
        completion = gather(plan, journal, options.min_quality, summary)
        if completion.left_out or options.left_out_file.exists():
            write_json(options.left_out_file, completion.left_out)
        write_completed(plan, completion.masks, source, out)
        _write_labels(data_set, completion.masks, options)
        journal.finish()
    print(completion_table(plan, completion))
    print(f"{out}: {len(completion.masks)} new masks, computed in {model.predictor.precision}")


def _write_labels(data_set: YoloDataset | None, masks: Mapping[int, NewMask], options: CompleteOptions) -> None:
    """Write the labels of a YOLO data set; they are there where a run was killed at its very end."""
    if data_set is not None and not options.labels_folder.exists():
        write_yolo(data_set, masks, options.labels_folder)


def load_completer(options: CompleteOptions) -> NamedModel:
    """The model.

    Raises:
        UserError: there is no such model or device, or it takes no boxes.
    """
    refuse_what_is_no_model(options.model)
    loaded = load_named(options.model, options.device, options.precision, options.compile)
    if not loaded.predictor.takes_boxes:
        raise UserError(f"--model {options.model}: expected a model that takes boxes, but it finds all by itself")
    return loaded


def _results(
    work: PictureCompleter, jobs: Sequence[CompletionJob], options: CompleteOptions, model: NamedModel
) -> Iterator[tuple[CompletionJob, CompletionRecord]]:
    if options.engine == "ray":
        cluster = Cluster(options.address, options.processes, gpu=model.kind_of_device == "cuda")
        return run_jobs_on_cluster(work, jobs, cluster)
    return run_jobs(work, jobs, options.processes or 1)


def _settings(
    plan: CompletionPlan, options: CompleteOptions, model: NamedModel, source: MaskSource
) -> CompletionSettings:
    names = [category["name"] for category in plan.index.categories]
    labels = labels_of_names(names, model.predictor.categories)
    return CompletionSettings(
        source=plan.source,
        labels=[*labels, -1],
        made_by=source,
        software=software(),
        device=model.kind_of_device if options.engine == "ray" else options.device,
        precision=model.predictor.precision,  # the same one in all processes
        compile=options.compile,
        exif=exif_rule(options.exif),
        polygons=options.polygons,
    )


_DECISIVE = ("classes", "replace", "min_quality", "polygons", "compile", "exif")


def _header(plan: CompletionPlan, options: CompleteOptions, model: NamedModel) -> dict[str, Any]:
    """What the run is: all that could change a result."""
    return {
        "verb": "complete",
        "version": __version__,
        "model": f"{model.weights} on {model.kind_of_device}",
        "file": hashlib.sha256(plan.content).hexdigest(),
        "images": _pictures_hash(plan.jobs),
        "precision": model.predictor.precision,
        **{name: getattr(options, name) for name in _DECISIVE},
    }


def _pictures_hash(jobs: Sequence[CompletionJob]) -> str:
    digest = hashlib.sha256()
    for job in jobs:
        place, size = _place_and_size(job.path)
        digest.update(f"{place}\n{size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _place_and_size(picture: PicturePlace) -> tuple[Path | str, int | None]:
    if isinstance(picture, RemotePicture):
        return picture.url, picture.size
    return picture.absolute(), picture.stat().st_size
