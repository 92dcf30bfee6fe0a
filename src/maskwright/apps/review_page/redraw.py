"""New masks of boxes that a person draws on the pictures of a completed file."""

from __future__ import annotations

import numpy as np
from jaxtyping import UInt8

from maskwright.apps.page.encoded_pictures import EncodedPictures
from maskwright.apps.review_page.completed import Box, CompletedFile
from maskwright.apps.review_page.decisions import RedrawnMask
from maskwright.data.annotated_pictures import read_annotated_picture
from maskwright.errors import UserError
from maskwright.models.hub import from_pretrained, model_hash
from maskwright.predictor import Predictor
from maskwright.structures import BoxPrompted


class Redrawer:
    """A model that answers boxes on the pictures of a completed file; several threads may ask it.

    Args:
        completed: the file.
        predictor: of a box-prompted model.
        name: of the model, as the provenance names it.
        weights: its hash (`model_hash`), likewise.

    Raises:
        UserError: the model takes no boxes.
    """

    def __init__(self, completed: CompletedFile, predictor: Predictor, name: str, weights: str) -> None:
        if not isinstance(predictor.model, BoxPrompted):
            raise UserError(f"--model {name}: expected a model that takes boxes, but it finds the instances itself")
        self._completed = completed
        self._pictures = EncodedPictures(predictor)
        self._name = name
        self._weights = weights

    @classmethod
    def load(cls, completed: CompletedFile, name: str, device: str) -> Redrawer:
        """The same with a bundled model, a weights folder or a Hub repository.

        Raises:
            UserError: there is no such model or device, or the model takes no boxes.
        """
        model = from_pretrained(name)
        weights = model_hash(model)
        return cls(completed, Predictor(model, device, in_place=True), name, weights)

    def redraw(self, image: int, box: Box) -> RedrawnMask:
        """The mask of a box (xyxy) on picture `image`; what exceeds the picture is cut off.

        Raises:
            UserError: the picture cannot be read, it is no box or lies outside, or the mask has no pixel.
        """
        prediction = self._pictures.masks_from_boxes(image, lambda: picture_of(self._completed, image), [list(box)])
        (entry,) = prediction.to_coco(0)
        area = int(self._completed.encoded(entry["segmentation"], image).areas()[0])
        if area == 0:
            raise UserError("the model sees nothing in this box; draw another one")
        x1, y1, x2, y2 = (round(value, 2) for value in prediction.boxes[0].tolist())
        return RedrawnMask(
            prompt_box=[x1, y1, round(x2 - x1, 2), round(y2 - y1, 2)],
            segmentation=entry["segmentation"],
            area=area,
            quality=round(float(prediction.mask_scores[0]), 5),
            model=self._name,
            weights=self._weights,
        )


def picture_of(completed: CompletedFile, image: int) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of a picture, in the frame of its annotations.

    Raises:
        UserError: it cannot be read, or has another size than the file says.
    """
    pictures = completed.pictures
    path = pictures.path(completed.image_names[image])
    return read_annotated_picture(path, completed.image_sizes[image], str(completed.path), pictures.exif)
