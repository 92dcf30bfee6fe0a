import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskwright.data.transforms import Square, jitter_colour, training_transforms
from maskwright.structures import EncodedMasks, Target, check_targets


def target_of(boxes, height=40, width=60, *, masks=None, has_mask=None) -> Target:
    """Instances whose masks fill their (whole-pixel) boxes, unless given."""
    boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    count = len(boxes)
    if masks is None:
        masks = torch.zeros((count, height, width), dtype=torch.bool)
        for plane, (x1, y1, x2, y2) in zip(masks, boxes.round().int().tolist(), strict=True):
            plane[max(y1, 0) : y2, max(x1, 0) : x2] = True
    has_mask = torch.ones(count, dtype=torch.bool) if has_mask is None else torch.tensor(has_mask)
    return Target(
        boxes=boxes,
        labels=torch.arange(count) % 5,
        masks=masks & has_mask[:, None, None],
        has_mask=has_mask,
        iscrowd=torch.arange(count) % 3 == 1,
        ids=torch.arange(count) + 100,
        image_id=7,
    )


def square(left, top, side, size, height=40, width=60) -> Square:
    return Square(left, top, side, height=height, width=width, size=size)


def test_crop_by_hand():
    # The right instance is cut at x = 30, the lower one is outside, the box-only one is cut too.
    boxes = [[12, 5, 20, 15], [24, 8, 40, 20], [10, 35, 20, 40], [4, 4, 14, 12]]
    target = square(10, 0, 20, 40).crop_target(target_of(boxes, has_mask=[True, True, True, False]))
    assert target["ids"].tolist() == [100, 101, 103]
    assert target["boxes"].tolist() == [[4, 10, 20, 30], [28, 16, 40, 40], [0, 8, 8, 24]]
    assert target["masks"][:2].flatten(1).sum(1).tolist() == [16 * 20, 12 * 24]
    assert target["masks"][0, 10:30, 4:20].all()
    assert target["has_mask"].tolist() == [True, True, False]
    assert not target["masks"][2].any()
    assert target["labels"].tolist() == [0, 1, 3]
    assert target["iscrowd"].tolist() == [False, True, False]


def test_crop_beyond_the_image_is_zero():
    image = torch.full((3, 40, 60), 200, dtype=torch.uint8)
    outside = square(-10, -20, 80, 40)
    cropped, target = outside.crop_image(image), outside.crop_target(target_of([[0, 0, 60, 40]]))
    assert target["boxes"].tolist() == [[5, 10, 35, 30]]
    assert target["masks"][0, 10:30, 5:35].all()
    assert target["masks"].sum() == 20 * 30
    assert outside.inside == (slice(10, 30), slice(5, 35))
    assert (cropped[:, 11:29, 6:34] == 200).all()
    assert (cropped[:, :9] == 0).all()
    assert (cropped[:, :, 36:] == 0).all()


def test_box_of_a_cut_instance_is_tight_around_what_is_left_of_its_mask():
    masks = torch.zeros((1, 40, 60), dtype=torch.bool)
    masks[0, 10:12, 10:30] = True  # an L: a flat bar that the crop keeps, and an upright one that it loses
    masks[0, 10:30, 28:30] = True
    target = target_of([[10, 10, 30, 30]], masks=masks)
    assert square(0, 0, 20, 20).crop_target(target)["boxes"].tolist() == [[10, 10, 20, 12]]
    assert square(0, 0, 40, 40).crop_target(target)["boxes"].tolist() == [[10, 10, 30, 30]]


def test_uncut_instance_keeps_its_annotated_box():
    target = square(0, 0, 40, 40).crop_target(target_of([[10.4, 9.8, 30.3, 30.2]]))
    assert torch.allclose(target["boxes"], torch.tensor([[10.4, 9.8, 30.3, 30.2]]))


def test_instance_whose_mask_is_lost_is_dropped_and_a_box_only_one_stays():
    masks = torch.zeros((2, 40, 60), dtype=torch.bool)
    masks[0, 20:30, 25:30] = True  # the crop of the left 20 columns sees the box, but nothing of the mask
    boxes = [[5, 20, 30, 30], [5, 20, 30, 30]]
    target = square(0, 0, 20, 40).crop_target(target_of(boxes, masks=masks, has_mask=[True, False]))
    assert target["ids"].tolist() == []  # the square ends above row 20
    target = square(0, 15, 20, 40).crop_target(target_of(boxes, masks=masks, has_mask=[True, False]))
    assert target["ids"].tolist() == [101]
    assert target["boxes"].tolist() == [[10, 10, 40, 30]]


def test_boxes_that_become_too_small_are_dropped():
    boxes = [[10, 10, 11, 30], [10, 10, 14, 30]]
    target = target_of(boxes, has_mask=[False, False])
    assert square(0, 0, 40, 20).crop_target(target, 1.0)["ids"].tolist() == [101]
    assert square(0, 0, 40, 20).crop_target(target, 0.5)["ids"].tolist() == [100, 101]
    assert square(0, 0, 40, 20).crop_target(target, 3.0)["ids"].tolist() == []


@given(
    st.integers(1, 70),
    st.integers(1, 90),
    st.integers(-40, 90),
    st.integers(-40, 70),
    st.integers(1, 120),
    st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_masks_follow_the_pixel_under_each_centre(height, width, left, top, side, size):
    generator = torch.Generator().manual_seed(height * 100 + width)
    masks = torch.rand((2, height, width), generator=generator) < 0.5
    results = [
        square(left, top, side, size, height, width).crop_masks(form, torch.tensor([1, 0]))
        for form in (masks, EncodedMasks.from_planes(masks))
    ]
    doubled = (2 * torch.arange(size) + 1) * side  # the centres, in the 2 * size-th parts of a pixel
    rows, columns = (start + doubled // (2 * size) for start in (top, left))
    inside = ((rows >= 0) & (rows < height))[:, None] & ((columns >= 0) & (columns < width))
    expected = masks[:, rows.clamp(0, height - 1)][:, :, columns.clamp(0, width - 1)] & inside
    certain = doubled % (2 * size) > 0  # a centre on the border of two pixels may belong to either
    assert torch.equal(*results)
    assert torch.equal(results[0][:, certain][:, :, certain], expected[[1, 0]][:, certain][:, :, certain])


@given(st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_run_lengths_and_planes_give_the_same_sample(seed):
    """From the boxes that are dropped to the tight boxes and the flip."""
    torch.manual_seed(seed)
    corners = torch.rand(4, 2) * torch.tensor([50.0, 30.0])
    target = target_of(torch.cat([corners, corners + 3 + torch.rand(4, 2) * 20], dim=1).tolist())
    target["masks"] &= torch.rand(4, 40, 60) < 0.7
    image = torch.randint(256, (3, 40, 60), dtype=torch.uint8)
    samples = []
    for masks in (target["masks"], EncodedMasks.from_planes(target["masks"])):
        torch.manual_seed(seed)
        samples.append(training_transforms(64, scale=(0.3, 1.5))(image, Target(**{**target, "masks": masks})))
    (first_image, first), (second_image, second) = samples
    assert torch.equal(first_image, second_image)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first if key != "image_id")


@given(st.integers(0, 10_000))
@settings(max_examples=40, deadline=None)
def test_image_masks_and_boxes_stay_together(seed):
    """Instances are white squares on black: after any augmentation, mask, box and white pixels coincide."""
    torch.manual_seed(seed)
    corners = torch.rand(4, 2) * torch.tensor([50.0, 30.0])
    boxes = torch.cat([corners, corners + 3 + torch.rand(4, 2) * 20], dim=1).round()
    boxes = torch.minimum(boxes, torch.tensor([60.0, 40.0, 60.0, 40.0])).tolist()
    target = target_of(boxes, has_mask=[True, True, True, False])
    covered = target_of(boxes)["masks"].any(dim=0)
    image = (covered * 255).to(torch.uint8).expand(3, -1, -1)
    new_image, new_target = training_transforms(96, scale=(0.5, 1.5), colour=0.0)(image, target)
    check_targets([new_image], [new_target], 5)
    assert new_image.dtype == torch.uint8
    assert new_image.shape == (3, 96, 96)
    assert type(new_target["boxes"]) is torch.Tensor
    for index, (x1, y1, x2, y2) in enumerate(new_target["boxes"].tolist()):
        assert x1 >= 0
        assert y1 >= 0
        assert max(x2, y2) <= 96
        mask = new_target["masks"][index]
        if not new_target["has_mask"][index]:
            assert not mask.any()
            continue
        rows, columns = mask.nonzero(as_tuple=True)
        found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        assert (found - torch.tensor([x1, y1, x2, y2])).abs().max() <= 1
        assert (new_image[0][mask] > 100).float().mean() > 0.9
    outside = ~new_target["masks"].any(dim=0)
    for x1, y1, x2, y2 in new_target["boxes"].floor().int().tolist():
        outside[max(y1 - 2, 0) : y2 + 3, max(x1 - 2, 0) : x2 + 3] = False
    if outside.any():  # a white remainder of an instance that was dropped is thinner than a pixel or two
        assert (new_image[0][outside] > 100).float().mean() < 0.1


def test_scale_is_the_side_of_the_crop_relative_to_the_long_side():
    sides = []
    for seed in range(200):
        torch.manual_seed(seed)
        drawn = Square.draw(480, 640, (0.6, 1.3), 384)
        sides.append(drawn.side / 640)
        centre = drawn.left + drawn.side // 2, drawn.top + drawn.side // 2
        assert 128 <= centre[0] <= 512
        assert 128 <= centre[1] <= 352
    assert 0.6 - 1 / 640 <= min(sides) < 0.63
    assert 1.27 < max(sides) <= 1.3
    torch.manual_seed(0)
    whole = Square.draw(480, 640, (1.0, 1.0), 320)
    assert whole.side == 640


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([200, 180, 240, 200], (170, 140, 100)),  # 2.5 long sides around (220, 190)
        ([0, 230, 40, 240], (0, 185, 100)),  # moved to the right, into the image
        ([300, 460, 320, 480], (278, 416, 64)),  # 384 / 6: no more enlarged than that; moved up
        ([0, 0, 640, 400], (0, 0, 1600)),  # larger than the image, which lies at the top left
    ],
)
def test_crop_around_an_object(box, expected):
    found = Square.around(torch.tensor(box).float(), 480, 640, (2.5, 2.5), 384)
    assert (found.left, found.top, found.side) == expected


def test_object_crops_take_objects_with_masks_alone():
    """Of three objects, one is box-only and one a crowd; the crop is twice as long as the third."""
    image = torch.zeros((3, 200, 200), dtype=torch.uint8)
    target = target_of(
        [[20, 20, 40, 40], [100, 100, 160, 140], [10, 100, 30, 120]], 200, 200, has_mask=[True, True, False]
    )
    transforms = training_transforms(100, object_crops=1.0, object_scale=(2.0, 2.0), flip=0.0, colour=0.0)
    for seed in range(10):
        torch.manual_seed(seed)
        _, cropped = transforms(image, target)
        assert cropped["ids"].tolist()[0] == 100
        assert cropped["boxes"][0].tolist() == [25, 25, 75, 75]


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (3, 2), (200, 9)])
def test_tiny_images(size):
    image = torch.zeros((3, *size), dtype=torch.uint8)
    target = target_of([[0, 0, size[1], size[0]]], *size)
    for seed in range(20):
        torch.manual_seed(seed)
        result, new_target = training_transforms(16)(image, target)
        check_targets([result], [new_target])
        assert result.shape == (3, 16, 16)


def test_no_instances():
    torch.manual_seed(0)
    image, target = training_transforms(16)(torch.zeros((3, 40, 60), dtype=torch.uint8), target_of([]))
    check_targets([image], [target])
    assert target["masks"].shape == (0, 16, 16)
    assert target["image_id"] == 7


def test_flip_mirrors_image_box_and_mask():
    image = torch.arange(60, dtype=torch.uint8).expand(3, 60, -1).clone()
    target = target_of([[4, 6, 20, 30]], 60)
    torch.manual_seed(3)
    straight = training_transforms(60, scale=(1.0, 1.0), flip=0.0, colour=0.0)(image, target)
    torch.manual_seed(3)
    mirrored = training_transforms(60, scale=(1.0, 1.0), flip=1.0, colour=0.0)(image, target)
    assert torch.equal(mirrored[0], straight[0].flip(2))
    assert torch.equal(mirrored[1]["masks"], straight[1]["masks"].flip(2))
    x1, y1, x2, y2 = straight[1]["boxes"][0].tolist()
    assert mirrored[1]["boxes"][0].tolist() == [60 - x2, y1, 60 - x1, y2]


def test_colour_bounds_of_deep_mac():
    grey = torch.full((3, 4, 4), 100, dtype=torch.uint8)
    values = []
    for seed in range(300):
        torch.manual_seed(seed)
        changed = jitter_colour(grey, 0.25)
        assert (changed == changed[0, 0, 0]).all()  # grey stays grey: hue and saturation leave it, contrast the mean
        values.append(int(changed[0, 0, 0]))
    assert 49 <= min(values) < 55
    assert 145 < max(values) <= 151
    assert abs(sum(values) / len(values) - 100) < 6


def test_colour_is_as_strong_as_the_originals_by_default():
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    results = []
    for options in ({}, {"colour": 0.25}, {"colour": 0.0}):
        torch.manual_seed(3)
        results.append(training_transforms(40, **options)(image, target_of([]))[0])
    assert results[0].equal(results[1])
    assert not results[0].equal(results[2])


def test_colour_changes_hue_saturation_and_contrast():
    image = torch.randint(60, 190, (3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    changed = jitter_colour(image, 0.25).float()
    ratio = changed.std() / image.float().std()
    assert 0.6 < ratio < 1.6
    shift = (changed - image).mean(dim=(1, 2))
    assert shift.std() < 3  # the mean of each channel moves by the brightness alone, up to the hue's turn
    assert not torch.equal(changed, image.float())


def test_padding_stays_black_under_colour():
    image = torch.full((3, 40, 60), 128, dtype=torch.uint8)
    for seed in range(10):
        torch.manual_seed(seed)
        result, _ = training_transforms(60, scale=(2.0, 2.0))(image, target_of([]))
        assert (result[:, 0] == 0).all() or (result[:, -1] == 0).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"image_size": 8, "scale": (1.3, 0.6)}, "scale must be"),
        ({"image_size": 8, "scale": (0.0, 1.0)}, "scale must be"),
        ({"image_size": 8, "flip": 1.5}, "flip must lie"),
        ({"image_size": 8, "colour": -1.0}, "colour must be"),
    ],
)
def test_bad_values(options, message):
    with pytest.raises(ValueError, match=message):
        training_transforms(**options)


def test_without_a_scale_the_whole_image_lies_at_the_top_left():
    image, target = torch.full((3, 40, 60), 200, dtype=torch.uint8), target_of([[4, 6, 20, 30]])
    placed, target = training_transforms(120, scale=None, flip=0.0, colour=0.0)(image, target)
    assert target["boxes"].tolist() == [[8, 12, 40, 60]]
    assert (placed[:, :79] == 200).all()
    assert (placed[:, 81:] == 0).all()
