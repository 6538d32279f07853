"""Fixtures: real servers, one of each kind per worker, on free ports and in a temporary folder.

They start when the first test needs them. If a program is not installed, the test is skipped; in CI it fails.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TypeVar

import psycopg
import pytest
from confluent_kafka.admin import AdminClient, NewTopic
from servers import HOST, Kafka, MariaDB, Missing, Moto, Postgres, Redis, Server

from orchestration.config.settings import Settings, settings

S = TypeVar("S", bound=Server)


@pytest.fixture(scope="session")
def services_folder() -> Iterator[Path]:
    """The folder with this worker's servers. Not pytest's own, because PostgreSQL's user may not enter that."""
    folder = Path(tempfile.mkdtemp(prefix="finegrain-services-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def run(server: S) -> Iterator[S]:
    """Run a server for the duration of a fixture."""
    try:
        server.start()
    except Missing as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))
    yield server
    server.kill()


@pytest.fixture(scope="session")
def kafka(services_folder: Path) -> Iterator[Kafka]:
    """Apache Kafka. Each test creates its own topics; a test that kills the broker must restart it."""
    yield from run(Kafka(services_folder, any_port=True))


@pytest.fixture(scope="session")
def postgres(services_folder: Path) -> Iterator[Postgres]:
    """PostgreSQL; use `postgres_database` for a database of your own."""
    yield from run(Postgres(services_folder, any_port=True))


@pytest.fixture(scope="session")
def mariadb(services_folder: Path) -> Iterator[MariaDB]:
    """MariaDB. Each test creates its own databases."""
    yield from run(MariaDB(services_folder, any_port=True))


@pytest.fixture(scope="session")
def redis(services_folder: Path) -> Iterator[Redis]:
    """Redis."""
    yield from run(Redis(services_folder, any_port=True))


@pytest.fixture(scope="session")
def moto(services_folder: Path) -> Iterator[Moto]:
    """The stand-in for AWS."""
    yield from run(Moto(services_folder, any_port=True))


@pytest.fixture(scope="session")
def s3(moto: Moto) -> Moto:
    """The stand-in for S3; use `bucket` for a bucket of your own."""
    return moto


@pytest.fixture(scope="session")
def kinesis(moto: Moto) -> Moto:
    """The stand-in for Kinesis. Each test creates its own streams."""
    return moto


class Resharding(Moto):
    """moto whose Kinesis splits and merges shards as AWS does (tests/kinesis_server.py)."""

    name = "resharding"

    def command(self) -> list[str]:
        return [sys.executable, str(Path(__file__).with_name("kinesis_server.py")), "-H", HOST, "-p", str(self.port)]


@pytest.fixture(scope="session")
def resharding(services_folder: Path) -> Iterator[Moto]:
    """The stand-in for Kinesis, for tests that split and merge shards. A test may kill it, which deletes its data."""
    yield from run(Resharding(services_folder, any_port=True))


@pytest.fixture
def postgres_database(postgres: Postgres) -> str:
    """The name of a new, empty database."""
    return new_database(postgres)


def new_database(postgres: Postgres) -> str:
    """Create a database. Returns its name."""
    name = f"test_{uuid.uuid4().hex}"
    access = postgres.environment()
    with psycopg.connect(
        host=HOST, port=postgres.port, user=access["PGUSER"], password=access["PGPASSWORD"], autocommit=True
    ) as connection:
        connection.execute(f"create database {name}")
    return name


@pytest.fixture
def bucket(s3: Moto) -> str:
    """The name of a new, empty bucket."""
    name = f"test-{uuid.uuid4().hex}"
    urllib.request.urlopen(urllib.request.Request(f"http://{HOST}:{s3.port}/{name}", method="PUT")).close()
    return name


@pytest.fixture
def in_postgres(home: Settings, postgres: Postgres, postgres_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the lake's catalogue into an empty PostgreSQL database."""
    access = postgres.environment()
    monkeypatch.setenv(
        "FINEGRAIN_LAKE_CATALOG", f"postgresql://{access['PGUSER']}@{HOST}:{postgres.port}/{postgres_database}"
    )
    monkeypatch.setenv("PGPASSWORD", access["PGPASSWORD"])


@pytest.fixture
def in_s3(home: Settings, s3: Moto, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the lake's files into an empty bucket."""
    monkeypatch.setenv("FINEGRAIN_LAKE_DATA", f"s3://{bucket}/some/lake/")
    for name in ("FINEGRAIN_S3_ENDPOINT", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.setenv(name, s3.environment()[name])


@pytest.fixture(params=["sqlite", "postgres"])
def catalogue(request: pytest.FixtureRequest, home: Settings) -> Settings:
    """A home with each kind of lake catalogue, set in the environment of this test and of the processes it starts."""
    if request.param == "postgres":
        request.getfixturevalue("in_postgres")
    return settings()


@pytest.fixture
def topic(kafka: Kafka) -> str:
    """The name of a new, empty topic with six partitions."""
    return new_topic(kafka, 6)


def new_topic(kafka: Kafka, partitions: int, name: str | None = None) -> str:
    """Create a topic. Returns its name."""
    name = name or f"test-{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": bootstrap(kafka)})
    [made] = admin.create_topics([NewTopic(name, partitions, 1)]).values()
    made.result()
    return name


def bootstrap(kafka: Kafka) -> str:
    """The broker's address."""
    return f"{HOST}:{kafka.port}"
