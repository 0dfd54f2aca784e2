"""
Verifying what the site has signed: tokens, grants and control messages.

Django compares the age of a signature with a maximum, and accepts any time in the future. But clocks are set back, and
hosts differ: what was signed an hour in the future would be valid for an hour longer.
"""

from __future__ import annotations

import time
from typing import Any, Final

from django.core import signing

MAX_AHEAD: Final = 300
"""Seconds by which the clock of the signing host may be ahead."""


def load(text: str, salt: str, max_age: int) -> Any:
    """
    Verify and decode what ``signing.dumps`` returned.

    Args:
        text: The signed text.
        salt: The salt with which it was signed.
        max_age: Seconds for which it is valid; the clock of the signing host may be ahead by as much, at most
            ``MAX_AHEAD``.

    Raises:
        signing.BadSignature: It is forged, too old, or from the future.

    """
    content = signing.loads(text, salt=salt, max_age=max_age)
    if signed_at(text) - time.time() > min(max_age, MAX_AHEAD):
        raise signing.SignatureExpired("it was signed in the future")
    return content


def signed_at(text: str) -> int:
    """Return when a text was signed, in seconds since the epoch, as it says itself: ``load`` it first."""
    return signing.b62_decode(text.rsplit(":", 2)[1])
