"""The demo's pages."""

from django.contrib.auth import views as auth_views
from django.urls import include, path

from project import csp

urlpatterns = [
    path("", include("project.uploads.urls")),
    path("imports/", include("project.imports.urls")),
    path("csp-report/", csp.report, name="csp-report"),
    path("login/", auth_views.LoginView.as_view(redirect_authenticated_user=True), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("notifications/inbox/", include("notifications.inbox.urls")),  # notices for those who were away
    path("notifications/", include("notifications.urls")),  # HTTP, where no WebSocket gets through
]
