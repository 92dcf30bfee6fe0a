"""Class names: what an annotation file calls its classes, and which of them a preset means.

Names are compared without case, spaces, hyphens and underscores, and with the usual synonyms between
PASCAL VOC and COCO (aeroplane and airplane, tvmonitor and tv, ...).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import count
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from maskwright.data.json_file import is_text
from maskwright.data.normalise import normalise_categories
from maskwright.errors import UserError
from maskwright.files import read_json_object
from maskwright.structures.plain import Category

VOC = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "boat", "bird", "cat", "dog", "horse",
    "sheep", "cow", "bottle", "chair", "couch", "potted plant", "dining table", "tv",
)  # fmt: skip
"""The 20 classes of PASCAL VOC, by the names that COCO gives them."""

NON_VOC = (
    "truck", "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "elephant", "bear", "zebra",
    "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball",
    "kite", "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "wine glass", "cup", "fork",
    "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza",
    "donut", "cake", "bed", "toilet", "laptop", "mouse", "remote", "keyboard", "cell phone", "microwave", "oven",
    "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The other 60 classes of COCO."""

PRESETS = {"voc": VOC, "non_voc": NON_VOC}

_SHOWN = 8
"""How many known names an error lists."""

# Keys and values as `_plain` makes them.
_SYNONYMS = {
    "aeroplane": "airplane",
    "motorbike": "motorcycle",
    "sofa": "couch",
    "tvmonitor": "tv",
    "television": "tv",
    "mobilephone": "cellphone",
    "doughnut": "donut",
    "hairdryer": "hairdrier",
    "fridge": "refrigerator",
    "remotecontrol": "remote",
}


def _plain(name: str) -> str:
    plain = "".join(character for character in name.lower() if character.isalnum()) or name
    return _SYNONYMS.get(plain, plain)


def read_categories(annotations: str | Path) -> list[Category]:
    """The label space of a COCO file: its `categories`, repaired, in file order (position = label).

    Raises:
        UserError: the file cannot be read, is not a COCO file, or `parse_categories` refuses its categories.
    """
    content = read_json_object(annotations, ("categories",))
    return parse_categories(normalise_categories(content), str(annotations))


def parse_categories(entries: object, source: str) -> list[Category]:
    """Check the `categories` of a COCO file; `source` names the file in errors.

    Raises:
        UserError: the list is missing or empty, an entry has no integer id or no name, an `isthing` is neither 0 nor 1
            (nor false, nor true), or ids or names repeat.
    """
    if not isinstance(entries, list) or not entries:
        raise UserError(
            f"{source}: 'categories' must be a non-empty list of {{id, name}} entries (only `maskwright predict` takes "
            "boxes without classes)"
        )
    categories: list[Category] = []
    for position, entry in enumerate(entries):
        identity, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
        if type(identity) is not int or not is_text(name):
            raise UserError(
                f"{source}: category {position} must have an integer 'id' and a text 'name', but got {entry!r}"
            )
        category = Category(id=identity, name=name)
        if "isthing" in entry:
            if entry["isthing"] not in (0, 1):  # false and true are 0 and 1
                raise UserError(
                    f"{source}: 'isthing' of category {identity} ({name}) must be 1 (thing) or 0 (stuff), or true or "
                    f"false, but is {repr(entry['isthing'])[:80]}"
                )
            category["isthing"] = bool(entry["isthing"])
        categories.append(category)
    for field in ("id", "name"):
        counts = Counter(category[field] for category in categories)
        repeated = [value for value, count in counts.items() if count > 1]
        if repeated:
            raise UserError(f"{source}: every category needs its own {field}, but these repeat: {repeated}")
    return categories


def resolve_mask_classes(spec: str | Sequence[str], categories: Sequence[Category]) -> list[str]:
    """The names, in the order and spelling of `categories`, of the classes that `spec` means.

    `spec` is `all`, a preset (`voc`, `non_voc`: those of its classes that exist here), a list of names, or
    one text of names with commas between them. An empty list means no class.

    Raises:
        UserError: a name is unknown (all such are listed, and known names, the close ones if there are many), or a
            preset has no class here.
    """
    names = [category["name"] for category in categories]
    if spec == "all":
        return names
    if isinstance(spec, str) and spec in PRESETS and spec not in names:
        wanted = {_plain(name) for name in PRESETS[spec]}
        found = [name for name in names if _plain(name) in wanted]
        if not found:
            raise UserError(f"the preset {spec!r} has no class among the known ones: {_some_of(names, [])}")
        return found
    if isinstance(spec, str):
        spec = [spec] if spec in names else [name.strip() for name in spec.split(",") if name.strip()]
    matches = {name: match_name(name, names) for name in spec}
    unknown = [name for name, match in matches.items() if match is None]
    if unknown:
        raise UserError(f"unknown class names: {', '.join(unknown)}; known are: {_some_of(names, unknown)}")
    chosen = set(matches.values())
    return [name for name in names if name in chosen]


def _some_of(names: Sequence[str], unknown: Sequence[str]) -> str:
    """For an error: `names`, or where they are many those that are close to the unknown ones, else the first."""
    if len(names) <= _SHOWN:
        return ", ".join(names)
    close = [match for name in unknown for match in get_close_matches(name, names)]
    return ", ".join([*list(dict.fromkeys(close or names))[:_SHOWN], f"... ({len(names)} in all)"])


def match_name(name: str, names: Sequence[str]) -> str | None:
    """The one of `names` that `name` means: the same spelling first, else the first synonym, else None."""
    if name in names:
        return name
    wanted = _plain(name)
    return next((candidate for candidate in names if _plain(candidate) == wanted), None)


def labels_of_names(names: Iterable[str], categories: Sequence[Category]) -> list[int]:
    """The label, in `categories`, of the class that each name means (`match_name`); -1 where there is none."""
    known = [category["name"] for category in categories]
    matches = [match_name(name, known) for name in names]
    return [-1 if match is None else known.index(match) for match in matches]


def unite_categories(lists: Iterable[Sequence[Category]]) -> list[Category]:
    """One label space out of several: each class once, by name (`match_name`), in the order in which they appear.

    A class is that of the first list that has it, with its spelling and id; where another class has that id already, it
    gets the next one above all ids.
    """
    united: list[Category] = []
    for categories in lists:
        known = [category["name"] for category in united]
        united += [category for category in categories if match_name(category["name"], known) is None]
    taken = set[int]()
    free = count(max((category["id"] for category in united), default=0) + 1)
    for row, category in enumerate(united):
        if category["id"] in taken:
            united[row] = {**category, "id": next(free)}
        taken.add(united[row]["id"])
    return united


def labels_of_categories(
    file_categories: Sequence[Category], used: set[int], categories: Sequence[Category], source: str
) -> Int64[np.ndarray, " file_categories"]:
    """The label, in `categories`, of each of a file's categories, by name; -1 where it has none.

    used: positions of the file's categories that annotations use; `source` names the file in errors.

    Raises:
        UserError: a category that is used has no label; all such are named.
    """
    labels = labels_of_names([category["name"] for category in file_categories], categories)
    unknown = [file_categories[row]["name"] for row in sorted(used) if labels[row] < 0]
    if unknown:
        known = _some_of([category["name"] for category in categories], unknown)
        raise UserError(f"{source}: classes that the model does not know: {', '.join(unknown)}; it knows: {known}")
    return np.array(labels, dtype=np.int64)
