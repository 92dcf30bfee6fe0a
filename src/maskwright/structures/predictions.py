"""What a model says of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int32, Int64, UInt8
from PIL import Image
from torch import Tensor

from maskwright.files import write_json, write_picture
from maskwright.ops.contours import trace_contours
from maskwright.ops.frames import BoxFrame
from maskwright.ops.panoptic_map import coco_entry, rows_of_ids, segment_boxes
from maskwright.ops.paste import encode_masks, paste_binary_region, paste_masks
from maskwright.regions import Region
from maskwright.structures.pictured import Pictured, one_line, require_picture
from maskwright.structures.plain import Category


@dataclass(frozen=True, repr=False)
class InstancePrediction(Pictured):
    """The instances of one image, in the frame of the original image.

    Attributes:
        boxes: float32 [N, 4], xyxy pixels.
        labels: int64 [N]; -1 where a box was given without a class.
        scores: float32 [N], of the boxes (1 for given boxes).
        mask_scores: float32 [N], in 0..1: of a calibrated model (`maskwright calibrate`) or one that predicts it
            (`mask_quality`) the IoU of the mask with the truth that is to be expected; else what that would be if the
            mask's own probabilities were right (`nn.mask_quality.expected_iou`), which ranks masks but is too high.
        mask_probabilities: float32 [N, M, M], on the grid that `frame` lays on each box.
        image_size: (height, width) of the original image.
        frame: how the M x M grid lies on a box (`ops/frames.py`).
        categories: the label space, or empty where the model is class-agnostic.
        image: the original image, uint8 RGB, if a `Predictor` made the prediction.
    """

    boxes: Float[Tensor, "n 4"]
    labels: Int64[Tensor, " n"]
    scores: Float[Tensor, " n"]
    mask_scores: Float[Tensor, " n"]
    mask_probabilities: Float[Tensor, "n m m"]
    image_size: tuple[int, int]
    frame: BoxFrame
    categories: Sequence[Category] = field(default=())
    image: UInt8[Tensor, "3 h w"] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        names = [name for name in self._class_names() if name]
        return one_line("InstancePrediction", (len(self), "mask"), self.image_size, names)

    @property
    def masks(self) -> Bool[Tensor, "n h w"]:
        """Binary masks at full image size, pasted on each access (N planes of the image's size)."""
        return paste_masks(self.mask_probabilities, self.boxes, self.image_size, self.frame)

    def region(self, index: int, threshold: float = 0.5) -> Region:
        """The pixels of one instance: where the probability on its box exceeds a threshold."""
        probability, box = self.mask_probabilities[index], self.boxes[index]
        pixels, origin = paste_binary_region(probability, box, self.image_size, self.frame, threshold)
        return pixels.numpy(force=True), origin

    def scored(self, scores: Sequence[float]) -> InstancePrediction:
        """The same instances with other scores of their boxes."""
        return replace(self, scores=torch.tensor(scores, dtype=torch.float32))

    @property
    def polygons(self) -> list[list[Int[np.ndarray, "k 2"]]]:
        """The contours of each mask: corners (x, y) along pixel edges, int32, in pixels of the image.

        An instance has one contour for each of its parts and of its holes, the largest first; an empty mask has none.
        Outer contours run clockwise as one sees them, holes counter-clockwise. Filled together, by the even-odd or the
        non-zero rule, they cover the pixels of the mask exactly.
        """
        polygons = []
        for pixels, origin in map(self.region, range(len(self))):
            polygons.append([contour + np.array(origin, dtype=np.int32) for contour in trace_contours(pixels)])
        return polygons

    def overlay(self) -> Image.Image:
        """The image with each mask, its class, where it has one, and the product of `scores` and `mask_scores`.

        Raises:
            UserError: `image` is None.
        """
        from maskwright.drawing.overlays import draw_overlay

        scores = (self.scores * self.mask_scores).tolist()
        captions = [f"{name} {score:.2f}".strip() for name, score in zip(self._class_names(), scores, strict=True)]
        return draw_overlay(require_picture(self.image), self.cpu(), captions)

    def _class_names(self) -> list[str]:
        """The name of each instance's class, empty where it has none."""
        known = [category["name"] for category in self.categories]
        return [known[label] if 0 <= label < len(known) else "" for label in self.labels.tolist()]

    def _save_json(self, path: Path, image_id: int | str) -> None:
        write_json(path, self.to_coco(image_id))

    def _save_parts(self, folder: Path, image_id: int | str) -> None:
        self._save_json(folder / "predictions.json", image_id)
        for index, (probability, box) in enumerate(zip(self.mask_probabilities, self.boxes, strict=True)):
            (mask,) = paste_masks(probability[None], box[None], self.image_size, self.frame)  # one plane at a time
            picture = Image.fromarray(mask.numpy(force=True)).convert("L")
            write_picture(folder / f"mask_{index}.png", picture)

    def to_coco(self, image_id: int | str, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """COCO result entries: `image_id, category_id, segmentation` (compressed RLE) and `score`.

        `category_ids` (one per instance) overrides the model's own categories; without either, the
        `category_id` is 1. An instance without a class, whose label is -1, has none. Instances are pasted and encoded
        one by one, inside their boxes only. There is no `bbox`: with it, COCO evaluation would take object sizes from
        boxes instead of masks.
        """
        encoded = encode_masks(self.mask_probabilities, self.boxes, self.image_size, self.frame)
        return [
            {
                "image_id": image_id,
                **({"category_id": category_ids[i]} if category_ids is not None else self._category_id(i)),
                "segmentation": segmentation,
                "score": round(float(self.scores[i] * self.mask_scores[i]), 5),
            }
            for i, segmentation in enumerate(encoded)
        ]

    def _category_id(self, index: int) -> dict[str, int]:
        label = int(self.labels[index])
        if label < 0:
            return {}
        return {"category_id": self.categories[label]["id"] if label < len(self.categories) else 1}

    def to_supervision(self) -> Any:
        """The same instances as `supervision.Detections`.

        Raises:
            ModuleNotFoundError: supervision is not installed (`pip install 'maskwright[viz]'`).
        """
        try:
            import supervision
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("to_supervision() needs supervision: pip install 'maskwright[viz]'") from error
        return supervision.Detections(
            xyxy=self.boxes.cpu().numpy(),
            mask=self.masks.cpu().numpy(),
            confidence=(self.scores * self.mask_scores).cpu().numpy(),
            class_id=self.labels.cpu().numpy(),
        )


class SegmentInfo(TypedDict):
    """One segment of a `PanopticPrediction`.

    id: its value in the map, unique, in 1..2^24 - 1.
    label: the class's position in the categories; category_id, isthing: of that class.
    score: in 0..1.
    area: in pixels of the original image.
    """

    id: int
    label: int
    category_id: int
    isthing: bool
    score: float
    area: int


@dataclass(frozen=True, repr=False)
class PanopticPrediction(Pictured):
    """The segments of one image as a map, in the frame of the original image.

    Attributes:
        segmentation: int32 [H, W]; 0 is void, every other value is the `id` of one of `segments_info`.
        segments_info: the segments.
        image_size: (height, width) of the original image.
        categories: the label space.
        image: the original image, uint8 RGB, if a `Predictor` made the prediction.
    """

    segmentation: Int32[Tensor, "h w"]
    segments_info: Sequence[SegmentInfo]
    image_size: tuple[int, int]
    categories: Sequence[Category]
    image: UInt8[Tensor, "3 h w"] | None = None

    def __len__(self) -> int:
        return len(self.segments_info)

    def __repr__(self) -> str:
        names = [self.categories[info["label"]]["name"] for info in self.segments_info]
        return one_line("PanopticPrediction", (len(self), "segment"), self.image_size, names)

    def overlay(self) -> Image.Image:
        """The image with each segment, its class and its score.

        Raises:
            UserError: `image` is None.
        """
        from maskwright.drawing.overlays import draw_panoptic_overlay

        return draw_panoptic_overlay(require_picture(self.image), self.cpu())

    def _save_json(self, path: Path, image_id: int | str) -> None:
        height, width = self.image_size
        colours, annotation = self.to_coco(image_id, f"{Path(str(image_id)).stem}.png")
        maps = path.with_suffix("")
        maps.mkdir(exist_ok=True)
        write_picture(maps / annotation["file_name"], Image.fromarray(colours))
        image = {"id": image_id, "file_name": str(image_id), "height": height, "width": width}
        write_json(path, {"images": [image], "annotations": [annotation], "categories": list(self.categories)})

    def _save_parts(self, folder: Path, image_id: int | str) -> None:
        self._save_json(folder / "panoptic.json", image_id)

    def to_coco(self, image_id: int | str, file_name: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The image's PNG and its entry of `annotations` in COCO's panoptic format.

        Args:
            image_id: of the image in its annotation file.
            file_name: of the PNG.

        Returns:
            colours: uint8 [H, W, 3], RGB; id = R + 256 G + 65536 B.
            annotation: `image_id`, `file_name`, `segments_info` with `id, category_id, area, bbox` (x, y, width,
                height in whole pixels), `iscrowd` (0) and `score` of each segment.

        Raises:
            ValueError: an id does not lie in 0..2^24 - 1.
        """
        return coco_entry(self.segmentation.numpy(force=True), self.segments_info, image_id, file_name)

    def things(self, mask_size: int | None = None) -> InstancePrediction:
        """The thing segments as instances: tight boxes, and the masks on the boxes' grids.

        Args:
            mask_size: M, the side of each grid. None takes twice the longest side of a box: then each pixel's centre
                lies between two samples that were taken from that same pixel, and `masks` of the result are exactly
                the segments (a smaller grid gives them up to its own resolution). It holds N * M * M floats.

        Source: ours; a box-frame grid in the `pixel` frame, each sample from the pixel it falls into.
        """
        rows = self._rows()
        kept = [row for row, info in enumerate(self.segments_info) if info["isthing"] and (rows == row).any()]
        infos = [self.segments_info[row] for row in kept]
        boxes = torch.from_numpy(segment_boxes(rows.numpy(), len(self)))[kept]
        sides = (boxes[:, 2:] - boxes[:, :2]).max().item() if kept else 1
        size = mask_size or 2 * int(sides)
        masks = torch.zeros(len(kept), size, size)
        steps = (torch.arange(size) + 0.5) / size
        for mask, row, (left, top, right, bottom) in zip(masks, kept, boxes.tolist(), strict=True):
            from_rows, from_columns = (top + steps * (bottom - top)).long(), (left + steps * (right - left)).long()
            mask.copy_(rows[from_rows][:, from_columns] == row)
        return InstancePrediction(
            boxes=boxes,
            labels=torch.tensor([info["label"] for info in infos], dtype=torch.int64),
            scores=torch.tensor([info["score"] for info in infos], dtype=torch.float32),
            mask_scores=torch.ones(len(kept)),
            mask_probabilities=masks,
            image_size=self.image_size,
            frame="pixel",
            categories=self.categories,
            image=self.image,
        )

    def _rows(self) -> Int32[Tensor, "h w"]:
        """The map with each segment's position in `segments_info` for its id, -1 for all else; on the CPU."""
        ids = np.array([info["id"] for info in self.segments_info], dtype=np.int64)
        return torch.from_numpy(rows_of_ids(self.segmentation.numpy(force=True), ids))
