"""The demo's Content-Security-Policy: the header of every page, and where browsers report what broke it."""

import json
import logging
from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.urls import reverse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST

logger = logging.getLogger(__name__)

# No inline scripts or styles, nothing from elsewhere; 'self' covers the WebSocket of the same origin as well.
# Not even our own scripts may turn text into HTML or code: that is what Trusted Types are for.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'; "
    # Not report-to: its reports come in bundles, up to a minute later, and browsers that know it ignore this one.
    "report-uri {report}"
)
MAX_REPORT_SIZE = 16 * 1024
"""Bytes of one report; a browser's has about one thousand."""


def content_security_policy(
    get_response: Callable[[HttpRequest], HttpResponseBase],
) -> Callable[[HttpRequest], HttpResponseBase]:
    policy = CONTENT_SECURITY_POLICY.format(report=reverse("csp-report"))

    def middleware(request: HttpRequest) -> HttpResponseBase:
        response = get_response(request)
        # Django's own error pages for developers are full of inline styles and scripts.
        if not (settings.DEBUG and response.status_code in (404, 500)):
            response.headers["Content-Security-Policy"] = policy
        return response

    return middleware


@csrf_exempt  # browsers send it by themselves, without our token
@require_POST
def report(request: HttpRequest) -> HttpResponse:
    """Log what a page tried that the policy forbids. Anybody may send one: what it says is only shown, and cut."""
    try:
        if int(request.headers.get("Content-Length", 0)) > MAX_REPORT_SIZE:
            return HttpResponse(status=413)
        found = json.loads(request.body)["csp-report"]
        facts = [str(found.get(key))[:200] for key in ("document-uri", "violated-directive", "blocked-uri")]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return HttpResponse(status=400)
    logger.warning("content security policy broken: page %r, directive %r, blocked %r", *facts)
    return HttpResponse(status=204)
