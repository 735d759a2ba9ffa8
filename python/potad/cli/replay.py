"""`potad replay`: recorded page traffic through several allocators, and a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack

import click
from click.core import ParameterSource
from rich.console import Console

from potad.cli.outputs import OutputFile
from potad.cli.progress import bars
from potad.cli.sizes import run_option, size_option
from potad.printable import printable
from potad.report import document, terminal
from potad.trace import (
    CMA,
    PEERS,
    POTAD,
    Report,
    RunRequests,
    default_memory_bytes,
    read_trace,
    replay,
    replay_runs,
    summarise,
)
from potad.trace.replay import DEFAULT_POINTS, DEFAULT_PROBE_INTERVAL_EVENTS, page_rounded
from potad.trace.result import TraceSummary
from potad.trace.runs import DEFAULT_INTERVAL_EVENTS, DEFAULT_PINNED, DEFAULT_RESERVE
from potad.trace.source import STDIN_NAME, check_readable, display_name

_ALL = "all"
_NONE = "none"

# Malformed lines spelled out before the rest is only counted.
_MALFORMED_SHOWN = 5

_POINTS_MAX = 100_000

_RUNS_MAX = 1_000_000


def peers_option(
    context: click.Context, parameter: click.Parameter, given: Sequence[str]
) -> list[str]:
    """The callback of `--against`: the allocators all of its values name, in report order."""
    names = {name.strip() for value in given for name in value.split(",")}
    known = (*PEERS, _ALL, _NONE)
    for name in sorted(names):
        if name not in known:
            raise click.BadParameter(f"{name!r} is not one of {', '.join(known)}")
    if _NONE in names and len(names) > 1:
        raise click.BadParameter(f"{_NONE} cannot be combined with other names")
    return [peer for peer in PEERS if _ALL in names or peer in names]


@click.command(name="replay", short_help="Replay a recorded trace through allocators.")
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True)
@click.option(
    "--against",
    callback=peers_option,
    multiple=True,
    metavar="NAMES",
    default=(_ALL,),
    help=f"Allocators to compare with: {', '.join(PEERS)}, {_ALL} (the default) or {_NONE};"
    " separated by commas, or given again.",
)
@click.option(
    "--memory",
    callback=size_option,
    metavar="SIZE",
    help="Size of the space, such as 512MiB or 2G, rounded up to pages."
    " Default: the trace's peak and a sixteenth.",
)
@click.option(
    "--probe-interval",
    type=click.IntRange(min=1),
    default=DEFAULT_PROBE_INTERVAL_EVENTS,
    show_default=True,
    metavar="EVENTS",
    help="How often to look whether a run of 8 MiB could be had.",
)
@click.option(
    "--runs",
    callback=run_option,
    metavar="SIZE[@ALIGN]",
    help="Ask for runs of this size at multiples of ALIGN, such as 8MiB@1MiB, while replaying once"
    " more: of potad, which moves movable pages, and of Linux CMA (restated), which has a reserve.",
)
@click.option(
    "--runs-every",
    type=click.IntRange(min=1),
    default=DEFAULT_INTERVAL_EVENTS,
    show_default=True,
    metavar="EVENTS",
    help="How often runs are asked for.",
)
@click.option(
    "--runs-at-once",
    type=click.IntRange(min=1, max=_RUNS_MAX),
    default=1,
    show_default=True,
    metavar="COUNT",
    help="How many are wanted each time.",
)
@click.option(
    "--pinned",
    type=click.FloatRange(min=0, max=1),
    default=DEFAULT_PINNED,
    show_default=True,
    metavar="SHARE",
    help="Share of the movable allocations that cannot be moved when runs are asked for.",
)
@click.option(
    "--reserve",
    type=click.FloatRange(min=0, max=1, min_open=True, max_open=True),
    default=DEFAULT_RESERVE,
    show_default=True,
    metavar="SHARE",
    help="Share of the memory that CMA reserves for runs; potad reserves none.",
)
@click.option(
    "--points",
    type=click.IntRange(min=2, max=_POINTS_MAX),
    default=DEFAULT_POINTS,
    show_default=True,
    help="Samples of each curve.",
)
@click.option(
    "--json", "json_path", metavar="FILE", help="Write all figures as JSON; - is standard output."
)
@click.option(
    "--html", "html_path", metavar="FILE", help="Write the report as one self-contained page."
)
@click.option("-q", "--quiet", is_flag=True, help="Show no progress.")
@click.pass_context
def replay_command(
    context: click.Context,
    traces: tuple[str, ...],
    against: list[str],
    memory: int | None,
    probe_interval: int,
    runs: tuple[int, int] | None,
    runs_every: int,
    runs_at_once: int,
    pinned: float,
    reserve: float,
    points: int,
    json_path: str | None,
    html_path: str | None,
    quiet: bool,
) -> None:
    """Run the page traffic recorded in each TRACE through potad and other allocators.

    A TRACE is the kernel's mm_page_alloc and mm_page_free events as text: of ftrace, `perf
    script` or `trace-cmd report`, plain or compressed by gzip, xz or zstd. - is standard input.
    """
    allocators = [POTAD, *against]
    requests = None
    if runs is not None:
        size_bytes, align_bytes = page_rounded(runs[0]), runs[1]
        requests = RunRequests(size_bytes, align_bytes, runs_every, runs_at_once, pinned, reserve)
    else:
        _refuse_without_runs(context)
    if traces.count(STDIN_NAME) > 1:
        raise click.UsageError("standard input (-) can be read only once")
    for name in traces:
        check_readable(name)
    if html_path is not None:
        _require_matplotlib()
    json_to_stdout = json_path == STDIN_NAME
    with ExitStack() as stack:
        json_file = html_file = None
        if json_path is not None and not json_to_stdout:
            json_file = stack.enter_context(_output(json_path, traces))
        if html_path is not None:
            html_file = stack.enter_context(_output(html_path, traces))
            if json_file is not None and json_path is not None and html_file.same_file(json_path):
                raise click.UsageError("--json and --html name the same file")

        reports = []
        # A table among the JSON would spoil it.
        console = Console(stderr=json_to_stdout)
        for name in traces:
            report = _replay_one(name, allocators, memory, probe_interval, requests, points, quiet)
            reports.append(report)
            console.print(terminal.render(reports[-1]))
        if json_to_stdout:
            sys.stdout.buffer.write(document.render(reports).encode())
        if json_file is not None:
            json_file.write(document.render(reports).encode())
            json_file.commit()
        if html_file is not None:
            from potad.report import html

            html_file.write(html.render(reports).encode())
            html_file.commit()


def _output(path: str, traces: Sequence[str]) -> OutputFile:
    output = OutputFile(path)
    if any(output.same_file(name) for name in traces if name != STDIN_NAME):
        output.discard()
        raise click.UsageError(f"{click.format_filename(path)} is one of the traces to be read")
    return output


def _refuse_without_runs(context: click.Context) -> None:
    """Refuses options that say something about runs where none are asked for."""
    for name in ("runs_every", "runs_at_once", "pinned", "reserve"):
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --runs")


def _require_matplotlib() -> None:
    """Says what to install for `--html` before the work rather than after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        raise click.UsageError(
            "--html needs the Python package matplotlib: pip install 'potad[report]'"
        ) from None


def _replay_one(
    name: str,
    allocators: Sequence[str],
    memory: int | None,
    probe_interval: int,
    requests: RunRequests | None,
    points: int,
    quiet: bool,
) -> Report:
    shown = display_name(name)
    with bars(quiet) as shown_bars:
        trace = read_trace(name, shown_bars.reading(shown))
        summary = summarise(shown, trace)
        memory_bytes = (
            default_memory_bytes(trace.peak_bytes) if memory is None else page_rounded(memory)
        )
        try:
            results = [
                replay(
                    trace,
                    allocator,
                    memory_bytes=memory_bytes,
                    probe_interval_events=probe_interval,
                    points=points,
                    progress=shown_bars.replaying(allocator),
                )
                for allocator in allocators
            ]
            relocation = [
                replay_runs(
                    trace,
                    relocator,
                    requests,
                    memory_bytes=memory_bytes,
                    points=points,
                    progress=shown_bars.replaying(f"runs of {relocator}"),
                )
                for relocator in (POTAD, CMA)
                if requests is not None
            ]
        except ValueError as error:
            raise click.UsageError(f"{shown}: {error}") from error
    _warn(summary)
    return {
        "trace": summary,
        "memory_bytes": memory_bytes,
        "allocators": results,
        "relocation": relocation,
    }


def _warn(trace: TraceSummary) -> None:
    """Names the first malformed lines; how many there are is in the report as well."""
    lines = trace["malformed_lines"][:_MALFORMED_SHOWN]
    for number, reason in lines:
        click.echo(f"{trace['name']}:{number}: {printable(reason)}: line passed over", err=True)
    if trace["malformed"] > len(lines):
        click.echo(f"{trace['name']}: {trace['malformed']:,} malformed lines in all", err=True)
