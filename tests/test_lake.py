"""The lake in four variants (catalogue in SQLite or PostgreSQL, files in a folder or in S3) behaves the same, and each
configuration error is one sentence."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from servers import HOST, free_ports
from small_shops import differences

from orchestration.config.settings import Settings, settings
from orchestration.errors import FinegrainError
from orchestration.ingest.load import load
from orchestration.lake import lake
from orchestration.mapping.mapping import mapping_files, read_mapping
from orchestration.quality.doctor import examine
from orchestration.warehouse.build import build

NOW = datetime(2024, 6, 1, 12, 0)


@dataclass(frozen=True)
class Lake:
    """One lake, as two machines that share it see it; a SQLite catalogue is on one machine, so there they are the
    same."""

    here: Settings
    there: Settings


@pytest.fixture(params=["sqlite folder", "sqlite s3", "postgres folder", "postgres s3"])
def each(request: pytest.FixtureRequest, home: Settings, tmp_path: Path) -> Lake:
    """An empty lake, of each variant in turn."""
    for place in request.param.split():
        if place in ("postgres", "s3"):
            request.getfixturevalue(f"in_{place}")
    here = settings()
    if isinstance(here.lake_catalog, Path):
        return Lake(here, here)
    return Lake(here, replace(here, home=tmp_path / "elsewhere", warehouse=tmp_path / "elsewhere" / "warehouse.duckdb"))


def shop(folder: Path, source: str, rows: int) -> Path:
    """A mapping of one file of events."""
    (folder / f"{source}.csv").write_text("t,at,u\n" + "".join(f"login,2024-01-01,u{n}\n" for n in range(rows)))
    fields = {"event_type": "t", "event_at": "at", "user_id": "u"}
    entry = {"files": str(folder / f"{source}.csv"), "available_at": "event_time", "fields": fields}
    path = folder / f"{source}.yml"
    path.write_text(yaml.safe_dump({"source": source, "tables": {"events": entry}}))
    return path


def held(where: Settings) -> dict[str, int]:
    """Events in the lake, by source."""
    con = lake.connect(where, read_only=True)
    try:
        return dict(con.execute("select _source, count(*) from lake.raw.events group by 1").fetchall())
    finally:
        con.close()


def start(where: Settings, *command: str) -> subprocess.Popen[str]:
    """A process of its own, on a machine whose home is `where`."""
    environment = {**os.environ, **where.environment()}
    return subprocess.Popen(
        [sys.executable, *command], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    for process in processes:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said


#: A writer that creates the lake, if necessary, and lands a row ten times; it is one of two that begin together.
WRITER = """
import sys
from orchestration.lake import lake
con = lake.connect()

def land():
    with lake.transaction(con):
        con.execute(f"insert into lake.raw.events (_source) values ('{sys.argv[1]}')")

for _ in range(10):
    lake.retry(land)
"""


def test_a_lake_of_each_kind(each: Lake, tmp_path: Path) -> None:
    assert not lake.exists(each.here)
    assert "none yet" in {check.what: check.said for check in examine(where=each.here).checks}["lake"]
    assert not lake.exists(each.here)
    mapping = shop(tmp_path, "shop", 300)
    assert load(mapping, where=each.here, now=NOW).rows == 300
    assert lake.exists(each.there) and held(each.there) == {"shop": 300}
    again = load(mapping, where=each.there, now=NOW)
    assert again.rows == 0 and [file.skipped for file in again.files] == ["already loaded"]
    if isinstance(each.here.lake_data, str):  # and nothing is in the default folder
        assert not (each.here.home / "lake" / "data").exists()
    found = {check.what: (check.level, check.said) for check in examine(where=each.here).checks}
    assert found["lake"][0] == "fine" and found["lake"][1].endswith(": 300 events")


def test_two_at_once(each: Lake, tmp_path: Path) -> None:
    """Both create the lake and write to it, and then both load the same file: it lands once."""
    finish(start(each.here, "-c", WRITER, "one"), start(each.there, "-c", WRITER, "other"))
    assert held(each.here) == {"one": 10, "other": 10}
    command = ("-m", "orchestration.cli", "load", str(shop(tmp_path, "shop", 300)))
    finish(start(each.here, *command), start(each.there, *command))
    assert held(each.here) == {"one": 10, "other": 10, "shop": 300}


def test_a_build_is_the_same_wherever_the_lake_is(
    built_shop: Settings,
    home: Settings,
    in_postgres: None,
    in_s3: None,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = settings()
    # Generic tests read the warehouse alone, which is compared whole with one that passed them.
    without = ["build", "--exclude-resource-type", "unit_test", "--exclude", "test_type:generic"]
    monkeypatch.setattr("orchestration.warehouse.build.arguments", lambda *_, **__: without)
    with lake.connect(built_shop, read_only=True) as con:
        arrived = dict(con.execute("select source, max(loaded_at) from lake.raw.loads group by 1").fetchall())
    for mapping in mapping_files(project / "examples" / "simulated_shop"):
        moment = arrived[read_mapping(mapping).source]
        load(mapping, data=built_shop.home / "shop", where=elsewhere, now=moment)
    done = build(where=elsewhere)
    assert done.passed, [(node.name, node.message) for node in done.failed]
    assert differences(built_shop, elsewhere) == []


def test_a_home_that_was_moved_or_copied_works(home: Settings, tmp_path: Path) -> None:
    load(shop(tmp_path, "shop", 300), where=home, now=NOW)
    shutil.copytree(home.home, tmp_path / "copy")
    home.home.rename(tmp_path / "moved")
    more = shop(tmp_path, "more", 300)
    for name in ("copy", "moved"):
        where = Settings.below(tmp_path / name, home.extensions)
        assert held(where) == {"shop": 300}
        assert load(more, where=where, now=NOW).rows == 300
        assert held(where) == {"shop": 300, "more": 300}
    mistaken = replace(where, lake_data=tmp_path / "another")
    with pytest.raises(
        FinegrainError,
        match=r"another: the files of the lake in .* are not here; they were in .*\. Set FINEGRAIN_LAKE_DATA",
    ):
        lake.connect(mistaken)


def test_errors_of_postgres(home: Settings, in_postgres: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = settings()
    mapping = shop(tmp_path, "shop", 3)

    def said(place: Settings) -> str:
        with pytest.raises(FinegrainError) as error:
            load(mapping, where=place, now=NOW)
        with pytest.raises(FinegrainError) as other:
            lake.connect(place, read_only=True)
        [check] = [check for check in examine(where=place).checks if check.what == "lake"]
        assert (check.level, check.said) == ("error", str(error.value)) and str(other.value) == str(error.value)
        assert str(error.value).startswith(f"FINEGRAIN_LAKE_CATALOG is {place.lake_catalog}: cannot open the lake: ")
        return str(error.value).removeprefix(f"FINEGRAIN_LAKE_CATALOG is {place.lake_catalog}: cannot open the lake: ")

    monkeypatch.setenv("PGPASSWORD", "secret")
    wrong = said(where)
    assert wrong.endswith('password authentication failed for user "finegrain"; set the password in PGPASSWORD')
    assert "secret" not in wrong
    monkeypatch.setenv("PGPASSWORD", "finegrain")
    address = str(where.lake_catalog).rpartition("/")[0]
    assert said(replace(where, lake_catalog=f"{address}/nowhere")).endswith('database "nowhere" does not exist')
    [closed] = free_ports(1)
    down = f"postgres:host={HOST} port={closed} user=finegrain"
    assert said(replace(where, lake_catalog=down)).endswith(f"port {closed} failed: Connection refused")


def test_errors_of_s3(home: Settings, in_s3: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = shop(tmp_path, "shop", 3)
    absent = replace(settings(), lake_data="s3://no-such-bucket/lake")
    with pytest.raises(FinegrainError, match=r"^FINEGRAIN_LAKE_DATA is s3://no-such-bucket/lake, .*NoSuchBucket.*AWS_"):
        load(mapping, where=absent, now=NOW)
    assert not lake.exists(absent)  # so that the fix is all that is needed
    [closed] = free_ports(1)
    monkeypatch.setenv("FINEGRAIN_S3_ENDPOINT", f"http://{HOST}:{closed}")
    with pytest.raises(FinegrainError, match=r"^FINEGRAIN_LAKE_DATA is .*not connect to server.*FINEGRAIN_S3_ENDPOINT"):
        load(mapping, now=NOW)
    monkeypatch.setenv("FINEGRAIN_S3_ENDPOINT", f"{HOST}:{closed}")
    with pytest.raises(FinegrainError, match=r"^FINEGRAIN_S3_ENDPOINT is not a server address"):
        load(mapping, now=NOW)


@pytest.mark.parametrize(
    ("variable", "text", "sentence"),
    [
        ("LAKE_CATALOG", "postgresql://me:secret@db/lake", "contains a password; .*PGPASSWORD"),
        ("LAKE_CATALOG", "postgres:dbname=lake password = secret", "contains a password; .*PGPASSWORD"),
        ("LAKE_CATALOG", "postgresql://db/lake?password=secret", "contains a password; .*PGPASSWORD"),
        ("LAKE_CATALOG", "mysql://me:secret@db/lake", "not a supported location; write a path, or postgres:…"),
        ("LAKE_DATA", "s3://bucket/lake?s3_secret_access_key=secret", r"contains a '\?'; write s3://bucket/folder"),
        ("LAKE_DATA", "gs://bucket/lake", "not a supported location; write a path, or s3://bucket/folder"),
        ("WAREHOUSE", "s3://bucket/lake", "not a supported location; write a path$"),
    ],
)
def test_invalid_places(
    variable: str, text: str, sentence: str, home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"FINEGRAIN_{variable}", text)
    with pytest.raises(FinegrainError, match=f"^FINEGRAIN_{variable} .*{sentence}") as error:
        settings()
    assert "secret" not in str(error.value)


def test_places_come_from_the_environment(home: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the variables that a child process gets name the same places."""
    for address, meant in (
        ("postgres://me@db:5432/lake", "postgres:postgresql://me@db:5432/lake"),
        ("postgresql://db:5432/lake", "postgres:postgresql://db:5432/lake"),
        ("postgres:dbname=lake host=db", "postgres:dbname=lake host=db"),
    ):
        monkeypatch.setenv("FINEGRAIN_LAKE_CATALOG", address)
        monkeypatch.setenv("FINEGRAIN_LAKE_DATA", "s3://bucket/lake/")
        where = settings()
        assert (where.lake_catalog, where.lake_data) == (meant, "s3://bucket/lake")
        assert lake.extensions(where) == ["postgres_scanner", "httpfs", "ducklake"]
        for name, value in where.environment().items():
            monkeypatch.setenv(name, value)
        assert settings() == where


@pytest.mark.parametrize(
    "said",
    [
        'Failed to initialize DuckLake: Failed to execute query "CREATE TABLE …": ERROR:  relation "ducklake_metadata" already exists',
        'ERROR:  duplicate key value violates unique constraint "ducklake_snapshot_pkey"',
        "ERROR:  could not serialize access due to concurrent update",
        "ERROR:  deadlock detected",
        "Transaction conflict - attempting to create schema",
        "database is locked",
    ],
)
def test_the_second_process_is_busy(said: str) -> None:
    assert lake.busy(Exception(said)) and not lake.busy(Exception("Table already exists"))


def test_a_catalogue_that_is_held_open_keeps_its_log(home: Settings) -> None:
    """Otherwise each transaction creates it again and the last to close removes it, and other processes wait for
    that."""
    assert isinstance(home.lake_catalog, Path)
    log = home.lake_catalog.with_name(f"{home.lake_catalog.name}-wal")
    lake.connect(home).close()
    assert not log.exists()
    with lake.held_open(home):
        with lake.connect(home) as con:
            con.execute("insert into lake.raw.loads (file) values ('a')")
        assert log.exists()
    assert not log.exists()
    with lake.connect(home) as con:
        assert con.execute("select file from lake.raw.loads").fetchall() == [("a",)]
