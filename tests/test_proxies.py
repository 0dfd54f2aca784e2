"""The proxies of docs/how-to in front of real web servers: what the guides say is written to a file, and run."""

import asyncio
import json
import os
import random
import re
import socket
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.guides import files_of, find_program
from tests.processes import Process, Site, User
from tests.waiting import await_for, scaled


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Nginx(Process):
    """A running nginx with the configuration of a guide."""

    port: int

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"ws://{self.address}/ws/notifications/"


@contextmanager
def nginx(directory: Path, *backends: str) -> Iterator[Nginx]:
    """Run nginx as its guide says, in front of web servers at these addresses."""
    program = find_program("nginx")
    port = free_port()
    text = files_of("nginx")["nginx.conf"]
    if len(backends) == 1:
        text = re.sub(r"\n *server 127\.0\.0\.1:8001[^\n]*", "", text)  # as the guide says
    for written, backend in zip(("127.0.0.1:8000", "127.0.0.1:8001"), backends, strict=False):
        assert text.count(written) == 1
        text = text.replace(written, backend)
    assert text.count("listen 80;") == 1
    folders = "".join(
        f"{name}_temp_path {directory};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (directory / "nginx.conf").write_text(
        f"daemon off; pid {directory}/pid; error_log stderr notice;\nevents {{}}\n"
        f"http {{ access_log off;\n{folders}{text.replace('listen 80;', f'listen 127.0.0.1:{port};')} }}\n"
    )
    process = Nginx([program, "-e", "stderr", "-c", directory / "nginx.conf", "-p", directory], env=os.environ)
    process.port = port
    try:
        process.wait_for_line("start worker process ")
        yield process
    finally:
        process.terminate()


class Visitor:
    """A tab behind a proxy that comes back whenever it is cut off, as the client does."""

    def __init__(self, proxy: Nginx, user: User) -> None:
        self.open = False
        self.got: list[int] = []
        self._proxy, self._user = proxy, user
        self._last = ""

    async def stay(self) -> None:
        wait = 0.1
        while True:
            with suppress(OSError, TimeoutError, InvalidStatus, ConnectionClosed):
                await self._visit()
                wait = 0.1
            self.open = False
            await asyncio.sleep(wait * random.random())
            wait = min(2 * wait, 1)

    async def _visit(self) -> None:
        url = self._proxy.url + (f"?since={self._last}" if self._last else "")
        options = {"origin": f"http://{self._proxy.address}", "additional_headers": {"Cookie": self._user.cookie}}
        async with connect(url, **options, open_timeout=scaled(), close_timeout=scaled(1), proxy=None) as socket_:
            async for text in socket_:
                frame = json.loads(text)
                match frame["action"]:
                    case "auth_success":
                        self._last = frame["id"]
                        self.open = True
                    case "ping":
                        await socket_.send(json.dumps({"action": "pong", "n": frame["n"]}))
                    case "step":
                        self._last = frame["_meta"]["id"]
                        self.got.append(frame["n"])


@asynccontextmanager
async def visited(visitors: list[Visitor]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(visitor.stay()) for visitor in visitors]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_nginx_carries_sockets(site, server, tmp_path: Path) -> None:
    """A page of nginx's address opens a socket through it; another page is refused."""
    user = site.add_user()
    with nginx(tmp_path, server.address) as proxy:
        cookies = {"Cookie": user.cookie}
        async with asyncio.timeout(scaled()):
            own = f"http://{proxy.address}"
            async with connect(proxy.url, origin=own, additional_headers=cookies, proxy=None) as tab:
                assert json.loads(await tab.recv())["user_id"] == str(user.pk)
            with pytest.raises(Exception, match="403"):
                await connect(proxy.url, origin="http://127.0.0.1", additional_headers=cookies, proxy=None)


async def test_all_come_back_when_the_web_servers_behind_nginx_are_restarted_one_by_one(
    new_site: Site, server_kind: str, tmp_path: Path
) -> None:
    """After each restart every tab is in again and has each message once: nginx counts no server out."""
    find_program("nginx")
    with ThreadPoolExecutor() as threads:
        listener = threads.submit(new_site.start_listener)
        servers = list(threads.map(new_site.start_server, [server_kind] * 2))
        listener.result()
    users = [new_site.add_user() for _ in range(20)]
    redis = new_site.client()
    with nginx(tmp_path, *(server.address for server in servers)) as proxy:
        visitors = [Visitor(proxy, user) for user in users]
        async with visited(visitors):
            await await_for(lambda: all(visitor.open for visitor in visitors), what="all are in")
            for step in range(4):
                server = servers[step % 2]
                await asyncio.to_thread(server.terminate, 20)
                for user in users:
                    redis.publish(user.channel, json.dumps({"action": "step", "n": step}))
                servers[step % 2] = await asyncio.to_thread(new_site.start_server, server_kind, server.port)
                await await_for(
                    lambda step=step: all(visitor.got == list(range(step + 1)) for visitor in visitors),
                    what=f"all are in again, {proxy.output}",
                )
        assert "no live upstreams" not in proxy.output


PROXY_HEADERS = {
    "daphne": ["--proxy-headers"],
    "uvicorn": ["--proxy-headers", "--forwarded-allow-ips", "127.0.0.1"],
}


async def test_a_client_behind_nginx_cannot_choose_its_address(
    new_site: Site, server_kind: str, tmp_path: Path
) -> None:
    """Whatever ``X-Forwarded-For`` a client sends, its address is its own: the limit holds, and others come in."""
    find_program("nginx")
    new_site.settings = {"NOTIFICATIONS": {"MAX_CONNECTIONS_PER_ADDRESS": 3}}
    server = new_site.start_server(server_kind, options=PROXY_HEADERS[server_kind])
    user = new_site.add_user()

    async def visit(proxy: Nginx, host: str, forged: str | None) -> str | int:
        """Open a socket and leave it open; return the action of its first frame, or its close code."""
        headers = {} if forged is None else {"X-Forwarded-For": forged}
        tab = await sockets.enter_async_context(
            connect(proxy.url, additional_headers=headers, local_addr=(host, 0), open_timeout=scaled(), proxy=None)
        )
        try:
            await tab.send(json.dumps({"type": "auth", "token": user.token}))
            async with asyncio.timeout(scaled()):
                return str(json.loads(await tab.recv())["action"])
        except ConnectionClosed as closed:
            return closed.rcvd.code if closed.rcvd else "cut off"

    forgeries = [None, "10.9.8.7", "x", "10.9.8.7, 10.9.8.8", ""]
    with nginx(tmp_path, server.address) as proxy:
        async with AsyncExitStack() as sockets:
            first = [await visit(proxy, "127.0.0.2", f"10.9.8.{number}") for number in range(3)]
            more = [await visit(proxy, "127.0.0.2", forged) for forged in forgeries]
            other = await visit(proxy, "127.0.0.3", "127.0.0.2")

    assert first == ["auth_success"] * 3
    assert more == [4102] * len(forgeries)
    assert other == "auth_success"
