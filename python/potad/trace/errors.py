"""What goes wrong with a trace file, apart from an allocator or an argument."""


class TraceError(ValueError):
    """A trace that cannot be read; the message is one line that names the file."""


class RecordError(RuntimeError):
    """A recording that cannot be made; the message is one line that says what is needed."""
