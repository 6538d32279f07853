"""Shop-wide settings: the reporting currency and the time zone of its days.

A mapping sets them with `reporting_currency` and `shop_time_zone`. The lake keeps the last values of each mapping (`raw.shop`), and models
read them there (macros/shop.sql). If no mapping sets one, the var of dbt_project.yml applies.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb

from orchestration.config.project import PACKAGE
from orchestration.config.settings import Settings, is_text, variable
from orchestration.errors import FinegrainError, console
from orchestration.errors.console import shown
from orchestration.lake import lake
from orchestration.mapping import mapping
from orchestration.mapping.mapping import mapping_files, nearest, read_mapping
from orchestration.sql.text import quote, timestamp_literal

#: The shop-wide keys of a mapping; vars of the same names are the defaults.
SETTINGS: Final = ("reporting_currency", "shop_time_zone")

#: A mapping and its path.
Read = tuple[Path, mapping.Mapping]


@dataclass(frozen=True)
class Setting:
    """One setting of a mapping. `path` is where the mapping is, or was when it was last used."""

    source: str
    setting: str
    value: str
    path: str


def of_lake(con: duckdb.DuckDBPyConnection, snapshot: int | None = None) -> dict[str, str]:
    """The settings in the attached lake, as of a snapshot; none if the lake has no such table yet."""
    version = "" if snapshot is None else f" at (version => {snapshot})"
    try:
        found = con.execute(f"select setting, min(value) from lake.raw.shop{version} group by 1 order by 1").fetchall()
    except duckdb.CatalogException:
        return {}
    return {str(setting): str(value) for setting, value in found if setting in SETTINGS}


def mappings_at(path: str | Path) -> list[Read]:
    """Read the mappings at a path. Raises FinegrainError."""
    return [(each, read_mapping(each)) for each in mapping_files(path)]


@dataclass(frozen=True)
class Shop:
    """The shop as the next build will see it. `has_reporting_currency`: a mapping sets it; `currencies` are those with exchange rates."""

    reporting_currency: str
    shop_time_zone: str
    has_reporting_currency: bool
    currencies: tuple[str, ...]


def look(where: Settings, mappings: Sequence[Read]) -> Shop:
    """The shop settings after these mappings are used. Writes nothing. Raises FinegrainError as `check` does."""
    if lake.exists(where):
        with lake.connect(where, read_only=True) as con:
            given, known = check(con, mappings), _known(con)
    else:
        given, known = check(None, mappings), currencies()
    found = {each.setting: each.value for each in given}
    currency, zone = (found.get(name, str(variable(name))) for name in SETTINGS)
    return Shop(currency, zone, "reporting_currency" in found, tuple(known))


def record(
    con: duckdb.DuckDBPyConnection, where: Settings, mappings: Sequence[Read], now: datetime | None = None
) -> None:
    """Store the settings of these mappings in the lake, if they differ. Raises FinegrainError as `check` does."""
    rows = _rows(con)
    if _changes(check(con, mappings, rows), rows) is None:
        return
    before = of_lake(con)
    moment = now or datetime.now(UTC).replace(tzinfo=None)
    # Two processes that record at once would each miss the other's settings.
    with lake.exclusive(where, "shop"):
        lake.retry(lambda: _record(con, where, mappings, moment))
    after = of_lake(con)
    for name in SETTINGS:
        if before.get(name) != after.get(name):
            value = after.get(name, f"{variable(name)}, from dbt_project.yml")
            console.say(f"{name} is now {value}; the next build reprocesses everything")


def _record(con: duckdb.DuckDBPyConnection, where: Settings, mappings: Sequence[Read], now: datetime) -> None:
    with lake.writing(con, where):
        rows = _rows(con)
        changes = _changes(check(con, mappings, rows), rows)
        if changes is None:
            return
        removed, new = changes
        for each in removed:
            con.execute(
                f"delete from lake.raw.shop where source = {quote(each.source)} and setting = {quote(each.setting)} "
                f"and mapping = {quote(each.path)}"
            )
        if new:
            moment = timestamp_literal(now)
            values = ", ".join(
                f"({quote(each.source)}, {quote(each.setting)}, {quote(each.value)}, {quote(each.path)}, {moment})"
                for each in new
            )
            con.execute(f"insert into lake.raw.shop values {values}")


def forget(con: duckdb.DuckDBPyConnection, source: str) -> None:
    """Remove the settings of a source's mappings, in the open transaction."""
    con.execute(f"delete from lake.raw.shop where source = {quote(source)}")


def currencies(con: duckdb.DuckDBPyConnection | None = None) -> list[str]:
    """Currencies with exchange rates: the euro, the seed's and those of the attached lake."""
    with (PACKAGE / "seeds" / "fx_rates.csv").open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file), [])
    found = {"EUR", *(name.upper() for name in header[1:] if name in variable("fx_currencies", ()))}
    if con is not None:
        found |= {
            str(name) for (name,) in con.execute("select distinct currency from lake.raw.exchange_rates").fetchall()
        }
    return sorted(found)


def _text(path: Path) -> str:
    """A path as the lake stores it; one that is not valid UTF-8 is escaped."""
    text = str(path.resolve())
    return text if is_text(text) else shown(text)


def _settings(path: Path, read: mapping.Mapping) -> list[Setting]:
    values = {name: getattr(read, name) for name in SETTINGS}
    return [Setting(read.source, name, value, _text(path)) for name, value in values.items() if value is not None]


def _rows(con: duckdb.DuckDBPyConnection | None) -> list[Setting]:
    try:
        found = (
            con.execute("select source, setting, value, mapping from lake.raw.shop order by all").fetchall()
            if con
            else []
        )
    except duckdb.CatalogException:
        return []
    return [Setting(*map(str, row)) for row in found]


def _changes(wanted: list[Setting], rows: list[Setting]) -> tuple[list[Setting], list[Setting]] | None:
    """The rows to remove from the lake and those to add; None if there are none."""
    removed, new = [each for each in rows if each not in wanted], [each for each in wanted if each not in rows]
    return (removed, new) if removed or new else None


def check(
    con: duckdb.DuckDBPyConnection | None, mappings: Sequence[Read], rows: list[Setting] | None = None
) -> list[Setting]:
    """All shop settings, of these mappings and of those used before. The latter are read from their files as they are now, so that a value
    can be changed in all files and then be applied by loading one. Raises FinegrainError if a setting would have two values, or if there is
    no exchange rate for the reporting currency."""
    here = [setting for path, read in mappings for setting in _settings(path, read)]
    names = {_text(path): shown(path) for path, _ in mappings}
    sources = {read.source for _, read in mappings}
    before: dict[str, list[Setting]] = {}
    for row in _rows(con) if rows is None else rows:
        # If a file no longer exists and its source is among these mappings, the file was moved.
        if row.path not in names and (Path(row.path).exists() or row.source not in sources):
            before.setdefault(row.path, []).append(row)
    for path, rows in before.items():
        here += _now(path, rows)
    for name in SETTINGS:
        same = [each for each in here if each.setting == name]
        other = next((each for each in same if each.value != same[0].value), None)
        if other is not None:
            raise _two_values(same[0], other, names)
    known: list[str] = []
    for each in here:
        if each.setting == "reporting_currency" and each.path in names:
            known = known or _known(con)
            if each.value not in known:
                raise FinegrainError(unknown_currency(f"{names[each.path]}: reporting_currency", each.value, known))
    return here


def _known(con: duckdb.DuckDBPyConnection | None) -> list[str]:
    try:
        return currencies(con)
    except duckdb.CatalogException:
        return currencies()


def unknown_currency(where: str, value: str, known: Sequence[str]) -> str:
    """The error text for a reporting currency without exchange rates."""
    hint = nearest(value, known)
    return (
        f"{where}: there is no exchange rate for '{value}'{hint if 'did you mean' in hint else ''}; "
        "run `finegrain rates update` to load the rates of all currencies the ECB quotes"
    )


def _now(path: str, rows: list[Setting]) -> list[Setting]:
    """The current settings of a mapping used before; its stored settings if the file cannot be read."""
    if not Path(path).exists():
        return rows
    try:
        read = read_mapping(path)
    except FinegrainError:
        return rows
    return _settings(Path(path), read)


def _two_values(one: Setting, other: Setting, names: Mapping[str, str]) -> FinegrainError:
    fix = "use the same value in both, or remove it from one"
    if not Path(other.path).exists():
        fix = f"use the same value here or, if {other.source} is no longer part of the shop, run `finegrain unload {other.source}`"
    return FinegrainError(
        f"{names.get(one.path, shown(one.path))}: {one.setting} is {one.value} (source {one.source}), "
        f"but {other.value} in {names.get(other.path, shown(other.path))} "
        f"(source {other.source}); a shop has only one: {fix}"
    )
