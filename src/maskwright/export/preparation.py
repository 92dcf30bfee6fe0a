"""The way from a picture to the network's input as one graph, for files that take pictures as they are."""

from __future__ import annotations

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from maskwright.nn.image_batch import ImageBatch, ResizeMethod


class Preparation(nn.Module):
    """`ImageBatch` of one picture of any size, in operations that can be exported.

    An interpolation is a matrix for each axis, with a few weights in each row: simple, and slow for very large pictures
    (12 million pixels take about a second on one core). Results differ from those of `ImageBatch` by rounding alone.
    """

    def __init__(self, image_batch: ImageBatch) -> None:
        super().__init__()
        self.image_batch = image_batch

    def forward(
        self, picture: UInt8[Tensor, "h w 3"]
    ) -> tuple[Float[Tensor, "1 3 s s"], Float[Tensor, " 2"], Float[Tensor, "1 2"]]:
        """The network's input, the factors (x, y) from the picture's pixels to its, and the picture's size in it."""
        pixels = picture.float() / 255
        axes = [torch.arange(length, dtype=torch.float64) for length in picture.shape[:2]]
        sides = torch.stack([axis[-1] + 1 for axis in axes])  # tensors: numbers would be constants of the graph
        resized = self._resized_size(sides)
        size, method = self.image_batch.image_size, self.image_batch.resize
        rows, columns = (
            interpolation_matrix(axis, new_side, size, method) for axis, new_side in zip(axes, resized, strict=True)
        )
        image = (rows @ pixels.flatten(1)).unflatten(1, (-1, 3)).permute(2, 0, 1) @ columns.T
        inside = rows.sum(dim=1)[:, None] * columns.sum(dim=1) > 0.5  # beside the picture all weights are 0
        image = torch.where(inside, image, self.image_batch.padding)
        return self.image_batch.normalize(image[None]), (resized / sides).flip(0).float(), resized[None].float()

    def _resized_size(self, sides: Float[Tensor, " 2"]) -> Float[Tensor, " 2"]:
        """(height, width) in the network's input; see `ImageBatch.geometry` and `ops.resize.fitted_size`."""
        size = torch.full_like(sides, self.image_batch.image_size)  # torch divides numbers less exactly
        if self.image_batch.size_rule == "round":
            return ((size / sides).amin(dim=0) * sides).round().clamp(min=1)
        single, size = sides.float(), size.float()
        grown = (single * (size / single).amax(dim=0)).floor()
        return (grown * (size / grown).amin(dim=0).clamp(max=1)).floor().clamp(min=1).double()


def interpolation_matrix(
    pixels: Float[Tensor, " n"], new_side: Float[Tensor, ""], size: int, method: ResizeMethod
) -> Float[Tensor, "{size} n"]:
    """The matrix that resizes one axis: a row of weights for each new pixel, then rows of 0.

    Args:
        pixels: 0, 1, ..., n - 1.
        new_side: the number of new pixels, at most `size`.
        size: rows of the matrix.
        method: of `ImageBatch`.
    """
    new_pixels, last = torch.arange(size, dtype=torch.float64), pixels[-1]
    ratio = (last + 1) / new_side
    support = torch.ones_like(ratio)
    if method == "antialias":
        positions, support = (new_pixels + 0.5) * ratio - 0.5, ratio.clamp(min=1)
    elif method == "align_corners":
        positions = new_pixels * (last / (new_side - 1).clamp(min=1))
    else:
        positions = new_pixels * ratio if method == "tf1" else (new_pixels + 0.5) * ratio - 0.5
    if method != "antialias":
        positions = positions.clamp(min=0).minimum(last)
    weights = (1 - (positions[:, None] - pixels).abs() / support).clamp(min=0)
    weights = weights / weights.sum(dim=1, keepdim=True).clamp(min=1e-12)  # of rows beyond the last, too
    return torch.where(new_pixels[:, None] < new_side, weights, 0).float()
