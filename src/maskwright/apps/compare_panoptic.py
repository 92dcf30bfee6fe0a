"""Panoptic quality of one COCO panoptic file against another."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from maskwright.data.categories import match_name, parse_categories
from maskwright.data.panoptic import read_id_map
from maskwright.data.panoptic_annotations import NO_AREA, PanopticIndex, index_panoptic_annotations, map_folder
from maskwright.data.problems import reading_notes
from maskwright.errors import UserError
from maskwright.evaluation.panoptic_quality import PanopticQuality, SegmentMap, rows_of_map
from maskwright.files import read_json_object
from maskwright.structures import Category


def compare_panoptic_files(
    annotations: str | Path,
    predictions: str | Path,
    segmentations: str | Path | None = None,
    predicted_segmentations: str | Path | None = None,
    variant: str = "official",
) -> PanopticQuality:
    """Panoptic quality of a file of predictions against a file of annotations, as panopticapi's script takes them.

    Args:
        annotations: a COCO panoptic file; it may lack `images`. Its own areas count, where it has them. Images without
            an annotation are left out.
        predictions: a file with `annotations` of the same form, of which those of the annotated images are read; the
            ids of images and categories are those of the other file. Areas are counted in the PNGs. A segment without
            a pixel is an error.
        segmentations: the folder of the PNGs of `annotations`; None takes the one beside it that is named like it.
        predicted_segmentations: the same of `predictions`.
        variant: as of `PanopticQuality`.

    Raises:
        UserError: an unusable file or PNG, an image without a prediction, a broken predicted segment, categories that
            do not agree, or an unknown variant.
    """
    truth_folder = map_folder(annotations, segmentations)
    truth = _read_truth(annotations, truth_folder)
    predicted = _read_predictions(predictions, truth)
    folder = map_folder(predictions, predicted_segmentations, "predicted_segmentations")
    metric = PanopticQuality(truth.categories, variant)
    places = {identity: row for row, identity in enumerate(predicted.image_ids.tolist())}
    identities = tqdm(truth.image_ids.tolist(), unit="image", file=sys.stderr, desc="evaluate", disable=None)
    for row, identity in enumerate(identities):
        prediction, annotated = _segments(predicted, places[identity], folder), _segments(truth, row, truth_folder)
        listed = truth.areas[truth.rows_of(row)]
        annotated = replace(annotated, areas=np.where(listed == NO_AREA, annotated.areas, listed))
        try:
            metric.add(identity, prediction, annotated)
        except ValueError as error:
            raise UserError(f"{predictions}: {error}") from error
    return metric


def tell_reading(annotations: str | Path, skipped: Mapping[str, int], repaired: Mapping[str, int]) -> None:
    """Count on standard error the entries of a file that were repaired, and those that were left out, by kind."""
    for note in reading_notes(str(annotations), skipped, repaired):
        print(note, file=sys.stderr)


def _read_truth(annotations: str | Path, folder: Path) -> PanopticIndex:
    content = read_json_object(annotations, ("annotations", "categories"))
    if "images" not in content:
        content["images"] = _images(content["annotations"], folder, str(annotations))
    truth = index_panoptic_annotations(content, str(annotations))
    truth.refuse_unusable()
    tell_reading(annotations, truth.skipped, truth.repairs.counts)
    return truth


def _read_predictions(predictions: str | Path, truth: PanopticIndex) -> PanopticIndex:
    """The predictions of all images of `truth`, in its categories."""
    content, source = read_json_object(predictions, ("annotations",)), str(predictions)
    if "categories" in content:
        _require_same_meaning(parse_categories(content["categories"], source), truth.categories, source, truth.source)
    images = _annotated_images(truth)
    listed = {"images": images, "annotations": _of_images(content["annotations"], images)}
    predicted = index_panoptic_annotations({**listed, "categories": truth.categories}, source)
    missing = sorted(set(truth.image_ids.tolist()) - set(predicted.image_ids.tolist()), key=str)
    without = ("image without annotation", "no usable annotation")  # what follows from the others, or from `missing`
    broken = [problem for problem in predicted.problems if problem.kind not in without]
    if broken:
        raise UserError(f"{source}: {broken[0]} ({len(broken)} problems in all)")
    if missing:
        raise UserError(
            f"{source}: no annotation has the image_id {missing[0]!r} ({len(missing)} of the {len(images)} annotated "
            f"images of {truth.source} are missing); expected one annotation for each"
        )
    return predicted


def _require_same_meaning(found: list[Category], expected: list[Category], source: str, other: str) -> None:
    """Refuse files that mean two classes by one id."""
    names = {category["id"]: category["name"] for category in found}
    for category in expected:
        name = names.get(category["id"], category["name"])
        if match_name(name, [category["name"]]) is None:
            raise UserError(
                f"{source}: category {category['id']} is {name!r}, but in {other} it is {category['name']!r}; "
                "expected the same ids in both"
            )


def _images(entries: Any, folder: Path, source: str) -> list[dict[str, Any]]:
    """Entries of `images` for a file that has none: one for each annotation, of the size of its PNG."""
    images = []
    for entry in entries if isinstance(entries, list) else []:
        name = entry.get("file_name") if isinstance(entry, dict) else None
        try:
            with Image.open(folder / str(name)) as stored:
                size = {"height": stored.height, "width": stored.width}
        except OSError as error:
            raise UserError(f"{source}: cannot read the segmentation {folder / str(name)}: {error}") from error
        images.append({"id": entry.get("image_id"), "file_name": name, **size})
    return images


def _annotated_images(truth: PanopticIndex) -> list[dict[str, Any]]:
    """Entries of `images` for the images of an index."""
    images = [truth.image(row) for row in range(len(truth.image_ids))]
    return [
        {"id": image.id, "file_name": image.file_name, "height": image.size[0], "width": image.size[1]}
        for image in images
    ]


def _of_images(entries: Any, images: list[dict[str, Any]]) -> Any:
    """The entries of `annotations` without those of other images; what is no such entry stays, to be told of."""
    known = {image["id"] for image in images}
    if not isinstance(entries, list):
        return entries
    identities = [entry.get("image_id") if isinstance(entry, dict) else None for entry in entries]
    pairs = zip(entries, identities, strict=True)
    return [entry for entry, identity in pairs if type(identity) not in (int, str) or identity in known]


def _segments(index: PanopticIndex, row: int, folder: Path) -> SegmentMap:
    """One image of a file; areas are counted in its PNG."""
    part = index.rows_of(row)
    id_map = read_id_map(folder / index.map_names[row], index.image(row).size, index.source)
    rows = rows_of_map(id_map, index.ids[part])
    return SegmentMap.count(rows, index.category_rows[part], index.iscrowd[part])
