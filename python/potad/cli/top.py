"""`potad top`: a running pool, arena or space, looked at again and again."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console, RenderableType
from rich.live import Live

from potad.cli.durations import duration_option
from potad.monitor import BadAnswer, NotServing, Snapshot, running, snapshot
from potad.monitor.place import pid_of
from potad.report import document, humanise, top

# A process that computes without letting others go on may take a while.
_TIMEOUT_S = 5.0

_ROWS_MIN = 3

_HOW = "a process calls potad.serve(...) to be looked at by its user"


@click.command(name="top", short_help="Look at a running pool, arena or space.")
@click.argument("who", metavar="[PID|PATH]", required=False)
@click.option(
    "--interval",
    callback=duration_option,
    default="1s",
    show_default=True,
    metavar="TIME",
    help="How often to look, such as 500ms or 2s.",
)
@click.option("--once", is_flag=True, help="Look once and end, as where there is no terminal.")
@click.option("--json", "as_json", is_flag=True, help="Look once and print all figures as JSON.")
def top_command(who: str | None, interval: float, once: bool, as_json: bool) -> None:
    """Look at a pool, an arena or a space of a running process that called potad.serve.

    PID is such a process, PATH the socket that potad.serve was given or said. Without either: the
    only one there is, or a list of them. They are found in the same $XDG_RUNTIME_DIR, or without
    one in /tmp. Nothing can be changed. Ctrl-C ends it, and so does the process.
    """
    paths = _sockets(who)
    if len(paths) > 1:
        _list(paths, as_json)
    elif as_json:
        _print_json(_look(paths[0]).to_dict())
    elif once or not sys.stdout.isatty() or Console().is_dumb_terminal:
        Console().print(top.render(_look(paths[0])))
    else:
        with suppress(KeyboardInterrupt):  # how it is meant to end
            _watch(paths[0], interval)


def _sockets(who: str | None) -> list[Path]:
    """What is to be looked at; raises `NotServing` if there is nothing."""
    if who is not None and not (who.isascii() and who.isdigit()):
        return [Path(who)]
    paths = running()
    if who is None:
        if not paths:
            raise NotServing(f"there is nothing to look at: {_HOW}")
        return paths
    paths = [path for path in paths if pid_of(path) == int(who)]
    if not paths:
        raise NotServing(f"process {who} shows nothing: {_HOW}")
    return paths


def _look(path: Path) -> Snapshot:
    try:
        return snapshot(path, _TIMEOUT_S)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _list(paths: Sequence[Path], as_json: bool) -> None:
    entries: list[tuple[Path, Snapshot | str]] = []
    for path in paths:
        try:
            entries.append((path, snapshot(path, _TIMEOUT_S)))
        except NotServing:
            continue  # ended just now
        except TimeoutError:
            entries.append((path, "no answer in time"))
        except (BadAnswer, OSError) as error:
            entries.append((path, str(error)))
    if as_json:
        _print_json(
            [
                {
                    "path": str(path),
                    "error": shown if isinstance(shown, str) else None,
                    "snapshot": None if isinstance(shown, str) else shown.to_dict(),
                }
                for path, shown in entries
            ]
        )
        return
    Console().print(top.render_list([(pid_of(path), str(path), it) for path, it in entries]))


def _print_json(data: Any) -> None:
    click.echo(document.dumps(data), nl=False)


def _watch(path: Path, interval_s: float) -> None:
    """Shows it until it ends."""
    # What cannot be looked at is said before the screen is taken.
    now, before, note = _look(path), None, ""
    console = Console()
    with Live(console=console, screen=True, auto_refresh=False) as live:
        due = seen_s = time.monotonic()
        while True:
            live.update(_fitting(console, now, before, note), refresh=True)
            # In step with the clock, unless looking takes longer than that.
            due = max(due + interval_s, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            try:
                seen = _look(path)
            except NotServing:
                break
            except TimeoutError:
                note = f"no answer for {humanise.duration(round(time.monotonic() - seen_s))}"
                continue
            if seen.pid != now.pid:
                break  # another process, at the same place
            now, before, note, seen_s = seen, now, "", time.monotonic()
    # What it came to stays to be read.
    console.print(top.render(now, before))
    click.echo(f"potad: the {now.kind} of process {now.pid} has ended")


def _fitting(console: Console, now: Snapshot, before: Snapshot | None, note: str) -> RenderableType:
    """A screen with as many rows by kind and owner as there is room for."""
    height = console.height
    full = top.render(now, before, rows_max=height, note=note)
    over = len(console.render_lines(full, pad=False)) - height
    if over <= 0:
        return full
    # One line more is for what is said of the others.
    rows_max = max(_ROWS_MIN, min(height, _rows(now)) - over - 1)
    return top.render(now, before, rows_max=rows_max, note=note)


def _rows(now: Snapshot) -> int:
    shown = now.pool or now.space
    return len(shown.rows) if shown else 0
