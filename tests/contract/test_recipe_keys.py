"""`maskwright train RECIPE --help` explains every key of a recipe."""

from __future__ import annotations

import re
from collections.abc import Collection

import pytest

from maskwright.nn.backbones import BACKBONES, DETECTION_BACKBONES
from maskwright.nn.mask_heads import MASK_HEADS
from maskwright.training.recipes import recipe_names, recipe_parser

FAMILIES = sorted({name.partition("/")[0] for name in recipe_names()})


def explanations(family: str) -> dict[str, str]:
    """The help text of every key, without the type and default that the parser adds."""
    return {action.dest: action.help or "" for action in recipe_parser(family)._actions}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_key_is_explained(family: str):
    texts = explanations(family)
    assert {"model.categories", "data.images", "optimizer.name", "trainer.steps"} <= texts.keys()
    assert [key for key, text in texts.items() if len(text) < 8] == []


@pytest.mark.parametrize(
    ("family", "key", "names"),
    [
        ("deep_mac", "backbone", BACKBONES),
        ("deep_marc", "backbone", DETECTION_BACKBONES),
        ("deep_mac", "mask_head", MASK_HEADS),
        ("deep_marc", "mask_head", MASK_HEADS),
    ],
)
def test_every_backbone_and_mask_head_is_named(family: str, key: str, names: Collection[str]):
    told = set(re.findall(r"\w+", explanations(family)[f"model.{key}"]))
    assert set(names) <= told
