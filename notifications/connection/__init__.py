"""The server's side of one client: identity, subscriptions, frames. It knows no ASGI."""
