"""Who may use a swap file: many calls at once, or one that changes the file as a whole."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from types import TracebackType

from potad.errors import PotadError


class Gate:
    """A gate that many pass together (`with gate:`), or one alone (`with gate.alone:`).

    Calls that are inside stay valid; whoever wants to be alone waits for them, and those that come
    later wait for it. What is closed while alone, or belongs to a process that this one was forked
    from, lets nobody in.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alone = _Alone(self)
        self.closed = False
        self._process = os.getpid()
        self._condition = threading.Condition(threading.Lock())
        self._inside = 0
        self._is_alone = False

    def leave_to_parent(self) -> None:
        """In a process that was just forked: nobody gets in any more, nor waits to."""
        self._condition = threading.Condition(threading.Lock())
        self._inside, self._is_alone = 0, False

    @property
    def is_ours(self) -> bool:
        """Whether it belongs to this process."""
        return self._process == os.getpid()

    def must_be_open(self) -> None:
        """Raises `ValueError` if it is closed, `PotadError` in a child of its process."""
        if self.closed:
            raise ValueError(f"{self.name} is closed")
        if not self.is_ours:
            raise PotadError(
                f"{self.name} belongs to process {self._process}, from which this one was forked"
            )

    def __enter__(self) -> None:
        with self._condition:
            self._wait(lambda: not self._is_alone)
            self.must_be_open()
            self._inside += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._condition:
            self._inside -= 1
            if not self._inside:
                self._condition.notify_all()

    def _wait(self, until: Callable[[], bool]) -> None:
        while not until():
            self._condition.wait()

    def enter_alone(self) -> None:
        """Waits until nobody is inside."""
        with self._condition:
            self._wait(lambda: not self._is_alone)
            self._is_alone = True
            try:
                self._wait(lambda: not self._inside)
                self.must_be_open()
            except BaseException:
                self._is_alone = False
                self._condition.notify_all()
                raise

    def leave_alone(self) -> None:
        """Lets others in again."""
        with self._condition:
            self._is_alone = False
            self._condition.notify_all()


class _Alone:
    """To be the only one inside a gate."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __enter__(self) -> None:
        self._gate.enter_alone()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._gate.leave_alone()
