"""Masks as a picture: each cut out of its photograph, with the true and the predicted outline and a caption."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from maskwright.ops.contours import trace_contours
from maskwright.structures import EncodedMasks

SIDE, GAP, LINE, COLUMNS = (
    240,
    12,
    18,
    6,
)  # pixels of a cell's picture, between cells, of a line of text; cells in a row
MARGIN, LEAST = 0.25, 8  # around the box, in sides of it; and in pixels
TRUE, PREDICTED, BOX, INK = (0, 220, 255), (255, 130, 0), (255, 255, 255), (20, 20, 20)


def draw_cell(image: Tensor, box: Tensor, masks: tuple[EncodedMasks, Tensor], captions: Sequence[str]) -> Image.Image:
    """One cell of the sheet.

    Args:
        image: RGB uint8 [3, H, W].
        box: xyxy, pixels of the image.
        masks: the true one, the only one of its kind, and the predicted one, bool [H, W].
        captions: lines of text.
    """
    height, width = image.shape[1:]
    x1, y1, x2, y2 = box.tolist()
    reach_x, reach_y = max(LEAST, MARGIN * (x2 - x1)), max(LEAST, MARGIN * (y2 - y1))
    left, top = max(0, int(x1 - reach_x)), max(0, int(y1 - reach_y))
    right, bottom = min(width, int(np.ceil(x2 + reach_x))), min(height, int(np.ceil(y2 + reach_y)))
    scale = SIDE / max(right - left, bottom - top)
    size = max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale))
    pixels = image[:, top:bottom, left:right].permute(1, 2, 0).numpy()
    crop = Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(crop)
    corners = np.array([x1 - left, y1 - top, x2 - left, y2 - top]) * scale
    draw.rectangle(tuple(corners.tolist()), outline=BOX)
    truth, predicted = masks
    draw_outlines(draw, truth.crop(left, top, right, bottom)[0].numpy(), scale, TRUE)
    draw_outlines(draw, predicted[top:bottom, left:right].numpy(), scale, PREDICTED)
    cell = Image.new("RGB", (SIDE, SIDE + LINE * len(captions)), "white")
    cell.paste(crop, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    text = ImageDraw.Draw(cell)
    for line, caption in enumerate(captions):
        text.text((SIDE / 2, SIDE + LINE * (line + 0.5)), caption, INK, ImageFont.load_default(14), anchor="mm")
    return cell


def draw_outlines(draw: ImageDraw.ImageDraw, mask: np.ndarray, scale: float, colour: tuple[int, int, int]) -> None:
    """The contours of a mask, on a dark line that sets them off."""
    closed = [np.concatenate([contour, contour[:1]]) * scale for contour in trace_contours(mask)]
    for fill, line in (((0, 0, 0), 4), (colour, 2)):
        for points in closed:
            draw.line([tuple(point) for point in points.tolist()], fill=fill, width=line)


def contact_sheet(title: str, cells: Sequence[Image.Image]) -> Image.Image:
    """The cells in rows, below a title and what the colours mean."""
    rows = -(-len(cells) // COLUMNS)
    step_x, step_y = SIDE + GAP, max([0, *(cell.height for cell in cells)]) + GAP
    head = 3 * LINE + GAP
    sheet = Image.new("RGB", (COLUMNS * step_x + GAP, head + rows * step_y + GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    draw.text((GAP, GAP), title, INK, font)
    legend = {"true outline": TRUE, "predicted outline": PREDICTED}
    for place, (name, colour) in enumerate(legend.items()):
        x, y = GAP + 200 * place, 2 * LINE
        draw.rectangle((x, y + 6, x + 24, y + 14), fill=colour, outline="black")
        draw.text((x + 32, y), name, INK, font)
    for place, cell in enumerate(cells):
        row, column = divmod(place, COLUMNS)
        sheet.paste(cell, (GAP + column * step_x, head + row * step_y))
    return sheet
