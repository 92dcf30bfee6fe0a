"""Pictures of predictions: masks that one can tell apart, drawn inside their boxes only."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from maskwright.data.images import read_image
from maskwright.ops.panoptic_map import rows_of_ids, segment_boxes
from maskwright.ops.paste import paste_mask_region
from maskwright.predictor import ImageSource
from maskwright.structures import InstancePrediction, PanopticPrediction

_FILL = 0.45  # opacity of a mask's inside; its contour is opaque
_SHADES = ((0.80, 1.00), (1.00, 0.75), (0.45, 1.00), (0.70, 0.55))  # (saturation, value), cycled through
_GOLDEN_RATIO = 0.618034
_CHANNEL_WEIGHTS = np.sqrt([2.0, 4.0, 3.0])  # how strongly the eye tells steps of red, green and blue apart

Colour = tuple[int, int, int]


def draw_overlay(
    image: ImageSource, prediction: InstancePrediction, captions: Sequence[str] | None = None
) -> Image.Image:
    """The image with every mask filled and outlined in a colour of its own, and its box in thin lines.

    No two instances share a colour, and neighbours get colours far apart. Large instances are drawn first, so
    that small ones lie on top. The width of lines and the size of text follow the size of the image.

    Args:
        image: the predicted image, as `read_image` takes it.
        prediction: in pixels of that image.
        captions: a text per instance, written at its box; an empty one is left out.

    Raises:
        ValueError: the image has another size than the prediction, or the number of captions is wrong.
    """
    pixels = read_image(image)
    if tuple(pixels.shape[1:]) != prediction.image_size:
        raise ValueError(f"expected an image of (H, W) = {prediction.image_size}, but got {tuple(pixels.shape[1:])}")
    if captions is not None and len(captions) != len(prediction):
        raise ValueError(f"expected {len(prediction)} captions, one per instance, but got {len(captions)}")
    canvas = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
    boxes = prediction.boxes.numpy(force=True)
    colours = instance_colours(boxes)
    line = max(1, round(np.hypot(*canvas.size) / 500))
    order: list[int] = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable").tolist()
    for index in order:
        _draw_mask(canvas, prediction, index, colours[index], line)
    draw = ImageDraw.Draw(canvas)
    for index in order:
        left, top, right, bottom = boxes[index].round().tolist()
        corners = (left, top, max(left, right - 1), max(top, bottom - 1))
        draw.rectangle(corners, outline=colours[index], width=max(1, line // 2))
    if captions is not None:
        for index in order:
            _draw_caption(draw, captions[index], boxes[index], colours[index], canvas.size)
    return canvas


def draw_panoptic_overlay(image: ImageSource, prediction: PanopticPrediction) -> Image.Image:
    """The image with every segment filled and outlined in a colour of its own, its name and score in its widest part.

    Neighbours get colours far apart. The names of small segments are written last; those of segments that are narrower
    than the text is high are left out.

    Args:
        image: the predicted image, as `read_image` takes it.
        prediction: in pixels of that image.

    Raises:
        ValueError: the image has another size than the prediction.
    """
    pixels = read_image(image)
    if tuple(pixels.shape[1:]) != prediction.image_size:
        raise ValueError(f"expected an image of (H, W) = {prediction.image_size}, but got {tuple(pixels.shape[1:])}")
    canvas = Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
    infos = sorted(prediction.segments_info, key=lambda info: -info["area"])
    ids = torch.tensor([info["id"] for info in infos], dtype=torch.int64)
    rows = rows_of_ids(prediction.segmentation.cpu(), ids)
    boxes = segment_boxes(rows, len(infos)).numpy()
    colours = instance_colours(boxes)
    line = max(1, round(np.hypot(*canvas.size) / 500))
    draw = ImageDraw.Draw(canvas)
    captions = []
    for row, (info, colour) in enumerate(zip(infos, colours, strict=True)):
        left, top, right, bottom = boxes[row].astype(int).tolist()
        mask = (rows[top:bottom, left:right] == row).numpy()
        if mask.any():
            _fill(canvas, mask, (left, top), colour, line)
            captions.append((info, colour, _widest_place(mask), (left, top)))
    for info, colour, ((x, y), radius), (left, top) in captions:
        if 2 * radius >= _text_size(canvas.size):
            name = prediction.categories[info["label"]]["name"]
            place = np.array([left + x, top + y, left + x, top + y])
            _draw_caption(draw, f"{name} {info['score']:.2f}", place, colour, canvas.size, centred=True)
    return canvas


def _widest_place(mask: Bool[np.ndarray, "h w"]) -> tuple[tuple[int, int], float]:
    """The (x, y) of a mask's pixel that is farthest from the mask's edge, and how far in pixels."""
    padded: np.ndarray = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))
    distances = padded[1:-1, 1:-1]
    y, x = np.unravel_index(distances.argmax(), mask.shape)
    return (int(x), int(y)), float(distances[y, x])


def instance_colours(boxes: np.ndarray) -> list[Colour]:
    """A colour per box [N, 4] (xyxy), all different, and far apart for boxes that touch or lie close."""
    unused = _palette(2 * len(boxes))  # with a choice left for the last box, too
    chosen = np.zeros((len(boxes), 3))
    for index, box in enumerate(boxes):
        reach = 0.25 * (box[2:] - box[:2])
        low, high = box[:2] - reach, box[2:] + reach
        earlier = boxes[:index]
        near = (earlier[:, :2] < high).all(axis=1) & (earlier[:, 2:] > low).all(axis=1)
        best = 0
        if near.any():
            steps = (unused[:, None] - chosen[:index][near]) * _CHANNEL_WEIGHTS
            best = int((steps**2).sum(axis=2).min(axis=1).argmax())
        chosen[index] = unused[best]
        unused = np.delete(unused, best, axis=0)
    return [(int(red), int(green), int(blue)) for red, green, blue in chosen]


def _palette(count: int) -> np.ndarray:
    """[count, 3] different colours in 0..255; each turn of the shades goes once around the hues."""
    colours = dict.fromkeys(_colour(index) for index in range(count))
    index = count
    while len(colours) < count:  # hues of two turns may round to one colour
        colours[_colour(index)] = None
        index += 1
    return np.array(list(colours), dtype=float).reshape(-1, 3)


def _colour(index: int) -> Colour:
    saturation, value = _SHADES[index // 12 % len(_SHADES)]
    red, green, blue = colorsys.hsv_to_rgb((0.58 + index * _GOLDEN_RATIO) % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _draw_mask(canvas: Image.Image, prediction: InstancePrediction, index: int, colour: Colour, line: int) -> None:
    region, origin = paste_mask_region(
        prediction.mask_probabilities[index], prediction.boxes[index], prediction.image_size, prediction.frame
    )
    mask = (region > 0.5).numpy(force=True)
    if mask.any():
        _fill(canvas, mask, origin, colour, line)


def _fill(
    canvas: Image.Image, mask: Bool[np.ndarray, "h w"], origin: tuple[int, int], colour: Colour, line: int
) -> None:
    """Paint a mask whose first pixel is at `origin` (x, y): its contour opaque, its inside see-through."""
    thickness = max(1, min(line, min(mask.shape) // 12))  # a contour must not fill a small mask
    opacity = np.where(_eroded(mask, thickness), np.uint8(255 * _FILL), np.uint8(255)) * mask
    canvas.paste(colour, origin, Image.fromarray(opacity))


def _eroded(mask: Bool[np.ndarray, "h w"], radius: int) -> Bool[np.ndarray, "h w"]:
    """The pixels whose square neighbourhood of that radius lies in the mask; outside of the array nothing does."""
    inside = np.pad(mask, radius)
    window = 2 * radius + 1
    for _ in range(2):
        span = 1
        while span < window:  # the windows double, so that a wide line costs little more than a thin one
            step = min(span, window - span)
            inside = inside[:-step] & inside[step:]
            span += step
        inside = inside.T
    return inside


def _draw_caption(
    draw: ImageDraw.ImageDraw,
    caption: str,
    box: np.ndarray,
    colour: Colour,
    canvas_size: tuple[int, int],
    centred: bool = False,
) -> None:
    """Write at the upper left corner of a box, or with its middle there."""
    if not caption:
        return
    size = _text_size(canvas_size)
    font = ImageFont.load_default(size)
    left, top, right, bottom = draw.textbbox((0, 0), caption, font=font)
    padding = size / 5
    width, height = right - left + 2 * padding, bottom - top + 2 * padding
    x = min(max(0.0, float(box[0]) - centred * width / 2), max(0.0, canvas_size[0] - width))
    y = float(box[1]) - height if box[1] >= height else max(0.0, float(box[1]))
    if centred:
        y = min(max(0.0, float(box[1]) - height / 2), max(0.0, canvas_size[1] - height))
    draw.rectangle((x, y, x + width, y + height), fill=colour)
    bright = np.dot(colour, (0.299, 0.587, 0.114)) > 140
    draw.text((x + padding - left, y + padding - top), caption, fill="black" if bright else "white", font=font)


def _text_size(canvas_size: tuple[int, int]) -> float:
    """Height of the text in pixels."""
    return max(10.0, float(np.hypot(*canvas_size)) / 65)
