"""The names that `maskwright` exports: all there, each documented, none left over."""

from __future__ import annotations

import inspect
import tomllib
from pathlib import Path

import pytest

import maskwright

PUBLIC = [
    "Category",
    "DeepMAC",
    "DeepMARC",
    "ImageFeatures",
    "InstancePrediction",
    "MaXDeepLab",
    "PanopticPrediction",
    "PanopticTarget",
    "Predictor",
    "Target",
    "UserError",
    "evaluate",
    "from_pretrained",
    "load",
    "push_to_hub",
    "read_image",
    "save_pretrained",
    "train",
]


def test_the_names_are_these():
    """A name is added or removed here on purpose, with a line in CHANGELOG.md."""
    assert maskwright.__all__ == PUBLIC
    assert set(PUBLIC) <= set(dir(maskwright))


@pytest.mark.parametrize("name", PUBLIC)
def test_each_is_there_and_documented(name: str):
    value = getattr(maskwright, name)
    assert value.__name__ == name
    assert value.__module__.startswith("maskwright.")
    assert len(inspect.getdoc(value) or "") > 40


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segment'"):
        _ = maskwright.segment


def test_the_version_is_the_package_s():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert maskwright.__version__ == pyproject["project"]["version"]
