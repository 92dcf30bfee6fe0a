"""The published sizes build (on the `meta` device) with the originals' parameter counts."""

import time

import pytest
import torch

from maskwright.models.deep_mac import DeepMAC
from maskwright.nn.mask_heads import create_mask_head
from maskwright.structures import Category
from maskwright.training.recipes import resolve_recipe

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


@pytest.mark.slow
def test_the_largest_recipe_predicts_at_full_size(capsys):
    """`deep_mac/1024_voc_only` with random weights: a square image, for which all 100 boxes lie inside, and masks."""
    resource = pytest.importorskip("resource")  # not on Windows
    values = resolve_recipe("deep_mac/1024_voc_only", ["--data.images=x", "--data.annotations=x"]).model
    torch.manual_seed(0)
    categories: list[Category] = [{"id": label + 1, "name": str(label)} for label in range(90)]
    model = DeepMAC(**{**values, "categories": categories, "mask_classes": []}).eval()
    for heads in model.network.detector or ():  # boxes of 160 pixels, where chance would make them empty
        for name, value in (("size", 40.0), ("offset", 0.5)):
            torch.nn.init.zeros_(heads.get_parameter(f"{name}.2.weight"))
            torch.nn.init.constant_(heads.get_parameter(f"{name}.2.bias"), value)
    image = torch.randint(0, 256, (3, 640, 640), dtype=torch.uint8)
    wall, processor = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        (prediction,) = model([image], score_threshold=0.0, max_detections=100)
    wall, processor = time.perf_counter() - wall, time.process_time() - processor
    assert prediction.mask_probabilities.shape == (100, 32, 32)
    assert prediction.mask_probabilities.isfinite().all()
    with capsys.disabled():
        print(
            f"\n{len(prediction)} boxes with masks: {wall:.1f} s ({processor:.1f} s of processor time, "
            f"{torch.get_num_threads()} threads), peak memory of the process "
            f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
        )
