"""Host header checks for our local HTTP servers. They prevent DNS rebinding, in which a foreign name resolves to loopback."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final
from urllib.parse import urlsplit

#: Host names of the loopback interface.
LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def host_name(authority: str) -> str | None:
    """The lower-case host of `host:port` or `host`; None if the text is neither."""
    try:
        parts = urlsplit(f"//{authority}")
        _ = parts.port  # raises ValueError if it is not a number
    except ValueError:
        return None
    if parts.netloc != authority or parts.username is not None or not parts.hostname:
        return None
    return parts.hostname.rstrip(".")


def on_loopback_only(app: Callable[..., Iterable[bytes]]) -> Callable[..., Iterable[bytes]]:
    """A WSGI app that serves `app` only to requests whose Host header names loopback."""

    def guarded(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if host_name(environ.get("HTTP_HOST", "")) in LOOPBACK:
            return app(environ, start_response)
        start_response("403 Forbidden", [("Content-Type", "text/plain; charset=utf-8")])
        return [b"finegrain: this Host header is not allowed; use localhost or 127.0.0.1\n"]

    return guarded
