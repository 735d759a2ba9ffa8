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

    A thread that is inside may come in again, as a finaliser does that Python runs in the middle of
    a call. One that is alone may not, and one that is inside cannot be alone: either is told so,
    since it would wait for itself.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.alone = _Alone(self)
        self.closed = False
        self._process = os.getpid()
        # Its lock can be had again by who has it, finalisers as well.
        self._condition = threading.Condition()
        # Guarded by the condition: threads that are inside, with how often, and the one alone.
        self._inside: dict[int, int] = {}
        self._thread_alone: int | None = None

    def leave_to_parent(self) -> None:
        """In a process that was just forked: nobody gets in any more, nor waits to."""
        self._condition = threading.Condition()
        self._inside, self._thread_alone = {}, None

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
        me = threading.get_ident()
        with self._condition:
            self._must_not_be_alone(me)
            if me not in self._inside:
                self._wait(lambda: self._thread_alone is None)
            self.must_be_open()
            self._inside[me] = self._inside.get(me, 0) + 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        me = threading.get_ident()
        with self._condition:
            if (times := self._inside.get(me, 0)) > 1:
                self._inside[me] = times - 1
                return
            # First, so that a finaliser that runs behind it and waits does not wait for ever.
            self._condition.notify_all()
            # In a process that was forked within the call nobody is inside.
            self._inside.pop(me, None)

    def _wait(self, until: Callable[[], bool]) -> None:
        while not until():
            self._condition.wait()

    def enter_alone(self) -> None:
        """Waits until nobody is inside."""
        me = threading.get_ident()
        with self._condition:
            self._must_not_be_alone(me)
            if me in self._inside:
                raise PotadError(f"{self.name} is in use by a call that this one is made within")
            self._wait(lambda: self._thread_alone is None)
            self._thread_alone = me
            try:
                self._wait(lambda: not self._inside)
                self.must_be_open()
            except BaseException:
                self._thread_alone = None
                self._condition.notify_all()
                raise

    def leave_alone(self) -> None:
        """Lets others in again."""
        with self._condition:
            self._thread_alone = None
            self._condition.notify_all()

    def _must_not_be_alone(self, thread: int) -> None:
        if self._thread_alone == thread:
            raise PotadError(f"{self.name} is being changed by a call that this one is made within")


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
