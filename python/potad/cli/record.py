"""`potad record`: a trace of the machine's page events while a command runs."""

from __future__ import annotations

import click

from potad.cli.outputs import OutputFile
from potad.cli.sizes import size_option
from potad.printable import printable
from potad.report import humanise
from potad.trace import compression
from potad.trace.record import DEFAULT_BUFFER_BYTES, Recording, record
from potad.trace.source import display_name

DEFAULT_OUTPUT = "potad.ftrace.xz"


@click.command(
    name="record",
    short_help="Record a trace while a command runs (root).",
    # Options after the command's name are the command's.
    context_settings={"allow_interspersed_args": False},
)
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    default=DEFAULT_OUTPUT,
    show_default=True,
    help="Where the trace goes, compressed as .xz, .gz or .zst says, else plain."
    " A file there is replaced once the recording is whole.",
)
@click.option(
    "--buffer-size",
    callback=size_option,
    default=f"{DEFAULT_BUFFER_BYTES >> 20}MiB",
    show_default=True,
    metavar="SIZE",
    help="The kernel's buffer for each CPU; take more where events are lost.",
)
@click.option("-q", "--quiet", is_flag=True, help="Say nothing unless events were lost.")
@click.argument("command", metavar="-- COMMAND...", nargs=-1, required=True, type=click.UNPROCESSED)
def record_command(output: str, buffer_size: int, quiet: bool, command: tuple[str, ...]) -> int:
    """Run COMMAND and record the page traffic of the whole machine until it ends.

    Needs root. Exits as COMMAND does. An interruption goes to COMMAND, and what was recorded
    until it ended is kept. COMMAND runs as the user that potad runs as.
    """
    if output == "-":
        raise click.UsageError("a trace goes to a file: standard output is COMMAND's")
    form = compression.form_of_name(output)
    if form is not None:
        try:
            compression.require(form)
        except compression.CompressionError as error:
            raise click.UsageError(f"{output}: {error}") from error
    with OutputFile(output) as file:
        writer = compression.Writer(form, file.write)

        def on_error(error: Exception) -> None:
            click.echo(
                f"potad: {display_name(output)}: {printable(str(error))};"
                " recording stopped, the command goes on",
                err=True,
            )

        recording = record(command, writer.write, buffer_bytes=buffer_size, on_error=on_error)
        writer.finish()
        file.commit()
    _summarise(output, recording, quiet)
    return recording.exit_code


def _summarise(output: str, recording: Recording, quiet: bool) -> None:
    lost = recording.counts.lost
    if not quiet or lost:
        click.echo(
            f"potad: {display_name(output)}:"
            f" {recording.counts.read:,} events in {humanise.duration(recording.seconds)},"
            f" {lost:,} lost" + ("; --buffer-size makes room for more" if lost else ""),
            err=True,
        )
