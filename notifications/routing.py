"""Where the WebSocket is: mount ``websocket_urlpatterns`` in the site's ``asgi.py``."""

from django.urls import path

from .consumers import NotificationConsumer

websocket_urlpatterns = [path("ws/notifications/", NotificationConsumer.as_asgi())]
