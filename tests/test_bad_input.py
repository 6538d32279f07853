"""Bad input through the command line itself: one clear error on stderr that names what to mend, exit code 2, and a lake
in which nothing has changed."""

from __future__ import annotations

import ctypes
import gzip
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pytest
import yaml

from orchestration import lake
from orchestration.errors import FinegrainError
from orchestration.load import load
from orchestration.settings import Settings, settings

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
        given = {name: value for name, value in os.environ.items() if not name.startswith("FINEGRAIN_")}
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
    """It failed with exit code 2 and one error that says all of this, and printed no result."""
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
    """Broken far inside: the footer reads, and so do the rows that are tried first."""
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
    """A mapping of a good file, which must not land either, and a bad one."""
    (shop.folder / "good.csv").write_text("t,at,u\nlogin,2024-01-01,new\n")
    write(shop.folder / name)
    return shop.mapping(files=["good.csv", name])


def test_an_empty_file_is_named(shop: Shop) -> None:
    """Beside others it is no reason to stop; alone, or among its like, it is."""
    for name in ("empty.csv", "void.csv"):
        (shop.folder / name).write_bytes(b"")
    refused(shop.run("load", shop.mapping(files=["empty.csv", "void.csv"])), "csv: the file is empty (0 bytes)")
    refused(shop.run("load", shop.mapping(files="empty.csv")), "empty.csv: the file is empty (0 bytes)")


@pytest.mark.parametrize(
    ("name", "write", "words"),
    [
        ("column.csv", _text(b"t,when,u\nlogin,2024-01-01,a\n"), ["fields.event_at", "column.csv has no column 'at'"]),
        (
            "type.csv",
            _text(b"t,at,u\n" + b"login,soon,a\n" * 30),
            ["fields.event_at", "is a time; the first is 'soon'"],
        ),
        ("cut.parquet", _truncated, ["cut.parquet: this is no whole Parquet file (cut off, or another format)"]),
        ("rotten.parquet", _rotten, ["rotten.parquet: this is no whole Parquet file"]),
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
        ("text.parquet", b"t,at,u\n", r"text\.parquet: this is no whole Parquet file"),
        ("quote.csv", b't,at,"u\nlogin,2024-01-01,a\n', r"quote\.csv: the header opens a quotation mark that is never"),
        ("binary.jsonl", b'{"t": 1}\n\0\0\n', r"binary\.jsonl: line 2 holds NUL bytes"),
        ("data.bin", b"x", r"data\.bin: the name does not tell the format; add `format: parquet`"),
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
            ["tables.events.fields.price", "'select 1' is no SQL expression"],
        ),
    ],
    ids=["yaml", "key", "field", "sql"],
)
def test_a_bad_mapping_is_named(shop: Shop, text: str, words: list[str]) -> None:
    (shop.folder / "m.yml").write_text(text)
    refused(shop.run("load", "m.yml"), *words)


def test_options_and_moments_that_are_none(shop: Shop) -> None:
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
        f"{tmp_path / 'file'}: this cannot be written",
    )
    (shop.folder / "more.csv").write_text("t,at,u\nlogin,2024-01-01,new\n")
    for place in (shop.where.lake_data, shop.where.lake_catalog):
        mode = place.stat().st_mode
        place.chmod(0o555)
        try:
            refused(
                shop.run("load", mapping, "more.csv", as_owner=True),
                f"{place}: the lake is here, and cannot be written",
            )
        finally:
            place.chmod(mode)


def test_a_lake_that_is_none(shop: Shop, tmp_path: Path) -> None:
    (tmp_path / "catalog.sqlite").write_text("no catalogue")
    env = {"FINEGRAIN_LAKE_CATALOG": str(tmp_path / "catalog.sqlite")}
    refused(shop.run("load", shop.mapping(), env=env), "catalog.sqlite: the lake does not open")
