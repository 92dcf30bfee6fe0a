"""`maskwright data check RECIPE`: every file of a recipe, and the one data set that its sets are united to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import cast

import numpy as np

from maskwright.apps.check_data import DataReport, image_problems, report_of, table
from maskwright.data.dataset import DataSource, Inspection, SegmentationDataset
from maskwright.data.formats import format_of, open_data_set
from maskwright.data.normalise import Kind, Repairs
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.problems import Problem
from maskwright.data.shards import ShardedInstances
from maskwright.data.union import UnionDataset, UnionSource, open_union
from maskwright.training.options import DataOptions
from maskwright.training.recipes import resolve_recipe


def check_recipe(path: str | Path) -> DataReport:
    """Check the training and validation files of a recipe, with all their images; of one set as the file itself.

    Of several sets (`data.sets`) the report shows the union: of each set its images, boxes (crowds apart), masks that
    are learnt and share of the draws, of each class how many boxes and masks it has in which set.

    Raises:
        UserError: the recipe or its sets cannot be used, or a file is of no known format.
    """
    options = resolve_recipe(path).data
    training = options.training_source()
    if isinstance(training, DataSource):
        return _check_one_set(training, options)
    validation = cast(UnionSource, options.validation_source())
    files = dict(training.sets)
    if options.has_validation_files:
        files |= {f"the validation of {name}": source for name, source in validation.sets.items()}
    problems, repairs = _check_files(files, options)
    if any(problem.effect == "refused" for problem in problems):
        return DataReport(str(path), [f"{len(training.sets)} sets"], [], repairs, problems)
    union = open_union(training, options.task)
    aside = open_union(replace(validation, categories=union.categories), options.task)
    problems += _training_problems(union, aside, options)
    rows = _set_rows(union, aside if options.has_validation_files else None)
    summary = [f"{len(union.sets)} sets: {union.contents()}", *table(rows)]
    return DataReport(str(path), summary, _class_rows(union), repairs, problems)


def _check_one_set(training: DataSource, options: DataOptions) -> DataReport:
    """The report on the training file; counts and problems of a validation file stand below its own."""
    if not options.has_validation_files:
        return report_of(_inspect(training, options))
    validation = cast(DataSource, options.validation_source())
    learnt, measured = (report_of(_inspect(source, options), needed=1) for source in (training, validation))
    problems = [replace(problem, id=f"{problem.id} of {measured.source}") for problem in measured.problems]
    if not any(problem.effect == "refused" for problem in (*learnt.problems, *problems)):
        open_data_set(replace(validation, categories=open_data_set(training).categories))  # refuses other classes
    repairs = Repairs()
    for report in (learnt, measured):
        _add_repairs(repairs, report.repairs, report.source)
    summary = [*learnt.summary, f"validation: {measured.source}", *(f"  {line}" for line in measured.summary)]
    return replace(learnt, summary=summary, repairs=repairs, problems=[*learnt.problems, *problems])


def _inspect(source: DataSource, options: DataOptions) -> Inspection:
    """The file with its images; those of shards lie in them."""
    kind = format_of(source.annotations, options.task)
    pictures = None if kind is ShardedInstances else PictureFolder(source.images, source.exif)
    return kind.inspect(source.annotations, source.segmentations, pictures)


def _add_repairs(repairs: Repairs, others: Repairs, name: str) -> None:
    for kind, count in others.counts.items():
        repairs.add(Kind(kind), f"{others.examples[kind]} of {name}", count)


def _check_files(files: Mapping[str, DataSource], options: DataOptions) -> tuple[list[Problem], Repairs]:
    """What is wrong with the files, each by the name of its set, and with their images."""
    problems, repairs = [], Repairs()
    for name, source in files.items():
        found = _inspect(source, options)
        own = [*found.problems, *image_problems(found)]
        problems += [replace(problem, id=f"{problem.id} of {name}") for problem in own]
        _add_repairs(repairs, found.repairs, name)
    return problems, repairs


def _training_problems(training: UnionDataset, validation: UnionDataset, options: DataOptions) -> list[Problem]:
    """Training needs an image to learn from, and another one to validate on."""
    separate = options.has_validation_files
    needs = {"learn from": (training, 1 if separate else 2), "validate on": (validation, 1)}
    return [
        Problem(
            "file",
            "as a whole",
            f"too few images to {purpose}",
            f"{dataset.source} have fewer than {count} images with a usable mask to {purpose}"
            + ("" if separate else "; without validation_annotations some are set aside"),
            "not for training",
        )
        for purpose, (dataset, count) in needs.items()
        if not _has_masks_in(dataset, count)
    ]


def _has_masks_in(dataset: SegmentationDataset, count: int) -> bool:
    with_masks = (index for index in range(len(dataset)) if dataset.mask_labels(index))
    return len(list(islice(with_masks, count))) == count


def _set_rows(union: UnionDataset, validation: UnionDataset | None) -> list[dict[str, str]]:
    """A row for each set."""
    weights = union.sampling_weights
    shares = np.full(len(union), 1 / len(union)) if weights is None else (weights / weights.sum()).numpy()
    rows, start = [], 0
    for name, part in union.sets.items():
        masks, boxes = part.count_instances()
        row = {"set": name, "images": str(len(part)), "boxes": str(masks + boxes), "masks": str(masks)}
        row["share"] = f"{shares[start : start + len(part)].sum():.1%}"
        if validation is not None:
            row["validation images"] = str(len(validation.sets[name])) if name in validation.sets else "-"
        rows.append(row)
        start += len(part)
    return rows


def _class_rows(union: UnionDataset) -> list[dict[str, str]]:
    """A row for each class: its boxes and its masks among them (`9/4`), in each set."""
    instances = union.instances
    starts = np.cumsum([len(part) for part in union.sets.values()])
    counts = np.zeros((2, len(union.categories), len(union.sets)), dtype=np.int64)
    places = (instances.labels, np.searchsorted(starts, instances.images, side="right"))
    np.add.at(counts[0], places, 1)
    np.add.at(counts[1], places, instances.has_mask)
    return [
        {"boxes/masks": category["name"]}
        | {
            name: f"{boxes}/{masks}" if boxes else "-"
            for name, boxes, masks in zip(union.sets, *counts[:, label].tolist(), strict=True)
        }
        for label, category in enumerate(union.categories)
    ]
