"""The inbox's list and its changes: ``path("notifications/inbox/", include("notifications.inbox.urls"))``."""

from django.urls import path

from . import views

app_name = "notifications_inbox"
urlpatterns = [
    path("", views.page, name="list"),
    path("notices/", views.notices, name="notices"),
    path("mark/", views.mark, name="mark"),
    path("<int:pk>/open/", views.open_notice, name="open"),
]
