"""What is wrong with an entry of an annotation file, and what it leads to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from maskwright.errors import UserError

Effect = Literal["refused", "not for training", "dropped", "box only", "void", "kept"]


@dataclass(frozen=True)
class Problem:
    """One broken entry of an annotation file.

    subject: what `id` names: an `annotation`, `image` or `segment` (`file` where no single entry is at fault).
    id: the entry's own id, or its position in the list as `#3` where it has none.
    kind: the reason in general words, the same for all entries of a kind; `reason` adds the values.
    effect: `refused` (the file cannot be used), `not for training` (only for prediction and evaluation), `dropped`
        (the entry is left out), `box only` (it is kept without its mask), `void` (its pixels count as unlabelled),
        `kept` (it is used all the same).
    """

    subject: Literal["annotation", "image", "segment", "file"]
    id: Any
    kind: str
    reason: str
    effect: Effect

    def __str__(self) -> str:
        text = f"{self.subject} {self.id}: {self.reason}"
        return text.encode(errors="backslashreplace").decode()  # the file may hold halves of characters (`is_text`)


def refuse_problems(source: str, problems: Sequence[Problem]) -> None:
    """Raise the first of the problems that make the file `source` unusable, if there is one.

    Raises:
        UserError: a problem's effect is `refused`; its sentence names the entry and counts the others.
    """
    refused = [problem for problem in problems if problem.effect == "refused"]
    if refused:
        others = f" (and {len(refused) - 1} more; `maskwright data check` lists all)" if len(refused) > 1 else ""
        raise UserError(f"{source}: {refused[0]}{others}")


def commonest(problems: Sequence[Problem], total: int) -> str:
    """The cause that most of the problems have, out of `total` entries, with the first example."""
    if not problems:
        return "it lists none"
    kind, count = Counter(problem.kind for problem in problems).most_common(1)[0]
    example = next(problem for problem in problems if problem.kind == kind)
    return f"the commonest cause, in {count} of {total}: {kind}; the first: {example}"


def reading_notes(source: str, skipped: Mapping[str, int], repaired: Mapping[str, int]) -> list[str]:
    """What became of the broken entries of `source`, a line for the repaired and one for the skipped ones, if any."""
    notes = []
    if repaired:
        counts = "; ".join(f"{count} x {kind}" for kind, count in repaired.items())
        notes.append(f"repaired in {source}: {counts} (`maskwright data check` shows an example of each)")
    if skipped:
        notes.append(f"skipped in {source}: {count_skipped(skipped)}")
    return notes


def count_skipped(skipped: Mapping[str, int]) -> str:
    """How many entries of each kind were skipped, in words for a message."""
    return ", ".join(f"{count} {kind}" for kind, count in skipped.items()) + " (`maskwright data check` names each)"
