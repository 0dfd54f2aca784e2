"""The route of the WebSocket: mount ``websocket_urlpatterns`` in the site's ``asgi.py``."""

from .consumers import NotificationConsumer
from .mount import patterns

websocket_urlpatterns = patterns(NotificationConsumer.as_asgi())
