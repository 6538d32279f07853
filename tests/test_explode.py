"""`explode`: each element of a list in a record becomes a row, wherever the record comes from, and each lands once."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st
from streams import StreamedFolder
from test_ingest_apis import Answer, Api, api, page  # noqa: F401  (a fixture)

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.ingest import TableReport, ingest
from orchestration.ingest.landing import MOST_ELEMENTS
from orchestration.ingest.load import load
from orchestration.ingest.unload import unload
from orchestration.lake import lake
from orchestration.mapping.mapping import read_mapping
from orchestration.quality.doctor import examine

FIELDS: dict[str, Any] = {
    "event_id": "messageId",
    "event_type": "event",
    "event_at": "timestamp",
    "user_id": "userId",
    "order_id": {"sql": "properties->>'$.order_id'"},
    "product_id": {"element": "product_id"},
    "price": {"element": "price.amount"},
    "category": {"sql": "coalesce(element->>'$.category', properties->>'$.category')"},
}
ENTRY: dict[str, Any] = {"available_at": "event_time", "explode": "properties.products", "fields": FIELDS}
LINES: dict[str, Any] = {
    "available_at": "now",
    "explode": "lines",
    "fields": {"order_id": "id", "product_id": {"element": "sku"}, "quantity": {"element": "n"}},
}


def event(number: int, properties: Any = None, **more: Any) -> dict[str, Any]:
    given = {"messageId": f"m{number}", "event": "view_item", "timestamp": "2024-01-01T00:00:00Z", "userId": "ann"}
    return given | more | ({} if properties is None else {"properties": properties})


def product(name: str, price: Any = "1.5", **more: Any) -> dict[str, Any]:
    return {"product_id": name, "price": {"amount": price}, **more}


def mapping(folder: Path, **tables: Any) -> Path:
    path = folder / "shop.yml"
    path.write_text(yaml.safe_dump({"source": "shop", "tables": tables}, sort_keys=False))
    return path


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def ask(home: Settings, sql: str) -> list[tuple[Any, ...]]:
    con = lake.connect(home, read_only=True)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def alive(home: Settings, what: str, table: str = "events") -> list[tuple[Any, ...]]:
    """Rows that no deletion refers to."""
    gone = "select 1 from lake.raw.deletions as d where d._position = t._position and d._ingested_at > t._ingested_at and row_key is null"
    return ask(home, f"select {what} from lake.raw.{table} as t where not exists ({gone}) order by _position")


# --- files -----------------------------------------------------------------------------------------------------------


def test_an_event_is_a_row_of_each_product_or_one_without(home: Settings, tmp_path: Path) -> None:
    whole = event(
        1, {"order_id": "o1", "category": "cups", "products": [product("p1"), product("p2", 0.1, category="mugs")]}
    )
    lines(
        tmp_path / "a.jsonl",
        whole,
        event(2, {"query": "tea"}),
        event(3),
        event(4, {"products": None}),
        event(5, {"products": []}),
        event(6, {"products": "none"}),
        event(7, {"products": [product("p3"), 7, None]}),
        event(8, {"products": [product(f"p{n}") for n in range(MOST_ELEMENTS + 1)]}),
        event(9, {"products": [product(f"p{n}") for n in range(MOST_ELEMENTS)]}),
        event(10, {"products": [product("p4", {"a": 1})]}),
        "no JSON",
    )
    report = load(mapping(tmp_path, events={**ENTRY, "files": "a.jsonl"}), data=tmp_path)
    assert report.rows == 13 + MOST_ELEMENTS
    found = ask(
        home,
        "select _position, _error, product_id, price, category, order_id, line_id from lake.raw.events where event_id is distinct from 'm9'",
    )
    no_list, no_object = "properties.products is not a list", "an element of properties.products is not an object"
    assert Counter(found) == Counter(
        [
            ("a.jsonl#1[1]", None, "p1", "1.5", "cups", "o1", "#1"),
            ("a.jsonl#1[2]", None, "p2", "0.1", "mugs", "o1", "#2"),
            *((f"a.jsonl#{n}", None, None, None, None, None, None) for n in (2, 3, 4, 5)),
            ("a.jsonl#6", no_list, None, None, None, None, None),
            ("a.jsonl#7[1]", None, "p3", "1.5", None, None, None),
            *((f"a.jsonl#7[{n}]", no_object, None, None, None, None, None) for n in (2, 3)),
            ("a.jsonl#8", f"properties.products has more than {MOST_ELEMENTS} elements", None, None, None, None, None),
            ("a.jsonl#10[1]", "element.price.amount holds an object or a list", None, None, None, None, None),
            ("a.jsonl#11", "not a JSON object", None, None, None, None, None),
        ]
    )
    assert ask(
        home,
        "select distinct payload::json = $$"
        + json.dumps(whole)
        + "$$::json from lake.raw.events where event_id = 'm1'",
    ) == [(True,)]
    [seen] = examine(tmp_path / "shop.yml", data=tmp_path).entries
    assert seen.rows == report.rows and seen.malformed == 6
    said = [finding.message for finding in seen.findings if finding.message.startswith("explode")]
    assert said == [
        f"explode finds {6 + MOST_ELEMENTS} elements of properties.products in 11 records of a.jsonl; 4 records have none: each is one row"
    ]


def test_an_order_without_lines_has_no_rows_and_the_index_separates_lines(home: Settings, tmp_path: Path) -> None:
    orders = [
        {"id": "o1", "lines": [{"sku": "a", "n": 1}, {"sku": "a", "n": 2}, {"sku": "b"}]},
        {"id": "o2", "lines": []},
        {"id": "o3"},
    ]
    (tmp_path / "o.json").write_text(json.dumps(orders))
    path = mapping(
        tmp_path,
        orders={"files": "o.json", "available_at": "now", "fields": {"order_id": "id"}},
        order_items={**LINES, "files": "o.json"},
    )
    load(path, data=tmp_path)
    assert ask(home, "select count(*) from lake.raw.orders") == [(3,)]
    assert alive(home, "_position, order_id, product_id, line_id, quantity", "order_items") == [
        ("o.json#1[1]", "o1", "a", "#1", "1"),
        ("o.json#1[2]", "o1", "a", "#2", "2"),
        ("o.json#1[3]", "o1", "b", "#3", None),
    ]


def test_one_file_feeds_several_tables_and_each_bad_element_lands(home: Settings, tmp_path: Path) -> None:
    """The first entry gets the records that cannot be read; elements that cannot be read belong to their own entry."""
    lines(tmp_path / "o.jsonl", {"id": "o1", "lines": [1, {"sku": "a"}]}, "broken")
    orders = {"files": "o.jsonl", "available_at": "now", "fields": {"order_id": "id"}}
    load(mapping(tmp_path, orders=orders, order_items={**LINES, "files": "o.jsonl"}), data=tmp_path)
    assert alive(home, "_position, _error is null", "orders") == [("o.jsonl#1", True), ("o.jsonl#2", False)]
    assert alive(home, "_position, _error is null", "order_items") == [("o.jsonl#1[1]", False), ("o.jsonl#1[2]", True)]


NESTED = [
    {"id": "o1", "refunds": [
        {"id": "r1", "at": "2024-01-02", "lines": [{"sku": "a", "n": 1}, {"sku": "b", "n": 2}]},
        {"id": "r2", "at": "2024-01-03", "lines": [{"sku": "a", "n": 3}]},
        {"id": "r3", "at": "2024-01-04", "lines": []},
    ]},
    {"id": "o2", "refunds": []},
]  # fmt: skip
REFUNDS = {
    "available_at": "now",
    "explode": "refunds[].lines",
    "fields": {
        "order_id": "id", "refund_id": {"parent": "id"}, "refunded_at": {"parent": "at"}, "product_id": {"element": "sku"},
        "quantity": {"sql": "element.n"}, "amount": {"element": "n"},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
def test_a_list_within_the_elements_of_another(home: Settings, tmp_path: Path, kind: str) -> None:
    """As JSON, as structs of Parquet, and as text in a column."""
    lines(tmp_path / "o.jsonl", *NESTED)
    con = duckdb.connect()
    read = f"select * from read_json('{tmp_path}/o.jsonl', columns = {{id: 'varchar', refunds: 'json'}})"
    if kind == "parquet":
        shape = '[{"id":"VARCHAR","at":"DATE","lines":[{"sku":"VARCHAR","n":"INTEGER"}]}]'
        typed = f"select id, from_json(refunds, '{shape}') as refunds from ({read})"
        con.execute(f"copy ({typed}) to '{tmp_path}/o.parquet'")
    elif kind == "csv":
        con.execute(f"copy ({read}) to '{tmp_path}/o.csv'")
    name = {"json": "o.jsonl", "parquet": "o.parquet", "csv": "o.csv"}[kind]
    fields = REFUNDS["fields"] | ({} if kind == "parquet" else {"quantity": {"sql": "element->>'$.n'"}})
    load(mapping(tmp_path, refunds={**REFUNDS, "files": name, "fields": fields}), data=tmp_path)
    assert alive(
        home, "_position, order_id, refund_id, refunded_at, product_id, quantity, amount, line_id", "refunds"
    ) == [
        (f"{name}#1[1.1]", "o1", "r1", "2024-01-02", "a", "1", "1", "#1.1"),
        (f"{name}#1[1.2]", "o1", "r1", "2024-01-02", "b", "2", "2", "#1.2"),
        (f"{name}#1[2.1]", "o1", "r2", "2024-01-03", "a", "3", "3", "#2.1"),
    ]


def test_money_keeps_its_digits(home: Settings, tmp_path: Path) -> None:
    price = "12345678901234.123456789"
    (tmp_path / "a.jsonl").write_text(
        json.dumps(event(1, {"products": [product("p", "X")]})).replace('"X"', price) + "\n"
    )
    load(mapping(tmp_path, events={**ENTRY, "files": "a.jsonl"}), data=tmp_path)
    assert alive(home, "price") == [(price,)]


def test_a_corrected_mapping_replaces_rows_and_unload_takes_all_of_them(home: Settings, tmp_path: Path) -> None:
    """From a mapping without explode to one with it, to another field, and back; each time with the result of a first
    load."""
    lines(tmp_path / "a.jsonl", event(1, {"products": [product("p1"), product("p2"), 7]}), event(2, {}))
    plain = {
        **ENTRY,
        "files": "a.jsonl",
        "fields": {name: value for name, value in FIELDS.items() if "element" not in str(value)},
    }
    del plain["explode"]
    steps: list[tuple[dict[str, Any], list[tuple[Any, ...]]]] = [
        (plain, [("#1", None), ("#2", None)]),
        ({**ENTRY, "files": "a.jsonl"}, [("#1[1]", "p1"), ("#1[2]", "p2"), ("#1[3]", None), ("#2", None)]),
        (
            {
                **ENTRY,
                "files": "a.jsonl",
                "fields": {**FIELDS, "product_id": {"sql": "upper(element->>'$.product_id')"}},
            },
            [("#1[1]", "P1"), ("#1[2]", "P2"), ("#1[3]", None), ("#2", None)],
        ),
        (plain, [("#1", None), ("#2", None)]),
    ]
    for entry, expected in steps:
        path = mapping(tmp_path, events=entry)
        if entry is not plain or ask_is_there(home):
            with pytest.raises(FinegrainError, match="the mapping has changed since these files were loaded"):
                load(path, data=tmp_path)
        report = load(path, data=tmp_path, remap=True)
        assert [
            (str(at).removeprefix("a.jsonl"), found) for at, found in alive(home, "_position, product_id")
        ] == expected
        assert load(path, data=tmp_path, remap=True).rows == 0 and report.files[0].skipped is None
    # And from the rows in the lake, without the file.
    path = mapping(tmp_path, events={**ENTRY, "files": "*.jsonl"})
    load(path, data=tmp_path, remap=True)
    (tmp_path / "a.jsonl").rename(tmp_path / "a.gone")
    lines(tmp_path / "b.jsonl", event(3, {"products": [product("p9")]}))
    load(mapping(tmp_path, events={**steps[2][0], "files": "*.jsonl"}), data=tmp_path, remap=True)
    assert [found for _, found in alive(home, "_position, product_id")] == ["P1", "P2", None, None, "P9"]
    taken = unload("shop.events", files=["a.jsonl"])
    assert taken.rows == 4 and [found for (found,) in alive(home, "product_id")] == ["P9"]


def ask_is_there(home: Settings) -> bool:
    return lake.exists(home) and bool(ask(home, "select 1 from lake.raw.events limit 1"))


LISTS = st.one_of(
    st.none(), st.just("text"), st.just({"a": 1}), st.integers(),
    st.lists(st.one_of(st.none(), st.integers(), st.just("x"), st.just([]), st.fixed_dictionaries({}, optional={
        "product_id": st.one_of(st.none(), st.text(max_size=3), st.integers(), st.just({"a": 1})),
        "price": st.one_of(st.none(), st.just({"amount": "2"}), st.just("2"), st.just([1]))})), max_size=4),
)  # fmt: skip


@examples(max_examples=10, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.lists(
        st.fixed_dictionaries(
            {},
            optional={
                "properties": st.one_of(
                    st.none(), st.just("x"), st.fixed_dictionaries({}, optional={"products": LISTS})
                )
            },
        ),
        min_size=1,
        max_size=15,
    )
)
def test_each_record_and_each_element_is_a_row_once(
    tmp_path_factory: pytest.TempPathFactory, extensions: Path, given_rows: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("any")
    where = Settings.below(folder / "home", extensions)
    rows = [
        event(n, **each) if "properties" not in each else {**event(n), **each} for n, each in enumerate(given_rows, 1)
    ]
    good = event(0, {"products": [product("p")]})
    lines(folder / "a.jsonl", good, *rows)
    path = mapping(folder, events={**ENTRY, "files": "a.jsonl"})
    load(path, data=folder, where=where)
    expected: list[str] = ["a.jsonl#1[1]"]
    for n, row in enumerate(rows, 2):
        held = row.get("properties")
        found = held.get("products") if isinstance(held, dict) else None
        places = range(1, len(found) + 1) if isinstance(found, list) and found else ()
        expected += [f"a.jsonl#{n}[{place}]" for place in places] or [f"a.jsonl#{n}"]
    assert sorted(at for (at,) in alive(where, "_position")) == sorted(expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"explode": "[]"}, "tables.events.explode: write the keys that lead to a list"),
        ({"explode": "a[].b[].c"}, "tables.events.explode: write the keys that lead to a list"),
        ({"carry": {"columns": "a", "within": "b"}}, "tables.events.carry: this does not go with explode"),
        ({"explode": None}, "tables.events.fields.product_id.element: this goes with explode"),
        ({"fields": {**FIELDS, "price": {"parent": "x"}}}, "tables.events.fields.price.parent: this goes with explode of a list within"),
        ({"fields": {**FIELDS, "price": {"element": ""}}}, "tables.events.fields.price: element names a key, or a path of keys"),
        ({"fields": {**FIELDS, "price": {"element": "a", "column": "b"}}}, "tables.events.fields.price: give exactly one of column"),
    ],
)  # fmt: skip
def test_what_a_mapping_may_not_say(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    with pytest.raises(FinegrainError) as error:
        read_mapping(mapping(tmp_path, events={**ENTRY, "files": "a.jsonl", **change}))
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("row", "change", "said"),
    [
        ({"properties": {"products": {"a": 1}}}, {}, "properties.products is not a list in any row of"),
        ({"properties": {"products": [1, "x"]}}, {}, "properties.products of"),
        ({"properties": [{"products": []}]}, {}, "is a list itself; write properties[].products"),
        ({"properties": {"products": [{"product_ids": 1, "price": {}}]}}, {}, "no element of properties.products of"),
        ({"propertys": {}}, {}, "has no column 'properties'; did you mean 'propertys'?"),
    ],
)  # fmt: skip
def test_a_value_that_is_not_a_list_or_is_missing_is_one_error(
    home: Settings, tmp_path: Path, row: dict[str, Any], change: dict[str, Any], said: str
) -> None:
    lines(tmp_path / "a.jsonl", *({**event(n), **row} for n in range(3)))
    path = mapping(tmp_path, events={**ENTRY, "files": "a.jsonl", **change})
    with pytest.raises(FinegrainError) as error:
        load(path, data=tmp_path)
    assert said in str(error.value)
    [seen] = examine(path, data=tmp_path).entries
    assert [
        said in finding.place + ": " + finding.message for finding in seen.findings if finding.level == "error"
    ] == [True]


@pytest.mark.parametrize("number", [3, 1001])
@pytest.mark.parametrize(
    ("properties", "hint"),
    [
        ({"url": "/"}, ""),
        ({"product_id": "p1"}, ""),
        ({"product": []}, "; properties has no 'products'; did you mean 'product'?"),
    ],
)
def test_events_of_which_none_has_the_list_are_noted(
    home: Settings, tmp_path: Path, number: int, properties: dict[str, Any], hint: str
) -> None:
    """A file of page views, or of views of one product each, is not an error, however long it is."""
    lines(tmp_path / "a.jsonl", *(event(n, properties) for n in range(number)))
    path = mapping(tmp_path, events={**ENTRY, "files": "a.jsonl"})
    note = f"a.jsonl has 'properties.products', so no row has an element{hint}"
    [seen] = examine(path, data=tmp_path).entries
    assert "error" not in {finding.level for finding in seen.findings}
    assert [finding.level for finding in seen.findings if finding.message.endswith(note)] == ["note"]
    report = load(path, data=tmp_path)
    assert report.rows == number
    assert [said.endswith(note) for file in report.files for said in file.notes] == [True]
    assert ask(home, "select distinct product_id, _error from lake.raw.events") == [(None, None)]


@pytest.mark.parametrize(("name", "hint"), [("url", ""), ("product", "; did you mean 'product'?"), ("product_id", "")])
def test_events_of_which_none_has_the_list_at_the_top_are_noted(
    home: Settings, tmp_path: Path, name: str, hint: str
) -> None:
    lines(tmp_path / "a.jsonl", *(event(n, **{name: "x"}) for n in range(1001)))
    fields = {**FIELDS, "order_id": "messageId", "category": {"column": "event"}}
    fields["product_id"] = {"sql": "coalesce(element->>'$.id', product_id)"} if name == "product_id" else "event"
    report = load(
        mapping(tmp_path, events={**ENTRY, "explode": "products", "files": "a.jsonl", "fields": fields}), data=tmp_path
    )
    assert report.rows == 1001
    [said] = [said for file in report.files for said in file.notes]
    assert said.endswith(f"a.jsonl has 'products', so no row has an element{hint}")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"id": "o1", "line": []}, "has no column 'lines'; did you mean 'line'?"),
        ({"id": "o1", "lines": {"of": []}}, "has 'lines.off'; lines has no 'off'; did you mean 'of'?"),
        ({"id": "o1", "lines": {"all": []}}, "has 'lines.off'; lines has no 'off'; known are: all"),
    ],
)
def test_orders_of_which_none_has_the_list_are_an_error(
    home: Settings, tmp_path: Path, row: dict[str, Any], said: str
) -> None:
    """No row would come of them."""
    lines(tmp_path / "o.jsonl", row)
    explode = "lines" if "line" in row else "lines.off"
    path = mapping(tmp_path, order_items={**LINES, "files": "o.jsonl", "explode": explode})
    with pytest.raises(FinegrainError) as error:
        load(path, data=tmp_path)
    assert said in str(error.value)


def test_a_parquet_column_that_is_not_a_list_is_one_error(home: Settings, tmp_path: Path) -> None:
    duckdb.connect().execute(
        f"copy (select 'o1' as id, [1, 2] as lines, struct_pack(x := 1) as s) to '{tmp_path}/o.parquet'"
    )
    for explode, said in (
        ("lines", "its elements are INTEGER, and no objects"),
        ("id", "id is not JSON in any row"),
        ("s.x", "it is INTEGER, and no list"),
        ("s.y", "there is no 'y' in it"),
        ("no", "has no column 'no'"),
    ):
        with pytest.raises(FinegrainError, match=said):
            load(mapping(tmp_path, order_items={**LINES, "files": "o.parquet", "explode": explode}), data=tmp_path)


# --- APIs ------------------------------------------------------------------------------------------------------------


def bring(home: Settings, folder: Path, url: str, **change: Any) -> TableReport:
    entry = {**LINES, "http": {"url": url, "rows": "$.data.items"}, "key": "id", "deletes": "compare", **change}
    [report] = ingest(mapping(folder, order_items=entry), where=home, from_beginning=True).tables
    return report


def there(home: Settings) -> list[tuple[Any, ...]]:
    """Lines of orders that exist for the models: a deletion of a line, up to a version, removes it."""
    return ask(
        home,
        "select order_id, product_id, line_id from lake.raw.order_items as t where not exists (select 1 from lake.raw.deletions as d where case "
        "when row_key is null then d._position = t._position and d._ingested_at > t._ingested_at "
        "else left(d._position, -27) = left(t._position, -27) and t._position < d._position end) order by all",
    )


def test_what_a_new_version_of_an_order_lacks_is_gone(home: Settings, tmp_path: Path, api: Api) -> None:  # noqa: F811
    orders: list[dict[str, Any]] = []

    def answer(path: str, asked: dict[str, str]) -> Answer:
        return page(orders)

    api.answer = answer

    def order(name: str, *skus: Any) -> dict[str, Any]:
        return {"id": name, "lines": [{"sku": sku} if isinstance(sku, str) else sku for sku in skus]}

    orders[:] = [order("1", "a", "b", "c"), order("2"), order("3[1]", "x")]
    first = bring(home, tmp_path, api.url)
    assert (first.read, first.landed, first.deleted) == (3, 4, 0)
    assert there(home) == [("1", "a", "#1"), ("1", "b", "#2"), ("1", "c", "#3"), ("3[1]", "x", "#1")]
    again = bring(home, tmp_path, api.url)
    assert (again.landed, again.deleted) == (0, 0)
    orders[0] = order("1", "a", "c")
    changed = bring(home, tmp_path, api.url)
    assert (changed.landed, changed.deleted) == (2, 2)
    assert sorted(set(there(home))) == [("1", "a", "#1"), ("1", "c", "#2"), ("3[1]", "x", "#1")]
    # A corrected mapping maps each version again, and brings nothing back.
    path = {"fields": {**LINES["fields"], "product_id": {"sql": "upper(element->>'$.sku')"}}}
    with pytest.raises(FinegrainError, match="the mapping has changed since these rows were loaded"):
        bring(home, tmp_path, api.url, **path)
    entry = {**LINES, "http": {"url": api.url, "rows": "$.data.items"}, "key": "id", "deletes": "compare", **path}
    ingest(mapping(tmp_path, order_items=entry), where=home, remap=True)
    assert sorted(set(there(home))) == [("1", "A", "#1"), ("1", "C", "#2"), ("3[1]", "X", "#1")]
    orders[0] = order("1")
    assert bring(home, tmp_path, api.url, **path).deleted > 0
    assert sorted(set(there(home))) == [("3[1]", "X", "#1")]
    assert bring(home, tmp_path, api.url, **path).deleted == 0
    orders[0] = order("1", "a", 7)
    assert bring(home, tmp_path, api.url, **path).malformed == 1
    del orders[0]
    bring(home, tmp_path, api.url, **path)
    assert sorted(set(there(home))) == [("3[1]", "X", "#1")]
    assert unload("shop").rows > 0 and there(home) == []
    assert bring(home, tmp_path, api.url, **path).landed == 1


# --- streams ---------------------------------------------------------------------------------------------------------


class Shop(StreamedFolder):
    """A mapping of events, the folder that it streams, and a home."""

    def map(self, **entry: Any) -> None:
        mapping(self.mapping.parent, events={**ENTRY, "stream": {"folder": str(self.folder)}, **entry})

    def add(self, *rows: Any) -> None:
        with (self.folder / "a.jsonl").open("ab") as out:
            for row in rows:
                out.write(json.dumps(row).encode() + b"\n")


def test_a_message_lands_whole_or_is_a_dead_letter(tmp_path: Path, extensions: Path) -> None:
    shop = Shop(tmp_path, extensions)
    shop.add(
        event(1, {"products": [product("p1"), product("p2")]}),
        event(2, {"products": [product("p3"), 7]}),
        event(3, {}),
        event(4, {"products": [product("p4"), product("p5", "dear")]}),
        event(5, {"products": [product("p")] * (MOST_ELEMENTS + 1)}),
    )
    done = shop.drain()
    assert (done["rows"], done["dead_letters"]) == (
        3,
        {"mapping": 2, "wrong_type": 1},
    )
    found = "select event_id, product_id, regexp_extract(_position, '/[0-9]+(.*)$', 1) from lake.raw.events order by _position"
    assert shop.ask(found) == [("m1", "p1", "[1]"), ("m1", "p2", "[2]"), ("m3", None, "")]
    assert shop.ask("select count(*), count(distinct _position) from lake.raw.dead_letters") == [(3, 3)]
    # A record that the mapping can now read lands once, with all its elements, and keeps its position in the stream.
    shop.map(fields={**FIELDS, "price": {"sql": "try_cast(element->'price'->>'$.amount' as double)"}})
    from orchestration.ingest.stream.replay import replay

    replayed = replay(shop.mapping, where=shop.where)
    assert (replayed.asked, replayed.rows) == (3, 2)
    assert replay(shop.mapping, where=shop.where).asked == 2
    assert [name for name, *_ in shop.ask(found)] == ["m1", "m1", "m3", "m4", "m4"]
    assert shop.drain()["rows"] == 0
