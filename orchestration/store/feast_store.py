"""Feast's view of the online store: Feast names `FinegrainOnlineStore` by its class path in feature_store.yaml, and reads and writes finegrain's records
through it, in its SDK and in its feature server.

Feast's own SQLite store lets an older row overwrite a newer one, and its Redis store compares in one step and writes in the next, so that writers can pass
each other (feast 0.67). Both keep a record for each single feature.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final, Literal

from feast import Entity, FeatureView
from feast.infra.online_stores.online_store import OnlineStore as FeastOnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import BoolList, DoubleList, Int64List, StringList, Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.types import Array, Bool, FeastType, Float64, Int64, String, UnixTimestamp

from orchestration.store.backends import Record, backend, layout_name
from orchestration.store.online import OnlineStore, key_text, moment

_SECOND: Final = 1_000_000
#: The field of Feast's value for a type, and its message if it is a list.
_FIELDS: Final[dict[FeastType, tuple[str, Any]]] = {
    Int64: ("int64_val", None),
    Float64: ("double_val", None),
    Bool: ("bool_val", None),
    String: ("string_val", None),
    Array(Int64): ("int64_list_val", Int64List),
    Array(Float64): ("double_list_val", DoubleList),
    Array(Bool): ("bool_list_val", BoolList),
    Array(String): ("string_list_val", StringList),
}
Row = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


class FinegrainOnlineStoreConfig(FeastConfigBaseModel):
    """What feature_store.yaml says below `online_store`. `location`: SQLite's file, or the address of Redis, whose password is in the environment."""

    type: Literal["orchestration.store.feast_store.FinegrainOnlineStore"] = (
        "orchestration.store.feast_store.FinegrainOnlineStore"
    )
    location: str


class FinegrainOnlineStore(FeastOnlineStore):
    """Reads and writes finegrain's records for Feast. A feature view is a mart, and a record holds all of its features: what writes through Feast
    gives all of them, or the others become null."""

    def __init__(self) -> None:
        self._opened: OnlineStore | None = None

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """The requested features of each key with their event time; (None, None) for an unknown key."""
        store = self._store(config)
        wanted = set(requested_features or [each.name for each in table.features])
        kinds = {each.name: each.dtype for each in table.features if each.name in wanted}
        makers: dict[str, list[tuple[int, str, Callable[[Any], Value]]]] = {}
        found: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for record in store.backend.read(table.name, [_key(each) for each in entity_keys]):
            if record is None:
                found.append((None, None))
                continue
            as_of, layout, vector = record
            if layout not in makers:
                makers[layout] = [
                    (place, name, _maker(kinds[name]))
                    for place, (name, _) in enumerate(store.layout(layout))
                    if name in kinds
                ]
            values = json.loads(vector)
            row = {name: make(values[place]) for place, name, make in makers[layout]}
            found.append((moment(as_of).replace(tzinfo=UTC), row))
        return found

    def online_write_batch(
        self, config: RepoConfig, table: FeatureView, data: list[Row], progress: Callable[[int], Any] | None
    ) -> None:
        """What Feast itself writes (`push`, `write_to_online_store`, its own `materialize`), under the same guard on the event time."""
        store = self._store(config)
        names = [each.name for each in table.features]
        text = json.dumps([(each.name, _kind(each.dtype)) for each in table.features])
        store.backend.keep_layout(layout_name(text), text)
        store.backend.write(table.name, _records(data, layout_name(text), names))
        if progress:
            progress(len(data))

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Remove the records of feature views that are no more."""
        for table in tables_to_delete:
            self._store(config).backend.drop(table.name)

    def teardown(self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]) -> None:
        """Remove the records of these feature views."""
        for table in tables:
            self._store(config).backend.drop(table.name)

    def _store(self, config: RepoConfig) -> OnlineStore:
        if self._opened is None:
            self._opened = OnlineStore(to=backend(config.online_store.location))
        return self._opened


def _key(key: EntityKey) -> str:
    return key_text({name: str(_plain(value)) for name, value in zip(key.join_keys, key.entity_values, strict=True)})


def _maker(kind: FeastType) -> Callable[[Any], Value]:
    """Makes Feast's value of a JSON value."""
    if kind == UnixTimestamp:
        return lambda value: Value() if value is None else Value(unix_timestamp_val=value // _SECOND)
    field, message = _FIELDS[kind]
    return partial(_list_value if message else _value, field, message)


def _value(field: str, _: Any, value: Any) -> Value:
    return Value() if value is None else Value(**{field: value})


def _list_value(field: str, message: Any, value: Any) -> Value:
    return Value() if value is None else Value(**{field: message(val=value)})


def _kind(kind: FeastType) -> str:
    """The DuckDB type in a layout; only that of times matters."""
    return "TIMESTAMP" if kind == UnixTimestamp else str(kind)


def _plain(value: Value) -> Any:
    """Feast's value as JSON has it."""
    field = value.WhichOneof("val")
    if field is None:
        return None
    plain = getattr(value, field)
    if field == "unix_timestamp_val":
        return plain * _SECOND
    return list(plain.val) if field.endswith("_list_val") else plain


def _records(data: Sequence[Row], layout: str, names: Sequence[str]) -> Iterator[Record]:
    for key, values, event_time, _ in data:
        aware = event_time if event_time.tzinfo else event_time.replace(tzinfo=UTC)
        vector = json.dumps([_plain(values[name]) if name in values else None for name in names])
        yield _key(key), int(aware.timestamp() * _SECOND), layout, vector
