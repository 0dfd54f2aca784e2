"""
The outbox of the database: browsers are told what the rows say, by whoever committed, and otherwise by a listener.

A row is pending (``pending_since``) until its user's browsers have been told of it, or of its latest change. Whoever
commits tells them at once. Where that fails, because Redis is away or the process is killed, the listener in charge
does it later. Both may do it at the same time:

* A notice is published under an idempotency key made of its row, so once.
* A change may be told twice: what browsers are told is how things are, not what to add or subtract.
* A row is settled only if it is still as it was read; otherwise it stays pending, or becomes so again. So does one that
  others have settled meanwhile, if it does not say what has been told, or may have been.
* After each publishing the unread notices are counted again, and another number is published until it agrees. So the
  last message on a topic has the right number, whoever raced.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.conf import settings as django_settings
from django.db import Error as DatabaseFailure
from django.db import connections, transaction
from django.db.models import Q
from django.db.models.functions import Coalesce
from django.utils import timezone

from .. import publisher
from ..conf import settings
from ..exceptions import MessageError, PublishError, TopicError
from ..logs import LogBudget, describe
from ..messages import InboxChanged, InboxChangedPayload, Message, Notice, NoticeInbox
from ..metrics import count
from ..publisher import TOGETHER, Prepared
from ..signals import tell
from ..tenants import SEPARATOR
from ..topics import Topic
from .rows import Change, State, alive, batches, count_all_unread, count_unread, is_alive, model, table
from .signals import notice_created, notices_changed

if TYPE_CHECKING:
    from .models import KeptNotice

logger = logging.getLogger(__name__)

CORRECTIONS: Final = 10
"""Times that a number is corrected because others have changed it meanwhile; then a listener does it."""
SETTLED_AT_ONCE: Final = 100
"""Rows with a condition of their own in one query; databases limit how complex one may be."""
UPDATED_AT_ONCE: Final = 1000
"""Rows that one query changes, and has locked meanwhile."""

_log: Final = LogBudget(logger, lines=1, period=60.0)
_refusals: Final = LogBudget(logger)


class Recipient(NamedTuple):
    """Whose notices they are, and on which topic their browsers are told."""

    tenant: str
    user: Any

    @classmethod
    def of(cls, row: KeptNotice) -> Recipient:
        return cls(row.tenant, row.user_id)

    def topic(self) -> Topic:
        """Name the topic, in whichever tenant that is; raises ``TopicError``."""
        id_ = f"{self.tenant}{SEPARATOR}{self.user}" if self.tenant else str(self.user)
        return Topic.from_channel(f"{settings.PREFIX}user:{id_}".encode())


class Marked(NamedTuple):
    """
    A change of some rows of one user.

    Attributes:
        recipient: Whose rows.
        what: What has happened to them.
        ids: Which they are; None if ``until`` says it.
        until: All of the user up to this one.
        at: Their ``pending_since``; of those that were pending before, it is another time.
        rows: How many have changed.
        condition: What is true of them since.

    """

    recipient: Recipient
    what: Change
    ids: list[int] | None
    until: int | None
    at: datetime
    rows: int
    condition: Q

    @property
    def selection(self) -> Q:
        """The rows, and those that were so before."""
        which = Q(pk__lte=self.until) if self.ids is None else Q(pk__in=self.ids)
        return Q(user_id=self.recipient.user) & which


class Outcome(NamedTuple):
    """
    What became of some pending rows.

    Attributes:
        told: Rows that browsers have been told of.
        failed: Rows that Redis did not accept; they stay pending.
        refused: Rows that cannot be published at all; they are pending no longer.

    """

    told: int = 0
    failed: int = 0
    refused: int = 0


# Messages.


def aware(value: datetime) -> datetime:
    """Return a time of the database with its zone, which a site without ``USE_TZ`` leaves out."""
    # Never the zone that a request may have activated: who publishes, and when, must make no difference.
    return timezone.make_aware(value, timezone.get_default_timezone()) if timezone.is_naive(value) else value


EARLIEST: Final = datetime(1, 1, 2, tzinfo=UTC)
LATEST: Final = datetime(9999, 12, 30, tzinfo=UTC)
"""A day from the ends of the calendar, which time zones go beyond. Go's zero time is at the first of them."""


def stored(value: datetime) -> datetime:
    """Return a time as the database of this site takes it, and as each time zone can show it."""
    value = min(max(value, EARLIEST), LATEST)
    return value if django_settings.USE_TZ else timezone.make_naive(value, timezone.get_default_timezone())


def message_of(row: KeptNotice, unread: int) -> Notice:
    """Return what browsers are told of a row; raises ``MessageError``."""
    level: Any = row.level
    return Notice(
        title=row.title,
        level=level,
        body=row.body or None,
        url=row.url or None,
        timestamp=aware(row.created_at).astimezone(UTC),
        inbox=NoticeInbox(id=str(row.pk), unread=unread, group=row.group, actor=row.actor, target=row.target),
    )


def _change(unread: int, change: Change | None, ids: Iterable[int] | None = None, until: int | None = None) -> Message:
    payload = InboxChangedPayload(
        unread=unread,
        change=change,
        ids=None if ids is None else [str(each) for each in ids],
        until=None if until is None else str(until),
    )
    return InboxChanged(payload=payload)


def _once(row: KeptNotice) -> str:
    """Return the idempotency key of a row's notice. The time tells apart rows of several databases."""
    return f"inbox:{row.pk}:{round(aware(row.created_at).timestamp() * 1_000_000)}"


def _send(prepared: Iterable[tuple[Recipient, Prepared]]) -> set[Recipient]:
    """Publish messages in their order, and return those whose messages Redis did not all accept."""
    failed: set[Recipient] = set()
    answers = True
    for some in batches(iter(prepared), TOGETHER):
        if not answers:
            failed.update(recipient for recipient, _ in some)
            continue
        try:
            publisher.send_many([each for _, each in some])
        except PublishError as error:
            failed.update(some[number][0] for number in error.missing)
            answers = len(error.missing) < len(some)  # otherwise Redis is away, and does not only refuse one topic
            _log.warning("browsers have yet to be told of kept notices: %s", describe(error))
    return failed


# Rows.


@contextmanager
def _harmless() -> Iterator[None]:
    """Log a failure of the database after the commit, which must not look like one of the commit."""
    try:
        yield
    except DatabaseFailure as error:
        _log.warning("the database failed before browsers were told of kept notices: %s", describe(error, named=True))


def publish_created(ids: Sequence[int], db: str) -> None:
    """Tell of rows that this process has just committed; nothing is raised."""
    with _harmless():
        # As they are by now: the transaction that has kept them may have changed or deleted them as well.
        rows = list(table(db).filter(pk__in=ids).order_by("pk"))
        if notice_created.receivers:
            for row in rows:
                tell(notice_created, model(), notice=row, using=db)
        # What is not pending any more has been told by others, and may have changed since.
        outcome = _publish([row for row in rows if row.pending_since is not None], db, anew=False)
        count("inbox_told", "at once", outcome.told)


def publish_rows(rows: Sequence[KeptNotice], db: str) -> Outcome:
    """
    Tell of pending rows what they say by now; raises the errors of the database.

    Args:
        rows: As they were read, in the order of their ids.
        db: The alias of their database.

    """
    outcome = _publish(rows, db, anew=True)
    count("inbox_told", "later", outcome.told)
    return outcome


def publish_change(change: Marked, db: str) -> None:
    """Tell of a change that this process has just committed; nothing is raised."""
    if notices_changed.receivers:
        facts = {"user": change.recipient.user, "change": change.what, "ids": change.ids, "until": change.until}
        tell(notices_changed, model(), using=db, **facts)
    with _harmless():
        number = count_unread(change.recipient.user, db)
        message = _change(number, change.what, change.ids, change.until)
        failed = _send([(change.recipient, publisher.prepare(change.recipient.topic(), message))])
        is_told = not failed and not _correct({change.recipient: number}, db)
        if is_told:
            count("inbox_told", "at once", change.rows)
            # Of what was not published yet, browsers know nothing that could have changed: that stays pending.
            unchanged = change.selection & Q(pending_since=change.at, published_at__isnull=False)
            is_named = change.ids is not None and len(change.ids) == 1
            settled = _update(unchanged, db, at_once=is_named, pending_since=None)
            # Browsers take the message for all rows that it names, also for those that were so before.
            if change.ids is not None and settled == change.rows == len(change.ids):
                return
        _have_told_again(change.selection & ~change.condition & alive(timezone.now()), db)
        if not is_told:
            told = table(db).filter(change.selection, alive(timezone.now()), published_at__isnull=False)
            _have_number_told_again(list(told.order_by("-pk").values_list("pk", flat=True)[:1]), db)


def _publish(rows: Sequence[KeptNotice], db: str, *, anew: bool) -> Outcome:
    """
    Tell of rows, and settle them.

    Args:
        rows: In the order of their ids.
        db: The alias of their database.
        anew: It may have been tried before, and the rows may have changed since they were created.

    """
    now = timezone.now()
    told: dict[Recipient, list[KeptNotice]] = {}
    dropped: list[KeptNotice] = []
    for row in rows:
        if row.published_at is None and not is_alive(row, now):
            dropped.append(row)
        else:
            told.setdefault(Recipient.of(row), []).append(row)
    numbers = count_all_unread({each.user for each in told}, db)
    prepared: list[tuple[Recipient, Prepared]] = []
    refused: list[KeptNotice] = []
    for recipient, some in list(told.items()):
        messages, bad = _messages(recipient, some, numbers[recipient.user], anew=anew)
        prepared += [(recipient, each) for each in messages]
        refused += bad
        told[recipient] = [row for row in some if row not in bad]
        if not messages:
            del told[recipient]
    failed = _send(prepared)
    failed |= _correct({each: numbers[each.user] for each in told if each not in failed}, db)
    done = [row for recipient, some in told.items() if recipient not in failed for row in some]
    _settle(done, db, now)
    _settle([*dropped, *refused], db, None)
    if doubtful := [row for recipient in failed for row in told[recipient]]:
        _have_told_again(_changed(doubtful), db)
        _have_number_told_again([told[recipient][-1].pk for recipient in failed], db)
    return Outcome(len(done), len(rows) - len(done) - len(dropped) - len(refused), len(refused))


def _messages(
    recipient: Recipient, rows: Sequence[KeptNotice], unread: int, *, anew: bool
) -> tuple[list[Prepared], list[KeptNotice]]:
    """Prepare what one user's browsers are told of some rows, and return the rows of which that is not possible."""
    prepared: list[Prepared] = []
    refused: list[KeptNotice] = []
    for row in rows:
        try:
            topic = recipient.topic()
            if row.published_at is None:
                prepared.append(publisher.prepare(topic, message_of(row, unread), _once(row)))
        except (MessageError, TopicError) as error:  # the settings have changed, or the row was made in another way
            count("inbox_refused", type(error).__name__)
            _refusals.warning("the kept notice %s cannot be published: %s", row.pk, describe(error))
            refused.append(row)
    if rest := [row for row in rows if row not in refused and (anew or any(State.of(row)))]:
        prepared += [publisher.prepare(recipient.topic(), each) for each in _states(rest, unread, is_new=not anew)]
    return prepared, refused


def _states(rows: Sequence[KeptNotice], unread: int, *, is_new: bool) -> Iterator[Message]:
    """
    Yield what has become of some rows of one user, and the number.

    Args:
        rows: Which.
        unread: The number.
        is_new: They were committed just now, so browsers know nothing else of them than their notices. Otherwise it is
            not known what they know: also of a row that was not published, they may have read in the list that it was
            read or archived, and not been told that it is no longer.

    """
    changes: dict[Change, list[int]] = {}
    for row in rows:
        state = State.of(row)
        if state.seen and not state.read:
            changes.setdefault("seen", []).append(row.pk)
        if state.read or not is_new:
            changes.setdefault("read" if state.read else "unread", []).append(row.pk)
        if state.archived or not is_new:
            changes.setdefault("archived" if state.archived else "restored", []).append(row.pk)
    for change, ids in changes.items():
        yield _change(unread, change, ids)


def _correct(said: Mapping[Recipient, int], db: str) -> set[Recipient]:
    """Count again until the number published last is right, and return those of whom that is not known."""
    doubtful = dict(said)
    for _ in range(CORRECTIONS):
        if not doubtful:
            break
        numbers = count_all_unread({each.user for each in doubtful}, db)
        wrong = {each: numbers[each.user] for each, number in doubtful.items() if numbers[each.user] != number}
        failed = _send((each, publisher.prepare(each.topic(), _change(number, None))) for each, number in wrong.items())
        if failed:
            return set(wrong)
        doubtful = wrong
    return set(doubtful)


def _settle(rows: Sequence[KeptNotice], db: str, published_at: datetime | None) -> None:
    """
    Take note that browsers have been told what rows say, or with None that they will never be.

    A row that has changed since it was read is not settled; if it says something else than they were told, it is
    pending again.
    """
    changes: dict[str, Any] = {"pending_since": None}
    if published_at is not None:
        changes["published_at"] = Coalesce("published_at", published_at)
    for some in batches(iter(rows), SETTLED_AT_ONCE):
        since: dict[datetime | None, list[int]] = {}
        for row in some:
            since.setdefault(row.pending_since, []).append(row.pk)
        unchanged = reduce(or_, (Q(pk__in=ids, pending_since=each) for each, ids in since.items()))
        if _update(unchanged, db, at_once=len(some) == 1, **changes) == len(some) or published_at is None:
            continue
        _update(Q(pk__in=[row.pk for row in some], published_at__isnull=True), db, published_at=published_at)
        _have_told_again(_changed(some), db)


def _changed(rows: Iterable[KeptNotice]) -> Q:
    """Return what is true of those of these rows that do not say any more what they said when they were read."""
    told: dict[State, list[int]] = {}
    for row in rows:
        told.setdefault(State.of(row), []).append(row.pk)
    return reduce(or_, (Q(pk__in=ids) & ~state.condition for state, ids in told.items()))


def _have_told_again(wrong: Q, db: str) -> None:
    """
    Have rows told that say something else than browsers were told, or may have been.

    They become pending. Those that others have locked are told here instead: whoever has locked them may settle them,
    and tell only another change.
    """
    if not table(db).filter(wrong).exists():
        return
    at = timezone.now()
    _update(wrong, db, pending_since=at)
    rows = list(table(db).filter(wrong & ~Q(pending_since=at)).order_by("pk"))
    for _ in range(CORRECTIONS):
        if not rows:
            break
        told: dict[Recipient, list[KeptNotice]] = {}
        for row in rows:
            told.setdefault(Recipient.of(row), []).append(row)
        numbers = count_all_unread({each.user for each in told}, db)
        failed = _send(
            (recipient, publisher.prepare(recipient.topic(), message))
            for recipient, some in told.items()
            for message in _states(some, numbers[recipient.user], is_new=False)
        )
        if failed or _correct({each: numbers[each.user] for each in told}, db):
            break
        rows = list(table(db).filter(_changed(rows)).order_by("pk"))


def _have_number_told_again(ids: Sequence[int], db: str) -> None:
    """Have a number told that may be wrong, with one of its user's rows, even if others have settled that meanwhile."""
    if ids:
        _update(Q(pk__in=ids, pending_since__isnull=True), db, at_once=len(ids) == 1, pending_since=timezone.now())


def _update(condition: Q, db: str, *, at_once: bool = False, **changes: Any) -> int:
    """
    Change rows, and return how many.

    It waits for nobody who is changing several of them in another order: the two might wait for each other for good.
    What others have locked is left as it is, and so stays pending.

    Args:
        condition: Which rows.
        db: The alias of their database.
        at_once: It is one row, named by its id, for which there is no order. InnoDB may lock an index by which it finds
            it first, which whoever changes the row locks after it, and end one of the two: then the row stays pending.
        **changes: What they become.

    """
    features = connections[db].features
    if at_once or not features.has_select_for_update:  # such as SQLite, which locks the whole database
        return table(db).filter(condition).update(**changes)
    skip = features.has_select_for_update_skip_locked
    done = last = 0
    while True:
        with transaction.atomic(using=db):
            rows = table(db).filter(condition, pk__gt=last).order_by("pk").select_for_update(skip_locked=skip)
            ids = list(rows.values_list("pk", flat=True)[:UPDATED_AT_ONCE])
            done += table(db).filter(pk__in=ids).update(**changes) if ids else 0
        if len(ids) < UPDATED_AT_ONCE:
            return done
        last = ids[-1]
