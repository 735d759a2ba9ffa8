"""Progress bars on standard error, if that is a terminal and they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from potad.printable import printable
from potad.report import humanise


class Bars:
    """Bars one below the other, gone when all is done."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def reading(self, name: str) -> Callable[[int, int | None], None]:
        """A bar for reading `name`; what is returned moves it to so many bytes of so many."""
        task = self._progress.add_task(f"reading {printable(name)}", total=None, amount="")

        def move(done_bytes: int, total_bytes: int | None) -> None:
            self._progress.update(
                task, completed=done_bytes, total=total_bytes, amount=humanise.size(done_bytes)
            )

        return move

    def replaying(self, allocator: str) -> Callable[[int, int], None]:
        """A bar for one allocator; what is returned moves it to so many events of so many."""
        task = self._progress.add_task(allocator, total=None, amount="")

        def move(done: int, total: int) -> None:
            amount = f"{humanise.count(done)} events"
            self._progress.update(task, completed=done, total=total, amount=amount)

        return move


@contextmanager
def bars(quiet: bool) -> Iterator[Bars]:
    """Bars for as long as the context lasts; `quiet` ones are never shown."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[amount]}", justify="right"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )
    with progress:
        yield Bars(progress)
