"""Two homes, as two machines, that share one lake and start the same work at the same time: it is done once.

Each pair runs many times, in threads of this process: they start closer together than processes would, and the locks
that keep them apart (on an open file, or an advisory lock of a connection) work the same way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import boto3
import psycopg
import pytest
from servers import HOST, Moto, Postgres
from services import new_database
from streams import ask

from orchestration.config.settings import Settings
from orchestration.errors import FinegrainError
from orchestration.ingest.ingest import ingest
from orchestration.ingest.load import load
from orchestration.ingest.stream.replay import replay
from orchestration.ingest.stream.run import stream
from orchestration.lake import lake

ROUNDS = 6
ROWS = 200
EVENT = {"event_type": "view_item", "event_at": "2025-03-02T10:15:30Z", "user_id": "ann"}
#: Rows of the raw table, distinct ones, and duplicate rows of positions.
COUNTED = (
    "select count(*), count(distinct event_id), (select count(*) - count(distinct (source, raw_table, place, part)) "
    "from lake.raw.positions) from lake.raw.events"
)


class Shop:
    """A lake with a catalogue of one kind, seen from two homes."""

    def __init__(self, folder: Path, extensions: Path, postgres: Postgres | None) -> None:
        self.folder = folder
        self.homes = [Settings.below(folder / name, extensions) for name in ("one", "two")]
        catalog: Path | str = folder / "lake" / "catalog.sqlite"
        if postgres is not None:
            user = postgres.environment()["PGUSER"]
            catalog = f"postgres:dbname={new_database(postgres)} host={HOST} port={postgres.port} user={user}"
        self.homes = [replace(home, lake_catalog=catalog, lake_data=folder / "data") for home in self.homes]
        self.mapping = folder / "shop.yml"

    def map(self, **entry: Any) -> None:
        self.mapping.write_text(json.dumps({"source": "shop", "tables": {"events": entry}}))

    def both(self, work: Callable[[Settings], Any]) -> list[Any]:
        """Do it in both homes at once."""
        start = threading.Barrier(2)

        def begin(home: Settings) -> Any:
            start.wait()
            return work(home)

        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(begin, self.homes))

    def counted(self) -> tuple[int, int, int]:
        [found] = ask(self.homes[0], COUNTED)
        return found  # type: ignore[return-value]


@pytest.fixture(params=["sqlite", "postgres"])
def shops(
    request: pytest.FixtureRequest, tmp_path: Path, extensions: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Shop]:
    """Makes a shop with a lake of its own."""
    postgres: Postgres | None = None
    if request.param == "postgres":
        postgres = request.getfixturevalue("postgres")
        monkeypatch.setenv("PGPASSWORD", postgres.environment()["PGPASSWORD"])
    made: list[Shop] = []

    def make() -> Shop:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        made.append(Shop(folder, extensions, postgres))
        lake.connect(made[-1].homes[0]).close()
        return made[-1]

    return make


def lines(count: int, first: int = 0, **more: Any) -> str:
    return "".join(json.dumps(EVENT | {"event_id": str(n)} | more) + "\n" for n in range(first, first + count))


@pytest.mark.long
def test_two_loaders_of_one_folder(shops: Callable[[], Shop]) -> None:
    for _ in range(ROUNDS):
        shop = shops()
        (shop.folder / "in").mkdir()
        (shop.folder / "in" / "a.jsonl").write_text(lines(ROWS))
        shop.map(stream={"folder": str(shop.folder / "in")}, available_at="now")
        shop.both(lambda home, shop=shop: stream(shop.mapping, where=home, drain=True))  # type: ignore[misc]
        (shop.folder / "in" / "a.jsonl").write_text(lines(ROWS + 50))
        shop.both(lambda home, shop=shop: stream(shop.mapping, where=home, drain=True))  # type: ignore[misc]
        assert shop.counted() == (ROWS + 50, ROWS + 50, 0)


@pytest.mark.long
def test_two_loaders_of_one_kinesis_stream(
    shops: Callable[[], Shop], kinesis: Moto, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in kinesis.environment().items():
        monkeypatch.setenv(name, value)
    client = boto3.client("kinesis", endpoint_url=f"http://{HOST}:{kinesis.port}", region_name="eu-west-1")
    for turn in range(ROUNDS // 2):
        shop, name = shops(), f"exclusive-{id(shops)}-{turn}"
        client.create_stream(StreamName=name, ShardCount=3)
        client.get_waiter("stream_exists").wait(StreamName=name)
        records = [{"Data": line.encode(), "PartitionKey": str(n)} for n, line in enumerate(lines(ROWS).splitlines())]
        client.put_records(StreamName=name, Records=records)
        settings = {"endpoint_url": f"http://{HOST}:{kinesis.port}", "region_name": "eu-west-1"}
        shop.map(stream={"kinesis": name, "settings": settings}, available_at="now")
        shop.both(lambda home, shop=shop: stream(shop.mapping, where=home, drain=True))  # type: ignore[misc]
        assert shop.counted() == (ROWS, ROWS, 0)


@pytest.mark.long
def test_two_loads_of_one_file(shops: Callable[[], Shop]) -> None:
    for _ in range(ROUNDS):
        shop = shops()
        (shop.folder / "a.jsonl").write_text(lines(ROWS))
        fields = dict.fromkeys(("event_id", "event_type", "event_at", "user_id"))
        shop.map(files=str(shop.folder / "a.jsonl"), fields={name: name for name in fields}, available_at="event_time")
        reports = shop.both(lambda home, shop=shop: load(shop.mapping, where=home))  # type: ignore[misc]
        assert sorted(report.rows for report in reports) == [0, ROWS]
        assert shop.counted() == (ROWS, ROWS, 0)


@pytest.mark.long
def test_two_first_ingests_of_one_table(
    shops: Callable[[], Shop], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = postgres.environment()
    server = new_database(postgres)
    where = {"host": HOST, "port": postgres.port, "user": access["PGUSER"], "password": access["PGPASSWORD"]}
    with psycopg.connect(dbname=server, autocommit=True, **where) as con:
        con.execute(
            "create table visits as select n as id, 'view_item' as kind, timestamp '2025-03-02 10:00' as at, 'ann' as login "
            f"from generate_series(1, {ROWS}) as n"
        )
    monkeypatch.setenv(
        "SHOP_DATABASE",
        f"postgresql://{access['PGUSER']}:{access['PGPASSWORD']}@{HOST}:{postgres.port}/{server}",
    )
    entry = {
        "table": "public.visits",
        "key": ["id"],
        "fields": {"event_id": "id", "event_type": "kind", "event_at": "at", "user_id": "login"},
        "available_at": "now",
        "incremental": {"column": "id"},
    }
    for _ in range(ROUNDS):
        shop = shops()
        shop.mapping.write_text(
            json.dumps({"source": "shop", "database": "${SHOP_DATABASE}", "tables": {"events": entry}})
        )
        reports = shop.both(lambda home, shop=shop: ingest(shop.mapping, where=home, batch_rows=70))  # type: ignore[misc]
        assert sorted(report.rows for report in reports) == [0, ROWS]
        assert shop.counted() == (ROWS, ROWS, 0)


@pytest.mark.long
def test_two_replays_of_the_same_letters(shops: Callable[[], Shop]) -> None:
    for _ in range(ROUNDS):
        shop = shops()
        (shop.folder / "in").mkdir()
        (shop.folder / "in" / "a.jsonl").write_text(lines(ROWS, event_type="peek"))
        entry = {"stream": {"folder": str(shop.folder / "in")}, "available_at": "now"}
        shop.map(**entry)
        assert stream(shop.mapping, where=shop.homes[0], drain=True)["dead_letters"] == {"unknown_event": ROWS}
        kind = {"column": "event_type", "map": {"peek": "view_item"}}
        shop.map(**entry, fields={name: name for name in ("event_id", "event_at", "user_id")} | {"event_type": kind})
        done = shop.both(lambda home, shop=shop: replay(shop.mapping, where=home))  # type: ignore[misc]
        assert sorted(each.rows for each in done) == [0, ROWS]
        assert shop.counted() == (ROWS, ROWS, 0)


def test_a_process_that_lost_the_lock_commits_nothing(
    tmp_path: Path, extensions: Path, postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection that holds an advisory lock is closed during the work, as a server or a network may do."""
    monkeypatch.setenv("PGPASSWORD", postgres.environment()["PGPASSWORD"])
    shop = Shop(tmp_path, extensions, postgres)
    one, two = shop.homes
    con = lake.connect(one)

    def end_holders() -> None:
        access = postgres.environment()
        with psycopg.connect(
            host=HOST, port=postgres.port, user=access["PGUSER"], password=access["PGPASSWORD"], autocommit=True
        ) as server:
            server.execute("select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory'")

    with lake.exclusive(one, "load"):
        with lake.writing(con, one):
            con.execute("insert into lake.raw.events (event_id) values ('held')")
        end_holders()
        with lake.exclusive(two, "load"):  # it is free, though the first process does not know
            pass
        with pytest.raises(FinegrainError, match="the lock on this work"), lake.writing(con, one):
            con.execute("insert into lake.raw.events (event_id) values ('lost')")
    with lake.writing(con, one):
        con.execute("insert into lake.raw.events (event_id) values ('let go')")
    assert ask(one, "select event_id from lake.raw.events order by 1") == [("held",), ("let go",)]
    con.close()


def test_a_lock_is_kept_in_the_catalogue(shops: Callable[[], Shop], capsys: pytest.CaptureFixture[str]) -> None:
    """Another home waits for it, and says so if it takes long; other work does not."""
    shop = shops()
    one, two = shop.homes
    got = threading.Event()

    def wait_for_it() -> None:
        with lake.exclusive(two, "load"):
            got.set()

    waiting = threading.Thread(target=wait_for_it)
    with lake.exclusive(one, "load"):
        waiting.start()
        with lake.exclusive(two, "ingest shop"):
            pass
        assert not got.wait(0.5)
        assert capsys.readouterr().err == ""
        assert not got.wait(1)
        assert (
            capsys.readouterr().err == "waiting for another finegrain process that holds the lock on this lake: load\n"
        )
    waiting.join(30)
    assert got.is_set()
