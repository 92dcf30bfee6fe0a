"""Run lengths of masks: read and written as COCO stores them, and decoded at chosen rows and columns only.

`runs` are int64 [R, 2]: the positions of the first pixel of each run and of the one after its last. Pixel (x, y) of an
image of `height` rows has the position `x * height + y`, so that a run goes down its column and on at the top of the
next. Runs are in order, none is empty, and no two touch.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from faster_coco_eval import mask_api_new_cpp as mask_api  # pyright: ignore[reportAttributeAccessIssue]
from faster_coco_eval.core import mask as coco_mask
from jaxtyping import Bool, Int64

from maskwright.regions import Region

Runs = Int64[np.ndarray, "_ 2"]


def runs_of_code(code: dict[str, Any]) -> Runs:
    """The runs of COCO's compressed run lengths, `{"size": [height, width], "counts": text}`.

    Raises:
        ValueError: the counts are malformed or do not fill the plane exactly.
    """
    height, width = code["size"]
    try:
        counts = np.array(mask_api.toUncompressedRLE([code])[0]["counts"], dtype=np.int64)
    except RuntimeError as error:
        raise ValueError(f"the counts are malformed: {error}") from error
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"the counts do not add up to the {height} x {width} pixels of the plane")
    edges = counts.cumsum()[: len(counts) // 2 * 2].reshape(-1, 2)
    edges = edges[edges[:, 0] < edges[:, 1]]  # counts may be 0
    apart = np.ones(2 * len(edges), dtype=bool)
    apart[1:-1] = np.repeat(edges[1:, 0] > edges[:-1, 1], 2)
    return edges.ravel()[apart].reshape(-1, 2)


def runs_of_plane(plane: Bool[np.ndarray, "h w"]) -> Runs:
    """The runs of one mask."""
    padded = np.zeros(plane.size + 2, dtype=bool)
    padded[1:-1] = plane.T.ravel()
    return np.flatnonzero(padded[1:] != padded[:-1]).reshape(-1, 2)


def code_of_runs(runs: Runs, image_size: tuple[int, int]) -> dict[str, Any]:
    """COCO's compressed run lengths of an image of `image_size` (height, width)."""
    height, width = image_size
    counts = np.diff(np.concatenate([[0], runs.ravel(), [height * width]]))
    return compress_counts(counts[: -1 if counts[-1] == 0 else None].tolist(), image_size)


def compress_counts(counts: list[int], image_size: tuple[int, int]) -> dict[str, Any]:
    """COCO's run lengths (zeros first) as it compresses them: `{"size": [height, width], "counts": str}`."""
    height, width = image_size
    encoded: Any = coco_mask.frPyObjects({"counts": counts, "size": [height, width]}, height, width)
    text = encoded["counts"]
    return {"size": [height, width], "counts": text.decode("ascii") if isinstance(text, bytes) else text}


def extent_of_runs(runs: Runs, height: int) -> tuple[int, int, int, int]:
    """The tight box x1, y1, x2, y2 around the pixels; zeros where there are none."""
    if not len(runs):
        return 0, 0, 0, 0
    columns, rows = np.divmod(runs - [0, 1], height)
    whole_columns = bool((columns[:, 0] < columns[:, 1]).any())  # a run reaches the lower edge and goes on at the upper
    y1, y2 = (0, height) if whole_columns else (int(rows[:, 0].min()), int(rows[:, 1].max()) + 1)
    return int(columns[0, 0]), y1, int(columns[-1, 1]) + 1, y2


def region_of_runs(runs: Runs, height: int) -> Region:
    """The pixels inside of the tight box of a mask, of an image of `height` rows."""
    x1, y1, x2, y2 = extent_of_runs(runs, height)
    pixels = np.zeros((y2 - y1, x2 - x1), dtype=bool)
    sample_runs(runs, height, np.arange(y1, y2), np.arange(x1, x2), pixels)
    return pixels, (x1, y1)


def sample_runs(
    runs: Runs,
    height: int,
    rows: Int64[np.ndarray, " h"],
    columns: Int64[np.ndarray, " w"],
    out: Bool[np.ndarray, "h w"],
) -> None:
    """Write the pixels of a mask at `rows` x `columns` into `out`, which holds False.

    Nothing larger than `out` is made, whatever the size of the image.

    Args:
        runs: of the mask.
        height: of the image.
        rows: which rows, ascending; a row may repeat, and those outside of the image hold False.
        columns: which columns, likewise.
        out: where the pixels go.
    """
    tops = columns * height  # the position of each column's first pixel
    first = np.searchsorted(runs[:, 1], tops, side="right")
    counts = np.maximum(np.searchsorted(runs[:, 0], tops + height) - first, 0)
    column = np.repeat(np.arange(len(columns)), counts)
    run = np.arange(len(column)) + np.repeat(first - (counts.cumsum() - counts), counts)
    begin, end = np.searchsorted(rows, (runs[run] - tops[column, None]).clip(0, height)).T
    is_met = begin < end
    if not is_met.any():
        return
    column, begin, end = column[is_met], begin[is_met], end[is_met]
    left, right, top, bottom = column[0], column[-1] + 1, begin.min(), end.max()
    steps = np.zeros((right - left, bottom - top + 1), dtype=np.int8)  # where a run begins +1, where one ends -1
    steps[column - left, begin - top] += 1
    steps[column - left, end - top] -= 1
    out[top:bottom, left:right] = steps.cumsum(axis=1, dtype=np.int8)[:, :-1].view(bool).T
