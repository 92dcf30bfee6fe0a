"""A panoptic model on the images of a COCO panoptic file: in one process, or shared by several."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from maskwright.apps.processes import in_processes, loading_of
from maskwright.data.categories import match_name
from maskwright.data.loaders import Batch, evaluation_loader
from maskwright.data.panoptic import CocoPanoptic, PanopticEntry, new_map_names
from maskwright.errors import UserError
from maskwright.evaluation.panoptic_quality import PanopticQuality, Variant
from maskwright.predictor import Predictor, load
from maskwright.structures import Category, PanopticPrediction, SegmentationModel, SegmentInfo


@dataclass(frozen=True)
class PanopticMeasurement:
    """What is compared with what; arguments as of `evaluate_panoptic.evaluate_panoptic`.

    keep_maps: whether `PanopticMeasured.maps` is wanted.
    rank: which of the `processes` this is; it takes the images rank, rank + processes, ... of the file.
    """

    model: str | Path | Predictor
    images: str | Path
    annotations: str | Path
    segmentations: str | Path | None = None
    variant: Variant = "official"
    batch_size: int = 1
    num_workers: int = 0
    loading: dict[str, Any] = field(default_factory=dict)
    processes: int = 1
    keep_maps: bool = False
    rank: int = 0


class PredictedMap(NamedTuple):
    """The prediction of one image, small enough to keep those of a whole data set.

    image: its entry of `images`; png: the file of its map; annotation: its entry of `annotations`.
    """

    image: dict[str, Any]
    png: bytes
    annotation: dict[str, Any]

    def entry(self) -> PanopticEntry:
        """As `write_panoptic` takes it."""
        with Image.open(io.BytesIO(self.png)) as stored:
            return PanopticEntry(self.image, np.asarray(stored), self.annotation)


class PanopticMeasured(NamedTuple):
    """What came out.

    metric: of the images of one process, or of all; its classes are the model's.
    categories: the file's own.
    maps: if they are to be kept, the prediction of each image by its place in the file, with the file's categories.
    """

    metric: PanopticQuality
    categories: list[Category]
    maps: dict[int, PredictedMap]


def measure_panoptic(measurement: PanopticMeasurement) -> PanopticMeasured:
    """Measure all images, each once, with `measurement.processes` processes.

    Raises:
        UserError: as `evaluate_panoptic.evaluate_panoptic`, or a process was killed.
    """
    count = measurement.processes
    shares = [
        replace(measurement, rank=rank, loading=loading_of(measurement.loading, rank, count)) for rank in range(count)
    ]
    first, *others = in_processes(_measure_share, shares)
    for other in others:
        first.metric.merge(other.metric.state())
        first.maps.update(other.maps)
    return first


def _measure_share(measurement: PanopticMeasurement) -> PanopticMeasured:
    model = measurement.model
    predictor = model if isinstance(model, Predictor) else load(model, **measurement.loading)
    network, annotations = cast(SegmentationModel, predictor.model), measurement.annotations
    if network.task != "panoptic":
        raise UserError(f"{annotations} is a panoptic file, but the model finds single instances only")
    dataset = CocoPanoptic(measurement.images, annotations, measurement.segmentations, categories=network.categories)
    if measurement.rank == 0:
        tell_skipped(dataset.skipped, annotations)
    listed = {category["name"]: category for category in dataset.file_categories}
    names = [match_name(category["name"], list(listed)) for category in network.categories]
    matches = {label: listed[name] for label, name in enumerate(names) if name is not None}
    metric, maps = PanopticQuality(_with_kinds(network.categories, matches), measurement.variant), {}
    file_names = dataset.file_names
    map_names = new_map_names(file_names)
    places = iter(range(measurement.rank, len(dataset), measurement.processes))
    for batch, targets in _batches(dataset, measurement):
        with predictor.inference():
            found = predictor.model([image.to(predictor.device) for image in batch])
        predictions = [_as_listed(prediction, matches) for prediction in found]
        metric.update(predictions, targets)
        for prediction, target in zip(predictions, targets, strict=True):
            place = next(places)
            if measurement.keep_maps:
                maps[place] = _encoded(prediction, target["image_id"], file_names[place], map_names[place])
    return PanopticMeasured(metric, dataset.file_categories, maps)


def _with_kinds(categories: Sequence[Category], matches: Mapping[int, Category]) -> list[Category]:
    """The model's categories; those of `matches` are things where the file's category is one, as COCO counts them."""
    found = []
    for label, category in enumerate(categories):
        isthing = matches.get(label, category).get("isthing", True)
        found.append(Category(id=category["id"], name=category["name"], isthing=isthing))
    return found


def tell_skipped(skipped: Mapping[str, int], annotations: str | Path) -> None:
    """Count on standard error what a file's reading has left out."""
    if skipped:
        counts = ", ".join(f"{count} {kind}" for kind, count in skipped.items())
        print(f"skipped in {annotations}: {counts} (`maskwright data check` names each)", file=sys.stderr)


def _batches(dataset: CocoPanoptic, measurement: PanopticMeasurement) -> Iterator[Batch]:
    """The images of this process in order, once each; the first process shows its progress on standard error."""
    rank, count = measurement.rank, measurement.processes
    loader = evaluation_loader(
        dataset,
        batch_size=measurement.batch_size,
        rank=rank,
        world_size=count,
        num_workers=measurement.num_workers,
    )
    title = "evaluate" if count == 1 else f"evaluate (process 1 of {count})"
    total = len(range(rank, len(dataset), count))
    with tqdm(total=total, unit="image", file=sys.stderr, desc=title, disable=None if rank == 0 else True) as progress:
        for batch in loader:
            yield batch
            progress.update(len(batch[0]))


def _encoded(prediction: PanopticPrediction, image_id: int | str, name: str, map_name: str) -> PredictedMap:
    height, width = prediction.image_size
    colours, annotation = prediction.to_coco(image_id, map_name)
    png = io.BytesIO()
    Image.fromarray(colours).save(png, "PNG")
    image = {"id": image_id, "file_name": name, "height": height, "width": width}
    return PredictedMap(image, png.getvalue(), annotation)


def _as_listed(prediction: PanopticPrediction, matches: Mapping[int, Category]) -> PanopticPrediction:
    """The prediction with the ids of the file's categories; segments of classes that it does not list become void."""
    kept, segmentation = (
        [info for info in prediction.segments_info if info["label"] in matches],
        prediction.segmentation,
    )
    if len(kept) < len(prediction):
        ids = torch.tensor([info["id"] for info in kept], device=segmentation.device)
        segmentation = segmentation * torch.isin(segmentation, ids.to(segmentation.dtype))
    listed = [SegmentInfo(**{**info, "category_id": matches[info["label"]]["id"]}) for info in kept]
    return replace(prediction, segmentation=segmentation, segments_info=listed)
