"""What a browser does with its session, without passwords and forms: ``tests/site/test_revocation.py`` posts here."""

import time
from pathlib import Path

from django.conf import settings
from django.contrib.auth import get_user_model, login, logout, update_session_auth_hash
from django.http import HttpResponse, HttpResponseRedirect
from django.urls import include, path

from notifications import views
from tests.testsite import pages


def log_in(request):
    user = get_user_model().objects.get(pk=request.POST["user"])
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return done(request)


def log_out(request):
    logout(request)
    return done(request)


def done(request):
    """Go on to the page that the form names, as Django's own views do."""
    return HttpResponseRedirect(request.POST["next"]) if "next" in request.POST else HttpResponse("ok")


def change_password(request):
    """As Django's own ``PasswordChangeView`` does: this session stays logged in, the user's others do not."""
    request.user.set_password("changed")
    request.user.save()
    update_session_auth_hash(request, request.user)
    return HttpResponse("ok")


def change_password_slowly(request, order):
    """As a view that sends a mail, before it keeps this session logged in or after that."""
    gate = Path(settings.AWAY).with_name(f"gate-{order}")
    request.user.set_password("changed")
    request.user.save()
    if order == "late":
        wait_at(gate)
    update_session_auth_hash(request, request.user)
    if order == "early":
        wait_at(gate)
    return HttpResponse("ok")


def state(request):
    """Answer what is asked for to users who are logged in; others are sent away."""
    if not request.user.is_authenticated:
        return HttpResponseRedirect("/log_in/")
    if "to" in request.GET:
        return HttpResponseRedirect(request.GET["to"])
    return HttpResponse(request.GET["answer"], content_type="application/json")


def wait_at(gate):
    while not gate.exists():
        time.sleep(0.01)


urlpatterns = [
    path("", lambda request: HttpResponse("ok")),
    path("page/", pages.page),
    path("post/", pages.post),
    path("keep/", pages.keep),
    path("token/", views.token),
    path("state/", state),
    path("static/<path:path>", pages.static),
    path("log_in/", log_in),
    path("log_out/", log_out),
    path("change_password/", change_password),
    path("change_password/<str:order>/", change_password_slowly),
    path("notifications/inbox/", include("notifications.inbox.urls")),
    path("notifications/", include("notifications.urls")),
]
