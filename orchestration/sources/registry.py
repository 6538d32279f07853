"""Decodes messages with a schema registry prefix (a zero byte, then the schema id in four bytes) to JSON text.

Avro is decoded with the schema of that id; with JSON Schema, the JSON text follows the prefix. A message that cannot be decoded gets a reason
instead of a text, and is itself left unchanged.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any, Final
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from orchestration.errors import FinegrainError, keep_secrets_of
from orchestration.mapping.mapping import Stream, client_setting, from_environment
from orchestration.sources.streams import Unreachable

#: The prefix of the registry client's settings among those of the stream.
SETTINGS: Final = "schema.registry."
#: Bytes of the prefix.
PREFIX: Final = 5
_PATIENCE: Final = 10.0

Decode = Callable[[bytes], str]


class _Undecodable(Exception):
    """A message cannot be decoded; the text says why."""


class Registry:
    """The registry of a stream. Schemas are fetched once each."""

    def __init__(self, stream: Stream, where: str) -> None:
        assert stream.registry is not None
        # They take a while to import, and few streams need them.
        from confluent_kafka.schema_registry import SchemaRegistryClient
        from fastavro import read

        place = f"{where}.stream.registry"
        url = from_environment(stream.registry, place)
        keep_secrets_of(url)
        try:
            parts = urlsplit(url)
        except ValueError:
            parts = urlsplit("")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise FinegrainError(f"{place}: write an address like https://registry.example:8081")
        self.where, self.shown = place, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        given = {
            name.removeprefix(SETTINGS): client_setting(name, str(value), f"{where}.stream.settings.{name}")
            for name, value in stream.settings.items()
            if name.startswith(SETTINGS)
        }
        try:
            # No retries here: the loader retries an unavailable registry as it does a broker, with growing pauses.
            self._client = SchemaRegistryClient({"timeout": _PATIENCE, **given, "url": url, "max.retries": 0})
        except (ValueError, TypeError, OSError):
            raise FinegrainError(
                f"{place}: its settings ({SETTINGS}…) are not understood; write {SETTINGS}basic.auth.user.info as user:password, "
                f"and {SETTINGS}ssl.ca.location as a file that is there"
            ) from None
        read.LOGICAL_READERS["float-finegrain"] = _float
        read.LOGICAL_READERS["double-finegrain"] = _double
        self._decoders: dict[int, Decode] = {}

    def decode(self, messages: pa.Table, largest: int) -> pa.Table:
        """Messages with two more columns: `text`, null if there is none, and `undecoded`, the rule and the reason if a message has the prefix
        but cannot be decoded. Both are null for payloads of more than `largest` bytes. Raises Unreachable if the registry does not answer,
        and FinegrainError if a retry would not help."""
        unknown: dict[int, _Undecodable] = {}
        texts: list[str | None] = []
        whys: list[str | None] = []
        # Avro can only be decoded message by message.
        for payload in messages["payload"].to_pylist():
            text = why = None
            if payload is not None and len(payload) <= largest:
                try:
                    if payload[:1] == b"\0" and len(payload) >= PREFIX:
                        text = self._decoder(int.from_bytes(payload[1:PREFIX], "big"), unknown)(payload[PREFIX:])
                    else:
                        text = payload.decode("utf-8")
                except _Undecodable as error:
                    why = f"schema_registry: {error}"
                except UnicodeDecodeError:
                    pass
            texts.append(text)
            whys.append(why)
        return messages.append_column("text", pa.array(texts, pa.string())).append_column(
            "undecoded", pa.array(whys, pa.string())
        )

    def _decoder(self, number: int, unknown: dict[int, _Undecodable]) -> Decode:
        """The decoder of a schema. A schema that the registry does not have is requested again with the next batch."""
        if number in unknown:
            raise unknown[number]
        if number not in self._decoders:
            try:
                self._decoders[number] = self._load_schema(number)
            except _Undecodable as error:
                unknown[number] = error
                raise
        return self._decoders[number]

    def _load_schema(self, number: int) -> Decode:
        schema = self._ask(lambda: self._client.get_schema(number), f"schema {number}")
        kind = schema.schema_type or "AVRO"
        if kind == "JSON":
            return _text
        if kind != "AVRO":
            raise _Undecodable(
                f"schema {number} is {kind.capitalize()}, which is not supported (Avro and JSON Schema are)"
            )
        from fastavro import parse_schema, schemaless_reader

        named: dict[str, Any] = {}
        try:
            self._parse_references(schema, named)
            parsed = parse_schema(_marked(json.loads(schema.schema_str)), named)
        except _Undecodable:
            raise
        except (Unreachable, FinegrainError):
            raise
        except Exception as error:  # fastavro raises many types of errors
            raise _Undecodable(f"schema {number} is not an Avro schema ({_brief(error)})") from None

        def decode(data: bytes) -> str:
            rest = io.BytesIO(data)
            try:
                value = schemaless_reader(rest, parsed, None)
                text = json.dumps(value, default=_shown, ensure_ascii=False)
                text.encode("utf-8")
            except Exception as error:  # a message may contain anything
                raise _Undecodable(f"it is not Avro of schema {number} ({_brief(error)})") from None
            if rest.read(1):
                raise _Undecodable(f"it is not Avro of schema {number} (bytes are left over)")
            return text

        return decode

    def _parse_references(self, schema: Any, named: dict[str, Any]) -> None:
        """Parse the referenced schemas, whose types this one uses."""
        from fastavro import parse_schema

        for each in schema.references or []:
            asked = f"version {each.version} of {each.subject}"
            other = self._ask(lambda each=each: self._client.get_version(each.subject, each.version), asked).schema  # type: ignore[misc]
            self._parse_references(other, named)
            if each.name not in named:
                parse_schema(_marked(json.loads(other.schema_str)), named)

    def _ask(self, question: Callable[[], Any], what: str) -> Any:
        from confluent_kafka.schema_registry.error import SchemaRegistryError

        try:
            return question()
        except SchemaRegistryError as error:
            status, code = error.http_status_code, error.error_code
        except Exception as error:  # rejected, timed out, disconnected, or an invalid answer
            raise Unreachable(f"the schema registry at {self.shown} does not answer ({type(error).__name__})") from None
        if code in (40401, 40402, 40403):
            raise _Undecodable(f"the registry at {self.shown} has no {what}")
        if status in (401, 403):
            raise FinegrainError(
                f"{self.where}: {self.shown} answers {status}; are the user and the password right ({SETTINGS}basic.auth.user.info)?"
            )
        if status == 429 or status >= 500:
            raise Unreachable(f"the schema registry at {self.shown} answers {status}")
        raise FinegrainError(
            f"{self.where}: {self.shown} answers {status} to what is asked of a schema registry; is this one?"
        )


def without_registry(payload: str) -> str:
    """SQL: the rule and the reason for a message that has the prefix although the mapping names no registry; otherwise null. `payload` is
    SQL."""
    number = f"cast('0x' || hex({payload}[2:{PREFIX}]) as bigint)"
    return (
        f"case when octet_length({payload}) >= {PREFIX} and hex({payload}[1:1]) = '00' then "
        f"'schema_registry: it begins with the prefix of a schema registry (schema ' || {number} || '); set registry: in the mapping' end"
    )


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise _Undecodable("after the prefix its bytes are not UTF-8 text") from None


def _marked(schema: Any) -> Any:
    """An Avro schema in which floats and doubles are converted by `_float` and `_double`."""
    if schema in ("float", "double"):
        return {"type": schema, "logicalType": "finegrain"}
    if isinstance(schema, list):
        return [_marked(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("type") in ("float", "double"):
        return {**schema, "logicalType": "finegrain"}
    inner = {key: _marked(schema[key]) for key in ("type", "items", "values") if key in schema}
    if "fields" in schema:  # a default may be any value, even one that looks like a type
        inner["fields"] = [{**each, "type": _marked(each["type"])} for each in schema["fields"]]
    return {**schema, **inner}


def _float(value: float, *_: Any) -> float | None:
    """A four-byte float with its own digits: 12.1, not 12.100000381469727."""
    return float(str(np.float32(value))) if math.isfinite(value) else None


def _double(value: float, *_: Any) -> float | None:
    return value if math.isfinite(value) else None


def _shown(value: Any) -> str:
    """Values without a JSON type, as text: times as ISO 8601, decimals with all digits, bytes in base64."""
    match value:
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal():
            return format(value, "f")
        case bytes():
            return base64.b64encode(value).decode()
        case _:
            return str(value)


def _brief(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:120]
