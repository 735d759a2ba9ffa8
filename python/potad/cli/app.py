"""The command group, and what each kind of failure looks like from a shell.

Exit status: 0 for success; 2 for a usage error or an input that cannot be used; 1 for any
other failure; 130 when interrupted; for `record`, that of the command it ran. Every failure
that a user can bring about is one line on standard error; a traceback is a bug.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Sequence
from types import FrameType

import click
from click.exceptions import NoArgsIsHelpError

from potad import PotadError
from potad.cli.record import record_command
from potad.cli.replay import replay_command
from potad.cli.top import top_command
from potad.printable import printable
from potad.trace.errors import RecordError, TraceError
from potad.trace.record import CommandError

_TERMINATED = 128 + signal.SIGTERM
_INTERRUPTED = 128 + signal.SIGINT


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="potad", prog_name="potad")
def app() -> None:
    """Power-of-two allocation with descriptors: real page traffic, recorded and replayed."""


app.add_command(replay_command)
app.add_command(record_command)
app.add_command(top_command)


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; the exit status. Messages go to standard error."""
    _prepare_streams()
    before = signal.getsignal(signal.SIGTERM)
    if before is not signal.SIG_IGN:
        # Without a handler SIGTERM would leave half-written files behind.
        signal.signal(signal.SIGTERM, _on_terminate)
    try:
        result = app.main(list(arguments), prog_name="potad", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        click.UsageError(printable(error.format_message()), context).show()
        return error.exit_code
    except TraceError as error:
        return _fail(error, 2)
    except CommandError as error:
        return _fail(error, error.exit_code)
    except (RecordError, PotadError) as error:
        return _fail(error, 1)
    except (KeyboardInterrupt, click.Abort):
        return _INTERRUPTED
    except BrokenPipeError:
        # Whoever read our output has seen enough. Python would complain once more when it
        # flushes standard output on the way out, so that goes nowhere now.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        name = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        return _fail(f"{name}{error.strerror or error}", 1)
    except MemoryError as error:
        return _fail(f"out of memory: {error}".removesuffix(": "), 1)
    finally:
        signal.signal(signal.SIGTERM, before)


def _prepare_streams() -> None:
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # started with it closed
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # Better a question mark than no report, where the terminal has not all characters.
            stream.reconfigure(errors="replace")


def _fail(message: object, status: int) -> int:
    click.echo(f"potad: {printable(str(message))}", err=True)
    return status


def _on_terminate(number: int, frame: FrameType | None) -> None:
    sys.exit(_TERMINATED)
