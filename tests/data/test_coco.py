import json

import numpy as np
import pytest
import torch
from coco_folder import CATEGORIES, HEIGHT, WIDTH, annotation
from PIL import Image

from maskwright.data.annotations import read_annotations
from maskwright.data.coco import CocoInstances
from maskwright.data.dataset import split_by_hash
from maskwright.data.normalise import Kind
from maskwright.errors import UserError
from maskwright.structures import Target, check_targets


def open_folder(coco, **options) -> CocoInstances:
    return CocoInstances(coco.images, coco.annotations, **options)


def random_image(image, target):
    return torch.randint(256, (3, 2, 2), dtype=torch.uint8), target


def test_target_of_every_kind_of_annotation(coco):
    run_lengths = {"size": [HEIGHT, WIDTH], "counts": [12, 5, HEIGHT * WIDTH - 17]}
    coco.write(
        [
            annotation(100, bbox=[2, 3, 6, 4]),
            annotation(40, category_id=90, segmentation=run_lengths, iscrowd=1, bbox=[1, 0, 1, 5]),
            annotation(30, category_id=3, segmentation=...),
            annotation(20, segmentation=None),
            annotation(10, segmentation=[]),
            annotation(50, image_id=3),
        ],
        images=3,
    )
    dataset = open_folder(coco)
    samples = [dataset[index] for index in range(3)]
    planes = [Target(**{**target, "masks": target["masks"].planes()}) for _, target in samples]
    check_targets([image for image, _ in samples], planes, 3)
    image, target = samples[0]
    assert target["ids"].tolist() == [100, 40, 30, 20, 10]
    assert target["labels"].tolist() == [0, 2, 1, 0, 0]
    assert target["has_mask"].tolist() == [True, True, False, False, False]
    assert target["iscrowd"].tolist() == [False, True, False, False, False]
    assert target["boxes"][:2].tolist() == [[2, 3, 8, 7], [1, 0, 2, 5]]
    assert target["masks"].areas().tolist() == [24, 5, 0, 0, 0]
    assert target["masks"].extents()[1].tolist() == [1, 0, 2, 5]
    assert target["image_id"] == 1
    assert len(samples[1][1]["boxes"]) == 0
    assert samples[1][1]["masks"].shape == (0, HEIGHT, WIDTH)
    assert samples[2][1]["ids"].tolist() == [50]
    pixels = np.array(Image.open(coco.images / "1.png"))
    assert (image.permute(1, 2, 0).numpy() == pixels).all()
    assert dataset.skipped == {}
    assert dataset.categories == CATEGORIES


def test_class_outside_mask_classes_keeps_its_box_only(coco):
    coco.write([annotation(1), annotation(2, category_id=90)])
    dataset = open_folder(coco, mask_classes=["window"])
    target = dataset[0][1]
    assert target["has_mask"].tolist() == [False, True]
    assert (target["masks"].areas() > 0).tolist() == [False, True]
    assert len(target["boxes"]) == 2
    assert dataset.mask_classes == ["window"]


def test_categories_of_a_model_map_by_name(coco):
    coco.write([annotation(1), annotation(2, category_id=3)])
    model = [{"id": 1, "name": "TrafficLight"}, {"id": 9, "name": "cat"}, {"id": 2, "name": "person"}]
    dataset = open_folder(coco, categories=model)  # "window" is listed, but no annotation uses it
    assert dataset[0][1]["labels"].tolist() == [2, 0]
    assert dataset.categories == model


def test_used_classes_unknown_to_the_model_are_listed(coco):
    coco.write([annotation(1), annotation(2, category_id=3), annotation(3, category_id=90)])
    with pytest.raises(UserError, match="does not know: person, window; it knows: traffic light"):
        open_folder(coco, categories=[{"id": 1, "name": "traffic light"}])


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([-4, -4, 10, 8], [0, 0, 6, 4]),
        ([15, 10, 50, 50], [15, 10, 20, 12]),
        ([1.5, 2.25, 3, 4], [1.5, 2.25, 4.5, 6.25]),
        ([5, 5, 0, 3], None),
        ([5, 5, 3, -1], None),
        ([30, 3, 4, 4], None),
        ([-5, -5, 2, 2], None),
        ([1, 2, 1e-12, 3], None),
        ([1, 2, float("nan"), 3], None),
        ([1, 2, float("inf"), 3], None),
        ([1, 2, 10**400, 3], None),
        ([1, 2, 3], None),
        ("abcd", None),
        (None, None),
    ],
)
def test_boxes_are_clipped_and_degenerate_ones_dropped(coco, box, expected):
    coco.write([annotation(1, bbox=box, segmentation=[]), annotation(2)])
    dataset = open_folder(coco)
    target = dataset[0][1]
    if expected is None:
        assert target["ids"].tolist() == [2]
        assert sum(dataset.skipped.values()) == 1
    else:
        assert target["ids"].tolist() == [1, 2]
        assert target["boxes"][0].tolist() == expected
        assert dataset.skipped == {}


def test_skipped_counts_by_kind_of_reason(coco):
    annotations = [annotation(1), annotation(2, image_id=99), annotation(3, image_id=98), annotation(4, category_id=1)]
    coco.write([*annotations, annotation(5, segmentation=[[1, 2]])])
    dataset = open_folder(coco)
    assert dataset.skipped == {"unknown image_id": 2, "unknown category_id": 1, "unusable segmentation": 1}
    assert dataset[0][1]["ids"].tolist() == [1, 5]
    assert dataset[0][1]["has_mask"].tolist() == [True, False]


def test_ids_may_be_texts_and_annotations_in_any_order(coco):
    images = [coco.picture("a.png", "a"), coco.picture("b.png", "b")]
    coco.write([annotation(3, "b"), annotation(1, "a"), annotation(2, "b")], images=images)
    dataset = open_folder(coco)
    assert [dataset[index][1]["image_id"] for index in (0, 1)] == ["a", "b"]
    assert [dataset[index][1]["ids"].tolist() for index in (0, 1)] == [[1], [3, 2]]


def test_seed_alone_fixes_the_augmentation_and_the_random_state_is_put_back(coco):
    coco.write([annotation(1)])
    dataset = open_folder(coco, transforms=random_image)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = dataset[(0, 11)][0]
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert torch.equal(dataset[(0, 11)][0], first)
    assert not torch.equal(dataset[(0, 12)][0], first)


def test_subset_keeps_seeds_weights_and_its_own_transforms(coco):
    images = [coco.picture(f"{n}.png", n) | {"sampling_weight": n / 2} for n in range(4)]
    coco.write([annotation(n + 1, image_id=n) for n in range(4)], images=images)
    dataset = open_folder(coco)
    part = dataset.subset([3, 1]).subset([1, 0])
    part.transforms = random_image
    assert part.file_names == ["1.png", "3.png"]
    assert part.sampling_weights.tolist() == [0.5, 1.5]
    assert dataset.sampling_weights.tolist() == [0, 0.5, 1, 1.5]
    assert [part[(index, 0)][1]["image_id"] for index in range(2)] == [1, 3]
    assert len(part) == 2
    assert dataset.transforms is None
    with pytest.raises(IndexError):
        part[2]
    with pytest.raises(UserError, match="without any image"):
        dataset.subset([])


def test_many_annotations_keep_the_order_of_the_file_within_an_image(coco):
    coco.write([annotation(number, image_id=1 + number % 2) for number in range(200)], images=2)
    dataset = open_folder(coco)
    assert dataset[0][1]["ids"].tolist() == list(range(0, 200, 2))
    assert dataset[1][1]["ids"].tolist() == list(range(1, 200, 2))


def test_no_sampling_weights(coco):
    assert open_folder(coco.write([annotation(1)])).sampling_weights is None


@pytest.mark.parametrize("orientation", [1, 3, 6])
@pytest.mark.parametrize("exif_rule", ["auto", "upright"])
def test_a_picture_is_upright_where_its_size_does_not_say_otherwise(coco, orientation, exif_rule):
    entry = coco.picture("1.png", 1)
    pixels = np.array(Image.open(coco.images / "1.png"))
    stored = {1: pixels, 3: pixels[::-1, ::-1], 6: np.rot90(pixels)}[orientation]  # 6: turn them clockwise
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(stored)).save(coco.images / "1.png", exif=exif)
    coco.write([annotation(1)], images=[entry])
    assert (open_folder(coco, exif=exif_rule)[0][0].permute(1, 2, 0).numpy() == pixels).all()


@pytest.mark.parametrize(("orientation", "exif_rule"), [(6, "auto"), (6, "stored"), (3, "stored")])
def test_a_picture_stays_as_stored_where_its_size_or_the_user_says_so(coco, orientation, exif_rule):
    entry = coco.picture("1.png", 1)
    pixels = np.array(Image.open(coco.images / "1.png"))
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(coco.images / "1.png", exif=exif)
    coco.write([annotation(1)], images=[entry])
    assert (open_folder(coco, exif=exif_rule)[0][0].permute(1, 2, 0).numpy() == pixels).all()


def test_wrong_size_names_the_file_and_both_sizes(coco):
    entry = coco.picture("1.png", 1) | {"width": WIDTH + 1}
    coco.write([annotation(1)], images=[entry])
    with pytest.raises(UserError, match=r"1\.png has 12 x 20 pixels .* says 12 x 21"):
        open_folder(coco)[0]


def test_missing_and_broken_images(coco, tmp_path):
    coco.write([annotation(1)], images=2)
    dataset = open_folder(coco)
    (coco.images / "2.png").unlink()
    with pytest.raises(UserError, match=r"2\.png.* does not exist"):
        dataset[1]
    (coco.images / "1.png").write_bytes(b"not a picture")
    with pytest.raises(UserError, match=r"cannot read the image .*1\.png"):
        dataset[0]
    (coco.images / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.png.* does not exist"):
        open_folder(coco)
    with pytest.raises(UserError, match=r"image folder .*nowhere does not exist"):
        CocoInstances(tmp_path / "nowhere", coco.annotations)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it is empty"),
        ("{", "not a JSON file"),
        ("[1, 2]", "but got a list"),
        ("null", "but got a null"),
        ('{"images": [], "categories": []}', "it lacks 'annotations'"),
        ('{"images": {}, "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "'images' must be a list"),
        ("\udcff", "not a JSON file"),
        ("[" * 100_000, "not a JSON file"),
    ],
)
def test_not_a_coco_file(coco, text, message):
    coco.annotations.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=message) as caught:
        open_folder(coco)
    assert str(coco.annotations) in str(caught.value)


def test_no_file(coco):
    with pytest.raises(UserError, match=r"cannot read the annotation file .*instances\.json: No such file"):
        open_folder(coco)


def test_split_depends_on_the_name_alone():
    names = [f"{number:012d}.jpg" for number in range(1000)]
    training, validation = split_by_hash(names, 0.15)
    assert sorted(training + validation) == list(range(1000))
    assert 110 < len(validation) < 190
    kept_out = {names[index] for index in validation}
    again = split_by_hash(names[::-2], 0.15)[1]
    assert {names[::-2][index] for index in again} == kept_out & set(names[::-2])
    # Written down so that a change of the hash cannot move images from one side to the other unnoticed.
    assert validation[:5] == EXPECTED_FIRST
    larger = {names[index] for index in split_by_hash(names, 0.3)[1]}
    assert kept_out < larger


EXPECTED_FIRST = [5, 11, 14, 22, 28]


def test_split_leaves_no_side_empty():
    assert [len(side) for side in split_by_hash(["a", "b"], 0.0001)] == [1, 1]
    assert [len(side) for side in split_by_hash(["a", "b"], 0.9999)] == [1, 1]
    with pytest.raises(UserError, match="at least 2"):
        split_by_hash(["a"], 0.1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        split_by_hash(["a", "b"], 1.0)


def test_index_of_a_file_with_extra_keys_reads_as_without(coco):
    coco.write([annotation(1, score=0.5, area=3, attributes={"a": [1]})])
    content = json.loads(coco.annotations.read_text())
    content["info"] = {"year": 2020}
    coco.annotations.write_text(json.dumps(content))
    assert open_folder(coco)[0][1]["ids"].tolist() == [1]


def test_the_ids_of_the_file_stay_known(coco):
    coco.write([annotation("b", image_id=2), annotation("a"), annotation("a", image_id=2)], images=2)
    index = read_annotations(coco.annotations)
    assert index.ids.tolist() == [2, 1, 3]
    assert [index.own_id(row) for row in range(3)] == ["a", "b", "a"]
    assert open_folder(coco).repaired == {Kind.ANNOTATION_ID: 3}
    assert open_folder(coco).skipped == {}


def test_a_picture_listed_twice_is_two_samples(coco):
    entries = [coco.picture("1.png", 1), coco.picture("1.png", 1) | {"id": 5}]
    coco.write([annotation(1), annotation(2, image_id=5)], images=entries)
    dataset = open_folder(coco)
    assert [dataset[index][1]["ids"].tolist() for index in range(2)] == [[1], [2]]
    assert torch.equal(dataset[0][0], dataset[1][0])
    assert dataset.repaired == {Kind.LISTED_TWICE: 1}


def test_pictures_are_found_under_other_paths(coco):
    entries = [coco.picture("1.png", 1) | {"file_name": "D:\\project\\1.png"}]
    coco.write([annotation(1)], images=entries)
    dataset = open_folder(coco)
    assert dataset[0][0].shape == (3, HEIGHT, WIDTH)
    assert dataset.repaired == {Kind.PICTURE_NAME: 1}


def test_label_studio_lists_the_stored_size_of_an_upright_picture(coco):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (WIDTH, HEIGHT)).save(coco.images / "1.jpg", exif=exif)
    low = annotation(1, bbox=[2, 15, 6, 4], segmentation=[[2, 15, 8, 15, 8, 19, 2, 19]])
    coco.write([low], images=[{"id": 1, "file_name": "1.jpg", "height": HEIGHT, "width": WIDTH}])
    image, target = open_folder(coco)[0]
    assert image.shape == (3, WIDTH, HEIGHT)
    assert target["boxes"].tolist() == [[2, 15, 8, 19]]
    assert target["masks"].extents().tolist() == [[2, 15, 8, 19]]


def test_an_annotation_without_a_class_is_of_use_where_none_is_needed(coco):
    coco.write([annotation(1), annotation(2, category_id=...)])
    assert read_annotations(coco.annotations).ids.tolist() == [1]
    index = read_annotations(coco.annotations, needs_classes=False)
    assert index.ids.tolist() == [1, 2]
    assert index.category_rows.tolist() == [0, -1]
