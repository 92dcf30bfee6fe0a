"""What Ultralytics reads of a folder of pictures and their labels; runs in an environment of its own.

    python ultralytics_job.py IMAGES CLASSES OUT

OUT (.npz) gets for each picture NAME: `NAME/classes` int64 [N], `NAME/size` (height, width), and `NAME/0`, `NAME/1`...
the outline of each object, float64 [K, 2], xy as fractions of the picture.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from ultralytics.data.dataset import YOLODataset

images, classes, out = sys.argv[1:]
names = dict(enumerate(classes.split(",")))
data_set = YOLODataset(img_path=images, data={"names": names, "channels": 3}, task="segment", augment=False)
found = {}
for label in data_set.labels:
    name = Path(label["im_file"]).stem
    found[f"{name}/classes"] = label["cls"].ravel().astype(np.int64)
    found[f"{name}/size"] = np.array(label["shape"])
    found |= {f"{name}/{row}": segment.astype(float) for row, segment in enumerate(label["segments"])}
np.savez(out, **found)
