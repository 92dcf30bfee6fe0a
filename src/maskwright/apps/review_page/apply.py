"""Decisions into the file: only the annotations that were decided on change, every other byte stays."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maskwright.apps.review_page.completed import PROVENANCE
from maskwright.apps.review_page.decisions import Decision, RedrawnMask
from maskwright.apps.review_page.object_text import ObjectText, element_spans
from maskwright.errors import UserError
from maskwright.files import write_whole


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
        UserError: `out` is `path`, the file has no JSON text that can be edited, or `out` cannot be written.
    """
    if out.exists() and out.samefile(path):
        raise UserError(f"--out {out} is the file that was reviewed, which stays as it is; give another name")
    content = path.read_bytes()
    encoding = json.detect_encoding(content)
    text = content.decode(encoding, "surrogatepass")
    if text.encode(encoding, "surrogatepass") != content:
        raise UserError(f"{path}: expected a text in UTF-8, but got {encoding} that cannot be written back as it is")
    edited = _edit(text, decisions).encode(encoding, "surrogatepass")
    write_whole(out, lambda temporary: temporary.write_bytes(edited))
    return Counter(decision.verdict for decision in decisions.values())


def _edit(text: str, decisions: Mapping[int, Decision]) -> str:
    annotations = ObjectText.read(text, text.index("{")).get("annotations")
    if annotations is None:
        return text
    parts: list[str] = []
    written = 0
    for position, (start, end) in enumerate(element_spans(text, annotations.start)):
        if position in decisions:
            edited = _decided(ObjectText.read(text, start), json.loads(text[start:end]), decisions[position])
            parts += [text[written:start], str(edited)]
            written = end
    return "".join([*parts, text[written:]])


def _decided(annotation: ObjectText, values: dict[str, Any], decision: Decision) -> ObjectText:
    provenance = values[PROVENANCE]
    if decision.verdict == "rejected":
        annotation = _undone(annotation, provenance)
        provenance = {key: value for key, value in provenance.items() if key not in ("inserted", "replaced")}
    elif decision.redrawn is not None:
        annotation = _redrawn(annotation, provenance, decision.redrawn)
        told = vars(decision.redrawn)
        provenance = {**provenance, **{key: told[key] for key in ("model", "weights", "quality", "prompt_box")}}
    return annotation.with_value(PROVENANCE, {**provenance, "review": decision.verdict})


def _undone(annotation: ObjectText, provenance: Mapping[str, Any]) -> ObjectText:
    """Without the mask: what was inserted goes, and what was replaced comes back."""
    replaced = provenance.get("replaced", {})
    for name in provenance.get("inserted", ["segmentation"]):
        annotation = annotation.without(name)
    for name, value in replaced.items():
        annotation = annotation.with_value(name, value)
    return annotation


def _redrawn(annotation: ObjectText, provenance: Mapping[str, Any], mask: RedrawnMask) -> ObjectText:
    """With the new mask, and its area where the area, too, is the model's."""
    annotation = annotation.with_value("segmentation", mask.segmentation)
    if "area" in provenance.get("inserted", []):
        annotation = annotation.with_value("area", mask.area)
    return annotation
