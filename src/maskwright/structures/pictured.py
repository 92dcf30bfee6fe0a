"""What people do with a prediction, of whichever kind: look at it, save it, print it."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from maskwright.errors import UserError
from maskwright.files import write_picture

_MOST_CLASSES = 5  # that a line of text names

_Found = TypeVar("_Found")


class Pictured(ABC):
    """A prediction that can be drawn on its image and saved."""

    @abstractmethod
    def overlay(self) -> Image.Image:
        """The image with everything that was found on it, in colours.

        Raises:
            UserError: the prediction does not hold its image, as one that a `Predictor` made does.
        """

    @abstractmethod
    def _save_json(self, path: Path, image_id: int | str) -> None:
        """Write the prediction in COCO's format."""

    @abstractmethod
    def _save_parts(self, folder: Path, image_id: int | str) -> None:
        """Write the prediction into a folder, the overlay apart."""

    def cpu(self: _Found) -> _Found:
        """The same with all tensors on the CPU, apart from any gradients."""
        tensors = {name: value.detach().cpu() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(cast(Any, self), **tensors)

    def show(self) -> None:
        """Open the overlay in the system's picture viewer; a notebook shows a prediction by itself.

        Raises:
            UserError: as `overlay`.
        """
        self.overlay().show()

    def save(self, path: str | Path, image_id: int | str = 1) -> None:
        """Save the prediction; the path says as what.

        - `cat.jpg`, `cat.png` or another picture: the overlay.
        - `cat.json`: COCO's format. Of instances a list of results, as `to_coco` gives it; of a panoptic map the file,
          and its PNG in the folder `cat` beside it.
        - `cat`, a folder (made where it is missing): the overlay as `overlay.jpg`, and of instances `predictions.json`
          and each mask as `mask_0.png`, `mask_1.png`, ... (white on black), of a panoptic map `panoptic.json` and its
          folder.

        Files that are there already are overwritten.

        Args:
            path: of the file or folder.
            image_id: of the image in COCO's format.

        Raises:
            UserError: the path is empty, its suffix is that of no picture, it cannot be written, or, for an overlay, as
                `overlay`.
        """
        if not str(path):
            raise UserError("cannot save the prediction: expected the path of a picture, a .json file or a folder")
        path = Path(path)
        suffix = path.suffix.lower()
        if not suffix or path.is_dir():
            overlay = self.overlay()
            try:
                path.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise UserError(f"cannot make the folder {path}: {error.strerror}") from error
            write_picture(path / "overlay.jpg", overlay)
            self._save_parts(path, image_id)
        elif suffix == ".json":
            self._save_json(path, image_id)
        else:
            write_picture(path, self.overlay())

    def _repr_png_(self) -> bytes | None:
        """What a notebook shows: the overlay, or where there is no image the text."""
        try:
            picture = self.overlay()
        except UserError:
            return None
        content = io.BytesIO()
        picture.save(content, "PNG")
        return content.getvalue()


def require_picture(image: UInt8[Tensor, "3 h w"] | None) -> UInt8[np.ndarray, "h w 3"]:
    """The image of a prediction, to draw on.

    Raises:
        UserError: it holds none.
    """
    if image is None:
        raise UserError(
            "this prediction does not hold its image, as those of Predictor.predict do: give it one with "
            "dataclasses.replace(prediction, image=maskwright.read_image(FILE))"
        )
    return as_picture(image)


def as_picture(image: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """The pixels of an image in the order in which pictures hold them."""
    return np.ascontiguousarray(image.permute(1, 2, 0).numpy(force=True))


def one_line(kind: str, found: tuple[int, str], image_size: tuple[int, int], class_names: Sequence[str]) -> str:
    """A prediction as a line of text: how many of what on an image, and of which classes.

    kind: of prediction; `found` says how many of what, in the singular.
    image_size: (height, width), which stand there as width x height.
    class_names: the name of each instance or segment, where there is one.
    """
    height, width = image_size
    counts = Counter(class_names).most_common()
    number, thing = found
    things = thing if number == 1 else f"{thing}s"
    parts = [
        f"{kind}: {number} {things} on {width} x {height}",
        *(f"{count} {name}" for name, count in counts[:_MOST_CLASSES]),
    ]
    if len(counts) > _MOST_CLASSES:
        parts.append(f"and {len(counts) - _MOST_CLASSES} more classes")
    return ", ".join(parts)
