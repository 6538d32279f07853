"""`finegrain rates update`: load the reference rates of the European Central Bank into the lake (`raw.exchange_rates`).

All of the ECB's files can be read: the history and the daily rates, as CSV (also zipped) and as XML. Unchanged rates do not land again; a
changed rate does, and the newest one counts.
"""

from __future__ import annotations

import io
import re
import time
import urllib.error
import urllib.request
import xml.etree.ElementTree as ElementTree
import zipfile
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import duckdb

from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError, Unavailable, keep_secrets_of
from orchestration.errors.console import shown
from orchestration.lake import lake
from orchestration.lake.locks import scratch
from orchestration.sql.text import quote, timestamp_literal

#: The file with all rates since 1999.
ADDRESS: Final = "https://www.ecb.europa.eu/stats/eurofxref/eurofxref-hist.zip"
#: Largest file in bytes, also after unpacking; the history had 7 million in 2025.
LARGEST: Final = 100 * 2**20
#: Timeout in seconds.
PATIENCE: Final = 60.0
#: Texts that mean there is no rate.
NONE: Final = ("", "N/A", "-")
#: The range of valid rates; all of them fit a decimal(18, 8).
LOWEST: Final = "0.00000001"
HIGHEST: Final = "9999999999"


@dataclass(frozen=True)
class RatesReport:
    """The result of an update. `new` and `changed` rates landed, `unchanged` ones did not; `newest` is the last day with a rate. `snapshot` is the
    lake's newest after it; `seconds` is wall time."""

    origin: str
    currencies: int
    days: int
    new: int
    changed: int
    unchanged: int
    newest: str
    snapshot: int
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def update(origin: str | None = None, *, where: Settings | None = None, now: datetime | None = None) -> RatesReport:
    """Land new and changed rates of a file or URL (default: the ECB's). `now` is naive UTC. Raises FinegrainError; nothing has landed then."""
    where = where or settings()
    started = time.monotonic()
    origin = origin or ADDRESS
    now = now or datetime.now(UTC).replace(tzinfo=None)
    is_address = re.match("https?://", origin) is not None
    body = _download(origin) if is_address else _read(origin)
    name = shown(re.sub(r"[?#].*", "", origin).rsplit("/", 1)[-1]) if is_address else shown(Path(origin).name)
    # Two updates at once would land the same rates twice.
    with (
        lake.exclusive(where, "rates"),
        scratch(where.home / "spill") as folder,
        closing(lake.connect(where)) as con,
    ):
        _stage(con, body, shown(origin), folder, now)
        with lake.reading(where):
            _compare(con)
        [(new, changed, unchanged)] = con.execute(
            "select count(*) filter (former is null), count(*) filter (former is not null and former <> per_euro), "
            "count(*) filter (former = per_euro) from __rates"
        ).fetchall()
        if new or changed:
            lake.retry(lambda: _land(con, where, name, now))
        [(currencies, days, newest)] = con.execute(
            "select count(distinct currency), count(distinct rate_date), max(rate_date) from __rates"
        ).fetchall()
        [(snapshot,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
    seconds = time.monotonic() - started
    return RatesReport(shown(origin), currencies, days, new, changed, unchanged, str(newest), int(snapshot), seconds)


def _read(origin: str) -> bytes:
    path = Path(origin)
    try:
        if path.stat().st_size > LARGEST:
            raise FinegrainError(f"{shown(origin)}: this is larger than any file of the ECB's rates{_HINT}")
        return path.read_bytes()
    except OSError as error:
        raise FinegrainError(f"{shown(origin)}: the rates cannot be read: {error.strerror}") from None


#: The end of error texts: which files are accepted.
_HINT: Final = "; give eurofxref-hist.csv, .xml or .zip, as the ECB publishes them"


def _by_hand(origin: str) -> str:
    what = ADDRESS if origin == ADDRESS else "the file"
    return (
        f"download {what} on a machine with network access, and run: finegrain rates update --from eurofxref-hist.zip"
    )


def _download(origin: str) -> bytes:
    keep_secrets_of(origin)
    try:
        request = urllib.request.Request(origin, headers={"User-Agent": "finegrain"})
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            body: bytes = answer.read(LARGEST + 1)
    except urllib.error.HTTPError as error:
        kind = Unavailable if error.code in (408, 429) or error.code >= 500 else FinegrainError
        raise kind(f"{shown(origin)} answers {error.code} {error.reason}; {_by_hand(origin)}") from None
    except (OSError, ValueError, urllib.error.URLError) as error:
        said = getattr(error, "reason", error)
        said = getattr(said, "strerror", None) or said
        raise Unavailable(f"{shown(origin)} cannot be reached: {shown(said)}; {_by_hand(origin)}") from None
    except Exception as error:  # a server that does not speak HTTP
        raise Unavailable(
            f"{shown(origin)} sent an answer that cannot be read: {shown(error)}; {_by_hand(origin)}"
        ) from None
    if len(body) > LARGEST:
        raise FinegrainError(f"{shown(origin)}: this is larger than any file of the ECB's rates{_HINT}")
    return body


def _stage(con: duckdb.DuckDBPyConnection, body: bytes, origin: str, folder: Path, now: datetime) -> None:
    """Fill `__given` with the rates of a file as text, and `__rates` with their parsed values."""
    if zipfile.is_zipfile(io.BytesIO(body)):
        body = _unpack(body, origin)
    if body.lstrip(b"\xef\xbb\xbf \r\n\t").startswith(b"<"):
        _stage_xml(con, body, origin, folder)
    else:
        _stage_csv(con, body, origin, folder)
    con.execute(
        "create or replace temp table __read as select distinct day, rate, currency, "
        # The day's file writes 28 November 2025.
        "coalesce(try_cast(day as date), cast(try_strptime(day, '%d %B %Y') as date)) as rate_date, "
        "try_cast(rate as decimal(18, 8)) as per_euro "
        f"from __given where currency <> 'EUR' and rate is not null and rate not in ({', '.join(map(quote, NONE))})"
    )
    for wrong, said in (
        ("rate_date is null or rate_date < date '1999-01-01'", "there is no day '{day}'"),
        (f"rate_date > date '{(now + timedelta(days=1)).date()}'", "a rate of {day}, which is still to come"),
        (
            f"per_euro is null or not per_euro between {LOWEST} and {HIGHEST}",
            "the rate of {currency} of {day} is '{rate}', which is not a number above zero",
        ),
    ):
        found = con.execute(f"select day, currency, rate from __read where {wrong} order by all limit 1").fetchall()
        if found:
            day, currency, rate = found[0]
            raise FinegrainError(f"{origin}: {said.format(day=shown(day), currency=currency, rate=shown(rate))}{_HINT}")
    found = con.execute(
        "select currency, rate_date from __read group by all having count(distinct per_euro) > 1 order by all limit 1"
    ).fetchall()
    if found:
        raise FinegrainError(f"{origin}: there are two rates of {found[0][0]} of {found[0][1]}{_HINT}")
    con.execute("create or replace temp table __rates as select distinct rate_date, currency, per_euro from __read")
    if not con.execute("select 1 from __rates limit 1").fetchall():
        raise FinegrainError(f"{origin}: there is no rate in it{_HINT}")


def _unpack(body: bytes, origin: str) -> bytes:
    try:
        with zipfile.ZipFile(io.BytesIO(body)) as archive:
            members = [each for each in archive.infolist() if each.filename.lower().endswith((".csv", ".xml"))]
            if len(members) != 1:
                raise FinegrainError(f"{origin}: this holds {len(members) or 'no'} CSV or XML files, not one{_HINT}")
            with archive.open(members[0]) as file:
                found = file.read(LARGEST + 1)
    except FinegrainError:
        raise
    except (
        Exception
    ) as error:  # of zipfile, zlib and others: a file that was cut, is encrypted, or packed in another way
        raise FinegrainError(f"{origin}: this cannot be unpacked: {shown(error)}{_HINT}") from None
    if len(found) > LARGEST:
        raise FinegrainError(f"{origin}: this is larger than any file of the ECB's rates{_HINT}")
    return found


def _stage_csv(con: duckdb.DuckDBPyConnection, body: bytes, origin: str, folder: Path) -> None:
    """A CSV file: one row per day and one column per currency; each line ends with a comma."""
    text = _text(body, origin)
    names = [name.strip() for name in text.partition("\n")[0].split(",")]
    while names and not names[-1]:
        names.pop()
    wrong = next((name for name in names[1:] if not re.fullmatch("[A-Z]{3}", name)), None)
    if len(names) < 2 or names[0].lower() != "date" or wrong is not None or len(set(names)) < len(names):
        what = (
            f"a column is called '{shown(wrong)}'"
            if wrong is not None
            else "it does not begin with Date and currencies"
        )
        raise FinegrainError(f"{origin}: these are not rates of the ECB: {what}{_HINT}")
    file = folder / "rates.csv"
    file.write_text(text, "utf-8")
    listed = ", ".join(f"{quote(name)}: 'VARCHAR'" for name in [*names, "rest"])
    try:
        con.execute(
            "create or replace temp table __given as select trim(Date) as day, currency, trim(rate) as rate from (unpivot ("
            f"from read_csv({quote(str(file))}, header = false, skip = 1, delim = ',', quote = '\"', "
            f"null_padding = true, auto_detect = false, columns = {{{listed}}})"
            ") on columns(* exclude (Date, rest)) into name currency value rate)"
        )
    except duckdb.Error as error:
        raise FinegrainError(f"{origin}: this cannot be read: {shown(str(error).splitlines()[0])}{_HINT}") from None


def _text(body: bytes, origin: str) -> str:
    try:
        return body.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise FinegrainError(f"{origin}: this is neither text nor a ZIP archive{_HINT}") from None


def _stage_xml(con: duckdb.DuckDBPyConnection, body: bytes, origin: str, folder: Path) -> None:
    """An XML file: one Cube element per day, with one Cube per currency in it."""
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:  # nested entities could exhaust memory
        raise FinegrainError(f"{origin}: these are not rates of the ECB{_HINT}")
    try:
        root = ElementTree.fromstring(body)
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise FinegrainError(f"{origin}: this XML cannot be read: {shown(error)}{_HINT}") from None
    day = ""
    lines = []
    for cube in root.iter():
        if not str(cube.tag).endswith("}Cube"):
            continue
        day = cube.get("time", day)
        currency, rate = cube.get("currency"), cube.get("rate")
        if currency is None or rate is None:
            continue
        if not re.fullmatch("[A-Z]{3}", currency):
            raise FinegrainError(
                f"{origin}: these are not rates of the ECB: a currency is called '{shown(currency)}'{_HINT}"
            )
        lines.append("\t".join(re.sub(r"[\t\r\n]", " ", each) for each in (day, currency, rate)))
    file = folder / "rates.tsv"
    file.write_text("\n".join(lines) + "\n", "utf-8")
    con.execute(
        "create or replace temp table __given as select trim(day) as day, currency, trim(rate) as rate "
        f"from read_csv({quote(str(file))}, header = false, delim = '\\t', quote = '', escape = '', "
        "auto_detect = false, columns = {'day': 'VARCHAR', 'currency': 'VARCHAR', 'rate': 'VARCHAR'})"
    )


def _compare(con: duckdb.DuckDBPyConnection) -> None:
    """Add the rate in the lake to each row of `__rates`, as `former`."""
    con.execute(
        "create or replace temp table __rates as select r.*, f.per_euro as former from __rates as r left join ("
        "select rate_date, currency, arg_max(per_euro, snapshot_id) as per_euro from lake.raw.exchange_rates group by all"
        ") as f using (rate_date, currency)"
    )


def _land(con: duckdb.DuckDBPyConnection, where: Settings, origin: str, now: datetime) -> None:
    with lake.writing(con, where):
        con.execute(
            f"insert into lake.raw.exchange_rates select rate_date, currency, per_euro, {quote(origin)}, "
            f"{timestamp_literal(now)} from __rates where former is distinct from per_euro "
            "order by rate_date, currency"
        )
