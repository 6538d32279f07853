"""Reads paginated resources of HTTP APIs: pages are saved to temporary files, from which DuckDB extracts the rows."""

from __future__ import annotations

import json
import logging
import random
import re
import ssl
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Self

import duckdb
import urllib3
from urllib3.exceptions import InvalidHeader, ResponseError
from urllib3.util import Retry

from orchestration.errors import FinegrainError, Unavailable, is_secret, keep_secret, keep_secrets_of
from orchestration.mapping.mapping import Http, from_environment
from orchestration.sources.bounds import shallow
from orchestration.sql.text import exact_numbers, quote

#: Attempts per page, and seconds before the first retry; each further pause is twice as long.
TRIES: Final = 6
PAUSE: float = 0.5
#: Seconds without an answer after which a page is asked for again; the longest pause that a server may ask for.
PATIENCE: float = 60.0
LONGEST_PAUSE: Final = 300.0
#: Answers after which a page is asked for again.
_PASSING: Final = frozenset({429, *range(500, 600)})
# Before it tries again, urllib3 logs the path and its parameters, and with them secrets.
logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)
#: How a number is marked while it passes for a text, and a regular expression that finds it.
_MARK: Final = r'"\\u0001\0"'
_MARKED: Final = r'"\\u0001([-+.0-9eE]+)"'
#: Objects and lists within each other that are looked into for rows and cursors.
_DEEPEST: Final = 100
#: The largest page, in bytes.
LARGEST: Final = 256 * 2**20


def place(resource: Http) -> str:
    """The identifier of a resource: its address as written in the mapping, without values from the environment."""
    return resource.url


class _Elsewhere(Exception):
    """A redirect to another server."""


class _Retry(Retry):
    """Pauses of `PAUSE`, doubled each time, or what Retry-After says; and no redirect to another server: it would get the headers, and with them
    the secrets."""

    def get_backoff_time(self) -> float:
        failed = sum(each.redirect_location is None for each in self.history)
        return PAUSE * 2 ** (failed - 1) * random.uniform(0.75, 1.25) if failed else 0.0

    def parse_retry_after(self, retry_after: str) -> float:
        try:
            return min(super().parse_retry_after(retry_after), LONGEST_PAUSE)
        except (InvalidHeader, ValueError, OverflowError):
            return 0.0

    def increment(
        self, method: str | None = None, url: str | None = None, response: Any = None, *rest: Any, **named: Any
    ) -> Self:
        elsewhere = response is not None and response.get_redirect_location()
        if elsewhere and _server(urllib.parse.urljoin(url or "", elsewhere)) != _server(url or ""):
            raise _Elsewhere
        return super().increment(method, url, response, *rest, **named)


def _server(url: str) -> tuple[str, str]:
    try:
        parts = urllib.parse.urlsplit(url)
    except ValueError:
        return "", ""
    return parts.scheme, parts.netloc


def fetch(resource: Http, since: str | None, folder: Path, where: str, most: int | None = None) -> int:
    """Save every page of a resource (or `most` of them), from `since` on where it can be asked for that, as `folder/000001.json`, …; their number.

    Raises FinegrainError in one sentence, which names the address as the mapping has it and holds no secret.
    """
    where = f"{where}.http"
    headers = _secrets(resource.headers, f"{where}.headers")
    parameters = _secrets(resource.parameters, f"{where}.parameters")
    url = from_environment(resource.url, f"{where}.url", secret=True)
    keep_secrets_of(url)
    if not url.startswith(("http://", "https://")):
        raise FinegrainError(f"{where}.url: an address begins with https:// or http://")
    server = _server(url)[1]
    if not re.fullmatch(r"([^\s@:]+|\[[0-9A-Fa-f:.]+\])(:\d{1,5})?", server) or re.search(r"[\x00- \x7f]", url):
        hint = "; a user and a password go into a header, as in headers: {Authorization: Basic ${SHOP_BASIC}}"
        raise FinegrainError(f"{where}.url: {resource.url} is no address that can be asked{hint if '@' in url else ''}")
    if since is not None and resource.since is not None:
        parameters[resource.since.parameter] = since
    count = 0
    for body in _pages(resource, url, headers, parameters, where):
        count += 1
        (folder / f"{count:06}.json").write_bytes(body)
        if count == most:
            break
    return count


def _secrets(given: dict[str, str], where: str) -> dict[str, str]:
    """Values of headers or parameters, of which no error shows what is from the environment or has the name of a secret."""
    found = {name: from_environment(value, where, secret=True) for name, value in given.items()}
    keep_secret(*(value for name, value in found.items() if is_secret(name)))
    return found


def _pages(
    resource: Http, url: str, headers: dict[str, str], parameters: dict[str, str], where: str
) -> Iterator[bytes]:
    following = resource.next
    page = following.first if following is not None and following.page else 0
    if following is not None and following.page:
        parameters = {**parameters, following.page: str(page)}
    address = _with(url, parameters)
    seen: set[str] = set()
    pool = _pool(url)
    while True:
        if address in seen:
            raise FinegrainError(
                f"{where}.next: {resource.url} leads to the same page again, after {len(seen):,} pages"
            )
        seen.add(address)
        body, links = _get(resource, pool, address, headers, where)
        try:
            try:
                answer = json.loads(body)
            except (
                RecursionError
            ):  # what lies deep is no list of rows and no cursor; the engine reads it without recursion
                answer = json.loads(shallow(body, _DEEPEST))
        except ValueError:
            raise FinegrainError(f"{where}: the answer of {resource.url} is not JSON") from None
        rows = _at(answer, resource.rows)
        if not isinstance(rows, list):
            has = f"; it has: {', '.join(list(answer)[:10])}" if isinstance(answer, dict) else ""
            raise FinegrainError(f"{where}.rows: the answer of {resource.url} has no list at {resource.rows}{has}")
        yield body
        if following is None:
            return
        if following.page:
            if not rows:
                return
            page += 1
            address = _with(url, {**parameters, following.page: str(page)})
        elif following.cursor:
            cursor = _at(answer, following.cursor)
            if cursor in (None, "", False):
                return
            if isinstance(cursor, str) and cursor.startswith(("http://", "https://")):
                address = cursor
            else:
                address = _with(url, {**parameters, str(following.parameter): str(cursor)})
        else:
            found = re.search(r'<([^>]*)>\s*;[^,]*\brel="?next"?', links)
            if not found:
                return
            address = urllib.parse.urljoin(address, found[1])
        if _server(address) != _server(url):
            raise FinegrainError(
                f"{where}.next: {resource.url} leads to another server, which must not get the headers; use an API that stays on one"
            )


def _with(url: str, parameters: dict[str, str]) -> str:
    if not parameters:
        return url
    return url + ("&" if "?" in url else "?") + urllib.parse.urlencode(parameters)


def _at(value: Any, path: str) -> Any:
    for step in path.split(".")[1:]:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _pool(url: str) -> urllib3.PoolManager:
    """Connections to a server, by way of the proxy that the environment names, if it does."""
    scheme, server = _server(url)
    proxy = None if urllib.request.proxy_bypass(server) else urllib.request.getproxies().get(scheme)
    context = ssl.create_default_context()
    if proxy is None:
        return urllib3.PoolManager(ssl_context=context)
    keep_secrets_of(proxy)
    try:
        address = urllib3.util.parse_url(proxy if "://" in proxy else f"http://{proxy}")
        headers = urllib3.make_headers(proxy_basic_auth=urllib.parse.unquote(address.auth)) if address.auth else None
        return urllib3.ProxyManager(address.url, proxy_headers=headers, ssl_context=context)
    except ValueError:
        raise FinegrainError(f"{scheme}_proxy is not a proxy's address; write it like http://proxy:3128") from None


def _get(
    resource: Http, pool: urllib3.PoolManager, address: str, headers: dict[str, str], where: str
) -> tuple[bytes, str]:
    """One page and its Link header; retried if the server is busy, fails or does not answer."""
    sent = {"Accept": "application/json", "User-Agent": "finegrain", **headers}
    retries: Retry = _Retry(total=TRIES - 1, status_forcelist=_PASSING, raise_on_status=False)
    try:
        while True:
            answer = pool.request(
                "GET", address, headers=sent, retries=retries, timeout=PATIENCE, preload_content=False
            )
            if answer.status >= 300:
                break
            try:
                body = answer.read(LARGEST + 1)
            except urllib3.exceptions.HTTPError as error:  # urllib3 itself tries again only until the body begins
                retries = (answer.retries or retries).increment("GET", address, error=error)
                retries.sleep()
                continue
            if len(body) > LARGEST:
                raise FinegrainError(
                    f"{where}: a page of {resource.url} is over {LARGEST // 2**20} MB; ask for smaller ones"
                )
            return body, ", ".join(answer.headers.getlist("Link"))
    except _Elsewhere:
        raise FinegrainError(
            f"{where}.url: {resource.url} redirects to another server; use that server's address"
        ) from None
    except ValueError:
        raise FinegrainError(
            f"{where}.url: {resource.url} is not a valid address, or a header contains a line break"
        ) from None
    except urllib3.exceptions.HTTPError as error:
        if isinstance(getattr(error, "reason", None), ResponseError):
            raise FinegrainError(f"{where}: {resource.url} redirects again and again; is the address right?") from None
        said = f"gives no whole answer ({_cause(error)})"
    else:
        said = f"answers {answer.status} ({answer.reason})"
        if answer.status in (401, 403):
            raise FinegrainError(f"{where}: {resource.url} {said}; are the headers right, and the token not outdated?")
        if answer.status not in _PASSING:
            raise FinegrainError(f"{where}: {resource.url} {said}; are address and parameters right?")
    raise Unavailable(f"{where}: {resource.url} {said}, {TRIES} times; nothing has landed, run this again later")


def _cause(error: BaseException) -> str:
    """Why there was no answer, in the words of the system: refused, timed out, broken off."""
    causes = [getattr(error, "reason", None), error.__cause__, *reversed(error.args)]
    inner = next((each for each in causes if isinstance(each, BaseException)), None)
    return _cause(inner) if inner is not None else str(error)[:80] or type(error).__name__


def take_apart(con: duckdb.DuckDBPyConnection, resource: Http, folder: Path) -> Path:
    """The rows of all saved pages as one file of JSON lines. Numbers keep all their digits: they pass the engine's reader as marked texts."""
    rows = folder / "rows.jsonl"
    path = quote(resource.rows)
    con.execute(
        "copy (select regexp_replace(unnest(from_json(json_extract(content, " + path + "), '[\"json\"]'))::varchar, "
        f"{quote(_MARKED)}, '\\1', 'g') as line "
        f"from (select {exact_numbers('content', _MARK)} as content from read_text({quote(str(folder / '*.json'))}) order by filename)) "
        f"to {quote(str(rows))} (format csv, header false, quote '', escape '', delimiter '\x01')"
    )
    return rows
