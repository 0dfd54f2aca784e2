"""Addresses for monitoring: ``path("notifications/", include("notifications.urls"))``."""

from django.urls import path

from .monitoring import views

app_name = "notifications"
urlpatterns = [
    path("live/", views.live, name="live"),
    path("ready/", views.ready, name="ready"),
    path("metrics/", views.metrics, name="metrics"),
]
