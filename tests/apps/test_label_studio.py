"""Masks as Label Studio's run lengths, and its labelling configurations."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from completed_file import HOSTILE
from maskwright.apps.label_studio import BrushTags, brush_run_lengths
from maskwright.errors import UserError
from maskwright.structures import EncodedMasks


def encode(plane: np.ndarray) -> list[int]:
    return brush_run_lengths(EncodedMasks.from_planes(torch.from_numpy(plane)[None]))


def decode(content: list[int]) -> np.ndarray:
    """The samples, bit by bit as the format says."""
    bits = iter("".join(f"{byte:08b}" for byte in content))

    def number(size: int) -> int:
        return int("".join(next(bits) for _ in range(size)), 2)

    count, sample = number(32), number(5) + 1
    sizes = [number(4) + 1 for _ in range(4)]
    found: list[int] = []
    while len(found) < count:
        assert number(1) == 1  # a run
        length = number(sizes[number(2)]) + 1
        found += [number(sample)] * length
    assert len(found) == count
    assert set(bits) <= {"0"}
    return np.array(found)


class TestRunLengths:
    def test_by_hand(self):
        """Two pixels: 8 samples, of which 4 are transparent and 4 are opaque."""
        header = f"{8:032b}" + f"{7:05b}" + f"{2:04b}{3:04b}{7:04b}{15:04b}"
        runs = "1" + "00" + "011" + "00000000" + "1" + "00" + "011" + "11111111"
        bits = (header + runs).ljust(88, "0")
        assert encode(np.array([[False, True]])) == [int(bits[place : place + 8], 2) for place in range(0, 88, 8)]

    @settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
    def test_every_mask_comes_back(self, plane: np.ndarray):
        np.testing.assert_array_equal(decode(encode(plane)), np.repeat(plane.ravel() * 255, 4))

    @pytest.mark.parametrize("rows", [slice(0), slice(None), slice(64), slice(64, None), slice(1, 127)])
    def test_runs_longer_than_a_length_can_say(self, rows: slice):
        """A half of the picture has exactly as many samples as one length can say, 65,536."""
        plane = np.zeros((128, 256), dtype=bool)
        plane[rows] = True
        np.testing.assert_array_equal(decode(encode(plane)), np.repeat(plane.ravel() * 255, 4))


class TestConfiguration:
    def test_it_comes_back(self):
        tags = BrushTags("mask", "image", "picture", ["cat", HOSTILE, "ü & \"'"])
        assert BrushTags.read(tags.configuration()) == tags

    def test_of_another_project(self):
        tags = BrushTags.read(
            '<View><BrushLabels name="other" toName="text"><Label value="no"/></BrushLabels>'
            '<Image name="photo" value="$url"/><Text name="text" value="$t"/>'
            '<BrushLabels name="tag" toName="photo"><Label value="Cat" alias="cat"/><Label value="dog"/></BrushLabels>'
            "</View>"
        )
        assert tags == BrushTags("tag", "photo", "url", ["cat", "dog"])

    @pytest.mark.parametrize(
        ("configuration", "told"),
        [
            ("<View>", "is not XML"),
            ('<View><Image name="image" value="$image"/></View>', "has no <BrushLabels>"),
            ('<View><BrushLabels name="mask" toName="image"/></View>', "has no <BrushLabels>"),
        ],
    )
    def test_what_cannot_be_used(self, configuration: str, told: str):
        with pytest.raises(UserError, match=told):
            BrushTags.read(configuration)
