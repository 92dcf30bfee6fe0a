"""Auto-annotation functions for CVAT: `cvat-cli ... --function-module maskwright.cvat` calls `create`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from maskwright.errors import UserError
from maskwright.ops.paste import paste_binary_region
from maskwright.predictor import Predictor, load
from maskwright.prompts import DEFAULT_MODEL
from maskwright.structures import BoxPrompted, ImageFeatures, InstancePrediction


def create(
    model: str = DEFAULT_MODEL, kind: str = "interaction", device: str = "auto", precision: str = "auto"
) -> Interaction | Detection:
    """A function for CVAT; the arguments are what `cvat-cli` takes as `-p NAME=str:VALUE`.

    Args:
        model: a bundled model, a weights folder or a Hub repository.
        kind: `interaction` for the mask of each box that a person draws, or `detection` for the masks of all objects
            that a model with a detector finds.
        device: `cpu`, `cuda`, or `auto` for a GPU where there is one.
        precision: `float32`, `bfloat16`, or `auto` for bfloat16 where it is computed fast.

    Raises:
        UserError: there is no such model, kind, device or precision, the model is not of this kind, or cvat-sdk is
            missing.
    """
    kinds: dict[str, type[Interaction | Detection]] = {"interaction": Interaction, "detection": Detection}
    if kind not in kinds:
        raise UserError(f"kind must be one of {', '.join(kinds)}, but got {kind!r}")
    return kinds[kind](load(model, device, precision))


class Interaction:
    """CVAT's `InteractionFunction`: an image is encoded once, and prompted with one box at a time.

    Raises:
        UserError: the model takes no boxes, or cvat-sdk is missing.
    """

    def __init__(self, predictor: Predictor) -> None:
        if not isinstance(predictor.model, BoxPrompted):
            raise UserError("kind interaction needs a model that takes boxes; this one finds the objects itself")
        self._predictor = predictor
        self.spec = _cvat_sdk().auto_annotation.InteractionFunctionSpec(min_pos_points=0, min_bounding_boxes=1)

    def preprocess_image(self, context: object, image: Image.Image) -> ImageFeatures:  # noqa: ARG002
        """What CVAT keeps of an image for the boxes that follow."""
        return self._predictor.encode(image)

    def detect(self, context: object, pp_image: ImageFeatures, prompts: Any) -> list[Any]:  # noqa: ARG002
        """The mask of the box, with its quality as confidence; no shape where the mask has no pixel.

        Raises:
            UserError: the box has no extent inside of the image.
        """
        upper_left, lower_right = prompts.bounding_box
        found = self._predictor.masks_from_boxes(pp_image, [[*upper_left, *lower_right]])
        functions, models = _cvat_sdk().auto_annotation, _cvat_sdk().models
        quality = models.AttributeValRequest(
            spec_id=int(functions.InteractionResultAttributes.CONFIDENCE), value=f"{float(found.mask_scores[0]):.5f}"
        )
        return [
            functions.InteractionResultShape(type="mask", points=points, attributes=[quality])
            for _, points in _masks(found)
        ]


class Detection:
    """CVAT's `DetectionFunction`: the objects that a model finds, as masks or as polygons.

    Raises:
        UserError: the model finds no objects by itself, or cvat-sdk is missing.
    """

    def __init__(self, predictor: Predictor) -> None:
        if predictor.needs_boxes or predictor.task != "instance":
            raise UserError("kind detection needs a model with a detector of single objects; this one has none")
        self._predictor = predictor
        functions = _cvat_sdk().auto_annotation
        self.spec = functions.DetectionFunctionSpec(
            labels=[
                functions.label_spec(category["name"], label, type="mask")
                for label, category in enumerate(predictor.categories)
            ]
        )

    def detect(self, context: Any, image: Image.Image) -> list[Any]:
        """The objects whose score, that of the class times that of the mask, reaches CVAT's threshold.

        Without a threshold, those whose class has 0.3. Where CVAT asks for polygons, there is one for each part of an
        object, without the holes, which CVAT's polygons do not have.
        """
        threshold = context.conf_threshold
        found = self._predictor.predict(image, score_threshold=0.3 if threshold is None else threshold)
        functions = _cvat_sdk().auto_annotation
        make, shapes = (functions.polygon, _polygons) if context.conv_mask_to_poly else (functions.mask, _masks)
        scores = (found.scores * found.mask_scores).tolist()
        return [
            make(int(found.labels[row]), points, score=scores[row])
            for row, points in shapes(found)
            if scores[row] >= (threshold or 0)
        ]


def _masks(found: InstancePrediction) -> Iterator[tuple[int, list[int]]]:
    """The row of each mask that has pixels, and its run lengths and extent as CVAT writes them."""
    for row, (probability, box) in enumerate(zip(found.mask_probabilities, found.boxes, strict=True)):
        region, (left, top) = paste_binary_region(probability, box, found.image_size, found.frame)
        if region.any():
            *run_lengths, x1, y1, x2, y2 = _cvat_sdk().masks.encode_mask(region.numpy())
            yield row, [*run_lengths, x1 + left, y1 + top, x2 + left, y2 + top]


def _polygons(found: InstancePrediction) -> Iterator[tuple[int, list[float]]]:
    """The row of each part of a mask, and its outline x1, y1, x2, y2, ..."""
    for row, contours in enumerate(found.polygons):
        for contour in contours:
            x, y = contour.astype(float).T
            if x @ np.roll(y, -1) > y @ np.roll(x, -1):  # clockwise as one sees it; holes are the other way round
                yield row, contour.ravel().astype(float).tolist()


def _cvat_sdk() -> Any:
    """The library.

    Raises:
        UserError: it is missing.
    """
    try:
        import cvat_sdk.auto_annotation  # pyright: ignore[reportMissingImports]
        import cvat_sdk.masks  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise UserError("CVAT functions need its library: pip install cvat-cli 'cvat-sdk[masks]'") from error
    return cvat_sdk
