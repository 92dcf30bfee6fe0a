import torch

from maskwright.data.copy_paste import copy_paste
from maskwright.structures import Target, check_targets

SIZE = 20


def crop_with(boxes, colour, *, has_mask=None, iscrowd=None):
    """An image of one colour and objects whose masks fill their boxes."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    has_mask = torch.ones(count, dtype=torch.bool) if has_mask is None else torch.tensor(has_mask)
    masks = torch.zeros((count, SIZE, SIZE), dtype=torch.bool)
    for plane, (x1, y1, x2, y2), known in zip(masks, boxes.int().tolist(), has_mask, strict=True):
        plane[y1:y2, x1:x2] = known
    return torch.full((3, SIZE, SIZE), colour, dtype=torch.uint8), Target(
        boxes=boxes,
        labels=torch.arange(count),
        masks=masks,
        has_mask=has_mask,
        iscrowd=torch.zeros(count, dtype=torch.bool) if iscrowd is None else torch.tensor(iscrowd),
        ids=torch.arange(count) + colour,
        image_id=colour,
    )


def mixed(first, second, *, until):
    """`copy_paste` of two crops, with the first random seed after which `until` of the second one's ids is true."""
    for seed in range(100):
        torch.manual_seed(seed)
        images, targets = copy_paste([first[0], second[0]], [first[1], second[1]], share=1.0)
        if until(targets[1]["ids"].tolist()):
            check_targets(images, targets, 10)
            return images[1], targets[1]
    raise AssertionError("no seed pastes as asked")


def test_a_pasted_object_cuts_what_it_covers():
    """The left half of the lower object goes, its box becomes tight; the pasted object brings pixels, mask and row."""
    upper, lower = crop_with([[4, 4, 8, 8]], 10), crop_with([[6, 4, 10, 8], [0, 12, 5, 20]], 50)
    image, target = mixed(upper, lower, until=lambda ids: 10 in ids)
    assert target["ids"].tolist() == [50, 51, 10]
    assert target["boxes"].tolist() == [[8, 4, 10, 8], [0, 12, 5, 20], [4, 4, 8, 8]]
    assert target["labels"].tolist() == [0, 1, 0]
    assert target["masks"].flatten(1).sum(dim=1).tolist() == [8, 40, 16]
    assert target["image_id"] == 50
    expected = torch.full((3, SIZE, SIZE), 50, dtype=torch.uint8)
    expected[:, 4:8, 4:8] = 10
    assert torch.equal(image, expected)


def test_what_is_hidden_is_dropped():
    """Of the first object half is left, of the second nothing; of the boxes without a mask nothing, and nearly all."""
    upper = crop_with([[0, 0, 10, 10]], 10)
    lower = crop_with(
        [[0, 0, 12, 10], [0, 0, 10, 10], [2, 2, 8, 8], [9, 9, 15, 15]], 50, has_mask=[True, True, False, False]
    )
    lower[1]["masks"][0, :, 2:10] = False  # 20 of 40 pixels are left where nothing covers them
    _, target = mixed(upper, lower, until=lambda ids: 10 in ids)
    assert target["ids"].tolist() == [50, 53, 10]
    assert target["boxes"][0].tolist() == [10, 0, 12, 10]


def test_crowds_boxes_and_large_objects_are_not_pasted():
    upper = crop_with(
        [[0, 0, 4, 4], [5, 5, 9, 9], [0, 0, 20, 6], [12, 12, 14, 14]],
        10,
        has_mask=[True, False, True, True],
        iscrowd=[True, False, False, False],
    )
    seen = set()
    for seed in range(40):
        torch.manual_seed(seed)
        _, targets = copy_paste([upper[0], upper[0] * 0], [upper[1], crop_with([], 0)[1]], share=1.0)
        seen |= set(targets[1]["ids"].tolist())
    assert seen == {13}


def test_share_is_a_probability_and_zero_objects_are_fine():
    empty, full = crop_with([], 0), crop_with([[4, 4, 8, 8]], 10)
    counts = []
    for seed in range(200):
        torch.manual_seed(seed)
        images, targets = copy_paste([full[0], empty[0]], [full[1], empty[1]], share=0.5)
        assert torch.equal(images[0], full[0])
        counts.append(len(targets[1]["ids"]))
    assert 25 <= sum(counts) <= 75  # a quarter of 200 on average
