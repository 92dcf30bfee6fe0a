"""Shards against the file and pictures that they were made of, webdataset, and what is refused."""

import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from coco_folder import annotation, polygon
from PIL import Image

from maskwright.apps.check_data import check_data
from maskwright.apps.shards import shard_data
from maskwright.cli import main
from maskwright.data.coco import CocoInstances
from maskwright.data.dataset import DataSource
from maskwright.data.formats import open_data_set
from maskwright.data.loaders import training_loader
from maskwright.data.shards import ShardedInstances
from maskwright.data.transforms import training_transforms
from maskwright.data.union import UnionSource, open_union
from maskwright.errors import UserError

HOSTILE = ["../../etc/passwd.jpg", "a b'\"; rm -rf.jpg", "dotted.name.tar.jpg", "<script>é\n.png", "-rf"]


@pytest.fixture
def files(coco):
    """Five pictures, one without annotations, of every kind of annotation, and some that are broken or repaired."""
    size = [12, 20]
    runs = {"size": size, "counts": [24, 6, 210]}
    entries = [
        annotation(4, 3),
        annotation(9, 1, segmentation=runs),
        annotation(2, 1, 3, segmentation=..., bbox=[1.25, 2, 3.1, 4.7]),
        annotation(5, 3, iscrowd=1, segmentation={"size": size, "counts": "h0b000000"}),
        annotation(
            6, 4, 90, segmentation=[polygon(0.1, 0.2, 5.3, 7.7)[0], polygon(9, 1, 15, 4)[0]], bbox=[0, 0, 15, 8]
        ),
        annotation(7, 4, 8),  # of no class
        annotation(8, 5, segmentation=[[1, 2, 3]]),
        annotation(11, 5, bbox=["2", 3, 6, 4], segmentation=[polygon(2, 3, 8, float("nan"))[0]]),
        annotation(12, 5, 90, segmentation=[], note="kept"),
    ]
    images = [coco.picture(f"{number}.png", number) for number in range(1, 6)]
    images[3]["sampling_weight"] = 2.5
    Image.new("RGB", (20, 12), "red").save(coco.images / "4.png", format="JPEG", exif=orientation(3))
    return coco.write(entries, images=images)


def orientation(number: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = number
    return exif


def sharded(coco, **options) -> Path:
    out = coco.images.parent / "shards"
    shard_data(coco.annotations, coco.images, out, **options)
    return out


def assert_same(sample, other):
    assert torch.equal(sample[0], other[0])
    assert sample[1].keys() == other[1].keys()
    for key, value in sample[1].items():
        if hasattr(value, "planes"):
            assert torch.equal(value.planes(), other[1][key].planes()), key
        elif isinstance(value, torch.Tensor):
            assert value.dtype == other[1][key].dtype, key
            assert torch.equal(value, other[1][key]), key
        else:
            assert value == other[1][key], key


UNCERTAIN = pytest.mark.filterwarnings("ignore:images with an EXIF orientation")


@UNCERTAIN
@pytest.mark.parametrize("exif", ["auto", "stored"])
@pytest.mark.parametrize("mask_classes", ["all", ["window"]])
def test_samples_are_those_of_the_files(files, exif, mask_classes):
    plain = CocoInstances(files.images, files.annotations, exif=exif, mask_classes=mask_classes)
    shards = ShardedInstances(sharded(files, exif=exif), mask_classes=mask_classes)
    assert len(shards) == len(plain) == 5
    for index in range(5):
        assert_same(shards[index], plain[index])
    for name in ("file_names", "split_keys", "categories", "file_categories", "mask_classes", "skipped", "repaired"):
        assert getattr(shards, name) == getattr(plain, name), name
    assert torch.equal(shards.sampling_weights, plain.sampling_weights)
    for column, other in zip(vars(shards.instances).values(), vars(plain.instances).values(), strict=True):
        assert np.array_equal(column, other)
    assert shards.find_mask_classes() == plain.find_mask_classes()


@UNCERTAIN
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_of_training_are_those_of_the_files(files, workers):
    datasets = CocoInstances(files.images, files.annotations), ShardedInstances(sharded(files))
    streams = []
    for dataset in datasets:
        dataset.transforms = training_transforms(16)
        start = 3 if dataset is datasets[1] else 0  # the shards are resumed
        streams.append(iter(training_loader(dataset, batch_size=2, seed=1, num_workers=workers, start_step=start)))
    for _ in range(3):
        next(streams[0])
    for _ in range(4):
        for sample, other in zip(*(zip(*next(stream), strict=True) for stream in streams), strict=True):
            assert_same(sample, other)


@UNCERTAIN
def test_shards_are_a_set_of_a_union(files):
    plain = DataSource(files.images, files.annotations)
    shards = replace(plain, annotations=sharded(files))
    one, other = (open_union(UnionSource({"a": plain, "b": second})) for second in (plain, shards))
    for index in range(10):
        assert_same(one[index], other[index])
    assert torch.equal(one.sampling_weights, other.sampling_weights)
    assert one.file_names == other.file_names


@UNCERTAIN
def test_webdataset_reads_the_tars(files):
    folder = sharded(files)
    plain = CocoInstances(files.images, files.annotations)
    names = [str(path) for path in sorted(folder.glob("*.tar"))]
    samples = list(webdataset.WebDataset(names, shardshuffle=False).decode())
    assert [sample["__key__"] for sample in samples] == [f"{row:09d}" for row in range(5)]
    listed = json.loads(files.annotations.read_text())
    for index, sample in enumerate(samples):
        entries = sample["json"]["annotations"]
        assert [entry["id"] for entry in entries] == plain[index][1]["ids"].tolist()
        assert sample["json"]["image"]["file_name"] == f"{index + 1}.png"
    given = {entry["id"]: entry for entry in listed["annotations"]}
    assert samples[0]["json"]["annotations"] == [given[9], given[2]]
    assert samples[4]["json"]["annotations"][-1] == given[12]
    assert samples[0].keys() >= {"png", "json"}
    assert "jpg" in samples[3]  # by its content, whatever it is called
    assert next(iter(webdataset.WebDataset(names, shardshuffle=False)))["png"] == (files.images / "1.png").read_bytes()


def test_names_in_a_file_are_no_paths_in_the_tars(coco, tmp_path):
    images = []
    for number, name in enumerate(HOSTILE):
        path = coco.images / name
        path.resolve().parent.mkdir(parents=True, exist_ok=True)
        images.append({"id": number, "file_name": name, "height": 12, "width": 20})
        if not name.startswith(".."):
            Image.new("RGB", (20, 12), (number, 0, 0)).save(path, format="PNG")
    images = images[1:]
    coco.write([annotation(number, number) for number in range(1, 5)], images=images)
    folder = sharded(coco)
    with tarfile.open(folder / "shard-000000.tar") as tar:
        assert all(member.name.replace(".", "").isalnum() for member in tar)
    shards = ShardedInstances(folder)
    assert shards.file_names == HOSTILE[1:]
    assert [int(shards[index][0][0, 0, 0]) for index in range(4)] == [1, 2, 3, 4]


@UNCERTAIN
def test_the_index_says_where_members_are_and_output_is_the_same_each_time(files, tmp_path):
    folder = sharded(files, shard_size=1)
    again = tmp_path / "again"
    shard_data(files.annotations, files.images, again, shard_size=1)
    assert [path.name for path in sorted(folder.iterdir())] == ["index.npz", "shard-000000.tar"]
    for path in folder.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    with np.load(folder / "index.npz", allow_pickle=False) as index, tarfile.open(folder / "shard-000000.tar") as tar:
        members = tar.getmembers()
        places = [[0, member.offset_data, member.size] for member in members]
        assert places[::2] == index["pictures"].tolist()
        assert places[1::2] == index["targets"].tolist()
        assert {(member.mtime, member.uid, member.uname) for member in members} == {(0, 0, "")}


def test_a_tar_is_full_before_the_next_begins(coco):
    coco.write([annotation(number, number) for number in range(1, 5)], images=4, size=(400, 300))  # 360 kB each
    folder = sharded(coco, shard_size=1)
    sizes = [path.stat().st_size for path in sorted(folder.glob("*.tar"))]
    assert len(sizes) == 2
    assert all(600_000 < size < 1_020_000 for size in sizes)
    plain = CocoInstances(coco.images, coco.annotations)
    for index in range(4):
        assert_same(ShardedInstances(folder)[index], plain[index])


@UNCERTAIN
def test_the_check_of_shards_is_that_of_the_files(files):
    plain, shards = check_data(files.annotations, files.images), check_data(sharded(files))
    assert str(shards).replace(shards.source, plain.source) == str(plain)
    assert {problem.kind for problem in plain.problems} > {"orientation that is not certain", "unknown category_id"}


def test_text_ids_and_ids_that_repeat_are_kept(coco):
    images = [coco.picture(f"{name}.png", name) for name in ("a", "b")]
    coco.write([annotation(1, "a"), annotation(1, "b"), annotation("x", "b")], images=images)
    plain, shards = CocoInstances(coco.images, coco.annotations), ShardedInstances(sharded(coco))
    for index in range(2):
        assert_same(shards[index], plain[index])
    samples = webdataset.WebDataset(str(coco.images.parent / "shards" / "shard-000000.tar"), shardshuffle=False)
    assert [[entry["id"] for entry in s["json"]["annotations"]] for s in samples.decode()] == [[1], [1, "x"]]


def test_pictures_that_cannot_be_read_are_left_out_and_counted(coco, capsys):
    coco.write([annotation(number, number) for number in (1, 2, 3, 4)], images=4)
    (coco.images / "2.png").write_bytes((coco.images / "2.png").read_bytes()[:200])
    Image.new("RGB", (5, 5)).save(coco.images / "4.png")
    out = coco.images.parent / "shards"
    arguments = ["data", "shards", str(coco.annotations), "--images", str(coco.images), "--out", str(out)]
    assert main(arguments) == 3
    printed = capsys.readouterr()
    assert "images: 2; annotations: 2 (masks: 2)" in printed.out
    assert "images left out: 2, the first: image 2: cannot read the image" in printed.out
    assert "2 image that cannot be read" in printed.err
    shards = ShardedInstances(out)
    plain = CocoInstances(coco.images, coco.annotations)
    assert shards.file_names == ["1.png", "3.png"]
    assert_same(shards[1], plain[2])
    assert "image 4: the image" in str(check_data(out))
    for path in coco.images.iterdir():
        path.write_bytes(b"")
    arguments[-1] = str(coco.images.parent / "none")
    assert main(arguments) == 2
    assert "none of its images can be read; the first: cannot read" in capsys.readouterr().err
    assert not (coco.images.parent / "none").exists()


def test_nothing_is_overwritten_or_half_written(coco, monkeypatch, capsys):
    coco.write([annotation(1)])
    out = sharded(coco)
    for folder, reason in ((out, "exists already and is not overwritten"), (out / "a" / "b", "does not exist")):
        with pytest.raises(UserError, match=reason):
            shard_data(coco.annotations, coco.images, folder)

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("maskwright.data.shard_writer.write_index", stopped)
    before = set(coco.images.parent.iterdir())
    arguments = ["data", "shards", str(coco.annotations), "--images", str(coco.images)]
    assert main([*arguments, "--out", str(coco.images.parent / "new")]) == 130
    assert set(coco.images.parent.iterdir()) == before
    assert main([*arguments, "--out", str(coco.images.parent / "new"), "--shard-size", "0"]) == 2


def test_damaged_shards_are_named(coco):
    coco.write([annotation(1)], images=2)
    out = sharded(coco)
    tar = out / "shard-000000.tar"
    content = tar.read_bytes()
    tar.write_bytes(content[:-100])
    with pytest.raises(UserError, match=rf"{tar} is not whole: it has {len(content) - 100} bytes, .*{len(content)}"):
        ShardedInstances(out)
    tar.write_bytes(bytes(len(content)))
    shards = ShardedInstances(out)
    with pytest.raises(UserError, match=rf"cannot read the image 1\.png in {tar}: cannot identify image file 1\.png"):
        shards[0]
    with tarfile.open(fileobj=io.BytesIO(content)) as members:
        place = members.getmember("000000000.json")
    tar.write_bytes(content[: place.offset_data] + bytes(place.size) + content[place.offset_data + place.size :])
    with pytest.raises(UserError, match=rf"{tar} is damaged, or of another index"):
        ShardedInstances(out)[0]
    tar.unlink()
    with pytest.raises(UserError, match=f"cannot read the shard {tar}: No such file"):
        shards[0]
    with pytest.raises(UserError, match=f"cannot read the shard {tar}: No such file"):
        ShardedInstances(out)


@pytest.mark.parametrize("content", [b"", b"PK\x05\x06" + bytes(18), b"\x93NUMPY", b"{}"])
def test_what_is_no_index_is_refused(tmp_path, content):
    (tmp_path / "index.npz").write_bytes(content)
    with pytest.raises(UserError, match=r"index\.npz is no index of shards, .* expected a folder that"):
        ShardedInstances(tmp_path)
    with pytest.raises(UserError, match=r"cannot read the index of shards .*No such file.* expected a folder"):
        open_data_set(DataSource("", tmp_path / "nowhere" / "index.npz"))


def test_a_shorter_index_and_one_of_another_version_are_refused(coco):
    coco.write([annotation(1)])
    path = sharded(coco) / "index.npz"
    content = path.read_bytes()
    path.write_bytes(content[:-30])
    with pytest.raises(UserError, match="is damaged"):
        ShardedInstances(path)
    with np.load(io.BytesIO(content)) as stored:
        columns = dict(stored)
    texts = columns["texts"].tobytes().replace(b"maskwright shards 1", b"maskwright shards 2")
    np.savez_compressed(path, **{**columns, "texts": np.frombuffer(texts, dtype=np.uint8)})
    with pytest.raises(UserError, match="has the format 'maskwright shards 2', but this version reads"):
        ShardedInstances(path)


def test_options_without_use_are_refused(coco):
    coco.write([annotation(1)])
    out = sharded(coco)
    with pytest.raises(UserError, match="--images has no use"):
        check_data(out, coco.images)
    with pytest.raises(UserError, match="--segmentations has no use"):
        check_data(out, segmentations=coco.images)


def test_a_panoptic_file_is_refused(coco):
    entry = {"image_id": 1, "file_name": "1.png", "segments_info": []}
    coco.write([entry])
    with pytest.raises(UserError, match=r"instances\.json is a COCO panoptic file; shards are made of COCO instances"):
        sharded(coco)
