"""Times as text: the table of docs/reference/times.md is true, any text is read like by an independent reader, clock
changes follow the zone's own rules, and `format` reads the rest, from the mapping to the lake."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import duckdb
import pytest
import yaml
from hypothesis import example, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from orchestration.config import settings
from orchestration.config.settings import PROJECT, Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.landing import is_plain_time, local_time_is_odd, macros, parse_time
from orchestration.ingest.load import load
from orchestration.lake import lake
from orchestration.mapping.mapping import read_mapping, strptime
from orchestration.quality.doctor import examine

PAGE = (PROJECT / "docs" / "reference" / "times.md").read_text("utf-8")
#: Rows of the page's table: text, zone, UTC time or None.
ACCEPTED = [
    (text, zone, None if moment == "no time" else datetime.fromisoformat(moment))
    for text, zone, moment in re.findall(r"^\| `([^`]*)`[^|]*\| ([\w/]+) \| ([\d :.-]+|no time) \|$", PAGE, re.M)
]


@cache
def _engine() -> duckdb.DuckDBPyConnection:
    con = duckdb.connect()
    con.execute("load icu; set timezone = 'America/New_York'")  # no result depends on it
    return con


def read(*pairs: tuple[str | None, str]) -> list[tuple[datetime | None, bool, bool | None]]:
    """The macros' results for texts, each in a zone: the time, whether it is odd, whether it is plain."""
    texts, zones = [text for text, _ in pairs], [zone for _, zone in pairs]
    sql = f"select {parse_time('x', 'z')}, {local_time_is_odd('x', 'z')}, {is_plain_time('x')}"
    return (
        _engine()
        .execute(f"{sql} from (select unnest($1::varchar[]) as x, unnest($2::varchar[]) as z, unnest($3) as i) order by i",
                 [texts, zones, list(range(len(pairs)))])
        .fetchall()
    )  # fmt: skip


# --- an independent reader ---------------------------------------------------------------------------------------

_ISO = re.compile(
    r"""(?P<y>\d{4})-(?P<m>\d\d)-(?P<d>\d\d)
    (?:[Tt ](?P<H>\d\d):(?P<M>\d\d)(?::(?P<S>\d\d)(?:[.,](?P<f>\d{1,9}))?)?(?P<zone>.*))?""",
    re.VERBOSE | re.ASCII | re.DOTALL,
)
_BASIC = re.compile(r"(\d{4})(\d\d)(\d\d)[Tt](\d\d)(\d\d)(\d\d)(.*)", re.ASCII | re.DOTALL)
_EPOCH = re.compile(r"(\d{9,17})(?:\.(\d+))?", re.ASCII)
_OFFSET = re.compile(r" *([+-])(\d\d)(?::?(\d\d))?", re.ASCII)
_ZONES = {name.lower(): name for name in available_timezones() if "/" in name}


def candidates(local: datetime, zone: str) -> list[datetime]:
    """The UTC times, in order, at which clocks in `zone` show `local`: none, one or two."""
    found = {
        (local - timedelta(minutes=minutes))
        for minutes in _offsets_near(local, zone)
        if (local - timedelta(minutes=minutes)).replace(tzinfo=UTC).astimezone(ZoneInfo(zone)).replace(tzinfo=None) == local
    }  # fmt: skip
    return sorted(found)


def _offsets_near(local: datetime, zone: str) -> list[float]:
    """The offsets from UTC, in minutes, that `zone` has within two days of a local time, the earlier first."""
    start = local.replace(tzinfo=UTC) - timedelta(days=2)
    offsets = [(start + timedelta(hours=h)).astimezone(ZoneInfo(zone)).utcoffset() for h in range(97)]
    return list(dict.fromkeys(each.total_seconds() / 60 for each in offsets if each is not None))


def expected_in(local: datetime, zone: str) -> tuple[datetime, bool]:
    """The UTC time of a local time, and whether it occurs twice or never."""
    moments = candidates(local, zone)
    if moments:
        return moments[0], len(moments) == 2
    return local - timedelta(
        minutes=_offsets_near(local, zone)[0]
    ), True  # it is moved by the gap: the previous offset applies


def expected(text: str, zone: str) -> datetime | None:
    """The UTC time of a text by the rules of the page, in plain Python."""
    try:
        moment = _expected(text, zone)
    except (ValueError, OverflowError):
        return None
    return moment if moment is not None and 1990 <= moment.year <= 2100 else None


def _expected(text: str, zone: str) -> datetime | None:
    if found := _EPOCH.fullmatch(text):
        whole, fraction = found[1], found[2] or ""
        places = 6 if len(whole) <= 11 else 3 if len(whole) <= 14 else 0
        return datetime(1970, 1, 1) + timedelta(microseconds=int(whole + fraction[:places].ljust(places, "0")))
    if found := _BASIC.fullmatch(text):
        text = "{}-{}-{}T{}:{}:{}{}".format(*found.groups())
    found = _ISO.fullmatch(text)
    if not found:
        return None
    y, m, d, hour, minute, second = (int(found[part] or 0) for part in "ymdHMS")
    local = datetime(y, m, d, hour, minute, second, int((found["f"] or "")[:6].ljust(6, "0")))
    rest = found["zone"] or ""
    if not rest:
        return local if zone == "UTC" else expected_in(local, zone)[0]
    if rest.strip(" ").upper() in ("Z", "UTC", "GMT") and rest.isascii():
        return local if rest.rstrip(" ") == rest else None
    if offset := _OFFSET.fullmatch(rest):
        minutes = int(offset[2]) * 60 + int(offset[3] or 0)
        if minutes > 14 * 60 or int(offset[3] or 0) > 59:
            return None
        return local - timedelta(minutes=minutes if offset[1] == "+" else -minutes)
    place = rest.lstrip(" ")
    if rest != place and place.lower() in _ZONES:
        return expected_in(local, _ZONES[place.lower()])[0]
    return None


# --- the page ----------------------------------------------------------------------------------------------------


def test_the_table_of_the_page_is_complete() -> None:
    assert len(ACCEPTED) == sum(line.startswith("| `") for line in PAGE.splitlines()) > 40


@pytest.mark.parametrize(("text", "zone", "moment"), ACCEPTED)
def test_the_table_of_the_page_is_true(text: str, zone: str, moment: datetime | None) -> None:
    [(found, _, _)] = read((text, zone))
    assert found == moment
    assert expected(text, zone) == moment


# --- any text ----------------------------------------------------------------------------------------------------

_days = st.one_of(
    st.dates(datetime(1985, 1, 1).date(), datetime(2105, 1, 1).date()).map(str),
    st.from_regex(r"[0-9]{4}[-/.]?[0-9]{1,2}[-/.]?[0-9]{1,2}", fullmatch=True),
    st.sampled_from(["1989-12-31", "1990-01-01", "2100-12-31", "2101-01-01", "0000-01-01", "9999-12-31", "2024-02-30"]),
)
_clocks = st.one_of(
    st.times().map(str),
    st.from_regex(r"[0-9]{1,2}:?[0-9]{2}(:?[0-9]{2}([.,][0-9]{0,10})?)?", fullmatch=True),
    st.sampled_from(["24:00:00", "23:59:60", "00:00", "101500", "8:26"]),
)
_zones_in_text = st.one_of(
    st.sampled_from(["", "Z", "z", " UTC", " GMT", "UTC", " utc", " CET", " Europe/Berlin", " Etc/GMT+5", " europe/berlin", " A/B", "Europe/Berlin"]),
    st.from_regex(r"[ ]{0,2}[+-][0-9]{1,2}(:?[0-9]{0,2})", fullmatch=True),
)  # fmt: skip
_likely = st.builds(
    lambda day, between, clock, zone: day + between + clock + zone,
    _days, st.sampled_from(["T", "t", " ", "", "  ", "\t", "_"]), _clocks, _zones_in_text,
)  # fmt: skip
_texts = st.one_of(
    _likely,
    _days,
    st.from_regex(r"[+-]?[0-9]{1,20}([.][0-9]{0,12})?(e[0-9]{1,2})?", fullmatch=True),
    st.from_regex(r"[0-9]{1,4}[/.-][0-9]{1,2}[/.-][0-9]{1,4}( [0-9]{1,2}:[0-9]{2})?", fullmatch=True),
    st.sampled_from(["infinity", "-infinity", "now", "today", "epoch", "NaN", "", " ", "Infinity", "0044-03-15 (BC)"]),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40),
    _likely.flatmap(lambda text: st.sampled_from([f" {text}", f"{text} ", f"{text}\n", text.replace("0", "٠")])),
)
_in_zones = st.sampled_from(["UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns"])


@examples(max_examples=60)
@given(st.lists(st.tuples(_texts, _in_zones), min_size=30, max_size=60))
@example(
    [("2024-10-27 02:30 Europe/Berlin", "UTC"), ("2024-01-01 00:00:00+14:30", "UTC"), ("9999-12-31", "Europe/Berlin")]
)
@example([("99999999999999999", "UTC"), ("99999999999.9999999", "UTC"), ("0000-01-01T00:00:00-14:00", "Europe/Berlin")])
def test_any_text_is_read_as_another_reader_reads_it(pairs: list[tuple[str, str]]) -> None:
    for pair, (moment, _, plain) in zip(pairs, read(*pairs), strict=True):
        assert moment == expected(*pair), pair
        assert not plain or moment is not None, pair


def test_most_times_are_plain() -> None:
    plain = ["2024-02-29T23:59:59.123456Z", "2024-12-31 10:00:00", "2024-04-30T10:00:00+02:00", "2024-03-31T00:00:00Z"]
    assert [row[2] for row in read(*((text, "UTC") for text in plain))] == [False, True, True, True]
    assert [row[2] for row in read(("12/1/10 8:26", "UTC"), ("infinity", "UTC"), ("2024-04-31 00:00:00", "UTC"))] == [
        False
    ] * 3
    assert read((None, "UTC")) == [(None, False, None)]


def test_every_zone_of_the_engine_is_read_in_a_text() -> None:
    names = [name for (name,) in _engine().execute("select name from pg_timezone_names()").fetchall()]
    found = read(*((f"2024-07-01 12:00:00 {name}", "UTC") for name in names))
    for name, (moment, _, _) in zip(names, found, strict=True):
        if name in available_timezones() and "/" in name and re.fullmatch(r"[A-Za-z_]+(/[\w+-]+)+", name):
            assert moment == datetime(2024, 7, 1, 12, tzinfo=ZoneInfo(name)).astimezone(UTC).replace(tzinfo=None), name


# --- clock changes -----------------------------------------------------------------------------------------------


def transitions(zone: str) -> Iterator[datetime]:
    """The local times, before and after, of each change of the clocks from 1990 to 2037."""
    moment, end = datetime(1990, 1, 1, tzinfo=UTC), datetime(2037, 12, 31, tzinfo=UTC)
    at = moment.astimezone(ZoneInfo(zone)).utcoffset()
    while moment < end:
        moment += timedelta(hours=6)
        now = moment.astimezone(ZoneInfo(zone)).utcoffset()
        if now != at:
            yield moment.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
            at = now


@pytest.mark.parametrize(
    "zone",
    ["Australia/Lord_Howe", "Europe/Berlin", "America/New_York", "America/St_Johns", "Pacific/Apia", "Africa/Casablanca"],
)  # fmt: skip
def test_clock_changes_follow_the_rules_of_the_zone(zone: str) -> None:
    step, around = timedelta(minutes=15), timedelta(hours=32 if zone == "Pacific/Apia" else 10)
    locals_ = set()
    for change in transitions(zone):
        first = change.replace(minute=0, second=0, microsecond=0) - around
        locals_ |= {first + step * n for n in range(2 * int(around / step))}
    ordered = sorted(locals_)
    assert len(ordered) > 500
    odd = 0
    for local, (moment, is_odd, _) in zip(ordered, read(*((str(each), zone) for each in ordered)), strict=True):
        assert (moment, is_odd) == expected_in(local, zone), local
        odd += is_odd
    assert odd > 10


def test_a_zone_in_the_text_has_odd_times_of_its_own() -> None:
    texts = [
        "2024-10-27 02:30:00 Europe/Berlin",
        "2024-10-27 02:30:00Z",
        "2024-10-27T02:30:00+02:00",
        "1709287200",
        "soon",
    ]
    assert [row[1] for row in read(*((text, zone) for zone in ("UTC", "Europe/Berlin") for text in texts))] == [
        True, False, False, False, False,
    ] * 2  # fmt: skip


def test_years_are_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dbt_project.yml").write_text("name: finegrain\nvars: {earliest_year: 1960, latest_year: 2020}")
    (tmp_path / "macros").symlink_to(PROJECT / "macros")
    monkeypatch.setattr(settings, "PACKAGE", tmp_path)
    monkeypatch.setattr("orchestration.config.project.PROJECT", tmp_path)
    macros.cache_clear()
    try:
        texts = [
            "1960-01-01 00:00:00",
            "1959-12-31 23:59:59",
            "2020-12-31 23:59:59",
            "2021-01-01",
            "1577836800",
            "1609459200",
        ]
        found = [row[0] is not None for row in read(*((text, "UTC") for text in texts))]
    finally:
        macros.cache_clear()
    assert found == [True, False, True, False, True, False]


# --- format ------------------------------------------------------------------------------------------------------

_FORMATS = [
    "%d/%m/%Y %H:%M", "%m/%d/%y %I:%M %p", "%d.%m.%Y", "%Y%m%d%H%M%S", "%d %B %Y %H:%M:%S.%f", "%b %d, %Y %I:%M:%S %p",
    "%a %b %d %H:%M:%S %z %Y", "%d/%b/%Y:%H:%M:%S %z", "%Y-%m-%d %H:%M %z", "%j/%Y %H:%M", "100%% %Y/%m/%d", "%-d.%-m.%y",
]  # fmt: skip


@examples(max_examples=20)
@given(
    st.lists(st.datetimes(datetime(1990, 1, 2), datetime(2060, 12, 30)), min_size=1, max_size=20), st.integers(-56, 56)
)
def test_formats_read_what_python_reads(moments: list[datetime], quarters: int) -> None:
    offset = timedelta(minutes=15 * quarters)
    for format in _FORMATS:
        texts = [moment.replace(tzinfo=UTC).astimezone(_fixed(offset)).strftime(format) for moment in moments]
        python = [datetime.strptime(text, format.replace("%-", "%")) for text in texts]
        whole = [each.astimezone(UTC).replace(tzinfo=None) if each.tzinfo else each for each in python]
        found = _engine().execute(f"select {strptime('x', format)} from (select unnest($1) as x)", [texts]).fetchall()
        assert [row[0] for row in found] == whole, (format, texts)


def _fixed(offset: timedelta) -> Any:
    from datetime import timezone

    return timezone(offset)


@pytest.mark.parametrize(
    "text", ["2024-01-01 00:00 +2500", "2024-01-01 00:00 +1430", "2024-01-01 00:00 +02:60", "2024-01-01 00:00 Z"]
)
def test_a_format_refuses_an_invalid_offset(text: str) -> None:
    assert _engine().execute(f"select {strptime('$1', '%Y-%m-%d %H:%M %z')}", [text]).fetchall() == [(None,)]


def mapped(
    folder: Path, at: Any, *lines: str, zone: str = "America/New_York", header: str = "at,u", **entry: Any
) -> Path:
    """The mapping M of purchases in d.csv, whose time is `at`."""
    (folder / "d.csv").write_text("\n".join([header, *lines]) + "\n")
    fields = {"event_type": {"value": "purchase"}, "event_at": at, "user_id": "u"}
    table = {"files": str(folder / "d.csv"), "available_at": "event_time", "fields": fields, **entry}
    (folder / "m.yml").write_text(yaml.safe_dump({"source": "c", "time_zone": zone, "tables": {"events": table}}))
    return folder / "m.yml"


def landed(home: Settings, sql: str) -> list[tuple[Any, ...]]:
    con = lake.connect(home, read_only=True)
    try:
        return con.execute(sql).fetchall()
    finally:
        con.close()


def test_a_declared_format_goes_into_the_lake(home: Settings, tmp_path: Path) -> None:
    at = {"column": "at", "format": ["%m/%d/%y %H:%M", "%d %B %Y %I:%M %p"]}
    lines = [
        "12/1/10 8:26",
        " 1 December 2010 8:26 AM ",
        "2010-12-01T13:26:00Z",
        "1291209960",
        "12/1/2010 8:26",
        "13/1/10 8:26",
        "infinity",
        "",
    ]
    load(mapped(tmp_path, at, *(f"{line},u" for line in lines), zone="America/New_York"))
    found = landed(
        home,
        f"select event_at, {parse_time('trim(event_at)', '_time_zone')}, available_at from lake.raw.events order by _position",
    )
    iso, moment = "2010-12-01T08:26:00.000000", datetime(2010, 12, 1, 13, 26)  # New York is five hours behind in winter
    assert [row[0] for row in found] == [iso, iso, *lines[2:7], None]
    assert [row[1] for row in found] == [moment] * 4 + [None] * 4
    assert [row[2] for row in found[:4]] == [moment] * 4


def test_a_format_with_an_offset_wins_over_the_zone(home: Settings, tmp_path: Path) -> None:
    at = {"sql": "'on ' || \"at\"", "format": "on %d.%m.%Y %H:%M %z"}
    load(mapped(tmp_path, at, "01.12.2010 08:26 +0100,u"))
    assert landed(home, "select event_at, available_at from lake.raw.events") == [
        ("2010-12-01T07:26:00.000000Z", datetime(2010, 12, 1, 7, 26))
    ]


def test_a_format_of_the_arrival(home: Settings, tmp_path: Path) -> None:
    arrival = {"column": "got", "format": "%Y%m%d"}
    lines = ["2010-12-01,u,20101203", "2010-12-01,u,20101303"]
    before = datetime.now(UTC).replace(tzinfo=None)
    load(mapped(tmp_path, "at", *lines, header="at,u,got", zone="Europe/Berlin", available_at=arrival))
    first, second = landed(home, "select available_at from lake.raw.events order by _position")
    assert first == (datetime(2010, 12, 2, 23),) and second[0] >= before


def test_a_format_of_the_arrival_of_ga4(home: Settings, tmp_path: Path) -> None:
    duckdb.connect().execute(
        f"copy (select 'login' as event_name, '1291209960000000' as event_timestamp, '1.12.2010' as got) to '{tmp_path}/g.parquet'"
    )
    entry = {"files": str(tmp_path / "g.parquet"), "available_at": {"column": "got", "format": "%d.%m.%Y"}}
    (tmp_path / "m.yml").write_text(yaml.safe_dump({"source": "c", "tables": {"ga4_events": entry}}))
    load(tmp_path / "m.yml")
    assert landed(home, "select available_at from lake.raw.ga4_events") == [(datetime(2010, 12, 1),)]


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("%d/%Q/%Y", "'%d/%Q/%Y' is not a time format: Unrecognized format for strftime/strptime: %Q"),
        ("%H:%M", "'%H:%M' does not give a whole date; a time needs year, month and day, as in %d/%m/%Y"),
        ("%m/%Y", "'%m/%Y' does not give a whole date; a time needs year, month and day, as in %d/%m/%Y"),
        ("%d/%m/%Y %I:%M", "'%d/%m/%Y %I:%M' does not say which half of the day %I is in; add %p"),
        ("%d/%m/%Y %Z", "'%d/%m/%Y %Z': %Z reads abbreviations that mean several zones"),
        (["%d/%m/%Y", "100%"], "'100%' is not a time format: Trailing format character %"),
        ([], "write how times are spelled"),
        (5, "write how times are spelled"),
    ],
)
def test_a_format_is_checked_as_the_mapping_is_read(tmp_path: Path, format: Any, said: str) -> None:
    for path in (
        mapped(tmp_path, {"column": "at", "format": format}),
        mapped(tmp_path, "at", available_at={"column": "at", "format": format}),
    ):
        with pytest.raises(FinegrainError) as caught:
            read_mapping(path)
        assert said in str(caught.value) and str(caught.value).startswith(f"{path}: tables.events.")


def test_only_text_of_times_has_a_format(home: Settings, tmp_path: Path) -> None:
    path = mapped(
        tmp_path,
        "at",
        fields={"event_type": {"value": "login"}, "event_at": "at", "user_id": {"column": "u", "format": "%Y%m%d"}},
    )
    with pytest.raises(FinegrainError, match=r"fields.user_id.format: user_id is not a time; leave format out"):
        read_mapping(path)
    with pytest.raises(FinegrainError, match="format goes with column or sql"):
        read_mapping(mapped(tmp_path, {"value": "2024", "format": "%Y%m%d"}))
    for kind in ("date", "timestamp", "timestamptz"):
        duckdb.connect().execute(f"copy (select null::{kind} as at, 'u' as u, 20240301 as n) to '{tmp_path}/d.parquet'")
        with pytest.raises(
            FinegrainError, match=r"event_at: its values are .* already, so there is no text to read; leave format out"
        ):
            load(mapped(tmp_path, {"column": "at", "format": "%Y%m%d"}, files=str(tmp_path / "d.parquet")))
    load(mapped(tmp_path, {"column": "n", "format": "%Y%m%d"}, files=str(tmp_path / "d.parquet")))
    assert landed(home, "select event_at from lake.raw.events") == [("2024-03-01T00:00:00.000000",)]


# --- what the doctor suggests ------------------------------------------------------------------------------------


def about_times(home: Settings, mapping: Path) -> list[str]:
    [seen] = examine(mapping, where=home, now=datetime(2024, 6, 1)).entries
    return [finding.message for finding in seen.findings if "time" in finding.message and finding.level != "note"]


@pytest.mark.parametrize(
    ("texts", "format"),
    [
        (["12/1/10 8:26", "12/13/10 9:00"], "'%m/%d/%y %H:%M'"),
        (["13/1/2010 8:26"], "'%d/%m/%Y %H:%M'"),
        (["202403021015"], "'%Y%m%d%H%M'"),
        (["2024/03/02"], "'%Y/%m/%d'"),
        (["20240302"], "'%Y%m%d'"),
        (["02.03.2024 10:15:00"] * 2 + ["31.01.2024"], "['%d.%m.%Y', '%d.%m.%Y %H:%M:%S']"),
        (["Wed Aug 27 13:08:45 +0000 2008"], "'%a %b %d %H:%M:%S %z %Y'"),
        (["1 March 2024"], "'%d %B %Y'"),
    ],
)
@pytest.mark.parametrize("again", [1, 30])  # of many the loader refuses the file
def test_the_doctor_suggests_a_format(
    home: Settings, tmp_path: Path, texts: list[str], format: str, again: int
) -> None:
    lines = [f"{text},u" for text in texts] * again
    [said] = about_times(home, mapped(tmp_path, "at", *lines))
    assert said.endswith(f"; write {{column: at, format: {format}}}"), said
    formats = yaml.safe_load(said.rpartition("format: ")[2].removesuffix("}"))
    assert about_times(home, mapped(tmp_path, {"column": "at", "format": formats}, *lines)) == []


def test_the_doctor_reports_that_day_and_month_are_ambiguous(home: Settings, tmp_path: Path) -> None:
    [said] = about_times(home, mapped(tmp_path, "at", "12/1/10 8:26,u", "11/12/10 8:30,u"))
    assert "'%d/%m/%y %H:%M' and '%m/%d/%y %H:%M' fit all of them alike, so it is not clear which is meant" in said


def test_the_doctor_suggests_nothing_without_evidence(home: Settings, tmp_path: Path) -> None:
    [said] = about_times(home, mapped(tmp_path, "at", "soon,u", "later,u", "13/1/10 8:26,u"))
    assert "format" not in said
    [said] = about_times(home, mapped(tmp_path, "at", "9999-12-31,u", "2024-01-01,u"))
    assert (
        said
        == "1 of 2 rows (50.0 %) have a value that is not a time: '9999-12-31' (years outside 1990..2100 are not valid)"
    )


def test_the_doctor_suggests_a_format_of_the_arrival(home: Settings, tmp_path: Path) -> None:
    lines = ["2010-12-01,u,20101203", "2010-12-02,u,20101204"]
    [said] = about_times(home, mapped(tmp_path, "at", *lines, header="at,u,got", available_at={"column": "got"}))
    assert "'20101203', '20101204'; write {column: got, format: '%Y%m%d'}" in said
