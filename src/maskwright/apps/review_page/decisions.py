"""The decisions of a review, in a journal: a crash or a reload loses none."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from maskwright.apps.review_page.completed import CompletedFile, CompletedMask, content_hash
from maskwright.errors import UserError
from maskwright.journal import Journal

Verdict = Literal["accepted", "rejected", "redrawn"]
VERDICTS: tuple[Verdict, ...] = ("accepted", "rejected", "redrawn")


@dataclass(frozen=True)
class RedrawnMask:
    """The mask of a box that a person drew.

    prompt_box: x, y, width and height, like COCO's `bbox`.
    segmentation: COCO's compressed run lengths.
    area: the number of pixels.
    quality: as the model gives it, in 0..1.
    model, weights: the name of the model, and its hash (`models.hub.model_hash`).
    """

    prompt_box: list[float]
    segmentation: dict[str, Any]
    area: int
    quality: float
    model: str
    weights: str


@dataclass(frozen=True)
class Decision:
    """What a person said of a mask; `redrawn` is the new mask where the verdict is so."""

    verdict: Verdict
    redrawn: RedrawnMask | None = None


def journal_path(path: Path) -> Path:
    """Where the decisions on the file at `path` are by default: beside it."""
    return path.with_name(f"{path.name}.review")


def open_journal(path: Path, completed: Path) -> Journal:
    """The journal at `path` of the decisions on the file `completed`; this process alone writes to it.

    Raises:
        UserError: it is of another file, or another process has it, or it cannot be written.
    """
    advice = f"its decisions are on another version of {completed}; give another --journal, or move this one away"
    return Journal.open(path, {"verb": "review", "file": content_hash(completed)}, advice)


def read_decisions(journal: Journal) -> dict[int, Decision]:
    """The last decision on each annotation, by its position; those that were taken back are not among them."""
    return {position: _decision(item) for position, item in journal.items() if item is not None}


def _decision(item: dict[str, Any]) -> Decision:
    mask = item.get("redrawn")
    return Decision(item["verdict"], None if mask is None else RedrawnMask(**mask))


@dataclass
class Review:
    """A completed file with what was decided so far; every decision is written before it counts.

    completed: the file.
    journal: where decisions go.
    decisions: the last one on each annotation, by its position.
    """

    completed: CompletedFile
    journal: Journal
    decisions: dict[int, Decision] = field(init=False)

    def __post_init__(self) -> None:
        self.decisions = read_decisions(self.journal)

    def decide(self, position: int, decision: Decision | None) -> None:
        """Note a decision on the annotation at `position`; None takes it back.

        Raises:
            UserError: there is no completed mask, or the journal cannot be written.
        """
        if position not in self.completed.by_position:
            raise UserError(f"annotation #{position} has no completed mask")
        if decision is None:
            self.journal.append(position, None)
            self.decisions.pop(position, None)
            return
        redrawn = None if decision.redrawn is None else vars(decision.redrawn)
        self.journal.append(position, {"verdict": decision.verdict, "redrawn": redrawn})
        self.decisions[position] = decision

    def verdict(self, mask: CompletedMask) -> str | None:
        """What was decided on a mask, now or in an earlier review."""
        decision = self.decisions.get(mask.position)
        return mask.review if decision is None else decision.verdict

    def next(self, category: str | None = None, after: int | None = None) -> CompletedMask | None:
        """The worst mask (of a class) that nobody has looked at.

        Args:
            category: its class; None for any.
            after: position of a mask that is skipped: the one that follows it, or the first again where none does.
        """
        waiting = [mask for mask in self.masks(category) if self.verdict(mask) is None]
        if after in self.completed.by_position:
            skipped = self.completed.by_position[after]
            place = (skipped.quality, skipped.position)
            later = (mask for mask in waiting if (mask.quality, mask.position) > place)
            return next(later, waiting[0] if waiting else None)
        return waiting[0] if waiting else None

    def masks(self, category: str | None = None) -> list[CompletedMask]:
        """All masks (of a class), worst first."""
        return [mask for mask in self.completed.masks if category is None or mask.category == category]

    def counts(self, category: str | None = None) -> Counter[str | None]:
        """How many masks have each verdict; None is the key of those that nobody has looked at."""
        return Counter(self.verdict(mask) for mask in self.masks(category))
