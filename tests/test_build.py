"""The build as a whole: bare dbt, an empty lake, and changed rules."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from conftest import run_dbt as dbt_command
from test_maintain import Held

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.lake import lake
from orchestration.warehouse.build import Node, build, needs_full_refresh, notes, run_dbt, unchanged_since
from orchestration.warehouse.fingerprints import of_files


@pytest.mark.long
@pytest.mark.usefixtures("plain_dbt")
def test_bare_dbt_build_works_from_nothing(home: Settings, project: Path) -> None:
    """As a dbt user types it, before anything was loaded: everything builds, and every test runs."""
    # dbt runs an incremental model's unit tests before the model exists for the first time (dbt-core #10695).
    done = dbt_command(
        project,
        *("--no-use-colors", "--show-all-deprecations", "--log-path", str(home.home / "logs")),
        *("build", "--target-path", str(home.home / "target")),
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert "WARN=0 ERROR=0 SKIP=0" in done.stdout, done.stdout[-3000:]
    assert int(re.findall(r"(\d+) unit tests", done.stdout)[-1]) > 40
    assert "deprecat" not in done.stdout.lower(), done.stdout[:3000]
    with duckdb.connect(str(home.warehouse), read_only=True) as con:
        assert con.execute("select status, is_whole from main.builds").fetchall() == [("passed", True)]
        assert con.execute("select count(*) from marts.user_features").fetchall() == [(0,)]


#: dbt validates YAML with its schemas only for its own adapters; add DuckDB's, because dbt 2 validates it for all.
PARSES_STRICTLY = """
from dbt.cli.main import cli
from dbt.jsonschemas import jsonschemas

jsonschemas._JSONSCHEMA_SUPPORTED_ADAPTERS.add("duckdb")
cli()
"""


def strictly_parsed(project: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """`dbt parse` of all files, in which every warning is an error."""
    options = ("--no-use-colors", "--warn-error", "--show-all-deprecations", "--log-path", str(folder / "logs"))
    command = ("parse", "--no-partial-parse", "--target-path", str(folder / "target"))
    places = ("--project-dir", str(project), "--profiles-dir", str(project))
    return subprocess.run(
        [sys.executable, "-c", PARSES_STRICTLY, *options, *command, *places],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.usefixtures("plain_dbt")
def test_nothing_in_the_project_is_deprecated(home: Settings, project: Path, tmp_path: Path) -> None:
    """dbt 2 does not read what dbt 1 reports as deprecated."""
    done = strictly_parsed(project, tmp_path)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "deprecat" not in done.stdout.lower(), done.stdout[-3000:]


@pytest.mark.usefixtures("plain_dbt")
@pytest.mark.parametrize("deprecated", ["color: blue", "meta: {owner: me}"])
def test_what_is_deprecated_is_found(deprecated: str, tmp_path: Path) -> None:
    small = tmp_path / "small"
    (small / "models").mkdir(parents=True)
    (small / "dbt_project.yml").write_text("name: small\nprofile: small\n")
    (small / "profiles.yml").write_text("small: {target: dev, outputs: {dev: {type: duckdb}}}\n")
    (small / "models" / "one.sql").write_text("select 1 as id\n")
    (small / "models" / "one.yml").write_text(f"models:\n  - name: one\n    {deprecated}\n")
    done = strictly_parsed(small, tmp_path)
    assert done.returncode != 0 and "deprecat" in done.stdout.lower(), done.stdout


#: A program that runs dbt three times, as users of dbtRunner do, and lands an event before each; it prints what the models see.
RUNS_DBT_AGAIN = """
import sys
from dbt.cli.main import dbtRunner
from orchestration.lake import lake
from orchestration.config.settings import settings

where = settings()
con = lake.connect(where)
for number in range(3):
    with lake.writing(con, where):
        con.execute(f"insert into lake.raw.events by name select '{number}' as _position, 's' as _source, now()::timestamp as available_at")
    sql = "select sum(raw_rows) as n from {{ ref('stg_lake__row_counts') }}"
    show = ["show", "--inline", sql] if number else ["run", "--select", "stg_lake__row_counts"]
    done = dbtRunner().invoke(["--quiet", *show, "--project-dir", sys.argv[1], "--profiles-dir", sys.argv[1]])
    assert done.success, done.exception
    if number:
        print(int(done.result.results[0].agate_table.rows[0][0]))
"""


def test_a_program_that_runs_dbt_again_sees_what_has_landed_since(home: Settings, project: Path) -> None:
    left = home.home / ".catalog-of-one-that-was-killed"
    left.mkdir(parents=True)
    os.utime(left, (0, 0))
    command = [sys.executable, "-c", RUNS_DBT_AGAIN, str(project)]
    environment = {**os.environ, "DBT_TARGET_PATH": str(home.home / "target"), "DBT_LOG_PATH": str(home.home / "logs")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line.isdecimal()] == ["2", "3"]
    assert not list(home.home.glob(".catalog-*"))


def test_a_process_that_briefly_reads_the_warehouse_does_not_fail_a_build(
    home: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example maintenance. A process that stays is reported, as before."""
    home.home.mkdir(parents=True)
    duckdb.connect(str(home.warehouse)).close()
    held = Held(home)
    try:
        with pytest.raises(FinegrainError, match="lock"):
            run_dbt(["seed", "--select", "event_weights"], where=home)
        pause = time.sleep

        def ended_after(seconds: float) -> None:
            """Ends in the pause before the second attempt; waiting for a process may also sleep."""
            monkeypatch.setattr(time, "sleep", pause)
            held.let_go()

        monkeypatch.setattr(time, "sleep", ended_after)
        assert run_dbt(["seed", "--select", "event_weights"], where=home).passed
        assert held.process.poll() == 0
    finally:
        held.process.kill()


@pytest.fixture
def shop(built_shop: Settings, tmp_path: Path) -> Settings:
    """A separate warehouse."""
    where = replace(built_shop, warehouse=tmp_path / "warehouse.duckdb")
    shutil.copy(built_shop.warehouse, where.warehouse)
    return where


def test_a_row_of_many_columns_is_shown_by_its_key_and_what_the_broken_rules_read() -> None:
    row = {
        "broken_rules": "price is at least 0, ends last",
        "event_id": "e",
        "customer_id": "c",
        "price": -1,
        "ended_at": 1,
    }
    row |= {f"column_{n}": n for n in range(100)}
    asks = {
        "rules": {"price is at least 0": "price >= 0", "ends last": "started_at <= ended_at", "other": "column_3 > 0"}
    }
    node = Node("fct_events_rows", "test", "fail", 0.1, asks=asks)
    kept = ("broken_rules", "event_id", "customer_id", "price", "ended_at")
    assert node.in_brief(row) == {name: row[name] for name in kept}
    # Rules that the test generates are named after their columns.
    assert node.in_brief({**row, "broken_rules": "column_7"})["column_7"] == 7
    node = Node("whole", "test", "fail", 0.1, asks={"expression": "column_5 is not null"})
    del row["broken_rules"]
    assert node.in_brief(row) == {"event_id": "e", "customer_id": "c", "column_5": 5}
    assert node.in_brief({"field": 1, "n": 2}) == {"field": 1, "n": 2}


def test_an_older_snapshot_asks_for_a_build_from_scratch(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with lake.connect(shop, read_only=True) as con:
        first, newest = con.execute("select min(snapshot_id), max(snapshot_id) from lake.snapshots()").fetchall()[0]
    monkeypatch.setenv("FINEGRAIN_SNAPSHOT", str(newest))
    assert not needs_full_refresh(shop)
    monkeypatch.setenv("FINEGRAIN_SNAPSHOT", str(newest - 1))
    assert needs_full_refresh(shop)
    monkeypatch.setenv("FINEGRAIN_SNAPSHOT", str(newest + 1))
    with pytest.raises(FinegrainError, match=f"the lake holds the snapshots {first} to {newest}"):
        build(where=shop)


def test_a_build_ends_at_once_where_nothing_has_changed(shop: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    done = build(where=shop)
    assert (done.nodes, done.unchanged_since, done.passed) == ([], 1, True)
    assert "nothing has changed since build 1" in done.summary

    # Another moment, other rows, other files: there is something to build.
    with monkeypatch.context() as patch:
        patch.setenv("FINEGRAIN_AS_OF", "2025-04-01")
        assert unchanged_since(shop) is None
    with lake.connect(shop, read_only=True) as con:
        [(newest,)] = con.execute("select max(snapshot_id) from lake.snapshots()").fetchall()
    with monkeypatch.context() as patch:
        patch.setenv("FINEGRAIN_SNAPSHOT", str(newest - 1))
        assert unchanged_since(shop) is None
    with monkeypatch.context() as patch:
        patch.setattr("orchestration.warehouse.pin.of_files", lambda project: "changed")
        assert unchanged_since(shop) is None

    # So there is after a build that failed, was of a part, or has not ended.
    with duckdb.connect(str(shop.warehouse)) as con:
        con.execute("create table kept as select * from builds")
    for change in ("status = 'failed'", "is_whole = false", "status = 'open'", "command = 'run'", "inputs = null"):
        with duckdb.connect(str(shop.warehouse)) as con:
            con.execute(f"update builds set {change}")
        assert unchanged_since(shop) is None, change
        with duckdb.connect(str(shop.warehouse)) as con:
            con.execute("create or replace table builds as select * from kept")
    assert unchanged_since(shop) == 1
    with duckdb.connect(str(shop.warehouse)) as con:
        con.execute("insert into builds select * replace (2 as number, false as is_whole) from builds")
    assert unchanged_since(shop) is None


def test_the_digest_of_the_project_covers_every_file_that_dbt_parses(tmp_path: Path) -> None:
    files = [
        *(
            "dbt_project.yml",
            "profiles.yml",
            "packages.yml",
            "models/a/b.sql",
            "models/b.yml",
            "macros/c.sql",
            "seeds/d.csv",
        ),
        *("snapshots/e.sql", "tests/singular/f.sql", "tests/generic/g.sql", "models/h.md"),
    ]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("name: finegrain")
    seen = {of_files(tmp_path)}
    for name in files:
        (tmp_path / name).write_text("name: finegrain # changed")
        seen.add(of_files(tmp_path))
    (tmp_path / "models" / "b.yml").rename(tmp_path / "models" / "c.yml")
    seen.add(of_files(tmp_path))
    assert len(seen) == len(files) + 2


def test_what_was_built_before_a_partial_parse_is_unchanged_after_it(shop: Settings) -> None:
    """A build parses the project whole, and the next one reads what dbt kept of that: lists come back where tuples were."""

    def built() -> dict[str, str]:
        with duckdb.connect(str(shop.warehouse), read_only=True) as con:
            return dict(con.execute("select model, invocation_id from states").fetchall())

    before = built()
    target = ["--target-path", str(shop.warehouse.parent / "target")]
    run_dbt(["parse", "--no-partial-parse", *target], where=shop)
    run_dbt(["run", "--select", "config.materialized:incremental", *target], where=shop)
    assert built() == before


@pytest.mark.parametrize(
    ("as_of", "asked", "expected"),
    [
        # One of 200 waits, and as_of does not include it.
        (
            "2025-01-02 10:00:00.000001",
            "null",
            [
                "1 of 200 events are not in the features, which are as of 2025-01-02 10:00:00: they wait",
                "2 customers are dated later than the last event, up to 2025-06-01 00:00:00",
            ],
        ),
        # as_of includes it.
        (
            "2025-06-01 00:00:00.000001",
            "null",
            [
                "features are as of 2025-06-01 00:00:00, though the last event arrived at 2025-01-02 10:00:00: 1 of 200 events wait",
                "2 customers are dated later than the last event, up to 2025-06-01 00:00:00",
            ],
        ),
        ("2025-01-01 00:00:00", "timestamp '2025-01-01'", []),
    ],
    ids=["left out", "waited for", "asked for"],
)
def test_a_build_notes_what_its_as_of_leaves_out(tmp_path: Path, as_of: str, asked: str, expected: list[str]) -> None:
    where = Settings.below(tmp_path, tmp_path)
    with duckdb.connect(str(where.warehouse)) as con:
        con.execute(
            f"""
            create table builds as select 1 as number, cast({asked} as timestamp) as as_of;
            create table int_identity__build as select timestamp '{as_of}' as as_of;
            create table int_events__validated as select 'kept' as verdict, timestamp '2025-01-02 10:00:00' as event_at,
                event_at as raw_available_at, case when i = 7 then timestamp '2025-06-01' else event_at end as available_at from range(200) as r (i)
            union all select 'quarantined', timestamp '2026-01-01', timestamp '2026-01-01', timestamp '2026-01-01';
            create table int_reference__record_verdicts as
            select 'customers' as raw_table, 'kept' as verdict, key as record_key, timestamp '2025-06-01' as raw_available_at
            from (values ('U1'), ('U2'), ('U2')) as v (key)
            union all select 'customers', 'kept', 'U3', timestamp '2025-01-03 09:00:00'
            union all select 'products', 'quarantined', 'P1', timestamp '2025-06-01'
            """
        )
    found = notes(where)
    assert len(found) == len(expected)
    assert all(note.startswith(begun) for note, begun in zip(found, expected, strict=True)), found


def test_a_build_without_as_of_has_no_notes(tmp_path: Path) -> None:
    where = Settings.below(tmp_path, tmp_path)
    duckdb.connect(str(where.warehouse)).close()
    assert notes(where) == []
