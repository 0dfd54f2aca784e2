"""The test site without ASGI: no WebSocket, and of the HTTP transport polls."""

from django.core.wsgi import get_wsgi_application

application = get_wsgi_application()
