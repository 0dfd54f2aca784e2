"""Addresses of a Redis that is there: every option of an address is taken as redis-py takes it."""

import io
import json
import logging
from contextlib import suppress
from itertools import product

import pytest
from django.core.checks import run_checks
from django.core.exceptions import ImproperlyConfigured
from django.core.management import CommandError, call_command

from notifications import PublishError, publish_to_user
from notifications.history import get_store
from notifications.layers import RedisPubSubLayer
from tests.conftest import point_to
from tests.unit.test_address import (
    PLACES,
)

PARTS = ["Secret", "2024/Secret", "20#Secret", "20?Secret", "a@Secret", "/Secret", "#Secret", "?Secret=1", "%Secret"]
URLS = [place.format(part) for place, part in product(PLACES, PARTS)]


@pytest.mark.parametrize("url", [url for url in URLS if "password=Secret" not in url and "http" not in url])
def test_nothing_that_a_site_runs_shows_credentials(settings, caplog, url):
    """Checks, the doctor in both forms, what publishing raises and what is logged."""
    caplog.set_level(logging.DEBUG)
    point_to(settings, url)
    settings.CHANNEL_LAYERS = {"default": {"BACKEND": "notifications.layers.RedisPubSubLayer"}}
    said = io.StringIO()
    for message in run_checks(tags=["notifications"]):
        said.write(f"{message}\n")
    with suppress(CommandError):
        call_command("notifications_doctor", "--json", stdout=said, stderr=said)
    assert json.loads(said.getvalue()[said.getvalue().index("{\n") :])["healthy"] is False
    with suppress(ImproperlyConfigured):
        publish_to_user(1, {"action": "x"}, fail_silently=True)
    with pytest.raises((PublishError, ImproperlyConfigured)) as caught:
        publish_to_user(1, {"action": "x"})
    with suppress(ImproperlyConfigured):
        RedisPubSubLayer(hosts=[{"address": url}])
    said.write(str(caught.value) + caplog.text)

    assert "Secret" not in said.getvalue()


OPTIONS = [
    "decode_responses=True",
    "encoding=latin-1",
    "protocol=3",
    "retry_on_timeout=True",
    "socket_timeout=60",
    "socket_connect_timeout=60",
    "health_check_interval=1",
    "single_connection_client=True",
    "ssl_cert_reqs=none",
    "no_such_option=1",
]


@pytest.mark.parametrize("option", OPTIONS)
async def test_options_that_are_not_ours_are_named_and_left_out(live_redis, redis_server, settings, option):
    """What another library needs in its URL breaks nothing here, and whoever wrote it learns that it has no effect."""
    point_to(settings, f"{redis_server.url}?{option}&client_name=ours")
    settings.CHANNEL_LAYERS["default"]["BACKEND"] = "notifications.layers.RedisPubSubLayer"

    warnings = [message for message in run_checks(tags=["notifications"]) if message.id == "notifications.W007"]

    assert len(warnings) == 2
    assert all(option.partition("=")[0] in message.msg for message in warnings)
    assert "client_name" not in warnings[0].msg
    await use_everything()


async def use_everything():
    from asgiref.sync import sync_to_async

    from notifications import Topic, apublish_to_user, disconnect_user
    from notifications.broker.clients import async_client

    assert await sync_to_async(publish_to_user)(1, {"n": 1}, fail_silently=True)
    assert await apublish_to_user(1, {"n": 2}, fail_silently=True)
    await sync_to_async(disconnect_user)(1)
    [where] = await get_store().look([Topic.for_user(1)])
    assert where.last is not None
    assert await (await async_client()).ping()
    from channels.layers import get_channel_layer

    layer = get_channel_layer()
    channel = await layer.new_channel()
    await layer.send(channel, {"type": "x"})
    assert await layer.receive(channel) == {"type": "x"}
    await layer.flush()
