"""What sites give as numbers and texts, as messages hold them. Pure."""

from __future__ import annotations

import math
from typing import Any, Final

MAX_TEXT: Final = 1000
"""Characters of a stage, a message, a unit or an error; the rest is cut off."""
LARGEST: Final = 2**1000
"""An int beyond it may be more than a float holds, and does not add to one."""


def as_number(value: Any) -> float | None:
    """Return a number of any class as an int or a float, with which floats can count on; raises as ``float`` does."""
    if value is None:
        return None
    number = int(value) if hasattr(value, "__index__") else value
    if isinstance(number, int) and -LARGEST < number < LARGEST:
        return number
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def as_amount(value: float) -> float:
    """Return what the message can hold: a whole number as an int, and nothing below 0."""
    if not math.isfinite(value):
        return 0
    value = max(0, value)
    return int(value) if value == int(value) else round(value, 2)


def as_text(value: Any) -> str | None:
    """Return a text as it is sent; whatever is no text is written as ``str`` writes it."""
    if value is None:
        return None
    text = str(value)
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
