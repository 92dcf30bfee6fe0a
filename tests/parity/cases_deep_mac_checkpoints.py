"""The reader of TensorFlow checkpoints, on the three kinds of file in which the originals are found."""

from __future__ import annotations

import hashlib
import json

import numpy as np
from parity_data import ParityData, below

from maskwright.convert.checkpoint import Checkpoint, Variables

SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"


def check_checkpoint_folder(data: ParityData, name: str) -> None:
    """Every checkpoint of the folder holds exactly the weights that the reference says."""
    folder = data.folder / name
    weights = below(data.arrays(f"g_e2e_infer_{name.removeprefix('ckpt_')}.npz"), "w/")
    checked = 0
    for index in sorted(folder.glob("*/*.index")):
        kind = index.parent.name
        variables = Variables(index)
        if kind == "train_loop":
            expected = json.loads((folder / f"{kind}_expected.json").read_text())
            assert set(variables) == set(expected)
            for key, (shape, digest, _) in expected.items():
                assert list(variables[key].shape) == shape, key
                assert hashlib.sha1(np.ascontiguousarray(variables[key]).tobytes()).hexdigest() == digest, key
        else:
            assert set(variables) == set(weights)
            for key, value in weights.items():
                np.testing.assert_array_equal(variables[key], value, err_msg=key)
        keys = folder / f"keys_{kind}.txt"
        if keys.is_file():
            _check_keys(Checkpoint(index), keys.read_text())
        checked += 1
    assert checked


def _check_keys(checkpoint: Checkpoint, listing: str) -> None:
    """Names and shapes as listed (the listing of a training loop is cut short with a last line of dots)."""
    for line in listing.splitlines():
        key, _, shape = line.partition(" ")
        if key.endswith(SUFFIX):
            assert list(checkpoint.read(key).shape) == json.loads(shape), key
