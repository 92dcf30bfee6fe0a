"""The loop of a long job: results go into its journal as they come, and whatever stops it is told how to go on."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

from tqdm import tqdm

from maskwright.errors import UserError
from maskwright.journal import Journal


@runtime_checkable
class Positioned(Protocol):
    """A part of a job; `position` is its place in it."""

    @property
    def position(self) -> int:
        """From 0 on."""
        ...


Part = TypeVar("Part", bound=Positioned)


def waiting_jobs(jobs: Sequence[Part], journal: Journal) -> list[Part]:
    """Those that the journal lacks; that some are done is told on stderr."""
    waiting = [job for job in jobs if job.position not in journal]
    if len(waiting) < len(jobs):
        print(f"{journal.path}: going on; {len(journal)} of {len(jobs)} images are done", file=sys.stderr)
    return waiting


def keep_results(
    results: Iterable[tuple[Part, Any]],
    jobs: Sequence[Part],
    journal: Journal,
    unit: str = "image",
    size: Callable[[Part], int] = lambda _: 1,
    done: Callable[[Any], None] = lambda _: None,
) -> None:
    """Write results into the journal, with a progress bar on stderr.

    Args:
        results: of `waiting_jobs`, in any order, JSON values.
        jobs: of the whole run, one for each image.
        journal: of the run. It is removed if the run stops before the first result.
        unit: of the progress.
        size: of a job, in this unit.
        done: called with each result after it is written.

    Raises:
        UserError: as `results` does, or the journal cannot be written; the sentence says how much is done.
    """
    before = sum(size(job) for job in jobs if job.position in journal)
    try:
        with tqdm(total=sum(map(size, jobs)), initial=before, unit=unit, disable=None) as progress:
            for job, result in results:
                journal.append(job.position, result)
                done(result)
                progress.update(size(job))
    except (UserError, KeyboardInterrupt) as error:
        if len(journal) == 0:
            journal.finish()
            raise
        kept = f"{len(journal)} of {len(jobs)} images are done (in {journal.path}): the same command goes on from there"
        if isinstance(error, UserError):
            raise UserError(f"{error}; {kept}") from error
        print(f"\n{kept}", file=sys.stderr)
        raise
