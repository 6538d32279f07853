"""Load JSON events from a Kafka broker on this machine into the lake: rates, freshness, memory and batch sizes.

    python benchmarks/stream.py rate       # finegrain, a bare consumer, one that parses, and a loader that flushes, then commits
    python benchmarks/stream.py freshness  # from produced to visible in the lake, at a constant rate
    python benchmarks/stream.py memory     # peak memory of the loader, with small and with large events
    python benchmarks/stream.py batches    # finegrain by batch size, as a chart

Each command starts its own broker (scripts/servers.py), measures every approach in a separate process, in turns, and prints a table, or
JSON with --json. Run nothing else at the same time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from confluent_kafka import Consumer, KafkaError, Message, Producer
from confluent_kafka.admin import AdminClient, NewTopic

PROJECT = Path(__file__).resolve().parent.parent
TOPIC = "shop.events"
PARTITIONS = 6
#: Messages per batch, for all approaches with batches.
ROWS = 10_000
EVENT_TYPES = ("view_item", "add_to_cart", "page_view", "purchase")


def events(count: int, padding: int = 0, seed: int = 1) -> Iterator[tuple[str, dict[str, Any]]]:
    """(user, event) of about 300 bytes, and more by `padding`."""
    rng = random.Random(seed)
    properties = {"list": "home"} | ({"text": "x" * padding} if padding else {})
    for number in range(count):
        user = f"u{rng.randrange(50_000)}"
        yield (
            user,
            {
                "event_id": str(uuid.UUID(int=rng.getrandbits(128))),
                "event_type": rng.choice(EVENT_TYPES),
                "event_at": f"2025-03-{1 + number % 28:02d}T{number % 24:02d}:{number % 60:02d}:15.{number % 1000:03d}Z",
                "user_id": user,
                "anonymous_id": f"a{rng.getrandbits(40):x}",
                "product_id": f"p{rng.randrange(5000)}",
                "quantity": 1,
                "amount": round(rng.random() * 100, 2),
                "currency": "EUR",
                "device": "mobile",
                "page_url": f"https://shop.example/p/{rng.randrange(5000)}",
                "properties": properties,
            },
        )


@contextmanager
def broker() -> Iterator[str]:
    """Run a Kafka broker in a temporary folder. Yields its address."""
    sys.path.insert(0, str(PROJECT / "scripts"))
    from servers import Kafka

    with tempfile.TemporaryDirectory(prefix="finegrain-bench-") as folder:
        kafka = Kafka(Path(folder), any_port=True)
        kafka.start()
        try:
            yield f"127.0.0.1:{kafka.port}"
        finally:
            kafka.kill()


def make_topic(servers: str, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": servers})
    [made] = admin.create_topics([NewTopic(topic, PARTITIONS, 1)]).values()
    made.result()


def produce(servers: str, topic: str, count: int, padding: int = 0) -> float:
    """Fill a topic. Returns the mean size of its payloads in bytes."""
    make_topic(servers, topic)
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 20, "queue.buffering.max.messages": 200_000})
    size = 0
    for user, event in events(count, padding):
        payload = json.dumps(event).encode()
        size += len(payload)
        while True:
            try:
                producer.produce(topic, payload, key=user.encode())
                break
            except BufferError:
                producer.poll(0.1)
    producer.flush()
    return size / count


def mapping(folder: Path, topic: str) -> Path:
    path = folder / "shop.yml"
    stream = {"kafka": topic, "settings": {"bootstrap.servers": "${BENCH_KAFKA}"}}
    entry = {"stream": stream, "available_at": "now"}
    path.write_text(json.dumps({"source": "bench", "tables": {"events": entry}}))
    return path


# --- the approaches, each in a separate process; they return the number of messages read ----------------------------


def consume(topic: str, rows: int, each: Callable[[list[Message], Consumer], None]) -> int:
    """Read a topic to its end, as one member of a group. `each` gets the messages of each poll, and an empty list at the end."""
    consumer = Consumer(
        {
            "bootstrap.servers": os.environ["BENCH_KAFKA"],
            "group.id": str(uuid.uuid4()),
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            # Otherwise a full queue is not fetched into for a second, and runs empty.
            "fetch.queue.backoff.ms": 10,
        }
    )
    consumer.subscribe([topic])
    count, ended = 0, set()
    while len(ended) < PARTITIONS:
        good = []
        for message in consumer.consume(rows, 0.1):
            error = message.error()
            if error is None:
                good.append(message)
            elif error.code() == KafkaError._PARTITION_EOF:
                ended.add(message.partition())
        if good:
            count += len(good)
            each(good, consumer)
    each([], consumer)
    consumer.close()
    return count


def bare(topic: str, folder: Path) -> int:
    """Only read the bytes."""

    def nothing(messages: list[Message], consumer: Consumer) -> None:
        for message in messages:
            message.value()

    return consume(topic, 10_000, nothing)


def parsing(topic: str, folder: Path) -> int:
    """Only parse each payload with orjson."""
    import orjson

    def parse(messages: list[Message], consumer: Consumer) -> None:
        for message in messages:
            orjson.loads(message.value() or b"")

    return consume(topic, 10_000, parse)


def flushing(topic: str, folder: Path) -> int:
    """Like SQLFlow: dicts become an Arrow table, SQL writes it, then the offsets are committed to the broker. Messages that were flushed
    but not committed are loaded twice; nothing is validated, and a payload that is not JSON stops it."""
    import orjson
    import pyarrow as pa

    from orchestration.lake import lake

    con = lake.connect()
    rows: list[Any] = []

    def take(messages: list[Message], consumer: Consumer) -> None:
        rows.extend(orjson.loads(message.value() or b"") for message in messages)
        if rows and (len(rows) >= ROWS or not messages):
            con.register("batch", pa.Table.from_pylist(rows))
            con.execute("create table if not exists lake.raw.flushed as from batch limit 0")
            con.execute("insert into lake.raw.flushed from batch")
            con.unregister("batch")
            consumer.commit(asynchronous=False)
            rows.clear()

    count = consume(topic, 10_000, take)
    [(landed,)] = con.execute("select count(*) from lake.raw.flushed").fetchall()
    assert landed == count
    return count


def finegrain(topic: str, folder: Path, rows: int = ROWS) -> int:
    """`finegrain stream --drain`."""
    from orchestration.ingest.stream.loader import Limits
    from orchestration.ingest.stream.run import stream
    from orchestration.lake import lake

    done = stream(mapping(folder, topic), drain=True, limits=Limits(rows=rows, bytes=max(rows * 400, Limits.bytes)))
    con = lake.connect(read_only=True)
    [(landed,)] = con.execute("select count(*) from lake.raw.events").fetchall()
    assert landed == done["rows"] == done["messages"], done
    return int(done["messages"])


WAYS: dict[str, Callable[..., int]] = {
    "bare consumer": bare,
    "and orjson": parsing,
    "flush, then commit": flushing,
    "finegrain": finegrain,
}


def run(servers: str, way: str, topic: str, *more: str) -> dict[str, float]:
    """Run one approach in a new process and a new home."""
    with tempfile.TemporaryDirectory(prefix="finegrain-bench-") as folder:
        done = subprocess.run(
            [sys.executable, __file__, "run", way, topic, folder, *more],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            env={**os.environ, "FINEGRAIN_HOME": folder, "BENCH_KAFKA": servers},
        )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def run_here(way: str, topic: str, folder: Path, *more: str) -> dict[str, float]:
    started, before = time.perf_counter(), time.process_time()
    count = WAYS[way](topic, folder, *map(int, more))
    seconds = time.perf_counter() - started
    return {
        "messages": count,
        "seconds": seconds,
        "per_second": count / seconds,
        "cpu_seconds": time.process_time() - before,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


# --- measurements ----------------------------------------------------------------------------------------------------


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    """The run with the median rate."""
    return sorted(runs, key=lambda each: each["per_second"])[len(runs) // 2]


def rate(given: argparse.Namespace) -> list[dict[str, Any]]:
    """All approaches with the same topic, in turns."""
    with broker() as servers:
        size = produce(servers, TOPIC, given.events)
        runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(given.rounds):
            for way, found in runs.items():
                found.append(run(servers, way, TOPIC))
                assert found[-1]["messages"] == given.events
    shown = {way: median(found) for way, found in runs.items()}
    reference = shown["bare consumer"]["per_second"]
    return [
        {
            "way": way,
            "events/s": round(found["per_second"]),
            "MB/s": round(found["per_second"] * size / 1e6, 1),
            "of the bare consumer": round(found["per_second"] / reference, 2),
            "CPU s per million": round(found["cpu_seconds"] / found["messages"] * 1e6, 1),
            "peak MiB": round(found["peak_mib"]),
            "slowest and fastest": " ".join(
                f"{each:,.0f}" for each in sorted(r["per_second"] for r in runs[way])[:: max(given.rounds - 1, 1)]
            ),
        }
        for way, found in shown.items()
    ]


def batches(given: argparse.Namespace) -> list[dict[str, Any]]:
    """finegrain by batch size."""
    sizes = [1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000]
    with broker() as servers:
        produce(servers, TOPIC, given.events)
        runs: dict[int, list[dict[str, float]]] = {rows: [] for rows in sizes}
        for _ in range(given.rounds):
            for rows, found in runs.items():
                found.append(run(servers, "finegrain", TOPIC, str(rows)))
    shown = {rows: median(found) for rows, found in runs.items()}
    return [
        {"rows in a batch": rows, "events/s": round(found["per_second"]), "peak MiB": round(found["peak_mib"])}
        for rows, found in shown.items()
    ]


def chart(found: list[dict[str, Any]]) -> str:
    """A Mermaid chart, which GitHub renders."""
    labels = ", ".join(f'"{each["rows in a batch"]:,}"' for each in found)
    values = ", ".join(str(round(each["events/s"] / 1000)) for each in found)
    return (
        "```mermaid\nxychart-beta\n"
        '    title "thousand events a second, by rows in a batch"\n'
        f"    x-axis [{labels}]\n    y-axis 0 --> {max(each['events/s'] for each in found) / 1000 * 1.1:.0f}\n    bar [{values}]\n```"
    )


def memory(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Peak memory of the loader with a backlog of small events, and of events of 50 kB."""
    shown = []
    with broker() as servers:
        for name, padding in (("small", 0), ("large", 50_000)):
            count = given.events if not padding else given.events // 100
            size = produce(servers, name, count, padding)
            found = run(servers, "finegrain", name)
            shown.append(
                {
                    "bytes of an event": round(size),
                    "events": count,
                    "MB/s": round(found["per_second"] * size / 1e6, 1),
                    "peak MiB": round(found["peak_mib"]),
                }
            )
    return shown


def freshness(given: argparse.Namespace) -> list[dict[str, Any]]:
    """The time from an event's production to the first query of the lake that sees it. Positions move in the transaction that writes
    their rows, so events before them are visible; a query that began before the event does not count."""
    shown = []
    with broker() as servers:
        for per_second in given.per_second:
            for age in given.age:
                topic = f"at.{per_second}.{age}"
                make_topic(servers, topic)
                shown.append(
                    {"events/s": per_second, "--age": age, **_freshness(servers, topic, per_second, age, given.seconds)}
                )
    return shown


def _freshness(servers: str, topic: str, per_second: int, age: float, seconds: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="finegrain-bench-") as text:
        folder = Path(text)
        environment = {**os.environ, "FINEGRAIN_HOME": text, "BENCH_KAFKA": servers}
        os.environ["FINEGRAIN_HOME"] = text
        from orchestration.lake import lake

        lake.connect().close()
        loader = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "orchestration.cli",
                "stream",
                str(mapping(folder, topic)),
                "--age",
                str(age),
                "--json",
            ],
            env=environment,
            cwd=PROJECT,
            stdout=subprocess.PIPE,
            text=True,
        )
        looks: list[tuple[float, dict[str, int]]] = []
        done = threading.Event()

        def look() -> None:
            con = lake.connect(read_only=True)
            while not done.is_set():
                found = con.execute("select part, position::bigint from lake.raw.positions").fetchall()
                looks.append((time.time(), dict(found)))
                done.wait(0.02)
            con.close()

        watching = threading.Thread(target=look)
        watching.start()
        while not looks or len(looks[-1][1]) < PARTITIONS:  # the loader has its partitions
            time.sleep(0.1)
        sent = subprocess.run(
            [sys.executable, __file__, "send", topic, str(per_second), str(seconds)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        produced = [tuple(line.split()) for line in sent.stdout.splitlines()]
        ends: dict[str, int] = {}
        for part, offset, _ in produced:
            ends[part] = max(ends.get(part, 0), int(offset) + 1)
        deadline = time.monotonic() + 30
        while any(looks[-1][1].get(part, 0) < end for part, end in ends.items()):
            assert time.monotonic() < deadline, "the events did not arrive"
            time.sleep(0.1)
        done.set()
        watching.join()
        loader.terminate()
        out, _ = loader.communicate()
    report = json.loads(out.splitlines()[-1])
    seen: dict[str, list[tuple[int, float]]] = {}
    for at, found in looks:
        for part, end in found.items():
            if not seen.get(part) or seen[part][-1][0] < end:
                seen.setdefault(part, []).append((end, at))
    waits = []
    at_look = dict.fromkeys(ends, 0)
    for part, offset, at in sorted(produced, key=lambda each: (each[0], int(each[1]))):
        while seen[part][at_look[part]][0] <= int(offset):
            at_look[part] += 1
        waits.append(seen[part][at_look[part]][1] - float(at))
    cuts = statistics.quantiles(waits, n=100)
    return {
        "events": len(waits),
        "p50 s": round(cuts[49], 3),
        "p99 s": round(cuts[98], 3),
        "slowest s": round(max(waits), 3),
        "batches": report["batches"],
        "looks/s": round(len(looks) / (looks[-1][0] - looks[0][0])),
    }


def send(topic: str, per_second: int, seconds: float) -> None:
    """Produce at a constant rate, and print partition, offset and time of production of each event. First send one event per partition,
    which does not count, so that the producer's connection is not measured."""
    producer = Producer({"bootstrap.servers": os.environ["BENCH_KAFKA"], "linger.ms": 2, "acks": 1})
    delivered: list[tuple[int, int, float]] = []
    payloads = [(user.encode(), json.dumps(event).encode()) for user, event in events(int(per_second * seconds))]
    # Send the events of 50 ms at once, as a shop's servers would.
    step = max(per_second // 20, 1)
    for partition in range(PARTITIONS):
        producer.produce(topic, payloads[0][1], partition=partition)
    assert producer.flush(30) == 0
    began = time.time()
    for first in range(0, len(payloads), step):
        ahead = began + first / per_second - time.time()
        if ahead > 0:
            producer.poll(0)
            time.sleep(ahead)
        for user, payload in payloads[first : first + step]:
            at = time.time()
            producer.produce(
                topic,
                payload,
                key=user,
                on_delivery=lambda error, message, at=at: delivered.append((message.partition(), message.offset(), at)),
            )
    assert producer.flush(30) == 0
    assert len(delivered) == len(payloads)
    for part, offset, at in delivered:
        print(part, offset, f"{at:.6f}")


def table(found: list[dict[str, Any]]) -> str:
    """A Markdown table."""

    def shown(value: Any) -> str:
        return f"{value:,}" if isinstance(value, int) else str(value)

    heads = list(found[0])
    lines = [heads, ["---"] * len(heads), *([shown(each[head]) for head in heads] for each in found)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    if sys.argv[1:2] == ["run"]:
        way, topic, folder, *more = sys.argv[2:]
        print(json.dumps(run_here(way, topic, Path(folder), *more)))
        return
    if sys.argv[1:2] == ["send"]:
        topic, per_second, seconds = sys.argv[2:]
        send(topic, int(per_second), float(seconds))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("rate", "freshness", "memory", "batches"))
    parser.add_argument("--events", type=int, default=2_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-second", type=int, nargs="+", default=[1_000, 20_000])
    parser.add_argument("--age", type=float, nargs="+", default=[0.1, 1.0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    found = {"rate": rate, "freshness": freshness, "memory": memory, "batches": batches}[given.what](given)
    if given.json:
        print(json.dumps(found))
    else:
        print(table(found))
        if given.what == "batches":
            print("\n" + chart(found))


if __name__ == "__main__":
    main()
