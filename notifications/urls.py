"""Addresses for monitoring: ``path("notifications/", include("notifications.urls"))``."""

from django.urls import path

from . import monitoring

app_name = "notifications"
urlpatterns = [
    path("live/", monitoring.live, name="live"),
    path("ready/", monitoring.ready, name="ready"),
    path("metrics/", monitoring.metrics, name="metrics"),
]
