"""Dagster's webserver with protection against requests from other sites. Dagster has no login, and starts jobs by GET. So any web page open in a
browser could start jobs on loopback, with an image or a form, or by DNS rebinding.

`python -m orchestration.dagster.page webserver …` and `… dev …` take the arguments of `dagster-webserver` and `dagster dev`.
"""

from __future__ import annotations

import asyncio
import importlib
import ipaddress
import json
import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from graphql import GraphQLError, OperationDefinitionNode, OperationType, parse

from orchestration.config.hosts import LOOPBACK, host_name
from orchestration.config.published import published_report
from orchestration.config.settings import Environment

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

#: The variable that holds names, with commas between, by which the page may be asked for beside loopback's.
HOSTS: Final = "FINEGRAIN_DAGSTER_HOSTS"
#: Where this server has the report of the published marts.
REPORT: Final = "/finegrain/report"
#: Where a server listens that listens everywhere; nobody is called so.
_ANYWHERE: Final = frozenset({"0.0.0.0", "::", None})
#: What a browser sends to another site only after it has asked that site, which Dagster's never allows.
_TYPES: Final = frozenset({"application/json", "application/graphql"})


def base() -> str:
    """Where Dagster's pages are."""
    return (Environment.read().dagster_url or "http://127.0.0.1:3000").rstrip("/")


def names() -> frozenset[str]:
    """The `name` or `name:port` by which the page may be asked for beside loopback's: of `FINEGRAIN_DAGSTER_HOSTS`, and where links lead."""
    given = Environment.read()
    return frozenset(each for each in (*given.dagster_hosts, urlsplit(given.dagster_url or "").netloc) if each)


class Guard:
    """ASGI: lets through what names the server by one of `allowed` or by the address that was connected to, comes from no page of another
    site, and changes something by POST of JSON alone. All else is refused with a sentence."""

    def __init__(self, app: App, allowed: Iterable[str]) -> None:
        self._app = app
        self._origins = frozenset(each.lower() for each in allowed)
        self._hosts = LOOPBACK | ({host_name(each) for each in self._origins} - _ANYWHERE)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        said = self._refusal(scope)
        if said is None:
            await self._app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": said[1][:120]})
        else:
            headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"cache-control", b"no-store")]
            await send({"type": "http.response.start", "status": said[0], "headers": headers})
            await send({"type": "http.response.body", "body": f"{said[1]}\n".encode()})

    def _refusal(self, scope: Message) -> tuple[int, str] | None:
        """The status and the sentence of what is refused; None for what is let through."""
        headers: dict[str, list[str]] = {}
        for key, value in scope["headers"]:
            headers.setdefault(key.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        hosts, origins = headers.get("host", []), headers.get("origin", [])
        host = host_name(hosts[0]) if len(hosts) == 1 else None
        if host is None or not (host in self._hosts or host == _connected(scope)):
            return (
                403,
                f"finegrain: this host name is not allowed (Host); add it with --allow-host or {HOSTS}",
            )
        for origin in origins:
            if not self._is_own(origin, hosts[0]):
                return 403, "finegrain: requests from pages of other sites are refused (Origin)"
        method = scope.get("method", "GET")  # a websocket's is GET
        changes = scope["type"] == "websocket" or method not in ("GET", "HEAD")
        if (changes or _is_graphql(scope)) and set(headers.get("sec-fetch-site", [])) & {"cross-site", "same-site"}:
            return 403, "finegrain: requests from pages of other sites are refused (Sec-Fetch-Site)"
        if scope["type"] == "websocket":
            return None
        if method in ("GET", "HEAD") and _is_graphql(scope) and not _only_asks(scope["query_string"]):
            return 405, "finegrain: GET requests may not change anything; send GraphQL by POST, as application/json"
        kinds = headers.get("content-type", [])
        if method == "POST" and (len(kinds) != 1 or kinds[0].partition(";")[0].strip().lower() not in _TYPES):
            return 415, "finegrain: send it as application/json"
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Whether a page comes from here: its origin is the host that it asks, or is one that was named (a proxy may change the Host)."""
        scheme, _, authority = origin.lower().partition("://")
        port = {"http": ":80", "https": ":443"}.get(scheme)
        if port is None or host_name(authority) is None:
            return False
        authority = authority.removesuffix(port)
        return authority == host.lower().removesuffix(port) or authority in self._origins


class Report:
    """ASGI: serves the report of the published marts at `/finegrain/report`. The page runs nothing, and is shut off from Dagster's pages."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not str(scope["path"]).rstrip("/").endswith(REPORT):
            await self._app(scope, receive, send)
            return
        is_read = scope["method"] in ("GET", "HEAD")
        text = await asyncio.to_thread(_report) if is_read else None
        status = 200 if text is not None else 404 if is_read else 405
        headers = [
            (b"content-type", b"text/html; charset=utf-8" if text is not None else b"text/plain; charset=utf-8"),
            (b"content-security-policy", b"sandbox; frame-ancestors 'self'"),
            (b"x-content-type-options", b"nosniff"),
            (b"cache-control", b"no-store"),
        ]
        said = b"finegrain: no report is published; run `finegrain publish`\n" if is_read else b"finegrain: only GET\n"
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": said if text is None else text})


def _report() -> bytes | None:
    try:
        path = published_report()
        return path.read_bytes() if path else None
    except OSError:  # another version was published in between
        return None


def _connected(scope: Message) -> str | None:
    """The address of this machine that was connected to: no name that somebody else may point here. None where it is none."""
    try:
        address = str(scope["server"][0])
        return address if ipaddress.ip_address(address) else None
    except (KeyError, TypeError, ValueError):
        return None


def _is_graphql(scope: Message) -> bool:
    return str(scope["path"]).rstrip("/").lower().endswith("/graphql")


def _only_asks(query_string: bytes) -> bool:
    """Whether each GraphQL document in a query string is known to change nothing; one that cannot be read is not."""
    for text in parse_qs(query_string.decode("latin-1"), keep_blank_values=True).get("query", []):
        try:
            found = parse(text)
        except (GraphQLError, RecursionError):
            return False
        operations = [each.operation for each in found.definitions if isinstance(each, OperationDefinitionNode)]
        if any(each is not OperationType.QUERY for each in operations):
            return False
    return True


def _unframed(send: Send) -> Send:
    """No page of another site may lay its own over this one, to have its buttons clicked."""

    async def sends(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", []), (b"x-frame-options", b"SAMEORIGIN")]
        await send(message)

    return sends


def _webserver() -> None:
    from dagster_webserver.cli import cli
    from dagster_webserver.webserver import DagsterWebserver
    from starlette.middleware import Middleware

    plain = DagsterWebserver.build_middleware
    allowed = names()

    def guarded(self: Any) -> list[Middleware]:
        return [Middleware(Guard, allowed=allowed), Middleware(Report), *plain(self)]

    DagsterWebserver.build_middleware = guarded  # type: ignore[method-assign]
    cli(auto_envvar_prefix="DAGSTER_WEBSERVER")


def _dev() -> None:
    cli: Any = importlib.import_module("dagster._cli")
    dev: Any = importlib.import_module("dagster._cli.dev")
    plain = dev.open_ipc_subprocess

    def guarded(parts: list[str], **options: Any) -> Any:
        match parts:
            case [python, "-m", "dagster_webserver", *rest]:
                return plain([python, "-P", "-m", "orchestration.dagster.page", "webserver", *rest], **options)
            case [_, "-m", "dagster._daemon", *_]:
                return plain(parts, **options)
        raise RuntimeError(f"dagster dev starts what finegrain does not know: {json.dumps(parts[:4])}")

    dev.open_ipc_subprocess = guarded
    cli.main()


if __name__ == "__main__":
    part = sys.argv.pop(1)
    if part == "dev":
        sys.argv.insert(1, "dev")
        _dev()
    else:
        _webserver()
