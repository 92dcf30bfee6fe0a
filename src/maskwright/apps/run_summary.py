"""What became of everything that a run was given: counts by cause, with an example of each."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Literal

from maskwright.errors import UserError

Section = Literal["repaired", "noticed", "left out", "failed"]


@dataclass
class RunSummary:
    """Counts by cause.

    `repaired` was used all the same, `noticed` is used as it stands though it looks wrong, `left out` is what nobody
    meant or what has no box, `failed` was asked for and could not be done.

    strict: whether the first failure ends the run.
    causes: (section, cause) -> [count, the first example].
    """

    strict: bool = False
    causes: dict[tuple[Section, str], tuple[int, str]] = field(default_factory=dict)

    def note(self, section: Section, cause: str, example: object, count: int = 1) -> None:
        """Count one thing more, or `count` things.

        Raises:
            UserError: it failed, and the run is strict.
        """
        if self.strict and section == "failed":
            raise UserError(f"{example} (--strict)")
        before, first = self.causes.get((section, cause), (0, str(example)))
        self.causes[section, cause] = (before + count, first)

    @property
    def failed(self) -> int:
        """How many failed."""
        return sum(count for (section, _), (count, _) in self.causes.items() if section == "failed")

    @property
    def exit_code(self) -> int:
        """0, or 3 where something failed and the rest is written."""
        return 3 if self.failed else 0

    def print(self) -> None:
        """Write a line for each cause to stderr."""
        order: list[Section] = ["repaired", "noticed", "left out", "failed"]
        for (section, cause), (count, example) in sorted(self.causes.items(), key=lambda row: order.index(row[0][0])):
            told = f"{section}: {count} x {cause}, {'for example' if count > 1 else 'namely'} {example}"
            print(" ".join(told.split()), file=sys.stderr)
