"""Questions to Sentinels: all are asked at once, each in a thread, on a connection that is kept for the next time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Final, NamedTuple

import redis
from redis.backoff import NoBackoff

from .connecting import CLASSES

ASK_TIMEOUT: Final = 0.3
"""Seconds that Sentinels have for their answers. Those that only other Sentinels know are asked after that."""
KEEP: Final = 5.0
"""Seconds after its last use for which a connection to a Sentinel is used again: to make one with TLS takes 20 ms."""

Host = tuple[str, int]


class Primary(NamedTuple):
    """
    A server, as Sentinels name it.

    Attributes:
        host: A name or an IP address.
        port: Its port.
        failover: The number of the failover in which it became the primary, 0 if it was none or the Sentinel's account
            may not read it.

    """

    host: str
    port: int
    failover: int


class Answer(NamedTuple):
    """
    What a Sentinel says of a service.

    Attributes:
        primary: The server that it names.
        others: The other Sentinels that it knows.
        facts: Names and values of ``SENTINEL MASTER``; empty if its account may not read them.

    """

    primary: Primary
    others: list[Host]
    facts: Mapping[str, str]


class Asking:
    """How the Sentinels of one service are asked. May be used in all threads."""

    def __init__(self, name: str, scheme: str, options: Mapping[str, Any]) -> None:
        """
        Prepare it.

        Args:
            name: What the Sentinels call the service.
            scheme: How they are reached, one of ``connecting.CLASSES``.
            options: Of redis-py's connections to them, such as an account.

        """
        self._name = name
        self._class: Any = CLASSES[scheme]
        self._options = {
            **options,
            "socket_timeout": ASK_TIMEOUT,  # of a TLS handshake
            "protocol": 2,
            "retry": redis.retry.Retry(NoBackoff(), 0),
            "redis_connect_func": _log_in,
        }
        self._kept: dict[Host, tuple[Any, float]] = {}
        """Connections to Sentinels, and when each was used last. A thread that uses one takes it away."""

    def answers(
        self, sentinels: Sequence[Host], grace: float | None = None
    ) -> Iterator[tuple[Host, Answer | Exception]]:
        """
        Ask all at once, and yield what each says, or why it does not, as it comes within ``ASK_TIMEOUT``.

        Args:
            sentinels: Who is asked.
            grace: Seconds after a first answer in which others are waited for; by default as long as it takes.

        """
        answers: SimpleQueue[tuple[Host, Answer | Exception]] = SimpleQueue()
        until = time.monotonic() + ASK_TIMEOUT
        for sentinel in sentinels:
            thread = threading.Thread(
                target=lambda each: answers.put((each, self._ask_one(each))), args=(sentinel,), daemon=True
            )
            try:
                thread.start()
            except RuntimeError as error:  # the interpreter ends, or there are too many threads
                answers.put((sentinel, error))
        for _ in sentinels:
            try:
                sentinel, said = answers.get(timeout=max(0.0, until - time.monotonic()))
            except Empty:
                return
            yield sentinel, said
            if grace is not None and not isinstance(said, Exception):
                until = min(until, time.monotonic() + grace)

    def disconnect(self) -> None:
        """End the connections that are kept; a later question makes new ones."""
        for sentinel in list(self._kept):
            kept, _ = self._kept.pop(sentinel, (None, 0.0))
            if kept is not None:
                kept.disconnect()

    def _ask_one(self, sentinel: Host) -> Answer | Exception:
        kept, since = self._kept.pop(sentinel, (None, 0.0))
        if kept is not None:
            if time.monotonic() - since < KEEP and kept.pid == os.getpid():
                answer = self._ask_on(kept, sentinel)
                if not isinstance(answer, redis.ConnectionError):  # it has ended since; a new one may be let in
                    return answer
            kept.disconnect()
        host, port = sentinel
        return self._ask_on(self._class(host=host, port=port, **self._options), sentinel)

    def _ask_on(self, connection: Any, sentinel: Host) -> Answer | Exception:
        answer = None
        try:
            if not connection.connected:
                connection.deadline = time.monotonic() + ASK_TIMEOUT
                connection.connect()
            connection.limit(ASK_TIMEOUT)
            questions = [
                ("SENTINEL", words, self._name) for words in ("GET-MASTER-ADDR-BY-NAME", "MASTER", "SENTINELS")
            ]
            connection.send_packed_command([b"".join(connection.pack_commands(questions))])
            answer = _read(self._name, *[_reply(connection) for _ in questions])
        except Exception as error:  # noqa: BLE001  the caller reports it
            return error
        finally:
            if answer is None:
                connection.disconnect()
            else:
                mine = connection, time.monotonic()
                if self._kept.setdefault(sentinel, mine) is not mine:  # another thread has asked at the same time
                    connection.disconnect()
        return answer


def _read(service: str, address: Any, facts: Any, others: Any) -> Answer:
    """Read what a Sentinel has answered to the three questions."""
    if isinstance(address, Exception):
        raise address
    if not address:
        raise redis.ResponseError(f"it knows no service {service}")
    read = _pairs(facts)
    primary = Primary(address[0].decode(), int(address[1]), int(read.get("config-epoch", 0)))
    found = [] if isinstance(others, Exception) else [_pairs(other) for other in others]
    return Answer(primary, [(each["ip"], int(each["port"])) for each in found], read)


def _log_in(connection: Any) -> None:
    connection.limit(connection.deadline - time.monotonic())
    connection.on_connect()


def _reply(connection: Any) -> Any:
    """Return a reply, or the error with which the Sentinel refuses: not every account may ask everything."""
    try:
        return connection.read_response()
    except redis.ResponseError as error:
        return error


def _pairs(flat: Any) -> dict[str, str]:
    if isinstance(flat, Exception):
        return {}
    texts = [text.decode() for text in flat]
    return dict(zip(texts[::2], texts[1::2], strict=True))
