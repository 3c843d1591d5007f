import threading
import time
from collections.abc import Iterator
from functools import partial

import pytest

from experiments.overlap import Background, Budget, Prefetched, Stopped


def test_items_come_in_order_and_no_more_than_allowed_in_advance() -> None:
    made: list[int] = []

    def items() -> Iterator[int]:
        for number in range(20):
            made.append(number)
            yield number

    seen = []
    with Prefetched(items(), ahead=3) as numbers:
        for number in numbers:
            seen.append(number)
            time.sleep(0.005)
            assert len(made) <= number + 1 + 3 + 1  # waiting, and one in the thread's hand
    assert seen == list(range(20))


def test_an_error_comes_where_its_item_would_and_an_early_end_leaves_no_thread() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise OSError("broken")

    with Prefetched(items(), 2) as numbers:
        coming = iter(numbers)
        assert next(coming) == 1
        with pytest.raises(OSError, match="broken"):
            next(coming)
    before = threading.active_count()
    with Prefetched(iter(range(10**9)), 2) as numbers:
        assert next(iter(numbers)) == 0
        assert threading.active_count() == before + 1
    assert threading.active_count() == before


def test_one_thread_keeps_the_order_and_the_backlog_is_bounded() -> None:
    done: list[int] = []
    given: list[int] = []

    def task(number: int) -> None:
        time.sleep(0.005)
        done.append(number)

    with Background(threads=1, backlog=2) as background:
        for number in range(10):
            background.submit(partial(task, number))
            given.append(number)
            assert len(given) - len(done) <= 2 + 1
    assert done == list(range(10))


def test_the_first_error_of_a_task_is_raised_and_the_rest_waited_for() -> None:
    ended = threading.Event()

    def late() -> None:
        time.sleep(0.05)
        ended.set()

    def broken() -> None:
        raise OSError("disk full")

    background = Background(threads=2, backlog=4)
    background.submit(late)
    background.submit(broken)
    with pytest.raises(OSError, match="disk full"), background:
        pass
    assert ended.is_set()


def test_a_budget_lets_in_what_fits_and_a_large_one_alone() -> None:
    taken: list[str] = []
    with Budget(10) as budget:
        budget.take(6)

        def take_five() -> None:
            budget.take(5)
            taken.append("five")

        waiting = threading.Thread(target=take_five)
        waiting.start()
        time.sleep(0.02)
        assert taken == []
        budget.give_back(6)
        waiting.join(5)
        assert taken == ["five"]
        budget.give_back(5)
        budget.take(11)  # nothing else is taken
    with pytest.raises(Stopped):
        budget.take(1)
