"""The job queue with real threads, stepped by events: nothing here waits for a clock, except to give up."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from llm_tt.engine import jobs
from llm_tt.engine.jobs import JobQueue, JobStatus
from llm_tt.errors import LlmTtError, PromptError
from llm_tt.progress import Cancelled, Progress

PATIENCE = 10.0
"""Seconds after which something that should have happened counts as never happening"""


class Gate:
    """Work that reports, stops until it is let on, and reports again."""

    def __init__(self, answer: Any = "answer") -> None:
        self.started, self.go_on = threading.Event(), threading.Event()
        self.finished = False
        self._answer = answer

    def __call__(self, progress: Progress) -> Any:
        progress("Half way", 0.5)
        self.started.set()
        assert self.go_on.wait(PATIENCE)
        progress("Nearly there", 0.9)
        self.finished = True
        return self._answer


@pytest.fixture
def make_queue() -> Iterator[Callable[[int], JobQueue]]:
    queues: list[JobQueue] = []

    def make(n_workers: int) -> JobQueue:
        queues.append(JobQueue(n_workers))
        return queues[-1]

    yield make
    for queue in queues:
        queue.close()


@pytest.fixture
def queue(make_queue: Callable[[int], JobQueue]) -> JobQueue:
    """With one worker: at most one job runs."""
    return make_queue(1)


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.go_on.set()


def finished(queue: JobQueue, job: str) -> JobStatus:
    status = queue.wait(job, PATIENCE)
    assert status.finished
    return status


def test_an_answer_is_collected_once(queue: JobQueue) -> None:
    job = queue.submit(lambda progress: {"a": 1})
    assert finished(queue, job).state == "done"
    assert queue.collect(job) == {"a": 1}
    with pytest.raises(LlmTtError):
        queue.collect(job)


def test_collect_waits_for_a_job_that_is_running(queue: JobQueue, gate: Gate) -> None:
    job = queue.submit(gate)
    assert gate.started.wait(PATIENCE)
    threading.Timer(0.02, gate.go_on.set).start()
    assert queue.collect(job) == "answer"
    assert gate.finished


def test_jobs_run_in_the_order_in_which_they_came(queue: JobQueue, gate: Gate) -> None:
    order: list[int] = []
    queue.submit(gate)
    waiting = [queue.submit(lambda progress, index=index: order.append(index)) for index in range(20)]
    gate.go_on.set()
    for job in waiting:
        finished(queue, job)
    assert order == list(range(20))


def test_position_counts_the_jobs_ahead_in_the_queue(queue: JobQueue) -> None:
    gates = [Gate() for _ in range(4)]
    submitted = [queue.submit(gate) for gate in gates]
    assert gates[0].started.wait(PATIENCE)
    running, *waiting = (queue.status(job) for job in submitted)
    assert (running.state, running.position) == ("running", 0)
    assert [(status.state, status.position, status.stage) for status in waiting] == [("queued", place, "Waiting") for place in range(3)]
    gates[0].go_on.set()
    assert gates[1].started.wait(PATIENCE)
    assert [queue.status(job).position for job in submitted[1:]] == [0, 0, 1]
    for gate in gates:
        gate.go_on.set()
    assert finished(queue, submitted[-1]).position == 0


def test_two_workers_run_two_jobs_at_a_time(make_queue: Callable[[int], JobQueue]) -> None:
    queue, gates = make_queue(2), [Gate() for _ in range(3)]
    third = [queue.submit(gate) for gate in gates][-1]
    assert gates[0].started.wait(PATIENCE)
    assert gates[1].started.wait(PATIENCE)
    assert not gates[2].started.is_set()
    assert queue.status(third).state == "queued"
    gates[1].go_on.set()
    assert gates[2].started.wait(PATIENCE)
    for gate in gates:
        gate.go_on.set()


def test_quick_jobs_do_not_wait_for_long_ones(queue: JobQueue, gate: Gate) -> None:
    queue.submit(gate)
    long = queue.submit(lambda progress: "long")
    assert gate.started.wait(PATIENCE)
    quick = [queue.submit(lambda progress: "quick", line="quick") for _ in range(3)]
    assert all(finished(queue, job).state == "done" for job in quick)
    assert queue.status(long).state == "queued"
    gate.go_on.set()
    assert finished(queue, long).state == "done"


def test_each_line_counts_its_own(make_queue: Callable[[int], JobQueue]) -> None:
    queue, gates = make_queue(1), [Gate() for _ in range(4)]
    for gate in gates[:2]:
        queue.submit(gate, line="quick")
        assert gate.started.wait(PATIENCE)
    queue.submit(gates[2])
    assert gates[2].started.wait(PATIENCE)
    for _ in range(3):
        queue.submit(gates[3])
    assert queue.status(queue.submit(gates[3], line="quick")).position == 0
    assert queue.status(queue.submit(gates[3], line="quick")).position == 1
    for gate in gates:
        gate.go_on.set()


def test_progress_of_a_running_job_is_seen(queue: JobQueue, gate: Gate) -> None:
    job = queue.submit(gate)
    assert gate.started.wait(PATIENCE)
    first, second = queue.status(job), queue.wait(job, 0.01)
    assert (first.state, first.stage, first.fraction, first.message, first.finished) == ("running", "Half way", 0.5, "", False)
    assert second.seconds > first.seconds > 0
    gate.go_on.set()
    done = finished(queue, job)
    assert (done.state, done.stage, done.fraction) == ("done", "Nearly there", 0.9)
    assert queue.status(job).seconds == done.seconds, "the clock of a finished job stands still"


def test_a_cancelled_job_stops_at_its_next_report(queue: JobQueue, gate: Gate) -> None:
    job = queue.submit(gate)
    assert gate.started.wait(PATIENCE)
    queue.cancel(job)
    assert queue.status(job).state == "running"
    gate.go_on.set()
    status = finished(queue, job)
    assert (status.state, status.message, status.fraction) == ("cancelled", "Cancelled.", 0.5)
    assert not gate.finished
    with pytest.raises(Cancelled):
        queue.collect(job)


def test_a_job_cancelled_in_the_queue_never_starts(queue: JobQueue, gate: Gate) -> None:
    ran: list[str] = []
    queue.submit(gate)
    unwanted = queue.submit(lambda progress: ran.append("unwanted"))
    wanted = queue.submit(lambda progress: ran.append("wanted"))
    queue.cancel(unwanted)
    gate.go_on.set()
    assert finished(queue, unwanted).state == "cancelled"
    assert finished(queue, wanted).state == "done"
    assert ran == ["wanted"]


def test_cancelling_what_is_finished_or_unknown_changes_nothing(queue: JobQueue) -> None:
    job = queue.submit(lambda progress: 7)
    finished(queue, job)
    queue.cancel(job)
    queue.cancel("no such job")
    assert queue.status(job).state == "done"
    assert queue.collect(job) == 7


def test_a_failing_job_gives_its_sentence(queue: JobQueue) -> None:
    def work(progress: Progress) -> None:
        progress("Reading", 0.25)
        raise PromptError("The prompt is empty. Type some text.")

    job = queue.submit(work)
    status = finished(queue, job)
    assert (status.state, status.message) == ("failed", "The prompt is empty. Type some text.")
    assert (status.stage, status.fraction) == ("Reading", 0.25)
    with pytest.raises(PromptError, match="The prompt is empty"):
        queue.collect(job)


@pytest.mark.parametrize("error", [ZeroDivisionError("division by zero"), KeyError("blocks.0"), SystemExit(3)], ids=repr)
def test_an_unexpected_exception_is_named_and_raised_again_by_collect(queue: JobQueue, error: BaseException) -> None:
    def work(progress: Progress) -> None:
        raise error

    job = queue.submit(work)
    status = finished(queue, job)
    assert status.state == "failed"
    assert status.message == f"Unexpected error, please report it: {type(error).__name__}: {error}"
    with pytest.raises(type(error)) as caught:
        queue.collect(job)
    assert caught.value is error
    assert finished(queue, queue.submit(lambda progress: 1)).state == "done", "the worker goes on"


@pytest.mark.parametrize("ask", [JobQueue.status, JobQueue.wait, JobQueue.collect])
def test_a_job_that_is_not_known_gets_a_sentence(queue: JobQueue, ask: Callable[[JobQueue, str], Any]) -> None:
    with pytest.raises(LlmTtError, match="no longer known: the server was restarted"):
        ask(queue, "0123")


def test_finished_jobs_that_nobody_collects_are_dropped_oldest_first(queue: JobQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_KEPT", 3)
    submitted = []
    for index in range(10):
        submitted.append(queue.submit(lambda progress, index=index: index))
        finished(queue, submitted[-1])
    queue.submit(lambda progress: None)
    for job in submitted[:-3]:
        with pytest.raises(LlmTtError):
            queue.status(job)
    assert [queue.collect(job) for job in submitted[-3:]] == [7, 8, 9]


def test_jobs_that_are_not_finished_are_never_dropped(queue: JobQueue, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_KEPT", 0)
    running = queue.submit(gate)
    waiting = [queue.submit(lambda progress, index=index: index) for index in range(5)]
    assert [queue.status(job).state for job in waiting] == ["queued"] * 5
    gate.go_on.set()
    assert queue.collect(running) == "answer"


# --- close


def test_close_cancels_the_running_job(queue: JobQueue, gate: Gate) -> None:
    job = queue.submit(gate)
    assert gate.started.wait(PATIENCE)
    queue.close()
    gate.go_on.set()
    assert finished(queue, job).state == "cancelled"
    assert not gate.finished


def test_close_cancels_the_queued_jobs_and_wakes_who_waits_for_them(queue: JobQueue, gate: Gate) -> None:
    ran: list[int] = []
    queue.submit(gate)
    waiting = [queue.submit(lambda progress, index=index: ran.append(index)) for index in range(3)]
    assert gate.started.wait(PATIENCE)
    queue.close()
    gate.go_on.set()
    queue.wait(waiting[-1], 2)
    assert [queue.status(job).state for job in waiting] == ["cancelled"] * 3
    assert ran == []


def test_a_closed_queue_refuses_new_jobs_with_a_sentence(queue: JobQueue) -> None:
    queue.close()
    with pytest.raises(LlmTtError):
        queue.submit(lambda progress: 1)


# --- many threads


def test_many_threads_get_their_own_answers(make_queue: Callable[[int], JobQueue]) -> None:
    queue = make_queue(3)
    answers: dict[int, int] = {}

    def client(number: int) -> None:
        for index in range(20):
            job = queue.submit(lambda progress, value=100 * number + index: value)
            queue.status(job)
            answers[100 * number + index] = queue.collect(job)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert answers == {100 * number + index: 100 * number + index for number in range(6) for index in range(20)}
