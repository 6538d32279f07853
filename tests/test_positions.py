"""Positions move in the transaction that lands rows, and only if they are still where their owner left them."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

import duckdb
import pytest
from servers import HOST, Postgres

from orchestration.config.settings import Settings
from orchestration.lake import lake
from orchestration.lake.positions import Fenced, Position, Stream, move, positions

NOW = datetime(2025, 3, 2)
STREAM = Stream("shop", "events", "kafka:t")


@pytest.fixture(params=["sqlite", "postgres"])
def where(
    request: pytest.FixtureRequest, tmp_path: Path, extensions: Path, monkeypatch: pytest.MonkeyPatch
) -> Settings:
    """A lake with a catalogue of either kind."""
    home = Settings.below(tmp_path / "home", extensions)
    if request.param == "sqlite":
        return home
    server: Postgres = request.getfixturevalue("postgres")
    database = request.getfixturevalue("postgres_database")
    access = server.environment()
    monkeypatch.setenv("PGPASSWORD", access["PGPASSWORD"])
    catalog = f"postgres:dbname={database} host={HOST} port={server.port} user={access['PGUSER']}"
    return replace(home, lake_catalog=catalog)


def step(con: duckdb.DuckDBPyConnection, before: Position | None, after: Position) -> None:
    move(con, STREAM, {after.partition: (before, after)}, NOW)
    con.execute(f"insert into lake.raw.events (_position) values ('{after.partition}/{after.position}')")


def test_a_move_from_elsewhere_is_refused(where: Settings) -> None:
    con = lake.connect(where)
    with lake.writing(con, where):
        step(con, None, Position("0", "10", "i", "me"))
    for stale in (None, Position("0", "9", "i", "me"), Position("0", "10", "i", "you"), Position("0", "10", "j", "me")):
        with pytest.raises(Fenced), lake.writing(con, where):
            step(con, stale, Position("0", "20", "i", "me"))
    assert positions(con, STREAM) == {"0": Position("0", "10", "i", "me")}
    for other in (
        Stream("shop", "events", "kafka:u"),
        Stream("shop", "orders", "kafka:t"),
        Stream("mall", "events", "kafka:t"),
    ):
        assert positions(con, other) == {}
    assert con.execute("select _position from lake.raw.events").fetchall() == [("0/10",)]
    con.close()


def test_a_move_costs_the_same_however_many_files_the_lake_has(where: Settings) -> None:
    """DuckLake reads its statistics of all columns of all files for a condition on a column."""
    with lake.connect(where) as con:
        with lake.writing(con, where):
            step(con, None, Position("0", "10"))
        con.execute("call enable_logging('QueryLog')")
        with lake.writing(con, where):
            move(con, STREAM, {"0": (Position("0", "10"), Position("0", "20"))}, NOW)
            positions(con, STREAM)
        said = [text for (text,) in con.execute("select message from duckdb_logs").fetchall()]
        assert any("ducklake_inlined_data" in text for text in said)
        assert not [text for text in said if "ducklake_file_column_stats" in text]


def test_of_two_that_move_at_once_one_lands(where: Settings) -> None:
    """Both have read the position before either commits, like a paused loader and its successor on two machines."""
    one, two = lake.connect(where), lake.connect(where)
    start = Position("0", "10", None, "heir")
    with lake.writing(one, where):
        move(one, STREAM, {"0": (None, start), "1": (None, Position("1", "5"))}, NOW)
    one.execute("begin")
    step(one, start, Position("0", "20", None, "heir"))
    two.execute("begin")
    step(two, start, Position("0", "20", None, "zombie"))
    one.execute("commit")
    with pytest.raises(duckdb.Error) as raised:
        two.execute("commit")
    assert lake.busy(raised.value)  # so it tries again, and learns that it was overtaken
    one.close()
    two.close()
    con = lake.connect(where, read_only=True)
    assert positions(con, STREAM)["0"].owner == "heir"
    assert con.execute("select count(*) from lake.raw.events").fetchall() == [(1,)]
    con.close()
