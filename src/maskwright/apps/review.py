"""`maskwright review`: a person looks at the masks that a model made, the doubtful ones first."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maskwright.apps.page.extra import require_page_libraries
from maskwright.apps.review_page.apply import apply_decisions
from maskwright.apps.review_page.completed import CompletedFile, read_completed
from maskwright.apps.review_page.decisions import Review, journal_path, open_journal, read_decisions
from maskwright.apps.review_page.redraw import Redrawer
from maskwright.apps.review_page.sheet import write_sheet
from maskwright.apps.run_summary import RunSummary
from maskwright.data.orientation import exif_rule
from maskwright.errors import UserError
from maskwright.prompts import DEFAULT_MODEL


@dataclass(frozen=True)
class ReviewOptions:
    """What `maskwright review` is asked for.

    Attributes:
        completed: COCO file in which each annotation with a model's mask has an object "maskwright" with its "quality";
            it stays as it is.
        images: folder that the file names are relative to; not needed with --apply.
        classes: names of the classes to review, with commas; by default all.
        apply: write the decisions into a copy of the file, --out, instead of showing the page.
        out: file for --apply.
        sheet: write a contact sheet to this HTML file, which needs no server, instead of showing the page.
        limit: number of masks on the contact sheet at most, the worst ones.
        journal: file that decisions are noted in as they are made; by default COMPLETED.review beside the file.
        model: that answers redrawn boxes: a bundled model (see `maskwright models`), a weights folder or a Hub
            repository.
        device: cpu, cuda, or auto for a GPU where there is one.
        port: of the page, on this machine only; 0 takes any that is free.
        exif: frame of the annotations of images with an EXIF orientation, where you know it: upright or stored; auto
            decides by sizes, boxes and polygons.
    """

    completed: str | Path
    images: str | Path | None = None
    classes: str = ""
    apply: bool = False
    out: str | Path | None = None
    sheet: str | Path | None = None
    limit: int = 200
    journal: str | Path | None = None
    model: str = DEFAULT_MODEL
    device: str = "auto"
    port: int = 7862
    exif: str = "auto"

    def __post_init__(self) -> None:
        if self.apply and self.sheet is not None:
            raise UserError("expected one of --apply and --sheet, but got both")
        if self.apply != (self.out is not None):
            raise UserError("--apply and --out FILE go together: the decisions are written to a new file")
        if not self.apply and self.images is None:
            raise UserError("expected --images DIR, the folder of the pictures")
        exif_rule(self.exif)
        if self.limit < 1 or not 0 <= self.port < 65536:
            raise UserError(f"expected limit >= 1 and port in 0..65535, but got {self.limit} and {self.port}")

    @property
    def journal_file(self) -> Path:
        """Where the decisions are noted."""
        return journal_path(Path(self.completed)) if self.journal is None else Path(self.journal)


OPTIONS = ReviewOptions


def run(**given: Any) -> int:
    """Show the page until Ctrl-C, or write the decisions or the contact sheet; returns the exit code."""
    options = ReviewOptions(**given)
    if options.apply:
        return _apply(options)
    summary = RunSummary()
    completed = _read(options, summary)
    if options.sheet is not None:
        return _write_sheet(completed, options, summary)
    summary.print()
    _show_page(completed, options)
    return summary.exit_code


def _apply(options: ReviewOptions) -> int:
    path, journal_file = Path(options.completed), options.journal_file
    if not journal_file.exists():
        raise UserError(f"{journal_file}: no such file, so that there is no decision to apply; review {path} first")
    with open_journal(journal_file, path) as journal:
        decisions = read_decisions(journal)
    if not decisions:
        raise UserError(f"{journal_file} holds no decision; review {path} first")
    counts = apply_decisions(path, decisions, Path(str(options.out)))
    print(f"{options.out}: {_told(counts)}")
    return 0


def _read(options: ReviewOptions, summary: RunSummary) -> CompletedFile:
    classes = [name.strip() for name in options.classes.split(",") if name.strip()]
    exif = exif_rule(options.exif)
    return read_completed(Path(options.completed), str(options.images), summary, classes, exif)


def _write_sheet(completed: CompletedFile, options: ReviewOptions, summary: RunSummary) -> int:
    count = write_sheet(completed, completed.masks[: options.limit], Path(str(options.sheet)), summary)
    summary.print()
    print(f"{options.sheet}: {count} masks")
    return summary.exit_code


def _show_page(completed: CompletedFile, options: ReviewOptions) -> None:
    require_page_libraries()
    from maskwright.apps.page.local_server import listen, serve
    from maskwright.apps.review_page.server import create_review

    listening = listen(options.port)
    with listening, open_journal(options.journal_file, completed.path) as journal:
        review = Review(completed, journal)
        redrawer = Redrawer.load(completed, options.model, options.device)
        host, port = listening.getsockname()
        print(f"{len(completed.masks)} masks to review at http://{host}:{port}/ (Ctrl-C ends)", flush=True)
        try:
            serve(create_review(review, redrawer), listening)
        finally:
            print(f"{journal.path}: {_told(review.counts())}; --apply writes them into a file", file=sys.stderr)


def _told(counts: Counter[Any]) -> str:
    verdicts: Sequence[str] = ("accepted", "rejected", "redrawn")
    return ", ".join(f"{counts[verdict]} {verdict}" for verdict in verdicts)
