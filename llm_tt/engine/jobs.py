"""Long questions as jobs: queued, observed, cancelled, collected. What is computed is the engine's business."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Literal

from llm_tt.errors import LlmTtError
from llm_tt.progress import Cancelled

JobState = Literal["queued", "running", "done", "failed", "cancelled"]
Line = Literal["usual", "quick", "bulk"]
"""Where a job waits: for a prompt; for a part of what is there; for many prompts, one job at a time, so that prompts never wait for those"""
FINISHED: frozenset[JobState] = frozenset({"done", "failed", "cancelled"})

_KEPT = 256
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class JobStatus:
    """Where a job is. `position` counts the jobs before it in the queue; `message` is the sentence to show when it failed."""

    state: JobState
    stage: str = "Waiting"
    fraction: float = 0.0
    position: int = 0
    seconds: float = 0.0
    message: str = ""
    so_far: Any = None
    """the part of the answer that has come, for work that tells it"""

    @property
    def finished(self) -> bool:
        return self.state in FINISHED


class _Job:
    def __init__(self, line: Line) -> None:
        self.line = line
        self.started = time.monotonic()
        self.status = JobStatus("queued")
        self.cancelled = threading.Event()
        self.ended = threading.Event()
        self.answer: Any = None
        self.error: BaseException | None = None


class JobReport:
    """How the work of a job tells where it is: a progress callback, and a place for the part of its answer that has come."""

    def __init__(self, job: _Job) -> None:
        self._job = job

    def __call__(self, stage: str, fraction: float) -> None:
        if self._job.cancelled.is_set():
            raise Cancelled
        self._job.status = JobStatus("running", stage, fraction, so_far=self._job.status.so_far)

    def so_far(self, part: Any) -> None:
        self._job.status = replace(self._job.status, so_far=part)


class JobQueue:
    """Runs functions in worker threads, in the order in which they came; each line by itself."""

    def __init__(self, n_workers: int, n_quick_workers: int = 2) -> None:
        sizes: dict[Line, int] = {"usual": n_workers, "quick": n_quick_workers, "bulk": 1}
        self._pools = {line: ThreadPoolExecutor(n, thread_name_prefix="llm-tt-job") for line, n in sizes.items()}
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, _Job] = OrderedDict()

    def submit(self, work: Callable[[JobReport], Any], line: Line = "usual") -> str:
        """Queue a function of a `JobReport`, which is a progress callback; the id of its job."""
        job_id, job = uuid.uuid4().hex, _Job(line)
        with self._lock:
            self._jobs[job_id] = job
            for old in [key for key, value in self._jobs.items() if value.ended.is_set()][:-_KEPT]:
                del self._jobs[old]
            try:
                self._pools[line].submit(self._run, job, work)
            except RuntimeError as error:
                del self._jobs[job_id]
                raise LlmTtError("The server is closing or was given another configuration. Run it again.") from error
        return job_id

    def status(self, job_id: str) -> JobStatus:
        """
        Raises:
            LlmTtError: no such job, or it was finished so long ago that it was dropped.
        """
        job = self._job(job_id)
        status = job.status
        if status.state == "queued":
            with self._lock:
                before = list(itertools.takewhile(lambda other: other is not job, self._jobs.values()))
            status = replace(status, position=sum(other.status.state == "queued" for other in before if other.line == job.line))
        return status if status.finished else replace(status, seconds=time.monotonic() - job.started)

    def wait(self, job_id: str, timeout: float | None = None) -> JobStatus:
        """Block until the job is finished, or for `timeout` seconds."""
        self._job(job_id).ended.wait(timeout)
        return self.status(job_id)

    def cancel(self, job_id: str) -> None:
        """Ask a job to stop; it does so at its next report of progress. Nothing happens to a finished or unknown one."""
        with self._lock:
            job = self._jobs.get(job_id)
        if job is not None:
            job.cancelled.set()

    def collect(self, job_id: str) -> Any:
        """The answer of a finished job, which is forgotten; waits for an unfinished one. Raises what the job raised."""
        job = self._job(job_id)
        job.ended.wait()
        with self._lock:
            self._jobs.pop(job_id, None)
        if job.error is not None:
            raise job.error
        return job.answer

    def close(self) -> None:
        with self._lock:
            for job in self._jobs.values():
                job.cancelled.set()
        # Queued jobs are not thrown away: each starts, finds itself cancelled and ends, so that nobody waits for it for ever.
        for pool in self._pools.values():
            pool.shutdown(wait=False)

    def _job(self, job_id: str) -> _Job:
        with self._lock:
            if job_id not in self._jobs:
                raise LlmTtError("This computation is no longer known: the server was restarted. Run it again.")
            return self._jobs[job_id]

    def _run(self, job: _Job, work: Callable[[JobReport], Any]) -> None:
        report = JobReport(job)

        def end(state: JobState, message: str = "") -> None:
            last = job.status
            job.status = replace(last, state=state, seconds=time.monotonic() - job.started, message=message)

        try:
            report("Starting", 0.0)
            job.answer = work(report)
            end("done")
        except Cancelled as error:
            job.error = error
            end("cancelled", "Cancelled.")
        except LlmTtError as error:
            job.error = error
            end("failed", str(error))
        except BaseException as error:
            _log.exception("A job failed in a way that nobody expected")
            job.error = error
            end("failed", f"Unexpected error, please report it: {type(error).__name__}: {error}")
        finally:
            job.ended.set()
