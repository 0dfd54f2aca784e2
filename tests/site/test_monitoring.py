"""Liveness and readiness, as a supervisor or a load balancer asks for them."""

import json
import time
import urllib.error
import urllib.request

import pytest

from tests.faults import paused, redis_down
from tests.processes import Site, WebServer
from tests.waiting import scaled, wait_for


def get(server: WebServer, name: str, method: str = "GET") -> tuple[int, dict[str, bool]]:
    """Return status and content; the answer must never be kept."""
    request = urllib.request.Request(f"http://{server.address}/notifications/{name}/", method=method)
    try:
        answer = urllib.request.urlopen(request, timeout=scaled())
    except urllib.error.HTTPError as error:
        answer = error
    with answer:
        text = answer.read()
        assert method == "POST" or "no-store" in answer.headers["Cache-Control"]
        return answer.status, json.loads(text) if text else {}


@pytest.fixture
def served(new_site: Site, server_kind: str) -> tuple[Site, WebServer]:
    return new_site, new_site.start_server(server_kind)


def test_ready_while_redis_answers_and_a_listener_leads(served):
    """Not before there is a listener, then yes, and no again when it has gone."""
    site, server = served
    nobody_leads = 503, {"ready": False, "redis": True, "holder": False}
    wait_for(lambda: get(server, "ready") == nobody_leads)  # a Redis that a busy machine holds up for a second is away

    listener = site.start_listener()
    wait_for(lambda: get(server, "ready") == (200, {"ready": True, "redis": True, "holder": True}))
    assert get(server, "ready", "POST")[0] == 405

    listener.terminate()
    wait_for(lambda: get(server, "ready") == nobody_leads)


def test_alive_and_not_ready_without_redis(served):
    """A Redis that is gone or hangs makes a process not ready, soon, and leaves it alive."""
    site, server = served
    with redis_down(site.redis):
        gone = get(server, "ready")
        assert get(server, "live") == (200, {"live": True})
    with paused(site.redis.child):
        began = time.monotonic()
        hung = get(server, "ready")
        assert time.monotonic() - began < scaled(5)
        assert get(server, "live") == (200, {"live": True})

    assert gone == hung == (503, {"ready": False, "redis": False, "holder": False})


def test_a_process_that_hangs_is_not_alive(new_site):
    """A process whose loop does not turn does not answer."""
    server = new_site.start_server("uvicorn")
    request = f"http://{server.address}/notifications/live/"
    with paused(server), pytest.raises(TimeoutError):
        urllib.request.urlopen(request, timeout=0.5)


def test_the_views_work_under_wsgi_too(live_redis, client):
    """A site that serves HTTP by WSGI asks the same way."""
    assert client.get("/notifications/live/").json() == {"live": True}
    assert client.get("/notifications/ready/").json() == {"ready": False, "redis": True, "holder": False}
