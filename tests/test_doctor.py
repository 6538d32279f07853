"""The doctor reports what is wrong with a mapping and its data, by field, and never changes anything."""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from rich.console import Console

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest import landing
from orchestration.ingest.load import load
from orchestration.quality import doctor
from orchestration.quality.doctor import EntryLook, FieldLook, Finding, Report, examine
from orchestration.simulation.simulate import simulate

NOW = datetime(2024, 6, 1, 12, 0)
FIELDS = {"event_type": "t", "event_at": "at", "user_id": "u"}
LINE = "login,2024-01-01 10:00:00,u{n}"


class Clinic:
    """A folder with data and mappings, and the doctor's findings about them."""

    def __init__(self, folder: Path, home: Settings) -> None:
        self.folder, self.home = folder, home

    def file(self, name: str, *lines: str, header: str = "t,at,u") -> str:
        (self.folder / name).write_text("\n".join([header, *lines]) + "\n")
        return name

    def mapping(self, name: str = "shop", source: str | None = None, time_zone: str = "UTC", **tables: Any) -> Path:
        path = self.folder / f"{name}.yml"
        text = {"source": source or name, "time_zone": time_zone, "tables": tables}
        path.write_text(yaml.safe_dump(text))
        return path

    def events(
        self, *lines: str, header: str = "t,at,u", fields: dict[str, Any] | None = None, **entry: Any
    ) -> EntryLook:
        """Look at one CSV of events."""
        time_zone = entry.pop("time_zone", "UTC")
        self.file("a.csv", *lines, header=header)
        entry = {"files": "a.csv", "available_at": "event_time", "fields": {**FIELDS, **(fields or {})}, **entry}
        [seen] = self.look(self.mapping(time_zone=time_zone, events=entry)).entries
        return seen

    def look(self, mapping: Path, **given: Any) -> Report:
        return examine(mapping, data=self.folder, where=self.home, now=NOW, **given)


@pytest.fixture
def clinic(home: Settings, tmp_path: Path) -> Clinic:
    return Clinic(tmp_path, home)


def found(seen: EntryLook, level: str, field: str = "") -> str:
    """The message of the only finding of a level about a field."""
    [found] = [finding for finding in seen.findings if (finding.level, finding.field) == (level, field)]
    return found.message


def lines(count: int, line: str = LINE) -> list[str]:
    return [line.format(n=n) for n in range(count)]


def looked(seen: EntryLook, name: str) -> FieldLook:
    return next(each for each in seen.fields if each.name == name)


def test_a_good_file_has_no_findings(clinic: Clinic) -> None:
    seen = clinic.events(*lines(3), "search,2024-03-01T12:00:00+02:00,u9")
    assert (seen.rows, seen.looked_at, seen.malformed, seen.findings) == (4, 4, 0, [])
    assert looked(seen, "event_at") == FieldLook(
        "event_at", "at", "time", 4, 4, "2024-01-01 10:00:00", "2024-03-01 10:00:00", "2024-01-01 10:00:00"
    )
    assert looked(seen, "user_id") == FieldLook("user_id", "u", "text", 4, 4, None, None, "u0")


def test_nothing_is_loaded_or_created(clinic: Clinic) -> None:
    clinic.events(*lines(3))
    assert not clinic.home.home.exists()


def test_every_field_that_a_load_would_refuse_is_named_at_once(clinic: Clinic) -> None:
    seen = clinic.events(
        *lines(3),
        fields={"event_type": "tt", "price": "pric", "query": {"sql": "upper(uu)"}},
        available_at={"column": "arrived"},
        where="x = 1",
    )
    assert found(seen, "error", "event_type").endswith("has no column 'tt'; did you mean 't'?")
    assert "has no column 'pric'" in found(seen, "error", "price")
    assert found(seen, "error", "query").endswith("has no column 'uu'; did you mean 'u'?")
    others = [finding.message for finding in seen.findings if finding.level == "error" and not finding.field]
    assert [message.partition(":")[0] for message in others] == ["available_at", "where"]
    assert looked(seen, "user_id").filled == 3  # the correct fields are checked anyway


def test_every_json_key_that_is_misspelt_is_named(clinic: Clinic) -> None:
    text = "".join(json.dumps({"kind": "login", "when": "2024-01-01", "user": f"u{n}"}) + "\n" for n in range(30))
    (clinic.folder / "a.jsonl").write_text(text)
    fields = {"event_type": "kinds", "event_at": "when", "user_id": "usr"}
    path = clinic.mapping(events={"files": "a.jsonl", "available_at": "event_time", "fields": fields})
    [seen] = clinic.look(path).entries
    assert "no column 'kinds'; did you mean 'kind'?" in found(seen, "error", "event_type")
    assert "no column 'usr'; did you mean 'user'?" in found(seen, "error", "user_id")
    assert looked(seen, "event_at").read == 30


def test_a_file_that_cannot_be_read_does_not_hide_the_others(clinic: Clinic) -> None:
    clinic.file("a.csv", *lines(3))
    (clinic.folder / "b.csv").write_bytes(b"t,at,u\nlogin,2024-01-01,caf\xe9\n")
    (clinic.folder / "c.csv").write_text("")
    path = clinic.mapping(events={"files": "*.csv", "available_at": "event_time", "fields": FIELDS})
    report = clinic.look(path)
    [seen] = report.entries
    errors = [finding.message for finding in seen.findings if finding.level == "error"]
    assert len(errors) == 1 and "b.csv: line 2 is not UTF-8" in errors[0]
    assert "c.csv: the file is empty (0 bytes); a load leaves it out" in found(seen, "note")
    assert (seen.rows, report.exit_code) == (3, 1)


def test_a_file_without_rows_is_reported(clinic: Clinic) -> None:
    assert found(clinic.events(), "warning") == "no rows at all"


def test_malformed_rows_are_counted_with_reason_and_position(clinic: Clinic) -> None:
    seen = clinic.events(*lines(8), "login,2024-01-01", "login,2024-01-01")
    assert seen.malformed == 2
    assert found(seen, "warning") == (
        "2 of 10 rows (20.0 %) cannot be read and would be quarantined whole (2 columns instead of 3: 2, first a.csv#9)"
    )
    only = clinic.events("x", "y")
    assert found(only, "error").startswith("2 of 2 rows (100 %) cannot be read")


def test_values_that_are_not_times(clinic: Clinic) -> None:
    some = clinic.events(*lines(3), "login,yesterday,u", "login,yesterday,u", "search,,u")
    message = "2 of 6 rows (33.3 %) have a value that is not a time: 'yesterday' (2)"
    empty = "empty in 1 of 6 rows (16.7 %), first a.csv#6; such rows cannot be used"
    assert [finding.message for finding in some.findings if finding.field == "event_at"] == [message, empty]
    assert (looked(some, "event_at").filled, looked(some, "event_at").read) == (5, 3)
    few = clinic.events("login,soon,u")  # too few for the loader to refuse the file
    assert found(few, "error", "event_at") == "none of its 1 values is a time: 'soon'"
    many = clinic.events(*["login,soon,u"] * 30)
    assert "no value of it in" in found(many, "error", "event_at")


def test_values_that_are_not_numbers(clinic: Clinic) -> None:
    header, fields = "t,at,u,p", {"price": "p", "currency": {"value": "EUR"}}
    seen = clinic.events(LINE + ",1.5", LINE + ',"2,50"', header=header, fields=fields)
    assert found(seen, "warning", "price") == "1 of 2 rows (50.0 %) have a value that is not a number: '2,50'"
    assert (looked(seen, "price").first, looked(seen, "price").last) == ("1.5", "1.5")
    assert "none of its 1 values is a number: 'free'" in found(
        clinic.events(LINE + ",free", header=header, fields=fields), "error", "price"
    )


def test_local_times_that_occur_twice_or_never(clinic: Clinic) -> None:
    odd = ["login,2024-03-31 02:30:00,u", "login,2023-10-29 02:30:00,u", "login,2024-03-31T02:30:00Z,u"]
    message = found(clinic.events(*odd, time_zone="Europe/Berlin"), "note", "event_at")
    assert message.startswith("2 of 3 rows (66.7 %) are local times that occur twice or never in Europe/Berlin")
    assert clinic.events(*odd).findings == []


def test_event_types_that_the_seed_does_not_map(clinic: Clinic) -> None:
    seen = clinic.events("LOGIN,2024-01-01,u", *["view_itm,2024-01-01,u"] * 2, "zzz,2024-01-01,u")
    assert found(seen, "warning", "event_type") == (
        "seeds/event_types.csv does not map 'view_itm' (2; did you mean 'view_item'?), 'zzz' (1); "
        "3 of 4 rows (75.0 %) would be quarantined"
    )
    assert "'zzz' (1)" in found(clinic.events("zzz,2024-01-01,u"), "error", "event_type")


def test_currencies_without_a_rate(clinic: Clinic) -> None:
    fields = {"price": "p", "currency": "c"}
    rows = [LINE + ",1,eur", LINE + ",1,USD", LINE + ",1,GBB"]
    seen = clinic.events(*rows, header="t,at,u,p,c", fields=fields)
    assert found(seen, "warning", "currency").startswith(
        "there is no exchange rate for 'GBB' (1; did you mean 'GBP'?); 1 of 3"
    )
    assert "finegrain rates update" in found(seen, "warning", "currency")
    without = clinic.events(*rows, header="t,at,u,p,c", fields={"price": "p"})
    assert found(without, "note", "price") == "no currency is mapped, so USD is assumed"


def test_units_and_categories(clinic: Clinic) -> None:
    clinic.file("p.csv", "p1,1,KG,Shoes,2024-01-01", "p2,2,stone,(not set),2024-01-02", header="id,w,wu,c,at")
    fields = {"product_id": "id", "weight": "w", "weight_unit": "wu", "category": "c", "updated_at": "at"}
    path = clinic.mapping(products={"files": "p.csv", "available_at": "event_time", "fields": fields})
    [seen] = clinic.look(path).entries
    assert found(seen, "warning", "weight_unit").startswith(
        "seeds/unit_conversions.csv does not contain 'stone' (1); 1 of 2"
    )
    known = {row.lower() for row in doctor._seed("category_map", "raw_category")}
    if "shoes" not in known:
        assert "'shoes'" in found(seen, "note", "category")


def test_the_status_and_the_amounts_of_orders(clinic: Clinic) -> None:
    rows = ["o1,u,on hold,2024-01-01,1,0", "o2,u,Cancelled,2024-01-01,-2,1", "o3,u,canceld,2024-01-01,3,2"]
    clinic.file("o.csv", *rows, header="id,u,s,at,d,t")
    fields = {
        "order_id": "id",
        "user_id": "u",
        "status": "s",
        "created_at": "at",
        "updated_at": "at",
        "discount": "d",
        "tax": "t",
    }
    path = clinic.mapping(orders={"files": "o.csv", "available_at": "event_time", "fields": fields})
    [seen] = clinic.look(path).entries
    assert found(seen, "warning", "status") == (
        "seeds/order_statuses.csv does not know 'canceld' (1; did you mean 'canceled'?); 1 of 3 rows (33.3 %) would count as sold"
    )
    assert found(seen, "warning", "discount").startswith(
        "1 of 3 rows (33.3 %) are < 0 or > 10,000,000,000, and would be treated as missing"
    )
    assert not [finding for finding in seen.findings if finding.field == "tax"]


def test_required_fields_that_are_empty(clinic: Clinic) -> None:
    seen = clinic.events(*lines(3), ",2024-01-01,u")
    assert found(seen, "warning", "event_type") == (
        "empty in 1 of 4 rows (25.0 %), first a.csv#4; such rows cannot be used"
    )
    either = {"user_id": "u", "anonymous_id": "v"}
    seen = clinic.events(
        "login,2024-01-01,a,", "login,2024-01-01,,b", "login,2024-01-01,,", header="t,at,u,v", fields=either
    )
    assert found(seen, "warning", "user_id").startswith("user_id and anonymous_id are both empty in 1 of 3 rows")
    assert "no row can be used" in found(clinic.events("login,2024-01-01,"), "error", "user_id")


def test_events_without_an_identity_may_get_that_of_their_order(clinic: Clinic) -> None:
    fields = {"order_id": "o"}
    seen = clinic.events("purchase,2024-01-01,a,1", "purchase,2024-01-01,,2", header="t,at,u,o", fields=fields)
    assert found(seen, "warning", "user_id") == (
        "empty in 1 of 2 rows (50.0 %), first a.csv#2; such rows cannot be used; to use the order in place of its buyer, write "
        """anonymous_id: {sql: case when "u" is null then "o" end}"""
    )
    # Its suggestion is a valid mapping, and makes the row usable.
    offered = yaml.safe_load(found(seen, "warning", "user_id").partition("in place of its buyer, write ")[2])
    seen = clinic.events(
        "purchase,2024-01-01,a,1", "purchase,2024-01-01,,2", header="t,at,u,o", fields=fields | offered
    )
    assert looked(seen, "anonymous_id").filled == 1 and looked(seen, "anonymous_id").example == "2"
    assert not seen.findings
    # Without an order nothing leads to the buyer.
    seen = clinic.events("purchase,2024-01-01,a,1", "login,2024-01-01,,", header="t,at,u,o", fields=fields)
    assert found(seen, "warning", "user_id").endswith("such rows cannot be used")
    with pytest.raises(
        FinegrainError, match=r"user_id or anonymous_id is missing.*stand for its buyer: anonymous_id: o$"
    ):
        clinic.look(
            clinic.mapping(
                events={
                    "files": "a.csv",
                    "available_at": "event_time",
                    "fields": {"event_type": "t", "event_at": "at", "order_id": "o"},
                }
            )
        )


def test_orders_without_an_identity(clinic: Clinic) -> None:
    def look(fields: dict[str, Any]) -> EntryLook:
        entry = {"files": "o.csv", "available_at": "now", "fields": {"order_id": "no", **fields}}
        return clinic.look(clinic.mapping(orders=entry)).entries[0]

    # The newer version of order 2 names the buyer; no version of 3 and 4 does.
    clinic.file("o.csv", "1,ann,", "2,,", "2,bob,", "3,,", "4,,", "5,,c-5", header="no,user,cookie")
    then = "their lines in order_items would be quarantined (missing_identity); to use the order in place of its buyer, write anonymous_id: "
    message = found(look({"user_id": "user", "anonymous_id": "cookie"}), "warning", "user_id")
    assert message == (
        f"user_id and anonymous_id are both empty in 2 of 5 orders (40.0 %); {then}"
        """{sql: 'coalesce("cookie", case when "user" is null then "no" end)'}"""
    )
    offered = yaml.safe_load(message.partition("in place of its buyer, write ")[2])
    assert "missing_identity" not in str(look({"user_id": "user", **offered}).findings)
    assert (
        found(look({}), "warning", "")
        == f"user_id and anonymous_id are not mapped in 5 of 5 orders (100 %); {then}'no'"
    )
    assert "missing_identity" not in str(look({"anonymous_id": "no"}).findings)
    by_sql = found(look({"order_id": {"sql": "'A-' || no"}}), "warning")
    assert yaml.safe_load(by_sql.partition("in place of its buyer, write ")[2]) == {
        "anonymous_id": {"sql": "('A-' || no)"}
    }


def test_what_several_entries_have_in_common_is_reported_once(clinic: Clinic) -> None:
    clinic.file("a.csv", *lines(30))
    entry = {"files": "a.csv", "available_at": {"column": "arrived"}, "fields": {**FIELDS, "price": "prcie"}}
    report = clinic.look(clinic.mapping(events=[entry] * 10))
    assert report.count("error") == 2
    [first, *others] = report.entries
    also = f"(also in {clinic.folder / 'shop.yml'}: tables.events[2-10])"
    assert found(first, "error", "price").endswith(also)
    assert found(first, "error").startswith("available_at: ") and found(first, "error").endswith(also)
    assert not [finding for entry in others for finding in entry.findings]
    # Differences are reported for each table, errors of a file once for all tables.
    clinic.file("t.csv", "login,2024-01-01,a", header="t,at,at")
    other = {"files": "t.csv", "available_at": "now", "fields": {"customer_id": "u"}}
    report = clinic.look(
        clinic.mapping(
            events=[entry, {**entry, "fields": {**FIELDS, "price": "cost"}}, {**entry, "files": "t.csv"}],
            customers=other,
        )
    )
    errors = [finding.message for entry in report.entries for finding in entry.findings if finding.level == "error"]
    assert len(errors) == 4 and sum("names 'at' twice" in each for each in errors) == 1


def test_arrows_that_bind_loosely(clinic: Clinic) -> None:
    hint = "write (a->>'$.x') > 5, not a->>'$.x' > 5"
    row = """login,2024-01-01,a,"{""x"": 7}\""""
    seen = clinic.events(row, header="t,at,u,p", fields={"price": {"sql": "p->>'$.x' > 5"}})
    assert found(seen, "error", "price").endswith(f"({landing.ARROWS})") and hint in landing.ARROWS
    seen = clinic.events(row, header="t,at,u,p", fields={"consent": {"sql": "not p->>'$.x' = '7'"}})
    assert found(seen, "error").endswith(f"the sql of consent fails on this row: 1, first a.csv#1); {landing.ARROWS}")
    seen = clinic.events(row, header="t,at,u,p", fields={"consent": {"sql": "(p->>'$.x') = '7'"}})
    assert looked(seen, "consent").example == "true"
    seen = clinic.events(row, header="t,at,u,p", fields={"consent": {"sql": "cast(p as int)::varchar"}})
    assert landing.ARROWS not in found(seen, "error")  # a different problem


def test_an_arrival_by_an_expression(clinic: Clinic) -> None:
    rows = ["login,2024-01-01,a,2024-01-02|x", "login,2024-01-01,b,soon|y", "login,2024-01-01,c,"]
    entry = {"available_at": {"sql": "split_part(got, '|', 1)"}}
    assert found(clinic.events(*rows, header="t,at,u,got", **entry), "warning").startswith(
        "available_at: 2 of 3 rows (66.7 %) have no valid time in the result of its sql: 'soon'; they count as available when"
    )
    entry = {"available_at": {"sql": "cast(got as timestamp)"}}
    seen = clinic.events(*rows, header="t,at,u,got", **entry)
    assert seen.malformed == 2 and "the sql of available_at fails on this row: 2, first a.csv#1" in found(
        seen, "warning"
    )
    seen = clinic.events(*rows, header="t,at,u,got", available_at={"sql": "gto"})
    assert found(seen, "error") == f"available_at: {clinic.folder / 'a.csv'} has no column 'gto'; did you mean 'got'?"


def test_a_field_that_is_always_empty(clinic: Clinic) -> None:
    seen = clinic.events(LINE + ",", header="t,at,u,q", fields={"query": "q"})
    assert found(seen, "warning", "query") == "empty in every row"


def test_ids_that_a_spreadsheet_has_rounded(clinic: Clinic) -> None:
    rows = [
        f"purchase,2024-01-01,u{n},{order}"
        for n, order in enumerate(["1.23457E+12", "1.23457E+12", '"1,2e+12"', "12E5", "1E+X"])
    ]
    seen = clinic.events(*rows, header="t,at,u,o", fields={"order_id": "o"})
    assert found(seen, "warning", "order_id").startswith(
        "3 of 5 rows (60.0 %) are in scientific notation: '1.23457E+12' (2), '1,2e+12'; a spreadsheet has rounded them"
    )


def test_ids_that_differ_in_case_alone(clinic: Clinic) -> None:
    rows = [f"login,2024-01-01,{user}" for user in ("a12Gny", "a12GnY", "a12GnY", "b", "C", "c", "d")]
    assert found(clinic.events(*rows), "warning", "user_id") == (
        "ids that differ only in case: 'C' and 'c' and 1 more; they are different ids, unless the mapping has ids: case_insensitive"
    )
    assert not clinic.events("login,2024-01-01,a12Gny", "login,2024-01-01,a12Gnz").findings


def test_an_id_that_may_be_nobody(clinic: Clinic) -> None:
    rows = [f"login,2024-01-01 10:00:{n % 60:02},u{n}" for n in range(380)]
    assert not clinic.events(*rows, *["login,2024-01-02,0"] * 20).findings  # 20 of 400 are 5 %, and no more
    seen = clinic.events(*rows, *["login,2024-01-02,0"] * 40, *['login,2024-01-02,"no ""one"""'] * 30)
    message = found(seen, "warning", "user_id")
    assert message.startswith(
        """single ids on more than 5% of the 450 rows that have one: '0' (8.9 %), 'no "one"' (6.7 %); if"""
    )
    assert yaml.safe_load(message.partition("null_ids: ")[2]) == ["0", 'no "one"']
    assert not clinic.events(*["login,2024-01-02,0"] * 19).findings


def test_currencies_on_the_first_row_of_an_order_alone(clinic: Clinic) -> None:
    rows = ["1,p1,EUR", "1,p2,", "1,p3,", "2,p1,SEK", "2,p2,SEK", "3,p1,", ",p1,"]
    rows = [f"purchase,2024-01-01,u{n},{row}" for n, row in enumerate(rows)]
    fields = {"order_id": "nr", "product_id": "sku", "currency": "money"}
    seen = clinic.events(*rows, header="t,at,u,nr,sku,money", fields=fields)
    assert found(seen, "warning", "currency") == (
        "empty in 2 of 7 rows (28.6 %), of 1 order with a currency on another row; if that is the currency of the whole order, "
        "write carry: {columns: [money], within: nr}"
    )


def test_ids_that_come_twice(clinic: Clinic) -> None:
    rows = [LINE + ",e1", LINE + ",e1", LINE + ",e2"]
    seen = clinic.events(*rows, header="t,at,u,e", fields={"event_id": "e"})
    assert found(seen, "note", "event_id").startswith("1 rows have the same event_id as another, for example 'e1'")
    clinic.file("c.csv", "c1,2024-01-01", "c1,2024-01-02", "c2,2024-01-01", "c2,2024-01-01", header="id,at")
    entry = {"files": "c.csv", "available_at": "now", "fields": {"customer_id": "id", "updated_at": "at"}}
    [customers] = clinic.look(clinic.mapping(customers=entry)).entries
    assert found(customers, "warning", "customer_id").startswith(
        "1 rows have the same customer_id + updated_at as another, for example 'c2'"
    )
    entry = {"files": "c.csv", "available_at": {"column": "at"}, "fields": {"customer_id": "id"}}
    [customers] = clinic.look(clinic.mapping(customers=entry)).entries  # distinguished by when they arrived
    assert found(customers, "warning", "customer_id").startswith(
        "1 rows have the same customer_id as another, for example 'c2'"
    )


def test_ids_that_come_twice_in_a_sample(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROWS", 1000)
    monkeypatch.setattr("orchestration.ingest.landing.SAMPLE", 1000)
    rows = [f"login,2024-01-01,u,e{n // 2}" for n in range(20_000)]
    seen = clinic.events(*rows, header="t,at,u,e", fields={"event_id": "e"})
    assert (seen.rows, seen.looked_at) == (20_000, 1000)
    about = re.match(r"about ([\d,]+) rows have the same", found(seen, "note", "event_id"))
    assert about and 5_000 < int(about[1].replace(",", "")) < 15_000  # 10,000, estimated from a twentieth of the ids


def test_a_sample_is_taken_from_the_whole_file(clinic: Clinic, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ROWS", 100)
    monkeypatch.setattr("orchestration.ingest.landing.SAMPLE", 100)
    seen = clinic.events(*lines(500), *["login,2024-02-01,u"] * 500)
    assert (seen.rows, seen.looked_at) == (1000, 100)
    assert (looked(seen, "event_at").first, looked(seen, "event_at").last) == (
        "2024-01-01 10:00:00",
        "2024-02-01 00:00:00",
    )
    text = io.StringIO()
    Console(file=text, width=160).print(Report([seen]).render())
    assert "1,000 rows, a sample of 100 looked at" in text.getvalue()


def test_customers_and_products_that_nobody_provides(clinic: Clinic) -> None:
    entry = {"expects": ["customers", "products"], "fields": {"product_id": "p"}}
    seen = clinic.events(LINE + ",p1", header="t,at,u,p", **entry)
    messages = [f.message for f in seen.findings if f.message.startswith("expects")]
    assert [message.split(",")[0] for message in messages] == ["expects customers", "expects products"]


def test_users_and_products_that_are_not_among_those_provided(clinic: Clinic) -> None:
    clinic.file("c.csv", "u1", "u2", header="id")
    clinic.file("p.csv", "sku-1", header="id")
    clinic.file(
        "a.csv", "login,2024-01-01,u1,sku-1", "login,2024-01-01,u9,sku-2", "login,2024-01-01,,", header="t,at,u,p"
    )
    maps = clinic.folder / "maps"
    maps.mkdir()
    one = {"available_at": "now", "files": "c.csv", "fields": {"customer_id": "id"}}
    two = {"available_at": "now", "files": "p.csv", "fields": {"product_id": "id"}}
    clinic.mapping("db", customers=one, products=two).rename(maps / "db.yml")
    fields = {**FIELDS, "product_id": "p", "anonymous_id": {"value": "x"}}
    entry = {"files": "a.csv", "available_at": "event_time", "expects": ["customers", "products"], "fields": fields}
    web = clinic.mapping("web", events=entry)
    web.rename(maps / "web.yml")
    *_, seen = clinic.look(maps).entries
    assert found(seen, "warning", "user_id").startswith("1 of 2 ids (50.0 %) are not among the customers: 'u9'")
    assert found(seen, "warning", "product_id").startswith("1 of 2 ids (50.0 %) are not among the products: 'sku-2'")
    # What the lake holds counts as well.
    load(maps / "db.yml", data=clinic.folder, where=clinic.home)
    [seen] = clinic.look(maps / "web.yml").entries
    assert found(seen, "warning", "product_id").startswith("1 of 2 ids")
    assert found(seen, "warning", "user_id").startswith("1 of 2 ids")


def test_columns_that_nothing_maps(clinic: Clinic) -> None:
    seen = clinic.events(
        LINE + ",1,2",
        header="t,at,u,x,y",
        fields={"price": {"sql": "try_cast(X as double)"}, "currency": {"value": "EUR"}},
    )
    assert found(seen, "note") == "nothing maps 'y'; the payload keeps it"
    (clinic.folder / "a.jsonl").write_text('{"t": "login", "at": "2024-01-01", "u": "a", "z": 1}\n')
    path = clinic.mapping(events={"files": "a.jsonl", "available_at": "event_time", "fields": FIELDS})
    [seen] = clinic.look(path).entries
    assert found(seen, "note") == "nothing maps 'z'; the payload keeps it"
    names = ",".join(f"c{n}" for n in range(12))
    seen = clinic.events(LINE + "," * 12, header=f"t,at,u,{names}")
    assert found(seen, "note").endswith("'c9' and 2 more; the payload keeps them")


def test_times_in_the_future_and_the_far_past(clinic: Clinic) -> None:
    seen = clinic.events("login,2024-06-02,u", "login,1991-01-20 02:00:00,u", *lines(2))
    past, future = sorted(
        (f.message for f in seen.findings if f.field == "event_at"), key=lambda said: "future" in said
    )
    assert past.startswith("1 of 4 rows (25.0 %) are dated before 2000: '1991-01-20 02:00:00'")
    assert future.startswith("1 of 4 rows (25.0 %) are dated in the future, and would be quarantined: '2024-06-02'")
    assert "in the future" in found(clinic.events("login,2030-01-01,u"), "error", "event_at")
    seen = clinic.events(
        "login,2024-01-02,u,2024-01-01", "login,2024-01-01 00:05:00,u,2024-01-01",
        header="t,at,u,got", available_at={"column": "got"},
    )  # fmt: skip
    assert found(seen, "warning", "event_at").startswith("1 of 2 rows (50.0 %) are dated later than they arrived")


def test_values_that_are_not_arrival_times(clinic: Clinic) -> None:
    header, arrival = "t,at,u,got", {"column": "got"}
    seen = clinic.events(LINE + ",2024-01-01 10:00:00", LINE + ",?", header=header, available_at=arrival)
    assert found(seen, "warning").startswith("available_at: 1 of 2 rows (50.0 %) have no valid time in 'got': '?'")
    assert "have no valid time" in found(clinic.events(LINE + ",?", header=header, available_at=arrival), "error")
    assert found(clinic.events(*lines(1), available_at="now"), "note").startswith("available_at: now")


def test_numbers_that_no_row_can_have(clinic: Clinic) -> None:
    fields = {"price": "p", "quantity": "q", "currency": {"value": "EUR"}}
    seen = clinic.events(LINE + ",-1,1", LINE + ",1,0", LINE + ",1,99999", header="t,at,u,p,q", fields=fields)
    assert found(seen, "warning", "price").startswith("1 of 3 rows (33.3 %) are < 0 or > 100,000")
    assert found(seen, "warning", "quantity").startswith("2 of 3 rows (66.7 %) are <= 0 or > 10,000")


def test_numbers_that_no_customer_can_have(clinic: Clinic) -> None:
    clinic.file("c.csv", "c1,-1,1,1850", "c2,100000000000,100,1849", "c3,100000000001,0,2101", header="c,i,h,b")
    fields = {"customer_id": "c", "income": "i", "household_size": "h", "birth_year": "b"}
    customers = {"files": "c.csv", "available_at": "now", "fields": fields}
    [seen] = clinic.look(clinic.mapping(customers=customers)).entries
    assert found(seen, "warning", "income").startswith(
        "2 of 3 rows (66.7 %) are < 0 or > 100,000,000,000, and would be null"
    )
    assert found(seen, "warning", "household_size").startswith(
        "1 of 3 rows (33.3 %) are < 1 or > 100, and would be null"
    )
    assert found(seen, "warning", "birth_year").startswith(
        "2 of 3 rows (66.7 %) are < 1850 or > 2100, and would be null"
    )


def test_what_where_and_distinct_keep(clinic: Clinic) -> None:
    seen = clinic.events(*lines(2), *lines(2), "search,2024-01-01,x", where="t = 'login'", distinct=True)
    assert (seen.rows, found(seen, "note")) == (2, "where and distinct keeps 2 of 5 rows of a.csv")


def test_one_file_under_two_names(clinic: Clinic) -> None:
    for name in ("a.csv", "b.csv"):
        clinic.file(name, *lines(2))
    path = clinic.mapping(events={"files": "*.csv", "available_at": "event_time", "fields": FIELDS})
    [seen] = clinic.look(path).entries
    assert "b.csv has the same bytes as" in found(seen, "warning")


def test_files_that_a_load_would_skip(clinic: Clinic) -> None:
    clinic.file("a.csv", *lines(2))
    path = clinic.mapping(events={"files": "a.csv", "available_at": "event_time", "fields": FIELDS})
    load(path, data=clinic.folder, where=clinic.home)
    [seen] = clinic.look(path).entries
    assert found(seen, "note") == "in the lake already, so a load skips: a.csv"


def test_a_stream_is_checked_by_its_first_messages(clinic: Clinic) -> None:
    folder = clinic.folder / "stream"
    folder.mkdir()
    entry = {"stream": {"folder": "stream"}, "available_at": "now"}
    mapping = clinic.mapping(events=entry)
    [seen] = clinic.look(mapping).entries
    assert (seen.rows, found(seen, "warning")) == (0, "no rows at all")
    good = '{"event_type": "login", "event_at": "2024-01-01T10:00:00Z", "user_id": "u", "pge": "/"}\n'
    (folder / "a.jsonl").write_bytes(good.encode() * 3 + b"no JSON\n\xff\n[1]\n")
    before = {path: path.read_bytes() for path in clinic.folder.rglob("*") if path.is_file()}
    [seen] = clinic.look(mapping).entries
    assert (seen.rows, seen.malformed, seen.files) == (6, 3, ["folder:stream"])
    assert [each.name for each in seen.fields] == ["event_type", "event_at", "user_id"]
    assert "not a JSON object: 3, first folder:stream#4" in found(seen, "warning")
    assert any("nothing maps 'pge'" in finding.message for finding in seen.findings)
    assert before == {path: path.read_bytes() for path in clinic.folder.rglob("*") if path.is_file()}
    (folder / "a.jsonl").write_text('{"event_type": "login", "user_id": "u"}\n')
    [seen] = clinic.look(mapping).entries
    assert "event_at" in found(seen, "error", "event_at")
    folder.rename(clinic.folder / "elsewhere")
    with pytest.raises(FinegrainError, match=r"tables.events.stream.folder: .*stream is not a folder; create it"):
        clinic.look(mapping)


def test_ga4_exports(clinic: Clinic) -> None:
    row = """select '20240101' event_date, {at} event_timestamp, '{name}' event_name, 'p1' user_pseudo_id,
        [{{'item_id': 'i1', 'item_category': 'x'}}] items"""
    sql = " union all ".join(
        [row.format(at=1704067200000000, name="page_view"), row.format(at=1704067200000001, name="pageveiw")]
    )
    duckdb.connect().execute(f"copy ({sql}) to '{clinic.folder / 'g.parquet'}' (format parquet)")
    clinic.file("p.csv", "i2", header="id")
    products = {"files": "p.csv", "available_at": "now", "fields": {"product_id": "id"}}
    ga4 = {"files": "g.parquet", "available_at": "event_time", "expects": ["products"]}
    entries = clinic.look(clinic.mapping(products=products, ga4_events=ga4)).entries
    seen = next(entry for entry in entries if entry.table == "ga4_events")
    assert "'pageveiw' (1; did you mean 'pageview'?)" in found(seen, "warning", "event_name")
    assert found(seen, "error", "items").startswith("2 of 2 ids (100 %) are not among the products: 'i1'")
    assert looked(seen, "event_timestamp").first == "2024-01-01 00:00:00"


def test_mistakes_of_all_mappings_come_first(clinic: Clinic) -> None:
    maps = clinic.folder / "maps"
    maps.mkdir()
    entry = {"files": "nowhere.csv", "available_at": "event_time", "fields": FIELDS}
    clinic.mapping("one", events=entry).rename(maps / "one.yml")
    clinic.mapping("two", event=entry).rename(maps / "two.yml")
    with pytest.raises(FinegrainError) as caught:
        clinic.look(maps)
    assert "nowhere.csv: no such file" in str(caught.value)
    assert "two.yml: tables.event: no such raw table; did you mean 'events'?" in str(caught.value)


def test_values_never_become_sql(clinic: Clinic) -> None:
    nasty = "'); drop table x; --"
    lines = [f"{nasty},{nasty},{nasty},1", f"{nasty},2024-01-01,{nasty},1"]
    seen = clinic.events(*lines, header=f"t,at,u,c{nasty}", fields={"query": f"c{nasty}"})
    assert nasty in found(seen, "error", "event_type") and nasty in found(seen, "warning", "event_at")


def test_a_gzipped_file(clinic: Clinic) -> None:
    with gzip.open(clinic.folder / "a.csv.gz", "wt") as stream:
        stream.write("t,at,u\nlogin,2024-01-01,a\n")
    path = clinic.mapping(events={"files": "a.csv.gz", "available_at": "event_time", "fields": FIELDS})
    assert clinic.look(path).entries[0].findings == []


def test_the_simulated_shop(clinic: Clinic, project: Path) -> None:
    """All four systems together: nothing wrong with the mappings, and the planted dirt seen."""
    shop = clinic.folder / "shop"
    simulate(shop, events=5_000, days=14, start=datetime(2025, 3, 20).date())
    report = examine(project / "examples" / "simulated_shop", data=shop, where=clinic.home)
    assert report.exit_code == 0
    assert len(report.entries) == 8 and all(entry.rows == entry.looked_at > 0 for entry in report.entries)
    web = next(entry for entry in report.entries if entry.source == "shop_web")
    assert web.malformed > 0
    assert {"event_at", "currency", "product_id"} <= {
        finding.field for finding in web.findings if finding.level == "warning"
    }


def test_the_report_for_people_and_programs(clinic: Clinic) -> None:
    seen = clinic.events("zzz,2024-01-01,u", *lines(2))
    report = Report([seen], seconds=1.25)
    text = io.StringIO()
    Console(file=text, width=160, soft_wrap=True).print(report.render())
    assert "shop.events  a.csv, 3 rows, all of them looked at" in text.getvalue()
    assert "  warning event_type: seeds/event_types.csv does not map 'zzz' (1)" in text.getvalue()
    assert "no errors, 1 warning, no notes in 1.2 s; nothing was loaded" in text.getvalue()
    as_json = json.loads(json.dumps(report.as_dict()))
    assert (as_json["errors"], as_json["warnings"], as_json["notes"]) == (0, 1, 0)
    assert as_json["entries"][0]["findings"][0]["field"] == "event_type"
    assert Finding("note", "m.yml: tables.events", "price", "x").place == "m.yml: tables.events.fields.price"


# --- the machine -------------------------------------------------------------------------------------------------


def checks(home: Settings) -> dict[str, tuple[str, str]]:
    return {check.what: (check.level, check.said) for check in examine(where=home).checks}


def test_a_fresh_machine_is_fine(home: Settings) -> None:
    found = checks(home)
    assert list(found) == [
        "Python",
        "DuckDB",
        "dbt",
        "dbt packages",
        "lake",
        "warehouse",
        "published",
        "access",
        "memory",
        "disk",
    ]
    assert {level for level, _ in found.values()} == {"fine"}
    assert found["DuckDB"][1] == f"{duckdb.__version__} with sqlite_scanner and ducklake"
    assert "none yet" in found["lake"][1] and not home.home.exists()


def test_more_memory_than_there_is(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FINEGRAIN_MEMORY", "900TB")
    [check] = [check for check in examine(where=home).checks if check.what == "memory"]
    assert check.level == "warning" and check.said.startswith("FINEGRAIN_MEMORY is 900TB, but this machine has ")


def test_a_lake_and_a_warehouse_are_reported(clinic: Clinic, home: Settings) -> None:
    clinic.file("a.csv", *lines(2))
    load(
        clinic.mapping(events={"files": "a.csv", "available_at": "event_time", "fields": FIELDS}),
        data=clinic.folder,
        where=home,
    )
    with duckdb.connect(str(home.warehouse)) as con:
        con.execute(
            "create table builds as select 'build' as command, 'failed' as status, 7 as built_from, 1 as number"
        )
    found = checks(home)
    assert found["lake"][0] == "fine" and found["lake"][1].endswith(": 2 events")
    assert found["warehouse"][0] == "warning" and found["warehouse"][1].endswith(
        "the last dbt build, of snapshot 7: failed"
    )


def test_what_is_broken_is_an_error(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    home.lake_catalog.parent.mkdir(parents=True)
    home.lake_catalog.write_text("this is no catalogue")
    home.warehouse.write_text("nor is this a warehouse, though it is long enough to be taken for one" * 100)
    for name in ("PROJECT", "PACKAGE"):
        monkeypatch.setattr(f"orchestration.config.settings.{name}", home.home)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 10))
    report = examine(where=home)
    found = {check.what: (check.level, check.said) for check in report.checks}
    assert found["lake"][0] == found["warehouse"][0] == "error"
    assert found["dbt packages"] == ("error", "dbt_expectations is not in dbt_packages/; run make setup, or dbt deps")
    assert found["disk"][0] == "warning"
    assert report.exit_code == 1


# --- the command -------------------------------------------------------------------------------------------------


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orchestration.cli", "doctor", *arguments], capture_output=True, text=True, check=False
    )


def test_the_command_and_its_exit_codes(clinic: Clinic) -> None:
    clinic.file("a.csv", *lines(2))
    path = clinic.mapping(events={"files": "a.csv", "available_at": "event_time", "fields": FIELDS})
    fine = command(str(path), "--data", str(clinic.folder))
    assert (fine.returncode, fine.stderr) == (0, "") and "no errors, no warnings, no notes" in fine.stdout
    other = clinic.file("b.csv", *["login,soon,u"] * 30)
    wrong = command(str(path), str(clinic.folder / other), "--json")
    assert (wrong.returncode, wrong.stderr) == (1, "") and json.loads(wrong.stdout)["errors"] == 1
    path.write_text("source: shop\ntabels: {}\n")
    mistake = command(str(path))
    assert (mistake.returncode, mistake.stdout) == (2, "")
    assert "tabels: no such key; did you mean 'tables'?" in mistake.stderr and "Traceback" not in mistake.stderr
