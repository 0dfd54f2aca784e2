"""This app, mounted as a site mounts it. Who the user is stands in the URL: no contestant asks a database."""

from typing import Any
from urllib.parse import parse_qs

import django

django.setup()

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402  models must be loaded first
from django.contrib.auth.models import User  # noqa: E402

from benchmarks.peers import collect  # noqa: E402
from notifications.routing import websocket_urlpatterns  # noqa: E402

collect.on_signal()


async def may_watch(user: User, upload_id: str) -> bool:
    return True


def with_user_of_url(app: Any) -> Any:
    async def call(scope: dict[str, Any], receive: Any, send: Any) -> None:
        number = int(parse_qs(scope["query_string"].decode())["user"][0])
        scope["user"] = User(pk=number, username=str(number))
        await app(scope, receive, send)

    return call


application = ProtocolTypeRouter({"websocket": with_user_of_url(URLRouter(websocket_urlpatterns))})
