"""The HTTP transport, cancelling jobs, and monitoring: ``path("notifications/", include("notifications.urls"))``."""

from django.urls import path

from . import http, views
from .monitoring import views as monitoring

app_name = "notifications"
urlpatterns = [
    path("stream/", http.view(), name="stream"),
    path("cancel/", views.cancel, name="cancel"),
    path("live/", monitoring.live, name="live"),
    path("ready/", monitoring.ready, name="ready"),
    path("metrics/", monitoring.metrics, name="metrics"),
]
