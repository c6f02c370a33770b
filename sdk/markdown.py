"""Text for Markdown: strings of users, boards and logs stay text."""

from __future__ import annotations

from typing import Any


class Code(str):
    """Text that is to stand as code: it is fenced instead of escaped."""


def escape(value: Any) -> str:
    """A string that Markdown takes neither for markup or HTML nor for a new cell or line."""
    if isinstance(value, Code):
        fence = "```"
        while fence in value:
            fence += "`"
        return f"{fence}\n{value}\n{fence}"
    text = str(value)
    for character in "\\`*_<|[]#":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())
