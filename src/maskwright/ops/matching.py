"""One-to-one assignment of predicted mask slots to true masks."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from scipy.optimize import linear_sum_assignment
from torch import Tensor


def match_masks(similarity: Float[Tensor, "b k n"], valid: Bool[Tensor, "b k"]) -> Int64[Tensor, "b k"]:
    """The slot of each true mask, so that the sum of the similarities of all pairs is maximal.

    similarity: of every true mask (rows) with every slot (columns), 0 or more; there may be more of either.
        A value that is not finite counts as 0, so that a diverged step shows in its loss and does not crash here.
    valid: rows that hold a mask; the others are padding and take no slot.

    Returns -1 for rows that are not valid, and for the least similar ones where there are more masks than
    slots. No gradient passes. The similarities of the whole batch are copied to the CPU in one transfer.

    Source: `nonsquare_hungarian_matching` of the original's max_deeplab_loss.py. Departures: the assignment is
    made in float64, so that it is the true optimum, where the original pads with -999 in float32 and loses
    similarities below 6e-5; and padding takes no slot.
    """
    with torch.no_grad():
        known = similarity.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
        marked = torch.where(valid[:, :, None], known, -1.0).cpu().double()
    slots = torch.full(valid.shape, -1)
    for rows, scores in zip(slots, marked, strict=True):
        used = (scores >= 0).all(dim=1).nonzero().flatten()
        row, column = linear_sum_assignment(scores[used].numpy(), maximize=True)
        rows[used[row]] = torch.from_numpy(column)
    return slots.to(similarity.device)
