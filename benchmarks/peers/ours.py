"""This app, mounted as a site mounts it."""

import django

django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402  models must be loaded first
from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402
from django.contrib.auth.models import User  # noqa: E402

from benchmarks.peers import collect  # noqa: E402
from notifications.routing import websocket_urlpatterns  # noqa: E402

collect.on_signal()


async def may_watch(user: User, upload_id: str) -> bool:
    return True


application = ProtocolTypeRouter({"websocket": AuthMiddlewareStack(URLRouter(websocket_urlpatterns))})
