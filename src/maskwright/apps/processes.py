"""Work that several processes of this machine share.

The workers are new interpreters, which read jobs from one pipe and write results to another. `multiprocessing` would
first run the caller's main module again in each of them: a script without `if __name__ == "__main__":` would start
over, and there is no module to run where the caller is read from standard input.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any, BinaryIO, NoReturn, TypeVar, cast

from maskwright.errors import UserError
from maskwright.signals import signals_held

Job = TypeVar("Job")
Result = TypeVar("Result")


def run_jobs(work: Callable[[Job], Result], jobs: Iterable[Job], processes: int) -> Iterator[tuple[Job, Result]]:
    """Each job with the result of `work`, as soon as it is done, in any order.

    A single process is the caller's own. Several are started here and share the CPU threads. They end when the
    generator ends or is closed: after the last job, an error or Ctrl-C. They also end when the caller is killed.

    Args:
        work: like jobs and results, picklable; nothing of them may be defined in the main program.
        jobs: each is taken when a process is free for it.
        processes: at least 1.

    Raises:
        UserError: something cannot be handed to another process, or a process was killed.
        Exception: what `work` raises.
    """
    if processes == 1:
        yield from ((job, work(job)) for job in jobs)
        return
    waiting = iter(jobs)
    with ThreadPoolExecutor(processes) as threads, ExitStack() as stack:  # ends the workers, then their threads
        idle = [stack.enter_context(_start_worker(number, processes)) for number in range(1, processes + 1)]
        running: dict[Future[Result], tuple[_Worker, Job]] = {}
        finished: list[tuple[Job, Result]] = []
        while True:
            for worker, job in zip(idle, waiting, strict=False):
                running[threads.submit(worker.answer, work, job)] = worker, job
            yield from finished
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            results = [(*running.pop(future), future.result()) for future in done]
            idle, finished = [worker for worker, _, _ in results], [(job, result) for _, job, result in results]


def device_of_process(device: str | None) -> str | None:
    """`device`, but in a worker of `run_jobs` its share of the GPUs, unless `device` is a certain one or the CPU."""
    number = os.environ.get(_NUMBER)
    if number is None or device not in (None, "auto", "cuda"):
        return device
    try:
        import torch
    except ModuleNotFoundError:  # nothing else here can count the GPUs
        return device
    return f"cuda:{(int(number) - 1) % torch.cuda.device_count()}" if torch.cuda.is_available() else device


Answer = tuple[Any, Exception | None, list[str]]
"""Of a worker: the result, or None; the exception, or None; and our warnings."""


def answer_job(work: Callable[[Job], Result], job: Job) -> bytes:
    """`work(job)` as a worker sends it to its caller: an `Answer`, pickled."""
    with warnings.catch_warnings(record=True) as recorded:
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", module="maskwright")
        try:
            result, failure = work(job), None
        except Exception as error:
            error.add_note(traceback.format_exc())
            result, failure = None, error
    told = list(dict.fromkeys(str(warning.message) for warning in recorded))
    try:
        return pickle.dumps((result, failure, told))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return pickle.dumps((None, error, told))


def result_of(answer: Answer) -> Any:
    """The result in a worker's answer; its warnings are given here.

    Raises:
        Exception: what `work` raised.
    """
    result, failure, told = answer
    for warning in told:
        warnings.warn(warning, stacklevel=1)  # of this module, so that all workers' are told as one process's
    if failure is not None:
        raise failure
    return result


class _Worker:
    """The caller's side of one worker."""

    def __init__(self, process: subprocess.Popen[bytes], name: str) -> None:
        self._process = process
        self._name = name

    def answer(self, work: Callable[[Job], Result], job: Job) -> Result:
        """`work(job)`, done by the worker."""
        try:
            task = pickle.dumps((work, job))
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise _cannot_hand_over(error) from error
        tasks, answers = cast(BinaryIO, self._process.stdin), cast(BinaryIO, self._process.stdout)
        try:
            pickle.dump(task, tasks)
            tasks.flush()
            answer = pickle.load(answers)
        except (BrokenPipeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{self._name} {self._end()}") from error
        return result_of(answer)

    def _end(self) -> str:
        code = self._process.wait()
        if code >= 0:
            return f"ended too early, with exit code {code}"
        return f"was killed by {signal.Signals(-code).name} (out of memory?); take fewer --processes"


_NUMBER = "MASKWRIGHT_WORKER"  # environment variable of a worker: its number
_START = f"from {__name__} import _serve; _serve()"


@contextmanager
def _start_worker(number: int, processes: int) -> Iterator[_Worker]:
    """Worker `number` of 1..`processes`; it is killed at the end."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        "OMP_NUM_THREADS": str(max(1, _threads() // processes)),
        _NUMBER: str(number),
    }
    command = [sys.executable, "-P", "-c", _START]  # -P: modules are found on the caller's path alone
    process: subprocess.Popen[bytes] | None = None
    try:  # a signal that is held comes at the end of that
        with signals_held():  # the caller answers them, and ends its workers
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        yield _Worker(process, f"process {number} of {processes} (pid {process.pid})")
    finally:
        if process is not None:
            process.kill()
            process.communicate()  # waits, and closes the pipes


def _threads() -> int:
    """As many as torch takes for the caller's work; where that does without it, as many as it would take."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return torch.get_num_threads()
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(told) if told.isdigit() else len(os.sched_getaffinity(0))


def _cannot_hand_over(error: Exception) -> UserError:
    return UserError(
        f"the work cannot be handed to several processes ({error}): take processes=1, or, where a class is one of "
        "the main program, define it in a module of its own"
    )


def _serve() -> NoReturn:
    """The worker's side: do one task after the other until the caller closes the pipe or is gone."""
    tasks: SimpleQueue[bytes] = SimpleQueue()
    with os.fdopen(os.dup(0), "rb") as incoming, os.fdopen(os.dup(1), "wb") as outgoing:
        os.dup2(2, 1)  # what `work` prints must not come between the answers
        threading.Thread(target=_receive, args=(incoming, tasks), daemon=True).start()
        while True:
            outgoing.write(_answer(tasks.get()))
            outgoing.flush()


def _receive(incoming: BinaryIO, tasks: SimpleQueue[bytes]) -> None:
    """In a thread of its own, so that a worker without a caller ends at once, even in the middle of a task."""
    try:
        while True:
            tasks.put(pickle.load(incoming))
    except EOFError:
        os._exit(1)


def _answer(task: bytes) -> bytes:
    try:
        work, job = pickle.loads(task)
    except Exception as error:
        return pickle.dumps((None, _cannot_hand_over(error), []))
    return answer_job(work, job)
