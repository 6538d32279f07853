"""The servers for tests and for users: they answer real clients, keep their data, and report clearly what is wrong."""

from __future__ import annotations

import subprocess
import uuid
from pathlib import Path

import boto3
import psycopg
import pymysql
import pytest
import servers
from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic
from servers import HOST, Kafka, MariaDB, Missing, Moto, Postgres, Redis, ServiceError, free_ports


def produce(access: dict[str, str], topic: str, value: str, wait: float = 20, **more: str) -> int:
    """Send one message with SASL, in a transaction; returns how many the topic then has."""
    sasl = {
        "bootstrap.servers": access["KAFKA_SASL_BOOTSTRAP_SERVERS"],
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": access["KAFKA_CERTIFICATE"],
        "sasl.mechanism": "PLAIN",
        "sasl.username": access["KAFKA_SASL_USERNAME"],
        "sasl.password": access["KAFKA_SASL_PASSWORD"],
        **more,
    }
    producer = Producer({**sasl, "transactional.id": topic})
    producer.init_transactions(wait)
    producer.begin_transaction()
    producer.produce(topic, value)
    producer.commit_transaction(wait)
    consumer = Consumer(
        {"bootstrap.servers": access["KAFKA_BOOTSTRAP_SERVERS"], "group.id": topic, "enable.partition.eof": True}
    )
    consumer.assign([TopicPartition(topic, 0, OFFSET_BEGINNING)])
    found = 0
    while (message := consumer.poll(20)) and message.error() is None:
        found += 1
    assert message is not None and message.error().code() == KafkaError._PARTITION_EOF
    consumer.close()
    return found


def test_kafka_keeps_what_it_has_when_it_is_killed(kafka: Kafka) -> None:
    topic = uuid.uuid4().hex
    access = kafka.environment()
    admin = AdminClient({"bootstrap.servers": access["KAFKA_BOOTSTRAP_SERVERS"]})
    [made] = admin.create_topics([NewTopic(topic, 1, 1)]).values()
    made.result(10)
    assert produce(access, topic, "before") == 1
    assert kafka.kill() and not kafka.running
    assert kafka.start() and not kafka.start()
    assert produce(access, topic, "after") == 2
    with pytest.raises(KafkaException):
        produce(access, topic, "never", wait=2, **{"sasl.password": "wrong"})


def test_databases(postgres: Postgres, mariadb: MariaDB, postgres_database: str) -> None:
    access = postgres.environment()
    address = f"host={HOST} port={postgres.port} user={access['PGUSER']} dbname={postgres_database}"
    with psycopg.connect(f"{address} password={access['PGPASSWORD']}") as one:
        one.execute("create table kept as select 1 as n")
    with pytest.raises(psycopg.OperationalError, match="password"):
        psycopg.connect(f"{address} password=wrong")
    assert postgres.kill() and postgres.start()
    with psycopg.connect(f"{address} password={access['PGPASSWORD']}") as one:
        assert one.execute("select n from kept").fetchall() == [(1,)]
    access = mariadb.environment()
    with pymysql.connect(
        host=HOST, port=mariadb.port, user=access["MYSQL_USER"], password=access["MYSQL_PWD"],
        database=access["MYSQL_DATABASE"],
    ) as other, other.cursor() as cursor:  # fmt: skip
        cursor.execute("select version()")
        assert "MariaDB" in str(cursor.fetchone())


def test_replacements_for_aws(s3: Moto, kinesis: Moto, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment().items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").put_object(Bucket=bucket, Key="a", Body=b"1")
    assert boto3.client("s3").get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"
    client = boto3.client("kinesis", endpoint_url=kinesis.environment()["AWS_ENDPOINT_URL"])
    client.create_stream(StreamName=bucket, ShardCount=1)
    assert bucket in client.list_streams()["StreamNames"]


def test_the_command(project: Path, tmp_path: Path, redis: Redis) -> None:
    """Another Redis next to the fixture's, started as a user would."""

    def services(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [project / "scripts" / "services", *arguments, "--folder", str(tmp_path), "--any-port"]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    started = services("start", "redis")
    assert started.returncode == 0 and started.stdout.startswith("redis: started in "), started
    try:
        port = int((tmp_path / "redis" / "ports").read_text())
        assert services("status", "redis").stdout == f"redis: runs at 127.0.0.1:{port}\n"
        assert services("env", "redis").stdout == f"export REDIS_URL=redis://127.0.0.1:{port}/0\n"
        assert "runs already" in services("start", "redis").stdout
    finally:
        assert services("stop", "redis").stdout == "redis: stopped\n"
    assert services("status", "redis").stdout == "redis: does not run\n"
    assert services("stop", "redis").stdout == "redis: does not run\n"
    wrong = services("start", "rabbit")
    assert wrong.returncode == 2 and "'rabbit' is not a service" in wrong.stderr
    taken = Redis(tmp_path / "taken")
    taken.folder.mkdir(parents=True)
    (taken.folder / "ports").write_text(str(redis.port))
    with pytest.raises(ServiceError, match=f"port {redis.port} is taken"):
        taken.start()


def test_errors_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Missing, match=r"^no-such is not installed; on Debian: apt-get install .* such-server$"):
        servers.program("no-such", "such-server")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    [closed] = free_ports(1)
    monkeypatch.setenv("MAVEN_REPOSITORY", f"http://{HOST}:{closed}/maven/")
    with pytest.raises(ServiceError, match=r"lz4-java-.*\.jar: Kafka's jar cannot be fetched"):
        servers.kafka_jars()
    repository = tmp_path / "maven"
    for line in (servers.PROJECT / "scripts" / "kafka.jars").read_text().splitlines():
        group, artifact, version = line.split()[0].split(":")
        folder = repository / group.replace(".", "/") / artifact / version
        folder.mkdir(parents=True)
        (folder / f"{artifact}-{version}.jar").write_text("not the jar")
    monkeypatch.setenv("MAVEN_REPOSITORY", repository.as_uri())
    with pytest.raises(ServiceError, match=r"lz4-java-.*\.jar is not the file that scripts/kafka.jars lists"):
        servers.kafka_jars()
    assert [path.name for path in (tmp_path / "cache" / "finegrain").iterdir()] == ["lock"]
