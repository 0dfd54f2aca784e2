"""
Reading what the site has signed: tokens, grants and control messages.

Django compares the age of a signature with the age that it may have, and takes any time to come for young. But clocks
are set back, and hosts differ: what was signed an hour ahead of us would be good for an hour longer.
"""

from __future__ import annotations

import time
from typing import Any

from django.core import signing


def load(text: str, salt: str, max_age: int) -> Any:
    """
    Read what ``signing.dumps`` wrote.

    Args:
        text: What was signed.
        salt: As it was signed with.
        max_age: Seconds that it is good for; and by which the clock of whoever signed it may be ahead of ours.

    Raises:
        signing.BadSignature: It is forged, too old, or of a time to come.

    """
    content = signing.loads(text, salt=salt, max_age=max_age)
    signed_at = signing.b62_decode(text.rsplit(":", 2)[1])
    if signed_at - time.time() > max_age:
        raise signing.SignatureExpired("it was signed in a time to come")
    return content
