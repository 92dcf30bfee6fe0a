"""Masks as run lengths: what a data set gives before the crop, and to evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from maskwright.ops.run_lengths import Runs, code_of_runs, extent_of_runs, runs_of_plane, sample_runs


@dataclass(frozen=True, eq=False)
class EncodedMasks:
    """The N masks of one image as run lengths; pixels are made inside a part of the image only.

    It stands for the bool planes [N, H, W]: `len`, `shape` and the selection of rows are theirs.

    runs: of each mask, as in `ops/run_lengths.py`.
    image_size: (height, width).
    """

    runs: Sequence[Runs]
    image_size: tuple[int, int]

    @classmethod
    def from_planes(cls, planes: Bool[Tensor, "n h w"]) -> EncodedMasks:
        """The same masks."""
        return cls([runs_of_plane(plane) for plane in planes.cpu().numpy()], (planes.shape[1], planes.shape[2]))

    def __len__(self) -> int:
        return len(self.runs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(N, H, W)."""
        return (len(self), *self.image_size)

    def __getitem__(self, rows: Bool[Tensor, " n"] | Int64[Tensor, " k"]) -> EncodedMasks:
        """Some of the masks: those where `rows` is True, or those at the positions `rows`."""
        places = torch.arange(len(self))[rows.cpu()].tolist()
        return EncodedMasks([self.runs[place] for place in places], self.image_size)

    def areas(self) -> Int64[Tensor, " n"]:
        """The number of pixels of each mask."""
        return torch.tensor([int((runs[:, 1] - runs[:, 0]).sum()) for runs in self.runs], dtype=torch.int64)

    def extents(self) -> Int64[Tensor, "n 4"]:
        """The tight xyxy box around each mask, in whole pixels; zeros where it is empty."""
        boxes = [extent_of_runs(runs, self.image_size[0]) for runs in self.runs]
        return torch.tensor(boxes, dtype=torch.int64).reshape(-1, 4)

    def crop(self, x1: int, y1: int, x2: int, y2: int) -> Bool[Tensor, "n h w"]:
        """The pixels inside of a box, which may reach outside of the image: there they are False."""
        return self.sample(torch.arange(y1, y2), torch.arange(x1, x2))

    def sample(self, rows: Int64[Tensor, " h"], columns: Int64[Tensor, " w"]) -> Bool[Tensor, "n h w"]:
        """The pixels at `rows` x `columns` of the image, each in ascending order; False outside of the image."""
        planes = np.zeros((len(self), len(rows), len(columns)), dtype=bool)
        for runs, plane in zip(self.runs, planes, strict=True):
            sample_runs(runs, self.image_size[0], rows.numpy(), columns.numpy(), plane)
        return torch.from_numpy(planes)

    def planes(self) -> Bool[Tensor, "n h w"]:
        """All pixels of all masks: N times as many as the image has."""
        return self.crop(0, 0, self.image_size[1], self.image_size[0])

    def to_coco(self) -> list[dict[str, Any]]:
        """Each mask as COCO's compressed run lengths, `{"size": [height, width], "counts": str}`."""
        return [code_of_runs(runs, self.image_size) for runs in self.runs]
