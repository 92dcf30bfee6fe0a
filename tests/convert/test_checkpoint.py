from __future__ import annotations

import contextlib

import numpy as np
import pytest
from checkpoint_files import ATTRIBUTE, MAGIC, object_graph, write_checkpoint

from maskwright.convert.checkpoint import Checkpoint, Variables
from maskwright.errors import UserError

KERNEL = np.arange(6, dtype=np.float32).reshape(2, 3)
BIAS = np.array([1.5, -2.5], np.float32)


@pytest.mark.parametrize("compressed", [False, True])
def test_every_data_type_and_shape(tmp_path, compressed):
    tensors = {
        "a/kernel": KERNEL,
        "a/kernel2": KERNEL.astype(np.float64),
        "b": np.array(7, np.int64),
        "c": np.array([[True], [False]]),
        "d": np.zeros((0, 4), np.int32),
        "e": np.array([1, 2, 255], np.uint8),
        "f": np.array([0.5, -1], np.float16),
        "text": b"hello",
    }
    write_checkpoint(tmp_path / "ckpt-3", tensors, compressed=compressed)
    checkpoint = Checkpoint(tmp_path / "ckpt-3")
    assert checkpoint.keys() == sorted(tensors)
    for key, value in tensors.items():
        read = checkpoint.read(key)
        if isinstance(value, bytes):
            assert read.item() == value
        else:
            assert (read.dtype, read.shape) == (value.dtype, value.shape), key
            np.testing.assert_array_equal(read, value)


def test_bfloat16_becomes_float32(tmp_path):
    write_checkpoint(tmp_path / "ckpt", {"x": np.array([0x3F80, 0xC000, 0x3E20], np.uint16)})
    value = Checkpoint(tmp_path / "ckpt").read("x")
    assert value.dtype == np.float32
    assert value.tolist() == [1.0, -2.0, 0.15625]


def test_a_prefix_an_index_file_and_a_folder_name_the_same_checkpoint(tmp_path):
    write_checkpoint(tmp_path / "ckpt-0", {"x": KERNEL})
    for path in (tmp_path / "ckpt-0", tmp_path / "ckpt-0.index", tmp_path):
        np.testing.assert_array_equal(Checkpoint(path).read("x"), KERNEL)


def test_wrong_paths_are_named(tmp_path):
    with pytest.raises(UserError, match=r"there is no checkpoint .*ckpt-9: .*ckpt-9\.index does not exist"):
        Checkpoint(tmp_path / "ckpt-9")
    with pytest.raises(UserError, match=r"expected one checkpoint .* but found none"):
        Checkpoint(tmp_path)
    for name in ("ckpt-1", "ckpt-2"):
        write_checkpoint(tmp_path / name, {"x": KERNEL})
    with pytest.raises(UserError, match=r"but found ckpt-1\.index, ckpt-2\.index"):
        Checkpoint(tmp_path)
    with pytest.raises(UserError, match="has no tensor 'y'"):
        Checkpoint(tmp_path / "ckpt-1").read("y")


def test_every_damage_is_one_sentence(tmp_path):
    """Whatever is cut away from the index or changed in it, the error is ours and names the file."""
    write_checkpoint(tmp_path / "ckpt", {"x": KERNEL, "y": BIAS}, compressed=True)
    index = tmp_path / "ckpt.index"
    whole = index.read_bytes()
    footer = whole[-48:]
    for length in range(len(whole) - 48):
        index.write_bytes(whole[:length] + footer)
        with pytest.raises(UserError, match=r"ckpt\.index is not the index of a TensorFlow 2 checkpoint"):
            Checkpoint(tmp_path / "ckpt")
    harmless = 0
    for position in range(len(whole) - 48):
        index.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with contextlib.suppress(UserError):
            np.testing.assert_array_equal(Checkpoint(tmp_path / "ckpt").read("x"), KERNEL)
            harmless += 1
    assert harmless == 13  # the empty meta index, which is not read
    for content in (b"", b"PK\3\4" + bytes(100), bytes(100) + MAGIC):
        index.write_bytes(content)
        with pytest.raises(UserError, match="is not the index of a TensorFlow 2 checkpoint"):
            Checkpoint(tmp_path / "ckpt")


def test_missing_and_short_data_files_are_named(tmp_path):
    write_checkpoint(tmp_path / "ckpt", {"x": KERNEL})
    data = tmp_path / "ckpt.data-00000-of-00001"
    data.write_bytes(data.read_bytes()[:-1])
    with pytest.raises(UserError, match="data-00000-of-00001 is cut off: the index needs 24 bytes, the file has 23"):
        Checkpoint(tmp_path / "ckpt")
    data.unlink()
    with pytest.raises(UserError, match="data-00000-of-00001 is missing"):
        Checkpoint(tmp_path / "ckpt")


def training_loop(tmp_path):
    """Root with a model, an optimizer with its slots, and a step; names with a slash and with a dot."""
    kernel, bias = f"model/head/box.Sscale/kernel{ATTRIBUTE}", f"model/head/box.Sscale/b..ias{ATTRIBUTE}"
    slot, step = f"model/head/box.Sscale/kernel/.OPTIMIZER_SLOT/optimizer/m{ATTRIBUTE}", f"step{ATTRIBUTE}"
    nodes = [
        ({"model": 1, "optimizer": 5, "step": 6}, None),
        ({"head": 2, "again": 2}, None),
        ({"box/scale": 3}, None),
        ({"kernel": 4, "b.ias": 7}, None),
        ({}, kernel),
        ({"kernel": 4}, None),
        ({}, step),
        ({}, bias),
        ({}, slot),
    ]
    tensors = {
        kernel: KERNEL,
        bias: BIAS,
        slot: KERNEL + 1,
        step: np.array(5, np.int64),
        "_CHECKPOINTABLE_OBJECT_GRAPH": object_graph(nodes),
    }
    write_checkpoint(tmp_path / "ckpt-1", tensors)


def saved_model(tmp_path):
    """The positional keys of an exported SavedModel: a list of variables, nearer to the root, names them."""
    kernel, bias = f"_model/variables/0{ATTRIBUTE}", f"_model/variables/1{ATTRIBUTE}"
    nodes = [
        ({"signatures": 6, "_model": 1}, None),
        ({"variables": 5, "head": 2, "keras_api": 6}, None),
        ({"box/scale": 3, "trainable_variables": 5}, None),
        ({"kernel": 4, "b.ias": 7}, None),
        ({}, kernel),
        ({"0": 4, "1": 7}, None),
        ({"kernel": 4, "model": 1}, None),
        ({}, bias),
    ]
    tensors = {kernel: KERNEL, bias: BIAS, "_CHECKPOINTABLE_OBJECT_GRAPH": object_graph(nodes)}
    write_checkpoint(tmp_path / "variables", tensors)


def model_as_root(tmp_path):
    kernel, bias = f"head/box.Sscale/kernel{ATTRIBUTE}", f"head/box.Sscale/b..ias{ATTRIBUTE}"
    nodes = [({"head": 1}, None), ({"box/scale": 2}, None), ({"kernel": 3, "b.ias": 4}, None), ({}, kernel), ({}, bias)]
    tensors = {kernel: KERNEL, bias: BIAS, "_CHECKPOINTABLE_OBJECT_GRAPH": object_graph(nodes)}
    write_checkpoint(tmp_path / "ckpt", tensors)


@pytest.mark.parametrize("write", [training_loop, saved_model, model_as_root])
def test_three_kinds_of_files_have_the_same_variables(tmp_path, write):
    write(tmp_path)
    variables = Variables(tmp_path)
    assert sorted(variables) == ["model/head/box.Sscale/b..ias", "model/head/box.Sscale/kernel"]
    assert len(variables) == 2
    np.testing.assert_array_equal(variables["model/head/box.Sscale/kernel"], KERNEL)
    np.testing.assert_array_equal(variables["model/head/box.Sscale/b..ias"], BIAS)
    assert "model/head/box.Sscale/gamma" not in variables


def test_files_without_a_model_are_refused(tmp_path):
    write_checkpoint(tmp_path / "old", {"x": KERNEL})
    with pytest.raises(UserError, match="holds no object graph"):
        Variables(tmp_path / "old")
    write_checkpoint(tmp_path / "empty", {"_CHECKPOINTABLE_OBJECT_GRAPH": object_graph([({}, None)])})
    with pytest.raises(UserError, match="holds no variables of a model"):
        Variables(tmp_path / "empty")
    write_checkpoint(tmp_path / "odd", {"_CHECKPOINTABLE_OBJECT_GRAPH": b"\x0a\x05ab"})
    with pytest.raises(UserError, match="object graph is damaged"):
        Variables(tmp_path / "odd")
