"""ASGI applications as sites should not write them, or in which the doctor is not who it says."""

from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.contrib.auth.models import AnonymousUser

from tests.testsite.asgi import http, stack, websocket_urlpatterns

without_websocket = ProtocolTypeRouter({"http": http})
channels_own = ProtocolTypeRouter({"websocket": AuthMiddlewareStack(URLRouter(websocket_urlpatterns))})
without_sessions = ProtocolTypeRouter({"websocket": URLRouter(websocket_urlpatterns)})
below_no_path = ProtocolTypeRouter({"websocket": stack(URLRouter(websocket_urlpatterns[:1]))})
elsewhere = ProtocolTypeRouter({"websocket": stack(URLRouter([]))})


class OwnUsers:
    """A middleware that knows its users by something of its own."""

    def __init__(self, inner):
        self.inner = inner

    async def __call__(self, scope, receive, send):
        return await self.inner({**scope, "user": AnonymousUser()}, receive, send)


own_users = ProtocolTypeRouter({"websocket": OwnUsers(URLRouter(websocket_urlpatterns))})


async def echo(scope, receive, send):
    """Another consumer at our address."""
    while (event := await receive())["type"] != "websocket.disconnect":
        if event["type"] == "websocket.connect":
            await send({"type": "websocket.accept"})
        else:
            await send({"type": "websocket.send", "text": event["text"]})
