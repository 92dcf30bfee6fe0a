"""What every refusal of `maskwright train` is held to."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from maskwright.errors import UserError
from maskwright.training.run import main


def refused(arguments: Sequence[str], *parts: object) -> None:
    """The arguments are refused, with one line that holds all of `parts`."""
    with pytest.raises(UserError) as caught:
        main(arguments)
    assert "\n" not in str(caught.value)
    for part in parts:
        assert str(part) in str(caught.value)
