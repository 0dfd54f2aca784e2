"""The inbox over HTTP: JSON for scripts, and a page that needs none."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final, cast, get_args

import msgspec
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect, JsonResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.cache import get_conditional_response
from django.utils.http import url_has_allowed_host_and_scheme
from django.views.decorators.cache import cache_control, never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_POST, require_safe

from . import mark as mark_notices
from . import unread as count_unread
from .listing import MAX_PAGE_SIZE, PAGE_SIZE, as_json, database, in_groups, link_of, notices_of, read_page
from .rows import MAX_UNREAD, Change

CHANGES: Final[tuple[Change, ...]] = get_args(Change)
MAX_IDS: Final = 100
"""Ids in one request to mark notices."""
MAX_ID: Final = 2**63 - 1
"""Of a ``BigAutoField``; some databases refuse to compare it with a larger number."""


class ArgumentError(ValueError):
    """An argument of a request is wrong."""


@login_not_required
@cache_control(private=True, no_cache=True)
@require_safe
def notices(request: HttpRequest) -> HttpResponse:
    """
    Answer a page of the user's notices as JSON, with an ``ETag``; ``docs/inbox.md`` describes it.

    A browser may keep it, but asks each time whether it is still so; nobody else may.
    """
    if not request.user.is_authenticated:
        return _refuse(403, "not logged in")
    try:
        unread, archived = _flag(request.GET, "unread"), _flag(request.GET, "archived")
        before = _number(request.GET, "before", MAX_ID)
        limit = _number(request.GET, "limit", MAX_PAGE_SIZE) or PAGE_SIZE
    except ArgumentError as error:
        return _refuse(400, str(error))
    # The number first: whoever is told of a later notice replaces it, and finds the notice in the list anyway.
    number = count_unread(request.user, using=database(request.user))
    page = read_page(request.user, before=before, limit=limit, unread=unread, archived=archived)
    said = {
        "notices": [as_json(notice) for notice in page.notices],
        "unread": number,
        "next": None if page.next is None else str(page.next),
    }
    body = msgspec.json.encode(said)
    etag = f'"{blake2b(body, digest_size=16).hexdigest()}"'
    response = HttpResponse(body, content_type="application/json", headers={"ETag": etag})
    return cast("HttpResponse", get_conditional_response(request, etag=etag, response=response))


@login_not_required
@never_cache
@csrf_protect
@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """Show the user's notices, on a page that works without JavaScript."""
    if not request.user.is_authenticated:
        return redirect_to_login(request.get_full_path())
    try:
        archived, before = _flag(request.GET, "archived"), _number(request.GET, "before", MAX_ID)
    except ArgumentError as error:
        return HttpResponseBadRequest(str(error), content_type="text/plain")
    number = count_unread(request.user, using=database(request.user))
    found = read_page(request.user, before=before, archived=archived)
    for notice in found.notices:
        notice.link = link_of(notice)  # type: ignore[attr-defined]  # for the template, which cannot call it
    context = {
        "entries": in_groups(found.notices),
        "unread": number,
        "many": number >= MAX_UNREAD,
        "archived": archived,
        "before": before,
        "next": found.next,
        # What has come since the page was shown stays unread.
        "until": found.notices[0].pk if found.notices and before is None and not archived else None,
        "here": request.get_full_path(),
    }
    return render(request, "notifications/inbox/list.html", context)


@login_not_required
@never_cache
@require_POST
@csrf_protect
def mark(request: HttpRequest) -> HttpResponse:
    """
    Change some of the user's notices, and answer ``{"unread": …}`` or go back to the page.

    The form has a ``change``, and either ``id``, up to 100 times, or ``until``. Ids that are not
    the user's are ignored.
    """
    wants_json = _wants_json(request)
    if not request.user.is_authenticated:
        return _refuse(403, "not logged in") if wants_json else redirect_to_login(_list_url())
    try:
        change = request.POST.get("change")
        if change not in CHANGES:
            raise ArgumentError(f"change is one of {', '.join(CHANGES)}")
        ids = [_id(text) for text in request.POST.getlist("id")]
        until = _number(request.POST, "until", MAX_ID)
        if bool(ids) == (until is not None):
            raise ArgumentError("either id or until is needed")
        if len(ids) > MAX_IDS:
            raise ArgumentError(f"at most {MAX_IDS} ids")
    except ArgumentError as error:
        if wants_json:
            return _refuse(400, str(error))
        return HttpResponseBadRequest(str(error), content_type="text/plain")
    using = database(request.user)
    mark_notices(request.user, change, ids=ids or None, until=until, using=using)
    if wants_json:
        return JsonResponse({"unread": count_unread(request.user, using=using)})
    return HttpResponseRedirect(_next(request))


@login_not_required
@never_cache
@require_POST
@csrf_protect
def open_notice(request: HttpRequest, pk: int) -> HttpResponse:
    """
    Mark a notice of the user as read, and go where it leads; without a link, back to the page.

    To another host leads a page: a policy with ``form-action 'self'`` forbids a redirect in answer to a form.
    """
    if not request.user.is_authenticated:
        return redirect_to_login(_list_url())
    notice = notices_of(request.user).filter(pk=pk).first() if 0 < pk <= MAX_ID else None
    if notice is None:
        raise Http404("no such notice")
    mark_notices(request.user, "read", ids=[notice.pk], using=database(request.user))
    link = link_of(notice)
    if link is None:
        return HttpResponseRedirect(_next(request))
    if url_has_allowed_host_and_scheme(link, {request.get_host()}):
        return HttpResponseRedirect(link)
    return render(request, "notifications/inbox/leave.html", {"link": link})


def _refuse(status: int, why: str) -> JsonResponse:
    return JsonResponse({"error": why}, status=status)


def _list_url() -> str:
    return reverse("notifications_inbox:list")


def _next(request: HttpRequest) -> str:
    """Return where the form wants to lead, if that is on this site; otherwise the list."""
    wanted = request.POST.get("next", "")
    on_site = url_has_allowed_host_and_scheme(wanted, {request.get_host()}, require_https=request.is_secure())
    return wanted if on_site else _list_url()


def _wants_json(request: HttpRequest) -> bool:
    """Whether the client prefers JSON; a browser that posts a form accepts it only as anything else."""
    return request.get_preferred_type(["text/html", "application/json"]) == "application/json"


def _flag(arguments: Mapping[str, Any], name: str) -> bool:
    value = arguments.get(name, "0")
    if value not in ("0", "1"):
        raise ArgumentError(f"{name} is 0 or 1")
    return bool(value == "1")


def _number(arguments: Mapping[str, Any], name: str, largest: int) -> int | None:
    value = arguments.get(name)
    return None if value is None else _whole(value, name, largest)


def _id(text: str) -> int:
    return _whole(text, "id", MAX_ID)


def _whole(text: str, name: str, largest: int) -> int:
    # More digits than int() takes would be a ValueError; those of other scripts are none of ours.
    if text.isascii() and text.isdigit() and len(text) <= len(str(largest)) and 1 <= int(text) <= largest:
        return int(text)
    raise ArgumentError(f"{name} is a number from 1 to {largest}")
