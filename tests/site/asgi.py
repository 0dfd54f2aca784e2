from channels.auth import AuthMiddlewareStack
from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.asgi import get_asgi_application

http = get_asgi_application()

from notifications import access, auth  # noqa: E402  models must be loaded first
from notifications.routing import websocket_urlpatterns  # noqa: E402

access.CHECK_INTERVAL = getattr(settings, "CHECK_INTERVAL", access.CHECK_INTERVAL)  # tests cannot wait for a minute
auth.AUTHORIZE_TIMEOUT = getattr(settings, "AUTHORIZE_TIMEOUT", auth.AUTHORIZE_TIMEOUT)
application = ProtocolTypeRouter({"http": http, "websocket": AuthMiddlewareStack(URLRouter(websocket_urlpatterns))})
if getattr(settings, "DATABASE_ROUTERS", None):
    from tests.site import tenancy

    application = tenancy.Middleware(application)
