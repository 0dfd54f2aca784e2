"""
Lone surrogates: halves of a character, left when JavaScript, which counts in UTF-16, cuts an emoji in two.

``JSON.stringify`` writes one as ``\\ud83d``. The JSON parsers of browsers and of Python accept it; msgspec does not.
Each becomes U+FFFD, the replacement character, as with ``TextEncoder`` and ``String.prototype.toWellFormed``. Nothing
here is called for a message that can be parsed or serialised without it.
"""

from __future__ import annotations

import re
from typing import Any, Final

_ESCAPES: Final = re.compile(
    r"\\(?:u[Dd][89ABab][0-9A-Fa-f]{2}\\u[Dd][C-Fc-f][0-9A-Fa-f]{2}|(?P<half>u[Dd][89A-Fa-f][0-9A-Fa-f]{2})|.)",
    re.DOTALL,
)
"""Each escape of a JSON text in turn, so that a ``u`` after an escaped backslash is not mistaken for one."""


def mend_text(text: str) -> str:
    """Replace each lone surrogate, and join two that are halves of one character."""
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def mend_json(text: str) -> str:
    """Replace each lone surrogate in a JSON text, escaped or not; everything else stays as it is."""
    text = mend_text(text)
    return _ESCAPES.sub(_mend_escape, text) if r"\u" in text else text


def mend_values(value: Any) -> Any:
    """Replace each lone surrogate in the strings and keys of dicts, lists and plain values."""
    if isinstance(value, str):
        return mend_text(value)
    if isinstance(value, dict):
        return {mend_values(name): mend_values(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [mend_values(each) for each in value]
    return value


def _mend_escape(match: re.Match[str]) -> str:
    return r"\ufffd" if match["half"] else match[0]
