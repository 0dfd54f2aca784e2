"""
The demo's queue: rows of a table, which the workers take one by one.

Any number of workers may run. A row is taken by one UPDATE that draws a new claim, and every later write names that
claim: a worker that was believed dead, and is not, finds its claim gone and lets go.
"""

import uuid
from datetime import datetime, timedelta
from typing import ClassVar, Self

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

MAX_ATTEMPTS = 3
"""A job over which this many workers died is not given to a fourth."""


class ClaimLostError(Exception):
    """Another worker has taken the job, or its owner has deleted it."""

    def __str__(self) -> str:
        return "Another worker has taken it over."


class Queued(models.Model):
    """A job in the queue. The subclasses have a ``status``, and name which of its values mean that it waits or runs."""

    WAITING: ClassVar[str]
    WORKING: ClassVar[str]

    created_at = models.DateTimeField(default=timezone.now)
    claim = models.UUIDField(null=True, editable=False)
    """Drawn anew by each worker that takes the job; whoever holds an older one may no longer write."""
    claimed_until = models.DateTimeField(null=True, editable=False)
    attempts = models.PositiveSmallIntegerField(default=0, editable=False)

    class Meta:
        abstract = True

    @classmethod
    def claim_next(cls) -> Self | None:
        """Take the oldest job that nobody works on; two workers never take the same."""
        now = timezone.now()
        # A claim from the future is from before the clock was set back: no live worker would wait so long to renew it.
        ended = Q(claimed_until__lt=now) | Q(claimed_until__gt=_lease() + timedelta(seconds=settings.CLAIM_LEASE))
        free = Q(status=cls.WAITING) | (Q(status=cls.WORKING) & ended)
        waiting = cls.objects.filter(free).order_by("created_at", "name")
        for pk in waiting.values_list("pk", flat=True)[:10]:
            claim = uuid.uuid4()
            taken = cls.objects.filter(free, pk=pk).update(
                status=cls.WORKING, claim=claim, claimed_until=_lease(), attempts=F("attempts") + 1
            )
            if taken:
                return cls.objects.filter(pk=pk, claim=claim).first()
        return None

    @classmethod
    def create_claimed(cls, **fields: object) -> Self:
        """Add a job that whoever calls this does at once; a worker takes it only if they die over it."""
        return cls.objects.create(status=cls.WORKING, claim=uuid.uuid4(), claimed_until=_lease(), attempts=1, **fields)

    def release(self) -> None:
        """Give the job back, as if it had not been taken."""
        type(self).objects.filter(pk=self.pk, claim=self.claim).update(
            status=self.WAITING, claim=None, claimed_until=None, attempts=F("attempts") - 1
        )

    def write(self, **fields: object) -> None:
        """
        Write fields of a job that this worker has taken, and renew the claim.

        Raises:
            ClaimLostError: If it is no longer ours.

        """
        mine = type(self).objects.filter(pk=self.pk, claim=self.claim)
        if not mine.update(claimed_until=_lease(), **fields):
            raise ClaimLostError
        for name, value in fields.items():
            setattr(self, name, value)


def _lease() -> datetime:
    return timezone.now() + timedelta(seconds=settings.CLAIM_LEASE)
