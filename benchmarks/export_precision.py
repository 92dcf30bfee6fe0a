"""What it changes to store the weights of an exported model in float16 or int8: the files, and their masks.

    python benchmarks/export_precision.py MODEL --images DIR --annotations FILE

The pair of files in each precision gets the boxes of a COCO instances file (crowds and annotations without a mask are
left out). The masks' mean IoU with the truth is printed, and with those of float32; the last column is the largest
difference of a probability from float32's, in any point of any mask. `OMP_NUM_THREADS` says how many threads are used.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from precision import mask_ious
from tqdm import tqdm

from maskwright.data.coco import CocoInstances
from maskwright.errors import UserError
from maskwright.evaluation.mask_iou import MaskIoU
from maskwright.evaluation.report import format_table
from maskwright.export.files import WEIGHT_PRECISIONS, ExportOptions, export_model, save_models
from maskwright.files import write_json
from maskwright.models.hub import from_pretrained
from maskwright.predictor import Predictor, load
from maskwright.structures import select_rows


def export(model: str, folder: Path) -> dict[str, tuple[Predictor, int]]:
    """The exported model in each precision, and the bytes of its files."""
    made = {}
    for precision in WEIGHT_PRECISIONS:
        models = export_model(from_pretrained(model), ExportOptions(precision=precision))
        files = save_models(models, folder / f"{precision}.onnx")
        made[precision] = load(folder / f"{precision}.onnx"), sum(file.stat().st_size for file in files)
    return made


def compare(predictors: Mapping[str, Predictor], dataset: CocoInstances) -> list[dict[str, float]]:
    """Of each precision, what its masks are like on all images; the first is float32."""
    metrics = {name: MaskIoU(dataset.categories, []) for name in predictors}
    equal: dict[str, list[torch.Tensor]] = {name: [] for name in predictors}
    farthest = dict.fromkeys(predictors, 0.0)
    for image, target in tqdm(dataset, unit="image"):
        target = select_rows(target, target["has_mask"] & ~target["iscrowd"])
        found = {name: predictor.predict(image, target["boxes"]) for name, predictor in predictors.items()}
        exact = found["float32"]
        for name, prediction in found.items():
            metrics[name].update([prediction], [target])
            equal[name].append(mask_ious(prediction.masks, exact.masks))
            differences = (prediction.mask_probabilities - exact.mask_probabilities).abs().flatten().tolist()
            farthest[name] = max(farthest[name], *differences, 0.0)
    return [
        {
            "masks": metrics[name].compute()["instances"],
            "mask_iou": metrics[name].compute()["mask_iou"],
            "iou_with_float32": float(torch.cat(equal[name]).mean()),
            "difference": farthest[name],
        }
        for name in predictors
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="weights folder or bundled model, which takes boxes")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    try:
        dataset = CocoInstances(arguments.images, arguments.annotations)
        if not dataset.instances.has_mask.any():
            raise UserError(f"{arguments.annotations}: no annotation has a mask to compare with")
        with tempfile.TemporaryDirectory() as folder:
            made = export(arguments.model, Path(folder))
            numbers = compare({name: predictor for name, (predictor, _) in made.items()}, dataset)
    except UserError as error:
        print(f"export_precision: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    rows = [
        [name, f"{size / 1e6:.1f}", *(f"{each[key]:.4f}" for key in ("mask_iou", "iou_with_float32", "difference"))]
        for (name, (_, size)), each in zip(made.items(), numbers, strict=True)
    ]
    if arguments.json:
        write_json(arguments.json, dict(zip(made, numbers, strict=True)))
    print(f"{numbers[0]['masks']:.0f} masks")
    print(format_table(["precision", "MB", "mask IoU", "with float32", "difference"], rows))


if __name__ == "__main__":
    main()
