"""
The ASGI application of a site that has no other WebSockets: ``ASGI_APPLICATION = "notifications.asgi.application"``.

A site with WebSockets of its own mounts ``routing.websocket_urlpatterns`` in its own ``asgi.py``.
"""

from django.core.asgi import get_asgi_application

django_application = get_asgi_application()  # sets Django up; what follows imports models

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402

from .middleware import SessionAuthMiddlewareStack  # noqa: E402
from .routing import websocket_urlpatterns  # noqa: E402

application = ProtocolTypeRouter(
    {"http": django_application, "websocket": SessionAuthMiddlewareStack(URLRouter(websocket_urlpatterns))}
)
