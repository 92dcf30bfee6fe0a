"""Which boxes belong to which picture: what a person gave as `--boxes`, matched to the pictures."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from maskwright.apps.box_files import FORMS, Naming, PictureBoxes, inline_boxes, read_box_file
from maskwright.apps.run_summary import RunSummary
from maskwright.data.matching import Matches, match_names
from maskwright.data.orientation import ExifRule
from maskwright.data.picture_folder import PictureList
from maskwright.errors import UserError

Job = tuple[Path, PictureBoxes | None]
"""A picture and its boxes, None where they are to be found."""


def boxes_of_pictures(
    spec: str,
    pictures: Sequence[Path],
    summary: RunSummary,
    annotations: str | None = None,
    exif: ExifRule = "auto",
) -> list[Job]:
    """Every picture with the boxes that `spec` gives for it, in the order of the pictures.

    A picture that a file lists twice comes twice. Pictures that are not listed, entries without a picture and what
    cannot be matched are noted in `summary`.

    Args:
        spec: inline boxes `x1,y1,x2,y2;...` (for one picture only), or a file or folder of boxes (`read_box_file`).
        pictures: files.
        summary: of the run.
        annotations: see `read_box_file`.
        exif: the frame of the boxes of a COCO file, where it is known.

    Raises:
        UserError: no such file, a file of another form, no picture that it lists, or no box of these that is one.
    """
    # os.path answers False to a text that is too long for a path, as many inline boxes are, where Path raises.
    if not os.path.exists(spec):  # noqa: PTH110
        if "," not in spec:
            raise UserError(f"--boxes {spec}: no such file; expected {FORMS}")
        entries = [inline_boxes(spec)]
    else:
        entries = read_box_file(Path(spec), summary, annotations, PictureList(pictures, exif))
    if len(entries) == 1 and not entries[0].name:
        if len(pictures) != 1:
            told = "boxes without the name of a picture are for one image"
            raise UserError(f"--boxes {spec}: {told}, but there are {len(pictures)}; use a file that names them")
        jobs: list[Job] = [(pictures[0], entries[0])]
    else:
        jobs = _match(entries, pictures, spec, summary)
    _refuse_without_boxes(jobs, spec)
    return jobs


def _refuse_without_boxes(jobs: Sequence[Job], spec: str) -> None:
    """Refuse boxes of which none is one.

    Raises:
        UserError: so.
    """
    given = [boxes for _, boxes in jobs if boxes is not None]
    wrong = [boxes for boxes in given if boxes.problems]
    if wrong and all(len(boxes) == len(boxes.problems) for boxes in given):
        boxes = wrong[0]
        place = min(boxes.problems)
        name = f"at {boxes.name!r}, " if boxes.name else ""
        raise UserError(f"{spec}: {name}box {place}: {boxes.problems[place]}")


def _match(entries: Sequence[PictureBoxes], pictures: Sequence[Path], spec: str, summary: RunSummary) -> list[Job]:
    found: dict[int, list[PictureBoxes]] = {}
    unmatched: list[str] = []
    unclear: list[str] = []
    for members, matches in _matches_by_naming(entries, pictures):
        _note_repairs(members, pictures, matches, summary)
        for place, (entry, picture) in enumerate(zip(members, matches.pictures, strict=True)):
            if picture is not None:
                found.setdefault(picture, []).append(entry)
            elif place in matches.ambiguous:
                unclear.append(f"{spec}: {_unclear(entry.name, [pictures[at] for at in matches.ambiguous[place]])}")
            else:
                unmatched.append(entry.name)
    if not found:
        raise UserError(unclear[0] if unclear else _no_entry(entries, pictures, spec))
    unlisted = [picture for position, picture in enumerate(pictures) if position not in found]
    for sentence in unclear:
        summary.note("failed", "entry of the box file that may mean several pictures", sentence)
    for name in unmatched:
        summary.note("left out", f"entry of {spec} without a picture among those given", name)
    for picture in unlisted:
        summary.note("left out", f"picture that {spec} does not list", picture)
    return [(pictures[position], entry) for position in sorted(found) for entry in found[position]]


def _note_repairs(
    entries: Sequence[PictureBoxes], pictures: Sequence[Path], matches: Matches, summary: RunSummary
) -> None:
    causes = {
        "name with the folders of another machine": matches.other_prefix,
        "name in another spelling than the picture's": matches.respelled,
    }
    for cause, places in causes.items():
        for place in places:
            picture = matches.pictures[place]
            if picture is not None:
                summary.note("repaired", cause, f"{entries[place].name} is taken for {pictures[picture]}")


def _unclear(name: str, candidates: Sequence[Path]) -> str:
    if len(candidates) == 1:
        return f"{name!r} is not the only name there that may mean {candidates[0]}; name it with its folder here"
    return f"{name!r} may mean {' or '.join(map(str, candidates[:3]))}; name each of them with its folder there"


def _matches_by_naming(
    entries: Sequence[PictureBoxes], pictures: Sequence[Path]
) -> list[tuple[list[PictureBoxes], Matches]]:
    found = []
    namings: tuple[Naming, ...] = ("file", "stem", "number")
    for naming in namings:
        members = [entry for entry in entries if entry.naming == naming]
        names = [_named(entry.name, naming) for entry in members]
        if members:
            found.append((members, match_names(names, [_named_path(path, naming) for path in pictures])))
    return found


def _named_path(path: Path, naming: Naming) -> Path:
    return path if naming == "file" else path.with_name(_named(path.stem, naming))


def _named(name: str, naming: Naming) -> str:
    return str(int(name)) if naming == "number" and name.isdecimal() else name


def _no_entry(entries: Sequence[PictureBoxes], pictures: Sequence[Path], spec: str) -> str:
    # Those of the same file name first: they lie in another folder.
    known = sorted((entry.name for entry in entries), key=lambda name: (Path(name).name != pictures[0].name, name))
    shown = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "")
    wanted = (
        f"the image {pictures[0]}" if len(pictures) == 1 else f"any of the {len(pictures)} images ({pictures[0]}, ...)"
    )
    hint = "an image's entry is its path, or an end of its path"
    if entries and entries[0].naming == "number":
        hint = "give --annotations FILE, the COCO file that says which image each image_id is"
    return f"{spec}: has no entry for {wanted} (it has {len(known)}: {shown}); {hint}"
