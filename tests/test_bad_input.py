"""Bad input on the command line: one clear error on stderr that names the fix, exit code 2, and an unchanged lake."""

from __future__ import annotations

import ctypes
import gzip
import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
import yaml
from conftest import run_dbt

from orchestration.config.settings import LEAST_MEMORY, Environment, Settings, memory_bytes, settings
from orchestration.errors import FinegrainError
from orchestration.ingest.load import load, plan
from orchestration.lake import lake
from orchestration.mapping.mapping import read_mapping

FIELDS = {"event_type": "t", "event_at": "at", "user_id": "u"}
ENTRY = {"files": "a.csv", "available_at": "event_time", "fields": FIELDS}


@dataclass
class Shop:
    """A folder whose a.csv is in the lake already, and the command that runs in it."""

    folder: Path
    where: Settings

    def run(
        self, *arguments: str, env: dict[str, str] | None = None, as_owner: bool = False
    ) -> subprocess.CompletedProcess[str]:
        given = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("FINEGRAIN_") or name == "FINEGRAIN_PRIVACY_KEY"
        }
        given |= {
            "FINEGRAIN_HOME": str(self.where.home),
            "FINEGRAIN_EXTENSIONS": str(self.where.extensions),
            **(env or {}),
        }
        return subprocess.run(
            [sys.executable, "-m", "orchestration.cli", *arguments],
            cwd=self.folder,
            env=given,
            preexec_fn=obey_permissions if as_owner else None,
            capture_output=True,
            text=True,
            check=False,
        )

    def mapping(self, **entry: object) -> str:
        (self.folder / "m.yml").write_text(yaml.safe_dump({"source": "shop", "tables": {"events": {**ENTRY, **entry}}}))
        return "m.yml"

    def held(self) -> list[tuple[int, ...]]:
        """Snapshots, rows and loads of the lake."""
        con = lake.connect(self.where, read_only=True)
        try:
            return con.execute(
                "select (select count(*) from lake.snapshots()), (select count(*) from lake.raw.events), "
                "(select count(*) from lake.raw.loads)"
            ).fetchall()
        finally:
            con.close()


def obey_permissions() -> None:
    """Root may write what is read-only; without CAP_DAC_OVERRIDE it may not."""
    ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory, extensions: Path) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FINEGRAIN_HOME", str(folder / "home"))
        patch.setenv("FINEGRAIN_EXTENSIONS", str(extensions))
        made = Shop(folder, settings())
        (folder / "a.csv").write_text("t,at,u\nlogin,2024-01-01,a\n")
        load(folder / made.mapping(), data=folder, where=made.where)
        before = made.held()
        yield made
        assert made.held() == before == [(before[0][0], 1, 1)]


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that it failed with exit code 2 and one error with all these words, and printed no result."""
    assert done.returncode == 2, done.stderr[-2000:] or done.stdout[-2000:]
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr
    for word in words:
        assert word in errors[0], errors[0]


def _parquet(path: Path, sql: str = "select 'login' t, '2024-01-01' as at, 'u' || i u from range(50000) t(i)") -> bytes:
    duckdb.connect().execute(f"copy ({sql}) to '{path}' (format parquet)")
    return path.read_bytes()


def _truncated(path: Path) -> None:
    path.write_bytes(_parquet(path)[:-1000])


def _rotten(path: Path) -> None:
    """Corrupt in the middle: the footer and the first rows can be read."""
    whole = _parquet(path)
    at = len(whole) * 6 // 10
    path.write_bytes(whole[:at] + b"\xff" * 3000 + whole[at + 3000 :])


def _broken_gzip(path: Path) -> None:
    path.write_bytes(gzip.compress(b"t,at,u\n" + b"login,2024-01-01,a\n" * 1000)[:-20])


def _long_line(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b"t,at,u\nlogin,2024-01-01,")
        for _ in range(100):
            stream.write(b"x" * 2**20)


def _text(text: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(text)


def bad_file(shop: Shop, name: str, write: Callable[[Path], object]) -> str:
    """A mapping of a good file, which must not be loaded either, and a bad one."""
    (shop.folder / "good.csv").write_text("t,at,u\nlogin,2024-01-01,new\n")
    write(shop.folder / name)
    return shop.mapping(files=["good.csv", name])


def test_an_empty_file_is_named(shop: Shop) -> None:
    """It is an error only if no other file has rows."""
    for name in ("empty.csv", "void.csv"):
        (shop.folder / name).write_bytes(b"")
    refused(shop.run("load", shop.mapping(files=["empty.csv", "void.csv"])), "csv: the file is empty (0 bytes)")
    refused(shop.run("load", shop.mapping(files="empty.csv")), "empty.csv: the file is empty (0 bytes)")


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        (
            "bare.csv",
            _text(b"login,2024-01-01,a\nlogin,2024-01-02,b\n"),
            ["bare.csv has no column 'at'", "'2024-01-01', which looks like a value", "csv: {columns: ["],
        ),
        ("column.csv", _text(b"t,when,u\nlogin,2024-01-01,a\n"), ["fields.event_at", "column.csv has no column 'at'"]),
        (
            "type.csv",
            _text(b"t,at,u\n" + b"login,soon,a\n" * 30),
            ["fields.event_at", "is a time; the first is 'soon'"],
        ),
        ("cut.parquet", _truncated, ["cut.parquet: this is not a complete Parquet file (cut off, or another format)"]),
        ("rotten.parquet", _rotten, ["rotten.parquet: this is not a complete Parquet file"]),
        (
            "latin.csv",
            _text(b"t,at,u\nlogin,2024-01-01,caf\xe9\n"),
            ["latin.csv: line 2 is not UTF-8", "encoding: latin-1"],
        ),
        ("long.csv", _long_line, ["long.csv: line 2 is longer than 16 MB"]),
        ("broken.csv.gz", _broken_gzip, ["broken.csv.gz: this gzip file is broken or cut off"]),
    ],
)
def test_a_bad_file_is_named(shop: Shop, name: str, write: Callable[[Path], object], words: list[str]) -> None:
    refused(shop.run("load", bad_file(shop, name, write)), *words)
    (shop.folder / name).unlink()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("blank.csv", b"\n", r"blank\.csv: the first line is blank; it must name the columns"),
        ("text.parquet", b"t,at,u\n", r"text\.parquet: this is not a complete Parquet file"),
        ("quote.csv", b't,at,"u\nlogin,2024-01-01,a\n', r"quote\.csv: the header opens a quotation mark that is never"),
        ("binary.jsonl", b'{"t": 1}\n\0\0\n', r"binary\.jsonl: line 2 contains NUL bytes"),
        ("data.bin", b"x", r"data\.bin: the format is not clear from the name; add `format: parquet`"),
    ],
)
def test_other_bad_files_are_named_by_the_same_errors(shop: Shop, name: str, content: bytes, words: str) -> None:
    mapping = bad_file(shop, name, _text(content))
    with pytest.raises(FinegrainError, match=words):
        load(shop.folder / mapping, data=shop.folder, where=shop.where)
    (shop.folder / name).unlink()


def test_paths_that_lead_to_no_file(shop: Shop) -> None:
    (shop.folder / "folder").mkdir()
    mapping = shop.mapping()
    refused(shop.run("load", mapping, "folder"), "folder: this is a folder without Parquet, CSV or JSON-lines files")
    refused(shop.run("load", mapping, "nowhere.csv"), "nowhere.csv: no such file", str(shop.folder))
    refused(shop.run("load", "nothing.yml"), "nothing.yml: no such mapping file")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: shop\ntables: {events: {files: a.csv", ["m.yml line 2: this is not valid YAML"]),
        ("source: shop\ntabels: {}", ["m.yml: tabels: no such key; did you mean 'tables'?"]),
        (
            yaml.safe_dump({"source": "shop", "tables": {"events": {**ENTRY, "fields": {**FIELDS, "prise": "t"}}}}),
            ["tables.events.fields.prise: events has no such field; did you mean 'price'?"],
        ),
        (
            yaml.safe_dump(
                {"source": "shop", "tables": {"events": {**ENTRY, "fields": {**FIELDS, "price": {"sql": "select 1"}}}}}
            ),
            ["tables.events.fields.price", "'select 1' is not a SQL expression"],
        ),
    ],
    ids=["yaml", "key", "field", "sql"],
)
def test_a_bad_mapping_is_named(shop: Shop, text: str, words: list[str]) -> None:
    (shop.folder / "m.yml").write_text(text)
    refused(shop.run("load", "m.yml"), *words)


def test_invalid_options_and_times(shop: Shop) -> None:
    wrong = shop.run("load", shop.mapping(), "--agian")
    assert (wrong.returncode, wrong.stdout) == (2, "") and "No such option: --agian" in wrong.stderr
    refused(
        shop.run("build", env={"FINEGRAIN_AS_OF": "yesterday"}),
        "FINEGRAIN_AS_OF (--as-of) is 'yesterday'",
        "2024-03-31T00:00:00Z",
    )


def test_places_that_cannot_be_written(shop: Shop, tmp_path: Path) -> None:
    mapping = shop.mapping()
    (tmp_path / "file").write_text("")
    refused(
        shop.run("load", mapping, env={"FINEGRAIN_HOME": str(tmp_path / "file")}),
        f"{tmp_path / 'file'} is a file, but a folder is expected; set FINEGRAIN_HOME to another path",
    )
    (shop.folder / "more.csv").write_text("t,at,u\nlogin,2024-01-01,new\n")
    for place in (shop.where.lake_data, shop.where.lake_catalog):
        mode = place.stat().st_mode
        place.chmod(0o555)
        try:
            refused(
                shop.run("load", mapping, "more.csv", as_owner=True),
                f"{place}: the lake cannot be written; check its permissions",
            )
        finally:
            place.chmod(mode)


def test_a_file_that_is_not_a_lake(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_text("no catalogue")
    env = {"FINEGRAIN_LAKE_CATALOG": str(tmp_path / "catalog.sqlite")}
    refused(shop.run("load", shop.mapping(), env=env), "catalog.sqlite: cannot open the lake")


#: Invalid values of variables, and their errors.
WRONG = [
    ("FINEGRAIN_MEMORY", "abc", "FINEGRAIN_MEMORY is 'abc'"),
    ("FINEGRAIN_MEMORY", "200", "write a number with a unit, as in 3GB, 500MB or 2GiB"),
    ("FINEGRAIN_MEMORY", "-1", "FINEGRAIN_MEMORY is '-1'"),
    ("FINEGRAIN_MEMORY", "-3GB", "FINEGRAIN_MEMORY is '-3GB'"),
    ("FINEGRAIN_MEMORY", "0", "FINEGRAIN_MEMORY is '0'"),
    ("FINEGRAIN_MEMORY", "1KB", "64MB or more"),
    ("FINEGRAIN_MEMORY", "80%", "FINEGRAIN_MEMORY is '80%'"),
    ("FINEGRAIN_MEMORY", "99999999999999TB", "FINEGRAIN_MEMORY is"),
    ("FINEGRAIN_STREAM_MEMORY", "192", "FINEGRAIN_STREAM_MEMORY is '192'"),
    ("FINEGRAIN_THREADS", "abc", "FINEGRAIN_THREADS is 'abc'; write a whole number from 1 to 256"),
    ("FINEGRAIN_THREADS", "0", "FINEGRAIN_THREADS is '0'"),
    ("FINEGRAIN_THREADS", "-2", "FINEGRAIN_THREADS is '-2'"),
    ("FINEGRAIN_THREADS", "1.5", "FINEGRAIN_THREADS is '1.5'"),
    ("FINEGRAIN_WAREHOUSE", "/", "/ is a folder, but a file is expected; set FINEGRAIN_WAREHOUSE to another path"),
    (
        "FINEGRAIN_LAKE_CATALOG",
        "/",
        "/ is a folder, but a file is expected; set FINEGRAIN_LAKE_CATALOG to another path",
    ),
    ("FINEGRAIN_PUBLISHED", "/dev/null/x", "/dev/null is a file, but a folder is expected; set FINEGRAIN_PUBLISHED"),
    ("FINEGRAIN_PROJECT", "/dev", "FINEGRAIN_PROJECT is /dev, which has no dbt_project.yml"),
]


@pytest.mark.parametrize(("variable", "value", "says"), WRONG)
def test_invalid_variables(shop: Shop, variable: str, value: str, says: str) -> None:
    refused(shop.run("load", shop.mapping(), env={variable: value}), says)


@pytest.mark.parametrize("command", ["build", "ingest", "doctor", "publish", "lake maintain", "stream"])
def test_every_command_says_so(shop: Shop, command: str) -> None:
    mapping = [shop.mapping()] if command in ("ingest", "stream", "doctor") else []
    refused(shop.run(*command.split(), *mapping, env={"FINEGRAIN_MEMORY": "200"}), "FINEGRAIN_MEMORY is '200'")


@pytest.mark.long
def test_bare_dbt_says_so(shop: Shop, project: Path) -> None:
    env = {"FINEGRAIN_HOME": str(shop.where.home), "FINEGRAIN_EXTENSIONS": str(shop.where.extensions)}
    done = run_dbt(project, "build", "--select", "event_types", env={**env, "FINEGRAIN_THREADS": "abc"})
    assert done.returncode == 2 and "FINEGRAIN_THREADS is 'abc'" in done.stdout, done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_the_memory_limit_is_read_as_duckdb_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, size in (
        ("3GB", 3e9),
        ("500MB", 5e8),
        ("2GiB", 2 * 2**30),
        ("1.5 gb", 1.5e9),
        ("10TB", 1e13),
        ("3g", 3e9),
    ):
        monkeypatch.setenv("FINEGRAIN_MEMORY", text)
        assert Environment.read().memory == text and memory_bytes(text) == size
        with duckdb.connect(config={"memory_limit": text}) as con, duckdb.connect() as other:
            [(limit,)] = con.execute("select current_setting('memory_limit')").fetchall()
            other.execute(f"set memory_limit = '{int(size)}B'")
            assert other.execute("select current_setting('memory_limit')").fetchall() == [(limit,)]
    monkeypatch.setenv("FINEGRAIN_MEMORY", "")  # as a compose file passes unset variables
    assert Environment.read().memory == "3GB" and memory_bytes("3GB") > LEAST_MEMORY


def test_a_variable_that_is_set_to_nothing_counts_as_not_set(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LAKE_CATALOG", "LAKE_DATA", "WAREHOUSE", "PUBLISHED", "MEMORY", "THREADS"):
        monkeypatch.setenv(f"FINEGRAIN_{name}", "")
    assert settings() == home


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("build", "the lake has no rows yet; load some first, with finegrain load, ingest or stream"),
        ("publish", "warehouse.duckdb does not exist; run `finegrain build` first"),
        ("report", "run `finegrain build` and `finegrain publish`"),
        ("catalog --warehouse", "warehouse.duckdb does not exist; run `finegrain build` first"),
        ("lake maintain", "there is no lake yet; finegrain load, ingest or stream creates it"),
        ("bench cleaning", "run `finegrain simulate`"),
    ],
)
def test_what_to_run_first(shop: Shop, tmp_path: Path, command: str, says: str) -> None:
    refused(shop.run(*command.split(), env={"FINEGRAIN_HOME": str(tmp_path / "new")}), says)
    assert not (tmp_path / "new").exists()


def test_a_lake_without_rows_is_not_built(shop: Shop, tmp_path: Path) -> None:
    lake.connect(Settings.below(tmp_path / "empty", shop.where.extensions)).close()
    done = shop.run("build", env={"FINEGRAIN_HOME": str(tmp_path / "empty")})
    refused(done, "the lake has no rows yet")
    assert not (tmp_path / "empty" / "warehouse.duckdb").exists()


def test_ports_in_use(shop: Shop, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        env = {"FINEGRAIN_HOME": str(tmp_path / "new")}
        for part in ("dev", "webserver"):
            done = shop.run("dagster", part, "--port", port, env=env)
            refused(done, f"cannot listen on port {port} of 127.0.0.1: address already in use", "--port")
        assert not (tmp_path / "new").exists()  # nothing was started
        (shop.folder / "lines").mkdir(exist_ok=True)
        mapping = shop.folder / "stream.yml"
        entry = {"stream": {"folder": "lines"}, "available_at": "now"}
        mapping.write_text(yaml.safe_dump({"source": "shop", "tables": {"events": entry}}))
        done = shop.run("stream", "stream.yml", "--drain", "--metrics-port", port, env=env)
        refused(done, f"--metrics-port {port}", "choose another port")


def test_one_mistake_in_ten_entries_is_reported_once(shop: Shop) -> None:
    def error_of(**fields: object) -> str:
        entry = {**ENTRY, "fields": {**FIELDS, **fields}}
        mapping = {
            "source": "shop",
            "tables": {
                "events": [entry] * 10,
                "customers": {**ENTRY, "available_at": "now", "fields": {"customer_id": "u"}},
            },
        }
        (shop.folder / "m.yml").write_text(yaml.safe_dump(mapping))
        done = shop.run("load", "m.yml")
        refused(done)
        return done.stderr

    place = "error: m.yml: tables.events[1-10].fields"
    assert (
        error_of(currency={"value": ["EUR"]})
        == f"{place}.currency.value: write one constant: a text, a number, true or false\n"
    )
    assert error_of(prise="p") == f"{place}.prise: events has no such field; did you mean 'price'?\n"
    assert error_of(price={"colum": "p"}) == f"{place}.price.colum: no such key; did you mean 'column'?\n"


def test_a_value_of_several_possible_types_is_reported_once(shop: Shop) -> None:
    entry = {
        "table": "t",
        "key": "id",
        "available_at": "now",
        "fields": FIELDS,
        "incremental": {"column": "c", "overlap": [1]},
    }
    (shop.folder / "m.yml").write_text(yaml.safe_dump({"source": "s", "database": "d", "tables": {"events": entry}}))
    done = shop.run("ingest", "m.yml")
    refused(done, "tables.events.incremental.overlap: write a text or a whole number")


def test_a_date_is_a_constant_as_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "m.yml").write_text(
        "source: s\ntables: {products: {files: a.csv, available_at: now, fields: {product_id: p, updated_at: {value: 2017-01-01}}}}"
    )
    [entry] = read_mapping(tmp_path / "m.yml").tables["products"]
    assert entry.fields["updated_at"].value == "2017-01-01"


def test_an_example_without_its_data_says_where_to_get_it(shop: Shop, project: Path) -> None:
    readme = project / "examples" / "README.md"
    said = readme.read_text("utf-8")
    for example in sorted((project / "examples").rglob("*.yml")):
        name = str(example.relative_to(project / "examples"))
        assert "# Its data: " in example.read_text("utf-8")
        assert f"`{name}`" in said or f"`{example.parent.name}/`" in said
        if "package://" not in example.read_text("utf-8"):
            with pytest.raises(FinegrainError, match=re.escape(f"see {readme} for where to get this example's data")):
                plan(example, data=shop.folder)
    refused(shop.run("load", shop.mapping(files="none.csv")), "none.csv: no such file")
    assert "examples" not in shop.run("load", shop.mapping(files="none.csv")).stderr
