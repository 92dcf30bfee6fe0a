"""What bfloat16 changes: the masks, detections or maps of a model in both precisions, side by side on real images.

    python benchmarks/precision.py MODEL --images DIR --annotations FILE [--segmentations DIR] [--device cuda]

On every image of a COCO instances file a model that takes boxes is given those of the file (crowds left out), and the
masks of either precision are compared with each other: mean IoU, and the share of masks under 0.9. A model that finds
boxes is asked for them, too: of its float32 detections with a score of 0.3 at least, the mean IoU with the best
bfloat16 detection of the same class. On the images of a COCO panoptic file: the share of pixels whose class differs.
How good the results are in either precision says `maskwright evaluate --precision`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import box_iou

from maskwright.data.coco import CocoInstances
from maskwright.data.panoptic import CocoPanoptic
from maskwright.data.panoptic_annotations import is_panoptic
from maskwright.errors import UserError
from maskwright.files import write_json
from maskwright.predictor import Predictor, load
from maskwright.structures import BoxPrompted, InstancePrediction, PanopticPrediction

SCORE_THRESHOLD = 0.3  # of the float32 detections that are looked for among those of bfloat16
LOW_SCORE = 0.05  # of the bfloat16 detections: rounding may put one below the other threshold


def mask_ious(ours: Tensor, theirs: Tensor) -> Tensor:
    """[n] of two stacks of masks, bool [n, h, w]; two empty masks are equal."""
    union = (ours | theirs).sum((1, 2))
    return torch.where(union > 0, (ours & theirs).sum((1, 2)) / union.clamp(min=1), 1.0)


def detection_ious(exact: InstancePrediction, rounded: InstancePrediction) -> Tensor:
    """[n], of each of n detections with the best one of its class among the others; 0 where there is none."""
    overlaps = box_iou(exact.boxes, rounded.boxes) * (exact.labels[:, None] == rounded.labels)
    return torch.cat([overlaps, overlaps.new_zeros(len(overlaps), 1)], 1).amax(1)


def compare_instances(models: Sequence[Predictor], dataset: CocoInstances) -> dict[str, float]:
    exact, rounded = models
    masks, detections = [torch.zeros(0)], [torch.zeros(0)]
    for image, target in dataset:
        boxes = target["boxes"][~target["iscrowd"]]
        if isinstance(exact.model, BoxPrompted):
            first, second = (model.masks_from_boxes(model.encode(image), boxes) for model in models)
            masks.append(mask_ious(first.masks, second.masks))
        if not exact.needs_boxes:
            first = exact.predict(image, score_threshold=SCORE_THRESHOLD)
            detections.append(detection_ious(first, rounded.predict(image, score_threshold=LOW_SCORE)))
    result: dict[str, float] = {}
    for name, values in (("mask", torch.cat(masks)), ("detection", torch.cat(detections))):
        if len(values):
            result |= {f"{name}s": len(values), f"mean_{name}_iou": float(values.mean())}
            result[f"{name}s_under_0.9"] = float((values < 0.9).float().mean())
    return result


def class_map(model: Predictor, image: Tensor) -> Tensor:
    """The category id of each pixel, [h, w]; -1 where it is void."""
    with model.inference():
        found: PanopticPrediction = model.model([image.to(model.device)])[0]
    classes = torch.full((int(found.segmentation.max()) + 1,), -1)
    for segment in found.segments_info:
        classes[segment["id"]] = segment["category_id"]
    return classes[found.segmentation.long().cpu()]


def compare_maps(models: Sequence[Predictor], dataset: CocoPanoptic) -> dict[str, float]:
    pixels = different = 0
    for image, _ in dataset:
        first, second = (class_map(model, image) for model in models)
        pixels += first.numel()
        different += int((first != second).sum())
    return {"pixels": pixels, "pixels_of_another_class": different / pixels}


def compare(arguments: argparse.Namespace) -> dict[str, float]:
    """Both precisions on the images of the file.

    Raises:
        UserError: the model or the data cannot be used, do not go together, or leave nothing to compare.
    """
    models = [load(arguments.model, arguments.device, precision=name) for name in ("float32", "bfloat16")]
    panoptic = is_panoptic(arguments.annotations)
    if panoptic != (models[0].task == "panoptic"):
        kind = "panoptic" if panoptic else "instances"
        raise UserError(f"{arguments.annotations} is a COCO {kind} file, which does not go with {arguments.model}")
    if panoptic:
        return compare_maps(models, CocoPanoptic(arguments.images, arguments.annotations, arguments.segmentations))
    result = compare_instances(models, CocoInstances(arguments.images, arguments.annotations))
    if not result:
        raise UserError(f"{arguments.annotations}: no box to give to the model, and no object that it finds")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="weights folder or bundled model")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR")
    parser.add_argument("--annotations", type=Path, required=True, metavar="FILE")
    parser.add_argument("--segmentations", type=Path, metavar="DIR", help="of a panoptic file, where not beside it")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    parser.add_argument("--json", type=Path, metavar="OUT")
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads must be at least 1, but got {arguments.threads}")
    torch.set_num_threads(arguments.threads)
    try:
        result = compare(arguments)
        if arguments.json:
            write_json(arguments.json, result)
    except UserError as error:
        print(f"precision: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    for name, value in result.items():
        print(f"{name} {value:.4f}" if isinstance(value, float) else f"{name} {value}")


if __name__ == "__main__":
    main()
