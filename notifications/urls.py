"""The HTTP transport and monitoring: ``path("notifications/", include("notifications.urls"))``."""

from django.urls import path

from . import http
from .monitoring import views

app_name = "notifications"
urlpatterns = [
    path("stream/", http.view(), name="stream"),
    path("live/", views.live, name="live"),
    path("ready/", views.ready, name="ready"),
    path("metrics/", views.metrics, name="metrics"),
]
