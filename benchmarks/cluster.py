"""Pictures a second that the caller of a Ray cluster can hand out and write down, with a model that takes no time.

    python benchmarks/cluster.py [--pictures 20000] [--boxes 7] [--processes 2] [--address local]

Prints also the bytes of a picture's job on the way there and of its line in the journal.
"""

from __future__ import annotations

import argparse
import pickle
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from maskwright.apps.cluster import Cluster, check_address, run_jobs_on_cluster
from maskwright.apps.completion.plan import CompletionJob
from maskwright.apps.journalled import keep_results
from maskwright.errors import UserError
from maskwright.journal import Journal


class EmptyModel:
    """Answers with masks of the usual length."""

    def check_machine(self) -> None:
        """Any machine will do."""

    def __call__(self, job: CompletionJob) -> dict[str, Any]:
        """The record of a picture."""
        mask = [0.81234, 4321, {"size": list(job.image_size), "counts": "x" * 200}]
        return {"failed": None, "masks": [mask] * len(job.rows)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=20000)
    parser.add_argument("--boxes", type=int, default=7)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--address", default="local")
    arguments = parser.parse_args()
    try:
        check_address(arguments.address)
    except UserError as error:
        print(f"cluster: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    rows, boxes = np.arange(arguments.boxes), np.zeros((arguments.boxes, 4), dtype=np.float32)
    jobs = [
        CompletionJob(position, "000000123456.jpg", Path(__file__), (480, 640), rows, boxes, rows)
        for position in range(arguments.pictures)
    ]
    cluster = Cluster(arguments.address, arguments.processes, gpu=False)
    with tempfile.TemporaryDirectory() as folder, Journal.open(Path(folder) / "journal", {}) as journal:
        moments: list[float] = []  # the first one without the start of the cluster
        results = run_jobs_on_cluster(EmptyModel(), jobs, cluster)
        keep_results(results, jobs, journal, done=lambda _: moments.append(time.perf_counter()))
        line = journal.path.stat().st_size / len(jobs)
    rate = (len(moments) - 1) / (moments[-1] - moments[0])
    print(f"{rate:.0f} pictures/s; {len(pickle.dumps(jobs[0]))} bytes a job, {line:.0f} bytes a line of the journal")


if __name__ == "__main__":
    main()
