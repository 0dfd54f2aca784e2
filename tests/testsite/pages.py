"""Pages that tests write themselves: the template is in the URL, the policy as well."""

import secrets
import threading
import time
from functools import partial

from django.conf import settings
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.views.decorators.csrf import csrf_protect
from django.views.static import serve

from notifications import publish_to_user
from notifications.inbox import notify
from notifications.messages import Notice

STRICT = "script-src 'nonce-{nonce}'; require-trusted-types-for 'script'"
REST = "; default-src 'none'; connect-src 'self' {connect}; base-uri 'none'; form-action 'self'"
HEAD = '<!doctype html><html lang="{lang}" dir="{dir}"><title>Page</title>'


@csrf_protect
def page(request: HttpRequest) -> HttpResponse:
    """
    Render ``?template=``, in which ``{{ keep }}`` keeps a notice for the user.

    ``?scripts=`` is the part of the policy for scripts, with ``{nonce}`` in it; ``?connect=`` one more
    host for sockets.
    """
    given = request.GET
    policy = given.get("scripts", STRICT)
    if "{nonce}" in policy:
        request.csp_nonce = secrets.token_urlsafe()
        policy = policy.format(nonce=request.csp_nonce)
    head = HEAD.format(lang=given.get("lang", "en"), dir=given.get("dir", "ltr"))
    template = engines["django"].from_string(head + "{% load notifications %}" + given["template"])
    response = HttpResponse(template.render({"keep": partial(keep, request)}, request))
    response.headers["Content-Security-Policy"] = policy + REST.format(connect=given.get("connect", ""))
    return response


def keep(request: HttpRequest) -> HttpResponse | str:
    """Keep a notice with the fields that were posted, for the user, or for another ``user``."""
    fields = request.POST.dict()
    user, group = fields.pop("user", request.user), fields.pop("group", "")
    notify(user, Notice(**{"title": "Kept", **fields}), group=group)
    return HttpResponse("ok") if request.method == "POST" else ""


def post(request: HttpRequest) -> HttpResponse:
    """
    Do what was asked, tell the user so, and send them on: POST, redirect, GET.

    ``when`` is when they are told: at once, on commit, or ``late`` seconds after the answer. ``slow`` is how many
    seconds the answer takes after that.
    """
    given = request.POST
    notice = Notice(title=given["title"], level=given.get("level", "success"))
    if given.get("when") == "late":
        threading.Timer(float(given["late"]), publish_to_user, (request.user, notice)).start()
    else:
        with transaction.atomic():
            publish_to_user(request.user, notice, on_commit=given.get("when") == "commit")
    time.sleep(float(given.get("slow") or 0))
    return redirect(given["next"])


def static(request: HttpRequest, path: str) -> HttpResponse:
    """Serve what collectstatic has collected, as a web server in front of the site does."""
    return serve(request, path, document_root=settings.STATIC_ROOT)
