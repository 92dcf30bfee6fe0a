"""The annotations of a COCO file as its own entries, for evaluation that must give COCO's numbers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from maskwright.data.annotations import index_annotations, read_normalised
from maskwright.data.picture_folder import PictureFolder
from maskwright.data.segmentations import SegmentationPacker
from maskwright.ops.run_lengths import runs_of_code


def read_ground_truth(path: str | Path, pictures: PictureFolder | None = None) -> list[dict[str, Any]]:
    """The file's annotation entries after its repairs, all that COCO's tools can take, in file order.

    An entry whose `segmentation` is missing, empty or malformed comes without that key. Left out are entries
    of an image or category that the file does not list, and those without a `bbox` of four numbers. Unlike
    `CocoInstances` this keeps boxes that have no extent inside their image and masks without a pixel: COCO's tools
    count them as instances that nothing finds.

    Raises:
        UserError: the file is unusable.
    """
    normalised = read_normalised(path, pictures)
    index = index_annotations(normalised, str(path))
    index.refuse_unusable()
    dropped = {
        problem.id
        for problem in index.problems
        if problem.subject == "annotation"
        and problem.effect == "dropped"
        and problem.kind != "bbox without extent in the image"
    }
    sizes = dict(zip(index.image_ids.tolist(), index.image_sizes.tolist(), strict=True))
    entries = []
    for position, entry in enumerate(normalised.content["annotations"]):
        if normalised.annotation_name(position) in dropped:
            continue
        has_mask = _has_mask(entry.get("segmentation"), sizes[entry["image_id"]])
        entries.append({key: value for key, value in entry.items() if has_mask or key != "segmentation"})
    return entries


def _has_mask(segmentation: Any, image_size: Sequence[int]) -> bool:
    """Whether COCO's tools can read a segmentation of an image of `image_size` (height, width)."""
    height, width = image_size
    if not segmentation or SegmentationPacker().add(segmentation, (height, width)):
        return False
    if isinstance(segmentation, dict) and isinstance(segmentation["counts"], str):
        try:
            runs_of_code(segmentation)
        except ValueError:  # the counts are malformed
            return False
    return True
