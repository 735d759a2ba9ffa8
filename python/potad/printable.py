"""Foreign text made fit to be shown.

*Foreign* is what this code did not write: names of files, kinds, owners and programs, what their
`repr` returns, fields of a trace, answers of other processes, messages of other libraries. All of
it passes through `printable` on its way to a terminal, a page or a log. What comes out has one
line and no character that is obeyed rather than shown. It may still look like markup, so it is
shown by what takes no markup.
"""

from __future__ import annotations

LENGTH_MAX = 1000


def printable(text: str, length_max: int = LENGTH_MAX) -> str:
    r"""A text with escapes for what cannot be printed, cut after `length_max` characters.

    Spelled out are control characters, line ends and separators, format characters such as those
    that change the direction of text, lone surrogates, and whatever is no character.

    >>> printable("\x1b[2J\u202egnp.exe\n"), printable("a long name", 7)
    ('\\x1b[2J\\u202egnp.exe\\n', 'a long…')
    """
    if len(text) <= length_max and text.isprintable():
        return text
    shown = "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        # One more than is shown tells that there are more.
        for character in text[: length_max + 1]
    )
    return shown if len(shown) <= length_max else f"{shown[: length_max - 1]}…"
