"""Pictures of predictions: masks that one can tell apart, inside their boxes only, and captions where there is room."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw
from scipy import ndimage

from maskwright.drawing.captions import CaptionWriter, drawable_name
from maskwright.drawing.colours import Colour, class_colour, instance_colours
from maskwright.errors import UserError
from maskwright.ops.panoptic_map import rows_of_ids, segment_boxes
from maskwright.regions import Region

Picture = Image.Image | UInt8[np.ndarray, "h w 3"]
"""An image to draw on; an array is RGB, as `read_picture` gives it."""

ClassOf = tuple[int | None, str]
"""The number of a class, None where it has none, and its name, empty where there is no class."""

LABELS = ("auto", "on", "off")
COLOR_BY = ("instance", "class")

_SMALL = 24  # a box with a side of fewer line widths gets no frame
_LARGEST_SHARE = 0.4  # of a box's area that an automatic label may have
_LONGEST_LEGEND = 20


@runtime_checkable
class Instances(Protocol):
    """What is drawn of a prediction of instances, whose tensors or arrays are on the CPU.

    boxes: float32 [N, 4], xyxy pixels.
    image_size: (height, width).
    """

    @property
    def boxes(self) -> Any: ...  # noqa: D102

    @property
    def image_size(self) -> tuple[int, int]: ...  # noqa: D102

    def __len__(self) -> int: ...

    def region(self, index: int) -> Region:
        """The pixels of one instance."""
        ...


@runtime_checkable
class Segments(Protocol):
    """What is drawn of a panoptic prediction, whose tensor or array is on the CPU.

    segmentation: int32 [H, W], the `id` of a segment in each pixel.
    segments_info, categories, image_size: as of `PanopticPrediction`.
    """

    @property
    def segmentation(self) -> Any: ...  # noqa: D102

    @property
    def segments_info(self) -> Sequence[Any]: ...  # noqa: D102

    @property
    def categories(self) -> Sequence[Any]: ...  # noqa: D102

    @property
    def image_size(self) -> tuple[int, int]: ...  # noqa: D102


@dataclass(frozen=True)
class OverlayStyle:
    """How overlays look.

    Attributes:
        labels: `on`, `off`, or `auto`: where an object is large enough for its label and no other one is in the way.
        outline: contours only, without a fill.
        opacity: of the fill, in 0..1.
        color_by: a colour for each `instance`, or for each `class`, with a legend.
    """

    labels: str = "auto"
    outline: bool = False
    opacity: float = 0.45
    color_by: str = "instance"

    def __post_init__(self) -> None:
        for name, value, known in (("labels", self.labels, LABELS), ("color-by", self.color_by, COLOR_BY)):
            if value not in known:
                raise UserError(f"--{name}: expected one of {', '.join(known)}, but got {value!r}")
        if not 0 <= self.opacity <= 1:
            raise UserError(f"--opacity: expected a number in 0..1, but got {self.opacity}")


def draw_overlay(
    image: Picture,
    prediction: Instances,
    captions: Sequence[str] | None = None,
    classes: Sequence[ClassOf] | None = None,
    style: OverlayStyle | None = None,
) -> Image.Image:
    """The image with every mask filled and outlined in a colour of its own, and its box in thin lines.

    Neighbours get colours far apart. Large instances are drawn first, so that small ones lie on top. The width of lines
    and the size of text follow the size of the image; boxes of small objects are left out.

    Args:
        image: the predicted image; it stays as it is.
        prediction: in pixels of that image.
        captions: a text per instance, written at its box; an empty one is left out.
        classes: number and name of each instance's class, for colours by class and their legend.
        style: None takes the default one.

    Raises:
        ValueError: the image has another size than the prediction, or the number of captions or classes is wrong.
    """
    style = style or OverlayStyle()
    canvas = _canvas(image, prediction.image_size)
    for texts, what in ((captions, "captions"), (classes, "classes")):
        if texts is not None and len(texts) != len(prediction):
            raise ValueError(f"expected {len(prediction)} {what}, one per instance, but got {len(texts)}")
    boxes = np.asarray(prediction.boxes)
    by_class = style.color_by == "class" and classes is not None
    colours = [class_colour(*one) for one in classes or ()] if by_class else instance_colours(boxes)
    line = _line_width(canvas)
    order: list[int] = np.argsort(-(boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]), kind="stable").tolist()
    for index in order:
        _draw_mask(canvas, prediction, index, _Paint(colours[index], line, _opacity(style)))
    draw = ImageDraw.Draw(canvas)
    for index in order:
        left, top, right, bottom = boxes[index].round().tolist()
        if min(right - left, bottom - top) >= _SMALL * line:
            corners = (left, top, max(left, right - 1), max(top, bottom - 1))
            draw.rectangle(corners, outline=colours[index], width=max(1, line // 2))
    writer = CaptionWriter(canvas)
    if by_class and style.labels != "off":
        _write_legend(writer, classes or ())
    if captions is not None and style.labels != "off":
        for index in order:
            if captions[index]:
                _write_at_box(writer, captions[index], boxes[index], colours[index], style.labels)
    return canvas


def draw_panoptic_overlay(image: Picture, prediction: Segments, style: OverlayStyle | None = None) -> Image.Image:
    """The image with every segment filled and outlined in a colour of its own, its name and score in its widest part.

    Neighbours get colours far apart. The names of small segments are written last; those of segments that are narrower
    than the text is high are left out, unless the style wants all labels.

    Args:
        image: the predicted image; it stays as it is.
        prediction: in pixels of that image.
        style: None takes the default one.

    Raises:
        ValueError: the image has another size than the prediction.
    """
    style = style or OverlayStyle()
    canvas = _canvas(image, prediction.image_size)
    infos = sorted(prediction.segments_info, key=lambda info: -info["area"])
    categories = [prediction.categories[info["label"]] for info in infos]
    classes = [(category["id"], drawable_name(category["name"], category["id"])) for category in categories]
    rows = rows_of_ids(np.asarray(prediction.segmentation), np.array([info["id"] for info in infos], dtype=np.int64))
    boxes = segment_boxes(rows, len(infos))
    by_class = style.color_by == "class"
    colours = [class_colour(*one) for one in classes] if by_class else instance_colours(boxes)
    line = _line_width(canvas)
    writer = CaptionWriter(canvas)
    captions = []
    for row, info in enumerate(infos):
        left, top, right, bottom = boxes[row].astype(int).tolist()
        mask = rows[top:bottom, left:right] == row
        if mask.any():
            _fill(canvas, mask, (left, top), _Paint(colours[row], line, _opacity(style)))
            has_room = style.labels == "on" or min(mask.shape) >= writer.size
            if style.labels != "off" and has_room:
                (x, y), radius = _widest_place(mask)
                if style.labels == "on" or 2 * radius >= writer.size:
                    captions.append(
                        (f"{classes[row][1]} {info['score']:.2f}", (float(left + x), float(top + y)), colours[row])
                    )
    if by_class and style.labels != "off":
        _write_legend(writer, classes)
    for caption, middle, colour in captions:
        place = writer.place(caption, middle, centred=True)
        if style.labels == "on" or writer.is_free(place):
            writer.write(caption, place, colour)
    return canvas


def _canvas(image: Picture, size: tuple[int, int]) -> Image.Image:
    canvas = image.convert("RGB") if isinstance(image, Image.Image) else Image.fromarray(image)
    if (canvas.height, canvas.width) != size:
        raise ValueError(f"expected an image of (H, W) = {size}, but got {(canvas.height, canvas.width)}")
    return canvas


def _line_width(canvas: Image.Image) -> int:
    return max(1, round(np.hypot(*canvas.size) / 500))


def _opacity(style: OverlayStyle) -> float:
    return 0.0 if style.outline else style.opacity


def _write_at_box(
    writer: CaptionWriter, caption: str, box: Float[np.ndarray, " 4"], colour: Colour, labels: str
) -> None:
    """Write at the upper left corner of a box; if labels are automatic, only where there is room."""
    place = writer.place(caption, (float(box[0]), float(box[1])))
    width, height = place[2] - place[0], place[3] - place[1]
    fits = width * height <= _LARGEST_SHARE * float((box[2] - box[0]) * (box[3] - box[1]))
    if labels == "on" or (fits and writer.is_free(place)):
        writer.write(caption, place, colour)


def _write_legend(writer: CaptionWriter, classes: Sequence[ClassOf]) -> None:
    """The classes with their numbers of instances, the commonest first, down the left side."""
    top = 0.0
    for (number, name), count in Counter(classes).most_common(_LONGEST_LEGEND):
        line = f"{name or 'no class'}: {count}"
        left, upper, right, lower = writer.place(line, (0.0, 0.0))
        writer.write(line, (left, top, right, top + lower - upper), class_colour(number, name))
        top += lower - upper


def _widest_place(mask: Bool[np.ndarray, "h w"]) -> tuple[tuple[int, int], float]:
    """The (x, y) of a mask's pixel that is farthest from the mask's edge, and how far in pixels."""
    padded: np.ndarray = np.asarray(ndimage.distance_transform_edt(np.pad(mask, 1)))
    distances = padded[1:-1, 1:-1]
    y, x = np.unravel_index(distances.argmax(), mask.shape)
    return (int(x), int(y)), float(distances[y, x])


@dataclass(frozen=True)
class _Paint:
    """Colour, width of the contour in pixels, and opacity of the fill."""

    colour: Colour
    line: int
    opacity: float


def _draw_mask(canvas: Image.Image, prediction: Instances, index: int, paint: _Paint) -> None:
    mask, origin = prediction.region(index)
    if mask.any():
        _fill(canvas, mask, origin, paint)


def _fill(canvas: Image.Image, mask: Bool[np.ndarray, "h w"], origin: tuple[int, int], paint: _Paint) -> None:
    """Paint a mask whose first pixel is at `origin` (x, y): its contour opaque, its inside see-through."""
    thickness = max(1, min(paint.line, min(mask.shape) // 12))  # a contour must not fill a small mask
    opacity = np.where(_eroded(mask, thickness), np.uint8(255 * paint.opacity), np.uint8(255)) * mask
    canvas.paste(paint.colour, origin, Image.fromarray(opacity))


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
