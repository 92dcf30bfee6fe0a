"""`maskwright train RECIPE --help` explains every key of a recipe."""

from __future__ import annotations

import pytest

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
