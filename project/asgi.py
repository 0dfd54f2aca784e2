"""The demo's ASGI application: pages by Django, the WebSocket by ``notifications``."""

import os

from django.conf import settings
from django.contrib.staticfiles.handlers import ASGIStaticFilesHandler
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
http = get_asgi_application()  # sets Django up; what follows imports models

from channels.routing import ProtocolTypeRouter, URLRouter  # noqa: E402

from notifications.middleware import SessionAuthMiddlewareStack  # noqa: E402
from notifications.routing import websocket_urlpatterns  # noqa: E402

application = ProtocolTypeRouter(
    {
        # Daphne serves no static files by itself; in production a web server in front does.
        "http": ASGIStaticFilesHandler(http) if settings.DEBUG else http,
        # No AllowedHostsOriginValidator: the consumer checks the origin itself, by a stricter rule.
        "websocket": SessionAuthMiddlewareStack(URLRouter(websocket_urlpatterns)),
    }
)
