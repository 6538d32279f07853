"""The raw contracts: which tables the lake holds and which fields each row of them carries.

A contract field is stored as the text that the source delivered. The models cast and validate it, so a strange value is
quarantined with a reason instead of failing a load.
"""

from __future__ import annotations

from typing import Final

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

_PARAMETER: Final = 'STRUCT("key" VARCHAR, "value" STRUCT(string_value VARCHAR, int_value BIGINT, float_value DOUBLE, double_value DOUBLE))[]'
_GA4_ITEM: Final = (
    "STRUCT(item_id VARCHAR, item_name VARCHAR, item_brand VARCHAR, item_variant VARCHAR, item_category VARCHAR, "
    "item_category2 VARCHAR, item_category3 VARCHAR, price DOUBLE, price_in_usd DOUBLE, quantity BIGINT, "
    "item_revenue DOUBLE, coupon VARCHAR, item_list_name VARCHAR)[]"
)


def _text(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "VARCHAR")


#: Contract fields by raw table: name to DuckDB type. Each table ends with `payload`, the row as it was delivered.
RAW_TABLES: Final[dict[str, dict[str, str]]] = {
    "events": _text(
        "event_id event_type event_at user_id anonymous_id session_id product_id category quantity price currency "
        "order_id line_id query device user_agent page referrer campaign country consent properties"
    ),
    "ga4_events": {
        **_text("event_date event_timestamp event_name user_id user_pseudo_id"),
        "event_params": _PARAMETER,
        "privacy_info": "STRUCT(analytics_storage VARCHAR, ads_storage VARCHAR)",
        "device": "STRUCT(category VARCHAR, operating_system VARCHAR, language VARCHAR, "
        "web_info STRUCT(browser VARCHAR, hostname VARCHAR))",
        "geo": "STRUCT(country VARCHAR, region VARCHAR, city VARCHAR)",
        "traffic_source": 'STRUCT("name" VARCHAR, medium VARCHAR, "source" VARCHAR)',
        "ecommerce": "STRUCT(transaction_id VARCHAR, purchase_revenue DOUBLE, total_item_quantity BIGINT)",
        "items": _GA4_ITEM,
        "property_currency": "VARCHAR",
    },
    "customers": _text(
        "customer_id created_at updated_at birth_year gender country household_size income acquisition_channel "
        "marketing_consent properties"
    ),
    "products": _text(
        "product_id title brand category price currency weight weight_unit created_at updated_at properties"
    ),
    "orders": _text(
        "order_id user_id anonymous_id session_id status currency discount discount_code tax shipping tax_included total "
        "created_at paid_at shipped_at updated_at properties"
    ),
    "order_items": _text("order_id line_id product_id quantity price discount amount currency updated_at properties"),
    "refunds": _text(
        "refund_id order_id line_id user_id product_id quantity amount currency refunded_at updated_at properties"
    ),
}

#: A regular expression for the part of a position that names an element of a list: `[3]`, or `[2.1]` in a nested list.
IN_RECORD: Final = r"\[[0-9]+([.][0-9]+)?\]"

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


def columns(table: str) -> dict[str, str]:
    """Every column of a raw table in the lake, in order: name to DuckDB type."""
    return {**META_COLUMNS, **RAW_TABLES[table], "payload": "VARCHAR"}
