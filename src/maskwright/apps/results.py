"""The files of all results of `maskwright predict`, made from its journal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from maskwright.apps.named_models import AnyPredictor
from maskwright.data.panoptic_annotations import panoptic_content
from maskwright.files import write_json, write_whole
from maskwright.journal import Journal

RESULTS: dict[str, str] = {"instance": "predictions.json", "panoptic": "panoptic.json"}
"""The file of all results in the output folder, by what the model finds."""


def write_results(journal: Journal, predictor: AnyPredictor, out: Path) -> str:
    """Write the file of all results, in the order of the pictures; says what is in it.

    `predictions.json`: COCO results with compressed RLE; an image's instances in the order of its boxes, also of those
    that could not be used, whose mask is empty and whose score is 0. `image_id` and `category_id` are the box file's,
    else the image's file name and the model's; `box_score` is the box file's, which is a factor of `score`, too; a
    class without a number has a `category_name`. `panoptic.json`: COCO's panoptic format (`maskwright data check
    out/panoptic.json --segmentations out` reads it).

    Raises:
        UserError: the file cannot be written.
    """
    file = out / RESULTS[predictor.task]
    records = (record for _, record in journal.items() if record["usable"])
    if predictor.task == "panoptic":
        images, annotations = [], []
        for record in records:
            images.append(record["image"])
            annotations.append(record["annotation"])
        write_json(file, panoptic_content(images, annotations, predictor.categories), indent=None)
        return f"{sum(len(entry['segments_info']) for entry in annotations)} segments in {file}"
    masks = 0

    def results() -> Iterator[dict[str, Any]]:
        nonlocal masks
        for record in records:
            masks += record["masks"]
            yield from record["results"]

    def write(temporary: Path) -> None:
        with temporary.open("w") as stream:
            _write_list(stream, results())

    write_whole(file, write)
    return f"{masks} masks in {file}"


def _write_list(stream: TextIO, entries: Iterator[Any]) -> None:
    """A JSON list, as `json.dump` writes it, with one entry in memory at a time."""
    stream.write("[")
    for position, entry in enumerate(entries):
        stream.write((", " if position else "") + json.dumps(entry, allow_nan=False))
    stream.write("]\n")
