"""The catalogue's server and the object store become unavailable and come back: loaders wait, and no row is missing or
there twice; other commands end with an exit code of their own."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import duckdb
import pytest
from moto.server import ThreadedMotoServer
from servers import HOST, Postgres, free_ports
from services import new_database
from streams import wait
from test_stream import GOOD, Shop

from orchestration.config.settings import Settings, settings
from orchestration.errors import Unavailable
from orchestration.lake import lake


@pytest.fixture
def shop(tmp_path: Path, extensions: Path, home: Settings) -> Shop:
    return Shop(tmp_path, extensions)


class Listening:
    """A loader in a process of its own, and its output."""

    def __init__(self, shop: Shop) -> None:
        self.process = shop.run("--json", "--age", "0.1")
        self.said: list[str] = []
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(line)

    def is_in_trouble(self) -> bool:
        return bool(self.said and json.loads(self.said[-1])["trouble"])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0, self.process.stderr.read() if self.process.stderr else ""


def landed(shop: Shop) -> list[int]:
    with suppress(Unavailable, duckdb.Error):
        return [int(user) for (user,) in shop.ask("select user_id from lake.raw.events order by user_id::int")]
    return []


def add(shop: Shop, *numbers: int) -> None:
    shop.add(*(GOOD | {"user_id": str(n)} for n in numbers))


def use_postgres(shop: Shop, server: Postgres, monkeypatch: pytest.MonkeyPatch) -> None:
    access = server.environment()
    catalog = f"postgresql://{access['PGUSER']}@{HOST}:{server.port}/{new_database(server)}"
    monkeypatch.setenv("FINEGRAIN_LAKE_CATALOG", catalog)
    monkeypatch.setenv("PGPASSWORD", access["PGPASSWORD"])
    monkeypatch.setenv("FINEGRAIN_HOME", str(shop.where.home))
    shop.where = settings()


@pytest.mark.long
@pytest.mark.parametrize("how", ["stop", "kill"])
def test_a_catalogue_goes_away_and_comes_back(
    shop: Shop, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    use_postgres(shop, postgres, monkeypatch)
    add(shop, *range(100))
    loader = Listening(shop)
    wait(lambda: landed(shop) == list(range(100)))
    getattr(postgres, how)()
    try:
        add(shop, *range(100, 200))
        wait(loader.is_in_trouble)
        late = Listening(shop)  # which has never seen the lake
        wait(late.is_in_trouble)
        late.stop()
        assert loader.process.poll() is None
    finally:
        postgres.start()
    add(shop, *range(200, 300))
    wait(lambda: landed(shop) == list(range(300)))
    loader.stop()
    assert landed(shop) == list(range(300))


@pytest.mark.long
def test_a_store_goes_away_and_comes_back(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    [port] = free_ports(1)
    store = ThreadedMotoServer(HOST, port)  # in this process, so that it keeps its data
    store.start()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "finegrain", "AWS_SECRET_ACCESS_KEY": "finegrain", "AWS_REGION": "us-east-1",
        "FINEGRAIN_S3_ENDPOINT": f"http://{HOST}:{port}", "FINEGRAIN_LAKE_DATA": "s3://outage/lake",
        "FINEGRAIN_HOME": str(shop.where.home),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    import boto3

    with monkeypatch.context() as keys:
        keys.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3", endpoint_url=f"http://{HOST}:{port}").create_bucket(Bucket="outage")
    shop.where = settings()
    add(shop, *range(100))
    loader = Listening(shop)
    wait(lambda: landed(shop) == list(range(100)))
    store.stop()
    try:
        add(shop, *range(100, 200))
        wait(loader.is_in_trouble)
        assert loader.process.poll() is None
    finally:
        store = ThreadedMotoServer(HOST, port)
        store.start()
    add(shop, *range(200, 300))
    wait(lambda: landed(shop) == list(range(300)), 120)
    loader.stop()
    assert landed(shop) == list(range(300))
    store.stop()


class Line:
    """A connection to a server that breaks once, around a commit: before the server gets it, or before the answer
    comes."""

    def __init__(self, port: int, lose: str) -> None:
        self.to, self.lose, self.lost = port, lose, 0
        self.armed = threading.Event()
        self.listener = socket.create_server((HOST, 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection((HOST, self.to))
                deaf = threading.Event()
                threading.Thread(target=self._up, args=(client, server, deaf), daemon=True).start()
                threading.Thread(target=self._down, args=(client, server, deaf), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError), client, server:
            while data := client.recv(65536):
                if self.armed.is_set() and b"COMMIT" in data.upper():
                    self.armed.clear()
                    self.lost += 1
                    if self.lose == "answer":
                        deaf.set()
                        server.sendall(data)
                        wait(lambda: not deaf.is_set())  # the server has answered
                    for each in (client, server):
                        each.shutdown(socket.SHUT_RDWR)
                    return
                server.sendall(data)

    def _down(self, client: socket.socket, server: socket.socket, deaf: threading.Event) -> None:
        with suppress(OSError), client, server:
            while data := server.recv(65536):
                if deaf.is_set():
                    deaf.clear()
                else:
                    client.sendall(data)


@pytest.mark.long
@pytest.mark.parametrize("lose", ["commit", "answer"])
def test_a_commit_without_an_answer(shop: Shop, postgres: Postgres, monkeypatch: pytest.MonkeyPatch, lose: str) -> None:
    line = Line(postgres.port, lose)
    use_postgres(shop, postgres, monkeypatch)
    add(shop, *range(50))
    direct = shop.where
    shop.where = replace(direct, lake_catalog=str(direct.lake_catalog).replace(f":{postgres.port}/", f":{line.port}/"))
    loader = Listening(shop)
    shop.where = direct
    wait(lambda: landed(shop) == list(range(50)))
    for round in (1, 2, 3):
        line.armed.set()
        add(shop, *range(50 * round, 50 * round + 50))
        wait(lambda: landed(shop) == list(range(50 * round + 50)))  # noqa: B023
        wait(lambda: line.lost == round)  # noqa: B023
    loader.stop()
    assert landed(shop) == list(range(200))
    assert any(json.loads(each)["trouble"] for each in loader.said)
    line.listener.close()


@contextmanager
def nothing_there() -> Iterator[int]:
    """A port on which nothing listens."""
    with closing(socket.socket()) as taken:
        taken.bind((HOST, 0))
        yield taken.getsockname()[1]


@pytest.mark.parametrize(
    "command", [["load", "m.yml"], ["build"], ["replay", "s.yml"], ["lake", "maintain"], ["unload", "shop"]]
)
def test_commands_end_with_a_code_of_their_own(tmp_path: Path, home: Settings, command: list[str]) -> None:
    (tmp_path / "rows.csv").write_text("customer_id,updated_at\n1,2025-01-01T00:00:00Z\n")
    fields = {"customer_id": "customer_id", "updated_at": "updated_at"}
    entry = {"files": "rows.csv", "available_at": "now", "fields": fields}
    (tmp_path / "m.yml").write_text(json.dumps({"source": "shop", "tables": {"customers": entry}}))
    entry = {"stream": {"folder": "in"}, "available_at": "now"}
    (tmp_path / "s.yml").write_text(json.dumps({"source": "shop", "tables": {"events": entry}}))
    with nothing_there() as port:
        for place in (
            {"FINEGRAIN_LAKE_CATALOG": f"postgresql://finegrain@{HOST}:{port}/lake"},
            {"FINEGRAIN_LAKE_DATA": "s3://lake/data", "FINEGRAIN_S3_ENDPOINT": f"http://{HOST}:{port}",
             "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "us-east-1"},
        ):  # fmt: skip
            done = subprocess.run(
                [sys.executable, "-m", "orchestration.cli", *command], env={**os.environ, **place}, cwd=tmp_path,
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if "FINEGRAIN_LAKE_DATA" in place and command[0] in ("build", "lake", "unload"):
                assert done.returncode == 2  # there is no lake yet, and the store is not needed to know that
                continue
            assert done.returncode == 75, (place, done.stderr)
            [line] = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
            assert "connect" in line.lower()
            assert "Traceback" not in done.stderr


def test_regular_upkeep_goes_on_after_an_outage(home: Settings) -> None:
    with nothing_there() as port:
        process = subprocess.Popen(
            [sys.executable, "-m", "orchestration.cli", "lake", "maintain", "--every", "0.1"],
            env={**os.environ, "FINEGRAIN_LAKE_CATALOG": f"postgresql://finegrain@{HOST}:{port}/lake"},
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        for _ in range(2):  # the second line says that it tried again
            assert process.stderr.readline().endswith("; trying again in 0.1 minutes\n")
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("error", "is_outage"),
    [
        (duckdb.IOException("IO Error: Could not connect to server error for HTTP PUT to 'http://h/x.parquet'"), True),
        (duckdb.HTTPException("HTTP Error: HTTP GET error on 'http://h/x' (HTTP 503)"), True),
        (duckdb.HTTPException("HTTP Error: HTTP GET error on 'http://h/x' (HTTP 403)"), False),
        (duckdb.IOException('Failed: FATAL: the database system is starting up'), True),
        (duckdb.IOException('connection to server failed: FATAL: password authentication failed for user "x"'), False),
        (duckdb.TransactionException('TransactionContext Error: Failed to commit: Failed to execute query "ROLLBACK": '), True),
        (duckdb.TransactionException("TransactionContext Error: Conflict on update!"), False),
        (duckdb.ConversionException("Conversion Error: connection refused is no number"), False),
        (duckdb.IOException("IO Error: No space left on device"), False),
    ],
)  # fmt: skip
def test_what_counts_as_an_outage(error: duckdb.Error, is_outage: bool) -> None:
    assert lake.is_outage(error) is is_outage
    wrapped = Exception("x.csv: it cannot be read")
    wrapped.__context__ = error
    assert lake.is_outage(wrapped) is is_outage
    assert isinstance(lake.failure(error, "run it again"), Unavailable) is (is_outage or lake.busy(error))
