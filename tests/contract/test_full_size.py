"""The published sizes build (on the `meta` device) with the originals' parameter counts."""

import pytest
import torch

from maskwright.models.deep_mac import DeepMAC
from maskwright.nn.mask_heads import create_mask_head
from maskwright.structures import Category

# Object Detection API, counted there: backbone, embedding heads of both stacks, and the mask head.
HOURGLASS_104 = 187_700_352
EMBEDDING_HEADS = 2 * (598_304 + 594_192)
HEADS = {"hourglass52": 23_454_593, "hourglass100": 47_221_121}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(("image_size", "mask_head"), [(512, "hourglass52"), (1024, "hourglass100")])
def test_deep_mac_has_the_published_number_of_parameters(image_size, mask_head):
    with torch.device("meta"):
        model = DeepMAC(image_size=image_size, mask_head=mask_head)
    assert count(model.network.backbone) == HOURGLASS_104
    assert count(model.network.pixel_embedding) + count(model.network.instance_embedding) == EMBEDDING_HEADS
    assert count(model.network.mask_head) == HEADS[mask_head]
    assert count(model) == HOURGLASS_104 + EMBEDDING_HEADS + HEADS[mask_head]


@pytest.mark.parametrize(
    ("image_size", "mask_head", "expected"),
    [(512, "hourglass52", 217_128_733), (1024, "hourglass100", 240_895_261)],
)
def test_deep_mac_with_its_detector_has_the_published_number_of_parameters(image_size, mask_head, expected):
    with torch.device("meta"):
        categories: list[Category] = [{"id": label + 1, "name": str(label)} for label in range(90)]
        model = DeepMAC(image_size=image_size, mask_head=mask_head, detector="centernet", categories=categories)
    assert model.network.detector is not None
    for heads in model.network.detector:
        assert [count(head) for head in heads.children()] == [613_210, 590_594, 590_594]
    assert count(model) == expected


# The formula of each network: convolutions, norms and biases added up by hand from the paper's tables.
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # 1 x 1 stem with bias; two blocks of two 3 x 3, with norms; one shortcut with bias; logits.
        ("resnet4", 50 * 64 + 64 + 9 * (64 * 128 + 3 * 128 * 128) + 2 * (64 + 5 * 128) + 64 * 128 + 128 + 129),
        ("fully_connected", 50 * 64 + 64 + (64 * 32 * 32 + 1) * 1024 + (1024 + 1) * 1024),
    ],
)
def test_other_heads_have_the_sizes_of_their_definition(name, expected):
    with torch.device("meta"):
        head = create_mask_head(name, 50, 64, mask_size=32)
    assert count(head) == expected
