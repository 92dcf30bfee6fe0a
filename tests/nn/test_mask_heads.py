from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from maskwright.nn.mask_heads import MASK_HEADS, create_mask_head

CHANNELS = 5

# A bias just before a batch norm (or with nothing but norms after it) has no effect in training.
BIASES_BEFORE_NORMS = ("enlarge.bias", "trunk.input_layer.bias", "trunk.blocks.0.skip.bias", "conv.bias", "conv.1.bias")


def crop_size(name: str) -> int:
    """The smallest crop: the deepest level is 1 x 1."""
    return {"hourglass10": 2, "hourglass32": 8, "hourglass52": 32, "hourglass100": 32}.get(name, 4)


def create(name: str, **options) -> nn.Module:
    torch.manual_seed(0)
    return create_mask_head(name, CHANNELS, 2, mask_size=crop_size(name), **options)


def crops(name: str, rows: int) -> Tensor:
    return torch.randn(rows, CHANNELS, crop_size(name), crop_size(name))


@pytest.mark.parametrize("name", MASK_HEADS)
@pytest.mark.parametrize(("num_masks", "upsample"), [(1, 1), (3, 2)])
def test_crops_become_logits_of_the_stated_shape(name, num_masks, upsample):
    head = create(name, num_masks=num_masks, upsample=upsample).eval()
    size = upsample * crop_size(name)
    for rows in (0, 1, 3):
        assert head(crops(name, rows)).shape == (rows, num_masks, size, size)


@pytest.mark.parametrize("name", MASK_HEADS)
@pytest.mark.parametrize("upsample", [1, 2])
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_few_rows_train(name, rows, upsample):
    """Down to 1 x 1 and no row: finite losses and statistics, and a gradient at every parameter (for DDP)."""
    head = create(name, upsample=upsample).train()
    head(crops(name, rows)).square().sum().backward()
    for key, parameter in head.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert rows or not parameter.grad.any(), key
    for key, buffer in head.named_buffers():
        assert buffer.isfinite().all(), key
        if key.endswith("running_var"):
            assert (buffer > 1e-3).all(), key


@pytest.mark.parametrize("name", MASK_HEADS)
def test_every_parameter_has_a_gradient(name):
    head = create(name, upsample=2).train()
    head(crops(name, 6)).square().sum().backward()
    silent = [key for key, value in head.named_parameters() if not (value.grad.abs() > 1e-7).any()]
    assert [key for key in silent if not key.endswith(BIASES_BEFORE_NORMS)] == []


@pytest.mark.parametrize("name", MASK_HEADS)
def test_rows_do_not_see_each_other_at_inference(name):
    head = create(name).eval()
    x = crops(name, 3)
    with torch.no_grad():
        together = head(x)
        apart = torch.cat([head(row[None]) for row in x])
    torch.testing.assert_close(together, apart, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n == "hourglass100" else n for n in MASK_HEADS]
)
def test_export_with_any_number_of_rows(name):
    head = create(name).eval()
    rows = torch.export.Dim("rows", min=0)
    program = torch.export.export(head, (crops(name, 3),), dynamic_shapes={"x": {0: rows}}, strict=False)
    exported = program.module()
    with torch.no_grad():
        for count in (0, 1, 4):
            x = crops(name, count)
            torch.testing.assert_close(exported(x), head(x))


@pytest.mark.parametrize(("name", "count"), [("hourglass52", 23_454_593), ("hourglass100", 47_221_121)])
def test_published_sizes_have_the_originals_parameter_counts(name, count):
    with torch.device("meta"):
        head = create_mask_head(name, 2 + 16 + 32, 64)
    assert sum(parameter.numel() for parameter in head.parameters()) == count


def test_resnet_heads_are_as_deep_as_their_names_say():
    for layers in (4, 8, 12, 16, 20):
        convolutions = [m for m in create(f"resnet{layers}").modules() if isinstance(m, nn.Conv2d)]
        assert sum(m.kernel_size == (3, 3) for m in convolutions) == layers


@pytest.mark.parametrize(("name", "dilated"), [("resnet20", 0), ("resnet20_dilated10", 10), ("resnet20_dilated20", 20)])
def test_dilated_heads_dilate_as_many_convolutions_as_they_say(name, dilated):
    rates = [m.dilation for m in create(name).modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert rates == [(1, 1)] * (20 - dilated) + [(2, 2)] * dilated


def test_enlarged_logits_keep_their_place():
    """Each cell of the crop becomes its own 2 x 2 cells, and no other's."""
    head = create("fcn", upsample=2).eval()
    x = crops("fcn", 1)
    features = head.trunk(x)
    enlarged = head.enlarge(features)
    changed = features.clone()
    changed[..., 1, 2] += 1
    difference = (head.enlarge(changed) - enlarged).abs().sum((0, 1)) > 0
    assert difference.nonzero().tolist() == [[2, 4], [2, 5], [3, 4], [3, 5]]


def test_fully_connected_reads_cells_in_row_order_with_channels_last():
    head = create("fully_connected").eval()
    nn.init.constant_(head.hidden[0].bias, 100.0)  # the ReLU passes everything
    x = crops("fully_connected", 1)
    cells = head.input_layer(x)
    by_hand = head.output(
        head.hidden[0](torch.stack([cells[0, c, i, j] for i in range(4) for j in range(4) for c in range(2)]))
    )
    torch.testing.assert_close(head(x)[0, 0].flatten(), by_hand, rtol=1e-4, atol=1e-4)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"unknown mask head 'hourglas20'; known are hourglass10, .*fcn"):
        create_mask_head("hourglas20", 5, 2)
    with pytest.raises(ValueError, match="needs mask_size"):
        create_mask_head("fully_connected", 5, 2)
    with pytest.raises(ValueError, match="built for crops of 4 x 4"):
        create("fully_connected")(torch.randn(1, CHANNELS, 8, 8))
    with pytest.raises(ValueError, match="multiples of 32, but got 16 x 16"):
        create("hourglass52")(torch.randn(1, CHANNELS, 16, 16))
