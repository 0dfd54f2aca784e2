"""The app's only view for pages: it makes a token for the user of the request."""

from __future__ import annotations

from django.http import HttpRequest, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from .tokens import make_token


@never_cache
@require_GET
def token(request: HttpRequest) -> JsonResponse:
    """
    Answer ``{"token": …}``, or 403 to an anonymous user, because a script has no use for a login page.

    It is safe as a GET without a CSRF token: it changes nothing, and browsers let no page of another origin read the
    answer, unless the site allows that by CORS with credentials. Do not allow it.
    """
    if not request.user.is_authenticated:
        return JsonResponse({"error": "not logged in"}, status=403)
    return JsonResponse({"token": make_token(request.user)})
