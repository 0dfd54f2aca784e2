"""Pages that tests write themselves: the template is in the URL, the policy as well."""

import secrets

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect
from django.template import engines
from django.views.static import serve

from notifications import publish_to_user
from notifications.messages import Notice

STRICT = "script-src 'nonce-{nonce}'; require-trusted-types-for 'script'"
REST = "; default-src 'none'; connect-src 'self' {connect}; base-uri 'none'; form-action 'self'"
HEAD = '<!doctype html><html lang="{lang}" dir="{dir}"><title>Page</title>'


def page(request: HttpRequest) -> HttpResponse:
    """
    Render ``?template=``.

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
    response = HttpResponse(template.render({}, request))
    response.headers["Content-Security-Policy"] = policy + REST.format(connect=given.get("connect", ""))
    return response


def post(request: HttpRequest) -> HttpResponse:
    """Do what was asked, tell the user so, and send them on: POST, redirect, GET."""
    publish_to_user(request.user, Notice(title=request.POST["title"], level=request.POST.get("level", "success")))
    return redirect(request.POST["next"])


def static(request: HttpRequest, path: str) -> HttpResponse:
    """Serve what collectstatic has collected, as a web server in front of the site does."""
    return serve(request, path, document_root=settings.STATIC_ROOT)
