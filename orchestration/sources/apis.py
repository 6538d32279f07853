"""Reads paginated resources of HTTP APIs: pages are saved to temporary files, from which DuckDB extracts the rows."""

from __future__ import annotations

import email.utils
import http.client
import json
import random
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import duckdb

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


class _SameHost(urllib.request.HTTPRedirectHandler):
    """Follow no redirect to another server: it would get the headers, and with them the secrets."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Any:
        if _server(newurl) != _server(req.full_url):
            raise _Elsewhere
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Elsewhere(Exception):
    """A redirect to another server."""


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
    while True:
        if address in seen:
            raise FinegrainError(
                f"{where}.next: {resource.url} leads to the same page again, after {len(seen):,} pages"
            )
        seen.add(address)
        body, links = _get(resource, address, headers, where)
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


def _get(resource: Http, address: str, headers: dict[str, str], where: str) -> tuple[bytes, str]:
    """One page and its Link header; retried if the server is busy, fails or does not answer."""
    opener = urllib.request.build_opener(_SameHost)
    sent = {"Accept": "application/json", "User-Agent": "finegrain", **headers}
    for tried in range(1, TRIES + 1):
        pause = PAUSE * 2 ** (tried - 1) * random.uniform(0.75, 1.25)
        try:
            request = urllib.request.Request(address, headers=sent)
            with opener.open(request, timeout=PATIENCE) as answer:
                body = answer.read(LARGEST + 1)
                if len(body) > LARGEST:
                    raise FinegrainError(
                        f"{where}: a page of {resource.url} is over {LARGEST // 2**20} MB; ask for smaller ones"
                    )
                expected = answer.headers.get("Content-Length")
                if expected is not None and len(body) < int(expected):
                    raise http.client.IncompleteRead(body)
                return body, ", ".join(answer.headers.get_all("Link") or [])
        except urllib.error.HTTPError as error:
            said = f"answers {error.code} ({error.reason})"
            if error.code in (401, 403):
                raise FinegrainError(
                    f"{where}: {resource.url} {said}; are the headers right, and the token not outdated?"
                ) from None
            if error.code != 429 and error.code < 500:
                raise FinegrainError(f"{where}: {resource.url} {said}; are address and parameters right?") from None
            pause = max(pause, _asked(error.headers.get("Retry-After")))
        except _Elsewhere:
            raise FinegrainError(
                f"{where}.url: {resource.url} redirects to another server; use that server's address"
            ) from None
        except (OSError, http.client.HTTPException) as error:  # refused, silent, broken off
            reason = getattr(error, "reason", error)
            said = f"gives no whole answer ({type(reason).__name__ if not str(reason) else str(reason)[:80]})"
        except ValueError:
            raise FinegrainError(
                f"{where}.url: {resource.url} is not a valid address, or a header contains a line break"
            ) from None
        if tried < TRIES:
            time.sleep(min(pause, LONGEST_PAUSE))
    raise Unavailable(f"{where}: {resource.url} {said}, {TRIES} times; nothing has landed, run this again later")


def _asked(retry_after: str | None) -> float:
    """The seconds to wait by a Retry-After header, which has a number or a date."""
    if retry_after is None:
        return 0.0
    if retry_after.strip().isdigit():
        return float(retry_after)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time())
    except ValueError:
        return 0.0


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
