"""Reading, computing and writing at the same time: threads with bounded queues, and a bound on their memory."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Full, Queue
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")

_POLL_SECONDS = 0.1


class Stopped(BaseException):
    """The work has ended, so nothing is to be waited for any more; not an error of a file."""


class Prefetched(Generic[Item]):
    """Iterates over items that a thread of its own makes, `ahead` at most in advance; a context that ends the thread.

    An error in making an item is raised where the item would have come.
    """

    def __init__(self, items: Iterable[Item], ahead: int) -> None:
        self._items = items
        self._made: Queue[tuple[Item | None, BaseException | None]] = Queue(ahead)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._make, daemon=True)

    def __enter__(self) -> "Prefetched[Item]":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Item]:
        while True:
            item, error = self._made.get()
            if error is not None:
                if isinstance(error, StopIteration):
                    return
                raise error
            yield item  # type: ignore[misc]

    def _make(self) -> None:
        end: BaseException = StopIteration()
        try:
            for item in self._items:
                if not self._put((item, None)):
                    return
        except BaseException as error:
            end = error
        self._put((None, end))

    def _put(self, entry: tuple[Item | None, BaseException | None]) -> bool:
        """Whether there was room for the entry before the context ended."""
        while not self._stop.is_set():
            try:
                self._made.put(entry, timeout=_POLL_SECONDS)
            except Full:
                continue
            return True
        return False


class Background:
    """Threads that run tasks, at most `backlog` of them waiting or running; a context that waits for all of them.

    One thread keeps the tasks' order. The first error of a task is raised by the next `submit` or at the end; where the
    context ends by an error, waiting tasks are dropped.
    """

    def __init__(self, threads: int, backlog: int) -> None:
        self._pool = ThreadPoolExecutor(threads)
        self._free = threading.Semaphore(backlog)
        self._error: BaseException | None = None

    def __enter__(self) -> "Background":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)
        if kind is None and self._error is not None:
            raise self._error

    def submit(self, task: Callable[[], object]) -> None:
        """Run a task; waits while the backlog is full."""
        self._free.acquire()
        if self._error is not None:
            raise self._error
        self._pool.submit(task).add_done_callback(self._done)

    def _done(self, future: "Future[Any]") -> None:
        if not future.cancelled() and self._error is None:
            self._error = future.exception()
        self._free.release()


class Budget:
    """An amount of memory that several takers share; a context whose end wakes who still waits, by Stopped."""

    def __init__(self, amount: int) -> None:
        self._amount, self._taken = amount, 0
        self._closed = False
        self._changed = threading.Condition()

    def __enter__(self) -> "Budget":
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def take(self, amount: int) -> None:
        """Wait until the amount is free, or until nothing is taken: a single taker may have more than there is."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._taken or self._taken + amount <= self._amount)
            if self._closed:
                raise Stopped
            self._taken += amount

    def give_back(self, amount: int) -> None:
        with self._changed:
            self._taken -= amount
            self._changed.notify_all()
