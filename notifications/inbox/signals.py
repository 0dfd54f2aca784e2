"""
Signals of kept notices, for apps that send them by mail or to phones as well.

They are sent after the commit, in the thread that committed, and before browsers are told. Receivers may be synchronous
or asynchronous. An exception in one is logged; what it was about stays committed, and browsers are told all the same.
A process that is killed, or loses its database, just after a commit sends none: rows are the truth. The ``sender`` is
the model, ``notifications.inbox.models.KeptNotice``.
"""

from __future__ import annotations

from typing import Final

from django.dispatch import Signal

notice_created: Final = Signal()
"""
Sent for each notice that ``notify`` and ``notify_many`` have created.

The arguments are ``notice``, the row, and ``using``, the alias of its database. It is not sent where the notice of a
``key`` was there already.
"""

notices_changed: Final = Signal()
"""
Sent when ``mark`` has changed notices of a user.

The arguments are ``user``, a primary key; ``change``, such as ``"read"``; ``ids``, or None where ``until`` says that it
was all notices up to that one; and ``using``, the alias of their database.
"""
