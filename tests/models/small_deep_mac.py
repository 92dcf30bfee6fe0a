"""Small models of Deep-MAC and targets for them."""

import torch

from maskwright.models.deep_mac import DeepMAC

SIZE = 64


def build(**values):
    torch.manual_seed(0)
    defaults = {
        "image_size": SIZE,
        "backbone": "hourglass10",
        "mask_head": "hourglass10",
        "mask_head_width": 4,
        "pixel_embedding_dim": 4,
        "instance_embedding_dim": 4,
        "embedding_width": 8,
        "width": 0.25,
    }
    return DeepMAC(**{**defaults, **values})


def make_target(boxes, has_mask=None, iscrowd=None, size=SIZE):
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    masks = torch.zeros(count, size, size, dtype=torch.bool)
    has_mask = torch.ones(count, dtype=torch.bool) if has_mask is None else torch.tensor(has_mask)
    for row, (x1, y1, x2, y2) in enumerate(boxes.long().tolist()):
        masks[row, y1 : (y1 + y2) // 2, x1:x2] = has_mask[row]
    return {
        "boxes": boxes,
        "labels": torch.zeros(count, dtype=torch.int64),
        "masks": masks,
        "has_mask": has_mask,
        "iscrowd": torch.zeros(count, dtype=torch.bool) if iscrowd is None else torch.tensor(iscrowd),
        "ids": torch.arange(count),
        "image_id": 1,
    }


BOXES = [[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 60.0, 30.0]]


def images(count):
    return list(torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))
