"""The types of this package that hold no tensor: what runs without torch imports them from here."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

Task = Literal["instance", "panoptic"]
"""What a model finds, and with it the form of its targets and predictions."""


class Category(TypedDict):
    """One class of a label space. Its position in the list is the label; `id` is the file's own id."""

    id: int
    name: str
    isthing: NotRequired[bool]
