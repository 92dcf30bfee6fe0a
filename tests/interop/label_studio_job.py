"""Checks predictions with label-studio-sdk; runs in its environment, which has no maskwright.

    python label_studio_job.py FOLDER OUT.npz

FOLDER holds `label_config.xml` and `tasks_*.json`. OUT.npz holds of each task, by its position, `N/masks` (bool
[M, H, W]), `N/labels` and `N/address`.
"""

import json
import sys
from pathlib import Path

import numpy as np
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface


def read(folder: str, out: str) -> None:
    interface = LabelInterface((Path(folder) / "label_config.xml").read_text(encoding="utf-8"))
    parts = sorted(Path(folder).glob("tasks_*.json"), key=lambda path: int(path.stem.rpartition("_")[2]))
    arrays = {}
    for position, task in enumerate(task for part in parts for task in json.loads(part.read_text())):
        (prediction,) = task["predictions"]
        errors = interface.validate_prediction(prediction, return_errors=True)
        assert not errors, errors
        assert interface.validate_task({"data": task["data"]})  # with predictions it fails in 2.1.2, whatever they are
        arrays[f"{position}/masks"] = np.array([plane(stroke) for stroke in prediction["result"]], dtype=bool)
        arrays[f"{position}/labels"] = np.array([stroke["value"]["brushlabels"] for stroke in prediction["result"]])
        arrays[f"{position}/address"] = np.array(task["data"]["image"])
    np.savez(out, **arrays)


def plane(stroke: dict) -> np.ndarray:
    channels = decode_rle(stroke["value"]["rle"]).reshape(stroke["original_height"], stroke["original_width"], 4)
    assert set(np.unique(channels)) <= {0, 255}
    assert (channels == channels[..., :1]).all()
    return channels[..., 3] > 0


if __name__ == "__main__":
    read(*sys.argv[1:])
