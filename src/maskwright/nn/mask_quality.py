"""A small network beside a mask head that predicts how well each mask fits the truth."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from maskwright.nn.inference import without_autocast
from maskwright.nn.layers import ConvBlock, initialize_glorot

_WIDTH = 64
_NUM_MEASURES = 7


class MaskQualityHead(nn.Module):
    """Crops and the masks made of them -> the logit of each mask's IoU with the truth, whatever its class.

    Three convolutions of stride 2 see the crop's channels and the mask's probabilities; the mean over what is left of
    the grid and the `mask_measures` go through two linear layers. N may be 0 or 1, also in training. The result is
    float32 under autocast, too.

    No gradient flows back into the crops or the masks: with this head and without it, a model learns the same masks.

    Args:
        in_channels: channels of the crops.
        width: factor on the channels of the hidden layers, for tests.
        norm_momentum: of the batch norms, in torch's sense.

    Source: the MaskIoU head of Mask Scoring R-CNN (arXiv 1903.00241, section 3.2; there one value per class, from the
    features and the mask alone) and the IoU prediction of SAM (arXiv 2304.02643, appendix A). The layers are ours.
    """

    def __init__(self, in_channels: int, width: float = 1.0, norm_momentum: float = 0.1) -> None:
        super().__init__()
        hidden = max(1, round(_WIDTH * width))
        channels = [in_channels + 1, hidden, hidden, hidden]
        block = partial(ConvBlock, kernel=3, stride=2, norm_momentum=norm_momentum)
        self.convolutions = nn.Sequential(*(block(before, after) for before, after in pairwise(channels)))
        self.readout = _Readout(nn.Linear(hidden + _NUM_MEASURES, hidden), nn.ReLU(), nn.Linear(hidden, 1))
        initialize_glorot(self)

    def forward(
        self, crops: Float[Tensor, "n c s s"], logits: Float[Tensor, "n m m"], boxes: Float[Tensor, "n 4"]
    ) -> Float[Tensor, " n"]:
        """The logit of each mask's expected IoU.

        Args:
            crops: what the mask head was given.
            logits: of the masks; M is a multiple of S.
            boxes: xyxy, pixels of the network input.
        """
        crops, probabilities = crops.detach(), logits.detach().float().sigmoid()
        masks = F.avg_pool2d(probabilities[:, None], logits.shape[-1] // crops.shape[-1])
        seen = self.convolutions(torch.cat([crops, masks.to(crops.dtype)], dim=1)).mean(dim=(2, 3))
        return self.readout(torch.cat([seen.float(), mask_measures(probabilities, boxes)], dim=1)).squeeze(1)


class _Readout(nn.Sequential):
    """Layers that stay in float32 under autocast: bfloat16 tells only some 40 scores between 0.8 and 1 apart."""

    full_precision = True

    def forward(self, input: Float[Tensor, "n c"]) -> Float[Tensor, "n d"]:
        """See `Sequential`."""
        with without_autocast(input.device):
            return super().forward(input)


def expected_iou(probabilities: Float[Tensor, "n m m"]) -> Float[Tensor, " n"]:
    """The IoU of each mask with the truth that is to be expected if each pixel's probability p were right.

    The mask is where p > 0.5. sum(p in the mask) / (area of the mask + sum(p outside of it)): the expected intersection
    over the expected union. An empty mask has 0.
    """
    mask = probabilities > 0.5
    intersection = (probabilities * mask).sum(dim=(1, 2))
    union = torch.where(mask, 1, probabilities).sum(dim=(1, 2))
    return intersection / union.clamp(min=1)  # which only that of an empty mask can be below


def mask_measures(probabilities: Float[Tensor, "n m m"], boxes: Float[Tensor, "n 4"]) -> Float[Tensor, "n 7"]:
    """What a mask says of itself, and how it fits its box; each about 0 to 1.

    In this order: `expected_iou`; the mean of p in the mask; the mask's share of the grid; the mean over columns, and
    over rows, of their largest p, which is how far the mask reaches across its box; log2 of the box's width and of its
    height in pixels, divided by 10. An empty mask has 0 in the first two.
    """
    mask = (probabilities > 0.5).to(probabilities.dtype)
    inside, area = (probabilities * mask).sum(dim=(1, 2)), mask.sum(dim=(1, 2))
    across = [probabilities.amax(dim=axis).mean(dim=1) for axis in (1, 2)]
    sides = (boxes[:, 2:] - boxes[:, :2]).abs().clamp(min=1).log2() / 10
    measures = [expected_iou(probabilities), inside / area.clamp(min=1), mask.mean(dim=(1, 2)), *across]
    return torch.cat([torch.stack(measures, dim=1), sides.to(probabilities.dtype)], dim=1)
