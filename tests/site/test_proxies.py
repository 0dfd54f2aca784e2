"""The proxies of docs/how-to in front of real web servers: what the guides say is written to a file, and run."""

import asyncio
import json
import random
import re
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.guides import GUIDES, ROOT, files_of, find_program, table
from tests.http_client import EventStream, post, session
from tests.processes import Site, User
from tests.proxies import PROXIES, Proxy, nginx
from tests.waiting import await_for, scaled

SERVED = [
    ("nginx", "uvicorn"),
    ("nginx", "daphne"),
    ("haproxy", "uvicorn"),
    ("caddy", "daphne"),
    ("apache2", "uvicorn"),
]
"""Which proxy stands before which web server: each of both at least once."""


class Visitor:
    """A tab behind a proxy that comes back whenever it is cut off, as the client does."""

    def __init__(self, proxy: Proxy, user: User) -> None:
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


@pytest.mark.parametrize("name", PROXIES)
async def test_a_proxy_carries_sockets(site, server, name: str, tmp_path: Path) -> None:
    """A page of the proxy's address opens a socket through it; another page is refused."""
    user = site.add_user()
    with PROXIES[name](tmp_path, server.address) as proxy:
        cookies = {"Cookie": user.cookie}
        async with asyncio.timeout(scaled()):
            own = f"http://{proxy.address}"
            async with connect(proxy.url, origin=own, additional_headers=cookies, proxy=None) as tab:
                assert json.loads(await tab.recv())["user_id"] == str(user.pk)
            with pytest.raises(Exception, match="403"):
                await connect(proxy.url, origin="http://127.0.0.1", additional_headers=cookies, proxy=None)


@pytest.mark.parametrize(("name", "server_kind"), [*SERVED, ("haproxy", "daphne"), ("apache2", "daphne")])
async def test_a_proxy_carries_streams_and_polls(
    site, shared_site, name: str, server_kind: str, tmp_path: Path
) -> None:
    """
    What is published arrives while the response goes on, also on one that could be compressed; a poll waits for it.

    A page of another address is refused.
    """
    server, user = shared_site[1][server_kind], site.add_user()
    redis = site.client()
    with PROXIES[name](tmp_path, server.address) as proxy:
        page = session(proxy, user) | {"Accept-Encoding": "gzip, br"}
        async with asyncio.timeout(scaled(20)):
            async with post(proxy, {"mode": "stream"}, headers=page) as answer:
                stream = EventStream(answer)
                await stream.expect("auth_success", user_id=str(user.pk))
                for n in range(3):
                    redis.publish(user.channel, json.dumps({"n": n}))
                    last = await stream.next()
                    assert last["n"] == n
            body = {"mode": "poll", "wait": 20, "since": last["_meta"]["id"]}
            polling = asyncio.create_task(_poll(proxy, body, page))
            done, _ = await asyncio.wait([polling], timeout=0.5)
            assert not done, "it waits"
            redis.publish(user.channel, json.dumps({"n": 3}))
            assert [frame["n"] for frame in await polling if "n" in frame] == [3]
            async with post(proxy, body, headers={"Cookie": user.cookie, "Origin": "http://127.0.0.1"}) as refused:
                assert refused.status == 403


async def _poll(proxy: Proxy, body: dict[str, object], headers: dict[str, str]) -> list[dict[str, object]]:
    async with post(proxy, body, headers=headers) as answer:
        assert answer.status == 200
        return await answer.json()


@pytest.mark.parametrize(("name", "server_kind"), SERVED)
async def test_all_come_back_when_the_web_servers_behind_a_proxy_are_restarted_one_by_one(
    new_site: Site, name: str, server_kind: str, tmp_path: Path
) -> None:
    """After each restart every tab is in again and has each message once: the proxy leaves no server out for long."""
    find_program(name)
    with ThreadPoolExecutor() as threads:
        listener = threads.submit(new_site.start_listener)
        servers = list(threads.map(new_site.start_server, [server_kind] * 2))
        listener.result()
    users = [new_site.add_user() for _ in range(20)]
    redis = new_site.client()
    with PROXIES[name](tmp_path, *(server.address for server in servers)) as proxy:
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
                    20,  # on a busy machine a server starts slowly, and whoever has tried in vain waits longer
                    f"all are in again, {proxy.output}",
                )
        assert "no live upstreams" not in proxy.output


PROXY_HEADERS = {
    "daphne": ["--proxy-headers"],
    "uvicorn": ["--proxy-headers", "--forwarded-allow-ips", "127.0.0.1"],
}


@pytest.mark.parametrize(("name", "server_kind"), [*SERVED, ("haproxy", "daphne")])
async def test_a_client_behind_a_proxy_cannot_choose_its_address(
    new_site: Site, name: str, server_kind: str, tmp_path: Path
) -> None:
    """Whatever ``X-Forwarded-For`` a client sends, its address is its own: the limit holds, and others come in."""
    find_program(name)
    new_site.settings = {"NOTIFICATIONS": {"MAX_CONNECTIONS_PER_ADDRESS": 3}}
    server = new_site.start_server(server_kind, options=PROXY_HEADERS[server_kind])
    user = new_site.add_user()

    async def visit(proxy: Proxy, host: str, forged: str | None) -> str | int:
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
    with PROXIES[name](tmp_path, server.address) as proxy:
        async with AsyncExitStack() as sockets:
            first = [await visit(proxy, "127.0.0.2", f"10.9.8.{number}") for number in range(3)]
            more = [await visit(proxy, "127.0.0.2", forged) for forged in forgeries]
            other = await visit(proxy, "127.0.0.3", "127.0.0.2")

    assert first == ["auth_success"] * 3
    assert more == [4102] * len(forgeries)
    assert other == "auth_success"


def test_nginx_serves_the_client(tmp_path: Path) -> None:
    """The client comes from the folder of static files, as a module of JavaScript; no web server is asked."""
    with nginx(tmp_path, "127.0.0.1:1") as proxy:
        with urlopen(f"http://{proxy.address}/static/notifications/client.js", timeout=scaled()) as answer:
            client = answer.read()
        assert answer.headers["Content-Type"] in ("application/javascript", "text/javascript")

    assert client == (ROOT / "notifications/static/notifications/client.js").read_bytes()


async def test_nginx_bounds_the_sockets_of_an_address(site, server, tmp_path: Path) -> None:
    """With the two lines of the guide one socket more than an address may have is answered 503, and others come in."""
    text = (GUIDES / "nginx.md").read_text()
    zone, limit = re.findall(r"`(limit_conn[^`]+;)`", text)
    location = f"    location / {{\n        {limit.replace('200', '3')}\n        proxy_pass http://mysite;\n"
    user = site.add_user()
    with nginx(tmp_path, server.address, location=location, before=zone) as proxy:
        async with AsyncExitStack() as sockets:

            async def visit(host: str) -> None:
                # With a session: the site closes a socket of nobody, and makes room for another.
                options = {"origin": f"http://{proxy.address}", "additional_headers": {"Cookie": user.cookie}}
                options |= {"local_addr": (host, 0), "open_timeout": scaled(), "proxy": None}
                await sockets.enter_async_context(connect(proxy.url, **options))

            for _ in range(3):
                await visit("127.0.0.2")
            with pytest.raises(InvalidStatus, match="503"):
                await visit("127.0.0.2")
            await visit("127.0.0.3")


def paths() -> list[tuple[str, str, bool]]:
    """Return the fields of the table in docs/how-to/path.md: what is set, what the proxy does, whether it works."""
    rows = table(GUIDES / "path.md", "paths")
    return [
        (given, proxy, said == "works")
        for given, row in rows.items()
        for proxy, said in zip(("keeps", "strips"), row, strict=True)
    ]


@pytest.mark.parametrize(("given", "proxy", "works"), paths())
async def test_a_site_below_a_path(new_site: Site, tmp_path: Path, given: str, proxy: str, works: bool) -> None:
    """Where the guide says so a page below the path opens the socket that its tag names, and elsewhere it does not."""
    find_program("nginx")
    kind = "uvicorn" if "uvicorn" in given else "daphne"
    options = re.findall(r"--root-path /app", given)
    if not options:
        namespace: dict[str, str] = {}
        exec(files_of("path")["settings.py"], namespace)
        new_site.settings = {"FORCE_SCRIPT_NAME": namespace["FORCE_SCRIPT_NAME"]}
    server = new_site.start_server(kind, options=[word for option in options for word in option.split()])
    cookie = {"Cookie": new_site.add_user().cookie}
    with nginx(tmp_path, server.address, location=files_of("path")[proxy]) as front:
        own = f"http://{front.address}"
        page = Request(f"{own}/app/page/?template=%7B%25+notifications+%25%7D", headers=cookie)
        works_as_said = False
        with suppress(HTTPError, InvalidStatus):
            html = (await asyncio.to_thread(urlopen, page, timeout=scaled())).read().decode()
            path = json.loads(html.partition('application/json">')[2].partition("</script>")[0])["url"]
            assert path == "/app/ws/notifications/"
            async with connect(f"ws://{front.address}{path}", origin=own, additional_headers=cookie, proxy=None) as tab:
                works_as_said = json.loads(await tab.recv())["action"] == "auth_success"

    assert works_as_said == works
