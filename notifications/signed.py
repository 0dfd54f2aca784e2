"""
Verifying what the site has signed: tokens, grants and control messages.

Django compares the age of a signature with a maximum, and accepts any time in the future. But clocks are set back, and
hosts differ: what was signed an hour in the future would be valid for an hour longer.
"""

from __future__ import annotations

import time
from typing import Any

from django.core import signing


def load(text: str, salt: str, max_age: int) -> Any:
    """
    Verify and decode what ``signing.dumps`` returned.

    Args:
        text: The signed text.
        salt: The salt with which it was signed.
        max_age: Seconds for which it is valid, and by which the clock of the signing host may be ahead.

    Raises:
        signing.BadSignature: It is forged, too old, or from the future.

    """
    content = signing.loads(text, salt=salt, max_age=max_age)
    signed_at = signing.b62_decode(text.rsplit(":", 2)[1])
    if signed_at - time.time() > max_age:
        raise signing.SignatureExpired("it was signed in the future")
    return content
