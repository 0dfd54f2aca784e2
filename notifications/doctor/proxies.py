"""What to add to a proxy that stands before the site, by the name with which it answers: docs/how-to/proxies.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from .client import Head


class Fault(StrEnum):
    """What a proxy may do to a WebSocket or a stream; each is a column of the table in the guide."""

    UPGRADE = "Upgrade"
    HOST = "Host"
    SCHEME = "scheme"
    BUFFERING = "buffering"
    IDLE = "time-out"


GUIDE: Final = "docs/how-to/proxies.md"
_NEEDS: Final = {
    Fault.UPGRADE: "pass Upgrade and Connection on",
    Fault.HOST: "pass Host on unchanged",
    Fault.SCHEME: "set X-Forwarded-Proto, and set SECURE_PROXY_SSL_HEADER in Django",
    Fault.BUFFERING: "pass a response of type text/event-stream on as it comes, neither buffered nor compressed",
    Fault.IDLE: "cut nothing that is silent for less than 75 s",
}
"""What a proxy has to do, whichever it is."""
LINES: Final[Mapping[str, Mapping[Fault, str]]] = {
    "nginx": {
        Fault.UPGRADE: "proxy_http_version 1.1; proxy_set_header Upgrade $http_upgrade; "
        "proxy_set_header Connection $connection_upgrade;",
        Fault.HOST: "proxy_set_header Host $http_host;",
        Fault.SCHEME: "proxy_set_header X-Forwarded-Proto $scheme;",
        Fault.BUFFERING: "proxy_buffering off; gzip off;",
        Fault.IDLE: "proxy_read_timeout 75s; proxy_send_timeout 75s;",
    },
    "Apache": {
        Fault.UPGRADE: "upgrade=websocket",
        Fault.HOST: "ProxyPreserveHost On",
        Fault.SCHEME: 'RequestHeader set X-Forwarded-Proto "expr=%{REQUEST_SCHEME}"',
        Fault.BUFFERING: 'SetEnvIf Request_URI "/stream/$" no-gzip',
        Fault.IDLE: "ProxyTimeout 75",
    },
    "Caddy": {
        Fault.BUFFERING: "flush_interval -1",
    },
    "Cloudflare": {
        Fault.UPGRADE: "Network, WebSockets: on",
    },
}
"""What the guides of these write, for what they do not do by themselves. Others do not give their names."""
_NAMES: Final = {
    r"\b(nginx|openresty|tengine)\b": "nginx",
    r"\bapache\b": "Apache",
    r"\bcaddy\b": "Caddy",
    r"\bcloudflare\b": "Cloudflare",
}


def name_of(head: Head) -> str | None:
    """Return the proxy that answered, if it gives its name and is one that the guides know."""
    said = f"{head.get('server')} {head.get('via')}".lower()
    return next((name for pattern, name in _NAMES.items() if re.search(pattern, said)), None)


def hint(head: Head, *faults: Fault) -> str:
    """Return what to do about some faults, with the lines for the proxy that answered."""
    said = []
    name = name_of(head)
    for fault in faults:
        line = LINES.get(name or "", {}).get(fault)
        said.append(_NEEDS[fault] + (f" ({name}: {line})" if line else ""))
    return f"Let the proxy {', and '.join(said)}: {GUIDE}"
