"""The raw contracts: which tables the lake holds and which fields each row of them carries, as models/staging/_sources.yml declares them.

A contract field is stored as the text that the source delivered. The models cast and validate it, so a strange value is
quarantined with a reason instead of failing a load.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from orchestration.config.project import PACKAGE
from orchestration.config.yaml_file import FAST
from orchestration.sql.text import identifier

#: Columns that every raw row carries before its contract fields: name to DuckDB type.
#: Times are UTC. `_error` says why a row could not be read at all; such a row has no fields, only its payload.
META_COLUMNS: Final[dict[str, str]] = {
    "_source": "VARCHAR",
    "_position": "VARCHAR",
    "_origin": "VARCHAR",
    "_time_zone": "VARCHAR",
    "_expects": "VARCHAR",
    "_error": "VARCHAR",
    "_ingested_at": "TIMESTAMP",
    "available_at": "TIMESTAMP",
}


def declared_columns(project: Path = PACKAGE) -> dict[str, dict[str, dict[str, Any]]]:
    """What models/staging/_sources.yml declares of each column of the raw tables, by table and name. Nothing where there is no such file:
    `settings()` says what is wrong with the project's folder."""
    path = project / "models" / "staging" / "_sources.yml"
    if not path.is_file():
        return {}
    sources = yaml.load(path.read_text("utf-8"), Loader=FAST)["sources"]
    tables = {table["name"]: {column["name"]: column for column in table["columns"]} for table in sources[0]["tables"]}
    return {name: found for name, found in tables.items() if "payload" in found}


def pass_through_fields(project: Path = PACKAGE) -> dict[str, str]:
    """The fields of events that no model changes, with the type that they have from staging on (macros/pass_through.sql)."""
    found = {
        name: _meta(column).get("pass_through") for name, column in declared_columns(project).get("events", {}).items()
    }
    return {name: kind for name, kind in found.items() if kind}


def _meta(column: dict[str, Any]) -> dict[str, Any]:
    meta: dict[str, Any] = column.get("config", {}).get("meta", {})
    return meta


#: Contract fields by raw table: name to DuckDB type. Each table ends with `payload`, the row as it was delivered.
RAW_TABLES: Final[dict[str, dict[str, str]]] = {
    table: {
        name: column.get("data_type", "VARCHAR")
        for name, column in fields.items()
        if name not in META_COLUMNS and name != "payload"
    }
    for table, fields in declared_columns().items()
}

#: A regular expression for the part of a position that names an element of a list: `[3]`, or `[2.1]` in a nested list.
IN_RECORD: Final = r"\[[0-9]+([.][0-9]+)?\]"

#: The field with the kind of event, by table that has one.
EVENT_TYPE: Final[dict[str, str]] = {"events": "event_type", "ga4_events": "event_name"}

#: The field with a row's own time, by table; `available_at: event_time` in a mapping reads it.
EVENT_TIME: Final[dict[str, str]] = {
    "events": "event_at",
    "ga4_events": "event_timestamp",
    "customers": "updated_at",
    "products": "updated_at",
    "orders": "updated_at",
    "order_items": "updated_at",
    "refunds": "refunded_at",
}

#: The contract fields that identify what a row is about, by table. A deletion has only these.
IDENTITY: Final[dict[str, tuple[str, ...]]] = {
    "events": ("event_id", "order_id", "line_id"),
    "customers": ("customer_id",),
    "products": ("product_id",),
    "orders": ("order_id",),
    "order_items": ("order_id", "line_id", "product_id"),
    "refunds": ("refund_id", "order_id", "line_id"),
}


#: The contract fields that are ids, of any table.
IDS: Final = frozenset(
    [
        "event_id",
        "user_id",
        "anonymous_id",
        "session_id",
        "product_id",
        "order_id",
        "customer_id",
        "refund_id",
        "user_pseudo_id",
    ]
)


def is_time(name: str) -> bool:
    """Whether a contract field holds a time."""
    return name.endswith("_at") or name == "event_timestamp"


def given(name: str, kind: str) -> str:
    """SQL: the value of a field of a raw row, null if it is empty text."""
    return f"nullif({identifier(name)}, '')" if kind == "VARCHAR" else identifier(name)


def columns(table: str) -> dict[str, str]:
    """Every column of a raw table in the lake, in order: name to DuckDB type."""
    return {**META_COLUMNS, **RAW_TABLES[table], "payload": "VARCHAR"}
