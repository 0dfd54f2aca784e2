from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application

http = get_asgi_application()

from notifications.access import authorization, revocation, sessions  # noqa: E402  models must be loaded first
from notifications.middleware import SessionAuthMiddlewareStack  # noqa: E402
from notifications.routing import websocket_urlpatterns  # noqa: E402
from tests.testsite import held, queries  # noqa: E402

revocation.CHECK_INTERVAL = getattr(
    settings, "CHECK_INTERVAL", revocation.CHECK_INTERVAL
)  # tests cannot wait for a minute
authorization.AUTHORIZE_TIMEOUT = getattr(settings, "AUTHORIZE_TIMEOUT", authorization.AUTHORIZE_TIMEOUT)
sessions.DOUBT = getattr(settings, "SESSION_DOUBT", sessions.DOUBT)
if hasattr(settings, "AWAY"):
    held.install()
if hasattr(settings, "QUERIES"):
    queries.install()
stack = AuthMiddlewareStack if getattr(settings, "CHANNELS_OWN_STACK", False) else SessionAuthMiddlewareStack
application = ProtocolTypeRouter({"http": http, "websocket": stack(URLRouter(websocket_urlpatterns))})
if getattr(settings, "DATABASE_ROUTERS", None):
    from tests.testsite import tenancy

    application = tenancy.Middleware(application)
