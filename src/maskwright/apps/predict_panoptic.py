"""`maskwright predict` with a panoptic model: maps, their list of segments, and pictures."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from PIL import Image
from tqdm import tqdm

from maskwright.apps.outputs import make_folder
from maskwright.apps.visualize import draw_panoptic_overlay
from maskwright.data.images import read_image
from maskwright.data.panoptic import panoptic_content
from maskwright.errors import UserError
from maskwright.files import write_json, write_whole
from maskwright.predictor import Predictor
from maskwright.structures import PanopticPrediction, SegmentationModel

PANOPTIC = "panoptic.json"
"""The file of all segments in the output folder."""


def predict_panoptic(
    predictor: Predictor,
    names: Mapping[Path, str],
    image_ids: Mapping[Path, int | str],
    out: Path,
    score_threshold: float = 0.3,
) -> None:
    """Predict every image and write the results; one line per image on stdout: file, number of segments, overlay.

    In the folder `out`: `panoptic.json` (COCO's panoptic format; `maskwright data check out/panoptic.json
    --segmentations out` reads it), and of each image `NAME_panoptic.png` (its map; id = R + 256 G + 65536 B) and
    `NAME_overlay.jpg`. Each file appears whole; `panoptic.json` and maps that are there already are not overwritten.

    Args:
        predictor: of a panoptic model.
        names: of each image file, what its outputs are called.
        image_ids: of each image file, all different; also its `file_name`.
        out: the folder; made, where it is missing, with the first picture.
        score_threshold: the smallest score of a segment.

    Raises:
        UserError: an image or an output cannot be used, or the file or a map is there already. Where only some of the
            images cannot be used, the others are predicted and written first.
    """
    for file in (out / PANOPTIC, *(_map_file(out, name) for name in names.values())):
        if file.exists():
            raise UserError(f"{file} exists already and is not overwritten; give another folder as --out")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    failures: list[str] = []
    for path in tqdm(names, unit="image", disable=None):
        try:
            prediction, annotation = _predict_one(predictor, path, image_ids[path], out / names[path], score_threshold)
        except UserError as error:
            if len(names) == 1:
                raise
            failures.append(str(error))
            tqdm.write(f"left out: {error}", file=sys.stderr)
            continue
        height, width = prediction.image_size
        images.append({"id": image_ids[path], "file_name": str(image_ids[path]), "height": height, "width": width})
        annotations.append(annotation)
    if annotations:
        categories = cast(SegmentationModel, predictor.model).categories
        write_json(out / PANOPTIC, panoptic_content(images, annotations, categories), indent=None)
        count = sum(len(annotation["segments_info"]) for annotation in annotations)
        print(f"{count} segments in {out / PANOPTIC}", file=sys.stderr)
    if failures:
        raise UserError(f"{len(failures)} of {len(names)} images were left out, the first because: {failures[0]}")


def _map_file(out: Path, name: str) -> Path:
    return out / f"{name}_panoptic.png"


def _predict_one(
    predictor: Predictor, path: Path, image_id: int | str, output: Path, score_threshold: float
) -> tuple[PanopticPrediction, dict[str, Any]]:
    """The prediction of one image, whose pictures are written, and its entry of `annotations`."""
    image = read_image(path)
    with predictor.inference():
        found: Sequence[PanopticPrediction] = predictor.model(
            [image.to(predictor.device)], score_threshold=score_threshold
        )
    (prediction,) = found
    make_folder(output.parent)
    png = _map_file(output.parent, output.name)
    colours, annotation = prediction.to_coco(image_id, png.name)
    write_whole(png, partial(Image.fromarray(colours).save, format="PNG"))
    overlay = output.with_name(f"{output.name}_overlay.jpg")
    picture = draw_panoptic_overlay(image, prediction)
    write_whole(overlay, lambda temporary: picture.save(temporary, "JPEG", quality=92))
    with tqdm.external_write_mode(file=sys.stdout):
        print(f"{path}\t{len(prediction)} segments\t{overlay}", flush=True)
    return prediction, annotation
