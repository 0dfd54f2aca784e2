"""One client's end: who it is, what it subscribes to, what it says and is told. It knows no transport and no ASGI."""
