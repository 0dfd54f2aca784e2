"""The queries of a server, written to a file, each as slow as the site's settings say."""

import threading
import time
from pathlib import Path

from django.conf import settings
from django.db.backends.signals import connection_created


def install():
    connection_created.connect(_watch, weak=False)


def _watch(connection, **_):
    if _take_time not in connection.execute_wrappers:
        connection.execute_wrappers.append(_take_time)


def _take_time(execute, sql, params, many, context):
    with Path(settings.QUERIES).open("a") as file:  # a short line is written whole
        file.write(f"{threading.get_ident()} {sql[:60]}\n")
    time.sleep(getattr(settings, "QUERY_SECONDS", 0))
    return execute(sql, params, many, context)
