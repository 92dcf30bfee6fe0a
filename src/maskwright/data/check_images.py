"""Whether the images of an annotation file are there, can be read, and have the sizes that it says."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from maskwright.data.annotations import Problem, TextTable
from maskwright.data.coco import read_annotated_image
from maskwright.errors import UserError


def check_images(
    image_ids: Sequence[int | str], file_names: TextTable, sizes: np.ndarray, folder: str | Path, source: str
) -> list[Problem]:
    """Read every image in `folder`; those that cannot be used come back, in the order of the annotation file `source`.

    sizes: int64 [I, 2], (height, width) as the file says.

    Raises:
        UserError: the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"the image folder {folder} does not exist or is no folder")
    problems: list[Problem] = []
    for row, (height, width) in enumerate(sizes.tolist()):
        try:
            read_annotated_image(folder / file_names[row], (height, width), source)
        except UserError as error:
            problems.append(Problem("image", image_ids[row], "unusable image", str(error), "refused"))
    return problems
