"""Text that a board sent, made safe to print: a terminal obeys escape sequences, whoever wrote them."""

from __future__ import annotations


def plain(text: str, limit: int | None = None) -> str:
    """The text with everything that is not printable (control characters, line ends, bidirectional marks, lone
    surrogates) written as a Python escape, cut to `limit` characters."""
    if limit is not None and len(text) > limit:
        text = text[:limit] + "…"
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in text)


def plain_line(text: str, limit: int | None = None) -> str:
    """As `plain`, with runs of white space as one space: output of several lines becomes one."""
    return plain(" ".join(text.split()), limit)
