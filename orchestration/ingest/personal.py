"""Hashes or drops personal data in rows before they land: in their fields, their payload, and dead letters.

DuckDB finds it by regular expressions (RE2), and a Python function replaces each distinct find once. The text around it stays as it is, byte for byte,
so numbers and unknown keys of a payload are untouched. A token is a keyed hash (HMAC-SHA256, 128 bits) of the normalized value.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final
from urllib.parse import unquote

import duckdb
from duckdb.func import ARROW, SPECIAL

from orchestration.config.privacy_key import privacy_key
from orchestration.config.settings import Settings
from orchestration.mapping.personal import EMAIL, TOKEN, Kind, Personal, email_pattern
from orchestration.sources import clients, devices
from orchestration.sql.text import quote

#: The size of each cache.
REMEMBERED: Final = 100_000
#: An escape in JSON text. It is found first, so that the n of \n is not taken for the beginning of an address.
_ESCAPE: Final = r"\\[^u]"
#: A string, also one that is cut off, or a number.
_VALUE: Final = r'"(?:[^"\\]|\\.)*"?|-?[0-9][0-9.eE+-]*'
_KEY: Final = re.compile(r'"((?:[^"\\]|\\.)*)"\s*:\s*', re.DOTALL)


class Hasher:
    """Makes tokens with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self.token = functools.lru_cache(REMEMBERED)(self._token)
        self.replaced = functools.lru_cache(REMEMBERED)(self._replaced)

    def _token(self, kind: Kind, value: str) -> str:
        """The token of a value. A token stays as it is."""
        given = value.strip()
        if TOKEN.fullmatch(given.lower()):
            return given.lower()
        digest = hmac.new(self._key, f"{kind}:{_normalized(kind, given)}".encode(), hashlib.sha256).hexdigest()[:32]
        found = (devices.device_of(given), clients.client_class_of(given)) if kind == "user_agent" else ()
        return "_".join([kind, digest, *filter(None, found)])

    def _replaced(self, found: str, table: str, policy: str) -> str:
        """What takes the place of a find in a text: a key with its value, an address, or an escape."""
        personal = _policy(policy)
        key = _KEY.match(found)
        if key is None:
            is_address = EMAIL.fullmatch(found) is not None
            return self._of_address(found, personal) if is_address else found
        named = _unescaped(key[1])
        value = found[key.end() :]
        treated = personal.of(table, named)
        if treated is None or value in ('""', '"'):
            return found
        kind, treatment = treated
        if treatment == "drop":
            return key[0] + "null"
        text = value.removeprefix('"')
        text = _unescaped(text.removesuffix('"') if value != text else text)
        return f'{key[0]}"{self.token(kind, text)}"'

    def _of_address(self, found: str, personal: Personal) -> str:
        if personal.email == "drop":
            return "***"
        return self.token("email", _unescaped(found))

    def text(self, text: str, finds: list[str], table: str, policy: str) -> str:
        """A text without what was found in it. The value of a key that holds an object or a list is dropped."""
        # The longest first: joann@x.example contains ann@x.example.
        for found in finds if len(finds) == 1 else sorted(set(finds), key=len, reverse=True):
            if found[-1] in "[{":
                return self._nested(text, table, policy)
            text = text.replace(found, self.replaced(found, table, policy))
        return text

    def _nested(self, text: str, table: str, policy: str) -> str:
        pattern, parts, last = _compiled(policy, table), [], 0
        while (found := pattern.search(text, last)) is not None:
            parts.append(text[last : found.start()])
            if found[0][-1] in "[{" and (key := _KEY.match(found[0])):
                try:
                    _, last = json.JSONDecoder().raw_decode(text, key.end() + found.start())
                except ValueError:  # a text that is cut off
                    last = len(text)
                parts.append(key[0] + "null")
            else:
                parts.append(self.replaced(found[0], table, policy))
                last = found.end()
        return "".join([*parts, text[last:]])

    def binary(self, data: bytes, policy: str) -> bytes:
        """Bytes that are not text, with the e-mail addresses in them replaced."""
        personal, read = _policy(policy), data.decode("latin-1")
        return EMAIL.sub(lambda found: self._of_address(found[0], personal), read).encode("latin-1")


@functools.lru_cache(256)
def _policy(text: str) -> Personal:
    return Personal.model_validate_json(text)


def _unescaped(text: str) -> str:
    """The string of JSON text between quotation marks; the text itself if it is none."""
    if "\\" in text:
        with suppress(ValueError):
            return str(json.loads(f'"{text}"'))
    return text


def _normalized(kind: Kind, value: str) -> str:
    """The spelling by which equal values have equal tokens: addresses in lower case and without URL encoding, phone numbers as their digits."""
    if kind == "email":
        return unquote(value).strip().lower() if "%" in value else value.lower()
    if kind == "phone":
        digits = re.sub(r"[^0-9]", "", value)
        return digits.removeprefix("00") if digits and not value.startswith("+") else digits or value.lower()
    return value


def _pattern(personal: Personal, table: str, email: str) -> str:
    """The regular expression of what may have to be replaced in JSON text: a key with its value, or with the beginning of an object or a list (but of
    e-mail addresses, which are found in these as everywhere); an escape; an address."""

    def keys(of: Personal) -> str:
        return "|".join(f"(?:{key})" for key in of.keys(table))

    others = keys(personal.model_copy(update={"email": "keep"}))
    parts = [rf'"(?:{keys(personal)})"\s*:\s*(?:{_VALUE})'] if keys(personal) else []
    parts += [rf'"(?:{others})"\s*:\s*[\[{{]'] if others else []
    parts += [_ESCAPE, email] if personal.email != "keep" else []
    return "|".join(parts)


@functools.lru_cache(256)
def _compiled(policy: str, table: str) -> re.Pattern[str]:
    return re.compile(_pattern(_policy(policy), table, email_pattern(r"\w")), re.DOTALL)


def register(con: duckdb.DuckDBPyConnection, where: Settings | None = None) -> None:
    """Register the functions for a connection and all others to the same database. Without `where` tokens are made with a key of this moment: for
    rows that do not land. Raises FinegrainError if there is no key."""
    register_with(con, privacy_key(where) if where is not None else hashlib.sha256(id(con).to_bytes(8, "big")).digest())


def register_with(con: duckdb.DuckDBPyConnection, key: bytes) -> None:
    """The same with this key; the first key of a database stays."""
    hasher = Hasher(key)
    text, strings, binary = "VARCHAR", "VARCHAR[]", "BLOB"
    functions: dict[str, tuple[Callable[..., Any], list[Any], str]] = {
        "__personal": (partial(_without, hasher), [text, strings, text, text], text),
        "__personal_token": (
            lambda texts, kind: _each(lambda value, of: hasher.token(of, value), texts, kind),
            [text, text],
            text,
        ),
        "__personal_bytes": (lambda values, policy: _each(hasher.binary, values, policy), [binary, text], binary),
    }
    for name, (function, given, found) in functions.items():
        with suppress(duckdb.CatalogException, duckdb.NotImplementedException):  # already registered
            con.create_function(name, function, given, found, type=ARROW, null_handling=SPECIAL)


def _without(hasher: Hasher, texts: Any, finds: Any, table: Any, policy: Any) -> Any:
    """Texts in which each find is replaced."""
    import pyarrow as pa

    if not len(texts):
        return texts
    given = table[0].as_py(), policy[0].as_py()
    done = [
        hasher.text(text, found, *given) if found else text
        for text, found in zip(texts.to_pylist(), finds.to_pylist(), strict=True)
    ]
    return pa.array(done, pa.string())


def _each(function: Callable[..., Any], texts: Any, *constants: Any) -> Any:
    """The results of a function for a vector of texts, each distinct one looked at once, and vectors of constants."""
    import pyarrow as pa

    if isinstance(texts, pa.ChunkedArray):
        texts = texts.combine_chunks()
    given = [each[0].as_py() for each in constants] if len(texts) else []
    encoded = texts.dictionary_encode()
    values = [None if text is None else function(text, *given) for text in encoded.dictionary.to_pylist()]
    return pa.array(values, texts.type).take(encoded.indices)


def text(value: str, personal: Personal, table: str, *, is_json: bool) -> str:
    """SQL of a text without personal data. `is_json`: the names of its keys count, too; otherwise only e-mail addresses do."""
    email = email_pattern(r"\pL\pN_")
    pattern = _pattern(personal, table, email) if is_json else email if personal.email != "keep" else ""
    if not pattern:
        return value
    is_found = (
        f"regexp_matches({value}, {quote(pattern)})"
        if is_json
        else f"contains({value}, '@') or contains({value}, '%40')"
    )
    policy = _quoted(personal)
    finds = f"regexp_extract_all({value}, {quote(pattern)})"
    return f"case when {is_found} then __personal({value}, {finds}, {quote(table)}, {policy}) else {value} end"


def binary(value: str, personal: Personal) -> str:
    """SQL of bytes that are not text without e-mail addresses."""
    return value if personal.email == "keep" else f"__personal_bytes({value}, {_quoted(personal)})"


def _quoted(personal: Personal) -> str:
    return quote(personal.model_dump_json(exclude_defaults=True))


def whole(value: str, kind: Kind, treatment: str) -> str:
    """SQL of a value that is personal as a whole."""
    if treatment == "drop":
        return "null::varchar"
    return f"case when nullif(trim({value}), '') is null then {value} else __personal_token({value}, {quote(kind)}) end"
