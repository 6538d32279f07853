"""What `sql` in a mapping may contain: an allow-list, checked against all functions of DuckDB."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
import yaml

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.load import load
from orchestration.mapping import expressions
from orchestration.mapping.mapping import expression, read_mapping
from orchestration.sql.functions import FUNCTIONS

#: Functions whose value depends on the time, the session or the machine, whatever stability DuckDB gives for them.
NEVER = {
    *("now", "today", "current_date", "current_localtime", "current_localtimestamp", "get_current_timestamp", "ago"),
    *("random", "setseed", "uuid", "gen_random_uuid", "uuidv4", "uuidv7", "nextval", "currval", "txid_current"),
    *("current_setting", "getvariable", "getenv", "version", "current_user", "current_query", "current_schema", "user"),
    *("read_text", "read_csv", "read_parquet", "glob", "json_serialize_plan", "json_execute_serialized_sql", "query"),
    *("write_log", "sleep_ms", "pg_sleep", "error", "stats", "list_aggregate", "sum", "count", "first", "unnest"),
}


@pytest.fixture(scope="module")
def functions() -> dict[str, set[tuple[str, str | None]]]:
    """All functions of DuckDB: name to kinds and stabilities."""
    found: dict[str, set[tuple[str, str | None]]] = {}
    with duckdb.connect() as con:
        for name, kind, stability in con.execute(
            "select lower(function_name), function_type, stability from duckdb_functions()"
        ).fetchall():
            found.setdefault(name, set()).add((kind, stability))
    return found


@pytest.fixture
def one_engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Starting DuckDB takes more time than parsing a hundred expressions."""
    with duckdb.connect() as con:
        monkeypatch.setattr(expressions.duckdb, "connect", con.cursor)
        yield


def test_every_function_of_the_list_is_there_and_consistent(
    functions: dict[str, set[tuple[str, str | None]]],
) -> None:
    assert not FUNCTIONS & NEVER
    for name in FUNCTIONS:
        assert functions.get(name, set()) & {("scalar", "CONSISTENT"), ("macro", None)}, name
        assert ("scalar", "VOLATILE") not in functions[name], name
    # A macro is as safe as its definition.
    with duckdb.connect() as con:
        macros = con.execute(
            "select function_name, macro_definition from duckdb_functions() where function_type = 'macro'"
        ).fetchall()
    used = {name: set(re.findall(r"([a-z_0-9]+)\(", text)) for name, text in macros if name in FUNCTIONS}
    assert {"nullif", "split_part", "fdiv"} <= used.keys()
    for name, inside in used.items():
        assert inside <= FUNCTIONS | {"list_aggr", "struct_pack", "bit", "cast"}, name


def test_every_other_function_is_refused(functions: dict[str, set[tuple[str, str | None]]], one_engine: None) -> None:
    others = sorted((functions.keys() | NEVER) - FUNCTIONS)
    assert len(others) > 400
    for name in others:
        quoted = '"' + name.replace('"', '""') + '"'
        for text in (f"{quoted}(a)", f"{quoted}()", f"main.{quoted}(a)", f"pg_catalog.{quoted}(a)", f"(a).{quoted}()"):
            with pytest.raises(
                ValueError, match=r"functions that an expression may use|reads more than|no SQL expression"
            ):
                expression(text)
        with pytest.raises(ValueError):
            expression(f"list_transform([1], lambda x: {quoted}(x))")
    with pytest.raises(ValueError, match="ago"):
        expression("AGO(interval 1 day)")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("current_localtimestamp()", "current_localtimestamp() is not one of the functions"),
        ("age(cast(a as timestamp))", "age() reads the clock here; give it 2 arguments"),
        ("json_serialize_plan('select * from read_text(''/etc/passwd'')')", "json_serialize_plan() is not one of"),
        ("upcase(a)", "did you mean ucase()?"),
        ("('/etc/passwd').read_text()", "read_text() is not one of"),
        ("a.lower().now()", "now() is not one of"),
        ("system.main.now()", "without schema or catalogue"),
        ("columns(*)", "reads more than the row's own columns"),
        ("*columns(*)", "reads more than the row's own columns"),
        ("coalesce(*columns(*))", "reads more than the row's own columns"),
        ("(select max(i) from lake.raw.loads)", "reads more than the row's own columns (subquery)"),
        ("a in (select 1)", "reads more than the row's own columns (subquery)"),
        ("exists (select 1)", "reads more than the row's own columns (subquery)"),
        ("row_number() over ()", "reads more than the row's own columns (window)"),
        ("grouping(a)", "reads more than the row's own columns"),
        ("$1", "reads more than the row's own columns (parameter)"),
        ("#1", "reads more than the row's own columns (positional_reference)"),
        ("list_filter([1], lambda x: x > random())", "random() is not one of"),
        ("case when a then getvariable('x') end", "getvariable() is not one of"),
        ("try(nextval('s'))", "nextval() is not one of"),
        ("list_aggregate([1, 2], 'any_value')", "list_aggregate() is not one of"),
    ],
)
def test_what_is_refused_and_why(text: str, says: str) -> None:
    with pytest.raises(ValueError) as refused:
        expression(text)
    assert says in str(refused.value)


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        ("age(cast(a as timestamp), timestamp '2024-01-01')", ("a",)),
        ("a.lower()", ("a",)),
        ("case when b is not null and not a = '' then coalesce(a, b) else nullif(b, 'x') end", ("b", "a")),
        ("try_cast(q as int) * 2 - p // 3 ** 2 % 5", ("q", "p")),
        ("s.x || s['y'] || l[1] || l[1:2]", ("s", "l")),
        ("[x + 1 for x in l if x not in (1, 2)]", ("l",)),
        ("list_transform(l, lambda x: x.lower())", ("l",)),
        ("j->>'$.a' like 'b%' escape '!' and j similar to '.*' and j between 'a' and 'b'", ("j",)),
        ("extract(epoch from cast(t as timestamptz) at time zone 'UTC') + epoch_ms(interval (n) day)", ("t", "n")),
        ("json_object('a', a, 'b', {'c': [b], 'd': map {'k': 1}})", ("a", "b")),
        ("position('x' in a) + length(trim(both 'x' from a) collate nocase)", ("a",)),
    ],
)
def test_usual_expressions_are_accepted(text: str, columns: tuple[str, ...]) -> None:
    assert expression(text) == columns


@pytest.mark.parametrize("word", ["current_date", "current_timestamp", "localtime", "user", "session_user"])
def test_words_that_are_functions_without_parentheses_are_columns_or_nothing(
    home: Settings, tmp_path: Path, word: str
) -> None:
    def shop(header: str) -> Path:
        (tmp_path / "a.csv").write_text(f"t,at,u,{header}\nlogin,2024-01-01,u,mine\n")
        fields = {"event_type": "t", "event_at": "at", "user_id": "u", "query": {"sql": word}}
        entry = {"files": "a.csv", "available_at": "now", "fields": fields}
        file = tmp_path / "shop.yml"
        file.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
        return file

    with pytest.raises(FinegrainError, match=rf"fields\.query: .*a\.csv has no column '{word}'"):
        load(shop("x"), data=tmp_path)
    if word == "user":  # a column of that name is read as a column
        assert load(shop(word), data=tmp_path).rows == 1


@pytest.mark.parametrize("kind", ["regclass", "regproc", "nothing"])
def test_an_unknown_type_is_an_error_that_names_the_field(home: Settings, tmp_path: Path, kind: str) -> None:
    (tmp_path / "a.csv").write_text("t,at,u\nlogin,2024-01-01,u\n")
    fields = {"event_type": "t", "event_at": "at", "user_id": "u", "query": {"sql": f"u::{kind}"}}
    file = tmp_path / "shop.yml"
    file.write_text(
        yaml.safe_dump(
            {"source": "shop", "tables": {"events": {"files": "a.csv", "available_at": "now", "fields": fields}}}
        )
    )
    with pytest.raises(FinegrainError, match=r"fields\.query: .*Type"):
        load(file, data=tmp_path)


def test_the_error_names_the_field(tmp_path: Path) -> None:
    fields = {"event_type": "t", "event_at": "at", "user_id": {"sql": "upcase(u)"}}
    entry = {"files": "a.csv", "available_at": {"sql": "now()"}, "where": "random() > 0.5", "fields": fields}
    file = tmp_path / "shop.yml"
    file.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
    with pytest.raises(FinegrainError) as refused:
        read_mapping(file)
    said = str(refused.value).splitlines()
    assert any("tables.events.fields.user_id: 'upcase(u)': upcase()" in line and "ucase()?" in line for line in said)
    assert any("tables.events.available_at: 'now()': now()" in line for line in said)
    assert any("tables.events.where: 'random() > 0.5': random()" in line for line in said)
