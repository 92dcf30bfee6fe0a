"""Small models of Deep-MARC and targets for them."""

import torch
from small_deep_mac import make_target

from maskwright.models.deep_marc import DeepMARC

SIZE = 128
CATEGORIES = [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}, {"id": 90, "name": "bird"}]
BOXES = [[4.0, 6.0, 40.0, 50.0], [20.0, 10.0, 120.0, 110.0]]


def build(**values):
    torch.manual_seed(0)
    defaults = {
        "categories": CATEGORIES,
        "image_size": SIZE,
        "backbone": "resnet18_fpn",
        "box_head": "2fc",
        "num_proposals": 40,
        "num_box_samples": 32,
        "mask_head": "fcn",
        "mask_head_width": 64,
        "mask_size": 8,
        "width": 0.0625,
    }
    return DeepMARC(**{**defaults, **values})


def images(count):
    return list(torch.rand(count, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1)))


def target(boxes, **values):
    return make_target(boxes, size=SIZE, **values)
