"""The loss of Deep-MARC's masks against the original's: its filter of classes, soft targets, and the gradient."""

from __future__ import annotations

import numpy as np
import torch
from parity_data import ParityData

from maskwright.models.deep_marc.model import mask_loss

ALL_CLASSES = 91
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-4, 1e-3


def check_mask_loss(data: ParityData, file: str) -> None:
    """`sampled`: rows of sampled proposals; `gt`: all ground-truth boxes, filled up with rows of class -1.

    The original gives rows of no allowed class the weight 0; ours has left them out before the mask head.
    """
    arrays, voc = data.arrays(file), data.files[file]["config"]["voc"]
    allowed = {"all": range(1, ALL_CLASSES), "voc": voc, "none": [ALL_CLASSES]}
    for rows in ("sampled", "gt"):
        classes = arrays[f"{rows}_classes"]
        targets = torch.from_numpy(arrays[f"{rows}_targets"])
        for name, ids in allowed.items():
            learnt = torch.from_numpy(np.isin(classes, list(ids)))
            logits = torch.from_numpy(arrays[f"{rows}_logits"]).requires_grad_()
            loss = mask_loss(logits[learnt], targets[learnt])
            loss.backward()
            _check(f"{rows}, {name}: loss", loss.detach(), arrays[f"{rows}_loss_{name}"], LOSS_TOLERANCE)
            _check(f"{rows}, {name}: gradient", logits.grad, arrays[f"{rows}_grad_{name}"], GRADIENT_TOLERANCE)


def _check(what: str, ours: torch.Tensor | None, reference: np.ndarray, tolerance: float) -> None:
    assert ours is not None
    worst = np.abs(ours.numpy() - reference).max()
    assert worst <= tolerance * max(np.abs(reference).max(), 1e-12), f"{what} is off by {worst}"
