"""The operations of the policy, by hand; the originals' own outputs are in tests/parity."""

from collections import Counter

import torch

from maskwright.data import auto_augment as policy


def image(values: list) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).expand(3, -1, -1).contiguous()


def test_solarize():
    assert policy.solarize(image([[0, 178, 179, 255]]), 7)[0].tolist() == [[0, 178, 76, 0]]  # threshold int(179.2)
    assert policy.solarize(image([[0, 255]]), 10)[0].tolist() == [[255, 0]]


def test_brightness_and_contrast():
    assert policy.brightness(image([[0, 100, 200]]), 10)[0].tolist() == [[0, 190, 255]]
    assert policy.brightness(image([[0, 100]]), 5)[0].tolist() == [[0, 100]]  # the factor 1
    # 512 pixels: the originals' mean grey is 512 / 256 = 2, whatever the picture.
    bright = torch.full((3, 16, 32), 100, dtype=torch.uint8)
    assert policy.contrast(bright, 0).unique().tolist() == [int(2 + 0.1 * 98)]
    assert policy.contrast(torch.full((3, 300, 300), 100, dtype=torch.uint8), 0).unique().tolist() == [239]  # 255


def test_colour_leaves_grey_alone():
    grey = image([[7, 90, 255]])
    assert torch.equal(policy.colour(grey, 9), grey)
    red = torch.tensor([200, 0, 0], dtype=torch.uint8).view(3, 1, 1)
    assert policy.colour(red, 0).flatten().tolist() == [int(59 + 0.1 * 141), 53, 53]  # luminance 0.2989 * 200


def test_equalize():
    ramp = torch.arange(0, 256, 2).repeat_interleave(8).view(1, 32, 32).expand(3, -1, -1).to(torch.uint8)
    spread = policy.equalize(ramp, 0)
    assert spread.min() == 0
    assert spread.max() >= 250
    flat = image([[9, 9], [9, 9]])
    assert torch.equal(policy.equalize(flat, 0), flat)


def test_sharpness_leaves_the_edge_and_flat_regions():
    flat = image([[9] * 5] * 5)
    assert torch.equal(policy.sharpness(flat, 7), flat)
    dot = flat.clone()
    dot[:, 2, 2] = 141
    soft = policy.sharpness(dot, 0)  # factor 0.1: nearly the softened copy, (8 * 9 + 5 * 141) // 13 in the middle
    assert int(soft[0, 2, 2]) == 59 + int(0.1 * 82)
    assert int(soft[0, 1, 1]) == 19 - 1
    assert torch.equal(soft[:, 0], dot[:, 0])
    tiny = image([[1, 2], [3, 4]])
    assert torch.equal(policy.sharpness(tiny, 9), tiny)


def test_the_policy_draws_every_operation(monkeypatch):
    """Out of 5 pairs at their probabilities: Equalize in pairs 4 (0.6) and 5 (0.2), never in pair 2 (0.0)."""
    seen: Counter = Counter()

    def counting(name):
        def operation(picture, level):
            seen[name, level] += 1
            return picture

        return operation

    monkeypatch.setattr(policy, "OPERATIONS", {name: counting(name) for name in policy.OPERATIONS})
    torch.manual_seed(0)
    for _ in range(2000):
        policy.auto_augment(image([[1]]))
    assert 200 < seen["Equalize", 9] < 280  # 0.6 / 5 of 2000; pair 2's own level is 9, too
    assert 50 < seen["Equalize", 7] < 115
    assert 125 < seen["Sharpness", 7] < 200
    assert {name for name, _ in seen} == set(policy.OPERATIONS)
