"""An ``AUTHORIZE`` that asks a service over HTTP, by the libraries that sites use: what is an outage, and what a no."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from threading import Thread

import aiohttp
import httpx
import pytest

from notifications.access.callbacks import is_outage
from tests.waiting import scaled

ANSWERS = {
    "nothing": b"",
    "half": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nabc",
    "503": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n",
    "403": b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
}


@pytest.fixture
def service(how: str) -> Iterator[str]:
    """Return the URL of a service that answers in one way: not at all, or with one of ``ANSWERS``."""
    with ExitStack() as stack:
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        if how == "refused":
            listening.shutdown(socket.SHUT_RDWR)
        elif how != "silence":
            thread = Thread(target=answer, args=(listening, ANSWERS[how]))
            thread.start()
            stack.callback(thread.join, scaled())
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"


def answer(listening: socket.socket, text: bytes) -> None:
    asking, _ = listening.accept()
    with asking:
        asking.recv(10_000)
        asking.sendall(text)


async def by_httpx(url: str, seconds: float) -> None:
    httpx.get(url, timeout=seconds).raise_for_status()  # noqa: ASYNC210  only its errors matter here


async def by_httpx_without_a_thread(url: str, seconds: float) -> None:
    async with httpx.AsyncClient(timeout=seconds) as client:
        (await client.get(url)).raise_for_status()


async def by_aiohttp(url: str, seconds: float) -> None:
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=seconds)) as session,
        session.get(url) as response,
    ):
        response.raise_for_status()
        await response.read()


@pytest.mark.parametrize("ask", [by_httpx, by_httpx_without_a_thread, by_aiohttp])
@pytest.mark.parametrize("how", ["refused", "silence", *ANSWERS])
async def test_only_a_service_that_has_refused_has_said_no(service, how, ask):
    with pytest.raises((httpx.HTTPError, aiohttp.ClientError, TimeoutError)) as caught:
        await ask(service, 0.2 if how == "silence" else scaled())

    assert is_outage(caught.value) is (how != "403")
