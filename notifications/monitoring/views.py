"""The views for monitoring a web process over HTTP; ``urls.py`` has their addresses."""

from __future__ import annotations

import hmac
from importlib.util import find_spec

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

from ..aio import Timeout
from ..bridge import status
from ..broker.clients import FAILURES, SOCKET_TIMEOUT, async_client
from ..conf import settings
from ..http import for_scripts


@for_scripts
@require_safe
@never_cache
async def live(request: HttpRequest) -> HttpResponse:
    """Answer 200: this process's event loop accepts requests. Depends on nothing else."""
    return JsonResponse({"live": True})


@for_scripts
@require_safe
@never_cache
async def ready(request: HttpRequest) -> HttpResponse:
    """Answer 200 if Redis answers and a listener holds the lease, otherwise 503, within about a second."""
    try:
        async with Timeout(SOCKET_TIMEOUT):
            listeners = await status.living(await async_client())
    except FAILURES:
        state = {"redis": False, "holder": False}
    else:
        state = {"redis": True, "holder": any(report.state == "holder" for report in listeners)}
    is_ready = all(state.values())
    return JsonResponse({"ready": is_ready, **state}, status=200 if is_ready else 503)


@for_scripts
@require_safe
@never_cache
def metrics(request: HttpRequest) -> HttpResponse:
    """
    Serve prometheus-client's registry, this app's metrics included, to clients that send ``METRICS_TOKEN``.

    Answers 404 to everybody if the setting is empty or prometheus-client is not installed.
    """
    token = settings.METRICS_TOKEN
    if not token or find_spec("prometheus_client") is None:
        return HttpResponse(status=404)
    given = request.headers.get("Authorization", "")
    if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
        return HttpResponse(status=401, headers={"WWW-Authenticate": "Bearer"})
    from prometheus_client.exposition import choose_encoder

    from .prometheus import registry

    encode, content_type = choose_encoder(request.headers.get("Accept", ""))
    return HttpResponse(encode(registry()), content_type=content_type)
