"""Decisions into the file: only the annotations that were decided on change, every other byte stays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from maskwright.apps.provenance import PROVENANCE, is_completed, without_mask
from maskwright.apps.review_page.decisions import Decision, RedrawnMask
from maskwright.data.json_text import Edit, ObjectText, edited, element_spans, json_text
from maskwright.errors import UserError
from maskwright.files import read_content, write_parts


def apply_decisions(path: Path, decisions: Mapping[int, Decision], out: Path) -> Counter[str]:
    """Write the completed file at `path` with the decisions to `out`, and count them by verdict.

    An accepted mask's provenance gets `"review": "accepted"`. A rejected mask is taken out, as undoing its completion
    does; its provenance stays, with `"review": "rejected"`. A redrawn one gets the new mask, and its provenance the
    box as `prompt_box`, the new quality and `"review": "redrawn"`; its `bbox` stays.

    Args:
        path: of the completed file.
        decisions: by the position of the annotation in the file.
        out: the file to write, whole or not at all.

    Raises:
        UserError: `out` is `path`, the file is not in UTF-8, no model completed an annotation that was decided on, or
            `out` cannot be written.
    """
    if out.exists() and out.samefile(path):
        raise UserError(f"--out {out} is the file that was reviewed, which stays as it is; give another name")
    text = json_text(read_content(path), str(path))
    write_parts(out, edited(text, _edits(text, str(path), decisions)))
    return Counter(decision.verdict for decision in decisions.values())


def _edits(text: str, source: str, decisions: Mapping[int, Decision]) -> Iterator[Edit]:
    for position, (start, end) in enumerate(element_spans(text, "annotations").tolist()):
        if position in decisions:
            annotation = ObjectText.read(text, start)
            provenance = annotation.get(PROVENANCE)
            if provenance is None or not is_completed({PROVENANCE: provenance.value}):
                raise UserError(
                    f"{source}, annotation #{position}: there is a decision on it, but its {PROVENANCE!r} is not what "
                    "`maskwright complete` writes"
                )
            yield Edit(start, end, str(_decided(annotation, provenance.value, decisions[position])))


def _decided(annotation: ObjectText, provenance: dict[str, Any], decision: Decision) -> ObjectText:
    if decision.verdict == "rejected":
        annotation = without_mask(annotation, provenance)
        gone = ("inserted", "replaced", "replaced_text")
        provenance = {key: value for key, value in provenance.items() if key not in gone}
    elif decision.redrawn is not None:
        annotation = _redrawn(annotation, provenance, decision.redrawn)
        told = vars(decision.redrawn)
        provenance = {**provenance, **{key: told[key] for key in ("model", "weights", "quality", "prompt_box")}}
    return annotation.with_value(PROVENANCE, {**provenance, "review": decision.verdict})


def _redrawn(annotation: ObjectText, provenance: Mapping[str, Any], mask: RedrawnMask) -> ObjectText:
    """With the new mask, and its area where the area, too, is the model's."""
    annotation = annotation.with_value("segmentation", mask.segmentation)
    if "area" in provenance.get("inserted", []):
        annotation = annotation.with_value("area", mask.area)
    return annotation
