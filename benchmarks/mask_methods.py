"""What turns boxes into masks: our models, SAM and SAM 2 of transformers, GrabCut, the filled box, the ellipse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor

import maskwright
from maskwright.errors import UserError
from maskwright.structures import InstancePrediction

GRABCUT_ITERATIONS = 5
GRABCUT_MARGIN = 0.25  # of the box's width and height, on each side
GRABCUT_LONG_SIDE = 320

# The prefix of their classes in transformers, and the Hub repository of the smallest weights.
SAM = {"sam": ("Sam", "facebook/sam-vit-base"), "sam2": ("Sam2", "facebook/sam2.1-hiera-tiny")}

# (RGB uint8 [3, H, W], boxes [N, 4] in its pixels) -> a prediction, or bool [N, H, W]
Method = Callable[[Tensor, Tensor], InstancePrediction | Tensor]


def create_method(name: str, device: str, random_weights: bool = False) -> Method:
    """The method of a name, warmed up: SAM's (`sam_method`), or else that of one of our models or weights folders.

    `random_weights` is for SAM only, whose weights need not be there to measure its speed.
    """
    is_sam = name.partition(":")[0] in SAM
    method = sam_method(name, device, random_weights) if is_sam else maskwright.load(name, device=device).predict
    method(torch.zeros(3, 64, 64, dtype=torch.uint8), torch.tensor([[8.0, 8.0, 56.0, 56.0]]))
    return method


def planes_of(found: InstancePrediction | Tensor) -> Tensor:
    """The masks that a method gave, bool [N, H, W]."""
    return found if isinstance(found, Tensor) else found.masks


def filled_boxes(image: Tensor, boxes: Tensor) -> Tensor:
    """The pixels whose centres lie in the box."""
    x, y = pixel_centers(image)
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    return (x >= left) & (x < right) & (y >= top) & (y < bottom)


def inscribed_ellipses(image: Tensor, boxes: Tensor) -> Tensor:
    """The pixels whose centres lie in the ellipse that touches the box's four sides."""
    x, y = pixel_centers(image)
    left, top, right, bottom = boxes[:, :, None, None].unbind(1)
    across = (2 * x - left - right) / (right - left)
    down = (2 * y - top - bottom) / (bottom - top)
    return across**2 + down**2 <= 1


def pixel_centers(image: Tensor) -> tuple[Tensor, Tensor]:
    """x [1, W] and y [H, 1] of the pixel centres."""
    height, width = image.shape[1:]
    return torch.arange(width)[None] + 0.5, torch.arange(height)[:, None] + 0.5


def grabcut(image: Tensor, boxes: Tensor) -> Tensor:
    """OpenCV's GrabCut from each box: probable foreground inside, background outside; the filled box where it
    returns nothing (also where the crop has no background, which OpenCV refuses)."""
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy()[:, :, ::-1])
    masks = filled_boxes(image, boxes)
    for row, box in enumerate(boxes.tolist()):
        found, (left, top) = grabcut_crop(pixels, box)
        if found.any():
            masks[row] = False
            masks[row, top : top + found.shape[0], left : left + found.shape[1]] = torch.from_numpy(found)
    return masks


def grabcut_crop(pixels: np.ndarray[Any, Any], box: list[float]) -> tuple[np.ndarray[Any, Any], tuple[int, int]]:
    """The foreground in the crop around one box, bool [h, w], and the crop's left and top in the image."""
    height, width = pixels.shape[:2]
    x1, y1, x2, y2 = box
    margin_x, margin_y = GRABCUT_MARGIN * (x2 - x1), GRABCUT_MARGIN * (y2 - y1)
    left, top = max(0, int(x1 - margin_x)), max(0, int(y1 - margin_y))
    right, bottom = min(width, int(np.ceil(x2 + margin_x))), min(height, int(np.ceil(y2 + margin_y)))
    crop = pixels[top:bottom, left:right]
    scale = min(1.0, GRABCUT_LONG_SIDE / max(crop.shape[:2]))
    if scale < 1:
        size = (max(1, round(crop.shape[1] * scale)), max(1, round(crop.shape[0] * scale)))
        crop = cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
    x, y = round((x1 - left) * scale), round((y1 - top) * scale)
    rectangle = (x, y, max(1, round((x2 - left) * scale) - x), max(1, round((y2 - top) * scale) - y))
    labels = np.zeros(crop.shape[:2], np.uint8)
    cv2.setRNGSeed(0)
    try:
        state = np.zeros((1, 65)), np.zeros((1, 65))
        cv2.grabCut(crop, labels, rectangle, *state, GRABCUT_ITERATIONS, cv2.GC_INIT_WITH_RECT)
    except cv2.error:
        labels[:] = cv2.GC_BGD
    found = np.isin(labels, (cv2.GC_FGD, cv2.GC_PR_FGD)).astype(np.uint8)
    found = cv2.resize(found, (right - left, bottom - top), interpolation=cv2.INTER_NEAREST)
    return found.astype(bool), (left, top)


def sam_method(name: str, device: str, random_weights: bool) -> Method:
    """SAM (`sam`) or SAM 2 (`sam2`) of transformers, one mask per box.

    `sam:WEIGHTS` names its weights, a folder or a Hub repository; without, they are those of `SAM`. Random weights have
    the size of those: ViT-B, and Hiera-tiny.

    Raises:
        UserError: transformers is missing, or the weights cannot be loaded.
    """
    try:
        import transformers
    except ModuleNotFoundError as error:
        raise UserError(f"{name} needs transformers (5 or newer): pip install transformers") from error
    kind, _, weights = name.partition(":")
    prefix, published = SAM[kind]
    model_class, processor_class = getattr(transformers, f"{prefix}Model"), getattr(transformers, f"{prefix}Processor")
    if random_weights:
        model = model_class(getattr(transformers, f"{prefix}Config")())
        processor = processor_class(getattr(transformers, f"{prefix}ImageProcessor")())
    else:
        try:
            model = model_class.from_pretrained(weights or published)
            processor = processor_class.from_pretrained(weights or published)
        except (OSError, ValueError) as error:
            raise UserError(f"cannot load the weights of {name}: {str(error).splitlines()[0]}") from error
    model.eval().to(device)

    def masks(image: Tensor, boxes: Tensor) -> Tensor:
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        inputs = processor(images=picture, input_boxes=[boxes.tolist()], return_tensors="pt").to(device)
        with torch.inference_mode():
            found = model(**inputs, multimask_output=False)
        sizes = [inputs[key].cpu() for key in ("original_sizes", "reshaped_input_sizes") if key in inputs]
        (planes,) = processor.post_process_masks(found.pred_masks.cpu(), *sizes)
        return planes[:, 0]

    return masks
