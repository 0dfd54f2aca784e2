"""The app's views on a site whose middleware asks everybody to log in."""

from types import SimpleNamespace

from django.contrib.auth.middleware import LoginRequiredMiddleware
from django.test import RequestFactory

from notifications import urls, views


def test_no_view_of_the_app_is_answered_by_a_login_page():
    """Each knows itself who may ask: by a token, by an origin, or everybody."""
    middleware = LoginRequiredMiddleware(lambda request: None)
    request = RequestFactory().get("/")
    request.user = SimpleNamespace(is_authenticated=False)
    asked = {pattern.name: pattern.callback for pattern in urls.urlpatterns} | {"token": views.token}

    assert asked.keys() == {"stream", "cancel", "live", "ready", "metrics", "token"}
    assert [name for name, view in asked.items() if middleware.process_view(request, view, (), {}) is not None] == []
