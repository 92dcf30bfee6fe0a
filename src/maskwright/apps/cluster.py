"""Work that the machines of a Ray cluster share.

Ray Data hands the jobs to actors and their results to the caller. An actor that is killed, or whose machine is lost, is
started again, and its jobs are done again.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import secrets
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TypeVar, runtime_checkable
from urllib.parse import urlsplit

from maskwright.apps.processes import answer_job, result_of
from maskwright.data.picture_folder import PicturePlace, is_there
from maskwright.errors import UserError

LOCAL = "local"
"""The address of a cluster that is started on this machine, and ended."""

AUTO = "auto"
"""The address of the cluster that this machine belongs to."""

PORT = 6379
"""Where the head of a cluster listens, if its address does not say."""

SECONDS_TO_ANSWER = 5.0
"""So long the head may take to accept a connection."""

JOBS_AT_ONCE = 8
"""So many jobs an actor gets and answers at once, at most: more cost less on the way, and are lost with the actor."""


@runtime_checkable
class OfPicture(Protocol):
    """A job that needs a picture."""

    @property
    def path(self) -> PicturePlace:
        """Of the picture, on every machine."""
        ...


Job = TypeVar("Job", bound=OfPicture)


@runtime_checkable
class ClusterWork(Protocol):
    """What the machines do with jobs; picklable."""

    def __call__(self, job: Any) -> Any:
        """The result of a job."""
        ...

    def check_machine(self) -> None:
        """Refuse a machine that would give other results than the caller's.

        Raises:
            UserError: so.
        """
        ...


@dataclass(frozen=True)
class Cluster:
    """Where the work is done.

    address: `local`, `auto` for the cluster that this machine belongs to, or its head as HOST or HOST:PORT.
    actors: how many there are; 0 for as many as the cluster has room for.
    gpu: whether each of them needs a GPU.
    """

    address: str
    actors: int
    gpu: bool


def check_address(address: str) -> None:
    """Refuse the address of a head where nothing listens, which Ray itself would try to reach for minutes.

    Raises:
        UserError: so; nothing is known about `local` and `auto`.
    """
    if address in (LOCAL, AUTO):
        return
    try:
        head = urlsplit(f"//{address}")
        socket.create_connection((head.hostname, head.port or PORT), SECONDS_TO_ANSWER).close()
    except (OSError, ValueError) as error:  # ValueError: no port, or a name that cannot be one
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"--address {address}: no Ray cluster can be reached there ({reason}); start its head (`ray start --head "
            f"--port {PORT}`), give HOST or HOST:PORT of one that runs, or leave out --address"
        ) from error


def run_jobs_on_cluster(work: ClusterWork, jobs: Sequence[Job], cluster: Cluster) -> Iterator[tuple[Job, Any]]:
    """Each job with the result of `work`, as `maskwright.apps.processes.run_jobs` gives them.

    The cluster is left as it was when the generator ends or is closed.

    Raises:
        UserError: there is no cluster, no room in it, a machine of it is not like this one, or it fails as a whole.
        Exception: what `work` raises.
    """
    ray = _import_ray()
    with _connected(ray, cluster):
        actors = cluster.actors or _room(ray, cluster)
        try:
            for row in _answers(ray, work, jobs, cluster, actors):
                yield jobs[row["number"]], result_of(pickle.loads(row["answer"]))
        except ray.exceptions.RayError as error:
            raise UserError(f"the Ray cluster stopped the work ({_first_line(error)})") from error


class _Actor:
    """A worker's side."""

    def __init__(self, work: ClusterWork, folder: str) -> None:
        with suppress(OSError):  # it need not be there, if all paths are absolute
            os.chdir(folder)
        self._work = work
        self._checked = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"number": row["number"], "answer": answer_job(self._do, pickle.loads(row["job"]))}

    def _do(self, job: OfPicture) -> Any:
        try:
            if not self._checked:
                self._work.check_machine()
                self._checked = True
            if not is_there(job.path):
                raise UserError(
                    f"the picture {job.path} is not there, but it is where the command was given; all machines of the "
                    "cluster must see the pictures under the same path"
                )
            return self._work(job)
        except UserError as error:
            raise UserError(f"on machine {platform.node()}: {error}") from error


def _answers(
    ray: ModuleType, work: ClusterWork, jobs: Sequence[Any], cluster: Cluster, actors: int
) -> Iterator[dict[str, Any]]:
    rows = [{"number": number, "job": pickle.dumps(job)} for number, job in enumerate(jobs)]
    blocks = max(-(-len(rows) // JOBS_AT_ONCE), min(len(rows), 4 * actors))  # a few for each actor, at least
    return (
        ray.data.from_items(rows, override_num_blocks=blocks)
        .map(
            _Actor,
            fn_constructor_args=(work, str(Path.cwd())),
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=actors, initial_size=actors),
            num_cpus=1,
            num_gpus=1 if cluster.gpu else 0,
        )
        .iter_rows()
    )


def _room(ray: ModuleType, cluster: Cluster) -> int:
    """How many actors the cluster has room for."""
    kind = "GPU" if cluster.gpu else "CPU"
    room = int(ray.cluster_resources().get(kind, 0))
    if room < 1:
        raise UserError(f"the cluster at {cluster.address} has no {kind}; expected one for each process")
    return room


@contextmanager
def _connected(ray: ModuleType, cluster: Cluster) -> Iterator[None]:
    """Within the cluster; one that was started for it is ended.

    Raises:
        UserError: there is none.
    """
    address, own = cluster.address, cluster.address == LOCAL
    if not own and address != AUTO and ":" not in address:
        address = f"{address}:{PORT}"
    settings: dict[str, Any] = {"num_cpus": cluster.actors or None, "include_dashboard": False} if own else {}
    if own:  # Ray would write a token into the home folder, and clusters that are started later would ask for it
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with _silence():
            ray.init(address, log_to_driver=False, logging_level=logging.CRITICAL, **settings)
    except (ConnectionError, RuntimeError, ValueError, ray.exceptions.AuthenticationError) as error:
        raise UserError(
            f"there is no Ray cluster at {cluster.address} that this machine belongs to, or it refuses a command "
            f"without its token ({_first_line(error)}); start one (`ray start`), set RAY_AUTH_MODE=token and "
            "RAY_AUTH_TOKEN_PATH to the file of its token, or leave out --address"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray sets its own
        yield
    finally:
        ray.shutdown()


@contextmanager
def _silence() -> Iterator[None]:
    """Nothing comes out of stderr, also from Ray's core, which says there that it was told to be quiet."""
    stderr = os.dup(2)
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # what it will be; there is a warning where nothing is said
    "RAY_BACKEND_LOG_LEVEL": "fatal",
}


def _import_ray() -> ModuleType:
    """Ray, which says nothing, to nobody.

    Raises:
        UserError: it is not installed.
    """
    os.environ |= _QUIET
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise UserError(f"--engine ray needs {error.name}: pip install 'maskwright[cluster]'") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    return ray


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
