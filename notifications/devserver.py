"""
A listener beside ``manage.py runserver``, so that development takes one process: ``NOTIFICATIONS["DEV_LISTENER"]``.

It is a thread of the process that serves, with an event loop of its own: it ends with that process whatever ends it,
and is restarted with it when the code changes. The command is recognized by its name, because Django's ``runserver``,
that of ``staticfiles`` and Daphne's have no other seam in common: no signal is sent without the autoreloader, and a
command of ours would take the place of one of them. A production server has another command line.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.utils.autoreload import DJANGO_AUTORELOAD_ENV

from .address import Sort
from .broker import embedded
from .conf import settings

logger = logging.getLogger(__name__)

STOP_TIMEOUT: Final = 2.0
"""Seconds that a listener may take to hand over when the server ends or is restarted."""


def accompany(argv: Sequence[str]) -> None:
    """Do what belongs to ``runserver`` if this process is one, with these arguments; called when the app is ready."""
    if list(argv[1:2]) != ["runserver"] or not django_settings.DEBUG:
        return
    if "--noreload" in argv or os.environ.get(DJANGO_AUTORELOAD_ENV) == "true":
        threading.Thread(target=_listen_when_ready, name="notifications: listener", daemon=True).start()
        return
    # The autoreloader's parent, which serves nothing: with its lock, the server outlives a restart of its child.
    with suppress(ImproperlyConfigured, embedded.StartError):
        if settings.address.sort is Sort.EMBEDDED:
            embedded.hold()


def _listen_when_ready() -> None:
    apps.ready_event.wait()
    if any(found.is_serious() and not found.is_silenced() for found in run_checks(tags=["notifications"])):
        return  # runserver says so, and restarts when it is mended
    wanted = settings.DEV_LISTENER
    if settings.address.sort is Sort.EMBEDDED if wanted is None else wanted:
        _listen()


def _listen() -> None:
    from .management.commands import run_listener  # here, because few processes need it

    run_listener.log_to_stderr_unless_configured()
    ended = threading.Event()

    async def listen() -> None:
        listener, loop = run_listener.new_listener(), asyncio.get_running_loop()

        def stop() -> None:
            with suppress(RuntimeError):  # the loop is closed: it has failed
                loop.call_soon_threadsafe(listener.stop)
            ended.wait(STOP_TIMEOUT)

        atexit.register(stop)
        await listener.run()
        ended.set()
        await loop.create_future()  # the process ends; to close the loop may take a thread, which can no longer start

    try:
        run_listener.run(listen())
    except Exception:
        logger.exception("the listener beside runserver has ended")
        ended.set()
