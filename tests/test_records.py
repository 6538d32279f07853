"""Every record of a CSV file is a row, whatever is around it: compared with Python's csv module, and with the file
before it was damaged."""

from __future__ import annotations

import csv
import gzip
import io
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from orchestration.ingest import landing
from orchestration.mapping.mapping import Csv, Table
from orchestration.sources import records
from orchestration.sources.files import DataFile, look

NAMES = ["id", "title", "price", "updated"]
many = examples(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])

Row = tuple[str | None, ...]


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as made:
        yield made


def read(
    con: duckdb.DuckDBPyConnection, path: Path, names: list[str] = NAMES, encoding: str | None = None, **how: object
) -> tuple[list[Row], list[tuple[int, str, str]], landing.Opened]:
    """(rows in order, malformed ones as (number, reason, text), the opened files) of a CSV file."""
    file = DataFile(path, path.name, "csv", path.stat().st_size)
    csv_keys = Csv.model_validate(how) if how else None
    fields = {"product_id": names[0]}
    entry = Table.model_validate({"files": "x", "available_at": "now", "fields": fields, "csv": how or None})
    opened = landing.open_file(con, file, look(file, encoding, csv_keys), "products", entry, "m")
    shown = ", ".join(f'"{name}"' for name in names)
    found = con.execute(f"select __n, __bad, __payload, {shown} from {opened.relation} order by __n").fetchall()
    assert [row[0] for row in found] == list(range(1, len(found) + 1))
    assert opened.expected == len(found)
    good = [row[3:] for row in found if row[1] is None]
    return good, [row[:3] for row in found if row[1] is not None], opened


def is_fast(opened: landing.Opened) -> bool:
    return "read_csv" in opened.relation


def as_python_reads(text: str, delimiter: str = ",") -> list[Row]:
    """The rows after the header, by Python's csv module; a blank line is not a row, an empty cell is null."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [tuple(cell or None for cell in row) for row in rows if row][1:]


# --- the issue's own -------------------------------------------------------------------------------------------------


def test_a_stray_quote_costs_its_own_row(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(
        'id,title,price,updated\n1,"FRAME" big,10,2024-01-01\n2,plain,10,2024-01-01\n3,plain,10,2024-01-01\n'
    )
    good, bad, _ = read(con, path)
    assert good == [("2", "plain", "10", "2024-01-01"), ("3", "plain", "10", "2024-01-01")]
    assert bad == [(1, "a quotation mark inside a quoted field", '1,"FRAME" big,10,2024-01-01')]


def test_a_stray_quote_in_the_middle_of_a_thousand_rows(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    lines = [f"{n},plain,10,2024-01-01" for n in range(1000)]
    lines[500] = '500,"FRAME" big,10,2024-01-01'
    path.write_text("\n".join(["id,title,price,updated", *lines]))
    good, bad, _ = read(con, path)
    assert [row[0] for row in good] == [str(n) for n in range(1000) if n != 500]
    assert [(n, text) for n, _, text in bad] == [(501, lines[500])]


def test_a_quote_that_is_never_closed_costs_its_own_line(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text(
        'id,title,price,updated\n1,"open,1,a\n2,plain,2,b\n3,"quoted, well",3,c\n4,"two\nlines",4,d\n5,"open,5,e\n6,x,6,f\n'
    )
    good, bad, _ = read(con, path)
    assert good == [
        ("2", "plain", "2", "b"),
        ("3", "quoted, well", "3", "c"),
        ("4", "two\nlines", "4", "d"),
        ("6", "x", "6", "f"),
    ]
    assert bad == [
        (1, "a quotation mark is never closed", '1,"open,1,a'),
        (5, "a quotation mark is never closed", '5,"open,5,e'),
    ]


def test_reasons_are_those_of_the_row(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('id,title,price,updated\n1,a,1\n2,b,2,x,y\n3,"c"c,3,x\n4,5" pipe,4,x\n5,e,5,x,\n\n   \n')
    good, bad, _ = read(con, path)
    # A quote in the middle of an unquoted field is text, like in Python; one empty cell too many at the end is ignored, like in DuckDB.
    assert good == [("4", '5" pipe', "4", "x"), ("5", "e", "5", "x")]
    assert bad == [
        (1, "3 columns instead of 4", "1,a,1"),
        (2, "5 columns instead of 4", "2,b,2,x,y"),
        (3, "a quotation mark inside a quoted field", '3,"c"c,3,x'),
        (6, "1 columns instead of 4", "   "),
    ]


def test_the_rest_of_a_split_record_is_not_a_row_by_chance(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text('id,title,price,updated\n1,"he said ""no"" "and\nleft, then, came back",2,a\n3,x,3,c\n')
    good, bad, _ = read(con, path)
    assert good == [("3", "x", "3", "c")]
    assert len(bad) == 2


# --- line ends -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b'id,t\r\n1,"a\nb"\r\n2,c\r\n', [("1", "a\nb"), ("2", "c")]),  # as Excel writes it
        (b'id,t\r\n1,"a\r\nb"\r\n2,c\r\n', [("1", "a\r\nb"), ("2", "c")]),
        (b"id,t\r\n1,a\n2,b\r\n3,c\n", [("1", "a"), ("2", "b"), ("3", "c")]),
        (b"id,t\n1,a\r\n2,b\n\r\n\n3,c\r\n", [("1", "a"), ("2", "b"), ("3", "c")]),
        (b'id,t\n1,"a\rb"\n2,"c\r"\n', [("1", "a\rb"), ("2", "c\r")]),
        (b'id,t\r\n1,"a\rb"\r\n2,c\r\n', [("1", "a\rb"), ("2", "c")]),
        (b"id,t\n1,a\rb\n2,c\n", [("1", "a\rb"), ("2", "c")]),
        (b'id,t\n1,"a\n\n\r\nb"\n2,c', [("1", "a\n\n\r\nb"), ("2", "c")]),
        (b'\xef\xbb\xbf"id","t"\r\n"1","a"\r\n2,c\n', [("1", "a"), ("2", "c")]),
        (b"id,t\r\n1,a\r\n2,c\r", [("1", "a"), ("2", "c")]),
    ],
)
def test_line_ends(con: duckdb.DuckDBPyConnection, tmp_path: Path, data: bytes, expected: list[Row]) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(data)
    good, bad, _ = read(con, path, ["id", "t"])
    assert (good, bad) == (expected, [])
    packed = tmp_path / "d.csv.gz"
    packed.write_bytes(gzip.compress(data))
    assert read(con, packed, ["id", "t"])[0] == expected


# --- dialects --------------------------------------------------------------------------------------------------------


def test_what_mysql_writes(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    r"""SELECT ... INTO OUTFILE ... FIELDS TERMINATED BY ',' OPTIONALLY ENCLOSED BY '"', with a header."""
    path = tmp_path / "d.csv"
    path.write_bytes(
        b"id,title,price,updated\n"
        b'1,"a \\"big\\" one",10,\\N\n'
        b'2,"back\\\\slash \\\\",\\N,"x"\n'
        b'3,"two\\\nlines",1,"tab\\\tcomma, \\\\N"\n'
        b'4,"\\"",1,"\\\\\\""\n'
        b'5,"broken"x,1,\\N\n'
        b"6,plain,1,z\n"
    )
    good, bad, opened = read(con, path, escape="\\", null="\\N")
    assert good == [
        ("1", 'a "big" one', "10", None),
        ("2", "back\\slash \\", None, "x"),
        ("3", "two\nlines", "1", "tab\tcomma, \\N"),
        ("4", '"', "1", '\\"'),
        ("6", "plain", "1", "z"),
    ]
    assert [(n, why) for n, why, _ in bad] == [(5, "a quotation mark inside a quoted field")]
    payload = con.execute(f"select __payload from {opened.relation} where __n = 1").fetchall()[0][0]
    assert payload == '{"id":"1","title":"a \\"big\\" one","price":"10","updated":"\\\\N"}'  # as it was


def test_what_mysqldump_tab_writes(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b'1\ta "b\t10\t\\N\n2\ttwo\\\nlines\\\tand a tab\t\\N\tc:\\\\\n3\ta\\nb\t1\tx\n')
    good, bad, _ = read(con, path, delimiter="\t", quote="", escape="\\", null="\\N", columns=NAMES)
    assert good == [
        ("1", 'a "b', "10", None),
        ("2", "two\nlines\tand a tab", None, "c:\\"),
        ("3", "a\nb", "1", "x"),
    ]
    assert bad == []


def test_an_escape_at_the_end_of_a_line_does_not_take_the_next(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes(b"id,t\n1,c:\\\n2,b\n3,c\n")
    good, bad, _ = read(con, path, ["id", "t"], escape="\\")
    assert good == [("2", "b"), ("3", "c")]
    assert [(n, text) for n, _, text in bad] == [(1, "1,c:\\")]


@pytest.mark.parametrize("stray", ["", '4,"x"y,1\n'])
def test_null_texts_mean_the_same_on_either_path(con: duckdb.DuckDBPyConnection, tmp_path: Path, stray: str) -> None:
    path = tmp_path / "d.csv"
    path.write_text(f'a,b,c\n1,NULL,"NULL"\n2,null,NULLS\n{stray}3,"",x\n')
    good, bad, opened = read(con, path, ["a", "b", "c"], null="NULL")
    assert is_fast(opened) != bool(stray)
    assert good == [("1", None, None), ("2", "null", "NULLS"), ("3", None, "x")]
    assert len(bad) == bool(stray)


def test_other_quote_characters(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("a^b\n'x^''y'''^1\n'two\nlines'^2\n\"^3\n")
    assert read(con, path, ["a", "b"], delimiter="^", quote="'")[0] == [("x^'y'", "1"), ("two\nlines", "2"), ('"', "3")]


# --- properties ------------------------------------------------------------------------------------------------------

text = st.text(st.sampled_from(list("ab ,;\t\"\n\r'\\é€")), max_size=6)


@many
@given(
    st.lists(st.tuples(text, text, text), max_size=12),
    st.sampled_from([",", ";", "\t", "|"]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    st.booleans(),
)
def test_well_formed_files_are_read_as_python_reads_them(
    con: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    table: list[tuple[str, str, str]],
    mark: str,
    end: str,
    quoting: int,
    slowly: bool,
) -> None:
    if quoting == csv.QUOTE_MINIMAL and end == "\n":  # Python's writer does not quote a CR then, so it ends a line
        table = [(a.replace("\r", ""), b.replace("\r", ""), c.replace("\r", "")) for a, b, c in table]
    written = io.StringIO()
    writer = csv.writer(written, delimiter=mark, quoting=quoting, lineterminator=end)  # type: ignore[call-overload]
    writer.writerows([("a", "b", "c"), *table])
    data = (
        written.getvalue() + f'"x"y{mark}1{mark}2{end}' * slowly
    )  # a single stray quote makes the other reader take over
    path = tmp_path / "d.csv"
    path.write_bytes(data.encode())
    good, bad, _ = read(con, path, ["a", "b", "c"])
    assert good == as_python_reads(written.getvalue(), mark)
    assert good == [tuple(cell or None for cell in row) for row in table]
    assert len(bad) == slowly


# Text that begins with a comma, for example, makes files that can be read in two valid ways once a quote is lost.
cells = st.one_of(st.just(""), st.text(st.sampled_from(list('ab ,"\n')), max_size=5).map("x".__add__))


@many
@given(st.lists(st.tuples(cells, cells, cells), min_size=1, max_size=8), st.data(), st.booleans())
def test_a_damaged_record_costs_itself_alone(
    con: duckdb.DuckDBPyConnection,
    tmp_path: Path,
    table: list[tuple[str, str, str]],
    data: st.DataObject,
    quoted: bool,
) -> None:
    """A quote too many or too few in one record. Each record has a number, so the rows that land can be identified."""
    spelled = []
    for n, row in enumerate(table):
        written = io.StringIO()
        quoting = csv.QUOTE_ALL if quoted else csv.QUOTE_MINIMAL
        csv.writer(written, quoting=quoting, lineterminator="\n").writerow((f"#{n}", *row))
        spelled.append(written.getvalue())
    hit = data.draw(st.integers(0, len(table) - 1))
    record = spelled[hit].removesuffix("\n")
    if data.draw(st.booleans()) and '"' in record:
        places = [at for at, character in enumerate(record) if character == '"']
        at = data.draw(st.sampled_from(places))
        damaged = record[:at] + record[at + 1 :]
    else:
        at = data.draw(st.integers(0, len(record)))
        damaged = record[:at] + '"' + record[at:]
    path = tmp_path / "d.csv"
    path.write_bytes(("id,a,b,c\n" + "".join(spelled[:hit]) + damaged + "\n" + "".join(spelled[hit + 1 :])).encode())
    good, _, _ = read(con, path, ["id", "a", "b", "c"])
    for n, row in enumerate(table):
        if n != hit:
            assert (f"#{n}", *(cell or None for cell in row)) in good, path.read_bytes()


@many
@given(
    st.text(st.sampled_from(list('ab,"\n\r\\')), max_size=60),
    st.sampled_from([{}, {"escape": "\\"}, {"quote": ""}, {"quote": "", "escape": "\\"}, {"quote": "a"}]),
)
def test_whatever_a_file_holds_each_of_its_lines_is_in_one_row(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, rest: str, how: dict[str, str]
) -> None:
    """`read` checks that rows are numbered without a gap and are as many as expected; here their lines are compared
    with those of the file."""
    path = tmp_path / "d.csv"
    path.write_bytes(b"x,y\n" + rest.encode())
    file = DataFile(path, path.name, "csv", path.stat().st_size)
    seen = look(file, None, Csv.model_validate(how))
    filled = [line for line in rest.split("\n") if line not in ("", "\r")]
    assert seen.lines == 1 + len(filled)
    _, _, opened = read(con, path, ["x", "y"], **how)
    dialect = records.Dialect(",", how.get("quote", '"'), how.get("escape", ""))
    found = records.read(con, seen, dialect, 2, 1)
    assert found.lines == seen.lines
    if is_fast(opened):
        assert found.rows == opened.expected  # both readers agree on simple files
        assert con.execute(f"select count(why) from {found.table}").fetchall() == [(0,)]
