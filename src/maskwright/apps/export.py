"""`maskwright export`: a model as ONNX files, which run without torch and without this package."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskwright.apps.outputs import check_outputs
from maskwright.errors import UserError
from maskwright.export.files import ExportOptions, export_model, save_models, second_look
from maskwright.export.graphs import GraphOptions
from maskwright.models.hub import EXPORTED, from_pretrained
from maskwright.onnx.metadata import encoder_path


@dataclass(frozen=True)
class ExportArguments:
    """What `maskwright export` is asked for.

    Attributes:
        model: a bundled model (see `maskwright models`), a weights folder, or a Hub repository.
        out: the file to write, FILE.onnx. A model that turns boxes into masks is two: FILE.encoder.onnx, from the image
            to its features, and FILE.onnx, from features and any number of boxes to masks.
        single: one file from image and boxes to masks instead of two.
        detector: of a Deep-MAC model with a detector: one file that finds the objects and their masks.
        raw_image: the file takes one picture of any size as it is (uint8 [height, width, 3]), instead of a batch that
            is resized, padded and normalised already.
        max_detections: with --detector, how many instances it gives; those of a score of 0 are none.
        precision: in which the weights are stored: float32, float16 or int8. They are computed with in float32.
    """

    model: str
    out: str
    single: bool = False
    detector: bool = False
    raw_image: bool = False
    max_detections: int = 100
    precision: str = "float32"


OPTIONS = ExportArguments


def run(**given: Any) -> int:
    """Export, and print the files with their sizes."""
    for path in export(ExportArguments(**given)):
        print(f"{path}\t{path.stat().st_size / 1e6:.1f} MB")
    return 0


def export(arguments: ExportArguments) -> list[Path]:
    """Write the files of a model, each whole or not at all, and return them.

    Raises:
        UserError: the model or the output cannot be used, the options do not fit the model, or the libraries of the
            extra `export` are not installed.
    """
    out = Path(arguments.out)
    if out.suffix != EXPORTED:
        raise UserError(f"--out {out}: expected the name of a file that ends in {EXPORTED}")
    check_outputs([out, encoder_path(out)])
    if arguments.max_detections < 1:
        raise UserError(f"--max-detections: expected 1 or more, but got {arguments.max_detections}")
    graphs = GraphOptions(arguments.single, arguments.detector, arguments.raw_image, arguments.max_detections)
    try:
        options = ExportOptions(graphs, arguments.precision)
        model = from_pretrained(arguments.model)
        models = export_model(model, options)
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{arguments.model}: {error}") from error
    if getattr(model.config, "second_look_below", 0) and second_look(model, graphs) is None:
        option = "--detector" if arguments.detector else "--raw-image"
        print(f"{out} has no second look at small boxes, as the model has: {option} leaves it out", file=sys.stderr)
    return save_models(models, out)
