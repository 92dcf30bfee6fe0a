"""An annotation that a model completed: what goes into its text, what it says of itself, and the way back."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from maskwright.data.json_text import ObjectText

PROVENANCE = "maskwright"
"""The key of the object that says where a completed annotation's mask comes from."""


@dataclass(frozen=True)
class MaskSource:
    """What made a mask.

    model: its name.
    weights: their hash (`models.hub.model_hash`).
    version: of maskwright.
    """

    model: str
    weights: str
    version: str


@dataclass(frozen=True)
class NewMask:
    """A mask that a model made.

    quality: in 0..1.
    area: the number of pixels.
    segmentation: COCO's compressed run lengths, or its polygons.
    """

    quality: float
    area: int
    segmentation: Any


def is_completed(entry: Any) -> bool:
    """Whether a model completed an annotation, also one whose mask a review rejected; then `undone` can be asked."""
    provenance = entry.get(PROVENANCE) if isinstance(entry, dict) else None
    if not isinstance(provenance, dict) or "quality" not in provenance:
        return False
    kinds = {"inserted": list, "replaced": dict, "replaced_text": dict}
    if not all(isinstance(provenance.get(key, kind()), kind) for key, kind in kinds.items()):
        return False
    return all(
        isinstance(text, str)
        for text in [*provenance.get("inserted", ()), *provenance.get("replaced_text", {}).values()]
    )


def completed(annotation: ObjectText, mask: NewMask, source: MaskSource) -> ObjectText:
    """The annotation with the mask, its area where it had none, and the provenance that `undone` reads.

    Where something stood in place of the mask, the provenance keeps it in `replaced`, and in `replaced_text` as it was
    spelled, where that is not what Python writes.
    """
    annotation = undone(annotation)
    provenance: dict[str, Any] = {**asdict(source), "quality": mask.quality, "inserted": []}
    old = annotation.get("segmentation")
    if old is None:
        provenance["inserted"].append("segmentation")
    else:
        provenance["replaced"] = {"segmentation": old.value}
        if json.dumps(old.value) != old.text:
            provenance["replaced_text"] = {"segmentation": old.text}
    if annotation.get("area") is None:
        provenance["inserted"].append("area")
        annotation = annotation.with_value("area", mask.area)
    return annotation.with_value("segmentation", mask.segmentation).with_value(PROVENANCE, provenance)


def undone(annotation: ObjectText) -> ObjectText:
    """The annotation as it was before it was completed; itself if it was not."""
    member = annotation.get(PROVENANCE)
    return annotation if member is None else without_mask(annotation, member.value).without(PROVENANCE)


def without_mask(annotation: ObjectText, provenance: dict[str, Any]) -> ObjectText:
    """The annotation without what was inserted, and with what was replaced; its provenance stays."""
    for name in provenance.get("inserted", ()):
        annotation = annotation.without(name)
    spelled = provenance.get("replaced_text", {})
    for name, value in provenance.get("replaced", {}).items():
        annotation = annotation.with_text(name, spelled.get(name) or json.dumps(value))
    return annotation
