"""The app's views for pages: one makes a token for the user of the request, one cancels a job."""

from __future__ import annotations

from django.contrib.auth.decorators import login_not_required
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.csrf import csrf_protect
from django.views.decorators.http import require_GET, require_POST

from .access.authorization import authorized_here, has_grant_here
from .broker.clients import FAILURES
from .exceptions import PublishError, TopicError
from .jobs import cancel as cancel_job
from .tokens import make_token
from .topics import Topic


@login_not_required
@never_cache
@require_GET
def token(request: HttpRequest) -> JsonResponse:
    """
    Answer ``{"token": …}``, or 403 to an anonymous user, because a script has no use for a login page.

    It is safe as a GET without a CSRF token: it changes nothing, and browsers let no page of another origin read the
    answer, unless the site allows that by CORS with credentials. Do not allow it.
    """
    if not request.user.is_authenticated:
        return _refuse(403, "not logged in")
    return JsonResponse({"token": make_token(request.user)})


@login_not_required
@never_cache
@require_POST
@csrf_protect
def cancel(request: HttpRequest) -> HttpResponse:
    """
    Ask the job of a topic to end, for a user who may read it: 204.

    The form has a ``topic``, a ``grant`` if there is one, and Django's CSRF token. Where everybody may read a topic,
    by ``PUBLIC``, only a grant lets somebody cancel. A site whose users may see jobs that they may not cancel leaves
    this view out, and calls ``cancel`` in one of its own.

    The refusals are ``{"error": …}``: 400 for what is no topic, 403 for those who may not, and 503 if Redis, or what
    ``AUTHORIZE`` asks, did not answer.
    """
    if not request.user.is_authenticated:
        return _refuse(403, "not logged in")
    try:
        topic = Topic.parse(request.POST.get("topic", ""))
    except TopicError as error:
        return _refuse(400, str(error))
    allowed = _may_cancel(request.user, topic, request.POST.get("grant"))
    if allowed is None:
        return _refuse(503, "it is not known whether you may cancel this job")
    if not allowed:
        return _refuse(403, "you may not cancel this job")
    try:
        cancel_job(topic)
    except PublishError:
        return _refuse(503, "Redis did not answer")
    return HttpResponse(status=204)


def _may_cancel(user: object, topic: Topic, grant: str | None) -> bool | None:
    if topic == Topic.for_user(user):
        return True
    try:
        if has_grant_here(user, topic, grant):
            return True
    except FAILURES:
        return None
    return authorized_here(user, topic)  # a PUBLIC kind has no AUTHORIZE, so the answer is no


def _refuse(status: int, why: str) -> JsonResponse:
    return JsonResponse({"error": why}, status=status)
