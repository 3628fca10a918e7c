"""The queue: nothing lost, nothing twice, in order, bounded; a fake computation lets time and faults be chosen."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vggdeploy.engine.microbatch import BatchDone, MicroBatcher
from vggdeploy.errors import Overloaded, VggdeployError


class Computation:
    """Doubles numbers, and remembers its batches. While ``gate`` is not set it waits. A None poisons its batch."""

    def __init__(self, *, open_gate: bool = True) -> None:
        self.batches: list[list[int]] = []
        self.gate = threading.Event()
        self.entered = threading.Event()
        if open_gate:
            self.gate.set()

    def __call__(self, group: object, numbers: Sequence[int]) -> list[int]:
        self.batches.append(list(numbers))
        self.entered.set()
        assert self.gate.wait(10)
        if None in numbers:
            raise ValueError("poison")
        return [2 * n for n in numbers]


def batcher(run: Computation, **options: object) -> MicroBatcher[int, int]:
    return MicroBatcher(run, **{"max_rows": 4, "max_delay": 0.0, "queue": 1000, **options})  # type: ignore[arg-type]


def ask(made: MicroBatcher[int, int], number: int, *, rows: int = 1, group: object = None) -> Future[int]:
    ticket = made.enter(group)
    made.submit(ticket, number, rows)
    return ticket.future


def blocked(run: Computation, made: MicroBatcher[int, int]) -> Future[int]:
    """A first request that keeps the only thread busy until the gate opens."""
    first = ask(made, -1)
    assert run.entered.wait(10)
    return first


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 4), max_size=40),
    max_rows=st.integers(4, 9),
    delay=st.sampled_from([0.0, 0.001]),
    runners=st.integers(1, 3),
    poisoned=st.sets(st.integers(0, 39), max_size=3),
    cancelled=st.sets(st.integers(0, 39), max_size=5),
)
def test_every_request_is_answered_once_with_its_own_answer_whatever_happens_to_others(
    sizes: list[int], max_rows: int, delay: float, runners: int, poisoned: set[int], cancelled: set[int]
) -> None:
    computed: list[int] = []
    lock = threading.Lock()

    def run(group: object, numbers: Sequence[int]) -> list[int]:
        if any(n in poisoned for n in numbers):
            raise ValueError(f"poison in {numbers}")
        with lock:
            computed.extend(numbers)
        return [2 * n for n in numbers]

    done: list[BatchDone] = []
    made: MicroBatcher[int, int] = MicroBatcher(
        run, max_rows=max_rows, max_delay=delay, queue=100, runners=runners, on_batch=done.append
    )
    futures = [ask(made, number, rows=rows) for number, rows in enumerate(sizes)]
    gone = {n for n in cancelled if n < len(futures) and futures[n].cancel()}
    made.close()
    for number, future in enumerate(futures):
        if number in gone:
            assert future.cancelled()
            assert number not in computed
        elif number in poisoned:
            assert isinstance(future.exception(0), ValueError)
        else:
            assert future.result(0) == 2 * number
            assert computed.count(number) == 1
    assert all(batch.rows <= max_rows for batch in done)
    assert made.waiting == 0


@settings(max_examples=40)
@given(
    order=st.permutations(range(12)),
    sizes=st.lists(st.integers(1, 4), min_size=12, max_size=12),
)
def test_who_came_first_is_first_whatever_order_they_were_prepared_in(order: list[int], sizes: list[int]) -> None:
    run = Computation(open_gate=False)
    made = batcher(run)
    first = blocked(run, made)
    tickets = [made.enter() for _ in order]
    for place in order:
        made.submit(tickets[place], place, sizes[place])
    run.gate.set()
    wait([first, *(t.future for t in tickets)], timeout=10)
    made.close()
    assert [n for batch in run.batches[1:] for n in batch] == sorted(order)


@settings(max_examples=30)
@given(groups=st.lists(st.sampled_from("ab"), min_size=1, max_size=20))
def test_a_batch_is_of_one_group_and_the_order_stays(groups: list[str]) -> None:
    seen: list[tuple[str, list[int]]] = []
    gate = threading.Event()

    def run(group: str, numbers: Sequence[int]) -> list[int]:
        gate.wait(10)
        seen.append((group, list(numbers)))
        return list(numbers)

    made: MicroBatcher[int, int] = MicroBatcher(run, max_rows=4, max_delay=0, queue=100)
    for number, group in enumerate(groups):
        ask(made, number, group=group)
    gate.set()
    made.close()
    assert [n for _, numbers in seen for n in numbers] == list(range(len(groups)))
    assert all(groups[n] == group for group, numbers in seen for n in numbers)


def test_what_waits_while_a_batch_runs_becomes_the_next_batches() -> None:
    run = Computation(open_gate=False)
    made = batcher(run)
    first = blocked(run, made)
    futures = [ask(made, n) for n in range(9)]
    run.gate.set()
    wait([first, *futures], timeout=10)
    made.close()
    assert run.batches == [[-1], [0, 1, 2, 3], [4, 5, 6, 7], [8]]


def test_a_full_queue_is_answered_at_once_and_takes_requests_again_when_there_is_room() -> None:
    run = Computation(open_gate=False)
    made = batcher(run, queue=3)
    blocked(run, made)
    waiting = [ask(made, n) for n in range(2)]
    made.enter()  # one that is being prepared counts as well
    with pytest.raises(Overloaded) as caught:  # while nothing is computed: it waits for nobody
        made.enter()
    assert caught.value.hint
    assert waiting[0].cancel()
    again = ask(made, 7)
    run.gate.set()
    assert again.result(10) == 14
    assert [0] not in [batch[:1] for batch in run.batches]


def test_a_cancelled_request_is_not_computed_before_or_after_it_is_ready() -> None:
    run = Computation(open_gate=False)
    made = batcher(run)
    blocked(run, made)
    preparing = made.enter()
    assert preparing.future.cancel()
    made.submit(preparing, 5)
    ready = ask(made, 6)
    assert ready.cancel()
    assert made.waiting == 0
    run.gate.set()
    made.close()
    assert run.batches == [[-1]]


def test_a_request_whose_batch_has_started_cannot_be_cancelled_and_gets_its_answer() -> None:
    run = Computation(open_gate=False)
    made = batcher(run)
    first = blocked(run, made)
    assert not first.cancel()
    run.gate.set()
    assert first.result(10) == -2
    made.close()


def test_one_that_cannot_be_prepared_fails_alone() -> None:
    run = Computation()
    made = batcher(run)
    bad = made.enter()
    made.fail(bad, ValueError("no image"))
    good = ask(made, 4)
    made.close()
    assert good.result(0) == 8
    assert str(bad.future.exception(0)) == "no image"


def test_one_that_poisons_its_batch_fails_alone() -> None:
    run = Computation(open_gate=False)
    made = batcher(run)
    blocked(run, made)
    futures = [ask(made, n) for n in (1, None, 3)]  # type: ignore[arg-type]
    run.gate.set()
    made.close()
    assert (futures[0].result(0), futures[2].result(0)) == (2, 6)
    assert str(futures[1].exception(0)) == "poison"


def test_an_error_that_is_no_exception_reaches_who_waits_too() -> None:
    def run(group: object, numbers: Sequence[int]) -> list[int]:
        raise SystemExit(3)

    made: MicroBatcher[int, int] = MicroBatcher(run, max_rows=4, max_delay=0, queue=10)
    future = ask(made, 1)
    with pytest.raises(SystemExit):
        future.result(10)
    made.close()


def test_too_few_results_are_an_error_of_those_who_wait_and_not_a_wait_for_ever() -> None:
    made: MicroBatcher[int, int] = MicroBatcher(lambda group, numbers: [], max_rows=4, max_delay=0, queue=10)
    future = ask(made, 1)
    with pytest.raises(VggdeployError, match="0 results for 1"):
        future.result(10)
    made.close()


def test_a_lone_request_does_not_wait_for_company() -> None:
    made = batcher(Computation(), max_delay=5.0)
    started = time.perf_counter()
    for n in range(3):
        assert ask(made, n).result(10) == 2 * n
    assert time.perf_counter() - started < 2
    made.close()


def test_a_ready_request_waits_for_one_that_is_being_prepared_and_no_longer_than_the_delay() -> None:
    run = Computation()
    made = batcher(run, max_delay=5.0)
    second = made.enter()
    first = ask(made, 1)
    time.sleep(0.05)
    assert not run.batches
    made.submit(second, 2)
    assert first.result(4) == 2
    assert run.batches == [[2, 1]]  # by arrival
    made.close()
    made = batcher(run, max_delay=0.05)
    slow = made.enter()
    assert ask(made, 3).result(4) == 6
    made.submit(slow, 4)
    made.close()


def test_closing_answers_what_was_taken_and_takes_nothing_more() -> None:
    run = Computation(open_gate=False)
    made = batcher(run)
    blocked(run, made)
    futures = [ask(made, n) for n in range(6)]
    closer = threading.Thread(target=made.close)
    closer.start()
    while True:
        try:
            made.enter().future.cancel()
        except VggdeployError as error:
            assert "closed" in error.cause
            break
    run.gate.set()
    closer.join(10)
    assert [f.result(0) for f in futures] == [0, 2, 4, 6, 8, 10]
    made.close()


def test_many_threads_lose_nothing() -> None:
    made = batcher(Computation(), runners=2, max_delay=0.0005, max_rows=7)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda n: ask(made, n).result(30), range(2000)))
    made.close()
    assert found == [2 * n for n in range(2000)]


def _in_child(made: MicroBatcher[int, int], connection: multiprocessing.connection.Connection) -> None:
    try:
        made.enter()
    except VggdeployError as error:
        connection.send(error.cause)
    made.close()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_after_a_fork_the_child_is_told_and_the_parent_goes_on() -> None:
    made = batcher(Computation())
    assert ask(made, 1).result(10) == 2
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=_in_child, args=(made, theirs))
    child.start()
    child.join(10)
    assert child.exitcode == 0
    assert "fork" in ours.recv()
    assert ask(made, 2).result(10) == 4
    made.close()
