"""What is true of the whole shop and not of one source: the currency that money is reported in, and the time zone of its days.

A mapping says so with `reporting_currency` and `shop_time_zone`. The lake keeps what each mapping said last (`raw.shop`), and models
read it there (macros/shop.sql). Where no mapping says anything, the vars of dbt_project.yml count.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import duckdb

from orchestration.config.settings import PROJECT, Settings, is_text, variable
from orchestration.errors import FinegrainError, console
from orchestration.errors.console import shown
from orchestration.lake import lake
from orchestration.mapping import mapping
from orchestration.mapping.mapping import mapping_files, nearest, read_mapping
from orchestration.sql.text import quote, timestamp_literal

#: The keys of a mapping that are the shop's; vars of the same names are the defaults.
SETTINGS: Final = ("reporting_currency", "shop_time_zone")

#: A mapping and where it is.
Read = tuple[Path, mapping.Mapping]


@dataclass(frozen=True)
class Said:
    """What a mapping says. `path` is where it is, or was when it was last used."""

    source: str
    setting: str
    value: str
    path: str


def of_lake(con: duckdb.DuckDBPyConnection, snapshot: int | None = None) -> dict[str, str]:
    """The settings that the attached lake holds, as of a snapshot; of a lake that has no such table yet, none."""
    version = "" if snapshot is None else f" at (version => {snapshot})"
    try:
        found = con.execute(f"select setting, min(value) from lake.raw.shop{version} group by 1 order by 1").fetchall()
    except duckdb.CatalogException:
        return {}
    return {str(setting): str(value) for setting, value in found if setting in SETTINGS}


def mappings_at(path: str | Path) -> list[Read]:
    """The mappings that a path names, read. Raises FinegrainError."""
    return [(each, read_mapping(each)) for each in mapping_files(path)]


@dataclass(frozen=True)
class Shop:
    """The shop as the next build will see it. `is_said`: a mapping says the reporting currency; `currencies` are those with rates."""

    reporting_currency: str
    shop_time_zone: str
    is_said: bool
    currencies: tuple[str, ...]


def look(where: Settings, mappings: Sequence[Read]) -> Shop:
    """The shop once these mappings have been used. Makes nothing. Raises FinegrainError as `check` does."""
    if lake.exists(where):
        with lake.connect(where, read_only=True) as con:
            said, known = check(con, mappings), _known(con)
    else:
        said, known = check(None, mappings), currencies()
    found = {each.setting: each.value for each in said}
    currency, zone = (found.get(name, str(variable(name))) for name in SETTINGS)
    return Shop(currency, zone, "reporting_currency" in found, tuple(known))


def record(
    con: duckdb.DuckDBPyConnection, where: Settings, mappings: Sequence[Read], now: datetime | None = None
) -> None:
    """Let the lake hold what these mappings say, if it does not yet. Raises FinegrainError as `check` does."""
    if _changes(check(con, mappings), _rows(con)) is None:
        return
    before = of_lake(con)
    moment = now or datetime.now(UTC).replace(tzinfo=None)
    # Two that record at once would each miss what the other says.
    with lake.alone(where, "shop"):
        lake.retry(lambda: _record(con, where, mappings, moment))
    after = of_lake(con)
    for name in SETTINGS:
        if before.get(name) != after.get(name):
            value = after.get(name, f"{variable(name)}, as dbt_project.yml says")
            console.say(f"{name} is now {value}; the next build converts everything again")


def _record(con: duckdb.DuckDBPyConnection, where: Settings, mappings: Sequence[Read], now: datetime) -> None:
    with lake.writing(con, where):
        changes = _changes(check(con, mappings), _rows(con))
        if changes is None:
            return
        gone, new = changes
        for each in gone:
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
    """Take back what mappings of a source said, in the transaction that is open."""
    con.execute(f"delete from lake.raw.shop where source = {quote(source)}")


def currencies(con: duckdb.DuckDBPyConnection | None = None) -> list[str]:
    """The currencies of which there are rates: the euro, the seed's and those of the attached lake."""
    with (PROJECT / "seeds" / "fx_rates.csv").open(encoding="utf-8", newline="") as file:
        header = next(csv.reader(file), [])
    found = {"EUR", *(name.upper() for name in header[1:] if name in variable("fx_currencies", ()))}
    if con is not None:
        found |= {
            str(name) for (name,) in con.execute("select distinct currency from lake.raw.exchange_rates").fetchall()
        }
    return sorted(found)


def _text(path: Path) -> str:
    """A path as the lake keeps it: text, which not every path is."""
    text = str(path.resolve())
    return text if is_text(text) else shown(text)


def _said(path: Path, read: mapping.Mapping) -> list[Said]:
    values = {name: getattr(read, name) for name in SETTINGS}
    return [Said(read.source, name, value, _text(path)) for name, value in values.items() if value is not None]


def _rows(con: duckdb.DuckDBPyConnection | None) -> list[Said]:
    try:
        found = (
            con.execute("select source, setting, value, mapping from lake.raw.shop order by all").fetchall()
            if con
            else []
        )
    except duckdb.CatalogException:
        return []
    return [Said(*map(str, row)) for row in found]


def _changes(wanted: list[Said], rows: list[Said]) -> tuple[list[Said], list[Said]] | None:
    """What is to go from the lake and what is to come; None where it holds just that."""
    gone, new = [each for each in rows if each not in wanted], [each for each in wanted if each not in rows]
    return (gone, new) if gone or new else None


def check(con: duckdb.DuckDBPyConnection | None, mappings: Sequence[Read]) -> list[Said]:
    """All that is said of the shop, by these mappings and by those that were used before. Of the latter it counts what their files say
    now, so that a value can be changed in all files and then be brought in by one. Raises FinegrainError if the shop would have two
    values of one setting, or a currency that nothing converts to."""
    here = [said for path, read in mappings for said in _said(path, read)]
    names = {_text(path): shown(path) for path, _ in mappings}
    sources = {read.source for _, read in mappings}
    before: dict[str, list[Said]] = {}
    for row in _rows(con):
        # A file that is no longer there was moved, if its source is among these.
        if row.path not in names and (Path(row.path).exists() or row.source not in sources):
            before.setdefault(row.path, []).append(row)
    for path, rows in before.items():
        here += _now(path, rows)
    for setting in SETTINGS:
        all_said = [said for said in here if said.setting == setting]
        other = next((said for said in all_said if said.value != all_said[0].value), None)
        if other is not None:
            raise _two_values(all_said[0], other, names)
    known: list[str] = []
    for said in here:
        if said.setting == "reporting_currency" and said.path in names:
            known = known or _known(con)
            if said.value not in known:
                raise FinegrainError(unknown_currency(f"{names[said.path]}: reporting_currency", said.value, known))
    return here


def _known(con: duckdb.DuckDBPyConnection | None) -> list[str]:
    try:
        return currencies(con)
    except duckdb.CatalogException:
        return currencies()


def unknown_currency(where: str, value: str, known: Sequence[str]) -> str:
    """What is wrong with a reporting currency without rates, and what to do."""
    hint = nearest(value, known)
    return (
        f"{where}: there is no exchange rate of '{value}'{hint if 'did you mean' in hint else ''}; "
        "`finegrain rates update` brings in those of all currencies that the ECB quotes"
    )


def _now(path: str, rows: list[Said]) -> list[Said]:
    """What a mapping that was used before says now; what it said, where that cannot be read."""
    if not Path(path).exists():
        return rows
    try:
        read = read_mapping(path)
    except FinegrainError:
        return rows
    return _said(Path(path), read)


def _two_values(one: Said, other: Said, names: Mapping[str, str]) -> FinegrainError:
    mend = "write the same in both, or leave it out of one"
    if not Path(other.path).exists():
        mend = f"write the same here or, if {other.source} is no longer part of the shop, run `finegrain unload {other.source}`"
    return FinegrainError(
        f"{names.get(one.path, shown(one.path))}: {one.setting} is {one.value} (source {one.source}), "
        f"but {other.value} in {names.get(other.path, shown(other.path))} "
        f"(source {other.source}); a shop has one: {mend}"
    )
