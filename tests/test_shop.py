"""A mapping's settings for the whole shop: its reporting currency and its time zone. The lake keeps them, whichever
command reads the mapping; two different values are one clear error; and a build with a new value gives the same as if
the value had been there from the start."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from datetime import date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml
from small_shops import Homes, Row, differences, land

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.ingest import ingest
from orchestration.ingest.load import load
from orchestration.ingest.rates import update
from orchestration.ingest.stream.run import stream
from orchestration.ingest.unload import unload
from orchestration.lake import lake, shop
from orchestration.mapping.mapping import read_mapping
from orchestration.quality.doctor import examine

ENTRY = {
    "files": "visits.csv",
    "available_at": "event_time",
    "fields": {"event_type": "t", "event_at": "at", "user_id": "u", "price": "p", "currency": "c"},
}
VISITS = "t,at,u,p,c\nview,2025-03-01 10:00:00,ann,12.50,EUR\n"


class Desk:
    """A folder with mappings and data, and a home."""

    def __init__(self, folder: Path, home: Settings) -> None:
        self.folder, self.home = folder, home
        (folder / "visits.csv").write_text(VISITS)

    def mapping(self, source: str = "web", name: str | None = None, **said: Any) -> Path:
        path = self.folder / f"{name or source}.yml"
        path.write_text(yaml.safe_dump({"source": source, "tables": {"events": ENTRY}, **said}))
        return path

    def load(self, mapping: Path) -> int:
        return load(mapping, data=self.folder, where=self.home).rows

    def said(self) -> dict[str, str]:
        with lake.connect(self.home, read_only=True) as con:
            return shop.of_lake(con)

    def snapshot(self) -> int:
        with lake.connect(self.home, read_only=True) as con:
            return int(con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()[0][0])


@pytest.fixture
def desk(home: Settings, tmp_path: Path) -> Desk:
    return Desk(tmp_path, home)


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        (
            {"reporting_currency": "euro"},
            "reporting_currency: 'euro' is not a currency; write its ISO 4217 code, as in EUR",
        ),
        ({"reporting_currency": 3}, "reporting_currency: input should be a valid string"),
        (
            {"shop_time_zone": "Europe/Berln"},
            "shop_time_zone: 'Europe/Berln' is not a time zone; did you mean 'Europe/Berlin'?",
        ),
        ({"shop_timezone": "UTC"}, "shop_timezone: no such key; did you mean 'shop_time_zone'?"),
        ({"reporting_curency": "EUR"}, "reporting_curency: no such key; did you mean 'reporting_currency'?"),
    ],
)
def test_misspelt_keys_are_named(desk: Desk, said: dict[str, Any], wrong: str) -> None:
    path = desk.mapping(**said)
    with pytest.raises(FinegrainError) as caught:
        read_mapping(path)
    assert str(caught.value) == f"{path}: {wrong}"


def test_a_load_records_settings_only_if_they_changed(desk: Desk, capfd: pytest.CaptureFixture[str]) -> None:
    assert desk.load(desk.mapping()) == 1
    assert desk.said() == {}
    path = desk.mapping(reporting_currency="eur", shop_time_zone="Europe/Berlin")
    assert desk.load(path) == 0  # no new rows, but the setting is recorded anyway
    assert desk.said() == {"reporting_currency": "EUR", "shop_time_zone": "Europe/Berlin"}
    assert "reporting_currency is now EUR" in capfd.readouterr().err
    before = desk.snapshot()
    desk.load(path)
    assert desk.snapshot() == before
    desk.load(desk.mapping(reporting_currency="SEK", shop_time_zone="Europe/Berlin"))
    assert desk.said() == {"reporting_currency": "SEK", "shop_time_zone": "Europe/Berlin"}
    # A setting that was removed no longer counts; an earlier snapshot is unchanged.
    desk.load(desk.mapping(shop_time_zone="Europe/Berlin"))
    assert desk.said() == {"shop_time_zone": "Europe/Berlin"}
    with lake.connect(desk.home) as con:
        assert shop.of_lake(con, before)["reporting_currency"] == "EUR"
        assert shop.of_lake(con, 0) == {}
    unload("web", where=desk.home)
    assert desk.said() == {}


def test_ingest_and_stream_record_settings_too(desk: Desk) -> None:
    ingest(desk.mapping(reporting_currency="GBP"), desk.folder, where=desk.home)
    assert desk.said() == {"reporting_currency": "GBP"}
    (desk.folder / "grows").mkdir()
    path = desk.folder / "app.yml"
    entry = {"stream": {"folder": "grows"}, "available_at": "event_time"}
    path.write_text(yaml.safe_dump({"source": "app", "shop_time_zone": "Asia/Tokyo", "tables": {"events": entry}}))
    stream(path, data=desk.folder, drain=True, where=desk.home)
    assert desk.said() == {"reporting_currency": "GBP", "shop_time_zone": "Asia/Tokyo"}


def test_two_values_are_one_error_and_nothing_lands(desk: Desk) -> None:
    first = desk.mapping("web", reporting_currency="EUR")
    desk.load(first)
    other = desk.mapping("till", reporting_currency="USD")
    wrong = f"{other}: reporting_currency is USD (source till), but EUR in {first} (source web); a shop has only one"
    before = desk.snapshot()
    for use in (
        lambda: desk.load(other),
        lambda: ingest(other, desk.folder, where=desk.home),
        lambda: examine(other, data=desk.folder, where=desk.home),
    ):
        with pytest.raises(FinegrainError) as caught:
            use()
        assert str(caught.value) == f"{wrong}: use the same value in both, or remove it from one"
    assert desk.snapshot() == before and desk.said() == {"reporting_currency": "EUR"}
    # Both are corrected, and one is loaded: the current content of the other's file counts.
    desk.mapping("web", reporting_currency="USD")
    desk.load(other)
    assert desk.said() == {"reporting_currency": "USD"}
    # The settings of a deleted mapping count until its source is unloaded.
    first.unlink()
    desk.mapping("till", reporting_currency="SEK")
    with pytest.raises(FinegrainError, match="finegrain unload web"):
        desk.load(other)
    unload("web", where=desk.home)
    desk.load(other)
    assert desk.said() == {"reporting_currency": "SEK"}


def test_a_source_without_rows_can_be_taken_back(desk: Desk) -> None:
    (desk.folder / "visits.csv").write_text("t,at,u,p,c\n")
    desk.load(desk.mapping(reporting_currency="EUR"))
    assert desk.said() == {"reporting_currency": "EUR"}
    assert unload("web", where=desk.home).rows == 0
    assert desk.said() == {}


def test_two_mappings_of_a_folder_may_not_differ(desk: Desk) -> None:
    desk.mapping("web", shop_time_zone="Europe/Berlin")
    desk.mapping("till", shop_time_zone="Europe/Paris")
    with pytest.raises(
        FinegrainError, match=r"till.yml: shop_time_zone is Europe/Paris .* but Europe/Berlin in .*web.yml"
    ):
        desk.load(desk.folder)
    with lake.connect(desk.home) as con:
        assert con.execute("select count(*) from lake.raw.events").fetchall() == [(0,)]


def test_a_mapping_that_was_moved_still_counts_once(desk: Desk) -> None:
    path = desk.mapping(reporting_currency="EUR")
    desk.load(path)
    path.unlink()
    desk.load(desk.mapping(name="moved", reporting_currency="GBP"))
    assert desk.said() == {"reporting_currency": "GBP"}


def test_a_currency_without_rates_is_an_error_until_there_are_some(desk: Desk) -> None:
    path = desk.mapping(reporting_currency="KRW")
    for use in (lambda: desk.load(path), lambda: examine(path, data=desk.folder, where=desk.home)):
        with pytest.raises(FinegrainError) as caught:
            use()
        assert str(caught.value).startswith(f"{path}: reporting_currency: there is no exchange rate for 'KRW'")
        assert "finegrain rates update" in str(caught.value)
    rates = desk.folder / "rates.csv"
    rates.write_text("Date,KRW,\n2025-03-01,1600,\n")
    update(str(rates), where=desk.home)
    desk.load(path)
    assert desk.said() == {"reporting_currency": "KRW"}


def findings(desk: Desk, mapping: Path) -> list[str]:
    seen = examine(mapping, data=desk.folder, where=desk.home)
    return [each.message for entry in seen.entries for each in entry.findings if each.level == "warning"]


def test_the_doctor_asks_for_the_currency_of_a_shop_that_has_one(desk: Desk) -> None:
    path = desk.mapping()
    assert findings(desk, path) == [
        f"every price is in EUR, and will be reported in USD: write reporting_currency: EUR beside source in {path} "
        "to have it reported in EUR"
    ]
    # No suggestion where the mapping sets a currency, where prices are in two currencies, or where they are in USD.
    assert findings(desk, desk.mapping(reporting_currency="USD")) == []
    assert findings(desk, desk.mapping(reporting_currency="EUR")) == []
    (desk.folder / "visits.csv").write_text(VISITS + "view,2025-03-01 10:00:00,ann,12.50,GBP\n")
    assert findings(desk, desk.mapping()) == []
    (desk.folder / "visits.csv").write_text(VISITS.replace("EUR", "USD"))
    assert findings(desk, desk.mapping()) == []


def priced(hour: int, currency: str | None) -> Row:
    at = datetime(2025, 3, 28, 12) + timedelta(hours=hour)
    fields = {"event_type": "view_item", "event_at": str(at), "user_id": f"u{hour}", "product_id": "p", "price": "10"}
    return Row("events", "web", f"a#{hour}", at, {**fields, "currency": currency})


def marts(where: Settings) -> list[tuple[Any, ...]]:
    """What readers see of the priced views, by hour."""
    with duckdb.connect(str(where.warehouse), read_only=True) as con:
        found = con.execute(
            "select hour(event_at) - 12, currency, price, event_date from marts.fct_events order by event_at"
        ).fetchall()
        shown = con.execute("select reporting_currency, shop_time_zone from marts.dim_shop").fetchall()
    return [*shown, *found]


@pytest.mark.long
def test_another_currency_and_zone_rebuild_every_event(homes: Homes, tmp_path: Path) -> None:
    rows = [priced(hour, currency) for hour, currency in enumerate(("EUR", "USD", "GBP", None, "EUR", "XXX"))]
    of_the_day = {"EUR": Decimal(1), "USD": Decimal("1.0797"), "GBP": Decimal("0.83358")}  # seeds/fx_rates.csv
    friday, saturday = date(2025, 3, 28), date(2025, 3, 29)

    def expected(reporting: str, day: Callable[[int], date]) -> list[tuple[Any, ...]]:
        """Ten units of each currency in the reporting one; there is no event in the unknown currency."""
        return [
            (
                hour,
                row.fields["currency"] or reporting,
                round(10 * of_the_day[reporting] / of_the_day[row.fields["currency"] or reporting], 4),
                day(hour),
            )
            for hour, row in enumerate(rows[:-1])
        ]

    home, once = homes.make("shop"), homes.make("once")
    wanted = ("--select", "+fct_events", "+fct_orders", "dim_shop")
    land(home, rows)
    homes.run(home, *wanted)
    assert marts(home) == [("USD", "UTC"), *expected("USD", lambda hour: friday)]
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        before = con.execute("select begun_in from states where model = 'int_cleaning__events'").fetchall()

    path = tmp_path / "web.yml"
    said = {"reporting_currency": "EUR", "shop_time_zone": "Asia/Tokyo"}
    path.write_text(yaml.safe_dump({"source": "web", "tables": {"events": ENTRY}, **said}))
    for where in (home, once):
        with closing(lake.connect(where)) as con:
            shop.record(con, where, shop.mappings_at(path))
    land(once, rows)
    for where in (home, once):
        homes._dbt(where, "run", *wanted)
    # In Tokyo it is Saturday from 15 o'clock UTC on.
    assert marts(home) == [
        ("EUR", "Asia/Tokyo"),
        *expected("EUR", lambda hour: saturday if hour >= 3 else friday),
    ]
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        assert before < con.execute("select begun_in from states where model = 'int_cleaning__events'").fetchall()
    found = differences(home, once)
    assert not found, "\n".join(found)
